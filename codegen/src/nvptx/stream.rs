//! Statements in order, and loops over streamed axes: tiles are copied some iterations ahead, into as many stages as the schedule
//! has, and masks are applied only where an edge crosses the tile.

use super::emit::{Emit, I32};
use super::plan::{Dot, Rank, Step, Stream};
use super::value::{Body, Tail, Value, tail_of};
use super::warpgroup::late;
use crate::Error;
use ir::prim::Elementwise;
use ir::tile::{AxisId, Constraint, Op, Role, ValueId};
use ir::types::DType;
use std::f64::consts::LOG2_E;

impl Emit<'_> {
    /// The whole body of one instance.
    pub fn kernel(&mut self) -> Result<(), Error> {
        let plan = self.plan;
        let last = plan.body.iter().rposition(|s| !matches!(s, Step::Store(..) | Step::Let(_, Op::Map(..) | Op::Load(_) | Op::Const(_) | Op::Size(_) | Op::Position(_))));
        let (before, after) = plan.body.split_at(last.map_or(0, |i| i + 1));
        if plan.schedule.persistent {
            return self.persistent(before, after);
        }
        let index = self.t.entry("nvvm.read.ptx.sreg.ctaid.x : i32".into());
        self.begin_tile(index)?;
        if plan.ring.is_some() {
            return self.by_warpgroups(before, after);
        }
        self.steps(before)?;
        self.in_windows(after)
    }

    /// Axes that tiles of the grid are along, and how many elements a tile has.
    pub fn parallel(&self) -> Vec<(AxisId, usize)> {
        self.plan.p.axes.iter().enumerate().filter_map(|(i, a)| match a.role {
            Role::Grid => Some((AxisId(i as u32), 1)),
            Role::Block(n) => Some((AxisId(i as u32), n)),
            Role::Stream(_) | Role::Full(_) => None,
        }).collect()
    }
    /// Tiles along an axis, computed on entry.
    fn tiles_along(&mut self, axis: AxisId, tile: usize) -> Result<String, Error> {
        let size = self.size(axis)?;
        if tile == 1 {
            return Ok(size);
        }
        // Blocks of a cluster come in pairs.
        let pair = if self.plan.schedule.multicast && Some(axis) == self.plan.rows { 2 } else { 1 };
        let n = self.entry("addi", &size, pair * tile - 1);
        let n = self.entry("divui", &n, pair * tile);
        Ok(if pair > 1 { self.entry("muli", &n, pair) } else { n })
    }
    /// Tiles of the grid, computed on entry.
    pub fn tiles(&mut self) -> Result<String, Error> {
        let mut all = self.k(1);
        for (a, tile) in self.parallel() {
            let n = self.tiles_along(a, tile)?;
            all = self.t.entry(format!("arith.muli {all}, {n} : i32"));
        }
        Ok(all)
    }
    /// The first position along every parallel axis of tile number `rest` of the grid, of whose axes the last one is fastest.
    pub fn begin_tile(&mut self, mut rest: String) -> Result<(), Error> {
        let plan = self.plan;
        let zero = self.k(0);
        self.start = vec![zero; plan.p.axes.len()];
        for (at, (axis, tile)) in self.parallel().into_iter().enumerate().rev() {
            let count = self.tiles_along(axis, tile)?;
            let index = if at == 0 { rest.clone() } else { self.i("remui", &rest, &count) };
            if at > 0 {
                rest = self.i("divui", &rest, &count);
            }
            // Where later tiles have the longer loops, they go first: the grid's last blocks are then short ones.
            let index = if plan.grows_along(axis) {
                let last = self.ik("subi", &count, 1);
                self.i("subi", &last, &index)
            } else {
                index
            };
            self.start[axis.index()] = self.ik("muli", &index, tile);
        }
        Ok(())
    }

    /// Elementwise statements at the end, a few column slots at a time: each window is computed and stored before the next, so
    /// that few intermediate values are in registers.
    pub fn in_windows(&mut self, steps: &[Step]) -> Result<(), Error> {
        const ELEMENTS: usize = 8;
        let plan = self.plan;
        let rank = |s: &Step| match s {
            Step::Let(v, _) => plan.rank(*v),
            Step::Store(view, _) => super::plan::rank_of(plan.rows, &super::plan::stored(&plan.p, view)).unwrap_or(Rank::NONE),
            _ => Rank::NONE,
        };
        let mut axes: Vec<AxisId> = steps.iter().filter_map(|s| rank(s).col).collect();
        axes.sort();
        axes.dedup();
        let width = (ELEMENTS / plan.fragment.rows).max(plan.fragment.vector).next_multiple_of(plan.fragment.vector);
        let [axis] = axes.as_slice() else { return self.steps(steps) };
        let slots = plan.slots[axis.index()];
        let staged = steps.iter().any(|s| matches!(s, Step::Let(v, _) if plan.staged.contains_key(v) || plan.packed.contains(v)));
        if slots <= width || staged {
            return self.steps(steps);
        }
        // What every window needs, once. A store without columns may read only such.
        for s in steps.iter().filter(|s| rank(s).col.is_none()) {
            self.steps(std::slice::from_ref(s))?;
        }
        let outer = self.env.clone();
        for from in (0..slots).step_by(width) {
            let n = width.min(slots - from);
            self.env = outer.iter().map(|v| v.as_ref().map(|v| self.part(v, *axis, from, n))).collect();
            self.window = Some((*axis, from, n));
            for s in steps.iter().filter(|s| rank(s).col.is_some()) {
                self.steps(std::slice::from_ref(s))?;
            }
            self.window = None;
        }
        self.env = outer;
        Ok(())
    }

    /// The column slots `from..from + n` of `v`, if it has `axis`.
    fn part(&self, v: &Value, axis: AxisId, from: usize, n: usize) -> Value {
        if v.rank.col != Some(axis) {
            return v.clone();
        }
        let rows = if v.rank.rows { self.plan.fragment.rows } else { 1 };
        let cut = |r: &std::rc::Rc<Vec<String>>| std::rc::Rc::new(r[from * rows..(from + n) * rows].to_vec());
        let body = match &v.body {
            Body::Num(x) => Body::Num(*x),
            Body::Regs(r) => Body::Regs(cut(r)),
            Body::Affine { base, scale, offset } => Body::Affine {
                base: cut(base),
                scale: Box::new(self.part(scale, axis, from, n)),
                offset: offset.as_ref().map(|o| Box::new(self.part(o, axis, from, n))),
            },
        };
        Value { body, ..v.clone() }
    }

    pub fn steps(&mut self, steps: &[Step]) -> Result<(), Error> {
        steps.iter().try_for_each(|s| match s {
            Step::Let(v, op) => self.let_value(*v, op),
            Step::Products(v) => self.products(v),
            Step::Issue(i) => {
                if i.begins {
                    self.begin_turn();
                }
                self.issue(i)?;
                if i.ends {
                    self.end_turn();
                }
                Ok(())
            }
            Step::Store(view, v) => {
                let x = self.settled(*v)?;
                self.store(view, &x)
            }
            Step::For(l) => self.stream(l),
        })
    }

    /// Gives `v` its registers; as a left operand, packed at once, so that the unpacked ones may go.
    pub fn define(&mut self, v: ValueId, x: Value) -> Result<(), Error> {
        self.env[v.index()] = Some(x);
        self.packed.remove(&v);
        if self.plan.tensor && self.plan.packed.contains(&v) {
            let k = self.plan.rank(v).col.ok_or_else(|| Error::Internal("a left operand without columns".into()))?;
            self.packed(v, k)?;
        }
        Ok(())
    }

    fn let_value(&mut self, v: ValueId, op: &Op) -> Result<(), Error> {
        let plan = self.plan;
        let info = plan.p.value(v);
        let dtype = if info.dtype.is_float() { DType::F32 } else { info.dtype };
        let x = match op {
            Op::Const(x) => Value::num(*x, dtype),
            Op::Size(d) => match d.as_fixed() {
                Some(n) => Value::num(n as f64, dtype),
                None => {
                    let n = self.dim32(d)?;
                    let n = if dtype == DType::F32 { self.to_float(&n) } else { n };
                    Value::regs(Rank::NONE, dtype, Tail::Finite, vec![n])
                }
            },
            Op::Position(a) => self.positions(*a)?,
            Op::Load(view) => {
                if let Some(s) = plan.staged.get(&v)
                    && !plan.looped.contains(&v)
                    && plan.ring.is_none()
                {
                    let base = self.shared_base();
                    let to = self.entry("addi", &base, s.at);
                    self.copy(s, &to)?;
                    self.t.line("nvvm.cp.async.commit.group");
                    self.pending = true;
                }
                if plan.staged.contains_key(&v) && !plan.in_registers.contains(&v) || plan.direct.contains(&v) {
                    return Ok(());
                }
                if plan.vectors.contains_key(&v) {
                    return self.column(v).and_then(|x| self.define(v, x));
                }
                self.load(v, view)?
            }
            Op::Map(e, args) => {
                let mut x = vec![];
                for a in args {
                    x.push(self.get(*a)?);
                }
                match x.as_slice() {
                    [x] if plan.low.contains(&v) && x.rank.col.is_some() => {
                        let tail = tail_of(*e, &[x.tail]);
                        let scaled = self.map(Elementwise::Mul, &[x.clone(), Value::num(LOG2_E, DType::F32)])?;
                        let scaled = self.settle(&scaled);
                        self.shared_exp2(&scaled, tail)
                    }
                    x => self.map(*e, x)?,
                }
            }
            Op::Reduce(kind, x, over) => {
                let axis = match over.as_slice() {
                    [a] if Some(*a) != plan.rows => *a,
                    _ => return Err(super::refused(&plan.p, "a reduction over rows, or over two axes at once")),
                };
                let need = if *kind == ir::prim::ReduceKind::Sum { Tail::Zero } else { Tail::Low };
                let x = self.neutral(*x, axis, need)?;
                self.reduce(*kind, &x)?
            }
            Op::Dot { terms, sum, .. } => match &plan.dots[&v] {
                Dot::Row => self.row_dot(v, terms, sum[0])?,
                Dot::Direct => self.direct(v, terms, sum)?,
                Dot::Matrix { .. } => return self.products(&[v]),
            },
            Op::Fill { value, fill, keep } => self.fill(*value, *fill, keep, plan.rank(v))?,
        };
        self.define(v, x)
    }

    fn positions(&mut self, a: AxisId) -> Result<Value, Error> {
        let start = self.start[a.index()].clone();
        if self.plan.p.axis(a).role == Role::Grid {
            return Ok(Value::regs(Rank::NONE, DType::I32, Tail::Finite, vec![start]));
        }
        let at = self.place();
        let rank = if Some(a) == self.plan.rows { Rank { rows: true, col: None } } else { Rank { rows: false, col: Some(a) } };
        let first = if rank.rows { at.row.clone() } else { self.first_col(&at, a).clone() };
        let first = self.i("addi", &start, &first);
        let (rows, cols) = self.shape(rank);
        let f = self.plan.fragment;
        let offsets: Vec<usize> = if rank.rows { (0..rows).map(|r| f.row_offset(r)).collect() } else { (0..cols).map(|c| self.col_offset(c)).collect() };
        let regs = offsets.into_iter().map(|o| self.ik("addi", &first, o)).collect();
        Ok(Value::regs(rank, DType::I32, Tail::Finite, regs))
    }

    /// `v` with what is neutral beyond the end of `axis`, remembered.
    pub fn neutral(&mut self, v: ValueId, axis: AxisId, need: Tail) -> Result<Value, Error> {
        let x = self.get(v)?;
        let y = self.masked(&x, axis, need)?;
        if y.tail != x.tail {
            self.env[v.index()] = Some(y.clone());
        }
        Ok(y)
    }

    /// `x` with zeros (or numbers, or −∞) beyond the end of `axis`.
    pub fn masked(&mut self, x: &Value, axis: AxisId, need: Tail) -> Result<Value, Error> {
        let enough = x.tail == need || need == Tail::Finite && x.tail == Tail::Zero;
        if x.rank.col != Some(axis) || self.whole(axis) || enough {
            return Ok(x.clone());
        }
        let (fill, tail) = if need == Tail::Low { (f64::NEG_INFINITY, Tail::Low) } else { (0.0, Tail::Zero) };
        let edge = self.crosses(axis)?;
        self.select(x, fill, tail, edge, &[], &[axis])
    }

    /// Whether the tile of `axis` reaches beyond its end; `None`: it does.
    fn crosses(&mut self, axis: AxisId) -> Result<Option<String>, Error> {
        if matches!(self.plan.p.axis(axis).role, Role::Full(_)) {
            return Ok(None);
        }
        let (size, start) = (self.size(axis)?, self.start[axis.index()].clone());
        let end = self.ik("addi", &start, self.plan.p.axis(axis).extent());
        Ok(Some(self.cmp("sgt", &end, &size)))
    }

    /// `x` where every constraint holds and every axis of `inside` exists; elsewhere `fill`. Under `edge`, if that is given.
    fn select(&mut self, x: &Value, fill: f64, tail: Tail, edge: Option<String>, keep: &[Constraint], inside: &[AxisId]) -> Result<Value, Error> {
        // A shared positive factor leaves 0 and −∞ as they are.
        let (inner, outer) = match &x.body {
            Body::Affine { base, scale, offset } if scale.as_num().is_some_and(|s| s > 0.0) && (offset.is_none() || fill == f64::NEG_INFINITY) => {
                (Value { body: Body::Regs(base.clone()), ..x.clone() }, Some((scale.clone(), offset.clone())))
            }
            _ => (self.settle(x), None),
        };
        let rank = inner.rank;
        let regs = self.spread(&inner, rank);
        let ty = crate::text::Ty::of(x.dtype, None);
        let types = vec![ty.to_string(); regs.len()].join(", ");
        let result = edge.as_ref().map(|_| self.t.fresh());
        if let (Some(r), Some(e)) = (&result, &edge) {
            self.t.line(format_args!("{r}:{} = scf.if {e} -> ({types}) {{", regs.len()));
        }
        let at = self.place();
        // Per constraint: its value at the thread's first slots, and how it changes per slot.
        let mut tests: Vec<(String, i64, i64)> = vec![];
        for c in keep {
            let mut sum = self.base(c, &[])?;
            let (mut by_row, mut by_col) = (0, 0);
            for (a, k) in &c.axes {
                if self.plan.p.axis(*a).role == Role::Grid {
                    continue;
                }
                let first = if Some(*a) == self.plan.rows {
                    by_row += k;
                    at.row.clone()
                } else {
                    by_col += k;
                    self.first_col(&at, *a).clone()
                };
                let k = self.k(*k);
                let x = self.i("muli", &first, &k);
                sum = self.i("addi", &sum, &x);
            }
            tests.push((sum, by_row, by_col));
        }
        for a in inside {
            // size − 1 − position ≥ 0
            let (size, start) = (self.size(*a)?, self.start[a.index()].clone());
            let x = self.i("subi", &size, &start);
            let first = self.first_col(&at, *a).clone();
            let x = self.i("subi", &x, &first);
            let x = self.ik("subi", &x, 1);
            tests.push((x, 0, -1));
        }
        let f = self.plan.fragment;
        let fixed = inside.first().filter(|a| edge.is_none() && matches!(self.plan.p.axis(**a).role, Role::Full(_))).map(|a| self.plan.p.axis(*a).extent());
        let out = self.choose(&regs, rank, x.dtype, fill, &mut |e, c, r| {
            // Columns that exist in every lane need no test.
            if fixed.is_some_and(|n| e.plan.split.is_empty() && e.col_offset(c) + (f.lanes - 1) * f.vector < n) {
                return None;
            }
            let mut all = None;
            for (x, by_row, by_col) in &tests {
                let offset = by_row * f.row_offset(r) as i64 + by_col * e.col_offset(c) as i64;
                let k = e.k(-offset);
                let ok = e.cmp("sge", x, &k);
                all = e.and(all, ok);
            }
            all
        });
        let out = match result {
            None => out,
            Some(r) => {
                self.t.line(format_args!("scf.yield {} : {types}", out.join(", ")));
                self.t.line("} else {");
                self.t.line(format_args!("scf.yield {} : {types}", regs.join(", ")));
                self.t.line("}");
                (0..regs.len()).map(|i| format!("{r}#{i}")).collect()
            }
        };
        let base = std::rc::Rc::new(out);
        Ok(match outer {
            None => Value { rank, dtype: x.dtype, tail, body: Body::Regs(base) },
            Some((scale, offset)) => Value { rank, dtype: x.dtype, tail, body: Body::Affine { base, scale, offset } },
        })
    }

    /// A constraint's left side at the first position of every axis of the tile but `without`.
    fn base(&mut self, c: &Constraint, without: &[AxisId]) -> Result<String, Error> {
        let mut sum = self.dim32(&c.constant)?;
        for (a, k) in c.axes.iter().filter(|(a, _)| !without.contains(a)) {
            let (start, k) = (self.start[a.index()].clone(), self.k(*k));
            let x = self.i("muli", &start, &k);
            sum = self.i("addi", &sum, &x);
        }
        for (v, k) in &c.scalars {
            let v = self.get(*v)?;
            let (v, k) = (self.elem(&v, 0, 0), self.k(*k));
            let x = self.i("muli", &v, &k);
            sum = self.i("addi", &sum, &x);
        }
        Ok(sum)
    }

    fn fill(&mut self, value: ValueId, fill: f64, keep: &[Constraint], rank: Rank) -> Result<Value, Error> {
        let mut x = self.get(value)?;
        if x.rank != rank || x.as_num().is_some() {
            let regs = self.spread(&x, rank);
            x = Value::regs(rank, x.dtype, x.tail_in(rank), regs);
        }
        // The tail gets the same, so that a reduction needs no mask of its own.
        let streamed: Vec<AxisId> = rank.col.into_iter().filter(|a| !matches!(self.plan.p.axis(*a).role, Role::Full(_)) && !self.whole(*a)).collect();
        let mut edge: Option<String> = None;
        let zero = self.k(0);
        for c in keep {
            let mut least = self.base(c, &[])?;
            for (a, k) in c.axes.iter().filter(|(_, k)| *k < 0) {
                if self.plan.p.axis(*a).role != Role::Grid {
                    let far = self.k(k * (self.plan.p.axis(*a).extent() as i64 - 1));
                    least = self.i("addi", &least, &far);
                }
            }
            let e = self.cmp("slt", &least, &zero);
            edge = self.either(edge, e);
        }
        for a in &streamed {
            if let Some(e) = self.crosses(*a)? {
                edge = self.either(edge, e);
            }
        }
        let tail = match (streamed.is_empty(), fill) {
            (true, _) => Tail::Any,
            (_, 0.0) => Tail::Zero,
            (_, f64::NEG_INFINITY) => Tail::Low,
            _ => Tail::Finite,
        };
        self.select(&x, fill, tail, edge, keep, &streamed)
    }
    fn either(&mut self, a: Option<String>, b: String) -> Option<String> {
        Some(match a {
            None => b,
            Some(a) => self.t.op(format_args!("arith.ori {a}, {b} : i1")),
        })
    }

    /// First and last tile, plus one, of those that hold something.
    pub fn bounds(&mut self, l: &Stream) -> Result<(String, String), Error> {
        let tile = self.plan.p.axis(l.axis).extent();
        let size = self.size(l.axis)?;
        let zero = self.k(0);
        let mut from = zero.clone();
        let to = self.ik("addi", &size, tile - 1);
        let mut to = self.ik("divui", &to, tile);
        for c in &l.within {
            let coef: i64 = c.axes.iter().filter(|(a, _)| *a == l.axis).map(|(_, k)| k).sum();
            // The greatest value with the streamed axis at 0.
            let mut most = self.base(c, &[l.axis])?;
            for (a, k) in c.axes.iter().filter(|(a, k)| *k > 0 && *a != l.axis) {
                if self.plan.p.axis(*a).role != Role::Grid {
                    let (size, start) = (self.size(*a)?, self.start[a.index()].clone());
                    let left = self.i("subi", &size, &start);
                    let extent = self.k(self.plan.p.axis(*a).extent() as i64);
                    let left = self.i("minsi", &left, &extent);
                    let left = self.ik("subi", &left, 1);
                    let k = self.k(*k);
                    let far = self.i("muli", &left, &k);
                    most = self.i("addi", &most, &far);
                }
            }
            if coef > 0 {
                let least = self.i("subi", &zero, &most);
                let least = self.i("maxsi", &least, &zero);
                let least = self.ik("addi", &least, coef as usize - 1);
                let least = self.ik("divui", &least, coef as usize);
                let first = self.ik("divui", &least, tile);
                from = self.i("maxsi", &from, &first);
            } else {
                if coef < 0 {
                    let some = self.i("maxsi", &most, &zero);
                    let last = self.ik("divui", &some, (-coef) as usize);
                    let end = self.ik("divui", &last, tile);
                    let end = self.ik("addi", &end, 1);
                    to = self.i("minsi", &to, &end);
                }
                let none = self.cmp("slt", &most, &zero);
                to = self.t.op(format_args!("arith.select {none}, {zero}, {to} : i32"));
            }
        }
        Ok((from, to))
    }

    /// Copies every staged load of the loop for tile `tile` into the stage at address `to`, if the tile exists.
    fn prefetch(&mut self, l: &Stream, tile: &str, end: &str, to: &str) -> Result<(), Error> {
        let extent = self.plan.p.axis(l.axis).extent();
        let exists = self.cmp("slt", tile, end);
        let start = self.ik("muli", tile, extent);
        let outer = std::mem::replace(&mut self.start[l.axis.index()], start);
        self.when(Some(&exists), |e| {
            for v in &l.staged {
                let s = &e.plan.staged[v];
                let to = e.ik("addi", to, s.at);
                e.copy(s, &to)?;
            }
            Ok(())
        })?;
        self.start[l.axis.index()] = outer;
        self.t.line("nvvm.cp.async.commit.group");
        Ok(())
    }

    fn stream(&mut self, l: &Stream) -> Result<(), Error> {
        let plan = self.plan;
        if let Some(late) = late(l) {
            return self.lagging(l, late);
        }
        let (from, to) = self.bounds(l)?;
        let stages = plan.schedule.stages;
        let [region, stage_bytes, _] = plan.shared;
        let staged = !l.staged.is_empty();
        let base = self.shared_base();
        let base = self.entry("addi", &base, region);
        // Carried values, at their full rank.
        let mut carried: Vec<(Rank, DType, Vec<String>)> = vec![];
        for c in &l.carries {
            let rank = plan.rank(c.init);
            let x = self.get(c.init)?;
            carried.push((rank, x.dtype, self.spread(&x, rank)));
        }
        let ring = staged && plan.ring.is_some();
        let turns = ring && plan.schedule.turns;
        if turns {
            self.begin_turn();
        }
        if staged && !ring {
            // A loop before this one may still be read.
            self.barrier();
            for s in 0..stages - 1 {
                let tile = self.ik("addi", &from, s);
                let at = self.ik("addi", &base, s * stage_bytes);
                self.prefetch(l, &tile, &to, &at)?;
            }
        }
        let mut names: Vec<String> = carried.iter().flat_map(|c| c.2.clone()).collect();
        let mut types: Vec<String> = carried.iter().flat_map(|c| vec![crate::text::Ty::of(c.1, None).to_string(); c.2.len()]).collect();
        // The stage, and in a ring whether it has been gone through an odd number of times.
        let first = if ring { self.ring_position() } else { vec![self.k(0)] };
        let place = names.len()..names.len() + first.len();
        types.extend(vec![I32.to_string(); first.len()]);
        names.extend(first);
        let (i, r) = (self.t.fresh(), self.t.fresh());
        let inside: Vec<String> = names.iter().map(|_| self.t.fresh()).collect();
        let args: Vec<String> = inside.iter().zip(&names).map(|(a, b)| format!("{a} = {b}")).collect();
        let one = self.k(1);
        self.t.line(format_args!("{r}:{} = scf.for {i} = {from} to {to} step {one} iter_args({}) -> ({}) : i32 {{", names.len(), args.join(", "), types.join(", ")));
        let outer = (self.start[l.axis.index()].clone(), self.stage.clone(), self.env.clone(), self.packed.clone(), self.pending);
        let slot = inside[place.start].clone();
        let mut next = vec![slot.clone()];
        if ring {
            next = self.enter(&base, &inside[place.clone()]);
            self.is_last(&i, &to);
        } else if staged {
            let here = self.ik("muli", &slot, stage_bytes);
            let here = self.i("addi", &base, &here);
            if stages == 1 {
                self.barrier();
                self.prefetch(l, &i, &to, &here)?;
                self.t.line("nvvm.cp.async.wait.group 0");
                self.barrier();
            } else {
                self.t.line(format_args!("nvvm.cp.async.wait.group {}", stages - 2));
                self.barrier();
                let ahead = self.ik("addi", &i, stages - 1);
                // The stage before the present one is free.
                let before = self.wrap(&slot, stages - 1, stages);
                let at = self.ik("muli", &before, stage_bytes);
                let at = self.i("addi", &base, &at);
                self.prefetch(l, &ahead, &to, &at)?;
                next = vec![self.wrap(&slot, 1, stages)];
            }
            self.stage = Some(here);
            self.pending = false;
        }
        let extent = plan.p.axis(l.axis).extent();
        self.start[l.axis.index()] = self.ik("muli", &i, extent);
        let mut at = 0;
        for (c, (rank, dtype, regs)) in l.carries.iter().zip(&carried) {
            let x = Value::regs(*rank, *dtype, Tail::Any, inside[at..at + regs.len()].to_vec());
            self.env[c.inside.index()] = Some(x);
            at += regs.len();
        }
        self.steps(&l.body)?;
        if ring {
            self.leave();
        }
        let mut yields = vec![];
        for (c, (rank, ..)) in l.carries.iter().zip(&carried) {
            let x = self.get(c.next)?;
            yields.extend(self.spread(&x, *rank));
        }
        yields.extend(next);
        self.t.line(format_args!("scf.yield {} : {}", yields.join(", "), types.join(", ")));
        self.t.line("}");
        (self.start[l.axis.index()], self.stage, self.env, self.packed, self.pending) = outer;
        // What was reduced in the loop is not seen behind it.
        self.flight.reduced.clear();
        self.flight.made.clear();
        if ring {
            self.flight.position = Some(place.map(|n| format!("{r}#{n}")).collect());
            self.free_outer_unread(&from, &to)?;
        }
        if turns {
            self.end_turns()?;
        }
        if staged && !ring {
            self.t.line("nvvm.cp.async.wait.group 0");
        }
        let mut at = 0;
        for (c, (rank, dtype, regs)) in l.carries.iter().zip(&carried) {
            let after = (at..at + regs.len()).map(|i| format!("{r}#{i}")).collect();
            self.define(c.after, Value::regs(*rank, *dtype, Tail::Any, after))?;
            at += regs.len();
        }
        Ok(())
    }

    /// `(slot + by) mod stages`
    pub fn wrap(&mut self, slot: &str, by: usize, stages: usize) -> String {
        let x = self.ik("addi", slot, by);
        let k = self.k(stages as i64);
        let over = self.cmp("sge", &x, &k);
        let less = self.ik("subi", &x, stages);
        self.t.op(format_args!("arith.select {over}, {less}, {x} : i32"))
    }
}
