//! The writer: what all parts of a kernel share. Thread coordinates, run-time sizes, addresses, values.

use super::layout::Lanes;
use super::plan::{Plan, Rank};
use super::value::{Body, Value};
use super::warpgroup::Flight;
use crate::Error;
use crate::text::{Int, Text, Ty};
use ir::dim::{Dim, Name};
use ir::tile::{AxisId, Role, ValueId, View};
use ir::types::DType;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

pub(super) const I32: Ty = Ty { elem: "i32", lanes: None };
pub(super) const F32: Ty = Ty { elem: "f32", lanes: None };

/// The writer of one kernel body.
pub(super) struct Emit<'p> {
    pub plan: &'p Plan,
    pub t: Text,
    pub env: Vec<Option<Value>>,
    /// First position of the present tile per axis, `i32`.
    pub start: Vec<String>,
    /// Address of the present stage in shared memory.
    pub stage: Option<String>,
    /// Left operands of matrix products, packed: per value, per 16 of the summed axis, per 16 rows, four words.
    pub packed: BTreeMap<ValueId, Rc<Vec<String>>>,
    /// Copies were issued, and nothing has waited for them.
    pub pending: bool,
    /// Warps have exchanged registers since the block's last barrier.
    pub exchanged: bool,
    /// Sizes may be assumed to be multiples of what vectors need; which then must be checked is in `assumed`.
    pub fast: bool,
    pub assumed: BTreeSet<(Dim, i64)>,
    /// Assembly has results of so many floats and integers.
    pub results: BTreeSet<[usize; 2]>,
    /// Of kernels by warpgroups.
    pub flight: Flight,
    /// Column slots that are being worked on, of one axis: first, and how many.
    pub window: Option<(AxisId, usize, usize)>,
    dims: Vec<Name>,
}

/// A thread's place, read when it is needed: kept values would take registers through the loop.
pub(super) struct Place {
    /// Row and column of the thread's first slots within the block's tile; the column is that of the axis split over warps, or of
    /// one that is not.
    pub row: String,
    pub col: String,
    pub col_split: String,
    /// Lane within the row, lane within the column of rows, warp along rows and columns.
    pub lane_col: String,
    pub lane_row: String,
    pub warp: [String; 2],
}

impl<'p> Emit<'p> {
    pub fn new(plan: &'p Plan, fast: bool) -> Emit<'p> {
        let n = plan.p.values.len();
        Emit {
            plan,
            t: Text::new(),
            env: vec![None; n],
            start: vec![String::new(); plan.p.axes.len()],
            stage: None,
            packed: BTreeMap::new(),
            pending: false,
            exchanged: false,
            fast,
            assumed: BTreeSet::new(),
            results: BTreeSet::new(),
            flight: Flight::default(),
            window: None,
            dims: plan.p.dims(),
        }
    }

    /// Rows × column slots of a rank, in the present window.
    pub fn shape(&self, r: Rank) -> (usize, usize) {
        let (rows, cols) = self.plan.shape(r);
        match self.window {
            Some((a, _, n)) if r.col == Some(a) => (rows, n),
            _ => (rows, cols),
        }
    }
    /// Column of slot `c` of the present window, relative to the thread's first.
    pub fn col_offset(&self, c: usize) -> usize {
        self.plan.fragment.col_offset(c + self.window.map_or(0, |w| w.1))
    }

    // Words.

    pub fn k(&mut self, n: impl TryInto<i64>) -> String {
        self.t.integer(I32, n.try_into().unwrap_or(0))
    }
    pub fn number(&mut self, x: f64) -> String {
        self.t.number(F32, x)
    }
    pub fn i(&mut self, op: &str, a: &str, b: &str) -> String {
        self.t.op(format_args!("arith.{op} {a}, {b} : i32"))
    }
    /// The same with a number; neutral ones are left out.
    pub fn ik(&mut self, op: &str, a: &str, n: usize) -> String {
        match (op, n) {
            ("addi" | "subi" | "shli" | "xori", 0) | ("muli" | "divui", 1) => a.to_string(),
            _ => {
                let n = self.k(n as i64);
                self.i(op, a, &n)
            }
        }
    }
    pub fn l(&mut self, op: &str, a: &str, b: &str) -> String {
        self.t.op(format_args!("arith.{op} {a}, {b} : i64"))
    }
    pub fn wide(&mut self, a: &str) -> String {
        self.t.op(format_args!("arith.extsi {a} : i32 to i64"))
    }
    pub fn cmp(&mut self, predicate: &str, a: &str, b: &str) -> String {
        self.t.op(format_args!("arith.cmpi {predicate}, {a}, {b} : i32"))
    }
    pub fn and(&mut self, a: Option<String>, b: String) -> Option<String> {
        Some(match a {
            None => b,
            Some(a) => self.t.op(format_args!("arith.andi {a}, {b} : i1")),
        })
    }
    pub fn f(&mut self, op: &str, a: &str, b: &str) -> String {
        self.t.op(format_args!("arith.{op} {a}, {b} : f32"))
    }
    pub fn fma(&mut self, a: &str, b: &str, c: &str) -> String {
        crate::scalar::fma(&mut self.t, F32, a, b, c)
    }
    pub fn call(&mut self, name: &str, args: &[&str], ty: &str) -> String {
        let tys = vec!["f32"; args.len()].join(", ");
        self.t.op(format_args!("llvm.call_intrinsic \"{name}\"({}) : ({tys}) -> {ty}", args.join(", ")))
    }
    pub fn barrier(&mut self) {
        if self.plan.ring.is_some() {
            // Of those that hold rows: the others have left, or are busy copying.
            let (id, n) = (self.k(15), self.k(self.plan.fragment.threads() as i64));
            self.t.line(format_args!("nvvm.barrier id = {id} number_of_threads = {n}"));
        } else {
            self.t.line("nvvm.barrier0");
        }
        self.exchanged = false;
    }

    /// `if c { body }`
    pub fn when(&mut self, c: Option<&str>, body: impl FnOnce(&mut Self) -> Result<(), Error>) -> Result<(), Error> {
        let Some(c) = c else { return body(self) };
        self.t.line(format_args!("scf.if {c} {{"));
        body(self)?;
        self.t.line("}");
        Ok(())
    }

    // Threads.

    pub fn tid_on_entry(&mut self) -> String {
        self.t.entry("nvvm.read.ptx.sreg.tid.x : i32".into())
    }
    pub fn entry(&mut self, op: &str, a: &str, n: usize) -> String {
        let n = self.k(n as i64);
        self.t.entry(format!("arith.{op} {a}, {n} : i32"))
    }
    /// The thread's number, read again.
    pub fn tid(&mut self) -> String {
        self.t.op("llvm.inline_asm has_side_effects asm_dialect = att \"mov.u32 $0, %tid.x;\", \"=r\" : () -> i32")
    }
    pub fn place(&mut self) -> Place {
        let f = self.plan.fragment;
        let tid = self.tid();
        let lane = self.ik("andi", &tid, 31);
        let lane_col = self.ik("andi", &lane, f.lanes - 1);
        let lane_row = self.ik("shrui", &lane, f.lanes.trailing_zeros() as usize);
        let warp = self.ik("shrui", &tid, 5);
        let zero = self.k(0);
        let warp = match f.warps {
            // Warpgroups side by side: each has all of its rows.
            [_, 2] if self.plan.ring.is_some() => self.pair(&warp),
            [1, 1] => [zero.clone(), zero],
            [_, 1] => [warp, zero],
            [1, _] => [zero, warp],
            [_, n] => [self.ik("divui", &warp, n), self.ik("remui", &warp, n)],
        };
        let rows = self.ik("muli", &warp[0], f.rows_per_warp());
        let row = self.i("addi", &rows, &lane_row);
        let col = self.ik("muli", &lane_col, f.vector);
        let col_split = match self.plan.split.first() {
            None => col.clone(),
            Some(a) => {
                let span = f.span(self.plan.slots[a.index()]);
                let from = self.ik("muli", &warp[1], span);
                self.i("addi", &from, &col)
            }
        };
        Place { row, col, col_split, lane_col, lane_row, warp }
    }
    /// Of a warp in two warpgroups that share rows: its number along rows, and which of the two it is in.
    pub fn pair(&mut self, warp: &str) -> [String; 2] {
        let within = self.ik("andi", warp, 3);
        let group = self.ik("shrui", warp, 2);
        let side = self.ik("andi", &group, 1);
        let rows = self.ik("shrui", &group, 1);
        let rows = self.ik("shli", &rows, 2);
        [self.i("addi", &rows, &within), side]
    }
    /// The thread's first column of `axis`, within the block's tile.
    pub fn first_col<'a>(&self, at: &'a Place, axis: AxisId) -> &'a String {
        if self.plan.split.contains(&axis) { &at.col_split } else { &at.col }
    }

    // Sizes.

    /// A run-time size, computed on entry.
    pub fn dim(&mut self, d: &Dim) -> Result<String, Error> {
        let size = self.t.size(d, &named(&self.dims))?;
        Ok(self.t.name(&size))
    }
    /// The same as `i32`.
    pub fn dim32(&mut self, d: &Dim) -> Result<String, Error> {
        if let Some(k) = d.as_fixed() {
            return Ok(self.k(k));
        }
        let n = self.dim(d)?;
        Ok(self.t.entry(format!("arith.trunci {n} : i64 to i32")))
    }
    pub fn size(&mut self, a: AxisId) -> Result<String, Error> {
        let d = self.plan.p.axis(a).size.clone();
        self.dim32(&d)
    }

    /// The widest vector, of at most `most` elements, that all of `strides` are multiples of. `free`: more than is known of the
    /// sizes may be assumed.
    pub fn vector(&mut self, strides: &[Dim], most: usize, free: bool) -> usize {
        let mut w = most.max(1);
        while w > 1 {
            let known = |d: &Dim| self.plan.divisor(d) % w as i64 == 0;
            let wrong = strides.iter().any(|d| d.as_fixed().is_some() && !known(d));
            let unknown: Vec<Dim> = strides.iter().filter(|d| !known(d)).cloned().collect();
            if !wrong && (unknown.is_empty() || (self.fast && free)) {
                self.assumed.extend(unknown.into_iter().map(|d| (d, w as i64)));
                return w;
            }
            w /= 2;
        }
        1
    }
    // Memory.

    /// The address of a view's first element: grid axes at the instance's index, `at` axes at their tile's start.
    pub fn origin(&mut self, view: &View, at: &[AxisId]) -> Result<String, Error> {
        let mut offset = if view.offset.is_zero() { None } else { Some(self.dim(&view.offset)?) };
        for (a, s) in &view.strides {
            if self.plan.p.axis(*a).role != Role::Grid && !at.contains(a) {
                continue;
            }
            let (start, stride) = (self.start[a.index()].clone(), self.dim(s)?);
            let start = self.wide(&start);
            let x = self.l("muli", &start, &stride);
            offset = Some(match offset {
                None => x,
                Some(o) => self.l("addi", &o, &x),
            });
        }
        let (b, elem) = (view.buffer.index(), memory_type(self.plan.p.buffers[view.buffer.index()].dtype));
        Ok(match offset {
            None => format!("%b{b}"),
            Some(o) => self.t.op(format_args!("llvm.getelementptr %b{b}[{o}] : (!llvm.ptr<1>, i64) -> !llvm.ptr<1>, {elem}")),
        })
    }
    /// An address in shared memory.
    pub fn shared(&mut self, address: &str) -> String {
        self.t.op(format_args!("llvm.inttoptr {address} : i32 to !llvm.ptr<3>"))
    }
    pub fn shared_base(&mut self) -> String {
        let p = self.t.entry("llvm.mlir.addressof @dyn : !llvm.ptr<3>".into());
        self.t.entry(format!("llvm.ptrtoint {p} : !llvm.ptr<3> to i32"))
    }
    pub fn step(&mut self, p: &str, space: usize, bytes: usize) -> String {
        if bytes == 0 {
            return p.to_string();
        }
        self.t.op(format_args!("llvm.getelementptr {p}[{bytes}] : (!llvm.ptr<{space}>) -> !llvm.ptr<{space}>, i8"))
    }
    /// Byte offsets of a lane's row for fourfold matrix loads, one per pair of chunks of a panel `width` chunks wide.
    pub fn lane_offsets(&mut self, lanes: Lanes, width: usize) -> Vec<String> {
        let tid = self.tid_on_entry();
        let low = self.entry("andi", &tid, 7);
        let bit = |e: &mut Self, b: usize| {
            let x = e.entry("shrui", &tid, b);
            e.entry("andi", &x, 1)
        };
        let (b3, b4) = (bit(self, 3), bit(self, 4));
        let (far, chunk) = if lanes == Lanes::Near { (b3, b4) } else { (b4, b3) };
        let far = self.entry("shli", &far, 3);
        let row = self.t.entry(format!("arith.addi {low}, {far} : i32"));
        let by = match width {
            8 => low,
            4 => self.entry("shrui", &low, 1),
            _ => self.entry("shrui", &low, 2),
        };
        let chunk = self.t.entry(format!("arith.xori {chunk}, {by} : i32"));
        let row = self.entry("muli", &row, width * 16);
        (0..width / 2)
            .map(|pair| {
                let c = self.entry("xori", &chunk, 2 * pair);
                let c = self.entry("shli", &c, 4);
                self.t.entry(format!("arith.addi {row}, {c} : i32"))
            })
            .collect()
    }

    // Values.

    pub fn get(&mut self, v: ValueId) -> Result<Value, Error> {
        self.land(v);
        self.unpack(v);
        self.env[v.index()].clone().ok_or_else(|| Error::Internal(format!("{}: value {} has no registers", self.plan.p.name, v.0)))
    }
    /// The value in registers, or a number.
    pub fn settle(&mut self, v: &Value) -> Value {
        let Body::Affine { base, scale, offset } = &v.body else { return v.clone() };
        let (rows, cols) = self.shape(v.rank);
        let mut out = Vec::with_capacity(rows * cols);
        for c in 0..cols {
            for r in 0..rows {
                let x = &base[c * rows + r];
                let one = scale.as_num() == Some(1.0);
                let s = self.elem(scale, c, r);
                out.push(match offset {
                    None if one => x.clone(),
                    None => self.f("mulf", x, &s),
                    Some(o) => {
                        let o = self.elem(o, c, r);
                        if one { self.f("addf", x, &o) } else { self.fma(x, &s, &o) }
                    }
                });
            }
        }
        Value::regs(v.rank, v.dtype, v.tail, out)
    }
    /// [`Emit::settle`], remembered.
    pub fn settled(&mut self, v: ValueId) -> Result<Value, Error> {
        let x = self.get(v)?;
        if matches!(x.body, Body::Affine { .. }) {
            let x = self.settle(&x);
            self.env[v.index()] = Some(x.clone());
            return Ok(x);
        }
        Ok(x)
    }
    /// The register of column slot `c` and row slot `r`; an axis that the value lacks is broadcast.
    pub fn elem(&mut self, v: &Value, c: usize, r: usize) -> String {
        match &v.body {
            Body::Num(x) => self.t.number(Ty::of(v.dtype, None), *x),
            Body::Regs(regs) => {
                let (rows, _) = self.shape(v.rank);
                let (c, r) = (if v.rank.col.is_some() { c } else { 0 }, if v.rank.rows { r } else { 0 });
                regs[c * rows + r].clone()
            }
            Body::Affine { .. } => {
                let x = self.settle(v);
                self.elem(&x, c, r)
            }
        }
    }
    /// All registers of `v` at `rank`.
    pub fn spread(&mut self, v: &Value, rank: Rank) -> Vec<String> {
        let v = self.settle(v);
        let (rows, cols) = self.shape(rank);
        let mut out = vec![];
        for c in 0..cols {
            for r in 0..rows {
                out.push(self.elem(&v, c, r));
            }
        }
        out
    }
}

/// Sizes by name, as the kernel's arguments have them.
pub(super) fn named(dims: &[Name]) -> impl Fn(&mut Text, &Name) -> Result<Int, Error> {
    move |_, n| match dims.iter().position(|d| d == n) {
        Some(at) => Ok(Int::V(format!("%d{at}"))),
        None => Err(Error::Internal(format!("dimension `{n}` is not among the program's"))),
    }
}

/// How elements of a type are spelled in memory.
pub(super) fn memory_type(d: DType) -> &'static str {
    match d {
        DType::F64 => "f64",
        DType::F32 => "f32",
        DType::BF16 | DType::F16 => "i16",
        DType::I32 => "i32",
        DType::Bool => "i8",
    }
}
