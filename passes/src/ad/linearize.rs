//! Linearization: `f(x) => (f(x), residuals)` and the linear program `(residuals, x.t) => ∂f(x)·x.t`.
//!
//! The tangent program of `jvp`, split by what depends on tangents. Derivatives of elementwise operations are values, which a
//! tangent is multiplied with, so they stand in the primal program; what is left is linear by structure. The idea is that of Radul,
//! Paszke, Frostig, Johnson and Maclaurin, *You Only Linearize Once* (arXiv 2204.10923).

use super::call::{Checkpoint, Derived};
use super::jvp::{Mode, Want, along};
use ir::builder::Builder;
use ir::diagnostic::Error;
use ir::dim::Name;
use ir::graph::{Eqn, Function, Var};
use std::collections::{BTreeMap, BTreeSet};

/// A function and its derivative at a point.
#[derive(Clone, Debug)]
pub struct Linearized {
    /// `f`'s parameters to `f`'s results, then the residuals.
    pub primal: Function,
    /// The residuals, then the tangents `NAME.t`, to the tangents of the results.
    pub linear: Function,
    /// Names of the residuals: results of the one, parameters of the other.
    pub residuals: Vec<Name>,
    /// Names of the tangents among `linear`'s parameters, in the order of `wrt`.
    pub tangents: Vec<Name>,
    /// Per result of `linear`, the name of the primal result that it is the tangent of.
    pub moving: Vec<Name>,
}

/// Splits the tangent program of `f` along the parameters `wrt`.
///
/// # Errors
/// Those of [`jvp`].
pub fn linearize(f: &Function, wrt: &[Name]) -> Result<Linearized, Error> {
    linearize_in(f, wrt, Want::All, &mut Derived::new(f, Checkpoint::default()))
}

/// [`linearize`] for some of the results: the primal part keeps all, the linear part has tangents of these.
pub(super) fn linearize_in(f: &Function, wrt: &[Name], want: Want, derived: &mut Derived) -> Result<Linearized, Error> {
    let (g, _) = along(f, wrt, want, Mode::Apart, &|_, _, _, t| Ok(Some(t)), derived)?;
    let seeds: Vec<Var> = g.params[f.params.len()..].iter().map(|p| p.var).collect();
    let linear = dependent(&g, &seeds);
    let definitions = g.definitions();

    // Values that the linear part reads. Numbers are not carried over but made again.
    let number = |v: Var| is_number(&g, &definitions, v);
    let read: BTreeSet<Var> = g.eqns.iter().filter(|e| linear[e.out.index()]).flat_map(|e| &e.args).copied().filter(|a| !linear[a.index()] && !number(*a)).collect();
    let taken = f.params.iter().chain(&g.params).chain(&g.results).map(|p| p.name.to_string()).collect();
    let names = residual_names(&g, &read, taken);

    let mut b = Builder::new(f.name.clone());
    let mut map: BTreeMap<Var, Var> = BTreeMap::new();
    for p in &f.params {
        map.insert(p.var, b.param(p.name.clone(), f.ty(p.var).clone()));
    }
    for e in g.eqns.iter().filter(|e| !linear[e.out.index()]) {
        copy(&mut b, &g, e, &mut map)?;
    }
    for r in &f.results {
        b.result(r.name.clone(), map[&r.var]);
    }
    for (v, n) in &names {
        b.result(n.clone(), map[v]);
    }
    let primal = prune(&b.finish())?;

    let mut b = Builder::new(format!("{}.linear", f.name));
    let mut map: BTreeMap<Var, Var> = BTreeMap::new();
    for (v, n) in &names {
        map.insert(*v, b.param(n.clone(), g.ty(*v).clone()));
    }
    for p in &g.params[f.params.len()..] {
        map.insert(p.var, b.param(p.name.clone(), g.ty(p.var).clone()));
    }
    for e in g.eqns.iter().filter(|e| linear[e.out.index()] || number(e.out)) {
        copy(&mut b, &g, e, &mut map)?;
    }
    for r in &g.results[f.results.len()..] {
        b.result(r.name.clone(), map[&r.var]);
    }
    let mut linear = prune(&b.finish())?;
    linear.name = format!("{}.linear", f.name).into();
    // `jvp` appends a tangent for each result that moves, in order.
    let suffix = g.params[f.params.len()].name.strip_prefix(&*wrt[0]).unwrap_or_default().to_string();
    let moving = g.results[f.results.len()..].iter().map(|r| r.name.strip_suffix(&*suffix).unwrap_or(&r.name).into()).collect();
    let tangents = g.params[f.params.len()..].iter().map(|p| p.name.clone()).collect();
    Ok(Linearized { primal, linear, residuals: names.into_values().collect(), tangents, moving })
}

/// For each value, by [`Var`]: whether it depends on one of `seeds`.
pub(crate) fn dependent(f: &Function, seeds: &[Var]) -> Vec<bool> {
    let mut depends = vec![false; f.vars.len()];
    seeds.iter().for_each(|v| depends[v.index()] = true);
    for e in &f.eqns {
        depends[e.out.index()] = e.args.iter().any(|a| depends[a.index()]);
    }
    depends
}

/// Whether `v` is made of constants, sizes and positions only.
pub(super) fn is_number(f: &Function, definitions: &[Option<usize>], v: Var) -> bool {
    definitions[v.index()].is_some_and(|i| f.eqns[i].args.iter().all(|a| is_number(f, definitions, *a)))
}

/// `e` of `g`, under `map`, with its name.
pub(crate) fn copy(b: &mut Builder, g: &Function, e: &Eqn, map: &mut BTreeMap<Var, Var>) -> Result<Var, Error> {
    b.origin = e.origin.clone();
    b.span = e.span;
    let args: Vec<Var> = e.args.iter().map(|a| map[a]).collect();
    let out = b.push(e.op.clone(), &args)?;
    if let Some(n) = &g.vars[e.out.index()].name {
        b.name(out, n.clone());
    }
    map.insert(e.out, out);
    b.origin = None;
    Ok(out)
}

/// Without equations that no result needs.
///
/// # Errors
/// Those of the builder, which mean a bug.
pub(crate) fn prune(f: &Function) -> Result<Function, Error> {
    let mut needed = vec![false; f.vars.len()];
    f.results.iter().for_each(|r| needed[r.var.index()] = true);
    for e in f.eqns.iter().rev() {
        if needed[e.out.index()] {
            e.args.iter().for_each(|a| needed[a.index()] = true);
        }
    }
    let mut b = Builder::new(f.name.clone());
    let mut map = BTreeMap::new();
    for p in &f.params {
        map.insert(p.var, b.param(p.name.clone(), f.ty(p.var).clone()));
    }
    for e in f.eqns.iter().filter(|e| needed[e.out.index()]) {
        copy(&mut b, f, e, &mut map)?;
    }
    for r in &f.results {
        b.result(r.name.clone(), map[&r.var]);
    }
    Ok(b.finish())
}

/// A name for each of `values` that none of `taken` has: its own, or its name as a residual.
pub(super) fn residual_names(g: &Function, values: &BTreeSet<Var>, mut taken: BTreeSet<String>) -> BTreeMap<Var, Name> {
    let params: BTreeMap<Var, &Name> = g.params.iter().map(|p| (p.var, &p.name)).collect();
    let mut names = BTreeMap::new();
    for v in values {
        let own = params.get(v).map(|n| n.to_string()).or_else(|| g.vars[v.index()].name.as_ref().map(|n| n.to_string()));
        let base = format!("{}.res", own.unwrap_or_else(|| "x".into()));
        let mut name = base.clone();
        let mut k = 2;
        while !taken.insert(name.clone()) {
            name = format!("{base}{k}");
            k += 1;
        }
        names.insert(*v, Name::from(name));
    }
    names
}
