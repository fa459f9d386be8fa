//! Distillation with rCM (Zheng et al. 2025, arXiv 2510.08431), as far as it needs no network: times and their maps, distributions of
//! training times, the wrapper around a rectified-flow network, samplers' times, phases, averaging. Everything is f64; each file has one
//! subject, its equations, and where they are from. Networks and their tangents are IR functions and come from the compiler.
//!
//! Letters, as in the papers: τ is TrigFlow time in `[0, π/2]`, u is rectified-flow time in `[0, 1]`, σ is noise over signal; C = cos τ,
//! S = sin τ, b = 1/(C + S).

pub mod density;
pub mod ema;
pub mod net;
pub mod phase;
pub mod program;
pub mod sampler;
pub mod scaling;
pub mod time;

pub use program::{Checkpoint, On, Program};
pub use time::{Flow, Sigma, Trig};
