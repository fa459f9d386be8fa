//! What some readers multiply as rounded and others read as it is, is stored both ways: a second store of half the size, for which matrix units read it as it stands, bulk copies among them.
//! The numbers are the same: an operand is rounded where it is read, or where it is stored.

use ir::prim::Elementwise;
use ir::tile::sequence::{Place, Sequence};
use ir::tile::{Access, Buffer, BufferId, Op, Program, Stmt, ValueId, View};
use ir::types::DType;
use std::collections::{BTreeMap, BTreeSet};

/// A buffer of a program.
type Slot = (usize, usize);

/// Stores memory between kernels both ways where that is so.
pub(super) fn both(s: &mut Sequence) {
    // What is done for one class moves buffers of others, and makes that class one for which nothing is to be done.
    while once(s) {}
}

/// Does it for the first class that needs it.
fn once(s: &mut Sequence) -> bool {
    let outside: BTreeSet<usize> = s.params.iter().chain(&s.results).copied().collect();
    for (memory, slots) in classes(s) {
        let buffer = |(p, b): &Slot| &s.programs[*p].buffers[*b];
        let read: Vec<Slot> = slots.iter().copied().filter(|x| buffer(x).access == Access::Input).collect();
        let uses: Vec<Uses> = read.iter().map(|(p, b)| Uses::of(&s.programs[*p], *b)).collect();
        let types: BTreeSet<DType> = read.iter().zip(&uses).filter(|(_, u)| u.multiplied).map(|((p, _), _)| s.programs[*p].operands).collect();
        let (Some(dtype), 1) = (types.first().copied(), types.len()) else { continue };
        let mixed = uses.iter().any(|u| !u.otherwise.is_empty()) && read.len() < slots.len();
        let all_wide = slots.iter().all(|x| buffer(x).dtype == DType::F32) && memory.iter().all(|m| s.memory[*m].dtype == DType::F32);
        if dtype.bytes() >= 4 || !mixed || !all_wide || memory.iter().any(|m| outside.contains(m)) {
            continue;
        }
        let mut twin = BTreeMap::new();
        for m in memory {
            let mut t = s.memory[m].clone();
            (t.name, t.dtype) = (format!("{}.{dtype}", t.name).into(), dtype);
            twin.insert(m, s.memory.len());
            s.memory.push(t);
        }
        // From the last buffer of a program to the first: what is put before one does not move those that are still to be done.
        let mut changes: Vec<(Slot, Option<Uses>)> = read.into_iter().zip(uses.into_iter().map(Some)).collect();
        changes.extend(slots.iter().filter(|x| buffer(x).access == Access::Output).map(|x| (*x, None)));
        changes.sort_by_key(|c| std::cmp::Reverse(c.0));
        for ((p, b), uses) in changes {
            match uses {
                None => {
                    let at = insert(s, p, b, &twin, dtype);
                    again(&mut s.programs[p].body, BufferId(b as u32), BufferId(at as u32));
                }
                Some(u) if u.rounded.is_empty() => {}
                Some(u) if u.otherwise.is_empty() => {
                    s.programs[p].buffers[b].dtype = dtype;
                    s.launches.iter_mut().filter(|l| l.program == p).for_each(|l| l.buffers[b].memory = twin[&l.buffers[b].memory]);
                }
                Some(u) => {
                    let at = insert(s, p, b, &twin, dtype);
                    apart(&mut s.programs[p], &u, BufferId(at as u32));
                }
            }
        }
        return true;
    }
    false
}

/// Memory in classes, each with all buffers that launches give a part of it: a buffer of a program is one type in all launches.
fn classes(s: &Sequence) -> Vec<(BTreeSet<usize>, BTreeSet<Slot>)> {
    let mut all: Vec<(BTreeSet<usize>, BTreeSet<Slot>)> = vec![];
    let mut given: BTreeMap<Slot, BTreeSet<usize>> = BTreeMap::new();
    for l in &s.launches {
        for (b, place) in l.buffers.iter().enumerate() {
            given.entry((l.program, b)).or_default().insert(place.memory);
        }
    }
    for (slot, memory) in given {
        let mut class = (memory, BTreeSet::from([slot]));
        let (meet, apart): (Vec<_>, Vec<_>) = all.into_iter().partition(|c| !c.0.is_disjoint(&class.0));
        for c in meet {
            class.0.extend(c.0);
            class.1.extend(c.1);
        }
        all = apart;
        all.push(class);
    }
    all
}

/// What becomes of what is loaded from a buffer.
struct Uses {
    /// Loads of which something is rounded to the type of operands before anything else happens to it.
    rounded: BTreeSet<ValueId>,
    /// Loads of which something is not.
    otherwise: BTreeSet<ValueId>,
    /// Whether a product of matrices has one as an operand, by itself or converted.
    multiplied: bool,
}

impl Uses {
    fn of(p: &Program, b: usize) -> Uses {
        let mut loads: BTreeSet<ValueId> = BTreeSet::new();
        let mut converted: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        let (mut operands, mut otherwise): (BTreeSet<ValueId>, BTreeSet<ValueId>) = Default::default();
        super::narrow::walk(&p.body, &mut |s| match s {
            Stmt::Let(v, Op::Load(view)) if view.buffer.index() == b => _ = loads.insert(*v),
            Stmt::Let(v, Op::Map(Elementwise::Convert(d), x)) if *d == p.operands => _ = converted.insert(*v, x[0]),
            // Sums of products element by element are not done by matrix units.
            Stmt::Let(_, Op::Dot { terms, .. }) => {
                let product = terms.iter().all(|t| matrices(p, *t));
                if product { &mut operands } else { &mut otherwise }.extend(terms.iter().flat_map(|t| [t.0, t.1]));
            }
            _ => {}
        });
        super::narrow::unrounded(p, &mut otherwise);
        let rounded = operands.iter().copied().chain(converted.values().copied()).filter(|v| loads.contains(v)).collect();
        let multiplied = operands.iter().any(|v| loads.contains(v) || converted.get(v).is_some_and(|x| loads.contains(x)));
        otherwise.retain(|v| loads.contains(v));
        Uses { rounded, otherwise, multiplied }
    }
}

/// Whether each of two operands has an axis that the other lacks.
fn matrices(p: &Program, (a, b): (ValueId, ValueId)) -> bool {
    let lacks = |a: ValueId, b: ValueId| p.value(a).axes.iter().any(|x| !p.value(b).axes.contains(x));
    lacks(a, b) && lacks(b, a)
}

/// Gives a program a buffer like its buffer `b`, of another type, in whose place launches have the twin of what they have there; its position. Inputs stand before outputs.
fn insert(s: &mut Sequence, p: usize, b: usize, twin: &BTreeMap<usize, usize>, dtype: DType) -> usize {
    let program = &mut s.programs[p];
    let old = &program.buffers[b];
    let new = Buffer { name: format!("{}.{dtype}", old.name).into(), dtype, ..old.clone() };
    let at = b + 1;
    program.buffers.insert(at, new);
    views(&mut program.body, &mut |v| {
        if v.buffer.index() >= at {
            v.buffer = BufferId(v.buffer.0 + 1);
        }
    });
    for l in s.launches.iter_mut().filter(|l| l.program == p) {
        let place = Place { memory: twin[&l.buffers[b].memory], ..l.buffers[b].clone() };
        l.buffers.insert(at, place);
    }
    at
}

fn views(body: &mut [Stmt], f: &mut dyn FnMut(&mut View)) {
    for s in body {
        match s {
            Stmt::Let(_, Op::Load(v)) | Stmt::Store(v, _) => f(v),
            Stmt::Let(..) => {}
            Stmt::For(l) => views(&mut l.body, f),
        }
    }
}

/// What is stored to `from` is stored to `to` as well.
fn again(body: &mut Vec<Stmt>, from: BufferId, to: BufferId) {
    let mut i = 0;
    while i < body.len() {
        match &mut body[i] {
            Stmt::For(l) => again(&mut l.body, from, to),
            Stmt::Store(view, v) if view.buffer == from => {
                let second = Stmt::Store(View { buffer: to, ..view.clone() }, *v);
                body.insert(i + 1, second);
                i += 1;
            }
            _ => {}
        }
        i += 1;
    }
}

/// What is rounded of loads is loaded from `to`: the load itself where nothing else reads it, a second one where something does.
fn apart(p: &mut Program, uses: &Uses, to: BufferId) {
    let mut second: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for v in uses.rounded.intersection(&uses.otherwise) {
        second.insert(*v, ValueId(p.values.len() as u32));
        p.values.push(p.values[v.index()].clone());
    }
    let operands = p.operands;
    let mut products = BTreeSet::new();
    super::narrow::walk(&p.body, &mut |s| {
        if let Stmt::Let(v, Op::Dot { terms, .. }) = s
            && terms.iter().all(|t| matrices(p, *t))
        {
            products.insert(*v);
        }
    });
    fn walk(body: &mut Vec<Stmt>, uses: &Uses, (second, products): (&BTreeMap<ValueId, ValueId>, &BTreeSet<ValueId>), to: BufferId, operands: DType) {
        let mut i = 0;
        while i < body.len() {
            let mut more = None;
            let change = |x: &mut ValueId| *x = second.get(x).copied().unwrap_or(*x);
            match &mut body[i] {
                Stmt::Let(v, Op::Load(view)) => {
                    if let Some(w) = second.get(v) {
                        more = Some(Stmt::Let(*w, Op::Load(View { buffer: to, ..view.clone() })));
                    } else if uses.rounded.contains(v) {
                        view.buffer = to;
                    }
                }
                Stmt::Let(_, Op::Map(Elementwise::Convert(d), x)) if *d == operands => change(&mut x[0]),
                Stmt::Let(v, Op::Dot { terms, .. }) if products.contains(v) => terms.iter_mut().for_each(|t| {
                    change(&mut t.0);
                    change(&mut t.1);
                }),
                Stmt::For(l) => walk(&mut l.body, uses, (second, products), to, operands),
                _ => {}
            }
            if let Some(m) = more {
                body.insert(i + 1, m);
                i += 1;
            }
            i += 1;
        }
    }
    walk(&mut p.body, uses, (&second, &products), to, operands);
}
