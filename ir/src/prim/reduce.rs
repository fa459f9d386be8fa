//! Reductions over named axes.

use super::{Mismatch, ReduceKind};
use crate::dim::Name;
use crate::tile::LOWEST;
use crate::types::Type;

impl ReduceKind {
    /// The name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            ReduceKind::Sum => "reduce_sum",
            ReduceKind::Max => "reduce_max",
        }
    }
    /// The value of nothing.
    pub fn identity(self) -> f64 {
        match self {
            ReduceKind::Sum => 0.0,
            ReduceKind::Max => LOWEST,
        }
    }
    /// One step.
    pub fn combine(self, a: f64, b: f64) -> f64 {
        match self {
            ReduceKind::Sum => a + b,
            ReduceKind::Max => a.max(b),
        }
    }
}

/// The operand's type without `axes`.
pub fn infer(t: &Type, axes: &[Name]) -> Result<Type, Mismatch> {
    if !t.dtype.is_float() {
        return Err(Mismatch::new(format!("operand is {}, but must be a float", t.dtype)));
    }
    for (i, a) in axes.iter().enumerate() {
        if !t.has(a) {
            return Err(Mismatch::new(format!("operand {t} has no axis `{a}`")));
        }
        if axes[..i].contains(a) {
            return Err(Mismatch::new(format!("axis `{a}` is named twice")));
        }
    }
    Ok(Type::new(t.dtype, t.axes.iter().filter(|x| !axes.contains(&x.name)).cloned().collect()))
}
