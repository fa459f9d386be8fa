//! What holds of every function between passes.
//!
//! # Invariants
//! 1. Every value is a parameter or the result of exactly one equation, and is defined before it is used.
//! 2. Every result's type is what its operation infers from its operands.
//! 3. Parameter names are unique, result names are unique, and a name in both means one value.
//! 4. An axis name has one size in a function, and stands at most once in a type.

use crate::diagnostic::Error;
use crate::dim::{Dim, Name};
use crate::graph::{Function, Port, Var};
use crate::types::Type;
use std::collections::BTreeMap;

/// Checks the invariants.
///
/// # Errors
/// All that do not hold. Never panics, whatever the structure.
pub fn verify(f: &Function) -> Result<(), Vec<Error>> {
    let mut errors = vec![];
    let mut defined = vec![false; f.vars.len()];
    let known = |v: Var| v.index() < f.vars.len();
    let mut define = |v: Var, what: &str, errors: &mut Vec<Error>| match defined.get_mut(v.index()) {
        None => errors.push(Error::new(format!("{what} is value {}, but there are {}", v.0, f.vars.len()))),
        Some(d) if *d => errors.push(Error::new(format!("{what} defines value {} a second time", v.0))),
        Some(d) => *d = true,
    };
    for p in &f.params {
        define(p.var, &format!("parameter `{}`", p.name), &mut errors);
    }
    let mut seen = vec![false; f.vars.len()];
    f.params.iter().filter(|p| known(p.var)).for_each(|p| seen[p.var.index()] = true);
    for e in &f.eqns {
        let place = |m: String| Error { message: format!("{}: {m}", e.op.name()), span: e.span, hint: None };
        define(e.out, &format!("the result of {}", e.op.name()), &mut errors);
        let undefined = e.args.iter().find(|a| !known(**a) || !seen[a.index()]);
        if let Some(a) = undefined {
            errors.push(place(format!("operand {} is used before it is defined", a.0)));
        } else if known(e.out) {
            let types: Vec<&Type> = e.args.iter().map(|a| f.ty(*a)).collect();
            match e.op.infer(&types) {
                Err(m) => errors.push(place(m.message)),
                Ok(t) if t != *f.ty(e.out) => errors.push(place(format!("the result is {}, but its operands make {t}", f.ty(e.out)))),
                Ok(_) => {}
            }
        }
        if known(e.out) {
            seen[e.out.index()] = true;
        }
    }
    for r in f.results.iter().filter(|r| !known(r.var) || !seen[r.var.index()]) {
        errors.push(Error::new(format!("result `{}` is never defined", r.name)));
    }
    for (what, ports) in [("parameter", &f.params), ("result", &f.results)] {
        for (i, p) in ports.iter().enumerate() {
            if ports[..i].iter().any(|q: &Port| q.name == p.name) {
                errors.push(Error::new(format!("{what} `{}` is named twice", p.name)));
            }
        }
    }
    for r in &f.results {
        if f.params.iter().any(|p| p.name == r.name && p.var != r.var) {
            errors.push(Error::new(format!("`{}` is a parameter and another value's result name", r.name)));
        }
    }
    let mut sizes: BTreeMap<&Name, &Dim> = BTreeMap::new();
    for v in &f.vars {
        for (i, a) in v.ty.axes.iter().enumerate() {
            if v.ty.axes[..i].iter().any(|b| b.name == a.name) {
                errors.push(Error::new(format!("axis `{}` stands twice in {}", a.name, v.ty)));
            }
            let have = sizes.entry(&a.name).or_insert(&a.size);
            if **have != a.size {
                errors.push(Error::new(format!("axis `{}` is {have} in one type and {} in another", a.name, a.size)));
            }
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}
