//! Elementwise operations: everything that acts on each element alone. Name, arity, meaning, derivative and domain of an
//! operation stand in this file and nowhere else; what machines emit for it is one arm in `codegen::scalar`.

use crate::builder::Builder;
use crate::diagnostic::Error;
use crate::graph::Var;
use crate::prim::transpose::Operand;
use crate::types::DType;
use serde::{Deserialize, Serialize};

/// An elementwise operation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are the documentation
pub enum Elementwise {
    Neg, Exp, Log, Sqrt, Rsqrt, Tanh, Logistic, Sin, Cos, Erf, Abs,
    Add, Sub, Mul, Div, Max, Min, Pow,
    Lt, Le, Gt, Ge, Eq, Ne, And, Or, Not,
    /// `select(c, a, b)`: a where c holds, else b.
    Select,
    /// To another element type.
    Convert(DType),
}

use Elementwise::*;

/// How the derivative of an operation is had (`docs/adding-an-op.md`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The operation on the tangents. For `select`: on the tangents of the branches.
    Linear,
    /// The product rule.
    Bilinear,
    /// `Σ partialᵢ·tangentᵢ`.
    Partials,
    /// No tangent.
    Zero,
}

impl Elementwise {
    /// Every operation, one of `Convert`.
    pub const ALL: [Elementwise; 29] = [
        Neg, Exp, Log, Sqrt, Rsqrt, Tanh, Logistic, Sin, Cos, Erf, Abs, Add, Sub, Mul, Div, Max, Min, Pow, Lt, Le, Gt, Ge, Eq, Ne, And,
        Or, Not, Select, Convert(DType::F32),
    ];

    /// The name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Neg => "neg", Exp => "exp", Log => "log", Sqrt => "sqrt", Rsqrt => "rsqrt", Tanh => "tanh", Logistic => "logistic",
            Sin => "sin", Cos => "cos", Erf => "erf", Abs => "abs",
            Add => "add", Sub => "sub", Mul => "mul", Div => "div", Max => "max", Min => "min", Pow => "pow",
            Lt => "lt", Le => "le", Gt => "gt", Ge => "ge", Eq => "eq", Ne => "ne", And => "and", Or => "or", Not => "not",
            Select => "select", Convert(_) => "convert",
        }
    }
    /// Number of operands.
    pub fn arity(self) -> usize {
        match self {
            Neg | Exp | Log | Sqrt | Rsqrt | Tanh | Logistic | Sin | Cos | Erf | Abs | Not | Convert(_) => 1,
            Add | Sub | Mul | Div | Max | Min | Pow | Lt | Le | Gt | Ge | Eq | Ne | And | Or => 2,
            Select => 3,
        }
    }
    /// Whether operands may be swapped.
    pub fn commutes(self) -> bool {
        matches!(self, Add | Mul | Max | Min | Eq | Ne | And | Or)
    }

    /// The result's element type.
    ///
    /// # Errors
    /// A message that names both sides.
    pub fn infer(self, args: &[DType]) -> Result<DType, String> {
        let same = |i: usize, j: usize| {
            (args[i] == args[j]).then_some(args[i]).ok_or_else(|| format!("operands are {} and {}; convert one of them", args[i], args[j]))
        };
        let float = |d: DType| d.is_float().then_some(d).ok_or_else(|| format!("operand is {d}, but must be a float"));
        let truth = |d: DType| (d == DType::Bool).then_some(d).ok_or_else(|| format!("operand is {d}, but must be bool"));
        let number = |d: DType| (d != DType::Bool).then_some(d).ok_or_else(|| "operand is bool, but must be a number".to_string());
        match self {
            Exp | Log | Sqrt | Rsqrt | Tanh | Logistic | Sin | Cos | Erf => float(args[0]),
            Neg | Abs => number(args[0]),
            Add | Sub | Mul | Max | Min => same(0, 1).and_then(number),
            Div | Pow => same(0, 1).and_then(float),
            Lt | Le | Gt | Ge | Eq | Ne => same(0, 1).map(|_| DType::Bool),
            And | Or => same(0, 1).and_then(truth),
            Not => truth(args[0]),
            Select => truth(args[0]).and_then(|_| same(1, 2)),
            Convert(to) => Ok(to),
        }
    }

    /// The meaning, in f64. Truth values are 0 and 1.
    pub fn eval(self, x: &[f64]) -> f64 {
        let truth = |b: bool| f64::from(u8::from(b));
        match self {
            Neg => -x[0],
            Exp => x[0].exp(),
            Log => x[0].ln(),
            Sqrt => x[0].sqrt(),
            Rsqrt => 1.0 / x[0].sqrt(),
            Tanh => x[0].tanh(),
            Logistic => 1.0 / (1.0 + (-x[0]).exp()),
            Sin => x[0].sin(),
            Cos => x[0].cos(),
            Erf => libm::erf(x[0]),
            Abs => x[0].abs(),
            Add => x[0] + x[1],
            Sub => x[0] - x[1],
            Mul => x[0] * x[1],
            Div => x[0] / x[1],
            Max => x[0].max(x[1]),
            Min => x[0].min(x[1]),
            Pow => x[0].powf(x[1]),
            Lt => truth(x[0] < x[1]),
            Le => truth(x[0] <= x[1]),
            Gt => truth(x[0] > x[1]),
            Ge => truth(x[0] >= x[1]),
            Eq => truth(x[0] == x[1]),
            Ne => truth(x[0] != x[1]),
            And => x[0] * x[1],
            Or => x[0].max(x[1]),
            Not => 1.0 - x[0],
            Select => if x[0] != 0.0 { x[1] } else { x[2] },
            Convert(DType::I32) => x[0].trunc(),
            Convert(DType::Bool) => truth(x[0] != 0.0),
            Convert(to) => to.round(x[0]),
        }
    }

    /// How its derivative is had.
    pub fn kind(self) -> Kind {
        match self {
            Neg | Add | Sub | Select | Convert(_) => Kind::Linear,
            Mul => Kind::Bilinear,
            Exp | Log | Sqrt | Rsqrt | Tanh | Logistic | Sin | Cos | Erf | Abs | Div | Max | Min | Pow => Kind::Partials,
            Lt | Le | Gt | Ge | Eq | Ne | And | Or | Not => Kind::Zero,
        }
    }

    /// The partial derivative with respect to operand `i`, from the operands `x` and the result `y`. `None` outside
    /// [`Kind::Partials`]. Ties of `max` and `min` go to the first operand, `abs` at 0 has slope 0.
    ///
    /// # Errors
    /// Those of the builder.
    pub fn partial(self, b: &mut Builder, i: usize, x: &[Var], y: Var) -> Result<Option<Var>, Error> {
        let d = b.dtype(y);
        Ok(Some(match (self, i) {
            // y
            (Exp, _) => y,
            // 1/x
            (Log, _) => { let one = b.constant(1.0, d); b.div(one, x[0])? }
            // 1/(2y)
            (Sqrt, _) => { let half = b.constant(0.5, d); b.div(half, y)? }
            // −y³/2
            (Rsqrt, _) => { let (c, y2) = (b.constant(-0.5, d), b.mul(y, y)?); let y3 = b.mul(y2, y)?; b.mul(c, y3)? }
            // 1 − y²
            (Tanh, _) => { let (one, y2) = (b.constant(1.0, d), b.mul(y, y)?); b.sub(one, y2)? }
            // y(1 − y)
            (Logistic, _) => { let one = b.constant(1.0, d); let r = b.sub(one, y)?; b.mul(y, r)? }
            // cos x
            (Sin, _) => b.elementwise(Cos, &[x[0]])?,
            // −sin x
            (Cos, _) => { let s = b.elementwise(Sin, &[x[0]])?; b.elementwise(Neg, &[s])? }
            // 2/√π · exp(−x²)
            (Erf, _) => {
                let x2 = b.mul(x[0], x[0])?;
                let n = b.elementwise(Neg, &[x2])?;
                let (c, e) = (b.constant(std::f64::consts::FRAC_2_SQRT_PI, d), b.elementwise(Exp, &[n])?);
                b.mul(c, e)?
            }
            // sign x
            (Abs, _) => {
                let (zero, one, minus) = (b.constant(0.0, d), b.constant(1.0, d), b.constant(-1.0, d));
                let (pos, neg) = (b.elementwise(Gt, &[x[0], zero])?, b.elementwise(Lt, &[x[0], zero])?);
                let below = b.elementwise(Select, &[neg, minus, zero])?;
                b.elementwise(Select, &[pos, one, below])?
            }
            // 1/b, −y/b
            (Div, 0) => { let one = b.constant(1.0, d); b.div(one, x[1])? }
            (Div, _) => { let q = b.div(y, x[1])?; b.elementwise(Neg, &[q])? }
            // [a ≥ b], [a < b]
            (Max, i) | (Min, i) => {
                let first = b.elementwise(if self == Max { Ge } else { Le }, &[x[0], x[1]])?;
                let (zero, one) = (b.constant(0.0, d), b.constant(1.0, d));
                b.elementwise(Select, &if i == 0 { [first, one, zero] } else { [first, zero, one] })?
            }
            // b·aᵇ⁻¹, y·log a
            (Pow, 0) => {
                let one = b.constant(1.0, d);
                let e = b.sub(x[1], one)?;
                let p = b.elementwise(Pow, &[x[0], e])?;
                b.mul(x[1], p)?
            }
            (Pow, _) => { let l = b.elementwise(Log, &[x[0]])?; b.mul(y, l)? }
            (Neg | Add | Sub | Mul | Select | Convert(_) | Lt | Le | Gt | Ge | Eq | Ne | And | Or | Not, _) => return Ok(None),
        }))
    }

    /// The transpose of an operation that is linear in operand `i`: that operand's cotangent from the result's, `ct`, before sums over
    /// broadcast axes. `None` if the operation is not linear in it.
    ///
    /// # Errors
    /// Those of the builder.
    pub fn transpose(self, b: &mut Builder, i: usize, x: &[Operand], ct: Var) -> Result<Option<Var>, Error> {
        let d = x[i].ty.dtype;
        Ok(Some(match (self, i) {
            (Add, _) | (Sub, 0) => ct,
            (Neg, _) | (Sub, _) => b.elementwise(Neg, &[ct])?,
            // A rounding of the value is a rounding of its cotangent, to the type that the operand has.
            (Convert(to), _) if to.is_float() && d.is_float() => b.elementwise(Convert(d), &[ct])?,
            (Mul, _) => match x[1 - i].value {
                Some(other) => b.mul(ct, other)?,
                None => return Ok(None),
            },
            (Select, 1 | 2) => match x[0].value {
                Some(c) => {
                    let zero = b.constant(0.0, d);
                    b.elementwise(Select, &if i == 1 { [c, ct, zero] } else { [c, zero, ct] })?
                }
                None => return Ok(None),
            },
            _ => return Ok(None),
        }))
    }

    /// Where operand `i` may be drawn from by property tests: an interval in which the operation and its first two
    /// derivatives are smooth and of moderate size.
    pub fn domain(self, i: usize) -> (f64, f64) {
        match (self, i) {
            (Log | Sqrt | Rsqrt, _) | (Pow, 0) | (Div, 1) => (0.5, 2.0),
            (Abs, _) => (0.2, 2.0),
            _ => (-1.5, 1.5),
        }
    }
}
