//! Machines: a function, simplified and fused, on something that executes block programs.

use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::tensor::Tensor;
use ir::tile::{interp, sequence};
use ir::types::DType;
use passes::fuse::{Fused, Options, fuse};
use std::collections::BTreeMap;

/// The function as block programs, for inputs stored as `dtype`.
pub fn compile(f: &Function, dims: &Bindings, dtype: DType) -> Result<Fused, String> {
    let compute = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let options = Options { dims: dims.clone(), compute, storage: dtype, operands: dtype, ..Options::default() };
    let n = passes::simplify::normalize(f).map_err(|e| e.to_string())?;
    crate::input::verify(&n, "simplify")?;
    fuse(&n, &options).map_err(|e| e.to_string())
}

/// Results on the tile interpreter: what matrix units would give, operands of dots rounded to `dtype`.
pub fn interp(f: &Function, inputs: &[Tensor], dims: &Bindings, dtype: DType) -> Result<Vec<Tensor>, String> {
    let fused = compile(f, dims, dtype)?;
    let mut tensors: BTreeMap<Name, Tensor> = f.params.iter().map(|p| p.name.clone()).zip(inputs.iter().cloned()).collect();
    sequence::run(&fused.programs, &mut tensors, dims, &mut |p, d, x| interp::run(p, d, x)).map_err(|e| e.to_string())?;
    f.results.iter().map(|r| tensors.remove(&r.name).ok_or_else(|| format!("result `{}` was not computed", r.name))).collect()
}
