//! The normalizer: same meaning, and the forms that streaming needs.

use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::tensor::{Tensor, relative_error};
use passes::ad::jvp;
use passes::simplify::normalize;

fn programs() -> Vec<Function> {
    ["examples/attention.pf", "examples/attention_variants.pf", "tests/programs/layers.pf"]
        .iter()
        .flat_map(|p| {
            let text = std::fs::read_to_string(format!("{}/{p}", env!("CARGO_MANIFEST_DIR"))).unwrap();
            ir::text::parse(&text).unwrap().functions
        })
        .collect()
}

fn floats(f: &Function) -> Vec<Name> {
    f.params.iter().filter(|p| f.ty(p.var).dtype.is_float() && !p.name.contains(".t")).map(|p| p.name.clone()).collect()
}

/// Deterministic values in −1..1, or 0 and 1 for lengths.
fn inputs(f: &Function, dims: &Bindings) -> Vec<Tensor> {
    let mut state = 1u64;
    f.params
        .iter()
        .map(|p| {
            let ty = f.ty(p.var);
            let shape = ty.sizes(dims).unwrap();
            let data: Vec<f64> = (0..shape.iter().product())
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let u = (state >> 33) as f64 / f64::from(1u32 << 30) - 1.0;
                    if ty.dtype.is_float() { u } else { (u + 2.0).floor() }
                })
                .collect();
            Tensor::from_f64(if ty.dtype.is_float() { ir::types::DType::F64 } else { ty.dtype }, &shape, &data).unwrap()
        })
        .collect()
}

#[test]
fn meaning_is_kept() {
    for f in programs() {
        let first = jvp(&f, &floats(&f)).unwrap();
        let second = jvp(&first, &floats(&f)).ok();
        for g in [Some(f), Some(first), second].into_iter().flatten() {
            let n = normalize(&g).unwrap();
            ir::verify::verify(&n).unwrap_or_else(|e| panic!("{}: {}\n{}", g.name, e[0], ir::text::print_function(&n)));
            let dims: Bindings = g.dims().into_iter().enumerate().map(|(i, d)| (d.clone(), if matches!(&*d, "H" | "W" | "D" | "T") { 4 } else if &*d == "G" { 2 } else { 2 + (i as i64 % 3) })).collect();
            let x = inputs(&g, &dims);
            let (a, b) = (ir::reference::evaluate(&g, &x, &dims).unwrap(), ir::reference::evaluate(&n, &x, &dims).unwrap());
            for ((a, b), r) in a.iter().zip(&b).zip(&g.results) {
                let e = relative_error(b, a);
                assert!(e < 1e-11, "{} {}: {e:e}\n{}", g.name, r.name, ir::text::print_function(&n));
            }
        }
    }
}

/// Reductions over `axis`.
fn reductions(f: &Function, axis: &str) -> usize {
    use ir::prim::Prim;
    f.eqns.iter().filter(|e| matches!(&e.op, Prim::Reduce(_, a) | Prim::Contract(a) if a.iter().any(|n| &**n == axis))).count()
}

#[test]
fn invariant_factors_leave_the_sums() {
    let f = &programs()[0];
    // max, Σp, Σpv; and for the tangent Σp·ṡ, Σp·ṡ·v and Σp·v̇, the last two only used as one sum.
    assert_eq!(reductions(&normalize(f).unwrap(), "J"), 3);
    assert_eq!(reductions(&normalize(&jvp(f, &floats(f)).unwrap()).unwrap(), "J"), 6);
}
