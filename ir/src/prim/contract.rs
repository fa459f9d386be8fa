//! The contraction: product of two operands, summed over named axes. Bilinear, so its derivative is the product rule.

use super::transpose::Operand;
use super::{Mismatch, union};
use crate::builder::Builder;
use crate::diagnostic::Error;
use crate::dim::Name;
use crate::graph::Var;
use crate::types::Type;

/// The left operand's axes, then the right's, without the summed ones, which must be in at least one.
pub fn infer(a: &Type, b: &Type, sum: &[Name]) -> Result<Type, Mismatch> {
    if a.dtype != b.dtype || !a.dtype.is_float() {
        return Err(Mismatch::new(format!("operands are {} and {}, but must be floats of one type", a.dtype, b.dtype)));
    }
    // Checks sizes; the order of a contraction is left before right, not widest first.
    union(&[a, b])?;
    for (i, n) in sum.iter().enumerate() {
        if !a.has(n) && !b.has(n) {
            return Err(Mismatch::new(format!("neither {a} nor {b} has the summed axis `{n}`")));
        }
        if sum[..i].contains(n) {
            return Err(Mismatch::new(format!("axis `{n}` is named twice")));
        }
    }
    let right = b.axes.iter().filter(|x| !a.has(&x.name));
    Ok(Type::new(a.dtype, a.axes.iter().chain(right).filter(|x| !sum.contains(&x.name)).cloned().collect()))
}

/// The transpose in operand `i`: the contraction of the result's cotangent with the other operand, over what the operand has not.
/// A summed axis that only the operand has is constant in its cotangent, and left to the caller. `None` if the other operand has no value.
///
/// # Errors
/// Those of the builder.
pub fn transpose(b: &mut Builder, i: usize, x: &[Operand], ct: Var) -> Result<Option<Var>, Error> {
    let Some(other) = x[1 - i].value else { return Ok(None) };
    let mut over: Vec<Name> = vec![];
    for a in b.ty(ct).axes.iter().chain(&b.ty(other).axes) {
        if !x[i].ty.has(&a.name) && !over.contains(&a.name) {
            over.push(a.name.clone());
        }
    }
    Ok(Some(if over.is_empty() { b.mul(ct, other)? } else { b.contract(ct, other, &over)? }))
}
