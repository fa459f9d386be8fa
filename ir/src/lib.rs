//! What programs are and mean: the tensor IR with its text form, verifier and f64 reference evaluator, and the tile IR that
//! kernels are lowered to. Depends on no compiler and no device.

pub mod artifact;
pub mod builder;
pub mod diagnostic;
pub mod dim;
pub mod graph;
pub mod nn;
pub mod prim;
pub mod random;
pub mod reference;
pub mod tensor;
pub mod text;
pub mod tile;
pub mod types;
pub mod verify;
