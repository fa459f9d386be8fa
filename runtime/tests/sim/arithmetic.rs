//! Integers, floats, conversions: values worked out by hand from the PTX ISA.

use super::support::{check, f, run};

#[test]
fn integers() {
    check("add.s32 %d0, %a0, %a1;", &[u32::MAX, 2], 1);
    check("mul.lo.s32 %d0, %a0, %a1;", &[0xffff_ffff, 7], 0xffff_fff9);
    check("mul.hi.s32 %d0, %a0, %a1;", &[0xffff_ffff, 7], 0xffff_ffff);
    check("mul.hi.u32 %d0, %a0, %a1;", &[0xffff_ffff, 7], 6);
    check("mul.hi.u32 %d0, %a0, -1431655765;", &[95], 63);
    check("mul.wide.s32 %q0, %a0, %a1; mov.b64 {_, %d0}, %q0;", &[0xffff_fffe, 3], 0xffff_ffff);
    check("mul.wide.u32 %q0, %a0, %a1; mov.b64 {_, %d0}, %q0;", &[0xffff_fffe, 3], 2);
    check("mad.lo.s32 %d0, %a0, %a1, 5;", &[3, 4], 17);
    check("mad.hi.u32 %d0, %a0, %a1, 1;", &[0x8000_0000, 4], 3);
    check("div.s32 %d0, %a0, %a1;", &[(-7i32) as u32, 2], (-3i32) as u32);
    check("rem.s32 %d0, %a0, %a1;", &[(-7i32) as u32, 2], (-1i32) as u32);
    check("div.u32 %d0, %a0, %a1;", &[0xffff_fff9, 2], 0x7fff_fffc);
    check("min.s32 %d0, %a0, %a1;", &[u32::MAX, 0], u32::MAX);
    check("min.u32 %d0, %a0, %a1;", &[u32::MAX, 0], 0);
    check("abs.s32 %d0, %a0;", &[(-5i32) as u32], 5);
    check("neg.s32 %d0, %a0;", &[5], (-5i32) as u32);
    check("add.sat.s32 %d0, %a0, %a1;", &[0x7fff_ffff, 1], 0x7fff_ffff);
    check("sad.s32 %d0, %a0, %a1, 10;", &[(-3i32) as u32, 4], 17);
    check("add.cc.u32 %t0, %a0, %a1; addc.u32 %d0, 0, 0;", &[0xffff_ffff, 1], 1);
    check("sub.cc.u32 %t0, %a0, %a1; subc.u32 %d0, 5, 0;", &[0, 1], 4);
    // 16 bits: what is above does not count.
    check("cvt.u16.u32 %s0, %a0; mul.hi.s16 %s1, %s0, 4; cvt.s32.s16 %d0, %s1;", &[0x1234_8000], (-2i32) as u32);
    check("cvt.u16.u32 %s0, %a0; shr.s16 %s1, %s0, 20; cvt.u32.u16 %d0, %s1;", &[0x8000], 0xffff);
    check("mul.wide.u16 %d0, %s0, %s1;".replace("mul", "cvt.u16.u32 %s0, %a0; cvt.u16.u32 %s1, %a1; mul").as_str(), &[0x1ffff, 0x2ffff], 0xfffe_0001);
}

#[test]
fn shifts_clamp_and_bits_count() {
    check("shl.b32 %d0, %a0, %a1;", &[1, 31], 0x8000_0000);
    check("shl.b32 %d0, %a0, %a1;", &[1, 32], 0);
    check("shr.u32 %d0, %a0, %a1;", &[0x8000_0000, 33], 0);
    check("shr.s32 %d0, %a0, %a1;", &[0x8000_0000, 99], 0xffff_ffff);
    check("shf.l.wrap.b32 %d0, %a0, %a1, 8;", &[0x1122_3344, 0x5566_7788], 0x6677_8811);
    check("shf.r.wrap.b32 %d0, %a0, %a1, 40;", &[0x1122_3344, 0x5566_7788], 0x8811_2233);
    check("shf.r.clamp.b32 %d0, %a0, %a1, 40;", &[0x1122_3344, 0x5566_7788], 0x5566_7788);
    check("popc.b32 %d0, %a0;", &[0xf0f0_0001], 9);
    check("clz.b32 %d0, %a0;", &[0], 32);
    check("clz.b32 %d0, %a0;", &[0x0080_0000], 8);
    check("mov.b64 %q0, {%a0, 0}; clz.b64 %d0, %q0;", &[1], 63);
    check("brev.b32 %d0, %a0;", &[0x0000_0003], 0xc000_0000);
    check("bfind.u32 %d0, %a0;", &[0x0000_1000], 12);
    check("bfind.s32 %d0, %a0;", &[0xffff_fffe], 0);
    check("bfind.u32 %d0, %a0;", &[0], 0xffff_ffff);
    check("bfind.shiftamt.u32 %d0, %a0;", &[0x0000_1000], 19);
    check("bfe.u32 %d0, %a0, 4, 8;", &[0xabcd_ef12], 0xf1);
    check("bfe.s32 %d0, %a0, 4, 8;", &[0xabcd_ef12], 0xffff_fff1);
    check("bfe.s32 %d0, %a0, 28, 8;", &[0x8000_0000], 0xffff_fff8);
    check("bfe.s32 %d0, %a0, 4, 0;", &[0xffff_ffff], 0);
    check("bfe.u32 %d0, %a0, 40, 8;", &[0xffff_ffff], 0);
    check("bfi.b32 %d0, %a0, %a1, 8, 4;", &[0xff, 0], 0x0f00);
    check("bfi.b32 %d0, %a0, %a1, 30, 8;", &[0xff, 0], 0xc000_0000);
    check("bfi.b32 %d0, %a0, %a1, 8, 0;", &[0xff, 7], 7);
    check("cnot.b32 %d0, %a0;", &[0], 1);
}

#[test]
fn logic_of_three() {
    // The table is the function on 0xf0, 0xcc, 0xaa.
    check("lop3.b32 %d0, %a0, %a1, 0x33333333, 0x80;", &[0xff00_ff00, 0x0ff0_0ff0], 0x0300_0300);
    check("lop3.b32 %d0, %a0, %a1, %a2, 0x96;", &[0xf0f0, 0xcccc, 0xaaaa], 0xf0f0 ^ 0xcccc ^ 0xaaaa);
    check("lop3.b32 %d0, %a0, %a1, %a2, 0xca;", &[0xf0f0_f0f0, 0xcccc_cccc, 0xaaaa_aaaa], 0xcaca_caca);
    for table in [0u32, 0x1, 0x3c, 0x7f, 0xe8, 0xff] {
        check(&format!("lop3.b32 %d0, 0xf0, 0xcc, 0xaa, {table}; and.b32 %d0, %d0, 255;"), &[0], table);
    }
}

#[test]
fn bytes_are_permuted() {
    let (a, b) = (0x3322_1100, 0x7766_5544);
    check("prmt.b32 %d0, %a0, %a1, 0x7531;", &[a, b], 0x7755_3311);
    check("prmt.b32 %d0, %a0, %a1, 0x0000;", &[a, b], 0);
    // The top bit of a selector replicates the byte's sign.
    check("prmt.b32 %d0, %a0, %a1, 0x8d98;", &[0x3322_8100, 0x7766_f544], 0x00ff_ff00);
    for (mode, want) in [("f4e", [0x3322_1100u32, 0x4433_2211, 0x5544_3322, 0x6655_4433]), ("b4e", [0x5566_7700, 0x6677_0011, 0x7700_1122, 0x0011_2233])] {
        for (i, w) in want.into_iter().enumerate() {
            check(&format!("prmt.b32.{mode} %d0, %a0, %a1, {i};"), &[a, b], w);
        }
    }
    for (mode, want) in [("rc8", [0u32, 0x1111_1111, 0x2222_2222, 0x3333_3333]), ("ecl", [0x3322_1100, 0x3322_1111, 0x3322_2222, 0x3333_3333]), ("ecr", [0, 0x1111_1100, 0x2222_1100, 0x3322_1100]), ("rc16", [0x1100_1100, 0x3322_3322, 0x1100_1100, 0x3322_3322])] {
        for (i, w) in want.into_iter().enumerate() {
            check(&format!("prmt.b32.{mode} %d0, %a0, %a1, {i};"), &[a, b], w);
        }
    }
}

#[test]
fn floats_round_once_and_nan_is_canonical() {
    let (ulp, nan) = (f32::EPSILON, 0x7fff_ffff);
    check("add.rn.f32 %d0, %a0, %a1;", &[f(1.0), f(ulp / 2.0)], f(1.0));
    check("add.rn.f32 %d0, %a0, %a1;", &[f(1.0 + ulp), f(ulp / 2.0)], f(1.0 + 2.0 * ulp));
    check("add.rz.f32 %d0, %a0, %a1;", &[f(1.0), f(ulp * 0.75)], f(1.0));
    check("add.rp.f32 %d0, %a0, %a1;", &[f(1.0), f(1e-30)], f(1.0 + ulp));
    check("add.rm.f32 %d0, %a0, %a1;", &[f(-1.0), f(-1e-30)], f(-1.0 - ulp));
    check("add.rm.f32 %d0, %a0, %a1;", &[f(1.0), f(-1.0)], f(-0.0));
    check("add.rn.f32 %d0, %a0, %a1;", &[f(f32::INFINITY), f(f32::NEG_INFINITY)], nan);
    check("mul.rn.f32 %d0, %a0, %a1;", &[0xffc1_2345, f(1.0)], nan);
    check("mul.ftz.f32 %d0, %a0, %a1;", &[1, f(2.0)], 0);
    check("mul.rn.f32 %d0, %a0, %a1;", &[1, f(2.0)], 2);
    check("mul.ftz.f32 %d0, %a0, %a1;", &[0x8080_0000, f(0.5)], 0x8000_0000);
    check("mul.rz.f32 %d0, %a0, %a1;", &[f(3e38), f(10.0)], f(f32::MAX));
    check("mul.sat.f32 %d0, %a0, %a1;", &[f(3.0), f(2.0)], f(1.0));
    check("add.sat.f32 %d0, %a0, %a1;", &[nan, f(2.0)], 0);
    // (1 + 2^-12)² − 1: the product must not be rounded.
    let x = 1.0 + 2f32.powi(-12);
    check("fma.rn.f32 %d0, %a0, %a0, %a1;", &[f(x), f(-1.0)], f((x as f64 * x as f64 - 1.0) as f32));
    check("fma.rz.f32 %d0, %a0, %a0, %a1;", &[f(1.0 + ulp), f(1.0)], f(2.0 + 2.0 * ulp));
    check("div.rn.f32 %d0, %a0, %a1;", &[f(1.0), f(3.0)], f(1.0 / 3.0));
    check("div.rz.f32 %d0, %a0, %a1;", &[f(2.0), f(3.0)], 0x3f2a_aaaa);
    check("div.approx.f32 %d0, %a0, %a1;", &[f(1.0), f(2f32.powi(127))], 0);
    check("div.approx.f32 %d0, %a0, %a1;", &[f(f32::INFINITY), f(2f32.powi(127))], nan);
    check("sqrt.rn.f32 %d0, %a0;", &[f(2.0)], f(2f32.sqrt()));
    check("sqrt.rp.f32 %d0, %a0;", &[f(2.0)], 0x3fb5_04f4);
    check("sqrt.rn.f32 %d0, %a0;", &[f(-1.0)], nan);
    check("neg.f32 %d0, %a0;", &[f(0.0)], f(-0.0));
    check("abs.ftz.f32 %d0, %a0;", &[0x8000_0001], 0);
    check("copysign.f32 %d0, %a0, %a1;", &[f(-1.0), f(3.0)], f(-3.0));
}

#[test]
fn extrema_skip_nan_and_order_zeros() {
    let nan = 0x7fc0_0001;
    check("max.f32 %d0, %a0, %a1;", &[nan, f(1.0)], f(1.0));
    check("max.NaN.f32 %d0, %a0, %a1;", &[nan, f(1.0)], 0x7fff_ffff);
    check("min.f32 %d0, %a0, %a1;", &[nan, nan], 0x7fff_ffff);
    check("max.f32 %d0, %a0, %a1;", &[f(-0.0), f(0.0)], f(0.0));
    check("min.f32 %d0, %a0, %a1;", &[f(0.0), f(-0.0)], f(-0.0));
    check("max.bf16x2 %d0, %a0, %a1;", &[0x3f80_bf80, 0x4000_0000], 0x4000_0000);
    check("min.f16x2 %d0, %a0, %a1;", &[0x3c00_7e00, 0x4000_4000], 0x3c00_4000);
}

#[test]
fn three_operands_two_at_once_and_narrow_ones() {
    let nan = 0x7fc0_0001;
    check("max.f32 %d0, %a0, %a1, %a2;", &[f(1.0), f(3.0), f(2.0)], f(3.0));
    check("min.f32 %d0, %a0, %a1, %a2;", &[nan, f(3.0), f(2.0)], f(2.0));
    check("max.NaN.f32 %d0, %a0, %a1, %a2;", &[f(1.0), f(3.0), nan], 0x7fff_ffff);
    let pairs = "mov.b64 %q0, {%a0, %a1}; mov.b64 %q1, {%a2, %a3};";
    for (op, low, high) in [("add.rn", 4.5, -1.0), ("sub.rn", -1.5, 5.0), ("mul.rn", 4.5, -6.0)] {
        check(&format!("{pairs} {op}.f32x2 %q2, %q0, %q1; mov.b64 {{%d0, _}}, %q2;"), &[f(1.5), f(2.0), f(3.0), f(-3.0)], f(low));
        check(&format!("{pairs} {op}.f32x2 %q2, %q0, %q1; mov.b64 {{_, %d0}}, %q2;"), &[f(1.5), f(2.0), f(3.0), f(-3.0)], f(high));
    }
    // (1 + 2^-12)² − 1 in the high half: one rounding.
    let x = 1.0 + 2f32.powi(-12);
    check(&format!("{pairs} fma.rn.f32x2 %q2, %q0, %q0, %q1; mov.b64 {{_, %d0}}, %q2;"), &[0, f(x), 0, f(-1.0)], f((x as f64 * x as f64 - 1.0) as f32));
    check(&format!("{pairs} add.rz.ftz.f32x2 %q2, %q0, %q1; mov.b64 {{%d0, _}}, %q2;"), &[1, 0, 1, 0], 0);
    // 1.5 in f16 and in bf16; the f32 operand keeps its digits.
    let narrow = "mov.b32 {%s0, %s1}, %a0;";
    check(&format!("{narrow} add.rn.f32.f16 %d0, %s0, %a1;"), &[0x3e00, f(x)], f(1.5 + x));
    check(&format!("{narrow} sub.rn.f32.bf16 %d0, %s0, %a1;"), &[0x3fc0, f(x)], f(1.5 - x));
    check(&format!("{narrow} fma.rn.f32.bf16 %d0, %s0, %s1, %a1;"), &[0x4000_3fc0, f(x)], f(3.0 + x));
    check(&format!("{narrow} fma.rn.sat.f32.f16 %d0, %s0, %s1, %a1;"), &[0x4000_3e00, f(x)], f(1.0));
}

#[test]
fn halves() {
    // 1 + 2^-11 is a tie in f16.
    check("add.rn.f16x2 %d0, %a0, %a1;", &[0x3c01_3c00, 0x1000_1000], 0x3c02_3c00);
    check("fma.rn.bf16x2 %d0, %a0, %a1, %a2;", &[0x4040_3f80, 0x4000_3f81, 0x3f80_0000], 0x40e0_3f81);
    check("mul.rn.bf16x2 %d0, %a0, %a1;", &[0x3f81_3f81, 0x3f81_3f81], 0x3f82_3f82);
    check("fma.rn.relu.f16x2 %d0, %a0, %a1, %a2;", &[0xbc00_3c00, 0x3c00_3c00, 0x0000_3c00], 0x0000_4000);
    check("neg.f16x2 %d0, %a0;", &[0x3c00_bc00], 0xbc00_3c00);
    check("mov.b32 {%s0, %s1}, %a0; add.f16 %s2, %s0, %s1; cvt.f32.f16 %d0, %s2;", &[0x4000_3c00], f(3.0));
    // A fused multiply-add of f16 has one rounding: 2^-24 below a tie of 2048·(1 + 2^-10) decides.
    check("mov.b32 {%s0, %s1}, %a0; mov.b32 {%s2, _}, %a1; fma.rn.f16 %s3, %s0, %s1, %s2; cvt.u32.u16 %d0, %s3;", &[0x3c00_3c01, 0x8001], 0x3c01);
}

#[test]
fn approximations_are_within_their_bounds() {
    let rel = |body: &str, x: f32, want: f64, bound: f64| {
        let got = f32::from_bits(run(body, &[vec![f(x)]])[0]) as f64;
        assert!((got - want).abs() <= bound * want.abs(), "{body} {x}: {got} {want}");
    };
    for x in [-20.5f32, -1.25, 0.0, 0.3, 7.75, 100.0] {
        rel("ex2.approx.ftz.f32 %d0, %a0;", x, (x as f64).exp2(), 2f64.powi(-22));
        rel("tanh.approx.f32 %d0, %a0;", x, (x as f64).tanh(), 2f64.powi(-11));
    }
    for x in [1e-20f32, 0.7, 3.0, 1e30] {
        rel("rcp.approx.ftz.f32 %d0, %a0;", x, 1.0 / x as f64, 2f64.powi(-23));
        rel("rsqrt.approx.f32 %d0, %a0;", x, 1.0 / (x as f64).sqrt(), 2f64.powi(-22));
        rel("lg2.approx.f32 %d0, %a0;", x, (x as f64).log2(), 2f64.powi(-22));
        rel("sqrt.approx.f32 %d0, %a0;", x, (x as f64).sqrt(), 2f64.powi(-23));
    }
    check("ex2.approx.ftz.f32 %d0, %a0;", &[f(-140.0)], 0);
    check("ex2.approx.f32 %d0, %a0;", &[f(-140.0)], 1 << 9);
    check("ex2.approx.ftz.f32 %d0, %a0;", &[f(f32::NEG_INFINITY)], 0);
    check("ex2.approx.ftz.f32 %d0, %a0;", &[f(f32::NAN)], 0x7fff_ffff);
    check("rcp.approx.ftz.f32 %d0, %a0;", &[f(-0.0)], f(f32::NEG_INFINITY));
    check("lg2.approx.f32 %d0, %a0;", &[f(-1.0)], 0x7fff_ffff);
    check("rsqrt.approx.f32 %d0, %a0;", &[f(-0.0)], f(f32::NEG_INFINITY));
    check("sin.approx.f32 %d0, %a0;", &[f(f32::INFINITY)], 0x7fff_ffff);
    check("cos.approx.f32 %d0, %a0;", &[0], f(1.0));
}

#[test]
fn conversions() {
    // The first source is the upper half.
    check("cvt.rn.bf16x2.f32 %d0, %a0, %a1;", &[f(1.0), f(2.0)], 0x3f80_4000);
    check("cvt.rn.f16x2.f32 %d0, %a0, %a1;", &[f(1.0), f(-2.0)], 0x3c00_c000);
    // Ties to even, both ways; just above a tie; overflow; NaN; subnormals.
    check("cvt.rn.bf16x2.f32 %d0, %a0, %a1;", &[0x3f80_8000, 0x3f81_8000], 0x3f80_3f82);
    check("cvt.rn.bf16x2.f32 %d0, %a0, %a1;", &[0x3f80_8001, 0x7f7f_ffff], 0x3f81_7f80);
    check("cvt.rn.bf16x2.f32 %d0, %a0, %a1;", &[0x7f80_0001, 0x0000_8000], 0x7fff_0000);
    check("cvt.rn.satfinite.bf16x2.f32 %d0, %a0, %a1;", &[0x7f7f_ffff, 0xff80_0000], 0x7f7f_ff7f);
    check("cvt.rz.bf16x2.f32 %d0, %a0, %a1;", &[0x3f80_ffff, 0xbf80_ffff], 0x3f80_bf80);
    check("cvt.rn.relu.bf16x2.f32 %d0, %a0, %a1;", &[f(-1.0), f(1.0)], 0x3f80);
    check("cvt.rn.f16x2.f32 %d0, %a0, %a1;", &[f(65520.0), f(65519.0)], 0x7c00_7bff);
    check("cvt.rn.f16x2.f32 %d0, %a0, %a1;", &[f(2f32.powi(-24)), f(2f32.powi(-25))], 0x0001_0000);
    check("cvt.rna.tf32.f32 %d0, %a0;", &[0x3f80_1000], 0x3f80_2000);
    check("cvt.rna.tf32.f32 %d0, %a0;", &[0xbf80_0fff], 0xbf80_0000);
    check("cvt.rn.f16.f32 %s0, %a0; cvt.f32.f16 %d0, %s0;", &[f(1.0 / 3.0)], f(0.333_251_95));
    check("cvt.rzi.s32.f32 %d0, %a0;", &[f(-2.9)], (-2i32) as u32);
    check("cvt.rni.s32.f32 %d0, %a0;", &[f(2.5)], 2);
    check("cvt.rmi.s32.f32 %d0, %a0;", &[f(-2.1)], (-3i32) as u32);
    check("cvt.rpi.s32.f32 %d0, %a0;", &[f(2.1)], 3);
    check("cvt.rzi.s32.f32 %d0, %a0;", &[f(3e10)], i32::MAX as u32);
    check("cvt.rzi.u32.f32 %d0, %a0;", &[f(-5.0)], 0);
    check("cvt.rzi.s32.f32 %d0, %a0;", &[f(f32::NAN)], 0);
    check("cvt.rzi.s64.f32 %q0, %a0; mov.b64 {_, %d0}, %q0;", &[f(f32::NAN)], 0x8000_0000);
    check("cvt.rni.f32.f32 %d0, %a0;", &[f(-0.4)], f(-0.0));
    check("cvt.rn.f32.s32 %d0, %a0;", &[16_777_217], f(16_777_216.0));
    check("cvt.rp.f32.u32 %d0, %a0;", &[16_777_217], f(16_777_218.0));
    check("mov.b64 %q0, {%a0, %a1}; cvt.rn.f32.u64 %d0, %q0;", &[1, 0x8000_0080], 0x5f00_0001);
    check("cvt.sat.f32.f32 %d0, %a0;", &[f(1.5)], f(1.0));
    check("cvt.s32.s8 %d0, %a0;", &[0x1234_5680], 0xffff_ff80);
    check("cvt.u32.u8 %d0, %a0;", &[0x1234_5680], 0x80);
    check("cvt.sat.s8.s32 %d0, %a0;", &[1000], 127);
    check("cvt.sat.u8.s32 %d0, %a0;", &[(-4i32) as u32], 0);
    check("cvt.s64.s32 %q0, %a0; mov.b64 {_, %d0}, %q0;", &[0x8000_0000], 0xffff_ffff);
    check("cvt.f64.f32 %q0, %a0; add.rn.f64 %q1, %q0, 0d3FF0000000000000; cvt.rn.f32.f64 %d0, %q1;", &[f(0.1)], f((0.1f32 as f64 + 1.0) as f32));
}

#[test]
fn comparisons_and_selection() {
    let cmp = |op: &str, ty: &str, a: u32, b: u32| run(&format!("setp.{op}.{ty} %p0, %a0, %a1; selp.b32 %d0, 1, 0, %p0;"), &[vec![a, b]])[0] == 1;
    let nan = f(f32::NAN);
    for (op, less, equal, unordered) in [("lt", true, false, false), ("le", true, true, false), ("eq", false, true, false), ("ne", true, false, false), ("gt", false, false, false), ("ltu", true, false, true), ("neu", true, false, true), ("equ", false, true, true), ("num", true, true, false), ("nan", false, false, true)] {
        assert_eq!((cmp(op, "f32", f(1.0), f(2.0)), cmp(op, "f32", f(0.0), f(-0.0)), cmp(op, "f32", nan, f(1.0))), (less, equal, unordered), "{op}");
    }
    assert!(cmp("lt", "s32", u32::MAX, 0) && !cmp("lt", "u32", u32::MAX, 0) && cmp("hi", "u32", u32::MAX, 0));
    check("setp.lt.and.s32 %p0|%p1, %a0, 5, %p2; selp.b32 %d0, 1, 0, %p0; selp.b32 %t0, 2, 0, %p1; or.b32 %d0, %d0, %t0;".replace("setp.lt.and", "setp.ne.b32 %p2, %a1, 0; setp.lt.and").as_str(), &[3, 1], 1);
    check("setp.ne.b32 %p2, %a1, 0; setp.lt.and.s32 %p0|%p1, %a0, 5, %p2; selp.b32 %d0, 1, 0, %p0; selp.b32 %t0, 2, 0, %p1; or.b32 %d0, %d0, %t0;", &[7, 1], 2);
    check("setp.ne.b32 %p2, %a1, 0; setp.lt.or.s32 %p0, %a0, 5, !%p2; selp.b32 %d0, 1, 0, %p0;", &[7, 0], 1);
    check("setp.ne.b32 %p2, %a1, 0; setp.lt.xor.s32 %p0, %a0, 5, %p2; selp.b32 %d0, 1, 0, %p0;", &[3, 1], 0);
    check("slct.b32.s32 %d0, %a0, %a1, %a2;", &[1, 2, 0x8000_0000], 2);
    check("slct.b32.f32 %d0, %a0, %a1, %a2;", &[1, 2, f(-0.0)], 1);
    check("set.lt.u32.f32 %d0, %a0, %a1;", &[f(1.0), f(2.0)], u32::MAX);
}
