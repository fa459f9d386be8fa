//! Floating-point numbers as PTX computes with them: one rounding from an exact result, canonical NaNs, subnormals flushed where `.ftz` says so.
//!
//! Everything narrower than f64 goes through f64: a sum or a fused multiply-add of numbers with at most 24 significant bits is formed in f64, *rounded to odd*
//! (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008), so that the second rounding, to any narrower format in any direction, is right.

/// Directions of rounding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Round {
    /// To nearest, ties to even (`.rn`).
    #[default]
    Nearest,
    /// To nearest, ties away from zero (`.rna`).
    Away,
    /// Towards zero (`.rz`).
    Zero,
    /// Towards minus infinity (`.rm`).
    Down,
    /// Towards plus infinity (`.rp`).
    Up,
}

/// A binary format of at most 32 bits: the top bit is the sign.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Format {
    /// Bits of the exponent.
    pub exponent: u32,
    /// Bits of the fraction.
    pub fraction: u32,
}

pub(super) const F32: Format = Format { exponent: 8, fraction: 23 };
pub(super) const F16: Format = Format { exponent: 5, fraction: 10 };
pub(super) const BF16: Format = Format { exponent: 8, fraction: 7 };
/// Eight exponent and ten fraction bits; in a register the low 13 bits of an f32 are not part of it.
pub(super) const TF32: Format = Format { exponent: 8, fraction: 10 };

impl Format {
    fn infinity(self) -> u32 {
        ((1 << self.exponent) - 1) << self.fraction
    }
    fn sign(self) -> u32 {
        1 << (self.exponent + self.fraction)
    }
    /// The NaN that an instruction gives: all bits but the sign.
    pub(super) fn nan(self) -> u32 {
        self.sign() - 1
    }
    /// The largest finite number.
    fn largest(self) -> u32 {
        self.infinity() - 1
    }
    /// The number as f64; exact.
    #[inline]
    pub(super) fn widen(self, bits: u32) -> f64 {
        let negative = bits & self.sign() != 0;
        let e = (bits >> self.fraction) & ((1 << self.exponent) - 1);
        let f = bits & ((1 << self.fraction) - 1);
        let bias = (1i32 << (self.exponent - 1)) - 1;
        let magnitude = if e == (1 << self.exponent) - 1 {
            if f == 0 { f64::INFINITY } else { f64::NAN }
        } else if e == 0 {
            f as f64 * power(1 - bias - self.fraction as i32)
        } else {
            (f | 1 << self.fraction) as f64 * power(e as i32 - bias - self.fraction as i32)
        };
        if negative { -magnitude } else { magnitude }
    }
    /// The number in this format, rounded once. NaN becomes the canonical one, what is too large becomes infinity or, if the direction is inward, the largest.
    #[inline]
    pub(super) fn narrow(self, x: f64, round: Round) -> u32 {
        if x.is_nan() {
            return self.nan();
        }
        let bits = x.to_bits();
        let sign = if bits >> 63 != 0 { self.sign() } else { 0 };
        let magnitude = bits & !(1 << 63);
        if magnitude == 0 {
            return sign;
        }
        if magnitude == f64::INFINITY.to_bits() {
            return sign | self.infinity();
        }
        let bias = (1i64 << (self.exponent - 1)) - 1;
        let (e, significand) = match magnitude >> 52 {
            0 => (-1022, magnitude),
            e => (e as i64 - 1023, (magnitude & ((1 << 52) - 1)) | 1 << 52),
        };
        // The unit in the last place is 2^(e - fraction), but not below that of the subnormals.
        let unit = (e.max(1 - bias)) - self.fraction as i64;
        let drop = (unit - (e - 52)).min(63) as u32;
        let (kept, rest, half) = (significand >> drop, significand & ((1u64 << drop) - 1), 1u64 << drop >> 1);
        let up = match round {
            Round::Nearest => rest > half || (rest == half && half != 0 && kept & 1 == 1),
            Round::Away => rest >= half && half != 0,
            Round::Zero => false,
            Round::Down => rest != 0 && sign != 0,
            Round::Up => rest != 0 && sign == 0,
        };
        let kept = kept + up as u64;
        // Adding the significand with its leading one carries into the exponent by itself.
        let exponent = (unit + self.fraction as i64 + bias - 1) as u64;
        let packed = (exponent << self.fraction) + kept;
        if packed >= self.infinity() as u64 {
            let inward = matches!((round, sign != 0), (Round::Zero, _) | (Round::Down, false) | (Round::Up, true));
            return sign | if inward { self.largest() } else { self.infinity() };
        }
        sign | packed as u32
    }
    /// Subnormals as zeros of their sign.
    #[inline]
    pub(super) fn flush(self, bits: u32) -> u32 {
        if bits & self.infinity() == 0 { bits & self.sign() } else { bits }
    }
    /// What `.satfinite` makes of an infinity or of something too large: the largest finite number; NaN stays.
    pub(super) fn finite(self, bits: u32) -> u32 {
        if bits & self.nan() == self.infinity() { (bits & self.sign()) | self.largest() } else { bits }
    }
    pub(super) fn is_nan(self, bits: u32) -> bool {
        bits & self.nan() > self.infinity()
    }
}

/// 2^e for exponents of normal f64.
#[inline]
fn power(e: i32) -> f64 {
    f64::from_bits(((e + 1023) as u64) << 52)
}

/// `s` moved to the neighbour with an odd last bit if it is not exact; `err` is what was lost.
#[inline]
fn odd(s: f64, err: f64) -> f64 {
    if err != 0.0 && s.to_bits() & 1 == 0 && s.is_finite() {
        // Away from zero if the lost part has the sum's sign, else towards it.
        let bits = s.to_bits();
        f64::from_bits(if (err > 0.0) == (s > 0.0) { bits + 1 } else { bits - 1 })
    } else {
        s
    }
}

/// `a + b`, rounded to odd (Knuth's two-sum gives the error).
#[inline]
pub(super) fn add_odd(a: f64, b: f64) -> f64 {
    let s = a + b;
    let t = s - a;
    odd(s, (a - (s - t)) + (b - t))
}

/// `a / b`, rounded to odd.
pub(super) fn div_odd(a: f64, b: f64) -> f64 {
    let q = a / b;
    if !q.is_finite() || q == 0.0 {
        return q;
    }
    let r = (-q).mul_add(b, a);
    odd(q, if (b > 0.0) == (r > 0.0) { r.abs() } else { -r.abs() })
}

/// `√a`, rounded to odd.
pub(super) fn sqrt_odd(a: f64) -> f64 {
    let q = a.sqrt();
    if !q.is_finite() || q == 0.0 {
        return q;
    }
    odd(q, (-q).mul_add(q, a))
}

/// The sign of a sum that is exactly zero: minus only if both are, or when rounding down.
#[inline]
fn signed_zero(s: f64, a: f64, b: f64, round: Round) -> f64 {
    if s != 0.0 {
        return s;
    }
    match (a.is_sign_negative(), b.is_sign_negative()) {
        (true, true) => -0.0,
        (false, false) => 0.0,
        _ if round == Round::Down => -0.0,
        _ => 0.0,
    }
}

/// A sum in `format`, rounded once.
#[inline]
pub(super) fn add(format: Format, a: f64, b: f64, round: Round) -> u32 {
    format.narrow(signed_zero(add_odd(a, b), a, b, round), round)
}

/// A fused multiply-add in `format`, rounded once.
#[inline]
pub(super) fn fma(format: Format, a: f64, b: f64, c: f64, round: Round) -> u32 {
    let p = a * b;
    format.narrow(signed_zero(add_odd(p, c), p, c, round), round)
}

/// An f32 with a NaN made canonical.
#[inline]
pub(super) fn canonical(x: f32) -> u32 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits() }
}

/// A fused multiply-add in f32 to nearest: the common case, without branches on the format.
#[inline]
pub(super) fn fma_f32(a: u32, b: u32, c: u32) -> u32 {
    let p = f32::from_bits(a) as f64 * f32::from_bits(b) as f64;
    let c = f32::from_bits(c) as f64;
    // Conversion from f64 rounds to nearest even, and zeros have the sign that the f64 sum gave them.
    canonical(add_odd(p, c) as f32)
}

/// An f32 as bf16, to nearest even.
#[inline]
pub(super) fn bf16_nearest(bits: u32) -> u32 {
    if f32::from_bits(bits).is_nan() {
        return 0x7fff;
    }
    (bits + 0x7fff + ((bits >> 16) & 1)) >> 16
}

/// Rounds to an integer, as a number.
pub(super) fn to_integer(x: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => x.round_ties_even(),
        Round::Away => x.round(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

/// An integer as f64, rounded to odd, so that a second rounding is right.
pub(super) fn integer_odd(negative: bool, magnitude: u64) -> f64 {
    // Of more than 53 bits the low eleven can be lost; one sticky bit for them stays below the last bit of any format of 24 bits.
    let x = match magnitude {
        m if m < 1 << 53 => m as f64,
        m => f64::from_bits(((m & !0x7ff) as f64).to_bits() | (m & 0x7ff != 0) as u64),
    };
    if negative { -x } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_and_bf16_survives_a_round_trip() {
        for bits in 0..=0xffffu32 {
            for f in [F16, BF16] {
                let back = f.narrow(f.widen(bits), Round::Nearest);
                if f.is_nan(bits) { assert_eq!(back, f.nan()) } else { assert_eq!(back, bits) }
            }
        }
    }

    #[test]
    fn narrowing_to_f32_agrees_with_the_machine() {
        let mut s = 1u64;
        for _ in 0..200_000 {
            s = s.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let x = f64::from_bits(s);
            assert_eq!(F32.narrow(x, Round::Nearest), canonical(x as f32), "{x:e}");
            let y = f64::from_bits((s >> 12) | (0x360 + (s & 0x7f)) << 52);
            assert_eq!(F32.narrow(y, Round::Nearest), canonical(y as f32), "{y:e}");
        }
    }

    #[test]
    fn fused_multiply_add_is_rounded_once() {
        let mut s = 7u64;
        let mut next = || {
            s = s.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (s >> 32) as u32
        };
        for i in 0..200_000 {
            let (a, b, mut c) = (next(), next(), next());
            if i % 2 == 0 {
                // A sum near the product: cancellation and ties.
                c = (f32::from_bits(a) * f32::from_bits(b)).to_bits() ^ 0x8000_0000 ^ (c & 3);
            }
            let want = f32::from_bits(a).mul_add(f32::from_bits(b), f32::from_bits(c));
            assert_eq!(fma_f32(a, b, c), canonical(want), "{a:x} {b:x} {c:x}");
            let wide = |x| F32.widen(x);
            assert_eq!(fma(F32, wide(a), wide(b), wide(c), Round::Nearest), canonical(want), "{a:x} {b:x} {c:x}");
        }
    }

    #[test]
    fn directed_roundings_bracket_the_value() {
        for x in [1.0 + 2f64.powi(-30), -1.0 - 2f64.powi(-30), 2f64.powi(-150), -3e38 * 2.0, 1e-45, 65519.999] {
            for f in [F16, BF16, F32] {
                let (down, up, zero) = (f.widen(f.narrow(x, Round::Down)), f.widen(f.narrow(x, Round::Up)), f.widen(f.narrow(x, Round::Zero)));
                assert!(down <= x && x <= up, "{x} {down} {up}");
                assert_eq!(zero, if x > 0.0 { down } else { up });
            }
        }
    }

    #[test]
    fn integers_are_rounded_once() {
        for m in [0x8000_0080_0000_0001u64, 0x8000_0080_0000_0000, 0x8000_0180_0000_0000, u64::MAX, 1 << 63, 16777217, 16777219, 3, 0, 0x0100_0001_0000_0001] {
            assert_eq!(F32.narrow(integer_odd(false, m), Round::Nearest), (m as f32).to_bits(), "{m:x}");
            assert_eq!(F32.narrow(integer_odd(true, m), Round::Nearest) & 0x7fff_ffff, (m as f32).to_bits(), "{m:x}");
        }
    }
}
