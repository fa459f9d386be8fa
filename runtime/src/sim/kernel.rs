//! Launches as a signature says: buffers, numbers and tensor maps in their order.

use super::{Arg, Fault, FaultKind, Module, Options, Report, Swizzle, TensorMap};
use ir::artifact::{GpuSignature, MapAt};
use ir::dim::{Bindings, DimError};
use ir::tensor::Tensor;
use ir::tile::Access;

impl Module {
    /// Runs the kernel of `s` on `inputs`, in the order of its buffers; its outputs, in theirs.
    ///
    /// # Errors
    /// A size without a number, inputs that are not the signature's, or what [`Module::launch`] finds.
    pub fn run(&self, s: &GpuSignature, dims: &Bindings, inputs: &[Tensor], options: &Options) -> Result<(Vec<Tensor>, Report), Fault> {
        let refuse = |message: String| Fault { kind: FaultKind::Launch, kernel: s.symbol.clone(), line: 0, text: String::new(), block: [0; 3], thread: None, address: None, message };
        let size = |e: DimError| refuse(e.to_string());
        s.allows(dims).map_err(refuse)?;
        let read: Vec<Vec<u8>> = inputs.iter().map(Tensor::to_bytes).collect();
        let mut shapes = vec![];
        for b in s.buffers.iter().filter(|b| b.access == Access::Output) {
            shapes.push((b.sizes(dims).map_err(size)?, b.dtype));
        }
        let mut written: Vec<Vec<u8>> = shapes.iter().map(|(shape, d)| vec![0; shape.iter().product::<usize>() * d.bytes()]).collect();
        let numbers = s.dims.iter().map(|d| dims.get(d).copied().ok_or_else(|| refuse(format!("dimension `{d}` has no number")))).collect::<Result<Vec<_>, _>>()?;
        // Inputs come first in every signature that is launched on tensors.
        let inputs_of = s.buffers.iter().filter(|b| b.access != Access::Output).count();
        if inputs_of != inputs.len() {
            return Err(refuse(format!("the kernel has {inputs_of} inputs, but {} are given", inputs.len())));
        }
        let (mut next, mut outputs) = (read.iter(), written.iter_mut());
        let mut places = vec![None; s.buffers.len()];
        let mut args: Vec<Arg> = vec![];
        for (i, b) in s.buffers.iter().enumerate() {
            if b.access == Access::Output {
                args.extend(outputs.next().map(|x| Arg::Output(x)));
            } else if let Some(x) = next.next() {
                places[i] = Some(x);
                args.push(Arg::Input(x));
            }
        }
        args.extend(numbers.iter().map(|n| Arg::I64(*n)));
        for m in &s.maps {
            let Some(x) = places.get(m.buffer).copied().flatten() else { return Err(refuse(format!("a tensor map of buffer {}, which is no input", m.buffer))) };
            let elem = s.buffers[m.buffer].dtype.bytes();
            let MapAt { offset, sizes, strides, tile } = m.at(elem, dims).map_err(size)?;
            let swizzle = match m.swizzle {
                128 => Swizzle::B128,
                64 => Swizzle::B64,
                32 => Swizzle::B32,
                _ => Swizzle::None,
            };
            let bytes = x.get(offset as usize..).ok_or_else(|| refuse(format!("a tensor map begins at byte {offset} of {}", x.len())))?;
            args.push(Arg::TensorInput(TensorMap { element: elem as u32, sizes, strides, tile, swizzle }, bytes));
        }
        let blocks = u32::try_from(s.blocks(dims, options.multiprocessors).map_err(size)?).map_err(|_| refuse("too many blocks".into()))?;
        let report = self.launch(&s.symbol, [blocks, 1, 1], [s.block as u32, 1, 1], s.shared_bytes as u32, &mut args, options)?;
        drop(args);
        let tensors = shapes.iter().zip(&written).map(|((shape, d), x)| Tensor::from_bytes(*d, shape, x).map_err(|e| refuse(e.to_string()))).collect::<Result<_, _>>()?;
        Ok((tensors, report))
    }
}
