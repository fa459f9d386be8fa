//! What holds of every block program, then the checks.
//!
//! 1. Every id is in its table. Inputs stand before outputs.
//! 2. Tiles have at least one element. A `Full` axis has a size that is a number, its tile's.
//! 3. Floats are of the program's `compute` type, `F32` or `F64`; other values are `I32` or `Bool`. Operands of dots are rounded
//!    to a float type that `compute` can hold. Lanes lie along a `Block` or a `Full` axis.
//! 4. A value's axes are distinct and never `Grid`.
//! 5. Every value is defined once, before use; what a loop body defines is known in that body only.
//! 6. Axes of a `Stream` role are walked by loops only, never by two nested ones; a value has such an axis, and a view or a
//!    constraint mentions it, only inside the loop.
//! 7. The four values of a carry have one type, without the loop's axis; `init` is defined before the loop, `next` in it.
//! 8. Constants and sizes have any axes: the number is everywhere. A position has its axis, none if that is `Grid`.
//! 9. A load reads an input; the view's axes outside the grid are the value's (which may have more: they are broadcast).
//! 10. A map has the union of its operands' axes and the type that the operation infers. `convert` to a float type narrower than
//!     `compute` has type `compute`: a rounded value.
//! 11. A reduction has its operand's axes but the reduced ones, of which there is at least one; operands are floats. None of them
//!     is `Block`, here and in dots: an instance has only a part of such an axis.
//! 12. Both operands of each term of a dot have every summed axis, of which there is at least one; the union of their axes
//!     without those is the result's. Factors of `init` have axes of the result only. All are floats.
//! 13. A fill has the axes of its operand and of its constraints, and its operand's type; its number is not NaN. Scalars of
//!     constraints are `I32` without axes.
//! 14. A store writes an output of the value's kind (float, `i32`, `bool`); its view has every axis of the value, every parallel
//!     axis, and the axis of every loop around it: else one element would be written more than once. Every output is stored.

use super::{Access, AxisId, Constraint, Loop, Op, Program, Role, Stmt, ValueId, View};
use crate::diagnostic::Error;
use crate::prim::Elementwise;
use crate::types::DType;

/// Checks `p`.
///
/// # Errors
/// Everything that is wrong, in the order of the program; each names the value or buffer.
pub fn verify(p: &Program) -> Result<(), Vec<Error>> {
    let mut c = Check { p, errors: vec![], defined: vec![false; p.values.len()], ever: vec![false; p.values.len()], loops: vec![], stored: vec![false; p.buffers.len()] };
    c.tables();
    c.ids(&p.body);
    if c.errors.is_empty() {
        c.body(&p.body);
        for (b, stored) in p.buffers.iter().zip(&c.stored) {
            if b.access == Access::Output && !stored {
                c.errors.push(Error::new(format!("{}: output `{}` is never stored", p.name, b.name)));
            }
        }
    }
    if c.errors.is_empty() { Ok(()) } else { Err(c.errors) }
}

struct Check<'a> {
    p: &'a Program,
    errors: Vec<Error>,
    /// Known here.
    defined: Vec<bool>,
    /// Defined anywhere so far.
    ever: Vec<bool>,
    loops: Vec<AxisId>,
    stored: Vec<bool>,
}

/// Sorted, without repetition.
fn set(axes: impl IntoIterator<Item = AxisId>) -> Vec<AxisId> {
    let mut v: Vec<AxisId> = axes.into_iter().collect();
    v.sort();
    v.dedup();
    v
}

impl Check<'_> {
    fn error(&mut self, message: String) {
        self.errors.push(Error::new(format!("{}: {message}", self.p.name)));
    }
    fn val(&self, v: ValueId) -> String {
        match &self.p.value(v).name {
            Some(n) => format!("`{n}` (%{})", v.0),
            None => format!("%{}", v.0),
        }
    }
    fn names(&self, axes: &[AxisId]) -> String {
        let names: Vec<&str> = axes.iter().map(|a| &*self.p.axis(*a).name).collect();
        format!("[{}]", names.join(","))
    }
    fn grid(&self, a: AxisId) -> bool {
        self.p.axis(a).role == Role::Grid
    }
    fn float(&self, v: ValueId) -> bool {
        self.p.value(v).dtype == self.p.compute
    }

    fn tables(&mut self) {
        let p = self.p;
        if !matches!(p.compute, DType::F32 | DType::F64) {
            self.error(format!("floats are computed in {}, but must be in f32 or f64", p.compute));
        }
        if !p.operands.is_float() || p.operands.bytes() > p.compute.bytes() {
            self.error(format!("operands of dots are {}, which {} cannot hold", p.operands, p.compute));
        }
        for a in &p.axes {
            if a.extent() == 0 {
                self.error(format!("axis `{}` has tiles without elements", a.name));
            }
            match a.role {
                Role::Full(n) if a.size.as_fixed() != Some(n as i64) => {
                    self.error(format!("axis `{}` is full with {n} elements, but its size is {}", a.name, a.size));
                }
                _ => {}
            }
        }
        if !p.buffers.is_sorted_by_key(|b| b.access == Access::Output) {
            self.error("an input stands behind an output".to_string());
        }
        match p.lanes {
            Some(a) if a.index() >= p.axes.len() => self.error(format!("lanes lie along axis #{}, which does not exist", a.0)),
            Some(a) if !matches!(p.axis(a).role, Role::Block(_) | Role::Full(_)) => {
                self.error(format!("lanes lie along `{}`, which is neither a block nor full", p.axis(a).name));
            }
            _ => {}
        }
        for (i, v) in p.values.iter().enumerate() {
            let what = v.name.as_deref().unwrap_or("unnamed");
            if v.dtype != p.compute && !matches!(v.dtype, DType::I32 | DType::Bool) {
                self.error(format!("value `{what}` (%{i}) is {}, but floats are computed in {}", v.dtype, p.compute));
            }
            for (j, a) in v.axes.iter().enumerate() {
                match p.axes.get(a.index()) {
                    None => self.error(format!("value `{what}` (%{i}) has axis #{}, which does not exist", a.0)),
                    Some(x) if x.role == Role::Grid => self.error(format!("value `{what}` (%{i}) has the grid axis `{}`", x.name)),
                    Some(x) if v.axes[..j].contains(a) => self.error(format!("value `{what}` (%{i}) has axis `{}` twice", x.name)),
                    Some(_) => {}
                }
            }
        }
    }

    /// Whether every id in `body` is in its table.
    fn ids(&mut self, body: &[Stmt]) {
        let (mut values, mut axes, mut buffers): (Vec<ValueId>, Vec<AxisId>, Vec<super::BufferId>) = (vec![], vec![], vec![]);
        for s in body {
            let mut view = |v: &View| {
                buffers.push(v.buffer);
                axes.extend(v.strides.iter().map(|(a, _)| *a));
            };
            match s {
                Stmt::Store(v, x) => {
                    view(v);
                    values.push(*x);
                }
                Stmt::Let(v, op) => {
                    values.push(*v);
                    match op {
                        Op::Const(_) | Op::Size(_) => {}
                        Op::Position(a) => axes.push(*a),
                        Op::Load(v) => view(v),
                        Op::Map(_, x) => values.extend(x),
                        Op::Reduce(_, x, over) => {
                            values.push(*x);
                            axes.extend(over);
                        }
                        Op::Dot { init, terms, sum } => {
                            values.extend(init.iter().flatten());
                            values.extend(terms.iter().flat_map(|(a, b)| [*a, *b]));
                            axes.extend(sum);
                        }
                        Op::Fill { value, keep, .. } => {
                            values.push(*value);
                            for c in keep {
                                axes.extend(c.axes.iter().map(|(a, _)| *a));
                                values.extend(c.scalars.iter().map(|(v, _)| *v));
                            }
                        }
                    }
                }
                Stmt::For(l) => {
                    axes.push(l.axis);
                    values.extend(l.carries.iter().flat_map(|c| [c.init, c.inside, c.next, c.after]));
                    for c in &l.within {
                        axes.extend(c.axes.iter().map(|(a, _)| *a));
                        values.extend(c.scalars.iter().map(|(v, _)| *v));
                    }
                    self.ids(&l.body);
                }
            }
        }
        for v in values.iter().filter(|v| v.index() >= self.p.values.len()) {
            self.error(format!("value %{} does not exist", v.0));
        }
        for a in axes.iter().filter(|a| a.index() >= self.p.axes.len()) {
            self.error(format!("axis #{} does not exist", a.0));
        }
        for b in buffers.iter().filter(|b| b.index() >= self.p.buffers.len()) {
            self.error(format!("buffer #{} does not exist", b.0));
        }
    }

    fn uses(&mut self, v: ValueId, what: &str) {
        if !self.defined[v.index()] {
            let why = if self.ever[v.index()] { "is known only inside a loop that has ended" } else { "is not defined before" };
            self.error(format!("{what} uses {}, which {why}", self.val(v)));
        }
    }

    fn define(&mut self, v: ValueId) {
        if std::mem::replace(&mut self.ever[v.index()], true) {
            self.error(format!("{} is defined twice", self.val(v)));
        }
        self.defined[v.index()] = true;
        let axes = self.p.value(v).axes.clone();
        let what = format!("value {}", self.val(v));
        self.active(&axes, &what);
    }

    /// No sum over what an instance has only a part of.
    fn parts(&mut self, over: &[AxisId], what: &str, op: &str) {
        for a in over.iter().filter(|a| matches!(self.p.axis(**a).role, Role::Block(_))) {
            self.error(format!("{what}: {op} over `{}`, of which an instance has only a tile", self.p.axis(*a).name));
        }
    }
    /// Streamed axes only inside their loop.
    fn active(&mut self, axes: &[AxisId], what: &str) {
        for a in axes {
            if matches!(self.p.axis(*a).role, Role::Stream(_)) && !self.loops.contains(a) {
                self.error(format!("{what} has the streamed axis `{}` outside of a loop over it", self.p.axis(*a).name));
            }
        }
    }

    fn view(&mut self, v: &View, what: &str) {
        let axes: Vec<AxisId> = v.strides.iter().map(|(a, _)| *a).collect();
        if set(axes.iter().copied()).len() != axes.len() {
            self.error(format!("{what} has a view with an axis twice: {}", self.names(&axes)));
        }
        self.active(&axes, what);
    }

    fn constraints(&mut self, all: &[Constraint], what: &str) {
        for c in all {
            let axes: Vec<AxisId> = c.axes.iter().map(|(a, _)| *a).collect();
            self.active(&axes, what);
            for (v, _) in &c.scalars {
                self.uses(*v, what);
                let i = self.p.value(*v);
                if i.dtype != DType::I32 || !i.axes.is_empty() {
                    self.error(format!("{what} is constrained by {}, which must be an i32 without axes", self.val(*v)));
                }
            }
        }
    }

    fn body(&mut self, body: &[Stmt]) {
        for s in body {
            match s {
                Stmt::Let(v, op) => {
                    self.op(*v, op);
                    self.define(*v);
                }
                Stmt::For(l) => self.repeat(l),
                Stmt::Store(view, v) => self.store(view, *v),
            }
        }
    }

    fn repeat(&mut self, l: &Loop) {
        let p = self.p;
        let what = format!("loop over `{}`", p.axis(l.axis).name);
        if !matches!(p.axis(l.axis).role, Role::Stream(_)) {
            self.error(format!("{what}: the axis is not streamed"));
        }
        if self.loops.contains(&l.axis) {
            self.error(format!("{what} stands inside a loop over the same axis"));
        }
        for c in &l.carries {
            self.uses(c.init, &what);
            let (i, same) = (p.value(c.init), [c.inside, c.next, c.after]);
            for v in same {
                let x = p.value(v);
                if x.dtype != i.dtype || set(x.axes.iter().copied()) != set(i.axes.iter().copied()) {
                    let (have, want) = (self.names(&x.axes), self.names(&i.axes));
                    self.error(format!("{what} carries {}: {}{have}, but its first value {} is {}{want}", self.val(v), x.dtype, self.val(c.init), i.dtype));
                }
            }
            if i.axes.contains(&l.axis) {
                self.error(format!("{what} carries {}, which has the loop's axis", self.val(c.init)));
            }
        }
        let outside = self.defined.clone();
        self.loops.push(l.axis);
        self.constraints(&l.within, &what);
        l.carries.iter().for_each(|c| self.define(c.inside));
        self.body(&l.body);
        l.carries.iter().for_each(|c| self.uses(c.next, &what));
        self.loops.pop();
        self.defined = outside;
        l.carries.iter().for_each(|c| self.define(c.after));
    }

    fn store(&mut self, view: &View, v: ValueId) {
        let p = self.p;
        let b = &p.buffers[view.buffer.index()];
        let what = format!("store to `{}`", b.name);
        self.uses(v, &what);
        self.view(view, &what);
        if b.access != Access::Output {
            self.error(format!("{what}: it is an input"));
        }
        self.stored[view.buffer.index()] = true;
        let kind = |d: DType| if d.is_float() { DType::F64 } else { d };
        let x = p.value(v);
        if kind(x.dtype) != kind(b.dtype) {
            self.error(format!("{what}, of {}, writes {}, which is {}", b.dtype, self.val(v), x.dtype));
        }
        let parallel = (0..p.axes.len() as u32).map(AxisId).filter(|a| matches!(p.axis(*a).role, Role::Grid | Role::Block(_)));
        let needed = set(parallel.filter(|a| !p.axis(*a).size.is_one()).chain(self.loops.iter().copied()).chain(x.axes.iter().copied()));
        for a in needed {
            if view.stride(a).is_none() {
                self.error(format!("{what} writes {} through a view without axis `{}`", self.val(v), p.axis(a).name));
            }
        }
    }

    fn op(&mut self, v: ValueId, op: &Op) {
        let p = self.p;
        let out = p.value(v);
        let what = format!("value {}", self.val(v));
        let expect = |c: &mut Self, axes: Vec<AxisId>, op: &str| {
            if set(out.axes.iter().copied()) != axes {
                let (have, want) = (c.names(&out.axes), c.names(&axes));
                c.error(format!("{what} has axes {have}, but {op} gives {want}"));
            }
        };
        match op {
            Op::Const(_) | Op::Size(_) => {}
            Op::Position(a) => {
                expect(self, if self.grid(*a) { vec![] } else { vec![*a] }, "a position");
                if out.dtype != DType::I32 {
                    self.error(format!("{what} is {}, but a position is i32", out.dtype));
                }
                self.active(&[*a], &what);
            }
            Op::Load(view) => {
                self.view(view, &what);
                let b = &p.buffers[view.buffer.index()];
                if b.access != Access::Input {
                    self.error(format!("{what} is loaded from the output `{}`", b.name));
                }
                for (a, _) in &view.strides {
                    if !self.grid(*a) && !out.axes.contains(a) {
                        self.error(format!("{what} is loaded from `{}` along axis `{}`, which it has not", b.name, p.axis(*a).name));
                    }
                }
            }
            Op::Map(e, args) => {
                args.iter().for_each(|a| self.uses(*a, &what));
                if args.len() != e.arity() {
                    return self.error(format!("{what}: {} takes {} operands, but {} given", e.name(), e.arity(), args.len()));
                }
                let dtypes: Vec<DType> = args.iter().map(|a| p.value(*a).dtype).collect();
                let held = |d: DType| if d.is_float() && d.bytes() < p.compute.bytes() && matches!(e, Elementwise::Convert(_)) { p.compute } else { d };
                match e.infer(&dtypes) {
                    Err(m) => self.error(format!("{what}: {}: {m}", e.name())),
                    Ok(d) if held(d) != out.dtype => self.error(format!("{what} is {}, but {} gives {}", out.dtype, e.name(), held(d))),
                    Ok(_) => {}
                }
                expect(self, set(args.iter().flat_map(|a| p.value(*a).axes.iter().copied())), e.name());
            }
            Op::Reduce(kind, x, over) => {
                self.uses(*x, &what);
                let from = &p.value(*x).axes;
                if over.is_empty() || set(over.iter().copied()).len() != over.len() || over.iter().any(|a| !from.contains(a)) {
                    let (o, f) = (self.names(over), self.names(from));
                    self.error(format!("{what}: {} over {o} of {}, whose axes are {f}", kind.name(), self.val(*x)));
                }
                self.parts(over, &what, kind.name());
                if !self.float(*x) || !self.float(v) {
                    self.error(format!("{what}: {} of {} is {}, but both must be {}", kind.name(), p.value(*x).dtype, out.dtype, p.compute));
                }
                expect(self, set(from.iter().copied().filter(|a| !over.contains(a))), kind.name());
            }
            Op::Dot { init, terms, sum } => {
                if sum.is_empty() || terms.is_empty() || set(sum.iter().copied()).len() != sum.len() {
                    let s = self.names(sum);
                    self.error(format!("{what}: a dot needs a term and distinct summed axes, but has {} terms over {s}", terms.len()));
                }
                self.parts(sum, &what, "a dot");
                let factors: Vec<ValueId> = init.iter().flatten().chain(terms.iter().flat_map(|(a, b)| [a, b])).copied().collect();
                for f in factors.iter().chain([&v]) {
                    if *f != v {
                        self.uses(*f, &what);
                    }
                    if !self.float(*f) {
                        self.error(format!("{what}: {} in a dot is {}, but must be {}", self.val(*f), p.value(*f).dtype, p.compute));
                    }
                }
                for (a, b) in terms {
                    for x in [a, b] {
                        for s in sum.iter().filter(|s| !p.value(*x).axes.contains(s)) {
                            self.error(format!("{what}: operand {} of a dot has no summed axis `{}`", self.val(*x), p.axis(*s).name));
                        }
                    }
                    let both = p.value(*a).axes.iter().chain(&p.value(*b).axes);
                    expect(self, set(both.copied().filter(|x| !sum.contains(x))), "a dot");
                }
                for product in init {
                    if product.is_empty() {
                        self.error(format!("{what}: an empty product in the start of a dot"));
                    }
                    for f in product {
                        for a in p.value(*f).axes.iter().filter(|a| !out.axes.contains(a)) {
                            self.error(format!("{what}: {} in the start of a dot has axis `{}`, which the result has not", self.val(*f), p.axis(*a).name));
                        }
                    }
                }
            }
            Op::Fill { value, fill, keep } => {
                self.uses(*value, &what);
                self.constraints(keep, &what);
                let x = p.value(*value);
                if x.dtype != out.dtype {
                    self.error(format!("{what} is {}, but fills {}, which is {}", out.dtype, self.val(*value), x.dtype));
                }
                if fill.is_nan() {
                    self.error(format!("{what} is filled with NaN"));
                }
                let bound = keep.iter().flat_map(|c| c.axes.iter().map(|(a, _)| *a)).filter(|a| !self.grid(*a)).collect::<Vec<_>>();
                expect(self, set(x.axes.iter().copied().chain(bound)), "a fill");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::interp::example::{attention, find};
    use super::super::{BufferId, Carry};
    use super::*;
    use crate::dim::Dim;

    fn broken(change: impl FnOnce(&mut Program)) -> String {
        let mut p = attention();
        change(&mut p);
        let errors = verify(&p).unwrap_err();
        errors.iter().map(|e| e.message.clone()).collect::<Vec<_>>().join("\n")
    }
    fn inner(p: &mut Program) -> &mut Loop {
        p.body.iter_mut().find_map(|s| if let Stmt::For(l) = s { Some(l) } else { None }).unwrap()
    }

    #[test]
    fn the_example_is_sound() {
        assert_eq!(verify(&attention()), Ok(()));
    }

    #[test]
    fn every_invariant_has_its_error() {
        let (b, i, j, d) = (AxisId(0), AxisId(2), AxisId(3), AxisId(4));
        let has = |text: String, part: &str| assert!(text.contains(part), "{text:?} has not {part:?}");
        has(broken(|p| p.lanes = Some(AxisId(9))), "lanes lie along axis #9");
        has(broken(|p| p.lanes = Some(b)), "neither a block nor full");
        has(broken(|p| p.axes[4].size = Dim::sym("D")), "axis `d` is full with 8 elements, but its size is D");
        has(broken(|p| p.axes[2].role = Role::Block(0)), "axis `i` has tiles without elements");
        has(broken(|p| p.compute = DType::BF16), "floats are computed in bf16");
        has(broken(|p| p.operands = DType::F64), "operands of dots are f64, which f32 cannot hold");
        has(broken(|p| p.buffers.rotate_right(1)), "an input stands behind an output");
        has(broken(|p| { let s = find(p, "s"); p.values[s.index()].axes.push(b) }), "value `s` (%");
        has(broken(|p| { let s = find(p, "s"); p.values[s.index()].axes.push(i) }), "has axis `i` twice");
        has(broken(|p| { let s = find(p, "s"); p.values[s.index()].dtype = DType::F64 }), "is f64, but floats are computed in f32");
        has(broken(|p| { let s = find(p, "s"); p.values[s.index()].axes = vec![i] }), "but a dot gives [i,j]");
        has(broken(|p| { inner(p).body.remove(0); }), "which is not defined before");
        has(broken(|p| { let first = inner(p).body[0].clone(); inner(p).body.push(first) }), "is defined twice");
        has(broken(|p| { let k = find(p, "k"); p.body.push(Stmt::Let(ValueId(p.values.len() as u32), Op::Map(Elementwise::Neg, vec![k]))); p.values.push(p.values[k.index()].clone()) }), "known only inside a loop that has ended");
        has(broken(|p| { let q = p.body[0].clone(); let Stmt::Let(q, _) = q else { panic!() }; p.values[q.index()].axes.push(j) }), "has the streamed axis `j` outside");
        has(broken(|p| { let Stmt::For(l) = inner(p).clone().into() else { panic!() }; inner(p).body.push(Stmt::For(l)) }), "inside a loop over the same axis");
        has(broken(|p| inner(p).axis = d), "the axis is not streamed");
        has(broken(|p| { let s = find(p, "s"); let c = inner(p).carries[0].clone(); inner(p).carries[0] = Carry { next: s, ..c } }), "carries `s`");
        has(broken(|p| { let Some(Stmt::Store(v, _)) = p.body.last_mut() else { panic!() }; v.strides.pop(); }), "through a view without axis");
        has(broken(|p| { let Some(Stmt::Store(v, _)) = p.body.last_mut() else { panic!() }; v.buffer = BufferId(0) }), "store to `q`: it is an input");
        has(broken(|p| { p.body.pop(); }), "is never stored");
        has(broken(|p| { let Some(Stmt::Store(v, _)) = p.body.last_mut() else { panic!() }; v.buffer = BufferId(99) }), "buffer #99 does not exist");
        has(broken(|p| {
            for s in &mut inner(p).body {
                if let Stmt::Let(_, Op::Dot { sum, .. }) = s { *sum = vec![b] }
            }
        }), "has no summed axis `b`");
        has(broken(|p| {
            let d = inner(p).body.iter().find_map(|s| if let Stmt::Let(_, Op::Dot { sum, .. }) = s { Some(sum[0]) } else { None }).unwrap();
            p.axes[d.index()].role = Role::Block(4);
        }), "of which an instance has only a tile");
        has(broken(|p| {
            for s in &mut inner(p).body {
                if let Stmt::Let(_, Op::Fill { fill, .. }) = s { *fill = f64::NAN }
            }
        }), "filled with NaN");
        has(broken(|p| {
            for s in &mut inner(p).body {
                match s {
                    Stmt::Let(_, Op::Map(e, _)) if *e == Elementwise::Sub => *e = Elementwise::Lt,
                    _ => {}
                }
            }
        }), "but lt gives bool");
    }

    impl From<Loop> for Stmt {
        fn from(l: Loop) -> Stmt {
            Stmt::For(l)
        }
    }
}
