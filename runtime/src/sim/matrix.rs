//! Products of matrices, as tensor cores compute them.
//!
//! The ISA leaves the order and the width of accumulation open. This machine follows what has been measured on chips (Fasi et al., "Numerical behavior of
//! NVIDIA tensor cores", 2021; Xie et al., "MMA-Sim", 2025): the exact products of a group and the accumulator are aligned to the largest exponent
//! among them, what lies below a fixed number of fraction bits is cut off, the sum is exact, and the result is rounded once, towards zero for f32 and to
//! nearest for f16. Group and bits depend on the generation ([`Model`]).

use super::float::{F16, F32, Format, Round, TF32};

/// How a generation of tensor cores accumulates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Model {
    /// Bits behind the binary point of the largest term.
    pub fraction: u32,
    /// Products of 16-bit elements that are summed at once; half as many of tf32.
    pub group: u32,
}

impl Model {
    /// Of an architecture: 24 bits and groups of 8 for sm_80 to sm_89, 25 bits and 16 from sm_90.
    pub fn of(sm: u32) -> Model {
        if sm >= 90 { Model { fraction: 25, group: 16 } } else { Model { fraction: 24, group: 8 } }
    }
}

/// A number as significand and exponent: `significand · 2^(exponent − fraction)`.
#[derive(Clone, Copy, Default)]
pub(super) struct Element {
    significand: i32,
    exponent: i32,
    special: bool,
}

impl Element {
    pub(super) fn new(format: Format, bits: u32) -> Element {
        let e = (bits >> format.fraction) & ((1 << format.exponent) - 1);
        let f = (bits & ((1 << format.fraction) - 1)) as i32;
        let negative = bits >> (format.exponent + format.fraction) & 1 == 1;
        let bias = (1 << (format.exponent - 1)) - 1;
        let (s, exponent) = match e {
            // Zero has the exponent of f32's smallest, whatever the format.
            0 if f == 0 => (0, -126),
            0 => (f, 1 - bias),
            e => (f | 1 << format.fraction, e as i32 - bias),
        };
        Element { significand: if negative { -s } else { s }, exponent, special: e == (1 << format.exponent) - 1 }
    }
}

/// Accumulators: f32, or f16.
fn result(half: bool, sum: i64, exponent: i32, fraction: u32) -> u32 {
    // The sum has less than 53 bits, and its exponent is far from f64's limits.
    let x = sum as f64 * 2f64.powi(exponent - fraction as i32);
    if half {
        F16.narrow(x, Round::Nearest)
    } else if x.abs() >= 2f64.powi(128) {
        if x > 0.0 { 0x7f80_0000 } else { 0xff80_0000 }
    } else {
        F32.narrow(x, Round::Zero)
    }
}

/// `c + Σ a·b` over one group.
#[inline]
fn fused(model: Model, format: Format, half: bool, a: &[Element], b: &[Element], c: u32) -> u32 {
    let of = if half { F16 } else { F32 };
    let ce = Element::new(of, c);
    let mut special = ce.special;
    let mut top = ce.exponent;
    for (x, y) in a.iter().zip(b) {
        special |= x.special | y.special;
        top = top.max(x.exponent + y.exponent);
    }
    if special {
        return u32::MAX;
    }
    let fraction = model.fraction as i32;
    let align = |s: i64, shift: i32| {
        if shift >= 0 {
            s << shift
        } else {
            let m = s.unsigned_abs() >> (-shift).min(63);
            if s < 0 { -(m as i64) } else { m as i64 }
        }
    };
    let mut sum = align(ce.significand as i64, fraction - of.fraction as i32 + ce.exponent - top);
    let base = fraction - 2 * format.fraction as i32 - top;
    for (x, y) in a.iter().zip(b) {
        sum += align((x.significand * y.significand) as i64, base + x.exponent + y.exponent);
    }
    result(half, sum, top, model.fraction)
}

/// `c + Σ a·b` where infinities or NaNs take part.
fn special(format: Format, half: bool, a: &[u32], b: &[u32], c: u32) -> u32 {
    let of = if half { F16 } else { F32 };
    let mut x = of.widen(c);
    for (a, b) in a.iter().zip(b) {
        x += format.widen(*a) * format.widen(*b);
    }
    if x.is_nan() { of.nan() } else { of.narrow(x, Round::Nearest) }
}

/// One element of a product: a row of the left operand, a column of the right one, both with `raw` bits at hand for infinities.
pub(super) fn dot(model: Model, format: Format, half: bool, a: (&[Element], &[u32]), b: (&[Element], &[u32]), c: u32) -> u32 {
    let group = if format == TF32 { model.group / 2 } else { model.group } as usize;
    let mut c = c;
    for g in (0..a.0.len()).step_by(group) {
        let end = (g + group).min(a.0.len());
        let r = fused(model, format, half, &a.0[g..end], &b.0[g..end], c);
        c = if r == u32::MAX { special(format, half, &a.1[g..end], &b.1[g..end], c) } else { r };
    }
    c
}

/// The bits of element (row, column) of the left operand of m16n8, from its fragments: 16-bit elements lie in pairs.
pub(super) fn left(format: Format, a: &[[u32; 32]], row: usize, col: usize) -> u32 {
    if format == TF32 {
        a[row / 8 + 2 * (col / 4)][(row % 8) * 4 + col % 4] >> 13
    } else {
        a[row / 8 + 2 * (col / 8)][(row % 8) * 4 + (col % 8) / 2] >> (16 * (col % 2)) & 0xffff
    }
}

/// Of the right operand.
fn right(format: Format, b: &[[u32; 32]], row: usize, col: usize) -> u32 {
    if format == TF32 { b[row / 4][col * 4 + row % 4] >> 13 } else { b[row / 8][col * 4 + (row % 8) / 2] >> (16 * (row % 2)) & 0xffff }
}

/// `mma.sync` of a warp: fragments in, fragments out.
pub(super) fn product(model: Model, format: Format, half: bool, k: usize, a: &[[u32; 32]], b: &[[u32; 32]], c: &[[u32; 32]]) -> [[u32; 32]; 4] {
    let mut rows = [([Element::default(); 16], [0u32; 16]); 16];
    for (i, r) in rows.iter_mut().enumerate() {
        for j in 0..k {
            r.1[j] = left(format, a, i, j);
            r.0[j] = Element::new(format, r.1[j]);
        }
    }
    let mut cols = [([Element::default(); 16], [0u32; 16]); 8];
    for (j, c) in cols.iter_mut().enumerate() {
        for i in 0..k {
            c.1[i] = right(format, b, i, j);
            c.0[i] = Element::new(format, c.1[i]);
        }
    }
    let mut out = [[0u32; 32]; 4];
    for lane in 0..32 {
        for i in 0..4 {
            let (row, col) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
            let c = if half { c[i / 2][lane] >> (16 * (i % 2)) & 0xffff } else { c[i][lane] };
            let (r, s) = (&rows[row], &cols[col]);
            let x = dot(model, format, half, (&r.0[..k], &r.1[..k]), (&s.0[..k], &s.1[..k]), c);
            if half {
                out[i / 2][lane] |= x << (16 * (i % 2));
            } else {
                out[i][lane] = x;
            }
        }
    }
    out
}
