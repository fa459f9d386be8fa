//! Machines: a function, simplified and fused, on something that executes block programs.

use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::tensor::Tensor;
use ir::tile::{Program, interp, sequence};
use ir::types::DType;
use passes::fuse::{Fused, Options, fuse};
use runtime::cache::{Cache, Source, key};
use runtime::cpu::{Kernel, Pool};
use std::collections::BTreeMap;

/// The function as block programs, for inputs stored as `dtype`.
pub fn compile(f: &Function, dims: &Bindings, dtype: DType) -> Result<Fused, String> {
    let compute = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let options = Options { dims: dims.clone(), compute, storage: dtype, operands: dtype, ..Options::default() };
    let n = passes::simplify::simplify(f).map_err(|e| e.to_string())?.function;
    crate::input::verify(&n, "simplify")?;
    fuse(&n, &options).map_err(|e| e.to_string())
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

/// Compiles for this CPU, through the cache.
pub fn cpu(f: &Function, dims: &Bindings, dtype: DType, cache: &Cache) -> Result<Compiled, String> {
    let fused = compile(f, dims, dtype)?;
    let target = codegen::Target::host().map_err(|e| e.to_string())?;
    let (mut kernels, mut sources) = (vec![], vec![]);
    for p in &fused.programs {
        let build = || codegen::compile(p, &target).map(|c| c.artifact).map_err(|e| e.to_string());
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
