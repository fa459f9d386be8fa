//! Block programs that are one product of matrices and nothing else: `D = A·B`, perhaps with a bias, so that a library's routine may take a kernel's place.
//!
//! What is looked at is the program: a sum of products of two loads, a sum with a third load at most, a store. No name and no layer is.

use super::{AxisId, Op, Program, Stmt, ValueId, View};
use crate::dim::{Bindings, Dim};
use crate::prim::Elementwise;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `D[b,m,n] = Σ_k A[b,m,k]·B[b,n,k] + bias[n]`, at known sizes. The result's columns `n` lie side by side in memory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Product {
    /// Rows, columns, what is summed, products in a batch.
    pub sizes: [u64; 4],
    /// Operand with rows: the steps along rows and along the sum, one of them 1.
    pub left: Matrix,
    /// Operand with columns: the steps along columns and along the sum, one of them 1.
    pub right: Matrix,
    /// Result: the steps along rows and along columns, the latter 1.
    pub out: Matrix,
    /// One number a column: position of its buffer, and its first element.
    pub bias: Option<(usize, u64)>,
}

/// A matrix in memory; numbers count elements.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Matrix {
    /// Position of the buffer among the program's.
    pub buffer: usize,
    /// The first element.
    pub offset: u64,
    /// From one index to the next, per axis.
    pub steps: [u64; 2],
    /// From one matrix of the batch to the next.
    pub batch: u64,
}

impl Product {
    /// Multiplications and additions.
    pub fn flops(&self) -> f64 {
        2.0 * self.sizes.iter().map(|n| *n as f64).product::<f64>()
    }
}

/// The product that `p` is at the sizes `dims`; else what it has that a product has not.
///
/// # Errors
/// That, in words.
pub fn product(p: &Program, dims: &Bindings) -> Result<Product, String> {
    let p = p.bind(dims).map_err(|e| e.to_string())?;
    let form = Form::of(&p)?;
    let (a, b) = (form.operands[0], form.operands[1]);
    let has = |v: &View, x: AxisId| v.stride(x).is_some_and(|d| d.as_fixed() != Some(0));
    // Per axis of more than one element, by where it is: rows, columns, the sum, batches.
    let mut groups: [Vec<AxisId>; 4] = Default::default();
    for (i, axis) in p.axes.iter().enumerate() {
        let x = AxisId(i as u32);
        match axis.size.as_fixed() {
            Some(1) => continue,
            Some(n) if n > 1 => {}
            _ => return Err(format!("axis `{}` has no elements", axis.name)),
        }
        let at = match (has(a, x), has(b, x), has(form.out, x)) {
            (true, false, true) => 0,
            (false, true, true) => 1,
            (true, true, false) => 2,
            (_, _, true) => 3,
            _ => return Err(format!("axis `{}` is in no two of both operands and the result", axis.name)),
        };
        if (at == 2) != form.summed.contains(&x) {
            return Err(format!("axis `{}` is not summed as a product's is", axis.name));
        }
        groups[at].push(x);
    }
    let views = [a, b, form.out];
    let mut merged = vec![];
    for (what, axes) in ["rows", "columns", "the sum", "batches"].iter().zip(&groups) {
        merged.push(joined(&p, axes, &views).ok_or_else(|| format!("the axes of {what} are not walked as one by all operands"))?);
    }
    let [(mut m, mut ms), (mut n, mut ns), (k, ks), (batch, bs)]: [(u64, Vec<u64>); 4] = merged.try_into().map_err(|_| "four groups of axes".to_string())?;
    let first = |v: &View| number(Some(&v.offset)).ok_or_else(|| "an offset below zero".to_string());
    // The result's contiguous axis is the columns': a result is as well the transposed product of exchanged operands.
    let mut operands = [0, 1];
    if ns[2] != 1 && ms[2] == 1 {
        (m, ms, n, ns) = (n, ns, m, ms);
        operands = [1, 0];
    }
    let matrix = |i: usize, steps: [u64; 2]| -> Result<Matrix, String> { Ok(Matrix { buffer: views[i].buffer.index(), offset: first(views[i])?, steps, batch: bs[i] }) };
    let left = matrix(operands[0], [ms[operands[0]], ks[operands[0]]])?;
    let right = matrix(operands[1], [ns[operands[1]], ks[operands[1]]])?;
    let out = matrix(2, [ms[2], ns[2]])?;
    if n > 1 && out.steps[1] != 1 {
        return Err("no axis of the result is contiguous in memory".into());
    }
    for (what, x) in [("left", &left), ("right", &right)] {
        if !x.steps.contains(&1) {
            return Err(format!("no axis of the {what} operand is contiguous in memory"));
        }
    }
    let columns = if operands == [0, 1] { &groups[1] } else { &groups[0] };
    let bias = form.bias.map(|v| {
        let alone = p.axes.iter().enumerate().all(|(i, _)| columns.contains(&AxisId(i as u32)) || !has(v, AxisId(i as u32)));
        match joined(&p, columns, &[v]) {
            Some((_, s)) if alone && (s[0] == 1 || n == 1) => Ok((v.buffer.index(), first(v)?)),
            _ => Err("what is added is not one number a column".to_string()),
        }
    });
    Ok(Product { sizes: [m, n, k, batch], left, right, out, bias: bias.transpose()? })
}

/// A number that is not below zero; none is zero.
fn number(d: Option<&Dim>) -> Option<u64> {
    d.map_or(Some(0), |d| d.as_fixed().and_then(|n| u64::try_from(n).ok()))
}

/// Axes as one, if every view walks them as one: its size, and its step in each view.
fn joined(p: &Program, axes: &[AxisId], views: &[&View]) -> Option<(u64, Vec<u64>)> {
    let of = |x: &AxisId| -> Option<(u64, Vec<u64>)> { Some((number(Some(&p.axis(*x).size))?, views.iter().map(|v| number(v.stride(*x))).collect::<Option<_>>()?)) };
    let mut all = axes.iter().map(of).collect::<Option<Vec<_>>>()?;
    // The innermost first: the one with the least steps.
    all.sort_by(|a, b| a.1.cmp(&b.1));
    let mut all = all.into_iter();
    let Some(mut one) = all.next() else { return Some((1, vec![1; views.len()])) };
    for (size, steps) in all {
        if steps.iter().zip(&one.1).any(|(outer, inner)| *outer != inner * one.0) {
            return None;
        }
        one.0 *= size;
    }
    Some(one)
}

/// The parts of a product.
struct Form<'a> {
    operands: [&'a View; 2],
    summed: Vec<AxisId>,
    bias: Option<&'a View>,
    out: &'a View,
}

/// What a value is, as far as products go.
#[derive(Clone)]
enum Value<'a> {
    Zero,
    Load(&'a View),
    Sum(ValueId),
    /// A sum with something added.
    Biased(&'a View),
}

impl<'a> Form<'a> {
    fn of(p: &'a Program) -> Result<Form<'a>, String> {
        let mut known: BTreeMap<ValueId, Value<'a>> = BTreeMap::new();
        let mut sum: Option<([&'a View; 2], Vec<AxisId>)> = None;
        let mut out: Option<(&'a View, ValueId)> = None;
        let more = || "more than one sum of products".to_string();
        for s in &p.body {
            match s {
                Stmt::Let(v, op) => Form::value(p, *v, op, &mut known, &mut sum)?,
                Stmt::Store(view, v) => {
                    if out.replace((view, *v)).is_some() {
                        return Err("more than one result".into());
                    }
                }
                Stmt::For(l) => {
                    let [c] = l.carries.as_slice() else { return Err(more()) };
                    let from = known.get(&c.init).cloned();
                    if !l.within.is_empty() || !matches!(from, Some(Value::Zero | Value::Load(_))) {
                        return Err("a loop that does not sum over its whole axis, from zero or from what is loaded".into());
                    }
                    let mut inside = known.clone();
                    inside.insert(c.inside, Value::Zero);
                    for s in &l.body {
                        match s {
                            Stmt::Let(v, Op::Dot { init, terms, sum: over }) if init.iter().all(|f| f.as_slice() == [c.inside]) => {
                                let plain = Op::Dot { init: vec![], terms: terms.clone(), sum: over.clone() };
                                Form::value(p, *v, &plain, &mut inside, &mut sum)?;
                                if init.is_empty() {
                                    inside.insert(*v, Value::Sum(ValueId(u32::MAX)));
                                }
                            }
                            // The carried sum and the tile's.
                            Stmt::Let(v, Op::Map(Elementwise::Add, x)) if x.contains(&c.inside) && x.iter().any(|y| matches!(inside.get(y), Some(Value::Sum(ValueId(u32::MAX))))) => _ = inside.insert(*v, Value::Sum(*v)),
                            Stmt::Let(v, op @ (Op::Load(_) | Op::Map(Elementwise::Convert(_), _))) => Form::value(p, *v, op, &mut inside, &mut sum)?,
                            Stmt::Let(_, op @ (Op::Map(..) | Op::Reduce(..) | Op::Fill { .. })) => return Err(format!("it computes {}", what(op))),
                            _ => return Err("a loop that does more than one sum of products".into()),
                        }
                    }
                    match inside.get(&c.next) {
                        Some(Value::Sum(v)) if v.0 != u32::MAX => {
                            let whole = if let Some(Value::Load(b)) = from { Value::Biased(b) } else { Value::Sum(c.after) };
                            known.insert(c.after, whole);
                        }
                        _ => return Err("a loop that carries something other than its sum".into()),
                    }
                    if let Some((_, over)) = &sum
                        && !over.contains(&l.axis)
                    {
                        return Err("a loop over an axis that is not summed".into());
                    }
                }
            }
        }
        let (Some((operands, summed)), Some((view, v))) = (sum, out) else { return Err("no sum of products that is stored".into()) };
        let bias = match known.get(&v) {
            Some(Value::Sum(_)) => None,
            Some(Value::Biased(b)) => Some(*b),
            _ => return Err("what is stored is not the sum".into()),
        };
        Ok(Form { operands, summed, bias, out: view })
    }

    fn value(p: &'a Program, v: ValueId, op: &Op, known: &mut BTreeMap<ValueId, Value<'a>>, sum: &mut Option<([&'a View; 2], Vec<AxisId>)>) -> Result<(), String> {
        let of = |known: &BTreeMap<ValueId, Value<'a>>, v: &ValueId| known.get(v).cloned();
        let made = match op {
            Op::Const(0.0) => Value::Zero,
            Op::Load(_) => Value::Load(load(p, v).ok_or("a load that is not there")?),
            // Operands are rounded as they are read, a result as it is stored.
            Op::Map(Elementwise::Convert(d), x) if d.is_float() => of(known, &x[0]).ok_or("a conversion of something else")?,
            Op::Dot { init, terms, sum: over } => {
                let [(a, b)] = terms.as_slice() else { return Err("a sum of several products".into()) };
                let (Some(Value::Load(x)), Some(Value::Load(y))) = (of(known, a), of(known, b)) else { return Err("an operand that is not just loaded".into()) };
                let (mut zero, mut bias) = (true, None);
                for f in init {
                    match (f.as_slice(), f.first().and_then(|f| of(known, f))) {
                        ([_], Some(Value::Zero)) => {}
                        ([_], Some(Value::Load(view))) if bias.is_none() => bias = Some(view),
                        _ => zero = false,
                    }
                }
                if !zero || sum.replace(([x, y], over.clone())).is_some() {
                    return Err("more than one sum of products".into());
                }
                bias.map_or(Value::Sum(v), Value::Biased)
            }
            Op::Map(Elementwise::Add, x) => match (of(known, &x[0]), of(known, &x[1])) {
                (Some(Value::Sum(_)), Some(Value::Load(b))) | (Some(Value::Load(b)), Some(Value::Sum(_))) => Value::Biased(b),
                _ => return Err("an addition of something else than a load".into()),
            },
            other => return Err(format!("it computes {}", what(other))),
        };
        known.insert(v, made);
        Ok(())
    }
}

fn what(op: &Op) -> String {
    match op {
        Op::Map(e, _) => format!("`{}`", e.name()),
        Op::Reduce(..) => "a reduction".into(),
        Op::Fill { .. } => "a mask".into(),
        Op::Position(_) | Op::Size(_) | Op::Const(_) => "numbers".into(),
        Op::Load(_) | Op::Dot { .. } => "something else".into(),
    }
}

/// The view that `v` is loaded by.
fn load(p: &Program, v: ValueId) -> Option<&View> {
    fn within(body: &[Stmt], v: ValueId) -> Option<&View> {
        body.iter().find_map(|s| match s {
            Stmt::Let(w, Op::Load(view)) if *w == v => Some(view),
            Stmt::For(l) => within(&l.body, v),
            _ => None,
        })
    }
    within(&p.body, v)
}
