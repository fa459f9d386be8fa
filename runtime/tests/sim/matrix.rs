//! Matrix instructions: fragments written out from the ISA's tables, not from any emitter.

use super::support::{f, try_run};

/// Elements of the left operand of m16n8k16 with 16-bit elements: `a_i` of a lane.
fn a16(lane: usize, i: usize) -> (usize, usize) {
    let (group, t) = (lane >> 2, lane % 4);
    let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
    (row, 2 * t + (i & 1) + if i < 4 { 0 } else { 8 })
}
fn b16(lane: usize, i: usize) -> (usize, usize) {
    (2 * (lane % 4) + (i & 1) + if i < 2 { 0 } else { 8 }, lane >> 2)
}
fn c32(lane: usize, i: usize) -> (usize, usize) {
    ((lane >> 2) + if i < 2 { 0 } else { 8 }, 2 * (lane % 4) + (i & 1))
}

fn bf16(x: f32) -> u32 {
    x.to_bits() >> 16
}
fn f16(x: i32) -> u32 {
    // Small whole numbers.
    if x == 0 {
        return 0;
    }
    let (s, m) = ((x < 0) as u32, x.unsigned_abs());
    let e = 31 - m.leading_zeros();
    s << 15 | (e + 15) << 10 | ((m << (10 - e)) & 0x3ff)
}

#[test]
fn product_of_16_bit_elements() {
    let a = |r: usize, c: usize| ((r * 7 + c * 3) % 11) as i32 - 5;
    let b = |r: usize, c: usize| ((r * 5 + c * 2) % 13) as i32 - 6;
    let c = |r: usize, c: usize| (r * 8 + c) as i32 - 60;
    let d = |r: usize, n: usize, k: usize| c(r, n) + (0..k).map(|i| a(r, i) * b(i, n)).sum::<i32>();
    type Encode = fn(i32) -> u32;
    let formats: [(&str, Encode); 2] = [("bf16", |x| bf16(x as f32)), ("f16", f16)];
    for (name, enc) in formats {
        for k in [8usize, 16] {
            let (na, nb) = (k / 4, k / 8);
            let rows: Vec<Vec<u32>> = (0..32)
                .map(|l| {
                    let pair = |at: &dyn Fn(usize) -> (usize, usize), of: &dyn Fn(usize, usize) -> i32, i: usize| {
                        let (lo, hi) = (at(2 * i), at(2 * i + 1));
                        enc(of(lo.0, lo.1)) | enc(of(hi.0, hi.1)) << 16
                    };
                    let mut v: Vec<u32> = (0..na).map(|i| pair(&|i| a16(l, i), &a, i)).collect();
                    v.extend((0..nb).map(|i| pair(&|i| b16(l, i), &b, i)));
                    v.extend((0..4).map(|i| f(c(c32(l, i).0, c32(l, i).1) as f32)));
                    v
                })
                .collect();
            let reg = |from: usize, n: usize| (from..from + n).map(|i| format!("%a{i}")).collect::<Vec<_>>().join(", ");
            let body = format!("mma.sync.aligned.m16n8k{k}.row.col.f32.{name}.{name}.f32 {{%d0, %d1, %d2, %d3}}, {{{}}}, {{{}}}, {{{}}};", reg(0, na), reg(na, nb), reg(na + nb, 4));
            let (out, report) = try_run("sm_80", 4, &body, &rows).unwrap();
            assert_eq!(report.matrix_products, 128 * k as u64);
            for (l, o) in out.iter().enumerate() {
                for (i, o) in o.iter().enumerate() {
                    let (r, n) = c32(l, i);
                    assert_eq!(f32::from_bits(*o), d(r, n, k) as f32, "{name} k{k} lane {l} element {i}");
                }
            }
        }
    }
}

#[test]
fn product_of_tf32_ignores_the_low_bits() {
    // m16n8k8: a0 (g, t), a1 (g+8, t), a2 (g, t+4), a3 (g+8, t+4); b0 (t, g), b1 (t+4, g).
    let a = |r: usize, c: usize| (r as f32 - 7.0) * 0.5 + c as f32;
    let b = |r: usize, c: usize| r as f32 * 0.25 - c as f32;
    let rows: Vec<Vec<u32>> = (0..32)
        .map(|l| {
            let (g, t) = (l >> 2, l % 4);
            let mut v: Vec<u32> = [(g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)].iter().map(|(r, c)| f(a(*r, *c)) | 0x1fff).collect();
            v.extend([f(b(t, g)) | 0x1000, f(b(t + 4, g))]);
            v
        })
        .collect();
    let body = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%d0, %d1, %d2, %d3}, {%a0, %a1, %a2, %a3}, {%a4, %a5}, {0f00000000, 0f00000000, 0f00000000, 0f00000000};";
    let (out, _) = try_run("sm_80", 4, body, &rows).unwrap();
    for (l, o) in out.iter().enumerate() {
        for (i, o) in o.iter().enumerate() {
            let (r, n) = c32(l, i);
            assert_eq!(f32::from_bits(*o), (0..8).map(|k| a(r, k) * b(k, n)).sum::<f32>());
        }
    }
}

/// One dot product: the first `n` products of row 0 and column 0 are `a·b`, the accumulator is `c`.
fn dot(target: &str, n: usize, a: f32, b: f32, c: f32) -> f32 {
    let rows: Vec<Vec<u32>> = (0..32)
        .map(|l| {
            let word = |at: &dyn Fn(usize) -> (usize, usize), i: usize, row: bool, x: f32| {
                let one = |i: usize| {
                    let (r, c) = at(i);
                    let (k, other) = if row { (c, r) } else { (r, c) };
                    if other == 0 && k < n { bf16(x) } else { 0 }
                };
                one(2 * i) | one(2 * i + 1) << 16
            };
            let mut v: Vec<u32> = (0..4).map(|i| word(&|i| a16(l, i), i, true, a)).collect();
            v.extend((0..2).map(|i| word(&|i| b16(l, i), i, false, b)));
            v.push(f(c));
            v
        })
        .collect();
    let body = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%d0, %d1, %d2, %d3}, {%a0, %a1, %a2, %a3}, {%a4, %a5}, {%a6, %a6, %a6, %a6};";
    f32::from_bits(try_run(target, 4, body, &rows).unwrap().0[0][0])
}

#[test]
fn accumulation_is_that_of_the_generation() {
    let p = |e: i32| 2f32.powi(e);
    // Four products of 2^-25 beside 1: kept with 25 fraction bits, cut off with 24.
    assert_eq!(dot("sm_90", 4, p(-12), p(-13), 1.0), 1.0 + p(-23));
    assert_eq!(dot("sm_80", 4, p(-12), p(-13), 1.0), 1.0);
    assert_eq!(dot("sm_80", 2, p(-12), p(-12), 1.0), 1.0 + p(-23));
    // Rounded towards zero.
    assert_eq!(dot("sm_90", 1, p(-12), p(-12), 1.0), 1.0);
    assert_eq!(dot("sm_90", 1, p(-12), p(-12), -1.0), -1.0 + p(-24));
    // What is cut off is cut towards zero term by term.
    assert_eq!(dot("sm_90", 1, p(-15), -p(-15), 1.0), 1.0);
    assert_eq!(dot("sm_90", 16, 1.0, 1.0, 0.5), 16.5);
    assert!(dot("sm_90", 2, f32::INFINITY, 1.0, 0.0).is_infinite() && dot("sm_90", 1, f32::NAN, 1.0, 0.0).is_nan());
    assert!(dot("sm_90", 1, f32::INFINITY, 1.0, f32::NEG_INFINITY).is_nan());
}

const SHARED: &str = ".shared .align 16 .b8 tile[512];";

#[test]
fn matrices_are_loaded_by_rows_and_by_columns() {
    // Matrix i is 8 by 8 with element 1000·i + 10·row + col; lane l has stored row l % 8 of matrix l / 8.
    let rows: Vec<Vec<u32>> = (0..32u32).map(|l| (0..4u32).map(|w| { let e = |c| 1000 * (l / 8) + 10 * (l % 8) + c; e(2 * w) | e(2 * w + 1) << 16 }).collect()).collect();
    let store = format!("{SHARED} mov.u32 %t0, tile; mad.lo.u32 %t1, %lane, 16, %t0; st.shared.v4.b32 [%t1], {{%a0, %a1, %a2, %a3}}; bar.sync 0;");
    let load = |name: &str, n: usize| format!("{store} ldmatrix.sync.aligned.m8n8.x{n}{name}.shared.b16 {{{}}}, [%t1];", (0..n).map(|i| format!("%d{i}")).collect::<Vec<_>>().join(", "));
    for n in [1usize, 2, 4] {
        let (out, report) = try_run("sm_80", n, &load("", n), &rows).unwrap();
        let (transposed, _) = try_run("sm_80", n, &load(".trans", n), &rows).unwrap();
        assert_eq!(report.bank_conflicts, 0);
        for l in 0..32u32 {
            for i in 0..n as u32 {
                // Lane l holds elements (l/4, 2(l%4)) and the next one; transposed, the matrix is mirrored first.
                let (r, c) = (l / 4, 2 * (l % 4));
                assert_eq!(out[l as usize][i as usize], (1000 * i + 10 * r + c) | (1000 * i + 10 * r + c + 1) << 16);
                assert_eq!(transposed[l as usize][i as usize], (1000 * i + 10 * c + r) | (1000 * i + 10 * (c + 1) + r) << 16);
            }
        }
    }
    // stmatrix is the inverse, and movmatrix the same as storing plain and loading transposed.
    let (out, _) = try_run("sm_90", 4, &format!("{} bar.sync 0; stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%t1], {{%d0, %d1, %d2, %d3}}; bar.sync 0; ld.shared.v4.b32 {{%d0, %d1, %d2, %d3}}, [%t1];", load(".trans", 4)), &rows).unwrap();
    assert_eq!(out, rows);
    let (a, _) = try_run("sm_80", 1, &load(".trans", 1), &rows).unwrap();
    let (b, _) = try_run("sm_80", 1, &format!("{} movmatrix.sync.aligned.m8n8.trans.b16 %d0, %d0;", load("", 1)), &rows).unwrap();
    assert_eq!(a, b);
}

#[test]
fn bank_conflicts_are_counted() {
    let rows: Vec<Vec<u32>> = (0..32).map(|l| vec![l]).collect();
    let count = |stride: u32, ty: &str| {
        let reg = if ty.starts_with("v4") { "{%a0, %a0, %a0, %a0}" } else { "%a0" };
        let body = format!(".shared .align 16 .b8 big[16384]; mov.u32 %t0, big; mad.lo.u32 %t1, %lane, {stride}, %t0; st.shared.{ty} [%t1], {reg};");
        let r = try_run("sm_80", 0, &body, &rows).unwrap().1;
        (r.shared_wavefronts, r.bank_conflicts)
    };
    assert_eq!(count(4, "b32"), (1, 0));
    assert_eq!(count(8, "b32"), (2, 1));
    assert_eq!(count(128, "b32"), (32, 31));
    assert_eq!(count(132, "b32"), (1, 0));
    assert_eq!(count(16, "v4.b32"), (4, 0));
    assert_eq!(count(128, "v4.b32"), (32, 28));
    // Rows of a matrix 128 bytes apart share their banks, unless they are swizzled.
    let body = |address: &str| format!(".shared .align 128 .b8 big[1024]; mov.u32 %t0, big; mad.lo.u32 %t1, %lane, 32, %t0; st.shared.v4.b32 [%t1], {{%a0, %a0, %a0, %a0}}; st.shared.v4.b32 [%t1+16], {{%a0, %a0, %a0, %a0}}; and.b32 %t2, %lane, 7; {address} bar.sync 0; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%d0}}, [%t3];");
    let conflicts = |b: &str| try_run("sm_80", 1, b, &rows).unwrap().1.bank_conflicts;
    let base = conflicts(&body("mad.lo.u32 %t3, %t2, 16, %t0;"));
    assert_eq!(conflicts(&body("mad.lo.u32 %t3, %t2, 128, %t0;")), base + 7);
    assert_eq!(conflicts(&body("mad.lo.u32 %t3, %t2, 144, %t0;")), base);
}

#[test]
fn sectors_are_counted() {
    let rows: Vec<Vec<u32>> = (0..32).map(|l| vec![l, 0, 0, 0, 0, 0, 0, 0]).collect();
    let (_, r) = try_run("sm_80", 8, "mov.b32 %d0, 0; mov.b32 %d1, 0; mov.b32 %d2, 0; mov.b32 %d3, 0; mov.b32 %d4, 0; mov.b32 %d5, 0; mov.b32 %d6, 0; mov.b32 %d7, 0;", &rows).unwrap();
    // Each of the 8 loads and 8 stores touches 32 sectors with 4 bytes used of each.
    assert_eq!((r.global_requests, r.global_sectors, r.global_sectors_ideal), (16, 16 * 32, 16 * 4));
    assert_eq!((r.global.loaded, r.global.stored), (1024, 1024));
}
