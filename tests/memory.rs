//! Memory grows with the sequence, not with its square: measured on the binary, in a process of its own.

use serde_json::Value;
use std::process::Command;

#[test]
fn tangents_over_16384_keys_need_no_scores_in_memory() {
    const N: usize = 16384;
    let sizes = format!("B=1,H=1,I={N},J={N},D=64");
    let out = Command::new(env!("CARGO_BIN_EXE_pushforward"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["bench", "examples/attention.pf", "--jvp", "q,k,v", "--dim", &sizes, "--runs", "1", "--threads", "2", "--json"])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let figures: Value = serde_json::from_slice(&out.stdout).unwrap();
    let extra = figures["peak_extra_bytes"].as_u64().expect("this system does not say how much memory a process needs");
    println!("{:.1} MiB beyond inputs and outputs; the scores would be {} MiB", extra as f64 / f64::from(1 << 20), N * N * 4 >> 20);
    assert!(extra < 64 << 20, "{extra} bytes beyond inputs and outputs");
    // Nothing else that grows with N was stored either: one kernel, and its inputs and outputs are all the traffic.
    assert_eq!(figures["kernels"], 1);
    assert_eq!(figures["bytes"].as_f64(), Some((8 * N * 64 * 4) as f64));
}
