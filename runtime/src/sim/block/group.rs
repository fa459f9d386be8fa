//! Products of a warpgroup (`wgmma`): operands by descriptor or from registers, accumulators that nobody may touch until the wait.
//!
//! Nothing happens before the wait, which the four warps reach together; then the pending products are computed in order. Their reads of shared memory
//! are those of an agent of its own, the warpgroup, whose end every warp of it knows after the wait.

use super::super::fault::{Fault, FaultKind, Problem, problem};
use super::super::float::TF32;
use super::super::matrix::{Element, dot};
use super::super::memory::RANK;
use super::super::op::*;
use super::super::shared::Access;
use super::super::tensor_map::Swizzle;
use super::super::warp::{FULL, Late, NONE, Pending, Wait, Warp};
use super::{Block, Next};

/// A matrix descriptor.
struct Descriptor {
    start: u32,
    leading: u32,
    stride: u32,
    swizzle: Swizzle,
}

impl Descriptor {
    fn new(bits: u64) -> Result<Descriptor, Problem> {
        let field = |at: u32| ((bits >> at) as u32 & 0x3fff) << 4;
        if bits >> 49 & 7 != 0 {
            return problem(FaultKind::Undefined, format!("descriptor {bits:#x} has a base offset; tiles are aligned to their swizzle's period here"));
        }
        let swizzle = match bits >> 62 {
            0 => Swizzle::None,
            1 => Swizzle::B128,
            2 => Swizzle::B64,
            _ => Swizzle::B32,
        };
        Ok(Descriptor { start: field(0), leading: field(16), stride: field(32), swizzle })
    }
    /// Where element `k` of row (or column) `m` lies, for elements of `width` bytes; `major`: the other axis is the contiguous one.
    fn address(&self, m: u32, k: u32, width: u32, major: bool) -> u32 {
        let span = self.swizzle.span();
        let a = match (major, span) {
            // Core matrices of 8 rows by 16 bytes.
            (false, 0) => (m / 8) * self.stride + (k * width / 16) * self.leading + (m % 8) * 16 + k * width % 16,
            (false, s) => (m / 8) * self.stride + (m % 8) * s + k * width,
            (true, 0) => (m * width / 16) * self.stride + (k / 8) * self.leading + (k % 8) * 16 + m * width % 16,
            (true, s) => (m * width / s) * self.leading + (k / 8) * self.stride + (k % 8) * s + m * width % s,
        };
        self.swizzle.apply(self.start + a)
    }
}

impl Block<'_> {
    fn agent(&self, warp: usize) -> usize {
        self.alive.len() + 1 + warp / 4
    }

    pub(super) fn group(&mut self, w: &mut Warp, pc: u32, op: Op, mask: u32) -> Result<Next, Problem> {
        let k = self.launch.kernel;
        if !self.together(w, pc, FULL, mask)? {
            return Ok(Next::Wait(Wait::Lanes, false));
        }
        if mask != FULL || w.index / 4 * 4 + 4 > self.alive.len() {
            return problem(FaultKind::Divergent, "a product of a warpgroup takes four whole warps");
        }
        match op {
            Op::GroupCommit => {
                for l in &mut w.late {
                    if let Late::Product(p) = l
                        && p.group == NONE
                    {
                        p.group = w.product_groups;
                    }
                }
                w.product_groups += 1;
                Ok(Next::Go)
            }
            Op::GroupWait { left } => Ok(Next::Wait(Wait::Group(left), true)),
            Op::GroupProduct { f, d, a, descriptor_a, descriptor_b, scale } => {
                let shape = &k.products[f as usize];
                let scale = w.get_pred(k, scale, mask)?;
                if scale != 0 && scale != FULL {
                    return problem(FaultKind::Undefined, "the scale of the accumulator differs between lanes");
                }
                let accumulate = scale == FULL;
                let mut fragments = [[0; 32]; 4];
                for (o, s) in fragments.iter_mut().zip(k.slots(a)) {
                    *o = *w.get(k, *s, mask)?;
                }
                let uniform = |s: Slot| -> Result<u64, Problem> {
                    if s == NONE {
                        return Ok(0);
                    }
                    let v = w.get64(k, s, mask)?;
                    if v.iter().any(|x| x != &v[0]) { problem(FaultKind::Undefined, "a descriptor differs between lanes") } else { Ok(v[0]) }
                };
                let (da, db) = (uniform(descriptor_a)?, uniform(descriptor_b)?);
                for s in k.slots(d) {
                    if accumulate && !w.in_flight.contains(s) {
                        w.get(k, *s, mask)?;
                    }
                }
                for s in k.slots(d) {
                    if !w.in_flight.contains(s) {
                        w.in_flight.push(*s);
                    }
                    w.taint(*s, mask, 0);
                }
                // The operands must be there when the product is issued, and stay.
                if descriptor_a != NONE {
                    self.operand(w.index, da, 64, shape, shape.trans_a)?;
                }
                self.operand(w.index, db, shape.n, shape, shape.trans_b)?;
                w.late.push(Late::Product(Box::new(Pending { pc, a: fragments, descriptor_a: da, descriptor_b: db, accumulate, group: NONE })));
                self.stats.products += 16 * shape.n as u64 * shape.k as u64;
                Ok(Next::Go)
            }
            _ => problem(FaultKind::Undefined, "an instruction of another class"),
        }
    }

    /// An operand's elements, row by row (or column by column), as bits.
    fn operand(&mut self, warp: usize, descriptor: u64, count: u32, f: &GroupProduct, major: bool) -> Result<Vec<u32>, Problem> {
        let d = Descriptor::new(descriptor)?;
        let base = (self.rank(warp) as u64) << RANK;
        let width = if f.format == TF32 { 4 } else { 2 };
        let agent = self.agent(warp);
        let mut out = Vec::with_capacity((count * f.k) as usize);
        let (mut last, mut place) = (u32::MAX, 0);
        for m in 0..count {
            for k in 0..f.k {
                let a = d.address(m, k, width, major);
                // One check per chunk of 16 bytes.
                if a & !15 != last {
                    last = a & !15;
                    let r = self.shared.range(base | last as u64, 16).and_then(|s| self.shared.access(agent, warp, s, 16, Access::ProxyRead).map(|_| s));
                    place = r.map_err(|mut p| {
                        p.message += &format!("; element ({m}, {k}) of an operand with descriptor {descriptor:#018x}");
                        p.address = Some(self.shared.describe(base | a as u64));
                        p
                    })?;
                }
                let b = &self.shared.bytes[place + (a & 15) as usize..][..width as usize];
                out.push(if width == 2 { u16::from_le_bytes([b[0], b[1]]) as u32 } else { u32::from_le_bytes([b[0], b[1], b[2], b[3]]) >> 13 });
            }
        }
        Ok(out)
    }

    /// If all four warps of a warpgroup are at their wait, what it covers happens.
    pub(super) fn rendezvous(&mut self, ws: &mut [Warp], group: usize) -> Result<(), Fault> {
        let range = group * 4..group * 4 + 4;
        if range.end > ws.len() {
            return Ok(());
        }
        let left = |w: &Warp| w.groups.iter().find_map(|g| if let Wait::Group(n) = g.wait { Some((n, g.pc)) } else { None });
        let waits: Vec<_> = ws[range.clone()].iter().map(left).collect();
        if waits.iter().any(Option::is_none) {
            return Ok(());
        }
        let first = range.start;
        let line = |pc: u32| self.launch.kernel.code[pc as usize].line;
        let (n, pc) = waits[0].unwrap_or((0, 1));
        if waits.iter().any(|w| w != &waits[0]) {
            let r: Result<(), Problem> = problem(FaultKind::Divergent, "the warps of a warpgroup wait at different instructions");
            return r.map_err(|p| self.fault(*p, line(pc - 1), Some((&ws[first], FULL))));
        }
        loop {
            let next = |w: &Warp| w.late.iter().find_map(|l| if let Late::Product(p) = l { Some((p.group, p.pc)) } else { None });
            let ready = |w: &Warp| next(w).is_some_and(|(g, _)| g != NONE && (g as u64 + n as u64) < w.product_groups as u64);
            let count = ws[range.clone()].iter().filter(|w| ready(w)).count();
            if count == 0 {
                break;
            }
            let pcs: Vec<_> = ws[range.clone()].iter().filter_map(|w| next(w).map(|(_, pc)| pc)).collect();
            if count != 4 || pcs.iter().any(|p| *p != pcs[0]) {
                let r: Result<(), Problem> = problem(FaultKind::Divergent, "the warps of a warpgroup have issued different products");
                return r.map_err(|p| self.fault(*p, line(pc - 1), Some((&ws[first], FULL))));
            }
            for w in &mut ws[range.clone()] {
                self.moves(w);
            }
            let r = self.compute(&mut ws[range.clone()]);
            r.map_err(|p| self.fault(*p, line(pcs[0]), Some((&ws[first], FULL))))?;
        }
        let agent = self.agent(first);
        for w in &mut ws[range] {
            self.shared.clocks[w.index][agent] = self.shared.stamp;
            self.moves(w);
            // Accumulators of products that are still to come stay closed.
            let open: Vec<Slot> = w.late.iter().flat_map(|l| self.written(l)).collect();
            w.in_flight.retain(|s| open.contains(s));
            for s in &open {
                w.taint(*s, FULL, 0);
            }
            for g in w.groups.iter_mut().filter(|g| matches!(g.wait, Wait::Group(_))) {
                g.wait = Wait::Run;
            }
        }
        self.shared.stamp += 1;
        Ok(())
    }

    /// The registers that something late will write.
    fn written(&self, l: &Late) -> Vec<Slot> {
        let k = self.launch.kernel;
        match l {
            Late::Move { d, .. } => vec![*d],
            Late::Product(p) => if let Op::GroupProduct { d, .. } = k.code[p.pc as usize].op { k.slots(d).to_vec() } else { vec![] },
        }
    }

    /// A move from or to an accumulator that is in flight.
    pub(super) fn late_move(&self, w: &mut Warp, d: Slot, a: Slot, mask: u32) -> Result<(), Problem> {
        let name = |s: Slot| &self.launch.kernel.names32[s as usize];
        if mask != FULL || !w.in_flight.contains(&a) || w.in_flight.contains(&d) {
            let which = if w.in_flight.contains(&d) { d } else { a };
            return problem(FaultKind::InFlight, format!("`{}` is the accumulator of a product that no wait has completed", name(which)));
        }
        w.late.push(Late::Move { d, a });
        w.in_flight.push(d);
        w.taint(d, FULL, 0);
        Ok(())
    }

    /// Moves whose source no product before them will write any more.
    fn moves(&self, w: &mut Warp) {
        let mut blocked: Vec<Slot> = vec![];
        let mut rest = vec![];
        for l in std::mem::take(&mut w.late) {
            match l {
                Late::Move { d, a } if !blocked.contains(&a) && !blocked.contains(&d) => {
                    let x = w.r[a as usize];
                    w.set(d, FULL, |l| x[l]);
                }
                l => {
                    blocked.extend(self.written(&l));
                    rest.push(l);
                }
            }
        }
        w.late = rest;
    }

    /// The first pending product of four warps.
    fn compute(&mut self, ws: &mut [Warp]) -> Result<(), Problem> {
        let kernel = self.launch.kernel;
        let mut pending: Vec<Pending> = vec![];
        for w in ws.iter_mut() {
            let Some(at) = w.late.iter().position(|l| matches!(l, Late::Product(_))) else { return Ok(()) };
            if let Late::Product(p) = w.late.remove(at) {
                pending.push(*p);
            }
        }
        let Op::GroupProduct { f, d, descriptor_a, .. } = kernel.code[pending[0].pc as usize].op else { return Ok(()) };
        let f = &kernel.products[f as usize];
        let k = f.k as usize;
        if pending.iter().any(|p| p.descriptor_b != pending[0].descriptor_b || p.accumulate != pending[0].accumulate) {
            return problem(FaultKind::Divergent, "the warps of a warpgroup give different right operands");
        }
        let sign = 1u32 << (f.format.exponent + f.format.fraction);
        let negated = |bits: Vec<u32>, on: bool| -> Vec<u32> { if on { bits.into_iter().map(|b| b ^ sign).collect() } else { bits } };
        let b = negated(self.operand(ws[0].index, pending[0].descriptor_b, f.n, f, f.trans_b)?, f.negate_b);
        let be: Vec<Element> = b.iter().map(|x| Element::new(f.format, *x)).collect();
        let from_memory = if descriptor_a == NONE { None } else { Some(self.operand(ws[0].index, pending[0].descriptor_a, 64, f, f.trans_a)?) };
        for (i, (w, p)) in ws.iter_mut().zip(&pending).enumerate() {
            let a: Vec<u32> = match &from_memory {
                Some(all) => all[16 * i * k..16 * (i + 1) * k].to_vec(),
                None => (0..16 * k).map(|e| super::super::matrix::left(f.format, &p.a, e / k, e % k)).collect(),
            };
            let a = negated(a, f.negate_a);
            let ae: Vec<Element> = a.iter().map(|x| Element::new(f.format, *x)).collect();
            let slots = kernel.slots(d);
            for (j, s) in slots.iter().enumerate() {
                // Accumulators go in groups of eight columns: two elements of a row, then two of the row eight below.
                let per = if f.half { 2 } else { 4 };
                let old = w.r[*s as usize];
                let mut new = [0u32; 32];
                for (lane, new) in new.iter_mut().enumerate() {
                    let one = |row: usize, col: usize, c: u32| {
                        let (r, c0) = (row * k..(row + 1) * k, col * k..(col + 1) * k);
                        dot(self.launch.model, f.format, f.half, (&ae[r.clone()], &a[r]), (&be[c0.clone()], &b[c0]), if p.accumulate { c } else { 0 })
                    };
                    let (block, part) = (j / per, j % per);
                    *new = if f.half {
                        let row = lane / 4 + 8 * part;
                        let col = 8 * block + 2 * (lane % 4);
                        one(row, col, old[lane] & 0xffff) | one(row, col + 1, old[lane] >> 16) << 16
                    } else {
                        one(lane / 4 + 8 * (part / 2), 8 * block + 2 * (lane % 4) + part % 2, old[lane])
                    };
                }
                w.set(*s, FULL, |l| new[l]);
            }
        }
        Ok(())
    }
}
