//! A thread for each element: what any block program can be, and what a kernel becomes that has no form over fragments.
//!
//! A thread has one position of every parallel axis, loops step through the streamed axis one by one, and a reduction is a loop around the expression that it reduces, whose parts are
//! computed where they are needed. What a loop carries along axes that no one sums is spread over threads, too; what it carries along others is in the thread's own memory. Nothing is
//! shared between threads, and tiles are not seen: slow where much is reused, exact in the program's own type, f64 included.

use super::emit::{memory_type, named};
use crate::Error;
use crate::scalar;
use crate::text::{Int, Text, Ty};
use ir::artifact::{GpuSignature, GridAxis};
use ir::dim::{Dim, Name};
use ir::prim::Elementwise;
use ir::tile::{AxisId, Carry, Constraint, LOWEST, Op, Program, ReduceKind, Role, Stmt, ValueId, View};
use ir::types::DType;
use std::collections::{BTreeMap, BTreeSet};

/// Threads of a block.
const THREADS: usize = 128;
const L: Ty = Ty { elem: "i64", lanes: None };

/// MLIR text of the kernel's body, and how to launch it.
///
/// # Errors
/// A bug of ours: a size or a value that is not the program's.
pub(super) fn lower(p: &Program, symbol: &str) -> Result<(String, GpuSignature), Error> {
    let spread = spread(p);
    let parallel: Vec<usize> = (0..p.axes.len()).filter(|a| matches!(p.axes[*a].role, Role::Grid | Role::Block(_)) || spread.contains(&AxisId(*a as u32))).collect();
    // Threads lie along what lies side by side in memory where that is known, else along the last axis with tiles.
    let tiled = |a: &&usize| !matches!(p.axes[**a].role, Role::Grid);
    let lanes = p.lanes.map(AxisId::index).filter(|a| tiled(&a)).or_else(|| parallel.iter().rev().find(tiled).or(parallel.last()).copied());
    let grid: Vec<GridAxis> = parallel.iter().map(|a| GridAxis { size: p.axes[*a].size.clone(), tile: if Some(*a) == lanes { THREADS } else { 1 }, panels: false }).collect();
    let threads = if lanes.is_some() { THREADS } else { 1 };
    let mut e = Each { p, t: Text::new(), dims: p.dims(), position: vec![None; p.axes.len()], known: vec![Scope::default()], made: BTreeMap::new(), arrays: BTreeMap::new() };
    e.collect(&p.body);
    let block = e.t.op("nvvm.read.ptx.sreg.ctaid.x : i32");
    let mut rest = Int::V(e.t.op(format_args!("arith.extui {block} : i32 to i64")));
    for (a, g) in parallel.iter().zip(&grid).rev() {
        let size = e.dim(&g.size)?;
        let blocks = e.t.ceil_div(&size, &Int::from(g.tile));
        let own = e.t.rem(&rest, &blocks);
        rest = e.t.div(&rest, &blocks);
        e.position[*a] = Some(own);
    }
    let mut inside = None;
    if let Some(a) = lanes {
        let tid = e.t.op("nvvm.read.ptx.sreg.tid.x : i32");
        let tid = Int::V(e.t.op(format_args!("arith.extui {tid} : i32 to i64")));
        let own = e.position[a].take().unwrap_or(Int::K(0));
        let first = e.t.mul(&own, &Int::from(THREADS));
        let own = e.t.add(&first, &tid);
        let size = e.dim(&p.axes[a].size)?;
        inside = Some(e.t.compare("slt", &own, &size));
        e.position[a] = Some(own);
    }
    match inside {
        None => e.body(&p.body)?,
        Some(c) => {
            e.t.line(format_args!("scf.if {c} {{"));
            e.body(&p.body)?;
            e.t.line("}");
        }
    }
    let signature = GpuSignature { symbol: symbol.into(), buffers: p.buffers.clone(), dims: p.dims(), grid, block: threads, shared_bytes: 0, maps: vec![], multiples: vec![], resident: 0, exclusive: false, cluster: 0 };
    Ok((e.t.finish(), signature))
}

/// What is known within a block of text: values, and the axes whose positions it gave.
#[derive(Default)]
struct Scope {
    values: BTreeMap<ValueId, String>,
    axes: BTreeSet<AxisId>,
}

struct Each<'p> {
    p: &'p Program,
    t: Text,
    dims: Vec<Name>,
    /// Per axis the present position.
    position: Vec<Option<Int>>,
    known: Vec<Scope>,
    /// What makes each value, but for carried ones.
    made: BTreeMap<ValueId, &'p Op>,
    /// Carried values that are in the thread's own memory.
    arrays: BTreeMap<ValueId, Array>,
}

/// Memory of a thread: its address, and the axes that it has, the last one fastest.
#[derive(Clone)]
struct Array {
    address: String,
    axes: Vec<AxisId>,
}

/// Axes of a store: those of the value, and those along which the view repeats it.
fn stored(p: &Program, view: &View, v: ValueId) -> BTreeSet<AxisId> {
    p.value(v).axes.iter().copied().chain(view.strides.iter().map(|(a, _)| *a)).collect()
}

/// Axes that stand in tiles whole, that loops carry, that nothing sums and every store has.
fn spread(p: &Program) -> BTreeSet<AxisId> {
    fn walk(p: &Program, body: &[Stmt], carried: &mut BTreeSet<AxisId>, not: &mut BTreeSet<AxisId>) {
        for s in body {
            match s {
                Stmt::Let(_, Op::Reduce(_, _, sum) | Op::Dot { sum, .. }) => not.extend(sum),
                Stmt::Let(..) => {}
                Stmt::Store(view, v) => {
                    let has = stored(p, view, *v);
                    not.extend((0..p.axes.len() as u32).map(AxisId).filter(|a| !has.contains(a)));
                }
                Stmt::For(l) => {
                    carried.extend(l.carries.iter().flat_map(|c| &p.value(c.inside).axes));
                    walk(p, &l.body, carried, not);
                }
            }
        }
    }
    let (mut carried, mut not) = (BTreeSet::new(), BTreeSet::new());
    walk(p, &p.body, &mut carried, &mut not);
    carried.into_iter().filter(|a| matches!(p.axis(*a).role, Role::Full(_)) && !not.contains(a)).collect()
}

fn float(d: DType) -> bool {
    matches!(d, DType::F32 | DType::F64)
}

impl<'p> Each<'p> {
    fn collect(&mut self, body: &'p [Stmt]) {
        for s in body {
            match s {
                Stmt::Let(v, op) => _ = self.made.insert(*v, op),
                Stmt::For(l) => self.collect(&l.body),
                Stmt::Store(..) => {}
            }
        }
    }
    /// The type of a value in registers: floats are in the type that the program computes in, rounded where they are declared narrower.
    fn dtype(&self, v: ValueId) -> DType {
        let d = self.p.value(v).dtype;
        if d.is_float() { self.p.compute } else { d }
    }
    fn body(&mut self, body: &'p [Stmt]) -> Result<(), Error> {
        for s in body {
            match s {
                // What is one element here is made here, so that loops behind it find it.
                Stmt::Let(v, _) => {
                    if self.p.value(*v).axes.iter().all(|a| self.position[a.index()].is_some()) {
                        self.value(*v)?;
                    }
                }
                Stmt::Store(view, v) => {
                    let free: Vec<AxisId> = stored(self.p, view, *v).into_iter().filter(|a| self.position[a.index()].is_none()).collect();
                    self.over(&free, &[], &mut |e, _| {
                        let x = e.value(*v)?;
                        e.store(view, &x, e.dtype(*v))?;
                        Ok(vec![])
                    })?;
                }
                Stmt::For(l) => {
                    let (one, many): (Vec<&Carry>, Vec<&Carry>) = l.carries.iter().partition(|c| self.p.value(c.inside).axes.iter().all(|a| self.position[a.index()].is_some()));
                    let start: Vec<(String, DType)> = one.iter().map(|c| Ok((self.value(c.init)?, self.dtype(c.inside)))).collect::<Result<_, Error>>()?;
                    // Of each two: what was carried here, and what will be.
                    let mut arrays: Vec<[Array; 2]> = vec![];
                    for c in &many {
                        let of = [self.array(c.inside), self.array(c.inside)];
                        self.fill(&of[0], c.init)?;
                        self.arrays.insert(c.inside, of[0].clone());
                        self.arrays.insert(c.after, of[0].clone());
                        arrays.push(of);
                    }
                    let after = self.over(&[l.axis], &start, &mut |e, inside| {
                        let top = e.top();
                        top.values.extend(one.iter().map(|c| c.inside).zip(inside.iter().cloned()));
                        e.body(&l.body)?;
                        let next = one.iter().map(|c| e.value(c.next)).collect::<Result<Vec<_>, _>>()?;
                        for (c, [_, to]) in many.iter().zip(&arrays) {
                            e.fill(to, c.next)?;
                        }
                        for (c, [to, from]) in many.iter().zip(&arrays) {
                            e.over(&from.axes.clone(), &[], &mut |e, _| {
                                let x = e.element(from, e.dtype(c.inside))?;
                                e.put(to, &x, e.dtype(c.inside))?;
                                Ok(vec![])
                            })?;
                        }
                        Ok(next)
                    })?;
                    let top = self.top();
                    top.values.extend(one.iter().map(|c| c.after).zip(after));
                }
            }
        }
        Ok(())
    }
    /// Memory for a value's elements along the axes that have no position here.
    fn array(&mut self, v: ValueId) -> Array {
        let axes: Vec<AxisId> = self.p.value(v).axes.iter().copied().filter(|a| self.position[a.index()].is_none()).collect();
        let n: usize = axes.iter().map(|a| self.p.axis(*a).extent()).product();
        let n = self.t.integer(L, n as i64);
        // What is spelled alike is shared: each has a number in a remark.
        let own = self.t.fresh();
        let address = self.t.entry(format!("llvm.alloca {n} x {} {{alignment = 8 : i64}} : (i64) -> !llvm.ptr // {own}", Ty::of(self.dtype(v), None)));
        Array { address, axes }
    }
    fn fill(&mut self, to: &Array, from: ValueId) -> Result<(), Error> {
        self.over(&to.axes.clone(), &[], &mut |e, _| {
            let x = e.value(from)?;
            e.put(to, &x, e.dtype(from))?;
            Ok(vec![])
        })?;
        Ok(())
    }
    /// The address of an array's element at the present positions.
    fn place(&mut self, of: &Array, d: DType) -> Result<String, Error> {
        let mut at = Int::K(0);
        for a in &of.axes {
            let n = self.p.axis(*a).extent();
            at = self.t.mul(&at, &Int::from(n));
            let i = self.at(*a)?;
            at = self.t.add(&at, &i);
        }
        let at = self.t.name(&at);
        Ok(self.t.op(format_args!("llvm.getelementptr {}[{at}] : (!llvm.ptr, i64) -> !llvm.ptr, {}", of.address, Ty::of(d, None))))
    }
    fn element(&mut self, of: &Array, d: DType) -> Result<String, Error> {
        let p = self.place(of, d)?;
        Ok(self.t.op(format_args!("llvm.load {p} : !llvm.ptr -> {}", Ty::of(d, None))))
    }
    fn put(&mut self, to: &Array, x: &str, d: DType) -> Result<(), Error> {
        let p = self.place(to, d)?;
        self.t.line(format_args!("llvm.store {x}, {p} : {}, !llvm.ptr", Ty::of(d, None)));
        Ok(())
    }
    fn top(&mut self) -> &mut Scope {
        if self.known.is_empty() {
            self.known.push(Scope::default());
        }
        let last = self.known.len() - 1;
        &mut self.known[last]
    }
    /// Loops over `axes`, the last one innermost, with what is carried; gives the last of it.
    fn over(&mut self, axes: &[AxisId], carried: &[(String, DType)], body: &mut dyn FnMut(&mut Self, &[String]) -> Result<Vec<String>, Error>) -> Result<Vec<String>, Error> {
        let Some((a, rest)) = axes.split_first() else { return body(self, &carried.iter().map(|c| c.0.clone()).collect::<Vec<_>>()) };
        let size = self.dim(&self.p.axis(*a).size)?;
        let (from, to, step) = (self.t.name(&Int::K(0)), self.t.name(&size), self.t.name(&Int::K(1)));
        let i = self.t.fresh();
        let inside: Vec<String> = carried.iter().map(|_| self.t.fresh()).collect();
        let types = carried.iter().map(|c| Ty::of(c.1, None).to_string()).collect::<Vec<_>>().join(", ");
        let result = self.t.fresh();
        if carried.is_empty() {
            self.t.line(format_args!("scf.for {i} = {from} to {to} step {step} : i64 {{"));
        } else {
            let starts = inside.iter().zip(carried).map(|(n, c)| format!("{n} = {}", c.0)).collect::<Vec<_>>().join(", ");
            self.t.line(format_args!("{result}:{} = scf.for {i} = {from} to {to} step {step} iter_args({starts}) -> ({types}) : i64 {{", carried.len()));
        }
        let before = self.position[a.index()].replace(Int::V(i));
        self.known.push(Scope { axes: [*a].into(), ..Scope::default() });
        let own: Vec<(String, DType)> = inside.into_iter().zip(carried.iter().map(|c| c.1)).collect();
        let out = self.over(rest, &own, body)?;
        self.known.pop();
        self.position[a.index()] = before;
        if !carried.is_empty() {
            self.t.line(format_args!("scf.yield {} : {types}", out.join(", ")));
        }
        self.t.line("}");
        Ok((0..carried.len()).map(|k| format!("{result}#{k}")).collect())
    }
    /// A value at the present positions.
    fn value(&mut self, v: ValueId) -> Result<String, Error> {
        let axes = &self.p.value(v).axes;
        // A scope further out may know it for other positions of an axis that was given anew since.
        for s in self.known.iter().rev() {
            if let Some(x) = s.values.get(&v) {
                return Ok(x.clone());
            }
            if axes.iter().any(|a| s.axes.contains(a)) {
                break;
            }
        }
        if let Some(a) = self.arrays.get(&v).cloned() {
            let x = self.element(&a, self.dtype(v))?;
            self.top().values.insert(v, x.clone());
            return Ok(x);
        }
        let Some(op) = self.made.get(&v).copied() else {
            return Err(Error::Internal(format!("{}: a carried value is read outside of its loop", self.p.name)));
        };
        let x = self.made_by(v, op)?;
        self.top().values.insert(v, x.clone());
        Ok(x)
    }
    fn made_by(&mut self, v: ValueId, op: &'p Op) -> Result<String, Error> {
        let d = self.dtype(v);
        let ty = Ty::of(d, None);
        Ok(match op {
            Op::Const(x) => self.t.number(ty, *x),
            Op::Size(n) => {
                let n = self.dim(n)?;
                self.whole(&n, d)
            }
            Op::Position(a) => {
                let at = self.at(*a)?;
                self.t.narrow(&at)
            }
            Op::Load(view) => self.load(view, d)?,
            Op::Map(f, args) => {
                let from: Vec<DType> = args.iter().map(|a| self.dtype(*a)).collect();
                let args = args.iter().map(|a| self.value(*a)).collect::<Result<Vec<_>, _>>()?;
                let x = scalar::emit(&mut self.t, *f, None, &from, &args)?;
                // Rounded, and in the type of the program's registers again.
                match f {
                    Elementwise::Convert(to) if to.is_float() && d.is_float() && (*to == DType::F64) != (d == DType::F64) => scalar::convert(&mut self.t, None, *to, d, &x),
                    _ => x,
                }
            }
            Op::Reduce(kind, x, over) => {
                let over = self.free(over);
                if over.is_empty() {
                    return self.value(*x);
                }
                let (start, f) = match kind {
                    ReduceKind::Sum => (self.t.number(ty, 0.0), Elementwise::Add),
                    ReduceKind::Max => (self.t.number(ty, LOWEST), Elementwise::Max),
                };
                let out = self.over(&over, &[(start, d)], &mut |e, inside| {
                    let y = e.value(*x)?;
                    Ok(vec![scalar::emit(&mut e.t, f, None, &[d, d], &[inside[0].clone(), y])?])
                })?;
                out[0].clone()
            }
            Op::Dot { init, terms, sum } => {
                let mut start = self.t.number(ty, 0.0);
                for product in init {
                    let mut x = self.value(product[0])?;
                    for y in &product[1..] {
                        let y = self.value(*y)?;
                        x = scalar::emit(&mut self.t, Elementwise::Mul, None, &[d, d], &[x, y])?;
                    }
                    start = scalar::emit(&mut self.t, Elementwise::Add, None, &[d, d], &[start, x])?;
                }
                let over = self.free(sum);
                let mut step = |e: &mut Self, inside: &[String]| {
                    let mut acc = inside[0].clone();
                    for (a, b) in terms {
                        let (a, b) = (e.value(*a)?, e.value(*b)?);
                        acc = scalar::fma(&mut e.t, ty, &a, &b, &acc);
                    }
                    Ok(vec![acc])
                };
                let out = if over.is_empty() { step(self, &[start])? } else { self.over(&over, &[(start, d)], &mut step)? };
                out[0].clone()
            }
            Op::Fill { value, fill, keep } => {
                let x = self.value(*value)?;
                let otherwise = self.t.number(ty, *fill);
                let mut all: Option<String> = None;
                for c in keep {
                    let holds = self.holds(c)?;
                    all = Some(match all {
                        None => holds,
                        Some(a) => self.t.op(format_args!("arith.andi {a}, {holds} : i1")),
                    });
                }
                match all {
                    None => x,
                    Some(c) => self.t.op(format_args!("arith.select {c}, {x}, {otherwise} : {ty}")),
                }
            }
        })
    }
    /// Axes of a sum that have no position yet: of the streamed one this is an element already.
    fn free(&self, over: &[AxisId]) -> Vec<AxisId> {
        over.iter().copied().filter(|a| !matches!(self.p.axis(*a).role, Role::Stream(_))).collect()
    }
    fn at(&self, a: AxisId) -> Result<Int, Error> {
        self.position[a.index()].clone().ok_or_else(|| Error::Internal(format!("{}: axis `{}` has no position here", self.p.name, self.p.axis(a).name)))
    }
    fn whole(&mut self, n: &Int, d: DType) -> String {
        if !float(d) {
            return self.t.narrow(n);
        }
        let ty = Ty::of(d, None);
        match n {
            Int::K(k) => self.t.number(ty, *k as f64),
            Int::V(n) => self.t.op(format_args!("arith.sitofp {n} : i64 to {ty}")),
        }
    }
    fn holds(&mut self, c: &Constraint) -> Result<String, Error> {
        let mut sum = self.dim(&c.constant)?;
        for (a, k) in &c.axes {
            let at = self.at(*a)?;
            let part = self.t.mul(&at, &Int::K(*k));
            sum = self.t.add(&sum, &part);
        }
        for (v, k) in &c.scalars {
            let x = self.value(*v)?;
            let x = Int::V(self.t.op(format_args!("arith.extsi {x} : i32 to i64")));
            let part = self.t.mul(&x, &Int::K(*k));
            sum = self.t.add(&sum, &part);
        }
        Ok(self.t.compare("sge", &sum, &Int::K(0)))
    }
    /// The address of the element that a view has at the present positions.
    fn address(&mut self, view: &View) -> Result<String, Error> {
        let mut at = self.dim(&view.offset)?;
        for (a, stride) in &view.strides {
            let (i, s) = (self.at(*a)?, self.dim(stride)?);
            let part = self.t.mul(&i, &s);
            at = self.t.add(&at, &part);
        }
        let bytes = self.p.buffers[view.buffer.index()].dtype.bytes();
        let at = self.t.mul(&at, &Int::from(bytes));
        let at = self.t.name(&at);
        Ok(self.t.op(format_args!("llvm.getelementptr %b{}[{at}] : (!llvm.ptr<1>, i64) -> !llvm.ptr<1>, i8", view.buffer.index())))
    }
    fn load(&mut self, view: &View, to: DType) -> Result<String, Error> {
        let p = self.address(view)?;
        let d = self.p.buffers[view.buffer.index()].dtype;
        let ty = memory_type(d);
        let x = self.t.op(format_args!("llvm.load {p} {{alignment = {} : i64}} : !llvm.ptr<1> -> {ty}", d.bytes()));
        Ok(match d {
            DType::Bool => {
                let zero = self.t.integer(Ty { elem: "i8", lanes: None }, 0);
                let x = self.t.op(format_args!("arith.cmpi ne, {x}, {zero} : i8"));
                if to == d { x } else { scalar::convert(&mut self.t, None, d, to, &x) }
            }
            DType::BF16 => {
                let x = self.t.op(format_args!("arith.extui {x} : i16 to i32"));
                let by = self.t.integer(Ty { elem: "i32", lanes: None }, 16);
                let x = self.t.op(format_args!("arith.shli {x}, {by} : i32"));
                let x = self.t.op(format_args!("arith.bitcast {x} : i32 to f32"));
                if to == DType::F32 { x } else { scalar::convert(&mut self.t, None, DType::F32, to, &x) }
            }
            DType::F16 => {
                let x = self.t.op(format_args!("arith.bitcast {x} : i16 to f16"));
                self.t.op(format_args!("arith.extf {x} : f16 to {}", Ty::of(to, None)))
            }
            d if d == to => x,
            d => scalar::convert(&mut self.t, None, d, to, &x),
        })
    }
    fn store(&mut self, view: &View, x: &str, from: DType) -> Result<(), Error> {
        let p = self.address(view)?;
        let d = self.p.buffers[view.buffer.index()].dtype;
        let x = if from == d { x.to_string() } else { scalar::convert(&mut self.t, None, from, d, x) };
        let x = match d {
            DType::Bool => self.t.op(format_args!("arith.extui {x} : i1 to i8")),
            // A rounded float in a register of its own width.
            DType::BF16 => {
                let x = self.t.op(format_args!("arith.bitcast {x} : f32 to i32"));
                let by = self.t.integer(Ty { elem: "i32", lanes: None }, 16);
                let x = self.t.op(format_args!("arith.shrui {x}, {by} : i32"));
                self.t.op(format_args!("arith.trunci {x} : i32 to i16"))
            }
            DType::F16 => {
                let x = self.t.op(format_args!("arith.truncf {x} : f32 to f16"));
                self.t.op(format_args!("arith.bitcast {x} : f16 to i16"))
            }
            _ => x,
        };
        self.t.line(format_args!("llvm.store {x}, {p} {{alignment = {} : i64}} : {}, !llvm.ptr<1>", d.bytes(), memory_type(d)));
        Ok(())
    }
    /// A run-time size, computed on entry.
    fn dim(&mut self, d: &Dim) -> Result<Int, Error> {
        self.t.size(d, &named(&self.dims))
    }
}
