//! Elementwise operations and reductions on registers.
//!
//! A factor or a term that a whole row, a column or the block shares is not applied at once: the value keeps it beside its
//! registers, and what reads the value takes it in. So `exp(t·s − m)` is one fused multiply-add and one `ex2` per element, the
//! factor of log₂ e included, and `(t − c)·k·p` is two operations.
//!
//! Functions: `ex2.approx` (2 ulp, and the rounding of the argument), `rcp.approx` (1 ulp) for quotients, `rsqrt.approx` (2⁻²²·⁹);
//! the others are the polynomials of `scalar`.

use super::emit::{Emit, F32, I32};
use super::plan::Rank;
use super::value::{Body, Tail, Value, tail_of};
use crate::{Error, scalar};
use ir::prim::Elementwise::{self, *};
use ir::prim::ReduceKind;
use ir::types::DType;
use std::f64::consts::LOG2_E;
use std::rc::Rc;

impl Emit<'_> {
    /// `e` of `args`.
    pub fn map(&mut self, e: Elementwise, args: &[Value]) -> Result<Value, Error> {
        let rank = union(args);
        let tails: Vec<Tail> = args.iter().map(|a| a.tail_in(rank)).collect();
        let tail = tail_of(e, &tails);
        let float = args.iter().all(|a| a.dtype == DType::F32);
        if let Some(x) = args.iter().map(Value::as_num).collect::<Option<Vec<f64>>>() {
            let dtype = self.result(e, args)?;
            let y = e.eval(&x);
            return Ok(Value::num(if dtype == DType::F32 { f64::from(y as f32) } else { y }, dtype));
        }
        if float && let Some(v) = self.lazy(e, args, rank)? {
            return Ok(Value { tail, ..v });
        }
        if e == Div && float {
            let inverse = self.reciprocal(&args[1])?;
            let v = self.map(Mul, &[args[0].clone(), inverse])?;
            return Ok(Value { tail, ..v });
        }
        if e == Exp && float {
            let scaled = self.map(Mul, &[args[0].clone(), Value::num(LOG2_E, DType::F32)])?;
            let scaled = self.settle(&scaled);
            return Ok(self.each(&[scaled], rank, DType::F32, tail, |e, x| e.exp2(&x[0])));
        }
        let args: Vec<Value> = args.iter().map(|a| self.settle(a)).collect();
        let dtype = self.result(e, &args)?;
        let types: Vec<DType> = args.iter().map(|a| a.dtype).collect();
        let (rows, cols) = self.shape(rank);
        let mut out = Vec::with_capacity(rows * cols);
        for c in 0..cols {
            for r in 0..rows {
                let x: Vec<String> = args.iter().map(|a| self.elem(a, c, r)).collect();
                out.push(self.one(e, &types, &x)?);
            }
        }
        Ok(Value::regs(rank, dtype, tail, out))
    }

    fn result(&self, e: Elementwise, args: &[Value]) -> Result<DType, Error> {
        let types: Vec<DType> = args.iter().map(|a| a.dtype).collect();
        let d = e.infer(&types).map_err(Error::Internal)?;
        Ok(if d.is_float() { DType::F32 } else { d })
    }

    /// One element.
    fn one(&mut self, e: Elementwise, types: &[DType], x: &[String]) -> Result<String, Error> {
        let float = types[0].is_float();
        Ok(match e {
            Max if float => self.t.op(format_args!("llvm.intr.maxnum({}, {}) : (f32, f32) -> f32", x[0], x[1])),
            Min if float => self.t.op(format_args!("llvm.intr.minnum({}, {}) : (f32, f32) -> f32", x[0], x[1])),
            Rsqrt => self.call("llvm.nvvm.rsqrt.approx.ftz.f", &[&x[0]], "f32"),
            Logistic => {
                let (k, one) = (self.number(-LOG2_E), self.number(1.0));
                let n = self.f("mulf", &x[0], &k);
                let n = self.call("llvm.nvvm.ex2.approx.ftz.f", &[&n], "f32");
                let d = self.f("addf", &n, &one);
                self.call("llvm.nvvm.rcp.approx.ftz.f", &[&d], "f32")
            }
            Div => self.f("divf", &x[0], &x[1]),
            _ => scalar::emit(&mut self.t, e, None, types, x)?,
        })
    }

    fn each(&mut self, args: &[Value], rank: Rank, dtype: DType, tail: Tail, mut f: impl FnMut(&mut Self, &[String]) -> String) -> Value {
        let (rows, cols) = self.shape(rank);
        let mut out = Vec::with_capacity(rows * cols);
        for c in 0..cols {
            for r in 0..rows {
                let x: Vec<String> = args.iter().map(|a| self.elem(a, c, r)).collect();
                out.push(f(self, &x));
            }
        }
        Value::regs(rank, dtype, tail, out)
    }

    fn reciprocal(&mut self, v: &Value) -> Result<Value, Error> {
        if let Some(x) = v.as_num() {
            return Ok(Value::num(f64::from((1.0 / x) as f32), DType::F32));
        }
        let v = self.settle(v);
        Ok(self.each(std::slice::from_ref(&v), v.rank, DType::F32, Tail::Any, |e, x| e.call("llvm.nvvm.rcp.approx.ftz.f", &[&x[0]], "f32")))
    }

    /// `v` as registers times a factor plus a term.
    fn parts(&self, v: &Value) -> Option<(Rc<Vec<String>>, Value, Option<Value>)> {
        match &v.body {
            Body::Num(_) => None,
            Body::Regs(r) => Some((r.clone(), Value::num(1.0, DType::F32), None)),
            Body::Affine { base, scale, offset } => Some((base.clone(), (**scale).clone(), offset.as_deref().cloned())),
        }
    }

    /// Sums and products that need not be applied yet.
    fn lazy(&mut self, e: Elementwise, args: &[Value], rank: Rank) -> Result<Option<Value>, Error> {
        let full = |v: &Value| v.rank == rank && v.as_num().is_none();
        let affine = |base: Rc<Vec<String>>, scale: Value, offset: Option<Value>| {
            Some(Value { rank, dtype: DType::F32, tail: Tail::Any, body: Body::Affine { base, scale: Box::new(scale), offset: offset.map(Box::new) } })
        };
        // Only where it is shared: a factor of the same rank is no factor.
        let lower = |v: &Value| v.as_num().is_some() || v.rank.below(rank);
        if rank == Rank::NONE || rank.col.is_none() {
            return Ok(None);
        }
        match (e, args) {
            (Neg, [x]) => {
                let Some((base, s, o)) = self.parts(x) else { return Ok(None) };
                let s = self.map(Neg, &[s])?;
                let o = o.map(|o| self.map(Neg, &[o])).transpose()?;
                Ok(affine(base, s, o))
            }
            (Add | Sub, [a, b]) => {
                let (hi, lo, minus_hi, minus_lo) = if full(a) && lower(b) {
                    (a, b, false, e == Sub)
                } else if full(b) && lower(a) {
                    (b, a, e == Sub, false)
                } else {
                    // x·s ± y: one fused operation, if the factor is alone.
                    let (x, y, minus) = match (&a.body, &b.body) {
                        (_, Body::Affine { offset: None, .. }) if full(a) && full(b) => (b, a, e == Sub),
                        (Body::Affine { offset: None, .. }, _) if full(a) && full(b) && e == Add => (a, b, false),
                        _ => return Ok(None),
                    };
                    let Some((base, s, _)) = self.parts(x) else { return Ok(None) };
                    let s = if minus { self.map(Neg, &[s])? } else { s };
                    let (s, y) = (self.settle(&s), self.settle(y));
                    let base = Value { rank, dtype: DType::F32, tail: Tail::Any, body: Body::Regs(base) };
                    return Ok(Some(self.each(&[base, s, y], rank, DType::F32, Tail::Any, |e, x| e.fma(&x[0], &x[1], &x[2]))));
                };
                let Some((base, mut s, mut o)) = self.parts(hi) else { return Ok(None) };
                if minus_hi {
                    s = self.map(Neg, &[s])?;
                    o = o.map(|o| self.map(Neg, &[o])).transpose()?;
                }
                let lo = if minus_lo { self.map(Neg, std::slice::from_ref(lo))? } else { lo.clone() };
                let o = match o {
                    None => lo,
                    Some(o) => self.map(Add, &[o, lo])?,
                };
                // A row's and a column's term together are no shared one.
                if !(o.as_num().is_some() || o.rank.below(rank)) {
                    return Ok(None);
                }
                let (s, o) = (self.settle(&s), self.settle(&o));
                Ok(affine(base, s, Some(o)))
            }
            (Mul, [a, b]) => {
                let (hi, lo) = if full(a) && lower(b) {
                    (a, b)
                } else if full(b) && lower(a) {
                    (b, a)
                } else if full(a) && full(b) {
                    let (Some((x, s, so)), Some((y, t, to))) = (self.parts(a), self.parts(b)) else { return Ok(None) };
                    let plain = |v: &Value| v.as_num() == Some(1.0);
                    if plain(&s) && plain(&t) && so.is_none() && to.is_none() {
                        return Ok(None);
                    }
                    // (x·s)·(y·t + o) = x·(y·(t·s) + o·s)
                    let (x, s, y, t, o) = if so.is_none() { (x, s, y, t, to) } else if to.is_none() { (y, t, x, s, so) } else { return Ok(None) };
                    let x = Value { rank, dtype: DType::F32, tail: Tail::Any, body: Body::Regs(x) };
                    let t = self.map(Mul, &[t, s.clone()])?;
                    if !(t.as_num().is_some() || t.rank.below(rank)) {
                        return Ok(None);
                    }
                    let Some(o) = o else {
                        let y = Value { rank, dtype: DType::F32, tail: Tail::Any, body: Body::Regs(y) };
                        let xy = self.each(&[x, y], rank, DType::F32, Tail::Any, |e, x| e.f("mulf", &x[0], &x[1]));
                        let Body::Regs(base) = xy.body else { return Ok(None) };
                        let t = self.settle(&t);
                        return Ok(affine(base, t, None));
                    };
                    let o = self.map(Mul, &[o, s])?;
                    if !(o.as_num().is_some() || o.rank.below(rank)) {
                        return Ok(None);
                    }
                    let (t, o) = (self.settle(&t), self.settle(&o));
                    let y = Value { rank, dtype: DType::F32, tail: Tail::Any, body: Body::Affine { base: y, scale: Box::new(t), offset: Some(Box::new(o)) } };
                    let y = self.settle(&y);
                    return Ok(Some(self.each(&[x, y], rank, DType::F32, Tail::Any, |e, x| e.f("mulf", &x[0], &x[1]))));
                } else {
                    return Ok(None);
                };
                let Some((base, s, o)) = self.parts(hi) else { return Ok(None) };
                let s = self.map(Mul, &[s, lo.clone()])?;
                let o = o.map(|o| self.map(Mul, &[o, lo.clone()])).transpose()?;
                let low = |v: &Value| v.as_num().is_some() || v.rank.below(rank);
                if !low(&s) || !o.as_ref().is_none_or(low) {
                    return Ok(None);
                }
                let (s, o) = (self.settle(&s), o.map(|o| self.settle(&o)));
                Ok(affine(base, s, o))
            }
            _ => Ok(None),
        }
    }

    /// A reduction over the column axis of `x`; elements beyond the axis' end must be neutral.
    pub fn reduce(&mut self, kind: ReduceKind, x: &Value) -> Result<Value, Error> {
        // max(x·s) = s·max(x) for a positive number s.
        if let (ReduceKind::Max, Body::Affine { base, scale, offset: None }) = (kind, &x.body)
            && let Some(s) = scale.as_num()
            && s > 0.0
        {
            let base = Value { body: Body::Regs(base.clone()), ..x.clone() };
            let m = self.reduce(kind, &base)?;
            return self.map(Mul, &[m, Value::num(s, DType::F32)]);
        }
        let x = self.settle(x);
        let (rows, cols) = self.shape(x.rank);
        let out = Rank { rows: x.rank.rows, col: None };
        let mut totals: Vec<String> = vec![];
        for r in 0..rows {
            // Two chains, for the latency.
            let mut chains: [Option<String>; 2] = [None, None];
            for c in 0..cols {
                let v = self.elem(&x, c, r);
                let chain = &mut chains[c % 2];
                *chain = Some(match chain.take() {
                    None => v,
                    Some(a) => self.combine(kind, &a, &v),
                });
            }
            let mut total = match chains {
                [Some(a), Some(b)] => self.combine(kind, &a, &b),
                [Some(a), None] | [None, Some(a)] => a,
                [None, None] => return Err(Error::Internal("a reduction of no slots".into())),
            };
            for mask in self.plan.fragment.masks() {
                let (all, by, seg) = (self.k(-1), self.k(mask as i64), self.k(31));
                let other = self.t.op(format_args!("nvvm.shfl.sync bfly {all}, {total}, {by}, {seg} : f32 -> f32"));
                total = self.combine(kind, &total, &other);
            }
            totals.push(total);
        }
        if x.rank.col.is_some_and(|c| self.plan.split.contains(&c)) {
            totals = self.across(kind, out, totals)?;
        }
        if self.plan.ring.is_some() {
            self.flight.reduced.clone_from(&totals);
        }
        Ok(Value::regs(out, DType::F32, Tail::Finite, totals))
    }

    fn combine(&mut self, kind: ReduceKind, a: &str, b: &str) -> String {
        match kind {
            ReduceKind::Sum => self.f("addf", a, b),
            ReduceKind::Max => self.t.op(format_args!("llvm.intr.maxnum({a}, {b}) : (f32, f32) -> f32")),
        }
    }

    /// The same over warps that share rows: through shared memory.
    fn across(&mut self, kind: ReduceKind, rank: Rank, totals: Vec<String>) -> Result<Vec<String>, Error> {
        let n = self.plan.fragment.warps[1];
        let at = self.place();
        let base = self.shared_base();
        let base = self.ik("addi", &base, self.plan.exchange);
        let row = if rank.rows { at.row.clone() } else { self.k(0) };
        let row = self.ik("muli", &row, 4 * n);
        let row = self.i("addi", &base, &row);
        let own = self.ik("muli", &at.warp[1], 4);
        let own = self.i("addi", &row, &own);
        let zero = self.k(0);
        let first = self.cmp("eq", &at.lane_col, &zero);
        let (own, row) = (self.shared(&own), self.shared(&row));
        let step = |e: &Self, r: usize| 4 * n * e.plan.fragment.row_offset(r);
        self.barrier();
        self.when(Some(&first), |e| {
            for (r, t) in totals.iter().enumerate() {
                let p = e.step(&own, 3, step(e, r));
                e.t.line(format_args!("llvm.store {t}, {p} {{alignment = 4 : i64}} : f32, !llvm.ptr<3>"));
            }
            Ok(())
        })?;
        self.barrier();
        let mut out = vec![];
        for r in 0..totals.len() {
            let mut total: Option<String> = None;
            for w in 0..n {
                let p = self.step(&row, 3, step(self, r) + 4 * w);
                let x = self.t.op(format_args!("llvm.load {p} {{alignment = 4 : i64}} : !llvm.ptr<3> -> f32"));
                total = Some(match total {
                    None => x,
                    Some(t) => self.combine(kind, &t, &x),
                });
            }
            out.extend(total);
        }
        Ok(out)
    }

    /// Registers chosen by `keep(c, r)`: `fill` where it gives a name that is false.
    pub fn choose(&mut self, x: &[String], rank: Rank, dtype: DType, fill: f64, keep: &mut dyn FnMut(&mut Self, usize, usize) -> Option<String>) -> Vec<String> {
        let (rows, cols) = self.shape(rank);
        let ty = crate::text::Ty::of(dtype, None);
        let fill = self.t.number(ty, fill);
        let mut out = vec![];
        for c in 0..cols {
            for r in 0..rows {
                let v = &x[c * rows + r];
                out.push(match keep(self, c, r) {
                    None => v.clone(),
                    Some(k) => self.t.op(format_args!("arith.select {k}, {v}, {fill} : {ty}")),
                });
            }
        }
        out
    }

    /// A whole number as a float.
    pub fn to_float(&mut self, x: &str) -> String {
        self.t.op(format_args!("arith.sitofp {x} : {I32} to {F32}"))
    }
}

/// The axes of all.
pub(super) fn union(args: &[Value]) -> Rank {
    args.iter().fold(Rank::NONE, |r, a| Rank { rows: r.rows || a.rank.rows, col: r.col.or(a.rank.col) })
}
