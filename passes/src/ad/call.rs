//! Derivatives of functions that are called. A callee is derived once for each pattern of operands that move, of results whose tangent is
//! wanted and of cotangents that arrive, and what comes out is shared by all calls of that pattern: a network of forty equal blocks
//! is one derived block, called forty times.
//!
//! ```text
//! jvp   y = g(x, w)  =>  (y, y.t) = g.jvp(x, w, x.t)             one call: the primal is not run twice
//! vjp   y = g(x, w)  =>  (y, res) = g.forward(x, w)               and, with the cotangent,
//!                        (x.ct, w.ct) = g.backward(x, res, y.ct)
//! ```
//!
//! Residuals of a call are [`super::remat::split`]'s; with [`Checkpoint::Operands`] there are none, and the backward computes its forward
//! again (Griewank and Walther 2000). A result that nobody used has no cotangent, and the backward is derived without it.

use super::activity;
use super::jvp::{Bend, Mode, Want, along};
use super::linearize::{copy, dependent};
use super::remat::{self, Keep, Split};
use super::{transpose, vjp};
use ir::builder::Builder;
use ir::diagnostic::Error;
use ir::dim::Name;
use ir::graph::{Function, Var};
use ir::prim::{Call, Callee, Prim};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What reverse mode keeps of a call between forward and backward.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub enum Checkpoint {
    /// Residuals: results of sums that are no larger than parameters and results, or have features for axes (the hidden layer of a
    /// perceptron).
    #[default]
    Residuals,
    /// The operands only: the backward of a call computes its forward again.
    Operands,
}

/// Equations that are one call: same callee, same operands. Per equation the position of the first one; `None` for other operations.
pub(super) fn groups(f: &Function) -> Vec<Option<usize>> {
    let mut first: HashMap<(&Callee, &[Var]), usize> = HashMap::new();
    let of = |(i, e): (usize, &'_ ir::graph::Eqn)| match &e.op {
        Prim::Call(_) => Some(i),
        _ => None,
    };
    let calls: Vec<Option<usize>> = f.eqns.iter().enumerate().map(of).collect();
    calls
        .into_iter()
        .map(|i| {
            let e = &f.eqns[i?];
            let Prim::Call(c) = &e.op else { return None };
            Some(*first.entry((&c.function, e.args.as_slice())).or_insert(i?))
        })
        .collect()
}

/// The tangent of a callee.
#[derive(Clone)]
pub(super) struct Tangent {
    /// The callee's parameters, then tangents of `operands`.
    pub function: Callee,
    /// Which parameters of the callee have tangents, in order.
    pub operands: Vec<usize>,
    /// Per result of the callee the position of its tangent among the function's results.
    pub results: Vec<Option<usize>>,
}

/// The transpose of a callee that is linear in some operands.
#[derive(Clone)]
pub(super) struct Pullback {
    /// From `operands` to cotangents of the parameters `results`.
    pub function: Callee,
    /// What it reads.
    pub operands: Vec<From>,
    /// Of which parameters of the callee it gives cotangents.
    pub results: Vec<usize>,
}

/// An operand of a [`Pullback`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum From {
    /// The callee's parameter number.
    Value(usize),
    /// The cotangent of the callee's result number.
    Cotangent(usize),
}

/// What a tangent function is the tangent of.
#[derive(Clone)]
struct Source {
    function: Callee,
    operands: Vec<usize>,
    /// Per result of the tangent function.
    results: Vec<usize>,
}

/// A call's reverse mode, cut in two.
struct Halves {
    /// The callee whose call the first half replaces.
    of: Callee,
    forward: Callee,
    backward: Callee,
    /// Per parameter of the second half.
    operands: Vec<Half>,
    /// Per result of the pullback that they replace: a result of the second half, or (no cotangent reaches it) of the first.
    results: Vec<Half>,
}

/// Where a value of one half comes from.
#[derive(Clone, Copy)]
enum Half {
    /// A result of the first half.
    Forward(usize),
    /// A result of the second half.
    Backward(usize),
    /// An operand of the pullback's call.
    Operand(usize),
}

type Pattern = (Callee, Vec<bool>, Vec<bool>);

/// Everything derived in one transform.
pub(super) struct Derived {
    taken: BTreeSet<Name>,
    pub(super) checkpoint: Checkpoint,
    tangents: HashMap<(Pattern, Mode), Tangent>,
    sources: HashMap<Callee, Source>,
    pullbacks: HashMap<Pattern, Pullback>,
    /// By the pullback's function.
    halves: HashMap<Callee, Halves>,
}

impl Derived {
    /// For a transform of `f`.
    pub fn new(f: &Function, checkpoint: Checkpoint) -> Derived {
        let mut taken = BTreeSet::new();
        names(f, &mut taken, &mut vec![]);
        Derived { taken, checkpoint, tangents: HashMap::new(), sources: HashMap::new(), pullbacks: HashMap::new(), halves: HashMap::new() }
    }
    /// A name that no function has: `base`, else `base2`, …
    fn fresh(&mut self, base: String) -> Name {
        let name: Name = std::iter::once(base.clone()).chain((2..).map(|k| format!("{base}{k}"))).map(Name::from).find(|n| !self.taken.contains(n)).unwrap_or_default();
        self.taken.insert(name.clone());
        name
    }

    /// The tangent of `g` along the parameters `moving`, for the results `wanted`; with its results in front, or alone.
    pub fn tangent(&mut self, g: &Callee, moving: &[bool], wanted: &[bool], mode: Mode, bend: Bend) -> Result<Tangent, Error> {
        let key = ((g.clone(), moving.to_vec(), wanted.to_vec()), mode);
        if let Some(t) = self.tangents.get(&key) {
            return Ok(t.clone());
        }
        let operands: Vec<usize> = positions(moving);
        let wrt: Vec<Name> = operands.iter().map(|i| g.params[*i].name.clone()).collect();
        let (mut t, places) = along(g, &wrt, Want::Only(wanted), mode, bend, self)?;
        t.name = self.fresh(format!("{}.{}", g.name, if mode == Mode::Joint { "jvp" } else { "tangent" }));
        let mut results = places.clone();
        if mode == Mode::Apart {
            let keep: Vec<usize> = places.iter().flatten().copied().collect();
            let all: Vec<usize> = (0..t.params.len()).collect();
            t = restrict(&t, &keep, &all)?.0;
            results = places.iter().map(|p| p.and_then(|p| keep.iter().position(|k| *k == p))).collect();
        }
        let function = Callee(t.into());
        if mode == Mode::Apart {
            let of = (0..results.len()).filter(|r| results[*r].is_some()).collect();
            self.sources.insert(function.clone(), Source { function: g.clone(), operands: operands.clone(), results: of });
        }
        let tangent = Tangent { function, operands, results };
        self.tangents.insert(key, tangent.clone());
        Ok(tangent)
    }

    /// The transpose of `g`, which is linear in the parameters `linear`, for cotangents of the results `arriving`.
    pub fn pullback(&mut self, g: &Callee, linear: &[bool], arriving: &[bool]) -> Result<Pullback, Error> {
        let key = (g.clone(), linear.to_vec(), arriving.to_vec());
        if let Some(p) = self.pullbacks.get(&key) {
            return Ok(p.clone());
        }
        let p = match self.sources.get(g).cloned() {
            Some(source) => self.reverse(&source, arriving)?,
            None => self.transposed(g, linear, arriving)?,
        };
        self.pullbacks.insert(key, p.clone());
        Ok(p)
    }

    /// The pullback of a function that somebody wrote.
    fn transposed(&mut self, g: &Callee, linear: &[bool], arriving: &[bool]) -> Result<Pullback, Error> {
        let ct = positions(arriving);
        let (h, params) = restrict(g, &ct, &[])?;
        // Parameters of which a result that has a cotangent depends.
        let on: Vec<usize> = (0..params.len()).filter(|i| linear[params[*i]]).collect();
        let depends = dependent(&h, &on.iter().map(|i| h.params[*i].var).collect::<Vec<_>>());
        if let Some((r, _)) = ct.iter().zip(&h.results).find(|(_, r)| !depends[r.var.index()]) {
            return Err(Error::new(format!("transpose: result `{}` of `{}` does not depend on what the call is linear in", g.results[*r].name, g.name)));
        }
        let wrt: Vec<Name> = on.iter().map(|i| h.params[*i].name.clone()).collect();
        let mut t = transpose::transpose_in(&h, &wrt, self)?;
        t.name = self.fresh(format!("{}.transpose", g.name));
        let values = params.iter().enumerate().filter(|(i, _)| !on.contains(i)).map(|(_, p)| From::Value(*p));
        let operands = values.chain(ct.iter().map(|r| From::Cotangent(*r))).collect();
        Ok(Pullback { function: Callee(t.into()), operands, results: on.into_iter().map(|i| params[i]).collect() })
    }

    /// The pullback of a tangent: the reverse mode of what it is the tangent of.
    fn reverse(&mut self, source: &Source, arriving: &[bool]) -> Result<Pullback, Error> {
        let g = &source.function;
        let n = g.params.len();
        let mut wanted = vec![false; g.results.len()];
        for (k, r) in source.results.iter().enumerate() {
            wanted[*r] = arriving[k];
        }
        let depends = activity::dependence(g);
        let of: Vec<usize> = source.operands.iter().copied().filter(|i| (0..wanted.len()).any(|r| wanted[r] && depends[r][*i])).collect();
        let wrt: Vec<Name> = of.iter().map(|i| g.params[*i].name.clone()).collect();
        let (whole, moving) = vjp::along(g, &wrt, Want::Only(&wanted), self)?;
        let results = g.results.len();
        let from = |p: usize| if p < n { From::Value(p) } else { From::Cotangent(source.results.iter().position(|r| *r == moving[p - n]).unwrap_or_default()) };
        // With residuals, this is only a place: calls of it are cut in two when the whole function is there.
        let cut = self.checkpoint == Checkpoint::Residuals;
        let all: Vec<usize> = (0..whole.params.len()).collect();
        let (mut back, params) = restrict(&whole, &(results..whole.results.len()).collect::<Vec<_>>(), if cut { &all } else { &[] })?;
        back.name = self.fresh(format!("{}.backward", g.name));
        let function = Callee(back.into());
        if cut {
            let halves = self.halves(g, &whole, results)?;
            self.halves.insert(function.clone(), halves);
        }
        let tangent = |i: &usize| n + source.operands.iter().position(|o| o == i).unwrap_or_default();
        Ok(Pullback { function, operands: params.into_iter().map(from).collect(), results: of.iter().map(tangent).collect() })
    }

    fn halves(&mut self, g: &Callee, whole: &Function, results: usize) -> Result<Halves, Error> {
        let late: Vec<Name> = whole.params[g.params.len()..].iter().map(|p| p.name.clone()).collect();
        let Split { mut forward, mut backward, residuals } = remat::split(whole, &late, Keep::Narrow)?;
        forward.name = self.fresh(format!("{}.forward", g.name));
        backward.name = self.fresh(format!("{}.backward", g.name));
        let first = |n: &Name| forward.results.iter().position(|r| r.name == *n).map(Half::Forward);
        let mut operands = vec![];
        for p in &backward.params {
            let own = whole.params.iter().position(|q| q.name == p.name).filter(|_| !residuals.contains(&p.name)).map(Half::Operand);
            operands.push(own.or_else(|| first(&p.name)).ok_or_else(|| Error::new(format!("vjp: nothing provides `{}` of `{}`", p.name, backward.name)))?);
        }
        let mut out = vec![];
        for r in &whole.results[results..] {
            let own = backward.results.iter().position(|q| q.name == r.name).map(Half::Backward);
            out.push(own.or_else(|| first(&r.name)).ok_or_else(|| Error::new(format!("vjp: nothing computes `{}` of `{}`", r.name, backward.name)))?);
        }
        Ok(Halves { of: g.clone(), forward: Callee(forward.into()), backward: Callee(backward.into()), operands, results: out })
    }

    /// `f` with each call whose pullback was derived with residuals cut in two: the forward half in the place of the primal's call.
    pub fn cut(&self, f: &Function) -> Result<Function, Error> {
        let halves = |e: &ir::graph::Eqn| match &e.op {
            Prim::Call(c) => self.halves.get(&c.function).map(|h| (h, c.result)),
            _ => None,
        };
        if !f.eqns.iter().any(|e| halves(e).is_some()) {
            return Ok(f.clone());
        }
        // The calls whose results a backward reads.
        let mut first: HashMap<(&Callee, &[Var]), &Callee> = HashMap::new();
        for e in &f.eqns {
            if let Some((h, _)) = halves(e) {
                first.insert((&h.of, &e.args[..h.of.params.len()]), &h.forward);
            }
        }
        let mut b = Builder::new(f.name.clone());
        let mut map: BTreeMap<Var, Var> = BTreeMap::new();
        for p in &f.params {
            map.insert(p.var, b.param(p.name.clone(), f.ty(p.var).clone()));
        }
        for e in &f.eqns {
            b.origin = e.origin.clone();
            b.span = e.span;
            let out = match (&e.op, halves(e)) {
                (_, Some((h, result))) => {
                    let args: Vec<Var> = e.args.iter().map(|a| map[a]).collect();
                    let forward = |b: &mut Builder, result: usize| b.push(Prim::Call(Call { function: h.forward.clone(), result }), &args[..h.of.params.len()]);
                    let mut own = vec![];
                    for o in &h.operands {
                        own.push(match o {
                            Half::Operand(i) => args[*i],
                            Half::Forward(r) | Half::Backward(r) => forward(&mut b, *r)?,
                        });
                    }
                    match h.results[result] {
                        Half::Forward(r) | Half::Operand(r) => forward(&mut b, r)?,
                        Half::Backward(r) => b.push(Prim::Call(Call { function: h.backward.clone(), result: r }), &own)?,
                    }
                }
                (Prim::Call(c), None) if first.contains_key(&(&c.function, e.args.as_slice())) => {
                    let args: Vec<Var> = e.args.iter().map(|a| map[a]).collect();
                    b.push(Prim::Call(Call { function: first[&(&c.function, e.args.as_slice())].clone(), result: c.result }), &args)?
                }
                _ => copy(&mut b, f, e, &mut map)?,
            };
            if let Some(n) = &f.vars[e.out.index()].name {
                b.name(out, n.clone());
            }
            map.insert(e.out, out);
        }
        b.origin = None;
        for r in &f.results {
            b.result(r.name.clone(), map[&r.var]);
        }
        Ok(b.finish())
    }
}

/// Names of `f` and of all that it calls.
fn names(f: &Function, taken: &mut BTreeSet<Name>, seen: &mut Vec<Callee>) {
    taken.insert(f.name.clone());
    for c in f.callees() {
        if !seen.contains(&c) {
            seen.push(c.clone());
            names(&c, taken, seen);
        }
    }
}

fn positions(which: &[bool]) -> Vec<usize> {
    (0..which.len()).filter(|i| which[*i]).collect()
}

/// `f` with these of its results only, and the parameters that they need or `keep` has: their positions.
fn restrict(f: &Function, results: &[usize], keep: &[usize]) -> Result<(Function, Vec<usize>), Error> {
    let mut needed = vec![false; f.vars.len()];
    results.iter().for_each(|r| needed[f.results[*r].var.index()] = true);
    for e in f.eqns.iter().rev() {
        if needed[e.out.index()] {
            e.args.iter().for_each(|a| needed[a.index()] = true);
        }
    }
    let params: Vec<usize> = (0..f.params.len()).filter(|i| needed[f.params[*i].var.index()] || keep.contains(i)).collect();
    let mut b = Builder::new(f.name.clone());
    let mut map = BTreeMap::new();
    for p in params.iter().map(|i| &f.params[*i]) {
        map.insert(p.var, b.param(p.name.clone(), f.ty(p.var).clone()));
    }
    for e in f.eqns.iter().filter(|e| needed[e.out.index()]) {
        copy(&mut b, f, e, &mut map)?;
    }
    for r in results.iter().map(|r| &f.results[*r]) {
        b.result(r.name.clone(), map[&r.var]);
    }
    Ok((b.finish(), params))
}
