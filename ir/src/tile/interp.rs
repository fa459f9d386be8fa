//! The machine that executes block programs as they are defined: every instance, tile by tile, on arrays of valid elements.
//!
//! Floats are rounded to the program's compute type after every operation, operands of dots to its operand type, and sums are
//! taken one element after the other in the compute type; so an answer has the error of a real machine, not of f64. It is the
//! strictest machine: memory outside of a buffer, an element written twice or never, a value that nothing defined are errors.

use super::verify::verify;
use super::{Access, AxisId, Constraint, Loop, Op, Program, ReduceKind, Role, Stmt, ValueId, View};
use crate::diagnostic::Error;
use crate::dim::{Bindings, Dim};
use crate::prim::Elementwise;
use crate::reference::strided::{ContractAxis, Nest, contract, dense, gather};
use crate::tensor::Tensor;
use crate::types::DType;
use std::rc::Rc;

/// The outputs of `p` in the order of its buffers, for `inputs` in the order of its buffers.
///
/// # Errors
/// A program that does not verify, an input that differs from its buffer, a size without a number; a load or store outside of
/// its buffer, an element written twice or never: each with the buffer and the program instance.
pub fn run(p: &Program, dims: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, Error> {
    verify(p).map_err(|mut e| e.swap_remove(0))?;
    let p = &p.bind(dims)?;
    let fail = |m: String| Error::new(format!("{}: {m}", p.name));
    let mut sizes = vec![];
    for a in &p.axes {
        sizes.push(usize::try_from(num(&a.size)).map_err(|_| fail(format!("axis `{}` has size {}", a.name, a.size)))?);
    }
    let mut shapes = vec![];
    for b in &p.buffers {
        let shape: Result<Vec<usize>, _> = b.shape.iter().map(|d| usize::try_from(num(d))).collect();
        let shape = shape.map_err(|_| fail(format!("buffer `{}` has a negative size", b.name)))?;
        let count = shape.iter().try_fold(1usize, |n, s| n.checked_mul(*s)).filter(|n| *n < isize::MAX as usize / 16);
        shapes.push((count.ok_or_else(|| fail(format!("buffer `{}` of shape {shape:?} is too large", b.name)))?, shape));
    }
    let reads: Vec<usize> = (0..p.buffers.len()).filter(|i| p.buffers[*i].access == Access::Input).collect();
    if reads.len() != inputs.len() {
        return Err(fail(format!("takes {} inputs, but {} given", reads.len(), inputs.len())));
    }
    let mut memory: Vec<Vec<f64>> = vec![vec![]; p.buffers.len()];
    for (i, t) in reads.iter().zip(inputs) {
        let (b, shape) = (&p.buffers[*i], &shapes[*i].1);
        if t.dtype() != b.dtype || t.shape() != shape {
            return Err(fail(format!("buffer `{}` is {}{shape:?}, but the input is {}{:?}", b.name, b.dtype, t.dtype(), t.shape())));
        }
        memory[*i] = t.to_f64();
    }

    // The grid: one dimension per parallel axis, the last one fastest.
    let parallel: Vec<(usize, usize, usize)> = (0..p.axes.len())
        .filter_map(|i| match p.axes[i].role {
            Role::Grid => Some((i, 1, sizes[i])),
            Role::Block(n) => Some((i, n, sizes[i].div_ceil(n))),
            Role::Stream(_) | Role::Full(_) => None,
        })
        .collect();
    let instances = parallel.iter().try_fold(1usize, |n, (.., count)| n.checked_mul(*count)).ok_or_else(|| fail("the grid is too large".into()))?;
    let counts: Vec<usize> = shapes.iter().map(|(n, _)| *n).collect();
    let shared = Shared { p, sizes: &sizes, memory: &memory, counts: &counts, parallel: &parallel };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(instances.max(1));
    let share = instances.div_ceil(threads).max(1);
    let parts: Vec<Result<Writes, Error>> = std::thread::scope(|s| {
        let starts: Vec<usize> = (0..instances).step_by(share).collect();
        let handles: Vec<_> = starts
            .iter()
            .map(|from| {
                let (from, to, shared) = (*from, (*from + share).min(instances), &shared);
                s.spawn(move || shared.instances(from, to))
            })
            .collect();
        handles.into_iter().map(|h| h.join().unwrap_or_else(|_| Err(Error::new("the interpreter panicked, which is a bug")))).collect()
    });

    let mut out: Vec<(Vec<f64>, Vec<bool>)> = shapes
        .iter()
        .zip(&p.buffers)
        .map(|((n, _), b)| if b.access == Access::Output { (vec![0.0; *n], vec![false; *n]) } else { (vec![], vec![]) })
        .collect();
    for part in parts {
        for (buffer, at, x) in part? {
            let (data, written) = &mut out[buffer];
            if std::mem::replace(&mut written[at], true) {
                return Err(fail(format!("element {} of `{}` is written twice", place(at, &shapes[buffer].1), p.buffers[buffer].name)));
            }
            data[at] = x;
        }
    }
    let mut tensors = vec![];
    for (i, b) in p.buffers.iter().enumerate().filter(|(_, b)| b.access == Access::Output) {
        if let Some(at) = out[i].1.iter().position(|w| !w) {
            return Err(fail(format!("element {} of `{}` is never written", place(at, &shapes[i].1), b.name)));
        }
        tensors.push(Tensor::from_f64(b.dtype, &shapes[i].1, &out[i].0)?);
    }
    Ok(tensors)
}

/// Buffer, element, number.
type Writes = Vec<(usize, usize, f64)>;

/// A size of a bound program.
fn num(d: &Dim) -> i64 {
    d.as_fixed().unwrap_or(-1)
}

/// Element number `at` as an index.
fn place(at: usize, shape: &[usize]) -> String {
    let index: Vec<usize> = dense(shape).iter().zip(shape).map(|(s, n)| at / *s as usize % n.max(&1)).collect();
    format!("{index:?}")
}

struct Shared<'a> {
    p: &'a Program,
    sizes: &'a [usize],
    memory: &'a [Vec<f64>],
    counts: &'a [usize],
    /// Axis, tile, number of tiles.
    parallel: &'a [(usize, usize, usize)],
}

/// Valid elements, along the value's axes.
struct Tile {
    extents: Vec<usize>,
    data: Vec<f64>,
}

struct Instance<'a> {
    m: &'a Shared<'a>,
    /// First position and valid extent per axis; extent `None` outside of a loop over a streamed axis.
    start: Vec<usize>,
    extent: Vec<Option<usize>>,
    values: Vec<Option<Rc<Tile>>>,
    writes: Writes,
}

impl Shared<'_> {
    fn instances(&self, from: usize, to: usize) -> Result<Writes, Error> {
        let mut writes = vec![];
        for n in from..to {
            let (mut start, mut extent) = (vec![0; self.sizes.len()], vec![None; self.sizes.len()]);
            for (i, a) in self.p.axes.iter().enumerate() {
                if let Role::Full(n) = a.role {
                    extent[i] = Some(n);
                }
            }
            let mut rest = n;
            for (axis, tile, count) in self.parallel.iter().rev() {
                start[*axis] = rest % count * tile;
                extent[*axis] = Some((*tile).min(self.sizes[*axis] - start[*axis]));
                rest /= count;
            }
            let mut i = Instance { m: self, start, extent, values: (0..self.p.values.len()).map(|_| None).collect(), writes };
            i.body(&self.p.body).map_err(|m| {
                let at = self.parallel.iter().map(|(a, ..)| format!("{} = {}", self.p.axes[*a].name, i.start[*a])).collect::<Vec<_>>();
                Error::new(format!("{}: {m} (in the instance at {})", self.p.name, at.join(", ")))
            })?;
            writes = i.writes;
        }
        Ok(writes)
    }
}

type Step<T> = Result<T, String>;

impl Instance<'_> {
    fn show(&self, v: ValueId) -> String {
        match &self.m.p.value(v).name {
            Some(n) => format!("`{n}`"),
            None => format!("%{}", v.0),
        }
    }
    fn get(&self, v: ValueId) -> Step<Rc<Tile>> {
        self.values[v.index()].clone().ok_or_else(|| format!("{} is read before it is defined", self.show(v)))
    }
    fn extents(&self, axes: &[AxisId]) -> Step<Vec<usize>> {
        let one = |a: &AxisId| self.extent[a.index()].ok_or_else(|| format!("axis `{}` is used outside of its loop", self.m.p.axis(*a).name));
        axes.iter().map(one).collect()
    }
    /// Strides of value `v` along `axes`; 0 where it is broadcast.
    fn strides(&self, v: ValueId, t: &Tile, axes: &[AxisId]) -> Vec<isize> {
        let own = dense(&t.extents);
        axes.iter().map(|a| self.m.p.value(v).axes.iter().position(|x| x == a).map_or(0, |i| own[i])).collect()
    }
    fn round(&self, d: DType, data: &mut [f64]) {
        if d.is_float() && d != DType::F64 {
            data.iter_mut().for_each(|x| *x = d.round(*x));
        }
    }

    fn body(&mut self, body: &[Stmt]) -> Step<()> {
        for s in body {
            match s {
                Stmt::Let(v, op) => {
                    let info = self.m.p.value(*v);
                    let extents = self.extents(&info.axes)?;
                    let mut data = self.op(*v, op, &extents)?;
                    self.round(info.dtype, &mut data);
                    if data.len() != extents.iter().product::<usize>() {
                        return Err(format!("{} has {} elements, but extents {extents:?}", self.show(*v), data.len()));
                    }
                    self.values[v.index()] = Some(Rc::new(Tile { extents, data }));
                }
                Stmt::For(l) => self.repeat(l)?,
                Stmt::Store(view, v) => self.store(view, *v)?,
            }
        }
        Ok(())
    }

    fn repeat(&mut self, l: &Loop) -> Step<()> {
        let (axis, tile, size) = (l.axis.index(), self.m.p.axis(l.axis).extent(), self.m.sizes[l.axis.index()]);
        let mut carried: Vec<Rc<Tile>> = l.carries.iter().map(|c| self.get(c.init)).collect::<Step<_>>()?;
        for at in (0..size).step_by(tile) {
            self.start[axis] = at;
            self.extent[axis] = Some(tile.min(size - at));
            let mut visited = true;
            for c in &l.within {
                visited &= self.most(c)? >= 0;
            }
            if !visited && !l.stores() {
                continue;
            }
            for (c, x) in l.carries.iter().zip(&carried) {
                self.values[c.inside.index()] = Some(x.clone());
            }
            self.body(&l.body)?;
            carried = l.carries.iter().map(|c| self.get(c.next)).collect::<Step<_>>()?;
            self.forget(&l.body);
            l.carries.iter().for_each(|c| self.values[c.inside.index()] = None);
        }
        self.start[axis] = 0;
        self.extent[axis] = None;
        for (c, x) in l.carries.iter().zip(carried) {
            self.values[c.after.index()] = Some(x);
        }
        Ok(())
    }

    fn forget(&mut self, body: &[Stmt]) {
        for s in body {
            match s {
                Stmt::Let(v, _) => self.values[v.index()] = None,
                Stmt::For(l) => l.carries.iter().for_each(|c| self.values[c.after.index()] = None),
                Stmt::Store(..) => {}
            }
        }
    }

    /// The constraint's left side at the first position of every axis.
    fn base(&self, c: &Constraint) -> Step<i64> {
        let mut sum = num(&c.constant);
        for (a, coef) in &c.axes {
            sum += coef * self.start[a.index()] as i64;
        }
        for (v, coef) in &c.scalars {
            sum += coef * self.get(*v)?.data.first().copied().unwrap_or(0.0) as i64;
        }
        Ok(sum)
    }

    /// The greatest value of the constraint's left side in the present tiles.
    fn most(&self, c: &Constraint) -> Step<i64> {
        let mut sum = self.base(c)?;
        for (a, coef) in &c.axes {
            let far = self.extents(&[*a])?[0] as i64 - 1;
            sum += (coef * far).max(0);
        }
        Ok(sum)
    }

    /// First element, and the stride along each of `axes`.
    fn address(&self, v: &View, axes: &[AxisId]) -> (isize, Vec<isize>) {
        let first = num_signed(&v.offset) + v.strides.iter().map(|(a, s)| num_signed(s) * self.start[a.index()] as isize).sum::<isize>();
        (first, axes.iter().map(|a| v.stride(*a).map_or(0, num_signed)).collect())
    }

    fn inside(&self, v: &View, first: isize, range: Option<(isize, isize)>, what: &str) -> Step<()> {
        let (b, count) = (&self.m.p.buffers[v.buffer.index()], self.m.counts[v.buffer.index()] as isize);
        match range {
            Some((low, high)) if first + low < 0 || first + high >= count => {
                Err(format!("{what} `{}` reaches elements {}..={}, but it has {count}", b.name, first + low, first + high))
            }
            _ => Ok(()),
        }
    }

    fn store(&mut self, view: &View, v: ValueId) -> Step<()> {
        let t = self.get(v)?;
        let axes: Vec<AxisId> = view.strides.iter().map(|(a, _)| *a).filter(|a| self.m.p.axis(*a).role != Role::Grid).collect();
        let extents = self.extents(&axes)?;
        let (first, to) = self.address(view, &axes);
        let from = self.strides(v, &t, &axes);
        let nest = Nest::new(extents.iter().zip(from.iter().zip(&to)).map(|(n, (f, t))| (*n, [*f, *t])));
        self.inside(view, first, nest.range().map(|r| r[1]), "the store to")?;
        let buffer = view.buffer.index();
        let writes = &mut self.writes;
        nest.each([0, first], |[f, w], n, [fs, ws]| {
            writes.extend((0..n as isize).map(|i| (buffer, (w + i * ws) as usize, t.data[(f + i * fs) as usize])));
        });
        Ok(())
    }

    fn op(&self, v: ValueId, op: &Op, extents: &[usize]) -> Step<Vec<f64>> {
        let p = self.m.p;
        let axes = &p.value(v).axes;
        let count: usize = extents.iter().product();
        let mut out = vec![];
        match op {
            Op::Const(x) => out.resize(count, *x),
            Op::Size(d) => out.resize(count, num_signed(d) as f64),
            Op::Position(a) => {
                let start = self.start[a.index()];
                out.extend((start..start + self.extents(&[*a])?[0]).map(|i| i as f64));
            }
            Op::Load(view) => {
                let (first, strides) = self.address(view, axes);
                let nest = || extents.iter().copied().zip(strides.iter().copied());
                self.inside(view, first, Nest::new(nest().map(|(n, s)| (n, [s]))).range().map(|r| r[0]), "the load of")?;
                gather(&self.m.memory[view.buffer.index()], first, nest(), &mut out);
                let (from, to) = (p.buffers[view.buffer.index()].dtype, p.value(v).dtype);
                if from != to && !to.is_float() {
                    out.iter_mut().for_each(|x| *x = Elementwise::Convert(to).eval(&[*x]));
                }
            }
            Op::Map(e, args) => {
                let e = *e;
                let t: Vec<Rc<Tile>> = args.iter().map(|a| self.get(*a)).collect::<Step<_>>()?;
                let strides: Vec<Vec<isize>> = args.iter().zip(&t).map(|(a, t)| self.strides(*a, t, axes)).collect();
                out.reserve_exact(count);
                // Operations have at most three operands; a missing one repeats the last.
                let operand = |i: usize| i.min(t.len() - 1);
                let (x, y, z) = (&t[operand(0)].data, &t[operand(1)].data, &t[operand(2)].data);
                let nest = Nest::new((0..axes.len()).map(|i| (extents[i], [0, 1, 2].map(|k| strides[operand(k)][i]))));
                let arity = e.arity();
                nest.each([0; 3], |[a, b, c], n, [s, t, u]| {
                    out.extend((0..n as isize).map(|i| {
                        let args = [x[(a + i * s) as usize], y[(b + i * t) as usize], z[(c + i * u) as usize]];
                        e.eval(&args[..arity])
                    }));
                });
            }
            Op::Reduce(kind, x, _) => {
                let t = self.get(*x)?;
                out = vec![kind.identity(); count];
                let into = dense(extents);
                let from = dense(&t.extents);
                let at = p.value(*x).axes.iter().map(|a| axes.iter().position(|o| o == a).map_or(0, |i| into[i]));
                let nest = Nest::new(t.extents.iter().zip(&from).zip(at).map(|((n, s), o)| (*n, [*s, o])));
                let round = |x: f64| if p.compute == DType::F32 { f64::from(x as f32) } else { x };
                nest.each([0, 0], |[f, o], n, [fs, os]| {
                    for i in 0..n as isize {
                        let slot = &mut out[(o + i * os) as usize];
                        let x = kind.combine(*slot, t.data[(f + i * fs) as usize]);
                        *slot = if *kind == ReduceKind::Sum { round(x) } else { x };
                    }
                });
            }
            Op::Dot { init, terms, sum } => {
                out = vec![0.0; count];
                for product in init {
                    let mut acc = vec![1.0; count];
                    for f in product {
                        let t = self.get(*f)?;
                        let strides = self.strides(*f, &t, axes);
                        let mut at = 0;
                        Nest::new(extents.iter().copied().zip(strides.iter().map(|s| [*s]))).each([0], |[a], n, [s]| {
                            for i in 0..n {
                                acc[at + i] *= t.data[(a + i as isize * s) as usize];
                            }
                            at += n;
                        });
                        self.round(p.compute, &mut acc);
                    }
                    out.iter_mut().zip(acc).for_each(|(o, a)| *o += a);
                    self.round(p.compute, &mut out);
                }
                let into = dense(extents);
                let summed = self.extents(sum)?;
                for (a, b) in terms {
                    let (x, y) = (self.get(*a)?, self.get(*b)?);
                    let all: Vec<AxisId> = axes.iter().chain(sum).copied().collect();
                    let (sx, sy) = (self.strides(*a, &x, &all), self.strides(*b, &y, &all));
                    let has = |v: ValueId, axis: AxisId| p.value(v).axes.contains(&axis);
                    let dims: Vec<ContractAxis> = (0..all.len())
                        .map(|i| ContractAxis {
                            size: if i < axes.len() { extents[i] } else { summed[i - axes.len()] },
                            a: has(*a, all[i]).then_some(sx[i]),
                            b: has(*b, all[i]).then_some(sy[i]),
                            c: into.get(i).copied(),
                        })
                        .collect();
                    let operand = |t: &Tile| {
                        let mut data = t.data.clone();
                        self.round(p.operands, &mut data);
                        data
                    };
                    let (x, y) = (operand(&x), operand(&y));
                    match p.compute {
                        DType::F32 => contract(&dims, &x, &y, &mut out, |v| f64::from(v as f32)),
                        _ => contract(&dims, &x, &y, &mut out, |v| v),
                    }
                }
            }
            Op::Fill { value, fill, keep } => {
                let t = self.get(*value)?;
                let strides = self.strides(*value, &t, axes);
                gather(&t.data, 0, extents.iter().copied().zip(strides), &mut out);
                for c in keep {
                    let base = self.base(c)?;
                    let coef = |a: &AxisId| c.axes.iter().filter(|(x, _)| x == a).map(|(_, k)| *k as isize).sum::<isize>();
                    let mut at = 0;
                    Nest::new(extents.iter().copied().zip(axes.iter().map(|a| [coef(a)]))).each([base as isize], |[left], n, [step]| {
                        for i in 0..n {
                            if left + i as isize * step < 0 {
                                out[at + i] = *fill;
                            }
                        }
                        at += n;
                    });
                }
            }
        }
        Ok(out)
    }
}

/// A size or stride of a bound program.
fn num_signed(d: &Dim) -> isize {
    d.as_fixed().unwrap_or(0) as isize
}

#[cfg(test)]
pub(crate) mod example {
    //! Attention with an online softmax, by hand: what `stream` and `lower` are to give.

    use super::super::{Buffer, BufferId, Carry, LOWEST, TileAxis, ValueInfo};
    use super::*;

    /// The value called `name`.
    pub(crate) fn find(p: &Program, name: &str) -> ValueId {
        ValueId(p.values.iter().position(|v| v.name.as_deref() == Some(name)).unwrap() as u32)
    }

    /// Row-major view of `buffer` over `axes`.
    pub(crate) fn view(buffers: &[Buffer], buffer: u32, axes: &[AxisId]) -> View {
        let shape = &buffers[buffer as usize].shape;
        let strides = axes.iter().enumerate().map(|(i, a)| (*a, shape[i + 1..].iter().fold(Dim::fixed(1), |n, s| &n * s))).collect();
        View { buffer: BufferId(buffer), offset: Dim::fixed(0), strides }
    }

    /// `o[b,h,i,e]` and `lse[b,h,i]` of `q[b,h,i,d]`, `k[b,h,j,d]`, `v[b,h,j,e]`; `j <= i + J − I`.
    pub(crate) fn attention() -> Program {
        let (bx, h, i, j, d, e) = (AxisId(0), AxisId(1), AxisId(2), AxisId(3), AxisId(4), AxisId(5));
        let sym = |n: &str| Dim::sym(n);
        let axis = |name: &str, size: Dim, role: Role| TileAxis { name: name.into(), size, role };
        let axes = vec![
            axis("b", sym("B"), Role::Grid),
            axis("h", sym("H"), Role::Grid),
            axis("i", sym("I"), Role::Block(16)),
            axis("j", sym("J"), Role::Stream(12)),
            axis("d", Dim::fixed(8), Role::Full(8)),
            axis("e", Dim::fixed(5), Role::Full(5)),
        ];
        let buffer = |name: &str, dtype: DType, shape: &[Dim], access: Access| Buffer { name: name.into(), dtype, shape: shape.to_vec(), access };
        let (b_, h_, i_, j_, d_, e_) = (sym("B"), sym("H"), sym("I"), sym("J"), Dim::fixed(8), Dim::fixed(5));
        let buffers = vec![
            buffer("q", DType::BF16, &[b_.clone(), h_.clone(), i_.clone(), d_.clone()], Access::Input),
            buffer("k", DType::BF16, &[b_.clone(), h_.clone(), j_.clone(), d_], Access::Input),
            buffer("v", DType::BF16, &[b_.clone(), h_.clone(), j_.clone(), e_.clone()], Access::Input),
            buffer("o", DType::F32, &[b_.clone(), h_.clone(), i_.clone(), e_], Access::Output),
            buffer("lse", DType::F32, &[b_, h_, i_.clone()], Access::Output),
        ];
        let mut values = vec![];
        let mut new = |name: &str, dtype: DType, axes: &[AxisId]| {
            values.push(ValueInfo { dtype, axes: axes.to_vec(), name: (!name.is_empty()).then(|| name.into()) });
            ValueId(values.len() as u32 - 1)
        };
        let f = DType::F32;
        let causal = Constraint { axes: vec![(i, 1), (j, -1)], constant: &j_ - &i_, scalars: vec![] };
        let map = |e: Elementwise, args: &[ValueId]| Op::Map(e, args.to_vec());
        use Elementwise::{Add, Div, Exp, Gt, Log, Max, Mul, Select, Sub};

        let q = new("q", f, &[i, d]);
        let (m0, l0, o0) = (new("", f, &[i]), new("", f, &[i]), new("", f, &[i, e]));
        let (m, l, o) = (new("m", f, &[i]), new("l", f, &[i]), new("o", f, &[i, e]));
        let (k, s, masked) = (new("k", f, &[j, d]), new("s", f, &[i, j]), new("s", f, &[i, j]));
        let (top, m1) = (new("", f, &[i]), new("m", f, &[i]));
        let (dm, corr) = (new("", f, &[i]), new("corr", f, &[i]));
        let (ds, p) = (new("", f, &[i, j]), new("p", f, &[i, j]));
        let (row, lc, l1) = (new("", f, &[i]), new("", f, &[i]), new("l", f, &[i]));
        let (v, o1) = (new("v", f, &[j, e]), new("o", f, &[i, e]));
        let (m2, l2, o2) = (new("m", f, &[i]), new("l", f, &[i]), new("o", f, &[i, e]));
        let (live, one, safe) = (new("", DType::Bool, &[i]), new("", f, &[]), new("", f, &[i]));
        let zero = new("", f, &[]);
        let (out, log, lse, never, lse_out) = (new("", f, &[i, e]), new("", f, &[i]), new("", f, &[i]), new("", f, &[]), new("lse", f, &[i]));

        let body = vec![
            Stmt::Let(k, Op::Load(view(&buffers, 1, &[bx, h, j, d]))),
            Stmt::Let(s, Op::Dot { init: vec![], terms: vec![(q, k)], sum: vec![d] }),
            Stmt::Let(masked, Op::Fill { value: s, fill: f64::NEG_INFINITY, keep: vec![causal.clone()] }),
            Stmt::Let(top, Op::Reduce(ReduceKind::Max, masked, vec![j])),
            Stmt::Let(m1, map(Max, &[m, top])),
            Stmt::Let(dm, map(Sub, &[m, m1])),
            Stmt::Let(corr, map(Exp, &[dm])),
            Stmt::Let(ds, map(Sub, &[masked, m1])),
            Stmt::Let(p, map(Exp, &[ds])),
            Stmt::Let(row, Op::Reduce(ReduceKind::Sum, p, vec![j])),
            Stmt::Let(lc, map(Mul, &[l, corr])),
            Stmt::Let(l1, map(Add, &[lc, row])),
            Stmt::Let(v, Op::Load(view(&buffers, 2, &[bx, h, j, e]))),
            Stmt::Let(o1, Op::Dot { init: vec![vec![o, corr]], terms: vec![(p, v)], sum: vec![j] }),
        ];
        let carry = |init, inside, next, after| Carry { init, inside, next, after };
        let carries = vec![carry(m0, m, m1, m2), carry(l0, l, l1, l2), carry(o0, o, o1, o2)];
        let body = vec![
            Stmt::Let(q, Op::Load(view(&buffers, 0, &[bx, h, i, d]))),
            Stmt::Let(m0, Op::Const(LOWEST)),
            Stmt::Let(l0, Op::Const(0.0)),
            Stmt::Let(o0, Op::Const(0.0)),
            Stmt::For(Loop { axis: j, within: vec![causal], carries, body }),
            Stmt::Let(zero, Op::Const(0.0)),
            Stmt::Let(live, map(Gt, &[l2, zero])),
            Stmt::Let(one, Op::Const(1.0)),
            Stmt::Let(safe, map(Select, &[live, l2, one])),
            Stmt::Let(out, map(Div, &[o2, safe])),
            Stmt::Store(view(&buffers, 3, &[bx, h, i, e]), out),
            Stmt::Let(log, map(Log, &[safe])),
            Stmt::Let(lse, map(Add, &[m2, log])),
            Stmt::Let(never, Op::Const(f64::NEG_INFINITY)),
            Stmt::Let(lse_out, map(Select, &[live, lse, never])),
            Stmt::Store(view(&buffers, 4, &[bx, h, i]), lse_out),
        ];
        Program { name: "attention".into(), axes, buffers, values, body, compute: f, operands: DType::BF16, lanes: Some(i) }
    }
}

#[cfg(test)]
mod tests {
    use super::example::{attention, find};
    use super::*;
    use crate::builder::Builder;
    use crate::nn;
    use crate::reference::evaluate;
    use crate::tensor::relative_error;
    use crate::types::{Axis, Type};

    fn noise(n: usize, seed: u64) -> Vec<f64> {
        let mut s = seed;
        (0..n)
            .map(|_| {
                s = s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((s >> 33) as f64 / (1u64 << 31) as f64 - 0.5) * 4.0
            })
            .collect()
    }

    fn data(dims: &[(&str, i64)]) -> (Bindings, Vec<Tensor>) {
        let b: Bindings = dims.iter().map(|(n, v)| ((*n).into(), *v)).collect();
        let n = |s: &str| b[s] as usize;
        let t = |shape: [usize; 4], seed| Tensor::from_f64(DType::BF16, &shape, &noise(shape.iter().product(), seed)).unwrap();
        let inputs = vec![t([n("B"), n("H"), n("I"), 8], 1), t([n("B"), n("H"), n("J"), 8], 2), t([n("B"), n("H"), n("J"), 5], 3)];
        (b, inputs)
    }

    /// The same function, from compositions, in f64.
    fn meaning(dims: &Bindings, inputs: &[Tensor]) -> Vec<Tensor> {
        let mut b = Builder::new("attention");
        let axes = |names: &[&str]| names.iter().map(|n| Axis::sym(*n)).collect::<Vec<_>>();
        let ty = |names: &[&str]| Type::new(DType::F64, axes(names));
        let (q, k, v) = (b.param("q", ty(&["B", "H", "I", "D"])), b.param("k", ty(&["B", "H", "J", "D"])), b.param("v", ty(&["B", "H", "J", "E"])));
        let s = b.contract(q, k, &["D".into()]).unwrap();
        let (i, j) = (b.iota(Axis::sym("I")).unwrap(), b.iota(Axis::sym("J")).unwrap());
        let off = b.size(&Dim::sym("J") - &Dim::sym("I"), DType::I32).unwrap();
        let last = b.add(i, off).unwrap();
        let seen = b.elementwise(Elementwise::Ge, &[last, j]).unwrap();
        let never = b.constant(f64::NEG_INFINITY, DType::F64);
        let s = b.elementwise(Elementwise::Select, &[seen, s, never]).unwrap();
        let names: Vec<crate::dim::Name> = ["B", "H", "I", "J"].iter().map(|n| (*n).into()).collect();
        let s = b.permute(s, &names).unwrap();
        let p = nn::softmax(&mut b, s, &"J".into()).unwrap();
        let o = b.contract(p, v, &["J".into()]).unwrap();
        let lse = nn::logsumexp(&mut b, s, &"J".into()).unwrap();
        b.result("o", o);
        b.result("lse", lse);
        evaluate(&b.finish(), inputs, dims).unwrap()
    }

    #[test]
    fn online_softmax_is_attention() {
        for dims in [[("B", 2), ("H", 3), ("I", 37), ("J", 53)], [("B", 1), ("H", 1), ("I", 45), ("J", 20)], [("B", 1), ("H", 2), ("I", 1), ("J", 1)], [("B", 1), ("H", 2), ("I", 5), ("J", 0)]] {
            let (b, inputs) = data(&dims);
            let (got, want) = (run(&attention(), &b, &inputs).unwrap(), meaning(&b, &inputs));
            let (eo, el) = (relative_error(&got[0], &want[0]), relative_error(&got[1], &want[1]));
            // Weights are rounded to bf16 before the second dot; the log-sum-exp sees f32 only.
            assert!(eo < 4e-3 && el < 3e-7, "{dims:?}: o {eo:e}, lse {el:e}");
            let mut exact = attention();
            (exact.compute, exact.operands) = (DType::F64, DType::F64);
            exact.values.iter_mut().filter(|v| v.dtype == DType::F32).for_each(|v| v.dtype = DType::F64);
            exact.buffers.iter_mut().filter(|v| v.access == Access::Output).for_each(|v| v.dtype = DType::F64);
            let got = run(&exact, &b, &inputs).unwrap();
            let (eo, el) = (relative_error(&got[0], &want[0]), relative_error(&got[1], &want[1]));
            assert!(eo < 1e-14 && el < 1e-14, "{dims:?} in f64: o {eo:e}, lse {el:e}");
        }
    }

    #[test]
    fn skipped_tiles_contribute_nothing() {
        let (b, inputs) = data(&[("B", 1), ("H", 1), ("I", 45), ("J", 60)]);
        let mut p = attention();
        let got = run(&p, &b, &inputs).unwrap();
        for s in &mut p.body {
            if let Stmt::For(l) = s {
                l.within.clear();
            }
        }
        assert_eq!(run(&p, &b, &inputs).unwrap(), got);
    }

    fn message(change: impl FnOnce(&mut Program), dims: &[(&str, i64)]) -> String {
        let (b, inputs) = data(dims);
        let mut p = attention();
        change(&mut p);
        run(&p, &b, &inputs).unwrap_err().message
    }

    #[test]
    fn wrong_memory_is_an_error() {
        let dims = [("B", 1), ("H", 2), ("I", 17), ("J", 9)];
        let store = |p: &mut Program, f: &dyn Fn(&mut View)| {
            let Some(Stmt::Store(v, _)) = p.body.last_mut() else { panic!() };
            f(v);
        };
        let twice = message(|p| store(p, &|v| v.strides[2].1 = Dim::fixed(0)), &dims);
        assert_eq!(twice, "attention: element [0, 0, 0] of `lse` is written twice");
        let outside = message(|p| store(p, &|v| v.offset = Dim::fixed(1)), &dims);
        assert_eq!(outside, "attention: the store to `lse` reaches elements 34..=34, but it has 34 (in the instance at b = 0, h = 1, i = 16)");
        let never = message(|p| p.buffers[4].shape[2] = Dim::fixed(40), &dims);
        assert_eq!(never, "attention: element [0, 0, 34] of `lse` is never written");
        let load = message(
            |p| {
                let Stmt::Let(_, Op::Load(v)) = &mut p.body[0] else { panic!() };
                v.offset = Dim::fixed(-1);
            },
            &dims,
        );
        assert!(load.contains("the load of `q` reaches elements -1..="), "{load}");
    }

    #[test]
    fn wrong_calls_are_errors() {
        let (b, inputs) = data(&[("B", 1), ("H", 1), ("I", 3), ("J", 4)]);
        let error = |b: &Bindings, i: &[Tensor]| run(&attention(), b, i).unwrap_err().message;
        assert_eq!(error(&b, &inputs[..2]), "attention: takes 3 inputs, but 2 given");
        let f32s: Vec<Tensor> = inputs.iter().map(|t| t.convert(DType::F32)).collect();
        assert_eq!(error(&b, &f32s), "attention: buffer `q` is bf16[1, 1, 3, 8], but the input is f32[1, 1, 3, 8]");
        assert!(error(&Bindings::new(), &inputs).contains("dimension `B` has no number"));
        let mut p = attention();
        let s = find(&p, "s");
        p.values[s.index()].axes.clear();
        assert!(run(&p, &b, &inputs).unwrap_err().message.contains("but a dot gives [i,j]"));
    }
}
