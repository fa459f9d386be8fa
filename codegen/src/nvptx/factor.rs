//! Right operands of matrix products stand in shared memory as they are loaded. A factor on one that only the summed axis has
//! moves to the left operand, which is in registers: Σₖ a·(b·f) = Σₖ (a·f)·b.

use ir::prim::Elementwise;
use ir::tile::{AxisId, Op, Program, Stmt, ValueId, ValueInfo};
use std::collections::{BTreeMap, BTreeSet};

/// `p` with factors that have no summed axis outside of the sums: Σₖ (f·a)·b = f·Σₖ a·b. Then both operands may be in memory.
pub(super) fn outside(p: &Program) -> Program {
    let mut p = p.clone();
    let mut body = std::mem::take(&mut p.body);
    take_out(&mut body, &mut p.values, &mut BTreeMap::new());
    unread(&mut body);
    p.body = body;
    p
}

fn take_out(body: &mut Vec<Stmt>, values: &mut Vec<ValueInfo>, made: &mut BTreeMap<ValueId, Op>) {
    let mut out = vec![];
    for s in body.drain(..) {
        match s {
            Stmt::For(mut l) => {
                take_out(&mut l.body, values, made);
                out.push(Stmt::For(l));
            }
            Stmt::Let(v, Op::Dot { init, terms, sum }) if init.is_empty() => {
                let own: BTreeSet<AxisId> = values[v.index()].axes.iter().copied().collect();
                let mut bare = vec![];
                let mut factors: Vec<Vec<(Elementwise, ValueId)>> = vec![];
                for (a, b) in &terms {
                    let (mut sides, mut taken) = ([*a, *b], vec![]);
                    for x in &mut sides {
                        while let Some(Op::Map(op @ (Elementwise::Mul | Elementwise::Div), args)) = made.get(x) {
                            let summed = |v: &ValueId| sum.iter().all(|a| values[v.index()].axes.contains(a));
                            let free = |v: &ValueId| values[v.index()].axes.iter().all(|a| own.contains(a) && !sum.contains(a));
                            let (rest, f) = match args.as_slice() {
                                [x, f] if summed(x) && free(f) => (*x, *f),
                                [f, x] if summed(x) && free(f) && *op == Elementwise::Mul => (*x, *f),
                                _ => break,
                            };
                            taken.push((*op, f));
                            *x = rest;
                        }
                    }
                    bare.push((sides[0], sides[1]));
                    factors.push(taken);
                }
                // Of several terms, what all of them have; and the result's axes must still be those of every term.
                let number = |v: ValueId| if let Some(Op::Const(x)) = made.get(&v) { Some(*x) } else { None };
                let same = |a: &(Elementwise, ValueId), b: &(Elementwise, ValueId)| a.0 == b.0 && (a.1 == b.1 || number(a.1).is_some_and(|x| number(b.1) == Some(x)));
                let all_same = factors.iter().all(|f| f.len() == factors[0].len() && f.iter().zip(&factors[0]).all(|(a, b)| same(a, b)));
                let axes = |(a, b): &(ValueId, ValueId)| [a, b].iter().flat_map(|x| values[x.index()].axes.clone()).filter(|a| !sum.contains(a)).collect::<BTreeSet<_>>();
                if factors[0].is_empty() || !all_same || bare.iter().any(|t| axes(t) != own) {
                    out.push(Stmt::Let(v, Op::Dot { init, terms, sum }));
                    continue;
                }
                let mut fresh = || {
                    values.push(ValueInfo { name: None, ..values[v.index()].clone() });
                    ValueId(values.len() as u32 - 1)
                };
                let mut x = fresh();
                out.push(Stmt::Let(x, Op::Dot { init, terms: bare, sum }));
                for (i, (op, f)) in factors[0].iter().enumerate() {
                    let y = if i + 1 == factors[0].len() { v } else { fresh() };
                    out.push(Stmt::Let(y, Op::Map(*op, vec![x, *f])));
                    x = y;
                }
            }
            Stmt::Let(v, op) => {
                if let Op::Map(..) | Op::Const(_) = &op {
                    made.insert(v, op.clone());
                }
                out.push(Stmt::Let(v, op));
            }
            s => out.push(s),
        }
    }
    *body = out;
}

/// `p` without conversions of operands of dots to what matrix units round them to anyway, also where a factor stands before the dot: then both operands may be in memory.
pub(super) fn bare(p: &Program) -> Program {
    if p.operands.bytes() >= 4 {
        return p.clone();
    }
    let mut p = p.clone();
    let mut body = std::mem::take(&mut p.body);
    strip(&mut body, &mut p.values, Elementwise::Convert(p.operands), &mut BTreeMap::new());
    unread(&mut body);
    p.body = body;
    p
}

fn strip(body: &mut Vec<Stmt>, values: &mut Vec<ValueInfo>, rounding: Elementwise, made: &mut BTreeMap<ValueId, (Elementwise, Vec<ValueId>)>) {
    let mut out = vec![];
    for mut s in body.drain(..) {
        match &mut s {
            Stmt::For(l) => strip(&mut l.body, values, rounding, made),
            Stmt::Let(_, Op::Dot { terms, .. }) => {
                for x in terms.iter_mut().flat_map(|(a, b)| [a, b]) {
                    // Factors between the dot and the conversion, outermost first.
                    let (mut factors, mut inside) = (vec![], *x);
                    let found = loop {
                        match made.get(&inside) {
                            Some((op, args)) if *op == rounding => break Some(args[0]),
                            Some((op @ (Elementwise::Mul | Elementwise::Div), args)) => {
                                let full = |v: ValueId| values[v.index()].axes.len() == values[inside.index()].axes.len();
                                let narrower = |v: ValueId| values[v.index()].axes.len() < values[inside.index()].axes.len();
                                match args.as_slice() {
                                    [a, f] if full(*a) && narrower(*f) => {
                                        factors.push((*op, *f, true, inside));
                                        inside = *a;
                                    }
                                    [f, a] if full(*a) && narrower(*f) => {
                                        factors.push((*op, *f, false, inside));
                                        inside = *a;
                                    }
                                    _ => break None,
                                }
                            }
                            _ => break None,
                        }
                    };
                    let Some(mut bare) = found else { continue };
                    for (op, f, behind, like) in factors.into_iter().rev() {
                        values.push(ValueInfo { name: None, ..values[like.index()].clone() });
                        let v = ValueId(values.len() as u32 - 1);
                        let args = if behind { vec![bare, f] } else { vec![f, bare] };
                        made.insert(v, (op, args.clone()));
                        out.push(Stmt::Let(v, Op::Map(op, args)));
                        bare = v;
                    }
                    *x = bare;
                }
            }
            Stmt::Let(v, Op::Map(op, args)) => _ = made.insert(*v, (*op, args.clone())),
            _ => {}
        }
        out.push(s);
    }
    *body = out;
}

/// Leaves out what nothing reads.
fn unread(body: &mut Vec<Stmt>) {
    loop {
        let mut read = BTreeSet::new();
        reads(body, &mut read);
        if !sweep(body, &read) {
            break;
        }
    }
}

/// `p` with the factors of loads that lack the row axis moved to the other operand.
pub(super) fn moved(p: &Program, rows: AxisId) -> Program {
    let mut p = p.clone();
    let mut made: BTreeMap<ValueId, Op> = BTreeMap::new();
    let mut body = std::mem::take(&mut p.body);
    rewrite(&mut body, &mut p.values, &mut made, rows);
    unread(&mut body);
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
