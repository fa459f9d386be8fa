//! Differentiation.

pub mod activity;
pub mod jvp;

pub use jvp::{Bend, jvp, jvp_with};
