//! The directed normalizer: sums of monomials over atoms.
//!
//! A float value is a sum of products of *atoms*: parameters, nonlinear operations of normalized operands, sums over axes,
//! and parenthesised sums. Addition and multiplication never expand; only under a sum over axes S is a parenthesis opened,
//! and only for the terms that then let a factor free of S out:
//!
//! ```text
//! hoist      Σ_S c·x          => c·Σ_S x             c has no axis of S
//! open       Σ_S (c·x + y)·z  => c·Σ_S x·z + Σ_S y·z  c has no axis of S, but sums over S: the product rule's sums
//! centre     Σ_S (x − c)·p    => Σ_S x·p − c·Σ_S p    likewise, and only if an exp is among p's factors
//! ```
//!
//! # Note: what is not opened
//! A term that has *no* axis of S is a subtracted mean. Opening it trades a second pass for cancellation; beside a factor exp
//! the loss is repaired by centring the tangent (`fuse::center`), elsewhere (a variance) it is not, and the parenthesis stays.
//! Powers are never opened. Source: the design notes on equality saturation for this IR; the algebra is elementary.

use ir::builder::Builder;
use ir::diagnostic::Error;
use ir::dim::Name;
use ir::graph::{Function, Var};
use ir::prim::{Elementwise, Movement, Prim, ReduceKind};
use ir::types::{Axis, DType};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Position in the table of atoms.
type AtomId = usize;

/// `coef · Π atom^power`, an atom above and below the line being two entries: `x/x` stays.
#[derive(Clone, PartialEq, Debug)]
struct Monomial {
    coef: f64,
    factors: BTreeMap<(AtomId, Side), u32>,
}

/// Above or below the line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Side {
    Above,
    Below,
}

/// A sum of monomials with distinct factors, sorted by them.
type Sum = Vec<Monomial>;

#[derive(Clone, PartialEq, Debug)]
enum Atom {
    /// A parameter.
    Param(Var),
    /// An operation of normalized operands.
    Op(Prim, Vec<Sum>),
    /// `Σ_axes monomial`, nothing left to hoist.
    Reduce(Vec<Name>, Monomial),
    /// A sum kept as one factor.
    Parenthesis(Sum),
}

struct AtomInfo {
    atom: Atom,
    dtype: DType,
    axes: Vec<Axis>,
    /// Depends on a parameter.
    data: bool,
    /// Axes of the reductions behind it.
    reduced: BTreeSet<Name>,
}

/// A side condition of the directed rules: what their truth needs. Tests drop each, and demand that a law fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// hoist: the factor has no axis of the sum.
    HoistFree,
    /// hoist: an axis that the body lacks counts as often as it is long.
    CountAbsent,
    /// open: the parenthesis stands above the line.
    OpenAbove,
    /// open: the parenthesis stands there once.
    OpenOnce,
    /// centre: an exp is among the factors, so that `fuse::center` repairs the loss.
    CentreWeighted,
}

impl Condition {
    /// All of them.
    pub const ALL: [Condition; 5] = [Condition::HoistFree, Condition::CountAbsent, Condition::OpenAbove, Condition::OpenOnce, Condition::CentreWeighted];
}

#[derive(Default)]
struct Table {
    atoms: Vec<AtomInfo>,
    known: HashMap<String, AtomId>,
    dropped: Option<Condition>,
}

fn constant(c: f64) -> Sum {
    if c == 0.0 { vec![] } else { vec![Monomial { coef: c, factors: BTreeMap::new() }] }
}

fn add(a: &Sum, b: &Sum, sign: f64) -> Sum {
    let mut out = a.clone();
    for m in b {
        match out.iter_mut().find(|x| x.factors == m.factors) {
            Some(x) => x.coef += sign * m.coef,
            None => out.push(Monomial { coef: sign * m.coef, factors: m.factors.clone() }),
        }
    }
    out.retain(|m| m.coef != 0.0);
    out.sort_by(|x, y| x.factors.cmp(&y.factors));
    out
}

fn times(a: &Monomial, b: &Monomial) -> Monomial {
    let mut factors = a.factors.clone();
    for (f, n) in &b.factors {
        *factors.entry(*f).or_insert(0) += n;
    }
    Monomial { coef: a.coef * b.coef, factors }
}

impl Table {
    fn intern(&mut self, atom: Atom, dtype: DType, axes: Vec<Axis>) -> AtomId {
        let key = format!("{atom:?}{dtype}");
        if let Some(id) = self.known.get(&key) {
            return *id;
        }
        let data = match &atom {
            Atom::Param(_) => true,
            Atom::Op(_, args) => args.iter().any(|s| self.sum_has_data(s)),
            Atom::Reduce(_, m) => self.has_data(m),
            Atom::Parenthesis(s) => self.sum_has_data(s),
        };
        let mut reduced: BTreeSet<Name> = match &atom {
            Atom::Op(Prim::Reduce(_, over) | Prim::Contract(over), _) | Atom::Reduce(over, _) => over.iter().cloned().collect(),
            _ => BTreeSet::new(),
        };
        let behind: Vec<AtomId> = match &atom {
            Atom::Param(_) => vec![],
            Atom::Op(_, args) => args.iter().flatten().flat_map(|m| m.factors.keys()).map(|k| k.0).collect(),
            Atom::Reduce(_, m) => m.factors.keys().map(|k| k.0).collect(),
            Atom::Parenthesis(s) => s.iter().flat_map(|m| m.factors.keys()).map(|k| k.0).collect(),
        };
        behind.into_iter().for_each(|a| reduced.extend(self.atoms[a].reduced.iter().cloned()));
        self.atoms.push(AtomInfo { atom, dtype, axes, data, reduced });
        self.known.insert(key, self.atoms.len() - 1);
        self.atoms.len() - 1
    }
    /// `holds`, unless the condition is dropped.
    fn when(&self, c: Condition, holds: bool) -> bool {
        holds || self.dropped == Some(c)
    }
    fn has_data(&self, m: &Monomial) -> bool {
        m.factors.keys().any(|(a, _)| self.atoms[*a].data)
    }
    fn sum_has_data(&self, s: &Sum) -> bool {
        s.iter().any(|m| self.has_data(m))
    }
    /// Axes of a monomial, in order of first appearance.
    fn axes(&self, m: &Monomial) -> Vec<Axis> {
        let mut axes: Vec<Axis> = vec![];
        for (a, _) in m.factors.keys() {
            for x in &self.atoms[*a].axes {
                if !axes.contains(x) {
                    axes.push(x.clone());
                }
            }
        }
        axes
    }
    fn sum_axes(&self, s: &Sum) -> Vec<Axis> {
        let mut axes: Vec<Axis> = vec![];
        for x in s.iter().flat_map(|m| self.axes(m)) {
            if !axes.contains(&x) {
                axes.push(x);
            }
        }
        axes
    }
    fn depends(&self, a: AtomId, over: &[Name]) -> bool {
        self.atoms[a].axes.iter().any(|x| over.contains(&x.name))
    }
    fn power(&mut self, atom: AtomId, side: Side) -> Monomial {
        Monomial { coef: 1.0, factors: [((atom, side), 1)].into() }
    }
    /// The sum as one monomial, in parentheses if need be.
    fn close(&mut self, s: &Sum, dtype: DType) -> Monomial {
        match s.as_slice() {
            [] => Monomial { coef: 0.0, factors: BTreeMap::new() },
            [m] => m.clone(),
            _ => {
                let axes = self.sum_axes(s);
                let id = self.intern(Atom::Parenthesis(s.clone()), dtype, axes);
                self.power(id, Side::Above)
            }
        }
    }
    fn product(&mut self, a: &Sum, b: &Sum, dtype: DType) -> Sum {
        let m = times(&self.close(a, dtype), &self.close(b, dtype));
        if m.coef == 0.0 { vec![] } else { vec![m] }
    }
    fn quotient(&mut self, a: &Sum, b: &Sum, dtype: DType) -> Sum {
        let d = self.close(b, dtype);
        if d.coef == 0.0 {
            let axes = self.sum_axes(a);
            let id = self.intern(Atom::Op(Prim::Elementwise(Elementwise::Div), vec![a.clone(), b.clone()]), dtype, axes);
            return vec![self.power(id, Side::Above)];
        }
        let flip = |s: &Side| if *s == Side::Above { Side::Below } else { Side::Above };
        let inverse = Monomial { coef: 1.0 / d.coef, factors: d.factors.iter().map(|((a, s), n)| ((*a, flip(s)), *n)).collect() };
        let m = times(&self.close(a, dtype), &inverse);
        if m.coef == 0.0 { vec![] } else { vec![m] }
    }

    /// `Σ_over s`.
    fn reduce(&mut self, s: &Sum, over: &[Axis], dtype: DType) -> Sum {
        let names: Vec<Name> = over.iter().map(|a| a.name.clone()).collect();
        let mut open: Vec<Monomial> = s.clone();
        let mut out = vec![];
        while let Some(m) = open.pop() {
            if let Some(terms) = self.opened(&m, &names, dtype) {
                open.extend(terms);
                continue;
            }
            let (inside, outside): (Vec<_>, Vec<_>) = m.factors.iter().partition(|((a, _), _)| !self.when(Condition::HoistFree, !self.depends(*a, &names)));
            let mut result = Monomial { coef: m.coef, factors: outside.into_iter().map(|(k, n)| (*k, *n)).collect() };
            let body = Monomial { coef: 1.0, factors: inside.into_iter().map(|(k, n)| (*k, *n)).collect() };
            let axes = self.axes(&body);
            // An axis that the body does not have counts as often as it is long.
            let absent: Vec<&Axis> = over.iter().filter(|a| !self.when(Condition::CountAbsent, axes.iter().any(|x| x.name == a.name))).collect();
            for a in absent {
                let id = self.intern(Atom::Op(Prim::Size(a.size.clone(), dtype), vec![]), dtype, vec![]);
                result = times(&result, &Monomial { coef: 1.0, factors: [((id, Side::Above), 1)].into() });
            }
            let left: Vec<Name> = names.iter().filter(|n| axes.iter().any(|x| x.name == **n)).cloned().collect();
            if !left.is_empty() {
                let rest = axes.into_iter().filter(|x| !left.contains(&x.name)).collect();
                let id = self.intern(Atom::Reduce(left, body), dtype, rest);
                result = times(&result, &Monomial { coef: 1.0, factors: [((id, Side::Above), 1)].into() });
            }
            out = add(&out, &vec![result], 1.0);
        }
        out
    }
    /// Whether the term `t` of a parenthesis under `Σ_over` lets a factor out: one that itself needs a pass over S. Anything else
    /// may stay inside, where it costs no sum of its own. `weighted` says whether an exp stands beside the parenthesis.
    fn frees(&self, t: &Monomial, over: &[Name], weighted: bool) -> bool {
        let waits = |a: AtomId| !self.depends(a, over) && self.atoms[a].reduced.iter().any(|n| over.contains(n));
        let moves = t.factors.keys().any(|(a, _)| self.depends(*a, over));
        (moves || weighted) && t.factors.keys().any(|(a, _)| waits(*a)) || t.factors.iter().any(|((a, side), n)| match &self.atoms[*a].atom {
            Atom::Parenthesis(terms) if *side == Side::Above && *n == 1 && self.depends(*a, over) => terms.iter().any(|t| self.frees(t, over, weighted)),
            _ => false,
        })
    }
    /// `m` with one parenthesis opened as far as that lets factors out of `Σ_over`; `None` if none does.
    fn opened(&mut self, m: &Monomial, over: &[Name], dtype: DType) -> Option<Vec<Monomial>> {
        for (key, n) in &m.factors {
            let (id, side) = *key;
            let Atom::Parenthesis(terms) = &self.atoms[id].atom else { continue };
            if !self.when(Condition::OpenAbove, side == Side::Above) || !self.when(Condition::OpenOnce, *n == 1) || !self.depends(id, over) {
                continue;
            }
            let weighted = self.dropped == Some(Condition::CentreWeighted) || m.factors.keys().any(|(a, s)| {
                *s == Side::Above && self.depends(*a, over) && matches!(self.atoms[*a].atom, Atom::Op(Prim::Elementwise(Elementwise::Exp), _))
            });
            let frees = |t: &Monomial| self.frees(t, over, weighted);
            let (out, rest): (Vec<Monomial>, Vec<Monomial>) = terms.iter().cloned().partition(frees);
            if out.is_empty() {
                continue;
            }
            let mut others = m.clone();
            others.factors.remove(key);
            let mut opened: Vec<Monomial> = out.iter().map(|t| times(&others, t)).collect();
            if !rest.is_empty() {
                let rest = self.close(&rest, dtype);
                opened.push(times(&others, &rest));
            }
            return Some(opened);
        }
        None
    }
}

/// The function in normal form: same parameters, results and meaning to rounding.
///
/// # Errors
/// Those of the builder, which mean a bug here.
pub fn normalize(f: &Function) -> Result<Function, Error> {
    normalize_without(f, None)
}

/// The same with one side condition dropped: wrong on purpose, for tests of the laws.
///
/// # Errors
/// Those of [`normalize`].
pub fn normalize_without(f: &Function, dropped: Option<Condition>) -> Result<Function, Error> {
    let mut table = Table { dropped, ..Table::default() };
    let mut values: Vec<Sum> = vec![vec![]; f.vars.len()];
    for p in &f.params {
        let ty = f.ty(p.var);
        let id = table.intern(Atom::Param(p.var), ty.dtype, ty.axes.clone());
        values[p.var.index()] = vec![table.power(id, Side::Above)];
    }
    let mut names: HashMap<AtomId, Name> = HashMap::new();
    for e in &f.eqns {
        let dtype = f.ty(e.out).dtype;
        let args: Vec<Sum> = e.args.iter().map(|a| values[a.index()].clone()).collect();
        let axes_of = |ns: &[Name], of: &[Var]| -> Vec<Axis> {
            ns.iter().filter_map(|n| of.iter().find_map(|v| f.ty(*v).axis(n)).cloned()).collect()
        };
        use Elementwise::*;
        let value = match &e.op {
            Prim::Constant(c) if dtype.is_float() && c.value.is_finite() => constant(c.value),
            Prim::Size(d, _) if dtype.is_float() && d.as_fixed().is_some() => constant(d.as_fixed().unwrap_or(0) as f64),
            Prim::Elementwise(Add) if dtype.is_float() => add(&args[0], &args[1], 1.0),
            Prim::Elementwise(Sub) if dtype.is_float() => add(&args[0], &args[1], -1.0),
            Prim::Elementwise(Neg) if dtype.is_float() => add(&vec![], &args[0], -1.0),
            Prim::Elementwise(Mul) if dtype.is_float() => table.product(&args[0], &args[1], dtype),
            Prim::Elementwise(Div) => table.quotient(&args[0], &args[1], dtype),
            Prim::Contract(sum) => {
                let p = table.product(&args[0], &args[1], dtype);
                table.reduce(&p, &axes_of(sum, &e.args), dtype)
            }
            Prim::Reduce(ReduceKind::Sum, sum) => table.reduce(&args[0], &axes_of(sum, &e.args), dtype),
            // Only more axes: the same value.
            Prim::Movement(Movement::Broadcast(_) | Movement::Permute(_)) => args[0].clone(),
            op => opaque(&mut table, f, op, &e.args, &args, dtype)?,
        };
        if let ([m], Some(n)) = (value.as_slice(), &f.vars[e.out.index()].name) {
            if let ([((id, Side::Above), 1)], true) = (m.factors.iter().map(|(k, n)| (*k, *n)).collect::<Vec<_>>().as_slice(), m.coef == 1.0) {
                names.entry(*id).or_insert_with(|| n.clone());
            }
        }
        values[e.out.index()] = value;
    }

    let mut b = Builder::new(f.name.clone());
    let mut emit = Emit { table: &table, names: &names, params: HashMap::new(), atoms: HashMap::new() };
    for p in &f.params {
        let v = b.param(p.name.clone(), f.ty(p.var).clone());
        emit.params.insert(p.var, v);
    }
    for r in &f.results {
        let ty = f.ty(r.var);
        let v = emit.sum(&mut b, &values[r.var.index()], ty.dtype)?;
        let missing: Vec<Axis> = ty.axes.iter().filter(|a| !b.ty(v).has(&a.name)).cloned().collect();
        let v = if missing.is_empty() { v } else { b.movement(Movement::Broadcast(missing), &[v])? };
        let order: Vec<Name> = ty.axes.iter().map(|a| a.name.clone()).collect();
        let v = b.permute(v, &order)?;
        b.name(v, r.name.clone());
        b.result(r.name.clone(), v);
    }
    Ok(b.finish())
}

/// An operation that is an atom. Its operands may have lost broadcast axes; where the operation needs them, they come back.
fn opaque(table: &mut Table, f: &Function, op: &Prim, vars: &[Var], args: &[Sum], dtype: DType) -> Result<Sum, Error> {
    let mut op = op.clone();
    let mut args: Vec<Sum> = args.to_vec();
    if let Prim::Movement(_) | Prim::Call(_) = op {
        // Movement is about particular axes, and a call's operands are buffers: give each operand its declared ones.
        for (a, v) in args.iter_mut().zip(vars) {
            let ty = f.ty(*v);
            let have = table.sum_axes(a);
            let same = have == ty.axes;
            if !same {
                let order = Prim::Movement(Movement::Permute(ty.axes.iter().map(|x| x.name.clone()).collect()));
                let id = table.intern(Atom::Op(order, vec![a.clone()]), ty.dtype, ty.axes.clone());
                *a = vec![table.power(id, Side::Above)];
            }
        }
    }
    if let Prim::Reduce(ReduceKind::Max, over) = &mut op {
        let have = table.sum_axes(&args[0]);
        over.retain(|n| have.iter().any(|a| a.name == *n));
        if over.is_empty() {
            return Ok(args[0].clone());
        }
    }
    let axes = match &op {
        Prim::Movement(_) | Prim::Call(_) => {
            let types: Vec<_> = vars.iter().map(|v| f.ty(*v)).collect();
            op.infer(&types).map_err(|m| Error::new(m.message))?.axes
        }
        Prim::Iota(a) => vec![a.clone()],
        Prim::Reduce(_, over) => table.sum_axes(&args[0]).into_iter().filter(|a| !over.contains(&a.name)).collect(),
        _ => {
            let mut axes: Vec<Axis> = vec![];
            for a in args.iter().flat_map(|s| table.sum_axes(s)) {
                if !axes.contains(&a) {
                    axes.push(a);
                }
            }
            axes
        }
    };
    let id = table.intern(Atom::Op(op, args), dtype, axes);
    Ok(vec![table.power(id, Side::Above)])
}

/// Normal forms back to equations.
struct Emit<'a> {
    table: &'a Table,
    names: &'a HashMap<AtomId, Name>,
    params: HashMap<Var, Var>,
    atoms: HashMap<AtomId, Var>,
}

impl Emit<'_> {
    /// Terms that differ only in a sum over axes are added before the common factors come in: `(Σa + Σb)·c`.
    fn sum(&mut self, b: &mut Builder, s: &Sum, dtype: DType) -> Result<Var, Error> {
        let is_reduce = |a: AtomId| matches!(self.table.atoms[a].atom, Atom::Reduce(..));
        let mut groups: Vec<(Option<Monomial>, Vec<Monomial>)> = vec![];
        for m in s {
            // The widest sum among the factors, if it is one.
            let width = |k: &(AtomId, Side)| self.table.atoms[k.0].axes.len();
            let mut sums: Vec<_> = m.factors.iter().filter(|((a, side), n)| *side == Side::Above && **n == 1 && is_reduce(*a)).map(|(k, _)| *k).collect();
            let widest = sums.iter().map(width).max();
            sums.retain(|k| Some(width(k)) == widest);
            let key = (sums.len() == 1).then(|| {
                // Factors that depend on no parameter are numbers: they stay with their sum.
                let (rest, own) = m.factors.iter().partition(|(k, _)| **k != sums[0] && self.table.atoms[k.0].data);
                let monomial = |coef: f64, f: Vec<(&(AtomId, Side), &u32)>| Monomial { coef, factors: f.into_iter().map(|(k, n)| (*k, *n)).collect() };
                (monomial(1.0, rest), monomial(m.coef, own))
            });
            match key {
                Some((rest, sum)) if !rest.factors.is_empty() => match groups.iter_mut().find(|(k, _)| k.as_ref() == Some(&rest)) {
                    Some((_, terms)) => terms.push(sum),
                    None => groups.push((Some(rest), vec![sum])),
                },
                _ => groups.push((None, vec![m.clone()])),
            }
        }
        // Numbers that all terms share go to the common factor, so that equal sums are one value wherever they stand.
        for (common, terms) in groups.iter_mut().filter(|g| g.1.len() > 1) {
            let Some(common) = common else { continue };
            let mut shared = terms[0].clone();
            for t in terms.iter() {
                shared.factors = shared.factors.into_iter().filter_map(|(k, n)| t.factors.get(&k).map(|m| (k, n.min(*m)))).collect();
            }
            for t in terms.iter_mut() {
                t.coef /= shared.coef;
                shared.factors.iter().for_each(|(k, n)| { t.factors.entry(*k).and_modify(|m| *m -= n); });
                t.factors.retain(|_, n| *n > 0);
            }
            terms.sort_by(|x, y| x.factors.cmp(&y.factors));
            *common = times(common, &shared);
        }
        // Sums over the same axes side by side: they may share an accumulator.
        let over = |g: &(Option<Monomial>, Vec<Monomial>)| match (&g.0, g.1[0].factors.iter().find(|((a, _), _)| is_reduce(*a))) {
            (None, Some(((a, _), _))) if g.1[0].factors.keys().all(|(b, _)| b == a || !self.table.atoms[*b].data) => match &self.table.atoms[*a].atom {
                Atom::Reduce(over, _) => (0, over.clone()),
                _ => (1, vec![]),
            },
            _ => (1, vec![]),
        };
        groups.sort_by_key(over);
        let mut total: Option<Var> = None;
        for (common, terms) in groups {
            let (v, sign) = match (common, terms.as_slice()) {
                (Some(c), [t]) => self.signed(b, &times(&c, t), dtype)?,
                (Some(c), terms) => {
                    let inner = self.plain(b, terms, dtype)?;
                    let size = Monomial { coef: c.coef.abs(), factors: c.factors };
                    (self.scaled(b, &size, Some(inner), dtype)?, c.coef.signum())
                }
                (None, terms) => self.signed(b, &terms[0], dtype)?,
            };
            total = Some(match (total, sign < 0.0) {
                (None, false) => v,
                (None, true) => b.elementwise(Elementwise::Neg, &[v])?,
                (Some(t), false) => b.add(t, v)?,
                (Some(t), true) => b.sub(t, v)?,
            });
        }
        Ok(total.unwrap_or_else(|| b.constant(0.0, dtype)))
    }
    fn plain(&mut self, b: &mut Builder, terms: &[Monomial], dtype: DType) -> Result<Var, Error> {
        let mut total: Option<Var> = None;
        for m in terms {
            let (v, sign) = self.signed(b, m, dtype)?;
            total = Some(match (total, sign < 0.0) {
                (None, false) => v,
                (None, true) => b.elementwise(Elementwise::Neg, &[v])?,
                (Some(t), false) => b.add(t, v)?,
                (Some(t), true) => b.sub(t, v)?,
            });
        }
        Ok(total.unwrap_or_else(|| b.constant(0.0, dtype)))
    }
    /// A monomial without its sign, and the sign.
    fn signed(&mut self, b: &mut Builder, m: &Monomial, dtype: DType) -> Result<(Var, f64), Error> {
        let sign = m.coef.signum();
        let m = Monomial { coef: m.coef.abs(), factors: m.factors.clone() };
        Ok((self.scaled(b, &m, None, dtype)?, sign))
    }
    /// `m·extra`: narrow factors first, a division taken by the narrowest factor that has one to spare.
    fn scaled(&mut self, b: &mut Builder, m: &Monomial, extra: Option<Var>, dtype: DType) -> Result<Var, Error> {
        let (mut above, mut below) = (vec![], vec![]);
        for ((a, side), n) in &m.factors {
            let v = self.atom(b, *a)?;
            for _ in 0..*n {
                if *side == Side::Above { above.push(v) } else { below.push(v) }
            }
        }
        above.extend(extra);
        above.sort_by_key(|v| b.ty(*v).axes.len());
        if m.coef != 1.0 || above.is_empty() {
            above.insert(0, b.constant(m.coef, dtype));
        }
        // Each divisor goes under a factor of its own while there are enough, the widest factors first: o = Σpv / l.
        let mut at = above.len();
        for d in below {
            at = if at == 0 { above.len() - 1 } else { at - 1 };
            above[at] = b.div(above[at], d)?;
        }
        above.sort_by_key(|v| b.ty(*v).axes.len());
        let mut product = above[0];
        for v in &above[1..] {
            product = b.mul(product, *v)?;
        }
        Ok(product)
    }
    fn atom(&mut self, b: &mut Builder, id: AtomId) -> Result<Var, Error> {
        if let Some(v) = self.atoms.get(&id) {
            return Ok(*v);
        }
        let info = &self.table.atoms[id];
        let v = match &info.atom {
            Atom::Param(v) => self.params[v],
            Atom::Parenthesis(s) => self.sum(b, s, info.dtype)?,
            Atom::Reduce(over, m) => self.reduction(b, over, m, info.dtype)?,
            Atom::Op(op, args) => {
                let mut vars = vec![];
                for (i, a) in args.iter().enumerate() {
                    let dtype = self.operand_dtype(op, i, args, info.dtype);
                    vars.push(self.sum(b, a, dtype)?);
                }
                if let Prim::Movement(Movement::Permute(order)) = op {
                    let missing: Vec<Axis> = info.axes.iter().filter(|a| !b.ty(vars[0]).has(&a.name)).cloned().collect();
                    let v = if missing.is_empty() { vars[0] } else { b.movement(Movement::Broadcast(missing), &[vars[0]])? };
                    b.permute(v, order)?
                } else {
                    // What is joined has one type, and simplified operands may have their axes in another order: the first's.
                    let first: Vec<Name> = vars.first().map(|v| b.ty(*v).axes.iter().map(|a| a.name.clone()).collect()).unwrap_or_default();
                    for (i, v) in vars.iter_mut().enumerate() {
                        let order: Vec<Name> = match op {
                            Prim::Call(c) => c.function.ty(c.function.params[i].var).axes.iter().map(|a| a.name.clone()).collect(),
                            Prim::Movement(Movement::Stack(_)) => first.clone(),
                            Prim::Movement(Movement::Concat { axes, .. }) => first.iter().map(|n| if *n == axes[0] { axes[i].clone() } else { n.clone() }).collect(),
                            _ => continue,
                        };
                        *v = b.permute(*v, &order)?;
                    }
                    b.push(op.clone(), &vars)?
                }
            }
        };
        if let Some(n) = self.names.get(&id) {
            b.name(v, n.clone());
        }
        self.atoms.insert(id, v);
        Ok(v)
    }
    /// The element type of operand `i`, which a constant operand does not know by itself.
    fn operand_dtype(&self, op: &Prim, i: usize, args: &[Sum], out: DType) -> DType {
        let known = |s: &Sum| s.iter().flat_map(|m| m.factors.keys()).next().map(|(a, _)| self.table.atoms[*a].dtype);
        if let Some(d) = known(&args[i]) {
            return d;
        }
        match op {
            Prim::Elementwise(Elementwise::Select) if i > 0 => out,
            Prim::Elementwise(e) if e.arity() == 2 => args.iter().find_map(known).unwrap_or(if out.is_float() { out } else { DType::F32 }),
            _ => if out.is_float() { out } else { DType::F32 },
        }
    }
    /// `Σ_over` of a product, as a contraction of two operands where no factor has all axes.
    fn reduction(&mut self, b: &mut Builder, over: &[Name], m: &Monomial, dtype: DType) -> Result<Var, Error> {
        let mut axes: Vec<Name> = self.table.axes(m).into_iter().map(|a| a.name).collect();
        axes.sort();
        let mut groups: Vec<(Vec<Name>, Monomial)> = vec![];
        let mut factors: Vec<_> = m.factors.iter().collect();
        factors.sort_by_key(|((a, _), _)| (usize::MAX - self.table.atoms[*a].axes.len(), *a));
        for (k, n) in factors {
            let own: Vec<Name> = self.table.atoms[k.0].axes.iter().map(|a| a.name.clone()).collect();
            let one = Monomial { coef: 1.0, factors: [(*k, *n)].into() };
            // The narrowest group that has all its axes; else a group of its own.
            let home = groups.iter_mut().filter(|(g, _)| own.iter().all(|a| g.contains(a))).min_by_key(|(g, _)| g.len());
            match home {
                Some((_, g)) => *g = times(g, &one),
                None => groups.push((own, one)),
            }
        }
        let mut operands = vec![];
        for (_, g) in &groups {
            operands.push(self.scaled(b, g, None, dtype)?);
        }
        // More than two: the narrow ones are multiplied until two are left.
        while operands.len() > 2 {
            operands.sort_by_key(|v| usize::MAX - b.ty(*v).axes.len());
            let (x, y) = (operands.pop(), operands.pop());
            if let (Some(x), Some(y)) = (x, y) {
                operands.push(b.mul(y, x)?);
            }
        }
        match operands.as_slice() {
            [x, y] => b.contract(*x, *y, over),
            [x] => b.reduce_sum(*x, over),
            _ => Ok(b.constant(1.0, dtype)),
        }
    }
}
