//! Laws of reverse mode: for every operation of the table, for the programs of this repository and for programs that nobody wrote.
//!
//! ```text
//! ⟨jvp(f)(x)·t, c⟩ = ⟨t, vjp(f)(x)·c⟩            also for f itself a jvp or a vjp: second order
//! transpose ∘ transpose = id                     on linear programs
//! vjp(f)(x)·0 = 0                                exactly
//! vjp ∘ vjp, vjp ∘ jvp, jvp ∘ vjp                against differences of vjp(f)
//! backward ∘ forward = vjp                       however it is cut
//! ```

#[allow(dead_code)]
#[path = "fusion/support.rs"]
mod support;
#[allow(dead_code)]
#[path = "fusion/adjoint.rs"]
mod adjoint;

use ir::builder::Builder;
use ir::dim::{Bindings, Name};
use ir::graph::{Function, Var};
use ir::prim::{Elementwise, Kind};
use ir::tensor::Tensor;
use ir::types::{Axis, DType, Type};
use passes::ad::remat::{Keep, split};
use passes::ad::{jvp, linearize, transpose, vjp};
use adjoint::*;
use support::*;

#[test]
fn adjoint_of_every_operation() {
    let n = || Axis::sym("N");
    let m = || Axis::sym("M");
    let dims: Bindings = [("N".into(), 3), ("M".into(), 4)].into();
    for op in Elementwise::ALL.into_iter().filter(|e| e.kind() != Kind::Zero) {
        // Operands with all axes, and operands that are broadcast.
        for narrow in 0..=op.arity() {
            let mut b = Builder::new(op.name());
            let args: Vec<Var> = (0..op.arity())
                .map(|i| {
                    let dtype = if op == Elementwise::Select && i == 0 { DType::Bool } else { DType::F64 };
                    let axes = if i + 1 == narrow { vec![m()] } else { vec![n(), m()] };
                    b.param(format!("x{i}"), Type::new(dtype, axes))
                })
                .collect();
            let y = b.elementwise(op, &args).unwrap();
            b.result("y", y);
            let f = b.finish();
            let mut x = draw(&f, &dims, 5);
            for i in 0..op.arity() {
                let (lo, hi) = op.domain(i);
                let t = &x[&*format!("x{i}")];
                if t.dtype().is_float() {
                    let v: Vec<f64> = t.to_f64().iter().map(|u| lo + (hi - lo) * (0.5 + 0.5 * u.tanh())).collect();
                    x.insert(format!("x{i}").into(), Tensor::from_f64(DType::F64, t.shape(), &v).unwrap());
                }
            }
            let wrt: Vec<Name> = f.params.iter().filter(|p| f.ty(p.var).dtype.is_float()).map(|p| p.name.clone()).collect();
            let e = adjoint_error(&f, &wrt, &x, &dims, 9);
            // A rounding to f32 is not linear in f64: its tangent is rounded and its cotangent is not.
            let bound = if matches!(op, Elementwise::Convert(_)) { 1e-7 } else { 1e-12 };
            assert!(e.unwrap_or_else(|| panic!("{} has no derivative", op.name())) < bound, "{}\n{}", op.name(), text(&vjp(&f, &wrt).unwrap()));
            for w in &wrt {
                assert!(adjoint_error(&f, std::slice::from_ref(w), &x, &dims, 11).unwrap() < bound, "{} in {w}", op.name());
            }
        }
    }
}

#[test]
fn adjoint_of_every_program() {
    let mut count = 0;
    for f in repository() {
        let wrt = names(&floats(&f));
        check_orders(&f, &wrt, &small(&f), 17);
        for w in &wrt {
            check_adjoint(&f, std::slice::from_ref(w), &draw(&f, &small(&f), 3), &small(&f), 4);
        }
        count += 1;
    }
    assert!(count > 60, "{count} programs");
}

#[test]
fn adjoint_of_drawn_programs() {
    let mut moved = 0;
    for seed in 0..400 {
        let f = drawn(seed);
        if f.results.is_empty() {
            continue;
        }
        let wrt = names(&floats(&f));
        let dims = Bindings::new();
        check_orders(&f, &wrt, &dims, seed);
        moved += usize::from(vjp(&f, &wrt).is_ok());
    }
    assert!(moved > 300, "{moved} of 400 programs have a derivative");
}

/// Programs with a derivative, their linear parts and sizes.
fn linear_programs() -> Vec<(Function, Vec<Name>, Bindings)> {
    let mut all = vec![];
    for f in repository().into_iter().chain((0..60).map(drawn).filter(|f| !f.results.is_empty())) {
        let dims = small(&f);
        if let Ok(l) = linearize(&f, &names(&floats(&f))) {
            all.push((l.linear, l.tangents, dims));
        }
    }
    all
}

#[test]
fn the_linear_part_is_linear_by_structure() {
    // transpose accepts it; and a partial derivative never stands between tangents.
    for (f, wrt, _) in linear_programs() {
        let seeds: Vec<Var> = wrt.iter().map(|n| f.param(n).unwrap()).collect();
        let mut depends = vec![false; f.vars.len()];
        seeds.iter().for_each(|v| depends[v.index()] = true);
        for e in &f.eqns {
            depends[e.out.index()] = e.args.iter().any(|a| depends[a.index()]);
            if let (ir::prim::Prim::Elementwise(op), true) = (&e.op, depends[e.out.index()]) {
                assert!(matches!(op.kind(), Kind::Linear | Kind::Bilinear), "{}\n{}", op.name(), text(&f));
            }
        }
        transpose(&f, &wrt).unwrap_or_else(|e| panic!("{e}\n{}", text(&f)));
    }
}

#[test]
fn transposed_twice_is_itself() {
    let mut count = 0;
    for (f, wrt, dims) in linear_programs() {
        let cts = |ns: &[Name]| ns.iter().map(|n| Name::from(format!("{n}.ct"))).collect::<Vec<_>>();
        let once = transpose(&f, &wrt).unwrap();
        // A tangent on which nothing depends has zeros, which have no transpose.
        let dead: Vec<&Name> = once.results.iter().zip(&wrt).filter(|(r, _)| {
            let mut depends = vec![false; once.vars.len()];
            f.results.iter().for_each(|r| depends[once.param(&format!("{}.ct", r.name)).unwrap().index()] = true);
            once.eqns.iter().for_each(|e| depends[e.out.index()] = e.args.iter().any(|a| depends[a.index()]));
            !depends[r.var.index()]
        }).map(|(_, n)| n).collect();
        if !dead.is_empty() {
            continue;
        }
        let results: Vec<Name> = f.results.iter().map(|r| r.name.clone()).collect();
        let twice = transpose(&once, &cts(&results)).unwrap_or_else(|e| panic!("{e}\n{}", text(&once)));
        let x = draw(&f, &dims, 23);
        let want = run(&f, &x, &dims);
        let renamed: Fields = x.iter().map(|(n, t)| (if wrt.contains(n) { format!("{n}.ct.ct").into() } else { n.clone() }, t.clone())).collect();
        let got = run(&twice, &renamed, &dims);
        for r in &f.results {
            let e = ir::tensor::relative_error(&got[&*format!("{}.ct.ct", r.name)], &want[&r.name]);
            assert!(e < 1e-12, "{} is off by {e:e}\n{}\n{}", r.name, text(&f), text(&twice));
        }
        count += 1;
    }
    assert!(count > 50, "{count}");
}

#[test]
fn zero_cotangents_give_zero() {
    for f in repository() {
        let dims = small(&f);
        let Ok(g) = vjp(&f, &names(&floats(&f))) else { continue };
        let mut x = draw(&g, &dims, 29);
        for n in new_names(&f, &g, true) {
            let shape = x[&n].shape().to_vec();
            x.insert(n, Tensor::from_f64(DType::F64, &shape, &vec![0.0; shape.iter().product()]).unwrap());
        }
        let out = run(&g, &x, &dims);
        for n in new_names(&f, &g, false) {
            assert!(out[&n].to_f64().iter().all(|v| *v == 0.0), "{} {n}", f.name);
        }
    }
}

/// Central differences of fourth order of `f`'s results `of` along `t`, at `x`.
fn difference(f: &Function, of: &[Name], x: &Fields, t: &Fields, dims: &Bindings) -> Fields {
    let h = 2e-4;
    let at = |h: f64| {
        let mut y = x.clone();
        for (n, t) in t {
            let v: Vec<f64> = x[n].to_f64().iter().zip(t.to_f64()).map(|(x, t)| x + h * t).collect();
            y.insert(n.clone(), Tensor::from_f64(DType::F64, x[n].shape(), &v).unwrap());
        }
        run(f, &y, dims)
    };
    let (a, b, c, d) = (at(h), at(-h), at(2.0 * h), at(-2.0 * h));
    let mix = |n: &Name| {
        let v: Vec<f64> = (0..a[n].to_f64().len()).map(|i| (8.0 * (a[n].to_f64()[i] - b[n].to_f64()[i]) - (c[n].to_f64()[i] - d[n].to_f64()[i])) / (12.0 * h)).collect();
        Tensor::from_f64(DType::F64, a[n].shape(), &v).unwrap()
    };
    of.iter().map(|n| (n.clone(), mix(n))).collect()
}

#[test]
fn second_order_against_differences() {
    // What stands under a `stop_gradient` and matters has another derivative than the function.
    let smooth = |f: &Function| !matches!(&*f.name, "plus_one" | "unused");
    let mut count = 0;
    for f in repository().into_iter().filter(smooth) {
        let dims = small(&f);
        let wrt = names(&floats(&f));
        let Ok(g) = vjp(&f, &wrt) else { continue };
        // Along primals: d/dε vjp(f)(x + εt)·c = jvp(vjp(f))(x, t)·c.
        let Ok(gj) = jvp(&g, &wrt) else { continue };
        let x = draw(&gj, &dims, 31);
        let suffix = gj.params[g.params.len()].name[wrt[0].len()..].to_string();
        let t: Fields = wrt.iter().map(|n| (n.clone(), x[&*format!("{n}{suffix}")].clone())).collect();
        let out = run(&gj, &x, &dims);
        let tangents = new_names(&g, &gj, false);
        let of: Vec<Name> = tangents.iter().map(|n| n.strip_suffix(&*suffix).unwrap().into()).collect();
        let want = difference(&g, &of, &x, &t, &dims);
        for (n, of) in tangents.iter().zip(&of) {
            let e = ir::tensor::relative_error(&out[n], &want[of]);
            let flat = want[of].to_f64().iter().all(|v| v.abs() < 1e-7);
            assert!(e < 2e-7 || flat, "jvp of vjp of {}: {n} is off by {e:e}", f.name);
        }
        // Of the tangent: vjp(jvp(f)) with cotangents (c, c') is the gradient of ⟨c, f⟩ + ⟨c', f.t⟩ = vjp(f)·c + d/dε vjp(f)(x + εt)·c'.
        let j = jvp(&f, &wrt).unwrap();
        let both: Vec<Name> = wrt.iter().cloned().chain(wrt.iter().map(|n| format!("{n}.t").into())).collect();
        let jv = vjp(&j, &both).unwrap();
        let y = draw(&jv, &dims, 37);
        let got = run(&jv, &y, &dims);
        let moving: Vec<Name> = new_names(&f, &j, false).iter().map(|n| n.strip_suffix(".t").unwrap().into()).collect();
        let primal = |from: &str| -> Fields {
            let mut z: Fields = f.params.iter().map(|p| (p.name.clone(), y[&p.name].clone())).collect();
            for n in &moving {
                z.insert(format!("{n}.ct").into(), y[&*format!("{n}{from}")].clone());
            }
            z
        };
        let direct = run(&g, &primal(".ct"), &dims);
        let t: Fields = wrt.iter().map(|n| (n.clone(), y[&*format!("{n}.t")].clone())).collect();
        let of: Vec<Name> = wrt.iter().map(|n| format!("{n}.ct").into()).collect();
        let moved = difference(&g, &of, &primal(".t.ct"), &t, &dims);
        // Of tangents: vjp(f)·c'.
        let along = run(&g, &primal(".t.ct"), &dims);
        for n in &wrt {
            let e = ir::tensor::relative_error(&got[&*format!("{n}.t.ct")], &along[&*format!("{n}.ct")]);
            assert!(e < 1e-12, "vjp of jvp of {}: {n}.t.ct is off by {e:e}", f.name);
        }
        for n in &of {
            let v: Vec<f64> = direct[n].to_f64().iter().zip(moved[n].to_f64()).map(|(a, b)| a + b).collect();
            let want = Tensor::from_f64(DType::F64, direct[n].shape(), &v).unwrap();
            let e = ir::tensor::relative_error(&got[n], &want);
            assert!(e < 2e-7 || v.iter().all(|v| v.abs() < 1e-7), "vjp of jvp of {}: {n} is off by {e:e}", f.name);
        }
        // vjp of vjp is bound to them by the adjoint law of `adjoint_of_every_program`.
        count += 1;
    }
    assert!(count > 50, "{count} programs");
}

#[test]
fn forward_and_backward_are_the_whole() {
    for f in repository() {
        let dims = small(&f);
        let Ok(g) = vjp(&f, &names(&floats(&f))) else { continue };
        let late = new_names(&f, &g, true);
        let x = draw(&g, &dims, 41);
        let want = run(&g, &x, &dims);
        for keep in [Keep::Narrow, Keep::All] {
            let s = split(&g, &late, keep).unwrap();
            for h in [&s.forward, &s.backward] {
                ir::verify::verify(h).unwrap_or_else(|e| panic!("{}\n{}", e[0], text(h)));
            }
            let mut all = x.clone();
            let first = run(&s.forward, &x, &dims);
            all.extend(first.clone());
            let mut got = run(&s.backward, &all, &dims);
            got.extend(first);
            for r in &g.results {
                let e = ir::tensor::relative_error(&got[&r.name], &want[&r.name]);
                assert!(e == 0.0, "{} {}: {e:e}", f.name, r.name);
            }
            if keep == Keep::Narrow {
                // Nothing crosses that is wider than a parameter or a result.
                for n in &s.residuals {
                    let ty = s.backward.ty(s.backward.param(n).unwrap());
                    let fixed = |t: &ir::types::Type| t.axes.iter().filter_map(|a| a.size.as_fixed()).product::<i64>();
                    let within = |t: &ir::types::Type| ty.axes.iter().all(|a| a.size.as_fixed().is_some() || t.has(&a.name)) && fixed(ty) <= fixed(t);
                    assert!(passes::fuse::view::port_types(&g).iter().any(|t| t.covers(ty) || within(t)), "{}: {n} {ty}", f.name);
                }
            }
        }
    }
}

#[test]
fn what_is_not_linear_is_refused() {
    let f = parse("fn f(x: f64[N], y: f64[N]) -> (z: f64[N]) { z = exp(x) * y }").remove(0);
    let e = transpose(&f, &names("x")).unwrap_err().to_string();
    assert!(e.contains("transpose: exp of `x` (linear)") && e.contains("would be dropped"), "{e}");
    let f = parse("fn f(x: f64[N], y: f64[N]) -> (z: f64[N]) { z = x + y }").remove(0);
    let e = transpose(&f, &names("x")).unwrap_err().to_string();
    assert!(e.contains("`y` does not depend on the tangents and is not zero"), "{e}");
    let f = parse("fn f(x: f64[N], y: f64[N]) -> (z: f64[N], w: f64[N]) { z = x * y\n w = y }").remove(0);
    assert!(transpose(&f, &names("x")).unwrap_err().to_string().contains("result `w` does not depend on x, so its cotangent would be dropped"));
    let f = parse("fn f(x: f64[N]) -> (z: f64[N]) { z = x * x }").remove(0);
    assert!(transpose(&f, &names("x")).unwrap_err().to_string().contains("not linear in `x`"));
    assert!(vjp(&f, &names("y")).unwrap_err().to_string().contains("vjp: `y` is not a parameter of `f`"));
    let f = parse("fn f(x: f64[N]) -> (z: f64[N]) { z = stop_gradient(x) }").remove(0);
    assert!(vjp(&f, &names("x")).unwrap_err().to_string().contains("vjp: no result of `f` depends differentiably on x"));
}

#[test]
fn names_add_up() {
    let f = parse("fn f(q: f64[N], k: f64[N], n: f64) -> (o: f64[N], d: f64[N]) { o = tanh(q) * k\n d = k * n }").remove(0);
    let ports = |p: &[ir::graph::Port]| p.iter().map(|p| p.name.to_string()).collect::<Vec<_>>().join(",");
    let g = vjp(&f, &names("q")).unwrap();
    // `d` does not depend on q: it has no cotangent.
    assert_eq!((ports(&g.params), ports(&g.results)), ("q,k,n,o.ct".into(), "o,d,q.ct".into()));
    let g = vjp(&jvp(&f, &names("q,k")).unwrap(), &names("q,k,q.t,k.t")).unwrap();
    assert_eq!((ports(&g.params), ports(&g.results)), ("q,k,n,q.t,k.t,o.ct,d.ct,o.t.ct,d.t.ct".into(), "o,d,o.t,d.t,q.ct,k.ct,q.t.ct,k.t.ct".into()));
    let g = jvp(&vjp(&f, &names("q")).unwrap(), &names("q,o.ct")).unwrap();
    assert_eq!((ports(&g.params), ports(&g.results)), ("q,k,n,o.ct,q.t,o.ct.t".into(), "o,d,q.ct,o.t,q.ct.t".into()));
    let g = vjp(&vjp(&f, &names("q")).unwrap(), &names("q,k")).unwrap();
    assert_eq!((ports(&g.params), ports(&g.results)), ("q,k,n,o.ct,o.ct2,d.ct2,q.ct.ct2".into(), "o,d,q.ct,q.ct2,k.ct2".into()));
}
