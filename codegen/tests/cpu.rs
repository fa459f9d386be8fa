//! CPU code against plain loops in f64, and against the interpreter of block programs.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use codegen::Target;
use ir::dim::{Bindings, Dim};
use ir::prim::Elementwise;
use ir::tensor::Tensor;
use ir::tile::*;
use ir::types::DType;
use support::*;

/// The largest error relative to the largest number.
fn error(got: &Tensor, want: &Tensor) -> f64 {
    error_from(got, want, 1e-30)
}

/// The largest error relative to the largest number, or to `least` if that is larger.
fn error_from(got: &Tensor, want: &Tensor, least: f64) -> f64 {
    let (g, w) = (got.to_f64(), want.to_f64());
    let scale = w.iter().fold(least, |m, x| m.max(x.abs()));
    g.iter().zip(&w).map(|(g, w)| if g.is_nan() != w.is_nan() { f64::INFINITY } else if g.is_nan() { 0.0 } else { (g - w).abs() / scale }).fold(0.0, f64::max)
}

/// Compiles `p`, runs it, and compares to the interpreter in f64.
fn agrees(p: &Program, sizes: &[&[(&str, i64)]], tolerance: f64) {
    agrees_on(p, sizes, tolerance, 1e-30, inputs);
}

fn agrees_on(p: &Program, sizes: &[&[(&str, i64)]], tolerance: f64, least: f64, make: impl Fn(&Program, &Bindings, u64) -> Vec<Tensor>) {
    let k = Kernel::new(p, &Target::host().unwrap());
    let reference = exact(p);
    for s in sizes {
        let dims = bind(s);
        let x = make(p, &dims, 7);
        let want = ir::tile::interp::run(&reference, &dims, &x).unwrap_or_else(|e| panic!("{}: {e:?}", p.name));
        let most = k.compiled.artifact.signature.max_panels;
        for panels in [1, 2, 3, most] {
            if panels > most {
                continue;
            }
            let got = k.run(&dims, &x, panels);
            for (n, (g, w)) in got.iter().zip(&want).enumerate() {
                let e = error_from(g, w, least);
                assert!(e <= tolerance, "{} {s:?} panels {panels}: output {n} is off by {e:e}\n{p}", p.name);
            }
        }
    }
}

/// Rows of `n × d` in f64, straightforwardly: outputs and tangents.
fn attention(x: &[Tensor], b: usize, h: usize, n: usize, m: usize, d: usize, causal: bool) -> (Vec<f64>, Vec<f64>) {
    let x: Vec<Vec<f64>> = x.iter().map(Tensor::to_f64).collect();
    let zero = vec![0.0; b * h * n.max(m) * d];
    let get = |i: usize| x.get(i).unwrap_or(&zero);
    let (q, k, v, qt, kt, vt) = (get(0), get(1), get(2), get(3), get(4), get(5));
    let (mut o, mut ot) = (vec![0.0; b * h * n * d], vec![0.0; b * h * n * d]);
    let scale = 1.0 / (d as f64).sqrt();
    for g in 0..b * h {
        for i in 0..n {
            let seen = if causal { (i + 1).min(m) } else { m };
            let dot = |a: &[f64], c: &[f64], j: usize| (0..d).map(|e| a[(g * n + i) * d + e] * c[(g * m + j) * d + e]).sum::<f64>() * scale;
            let s: Vec<f64> = (0..seen).map(|j| dot(q, k, j)).collect();
            let st: Vec<f64> = (0..seen).map(|j| dot(qt, k, j) + dot(q, kt, j)).collect();
            let top = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let p: Vec<f64> = s.iter().map(|s| (s - top).exp()).collect();
            let l: f64 = p.iter().sum();
            let mean: f64 = p.iter().zip(&st).map(|(p, t)| p * t).sum::<f64>() / l;
            for e in 0..d {
                let at = (g * n + i) * d + e;
                for j in 0..seen {
                    let w = p[j] / l;
                    o[at] += w * v[(g * m + j) * d + e];
                    ot[at] += w * (st[j] - mean) * v[(g * m + j) * d + e] + w * vt[(g * m + j) * d + e];
                }
            }
        }
    }
    (o, ot)
}

fn close(got: &Tensor, want: &[f64], tolerance: f64, what: &str) {
    let want = Tensor::from_f64(DType::F64, got.shape(), want).unwrap();
    let e = error(got, &want);
    assert!(e <= tolerance, "{what}: off by {e:e}");
}

fn flash(head: usize, stream: usize, causal: bool, tangents: bool, sizes: &[(i64, i64)]) {
    let f = Flash { head, stream, causal, tangents, dtype: F32, sequence_first: false };
    let p = f.program();
    let k = Kernel::new(&p, &Target::host().unwrap());
    for &(n, m) in sizes {
        let dims = bind(&[("B", 1), ("H", 2), ("I", n), ("J", m)]);
        let x = inputs(&p, &dims, 3);
        let (o, ot) = attention(&x, 1, 2, n as usize, m as usize, head, causal);
        for panels in [1, 3] {
            let got = k.run(&dims, &x, panels);
            close(&got[0], &o, 3e-6, &format!("o, head {head}, {n} x {m}, {panels} panels"));
            if tangents {
                close(&got[1], &ot, 6e-6, &format!("o.t, head {head}, {n} x {m}, {panels} panels"));
            }
        }
    }
}

#[test]
fn streamed_forward() {
    flash(64, 64, false, false, &[(37, 37), (100, 7), (1, 1), (200, 300)]);
    flash(12, 32, false, false, &[(37, 70)]);
}

#[test]
fn streamed_tangent() {
    flash(64, 64, false, true, &[(37, 37), (100, 7), (1, 1), (130, 300)]);
    flash(33, 40, false, true, &[(50, 90)]);
    flash(1, 16, false, true, &[(50, 33)]);
    flash(128, 64, false, true, &[(50, 70)]);
}

#[test]
fn streamed_causal() {
    flash(16, 32, true, false, &[(37, 37), (100, 100), (1, 1), (100, 300)]);
    flash(28, 32, true, true, &[(37, 37), (300, 300), (70, 20)]);
}

#[test]
fn other_memory_orders_and_types() {
    for dtype in [F32, DType::BF16, DType::F16] {
        for (head, sequence_first) in [(64, true), (24, true), (80, false)] {
            let p = Flash { head, stream: 32, causal: false, tangents: true, dtype, sequence_first }.program();
            let tolerance = if dtype == F32 { 6e-6 } else { 1e-2 };
            agrees(&p, &[&[("B", 2), ("H", 2), ("I", 37), ("J", 45)]], tolerance);
        }
    }
}

#[test]
fn matmul_with_epilogue() {
    let sizes: [&[(&str, i64)]; 4] = [
        &[("M", 37), ("N", 70), ("K", 100)],
        &[("M", 1), ("N", 1), ("K", 1)],
        &[("M", 100), ("N", 33), ("K", 7)],
        &[("M", 64), ("N", 64), ("K", 96)],
    ];
    for lanes_m in [true, false] {
        for k_major in [true, false] {
            agrees(&Linear { lanes_m, k_major, block: 32, stream: 48, full: None }.program(), &sizes, 2e-6);
            agrees(&Linear { lanes_m, k_major, block: 32, stream: 48, full: Some(33) }.program(), &sizes, 2e-6);
        }
    }
}

#[test]
fn resident_rows() {
    for features in [1, 7, 8, 12, 16, 24, 28, 33, 72, 80, 96, 256, 512, 1000] {
        for rows in [Role::Block(4), Role::Grid] {
            agrees(&row_norm(features, F32, rows, F32), &[&[("R", 1)], &[("R", 7)], &[("R", 37)]], 3e-6);
        }
    }
    agrees(&row_norm(100, DType::BF16, Role::Block(4), F32), &[&[("R", 5)]], 1e-2);
    agrees(&row_norm(100, DType::F16, Role::Block(4), F32), &[&[("R", 5)]], 1e-3);
    agrees(&row_norm(50, DType::F64, Role::Block(4), DType::F64), &[&[("R", 5)]], 1e-6);
}

/// Rows stored past the caches, from whatever address they start at, are the rows that are stored into them.
#[test]
fn rows_past_the_caches() {
    let host = Target::host().unwrap();
    let (all, none) = (Target { llc: 0, ..host.clone() }, Target { llc: 1 << 40, ..host.clone() });
    let types = [(F32, F32), (DType::BF16, F32), (DType::F16, F32), (DType::F64, DType::F64), (F32, DType::F64)];
    for features in [65, 72, 80, 127, 128, 200, 333, 512, 1000, 1537] {
        for (dtype, compute) in types {
            let p = row_norm(features, dtype, Role::Block(4), compute);
            let (past, into) = (Kernel::new(&p, &all), Kernel::new(&p, &none));
            assert!(Kernel::text(&p, &all).contains("nontemporal"), "{features} {dtype}: no store goes past the caches");
            // Buffers end with a page, so that the number of rows moves their start.
            for rows in [1, 2, 3, 9] {
                let dims = bind(&[("R", rows)]);
                let x = inputs(&p, &dims, 3);
                let (a, b) = (past.run(&dims, &x, 1), into.run(&dims, &x, 1));
                for (a, b) in a.iter().zip(&b) {
                    assert!(a.to_bytes() == b.to_bytes(), "{features} features of {dtype}, {rows} rows");
                }
            }
        }
    }
}

#[test]
fn elementwise_over_two_axes() {
    use Elementwise::*;
    for lanes in 0..3 {
        for op in [Add, Sub, Mul, Max, Min] {
            agrees(&elementwise(op, lanes, F32), &[&[("R", 1), ("C", 1)], &[("R", 7), ("C", 37)], &[("R", 40), ("C", 1000)]], 1e-6);
        }
    }
}

/// One row of `f` of `x`, by code compiled here.
fn apply(op: Elementwise, compute: DType, x: &[f64], y: &[f64]) -> Vec<f64> {
    let p = elementwise(op, 1, compute);
    let k = Kernel::new(&p, &Target::host().unwrap());
    let dims = bind(&[("R", 1), ("C", x.len() as i64)]);
    let x = Tensor::from_f64(compute, &[1, x.len()], x).unwrap();
    let y = Tensor::from_f64(compute, &[x.len()], y).unwrap();
    k.run(&dims, &[x, y], 1)[0].to_f64()
}

#[test]
fn functions_are_accurate() {
    use Elementwise::*;
    let range = |a: f64, b: f64| (0..20000).map(|i| a + (b - a) * f64::from(i) / 19999.0).collect::<Vec<f64>>();
    let cases: [(Elementwise, Vec<f64>); 14] = [
        (Exp, range(-87.0, 88.0)), (Exp, range(-1.0, 1.0)), (Log, range(1e-6, 2.0)), (Log, range(0.5, 1e6)), (Sqrt, range(0.0, 100.0)),
        (Rsqrt, range(0.01, 100.0)), (Tanh, range(-10.0, 10.0)), (Tanh, range(-0.01, 0.01)), (Logistic, range(-80.0, 80.0)),
        (Sin, range(-1000.0, 1000.0)), (Cos, range(-1e5, 1e5)), (Sin, range(-0.1, 0.1)), (Erf, range(-5.0, 5.0)), (Erf, range(-0.01, 0.01)),
    ];
    for (compute, ulp) in [(F32, 2f64.powi(-23)), (DType::F64, 2f64.powi(-52))] {
        for (op, x) in &cases {
            // What the machine sees.
            let x: Vec<f64> = x.iter().map(|x| compute.round(*x)).collect();
            let got = apply(*op, compute, &x, &x);
            // Where the true value is near 0 by cancellation, an absolute error.
            let mut worst = (0.0, 0.0);
            for (x, g) in x.iter().zip(&got) {
                let want = op.eval(&[*x]);
                let scale = if matches!(op, Sin | Cos) { want.abs().max(1e-2) } else { want.abs().max(1e-37) };
                let e = (g - want).abs() / scale / ulp;
                if e > worst.0 || e.is_nan() {
                    worst = (e, *x);
                }
            }
            println!("{compute} {}: {:.2} ulp at {}", op.name(), worst.0, worst.1);
            let most = if compute == F32 { 2.5 } else { 6.0 };
            assert!(worst.0 <= most, "{compute} {}: {} ulp at {}", op.name(), worst.0, worst.1);
        }
    }
}

#[test]
fn conversions_round_to_nearest_even() {
    let x: Vec<f64> = (0..4000).map(|i| f64::from((f64::from(i) * 0.37 - 700.0) as f32) * 1.0009765625).chain([0.0, -0.0, f64::INFINITY, f64::NAN, 65504.0]).collect();
    let x: Vec<f64> = x.iter().map(|x| F32.round(*x)).collect();
    for to in [DType::BF16, DType::F16, F32] {
        for (x, g) in x.iter().zip(apply(Elementwise::Convert(to), F32, &x, &x)) {
            let want = F32.round(to.round(*x));
            assert!(want == g || want.is_nan() && g.is_nan(), "{x} as {to} is {g}, not {want}");
        }
    }
    let mut w = Write::new("integers", F32);
    let c = w.axis("c", "C", Role::Block(32));
    let (x, o) = (w.input("x", &["C"]), w.output("o", &["C"]));
    let x = w.load(x, &[c]);
    let i = w.map(Elementwise::Convert(DType::I32), &[x]);
    let two = w.define(DType::I32, &[], Op::Const(2.0));
    let (a, b) = (w.map(Elementwise::Max, &[i, two]), w.map(Elementwise::Abs, &[i]));
    let (p, q) = (w.map(Elementwise::Lt, &[a, b]), w.map(Elementwise::Eq, &[i, two]));
    let n = w.map(Elementwise::Not, &[q]);
    let both = w.map(Elementwise::And, &[p, n]);
    let either = w.map(Elementwise::Or, &[both, q]);
    let (m, s) = (w.map(Elementwise::Mul, &[a, b]), w.map(Elementwise::Sub, &[a, b]));
    let z = w.map(Elementwise::Select, &[either, m, s]);
    let z = w.map(Elementwise::Convert(F32), &[z]);
    let t = w.map(Elementwise::Convert(DType::Bool), &[x]);
    let t = w.map(Elementwise::Convert(F32), &[t]);
    let z = w.add(z, t);
    w.store(o, &[c], z);
    let p = w.finish();
    agrees_on(&p, &[&[("C", 77)]], 0.0, 1.0, |_, d, _| vec![Tensor::from_f64(F32, &[d["C"] as usize], &(0..d["C"]).map(|k| k as f64 * 0.25 - 9.0).collect::<Vec<_>>()).unwrap()]);
}

#[test]
fn functions_at_their_edges() {
    use Elementwise::*;
    let inf = f64::INFINITY;
    for compute in [F32, DType::F64] {
        let x = [0.0, -0.0, inf, -inf, f64::NAN, -1.0, 1.0, 1e4, -1e4, -3e38, 3e38];
        for op in [Exp, Log, Tanh, Erf, Logistic, Sqrt, Abs, Neg, Sin, Cos] {
            let got = apply(op, compute, &x, &x);
            for (x, g) in x.iter().zip(&got) {
                let want = op.eval(&[compute.round(*x)]);
                if matches!(op, Sin | Cos) && x.abs() > 1e5 && x.is_finite() {
                    continue;
                }
                let fine = want.is_nan() && g.is_nan() || want == *g || (want - g).abs() <= 3e-7 * want.abs();
                assert!(fine, "{compute} {}({x}) = {g}, not {want}", op.name());
            }
        }
        assert_eq!(apply(Exp, compute, &[-88.0], &[0.0])[0] == 0.0, compute == F32);
        let (a, b) = ([2.0, -2.0, -2.0, -2.0, 0.0, 0.0, 9.0, 1.5], [3.0, 3.0, 2.0, 0.5, 0.0, 2.0, 0.5, -2.5]);
        for (k, g) in apply(Pow, compute, &a, &b).iter().enumerate() {
            let want = a[k].powf(b[k]);
            assert!(want.is_nan() && g.is_nan() || (want - g).abs() <= 6e-7 * want.abs(), "{}^{} = {g}", a[k], b[k]);
        }
    }
}

/// A masked sum with lengths per batch entry, positions and truth values in memory.
#[test]
fn lengths_positions_and_masks() {
    let mut w = Write::new("masked", F32);
    let b = w.axis("b", "B", Role::Grid);
    let (i, j) = (w.axis("i", "I", Role::Block(16)), w.axis("j", "J", Role::Stream(16)));
    w.p.lanes = Some(i);
    let x = w.input("x", &["B", "I", "J"]);
    let keep = w.buffer("keep", DType::Bool, &["J"], Access::Input);
    let len = w.buffer("len", DType::I32, &["B"], Access::Input);
    let o = w.output("o", &["B", "I"]);
    let flag = w.buffer("flag", DType::Bool, &["B", "I"], Access::Output);
    let place = w.buffer("place", DType::I32, &["B", "I"], Access::Output);
    let n = w.load(len, &[b]);
    let short = || vec![Constraint { axes: vec![(j, -1)], constant: Dim::fixed(-1), scalars: vec![(n, 1)] }, at_least_zero(&[(i, 2), (j, -1)], Dim::fixed(5))];
    let zero = w.fill(&[i], 0.0);
    let s = w.stream(j, short(), &[zero], |w, c| {
        let x = w.load(x, &[b, i, j]);
        let k = w.load(keep, &[j]);
        let nothing = w.number(0.0);
        let x = w.map(Elementwise::Select, &[k, x, nothing]);
        let x = w.keep(x, 0.0, short());
        let s = w.sum(x, &[j]);
        vec![w.add(c[0], s)]
    })[0];
    w.store(o, &[b, i], s);
    let pos = w.define(DType::I32, &[i], Op::Position(i));
    let pb = w.define(DType::I32, &[], Op::Position(b));
    let sum = w.add(pos, pb);
    w.store(place, &[b, i], sum);
    let half = w.number(0.5);
    let big = w.map(Elementwise::Gt, &[s, half]);
    w.store(flag, &[b, i], big);
    let p = w.finish();
    agrees_on(&p, &[&[("B", 3), ("I", 37), ("J", 50)], &[("B", 2), ("I", 5), ("J", 3)]], 2e-6, 1e-30, |p, dims, seed| {
        let mut x = inputs(p, dims, seed);
        let b = dims["B"] as usize;
        x[1] = Tensor::from_f64(DType::Bool, x[1].shape(), &(0..dims["J"]).map(|j| f64::from(u8::from(j % 3 != 0))).collect::<Vec<_>>()).unwrap();
        x[2] = Tensor::from_f64(DType::I32, &[b], &(0..b).map(|b| (b * 23) as f64).collect::<Vec<_>>()).unwrap();
        x
    });
}

/// Dots whose operands both have lanes, or neither; sums over lanes; two summed axes; loops within loops.
#[test]
fn irregular_dots() {
    // Lanes along the features that are summed.
    let mut w = Write::new("row_dot", F32);
    let (r, f) = (w.axis("r", "R", Role::Block(4)), w.axis("f", "33", Role::Full(33)));
    w.p.lanes = Some(f);
    let (x, y) = (w.input("x", &["R", "33"]), w.input("y", &["R", "33"]));
    let o = w.output("o", &["R"]);
    let (x, y) = (w.load(x, &[r, f]), w.load(y, &[r, f]));
    let z = w.dot(&[], &[(x, y)], &[f]);
    w.store(o, &[r], z);
    agrees(&w.finish(), &[&[("R", 6)]], 1e-6);

    // Lanes along features, summed along another axis.
    let mut w = Write::new("wide", F32);
    let (r, f, k) = (w.axis("r", "R", Role::Block(5)), w.axis("f", "72", Role::Full(72)), w.axis("k", "19", Role::Full(19)));
    w.p.lanes = Some(f);
    let (x, y) = (w.input("x", &["R", "19"]), w.input("y", &["19", "72"]));
    let o = w.output("o", &["R", "72"]);
    let (x, y) = (w.load(x, &[r, k]), w.load(y, &[k, f]));
    let two = w.number(2.0);
    let z = w.dot(&[&[two]], &[(x, y)], &[k]);
    w.store(o, &[r, f], z);
    agrees(&w.finish(), &[&[("R", 6)], &[("R", 1)]], 1e-6);

    // Heads and features summed together; a batch axis of rows; no lanes in one product.
    let mut w = Write::new("two_sums", F32);
    let (i, h, e, s) = (w.axis("i", "I", Role::Block(16)), w.axis("h", "3", Role::Full(3)), w.axis("e", "12", Role::Full(12)), w.axis("s", "S", Role::Stream(10)));
    w.p.lanes = Some(i);
    let (x, y, z) = (w.input("x", &["I", "3", "12"]), w.input("y", &["S", "3", "12"]), w.input("z", &["3", "12"]));
    let (o, o2) = (w.output("o", &["I", "S"]), w.output("o2", &["I", "S", "3"]));
    let x = w.load(x, &[i, h, e]);
    w.stream(s, vec![], &[], |w, _| {
        let y = w.load(y, &[s, h, e]);
        let z = w.load(z, &[h, e]);
        let free = w.dot(&[], &[(y, z)], &[e]);
        let a = w.dot(&[&[free]], &[(x, y)], &[e]);
        w.store(o2, &[i, s, h], a);
        let b = w.dot(&[], &[(y, x)], &[h, e]);
        w.store(o, &[i, s], b);
        vec![]
    });
    agrees(&w.finish(), &[&[("I", 37), ("S", 25)], &[("I", 1), ("S", 1)]], 2e-6);
}

/// Values that change places from one iteration to the next, and one that only the loop's end sees.
/// The kernels of a gradient whose instances have all columns in their lanes: with `mask`, of which some rows see nothing.
fn owning(mask: bool, compute: DType, columns: i64, d: i64) -> Vec<Program> {
    let s = if mask { "select((iota(J) <= iota(I) - 3) & (iota(J) >= iota(I) - 40), contract(\"bhid,bhjd->bhij\", q, k) * rsqrt(D), -inf)" } else { "contract(\"bhid,bhjd->bhij\", q, k) * rsqrt(D)" };
    let text = format!(
        "fn f(q: f32[B,H,I,D], k: f32[B,H,J,D], v: f32[B,H,J,D]) -> (o: f32[B,H,I,D]) {{\n s = {s}\n p = exp(s - stop_gradient(reduce_max(s, j)))\n l = reduce_sum(p, j)\n o = contract(\"bhij,bhjd->bhid\", p / select(l > 0, l, 1), v)\n}}\n"
    );
    let f = &ir::text::parse(&text).unwrap().functions[0];
    let g = passes::ad::vjp(f, &["q", "k", "v"].map(Into::into)).unwrap();
    let g = passes::simplify::simplify(&g).unwrap().function;
    let dims: Bindings = [("J", columns), ("D", d)].map(|(n, v)| (n.into(), v)).into();
    let programs = passes::fuse::fuse(&g, &passes::fuse::Options::cpu(&dims, compute)).unwrap().programs;
    assert!(programs.iter().any(|p| p.lanes.is_some_and(|a| matches!(p.axis(a).role, Role::Full(_)))), "{}", programs.iter().map(ToString::to_string).collect::<String>());
    programs
}

#[test]
fn an_instance_has_all_panels() {
    for (columns, d) in [(3, 4), (48, 16), (50, 12), (101, 28), (130, 80)] {
        for mask in [false, true] {
            for p in owning(mask, F32, columns, d) {
                // Every panel's sums are added to what the panels before it gave: the error grows with their number.
                let sizes = |b, h, i| [("B", b), ("H", h), ("I", i), ("J", columns), ("D", d)];
                agrees(&p, &[&sizes(1, 2, 1), &sizes(2, 1, 67), &sizes(1, 1, 140)], 2e-5);
                codegen::compile(&p, &Target::named("skylake-avx512").unwrap()).unwrap();
                codegen::compile(&p, &Target::named("haswell").unwrap()).unwrap();
            }
        }
    }
    for p in owning(true, DType::F64, 50, 12) {
        agrees(&p, &[&[("B", 1), ("H", 2), ("I", 67), ("J", 50), ("D", 12)]], 1e-12);
    }
}

/// Two sums down the columns of padded tiles: what is computed in the place of an operand has that operand's padding.
#[test]
fn tiles_of_other_padding_have_places_of_their_own() {
    let p: Program = serde_json::from_str(include_str!("padding.tile.json")).unwrap();
    agrees(&p, &[&[]], 1e-6);
}

#[test]
fn carried_values_change_places() {
    let mut w = Write::new("swap", F32);
    let (i, j) = (w.axis("i", "I", Role::Block(16)), w.axis("j", "J", Role::Stream(4)));
    w.p.lanes = Some(i);
    let x = w.input("x", &["I", "J"]);
    let (o, q) = (w.output("o", &["I"]), w.output("q", &["I"]));
    let (one, two) = (w.fill(&[i], 1.0), w.fill(&[i], 2.0));
    let out = w.stream(j, vec![], &[one, two, one], |w, c| {
        let x = w.load(x, &[i, j]);
        let s = w.sum(x, &[j]);
        let t = w.add(c[0], s);
        vec![c[1], t, c[2]]
    });
    let y = w.mul(out[0], out[2]);
    w.store(o, &[i], y);
    w.store(q, &[i], out[1]);
    agrees(&w.finish(), &[&[("I", 37), ("J", 11)], &[("I", 9), ("J", 4)]], 1e-6);
}

/// Nothing with rank: one instance, one number.
#[test]
fn without_axes() {
    let mut w = Write::new("scalar", F32);
    let f = w.axis("f", "50", Role::Full(50));
    w.p.lanes = Some(f);
    let (x, o) = (w.input("x", &["50"]), w.output("o", &[]));
    let x = w.load(x, &[f]);
    let s = w.sum(x, &[f]);
    let m = w.reduce(ReduceKind::Max, x, &[f]);
    let y = w.mul(s, m);
    w.store(o, &[], y);
    agrees(&w.finish(), &[&[]], 1e-6);
}

#[test]
fn wider_vectors_compile() {
    let t = Target::named("skylake-avx512").unwrap();
    for p in [
        Flash { head: 64, stream: 64, causal: true, tangents: true, dtype: DType::BF16, sequence_first: true }.program(),
        Linear { lanes_m: true, k_major: false, block: 32, stream: 48, full: None }.program(),
        row_norm(100, F32, Role::Block(4), F32),
    ] {
        let c = codegen::compile_with(&p, &t, true).unwrap_or_else(|e| panic!("{e}"));
        assert!(c.dumps.assembly.unwrap().contains("zmm"));
    }
}

#[test]
fn objects_refer_to_nothing_outside() {
    let p = Flash { head: 64, stream: 64, causal: true, tangents: true, dtype: DType::BF16, sequence_first: true }.program();
    let c = codegen::compile_with(&p, &Target::host().unwrap(), true).unwrap();
    let text = c.dumps.assembly.unwrap();
    for line in text.lines().filter(|l| l.contains("call")) {
        assert!(line.contains("transpose_") || line.contains("_part_"), "{line}");
    }
}

#[test]
fn refusals_name_what_is_refused() {
    let mut w = Write::new("partial", F32);
    let i = w.axis("i", "I", Role::Block(16));
    w.p.lanes = Some(i);
    let (x, o) = (w.input("x", &["I"]), w.output("o", &["I"]));
    let x = w.load(x, &[i]);
    let s = w.sum(x, &[i]);
    let y = w.add(x, s);
    w.store(o, &[i], y);
    let p = w.unverified();
    let e = codegen::compile(&p, &Target::host().unwrap()).unwrap_err().to_string();
    assert!(e.contains("reduce_sum over `i`, of which an instance has only a tile"), "{e}");
    assert!(Target::named("6502").unwrap_err().to_string().contains("6502"));
}

/// A program of random statements over random axes.
fn random_program(seed: u64) -> Program {
    use Elementwise::*;
    struct Draw(Random);
    impl Draw {
        fn below(&mut self, n: usize) -> usize {
            ((self.0.next() + 1.0) * 1e6) as usize % n.max(1)
        }
        fn pick<T: Copy>(&mut self, list: &[T]) -> T {
            list[self.below(list.len())]
        }
        fn some(&mut self, axes: &[AxisId]) -> Vec<AxisId> {
            let mut out: Vec<AxisId> = axes.iter().copied().filter(|_| self.below(2) == 0).collect();
            for k in (1..out.len()).rev() {
                out.swap(k, self.below(k + 1));
            }
            out
        }
    }
    let mut r = Draw(Random(seed.wrapping_mul(0x9e3779b97f4a7c15) ^ 0x1234567));
    r.0.next();
    let mut w = Write::new(&format!("random{seed}"), F32);
    let extents = [1, 3, 4, 8, 12, 16, 17, 28, 33];
    let b = w.axis("b", "B", Role::Grid);
    let (bi, bn, sj) = (r.pick(&[8, 16, 48]), r.pick(&[1, 4, 5, 16]), r.pick(&[4, 7, 16, 32]));
    let i = w.axis("i", "I", Role::Block(bi));
    let n = w.axis("n", "N", Role::Block(bn));
    let j = w.axis("j", "J", Role::Stream(sj));
    let (ed, ee) = (r.pick(&extents), r.pick(&extents));
    let d = w.axis("d", &ed.to_string(), Role::Full(ed));
    let e = w.axis("e", &ee.to_string(), Role::Full(ee));
    w.p.lanes = r.pick(&[Some(i), Some(i), Some(n), Some(d), Some(e), None]);
    let es = r.pick(&[2, 8, 9]);
    let s = w.axis("s", "S", Role::Stream(es));
    let names = ["B".to_string(), "I".into(), "N".into(), "J".into(), ed.to_string(), ee.to_string(), "S".into()];
    let mut inputs = 0;
    let mut values: Vec<ValueId> = vec![];
    fn step(w: &mut Write, r: &mut Draw, values: &mut Vec<ValueId>, axes: &[AxisId], names: &[String], inputs: &mut usize) {
        let tame = |w: &mut Write, v: ValueId| w.map(Tanh, &[v]);
        let reducible = |w: &Write, v: ValueId| w.axes(v).into_iter().filter(|a| matches!(w.p.axis(*a).role, Role::Full(_) | Role::Stream(_))).collect::<Vec<_>>();
        let choice = if values.len() < 2 { 0 } else { r.below(9) };
        let (x, y) = if values.is_empty() { (None, None) } else { (Some(r.pick(values)), Some(r.pick(values))) };
        let v = match (choice, x, y) {
            (1 | 2, Some(x), Some(y)) => {
                let op = r.pick(&[Add, Sub, Mul, Max, Min]);
                w.map(op, &[x, y])
            }
            (3, Some(x), _) => {
                let op = r.pick(&[Exp, Tanh, Neg, Abs, Logistic]);
                let t = tame(w, x);
                w.map(op, &[t])
            }
            (4 | 5, Some(x), _) => {
                let over = r.some(&reducible(w, x));
                if over.is_empty() {
                    return;
                }
                let k = r.pick(&[ReduceKind::Sum, ReduceKind::Max]);
                let s = w.reduce(k, x, &over);
                tame(w, s)
            }
            (6 | 7, Some(x), Some(y)) => {
                let shared: Vec<AxisId> = reducible(w, x).into_iter().filter(|a| w.axes(y).contains(a)).collect();
                let over = r.some(&shared);
                if over.is_empty() {
                    return;
                }
                let mut inits: Vec<Vec<ValueId>> = vec![];
                let union: Vec<AxisId> = w.axes(x).into_iter().chain(w.axes(y)).filter(|a| !over.contains(a)).collect();
                for v in values.iter().copied() {
                    if w.axes(v).iter().all(|a| union.contains(a)) && r.below(4) == 0 {
                        inits.push(vec![v]);
                    }
                }
                inits.truncate(2);
                if let (Some(f), Some(v)) = (inits.first_mut(), values.iter().copied().find(|v| w.axes(*v).iter().all(|a| union.contains(a)))) {
                    f.push(v);
                }
                let inits: Vec<&[ValueId]> = inits.iter().map(Vec::as_slice).collect();
                let terms = if r.below(3) == 0 { vec![(x, y), (y, x)] } else { vec![(x, y)] };
                let s = w.dot(&inits, &terms, &over);
                tame(w, s)
            }
            (8, Some(x), _) => {
                let mine: Vec<AxisId> = axes.iter().copied().filter(|a| w.axes(x).contains(a)).collect();
                let over = r.some(&mine);
                if over.is_empty() {
                    return;
                }
                let c = over.iter().map(|a| (*a, r.pick(&[-1, 1, 2]))).collect();
                w.keep(x, 0.25, vec![Constraint { axes: c, constant: Dim::fixed(r.below(20) as i64 - 5), scalars: vec![] }])
            }
            _ => {
                let order = r.some(axes);
                let shape: Vec<&str> = order.iter().map(|a| names[a.index()].as_str()).collect();
                let name = format!("x{inputs}");
                *inputs += 1;
                let dtype = r.pick(&[F32, F32, DType::BF16]);
                let b = w.buffer(&name, dtype, &shape, Access::Input);
                w.load(b, &order)
            }
        };
        values.push(v);
    }
    let outside = [b, i, n, d, e];
    for _ in 0..4 + r.below(5) {
        step(&mut w, &mut r, &mut values, &outside, &names, &mut inputs);
    }
    for _ in 0..r.below(3) {
        let mut init: Vec<ValueId> = vec![];
        for _ in 0..r.below(4) {
            let v = r.pick(&values);
            init.push(v);
        }
        let within = if r.below(2) == 0 { vec![at_least_zero(&[(i, 1), (j, -1)], Dim::fixed(3))] } else { vec![] };
        let limits = within.clone();
        let after = w.stream(j, within, &init, |w, c| {
            let mut inner: Vec<ValueId> = values.iter().chain(c).copied().collect();
            for _ in 0..4 + r.below(8) {
                step(w, &mut r, &mut inner, &[b, i, n, j, d, e], &names, &mut inputs);
            }
            if r.below(3) == 0 {
                let start: Vec<ValueId> = (0..r.below(3)).map(|_| r.pick(&inner)).collect();
                let after = w.stream(s, vec![], &start, |w, c| {
                    let mut deep: Vec<ValueId> = inner.iter().chain(c).copied().collect();
                    for _ in 0..3 + r.below(4) {
                        step(w, &mut r, &mut deep, &[b, i, n, j, d, e, s], &names, &mut inputs);
                    }
                    c.iter()
                        .map(|v| {
                            let want = w.axes(*v);
                            let fits: Vec<ValueId> = deep.iter().copied().filter(|x| w.axes(*x).iter().all(|a| want.contains(a))).collect();
                            let x = r.pick(&fits);
                            let sum = w.add(*v, x);
                            w.map(Tanh, &[sum])
                        })
                        .collect()
                });
                inner.extend(after);
                for _ in 0..r.below(4) {
                    step(w, &mut r, &mut inner, &[b, i, n, j, d, e], &names, &mut inputs);
                }
            }
            let mut next = vec![];
            for v in c {
                // Something of the carried value's type: combine it with what the body made.
                let want = w.axes(*v);
                let fits: Vec<ValueId> = inner.iter().copied().filter(|x| w.axes(*x).iter().all(|a| want.contains(a))).collect();
                let x = r.pick(&fits);
                let mut y = w.add(*v, x);
                // Tiles that are not visited contribute nothing.
                if !limits.is_empty() {
                    y = *v;
                }
                next.push(y);
            }
            next
        });
        values.extend(after);
    }
    for k in 0..2 {
        let v = r.pick(&values);
        let mut order: Vec<AxisId> = w.axes(v);
        order.extend([b, i, n].iter().filter(|a| !w.axes(v).contains(a)));
        for k in (1..order.len()).rev() {
            order.swap(k, r.below(k + 1));
        }
        let shape: Vec<&str> = order.iter().map(|a| names[a.index()].as_str()).collect();
        let o = w.buffer(&format!("o{k}"), F32, &shape, Access::Output);
        w.store(o, &order, v);
    }
    w.finish()
}

/// `TEST_PROGRAMS` says how many.
#[test]
fn random_programs() {
    let count = std::env::var("TEST_PROGRAMS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    for seed in 0..count {
        let p = random_program(seed);
        // Sums may cancel: errors are relative to 1 at least.
        let sizes: [&[(&str, i64)]; 2] = [&[("B", 2), ("I", 1), ("N", 3), ("J", 1), ("S", 1)], &[("B", 1), ("I", 37), ("N", 7), ("J", 21), ("S", 11)]];
        agrees_on(&p, &sizes, 1e-4, 1.0, inputs);
        if seed % 5 == 0 {
            // Outputs are stored as f32.
            agrees_on(&exact(&p), &sizes, 1.5e-7, 1.0, inputs);
            let wide = Target::named("skylake-avx512").unwrap();
            codegen::compile(&p, &wide).unwrap_or_else(|e| panic!("{e}\n{p}"));
        }
    }
}
