//! Barrier objects in shared memory (`mbarrier`): pending arrivals and bytes, a phase, and what waiting for it makes known.

use super::super::fault::{FaultKind, Problem, at, problem};
use super::super::op::*;
use super::super::shared::{Access, join};
use super::super::warp::{FULL, NONE, Wait, Warp};
use super::space::resolve;
use super::{Block, Next, Wake, Wake2};

/// A barrier object.
pub(super) struct Object {
    count: u32,
    pending: u32,
    bytes: i64,
    phase: u64,
    /// What those who arrive in this phase have done, and what those of the last phase had.
    now: Vec<u32>,
    done: Vec<u32>,
}

impl Object {
    pub(super) fn describe(&self) -> String {
        format!("phase {} misses {} of {} arrivals and {} bytes", self.phase, self.pending, self.count, self.bytes)
    }
}

impl Block<'_> {
    fn object_at(&self, memory: Memory, address: u64) -> Result<u32, Problem> {
        let (m, a) = resolve(memory, address);
        if m != Memory::Shared {
            return problem(FaultKind::OutOfBounds, "a barrier object is in shared memory");
        }
        if a % 8 != 0 {
            return problem(FaultKind::Misaligned, "a barrier object is at a multiple of 8 bytes");
        }
        self.shared.range(a, 8).map(|a| a as u32)
    }
    /// The same, in the warp's own block.
    fn own_object_at(&self, warp: usize, memory: Memory, address: u64) -> Result<u32, Problem> {
        let at = self.object_at(memory, address)?;
        self.own(warp, at as usize).map(|_| at)
    }

    /// The object there, which must be known to the warp.
    fn known(&mut self, warp: usize, address: u32) -> Result<&mut Object, Problem> {
        self.present(address as usize)?;
        self.shared.access(warp, warp, address as usize, 8, Access::Read)?;
        match self.objects.get_mut(&address) {
            Some(o) => Ok(o),
            None => problem(FaultKind::Undefined, format!("there is no barrier object at {}", self.shared.describe_place(address as usize))),
        }
    }

    pub(super) fn object(&mut self, w: &mut Warp, pc: u32, op: Op, mask: u32) -> Result<Next, Problem> {
        let k = self.launch.kernel;
        let (place, memory) = match op {
            Op::BarrierInit { at, memory, .. } | Op::BarrierInvalidate { at, memory } | Op::BarrierArrive { at, memory, .. } | Op::BarrierTest { at, memory, .. } => (at, memory),
            _ => return problem(FaultKind::Undefined, "an instruction of another class"),
        };
        let addresses = self.addresses(w, place, mask)?;
        if let Op::BarrierTest { d, phase, parity, blocks, .. } = op {
            let phases = w.get_place(k, phase, mask)?;
            let (mut yes, mut failed) = (0, None);
            for l in (0..32).filter(|l| mask >> l & 1 != 0) {
                let r = self.own_object_at(w.index, memory, addresses[l]).and_then(|a| self.test(w.index, a, phases[l], parity).map(|t| (a, t)));
                let (a, t) = at(r, l as u32, || self.describe(memory, addresses[l]))?;
                yes |= (t as u32) << l;
                if !t {
                    failed = Some(a);
                }
            }
            return Ok(match failed {
                // A `try_wait` may give up: it does so once, so that a program without a loop around it shows; then it waits.
                Some(a) if blocks && yes == 0 && w.denied == Some((pc, a)) => Next::Wait(Wait::Phase(a), false),
                Some(a) => {
                    w.denied = Some((pc, a));
                    w.set_pred(d, mask, yes);
                    Next::Wait(Wait::Yield, true)
                }
                None => {
                    w.denied = None;
                    w.set_pred(d, mask, FULL);
                    Next::Go
                }
            });
        }
        for l in (0..32).filter(|l| mask >> l & 1 != 0) {
            let place = if let Op::BarrierArrive { remote: true, d: NONE, .. } = op { self.object_at(memory, addresses[l]) } else { self.own_object_at(w.index, memory, addresses[l]) };
            let r = place.and_then(|a| self.change(w, op, a, l));
            at(r, l as u32, || self.describe(memory, addresses[l]))?;
        }
        Ok(Next::Go)
    }

    fn test(&mut self, warp: usize, address: u32, phase: u64, parity: bool) -> Result<bool, Problem> {
        let o = self.known(warp, address)?;
        let over = if parity { o.phase & 1 != phase & 1 } else { o.phase > phase };
        if over {
            let done = o.done.clone();
            if !done.is_empty() {
                self.shared.acquire(warp, &done);
            }
        }
        Ok(over)
    }

    fn change(&mut self, w: &mut Warp, op: Op, address: u32, lane: usize) -> Result<(), Problem> {
        let k = self.launch.kernel;
        let bit = 1u32 << lane;
        match op {
            Op::BarrierInit { count, .. } => {
                let count = w.get(k, count, bit)?[lane];
                if count == 0 || count >= 1 << 20 {
                    return problem(FaultKind::BarrierCount, format!("a barrier object for {count} arrivals"));
                }
                self.shared.access(w.index, w.index, address as usize, 8, Access::Write)?;
                self.objects.insert(address, Object { count, pending: count, bytes: 0, phase: 0, now: vec![], done: vec![] });
            }
            Op::BarrierInvalidate { .. } => {
                self.known(w.index, address)?;
                self.shared.access(w.index, w.index, address as usize, 8, Access::Write)?;
                self.objects.remove(&address);
            }
            Op::BarrierArrive { d, count, bytes, arrives, .. } => {
                let bytes = if bytes == NONE { 0 } else { w.get(k, bytes, bit)?[lane] as i64 };
                let n = match (arrives, count) {
                    (false, _) => 0,
                    (true, NONE) => 1,
                    (true, c) => w.get(k, c, bit)?[lane],
                };
                self.known(w.index, address)?;
                let clock = if arrives { self.shared.release(w.index) } else { vec![] };
                let o = self.known(w.index, address)?;
                let phase = o.phase;
                o.bytes += bytes;
                if n > o.pending {
                    return problem(FaultKind::BarrierCount, format!("{n} more arrivals, but {}", o.describe()));
                }
                o.pending -= n;
                if arrives {
                    learn(&mut o.now, &clock);
                }
                self.settle(address);
                if d != NONE {
                    w.set64(d, bit, |_| phase);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Bytes have come.
    pub(super) fn arrived(&mut self, address: u32, bytes: u64, clock: &[u32]) -> Result<(), Problem> {
        match self.objects.get_mut(&address) {
            Some(o) => {
                o.bytes -= bytes as i64;
                learn(&mut o.now, clock);
                self.settle(address);
                Ok(())
            }
            None => problem(FaultKind::Undefined, format!("bytes come for a barrier object at {}, but there is none", self.shared.describe_place(address as usize))),
        }
    }

    /// Ends the phase if nothing is missing.
    fn settle(&mut self, address: u32) {
        if let Some(o) = self.objects.get_mut(&address)
            && o.pending == 0
            && o.bytes == 0
        {
            o.phase += 1;
            o.pending = o.count;
            o.done = std::mem::take(&mut o.now);
            self.wakes.push(Wake { warp: 0, wait: Wake2::Phase(address) });
        }
    }
}

pub(super) fn learn(into: &mut Vec<u32>, clock: &[u32]) {
    if into.is_empty() {
        into.extend(clock);
    } else {
        join(into, clock);
    }
}
