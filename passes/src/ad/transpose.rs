//! Transposition: a linear program walked backwards.
//!
//! `(r, t) => y`, linear in t, becomes `(r, y.ct) => t.ct` with ⟨y, y.ct⟩ = ⟨t, t.ct⟩ for all t. Each operation's rule stands in its
//! file of `ir::prim`; here cotangents are collected and joined. What does not depend on t (residuals, and what is computed from
//! them) stays as it is. A cotangent that meets an operation without a transpose is an error: dropping it would give a wrong
//! gradient without a word.

use super::call::{Checkpoint, Derived, From, groups};
use super::linearize::{copy, dependent, prune};
use ir::builder::Builder;
use ir::diagnostic::Error;
use ir::dim::Name;
use ir::graph::{Eqn, Function, Var};
use ir::prim::{Call, Prim};
use ir::prim::transpose::{Operand, Pull, is_zero, join};
use std::collections::BTreeMap;

/// The transpose of `f`, which is linear in the parameters `wrt`.
///
/// The result has `f`'s other parameters, then `NAME.ct` for each of `f`'s results; its results are `NAME.ct` for each of `wrt`. A
/// parameter on which nothing depends has zeros.
///
/// # Errors
/// A name in `wrt` that is no parameter; a result that does not depend on them; an equation that is not linear, named with its operands.
pub fn transpose(f: &Function, wrt: &[Name]) -> Result<Function, Error> {
    transpose_in(f, wrt, &mut Derived::new(f, Checkpoint::default()))
}

/// [`transpose`], with what is derived of callees.
pub(super) fn transpose_in(f: &Function, wrt: &[Name], derived: &mut Derived) -> Result<Function, Error> {
    let mut seeds = vec![];
    for n in wrt {
        seeds.push(f.param(n).ok_or_else(|| Error::new(format!("transpose: `{n}` is not a parameter of `{}`", f.name)))?);
    }
    let linear = dependent(f, &seeds);
    if let Some(r) = f.results.iter().find(|r| !linear[r.var.index()]) {
        return Err(Error::new(format!("transpose: result `{}` does not depend on {}, so its cotangent would be dropped", r.name, wrt.join(", "))));
    }
    let definitions = f.definitions();
    let mut b = Builder::new(f.name.clone());
    // The values that do not depend on `wrt`.
    let mut values: BTreeMap<Var, Var> = BTreeMap::new();
    for p in f.params.iter().filter(|p| !linear[p.var.index()]) {
        values.insert(p.var, b.param(p.name.clone(), f.ty(p.var).clone()));
    }
    for e in f.eqns.iter().filter(|e| !linear[e.out.index()]) {
        copy(&mut b, f, e, &mut values)?;
    }
    let mut pulls: BTreeMap<Var, Vec<Pull>> = BTreeMap::new();
    for r in &f.results {
        let ct = b.param(format!("{}.ct", r.name), f.ty(r.var).clone());
        pulls.entry(r.var).or_default().push(Pull::Whole(ct));
    }
    let groups = groups(f);
    // Cotangents of a call's results, by its first equation.
    let mut arrived: BTreeMap<usize, BTreeMap<usize, Var>> = BTreeMap::new();
    for (i, e) in f.eqns.iter().enumerate().rev().filter(|(_, e)| linear[e.out.index()]) {
        if let (Some(group), Prim::Call(c)) = (groups[i], &e.op) {
            b.origin = Some("transpose:call".into());
            b.span = e.span;
            if let Some(ct) = join(&mut b, f.ty(e.out), pulls.remove(&e.out).unwrap_or_default())? {
                let order: Vec<Name> = f.ty(e.out).axes.iter().map(|a| a.name.clone()).collect();
                let ct = b.permute(ct, &order)?;
                if let Some(n) = &f.vars[e.out.index()].name {
                    b.name(ct, format!("{n}.ct"));
                }
                arrived.entry(group).or_default().insert(c.result, ct);
            }
            // Every use of every result stands behind the call's first equation.
            let cts = if group == i { arrived.remove(&group) } else { None };
            if let Some(cts) = cts {
                for (a, p) in call(&mut b, e, c, &linear, &values, &cts, derived)? {
                    pulls.entry(a).or_default().push(p);
                }
            }
            continue;
        }
        let Some(list) = pulls.remove(&e.out) else { continue };
        b.origin = Some(format!("transpose:{}", e.op.name()).into());
        b.span = e.span;
        let Some(ct) = join(&mut b, f.ty(e.out), list)? else { continue };
        if let Some(n) = &f.vars[e.out.index()].name {
            b.name(ct, format!("{n}.ct"));
        }
        for (a, p) in equation(&mut b, f, e, &linear, &values, &definitions, ct)? {
            pulls.entry(a).or_default().push(p);
        }
    }
    for (v, n) in seeds.iter().zip(wrt) {
        b.origin = Some("transpose:parameter".into());
        b.span = None;
        let ty = f.ty(*v);
        let ct = match join(&mut b, ty, pulls.remove(v).unwrap_or_default())? {
            Some(ct) => ct,
            None => {
                let zero = b.constant(0.0, ty.dtype);
                if ty.axes.is_empty() { zero } else { b.movement(ir::prim::Movement::Broadcast(ty.axes.clone()), &[zero])? }
            }
        };
        let order: Vec<Name> = ty.axes.iter().map(|a| a.name.clone()).collect();
        let ct = b.permute(ct, &order)?;
        b.name(ct, format!("{n}.ct"));
        b.result(format!("{n}.ct"), ct);
    }
    let mut g = prune(&b.finish())?;
    g.name = format!("{}.transpose", f.name).into();
    Ok(g)
}

/// What the cotangents of a call's results are to its operands that depend on what `f` is linear in.
fn call(b: &mut Builder, e: &Eqn, c: &Call, linear: &[bool], values: &BTreeMap<Var, Var>, cts: &BTreeMap<usize, Var>, derived: &mut Derived) -> Result<Vec<(Var, Pull)>, Error> {
    let moving: Vec<bool> = e.args.iter().map(|a| linear[a.index()]).collect();
    let arriving: Vec<bool> = (0..c.function.results.len()).map(|r| cts.contains_key(&r)).collect();
    let p = derived.pullback(&c.function, &moving, &arriving)?;
    let mut args = vec![];
    for o in &p.operands {
        let v = match o {
            From::Value(i) => values.get(&e.args[*i]),
            From::Cotangent(r) => cts.get(r),
        };
        args.push(*v.ok_or_else(|| Error { message: format!("transpose: call of `{}`: it is not linear in what it should be", c.function.name), span: e.span, hint: None })?);
    }
    let mut out = vec![];
    for (result, i) in p.results.iter().enumerate() {
        let ct = b.push(Prim::Call(Call { function: p.function.clone(), result }), &args)?;
        out.push((e.args[*i], Pull::Whole(ct)));
    }
    Ok(out)
}

/// What `e`'s cotangent is to each operand that depends on what `f` is linear in.
fn equation(b: &mut Builder, f: &Function, e: &Eqn, linear: &[bool], values: &BTreeMap<Var, Var>, definitions: &[Option<usize>], ct: Var) -> Result<Vec<(Var, Pull)>, Error> {
    let operands: Vec<Operand> = e.args.iter().map(|a| Operand { ty: f.ty(*a).clone(), value: values.get(a).copied() }).collect();
    let describe = |v: Var| match &f.vars[v.index()].name {
        Some(n) => format!("`{n}`"),
        None => format!("a value of {}", f.ty(v)),
    };
    let names = e.args.iter().map(|a| format!("{}{}", describe(*a), if linear[a.index()] { " (linear)" } else { "" })).collect::<Vec<_>>().join(", ");
    let refuse = |why: String| Error { message: format!("transpose: {} of {names}: {why}", e.op.name()), span: e.span, hint: None };
    // A sum with something that is not zero is affine, not linear.
    let sums = match &e.op {
        Prim::Elementwise(ir::prim::Elementwise::Select) => 1..3,
        Prim::Elementwise(ir::prim::Elementwise::Add | ir::prim::Elementwise::Sub) | Prim::Movement(_) => 0..e.args.len(),
        _ => 0..0,
    };
    for a in &e.args[sums] {
        if !linear[a.index()] && !is_zero(f, definitions, *a) {
            return Err(refuse(format!("{} does not depend on the tangents and is not zero, so the sum is not linear", describe(*a))));
        }
    }
    let mut out = vec![];
    for (i, a) in e.args.iter().enumerate().filter(|(_, a)| linear[a.index()]) {
        match e.op.transpose(b, i, &operands, ct)? {
            Some(p) => out.push((*a, p)),
            None => return Err(refuse(format!("it is not linear in {}, so the cotangent would be dropped", describe(*a)))),
        }
    }
    Ok(out)
}
