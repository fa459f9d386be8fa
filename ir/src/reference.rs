//! The meaning of programs: evaluation in f64, which every machine is compared to.
//!
//! A function is evaluated as the mathematical function that it is: every operation on floats of any type is done in f64, and
//! only `convert` to a type that cannot hold its operand's values rounds. Truth values are 0 and 1, integers whole numbers.

use crate::diagnostic::Error;
use crate::dim::Bindings;
use crate::graph::{Eqn, Function, Var};
use crate::prim::{Callee, Elementwise, Movement, Prim, ReduceKind};
use crate::tensor::Tensor;
use crate::types::{Axis, DType, Type};
use std::cell::RefCell;
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
    /// The last call: its results come one by one.
    call: RefCell<Option<(Callee, Vec<Var>, Vec<Tensor>)>>,
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
        Ok(Run { f, dims, values, call: RefCell::new(None) })
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
            Prim::Call(c) => {
                let mut last = self.call.borrow_mut();
                if last.as_ref().is_none_or(|(g, args, _)| *g != c.function || *args != e.args) {
                    let mut inputs = vec![];
                    for (v, t) in x.iter().zip(&types) {
                        let t64 = Tensor::from_vec(&self.sizes(&t.axes)?, v.to_vec())?;
                        inputs.push(if t.dtype.is_float() { t64 } else { t64.convert(t.dtype) });
                    }
                    *last = Some((c.function.clone(), e.args.clone(), evaluate(&c.function, &inputs, &self.dims)?));
                }
                return Ok(Arc::new(last.as_ref().map(|l| l.2[c.result].to_f64()).unwrap_or_default()));
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;
    use crate::dim::Dim;

    fn t(shape: &[usize], data: &[f64]) -> Tensor {
        Tensor::from_f64(DType::F64, shape, data).unwrap()
    }
    fn axes(names: &[&str]) -> Vec<Axis> {
        names.iter().map(|n| Axis::sym(*n)).collect()
    }
    fn f32s(names: &[&str]) -> Type {
        Type::new(DType::F32, axes(names))
    }
    fn eval1(b: Builder, out: Var, inputs: &[Tensor]) -> Result<Tensor, Error> {
        let mut b = b;
        b.result("out", out);
        evaluate(&b.finish(), inputs, &Bindings::new()).map(|mut v| v.remove(0))
    }
    fn count(n: usize) -> Vec<f64> {
        (0..n).map(|i| i as f64).collect()
    }

    #[test]
    fn elementwise_matches_axes_by_name() {
        let mut b = Builder::new("f");
        let (x, y) = (b.param("x", f32s(&["I", "J"])), b.param("y", f32s(&["J", "K"])));
        let z = b.mul(x, y).unwrap();
        let got = eval1(b, z, &[t(&[2, 2], &[1.0, 2.0, 3.0, 4.0]), t(&[2, 3], &[1.0, 2.0, 3.0, 10.0, 20.0, 30.0])]).unwrap();
        assert_eq!(got.shape(), [2, 2, 3]);
        assert_eq!(got.to_f64(), [1.0, 2.0, 3.0, 20.0, 40.0, 60.0, 3.0, 6.0, 9.0, 40.0, 80.0, 120.0]);
    }

    #[test]
    fn every_elementwise_operation_means_its_eval() {
        for op in Elementwise::ALL {
            let mut b = Builder::new("f");
            let dtype = |i: usize| match op {
                Elementwise::And | Elementwise::Or | Elementwise::Not => DType::Bool,
                Elementwise::Select if i == 0 => DType::Bool,
                _ => DType::F64,
            };
            let n = op.arity();
            let args: Vec<Var> = (0..n).map(|i| b.param(format!("x{i}"), Type::new(dtype(i), axes(&["I"])))).collect();
            let vals: Vec<Vec<f64>> = (0..n).map(|i| if dtype(i) == DType::Bool { vec![0.0, 1.0] } else { vec![op.domain(i).0 * 0.7 + op.domain(i).1 * 0.3, op.domain(i).1] }).collect();
            let inputs: Vec<Tensor> = (0..n).map(|i| Tensor::from_f64(dtype(i), &[2], &vals[i]).unwrap()).collect();
            let out = b.elementwise(op, &args).unwrap();
            let want: Vec<f64> = (0..2).map(|k| op.eval(&vals.iter().map(|v| v[k]).collect::<Vec<_>>())).collect();
            assert_eq!(eval1(b, out, &inputs).unwrap().to_f64(), want, "{}", op.name());
        }
    }

    #[test]
    fn reductions_and_their_identities() {
        for (kind, want, empty) in [(ReduceKind::Sum, [9.0, 12.0], 0.0), (ReduceKind::Max, [5.0, 6.0], crate::tile::LOWEST)] {
            let mut b = Builder::new("f");
            let x = b.param("x", f32s(&["I", "J"]));
            let r = b.push(Prim::Reduce(kind, vec!["I".into()]), &[x]).unwrap();
            let full = b.push(Prim::Reduce(kind, vec!["J".into(), "I".into()]), &[x]).unwrap();
            b.result("full", full);
            assert_eq!(eval1(b.clone(), full, &[t(&[0, 2], &[])]).unwrap().to_f64(), [empty]);
            b.clear_results();
            assert_eq!(eval1(b, r, &[t(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])]).unwrap().to_f64(), want);
        }
    }

    #[test]
    fn contraction_with_one_sided_sums() {
        let mut b = Builder::new("f");
        let (x, y) = (b.param("x", f32s(&["I", "D"])), b.param("y", f32s(&["D", "E", "J"])));
        // E is summed and only in y.
        let z = b.contract(x, y, &["D".into(), "E".into()]).unwrap();
        let got = eval1(b, z, &[t(&[1, 2], &[1.0, 10.0]), t(&[2, 2, 1], &[1.0, 2.0, 3.0, 4.0])]).unwrap();
        assert_eq!((got.shape(), got.to_f64()), (&[1, 1][..], vec![73.0]));
    }

    #[test]
    fn movements() {
        let one = |m: Movement, ty: Type, x: Tensor| {
            let mut b = Builder::new("f");
            let v = b.param("x", ty);
            let out = b.movement(m, &[v]).unwrap();
            let got = eval1(b, out, &[x]).unwrap();
            (got.shape().to_vec(), got.to_f64())
        };
        let fixed = |n: &str, s: i64| Axis::new(n, Dim::fixed(s));
        let ijk = || Type::new(DType::F32, vec![fixed("i", 2), fixed("j", 2), fixed("k", 3)]);
        let x = || t(&[2, 2, 3], &count(12));
        let n = |s: &[&str]| s.iter().map(|n| (*n).into()).collect::<Vec<crate::dim::Name>>();
        assert_eq!(one(Movement::Permute(n(&["k", "i", "j"])), ijk(), x()), (vec![3, 2, 2], vec![0., 3., 6., 9., 1., 4., 7., 10., 2., 5., 8., 11.]));
        assert_eq!(one(Movement::Merge { axes: n(&["k", "i"]), into: fixed("m", 6) }, ijk(), x()), (vec![6, 2], vec![0., 3., 6., 9., 1., 4., 7., 10., 2., 5., 8., 11.]));
        assert_eq!(one(Movement::Split { axis: "k".into(), into: vec![fixed("p", 3), fixed("q", 1)] }, ijk(), x()), (vec![2, 2, 3, 1], count(12)));
        assert_eq!(one(Movement::Slice { axis: "k".into(), to: fixed("s", 2), start: Dim::fixed(1) }, ijk(), x()), (vec![2, 2, 2], vec![1., 2., 4., 5., 7., 8., 10., 11.]));
        assert_eq!(one(Movement::Index { axis: "j".into(), at: Dim::fixed(1) }, ijk(), x()), (vec![2, 3], vec![3., 4., 5., 9., 10., 11.]));
        assert_eq!(one(Movement::Broadcast(vec![fixed("b", 2)]), Type::new(DType::F32, vec![fixed("i", 2)]), t(&[2], &[1., 2.])), (vec![2, 2], vec![1., 2., 1., 2.]));
        let mut b = Builder::new("f");
        let (p, q) = (b.param("p", Type::new(DType::F32, vec![fixed("i", 2), fixed("j", 1)])), b.param("q", Type::new(DType::F32, vec![fixed("i", 2), fixed("k", 2)])));
        let c = b.movement(Movement::Concat { axes: n(&["j", "k"]), into: fixed("c", 3) }, &[p, q]).unwrap();
        let s = b.movement(Movement::Stack(fixed("s", 2)), &[c, c]).unwrap();
        assert_eq!(eval1(b, s, &[t(&[2, 1], &[1., 2.]), t(&[2, 2], &[3., 4., 5., 6.])]).unwrap().to_f64(), [1., 1., 3., 3., 4., 4., 2., 2., 5., 5., 6., 6.]);
    }

    #[test]
    fn only_narrowing_conversions_round() {
        let mut b = Builder::new("f");
        let x = b.param("x", Type::scalar(DType::BF16));
        let c = b.constant(1.0 + 1.0 / 1024.0, DType::BF16);
        let y = b.mul(x, c).unwrap();
        let wide = b.elementwise(Elementwise::Convert(DType::F32), &[y]).unwrap();
        let narrow = b.elementwise(Elementwise::Convert(DType::BF16), &[wide]).unwrap();
        b.result("wide", wide);
        b.result("narrow", narrow);
        let got = evaluate(&b.finish(), &[t(&[], &[1.0])], &Bindings::new()).unwrap();
        assert_eq!((got[0].to_f64()[0], got[1].to_f64()[0]), (1.0 + 1.0 / 1024.0, 1.0));
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let mut b = Builder::new("f");
        let x = b.param("x", f32s(&["I"]));
        let y = b.movement(Movement::Slice { axis: "I".into(), to: Axis::new("S", Dim::fixed(2)), start: Dim::fixed(3) }, &[x]).unwrap();
        let size = b.size(Dim::sym("N"), DType::F32).unwrap();
        let z = b.mul(y, size).unwrap();
        let message = |inputs: &[Tensor], dims: &Bindings| {
            let mut b = b.clone();
            b.result("z", z);
            evaluate(&b.finish(), inputs, dims).unwrap_err().message
        };
        let none = Bindings::new();
        assert_eq!(message(&[], &none), "f takes 1 inputs (x), but 0 given");
        assert!(message(&[t(&[2, 2], &count(4))], &none).contains("input `x` has shape [2, 2]"));
        assert!(message(&[Tensor::from_f64(DType::I32, &[2], &count(2)).unwrap()], &none).contains("parameter `x` is f32[I]"));
        assert_eq!(message(&[t(&[4], &count(4))], &none), "f: slice: elements 3..5 of axis `I`, which has 4 (of `x`: f32[I])");
        assert!(message(&[t(&[5], &count(5))], &none).contains("size: dimension `N` has no number"));
        let mut f = b.clone().finish();
        f.results = vec![crate::graph::Port { name: "z".into(), var: z }];
        let all = evaluate_all(&f, &[t(&[5], &count(5))], &[("N".into(), 2)].into()).unwrap();
        assert_eq!(all[z.index()].as_ref().unwrap().to_f64(), [6.0, 8.0]);
        assert_eq!(all[y.index()].as_ref().unwrap().to_f64(), [3.0, 4.0]);
    }
}
