//! Matrix products: tensor cores by `mma.sync.m16n8k16` (`m16n8k8` for tf32), or fused multiply-adds, over operands in shared memory.
//!
//! Products over the same axes run in one pass over the summed axis, so that an operand that several of them read is loaded
//! once: per 16 of the summed axis, every left operand's fragment, then for 16 columns at a time every right operand's.

use super::emit::Emit;
use super::layout::Lanes;
use super::plan::{Dot, Rank};
use super::value::{Tail, Value};
use crate::Error;
use ir::prim::{Elementwise, ReduceKind};
use ir::tile::{AxisId, ValueId};
use ir::types::DType;
use std::collections::BTreeMap;
use std::rc::Rc;

/// A product: its number in the group, and left and right operand per term.
pub(super) type Product = (ValueId, Vec<(ValueId, ValueId)>);

/// Addresses that matrix loads share, but for a constant.
pub(super) type Bases = BTreeMap<(bool, Lanes, usize, usize, Option<ValueId>), String>;

/// Which part of a tile belongs to the warp: the number of rows or columns per warp along rows (0) or columns (1) of warps.
#[derive(Clone, Copy)]
enum Own {
    None,
    Rows(usize, usize),
    Cols(usize, usize),
}

impl Emit<'_> {
    /// Matrix products over the same axes.
    pub fn products(&mut self, values: &[ValueId]) -> Result<(), Error> {
        let plan = self.plan;
        let mut group: Vec<Product> = vec![];
        let mut axes = None;
        for v in values {
            let Dot::Matrix { n, k, terms } = &plan.dots[v] else { return Err(Error::Internal("a group of other dots".into())) };
            axes = Some((*n, *k));
            group.push((*v, terms.clone()));
        }
        let (n, k) = axes.ok_or_else(|| Error::Internal("a group without products".into()))?;
        let rank = Rank { rows: true, col: Some(n) };
        let mut acc = vec![];
        for v in values {
            acc.push(self.init(*v, rank)?);
        }
        if self.pending && self.stage.is_none() {
            self.t.line("nvvm.cp.async.wait.group 0");
            self.barrier();
            self.pending = false;
        }
        if plan.tensor {
            self.on_tensor_cores(&group, n, k, &mut acc)?;
        } else {
            self.by_fma(&group, n, k, &mut acc)?;
        }
        for (v, a) in values.iter().zip(acc) {
            let tail = if plan.inits[v].is_empty() { Tail::Zero } else { Tail::Any };
            self.define(*v, Value::regs(rank, DType::F32, tail, a))?;
        }
        Ok(())
    }

    /// What the accumulator of `v` starts from.
    pub(super) fn init(&mut self, v: ValueId, rank: Rank) -> Result<Vec<String>, Error> {
        let plan = self.plan;
        // Where factors of rows do nothing (1 for the first product, 0 for the others), nothing is done.
        let moves = if plan.lazy { self.moves(v, rank)? } else { None };
        if let Some((still, moves)) = moves {
            let types = vec!["f32"; still.len()].join(", ");
            let r = self.t.fresh();
            self.t.line(format_args!("{r}:{} = scf.if {moves} -> ({types}) {{", still.len()));
            let moved = self.started(v, rank)?;
            self.t.line(format_args!("scf.yield {} : {types}", moved.join(", ")));
            self.t.line("} else {");
            self.t.line(format_args!("scf.yield {} : {types}", still.join(", ")));
            self.t.line("}");
            return Ok((0..still.len()).map(|i| format!("{r}#{i}")).collect());
        }
        self.started(v, rank)
    }

    /// The registers of the first product's only factor with columns, and whether a factor of rows would change it; `None` where the start has another form.
    fn moves(&mut self, v: ValueId, rank: Rank) -> Result<Option<(Vec<String>, String)>, Error> {
        let plan = self.plan;
        let mut still = None;
        let mut moves: Option<String> = None;
        for (i, product) in plan.inits[&v].iter().enumerate() {
            let mut factors: Vec<Value> = vec![];
            for f in product {
                factors.push(self.settled(*f)?);
            }
            let (wide, rows): (Vec<Value>, Vec<Value>) = factors.into_iter().partition(|f| f.rank == rank);
            let ([wide], false) = (wide.as_slice(), rows.is_empty() || rows.iter().any(|f| f.rank.col.is_some())) else { return Ok(None) };
            if i == 0 {
                still = Some(self.spread(wide, rank));
            }
            let neutral = self.number(if i == 0 { 1.0 } else { 0.0 });
            // All factors of the first must be 1; of the others, one 0 is enough, and which one is not asked.
            let asked = if i == 0 { rows.len() } else { 1 };
            for f in &rows[..asked] {
                for r in 0..self.shape(f.rank).0 {
                    let x = self.elem(f, 0, r);
                    let other = self.t.op(format_args!("arith.cmpf une, {x}, {neutral} : f32"));
                    moves = Some(match moves {
                        None => other,
                        Some(m) => self.t.op(format_args!("arith.ori {m}, {other} : i1")),
                    });
                }
            }
        }
        Ok(still.zip(moves))
    }

    /// The start of `v`, computed.
    fn started(&mut self, v: ValueId, rank: Rank) -> Result<Vec<String>, Error> {
        let plan = self.plan;
        let mut sum: Option<Value> = None;
        for product in &plan.inits[&v] {
            // What is shared by a row first.
            let mut factors: Vec<Value> = vec![];
            for f in product {
                factors.push(self.settled(*f)?);
            }
            factors.sort_by_key(|f| f.rank == rank && f.as_num().is_none());
            let mut x = factors[0].clone();
            for f in &factors[1..] {
                x = self.map(Elementwise::Mul, &[x, f.clone()])?;
            }
            sum = Some(match sum {
                None => x,
                Some(s) => self.map(Elementwise::Add, &[s, x])?,
            });
        }
        let sum = sum.unwrap_or(Value::num(0.0, DType::F32));
        Ok(self.spread(&sum, rank))
    }

    /// Where the tiles of `v`'s stage begin.
    pub(super) fn region(&mut self, v: ValueId) -> (bool, String) {
        match &self.stage {
            Some(s) if self.plan.looped.contains(&v) => (true, s.clone()),
            _ => (false, self.shared_base()),
        }
    }

    /// Four words of a 16 × 16 block of `v`: at row `row`, column `col` of its tile, further by the warp's own `rows` rows or
    /// `cols` columns.
    fn matrix(&mut self, bases: &mut Bases, v: ValueId, lanes: Lanes, transposed: bool, [row, col]: [usize; 2], own: Own) -> Vec<String> {
        let (tile, at) = (self.plan.staged[&v].tile, self.plan.staged[&v].at);
        let (looped, region) = self.region(v);
        let (panel, pair) = (col / tile.panel_cols(), col % tile.panel_cols() / 16);
        let width = tile.width(panel);
        let (base, constant) = match own {
            Own::Cols(warp, cols) => {
                // Panel and pair of chunks depend on the warp; all panels are equally wide.
                let key = (looped, lanes, width, col, Some(v));
                let base = match bases.get(&key) {
                    Some(b) => b.clone(),
                    None => {
                        let offset = self.lane_offsets(lanes, width)[0].clone();
                        let w = self.warp_on_entry(warp);
                        let block = self.entry("muli", &w, cols / 16);
                        let block = self.entry("addi", &block, col / 16);
                        let pairs = width / 2;
                        let pair = self.entry("andi", &block, pairs - 1);
                        let pair = self.entry("shli", &pair, 5);
                        let offset = self.t.entry(format!("arith.xori {offset}, {pair} : i32"));
                        let panel = self.entry("divui", &block, pairs);
                        let panel = self.entry("muli", &panel, tile.panel_base(1));
                        let offset = self.t.entry(format!("arith.addi {offset}, {panel} : i32"));
                        let a = self.i("addi", &region, &offset);
                        let p = self.shared(&a);
                        bases.insert(key, p.clone());
                        p
                    }
                };
                (base, at + row * width * 16)
            }
            Own::Rows(..) | Own::None => {
                let key = (looped, lanes, width, pair, None);
                let key = if let Own::Rows(warp, rows) = own { (key.0, key.1, key.2, key.3 + 100 * (warp + 1) + 1000 * rows, None) } else { key };
                let base = match bases.get(&key) {
                    Some(b) => b.clone(),
                    None => {
                        let mut offset = self.lane_offsets(lanes, width)[pair].clone();
                        if let Own::Rows(warp, rows) = own {
                            let w = self.warp_on_entry(warp);
                            let w = self.entry("muli", &w, rows * width * 16);
                            offset = self.t.entry(format!("arith.addi {offset}, {w} : i32"));
                        }
                        let a = self.i("addi", &region, &offset);
                        let p = self.shared(&a);
                        bases.insert(key, p.clone());
                        p
                    }
                };
                (base, at + tile.panel_base(panel) + row * width * 16)
            }
        };
        let p = self.step(&base, 3, constant);
        let layout = if transposed { "col" } else { "row" };
        let m = self.t.op(format_args!(
            "nvvm.ldmatrix {p} {{num = 4 : i32, layout = #nvvm.mma_layout<{layout}>, shape = #nvvm.ld_st_matrix_shape<m = 8, n = 8>, eltType = #nvvm.ld_st_matrix_elt_type<b16>}} : (!llvm.ptr<3>) -> !llvm.struct<(i32, i32, i32, i32)>"
        ));
        (0..4).map(|i| self.t.op(format_args!("llvm.extractvalue {m}[{i}] : !llvm.struct<(i32, i32, i32, i32)>"))).collect()
    }

    /// The warp's number along rows (0) or columns (1).
    pub(super) fn warp_on_entry(&mut self, which: usize) -> String {
        let tid = self.tid_on_entry();
        let warp = self.entry("shrui", &tid, 5);
        match (which, self.plan.fragment.warps) {
            (_, [_, 1]) | (_, [1, _]) => warp,
            (0, [_, n]) => self.entry("divui", &warp, n),
            (_, [_, n]) => self.entry("remui", &warp, n),
        }
    }

    /// Registers of a left operand as fragments: per 16 of the summed axis, per 16 rows, four words.
    pub fn packed(&mut self, v: ValueId, k: AxisId) -> Result<Rc<Vec<String>>, Error> {
        if let Some(p) = self.packed.get(&v) {
            return Ok(p.clone());
        }
        let x = self.neutral(v, k, Tail::Finite)?;
        let x = self.settle(&x);
        let rank = Rank { rows: true, col: Some(k) };
        let x = self.spread(&x, rank);
        let (rows, cols) = self.shape(rank);
        if self.plan.schedule.tf32 {
            let out = Rc::new(self.packed_tf32(&x, (rows, cols))?);
            self.packed.insert(v, out.clone());
            return Ok(out);
        }
        let at = |c: usize, r: usize| &x[c * rows + r];
        let d = self.plan.operand();
        let mut out = vec![];
        for slice in 0..cols / 4 {
            for m in 0..rows / 2 {
                for i in 0..4 {
                    let (c, r) = (4 * slice + 2 * (i / 2), 2 * m + i % 2);
                    out.push(self.pack(at(c, r), at(c + 1, r), d));
                }
            }
        }
        let out = Rc::new(out);
        self.packed.insert(v, out.clone());
        Ok(out)
    }

    fn on_tensor_cores(&mut self, group: &[Product], n: AxisId, k: AxisId, acc: &mut [Vec<String>]) -> Result<(), Error> {
        let plan = self.plan;
        let (rows, cols) = self.shape(Rank { rows: true, col: Some(n) });
        let blocks = rows / 2;
        let ty = match plan.operand() {
            DType::F32 => "tf32",
            DType::BF16 => "bf16",
            _ => "f16",
        };
        let deep = if plan.schedule.tf32 { 8 } else { 16 };
        let slices = plan.p.axis(k).extent().next_multiple_of(16) / deep;
        // Two warps that share rows compute half of the columns each, and exchange them.
        let shared = plan.shared_columns(group.iter().map(|g| g.0), n);
        let all = cols;
        let cols = if shared { cols / 2 } else { cols };
        if shared {
            acc.iter_mut().for_each(|a| a.truncate(rows * cols));
        }
        let mut bases = Bases::new();
        let mut left: Vec<ValueId> = group.iter().flat_map(|g| g.1.iter().map(|t| t.0)).collect();
        let mut right: Vec<ValueId> = group.iter().flat_map(|g| g.1.iter().map(|t| t.1)).collect();
        for list in [&mut left, &mut right] {
            list.sort();
            list.dedup();
        }
        for v in &left {
            if !plan.staged.contains_key(v) {
                self.packed(*v, k)?;
            }
        }
        for slice in 0..slices {
            let mut a: BTreeMap<ValueId, Vec<Vec<String>>> = BTreeMap::new();
            for v in &left {
                let mut frags = vec![];
                for m in 0..blocks {
                    if plan.staged.contains_key(v) {
                        frags.push(self.left(&mut bases, *v, k, slice, m));
                    } else {
                        let p = self.packed(*v, k)?;
                        let at = 4 * (slice * blocks + m);
                        frags.push(self.words(p[at..at + 4].to_vec()));
                    }
                }
                a.insert(*v, frags);
            }
            for pair in 0..cols.div_ceil(4) {
                let mut b: BTreeMap<ValueId, Vec<String>> = BTreeMap::new();
                for v in &right {
                    let own = (plan.split.contains(&n) || shared).then(|| plan.fragment.span(cols));
                    b.insert(*v, if plan.schedule.tf32 { self.right_tf32(&mut bases, *v, k, slice, [16 * pair, 4 * cols], own) } else { self.right(&mut bases, *v, k, slice, pair, own) });
                }
                for half in 0..2 {
                    let c0 = 4 * pair + 2 * half;
                    if c0 >= cols {
                        continue;
                    }
                    for ((_, terms), acc) in group.iter().zip(acc.iter_mut()) {
                        for (l, r) in terms {
                            for m in 0..blocks {
                                let at = |c: usize, h: usize| (c0 + c) * rows + 2 * m + h;
                                let c = [at(0, 0), at(1, 0), at(0, 1), at(1, 1)];
                                let x = &a[l][m];
                                let y = &b[r][2 * half..2 * half + 2];
                                let d = self.t.op(format_args!(
                                    "nvvm.mma.sync A[{}] B[{}] C[{}] {{layoutA = #nvvm.mma_layout<row>, layoutB = #nvvm.mma_layout<col>, multiplicandAPtxType = #nvvm.mma_type<{ty}>, multiplicandBPtxType = #nvvm.mma_type<{ty}>, shape = #nvvm.shape<m = 16, n = 8, k = {deep}>}} : {} -> !llvm.struct<(f32, f32, f32, f32)>",
                                    x.join(", "), y.join(", "), c.iter().map(|i| acc[*i].as_str()).collect::<Vec<_>>().join(", "),
                                    if ty == "f16" { "(vector<2xf16>, vector<2xf16>, f32)" } else { "(i32, i32, f32)" }
                                ));
                                for (j, i) in c.iter().enumerate() {
                                    acc[*i] = self.t.op(format_args!("llvm.extractvalue {d}[{j}] : !llvm.struct<(f32, f32, f32, f32)>"));
                                }
                            }
                        }
                    }
                }
            }
        }
        if shared {
            let flat = acc.concat();
            let halves = self.exchange(&flat)?;
            for (i, a) in acc.iter_mut().enumerate() {
                let part = |h: usize| halves[h][i * rows * cols..(i + 1) * rows * cols].to_vec();
                *a = [part(0), part(1)].concat();
                debug_assert_eq!(a.len(), rows * all);
            }
        }
        Ok(())
    }

    /// Registers of both warps that share rows, the first one's first: through shared memory, 16 bytes a lane.
    fn exchange(&mut self, own: &[String]) -> Result<[Vec<String>; 2], Error> {
        let again = std::mem::replace(&mut self.exchanged, true);
        Ok(self.exchange_at(own, self.plan.exchange, again))
    }

    /// The same, through the memory at byte `at`. `again`: the other warp may still read what was there.
    pub(super) fn exchange_at(&mut self, own: &[String], at: usize, again: bool) -> [Vec<String>; 2] {
        let tid = self.tid();
        let lane = self.ik("andi", &tid, 31);
        let warp = self.ik("shrui", &tid, 5);
        let (row, number) = if self.plan.ring.is_some() {
            let [row, side] = self.pair(&warp);
            let first = self.ik("shli", &row, 1);
            let number = self.i("addi", &first, &side);
            (row, number)
        } else {
            (self.ik("shrui", &warp, 1), warp)
        };
        let id = self.ik("addi", &row, 1);
        let both = self.k(64);
        let meet = |e: &mut Self| e.t.line(format_args!("nvvm.barrier id = {id} number_of_threads = {both}"));
        if again {
            meet(self);
        }
        let bytes = own.len() * 128;
        let base = self.shared_base();
        let base = self.ik("addi", &base, at);
        let lane = self.ik("muli", &lane, 16);
        let base = self.i("addi", &base, &lane);
        let mine = self.ik("muli", &number, bytes);
        let mine = self.i("addi", &base, &mine);
        let pair = self.ik("muli", &row, 2 * bytes);
        let pair = self.i("addi", &base, &pair);
        let (mine, pair) = (self.shared(&mine), self.shared(&pair));
        for (i, four) in own.chunks(4).enumerate() {
            let mut v = self.t.op("llvm.mlir.undef : vector<4xf32>");
            for (j, x) in four.iter().enumerate() {
                let at = self.k(j as i64);
                v = self.t.op(format_args!("llvm.insertelement {x}, {v}[{at} : i32] : vector<4xf32>"));
            }
            let p = self.step(&mine, 3, 512 * i);
            self.t.line(format_args!("llvm.store {v}, {p} {{alignment = 16 : i64}} : vector<4xf32>, !llvm.ptr<3>"));
        }
        meet(self);
        let mut read = |h: usize| {
            let mut out = vec![];
            for i in 0..own.len() / 4 {
                let p = self.step(&pair, 3, h * bytes + 512 * i);
                let v = self.t.op(format_args!("llvm.load {p} {{alignment = 16 : i64}} : !llvm.ptr<3> -> vector<4xf32>"));
                for j in 0..4 {
                    let at = self.k(j);
                    out.push(self.t.op(format_args!("llvm.extractelement {v}[{at} : i32] : vector<4xf32>")));
                }
            }
            out
        };
        [read(0), read(1)]
    }

    fn words(&mut self, w: Vec<String>) -> Vec<String> {
        if self.plan.operand() != DType::F16 {
            return w;
        }
        w.iter().map(|w| self.t.op(format_args!("llvm.bitcast {w} : i32 to vector<2xf16>"))).collect()
    }

    /// The fragment of a left operand in shared memory.
    fn left(&mut self, bases: &mut Bases, v: ValueId, k: AxisId, slice: usize, m: usize) -> Vec<String> {
        if self.plan.schedule.tf32 {
            return self.left_tf32(bases, v, k, slice, m);
        }
        let f = self.plan.fragment;
        let (rows, split) = (f.rows_per_warp(), f.warps[0] > 1);
        let w = if self.plan.staged[&v].axes[1] == k {
            self.matrix(bases, v, Lanes::Near, false, [16 * m, 16 * slice], if split { Own::Rows(0, rows) } else { Own::None })
        } else {
            self.matrix(bases, v, Lanes::Far, true, [16 * slice, 16 * m], if split { Own::Cols(0, rows) } else { Own::None })
        };
        self.words(w)
    }
    /// The fragments of 16 columns of a right operand; `own`: each warp along columns has so many of its own.
    fn right(&mut self, bases: &mut Bases, v: ValueId, k: AxisId, slice: usize, pair: usize, own: Option<usize>) -> Vec<String> {
        let w = if self.plan.staged[&v].axes[1] == k {
            self.matrix(bases, v, Lanes::Far, false, [16 * pair, 16 * slice], own.map_or(Own::None, |c| Own::Rows(1, c)))
        } else {
            self.matrix(bases, v, Lanes::Near, true, [16 * slice, 16 * pair], own.map_or(Own::None, |c| Own::Cols(1, c)))
        };
        self.words(w)
    }

    /// A dot in registers: products, summed over their column axis.
    pub fn row_dot(&mut self, v: ValueId, terms: &[(ValueId, ValueId)], sum: AxisId) -> Result<Value, Error> {
        let mut total: Option<Value> = None;
        for (a, b) in terms {
            let x = [self.settled(*a)?, self.settled(*b)?];
            let x = [self.rounded(&x[0])?, self.rounded(&x[1])?];
            let y = self.map(Elementwise::Mul, &x)?;
            let y = self.masked(&y, sum, Tail::Zero)?;
            total = Some(match total {
                None => y,
                Some(t) => self.map(Elementwise::Add, &[t, y])?,
            });
        }
        let total = total.ok_or_else(|| Error::Internal("a dot without terms".into()))?;
        let out = self.plan.rank(v);
        let full = Rank { rows: out.rows || total.rank.rows, col: Some(sum) };
        let total = if total.rank == full { total } else { let x = self.spread(&total, full); Value::regs(full, DType::F32, Tail::Any, x) };
        let total = self.masked(&total, sum, Tail::Zero)?;
        let y = self.reduce(ReduceKind::Sum, &total)?;
        if self.plan.inits[&v].is_empty() {
            return Ok(y);
        }
        let init = self.init(v, out)?;
        let init = Value::regs(out, DType::F32, Tail::Any, init);
        self.map(Elementwise::Add, &[init, y])
    }
}
