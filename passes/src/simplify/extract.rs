//! Which of the equal terms to take.
//!
//! Counting operations alone picks forms that do not stream (a trial: 10 of 14 programs). So a candidate is *fused*, by the pass
//! that will fuse it, and what its block programs cost is its key: arithmetic, special functions and memory traffic, recomputed
//! scores and stored intermediates included; a percent for each accumulator and each kernel, and once more for each pass. There is one truth about
//! what streams, and it is `fuse`.
//!
//! The search starts from the normal form and from the cheapest trees, and changes one class at a time while that helps; the
//! operations that a term counts filter what is worth fusing. Sizes are nominal, so that one program serves all lengths.

use super::emit::{Port, Source, function};
use super::language::{Graph, Node, Op};
use crate::fuse::{Options, fuse};
use egg::{Id, Language, RecExpr};
use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::prim::{Prim, ReduceKind};
use ir::tile::{Stmt, cost::cost};
use ir::types::Type;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What every dimension is taken to be: it has many divisors, and fits into a tile.
pub const NOMINAL: i64 = 720;
/// The most candidates that are fused.
const TRIES: usize = 48;
/// Up to so many equations; a function of twice as many, whose fusion takes some four times as long, has a quarter of the candidates.
const SMALL: usize = 80;
/// How many operations a byte of memory traffic is worth.
const OPS_PER_BYTE: f64 = 8.0;
/// How many multiply-adds a special function is worth.
const SPECIAL: f64 = 8.0;
/// What an accumulator or a kernel adds to the cost: registers, and launches.
const OVERHEAD: f64 = 0.01;
/// What a further pass over a streamed axis adds: at nominal sizes it looks cheap, at long ones it reads everything again.
const PASS: f64 = 1.0;
/// A change that gains less keeps the form that is there.
pub const GAIN: f64 = 0.99;

/// What a function costs when fused.
#[derive(Clone, PartialEq, Debug)]
pub struct Key {
    /// Kernels.
    pub kernels: usize,
    /// Passes over streamed axes.
    pub passes: usize,
    /// Accumulators, over all passes.
    pub accumulators: usize,
    /// Operations, special functions and traffic, as multiply-adds, at nominal sizes.
    pub work: f64,
}

impl Key {
    /// One number: less is better.
    pub fn score(&self) -> f64 {
        self.work * (1.0 + OVERHEAD * (self.accumulators + self.kernels) as f64 + PASS * self.passes as f64)
    }
}

/// Nominal sizes of `f`'s dimensions.
pub fn nominal(f: &Function) -> Bindings {
    f.dims().into_iter().map(|d| (d, NOMINAL)).collect()
}

/// The key of `f`; `None` if it does not fuse at nominal sizes.
pub fn key(f: &Function) -> Option<Key> {
    let dims = nominal(f);
    let mut k = Key { kernels: 0, passes: 0, accumulators: 0, work: 0.0 };
    // Rows too long for a tile decide passes and accumulators; the work is that of either case.
    for resident in [0, Options::default().resident] {
        let fused = fuse(f, &Options { dims: dims.clone(), resident, ..Options::default() }).ok()?;
        for p in &fused.programs {
            let c = cost(p, &dims).ok()?;
            k.work += c.flops as f64 + SPECIAL * c.special as f64 + OPS_PER_BYTE * c.bytes() as f64;
            let loops = p.body.iter().filter_map(|s| if let Stmt::For(l) = s { Some(l.carries.len()) } else { None });
            if resident == 0 {
                k.kernels += 1;
                loops.for_each(|n| {
                    k.passes += 1;
                    k.accumulators += n;
                });
            }
        }
    }
    Some(k)
}

/// How many candidates of a function with so many equations are fused: what that costs in all is bounded.
pub fn tries(equations: usize) -> usize {
    (TRIES * SMALL * SMALL / (equations * equations).max(1)).min(TRIES)
}

type Choice = BTreeMap<Id, Node<true>>;

/// The search over one saturated graph.
pub struct Search<'a> {
    g: &'a Graph<true>,
    f: &'a Function,
    roots: Vec<Id>,
    names: &'a HashMap<Id, Name>,
    dims: Bindings,
    tries: usize,
}

/// The best form found.
pub struct Found {
    /// It.
    pub function: Function,
    /// The terms of its results.
    pub terms: Vec<RecExpr<Node<true>>>,
    /// Its key.
    pub key: Key,
    /// Candidates that were fused.
    pub tries: usize,
}

impl<'a> Search<'a> {
    /// A search for forms of `f`, whose results are the classes `roots`.
    pub fn new(g: &'a Graph<true>, f: &'a Function, roots: &[Id], names: &'a HashMap<Id, Name>) -> Search<'a> {
        Search { g, f, roots: roots.iter().map(|r| g.find(*r)).collect(), names, dims: nominal(f), tries: 0 }
    }

    /// The best form, starting from `terms` (a list of nodes with their classes).
    pub fn run(mut self, terms: &[(Id, Node<true>)]) -> Option<Found> {
        let cheapest = self.cheapest();
        let mut start = cheapest.clone();
        start.extend(terms.iter().map(|(id, n)| (self.g.find(*id), self.canonical(n))));
        let mut best: Option<(Choice, Function, Key)> = None;
        for c in [start, cheapest] {
            if !self.acyclic(&c) {
                continue;
            }
            let Some((f, k)) = self.candidate(&c) else { continue };
            if best.as_ref().is_none_or(|b| k.score() < GAIN * b.2.score()) {
                best = Some((c, f, k));
            }
        }
        let (mut choice, mut function, mut key) = best?;
        let mut work = self.work(&choice);
        'improve: loop {
            for class in self.reachable(&choice) {
                for node in self.nodes(class) {
                    if choice.get(&class) == Some(&node) {
                        continue;
                    }
                    let mut other = choice.clone();
                    other.insert(class, node);
                    if !self.acyclic(&other) || self.work(&other) >= work || self.tries >= tries(self.f.eqns.len()) {
                        continue;
                    }
                    let Some((f, k)) = self.candidate(&other) else { continue };
                    if k.score() < GAIN * key.score() {
                        (choice, function, key) = (other, f, k);
                        work = self.work(&choice);
                        continue 'improve;
                    }
                }
            }
            break;
        }
        let terms = self.roots.iter().map(|r| self.term(&choice, *r)).collect();
        Some(Found { function, terms, key, tries: self.tries })
    }

    fn canonical(&self, n: &Node<true>) -> Node<true> {
        n.clone().map_children(|a| self.g.find(a))
    }
    fn nodes(&self, class: Id) -> Vec<Node<true>> {
        let all: BTreeSet<Node<true>> = self.g[class].nodes.iter().map(|n| self.canonical(n)).collect();
        all.into_iter().collect()
    }
    fn candidate(&mut self, c: &Choice) -> Option<(Function, Key)> {
        self.tries += 1;
        let node = |id: Id| c[&self.g.find(id)].clone();
        let params: Vec<(Name, Type)> = self.f.params.iter().map(|p| (p.name.clone(), self.f.ty(p.var).clone())).collect();
        let results: Vec<Port> = self.f.results.iter().zip(&self.roots).map(|(r, id)| (r.name.clone(), Some(self.f.ty(r.var).clone()), *id)).collect();
        let f = function(&self.f.name, &params, &Source { node: &node, names: self.names, types: &self.g.analysis }, &results).ok()?;
        let k = key(&f)?;
        Some((f, k))
    }
    /// The term that `c` makes of a class.
    fn term(&self, c: &Choice, root: Id) -> RecExpr<Node<true>> {
        c[&root].build_recexpr(|id| c[&self.g.find(id)].clone())
    }

    /// Elements that a value ranges over.
    fn space(&self, id: Id) -> f64 {
        self.g[id].data.axes.iter().map(|a| a.size.eval(&self.dims).map_or(NOMINAL as f64, |n| n as f64)).product()
    }
    /// Operations of one node.
    fn weight(&self, class: Id, n: &Node<true>) -> f64 {
        let number = |i: usize| self.g[n.args[i]].data.number.is_some();
        match &n.op {
            Op::Axes(_) | Op::Number(_) | Op::Param(_) => 0.0,
            Op::Add | Op::Mul if number(0) && number(1) => 0.0,
            Op::Add | Op::Mul => self.space(class),
            Op::Inv => 4.0 * self.space(class),
            Op::Exp => SPECIAL * self.space(class),
            Op::Sum => self.space(n.args[1]),
            Op::Opaque(k) => match &self.g.analysis.prims[*k as usize] {
                Prim::Reduce(ReduceKind::Max, _) => self.space(n.args[0]),
                Prim::Elementwise(_) => SPECIAL * self.space(class),
                _ => 0.0,
            },
        }
    }
    /// Per class the node of the cheapest tree.
    fn cheapest(&self) -> Choice {
        let classes: BTreeMap<Id, Vec<Node<true>>> = self.g.classes().map(|c| (self.g.find(c.id), self.nodes(c.id))).collect();
        let mut costs: BTreeMap<Id, (f64, Node<true>)> = BTreeMap::new();
        loop {
            let mut changed = false;
            for (id, nodes) in &classes {
                for n in nodes {
                    let Some(args) = n.args.iter().map(|a| costs.get(a).map(|c| c.0)).sum::<Option<f64>>() else { continue };
                    // The one makes every node dearer than its operands, so that no choice goes in circles.
                    let c = args + self.weight(*id, n) + 1.0;
                    if costs.get(id).is_none_or(|(old, _)| c < *old) {
                        costs.insert(*id, (c, n.clone()));
                        changed = true;
                    }
                }
            }
            if !changed {
                return costs.into_iter().map(|(id, (_, n))| (id, n)).collect();
            }
        }
    }
    /// Classes that `c` needs, results first.
    fn reachable(&self, c: &Choice) -> Vec<Id> {
        let (mut seen, mut order, mut open) = (BTreeSet::new(), vec![], self.roots.clone());
        open.reverse();
        while let Some(id) = open.pop() {
            if seen.insert(id) {
                order.push(id);
                open.extend(c[&id].args.iter().rev());
            }
        }
        order
    }
    fn work(&self, c: &Choice) -> f64 {
        self.reachable(c).into_iter().map(|id| self.weight(id, &c[&id])).sum()
    }
    fn acyclic(&self, c: &Choice) -> bool {
        fn visit(c: &Choice, id: Id, state: &mut BTreeMap<Id, bool>) -> bool {
            match state.get(&id) {
                Some(done) => *done,
                None => {
                    state.insert(id, false);
                    let ok = c.get(&id).is_some_and(|n| n.args.iter().all(|a| visit(c, *a, state)));
                    state.insert(id, ok);
                    ok
                }
            }
        }
        let mut state = BTreeMap::new();
        self.roots.iter().all(|r| visit(c, *r, &mut state))
    }
}
