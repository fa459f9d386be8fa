//! Two blocks that copy the tiles which both read to both: right at odd sizes, where the second block has no rows, and where blocks stay; and mistakes in the text show in
//! the PTX machine.
#![allow(missing_docs, clippy::unwrap_used)]

mod cases;

use cases::{Case, QKV, edit};
use codegen::nvptx::{self, Compiled, Schedule};
use codegen::{Error, GpuTarget};
use ir::types::DType;

/// Two batch entries and two heads.
fn attention(function: &str, wrt: &[&str], dtype: DType, dims: [i64; 3]) -> Case {
    Case::attention(function, wrt, dtype, 2, dims)
}

/// The kernel whose blocks are pairs, and the one without.
fn compile(c: &Case, s: &Schedule) -> Result<[Compiled; 2], Error> {
    let target = GpuTarget::named("sm_90a").unwrap();
    let one = |multicast| nvptx::compile(&c.programs[0], &target, &Schedule { multicast, ..s.clone() });
    Ok([one(true)?, one(false)?])
}

#[test]
fn clusters_are_right() {
    let base = |groups, stream, stages| Schedule::warpgroups(groups, 64, stream, stages);
    let stays = |s: Schedule| Schedule { persistent: true, lag: true, ..s };
    let mut bad = vec![];
    for (what, c, schedules) in [
        ("forward", attention("attention", &[], DType::BF16, [300, 230, 64]), vec![base(2, 48, 2), stays(base(2, 48, 3)), Schedule { turns: true, lag: true, ..base(3, 64, 4) }]),
        // The second block has no row.
        ("short", attention("attention", &[], DType::F16, [100, 77, 128]), vec![base(2, 32, 2), base(1, 96, 1)]),
        ("jvp", attention("attention", QKV, DType::BF16, [150, 150, 64]), vec![base(2, 48, 2), Schedule { rounded: true, turns: true, ..base(2, 64, 2) }]),
        ("bias", attention("bias", &[], DType::BF16, [150, 70, 64]), vec![base(2, 48, 2)]),
        // A pair of warpgroups that exchanges halves of products, in a pair of blocks.
        ("256", attention("attention", &[], DType::BF16, [140, 70, 256]), vec![base(2, 32, 2), Schedule::warpgroups_across([1, 2], 32, 32, 1)]),
    ] {
        for s in schedules {
            let what = format!("{what} {} x {} x {}{}", s.rows / 64, s.stream, s.stages, s.flags());
            let [pair, single] = compile(&c, &s).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!((pair.signature.cluster, single.signature.cluster), (2, 0));
            let bound = if c.programs[0].operands == DType::F16 { 6e-4 } else { 5e-3 };
            match (c.run(&pair, &pair.ptx, 6), c.run(&single, &single.ptx, 6)) {
                (Ok((e, two)), Ok((_, one))) => {
                    println!("{what}: {e:.2e}, {} of {} bytes from global memory", two.global.loaded, one.global.loaded);
                    if e.is_nan() || e > bound {
                        bad.push(format!("{what} is off by {e:e}"));
                    }
                    // Where all rows are one block's, nothing is shared.
                    if c.dims["I"] > s.rows as i64 && two.global.loaded >= one.global.loaded {
                        bad.push(format!("{what} loads {} bytes, {} without clusters", two.global.loaded, one.global.loaded));
                    }
                }
                (Err(f), _) | (_, Err(f)) => bad.push(format!("{what}: {f}")),
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn mistakes_show() {
    let c = attention("attention", &[], DType::BF16, [300, 150, 64]);
    // Blocks that stay, so that what is freed last is waited for.
    let [k, _] = compile(&c, &Schedule { persistent: true, ..Schedule::warpgroups(2, 32, 32, 2) }).unwrap();
    let good = &k.ptx;
    let (error, report) = c.run(&k, good, 2).unwrap_or_else(|f| panic!("{f}"));
    assert!(error < 5e-3, "{error}");
    let count = |what: &str| good.lines().filter(|l| l.contains(what)).count();
    let (mut missed, mut seen) = (vec![], 0);
    let mut see = |what: String, text: String| {
        // Where no thread comes, nothing shows.
        let at = text.lines().zip(good.lines()).position(|(a, b)| a != b).map(|n| n as u32 + 1);
        if at.is_none_or(|n| !report.by_line.contains_key(&n)) {
            return;
        }
        seen += 1;
        match c.run(&k, &text, 2) {
            Ok((e, _)) if e < 2e-2 => missed.push(what),
            Ok((e, _)) => println!("{what}: off by {e:.1e}"),
            Err(f) => println!("{what}: {}", f.kind.name()),
        }
    };
    for what in ["mbarrier.arrive.shared", "mbarrier.arrive.expect_tx", "multicast::cluster", "barrier.cluster.arrive", "barrier.cluster.wait"] {
        assert!(count(what) > 0, "{what}");
        for n in 0..count(what) {
            see(format!("{what} {n} lost"), edit(good, what, n, |_| String::new()));
        }
    }
    for n in 0..count("mbarrier.init") {
        see(format!("object {n} for 7 arrivals"), edit(good, "mbarrier.init", n, |l| format!("{}, 7;", l.rsplit_once(',').unwrap().0)));
    }
    for n in 0..count("multicast::cluster") {
        for mask in ["1", "2"] {
            see(format!("copy {n} to blocks {mask}"), edit(good, "multicast::cluster", n, |l| format!("{}, {mask};", l.rsplit_once(',').unwrap().0)));
        }
    }
    for n in 0..count("mapa.shared::cluster") {
        see(format!("arrival {n} at the own block"), edit(good, "mapa.shared::cluster", n, |l| format!("{}, %cluster_ctarank;", l.rsplit_once(',').unwrap().0)));
    }
    println!("{seen} mistakes");
    assert!(seen > 20, "{seen}");
    assert!(missed.is_empty(), "not caught:\n{}", missed.join("\n"));
}

#[test]
fn what_cannot_is_said() {
    // Loops that differ between neighbours, and a program whose blocks share nothing.
    for (function, wrt) in [("causal", &[] as &[&str]), ("window", QKV)] {
        match compile(&attention(function, wrt, DType::BF16, [8, 8, 64]), &Schedule::warpgroups(2, 64, 32, 2)) {
            Err(Error::Gpu(m)) => assert!(m.contains("neighbours in the grid have to read the same tiles"), "{m}"),
            other => panic!("not refused: {:?}", other.map(|k| k.map(|k| k.signature))),
        }
    }
}
