//! Which values move when some parameters do, and of those, which a result needs.

use ir::graph::{Function, Var};
use ir::prim::{Kind, Prim};

/// Whether a tangent can pass through `op` at all.
fn differentiable(op: &Prim) -> bool {
    match op {
        Prim::Elementwise(e) => e.kind() != Kind::Zero,
        Prim::Reduce(..) | Prim::Contract(_) | Prim::Movement(_) | Prim::Call(_) => true,
        Prim::Constant(_) | Prim::Size(..) | Prim::Iota(_) | Prim::StopGradient => false,
    }
}

/// For each value, by [`Var`]: whether it depends differentiably on one of `seeds` *and* a result depends on it. Only
/// these get tangents; every other tangent is absent, not zero.
pub fn active(f: &Function, seeds: &[Var]) -> Vec<bool> {
    let mut moves = vec![false; f.vars.len()];
    seeds.iter().for_each(|v| moves[v.index()] = true);
    for e in &f.eqns {
        // The condition of a select is bool, so it never moves.
        moves[e.out.index()] =
            f.ty(e.out).dtype.is_float() && differentiable(&e.op) && e.args.iter().any(|a| moves[a.index()]);
    }
    let mut needed = vec![false; f.vars.len()];
    f.results.iter().for_each(|r| needed[r.var.index()] = true);
    for e in f.eqns.iter().rev().filter(|e| differentiable(&e.op)) {
        if needed[e.out.index()] {
            e.args.iter().for_each(|a| needed[a.index()] = true);
        }
    }
    moves.iter().zip(&needed).map(|(m, n)| *m && *n).collect()
}
