//! Sums that share an operand, gathered.
//!
//! ```text
//! gather   c₁·Σ_x (a·u₁) ± c₂·Σ_x (a·u₂)  =>  Σ_x a·(c₁·u₁ ± c₂·u₂)     c₁, c₂ without x; what both have in common stays outside; so for (a·w)·u₂, w with u₂'s axes
//! known    c₁·Σ_x u₁ ± c₂·Σ_x u₂          =>  Σ_x K                     K = c₁·u₁ ± c₂·u₂ is an equation of the function
//! ```
//!
//! The normal form has the left side, because a kernel that does not know c₁ and c₂ before its loop ends can only carry the two sums. Where they are known,
//! the right side is one sum less. Neither is better by itself, so that fusion tries both and keeps what is less work.

use ir::builder::Builder;
use ir::diagnostic::Error;
use ir::dim::Name;
use ir::graph::{Eqn, Function, Var};
use ir::prim::{Elementwise, Prim, ReduceKind};
use ir::types::Type;
use std::collections::{BTreeMap, HashMap};

/// `± Π above / Π below`.
#[derive(Clone, Default)]
struct Product {
    negative: bool,
    above: Vec<Var>,
    below: Vec<Var>,
}

/// `c·Σ_over (a·b)`.
struct Term {
    c: Product,
    over: Vec<Name>,
    a: Var,
    b: Var,
}

/// A sum of products: per product its factors above and below, sorted, and how often it is added.
type Sum = BTreeMap<(Vec<Var>, Vec<Var>), i64>;

/// Which sums are gathered beside those that are known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gathered {
    /// No others.
    Known,
    /// Those of products, but where scores would be made again for a coefficient.
    Ready,
    /// All of products.
    All,
}

/// `f` with its sums gathered; none if there is nothing to gather.
///
/// # Errors
/// A bug: equations that do not fit any more.
pub fn gather(f: &Function, which: Gathered) -> Result<Option<Function>, Error> {
    let mut g = Gather { f, which, definitions: f.definitions(), users: f.uses(), ports: super::view::port_types(f), b: Builder::new(f.name.clone()), at: HashMap::new(), commuted: BTreeMap::new(), sums: vec![] };
    for p in &f.params {
        let v = g.b.param(p.name.clone(), f.ty(p.var).clone());
        g.at.insert(p.var, v);
    }
    for e in f.eqns.iter().filter(|e| matches!(e.op, Prim::Elementwise(_)) && f.ty(e.out).dtype.is_float()) {
        let mut sum = Sum::new();
        g.expand(e.out, &Product::default(), &mut sum);
        if sum.len() > 1 {
            g.sums.push((sum, e.out));
        }
    }
    let mut any = false;
    for e in &f.eqns {
        let gathered = match g.known(e)? {
            None if which != Gathered::Known => g.gathered(e)?,
            known => known,
        };
        any |= gathered.is_some();
        g.define(e, gathered)?;
    }
    for r in &f.results {
        let v = g.at[&r.var];
        g.b.result(r.name.clone(), v);
    }
    // Terms that were gathered are no longer used.
    if any { crate::ad::linearize::prune(&g.b.finish()).map(Some) } else { Ok(None) }
}

struct Gather<'a> {
    f: &'a Function,
    which: Gathered,
    definitions: Vec<Option<usize>>,
    users: Vec<usize>,
    /// Types of parameters and results.
    ports: Vec<Type>,
    b: Builder,
    /// Where each value of `f` is in the new function.
    at: HashMap<Var, Var>,
    /// Sums and products by their operands in order.
    commuted: BTreeMap<(bool, Var, Var), Var>,
    /// Values that add up products, in order of definition.
    sums: Vec<(Sum, Var)>,
}

impl Gather<'_> {
    fn eqn(&self, v: Var) -> Option<&Eqn> {
        self.definitions[v.index()].map(|i| &self.f.eqns[i])
    }
    /// Puts `e` into the new function, as `new` if given.
    fn define(&mut self, e: &Eqn, new: Option<Var>) -> Result<(), Error> {
        if self.at.contains_key(&e.out) {
            return Ok(());
        }
        self.b.origin = e.origin.clone();
        self.b.span = e.span;
        let v = match new {
            Some(v) => v,
            None => self.copied(e)?,
        };
        if let Some(n) = &self.f.vars[e.out.index()].name {
            self.b.name(v, n.clone());
        }
        self.at.insert(e.out, v);
        Ok(())
    }
    /// Puts what `v` needs into the new function, ahead of its turn.
    fn need(&mut self, v: Var) -> Result<(), Error> {
        let mut open = vec![v];
        let mut order = vec![];
        while let Some(v) = open.pop() {
            if let Some(i) = self.definitions[v.index()].filter(|i| !self.at.contains_key(&v) && !order.contains(i)) {
                order.push(i);
                open.extend(&self.f.eqns[i].args);
            }
        }
        order.sort_unstable();
        let f = self.f;
        order.into_iter().try_for_each(|i| self.define(&f.eqns[i], None))
    }
    /// Adds the products of `by·v` to `sum`; quotients by sums stay as they are.
    fn expand(&self, v: Var, by: &Product, sum: &mut Sum) {
        let mut p = Product { negative: by.negative, above: vec![], below: by.below.clone() };
        self.product(v, &mut p, false);
        // A factor that is itself a sum, opened once it is the only one left to open.
        let adds = |v: &Var| self.eqn(*v).is_some_and(|e| matches!(e.op, Prim::Elementwise(Elementwise::Add | Elementwise::Sub)));
        if p.above.len() == 1 && adds(&p.above[0]) {
            let Some(e) = self.eqn(p.above[0]) else { return };
            let minus = e.op == Prim::Elementwise(Elementwise::Sub);
            let rest = |negative: bool| Product { negative, above: by.above.clone(), below: p.below.clone() };
            self.expand(e.args[0], &rest(p.negative), sum);
            self.expand(e.args[1], &rest(p.negative != minus), sum);
            return;
        }
        p.above.extend(&by.above);
        p.above.sort();
        p.below.sort();
        let n = if p.negative { -1 } else { 1 };
        *sum.entry((p.above, p.below)).or_insert(0) += n;
    }
    /// The right side of `known` for equation `e`, if it is a left side.
    fn known(&mut self, e: &Eqn) -> Result<Option<Var>, Error> {
        if !matches!(e.op, Prim::Elementwise(Elementwise::Add | Elementwise::Sub)) || !self.f.ty(e.out).dtype.is_float() {
            return Ok(None);
        }
        let (mut sum, mut over, mut open): (Sum, Option<Vec<Name>>, _) = (Sum::new(), None, vec![(e.out, false)]);
        while let Some((v, negative)) = open.pop() {
            let Some(e) = self.eqn(v) else { return Ok(None) };
            if let Prim::Elementwise(op @ (Elementwise::Add | Elementwise::Sub)) = &e.op {
                open.extend([(e.args[0], negative), (e.args[1], negative != (*op == Elementwise::Sub))]);
                continue;
            }
            let mut c = Product { negative, ..Product::default() };
            self.product(v, &mut c, false);
            let sums = |v: &Var| self.users[v.index()] == 1 && self.eqn(*v).is_some_and(|e| matches!(e.op, Prim::Reduce(ReduceKind::Sum, _)));
            let mut leaves = c.above.iter().copied().filter(sums);
            let (Some(leaf), None) = (leaves.next(), leaves.next()) else { return Ok(None) };
            c.above.retain(|x| *x != leaf);
            let Some(Eqn { op: Prim::Reduce(_, axes), args, .. }) = self.eqn(leaf) else { return Ok(None) };
            let free = |x: &Var| !axes.iter().any(|n| self.f.ty(*x).has(n)) && self.f.ty(args[0]).covers(self.f.ty(*x));
            if !c.above.iter().chain(&c.below).all(free) || over.get_or_insert_with(|| axes.clone()) != axes {
                return Ok(None);
            }
            self.expand(args[0], &c, &mut sum);
        }
        let Some((_, known)) = self.sums.iter().find(|(s, v)| *s == sum && *v != e.out).cloned() else { return Ok(None) };
        let Some(over) = over else { return Ok(None) };
        self.need(known)?;
        let v = self.b.reduce_sum(self.at[&known], &over)?;
        Ok((same_order(self.b.ty(v), self.f.ty(e.out))).then_some(v))
    }
    fn copied(&mut self, e: &Eqn) -> Result<Var, Error> {
        let args: Vec<Var> = e.args.iter().map(|a| self.at[a]).collect();
        match &e.op {
            Prim::Elementwise(op @ (Elementwise::Add | Elementwise::Mul)) => self.commutative(*op, args[0], args[1]),
            op => self.b.push(op.clone(), &args),
        }
    }
    /// `x + y` or `x·y`, whichever way round it is there already.
    fn commutative(&mut self, op: Elementwise, x: Var, y: Var) -> Result<Var, Error> {
        let key = (op == Elementwise::Add, x.min(y), x.max(y));
        if let Some(v) = self.commuted.get(&key) {
            return Ok(*v);
        }
        let v = self.b.elementwise(op, &[x, y])?;
        self.commuted.insert(key, v);
        Ok(v)
    }
    /// `v` as a product.
    fn product(&self, v: Var, by: &mut Product, invert: bool) {
        match self.eqn(v).filter(|_| self.f.ty(v).dtype.is_float()).map(|e| (&e.op, e.args.as_slice())) {
            Some((Prim::Elementwise(Elementwise::Mul), [x, y])) => {
                self.product(*x, by, invert);
                self.product(*y, by, invert);
            }
            Some((Prim::Elementwise(Elementwise::Div), [x, y])) => {
                self.product(*x, by, invert);
                self.product(*y, by, !invert);
            }
            Some((Prim::Elementwise(Elementwise::Neg), [x])) => {
                by.negative = !by.negative;
                self.product(*x, by, invert);
            }
            _ if invert => by.below.push(v),
            _ => by.above.push(v),
        }
    }
    /// Whether an equation like `what` is behind `v`.
    fn behind(&self, v: Var, what: &dyn Fn(&Eqn) -> bool) -> bool {
        let (mut seen, mut open) = (std::collections::BTreeSet::new(), vec![v]);
        while let Some(v) = open.pop() {
            if let (true, Some(e)) = (seen.insert(v), self.eqn(v)) {
                if what(e) {
                    return true;
                }
                open.extend(&e.args);
            }
        }
        false
    }
    /// What `v` adds up, if these are all sums of products that nothing else uses.
    fn terms(&self, v: Var, negative: bool, out: &mut Vec<Term>) -> Option<()> {
        let e = self.eqn(v)?;
        if let Prim::Elementwise(op @ (Elementwise::Add | Elementwise::Sub)) = &e.op {
            self.terms(e.args[0], negative, out)?;
            return self.terms(e.args[1], negative != (*op == Elementwise::Sub), out);
        }
        let mut c = Product { negative, ..Product::default() };
        self.product(v, &mut c, false);
        let sums = |v: &Var| self.users[v.index()] == 1 && self.eqn(*v).is_some_and(|e| matches!(e.op, Prim::Contract(_)));
        let mut sum = c.above.iter().copied().filter(sums);
        let (leaf, None) = (sum.next()?, sum.next()) else { return None };
        c.above.retain(|x| *x != leaf);
        let e = self.eqn(leaf)?;
        let Prim::Contract(over) = &e.op else { return None };
        if c.above.iter().chain(&c.below).any(|x| over.iter().any(|n| self.f.ty(*x).has(n))) {
            return None;
        }
        out.push(Term { c, over: over.clone(), a: e.args[0], b: e.args[1] });
        Some(())
    }

    /// The right side for equation `e`, if it is a left side.
    fn gathered(&mut self, e: &Eqn) -> Result<Option<Var>, Error> {
        if !matches!(e.op, Prim::Elementwise(Elementwise::Add | Elementwise::Sub)) || !self.f.ty(e.out).dtype.is_float() {
            return Ok(None);
        }
        let mut terms = vec![];
        if self.terms(e.out, false, &mut terms).is_none() || terms.windows(2).any(|w| w[0].over != w[1].over) {
            return Ok(None);
        }
        // What all of them multiply by: an operand, or a factor of one, whose other factors then go to the other side.
        let factors = |v: Var| {
            let mut p = Product::default();
            self.product(v, &mut p, false);
            p
        };
        let side = |t: &Term, s: Var| [(t.a, t.b), (t.b, t.a)].into_iter().find(|(with, _)| *with == s).or_else(|| [(t.a, t.b), (t.b, t.a)].into_iter().find(|(with, _)| factors(*with).above.contains(&s)));
        let summed = |s: &Var| terms[0].over.iter().all(|n| self.f.ty(*s).has(n));
        let candidates = [terms[0].a, terms[0].b].into_iter().chain(factors(terms[0].a).above).chain(factors(terms[0].b).above).filter(summed);
        let mut found: Option<(Var, Vec<(Var, Var)>)> = None;
        for s in candidates {
            if let (None, Some(sides)) = (&found, terms.iter().map(|t| side(t, s)).collect::<Option<Vec<_>>>()) {
                found = Some((s, sides));
            }
        }
        let Some((shared, sides)) = found else { return Ok(None) };
        let first = terms[0].a == sides[0].0;
        let mut bodies: Vec<Product> = vec![];
        for (t, (with, u)) in terms.iter().zip(&sides) {
            let mut rest = if *with == shared { Product { above: vec![shared], ..Product::default() } } else { factors(*with) };
            if let Some(i) = rest.above.iter().position(|x| *x == shared) {
                rest.above.remove(i);
            }
            // Nothing becomes wider than the operand is.
            if t.c.above.iter().chain(&t.c.below).chain(&rest.above).chain(&rest.below).any(|x| !self.f.ty(*u).covers(self.f.ty(*x))) {
                return Ok(None);
            }
            rest.negative ^= t.c.negative;
            bodies.push(rest);
        }
        // A coefficient that waits for a sum over the same axis costs another pass over it, in which products that are nowhere in memory (scores)
        // are made again, unless that pass is there anyway.
        let waits = |e: &Eqn| matches!(&e.op, Prim::Reduce(_, over) | Prim::Contract(over) if over.iter().any(|n| terms[0].over.contains(n)));
        let scores = |e: &Eqn| matches!(e.op, Prim::Contract(_)) && terms[0].over.iter().any(|n| self.f.ty(e.out).has(n)) && !self.ports.iter().any(|t| t.covers(self.f.ty(e.out)));
        let coefficients = || terms.iter().flat_map(|t| t.c.above.iter().chain(&t.c.below));
        let again = || sides.iter().any(|(with, u)| self.behind(*u, &scores) || self.behind(*with, &scores));
        if self.which == Gathered::Ready && again() && coefficients().any(|c| self.behind(*c, &waits)) {
            return Ok(None);
        }
        // What all coefficients have stays outside, and what all bodies have is their factor.
        let mut coefficients: Vec<Product> = terms.iter().map(|t| t.c.clone()).collect();
        let outside = common(&mut coefficients);
        for ((body, c), (_, u)) in bodies.iter_mut().zip(coefficients).zip(&sides) {
            self.product(*u, body, false);
            body.above.extend(c.above);
            body.below.extend(c.below);
        }
        let factor = common(&mut bodies);
        let mut total: Option<Var> = None;
        for p in &bodies {
            let Some(x) = self.build(p)? else { return Ok(None) };
            total = Some(match total {
                None if p.negative => self.b.elementwise(Elementwise::Neg, &[x])?,
                None => x,
                Some(t) if p.negative => self.b.sub(t, x)?,
                Some(t) => self.commutative(Elementwise::Add, t, x)?,
            });
        }
        let Some(total) = total else { return Ok(None) };
        let body = match self.build(&factor)? {
            Some(p) => self.commutative(Elementwise::Mul, p, total)?,
            None => total,
        };
        let shared = self.at[&shared];
        let sum = if first { self.b.contract(shared, body, &terms[0].over)? } else { self.b.contract(body, shared, &terms[0].over)? };
        let all = match self.build(&outside)? {
            Some(c) => self.commutative(Elementwise::Mul, c, sum)?,
            None => sum,
        };
        // The order of axes is the caller's: another one would be movement inside a kernel.
        Ok(same_order(self.b.ty(all), self.f.ty(e.out)).then_some(all))
    }
    /// A product's value; none for that of nothing.
    fn build(&mut self, p: &Product) -> Result<Option<Var>, Error> {
        let mut x = None;
        for v in &p.above {
            let v = self.at[v];
            x = Some(match x {
                None => v,
                Some(x) => self.commutative(Elementwise::Mul, x, v)?,
            });
        }
        for v in &p.below {
            let v = self.at[v];
            let above = match x {
                Some(x) => x,
                None => {
                    let d = self.b.dtype(v);
                    self.b.constant(1.0, d)
                }
            };
            x = Some(self.b.div(above, v)?);
        }
        Ok(x)
    }
}

fn same_order(a: &Type, b: &Type) -> bool {
    a.axes.iter().map(|a| &a.name).eq(b.axes.iter().map(|a| &a.name))
}

/// Takes the factors out of `products` that all of them have.
fn common(products: &mut [Product]) -> Product {
    let mut out = Product::default();
    for below in [false, true] {
        let side = |p: &mut Product| std::mem::take(if below { &mut p.below } else { &mut p.above });
        let mut sides: Vec<Vec<Var>> = products.iter_mut().map(side).collect();
        let mut shared = vec![];
        for v in sides[0].clone() {
            if sides.iter().all(|s| s.contains(&v)) {
                for s in &mut sides {
                    if let Some(i) = s.iter().position(|x| *x == v) {
                        s.remove(i);
                    }
                }
                shared.push(v);
            }
        }
        for (p, s) in products.iter_mut().zip(sides) {
            *(if below { &mut p.below } else { &mut p.above }) = s;
        }
        *(if below { &mut out.below } else { &mut out.above }) = shared;
    }
    out
}
