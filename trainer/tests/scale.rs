//! Large networks: what is derived, fused and compiled does not grow with the number of layers.

#![allow(clippy::unwrap_used)] // tests panic to fail

use ir::dim::{Bindings, Name};
use ir::types::DType;
use passes::ad::{Checkpoint, Transform};
use passes::fuse;
use runtime::plan::Plan;
use serde_json::json;
use std::time::Instant;
use trainer::net::config::NoShapes;
use trainer::net::{Config, Network, Precision, Variant};

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
        for p in &s.programs {
            println!("  {}", p.name);
        }
        s.notes.iter().for_each(|n| println!("  {n}"));
        kernels.push(s.programs.len());
        assert!(plan.arena as f64 <= 1.1 * plan.bound as f64);
    }
    assert_eq!(kernels[0], kernels[1], "more layers are more launches, not more kernels");
}
