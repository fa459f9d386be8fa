//! Derivatives by name: which transform, along which parameters.

use super::{jvp, vjp};
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
        let (g, pass) = match self {
            Transform::Jvp(wrt) => (jvp(f, wrt), "jvp"),
            Transform::Vjp(wrt) => (vjp(f, wrt), "vjp"),
        };
        let g = g.map_err(|e| e.to_string())?;
        verify(&g, pass)?;
        Ok(g)
    }
}
