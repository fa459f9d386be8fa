//! What a kernel would make again and again, although reading it costs less.
//!
//! Fusing saves a write and a read, and costs what is computed more than once for it: by every instance that shares out an axis which
//! the value has not, or by every pass over the streamed axis. Both sides are numbers here, in operations on one element; a size without a
//! number counts as [`NOMINAL`]. A value is stored only if it is *bounded*: it grows with no more lengths than something in memory does
//! anyway, so that no kernel's memory becomes quadratic in a length.

use super::partition::{Kernel, Partition, Why};
use super::view::Strides;
use crate::simplify::extract::NOMINAL;
use ir::dim::Name;
use ir::graph::{Eqn, Var};
use ir::prim::{Elementwise, Prim};
use ir::types::{Axis, Type};
use std::collections::BTreeSet;

/// Writing an element and reading it, in operations on an element: 8 bytes of a cache's bandwidth.
pub(super) const STORED: f64 = 16.0;
/// Operations that a kernel more is worth: some microseconds.
const LAUNCH: f64 = 262_144.0;
/// Fewer operations an element are done beside the loads.
const LITTLE: f64 = 4.0;
/// The longest sum inside a loop over weights: an instance copies them for its rows (12 bytes an element of the sum and of x), which
/// for about 192 rows is as much as writing and reading what they make.
const INSIDE: f64 = 128.0;
/// The share of their products' time that two kernels lose when they become one whose tiles crowd the cache.
const CROWDED: f64 = 0.02;
/// What a product along vectors costs more than one with lanes.
const ALONG: f64 = 4.0;
/// How many times the elements of a parameter or result something may have to be stored.
const WIDER: f64 = 8.0;

impl Partition<'_> {
    /// What of kernel `k`, made of the equations `closure`, should be stored first.
    pub(super) fn made_again(&self, closure: &[usize], k: &Kernel) -> Option<Why> {
        if k.owned.is_some() {
            return None;
        }
        let f = self.f;
        let eqns: Vec<&Eqn> = closure.iter().map(|i| &f.eqns[*i]).collect();
        self.in_passes(&eqns, k).or_else(|| self.inside(&eqns, k)).or_else(|| self.in_instances(&eqns, k)).or_else(|| self.rows_in_instances(k)).or_else(|| self.without_lanes(&eqns, k)).or_else(|| self.parts_apart(k))
    }

    /// A sum of products along the streamed axis that more than one pass needs.
    fn in_passes(&self, eqns: &[&Eqn], k: &Kernel) -> Option<Why> {
        let x = k.x.as_ref().filter(|_| !k.resident)?;
        // What each pass computes of its own.
        let mut passes: Vec<(usize, BTreeSet<Var>)> = vec![];
        let mut add = |pass: usize, values: BTreeSet<Var>| match passes.iter_mut().find(|p| p.0 == pass) {
            Some(p) => p.1.extend(values),
            None => passes.push((pass, values)),
        };
        for (v, s) in &k.stats {
            let args = self.definitions[v.index()].map(|i| &self.f.eqns[i].args[..]).unwrap_or_default();
            add(s.pass, self.cone(args, k));
        }
        for (_, v, s) in &k.stores {
            if s.of.iter().any(|(n, _)| *n == x.name) {
                add(usize::MAX, self.cone(&[*v], k));
            }
        }
        for e in eqns.iter().filter(|e| self.f.ty(e.out).has(&x.name) && !k.stats.contains_key(&e.out)) {
            let Prim::Contract(over) = &e.op else { continue };
            let times = passes.iter().filter(|p| p.1.contains(&e.out)).count();
            let cost = self.product(over.iter().filter_map(|n| self.axis_of(e, n)));
            if times > 1 && cost * (times - 1) as f64 > 2.0 * STORED && self.bounded(e.out) {
                return Some(Why::Cut(vec![self.epilogue(e.out)], format!("{times} passes over {x} would make it, {cost} products each time")));
            }
        }
        None
    }

    /// A long sum of products inside a loop over weights, which every instance would have to read.
    fn inside(&self, eqns: &[&Eqn], k: &Kernel) -> Option<Why> {
        let x = k.x.as_ref().filter(|_| !k.resident)?;
        for e in eqns.iter().filter(|e| self.f.ty(e.out).has(&x.name) && !k.stats.contains_key(&e.out)) {
            let Prim::Contract(over) = &e.op else { continue };
            let rows = |a: &Var| k.parallel.iter().any(|p| self.f.ty(e.out).has(&p.name) && !self.f.ty(*a).has(&p.name));
            let weights = e.args.iter().any(|a| self.f.ty(*a).has(&x.name) && rows(a));
            let cost = self.product(over.iter().filter_map(|n| self.axis_of(e, n)));
            if weights && cost > INSIDE && self.bounded(e.out) {
                // With what is done to it before it is summed.
                let consumed = |v: &Var| self.f.ty(*v).axes.len() == self.f.ty(e.out).axes.len() && self.f.ty(e.out).covers(self.f.ty(*v)) && self.cone(&[*v], k).contains(&e.out);
                let mut cuts: Vec<Var> = k.stats.keys().filter_map(|v| self.definitions[v.index()]).flat_map(|i| self.f.eqns[i].args.iter().copied()).filter(consumed).collect();
                cuts.sort();
                cuts.dedup();
                let cuts = if cuts.is_empty() { vec![self.epilogue(e.out)] } else { cuts };
                return Some(Why::Cut(cuts, format!("each instance would read all of {x} for it, {cost} products an element")));
            }
        }
        None
    }

    /// An operand of products that instances along an axis which it has not would all make.
    fn in_instances(&self, eqns: &[&Eqn], k: &Kernel) -> Option<Why> {
        for e in eqns.iter().filter(|e| matches!(e.op, Prim::Contract(_))) {
            for a in e.args.iter().filter(|a| self.read(**a).is_none()) {
                let lacks: Vec<&Axis> = k.parallel.iter().filter(|p| !self.f.ty(*a).has(&p.name)).collect();
                let times: f64 = lacks.iter().map(|p| (self.size(p) / self.tile(k, p)).ceil()).product();
                let elements = self.product(self.f.ty(*a).axes.iter().cloned());
                let (cone, behind) = (self.cone(&[*a], k), self.reach(&[*a], |_| false));
                let mut cost = self.all_operations(cone.iter().chain(k.stats.keys().filter(|v| behind.contains(v))));
                if self.options.scratch {
                    // What it reads is read by each pass; itself it would be read once.
                    cost += k.stats.keys().filter(|v| behind.contains(v)).map(|v| self.elements_read(*v, k)).sum::<f64>() + self.elements_read(*a, k) - elements;
                }
                if cost > LITTLE * elements && cost * (times - 1.0) > STORED * elements + LAUNCH && self.bounded(*a) {
                    let axes: Vec<&str> = lacks.iter().map(|p| &*p.name).collect();
                    return Some(Why::Cut(vec![*a], format!("instances along {} would make it, {:.0} operations an element each time", axes.join(", "), cost / elements)));
                }
            }
        }
        None
    }

    /// A statistic of rows that instances along an axis which the rows have not would all make beside their products.
    fn rows_in_instances(&self, k: &Kernel) -> Option<Why> {
        let products = k.stats.keys().any(|v| self.definitions[v.index()].is_some_and(|i| matches!(self.f.eqns[i].op, Prim::Contract(_))));
        if !self.options.scratch || k.resident || !products {
            return None;
        }
        for v in k.stats.keys().rev().filter(|v| k.targets.iter().all(|t| t.1 != **v)) {
            let lacks: Vec<&Axis> = k.parallel.iter().filter(|p| !self.f.ty(*v).has(&p.name)).collect();
            let times: f64 = lacks.iter().map(|p| (self.size(p) / self.tile(k, p)).ceil()).product();
            let elements = self.product(self.f.ty(*v).axes.iter().cloned());
            let behind = self.reach(&[*v], |_| false);
            let read: f64 = k.stats.keys().filter(|s| behind.contains(s)).map(|s| self.elements_read(*s, k)).sum();
            let cost = self.all_operations(&behind) + read;
            if self.definitions[v.index()].is_some_and(|i| matches!(self.f.eqns[i].op, Prim::Reduce(..))) && cost * (times - 1.0) > STORED * elements + LAUNCH && self.bounded(*v) {
                let axes: Vec<&str> = lacks.iter().map(|p| &*p.name).collect();
                return Some(Why::Cut(vec![self.epilogue(*v)], format!("instances along {} would make it for their rows, {:.0} operations a row each time", axes.join(", "), cost / elements)));
            }
        }
        None
    }
    /// A product in which nothing has lanes: a machine with vectors makes it from products and sums along vectors, where in a kernel of its own it has lanes.
    fn without_lanes(&self, eqns: &[&Eqn], k: &Kernel) -> Option<Why> {
        let lane = k.parallel.last().filter(|_| self.options.scratch && !k.resident)?;
        for e in eqns.iter().filter(|e| k.targets.iter().all(|t| t.1 != e.out)) {
            let has = |v: &Var| self.f.ty(*v).has(&lane.name);
            let elements = self.product(self.f.ty(e.out).axes.iter().cloned());
            if matches!(e.op, Prim::Contract(_)) && !has(&e.out) && !e.args.iter().any(has) && ALONG * self.operations(e) > STORED * elements + LAUNCH && self.bounded(e.out) {
                return Some(Why::Cut(vec![self.epilogue(e.out)], format!("it has no {}, along which lanes lie", lane.name)));
            }
        }
        None
    }
    /// Sums that are parts of a joined value, where the parts have no axis in common along which they lie in memory: each element would be moved by itself.
    /// In kernels of their own they have such lanes, and the join is movement.
    fn parts_apart(&self, k: &Kernel) -> Option<Why> {
        let lane = k.parallel.last().filter(|_| self.options.scratch && !k.resident)?;
        let part = |s: &(usize, Var, Strides)| k.stores.iter().filter(|o| o.0 == s.0).count() > 1;
        if k.stores.iter().any(|s| s.2.of.iter().any(|(n, d)| *n == lane.name && d.is_one())) {
            return None;
        }
        let sums = |v: &Var| self.reach(&[*v], |_| false).iter().any(|u| k.stats.contains_key(u));
        let mut cuts: Vec<Var> = k.stores.iter().filter(|s| part(s)).map(|s| s.1).filter(|v| self.read(*v).is_none() && sums(v) && self.bounded(*v)).collect();
        cuts.sort();
        cuts.dedup();
        (!cuts.is_empty()).then(|| Why::Cut(cuts, format!("it is a part of a joined value whose parts share lanes along {} alone, which is contiguous in none", lane.name)))
    }
    /// Elements in memory that are read for `v` in its pass.
    fn elements_read(&self, v: Var, k: &Kernel) -> f64 {
        let args = self.definitions[v.index()].map(|i| &self.f.eqns[i].args[..]).unwrap_or_default();
        let made = self.cone(args, k);
        let read: BTreeSet<Var> = made.iter().filter_map(|v| self.definitions[v.index()]).flat_map(|i| &self.f.eqns[i].args).chain(args).copied().filter(|v| self.read(*v).is_some()).collect();
        read.iter().map(|v| self.product(self.f.ty(*v).axes.iter().cloned())).sum()
    }

    /// Operations that kernel `k` has less if `v` is in memory.
    pub(super) fn without(&self, k: &Kernel, v: Var) -> f64 {
        let roots: Vec<Var> = k.stores.iter().map(|s| s.1).collect();
        let (all, rest) = (self.reach(&roots, |_| false), self.reach(&roots, |u| u == v));
        self.all_operations(all.difference(&rest))
    }
    /// What is saved by storing `v`, without which its `times` kernels have `less` operations; if that is more than to make it once, a write, their reads
    /// and a kernel more.
    pub(super) fn saved_by_storing(&self, v: Var, less: f64, times: usize) -> Option<f64> {
        let e = &self.f.eqns[self.definitions[v.index()]?];
        if !matches!(e.op, Prim::Contract(_) | Prim::Reduce(..) | Prim::Elementwise(_)) || !self.bounded(v) {
            return None;
        }
        let elements = self.product(self.f.ty(v).axes.iter().cloned());
        let once = self.all_operations(&self.reach(&[v], |_| false));
        Some(less - once - 0.5 * STORED * elements * (times + 1) as f64 - LAUNCH).filter(|s| *s > 0.0)
    }
    /// Whether two kernels are better as one: what both make is made once, what both read is read once, and a launch is saved; their products
    /// have fewer panels in the cache.
    pub(super) fn worth_joining<'v>(&self, a: &Kernel, b: &Kernel, common: impl Iterator<Item = &'v Var>) -> bool {
        let made = |k: &Kernel| self.reach(&k.stores.iter().map(|s| s.1).collect::<Vec<Var>>(), |_| false);
        let products = |made: &BTreeSet<Var>| self.all_operations(made.iter().filter(|v| matches!(self.definitions[v.index()].map(|i| &self.f.eqns[i].op), Some(Prim::Contract(_)))));
        let (one, other) = (made(a), made(b));
        let shared: f64 = common.map(|v| self.product(self.f.ty(*v).axes.iter().cloned())).sum();
        let gain = self.all_operations(one.intersection(&other)) + 0.5 * STORED * shared + LAUNCH;
        gain > CROWDED * (products(&one) + products(&other))
    }
    fn all_operations<'v>(&self, values: impl IntoIterator<Item = &'v Var>) -> f64 {
        values.into_iter().filter_map(|v| self.definitions[v.index()]).map(|i| self.operations(&self.f.eqns[i])).sum()
    }

    /// Elements of a parallel axis that share what an instance makes.
    fn tile(&self, k: &Kernel, a: &Axis) -> f64 {
        match k.parallel.iter().rev().position(|p| p.name == a.name) {
            Some(0) => self.options.lanes as f64,
            Some(1) => self.options.matmul.0 as f64,
            _ => 1.0,
        }
    }
    /// What has to be computed for `roots` that is neither in memory nor carried.
    fn cone(&self, roots: &[Var], k: &Kernel) -> BTreeSet<Var> {
        self.reach(roots, |v| k.stats.contains_key(&v))
    }
    /// What `roots` are computed from, themselves included, up to memory and to where it `ends`.
    fn reach(&self, roots: &[Var], ends: impl Fn(Var) -> bool) -> BTreeSet<Var> {
        let (mut seen, mut open) = (BTreeSet::new(), roots.to_vec());
        while let Some(v) = open.pop() {
            if ends(v) || self.read(v).is_some() || !seen.insert(v) {
                continue;
            }
            if let Some(i) = self.definitions[v.index()] {
                open.extend(&self.f.eqns[i].args);
            }
        }
        seen
    }
    /// The last value of the same axes that `v` alone goes into.
    fn epilogue(&self, mut v: Var) -> Var {
        while self.users[v.index()] == 1 {
            let next = self.f.eqns.iter().find(|e| e.args.contains(&v) && matches!(e.op, Prim::Elementwise(_)));
            let Some(next) = next.filter(|e| self.f.ty(e.out).axes.len() == self.f.ty(v).axes.len() && self.f.ty(v).covers(self.f.ty(e.out))) else { break };
            v = next.out;
        }
        v
    }
    /// Whether `v` may be stored: it has no more than [`WIDER`] times the elements of some parameter or result that has all its lengths
    /// without a fixed number.
    fn bounded(&self, v: Var) -> bool {
        let ty = self.f.ty(v);
        let elements = |t: &Type| self.product(t.axes.iter().cloned());
        let lengths: Vec<&Name> = ty.axes.iter().filter(|a| a.size.as_fixed().is_none()).map(|a| &a.name).collect();
        self.narrow(v) || self.in_memory().any(|t| lengths.iter().all(|n| t.has(n)) && elements(ty) <= WIDER * elements(t))
    }
    fn size(&self, a: &Axis) -> f64 {
        a.size.eval(&self.options.dims).unwrap_or(NOMINAL).max(1) as f64
    }
    fn product(&self, axes: impl Iterator<Item = Axis>) -> f64 {
        axes.map(|a| self.size(&a)).product()
    }
    fn axis_of(&self, e: &Eqn, n: &Name) -> Option<Axis> {
        e.args.iter().find_map(|a| self.f.ty(*a).axis(n)).cloned()
    }
    /// Operations on elements that an equation is; two multiply-adds are one.
    fn operations(&self, e: &Eqn) -> f64 {
        let mut axes: Vec<Axis> = vec![];
        for a in e.args.iter().flat_map(|a| &self.f.ty(*a).axes) {
            if !axes.iter().any(|b| b.name == a.name) {
                axes.push(a.clone());
            }
        }
        use Elementwise::{Cos, Erf, Exp, Log, Logistic, Pow, Rsqrt, Sin, Sqrt, Tanh};
        let each = match &e.op {
            Prim::Contract(_) => 0.5,
            Prim::Elementwise(Exp | Log | Sqrt | Rsqrt | Tanh | Logistic | Sin | Cos | Erf | Pow) => 12.0,
            Prim::Elementwise(Elementwise::Convert(_)) => 0.0,
            Prim::Elementwise(_) | Prim::Reduce(..) => 1.0,
            _ => 0.0,
        };
        each * self.product(axes.into_iter())
    }
}
