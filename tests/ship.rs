//! What `compile --target` ships: the manifest and the header say how a kernel is launched, and the example in C launches it so. Without a toolkit the example is
//! compiled against declarations of our own and run on a driver that only says what it was asked for (`tests/support/cuda`); with `CUDA_HOME`, it is also compiled
//! against the toolkit's header.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn pushforward(args: &[&str]) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_pushforward")).current_dir(root()).args(args).output().unwrap();
    text(out)
}

fn text(out: Output) -> String {
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn compile(to: &Path, target: &str) -> Value {
    let to_text = to.display().to_string();
    pushforward(&["compile", "examples/attention.pf", "--jvp", "q,k,v", "--dim", "D=64", "--dtype", "bf16", "--target", target, "-o", &to_text]);
    serde_json::from_slice(&std::fs::read(to.join("manifest.json")).unwrap()).unwrap()
}

#[test]
fn the_example_launches_what_the_manifest_says() {
    ["sm_80", "sm_90a"].into_iter().for_each(launches);
}

fn launches(target: &str) {
    let d = tempfile::tempdir().unwrap();
    let out = d.path().join("out");
    let manifest = compile(&out, target);
    let k = &manifest["kernels"][0];
    let names: Vec<&str> = k["parameters"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap_or("")).collect();
    assert_eq!(names[..12], ["q", "k", "v", "q.t", "k.t", "v.t", "o", "o.t", "B", "H", "I", "J"]);
    assert_eq!((&k["parameters"][0]["dtype"], &k["parameters"][0]["shape"][3], &k["parameters"][0]["align"]), (&Value::from("bf16"), &Value::from("64"), &Value::from(16)));
    let stand_in = root().join("tests/support/cuda");
    let program = d.path().join("attention");
    let built = Command::new("cc").args(["-std=c11", "-Wall", "-Werror", "-O1"]).arg(format!("-I{}", out.display())).arg(format!("-I{}", stand_in.display())).arg(root().join("examples/c/attention.c")).arg(stand_in.join("driver.c")).arg("-o").arg(&program).output().unwrap();
    text(built);
    let said = text(Command::new(&program).arg(&out).output().unwrap());
    // Two batch entries, four heads, a thousand rows in tiles.
    let axes = k["grid"]["axes"].as_array().unwrap();
    let blocks: u64 = axes.iter().zip([2u64, 4, 1000]).map(|(a, n)| n.div_ceil(a["tile"].as_u64().unwrap())).product();
    let want = [
        format!("image {}", if k["cubin"].is_string() { "cubin" } else { "ptx" }),
        format!("symbol {}", k["symbol"].as_str().unwrap()),
        format!("launch {blocks} 1 1 of {} 1 1 with {}", k["block"][0], k["shared_bytes"]),
        "dims 2 4 1000 1000".into(),
        "buffers 8".into(),
    ];
    let (maps, said): (Vec<&str>, Vec<&str>) = said.lines().partition(|l| l.starts_with("map "));
    assert_eq!(said[..5], want);
    // A map per operand in shared memory, of the lengths that were given.
    let mapped = k["parameters"].as_array().unwrap().iter().filter(|p| p["kind"] == "tensor map").count();
    assert_eq!(maps.len(), mapped);
    assert!(maps.iter().all(|m| m.starts_with("map type 9 rank 4 of 64, 1000 rows, tile 64 x ") && m.ends_with("swizzle 3")), "{maps:?}");
    if let Some(home) = std::env::var_os("CUDA_HOME") {
        let include = Path::new(&home).join("include");
        let built = Command::new("cc").args(["-std=c11", "-Wall", "-Werror", "-c"]).arg(format!("-I{}", out.display())).arg(format!("-I{}", include.display())).arg(root().join("examples/c/attention.c")).arg("-o").arg(d.path().join("attention.o")).output().unwrap();
        text(built);
    }
}

/// Blocks that stay are no more than the device's multiprocessors, which the header asks for.
#[test]
fn blocks_that_stay_are_as_many_as_multiprocessors() {
    let d = tempfile::tempdir().unwrap();
    let out = d.path().join("out");
    pushforward(&["compile", "examples/attention.pf", "--dim", "D=64", "--dtype", "bf16", "--target", "sm_90a", "-o", &out.display().to_string()]);
    let manifest: Value = serde_json::from_slice(&std::fs::read(out.join("manifest.json")).unwrap()).unwrap();
    let rule = manifest["kernels"][0]["grid"]["rule"].as_str().unwrap();
    assert!(rule.contains("at most 1 for each multiprocessor") && !rule.contains("must not overlap"), "{rule}");
    let (stand_in, program) = (root().join("tests/support/cuda"), d.path().join("forward"));
    let sources = ["forward.c", "driver.c"].map(|f| stand_in.join(f));
    text(Command::new("cc").args(["-std=c11", "-Wall", "-Werror", "-O1", "-DBUFFERS=4"]).arg(format!("-I{}", out.display())).arg(format!("-I{}", stand_in.display())).args(sources).arg("-o").arg(&program).output().unwrap());
    let said = text(Command::new(&program).output().unwrap());
    assert!(said.contains("\nlaunch 6 1 1 of ") && said.contains("\ndims 2 4 1000 1000\n"), "{said}");
}

/// Same input, same bytes: in two processes, for every architecture.
#[test]
fn what_is_shipped_is_the_same_byte_for_byte() {
    let d = tempfile::tempdir().unwrap();
    for target in ["sm_80", "sm_90a", "sm_100a"] {
        let (one, two) = (d.path().join(format!("{target}-1")), d.path().join(format!("{target}-2")));
        let manifest = compile(&one, target);
        compile(&two, target);
        let mut names: Vec<_> = std::fs::read_dir(&one).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert!(names.iter().any(|n| n == "attention_jvp.h"), "{names:?}");
        for n in names {
            assert_eq!(std::fs::read(one.join(&n)).unwrap(), std::fs::read(two.join(&n)).unwrap(), "{target}: {n:?}");
        }
        let ptx = std::fs::read(one.join("attention_jvp_0.ptx")).unwrap();
        let sum = Command::new("sha256sum").arg(one.join("attention_jvp_0.ptx")).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&sum.stdout).split(' ').next(), manifest["kernels"][0]["ptx_sha256"].as_str());
        assert!(!ptx.is_empty());
    }
}

/// The roofline has the loop's products: 12·N²·d flops a pair of tiles, 192 or more `mma` a warp.
#[test]
fn explain_counts_the_main_loop() {
    let said = pushforward(&["explain", "examples/attention.pf", "--jvp", "q,k,v", "--dtype", "bf16", "--dim", "D=64", "--target", "sm_90a", "--json"]);
    let v: Value = serde_json::from_str(&said).unwrap();
    let gpu = &v["kernels"][0]["gpu"];
    if gpu["registers"].is_null() {
        eprintln!("SKIPPED: no ptxas (`./dev ptxas` installs it): no machine code was counted");
        return;
    }
    assert_eq!(gpu["spill_bytes"], serde_json::json!([0, 0]));
    let n = |k: &str| gpu["counts"][k].as_u64().unwrap();
    let (rows, stream) = (gpu["schedule"]["rows"].as_u64().unwrap(), gpu["schedule"]["stream"].as_u64().unwrap());
    if n("hgmma") == 0 {
        assert_eq!(n("hmma") * 4096 * (gpu["threads"].as_u64().unwrap() / 32), 12 * rows * stream * 64);
    }
    assert!(n("all") > n("hmma") + n("mufu") && gpu["binds"].is_string());
}
