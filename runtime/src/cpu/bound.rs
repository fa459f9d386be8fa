//! Kernels in order with their memory: allocated once, run many times.

use super::{Kernel, Pool};
use ir::diagnostic::Error;
use ir::dim::{Bindings, Name};
use ir::tensor::Tensor;
use ir::tile::Access;
use std::collections::BTreeMap;

/// Kernels whose buffers, matched by name, are allocated.
pub struct Bound<'k> {
    kernels: &'k [Kernel],
    tensors: BTreeMap<Name, Tensor>,
    dims: Bindings,
}

impl<'k> Bound<'k> {
    /// Takes the inputs by name, converts them to the kernels' types and allocates every output.
    ///
    /// # Errors
    /// An input that is missing, or of another shape than the kernels': both sides.
    pub fn new(kernels: &'k [Kernel], mut tensors: BTreeMap<Name, Tensor>, dims: &Bindings) -> Result<Bound<'k>, Error> {
        for k in kernels {
            for b in &k.artifact().signature.buffers {
                let shape = k.shape(&b.name, &b.shape, dims)?;
                if b.access == Access::Output {
                    tensors.insert(b.name.clone(), Tensor::zeros(b.dtype, &shape)?);
                    continue;
                }
                let t = tensors.get_mut(&b.name).ok_or_else(|| Error::new(format!("nothing provides buffer `{}`", b.name)))?;
                if t.shape() != shape {
                    return Err(Error::new(format!("buffer `{}` is {shape:?}, but the tensor is {:?}", b.name, t.shape())));
                }
                if t.dtype() != b.dtype {
                    *t = t.convert(b.dtype);
                }
            }
        }
        Ok(Bound { kernels, tensors, dims: dims.clone() })
    }
    /// Runs every kernel once.
    ///
    /// # Errors
    /// A dimension without a number.
    pub fn run(&mut self, pool: &Pool) -> Result<(), Error> {
        for k in self.kernels {
            let mut pointers = vec![];
            for b in &k.artifact().signature.buffers {
                let t = self.tensors.get_mut(&b.name).ok_or_else(|| Error::new(format!("no buffer `{}`", b.name)))?;
                pointers.push(t.as_mut_ptr());
            }
            // SAFETY: `new` gave every buffer the signature's type and shape, each its own memory.
            unsafe { k.launch_raw(pool, &pointers, &self.dims)? };
        }
        Ok(())
    }
    /// A buffer's tensor.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }
}
