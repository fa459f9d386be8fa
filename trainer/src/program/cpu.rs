//! A program compiled for this CPU: launches, a plan of its memory, kernels.

use super::{Options, kernels};
use ir::dim::Bindings;
use ir::graph::Function;
use ir::tensor::Tensor;
use passes::fuse;
use runtime::cache::Cache;
use runtime::cpu::{Execution, Kernel, Pool};
use runtime::plan::Plan;
use std::time::Duration;

pub(super) struct Cpu {
    execution: Execution,
    pool: Pool,
    /// What the kernels are, for those who ask what they cost.
    programs: Vec<ir::tile::Program>,
}

impl Cpu {
    pub fn new(f: &Function, dims: &Bindings, options: &Options) -> Result<Cpu, String> {
        let fused = super::wide(f, fuse::Options::cpu(dims, options.dtype), options);
        let sequence = fuse::sequence(f, &fused).map_err(|e| e.to_string())?;
        let plan = Plan::new(&sequence, dims).map_err(|e| e.to_string())?;
        let target = codegen::Target::host().map_err(|e| e.to_string())?;
        let kernels: Vec<Kernel> = kernels::compile(&sequence.programs, &target, &Cache::from_env())?.into_iter().map(|(k, _)| k).collect();
        let pool = options.threads.map_or_else(Pool::from_env, Pool::new);
        Ok(Cpu { execution: Execution::new(plan, kernels.into(), pool.threads()).map_err(|e| e.to_string())?, pool, programs: sequence.programs })
    }
    pub fn plan(&self) -> &Plan {
        self.execution.plan()
    }
    pub fn programs(&self) -> &[ir::tile::Program] {
        &self.programs
    }
    pub fn pool(&self) -> &Pool {
        &self.pool
    }
    pub fn profile(&self, inputs: &[&Tensor]) -> Result<Vec<f64>, String> {
        self.execution.profile(&self.pool, inputs).map_err(|e| e.to_string())
    }
    pub fn in_launches(&self) -> Duration {
        self.execution.in_launches()
    }
    pub fn run(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, String> {
        self.execution.run(&self.pool, inputs).map_err(|e| e.to_string())
    }
}
