//! What reverse mode keeps, and what it computes again.
//!
//! # Sums that are known
//! The backward of a normalized sum asks for `Σ_y c·Σ_x (a·b)` where the forward has `Σ_y (c·b)`: exchanging the sums turns a pass
//! over rows × columns into a product of two rows,
//!
//! ```text
//! known-sum   Σ_y c·Σ_x (a·b)  =>  Σ_x a·K     K = Σ_y (c·b) is an equation of the function; x not in c, y not in a
//! ```
//!
//! For softmax(s)·v, whose output is o, this is the D = rowsum(dO∘O) of Dao et al. (2022), and it is found, not written.
//!
//! # Two programs
//! [`split`] cuts a function in two: what does not depend on some parameters (the cotangents) runs first, and the rest reads *residuals*.
//! A residual is a value whose axes are all axes of one parameter or result, or that is no larger than one, O(rows): statistics, outputs, with
//! what is added to them alone. What is wider,
//! O(rows × columns), is computed again from residuals and parameters (Griewank and Walther's checkpointing, with the choice of Dao et al.).

use super::linearize::{copy, dependent, is_number, prune, residual_names};
use crate::fuse::view::port_types;
use ir::builder::Builder;
use ir::diagnostic::Error;
use ir::dim::Name;
use ir::graph::{Function, Var};
use ir::prim::{Elementwise, Movement, Prim, ReduceKind};
use ir::types::{Axis, Type};
use std::collections::{BTreeMap, BTreeSet};

/// `± Π above / Π below`, of atoms.
#[derive(Clone, Default, PartialEq, Debug)]
struct Product {
    negative: bool,
    above: Vec<Var>,
    below: Vec<Var>,
}

impl Product {
    /// Multiplies, or divides, by `v`, taken apart into values that are no products.
    fn times(&mut self, f: &Function, v: Var, definitions: &[Option<usize>], invert: bool) {
        let e = definitions[v.index()].map(|i| &f.eqns[i]).filter(|_| f.ty(v).dtype.is_float());
        match e.map(|e| (&e.op, e.args.as_slice())) {
            Some((Prim::Elementwise(Elementwise::Mul), [x, y])) => {
                self.times(f, *x, definitions, invert);
                self.times(f, *y, definitions, invert);
            }
            Some((Prim::Elementwise(Elementwise::Div), [x, y])) => {
                self.times(f, *x, definitions, invert);
                self.times(f, *y, definitions, !invert);
            }
            Some((Prim::Elementwise(Elementwise::Neg), [x])) => {
                self.negative = !self.negative;
                self.times(f, *x, definitions, invert);
            }
            Some((Prim::Constant(c), _)) if c.value == 1.0 => {}
            // Only more axes: the same factor.
            Some((Prim::Movement(Movement::Broadcast(_) | Movement::Permute(_)), [x])) => self.times(f, *x, definitions, invert),
            _ if invert => self.below.push(v),
            _ => self.above.push(v),
        }
    }
    /// Without factors that stand above and below.
    fn cancel(&mut self) {
        self.above.retain(|a| match self.below.iter().position(|b| b == a) {
            Some(i) => {
                self.below.remove(i);
                false
            }
            None => true,
        });
    }
}

/// `outside · Σ_over inside`: the body of a sum with what does not depend on the axes taken out.
struct Sum {
    over: Vec<Name>,
    outside: Product,
    /// Only `above` and `below`, sorted.
    inside: Product,
}

impl Sum {
    /// The sum that `e` is; `None` for other equations, and if an axis is not in the body.
    fn of(f: &Function, e: &ir::graph::Eqn, definitions: &[Option<usize>]) -> Option<Sum> {
        let over = match &e.op {
            Prim::Reduce(ReduceKind::Sum, over) | Prim::Contract(over) => over,
            _ => return None,
        };
        let mut body = Product::default();
        e.args.iter().for_each(|a| body.times(f, *a, definitions, false));
        let within = |v: &Var| over.iter().any(|n| f.ty(*v).has(n));
        if !over.iter().all(|n| body.above.iter().chain(&body.below).any(|v| f.ty(*v).has(n))) {
            return None;
        }
        let (mut inside, mut outside) = (Product::default(), Product { negative: body.negative, ..Product::default() });
        for (from, side) in [(body.above, 0), (body.below, 1)] {
            for v in from {
                let p = if within(&v) { &mut inside } else { &mut outside };
                if side == 0 { p.above.push(v) } else { p.below.push(v) }
            }
        }
        inside.above.sort();
        inside.below.sort();
        let mut over = over.clone();
        over.sort();
        Some(Sum { over, outside, inside })
    }
}

/// `f` with the rule `known-sum` wherever it applies to what depends on the parameters `late`: the same function to rounding, and the
/// other equations as they were.
///
/// # Errors
/// Those of the builder, which mean a bug.
pub fn known_sums(f: &Function, late: &[Var]) -> Result<Function, Error> {
    let depends = dependent(f, late);
    let definitions = f.definitions();
    let mut b = Builder::new(f.name.clone());
    let mut map: BTreeMap<Var, Var> = BTreeMap::new();
    for p in &f.params {
        map.insert(p.var, b.param(p.name.clone(), f.ty(p.var).clone()));
    }
    let mut known: Vec<(Sum, Var)> = vec![];
    for e in &f.eqns {
        let sum = Sum::of(f, e, &definitions);
        if let Some((outside, a, k, over)) = sum.as_ref().filter(|_| depends[e.out.index()]).and_then(|s| exchange(f, s, &known, &definitions)) {
            b.origin = Some("remat:known-sum".into());
            b.span = e.span;
            let mut left: Option<Var> = None;
            for v in &a.above {
                left = Some(match left {
                    Some(l) => b.mul(l, map[v])?,
                    None => map[v],
                });
            }
            let Some(mut left) = left else { continue };
            for v in &a.below {
                left = b.div(left, map[v])?;
            }
            let mut out = b.contract(left, map[&k], &over)?;
            for v in &outside.above {
                out = b.mul(out, map[v])?;
            }
            for v in &outside.below {
                out = b.div(out, map[v])?;
            }
            if outside.negative != a.negative {
                out = b.elementwise(Elementwise::Neg, &[out])?;
            }
            let ty = f.ty(e.out);
            let missing: Vec<Axis> = ty.axes.iter().filter(|x| !b.ty(out).has(&x.name)).cloned().collect();
            if !missing.is_empty() {
                out = b.movement(Movement::Broadcast(missing), &[out])?;
            }
            out = b.permute(out, &ty.axes.iter().map(|x| x.name.clone()).collect::<Vec<_>>())?;
            if let Some(n) = &f.vars[e.out.index()].name {
                b.name(out, n.clone());
            }
            b.origin = None;
            map.insert(e.out, out);
        } else {
            copy(&mut b, f, e, &mut map)?;
        }
        known.extend(sum.map(|s| (s, e.out)));
    }
    for r in &f.results {
        b.result(r.name.clone(), map[&r.var]);
    }
    Ok(b.finish())
}

/// For `outside · Σ_y c·Σ_x (a·b)` with a known `K = k·Σ_y (c·b)`: `outside/k`, a, K and x.
fn exchange(f: &Function, s: &Sum, known: &[(Sum, Var)], definitions: &[Option<usize>]) -> Option<(Product, Product, Var, Vec<Name>)> {
    for (i, v) in s.inside.above.iter().enumerate() {
        let Some(e) = definitions[v.index()].map(|i| &f.eqns[i]) else { continue };
        let Some(chain) = Sum::of(f, e, definitions) else { continue };
        let mut c = s.inside.clone();
        c.above.remove(i);
        let has = |v: &Var, names: &[Name]| names.iter().any(|n| f.ty(*v).has(n));
        // x is bound in the inner sum: nothing outside of it may have an axis of that name.
        let clash = c.above.iter().chain(&c.below).chain(&s.outside.above).chain(&s.outside.below).any(|v| has(v, &chain.over));
        if clash || has(&e.out, &chain.over) {
            continue;
        }
        let (mut a, mut inside) = (Product { negative: chain.outside.negative, ..Product::default() }, c);
        let mut outside = s.outside.clone();
        // Factors before the inner sum: those with y belong to c, the others go outside.
        for (from, below) in [(&chain.outside.above, false), (&chain.outside.below, true)] {
            for v in from {
                let p = if has(v, &s.over) { &mut inside } else { &mut outside };
                if below { p.below.push(*v) } else { p.above.push(*v) }
            }
        }
        for (from, below) in [(&chain.inside.above, false), (&chain.inside.below, true)] {
            for v in from {
                let p = if has(v, &s.over) { &mut inside } else { &mut a };
                if below { p.below.push(*v) } else { p.above.push(*v) }
            }
        }
        inside.above.sort();
        inside.below.sort();
        if a.above.is_empty() {
            continue;
        }
        // Both sums need all of x.
        let Some((k, value)) = known.iter().find(|(k, _)| k.over == s.over && k.inside.above == inside.above && k.inside.below == inside.below) else { continue };
        if !chain.over.iter().all(|n| f.ty(*value).has(n) && a.above.iter().chain(&a.below).chain([value]).any(|v| f.ty(*v).has(n))) {
            continue;
        }
        // Σ_y c·b is K/k.
        outside.above.extend(&k.outside.below);
        outside.below.extend(&k.outside.above);
        outside.negative ^= k.outside.negative;
        outside.cancel();
        if outside.above.iter().chain(&outside.below).any(|v| has(v, &chain.over)) {
            continue;
        }
        return Some((outside, a, *value, chain.over));
    }
    None
}

/// A function cut in two.
#[derive(Clone, Debug)]
pub struct Split {
    /// The other parameters to the results that do not depend on the late ones, then the residuals.
    pub forward: Function,
    /// Residuals, parameters that it reads, and the late ones, to the other results.
    pub backward: Function,
    /// Names of the residuals: results of the one, parameters of the other. A parameter of the function or a result that both
    /// have is none.
    pub residuals: Vec<Name>,
}

/// Which values are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// Those no larger than one parameter or result whose lengths they share; and those whose axes are all axes of one, or features: axes of
    /// numbered size that a parameter has whose axes all have numbers (a weight). Wider ones are computed again. What is called is never called twice.
    Narrow,
    /// Everything that the second program would otherwise reduce or multiply again.
    All,
}

/// Cuts `f` before everything that depends on the parameters `late`.
///
/// # Errors
/// A name that is no parameter; otherwise those of the builder, which mean a bug.
pub fn split(f: &Function, late: &[Name], keep: Keep) -> Result<Split, Error> {
    let mut seeds = vec![];
    for n in late {
        seeds.push(f.param(n).ok_or_else(|| Error::new(format!("split: `{n}` is not a parameter of `{}`", f.name)))?);
    }
    let depends = dependent(f, &seeds);
    let definitions = f.definitions();
    let ports = port_types(f);
    // Axes of weights: those of a parameter without any length that is not a number.
    let weights: BTreeSet<&Name> = f.params.iter().map(|p| &f.ty(p.var).axes).filter(|a| a.iter().all(|a| a.size.as_fixed().is_some())).flatten().map(|a| &a.name).collect();
    let held = |t: &Type, a: &Axis| t.has(&a.name) || (a.size.as_fixed().is_some() && weights.contains(&a.name));
    // Or no larger: the lengths without a number are its own, and the others hold no more elements (heads, split from features).
    let fixed = |t: &Type| t.axes.iter().filter_map(|a| a.size.as_fixed()).fold(1, i64::saturating_mul);
    let within = |t: &Type, v: &Type| v.axes.iter().all(|a| a.size.as_fixed().is_some() || t.has(&a.name)) && fixed(v) <= fixed(t);
    let narrow = |v: Var| keep == Keep::All || ports.iter().any(|t| f.ty(v).axes.iter().all(|a| held(t, a)) || within(t, f.ty(v)));
    let called = |i: usize| matches!(f.eqns[i].op, Prim::Call(_));
    let results: BTreeMap<Var, Name> = f.results.iter().filter(|r| !depends[r.var.index()]).map(|r| (r.var, r.name.clone())).collect();
    // What costs more than reading its operands; anything else is computed again from what is kept behind it.
    let heavy = |i: usize| matches!(f.eqns[i].op, Prim::Reduce(..) | Prim::Contract(_));
    let uses = f.uses();
    // Per value whether it is worth keeping: such a sum, or what it goes into alone (a bias added, a root taken), as the forward program has it
    // in memory then too, and the second one has less to do.
    let mut worth = vec![false; f.vars.len()];
    for (i, e) in f.eqns.iter().enumerate().filter(|(_, e)| f.ty(e.out).dtype.is_float()) {
        let behind = |a: &Var| worth[a.index()] && uses[a.index()] == 1 && f.ty(*a) == f.ty(e.out);
        worth[e.out.index()] = (heavy(i) && narrow(e.out) && !is_number(f, &definitions, e.out)) || (matches!(e.op, Prim::Elementwise(_)) && e.args.iter().any(behind));
    }
    // From what the second program reads, back to what is kept.
    let (mut kept, mut again) = (BTreeSet::new(), BTreeSet::new());
    let mut open: Vec<Var> = f.eqns.iter().filter(|e| depends[e.out.index()]).flat_map(|e| &e.args).copied().filter(|a| !depends[a.index()]).collect();
    while let Some(v) = open.pop() {
        let Some(i) = definitions[v.index()] else { continue };
        if kept.contains(&v) || again.contains(&i) {
            continue;
        }
        if results.contains_key(&v) || called(i) || worth[v.index()] {
            kept.insert(v);
        } else {
            again.insert(i);
            open.extend(&f.eqns[i].args);
        }
    }

    let taken = f.params.iter().chain(&f.results).map(|p| p.name.to_string()).collect();
    let fresh: BTreeSet<Var> = kept.iter().copied().filter(|v| !results.contains_key(v)).collect();
    let names = residual_names(f, &fresh, taken);
    let mut b = Builder::new(f.name.clone());
    let mut map = BTreeMap::new();
    for p in f.params.iter().filter(|p| !depends[p.var.index()]) {
        map.insert(p.var, b.param(p.name.clone(), f.ty(p.var).clone()));
    }
    for e in f.eqns.iter().filter(|e| !depends[e.out.index()]) {
        copy(&mut b, f, e, &mut map)?;
    }
    for r in f.results.iter().filter(|r| !depends[r.var.index()]) {
        b.result(r.name.clone(), map[&r.var]);
    }
    for (v, n) in &names {
        b.result(n.clone(), map[v]);
    }
    let mut forward = prune(&b.finish())?;
    forward.name = format!("{}.forward", f.name).into();

    let mut b = Builder::new(f.name.clone());
    let mut map = BTreeMap::new();
    let used: BTreeSet<Var> = f.eqns.iter().enumerate().filter(|(i, e)| depends[e.out.index()] || again.contains(i)).flat_map(|(_, e)| &e.args).copied().collect();
    for v in &kept {
        let n = names.get(v).or_else(|| results.get(v)).cloned().unwrap_or_default();
        map.insert(*v, b.param(n, f.ty(*v).clone()));
    }
    for p in f.params.iter().filter(|p| depends[p.var.index()] || used.contains(&p.var)) {
        map.insert(p.var, b.param(p.name.clone(), f.ty(p.var).clone()));
    }
    for (i, e) in f.eqns.iter().enumerate() {
        if depends[e.out.index()] || again.contains(&i) {
            copy(&mut b, f, e, &mut map)?;
        }
    }
    for r in f.results.iter().filter(|r| depends[r.var.index()]) {
        b.result(r.name.clone(), map[&r.var]);
    }
    let mut backward = prune(&b.finish())?;
    backward.name = format!("{}.backward", f.name).into();
    Ok(Split { forward, backward, residuals: names.into_values().collect() })
}
