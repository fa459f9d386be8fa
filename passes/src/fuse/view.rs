//! Movement at a kernel's edge is an address: values that are read through `split`, `merge`, `rename`, `permute`, `index`, `slice`
//! or `broadcast` of a buffer become loads with strides, and results behind such movements become stores.

use ir::dim::{Dim, Name};
use ir::graph::{Function, Var};
use ir::prim::{Movement, Prim};
use ir::types::Type;

/// Element number `offset + Σ stride·position`, by axis name.
#[derive(Clone, PartialEq, Debug)]
pub struct Strides {
    /// First element.
    pub offset: Dim,
    /// Per axis; an absent axis is constant.
    pub of: Vec<(Name, Dim)>,
}

/// A dense buffer of type `t`.
pub fn dense(t: &Type) -> Strides {
    let mut step = Dim::fixed(1);
    let mut of = vec![];
    for a in t.axes.iter().rev() {
        of.push((a.name.clone(), step.clone()));
        step = &step * &a.size;
    }
    of.reverse();
    Strides { offset: Dim::fixed(0), of }
}

/// How `v` reads from the buffer behind it, and which value that buffer holds; `None` if `v` is computed.
pub fn read(f: &Function, definitions: &[Option<usize>], stored: &dyn Fn(Var) -> bool, v: Var) -> Option<(Var, Strides)> {
    if stored(v) {
        return Some((v, dense(f.ty(v))));
    }
    let e = &f.eqns[definitions[v.index()]?];
    let Prim::Movement(m) = &e.op else { return None };
    let (base, s) = read(f, definitions, stored, *e.args.first()?)?;
    let from = f.ty(e.args[0]);
    let mut offset = s.offset;
    let mut of = s.of;
    let take = |of: &mut Vec<(Name, Dim)>, n: &Name| of.iter().position(|(a, _)| a == n).map(|i| of.remove(i).1);
    match m {
        Movement::Permute(_) | Movement::Broadcast(_) => {}
        Movement::Rename { from, to } => {
            if let Some(x) = of.iter_mut().find(|(a, _)| a == from) {
                x.0 = to.name.clone();
            }
        }
        Movement::Split { axis, into } => {
            if let Some(mut step) = take(&mut of, axis) {
                for a in into.iter().rev() {
                    of.push((a.name.clone(), step.clone()));
                    step = &step * &a.size;
                }
            }
        }
        Movement::Merge { axes, into } => {
            let steps: Vec<Option<Dim>> = axes.iter().map(|n| take(&mut of, n)).collect();
            if steps.iter().all(Option::is_none) {
                return Some((base, Strides { offset, of }));
            }
            let steps: Vec<Dim> = steps.into_iter().collect::<Option<_>>()?;
            // One stride serves only if each axis steps over the whole of the next.
            for (i, n) in axes.iter().enumerate().skip(1) {
                if steps[i - 1] != &steps[i] * &from.axis(n)?.size {
                    return None;
                }
            }
            of.push((into.name.clone(), steps.last()?.clone()));
        }
        Movement::Slice { axis, to, start } => {
            if let Some(step) = take(&mut of, axis) {
                offset = &offset + &(start * &step);
                of.push((to.name.clone(), step));
            }
        }
        Movement::Index { axis, at } => {
            if let Some(step) = take(&mut of, axis) {
                offset = &offset + &(at * &step);
            }
        }
        Movement::Concat { .. } | Movement::Stack(_) => return None,
    }
    Some((base, Strides { offset, of }))
}

/// What to store where, so that a dense buffer of `v`'s type holds `v`: computed values, each with its strides.
pub fn write(f: &Function, definitions: &[Option<usize>], stored: &dyn Fn(Var) -> bool, v: Var) -> Vec<(Var, Strides)> {
    let mut out = vec![];
    walk(f, definitions, stored, v, dense(f.ty(v)), &mut out);
    out
}

fn walk(f: &Function, definitions: &[Option<usize>], stored: &dyn Fn(Var) -> bool, v: Var, s: Strides, out: &mut Vec<(Var, Strides)>) {
    let done = |out: &mut Vec<(Var, Strides)>, s: Strides| out.push((v, s));
    let movement = definitions[v.index()].map(|i| &f.eqns[i]).filter(|e| matches!(e.op, Prim::Movement(_)) && !stored(v));
    let Some(e) = movement else { return done(out, s) };
    let Prim::Movement(m) = &e.op else { return done(out, s) };
    let take = |of: &mut Vec<(Name, Dim)>, n: &Name| of.iter().position(|(a, _)| a == n).map(|i| of.remove(i).1);
    let mut t = s.clone();
    // A value that is stored to all positions of an axis may come from another axis of that name: then it is read first.
    let clashes = |n: &Name| s.of.iter().any(|(a, _)| a == n);
    let comes_from: Vec<&Name> = match m {
        Movement::Rename { from, to } if *from != to.name => vec![from],
        Movement::Merge { axes, into } | Movement::Concat { axes, into } => axes.iter().filter(|n| **n != into.name).collect(),
        Movement::Split { axis, into } if into.iter().all(|a| a.name != *axis) => vec![axis],
        _ => vec![],
    };
    if comes_from.into_iter().any(clashes) {
        return done(out, s);
    }
    match m {
        Movement::Permute(_) => {}
        // A value that lacks an axis is stored to all its positions; the axis stays in the strides.
        Movement::Broadcast(_) => {}
        Movement::Rename { from, to } => {
            for x in t.of.iter_mut().filter(|(a, _)| *a == to.name) {
                x.0 = from.clone();
            }
        }
        Movement::Merge { axes, into } => {
            let Some(mut step) = take(&mut t.of, &into.name) else { return done(out, s) };
            for n in axes.iter().rev() {
                let Some(a) = f.ty(e.args[0]).axis(n) else { return done(out, s) };
                t.of.push((n.clone(), step.clone()));
                step = &step * &a.size;
            }
        }
        Movement::Split { axis, into } => {
            let Some(steps) = into.iter().map(|a| take(&mut t.of, &a.name)).collect::<Option<Vec<Dim>>>() else { return done(out, s) };
            for i in 1..into.len() {
                if steps[i - 1] != &steps[i] * &into[i].size {
                    return done(out, s);
                }
            }
            let Some(last) = steps.last() else { return done(out, s) };
            t.of.push((axis.clone(), last.clone()));
        }
        Movement::Concat { axes, into } => {
            let Some(step) = take(&mut t.of, &into.name) else { return done(out, s) };
            for (a, n) in e.args.iter().zip(axes) {
                let mut part = t.clone();
                part.of.push((n.clone(), step.clone()));
                walk(f, definitions, stored, *a, part, out);
                if let Some(x) = f.ty(*a).axis(n) {
                    t.offset = &t.offset + &(&x.size * &step);
                }
            }
            return;
        }
        Movement::Stack(axis) => {
            let Some(step) = take(&mut t.of, &axis.name) else { return done(out, s) };
            for a in &e.args {
                walk(f, definitions, stored, *a, t.clone(), out);
                t.offset = &t.offset + &step;
            }
            return;
        }
        Movement::Slice { .. } | Movement::Index { .. } => return done(out, s),
    }
    walk(f, definitions, stored, e.args[0], t, out);
}

/// The types under which parameters and results appear: their own, and those of what is a movement of a parameter, or of which a
/// result is a movement (`q` of `[B,H,I,D]` also as `[B,G,R,I,D]`). Joins count as results only.
pub fn port_types(f: &Function) -> Vec<Type> {
    let mut same = vec![false; f.vars.len()];
    f.params.iter().for_each(|p| same[p.var.index()] = true);
    for e in f.eqns.iter().filter(|e| matches!(e.op, Prim::Movement(_)) && e.args.len() == 1 && !matches!(e.op, Prim::Movement(Movement::Broadcast(_)))) {
        same[e.out.index()] |= same[e.args[0].index()];
    }
    f.results.iter().for_each(|r| same[r.var.index()] = true);
    let mut behind = vec![false; f.vars.len()];
    f.results.iter().for_each(|r| behind[r.var.index()] = true);
    for e in f.eqns.iter().rev().filter(|e| matches!(e.op, Prim::Movement(_))) {
        if behind[e.out.index()] {
            e.args.iter().for_each(|a| behind[a.index()] = true);
        }
    }
    (0..f.vars.len()).filter(|i| same[*i] || behind[*i]).map(|i| f.vars[i].ty.clone()).collect()
}
