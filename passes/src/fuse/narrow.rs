//! What lies between kernels is stored as its readers read it: where all of them round it to what matrix units take, it is rounded where it is stored. The numbers are the same, the
//! memory and its traffic half as much, and copies may bring it to where matrix units read it as it is.

use ir::prim::Elementwise;
use ir::tile::sequence::Sequence;
use ir::tile::{Access, BufferId, Op, Program, Stmt, ValueId};
use ir::types::DType;
use std::collections::{BTreeMap, BTreeSet};

/// Makes results as narrow as `asked`, where no kernel reads them unrounded, and, where `between` says so, memory between kernels as narrow as `s` allows.
pub(super) fn narrow(s: &mut Sequence, asked: BTreeMap<usize, DType>, between: bool) {
    if asked.is_empty() && !between {
        return;
    }
    let outside: BTreeSet<usize> = if between { s.params.iter().chain(&s.results).copied().collect() } else { (0..s.memory.len()).collect() };
    let rounded: Vec<BTreeSet<usize>> = s.programs.iter().map(rounded).collect();
    // Per program and buffer the memory that its launches give it.
    let mut given: BTreeMap<(usize, usize), BTreeSet<usize>> = BTreeMap::new();
    for l in &s.launches {
        for (b, place) in l.buffers.iter().enumerate() {
            given.entry((l.program, b)).or_default().insert(place.memory);
        }
    }
    let operands = |at: &(usize, usize)| s.programs[at.0].operands;
    let mut wide: BTreeSet<usize> = outside.into_iter().filter(|m| !asked.contains_key(m)).collect();
    let mut dtype = asked;
    for (at, memory) in &given {
        let b = &s.programs[at.0].buffers[at.1];
        let reads = b.access == Access::Input;
        if b.dtype != DType::F32 || reads && !rounded[at.0].contains(&at.1) {
            wide.extend(memory);
        } else if reads {
            // Readers that round to different types keep what they read wide.
            for m in memory {
                if *dtype.entry(*m).or_insert(operands(at)) != operands(at) {
                    wide.insert(*m);
                }
            }
        }
    }
    // A buffer of a program is one type for all its launches.
    loop {
        let before = wide.len();
        for memory in given.values() {
            let types: BTreeSet<Option<&DType>> = memory.iter().map(|m| dtype.get(m).filter(|_| !wide.contains(m))).collect();
            if types.len() > 1 || types.contains(&None) {
                wide.extend(memory);
            }
        }
        if wide.len() == before {
            break;
        }
    }
    for ((p, b), memory) in &given {
        if let Some(d) = memory.first().filter(|m| !wide.contains(m)).and_then(|m| dtype.get(m)) {
            s.programs[*p].buffers[*b].dtype = *d;
        }
    }
    for (m, d) in dtype.iter().filter(|(m, _)| !wide.contains(m)) {
        s.memory[*m].dtype = *d;
    }
}

/// Buffers of which everything that is loaded is rounded to the type of operands before anything else happens to it: by a conversion, or as an operand of a dot.
fn rounded(p: &Program) -> BTreeSet<usize> {
    let mut all = BTreeSet::new();
    if p.operands.bytes() >= 4 {
        return all;
    }
    let mut loads: BTreeMap<ValueId, BufferId> = BTreeMap::new();
    walk(&p.body, &mut |s| {
        if let Stmt::Let(v, Op::Load(view)) = s {
            loads.insert(*v, view.buffer);
        }
    });
    let mut otherwise = BTreeSet::new();
    unrounded(p, &mut otherwise);
    all.extend(loads.values().map(|b| b.index()));
    for (_, b) in loads.iter().filter(|(v, _)| otherwise.contains(v)) {
        all.remove(&b.index());
    }
    all
}

/// Values that something reads as they are: neither a conversion to the type of operands nor, as an operand, a dot.
pub(super) fn unrounded(p: &Program, all: &mut BTreeSet<ValueId>) {
    walk(&p.body, &mut |s| match s {
        Stmt::Let(_, Op::Map(Elementwise::Convert(d), _)) if *d == p.operands => {}
        Stmt::Let(_, Op::Map(_, args)) => all.extend(args),
        Stmt::Let(_, Op::Reduce(_, x, _)) => _ = all.insert(*x),
        Stmt::Let(_, Op::Dot { init, .. }) => all.extend(init.iter().flatten()),
        Stmt::Let(_, Op::Fill { value, keep, .. }) => {
            all.insert(*value);
            all.extend(keep.iter().flat_map(|c| c.scalars.iter().map(|s| s.0)));
        }
        Stmt::Let(..) => {}
        Stmt::Store(_, v) => _ = all.insert(*v),
        Stmt::For(l) => {
            all.extend(l.within.iter().flat_map(|c| c.scalars.iter().map(|s| s.0)));
            all.extend(l.carries.iter().flat_map(|c| [c.init, c.next]));
        }
    });
}

pub(super) fn walk<'a>(body: &'a [Stmt], f: &mut dyn FnMut(&'a Stmt)) {
    for s in body {
        f(s);
        if let Stmt::For(l) = s {
            walk(&l.body, f);
        }
    }
}
