//! Kernels by warpgroups (sm_90a): one warpgroup copies tiles in bulk into a ring of stages, the others hold 64 rows each and multiply
//! asynchronously; statements, values and fragments are those of every other kernel.
//!
//! The accumulator of `wgmma` is, per warp, that of `mma.m16n8k16` repeated along the columns, and its left operand from registers is
//! two of them, packed: one layout serves both. Barrier objects take the place of block barriers: the copying thread waits until a
//! stage's group is empty and says how many bytes will make it full; who multiplies waits until it is full, and says empty when the
//! products that read it are done. Products are awaited where their results are first read, so what does not depend on them runs
//! meanwhile (Shah et al., 2024; here a tangent's own products hide the exponentials).

mod arrange;
mod bulk;
mod lag;
mod persistent;
mod product;
mod turn;

pub(super) use arrange::arrange;
pub(super) use bulk::maps;
pub(super) use lag::late;

use super::emit::Emit;
use super::plan::{Rank, Ring, Step};
use crate::Error;
use ir::tile::{Op, ValueId};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Rows of a warpgroup's product.
pub(super) const ROWS: usize = 64;

/// Registers of a thread that copies, and of one that multiplies, by the number of warpgroups that multiply.
pub(super) fn registers(groups: usize) -> Option<(usize, usize)> {
    match groups {
        2 => Some((24, 240)),
        3 => Some((32, 160)),
        _ => None,
    }
}

/// What is under way.
#[derive(Default)]
pub(super) struct Flight {
    /// Groups of products that were committed.
    commits: usize,
    /// Dots whose products are not known to be done, and the last group of each.
    values: BTreeMap<ValueId, usize>,
    /// Groups of the ring that are free, and in which stage, once a group of products is done.
    releases: BTreeMap<usize, (usize, String)>,
    /// Groups of the ring that have arrived in the present tile.
    arrived: BTreeSet<usize>,
    /// Descriptors of operands in the ring that were added up.
    descriptors: HashMap<product::Place, String>,
    /// Loads of single columns that the present tile has done.
    columns: usize,
    /// Left operands that from here on are read as products read them.
    rounded: BTreeSet<ValueId>,
    /// Registers of the last reduction since the last wait.
    pub reduced: Vec<String>,
    /// Exponentials since the last wait or product.
    pub made: Vec<String>,
    /// The ring's present stage and parity.
    turn: Option<(String, String)>,
    /// Where the ring stands before the next loop. None: at its beginning.
    pub position: Option<Vec<String>>,
    /// Words are packed here and not earlier.
    pub packs_here: bool,
    /// Of persistent blocks, whether a whole warp asks where the present tile is.
    asks: bool,
    /// The group of products that is the last to read tiles that are there once.
    outer: Option<usize>,
    /// Whether this is the loop's last tile.
    last: Option<String>,
}

impl Emit<'_> {
    pub(super) fn ring(&self) -> Result<&Ring, Error> {
        self.plan.ring.as_ref().ok_or_else(|| Error::Internal("a ring where there is none".into()))
    }

    /// The whole body: `before` with the loop, `after` elementwise to the end.
    pub(super) fn by_warpgroups(&mut self, before: &[Step], after: &[Step]) -> Result<(), Error> {
        let plan = self.plan;
        let done = self.scalars(before)?;
        self.objects()?;
        self.by_roles(
            |e| {
                let tid = e.tid_on_entry();
                let first = e.k(plan.fragment.threads() as i64);
                let one = e.cmp("eq", &tid, &first);
                e.when(Some(&one), |e| e.fill_ring(before))
            },
            |e| {
                if plan.schedule.turns {
                    e.first_turn()?;
                }
                let zero = e.k(0);
                e.multiply(before, after, &done, &zero)
            },
        )
    }

    /// Steps that both roles need, in which nothing has axes: bounds of loops read it. Which these are.
    pub(super) fn scalars(&mut self, before: &[Step]) -> Result<BTreeSet<usize>, Error> {
        let plan = self.plan;
        let mut done = BTreeSet::new();
        for (i, s) in before.iter().enumerate() {
            if let Step::Let(v, op) = s
                && plan.rank(*v) == Rank::NONE
                && match op {
                    Op::Const(_) | Op::Size(_) | Op::Load(_) => true,
                    Op::Map(_, args) => args.iter().all(|a| self.env[a.index()].is_some()),
                    _ => false,
                }
            {
                self.steps(std::slice::from_ref(s))?;
                done.insert(i);
            }
        }
        Ok(done)
    }

    /// Who copies, and who multiplies, with the registers of each.
    fn by_roles(&mut self, copy: impl FnOnce(&mut Self) -> Result<(), Error>, multiply: impl FnOnce(&mut Self) -> Result<(), Error>) -> Result<(), Error> {
        let groups = self.plan.fragment.threads() / 128;
        let group = self.group_on_entry();
        let k = self.k(groups as i64);
        let copies = self.cmp("sge", &group, &k);
        let registers = registers(groups);
        self.t.line(format_args!("scf.if {copies} {{"));
        if let Some((few, _)) = registers {
            self.t.line(format_args!("nvvm.setmaxregister decrease {few}"));
        }
        copy(self)?;
        self.flight.position = None;
        self.t.line("} else {");
        if let Some((_, many)) = registers {
            self.t.line(format_args!("nvvm.setmaxregister increase {many}"));
        }
        multiply(self)?;
        self.t.line("}");
        // The other block may still copy to this one, or tell it what is empty.
        if self.plan.schedule.multicast {
            self.cluster_barrier();
        }
        Ok(())
    }
    /// Waits for all threads of the cluster.
    fn cluster_barrier(&mut self) {
        self.t.line("nvvm.cluster.arrive\nnvvm.cluster.wait");
    }

    /// What a warpgroup with rows does for one tile of the grid, but for what is `done`. `parity`: of the tiles that are there once.
    fn multiply(&mut self, before: &[Step], after: &[Step], done: &BTreeSet<usize>, parity: &str) -> Result<(), Error> {
        if !self.ring()?.outer.is_empty() {
            let object = self.object(0, None);
            self.await_object(&object, parity);
        }
        for (i, s) in before.iter().enumerate() {
            if !done.contains(&i) {
                self.steps(std::slice::from_ref(s))?;
                if matches!(s, Step::For(_)) {
                    self.begin_tile_again()?;
                }
            }
        }
        self.land_all();
        if !self.ring()?.freed_in_loop {
            self.free_outer();
        }
        self.in_windows(after)
    }

    /// The warpgroup's number, the same in all lanes as the compiler sees it.
    fn group_on_entry(&mut self) -> String {
        let tid = self.tid_on_entry();
        let group = self.entry("shrui", &tid, 7);
        let (all, zero, last) = (self.k(-1), self.k(0), self.k(31));
        self.t.entry(format!("nvvm.shfl.sync idx {all}, {group}, {zero}, {last} : i32 -> i32"))
    }

    /// Makes the barrier objects.
    fn objects(&mut self) -> Result<(), Error> {
        let (groups, stages) = (self.ring()?.groups.len(), self.plan.schedule.stages);
        let tid = self.tid_on_entry();
        let zero = self.k(0);
        let first = self.cmp("eq", &tid, &zero);
        let warps = self.plan.fragment.threads() / 32;
        self.when(Some(&first), |e| {
            for i in 0..1 + 2 * groups * stages {
                let object = e.object(i, None);
                // Of a group that both blocks of a cluster fill, both say when it is empty.
                let n = e.k(match i {
                    0 => 1,
                    i if i % 2 == 1 => 1,
                    i if e.ring()?.shared.contains(&((i - 1) / 2 % groups)) => 2 * warps as i64,
                    _ => warps as i64,
                });
                e.t.line(format_args!("nvvm.mbarrier.init {object}, {n} : !llvm.ptr<3>, i32"));
            }
            e.persistent_objects()?;
            e.t.line("nvvm.fence.mbarrier.init");
            Ok(())
        })?;
        if self.plan.schedule.multicast {
            self.cluster_barrier();
        } else {
            self.t.line("nvvm.barrier0");
        }
        Ok(())
    }

    /// Barrier object number `i`, of stage `slot` if that is given.
    fn object(&mut self, i: usize, slot: Option<&str>) -> String {
        let (at, groups) = self.plan.ring.as_ref().map_or((0, 0), |r| (r.barriers, r.groups.len()));
        let base = self.shared_base();
        let base = match slot {
            None => base,
            Some(s) => {
                let s = self.ik("muli", s, 16 * groups);
                self.i("addi", &base, &s)
            }
        };
        let p = self.shared(&base);
        self.step(&p, 3, at + 8 * i)
    }
    /// The object that says that `group` of stage `slot` is full.
    fn full(&mut self, group: usize, slot: &str) -> String {
        self.object(1 + 2 * group, Some(slot))
    }
    /// The object that says that `group` of stage `slot` is empty.
    fn empty(&mut self, group: usize, slot: &str) -> String {
        self.object(2 + 2 * group, Some(slot))
    }
    /// Waits until the phase of `parity` is over.
    fn await_object(&mut self, object: &str, parity: &str) {
        let yes = self.t.number(crate::text::Ty { elem: "i1", lanes: None }, 1.0);
        self.t.line("scf.while : () -> () {");
        let over = self.t.op(format_args!("nvvm.mbarrier.try_wait {object}, {parity} : !llvm.ptr<3>, i32 -> i1"));
        let again = self.t.op(format_args!("arith.xori {over}, {yes} : i1"));
        self.t.line(format_args!("scf.condition({again})\n}} do {{\nscf.yield\n}}"));
    }

    /// Begins a tile where the ring stands at `position`; where it stands in the next tile.
    pub(super) fn enter(&mut self, base: &str, position: &[String]) -> Vec<String> {
        let (slot, parity) = self.slot_and_parity(position);
        let here = self.ik("muli", &slot, self.plan.shared[1]);
        self.stage = Some(self.i("addi", base, &here));
        self.flight.arrived.clear();
        self.flight.columns = 0;
        self.flight.rounded.clear();
        self.flight.turn = Some((slot, parity));
        self.turn(position)
    }
    /// Stage, and whether the ring was gone through an odd number of times.
    fn slot_and_parity(&mut self, position: &[String]) -> (String, String) {
        match position {
            [slot, parity] => (slot.clone(), parity.clone()),
            word => self.unpacked(&word[0]),
        }
    }
    /// The position in the next tile.
    fn turn(&mut self, position: &[String]) -> Vec<String> {
        let stages = self.plan.schedule.stages;
        let [slot, parity] = position else { return vec![self.packed_turn(&position[0])] };
        let next = self.wrap(slot, 1, stages);
        let zero = self.k(0);
        let around = self.cmp("eq", &next, &zero);
        let around = self.t.op(format_args!("arith.extui {around} : i1 to i32"));
        vec![next, self.t.op(format_args!("arith.xori {parity}, {around} : i32"))]
    }
    /// Ends a tile: everything is done, and everything is free.
    pub(super) fn leave(&mut self) {
        self.land_all();
        self.flight.turn = None;
    }
    /// Where the ring stands when the next loop begins: stage and parity, or one word of persistent blocks.
    pub(super) fn ring_position(&mut self) -> Vec<String> {
        let zero = self.k(0);
        self.flight.position.clone().unwrap_or(vec![zero.clone(), zero])
    }
    /// Says that groups of the ring are empty whose products are done, `landed` being the last of these.
    fn release(&mut self, landed: usize) {
        self.release_outer(landed);
        let mut free: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        self.flight.releases.retain(|g, (at, slot)| {
            if *at <= landed {
                free.entry(slot.clone()).or_default().push(*g);
            }
            *at > landed
        });
        for (slot, groups) in free {
            self.free(&groups, &slot);
        }
    }
    /// Says that `groups` of stage `slot` are empty, one lane a warp.
    fn free(&mut self, groups: &[usize], slot: &str) {
        if !groups.is_empty() {
            let objects = groups.iter().map(|g| self.empty(*g, slot)).collect::<Vec<_>>();
            let both = groups.iter().zip(&objects).filter(|(g, _)| self.plan.ring.as_ref().is_some_and(|r| r.shared.contains(g))).map(|(_, o)| o.clone()).collect::<Vec<_>>();
            self.arrive_at(&objects, &both, None);
        }
    }
    /// Arrives at objects, one lane a warp, if `also`.
    fn arrive(&mut self, objects: &[String], also: Option<String>) {
        self.arrive_at(objects, &[], also);
    }
    /// The same, and at those of the cluster's other block that are at the places of `others`.
    fn arrive_at(&mut self, objects: &[String], others: &[String], also: Option<String>) {
        let tid = self.tid();
        let lane = self.ik("andi", &tid, 31);
        let zero = self.k(0);
        let first = self.cmp("eq", &lane, &zero);
        let here = self.and(also, first.clone()).unwrap_or(first);
        self.t.line(format_args!("scf.if {here} {{"));
        for o in objects {
            self.t.op(format_args!("nvvm.mbarrier.arrive {o} : !llvm.ptr<3> -> i64"));
        }
        for o in others {
            let rank = self.rank_on_entry();
            let (at, other) = (self.t.op(format_args!("llvm.ptrtoint {o} : !llvm.ptr<3> to i32")), self.ik("xori", &rank, 1));
            let text = "{\\0A.reg .b32 a;\\0Amapa.shared::cluster.u32 a, $0, $1;\\0Ambarrier.arrive.shared::cluster.b64 _, [a];\\0A}";
            self.t.line(format_args!("llvm.inline_asm has_side_effects asm_dialect = att \"{text}\", \"r,r,~{{memory}}\" {at}, {other} : (i32, i32) -> ()"));
        }
        self.t.line("}");
    }
}
