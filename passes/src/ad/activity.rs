//! Which values move when some parameters do, and of those, which a result needs.

use super::jvp::Want;
use ir::graph::{Function, Var};
use ir::prim::{Callee, Kind, Prim};
use std::collections::HashMap;
use std::rc::Rc;

/// Whether a tangent can pass through `op` at all.
fn differentiable(op: &Prim) -> bool {
    match op {
        Prim::Elementwise(e) => e.kind() != Kind::Zero,
        Prim::Reduce(..) | Prim::Contract(_) | Prim::Movement(_) | Prim::Call(_) => true,
        Prim::Constant(_) | Prim::Size(..) | Prim::Iota(_) | Prim::StopGradient => false,
    }
}

/// Per result, per parameter: whether the one depends differentiably on the other.
pub type Dependence = Vec<Vec<bool>>;

/// [`Dependence`] of functions, each looked at once.
#[derive(Default)]
struct Known(HashMap<Callee, Rc<Dependence>>);

impl Known {
    fn of(&mut self, f: &Callee) -> Rc<Dependence> {
        if let Some(d) = self.0.get(f) {
            return d.clone();
        }
        let d = Rc::new(self.function(f));
        self.0.insert(f.clone(), d.clone());
        d
    }
    fn function(&mut self, f: &Function) -> Dependence {
        let mut out = vec![vec![false; f.params.len()]; f.results.len()];
        for (i, p) in f.params.iter().enumerate() {
            let moves = self.moving(f, &[p.var]);
            for (row, r) in out.iter_mut().zip(&f.results) {
                row[i] = f.ty(p.var).dtype.is_float() && moves[r.var.index()];
            }
        }
        out
    }
    fn moving(&mut self, f: &Function, seeds: &[Var]) -> Vec<bool> {
        let mut moves = vec![false; f.vars.len()];
        seeds.iter().for_each(|v| moves[v.index()] = true);
        for e in &f.eqns {
            // The condition of a select is bool, so it never moves.
            moves[e.out.index()] = f.ty(e.out).dtype.is_float() && differentiable(&e.op) && e.args.iter().any(|a| moves[a.index()]) && match &e.op {
                Prim::Call(c) => {
                    let d = self.of(&c.function);
                    e.args.iter().zip(&d[c.result]).any(|(a, d)| *d && moves[a.index()])
                }
                _ => true,
            };
        }
        moves
    }
}

/// [`Dependence`] of `f`.
pub fn dependence(f: &Function) -> Dependence {
    Known::default().function(f)
}

/// For each value, by [`Var`]: whether it depends differentiably on one of `seeds` *and* a result depends on it. Only
/// these get tangents; every other tangent is absent, not zero.
pub fn active(f: &Function, seeds: &[Var]) -> Vec<bool> {
    active_for(f, seeds, Want::All)
}

/// [`active`], where only some results are asked for.
pub(super) fn active_for(f: &Function, seeds: &[Var], want: Want) -> Vec<bool> {
    let mut known = Known::default();
    let moves = known.moving(f, seeds);
    let mut needed = vec![false; f.vars.len()];
    f.results.iter().enumerate().filter(|(i, _)| want.has(*i)).for_each(|(_, r)| needed[r.var.index()] = true);
    for e in f.eqns.iter().rev().filter(|e| differentiable(&e.op)) {
        if needed[e.out.index()] {
            match &e.op {
                Prim::Call(c) => {
                    let d = known.of(&c.function);
                    e.args.iter().zip(&d[c.result]).filter(|(_, d)| **d).for_each(|(a, _)| needed[a.index()] = true);
                }
                _ => e.args.iter().for_each(|a| needed[a.index()] = true),
            }
        }
    }
    moves.iter().zip(&needed).map(|(m, n)| *m && *n).collect()
}
