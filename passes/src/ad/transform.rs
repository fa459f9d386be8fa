//! Derivatives by name: which transform, along which parameters.

use super::{Checkpoint, jvp, vjp_with};
use crate::verify;
use ir::dim::Name;
use ir::graph::Function;

/// A derivative of a function, along some of its parameters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Transform {
    /// Tangents of results from tangents of these.
    Jvp(Vec<Name>),
    /// Cotangents of these from cotangents of results.
    Vjp(Vec<Name>),
}

impl Transform {
    /// The derivative of `f`, verified.
    ///
    /// # Errors
    /// Those of the pass, and what the verifier refuses.
    pub fn apply(&self, f: &Function) -> Result<Function, String> {
        self.apply_with(f, Checkpoint::default())
    }
    /// [`Transform::apply`], where reverse mode keeps of each call what `checkpoint` says.
    ///
    /// # Errors
    /// Those of the pass, and what the verifier refuses.
    pub fn apply_with(&self, f: &Function, checkpoint: Checkpoint) -> Result<Function, String> {
        let (g, pass) = match self {
            Transform::Jvp(wrt) => (jvp(f, wrt), "jvp"),
            Transform::Vjp(wrt) => (vjp_with(f, wrt, checkpoint), "vjp"),
        };
        let g = g.map_err(|e| e.to_string())?;
        verify(&g, pass)?;
        Ok(g)
    }
}
