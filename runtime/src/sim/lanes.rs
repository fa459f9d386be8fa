//! Arithmetic of single lanes: what an operation makes of its operands' bits.

use super::float::{self, BF16, F16, F32, Format, Round, TF32};
use super::op::{Compare, Convert, Float1, Float2, Int1, Mods, Permute};
use super::syntax::Type;

/// The value of `bits` as an integer of `ty`, extended to 64 bits.
#[inline]
pub(super) fn extend(ty: Type, bits: u64) -> u64 {
    match (ty.bytes(), ty.signed()) {
        (1, true) => bits as i8 as i64 as u64,
        (1, false) => bits as u8 as u64,
        (2, true) => bits as i16 as i64 as u64,
        (2, false) => bits as u16 as u64,
        (4, true) => bits as i32 as i64 as u64,
        (4, false) => bits as u32 as u64,
        _ => bits,
    }
}

/// The format of a narrow floating-point type.
pub(super) fn format(ty: Type) -> Format {
    match ty {
        Type::F16 | Type::F16x2 => F16,
        Type::Bf16 | Type::Bf16x2 => BF16,
        Type::Tf32 => TF32,
        _ => F32,
    }
}

/// Packed types: two halves of a register.
pub(super) fn packed(ty: Type) -> bool {
    matches!(ty, Type::F16x2 | Type::Bf16x2)
}

/// `f` on both halves, or on the low one.
#[inline]
pub(super) fn halves(ty: Type, bits: [u32; 3], f: impl Fn([u32; 3]) -> u32) -> u32 {
    match ty {
        Type::F16 | Type::Bf16 => f(bits.map(|b| b & 0xffff)),
        Type::F16x2 | Type::Bf16x2 => f(bits.map(|b| b & 0xffff)) | f(bits.map(|b| b >> 16)) << 16,
        _ => f(bits),
    }
}

pub(super) fn int1(f: Int1, ty: Type, a: u64) -> u64 {
    let width = ty.bytes() * 8;
    let mask = if width == 64 { u64::MAX } else { (1 << width) - 1 };
    let a = a & mask;
    let x = match f {
        Int1::Neg => a.wrapping_neg(),
        Int1::Abs => (extend(ty, a) as i64).unsigned_abs(),
        Int1::Not => !a,
        Int1::Cnot => (a == 0) as u64,
        Int1::Popc => return a.count_ones() as u64,
        Int1::Clz => return (a.leading_zeros() - (64 - width)) as u64,
        Int1::Brev => a.reverse_bits() >> (64 - width),
        Int1::Bfind(shift) => {
            let x = if ty.signed() && (extend(ty, a) as i64) < 0 { !a & mask } else { a };
            if x == 0 {
                return u32::MAX as u64;
            }
            let at = 63 - x.leading_zeros();
            return if shift { width - 1 - at } else { at } as u64;
        }
    };
    x & mask
}

pub(super) fn permute(f: Permute, a: u32, b: u32, c: u32) -> u32 {
    let bytes = (a as u64 | (b as u64) << 32).to_le_bytes();
    let s = (c & 3) as usize;
    let pick = |i: [usize; 4]| u32::from_le_bytes(i.map(|i| bytes[i]));
    match f {
        Permute::Index => u32::from_le_bytes(std::array::from_fn(|i| {
            let sel = (c >> (4 * i)) & 0xf;
            let byte = bytes[(sel & 7) as usize];
            // The selector's top bit asks for the sign, eight times.
            if sel & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte }
        })),
        Permute::F4e => pick([s, s + 1, s + 2, s + 3]),
        Permute::B4e => pick([s, (s + 7) % 8, (s + 6) % 8, (s + 5) % 8]),
        Permute::Rc8 => pick([s; 4]),
        Permute::Ecl => pick([s.max(0), s.max(1), s.max(2), s.max(3)]),
        Permute::Ecr => pick([s.min(0), s.min(1), s.min(2), s.min(3)]),
        Permute::Rc16 => {
            let h = 2 * (s & 1);
            pick([h, h + 1, h, h + 1])
        }
    }
}

/// `bfe`
pub(super) fn extract(ty: Type, a: u64, from: u32, len: u32) -> u64 {
    let width = ty.bytes() * 8;
    let (from, len) = (from & 0xff, len & 0xff);
    let a = a & if width == 64 { u64::MAX } else { (1 << width) - 1 };
    let sign = if !ty.signed() || len == 0 { 0 } else { (a >> (from + len - 1).min(width - 1)) & 1 };
    let mut d = 0u64;
    for i in 0..width {
        let bit = if i < len && from + i < width { (a >> (from + i)) & 1 } else { sign };
        d |= bit << i;
    }
    d
}

/// `bfi`
pub(super) fn insert(width: u32, a: u64, b: u64, from: u32, len: u32) -> u64 {
    let (from, len) = (from & 0xff, len & 0xff);
    let mut d = b;
    for i in 0..len {
        if from + i < width {
            d = (d & !(1 << (from + i))) | ((a >> i) & 1) << (from + i);
        }
    }
    d
}

/// Flushing, saturation and clamping of a result.
#[inline]
fn finish(format: Format, m: Mods, r: u32) -> u32 {
    let r = if m.ftz { format.flush(r) } else { r };
    if m.sat {
        // NaN becomes +0.
        let x = format.widen(r);
        return if x.is_nan() || x <= 0.0 { 0 } else if x >= 1.0 { format.narrow(1.0, Round::Nearest) } else { r };
    }
    if m.relu && !format.is_nan(r) && r >> (format.exponent + format.fraction) & 1 == 1 {
        return 0;
    }
    r
}

pub(super) fn float1(format: Format, f: Float1, m: Mods, a: u32) -> u32 {
    let sign = 1 << (format.exponent + format.fraction);
    let a = if m.ftz { format.flush(a) } else { a };
    let x = format.widen(a);
    let near = |x: f64| format.narrow(x, Round::Nearest);
    let r = match f {
        Float1::Neg => return a ^ sign,
        Float1::Abs => return a & !sign,
        Float1::Rcp => format.narrow(float::div_odd(1.0, x), m.round),
        Float1::Sqrt => format.narrow(float::sqrt_odd(x), m.round),
        Float1::Rsqrt => near(if x == 0.0 { f64::INFINITY.copysign(x) } else { 1.0 / x.sqrt() }),
        Float1::Ex2 => near(x.exp2()),
        Float1::Lg2 => near(if x == 0.0 { f64::NEG_INFINITY } else { x.log2() }),
        Float1::Sin => near(x.sin()),
        Float1::Cos => near(x.cos()),
        Float1::Tanh => near(x.tanh()),
    };
    finish(format, m, r)
}

/// The smaller or larger; −0 is below +0; a NaN gives way to a number unless `.NaN` is asked for.
fn extremum(format: Format, max: bool, m: Mods, a: u32, b: u32) -> u32 {
    match (format.is_nan(a), format.is_nan(b)) {
        (true, true) => return format.nan(),
        (true, false) | (false, true) if m.nan => return format.nan(),
        (true, false) => return b,
        (false, true) => return a,
        _ => {}
    }
    let sign = 1u32 << (format.exponent + format.fraction);
    let key = |x: u32| if x & sign != 0 { -((x & !sign) as i64) - 1 } else { x as i64 };
    if (key(a) > key(b)) == max { a } else { b }
}

pub(super) fn float2(format: Format, f: Float2, m: Mods, a: u32, b: u32) -> u32 {
    let (a, b) = if m.ftz { (format.flush(a), format.flush(b)) } else { (a, b) };
    let sign = 1 << (format.exponent + format.fraction);
    let (x, y) = (format.widen(a), format.widen(b));
    let r = match f {
        Float2::Add => float::add(format, x, y, m.round),
        Float2::Sub => float::add(format, x, -y, m.round),
        Float2::Mul => format.narrow(x * y, m.round),
        Float2::Div => format.narrow(float::div_odd(x, y), m.round),
        Float2::DivApprox => {
            if y.is_finite() && y.abs() > 2f64.powi(126) {
                if x.is_infinite() || x.is_nan() { format.nan() } else { (a ^ b) & sign }
            } else {
                format.narrow(float::div_odd(x, y), Round::Nearest)
            }
        }
        Float2::Min => extremum(format, false, m, a, b),
        Float2::Max => extremum(format, true, m, a, b),
        // The first operand's sign on the second.
        Float2::CopySign => return (a & sign) | (b & !sign),
    };
    finish(format, m, r)
}

pub(super) fn fma(format: Format, m: Mods, a: u32, b: u32, c: u32) -> u32 {
    let [a, b, c] = if m.ftz { [a, b, c].map(|x| format.flush(x)) } else { [a, b, c] };
    let r = float::fma(format, format.widen(a), format.widen(b), format.widen(c), m.round);
    finish(format, m, r)
}

/// f64, to nearest.
fn nan64(x: f64) -> u64 {
    if x.is_nan() { 0x7fff_ffff_ffff_ffff } else { x.to_bits() }
}

pub(super) fn float1_wide(f: Float1, a: u64) -> u64 {
    let x = f64::from_bits(a);
    match f {
        Float1::Neg => a ^ 1 << 63,
        Float1::Abs => a & !(1 << 63),
        Float1::Rcp => nan64(1.0 / x),
        Float1::Sqrt => nan64(x.sqrt()),
        // Decoding refuses the rest in f64.
        _ => nan64(f64::NAN),
    }
}

pub(super) fn float2_wide(f: Float2, a: u64, b: u64) -> u64 {
    let (x, y) = (f64::from_bits(a), f64::from_bits(b));
    match f {
        Float2::Add => nan64(x + y),
        Float2::Sub => nan64(x - y),
        Float2::Mul => nan64(x * y),
        Float2::Div | Float2::DivApprox => nan64(x / y),
        Float2::Min | Float2::Max => match (x.is_nan(), y.is_nan()) {
            (true, true) => nan64(f64::NAN),
            (true, _) => b,
            (_, true) => a,
            _ => {
                let key = |x: u64| if x >> 63 != 0 { -((x & !(1 << 63)) as i128) - 1 } else { x as i128 };
                if (key(a) > key(b)) == (f == Float2::Max) { a } else { b }
            }
        },
        Float2::CopySign => (a & 1 << 63) | (b & !(1 << 63)),
    }
}

pub(super) fn fma_wide(a: u64, b: u64, c: u64) -> u64 {
    nan64(f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)))
}

/// An ordering, or none for NaN.
pub(super) fn compare(f: Compare, o: Option<std::cmp::Ordering>) -> bool {
    use Compare::*;
    match (f, o) {
        (Num, o) => o.is_some(),
        (Nan, o) => o.is_none(),
        (Equ | Neu | Ltu | Leu | Gtu | Geu, None) => true,
        (_, None) => false,
        (Eq | Equ, Some(o)) => o.is_eq(),
        (Ne | Neu, Some(o)) => o.is_ne(),
        (Lt | Ltu, Some(o)) => o.is_lt(),
        (Le | Leu, Some(o)) => o.is_le(),
        (Gt | Gtu, Some(o)) => o.is_gt(),
        (Ge | Geu, Some(o)) => o.is_ge(),
    }
}

/// How `a` and `b` of `ty` stand to each other.
pub(super) fn order(ty: Type, ftz: bool, a: u64, b: u64) -> Option<std::cmp::Ordering> {
    if ty == Type::F64 {
        return f64::from_bits(a).partial_cmp(&f64::from_bits(b));
    }
    if ty.float() {
        let f = format(ty);
        let bits = |x: u64| {
            let x = if f.fraction < 23 { x as u32 & 0xffff } else { x as u32 };
            if ftz { f.flush(x) } else { x }
        };
        return f.widen(bits(a)).partial_cmp(&f.widen(bits(b)));
    }
    let (a, b) = (extend(ty, a), extend(ty, b));
    Some(if ty.signed() { (a as i64).cmp(&(b as i64)) } else { a.cmp(&b) })
}

/// The bounds of an integer type.
fn bounds(ty: Type) -> (i128, i128) {
    let width = ty.bytes() * 8;
    if ty.signed() { (-(1i128 << (width - 1)), (1i128 << (width - 1)) - 1) } else { (0, (1i128 << width) - 1) }
}

/// A floating-point number to `c.to`, which is one too.
fn to_float(c: Convert, x: f64) -> u64 {
    let x = if c.integral && !x.is_nan() { float::to_integer(x, c.round).copysign(x) } else { x };
    let x = if c.sat { if x.is_nan() || x <= 0.0 { 0.0 } else { x.min(1.0) } } else { x };
    let x = if c.relu && x <= 0.0 { 0.0 } else { x };
    if c.to == Type::F64 {
        return nan64(x);
    }
    let f = format(c.to);
    let r = f.narrow(x, if c.integral { Round::Nearest } else { c.round });
    let r = if c.finite { f.finite(r) } else { r };
    match c.to {
        Type::Tf32 if x.is_nan() => 0x7fff_ffff,
        Type::Tf32 => (r << 13) as u64,
        Type::F32 if c.ftz => F32.flush(r) as u64,
        _ => r as u64,
    }
}

/// Converts `bits`; `low` is the second operand of the packed forms.
pub(super) fn convert(c: Convert, bits: u64, low: u32) -> u64 {
    let number = |bits: u64| match c.from {
        Type::F64 => f64::from_bits(bits),
        t => {
            let f = format(t);
            let b = if f.fraction < 23 { bits as u32 & 0xffff } else { bits as u32 };
            f.widen(if c.ftz && t == Type::F32 { f.flush(b) } else { b })
        }
    };
    if packed(c.to) {
        return to_float(c, number(bits)) << 16 | to_float(c, number(low as u64));
    }
    match (c.from.float(), c.to.float()) {
        (true, true) => to_float(c, number(bits)),
        (true, false) => {
            let x = number(bits);
            let width = c.to.bytes() * 8;
            if x.is_nan() {
                return if c.from == Type::F64 || width == 64 { 1 << (width - 1) } else { 0 };
            }
            let (low, high) = bounds(c.to);
            // Conversion to i128 saturates.
            let n = (float::to_integer(x, c.round) as i128).clamp(low, high);
            n as u64
        }
        (false, to_float_) => {
            let n = extend(c.from, bits);
            let signed = c.from.signed();
            if to_float_ {
                let (negative, magnitude) = if signed { ((n as i64) < 0, (n as i64).unsigned_abs()) } else { (false, n) };
                if c.to == Type::F64 {
                    let x = magnitude as f64;
                    return (if negative { -x } else { x }).to_bits();
                }
                return to_float(c, float::integer_odd(negative, magnitude));
            }
            let value = if signed { n as i64 as i128 } else { n as i128 };
            let value = if c.sat {
                let (low, high) = bounds(c.to);
                value.clamp(low, high)
            } else {
                value
            };
            // What is narrower than its register is extended by its sign.
            extend(c.to, value as u64)
        }
    }
}

/// Where a shuffle reads, and whether that lane is in range.
pub(super) fn shuffle(f: super::op::Shuffle, lane: u32, b: u32, c: u32) -> (u32, bool) {
    use super::op::Shuffle::*;
    let (b, clamp, segment) = (b & 31, c & 31, (c >> 8) & 31);
    let (max, min) = ((lane & segment) | (clamp & !segment), lane & segment);
    let (j, ok) = match f {
        Up => (lane as i32 - b as i32, lane as i32 - b as i32 >= max as i32),
        Down => ((lane + b) as i32, lane + b <= max),
        Bfly => ((lane ^ b) as i32, lane ^ b <= max),
        Idx => ((min | (b & !segment)) as i32, min | (b & !segment) <= max),
    };
    if ok { (j as u32 & 31, true) } else { (lane, false) }
}
