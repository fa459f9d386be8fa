//! What a block program becomes on a GPU, before a line is written: the row axis, which values stand in shared memory, which dots
//! share a pass over their operands, and how much shared memory that takes.
//!
//! Every value is a tile over at most the row axis and one column axis, in registers; only operands of matrix products may have two
//! column axes, and those are loads, which stand in shared memory.

use super::axes;
use super::exponential::below_maximum;
use super::factor::{bare, moved, outside};
use super::layout::{Fragment, PANEL, Tile};
use super::{Schedule, refused};
use crate::Error;
use crate::target::GpuTarget;
use ir::dim::Dim;
use ir::tile::{AxisId, Carry, Constraint, Op, Program, Role, Stmt, ValueId, View};
use ir::types::DType;
use std::collections::{BTreeMap, BTreeSet};

/// The axes of a value in registers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rank {
    /// Whether it has the row axis.
    pub rows: bool,
    /// Its column axis.
    pub col: Option<AxisId>,
}

impl Rank {
    /// A value without axes.
    pub const NONE: Rank = Rank { rows: false, col: None };
    /// Whether every axis of `self` is one of `other`'s, and not all of them.
    pub fn below(self, other: Rank) -> bool {
        self != other && (!self.rows || other.rows) && (self.col.is_none() || self.col == other.col)
    }
}

/// How a dot is computed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Dot {
    /// Rows × `n`, summed over `k`: left operands in registers or shared memory, right operands in shared memory.
    Matrix {
        /// Column axis of the result.
        n: AxisId,
        /// The summed axis.
        k: AxisId,
        /// Left (with rows) and right operand per term.
        terms: Vec<(ValueId, ValueId)>,
    },
    /// Products in registers, then a sum over their column axis.
    Row,
    /// A serial loop over the summed axis that reads both operands from global memory.
    Direct,
}

/// A statement, with matrix products in groups.
#[derive(Clone, Debug)]
pub enum Step {
    /// Defines a value.
    Let(ValueId, Op),
    /// Matrix products over the same axes; they share operands.
    Products(Vec<ValueId>),
    /// Matrix products of warpgroups: issued here, done when something reads them.
    Issue(Issue),
    /// A streamed loop.
    For(Stream),
    /// Writes a value.
    Store(View, ValueId),
}

/// Products that are issued together.
#[derive(Clone, Default, Debug)]
pub struct Issue {
    /// In the order in which their results are read.
    pub parts: Vec<Part>,
    /// Groups of the ring that nothing in the tile reads after this.
    pub releases: Vec<usize>,
    /// Of the last tile: nothing reads the tiles that are there once after this.
    pub frees_outer: bool,
    /// Done beside the next tile's first products.
    pub late: bool,
    /// A warpgroup's turn begins before these, or ends behind them.
    pub begins: bool,
    /// See `begins`.
    pub ends: bool,
}

/// Some of a dot's terms.
#[derive(Clone, Debug)]
pub struct Part {
    /// The dot.
    pub value: ValueId,
    /// Left and right operands.
    pub terms: Vec<(ValueId, ValueId)>,
    /// These are its first: they start from what the dot starts from.
    pub starts: bool,
    /// Groups of the ring that must have arrived.
    pub waits: Vec<usize>,
}

/// How warpgroups come by their operands: tiles in a ring of stages, filled in bulk by one thread.
#[derive(Clone, Default, Debug)]
pub struct Ring {
    /// Tiles that are there once.
    pub outer: Vec<ValueId>,
    /// Tiles of the loop: those that the same statements read first and last are filled and released together. In the order of first use.
    pub groups: Vec<Vec<ValueId>>,
    /// Where two warpgroups that share rows exchange columns of a product, by product.
    pub exchange: BTreeMap<ValueId, usize>,
    /// First byte of the barrier objects: one for `outer`, then per stage and group one that says full and one that says empty; then those of persistent blocks.
    pub barriers: usize,
    /// Barrier objects before those of persistent blocks.
    pub objects: usize,
    /// Groups with tiles that both blocks of a cluster read.
    pub shared: BTreeSet<usize>,
    /// Whether products of the loop free `outer`; else it is free behind everything.
    pub freed_in_loop: bool,
}

/// A streamed loop.
#[derive(Clone, Debug)]
pub struct Stream {
    /// The axis.
    pub axis: AxisId,
    /// Tiles in which one of these fails everywhere are not visited.
    pub within: Vec<Constraint>,
    /// Values from one tile to the next.
    pub carries: Vec<Carry>,
    /// What is done for each tile.
    pub body: Vec<Step>,
    /// Loads of the body that stand in shared memory, in the order of their first use.
    pub staged: Vec<ValueId>,
}

/// A load that stands in shared memory.
#[derive(Clone, PartialEq, Debug)]
pub struct Staged {
    /// What is loaded.
    pub view: View,
    /// Axis of the tile's rows, and of its contiguous columns.
    pub axes: [AxisId; 2],
    /// Its form.
    pub tile: Tile,
    /// First byte, within its stage if it is loaded in a loop.
    pub at: usize,
}

/// A load along the streamed axis, the same in all rows, that stands in shared memory: statistics of columns, copied in bulk with the tiles of its stage.
#[derive(Clone, PartialEq, Debug)]
pub struct Vector {
    /// What is loaded; a step along the streamed axis is one element.
    pub view: View,
    /// The streamed axis.
    pub along: AxisId,
    /// Bytes of an element.
    pub elem: usize,
    /// First byte within its stage.
    pub at: usize,
}

/// A program with its decisions.
pub struct Plan {
    /// The program, with the schedule's tiles.
    pub p: Program,
    /// The schedule.
    pub schedule: Schedule,
    /// The axis of rows.
    pub rows: Option<AxisId>,
    /// Column axes that are split over warps, in parts of the same length.
    pub split: Vec<AxisId>,
    /// Register tiles.
    pub fragment: Fragment,
    /// Matrix products are the tensor cores'.
    pub tensor: bool,
    /// Column slots of a thread per axis.
    pub slots: Vec<usize>,
    /// Dots by value.
    pub dots: BTreeMap<ValueId, Dot>,
    /// Products' starts, by value.
    pub inits: BTreeMap<ValueId, Vec<Vec<ValueId>>>,
    /// Loads in shared memory.
    pub staged: BTreeMap<ValueId, Staged>,
    /// Maxima stay behind: what rows correct accumulators by is mostly nothing.
    pub lazy: bool,
    /// Exponentials of what lies below a maximum, if the schedule has polynomials for a part of them.
    pub low: BTreeSet<ValueId>,
    /// Loads of single columns in shared memory, of kernels by warpgroups; all in one group of the ring.
    pub vectors: BTreeMap<ValueId, Vector>,
    /// Those of them that are loaded in a loop.
    pub looped: BTreeSet<ValueId>,
    /// Values that something other than a matrix product reads.
    pub in_registers: BTreeSet<ValueId>,
    /// Loads that only serial dots read: they stay in memory.
    pub direct: BTreeSet<ValueId>,
    /// Left operands of matrix products that stand in registers.
    pub packed: BTreeSet<ValueId>,
    /// The body.
    pub body: Vec<Step>,
    /// First byte of the stages, bytes of one stage, bytes in all.
    pub shared: [usize; 3],
    /// First byte of the room for sums across warps.
    pub exchange: usize,
    /// Of kernels by warpgroups.
    pub ring: Option<Ring>,
    /// Sizes that must be multiples of a number, because the schedule takes them for such.
    pub multiples: BTreeSet<(Dim, i64)>,
}

pub(super) fn walk<'a>(body: &'a [Stmt], f: &mut dyn FnMut(&'a Stmt)) {
    for s in body {
        f(s);
        if let Stmt::For(l) = s {
            walk(&l.body, f);
        }
    }
}

fn lets(p: &Program) -> Vec<(ValueId, &Op)> {
    let mut out = vec![];
    walk(&p.body, &mut |s| {
        if let Stmt::Let(v, op) = s {
            out.push((*v, op));
        }
    });
    out
}

fn show(p: &Program, v: ValueId) -> String {
    p.value(v).name.as_ref().map_or(format!("%{}", v.0), |n| format!("`{n}`"))
}

/// The axes that a store walks in one instance.
pub fn stored(p: &Program, view: &View) -> Vec<AxisId> {
    view.strides.iter().map(|(a, _)| *a).filter(|a| p.axis(*a).role != Role::Grid).collect()
}

pub(super) fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a.abs() } else { gcd(b, a % b) }
}

/// The rank of a value over `axes` if rows lie along `rows`.
pub fn rank_of(rows: Option<AxisId>, axes: &[AxisId]) -> Option<Rank> {
    let mut cols = axes.iter().filter(|a| Some(**a) != rows);
    let col = cols.next().copied();
    if cols.next().is_some() { None } else { Some(Rank { rows: axes.iter().any(|a| Some(*a) == rows), col }) }
}

/// How each dot is computed if rows lie along `rows`, and how many values then have no place.
fn classify(p: &Program, rows: Option<AxisId>) -> Result<BTreeMap<ValueId, Dot>, String> {
    let ops: BTreeMap<ValueId, &Op> = lets(p).into_iter().collect();
    let loaded = |v: ValueId| matches!(ops.get(&v), Some(Op::Load(_)));
    let mut dots = BTreeMap::new();
    let mut reads: BTreeSet<ValueId> = BTreeSet::new();
    for (v, op) in &ops {
        let Op::Dot { init, terms, sum } = op else {
            match op {
                Op::Map(_, args) => reads.extend(args),
                Op::Reduce(_, x, _) | Op::Fill { value: x, .. } => _ = reads.insert(*x),
                _ => {}
            }
            continue;
        };
        reads.extend(init.iter().flatten());
        let axes = &p.value(*v).axes;
        let rank = rank_of(rows, axes);
        let matrix = || {
            let (k, n) = match (sum.as_slice(), rank?) {
                ([k], Rank { rows: true, col: Some(n) }) if *k != n && Some(*k) != rows => (*k, n),
                _ => return None,
            };
            let mut oriented = vec![];
            for (a, b) in terms {
                let has = |v: ValueId, x: AxisId| p.value(v).axes.contains(&x);
                let (l, r) = if has(*a, rows?) { (*a, *b) } else { (*b, *a) };
                let exact = |v: ValueId, x: AxisId, y: AxisId| p.value(v).axes.len() == 2 && has(v, x) && has(v, y);
                if !(exact(l, rows?, k) && exact(r, n, k) && loaded(r)) {
                    return None;
                }
                oriented.push((l, r));
            }
            Some(Dot::Matrix { n, k, terms: oriented })
        };
        let all = |v: ValueId, w: ValueId| p.value(v).axes.iter().chain(&p.value(w).axes).copied().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>();
        let dot = if let Some(m) = matrix() {
            m
        } else if sum.len() == 1 && Some(sum[0]) != rows && terms.iter().all(|(a, b)| rank_of(rows, &all(*a, *b)).is_some()) {
            reads.extend(terms.iter().flat_map(|(a, b)| [*a, *b]));
            Dot::Row
        } else if rank.is_some() && terms.iter().all(|(a, b)| loaded(*a) && loaded(*b)) {
            Dot::Direct
        } else {
            return Err(format!("the dot {} of {} and {} fits no form: rows × columns, rows alone, or both operands in memory", show(p, *v), show(p, terms[0].0), show(p, terms[0].1)));
        };
        dots.insert(*v, dot);
    }
    walk(&p.body, &mut |s| match s {
        Stmt::Store(_, v) => _ = reads.insert(*v),
        Stmt::For(l) => reads.extend(l.carries.iter().flat_map(|c| [c.init, c.next])),
        Stmt::Let(..) => {}
    });
    for (v, _) in &ops {
        let operand = loaded(*v) && !reads.contains(v);
        if !operand && rank_of(rows, &p.value(*v).axes).is_none() {
            return Err(format!("{} has two column axes, but is no operand of a dot loaded from memory", show(p, *v)));
        }
    }
    let mut wide = None;
    walk(&p.body, &mut |s| {
        if let Stmt::Store(view, v) = s
            && rank_of(rows, &stored(p, view)).is_none()
        {
            wide = Some(*v);
        }
    });
    match wide {
        Some(v) => Err(format!("the store of {} has two column axes", show(p, v))),
        None => Ok(dots),
    }
}

/// What [`roles`] decides: the program in a form that suits the row axis, that axis, and how each dot is computed.
pub(super) type Roles = (Program, Option<AxisId>, BTreeMap<ValueId, Dot>);

/// The row axis, and how each dot is then computed; axes that have no place are taken out first, where they can be.
/// With `tf32`, factors of operands stand outside of products where they can, so that operands come from shared memory.
pub(super) fn roles(p: &Program, tf32: bool) -> Result<Roles, Error> {
    let mut form = axes::merged(&bare(p));
    if tf32 && p.operands == DType::F32 {
        let free = outside(&form);
        if roles_of(&free).is_ok_and(|r| r.2.values().any(|d| matches!(d, Dot::Matrix { .. }))) {
            form = free;
        }
    }
    let mut first = None;
    loop {
        match roles_of(&form) {
            Ok(r) => return Ok(r),
            Err(e) => _ = first.get_or_insert(e),
        }
        if let Ok(r) = roles_of(&outside(&form)) {
            return Ok(r);
        }
        match axes::written_out(&form).or_else(|| axes::apart(&form)) {
            Some(p) => form = p,
            None => return first.map_or_else(|| roles_of(p), Err),
        }
    }
}

fn roles_of(p: &Program) -> Result<Roles, Error> {
    let blocks: Vec<AxisId> = (0..p.axes.len() as u32).map(AxisId).filter(|a| matches!(p.axis(*a).role, Role::Block(_))).collect();
    // The axis along which results lie side by side is better a column.
    let side_by_side = |a: AxisId| {
        let mut yes = false;
        walk(&p.body, &mut |s| {
            if let Stmt::Store(v, _) = s {
                yes |= v.stride(a).is_some_and(|d| d.is_one());
            }
        });
        yes
    };
    let mut best: Option<(Roles, (usize, usize))> = None;
    let mut why = String::new();
    let mut order: Vec<Option<AxisId>> = vec![None];
    order.extend(blocks.iter().copied().filter(|a| !side_by_side(*a)).map(Some));
    order.extend(blocks.iter().copied().filter(|a| side_by_side(*a)).map(Some));
    for rows in order {
        let form = rows.map_or(p.clone(), |r| moved(p, r));
        match classify(&form, rows) {
            Err(m) => why = m,
            Ok(dots) => {
                let matrix = dots.values().filter(|d| matches!(d, Dot::Matrix { .. })).count();
                let direct = dots.values().filter(|d| **d == Dot::Direct).count();
                let score = (matrix, usize::MAX - direct);
                if best.as_ref().is_none_or(|b| score > b.1) {
                    best = Some(((form, rows, dots), score));
                }
            }
        }
    }
    best.map(|(r, _)| r).ok_or_else(|| refused(p, &why))
}

/// Whether a loop carries a value that is either what it was or another one, and exponentials of whose change correct what else is carried.
fn lazy(p: &Program) -> bool {
    let made: BTreeMap<ValueId, &Op> = lets(p).into_iter().collect();
    let kept = |c: &Carry| matches!(made.get(&c.next), Some(Op::Map(ir::prim::Elementwise::Select, x)) if x[2] == c.inside);
    let moves = |c: &Carry| made.values().any(|op| matches!(op, Op::Map(ir::prim::Elementwise::Sub, x) if x[0] == c.inside && x[1] == c.next));
    p.body.iter().any(|s| matches!(s, Stmt::For(l) if l.carries.iter().any(|c| kept(c) && moves(c))))
}

/// `p` with the schedule's tiles.
fn retile(p: &Program, rows: Option<AxisId>, s: &Schedule) -> Program {
    let mut p = p.clone();
    for (i, a) in p.axes.iter_mut().enumerate() {
        match &mut a.role {
            Role::Block(n) => *n = if Some(AxisId(i as u32)) == rows { s.rows } else { s.cols },
            Role::Stream(n) => *n = s.stream,
            Role::Grid | Role::Full(_) => {}
        }
    }
    p
}

impl Plan {
    /// Decides everything.
    ///
    /// # Errors
    /// What has no form on a GPU, and which limit of the target the schedule exceeds.
    pub fn new(p: &Program, target: &GpuTarget, schedule: &Schedule) -> Result<Plan, Error> {
        Plan::of(&roles(p, schedule.tf32)?, target, schedule)
    }
    /// The same where the roles of axes are decided: they do not depend on the schedule.
    pub(super) fn of((p, rows, dots): &Roles, target: &GpuTarget, schedule: &Schedule) -> Result<Plan, Error> {
        if p.compute != DType::F32 {
            return Err(refused(p, &format!("GPUs compute in f32 here, not in {0} (hint: `--dtype f32`, bf16 or f16; {0} runs on cpu, interp and reference)", p.compute)));
        }
        let (rows, dots) = (*rows, dots.clone());
        let p = retile(p, rows, schedule);
        let tensor = (p.operands != DType::F32 || schedule.tf32) && dots.values().any(|d| matches!(d, Dot::Matrix { .. }));
        let bad = |m: String| Err(refused(&p, &m));
        if p.body.iter().any(|s| matches!(s, Stmt::For(l) if l.stores() && !l.within.is_empty())) {
            return bad("a loop that stores in every tile and leaves out parts of tiles".into());
        }
        let fragment = schedule.fragment;
        if fragment.rows_per_block() != schedule.rows && rows.is_some() {
            return bad(format!("the schedule has {} rows, but its fragment {}", schedule.rows, fragment.rows_per_block()));
        }
        if schedule.tf32 && (!tensor || p.operands != DType::F32 || schedule.warpgroups) {
            return bad("tf32 is for products of f32 matrices by warps".into());
        }
        if schedule.persistent && !schedule.warpgroups {
            return bad("persistent blocks are those of warpgroups: one that copies goes on to the next tile".into());
        }
        if schedule.multicast && !schedule.warpgroups {
            return bad("clusters are those of blocks by warpgroups, whose tiles are copied in bulk".into());
        }
        if fragment.threads() > target.threads_per_block {
            return bad(format!("the schedule has {} threads a block, but {} allows {}", fragment.threads(), target.name, target.threads_per_block));
        }
        if !fragment.threads().is_power_of_two() && !schedule.warpgroups {
            return bad(format!("a block must have a power of two of threads, not {}", fragment.threads()));
        }
        if tensor && (fragment.lanes, fragment.vector, fragment.rows % 2) != (4, 2, 0) {
            return bad("tensor cores need fragments of four lanes, vectors of two and an even number of rows".into());
        }
        let granule = if tensor { 16 } else { 1 };
        if schedule.stream % granule != 0 || schedule.cols % (granule * fragment.warps[1]) != 0 || schedule.stages == 0 {
            return bad(format!("tiles of the streamed and of a column axis must be multiples of {granule}, and there must be a stage; the schedule has {} and {}, {} stages", schedule.stream, schedule.cols, schedule.stages));
        }
        // One column axis may be split over warps: a block axis, or the longest axis in whole; by warpgroups also those as long, since each may be that of an accumulator.
        let columns = (0..p.axes.len() as u32).map(AxisId).filter(|a| Some(*a) != rows && p.axis(*a).role != Role::Grid);
        let first = columns.clone().find(|a| matches!(p.axis(*a).role, Role::Block(_))).or_else(|| columns.clone().max_by_key(|a| p.axis(*a).extent())).filter(|_| fragment.warps[1] > 1);
        let equals = |a: AxisId, b: AxisId| schedule.warpgroups && [a, b].iter().all(|x| matches!(p.axis(*x).role, Role::Full(_))) && p.axis(a).extent() == p.axis(b).extent();
        let split: Vec<AxisId> = first.map_or(vec![], |f| columns.clone().filter(|a| *a == f || equals(*a, f)).collect());
        // Matrix units take sixteen columns at once: a streamed axis is split at such places only.
        if let Some(a) = split.iter().copied().find(|a| tensor && matches!(p.axis(*a).role, Role::Stream(_)) && p.axis(*a).extent() % (granule * fragment.warps[1]) != 0) {
            return bad(format!("{} elements of `{}` are split over {} warps, {granule} columns at once", p.axis(a).extent(), p.axis(a).name, fragment.warps[1]));
        }
        let mut slots = vec![0; p.axes.len()];
        for a in columns {
            let extent = p.axis(a).extent();
            let extent = if split.contains(&a) { extent.div_ceil(fragment.warps[1]) } else { extent };
            let summed = dots.values().any(|d| matches!(d, Dot::Matrix { k, .. } if *k == a));
            let extent = if tensor && summed { extent.next_multiple_of(16) } else { extent };
            slots[a.index()] = fragment.slots(extent);
        }
        let mut plan = Plan {
            schedule: schedule.clone(), rows, split, fragment, tensor, slots, dots,
            inits: BTreeMap::new(), staged: BTreeMap::new(), lazy: lazy(&p), low: if schedule.polynomial > 0 { below_maximum(&p) } else { BTreeSet::new() }, vectors: BTreeMap::new(), looped: BTreeSet::new(), in_registers: BTreeSet::new(), packed: BTreeSet::new(), direct: BTreeSet::new(),
            body: vec![], shared: [0; 3], exchange: 0, ring: None, multiples: BTreeSet::new(), p,
        };
        plan.uses();
        let body = plan.p.body.clone();
        plan.stage(&body)?;
        if let Some(v) = plan.dots.values().find_map(|d| match d {
            Dot::Matrix { k, terms, .. } if tensor && plan.split.contains(k) => terms.iter().map(|t| t.0).find(|l| plan.packed.contains(l)),
            _ => None,
        }) {
            return Err(refused(&plan.p, &format!("{} is summed over an axis that is split over warps, and stands in their registers", show(&plan.p, v))));
        }
        plan.body = plan.steps(&body);
        if schedule.warpgroups {
            super::warpgroup::arrange(&mut plan, target)?;
        }
        let bytes = plan.shared[2];
        if bytes > target.shared_per_block {
            return Err(refused(&plan.p, &format!("the schedule needs {bytes} bytes of shared memory, but a block of {} has {}", target.name, target.shared_per_block)));
        }
        Ok(plan)
    }

    /// The rank of a value in registers.
    pub fn rank(&self, v: ValueId) -> Rank {
        rank_of(self.rows, &self.p.value(v).axes).unwrap_or(Rank::NONE)
    }
    /// Rows × column slots of a rank.
    pub fn shape(&self, r: Rank) -> (usize, usize) {
        (if r.rows { self.fragment.rows } else { 1 }, r.col.map_or(1, |a| self.slots[a.index()]))
    }
    /// Whether loops are the longer the greater the position along `axis`, and begin at the same tile.
    pub fn grows_along(&self, axis: AxisId) -> bool {
        let sign = |c: &Constraint, a: AxisId| c.axes.iter().filter(|(x, _)| *x == a).map(|(_, k)| k.signum()).sum::<i64>();
        self.body.iter().any(|s| match s {
            Step::For(l) => l.within.iter().any(|c| sign(c, axis) > 0 && sign(c, l.axis) < 0) && !l.within.iter().any(|c| sign(c, l.axis) > 0),
            _ => false,
        })
    }
    /// Whether a load in shared memory is the same for both blocks of a cluster.
    pub fn for_both(&self, v: ValueId) -> bool {
        let view = self.staged.get(&v).map(|s| &s.view).or(self.vectors.get(&v).map(|x| &x.view));
        self.schedule.multicast && self.looped.contains(&v) && view.is_some_and(|w| !w.strides.iter().any(|(a, _)| Some(*a) == self.rows))
    }
    /// Whether every tile of the grid has loops of the same length.
    pub fn even(&self) -> bool {
        self.body.iter().all(|s| !matches!(s, Step::For(l) if !l.within.is_empty()))
    }
    /// Whether products with columns along `n`, which no warp has a part of, are computed by halves in two warps and exchanged.
    pub fn shared_columns(&self, mut values: impl Iterator<Item = ValueId>, n: AxisId) -> bool {
        self.tensor && self.fragment.warps[1] == 2 && !self.split.contains(&n) && self.slots[n.index()] % 8 == 0 && values.all(|v| self.inits[&v].is_empty())
    }
    /// Threads that hold rows, and those that copy for them.
    pub fn threads(&self) -> usize {
        self.fragment.threads() + if self.ring.is_some() { 128 } else { 0 }
    }
    /// What operands of matrix products are in shared memory.
    pub fn operand(&self) -> DType {
        if self.tensor { self.p.operands } else { DType::F32 }
    }

    /// A number that the size is a multiple of, whatever the names stand for.
    pub fn divisor(&self, d: &Dim) -> i64 {
        let mut all = 0;
        for (num, den, powers) in d.monomials() {
            // `H/G` is whole if it is an axis' size.
            let below: Vec<_> = powers.iter().filter(|(_, p)| *p < 0).collect();
            let whole = below.is_empty()
                || self.p.axes.iter().any(|a| {
                    let m: Vec<_> = a.size.monomials().collect();
                    matches!(m.as_slice(), [(1, 1, p)] if below.iter().all(|b| p.contains(b)) && p.iter().all(|x| x.1 < 0 || powers.iter().any(|y| y.0 == x.0 && y.1 >= x.1)))
                });
            if den != 1 || !whole {
                return 1;
            }
            all = gcd(all, num);
        }
        if all == 0 { 1 << 20 } else { all }
    }

    fn uses(&mut self) {
        let mut reads = BTreeSet::new();
        let p = &self.p;
        walk(&p.body, &mut |s| match s {
            Stmt::Let(v, Op::Dot { init, terms, .. }) => {
                reads.extend(init.iter().flatten().copied());
                self.inits.insert(*v, init.clone());
                if self.dots[v] == Dot::Row {
                    reads.extend(terms.iter().flat_map(|(a, b)| [*a, *b]));
                }
            }
            Stmt::Let(_, Op::Map(_, args)) => reads.extend(args.iter().copied()),
            Stmt::Let(_, Op::Reduce(_, x, _) | Op::Fill { value: x, .. }) | Stmt::Store(_, x) => _ = reads.insert(*x),
            Stmt::Let(..) => {}
            Stmt::For(l) => reads.extend(l.carries.iter().flat_map(|c| [c.init, c.next])),
        });
        let serial = self.dots.iter().filter(|(_, d)| **d == Dot::Direct).map(|(v, _)| *v).collect::<BTreeSet<_>>();
        let mut direct = BTreeSet::new();
        walk(&p.body, &mut |s| {
            if let Stmt::Let(v, Op::Dot { terms, .. }) = s
                && serial.contains(v)
            {
                direct.extend(terms.iter().flat_map(|(a, b)| [*a, *b]).filter(|v| !reads.contains(v)));
            }
        });
        self.direct = direct;
        self.in_registers = reads;
    }

    /// Gives every load that a matrix product reads its place in shared memory.
    fn stage(&mut self, body: &[Stmt]) -> Result<(), Error> {
        let ops: BTreeMap<ValueId, Op> = lets(&self.p).into_iter().map(|(v, o)| (v, o.clone())).collect();
        let mut inside: BTreeMap<ValueId, bool> = BTreeMap::new();
        for s in body {
            match s {
                Stmt::Let(v, _) => _ = inside.insert(*v, false),
                Stmt::For(l) => {
                    for t in &l.body {
                        match t {
                            Stmt::Let(v, _) => _ = inside.insert(*v, true),
                            Stmt::For(_) => return Err(refused(&self.p, "a loop in a loop")),
                            Stmt::Store(..) => {}
                        }
                    }
                }
                Stmt::Store(..) => {}
            }
        }
        let elem = self.operand().bytes();
        // Whole steps of the summed axis, and whole lanes of a column axis.
        let granule = if self.tensor { 16 } else { self.fragment.lanes.max(4) };
        let mut outer = 0;
        let dots = self.dots.clone();
        for d in dots.values() {
            let Dot::Matrix { terms, .. } = d else { continue };
            for v in terms.iter().flat_map(|(l, r)| [*l, *r]) {
                let Some(Op::Load(view)) = ops.get(&v) else {
                    self.packed.insert(v);
                    continue;
                };
                let axes = &self.p.value(v).axes;
                // Columns are contiguous in memory, if an axis is.
                let contiguous = axes.iter().position(|a| view.stride(*a).is_some_and(|s| s.is_one())).unwrap_or(1);
                let axes = [axes[1 - contiguous], axes[contiguous]];
                let [r, c] = axes.map(|a| self.p.axis(a).extent().next_multiple_of(granule));
                // Descriptors of warpgroups know whole panels.
                let c = if self.schedule.warpgroups { c.next_multiple_of(PANEL / elem) } else { c };
                // Warps along columns have whole instructions each, and read single elements: all that they read exists.
                let c = if self.schedule.tf32 { c.next_multiple_of(granule * self.fragment.warps[1]) } else { c };
                self.staged.insert(v, Staged { view: view.clone(), axes, tile: Tile { rows: r, cols: c, elem, linear: !self.tensor || self.schedule.tf32 }, at: 0 });
            }
        }
        self.looped = self.staged.keys().copied().filter(|v| inside[v]).collect();
        let mut at = 0;
        for (v, s) in self.staged.iter_mut().filter(|(v, _)| !inside[*v]) {
            let _ = v;
            s.at = at;
            at += s.tile.bytes();
        }
        let mut stage = 0;
        for s in body {
            let Stmt::For(l) = s else { continue };
            let mut size = 0;
            for t in &l.body {
                if let Stmt::Let(v, _) = t
                    && let Some(s) = self.staged.get_mut(v)
                {
                    s.at = size;
                    size += s.tile.bytes();
                }
            }
            if self.schedule.warpgroups && size > 0 {
                for (v, view, elem) in self.columns(l) {
                    self.vectors.insert(v, Vector { view, along: l.axis, elem, at: size });
                    size += (elem * self.p.axis(l.axis).extent()).next_multiple_of(PANEL);
                }
                // Tiles of the next stage begin where their swizzle does.
                size = size.next_multiple_of(8 * PANEL);
            }
            stage = stage.max(size);
        }
        outer += at;
        let end = outer + stage * self.schedule.stages;
        let sums = if self.fragment.warps[1] > 1 { 4 * self.fragment.warps[1] * self.schedule.rows.max(1) } else { 0 };
        // At most all products of a loop over the same axes exchange at once.
        let mut halves: BTreeMap<(AxisId, AxisId), usize> = BTreeMap::new();
        for (v, d) in &self.dots {
            if let Dot::Matrix { n, k, .. } = d
                && self.shared_columns([*v].into_iter(), *n)
            {
                *halves.entry((*n, *k)).or_default() += self.fragment.rows * self.slots[n.index()] / 2;
            }
        }
        let exchanged = halves.values().max().copied().unwrap_or(0) * 4 * self.fragment.threads();
        self.shared = [outer, stage, end + sums.max(exchanged)];
        self.exchange = end;
        Ok(())
    }

    /// Loads of the loop that are the same in all rows, contiguous along its axis, and of a type that bulk copies know.
    fn columns(&self, l: &ir::tile::Loop) -> Vec<(ValueId, View, usize)> {
        let mut out = vec![];
        for s in &l.body {
            if let Stmt::Let(v, Op::Load(view)) = s
                && !self.staged.contains_key(v)
                && !self.direct.contains(v)
                && self.rank(*v) == (Rank { rows: false, col: Some(l.axis) })
                && view.stride(l.axis).is_some_and(Dim::is_one)
                && matches!(self.p.buffers[view.buffer.index()].dtype, DType::F32 | DType::BF16 | DType::F16)
            {
                let elem = self.p.buffers[view.buffer.index()].dtype.bytes();
                // A copy begins at a multiple of 16 bytes, or the chip stops (seen on an H100).
                if self.unaligned(view, l.axis, elem).iter().all(|d| self.schedule.aligned && d.as_fixed().is_none()) {
                    out.push((*v, view.clone(), elem));
                }
            }
        }
        out
    }

    /// The view's offset and strides, but that of the axis `inner`, that are not known to be multiples of 16 bytes.
    pub fn unaligned<'a>(&self, view: &'a View, inner: AxisId, elem: usize) -> Vec<&'a Dim> {
        let outer = view.strides.iter().filter(|(a, _)| *a != inner).map(|(_, d)| d).chain([&view.offset]);
        outer.filter(|d| self.divisor(d) % (16 / elem as i64) != 0).collect()
    }

    /// Statements in order, with matrix products over the same axes together where nothing between them forbids it: a product
    /// moves up to where its operands are known, or down to where its result is read.
    fn steps(&self, body: &[Stmt]) -> Vec<Step> {
        let defined: BTreeMap<ValueId, usize> = body.iter().enumerate().flat_map(|(i, s)| match s {
            Stmt::Let(v, _) => vec![(*v, i)],
            Stmt::For(l) => l.carries.iter().map(|c| (c.after, i)).collect(),
            Stmt::Store(..) => vec![],
        }).collect();
        let reads = |s: &Stmt| -> Vec<ValueId> {
            let of = |c: &[Constraint]| c.iter().flat_map(|c| c.scalars.iter().map(|(v, _)| *v)).collect::<Vec<_>>();
            match s {
                Stmt::Let(_, op) => match op {
                    Op::Map(_, a) => a.clone(),
                    Op::Reduce(_, x, _) => vec![*x],
                    Op::Fill { value, keep, .. } => [vec![*value], of(keep)].concat(),
                    Op::Dot { init, terms, .. } => init.iter().flatten().copied().chain(terms.iter().flat_map(|(a, b)| [*a, *b])).collect(),
                    _ => vec![],
                },
                Stmt::Store(_, v) => vec![*v],
                Stmt::For(l) => {
                    let mut out = of(&l.within);
                    out.extend(l.carries.iter().map(|c| c.init));
                    walk(&l.body, &mut |s| {
                        if let Stmt::Let(_, op) = s {
                            match op {
                                Op::Map(_, a) => out.extend(a),
                                Op::Reduce(_, x, _) => out.push(*x),
                                Op::Fill { value, keep, .. } => {
                                    out.push(*value);
                                    out.extend(of(keep));
                                }
                                Op::Dot { init, terms, .. } => out.extend(init.iter().flatten().copied().chain(terms.iter().flat_map(|(a, b)| [*a, *b]))),
                                _ => {}
                            }
                        }
                    });
                    out
                }
            }
        };
        // What the loop copies ahead is there from the start.
        let there = |v: &ValueId| self.looped.contains(v);
        let ready = |i: usize| reads(&body[i]).iter().filter(|v| !there(v)).filter_map(|v| defined.get(v)).max().map_or(0, |d| d + 1);
        let first_use = |v: ValueId| (0..body.len()).find(|i| reads(&body[*i]).contains(&v)).unwrap_or(body.len());
        // (axes, ready, first use, members)
        let mut groups: Vec<(AxisId, AxisId, usize, usize, Vec<usize>)> = vec![];
        for (i, s) in body.iter().enumerate() {
            let Stmt::Let(v, Op::Dot { .. }) = s else { continue };
            let Dot::Matrix { n, k, .. } = &self.dots[v] else { continue };
            let (r, u) = (ready(i), first_use(*v));
            match groups.iter_mut().find(|g| (g.0, g.1) == (*n, *k) && g.2.max(r) <= g.3.min(u)) {
                Some(g) => {
                    g.2 = g.2.max(r);
                    g.3 = g.3.min(u);
                    g.4.push(i);
                }
                None => groups.push((*n, *k, r, u, vec![i])),
            }
        }
        let sound = |steps: &[Step]| {
            let mut open: BTreeSet<ValueId> = defined.keys().copied().collect();
            for s in steps {
                let (read, made) = match s {
                    Step::Let(v, _) => (reads(&body[defined[v]]), vec![*v]),
                    Step::Products(vs) => (vs.iter().flat_map(|v| reads(&body[defined[v]])).collect(), vs.clone()),
                    Step::Store(_, v) => (vec![*v], vec![]),
                    Step::Issue(_) => continue,
                    Step::For(l) => (l.carries.first().map_or(vec![], |c| reads(&body[defined[&c.after]])), l.carries.iter().map(|c| c.after).collect()),
                };
                if read.iter().any(|v| open.contains(v) && !(there(v) && matches!(s, Step::Products(_)))) {
                    return false;
                }
                made.iter().for_each(|v| _ = open.remove(v));
            }
            true
        };
        let grouped = self.ordered(body, &groups.iter().map(|g| (g.2, g.4.clone())).collect::<Vec<_>>());
        if sound(&grouped) {
            return grouped;
        }
        self.ordered(body, &groups.iter().flat_map(|g| g.4.iter().map(|i| (*i, vec![*i]))).collect::<Vec<_>>())
    }

    /// The body with groups of products (where, which statements) in place of the products.
    fn ordered(&self, body: &[Stmt], groups: &[(usize, Vec<usize>)]) -> Vec<Step> {
        let value = |i: usize| match &body[i] {
            Stmt::Let(v, _) => *v,
            _ => ValueId(u32::MAX),
        };
        let mut out = vec![];
        for i in 0..=body.len() {
            for g in groups.iter().filter(|g| g.0 == i) {
                // What reads an accumulator's old content comes before what replaces it: the allocator then needs no copy.
                let mut members: Vec<ValueId> = g.1.iter().map(|i| value(*i)).collect();
                members.sort_by_key(|v| std::cmp::Reverse(self.inits[v].len()));
                out.push(Step::Products(members));
            }
            let Some(s) = body.get(i) else { break };
            match s {
                Stmt::Let(v, op) if !matches!(self.dots.get(v), Some(Dot::Matrix { .. })) => out.push(Step::Let(*v, op.clone())),
                Stmt::Let(..) => {}
                Stmt::Store(w, v) => out.push(Step::Store(w.clone(), *v)),
                Stmt::For(l) => {
                    let staged = l.body.iter().filter_map(|s| if let Stmt::Let(v, _) = s { self.staged.contains_key(v).then_some(*v) } else { None }).collect();
                    out.push(Step::For(Stream { axis: l.axis, within: l.within.clone(), carries: l.carries.clone(), body: self.steps(&l.body), staged }));
                }
            }
        }
        out
    }
}
