//! What holds of every function between passes.
//!
//! # Invariants
//! 1. Every value is a parameter or the result of exactly one equation, and is defined before it is used.
//! 2. Every result's type is what its operation infers from its operands.
//! 3. Parameter names are unique, result names are unique, and a name in both means one value.
//! 4. An axis name has one size in a function, and stands at most once in a type.
//! 5. A name that is an axis's and also stands in sizes means the size of that axis.
//! 6. All of this holds of the functions that it calls.
//! 7. Names of the function, its ports, axes and dimensions can be written in the text form; an axis may also be called by
//!    its number.

use crate::diagnostic::Error;
use crate::dim::{Dim, Name};
use crate::graph::{Eqn, Function, Port, Var};
use crate::text::is_word;
use crate::types::Type;
use std::collections::{BTreeMap, BTreeSet};

/// Checks the invariants.
///
/// # Errors
/// All that do not hold. Never panics, whatever the structure.
pub fn verify(f: &Function) -> Result<(), Vec<Error>> {
    let mut errors = vec![];
    definitions(f, &mut errors);
    ports(f, &mut errors);
    axes(f, &mut errors);
    for c in f.callees() {
        errors.extend(verify(&c).err().into_iter().flatten().map(|e| Error { message: format!("in `{}`: {}", c.name, e.message), ..e }));
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// A value as messages call it.
fn describe(f: &Function, v: Var) -> String {
    match f.vars.get(v.index()).map(|i| &i.name) {
        None => format!("value {} of {}", v.0, f.vars.len()),
        Some(None) => format!("value {}", v.0),
        Some(Some(n)) => format!("`{n}` (value {})", v.0),
    }
}

/// Invariants 1 and 2.
fn definitions(f: &Function, errors: &mut Vec<Error>) {
    let known = |v: Var| v.index() < f.vars.len();
    let mut defined = vec![false; f.vars.len()];
    for p in &f.params {
        match defined.get_mut(p.var.index()) {
            None => errors.push(Error::new(format!("parameter `{}` is {}", p.name, describe(f, p.var)))),
            Some(true) => errors.push(Error::new(format!("parameter `{}` defines {} a second time", p.name, describe(f, p.var)))),
            Some(d) => *d = true,
        }
    }
    for e in &f.eqns {
        let fail = |m: String, hint: Option<String>| Error { message: format!("{}: {m}", e.op.name()), span: e.span, hint };
        if let Some(a) = e.args.iter().find(|a| !known(**a) || !defined[a.index()]) {
            errors.push(fail(format!("operand {} is used before it is defined", describe(f, *a)), None));
        } else if known(e.out) {
            let types: Vec<&Type> = e.args.iter().map(|a| f.ty(*a)).collect();
            match e.op.infer(&types) {
                Err(m) => errors.push(fail(m.message, m.hint)),
                Ok(t) if t != *f.ty(e.out) => {
                    errors.push(fail(format!("the result {} is {}, but its operands make {t}", describe(f, e.out), f.ty(e.out)), None));
                }
                Ok(_) => {}
            }
        }
        match defined.get_mut(e.out.index()) {
            None => errors.push(fail(format!("the result is {}", describe(f, e.out)), None)),
            Some(true) => errors.push(fail(format!("the result {} is defined a second time", describe(f, e.out)), None)),
            Some(d) => *d = true,
        }
    }
    for r in f.results.iter().filter(|r| !known(r.var) || !defined[r.var.index()]) {
        errors.push(Error::new(format!("result `{}`, {}, is never defined", r.name, describe(f, r.var))));
    }
}

/// Invariant 3, and 7 for the names of the function and its ports.
fn ports(f: &Function, errors: &mut Vec<Error>) {
    if !is_word(&f.name) {
        errors.push(Error::new(format!("the function's name {:?} cannot be written", f.name)));
    }
    let mut both: BTreeMap<&Name, Var> = BTreeMap::new();
    for (what, ports) in [("parameter", &f.params), ("result", &f.results)] {
        let mut seen: BTreeSet<&Name> = BTreeSet::new();
        for Port { name, var } in ports {
            if !is_word(name) {
                errors.push(Error::new(format!("the name {name:?} of a {what} cannot be written")));
            }
            if !seen.insert(name) {
                errors.push(Error::new(format!("{what} `{name}` is named twice")));
            } else if *both.entry(name).or_insert(*var) != *var {
                errors.push(Error::new(format!("`{name}` is a parameter and another value's result name")));
            }
        }
    }
}

/// Invariants 4 and 5, and 7 for axes and dimensions. One message for each name.
fn axes(f: &Function, errors: &mut Vec<Error>) {
    let mut sizes: BTreeMap<&Name, &Dim> = BTreeMap::new();
    let mut dims: BTreeSet<Name> = BTreeSet::new();
    let mut wrong: BTreeSet<&Name> = BTreeSet::new();
    for v in &f.vars {
        for (i, a) in v.ty.axes.iter().enumerate() {
            if v.ty.axes[..i].iter().any(|b| b.name == a.name) && wrong.insert(&a.name) {
                errors.push(Error::new(format!("axis `{}` stands twice in {}", a.name, v.ty)));
            }
            let have = *sizes.entry(&a.name).or_insert(&a.size);
            if *have != a.size && wrong.insert(&a.name) {
                errors.push(Error::new(format!("axis `{}` has size {have} in one type and {} in another", a.name, a.size)));
            }
            dims.extend(a.size.symbols());
        }
    }
    for Eqn { op, .. } in &f.eqns {
        let found = std::cell::RefCell::new(vec![]);
        op.clone().map_dims(&|d| {
            found.borrow_mut().extend(d.symbols());
            d.clone()
        });
        dims.extend(found.into_inner());
    }
    for d in &dims {
        match sizes.get(d) {
            Some(size) if size.as_sym() != Some(d) => {
                errors.push(Error::new(format!("axis `{d}` has size {size}, but sizes name `{d}` as a size of its own")));
            }
            None if !is_word(d) => errors.push(Error::new(format!("the name {d:?} of a size cannot be written"))),
            _ => {}
        }
    }
    for (n, size) in sizes {
        let number = size.as_fixed().is_some_and(|k| k >= 0 && *k.to_string() == **n);
        if !is_word(n) && !number {
            errors.push(Error::new(format!("the name {n:?} of an axis cannot be written")));
        }
    }
}
