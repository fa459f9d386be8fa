//! Products without tensor cores: register tiles of fused multiply-adds over shared memory, exact in f32; and, for what is no
//! product of matrices, serial sums over operands in global memory.

use super::dot::Product;
use super::emit::{Emit, memory_type};
use super::plan::Rank;
use super::value::{Tail, Value};
use crate::Error;
use ir::prim::Elementwise;
use ir::tile::{AxisId, Op, Role, Stmt, ValueId, View};
use ir::types::DType;
use std::collections::BTreeMap;

/// An operand of a step: addresses per slot, and bytes to the next of the summed axis.
struct Operand {
    slots: Vec<String>,
    next: usize,
    /// The summed axis is contiguous: four elements are one load.
    wide: bool,
}

impl Emit<'_> {
    /// `acc[n, rows] += left[rows, k] · right[n, k]`, k in order.
    pub fn by_fma(&mut self, group: &[Product], n: AxisId, k: AxisId, acc: &mut [Vec<String>]) -> Result<(), Error> {
        let plan = self.plan;
        let rank = Rank { rows: true, col: Some(n) };
        let (rows, cols) = self.shape(rank);
        let f = plan.fragment;
        let mut tiles: BTreeMap<(ValueId, bool), Operand> = BTreeMap::new();
        for (l, r) in group.iter().flat_map(|g| &g.1) {
            for (v, left) in [(*l, true), (*r, false)] {
                let Some(s) = plan.staged.get(&v) else { continue };
                if tiles.contains_key(&(v, left)) {
                    continue;
                }
                let at = self.place();
                let first = if left { at.row.clone() } else { self.first_col(&at, n).clone() };
                let offsets: Vec<usize> = if left { (0..rows).map(|r| f.row_offset(r)).collect() } else { (0..cols).map(|c| self.col_offset(c)).collect() };
                let (_, region) = self.region(v);
                let wide = s.axes[1] == k;
                let (mine, next) = if wide { (s.tile.pitch(0), s.tile.elem) } else { (s.tile.elem, s.tile.pitch(0)) };
                let first = self.ik("muli", &first, mine);
                let base = self.i("addi", &region, &first);
                let base = self.shared(&base);
                let slots = offsets.iter().map(|o| self.step(&base, 3, s.at + o * mine)).collect();
                tiles.insert((v, left), Operand { slots, next, wide });
            }
        }
        let in_registers: Vec<ValueId> = group.iter().flat_map(|g| &g.1).map(|t| t.0).filter(|l| !plan.staged.contains_key(l)).collect();
        let extent = plan.p.axis(k).extent();
        if in_registers.is_empty() {
            // A loop of steps of four.
            let flat: Vec<String> = acc.iter().flatten().cloned().collect();
            let types = vec!["f32"; flat.len()].join(", ");
            let inside: Vec<String> = flat.iter().map(|_| self.t.fresh()).collect();
            let args: Vec<String> = inside.iter().zip(&flat).map(|(a, b)| format!("{a} = {b}")).collect();
            let (i, r) = (self.t.fresh(), self.t.fresh());
            let (from, to, by) = (self.k(0), self.k(extent.next_multiple_of(4) as i64), self.k(4));
            self.t.line(format_args!("{r}:{} = scf.for {i} = {from} to {to} step {by} iter_args({}) -> ({types}) : i32 {{", flat.len(), args.join(", ")));
            let mut inner: Vec<Vec<String>> = vec![];
            let mut rest = inside.as_slice();
            for a in acc.iter() {
                let (x, y) = rest.split_at(a.len());
                inner.push(x.to_vec());
                rest = y;
            }
            let mut values: BTreeMap<(ValueId, bool), Vec<Vec<String>>> = BTreeMap::new();
            for (key, o) in &tiles {
                let off = self.ik("muli", &i, o.next);
                let slots: Vec<String> = o.slots.iter().map(|s| self.t.op(format_args!("llvm.getelementptr {s}[{off}] : (!llvm.ptr<3>, i32) -> !llvm.ptr<3>, i8"))).collect();
                let x = slots.iter().map(|s| self.four(s, o)).collect();
                values.insert(*key, x);
            }
            for step in 0..4 {
                for ((_, terms), acc) in group.iter().zip(inner.iter_mut()) {
                    for (l, r) in terms {
                        let (a, b) = (&values[&(*l, true)], &values[&(*r, false)]);
                        for c in 0..cols {
                            for row in 0..rows {
                                let at = c * rows + row;
                                acc[at] = self.fma(&a[row][step], &b[c][step], &acc[at]);
                            }
                        }
                    }
                }
            }
            self.t.line(format_args!("scf.yield {} : {types}", inner.concat().join(", ")));
            self.t.line("}");
            let mut at = 0;
            for a in acc.iter_mut().flatten() {
                *a = format!("{r}#{at}");
                at += 1;
            }
            return Ok(());
        }
        // Left operands in registers: a lane's element goes to the lanes of its row.
        let mut left: BTreeMap<ValueId, Vec<String>> = BTreeMap::new();
        for v in &in_registers {
            if left.contains_key(v) {
                continue;
            }
            let x = self.neutral(*v, k, Tail::Finite)?;
            let x = self.settle(&x);
            left.insert(*v, self.spread(&x, Rank { rows: true, col: Some(k) }));
        }
        let slots = plan.slots[k.index()];
        let tid = self.tid();
        let mask = self.k(31 - (f.lanes as i64 - 1));
        let group_lane = self.i("andi", &tid, &mask);
        for c in 0..slots {
            for lane in 0..f.lanes {
                let at = f.col_offset(c) + lane * f.vector;
                if at >= extent {
                    continue;
                }
                let from = self.ik("addi", &group_lane, lane);
                let mut a: BTreeMap<ValueId, Vec<String>> = BTreeMap::new();
                for (v, x) in &left {
                    let mut rows_of = vec![];
                    for r in 0..rows {
                        let (all, seg) = (self.k(-1), self.k(31));
                        rows_of.push(self.t.op(format_args!("nvvm.shfl.sync idx {all}, {}, {from}, {seg} : f32 -> f32", x[c * rows + r])));
                    }
                    a.insert(*v, rows_of);
                }
                let mut b: BTreeMap<(ValueId, bool), Vec<String>> = BTreeMap::new();
                for (key, o) in &tiles {
                    let x = o.slots.iter().map(|s| {
                        let p = self.step(s, 3, at * o.next);
                        self.t.op(format_args!("llvm.load {p} {{alignment = 4 : i64}} : !llvm.ptr<3> -> f32"))
                    }).collect();
                    b.insert(*key, x);
                }
                for ((_, terms), acc) in group.iter().zip(acc.iter_mut()) {
                    for (l, r) in terms {
                        let (x, y) = (a.get(l).unwrap_or_else(|| &b[&(*l, true)]), &b[&(*r, false)]);
                        for c in 0..cols {
                            for row in 0..rows {
                                let at = c * rows + row;
                                acc[at] = self.fma(&x[row], &y[c], &acc[at]);
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Four elements along the summed axis.
    fn four(&mut self, p: &str, o: &Operand) -> Vec<String> {
        if o.wide {
            let v = self.t.op(format_args!("llvm.load {p} {{alignment = 16 : i64}} : !llvm.ptr<3> -> vector<4xf32>"));
            return (0..4)
                .map(|i| {
                    let at = self.k(i);
                    self.t.op(format_args!("llvm.extractelement {v}[{at} : i32] : vector<4xf32>"))
                })
                .collect();
        }
        (0..4)
            .map(|i| {
                let q = self.step(p, 3, i * o.next);
                self.t.op(format_args!("llvm.load {q} {{alignment = 4 : i64}} : !llvm.ptr<3> -> f32"))
            })
            .collect()
    }

    /// A dot whose operands stay in global memory: every thread sums for each of its slots.
    pub fn direct(&mut self, v: ValueId, terms: &[(ValueId, ValueId)], sum: &[AxisId]) -> Result<Value, Error> {
        let rank = self.plan.rank(v);
        let (rows, cols) = self.shape(rank);
        let mut acc = self.init(v, rank)?;
        for (a, b) in terms {
            let views = [self.view_of(*a)?, self.view_of(*b)?];
            // Addresses of every slot, at the first of the summed axes.
            let mut slots: Vec<Vec<String>> = vec![];
            for view in &views {
                slots.push(self.addresses(view, rank, sum)?);
            }
            let flat = acc.clone();
            let types = vec!["f32"; flat.len()].join(", ");
            let mut current = flat;
            let mut open = vec![];
            let mut positions = vec![];
            for s in sum {
                let (size, start) = (self.size(*s)?, self.start[s.index()].clone());
                let left = self.i("subi", &size, &start);
                let to = match self.plan.p.axis(*s).role {
                    Role::Stream(n) | Role::Block(n) => {
                        let n = self.k(n as i64);
                        self.i("minsi", &left, &n)
                    }
                    _ => left,
                };
                let (i, r, zero, one) = (self.t.fresh(), self.t.fresh(), self.k(0), self.k(1));
                let inside: Vec<String> = current.iter().map(|_| self.t.fresh()).collect();
                let args: Vec<String> = inside.iter().zip(&current).map(|(a, b)| format!("{a} = {b}")).collect();
                self.t.line(format_args!("{r}:{} = scf.for {i} = {zero} to {to} step {one} iter_args({}) -> ({types}) : i32 {{", current.len(), args.join(", ")));
                open.push(r);
                positions.push(i);
                current = inside;
            }
            let mut steps = vec![];
            for view in &views {
                let mut offset: Option<String> = None;
                for (s, i) in sum.iter().zip(&positions) {
                    let Some(d) = view.stride(*s).cloned() else { continue };
                    let (i, d) = (self.wide(i), self.dim(&d)?);
                    let x = self.l("muli", &i, &d);
                    offset = Some(match offset {
                        None => x,
                        Some(o) => self.l("addi", &o, &x),
                    });
                }
                steps.push(offset);
            }
            for c in 0..cols {
                for r in 0..rows {
                    let at = c * rows + r;
                    let mut x = vec![];
                    for ((view, slots), step) in views.iter().zip(&slots).zip(&steps) {
                        let d = self.plan.p.buffers[view.buffer.index()].dtype;
                        let p = match step {
                            None => slots[at].clone(),
                            Some(o) => self.t.op(format_args!("llvm.getelementptr {}[{o}] : (!llvm.ptr<1>, i64) -> !llvm.ptr<1>, {}", slots[at], memory_type(d))),
                        };
                        let mut y = self.read(&p, d, 1).remove(0);
                        let operands = self.plan.p.operands;
                        if operands != DType::F32 && d != operands {
                            y = crate::scalar::convert(&mut self.t, None, DType::F32, operands, &y);
                        }
                        x.push(y);
                    }
                    current[at] = self.fma(&x[0], &x[1], &current[at]);
                }
            }
            for r in open.iter().rev() {
                self.t.line(format_args!("scf.yield {} : {types}", current.join(", ")));
                self.t.line("}");
                current = (0..current.len()).map(|i| format!("{r}#{i}")).collect();
            }
            acc = current;
        }
        Ok(Value::regs(rank, DType::F32, Tail::Any, acc))
    }

    fn view_of(&self, v: ValueId) -> Result<View, Error> {
        fn find(body: &[Stmt], v: ValueId) -> Option<&View> {
            body.iter().find_map(|s| match s {
                Stmt::Let(w, Op::Load(view)) if *w == v => Some(view),
                Stmt::For(l) => find(&l.body, v),
                _ => None,
            })
        }
        find(&self.plan.p.body, v).cloned().ok_or_else(|| Error::Internal("an operand in memory that is no load".into()))
    }

    /// Address of the element that belongs to every slot of `rank`, clamped to what exists, at the tile's first along `sum`.
    fn addresses(&mut self, view: &View, rank: Rank, sum: &[AxisId]) -> Result<Vec<String>, Error> {
        let origin = self.origin(view, sum)?;
        let ty = memory_type(self.plan.p.buffers[view.buffer.index()].dtype);
        let at = self.place();
        let (rows, cols) = self.shape(rank);
        let f = self.plan.fragment;
        let parts = |e: &mut Self, axis: Option<AxisId>, first: &str, offsets: Vec<usize>| -> Result<Vec<Option<String>>, Error> {
            let Some((a, s)) = axis.and_then(|a| view.stride(a).cloned().map(|s| (a, s))) else { return Ok(vec![None; offsets.len()]) };
            let (size, start) = (e.size(a)?, e.start[a.index()].clone());
            let last = e.ik("subi", &size, 1);
            let first = e.i("addi", &start, first);
            let s = e.dim(&s)?;
            Ok(offsets
                .into_iter()
                .map(|o| {
                    let p = e.ik("addi", &first, o);
                    let p = e.i("minsi", &p, &last);
                    let p = e.wide(&p);
                    Some(e.l("muli", &p, &s))
                })
                .collect())
        };
        let by_row = parts(self, if rank.rows { self.plan.rows } else { None }, &at.row, (0..rows).map(|r| f.row_offset(r)).collect())?;
        let first = rank.col.map_or(at.col.clone(), |c| self.first_col(&at, c).clone());
        let by_col = parts(self, rank.col, &first, (0..cols).map(|c| self.col_offset(c)).collect())?;
        let mut out = vec![];
        for c in &by_col {
            for r in &by_row {
                let o = match (r, c) {
                    (Some(a), Some(b)) => Some(self.l("addi", a, b)),
                    (a, b) => a.clone().or(b.clone()),
                };
                out.push(match o {
                    None => origin.clone(),
                    Some(o) => self.t.op(format_args!("llvm.getelementptr {origin}[{o}] : (!llvm.ptr<1>, i64) -> !llvm.ptr<1>, {ty}")),
                });
            }
        }
        Ok(out)
    }
    /// The rounding of operands of dots, where the machine has matrix units.
    pub fn rounded(&mut self, x: &Value) -> Result<Value, Error> {
        match self.plan.p.operands {
            DType::F32 | DType::F64 => Ok(x.clone()),
            d => self.map(Elementwise::Convert(d), std::slice::from_ref(x)),
        }
    }
}
