//! Shared memory of a block, with a history per byte: who wrote it last, who has read it since, and whether it is the target of an asynchronous write.
//!
//! Order between accesses comes from barriers, by vector clocks as in FastTrack (Flanagan and Freund, 2009), with two changes. Clocks are one counter per
//! block, advanced by every release, so that a stamp names a moment of one agent. And histories are interned: many bytes have the same one, so a
//! byte keeps a number, and the step from one history to the next is computed once per warp and moment.
//!
//! Agents are warps, warpgroups (whose matrix products read by themselves), and the copy engine.

use super::fault::{FaultKind, Problem, problem};
use super::decode::Region;
use super::memory::RANK;
use std::collections::HashMap;

/// How bytes got, or get, their value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Content {
    Poison,
    Value,
    /// By an atomic; atomics do not race with each other.
    Atomic,
    /// Something asynchronous will write.
    InFlight,
}

/// A moment of an agent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Moment {
    agent: u16,
    stamp: u32,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct History {
    content: Content,
    writer: Option<Moment>,
    /// Written by the asynchronous proxy.
    proxy: bool,
    readers: Vec<Moment>,
}

/// What an access is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    Read,
    Write,
    Atomic,
    /// The issue of an asynchronous write.
    Issue,
    /// Its arrival.
    Arrive,
    /// A read by the asynchronous proxy.
    ProxyRead,
    /// A write by it.
    ProxyWrite,
}

/// Shared memory of a block, or of the blocks of a cluster one after the other. An address of a program has the block's number above [`RANK`] bits; a place is one here.
pub(super) struct Shared {
    pub bytes: Vec<u8>,
    marks: Vec<u32>,
    regions: Vec<Region>,
    histories: Vec<History>,
    index: HashMap<History, u32>,
    /// Per agent: the step that it made last: access, history, moment, next history.
    last: Vec<(Access, u32, u32, u32)>,
    pub clocks: Vec<Vec<u32>>,
    pub stamp: u32,
    warps: usize,
    /// Of one block.
    size: usize,
    blocks: usize,
    /// Per warp: the moment of its last `fence.proxy.async`.
    pub proxy_fence: Vec<u32>,
}

impl Shared {
    /// Poisoned memory of so many blocks of `size` bytes, for `warps` warps with `agents` agents, of all blocks.
    pub(super) fn new(size: u32, blocks: usize, regions: Vec<Region>, warps: usize, agents: usize) -> Shared {
        // Swizzles know a place's low bits.
        let size = if blocks > 1 { size.next_multiple_of(1024) } else { size } as usize;
        let poison = History { content: Content::Poison, writer: None, proxy: false, readers: vec![] };
        Shared {
            // A signalling pattern: large as an integer, NaN as f16, bf16 and f32.
            bytes: vec![0xff; blocks * size],
            marks: vec![0; blocks * size],
            regions,
            histories: vec![poison.clone()],
            index: HashMap::from([(poison, 0)]),
            last: vec![(Access::Read, u32::MAX, 0, 0); agents],
            clocks: vec![vec![0; agents]; warps],
            stamp: 1,
            warps,
            size,
            blocks,
            proxy_fence: vec![0; warps],
        }
    }

    /// What is at an address, for people.
    pub(super) fn describe(&self, address: u64) -> String {
        let at = address & ((1 << RANK) - 1);
        let block = if self.blocks > 1 { format!(" of block {} of the cluster", address >> RANK) } else { String::new() };
        match self.regions.iter().find(|r| (r.start as u64..r.end as u64).contains(&at)) {
            Some(r) => format!("shared {at:#x} ({}+{:#x}){block}", r.name, at - r.start as u64),
            None => format!("shared {at:#x}{block}"),
        }
    }
    /// The same, of a place.
    pub(super) fn describe_place(&self, place: usize) -> String {
        self.describe((((place / self.size) << RANK) | (place % self.size)) as u64)
    }
    /// The block that has a place.
    pub(super) fn block_of(&self, place: usize) -> usize {
        place / self.size
    }
    /// The same place in another block.
    pub(super) fn in_block(&self, place: usize, block: usize) -> usize {
        block * self.size + place % self.size
    }

    /// The place of an address, whose bytes are checked against the variables.
    #[inline]
    pub(super) fn range(&self, address: u64, len: usize) -> Result<usize, Problem> {
        let (block, at) = ((address >> RANK) as usize, address & ((1 << RANK) - 1));
        for r in &self.regions {
            if block < self.blocks && at >= r.start as u64 && at.saturating_add(len as u64) <= r.end as u64 {
                return Ok(block * self.size + at as usize);
            }
        }
        let known: Vec<String> = self.regions.iter().map(|r| format!("{} at {:#x}..{:#x}", r.name, r.start, r.end)).collect();
        problem(FaultKind::OutOfBounds, format!("{len} bytes at shared address {address:#x}; shared memory has {}", if known.is_empty() { "no variables".to_string() } else { known.join(", ") }))
    }

    /// Checks an access of `agent` and moves the histories on. `clock` is the agent's view: that of the warp that acts for it.
    pub(super) fn access(&mut self, agent: usize, clock: usize, start: usize, len: usize, access: Access) -> Result<(), Problem> {
        let mut i = start;
        let end = start + len;
        while i < end {
            let mark = self.marks[i];
            let mut j = i + 1;
            while j < end && self.marks[j] == mark {
                j += 1;
            }
            let (a, m, s, n) = self.last[agent];
            let next = if a == access && m == mark && s == self.stamp {
                n
            } else {
                let n = self.step(mark, agent, clock, access, i)?;
                self.last[agent] = (access, mark, self.stamp, n);
                n
            };
            if next != mark {
                self.marks[i..j].fill(next);
            }
            i = j;
        }
        Ok(())
    }

    fn agent(&self, a: u16) -> String {
        let a = a as usize;
        let each = self.warps / self.blocks;
        let of = |block: usize| if self.blocks > 1 { format!(" of block {block} of the cluster") } else { String::new() };
        if a < self.warps {
            format!("warp {}{}", a % each, of(a / each))
        } else if a == self.warps {
            "the copy engine".to_string()
        } else {
            let first = 4 * (a - self.warps - 1);
            format!("warpgroup {}{}", first % each / 4, of(first / each))
        }
    }

    fn step(&mut self, mark: u32, agent: usize, clock: usize, access: Access, at: usize) -> Result<u32, Problem> {
        let h = &self.histories[mark as usize];
        let view = &self.clocks[clock];
        let before = |m: &Moment| m.agent as usize == agent || m.agent as usize == clock || view[m.agent as usize] >= m.stamp;
        let place = || match self.blocks {
            1 => format!("byte {at:#x} of shared memory"),
            _ => self.describe_place(at),
        };
        let moment = Moment { agent: agent as u16, stamp: self.stamp };
        if h.content == Content::InFlight && access != Access::Arrive {
            return problem(FaultKind::InFlight, format!("{} is the target of an asynchronous copy that {} issued and that is not complete for this access", place(), h.writer.map_or(String::new(), |w| self.agent(w.agent))));
        }
        let reads = matches!(access, Access::Read | Access::Atomic | Access::ProxyRead);
        if reads && h.content == Content::Poison {
            return problem(FaultKind::Uninitialised, format!("{} was never written", place()));
        }
        let both_atomic = access == Access::Atomic && h.content == Content::Atomic;
        if access != Access::Arrive
            && !both_atomic
            && let Some(w) = &h.writer
            && !before(w)
        {
            let what = if reads { "read" } else { "write" };
            return problem(FaultKind::Race, format!("{} was written by {}, and no barrier orders this {what} by {} after it", place(), self.agent(w.agent), self.agent(agent as u16)));
        }
        if access == Access::ProxyRead
            && !h.proxy
            && let Some(w) = &h.writer
            && (w.agent as usize) < self.warps
            && self.proxy_fence[w.agent as usize] < w.stamp
        {
            return problem(FaultKind::Race, format!("{} was written by {} through the generic proxy without a `fence.proxy.async` before this read by the asynchronous proxy", place(), self.agent(w.agent)));
        }
        let next = match access {
            Access::Read | Access::ProxyRead => {
                // A reader that is ordered before this one need not be kept: whatever comes after this one comes after it.
                let mut readers: Vec<Moment> = h.readers.iter().filter(|r| !before(r)).copied().collect();
                readers.push(moment);
                readers.sort_by_key(|r| r.agent);
                History { content: h.content, writer: h.writer, proxy: h.proxy, readers }
            }
            Access::Arrive => History { content: Content::Value, writer: Some(moment), proxy: agent >= self.warps, readers: vec![] },
            Access::Write | Access::Atomic | Access::Issue | Access::ProxyWrite => {
                if !both_atomic
                    && let Some(r) = h.readers.iter().find(|r| !before(r))
                {
                    return problem(FaultKind::Race, format!("{} was read by {}, and no barrier orders this write by {} after it", place(), self.agent(r.agent), self.agent(agent as u16)));
                }
                let content = match access {
                    Access::Atomic => Content::Atomic,
                    Access::Issue => Content::InFlight,
                    _ => Content::Value,
                };
                History { content, writer: Some(moment), proxy: access == Access::ProxyWrite, readers: vec![] }
            }
        };
        if let Some(n) = self.index.get(&next) {
            return Ok(*n);
        }
        let n = self.histories.len() as u32;
        self.index.insert(next.clone(), n);
        self.histories.push(next);
        Ok(n)
    }

    /// A release by a warp: what others get to know when they acquire it.
    pub(super) fn release(&mut self, warp: usize) -> Vec<u32> {
        self.clocks[warp][warp] = self.stamp;
        self.stamp += 1;
        self.clocks[warp].clone()
    }
    /// The other side.
    pub(super) fn acquire(&mut self, warp: usize, clock: &[u32]) {
        join(&mut self.clocks[warp], clock);
    }
    /// Forgets contents, as after the invalidation of a barrier object.
    pub(super) fn fill(&mut self, start: usize, data: &[u8]) {
        self.bytes[start..start + data.len()].copy_from_slice(data);
    }
}

/// The later of both, agent by agent.
pub(super) fn join(into: &mut [u32], from: &[u32]) {
    for (a, b) in into.iter_mut().zip(from) {
        *a = (*a).max(*b);
    }
}
