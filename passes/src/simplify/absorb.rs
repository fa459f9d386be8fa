//! Factors that every use of an exponential has go into its exponent.
//!
//! ```text
//! absorb   exp(x − m)·(y/w)  =>  exp(x − (m + log w))·y      w > 0, w has fewer axes than x
//! ```
//!
//! Exact, and worth it where w is known before x is walked over, as in the half of a gradient that reads what the other half has summed: one number per row is
//! read in place of two, and no element is multiplied by 1/w. For softmax it is the log-sum-exp that Dao et al. (2022) keep. Where it is not known,
//! the sum could not be carried any more; so only what depends on late parameters is rewritten.

use crate::ad::{copy, dependent, prune};
use ir::builder::Builder;
use ir::diagnostic::Error;
use ir::dim::Name;
use ir::graph::{Eqn, Function, Var};
use ir::prim::{Elementwise, Prim, ReduceKind};
use std::collections::{BTreeMap, BTreeSet};

/// An exponential and the factor that goes into its exponent.
struct Found<'a> {
    f: &'a Function,
    definitions: &'a [Option<usize>],
    p: Var,
    w: Var,
}

/// `f` with the rule `absorb` wherever it applies to what depends on the parameters `late`: the same function to rounding.
///
/// # Errors
/// Those of the builder, which mean a bug.
pub(super) fn absorb(f: &Function, late: &[Name]) -> Result<Function, Error> {
    let seeds: Vec<Var> = late.iter().filter_map(|n| f.param(n)).collect();
    let depends = dependent(f, &seeds);
    let definitions = f.definitions();
    let mut found: BTreeMap<Var, Found> = BTreeMap::new();
    for e in &f.eqns {
        if depends[e.out.index()] || !matches!(e.op, Prim::Elementwise(Elementwise::Exp)) {
            continue;
        }
        let users: Vec<&Eqn> = f.eqns.iter().filter(|u| depends[u.out.index()] && u.args.contains(&e.out)).collect();
        let mut divisors = vec![];
        let Some(y) = users.first().and_then(|u| beside(u, e.out)) else { continue };
        divided(f, &definitions, y, &mut divisors);
        let fits = |w: &Var| {
            let x = Found { f, definitions: &definitions, p: e.out, w: *w };
            !depends[w.index()] && x.sound() && users.iter().all(|u| beside(u, e.out).is_some_and(|y| x.divides(y, true)))
        };
        if let Some(w) = divisors.into_iter().find(fits) {
            found.insert(e.out, Found { f, definitions: &definitions, p: e.out, w });
        }
    }
    if found.is_empty() || f.results.iter().any(|r| depends[r.var.index()] && found.contains_key(&r.var)) {
        return Ok(f.clone());
    }
    let mut b = Builder::new(f.name.clone());
    let mut map: BTreeMap<Var, Var> = f.params.iter().map(|p| (p.var, b.param(p.name.clone(), f.ty(p.var).clone()))).collect();
    for e in &f.eqns {
        let with = e.args.iter().find_map(|a| found.get(a)).filter(|_| depends[e.out.index()]);
        let Some((x, y)) = with.and_then(|x| Some((x, beside(e, x.p)?))) else {
            copy(&mut b, f, e, &mut map)?;
            continue;
        };
        b.origin = Some("simplify:absorb".into());
        b.span = e.span;
        let (p, y) = (x.exponential(&mut b, &map)?, x.quotient(&mut b, &map, y)?);
        let args: Vec<Var> = e.args.iter().map(|a| if *a == x.p { p } else { y }).collect();
        let out = b.push(e.op.clone(), &args)?;
        let order: Vec<Name> = f.ty(e.out).axes.iter().map(|a| a.name.clone()).collect();
        let out = b.permute(out, &order)?;
        b.origin = None;
        map.insert(e.out, out);
    }
    f.results.iter().for_each(|r| b.result(r.name.clone(), map[&r.var]));
    prune(&b.finish())
}

/// The other factor, where `e` is a product of `p`, or a sum of such.
fn beside(e: &Eqn, p: Var) -> Option<Var> {
    match (&e.op, e.args.as_slice()) {
        (Prim::Elementwise(Elementwise::Mul) | Prim::Contract(_), [a, b]) if (*a == p) != (*b == p) => Some(if *a == p { *b } else { *a }),
        _ => None,
    }
}

/// What `v` is divided by, anywhere in sums and products.
fn divided(f: &Function, definitions: &[Option<usize>], v: Var, out: &mut Vec<Var>) {
    let Some(e) = definitions[v.index()].map(|i| &f.eqns[i]) else { return };
    match &e.op {
        Prim::Elementwise(Elementwise::Div) => out.push(e.args[1]),
        Prim::Elementwise(Elementwise::Neg | Elementwise::Add | Elementwise::Sub | Elementwise::Mul | Elementwise::Select) => {
            e.args.iter().for_each(|a| divided(f, definitions, *a, out));
        }
        _ => {}
    }
}

impl Found<'_> {
    fn eqn(&self, v: Var) -> Option<&Eqn> {
        self.definitions[v.index()].map(|i| &self.f.eqns[i])
    }
    fn is_number(&self, v: Var, test: fn(f64) -> bool) -> bool {
        self.eqn(v).is_some_and(|e| matches!(&e.op, Prim::Constant(c) if test(c.value)))
    }
    fn same_axes(&self, a: Var, b: Var) -> bool {
        let (a, b) = (self.f.ty(a), self.f.ty(b));
        a.axes.len() == b.axes.len() && a.covers(b)
    }
    /// `(c, a, b)` of a `select` whose condition says that a number is positive, and that number.
    fn positive_else(&self, v: Var) -> Option<([Var; 3], Var)> {
        let e = self.eqn(v).filter(|e| matches!(e.op, Prim::Elementwise(Elementwise::Select)))?;
        let c = self.eqn(e.args[0]).filter(|c| matches!(c.op, Prim::Elementwise(Elementwise::Gt)) && self.is_number(c.args[1], |x| x == 0.0))?;
        Some(([e.args[0], e.args[1], e.args[2]], c.args[0]))
    }
    /// The factor is `Σ p`, or a positive number where that is zero, and lacks an axis of the exponential.
    fn sound(&self) -> bool {
        let Some(([_, l, other], tested)) = self.positive_else(self.w) else { return false };
        let sum = self.eqn(l).is_some_and(|e| matches!(e.op, Prim::Reduce(ReduceKind::Sum, _)) && e.args[0] == self.p);
        l == tested && sum && self.is_number(other, |x| x > 0.0) && self.f.ty(self.p).axes.len() > self.f.ty(self.w).axes.len()
    }
    /// Whether `v·w` is `v` with a division by w left out. `p` is beside it: what a row without terms has does not matter, as p is zero there, if it is a number.
    fn divides(&self, v: Var, first: bool) -> bool {
        let Some(e) = self.eqn(v) else { return false };
        let all = |args: &[Var]| args.iter().all(|a| self.divides(*a, first));
        match &e.op {
            Prim::Constant(c) => c.value == 0.0,
            Prim::Elementwise(Elementwise::Div) => (e.args[1] == self.w && self.same_axes(v, e.args[0])) || (e.args[1] != self.w && self.divides(e.args[0], first)),
            Prim::Elementwise(Elementwise::Neg) => all(&e.args),
            Prim::Elementwise(Elementwise::Add | Elementwise::Sub) => all(&e.args),
            Prim::Elementwise(Elementwise::Mul) => e.args.iter().any(|a| self.divides(*a, first)),
            Prim::Elementwise(Elementwise::Select) => first && self.dropped(v).is_some_and(|a| self.divides(a, false)),
            _ => false,
        }
    }
    /// What a `select` is where `Σ p` is not zero, if it is zero elsewhere and made of nothing but sums and products.
    fn dropped(&self, v: Var) -> Option<Var> {
        let (([c, a, other], _), ([same, ..], _)) = (self.positive_else(v)?, self.positive_else(self.w)?);
        (c == same && self.is_number(other, |x| x == 0.0) && self.finite(a, &mut BTreeSet::new())).then_some(a)
    }
    /// Whether `v` is a sum of products of parameters, divided by w at most; what is zero where `Σ p` is may be anything elsewhere.
    fn finite(&self, v: Var, seen: &mut BTreeSet<Var>) -> bool {
        let Some(e) = self.eqn(v).filter(|_| v != self.p && seen.insert(v)) else { return true };
        let sums = match &e.op {
            Prim::Elementwise(Elementwise::Neg | Elementwise::Add | Elementwise::Sub | Elementwise::Mul) => true,
            Prim::Elementwise(Elementwise::Div) => return e.args[1] == self.w && self.finite(e.args[0], seen),
            Prim::Elementwise(Elementwise::Select) => {
                let same = self.positive_else(v).zip(self.positive_else(self.w)).is_some_and(|(s, w)| s.0[0] == w.0[0]);
                return same && self.is_number(e.args[2], |x| x == 0.0);
            }
            Prim::Reduce(ReduceKind::Sum, _) | Prim::Contract(_) | Prim::Movement(_) | Prim::Constant(_) | Prim::Size(..) => true,
            _ => false,
        };
        sums && e.args.iter().all(|a| self.finite(*a, seen))
    }

    /// `exp(x − (m + log w))`
    fn exponential(&self, b: &mut Builder, map: &BTreeMap<Var, Var>) -> Result<Var, Error> {
        let lost = || Error::new(format!("simplify: an exponential of `{}` without an exponent", self.f.name));
        let exponent = *self.eqn(self.p).ok_or_else(lost)?.args.first().ok_or_else(lost)?;
        let log = b.elementwise(Elementwise::Log, &[map[&self.w]])?;
        let rows = |m: Var| self.same_axes(m, self.w);
        let moved = match self.eqn(exponent).map(|e| (&e.op, e.args.as_slice())) {
            Some((Prim::Elementwise(Elementwise::Sub), [x, m])) if rows(*m) => {
                let m = b.add(map[m], log)?;
                b.sub(map[x], m)?
            }
            _ => b.sub(map[&exponent], log)?,
        };
        b.elementwise(Elementwise::Exp, &[moved])
    }
    /// `v·w`, for what [`Found::divides`] says yes to.
    fn quotient(&self, b: &mut Builder, map: &BTreeMap<Var, Var>, v: Var) -> Result<Var, Error> {
        let Some(e) = self.eqn(v) else { return Ok(map[&v]) };
        match &e.op {
            Prim::Elementwise(Elementwise::Div) if e.args[1] == self.w => Ok(map[&e.args[0]]),
            Prim::Elementwise(Elementwise::Div) => {
                let a = self.quotient(b, map, e.args[0])?;
                b.div(a, map[&e.args[1]])
            }
            Prim::Elementwise(Elementwise::Select) => match self.dropped(v) {
                Some(a) => self.quotient(b, map, a),
                None => Ok(map[&v]),
            },
            Prim::Elementwise(Elementwise::Mul) => {
                let at = usize::from(!self.divides(e.args[0], true));
                let a = self.quotient(b, map, e.args[at])?;
                b.mul(a, map[&e.args[1 - at]])
            }
            Prim::Elementwise(op @ (Elementwise::Neg | Elementwise::Add | Elementwise::Sub)) => {
                let args = e.args.iter().map(|a| self.quotient(b, map, *a)).collect::<Result<Vec<_>, _>>()?;
                b.elementwise(*op, &args)
            }
            _ => Ok(map[&v]),
        }
    }
}
