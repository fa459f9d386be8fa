//! Large networks: what is derived, fused and compiled does not grow with the number of layers.

#![allow(clippy::unwrap_used)] // tests panic to fail

use ir::dim::{Bindings, Name};
use ir::types::DType;
use passes::ad::{Checkpoint, Transform};
use passes::fuse;
use runtime::plan::Plan;
use serde_json::json;
use std::time::Instant;
use ir::graph::Function;
use ir::tensor::{Tensor, TensorData};
use std::fmt::Write;
use trainer::net::config::NoShapes;
use trainer::net::{Config, Network, Precision, Variant};
use trainer::program::{Options, Program};

/// Wan2.1-14B, from its configuration, with so many layers.
fn wan_14b(layers: usize) -> Network {
    let config = json!({
        "_class_name": "WanTransformer3DModel", "added_kv_proj_dim": null, "attention_head_dim": 128, "cross_attn_norm": true, "eps": 1e-6, "ffn_dim": 13824, "freq_dim": 256,
        "image_dim": null, "in_channels": 16, "num_attention_heads": 40, "num_layers": layers, "out_channels": 16, "patch_size": [1, 2, 2], "pos_embed_seq_len": null,
        "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024, "text_dim": 4096
    });
    Network::build(&Config::from_json(&config, "config.json", &NoShapes).unwrap(), &Variant::default(), Precision::F32).unwrap()
}

#[test]
fn forty_layers_are_one() {
    let dims: Bindings = [("B", 1), ("T", 1), ("H", 32), ("W", 32), ("L", 64)].into_iter().map(|(n, v)| (Name::from(n), v)).collect();
    let wrt = |list: &[&str]| list.iter().map(|n| Name::from(*n)).collect::<Vec<_>>();
    let along = wrt(&["hidden_states", "timestep"]);
    let mut kernels = vec![];
    for layers in [2, 40] {
        let start = Instant::now();
        let lap = |what: &str| println!("{layers} layers, {what}: {:.2} s since the start", start.elapsed().as_secs_f64());
        let n = wan_14b(layers);
        lap("built");
        let f = Transform::Jvp(along.clone()).apply_with(&n.function, Checkpoint::Residuals).unwrap();
        lap("jvp");
        let s = fuse::sequence(&f, &fuse::Options::cpu(&dims, DType::F32)).unwrap();
        lap("fused");
        let plan = Plan::new(&s, &dims).unwrap();
        lap("planned");
        println!("{} programs, {} launches, arena {:.1} MB, live at once {:.1} MB, parameters {:.2} GB", s.programs.len(), s.launches.len(), plan.arena as f64 / 1e6, plan.bound as f64 / 1e6, plan.param_bytes() as f64 / 1e9);
        kernels.push(s.programs.len());
        if layers == 40 {
            // All of LLVM's work for the whole network: to kernels that can be launched, nothing of the network allocated. 10 s is what two quiet
            // cores are asked; tests run beside others.
            let (start, target) = (Instant::now(), codegen::Target::host().unwrap());
            let loaded = trainer::program::kernels::compile_on(2, &s.programs, &target, &runtime::cache::Cache::new(None)).unwrap();
            let seconds = start.elapsed().as_secs_f64();
            println!("{} kernels compiled in {seconds:.2} s", loaded.len());
            assert_eq!(loaded.len(), s.programs.len());
            assert!(seconds < 60.0, "{seconds} s");
        }
        assert!(plan.arena as f64 <= 1.1 * plan.bound as f64);
    }
    assert_eq!(kernels[0], kernels[1], "more layers are more launches, not more kernels");
}

/// Layers `y = x + gelu(x·w)·vᵀ` with weights of their own.
fn perceptron(layers: usize, width: usize, hidden: usize) -> Function {
    let (d, f) = (format!("D={width}"), format!("F={hidden}"));
    let mut text = format!("fn net(x: f32[N,{d}]");
    (0..layers).for_each(|i| write!(text, ", w{i}: f32[{f},{d}], v{i}: f32[{d},{f}]").unwrap());
    writeln!(text, ") -> (y: f32[N,{d}]) {{").unwrap();
    for i in 0..layers {
        let (from, to) = (if i == 0 { "x".into() } else { format!("x{i}") }, if i + 1 == layers { "y".into() } else { format!("x{}", i + 1) });
        writeln!(text, "  {to} = call(layer, y, {from}, w{i}, v{i})").unwrap();
    }
    writeln!(text, "}}\nfn layer(x: f32[N,{d}], w: f32[{f},{d}], v: f32[{d},{f}]) -> (y: f32[N,{d}]) {{").unwrap();
    writeln!(text, "  h = gelu(contract(\"nd,fd->nf\", x, w))\n  y = x + contract(\"nf,df->nd\", h, v)\n}}").unwrap();
    ir::text::parse(&text).unwrap_or_else(|e| panic!("{}\n{text}", e[0])).functions.remove(0)
}

fn numbers(shape: &[usize], scale: f32) -> Tensor {
    let n: usize = shape.iter().product();
    Tensor::new(shape.to_vec(), TensorData::F32((0..n).map(|i| scale * ((i % 1013) as f32 / 1013.0 - 0.5)).collect())).unwrap()
}

#[test]
fn launches_of_little_work_cost_little() {
    let f = perceptron(1200, 8, 8);
    let dims: Bindings = [("N".into(), 4)].into();
    for threads in [1, 2] {
        let mut p = Program::new(&f, &[], &dims, &Options { threads: Some(threads), ..Options::default() }).unwrap();
        for q in p.params().to_vec().iter().filter(|q| &*q.name != "x") {
            p.give(&q.name, numbers(&q.shape, 0.1)).unwrap();
        }
        let x = numbers(&[4, 8], 1.0);
        p.run(&[("x", &x)]).unwrap();
        let mut best = f64::INFINITY;
        for _ in 0..7 {
            let start = Instant::now();
            p.run(&[("x", &x)]).unwrap();
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{threads} threads: {} launches of {} kernels, {:.2} us each", p.launches(), p.kernels(), best * 1e6 / p.launches() as f64);
        assert!(p.launches() >= 1200 && p.kernels() <= 2);
        // A hundred times what it takes: that nothing is planned, looked up by name or allocated anew.
        assert!(best / (p.launches() as f64) < 1e-4);
    }
}

#[test]
fn the_peak_is_what_was_predicted() {
    let f = perceptron(8, 2048, 4096);
    let dims: Bindings = [("N".into(), 512)].into();
    let mut p = Program::new(&f, &[Transform::Jvp(vec!["x".into()])], &dims, &Options { threads: Some(2), ..Options::default() }).unwrap();
    assert!(p.peak_bytes() > 500 << 20, "{} bytes", p.peak_bytes());
    let before = runtime::memory::resident().unwrap();
    runtime::memory::reset_peak();
    for q in p.params().to_vec() {
        p.give(&q.name, numbers(&q.shape, 0.05)).unwrap();
    }
    p.run(&[]).unwrap();
    let grown = runtime::memory::peak().unwrap().saturating_sub(before);
    let ratio = grown as f64 / p.peak_bytes() as f64;
    println!("predicted {:.1} MiB, grown by {:.1} MiB: {ratio:.3}", p.peak_bytes() as f64 / f64::from(1 << 20), grown as f64 / f64::from(1 << 20));
    assert!((0.9..1.1).contains(&ratio), "predicted {}, grown by {grown}", p.peak_bytes());
}
