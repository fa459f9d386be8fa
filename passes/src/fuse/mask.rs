//! Masks that are inequalities of positions: `j <= i + off & j < length[b]` as constraints, which also bound the loop.

use ir::dim::Dim;
use ir::dim::Name;
use ir::graph::{Function, Var};
use ir::prim::{Elementwise, Prim};
use std::collections::BTreeMap;

/// `Σ coef·position + constant + Σ coef·scalar ≥ 0`, by names and values of the function.
#[derive(Clone, PartialEq, Debug)]
pub struct Inequality {
    /// Coefficients of positions.
    pub axes: BTreeMap<Name, i64>,
    /// The constant.
    pub constant: Dim,
    /// Read integers.
    pub scalars: BTreeMap<Var, i64>,
}

impl Inequality {
    fn plus(&self, o: &Inequality, k: i64) -> Inequality {
        let mut r = self.clone();
        for (n, c) in &o.axes {
            *r.axes.entry(n.clone()).or_insert(0) += k * c;
        }
        for (v, c) in &o.scalars {
            *r.scalars.entry(*v).or_insert(0) += k * c;
        }
        r.axes.retain(|_, c| *c != 0);
        r.scalars.retain(|_, c| *c != 0);
        r.constant = &r.constant + &(&Dim::fixed(k) * &o.constant);
        r
    }
    fn constant(d: Dim) -> Inequality {
        Inequality { axes: BTreeMap::new(), constant: d, scalars: BTreeMap::new() }
    }
}

/// The inequalities that all hold exactly where the truth value `v` does; `None` if it is not such a conjunction.
/// `scalar` says whether an integer value is read and has no axis that an instance walks.
pub fn inequalities(f: &Function, definitions: &[Option<usize>], scalar: &dyn Fn(Var) -> bool, v: Var) -> Option<Vec<Inequality>> {
    use Elementwise::*;
    let e = &f.eqns[definitions[v.index()]?];
    let Prim::Elementwise(op) = &e.op else { return None };
    let side = |i: usize| affine(f, definitions, scalar, e.args[i]);
    let one = Inequality::constant(Dim::fixed(-1));
    match op {
        And => {
            let mut all = inequalities(f, definitions, scalar, e.args[0])?;
            all.extend(inequalities(f, definitions, scalar, e.args[1])?);
            Some(all)
        }
        Le => Some(vec![side(1)?.plus(&side(0)?, -1)]),
        Ge => Some(vec![side(0)?.plus(&side(1)?, -1)]),
        // Whole numbers: a < b is b − a − 1 ≥ 0.
        Lt => Some(vec![side(1)?.plus(&side(0)?, -1).plus(&one, 1)]),
        Gt => Some(vec![side(0)?.plus(&side(1)?, -1).plus(&one, 1)]),
        _ => None,
    }
}

fn affine(f: &Function, definitions: &[Option<usize>], scalar: &dyn Fn(Var) -> bool, v: Var) -> Option<Inequality> {
    if f.ty(v).dtype != ir::types::DType::I32 {
        return None;
    }
    let zero = Inequality::constant(Dim::fixed(0));
    if scalar(v) {
        return Some(Inequality { scalars: [(v, 1)].into(), ..zero });
    }
    let e = &f.eqns[definitions[v.index()]?];
    let side = |i: usize| affine(f, definitions, scalar, e.args[i]);
    match &e.op {
        Prim::Iota(a) => Some(Inequality { axes: [(a.name.clone(), 1)].into(), ..zero }),
        Prim::Size(d, _) => Some(Inequality::constant(d.clone())),
        Prim::Constant(c) if c.value.fract() == 0.0 && c.value.abs() < 1e9 => Some(Inequality::constant(Dim::fixed(c.value as i64))),
        Prim::Elementwise(Elementwise::Add) => Some(side(0)?.plus(&side(1)?, 1)),
        Prim::Elementwise(Elementwise::Sub) => Some(side(0)?.plus(&side(1)?, -1)),
        Prim::Elementwise(Elementwise::Neg) => Some(zero.plus(&side(0)?, -1)),
        _ => None,
    }
}
