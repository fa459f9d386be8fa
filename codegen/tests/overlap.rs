//! Kernels by warpgroups whose products lag a tile behind, that multiply in turn, or that have a part of their exponentials by polynomials: right at odd sizes, and
//! mistakes in their text show in the PTX machine.
#![allow(missing_docs, clippy::unwrap_used)]

mod cases;

use cases::{Case, QKV, edit};
use codegen::nvptx::{self, Compiled, Schedule};
use codegen::{Error, GpuTarget};
use ir::types::DType;
use runtime::sim::{Fault, FaultKind, Module, Options};

fn attention(function: &str, wrt: &[&str], dtype: DType, dims: [i64; 3]) -> Case {
    Case::attention(function, wrt, dtype, 1, dims)
}

fn compile(c: &Case, s: &Schedule) -> Result<Compiled, Error> {
    nvptx::compile(&c.programs[0], &GpuTarget::named("sm_90a").unwrap(), s)
}

/// The largest relative error of the text's results.
fn run(c: &Case, k: &Compiled, text: &str) -> Result<f64, Fault> {
    let module = Module::parse(text).unwrap_or_else(|e| panic!("{e:?}"));
    let inputs: Vec<_> = k.signature.buffers.iter().filter_map(|b| c.inputs.get(&b.name).cloned()).collect();
    let options = Options { budget: 1 << 23, ..Options::default() };
    let (got, report) = module.run(&k.signature, &c.dims, &inputs, &options)?;
    assert!(report.unwritten.values().all(|n| *n == 0), "{:?}", report.unwritten);
    let names = k.signature.buffers.iter().filter(|b| b.access == ir::tile::Access::Output).map(|b| b.name.clone());
    Ok(c.errors(&names.zip(got).collect()).iter().map(|e| e.1).fold(0.0, |a, b| if b.is_nan() { f64::NAN } else { a.max(b) }))
}

#[test]
fn overlapped_kernels_are_right() {
    let base = |groups, stream, stages| Schedule::warpgroups(groups, 32, stream, stages);
    let turns = |s: Schedule| Schedule { turns: true, ..s };
    let lag = |s: Schedule| Schedule { lag: true, ..s };
    let polynomial = |s: Schedule| Schedule { polynomial: 3, ..s };
    let mut bad = vec![];
    for (function, wrt, dtype, dims, schedules) in [
        // Many tiles, one tile, and rows that see a part of one.
        ("attention", &[] as &[&str], DType::BF16, [150, 340, 64], vec![turns(base(2, 48, 2)), lag(base(2, 48, 2)), turns(lag(base(2, 48, 3))), turns(lag(polynomial(base(3, 32, 2)))), lag(base(1, 48, 1))]),
        ("attention", &[], DType::F16, [70, 77, 128], vec![turns(lag(polynomial(base(2, 32, 2)))), polynomial(base(2, 32, 2)), lag(base(2, 96, 2))]),
        ("causal", &[], DType::BF16, [150, 130, 64], vec![turns(lag(base(2, 48, 2))), lag(base(3, 32, 4)), turns(polynomial(base(2, 64, 2)))]),
        ("window", &[], DType::BF16, [150, 130, 64], vec![turns(lag(polynomial(base(2, 32, 2))))]),
        ("lengths", &[], DType::BF16, [70, 130, 64], vec![turns(lag(base(2, 32, 2)))]),
        ("attention", QKV, DType::BF16, [100, 230, 64], vec![turns(base(2, 48, 2)), turns(polynomial(base(2, 48, 3)))]),
        ("causal", QKV, DType::BF16, [100, 130, 128], vec![turns(base(2, 32, 2))]),
    ] {
        let c = attention(function, wrt, dtype, dims);
        for s in schedules {
            let k = compile(&c, &s).unwrap_or_else(|e| panic!("{e}"));
            let what = format!("{function} {wrt:?} {dtype} {dims:?} {} x {} x {} turns {} lag {} polynomial {}", s.rows / 64, s.stream, s.stages, s.turns, s.lag, s.polynomial);
            match run(&c, &k, &k.ptx) {
                Ok(e) => {
                    println!("{what}: {e:.2e}");
                    if e.is_nan() || e > if dtype == DType::BF16 { 5e-3 } else { 6e-4 } {
                        bad.push(format!("{what} is off by {e:e}"));
                    }
                }
                Err(f) => bad.push(format!("{what}: {f}")),
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// Kernels of a gradient, of which one has products that lag: those of q add what the tile before multiplied by keys that its first products read, too.
#[test]
fn gradients_lag() {
    let text = std::fs::read_to_string(format!("{}/../examples/attention.pf", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let target = GpuTarget::named("sm_90a").unwrap();
    let base = |groups, stream, stages| Schedule { lag: true, ..Schedule::warpgroups(groups, 32, stream, stages) };
    for (dims, at, schedules) in [
        ([150, 230, 64], 1, vec![base(2, 48, 3), base(2, 32, 2), Schedule { turns: true, ..base(3, 32, 4) }]),
        ([70, 130, 128], 1, vec![base(1, 48, 3), base(2, 80, 3)]),
        ([230, 150, 64], 2, vec![base(2, 48, 3)]),
    ] {
        let sizes: Vec<(&str, i64)> = [("B", 1), ("H", 1)].into_iter().chain(["I", "J", "D"].into_iter().zip(dims)).collect();
        let c = Case::gradient(&text, "attention", QKV, DType::BF16, &sizes);
        for s in schedules {
            let mut memory = c.inputs.clone();
            let lags = &c.programs[at];
            ir::tile::sequence::run(&c.programs, &mut memory, &c.dims, &mut |p, d, x| {
                let k = if std::ptr::eq(p, lags) { nvptx::compile(p, &target, &s) } else { nvptx::compile_default(p, &target, false) }.unwrap_or_else(|e| panic!("{e}"));
                let (got, report) = Module::parse(&k.ptx).unwrap().run(&k.signature, d, x, &Options { budget: 1 << 23, ..Options::default() }).unwrap_or_else(|f| panic!("{dims:?} {s:?}: {f}"));
                assert!(report.unwritten.values().all(|n| *n == 0), "{:?}", report.unwritten);
                Ok(got)
            }).unwrap();
            for (name, e) in c.errors(&memory) {
                assert!(e < 5e-3, "{dims:?}, kernel {at} by {} x {} x {}: {name} is off by {e:e}", s.rows / 64, s.stream, s.stages);
            }
        }
    }
}

#[test]
fn mistakes_show() {
    let c = attention("causal", &[], DType::BF16, [150, 150, 64]);
    // Four tiles and more go through two stages.
    let k = compile(&c, &Schedule { turns: true, lag: true, ..Schedule::warpgroups(2, 32, 32, 2) }).unwrap();
    let good = &k.ptx;
    let e = run(&c, &k, good).unwrap_or_else(|f| panic!("{f}"));
    assert!(e < 5e-3, "{e}");
    let caught = |what: &str, text: String| -> Option<FaultKind> {
        assert_ne!(&text, good, "{what}");
        match run(&c, &k, &text) {
            Ok(e) => {
                assert!(e.is_nan() || e > 2e-2, "{what}: not caught, error {e}");
                None
            }
            Err(f) => {
                println!("{what}: {:?}", f.kind);
                Some(f.kind)
            }
        }
    };
    let count = |what: &str| good.lines().filter(|l| l.contains(what)).count();
    // The first tile waits for its scores; a tile for its scores beside what lags, and for that at its end; behind the loop what lags.
    assert_eq!(count("wgmma.wait_group"), 4);
    for n in 0..4 {
        let lax = |l: &str| if l.contains("aligned 0") { l.replace("aligned 0", "aligned 1") } else { l.replace("aligned 1", "aligned 2") };
        caught("a wait one too lax", edit(good, "wgmma.wait_group", n, lax));
    }
    assert_eq!(count("wgmma.commit_group"), 4);
    for n in [1, 2] {
        caught("a commit lost", edit(good, "wgmma.commit_group", n, |_| String::new()));
    }
    // Keys of the first tile and of the others, values of the tile before; of the last ones' release nobody has heard.
    assert_eq!(count("mbarrier.arrive.shared"), 4);
    let lost = |n: usize| run(&c, &k, &edit(good, "mbarrier.arrive.shared", n, |_| String::new()));
    assert_eq!((0..4).filter(|n| lost(*n).is_err_and(|f| f.kind == FaultKind::Deadlock)).count(), 3);
    for n in 0..count("mbarrier.try_wait.parity") {
        for parity in [0, 1] {
            let text = edit(good, "mbarrier.try_wait.parity", n, |l| format!("{}, {parity};", l.rsplit_once(',').unwrap().0));
            // What is waited for once, in phase 0, is the same with that for a constant.
            if text != *good && run(&c, &k, &text).ok().is_none_or(|e| e.is_nan() || e > 2e-2) {
                println!("parity {parity} of wait {n}: caught");
            } else {
                assert!(parity == 0 && text.lines().zip(good.lines()).filter(|(a, b)| a != b).count() <= 1, "wait {n} for parity {parity}: not caught");
            }
        }
    }
    // A turn that nobody gives is never taken.
    assert_eq!(count("\tbar.arrive"), 3, "before the loop, in it, behind it");
    for n in 0..3 {
        assert_eq!(caught("a turn that is not given", edit(good, "\tbar.arrive", n, |_| String::new())), Some(FaultKind::Deadlock));
    }
}

/// Where an assembler is installed: no spill, nothing serialised, and what lags follows the next tile's first products without a wait.
#[test]
fn what_lags_runs_beside_the_next_tile() {
    let Some(assembler) = codegen::assembler::Assembler::find() else {
        eprintln!("SKIPPED: no ptxas (`./dev ptxas` installs it, CUDA_BIN names its directory): nothing was assembled");
        return;
    };
    for (d, stream) in [(64, 192), (128, 176)] {
        let c = attention("attention", &[], DType::BF16, [8, 8, d]);
        let k = compile(&c, &Schedule { turns: true, lag: true, ..Schedule::warpgroups(2, 32, stream, 2) }).unwrap();
        let made = assembler.assemble(&k.ptx, "sm_90a").unwrap();
        assert!(made.fits(), "{d}: {}", made.said);
        let sass = assembler.disassemble(&made.cubin).unwrap();
        let order: Vec<&str> = sass.lines().filter_map(|l| ["HGMMA", "WARPGROUP.ARRIVE", "WARPGROUP.DEPBAR"].into_iter().find(|w| l.contains(w))).collect();
        let mut runs: Vec<(&str, usize)> = vec![];
        for o in order {
            match runs.last_mut() {
                Some(r) if r.0 == o => r.1 += 1,
                _ => runs.push((o, 1)),
            }
        }
        let chain = [("HGMMA", d as usize / 16), ("WARPGROUP.ARRIVE", 1), ("HGMMA", stream / 16), ("WARPGROUP.DEPBAR", 2)];
        assert!(runs.windows(4).any(|w| w == chain), "{d}: {runs:?}");
    }
}

#[test]
fn what_cannot_is_said() {
    let has = |c: &Case, s: Schedule, part: &str| match compile(c, &s) {
        Err(Error::Gpu(m)) => assert!(m.contains(part), "{m:?} has not {part:?}"),
        other => panic!("not refused: {:?}", other.map(|k| k.signature)),
    };
    let s = |groups| Schedule::warpgroups(groups, 32, 64, 2);
    let jvp = attention("attention", QKV, DType::BF16, [8, 8, 64]);
    has(&jvp, Schedule { lag: true, ..s(2) }, "no products of a tile can lag: its last products are not all that accumulators wait for");
    has(&jvp, Schedule { turns: true, ..s(1) }, "one warpgroup has nobody to take turns with");
    has(&attention("attention", &[], DType::BF16, [8, 8, 64]), Schedule { lag: true, rounded: true, ..s(2) }, "read again as rounded");
}
