//! Distillation with rCM (Zheng et al. 2025, arXiv 2510.08431) and its relatives: times and their maps, distributions of training times, the wrapper around a
//! rectified-flow network, samplers, phases, averaging, and the methods themselves ([`method`]). Each file has one subject, its equations, and where they are
//! from. Networks, their tangents and their gradients are IR functions and come from the compiler; what is computed here is f64.
//!
//! Letters, as in the papers: τ is TrigFlow time in `[0, π/2]`, u is rectified-flow time in `[0, 1]`, σ is noise over signal; C = cos τ,
//! S = sin τ, b = 1/(C + S).

pub mod checkpoint;
pub mod config;
pub mod data;
pub mod density;
pub mod discriminator;
pub mod ema;
pub mod evaluate;
pub mod files;
pub mod method;
pub mod metrics;
pub mod net;
pub mod network;
pub mod optim;
pub mod phase;
pub mod picture;
pub mod plot;
pub mod program;
pub mod random;
pub mod rows;
pub mod sampler;
pub mod scaling;
pub mod time;
pub mod train;

pub use program::{Checkpoint, On, Program};
pub use time::{Flow, Sigma, Trig};
