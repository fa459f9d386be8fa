//! A function cut at its calls: pieces without calls, and the calls between them, in order.
//!
//! Calls stand in the order of the function. A value that depends on a call is computed right behind the last one that it depends on; one
//! that depends on parameters only right before it is first used, so that nothing is made long before. What crosses from piece to
//! piece, and what a call reads, is in memory; movement, conversion and numbers are made again where they are used. An operand that is
//! a dense part of something in memory (one layer of stacked weights) is that part of it, and is not copied.
//!
//! Where a function declares some values `f64` and others narrower, the former are pieces of their own, which are computed in f64.

use super::view;
use ir::builder::Builder;
use ir::diagnostic::Error;
use ir::dim::{Dim, Name};
use ir::graph::{Eqn, Function, Var};
use ir::prim::{Callee, Elementwise, Movement, Prim};
use ir::types::{DType, Type};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A value in memory: a position in [`Cut::slots`].
pub(super) type Slot = usize;

/// A function, cut.
#[derive(Debug)]
pub(super) struct Cut {
    /// Values in memory.
    pub slots: Vec<(Name, Type)>,
    /// Per parameter.
    pub params: Vec<Slot>,
    /// Per result; each another slot, none of them a parameter's.
    pub results: Vec<Slot>,
    /// In order.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Debug)]
pub(super) enum Step {
    /// A function without calls.
    Piece(Piece),
    /// A call.
    Call {
        function: Callee,
        /// Where operands start: a slot, and an element of it.
        args: Vec<(Slot, Dim)>,
        /// Per result of the callee; `None` for those that nobody needs.
        results: Vec<Option<Slot>>,
    },
}

/// Equations without calls, as a function.
#[derive(Debug)]
pub(super) struct Piece {
    pub function: Function,
    /// Per parameter.
    pub inputs: Vec<Slot>,
    /// Per result.
    pub outputs: Vec<Slot>,
}

/// Whether making it again costs no more than reading it.
fn cheap(e: &Eqn) -> bool {
    match &e.op {
        Prim::Constant(_) | Prim::Size(..) | Prim::Iota(_) | Prim::StopGradient | Prim::Elementwise(Elementwise::Convert(_)) => true,
        Prim::Movement(m) => !matches!(m, Movement::Concat { .. } | Movement::Stack(_)),
        _ => false,
    }
}

struct Cutter<'a> {
    f: &'a Function,
    definitions: Vec<Option<usize>>,
    /// Per equation of a call: its number.
    call: Vec<Option<usize>>,
    /// Per value: before which call it is computed.
    place: Vec<usize>,
    slots: Vec<(Name, Type)>,
    /// Values in memory.
    stored: HashMap<Var, Slot>,
    /// Whether values of type f64 are pieces of their own.
    wide: bool,
}

/// Cuts `f`, of whose results `wanted` are needed; with `wide`, values of type f64 stand in pieces without others.
pub(super) fn cut(f: &Function, wanted: &[bool], wide: bool) -> Result<Cut, Error> {
    let (call, first) = calls(f);
    let place = places(f, &call, &first, wanted);
    let mut c = Cutter { f, definitions: f.definitions(), call, place, slots: vec![], stored: HashMap::new(), wide };
    let params: Vec<Slot> = f.params.iter().map(|p| c.slot(p.name.clone(), f.ty(p.var).clone())).collect();
    for (p, s) in f.params.iter().zip(&params) {
        c.stored.entry(p.var).or_insert(*s);
    }
    // What is needed of each call, and what has to be in memory before it.
    let needed = c.needed(wanted);
    for e in f.eqns.iter().zip(&c.call).filter(|(_, n)| n.is_some()).map(|(e, _)| e).filter(|e| needed.contains(&e.out)).collect::<Vec<_>>() {
        let s = c.slot(c.label(e.out), f.ty(e.out).clone());
        c.stored.insert(e.out, s);
    }
    // Per place: values to compute there.
    let mut targets: BTreeMap<usize, Vec<Var>> = BTreeMap::new();
    let mut args: BTreeMap<usize, Vec<(Var, Dim)>> = BTreeMap::new();
    let run: BTreeSet<usize> = f.eqns.iter().zip(&c.call).filter(|(e, _)| needed.contains(&e.out)).filter_map(|(_, n)| *n).collect();
    for (n, i) in first.iter().enumerate().filter(|(n, _)| run.contains(n)) {
        let args = args.entry(n).or_default();
        for a in &f.eqns[*i].args {
            let (base, offset) = c.part(*a).unwrap_or((*a, Dim::fixed(0)));
            if !c.stored.contains_key(&base) {
                c.target(&mut targets, base);
            }
            args.push((base, offset));
        }
    }
    let mut results = vec![];
    let mut copies: Vec<(Var, Slot)> = vec![];
    let mut own: BTreeSet<Slot> = params.iter().copied().collect();
    for (r, _) in f.results.iter().zip(wanted).filter(|(_, w)| **w) {
        if !c.stored.contains_key(&r.var) {
            c.target(&mut targets, r.var);
        }
        let s = c.stored[&r.var];
        // A result is memory of its own: a parameter, or what is a result already, is copied.
        if own.insert(s) {
            results.push(s);
        } else {
            let s = c.slot(r.name.clone(), f.ty(r.var).clone());
            copies.push((r.var, s));
            results.push(s);
        }
    }
    let mut pieces: BTreeMap<usize, Vec<Piece>> = BTreeMap::new();
    for at in (0..=first.len()).rev() {
        let list = c.pieces(at, &mut targets)?;
        pieces.insert(at, list);
    }
    let mut steps = vec![];
    for at in 0..=first.len() {
        steps.extend(pieces.remove(&at).unwrap_or_default().into_iter().map(Step::Piece));
        let Some(i) = first.get(at) else { continue };
        let (Prim::Call(call), Some(args)) = (&f.eqns[*i].op, args.remove(&at)) else { continue };
        let mut results = vec![None; call.function.results.len()];
        for (e, _) in f.eqns.iter().zip(&c.call).filter(|(e, n)| **n == Some(at) && needed.contains(&e.out)) {
            if let Prim::Call(k) = &e.op {
                results[k.result] = c.stored.get(&e.out).copied();
            }
        }
        steps.push(Step::Call { function: call.function.clone(), args: args.into_iter().map(|(v, o)| (c.stored[&v], o)).collect(), results });
    }
    for (v, s) in copies {
        let mut b = Builder::new(f.name.clone());
        let x = b.param("x", f.ty(v).clone());
        b.result("y", x);
        steps.push(Step::Piece(Piece { function: b.finish(), inputs: vec![c.stored[&v]], outputs: vec![s] }));
    }
    Ok(Cut { slots: c.slots, params, results, steps })
}

/// Per equation the number of the call that it is of, and per call its first equation.
fn calls(f: &Function) -> (Vec<Option<usize>>, Vec<usize>) {
    let mut first = vec![];
    let mut known: HashMap<(&Callee, &[Var]), usize> = HashMap::new();
    let mut call = vec![];
    for (i, e) in f.eqns.iter().enumerate() {
        call.push(match &e.op {
            Prim::Call(c) => Some(*known.entry((&c.function, e.args.as_slice())).or_insert_with(|| {
                first.push(i);
                first.len() - 1
            })),
            _ => None,
        });
    }
    (call, first)
}

/// Per value: the number of the call before which it is computed.
fn places(f: &Function, call: &[Option<usize>], first: &[usize], wanted: &[bool]) -> Vec<usize> {
    let mut early = vec![0; f.vars.len()];
    for (e, call) in f.eqns.iter().zip(call) {
        early[e.out.index()] = call.map_or_else(|| e.args.iter().map(|a| early[a.index()]).max().unwrap_or(0), |n| n + 1);
    }
    // What depends on no call waits until it is used.
    let mut late = vec![usize::MAX; f.vars.len()];
    for (r, _) in f.results.iter().zip(wanted).filter(|(_, w)| **w) {
        late[r.var.index()] = first.len();
    }
    for (e, call) in f.eqns.iter().zip(call).rev() {
        let here = match call {
            Some(n) => *n,
            None if early[e.out.index()] > 0 => early[e.out.index()],
            None => late[e.out.index()],
        };
        e.args.iter().for_each(|a| late[a.index()] = late[a.index()].min(here));
    }
    let place = |v: usize| if early[v] > 0 || late[v] == usize::MAX { early[v] } else { late[v] };
    (0..f.vars.len()).map(place).collect()
}

impl Cutter<'_> {
    fn slot(&mut self, name: Name, ty: Type) -> Slot {
        self.slots.push((name, ty));
        self.slots.len() - 1
    }
    fn label(&self, v: Var) -> Name {
        let result = self.f.results.iter().find(|r| r.var == v).map(|r| r.name.clone());
        result.or_else(|| self.f.vars[v.index()].name.clone()).unwrap_or_else(|| format!("x{}", v.0).into())
    }
    fn target(&mut self, targets: &mut BTreeMap<usize, Vec<Var>>, v: Var) {
        let s = self.slot(self.label(v), self.f.ty(v).clone());
        self.stored.insert(v, s);
        targets.entry(self.place[v.index()]).or_default().push(v);
    }
    /// Values that a wanted result needs.
    fn needed(&self, wanted: &[bool]) -> BTreeSet<Var> {
        let mut seen = BTreeSet::new();
        let mut open: Vec<Var> = self.f.results.iter().zip(wanted).filter(|(_, w)| **w).map(|(r, _)| r.var).collect();
        while let Some(v) = open.pop() {
            if let (true, Some(i)) = (seen.insert(v), self.definitions[v.index()]) {
                open.extend(&self.f.eqns[i].args);
            }
        }
        seen
    }
    /// `v` as a dense part of what is in memory.
    fn part(&self, v: Var) -> Option<(Var, Dim)> {
        let (base, s) = view::read(self.f, &self.definitions, &|v| self.stored.contains_key(&v), v)?;
        let want = view::dense(self.f.ty(v));
        let stride = |n: &Name| s.of.iter().find(|(m, _)| m == n).map(|(_, d)| d);
        (s.of.len() == want.of.len() && want.of.iter().all(|(n, d)| stride(n) == Some(d))).then_some((base, s.offset))
    }

    /// The pieces that compute `list` before call `at`; what they need of earlier places becomes a target there.
    fn pieces(&mut self, at: usize, targets: &mut BTreeMap<usize, Vec<Var>>) -> Result<Vec<Piece>, Error> {
        // Per target what it needs, and of that what is computed for it.
        let mut needs: Vec<Need> = vec![];
        // There may be more of them on the way.
        while let Some(t) = targets.get(&at).and_then(|l| l.get(needs.len())).copied() {
            let kind = self.kind(t);
            let (mut eqns, mut inputs, mut seen) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
            let mut open = vec![(t, true)];
            while let Some((v, root)) = open.pop() {
                if !seen.insert(v) {
                    continue;
                }
                let own = self.definitions[v.index()].filter(|i| self.call[*i].is_none());
                let here = own.filter(|i| root || (self.place[v.index()] == at || cheap(&self.f.eqns[*i])) && !self.elsewhere(v, at) && self.beside(kind, v));
                match here {
                    Some(i) => {
                        eqns.insert(i);
                        open.extend(self.f.eqns[i].args.iter().map(|a| (*a, false)));
                    }
                    None => {
                        if !self.stored.contains_key(&v) {
                            self.target(targets, v);
                        }
                        inputs.insert(v);
                    }
                }
            }
            needs.push((vec![t], eqns, inputs));
        }
        if self.call.iter().all(Option::is_none) {
            // Without calls, one function.
            let (wide, narrow): (Vec<Need>, Vec<Need>) = needs.into_iter().partition(|n| self.kind(n.0[0]));
            needs = [wide, narrow].into_iter().filter_map(|n| n.into_iter().reduce(merge)).collect();
        }
        let mut groups: Vec<Need> = vec![];
        for n in needs {
            let real = |s: &BTreeSet<usize>| -> BTreeSet<usize> { s.iter().copied().filter(|i| !cheap(&self.f.eqns[*i])).collect() };
            let own = real(&n.1);
            let kind = self.kind(n.0[0]);
            let (with, without): (Vec<_>, Vec<_>) = groups.into_iter().partition(|g| self.kind(g.0[0]) == kind && !real(&g.1).is_disjoint(&own));
            groups = without;
            groups.push(with.into_iter().chain([n]).reduce(merge).unwrap_or_default());
        }
        let mut out = vec![];
        // A piece may read what another one of the same place stores.
        while !groups.is_empty() {
            let next = groups.iter().position(|g| !groups.iter().any(|h| h.0 != g.0 && h.0.iter().any(|t| g.2.contains(t)))).unwrap_or(0);
            let (targets, eqns, inputs) = groups.remove(next);
            out.push(self.piece(&targets, &eqns, &inputs)?);
        }
        Ok(out)
    }
    /// Whether `v` stands in a piece of f64 values.
    fn kind(&self, v: Var) -> bool {
        self.wide && self.f.ty(v).dtype == DType::F64
    }
    /// Whether `v` may be computed in a piece of that kind: values that are no floats may stand in either.
    fn beside(&self, kind: bool, v: Var) -> bool {
        !self.f.ty(v).dtype.is_float() || self.kind(v) == kind || self.definitions[v.index()].is_some_and(|i| self.f.eqns[i].args.is_empty())
    }
    /// Whether `v` is in memory when place `at` is computed, by an earlier place.
    fn elsewhere(&self, v: Var, at: usize) -> bool {
        self.stored.contains_key(&v) && (self.place[v.index()] < at || self.definitions[v.index()].is_none_or(|i| self.call[i].is_some()))
    }

    fn piece(&self, targets: &[Var], eqns: &BTreeSet<usize>, inputs: &BTreeSet<Var>) -> Result<Piece, Error> {
        let f = self.f;
        let mut taken: BTreeSet<Name> = BTreeSet::new();
        let mut fresh = |n: Name| {
            let name = std::iter::once(n.to_string()).chain((2..).map(|k| format!("{n}_{k}"))).map(Name::from).find(|n| !taken.contains(n)).unwrap_or_default();
            taken.insert(name.clone());
            name
        };
        let mut b = Builder::new(f.name.clone());
        let mut map: BTreeMap<Var, Var> = BTreeMap::new();
        // Parameters in the order of use, which no number of a value changes.
        let mut order: Vec<Var> = vec![];
        for a in eqns.iter().flat_map(|i| &f.eqns[*i].args).chain(targets) {
            if inputs.contains(a) && !order.contains(a) {
                order.push(*a);
            }
        }
        let mut named: Vec<(Var, Name)> = vec![];
        for v in &order {
            named.push((*v, fresh(f.params.iter().find(|p| p.var == *v).map_or_else(|| self.label(*v), |p| p.name.clone()))));
        }
        for (v, n) in named {
            map.insert(v, b.param(n, f.ty(v).clone()));
        }
        for i in eqns {
            crate::ad::copy(&mut b, f, &f.eqns[*i], &mut map)?;
        }
        for t in targets {
            b.result(fresh(self.label(*t)), map[t]);
        }
        Ok(Piece { function: b.finish(), inputs: order.iter().map(|v| self.stored[v]).collect(), outputs: targets.iter().map(|v| self.stored[v]).collect() })
    }
}

type Need = (Vec<Var>, BTreeSet<usize>, BTreeSet<Var>);

fn merge(mut a: Need, b: Need) -> Need {
    a.0.extend(b.0);
    a.1.extend(b.1);
    a.2.extend(b.2);
    a
}
