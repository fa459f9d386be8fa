//! Event files for TensorBoard, written directly: the format is small and has not changed since 2015.
//!
//! ```text
//! record   u64 length, masked crc32c of those 8 bytes, payload, masked crc32c of the payload        little-endian
//! masked   rotate_right(crc, 15) + 0xa282ead8
//! Event    1: f64 wall time   2: i64 step   3: file version   5: Summary   7: SessionLog
//! Summary  1: Value { 1: tag   2: f32 simple value   4: Image { 1: height   2: width   3: colours   4: PNG } }
//! ```
//!
//! A resumed training opens another file, whose first event is a session start at its iteration: TensorBoard then forgets what the killed one wrote after it.

use super::Figures;
use crate::files;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An event file.
pub struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// A new file in `folder`, for a training that has done `iteration` iterations.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn create(folder: &Path, iteration: u64) -> Result<Events, String> {
        files::make_folder(folder)?;
        // TensorBoard reads files in the order of their names; the process keeps two of one second apart.
        let path = folder.join(format!("events.out.tfevents.{:010}.{:06}.{iteration:010}", now() as u64, std::process::id()));
        let file = File::create(&path).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        let mut e = Events { path, file };
        e.event(0, 3, b"brain.Event:2")?;
        if iteration > 0 {
            // SessionLog.status = START.
            let mut start = vec![];
            varint_field(&mut start, 1, 1);
            e.event(iteration + 1, 7, &start)?;
        }
        Ok(e)
    }
    /// Writes figures as scalars.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn scalars(&mut self, step: u64, figures: &Figures) -> Result<(), String> {
        let mut summary = vec![];
        for (name, x) in figures {
            let mut value = vec![];
            bytes_field(&mut value, 1, name.as_bytes());
            value.push(2 << 3 | 5);
            value.extend((*x as f32).to_le_bytes());
            bytes_field(&mut summary, 1, &value);
        }
        self.event(step, 5, &summary)
    }
    /// Writes a grey picture, already a PNG file of `(width, height)`.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn picture(&mut self, step: u64, name: &str, png: &[u8], (width, height): (usize, usize)) -> Result<(), String> {
        let (mut image, mut value, mut summary) = (vec![], vec![], vec![]);
        varint_field(&mut image, 1, height as u64);
        varint_field(&mut image, 2, width as u64);
        varint_field(&mut image, 3, 1);
        bytes_field(&mut image, 4, png);
        bytes_field(&mut value, 1, name.as_bytes());
        bytes_field(&mut value, 4, &image);
        bytes_field(&mut summary, 1, &value);
        self.event(step, 5, &summary)
    }
    /// Forces the file to the disk.
    ///
    /// # Errors
    /// What the system says.
    pub fn sync(&mut self) -> Result<(), String> {
        self.file.sync_all().map_err(|e| format!("cannot write {}: {e}", self.path.display()))
    }
    fn event(&mut self, step: u64, field: u8, content: &[u8]) -> Result<(), String> {
        let mut event = vec![1 << 3 | 1];
        event.extend(now().to_le_bytes());
        varint_field(&mut event, 2, step);
        bytes_field(&mut event, field, content);
        self.file.write_all(&record(&event)).map_err(|e| format!("cannot write {}: {e}", self.path.display()))
    }
}

/// Seconds since 1970; the only clock in these files.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut r = length.to_vec();
    r.extend(masked(&length).to_le_bytes());
    r.extend(payload);
    r.extend(masked(payload).to_le_bytes());
    r
}

fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn varint(out: &mut Vec<u8>, mut x: u64) {
    while x >= 0x80 {
        out.push(x as u8 | 0x80);
        x >>= 7;
    }
    out.push(x as u8);
}

fn varint_field(out: &mut Vec<u8>, field: u8, x: u64) {
    out.push(field << 3);
    varint(out, x);
}

fn bytes_field(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The payloads of a file, each record's sums checked.
    fn payloads(bytes: &[u8]) -> Vec<Vec<u8>> {
        let (mut at, mut all) = (0, vec![]);
        while at < bytes.len() {
            let n = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            let payload = &bytes[at + 12..at + 12 + n];
            assert_eq!(bytes[at..at + 16 + n], record(payload));
            all.push(payload.to_vec());
            at += 16 + n;
        }
        all
    }

    #[test]
    fn records_are_framed_as_published() {
        // RFC 3720, B.4: 32 bytes of zeros have the CRC-32C 0x8a9136aa.
        assert_eq!(masked(&[0; 32]), 0x8a91_36aau32.rotate_right(15).wrapping_add(0xa282_ead8));
        assert_eq!(record(b"abc").len(), 19);
    }

    #[test]
    fn files_hold_version_start_scalars_and_pictures() {
        let dir = tempfile::tempdir().unwrap();
        let mut e = Events::create(dir.path(), 300).unwrap();
        e.scalars(301, &[("loss".to_string(), 0.5)].into()).unwrap();
        e.picture(301, "samples", b"PNG", (7, 5)).unwrap();
        e.sync().unwrap();
        let events = payloads(&std::fs::read(&e.path).unwrap());
        // Behind the wall time, 9 bytes.
        assert_eq!(events[0][9..], *b"\x10\x00\x1a\x0dbrain.Event:2");
        assert_eq!(events[1][9..], *b"\x10\xad\x02\x3a\x02\x08\x01");
        assert_eq!(events[2][9..], *b"\x10\xad\x02\x2a\x0d\x0a\x0b\x0a\x04loss\x15\x00\x00\x00\x3f");
        assert_eq!(events[3][9..], *b"\x10\xad\x02\x2a\x18\x0a\x16\x0a\x07samples\x22\x0b\x08\x05\x10\x07\x18\x01\x22\x03PNG");
    }
}
