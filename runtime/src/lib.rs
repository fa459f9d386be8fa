//! Compiled kernels on devices. Knows artifacts and tensors, no compiler: a machine that only runs kernels needs no LLVM.

pub mod cache;
pub mod cpu;
pub mod libraries;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod memory;
pub mod pack;
pub mod plan;
pub mod sim;
