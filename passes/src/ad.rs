//! Differentiation.

pub mod activity;
pub mod jvp;

pub use jvp::jvp;
