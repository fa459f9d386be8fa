//! Files that are whole or not there. What is written goes beside its place, is forced to the disk, and takes its place by a rename: a process that is killed, or a
//! disk that is full, leaves the file that was there before.

use ir::tensor::Tensor;
use ir::types::DType;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Tensors under their names.
pub type Tensors = BTreeMap<String, Tensor>;

/// Writes `bytes` to `path`, whole or not at all.
///
/// # Errors
/// The path, and what the system says; what was under the path before is still there.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let said = |e: std::io::Error| format!("cannot write {}: {e}", path.display());
    let part = beside(path);
    let done = put(&part, bytes).and_then(|()| fs::rename(&part, path)).map_err(said);
    if done.is_err() {
        // It may not exist, and then nothing is lost.
        let _ = fs::remove_file(&part);
    }
    done.and_then(|()| sync_folder(path.parent().unwrap_or(Path::new("."))).map_err(said))
}

/// Writes a folder of files, whole or not at all; a folder that was there is replaced.
///
/// # Errors
/// The path, and what the system says; a folder that was under the path is still there, unless only its removal failed.
pub fn write_folder(path: &Path, files: &[(&str, Vec<u8>)]) -> Result<(), String> {
    let part = beside(path);
    let fill = || -> std::io::Result<()> {
        if part.exists() {
            fs::remove_dir_all(&part)?;
        }
        fs::create_dir_all(&part)?;
        for (name, bytes) in files {
            put(&part.join(name), bytes)?;
        }
        sync_folder(&part)?;
        if path.exists() {
            // A folder cannot be replaced by a rename: the old one steps aside first, and goes when the new one stands.
            let old = path.with_file_name(format!(".old-{}", name(path)));
            if old.exists() {
                fs::remove_dir_all(&old)?;
            }
            fs::rename(path, &old)?;
            fs::rename(&part, path)?;
            fs::remove_dir_all(&old)?;
        } else {
            fs::rename(&part, path)?;
        }
        sync_folder(path.parent().unwrap_or(Path::new(".")))
    };
    fill().map_err(|e| {
        let _ = fs::remove_dir_all(&part);
        format!("cannot write {}: {e}", path.display())
    })
}

/// Makes a folder and those above it.
///
/// # Errors
/// The path, and what the system says.
pub fn make_folder(path: &Path) -> Result<(), String> {
    fs::create_dir_all(path).map_err(|e| format!("cannot make the folder {}: {e}", path.display()))
}

/// SHA-256 in hexadecimal.
pub fn checksum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Tensors as a safetensors file. The `format` that the metadata names is what libraries of the field ask for.
///
/// # Errors
/// None for valid tensors.
pub fn to_safetensors(tensors: &Tensors) -> Result<Vec<u8>, String> {
    let bytes: Vec<Vec<u8>> = tensors.values().map(Tensor::to_bytes).collect();
    let mut views = vec![];
    for ((name, t), b) in tensors.iter().zip(&bytes) {
        views.push((name.clone(), TensorView::new(element(t.dtype()), t.shape().to_vec(), b).map_err(|e| format!("tensor `{name}`: {e}"))?));
    }
    // One entry, so the order of the map does not show.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize(views, &Some(metadata)).map_err(|e| e.to_string())
}

/// The tensors of a safetensors file.
///
/// # Errors
/// Bytes that are no such file, or an element type that we do not have.
pub fn from_safetensors(bytes: &[u8]) -> Result<Tensors, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| format!("no safetensors file: {e}"))?;
    let one = |(name, v): (String, TensorView)| match Tensor::from_safetensors(&format!("{:?}", v.dtype()), v.shape(), v.data()) {
        Ok(t) => Ok((name, t)),
        Err(e) => Err(format!("tensor `{name}`: {e}")),
    };
    file.tensors().into_iter().map(one).collect()
}

/// Reads the tensors of a file.
///
/// # Errors
/// The path, and what is wrong.
pub fn read_safetensors(path: &Path) -> Result<Tensors, String> {
    let bytes = fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    from_safetensors(&bytes).map_err(|e| format!("{}: {e}", path.display()))
}

fn element(d: DType) -> Dtype {
    match d {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        DType::I32 => Dtype::I32,
        DType::Bool => Dtype::BOOL,
    }
}

fn name(path: &Path) -> String {
    path.file_name().map_or_else(|| "file".into(), |n| n.to_string_lossy().into_owned())
}

/// Where a file is until it is whole.
fn beside(path: &Path) -> PathBuf {
    path.with_file_name(format!(".part-{}", name(path)))
}

fn put(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut f = File::create(path)?;
    f.write_all(bytes)?;
    f.sync_all()
}

/// A rename is on the disk when its folder is.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_leaves_what_was() {
        let dir = tempfile::tempdir().unwrap();
        let p = dir.path().join("a.txt");
        write(&p, b"one").unwrap();
        // The place of the part is taken by a folder, so nothing can be written there.
        fs::create_dir(dir.path().join(".part-a.txt")).unwrap();
        assert!(write(&p, b"two").unwrap_err().starts_with("cannot write "));
        assert_eq!(fs::read(&p).unwrap(), b"one");
        fs::remove_dir(dir.path().join(".part-a.txt")).unwrap();
        write(&p, b"two").unwrap();
        assert_eq!(fs::read(&p).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn folders_are_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let p = dir.path().join("net");
        write_folder(&p, &[("a", b"1".to_vec()), ("b", b"2".to_vec())]).unwrap();
        write_folder(&p, &[("a", b"3".to_vec())]).unwrap();
        assert_eq!(fs::read(p.join("a")).unwrap(), b"3");
        assert!(!p.join("b").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_full_disk_is_an_error() {
        // Linux has a device that is always full.
        if Path::new("/dev/full").exists() {
            let e = File::options().write(true).open("/dev/full").and_then(|mut f| f.write_all(&[0; 10])).unwrap_err();
            assert_eq!(e.kind(), std::io::ErrorKind::StorageFull);
        }
    }

    #[test]
    fn tensors_come_back_in_every_type() {
        let t: Tensors = DType::ALL.into_iter().map(|d| (format!("t.{d}"), Tensor::from_f64(d, &[2, 1], &[0.0, 1.0]).unwrap())).collect();
        let bytes = to_safetensors(&t).unwrap();
        assert_eq!(from_safetensors(&bytes).unwrap(), t);
        assert_eq!(bytes, to_safetensors(&t).unwrap());
        assert!(from_safetensors(&bytes[..20]).is_err());
    }
}
