//! Block programs written by hand, and a loader that runs their code: shared by tests and examples.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use codegen::{Compiled, Target};
use ir::dim::{Bindings, Dim};
use ir::prim::Elementwise;
use ir::tensor::Tensor;
use ir::tile::*;
use ir::types::DType;
use llvm_sys::orc2::lljit::*;
use std::ffi::{CStr, CString, c_int, c_long, c_void};
use std::sync::atomic::{AtomicI64, Ordering};

pub const F32: DType = DType::F32;

/// A size: a number or a name.
pub fn d(s: &str) -> Dim {
    s.parse::<i64>().map_or_else(|_| Dim::sym(s), Dim::fixed)
}

/// Writes a block program.
pub struct Write {
    pub p: Program,
    stack: Vec<Vec<Stmt>>,
}

impl Write {
    pub fn new(name: &str, compute: DType) -> Write {
        let p = Program {
            name: name.into(),
            axes: vec![],
            buffers: vec![],
            values: vec![],
            body: vec![],
            compute,
            operands: compute,
            lanes: None,
        };
        Write { p, stack: vec![vec![]] }
    }
    pub fn axis(&mut self, name: &str, size: &str, role: Role) -> AxisId {
        self.p.axes.push(TileAxis { name: name.into(), size: d(size), role });
        AxisId(self.p.axes.len() as u32 - 1)
    }
    pub fn buffer(&mut self, name: &str, dtype: DType, shape: &[&str], access: Access) -> BufferId {
        let shape = shape.iter().map(|s| d(s)).collect();
        self.p.buffers.push(Buffer { name: name.into(), dtype, shape, access });
        BufferId(self.p.buffers.len() as u32 - 1)
    }
    pub fn input(&mut self, name: &str, shape: &[&str]) -> BufferId {
        self.buffer(name, F32, shape, Access::Input)
    }
    pub fn output(&mut self, name: &str, shape: &[&str]) -> BufferId {
        self.buffer(name, F32, shape, Access::Output)
    }
    /// One axis per dimension of the buffer.
    pub fn view(&self, b: BufferId, axes: &[AxisId]) -> View {
        let shape = &self.p.buffers[b.index()].shape;
        assert_eq!(shape.len(), axes.len());
        let mut step = Dim::fixed(1);
        let mut strides = vec![];
        for (a, n) in axes.iter().zip(shape).rev() {
            strides.push((*a, step.clone()));
            step = &step * n;
        }
        View { buffer: b, offset: Dim::fixed(0), strides }
    }
    pub fn value(&mut self, dtype: DType, axes: &[AxisId]) -> ValueId {
        let mut axes = axes.to_vec();
        axes.retain(|a| self.p.axis(*a).role != Role::Grid);
        axes.sort();
        axes.dedup();
        self.p.values.push(ValueInfo { dtype, axes, name: None });
        ValueId(self.p.values.len() as u32 - 1)
    }
    fn float(&self, x: DType) -> DType {
        if x.is_float() { self.p.compute } else { x }
    }
    pub fn define(&mut self, dtype: DType, axes: &[AxisId], op: Op) -> ValueId {
        let v = self.value(dtype, axes);
        self.stack.last_mut().unwrap().push(Stmt::Let(v, op));
        v
    }
    pub fn axes(&self, v: ValueId) -> Vec<AxisId> {
        self.p.value(v).axes.clone()
    }
    fn union(&self, vs: &[ValueId]) -> Vec<AxisId> {
        vs.iter().flat_map(|v| self.axes(*v)).collect()
    }
    pub fn load_view(&mut self, v: View) -> ValueId {
        let dtype = self.float(self.p.buffers[v.buffer.index()].dtype);
        let axes: Vec<AxisId> = v.strides.iter().map(|s| s.0).collect();
        self.define(dtype, &axes, Op::Load(v))
    }
    pub fn load(&mut self, b: BufferId, axes: &[AxisId]) -> ValueId {
        let v = self.view(b, axes);
        self.load_view(v)
    }
    pub fn store(&mut self, b: BufferId, axes: &[AxisId], v: ValueId) {
        let view = self.view(b, axes);
        self.stack.last_mut().unwrap().push(Stmt::Store(view, v));
    }
    pub fn number(&mut self, x: f64) -> ValueId {
        self.define(self.p.compute, &[], Op::Const(x))
    }
    pub fn fill(&mut self, axes: &[AxisId], x: f64) -> ValueId {
        self.define(self.p.compute, axes, Op::Const(x))
    }
    pub fn map(&mut self, op: Elementwise, args: &[ValueId]) -> ValueId {
        let types: Vec<DType> = args.iter().map(|v| self.p.value(*v).dtype).collect();
        let dtype = self.float(op.infer(&types).unwrap());
        let axes = self.union(args);
        self.define(dtype, &axes, Op::Map(op, args.to_vec()))
    }
    pub fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.map(Elementwise::Add, &[a, b])
    }
    pub fn sub(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.map(Elementwise::Sub, &[a, b])
    }
    pub fn mul(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.map(Elementwise::Mul, &[a, b])
    }
    pub fn div(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.map(Elementwise::Div, &[a, b])
    }
    pub fn exp(&mut self, a: ValueId) -> ValueId {
        self.map(Elementwise::Exp, &[a])
    }
    pub fn reduce(&mut self, k: ReduceKind, v: ValueId, over: &[AxisId]) -> ValueId {
        let axes: Vec<AxisId> = self.axes(v).into_iter().filter(|a| !over.contains(a)).collect();
        let dtype = self.p.value(v).dtype;
        self.define(dtype, &axes, Op::Reduce(k, v, over.to_vec()))
    }
    pub fn sum(&mut self, v: ValueId, over: &[AxisId]) -> ValueId {
        self.reduce(ReduceKind::Sum, v, over)
    }
    pub fn dot(&mut self, init: &[&[ValueId]], terms: &[(ValueId, ValueId)], sum: &[AxisId]) -> ValueId {
        let all: Vec<ValueId> = terms.iter().flat_map(|(a, b)| [*a, *b]).collect();
        let axes: Vec<AxisId> = self.union(&all).into_iter().filter(|a| !sum.contains(a)).collect();
        let init = init.iter().map(|p| p.to_vec()).collect();
        self.define(self.p.compute, &axes, Op::Dot { init, terms: terms.to_vec(), sum: sum.to_vec() })
    }
    pub fn keep(&mut self, v: ValueId, fill: f64, keep: Vec<Constraint>) -> ValueId {
        let mut axes = self.axes(v);
        axes.extend(keep.iter().flat_map(|c| c.axes.iter().map(|a| a.0)));
        let dtype = self.p.value(v).dtype;
        self.define(dtype, &axes, Op::Fill { value: v, fill, keep })
    }
    /// A loop; the body gets the carried values and gives their next ones. Gives the last ones.
    pub fn stream(
        &mut self,
        axis: AxisId,
        within: Vec<Constraint>,
        init: &[ValueId],
        body: impl FnOnce(&mut Write, &[ValueId]) -> Vec<ValueId>,
    ) -> Vec<ValueId> {
        let like = |w: &mut Write| init.iter().map(|v| w.value(w.p.value(*v).dtype, &w.axes(*v))).collect::<Vec<_>>();
        let inside = like(self);
        self.stack.push(vec![]);
        let next = body(self, &inside);
        let stmts = self.stack.pop().unwrap();
        let after = like(self);
        let carries = (0..init.len()).map(|k| Carry { init: init[k], inside: inside[k], next: next[k], after: after[k] }).collect();
        self.stack.last_mut().unwrap().push(Stmt::For(Loop { axis, within, carries, body: stmts }));
        after
    }
    /// The program, right or not.
    pub fn unverified(mut self) -> Program {
        self.p.body = self.stack.pop().unwrap();
        self.p
    }
    pub fn finish(mut self) -> Program {
        self.p.body = self.stack.pop().unwrap();
        if let Err(e) = ir::tile::verify::verify(&self.p) {
            panic!("{e:?}");
        }
        self.p
    }
}

pub fn at_least_zero(axes: &[(AxisId, i64)], constant: Dim) -> Constraint {
    Constraint { axes: axes.to_vec(), constant, scalars: vec![] }
}

/// Compiled code in this process.
pub struct Kernel {
    pub compiled: Compiled,
    jit: LLVMOrcLLJITRef,
    f: unsafe extern "C" fn(*const *mut u8, *const i64, *mut u8, i64, i64),
}
// SAFETY: the code is immutable once looked up.
unsafe impl Sync for Kernel {}

fn check(e: llvm_sys::error::LLVMErrorRef) {
    if !e.is_null() {
        // SAFETY: an error gives its message once.
        let s = unsafe { CStr::from_ptr(llvm_sys::error::LLVMGetErrorMessage(e)) };
        panic!("{}", s.to_string_lossy());
    }
}

impl Kernel {
    pub fn new(p: &Program, target: &Target) -> Kernel {
        let compiled = match codegen::compile(p, target) {
            Ok(c) => c,
            Err(e) => panic!("{}: {e}", p.name),
        };
        Kernel::load(compiled)
    }
    /// What the emitter writes.
    pub fn text(p: &Program, target: &Target) -> String {
        codegen::cpu::lower(p, target).unwrap_or_else(|e| panic!("{}: {e}", p.name)).0
    }
    pub fn load(compiled: Compiled) -> Kernel {
        let mut jit = std::ptr::null_mut();
        let mut address = 0;
        // SAFETY: the C API as documented; the buffer is copied.
        unsafe {
            check(LLVMOrcCreateLLJIT(&mut jit, std::ptr::null_mut()));
            let code = &compiled.artifact.code;
            let b = llvm_sys::core::LLVMCreateMemoryBufferWithMemoryRangeCopy(code.as_ptr().cast(), code.len(), c"kernel".as_ptr());
            check(LLVMOrcLLJITAddObjectFile(jit, LLVMOrcLLJITGetMainJITDylib(jit), b));
            let symbol = CString::new(compiled.artifact.signature.symbol.clone()).unwrap();
            check(LLVMOrcLLJITLookup(jit, &mut address, symbol.as_ptr()));
            Kernel {
                compiled,
                jit,
                f: std::mem::transmute::<usize, unsafe extern "C" fn(*const *mut u8, *const i64, *mut u8, i64, i64)>(address as usize),
            }
        }
    }

    pub fn instances(&self, dims: &Bindings, panels: usize) -> i64 {
        let grid = &self.compiled.artifact.signature.grid;
        grid.iter().map(|g| (g.size.eval(dims).unwrap() as usize).div_ceil(g.tile * if g.panels { panels } else { 1 }) as i64).product()
    }

    /// Runs all instances on `threads` threads; gives the time that they used, all together.
    ///
    /// # Safety
    /// The buffers are those of the signature.
    pub unsafe fn launch(&self, buffers: &[*mut u8], dims: &Bindings, panels: usize, threads: usize) -> f64 {
        let s = &self.compiled.artifact.signature;
        let numbers: Vec<i64> = s.dims.iter().map(|n| dims[n]).collect();
        let total = self.instances(dims, panels);
        let bytes = s.scratch_fixed + panels * s.scratch_panel;
        let next = AtomicI64::new(0);
        let pointers: Vec<usize> = buffers.iter().map(|p| *p as usize).collect();
        std::thread::scope(|scope| {
            let run = || {
                // SAFETY: denormals off, as the runtime does; intrinsics of every x86-64.
                #[allow(deprecated)]
                unsafe {
                    use std::arch::x86_64::*;
                    _mm_setcsr(_mm_getcsr() | 0x8040);
                }
                let layout = std::alloc::Layout::from_size_align(bytes.max(64), 4096).unwrap();
                // SAFETY: the layout is not empty; the kernel has what its signature says.
                unsafe {
                    let start = thread_seconds();
                    let scratch = std::alloc::alloc(layout);
                    // Garbage, so that reads of what nobody wrote are seen.
                    std::ptr::write_bytes(scratch, 0xff, bytes);
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= total {
                            break;
                        }
                        (self.f)(pointers.as_ptr().cast(), numbers.as_ptr(), scratch, i, panels as i64);
                    }
                    // Kernels may store past the caches.
                    std::arch::x86_64::_mm_sfence();
                    std::alloc::dealloc(scratch, layout);
                    thread_seconds() - start
                }
            };
            let all: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
            all.into_iter().map(|t| t.join().unwrap()).sum()
        })
    }

    /// Seconds that the first instance takes, in the mean of `times`.
    ///
    /// # Safety
    /// The buffers are those of the signature.
    pub unsafe fn repeat(&self, buffers: &[*mut u8], dims: &Bindings, panels: usize, times: usize) -> f64 {
        let s = &self.compiled.artifact.signature;
        let numbers: Vec<i64> = s.dims.iter().map(|n| dims[n]).collect();
        let mut scratch = vec![0u64; (s.scratch_fixed + panels * s.scratch_panel) / 8 + 16];
        let at = scratch.as_mut_ptr().cast::<u8>();
        // SAFETY: within the vector.
        let at = unsafe { at.add(at.align_offset(64)) };
        let start = thread_seconds();
        for _ in 0..times {
            // SAFETY: as launch.
            unsafe { (self.f)(buffers.as_ptr(), numbers.as_ptr(), at, 0, panels as i64) };
        }
        (thread_seconds() - start) / times as f64
    }

    /// Runs on tensors; every buffer ends at a page that cannot be touched.
    pub fn run(&self, dims: &Bindings, inputs: &[Tensor], panels: usize) -> Vec<Tensor> {
        let s = &self.compiled.artifact.signature;
        let mut inputs = inputs.iter();
        let mut memory = vec![];
        for b in &s.buffers {
            let shape: Vec<usize> = b.shape.iter().map(|d| d.eval(dims).unwrap() as usize).collect();
            let bytes = shape.iter().product::<usize>() * b.dtype.bytes();
            let g = Guarded::new(bytes);
            if b.access == Access::Input {
                let t = inputs.next().unwrap();
                assert_eq!(t.shape(), shape);
                g.bytes().copy_from_slice(&t.to_bytes());
            }
            memory.push((g, shape));
        }
        let pointers: Vec<*mut u8> = memory.iter().map(|(g, _)| g.start).collect();
        // SAFETY: buffers made for the signature.
        let _ = unsafe { self.launch(&pointers, dims, panels, 1) };
        let out = s.buffers.iter().zip(&memory).filter(|(b, _)| b.access == Access::Output);
        out.map(|(b, (g, shape))| Tensor::from_bytes(b.dtype, shape, g.bytes()).unwrap()).collect()
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // SAFETY: made by LLVMOrcCreateLLJIT.
        unsafe { check(LLVMOrcDisposeLLJIT(self.jit)) }
    }
}

unsafe extern "C" {
    fn mmap(at: *mut c_void, n: usize, prot: c_int, flags: c_int, fd: c_int, offset: c_long) -> *mut c_void;
    fn mprotect(at: *mut c_void, n: usize, prot: c_int) -> c_int;
    fn munmap(at: *mut c_void, n: usize) -> c_int;
    fn clock_gettime(clock: c_int, t: *mut [c_long; 2]) -> c_int;
}

/// Processor time of this thread.
fn thread_seconds() -> f64 {
    let mut t = [0; 2];
    // SAFETY: a timespec; the thread's clock is number 3.
    unsafe { clock_gettime(3, &mut t) };
    t[0] as f64 + t[1] as f64 * 1e-9
}

/// Bytes between two pages that cannot be touched, next to the second.
struct Guarded {
    base: *mut c_void,
    whole: usize,
    start: *mut u8,
    bytes: usize,
}

impl Guarded {
    fn new(bytes: usize) -> Guarded {
        let room = bytes.next_multiple_of(4096);
        let whole = room + 8192;
        // SAFETY: an anonymous private mapping.
        unsafe {
            let base = mmap(std::ptr::null_mut(), whole, 3, 0x22, -1, 0);
            assert!(base as isize != -1);
            assert_eq!(mprotect(base, 4096, 0), 0);
            assert_eq!(mprotect(base.cast::<u8>().add(4096 + room).cast(), 4096, 0), 0);
            let start = base.cast::<u8>().add(4096 + room - bytes);
            Guarded { base, whole, start, bytes }
        }
    }
    #[allow(clippy::mut_from_ref)]
    fn bytes(&self) -> &mut [u8] {
        // SAFETY: the mapping lives as long as self.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}
impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: made by mmap.
        unsafe { munmap(self.base, self.whole) };
    }
}

/// Numbers that look random, the same every time.
pub struct Random(pub u64);
impl Random {
    pub fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as f64) / f64::from(1u32 << 30) - 1.0
    }
    pub fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        let data: Vec<f64> = (0..shape.iter().product()).map(|_| self.next()).collect();
        Tensor::from_f64(dtype, shape, &data).unwrap()
    }
}

/// Random inputs for `p`.
pub fn inputs(p: &Program, dims: &Bindings, seed: u64) -> Vec<Tensor> {
    let mut r = Random(seed);
    let of = |b: &Buffer| b.shape.iter().map(|s| s.eval(dims).unwrap() as usize).collect::<Vec<_>>();
    p.buffers.iter().filter(|b| b.access == Access::Input).map(|b| r.tensor(b.dtype, &of(b))).collect()
}

/// The same program in f64: what answers are compared to.
pub fn exact(p: &Program) -> Program {
    let mut p = p.clone();
    p.values.iter_mut().filter(|v| v.dtype.is_float()).for_each(|v| v.dtype = DType::F64);
    p.compute = DType::F64;
    p.operands = DType::F64;
    p
}

pub fn bind(pairs: &[(&str, i64)]) -> Bindings {
    pairs.iter().map(|(n, v)| ((*n).into(), *v)).collect()
}

/// Scaled dot products, their maximum, exponentials, and weighted sums, over a streamed axis; `tangents` adds the
/// Jacobian-vector product with a running centre.
pub struct Flash {
    pub head: usize,
    pub stream: usize,
    pub causal: bool,
    pub tangents: bool,
    pub dtype: DType,
    /// Memory order `[B, N, H, D]` instead of `[B, H, N, D]`.
    pub sequence_first: bool,
}

impl Flash {
    pub fn program(&self) -> Program {
        let mut w = Write::new(if self.tangents { "flash.jvp" } else { "flash" }, F32);
        let (b, h) = (w.axis("b", "B", Role::Grid), w.axis("h", "H", Role::Grid));
        let (i, j) = (w.axis("i", "I", Role::Block(48)), w.axis("j", "J", Role::Stream(self.stream)));
        let head = self.head.to_string();
        let e = w.axis("d", &head, Role::Full(self.head));
        w.p.lanes = Some(i);
        let order = |n| if self.sequence_first { [b, n, h, e] } else { [b, h, n, e] };
        let shape = |n: &'static str| if self.sequence_first { ["B", n, "H", ""] } else { ["B", "H", n, ""] };
        let buffer = |w: &mut Write, name: &str, n: &'static str, a| {
            let s = shape(n);
            w.buffer(name, self.dtype, &[s[0], s[1], s[2], &head], a)
        };
        let (q, k, v) =
            (buffer(&mut w, "q", "I", Access::Input), buffer(&mut w, "k", "J", Access::Input), buffer(&mut w, "v", "J", Access::Input));
        let t = self.tangents.then(|| {
            (
                buffer(&mut w, "q.t", "I", Access::Input),
                buffer(&mut w, "k.t", "J", Access::Input),
                buffer(&mut w, "v.t", "J", Access::Input),
            )
        });
        let o = buffer(&mut w, "o", "I", Access::Output);
        let ot = self.tangents.then(|| buffer(&mut w, "o.t", "I", Access::Output));

        let scale = w.number(1.0 / (self.head as f64).sqrt());
        let q = w.load(q, &order(i));
        let q = w.mul(q, scale);
        let qt = t.map(|t| {
            let x = w.load(t.0, &order(i));
            w.mul(x, scale)
        });
        let visible = || vec![at_least_zero(&[(i, 1), (j, -1)], Dim::fixed(0))];
        let within = if self.causal { visible() } else { vec![] };
        let mut init = vec![w.fill(&[i], LOWEST), w.fill(&[i], 0.0), w.fill(&[i, e], 0.0)];
        if self.tangents {
            init.extend([w.fill(&[i], 0.0), w.fill(&[i, e], 0.0), w.fill(&[i], 0.0)]);
        }
        let after = w.stream(j, within, &init, |w, c| {
            let (m, l, acc) = (c[0], c[1], c[2]);
            let (kj, vj) = (w.load(k, &order(j)), w.load(v, &order(j)));
            let mut s = w.dot(&[], &[(q, kj)], &[e]);
            if self.causal {
                s = w.keep(s, -3e38, visible());
            }
            let top = w.reduce(ReduceKind::Max, s, &[j]);
            let m1 = w.map(Elementwise::Max, &[m, top]);
            let dm = w.sub(m, m1);
            let corr = w.exp(dm);
            let x = w.sub(s, m1);
            let p = w.exp(x);
            let ps = w.sum(p, &[j]);
            let lc = w.mul(l, corr);
            let l1 = w.add(lc, ps);
            let mut next = vec![m1, l1];
            if let (Some(t), Some(qt)) = (t, qt) {
                let (r, acct, centre) = (c[3], c[4], c[5]);
                let (kt, vt) = (w.load(t.1, &order(j)), w.load(t.2, &order(j)));
                let st = w.dot(&[], &[(qt, kj), (q, kt)], &[e]);
                let pst = w.mul(p, st);
                let pss = w.sum(pst, &[j]);
                let cl = w.mul(centre, l);
                let rc = w.add(r, cl);
                let rc = w.mul(rc, corr);
                let rc = w.add(rc, pss);
                let tiny = w.number(1e-30);
                let safe = w.map(Elementwise::Max, &[l1, tiny]);
                let c1 = w.div(rc, safe);
                let x = w.sub(st, c1);
                let hh = w.mul(p, x);
                let hs = w.sum(hh, &[j]);
                let shift = w.sub(centre, c1);
                let a = w.mul(shift, l);
                let a = w.add(r, a);
                let a = w.mul(a, corr);
                let r1 = w.add(a, hs);
                let both = w.mul(shift, corr);
                let acc1 = w.dot(&[&[acc, corr]], &[(p, vj)], &[j]);
                let acct1 = w.dot(&[&[acct, corr], &[acc, both]], &[(hh, vj), (p, vt)], &[j]);
                next.extend([acc1, r1, acct1, c1]);
            } else {
                next.push(w.dot(&[&[acc, corr]], &[(p, vj)], &[j]));
            }
            next
        });
        let tiny = w.number(1e-30);
        let l = w.map(Elementwise::Max, &[after[1], tiny]);
        let y = w.div(after[2], l);
        w.store(o, &order(i), y);
        if let Some(ot) = ot {
            let share = w.div(after[3], l);
            let x = w.mul(share, after[2]);
            let x = w.sub(after[4], x);
            let x = w.div(x, l);
            w.store(ot, &order(i), x);
        }
        w.finish()
    }
}

/// y[m, n] = tanh(Σₖ x[m, k]·w[·] + bias[n]) + r[m, n]
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// Lanes along m, else along n.
    pub lanes_m: bool,
    /// Weights `[K, N]`, else `[N, K]`.
    pub k_major: bool,
    /// Tile of the parallel axis that has no lanes.
    pub block: usize,
    /// Tile of the streamed axis.
    pub stream: usize,
    /// The summed axis is resident, of this size.
    pub full: Option<usize>,
}

impl Linear {
    pub fn program(self) -> Program {
        let mut w = Write::new("linear", F32);
        let (m, n) = (w.axis("m", "M", Role::Block(self.block)), w.axis("n", "N", Role::Block(self.block)));
        let ks = self.full.map_or("K".to_string(), |k| k.to_string());
        let k = w.axis("k", &ks, self.full.map_or(Role::Stream(self.stream), Role::Full));
        w.p.lanes = Some(if self.lanes_m { m } else { n });
        let x = w.input("x", &["M", &ks]);
        let shape = if self.k_major { [ks.as_str(), "N"] } else { ["N", ks.as_str()] };
        let order = if self.k_major { [k, n] } else { [n, k] };
        let b = w.input("w", &shape);
        let bias = w.input("bias", &["N"]);
        let r = w.input("r", &["M", "N"]);
        let y = w.output("y", &["M", "N"]);
        let product = |w: &mut Write, init: &[&[ValueId]]| {
            let (xk, wk) = (w.load(x, &[m, k]), w.load(b, &order));
            w.dot(init, &[(xk, wk)], &[k])
        };
        let acc = if self.full.is_some() {
            product(&mut w, &[])
        } else {
            let zero = w.fill(&[m, n], 0.0);
            w.stream(k, vec![], &[zero], |w, c| vec![product(w, &[&[c[0]]])])[0]
        };
        let bias = w.load(bias, &[n]);
        let z = w.add(acc, bias);
        let z = w.map(Elementwise::Tanh, &[z]);
        let r = w.load(r, &[m, n]);
        let z = w.add(z, r);
        w.store(y, &[m, n], z);
        w.finish()
    }
}

/// Rows centred and divided by their deviation, with a gain; `dtype` in memory.
pub fn row_norm(features: usize, dtype: DType, rows: Role, compute: DType) -> Program {
    let mut w = Write::new("row_norm", compute);
    let r = w.axis("r", "R", rows);
    let fs = features.to_string();
    let f = w.axis("f", &fs, Role::Full(features));
    w.p.lanes = Some(f);
    let x = w.buffer("x", dtype, &["R", &fs], Access::Input);
    let g = w.buffer("g", dtype, &[&fs], Access::Input);
    let y = w.buffer("y", dtype, &["R", &fs], Access::Output);
    let mean = w.buffer("mean", F32, &["R"], Access::Output);
    let x = w.load(x, &[r, f]);
    let g = w.load(g, &[f]);
    let n = w.number(features as f64);
    let s = w.sum(x, &[f]);
    let mu = w.div(s, n);
    let c = w.sub(x, mu);
    let c2 = w.mul(c, c);
    let s2 = w.sum(c2, &[f]);
    let var = w.div(s2, n);
    let eps = w.number(1e-5);
    let var = w.add(var, eps);
    let inv = w.map(Elementwise::Rsqrt, &[var]);
    let z = w.mul(c, inv);
    let z = w.mul(z, g);
    w.store(y, &[r, f], z);
    w.store(mean, &[r], mu);
    w.finish()
}

/// Applies `op` to inputs of shape [R, C] and [C], with lanes along either axis, or none.
pub fn elementwise(op: Elementwise, lanes: usize, compute: DType) -> Program {
    let mut w = Write::new(&format!("map.{}", op.name()), compute);
    let (r, c) = (w.axis("r", "R", Role::Block(16)), w.axis("c", "C", Role::Block(32)));
    w.p.lanes = [Some(r), Some(c), None][lanes];
    let x = w.buffer("x", compute, &["R", "C"], Access::Input);
    let y = w.buffer("y", compute, &["C"], Access::Input);
    let o = w.buffer("o", compute, &["R", "C"], Access::Output);
    let x = w.load(x, &[r, c]);
    let y = w.load(y, &[c]);
    let z = w.map(op, &[x, y][..op.arity().min(2)]);
    w.store(o, &[r, c], z);
    w.finish()
}
