//! The laws of reverse mode as functions, and the programs to which they are applied.

use super::support::*;
use ir::builder::Builder;
use ir::dim::{Bindings, Dim, Name};
use ir::graph::{Function, Var};
use ir::prim::{Elementwise, Movement};
use ir::reference::evaluate;
use ir::tensor::Tensor;
use ir::types::{Axis, DType, Type};
use passes::ad::{jvp, vjp};
use std::collections::BTreeMap;

pub type Fields = BTreeMap<Name, Tensor>;

pub fn text(f: &Function) -> String {
    ir::text::print_function(f)
}

pub fn run(f: &Function, x: &Fields, dims: &Bindings) -> Fields {
    let args: Vec<Tensor> = f.params.iter().map(|p| x.get(&p.name).unwrap_or_else(|| panic!("no {}\n{}", p.name, text(f))).clone()).collect();
    let out = evaluate(f, &args, dims).unwrap_or_else(|e| panic!("{e}\n{}", text(f)));
    f.results.iter().map(|r| r.name.clone()).zip(out).collect()
}

/// Inputs of `f`, normal.
pub fn draw(f: &Function, dims: &Bindings, seed: u64) -> Fields {
    f.params.iter().map(|p| p.name.clone()).zip(Random(seed).inputs(f, dims)).collect()
}

pub fn dot(a: &Tensor, b: &Tensor) -> (f64, f64) {
    assert_eq!(a.shape(), b.shape());
    let products: Vec<f64> = a.to_f64().iter().zip(b.to_f64()).map(|(a, b)| a * b).collect();
    (products.iter().sum(), products.iter().map(|p| p.abs()).sum())
}

/// The new names that a transform appended to `f`'s.
pub fn new_names(old: &Function, new: &Function, params: bool) -> Vec<Name> {
    let (o, n) = if params { (&old.params, &new.params) } else { (&old.results, &new.results) };
    n[o.len()..].iter().map(|p| p.name.clone()).collect()
}

/// |⟨Jt, c⟩ − ⟨t, Jᵀc⟩| over the sum of absolute values; `None` if no result moves.
pub fn adjoint_error(f: &Function, wrt: &[Name], x: &Fields, dims: &Bindings, seed: u64) -> Option<f64> {
    let forward = jvp(f, wrt).ok()?;
    let backward = vjp(f, wrt).unwrap_or_else(|e| panic!("{e}\n{}", text(f)));
    ir::verify::verify(&backward).unwrap_or_else(|e| panic!("{}\n{}", e[0], text(&backward)));
    let with = |g: &Function, seed: u64| -> Fields {
        let mut all = draw(g, dims, seed);
        all.extend(x.clone());
        all
    };
    let (t, c) = (with(&forward, seed), with(&backward, seed ^ 1));
    let (jt, jc) = (run(&forward, &t, dims), run(&backward, &c, dims));
    // The primal results are the same.
    for r in &f.results {
        assert_eq!(jt[&r.name].to_f64(), jc[&r.name].to_f64(), "{}: {}", f.name, r.name);
    }
    let (tangents, cotangents) = (new_names(f, &forward, false), new_names(f, &backward, true));
    assert_eq!(tangents.len(), cotangents.len(), "{}: one cotangent for each tangent\n{}", f.name, text(&backward));
    let (mut left, mut right, mut size) = (0.0, 0.0, 0.0);
    for (a, b) in tangents.iter().zip(&cotangents) {
        let (s, m) = dot(&jt[a], &c[b]);
        left += s;
        size += m;
    }
    for (a, b) in new_names(f, &forward, true).iter().zip(&new_names(f, &backward, false)) {
        let (s, m) = dot(&t[a], &jc[b]);
        right += s;
        size += m;
    }
    assert!(left.is_finite() && right.is_finite(), "{}: {left} {right}", f.name);
    Some((left - right).abs() / size.max(1e-300))
}

pub fn check_adjoint(f: &Function, wrt: &[Name], x: &Fields, dims: &Bindings, seed: u64) {
    if let Some(e) = adjoint_error(f, wrt, x, dims, seed) {
        assert!(e < 1e-12, "{}: off by {e:e}\n{}\n{}", f.name, text(f), text(&vjp(f, wrt).unwrap()));
    }
}

/// The law for `f`, for its tangent program and for its cotangent program, along everything that is a float.
pub fn check_orders(f: &Function, wrt: &[Name], dims: &Bindings, seed: u64) {
    let all = |g: &Function| g.params.iter().filter(|p| g.ty(p.var).dtype.is_float()).map(|p| p.name.clone()).collect::<Vec<_>>();
    check_adjoint(f, wrt, &draw(f, dims, seed), dims, seed + 1);
    let Ok(forward) = jvp(f, wrt) else { return };
    let backward = vjp(f, wrt).unwrap();
    for g in [forward, backward] {
        check_adjoint(&g, wrt, &draw(&g, dims, seed), dims, seed + 2);
        check_adjoint(&g, &all(&g), &draw(&g, dims, seed), dims, seed + 3);
    }
}

pub fn repository() -> Vec<Function> {
    let read = |p: &str| std::fs::read_to_string(format!("{}/../{p}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let mut all = vec![];
    for p in ["examples/attention.pf", "examples/attention_variants.pf", "examples/cross_entropy.pf", "examples/gelu_linear.pf", "examples/norm_modulate.pf", "tests/programs/layers.pf"] {
        all.extend(parse(&read(p)));
    }
    for p in ["scores.pf", "rows.pf", "long_axis.pf", "refused.pf"] {
        all.extend(parse(&source(p)));
    }
    all.extend(parse(&std::fs::read_to_string(format!("{}/tests/programs_vjp/movement.pf", env!("CARGO_MANIFEST_DIR"))).unwrap()));
    all
}

/// Small sizes that divide what they must.
pub fn small(f: &Function) -> Bindings {
    let divisible = ["H", "W", "D", "T"];
    f.dims().into_iter().enumerate().map(|(i, d)| (d.clone(), if divisible.contains(&&*d) { 4 } else if &*d == "G" { 2 } else { 2 + (i as i64 % 3) })).collect()
}

/// A random program over a few axes of fixed sizes, all operations of all families.
pub fn drawn(seed: u64) -> Function {
    let mut r = Random(seed);
    let mut b = Builder::new("drawn");
    let fixed = |n: &str, k: i64| Axis::new(n, Dim::fixed(k));
    let axes = [fixed("A", 2), fixed("B", 3), fixed("C", 6)];
    let mut values = vec![];
    for i in 0..3 {
        let own: Vec<Axis> = axes.iter().filter(|_| r.below(3) > 0).cloned().collect();
        values.push(b.param(format!("x{i}"), Type::new(DType::F64, own)));
    }
    for _ in 0..3 + r.below(12) {
        let pick = |r: &mut Random, values: &Vec<Var>| values[values.len() - 1 - r.below(values.len().min(5))];
        let (x, y) = (pick(&mut r, &values), pick(&mut r, &values));
        let own: Vec<Axis> = b.ty(x).axes.clone();
        let axis = (!own.is_empty()).then(|| own[r.below(own.len())].clone());
        let out = match (r.below(22), axis) {
            (0, _) => b.add(x, y),
            (1, _) => b.sub(x, y),
            (2 | 3, _) => b.mul(x, y),
            (4, _) => b.elementwise(Elementwise::Tanh, &[x]),
            (5, _) => b.elementwise(Elementwise::Sin, &[x]),
            (6, _) => {
                let t = b.elementwise(Elementwise::Tanh, &[x]).unwrap();
                b.elementwise(Elementwise::Exp, &[t])
            }
            (7, _) => {
                let s = b.mul(y, y).unwrap();
                let one = b.constant(1.0, DType::F64);
                let d = b.add(s, one).unwrap();
                b.div(x, d)
            }
            (8, _) => b.elementwise(Elementwise::Neg, &[x]),
            (9, _) => b.elementwise(Elementwise::Max, &[x, y]),
            (10, Some(a)) => b.reduce_sum(x, &[a.name]),
            (11, Some(a)) => b.reduce_max(x, &[a.name]),
            (12 | 13, Some(a)) => b.contract(x, y, &[a.name]),
            (14, Some(a)) => {
                let at = b.iota(a).unwrap();
                let two = b.constant(1.0, DType::I32);
                let c = b.elementwise(Elementwise::Gt, &[at, two]).unwrap();
                b.elementwise(Elementwise::Select, &[c, x, y])
            }
            (15, Some(a)) if a.size.as_fixed() > Some(2) => {
                let n = a.size.as_fixed().unwrap();
                let (start, len) = (r.below(n as usize - 1) as i64, 2);
                let m = Movement::Slice { axis: a.name.clone(), to: fixed("S", len), start: Dim::fixed(start) };
                if own.iter().any(|o| &*o.name == "S") { continue }
                // Half of the time both a part and the whole are used.
                let s = b.movement(m, &[x]).unwrap();
                b.reduce_sum(s, &["S".into()]).and_then(|t| b.mul(t, x))
            }
            (16, Some(a)) => {
                let at = r.below(a.size.as_fixed().unwrap() as usize) as i64;
                b.movement(Movement::Index { axis: a.name, at: Dim::fixed(at) }, &[x])
            }
            (17, Some(a)) if &*a.name == "C" => {
                // Split, turn around, merge.
                let s = b.movement(Movement::Split { axis: "C".into(), into: vec![fixed("P", 2), fixed("Q", 3)] }, &[x]).unwrap();
                b.movement(Movement::Merge { axes: vec!["Q".into(), "P".into()], into: a }, &[s])
            }
            (18, Some(a)) if &*a.name == "C" => {
                // Halves, one of them changed, the other way round.
                let half = |b: &mut Builder, k: i64, n: &str| b.movement(Movement::Slice { axis: "C".into(), to: fixed(n, 3), start: Dim::fixed(k) }, &[x]).unwrap();
                let (lo, hi) = (half(&mut b, 0, "L"), half(&mut b, 3, "U"));
                let lo = b.elementwise(Elementwise::Sin, &[lo]).unwrap();
                b.movement(Movement::Concat { axes: vec!["U".into(), "L".into()], into: a }, &[hi, lo])
            }
            (19, Some(a)) if &*a.name == "A" => {
                let at = |b: &mut Builder, k: i64| b.movement(Movement::Index { axis: "A".into(), at: Dim::fixed(k) }, &[x]).unwrap();
                let (p, q) = (at(&mut b, 0), at(&mut b, 1));
                let p = b.mul(p, q).unwrap();
                let v = b.movement(Movement::Stack(a), &[p, q]).unwrap();
                Ok(v)
            }
            (20, Some(a)) => {
                let t = b.reduce_sum(x, std::slice::from_ref(&a.name)).unwrap();
                b.movement(Movement::Broadcast(vec![a]), &[t])
            }
            (21, _) => {
                let s = b.stop_gradient(x).unwrap();
                b.sub(x, s).and_then(|d| b.add(d, y))
            }
            _ => continue,
        };
        values.push(out.unwrap_or_else(|e| panic!("{e}")));
    }
    let last = values.len() - 1;
    for (i, v) in [values[last], values[last.saturating_sub(1)], values[last / 2]].into_iter().enumerate() {
        // A result that is a parameter has its name.
        if !b.function().params.iter().any(|p| p.var == v) {
            b.result(format!("y{i}"), v);
        }
    }
    b.finish()
}
