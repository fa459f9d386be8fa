//! Instructions of a whole warp: matrices, shuffles, votes.

use super::super::fault::{FaultKind, Problem, at, problem};
use super::super::lanes::{extend, shuffle};
use super::super::matrix;
use super::super::op::*;
use super::super::shared::Access;
use super::super::warp::{FULL, NONE, Wait, Warp};
use super::space::combine;
use super::{Block, Next};

impl Block<'_> {
    pub(super) fn exchange(&mut self, w: &mut Warp, pc: u32, op: Op, mask: u32) -> Result<Next, Problem> {
        let k = self.launch.kernel;
        // Who must be here: everybody, or the lanes of the mask that the instruction has.
        let need = match op {
            Op::Shuffle { mask: m, .. } | Op::Vote { mask: m, .. } | Op::Match { mask: m, .. } | Op::Reduce { mask: m, .. } | Op::Elect { mask: m, .. } | Op::WarpBarrier { mask: m } => {
                let masks = *w.get(k, m, mask)?;
                if let Some(l) = (0..32).find(|l| mask >> l & 1 != 0 && masks[*l] >> l & 1 == 0) {
                    return at(problem(FaultKind::Divergent, format!("the lane is not in its own mask {:#010x}", masks[l])), l as u32, String::new).map_err(|mut p| {
                        p.address = None;
                        p
                    });
                }
                self.uniform(&masks, mask, "the mask")?
            }
            Op::ActiveMask { .. } => 0,
            _ => FULL,
        };
        if !self.together(w, pc, need, mask)? {
            return Ok(Next::Wait(Wait::Lanes, false));
        }
        match op {
            Op::WarpBarrier { .. } => {}
            Op::LoadMatrix { parts, transposed, at: place } => self.load_matrix(w, k.slots(parts), transposed, place, mask)?,
            Op::StoreMatrix { parts, transposed, at: place } => self.store_matrix(w, k.slots(parts), transposed, place, mask)?,
            Op::MoveMatrix { d, a } => {
                let x = *w.get(k, a, mask)?;
                // Element (row, col) is half `col % 2` of lane `4·row + col/2`.
                let element = |row: usize, col: usize| x[4 * row + col / 2] >> (16 * (col % 2)) & 0xffff;
                w.set(d, mask, |l| element(2 * (l % 4), l / 4) | element(2 * (l % 4) + 1, l / 4) << 16);
            }
            Op::Product { f, d, a, b, c } => {
                let fragments = |w: &Warp, s: Slots| -> Result<[[u32; 32]; 4], Problem> {
                    let mut out = [[0; 32]; 4];
                    for (o, s) in out.iter_mut().zip(k.slots(s)) {
                        *o = *w.get(k, *s, mask)?;
                    }
                    Ok(out)
                };
                if mask != FULL {
                    return problem(FaultKind::Divergent, format!("only lanes {mask:#010x} of the warp exist or are left"));
                }
                let (x, y, z) = (fragments(w, a)?, fragments(w, b)?, fragments(w, c)?);
                let out = matrix::product(self.launch.model, f.format, f.half, f.k as usize, &x, &y, &z);
                for (s, o) in k.slots(d).iter().zip(&out) {
                    w.set(*s, mask, |l| o[l]);
                }
                self.stats.products += 16 * 8 * f.k as u64;
            }
            Op::Shuffle { f, d, p, a, b, c, .. } => {
                let (b, c) = (*w.get(k, b, mask)?, *w.get(k, c, mask)?);
                if !w.in_flight.is_empty() {
                    w.get(k, a, mask)?;
                }
                let (x, defined) = (w.r[a as usize], w.defined32[a as usize]);
                let (mut from, mut ok, mut has) = ([0u32; 32], 0, 0);
                for l in 0..32 {
                    let (j, inside) = shuffle(f, l as u32, b[l], c[l]);
                    from[l] = j;
                    ok |= (inside as u32) << l;
                    // From a lane that does not take part comes nothing that one may use.
                    has |= (defined >> j & mask >> j & 1) << l;
                }
                if d != NONE {
                    w.set(d, mask, |l| x[from[l] as usize]);
                    w.taint(d, mask, has);
                }
                w.set_pred(p, mask, ok);
            }
            Op::Vote { f, d, p, negated, .. } => {
                let p = w.get_pred(k, p, mask)?;
                let ones = mask & if negated { !p } else { p };
                let truth = |b: bool| if b { FULL } else { 0 };
                match f {
                    Vote::Ballot => w.set(d, mask, |_| ones),
                    Vote::All => w.set_pred(d, mask, truth(ones == mask)),
                    Vote::Any => w.set_pred(d, mask, truth(ones != 0)),
                    Vote::Uni => w.set_pred(d, mask, truth(ones == mask || ones == 0)),
                }
            }
            Op::Match { all, wide, d, p, a, .. } => {
                let x: [u64; 32] = if wide { *w.get64(k, a, mask)? } else { w.get(k, a, mask)?.map(u64::from) };
                let same = |l: usize| (0..32).fold(0u32, |m, j| m | ((mask >> j & 1 != 0 && x[j] == x[l]) as u32) << j);
                let whole = same(mask.trailing_zeros() as usize) == mask;
                w.set(d, mask, |l| if all { if whole { mask } else { 0 } } else { same(l) });
                w.set_pred(p, mask, if whole { FULL } else { 0 });
            }
            Op::Reduce { f, ty, d, a, .. } => {
                let x = *w.get(k, a, mask)?;
                let mut values = (0..32).filter(|l| mask >> l & 1 != 0).map(|l| extend(ty, x[l] as u64));
                let first = values.next().unwrap_or(0);
                let all = values.fold(first, |v, x| combine(f, ty, v, x, 0));
                w.set(d, mask, |_| all as u32);
            }
            Op::Elect { d, p, .. } => {
                let leader = mask.trailing_zeros();
                if d != NONE {
                    w.set(d, mask, |_| leader);
                }
                w.set_pred(p, mask, 1 << leader);
            }
            Op::ActiveMask { d } => w.set(d, mask, |_| mask),
            _ => return problem(FaultKind::Undefined, "an instruction of another class"),
        }
        Ok(Next::Go)
    }

    /// The rows' addresses: lanes `8·i` to `8·i + 7` give those of matrix `i`.
    fn rows(&mut self, w: &Warp, n: usize, place: Address, mask: u32) -> Result<[u64; 32], Problem> {
        if mask != FULL {
            return problem(FaultKind::Divergent, format!("only lanes {mask:#010x} of the warp exist or are left"));
        }
        let used = if n == 4 { FULL } else { (1 << (8 * n)) - 1 };
        let addresses = self.addresses(w, place, used)?;
        for (l, a) in addresses.iter().enumerate().take(8 * n) {
            if a % 16 != 0 {
                return at(problem(FaultKind::Misaligned, format!("row {} of matrix {} is not at a multiple of 16 bytes", l % 8, l / 8)), l as u32, || self.describe(Memory::Shared, *a));
            }
        }
        self.stats.banks(&addresses, used, 16);
        Ok(addresses)
    }

    fn load_matrix(&mut self, w: &mut Warp, parts: &[Slot], transposed: bool, place: Address, mask: u32) -> Result<(), Problem> {
        let addresses = self.rows(w, parts.len(), place, mask)?;
        self.stats.bytes(Memory::Shared).loaded += 128 * parts.len() as u64;
        for (i, s) in parts.iter().enumerate() {
            let mut rows = [[0u8; 16]; 8];
            for (r, row) in rows.iter_mut().enumerate() {
                let a = addresses[8 * i + r];
                let result = self.read_shared(w.index, a, row, Access::Read);
                at(result, (8 * i + r) as u32, || self.describe(Memory::Shared, a))?;
            }
            let element = |r: usize, c: usize| u16::from_le_bytes([rows[r][2 * c], rows[r][2 * c + 1]]) as u32;
            w.set(*s, mask, |l| {
                let (a, b) = (l / 4, 2 * (l % 4));
                if transposed { element(b, a) | element(b + 1, a) << 16 } else { element(a, b) | element(a, b + 1) << 16 }
            });
        }
        Ok(())
    }

    fn store_matrix(&mut self, w: &mut Warp, parts: &[Slot], transposed: bool, place: Address, mask: u32) -> Result<(), Problem> {
        let addresses = self.rows(w, parts.len(), place, mask)?;
        self.stats.bytes(Memory::Shared).stored += 128 * parts.len() as u64;
        for (i, s) in parts.iter().enumerate() {
            let x = *w.get(self.launch.kernel, *s, mask)?;
            let mut rows = [[0u8; 16]; 8];
            for (l, x) in x.iter().enumerate() {
                for h in 0..2 {
                    let (a, b) = (l / 4, 2 * (l % 4) + h);
                    let (r, c) = if transposed { (b, a) } else { (a, b) };
                    rows[r][2 * c..2 * c + 2].copy_from_slice(&(x >> (16 * h)).to_le_bytes()[..2]);
                }
            }
            for (r, row) in rows.iter().enumerate() {
                let a = addresses[8 * i + r];
                let result = self.write_shared(w.index, a, row, Access::Write);
                at(result, (8 * i + r) as u32, || self.describe(Memory::Shared, a))?;
            }
        }
        Ok(())
    }
}

