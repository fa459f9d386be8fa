//! Two halves of one function, each simplified by itself: what depends on some late parameters (cotangents), and what does not.
//!
//! Simplified as a whole, a gradient's sum opens around a factor that waits for a pass over the same axis, since the two parts then fit into one
//! pass: `Σ_j p·(a − D)·k  =>  Σ_j p·a·k − D·Σ_j p·k`, an accumulator more for a walk less. Where accumulators are registers and walks are products,
//! it is the dearer form. The half that is late takes sums of the other as given, nothing in it waits for them, and no sum opens.

use super::{Simplified, simplify};
use crate::ad::copy;
use crate::ad::remat::{Keep, Split, split};
use crate::fuse::Options;
use ir::builder::Builder;
use ir::diagnostic::Error;
use ir::dim::Name;
use ir::graph::{Function, Var};
use std::collections::BTreeMap;

/// `f` simplified for a machine, and how: where accumulators are registers, the halves of a gradient each by itself, else all of it.
///
/// # Errors
/// Those of [`simplify`].
pub fn simplify_for(f: &Function, options: &Options) -> Result<(Function, Vec<Simplified>), Error> {
    let late = cotangents(f);
    if !(options.scratch || late.is_empty() || !f.callees().is_empty()) {
        let halves = split(f, &late, Keep::Narrow)?;
        if !halves.forward.results.is_empty() && !halves.backward.results.is_empty() {
            let (function, how) = staged(f, &halves)?;
            return Ok((super::absorb::absorb(&function, &late)?, how));
        }
    }
    let s = simplify(f)?;
    Ok((s.function.clone(), vec![s]))
}

/// Parameters that are cotangents, by their suffix, or tangents of these.
fn cotangents(f: &Function) -> Vec<Name> {
    let is = |n: &Name| n.split('.').skip(1).any(|part| part.strip_prefix("ct").is_some_and(|k| k.chars().all(|c| c.is_ascii_digit())));
    f.params.iter().map(|p| p.name.clone()).filter(is).collect()
}

/// `f` as one function again, of which the halves were simplified each by itself: same parameters, results and meaning to rounding; and how.
/// What is stored between the halves is for `fuse` to decide.
fn staged(f: &Function, halves: &Split) -> Result<(Function, Vec<Simplified>), Error> {
    let mut b = Builder::new(f.name.clone());
    let mut values: BTreeMap<Name, Var> = f.params.iter().map(|p| (p.name.clone(), b.param(p.name.clone(), f.ty(p.var).clone()))).collect();
    let lost = |n: &Name| Error::new(format!("simplify: `{n}` is in neither half of `{}`", f.name));
    let mut how = vec![];
    for whole in [&halves.forward, &halves.backward] {
        let simplified = simplify(whole)?;
        let half = &simplified.function;
        let mut map = BTreeMap::new();
        for p in &half.params {
            map.insert(p.var, *values.get(&p.name).ok_or_else(|| lost(&p.name))?);
        }
        for e in &half.eqns {
            copy(&mut b, half, e, &mut map)?;
        }
        // The other half reads it as it was before: simplified, axes may have another order.
        for (r, before) in half.results.iter().zip(&whole.results) {
            let order: Vec<Name> = whole.ty(before.var).axes.iter().map(|a| a.name.clone()).collect();
            let v = *map.get(&r.var).ok_or_else(|| lost(&r.name))?;
            values.insert(r.name.clone(), b.permute(v, &order)?);
        }
        how.push(simplified);
    }
    for r in &f.results {
        b.result(r.name.clone(), *values.get(&r.name).ok_or_else(|| lost(&r.name))?);
    }
    Ok((b.finish(), how))
}
