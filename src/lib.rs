//! What the command line does, as functions: a user's own tests call [`check::assert_program`] on their programs.

pub mod check;
pub mod header;
pub mod input;
pub mod machine;
pub mod pipeline;

/// `docs/testing.md`, so that its examples are compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../docs/testing.md")]
pub struct Testing;
