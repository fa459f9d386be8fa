//! Differentiation: forward mode by rules (`jvp`), reverse mode by transposing what is linear in it (`linearize`, `transpose`,
//! `vjp`), and what to keep in between (`remat`). `docs/reverse.md` has the whole story.

pub mod activity;
mod call;
pub mod jvp;
pub mod linearize;
pub mod remat;
mod transform;
pub mod transpose;
pub mod vjp;

pub use call::Checkpoint;
pub use jvp::{Bend, jvp, jvp_with};
pub(crate) use linearize::{copy, dependent, prune};
pub use linearize::linearize;
pub use transform::Transform;
pub use transpose::transpose;
pub use vjp::{vjp, vjp_with};
