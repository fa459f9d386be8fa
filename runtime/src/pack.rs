//! A pack: kernels, inputs and expected results in a folder, made on a machine with the compiler, run on one with a GPU and nothing else.
//!
//! `manifest.json` is a [`Pack`]; code and tensors lie beside it, tensors as raw bytes in row-major order.

use ir::artifact::GpuSignature;
use ir::dim::{Bindings, Name};
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

/// An input: from a file, or random.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Input {
    /// The buffer.
    pub name: Name,
    /// Element type.
    pub dtype: DType,
    /// Sizes.
    pub shape: Vec<usize>,
    /// Raw bytes; without it, standard normal numbers.
    pub file: Option<String>,
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
}
