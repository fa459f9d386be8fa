//! Movement: the same elements under other axes. All linear; at the edge of a kernel they cost nothing, being only another
//! way to compute an address.

use super::Mismatch;
use super::transpose::{Part, Pull};
use crate::builder::Builder;
use crate::diagnostic::Error;
use crate::dim::{Dim, Name};
use crate::graph::Var;
use crate::types::{Axis, Type};
use serde::{Deserialize, Serialize};

/// A movement of elements.
#[allow(missing_docs)] // each variant's line names its fields
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Movement {
    /// `from` under another name (of the same size).
    Rename { from: Name, to: Axis },
    /// One axis as several, outermost first.
    Split { axis: Name, into: Vec<Axis> },
    /// Several axes as one, outermost first; they need not stand together.
    Merge { axes: Vec<Name>, into: Axis },
    /// Another order in memory.
    Permute(Vec<Name>),
    /// New axes along which the value is constant.
    Broadcast(Vec<Axis>),
    /// The elements `start ..` of an axis, as axis `to`.
    Slice { axis: Name, to: Axis, start: Dim },
    /// The elements at one position of an axis, which vanishes.
    Index { axis: Name, at: Dim },
    /// Operands one after the other; each has the axis named beside it.
    Concat { axes: Vec<Name>, into: Axis },
    /// Operands of one type side by side along a new axis.
    Stack(Axis),
}

use Movement::*;

impl Movement {
    /// The name in the text form.
    pub fn name(&self) -> &'static str {
        match self {
            Rename { .. } => "rename",
            Split { .. } => "split",
            Merge { .. } => "merge",
            Permute(_) => "permute",
            Broadcast(_) => "broadcast",
            Slice { .. } => "slice",
            Index { .. } => "index",
            Concat { .. } => "concat",
            Stack(_) => "stack",
        }
    }

    /// The result's type.
    pub fn infer(&self, args: &[&Type]) -> Result<Type, Mismatch> {
        let many = matches!(self, Concat { .. } | Stack(_));
        if args.is_empty() || (!many && args.len() != 1) {
            return Err(Mismatch::new(format!("takes {} operand, but {} given", if many { "at least one" } else { "1" }, args.len())));
        }
        let t = args[0];
        let find = |t: &Type, n: &Name| t.position(n).ok_or_else(|| Mismatch::new(format!("operand {t} has no axis `{n}`")));
        let fresh = |axes: &[Axis], a: &Axis| {
            if axes.iter().any(|x| x.name == a.name) { Err(Mismatch::new(format!("the result would have axis `{}` twice", a.name))) } else { Ok(()) }
        };
        let size = |what: &str, have: &Dim, want: &Dim| {
            if have == want { Ok(()) } else { Err(Mismatch::new(format!("{what} is {have} but must be {want}"))) }
        };
        // Replaces the axis at `at` by `with`, refusing a duplicate name.
        let splice = |at: usize, with: &[Axis]| -> Result<Vec<Axis>, Mismatch> {
            let mut axes: Vec<Axis> = t.axes.clone();
            axes.remove(at);
            for (i, a) in with.iter().enumerate() {
                fresh(&axes, a)?;
                axes.insert(at + i, a.clone());
            }
            Ok(axes)
        };
        let axes = match self {
            Rename { from, to } => {
                let at = find(t, from)?;
                size(&format!("axis `{}`", to.name), &to.size, &t.axes[at].size)?;
                splice(at, std::slice::from_ref(to))?
            }
            Split { axis, into } => {
                let at = find(t, axis)?;
                let product = into.iter().fold(Dim::fixed(1), |n, a| &n * &a.size);
                size("the product of the new sizes", &product, &t.axes[at].size)?;
                splice(at, into)?
            }
            Merge { axes, into } => {
                let mut product = Dim::fixed(1);
                let mut rest = t.axes.clone();
                let mut at = usize::MAX;
                for n in axes {
                    let i = rest.iter().position(|a| a.name == *n).ok_or_else(|| Mismatch::new(format!("operand {t} has no axis `{n}`, or it is named twice")))?;
                    at = at.min(i);
                    product = &product * &rest.remove(i).size;
                }
                size(&format!("axis `{}`", into.name), &into.size, &product)?;
                fresh(&rest, into)?;
                rest.insert(at.min(rest.len()), into.clone());
                rest
            }
            Permute(order) => {
                let mut axes = vec![];
                for n in order {
                    let a = t.axes[find(t, n)?].clone();
                    fresh(&axes, &a)?;
                    axes.push(a);
                }
                if axes.len() != t.axes.len() {
                    return Err(Mismatch::new(format!("{} axes named, but operand {t} has {}", axes.len(), t.axes.len())));
                }
                axes
            }
            Broadcast(new) => {
                let mut axes = vec![];
                for a in new {
                    fresh(&t.axes, a)?;
                    fresh(&axes, a)?;
                    axes.push(a.clone());
                }
                axes.extend(t.axes.clone());
                axes
            }
            Slice { axis, to, start } => {
                let at = find(t, axis)?;
                if let (Some(s), Some(n), Some(have)) = (start.as_fixed(), to.size.as_fixed(), t.axes[at].size.as_fixed()) {
                    if s < 0 || n < 0 || s.saturating_add(n) > have {
                        return Err(Mismatch::new(format!("elements {s}..{} of axis `{axis}`, which has {have}", s.saturating_add(n))));
                    }
                }
                splice(at, std::slice::from_ref(to))?
            }
            Index { axis, at } => {
                let i = find(t, axis)?;
                if let (Some(p), Some(have)) = (at.as_fixed(), t.axes[i].size.as_fixed()) {
                    if p < 0 || p >= have {
                        return Err(Mismatch::new(format!("position {p} of axis `{axis}`, which has {have}")));
                    }
                }
                splice(i, &[])?
            }
            Concat { axes, into } => {
                if axes.len() != args.len() {
                    return Err(Mismatch::new(format!("{} axes named for {} operands", axes.len(), args.len())));
                }
                let mut total = Dim::fixed(0);
                let at = find(t, &axes[0])?;
                let result = splice(at, std::slice::from_ref(into))?;
                for (a, n) in args.iter().zip(axes) {
                    let i = find(a, n)?;
                    total = &total + &a.axes[i].size;
                    let mut rest = a.axes.clone();
                    rest[i] = into.clone();
                    if a.dtype != t.dtype || rest != result {
                        return Err(Mismatch::new(format!("operands are {t} and {a}, but must agree outside the joined axis")));
                    }
                }
                size(&format!("axis `{}`", into.name), &into.size, &total)?;
                result
            }
            Stack(axis) => {
                if let Some(a) = args.iter().find(|a| **a != t) {
                    return Err(Mismatch::new(format!("operands are {t} and {a}, but must have one type")));
                }
                size(&format!("axis `{}`", axis.name), &axis.size, &Dim::fixed(args.len() as i64))?;
                fresh(&t.axes, axis)?;
                t.axes.iter().cloned().chain([axis.clone()]).collect()
            }
        };
        Ok(Type::new(t.dtype, axes))
    }

    /// The transpose: what the result's cotangent `ct` is to operand `i`, of the operands' types `args`. The transpose of a part is that
    /// part of zeros; parts of one value are joined where all of them are known ([`super::transpose::join`]).
    ///
    /// # Errors
    /// Those of the builder.
    pub fn transpose(&self, b: &mut Builder, i: usize, args: &[Type], ct: Var) -> Result<Pull, Error> {
        let to = &args[i];
        let own = |n: &Name| to.axis(n).cloned().unwrap_or_else(|| Axis::sym(n.clone()));
        let m = match self {
            Rename { from, to } => Rename { from: to.name.clone(), to: own(from) },
            Split { axis, into } => Merge { axes: into.iter().map(|a| a.name.clone()).collect(), into: own(axis) },
            Merge { axes, into } => Split { axis: into.name.clone(), into: axes.iter().map(own).collect() },
            Permute(_) => return Ok(Pull::Whole(ct)),
            Broadcast(axes) if axes.is_empty() => return Ok(Pull::Whole(ct)),
            Broadcast(axes) => {
                let names: Vec<Name> = axes.iter().map(|a| a.name.clone()).collect();
                return Ok(Pull::Whole(b.reduce_sum(ct, &names)?));
            }
            Slice { axis, to, start } => {
                return Ok(Pull::Part(Part { axis: axis.clone(), along: Some(to.clone()), start: start.clone(), value: ct }));
            }
            Index { axis, at } => return Ok(Pull::Part(Part { axis: axis.clone(), along: None, start: at.clone(), value: ct })),
            Concat { axes, into } => {
                let before = args[..i].iter().zip(axes).filter_map(|(t, n)| t.axis(n)).fold(Dim::fixed(0), |n, a| &n + &a.size);
                Slice { axis: into.name.clone(), to: own(&axes[i]), start: before }
            }
            Stack(axis) => Index { axis: axis.name.clone(), at: Dim::fixed(i as i64) },
        };
        Ok(Pull::Whole(b.movement(m, &[ct])?))
    }
}
