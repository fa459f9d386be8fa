//! What a function costs, counted on its equations: two operations for each product of a contraction, one for each element of an
//! elementwise result. A callee is counted once and multiplied by its calls.

use ir::dim::{Bindings, Dim, DimError};
use ir::graph::Function;
use ir::prim::{Callee, Elementwise, Kind, Prim};
use std::collections::BTreeMap;

/// Operations of one run.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Cost {
    /// In contractions between values that both have rows (attention's two products): their cost grows with the square of the length.
    pub attention: f64,
    /// In contractions with a parameter, linear layers.
    pub linear: f64,
    /// Elementwise and reductions.
    pub other: f64,
}

impl Cost {
    /// All operations.
    pub fn flops(&self) -> f64 {
        self.attention + self.linear + self.other
    }
    /// Those of contractions, by which programs are compared.
    pub fn products(&self) -> f64 {
        self.attention + self.linear
    }
    fn add(&mut self, o: Cost) {
        self.attention += o.attention;
        self.linear += o.linear;
        self.other += o.other;
    }
}

/// The cost of `f` for sizes `dims`.
///
/// # Errors
/// A size without a number.
pub fn cost(f: &Function, dims: &Bindings) -> Result<Cost, DimError> {
    count(f, dims, &mut vec![])
}

fn count(f: &Function, dims: &Bindings, known: &mut Vec<(Callee, Cost)>) -> Result<Cost, DimError> {
    // Callees of a network are few; their results' equations share one call, which is counted at its first result.
    let mut total = Cost::default();
    let mut called: BTreeMap<(usize, &[ir::graph::Var]), ()> = BTreeMap::new();
    let number = |axes: &mut dyn Iterator<Item = &Dim>| -> Result<f64, DimError> {
        let mut n = 1.0;
        for d in axes {
            n *= d.eval(dims)? as f64;
        }
        Ok(n)
    };
    for e in &f.eqns {
        let ty = f.ty(e.out);
        match &e.op {
            Prim::Call(c) => {
                let at = match known.iter().position(|(k, _)| *k == c.function) {
                    Some(i) => i,
                    None => {
                        let inner = count(&c.function, dims, known)?;
                        known.push((c.function.clone(), inner));
                        known.len() - 1
                    }
                };
                if called.insert((at, &e.args), ()).is_none() {
                    total.add(known[at].1);
                }
            }
            Prim::Contract(over) => {
                let (a, b) = (f.ty(e.args[0]), f.ty(e.args[1]));
                let summed = over.iter().filter_map(|n| a.axis(n).or_else(|| b.axis(n))).map(|x| &x.size);
                let flops = 2.0 * number(&mut ty.axes.iter().map(|x| &x.size).chain(summed))?;
                // A weight, or a table, has sizes that are the network's own.
                let own = |t: &ir::types::Type| t.axes.iter().all(|x| x.size.as_fixed().is_some());
                let weight = own(a) || own(b) || own(ty);
                if weight { total.linear += flops } else { total.attention += flops }
            }
            Prim::Elementwise(Elementwise::Convert(_)) => {}
            Prim::Elementwise(op) if op.kind() == Kind::Zero => {}
            Prim::Elementwise(_) => total.other += number(&mut ty.axes.iter().map(|x| &x.size))?,
            Prim::Reduce(..) => total.other += number(&mut f.ty(e.args[0]).axes.iter().map(|x| &x.size))?,
            Prim::Movement(_) | Prim::Constant(_) | Prim::Size(..) | Prim::Iota(_) | Prim::StopGradient => {}
        }
    }
    Ok(total)
}
