//! When products of warpgroups are issued, which tiles of the ring are filled and freed together, and what has no such form.

use super::super::plan::{Dot, Issue, Part, Plan, Rank, Ring, Step, Stream};
use super::super::refused;
use super::{ROWS, lag, persistent, turn};
use crate::Error;
use crate::target::GpuTarget;
use ir::dim::Dim;
use ir::tile::{AxisId, Op, Role, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// Decides it for `plan`, whose steps have groups of products.
///
/// # Errors
/// What has no form by warpgroups, and why.
pub fn arrange(plan: &mut Plan, target: &GpuTarget) -> Result<(), Error> {
    plan.multiples = possible(plan, target).map_err(|why| refused(&plan.p, &format!("by warpgroups: {why}; products of warps have a form")))?;
    let body = std::mem::take(&mut plan.body);
    let mut ring = Ring::default();
    // Beside the sums across warps: these are done when no product is exchanged any more.
    let mut end = plan.exchange;
    for (v, d) in &plan.dots {
        if let Dot::Matrix { n, .. } = d
            && plan.shared_columns([*v].into_iter(), *n)
        {
            ring.exchange.insert(*v, end);
            end += 4 * plan.fragment.threads() * plan.fragment.rows * plan.slots[n.index()] / 2;
        }
    }
    ring.barriers = plan.shared[2].max(end).next_multiple_of(16);
    let mut out = vec![];
    for s in issued(plan, body) {
        out.push(match s {
            Step::For(l) if !l.staged.is_empty() => {
                let mut l = grouped(plan, l, &mut ring.groups);
                overlapped(plan, &mut l, &ring).map_err(|why| refused(&plan.p, &why))?;
                Step::For(l)
            }
            s => s,
        });
    }
    plan.body = out;
    if plan.schedule.multicast {
        let fastest = plan.p.axes.iter().rposition(|a| matches!(a.role, Role::Grid | Role::Block(_))).map(|i| AxisId(i as u32));
        ring.shared = (0..ring.groups.len()).filter(|g| ring.groups[*g].iter().any(|v| plan.for_both(*v))).collect();
        if !plan.even() || plan.rows.is_none() || fastest != plan.rows || ring.shared.is_empty() {
            return Err(refused(&plan.p, "clusters: neighbours in the grid have to read the same tiles, as many of them"));
        }
    }
    ring.freed_in_loop = plan.schedule.persistent && frees_outer(plan);
    // As they are read: the first product needs the first.
    ring.outer = plan.staged.keys().copied().filter(|v| !plan.looped.contains(v)).collect();
    ring.objects = 1 + 2 * ring.groups.len() * plan.schedule.stages;
    plan.shared[2] = ring.barriers + 8 * (ring.objects + if plan.schedule.persistent { persistent::WORDS } else { 0 });
    plan.ring = Some(ring);
    Ok(())
}

/// Marks the products of the loop that are the last to read tiles that are there once, if products of the loop are.
fn frees_outer(plan: &mut Plan) -> bool {
    let outer = |v: &ValueId| plan.staged.contains_key(v) && !plan.looped.contains(v);
    let reads = |s: &Step| matches!(s, Step::Issue(x) if x.parts.iter().flat_map(|p| &p.terms).any(|(l, r)| outer(l) || outer(r)));
    if plan.body.iter().any(reads) {
        return false;
    }
    let at = plan.body.iter().enumerate().find_map(|(i, s)| match s {
        Step::For(l) if !l.staged.is_empty() => l.body.iter().rposition(reads).map(|j| (i, j)),
        _ => None,
    });
    let Some((i, j)) = at else { return false };
    match &mut plan.body[i] {
        Step::For(l) => match &mut l.body[j] {
            Step::Issue(x) if !x.late => {
                x.frees_outer = true;
                true
            }
            _ => false,
        },
        _ => false,
    }
}

/// Marks what lags, and where turns begin and end, if the schedule wants it.
fn overlapped(plan: &Plan, l: &mut Stream, ring: &Ring) -> Result<(), String> {
    let s = &plan.schedule;
    if (s.lag || s.turns) && !ring.exchange.is_empty() {
        return Err("warpgroups that exchange products go together: no turns, and nothing lags".into());
    }
    if s.turns && plan.fragment.threads() < 256 {
        return Err("one warpgroup has nobody to take turns with".into());
    }
    if s.lag {
        if s.rounded {
            return Err("products cannot lag whose left operands are read again as rounded".into());
        }
        lag::mark(plan, l).map_err(|why| format!("no products of a tile can lag: {why}"))
    } else if s.turns {
        turn::mark(plan, &mut l.body)
    } else {
        Ok(())
    }
}

/// Sizes that must be multiples of a number.
fn possible(plan: &Plan, target: &GpuTarget) -> Result<BTreeSet<(Dim, i64)>, String> {
    let mut multiples = BTreeSet::new();
    if target.name != "sm_90a" {
        return Err(format!("{} has no such products, sm_90a has", target.name));
    }
    if !plan.tensor {
        return Err("there are no products of matrices of 16-bit floats".into());
    }
    let f = plan.fragment;
    if !matches!(f.warps[1], 1 | 2) || f.warps[0] % 4 != 0 || f.rows_per_warp() * 4 != ROWS {
        return Err(format!("a warpgroup has {ROWS} rows in four warps; the schedule has {} rows in {} × {} warps", plan.schedule.rows, f.warps[0], f.warps[1]));
    }
    for (v, d) in &plan.dots {
        let Dot::Matrix { n, .. } = d else { continue };
        let columns = f.span(plan.slots[n.index()]);
        if columns > 256 {
            return Err(format!("{columns} columns of one product; the most are 256"));
        }
        if f.warps[1] == 2 && plan.split.contains(n) && columns % 64 != 0 {
            return Err(format!("two warpgroups cannot share {} columns in panels of 64", 2 * columns));
        }
        if f.warps[1] == 2 && !plan.split.contains(n) && !plan.shared_columns([*v].into_iter(), *n) {
            return Err("a product whose columns two warpgroups cannot compute by halves".into());
        }
    }
    for s in plan.staged.values() {
        let name = &plan.p.buffers[s.view.buffer.index()].name;
        if plan.p.buffers[s.view.buffer.index()].dtype != plan.operand() {
            return Err(format!("`{name}` holds {}, but its products are of {}: bulk copies convert nothing", plan.p.buffers[s.view.buffer.index()].dtype, plan.operand()));
        }
        if !s.view.stride(s.axes[1]).is_some_and(Dim::is_one) {
            return Err(format!("no axis of the tile of `{name}` is contiguous in memory"));
        }
        if s.view.stride(s.axes[0]).is_none() {
            return Err(format!("`{name}` is the same along an axis of its tile"));
        }
        let whole = 16 / s.tile.elem as i64;
        let unknown = plan.unaligned(&s.view, s.axes[1], s.tile.elem);
        if plan.schedule.aligned && unknown.iter().all(|d| d.as_fixed().is_none()) {
            multiples.extend(unknown.into_iter().map(|d| (d.clone(), whole)));
        } else if let Some(d) = unknown.first() {
            return Err(format!("a stride or an offset of `{name}`, {d}, is not known to be a multiple of {whole} elements"));
        }
        if s.view.strides.len() > 5 || s.tile.rows > 256 {
            return Err(format!("`{name}` has {} axes and tiles of {} rows; bulk copies have at most 5 and 256", s.view.strides.len(), s.tile.rows));
        }
    }
    for x in plan.vectors.values() {
        multiples.extend(plan.unaligned(&x.view, x.along, x.elem).into_iter().map(|d| (d.clone(), 16 / x.elem as i64)));
    }
    let loops: Vec<&Stream> = plan.body.iter().filter_map(|s| if let Step::For(l) = s { Some(l) } else { None }).collect();
    if loops.iter().filter(|l| !l.staged.is_empty()).count() != 1 {
        return Err("a kernel has one loop over tiles of products".into());
    }
    // Bounds of loops are computed by both roles.
    let mut scalars: BTreeSet<ValueId> = BTreeSet::new();
    for s in &plan.body {
        if let Step::Let(v, op) = s
            && plan.rank(*v) == Rank::NONE
            && match op {
                Op::Const(_) | Op::Size(_) | Op::Load(_) => true,
                Op::Map(_, args) => args.iter().all(|a| scalars.contains(a)),
                _ => false,
            }
        {
            scalars.insert(*v);
        }
    }
    if loops.iter().flat_map(|l| &l.within).flat_map(|c| &c.scalars).any(|(v, _)| !scalars.contains(v)) {
        return Err("a bound of the loop depends on what rows compute".into());
    }
    Ok(multiples)
}

/// Steps with products issued as soon as what they start from and one of their operands are known; further terms as soon as theirs are.
fn issued(plan: &Plan, steps: Vec<Step>) -> Vec<Step> {
    let mut made: BTreeMap<ValueId, usize> = BTreeMap::new();
    for (i, s) in steps.iter().enumerate() {
        match s {
            Step::Let(v, _) if !plan.staged.contains_key(v) => _ = made.insert(*v, i + 1),
            Step::Products(vs) => vs.iter().for_each(|v| _ = made.insert(*v, i + 1)),
            Step::For(l) => l.carries.iter().for_each(|c| _ = made.insert(c.after, i + 1)),
            _ => {}
        }
    }
    let known = |v: &ValueId| made.get(v).copied().unwrap_or(0);
    // Where a step reads a value first: a product that is read earlier is issued earlier.
    let mut read: BTreeMap<ValueId, usize> = BTreeMap::new();
    for (i, s) in steps.iter().enumerate() {
        if let Step::Let(_, Op::Map(_, args)) = s {
            args.iter().for_each(|v| _ = read.entry(*v).or_insert(i));
        } else if let Step::Let(_, Op::Reduce(_, v, _) | Op::Fill { value: v, .. }) = s {
            read.entry(*v).or_insert(i);
        }
    }
    let mut issues: BTreeMap<usize, Vec<Issue>> = BTreeMap::new();
    for s in &steps {
        let Step::Products(all) = s else { continue };
        let terms = |v: &ValueId| if let Dot::Matrix { terms, .. } = &plan.dots[v] { terms.clone() } else { vec![] };
        let from = |v: &ValueId| plan.inits[v].iter().flatten().map(known).max().unwrap_or(0).max(terms(v).iter().map(|t| known(&t.0)).min().unwrap_or(0));
        // Where no accumulator starts from another one's old content, each starts when it can: beside the first runs what the next one waits for.
        let own = |v: &ValueId| all.iter().filter(|w| plan.inits[*w].iter().flatten().any(|x| plan.inits[v].iter().flatten().any(|y| x == y))).count() <= 1;
        let mut starts: BTreeMap<usize, Vec<ValueId>> = BTreeMap::new();
        for v in all {
            let at = if all.iter().all(own) { from(v) } else { all.iter().map(from).max().unwrap_or(0) };
            starts.entry(at).or_default().push(*v);
        }
        for (start, vs) in starts {
        let mut order = vs.clone();
        order.sort_by_key(|v| read.get(v).copied().unwrap_or(usize::MAX));
        let mut later: BTreeMap<usize, Vec<Part>> = BTreeMap::new();
        for v in &order {
            for t in terms(v) {
                let at = known(&t.0).max(start);
                let parts = later.entry(at).or_default();
                match parts.iter_mut().find(|p| p.value == *v) {
                    Some(p) => p.terms.push(t),
                    None => parts.push(Part { value: *v, terms: vec![t], starts: at == start, waits: vec![] }),
                }
            }
        }
        for (at, mut parts) in later {
            if at == start {
                // What reads an accumulator's old content starts before what replaces it; the order of issue is that of use.
                parts.sort_by_key(|p| order.iter().position(|v| *v == p.value));
            }
            issues.entry(at).or_default().push(Issue { parts, ..Issue::default() });
        }
        }
    }
    let mut out = vec![];
    let n = steps.len();
    for (i, s) in steps.into_iter().enumerate() {
        out.extend(issues.remove(&i).into_iter().flatten().map(Step::Issue));
        match s {
            Step::Products(_) => {}
            Step::For(l) => {
                let body = if plan.schedule.rounded { sunk(plan, l.body) } else { l.body };
                let body = issued(plan, body);
                out.push(Step::For(Stream { body, ..l }));
            }
            s => out.push(s),
        }
    }
    out.extend(issues.remove(&n).into_iter().flatten().map(Step::Issue));
    out
}

/// Elementwise steps that only one elementwise step reads, right before it: what is read again is read late.
fn sunk(plan: &Plan, mut steps: Vec<Step>) -> Vec<Step> {
    for i in (0..steps.len()).rev() {
        let Step::Let(v, Op::Map(..)) = &steps[i] else { continue };
        if plan.rank(*v).col.is_none() || plan.packed.contains(v) {
            continue;
        }
        let readers: Vec<usize> = (i + 1..steps.len()).filter(|j| reads(plan, &steps[*j], *v)).collect();
        if let [j] = readers.as_slice()
            && matches!(steps[*j], Step::Let(_, Op::Map(..)))
        {
            let s = steps.remove(i);
            steps.insert(j - 1, s);
        }
    }
    steps
}

/// Whether a step reads `v`.
pub(super) fn reads(plan: &Plan, s: &Step, v: ValueId) -> bool {
    let starts = |p: &ValueId| plan.inits[p].iter().flatten().any(|x| *x == v);
    match s {
        Step::Let(_, Op::Map(_, args)) => args.contains(&v),
        Step::Let(_, Op::Reduce(_, x, _) | Op::Fill { value: x, .. }) | Step::Store(_, x) => *x == v,
        Step::Let(p, Op::Dot { terms, .. }) => starts(p) || terms.iter().any(|t| t.0 == v || t.1 == v),
        Step::Products(vs) => vs.iter().any(|p| starts(p) || matches!(&plan.dots[p], Dot::Matrix { terms, .. } if terms.iter().any(|t| t.0 == v))),
        Step::Issue(x) => x.parts.iter().any(|p| p.starts && starts(&p.value) || p.terms.iter().any(|t| t.0 == v)),
        Step::For(l) => l.carries.iter().any(|c| c.next == v),
        Step::Let(..) => false,
    }
}

/// The loop with what each issue waits for and frees; `groups` become the ring's.
fn grouped(plan: &Plan, mut l: Stream, groups: &mut Vec<Vec<ValueId>>) -> Stream {
    let mut spans: BTreeMap<ValueId, (usize, usize)> = BTreeMap::new();
    let operands = |p: &Part| -> BTreeSet<ValueId> {
        let all = p.terms.iter().flat_map(|(a, b)| [*a, *b]);
        all.filter(|v| plan.staged.contains_key(v) && plan.looped.contains(v)).collect()
    };
    for (at, s) in l.body.iter().enumerate() {
        let Step::Issue(i) = s else { continue };
        for v in i.parts.iter().flat_map(operands) {
            spans.entry(v).or_insert((at, at)).1 = at;
        }
    }
    let mut by: BTreeMap<(usize, usize), Vec<ValueId>> = BTreeMap::new();
    for (v, span) in &spans {
        by.entry(*span).or_default().push(*v);
    }
    // Loads of single columns are one group: they are read by steps of their own.
    let at: Vec<usize> = l.body.iter().enumerate().filter(|(_, s)| matches!(s, Step::Let(v, _) if plan.vectors.contains_key(v))).map(|(i, _)| i).collect();
    if let (Some(a), Some(b)) = (at.first(), at.last()) {
        by.insert((*a, *b), plan.vectors.keys().copied().collect());
    }
    *groups = by.values().cloned().collect();
    let last: Vec<usize> = by.keys().map(|k| k.1).collect();
    for (at, s) in l.body.iter_mut().enumerate() {
        let Step::Issue(i) = s else { continue };
        for p in &mut i.parts {
            let read = operands(p);
            p.waits = (0..groups.len()).filter(|g| groups[*g].iter().any(|v| read.contains(v))).collect();
        }
        i.releases = (0..groups.len()).filter(|g| last[*g] == at).collect();
    }
    debug_assert!(l.staged.iter().all(|v| spans.contains_key(v)) && matches!(plan.p.axis(l.axis).role, Role::Stream(_)));
    l
}
