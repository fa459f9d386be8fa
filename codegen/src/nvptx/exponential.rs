//! Powers of two: by the special functions' unit, or, for a share of the columns, by a polynomial on the units that add and multiply.
//!
//! 2^x = 2^n · 2^f with n the nearest whole number (Cody and Waite, 1980): x + 1.5·2²³ has n in its low bits, 2^f is a polynomial on |f| ≤ ½, and n is added to its
//! exponent as a number of bits. So a unit that binds, 16 a clock and multiprocessor, is spared for eight operations of units that do 64 or 128 (Dao et al., 2026, for Blackwell).

use super::emit::{Emit, F32, I32};
use super::plan::walk;
use super::value::{Tail, Value};
use ir::prim::{Elementwise, ReduceKind};
use ir::tile::{Op, Program, Stmt, ValueId};
use ir::types::DType;
use std::collections::{BTreeMap, BTreeSet};

/// Columns of which a schedule's share is one.
pub(super) const SHARES: usize = 16;

/// Coefficients of f, f², … of 2^f on |f| ≤ ½, with 1 at 0: the least relative error, 1.0e-4 (for products of bf16, which round by 2e-3) and 2.8e-6.
const CUBIC: [f64; 3] = [0.693_282_93, 0.242_210_96, 0.055_008_93];
const QUARTIC: [f64; 4] = [0.693_124_19, 0.240_240_99, 0.055_906_425, 0.009_582_853];

/// Exponentials of something less its own maximum: what they are of is never far above 0.
pub(super) fn below_maximum(p: &Program) -> BTreeSet<ValueId> {
    let mut made: BTreeMap<ValueId, &Op> = BTreeMap::new();
    walk(&p.body, &mut |s| {
        if let Stmt::Let(v, op) = s {
            made.insert(*v, op);
        }
    });
    let peak = |b: ValueId, of: ValueId| {
        let (mut open, mut seen) = (vec![b], BTreeSet::new());
        while let Some(v) = open.pop() {
            match made.get(&v) {
                Some(Op::Reduce(ReduceKind::Max, x, _)) if *x == of => return true,
                Some(Op::Map(Elementwise::Max | Elementwise::Select, args)) if seen.insert(v) => open.extend(args),
                _ => {}
            }
        }
        false
    };
    let below = |x: &ValueId| matches!(made.get(x), Some(Op::Map(Elementwise::Sub, args)) if peak(args[1], args[0]));
    made.iter().filter(|(_, op)| matches!(op, Op::Map(Elementwise::Exp, x) if below(&x[0]))).map(|(v, _)| *v).collect()
}

impl Emit<'_> {
    /// 2^x.
    pub fn exp2(&mut self, x: &str) -> String {
        if self.plan.ring.is_some() {
            // It stays where it is written: beside products that are under way, not behind the wait for them, where its result is read.
            let made = self.t.op(format_args!("llvm.inline_asm has_side_effects asm_dialect = att \"ex2.approx.ftz.f32 $0, $1;\", \"=f,f\" {x} : (f32) -> f32"));
            self.flight.made.push(made.clone());
            return made;
        }
        self.call("llvm.nvvm.ex2.approx.ftz.f", &[x], "f32")
    }

    /// 2^x for `x` in registers, of which a part of the columns by polynomials.
    pub fn shared_exp2(&mut self, x: &Value, tail: Tail) -> Value {
        let (rows, cols) = self.shape(x.rank);
        let share = self.plan.schedule.polynomial;
        let mut out = Vec::with_capacity(rows * cols);
        for c in 0..cols {
            for r in 0..rows {
                let e = self.elem(x, c, r);
                // Spread evenly, so that both units are busy all the time.
                out.push(if (c + 1) * share / SHARES > c * share / SHARES { self.polynomial_exp2(&e) } else { self.exp2(&e) });
            }
        }
        Value::regs(x.rank, DType::F32, tail, out)
    }

    /// 2^x for x of at most 127; 0 below −127, and of what is no number nothing finite that a product would keep.
    fn polynomial_exp2(&mut self, x: &str) -> String {
        const NEAREST: f64 = 12_582_912.0;
        let (least, shift, one) = (self.number(-127.0), self.number(NEAREST), self.number(1.0));
        let x = self.t.op(format_args!("llvm.intr.maximum({x}, {least}) : (f32, f32) -> f32"));
        let sum = self.f("addf", &x, &shift);
        let n = self.f("subf", &sum, &shift);
        let f = self.f("subf", &x, &n);
        let coefficients: &[f64] = if self.plan.operand() == DType::BF16 { &CUBIC } else { &QUARTIC };
        let mut y: Option<String> = None;
        for c in coefficients.iter().rev() {
            let c = self.number(*c);
            y = Some(match y {
                None => c,
                Some(y) => self.fma(&y, &f, &c),
            });
        }
        let y = self.fma(&y.unwrap_or_default(), &f, &one);
        let bits = |e: &mut Self, x: &str| e.t.op(format_args!("arith.bitcast {x} : {F32} to {I32}"));
        let (n, y) = (bits(self, &sum), bits(self, &y));
        let n = self.ik("shli", &n, 23);
        let y = self.i("addi", &n, &y);
        self.t.op(format_args!("arith.bitcast {y} : {I32} to {F32}"))
    }
}
