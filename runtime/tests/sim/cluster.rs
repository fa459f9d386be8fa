//! Clusters of blocks: who is where, copies to several blocks, arrivals at another block's object, the barrier of all; and what is refused.

use runtime::sim::{Arg, Fault, FaultKind, Module, Options, Report, Swizzle, TensorMap};

/// Blocks of one warpgroup in clusters of `blocks`, around `body`, with a barrier object `bar`, 128 bytes `tile` and one word `word`. Free: `%r1` to `%r19`, `%q1` to
/// `%q9`, `%p1` to `%p3`; `%r0` is the block's place in its cluster. `%r20` is stored by thread 0 of each block.
fn text(blocks: u32, body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .align 64 .b8 map[128], .param .u64 out)\n.reqntid 128\n.explicitcluster\n.reqnctapercluster {blocks}, 1, 1\n{{\n\
         .reg .pred %p<4>; .reg .b32 %r<24>; .reg .b64 %q<16>; .reg .b16 %h;\n.shared .align 128 .b8 tile[128]; .shared .align 8 .b8 bar[8]; .shared .align 4 .b8 word[4];\n\
         mov.u32 %r0, %cluster_ctarank; mov.u32 %r21, %tid.x; setp.ne.b32 %p1, %r21, 0; mov.b64 %q1, map; cvta.param.u64 %q1, %q1;\n{body}\n\
         @%p1 bra $END;\nld.param.u64 %q10, [out]; mov.u32 %r22, %ctaid.x; mad.wide.u32 %q11, %r22, 4, %q10; st.global.b32 [%q11], %r20;\n$END:\nret;\n}}\n"
    )
}

/// What each of `grid` blocks stores.
fn run(blocks: u32, grid: u32, body: &str) -> Result<(Vec<u32>, Report), Fault> {
    let module = Module::parse(&text(blocks, body)).unwrap_or_else(|e| panic!("{e}"));
    let source: Vec<u8> = (0..64u32).flat_map(|i| (100 + i).to_le_bytes()).collect();
    let map = TensorMap { element: 4, sizes: vec![64], strides: vec![], tile: vec![32], swizzle: Swizzle::None };
    let mut out = vec![0u8; 4 * grid as usize];
    let report = module.launch("k", [grid, 1, 1], [128, 1, 1], 0, &mut [Arg::TensorInput(map, &source), Arg::Output(&mut out)], &Options::default())?;
    Ok((out.chunks(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect(), report))
}

const MEET: &str = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;";
/// Thread 0 makes the object, for `n` arrivals, and all blocks see it.
fn begin(n: u32) -> String {
    format!("@!%p1 mbarrier.init.shared.b64 [bar], {n};\n@!%p1 fence.mbarrier_init.release.cluster;\n{MEET}\n")
}
/// All wait for the object's first phase.
const WAIT: &str = "$WAIT: mbarrier.try_wait.parity.shared.b64 %p2, [bar], 0; @!%p2 bra $WAIT;\n";

/// The first block copies what both read to those of `mask`; then `rest`.
fn copied(mask: &str, rest: &str) -> String {
    let copy = format!("setp.ne.b32 %p3, %r0, 0; @%p1 bra $READY; mbarrier.arrive.expect_tx.shared.b64 %q5, [bar], 128; mov.b16 %h, {mask}; @%p3 bra $READY;
        cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [tile], [%q1, {{8}}], [bar], %h;\n$READY:\n");
    begin(1) + &copy + rest
}
/// Both blocks wait for it, and read it.
fn shared_copies(mask: &str) -> String {
    copied(mask, &format!("{WAIT}ld.shared.b32 %r20, [tile+12];\n{MEET}"))
}

#[test]
fn blocks_know_where_they_are() {
    let body = "mov.u32 %r1, %clusterid.x; mov.u32 %r2, %nclusterid.x; mov.u32 %r3, %cluster_nctarank; mov.u32 %r4, %cluster_ctaid.x;
        mad.lo.u32 %r20, %r1, 10, %r2; mad.lo.u32 %r20, %r20, 10, %r3; mad.lo.u32 %r20, %r20, 10, %r0; mad.lo.u32 %r20, %r20, 10, %r4;";
    // Cluster, clusters, blocks of one, rank, and rank along x.
    assert_eq!(run(2, 4, body).unwrap().0, [2200, 2211, 12200, 12211]);
    assert_eq!(run(4, 4, body).unwrap().0, [1400, 1411, 1422, 1433]);
    let f = run(2, 3, body).unwrap_err();
    assert!(f.kind == FaultKind::Launch && f.message.contains("clusters of 2 blocks"), "{f}");
}

#[test]
fn copies_go_to_several_blocks() {
    let (got, report) = run(2, 2, &shared_copies("3")).unwrap();
    assert_eq!(got, [111, 111]);
    // Once from global memory.
    assert_eq!(report.global.loaded, 128);
    // One block's object waits for bytes that go to the other alone.
    for mask in ["1", "2"] {
        assert_eq!(run(2, 2, &shared_copies(mask)).unwrap_err().kind, FaultKind::Deadlock);
    }
    for mask in ["0", "5"] {
        let f = run(2, 2, &shared_copies(mask)).unwrap_err();
        assert!(f.kind == FaultKind::Undefined && f.message.contains("of a cluster that has 2"), "{f}");
    }
}

/// A block tells the other, by an arrival at its object, that it may write.
fn told(rank: &str) -> String {
    let body = format!("xor.b32 %r1, %r0, 1; mov.u32 %r2, bar; mapa.shared::cluster.u32 %r3, %r2, {rank}; @!%p1 mbarrier.arrive.shared::cluster.b64 _, [%r3];\n");
    begin(1) + &body + WAIT + "add.u32 %r20, %r0, 40;\n" + MEET
}

#[test]
fn arrivals_go_to_other_blocks() {
    assert_eq!(run(2, 4, &told("%r1")).unwrap().0, [40, 41, 40, 41]);
    // Both at the first one's.
    assert_eq!(run(2, 2, &told("0")).unwrap_err().kind, FaultKind::Deadlock);
    let f = run(2, 2, &told("2")).unwrap_err();
    assert!(f.kind == FaultKind::Undefined && f.message.contains("block 2 of the cluster, which has 2"), "{f}");
}

#[test]
fn who_has_left_takes_nothing() {
    // Without the barrier at the end, a block leaves before the other's arrival or copy comes.
    let late = |body: &str| begin(1) + "setp.ne.b32 %p3, %r0, 0; mov.b32 %r20, 0; @%p3 bra $LEAVE;\n" + body + "$LEAVE:\n";
    let arrive = late("mov.b32 %r5, 0; $LOOP: add.u32 %r5, %r5, 1; bar.sync 0; setp.lt.u32 %p2, %r5, 3; @%p2 bra $LOOP; mov.u32 %r2, bar; mapa.shared::cluster.u32 %r3, %r2, 1; @!%p1 mbarrier.arrive.shared::cluster.b64 _, [%r3];");
    let f = run(2, 2, &arrive).unwrap_err();
    assert!(f.kind == FaultKind::OutOfBounds && f.message.contains("of block 1 of the cluster is gone"), "{f}");
    let copy = copied("3", &format!("mov.b32 %r20, 0; @%p3 bra $LEAVE;\n{WAIT}$LEAVE:\n"));
    let f = run(2, 2, &copy).unwrap_err();
    assert!(f.kind == FaultKind::OutOfBounds && f.message.contains("of block 1 of the cluster is gone"), "{f}");
}

#[test]
fn what_nobody_ordered_shows() {
    // No barrier between the object's making and the other block's arrival.
    let early = told("%r1").replacen(MEET, "bar.sync 0;", 1);
    assert!(matches!(run(2, 2, &early).unwrap_err().kind, FaultKind::Undefined | FaultKind::Race | FaultKind::Uninitialised));
    // A copy into what the other block may still read.
    let read = "@!%p1 st.shared.b32 [tile], %r0; bar.sync 0; ld.shared.b32 %r6, [tile];\n";
    let unordered = shared_copies("3").replacen("setp.ne.b32 %p3", &format!("{read}setp.ne.b32 %p3"), 1);
    assert_eq!(run(2, 2, &unordered).unwrap_err().kind, FaultKind::Race);
    let ordered = shared_copies("3").replacen("setp.ne.b32 %p3", &format!("{read}{MEET}setp.ne.b32 %p3"), 1);
    assert_eq!(run(2, 2, &ordered).unwrap().0, [111, 111]);
    // Arrivals that release nothing order nothing.
    let relaxed = ordered.replace("barrier.cluster.arrive.aligned", "barrier.cluster.arrive.relaxed.aligned");
    assert!(run(2, 2, &relaxed).is_err());
}

#[test]
fn the_barrier_of_all_is_used_in_turn() {
    for (body, what) in [("barrier.cluster.wait.aligned;", "has not arrived"), ("barrier.cluster.arrive.aligned; barrier.cluster.arrive.aligned;", "has not waited")] {
        let f = run(2, 2, &format!("{body} mov.b32 %r20, 0;")).unwrap_err();
        assert!(f.kind == FaultKind::BarrierCount && f.message.contains(what), "{f}");
    }
    // One block waits for the other's arrival, who left long ago: those who left are not waited for.
    assert_eq!(run(2, 2, &format!("setp.ne.b32 %p3, %r0, 0; mov.b32 %r20, 7; @%p3 bra $LEAVE; {MEET}\n$LEAVE:")).unwrap().0, [7, 7]);
}

#[test]
fn what_is_another_blocks_is_not_loaded() {
    let body = "mov.u32 %r2, word; mapa.shared::cluster.u32 %r3, %r2, 1; @!%p1 st.shared.b32 [%r3], %r0; mov.b32 %r20, 0;";
    let f = run(2, 2, &(begin(1) + body + MEET)).unwrap_err();
    assert!(f.kind == FaultKind::OutOfBounds && f.message.contains("is another block's"), "{f}");
    let error = |t: String| Module::parse(&t).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error(text(9, "mov.b32 %r20, 0;")).contains("clusters of 1 to 8 blocks along x"));
    assert!(error(text(2, "ld.shared.b32 %r20, [16];")).contains("each block of a cluster has its own"));
}
