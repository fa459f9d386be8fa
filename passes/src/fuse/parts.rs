//! The axis that an instance has whole, cut into parts.
//!
//! An instance that has all columns beside a loop over rows has memory for all of them, and there are no more instances than indices along other axes.
//! Sums over columns do not need them all at once: instances have equal parts of the columns, each stores its sums by itself, and a kernel behind adds
//! them up in order. How many parts there are depends on sizes alone, so that no result depends on the number of threads.

use ir::dim::Dim;
use ir::prim::Elementwise;
use ir::tile::{Access, AxisId, Buffer, BufferId, Constraint, Loop, Op, Program, ReduceKind, Role, Stmt, TileAxis, ValueId, ValueInfo, View};
use ir::types::DType;

/// The most parts: what they store is so many times a result.
const MOST: i64 = 8;
/// Parts of a quarter of what an instance may have are worth their sums; less is not.
const LEAST: i64 = 4;

/// How many parts of `n` columns to make, so that an instance has `columns` of them if possible, and there are `least` instances where there are `instances`
/// without parts; if there is such a number.
pub(super) fn count(n: i64, columns: i64, instances: i64, least: i64) -> Option<i64> {
    let fits = |p: &i64| n % p == 0 && instances.saturating_mul(*p) >= least && (*p == 1 || n / p >= columns / LEAST);
    let all: Vec<i64> = (1..=MOST).filter(fits).collect();
    all.iter().find(|p| n / **p <= columns).or(all.last()).copied()
}

/// What a value has to do with the columns.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Nothing.
    Apart,
    /// It has them.
    Along,
    /// It is a sum over them, or linear in such sums.
    Summed,
}

struct Cut<'a> {
    p: &'a Program,
    y: AxisId,
    kinds: Vec<Kind>,
}

/// `p` with axis `y`, which is full, shared out in `parts`, and behind it the programs that add up what the parts store; none if something is stored, or
/// carried, that is neither along `y` nor a sum over it.
pub(super) fn cut(p: &Program, y: AxisId, parts: i64) -> Option<Vec<Program>> {
    let mut c = Cut { p, y, kinds: vec![Kind::Apart; p.values.len()] };
    c.learn(&p.body)?;
    let mut summed = vec![];
    c.summed(&p.body, &mut summed)?;
    let n = p.axis(y).extent() as i64 / parts;
    let part = AxisId(p.axes.len() as u32);
    let mut out = p.clone();
    out.axes[y.index()] = TileAxis { name: p.axis(y).name.clone(), size: Dim::fixed(n), role: Role::Full(n as usize) };
    out.axes.push(TileAxis { name: format!("{}_part", p.axis(y).name).into(), size: Dim::fixed(parts), role: Role::Grid });
    let mut body = std::mem::take(&mut out.body);
    let mut shift = Shift { y, part, n, summed: &summed, out: &mut out };
    shift.body(&mut body);
    out.body = body;
    let mut programs = vec![];
    for b in &summed {
        let buffer = &mut out.buffers[b.index()];
        let target = buffer.clone();
        buffer.name = format!("{}_parts", target.name).into();
        buffer.shape.insert(0, Dim::fixed(parts));
        programs.push(sum(p, &target, buffer, programs.len()));
    }
    programs.insert(0, out);
    Some(programs)
}

impl Cut<'_> {
    fn has(&self, v: ValueId) -> bool {
        self.p.value(v).axes.contains(&self.y)
    }
    /// The kinds of all values; none if a value is of no kind.
    fn learn(&mut self, body: &[Stmt]) -> Option<()> {
        for s in body {
            match s {
                Stmt::Let(v, op) => self.kinds[v.index()] = self.kind(*v, op)?,
                Stmt::Store(..) => {}
                Stmt::For(l) => {
                    for c in &l.carries {
                        let kind = if self.has(c.inside) { Kind::Along } else { Kind::Apart };
                        (self.kinds[c.inside.index()], self.kinds[c.after.index()]) = (kind, kind);
                    }
                    self.learn(&l.body)?;
                    if l.carries.iter().any(|c| self.kinds[c.next.index()] != self.kinds[c.inside.index()]) {
                        return None;
                    }
                }
            }
        }
        Some(())
    }
    fn kind(&self, v: ValueId, op: &Op) -> Option<Kind> {
        use Kind::{Along, Apart, Summed};
        let of = |v: &ValueId| self.kinds[v.index()];
        let summed = |mut values: Box<dyn Iterator<Item = &ValueId> + '_>| values.any(|v| of(v) == Summed);
        let plain = if self.has(v) { Along } else { Apart };
        match op {
            Op::Const(_) | Op::Size(_) | Op::Position(_) | Op::Load(_) => Some(plain),
            Op::Dot { init, terms, sum } => {
                if summed(Box::new(init.iter().flatten().chain(terms.iter().flat_map(|(a, b)| [a, b])))) {
                    return None;
                }
                match sum.contains(&self.y) {
                    true if init.is_empty() => Some(Summed),
                    true => None,
                    false => Some(plain),
                }
            }
            Op::Reduce(kind, x, over) => match (of(x), over.contains(&self.y)) {
                (Summed, _) => None,
                (_, true) if *kind == ReduceKind::Sum => Some(Summed),
                (_, true) => None,
                _ => Some(plain),
            },
            Op::Fill { value, keep, .. } => (of(value) != Summed && !summed(Box::new(keep.iter().flat_map(|c| c.scalars.iter().map(|s| &s.0))))).then_some(plain),
            Op::Map(e, args) => match (e, &args.iter().map(of).collect::<Vec<_>>()[..]) {
                (Elementwise::Neg, [Summed]) | (Elementwise::Mul, [Summed, Apart] | [Apart, Summed]) | (Elementwise::Div, [Summed, Apart]) => Some(Summed),
                (Elementwise::Add | Elementwise::Sub, [Summed, Summed]) => Some(Summed),
                (_, kinds) if kinds.contains(&Summed) => None,
                _ => Some(plain),
            },
        }
    }
    /// Buffers that hold sums over the columns; none if one holds something else beside them, or something that all parts would store.
    fn summed(&self, body: &[Stmt], out: &mut Vec<BufferId>) -> Option<()> {
        let mut along = vec![];
        fn stores<'s>(body: &'s [Stmt], f: &mut dyn FnMut(&'s View, ValueId)) {
            for s in body {
                match s {
                    Stmt::Store(view, v) => f(view, *v),
                    Stmt::For(l) => stores(&l.body, f),
                    Stmt::Let(..) => {}
                }
            }
        }
        let mut all = true;
        stores(body, &mut |view, v| match self.kinds[v.index()] {
            Kind::Summed if view.stride(self.y).is_none() => out.push(view.buffer),
            Kind::Along | Kind::Apart if view.stride(self.y).is_some() => along.push(view.buffer),
            _ => all = false,
        });
        out.sort();
        out.dedup();
        (all && !out.iter().any(|b| along.contains(b))).then_some(())
    }
}

/// Moves what knows of positions along `y` to the instance's part.
struct Shift<'a> {
    y: AxisId,
    part: AxisId,
    /// Columns of a part.
    n: i64,
    summed: &'a [BufferId],
    out: &'a mut Program,
}

impl Shift<'_> {
    fn view(&self, v: &mut View) {
        if let Some(s) = v.stride(self.y) {
            let step = s * &Dim::fixed(self.n);
            v.strides.push((self.part, step));
        }
    }
    fn constraint(&self, c: &mut Constraint) {
        if let Some((_, k)) = c.axes.iter().find(|(a, _)| *a == self.y) {
            let step = k * self.n;
            c.axes.push((self.part, step));
        }
    }
    fn value(&mut self, axes: Vec<AxisId>) -> ValueId {
        self.out.values.push(ValueInfo { dtype: DType::I32, axes, name: None });
        ValueId(self.out.values.len() as u32 - 1)
    }
    fn body(&mut self, body: &mut Vec<Stmt>) {
        let mut moved = vec![];
        for mut s in std::mem::take(body) {
            match &mut s {
                Stmt::Let(_, Op::Load(v)) => self.view(v),
                Stmt::Let(_, Op::Fill { keep, .. }) => keep.iter_mut().for_each(|c| self.constraint(c)),
                Stmt::Let(v, op @ Op::Position(_)) if *op == Op::Position(self.y) => {
                    let (own, part, n, first) = (self.value(vec![self.y]), self.value(vec![]), self.value(vec![]), self.value(vec![]));
                    moved.push(Stmt::Let(own, Op::Position(self.y)));
                    moved.push(Stmt::Let(part, Op::Position(self.part)));
                    moved.push(Stmt::Let(n, Op::Const(self.n as f64)));
                    moved.push(Stmt::Let(first, Op::Map(Elementwise::Mul, vec![part, n])));
                    s = Stmt::Let(*v, Op::Map(Elementwise::Add, vec![own, first]));
                }
                Stmt::Let(..) => {}
                Stmt::Store(v, _) if self.summed.contains(&v.buffer) => {
                    let elements = self.out.buffers[v.buffer.index()].shape.iter().fold(Dim::fixed(1), |n, d| &n * d);
                    v.strides.push((self.part, elements));
                }
                Stmt::Store(v, _) => self.view(v),
                Stmt::For(Loop { within, body, .. }) => {
                    within.iter_mut().for_each(|c| self.constraint(c));
                    self.body(body);
                }
            }
            moved.push(s);
        }
        *body = moved;
    }
}

/// `target`, which program number `number` of those behind `p` makes: the sum over the first axis of `parts`.
fn sum(p: &Program, target: &Buffer, parts: &Buffer, number: usize) -> Program {
    /// Elements of a tile.
    const TILE: usize = 64;
    let count = parts.shape[0].clone();
    let elements = target.shape.iter().fold(Dim::fixed(1), |n, d| &n * d);
    let (e, k) = (AxisId(0), AxisId(1));
    let value = |axes| ValueInfo { dtype: p.compute, axes, name: None };
    let view = |b: u32, strides| View { buffer: BufferId(b), offset: Dim::fixed(0), strides };
    Program {
        name: format!("{}_sum{number}", p.name).into(),
        axes: vec![
            TileAxis { name: "element".into(), size: elements.clone(), role: Role::Block(TILE) },
            TileAxis { name: "part".into(), size: count.clone(), role: Role::Full(count.as_fixed().unwrap_or(1).max(1) as usize) },
        ],
        buffers: vec![Buffer { access: Access::Input, ..parts.clone() }, target.clone()],
        values: vec![value(vec![e, k]), value(vec![e])],
        body: vec![
            Stmt::Let(ValueId(0), Op::Load(view(0, vec![(e, Dim::fixed(1)), (k, elements)]))),
            Stmt::Let(ValueId(1), Op::Reduce(ReduceKind::Sum, ValueId(0), vec![k])),
            Stmt::Store(view(1, vec![(e, Dim::fixed(1))]), ValueId(1)),
        ],
        compute: p.compute,
        operands: p.operands,
        lanes: Some(e),
    }
}
