//! Tile programs to code: MLIR text, then LLVM, then an object with its [`Signature`](ir::artifact::Signature).
//!
//! A kernel is `extern "C" fn(buffers: *const *mut u8, dims: *const i64, scratch: *mut u8, program: i64, panels: i64)`; one
//! call is one program instance. `scratch` has the signature's bytes for `panels` panels and is 64-byte aligned. The object
//! refers to no symbol outside of itself.

pub mod assembler;
pub mod cpu;
pub mod llvm;
pub mod mlir;
pub mod nvptx;
pub mod roofline;
pub mod scalar;
pub mod target;
pub mod text;

/// Says which compiler this is: a hash of its sources.
pub const BUILD: &str = env!("PUSHFORWARD_CODEGEN");

pub use target::{GpuTarget, Target};

use ir::artifact::Artifact;
use ir::tile;
use std::time::{Duration, Instant};

/// Why there is no code.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Error {
    /// The program has something that the target cannot do.
    Refused(String),
    /// The program, or the schedule, has something that GPUs cannot do; which limit, by name.
    Gpu(String),
    /// No such target.
    Target(String),
    /// MLIR rejected our text.
    Mlir(String),
    /// LLVM failed.
    Llvm(String),
    /// Our bug.
    Internal(String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Refused(s) => write!(f, "cpu: {s}"),
            Error::Gpu(s) => write!(f, "nvptx: {s}"),
            Error::Target(s) => write!(f, "target: {s}"),
            Error::Mlir(s) => write!(f, "mlir: {s}"),
            Error::Llvm(s) => write!(f, "llvm: {s}"),
            Error::Internal(s) => write!(f, "codegen (a bug): {s}"),
        }
    }
}
impl std::error::Error for Error {}

/// What [`compile`] gives.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Code and how to launch it.
    pub artifact: Artifact,
    /// Texts of the stages on the way.
    pub dumps: Dumps,
    /// Where the time went.
    pub timings: Timings,
}

/// Texts of the stages; LLVM IR and assembly only where they were asked for.
#[derive(Clone, Default, Debug)]
pub struct Dumps {
    /// What the emitter wrote.
    pub mlir: String,
    /// After LLVM's passes.
    pub llvm: Option<String>,
    /// The code.
    pub assembly: Option<String>,
}

/// Time per stage.
#[derive(Clone, Copy, Default, Debug)]
pub struct Timings {
    /// Planning and writing text.
    pub emit: Duration,
    /// Parsing, verifying, lowering to the LLVM dialect.
    pub mlir: Duration,
    /// Translation, LLVM's passes, instruction selection.
    pub llvm: Duration,
}

/// Compiles a block program.
///
/// # Errors
/// What the target cannot do, by name; or a bug of ours, with MLIR's or LLVM's words.
pub fn compile(p: &tile::Program, target: &Target) -> Result<Compiled, Error> {
    compile_with(p, target, false)
}

/// The same, with the texts of all stages if `texts`.
///
/// # Errors
/// Those of [`compile`].
pub fn compile_with(p: &tile::Program, target: &Target, texts: bool) -> Result<Compiled, Error> {
    let start = Instant::now();
    tile::verify::verify(p).map_err(|e| Error::Refused(e.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))?;
    let (mlir, signature) = cpu::lower(p, target)?;
    let emitted = Instant::now();
    let mut lowered = emitted;
    let code = mlir::with_module(&mlir, mlir::CPU, |m| {
        lowered = Instant::now();
        llvm::compile(m, target, texts)
    })?;
    let timings = Timings { emit: emitted - start, mlir: lowered - emitted, llvm: lowered.elapsed() };
    let artifact = Artifact { target: target.name(), code: code.object, signature };
    Ok(Compiled { artifact, dumps: Dumps { mlir, llvm: code.llvm, assembly: code.assembly }, timings })
}
