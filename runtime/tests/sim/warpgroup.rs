//! Barrier objects, tiles of tensor maps, products of a warpgroup.

use super::support::try_run;
use runtime::sim::{Arg, Fault, FaultKind, Module, Options, Report, Swizzle, TensorMap};

/// `c[64, n] = a[64, 64] · b`, with b as `[n, 64]` (K-major) or `[64, n]` (N-major); a tile each, one barrier. `a` from shared memory or from registers.
fn text(n: usize, major: bool, registers: bool) -> String {
    let d = (0..n / 2).map(|i| format!("%d{i}")).collect::<Vec<_>>().join(", ");
    let mut s = format!(
        ".version 8.0
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 dyn[];
.visible .entry k(.param .align 64 .b8 ma[128], .param .align 64 .b8 mb[128], .param .u64 c, .param .u64 a)
.reqntid 128
{{
.reg .pred %p<4>; .reg .b32 %r<40>; .reg .b32 %d<{}>; .reg .b64 %q<40>;
.shared .align 8 .b8 bar[8];
mov.u32 %r1, %tid.x;
setp.ne.b32 %p1, %r1, 0;
mov.b64 %q1, ma; cvta.param.u64 %q1, %q1;
mov.b64 %q2, mb; cvta.param.u64 %q2, %q2;
mov.b64 %q3, dyn; cvta.shared.u64 %q4, %q3; cvta.to.shared::cluster.u64 %q4, %q4;
@%p1 bra $READY;
mbarrier.init.shared.b64 [bar], 1;
fence.mbarrier_init.release.cluster;
$READY:
bar.sync 0;
@%p1 bra $WAIT;
mbarrier.arrive.expect_tx.shared.b64 %q5, [bar], {};
cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%q4], [%q1, {{0, 0}}], [bar];
add.s64 %q6, %q4, 8192;
cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%q6], [%q2, {{0, 0}}], [bar];
$WAIT:
mbarrier.try_wait.parity.shared.b64 %p2, [bar], 0;
@!%p2 bra $WAIT;
cvt.u32.u64 %r2, %q3;
shr.u32 %r3, %r2, 4;
cvt.u64.u32 %q7, %r3;
",
        n / 2,
        8192 + 128 * if major { 64 } else { n }
    );
    // Swizzle 128 B; stride 1024 between groups of eight rows, and for N-major no second group of 64 columns.
    let descriptor = 1u64 << 62 | 64 << 32 | 1 << 16;
    s += &format!("or.b64 %q8, %q7, {descriptor}; add.s64 %q9, %q8, 512;\n");
    s += "wgmma.fence.sync.aligned;\n";
    // The left fragments from global memory: row 16·warp + lane/4 (+8), columns 2·(lane%4) (+8) of each slice.
    s += "ld.param.b64 %q20, [a]; shr.u32 %r4, %r1, 5; and.b32 %r5, %r1, 31; shr.u32 %r6, %r5, 2; and.b32 %r7, %r5, 3; mad.lo.u32 %r8, %r4, 16, %r6; mul.lo.u32 %r9, %r8, 128; mad.lo.u32 %r9, %r7, 4, %r9; cvt.u64.u32 %q21, %r9; add.s64 %q22, %q20, %q21;\n";
    for k in 0..4 {
        let (da, db) = (2 * k, if major { 128 * k } else { 2 * k });
        s += &format!("add.s64 %q10, %q8, {da}; add.s64 %q11, %q9, {db}; setp.ne.b32 %p3, {k}, 0;\n");
        let tail = format!("p, 1, 1, {}{};", if registers { "" } else { "0, " }, major as u32);
        let a = if registers {
            s += &format!("ld.global.b32 %r{}, [%q22+{}]; ld.global.b32 %r{}, [%q22+{}]; ld.global.b32 %r{}, [%q22+{}]; ld.global.b32 %r{}, [%q22+{}];\n", 10 + 4 * k, 32 * k, 11 + 4 * k, 32 * k + 1024, 12 + 4 * k, 32 * k + 16, 13 + 4 * k, 32 * k + 1040);
            format!("{{%r{}, %r{}, %r{}, %r{}}}", 10 + 4 * k, 11 + 4 * k, 12 + 4 * k, 13 + 4 * k)
        } else {
            "%q10".to_string()
        };
        s += &format!("{{ .reg .pred p; mov.pred p, %p3; wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{d}}}, {a}, %q11, {tail} }}\n");
    }
    s += "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n";
    s += &format!("ld.param.b64 %q12, [c]; mul.lo.u32 %r30, %r8, {}; mad.lo.u32 %r30, %r7, 8, %r30; cvt.u64.u32 %q13, %r30; add.s64 %q14, %q12, %q13;\n", 4 * n);
    for j in 0..n / 8 {
        s += &format!("st.global.v2.b32 [%q14+{}], {{%d{}, %d{}}}; st.global.v2.b32 [%q14+{}], {{%d{}, %d{}}};\n", 32 * j, 4 * j, 4 * j + 1, 32 * j + 32 * n, 4 * j + 2, 4 * j + 3);
    }
    s + "ret;\n}\n"
}

fn bf(x: i32) -> u16 {
    ((x as f32).to_bits() >> 16) as u16
}

/// Runs it on small whole numbers; whether the product is right.
fn run(text: &str, n: usize, major: bool) -> Result<(bool, Report), Fault> {
    let a = |m: usize, k: usize| ((m * 3 + k * 5) % 17) as i32 - 8;
    let b = |n: usize, k: usize| ((n * 7 + k * 2) % 13) as i32 - 6;
    let bytes = |v: Vec<u16>| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let ma = bytes((0..64 * 64).map(|i| bf(a(i / 64, i % 64))).collect());
    // N-major rows have 64 columns, of which the tensor has only n: the rest is filled with zeros.
    let mb = if major { bytes((0..64 * n).map(|i| bf(b(i % n, i / n))).collect()) } else { bytes((0..64 * n).map(|i| bf(b(i / 64, i % 64))).collect()) };
    let map = |cols: usize, rows: usize, tile: u32| TensorMap { element: 2, sizes: vec![cols as u64, rows as u64], strides: vec![2 * cols as u64], tile: vec![64, tile], swizzle: Swizzle::B128 };
    let (map_a, map_b) = (map(64, 64, 64), if major { map(n, 64, 64) } else { map(64, n, n as u32) });
    let mut c = vec![0; 64 * n * 4];
    let args = &mut [Arg::TensorInput(map_a, &ma), Arg::TensorInput(map_b, &mb), Arg::Output(&mut c), Arg::Input(&ma)];
    let r = Module::parse(text).unwrap_or_else(|e| panic!("{e}")).launch("k", [1, 1, 1], [128, 1, 1], 16384, args, &Options { budget: 1 << 20, ..Options::default() })?;
    let right = c.chunks(4).enumerate().all(|(i, c)| f32::from_le_bytes([c[0], c[1], c[2], c[3]]) == (0..64).map(|k| a(i / n, k) * b(i % n, k)).sum::<i32>() as f32);
    Ok((right, r))
}

#[test]
fn products_of_a_warpgroup() {
    for n in [8usize, 32, 64] {
        for (major, registers) in [(false, false), (true, false), (false, true), (true, true)] {
            let (right, r) = run(&text(n, major, registers), n, major).unwrap_or_else(|f| panic!("{f}"));
            assert!(right, "n {n}, N-major {major}, from registers {registers}");
            assert_eq!(r.matrix_products, (64 * 64 * n) as u64);
            assert_eq!(r.unwritten["c"], 0);
        }
    }
}

#[test]
fn mistakes_show() {
    let good = text(32, true, false);
    let kind = |t: &str| run(t, 32, true).map(|(right, _)| right).map_err(|f| f.kind);
    assert_eq!(kind(&good), Ok(true));
    let f = run(&good.replace("wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 1;"), 32, true).unwrap_err();
    assert!(f.kind == FaultKind::InFlight && f.message.contains("`%d0` is the accumulator"), "{f}");
    assert_eq!(kind(&good.replace("wgmma.commit_group.sync.aligned;", "")), Err(FaultKind::InFlight));
    // The wrong parity is the phase before the first, which is over: the tiles are not there yet.
    let early = |t: &str| assert!(matches!(kind(t), Err(FaultKind::InFlight | FaultKind::Uninitialised)), "{:?}", kind(t));
    early(&good.replace("[bar], 0;\n@!", "[bar], 1;\n@!"));
    early(&good.replace("@!%p2 bra $WAIT;", ""));
    assert_eq!(kind(&good.replace("expect_tx.shared.b64 %q5, [bar], 16384", "expect_tx.shared.b64 %q5, [bar], 16392")), Err(FaultKind::Deadlock));
    let f = run(&good.replace("expect_tx.shared.b64 %q5, [bar], 16384", "expect_tx.shared.b64 %q5, [bar], 8192"), 32, true).unwrap_err();
    assert!(matches!(f.kind, FaultKind::InFlight | FaultKind::Race), "{f}");
    // Strides exchanged, transposition lost, operand one slice off, another swizzle.
    let descriptor = 1u64 << 62 | 64 << 32 | 1 << 16;
    let swapped = 1u64 << 62 | 1 << 32 | 64 << 16;
    assert_ne!(kind(&good.replace(&descriptor.to_string(), &swapped.to_string())), Ok(true));
    assert_ne!(kind(&good.replace("p, 1, 1, 0, 1;", "p, 1, 1, 0, 0;")), Ok(true));
    assert_ne!(kind(&good.replace("add.s64 %q11, %q9, 256;", "add.s64 %q11, %q9, 128;")), Ok(true));
    assert_ne!(kind(&good.replace(&descriptor.to_string(), &(2u64 << 62 | 64 << 32 | 1 << 16).to_string())), Ok(true));
    // Without the barrier after its initialisation the object is unknown to the other warps.
    assert!(kind(&good.replace("bar.sync 0;", "")).is_err());
    // A store through the generic proxy needs a fence before the asynchronous proxy reads.
    let store = "mad.lo.u32 %r31, %r1, 4, %r2; mov.b32 %r32, 0; st.shared.b32 [%r31], %r32; bar.sync 1;\n";
    let late = good.replace("wgmma.fence.sync.aligned;", &format!("{store}wgmma.fence.sync.aligned;"));
    assert_eq!(kind(&late), Err(FaultKind::Race));
    assert_eq!(kind(&late.replace("bar.sync 1;", "fence.proxy.async.shared::cta; bar.sync 1;")), Ok(false));
}

#[test]
fn barrier_objects_have_phases() {
    let rows: Vec<Vec<u32>> = (0..64).map(|l| vec![l]).collect();
    // Every thread arrives; the second phase needs as many again. Warp 1 hands a value over to warp 0 by the object alone.
    let body = ".shared .align 8 .b8 o[8]; .shared .align 4 .b8 v[256]; mov.u32 %t8, v; mad.lo.u32 %t9, %lane, 4, %t8; setp.eq.b32 %p0, %lane, 0; @%p0 mbarrier.init.shared.b64 [o], 64; bar.sync 0;
    st.shared.b32 [%t9], %a0; mbarrier.arrive.shared.b64 %q5, [o]; W: mbarrier.try_wait.shared.b64 %p1, [o], %q5; @!%p1 bra W;
    xor.b32 %t1, %lane, 32; mad.lo.u32 %t2, %t1, 4, %t8; ld.shared.b32 %d0, [%t2];
    mbarrier.arrive.shared.b64 %q5, [o]; V: mbarrier.test_wait.parity.shared.b64 %p1, [o], 1; @!%p1 bra V; st.shared.b32 [%t9], %a0;";
    let (out, _) = try_run("sm_90", 1, body, &rows).unwrap();
    assert!(out.iter().enumerate().all(|(l, o)| o[0] == l as u32 ^ 32));
    let fails = |t: &str| try_run("sm_90", 1, t, &rows).unwrap_err().kind;
    assert_eq!(fails(&body.replace("[o], 64;", "[o], 65;")), FaultKind::Deadlock);
    // Released too early: the second arrival comes before the read.
    let early = body.replace("ld.shared.b32 %d0, [%t2];", "").replace("st.shared.b32 [%t9], %a0;\";", "").replace("V: mbarrier", "ld.shared.b32 %d0, [%t2]; V: mbarrier");
    assert_eq!(fails(&early), FaultKind::Race);
}

#[test]
fn swizzles_permute_chunks() {
    // Bits 4 and up of the address, with bits 7 and up.
    assert_eq!(Swizzle::B128.apply(0x380), 0x380 | 0x70);
    assert_eq!(Swizzle::B128.apply(0x3f4), 0x384);
    assert_eq!(Swizzle::B64.apply(0x380), 0x380 | 0x30);
    assert_eq!(Swizzle::B32.apply(0x380), 0x380 | 0x10);
    assert_eq!(Swizzle::None.apply(0x380), 0x380);
    for s in [Swizzle::B32, Swizzle::B64, Swizzle::B128] {
        assert!((0..4096).all(|a| s.apply(s.apply(a)) == a));
    }
}
