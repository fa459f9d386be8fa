//! Reverse-mode differentiation: `f(x), y.ct => f(x), ∂f(x)ᵀ·y.ct`, by transposing the linear part of the tangent program.
//!
//! There is no rule here for any operation: `jvp` knows derivatives, `transpose` knows adjoints of linear operations, and this page puts
//! them together. The primal equations are `f`'s own, so forward and backward share what they have in common; what is stored
//! between them and what is computed again is decided by `fuse`, or by [`super::remat`] where they are two programs.

use super::call::{Checkpoint, Derived};
use super::jvp::Want;
use super::linearize::{copy, linearize_in, prune};
use super::remat;
use super::transpose::transpose_in;
use ir::builder::Builder;
use ir::diagnostic::Error;
use ir::dim::Name;
use ir::graph::{Function, Var};
use std::collections::BTreeMap;

/// The vector-Jacobian product of `f` with respect to the parameters `wrt`.
///
/// The result has `f`'s parameters, then a cotangent `RESULT.ct` for each result that depends differentiably on one of `wrt`; `f`'s
/// results, then `PARAM.ct` for each of `wrt`. Applied twice, suffixes add up: of `q.t` there is `q.t.ct`. Where a name is taken, the
/// suffix of the whole transform is `.ct2`, then `.ct3`.
///
/// # Errors
/// A name in `wrt` that is no parameter, is named twice, or is not a float; and `wrt` of which no result depends.
pub fn vjp(f: &Function, wrt: &[Name]) -> Result<Function, Error> {
    vjp_with(f, wrt, Checkpoint::default())
}

/// [`vjp`], which keeps of each call what `checkpoint` says.
///
/// # Errors
/// Those of [`vjp`].
pub fn vjp_with(f: &Function, wrt: &[Name], checkpoint: Checkpoint) -> Result<Function, Error> {
    along(f, wrt, Want::All, &mut Derived::new(f, checkpoint)).map(|(g, _)| g)
}

/// [`vjp_with`] for cotangents of some of the results; and the results that have one, in order.
pub(super) fn along(f: &Function, wrt: &[Name], want: Want, derived: &mut Derived) -> Result<(Function, Vec<usize>), Error> {
    let l = linearize_in(f, wrt, want, derived).map_err(|e| Error { message: e.message.replacen("jvp: ", "vjp: ", 1), ..e })?;
    let t = transpose_in(&l.linear, &l.tangents, derived)?;
    let suffix = suffix(f, wrt, &l.moving)?;

    let mut b = Builder::extend(l.primal.clone());
    let results = b.clear_results();
    let mut map: BTreeMap<Var, Var> = BTreeMap::new();
    let residuals = l.residuals.iter().map(|n| results.iter().find(|r| r.name == *n).map(|r| r.var));
    for (n, v) in l.residuals.iter().zip(residuals) {
        if let (Some(p), Some(v)) = (t.param(n), v) {
            map.insert(p, v);
        }
    }
    // Behind the residuals, the transpose's parameters are the cotangents, in the order of `moving`.
    let cotangents: Vec<Var> = t.params.iter().map(|p| p.var).filter(|v| !map.contains_key(v)).collect();
    for (p, n) in cotangents.iter().zip(&l.moving) {
        map.insert(*p, b.param(format!("{n}{suffix}"), t.ty(*p).clone()));
    }
    for e in &t.eqns {
        copy(&mut b, &t, e, &mut map)?;
    }
    for r in results.iter().take(f.results.len()) {
        b.result(r.name.clone(), r.var);
    }
    for (r, n) in t.results.iter().zip(wrt) {
        b.result(format!("{n}{suffix}"), map[&r.var]);
    }
    let late: Vec<Var> = cotangents.iter().map(|p| map[p]).collect();
    let mut g = prune(&derived.cut(&remat::known_sums(&b.finish(), &late)?)?)?;
    g.name = format!("{}.vjp", f.name).into();
    let moving = l.moving.iter().filter_map(|n| f.results.iter().position(|r| r.name == *n)).collect();
    Ok((g, moving))
}

/// The first of `.ct`, `.ct2`, … that makes only new names.
fn suffix(f: &Function, wrt: &[Name], moving: &[Name]) -> Result<String, Error> {
    if let Some(n) = moving.iter().find(|n| wrt.contains(n)) {
        return Err(Error::new(format!("vjp: `{n}` is a parameter and a result of `{}`, so `{n}.ct` would be two values", f.name)).hint("give the result another name"));
    }
    let taken = |n: String| f.params.iter().chain(&f.results).any(|p| *p.name == *n);
    let candidates = std::iter::once(".ct".to_string()).chain((2..).map(|k| format!(".ct{k}")));
    Ok(candidates.into_iter().find(|s| !wrt.iter().chain(moving).any(|n| taken(format!("{n}{s}")))).unwrap_or_default())
}
