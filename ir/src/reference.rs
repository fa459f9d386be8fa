//! The meaning of programs: evaluation in f64, which every machine is compared to.
//!
//! A function is evaluated as the mathematical function that it is: every operation on floats of any type is done in f64, and
//! only `convert` to a type that cannot hold its operand's values rounds. Truth values are 0 and 1, integers whole numbers.

use crate::diagnostic::Error;
use crate::dim::Bindings;
use crate::graph::{Eqn, Function, Var};
use crate::prim::{Elementwise, Movement, Prim, ReduceKind};
use crate::tensor::Tensor;
use crate::types::{Axis, DType, Type};
use std::sync::Arc;

pub(crate) mod strided;

use strided::{ContractAxis, Nest, contract, dense, gather};

/// The results of `f`, as F64 tensors with their axes in declared order. `inputs` are in the order of the parameters; `dims`
/// gives numbers to dimension names that no parameter's shape shows.
///
/// # Errors
/// An input that does not fit its parameter, a size without a number, or a slice out of range: with names and both sides.
pub fn evaluate(f: &Function, inputs: &[Tensor], dims: &Bindings) -> Result<Vec<Tensor>, Error> {
    let (run, values) = Run::new(f, inputs, dims)?.finish(true)?;
    f.results.iter().map(|r| run.tensor(&values, r.var).ok_or_else(|| undefined(f, r.var, "a result"))?).collect()
}

/// Every value of `f` by [`Var`], for debugging; `None` for values that nothing defines.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_all(f: &Function, inputs: &[Tensor], dims: &Bindings) -> Result<Vec<Option<Tensor>>, Error> {
    let (run, values) = Run::new(f, inputs, dims)?.finish(false)?;
    (0..f.vars.len()).map(|i| run.tensor(&values, Var(i as u32)).transpose()).collect()
}

type Values = Vec<Option<Arc<Vec<f64>>>>;

/// One evaluation.
struct Run<'a> {
    f: &'a Function,
    dims: Bindings,
    values: Values,
}

fn shown(f: &Function, v: Var) -> String {
    match f.vars.get(v.index()) {
        Some(i) => format!("`{}`: {}", i.name.as_deref().map_or_else(|| format!("%{}", v.0), str::to_string), i.ty),
        None => format!("%{}", v.0),
    }
}

fn undefined(f: &Function, v: Var, what: &str) -> Error {
    Error::new(format!("{}: {what} is {}, which nothing defines", f.name, shown(f, v)))
}

impl<'a> Run<'a> {
    fn new(f: &'a Function, inputs: &[Tensor], dims: &Bindings) -> Result<Run<'a>, Error> {
        if inputs.len() != f.params.len() {
            let names: Vec<&str> = f.params.iter().map(|p| &*p.name).collect();
            return Err(Error::new(format!("{} takes {} inputs ({}), but {} given", f.name, names.len(), names.join(", "), inputs.len())));
        }
        let shape = |name: &str| f.params.iter().position(|p| *p.name == *name).map(|i| inputs[i].shape().to_vec());
        let dims = f.bind(&shape, dims).map_err(|m| Error::new(format!("{}: {m}", f.name)))?;
        let mut values: Values = vec![None; f.vars.len()];
        for (p, t) in f.params.iter().zip(inputs) {
            let ty = f.vars.get(p.var.index()).map(|v| &v.ty).ok_or_else(|| undefined(f, p.var, "a parameter"))?;
            let fits = if ty.dtype.is_float() { t.dtype().is_float() } else { t.dtype() == ty.dtype };
            let sizes = ty.sizes(&dims).map_err(|e| Error::new(format!("{}: parameter `{}`: {e}", f.name, p.name)))?;
            if !fits || sizes != t.shape() {
                let (d, s) = (t.dtype(), t.shape());
                return Err(Error::new(format!("{}: parameter `{}` is {ty} of shape {sizes:?}, but the input is {d} of shape {s:?}", f.name, p.name)));
            }
            values[p.var.index()] = Some(Arc::new(t.to_f64()));
        }
        Ok(Run { f, dims, values })
    }

    fn tensor(&self, values: &Values, v: Var) -> Option<Result<Tensor, Error>> {
        let data = values.get(v.index())?.as_ref()?;
        Some(self.sizes(&self.f.ty(v).axes).and_then(|s| Tensor::from_vec(&s, data.to_vec())))
    }

    fn sizes(&self, axes: &[Axis]) -> Result<Vec<usize>, Error> {
        let size = |a: &Axis| match a.size.eval(&self.dims) {
            Ok(n) => usize::try_from(n).map_err(|_| Error::new(format!("axis `{a}` has size {n}"))),
            Err(e) => Err(Error::new(format!("axis `{a}`: {e}"))),
        };
        axes.iter().map(size).collect()
    }

    fn finish(mut self, free: bool) -> Result<(Run<'a>, Values), Error> {
        let f = self.f;
        let mut last = vec![0usize; f.vars.len()];
        for (i, e) in f.eqns.iter().enumerate() {
            for a in e.args.iter().chain([&e.out]) {
                *last.get_mut(a.index()).ok_or_else(|| undefined(f, *a, "an operand"))? = i;
            }
        }
        for r in &f.results {
            *last.get_mut(r.var.index()).ok_or_else(|| undefined(f, r.var, "a result"))? = usize::MAX;
        }
        for (i, e) in f.eqns.iter().enumerate() {
            let out = self.eqn(e).map_err(|m| {
                let args: Vec<String> = e.args.iter().map(|a| shown(f, *a)).collect();
                let of = if args.is_empty() { String::new() } else { format!(" (of {})", args.join(", ")) };
                Error { message: format!("{}: {}: {}{of}", f.name, e.op.name(), m.message), span: m.span.or(e.span), hint: m.hint }
            })?;
            self.values[e.out.index()] = Some(out);
            if free {
                for v in e.args.iter().chain([&e.out]).filter(|v| last[v.index()] == i) {
                    self.values[v.index()] = None;
                }
            }
        }
        let values = std::mem::take(&mut self.values);
        Ok((self, values))
    }

    fn eqn(&self, e: &Eqn) -> Result<Arc<Vec<f64>>, Error> {
        let f = self.f;
        let mut x: Vec<&Arc<Vec<f64>>> = Vec::with_capacity(e.args.len());
        for a in &e.args {
            x.push(self.values[a.index()].as_ref().ok_or_else(|| undefined(f, *a, "an operand"))?);
        }
        let types: Vec<&Type> = e.args.iter().map(|a| f.ty(*a)).collect();
        let ty = f.ty(e.out);
        let want = e.op.infer(&types).map_err(|m| Error::new(m.message))?;
        if want != *ty {
            return Err(Error::new(format!("the result is {want}, but declared {ty}")));
        }
        let sizes = self.sizes(&ty.axes)?;
        let count = sizes.iter().try_fold(1usize, |n, s| n.checked_mul(*s)).filter(|n| *n < isize::MAX as usize / 8);
        let count = count.ok_or_else(|| Error::new(format!("the result {ty} of shape {sizes:?} is too large")))?;
        let mut own = Vec::with_capacity(types.len());
        for t in &types {
            own.push(dense(&self.sizes(&t.axes)?));
        }
        // The stride of operand `i` along a result axis; 0 where it is broadcast.
        let stride = |i: usize, a: &Axis| types[i].position(&a.name).map_or(0, |p| own[i][p]);
        let along = |i: usize| ty.axes.iter().zip(&sizes).map(move |(a, n)| (*n, stride(i, a)));
        let mut out: Vec<f64> = vec![];
        match &e.op {
            Prim::Constant(c) => out.push(c.value),
            Prim::Size(d, _) => out.push(d.eval(&self.dims).map_err(|e| Error::new(e.to_string()))? as f64),
            Prim::Iota(_) => out.extend((0..count).map(|i| i as f64)),
            Prim::StopGradient => return Ok(x[0].clone()),
            Prim::Elementwise(op) => {
                let op = *op;
                if keeps(op, types[0].dtype) {
                    return Ok(x[0].clone());
                }
                out.reserve_exact(count);
                let axes = || ty.axes.iter().zip(&sizes);
                match op.arity() {
                    1 => out.extend(x[0].iter().map(|a| op.eval(&[*a]))),
                    2 => Nest::new(axes().map(|(a, n)| (*n, [stride(0, a), stride(1, a)]))).each([0; 2], |[a, b], n, [s, t]| {
                        out.extend((0..n as isize).map(|i| op.eval(&[x[0][(a + i * s) as usize], x[1][(b + i * t) as usize]])));
                    }),
                    _ => Nest::new(axes().map(|(a, n)| (*n, [stride(0, a), stride(1, a), stride(2, a)]))).each([0; 3], |[a, b, c], n, [s, t, u]| {
                        out.extend((0..n as isize).map(|i| {
                            op.eval(&[x[0][(a + i * s) as usize], x[1][(b + i * t) as usize], x[2][(c + i * u) as usize]])
                        }));
                    }),
                }
            }
            Prim::Reduce(kind, _) => {
                out = vec![kind.identity(); count];
                let into = dense(&sizes);
                let from = self.sizes(&types[0].axes)?;
                let axes = types[0].axes.iter().zip(&from).zip(&own[0]).map(|((a, n), s)| (*n, [*s, ty.position(&a.name).map_or(0, |p| into[p])]));
                reduce(*kind, x[0], Nest::new(axes), &mut out);
            }
            Prim::Contract(_) => {
                out = vec![0.0; count];
                let into = dense(&sizes);
                let mut axes = vec![];
                let (a, b) = (types[0], types[1]);
                for (axis, name) in a.axes.iter().chain(b.axes.iter().filter(|x| !a.has(&x.name))).map(|x| (x, &x.name)) {
                    let at = |i: usize| types[i].position(name).map(|p| own[i][p]);
                    let size = self.sizes(std::slice::from_ref(axis))?[0];
                    axes.push(ContractAxis { size, a: at(0), b: at(1), c: ty.position(name).map(|p| into[p]) });
                }
                contract(&axes, x[0], x[1], &mut out, |v| v);
            }
            Prim::Movement(m) => match m {
                Movement::Rename { .. } | Movement::Split { .. } => return Ok(x[0].clone()),
                Movement::Permute(_) | Movement::Broadcast(_) => gather(x[0], 0, along(0), &mut out),
                Movement::Merge { axes, into } => {
                    let at = ty.position(&into.name).unwrap_or(0);
                    let from = self.sizes(&types[0].axes)?;
                    let merged = axes.iter().filter_map(|n| types[0].position(n)).map(|p| (from[p], own[0][p]));
                    let order: Vec<(usize, isize)> = along(0).take(at).chain(merged).chain(along(0).skip(at + 1)).collect();
                    gather(x[0], 0, order, &mut out);
                }
                Movement::Slice { axis, to, start } => {
                    let p = types[0].position(axis).unwrap_or(0);
                    let have = self.sizes(&types[0].axes[p..=p])?[0];
                    let start = start.eval(&self.dims).map_err(|e| Error::new(e.to_string()))?;
                    let len = self.sizes(std::slice::from_ref(to))?[0];
                    if start < 0 || len > have || start as usize > have - len {
                        return Err(Error::new(format!("elements {start}..{} of axis `{axis}`, which has {have}", start.saturating_add(len as i64))));
                    }
                    let axes: Vec<(usize, isize)> = sizes.iter().copied().zip(own[0].iter().copied()).collect();
                    gather(x[0], start as isize * own[0][p], axes, &mut out);
                }
                Movement::Index { axis, at } => {
                    let p = types[0].position(axis).unwrap_or(0);
                    let have = self.sizes(&types[0].axes[p..=p])?[0];
                    let at = at.eval(&self.dims).map_err(|e| Error::new(e.to_string()))?;
                    if at < 0 || at as usize >= have {
                        return Err(Error::new(format!("position {at} of axis `{axis}`, which has {have}")));
                    }
                    gather(x[0], at as isize * own[0][p], along(0), &mut out);
                }
                Movement::Concat { into, .. } => {
                    // Row-major: for each outer index, each operand's block in turn.
                    let at = ty.position(&into.name).unwrap_or(0);
                    let outer: usize = sizes[..at].iter().product();
                    out.reserve_exact(count);
                    for o in 0..outer {
                        for v in &x {
                            let block = v.len() / outer;
                            out.extend_from_slice(&v[o * block..(o + 1) * block]);
                        }
                    }
                }
                Movement::Stack(_) => {
                    out.reserve_exact(count);
                    for i in 0..count / x.len() {
                        out.extend(x.iter().map(|v| v[i]));
                    }
                }
            },
        }
        if out.len() != count {
            return Err(Error::new(format!("the result has {} elements, but {ty} has {count}", out.len())));
        }
        Ok(Arc::new(out))
    }
}

/// Whether `op` leaves every value of type `from` as it is: a conversion to a type that holds them all, or would, were they
/// rounded to `from` (which the reference does not do).
fn keeps(op: Elementwise, from: DType) -> bool {
    use DType::{BF16, Bool, F16, F32, F64};
    matches!((op, from), (Elementwise::Convert(to), from) if to == from || from == Bool || matches!((from, to), (_, F64) | (BF16 | F16, F32)))
}

fn reduce(kind: ReduceKind, x: &[f64], nest: Nest<2>, out: &mut [f64]) {
    nest.each([0; 2], |[from, to], n, [s, t]| {
        let at = |i: isize| x[(from + i * s) as usize];
        if t == 0 {
            out[to as usize] = (0..n as isize).fold(out[to as usize], |a, i| kind.combine(a, at(i)));
        } else {
            for i in 0..n as isize {
                let slot = &mut out[(to + i * t) as usize];
                *slot = kind.combine(*slot, at(i));
            }
        }
    });
}
