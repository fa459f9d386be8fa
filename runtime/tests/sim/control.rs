//! Lanes and control: exchange, divergence, loops, calls, local memory, atomics.

use super::support::{kernel, run, try_run};
use runtime::sim::{Arg, FaultKind, Module, Options};

fn lanes() -> Vec<Vec<u32>> {
    (0..32).map(|l| vec![100 + l]).collect()
}

#[test]
fn shuffles_clamp() {
    let both = |mode: &str| {
        let body = format!("shfl.sync.{mode}.b32 %d0|%p0, %a0, %a1, %a2, -1; selp.b32 %t0, 1000, 0, %p0; add.u32 %d0, %d0, %t0;");
        move |b: u32, c: u32| run(&body, &(0..32).map(|l| vec![100 + l, b, c]).collect::<Vec<_>>())
    };
    let expect = |f: &dyn Fn(u32) -> Option<u32>| (0..32).map(|l| f(l).map_or(100 + l, |j| 1100 + j)).collect::<Vec<_>>();
    // c = clamp | segment mask << 8; up clamps below.
    assert_eq!(both("up")(3, 0), expect(&|l| l.checked_sub(3)));
    assert_eq!(both("down")(3, 31), expect(&|l| (l + 3 < 32).then_some(l + 3)));
    assert_eq!(both("bfly")(5, 31), expect(&|l| Some(l ^ 5)));
    assert_eq!(both("idx")(7, 31), expect(&|_| Some(7)));
    // Segments of 8: mask 0x18.
    assert_eq!(both("up")(3, 0x1800), expect(&|l| (l % 8 >= 3).then(|| l - 3)));
    assert_eq!(both("down")(3, 0x181f), expect(&|l| (l % 8 < 5).then_some(l + 3)));
    assert_eq!(both("idx")(2, 0x181f), expect(&|l| Some(l / 8 * 8 + 2)));
    assert_eq!(both("bfly")(16, 0x100f), expect(&|l| (l >= 16).then(|| l ^ 16)));
}

#[test]
fn votes_and_matches() {
    assert_eq!(run("setp.gt.u32 %p0, %a0, 115; vote.sync.ballot.b32 %d0, %p0, -1;", &lanes()), vec![0xffff_0000; 32]);
    assert_eq!(run("setp.gt.u32 %p0, %a0, 115; vote.sync.any.pred %p1, %p0, -1; vote.sync.all.pred %p2, !%p0, -1; vote.sync.uni.pred %p3, %p0, -1; selp.b32 %d0, 1, 0, %p1; selp.b32 %t0, 2, 0, %p2; selp.b32 %t1, 4, 0, %p3; or.b32 %d0, %d0, %t0; or.b32 %d0, %d0, %t1;", &lanes()), vec![1; 32]);
    let m = run("and.b32 %t0, %a0, 1; match.any.sync.b32 %d0, %t0, -1;", &lanes());
    assert_eq!((m[0], m[1]), (0x5555_5555, 0xaaaa_aaaa));
    assert_eq!(run("redux.sync.add.s32 %d0, %a0, -1;", &lanes()), vec![3200 + 496; 32]);
    assert_eq!(run("redux.sync.max.u32 %d0, %a0, -1;", &lanes()), vec![131; 32]);
    assert_eq!(run("mov.u32 %d0, %lanemask_lt;", &lanes())[5], 31);
    assert_eq!(run("elect.sync %d0|%p0, -1; selp.b32 %t0, 64, 0, %p0; or.b32 %d0, %d0, %t0;", &lanes())[..2], [64, 0]);
}

#[test]
fn divergent_lanes_meet_again() {
    // A loop with a trip count per lane; then everybody must be back for the vote.
    let body = "mov.b32 %d0, 0; sub.u32 %t0, %a0, 99; LOOP: add.u32 %d0, %d0, %t0; sub.u32 %t0, %t0, 1; setp.ne.b32 %p0, %t0, 0; @%p0 bra LOOP; shfl.sync.idx.b32 %t1, %d0, 31, 31, -1; add.u32 %d0, %d0, %t1;";
    assert_eq!(run(body, &lanes()), (1..=32u32).map(|n| n * (n + 1) / 2 + 528).collect::<Vec<_>>());
    // The cold side stands at the end of the text and jumps back; the join has a warp-wide instruction.
    let body = "setp.lt.u32 %p0, %a0, 110; mov.b32 %d0, 1; @%p0 bra COLD; BACK: redux.sync.add.s32 %d0, %d0, -1; bra END; COLD: mov.b32 %d0, 3; bra BACK; END: mov.b32 %t0, 0;";
    assert_eq!(run(body, &lanes()), vec![52; 32]);
    let body = "and.b32 %t0, %a0, 3; mov.b32 %d0, 0; T: .branchtargets A, B, C, D; brx.idx %t0, T; A: add.u32 %d0, %d0, 1; B: add.u32 %d0, %d0, 10; C: add.u32 %d0, %d0, 100; D: add.u32 %d0, %d0, 1000;";
    assert_eq!(run(body, &lanes())[..4], [1111, 1110, 1100, 1000]);
    let e = try_run("sm_80", 1, "setp.lt.u32 %p0, %a0, 110; @%p0 bra L; redux.sync.add.s32 %d0, %a0, -1; L: mov.b32 %d0, 0;", &lanes()).unwrap_err();
    assert_eq!(e.kind, FaultKind::Divergent);
}

#[test]
fn functions_are_called_with_parameters() {
    let f = ".func (.param .b32 r) cube(.param .b32 x) { .reg .b32 %v<4>; .reg .pred %p<2>; ld.param.b32 %v0, [x]; setp.eq.b32 %p0, %v0, 0; mul.lo.s32 %v1, %v0, %v0; mul.lo.s32 %v2, %v1, %v0; st.param.b32 [r], %v2; @%p0 ret; st.param.b32 [r], %v2; ret; }\n";
    let call = |a: &str, d: &str| format!("{{ .param .b32 param0; .param .b32 retval0; st.param.b32 [param0], {a}; call.uni (retval0), cube, (param0); ld.param.b32 {d}, [retval0]; }}");
    let text = kernel("sm_80", 1, 1, &format!("{} {} add.s32 %d0, %t0, %t1;", call("%a0", "%t0"), call("%t0", "%t1")));
    let text = text.replace(".visible", &format!("{f}.visible"));
    let m = Module::parse(&text).unwrap();
    let mut out = vec![0; 8];
    m.launch("k", [1, 1, 1], [2, 1, 1], 0, &mut [Arg::Input(&[2, 0, 0, 0, 0, 0, 0, 0]), Arg::Output(&mut out)], &Options::default()).unwrap();
    assert_eq!(out, [520u32, 0].map(u32::to_le_bytes).concat());
}

#[test]
fn local_memory_and_module_variables() {
    let body = ".local .align 8 .b8 depot[16]; mov.b64 %q0, depot; cvta.local.u64 %q1, %q0; st.local.b32 [%q0+4], %a0; ld.b32 %d0, [%q1+4]; ld.global.b32 %t0, [table+8]; add.u32 %d0, %d0, %t0; ld.const.b32 %t1, [limits+4]; add.u32 %d0, %d0, %t1;";
    let text = kernel("sm_80", 1, 1, body).replace(".visible", ".global .align 4 .b32 table[3] = {1, 2, 3};\n.const .align 4 .u32 limits[2] = {5, 0x10};\n.visible");
    let m = Module::parse(&text).unwrap();
    let mut out = vec![0; 4];
    m.launch("k", [1, 1, 1], [1, 1, 1], 0, &mut [Arg::Input(&[100, 0, 0, 0]), Arg::Output(&mut out)], &Options::default()).unwrap();
    assert_eq!(out, [119, 0, 0, 0]);
    let e = try_run("sm_80", 1, ".local .align 8 .b8 depot[16]; mov.b64 %q0, depot; ld.local.b32 %d0, [%q0];", &lanes()).unwrap_err();
    assert_eq!(e.kind, FaultKind::Uninitialised);
}

#[test]
fn atomics() {
    let init = ".shared .align 4 .b32 n; mov.u32 %t9, n; setp.eq.b32 %p7, %lane, 0; @%p7 st.shared.b32 [n], 5; bar.sync 0;";
    let go = |op: &str| run(&format!("{init} {op} bar.sync 0; ld.shared.b32 %d0, [n];"), &lanes())[0];
    assert_eq!(go("red.shared.add.u32 [n], %a0;"), 5 + 3200 + 496);
    assert_eq!(go("atom.shared.max.s32 %t0, [%t9], %a0;"), 131);
    assert_eq!(go("atom.shared.inc.u32 %t0, [%t9], 7;"), (5 + 32) % 8);
    assert_eq!(go("atom.shared.cas.b32 %t0, [%t9], 5, 77;"), 77);
    assert_eq!(run(&format!("{init} atom.shared.exch.b32 %d0, [n], %a0;"), &lanes())[..3], [5, 100, 101]);
    let text = kernel("sm_80", 1, 1, "atom.global.add.f32 %t0, [%at1], %a0; mov.b32 %d0, 0;").replace("st.global.b32 [%at3+0], %d0;", "");
    let m = Module::parse(&text).unwrap();
    let x: Vec<u8> = (0..64).flat_map(|_| 1.5f32.to_le_bytes()).collect();
    let mut sum = 0f32.to_le_bytes().to_vec();
    m.launch("k", [4, 1, 1], [64, 1, 1], 0, &mut [Arg::Input(&x), Arg::InOut(&mut sum)], &Options::default()).unwrap();
    assert_eq!(f32::from_le_bytes(sum.try_into().unwrap()), 384.0);
}

#[test]
fn what_is_not_here_is_refused_by_name_and_line() {
    let say = |body: &str| Module::parse(&kernel("sm_80", 1, 1, body)).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(say("\ndp4a.u32.u32 %d0, %a0, %a0, %a0;").contains("line 14: the instruction `dp4a.u32.u32`"), "{}", say("\ndp4a.u32.u32 %d0, %a0, %a0, %a0;"));
    assert!(say("add.foo.s32 %d0, %a0, 1;").contains("`.foo`"));
    assert!(say("add.s64 %d0, %a0, 1;").contains("width"));
    assert!(say("add.s32 %d0, %nobody, 1;").contains("nobody"));
    assert!(say("bra NOWHERE;").contains("stands nowhere"));
    assert!(say("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%d0, %d0, %d0}, {%a0, %a0, %a0, %a0}, {%a0, %a0}, {%a0, %a0, %a0, %a0};").contains("takes 4, 4, 2 and 4 registers"));
    assert!(Module::parse("hello").is_err());
    assert!(Module::parse(&kernel("sm_80", 1, 1, "{")).is_err());
}
