//! Simplification: the same function in a form that streams.

pub mod normal;

pub use normal::normalize;
