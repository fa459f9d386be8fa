//! Compiled artifacts on disk, by content: the key is a hash of the block program, the target and the toolkit's version, so an
//! entry never has to be invalidated, only found damaged.
//!
//! An entry is `magic, SHA-256 of the rest, JSON`. It is written beside its place and renamed, so a reader sees all of it or nothing.

use ir::tile::Program;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"pfcache1";

/// A folder of artifacts.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: Option<PathBuf>,
}

/// Where an artifact came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// The cache.
    Hit,
    /// The compiler.
    Built,
    /// The compiler, because the entry was bad: why.
    Rebuilt(String),
    /// The compiler, and it could not be kept: why.
    NotKept(String),
}

/// The key of a program for a target.
pub fn key(program: &Program, target: &str) -> String {
    let mut h = Sha256::new();
    h.update(env!("CARGO_PKG_VERSION"));
    h.update([0]);
    h.update(target);
    h.update([0]);
    h.update(serde_json::to_vec(program).unwrap_or_default());
    h.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

impl Cache {
    /// The folder that `PUSHFORWARD_CACHE` names, else the user's cache folder; none if neither is known.
    pub fn from_env() -> Cache {
        let var = |n: &str| std::env::var_os(n).filter(|v| !v.is_empty()).map(PathBuf::from);
        let user = || var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|h| h.join(".cache"))).map(|c| c.join("pushforward"));
        Cache { folder: var("PUSHFORWARD_CACHE").or_else(user) }
    }
    /// A given folder, or none: then everything is built.
    pub fn new(folder: Option<PathBuf>) -> Cache {
        Cache { folder }
    }
    /// The folder, if there is one.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }
    /// The artifact under `key`, from the cache or else from `build`.
    ///
    /// # Errors
    /// Those of `build`; the cache itself never fails, it says so in [`Source`].
    pub fn get_or_build<T: Serialize + DeserializeOwned, E>(&self, key: &str, build: impl FnOnce() -> Result<T, E>) -> Result<(T, Source), E> {
        let Some(folder) = &self.folder else { return Ok((build()?, Source::NotKept("no cache folder".into()))) };
        let path = folder.join(key);
        let found = match std::fs::read(&path) {
            Ok(bytes) => Some(decode(&bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => Some(Err(format!("it cannot be read: {e}"))),
        };
        let bad = match found {
            Some(Ok(a)) => return Ok((a, Source::Hit)),
            Some(Err(why)) => Some(format!("cache entry {}: {why}", path.display())),
            None => None,
        };
        let artifact = build()?;
        let kept = keep(folder, &path, &artifact).map_err(|e| format!("cannot write {}: {e}", path.display()));
        Ok((artifact, match (kept, bad) {
            (Err(why), _) => Source::NotKept(why),
            (Ok(()), Some(why)) => Source::Rebuilt(why),
            (Ok(()), None) => Source::Built,
        }))
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("it is not one of ours, or of another version")?;
    if rest.len() < 32 {
        return Err("it is cut short".into());
    }
    let (sum, body) = rest.split_at(32);
    if Sha256::digest(body).as_slice() != sum {
        return Err("its checksum is wrong".into());
    }
    serde_json::from_slice(body).map_err(|e| format!("it does not parse: {e}"))
}

fn keep<T: Serialize>(folder: &Path, path: &Path, artifact: &T) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let body = serde_json::to_vec(artifact)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&Sha256::digest(&body));
    bytes.extend(body);
    let part = path.with_extension(format!("part{}", std::process::id()));
    std::fs::write(&part, bytes)?;
    std::fs::rename(&part, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::artifact::{Artifact, Signature};

    fn artifact() -> Artifact {
        let signature = Signature { symbol: "k".into(), buffers: vec![], dims: vec![], grid: vec![], scratch_fixed: 0, scratch_panel: 0, max_panels: 1 };
        Artifact { target: "cpu:test".into(), code: vec![1, 2, 3], signature }
    }
    fn get(c: &Cache) -> Source {
        c.get_or_build("k", || Ok::<_, ()>(artifact())).unwrap().1
    }

    #[test]
    fn damage_is_said_and_repaired() {
        let dir = tempfile::tempdir().unwrap();
        let c = Cache::new(Some(dir.path().join("sub")));
        assert_eq!(get(&c), Source::Built);
        assert_eq!(get(&c), Source::Hit);
        let path = dir.path().join("sub/k");
        let good = std::fs::read(&path).unwrap();
        let mut flipped = good.clone();
        flipped[60] ^= 1;
        for (bytes, why) in [(flipped, "checksum is wrong"), (good[..good.len() - 1].to_vec(), "checksum"), (good[..20].to_vec(), "cut short"), (b"else".to_vec(), "not one of ours")] {
            std::fs::write(&path, bytes).unwrap();
            assert!(matches!(get(&c), Source::Rebuilt(w) if w.contains(why)), "{why}");
            assert_eq!(get(&c), Source::Hit);
        }
    }

    #[test]
    fn without_a_folder_everything_is_built() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(get(&Cache::new(Some(file.path().to_path_buf()))), Source::NotKept(_)));
        assert!(matches!(get(&Cache::new(None)), Source::NotKept(_)));
    }
}
