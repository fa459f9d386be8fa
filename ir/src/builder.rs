//! The only way to make equations: infers types, shares equal equations, folds nothing.

use crate::diagnostic::{Error, Span};
use crate::dim::{Dim, Name};
use crate::graph::{Eqn, Function, Port, Var, VarInfo};
use crate::prim::{Call, Callee, Elementwise, Literal, Movement, Prim, ReduceKind};
use crate::types::{Axis, DType, Type};
use std::collections::HashMap;

/// Builds a [`Function`].
#[derive(Clone, Debug)]
pub struct Builder {
    f: Function,
    known: HashMap<(Prim, Vec<Var>), Var>,
    /// What the next equations say of their origin.
    pub origin: Option<Name>,
    /// Where the next equations stand in the text.
    pub span: Option<Span>,
}

type Result<T> = std::result::Result<T, Error>;

impl Builder {
    /// An empty function.
    pub fn new(name: impl Into<Name>) -> Builder {
        let f = Function { name: name.into(), params: vec![], results: vec![], eqns: vec![], vars: vec![] };
        Builder { f, known: HashMap::new(), origin: None, span: None }
    }
    /// Continues `f`: new equations go behind its own. Results are kept; [`Builder::clear_results`] drops them.
    pub fn extend(f: Function) -> Builder {
        let known = f.eqns.iter().rev().map(|e| ((e.op.clone(), e.args.clone()), e.out)).collect();
        Builder { f, known, origin: None, span: None }
    }
    /// Forgets the results so far.
    pub fn clear_results(&mut self) -> Vec<Port> {
        std::mem::take(&mut self.f.results)
    }
    /// The function so far.
    pub fn function(&self) -> &Function {
        &self.f
    }
    /// The function.
    pub fn finish(self) -> Function {
        self.f
    }
    fn var(&mut self, ty: Type, name: Option<Name>) -> Var {
        self.f.vars.push(VarInfo { ty, name });
        Var(self.f.vars.len() as u32 - 1)
    }
    /// A new parameter.
    pub fn param(&mut self, name: impl Into<Name>, ty: Type) -> Var {
        let name = name.into();
        let var = self.var(ty, Some(name.clone()));
        self.f.params.push(Port { name, var });
        var
    }
    /// A new result.
    pub fn result(&mut self, name: impl Into<Name>, var: Var) {
        self.f.results.push(Port { name: name.into(), var });
    }
    /// Calls `v` by `name`, unless it has a name.
    pub fn name(&mut self, v: Var, name: impl Into<Name>) {
        let slot = &mut self.f.vars[v.index()].name;
        if slot.is_none() {
            *slot = Some(name.into());
        }
    }
    /// The type of `v`.
    pub fn ty(&self, v: Var) -> &Type {
        self.f.ty(v)
    }
    /// The element type of `v`.
    pub fn dtype(&self, v: Var) -> DType {
        self.ty(v).dtype
    }

    /// `op(args)`: the result of an equal earlier equation if there is one, else of a new one.
    ///
    /// # Errors
    /// Operands that do not fit, naming the operation and both sides.
    pub fn push(&mut self, op: Prim, args: &[Var]) -> Result<Var> {
        let types: Vec<&Type> = args.iter().map(|a| self.f.ty(*a)).collect();
        let ty = op.infer(&types).map_err(|m| Error { message: format!("{}: {}", op.name(), m.message), span: self.span, hint: m.hint })?;
        let key = (op, args.to_vec());
        if let Some(v) = self.known.get(&key) {
            return Ok(*v);
        }
        let out = self.var(ty, None);
        self.f.eqns.push(Eqn { out, op: key.0.clone(), args: args.to_vec(), origin: self.origin.clone(), span: self.span });
        self.known.insert(key, out);
        Ok(out)
    }

    /// An elementwise operation.
    pub fn elementwise(&mut self, e: Elementwise, args: &[Var]) -> Result<Var> {
        self.push(Prim::Elementwise(e), args)
    }
    /// `a + b`.
    pub fn add(&mut self, a: Var, b: Var) -> Result<Var> {
        self.elementwise(Elementwise::Add, &[a, b])
    }
    /// `a − b`.
    pub fn sub(&mut self, a: Var, b: Var) -> Result<Var> {
        self.elementwise(Elementwise::Sub, &[a, b])
    }
    /// `a·b`.
    pub fn mul(&mut self, a: Var, b: Var) -> Result<Var> {
        self.elementwise(Elementwise::Mul, &[a, b])
    }
    /// `a/b`.
    pub fn div(&mut self, a: Var, b: Var) -> Result<Var> {
        self.elementwise(Elementwise::Div, &[a, b])
    }
    /// The two factors of `v`, if it is a product of floats.
    pub fn product(&self, v: Var) -> Option<(Var, Var)> {
        let e = self.f.eqns.iter().rev().find(|e| e.out == v)?;
        match (&e.op, e.args.as_slice()) {
            (Prim::Elementwise(Elementwise::Mul), [x, y]) if self.dtype(v).is_float() => Some((*x, *y)),
            _ => None,
        }
    }
    /// A number.
    pub fn constant(&mut self, value: f64, dtype: DType) -> Var {
        let key = (Prim::Constant(Literal { value, dtype }), vec![]);
        if let Some(v) = self.known.get(&key) {
            return *v;
        }
        let out = self.var(Type::scalar(dtype), None);
        self.f.eqns.push(Eqn { out, op: key.0.clone(), args: vec![], origin: self.origin.clone(), span: self.span });
        self.known.insert(key, out);
        out
    }
    /// A size as a number.
    pub fn size(&mut self, d: Dim, dtype: DType) -> Result<Var> {
        self.push(Prim::Size(d, dtype), &[])
    }
    /// Positions along an axis.
    pub fn iota(&mut self, axis: Axis) -> Result<Var> {
        self.push(Prim::Iota(axis), &[])
    }
    /// Sum over axes.
    pub fn reduce_sum(&mut self, x: Var, axes: &[Name]) -> Result<Var> {
        self.push(Prim::Reduce(ReduceKind::Sum, axes.to_vec()), &[x])
    }
    /// Maximum over axes.
    pub fn reduce_max(&mut self, x: Var, axes: &[Name]) -> Result<Var> {
        self.push(Prim::Reduce(ReduceKind::Max, axes.to_vec()), &[x])
    }
    /// `Σ_axes a·b`.
    pub fn contract(&mut self, a: Var, b: Var, axes: &[Name]) -> Result<Var> {
        self.push(Prim::Contract(axes.to_vec()), &[a, b])
    }
    /// A movement.
    pub fn movement(&mut self, m: Movement, args: &[Var]) -> Result<Var> {
        self.push(Prim::Movement(m), args)
    }
    /// `x` in the order of `axes`; `x` itself if it has that order.
    pub fn permute(&mut self, x: Var, axes: &[Name]) -> Result<Var> {
        let same = self.ty(x).axes.iter().map(|a| &a.name).eq(axes);
        if same { Ok(x) } else { self.movement(Movement::Permute(axes.to_vec()), &[x]) }
    }
    /// `f(args)`: all results.
    ///
    /// # Errors
    /// Operands that have not exactly the parameters' types.
    pub fn call(&mut self, f: &Callee, args: &[Var]) -> Result<Vec<Var>> {
        (0..f.results.len()).map(|result| self.push(Prim::Call(Call { function: f.clone(), result }), args)).collect()
    }
    /// The operand without a tangent.
    pub fn stop_gradient(&mut self, x: Var) -> Result<Var> {
        self.push(Prim::StopGradient, &[x])
    }
}
