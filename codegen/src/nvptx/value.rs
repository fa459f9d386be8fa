//! Values while code is written: numbers, registers, and registers with a factor and a term that are not applied yet.

use super::plan::Rank;
use ir::prim::Elementwise;
use ir::types::DType;
use std::rc::Rc;

/// What stands in the columns beyond an axis' end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tail {
    /// Zeros.
    Zero,
    /// −∞.
    Low,
    /// Numbers.
    Finite,
    /// Anything.
    Any,
}

/// A value in registers, or that needs none.
#[derive(Clone, Debug)]
pub struct Value {
    /// Its axes.
    pub rank: Rank,
    /// Its type: `F32`, `I32` or `Bool`.
    pub dtype: DType,
    /// What stands beyond the end of its column axis.
    pub tail: Tail,
    /// Where it is.
    pub body: Body,
}

/// Where a value is.
#[derive(Clone, Debug)]
pub enum Body {
    /// Known while writing.
    Num(f64),
    /// One name per slot: `col · rows + row`.
    Regs(Rc<Vec<String>>),
    /// `base · scale + offset`, of the value's rank, `scale` and `offset` below it.
    Affine {
        /// The registers.
        base: Rc<Vec<String>>,
        /// The factor.
        scale: Box<Value>,
        /// The term.
        offset: Option<Box<Value>>,
    },
}

impl Value {
    /// A number.
    pub fn num(x: f64, dtype: DType) -> Value {
        Value { rank: Rank::NONE, dtype, tail: if x == 0.0 { Tail::Zero } else { Tail::Finite }, body: Body::Num(x) }
    }
    /// Registers.
    pub fn regs(rank: Rank, dtype: DType, tail: Tail, regs: Vec<String>) -> Value {
        Value { rank, dtype, tail, body: Body::Regs(Rc::new(regs)) }
    }
    /// The number, if it is one.
    pub fn as_num(&self) -> Option<f64> {
        match self.body {
            Body::Num(x) => Some(x),
            _ => None,
        }
    }
    /// Its tail as part of a value whose column axis it may lack: what has no column is a number for all of them.
    pub fn tail_in(&self, rank: Rank) -> Tail {
        if self.rank.col == rank.col || self.as_num().is_some() { self.tail } else { Tail::Finite }
    }
}

/// The tail of an elementwise result.
pub fn tail_of(e: Elementwise, x: &[Tail]) -> Tail {
    use Elementwise::*;
    use Tail::*;
    let numbers = x.iter().all(|t| matches!(t, Zero | Finite));
    match e {
        Mul if numbers && x.contains(&Zero) => Zero,
        Add | Sub | Max | Min if x.iter().all(|t| *t == Zero) => Zero,
        Add if x.contains(&Low) && x.iter().all(|t| *t != Any) => Low,
        Sub if x[0] == Low && matches!(x[1], Zero | Finite) => Low,
        Neg | Abs | Tanh | Sin | Erf | Sqrt | Convert(_) if x[0] == Zero => Zero,
        Exp if x[0] == Low => Zero,
        Select if x[1] == Zero && x[2] == Zero => Zero,
        Select if matches!(x[1], Zero | Finite) && matches!(x[2], Zero | Finite) => Finite,
        Add | Sub | Mul | Max | Min | Neg | Abs | Tanh | Sin | Cos | Erf | Logistic if numbers => Finite,
        Lt | Le | Gt | Ge | Eq | Ne | And | Or | Not => Finite,
        _ => Any,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_score_needs_one_mask() {
        use Elementwise::*;
        // s masked low; p = exp(s − m) is zero there; so is p·(t − c).
        let s = tail_of(Sub, &[Tail::Low, Tail::Finite]);
        let p = tail_of(Exp, &[s]);
        let h = tail_of(Sub, &[Tail::Zero, Tail::Finite]);
        assert_eq!((p, h, tail_of(Mul, &[p, h])), (Tail::Zero, Tail::Finite, Tail::Zero));
        assert_eq!(tail_of(Div, &[Tail::Zero, Tail::Zero]), Tail::Any);
        assert_eq!(tail_of(Mul, &[Tail::Zero, Tail::Any]), Tail::Any);
        assert_eq!(tail_of(Log, &[Tail::Zero]), Tail::Any);
    }
}
