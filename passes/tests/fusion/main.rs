//! What simplification and fusion make of programs that are written with primitives only, executed by the tile interpreter
//! in f64. Nothing here links LLVM.

mod again;
mod kernels;
mod centring;
mod graphs;
mod random;
mod renaming;
mod short;
mod support;
