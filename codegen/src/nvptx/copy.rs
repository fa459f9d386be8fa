//! Global memory to shared memory, asynchronously where elements need no conversion. Thread t copies chunk `t mod w` of row
//! `t / w`, and of rows `threads / w` further; their swizzle is the same, so a thread computes it once. What lies beyond an axis
//! becomes zero.

use super::emit::{Emit, memory_type};
use super::layout::PANEL;
use super::plan::Staged;
use crate::Error;
use ir::dim::Dim;
use ir::types::DType;
use std::collections::BTreeMap;

impl Emit<'_> {
    /// Issues the copy of the tile of `s` that begins at the present positions into shared memory at address `to` (`i32`).
    pub fn copy(&mut self, s: &Staged, to: &str) -> Result<(), Error> {
        let from = self.plan.p.buffers[s.view.buffer.index()].dtype;
        let elem = s.tile.elem;
        let threads = self.plan.fragment.threads();
        let [row_axis, col_axis] = s.axes;
        let strides: Vec<Dim> = s.view.strides.iter().filter(|(a, _)| *a != col_axis).map(|(_, d)| d.clone()).chain([s.view.offset.clone()]).collect();
        let contiguous = s.view.stride(col_axis).is_some_and(Dim::is_one);
        let convert = from != self.plan.operand();
        // Elements of one copy. The columns' own size may be anything: the last copy takes fewer bytes.
        let mut width = if !contiguous { 1 } else { self.vector(&strides, 16 / elem.max(from.bytes()), true) };
        // The widest of a panel's row at most, and no fewer than four bytes asynchronously.
        if convert || width * elem < 4 {
            width = 1;
        }
        let origin = self.origin(&s.view, &[row_axis, col_axis])?;
        let (row_stride, col_stride) = (s.view.stride(row_axis).cloned().unwrap_or(Dim::fixed(0)), s.view.stride(col_axis).cloned().unwrap_or(Dim::fixed(0)));
        let (row_stride, col_stride) = (self.dim(&row_stride)?, self.dim(&col_stride)?);
        let left = |e: &mut Self, a| -> Result<String, Error> {
            let (size, start) = (e.size(a)?, e.start[a.index()].clone());
            Ok(e.i("subi", &size, &start))
        };
        let (rows_left, cols_left) = (left(self, row_axis)?, left(self, col_axis)?);
        let rows_whole = self.plan.p.axis(row_axis).size.as_fixed().is_some_and(|n| n % s.tile.rows as i64 == 0);
        let tid = self.tid();
        for panel in 0..s.tile.panels() {
            let chunks = s.tile.width(panel);
            let per_chunk = 16 / (width * elem);
            let w = chunks * per_chunk;
            // Rows that all threads reach in one step, and the thread's place.
            let (sub, row) = (self.ik("andi", &tid, w - 1), self.ik("shrui", &tid, w.trailing_zeros() as usize));
            let rows_at_once = threads / w;
            let chunk = self.ik("shrui", &sub, per_chunk.trailing_zeros() as usize);
            let within = self.ik("andi", &sub, per_chunk - 1);
            let by = match chunks {
                _ if s.tile.linear => self.k(0),
                8 => self.ik("andi", &row, 7),
                4 => {
                    let x = self.ik("shrui", &row, 1);
                    self.ik("andi", &x, 3)
                }
                _ => {
                    let x = self.ik("shrui", &row, 2);
                    self.ik("andi", &x, 1)
                }
            };
            let x = self.t.op(format_args!("arith.xori {chunk}, {by} : i32"));
            let x = self.ik("shli", &x, 4);
            let within = self.ik("muli", &within, width * elem);
            let x = self.t.op(format_args!("arith.addi {x}, {within} : i32"));
            let y = self.ik("muli", &row, s.tile.pitch(panel));
            let col = self.ik("muli", &sub, width);
            let col = self.ik("addi", &col, panel * PANEL / elem);
            // Bytes of this copy that exist.
            let first = panel * PANEL / elem;
            let beyond = first + chunks * 16 / elem;
            let full = self.plan.p.axis(col_axis).size.as_fixed().is_some_and(|n| match self.plan.p.axis(col_axis).role {
                ir::tile::Role::Full(_) => n as usize >= beyond,
                _ => n % s.tile.cols as i64 == 0 && beyond <= s.tile.cols,
            });
            let bytes = if full {
                self.k((width * elem) as i64)
            } else {
                let n = self.i("subi", &cols_left, &col);
                let n = self.ik("muli", &n, elem);
                let (zero, most) = (self.k(0), self.k((width * elem) as i64));
                let n = self.i("maxsi", &n, &zero);
                self.i("minsi", &n, &most)
            };
            let mut targets: BTreeMap<usize, String> = BTreeMap::new();
            let wide_row = self.wide(&row);
            let wide_col = self.wide(&col);
            let offset = self.l("muli", &wide_row, &row_stride);
            let across = self.l("muli", &wide_col, &col_stride);
            let offset = self.l("addi", &offset, &across);
            let elem_ty = memory_type(from);
            let mut source = self.t.op(format_args!("llvm.getelementptr {origin}[{offset}] : (!llvm.ptr<1>, i64) -> !llvm.ptr<1>, {elem_ty}"));
            let further = self.wide_k(rows_at_once);
            let further = self.l("muli", &further, &row_stride);
            for i in 0..s.tile.rows.div_ceil(rows_at_once) {
                if i > 0 {
                    source = self.t.op(format_args!("llvm.getelementptr {source}[{further}] : (!llvm.ptr<1>, i64) -> !llvm.ptr<1>, {elem_ty}"));
                }
                let at = i * rows_at_once;
                // The swizzle of row + at is that of row combined with that of at: their bits are disjoint.
                let further = s.tile.swizzle(panel, at);
                let target = match targets.get(&further) {
                    Some(t) => t.clone(),
                    None => {
                        let x = self.ik("xori", &x, further * 16);
                        let thread = self.t.op(format_args!("arith.addi {x}, {y} : i32"));
                        let t = self.i("addi", to, &thread);
                        let t = self.shared(&t);
                        targets.insert(further, t.clone());
                        t
                    }
                };
                let target = self.step(&target, 3, s.tile.panel_base(panel) + at * s.tile.pitch(panel));
                let bytes = if rows_whole {
                    bytes.clone()
                } else {
                    let r = self.ik("addi", &row, at);
                    let ok = self.cmp("slt", &r, &rows_left);
                    let zero = self.k(0);
                    self.t.op(format_args!("arith.select {ok}, {bytes}, {zero} : i32"))
                };
                let some = if at + rows_at_once > s.tile.rows {
                    let k = self.k((s.tile.rows - at) as i64);
                    Some(self.cmp("slt", &row, &k))
                } else {
                    None
                };
                let source = source.clone();
                self.when(some.as_deref(), |e| {
                    if width * elem >= 4 && !convert {
                        let cache = if width * elem == 16 { "cg" } else { "ca" };
                        e.t.line(format_args!("nvvm.cp.async.shared.global {target}, {source}, {}, cache = {cache}, {bytes} : !llvm.ptr<3>, !llvm.ptr<1>, i32", width * elem));
                        return Ok(());
                    }
                    e.one_by_one(&source, &target, from, &bytes)
                })?;
            }
        }
        Ok(())
    }

    /// One element through a register.
    fn one_by_one(&mut self, source: &str, target: &str, from: DType, bytes: &str) -> Result<(), Error> {
        let to = self.plan.operand();
        let zero = self.k(0);
        let some = self.cmp("sgt", bytes, &zero);
        let r = self.t.fresh();
        let ty = if to == DType::F32 { "f32" } else { "i16" };
        self.t.line(format_args!("{r} = scf.if {some} -> ({ty}) {{"));
        let x = if from == to {
            self.t.op(format_args!("llvm.load {source} {{alignment = {} : i64}} : !llvm.ptr<1> -> {ty}", from.bytes()))
        } else {
            let x = self.read(source, from, 1).remove(0);
            if to == DType::F32 {
                x
            } else {
                let nought = self.number(0.0);
                let w = self.pack(&x, &nought, to);
                self.t.op(format_args!("arith.trunci {w} : i32 to i16"))
            }
        };
        self.t.line(format_args!("scf.yield {x} : {ty}"));
        self.t.line("} else {");
        let none = if to == DType::F32 { self.number(0.0) } else { self.t.integer(crate::text::Ty { elem: "i16", lanes: None }, 0) };
        self.t.line(format_args!("scf.yield {none} : {ty}"));
        self.t.line("}");
        self.t.line(format_args!("llvm.store {r}, {target} {{alignment = {} : i64}} : {ty}, !llvm.ptr<3>", to.bytes()));
        Ok(())
    }
}
