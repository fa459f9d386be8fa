//! Transposes: from the cotangent of a result to the cotangents of the operands in which an operation is linear.
//!
//! Each family's rule stands in its file; here is what they share. A linear operation is its own derivative, so its transpose is
//! the whole of its reverse mode: nobody writes a gradient. The idea is from Radul, Paszke, Frostig, Johnson and Maclaurin, *You Only
//! Linearize Once* (arXiv 2204.10923).

use super::{Elementwise, Movement, Prim, ReduceKind, contract};
use crate::builder::Builder;
use crate::diagnostic::Error;
use crate::dim::{Dim, Name};
use crate::graph::Var;
use crate::types::{Axis, Type};

/// An operand of an operation that is transposed.
#[derive(Clone, Debug)]
pub struct Operand {
    /// Its type.
    pub ty: Type,
    /// Its value, if it does not depend on what the program is linear in.
    pub value: Option<Var>,
}

/// What a result's cotangent is to an operand.
#[derive(Clone, PartialEq, Debug)]
pub enum Pull {
    /// A cotangent of the operand, up to the order of its axes.
    Whole(Var),
    /// One along a part of an axis; zero elsewhere.
    Part(Part),
}

/// A cotangent of some elements of an axis.
#[derive(Clone, PartialEq, Debug)]
pub struct Part {
    /// The operand's axis.
    pub axis: Name,
    /// The axis that stands in its place in `value`; without it, `value` is that of one position.
    pub along: Option<Axis>,
    /// The first element.
    pub start: Dim,
    /// The cotangent.
    pub value: Var,
}

impl Part {
    fn len(&self) -> Dim {
        self.along.as_ref().map_or(Dim::fixed(1), |a| a.size.clone())
    }
}

impl Prim {
    /// The cotangent of operand `i` from the result's, `ct`; `None` if the operation is not linear in that operand as the others are.
    ///
    /// # Errors
    /// Those of the builder.
    pub fn transpose(&self, b: &mut Builder, i: usize, args: &[Operand], ct: Var) -> Result<Option<Pull>, Error> {
        let to = args[i].ty.clone();
        let whole = match self {
            Prim::Elementwise(e) => match e.transpose(b, i, args, ct)? {
                Some(v) => v,
                None => return Ok(None),
            },
            Prim::Contract(_) => match contract::transpose(b, i, args, ct)? {
                Some(v) => v,
                None => return Ok(None),
            },
            Prim::Reduce(ReduceKind::Sum, _) => ct,
            Prim::Movement(m) => {
                let types: Vec<Type> = args.iter().map(|a| a.ty.clone()).collect();
                match m.transpose(b, i, &types, ct)? {
                    Pull::Whole(v) => v,
                    part => return Ok(Some(part)),
                }
            }
            _ => return Ok(None),
        };
        fit(b, whole, &to).map(|v| Some(Pull::Whole(v)))
    }
}

/// `v` as a value of type `to`: summed over the axes along which the operand was broadcast, constant along those that were summed.
fn fit(b: &mut Builder, v: Var, to: &Type) -> Result<Var, Error> {
    let extra: Vec<Name> = b.ty(v).axes.iter().map(|a| a.name.clone()).filter(|n| !to.has(n)).collect();
    let v = match b.product(v) {
        _ if extra.is_empty() => v,
        // The sum of a product is a contraction.
        Some((x, y)) => b.contract(x, y, &extra)?,
        None => b.reduce_sum(v, &extra)?,
    };
    let missing: Vec<Axis> = to.axes.iter().filter(|a| !b.ty(v).has(&a.name)).cloned().collect();
    let v = if missing.is_empty() { v } else { b.movement(Movement::Broadcast(missing), &[v])? };
    let order: Vec<Name> = to.axes.iter().map(|a| a.name.clone()).collect();
    b.permute(v, &order)
}

/// Cotangents of one value of type `to` as one value of that type. Parts that stand side by side are joined, gaps are zeros; what is not
/// known to be apart is added.
///
/// # Errors
/// Those of the builder.
pub fn join(b: &mut Builder, to: &Type, pulls: Vec<Pull>) -> Result<Option<Var>, Error> {
    let (mut total, mut parts): (Option<Var>, Vec<Part>) = (None, vec![]);
    let sum = |b: &mut Builder, t: Option<Var>, v: Var| t.map_or(Ok(v), |t| b.add(t, v)).map(Some);
    for p in pulls {
        match p {
            Pull::Whole(v) => total = sum(b, total, v)?,
            Pull::Part(p) => match parts.iter_mut().find(|q| (&q.axis, &q.along, &q.start) == (&p.axis, &p.along, &p.start)) {
                Some(q) => q.value = b.add(q.value, p.value)?,
                None => parts.push(p),
            },
        }
    }
    while let Some(first) = parts.first() {
        let axis = first.axis.clone();
        let (here, rest): (Vec<Part>, Vec<Part>) = parts.into_iter().partition(|p| p.axis == axis);
        parts = rest;
        let size = to.axis(&axis).map_or(Dim::fixed(0), |a| a.size.clone());
        let rows = match tile(&here, &size) {
            Some(row) => vec![row],
            None => here.iter().filter_map(|p| tile(std::slice::from_ref(p), &size)).collect(),
        };
        for row in rows {
            let v = place(b, to, &axis, row)?;
            total = sum(b, total, v)?;
        }
    }
    Ok(total)
}

/// A part, or this many zeros.
enum Piece {
    Part(Part),
    Gap(Dim),
}

/// The parts in order, with the gaps between them; `None` if their order is not known or two of them overlap.
fn tile(parts: &[Part], size: &Dim) -> Option<Vec<Piece>> {
    let mut left: Vec<&Part> = parts.iter().collect();
    let (mut at, mut row) = (Dim::fixed(0), vec![]);
    while !left.is_empty() {
        // A single part is where it says; of several, the distances must be numbers.
        let distance = |p: &&Part| (&p.start - &at).as_fixed();
        let next = match left.as_slice() {
            [_] if row.is_empty() => 0,
            _ => {
                let (i, d) = left.iter().enumerate().filter_map(|(i, p)| distance(p).map(|d| (i, d))).min_by_key(|(_, d)| *d)?;
                if d < 0 || left.iter().enumerate().any(|(j, p)| j != i && distance(p).is_none() && d != 0) {
                    return None;
                }
                i
            }
        };
        let p = left.remove(next);
        let gap = &p.start - &at;
        if !gap.is_zero() {
            row.push(Piece::Gap(gap));
        }
        at = &p.start + &p.len();
        row.push(Piece::Part(p.clone()));
    }
    let gap = size - &at;
    if gap.as_fixed().is_some_and(|n| n < 0) {
        return None;
    }
    if !gap.is_zero() {
        row.push(Piece::Gap(gap));
    }
    Some(row)
}

/// A row of pieces along `axis`, as a value of type `to`.
fn place(b: &mut Builder, to: &Type, axis: &Name, row: Vec<Piece>) -> Result<Var, Error> {
    let Some(whole) = to.axis(axis).cloned() else { return Err(Error::new(format!("transpose: {to} has no axis `{axis}`"))) };
    let order: Vec<Name> = to.axes.iter().map(|a| a.name.clone()).collect();
    let zero = b.constant(0.0, to.dtype);
    let rest: Vec<Axis> = to.axes.iter().filter(|a| a.name != *axis).cloned().collect();
    let rest_names: Vec<Name> = rest.iter().map(|a| a.name.clone()).collect();
    // Positions only, none of them left out: side by side along a new axis.
    if row.iter().all(|p| matches!(p, Piece::Part(Part { along: None, .. }))) {
        let mut values = vec![];
        for p in &row {
            if let Piece::Part(p) = p {
                values.push(b.permute(p.value, &rest_names)?);
            }
        }
        let v = match values.as_slice() {
            [one] => b.movement(Movement::Broadcast(vec![whole]), &[*one])?,
            many => b.movement(Movement::Stack(whole), many)?,
        };
        return b.permute(v, &order);
    }
    let (mut axes, mut values) = (vec![], vec![]);
    for p in row {
        let (value, along) = match p {
            Piece::Gap(size) => {
                let along = Axis::new(free_axis(b, axis, &size), size);
                let ty: Vec<Axis> = to.axes.iter().map(|a| if a.name == *axis { along.clone() } else { a.clone() }).collect();
                (b.movement(Movement::Broadcast(ty), &[zero])?, along)
            }
            Piece::Part(Part { along: Some(a), value, .. }) => (value, a),
            Piece::Part(Part { along: None, value, .. }) => {
                let along = Axis::new(free_axis(b, axis, &Dim::fixed(1)), Dim::fixed(1));
                (b.movement(Movement::Broadcast(vec![along.clone()]), &[value])?, along)
            }
        };
        let order: Vec<Name> = order.iter().map(|n| if n == axis { along.name.clone() } else { n.clone() }).collect();
        values.push(b.permute(value, &order)?);
        axes.push(along.name);
    }
    match (values.as_slice(), axes.as_slice()) {
        ([one], [n]) => b.movement(Movement::Rename { from: n.clone(), to: whole }, &[*one]),
        _ => b.movement(Movement::Concat { axes, into: whole }, &values),
    }
}

/// A name for an axis of this size beside those that the function has: the same one for the same size.
fn free_axis(b: &Builder, like: &Name, size: &Dim) -> Name {
    let f = b.function();
    let clash = |n: &str| {
        f.vars.iter().flat_map(|v| &v.ty.axes).any(|a| (*a.name == *n && a.size != *size) || a.size.symbols().iter().any(|s| **s == *n))
            || size.symbols().iter().any(|s| **s == *n)
    };
    // An axis may be called by a number; its parts may not.
    let base = if like.starts_with(|c: char| c.is_ascii_digit()) { format!("x{like}") } else { like.to_string() };
    (0..).map(|i| format!("{base}.{i}")).find(|n| !clash(n)).unwrap_or_default().into()
}

/// Whether `v` is nothing but zeros, by construction.
pub fn is_zero(f: &crate::graph::Function, definitions: &[Option<usize>], v: Var) -> bool {
    let Some(e) = definitions[v.index()].map(|i| &f.eqns[i]) else { return false };
    match &e.op {
        Prim::Constant(c) => c.value == 0.0,
        Prim::Movement(_) | Prim::Elementwise(Elementwise::Neg | Elementwise::Convert(_)) => e.args.iter().all(|a| is_zero(f, definitions, *a)),
        _ => false,
    }
}
