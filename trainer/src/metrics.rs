//! Figures of a training over its iterations: one JSON object a line in `metrics.jsonl`, and event files for TensorBoard. What depends on the clock is under names that
//! end with `seconds` or `per_second`; everything else is the same in every run of the same configuration.

pub mod tensorboard;

use crate::files;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use tensorboard::Events;

/// Figures by name.
pub type Figures = BTreeMap<String, f64>;

/// Where figures go.
pub struct Recorder {
    path: PathBuf,
    lines: File,
    events: Events,
}

impl Recorder {
    /// Opens `metrics.jsonl` and an event file in `folder`; lines of iterations after `iteration` are removed, a resumed training writes them again.
    ///
    /// # Errors
    /// Files that cannot be read or written; a line before the last that is no JSON object with an iteration.
    pub fn open(folder: &Path, iteration: u64) -> Result<Recorder, String> {
        let path = folder.join("metrics.jsonl");
        let mut kept = String::new();
        if path.exists() {
            // The last line may have been cut by a kill.
            for (i, f) in read(&path)? {
                if i <= iteration {
                    kept.push_str(&line(i, &f));
                }
            }
        }
        if path.exists() || iteration == 0 {
            files::write(&path, kept.as_bytes())?;
        }
        let lines = OpenOptions::new().create(true).append(true).open(&path).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        Ok(Recorder { path, lines, events: Events::create(&folder.join("tensorboard"), iteration)? })
    }
    /// Writes the figures of an iteration.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&mut self, iteration: u64, figures: &Figures) -> Result<(), String> {
        self.lines.write_all(line(iteration, figures).as_bytes()).map_err(|e| format!("cannot write {}: {e}", self.path.display()))?;
        self.events.scalars(iteration, figures)
    }
    /// Writes a picture for TensorBoard.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn picture(&mut self, iteration: u64, name: &str, png: &[u8], size: (usize, usize)) -> Result<(), String> {
        self.events.picture(iteration, name, png, size)
    }
    /// Forces everything to the disk; a checkpoint that is written afterwards never knows of an iteration that the files do not.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn sync(&mut self) -> Result<(), String> {
        self.lines.sync_all().map_err(|e| format!("cannot write {}: {e}", self.path.display()))?;
        self.events.sync()
    }
}

/// One line. JSON has no infinities: they and NaN are written as text.
fn line(iteration: u64, figures: &Figures) -> String {
    let mut o = Map::new();
    o.insert("iteration".into(), iteration.into());
    for (k, x) in figures {
        o.insert(k.clone(), serde_json::Number::from_f64(*x).map_or_else(|| Value::String(x.to_string()), Value::Number));
    }
    Value::Object(o).to_string() + "\n"
}

/// The figures in a file, in order; a cut last line is left out.
///
/// # Errors
/// A file that cannot be read, or a line in its middle that is no object with an iteration and numbers.
pub fn read(path: &Path) -> Result<Vec<(u64, Figures)>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    let mut all = vec![];
    let lines: Vec<&str> = text.lines().collect();
    for (n, l) in lines.iter().enumerate() {
        match parse(l) {
            Some(f) => all.push(f),
            None if n + 1 == lines.len() => {}
            None => return Err(format!("{}: line {} is no JSON object with an `iteration` and numbers", path.display(), n + 1)),
        }
    }
    Ok(all)
}

fn parse(line: &str) -> Option<(u64, Figures)> {
    let Ok(Value::Object(o)) = serde_json::from_str(line) else { return None };
    let mut figures = Figures::new();
    for (k, v) in &o {
        if k != "iteration" {
            figures.insert(k.clone(), v.as_f64().or_else(|| v.as_str()?.parse().ok())?);
        }
    }
    Some((o.get("iteration")?.as_u64()?, figures))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(x: f64) -> Figures {
        [("loss".to_string(), x), ("bad".to_string(), f64::NAN)].into()
    }

    #[test]
    fn a_resumed_training_writes_its_lines_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut r = Recorder::open(dir.path(), 0).unwrap();
        (1..=5).for_each(|i| r.write(i, &figures(i as f64 / 3.0)).unwrap());
        r.sync().unwrap();
        drop(r);
        let path = dir.path().join("metrics.jsonl");
        let whole = std::fs::read_to_string(&path).unwrap();
        // Killed in the middle of a line.
        std::fs::write(&path, format!("{whole}{{\"iteration\":6,\"lo")).unwrap();
        let mut r = Recorder::open(dir.path(), 3).unwrap();
        (4..=5).for_each(|i| r.write(i, &figures(i as f64 / 3.0)).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
        let all = read(&path).unwrap();
        assert_eq!((all.len(), all[4].0, all[4].1["loss"]), (5, 5, 5.0 / 3.0));
        assert!(all[0].1["bad"].is_nan());
        // A fresh start begins anew.
        Recorder::open(dir.path(), 0).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
    }

    #[test]
    fn a_broken_line_in_the_middle_is_said() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("metrics.jsonl"), "{\"iteration\":1}\nnonsense\n{\"iteration\":2}\n").unwrap();
        assert!(Recorder::open(dir.path(), 9).err().unwrap().contains("line 2 is no JSON object"));
    }
}
