//! Programs with one mistake each, and the same programs without it.

use super::support::{kernel, try_run};
use runtime::sim::{Arg, Fault, FaultKind, Module, Options};

fn rows(n: u32) -> Vec<Vec<u32>> {
    (0..n).map(|l| vec![l]).collect()
}

fn run(threads: u32, body: &str) -> Result<Vec<u32>, Fault> {
    try_run("sm_80", 1, body, &rows(threads)).map(|(r, _)| r.into_iter().map(|r| r[0]).collect())
}

#[track_caller]
fn fails(threads: u32, body: &str, kind: FaultKind) -> Fault {
    let f = run(threads, body).expect_err(body);
    assert_eq!(f.kind, kind, "{f}");
    f
}

const TILE: &str = ".shared .align 16 .b8 tile[1024]; mov.u32 %t8, tile; mad.lo.u32 %t9, %lane, 4, %t8;";

#[test]
fn a_fault_says_where() {
    let f = fails(64, &format!("{TILE}\nst.shared.b32 [%t9+1000], %a0; mov.b32 %d0, 0;"), FaultKind::OutOfBounds);
    assert_eq!((f.kernel.as_str(), f.thread, f.block), ("k", Some([6, 0, 0]), [0, 0, 0]));
    let text = f.to_string();
    assert!(text.contains("line 14: st.shared.b32 [%t9+1000], %a0;") && text.contains("tile at 0x0..0x400") && text.contains("0x400"), "{text}");
    let f = fails(32, "ld.global.b32 %d0, [%at2+128];", FaultKind::OutOfBounds);
    assert!(f.message.contains("bytes 128..132 of `in`, which has 128 bytes"), "{f}");
    let f = fails(32, "ld.global.b32 %d0, [%at2-4];", FaultKind::OutOfBounds);
    assert!(f.message.contains("bytes -4..0 of `in`"), "{f}");
}

#[test]
fn memory_is_checked() {
    fails(32, "ld.global.b32 %d0, [%at2+2];", FaultKind::Misaligned);
    fails(32, "ld.global.v2.b32 {%d0, %t0}, [%at0+4];", FaultKind::Misaligned);
    fails(32, "ld.global.b32 %d0, [%at3];", FaultKind::Uninitialised);
    fails(32, "st.global.b32 [%at2], %a0; mov.b32 %d0, 0;", FaultKind::ReadOnly);
    fails(32, &format!("{TILE} ld.shared.b32 %d0, [%t9];"), FaultKind::Uninitialised);
    fails(32, &format!("{TILE} st.shared.b32 [%t8], %a0; mov.b32 %d0, 0;"), FaultKind::Race);
    fails(32, "add.s32 %d0, %a0, %t5;", FaultKind::UndefinedRegister);
    fails(32, "setp.lt.u32 %p0, %a0, 31; @%p0 mov.b32 %d0, 1;", FaultKind::UndefinedRegister);
    fails(32, "div.u32 %d0, %a0, %a0;", FaultKind::Undefined);
    fails(32, "trap; mov.b32 %d0, 0;", FaultKind::Trap);
    let f = fails(32, "shfl.sync.down.b32 %t0, %a0, 1, 31, 0x7fffffff; mov.b32 %d0, %t0;", FaultKind::Divergent);
    assert!(f.message.contains("own mask"), "{f}");
}

#[test]
fn shared_memory_needs_barriers() {
    let neighbour = "xor.b32 %t1, %lane, 32; mad.lo.u32 %t2, %t1, 4, %t8;";
    let with = format!("{TILE} st.shared.b32 [%t9], %a0; bar.sync 0; {neighbour} ld.shared.b32 %d0, [%t2]; bar.sync 0; st.shared.b32 [%t9], %a0;");
    assert_eq!(run(64, &with).unwrap()[0], 32);
    // Without the first barrier: a read that races with a write. Without the second: a write after a read.
    let f = fails(64, &with.replacen("bar.sync 0;", "", 1), FaultKind::Uninitialised);
    assert!(f.line > 0);
    fails(64, &with.replace("ld.shared.b32 %d0, [%t2]; bar.sync 0;", "ld.shared.b32 %d0, [%t2];"), FaultKind::Race);
    // Bytes of one word by different warps are no race.
    assert!(run(64, &format!("{TILE} add.u32 %t1, %t8, %lane; st.shared.b8 [%t1], %a0; mov.b32 %d0, 0;")).is_ok());
    // A named barrier orders only those who take part.
    let named = format!("{TILE} shr.u32 %t3, %lane, 6; add.u32 %t3, %t3, 1; st.shared.b32 [%t9], %a0; bar.sync %t3, 64; {neighbour} ld.shared.b32 %d0, [%t2];");
    assert_eq!(run(128, &named).unwrap()[100], 68);
    let f = run(128, &named.replace("%lane, 32;", "%lane, 64;")).unwrap_err();
    // The other side has not written yet, or has without order: what it is depends on who runs first.
    assert!(matches!(f.kind, FaultKind::Race | FaultKind::Uninitialised), "{f}");
    // Arrive and sync: the producer's writes are known to the consumer, not the other way round.
    let pc = format!("{TILE} setp.lt.u32 %p0, %lane, 32; mov.b32 %d0, 0; @%p0 bra P; bar.sync 1, 64; sub.u32 %t1, %t9, 128; ld.shared.b32 %d0, [%t1]; bra E; P: st.shared.b32 [%t9], %a0; bar.arrive 1, 64; E: mov.b32 %t0, 0;");
    assert_eq!(run(64, &pc).unwrap()[40], 8);
    fails(64, &pc.replace("bar.arrive 1, 64; E:", "bar.arrive 1, 64; st.shared.b32 [%t9], %a0; E:"), FaultKind::Race);
}

#[test]
fn barriers_are_counted() {
    fails(64, "mov.b32 %d0, 0; bar.sync 0, 48;", FaultKind::BarrierCount);
    fails(64, "mov.b32 %d0, 0; bar.sync 0, 96;", FaultKind::BarrierCount);
    fails(64, "mov.b32 %d0, 0; bar.sync 17;", FaultKind::BarrierCount);
    fails(64, "mov.b32 %d0, 0; and.b32 %t0, %lane, 32; setp.eq.b32 %p0, %t0, 0; @%p0 bra L; bar.sync 0, 64; bra E; L: bar.sync 0; E: mov.b32 %t1, 0;", FaultKind::BarrierCount);
    let f = fails(64, "mov.b32 %d0, 0; setp.lt.u32 %p0, %lane, 16; @%p0 bra L; bar.sync 0; L: mov.b32 %t1, 0;", FaultKind::Divergent);
    assert!(f.message.contains("lanes 0xffff0000 of warp 0 are here, but lanes 0x0000ffff"), "{f}");
    let f = fails(96, "mov.b32 %d0, 0; setp.lt.u32 %p0, %lane, 32; @%p0 bra L; bar.sync 1, 96; L: mov.b32 %t1, 0;", FaultKind::Deadlock);
    assert!(f.message.contains("barrier 1, which has 64 of 96 threads"), "{f}");
    // Threads that have left are not waited for.
    assert!(try_run("sm_80", 1, "mov.b32 %d0, 0; st.global.b32 [%at3], %d0; setp.lt.u32 %p0, %lane, 32; @%p0 ret; bar.sync 0;", &rows(96)).is_ok());
    assert_eq!(run(64, "setp.gt.u32 %p0, %a0, 60; barrier.cta.red.popc.aligned.u32 %d0, 0, %p0;").unwrap(), vec![3; 64]);
    assert_eq!(run(64, "setp.gt.u32 %p0, %a0, 60; barrier.cta.red.or.aligned.pred %p1, 0, %p0; selp.b32 %d0, 1, 0, %p1;").unwrap(), vec![1; 64]);
}

#[test]
fn copies_arrive_at_their_wait() {
    let copy = "cvt.u64.u32 %q0, %t9; cp.async.ca.shared.global [%q0], [%at2], 4;";
    let good = format!("{TILE} {copy} cp.async.commit_group; cp.async.wait_group 0; ld.shared.b32 %d0, [%t9];");
    assert_eq!(run(32, &good).unwrap()[9], 9);
    fails(32, &good.replace("wait_group 0", "wait_group 1"), FaultKind::InFlight);
    fails(32, &good.replace("cp.async.wait_group 0;", ""), FaultKind::InFlight);
    let f = fails(32, &good.replace("cp.async.commit_group;", ""), FaultKind::MissingCommit);
    assert!(f.message.contains("no commit"), "{f}");
    assert!(run(32, &good.replace("cp.async.commit_group; cp.async.wait_group 0;", "cp.async.wait_all;")).is_ok());
    fails(32, &good.replace("cp.async.commit_group; cp.async.wait_group 0; ld.shared.b32 %d0, [%t9];", "mov.b32 %d0, 0;"), FaultKind::MissingCommit);
    // The wait makes the data known to the thread; others need a barrier behind it.
    let cross = format!("{TILE} {copy} cp.async.commit_group; cp.async.wait_group 0; bar.sync 0; xor.b32 %t1, %lane, 32; mad.lo.u32 %t2, %t1, 4, %t8; ld.shared.b32 %d0, [%t2];");
    assert_eq!(run(64, &cross).unwrap()[9], 41);
    let f = run(64, &cross.replace("bar.sync 0;", "")).unwrap_err();
    assert!(matches!(f.kind, FaultKind::Race | FaultKind::Uninitialised | FaultKind::InFlight), "{f}");
    // Of two groups the older one is there. Zeros where less is read.
    let two = format!("{TILE} {copy} cp.async.commit_group; cvt.u64.u32 %q1, %t9; cp.async.ca.shared.global [%q1+512], [%at2], 4, 0; cp.async.commit_group; cp.async.wait_group 1; ld.shared.b32 %d0, [%t9]; cp.async.wait_group 0; ld.shared.b32 %t0, [%t9+512]; add.u32 %d0, %d0, %t0;");
    assert_eq!(run(32, &two).unwrap()[9], 9);
    // A copy into what others still read.
    fails(64, &cross.replace("ld.shared.b32 %d0, [%t2];", "ld.shared.b32 %d0, [%t2]; cp.async.ca.shared.global [%q0], [%at2], 4; cp.async.commit_group; cp.async.wait_all;"), FaultKind::Race);
    fails(32, &good.replace("[%at2], 4", "[%at2+128], 4"), FaultKind::OutOfBounds);
    fails(32, &good.replace("[%at2], 4", "[%at2], 16"), FaultKind::Misaligned);
}

#[test]
fn blocks_must_not_meet() {
    let text = kernel("sm_80", 1, 1, "mov.u32 %d0, %ctaid.x;");
    let m = Module::parse(&text).unwrap();
    let mut out = vec![0; 128];
    let e = m.launch("k", [3, 1, 1], [32, 1, 1], 0, &mut [Arg::Input(&[0; 128]), Arg::Output(&mut out)], &Options::default()).unwrap_err();
    assert_eq!((e.kind, e.block), (FaultKind::Race, [1, 0, 0]), "{e}");
    // A loop without end stops at the budget.
    let m = Module::parse(&kernel("sm_80", 1, 1, "L: bra L; mov.b32 %d0, 0;")).unwrap();
    let o = Options { budget: 10_000, ..Options::default() };
    assert_eq!(m.launch("k", [1, 1, 1], [32, 1, 1], 0, &mut [Arg::Input(&[0; 128]), Arg::Output(&mut out)], &o).unwrap_err().kind, FaultKind::Runaway);
}

#[test]
fn launches_must_fit() {
    let m = Module::parse(&kernel("sm_80", 1, 1, "mov.b32 %d0, 0;").replace("{\n.reg", ".reqntid 64\n{\n.reg")).unwrap();
    let mut out = vec![0; 256];
    let mut go = |name: &str, block: u32, shared: u32, x: Arg| m.launch(name, [1, 1, 1], [block, 1, 1], shared, &mut [x, Arg::Output(&mut out)], &Options::default()).map(|r| r.unwritten["out"]).map_err(|f| f.message);
    assert_eq!(go("k", 64, 0, Arg::Input(&[0; 256])), Ok(0));
    assert!(go("j", 64, 0, Arg::Input(&[0; 256])).unwrap_err().contains("the module has k"));
    assert!(go("k", 32, 0, Arg::Input(&[0; 256])).unwrap_err().contains("[64, 1, 1]"));
    assert!(go("k", 64, 200 << 10, Arg::Input(&[0; 256])).unwrap_err().contains("shared memory"));
    assert!(go("k", 64, 0, Arg::U32(1)).unwrap_err().contains("has 8 bytes, but the argument 4"));
}

#[test]
fn the_same_run_gives_the_same_report() {
    let text = kernel("sm_80", 1, 1, &format!("{TILE} st.shared.b32 [%t9], %a0; bar.sync 0; ld.shared.b32 %d0, [%t9];")).replace("%at2, %lane", "%at2, %lane");
    let m = Module::parse(&text).unwrap();
    let go = |parallel: bool| {
        let mut out = vec![0; 256];
        let o = Options { parallel, check_blocks: false, ..Options::default() };
        let r = m.launch("k", [7, 2, 1], [64, 1, 1], 0, &mut [Arg::Input(&[1; 256]), Arg::Output(&mut out)], &o).unwrap();
        (r, out)
    };
    assert_eq!(go(true), go(true));
    assert_eq!(go(true), go(false));
}
