//! Products of f32 matrices on tensor cores, where that is asked for: right at odd sizes, of rounded operands and of nothing worse, and never without being asked.
#![allow(missing_docs, clippy::unwrap_used)]

mod cases;

use cases::{Case, build_as};
use codegen::GpuTarget;
use codegen::nvptx;
use ir::tensor::{Tensor, relative_error};
use ir::types::DType;
use runtime::sim::{Module, Options};
use std::collections::BTreeMap;

/// The bound for tf32, relative Frobenius.
const BOUND: f64 = 2e-3;

fn run(c: &Case, target: &str) -> BTreeMap<ir::dim::Name, Tensor> {
    let mut tensors = c.inputs.clone();
    ir::tile::sequence::run(&c.programs, &mut tensors, &c.dims, &mut |p, d, x| {
        let (s, k) = build_as(p, target, true, d);
        let module = Module::parse(&k.ptx).unwrap_or_else(|e| panic!("{}: {e:?}", p.name));
        let (out, report) = module.run(&k.signature, d, x, &Options::default()).unwrap_or_else(|e| panic!("{}, {s:?}: {e}", p.name));
        assert!(report.unwritten.values().all(|n| *n == 0), "{}: {:?}", p.name, report.unwritten);
        Ok(out)
    })
    .unwrap();
    tensors
}

fn cases() -> Vec<Case> {
    let read = |f: &str| std::fs::read_to_string(format!("{}/../{f}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let (plain, variants, gelu, exact) = (read("examples/attention.pf"), read("examples/attention_variants.pf"), read("examples/gelu_linear.pf"), read("tests/programs/exact.pf"));
    let qkv: &[&str] = &["q", "k", "v"];
    let mut out = vec![];
    let sizes = |i, j, d| [("B", 1), ("H", 2), ("I", i), ("J", j), ("D", d)];
    for (wrt, i, j, d) in [(&[] as &[&str], 100, 150, 64), (qkv, 37, 55, 128), (&[], 37, 45, 28), (qkv, 37, 45, 12), (&["q"], 33, 65, 72), (qkv, 1, 1, 64), (qkv, 20, 35, 256)] {
        out.push(Case::new(&plain, "attention", wrt, DType::F32, &sizes(i, j, d)));
    }
    for (i, j, d) in [(40, 50, 64), (37, 45, 20)] {
        out.push(Case::gradient(&plain, "attention", qkv, DType::F32, &sizes(i, j, d)));
    }
    for f in ["causal", "bias"] {
        out.push(Case::new(&variants, f, qkv, DType::F32, &[("B", 2), ("H", 1), ("I", 40), ("J", 70), ("D", 32), ("E", 40)]));
    }
    for (m, k, n) in [(37, 45, 51), (100, 72, 136)] {
        out.push(Case::new(&gelu, "gelu_linear", &["x", "w"], DType::F32, &[("M", m), ("K", k), ("N", n)]));
        out.push(Case::new(&exact, "product", &[], DType::F32, &[("M", m), ("K", k), ("N", n)]));
    }
    out
}

#[test]
fn right_where_it_is_asked_for() {
    let targets = ["sm_80", "sm_90a", "sm_100a"];
    for (n, c) in cases().iter().enumerate() {
        let target = targets[n % 3];
        let texts = |target: &str| c.programs.iter().map(|p| build_as(p, target, true, &c.dims).1.ptx).collect::<String>();
        let asked = format!("{target}+tf32");
        let text = texts(&asked);
        assert!(text.contains("m16n8k8") && text.contains("cvt.rna.tf32.f32"), "{}: no product is tf32's", c.name);
        assert!(!texts(target).contains("tf32"), "{}: tf32 without being asked for", c.name);
        for (name, e) in c.errors(&run(c, &asked)) {
            println!("{} {target} {name} {e:.1e}", c.name);
            // Of one key, weights are 1 and some results 0 or exact.
            assert!(e <= BOUND && (e > 1e-5 || c.dims.get("J") == Some(&1)), "{}: {name} is off by {e:e}", c.name);
        }
    }
}

/// What is lost is the rounding of operands, and nothing else: with operands that are tf32 numbers, the result is f32's.
#[test]
fn operands_are_rounded_to_nearest_and_nothing_else_is() {
    // 13 of 23 bits of fraction go; ties go away from zero.
    let round = |x: f64| f64::from(f32::from_bits(((x as f32).to_bits() + 0x1000) & !0x1fff));
    for c in cases().iter().filter(|c| &*c.f.name == "product") {
        let inputs: Vec<Tensor> = c.f.params.iter().map(|p| &c.inputs[&p.name]).map(|t| Tensor::from_f64(DType::F32, t.shape(), &t.to_f64().iter().map(|x| round(*x)).collect::<Vec<_>>()).unwrap()).collect();
        let want = ir::reference::evaluate(&c.f, &inputs, &c.dims).unwrap();
        let got = run(c, "sm_90a+tf32");
        let e = relative_error(&got["y"], &want[0]);
        println!("{} {e:.1e}", c.name);
        assert!(e < 1e-6, "{}: off by {e:e} of rounded operands", c.name);
    }
}

/// The assembler takes them, and none spills.
#[test]
fn the_assembler_agrees() {
    let Some(assembler) = codegen::assembler::Assembler::find() else {
        eprintln!("SKIPPED: no ptxas (`./dev ptxas` installs it, CUDA_BIN names its directory): nothing was assembled");
        return;
    };
    let mut bad = vec![];
    for c in cases() {
        for (p, target) in c.programs.iter().flat_map(|p| ["sm_80", "sm_90a", "sm_100a"].map(|t| (p, t))) {
            let (s, k) = build_as(p, &format!("{target}+tf32"), true, &c.dims);
            let a = assembler.assemble(&k.ptx, target).unwrap();
            let estimated = nvptx::registers(p, &GpuTarget::named(&format!("{target}+tf32")).unwrap(), &s).unwrap();
            println!("{}/{} for {target}: {} registers, {estimated} estimated, {:?} spilled; {} x {} rows, {} streamed", c.name, p.name, a.registers, a.spills, s.rows, s.cols, s.stream);
            if a.spills != [0, 0] {
                bad.push(format!("{}/{} for {target} spills {:?}; {estimated} estimated: {s:?}", c.name, p.name, a.spills));
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}
