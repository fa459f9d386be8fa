//! Axes that GPU code has no place for, taken out of a program beforehand. A tile has rows and one column axis; a sum over tokens of a batch
//! has two column axes.
//!
//! * Two axes that every view walks as one (the outer one's stride is the inner one's times its size) are one axis: a sum over a batch and its
//!   tokens is a sum over tokens, and its products are products of matrices.
//! * A short axis that stands in tiles whole is written out, one value per position.
//! * Of two axes of tiles one is walked by the grid, an index an instance.

use ir::dim::Dim;
use ir::prim::Elementwise;
use ir::tile::{AxisId, Carry, Constraint, Loop, Op, Program, ReduceKind, Role, Stmt, ValueId, ValueInfo, View};
use std::collections::BTreeMap;

/// The longest axis that a merger may leave in tiles whole.
const WHOLE: usize = 1024;

/// The longest axis that is written out.
const SHORT: usize = 4;

fn walk<'a>(body: &'a [Stmt], f: &mut dyn FnMut(&'a Stmt)) {
    for s in body {
        f(s);
        if let Stmt::For(l) = s {
            walk(&l.body, f);
        }
    }
}

fn view_of(s: &Stmt) -> Option<&View> {
    match s {
        Stmt::Let(_, Op::Load(v)) | Stmt::Store(v, _) => Some(v),
        _ => None,
    }
}

/// `p` with axes that lie behind each other in memory made one, as many as there are.
pub(super) fn merged(p: &Program) -> Program {
    let mut p = p.clone();
    let ids: Vec<AxisId> = (0..p.axes.len() as u32).map(AxisId).collect();
    while let Some((outer, inner)) = ids.iter().flat_map(|o| ids.iter().map(move |i| (*o, *i))).find(|(o, i)| mergeable(&p, *o, *i)) {
        merge(&mut p, outer, inner);
    }
    p
}

fn mergeable(p: &Program, outer: AxisId, inner: AxisId) -> bool {
    let (o, i) = (p.axis(outer), p.axis(inner));
    let roles = match (o.role, i.role) {
        (Role::Full(a), Role::Full(b)) => a > 1 && b > 1 && a * b <= WHOLE,
        (Role::Full(a), Role::Stream(_)) | (Role::Stream(_), Role::Full(a)) => a > 1,
        _ => false,
    };
    if outer == inner || !roles {
        return false;
    }
    let both = |axes: &[AxisId]| axes.contains(&outer) == axes.contains(&inner);
    let free = |c: &Constraint| c.axes.iter().all(|(a, _)| *a != outer && *a != inner);
    let mut ok = p.values.iter().all(|v| both(&v.axes));
    walk(&p.body, &mut |s| {
        if let Some(v) = view_of(s) {
            ok &= match (v.stride(outer), v.stride(inner)) {
                (None, None) => true,
                (Some(far), Some(near)) => *far == &i.size * near,
                _ => false,
            };
        }
        ok &= match s {
            Stmt::Let(_, Op::Position(a)) => *a != outer && *a != inner,
            Stmt::Let(_, Op::Reduce(_, _, sum) | Op::Dot { sum, .. }) => both(sum),
            Stmt::Let(_, Op::Fill { keep, .. }) => keep.iter().all(free),
            Stmt::For(l) => l.within.iter().all(free),
            _ => true,
        };
    });
    ok
}

/// The axis that a loop walks stays; the other one is left with a single element, and nothing has it.
fn merge(p: &mut Program, outer: AxisId, inner: AxisId) {
    let keep = if matches!(p.axis(outer).role, Role::Stream(_)) { outer } else { inner };
    let gone = if keep == outer { inner } else { outer };
    let size = &p.axis(outer).size * &p.axis(inner).size;
    let role = match (p.axis(keep).role, p.axis(gone).role) {
        (Role::Full(a), Role::Full(b)) => Role::Full(a * b),
        (role, _) => role,
    };
    let axis = &mut p.axes[keep.index()];
    (axis.size, axis.role) = (size, role);
    let axis = &mut p.axes[gone.index()];
    (axis.size, axis.role) = (Dim::fixed(1), Role::Full(1));
    p.values.iter_mut().for_each(|v| v.axes.retain(|a| *a != gone));
    p.lanes = p.lanes.map(|a| if a == gone { keep } else { a });
    let view = |v: &mut View| {
        let Some(near) = v.stride(inner).cloned() else { return };
        v.strides.retain(|(a, _)| *a != gone);
        v.strides.iter_mut().filter(|(a, _)| *a == keep).for_each(|(_, s)| *s = near.clone());
    };
    each(&mut p.body, &mut |s| match s {
        Stmt::Let(_, Op::Load(v)) | Stmt::Store(v, _) => view(v),
        Stmt::Let(_, Op::Reduce(_, _, sum) | Op::Dot { sum, .. }) => sum.retain(|a| *a != gone),
        _ => {}
    });
}

fn each(body: &mut [Stmt], f: &mut dyn FnMut(&mut Stmt)) {
    for s in body {
        f(s);
        if let Stmt::For(l) = s {
            each(&mut l.body, f);
        }
    }
}

/// `p` with one of several axes of tiles walked by the grid instead: not the one whose elements lie side by side. What sums tokens of a batch for each feature has a batch beside features.
pub(super) fn apart(p: &Program) -> Option<Program> {
    let tiles: Vec<AxisId> = (0..p.axes.len() as u32).map(AxisId).filter(|a| matches!(p.axis(*a).role, Role::Block(_))).collect();
    let axis = tiles.iter().copied().find(|a| Some(*a) != p.lanes).filter(|_| tiles.len() > 1 && p.lanes.is_some())?;
    let mut out = p.clone();
    out.axes[axis.index()].role = Role::Grid;
    out.values.iter_mut().for_each(|v| v.axes.retain(|a| *a != axis));
    Some(out)
}

/// `p` with its shortest axis that stands in tiles whole written out, if that is short.
pub(super) fn written_out(p: &Program) -> Option<Program> {
    let used = |a: AxisId| {
        let mut yes = p.values.iter().any(|v| v.axes.contains(&a));
        walk(&p.body, &mut |s| yes |= view_of(s).is_some_and(|v| v.stride(a).is_some()));
        yes
    };
    let short = (0..p.axes.len() as u32).map(AxisId).filter_map(|a| if let Role::Full(n) = p.axis(a).role { Some((n, a)) } else { None });
    let (n, axis) = short.filter(|(n, a)| *n <= SHORT && used(*a)).min()?;
    let mut w = Writer { axis, n, values: p.values.clone(), copies: BTreeMap::new() };
    let body = w.body(&p.body);
    let mut out = Program { body, values: w.values, ..p.clone() };
    out.values.iter_mut().for_each(|v| v.axes.retain(|a| *a != axis));
    out.lanes = out.lanes.filter(|l| *l != axis);
    (out.axes[axis.index()].size, out.axes[axis.index()].role) = (Dim::fixed(1), Role::Full(1));
    Some(out)
}

/// Writes an axis out.
struct Writer {
    axis: AxisId,
    n: usize,
    values: Vec<ValueInfo>,
    /// The values that stand for one that had the axis, by position.
    copies: BTreeMap<ValueId, Vec<ValueId>>,
}

impl Writer {
    fn new_like(&mut self, v: ValueId) -> ValueId {
        let mut info = ValueInfo { name: None, ..self.values[v.index()].clone() };
        info.axes.retain(|a| *a != self.axis);
        self.values.push(info);
        ValueId(self.values.len() as u32 - 1)
    }
    fn has(&self, v: ValueId) -> bool {
        self.values[v.index()].axes.contains(&self.axis)
    }
    /// What stands for `v` at position `i`.
    fn at(&self, v: ValueId, i: usize) -> ValueId {
        self.copies.get(&v).map_or(v, |c| c[i])
    }
    /// Values that stand for `v`, one per position if it has the axis.
    fn define(&mut self, v: ValueId) -> Vec<ValueId> {
        if !self.has(v) {
            return vec![v];
        }
        let new: Vec<ValueId> = (0..self.n).map(|_| self.new_like(v)).collect();
        self.copies.insert(v, new.clone());
        new
    }
    fn view(&self, v: &View, i: usize) -> View {
        let offset = v.stride(self.axis).map_or(v.offset.clone(), |s| &v.offset + &(s * &Dim::fixed(i as i64)));
        View { buffer: v.buffer, offset, strides: v.strides.iter().filter(|(a, _)| *a != self.axis).cloned().collect() }
    }
    fn constraint(&self, c: &Constraint, i: usize) -> Constraint {
        let here: i64 = c.axes.iter().filter(|(a, _)| *a == self.axis).map(|(_, k)| k * i as i64).sum();
        Constraint { axes: c.axes.iter().filter(|(a, _)| *a != self.axis).copied().collect(), constant: &c.constant + &Dim::fixed(here), scalars: c.scalars.clone() }
    }
    /// `result` is `f` of all parts, two at a time; of one part it is that part.
    fn fold(&mut self, out: &mut Vec<Stmt>, f: Elementwise, parts: &[ValueId], result: ValueId) {
        let mut sum = parts[0];
        if parts.len() == 1 {
            self.copies.insert(result, vec![sum; self.n]);
        }
        for (k, x) in parts.iter().enumerate().skip(1) {
            let v = if k + 1 == parts.len() { result } else { self.new_like(result) };
            out.push(Stmt::Let(v, Op::Map(f, vec![sum, *x])));
            sum = v;
        }
    }
    fn body(&mut self, body: &[Stmt]) -> Vec<Stmt> {
        let mut out = vec![];
        for s in body {
            match s {
                Stmt::Let(v, op) => self.op(&mut out, *v, op),
                Stmt::Store(view, v) => {
                    let n = if view.stride(self.axis).is_some() || self.has(*v) { self.n } else { 1 };
                    out.extend((0..n).map(|i| Stmt::Store(self.view(view, i), self.at(*v, i))));
                }
                Stmt::For(l) => {
                    let mut carries = vec![];
                    for c in &l.carries {
                        let inits: Vec<ValueId> = (0..self.n).map(|i| self.at(c.init, i)).collect();
                        let (inside, after) = (self.define(c.inside), self.define(c.after));
                        carries.push((c.next, inits, inside, after));
                    }
                    let body = self.body(&l.body);
                    let carries = carries.into_iter().flat_map(|(next, inits, inside, after)| {
                        (0..inside.len()).map(|i| Carry { init: inits[i], inside: inside[i], next: self.at(next, i), after: after[i] }).collect::<Vec<_>>()
                    });
                    // Tiles that only some positions need are visited for all of them.
                    let within = l.within.iter().filter(|c| c.axes.iter().all(|(a, _)| *a != self.axis)).cloned().collect();
                    out.push(Stmt::For(Loop { axis: l.axis, within, carries: carries.collect(), body }));
                }
            }
        }
        out
    }
    fn op(&mut self, out: &mut Vec<Stmt>, v: ValueId, op: &Op) {
        match op {
            Op::Reduce(kind, x, over) if over.contains(&self.axis) => {
                let rest: Vec<AxisId> = over.iter().copied().filter(|a| *a != self.axis).collect();
                let mut parts = vec![];
                for i in 0..self.n {
                    let x = self.at(*x, i);
                    parts.push(if rest.is_empty() {
                        x
                    } else {
                        let part = self.new_like(v);
                        out.push(Stmt::Let(part, Op::Reduce(*kind, x, rest.clone())));
                        part
                    });
                }
                self.fold(out, if *kind == ReduceKind::Max { Elementwise::Max } else { Elementwise::Add }, &parts, v);
            }
            Op::Dot { init, terms, sum } if sum.contains(&self.axis) => {
                let rest: Vec<AxisId> = sum.iter().copied().filter(|a| *a != self.axis).collect();
                let init: Vec<Vec<ValueId>> = init.iter().map(|p| p.iter().map(|x| self.at(*x, 0)).collect()).collect();
                let terms: Vec<(ValueId, ValueId)> = terms.iter().flat_map(|(a, b)| (0..self.n).map(|i| (self.at(*a, i), self.at(*b, i))).collect::<Vec<_>>()).collect();
                if !rest.is_empty() {
                    out.push(Stmt::Let(v, Op::Dot { init, terms, sum: rest }));
                    return;
                }
                // Nothing is left to sum over: products of elements.
                let mut parts = vec![];
                for factors in init.into_iter().chain(terms.iter().map(|(a, b)| vec![*a, *b])) {
                    let (mut product, mut axes) = (factors[0], self.values[factors[0].index()].axes.clone());
                    for f in &factors[1..] {
                        axes.extend(self.values[f.index()].axes.clone());
                        axes.sort();
                        axes.dedup();
                        self.values.push(ValueInfo { axes: axes.clone(), name: None, ..self.values[v.index()].clone() });
                        let next = ValueId(self.values.len() as u32 - 1);
                        out.push(Stmt::Let(next, Op::Map(Elementwise::Mul, vec![product, *f])));
                        product = next;
                    }
                    parts.push(product);
                }
                self.fold(out, Elementwise::Add, &parts, v);
            }
            op => {
                for (i, new) in self.define(v).into_iter().enumerate() {
                    let op = match op {
                        Op::Const(_) | Op::Size(_) => op.clone(),
                        Op::Position(a) if *a == self.axis => Op::Const(i as f64),
                        Op::Position(_) => op.clone(),
                        Op::Load(view) => Op::Load(self.view(view, i)),
                        Op::Map(f, args) => Op::Map(*f, args.iter().map(|a| self.at(*a, i)).collect()),
                        Op::Reduce(k, x, over) => Op::Reduce(*k, self.at(*x, i), over.clone()),
                        Op::Dot { init, terms, sum } => Op::Dot {
                            init: init.iter().map(|p| p.iter().map(|x| self.at(*x, i)).collect()).collect(),
                            terms: terms.iter().map(|(a, b)| (self.at(*a, i), self.at(*b, i))).collect(),
                            sum: sum.clone(),
                        },
                        Op::Fill { value, fill, keep } => Op::Fill { value: self.at(*value, i), fill: *fill, keep: keep.iter().map(|c| self.constraint(c, i)).collect() },
                    };
                    out.push(Stmt::Let(new, op));
                }
            }
        }
    }
}
