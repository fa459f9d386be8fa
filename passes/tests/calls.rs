//! Functions that call functions: derived without being taken apart, and the same as with every call replaced by its body.
//!
//! ```text
//! inline(outline(f)) = f          t(f) = t(inline(f)), t any of jvp, vjp and their compositions
//! ⟨jvp(f)(x)·t, c⟩ = ⟨t, vjp(f)(x)·c⟩, differences of order 1 and 2, for f with calls
//! ```

#[allow(dead_code)]
#[path = "fusion/support.rs"]
mod support;
#[allow(dead_code)]
#[path = "fusion/adjoint.rs"]
mod adjoint;

use adjoint::*;
use ir::builder::Builder;
use ir::dim::{Bindings, Name};
use ir::graph::{Function, Var};
use ir::prim::{Callee, Prim};
use ir::tensor::{Tensor, relative_error};
use passes::ad::{Checkpoint, Transform, jvp, vjp, vjp_with};
use passes::inline;
use std::collections::{BTreeMap, BTreeSet};
use support::*;

/// `f` with the equations `from..to` in a function of their own.
fn outline(f: &Function, from: usize, to: usize, name: &str) -> Function {
    let inside: BTreeSet<Var> = f.eqns[from..to].iter().map(|e| e.out).collect();
    let read: BTreeSet<Var> = f.eqns[from..to].iter().flat_map(|e| &e.args).copied().filter(|a| !inside.contains(a)).collect();
    let later: BTreeSet<Var> = f.eqns[to..].iter().flat_map(|e| &e.args).copied().chain(f.results.iter().map(|r| r.var)).collect();
    let given: Vec<Var> = inside.iter().copied().filter(|v| later.contains(v)).collect();
    let mut g = Builder::new(name);
    let mut map: BTreeMap<Var, Var> = read.iter().enumerate().map(|(i, v)| (*v, g.param(format!("a{i}"), f.ty(*v).clone()))).collect();
    for e in &f.eqns[from..to] {
        let args: Vec<Var> = e.args.iter().map(|a| map[a]).collect();
        let out = g.push(e.op.clone(), &args).unwrap();
        map.insert(e.out, out);
    }
    for (i, v) in given.iter().enumerate() {
        g.result(format!("r{i}"), map[v]);
    }
    let callee = Callee(g.finish().into());
    let mut b = Builder::new(f.name.clone());
    let mut map: BTreeMap<Var, Var> = f.params.iter().map(|p| (p.var, b.param(p.name.clone(), f.ty(p.var).clone()))).collect();
    for (i, e) in f.eqns.iter().enumerate() {
        if i == from {
            let args: Vec<Var> = read.iter().map(|v| map[v]).collect();
            for (v, r) in given.iter().zip(b.call(&callee, &args).unwrap()) {
                map.insert(*v, r);
            }
        }
        if !(from..to).contains(&i) {
            let args: Vec<Var> = e.args.iter().map(|a| map[a]).collect();
            let out = b.push(e.op.clone(), &args).unwrap();
            map.insert(e.out, out);
        }
    }
    for r in &f.results {
        b.result(r.name.clone(), map[&r.var]);
    }
    b.finish()
}

/// `f` with some of its equations, and some of theirs, in functions of their own.
fn with_calls(f: &Function, seed: u64) -> Option<Function> {
    let mut r = Random(seed);
    let mut f = f.clone();
    for k in 0..2 + r.below(2) {
        let n = f.eqns.len();
        if n < 2 {
            return None;
        }
        let from = r.below(n - 1);
        let to = (from + 1 + r.below(6)).min(n);
        // Now and then around a call: functions that call.
        f = outline(&f, from, to, &format!("g{k}"));
    }
    ir::verify::verify(&f).unwrap_or_else(|e| panic!("{}\n{}", e[0], text(&f)));
    let calls = f.eqns.iter().any(|e| matches!(e.op, Prim::Call(_)));
    calls.then_some(f)
}

fn same(f: &Function, g: &Function, dims: &Bindings, seed: u64, bound: f64) {
    let x = draw(g, dims, seed);
    let (a, b) = (run(f, &x, dims), run(g, &x, dims));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{}\n{}", text(f), text(g));
    for (n, want) in &b {
        let e = relative_error(&a[n], want);
        let size = want.to_f64().iter().fold(0.0f64, |m, v| m.max(v.abs()));
        assert!(e < bound || size < 1e-9, "{} {n}: {e:e}\n{}\n{}", f.name, text(f), text(g));
    }
}

/// Programs with calls, from programs of the repository and drawn ones.
fn programs() -> Vec<(Function, Bindings)> {
    let mut all = vec![];
    for (i, f) in repository().into_iter().chain((0..250).map(drawn)).enumerate().filter(|(_, f)| !f.results.is_empty()) {
        let dims = small(&f);
        all.extend(with_calls(&f, 1000 + i as u64).map(|f| (f, dims)));
    }
    assert!(all.len() > 200, "{} programs have calls", all.len());
    all
}

#[test]
fn inlined_is_the_same() {
    for (f, dims) in programs() {
        let g = inline(&f).unwrap();
        ir::verify::verify(&g).unwrap_or_else(|e| panic!("{}\n{}\n{}", e[0], text(&f), text(&g)));
        assert!(!g.eqns.iter().any(|e| matches!(e.op, Prim::Call(_))));
        same(&f, &g, &dims, 5, 1e-13);
        // What is printed is what is parsed.
        let again = ir::text::parse(&text(&f)).unwrap_or_else(|e| panic!("{}\n{}", e[0], text(&f))).functions.remove(0);
        same(&again, &f, &dims, 5, 1e-13);
    }
}

#[test]
fn adjoint_through_calls() {
    for (i, (f, dims)) in programs().into_iter().enumerate() {
        check_orders(&f, &names(&floats(&f)), &dims, i as u64);
    }
}

#[test]
fn derived_is_the_same_as_derived_of_the_inlined() {
    let mut moved = 0;
    for (i, (f, dims)) in programs().into_iter().enumerate() {
        let g = inline(&f).unwrap();
        let all = |g: &Function| names(&floats(g));
        let Ok(j) = jvp(&f, &all(&f)) else { continue };
        moved += 1;
        let seed = i as u64;
        let steps: Vec<Vec<bool>> = vec![vec![true], vec![false], vec![true, true], vec![true, false], vec![false, true]];
        assert!(!j.results.is_empty());
        for checkpoint in [Checkpoint::Residuals, Checkpoint::Operands] {
            for forward in &steps {
                let (mut a, mut b) = (f.clone(), g.clone());
                for forward in forward {
                    let t = if *forward { Transform::Jvp(all(&a)) } else { Transform::Vjp(all(&a)) };
                    a = t.apply_with(&a, checkpoint).unwrap_or_else(|e| panic!("{e}"));
                    b = t.apply_with(&b, checkpoint).unwrap_or_else(|e| panic!("{e}"));
                }
                same(&a, &b, &dims, seed, 1e-9);
            }
        }
    }
    assert!(moved > 150, "{moved} programs have a derivative");
}

const NETWORK: &str = "
fn net(x: f64[N,D=4], c: f64[D=4], w0: f64[F=8,D=4], v0: f64[D=4,F=8], w1: f64[F=8,D=4], v1: f64[D=4,F=8], w2: f64[F=8,D=4], v2: f64[D=4,F=8]) -> (y: f64[N,D=4]) {
  y0 = call(block, y, x, c, w0, v0)
  y1 = call(block, y, y0, c, w1, v1)
  y = call(block, y, y1, c, w2, v2)
}
fn block(x: f64[N,D=4], c: f64[D=4], w: f64[F=8,D=4], v: f64[D=4,F=8]) -> (y: f64[N,D=4], norm: f64[N]) {
  norm = rsqrt(reduce_sum(x * x, d) + 1)
  z = x * norm * c
  k = rename(z, N -> M=N)
  s = contract(\"nd,md->nm\", z, k)
  o = contract(\"nm,md->nd\", softmax(s, m), k)
  h = gelu(contract(\"nd,fd->nf\", z + o, w))
  y = x + contract(\"nf,df->nd\", h, v)
}
";

fn network() -> Function {
    parse(NETWORK).remove(0)
}

/// Distinct functions behind calls, in all.
fn callees(f: &Function) -> Vec<Callee> {
    let mut all = f.callees();
    let mut i = 0;
    while i < all.len() {
        for c in all[i].callees() {
            if !all.contains(&c) {
                all.push(c);
            }
        }
        i += 1;
    }
    all
}

fn called(f: &Function) -> Vec<Name> {
    callees(f).iter().map(|c| c.name.clone()).collect()
}

#[test]
fn each_pattern_is_derived_once() {
    let f = network();
    let of = |list: &str| names(list);
    // The first block's x does not move: another pattern.
    assert_eq!(called(&jvp(&f, &of("w0")).unwrap()), [Name::from("block.jvp"), "block.jvp2".into()]);
    let j = jvp(&f, &of("x,c")).unwrap();
    assert_eq!(called(&j), [Name::from("block.jvp")]);
    // Six equations, three calls: y and y.t of each. The norm's tangent is nobody's.
    assert_eq!(j.eqns.len(), 6, "{}", text(&j));
    assert_eq!(callees(&j)[0].results.len(), 3, "{}", text(&j));
    // Blocks before the first one that moves stay as they are.
    assert_eq!(called(&jvp(&f, &of("w1")).unwrap()), [Name::from("block"), "block.jvp".into(), "block.jvp2".into()]);
    let g = vjp(&f, &of("x,w0,v0,w1,v1,w2,v2")).unwrap();
    assert_eq!(called(&g), [Name::from("block.forward"), "block.backward2".into()], "{}", text(&g));
    let g = vjp_with(&f, &of("x,w0,v0,w1,v1,w2,v2"), Checkpoint::Operands).unwrap();
    assert_eq!(called(&g), [Name::from("block"), "block.backward".into()], "{}", text(&g));
}

#[test]
fn what_is_stored_between_the_halves() {
    let f = network();
    let g = vjp(&f, &names("x,c,w0,v0,w1,v1,w2,v2")).unwrap();
    let forward = callees(&g).into_iter().find(|c| &*c.name == "block.forward").unwrap();
    let stored: Vec<String> = forward.results[2..].iter().map(|r| forward.ty(r.var).to_string()).collect();
    // Rows and the hidden layer; nothing of rows × rows.
    assert!(stored.iter().all(|t| !t.contains("N,M") && !t.contains("M=N")), "{stored:?}\n{}", text(&forward));
    assert!(stored.contains(&"f64[N,F=8]".to_string()), "{stored:?}\n{}", text(&forward));
    // The sum that is known is found in the callee: rows of o, not of rows × rows.
    let backward = callees(&g).into_iter().find(|c| &*c.name == "block.backward2").unwrap();
    assert!(backward.eqns.iter().any(|e| e.origin.as_deref() == Some("remat:known-sum")), "{}", text(&backward));
    // A result that nobody used has no cotangent.
    assert!(backward.params.iter().all(|p| !p.name.starts_with("norm.ct")), "{}", text(&backward));
}

#[test]
fn second_order_through_calls_against_differences() {
    let f = network();
    let dims: Bindings = [("N".into(), 3)].into();
    let wrt = names("x,c,w1");
    for checkpoint in [Checkpoint::Residuals, Checkpoint::Operands] {
        let g = vjp_with(&f, &wrt, checkpoint).unwrap();
        let j = jvp(&g, &wrt).unwrap();
        let jv = vjp_with(&jvp(&f, &wrt).unwrap(), &names("x,c,w1,x.t,c.t,w1.t"), checkpoint).unwrap();
        let mut x = draw(&jv, &dims, 3);
        let zero = Tensor::zeros(ir::types::DType::F64, x["y.ct"].shape()).unwrap();
        x.extend(draw(&j, &dims, 7));
        x.insert("y.t.ct".into(), x["y.ct"].clone());
        let at = |h: f64| {
            let mut y = x.clone();
            for n in &wrt {
                let t = x[&*format!("{n}.t")].to_f64();
                let v: Vec<f64> = x[n].to_f64().iter().zip(&t).map(|(a, b)| a + h * b).collect();
                y.insert(n.clone(), Tensor::from_f64(ir::types::DType::F64, x[n].shape(), &v).unwrap());
            }
            run(&g, &y, &dims)
        };
        let step = 1e-5;
        let (plus, minus, tangent) = (at(step), at(-step), run(&j, &x, &dims));
        // The gradient of ⟨c, f.t⟩ is the derivative of the gradient.
        x.insert("y.ct".into(), zero);
        let through = run(&jv, &x, &dims);
        for n in &wrt {
            let ct = format!("{n}.ct");
            let d: Vec<f64> = plus[&*ct].to_f64().iter().zip(minus[&*ct].to_f64()).map(|(a, b)| (a - b) / (2.0 * step)).collect();
            let d = Tensor::from_f64(ir::types::DType::F64, plus[&*ct].shape(), &d).unwrap();
            let (a, b) = (relative_error(&tangent[&*format!("{ct}.t")], &d), relative_error(&through[&*ct], &d));
            assert!(a < 1e-8 && b < 1e-8, "{n}: {a:e} {b:e}");
        }
    }
}

#[test]
fn axes_that_clash_are_renamed() {
    let text = "
fn f(x: f64[N,D]) -> (y: f64[N,D], z: f64[K=N]) {
  y = g(x)
  j = rename(x, N -> K=N)
  z = reduce_sum(rename(rename(j, K -> J=N), J -> K=N), d)
}
fn g(x: f64[N,D]) -> (y: f64[N,D]) {
  k = rename(x, D -> J=D)
  y = h(k) * x
}
fn h(k: f64[N,J=D]) -> (y: f64[N]) { y = reduce_sum(exp(k), j) }
";
    let f = parse(text).remove(0);
    assert!(ir::verify::verify(&f).is_ok());
    let g = inline(&f).unwrap();
    ir::verify::verify(&g).unwrap_or_else(|e| panic!("{}", e[0]));
    same(&f, &g, &[("N".into(), 2), ("D".into(), 3)].into(), 3, 1e-14);
}
