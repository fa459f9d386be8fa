//! A block, or the blocks of a cluster together: warps in turn, each until it waits; barriers; barrier objects; what arrives late.
//!
//! Whatever is asynchronous happens as late as the program permits: copies of a thread at the wait that covers them, bulk copies when nothing else can run,
//! products of a warpgroup at its wait. A program that waits for too little then reads poison, or memory that is marked as in flight.

mod alu;
mod cluster;
mod exchange;
mod group;
mod object;
mod space;
mod tensor;

use super::count::Stats;
use super::decode::{Kernel, Region};
use super::fault::{Fault, FaultKind, Problem, problem};
use super::matrix::Model;
use super::memory::Global;
use super::op::{Address, Class, Op, Place, Slot, Vote};
use super::shared::{Shared, join};
use super::tensor_map::TensorMap;
use super::warp::{FULL, Group, NONE, Position, Wait, Warp};
use std::collections::{BTreeMap, VecDeque};

/// What all blocks of a launch share.
pub(super) struct Launch<'a> {
    pub kernel: &'a Kernel,
    pub lines: &'a [String],
    pub global: &'a Global,
    pub params: &'a [u8],
    /// Tensor maps by offset into the parameters, with their allocations.
    pub maps: &'a BTreeMap<u32, (TensorMap, usize)>,
    pub model: Model,
    /// Instructions of a block (of a cluster together) at most.
    pub budget: u64,
}

/// `barrier.cta`
#[derive(Default)]
struct Barrier {
    /// As the instruction says it; none: all threads.
    count: Option<u32>,
    arrived: u32,
    waiting: Vec<usize>,
    clock: Vec<u32>,
    ones: u32,
    votes: u32,
}

/// What a completed barrier tells those who waited.
struct Wake {
    warp: usize,
    wait: Wake2,
}

enum Wake2 {
    Barrier(u32, u32, u32),
    Phase(u32),
    Cluster,
}

/// Barriers of a block: those with numbers, and one more.
const BARRIERS: usize = 17;

/// A block that runs, or a cluster of them.
pub(super) struct Block<'a> {
    launch: &'a Launch<'a>,
    /// Each block's.
    at: &'a [Position],
    shared: Shared,
    /// One block's after the other's.
    barriers: Vec<Barrier>,
    meeting: cluster::Meeting,
    objects: BTreeMap<u32, object::Object>,
    bulk: VecDeque<tensor::Bulk>,
    /// Lanes of each warp that have not left.
    alive: Vec<u32>,
    wakes: Vec<Wake>,
    stats: Stats,
    issued: u64,
}

/// What happens after an instruction.
enum Next {
    Go,
    Jump(u32),
    /// Leave the group as it is, waiting; `true`: behind this instruction.
    Wait(Wait, bool),
}

impl<'a> Block<'a> {
    /// Runs one block, or the blocks of a cluster.
    pub(super) fn run(launch: &'a Launch<'a>, at: &'a [Position]) -> Result<Stats, Fault> {
        let k = launch.kernel;
        let each = at[0].threads.iter().product::<u32>().div_ceil(32) as usize;
        let warps = each * at.len();
        let mut regions = k.shared.clone();
        if at[0].dynamic_shared > 0 {
            regions.push(Region { name: k.dynamic_name.clone().unwrap_or("dynamic".into()), start: k.dynamic, end: k.dynamic + at[0].dynamic_shared });
        }
        let size = regions.iter().map(|r| r.end).max().unwrap_or(0);
        let agents = warps + 1 + warps.div_ceil(4);
        let mut ws: Vec<Warp> = (0..warps).map(|i| Warp::new(k, i, i % each, &at[i / each])).collect();
        let mut b = Block {
            launch,
            at,
            shared: Shared::new(size, at.len(), regions, warps, agents),
            barriers: (0..BARRIERS * at.len()).map(|_| Barrier::default()).collect(),
            meeting: cluster::Meeting::new(warps),
            objects: BTreeMap::new(),
            bulk: VecDeque::new(),
            alive: ws.iter().map(|w| w.alive).collect(),
            wakes: vec![],
            stats: Stats::new(k.code.len()),
            issued: 0,
        };
        b.schedule(&mut ws)?;
        Ok(b.stats)
    }

    /// The block, in the cluster, of a warp.
    fn rank(&self, warp: usize) -> usize {
        warp * self.at.len() / self.alive.len()
    }
    /// The number, in order, of a warp's block in the grid.
    fn linear(&self, warp: usize) -> u32 {
        self.at[self.rank(warp)].linear
    }
    /// A block's warps.
    fn warps_of(&self, rank: usize) -> std::ops::Range<usize> {
        let each = self.alive.len() / self.at.len();
        rank * each..(rank + 1) * each
    }

    /// The copy engine's number among the agents.
    fn engine(&self) -> usize {
        self.alive.len()
    }

    fn schedule(&mut self, ws: &mut [Warp]) -> Result<(), Fault> {
        let mut idle = 0;
        loop {
            let mut progress = false;
            for i in 0..ws.len() {
                if ws[i].runnable() {
                    self.run_warp(&mut ws[i])?;
                    progress = true;
                    if !self.wakes.is_empty() {
                        idle = 0;
                    }
                    self.wake(ws);
                    self.rendezvous(ws, i / 4)?;
                }
            }
            if ws.iter().all(Warp::done) {
                break;
            }
            if progress {
                continue;
            }
            // Nothing runs. Who asked and got no may ask once more; then what is asynchronous must happen, one thing at a time.
            let waits = ws.iter().flat_map(|w| &w.groups).any(|g| g.wait == Wait::Yield);
            if waits && (idle == 0 || self.bulk.is_empty()) && idle < 1000 {
                idle += 1;
                for g in ws.iter_mut().flat_map(|w| &mut w.groups).filter(|g| g.wait == Wait::Yield) {
                    g.wait = Wait::Run;
                }
                continue;
            }
            idle = 0;
            // The newest first: that one has come says nothing of those before it.
            let Some(bulk) = self.bulk.pop_back() else { return Err(self.deadlock(ws)) };
            let (line, warp, lane) = (bulk.line, bulk.warp, bulk.lane);
            self.complete(bulk).map_err(|p| self.fault(*p, line, Some((&ws[warp], 1 << lane))))?;
            self.wake(ws);
        }
        if let Some(b) = self.bulk.front() {
            let p: Result<(), Problem> = problem(FaultKind::InFlight, "the block ends while a bulk copy into its shared memory is in flight");
            let (line, warp, lane) = (b.line, b.warp, b.lane);
            p.map_err(|p| self.fault(*p, line, Some((&ws[warp], 1 << lane))))?;
        }
        Ok(())
    }

    fn wake(&mut self, ws: &mut [Warp]) {
        for wake in std::mem::take(&mut self.wakes) {
            match wake.wait {
                Wake2::Barrier(id, ones, votes) => {
                    let w = &mut ws[wake.warp];
                    for i in 0..w.groups.len() {
                        let g = w.groups[i];
                        match g.wait {
                            Wait::Barrier(b) if b == id => w.groups[i].wait = Wait::Run,
                            Wait::Reduce(b, vote, d) if b == id => {
                                reduce_result(w, g.mask, vote, d, ones, votes);
                                w.groups[i].wait = Wait::Run;
                            }
                            _ => {}
                        }
                    }
                }
                Wake2::Cluster => {
                    for g in ws.iter_mut().flat_map(|w| &mut w.groups).filter(|g| g.wait == Wait::Cluster) {
                        g.wait = Wait::Run;
                    }
                }
                Wake2::Phase(at) => {
                    for g in ws.iter_mut().flat_map(|w| &mut w.groups).filter(|g| g.wait == Wait::Phase(at)) {
                        g.wait = Wait::Run;
                    }
                }
            }
        }
    }

    fn deadlock(&self, ws: &[Warp]) -> Fault {
        let mut what = vec![];
        let mut first = None;
        for w in ws {
            for g in &w.groups {
                let line = self.launch.kernel.code[g.pc as usize].line;
                let why = match g.wait {
                    Wait::Barrier(b) | Wait::Reduce(b, ..) => {
                        let bar = &self.barriers[b as usize];
                        format!("at barrier {}, which has {} of {} threads", b as usize % BARRIERS, bar.arrived, bar.count.unwrap_or_else(|| self.everyone(b as usize / BARRIERS)))
                    }
                    Wait::Phase(a) => match (self.shared.describe_place(a as usize), self.objects.get(&a)) {
                        (place, Some(o)) => format!("for the phase of the barrier at {place}: {}", o.describe()),
                        (place, None) => format!("for the phase of the barrier at {place}"),
                    },
                    Wait::Cluster => "at the cluster's barrier".to_string(),
                    Wait::Group(_) => "for the other warps of its warpgroup".to_string(),
                    Wait::Lanes => "for its other lanes".to_string(),
                    Wait::Yield => "asks again and again".to_string(),
                    Wait::Run => "for nothing".to_string(),
                };
                first.get_or_insert((line, w.index, g.mask));
                what.push(format!("{} {why} (line {line})", self.name(w.index)));
            }
        }
        what.truncate(8);
        let (line, warp, mask) = first.unwrap_or((0, 0, 1));
        let r: Result<(), Problem> = problem(FaultKind::Deadlock, format!("everything waits: {}", what.join("; ")));
        match r {
            Err(p) => self.fault(*p, line, Some((&ws[warp], mask))),
            Ok(()) => unreachable!("a problem is an error"),
        }
    }

    /// A warp, for people.
    fn name(&self, warp: usize) -> String {
        let rank = self.rank(warp);
        let own = warp - self.warps_of(rank).start;
        if self.at.len() > 1 { format!("warp {own} of block {rank} of the cluster") } else { format!("warp {own}") }
    }

    fn fault(&self, p: super::fault::Trouble, line: u32, warp: Option<(&Warp, u32)>) -> Fault {
        let line = p.line.unwrap_or(line);
        let thread = warp.map(|(w, mask)| w.tid[p.lane.unwrap_or(mask.trailing_zeros()).min(31) as usize]);
        Fault {
            kind: p.kind,
            kernel: self.launch.kernel.name.clone(),
            line,
            text: self.launch.lines.get(line.wrapping_sub(1) as usize).cloned().unwrap_or_default(),
            block: self.at[warp.map_or(0, |(w, _)| self.rank(w.index))].block,
            thread,
            address: p.address,
            message: p.message,
        }
    }

    /// Runs a warp until all of its groups wait or have left.
    fn run_warp(&mut self, w: &mut Warp) -> Result<(), Fault> {
        loop {
            // The lowest program counter among those that can run; groups at the same place become one.
            // One that waits for lanes is asked again when nothing is left before it.
            let first = |pc: u32| w.groups.iter().filter(|g| g.pc <= pc).count() == 1;
            let Some(pc) = w.groups.iter().filter(|g| g.wait == Wait::Run || (g.wait == Wait::Lanes && first(g.pc))).map(|g| g.pc).min() else { return Ok(()) };
            let mut mask = 0;
            w.groups.retain(|g| {
                let here = g.pc == pc && matches!(g.wait, Wait::Run | Wait::Lanes);
                if here {
                    mask |= g.mask;
                }
                !here
            });
            // Behind the first of these it is another group's turn; at the second ones this group meets another.
            let limit = w.groups.iter().filter(|g| g.wait == Wait::Run).map(|g| g.pc).min().unwrap_or(u32::MAX);
            let meet: Vec<u32> = w.groups.iter().filter(|g| g.wait == Wait::Lanes).map(|g| g.pc).collect();
            let mut g = Group { pc, mask, wait: Wait::Run };
            let r = self.run_group(w, &mut g, limit, &meet);
            if let Err(p) = r {
                let line = self.launch.kernel.code[g.pc as usize].line;
                return Err(self.fault(*p, line, Some((w, g.mask))));
            }
            if g.mask != 0 {
                w.groups.push(g);
            }
        }
    }

    fn run_group(&mut self, w: &mut Warp, g: &mut Group, limit: u32, meet: &[u32]) -> Result<(), Problem> {
        let launch = self.launch;
        let k = launch.kernel;
        loop {
            let inst = &k.code[g.pc as usize];
            self.issued += 1;
            if self.issued > launch.budget {
                return problem(FaultKind::Runaway, format!("the block has issued {} instructions, which is the limit", launch.budget));
            }
            self.stats.issues[g.pc as usize] += 1;
            let active = if inst.guard == NONE {
                g.mask
            } else {
                let p = w.get_pred(k, inst.guard, g.mask)?;
                g.mask & if inst.negated { !p } else { p }
            };
            self.stats.lanes[g.pc as usize] += active.count_ones() as u64;
            let next = match inst.op {
                Op::Branch { to } => {
                    let rest = g.mask & !active;
                    if active == 0 {
                        Next::Go
                    } else if rest == 0 {
                        Next::Jump(to)
                    } else {
                        w.groups.push(Group { pc: to, mask: active, wait: Wait::Run });
                        g.mask = rest;
                        g.pc += 1;
                        return Ok(());
                    }
                }
                Op::BranchTable { index, targets } => {
                    let index = *w.get(k, index, active)?;
                    let targets = k.slots(targets);
                    for l in 0..32 {
                        if active >> l & 1 != 0 {
                            match targets.get(index[l] as usize) {
                                Some(t) => w.groups.push(Group { pc: *t, mask: 1 << l, wait: Wait::Run }),
                                None => return problem(FaultKind::Undefined, format!("the index {} has no target; there are {}", index[l], targets.len())),
                            }
                        }
                    }
                    g.mask &= !active;
                    g.pc += 1;
                    return Ok(());
                }
                Op::Exit => {
                    if active == 0 {
                        Next::Go
                    } else {
                        self.exit(w, active)?;
                        g.mask &= !active;
                        if g.mask == 0 {
                            return Ok(());
                        }
                        Next::Go
                    }
                }
                op => {
                    if active == 0 {
                        Next::Go
                    } else {
                        self.execute(w, g.pc, op, inst.class, active)?
                    }
                }
            };
            match next {
                Next::Go => g.pc += 1,
                Next::Jump(to) => g.pc = to,
                Next::Wait(wait, behind) => {
                    // With a guard, the lanes that it leaves out go on.
                    if active != g.mask {
                        w.groups.push(Group { pc: g.pc + 1, mask: g.mask & !active, wait: Wait::Run });
                        g.mask = active;
                    }
                    g.wait = wait;
                    g.pc += behind as u32;
                    return Ok(());
                }
            }
            if g.pc >= limit || meet.contains(&g.pc) {
                return Ok(());
            }
        }
    }

    /// Lanes leave.
    fn exit(&mut self, w: &mut Warp, mask: u32) -> Result<(), Problem> {
        if let Some(c) = w.copies.iter().find(|c| mask >> c.lane & 1 != 0 && c.group == u32::MAX) {
            let r: Result<(), Problem> = problem(FaultKind::MissingCommit, "the thread ends with an asynchronous copy that was never committed to a group");
            let (lane, line) = (c.lane, c.line);
            return r.map_err(|mut p| {
                p.lane = Some(lane);
                p.line = Some(line);
                p
            });
        }
        if let Some(s) = w.stores.iter().find(|s| mask >> s.lane & 1 != 0) {
            let r: Result<(), Problem> = problem(FaultKind::InFlight, "the thread ends while a bulk store that it issued may still read shared memory");
            let (lane, line) = (s.lane, s.line);
            return r.map_err(|mut p| {
                p.lane = Some(lane);
                p.line = Some(line);
                p
            });
        }
        w.alive &= !mask;
        self.alive[w.index] = w.alive;
        if w.alive == 0 {
            // Who is left may have been waiting for nobody else.
            self.meet();
            for id in 0..self.barriers.len() {
                let b = &self.barriers[id];
                if b.arrived > 0 && b.count.is_none() && b.arrived >= self.everyone(id / BARRIERS) {
                    self.finish(id as u32, None);
                }
            }
        }
        Ok(())
    }

    /// Threads of a block that have not left, in whole warps.
    fn everyone(&self, rank: usize) -> u32 {
        32 * self.alive[self.warps_of(rank)].iter().filter(|a| **a != 0).count() as u32
    }

    /// Whether all lanes of `need` are here. If some may still come, the group waits for them.
    fn together(&self, w: &Warp, pc: u32, need: u32, active: u32) -> Result<bool, Problem> {
        let missing = need & w.alive & !active;
        if missing == 0 {
            return Ok(true);
        }
        if w.groups.iter().any(|g| g.mask & missing != 0 && g.pc <= pc) {
            return Ok(false);
        }
        let lines: Vec<String> = w.groups.iter().filter(|g| g.mask & missing != 0).map(|g| format!("line {}", self.launch.kernel.code[g.pc as usize].line)).collect();
        let others = if lines.is_empty() { "past its guard".to_string() } else { format!("at {}", lines.join(", ")) };
        problem(FaultKind::Divergent, format!("lanes {active:#010x} of {} are here, but lanes {missing:#010x} must be too and are {others}", self.name(w.index)))
    }

    fn uniform(&self, values: &[u32; 32], mask: u32, what: &str) -> Result<u32, Problem> {
        let first = values[mask.trailing_zeros() as usize];
        if (0..32).any(|l| mask >> l & 1 != 0 && values[l] != first) {
            return problem(FaultKind::Undefined, format!("{what} differs between lanes"));
        }
        Ok(first)
    }

    /// Arrival at a barrier.
    #[allow(clippy::too_many_arguments)]
    fn barrier(&mut self, w: &mut Warp, pc: u32, id: Slot, count: Slot, waits: bool, aligned: bool, mask: u32, reduce: Option<(Option<Vote>, Slot, u32)>) -> Result<Next, Problem> {
        let k = self.launch.kernel;
        if aligned && !self.together(w, pc, FULL, mask)? {
            return Ok(Next::Wait(Wait::Lanes, false));
        }
        let id = self.uniform(w.get(k, id, mask)?, mask, "the barrier")?;
        if id > 16 {
            return problem(FaultKind::BarrierCount, format!("barrier {id} does not exist; they are 0 to 15"));
        }
        let count = if count == NONE { None } else { Some(self.uniform(w.get(k, count, mask)?, mask, "the number of threads")?) };
        if let Some(c) = count
            && (c % 32 != 0 || c == 0)
        {
            return problem(FaultKind::BarrierCount, format!("barrier {id} for {c} threads, which is no multiple of the warp's 32"));
        }
        let rank = self.rank(w.index);
        let everyone = self.everyone(rank);
        let threads = 32 * self.warps_of(rank).len() as u32;
        if let Some(c) = count
            && c > threads
        {
            return problem(FaultKind::BarrierCount, format!("barrier {id} for {c} threads, but the block has {threads}"));
        }
        let place = rank as u32 * BARRIERS as u32 + id;
        let b = &mut self.barriers[place as usize];
        if b.arrived > 0 && b.count != count {
            let say = |c: Option<u32>| c.map_or("all".to_string(), |c| c.to_string());
            return problem(FaultKind::BarrierCount, format!("barrier {id} for {} threads, but those who came before said {}", say(count), say(b.count)));
        }
        b.count = count;
        // A whole warp counts as 32, also the last one of a block that is not full.
        b.arrived += if mask == w.alive { 32 } else { mask.count_ones() };
        let expected = count.unwrap_or(everyone);
        if b.arrived > expected {
            return problem(FaultKind::BarrierCount, format!("{} threads came to barrier {id}, which is for {expected}", b.arrived));
        }
        if let Some((_, _, p)) = reduce {
            b.ones += (p & mask).count_ones();
            b.votes += mask.count_ones();
        }
        let full = b.arrived == expected;
        let clock = self.shared.release(w.index);
        let b = &mut self.barriers[place as usize];
        if b.clock.is_empty() {
            b.clock = clock;
        } else {
            join(&mut b.clock, &clock);
        }
        if !full {
            if !waits {
                return Ok(Next::Go);
            }
            b.waiting.push(w.index);
            return Ok(Next::Wait(
                match reduce {
                    Some((vote, d, _)) => Wait::Reduce(place, vote, d),
                    None => Wait::Barrier(place),
                },
                true,
            ));
        }
        let (ones, votes) = (b.ones, b.votes);
        self.finish(place, waits.then_some(w.index));
        if let Some((vote, d, _)) = reduce {
            reduce_result(w, mask, vote, d, ones, votes);
        }
        Ok(Next::Go)
    }

    /// A barrier is complete: who waits, and who came last, learns what all have done.
    fn finish(&mut self, id: u32, last: Option<usize>) {
        let b = std::mem::take(&mut self.barriers[id as usize]);
        for warp in &b.waiting {
            self.shared.acquire(*warp, &b.clock);
            self.wakes.push(Wake { warp: *warp, wait: Wake2::Barrier(id, b.ones, b.votes) });
        }
        if let Some(warp) = last {
            self.shared.acquire(warp, &b.clock);
        }
    }

    /// The addresses of an access, per lane.
    fn addresses(&self, w: &Warp, at: Address, mask: u32) -> Result<[u64; 32], Problem> {
        let k = self.launch.kernel;
        Ok(match at.base {
            None => [at.offset as u64; 32],
            Some(Place::Narrow(s)) => w.get(k, s, mask)?.map(|b| b.wrapping_add(at.offset as u32) as u64),
            Some(Place::Wide(s)) => w.get64(k, s, mask)?.map(|b| b.wrapping_add(at.offset as u64)),
        })
    }

    fn execute(&mut self, w: &mut Warp, pc: u32, op: Op, class: Class, mask: u32) -> Result<Next, Problem> {
        let k = self.launch.kernel;
        match class {
            Class::Move | Class::Integer | Class::Float | Class::Special | Class::Convert | Class::Compare => {
                self.arithmetic(w, op, mask)?;
                Ok(Next::Go)
            }
            _ => match op {
                Op::Nop | Op::GroupFence => Ok(Next::Go),
                Op::Fence { proxy } => {
                    if proxy {
                        self.shared.proxy_fence[w.index] = self.shared.stamp;
                        self.shared.stamp += 1;
                    }
                    Ok(Next::Go)
                }
                Op::Load { .. } | Op::Store { .. } | Op::Atomic { .. } | Op::CopyAsync { .. } | Op::CopyCommit | Op::CopyWait { .. } => {
                    self.access(w, pc, op, mask)?;
                    Ok(Next::Go)
                }
                Op::MapShared { .. } | Op::ClusterArrive { .. } | Op::ClusterWait => self.cluster(w, pc, op, mask),
                Op::Trap => problem(FaultKind::Trap, "the program stopped itself"),
                Op::Barrier { id, count, waits, aligned } => self.barrier(w, pc, id, count, waits, aligned, mask, None),
                Op::BarrierReduce { vote, id, count, d, p, negated, aligned } => {
                    let p = w.get_pred(k, p, mask)?;
                    self.barrier(w, pc, id, count, true, aligned, mask, Some((vote, d, if negated { !p } else { p })))
                }
                Op::BarrierInit { .. } | Op::BarrierInvalidate { .. } | Op::BarrierArrive { .. } | Op::BarrierTest { .. } => self.object(w, pc, op, mask),
                Op::TensorLoad { .. } | Op::TensorStore { .. } | Op::BulkCommit | Op::BulkWait { .. } => {
                    self.tensor(w, pc, op, mask)?;
                    Ok(Next::Go)
                }
                Op::GroupProduct { .. } | Op::GroupCommit | Op::GroupWait { .. } => self.group(w, pc, op, mask),
                _ => self.exchange(w, pc, op, mask),
            },
        }
    }
}

/// What a reduction at a barrier gives.
fn reduce_result(w: &mut Warp, mask: u32, vote: Option<Vote>, d: Slot, ones: u32, votes: u32) {
    match vote {
        None => w.set(d, mask, |_| ones),
        Some(Vote::All) => w.set_pred(d, mask, if ones == votes { FULL } else { 0 }),
        Some(_) => w.set_pred(d, mask, if ones > 0 { FULL } else { 0 }),
    }
}
