//! A program compiled for GPUs: on a CUDA device, where parameters, results and what lies between them stay between runs, or in the PTX machine in software, which runs the
//! same kernels by the same plan without a device.

use super::kernels::{cores, each_on};
use super::{On, Options};
use codegen::GpuTarget;
use codegen::nvptx::{self, Compiled};
use ir::dim::Bindings;
use ir::graph::Function;
use ir::tensor::Tensor;
use ir::types::DType;
use passes::fuse;
use runtime::plan::Plan;
use runtime::sim;
#[cfg(feature = "cuda")]
use runtime::cuda;
#[cfg(feature = "cuda")]
use std::cell::RefCell;

/// How to fuse for a GPU, for parameters stored as `dtype`.
pub fn fused(dims: &Bindings, dtype: DType) -> fuse::Options {
    fuse::Options { fits: Some(nvptx::fits), ..fuse::Options::stored(dims, dtype) }
}
/// The same for a function that may say which of its parameters are wider.
pub fn options(f: &Function, dims: &Bindings, dtype: DType) -> fuse::Options {
    super::wide(f, fused(dims, dtype), dtype)
}

pub(super) enum Gpu {
    Sim(sim::Execution),
    #[cfg(feature = "cuda")]
    Cuda(OnDevice),
}

/// A plan on a device, which goes after what is on it.
#[cfg(feature = "cuda")]
pub(super) struct OnDevice {
    execution: cuda::Execution,
    /// The version of each parameter's value that the device has: what was given to a run is no version.
    has: RefCell<Vec<u64>>,
    _gpu: cuda::Gpu,
}

impl Gpu {
    pub fn new(f: &Function, dims: &Bindings, options: &Options) -> Result<Gpu, String> {
        let sequence = fuse::sequence(f, &self::options(f, dims, options.dtype)).map_err(|e| e.to_string())?;
        let plan = Plan::new(&sequence, dims).map_err(|e| e.to_string())?;
        if options.on == On::Sim {
            let target = GpuTarget::named("sm_90a").map_err(|e| e.to_string())?;
            let load = |k: Compiled| sim::Module::parse(&k.ptx).map(|m| (m, k.signature));
            let kernels = compile(&sequence.programs, &target, dims)?.into_iter().map(load).collect::<Result<Vec<_>, _>>().map_err(|e| format!("sim: {e}"))?;
            return Ok(Gpu::Sim(sim::Execution::new(plan, kernels).map_err(|e| e.to_string())?));
        }
        #[cfg(feature = "cuda")]
        {
            let gpu = cuda::Gpu::new(0).map_err(|e| format!("cuda: {e}"))?;
            let target = GpuTarget::named(cuda::first()?.architecture()?).map_err(|e| e.to_string())?;
            let load = |k: &Compiled| cuda::Kernel::load(&gpu, k.ptx.as_bytes(), &k.signature);
            let kernels = compile(&sequence.programs, &target, dims)?.iter().map(load).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
            let has = RefCell::new(vec![0; plan.params.len()]);
            let execution = cuda::Execution::new(&gpu, plan, kernels).map_err(|e| e.to_string())?;
            Ok(Gpu::Cuda(OnDevice { execution, has, _gpu: gpu }))
        }
        #[cfg(not(feature = "cuda"))]
        Err("this build knows no CUDA devices (feature `cuda`)".into())
    }
    pub fn plan(&self) -> &Plan {
        match self {
            Gpu::Sim(e) => e.plan(),
            #[cfg(feature = "cuda")]
            Gpu::Cuda(d) => d.execution.plan(),
        }
    }
    /// Runs on tensors that are given, each with the version of what is kept, 0 for a tensor of this run alone.
    pub fn run(&self, inputs: &[(&Tensor, u64)]) -> Result<Vec<Tensor>, String> {
        match self {
            Gpu::Sim(e) => e.run(&inputs.iter().map(|i| i.0).collect::<Vec<_>>()).map_err(|e| e.to_string()),
            #[cfg(feature = "cuda")]
            Gpu::Cuda(d) => d.run(inputs).map_err(|e| e.to_string()),
        }
    }
}

#[cfg(feature = "cuda")]
impl OnDevice {
    fn run(&self, inputs: &[(&Tensor, u64)]) -> Result<Vec<Tensor>, ir::diagnostic::Error> {
        let mut has = self.has.borrow_mut();
        for (i, (t, version)) in inputs.iter().enumerate() {
            if *version == 0 || has[i] != *version {
                self.execution.set(i, t)?;
                has[i] = *version;
            }
        }
        self.execution.run()?;
        (0..self.execution.plan().results.len()).map(|i| self.execution.result(i)).collect()
    }
}

/// PTX of every program, by default schedules, on all cores.
///
/// # Errors
/// The first program that has no form, and why.
pub fn compile(programs: &[ir::tile::Program], target: &GpuTarget, dims: &Bindings) -> Result<Vec<Compiled>, String> {
    each_on(cores(), programs, |p| nvptx::compile_at(p, target, dims, false).map_err(|e| e.to_string()))
}
