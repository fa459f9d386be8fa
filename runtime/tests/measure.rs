//! `pushforward-measure` on a machine without a GPU: everything up to the first call of the driver, and what it says then.

use ir::dim::Bindings;
use runtime::pack::{Case, Pack};
use std::path::Path;
use std::process::Command;

/// Its exit code, and what it says.
fn measure(args: &[&str]) -> (i32, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_pushforward-measure")).args(args).output().expect("it starts");
    (out.status.code().unwrap_or(-1), String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
}

fn pack(folder: &Path) {
    let case = Case { name: "none".into(), dims: Bindings::new(), kernels: vec![], inputs: vec![], expected: vec![], flops: None, bytes: 0.0 };
    let pack = Pack { toolkit: "test".into(), target: "sm_90a".into(), cases: vec![case], ..Pack::default() };
    std::fs::write(folder.join("manifest.json"), serde_json::to_vec(&pack).expect("a manifest")).expect("written");
}

#[test]
fn what_is_wrong_is_said_before_the_driver_is_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path().to_str().expect("a name");
    let (code, said) = measure(&[]);
    assert!(code == 2 && said.contains("usage: pushforward-measure PACK"), "{code}: {said}");
    let (code, said) = measure(&[at]);
    assert!(code == 1 && said.contains("manifest.json"), "{code}: {said}");
    std::fs::write(folder.path().join("manifest.json"), "{").expect("written");
    let (code, said) = measure(&[at]);
    assert!(code == 1 && said.contains("manifest.json: EOF"), "{code}: {said}");
    let (code, said) = measure(&[at, "--seconds", "soon"]);
    assert!(code == 1 && said.contains("--seconds: `soon` is no number above 0"), "{code}: {said}");
}

#[test]
fn without_a_driver_that_is_what_it_says() {
    if runtime::cuda::devices().is_ok_and(|d| !d.devices.is_empty()) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    pack(folder.path());
    let out = folder.path().join("results.json");
    let (code, said) = measure(&[folder.path().to_str().expect("a name"), "--out", out.to_str().expect("a name"), "--seconds", "400", "--resume"]);
    assert!(code == 1 && (said.contains("no driver: libcuda is not installed") || said.contains("the driver does not start") || said.contains("no CUDA device")), "{code}: {said}");
    assert!(!out.exists(), "nothing was measured");
}
