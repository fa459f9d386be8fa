//! Clusters: the barrier of all blocks, addresses in each other's shared memory, and who is still there.

use super::super::fault::{FaultKind, Problem, problem};
use super::super::memory::RANK;
use super::super::op::Op;
use super::super::warp::{FULL, Wait, Warp};
use super::object::learn;
use super::{Block, Next, Wake, Wake2};

/// The barrier of the cluster (`barrier.cluster`).
pub(super) struct Meeting {
    phase: u64,
    /// Per warp: the phase in which it arrived, until it has waited.
    arrived: Vec<Option<u64>>,
    /// What those who arrive in this phase have done, and what those of the last phase had.
    now: Vec<u32>,
    done: Vec<u32>,
}

impl Meeting {
    pub(super) fn new(warps: usize) -> Meeting {
        Meeting { phase: 0, arrived: vec![None; warps], now: vec![], done: vec![] }
    }
}

impl Block<'_> {
    pub(super) fn cluster(&mut self, w: &mut Warp, pc: u32, op: Op, mask: u32) -> Result<Next, Problem> {
        let k = self.launch.kernel;
        if let Op::MapShared { d, a, rank } = op {
            let (a, rank) = (*w.get(k, a, mask)?, *w.get(k, rank, mask)?);
            let blocks = self.at.len();
            if let Some(l) = (0..32).find(|l| mask >> l & 1 != 0 && rank[*l] as usize >= blocks) {
                return problem(FaultKind::Undefined, format!("the address in block {} of the cluster, which has {blocks}", rank[l]));
            }
            w.set(d, mask, |l| a[l] & ((1 << RANK) - 1) | rank[l] << RANK);
            return Ok(Next::Go);
        }
        if !self.together(w, pc, FULL, mask)? {
            return Ok(Next::Wait(Wait::Lanes, false));
        }
        match (op, self.meeting.arrived[w.index]) {
            (Op::ClusterArrive { releases }, None) => {
                if releases {
                    let clock = self.shared.release(w.index);
                    learn(&mut self.meeting.now, &clock);
                }
                self.meeting.arrived[w.index] = Some(self.meeting.phase);
                self.meet();
            }
            (Op::ClusterArrive { .. }, Some(_)) => return problem(FaultKind::BarrierCount, "the warp arrives at the cluster's barrier again, and has not waited in between"),
            (_, None) => return problem(FaultKind::BarrierCount, "the warp waits at the cluster's barrier, where it has not arrived"),
            (_, Some(phase)) if phase == self.meeting.phase => return Ok(Next::Wait(Wait::Cluster, false)),
            (_, Some(_)) => {
                if !self.meeting.done.is_empty() {
                    self.shared.acquire(w.index, &self.meeting.done);
                }
                self.meeting.arrived[w.index] = None;
            }
        }
        Ok(Next::Go)
    }

    /// Ends the phase of the cluster's barrier if all are there who have not left.
    pub(super) fn meet(&mut self) {
        let m = &mut self.meeting;
        let mut here = m.arrived.iter().zip(&self.alive).filter(|(_, alive)| **alive != 0).map(|(a, _)| *a == Some(m.phase)).peekable();
        if here.peek().is_some() && here.all(|x| x) {
            m.phase += 1;
            m.done = std::mem::take(&mut m.now);
            self.wakes.push(Wake { warp: 0, wait: Wake2::Cluster });
        }
    }

    /// That a place is in the warp's own block.
    pub(super) fn own(&self, warp: usize, place: usize) -> Result<(), Problem> {
        if self.at.len() > 1 && self.shared.block_of(place) != self.rank(warp) {
            return problem(FaultKind::OutOfBounds, format!("{} is another block's: this machine takes arrivals and copies to several blocks there, nothing else", self.shared.describe_place(place)));
        }
        Ok(())
    }

    /// That the block which has a place is still there.
    pub(super) fn present(&self, place: usize) -> Result<(), Problem> {
        if self.at.len() > 1 && self.alive[self.warps_of(self.shared.block_of(place))].iter().all(|a| *a == 0) {
            return problem(FaultKind::OutOfBounds, format!("{} is gone: the block has left", self.shared.describe_place(place)));
        }
        Ok(())
    }
}
