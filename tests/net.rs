//! `pushforward net` as its users call it: files in, files out, messages, exit codes, on the binary itself.

use ir::tensor::{Tensor, relative_error};
use ir::types::DType;
use pushforward::input::{save, tensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

fn models() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models")
}

/// Exit code, stdout, stderr.
fn net(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_pushforward")).arg("net").arg(dir).args(args).output().unwrap();
    (out.status.code().unwrap_or(-1), String::from_utf8_lossy(&out.stdout).into(), String::from_utf8_lossy(&out.stderr).into())
}

fn text(p: &Path) -> &str {
    p.to_str().unwrap()
}

fn close(got: &BTreeMap<String, Tensor>, name: &str, want: &Tensor, bound: f64) {
    let e = relative_error(&got[name].convert(DType::F64), want);
    assert!(e < bound, "{name}: {e:e}");
}

#[test]
fn fixtures_run_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.safetensors");
    for (folder, config, case, more) in [("wan_a", None, "wan_a/case_01", &[][..]), ("wan_a/original_rcm", Some("wan_a/config.json"), "wan_a/case_01", &[]), ("cosmos_v2w/sharded", None, "cosmos_v2w/case_00", &["--fps", "16"])] {
        let input = models().join(format!("{case}.safetensors"));
        let config = config.map(|c| models().join(c));
        let want = tensors(&input).unwrap();
        for (on, bound) in [("reference", 1e-9), ("cpu", 5e-5)] {
            let mut args = vec!["--jvp", "hidden_states,timestep", "--inputs", text(&input), "--outputs", text(&out), "--on", on, "--json"];
            args.extend(more);
            if let Some(c) = &config {
                args.extend(["--config", text(c)]);
            }
            let (code, stdout, stderr) = net(&models().join(folder), &args);
            assert_eq!(code, 0, "{stderr}");
            let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
            assert_eq!(json["dtype"], if on == "cpu" { "f32" } else { "f64" });
            let got = tensors(&out).unwrap();
            close(&got, "out", &want["out"], bound);
            close(&got, "out.t", &want["jvp_xt"], bound);
        }
    }
}

#[test]
fn gradients_have_the_checkpoint_s_names_and_shapes() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.safetensors");
    let input = models().join("wan_a/case_02.safetensors");
    let want = tensors(&models().join("wan_a/case_02.param_grads.safetensors")).unwrap();
    let run = |folder: &str| {
        let config = models().join("wan_a/config.json");
        let (code, _, stderr) = net(&models().join(folder), &["--vjp", "all", "--config", text(&config), "--inputs", text(&input), "--outputs", text(&out), "--on", "reference"]);
        assert_eq!(code, 0, "{stderr}");
        tensors(&out).unwrap()
    };
    let got = run("wan_a");
    assert_eq!(got.len(), want.len() + 4);
    for (k, t) in &want {
        close(&got, &format!("{k}.ct"), t, 1e-9);
    }
    let got = run("wan_a/original_rcm");
    let flat = want["patch_embedding.weight"].clone().reshape(&[48, 16]).unwrap();
    close(&got, "net.patch_embedding.weight.ct", &flat, 1e-9);
    close(&got, "net.blocks.1.self_attn.q.weight.ct", &want["blocks.1.attn1.to_q.weight"], 1e-9);
}

#[test]
fn wrong_inputs_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("in.safetensors");
    let wan = tensors(&models().join("wan_a/case_01.safetensors")).unwrap();
    let cosmos = tensors(&models().join("cosmos_v2w/case_00.safetensors")).unwrap();
    let renamed = |f: &BTreeMap<String, Tensor>, from: &str, to: &str| {
        let mut f = f.clone();
        let t = f.remove(from).unwrap();
        f.insert(to.into(), t);
        f
    };
    for (folder, fields, word) in [
        ("wan_a", renamed(&wan, "hidden_states", "hidden_state"), "no tensor `hidden_states`; did you mean `hidden_state`?"),
        ("wan_a", renamed(&wan, "tangent.timestep", "tangent.timesteps"), "no tensor `timestep.t`; did you mean `timesteps.t`?"),
        ("cosmos_v2w", renamed(&cosmos, "condition_mask", "condition_masks"), "no `condition_mask`"),
        ("cosmos_v2w", renamed(&cosmos, "padding_mask", "paddingmask"), "padding_mask [1,1,H,W] is needed"),
        ("wan_a", renamed(&wan, "f32.out", "attention_mask"), "`attention_mask` is not supported"),
        ("wan_a", renamed(&wan, "f32.out", "padding_mask"), "padding_mask"),
        ("wan_a", renamed(&wan, "f32.out", "fps"), "must be one number"),
    ] {
        save(&file, fields.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
        let (code, _, stderr) = net(&models().join(folder), &["--jvp", "hidden_states,timestep", "--inputs", text(&file), "--on", "reference"]);
        assert!(code == 1 && stderr.contains(word), "{code}: {stderr:?} has not {word:?}");
    }
    let input = models().join("wan_a/case_01.safetensors");
    for (args, word) in [
        (&["--jvp", "hidden_state"][..], "did you mean `hidden_states`?"),
        (&["--vjp", "blocks.0.attn1.to_q.weigth"], "did you mean `blocks.0.attn1.to_q.weight`?"),
        (&["--fps", "16"], "no fps"),
        (&["--qk-eps", "0"], "must be positive"),
    ] {
        let (code, _, stderr) = net(&models().join("wan_a"), &[args, &["--inputs", text(&input), "--on", "reference"]].concat());
        assert!(code == 1 && stderr.contains(word), "{code}: {stderr:?} has not {word:?}");
    }
    let (code, _, stderr) = net(&models().join("wan_a/original_rcm"), &["--inputs", text(&input)]);
    assert!(code == 1 && stderr.contains("--config"), "{stderr}");
}

#[test]
fn costs_come_from_the_configuration_alone() {
    let dir = tempfile::tempdir().unwrap();
    let config = serde_json::json!({"_class_name": "WanTransformer3DModel", "num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30});
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let (code, stdout, stderr) = net(dir.path(), &["--explain", "--json"]);
    assert_eq!(code, 0, "{stderr}");
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((json["parameters"].as_u64(), json["tensors"].as_u64()), (Some(1_418_996_800), Some(825)));
    let size = &json["sizes"][0];
    assert_eq!(size["tokens"], 32760);
    // 4·N²·D a layer in attention to itself, 4·N·L·D to the text.
    let (n, d, l) = (32760.0, 1536.0, 512.0);
    let attention = 30.0 * 4.0 * n * d * (n + l);
    assert!((size["forward"]["attention"].as_f64().unwrap() / attention - 1.0).abs() < 1e-9, "{size}");
    // Both products of attention to itself are three with tangents, linear layers two; the text does not move.
    let ratio = size["flop_ratio"].as_f64().unwrap();
    assert!(ratio > 2.0 && ratio < 3.0, "{ratio}");
}
