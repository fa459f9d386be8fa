//! Functions to text: one primitive a line.

use crate::dim::Name;
use crate::graph::{Function, Module, Port, Var};
use crate::prim::{Callee, Elementwise, Movement, Prim};
use crate::types::Axis;
use std::collections::{BTreeMap, BTreeSet};

/// What is printed beside the program itself.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The rule that made an equation, as a comment beside it: `// jvp:mul`.
    pub origins: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { origins: true }
    }
}

/// The module as text that parses to it.
pub fn print(m: &Module) -> String {
    m.functions.iter().map(|f| print_one(f, Options::default())).collect::<Vec<_>>().join("\n")
}

/// The function as text that parses to it, and behind it every function that it calls; the rule that made an equation stands beside
/// it as a comment.
pub fn print_function(f: &Function) -> String {
    print_with(f, Options::default())
}

/// The function as text that parses to it, and behind it every function that it calls.
pub fn print_with(f: &Function, options: Options) -> String {
    let mut all: Vec<Callee> = vec![];
    let mut open = f.callees();
    open.reverse();
    while let Some(c) = open.pop() {
        if !all.contains(&c) {
            open.extend(c.callees().into_iter().rev());
            all.push(c);
        }
    }
    let rest = all.iter().map(|c| format!("\n{}", print_one(c, options)));
    std::iter::once(print_one(f, options)).chain(rest).collect()
}

fn print_one(f: &Function, options: Options) -> String {
    let names = unique_names(f);
    let name = |v: Var| names[v.index()].as_str();
    let ports = |ports: &[Port]| ports.iter().map(|p| format!("{}: {}", p.name, f.ty(p.var))).collect::<Vec<_>>().join(", ");
    let axes: BTreeSet<&Name> = f.vars.iter().flat_map(|v| v.ty.axes.iter().map(|a| &a.name)).collect();
    let mut out = format!("fn {}({}) -> ({}) {{\n", f.name, ports(&f.params), ports(&f.results));
    for e in &f.eqns {
        let args: Vec<&str> = e.args.iter().map(|a| name(*a)).collect();
        out += &format!("  {} = {}", name(e.out), call(&e.op, &args, &axes));
        if let (Some(o), true) = (&e.origin, options.origins) {
            // A line break would end the comment.
            out += &format!("  // {}", o.replace(char::is_control, " "));
        }
        out += "\n";
    }
    for r in f.results.iter().filter(|r| *name(r.var) != *r.name) {
        out += &format!("  {} = {}\n", r.name, name(r.var));
    }
    out + "}\n"
}

/// One equation's right side. `known`: the names of the function's axes.
fn call(op: &Prim, args: &[&str], known: &BTreeSet<&Name>) -> String {
    let axes = |a: &[Axis]| a.iter().map(Axis::to_string).collect::<Vec<_>>().join(",");
    let list = |n: &[Name]| n.iter().map(|n| &**n).collect::<Vec<_>>().join(",");
    let extra = match op {
        Prim::Elementwise(Elementwise::Convert(d)) => d.to_string(),
        Prim::Elementwise(_) | Prim::StopGradient => String::new(),
        Prim::Call(c) => {
            let result = c.function.results.get(c.result).map_or("?", |r| &r.name);
            return format!("call({})", [&*c.function.name, result].iter().chain(args).copied().collect::<Vec<_>>().join(", "));
        }
        Prim::Reduce(_, n) | Prim::Contract(n) => format!("[{}]", list(n)),
        Prim::Constant(c) if c.value.is_nan() => format!("nan, {}", c.dtype),
        Prim::Constant(c) => format!("{:?}, {}", c.value, c.dtype),
        Prim::Size(d, t) => format!("{d}, {t}"),
        // A bare name may mean the axis of that name in another case.
        Prim::Iota(a) if known.iter().any(|k| **k != a.name && k.eq_ignore_ascii_case(&a.name)) => format!("{}={}", a.name, a.size),
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

/// Whether the text form has `s` as a name for values and axes: letters, digits, `_`, `.` and `'`, no digit first.
pub fn is_word(s: &str) -> bool {
    s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && s.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '\''))
        && !super::parser::RESERVED.contains(&s)
}

/// A name for each value: its own where free, else numbered; never one of an axis, a dimension or another port.
fn unique_names(f: &Function) -> Vec<String> {
    let mut taken: BTreeSet<String> = BTreeSet::new();
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
    // The number to try next for each name that was taken.
    let mut next: BTreeMap<String, usize> = BTreeMap::new();
    (0..f.vars.len())
        .map(|i| {
            if let Some(n) = fixed.get(&Var(i as u32)) {
                return n.clone();
            }
            let base = f.vars[i].name.as_deref().filter(|n| is_word(n)).map_or_else(|| format!("x{i}"), String::from);
            let mut name = base.clone();
            while !taken.insert(name.clone()) {
                let k = next.entry(base.clone()).or_insert(2);
                name = format!("{base}_{k}");
                *k += 1;
            }
            name
        })
        .collect()
}
