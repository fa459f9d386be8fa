//! A plan in the PTX machine: its launches one after the other, on one arena that starts as poison, so that a plan that lets two living buffers share
//! bytes, or reads what nothing wrote, gives NaN and not a lucky result.

use super::{Module, Options};
use crate::plan::{Home, Plan};
use ir::artifact::GpuSignature;
use ir::diagnostic::Error;
use ir::tensor::Tensor;
use ir::tile::Access;

/// A plan with its kernels.
pub struct Execution {
    plan: Plan,
    kernels: Vec<(Module, GpuSignature)>,
}

impl Execution {
    /// A plan, and its kernels in its order.
    ///
    /// # Errors
    /// Kernels that are not the plan's.
    pub fn new(plan: Plan, kernels: Vec<(Module, GpuSignature)>) -> Result<Execution, Error> {
        if kernels.len() != plan.kernels.len() {
            return Err(Error::new(format!("the plan has {} kernels, but {} given", plan.kernels.len(), kernels.len())));
        }
        plan.fits(&kernels.iter().map(|k| &k.1).collect::<Vec<_>>())?;
        Ok(Execution { plan, kernels })
    }
    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
    /// Runs every launch: results from parameters, in the function's order.
    ///
    /// # Errors
    /// A tensor that is not what the plan says; a kernel that does something wrong, with the line of its text.
    pub fn run(&self, params: &[&Tensor]) -> Result<Vec<Tensor>, Error> {
        let p = &self.plan;
        p.takes(params)?;
        let params: Vec<Vec<u8>> = params.iter().map(|t| t.to_bytes()).collect();
        let mut results: Vec<Vec<u8>> = p.results.iter().map(|b| vec![0xff; p.buffers[*b].bytes()]).collect();
        let mut arena = vec![0xffu8; p.arena];
        for l in &p.launches {
            let (module, s) = &self.kernels[l.kernel];
            // (buffer of the plan, first byte, bytes, shape) of each of the kernel's.
            let mut places = vec![];
            for (b, (m, offset)) in s.buffers.iter().zip(&l.buffers) {
                let shape = b.sizes(&p.dims).map_err(|e| Error::new(e.to_string()))?;
                places.push((*m, *offset, shape.iter().product::<usize>() * b.dtype.bytes(), shape));
            }
            let mut inputs = vec![];
            for (b, (m, offset, bytes, shape)) in s.buffers.iter().zip(&places).filter(|(b, _)| b.access == Access::Input) {
                let memory = match p.buffers[*m].home {
                    Home::Param(i) => &params[i][*offset..],
                    Home::Result(i) => &results[i][*offset..],
                    Home::Arena(o) => &arena[o + offset..],
                    Home::Nowhere => return Err(Error::new(format!("sim: `{}` of {} is nowhere", b.name, s.symbol))),
                };
                inputs.push(Tensor::from_bytes(b.dtype, shape, &memory[..*bytes])?);
            }
            let (out, report) = module.run(s, &p.dims, &inputs, &Options::default()).map_err(|e| Error::new(format!("sim: {}: {e}", s.symbol)))?;
            if let Some((name, n)) = report.unwritten.iter().find(|u| *u.1 > 0) {
                return Err(Error::new(format!("sim: {}: {n} bytes of `{name}` are not written", s.symbol)));
            }
            let written = s.buffers.iter().zip(&places).filter(|(b, _)| b.access == Access::Output);
            for ((b, (m, offset, bytes, _)), t) in written.zip(&out) {
                let memory = match p.buffers[*m].home {
                    Home::Result(i) => &mut results[i][*offset..],
                    Home::Arena(o) => &mut arena[o + offset..],
                    Home::Param(_) | Home::Nowhere => return Err(Error::new(format!("sim: {} writes `{}`, which is not the plan's to write", s.symbol, b.name))),
                };
                memory[..*bytes].copy_from_slice(&t.to_bytes());
            }
        }
        p.results.iter().zip(&results).map(|(b, x)| Tensor::from_bytes(p.buffers[*b].dtype, &p.buffers[*b].shape, x)).collect()
    }
}
