//! Terms back to equations.

use super::language::{Node, Op, Types, operand_order};
use egg::Id;
use ir::builder::Builder;
use ir::diagnostic::Error;
use ir::dim::Name;
use ir::graph::{Function, Var};
use ir::prim::{Elementwise, Movement, Prim};
use ir::types::{Axis, DType, Type};
use std::collections::HashMap;

/// What a term became.
#[derive(Clone, Copy, Debug)]
enum Value {
    /// A number of no particular element type.
    Number(f64),
    Var(Var),
}

/// Where terms come from: the node of a class, and what people call it.
pub struct Source<'a, const S: bool> {
    /// The node that stands for a class, its operands canonical.
    pub node: &'a dyn Fn(Id) -> Node<S>,
    /// Names of classes.
    pub names: &'a HashMap<Id, Name>,
    /// Types of parameters and opaque operations.
    pub types: &'a Types,
}

/// A result: its name, its type if that is fixed beforehand, and its term.
pub type Port = (Name, Option<Type>, Id);

/// The function `name` of `params` whose results are terms.
///
/// # Errors
/// Those of the builder, which mean a term that is not well typed.
pub fn function<const S: bool>(name: &Name, params: &[(Name, Type)], source: &Source<S>, results: &[Port]) -> Result<Function, Error> {
    let mut b = Builder::new(name.clone());
    let params = params.iter().map(|(n, t)| b.param(n.clone(), t.clone())).collect();
    let mut e = Emit { source, b, params, known: HashMap::new() };
    for (name, ty, id) in results {
        let mut v = e.var(*id, ty.as_ref().map_or(DType::F32, |t| t.dtype))?;
        if let Some(ty) = ty {
            let missing: Vec<Axis> = ty.axes.iter().filter(|a| !e.b.ty(v).has(&a.name)).cloned().collect();
            v = if missing.is_empty() { v } else { e.b.movement(Movement::Broadcast(missing), &[v])? };
            let order: Vec<Name> = ty.axes.iter().map(|a| a.name.clone()).collect();
            v = e.b.permute(v, &order)?;
        }
        e.b.name(v, name.clone());
        e.b.result(name.clone(), v);
    }
    Ok(e.b.finish())
}

struct Emit<'a, const S: bool> {
    source: &'a Source<'a, S>,
    b: Builder,
    params: Vec<Var>,
    known: HashMap<Id, Value>,
}

impl<const S: bool> Emit<'_, S> {
    fn node(&self, id: Id) -> Node<S> {
        (self.source.node)(id)
    }
    fn number(&self, id: Id) -> Option<f64> {
        if let Op::Number(b) = self.node(id).op { Some(f64::from_bits(b)) } else { None }
    }
    /// What `id` is one over.
    fn inverse(&self, id: Id) -> Option<Id> {
        let n = self.node(id);
        (n.op == Op::Inv).then(|| n.args[0])
    }
    fn var(&mut self, id: Id, like: DType) -> Result<Var, Error> {
        Ok(match self.value(id)? {
            Value::Var(v) => v,
            Value::Number(x) => self.b.constant(x, like),
        })
    }
    fn value(&mut self, id: Id) -> Result<Value, Error> {
        if let Some(v) = self.known.get(&id) {
            return Ok(*v);
        }
        let v = self.make(id)?;
        if let (Value::Var(v), Some(n)) = (v, self.source.names.get(&id)) {
            self.b.name(v, n.clone());
        }
        self.known.insert(id, v);
        Ok(v)
    }
    /// The element type of the first of `ids` that has one.
    fn dtype(&mut self, ids: &[Id]) -> Result<DType, Error> {
        for id in ids {
            if let Value::Var(v) = self.value(*id)? {
                return Ok(self.b.dtype(v));
            }
        }
        Ok(DType::F32)
    }
    fn make(&mut self, id: Id) -> Result<Value, Error> {
        let n = self.node(id);
        let var = |v: Var| Ok(Value::Var(v));
        match &n.op {
            Op::Axes(_) => Err(Error::new("axes are no value")),
            Op::Number(b) => Ok(Value::Number(f64::from_bits(*b))),
            Op::Param(i) => var(self.params[*i as usize]),
            Op::Add => {
                let d = self.dtype(&n.args)?;
                let (x, y) = (self.signed(n.args[0], d)?, self.signed(n.args[1], d)?);
                var(match (x, y) {
                    ((x, false), (y, false)) => self.b.add(x, y)?,
                    ((x, false), (y, true)) => self.b.sub(x, y)?,
                    ((x, true), (y, false)) => self.b.sub(y, x)?,
                    ((x, true), (y, true)) => {
                        let s = self.b.add(x, y)?;
                        self.b.elementwise(Elementwise::Neg, &[s])?
                    }
                })
            }
            Op::Mul => {
                let d = self.dtype(&n.args)?;
                let (x, negative) = self.signed(id, d)?;
                if negative { var(self.b.elementwise(Elementwise::Neg, &[x])?) } else { var(x) }
            }
            Op::Inv => {
                let d = self.dtype(&n.args)?;
                let (one, x) = (self.b.constant(1.0, d), self.var(n.args[0], d)?);
                var(self.b.div(one, x)?)
            }
            Op::Exp => {
                let x = self.var(n.args[0], DType::F32)?;
                var(self.b.elementwise(Elementwise::Exp, &[x])?)
            }
            Op::Sum => {
                let Op::Axes(over) = self.node(n.args[0]).op else { return Err(Error::new("a sum over no axes")) };
                let over: Vec<Name> = over.into_iter().collect();
                var(self.sum(&over, n.args[1])?)
            }
            Op::Opaque(k) => {
                let op = self.source.types.prims[*k as usize].clone();
                let mut args = vec![];
                for (i, a) in n.args.iter().enumerate() {
                    let v = self.var(*a, DType::F32)?;
                    let joins = matches!(op, Prim::Call(_) | Prim::Movement(Movement::Concat { .. } | Movement::Stack(_)));
                    let order: Vec<Name> = operand_order(&op, i, &self.b.ty(v).axes).into_iter().map(|a| a.name).collect();
                    args.push(if joins { self.b.permute(v, &order)? } else { v });
                }
                var(self.b.push(op, &args)?)
            }
        }
    }
    /// `id` without its sign, and whether that is minus: `a + (−1)·b` is a difference.
    fn signed(&mut self, id: Id, d: DType) -> Result<(Var, bool), Error> {
        let n = self.node(id);
        if n.op != Op::Mul {
            return Ok((self.var(id, d)?, false));
        }
        let (p, q) = (n.args[0], n.args[1]);
        let (number, rest) = match (self.number(p), self.number(q)) {
            (Some(x), _) => (x, q),
            (_, Some(x)) => (x, p),
            _ => return Ok((self.product(p, q)?, false)),
        };
        let negative = number < 0.0;
        let x = number.abs();
        if let (Some(under), true) = (self.inverse(rest), x != 1.0) {
            let (x, under) = (self.b.constant(x, d), self.var(under, d)?);
            return Ok((self.b.div(x, under)?, negative));
        }
        let rest = self.var(rest, d)?;
        if x == 1.0 {
            return Ok((rest, negative));
        }
        let x = self.b.constant(x, d);
        Ok((self.b.mul(x, rest)?, negative))
    }
    /// `p·q`, a quotient where one is an inverse, the narrower operand first.
    fn product(&mut self, p: Id, q: Id) -> Result<Var, Error> {
        let d = self.dtype(&[p, q])?;
        for (over, under) in [(p, q), (q, p)] {
            if let Some(under) = self.inverse(under) {
                let (over, under) = (self.var(over, d)?, self.var(under, d)?);
                return self.b.div(over, under);
            }
        }
        let (x, y) = (self.var(p, d)?, self.var(q, d)?);
        if self.b.ty(x).axes.len() <= self.b.ty(y).axes.len() { self.b.mul(x, y) } else { self.b.mul(y, x) }
    }
    /// `Σ_over body`: a contraction where neither factor has the axes of both. An axis that the body lacks is an error of the builder.
    fn sum(&mut self, over: &[Name], body: Id) -> Result<Var, Error> {
        let n = self.node(body);
        if n.op == Op::Mul {
            let (p, q) = (n.args[0], n.args[1]);
            let plain = |id: Id| self.number(id).is_none() && self.inverse(id).is_none();
            if let Some((x, rest)) = self.number(p).map(|x| (x, q)).or(self.number(q).map(|x| (x, p))) {
                let s = self.sum(over, rest)?;
                let d = self.b.dtype(s);
                let x = self.b.constant(x, d);
                return self.b.mul(x, s);
            }
            if plain(p) && plain(q) {
                let d = self.dtype(&[p, q])?;
                let (x, y) = (self.var(p, d)?, self.var(q, d)?);
                let (tx, ty) = (self.b.ty(x), self.b.ty(y));
                if !tx.covers(ty) && !ty.covers(tx) {
                    return self.b.contract(x, y, over);
                }
            }
        }
        let x = self.var(body, DType::F32)?;
        self.b.reduce_sum(x, over)
    }
}
