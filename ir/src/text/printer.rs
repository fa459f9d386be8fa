//! Functions to text: one primitive a line.

use crate::dim::Name;
use crate::graph::{Function, Module, Var};
use crate::prim::{Elementwise, Movement, Prim};
use crate::types::Axis;
use std::collections::{BTreeMap, BTreeSet};

/// The module as text that parses to it.
pub fn print(m: &Module) -> String {
    m.functions.iter().map(print_function).collect::<Vec<_>>().join("\n")
}

/// The function as text that parses to it; the rule that made an equation stands beside it as a comment.
pub fn print_function(f: &Function) -> String {
    let names = unique_names(f);
    let name = |v: Var| names[v.index()].as_str();
    let ports = |ports: &[crate::graph::Port]| {
        ports.iter().map(|p| format!("{}: {}", p.name, f.ty(p.var))).collect::<Vec<_>>().join(", ")
    };
    let mut out = format!("fn {}({}) -> ({}) {{\n", f.name, ports(&f.params), ports(&f.results));
    for e in &f.eqns {
        let args: Vec<&str> = e.args.iter().map(|a| name(*a)).collect();
        out += &format!("  {} = {}", name(e.out), call(&e.op, &args));
        if let Some(o) = &e.origin {
            out += &format!("  // {o}");
        }
        out += "\n";
    }
    for r in f.results.iter().filter(|r| *name(r.var) != *r.name) {
        out += &format!("  {} = {}\n", r.name, name(r.var));
    }
    out + "}\n"
}

/// One equation's right side.
fn call(op: &Prim, args: &[&str]) -> String {
    let axes = |a: &[Axis]| a.iter().map(Axis::to_string).collect::<Vec<_>>().join(",");
    let list = |n: &[Name]| n.iter().map(|n| &**n).collect::<Vec<_>>().join(",");
    let extra = match op {
        Prim::Elementwise(Elementwise::Convert(d)) => d.to_string(),
        Prim::Elementwise(_) | Prim::StopGradient => String::new(),
        Prim::Reduce(_, n) | Prim::Contract(n) => format!("[{}]", list(n)),
        Prim::Constant(c) => format!("{:?}, {}", c.value, c.dtype),
        Prim::Size(d, t) => format!("{d}, {t}"),
        Prim::Iota(a) => a.to_string(),
        Prim::Movement(m) => match m {
            Movement::Rename { from, to } => format!("{from} -> {to}"),
            Movement::Split { axis, into } => format!("{axis} -> [{}]", axes(into)),
            Movement::Merge { axes, into } => format!("[{}] -> {into}", list(axes)),
            Movement::Permute(n) => format!("[{}]", list(n)),
            Movement::Broadcast(a) => format!("[{}]", axes(a)),
            Movement::Slice { axis, to, start } => format!("{axis} -> {to}, {start}"),
            Movement::Index { axis, at } => format!("{axis}, {at}"),
            Movement::Concat { axes, into } => format!("[{}] -> {into}", list(axes)),
            Movement::Stack(a) => a.to_string(),
        },
    };
    let parts: Vec<&str> = args.iter().copied().chain((!extra.is_empty()).then_some(extra.as_str())).collect();
    format!("{}({})", op.name(), parts.join(", "))
}

/// A name for each value: its own where free, else numbered; never one of an axis, a dimension or another port.
fn unique_names(f: &Function) -> Vec<String> {
    let mut taken: BTreeSet<String> = ["inf", "nan"].map(String::from).into();
    for v in &f.vars {
        for a in &v.ty.axes {
            taken.insert(a.name.to_string());
            taken.extend(a.size.symbols().iter().map(|s| s.to_string()));
        }
    }
    let mut fixed: BTreeMap<Var, String> = BTreeMap::new();
    for p in f.params.iter().chain(&f.results) {
        taken.insert(p.name.to_string());
        fixed.entry(p.var).or_insert_with(|| p.name.to_string());
    }
    (0..f.vars.len())
        .map(|i| {
            if let Some(n) = fixed.get(&Var(i as u32)) {
                return n.clone();
            }
            let hint = f.vars[i].name.as_deref();
            let candidates = hint.map(String::from).into_iter().chain((0..).map(|k| match (hint, k) {
                (Some(h), k) => format!("{h}_{}", k + 2),
                (None, 0) => format!("x{i}"),
                (None, k) => format!("x{i}_{}", k + 1),
            }));
            let name = candidates.into_iter().find(|n| !taken.contains(n)).unwrap_or_default();
            taken.insert(name.clone());
            name
        })
        .collect()
}
