//! What training runs: a function, its derivatives, and the machine that executes them, driven by names.
//!
//! A [`Program`] is derived, compiled and planned once. Parameters that stay (weights) are kept by [`Program::set`], converted to what the
//! kernels read; what changes from run to run (latents, times, tangents, cotangents) is given to [`Program::run`].

#[cfg(feature = "jit")]
pub mod kernels;

use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::reference::evaluate;
use ir::tensor::Tensor;
use ir::types::{DType, Type};
pub use passes::ad::{Checkpoint, Transform};
use std::collections::BTreeMap;

/// The machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum On {
    /// The f64 evaluator: the meaning of a program.
    Reference,
    /// Compiled for this CPU.
    #[default]
    Cpu,
}

/// How a program is compiled and run.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// The machine.
    pub on: On,
    /// What float parameters are stored in; `F64` is computed in f64, all else in f32.
    pub dtype: DType,
    /// What reverse mode keeps of a call.
    pub checkpoint: Checkpoint,
    /// Threads; `None` for what `PUSHFORWARD_THREADS` says, else all cores.
    pub threads: Option<usize>,
}

impl Default for Options {
    fn default() -> Options {
        Options { on: On::default(), dtype: DType::F32, checkpoint: Checkpoint::default(), threads: None }
    }
}

/// A parameter or a result, as callers see it.
#[derive(Clone, PartialEq, Debug)]
pub struct Field {
    /// Its name.
    pub name: Name,
    /// Its type.
    pub ty: Type,
    /// Its sizes.
    pub shape: Vec<usize>,
}

/// A derived function that is ready to run.
pub struct Program {
    f: Function,
    dims: Bindings,
    params: Vec<Field>,
    results: Vec<Field>,
    kept: BTreeMap<Name, Tensor>,
    machine: Machine,
}

enum Machine {
    Reference(DType),
    #[cfg(feature = "jit")]
    Cpu(Box<cpu::Cpu>),
}

impl Program {
    /// `f` under `transforms`, in that order, for sizes `dims`.
    ///
    /// # Errors
    /// Those of the transforms and of the compiler, and a size without a number.
    pub fn new(f: &Function, transforms: &[Transform], dims: &Bindings, options: &Options) -> Result<Program, String> {
        let mut f = f.clone();
        for t in transforms {
            f = t.apply_with(&f, options.checkpoint)?;
        }
        let field = |p: &ir::graph::Port| {
            let ty = f.ty(p.var).clone();
            let shape = ty.sizes(dims).map_err(|e| format!("`{}` of `{}`, {ty}: {e}", p.name, f.name))?;
            Ok(Field { name: p.name.clone(), ty, shape })
        };
        let params = f.params.iter().map(field).collect::<Result<Vec<_>, String>>()?;
        let results = f.results.iter().map(field).collect::<Result<Vec<_>, String>>()?;
        let machine = match options.on {
            On::Reference => Machine::Reference(options.dtype),
            #[cfg(feature = "jit")]
            On::Cpu => Machine::Cpu(Box::new(cpu::Cpu::new(&f, dims, options)?)),
            #[cfg(not(feature = "jit"))]
            On::Cpu => return Err("this build has no compiler (feature `jit`)".into()),
        };
        Ok(Program { f, dims: dims.clone(), params, results, kept: BTreeMap::new(), machine })
    }
    /// The function that runs, with all its derivatives.
    pub fn function(&self) -> &Function {
        &self.f
    }
    /// Parameters, those of the transforms included.
    pub fn params(&self) -> &[Field] {
        &self.params
    }
    /// Results.
    pub fn results(&self) -> &[Field] {
        &self.results
    }
    /// Kernel launches in a run; 0 on the reference evaluator.
    pub fn launches(&self) -> usize {
        match &self.machine {
            Machine::Reference(_) => 0,
            #[cfg(feature = "jit")]
            Machine::Cpu(c) => c.launches(),
        }
    }
    /// Distinct kernels; 0 on the reference evaluator.
    pub fn kernels(&self) -> usize {
        match &self.machine {
            Machine::Reference(_) => 0,
            #[cfg(feature = "jit")]
            Machine::Cpu(c) => c.kernels(),
        }
    }
    /// Bytes that a run takes beside parameters and results, known before it runs; 0 on the reference evaluator, which does not say.
    pub fn peak_bytes(&self) -> usize {
        match &self.machine {
            Machine::Reference(_) => 0,
            #[cfg(feature = "jit")]
            Machine::Cpu(c) => c.peak_bytes(),
        }
    }

    /// Keeps `value` as the parameter `name`, for all runs until it is set again.
    ///
    /// # Errors
    /// A name that is no parameter; a shape that is not the parameter's: both sides.
    pub fn set(&mut self, name: &str, value: &Tensor) -> Result<(), String> {
        let t = self.fit(name, value)?;
        self.kept.insert(name.into(), t);
        Ok(())
    }
    /// `value` as the machine reads parameter `name`.
    fn fit(&self, name: &str, value: &Tensor) -> Result<Tensor, String> {
        let p = self.params.iter().find(|p| *p.name == *name).ok_or_else(|| {
            let names: Vec<&str> = self.params.iter().map(|p| &*p.name).take(16).collect();
            format!("`{}` has no parameter `{name}`; it has {}{}", self.f.name, names.join(", "), if self.params.len() > 16 { ", …" } else { "" })
        })?;
        if value.shape() != p.shape {
            return Err(format!("parameter `{name}` of `{}` is {} of shape {:?}, but the tensor has shape {:?}", self.f.name, p.ty, p.shape, value.shape()));
        }
        if value.dtype().is_float() != p.ty.dtype.is_float() {
            return Err(format!("parameter `{name}` of `{}` is {}, but the tensor is {}", self.f.name, p.ty, value.dtype()));
        }
        Ok(match &self.machine {
            Machine::Reference(d) if p.ty.dtype.is_float() => value.convert(*d).convert(DType::F64),
            Machine::Reference(_) => value.convert(p.ty.dtype),
            #[cfg(feature = "jit")]
            Machine::Cpu(c) => value.convert(c.stored(name).unwrap_or(p.ty.dtype)),
        })
    }

    /// Every result, by name. `given` stands before what is kept.
    ///
    /// # Errors
    /// A parameter that is neither given nor kept; a tensor that does not fit; those of the machine.
    pub fn run(&self, given: &[(&str, &Tensor)]) -> Result<BTreeMap<Name, Tensor>, String> {
        let mut own = BTreeMap::new();
        for (n, t) in given {
            own.insert(Name::from(*n), self.fit(n, t)?);
        }
        let mut inputs = vec![];
        for p in &self.params {
            inputs.push(own.get(&p.name).or_else(|| self.kept.get(&p.name)).ok_or_else(|| format!("`{}`: nothing provides parameter `{}` ({})", self.f.name, p.name, p.ty))?);
        }
        let out = match &self.machine {
            Machine::Reference(_) => {
                let inputs: Vec<Tensor> = inputs.into_iter().cloned().collect();
                evaluate(&self.f, &inputs, &self.dims).map_err(|e| e.to_string())?
            }
            #[cfg(feature = "jit")]
            Machine::Cpu(c) => c.run(&self.f, &inputs, &self.dims)?,
        };
        Ok(self.results.iter().map(|r| r.name.clone()).zip(out).collect())
    }
}

#[cfg(feature = "jit")]
mod cpu {
    //! A program compiled for this CPU.

    use super::{Options, kernels};
    use ir::diagnostic::Error;
    use ir::dim::{Bindings, Name};
    use ir::graph::Function;
    use ir::tensor::Tensor;
    use ir::tile::{Access, sequence};
    use ir::types::DType;
    use runtime::cache::Cache;
    use runtime::cpu::{Kernel, Pool};
    use std::collections::BTreeMap;

    pub struct Cpu {
        fused: passes::fuse::Fused,
        kernels: Vec<Kernel>,
        pool: Pool,
    }

    impl Cpu {
        pub fn new(f: &Function, dims: &Bindings, options: &Options) -> Result<Cpu, String> {
            let simple = passes::simplify::simplify(f).map_err(|e| e.to_string())?.function;
            passes::verify(&simple, "simplify")?;
            let fused = passes::fuse::fuse(&simple, &passes::fuse::Options::cpu(dims, options.dtype)).map_err(|e| e.to_string())?;
            let target = codegen::Target::host().map_err(|e| e.to_string())?;
            let kernels = kernels::compile(&fused.programs, &target, &Cache::from_env())?.into_iter().map(|(k, _)| k).collect();
            Ok(Cpu { fused, kernels, pool: options.threads.map_or_else(Pool::from_env, Pool::new) })
        }
        pub fn launches(&self) -> usize {
            self.kernels.len()
        }
        pub fn kernels(&self) -> usize {
            self.kernels.len()
        }
        pub fn peak_bytes(&self) -> usize {
            0
        }
        /// The type in which a parameter is read; `None` if nothing reads it.
        pub fn stored(&self, name: &str) -> Option<DType> {
            self.fused.programs.iter().flat_map(|p| &p.buffers).find(|b| b.access == Access::Input && *b.name == *name).map(|b| b.dtype)
        }
        pub fn run(&self, f: &Function, inputs: &[&Tensor], dims: &Bindings) -> Result<Vec<Tensor>, String> {
            let mut tensors: BTreeMap<Name, Tensor> = f.params.iter().map(|p| p.name.clone()).zip(inputs.iter().copied().cloned()).collect();
            let mut kernels = self.kernels.iter();
            let mut launch = |p: &ir::tile::Program, d: &Bindings, x: &[Tensor]| {
                let k = kernels.next().ok_or_else(|| Error::new(format!("{}: no kernel was compiled", p.name)))?;
                k.launch(&self.pool, &x.iter().collect::<Vec<_>>(), d)
            };
            sequence::run(&self.fused.programs, &mut tensors, dims, &mut launch).map_err(|e| e.to_string())?;
            f.results.iter().map(|r| tensors.remove(&r.name).ok_or_else(|| format!("result `{}` was not computed", r.name))).collect()
        }
    }
}
