//! Fragments of f32 operands for `mma.sync.m16n8k8`, rounded to tf32 (10 bits of fraction) to nearest, ties away from zero, as the ISA asks for.
//!
//! A sum may be taken in any order, so a thread's two elements of the summed axis are neighbours, 2t and 2t + 1, where the instruction says t and t + 4, on both
//! sides. An accumulator is then a left operand as it stands, and neighbours in memory are one load.

use super::dot::Bases;
use super::emit::Emit;
use super::layout::Lanes;
use crate::Error;
use ir::tile::{AxisId, ValueId};

impl Emit<'_> {
    /// The bits of `x` in tf32.
    pub(super) fn tf32(&mut self, x: &str) -> String {
        self.call("llvm.nvvm.f2tf32.rna", &[x], "i32")
    }

    /// The elements (2t, 2t + 1) of the summed axis, from `from` on, at `at` of the other axis of the tile of `v`; `left`: that axis is the rows'. `own`: so many columns
    /// belong to each warp along columns.
    fn two(&mut self, bases: &mut Bases, (v, left): (ValueId, bool), k: AxisId, [at, from]: [usize; 2], own: Option<usize>) -> [String; 2] {
        let staged = &self.plan.staged[&v];
        let (tile, first, wide) = (staged.tile, staged.at, staged.axes[1] == k);
        let (along, across) = if wide { (tile.elem, tile.pitch(0)) } else { (tile.pitch(0), tile.elem) };
        let (looped, region) = self.region(v);
        // No panel of `ldmatrix` is 0 chunks wide.
        let key = (looped, if left { Lanes::Near } else { Lanes::Far }, 0, own.unwrap_or(0), Some(v));
        let base = match bases.get(&key) {
            Some(b) => b.clone(),
            None => {
                let tid = self.tid_on_entry();
                let lane = self.entry("andi", &tid, 31);
                let group = self.entry("shrui", &lane, 2);
                let t = self.entry("andi", &lane, 3);
                let t = self.entry("muli", &t, 2 * along);
                let g = self.entry("muli", &group, across);
                let mut offset = self.t.entry(format!("arith.addi {t}, {g} : i32"));
                let part = if left { (self.plan.fragment.warps[0] > 1).then(|| (0, self.plan.fragment.rows_per_warp())) } else { own.map(|c| (1, c)) };
                if let Some((which, n)) = part {
                    let w = self.warp_on_entry(which);
                    let w = self.entry("muli", &w, n * across);
                    offset = self.t.entry(format!("arith.addi {offset}, {w} : i32"));
                }
                let a = self.i("addi", &region, &offset);
                let p = self.shared(&a);
                bases.insert(key, p.clone());
                p
            }
        };
        let p = self.step(&base, 3, first + at * across + from * along);
        let x = if wide {
            let both = self.t.op(format_args!("llvm.load {p} {{alignment = 8 : i64}} : !llvm.ptr<3> -> vector<2xf32>"));
            [0, 1].map(|i| {
                let i = self.k(i);
                self.t.op(format_args!("llvm.extractelement {both}[{i} : i32] : vector<2xf32>"))
            })
        } else {
            [0, along].map(|o| {
                let p = self.step(&p, 3, o);
                self.t.op(format_args!("llvm.load {p} {{alignment = 4 : i64}} : !llvm.ptr<3> -> f32"))
            })
        };
        x.map(|x| self.tf32(&x))
    }

    /// The fragment of a left operand in shared memory: 16 rows by 8 of the summed axis.
    pub(super) fn left_tf32(&mut self, bases: &mut Bases, v: ValueId, k: AxisId, slice: usize, m: usize) -> Vec<String> {
        let [low, high] = [0, 8].map(|r| self.two(bases, (v, true), k, [16 * m + r, 8 * slice], None));
        vec![low[0].clone(), high[0].clone(), low[1].clone(), high[1].clone()]
    }
    /// Those of up to 16 columns of a right operand, so far as there are `columns`: others may lie behind the tile.
    pub(super) fn right_tf32(&mut self, bases: &mut Bases, v: ValueId, k: AxisId, slice: usize, columns: [usize; 2], own: Option<usize>) -> Vec<String> {
        (columns[0]..columns[1].min(columns[0] + 16)).step_by(8).flat_map(|c| self.two(bases, (v, false), k, [c, 8 * slice], own)).collect()
    }
    /// Registers of a left operand as fragments: per 8 of the summed axis, per 16 rows, four words.
    pub(super) fn packed_tf32(&mut self, x: &[String], (rows, cols): (usize, usize)) -> Result<Vec<String>, Error> {
        let mut out = vec![];
        for slice in 0..cols / 2 {
            for m in 0..rows / 2 {
                for i in 0..4 {
                    out.push(self.tf32(&x[(2 * slice + i / 2) * rows + 2 * m + i % 2]));
                }
            }
        }
        Ok(out)
    }
}
