//! Simplification: the same function in a form that streams and costs least.
//!
//! Two steps. `normal` is directed: hoisting, linearity, sums that merge; alone it gives the streamed forms of almost everything, in a
//! fraction of a millisecond. `saturate` puts source and normal form into an e-graph with the `rules`, and `extract` takes the form
//! that costs least *when fused*. The e-graph earns its keep where there is a choice: the order of a chain of contractions, factors
//! that can be shared, a sum that is known already.

mod absorb;
mod emit;
pub mod extract;
pub mod language;
pub mod normal;
pub mod rules;
mod saturate;
mod staged;

pub use normal::normalize;
pub use saturate::{Report, Simplified, simplify, simplify_with};
pub use staged::simplify_for;
