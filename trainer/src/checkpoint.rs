//! Checkpoints of a training: everything that its next iteration depends on, so that a run which was killed at any moment goes on bit for bit as if it had not been.
//!
//! ```text
//! checkpoints/0000000200/state.safetensors     the method's tensors, in the types in which it holds them
//! checkpoints/0000000200/state.json            {"sum": SHA-256 of body, "body": {iteration, configuration, tensors: SHA-256 of the other file, notes}}
//! ```
//!
//! A checkpoint is written beside its place, forced to the disk and renamed; the oldest beyond the last N go afterwards. A damaged one is named, and the one before it is used.

use crate::files::{self, Tensors, checksum};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The files of a checkpoint.
const TENSORS: &str = "state.safetensors";
const BODY: &str = "state.json";
/// Of the layout above.
const VERSION: u32 = 1;

/// What a checkpoint holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Iterations that were done.
    pub iteration: u64,
    /// Checksum of that part of the configuration on which numbers depend.
    pub configuration: String,
    /// The method's state.
    pub tensors: Tensors,
    /// What the loop keeps for itself.
    pub notes: Value,
}

#[derive(Serialize, Deserialize)]
struct Body {
    version: u32,
    iteration: u64,
    configuration: String,
    tensors: String,
    notes: Value,
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    sum: String,
    body: Body,
}

/// A folder of checkpoints, of which the last `keep` are kept.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    keep: usize,
}

/// The newest checkpoint that is whole, and what was said about newer ones.
#[derive(Debug, Default)]
pub struct Found {
    /// None if there is none.
    pub checkpoint: Option<Checkpoint>,
    /// A message for each damaged one.
    pub damaged: Vec<String>,
}

impl Store {
    /// The checkpoints in `folder`, which is made if it is not there. `keep` counts at least one.
    ///
    /// # Errors
    /// A folder that cannot be made.
    pub fn open(folder: &Path, keep: usize) -> Result<Store, String> {
        files::make_folder(folder)?;
        Ok(Store { folder: folder.to_path_buf(), keep: keep.max(1) })
    }
    /// Writes a checkpoint, then removes the oldest ones beyond those kept.
    ///
    /// # Errors
    /// What cannot be written, and why; older checkpoints are still there.
    pub fn save(&self, c: &Checkpoint) -> Result<PathBuf, String> {
        let tensors = files::to_safetensors(&c.tensors)?;
        let body = Body { version: VERSION, iteration: c.iteration, configuration: c.configuration.clone(), tensors: checksum(&tensors), notes: c.notes.clone() };
        let sealed = Sealed { sum: sum(&body)?, body };
        let text = serde_json::to_vec_pretty(&sealed).map_err(|e| e.to_string())?;
        let path = self.folder.join(format!("{:010}", c.iteration));
        files::write_folder(&path, &[(TENSORS, tensors), (BODY, text)]).map_err(|e| format!("checkpoint: {e}{}", self.before(c.iteration)))?;
        let all = self.list()?;
        for (_, old) in all.iter().take(all.len().saturating_sub(self.keep)) {
            std::fs::remove_dir_all(old).map_err(|e| format!("checkpoint: cannot remove {}: {e}", old.display()))?;
        }
        Ok(path)
    }
    /// The newest checkpoint that is whole.
    ///
    /// # Errors
    /// A folder that cannot be listed. Damage is no error, but said in [`Found::damaged`].
    pub fn latest(&self) -> Result<Found, String> {
        let mut found = Found::default();
        for (_, path) in self.list()?.iter().rev() {
            match load(path) {
                Ok(c) => {
                    found.checkpoint = Some(c);
                    break;
                }
                Err(why) => found.damaged.push(format!("checkpoint {} is damaged ({why})", path.display())),
            }
        }
        Ok(found)
    }
    /// Iterations and folders, oldest first. Others, such as parts of a write that was interrupted, are not checkpoints.
    ///
    /// # Errors
    /// A folder that cannot be listed.
    pub fn list(&self) -> Result<Vec<(u64, PathBuf)>, String> {
        let entries = std::fs::read_dir(&self.folder).map_err(|e| format!("checkpoint: cannot list {}: {e}", self.folder.display()))?;
        let mut all: Vec<(u64, PathBuf)> = entries.flatten().filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, e.path()))).collect();
        all.sort();
        Ok(all)
    }
    fn before(&self, iteration: u64) -> String {
        match self.list().ok().and_then(|l| l.into_iter().rfind(|(i, _)| *i != iteration)) {
            Some((i, _)) => format!("; the checkpoint of iteration {i} is intact, --resume goes on from it"),
            None => String::new(),
        }
    }
}

fn sum(body: &Body) -> Result<String, String> {
    serde_json::to_vec(body).map(|b| checksum(&b)).map_err(|e| e.to_string())
}

/// Reads one checkpoint.
///
/// # Errors
/// What is missing or does not agree with its checksum.
pub fn load(path: &Path) -> Result<Checkpoint, String> {
    let read = |name: &str| std::fs::read(path.join(name)).map_err(|e| format!("{name}: {e}"));
    let sealed: Sealed = serde_json::from_slice(&read(BODY)?).map_err(|e| format!("{BODY}: {e}"))?;
    if sealed.body.version != VERSION {
        return Err(format!("{BODY}: version {}, but this program reads {VERSION}", sealed.body.version));
    }
    if sum(&sealed.body)? != sealed.sum {
        return Err(format!("{BODY}: its checksum is wrong"));
    }
    let bytes = read(TENSORS)?;
    if checksum(&bytes) != sealed.body.tensors {
        return Err(format!("{TENSORS}: its checksum is wrong"));
    }
    let Body { iteration, configuration, notes, .. } = sealed.body;
    Ok(Checkpoint { iteration, configuration, tensors: files::from_safetensors(&bytes).map_err(|e| format!("{TENSORS}: {e}"))?, notes })
}

/// Weights as a folder that `pushforward net` and diffusers load: `config.json` and `diffusion_pytorch_model.safetensors`.
///
/// # Errors
/// What cannot be written; a folder that was there is still there.
pub fn export(folder: &Path, config: &Value, weights: &Tensors) -> Result<(), String> {
    let mut text = serde_json::to_vec_pretty(config).map_err(|e| e.to_string())?;
    text.push(b'\n');
    if let Some(above) = folder.parent().filter(|p| !p.as_os_str().is_empty()) {
        files::make_folder(above)?;
    }
    files::write_folder(folder, &[("config.json", text), ("diffusion_pytorch_model.safetensors", files::to_safetensors(weights)?)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::tensor::Tensor;

    fn at(iteration: u64) -> Checkpoint {
        let tensors = [("w".to_string(), Tensor::from_f64(ir::types::DType::F32, &[2], &[iteration as f64, -0.5]).unwrap())].into();
        Checkpoint { iteration, configuration: "c".into(), tensors, notes: serde_json::json!({"loss": 0.1}) }
    }

    #[test]
    fn the_last_ones_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let s = Store::open(&dir.path().join("checkpoints"), 2).unwrap();
        assert!(s.latest().unwrap().checkpoint.is_none());
        for i in [100, 200, 300] {
            s.save(&at(i)).unwrap();
        }
        assert_eq!(s.list().unwrap().iter().map(|l| l.0).collect::<Vec<_>>(), [200, 300]);
        let found = s.latest().unwrap();
        assert_eq!((found.checkpoint, found.damaged.len()), (Some(at(300)), 0));
        // The same iteration again replaces.
        s.save(&at(300)).unwrap();
        assert_eq!(s.list().unwrap().len(), 2);
    }

    #[test]
    fn a_damaged_one_is_named_and_the_one_before_is_used() {
        let damages: [(&str, fn(&Path), &str); 5] = [
            ("flipped", |p| flip(&p.join(TENSORS)), "state.safetensors: its checksum is wrong"),
            ("cut", |p| std::fs::write(p.join(TENSORS), &std::fs::read(p.join(TENSORS)).unwrap()[..30]).unwrap(), "state.safetensors: its checksum is wrong"),
            ("gone", |p| std::fs::remove_file(p.join(TENSORS)).unwrap(), "state.safetensors: No such file"),
            ("edited", |p| edit(&p.join(BODY), "300", "301"), "state.json: its checksum is wrong"),
            ("no JSON", |p| std::fs::write(p.join(BODY), "{").unwrap(), "state.json: EOF"),
        ];
        for (what, damage, said) in damages {
            let dir = tempfile::tempdir().unwrap();
            let s = Store::open(dir.path(), 3).unwrap();
            [100, 200, 300].iter().for_each(|i| drop(s.save(&at(*i)).unwrap()));
            damage(&dir.path().join("0000000300"));
            let found = s.latest().unwrap();
            assert_eq!(found.checkpoint, Some(at(200)), "{what}");
            assert!(found.damaged.len() == 1 && found.damaged[0].contains("0000000300") && found.damaged[0].contains(said), "{what}: {:?}", found.damaged);
        }
    }

    fn flip(p: &Path) {
        let mut b = std::fs::read(p).unwrap();
        *b.last_mut().unwrap() ^= 1;
        std::fs::write(p, b).unwrap();
    }
    fn edit(p: &Path, from: &str, to: &str) {
        let text = std::fs::read_to_string(p).unwrap();
        assert!(text.contains(from));
        std::fs::write(p, text.replacen(from, to, 1)).unwrap();
    }

    #[test]
    fn an_interrupted_write_is_no_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let s = Store::open(dir.path(), 3).unwrap();
        s.save(&at(100)).unwrap();
        // What a kill in the middle leaves.
        std::fs::create_dir(dir.path().join(".part-0000000200")).unwrap();
        std::fs::write(dir.path().join(".part-0000000200/state.safetensors"), [1, 2, 3]).unwrap();
        let found = s.latest().unwrap();
        assert_eq!((found.checkpoint, found.damaged.len()), (Some(at(100)), 0));
        s.save(&at(200)).unwrap();
        assert_eq!(s.latest().unwrap().checkpoint, Some(at(200)));
    }

    #[test]
    fn what_cannot_be_written_says_where_to_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let s = Store::open(dir.path(), 3).unwrap();
        s.save(&at(100)).unwrap();
        // A file stands where the part would go, and a folder within: it can be neither removed as a folder nor made.
        std::fs::write(dir.path().join(".part-0000000200"), "").unwrap();
        let e = s.save(&at(200)).unwrap_err();
        assert!(e.starts_with("checkpoint: cannot write ") && e.ends_with("; the checkpoint of iteration 100 is intact, --resume goes on from it"), "{e}");
        assert_eq!(s.latest().unwrap().checkpoint, Some(at(100)));
    }

    #[test]
    fn weights_are_exported_with_their_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let p = dir.path().join("deep/net");
        export(&p, &serde_json::json!({"_class_name": "DiT"}), &at(1).tensors).unwrap();
        assert_eq!(files::read_safetensors(&p.join("diffusion_pytorch_model.safetensors")).unwrap(), at(1).tensors);
        assert!(std::fs::read_to_string(p.join("config.json")).unwrap().contains("\"_class_name\": \"DiT\""));
    }
}
