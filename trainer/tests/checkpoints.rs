//! Checkpoint files that are damaged, hostile or simply other than the configuration says: each is an error that names what is wrong.

#![allow(clippy::unwrap_used)] // tests panic to fail

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use trainer::net::checkpoint::Checkpoint;
use trainer::net::{Config, Network, Precision, Variant};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models")
}

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// The message that a folder with these bytes as its weights is refused with.
fn refused(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    let e = Checkpoint::open(dir.path()).err().unwrap_or_else(|| panic!("it was accepted"));
    assert!(e.contains("model.safetensors"), "{e}");
    e
}

#[test]
fn headers_are_not_believed() {
    let one = |shape: &str, begin: i64, end: i64| format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}}}"#);
    let eight = [0; 8];
    for (bytes, word) in [
        (vec![], "0 bytes"),
        (vec![1, 2, 3], "3 bytes"),
        (u64::MAX.to_le_bytes().to_vec(), "claims 18446744073709551615 bytes"),
        ([&1000u64.to_le_bytes()[..], b"{}"].concat(), "claims 1000 bytes"),
        (file("{", &[]), "broken"),
        (file("[]", &[]), "broken"),
        (file(&one("[2]", 0, 8), &eight[..4]), "bytes 0..8 of 4"),
        (file(&one("[2]", 8, 0), &eight), "bytes 8..0"),
        (file(&one("[2]", -8, 0), &eight), "invalid value"),
        (file(&one("[2]", 0, i64::MAX), &eight), "of 8"),
        (file(&one("[3]", 0, 8), &eight), "F32[3] is 12 bytes, but its offsets hold 8"),
        (file(&one("[4294967296,4294967296,4294967296]", 0, 8), &eight), "more bytes than there are numbers"),
        (file(&one("[2]", 0, 8).replace("F32", "F31"), &eight), "F31 is not known"),
        (file(&one("[1]", 4, 8), &eight), "4 bytes between the header and tensor `a`"),
        (file(&one("[1]", 0, 4), &eight), "4 bytes behind the last tensor"),
        (file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, &eight), "`a` is there twice"),
        (file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, &eight), "`b` overlaps with `a`"),
        (file(r#"{"a":{"dtype":"F32","shape":[2]}}"#, &eight), "data_offsets"),
    ] {
        let e = refused(&bytes);
        assert!(e.contains(word), "{e:?} has not {word:?}");
    }
}

/// A copy of a fixture's folder of shards.
fn shards() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for e in std::fs::read_dir(root().join("wan_a/sharded")).unwrap() {
        let path = e.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

const INDEX: &str = "diffusion_pytorch_model.safetensors.index.json";

#[test]
fn indices_are_not_believed() {
    for (change, word) in [
        (Box::new(|m: &mut Value| m["proj_out.weight"] = json!("../../etc/passwd")) as Box<dyn Fn(&mut Value)>, "not a file of this folder"),
        (Box::new(|m: &mut Value| m["proj_out.weight"] = json!("/etc/passwd")), "not a file of this folder"),
        (Box::new(|m: &mut Value| m["proj_out.weight"] = json!("..")), "not a file of this folder"),
        (Box::new(|m: &mut Value| m["proj_out.weight"] = json!("missing.safetensors")), "missing.safetensors"),
        (Box::new(|m: &mut Value| m["nobody"] = m["proj_out.weight"].clone()), "tensor `nobody` is not in"),
        (Box::new(|m: &mut Value| { m.as_object_mut().unwrap().remove("proj_out.weight"); }), "tensor `proj_out.weight` is not in"),
        (Box::new(|m: &mut Value| {
            let all: Vec<Value> = m.as_object().unwrap().values().cloned().collect();
            let other = all.iter().find(|f| **f != m["proj_out.weight"]).unwrap().clone();
            m["proj_out.weight"] = other;
        }), "in a shard where"),
    ] {
        let dir = shards();
        let path = dir.path().join(INDEX);
        let mut index: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut index["weight_map"]);
        std::fs::write(&path, index.to_string()).unwrap();
        let e = Checkpoint::open(dir.path()).err().unwrap_or_else(|| panic!("it was accepted: {word}"));
        assert!(e.contains(word), "{e:?} has not {word:?}");
    }
    let dir = shards();
    std::fs::remove_file(dir.path().join(INDEX)).unwrap();
    let e = Checkpoint::open(dir.path()).err().unwrap();
    assert!(e.contains("several files of weights") && e.contains("index"), "{e}");
}

fn config(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The message that a changed configuration of the Wan fixture is refused with, by itself or against the weights.
fn contradiction(change: impl Fn(&mut Value)) -> String {
    let weights = Checkpoint::open(&root().join("wan_a")).unwrap();
    let mut json = config(&root().join("wan_a/config.json"));
    change(&mut json);
    let c = match Config::from_json(&json, "config.json", &weights) {
        Err(e) => return e,
        Ok(c) => c,
    };
    let Config::Wan(w) = &c else { panic!() };
    let n = Network::build(&c, &Variant { image: w.image_dim.is_some(), ..Variant::default() }, Precision::F32).unwrap();
    weights.match_to(&n.weights).err().unwrap_or_else(|| panic!("it was accepted"))
}

#[test]
fn configurations_are_held_to_the_weights() {
    for (key, value, words) in [
        ("ffn_dim", json!(96), &["blocks.0.ffn.net.0.proj.weight", "[80, 48]", "[96, 48]"][..]),
        ("num_layers", json!(3), &["missing: blocks.2.scale_shift_table [1, 6, 48]"]),
        ("num_layers", json!(1), &["unexpected: blocks.1."]),
        ("text_dim", json!(24), &["condition_embedder.text_embedder.linear_1.weight", "[48, 20]", "[48, 24]"]),
        ("cross_attn_norm", json!(false), &["unexpected: blocks.0.norm2.weight [48]"]),
        ("image_dim", json!(28), &["image_dim is given, but added_kv_proj_dim is not"]),
        ("num_heads", json!(2), &["`num_heads` is not known"]),
        ("ffn_dims", json!(80), &["`ffn_dims` is not known", "did you mean `ffn_dim`"]),
        ("ffn_dim", json!("80"), &["ffn_dim is \"80\", but must be a positive whole number"]),
        ("ffn_dim", json!(-1), &["ffn_dim is -1"]),
        ("eps", json!(0.0), &["eps is 0.0"]),
        ("patch_size", json!([2, 2]), &["patch_size is [2,2], but must be 3 positive whole numbers"]),
        ("qk_norm", json!("layer_norm"), &["qk_norm is \"layer_norm\", which is not supported"]),
        ("_class_name", json!("FluxTransformer2DModel"), &["_class_name is FluxTransformer2DModel", "WanTransformer3DModel"]),
        ("_class_name", json!("CosmosTransformer3DModel"), &["not known"]),
    ] {
        let e = contradiction(|j| j[key] = value.clone());
        for w in words {
            assert!(e.contains(w), "{key} = {value}: {e:?} has not {w:?}");
        }
    }
}

/// The weights of the Wan fixture with a tensor renamed or dropped.
fn changed(f: impl Fn(&mut serde_json::Map<String, Value>)) -> Result<Vec<String>, String> {
    let bytes = std::fs::read(root().join("wan_a/diffusion_pytorch_model.safetensors")).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    f(&mut header);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.safetensors"), file(&Value::Object(header).to_string(), &bytes[8 + n..])).unwrap();
    let weights = Checkpoint::open(dir.path())?;
    let c = Config::from_json(&config(&root().join("wan_a/config.json")), "config.json", &weights)?;
    let n = Network::build(&c, &Variant::default(), Precision::F32).unwrap();
    weights.match_to(&n.weights)
}

#[test]
fn tensors_are_named() {
    assert_eq!(changed(|_| {}).unwrap().len(), 69);
    let renamed = changed(|h| {
        let t = h.remove("blocks.1.attn1.to_q.weight").unwrap();
        h.insert("blocks.1.attn1.to_qq.weight".into(), t);
    });
    let e = renamed.unwrap_err();
    assert!(e.contains("missing: blocks.1.attn1.to_q.weight [48, 48]; did you mean `blocks.1.attn1.to_qq.weight`?"), "{e}");
    assert!(e.contains("unexpected: blocks.1.attn1.to_qq.weight [48, 48]"), "{e}");
    let e = changed(|h| h["proj_out.weight"]["shape"] = json!([48, 16])).unwrap_err();
    assert!(e.contains("wrong: proj_out.weight is [48, 16], but the configuration makes it [16, 48]"), "{e}");
    let e = changed(|h| {
        for k in ["proj_out.weight", "proj_out.bias"] {
            h[k]["dtype"] = json!("I32");
        }
    })
    .unwrap_err();
    assert!(e.contains("proj_out.weight is I32"), "{e}");
    // What is no weight is left alone, and said.
    let dir = tempfile::tempdir().unwrap();
    let cosmos = std::fs::read(root().join("cosmos_v2w/original/model.safetensors")).unwrap();
    let n = u64::from_le_bytes(cosmos[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Map<String, Value> = serde_json::from_slice(&cosmos[8..8 + n]).unwrap();
    let end = cosmos.len() - 8 - n;
    let extra = ["net.pos_embedder.seq", "net.accum_image_sample_counter", "net.blocks.0.self_attn._extra_state"];
    for (i, k) in extra.iter().enumerate() {
        header.insert(k.to_string(), json!({"dtype": "F32", "shape": [1], "data_offsets": [end + 4 * i, end + 4 * i + 4]}));
    }
    std::fs::write(dir.path().join("model.safetensors"), file(&Value::Object(header).to_string(), &[&cosmos[8 + n..], &[0; 12][..]].concat())).unwrap();
    let weights = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(weights.ignored().len(), 3);
    let c = Config::from_json(&config(&root().join("cosmos_v2w/config.json")), "config.json", &weights).unwrap();
    let v = Variant { padding_mask: Some(trainer::net::Resize::Same), ..Variant::default() };
    assert_eq!(weights.match_to(&Network::build(&c, &v, Precision::F32).unwrap().weights).unwrap().len(), 47);
}
