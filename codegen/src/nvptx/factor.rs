//! Right operands of matrix products stand in shared memory as they are loaded. A factor on one that only the summed axis has
//! moves to the left operand, which is in registers: Σₖ a·(b·f) = Σₖ (a·f)·b.

use ir::prim::Elementwise;
use ir::tile::{AxisId, Op, Program, Stmt, ValueId, ValueInfo};
use std::collections::{BTreeMap, BTreeSet};

/// `p` with the factors of loads that lack the row axis moved to the other operand.
pub(super) fn moved(p: &Program, rows: AxisId) -> Program {
    let mut p = p.clone();
    let mut made: BTreeMap<ValueId, Op> = BTreeMap::new();
    let mut body = std::mem::take(&mut p.body);
    rewrite(&mut body, &mut p.values, &mut made, rows);
    loop {
        let mut read = BTreeSet::new();
        reads(&body, &mut read);
        if !sweep(&mut body, &read) {
            break;
        }
    }
    p.body = body;
    p
}

fn rewrite(body: &mut Vec<Stmt>, values: &mut Vec<ValueInfo>, made: &mut BTreeMap<ValueId, Op>, rows: AxisId) {
    let mut out = vec![];
    for mut s in body.drain(..) {
        match &mut s {
            Stmt::For(l) => rewrite(&mut l.body, values, made, rows),
            Stmt::Let(_, Op::Dot { terms, sum, .. }) => {
                for (a, b) in terms {
                    let has = |v: ValueId| values[v.index()].axes.contains(&rows);
                    let (left, right) = match (has(*a), has(*b)) {
                        (true, false) => (a, b),
                        (false, true) => (b, a),
                        _ => continue,
                    };
                    while let Some(Op::Map(op @ (Elementwise::Mul | Elementwise::Div), args)) = made.get(right) {
                        let full = |v: &ValueId| values[v.index()].axes.len() == 2;
                        let (x, f) = match args.as_slice() {
                            [x, f] if full(x) => (*x, *f),
                            [f, x] if full(x) && *op == Elementwise::Mul => (*x, *f),
                            _ => break,
                        };
                        if !values[f.index()].axes.iter().all(|a| sum.contains(a)) {
                            break;
                        }
                        let new = Op::Map(*op, vec![*left, f]);
                        values.push(ValueInfo { name: None, ..values[left.index()].clone() });
                        let v = ValueId(values.len() as u32 - 1);
                        out.push(Stmt::Let(v, new));
                        *left = v;
                        *right = x;
                    }
                }
            }
            Stmt::Let(v, op @ Op::Map(..)) => _ = made.insert(*v, op.clone()),
            _ => {}
        }
        out.push(s);
    }
    *body = out;
}

fn reads(body: &[Stmt], read: &mut BTreeSet<ValueId>) {
    for s in body {
        match s {
            Stmt::Let(_, op) => match op {
                Op::Map(_, args) => read.extend(args),
                Op::Reduce(_, x, _) => _ = read.insert(*x),
                Op::Dot { init, terms, .. } => read.extend(init.iter().flatten().copied().chain(terms.iter().flat_map(|(a, b)| [*a, *b]))),
                Op::Fill { value, keep, .. } => {
                    read.insert(*value);
                    read.extend(keep.iter().flat_map(|c| c.scalars.iter().map(|(v, _)| *v)));
                }
                _ => {}
            },
            Stmt::Store(_, v) => _ = read.insert(*v),
            Stmt::For(l) => {
                read.extend(l.within.iter().flat_map(|c| c.scalars.iter().map(|(v, _)| *v)));
                read.extend(l.carries.iter().flat_map(|c| [c.init, c.next]));
                reads(&l.body, read);
            }
        }
    }
}

/// Leaves out what nothing reads; whether there was any.
fn sweep(body: &mut Vec<Stmt>, read: &BTreeSet<ValueId>) -> bool {
    let before = body.len();
    body.retain(|s| !matches!(s, Stmt::Let(v, _) if !read.contains(v)));
    let mut some = body.len() < before;
    for s in body {
        if let Stmt::For(l) = s {
            some |= sweep(&mut l.body, read);
        }
    }
    some
}
