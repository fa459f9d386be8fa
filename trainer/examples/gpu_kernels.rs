//! Which kernels of the networks have a form for GPUs: compiles every kernel of forward, tangent and gradient programs, and says what each refusal is. Needs no GPU.
//! `cargo run --release -p pushforward-trainer --example gpu_kernels [NAME] [DTYPE] [DIR for PTX]`.
#![allow(clippy::unwrap_used)] // an example may stop

use ir::dim::{Bindings, Name};
use ir::types::DType;
use std::collections::BTreeMap;
use std::path::Path;
use trainer::net::{self, Config, Precision, Variant, dit, config::NoShapes};
use trainer::program::{Checkpoint, Transform};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let dtype = DType::parse(args.get(1).map_or("f32", |s| s)).unwrap();
    let target = codegen::GpuTarget::named("sm_90a").unwrap();
    let read = |dir: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(dir);
        Config::from_json(&serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap(), dir, &NoShapes).unwrap()
    };
    let video = |t: i64, h: i64, w: i64, l: i64| -> Bindings { [("B", 1), ("T", t), ("H", h), ("W", w), ("L", l)].into_iter().map(|(k, v)| (Name::from(k), v)).collect() };
    let all = [
        ("dit", Config::Dit(dit::Config::digits()), Bindings::from([("B".into(), 128)])),
        ("wan", read("tests/fixtures/models/wan_a/config.json"), video(1, 4, 6, 5)),
        ("cosmos", read("tests/fixtures/models/cosmos_t2i/config.json"), video(1, 4, 6, 5)),
        ("wan-1.3B", wan_13b(), video(21, 60, 104, 512)),
    ];
    let mut refused: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, config, dims) in all.iter().filter(|a| args.first().is_none_or(|n| n == a.0 || n == "all")) {
        let variant = match config {
            Config::Cosmos(c) => Variant { condition_mask: c.in_channels > c.out_channels, padding_mask: c.concat_padding_mask.then_some(trainer::net::Resize::Same), ..Variant::default() },
            _ => Variant::default(),
        };
        let n = net::Network::build(config, &variant, Precision::of(dtype).unwrap()).unwrap();
        let along: Vec<Name> = ["hidden_states".into(), "timestep".into()].into();
        let weights: Vec<Name> = n.weights.iter().map(|w| w.name.clone()).collect();
        for (what, transforms) in [("forward", vec![]), ("jvp", vec![Transform::Jvp(along)]), ("vjp", vec![Transform::Vjp(weights)])] {
            let start = std::time::Instant::now();
            let mut f = n.function.clone();
            for t in &transforms {
                f = t.apply_with(&f, Checkpoint::default()).unwrap();
            }
            let weights: BTreeMap<&str, &[usize]> = n.weights.iter().map(|w| (&*w.name, w.shape.as_slice())).collect();
            let bound = f.bind(&|p: &str| weights.get(p).map(|s| s.to_vec()), dims).unwrap();
            let sequence = match passes::fuse::sequence(&f, &trainer::program::gpu::options(&f, &bound, dtype)) {
                Ok(s) => s,
                Err(e) => { println!("{name} {what}: fuse: {e}"); continue; }
            };
            let made = start.elapsed().as_secs_f64();
            let (mut good, mut bad) = (0, 0);
            for p in &sequence.programs {
                match codegen::nvptx::compile_at(p, &target, &bound, false) {
                    Ok(k) => {
                        good += 1;
                        if let Some(dir) = args.get(2) {
                            std::fs::create_dir_all(dir).unwrap();
                            std::fs::write(format!("{dir}/{name}-{what}-{}.ptx", k.signature.symbol), &k.ptx).unwrap();
                        }
                    }
                    Err(e) => {
                        bad += 1;
                        refused.entry(e.to_string().replace(&*p.name, "·")).or_default().push(format!("{name} {what} {}", p.name));
                        if let Some(dir) = args.get(2) {
                            std::fs::create_dir_all(dir).unwrap();
                            std::fs::write(format!("{dir}/{name}-{what}-{}.tile.txt", p.name), format!("{e}\n{p}")).unwrap();
                            std::fs::write(format!("{dir}/{name}-{what}-{}.tile.json", p.name), serde_json::to_vec(p).unwrap()).unwrap();
                        }
                    }
                }
            }
            println!("{name} {what} {dtype}: {good} kernels, {bad} refused, {} launches; {made:.1} s to fuse, {:.1} s in all", sequence.launches.len(), start.elapsed().as_secs_f64());
        }
    }
    for (why, who) in refused {
        println!("\n{why}\n    {}", who.join("; "));
    }
}

fn wan_13b() -> Config {
    let json = serde_json::json!({"_class_name": "WanTransformer3DModel", "attention_head_dim": 128, "cross_attn_norm": true, "eps": 1e-6, "ffn_dim": 8960, "freq_dim": 256, "in_channels": 16,
        "num_attention_heads": 12, "num_layers": 30, "out_channels": 16, "patch_size": [1, 2, 2], "qk_norm": "rms_norm_across_heads", "text_dim": 4096});
    Config::from_json(&json, "Wan2.1-1.3B", &NoShapes).unwrap()
}
