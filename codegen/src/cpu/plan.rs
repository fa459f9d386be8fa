//! What is decided before a line is written: which statements share a loop, where values stand in scratch memory, and what
//! is done in place.
//!
//! Statements become *items*, items become *groups*. A group is one loop nest of fused loads, maps, reductions and stores
//! over the same axes; or one dot; or one transposing load or store; or a loop over a streamed axis with groups inside.
//! Greedy list scheduling: an item joins the first group of its shape behind everything it needs.
//!
//! A lane axis that stands whole in a streamed loop is cut into panels too, all of them the instance's own. Sums of products over it then
//! run over the panels one after the other, into an accumulator without lanes, whose vectors lie along another axis.

#![allow(missing_docs)] // fields say what they are

mod sink;

use crate::Error;
use crate::target::{Micro, Target};
use ir::dim::Dim;
use ir::prim::Elementwise;
use ir::tile::{AxisId, Constraint, Op, Program, ReduceKind, Role, Stmt, ValueId, View};
use ir::types::DType;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A value: those of the program, then temporaries.
pub type V = usize;

/// A value that is made where it is used.
#[derive(Clone, Debug)]
pub enum Inline {
    Const(f64),
    Size(Dim),
    Position(AxisId),
}

/// Where a value stands: bytes from the start of the instance's scratch, or of the panel's record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Fixed(usize),
    Panel(usize),
}

/// What is known of a value.
#[derive(Clone, Debug)]
pub struct Value {
    pub dtype: DType,
    /// Axes of the tile in memory order, `vec` last.
    pub axes: Vec<AxisId>,
    /// The axis that is contiguous and padded to whole vectors.
    pub vec: Option<AxisId>,
    pub inline: Option<Inline>,
    pub place: Option<Place>,
}

/// `init + Σ a·b`: every first operand is without the axis of vectors, every second one has it.
#[derive(Clone, Debug)]
pub struct Dot {
    /// The axis along which vectors lie: the lane axis, unless that is summed.
    pub vec: AxisId,
    pub init: Vec<Vec<V>>,
    pub terms: Vec<(V, V)>,
    pub sum: Vec<AxisId>,
    /// The axis along which the accumulator tile has its rows.
    pub rows: Option<AxisId>,
}

/// What an item does.
#[derive(Clone, Debug)]
pub enum Node {
    Map(Elementwise, Vec<V>),
    Copy(V),
    /// The same tile with its vectors along another axis than the lane axis, which is a row then.
    Turn(V, AxisId),
    Load(View),
    Fill { value: V, fill: f64, keep: Vec<Constraint> },
    Reduce(ReduceKind, V, Vec<AxisId>),
    Store(View, V),
    Dot(Dot),
    /// A load whose lanes are not side by side in memory.
    Gather(View),
    /// A store of the same kind.
    Scatter(View, V),
    For(Box<LoopPlan>),
}

/// One statement, after desugaring.
#[derive(Clone, Debug)]
pub struct Item {
    pub out: Option<V>,
    pub node: Node,
}

/// A loop over a streamed axis.
#[derive(Clone, Debug)]
pub struct LoopPlan {
    pub axis: AxisId,
    pub within: Vec<Constraint>,
    /// Whether the body writes to memory, and whether it writes something with lanes.
    pub stores: bool,
    pub lanes_stored: bool,
    /// The carried value, and what it becomes.
    pub carries: Vec<(V, V)>,
    items: Vec<Item>,
    pub body: Vec<Segment>,
}

/// Fused items over one iteration space.
#[derive(Clone, Debug)]
pub struct Nest {
    pub items: Vec<Item>,
    pub domain: BTreeSet<AxisId>,
    pub reduced: Option<BTreeSet<AxisId>>,
    pub vec: Option<AxisId>,
    /// Loads of whose next row some quarters are fetched meanwhile: the first one, and how many.
    pub ahead: BTreeMap<V, (usize, usize)>,
}

/// What a group does.
#[derive(Clone, Debug)]
pub enum Work {
    Nest(Nest),
    /// A dot, a gather or a scatter.
    Single(Item),
    /// A fill in place, done only in tiles that an edge crosses.
    Edge(Item),
    For(Box<LoopPlan>),
}

/// Code with one loop nest.
#[derive(Clone, Debug)]
pub struct Group {
    pub work: Work,
    time: usize,
    segment: usize,
}

/// Consecutive groups.
#[derive(Clone, Debug)]
pub enum Segment {
    Straight(Vec<Group>),
    /// Once per panel of the lane axis.
    Panels(Vec<Group>),
    For(Group),
}

/// The plan of a program.
pub struct Plan<'p> {
    pub p: &'p Program,
    pub values: Vec<Value>,
    /// Lanes of a vector.
    pub vl: usize,
    /// Bytes of the last-level cache.
    pub llc: usize,
    pub micro: Micro,
    pub lanes: Option<AxisId>,
    /// Whether there are sums of products.
    pub dots: bool,
    /// Whether the lane axis is cut into panels.
    pub panels: bool,
    /// How many panels an instance has, if it has all of them.
    pub whole: Option<usize>,
    /// Elements of the lane axis in a tile.
    pub width: usize,
    /// Parallel axes that an instance walks index by index.
    pub serial: BTreeSet<AxisId>,
    pub body: Vec<Segment>,
    pub fixed_bytes: usize,
    pub panel_bytes: usize,
    pub max_panels: usize,
    /// Axes that are rows of some accumulator tile.
    row_axes: BTreeSet<AxisId>,
    same: HashMap<V, V>,
    forced: HashMap<V, V>,
    /// Tiles whose vectors lie along another axis than the rule says.
    along: HashMap<V, AxisId>,
    /// Tiles that were turned, by the value and the axis.
    turned: BTreeMap<(V, AxisId), V>,
    /// Sums over all panels, and the zeros that they start from.
    sums: BTreeMap<V, V>,
    segments: usize,
    clock: usize,
    written: BTreeMap<V, (usize, usize)>,
    last: BTreeMap<V, usize>,
    crossing: BTreeSet<V>,
}

/// Accumulators that hide the latency of a multiply-add: 4 clocks of two a clock, and half as many again (a tile of 4×2 is 15 % slower than one of 6×2).
const ACCUMULATORS: usize = 12;
/// What a step of a tile costs beside its multiply-adds, in these.
const STEP: usize = 3;

/// Axes, those that are reduced, and the contiguous one.
type Shape = (BTreeSet<AxisId>, Option<BTreeSet<AxisId>>, Option<AxisId>);

fn round_up(n: usize, to: usize) -> usize {
    n.div_ceil(to) * to
}

impl<'p> Plan<'p> {
    /// A plan; with the lane axis cut into panels where a streamed loop has it whole and its sums can run over panels.
    pub fn new(p: &'p Program, target: &Target) -> Result<Plan<'p>, Error> {
        let dots = any(&p.body, &|s| matches!(s, Stmt::Let(_, Op::Dot { .. })));
        let streams = any(&p.body, &|s| matches!(s, Stmt::For(_)));
        if dots && streams && p.lanes.is_some_and(|a| matches!(p.axis(a).role, Role::Full(_)))
            && let Ok(plan) = Plan::with(p, target, true)
        {
            return Ok(plan);
        }
        Plan::with(p, target, false)
    }
    fn with(p: &'p Program, target: &Target, cut: bool) -> Result<Plan<'p>, Error> {
        let vl = target.vector_bytes / p.compute.bytes();
        let lanes = p.lanes.filter(|a| matches!(p.axis(*a).role, Role::Block(_) | Role::Full(_))).or_else(|| pick_lanes(p));
        let dots = any(&p.body, &|s| matches!(s, Stmt::Let(_, Op::Dot { .. })));
        let streams = any(&p.body, &|s| matches!(s, Stmt::For(_)));
        let panels = cut || lanes.is_some_and(|a| matches!(p.axis(a).role, Role::Block(_)));
        let mut micro = target.micro;
        if !dots {
            micro.vectors = 4;
        }
        if let (Some(a), true) = (lanes, panels)
            && let Some(n) = p.axis(a).size.as_fixed()
        {
            let all = (n.max(1) as usize).div_ceil(vl);
            micro.vectors = micro.vectors.min(all);
            // A short axis of which a part of a panel is left over: panels of which none is.
            if dots && all <= 8
                && let Some(even) = (2..=micro.vectors).rev().find(|v| all.is_multiple_of(*v))
            {
                micro.vectors = even;
            }
        }
        // A narrow tile has more rows: what adds to one accumulator waits for it, and others fill the wait.
        let registers = target.registers.saturating_sub(1 + micro.vectors) / micro.vectors;
        micro.rows = micro.rows.max((ACCUMULATORS / micro.vectors).min(registers));
        let width = match lanes {
            Some(a) if !panels => round_up(p.axis(a).extent(), vl),
            Some(_) => micro.vectors * vl,
            None => 1,
        };
        let whole = lanes.filter(|_| cut).map(|a| p.axis(a).extent().div_ceil(width));
        let serial = if !dots && !panels {
            (0..p.axes.len()).map(|i| AxisId(i as u32)).filter(|a| matches!(p.axis(*a).role, Role::Block(_))).collect()
        } else {
            BTreeSet::new()
        };
        let mut plan = Plan {
            p,
            values: vec![],
            vl,
            llc: target.llc,
            micro,
            lanes,
            dots,
            panels,
            whole,
            width,
            serial,
            body: vec![],
            fixed_bytes: 0,
            panel_bytes: 0,
            max_panels: 1,
            row_axes: BTreeSet::new(),
            same: HashMap::new(),
            forced: HashMap::new(),
            along: HashMap::new(),
            turned: BTreeMap::new(),
            sums: BTreeMap::new(),
            segments: 0,
            clock: 0,
            written: BTreeMap::new(),
            last: BTreeMap::new(),
            crossing: BTreeSet::new(),
        };
        for v in &p.values {
            let dtype = match v.dtype {
                d if d.is_float() => p.compute,
                d => d,
            };
            let axes = plan.tile_axes(v.axes.iter().copied());
            plan.values.push(Value { dtype, axes, vec: None, inline: None, place: None });
        }
        let mut items = plan.collect(&p.body)?;
        plan.assign_vec(&mut items);
        for v in 0..plan.values.len() {
            let mut axes = std::mem::take(&mut plan.values[v].axes);
            if let Some(x) = plan.values[v].vec {
                axes.retain(|a| *a != x);
                axes.push(x);
            }
            plan.values[v].axes = axes;
        }
        plan.body = plan.schedule(items, &[])?;
        let mut body = std::mem::take(&mut plan.body);
        plan.stamp(&mut body);
        plan.allocate(&mut body);
        plan.body = body;
        plan.max_panels = if !panels || plan.whole.is_some() {
            1
        } else if plan.panel_bytes == 0 && !streams {
            64
        } else {
            // Records are read in order, a panel's while products of it run, so that they may be more than the second-level cache holds: what is
            // copied for all panels costs more.
            ((target.l2 * 3 / 2).saturating_sub(plan.fixed_bytes) / plan.panel_bytes.max(1)).clamp(1, 16)
        };
        Ok(plan)
    }

    /// Axes that tiles have: neither `Grid` nor walked index by index. Sorted.
    pub fn tile_axes(&self, axes: impl Iterator<Item = AxisId>) -> Vec<AxisId> {
        let set: BTreeSet<AxisId> = axes.filter(|a| self.p.axis(*a).role != Role::Grid && !self.serial.contains(a)).collect();
        set.into_iter().collect()
    }
    pub fn has(&self, v: V, a: AxisId) -> bool {
        self.values[v].axes.contains(&a)
    }
    fn laned(&self, v: V) -> bool {
        self.lanes.is_some_and(|l| self.has(v, l))
    }
    /// The most elements of a tile along `a`.
    pub fn extent(&self, a: AxisId) -> usize {
        if Some(a) == self.lanes { self.width } else { self.p.axis(a).extent() }
    }
    /// Rows of accumulator tiles along `a`: as many as leave little of the last tile without use.
    pub fn rows(&self, a: AxisId) -> usize {
        let n = self.extent(a).max(1);
        let time = |r: &usize| n.div_ceil(*r) * (r * self.micro.vectors + STEP);
        (1..=self.micro.rows.min(n)).rev().min_by_key(time).unwrap_or(1)
    }
    /// Bytes of an element in scratch memory.
    pub fn bytes(&self, d: DType) -> usize {
        match d {
            DType::F64 => 8,
            _ => 4,
        }
    }
    /// Elements from one index to the next along each of the value's axes, and of the whole tile.
    pub fn strides(&self, v: V) -> (Vec<usize>, usize) {
        let v = &self.values[v];
        let mut size = 1;
        let mut strides = vec![0; v.axes.len()];
        for (k, &a) in v.axes.iter().enumerate().rev() {
            strides[k] = size;
            let mut n = self.extent(a);
            if v.vec == Some(a) {
                n = round_up(n, self.vl);
                if Some(a) != self.lanes && v.axes.len() > 1 && (n * self.bytes(v.dtype)).is_multiple_of(2048) {
                    n += 64 / self.bytes(v.dtype);
                }
            } else if self.row_axes.contains(&a) {
                n = round_up(n, self.rows(a));
            }
            size *= n;
        }
        (strides, size)
    }
    /// The stride along `a`, if the value has it.
    pub fn stride(&self, v: V, a: AxisId) -> Option<usize> {
        let k = self.values[v].axes.iter().position(|x| *x == a)?;
        Some(self.strides(v).0[k])
    }
    fn temporary(&mut self, dtype: DType, axes: Vec<AxisId>) -> V {
        self.values.push(Value { dtype, axes, vec: None, inline: None, place: None });
        self.values.len() - 1
    }
    fn v(&self, v: ValueId) -> V {
        let v = v.index();
        *self.same.get(&v).unwrap_or(&v)
    }

    /// The value under whose number a value is kept.
    pub fn renamed(&self, v: V) -> V {
        *self.same.get(&v).unwrap_or(&v)
    }

    // Statements to items.

    fn collect(&mut self, body: &[Stmt]) -> Result<Vec<Item>, Error> {
        let mut items = vec![];
        for s in body {
            match s {
                Stmt::Let(v, op) => self.collect_op(v.index(), op, &mut items)?,
                Stmt::Store(view, v) => {
                    let mut v = self.v(*v);
                    let scattered = self.lanes.is_some_and(|l| view.stride(l).is_some_and(|s| !s.is_one()));
                    if let (true, Some(l)) = (scattered, self.lanes)
                        && !self.has(v, l)
                    {
                        let mut axes = self.values[v].axes.clone();
                        axes.push(l);
                        axes.sort_unstable();
                        let t = self.temporary(self.values[v].dtype, axes);
                        items.push(Item { out: Some(t), node: Node::Copy(v) });
                        v = t;
                    }
                    let node = if scattered { Node::Scatter(view.clone(), self.concrete(v, &mut items)) } else { Node::Store(view.clone(), v) };
                    items.push(Item { out: None, node });
                }
                Stmt::For(l) => {
                    if !matches!(self.p.axis(l.axis).role, Role::Stream(_)) {
                        return Err(self.refuse(format!("the loop is over axis `{}`, which is not streamed", self.p.axis(l.axis).name)));
                    }
                    let mut carries: Vec<(V, V)> = vec![];
                    for c in &l.carries {
                        items.push(Item { out: Some(c.inside.index()), node: Node::Copy(self.v(c.init)) });
                    }
                    let inner = self.collect(&l.body)?;
                    let mut own: BTreeSet<V> = inner.iter().filter_map(|i| i.out).collect();
                    own.extend(l.carries.iter().map(|c| c.inside.index()));
                    // What does not change in the loop is turned once.
                    let (once, mut inner): (Vec<Item>, Vec<Item>) = inner.into_iter().partition(|i| matches!(i.node, Node::Turn(v, _) if !own.contains(&v)));
                    items.extend(once);
                    let own: BTreeSet<V> = inner.iter().filter_map(|i| i.out).collect();
                    let inside: BTreeSet<V> = l.carries.iter().map(|c| c.inside.index()).collect();
                    for c in &l.carries {
                        let (i, mut n) = (c.inside.index(), self.v(c.next));
                        if n != i {
                            if !own.contains(&n) || inside.contains(&n) || carries.iter().any(|(_, m)| *m == n) {
                                let t = self.temporary(self.values[i].dtype, self.values[i].axes.clone());
                                inner.push(Item { out: Some(t), node: Node::Copy(n) });
                                n = t;
                            }
                            self.forced.insert(n, i);
                            carries.push((i, n));
                        }
                    }
                    for c in &l.carries {
                        self.same.insert(c.after.index(), c.inside.index());
                    }
                    let writes = |i: &Item| matches!(&i.node, Node::Store(_, v) | Node::Scatter(_, v) if self.laned(*v)) || matches!(&i.node, Node::For(l) if l.lanes_stored);
                    let lanes_stored = inner.iter().any(writes);
                    let plan = LoopPlan { axis: l.axis, within: l.within.clone(), stores: l.stores(), lanes_stored, carries, items: inner, body: vec![] };
                    items.push(Item { out: None, node: Node::For(Box::new(plan)) });
                }
            }
        }
        Ok(items)
    }

    fn refuse(&self, why: impl std::fmt::Display) -> Error {
        Error::Refused(format!("{}: {why}", self.p.name))
    }

    /// `v` itself, or a copy in memory of a value that is made where it is used.
    fn concrete(&mut self, v: V, items: &mut Vec<Item>) -> V {
        if self.values[v].inline.is_none() {
            return v;
        }
        let t = self.temporary(self.values[v].dtype, self.values[v].axes.clone());
        items.push(Item { out: Some(t), node: Node::Copy(v) });
        t
    }

    fn collect_op(&mut self, out: V, op: &Op, items: &mut Vec<Item>) -> Result<(), Error> {
        let inline = match op {
            Op::Const(x) => Some(Inline::Const(*x)),
            Op::Size(d) => Some(Inline::Size(d.clone())),
            Op::Position(a) => Some(Inline::Position(*a)),
            _ => None,
        };
        if inline.is_some() {
            self.values[out].inline = inline;
            return Ok(());
        }
        let node = match op {
            Op::Const(_) | Op::Size(_) | Op::Position(_) => return Ok(()),
            Op::Load(view) => {
                let gathered = self.lanes.is_some_and(|l| self.has(out, l) && view.stride(l).is_some_and(|s| !s.is_one()));
                if gathered { Node::Gather(view.clone()) } else { Node::Load(view.clone()) }
            }
            Op::Map(Elementwise::Div, args) if self.divides_by_fewer(self.v(args[0]), self.v(args[1])) => {
                // One division for all that share the divisor.
                let (x, y) = (self.v(args[0]), self.v(args[1]));
                let d = self.values[out].dtype;
                let one = self.number(1.0, d);
                let inverse = self.binary(Elementwise::Div, one, y, d, items);
                Node::Map(Elementwise::Mul, vec![x, inverse])
            }
            Op::Map(e, args) => Node::Map(*e, args.iter().map(|a| self.v(*a)).collect()),
            Op::Reduce(_, _, axes) if self.whole.is_some() && axes.iter().any(|a| Some(*a) == self.lanes) => {
                return Err(self.refuse("a reduction over the lane axis, which is cut into panels, that is no sum of products"));
            }
            Op::Reduce(k, v, axes) => Node::Reduce(*k, self.v(*v), self.reducible(axes)?),
            Op::Fill { value, fill, keep } => Node::Fill { value: self.v(*value), fill: *fill, keep: keep.clone() },
            Op::Dot { init, terms, sum } => {
                let sum = self.reducible(sum)?;
                let init: Vec<Vec<V>> = init.iter().map(|f| f.iter().map(|v| self.v(*v)).collect()).collect();
                let terms: Vec<(V, V)> = terms.iter().map(|(a, b)| (self.v(*a), self.v(*b))).collect();
                return self.collect_dot(out, init, terms, sum, items);
            }
        };
        items.push(Item { out: Some(out), node });
        Ok(())
    }

    /// Whether what is divided has an axis, lanes or another, that the divisor, which is computed, has not.
    fn divides_by_fewer(&self, x: V, y: V) -> bool {
        let fewer = self.values[x].axes.iter().any(|a| !self.has(y, *a) && (Some(*a) == self.lanes || self.extent(*a) > 1));
        self.values[y].inline.is_none() && self.values[y].dtype.is_float() && self.laned(x) && fewer
    }

    fn reducible(&self, axes: &[AxisId]) -> Result<Vec<AxisId>, Error> {
        for &a in axes {
            if matches!(self.p.axis(a).role, Role::Grid | Role::Block(_)) {
                return Err(self.refuse(format!("a reduction over axis `{}`, of which an instance has only a part", self.p.axis(a).name)));
            }
        }
        Ok(axes.to_vec())
    }

    fn collect_dot(&mut self, out: V, init: Vec<Vec<V>>, terms: Vec<(V, V)>, sum: Vec<AxisId>, items: &mut Vec<Item>) -> Result<(), Error> {
        let d = self.values[out].dtype;
        if self.whole.is_some() && sum.iter().any(|a| Some(*a) == self.lanes) {
            return self.collect_sum(out, init, &terms, sum, items);
        }
        let regular = self.laned(out)
            && !terms.is_empty()
            && !sum.iter().any(|a| Some(*a) == self.lanes)
            && terms.iter().all(|(a, b)| self.laned(*a) != self.laned(*b) && self.values[*a].dtype == d && self.values[*b].dtype == d);
        if regular {
            let mut ordered = vec![];
            for (a, b) in terms {
                let (a, b) = if self.laned(b) { (a, b) } else { (b, a) };
                ordered.push((self.concrete(a, items), self.concrete(b, items)));
            }
            let rows = self.values[out].axes.iter().copied().filter(|a| Some(*a) != self.lanes);
            let score = |a: &AxisId| (ordered.iter().all(|(x, y)| self.has(*x, *a) && !self.has(*y, *a)), self.extent(*a));
            let rows = rows.max_by_key(score);
            self.row_axes.extend(rows);
            let Some(vec) = self.lanes else { return Err(self.refuse("a dot with lanes, but without a lane axis")) };
            items.push(Item { out: Some(out), node: Node::Dot(Dot { vec, init, terms: ordered, sum, rows }) });
            return Ok(());
        }
        // Σ as products, then a reduction.
        let mut parts: Vec<V> = vec![];
        for f in &init {
            let mut product: Option<V> = None;
            for &v in f {
                product = Some(match product {
                    None => v,
                    Some(x) => self.binary(Elementwise::Mul, x, v, d, items),
                });
            }
            parts.push(product.unwrap_or_else(|| self.number(1.0, d)));
        }
        for (a, b) in terms {
            let x = self.binary(Elementwise::Mul, a, b, d, items);
            let mut axes: BTreeSet<AxisId> = self.values[x].axes.iter().copied().collect();
            axes.extend(&sum);
            axes.retain(|a| !sum.contains(a));
            let r = self.temporary(d, axes.into_iter().collect());
            items.push(Item { out: Some(r), node: Node::Reduce(ReduceKind::Sum, x, sum.clone()) });
            parts.push(r);
        }
        let mut total: Option<V> = None;
        for x in parts {
            total = Some(match total {
                None => x,
                Some(t) => self.binary(Elementwise::Add, t, x, d, items),
            });
        }
        let total = total.unwrap_or_else(|| self.number(0.0, d));
        items.push(Item { out: Some(out), node: Node::Copy(total) });
        Ok(())
    }
    /// A sum of products over the lane axis, panel by panel: the accumulator has its vectors along another axis, which one operand of
    /// each term has, turned for it.
    fn collect_sum(&mut self, out: V, init: Vec<Vec<V>>, terms: &[(V, V)], sum: Vec<AxisId>, items: &mut Vec<Item>) -> Result<(), Error> {
        let d = self.values[out].dtype;
        let one_has = |p: &Plan, (a, b): &(V, V), x: AxisId| p.has(*a, x) != p.has(*b, x);
        let inner: BTreeSet<V> = items.iter().filter_map(|i| i.out).collect();
        let fits = |p: &Plan, x: AxisId| !sum.contains(&x) && terms.iter().all(|t| one_has(p, t, x) && p.laned(t.0) && p.laned(t.1) && p.values[t.0].dtype == d && p.values[t.1].dtype == d);
        // Rather along an axis of operands that stay the same in the loop: these are turned once.
        let stays = |p: &Plan, x: AxisId| terms.iter().all(|(a, b)| !inner.contains(if p.has(*a, x) { a } else { b }));
        let vec = self.values[out].axes.iter().copied().filter(|x| fits(self, *x)).max_by_key(|x| (stays(self, *x), self.extent(*x)));
        let Some(vec) = vec.filter(|_| !terms.is_empty()) else {
            return Err(self.refuse(format!("a sum over axis `{}`, which is cut into panels, of products in which no axis belongs to one operand", self.lanes.map_or("?", |l| &self.p.axis(l).name))));
        };
        let mut ordered = vec![];
        for &(a, b) in terms {
            let (a, b) = if self.has(b, vec) { (a, b) } else { (b, a) };
            let b = self.concrete(b, items);
            let turned = match self.turned.get(&(b, vec)) {
                Some(t) => *t,
                None => {
                    let t = self.temporary(d, self.values[b].axes.clone());
                    self.along.insert(t, vec);
                    self.turned.insert((b, vec), t);
                    items.push(Item { out: Some(t), node: Node::Turn(b, vec) });
                    t
                }
            };
            ordered.push((self.concrete(a, items), turned));
        }
        let rows = self.values[out].axes.iter().copied().filter(|a| *a != vec);
        let rows = rows.max_by_key(|a| (ordered.iter().all(|(x, y)| self.has(*x, *a) && !self.has(*y, *a)), self.extent(*a)));
        self.row_axes.extend(rows);
        let axes = self.values[out].axes.clone();
        let (zeros, none) = (self.temporary(d, axes.clone()), self.number(0.0, d));
        let total = if init.is_empty() { out } else { self.temporary(d, axes) };
        self.along.extend([(zeros, vec), (total, vec)]);
        self.sums.insert(total, zeros);
        items.push(Item { out: Some(zeros), node: Node::Copy(none) });
        items.push(Item { out: Some(total), node: Node::Dot(Dot { vec, init: vec![vec![zeros]], terms: ordered, sum, rows }) });
        if init.is_empty() {
            return Ok(());
        }
        let mut x = total;
        for product in init {
            let mut y: Option<V> = None;
            for v in product {
                y = Some(y.map_or(v, |y| self.binary(Elementwise::Mul, y, v, d, items)));
            }
            let y = y.unwrap_or_else(|| self.number(1.0, d));
            x = self.binary(Elementwise::Add, x, y, d, items);
        }
        items.push(Item { out: Some(out), node: Node::Copy(x) });
        Ok(())
    }
    fn binary(&mut self, op: Elementwise, a: V, b: V, d: DType, items: &mut Vec<Item>) -> V {
        let axes: BTreeSet<AxisId> = self.values[a].axes.iter().chain(&self.values[b].axes).copied().collect();
        let t = self.temporary(d, axes.into_iter().collect());
        items.push(Item { out: Some(t), node: Node::Map(op, vec![a, b]) });
        t
    }
    fn number(&mut self, x: f64, d: DType) -> V {
        let t = self.temporary(d, vec![]);
        self.values[t].inline = Some(Inline::Const(x));
        t
    }

    // Layouts.

    fn assign_vec(&mut self, items: &mut [Item]) {
        let mut loaded = BTreeMap::new();
        self.loaded(items, &mut loaded);
        self.assign_vec_as(items, &loaded);
    }
    /// The contiguous axis of what is loaded without lanes, by its axes.
    fn loaded(&self, items: &[Item], by: &mut BTreeMap<Vec<AxisId>, AxisId>) {
        for item in items {
            match (&item.node, item.out) {
                (Node::For(l), _) => self.loaded(&l.items, by),
                (Node::Load(view), Some(v)) if !self.laned(v) => {
                    if let Some(a) = self.contiguous(&self.values[v].axes, view) {
                        by.entry(self.values[v].axes.clone()).or_insert(a);
                    }
                }
                _ => {}
            }
        }
    }
    /// The axis along which a tile with `axes` is contiguous in memory.
    fn contiguous(&self, axes: &[AxisId], view: &View) -> Option<AxisId> {
        axes.iter().copied().filter(|a| view.stride(*a).is_some_and(Dim::is_one)).max_by_key(|a| self.extent(*a))
    }
    fn assign_vec_as(&mut self, items: &mut [Item], loaded: &BTreeMap<Vec<AxisId>, AxisId>) {
        for item in items {
            if let Node::For(l) = &mut item.node {
                let mut inner = std::mem::take(&mut l.items);
                self.assign_vec_as(&mut inner, loaded);
                l.items = inner;
            }
            let Some(out) = item.out else { continue };
            let axes = self.values[out].axes.clone();
            let inherit = |p: &Plan, v: V| p.values[v].vec.filter(|x| axes.contains(x));
            let last = axes.iter().copied().rfind(|a| self.extent(*a) > 1);
            self.values[out].vec = if let Some(&a) = self.along.get(&out) {
                Some(a)
            } else if self.laned(out) {
                self.lanes
            } else if let Some(&c) = self.forced.get(&out) {
                self.values[c].vec
            } else {
                match &item.node {
                    Node::Load(view) => self.contiguous(&axes, view),
                    // As what was loaded with these axes; else as the operand with the most.
                    Node::Map(_, args) => loaded.get(&axes).copied().or_else(|| args.iter().rev().max_by_key(|a| (inherit(self, **a).is_some(), self.values[**a].axes.len())).and_then(|a| inherit(self, *a))).or(last),
                    Node::Copy(v) | Node::Fill { value: v, .. } | Node::Reduce(_, v, _) => inherit(self, *v).or(last),
                    _ => last,
                }
            };
        }
    }

    // Items to groups.

    /// Values that an item reads; of a loop, those from outside.
    pub fn operands(&self, item: &Item) -> Vec<V> {
        let scalars = |c: &[Constraint]| c.iter().flat_map(|c| c.scalars.iter().map(|(v, _)| self.v(*v))).collect::<Vec<_>>();
        match &item.node {
            Node::Map(_, args) => args.clone(),
            Node::Copy(v) | Node::Turn(v, _) | Node::Reduce(_, v, _) | Node::Store(_, v) | Node::Scatter(_, v) => vec![*v],
            Node::Fill { value, keep, .. } => std::iter::once(*value).chain(scalars(keep)).collect(),
            Node::Load(_) | Node::Gather(_) => vec![],
            Node::Dot(d) => d.init.iter().flatten().copied().chain(d.terms.iter().flat_map(|(a, b)| [*a, *b])).collect(),
            Node::For(l) => {
                let own: BTreeSet<V> = l.items.iter().filter_map(|i| i.out).collect();
                let mut all: Vec<V> = l.items.iter().flat_map(|i| self.operands(i)).filter(|v| !own.contains(v)).collect();
                all.extend(l.carries.iter().flat_map(|(i, n)| [*i, *n]).filter(|v| !own.contains(v)));
                all.extend(scalars(&l.within));
                all
            }
        }
    }

    /// Values that an item defines for its surroundings.
    fn results(item: &Item) -> Vec<V> {
        match &item.node {
            Node::For(l) => l.carries.iter().map(|(i, _)| *i).collect(),
            _ => item.out.into_iter().collect(),
        }
    }

    /// The iteration space of an item that can be part of a nest.
    fn shape(&self, item: &Item) -> Option<Shape> {
        let mut domain: BTreeSet<AxisId> = item.out.iter().flat_map(|v| self.values[*v].axes.iter().copied()).collect();
        let mut reduced = None;
        match &item.node {
            Node::Map(_, args) => domain.extend(args.iter().flat_map(|v| &self.values[*v].axes)),
            Node::Copy(v) => domain.extend(&self.values[*v].axes),
            Node::Load(view) => domain.extend(self.tile_axes(view.strides.iter().map(|(a, _)| *a))),
            Node::Fill { value, keep, .. } => {
                domain.extend(&self.values[*value].axes);
                domain.extend(self.tile_axes(keep.iter().flat_map(|c| c.axes.iter().map(|(a, _)| *a))));
            }
            Node::Reduce(_, v, axes) => {
                domain.extend(&self.values[*v].axes);
                domain.extend(self.tile_axes(axes.iter().copied()));
                reduced = Some(axes.iter().copied().collect());
            }
            Node::Store(view, v) => {
                domain.extend(&self.values[*v].axes);
                domain.extend(self.tile_axes(view.strides.iter().map(|(a, _)| *a)));
            }
            _ => return None,
        }
        let vec = match self.lanes.filter(|l| domain.contains(l)) {
            Some(l) => Some(l),
            None => {
                // The contiguous axis of whatever has one; scalar if they disagree.
                let mut want: Vec<AxisId> = vec![];
                let mut bad: BTreeSet<AxisId> = BTreeSet::new();
                let mut slot = |v: V| {
                    if self.values[v].inline.is_none() {
                        want.extend(self.values[v].vec);
                        bad.extend(self.values[v].axes.iter().filter(|a| self.values[v].vec != Some(**a)));
                    }
                };
                item.out.iter().for_each(|v| slot(*v));
                self.operands(item).into_iter().for_each(&mut slot);
                if let Node::Load(view) | Node::Store(view, _) = &item.node {
                    bad.extend(view.strides.iter().filter(|(_, s)| !s.is_one()).map(|(a, _)| *a));
                }
                want.into_iter().find(|a| !bad.contains(a))
            }
        };
        Some((domain, reduced, vec))
    }

    fn schedule(&mut self, items: Vec<Item>, carries: &[(V, V)]) -> Result<Vec<Segment>, Error> {
        let n = items.len();
        let maker: HashMap<V, usize> = items.iter().enumerate().flat_map(|(k, i)| Self::results(i).into_iter().map(move |v| (v, k))).collect();
        // A loop both reads and redefines its carries: whoever initialises them comes first, whoever reads them later.
        let mut before: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); n];
        for (k, item) in items.iter().enumerate() {
            let mut definer: HashMap<V, usize> = HashMap::new();
            for (j, other) in items[..k].iter().enumerate() {
                for v in Self::results(other) {
                    definer.insert(v, j);
                }
            }
            before[k] = self.operands(item).iter().filter_map(|v| definer.get(v).copied()).collect();
        }
        // What reads a carried value comes before what replaces it, where that is possible.
        let mut soft: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); n];
        for (inside, next) in carries {
            let Some(&m) = maker.get(next) else { continue };
            for (k, item) in items.iter().enumerate() {
                if k != m && self.operands(item).contains(inside) && !reaches(&before, k, m) {
                    before[m].insert(k);
                    soft[m].insert(k);
                }
            }
        }
        let mut order: Vec<usize> = vec![];
        let mut done = vec![false; n];
        while order.len() < n {
            let k = (0..n).find(|k| !done[*k] && before[*k].iter().all(|b| done[*b])).ok_or_else(|| self.refuse("values depend on each other in a circle"))?;
            done[k] = true;
            order.push(k);
        }
        let mut groups: Vec<Group> = vec![];
        let mut at: Vec<usize> = vec![0; n];
        let mut items: Vec<Option<Item>> = items.into_iter().map(Some).collect();
        let uses = |p: &Plan, items: &[Option<Item>], v: V| items.iter().flatten().filter(|i| p.operands(i).contains(&v)).count();
        let use_count: HashMap<V, usize> = maker.keys().map(|v| (*v, uses(self, &items, *v))).collect();
        let mut made_by_dot: BTreeSet<V> = BTreeSet::new();
        // The first group behind the last loop so far. What stands behind a loop stays there: before it, it would have to be kept through
        // the loop in every panel's record.
        let mut floor = 0;
        for k in order {
            let Some(item) = items[k].take() else { continue };
            let shape = self.shape(&item);
            // A fill of a dot's result that nothing else reads is done in place, at the edge only.
            if let (Node::Fill { value, .. }, Some(out)) = (&item.node, item.out)
                && made_by_dot.contains(value)
                && use_count.get(value) == Some(&1)
                && self.values[*value].axes == self.values[out].axes
                && !carries.iter().any(|(_, n)| n == value || *n == out)
            {
                groups.push(Group { work: Work::Edge(item), time: 0, segment: 0 });
                at[k] = groups.len() - 1;
                continue;
            }
            let joins = |g: &Group, producer: bool| match (&g.work, &shape) {
                (Work::Nest(nest), Some((domain, reduced, vec))) => {
                    nest.domain == *domain && nest.vec == *vec && (producer || reduced.is_none() || nest.reduced.is_none() || nest.reduced == *reduced)
                }
                _ => false,
            };
            let mut least = floor;
            for &b in &before[k] {
                let g = at[b];
                let fused = joins(&groups[g], true) && (soft[k].contains(&b) || !self.reduces_into(&groups[g], &item));
                least = least.max(if fused { g } else { g + 1 });
            }
            let found = (least..groups.len()).find(|g| joins(&groups[*g], false));
            at[k] = match (found, shape) {
                (Some(g), Some((_, reduced, _))) => {
                    if let Work::Nest(nest) = &mut groups[g].work {
                        nest.reduced = nest.reduced.take().or(reduced);
                        nest.items.push(item);
                    }
                    g
                }
                (None, Some((domain, reduced, vec))) => {
                    groups.push(Group { work: Work::Nest(Nest { items: vec![item], domain, reduced, vec, ahead: BTreeMap::new() }), time: 0, segment: 0 });
                    groups.len() - 1
                }
                (_, None) => {
                    if let (Node::Dot(_), Some(v)) = (&item.node, item.out) {
                        made_by_dot.insert(v);
                    }
                    let work = match item.node {
                        Node::For(mut l) => {
                            let inner = std::mem::take(&mut l.items);
                            l.body = self.schedule(inner, &l.carries.clone())?;
                            floor = groups.len() + 1;
                            Work::For(l)
                        }
                        _ => Work::Single(item),
                    };
                    groups.push(Group { work, time: 0, segment: 0 });
                    groups.len() - 1
                }
            };
        }
        self.sink(&mut groups, carries);
        self.fetch_ahead(&mut groups);
        let groups = self.lanes_last(groups);
        // Carried values: the new one takes the old one's place if nothing reads the old one afterwards; else it is copied.
        for (inside, next) in carries {
            let made = groups.iter().position(|g| self.writes(&g.1).contains(next));
            let read = groups.iter().rposition(|g| self.reads(&g.1).contains(inside));
            let in_place = match (made, read) {
                (Some(_), None) => true,
                (Some(m), Some(r)) if r < m => true,
                (Some(m), Some(r)) if r == m => match &groups[m].1.work {
                    Work::Nest(_) => true,
                    Work::Single(Item { node: Node::Dot(d), .. }) => !d.terms.iter().any(|(a, b)| a == inside || b == inside),
                    _ => false,
                },
                _ => false,
            };
            let made_in = made.is_some_and(|m| matches!(&groups[m].1.work, Work::Nest(_) | Work::Single(Item { node: Node::Dot(_) | Node::Gather(_), .. })));
            let (a, b) = (&self.values[*inside], &self.values[*next]);
            if in_place && made_in && a.axes == b.axes && a.dtype == b.dtype && !carries.iter().any(|(o, n)| n == next && o != inside) {
                self.same.insert(*next, *inside);
            }
        }
        let mut copies: Vec<Group> = vec![];
        for (inside, next) in carries {
            if self.same.get(next) == Some(inside) {
                continue;
            }
            let item = Item { out: Some(*inside), node: Node::Copy(*next) };
            if let Some((domain, reduced, vec)) = self.shape(&item) {
                copies.push(Group { work: Work::Nest(Nest { items: vec![item], domain, reduced, vec, ahead: BTreeMap::new() }), time: 0, segment: 0 });
            }
        }
        for g in &groups {
            for v in self.writes(&g.1) {
                if let Some(zeros) = self.sums.get(&v) {
                    self.same.insert(v, *zeros);
                }
            }
        }
        let mut segments: Vec<Segment> = vec![];
        let mut phase = None;
        for (p, g) in groups {
            let laned = self.panels && self.has_lanes(&g);
            let open = if phase.replace(p) == Some(p) { segments.last_mut() } else { None };
            match (&g.work, open) {
                (Work::For(_), _) => segments.push(Segment::For(g)),
                (_, Some(Segment::Panels(list))) if laned => list.push(g),
                (_, Some(Segment::Straight(list))) if !laned => list.push(g),
                _ if laned => segments.push(Segment::Panels(vec![g])),
                _ => segments.push(Segment::Straight(vec![g])),
            }
        }
        let (laned, free): (Vec<Group>, Vec<Group>) = copies.into_iter().partition(|g| self.panels && self.has_lanes(g));
        match segments.last_mut() {
            Some(Segment::Panels(list)) => list.extend(laned),
            _ if !laned.is_empty() => segments.push(Segment::Panels(laned)),
            _ => {}
        }
        if !free.is_empty() {
            segments.push(Segment::Straight(free));
        }
        Ok(segments)
    }

    /// Between loops, what has no lanes before what has; and what needs a sum over all panels behind these. With the number of the phase:
    /// groups of one phase share a loop over panels.
    fn lanes_last(&self, groups: Vec<Group>) -> Vec<(usize, Group)> {
        let mut out: Vec<(usize, Group)> = vec![];
        let mut run: Vec<(usize, Group)> = vec![];
        // Per value of the run: its phase, and whether it is complete only behind it.
        let mut made: BTreeMap<V, (usize, bool)> = BTreeMap::new();
        let mut base = 0;
        for g in groups {
            if matches!(g.work, Work::For(_)) {
                run.sort_by_key(|(p, _)| *p);
                base = run.last().map_or(base, |(p, _)| p + 1);
                out.append(&mut run);
                out.push((base, g));
                base += 2 - base % 2;
                made.clear();
                continue;
            }
            let laned = self.panels && self.has_lanes(&g);
            let mut phase = base + usize::from(laned);
            for v in self.reads(&g) {
                if let Some(&(p, sum)) = made.get(&v) {
                    phase = phase.max(if p % 2 != usize::from(laned) { p + 1 } else if sum { p + 2 } else { p });
                }
            }
            for v in self.writes(&g) {
                made.insert(v, (phase, self.sums.contains_key(&v)));
            }
            run.push((phase, g));
        }
        run.sort_by_key(|(p, _)| *p);
        out.append(&mut run);
        out
    }

    /// Whether `item` reads a result of a reduction in `g`.
    fn reduces_into(&self, g: &Group, item: &Item) -> bool {
        let Work::Nest(n) = &g.work else { return true };
        let reads = self.operands(item);
        n.items.iter().any(|i| matches!(i.node, Node::Reduce(..)) && i.out.is_some_and(|v| reads.contains(&v)))
    }

    fn has_lanes(&self, g: &Group) -> bool {
        let Some(l) = self.lanes else { return false };
        match &g.work {
            Work::Nest(n) => n.domain.contains(&l),
            Work::Single(i) | Work::Edge(i) => i.out.into_iter().chain(self.operands(i)).any(|v| self.has(v, l)),
            Work::For(_) => false,
        }
    }

    /// Values in memory that a group reads.
    fn reads(&self, g: &Group) -> Vec<V> {
        let mut all: Vec<V> = match &g.work {
            Work::Nest(n) => {
                let own: BTreeSet<V> = n.items.iter().filter_map(|i| i.out).collect();
                // A copy at the end of a loop's body writes what others read.
                n.items.iter().flat_map(|i| self.operands(i)).filter(|v| !own.contains(v)).collect()
            }
            Work::Single(i) | Work::Edge(i) => self.operands(i),
            Work::For(l) => {
                let mut all: Vec<V> = vec![];
                for_groups(&l.body, &mut |g| all.extend(self.reads(g)));
                all.extend(l.carries.iter().flat_map(|(i, n)| [*i, *n]));
                all.extend(l.within.iter().flat_map(|c| c.scalars.iter().map(|(v, _)| self.v(*v))));
                all
            }
        };
        all.retain(|v| self.values[*v].inline.is_none());
        all.sort_unstable();
        all.dedup();
        all
    }
    fn writes(&self, g: &Group) -> Vec<V> {
        match &g.work {
            Work::Nest(n) => n.items.iter().filter_map(|i| i.out).collect(),
            Work::Single(i) | Work::Edge(i) => i.out.into_iter().collect(),
            Work::For(_) => vec![],
        }
    }

    // Places.

    /// Gives every group its time and segment; notes when values are written and last read.
    fn stamp(&mut self, body: &mut [Segment]) {
        for s in body {
            self.segments += 1;
            let segment = self.segments;
            let panels = matches!(s, Segment::Panels(_));
            let mut from_outside: Vec<V> = vec![];
            let groups: &mut [Group] = match s {
                Segment::Straight(g) | Segment::Panels(g) => g,
                Segment::For(g) => std::slice::from_mut(g),
            };
            for g in groups {
                self.clock += 1;
                g.time = self.clock;
                g.segment = segment;
                for v in self.writes(g) {
                    self.written.entry(v).or_insert((g.time, segment));
                }
                for v in self.reads(g) {
                    self.note_read(v, g.time, segment);
                    if let Some(&zeros) = self.sums.get(&v) {
                        self.note_read(zeros, g.time, segment);
                    }
                    if panels && self.written.get(&v).is_some_and(|(_, s)| *s != segment) {
                        from_outside.push(v);
                    }
                }
                if let Work::For(l) = &mut g.work {
                    let start = self.clock;
                    let mut inner = std::mem::take(&mut l.body);
                    self.stamp(&mut inner);
                    l.body = inner;
                    self.clock += 1;
                    let end = self.clock;
                    // What the loop reads from outside lives until its end.
                    let reads = self.reads(g);
                    for v in reads {
                        if self.written.get(&v).is_some_and(|(t, _)| *t < start) {
                            self.note_read(v, end, segment);
                        }
                    }
                }
            }
            // The next panel reads it again.
            for v in from_outside {
                self.note_read(v, self.clock, segment);
            }
        }
    }
    fn note_read(&mut self, v: V, time: usize, segment: usize) {
        let last = self.last.entry(v).or_insert(time);
        *last = (*last).max(time);
        if self.written.get(&v).is_some_and(|(_, s)| *s != segment) {
            self.crossing.insert(v);
        }
    }

    fn allocate(&mut self, body: &mut [Segment]) {
        // What is filled in place stands where its operand stands, which then must outlive the panel too.
        let mut pairs = vec![];
        edges(body, &mut pairs);
        for (value, out) in pairs {
            if self.crossing.contains(&out) {
                self.crossing.insert(value);
            }
        }
        let mut arena = Arena { slots: vec![], end: 0 };
        self.place(body, &mut arena);
        self.fixed_bytes = round_up(arena.end, 64) + 256;
        // Records of panels start on different cache sets.
        self.panel_bytes = round_up(self.panel_bytes, 64);
        if self.panel_bytes > 0 && self.panel_bytes.is_multiple_of(4096) {
            self.panel_bytes += 192;
        }
    }

    fn place(&mut self, body: &[Segment], arena: &mut Arena) {
        let groups = body.iter().flat_map(|s| match s {
            Segment::Straight(g) | Segment::Panels(g) => g.as_slice(),
            Segment::For(g) => std::slice::from_ref(g),
        });
        for g in groups {
            let reads = self.reads(g);
            arena.slots.iter_mut().for_each(|s| {
                if s.until < g.time {
                    s.owner = None;
                }
            });
            for v in self.writes(g) {
                if self.values[v].place.is_some() {
                    continue;
                }
                if let Some(&c) = self.same.get(&v) {
                    self.values[v].place = self.values[c].place;
                    continue;
                }
                let Some(&last) = self.last.get(&v) else {
                    // Read by nobody; a dot or a gather writes all the same.
                    if matches!(g.work, Work::Single(_)) {
                        let size = self.strides(v).1 * self.bytes(self.values[v].dtype);
                        let at = arena.take(round_up(size, 64), v, g.time, None);
                        self.values[v].place = Some(Place::Fixed(at));
                    }
                    continue;
                };
                if let Work::Nest(_) = g.work
                    && last == g.time
                {
                    continue;
                }
                if let Work::Edge(Item { node: Node::Fill { value, .. }, .. }) = &g.work {
                    self.values[v].place = self.values[*value].place;
                    if let Some(Place::Fixed(at)) = self.values[v].place {
                        arena.extend(at, v, last);
                    }
                    continue;
                }
                let size = round_up(self.strides(v).1 * self.bytes(self.values[v].dtype), 64);
                if self.panels && self.laned(v) && self.crossing.contains(&v) {
                    self.values[v].place = Some(Place::Panel(self.panel_bytes));
                    self.panel_bytes += size;
                    continue;
                }
                // The place of an operand that dies here and has the same layout, in a nest.
                let heir = match &g.work {
                    Work::Nest(n) if n.domain.iter().eq(self.values[v].axes.iter().collect::<BTreeSet<_>>()) => reads.iter().copied().find(|&o| {
                        self.last.get(&o) == Some(&g.time)
                            && self.values[o].axes == self.values[v].axes
                            && self.strides(o) == self.strides(v)
                            && self.bytes(self.values[o].dtype) == self.bytes(self.values[v].dtype)
                            && arena.slots.iter().any(|s| s.owner == Some(o))
                    }),
                    _ => None,
                };
                let at = arena.take(size, v, last, heir);
                self.values[v].place = Some(Place::Fixed(at));
            }
            if let Work::For(l) = &g.work {
                self.place(&l.body, arena);
            }
        }
    }
}

/// Slots of the part of scratch memory that all panels share.
struct Arena {
    slots: Vec<Slot>,
    end: usize,
}
struct Slot {
    at: usize,
    size: usize,
    owner: Option<V>,
    until: usize,
}

impl Arena {
    fn take(&mut self, size: usize, v: V, until: usize, heir: Option<V>) -> usize {
        let own = heir.and_then(|h| self.slots.iter().position(|s| s.owner == Some(h) && s.size >= size));
        let free = || self.slots.iter().enumerate().filter(|(_, s)| s.owner.is_none() && s.size >= size && s.size <= 2 * size + 256).min_by_key(|(_, s)| s.size).map(|(k, _)| k);
        let k = own.or_else(free).unwrap_or_else(|| {
            self.slots.push(Slot { at: self.end, size, owner: None, until: 0 });
            self.end += size;
            self.slots.len() - 1
        });
        self.slots[k].owner = Some(v);
        self.slots[k].until = until;
        self.slots[k].at
    }
    fn extend(&mut self, at: usize, v: V, until: usize) {
        for s in self.slots.iter_mut().filter(|s| s.at == at) {
            s.owner = Some(v);
            s.until = until;
        }
    }
}

fn edges(body: &[Segment], pairs: &mut Vec<(V, V)>) {
    for_groups(body, &mut |g| match &g.work {
        Work::Edge(Item { node: Node::Fill { value, .. }, out: Some(out) }) => pairs.push((*value, *out)),
        Work::For(l) => edges(&l.body, pairs),
        _ => {}
    });
}

fn reaches(before: &[BTreeSet<usize>], from: usize, to: usize) -> bool {
    // Does `from` need `to`?
    let mut seen = BTreeSet::new();
    let mut stack = vec![from];
    while let Some(k) = stack.pop() {
        if k == to {
            return true;
        }
        if seen.insert(k) {
            stack.extend(&before[k]);
        }
    }
    false
}

/// A lane axis for a program that names none: a `Block` axis, else a `Full` one; of those, the one along which most loads and
/// stores are contiguous.
fn pick_lanes(p: &Program) -> Option<AxisId> {
    fn views<'s>(body: &'s [Stmt], f: &mut dyn FnMut(&'s View)) {
        for s in body {
            match s {
                Stmt::Let(_, Op::Load(v)) | Stmt::Store(v, _) => f(v),
                Stmt::For(l) => views(&l.body, f),
                Stmt::Let(..) => {}
            }
        }
    }
    let mut contiguous: HashMap<AxisId, usize> = HashMap::new();
    views(&p.body, &mut |v| v.strides.iter().filter(|(_, s)| s.is_one()).for_each(|(a, _)| *contiguous.entry(*a).or_default() += 1));
    let rank = |a: &AxisId| match p.axis(*a).role {
        Role::Block(n) => Some((2, contiguous.get(a).copied().unwrap_or(0), n.min(64))),
        Role::Full(n) if n > 1 => Some((1, contiguous.get(a).copied().unwrap_or(0), n)),
        _ => None,
    };
    (0..p.axes.len()).map(|k| AxisId(k as u32)).filter(|a| rank(a).is_some()).max_by_key(|a| rank(a))
}

fn any(body: &[Stmt], f: &dyn Fn(&Stmt) -> bool) -> bool {
    body.iter().any(|s| f(s) || matches!(s, Stmt::For(l) if any(&l.body, f)))
}

fn for_groups(body: &[Segment], f: &mut dyn FnMut(&Group)) {
    for s in body {
        match s {
            Segment::Straight(g) | Segment::Panels(g) => g.iter().for_each(&mut *f),
            Segment::For(g) => f(g),
        }
    }
}
