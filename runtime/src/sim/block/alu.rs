//! Arithmetic of a warp: every lane by itself.

use super::super::fault::{FaultKind, Problem, problem};
use super::super::float;
use super::super::lanes::{self, extend, format, halves};
use super::super::memory::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW};
use super::super::op::*;
use super::super::syntax::Type;
use super::super::warp::{NONE, Warp};
use super::super::float::Round;
use super::Block;

/// `f` on whole integers of 32 or 64 bits, by signedness.
macro_rules! integer {
    ($w:ident, $k:ident, $get:ident, $set:ident, $u:ty, $i:ty, $wide:ty, $swide:ty, $f:ident, $ty:ident, $d:ident, $a:ident, $b:ident, $mask:ident) => {{
        let (x, y) = (*$w.$get($k, $a, $mask)?, *$w.$get($k, $b, $mask)?);
        let signed = $ty.signed();
        const BITS: u32 = <$u>::BITS;
        match $f {
            Int2::Add => $w.$set($d, $mask, |l| x[l].wrapping_add(y[l])),
            Int2::Sub => $w.$set($d, $mask, |l| x[l].wrapping_sub(y[l])),
            Int2::MulLo => $w.$set($d, $mask, |l| x[l].wrapping_mul(y[l])),
            Int2::MulHi if signed => $w.$set($d, $mask, |l| ((x[l] as $i as $swide * y[l] as $i as $swide) >> BITS) as $u),
            Int2::MulHi => $w.$set($d, $mask, |l| ((x[l] as $wide * y[l] as $wide) >> BITS) as $u),
            Int2::Div | Int2::Rem => {
                if let Some(l) = (0..32).find(|l| $mask >> l & 1 != 0 && y[*l] == 0) {
                    return divided_by_zero(l as u32);
                }
                match ($f, signed) {
                    (Int2::Div, true) => $w.$set($d, $mask, |l| (x[l] as $i).wrapping_div(y[l] as $i) as $u),
                    (Int2::Div, false) => $w.$set($d, $mask, |l| x[l] / y[l]),
                    (_, true) => $w.$set($d, $mask, |l| (x[l] as $i).wrapping_rem(y[l] as $i) as $u),
                    (_, false) => $w.$set($d, $mask, |l| x[l] % y[l]),
                }
            }
            Int2::Min if signed => $w.$set($d, $mask, |l| (x[l] as $i).min(y[l] as $i) as $u),
            Int2::Min => $w.$set($d, $mask, |l| x[l].min(y[l])),
            Int2::Max if signed => $w.$set($d, $mask, |l| (x[l] as $i).max(y[l] as $i) as $u),
            Int2::Max => $w.$set($d, $mask, |l| x[l].max(y[l])),
            Int2::And => $w.$set($d, $mask, |l| x[l] & y[l]),
            Int2::Or => $w.$set($d, $mask, |l| x[l] | y[l]),
            Int2::Xor => $w.$set($d, $mask, |l| x[l] ^ y[l]),
            Int2::AddSat => $w.$set($d, $mask, |l| (x[l] as $i).saturating_add(y[l] as $i) as $u),
            Int2::SubSat => $w.$set($d, $mask, |l| (x[l] as $i).saturating_sub(y[l] as $i) as $u),
        }
    }};
}

fn divided_by_zero(lane: u32) -> Result<(), Problem> {
    let r: Result<(), Problem> = problem(FaultKind::Undefined, "division by zero");
    r.map_err(|mut p| {
        p.lane = Some(lane);
        p
    })
}

/// Lanes where `f` holds.
fn lanes_where(f: impl Fn(usize) -> bool) -> u32 {
    (0..32).fold(0, |m, l| m | (f(l) as u32) << l)
}

impl Block<'_> {
    pub(super) fn arithmetic(&mut self, w: &mut Warp, op: Op, mask: u32) -> Result<(), Problem> {
        let k = self.launch.kernel;
        match op {
            Op::Nop => {}
            Op::Move32 { d, a } => {
                let (x, defined) = (w.r[a as usize], w.defined32[a as usize]);
                if !w.in_flight.is_empty() && (w.in_flight.contains(&a) || w.in_flight.contains(&d)) {
                    return self.late_move(w, d, a, mask);
                }
                w.set(d, mask, |l| x[l]);
                w.taint(d, mask, defined);
            }
            Op::Move64 { d, a } => {
                let (x, defined) = (w.q[a as usize], w.defined64[a as usize]);
                w.set64(d, mask, |l| x[l]);
                w.taint64(d, mask, defined);
            }
            Op::MoveP { d, a } => {
                let p = w.get_pred(k, a, mask)?;
                w.set_pred(d, mask, p);
            }
            Op::Pack { d, parts, bits } => {
                let (mut out, mut defined) = ([0u64; 32], mask);
                for (i, s) in k.slots(parts).iter().enumerate() {
                    self.settled(w, *s)?;
                    defined &= w.defined32[*s as usize];
                    let keep = (1u64 << bits) - 1;
                    for (o, x) in out.iter_mut().zip(&w.r[*s as usize]) {
                        *o |= (*x as u64 & keep) << (i as u32 * bits as u32);
                    }
                }
                w.set_place(d, mask, |l| out[l]);
                match d {
                    Place::Narrow(s) => w.taint(s, mask, defined),
                    Place::Wide(s) => w.taint64(s, mask, defined),
                }
            }
            Op::Unpack { parts, a, bits } => {
                let (x, defined): ([u64; 32], u32) = match a {
                    Place::Narrow(s) => {
                        self.settled(w, s)?;
                        (w.r[s as usize].map(u64::from), w.defined32[s as usize])
                    }
                    Place::Wide(s) => (w.q[s as usize], w.defined64[s as usize]),
                };
                let keep = (1u64 << bits) - 1;
                for (i, s) in k.slots(parts).iter().enumerate() {
                    if *s != NONE {
                        w.set(*s, mask, |l| (x[l] >> (i as u32 * bits as u32) & keep) as u32);
                        w.taint(*s, mask, defined);
                    }
                }
            }
            Op::Int1 { f, ty, d, a } => {
                let narrow = ty.bytes() < 8 || matches!(f, Int1::Popc | Int1::Clz | Int1::Bfind(_));
                let x = if ty.bytes() == 8 { *w.get64(k, a, mask)? } else { w.get(k, a, mask)?.map(u64::from) };
                if narrow { w.set(d, mask, |l| lanes::int1(f, ty, x[l]) as u32) } else { w.set64(d, mask, |l| lanes::int1(f, ty, x[l])) }
            }
            Op::Int2 { f, ty, d, a, b } => match ty.bytes() {
                4 => integer!(w, k, get, set, u32, i32, u64, i64, f, ty, d, a, b, mask),
                8 => integer!(w, k, get64, set64, u64, i64, u128, i128, f, ty, d, a, b, mask),
                _ => self.short(w, f, ty, d, a, b, mask)?,
            },
            Op::Int3 { f, ty, d, a, b, c } => match (f, ty.bytes()) {
                (Int3::MadLo, 4) => {
                    let (x, y, z) = (*w.get(k, a, mask)?, *w.get(k, b, mask)?, *w.get(k, c, mask)?);
                    w.set(d, mask, |l| x[l].wrapping_mul(y[l]).wrapping_add(z[l]));
                }
                (Int3::MadLo, 8) => {
                    let (x, y, z) = (*w.get64(k, a, mask)?, *w.get64(k, b, mask)?, *w.get64(k, c, mask)?);
                    w.set64(d, mask, |l| x[l].wrapping_mul(y[l]).wrapping_add(z[l]));
                }
                (_, 8) => {
                    let (x, y, z) = (*w.get64(k, a, mask)?, *w.get64(k, b, mask)?, *w.get64(k, c, mask)?);
                    let high = |x: u64, y: u64| if ty.signed() { ((x as i64 as i128 * y as i64 as i128) >> 64) as u64 } else { ((x as u128 * y as u128) >> 64) as u64 };
                    w.set64(d, mask, |l| if f == Int3::Sad { distance(ty, x[l], y[l]) } else { high(x[l], y[l]) }.wrapping_add(z[l]));
                }
                (_, n) => {
                    let (x, y, z) = (*w.get(k, a, mask)?, *w.get(k, b, mask)?, *w.get(k, c, mask)?);
                    let keep = if n == 2 { 0xffff } else { u32::MAX };
                    w.set(d, mask, |l| {
                        let (p, q) = (extend(ty, x[l] as u64), extend(ty, y[l] as u64));
                        let product = p.wrapping_mul(q);
                        let v = match f {
                            Int3::MadLo => product,
                            Int3::MadHi => (product as i64 >> (8 * n)) as u64,
                            Int3::Sad => distance(ty, p, q),
                        };
                        (v as u32).wrapping_add(z[l]) & keep
                    });
                }
            },
            Op::Carry { sub, reads, writes, wide, d, a, b } => {
                let (x, y): ([u64; 32], [u64; 32]) = if wide { (*w.get64(k, a, mask)?, *w.get64(k, b, mask)?) } else { (w.get(k, a, mask)?.map(u64::from), w.get(k, b, mask)?.map(u64::from)) };
                let bits = if wide { 64 } else { 32 };
                let carry = if reads { w.carry } else { 0 };
                let full = |l: usize| {
                    let c = (carry >> l & 1) as i128;
                    if sub { x[l] as i128 - y[l] as i128 - c } else { x[l] as i128 + y[l] as i128 + c }
                };
                if wide { w.set64(d, mask, |l| full(l) as u64) } else { w.set(d, mask, |l| full(l) as u32) }
                if writes {
                    let out = lanes_where(|l| full(l) >> bits & 1 != 0);
                    w.carry = (w.carry & !mask) | (out & mask);
                }
            }
            Op::MulWide { ty, d, a, b } => {
                let (x, y) = (*w.get(k, a, mask)?, *w.get(k, b, mask)?);
                let product = |l: usize| extend(ty, x[l] as u64).wrapping_mul(extend(ty, y[l] as u64));
                if ty.bytes() == 4 { w.set64(d, mask, product) } else { w.set(d, mask, |l| product(l) as u32) }
            }
            Op::MadWide { ty, d, a, b, c } => {
                let (x, y) = (*w.get(k, a, mask)?, *w.get(k, b, mask)?);
                let product = |l: usize| extend(ty, x[l] as u64).wrapping_mul(extend(ty, y[l] as u64));
                if ty.bytes() == 4 {
                    let z = *w.get64(k, c, mask)?;
                    w.set64(d, mask, |l| product(l).wrapping_add(z[l]));
                } else {
                    let z = *w.get(k, c, mask)?;
                    w.set(d, mask, |l| (product(l) as u32).wrapping_add(z[l]));
                }
            }
            Op::Shift { f, ty, d, a, b } => {
                let n = *w.get(k, b, mask)?;
                // Shifts of the width or more leave nothing, or only the sign.
                if ty.bytes() == 8 {
                    let x = *w.get64(k, a, mask)?;
                    match (f, ty.signed()) {
                        (Shift::Left, _) => w.set64(d, mask, |l| x[l].checked_shl(n[l]).unwrap_or(0)),
                        (Shift::Right, true) => w.set64(d, mask, |l| (x[l] as i64 >> n[l].min(63)) as u64),
                        (Shift::Right, false) => w.set64(d, mask, |l| x[l].checked_shr(n[l]).unwrap_or(0)),
                    }
                } else {
                    let x = *w.get(k, a, mask)?;
                    let keep = if ty.bytes() == 2 { 0xffff } else { u32::MAX };
                    match (f, ty.signed()) {
                        (Shift::Left, _) => w.set(d, mask, |l| x[l].checked_shl(n[l]).unwrap_or(0) & keep),
                        (Shift::Right, true) => w.set(d, mask, |l| (extend(ty, x[l] as u64) as i64 >> n[l].min(63)) as u32 & keep),
                        (Shift::Right, false) => w.set(d, mask, |l| (x[l] & keep).checked_shr(n[l]).unwrap_or(0)),
                    }
                }
            }
            Op::Funnel { left, wrap, d, a, b, c } => {
                let (x, y, z) = (*w.get(k, a, mask)?, *w.get(k, b, mask)?, *w.get(k, c, mask)?);
                w.set(d, mask, |l| {
                    let n = if wrap { z[l] & 31 } else { z[l].min(32) };
                    let both = (y[l] as u64) << 32 | x[l] as u64;
                    if left { ((both << n) >> 32) as u32 } else { (both >> n) as u32 }
                });
            }
            Op::Lop3 { d, a, b, c, table } => {
                let (x, y, z) = (*w.get(k, a, mask)?, *w.get(k, b, mask)?, *w.get(k, c, mask)?);
                w.set(d, mask, |l| {
                    let mut out = 0;
                    for i in 0..8u8 {
                        if table >> i & 1 != 0 {
                            let pick = |v: u32, on: bool| if on { v } else { !v };
                            out |= pick(x[l], i & 4 != 0) & pick(y[l], i & 2 != 0) & pick(z[l], i & 1 != 0);
                        }
                    }
                    out
                });
            }
            Op::Permute { f, d, a, b, c } => {
                let (x, y, z) = (*w.get(k, a, mask)?, *w.get(k, b, mask)?, *w.get(k, c, mask)?);
                w.set(d, mask, |l| lanes::permute(f, x[l], y[l], z[l]));
            }
            Op::Extract { ty, d, a, b, c } => {
                let (y, z) = (*w.get(k, b, mask)?, *w.get(k, c, mask)?);
                if ty.bytes() == 8 {
                    let x = *w.get64(k, a, mask)?;
                    w.set64(d, mask, |l| lanes::extract(ty, x[l], y[l], z[l]));
                } else {
                    let x = *w.get(k, a, mask)?;
                    w.set(d, mask, |l| lanes::extract(ty, x[l] as u64, y[l], z[l]) as u32);
                }
            }
            Op::Insert { wide, d, a, b, from, len } => {
                let (p, n) = (*w.get(k, from, mask)?, *w.get(k, len, mask)?);
                if wide {
                    let (x, y) = (*w.get64(k, a, mask)?, *w.get64(k, b, mask)?);
                    w.set64(d, mask, |l| lanes::insert(64, x[l], y[l], p[l], n[l]));
                } else {
                    let (x, y) = (*w.get(k, a, mask)?, *w.get(k, b, mask)?);
                    w.set(d, mask, |l| lanes::insert(32, x[l] as u64, y[l] as u64, p[l], n[l]) as u32);
                }
            }
            Op::PredNot { d, a } => {
                let p = w.get_pred(k, a, mask)?;
                w.set_pred(d, mask, !p);
            }
            Op::PredLogic { f, d, a, b } => {
                let (x, y) = (w.get_pred(k, a, mask)?, w.get_pred(k, b, mask)?);
                w.set_pred(d, mask, logic(f, x, y));
            }
            Op::Float1 { f, ty: Type::F64, d, a, .. } => {
                let x = *w.get64(k, a, mask)?;
                w.set64(d, mask, |l| lanes::float1_wide(f, x[l]));
            }
            Op::Float1 { f, ty, m, d, a } => {
                let x = *w.get(k, a, mask)?;
                let of = format(ty);
                w.set(d, mask, |l| halves(ty, [x[l], 0, 0], |[a, ..]| lanes::float1(of, f, m, a)));
            }
            Op::Float2 { f, ty: Type::F64, d, a, b, .. } => {
                let (x, y) = (*w.get64(k, a, mask)?, *w.get64(k, b, mask)?);
                w.set64(d, mask, |l| lanes::float2_wide(f, x[l], y[l]));
            }
            Op::Float2 { f, ty, m, d, a, b } => {
                let (x, y) = (*w.get(k, a, mask)?, *w.get(k, b, mask)?);
                let plain = ty == Type::F32 && m == Mods::default();
                let x32 = |l: usize| (f32::from_bits(x[l]), f32::from_bits(y[l]));
                match f {
                    Float2::Add if plain => w.set(d, mask, |l| float::canonical(x32(l).0 + x32(l).1)),
                    Float2::Sub if plain => w.set(d, mask, |l| float::canonical(x32(l).0 - x32(l).1)),
                    Float2::Mul if plain => w.set(d, mask, |l| float::canonical(x32(l).0 * x32(l).1)),
                    _ => {
                        let of = format(ty);
                        w.set(d, mask, |l| halves(ty, [x[l], y[l], 0], |[a, b, _]| lanes::float2(of, f, m, a, b)));
                    }
                }
            }
            Op::Fma { ty: Type::F64, d, a, b, c, .. } => {
                let (x, y, z) = (*w.get64(k, a, mask)?, *w.get64(k, b, mask)?, *w.get64(k, c, mask)?);
                w.set64(d, mask, |l| lanes::fma_wide(x[l], y[l], z[l]));
            }
            Op::Fma { ty, m, d, a, b, c } => {
                let (x, y, z) = (*w.get(k, a, mask)?, *w.get(k, b, mask)?, *w.get(k, c, mask)?);
                if ty == Type::F32 && m == Mods::default() {
                    w.set(d, mask, |l| float::fma_f32(x[l], y[l], z[l]));
                } else {
                    let of = format(ty);
                    w.set(d, mask, |l| halves(ty, [x[l], y[l], z[l]], |[a, b, c]| lanes::fma(of, m, a, b, c)));
                }
            }
            Op::Extremum { max, m, d, a, b, c } => {
                let (x, y, z) = (*w.get(k, a, mask)?, *w.get(k, b, mask)?, *w.get(k, c, mask)?);
                let f = if max { Float2::Max } else { Float2::Min };
                let two = |a, b| lanes::float2(float::F32, f, m, a, b);
                w.set(d, mask, |l| two(two(x[l], y[l]), z[l]));
            }
            Op::Pair { f, m, d, a, b, c } => {
                let (x, y) = (*w.get64(k, a, mask)?, *w.get64(k, b, mask)?);
                let z = if f.is_none() { *w.get64(k, c, mask)? } else { [0; 32] };
                let half = |a, b, c| f.map_or_else(|| lanes::fma(float::F32, m, a, b, c), |f| lanes::float2(float::F32, f, m, a, b));
                w.set64(d, mask, |l| u64::from(half(x[l] as u32, y[l] as u32, z[l] as u32)) | u64::from(half((x[l] >> 32) as u32, (y[l] >> 32) as u32, (z[l] >> 32) as u32)) << 32);
            }
            Op::Mixed { f, from, m, d, a, b, c } => {
                let (x, z) = (*w.get(k, a, mask)?, *w.get(k, c, mask)?);
                let y = if f.is_none() { *w.get(k, b, mask)? } else { [0; 32] };
                // Every narrow number is an f32.
                let of = format(from);
                let wide = |x: u32| float::F32.narrow(of.widen(x & 0xffff), Round::Nearest);
                w.set(d, mask, |l| f.map_or_else(|| lanes::fma(float::F32, m, wide(x[l]), wide(y[l]), z[l]), |f| lanes::float2(float::F32, f, m, wide(x[l]), z[l])));
            }
            Op::Compare { f, ty, ftz, d, d2, a, b, with } => {
                let holds = self.compare(w, f, ty, ftz, a, b, mask)?;
                let (yes, no) = match with {
                    None => (holds, !holds),
                    Some((l, p, negated)) => {
                        let p = w.get_pred(k, p, mask)?;
                        let p = if negated { !p } else { p };
                        (logic(l, holds, p), logic(l, !holds, p))
                    }
                };
                w.set_pred(d, mask, yes);
                w.set_pred(d2, mask, no);
            }
            Op::Set { f, ty, ftz, float, d, a, b } => {
                let holds = self.compare(w, f, ty, ftz, a, b, mask)?;
                let yes = if float { 1f32.to_bits() } else { u32::MAX };
                w.set(d, mask, |l| if holds >> l & 1 != 0 { yes } else { 0 });
            }
            Op::Select { wide, d, a, b, p, negated } => {
                let p = w.get_pred(k, p, mask)?;
                let p = if negated { !p } else { p };
                // Only what is chosen must have a value.
                if wide {
                    let (x, y) = (w.q[a as usize], w.q[b as usize]);
                    let defined = (w.defined64[a as usize] & p) | (w.defined64[b as usize] & !p);
                    w.set64(d, mask, |l| if p >> l & 1 != 0 { x[l] } else { y[l] });
                    w.taint64(d, mask, defined);
                } else {
                    self.settled(w, a)?;
                    self.settled(w, b)?;
                    let (x, y) = (w.r[a as usize], w.r[b as usize]);
                    let defined = (w.defined32[a as usize] & p) | (w.defined32[b as usize] & !p);
                    w.set(d, mask, |l| if p >> l & 1 != 0 { x[l] } else { y[l] });
                    w.taint(d, mask, defined);
                }
            }
            Op::SelectSign { wide, float, d, a, b, c } => {
                let z = *w.get(k, c, mask)?;
                let first = |l: usize| if float { f32::from_bits(z[l]) >= 0.0 } else { z[l] as i32 >= 0 };
                if wide {
                    let (x, y) = (*w.get64(k, a, mask)?, *w.get64(k, b, mask)?);
                    w.set64(d, mask, |l| if first(l) { x[l] } else { y[l] });
                } else {
                    let (x, y) = (*w.get(k, a, mask)?, *w.get(k, b, mask)?);
                    w.set(d, mask, |l| if first(l) { x[l] } else { y[l] });
                }
            }
            Op::Convert { f, d, a, b } => {
                if f.to == Type::Bf16x2 && f.round == Round::Nearest && !f.relu && !f.sat && !f.finite {
                    let (Place::Narrow(d), Place::Narrow(a)) = (d, a) else { return Ok(()) };
                    let (x, y) = (*w.get(k, a, mask)?, *w.get(k, b, mask)?);
                    w.set(d, mask, |l| float::bf16_nearest(x[l]) << 16 | float::bf16_nearest(y[l]));
                    return Ok(());
                }
                let x = w.get_place(k, a, mask)?;
                let y = if b == NONE { [0; 32] } else { *w.get(k, b, mask)? };
                w.set_place(d, mask, |l| lanes::convert(f, x[l], y[l]));
            }
            Op::Window { memory, to, d, a } => {
                let x = w.get_place(k, a, mask)?;
                let base = match memory {
                    Memory::Shared => SHARED_WINDOW,
                    Memory::Local => LOCAL_WINDOW,
                    Memory::Param => PARAM_WINDOW,
                    _ => 0,
                };
                w.set_place(d, mask, |l| if to { x[l].wrapping_sub(base) } else { x[l].wrapping_add(base) });
            }
            Op::IsSpace { memory, d, a } => {
                let x = w.get_place(k, a, mask)?;
                let within = |x: u64, base: u64| x >= base && x < base + WINDOW;
                let p = lanes_where(|l| match memory {
                    Memory::Shared => within(x[l], SHARED_WINDOW),
                    Memory::Local => within(x[l], LOCAL_WINDOW),
                    Memory::Param => within(x[l], PARAM_WINDOW),
                    _ => x[l] < PARAM_WINDOW,
                });
                w.set_pred(d, mask, p);
            }
            _ => return problem(FaultKind::Undefined, "an instruction of another class"),
        }
        Ok(())
    }

    /// A register that a product has yet to write must not even be moved.
    fn settled(&self, w: &Warp, s: Slot) -> Result<(), Problem> {
        if !w.in_flight.is_empty() && w.in_flight.contains(&s) {
            return problem(FaultKind::InFlight, format!("`{}` is the accumulator of a product that no wait has completed", self.launch.kernel.names32[s as usize]));
        }
        Ok(())
    }

    /// 16-bit integers.
    #[allow(clippy::too_many_arguments)]
    fn short(&self, w: &mut Warp, f: Int2, ty: Type, d: Slot, a: Slot, b: Slot, mask: u32) -> Result<(), Problem> {
        let k = self.launch.kernel;
        let (x, y) = (*w.get(k, a, mask)?, *w.get(k, b, mask)?);
        let value = |v: u32| extend(ty, v as u64) as i64;
        if matches!(f, Int2::Div | Int2::Rem)
            && let Some(l) = (0..32).find(|l| mask >> l & 1 != 0 && value(y[*l]) == 0)
        {
            return divided_by_zero(l as u32);
        }
        w.set(d, mask, |l| {
            let (p, q) = (value(x[l]), value(y[l]));
            let v = match f {
                Int2::Add => p + q,
                Int2::Sub => p - q,
                Int2::MulLo => p * q,
                Int2::MulHi => (p * q) >> 16,
                Int2::Div => p / q,
                Int2::Rem => p % q,
                Int2::Min => p.min(q),
                Int2::Max => p.max(q),
                Int2::And => p & q,
                Int2::Or => p | q,
                Int2::Xor => p ^ q,
                Int2::AddSat => (p + q).clamp(-32768, 32767),
                Int2::SubSat => (p - q).clamp(-32768, 32767),
            };
            v as u32 & 0xffff
        });
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn compare(&self, w: &Warp, f: Compare, ty: Type, ftz: bool, a: Slot, b: Slot, mask: u32) -> Result<u32, Problem> {
        let k = self.launch.kernel;
        Ok(if ty.bytes() == 8 {
            let (x, y) = (*w.get64(k, a, mask)?, *w.get64(k, b, mask)?);
            lanes_where(|l| lanes::compare(f, lanes::order(ty, ftz, x[l], y[l])))
        } else if ty == Type::Pred {
            return problem(FaultKind::Undefined, "a comparison of predicates");
        } else {
            let (x, y) = (*w.get(k, a, mask)?, *w.get(k, b, mask)?);
            match ty {
                Type::F32 if !ftz => lanes_where(|l| lanes::compare(f, f32::from_bits(x[l]).partial_cmp(&f32::from_bits(y[l])))),
                Type::S32 => lanes_where(|l| lanes::compare(f, Some((x[l] as i32).cmp(&(y[l] as i32))))),
                Type::U32 | Type::B32 => lanes_where(|l| lanes::compare(f, Some(x[l].cmp(&y[l])))),
                _ => lanes_where(|l| lanes::compare(f, lanes::order(ty, ftz, x[l] as u64, y[l] as u64))),
            }
        })
    }
}

fn distance(ty: Type, a: u64, b: u64) -> u64 {
    let (a, b) = (extend(ty, a), extend(ty, b));
    if ty.signed() { (a as i64).wrapping_sub(b as i64).unsigned_abs() } else { a.abs_diff(b) }
}

fn logic(f: Logic, a: u32, b: u32) -> u32 {
    match f {
        Logic::And => a & b,
        Logic::Or => a | b,
        Logic::Xor => a ^ b,
    }
}
