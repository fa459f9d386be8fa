//! Machines: a function, simplified and fused, on something that executes block programs.

use crate::pipeline::{self, Stage};
use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::tensor::Tensor;
use ir::tile::{Program, interp, sequence};
use ir::types::DType;
use passes::fuse::Fused;
use runtime::cache::{Cache, Source, key};
use runtime::cpu::{Kernel, Pool};
use std::collections::BTreeMap;

/// The function as block programs, for inputs stored as `dtype`: [`pipeline::MACHINE`].
pub fn compile(f: &Function, dims: &Bindings, dtype: DType) -> Result<Fused, String> {
    let steps = pipeline::parse(&pipeline::MACHINE.map(String::from))?;
    match pipeline::run(Stage::Function(f.clone()), &steps, &pipeline::options(dims, dtype), false)?.stage {
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
    let fused = compile(f, dims, dtype)?;
    let (mut kernels, mut sources) = (vec![], vec![]);
    for p in &fused.programs {
        let build = || codegen::compile(p, target).map(|c| c.artifact).map_err(|e| e.to_string());
        let (artifact, source) = cache.get_or_build(&key(p, &format!("{target:?}")), build)?;
        if let Source::Rebuilt(why) = &source {
            eprintln!("note: {why}");
        }
        kernels.push(Kernel::load(&artifact).map_err(|e| e.to_string())?);
        sources.push(source);
    }
    Ok(Compiled { fused, kernels, sources })
}

/// Results on this CPU.
pub fn run_cpu(f: &Function, c: &Compiled, pool: &Pool, inputs: &[Tensor], dims: &Bindings) -> Result<Vec<Tensor>, String> {
    let mut tensors: BTreeMap<Name, Tensor> = f.params.iter().map(|p| p.name.clone()).zip(inputs.iter().cloned()).collect();
    let mut at = 0;
    let mut launch = |_: &Program, d: &Bindings, x: &[Tensor]| {
        at += 1;
        c.kernels[at - 1].launch(pool, &x.iter().collect::<Vec<_>>(), d)
    };
    sequence::run(&c.fused.programs, &mut tensors, dims, &mut launch).map_err(|e| e.to_string())?;
    f.results.iter().map(|r| tensors.remove(&r.name).ok_or_else(|| format!("result `{}` was not computed", r.name))).collect()
}

/// Results on the tile interpreter: what matrix units would give, operands of dots rounded to `dtype`.
pub fn interp(f: &Function, inputs: &[Tensor], dims: &Bindings, dtype: DType) -> Result<Vec<Tensor>, String> {
    let fused = compile(f, dims, dtype)?;
    let mut tensors: BTreeMap<Name, Tensor> = f.params.iter().map(|p| p.name.clone()).zip(inputs.iter().cloned()).collect();
    sequence::run(&fused.programs, &mut tensors, dims, &mut |p, d, x| interp::run(p, d, x)).map_err(|e| e.to_string())?;
    f.results.iter().map(|r| tensors.remove(&r.name).ok_or_else(|| format!("result `{}` was not computed", r.name))).collect()
}
