//! The order of axes of what is made between kernels.
//!
//! An order means nothing before a value is stored; then the last axis is contiguous and lies in lanes. Simplified contractions have the axes of
//! their first operand first, `Σ W[R,D]·z[B,N,D]` those of the weight, and a short N would be what vectors run along. Such a value gets the order
//! that a parameter or result with all of its axes has, where something longer is last; what is moved or made from it follows.

use super::partition::Options;
use ir::graph::{Function, Var};
use ir::prim::Prim;
use ir::types::{Axis, Type};
use std::collections::BTreeSet;

/// `f` with its values' axes in such an order; `None` if nothing changes, or if an operation wants another one.
pub(super) fn reorder(f: &Function, options: &Options) -> Option<Function> {
    let size = |a: &Axis| a.size.eval(&options.dims).unwrap_or(i64::MAX);
    let short = |a: &Axis| size(a) < options.lanes as i64;
    let ports: Vec<&Type> = f.results.iter().chain(&f.params).map(|p| f.ty(p.var)).collect();
    let fixed: BTreeSet<Var> = f.results.iter().chain(&f.params).map(|p| p.var).collect();
    let mut g = f.clone();
    let mut any = false;
    for e in &f.eqns {
        if fixed.contains(&e.out) {
            continue;
        }
        let args: Vec<&Type> = e.args.iter().map(|a| g.ty(*a)).collect();
        let mut ty = e.op.infer(&args).ok()?;
        if matches!(e.op, Prim::Contract(_)) && ty.axes.last().is_some_and(short) {
            let as_port = |p: &&&Type| p.covers(&ty) && p.axes.iter().rev().find(|a| ty.has(&a.name)).is_some_and(|a| !short(a));
            if let Some(p) = ports.iter().find(as_port) {
                ty.axes = p.axes.iter().filter(|a| ty.has(&a.name)).cloned().collect();
            }
        }
        any |= ty != g.vars[e.out.index()].ty;
        g.vars[e.out.index()].ty = ty;
    }
    any.then_some(g)
}
