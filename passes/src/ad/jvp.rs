//! Forward-mode differentiation: `f(x) => f(x), ∂f(x)·x.t`.
//!
//! The rules are the kinds of the primitives (`ir::prim`); nothing here is written for one operation except the maximum,
//! whose tangent is that of the elements that attain it. Primal equations stay as they are; an inactive value has no tangent
//! at all, so nothing is ever multiplied by zero. Each new equation says which rule made it.

use super::activity;
use super::call::{Checkpoint, Derived, groups};
use ir::builder::Builder;
use ir::diagnostic::Error;
use ir::dim::Name;
use ir::graph::{Eqn, Function, Var};
use ir::prim::{Call, Elementwise, Kind, Movement, Prim, ReduceKind};

/// The Jacobian-vector product of `f` along the parameters `wrt`.
///
/// The result has `f`'s parameters, then `NAME.t` for each of `wrt`, of its shape; `f`'s results, then `NAME.t` for each
/// result that depends differentiably on one of `wrt`. Applied twice, suffixes add up: along `q.t` there is `q.t.t`. Where a
/// name is taken (a second direction along `q`), the suffix of the whole transform is `.t2`, then `.t3`.
///
/// A function that is called is derived once for each pattern of operands that move, and gives its results and their tangents in one call.
///
/// # Errors
/// A name in `wrt` that is no parameter, is named twice, or is not a float; and `wrt` of which no result depends.
pub fn jvp(f: &Function, wrt: &[Name]) -> Result<Function, Error> {
    jvp_with(f, wrt, &|_, _, _, t| Ok(Some(t)))
}

/// What the tangent `t` of operand number `i` of an operation adds to its result's tangent, given as the tangent to apply the rule to.
/// The identity is right; a test that puts something else here sees whether the laws find it.
pub type Bend<'a> = &'a dyn Fn(&mut Builder, &Prim, usize, Var) -> Result<Option<Var>, Error>;

/// [`jvp`], with every operand's tangent seen through `bend`.
///
/// # Errors
/// Those of [`jvp`] and of `bend`.
pub fn jvp_with(f: &Function, wrt: &[Name], bend: Bend) -> Result<Function, Error> {
    let mut derived = Derived::new(f, Checkpoint::default());
    along(f, wrt, Want::All, Mode::Joint, bend, &mut derived).map(|(g, _)| g)
}

/// Of which results tangents are wanted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Want<'a> {
    All,
    Only(&'a [bool]),
}

impl Want<'_> {
    pub fn has(self, result: usize) -> bool {
        match self {
            Want::All => true,
            Want::Only(w) => w[result],
        }
    }
}

/// What becomes of a call whose operands move.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Mode {
    /// One call gives results and tangents.
    Joint,
    /// The call stays, and another one, linear in the tangents, gives the tangents.
    Apart,
}

/// [`jvp_with`] for some of the results; and per result of `f` the position of its tangent.
pub(super) fn along(f: &Function, wrt: &[Name], want: Want, mode: Mode, bend: Bend, derived: &mut Derived) -> Result<(Function, Vec<Option<usize>>), Error> {
    let mut seeds = vec![];
    for (i, name) in wrt.iter().enumerate() {
        let names = || f.params.iter().map(|p| &*p.name).collect::<Vec<_>>().join(", ");
        let v = f.param(name).ok_or_else(|| {
            Error::new(format!("jvp: `{name}` is not a parameter of `{}`", f.name)).hint(format!("its parameters are {}", names()))
        })?;
        if wrt[..i].contains(name) {
            return Err(Error::new(format!("jvp: `{name}` is named twice")));
        }
        if !f.ty(v).dtype.is_float() {
            return Err(Error::new(format!("jvp: `{name}` is {}, and only floats have tangents", f.ty(v))));
        }
        seeds.push(v);
    }
    let active = activity::active_for(f, &seeds, want);
    if !f.results.iter().any(|r| active[r.var.index()]) {
        return Err(Error::new(format!("jvp: no result of `{}` depends differentiably on {}", f.name, wrt.join(", "))));
    }

    let suffix = suffix(f, wrt, &active);
    let groups = groups(f);
    let moves = |g: usize| f.eqns.iter().zip(&groups).any(|(e, h)| *h == Some(g) && active[e.out.index()]);
    // A call that gives its results and their tangents stands behind the tangents of its operands.
    let woven = mode == Mode::Joint && groups.iter().enumerate().any(|(i, g)| *g == Some(i) && moves(i));
    let mut b = if woven { Builder::new(f.name.clone()) } else { Builder::extend(f.clone()) };
    b.clear_results();
    let mut map: Vec<Var> = (0..f.vars.len() as u32).map(Var).collect();
    if woven {
        f.params.iter().for_each(|p| map[p.var.index()] = b.param(p.name.clone(), f.ty(p.var).clone()));
    }
    let mut tangent: Vec<Option<Var>> = vec![None; f.vars.len()];
    for (v, name) in seeds.iter().zip(wrt) {
        let t = b.param(format!("{name}{suffix}"), f.ty(*v).clone());
        if active[v.index()] {
            tangent[v.index()] = Some(t);
        }
    }
    let named = |b: &mut Builder, v: Var, t: Option<Var>| {
        if let (Some(t), Some(name)) = (t, &f.vars[v.index()].name) {
            b.name(t, format!("{name}{suffix}"));
        }
    };
    for (i, e) in f.eqns.iter().enumerate() {
        let together = groups[i].filter(|g| moves(*g));
        let args: Vec<Var> = e.args.iter().map(|a| map[a.index()]).collect();
        if woven && together.is_none() {
            (b.origin, b.span) = (e.origin.clone(), e.span);
            map[e.out.index()] = b.push(e.op.clone(), &args)?;
            if let Some(n) = &f.vars[e.out.index()].name {
                b.name(map[e.out.index()], n.clone());
            }
        }
        if together.is_some_and(|g| g != i) || (together.is_none() && !active[e.out.index()]) {
            continue;
        }
        b.origin = Some(format!("jvp:{}", e.op.name()).into());
        b.span = e.span;
        let mut t: Vec<Option<Var>> = vec![];
        for (i, a) in e.args.iter().enumerate() {
            t.push(match tangent[a.index()] {
                Some(t) => bend(&mut b, &e.op, i, t)?,
                None => None,
            });
        }
        let Prim::Call(c) = &e.op else {
            let here = Eqn { out: map[e.out.index()], args, ..e.clone() };
            let t = equation(&mut b, &here, &t)?;
            named(&mut b, e.out, t);
            tangent[e.out.index()] = t;
            continue;
        };
        // All results of the call, at its first equation.
        let own: Vec<(&Eqn, usize)> = f.eqns.iter().zip(&groups).filter(|(_, g)| **g == Some(i)).filter_map(|(e, _)| if let Prim::Call(c) = &e.op { Some((e, c.result)) } else { None }).collect();
        let mut wanted = vec![false; c.function.results.len()];
        own.iter().for_each(|(e, r)| wanted[*r] |= active[e.out.index()]);
        let depends = activity::dependence(&c.function);
        let moving: Vec<bool> = t.iter().enumerate().map(|(i, t)| t.is_some() && (0..wanted.len()).any(|r| wanted[r] && depends[r][i])).collect();
        let callee = if moving.contains(&true) { Some(derived.tangent(&c.function, &moving, &wanted, mode, bend)?) } else { None };
        let mut all = args.clone();
        all.extend(callee.iter().flat_map(|g| &g.operands).filter_map(|i| t[*i]));
        for (e, result) in own {
            if woven {
                let (function, args) = callee.as_ref().map_or((&c.function, &args), |g| (&g.function, &all));
                map[e.out.index()] = b.push(Prim::Call(Call { function: function.clone(), result }), args)?;
                if let Some(n) = &f.vars[e.out.index()].name {
                    b.name(map[e.out.index()], n.clone());
                }
            }
            if let Some((g, place)) = callee.as_ref().and_then(|g| g.results[result].map(|p| (g, p))).filter(|_| active[e.out.index()]) {
                let t = b.push(Prim::Call(Call { function: g.function.clone(), result: place }), &all)?;
                named(&mut b, e.out, Some(t));
                tangent[e.out.index()] = Some(t);
            }
        }
    }
    b.origin = None;
    for r in &f.results {
        b.result(r.name.clone(), map[r.var.index()]);
    }
    let mut places = vec![None; f.results.len()];
    let mut next = f.results.len();
    for (i, r) in f.results.iter().enumerate().filter(|(i, _)| want.has(*i)) {
        if let Some(t) = tangent[r.var.index()] {
            let order: Vec<Name> = f.ty(r.var).axes.iter().map(|a| a.name.clone()).collect();
            let t = b.permute(t, &order)?;
            b.result(format!("{}{suffix}", r.name), t);
            places[i] = Some(next);
            next += 1;
        }
    }
    let mut g = b.finish();
    g.name = format!("{}.jvp", f.name).into();
    Ok((g, places))
}

/// The first of `.t`, `.t2`, … that makes only new names.
fn suffix(f: &Function, wrt: &[Name], active: &[bool]) -> String {
    let taken = |n: String| f.params.iter().chain(&f.results).any(|p| *p.name == *n);
    let moving = f.results.iter().filter(|r| active[r.var.index()]).map(|r| &r.name);
    let names: Vec<&Name> = wrt.iter().chain(moving).collect();
    let candidates = std::iter::once(".t".to_string()).chain((2..).map(|k| format!(".t{k}")));
    candidates.into_iter().find(|s| !names.iter().any(|n| taken(format!("{n}{s}")))).unwrap_or_default()
}

/// The tangent of one equation's result, from those of its operands; `None` if no operand has one.
fn equation(b: &mut Builder, e: &Eqn, t: &[Option<Var>]) -> Result<Option<Var>, Error> {
    let terms = match &e.op {
        Prim::Elementwise(op) => match op.kind() {
            Kind::Zero => vec![],
            Kind::Linear => return linear(b, e, *op, t),
            Kind::Bilinear => product_rule(b, e, t)?,
            Kind::Partials => {
                let mut terms = vec![];
                for (i, ti) in t.iter().enumerate() {
                    let Some(ti) = ti else { continue };
                    let Some(p) = op.partial(b, i, &e.args, e.out)? else { continue };
                    terms.push(b.mul(p, *ti)?);
                }
                terms
            }
        },
        Prim::Contract(_) => product_rule(b, e, t)?,
        Prim::Reduce(ReduceKind::Sum, _) => match t[0] {
            Some(t) => vec![b.push(e.op.clone(), &[t])?],
            None => vec![],
        },
        Prim::Reduce(ReduceKind::Max, axes) => match t[0] {
            Some(t) => vec![attained(b, e, axes, t)?],
            None => vec![],
        },
        Prim::Movement(Movement::Concat { .. } | Movement::Stack(_)) => {
            let mut args = vec![];
            for (a, t) in e.args.iter().zip(t) {
                args.push(match t {
                    Some(t) => *t,
                    None => zeros(b, *a)?,
                });
            }
            vec![b.push(e.op.clone(), &args)?]
        }
        Prim::Movement(_) => match t[0] {
            Some(t) => vec![b.push(e.op.clone(), &[t])?],
            None => vec![],
        },
        // Calls are `along`'s.
        Prim::Call(_) | Prim::Constant(_) | Prim::Size(..) | Prim::Iota(_) | Prim::StopGradient => vec![],
    };
    let mut terms = terms.into_iter();
    let Some(mut sum) = terms.next() else { return Ok(None) };
    for term in terms {
        sum = b.add(sum, term)?;
    }
    Ok(Some(widen(b, sum, e.out)?))
}

/// The operation on the tangents, absent ones left out.
fn linear(b: &mut Builder, e: &Eqn, op: Elementwise, t: &[Option<Var>]) -> Result<Option<Var>, Error> {
    let d = b.dtype(e.out);
    let out = match (op, t) {
        (Elementwise::Select, [_, x, y]) => {
            let zero = b.constant(0.0, d);
            b.elementwise(op, &[e.args[0], x.unwrap_or(zero), y.unwrap_or(zero)])?
        }
        (Elementwise::Add, [Some(x), None] | [None, Some(x)]) | (Elementwise::Sub, [Some(x), None]) => *x,
        (Elementwise::Sub, [None, Some(y)]) => b.elementwise(Elementwise::Neg, &[*y])?,
        (_, t) => match t.iter().copied().collect::<Option<Vec<Var>>>() {
            Some(args) => b.elementwise(op, &args)?,
            None => return Ok(None),
        },
    };
    Ok(Some(widen(b, out, e.out)?))
}

/// `op(a.t, b) + op(a, b.t)`.
fn product_rule(b: &mut Builder, e: &Eqn, t: &[Option<Var>]) -> Result<Vec<Var>, Error> {
    let mut terms = vec![];
    if let Some(t) = t[0] {
        terms.push(b.push(e.op.clone(), &[t, e.args[1]])?);
    }
    if let Some(t) = t[1] {
        terms.push(b.push(e.op.clone(), &[e.args[0], t])?);
    }
    Ok(terms)
}

/// The tangent of a maximum: that of the elements that attain it, averaged over ties.
fn attained(b: &mut Builder, e: &Eqn, axes: &[Name], t: Var) -> Result<Var, Error> {
    let d = b.dtype(e.out);
    let (zero, one) = (b.constant(0.0, d), b.constant(1.0, d));
    let hit = b.elementwise(Elementwise::Eq, &[e.args[0], e.out])?;
    let count = b.elementwise(Elementwise::Select, &[hit, one, zero])?;
    let picked = b.elementwise(Elementwise::Select, &[hit, t, zero])?;
    let (count, picked) = (b.reduce_sum(count, axes)?, b.reduce_sum(picked, axes)?);
    // All elements below the identity attain nothing.
    let count = b.elementwise(Elementwise::Max, &[count, one])?;
    let share = b.div(one, count)?;
    b.mul(share, picked)
}

/// Zeros of `like`'s type: the tangent of an operand that does not move, beside operands that do.
fn zeros(b: &mut Builder, like: Var) -> Result<Var, Error> {
    let ty = b.ty(like).clone();
    let zero = b.constant(0.0, ty.dtype);
    if ty.axes.is_empty() { Ok(zero) } else { b.movement(Movement::Broadcast(ty.axes), &[zero]) }
}

/// `t` with all axes of its primal `like`, in its order: a tangent has its primal's shape.
fn widen(b: &mut Builder, t: Var, like: Var) -> Result<Var, Error> {
    let want = b.ty(like).axes.clone();
    let missing: Vec<_> = want.iter().filter(|a| !b.ty(t).has(&a.name)).cloned().collect();
    let t = if missing.is_empty() { t } else { b.movement(Movement::Broadcast(missing), &[t])? };
    let order: Vec<Name> = want.into_iter().map(|a| a.name).collect();
    b.permute(t, &order)
}
