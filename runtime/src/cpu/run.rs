//! A plan on this CPU: kernels, one arena, and pointers that are known beforehand but for where parameters and results are.

use super::{Kernel, Pool, Prepared};
use crate::plan::{ALIGN, Home, Plan};
use ir::diagnostic::Error;
use ir::tensor::Tensor;
use std::alloc::Layout;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A plan that is ready to run.
pub struct Execution {
    plan: Plan,
    kernels: Arc<Vec<Kernel>>,
    /// Per kernel: all its launches have the same sizes.
    prepared: Vec<Prepared>,
    /// One run at a time.
    arena: Mutex<Arena>,
    /// Nanoseconds in launches so far.
    launched: AtomicU64,
}

impl Execution {
    /// A plan with its kernels, for a pool of so many threads. The arena is allocated by the first run.
    ///
    /// # Errors
    /// Kernels that are not the plan's; a size without a number.
    pub fn new(plan: Plan, kernels: Arc<Vec<Kernel>>, threads: usize) -> Result<Execution, Error> {
        if kernels.len() != plan.kernels.len() {
            return Err(Error::new(format!("the plan has {} kernels, but {} given", plan.kernels.len(), kernels.len())));
        }
        let prepared = kernels.iter().map(|k| k.prepare(&plan.dims, threads)).collect::<Result<Vec<_>, _>>()?;
        for l in &plan.launches {
            // What the kernel takes a buffer for is what is there.
            let s = &kernels[l.kernel].artifact().signature;
            if s.buffers.len() != l.buffers.len() {
                return Err(Error::new(format!("kernel `{}` has {} buffers, but the plan gives {}", s.symbol, s.buffers.len(), l.buffers.len())));
            }
            for (b, (m, offset)) in s.buffers.iter().zip(&l.buffers) {
                let shape = kernels[l.kernel].shape(&b.name, &b.shape, &plan.dims)?;
                let (bytes, have) = (shape.iter().product::<usize>() * b.dtype.bytes(), &plan.buffers[*m]);
                if have.dtype != b.dtype || offset + bytes > have.bytes() {
                    return Err(Error::new(format!("buffer `{}` of kernel `{}` is {} {shape:?}, but the plan gives {} {:?} from byte {offset} of `{}`", b.name, s.symbol, b.dtype, have.dtype, have.shape, have.name)));
                }
            }
        }
        Ok(Execution { plan, kernels, prepared, arena: Mutex::new(Arena::default()), launched: AtomicU64::new(0) })
    }
    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
    /// Time in launches of kernels so far; what remains of a run's time is checks, allocation of results, and pointers.
    pub fn in_launches(&self) -> Duration {
        Duration::from_nanos(self.launched.load(Ordering::Relaxed))
    }
    /// The kernels, in the plan's order.
    pub fn kernels(&self) -> &[Kernel] {
        &self.kernels
    }

    /// Runs every launch: results from parameters, in the function's order.
    ///
    /// # Errors
    /// A tensor that is not what the plan says: its name, and both sides.
    pub fn run(&self, pool: &Pool, params: &[&Tensor]) -> Result<Vec<Tensor>, Error> {
        let mut results = self.results()?;
        self.run_into(pool, params, &mut results.iter_mut().collect::<Vec<_>>())?;
        Ok(results)
    }
    /// Memory for results.
    ///
    /// # Errors
    /// A result too large to exist.
    pub fn results(&self) -> Result<Vec<Tensor>, Error> {
        self.plan.results.iter().map(|b| &self.plan.buffers[*b]).map(|b| Tensor::zeros(b.dtype, &b.shape)).collect()
    }
    /// Runs every launch; results are written to the caller's tensors.
    ///
    /// # Errors
    /// A tensor that is not what the plan says: its name, and both sides.
    pub fn run_into(&self, pool: &Pool, params: &[&Tensor], results: &mut [&mut Tensor]) -> Result<(), Error> {
        self.each(pool, params, results, |_| ())
    }
    /// Runs every launch, and says how many seconds each took, in order.
    ///
    /// # Errors
    /// Those of [`Execution::run`].
    pub fn profile(&self, pool: &Pool, params: &[&Tensor]) -> Result<Vec<f64>, Error> {
        let mut results = self.results()?;
        let mut seconds = Vec::with_capacity(self.plan.launches.len());
        self.each(pool, params, &mut results.iter_mut().collect::<Vec<_>>(), |t| seconds.push(t.as_secs_f64()))?;
        Ok(seconds)
    }
    /// Every launch in order; what each took is told to `took`.
    fn each(&self, pool: &Pool, params: &[&Tensor], results: &mut [&mut Tensor], mut took: impl FnMut(Duration)) -> Result<(), Error> {
        let p = &self.plan;
        let fits = |what: &str, list: &[usize], n: usize| if list.len() == n { Ok(()) } else { Err(Error::new(format!("the plan has {} {what}, but {n} given", list.len()))) };
        fits("parameters", &p.params, params.len())?;
        fits("results", &p.results, results.len())?;
        let shown = results.iter().map(|t| &**t);
        for (b, t) in p.params.iter().chain(&p.results).zip(params.iter().copied().chain(shown)) {
            let b = &p.buffers[*b];
            if t.dtype() != b.dtype || t.shape() != b.shape {
                return Err(Error::new(format!("`{}` is {} {:?}, but the tensor is {} {:?}", b.name, b.dtype, b.shape, t.dtype(), t.shape())));
            }
        }
        let mut arena = self.arena.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let start = arena.get(p.arena);
        let bases: Vec<*mut u8> = p
            .buffers
            .iter()
            .map(|b| match b.home {
                Home::Param(i) => params[i].as_ptr().cast_mut(),
                Home::Result(i) => results[i].as_mut_ptr(),
                // SAFETY: the plan's offsets are within its arena.
                Home::Arena(o) => unsafe { start.add(o) },
                Home::Nowhere => std::ptr::null_mut(),
            })
            .collect();
        let (mut pointers, mut launched) = (vec![], Duration::ZERO);
        for l in &p.launches {
            pointers.clear();
            // SAFETY: `new` compared every buffer of every launch with the memory it is given.
            pointers.extend(l.buffers.iter().map(|(b, o)| unsafe { bases[*b].add(*o) }));
            let start = Instant::now();
            // SAFETY: dtypes and shapes are the signature's. Parameters are only read. What is written is a result, ours by `&mut`, or
            // lies in the arena, where no buffer of the same launch overlaps it.
            unsafe { self.kernels[l.kernel].launch_prepared(pool, &pointers, &self.prepared[l.kernel]) };
            let time = start.elapsed();
            took(time);
            launched += time;
        }
        self.launched.fetch_add(launched.as_nanos() as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// The arena's memory: as large as the largest run, not initialised.
struct Arena {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: owned memory behind a lock.
unsafe impl Send for Arena {}

impl Default for Arena {
    fn default() -> Arena {
        Arena { start: std::ptr::null_mut(), bytes: 0 }
    }
}

impl Arena {
    fn layout(bytes: usize) -> Layout {
        // Plans of more than the address space do not come this far: their parameters do not exist.
        Layout::from_size_align(bytes.max(ALIGN), ALIGN).unwrap_or_else(|_| panic!("an arena of {bytes} bytes"))
    }
    fn get(&mut self, bytes: usize) -> *mut u8 {
        if self.start.is_null() {
            // SAFETY: the layout is not empty.
            self.start = unsafe { std::alloc::alloc(Arena::layout(bytes)) };
            if self.start.is_null() {
                std::alloc::handle_alloc_error(Arena::layout(bytes));
            }
            self.bytes = bytes;
        }
        self.start
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if !self.start.is_null() {
            // SAFETY: allocated in `get` with this layout.
            unsafe { std::alloc::dealloc(self.start, Arena::layout(self.bytes)) };
        }
    }
}
