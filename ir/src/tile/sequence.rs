//! Several block programs in order: buffers are matched by name.

use super::{Access, Program};
use crate::diagnostic::Error;
use crate::dim::{Bindings, Name};
use crate::tensor::Tensor;
use std::collections::BTreeMap;

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
