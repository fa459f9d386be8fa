//! Every case of `tests/fixtures` as GPU code in the PTX machine: primal, JVP and gradient, in every element type that a GPU kernel has, against
//! `reference` on the rounded inputs. Architectures take turns. What is refused stands in a list here, by name.
//!
//! Cases of many pairs run in one type, which one by turns; `ALL=1` runs them in all, `ONLY=text` runs those with it in their name.

#[path = "support/cases.rs"]
mod cases;

use cases::{Fields, load, on_interp, root, scores_program};
use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::tensor::{Tensor, relative_error};
use ir::types::DType;
use passes::ad::Transform;
use serde_json::Value;
use std::time::Instant;

/// Relative Frobenius error against `reference` on the same rounded inputs.
const BOUNDS: [(DType, f64); 3] = [(DType::BF16, 5e-3), (DType::F16, 6e-4), (DType::F32, 2e-5)];

/// An answer of norm 0: absolute.
const ZERO: f64 = 1e-6;

/// By turns.
const TARGETS: [&str; 3] = ["sm_90a", "sm_80", "sm_100a"];

/// What has no GPU form: the beginning of a case's name, and a part of what is said.
const REFUSED: [(&str, &str); 0] = [];

/// Where rounding an operand of a product loses more than the bound, because what is left behind it cancels: a gradient through a softmax over a single
/// element is a difference of two equal sums. There the bound is what the tile interpreter loses on the same block programs, half as much again.
const CANCELS: [&str; 1] = ["attn_02 vjp"];

/// One function to run.
struct Case {
    name: String,
    f: Function,
    inputs: Fields,
}

/// Primal, JVP and gradient of `f`; `inputs` has the tangents `NAME.t` and the cotangents `RESULT.ct` that it knows.
fn derivatives(name: &str, f: &Function, inputs: &Fields, out: &mut Vec<Case>) {
    let floats: Vec<Name> = f.params.iter().filter(|p| inputs.contains_key(&format!("{}.t", p.name))).map(|p| p.name.clone()).collect();
    for (what, transform) in [("primal", None), ("jvp", Some(Transform::Jvp(floats.clone()))), ("vjp", Some(Transform::Vjp(floats.clone())))] {
        let g = transform.map_or_else(|| f.clone(), |t| t.apply(f).unwrap_or_else(|e| panic!("{name}: {e}")));
        out.push(Case { name: format!("{name} {what}"), f: g, inputs: inputs.clone() });
    }
}

/// Runs `cases`, and says what is wrong.
fn run(cases: &[Case]) {
    let (all, only) = (std::env::var_os("ALL").is_some(), std::env::var("ONLY").unwrap_or_default());
    let (mut bad, mut refused, mut runs) = (vec![], vec![], 0);
    for (n, c) in cases.iter().enumerate().filter(|(_, c)| c.name.contains(&only)) {
        let size: usize = c.inputs.values().map(|t| t.shape().iter().product::<usize>()).sum();
        for (i, (dtype, bound)) in BOUNDS.into_iter().enumerate() {
            let large = size > if c.name.ends_with("vjp") { 2_000 } else { 40_000 };
            if large && !all && n % BOUNDS.len() != i {
                continue;
            }
            let name = format!("{} {dtype}", c.name);
            let args: Vec<Tensor> = c.f.params.iter().map(|p| c.inputs.get(&*p.name).unwrap_or_else(|| panic!("{name}: no input {}", p.name))).map(|t| if t.dtype().is_float() { t.convert(dtype) } else { t.clone() }).collect();
            let dims = c.f.bind(&|n| c.inputs.get(n).map(|t| t.shape().to_vec()), &Bindings::new()).unwrap();
            let want = ir::reference::evaluate(&c.f, &args, &dims).unwrap();
            let start = Instant::now();
            let target = TARGETS[(n + i) % TARGETS.len()];
            match pushforward::machine::sim(&c.f, &args, &dims, dtype, target) {
                Err(why) => match REFUSED.iter().find(|(case, part)| name.starts_with(case) && why.contains(part)) {
                    Some(r) => refused.push(*r),
                    None => bad.push(format!("{name} for {target}: {why}")),
                },
                Ok(got) => {
                    runs += 1;
                    let lost = CANCELS.iter().any(|c| name.starts_with(c)).then(|| {
                        let rounded: Fields = c.f.params.iter().map(|p| p.name.to_string()).zip(args.iter().cloned()).collect();
                        on_interp(&c.f, &rounded, &dims, dtype)
                    });
                    for ((r, want), got) in c.f.results.iter().zip(&want).zip(&got) {
                        let zero = want.to_f64().iter().all(|x| *x == 0.0 || !x.is_finite());
                        let error = relative_error(got, want);
                        let bound = lost.as_ref().map_or(bound, |l| bound.max(1.5 * relative_error(&l[&r.name], want)));
                        println!("  {name} {target} {} {error:.1e}, {:.1} s", r.name, start.elapsed().as_secs_f64());
                        if error.is_nan() || error > if zero { ZERO } else { bound } {
                            bad.push(format!("{name} for {target}: {} is off by {error:e}", r.name));
                        }
                    }
                }
            }
        }
    }
    println!("{runs} runs, {} refusals", refused.len());
    let stale: Vec<_> = REFUSED.iter().filter(|r| cases.iter().any(|c| c.name.starts_with(r.0)) && !refused.contains(r)).collect();
    assert!(!only.is_empty() || stale.is_empty(), "no longer refused: {stale:?}");
    assert!(bad.is_empty(), "{} of {runs} are bad:\n{}", bad.len(), bad.join("\n"));
}

#[test]
fn attention() {
    let index: Vec<Value> = serde_json::from_slice(&std::fs::read(root().join("fixtures/attention/index.json")).unwrap()).unwrap();
    let mut cases = vec![];
    for p in &index {
        let name = format!("attn_{:02}", p["case"].as_u64().unwrap());
        let (fields, _) = load(&format!("attention/{name}.safetensors"));
        let text = scores_program(p, &["o", "lse"]);
        let f = ir::text::parse(&text).unwrap_or_else(|e| panic!("{}", ir::diagnostic::render(&e, &name, &text))).functions.remove(0);
        let primals = ["q", "k", "v", "bias", "kv_len", "alibi_slopes"].map(|n| (n.to_string(), n.to_string()));
        let tangents = ["q", "k", "v", "bias"].map(|n| (format!("t{n}"), format!("{n}.t")));
        let cotangents = ["o", "lse"].map(|n| (format!("d{n}"), format!("{n}.ct")));
        let inputs = primals.iter().chain(&tangents).chain(&cotangents).filter_map(|(from, to)| fields.get(from).map(|t| (to.clone(), t.clone()))).collect();
        derivatives(&name, &f, &inputs, &mut cases);
    }
    assert_eq!(cases.len(), 3 * (std::fs::read_dir(root().join("fixtures/attention")).unwrap().count() - 1), "a case was left out");
    run(&cases);
}

#[test]
fn layers() {
    let text = std::fs::read_to_string(root().join("programs/layers.pf")).unwrap();
    let module = ir::text::parse(&text).unwrap_or_else(|e| panic!("{}", ir::diagnostic::render(&e, "layers.pf", &text)));
    let mut names: Vec<String> = std::fs::read_dir(root().join("fixtures/layers")).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "safetensors")).map(|p| p.file_stem().unwrap().to_str().unwrap().into()).collect();
    names.sort();
    let mut cases = vec![];
    for name in &names {
        let (fields, _) = load(&format!("layers/{name}.safetensors"));
        let mut inputs = Fields::new();
        for (k, t) in &fields {
            match k.split_once('.') {
                Some(("in" | "const", n)) => inputs.insert(n.into(), t.clone()),
                Some(("tan", n)) => inputs.insert(format!("{n}.t"), t.clone()),
                _ => None,
            };
        }
        inputs.insert("out.ct".into(), fields["cot"].clone());
        derivatives(name, module.function(Some(name)).unwrap(), &inputs, &mut cases);
    }
    assert_eq!(cases.len(), 3 * 29);
    run(&cases);
}

/// A function that calls another one twice, and its gradient: distinct kernels once, one arena that starts as poison.
#[test]
fn plans() {
    let text = "fn layer(x: f32[N,D], w: f32[E=D,D]) -> (y: f32[N,D]) { y = x + rename(gelu_tanh(linear(x, w)), E -> D) }
        fn net(x: f32[N,D], a: f32[E=D,D], b: f32[E=D,D]) -> (z: f32[N,D]) { z = layer(layer(x, a), b) }";
    let module = ir::text::parse(text).unwrap_or_else(|e| panic!("{}", ir::diagnostic::render(&e, "net", text)));
    let f = module.function(Some("net")).unwrap();
    let dims: Bindings = [("N".into(), 37), ("D".into(), 24)].into();
    for transform in [None, Some(Transform::Jvp(vec!["x".into(), "b".into()])), Some(Transform::Vjp(vec!["x".into(), "a".into()]))] {
        let g = transform.map_or_else(|| f.clone(), |t| t.apply(f).unwrap());
        let mut random = pushforward::input::Random(9);
        let inputs: Vec<Tensor> = g.params.iter().map(|p| random.draw(&g, p.var, &dims).unwrap().convert(DType::F32)).collect();
        let want = ir::reference::evaluate(&g, &inputs, &dims).unwrap();
        let got = pushforward::machine::sim_planned(&g, &inputs, &dims, DType::F32, "sm_90a").unwrap_or_else(|e| panic!("{}: {e}", g.name));
        for ((r, w), x) in g.results.iter().zip(&want).zip(&got) {
            let error = relative_error(x, w);
            println!("  {} {} {error:.1e}", g.name, r.name);
            // In f32: what lies between kernels in bf16 is rounded at every layer, and would hide more.
            assert!(error <= 2e-5, "{}: {} is off by {error:e}", g.name, r.name);
        }
    }
}
