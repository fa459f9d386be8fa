//! A pack: kernels, inputs and expected results in a folder, made on a machine with the compiler, run on one with a GPU and nothing else.
//!
//! `manifest.json` is a [`Pack`]; code and tensors lie beside it, tensors as raw bytes in row-major order.

use ir::artifact::GpuSignature;
use ir::diagnostic::Error;
use ir::dim::{Bindings, Name};
use ir::tensor::Tensor;
use ir::types::DType;
use serde::{Deserialize, Serialize};

/// The manifest.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Pack {
    /// The toolkit's version.
    pub toolkit: String,
    /// What the code is for: `sm_90a`.
    pub target: String,
    /// In order.
    pub cases: Vec<Case>,
    /// What has no form on a GPU, and why.
    pub refused: Vec<String>,
    /// How long kernels took to make, where the pack was made.
    #[serde(default)]
    pub generation: Vec<Generation>,
}

/// Times from text to code, nothing cached: medians, seconds.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Generation {
    /// What was made.
    pub name: String,
    /// From the program's text to PTX.
    pub ptx: f64,
    /// From the program's text to machine code, where an assembler was there.
    pub cubin: Option<f64>,
}

/// One function at one set of sizes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Case {
    /// For people.
    pub name: String,
    /// Sizes.
    pub dims: Bindings,
    /// Launches in order; buffers are matched by name.
    pub kernels: Vec<Kernel>,
    /// Inputs.
    pub inputs: Vec<Input>,
    /// Results that are compared; none in a case that is only timed.
    pub expected: Vec<Expected>,
    /// Floating-point operations to divide by the time, if it is timed.
    pub flops: Option<f64>,
    /// Bytes that have to move at least.
    pub bytes: f64,
}

/// Compiled code.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Kernel {
    /// PTX text.
    pub ptx: String,
    /// The assembled form, where an assembler was there.
    pub cubin: Option<String>,
    /// How to launch it.
    pub signature: GpuSignature,
}

/// An input, made where it is needed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Input {
    /// The buffer.
    pub name: Name,
    /// Element type.
    pub dtype: DType,
    /// Sizes.
    pub shape: Vec<usize>,
    /// Its elements.
    pub drawn: Drawn,
}

/// Random elements that are the same on every machine: whole numbers, exact sums and products of f64, no function of a mathematical library.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Drawn {
    /// Where the generator starts.
    pub seed: u64,
    /// What is drawn.
    pub from: From,
}

/// What elements are drawn from.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub enum From {
    /// Mean 0, variance 1, between −6 and 6: a sum of twelve uniform numbers less six.
    Normal,
    /// Uniform.
    Interval(f64, f64),
    /// Whole numbers from 0 on.
    Below(u64),
}

impl Drawn {
    /// The tensor, in `dtype`. The numbers repeat with a period of a million and three: no kernel notices, and making them takes no time.
    ///
    /// # Errors
    /// None but a bug.
    pub fn tensor(&self, dtype: DType, shape: &[usize]) -> Result<Tensor, Error> {
        let mut state = self.seed;
        // SplitMix64.
        let mut uniform = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        };
        let mut one = || match self.from {
            From::Normal => (0..12).map(|_| uniform()).sum::<f64>() - 6.0,
            From::Interval(low, high) => low + (high - low) * uniform(),
            From::Below(n) => (n as f64 * uniform()).floor(),
        };
        let n: usize = shape.iter().product();
        // Converted once: sequences of 32 k are tensors of tens of millions.
        let period: Vec<f64> = (0..n.min(1_000_003)).map(|_| one()).collect();
        let period = Tensor::from_f64(dtype, &[period.len()], &period)?.to_bytes();
        let bytes: Vec<u8> = period.iter().copied().cycle().take(n * dtype.bytes()).collect();
        Tensor::from_bytes(dtype, shape, &bytes)
    }
}

/// A result that is known.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Expected {
    /// The buffer.
    pub name: Name,
    /// Sizes.
    pub shape: Vec<usize>,
    /// Raw bytes, f32: the reference evaluator's answer on the rounded inputs.
    pub file: String,
    /// Largest relative Frobenius error.
    pub bound: f64,
    /// Raw bytes, in the buffer's type: what the PTX machine gave, where no kernel has an approximate instruction, so that a device must give the same bits.
    #[serde(default)]
    pub exact: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_numbers_are_these() {
        let normal = Drawn { seed: 1, from: From::Normal };
        let x = normal.tensor(DType::F64, &[50_000]).unwrap().to_f64();
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
        assert_eq!(normal.tensor(DType::F64, &[50_000]).unwrap().to_f64(), x);
        let below = Drawn { seed: 2, from: From::Below(3) }.tensor(DType::I32, &[100]).unwrap().to_f64();
        assert!([0.0, 1.0, 2.0].iter().all(|k| below.contains(k)) && below.iter().all(|k| *k < 3.0));
        assert!(Drawn { seed: 2, from: From::Interval(0.5, 2.0) }.tensor(DType::F64, &[100]).unwrap().to_f64().iter().all(|x| (0.5..2.0).contains(x)));
    }
}
