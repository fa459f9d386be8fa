//! Fusion: functions to block programs.
//!
//! `partition` decides which equations form a kernel and which axis it streams over, `law` which reductions one pass over that
//! axis can hold, `again` what is stored because making it again costs more, `gather` makes one sum of several where their coefficients are known, `view` turns movement at a kernel's edge into addresses,
//! `lower` writes the block program, and `parts` shares out an axis that its instances would have whole. Where functions are called, `cut` makes pieces without calls, and `sequence` fuses each distinct piece
//! once and lists all launches; `narrow` stores what lies between as its readers take it, `both` in two types where readers differ.

mod again;
mod both;
pub mod center;
mod cut;
pub mod gather;
pub mod law;
pub mod lower;
pub mod mask;
mod narrow;
mod order;
pub mod partition;
mod parts;
mod plan;
mod sequence;
pub mod view;

pub use partition::{Fused, Options, SLACK, fuse};
pub use sequence::sequence;
