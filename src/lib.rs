//! What the command line does, as functions: a user's own tests call [`check::assert_program`] on their programs.

pub mod check;
pub mod input;
pub mod machine;
