//! Types of values: an element type and named axes.
//!
//! Axes are *named*, and a value has each name at most once. Elementwise operations match axes by name, so a row statistic
//! `[B,H,I]` meets its rows `[B,H,I,J]` without a word, and every pass can treat a value as a function of a set of axes.
//! The order of axes means the order in memory, and matters only where a value is stored.

use crate::dim::{Bindings, Dim, Name};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Element types.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum DType {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// 16-bit brain float: 8 bits of exponent.
    BF16,
    /// 16-bit IEEE float.
    F16,
    /// 32-bit signed integer: positions and lengths.
    I32,
    /// Truth value: masks.
    Bool,
}

impl DType {
    /// All of them.
    pub const ALL: [DType; 6] = [DType::F64, DType::F32, DType::BF16, DType::F16, DType::I32, DType::Bool];
    /// The name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::I32 => "i32",
            DType::Bool => "bool",
        }
    }
    /// The type called `s`.
    pub fn parse(s: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == s)
    }
    /// Whether values are floats, the only ones that have tangents.
    pub fn is_float(self) -> bool {
        !matches!(self, DType::I32 | DType::Bool)
    }
    /// Bytes of one element in memory.
    pub fn bytes(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::BF16 | DType::F16 => 2,
            DType::Bool => 1,
        }
    }
    /// `x` rounded to this type, to nearest even; integers and truth values are taken as they are.
    pub fn round(self, x: f64) -> f64 {
        match self {
            DType::F32 => f64::from(x as f32),
            DType::BF16 => half::bf16::from_f32(to_odd(x)).to_f64(),
            DType::F16 => half::f16::from_f32(to_odd(x)).to_f64(),
            DType::F64 | DType::I32 | DType::Bool => x,
        }
    }
}

/// `x` as f32, inexact values to the neighbour with an odd last bit, so that a second rounding to fewer bits is that of `x` itself.
/// (`half` takes the upper 32 bits of an f64 only, and rounds values just above a tie down.)
pub(crate) fn to_odd(x: f64) -> f32 {
    let y = x as f32;
    let back = f64::from(y);
    if back == x || !y.is_finite() || y.to_bits() & 1 == 1 {
        return y;
    }
    f32::from_bits(if x.abs() > back.abs() { y.to_bits() + 1 } else { y.to_bits() - 1 })
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A named axis and its size.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Axis {
    /// What operations match by.
    pub name: Name,
    /// How many elements.
    pub size: Dim,
}

impl Axis {
    /// An axis `name` of size `name`.
    pub fn sym(name: impl Into<Name>) -> Axis {
        let name = name.into();
        Axis { size: Dim::sym(name.clone()), name }
    }
    /// An axis `name` of size `size`.
    pub fn new(name: impl Into<Name>, size: Dim) -> Axis {
        Axis { name: name.into(), size }
    }
}

impl fmt::Display for Axis {
    /// `D`, `64`, or `E=D`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.size.to_string();
        if *size == *self.name { write!(f, "{size}") } else { write!(f, "{}={size}", self.name) }
    }
}

/// The type of a value: element type and axes, outermost first.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Type {
    /// Element type.
    pub dtype: DType,
    /// Axes with distinct names, in memory order.
    pub axes: Vec<Axis>,
}

impl Type {
    /// A type.
    pub fn new(dtype: DType, axes: Vec<Axis>) -> Type {
        Type { dtype, axes }
    }
    /// A type without axes.
    pub fn scalar(dtype: DType) -> Type {
        Type { dtype, axes: vec![] }
    }
    /// The axis called `name`.
    pub fn axis(&self, name: &str) -> Option<&Axis> {
        self.axes.iter().find(|a| *a.name == *name)
    }
    /// Where the axis called `name` stands.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.axes.iter().position(|a| *a.name == *name)
    }
    /// Whether there is an axis called `name`.
    pub fn has(&self, name: &str) -> bool {
        self.axis(name).is_some()
    }
    /// Whether `other`'s axes are all among this type's.
    pub fn covers(&self, other: &Type) -> bool {
        other.axes.iter().all(|a| self.has(&a.name))
    }
    /// Sizes under `b`, in order.
    ///
    /// # Errors
    /// The first size that has no number.
    pub fn sizes(&self, b: &Bindings) -> Result<Vec<usize>, crate::dim::DimError> {
        self.axes.iter().map(|a| a.size.eval(b).map(|n| n.max(0) as usize)).collect()
    }
    /// Number of elements, as an expression.
    pub fn count(&self) -> Dim {
        self.axes.iter().fold(Dim::fixed(1), |n, a| &n * &a.size)
    }
}

impl fmt::Display for Type {
    /// `f32[B,H,I,D]`, or `f32` for a scalar.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dtype)?;
        if self.axes.is_empty() {
            return Ok(());
        }
        let axes: Vec<String> = self.axes.iter().map(Axis::to_string).collect();
        write!(f, "[{}]", axes.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_once() {
        for (d, ulp) in [(DType::BF16, 1.0 / 128.0), (DType::F16, 1.0 / 1024.0), (DType::F32, f64::from(f32::EPSILON))] {
            let tie = 1.0 + ulp / 2.0;
            assert_eq!([tie, tie + 1e-13, tie - 1e-13, -tie - 1e-13].map(|x| d.round(x)), [1.0, 1.0 + ulp, 1.0, -1.0 - ulp], "{d}");
            assert_eq!([0.0, 1.0, f64::INFINITY, 1e300].map(|x| d.round(x)), [0.0, 1.0, f64::INFINITY, f64::INFINITY]);
            assert!(d.round(f64::NAN).is_nan());
        }
    }
}
