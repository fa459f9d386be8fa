//! Loads, stores, atomics and the copies of single threads.

use super::super::fault::{FaultKind, Problem, at, problem};
use super::super::lanes::{self, extend};
use super::super::memory::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW};
use super::super::op::*;
use super::super::shared::Access;
use super::super::syntax::Type;
use super::super::warp::{Copy, NONE, Warp};
use super::Block;

/// The window that a generic address lies in, and the offset there.
pub(super) fn resolve(memory: Memory, address: u64) -> (Memory, u64) {
    if memory != Memory::Generic {
        // Addresses within a space may still carry its window after a cast that took it for generic.
        return (memory, address);
    }
    for (m, base) in [(Memory::Shared, SHARED_WINDOW), (Memory::Local, LOCAL_WINDOW), (Memory::Param, PARAM_WINDOW)] {
        if address >= base && address < base + WINDOW {
            return (m, address - base);
        }
    }
    (Memory::Global, address)
}

impl Block<'_> {
    /// An address for people.
    pub(super) fn describe(&self, memory: Memory, address: u64) -> String {
        match resolve(memory, address) {
            (Memory::Shared, a) => self.shared.describe(a),
            (Memory::Local, a) => format!("local {a:#x}"),
            (Memory::Param, a) => format!("param {a:#x}"),
            (_, a) => format!("global {}", self.launch.global.describe(a)),
        }
    }

    fn aligned(address: u64, width: usize) -> Result<(), Problem> {
        if !address.is_multiple_of(width as u64) {
            return problem(FaultKind::Misaligned, format!("address {address:#x} is no multiple of the access's {width} bytes"));
        }
        Ok(())
    }

    /// Shared bytes, read by a warp.
    #[inline]
    pub(super) fn read_shared(&mut self, warp: usize, address: u64, out: &mut [u8], access: Access) -> Result<(), Problem> {
        let start = self.shared.range(address, out.len())?;
        self.own(warp, start)?;
        self.shared.access(warp, warp, start, out.len(), access)?;
        out.copy_from_slice(&self.shared.bytes[start..start + out.len()]);
        Ok(())
    }
    #[inline]
    pub(super) fn write_shared(&mut self, warp: usize, address: u64, data: &[u8], access: Access) -> Result<(), Problem> {
        let start = self.shared.range(address, data.len())?;
        self.own(warp, start)?;
        self.shared.access(warp, warp, start, data.len(), access)?;
        self.shared.bytes[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn read(&mut self, w: &Warp, lane: usize, memory: Memory, address: u64, out: &mut [u8], ordered: bool) -> Result<(), Problem> {
        let (m, a) = resolve(memory, address);
        Self::aligned(a, out.len())?;
        match m {
            Memory::Shared => {
                let r = self.read_shared(w.index, a, out, if ordered { Access::Atomic } else { Access::Read });
                r.map_err(|p| uncommitted(w, self.shared.range(a, 0).unwrap_or_default() as u64, out.len(), p))
            }
            Memory::Local => {
                let size = self.launch.kernel.local_bytes as u64;
                if a.saturating_add(out.len() as u64) > size {
                    return problem(FaultKind::OutOfBounds, format!("{} local bytes at {a}; the thread has {size}", out.len()));
                }
                let start = lane * size as usize + a as usize;
                if w.local_written[start..start + out.len()].contains(&false) {
                    return problem(FaultKind::Uninitialised, format!("local byte {a} was never written"));
                }
                out.copy_from_slice(&w.local[start..start + out.len()]);
                Ok(())
            }
            Memory::Param => match self.launch.params.get(a as usize..(a as usize).saturating_add(out.len())) {
                Some(p) => {
                    out.copy_from_slice(p);
                    Ok(())
                }
                None => problem(FaultKind::OutOfBounds, format!("{} parameter bytes at {a}; there are {}", out.len(), self.launch.params.len())),
            },
            _ => self.launch.global.read(a, out, self.linear(w.index)),
        }
    }

    fn write(&mut self, w: &mut Warp, lane: usize, memory: Memory, address: u64, data: &[u8], ordered: bool) -> Result<(), Problem> {
        let (m, a) = resolve(memory, address);
        Self::aligned(a, data.len())?;
        match m {
            Memory::Shared => self.write_shared(w.index, a, data, if ordered { Access::Atomic } else { Access::Write }),
            Memory::Local => {
                let size = self.launch.kernel.local_bytes as u64;
                if a.saturating_add(data.len() as u64) > size {
                    return problem(FaultKind::OutOfBounds, format!("{} local bytes at {a}; the thread has {size}", data.len()));
                }
                let start = lane * size as usize + a as usize;
                w.local[start..start + data.len()].copy_from_slice(data);
                w.local_written[start..start + data.len()].fill(true);
                Ok(())
            }
            Memory::Param => problem(FaultKind::ReadOnly, "a kernel's parameters are not written"),
            _ => self.launch.global.write(a, data, self.linear(w.index)),
        }
    }

    /// Counts one access of a warp.
    fn count(&mut self, memory: Memory, addresses: &[u64; 32], mask: u32, width: u32, stores: bool) {
        let (m, _) = resolve(memory, addresses[mask.trailing_zeros() as usize & 31]);
        let bytes = width as u64 * mask.count_ones() as u64;
        match m {
            Memory::Shared => self.stats.banks(addresses, mask, width),
            Memory::Global | Memory::Generic => self.stats.coalescing(addresses, mask, width),
            Memory::Param => return,
            Memory::Local => {}
        }
        let b = self.stats.bytes(m);
        if stores { b.stored += bytes } else { b.loaded += bytes }
    }

    pub(super) fn access(&mut self, w: &mut Warp, pc: u32, op: Op, mask: u32) -> Result<(), Problem> {
        let k = self.launch.kernel;
        match op {
            Op::Load { memory, ty, parts, wide, at: place, ordered } => {
                let parts = k.slots(parts);
                let addresses = self.addresses(w, place, mask)?;
                let each = ty.bytes() as usize;
                let width = each * parts.len();
                self.count(memory, &addresses, mask, width as u32, false);
                let mut data = [[0u8; 32]; 32];
                for l in 0..32 {
                    if mask >> l & 1 != 0 {
                        let r = self.read(w, l, memory, addresses[l], &mut data[l][..width], ordered);
                        at(r, l as u32, || self.describe(memory, addresses[l]))?;
                    }
                }
                for (i, s) in parts.iter().enumerate().filter(|(_, s)| **s != NONE) {
                    let value = |l: usize| {
                        let mut b = [0u8; 8];
                        b[..each].copy_from_slice(&data[l][i * each..(i + 1) * each]);
                        extend(ty, u64::from_le_bytes(b))
                    };
                    if wide { w.set64(*s, mask, value) } else { w.set(*s, mask, |l| value(l) as u32) }
                }
            }
            Op::Store { memory, ty, parts, wide, at: place, ordered } => {
                let parts = k.slots(parts);
                let addresses = self.addresses(w, place, mask)?;
                let each = ty.bytes() as usize;
                let width = each * parts.len();
                self.count(memory, &addresses, mask, width as u32, true);
                let mut data = [[0u8; 32]; 32];
                for (i, s) in parts.iter().enumerate() {
                    if wide {
                        let v = *w.get64(k, *s, mask)?;
                        for l in 0..32 {
                            data[l][i * each..(i + 1) * each].copy_from_slice(&v[l].to_le_bytes()[..each]);
                        }
                    } else {
                        let v = *w.get(k, *s, mask)?;
                        for l in 0..32 {
                            data[l][i * each..(i + 1) * each].copy_from_slice(&v[l].to_le_bytes()[..each]);
                        }
                    }
                }
                for l in 0..32 {
                    if mask >> l & 1 != 0 {
                        let r = self.write(w, l, memory, addresses[l], &data[l][..width], ordered);
                        at(r, l as u32, || self.describe(memory, addresses[l]))?;
                    }
                }
                if !ordered {
                    self.conflicting(memory, &addresses, mask, width, &data)?;
                }
            }
            Op::Atomic { f, ty, memory, d, a, b, at: place } => {
                let addresses = self.addresses(w, place, mask)?;
                let wide = ty.bytes() == 8;
                let operand = |w: &Warp, s: Slot| -> Result<[u64; 32], Problem> { if wide { w.get64(k, s, mask).copied() } else { w.get(k, s, mask).map(|v| v.map(u64::from)) } };
                let x = operand(w, a)?;
                let y = if b == NONE { [0; 32] } else { operand(w, b)? };
                let width = ty.bytes() as usize;
                self.count(memory, &addresses, mask, width as u32, true);
                let mut old = [0u64; 32];
                for l in 0..32 {
                    if mask >> l & 1 == 0 {
                        continue;
                    }
                    let (m, address) = resolve(memory, addresses[l]);
                    let r = self.update(w, m, address, width, |v| combine(f, ty, v, x[l], y[l]));
                    old[l] = at(r, l as u32, || self.describe(memory, addresses[l]))?;
                }
                if d != NONE {
                    if wide { w.set64(d, mask, |l| old[l]) } else { w.set(d, mask, |l| old[l] as u32) }
                }
            }
            Op::CopyAsync { bytes, size, to, from } => {
                let (to, from) = (self.addresses(w, to, mask)?, self.addresses(w, from, mask)?);
                let sizes = if size == NONE { [bytes as u32; 32] } else { *w.get(k, size, mask)? };
                self.stats.coalescing(&from, lanes_reading(&sizes, mask), bytes as u32);
                let line = k.code[pc as usize].line;
                for l in 0..32 {
                    if mask >> l & 1 == 0 {
                        continue;
                    }
                    let r = self.issue(w.index, &to, &from, &sizes, l, bytes);
                    let start = at(r, l as u32, || format!("{} from {}", self.describe(Memory::Shared, to[l]), self.describe(Memory::Global, from[l])))?;
                    w.copies.push(Copy { lane: l as u32, to: start as u32, from: from[l], bytes, read: sizes[l] as u8, group: NONE, line });
                    self.stats.bytes(Memory::Global).loaded += sizes[l] as u64;
                    self.stats.bytes(Memory::Shared).stored += bytes as u64;
                }
            }
            Op::CopyCommit => {
                for c in w.copies.iter_mut().filter(|c| mask >> c.lane & 1 != 0 && c.group == NONE) {
                    c.group = w.committed[c.lane as usize];
                }
                for l in 0..32 {
                    w.committed[l] += mask >> l & 1;
                }
            }
            Op::CopyWait { left, all } => {
                let mut rest = vec![];
                for c in std::mem::take(&mut w.copies) {
                    let covered = mask >> c.lane & 1 != 0 && (all || (c.group != NONE && (c.group as u64 + left as u64) < w.committed[c.lane as usize] as u64));
                    if covered {
                        let r = self.arrive(w.index, &c);
                        at(r, c.lane, || format!("{} from {}", self.shared.describe_place(c.to as usize), self.describe(Memory::Global, c.from)))?;
                    } else {
                        rest.push(c);
                    }
                }
                w.copies = rest;
            }
            _ => return problem(FaultKind::Undefined, "an instruction of another class"),
        }
        Ok(())
    }

    /// Checks a copy, and marks its target.
    fn issue(&mut self, warp: usize, to: &[u64; 32], from: &[u64; 32], sizes: &[u32; 32], l: usize, bytes: u8) -> Result<usize, Problem> {
        if sizes[l] > bytes as u32 {
            return problem(FaultKind::Undefined, format!("a copy of {bytes} bytes cannot read {}", sizes[l]));
        }
        Self::aligned(to[l], bytes as usize)?;
        Self::aligned(from[l], bytes as usize)?;
        if sizes[l] > 0 {
            self.launch.global.find(from[l], sizes[l] as u64)?;
        }
        let start = self.shared.range(to[l], bytes as usize)?;
        self.own(warp, start)?;
        self.shared.access(warp, warp, start, bytes as usize, Access::Issue)?;
        Ok(start)
    }

    /// A copy's data, at last.
    fn arrive(&mut self, warp: usize, c: &Copy) -> Result<(), Problem> {
        let mut data = [0u8; 16];
        if c.read > 0 {
            self.launch.global.read(c.from, &mut data[..c.read as usize], self.linear(warp))?;
        }
        self.shared.access(warp, warp, c.to as usize, c.bytes as usize, Access::Arrive)?;
        self.shared.fill(c.to as usize, &data[..c.bytes as usize]);
        Ok(())
    }

    /// Two lanes that store different values to the same bytes in one instruction: one of them wins, and the ISA does not say which.
    fn conflicting(&self, memory: Memory, addresses: &[u64; 32], mask: u32, width: usize, data: &[[u8; 32]; 32]) -> Result<(), Problem> {
        for l in 0..32 {
            if mask >> l & 1 == 0 || resolve(memory, addresses[l]).0 == Memory::Local {
                continue;
            }
            for m in 0..l {
                if mask >> m & 1 != 0 && addresses[l] == addresses[m] && data[l][..width] != data[m][..width] {
                    return at(problem(FaultKind::Race, format!("lanes {m} and {l} store different values here in one instruction")), l as u32, || self.describe(memory, addresses[l]));
                }
            }
        }
        Ok(())
    }

    fn update(&mut self, w: &Warp, m: Memory, address: u64, width: usize, f: impl FnOnce(u64) -> u64) -> Result<u64, Problem> {
        Self::aligned(address, width)?;
        match m {
            Memory::Shared => {
                let mut b = [0u8; 8];
                self.read_shared(w.index, address, &mut b[..width], Access::Atomic)?;
                let old = u64::from_le_bytes(b);
                let start = self.shared.range(address, width)?;
                self.shared.fill(start, &f(old).to_le_bytes()[..width]);
                Ok(old)
            }
            Memory::Global | Memory::Generic => self.launch.global.update(address, width, self.linear(w.index), f),
            _ => problem(FaultKind::Undefined, "atomics are for global and shared memory"),
        }
    }
}

/// A wait that came too early is one thing, a commit that is missing another.
fn uncommitted(w: &Warp, address: u64, len: usize, mut p: Problem) -> Problem {
    if p.kind == FaultKind::InFlight {
        let here = |c: &&Copy| (c.to as u64) < address + len as u64 && address < c.to as u64 + c.bytes as u64;
        if let Some(c) = w.copies.iter().find(here) {
            p.message += &format!("; the copy is that of line {}", c.line);
            if c.group == NONE {
                p.kind = FaultKind::MissingCommit;
                p.message += ", which no commit has put into a group";
            }
        }
    }
    p
}

fn lanes_reading(sizes: &[u32; 32], mask: u32) -> u32 {
    (0..32).fold(0, |m, l| m | ((mask >> l & 1 != 0 && sizes[l] > 0) as u32) << l)
}

/// What an atomic leaves in memory.
pub(super) fn combine(f: Atomic, ty: Type, old: u64, a: u64, b: u64) -> u64 {
    let signed = ty.signed();
    match f {
        Atomic::Add if ty == Type::F64 => lanes::float2_wide(Float2::Add, old, a),
        Atomic::Add | Atomic::Min | Atomic::Max if ty.float() => {
            let g = match f {
                Atomic::Add => Float2::Add,
                Atomic::Min => Float2::Min,
                _ => Float2::Max,
            };
            lanes::halves(ty, [old as u32, a as u32, 0], |[x, y, _]| lanes::float2(lanes::format(ty), g, Mods::default(), x, y)) as u64
        }
        Atomic::Add => old.wrapping_add(a),
        Atomic::Min if signed => (extend(ty, old) as i64).min(extend(ty, a) as i64) as u64,
        Atomic::Max if signed => (extend(ty, old) as i64).max(extend(ty, a) as i64) as u64,
        Atomic::Min => old.min(a),
        Atomic::Max => old.max(a),
        Atomic::And => old & a,
        Atomic::Or => old | a,
        Atomic::Xor => old ^ a,
        Atomic::Exch => a,
        Atomic::Cas => if extend(ty, old) == extend(ty, a) { b } else { old },
        Atomic::Inc => if old >= a { 0 } else { old + 1 },
        Atomic::Dec => if old == 0 || old > a { a } else { old - 1 },
    }
}
