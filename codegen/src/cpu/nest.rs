//! One loop nest of fused loads, maps, reductions, fills and stores.
//!
//! The order of loops is: axes that are kept, then those that are reduced. The contiguous axis is walked by vectors: all of
//! them written out if they are few (the panel of the lane axis always), else in a loop, with a masked last one. Values from
//! outside are loaded at the outermost level at which they are known.

mod row;

use super::plan::{Inline, Item, Nest, Node, V};
use super::{Emit, Span};
use crate::Error;
use crate::scalar;
use crate::text::{Int, Ty};
use ir::prim::Elementwise;
use ir::tile::{AxisId, Constraint, LOWEST, ReduceKind};
use ir::types::DType;
use std::collections::{BTreeMap, HashMap};

/// One vector along the contiguous axis.
#[derive(Clone)]
struct Chunk {
    offset: Int,
    /// Elements that exist, if that may be fewer than the vector has.
    count: Option<Int>,
}

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Row(AxisId),
    Vectors,
    Accumulate,
}

/// What is known at a point of the nest.
#[derive(Clone, Default)]
pub(super) struct Known {
    values: HashMap<(V, usize), String>,
    /// Per item: the address of its row in memory.
    rows: Vec<Option<String>>,
    index: Vec<(AxisId, Int)>,
    strip: Option<Vec<Chunk>>,
}

impl Known {
    /// At `index`, with vectors at these offsets.
    pub(super) fn at(index: Vec<(AxisId, Int)>, offsets: Vec<Int>) -> Known {
        Known { index, strip: Some(offsets.into_iter().map(|offset| Chunk { offset, count: None }).collect()), ..Known::default() }
    }
    /// The same vectors at another index, nothing loaded.
    pub(super) fn moved(&self, index: Vec<(AxisId, Int)>) -> Known {
        Known { index, strip: self.strip.clone(), ..Known::default() }
    }
}

/// Vectors written out without a loop, at most.
const WRITTEN_OUT: usize = 4;

impl Emit<'_> {
    pub(super) fn nest(&mut self, n: &Nest) -> Result<(), Error> {
        let plan = self.plan;
        let mut known = Known { rows: vec![None; n.items.len()], ..Known::default() };
        let mut looped = false;
        match n.vec {
            None => known.strip = Some(vec![Chunk { offset: Int::K(0), count: None }]),
            Some(a) => {
                let vl = plan.vl as i64;
                let valid = self.axes[a.index()].valid.clone();
                let memory = n.items.iter().any(|i| matches!(i.node, Node::Load(_) | Node::Store(..)));
                if plan.panels && Some(a) == plan.lanes && !memory {
                    // One vector at a time, all rows of it: accumulators and row statistics stay in registers.
                    let levels = self.levels(n, false);
                    let exist = self.lanes_in_use(a);
                    return self.looped(&Int::K(0), &exist, vl, |e, offset| {
                        known.strip = Some(vec![Chunk { offset, count: None }]);
                        e.level(n, &levels, known, vec![]).map(drop)
                    });
                }
                if plan.panels && Some(a) == plan.lanes {
                    let mut strip = vec![];
                    for j in 0..(plan.width / plan.vl) as i64 {
                        let count = self.t.sub(&valid, &Int::K(j * vl));
                        strip.push(Chunk { offset: Int::K(j * vl), count: Some(count) });
                    }
                    known.strip = Some(strip);
                } else {
                    match valid {
                        Int::K(k) if k <= WRITTEN_OUT as i64 * vl => {
                            let chunk = |j: i64| Chunk { offset: Int::K(j * vl), count: (k < (j + 1) * vl).then_some(Int::K(k - j * vl)) };
                            known.strip = Some((0..(k + vl - 1) / vl).map(chunk).collect());
                        }
                        _ => looped = true,
                    }
                }
            }
        }
        for (k, item) in n.items.iter().enumerate() {
            if let Node::Load(view) | Node::Store(view, _) = &item.node {
                known.rows[k] = Some(self.origin(view)?);
            }
        }
        let levels = self.levels(n, looped);
        self.level(n, &levels, known, vec![]).map(drop)
    }

    /// The loops, outermost first; `looped` if vectors are not written out.
    fn levels(&self, n: &Nest, looped: bool) -> Vec<Level> {
        let reduced = |a: &AxisId| n.reduced.as_ref().is_some_and(|r| r.contains(a));
        let rows = || n.domain.iter().copied().filter(|a| n.vec != Some(*a));
        let mut levels: Vec<Level> = rows().filter(|a| !reduced(a)).map(Level::Row).collect();
        let inner = n.vec.is_some_and(|a| reduced(&a));
        if looped && !inner {
            levels.push(Level::Vectors);
        }
        if n.items.iter().any(|i| matches!(i.node, Node::Reduce(..))) {
            levels.push(Level::Accumulate);
        }
        levels.extend(rows().filter(reduced).map(Level::Row));
        if looped && inner {
            levels.push(Level::Vectors);
        }
        levels
    }

    fn nest_lanes(&self, n: &Nest) -> Option<usize> {
        n.vec.map(|_| self.plan.vl)
    }
    /// Vectors per iteration of a loop over the contiguous axis.
    fn unroll(&self, n: &Nest) -> usize {
        match n.vec.map(|a| self.axes[a.index()].valid.clone()) {
            Some(Int::K(k)) if k >= 8 * self.plan.vl as i64 => 4,
            _ => 1,
        }
    }
    fn reductions<'n>(n: &'n Nest) -> impl Iterator<Item = (ReduceKind, V, V)> + 'n {
        n.items.iter().filter_map(|i| match (&i.node, i.out) {
            (Node::Reduce(k, v, _), Some(out)) => Some((*k, *v, out)),
            _ => None,
        })
    }

    fn level(&mut self, n: &Nest, levels: &[Level], mut known: Known, accs: Vec<String>) -> Result<Vec<String>, Error> {
        let lanes = self.nest_lanes(n);
        let Some((&level, rest)) = levels.split_first() else {
            return self.leaf(n, known, accs);
        };
        let types: Vec<Ty> = {
            let each: Vec<Ty> = Self::reductions(n).map(|(_, v, _)| Ty::of(self.plan.values[v].dtype, lanes)).collect();
            let width = if each.is_empty() { 0 } else { accs.len() / each.len() };
            each.iter().flat_map(|t| std::iter::repeat_n(*t, width)).collect()
        };
        match level {
            Level::Row(a) => {
                let count = self.axes[a.index()].valid.clone();
                if count != Int::K(1) {
                    self.preload(n, &mut known)?;
                }
                let mut steps = vec![];
                for item in &n.items {
                    steps.push(match &item.node {
                        Node::Load(view) | Node::Store(view, _) => match view.stride(a) {
                            Some(s) => Some(self.dim(s)?),
                            None => None,
                        },
                        _ => None,
                    });
                }
                let carried = accs.into_iter().zip(types).collect();
                self.carrying(&Int::K(0), &count, 1, carried, |e, i, accs| {
                    for (k, item) in n.items.iter().enumerate() {
                        if let (Node::Load(view) | Node::Store(view, _), Some(step), Some(p)) = (&item.node, &steps[k], known.rows[k].clone()) {
                            let o = e.t.mul(&i, step);
                            known.rows[k] = Some(e.behind(&p, view, &o));
                        }
                    }
                    known.index.push((a, i));
                    e.level(n, rest, known, accs)
                })
            }
            Level::Vectors => {
                self.preload(n, &mut known)?;
                self.preload_uniform(n, &mut known)?;
                if accs.is_empty()
                    && let Some((pays, head)) = self.past_caches(n, &known)?
                {
                    self.t.line(format_args!("scf.if {pays} {{"));
                    self.past_caches = true;
                    self.vectors(n, rest, &known, vec![], &types, &head)?;
                    self.past_caches = false;
                    self.t.line("} else {");
                    self.vectors(n, rest, &known, vec![], &types, &Int::K(0))?;
                    self.t.line("}");
                    return Ok(accs);
                }
                self.vectors(n, rest, &known, accs, &types, &Int::K(0))
            }
            Level::Accumulate => {
                let inner = n.vec.is_some_and(|a| n.reduced.as_ref().is_some_and(|r| r.contains(&a)));
                let width = known.strip.as_ref().map_or(self.unroll(n), Vec::len);
                let mut start = vec![];
                for (k, v, _) in Self::reductions(n) {
                    let ty = Ty::of(self.plan.values[v].dtype, lanes);
                    let id = self.identity(k, ty);
                    start.extend(std::iter::repeat_n(id, width));
                }
                let kept = known.clone();
                let out = self.level(n, rest, known, start)?;
                let reductions: Vec<(ReduceKind, V, V)> = Self::reductions(n).collect();
                for (r, (k, v, out_v)) in reductions.into_iter().enumerate() {
                    if self.plan.values[out_v].place.is_none() {
                        continue;
                    }
                    let d = self.plan.values[v].dtype;
                    let mine = &out[r * width..(r + 1) * width];
                    if inner {
                        let mut x = mine[0].clone();
                        for y in &mine[1..] {
                            x = self.combine(k, d, lanes, &x, y)?;
                        }
                        let x = self.across_lanes(k, d, &x)?;
                        let p = self.slot(out_v, &kept.index, &Int::K(0))?;
                        self.put(&x, &p, d, None);
                    } else {
                        let strip = kept.strip.clone().unwrap_or_default();
                        for (x, c) in mine.iter().zip(&strip) {
                            let p = self.slot(out_v, &kept.index, &c.offset)?;
                            self.put(x, &p, d, lanes);
                        }
                    }
                }
                Ok(accs)
            }
        }
    }

    fn identity(&mut self, k: ReduceKind, ty: Ty) -> String {
        let x = match (k, ty.elem) {
            (ReduceKind::Sum, _) => 0.0,
            (ReduceKind::Max, "i32") => f64::from(i32::MIN),
            (ReduceKind::Max, "i1") => 0.0,
            (ReduceKind::Max, _) => LOWEST,
        };
        self.t.number(ty, x)
    }
    fn combine(&mut self, k: ReduceKind, d: DType, lanes: Option<usize>, acc: &str, x: &str) -> Result<String, Error> {
        let op = match (k, d) {
            (_, DType::Bool) => Elementwise::Or,
            (ReduceKind::Sum, _) => Elementwise::Add,
            (ReduceKind::Max, _) => Elementwise::Max,
        };
        scalar::emit(&mut self.t, op, lanes, &[d, d], &[x.to_string(), acc.to_string()])
    }
    /// Reduces the lanes of one vector, by halves.
    fn across_lanes(&mut self, k: ReduceKind, d: DType, x: &str) -> Result<String, Error> {
        let vl = self.plan.vl;
        let ty = Ty::of(d, Some(vl));
        let mut x = x.to_string();
        let mut half = vl / 2;
        while half > 0 {
            let mask: Vec<String> = (0..vl).map(|l| ((l + half) % vl).to_string()).collect();
            let y = self.t.op(format_args!("vector.shuffle {x}, {x} [{}] : {ty}, {ty}", mask.join(", ")));
            x = self.combine(k, d, Some(vl), &x, &y)?;
            half /= 2;
        }
        Ok(self.t.op(format_args!("vector.extract {x}[0] : {} from {ty}", ty.elem)))
    }

    /// Loads what is already determined, so that inner loops do not.
    fn preload(&mut self, n: &Nest, known: &mut Known) -> Result<(), Error> {
        let own: Vec<V> = n.items.iter().filter_map(|i| i.out).collect();
        for item in &n.items {
            for v in self.plan.operands(item) {
                let value = &self.plan.values[v];
                if own.contains(&v) || value.inline.is_some() {
                    continue;
                }
                let ready = value.axes.iter().all(|a| if n.vec == Some(*a) { known.strip.is_some() } else { known.index.iter().any(|(x, _)| x == a) });
                if ready {
                    let chunks = known.strip.as_ref().map_or(1, Vec::len);
                    for c in 0..if known.strip.is_some() { chunks } else { 1 } {
                        if known.strip.is_some() {
                            self.operand(n, known, v, c)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// A value at chunk `c`.
    pub(super) fn operand(&mut self, n: &Nest, known: &mut Known, v: V, c: usize) -> Result<String, Error> {
        if let Some(x) = known.values.get(&(v, c)) {
            return Ok(x.clone());
        }
        let lanes = self.nest_lanes(n);
        let value = &self.plan.values[v];
        let d = value.dtype;
        let ty = Ty::of(d, lanes);
        let strip = known.strip.clone().unwrap_or_default();
        let x = match &value.inline {
            Some(Inline::Const(x)) => self.t.number(ty, *x),
            Some(Inline::Size(s)) => {
                let i = self.dim(s)?;
                let x = if d == DType::I32 {
                    self.t.narrow(&i)
                } else {
                    let i = self.t.name(&i);
                    self.t.op(format_args!("arith.sitofp {i} : i64 to {}", ty.elem))
                };
                self.t.splat(&x, ty)
            }
            Some(Inline::Position(a)) => {
                let mut at = self.axes[a.index()].base.clone();
                if n.vec == Some(*a) {
                    at = self.t.add(&at, &strip[c].offset);
                } else if let Some((_, i)) = known.index.iter().find(|(x, _)| x == a) {
                    at = self.t.add(&at, i);
                }
                let x = self.t.narrow(&at);
                let i = ty.with("i32");
                let mut x = self.t.splat(&x, i);
                if let (true, Some(vl)) = (n.vec == Some(*a), lanes) {
                    let iota = self.t.iota(vl);
                    x = self.t.op(format_args!("arith.addi {x}, {iota} : {i}"));
                }
                scalar::convert(&mut self.t, lanes, DType::I32, d, &x)
            }
            None if n.vec.is_some_and(|a| value.axes.contains(&a)) => {
                let p = self.slot(v, &known.index, &strip[c].offset)?;
                self.get(&p, d, lanes)
            }
            None => {
                let p = self.slot(v, &known.index, &Int::K(0))?;
                let x = self.get(&p, d, None);
                let x = self.t.splat(&x, ty);
                for k in 0..strip.len() {
                    known.values.insert((v, k), x.clone());
                }
                x
            }
        };
        known.values.insert((v, c), x.clone());
        Ok(x)
    }

    fn leaf(&mut self, n: &Nest, mut known: Known, mut accs: Vec<String>) -> Result<Vec<String>, Error> {
        let lanes = self.nest_lanes(n);
        let strip = known.strip.clone().unwrap_or_default();
        let width = if accs.is_empty() { 0 } else { accs.len() / Self::reductions(n).count() };
        for (c, chunk) in strip.iter().enumerate() {
            let mut r = 0;
            for (k, item) in n.items.iter().enumerate() {
                let x = match &item.node {
                    Node::Map(Elementwise::Div, args) if self.inverse(n, args[1]).is_some() => {
                        let x = self.operand(n, &mut known, args[0], c)?;
                        let d = self.plan.values[args[0]].dtype;
                        let y = self.inverse(n, args[1]).unwrap_or(1.0);
                        let y = self.t.number(Ty::of(d, lanes), y);
                        scalar::emit(&mut self.t, Elementwise::Mul, lanes, &[d, d], &[x, y])?
                    }
                    Node::Map(op, args) => {
                        let from: Vec<DType> = args.iter().map(|a| self.plan.values[*a].dtype).collect();
                        let mut x = vec![];
                        for a in args {
                            x.push(self.operand(n, &mut known, *a, c)?);
                        }
                        scalar::emit(&mut self.t, *op, lanes, &from, &x)?
                    }
                    Node::Copy(v) => self.operand(n, &mut known, *v, c)?,
                    Node::Load(view) => {
                        let p = known.rows[k].clone().ok_or_else(|| Error::Internal("a load without an address".into()))?;
                        let d = self.plan.p.buffers[view.buffer.index()].dtype;
                        let to = item.out.map_or(d, |v| self.plan.values[v].dtype);
                        if lanes.is_some() && !view.strides.iter().any(|(a, _)| n.vec == Some(*a)) {
                            let x = self.load(&p, d, to, None, None);
                            self.t.splat(&x, Ty::of(to, lanes))
                        } else {
                            if let Some(v) = item.out {
                                self.ahead(n, v, view, &p, c, chunk)?;
                            }
                            self.beside(n, view, &p, chunk, false);
                            let p = self.behind(&p, view, &chunk.offset);
                            self.load(&p, d, to, lanes, chunk.count.as_ref())
                        }
                    }
                    Node::Fill { value, fill, keep } => {
                        let x = self.operand(n, &mut known, *value, c)?;
                        let ty = Ty::of(self.plan.values[*value].dtype, lanes);
                        let fill = self.t.number(ty, *fill);
                        let mut x = x;
                        for q in keep {
                            let m = self.holds(n, &known, q, c)?;
                            x = self.t.op(format_args!("arith.select {m}, {x}, {fill} : {}, {ty}", ty.with("i1")));
                        }
                        x
                    }
                    Node::Reduce(kind, v, _) => {
                        let d = self.plan.values[*v].dtype;
                        let mut x = self.operand(n, &mut known, *v, c)?;
                        let inner = n.vec.is_some_and(|a| n.reduced.as_ref().is_some_and(|r| r.contains(&a)));
                        if let (true, Some(count), Some(vl)) = (inner, &chunk.count, lanes) {
                            let ty = Ty::of(d, lanes);
                            let (m, id) = (self.mask(vl, count), self.identity(*kind, ty));
                            x = self.t.op(format_args!("arith.select {m}, {x}, {id} : {}, {ty}", ty.with("i1")));
                        }
                        let at = r * width + c;
                        accs[at] = self.combine(*kind, d, lanes, &accs[at], &x)?;
                        r += 1;
                        continue;
                    }
                    Node::Store(view, v) => {
                        let x = self.operand(n, &mut known, *v, c)?;
                        let p = known.rows[k].clone().ok_or_else(|| Error::Internal("a store without an address".into()))?;
                        self.beside(n, view, &p, chunk, true);
                        let p = self.behind(&p, view, &chunk.offset);
                        let d = self.plan.p.buffers[view.buffer.index()].dtype;
                        let from = self.plan.values[*v].dtype;
                        self.store(&x, &p, from, d, lanes, chunk.count.as_ref());
                        continue;
                    }
                    Node::Dot(_) | Node::Turn(..) | Node::Gather(_) | Node::Scatter(..) | Node::For(_) => return Err(Error::Internal("an item that cannot be fused is in a nest".into())),
                };
                if let Some(out) = item.out {
                    known.values.insert((out, c), x);
                }
            }
            for item in &n.items {
                if let (Some(out), false) = (item.out, matches!(item.node, Node::Reduce(..)))
                    && self.plan.values[out].place.is_some()
                    && let Some(x) = known.values.get(&(out, c)).cloned()
                {
                    let (p, d) = (self.slot(out, &known.index, &chunk.offset)?, self.plan.values[out].dtype);
                    self.put(&x, &p, d, lanes);
                }
            }
        }
        Ok(accs)
    }

    /// 1/v for vectors that are divided by a known number: a division of a vector takes as long as ten products. Scalars are divided, so
    /// that a mean is exact where it can be.
    fn inverse(&self, n: &Nest, v: V) -> Option<f64> {
        let value = &self.plan.values[v];
        let x = match value.inline.as_ref()? {
            Inline::Const(x) => *x,
            Inline::Size(d) => d.as_fixed()? as f64,
            Inline::Position(_) => return None,
        };
        let normal = (1e-30..1e30).contains(&x.abs());
        (n.vec.is_some() && value.dtype.is_float() && normal).then_some(1.0 / x)
    }

    /// Where a constraint holds.
    fn holds(&mut self, n: &Nest, known: &Known, q: &Constraint, c: usize) -> Result<String, Error> {
        let lanes = self.nest_lanes(n);
        let mut rest = self.dim(&q.constant)?;
        for (v, k) in &q.scalars {
            let x = self.scalar_i64(v.index())?;
            let x = self.t.mul(&x, &Int::K(*k));
            rest = self.t.add(&rest, &x);
        }
        let mut along = 0;
        for &(a, k) in &q.axes {
            let Span { base, .. } = self.axes[a.index()].clone();
            let mut at = base;
            if n.vec == Some(a) {
                along += k;
                let offset = known.strip.as_ref().map_or(Int::K(0), |s| s[c].offset.clone());
                at = self.t.add(&at, &offset);
            } else if let Some((_, i)) = known.index.iter().find(|(x, _)| *x == a) {
                at = self.t.add(&at, i);
            }
            let x = self.t.mul(&at, &Int::K(k));
            rest = self.t.add(&rest, &x);
        }
        let ty = Ty { elem: "i32", lanes };
        if let (false, Some(vl)) = (along == 0, lanes) {
            let far = 1 << 30;
            let rest = self.t.min(&rest, &Int::K(far));
            let rest = self.t.max(&rest, &Int::K(-far));
            let rest = self.t.narrow(&rest);
            let rest = self.t.splat(&rest, ty);
            let mut iota = self.t.iota(vl);
            if along != 1 {
                let k = self.t.integer(ty, along);
                iota = self.t.op(format_args!("arith.muli {iota}, {k} : {ty}"));
            }
            let x = self.t.op(format_args!("arith.addi {iota}, {rest} : {ty}"));
            let zero = self.t.integer(ty, 0);
            return Ok(self.t.op(format_args!("arith.cmpi sge, {x}, {zero} : {ty}")));
        }
        let m = self.t.compare("sge", &rest, &Int::K(0));
        Ok(self.t.splat(&m, ty.with("i1")))
    }

    /// A fill in place, where an edge crosses the tile; else nothing.
    pub(super) fn edge(&mut self, item: &Item) -> Result<(), Error> {
        let (Node::Fill { keep, .. }, Some(out)) = (&item.node, item.out) else {
            return Err(Error::Internal("an edge that fills nothing".into()));
        };
        if self.plan.values[out].place.is_none() {
            return Ok(());
        }
        let mut crossed: Option<String> = None;
        for q in keep {
            let (least, _) = self.range(q, None)?;
            let out = self.t.compare("slt", &least, &Int::K(0));
            crossed = Some(match crossed {
                None => out,
                Some(c) => self.t.op(format_args!("arith.ori {c}, {out} : i1")),
            });
        }
        let Some(crossed) = crossed else { return Ok(()) };
        let value = &self.plan.values[out];
        let nest = Nest { items: vec![item.clone()], domain: value.axes.iter().copied().collect(), reduced: None, vec: value.vec, ahead: BTreeMap::new() };
        self.when(&crossed, |e| e.nest(&nest))
    }
}
