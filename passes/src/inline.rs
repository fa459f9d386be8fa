//! Calls replaced by what they call: `y = g(x)  =>  the equations of g`. What a call means, as one function: tests compare with it, and
//! passes that want a single function start from it.

use ir::builder::Builder;
use ir::diagnostic::Error;
use ir::dim::{Dim, Name};
use ir::graph::{Function, Var};
use ir::prim::{Movement, Prim};
use ir::types::Axis;
use std::collections::{BTreeMap, BTreeSet};

/// `f` without calls: same parameters, results and meaning. Axes of a callee that its parameters and results do not have get another
/// name where `f` means another size by theirs.
///
/// # Errors
/// Those of the builder, which mean a bug.
pub fn inline(f: &Function) -> Result<Function, Error> {
    let mut b = Builder::new(f.name.clone());
    let mut map = BTreeMap::new();
    for p in &f.params {
        map.insert(p.var, b.param(p.name.clone(), f.ty(p.var).clone()));
    }
    let mut names = Names::default();
    names.take(f, &BTreeMap::new());
    into(&mut b, f, &mut map, &BTreeMap::new(), &mut names)?;
    for r in &f.results {
        b.result(r.name.clone(), map[&r.var]);
    }
    Ok(b.finish())
}

/// What names mean in the function so far.
#[derive(Default)]
struct Names {
    axes: BTreeMap<Name, Dim>,
    sizes: BTreeSet<Name>,
}

impl Names {
    fn take(&mut self, f: &Function, renamed: &BTreeMap<Name, Name>) {
        for a in f.vars.iter().flat_map(|v| &v.ty.axes) {
            self.axes.insert(renamed.get(&a.name).unwrap_or(&a.name).clone(), a.size.clone());
        }
        self.sizes.extend(f.dims());
    }
    /// Whether an axis `name` of this size can stand beside the others.
    fn fits(&self, name: &Name, size: &Dim) -> bool {
        self.axes.get(name).map_or(!self.sizes.contains(name) || size.as_sym() == Some(name), |s| s == size)
    }
    /// Other names for `g`'s inner axes that mean something else here.
    fn apart(&self, g: &Function) -> BTreeMap<Name, Name> {
        let ports: BTreeSet<&Name> = g.params.iter().chain(&g.results).flat_map(|p| &g.ty(p.var).axes).map(|a| &a.name).collect();
        let mut out: BTreeMap<Name, Name> = BTreeMap::new();
        for a in g.vars.iter().flat_map(|v| &v.ty.axes).filter(|a| !ports.contains(&a.name)) {
            if !out.contains_key(&a.name) && !self.fits(&a.name, &a.size) {
                let base = if a.name.starts_with(|c: char| c.is_ascii_digit()) { format!("x{}", a.name) } else { a.name.to_string() };
                let own = |n: &Name| g.vars.iter().flat_map(|v| &v.ty.axes).any(|b| b.name == *n) || out.values().any(|b| b == n);
                let new = (2..).map(|k| Name::from(format!("{base}.{k}"))).find(|n| !own(n) && self.fits(n, &a.size)).unwrap_or_default();
                out.insert(a.name.clone(), new);
            }
        }
        out
    }
}

/// The equations of `g`, its parameters being in `map`.
fn into(b: &mut Builder, g: &Function, map: &mut BTreeMap<Var, Var>, renamed: &BTreeMap<Name, Name>, names: &mut Names) -> Result<(), Error> {
    for e in &g.eqns {
        let args: Vec<Var> = e.args.iter().map(|a| map[a]).collect();
        (b.origin, b.span) = (e.origin.clone(), e.span);
        let out = match &e.op {
            Prim::Call(c) => {
                let mut inner: BTreeMap<Var, Var> = c.function.params.iter().map(|p| p.var).zip(args).collect();
                let mut apart = names.apart(&c.function);
                // Axes of its operands have the names that they have here.
                let ports = c.function.params.iter().chain(&c.function.results).flat_map(|p| &c.function.ty(p.var).axes);
                apart.extend(ports.filter_map(|a| renamed.get(&a.name).map(|n| (a.name.clone(), n.clone()))));
                names.take(&c.function, &apart);
                into(b, &c.function, &mut inner, &apart, names)?;
                let v = inner[&c.function.results[c.result].var];
                // Outside, the result has the order of the callee's.
                let order: Vec<Name> = g.ty(e.out).axes.iter().map(|a| renamed.get(&a.name).unwrap_or(&a.name).clone()).collect();
                b.permute(v, &order)?
            }
            op => {
                let mut op = op.clone();
                rename_axes(&mut op, &|n| renamed.get(n).cloned());
                b.push(op, &args)?
            }
        };
        if let Some(n) = &g.vars[e.out.index()].name {
            b.name(out, n.clone());
        }
        map.insert(e.out, out);
    }
    b.origin = None;
    Ok(())
}

/// Axes of `op` under other names.
fn rename_axes(op: &mut Prim, to: &dyn Fn(&Name) -> Option<Name>) {
    let name = |n: &mut Name| *n = to(n).unwrap_or_else(|| n.clone());
    let axis = |a: &mut Axis| name(&mut a.name);
    use Movement::*;
    match op {
        Prim::Reduce(_, n) | Prim::Contract(n) => n.iter_mut().for_each(name),
        Prim::Iota(a) => axis(a),
        Prim::Movement(m) => match m {
            Rename { from, to } => {
                name(from);
                axis(to);
            }
            Split { axis: n, into } => {
                name(n);
                into.iter_mut().for_each(axis);
            }
            Merge { axes, into } | Concat { axes, into } => {
                axes.iter_mut().for_each(name);
                axis(into);
            }
            Permute(n) => n.iter_mut().for_each(name),
            Broadcast(a) => a.iter_mut().for_each(axis),
            Slice { axis: n, to, .. } => {
                name(n);
                axis(to);
            }
            Index { axis: n, .. } => name(n),
            Stack(a) => axis(a),
        },
        // Calls are `into`'s.
        Prim::Call(_) | Prim::Elementwise(_) | Prim::Constant(_) | Prim::Size(..) | Prim::StopGradient => {}
    }
}
