//! The laws have teeth: with the sign of any one partial derivative flipped, or any one term dropped, the tangent no longer is the
//! limit of central differences. Operations and operands come from the table, so a new one is mutated too.

use ir::builder::Builder;
use ir::dim::{Bindings, Dim, Name};
use ir::graph::{Function, Var};
use ir::prim::{Elementwise, Kind, Movement, Prim, ReduceKind};
use ir::reference::evaluate;
use ir::tensor::Tensor;
use ir::types::{Axis, DType, Type};
use passes::ad::{Bend, jvp_with};

const SIZES: [(&str, i64); 3] = [("N", 6), ("M", 4), ("K", 3)];

fn axes(names: &[&str]) -> Vec<Axis> {
    names.iter().map(|n| Axis::sym(*n)).collect()
}

/// `y = op(x0, x1, …)`; the operands' types, and where their elements are drawn from.
fn single(op: &Prim, args: &[(DType, &[&str])]) -> Function {
    let mut b = Builder::new(op.name());
    let vars: Vec<Var> = args.iter().enumerate().map(|(i, (d, a))| b.param(format!("x{i}"), Type::new(*d, axes(a)))).collect();
    let y = b.push(op.clone(), &vars).unwrap();
    b.result("y", y);
    b.finish()
}

/// A program of one equation for every operation that has a derivative.
fn catalogue() -> Vec<Function> {
    const F: DType = DType::F64;
    let mut all: Vec<Function> = Elementwise::ALL
        .iter()
        .filter(|e| e.kind() != Kind::Zero)
        .map(|e| {
            // To a narrower type it rounds, which no difference quotient survives.
            let e = if let Elementwise::Convert(_) = e { Elementwise::Convert(F) } else { *e };
            let args = (0..e.arity()).map(|i| (if e == Elementwise::Select && i == 0 { DType::Bool } else { F }, &["N"][..]));
            single(&Prim::Elementwise(e), &args.collect::<Vec<_>>())
        })
        .collect();
    let m = |m: Movement| Prim::Movement(m);
    let half = Axis::new("H", Dim::sym("N").checked_div(&Dim::fixed(2)).unwrap());
    let two = Axis::new("T", Dim::fixed(2));
    let others: Vec<(Prim, Vec<(DType, &[&str])>)> = vec![
        (Prim::Contract(vec!["K".into()]), vec![(F, &["N", "K"]), (F, &["K", "M"])]),
        (Prim::Reduce(ReduceKind::Sum, vec!["N".into()]), vec![(F, &["N", "K"])]),
        (Prim::Reduce(ReduceKind::Max, vec!["N".into()]), vec![(F, &["N", "K"])]),
        (m(Movement::Rename { from: "N".into(), to: Axis::new("R", Dim::sym("N")) }), vec![(F, &["N"])]),
        (m(Movement::Split { axis: "N".into(), into: vec![half.clone(), two.clone()] }), vec![(F, &["N"])]),
        (m(Movement::Merge { axes: vec!["N".into(), "K".into()], into: Axis::new("P", &Dim::sym("N") * &Dim::sym("K")) }), vec![(F, &["N", "K"])]),
        (m(Movement::Permute(vec!["K".into(), "N".into()])), vec![(F, &["N", "K"])]),
        (m(Movement::Broadcast(axes(&["M"]))), vec![(F, &["N"])]),
        (m(Movement::Slice { axis: "N".into(), to: half, start: Dim::fixed(1) }), vec![(F, &["N"])]),
        (m(Movement::Index { axis: "N".into(), at: Dim::fixed(2) }), vec![(F, &["N", "K"])]),
        (m(Movement::Concat { axes: vec!["N".into(), "M".into()], into: Axis::new("C", &Dim::sym("N") + &Dim::sym("M")) }), vec![(F, &["N"]), (F, &["M"])]),
        (m(Movement::Stack(two)), vec![(F, &["N"]), (F, &["N"])]),
    ];
    all.extend(others.iter().map(|(op, args)| single(op, args)));
    all
}

fn floats(f: &Function) -> Vec<Name> {
    f.params.iter().filter(|p| f.ty(p.var).dtype.is_float()).map(|p| p.name.clone()).collect()
}

/// The law: the JVP along all floats is the limit of central differences, at points of the operation's domain.
fn is_the_derivative(f: &Function, bend: Bend) -> bool {
    let dims: Bindings = SIZES.iter().map(|(n, k)| ((*n).into(), *k)).collect();
    let Ok(g) = jvp_with(f, &floats(f), bend) else { return false };
    let elementwise = if let Prim::Elementwise(e) = f.eqns[0].op { Some(e) } else { None };
    let mut state = 3u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / f64::from(1u32 << 31)
    };
    let (mut x, mut t) = (vec![], vec![]);
    for (i, p) in f.params.iter().enumerate() {
        let ty = f.ty(p.var);
        let shape = ty.sizes(&dims).unwrap();
        let (lo, hi) = elementwise.map_or((-1.0, 1.0), |e| e.domain(i));
        let n = shape.iter().product::<usize>();
        let values: Vec<f64> = (0..n).map(|k| if ty.dtype == DType::Bool { (k % 2) as f64 } else { lo + (hi - lo) * uniform() }).collect();
        x.push(Tensor::from_f64(ty.dtype, &shape, &values).unwrap());
        if ty.dtype.is_float() {
            t.push(Tensor::from_f64(DType::F64, &shape, &(0..n).map(|_| 0.5 + uniform()).collect::<Vec<_>>()).unwrap());
        }
    }
    let moved = |h: f64| -> Vec<f64> {
        let mut along = t.iter();
        let at = x.iter().map(|x| match x.dtype().is_float() {
            true => {
                let t = along.next().unwrap();
                let v: Vec<f64> = x.to_f64().iter().zip(t.to_f64()).map(|(x, t)| x + h * t).collect();
                Tensor::from_f64(DType::F64, x.shape(), &v).unwrap()
            }
            false => x.clone(),
        });
        evaluate(f, &at.collect::<Vec<_>>(), &dims).unwrap()[0].to_f64()
    };
    let h = 1e-5;
    let want: Vec<f64> = moved(h).iter().zip(moved(-h)).map(|(a, b)| (a - b) / (2.0 * h)).collect();
    let inputs: Vec<Tensor> = x.iter().chain(&t).cloned().collect();
    let Some(r) = g.results.iter().position(|r| &*r.name == "y.t") else { return false };
    let got = evaluate(&g, &inputs, &dims).unwrap()[r].to_f64();
    got.iter().zip(&want).all(|(a, b)| (a - b).abs() <= 1e-6 * (1.0 + b.abs()))
}

#[test]
fn the_rules_as_they_are_are_right() {
    for f in catalogue() {
        assert!(is_the_derivative(&f, &|_, _, _, t| Ok(Some(t))), "{}", f.name);
    }
}

#[test]
fn a_flipped_sign_is_found() {
    let mut mutants = 0;
    for f in catalogue() {
        for operand in (0..f.params.len()).filter(|i| f.ty(f.params[*i].var).dtype.is_float()) {
            let flip: Bend = &|b, _, i, t| if i == operand { b.elementwise(Elementwise::Neg, &[t]).map(Some) } else { Ok(Some(t)) };
            assert!(!is_the_derivative(&f, flip), "the sign of partial {operand} of {} may be wrong, and no law fails", f.name);
            mutants += 1;
        }
    }
    // 20 operations of the table have 28 float operands; contractions, reductions and movements, 15.
    assert_eq!(mutants, 28 + 15);
}

#[test]
fn a_dropped_term_is_found() {
    for f in catalogue() {
        for operand in (0..f.params.len()).filter(|i| f.ty(f.params[*i].var).dtype.is_float()) {
            let drop: Bend = &|_, _, i, t| Ok(if i == operand { None } else { Some(t) });
            assert!(!is_the_derivative(&f, drop), "term {operand} of {} may be missing, and no law fails", f.name);
        }
    }
}
