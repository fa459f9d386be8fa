//! Laws over the operation table: they hold for every present and future operation.

use ir::builder::Builder;
use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::prim::{Elementwise, Kind};
use ir::reference::evaluate;
use ir::tensor::Tensor;
use ir::types::{Axis, DType, Type};
use proptest::prelude::*;

/// `y = op(x0, x1, …)` over one axis, with `cond` for the condition of a select.
fn single(op: Elementwise) -> Function {
    let mut b = Builder::new("single");
    let ty = Type::new(DType::F64, vec![Axis::sym("N")]);
    let args: Vec<_> = (0..op.arity())
        .map(|i| {
            let dtype = if op == Elementwise::Select && i == 0 { DType::Bool } else { DType::F64 };
            b.param(format!("x{i}"), Type::new(dtype, ty.axes.clone()))
        })
        .collect();
    let y = b.elementwise(op, &args).unwrap();
    b.result("y", y);
    b.finish()
}

fn floats(f: &Function) -> Vec<Name> {
    f.params.iter().filter(|p| f.ty(p.var).dtype.is_float()).map(|p| p.name.clone()).collect()
}

fn column(values: &[f64]) -> Tensor {
    Tensor::from_f64(DType::F64, &[values.len()], values).unwrap()
}

fn run(f: &Function, args: &[Tensor]) -> Vec<Vec<f64>> {
    let dims: Bindings = [("N".into(), args[0].shape()[0] as i64)].into();
    evaluate(f, args, &dims).unwrap().iter().map(Tensor::to_f64).collect()
}

/// Operations with a derivative, converts and truth values aside.
fn smooth() -> Vec<Elementwise> {
    Elementwise::ALL.into_iter().filter(|e| e.kind() != Kind::Zero && !matches!(e, Elementwise::Convert(_))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// jvp(f)(x, t) is the limit of central differences, for f and for its own tangent: first and second order.
    #[test]
    fn jvp_is_the_derivative(unit in prop::collection::vec(0.0f64..1.0, 12)) {
        for op in smooth() {
            let f = single(op);
            let g = passes::ad::jvp(&f, &floats(&f)).unwrap();
            let n = 2;
            let mut at = unit.iter().cycle();
            let mut x: Vec<Tensor> = vec![];
            for i in 0..op.arity() {
                let (lo, hi) = op.domain(i);
                let values: Vec<f64> = (0..n).map(|_| lo + (hi - lo) * at.next().unwrap()).collect();
                x.push(if op == Elementwise::Select && i == 0 { Tensor::from_f64(DType::Bool, &[n], &[0.0, 1.0]).unwrap() } else { column(&values) });
            }
            let float_at: Vec<usize> = (0..x.len()).filter(|i| x[*i].dtype().is_float()).collect();
            // Kinks: keep away from ties, where the derivative is a convention.
            let kink = match op {
                Elementwise::Max | Elementwise::Min => x[0].to_f64().iter().zip(x[1].to_f64()).any(|(a, b)| (a - b).abs() < 1e-2),
                Elementwise::Abs => x[0].to_f64().iter().any(|a| a.abs() < 1e-2),
                _ => false,
            };
            if kink { continue }
            let t: Vec<Tensor> = float_at.iter().map(|_| column(&[0.3, -0.7])).collect();
            let moved = |h: f64| -> Vec<Tensor> {
                let mut y = x.clone();
                for (k, i) in float_at.iter().enumerate() {
                    let v: Vec<f64> = x[*i].to_f64().iter().zip(t[k].to_f64()).map(|(x, t)| x + h * t).collect();
                    y[*i] = column(&v);
                }
                y
            };
            let difference = |f: &Function, extra: &[Tensor], result: usize| -> Vec<f64> {
                let h = 1e-4;
                let side = |h: f64| run(f, &moved(h).into_iter().chain(extra.iter().cloned()).collect::<Vec<_>>())[result].clone();
                // Fourth order: (8(f(h) − f(−h)) − (f(2h) − f(−2h))) / 12h.
                let (a, b, c, d) = (side(h), side(-h), side(2.0 * h), side(-2.0 * h));
                (0..a.len()).map(|i| (8.0 * (a[i] - b[i]) - (c[i] - d[i])) / (12.0 * h)).collect()
            };
            let all: Vec<Tensor> = x.iter().cloned().chain(t.iter().cloned()).collect();
            let got = &run(&g, &all)[1];
            for (a, b) in got.iter().zip(difference(&f, &[], 0)) {
                prop_assert!((a - b).abs() <= 1e-7 * (1.0 + b.abs()), "{op:?}: jvp {a}, difference {b}");
            }
            // Second order: the tangent's tangent along the same direction, t held fixed.
            let Ok(g2) = passes::ad::jvp(&g, &floats(&f)) else { continue };
            let Some(second) = g2.results.iter().position(|r| &*r.name == "y.t.t2") else { continue };
            let all2: Vec<Tensor> = all.iter().cloned().chain(t.iter().cloned()).collect();
            let got = &run(&g2, &all2)[second];
            for (a, b) in got.iter().zip(difference(&g, &t, 1)) {
                prop_assert!((a - b).abs() <= 1e-6 * (1.0 + b.abs()), "{op:?}: second-order jvp {a}, difference {b}");
            }
        }
    }
}

#[test]
fn a_zero_tangent_gives_exactly_zero() {
    for op in smooth() {
        let f = single(op);
        let g = passes::ad::jvp(&f, &floats(&f)).unwrap();
        let mut x: Vec<Tensor> = (0..op.arity()).map(|i| column(&[op.domain(i).0 * 0.9 + op.domain(i).1 * 0.1])).collect();
        if op == Elementwise::Select {
            x[0] = Tensor::from_f64(DType::Bool, &[1], &[1.0]).unwrap();
        }
        let zeros = floats(&f).len();
        x.extend((0..zeros).map(|_| column(&[0.0])));
        assert_eq!(run(&g, &x)[1], vec![0.0], "{op:?}");
    }
}

#[test]
fn an_inactive_operand_has_no_tangent() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/attention.pf")).unwrap();
    let f = &ir::text::parse(&text).unwrap().functions[0];
    let contractions = |wrt: &[&str]| {
        let g = passes::ad::jvp(f, &wrt.iter().map(|n| (*n).into()).collect::<Vec<_>>()).unwrap();
        g.eqns.iter().filter(|e| e.op.name() == "contract").count()
    };
    // Two of the primal; one a bilinear operand that moves: 6 in all, 4 with q alone.
    assert_eq!((contractions(&["q", "k", "v"]), contractions(&["q"])), (6, 4));
}

#[test]
fn refusals_name_the_reason() {
    let parse = |t: &str| ir::text::parse(t).unwrap().functions[0].clone();
    let f = parse("fn f(x: f32[N], n: i32[N]) -> (y: f32[N]) { y = stop_gradient(x) }");
    let message = |wrt: &[&str]| passes::ad::jvp(&f, &wrt.iter().map(|n| (*n).into()).collect::<Vec<_>>()).unwrap_err().to_string();
    assert_eq!(message(&["x"]), "jvp: no result of `f` depends differentiably on x");
    assert_eq!(message(&["z"]), "jvp: `z` is not a parameter of `f` (hint: its parameters are x, n)");
    assert_eq!(message(&["n"]), "jvp: `n` is i32[N], and only floats have tangents");
    assert_eq!(message(&["x", "x"]), "jvp: `x` is named twice");
}
