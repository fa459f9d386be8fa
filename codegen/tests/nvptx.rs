//! PTX of block programs, in the PTX machine and through the assembler.
#![allow(missing_docs, clippy::unwrap_used)]
