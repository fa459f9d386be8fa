//! Machines: a function, simplified and fused, on something that executes block programs.

use crate::pipeline::{self, Stage};
use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::tensor::Tensor;
use ir::artifact::GpuSignature;
use ir::diagnostic::Error;
use ir::tile::{Access, Program, interp, sequence};
use ir::types::DType;
use passes::fuse::{Fused, Options};
use runtime::cache::{Cache, Source};
use runtime::cpu::{Kernel, Pool};
use runtime::plan::Plan;
use std::collections::BTreeMap;

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

/// A function compiled for this CPU.
pub struct Compiled {
    /// Its block programs, and what was decided.
    pub fused: Fused,
    /// One kernel per program.
    pub kernels: Vec<Kernel>,
    /// Where each came from: the cache, or the compiler.
    pub sources: Vec<Source>,
}

impl Compiled {
    /// Each kernel's name, and `cache` or `compiler`, whichever it is from.
    pub fn origins(&self) -> Vec<(String, &'static str)> {
        let from = |s: &Source| if *s == Source::Hit { "cache" } else { "compiler" };
        self.fused.programs.iter().zip(&self.sources).map(|(p, s)| (p.name.to_string(), from(s))).collect()
    }
}

/// Compiles for this CPU, through the cache.
pub fn cpu(f: &Function, dims: &Bindings, dtype: DType, cache: &Cache) -> Result<Compiled, String> {
    cpu_as(f, dims, dtype, &codegen::Target::host().map_err(|e| e.to_string())?, cache)
}

/// Compiles for a CPU whose instructions this one has too.
pub fn cpu_as(f: &Function, dims: &Bindings, dtype: DType, target: &codegen::Target, cache: &Cache) -> Result<Compiled, String> {
    let fused = compile_by(f, &Options::cpu(dims, dtype))?;
    let (kernels, sources) = trainer::program::kernels::compile(&fused.programs, target, cache)?.into_iter().unzip();
    Ok(Compiled { fused, kernels, sources })
}

/// Results on this CPU.
pub fn run_cpu(f: &Function, c: &Compiled, pool: &Pool, inputs: &[Tensor], dims: &Bindings) -> Result<Vec<Tensor>, String> {
    let mut kernels = c.kernels.iter();
    launches(f, &c.fused, inputs, dims, &mut |p, d, x| {
        let k = kernels.next().ok_or_else(|| Error::new(format!("{}: no kernel was compiled", p.name)))?;
        k.launch(pool, &x.iter().collect::<Vec<_>>(), d)
    })
}

/// Results on the tile interpreter: what matrix units would give, operands of dots rounded to `dtype`.
pub fn interp(f: &Function, inputs: &[Tensor], dims: &Bindings, dtype: DType) -> Result<Vec<Tensor>, String> {
    each(f, inputs, dims, dtype, &mut |p, d, x| interp::run(p, d, x))
}

/// Results of the kernels for `target`, in the PTX machine: what a GPU would give, and what it would not say.
pub fn sim(f: &Function, inputs: &[Tensor], dims: &Bindings, dtype: DType, target: &str) -> Result<Vec<Tensor>, String> {
    sim_of(f, &compile(f, dims, dtype)?, inputs, dims, target)
}

/// The same of block programs that were made before, perhaps without knowing all of `dims`.
pub fn sim_of(f: &Function, fused: &Fused, inputs: &[Tensor], dims: &Bindings, target: &str) -> Result<Vec<Tensor>, String> {
    launches(f, fused, inputs, dims, &mut |p, dims, x| in_sim(&ptx(p, target, dims)?, dims, x))
}

/// A function as a plan of launches with its kernels for a GPU, each as `build` makes it; functions that are called are gone into.
///
/// # Errors
/// Those of fusion and of `build`, and a size without a number.
pub fn planned(f: &Function, dims: &Bindings, dtype: DType, build: &dyn Fn(&Program) -> Result<codegen::nvptx::Compiled, Error>) -> Result<(Plan, Vec<codegen::nvptx::Compiled>), String> {
    let sequence = passes::fuse::sequence(f, &passes::fuse::Options::stored(dims, dtype)).map_err(|e| e.to_string())?;
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

/// Results on the first CUDA device.
#[cfg(feature = "cuda")]
pub fn cuda(f: &Function, inputs: &[Tensor], dims: &Bindings, dtype: DType) -> Result<Vec<Tensor>, String> {
    let gpu = runtime::cuda::Gpu::new(0).map_err(|e| format!("cuda: {e}"))?;
    let (device, target) = cuda_target()?;
    let (plan, kernels) = planned(f, dims, dtype, &|p| crate::tune::kept(p, &target, &device, dims))?;
    let load = |k: &codegen::nvptx::Compiled| runtime::cuda::Kernel::load(&gpu, k.ptx.as_bytes(), &k.signature);
    let kernels = kernels.iter().map(load).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    let ready = runtime::cuda::Execution::new(&gpu, plan, kernels).map_err(|e| e.to_string())?;
    let run = || -> Result<Vec<Tensor>, Error> {
        for (i, (t, b)) in inputs.iter().zip(&ready.plan().params).enumerate() {
            ready.set(i, &t.convert(ready.plan().buffers[*b].dtype))?;
        }
        ready.run()?;
        (0..f.results.len()).map(|i| ready.result(i)).collect()
    };
    run().map_err(|e| e.to_string())
}

/// The first CUDA device's name, and the architecture to compile for.
#[cfg(feature = "cuda")]
pub fn cuda_target() -> Result<(String, codegen::GpuTarget), String> {
    let found = runtime::cuda::devices()?;
    let device = found.devices.first().ok_or("cuda: no device")?;
    let target = match device.compute {
        (9, 0) => "sm_90a",
        (10, 0) => "sm_100a",
        (major, _) if major >= 8 => "sm_80",
        other => return Err(format!("cuda: compute capability {other:?} of {} is below 8.0", device.name)),
    };
    Ok((device.name.clone(), codegen::GpuTarget::named(target).map_err(|e| e.to_string())?))
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
    let shape = |b: &ir::tile::Buffer| b.shape.iter().map(|d| d.eval(dims).map(|n| n.max(0) as usize)).collect::<Result<Vec<_>, _>>();
    s.buffers.iter().filter(|b| b.access == Access::Output).map(|b| Ok((shape(b).map_err(|e| Error::new(format!("buffer `{}`: {e}", b.name)))?, b.dtype))).collect()
}

/// Launches one block program: sizes, inputs in buffer order; outputs in buffer order.
pub(crate) type Launch<'a> = &'a mut dyn FnMut(&Program, &Bindings, &[Tensor]) -> Result<Vec<Tensor>, Error>;

/// Compiles, and launches one block program after the other.
fn each(f: &Function, inputs: &[Tensor], dims: &Bindings, dtype: DType, launch: Launch) -> Result<Vec<Tensor>, String> {
    launches(f, &compile(f, dims, dtype)?, inputs, dims, launch)
}

/// The results of `f`, by launching its block programs one after the other.
pub(crate) fn launches(f: &Function, fused: &Fused, inputs: &[Tensor], dims: &Bindings, launch: Launch) -> Result<Vec<Tensor>, String> {
    let mut tensors: BTreeMap<Name, Tensor> = f.params.iter().map(|p| p.name.clone()).zip(inputs.iter().cloned()).collect();
    sequence::run(&fused.programs, &mut tensors, dims, launch).map_err(|e| e.to_string())?;
    f.results.iter().map(|r| tensors.remove(&r.name).ok_or_else(|| format!("result `{}` was not computed", r.name))).collect()
}
