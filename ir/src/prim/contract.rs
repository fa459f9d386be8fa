//! The contraction: product of two operands, summed over named axes. Bilinear, so its derivative is the product rule.

use super::{Mismatch, union};
use crate::dim::Name;
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
