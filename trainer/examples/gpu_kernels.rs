//! Which kernels of the networks have a form for GPUs: compiles every kernel of forward, tangent and gradient programs, and says what each refusal is. Needs no GPU.
//! `cargo run --release -p pushforward-trainer --example gpu_kernels [NAME] [DTYPE] [DIR for PTX]`. With `EACH=1` it lists the kernels that have a thread for each element, by
//! their operations and bytes over a run; `OPERANDS=1` keeps the operands of calls only.
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
        ("dit-small", Config::Dit(dit::Config { sample_size: [4, 4], num_attention_heads: 2, attention_head_dim: 8, num_layers: 1, ffn_dim: 24, num_classes: 3, time_frequencies: 4, ..dit::Config::digits() }), Bindings::from([("B".into(), 3)])),
        ("wan", read("tests/fixtures/models/wan_a/config.json"), video(1, 4, 6, 5)),
        ("cosmos", read("tests/fixtures/models/cosmos_t2i/config.json"), video(1, 4, 6, 5)),
        ("wan-1.3B", wan_13b(), video(21, 60, 104, 512)),
        ("wan-1.3B-short", wan_13b(), video(6, 60, 104, 512)),
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
                f = t.apply_with(&f, if std::env::var_os("OPERANDS").is_some() { Checkpoint::Operands } else { Checkpoint::default() }).unwrap();
            }
            let weights: BTreeMap<&str, &[usize]> = n.weights.iter().map(|w| (&*w.name, w.shape.as_slice())).collect();
            let bound = f.bind(&|p: &str| weights.get(p).map(|s| s.to_vec()), dims).unwrap();
            let sequence = match passes::fuse::sequence(&f, &trainer::program::gpu::options(&f, &bound, &trainer::program::Options { dtype, ..Default::default() })) {
                Ok(s) => s,
                Err(e) => { println!("{name} {what}: fuse: {e}"); continue; }
            };
            let made = start.elapsed().as_secs_f64();
            let plan = runtime::plan::Plan::new(&sequence, &bound).unwrap();
            let gb = |n: usize| n as f64 / 1e9;
            println!("{name} {what}: parameters {:.2} GB, results {:.2} GB, between {:.2} GB", gb(plan.param_bytes()), gb(plan.result_bytes()), gb(plan.arena));
            let (mut good, mut bad) = (0, 0);
            let mut slow: Vec<(f64, String)> = vec![];
            for (i, p) in sequence.programs.iter().enumerate() {
                match codegen::nvptx::compile_at(p, &target, &bound, false) {
                    Ok(k) => {
                        good += 1;
                        if let (Some(why), Ok(c)) = (&k.each, ir::tile::cost::cost(p, &bound)) {
                            let launches = sequence.launches.iter().filter(|l| l.program == i).count();
                            let gflop = c.flops as f64 * launches as f64 / 1e9;
                            slow.push((gflop, format!("{} x{launches}: {gflop:.3} GFLOP, {:.1} MB; {why}", p.name, c.bytes() as f64 * launches as f64 / 1e6)));
                        }
                        let hopper = k.ptx.contains("wgmma.mma_async");
                        if std::env::var_os("FORMS").is_some() {
                            println!("  {} {}", p.name, if hopper { "wgmma" } else if k.ptx.contains("mma.sync") { "mma.sync" } else if k.each.is_some() { "each" } else { "lanes" });
                        }
                        if let Some(dir) = args.get(2) {
                            std::fs::create_dir_all(dir).unwrap();
                            std::fs::write(format!("{dir}/{name}-{what}-{}.ptx", k.signature.symbol), &k.ptx).unwrap();
                            let why = k.each.clone().unwrap_or_default();
                            if !why.is_empty() || std::env::var_os("TILES").is_some() {
                                std::fs::write(format!("{dir}/{name}-{what}-{}.tile.txt", p.name), format!("{why}\n{p}")).unwrap();
                                std::fs::write(format!("{dir}/{name}-{what}-{}.tile.json", p.name), serde_json::to_vec(p).unwrap()).unwrap();
                            }
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
            slow.sort_by(|a, b| b.0.total_cmp(&a.0));
            if std::env::var_os("EACH").is_some() {
                slow.iter().for_each(|s| println!("  each {}", s.1));
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
