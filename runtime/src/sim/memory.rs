//! Memory outside of a block: buffers and module variables, by allocation. An address carries its allocation in the high bits, so that no arithmetic on one
//! pointer reaches another buffer by accident.

use super::fault::{FaultKind, Problem, problem};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Generic addresses of shared memory are this plus the offset; then the local and the parameter window.
pub(super) const SHARED_WINDOW: u64 = 0x00fe_0000_0000_0000;
pub(super) const LOCAL_WINDOW: u64 = 0x00fd_0000_0000_0000;
pub(super) const PARAM_WINDOW: u64 = 0x00fc_0000_0000_0000;
/// The bit of a shared address above which a block's number in its cluster stands (as on an H200, seen).
pub(super) const RANK: u32 = 24;
/// Where a window of 32 bits ends.
pub(super) const WINDOW: u64 = 1 << 32;

const ALLOCATION: u32 = 40;
/// Room below an allocation, so that a small negative offset is reported as this buffer's.
const LEAD: u64 = 1 << 36;

/// The address of allocation `i`: aligned to 64 GiB.
pub(super) fn allocation_base(i: usize) -> u64 {
    ((i as u64 + 1) << ALLOCATION) + LEAD
}

/// Who wrote a byte last: nobody, the host, a block (plus 2), or an atomic.
const NOBODY: u32 = 0;
const HOST: u32 = 1;
const ATOMIC: u32 = u32::MAX;

/// A buffer.
pub(super) struct Allocation {
    pub name: String,
    pub bytes: u64,
    words: Vec<AtomicU32>,
    /// Per byte; empty for what is only read.
    marks: Vec<AtomicU32>,
}

impl Allocation {
    /// Contents, or nothing yet; `writable` if the kernel may store.
    pub(super) fn new(name: &str, bytes: u64, contents: Option<&[u8]>, writable: bool) -> Allocation {
        let words = (0..bytes.div_ceil(4) as usize).map(|w| {
            let mut b = [0xa5u8; 4];
            if let Some(c) = contents {
                let part = &c[4 * w..c.len().min(4 * w + 4)];
                b[..part.len()].copy_from_slice(part);
            }
            AtomicU32::new(u32::from_le_bytes(b))
        });
        let mark = if contents.is_some() { HOST } else { NOBODY };
        let marks = if writable { (0..bytes).map(|_| AtomicU32::new(mark)).collect() } else { vec![] };
        Allocation { name: name.to_string(), bytes, words: words.collect(), marks }
    }
    /// The bytes now.
    pub(super) fn contents(&self, out: &mut [u8]) {
        for (o, w) in out.chunks_mut(4).zip(&self.words) {
            o.copy_from_slice(&w.load(Relaxed).to_le_bytes()[..o.len()]);
        }
    }
    /// Bytes that nobody has written.
    pub(super) fn unwritten(&self) -> u64 {
        self.marks.iter().filter(|m| m.load(Relaxed) == NOBODY).count() as u64
    }
    pub(super) fn byte(&self, at: usize) -> u8 {
        (self.words[at / 4].load(Relaxed) >> (8 * (at % 4))) as u8
    }
}

/// All allocations of a launch: module variables first, then buffers.
pub(super) struct Global {
    pub allocations: Vec<Allocation>,
    /// Whether bytes that one block wrote and another touches are an error.
    pub check_blocks: bool,
}

impl Global {
    /// The allocation and offset of `len` bytes at `address`.
    pub(super) fn find(&self, address: u64, len: u64) -> Result<(usize, usize), Problem> {
        let i = (address >> ALLOCATION).wrapping_sub(1) as usize;
        let Some(a) = self.allocations.get(i) else {
            return problem(FaultKind::OutOfBounds, format!("address {address:#x} is in no buffer"));
        };
        let offset = (address & ((1 << ALLOCATION) - 1)) as i64 - LEAD as i64;
        if offset < 0 || offset as u64 + len > a.bytes {
            return problem(FaultKind::OutOfBounds, format!("bytes {offset}..{} of `{}`, which has {} bytes", offset + len as i64, a.name, a.bytes));
        }
        Ok((i, offset as usize))
    }
    /// `name+offset`, for people.
    pub(super) fn describe(&self, address: u64) -> String {
        let i = (address >> ALLOCATION).wrapping_sub(1) as usize;
        match self.allocations.get(i) {
            Some(a) => {
                let offset = (address & ((1 << ALLOCATION) - 1)) as i64 - LEAD as i64;
                format!("{}{}{:#x}", a.name, if offset < 0 { "-" } else { "+" }, offset.unsigned_abs())
            }
            None => format!("{address:#x}"),
        }
    }

    fn check_read(&self, a: &Allocation, offset: usize, len: usize, block: u32) -> Result<(), Problem> {
        if a.marks.is_empty() {
            return Ok(());
        }
        for (k, m) in a.marks[offset..offset + len].iter().enumerate() {
            let m = m.load(Relaxed);
            if m == NOBODY {
                return problem(FaultKind::Uninitialised, format!("byte {} of `{}` was never written", offset + k, a.name));
            }
            if self.check_blocks && m != HOST && m != ATOMIC && m != block + 2 {
                return problem(FaultKind::Race, format!("byte {} of `{}` was written by another block ({} in order) of the same launch", offset + k, a.name, m - 2));
            }
        }
        Ok(())
    }

    /// Reads aligned bytes.
    pub(super) fn read(&self, address: u64, out: &mut [u8], block: u32) -> Result<(), Problem> {
        let (i, offset) = self.find(address, out.len() as u64)?;
        let a = &self.allocations[i];
        self.check_read(a, offset, out.len(), block)?;
        if offset % 4 == 0 && out.len() % 4 == 0 {
            for (o, w) in out.chunks_exact_mut(4).zip(&a.words[offset / 4..]) {
                o.copy_from_slice(&w.load(Relaxed).to_le_bytes());
            }
        } else {
            for (k, o) in out.iter_mut().enumerate() {
                *o = a.byte(offset + k);
            }
        }
        Ok(())
    }

    /// Writes aligned bytes.
    pub(super) fn write(&self, address: u64, data: &[u8], block: u32) -> Result<(), Problem> {
        let (i, offset) = self.find(address, data.len() as u64)?;
        let a = &self.allocations[i];
        if a.marks.is_empty() {
            return problem(FaultKind::ReadOnly, format!("`{}` is an input", a.name));
        }
        for (k, m) in a.marks[offset..offset + data.len()].iter().enumerate() {
            let old = m.swap(block + 2, Relaxed);
            if self.check_blocks && old != NOBODY && old != HOST && old != block + 2 {
                return problem(FaultKind::Race, format!("byte {} of `{}` was written by another block of the same launch too", offset + k, a.name));
            }
        }
        let mut k = 0;
        while k < data.len() {
            let at = offset + k;
            let w = &a.words[at / 4];
            if at % 4 == 0 && data.len() - k >= 4 {
                w.store(u32::from_le_bytes([data[k], data[k + 1], data[k + 2], data[k + 3]]), Relaxed);
                k += 4;
            } else {
                let shift = 8 * (at % 4);
                let (mask, bits) = (0xffu32 << shift, (data[k] as u32) << shift);
                // Two blocks may write different bytes of a word.
                let _ = w.fetch_update(Relaxed, Relaxed, |old| Some((old & !mask) | bits));
                k += 1;
            }
        }
        Ok(())
    }

    /// Reads, combines and writes `len` bytes; gives what was there. Blocks run one after another where a kernel has these.
    pub(super) fn update(&self, address: u64, len: usize, block: u32, f: impl FnOnce(u64) -> u64) -> Result<u64, Problem> {
        let (i, offset) = self.find(address, len as u64)?;
        let a = &self.allocations[i];
        if a.marks.is_empty() {
            return problem(FaultKind::ReadOnly, format!("`{}` is an input", a.name));
        }
        let mut bytes = [0; 8];
        {
            for m in &a.marks[offset..offset + len] {
                match m.load(Relaxed) {
                    NOBODY => return problem(FaultKind::Uninitialised, format!("an atomic on bytes of `{}` that were never written", a.name)),
                    HOST | ATOMIC => {}
                    b if b == block + 2 => {}
                    _ if self.check_blocks => return problem(FaultKind::Race, format!("an atomic on bytes of `{}` that another block wrote without one", a.name)),
                    _ => {}
                }
            }
        }
        for (k, b) in bytes[..len].iter_mut().enumerate() {
            *b = a.byte(offset + k);
        }
        let old = u64::from_le_bytes(bytes);
        let new = f(old).to_le_bytes();
        for (k, m) in a.marks[offset..offset + len].iter().enumerate() {
            let at = offset + k;
            let shift = 8 * (at % 4);
            let _ = a.words[at / 4].fetch_update(Relaxed, Relaxed, |w| Some((w & !(0xff << shift)) | (new[k] as u32) << shift));
            m.store(ATOMIC, Relaxed);
        }
        Ok(old)
    }
}
