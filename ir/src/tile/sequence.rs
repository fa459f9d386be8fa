//! Several block programs in order. In short lists buffers are matched by name; a function with calls is a [`Sequence`], in which one
//! program is launched many times on different memory.

use super::{Access, Program};
use crate::diagnostic::Error;
use crate::dim::{Bindings, Dim, Name};
use crate::tensor::Tensor;
use crate::types::DType;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A function as launches of block programs, in order.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Sequence {
    /// Distinct programs.
    pub programs: Vec<Program>,
    /// Memory: parameters, results, and what lies between.
    pub memory: Vec<Memory>,
    /// Per parameter of the function a position in `memory`.
    pub params: Vec<usize>,
    /// Per result a position in `memory`, each another one and none of them a parameter's.
    pub results: Vec<usize>,
    /// In order.
    pub launches: Vec<Launch>,
    /// What was decided and what was refused, one sentence each.
    pub notes: Vec<String>,
}

impl Sequence {
    /// The results from `inputs`, in the function's order, on the machine `launch`: a program and its inputs in buffer order to its outputs.
    ///
    /// # Errors
    /// Another number of inputs, an input of another size, and the machine's own.
    pub fn run(&self, inputs: &[Tensor], dims: &Bindings, launch: &mut dyn FnMut(&Program, &Bindings, &[Tensor]) -> Result<Vec<Tensor>, Error>) -> Result<Vec<Tensor>, Error> {
        if inputs.len() != self.params.len() {
            return Err(Error::new(format!("the function takes {} inputs, but {} given", self.params.len(), inputs.len())));
        }
        let mut memory: Vec<Option<Tensor>> = vec![None; self.memory.len()];
        for (m, t) in self.params.iter().zip(inputs) {
            memory[*m] = Some(if t.dtype() == self.memory[*m].dtype { t.clone() } else { t.convert(self.memory[*m].dtype) });
        }
        for l in &self.launches {
            let p = &self.programs[l.program];
            let places = || p.buffers.iter().zip(&l.buffers);
            let mut own = vec![];
            for (b, at) in places().filter(|(b, _)| b.access == Access::Input) {
                let named = |e: String| Error::new(format!("{}: buffer `{}`: {e}", p.name, b.name));
                let t = memory[at.memory].as_ref().ok_or_else(|| named("nothing provides it".into()))?;
                let shape = b.sizes(dims).map_err(|e| named(e.to_string()))?;
                let offset = at.offset.eval(dims).map_err(|e| named(e.to_string()))?.max(0) as usize;
                own.push(if t.shape() == shape && offset == 0 { t.clone() } else { t.part(offset, &shape)? });
            }
            let out = launch(p, dims, &own)?;
            for ((_, at), t) in places().filter(|(b, _)| b.access == Access::Output).zip(out) {
                memory[at.memory] = Some(t);
            }
        }
        self.results.iter().map(|m| memory[*m].clone().ok_or_else(|| Error::new(format!("result `{}` was not computed", self.memory[*m].name)))).collect()
    }
}

/// A dense tensor in memory.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// What people call it, not necessarily unique.
    pub name: Name,
    /// Element type.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub shape: Vec<Dim>,
}

/// A program, and its buffers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Launch {
    /// A position in [`Sequence::programs`].
    pub program: usize,
    /// Per buffer of the program.
    pub buffers: Vec<Place>,
}

/// Where a buffer starts.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Place {
    /// A position in [`Sequence::memory`].
    pub memory: usize,
    /// The first element.
    pub offset: Dim,
}

/// Runs `programs` in order on the machine `launch`, which gets a program and its inputs in buffer order and returns its outputs.
/// `tensors` holds the inputs by name and gets every output; floats are converted to the buffer's type.
///
/// # Errors
/// A buffer that nothing provides, and the machine's own.
pub fn run(
    programs: &[Program],
    tensors: &mut BTreeMap<Name, Tensor>,
    dims: &Bindings,
    launch: &mut dyn FnMut(&Program, &Bindings, &[Tensor]) -> Result<Vec<Tensor>, Error>,
) -> Result<(), Error> {
    for p in programs {
        let of = |access| p.buffers.iter().filter(move |b| b.access == access);
        let mut inputs = vec![];
        for b in of(Access::Input) {
            let t = tensors.get(&b.name).ok_or_else(|| Error::new(format!("{}: nothing provides buffer `{}`", p.name, b.name)))?;
            inputs.push(if t.dtype() == b.dtype { t.clone() } else { t.convert(b.dtype) });
        }
        for (b, t) in of(Access::Output).zip(launch(p, dims, &inputs)?) {
            tensors.insert(b.name.clone(), t);
        }
    }
    Ok(())
}
