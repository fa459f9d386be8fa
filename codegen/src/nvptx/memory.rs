//! Global memory to registers and back. Loads of what does not exist read the nearest element that does, and become zero; stores
//! are guarded. Neighbouring columns are one access of up to 16 bytes where strides and sizes are multiples of it.

use super::emit::{Emit, Place, memory_type};
use super::plan::{Rank, rank_of, stored};
use super::value::{Body, Tail, Value};
use crate::Error;
use ir::dim::Dim;
use ir::tile::{AxisId, ValueId, View};
use ir::types::DType;

impl Emit<'_> {
    /// First positions of the thread, relative to the tile: rows, columns.
    fn firsts(&mut self, at: &Place, rank: Rank) -> (Option<String>, Option<String>) {
        (rank.rows.then(|| at.row.clone()), rank.col.map(|c| self.first_col(at, c).clone()))
    }

    /// How many neighbouring columns one access takes.
    fn access(&mut self, view: &View, rank: Rank) -> usize {
        let Some(c) = rank.col else { return 1 };
        if !view.stride(c).is_some_and(Dim::is_one) {
            return 1;
        }
        let bytes = self.plan.p.buffers[view.buffer.index()].dtype.bytes();
        let mut strides: Vec<Dim> = view.strides.iter().filter(|(a, _)| *a != c).map(|(_, s)| s.clone()).collect();
        strides.extend([view.offset.clone(), self.plan.p.axis(c).size.clone()]);
        let free = !self.plan.tensor;
        let most = self.plan.fragment.vector.min(16 / bytes);
        self.vector(&strides, most, free)
    }

    /// Columns of slot `c` that exist, as `i1`; `None` if all do.
    pub fn col_exists(&mut self, axis: AxisId, first: &str, c: usize) -> Result<Option<String>, Error> {
        let offset = self.col_offset(c);
        if self.whole(axis) {
            return Ok(None);
        }
        let size = self.size(axis)?;
        let start = self.start[axis.index()].clone();
        let left = self.i("subi", &size, &start);
        let left = self.i("subi", &left, first);
        let k = self.k(offset as i64);
        Ok(Some(self.cmp("sgt", &left, &k)))
    }
    /// Every slot of `axis` is an element, whatever the sizes.
    pub fn whole(&self, axis: AxisId) -> bool {
        let f = self.plan.fragment;
        let warps = if self.plan.split.contains(&axis) { f.warps[1] } else { 1 };
        let span = f.span(self.plan.slots[axis.index()]) * warps;
        self.plan.p.axis(axis).size.as_fixed().is_some_and(|n| n % span as i64 == 0)
    }

    /// Elements of `view` as registers.
    pub fn load(&mut self, v: ValueId, view: &View) -> Result<Value, Error> {
        let info = self.plan.p.value(v);
        let (rank, axes) = (self.plan.rank(v), info.axes.clone());
        let from = self.plan.p.buffers[view.buffer.index()].dtype;
        let dtype = if from.is_float() { DType::F32 } else { from };
        let want = if info.dtype.is_float() { DType::F32 } else { info.dtype };
        let at = self.place();
        let (row0, col0) = self.firsts(&at, rank);
        let width = self.access(view, rank);
        let origin = self.origin(view, &[])?;
        let (rows, cols) = self.shape(rank);
        // Row addresses, clamped.
        let mut row_part = vec![(None, None); rows];
        if let Some(row0) = row0 {
            let a = self.plan.rows.ok_or_else(|| Error::Internal("rows without an axis".into()))?;
            let (size, start) = (self.size(a)?, self.start[a.index()].clone());
            let first = self.i("addi", &start, &row0);
            let last = self.ik("subi", &size, 1);
            let stride = view.stride(a).cloned();
            for (r, part) in row_part.iter_mut().enumerate() {
                let p = self.ik("addi", &first, self.plan.fragment.row_offset(r));
                let ok = self.cmp("sle", &p, &last);
                let address = match &stride {
                    None => None,
                    Some(s) => {
                        let p = self.i("minsi", &p, &last);
                        let (p, s) = (self.wide(&p), self.dim(s)?);
                        Some(self.l("muli", &p, &s))
                    }
                };
                *part = (address, Some(ok));
            }
        }
        let mut out = vec![String::new(); rows * cols];
        for c in (0..cols).step_by(width) {
            let (mut address, mut ok) = (None, None);
            if let (Some(axis), Some(first)) = (rank.col, &col0) {
                ok = self.col_exists(axis, first, c)?;
                if let Some(s) = view.stride(axis) {
                    let start = self.start[axis.index()].clone();
                    let p = self.i("addi", &start, first);
                    let mut p = self.ik("addi", &p, self.col_offset(c));
                    if ok.is_some() {
                        let size = self.size(axis)?;
                        let last = self.ik("subi", &size, width);
                        p = self.i("minsi", &p, &last);
                    }
                    let (p, s) = (self.wide(&p), self.dim(s)?);
                    address = Some(self.l("muli", &p, &s));
                }
            }
            for r in 0..rows {
                let (row, row_ok) = row_part[r].clone();
                let offset = match (row, address.clone()) {
                    (Some(a), Some(b)) => Some(self.l("addi", &a, &b)),
                    (a, b) => a.or(b),
                };
                let p = match offset {
                    None => origin.clone(),
                    Some(o) => self.t.op(format_args!("llvm.getelementptr {origin}[{o}] : (!llvm.ptr<1>, i64) -> !llvm.ptr<1>, {}", memory_type(from))),
                };
                let exists = match (ok.clone(), row_ok) {
                    (Some(a), Some(b)) => self.and(Some(a), b),
                    (a, b) => a.or(b),
                };
                let words = self.read(&p, from, width);
                for (i, x) in words.into_iter().enumerate() {
                    let x = match &exists {
                        None => x,
                        Some(k) => {
                            let ty = crate::text::Ty::of(dtype, None);
                            let zero = self.t.number(ty, 0.0);
                            self.t.op(format_args!("arith.select {k}, {x}, {zero} : {ty}"))
                        }
                    };
                    out[(c + i) * rows + r] = x;
                }
            }
        }
        let _ = axes;
        let x = Value::regs(rank, dtype, Tail::Zero, out);
        if dtype == want { Ok(x) } else { self.map(ir::prim::Elementwise::Convert(want), &[x]) }
    }

    /// `width` elements at `p` in global memory, floats as `f32`.
    pub fn read(&mut self, p: &str, d: DType, width: usize) -> Vec<String> {
        self.read_from(p, 1, d, width)
    }
    /// The same of an address space: 1 is global, 3 is shared memory.
    pub fn read_from(&mut self, p: &str, space: usize, d: DType, width: usize) -> Vec<String> {
        let bytes = d.bytes() * width;
        let load = |e: &mut Self, ty: &str| e.t.op(format_args!("llvm.load {p} {{alignment = {bytes} : i64}} : !llvm.ptr<{space}> -> {ty}"));
        match d {
            DType::F32 | DType::I32 | DType::F64 => {
                let ty = memory_type(d);
                if width == 1 {
                    return vec![load(self, ty)];
                }
                let v = load(self, &format!("vector<{width}x{ty}>"));
                (0..width).map(|i| self.extract(&v, i, width, ty)).collect()
            }
            DType::Bool => {
                let zero = self.t.integer(crate::text::Ty { elem: "i8", lanes: None }, 0);
                let words: Vec<String> = if width == 1 {
                    vec![load(self, "i8")]
                } else {
                    let v = load(self, &format!("vector<{width}xi8>"));
                    (0..width).map(|i| self.extract(&v, i, width, "i8")).collect()
                };
                words.into_iter().map(|w| self.t.op(format_args!("arith.cmpi ne, {w}, {zero} : i8"))).collect()
            }
            DType::BF16 | DType::F16 if width == 1 => {
                let h = load(self, "i16");
                vec![self.half_to_float(&h, d)]
            }
            DType::BF16 | DType::F16 => {
                let words: Vec<String> = match width / 2 {
                    1 => vec![load(self, "i32")],
                    n => {
                        let v = load(self, &format!("vector<{n}xi32>"));
                        (0..n).map(|i| self.extract(&v, i, n, "i32")).collect()
                    }
                };
                words.iter().flat_map(|w| self.halves(w, d)).collect()
            }
        }
    }
    fn extract(&mut self, v: &str, i: usize, n: usize, ty: &str) -> String {
        let at = self.k(i as i64);
        self.t.op(format_args!("llvm.extractelement {v}[{at} : i32] : vector<{n}x{ty}>"))
    }
    fn half_to_float(&mut self, h: &str, d: DType) -> String {
        if d == DType::BF16 {
            let w = self.t.op(format_args!("arith.extui {h} : i16 to i32"));
            let w = self.ik("shli", &w, 16);
            self.t.op(format_args!("arith.bitcast {w} : i32 to f32"))
        } else {
            let h = self.t.op(format_args!("arith.bitcast {h} : i16 to f16"));
            self.t.op(format_args!("arith.extf {h} : f16 to f32"))
        }
    }
    /// The two 16-bit floats of a word, the lower one first.
    pub fn halves(&mut self, w: &str, d: DType) -> Vec<String> {
        if d == DType::BF16 {
            let low = self.ik("shli", w, 16);
            let mask = self.k(-65536);
            let high = self.i("andi", w, &mask);
            return [low, high].map(|x| self.t.op(format_args!("arith.bitcast {x} : i32 to f32"))).to_vec();
        }
        let high = self.ik("shrui", w, 16);
        [w.to_string(), high]
            .map(|x| {
                let h = self.t.op(format_args!("arith.trunci {x} : i32 to i16"));
                self.half_to_float(&h, d)
            })
            .to_vec()
    }
    /// Two floats, rounded, in one word; `low` in the lower half.
    pub fn pack(&mut self, low: &str, high: &str, d: DType) -> String {
        if self.flight.packs_here {
            let ty = if d == DType::BF16 { "bf16x2" } else { "f16x2" };
            return self.t.op(format_args!("llvm.inline_asm has_side_effects asm_dialect = att \"cvt.rn.{ty}.f32 $0, $1, $2;\", \"=r,f,f\" {high}, {low} : (f32, f32) -> i32"));
        }
        let (name, ty) = if d == DType::BF16 { ("llvm.nvvm.ff2bf16x2.rn", "vector<2xbf16>") } else { ("llvm.nvvm.ff2f16x2.rn", "vector<2xf16>") };
        let v = self.call(name, &[high, low], ty);
        self.t.op(format_args!("llvm.bitcast {v} : {ty} to i32"))
    }

    /// Writes `x` through `view`.
    pub fn store(&mut self, view: &View, x: &Value) -> Result<(), Error> {
        let axes = stored(&self.plan.p, view);
        let rank = rank_of(self.plan.rows, &axes).ok_or_else(|| Error::Internal("a store of two column axes".into()))?;
        let to = self.plan.p.buffers[view.buffer.index()].dtype;
        let x = if x.dtype == DType::F32 && matches!(x.body, Body::Affine { .. }) { self.settle(x) } else { x.clone() };
        let at = self.place();
        let width = self.access(view, rank);
        let origin = self.origin(view, &[])?;
        let (rows, cols) = self.shape(rank);
        let zero = self.k(0);
        // One thread of those that hold the same.
        let f = self.plan.fragment;
        let mut once: Option<String> = None;
        if rank.col.is_none() && f.lanes > 1 {
            let c = self.cmp("eq", &at.lane_col, &zero);
            once = self.and(once, c);
        }
        if f.warps[1] > 1 && !rank.col.is_some_and(|c| self.plan.split.contains(&c)) {
            let c = self.cmp("eq", &at.warp[1], &zero);
            once = self.and(once, c);
        }
        if !rank.rows && f.row_lanes() > 1 {
            let c = self.cmp("eq", &at.lane_row, &zero);
            once = self.and(once, c);
        }
        if !rank.rows && f.warps[0] > 1 {
            let c = self.cmp("eq", &at.warp[0], &zero);
            once = self.and(once, c);
        }
        let (row0, col0) = self.firsts(&at, rank);
        for r in 0..rows {
            let (mut guard, mut offset) = (once.clone(), None);
            if let (Some(row0), Some(a)) = (&row0, self.plan.rows) {
                let (size, start) = (self.size(a)?, self.start[a.index()].clone());
                let p = self.i("addi", &start, row0);
                let p = self.ik("addi", &p, f.row_offset(r));
                let c = self.cmp("slt", &p, &size);
                guard = self.and(guard, c);
                if let Some(s) = view.stride(a).cloned() {
                    let (p, s) = (self.wide(&p), self.dim(&s)?);
                    offset = Some(self.l("muli", &p, &s));
                }
            }
            let row = match offset {
                None => origin.clone(),
                Some(o) => self.t.op(format_args!("llvm.getelementptr {origin}[{o}] : (!llvm.ptr<1>, i64) -> !llvm.ptr<1>, {}", memory_type(to))),
            };
            let whole = rank.col.is_none_or(|c| self.whole(c));
            let write = |e: &mut Self, c: usize| -> Result<(), Error> {
                let mut p = row.clone();
                if let (Some(axis), Some(first)) = (rank.col, &col0)
                    && let Some(s) = view.stride(axis).cloned()
                {
                    let start = e.start[axis.index()].clone();
                    let q = e.i("addi", &start, first);
                    let (q, s) = (e.wide(&q), e.dim(&s)?);
                    let o = e.l("muli", &q, &s);
                    p = e.t.op(format_args!("llvm.getelementptr {row}[{o}] : (!llvm.ptr<1>, i64) -> !llvm.ptr<1>, {}", memory_type(to)));
                    let k = e.wide_k(e.col_offset(c));
                    let o = e.l("muli", &k, &s);
                    p = e.t.op(format_args!("llvm.getelementptr {p}[{o}] : (!llvm.ptr<1>, i64) -> !llvm.ptr<1>, {}", memory_type(to)));
                }
                let words: Vec<String> = (0..width).map(|i| e.elem(&x, c + i, r)).collect();
                e.write(&p, to, x.dtype, &words);
                Ok(())
            };
            if whole {
                self.when(guard.as_deref(), |e| (0..cols).step_by(width).try_for_each(|c| write(e, c)))?;
            } else {
                self.when(guard.as_deref(), |e| {
                    (0..cols).step_by(width).try_for_each(|c| {
                        let exists = match (rank.col, &col0) {
                            (Some(axis), Some(first)) => e.col_exists(axis, first, c)?,
                            _ => None,
                        };
                        e.when(exists.as_deref(), |e| write(e, c))
                    })
                })?;
            }
        }
        Ok(())
    }

    pub fn wide_k(&mut self, n: usize) -> String {
        self.t.integer(crate::text::Ty { elem: "i64", lanes: None }, n as i64)
    }

    /// Writes neighbours at `p`, converted from `from`.
    fn write(&mut self, p: &str, to: DType, from: DType, x: &[String]) {
        let bytes = to.bytes() * x.len();
        let mut words: Vec<String> = vec![];
        let ty = match to {
            DType::BF16 | DType::F16 if x.len() > 1 => {
                words.extend(x.chunks(2).map(|c| self.pack(&c[0], &c[1], to)));
                "i32"
            }
            DType::BF16 | DType::F16 => {
                let zero = self.number(0.0);
                let w = self.pack(&x[0], &zero, to);
                words.push(self.t.op(format_args!("arith.trunci {w} : i32 to i16")));
                "i16"
            }
            DType::Bool => {
                words.extend(x.iter().map(|x| self.t.op(format_args!("arith.extui {x} : i1 to i8"))));
                "i8"
            }
            _ => {
                words.extend(x.iter().map(|x| if from == to || from == DType::F32 && to.is_float() && to != DType::F64 { x.clone() } else { crate::scalar::convert(&mut self.t, None, from, to, x) }));
                memory_type(to)
            }
        };
        if words.len() == 1 {
            self.t.line(format_args!("llvm.store {}, {p} {{alignment = {bytes} : i64}} : {ty}, !llvm.ptr<1>", words[0]));
            return;
        }
        let n = words.len();
        let mut v = self.t.op(format_args!("llvm.mlir.undef : vector<{n}x{ty}>"));
        for (i, w) in words.iter().enumerate() {
            let at = self.k(i as i64);
            v = self.t.op(format_args!("llvm.insertelement {w}, {v}[{at} : i32] : vector<{n}x{ty}>"));
        }
        self.t.line(format_args!("llvm.store {v}, {p} {{alignment = {bytes} : i64}} : vector<{n}x{ty}>, !llvm.ptr<1>"));
    }
}
