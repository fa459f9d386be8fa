//! Programs: modules of pure functions in single assignment.

use crate::diagnostic::Span;
use crate::dim::{Bindings, Dim, Name};
use crate::prim::{Callee, Prim};
use crate::types::{Axis, Type};
use serde::{Deserialize, Serialize};

/// A value of a function: a position in [`Function::vars`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Var(pub u32);

impl Var {
    /// As a position in [`Function::vars`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What is known of a value.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct VarInfo {
    /// Its type.
    pub ty: Type,
    /// What people call it, not necessarily unique.
    pub name: Option<Name>,
}

/// An equation: one operation and its one result.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Eqn {
    /// The result.
    pub out: Var,
    /// The operation.
    pub op: Prim,
    /// The operands.
    pub args: Vec<Var>,
    /// Which rule made it (`jvp:mul`), if not a person.
    pub origin: Option<Name>,
    /// Where it stands in the text, if anywhere.
    #[serde(skip)]
    pub span: Option<Span>,
}

/// A parameter or a result: a value under the name by which callers know it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Port {
    /// The name; tangents are `NAME.t`.
    pub name: Name,
    /// The value.
    pub var: Var,
}

/// A pure function: parameters, equations in order of definition, results.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Function {
    /// Its name.
    pub name: Name,
    /// Parameters.
    pub params: Vec<Port>,
    /// Results.
    pub results: Vec<Port>,
    /// Equations; every operand is a parameter or an earlier result.
    pub eqns: Vec<Eqn>,
    /// Values by [`Var`].
    pub vars: Vec<VarInfo>,
}

impl Function {
    /// The type of `v`.
    pub fn ty(&self, v: Var) -> &Type {
        &self.vars[v.index()].ty
    }
    /// The parameter called `name`.
    pub fn param(&self, name: &str) -> Option<Var> {
        self.params.iter().find(|p| *p.name == *name).map(|p| p.var)
    }
    /// The equation that defines each value, by [`Var`]; `None` for parameters.
    pub fn definitions(&self) -> Vec<Option<usize>> {
        let mut d = vec![None; self.vars.len()];
        for (i, e) in self.eqns.iter().enumerate() {
            d[e.out.index()] = Some(i);
        }
        d
    }
    /// How often each value is read, by [`Var`]: as an operand, and as a result.
    pub fn uses(&self) -> Vec<usize> {
        let mut n = vec![0; self.vars.len()];
        self.eqns.iter().flat_map(|e| &e.args).chain(self.results.iter().map(|r| &r.var)).for_each(|v| n[v.index()] += 1);
        n
    }
    /// Dimension names in types and operations, sorted.
    pub fn dims(&self) -> Vec<Name> {
        let mut names: Vec<Name> = self.vars.iter().flat_map(|v| v.ty.axes.iter().flat_map(|a| a.size.symbols())).collect();
        self.callees().iter().for_each(|f| names.extend(f.dims()));
        names.sort();
        names.dedup();
        names
    }
    /// Functions that this one calls, in order of first call, each once; not what they call in turn.
    pub fn callees(&self) -> Vec<Callee> {
        let mut all: Vec<Callee> = vec![];
        for e in &self.eqns {
            if let Prim::Call(c) = &e.op {
                if !all.contains(&c.function) {
                    all.push(c.function.clone());
                }
            }
        }
        all
    }
    /// Numbers for the dimension names in parameter shapes, from actual shapes.
    ///
    /// # Errors
    /// The parameter, the axis and both sizes where they disagree.
    pub fn bind(&self, shape: &dyn Fn(&str) -> Option<Vec<usize>>, given: &Bindings) -> Result<Bindings, String> {
        let mut b = given.clone();
        // Bare names first, so that `H/G` finds its names whatever the order of parameters.
        for bare in [true, false] {
            for p in &self.params {
                let Some(actual) = shape(&p.name) else { continue };
                let ty = self.ty(p.var);
                if actual.len() != ty.axes.len() {
                    return Err(format!("input `{}` has shape {actual:?}, but the parameter is {ty}", p.name));
                }
                for (a, n) in ty.axes.iter().zip(&actual) {
                    let n = *n as i64;
                    match (a.size.as_sym(), bare) {
                        (Some(s), true) => {
                            let have = *b.entry(s.clone()).or_insert(n);
                            if have != n {
                                return Err(format!("dimension `{s}` is {have}, but {n} in input `{}` of shape {actual:?} ({ty})", p.name));
                            }
                        }
                        (None, false) => match a.size.eval(&b) {
                            Ok(have) if have == n => {}
                            Ok(have) => return Err(format!("axis `{a}` of input `{}` must be {have}, but is {n} in shape {actual:?}", p.name)),
                            Err(e) => return Err(format!("axis `{a}` of input `{}`: {e}; give it with --dim", p.name)),
                        },
                        _ => {}
                    }
                }
            }
        }
        for v in &self.vars {
            for a in &v.ty.axes {
                match a.size.eval(&b) {
                    Ok(n) if n < 0 => return Err(format!("axis `{a}` of {} would have size {n}", v.ty)),
                    Err(e @ crate::dim::DimError::NotWhole(_)) => return Err(format!("axis `{a}` of {}: {e}", v.ty)),
                    _ => {}
                }
            }
        }
        Ok(b)
    }
    /// The same function with dimension names replaced by numbers.
    pub fn specialize(&self, b: &Bindings) -> Function {
        let mut f = self.clone();
        f.map_dims(&|d| d.bind(b));
        f
    }
    fn map_dims(&mut self, f: &dyn Fn(&Dim) -> Dim) {
        self.vars.iter_mut().flat_map(|v| &mut v.ty.axes).for_each(|a| a.size = f(&a.size));
        self.eqns.iter_mut().for_each(|e| e.op.map_dims(f));
    }
}

impl Prim {
    /// Replaces every size in the operation.
    pub fn map_dims(&mut self, f: &dyn Fn(&Dim) -> Dim) {
        use crate::prim::Movement::*;
        let axis = |a: &mut Axis| a.size = f(&a.size);
        match self {
            Prim::Size(d, _) => *d = f(d),
            Prim::Iota(a) => axis(a),
            Prim::Movement(m) => match m {
                Rename { to, .. } => axis(to),
                Split { into, .. } => into.iter_mut().for_each(axis),
                Merge { into, .. } | Concat { into, .. } => axis(into),
                Broadcast(axes) => axes.iter_mut().for_each(axis),
                Stack(a) => axis(a),
                Slice { to, start, .. } => {
                    axis(to);
                    *start = f(start);
                }
                Index { at, .. } => *at = f(at),
                Permute(_) => {}
            },
            Prim::Call(c) => {
                let mut callee = (*c.function.0).clone();
                callee.map_dims(f);
                c.function = Callee(callee.into());
            }
            Prim::Elementwise(_) | Prim::Reduce(..) | Prim::Contract(_) | Prim::Constant(_) | Prim::StopGradient => {}
        }
    }
}

/// Functions, by name.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Module {
    /// In order of definition.
    pub functions: Vec<Function>,
}

impl Module {
    /// The function called `name`, or the only (else first) one.
    ///
    /// # Errors
    /// The names that there are.
    pub fn function(&self, name: Option<&str>) -> Result<&Function, String> {
        let names = || self.functions.iter().map(|f| &*f.name).collect::<Vec<_>>().join(", ");
        match name {
            None => self.functions.first().ok_or_else(|| "the module has no function".into()),
            Some(n) => self.functions.iter().find(|f| *f.name == *n).ok_or_else(|| format!("no function `{n}`; there are: {}", names())),
        }
    }
}
