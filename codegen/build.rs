//! A hash of this crate's sources, for keys of cached code: what another compiler made is not ours.

use std::path::{Path, PathBuf};

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for e in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if e.path().is_dir() { sources(&e.path(), found) } else { found.push(e.path()) }
    }
}

fn main() {
    println!("cargo:rerun-if-changed=src");
    let mut files = vec![];
    sources(Path::new("src"), &mut files);
    files.sort();
    // FNV-1a: any change changes it, and nothing more is asked.
    let hash = files.iter().filter_map(|f| std::fs::read(f).ok()).flatten().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    println!("cargo:rustc-env=PUSHFORWARD_CODEGEN={hash:016x}");
}
