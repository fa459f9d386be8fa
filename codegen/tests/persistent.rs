//! Kernels whose blocks stay and take one tile of the grid after the other: right at odd sizes and for any number of multiprocessors, each tile taken once, and mistakes
//! in their text show in the PTX machine.
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

fn compile(c: &Case, s: &Schedule) -> Result<Compiled, Error> {
    nvptx::compile(&c.programs[0], &GpuTarget::named("sm_90a").unwrap(), s)
}

fn persistent(s: Schedule) -> Schedule {
    Schedule { persistent: true, ..s }
}

#[test]
fn persistent_kernels_are_right() {
    let base = |groups, stream, stages| persistent(Schedule::warpgroups(groups, 64, stream, stages));
    let overlapped = |s: Schedule| Schedule { turns: true, lag: true, ..s };
    let gelu = std::fs::read_to_string(format!("{}/../examples/gelu_linear.pf", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let gelu = |dims: [(&str, i64); 3]| Case::new(&gelu, "gelu_linear", &["x", "w"], DType::BF16, &dims);
    let mut bad = vec![];
    for (what, c, schedules) in [
        // Odd and even numbers of tiles in a loop, so that a tile begins anywhere in the ring.
        ("forward", attention("attention", &[], DType::BF16, [150, 230, 64]), vec![base(2, 48, 2), overlapped(base(2, 48, 3)), Schedule { turns: true, ..base(3, 32, 2) }]),
        ("f16", attention("attention", &[], DType::F16, [270, 77, 128]), vec![Schedule { lag: true, ..base(1, 32, 2) }, base(2, 96, 1)]),
        // Loops of different lengths, the longest first.
        ("causal", attention("causal", &[], DType::BF16, [300, 290, 64]), vec![overlapped(base(2, 48, 2)), base(2, 32, 4)]),
        // The last rows see nothing.
        ("window", attention("window", &[], DType::BF16, [290, 130, 64]), vec![overlapped(base(2, 32, 2))]),
        // Bounds that are loaded, for each batch entry.
        ("lengths", attention("lengths", &[], DType::BF16, [130, 130, 64]), vec![base(2, 32, 2), overlapped(base(2, 32, 2))]),
        ("jvp", attention("attention", QKV, DType::BF16, [150, 150, 64]), vec![base(2, 48, 2), Schedule { rounded: true, turns: true, ..base(2, 64, 2) }]),
        ("causal jvp", attention("causal", QKV, DType::BF16, [140, 130, 128]), vec![base(2, 32, 2)]),
        // A pair of warpgroups that exchanges halves of products, and statistics.
        ("256", attention("attention", QKV, DType::BF16, [140, 70, 256]), vec![persistent(Schedule::warpgroups_across([1, 2], 32, 32, 1))]),
        // Two tiled axes, and no tile that is there once.
        ("product", gelu([("M", 300), ("K", 136), ("N", 200)]), vec![Schedule { aligned: true, ..base(2, 64, 2) }]),
    ] {
        for s in schedules {
            let k = compile(&c, &s).unwrap_or_else(|e| panic!("{what}: {e}"));
            for multiprocessors in [1, 3, 100] {
                let what = format!("{what} {} x {} x {}{} on {multiprocessors}", s.rows / 64, s.stream, s.stages, s.flags());
                let tiles = k.signature.tiles(&c.dims).unwrap();
                let bound = if c.programs[0].operands == DType::F16 { 6e-4 } else { 5e-3 };
                match c.run(&k, &k.ptx, multiprocessors) {
                    Ok((e, r)) => {
                        println!("{what}: {tiles} tiles, {e:.2e}");
                        if e.is_nan() || e > bound {
                            bad.push(format!("{what} is off by {e:e}"));
                        }
                        // As many as there are tiles: the variable is zero again. Of loops of the same length, none is asked for.
                        let (taken, all) = (r.by_class.get("atomic").copied().unwrap_or(0), if k.signature.exclusive { tiles as u64 } else { 0 });
                        if taken != all {
                            bad.push(format!("{what}: {taken} tiles were asked for, of {all}"));
                        }
                    }
                    Err(f) => bad.push(format!("{what}: {f}")),
                }
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn mistakes_show() {
    let c = attention("causal", &[], DType::BF16, [300, 150, 64]);
    let k = compile(&c, &persistent(Schedule { turns: true, lag: true, ..Schedule::warpgroups(2, 32, 32, 2) })).unwrap();
    let good = &k.ptx;
    let right = |text: &str| c.run(&k, text, 2).is_ok_and(|r| r.0 < 2e-2);
    let (error, report) = c.run(&k, good, 2).unwrap_or_else(|f| panic!("{f}"));
    assert!(error < 5e-3, "{error}");
    let count = |what: &str| good.lines().filter(|l| l.contains(what)).count();
    let (mut missed, mut seen) = (vec![], 0);
    let mut see = |what: String, text: String| {
        // Where no thread comes, as where a loop has no tile, nothing shows.
        let at = text.lines().zip(good.lines()).position(|(a, b)| a != b).map(|n| n as u32 + 1);
        if at.is_none_or(|n| !report.by_line.contains_key(&n)) {
            return;
        }
        seen += 1;
        if right(&text) {
            missed.push(what);
        }
    };
    for n in 0..count("mbarrier.try_wait.parity") {
        for parity in [0, 1] {
            see(format!("parity {parity} of wait {n}"), edit(good, "mbarrier.try_wait.parity", n, |l| format!("{}, {parity};", l.rsplit_once(',').unwrap().0)));
        }
    }
    for n in 0..count("mbarrier.init") {
        see(format!("one arrival less at object {n}"), edit(good, "mbarrier.init", n, |l| format!("{}, 7;", l.rsplit_once(',').unwrap().0)));
    }
    for what in ["mbarrier.arrive.shared", "\tbar.arrive", "atom.", "mbarrier.arrive.expect_tx"] {
        for n in 0..count(what) {
            see(format!("{what} {n} lost"), edit(good, what, n, |_| String::new()));
        }
    }
    for n in 0..count("%nctaid.x") {
        see(format!("tiles from another number on, {n}"), edit(good, "%nctaid.x", n, |l| l.replace("%nctaid.x", "%ctaid.x")));
    }
    println!("{seen} mistakes");
    // Of loops of the same length nothing is counted, and how many blocks there are says which tile is next.
    let c = attention("attention", &[], DType::BF16, [300, 50, 64]);
    let k = compile(&c, &persistent(Schedule { lag: true, ..Schedule::warpgroups(2, 32, 32, 2) })).unwrap();
    assert!(!k.signature.exclusive && k.ptx.matches("%nctaid.x").count() == 1 && c.run(&k, &k.ptx, 2).is_ok_and(|r| r.0 < 5e-3));
    assert!(!c.run(&k, &k.ptx.replace("%nctaid.x", "%ctaid.x"), 2).is_ok_and(|r| r.0 < 2e-2), "tiles from another number on");
    assert!(seen > 40, "{seen}");
    assert!(missed.is_empty(), "not caught:\n{}", missed.join("\n"));
}

/// Where an assembler is installed: no spill, and nothing serialised.
#[test]
fn persistent_kernels_keep_their_registers() {
    let Some(assembler) = codegen::assembler::Assembler::find() else {
        eprintln!("SKIPPED: no ptxas (`./dev ptxas` installs it, CUDA_BIN names its directory): nothing was assembled");
        return;
    };
    let mut bad = vec![];
    for (function, wrt) in [("attention", &[] as &[&str]), ("attention", QKV), ("causal", &[]), ("causal", QKV), ("attention", &["q"])] {
        for d in [64, 128, 256] {
            let c = attention(function, wrt, DType::BF16, [8, 8, d]);
            let target = GpuTarget::named("sm_90a").unwrap();
            for (s, _) in nvptx::schedules_by_warpgroups(&c.programs[0], &target, &c.dims).unwrap().into_iter().take(4) {
                let what = format!("{function} {wrt:?} {d} {} x {} x {}{}", s.rows / 64, s.stream, s.stages, s.flags());
                let said = |s: &Schedule| assembler.assemble(&compile(&c, s).unwrap().ptx, "sm_90a").unwrap();
                // With all of a thread's registers for two accumulators and words beside them, some bytes are spilled outside of the loop.
                if s.rounded && d == 128 {
                    continue;
                }
                let (plain, made) = (said(&s), said(&persistent(s.clone())));
                println!("{what}: {:?} {:?} registers {} {}", plain.spills, made.spills, plain.registers, made.registers);
                if !made.fits() {
                    bad.push(format!("{what}: {}", made.said));
                }
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn what_cannot_is_said() {
    let c = attention("attention", &[], DType::BF16, [8, 8, 64]);
    match compile(&c, &persistent(Schedule::tensor(64, 32, 64, [4, 1], 2))) {
        Err(Error::Gpu(m)) => assert!(m.contains("persistent blocks are those of warpgroups"), "{m}"),
        other => panic!("not refused: {:?}", other.map(|k| k.signature)),
    }
}
