//! A warp: register files as structures of arrays, lanes in groups that share a program counter, and what each lane has in flight.

use super::decode::{Kernel, Special};
use super::fault::{FaultKind, Problem, problem};
use super::memory::RANK;
use super::op::{Place, Slot, Vote};

pub(super) const FULL: u32 = u32::MAX;
pub(super) const NONE: u32 = u32::MAX;

/// Why a group does not run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wait {
    /// It does.
    Run,
    /// At an instruction that needs lanes which are not there yet.
    Lanes,
    Barrier(u32),
    /// At a barrier with a reduction: where the result goes.
    Reduce(u32, Option<Vote>, Slot),
    /// For the phase of the barrier object at an address.
    Phase(u32),
    /// For the other warps of the cluster.
    Cluster,
    /// For the other warps of the warpgroup, then until at most so many groups of products are left.
    Group(u32),
    /// It asked and got no: others first.
    Yield,
}

/// Lanes at one place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    pub pc: u32,
    pub mask: u32,
    pub wait: Wait,
}

/// An asynchronous copy of one lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copy {
    pub lane: u32,
    pub to: u32,
    pub from: u64,
    pub bytes: u8,
    /// What is read; the rest is zero.
    pub read: u8,
    /// The group, or `u32::MAX` before the commit.
    pub group: u32,
    pub line: u32,
}

/// A warpgroup product of one warp that has not happened yet.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub pc: u32,
    pub a: [[u32; 32]; 4],
    pub descriptor_a: u64,
    pub descriptor_b: u64,
    pub accumulate: bool,
    pub group: u32,
}

/// What waits for a warpgroup's wait, in order. A move of an accumulator waits with its product: compilers put such moves before the wait and count on
/// the assembler to make them renamings.
#[derive(Clone, Debug)]
pub(super) enum Late {
    Product(Box<Pending>),
    Move { d: Slot, a: Slot },
}

/// A store of a tile that has not happened yet.
#[derive(Clone, Debug)]
pub(super) struct TileStore {
    pub lane: u32,
    pub map: usize,
    pub coordinates: [i32; 5],
    pub from: u32,
    pub group: u32,
    pub line: u32,
}

/// A warp.
pub(super) struct Warp {
    /// Among all of the cluster.
    pub index: usize,
    /// Lanes that exist and have not left.
    pub alive: u32,
    pub r: Vec<[u32; 32]>,
    pub q: Vec<[u64; 32]>,
    pub p: Vec<u32>,
    /// Lanes in which a register has a value.
    pub defined32: Vec<u32>,
    pub defined64: Vec<u32>,
    pub defined_pred: Vec<u32>,
    pub carry: u32,
    pub groups: Vec<Group>,
    pub local: Vec<u8>,
    pub local_written: Vec<bool>,
    pub copies: Vec<Copy>,
    pub committed: [u32; 32],
    pub late: Vec<Late>,
    pub product_groups: u32,
    /// Accumulators of products that have not happened yet.
    pub in_flight: Vec<Slot>,
    /// The `try_wait` and the barrier object that said no last.
    pub denied: Option<(u32, u32)>,
    pub stores: Vec<TileStore>,
    pub store_groups: [u32; 32],
    pub tid: [[u32; 3]; 32],
}

/// Where a block is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    pub block: [u32; 3],
    pub grid: [u32; 3],
    pub threads: [u32; 3],
    pub dynamic_shared: u32,
    pub total_shared: u32,
    /// In order.
    pub linear: u32,
    /// Blocks of a cluster, and which of them this one is.
    pub cluster: u32,
    pub rank: u32,
}

impl Warp {
    /// The one with number `own` of its block.
    pub(super) fn new(k: &Kernel, index: usize, own: usize, at: &Position) -> Warp {
        let threads = at.threads.iter().product::<u32>();
        let first = own as u32 * 32;
        let n = (threads - first).min(32);
        let alive = if n == 32 { FULL } else { (1 << n) - 1 };
        let tid = std::array::from_fn(|l| {
            let t = first + l as u32;
            [t % at.threads[0], t / at.threads[0] % at.threads[1], t / at.threads[0] / at.threads[1]]
        });
        let (n32, n64, np) = (k.names32.len(), k.names64.len(), k.names_pred.len());
        let mut w = Warp {
            index,
            alive,
            r: vec![[0; 32]; n32],
            q: vec![[0; 32]; n64],
            p: vec![0; np],
            defined32: vec![0; n32],
            defined64: vec![0; n64],
            defined_pred: vec![0; np],
            carry: 0,
            groups: vec![Group { pc: 0, mask: alive, wait: Wait::Run }],
            local: vec![0xff; 32 * k.local_bytes as usize],
            local_written: vec![false; 32 * k.local_bytes as usize],
            copies: vec![],
            committed: [0; 32],
            late: vec![],
            product_groups: 0,
            in_flight: vec![],
            denied: None,
            stores: vec![],
            store_groups: [0; 32],
            tid,
        };
        for (s, v) in &k.const32 {
            w.r[*s as usize] = [*v; 32];
            w.defined32[*s as usize] = FULL;
        }
        for (s, v) in &k.const64 {
            w.q[*s as usize] = [*v; 32];
            w.defined64[*s as usize] = FULL;
        }
        for (s, v) in &k.const_pred {
            w.p[*s as usize] = if *v { FULL } else { 0 };
            w.defined_pred[*s as usize] = FULL;
        }
        for (place, special) in &k.specials {
            let value = |l: usize| match special {
                Special::Tid(a) => tid[l][*a],
                Special::Ntid(a) => at.threads[*a],
                Special::Ctaid(a) => at.block[*a],
                Special::Nctaid(a) => at.grid[*a],
                Special::LaneId => l as u32,
                Special::WarpId => own as u32,
                Special::WarpCount => threads.div_ceil(32),
                Special::LaneMask(k) => {
                    let bit = 1u32 << l;
                    match k {
                        0 => bit,
                        1 => bit | (bit - 1),
                        2 => bit - 1,
                        3 => !(bit - 1),
                        _ => !(bit | (bit - 1)),
                    }
                }
                Special::DynamicShared => at.dynamic_shared,
                Special::TotalShared => at.total_shared,
                Special::Cluster(0) => at.block[0] / at.cluster,
                Special::Cluster(a) => at.block[*a],
                Special::Clusters(0) => at.grid[0] / at.cluster,
                Special::Clusters(a) => at.grid[*a],
                Special::Rank => at.rank,
                Special::Shared(offset) => at.rank << RANK | offset,
                Special::Value(v) => *v,
            };
            match place {
                Place::Narrow(s) => {
                    w.r[*s as usize] = std::array::from_fn(value);
                    w.defined32[*s as usize] = FULL;
                }
                Place::Wide(s) => {
                    w.q[*s as usize] = std::array::from_fn(|l| value(l) as u64);
                    w.defined64[*s as usize] = FULL;
                }
            }
        }
        w
    }

    pub(super) fn done(&self) -> bool {
        self.alive == 0
    }
    pub(super) fn runnable(&self) -> bool {
        self.groups.iter().any(|g| g.wait == Wait::Run)
    }

    fn undefined<T>(&self, name: &str, slot_mask: u32, mask: u32, in_flight: bool) -> Result<T, Problem> {
        let kind = if in_flight { FaultKind::InFlight } else { FaultKind::UndefinedRegister };
        let why = if in_flight { "is the accumulator of a product that no wait has completed" } else { "has no value" };
        let r: Result<T, Problem> = problem(kind, format!("`{name}` {why}"));
        r.map_err(|mut p| {
            p.lane = Some((mask & !slot_mask).trailing_zeros());
            p
        })
    }
    /// The values of a register, which all lanes of `mask` must have.
    #[inline]
    pub(super) fn get(&self, k: &Kernel, s: Slot, mask: u32) -> Result<&[u32; 32], Problem> {
        if mask & !self.defined32[s as usize] != 0 {
            return self.undefined(&k.names32[s as usize], self.defined32[s as usize], mask, self.in_flight.contains(&s));
        }
        Ok(&self.r[s as usize])
    }
    #[inline]
    pub(super) fn get64(&self, k: &Kernel, s: Slot, mask: u32) -> Result<&[u64; 32], Problem> {
        if mask & !self.defined64[s as usize] != 0 {
            return self.undefined(&k.names64[s as usize], self.defined64[s as usize], mask, false);
        }
        Ok(&self.q[s as usize])
    }
    #[inline]
    pub(super) fn get_pred(&self, k: &Kernel, s: Slot, mask: u32) -> Result<u32, Problem> {
        if mask & !self.defined_pred[s as usize] != 0 {
            return self.undefined(&k.names_pred[s as usize], self.defined_pred[s as usize], mask, false);
        }
        Ok(self.p[s as usize])
    }
    /// A value of either file as 64 bits.
    pub(super) fn get_place(&self, k: &Kernel, p: Place, mask: u32) -> Result<[u64; 32], Problem> {
        match p {
            Place::Narrow(s) => self.get(k, s, mask).map(|v| v.map(u64::from)),
            Place::Wide(s) => self.get64(k, s, mask).copied(),
        }
    }
    /// Gives a register values in the lanes of `mask`.
    #[inline]
    pub(super) fn set(&mut self, s: Slot, mask: u32, f: impl Fn(usize) -> u32) {
        let d = &mut self.r[s as usize];
        if mask == FULL {
            for (l, d) in d.iter_mut().enumerate() {
                *d = f(l);
            }
        } else {
            for (l, d) in d.iter_mut().enumerate() {
                if mask >> l & 1 != 0 {
                    *d = f(l);
                }
            }
        }
        self.defined32[s as usize] |= mask;
    }
    #[inline]
    pub(super) fn set64(&mut self, s: Slot, mask: u32, f: impl Fn(usize) -> u64) {
        let d = &mut self.q[s as usize];
        for (l, d) in d.iter_mut().enumerate() {
            if mask >> l & 1 != 0 {
                *d = f(l);
            }
        }
        self.defined64[s as usize] |= mask;
    }
    pub(super) fn set_place(&mut self, p: Place, mask: u32, f: impl Fn(usize) -> u64) {
        match p {
            Place::Narrow(s) => self.set(s, mask, |l| f(l) as u32),
            Place::Wide(s) => self.set64(s, mask, f),
        }
    }
    #[inline]
    pub(super) fn set_pred(&mut self, s: Slot, mask: u32, bits: u32) {
        if s != NONE {
            self.p[s as usize] = (self.p[s as usize] & !mask) | (bits & mask);
            self.defined_pred[s as usize] |= mask;
        }
    }
    /// Moves and the like carry "undefined" along instead of refusing it.
    #[inline]
    pub(super) fn taint(&mut self, s: Slot, mask: u32, defined: u32) {
        self.defined32[s as usize] = (self.defined32[s as usize] & !mask) | (defined & mask);
    }
    #[inline]
    pub(super) fn taint64(&mut self, s: Slot, mask: u32, defined: u32) {
        self.defined64[s as usize] = (self.defined64[s as usize] & !mask) | (defined & mask);
    }
}
