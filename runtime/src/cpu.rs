//! The host CPU as a device: objects from `codegen`, loaded by ourselves and run by a thread pool over program instances.

mod loader;
mod peak;
mod pool;
mod run;

pub use peak::{copy_bandwidth, fma_peak};
pub use pool::Pool;
pub use run::Execution;

use ir::artifact::Artifact;
use ir::diagnostic::Error;
use ir::dim::{Bindings, Name};
use ir::tensor::Tensor;
use ir::tile::Access;
use loader::Object;

/// `buffers, dims, scratch, program, panels`; see `codegen`.
type Entry = unsafe extern "C" fn(*const *mut u8, *const i64, *mut u8, i64, i64);

/// A launch but for its memory.
#[derive(Clone, Debug)]
pub struct Prepared {
    numbers: Vec<i64>,
    panels: i64,
    instances: i64,
    scratch: usize,
}

/// A loaded kernel.
pub struct Kernel {
    artifact: Artifact,
    object: Object,
    entry: Entry,
}

impl Kernel {
    /// Loads an artifact.
    ///
    /// # Errors
    /// An artifact for another machine, or an object that is damaged or refers to something outside of itself.
    pub fn load(artifact: &Artifact) -> Result<Kernel, Error> {
        if !artifact.target.starts_with("cpu") {
            return Err(Error::new(format!("kernel `{}` is for {}, not for a CPU", artifact.signature.symbol, artifact.target)));
        }
        let object = Object::load(&artifact.code)?;
        let address = object.symbol(&artifact.signature.symbol)?;
        // SAFETY: the symbol is the kernel's entry by the artifact's contract, of this type; `object` keeps its memory mapped.
        let entry = unsafe { std::mem::transmute::<*const u8, Entry>(address) };
        Ok(Kernel { artifact: artifact.clone(), object, entry })
    }
    /// The artifact that was loaded.
    pub fn artifact(&self) -> &Artifact {
        &self.artifact
    }
    /// Bytes of memory that the code takes.
    pub fn code_bytes(&self) -> usize {
        self.object.len()
    }

    /// Runs the kernel on tensors, in buffer order; returns the outputs, in buffer order.
    ///
    /// # Errors
    /// Tensors that differ from the signature: the buffer, and both sides.
    pub fn launch(&self, pool: &Pool, inputs: &[&Tensor], dims: &Bindings) -> Result<Vec<Tensor>, Error> {
        let s = &self.artifact.signature;
        let mut outputs = vec![];
        for b in s.buffers.iter().filter(|b| b.access == Access::Output) {
            let shape = self.shape(&b.name, &b.shape, dims)?;
            outputs.push(Tensor::zeros(b.dtype, &shape)?);
        }
        let wanted = s.buffers.iter().filter(|b| b.access == Access::Input).count();
        if inputs.len() != wanted {
            return Err(Error::new(format!("kernel `{}` takes {wanted} inputs, but {} given", s.symbol, inputs.len())));
        }
        for (b, t) in s.buffers.iter().zip(inputs) {
            let shape = self.shape(&b.name, &b.shape, dims)?;
            if t.dtype() != b.dtype || t.shape() != shape {
                return Err(Error::new(format!("buffer `{}` of kernel `{}` is {} {shape:?}, but the tensor is {} {:?}", b.name, s.symbol, b.dtype, t.dtype(), t.shape())));
            }
        }
        let mut pointers: Vec<*mut u8> = inputs.iter().map(|t| t.as_ptr().cast_mut()).collect();
        pointers.extend(outputs.iter_mut().map(Tensor::as_mut_ptr));
        // SAFETY: dtypes and shapes are the signature's; inputs are only read by the kernel (its buffers' access says so) and
        // outputs are ours alone.
        unsafe { self.launch_raw(pool, &pointers, dims)? };
        Ok(outputs)
    }

    /// Runs the kernel on memory.
    ///
    /// # Errors
    /// A dimension without a number.
    ///
    /// # Safety
    /// `buffers` are the signature's, in order, each dense, of its dtype and of its shape under `dims`; outputs overlap nothing.
    pub unsafe fn launch_raw(&self, pool: &Pool, buffers: &[*mut u8], dims: &Bindings) -> Result<(), Error> {
        let prepared = self.prepare(dims, pool.threads())?;
        // SAFETY: the caller's.
        unsafe { self.launch_prepared(pool, buffers, &prepared) };
        Ok(())
    }
    /// What launches for sizes `dims` on so many threads have in common.
    ///
    /// # Errors
    /// A dimension without a number.
    pub fn prepare(&self, dims: &Bindings, threads: usize) -> Result<Prepared, Error> {
        let s = &self.artifact.signature;
        let numbers = s.dims.iter().map(|d| self.dim(d, dims)).collect::<Result<Vec<i64>, _>>()?;
        let sizes = s.grid.iter().map(|g| g.size.eval(dims).map_err(|e| Error::new(format!("kernel `{}`: {e}", s.symbol)))).collect::<Result<Vec<i64>, _>>()?;
        let instances = |panels: i64| -> i64 {
            s.grid.iter().zip(&sizes).map(|(g, n)| { let tile = g.tile as i64 * if g.panels { panels } else { 1 }; (n.max(&0) + tile - 1) / tile }).product()
        };
        // As many panels as leave enough instances to share out evenly, or instances that are all alike and as many for each thread; or fewer, down to half of them, if the
        // thread that does most has less to do then.
        let threads = threads.max(1) as i64;
        let alike = |panels: i64| s.grid.iter().zip(&sizes).all(|(g, n)| n % (g.tile as i64 * if g.panels { panels } else { 1 }) == 0);
        let shares = |p: &i64| instances(*p) >= 6 * threads || (alike(*p) && instances(*p) % threads == 0);
        let most = (1..=s.max_panels.max(1) as i64).rev().find(shares).unwrap_or(1);
        let longest = |p: &i64| ((instances(*p) + threads - 1) / threads * p, -p);
        let panels = (most - most / 2..=most).min_by_key(longest).unwrap_or(most);
        Ok(Prepared { numbers, panels, instances: instances(panels), scratch: s.scratch_fixed + panels as usize * s.scratch_panel })
    }
    /// Runs the kernel on memory.
    ///
    /// # Safety
    /// `buffers` are the signature's, in order, each dense, of its dtype and of its shape under the sizes of `prepared`, which this kernel
    /// made; outputs overlap nothing.
    pub unsafe fn launch_prepared(&self, pool: &Pool, buffers: &[*mut u8], prepared: &Prepared) {
        struct Shared<'a>(&'a [*mut u8]);
        // SAFETY: the kernel's instances write disjoint elements; that is the meaning of the grid.
        unsafe impl Sync for Shared<'_> {}
        let (shared, entry, panels, numbers) = (Shared(buffers), self.entry, prepared.panels, &prepared.numbers);
        let shared = &shared;
        pool.run(prepared.instances, prepared.scratch, &|program, scratch| {
            let shared: &Shared = shared;
            // SAFETY: `launch_prepared`'s contract, and scratch of the signature's size from the pool.
            unsafe { entry(shared.0.as_ptr(), numbers.as_ptr(), scratch, program, panels) }
        });
    }
    fn dim(&self, d: &Name, dims: &Bindings) -> Result<i64, Error> {
        dims.get(d).copied().ok_or_else(|| Error::new(format!("kernel `{}`: dimension `{d}` has no number", self.artifact.signature.symbol)))
    }
    fn shape(&self, name: &str, shape: &[ir::dim::Dim], dims: &Bindings) -> Result<Vec<usize>, Error> {
        let size = |d: &ir::dim::Dim| d.eval(dims).map(|n| n.max(0) as usize).map_err(|e| Error::new(format!("buffer `{name}` of kernel `{}`: {e}", self.artifact.signature.symbol)));
        shape.iter().map(size).collect()
    }
}

