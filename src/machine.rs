//! Machines: a function, simplified and fused, on something that executes block programs.

use crate::pipeline::{self, Stage};
use ir::dim::Bindings;
use ir::graph::Function;
use ir::tensor::Tensor;
use ir::artifact::GpuSignature;
use ir::diagnostic::Error;
use ir::tile::sequence::Sequence;
#[cfg(feature = "cuda")]
use ir::tile::Access;
use ir::tile::{Program, interp};
use ir::types::DType;
use passes::fuse::{Fused, Options};
use runtime::cache::{Cache, Source};
use runtime::cpu::{Execution, Kernel, Pool};
#[cfg(feature = "cuda")]
use runtime::libraries::Libraries;
use runtime::plan::Plan;
use std::borrow::Cow;
use std::sync::Arc;

/// How to fuse for a GPU.
pub use trainer::program::gpu::fused as gpu;

/// The function as block programs, for inputs stored as `dtype`: [`pipeline::MACHINE`].
pub fn compile(f: &Function, dims: &Bindings, dtype: DType) -> Result<Fused, String> {
    compile_by(f, &Options::stored(dims, dtype))
}

/// The same with options of a machine.
pub fn compile_by(f: &Function, options: &Options) -> Result<Fused, String> {
    let steps = pipeline::parse(&pipeline::MACHINE.map(String::from))?;
    match pipeline::run(Stage::Function(f.clone()), &steps, options, false)?.stage {
        Stage::Programs(p) => Ok(p),
        Stage::Function(f) => Err(format!("`{}` is no block program yet", f.name)),
    }
}

/// The function as launches, its calls gone into.
pub fn sequence(f: &Function, options: &Options) -> Result<Sequence, String> {
    let s = passes::fuse::sequence(f, options).map_err(|e| e.to_string())?;
    s.programs.iter().try_for_each(|p| pipeline::verify_tile(p, "fuse"))?;
    Ok(s)
}

/// A function compiled for this CPU.
pub struct Compiled {
    /// Its launches, and what was decided.
    pub sequence: Sequence,
    /// One kernel per program.
    pub kernels: Arc<Vec<Kernel>>,
    /// Where each came from: the cache, or the compiler.
    pub sources: Vec<Source>,
}

impl Compiled {
    /// Each kernel's name, and `cache` or `compiler`, whichever it is from.
    pub fn origins(&self) -> Vec<(String, &'static str)> {
        let from = |s: &Source| if *s == Source::Hit { "cache" } else { "compiler" };
        self.sequence.programs.iter().zip(&self.sources).map(|(p, s)| (p.name.to_string(), from(s))).collect()
    }
    /// Ready to run on so many threads.
    pub fn execution(&self, dims: &Bindings, threads: usize) -> Result<Execution, String> {
        let plan = Plan::new(&self.sequence, dims).map_err(|e| e.to_string())?;
        Execution::new(plan, self.kernels.clone(), threads).map_err(|e| e.to_string())
    }
}

/// Compiles for this CPU, through the cache.
pub fn cpu(f: &Function, dims: &Bindings, dtype: DType, cache: &Cache) -> Result<Compiled, String> {
    cpu_as(f, dims, dtype, &codegen::Target::host().map_err(|e| e.to_string())?, cache)
}

/// Compiles for a CPU whose instructions this one has too.
pub fn cpu_as(f: &Function, dims: &Bindings, dtype: DType, target: &codegen::Target, cache: &Cache) -> Result<Compiled, String> {
    let sequence = sequence(f, &Options::cpu(dims, dtype))?;
    let (kernels, sources): (Vec<Kernel>, _) = trainer::program::kernels::compile(&sequence.programs, target, cache)?.into_iter().unzip();
    Ok(Compiled { sequence, kernels: kernels.into(), sources })
}

/// Results on this CPU.
pub fn run_cpu(c: &Compiled, pool: &Pool, inputs: &[Tensor], dims: &Bindings) -> Result<Vec<Tensor>, String> {
    let execution = c.execution(dims, pool.threads())?;
    let plan = execution.plan();
    if inputs.len() != plan.params.len() {
        return Err(format!("the function takes {} inputs, but {} given", plan.params.len(), inputs.len()));
    }
    let as_stored: Vec<Cow<Tensor>> = plan.params.iter().zip(inputs).map(|(b, t)| if t.dtype() == plan.buffers[*b].dtype { Cow::Borrowed(t) } else { Cow::Owned(t.convert(plan.buffers[*b].dtype)) }).collect();
    execution.run(pool, &as_stored.iter().map(|t| &**t).collect::<Vec<_>>()).map_err(|e| e.to_string())
}

/// Results on the tile interpreter: what matrix units would give, operands of dots rounded to `dtype`.
pub fn interp(f: &Function, inputs: &[Tensor], dims: &Bindings, dtype: DType) -> Result<Vec<Tensor>, String> {
    each(f, inputs, dims, dtype, &mut |p, d, x| interp::run(p, d, x))
}

/// Results of the kernels for `target`, in the PTX machine: what a GPU would give, and what it would not say.
pub fn sim(f: &Function, inputs: &[Tensor], dims: &Bindings, dtype: DType, target: &str) -> Result<Vec<Tensor>, String> {
    sequence(f, &gpu(dims, dtype))?.run(inputs, dims, &mut |p, dims, x| in_sim(&ptx(p, target, dims)?, dims, x)).map_err(|e| e.to_string())
}

/// A function as a plan of launches with its kernels for a GPU, each as `build` makes it; functions that are called are gone into.
///
/// # Errors
/// Those of fusion and of `build`, and a size without a number.
pub fn planned(f: &Function, dims: &Bindings, dtype: DType, build: &dyn Fn(&Program) -> Result<codegen::nvptx::Compiled, Error>) -> Result<(Plan, Vec<codegen::nvptx::Compiled>), String> {
    let sequence = sequence(f, &gpu(dims, dtype))?;
    let plan = Plan::new(&sequence, dims).map_err(|e| e.to_string())?;
    let kernels = sequence.programs.iter().map(build).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    Ok((plan, kernels))
}

/// Results of a plan's kernels for `target` in the PTX machine, on one arena.
///
/// # Errors
/// Those of [`planned`], and what the machine finds wrong.
pub fn sim_planned(f: &Function, inputs: &[Tensor], dims: &Bindings, dtype: DType, target: &str) -> Result<Vec<Tensor>, String> {
    let (plan, kernels) = planned(f, dims, dtype, &|p| ptx(p, target, dims))?;
    let parsed = kernels.into_iter().map(|k| runtime::sim::Module::parse(&k.ptx).map(|m| (m, k.signature))).collect::<Result<Vec<_>, _>>().map_err(|e| format!("sim: {e}"))?;
    let inputs: Vec<Tensor> = inputs.iter().zip(&plan.params).map(|(t, b)| t.convert(plan.buffers[*b].dtype)).collect();
    runtime::sim::Execution::new(plan, parsed).and_then(|e| e.run(&inputs.iter().collect::<Vec<_>>())).map_err(|e| e.to_string())
}

/// One kernel in the PTX machine: inputs in buffer order, outputs in buffer order.
///
/// # Errors
/// What the machine finds wrong, with the line of the text.
pub fn in_sim(k: &codegen::nvptx::Compiled, dims: &Bindings, x: &[Tensor]) -> Result<Vec<Tensor>, Error> {
    let s = &k.signature;
    let module = runtime::sim::Module::parse(&k.ptx).map_err(|e| Error::new(format!("sim: {}: {e:?}", s.symbol)))?;
    let (out, report) = module.run(s, dims, x, &Default::default()).map_err(|e| Error::new(format!("sim: {}: {e}", s.symbol)))?;
    // The fastest wrong kernel is one that skips rows.
    match report.unwritten.iter().find(|u| *u.1 > 0) {
        Some((name, n)) => Err(Error::new(format!("sim: {}: {n} bytes of `{name}` are not written", s.symbol))),
        None => Ok(out),
    }
}

/// A function on the first CUDA device.
#[cfg(feature = "cuda")]
pub struct OnCuda {
    /// Ready to run.
    pub execution: runtime::cuda::Execution,
    /// Its launches as block programs.
    pub sequence: Sequence,
    /// Each kernel, and how it runs: generated, or by a library.
    pub by: Vec<(String, String)>,
}

#[cfg(feature = "cuda")]
impl OnCuda {
    /// Compiles and loads; with `tf32`, products of f32 matrices may round their operands to that.
    ///
    /// # Errors
    /// No device; those of compilation and of the driver.
    pub fn new(f: &Function, dims: &Bindings, dtype: DType, tf32: bool, libraries: Libraries) -> Result<OnCuda, String> {
        let gpu = std::rc::Rc::new(runtime::cuda::Gpu::new(0).map_err(|e| format!("cuda: {e}"))?);
        let (device, mut target) = cuda_target()?;
        target.tf32 = tf32;
        let sequence = sequence(f, &self::gpu(dims, dtype))?;
        let ready = || -> Result<_, Error> {
            let load = |p: &Program| crate::tune::kept(p, &target, &device, dims).and_then(|k| runtime::cuda::Kernel::load(&gpu, k.ptx.as_bytes(), &k.signature)).map(std::rc::Rc::new);
            let kernels = sequence.programs.iter().map(load).collect::<Result<Vec<_>, _>>()?;
            let choices = runtime::cuda::choose(&gpu, libraries, &sequence.programs, &kernels, dims, codegen::BUILD, &Cache::from_env())?;
            trainer::program::gpu::note_missing(&choices);
            let by = |(i, p): (usize, &Program)| (p.name.to_string(), choices.iter().find(|c| c.kernel == i).map(|c| c.words()).filter(|w| !w.is_empty()).unwrap_or_else(|| "generated".into()));
            let by = sequence.programs.iter().enumerate().map(by).collect();
            Ok((runtime::cuda::Execution::new(&gpu, Plan::new(&sequence, dims)?, kernels)?.with(&choices), by))
        };
        let (execution, by) = ready().map_err(|e| e.to_string())?;
        Ok(OnCuda { execution, sequence, by })
    }
    /// Puts inputs where its kernels read them.
    ///
    /// # Errors
    /// A tensor that does not fit; the driver's.
    pub fn set(&self, inputs: &[Tensor]) -> Result<(), String> {
        let plan = self.execution.plan();
        inputs.iter().zip(&plan.params).enumerate().try_for_each(|(i, (t, b))| self.execution.set(i, &t.convert(plan.buffers[*b].dtype))).map_err(|e| e.to_string())
    }
    /// Results on those inputs.
    ///
    /// # Errors
    /// What went wrong on the device.
    pub fn run(&self) -> Result<Vec<Tensor>, String> {
        self.execution.run().and_then(|()| (0..self.execution.plan().results.len()).map(|i| self.execution.result(i)).collect()).map_err(|e| e.to_string())
    }
}

/// Results on the first CUDA device, and how each kernel ran.
///
/// # Errors
/// Those of [`OnCuda`].
#[cfg(feature = "cuda")]
pub fn cuda(f: &Function, inputs: &[Tensor], dims: &Bindings, dtype: DType, tf32: bool, libraries: Libraries) -> Result<(Vec<Tensor>, Vec<(String, String)>), String> {
    let ready = OnCuda::new(f, dims, dtype, tf32, libraries)?;
    ready.set(inputs)?;
    Ok((ready.run()?, ready.by))
}

/// The first CUDA device's name, and the architecture to compile for.
#[cfg(feature = "cuda")]
pub fn cuda_target() -> Result<(String, codegen::GpuTarget), String> {
    let device = runtime::cuda::first()?;
    let target = codegen::GpuTarget::named(device.architecture()?).map_err(|e| e.to_string())?;
    Ok((device.name, target))
}

/// One kernel on a CUDA device: inputs in buffer order, outputs in buffer order.
#[cfg(feature = "cuda")]
pub fn on_cuda(gpu: &runtime::cuda::Gpu, k: &codegen::nvptx::Compiled, dims: &Bindings, x: &[Tensor]) -> Result<Vec<Tensor>, Error> {
    let kernel = runtime::cuda::Kernel::load(gpu, k.ptx.as_bytes(), &k.signature)?;
    let outputs = outputs(&k.signature, dims)?;
    let mut memory = x.iter().map(|t| runtime::cuda::Memory::new(gpu, &t.to_bytes())).collect::<Result<Vec<_>, _>>()?;
    for (shape, d) in &outputs {
        memory.push(runtime::cuda::Memory::filled(gpu, shape.iter().product::<usize>() * d.bytes(), 0xff)?);
    }
    kernel.launch(&memory.iter().collect::<Vec<_>>(), dims)?;
    gpu.wait()?;
    outputs.iter().zip(&memory[x.len()..]).map(|((shape, d), m)| Tensor::from_bytes(*d, shape, &m.read()?)).collect()
}

/// PTX by the default schedule for these sizes.
fn ptx(p: &Program, target: &str, dims: &Bindings) -> Result<codegen::nvptx::Compiled, Error> {
    let bug = |e: codegen::Error| Error::new(e.to_string());
    let target = codegen::GpuTarget::named(target).map_err(bug)?;
    codegen::nvptx::compile_at(p, &target, dims, false).map_err(bug)
}

/// Shape and type of each output.
#[cfg(feature = "cuda")]
fn outputs(s: &GpuSignature, dims: &Bindings) -> Result<Vec<(Vec<usize>, DType)>, Error> {
    s.buffers.iter().filter(|b| b.access == Access::Output).map(|b| Ok((b.sizes(dims).map_err(|e| Error::new(format!("buffer `{}`: {e}", b.name)))?, b.dtype))).collect()
}

/// Launches one block program: sizes, inputs in buffer order; outputs in buffer order.
pub(crate) type Launch<'a> = &'a mut dyn FnMut(&Program, &Bindings, &[Tensor]) -> Result<Vec<Tensor>, Error>;

/// Compiles, and launches one block program after the other.
fn each(f: &Function, inputs: &[Tensor], dims: &Bindings, dtype: DType, launch: Launch) -> Result<Vec<Tensor>, String> {
    sequence(f, &Options::stored(dims, dtype))?.run(inputs, dims, launch).map_err(|e| e.to_string())
}
