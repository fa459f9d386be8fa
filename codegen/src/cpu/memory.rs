//! Between memory and registers: conversion of element types, partial vectors, and tiles whose lanes are not side by side.

use super::plan::V;
use super::{Emit, Span};
use crate::Error;
use crate::scalar;
use crate::text::{Int, Text, Ty};
use ir::tile::{AxisId, View};
use ir::types::DType;

/// A function that kernels share; emitted once into the module.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Helper {
    /// The first few elements of a vector, for types that have no masked instruction.
    LoadPart(DType),
    /// The same for stores.
    StorePart(DType),
    /// A square of memory, rows to lanes.
    Transpose(DType, DType),
    /// Lanes to rows of memory.
    Untranspose(DType, DType),
}

impl Helper {
    fn name(self) -> String {
        match self {
            Helper::LoadPart(d) => format!("load_part_{d}"),
            Helper::StorePart(d) => format!("store_part_{d}"),
            Helper::Transpose(d, c) => format!("transpose_{d}_{c}"),
            Helper::Untranspose(d, c) => format!("untranspose_{d}_{c}"),
        }
    }

    /// Its definition, for vectors of `vl` lanes.
    pub fn text(self, vl: usize) -> String {
        let mut t = Text::new();
        let name = self.name();
        let noinline = "attributes {passthrough = [\"noinline\"]}";
        let head = match self {
            Helper::LoadPart(d) => {
                let raw = raw(d, Some(vl));
                let one = t.name(&Int::K(1));
                let buffer = t.op(format_args!("llvm.alloca {one} x {raw} {{alignment = 64 : i64}} : (i64) -> !llvm.ptr"));
                let zero = t.integer(raw, 0);
                t.line(format_args!("llvm.store {zero}, {buffer} {{alignment = 64 : i64}} : {raw}, !llvm.ptr"));
                copy(&mut t, raw.elem, "%p", &buffer, &Int::V("%n".into()));
                let v = t.op(format_args!("llvm.load {buffer} {{alignment = 64 : i64}} : !llvm.ptr -> {raw}"));
                t.line(format_args!("llvm.return {v} : {raw}"));
                format!("llvm.func internal @{name}(%p: !llvm.ptr, %n: i64) -> {raw} {noinline} {{\n")
            }
            Helper::StorePart(d) => {
                let raw = raw(d, Some(vl));
                let one = t.name(&Int::K(1));
                let buffer = t.op(format_args!("llvm.alloca {one} x {raw} {{alignment = 64 : i64}} : (i64) -> !llvm.ptr"));
                t.line(format_args!("llvm.store %v, {buffer} {{alignment = 64 : i64}} : {raw}, !llvm.ptr"));
                copy(&mut t, raw.elem, &buffer, "%p", &Int::V("%n".into()));
                t.line("llvm.return");
                format!("llvm.func internal @{name}(%v: {raw}, %p: !llvm.ptr, %n: i64) {noinline} {{\n")
            }
            Helper::Transpose(d, c) => {
                let ty = Ty::of(c, Some(vl));
                let last = t.sub(&Int::V("%n".into()), &Int::K(1));
                let rows: Vec<String> = (0..vl)
                    .map(|i| {
                        let k = t.min(&Int::K(i as i64), &last);
                        let k = t.mul(&k, &Int::V("%stride".into()));
                        let p = t.at("%src", memory_elem(d), &k);
                        load(&mut t, &p, d, c, Some(vl))
                    })
                    .collect();
                for (k, col) in transpose(&mut t, &rows, vl, ty).into_iter().enumerate() {
                    let o = t.mul(&Int::from(k), &Int::V("%pitch".into()));
                    let p = t.at("%dst", ty.elem, &o);
                    t.line(format_args!("llvm.store {col}, {p} {{alignment = {} : i64}} : {ty}, !llvm.ptr", vl * c.bytes()));
                }
                t.line("llvm.return");
                format!("llvm.func internal @{name}(%src: !llvm.ptr, %stride: i64, %dst: !llvm.ptr, %pitch: i64, %n: i64) {noinline} {{\n")
            }
            Helper::Untranspose(d, c) => {
                let ty = Ty::of(c, Some(vl));
                let raw = raw(d, Some(vl));
                let columns: Vec<String> = (0..vl)
                    .map(|k| {
                        let o = t.mul(&Int::from(k), &Int::V("%pitch".into()));
                        let p = t.at("%src", ty.elem, &o);
                        t.op(format_args!("llvm.load {p} {{alignment = {} : i64}} : !llvm.ptr -> {ty}", vl * c.bytes()))
                    })
                    .collect();
                let rows: Vec<String> = transpose(&mut t, &columns, vl, ty).iter().map(|r| to_raw(&mut t, r, c, d, Some(vl))).collect();
                let many = t.name(&Int::from(vl));
                let buffer = t.op(format_args!("llvm.alloca {many} x {raw} {{alignment = 64 : i64}} : (i64) -> !llvm.ptr"));
                let full = t.compare("sge", &Int::V("%n".into()), &Int::from(vl));
                t.line(format_args!("scf.if {full} {{"));
                for (i, r) in rows.iter().enumerate() {
                    let o = t.mul(&Int::from(i), &Int::V("%stride".into()));
                    let p = t.at("%dst", raw.elem, &o);
                    t.line(format_args!("llvm.store {r}, {p} {{alignment = {} : i64}} : {raw}, !llvm.ptr", d.bytes()));
                }
                t.line("} else {");
                for (i, r) in rows.iter().enumerate() {
                    let p = t.at(&buffer, raw.elem, &Int::from(i * vl));
                    t.line(format_args!("llvm.store {r}, {p} {{alignment = {} : i64}} : {raw}, !llvm.ptr", d.bytes()));
                }
                let _ = t.for_loop::<()>(&Int::K(0), &Int::V("%n".into()), 1, &[], |t, i, _| {
                    let from = t.mul(&i, &Int::from(vl));
                    let to = t.mul(&i, &Int::V("%stride".into()));
                    let (p, q) = (t.at(&buffer, raw.elem, &from), t.at("%dst", raw.elem, &to));
                    let v = t.op(format_args!("llvm.load {p} {{alignment = {} : i64}} : !llvm.ptr -> {raw}", d.bytes()));
                    t.line(format_args!("llvm.store {v}, {q} {{alignment = {} : i64}} : {raw}, !llvm.ptr", d.bytes()));
                    Ok(vec![])
                });
                t.line("}");
                t.line("llvm.return");
                format!("llvm.func internal @{name}(%src: !llvm.ptr, %pitch: i64, %dst: !llvm.ptr, %stride: i64, %n: i64) {noinline} {{\n")
            }
        };
        head + &t.finish() + "}\n"
    }
}

fn copy(t: &mut Text, elem: &str, from: &str, to: &str, n: &Int) {
    let _ = t.for_loop::<()>(&Int::K(0), n, 1, &[], |t, i, _| {
        let (p, q) = (t.at(from, elem, &i), t.at(to, elem, &i));
        let v = t.op(format_args!("llvm.load {p} : !llvm.ptr -> {elem}"));
        t.line(format_args!("llvm.store {v}, {q} : {elem}, !llvm.ptr"));
        Ok(vec![])
    });
}

/// The type that is loaded and stored for elements of `d`.
fn raw(d: DType, lanes: Option<usize>) -> Ty {
    Ty { elem: memory_elem(d), lanes }
}
fn memory_elem(d: DType) -> &'static str {
    match d {
        DType::F64 => "f64",
        DType::F32 => "f32",
        DType::I32 => "i32",
        DType::BF16 | DType::F16 => "i16",
        DType::Bool => "i8",
    }
}

/// What was loaded for `d`, as a value of `to`.
fn from_raw(t: &mut Text, x: &str, d: DType, to: DType, lanes: Option<usize>) -> String {
    let src = raw(d, lanes);
    let (x, have) = match d {
        DType::F64 | DType::F32 | DType::I32 => (x.to_string(), d),
        DType::BF16 => {
            let (i, f) = (src.with("i32"), src.with("f32"));
            let x = t.op(format_args!("arith.extui {x} : {src} to {i}"));
            let sixteen = t.integer(i, 16);
            let x = t.op(format_args!("arith.shli {x}, {sixteen} : {i}"));
            (t.op(format_args!("arith.bitcast {x} : {i} to {f}")), DType::F32)
        }
        DType::F16 => {
            let (h, f) = (src.with("f16"), src.with("f32"));
            let x = t.op(format_args!("arith.bitcast {x} : {src} to {h}"));
            (t.op(format_args!("arith.extf {x} : {h} to {f}")), DType::F32)
        }
        DType::Bool => {
            let zero = t.integer(src, 0);
            (t.op(format_args!("arith.cmpi ne, {x}, {zero} : {src}")), DType::Bool)
        }
    };
    scalar::convert(t, lanes, have, to, &x)
}

/// A value of `from`, as what is stored for `d`.
fn to_raw(t: &mut Text, x: &str, from: DType, d: DType, lanes: Option<usize>) -> String {
    let x = scalar::convert(t, lanes, from, d, x);
    let dst = raw(d, lanes);
    match d {
        DType::F64 | DType::F32 | DType::I32 => x,
        DType::BF16 => {
            let (i, f) = (dst.with("i32"), dst.with("f32"));
            let x = t.op(format_args!("arith.bitcast {x} : {f} to {i}"));
            let sixteen = t.integer(i, 16);
            let x = t.op(format_args!("arith.shrui {x}, {sixteen} : {i}"));
            t.op(format_args!("arith.trunci {x} : {i} to {dst}"))
        }
        DType::F16 => {
            let (h, f) = (dst.with("f16"), dst.with("f32"));
            let x = t.op(format_args!("arith.truncf {x} : {f} to {h}"));
            t.op(format_args!("arith.bitcast {x} : {h} to {dst}"))
        }
        DType::Bool => t.op(format_args!("arith.extui {x} : {} to {dst}", dst.with("i1"))),
    }
}

fn load(t: &mut Text, p: &str, d: DType, to: DType, lanes: Option<usize>) -> String {
    let x = t.op(format_args!("llvm.load {p} {{alignment = {} : i64}} : !llvm.ptr -> {}", d.bytes(), raw(d, lanes)));
    from_raw(t, &x, d, to, lanes)
}

/// Rows of a square to its columns: first within 128 bits, then 128 bits at a time; each step is one instruction.
fn transpose(t: &mut Text, rows: &[String], vl: usize, ty: Ty) -> Vec<String> {
    let g = if ty.elem == "f64" { 2 } else { 4 };
    let lanes = vl / g;
    let mut shuffle = |a: &str, b: &str, mask: Vec<usize>| {
        let m: Vec<String> = mask.iter().map(|k| k.to_string()).collect();
        t.op(format_args!("vector.shuffle {a}, {b} [{}] : {ty}, {ty}", m.join(", ")))
    };
    let per_lane = |f: &dyn Fn(usize) -> Vec<usize>| (0..lanes).flat_map(|l| f(l * g)).collect::<Vec<usize>>();
    let mut r: Vec<Vec<String>> = vec![];
    for i in 0..lanes {
        let q = &rows[i * g..(i + 1) * g];
        r.push(if g == 2 {
            vec![shuffle(&q[0], &q[1], per_lane(&|l| vec![l, vl + l])), shuffle(&q[0], &q[1], per_lane(&|l| vec![l + 1, vl + l + 1]))]
        } else {
            let low = |l: usize| vec![l, vl + l, l + 1, vl + l + 1];
            let high = |l: usize| vec![l + 2, vl + l + 2, l + 3, vl + l + 3];
            let (a, b) = (shuffle(&q[0], &q[1], per_lane(&low)), shuffle(&q[2], &q[3], per_lane(&low)));
            let (c, d) = (shuffle(&q[0], &q[1], per_lane(&high)), shuffle(&q[2], &q[3], per_lane(&high)));
            let first = |l: usize| vec![l, l + 1, vl + l, vl + l + 1];
            let second = |l: usize| vec![l + 2, l + 3, vl + l + 2, vl + l + 3];
            vec![
                shuffle(&a, &b, per_lane(&first)),
                shuffle(&a, &b, per_lane(&second)),
                shuffle(&c, &d, per_lane(&first)),
                shuffle(&c, &d, per_lane(&second)),
            ]
        });
    }
    // Block (i, l) of 128 bits belongs at (l, i).
    let blocks = |list: [usize; 4]| list.iter().flat_map(|b| (0..g).map(move |k| if *b < 4 { b * g + k } else { vl + (b - 4) * g + k })).collect::<Vec<usize>>();
    let mut columns = vec![String::new(); vl];
    for c in 0..g {
        match lanes {
            1 => columns[c] = r[0][c].clone(),
            2 => {
                for l in 0..2 {
                    let mask: Vec<usize> = (0..g).map(|k| l * g + k).chain((0..g).map(|k| vl + l * g + k)).collect();
                    columns[l * g + c] = shuffle(&r[0][c], &r[1][c], mask);
                }
            }
            _ => {
                for half in 0..2 {
                    let low = [half * 2, half * 2 + 1, 4 + half * 2, 5 + half * 2];
                    let (x, z) = (shuffle(&r[0][c], &r[1][c], blocks(low)), shuffle(&r[2][c], &r[3][c], blocks(low)));
                    columns[half * 2 * g + c] = shuffle(&x, &z, blocks([0, 2, 4, 6]));
                    columns[(half * 2 + 1) * g + c] = shuffle(&x, &z, blocks([1, 3, 5, 7]));
                }
            }
        }
    }
    columns
}

impl Emit<'_> {
    fn call(&mut self, h: Helper, args: &str, types: &str) -> String {
        self.helpers.insert(h);
        format!("llvm.call @{}({args}) : {types}", h.name())
    }

    /// The address in memory of the first element of the current tile of `view`.
    pub(super) fn origin(&mut self, view: &View) -> Result<String, Error> {
        let p = self.buffer(view.buffer);
        let mut at = self.dim(&view.offset)?;
        for (a, s) in &view.strides {
            let s = self.dim(s)?;
            let base = self.axes[a.index()].base.clone();
            let x = self.t.mul(&base, &s);
            at = self.t.add(&at, &x);
        }
        let d = self.plan.p.buffers[view.buffer.index()].dtype;
        Ok(self.t.at(&p, memory_elem(d), &at))
    }
    /// Fetches the line at `p`, to be read (`rw` 0) or written (1), into the first (`hint` 3) or second-level cache (2). It may be no address at all.
    pub(super) fn prefetch(&mut self, p: &str, rw: u8, hint: u8) {
        self.t.line(format_args!("\"llvm.intr.prefetch\"({p}) <{{rw = {rw} : i32, hint = {hint} : i32, cache = 1 : i32}}> : (!llvm.ptr) -> ()"));
    }
    /// `elements` behind `p` in the view's buffer.
    pub(super) fn behind(&mut self, p: &str, view: &View, elements: &Int) -> String {
        let d = self.plan.p.buffers[view.buffer.index()].dtype;
        self.t.at(p, memory_elem(d), elements)
    }

    /// The same, where that may lie outside of the buffer.
    pub(super) fn anywhere(&mut self, p: &str, view: &View, elements: &Int) -> String {
        let elem = memory_elem(self.plan.p.buffers[view.buffer.index()].dtype);
        let i = self.t.name(elements);
        self.t.op(format_args!("llvm.getelementptr {p}[{i}] : (!llvm.ptr, i64) -> !llvm.ptr, {elem}"))
    }

    /// Loads a vector (or scalar) from memory. Of a vector, only the first `count` elements are touched.
    pub(super) fn load(&mut self, p: &str, d: DType, to: DType, lanes: Option<usize>, count: Option<&Int>) -> String {
        let (Some(vl), Some(count)) = (lanes, count.filter(|c| !matches!(c, Int::K(k) if lanes.is_some_and(|n| *k >= n as i64)))) else {
            return load(&mut self.t, p, d, to, lanes);
        };
        let raw = raw(d, lanes);
        let x = if d.bytes() >= 4 {
            let mask = self.mask(vl, count);
            let zero = self.t.number(raw, 0.0);
            self.t.op(format_args!("llvm.intr.masked.load {p}, {mask}, {zero} {{alignment = {} : i32}} : (!llvm.ptr, vector<{vl}xi1>, {raw}) -> {raw}", d.bytes()))
        } else {
            let full = self.t.compare("sge", count, &Int::from(vl));
            let zero = self.t.name(&Int::K(0));
            let n = self.t.max(count, &Int::K(0));
            let n = self.t.name(&n);
            let call = self.call(Helper::LoadPart(d), &format!("{p}, {n}"), &format!("(!llvm.ptr, i64) -> {raw}"));
            let _ = zero;
            let out = self.t.op(format_args!("scf.if {full} -> ({raw}) {{"));
            let a = self.t.op(format_args!("llvm.load {p} {{alignment = {} : i64}} : !llvm.ptr -> {raw}", d.bytes()));
            self.t.line(format_args!("scf.yield {a} : {raw}\n}} else {{"));
            let b = self.t.op(call);
            self.t.line(format_args!("scf.yield {b} : {raw}\n}}"));
            out
        };
        from_raw(&mut self.t, &x, d, to, lanes)
    }

    /// Lanes below `count`.
    pub(super) fn mask(&mut self, vl: usize, count: &Int) -> String {
        let iota = self.t.iota(vl);
        let n = self.t.narrow(count);
        let ty = Ty { elem: "i32", lanes: Some(vl) };
        let n = self.t.splat(&n, ty);
        self.t.op(format_args!("arith.cmpi slt, {iota}, {n} : {ty}"))
    }

    /// Stores a vector (or scalar) to memory; of a vector, only the first `count` elements.
    pub(super) fn store(&mut self, x: &str, p: &str, from: DType, d: DType, lanes: Option<usize>, count: Option<&Int>) {
        let x = to_raw(&mut self.t, x, from, d, lanes);
        let raw = raw(d, lanes);
        let plain = format!("llvm.store {x}, {p} {{alignment = {} : i64}} : {raw}, !llvm.ptr", d.bytes());
        let (Some(vl), Some(count)) = (lanes, count.filter(|c| !matches!(c, Int::K(k) if lanes.is_some_and(|n| *k >= n as i64)))) else {
            match lanes {
                Some(vl) if self.past_caches => self.t.line(format_args!("llvm.store {x}, {p} {{alignment = {} : i64, nontemporal}} : {raw}, !llvm.ptr", vl * d.bytes())),
                _ => self.t.line(plain),
            }
            return;
        };
        let known = matches!(count, Int::K(_));
        if !known {
            let full = self.t.compare("sge", count, &Int::from(vl));
            self.t.line(format_args!("scf.if {full} {{\n{plain}\n}} else {{"));
        }
        if d.bytes() >= 4 {
            let mask = self.mask(vl, count);
            self.t.line(format_args!("llvm.intr.masked.store {x}, {p}, {mask} {{alignment = {} : i32}} : {raw}, vector<{vl}xi1> into !llvm.ptr", d.bytes()));
        } else {
            let n = self.t.max(count, &Int::K(0));
            let n = self.t.name(&n);
            let call = self.call(Helper::StorePart(d), &format!("{x}, {p}, {n}"), &format!("({raw}, !llvm.ptr, i64) -> ()"));
            self.t.line(call);
        }
        if !known {
            self.t.line("}");
        }
    }

    /// A load whose lanes are apart in memory: by squares if another axis is contiguous, else element by element.
    pub(super) fn gather(&mut self, view: &View, out: V) -> Result<(), Error> {
        self.across(view, out, true)
    }
    /// The store of the same kind.
    pub(super) fn scatter(&mut self, view: &View, v: V) -> Result<(), Error> {
        self.across(view, v, false)
    }

    fn across(&mut self, view: &View, v: V, load: bool) -> Result<(), Error> {
        let plan = self.plan;
        let lane = plan.lanes.ok_or_else(|| Error::Internal("a transposing access without a lane axis".into()))?;
        let axes = plan.values[v].axes.iter().copied().chain(view.strides.iter().map(|(a, _)| *a));
        let rows: Vec<AxisId> = plan.tile_axes(axes).into_iter().filter(|a| *a != lane).collect();
        let inner = rows.iter().copied().filter(|a| view.stride(*a).is_some_and(|s| s.is_one())).max_by_key(|a| plan.extent(*a));
        let outer: Vec<AxisId> = rows.iter().copied().filter(|a| Some(*a) != inner).collect();
        let p = self.origin(view)?;
        self.across_rows(view, v, load, &outer, inner, &p, &mut vec![])
    }

    #[allow(clippy::too_many_arguments)] // the state of a recursion
    fn across_rows(&mut self, view: &View, v: V, load: bool, outer: &[AxisId], inner: Option<AxisId>, p: &str, index: &mut Vec<(AxisId, Int)>) -> Result<(), Error> {
        let Some((&a, rest)) = outer.split_first() else {
            return self.across_square(view, v, load, inner, p, index);
        };
        let n = self.axes[a.index()].valid.clone();
        let step = match view.stride(a) {
            Some(s) => self.dim(s)?,
            None => Int::K(0),
        };
        self.looped(&Int::K(0), &n, 1, |e, i| {
            let o = e.t.mul(&i, &step);
            let p = e.behind(p, view, &o);
            index.push((a, i));
            let r = e.across_rows(view, v, load, rest, inner, &p, index);
            index.pop();
            r
        })
    }

    fn across_square(&mut self, view: &View, v: V, load: bool, inner: Option<AxisId>, p: &str, index: &[(AxisId, Int)]) -> Result<(), Error> {
        let plan = self.plan;
        let vl = plan.vl;
        let lane = plan.lanes.ok_or_else(|| Error::Internal("a transposing access without a lane axis".into()))?;
        let stride = match view.stride(lane) {
            Some(s) => self.dim(s)?,
            None => Int::K(0),
        };
        let lanes = self.axes[lane.index()].valid.clone();
        let (Some(x), DType::F32 | DType::F64) = (inner, plan.values[v].dtype) else {
            return self.across_elements(view, v, load, inner, p, index, &stride, &lanes);
        };
        let Span { valid: nx, .. } = self.axes[x.index()].clone();
        if let Int::K(n) = nx
            && n < vl as i64
        {
            return self.across_elements(view, v, load, inner, p, index, &stride, &lanes);
        }
        let d = plan.p.buffers[view.buffer.index()].dtype;
        let c = plan.values[v].dtype;
        let pitch = Int::from(plan.stride(v, x).unwrap_or(0));
        let squares = |e: &mut Self| {
            let last = e.t.sub(&nx, &Int::from(vl));
            e.looped(&Int::K(0), &lanes, vl as i64, |e, l| {
                let o = e.t.mul(&l, &stride);
                let p = e.behind(p, view, &o);
                let n = e.t.sub(&lanes, &l);
                e.looped(&Int::K(0), &nx, vl as i64, |e, i| {
                    // The last square overlaps the one before.
                    let i = e.t.min(&i, &last);
                    let p = e.behind(&p, view, &i);
                    let mut at = index.to_vec();
                    at.push((x, i));
                    let q = e.slot(v, &at, &l)?;
                    let (s, w, n) = (e.t.name(&stride), e.t.name(&pitch), e.t.name(&n));
                    let types = "(!llvm.ptr, i64, !llvm.ptr, i64, i64) -> ()";
                    if load && plan.dots && !e.is_coming(view) {
                        // The square beside it is a panel's next one, or the next panel's: no stream that the hardware sees.
                        let far = e.t.mul(&stride, &Int::from(vl));
                        let mut q = e.anywhere(&p, view, &far);
                        for k in 0..vl {
                            if k > 0 {
                                q = e.anywhere(&q, view, &stride);
                            }
                            e.prefetch(&q, 0, 2);
                        }
                    }
                    let call = if load {
                        e.call(Helper::Transpose(d, c), &format!("{p}, {s}, {q}, {w}, {n}"), types)
                    } else {
                        e.call(Helper::Untranspose(d, c), &format!("{q}, {w}, {p}, {s}, {n}"), types)
                    };
                    e.t.line(call);
                    Ok(())
                })
            })
        };
        if matches!(nx, Int::K(_)) {
            return squares(self);
        }
        let enough = self.t.compare("sge", &nx, &Int::from(vl));
        self.t.line(format_args!("scf.if {enough} {{"));
        squares(self)?;
        self.t.line("} else {");
        self.across_elements(view, v, load, inner, p, index, &stride, &lanes)?;
        self.t.line("}");
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn across_elements(&mut self, view: &View, v: V, load: bool, inner: Option<AxisId>, p: &str, index: &[(AxisId, Int)], stride: &Int, lanes: &Int) -> Result<(), Error> {
        let plan = self.plan;
        let d = plan.p.buffers[view.buffer.index()].dtype;
        let c = plan.values[v].dtype;
        let nx = inner.map_or(Int::K(1), |x| self.axes[x.index()].valid.clone());
        self.looped(&Int::K(0), &nx, 1, |e, i| {
            let p = e.behind(p, view, &i);
            let mut at = index.to_vec();
            at.extend(inner.map(|x| (x, i)));
            e.looped(&Int::K(0), lanes, 1, |e, l| {
                let o = e.t.mul(&l, stride);
                let p = e.behind(&p, view, &o);
                let q = e.slot(v, &at, &l)?;
                if load {
                    let x = e.load(&p, d, c, None, None);
                    e.put(&x, &q, c, None);
                } else {
                    let x = e.get(&q, c, None);
                    e.store(&x, &p, c, d, None, None);
                }
                Ok(())
            })
        })
    }

    /// A tile with its vectors along another axis, by squares; the lane axis is a row of `out`.
    pub(super) fn turn(&mut self, v: V, out: V) -> Result<(), Error> {
        let plan = self.plan;
        let (Some(lane), Some(x)) = (plan.lanes, plan.values[out].vec) else { return Err(Error::Internal("a tile is turned without two axes".into())) };
        let outer: Vec<AxisId> = plan.values[out].axes.iter().copied().filter(|a| *a != lane && *a != x).collect();
        self.turn_rows(v, out, &outer, &mut vec![])
    }

    fn turn_rows(&mut self, v: V, out: V, outer: &[AxisId], index: &mut Vec<(AxisId, Int)>) -> Result<(), Error> {
        let plan = self.plan;
        if let Some((&a, rest)) = outer.split_first() {
            let n = self.axes[a.index()].valid.clone();
            return self.looped(&Int::K(0), &n, 1, |e, i| {
                index.push((a, i));
                let r = e.turn_rows(v, out, rest, index);
                index.pop();
                r
            });
        }
        let (Some(lane), Some(x)) = (plan.lanes, plan.values[out].vec) else { return Err(Error::Internal("a tile is turned without two axes".into())) };
        let (vl, c) = (plan.vl, plan.values[v].dtype);
        let (from, to) = (Int::from(plan.stride(v, x).unwrap_or(0)), Int::from(plan.stride(out, lane).unwrap_or(0)));
        let n = self.axes[x.index()].valid.clone();
        let exist = self.lanes_in_use(lane);
        self.looped(&Int::K(0), &exist, vl as i64, |e, l| {
            e.looped(&Int::K(0), &n, vl as i64, |e, i| {
                let mut at = index.clone();
                at.push((x, i.clone()));
                let p = e.slot(v, &at, &l)?;
                let mut at = index.clone();
                at.push((lane, l));
                let q = e.slot(out, &at, &i)?;
                let left = e.t.sub(&n, &i);
                let (s, w, left) = (e.t.name(&from), e.t.name(&to), e.t.name(&left));
                let call = e.call(Helper::Transpose(c, c), &format!("{p}, {s}, {q}, {w}, {left}"), "(!llvm.ptr, i64, !llvm.ptr, i64, i64) -> ()");
                e.t.line(call);
                Ok(())
            })
        })
    }

    /// Loads from scratch memory.
    pub(super) fn get(&mut self, p: &str, d: DType, lanes: Option<usize>) -> String {
        let ty = Ty::of(if d == DType::Bool { DType::I32 } else { d }, lanes);
        let align = lanes.filter(|_| !self.past_caches).unwrap_or(1) * self.plan.bytes(d);
        let x = self.t.op(format_args!("llvm.load {p} {{alignment = {align} : i64}} : !llvm.ptr -> {ty}"));
        if d == DType::Bool { scalar::convert(&mut self.t, lanes, DType::I32, DType::Bool, &x) } else { x }
    }
    /// Stores to scratch memory.
    pub(super) fn put(&mut self, x: &str, p: &str, d: DType, lanes: Option<usize>) {
        let x = if d == DType::Bool { scalar::convert(&mut self.t, lanes, DType::Bool, DType::I32, x) } else { x.to_string() };
        let ty = Ty::of(if d == DType::Bool { DType::I32 } else { d }, lanes);
        let align = lanes.filter(|_| !self.past_caches).unwrap_or(1) * self.plan.bytes(d);
        self.t.line(format_args!("llvm.store {x}, {p} {{alignment = {align} : i64}} : {ty}, !llvm.ptr"));
    }
}
