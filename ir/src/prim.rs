//! Primitives: the operations of the IR, in families. Each family file holds name, type, meaning, derivative kind and domain
//! of its operations together; the compiler lists what is left when one is added (`docs/adding-an-op.md`).

use crate::dim::{Dim, Name};
use crate::types::{Axis, DType, Type};
use serde::{Deserialize, Serialize};

pub mod call;
pub mod contract;
pub mod elementwise;
pub mod movement;
pub mod reduce;
pub mod transpose;

pub use crate::tile::ReduceKind;
pub use call::{Call, Callee};
pub use elementwise::{Elementwise, Kind};
pub use movement::Movement;

/// An operation.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Prim {
    /// Acts on each element alone; operands are matched by axis name and broadcast to the union of their axes.
    Elementwise(Elementwise),
    /// Sum or maximum over axes.
    Reduce(ReduceKind, Vec<Name>),
    /// `Σ_axes a·b`: product of two operands, matched by axis name, summed over `axes`.
    Contract(Vec<Name>),
    /// The same elements under other axes.
    Movement(Movement),
    /// A number.
    Constant(Literal),
    /// A size, as a number of the given type.
    Size(Dim, DType),
    /// Positions 0, 1, … along an axis, `i32`.
    Iota(Axis),
    /// The operand; has no tangent.
    StopGradient,
    /// One result of a function.
    Call(Call),
}

/// A constant: a number with an element type. Compared by bits.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Literal {
    /// The number.
    pub value: f64,
    /// Its type.
    pub dtype: DType,
}
impl PartialEq for Literal {
    fn eq(&self, o: &Literal) -> bool {
        (self.value.to_bits(), self.dtype) == (o.value.to_bits(), o.dtype)
    }
}
impl Eq for Literal {}
impl std::hash::Hash for Literal {
    fn hash<H: std::hash::Hasher>(&self, h: &mut H) {
        (self.value.to_bits(), self.dtype).hash(h);
    }
}

impl Prim {
    /// The name in the text form.
    pub fn name(&self) -> &'static str {
        match self {
            Prim::Elementwise(e) => e.name(),
            Prim::Reduce(k, _) => k.name(),
            Prim::Contract(_) => "contract",
            Prim::Movement(m) => m.name(),
            Prim::Constant(_) => "const",
            Prim::Size(..) => "size",
            Prim::Iota(_) => "iota",
            Prim::StopGradient => "stop_gradient",
            Prim::Call(_) => "call",
        }
    }

    /// The type of the result for operands of types `args`.
    ///
    /// # Errors
    /// What is wrong, with both sides, as [`Mismatch`].
    pub fn infer(&self, args: &[&Type]) -> Result<Type, Mismatch> {
        let want = match self {
            Prim::Elementwise(e) => e.arity(),
            Prim::Contract(_) => 2,
            Prim::Movement(m) => return m.infer(args),
            Prim::Call(c) => return c.infer(args),
            Prim::Reduce(..) | Prim::StopGradient => 1,
            Prim::Constant(_) | Prim::Size(..) | Prim::Iota(_) => 0,
        };
        if args.len() != want {
            return Err(Mismatch::new(format!("takes {want} operand{}, but {} given", if want == 1 { "" } else { "s" }, args.len())));
        }
        match self {
            Prim::Elementwise(e) => {
                let dtypes: Vec<DType> = args.iter().map(|t| t.dtype).collect();
                Ok(Type::new(e.infer(&dtypes).map_err(Mismatch::new)?, union(args)?))
            }
            Prim::Reduce(_, axes) => reduce::infer(args[0], axes),
            Prim::Contract(axes) => contract::infer(args[0], args[1], axes),
            Prim::Movement(_) | Prim::Call(_) => Err(Mismatch::new("unreachable".into())),
            Prim::Constant(c) => Ok(Type::scalar(c.dtype)),
            Prim::Size(_, d) => Ok(Type::scalar(*d)),
            Prim::Iota(a) => Ok(Type::new(DType::I32, vec![a.clone()])),
            Prim::StopGradient => Ok(args[0].clone()),
        }
    }
}

/// Why operands do not fit an operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// What is wrong, naming both sides.
    pub message: String,
    /// What to try.
    pub hint: Option<String>,
}

impl Mismatch {
    /// Without a hint.
    pub fn new(message: String) -> Mismatch {
        Mismatch { message, hint: None }
    }
    /// With a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Mismatch {
        self.hint = Some(hint.into());
        self
    }
}

/// The union of the operands' axes: those of the operand with most axes first, in its order, then the others' in theirs.
///
/// # Errors
/// One name with two sizes.
pub fn union(args: &[&Type]) -> Result<Vec<Axis>, Mismatch> {
    let Some(widest) = args.iter().enumerate().max_by_key(|(i, t)| (t.axes.len(), usize::MAX - i)).map(|(_, t)| t) else { return Ok(vec![]) };
    let mut axes = widest.axes.clone();
    for a in args.iter().flat_map(|t| &t.axes) {
        match axes.iter().find(|b| b.name == a.name) {
            None => axes.push(a.clone()),
            Some(b) if b.size == a.size => {}
            Some(b) => {
                return Err(Mismatch::new(format!("axis `{}` is {} in one operand but {} in the other", a.name, b.size, a.size))
                    .hint("one axis has one size; `rename` one of them if they are different axes"));
            }
        }
    }
    Ok(axes)
}
