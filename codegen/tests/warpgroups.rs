//! Kernels by warpgroups: mistakes in their text show in the PTX machine, products stay together in the machine code, and what has no
//! such form is said.
#![allow(missing_docs, clippy::unwrap_used)]

mod cases;

use cases::Case;
use codegen::nvptx::{self, Compiled, Schedule};
use codegen::{Error, GpuTarget};
use ir::types::DType;
use runtime::sim::{Fault, Module, Options};

fn attention(function: &str, wrt: &[&str], d: i64) -> Case {
    Case::attention(function, wrt, DType::BF16, 1, [150, 150, d])
}

fn compiled(c: &Case, s: &Schedule) -> Compiled {
    nvptx::compile(&c.programs[0], &GpuTarget::named("sm_90a").unwrap(), s).unwrap_or_else(|e| panic!("{e}"))
}

/// The largest relative error of the text's results.
fn run(c: &Case, k: &Compiled, text: &str) -> Result<f64, Fault> {
    let module = Module::parse(text).unwrap_or_else(|e| panic!("{e:?}"));
    let inputs: Vec<_> = k.signature.buffers.iter().filter_map(|b| c.inputs.get(&b.name).cloned()).collect();
    let options = Options { budget: 1 << 22, ..Options::default() };
    let (got, _) = module.run(&k.signature, &c.dims, &inputs, &options)?;
    let names = k.signature.buffers.iter().filter(|b| b.access == ir::tile::Access::Output).map(|b| b.name.clone());
    let tensors = names.zip(got).collect();
    Ok(c.errors(&tensors).iter().map(|e| e.1).fold(0.0, |a, b| if b.is_nan() { f64::NAN } else { a.max(b) }))
}

/// Replaces the `n`-th line that has `what` by `f` of it.
fn edit(text: &str, what: &str, n: usize, f: impl Fn(&str) -> String) -> Option<String> {
    let at = text.lines().enumerate().filter(|(_, l)| l.contains(what)).nth(n)?.0;
    Some(text.lines().enumerate().map(|(i, l)| if i == at { f(l) } else { l.to_string() } + "\n").collect())
}

#[test]
fn mistakes_show() {
    let c = attention("causal", &["q", "k", "v"], 64);
    // Three tiles and more go through two stages, so that a stage is filled again.
    let k = compiled(&c, &Schedule::warpgroups(2, 32, 32, 2));
    let good = &k.ptx;
    let e = run(&c, &k, good).unwrap_or_else(|f| panic!("{f}"));
    assert!(e < 5e-3, "{e}");
    let caught = |what: &str, text: Option<String>| {
        let text = text.unwrap_or_else(|| panic!("{what}: there is nothing to change"));
        assert_ne!(&text, good, "{what}");
        match run(&c, &k, &text) {
            Ok(e) => assert!(e.is_nan() || e > 2e-2, "{what}: not caught, error {e}"),
            Err(f) => println!("{what}: {:?}", f.kind),
        }
    };
    // Descriptors are the constants above 2^62: strides in bits 16 to 29 and 32 to 45.
    let descriptors: Vec<u64> = {
        let mut all: Vec<u64> = good.split(|c: char| !c.is_ascii_digit()).filter_map(|w| w.parse().ok()).filter(|n: &u64| *n >> 62 == 1).collect();
        all.sort();
        all.dedup();
        all
    };
    assert!(descriptors.len() > 8);
    let exchanged = |d: u64| d & !(0x3fff << 16 | 0x3fff << 32) | (d >> 32 & 0x3fff) << 16 | (d >> 16 & 0x3fff) << 32;
    for d in &descriptors {
        caught("strides of a descriptor exchanged", Some(good.replace(&d.to_string(), &exchanged(*d).to_string())));
        caught("another swizzle", Some(good.replace(&d.to_string(), &(d ^ 3 << 62).to_string())));
        caught("a descriptor one slice off", Some(good.replace(&d.to_string(), &(d + 2).to_string())));
    }
    let waits = good.lines().filter(|l| l.contains("wgmma.wait_group")).count();
    assert_eq!(waits, 3, "scores, their tangents, the end of a tile");
    for n in 0..waits {
        let lax = |l: &str| if l.contains("aligned 0") { l.replace("aligned 0", "aligned 1") } else { l.replace("aligned 1", "aligned 2") };
        caught("a wait one too lax", edit(good, "wgmma.wait_group", n, lax));
    }
    // The producer's waits come first in the text, then that for the left operands, then the ring's.
    let tests = good.lines().filter(|l| l.contains("mbarrier.try_wait.parity")).count();
    for n in 0..tests {
        for parity in [0, 1] {
            let constant = |l: &str| format!("{}, {parity};", l.rsplit_once(',').unwrap().0);
            let text = edit(good, "mbarrier.try_wait.parity", n, constant).unwrap();
            let once = good.lines().filter(|l| l.contains("mbarrier.try_wait.parity")).nth(n).unwrap().contains("65536]");
            if once && parity == 0 {
                assert!(run(&c, &k, &text).is_ok(), "the left operands come once, in phase 0");
            } else {
                caught("a wait for a constant parity", Some(text));
            }
        }
    }
    // Empty after half of its readers: their number is a register that several objects share.
    let inits: Vec<&str> = good.lines().filter(|l| l.contains("mbarrier.init")).collect();
    let count = inits[2].rsplit_once(' ').unwrap().1.trim_end_matches(';');
    for n in [2, 4, 6] {
        caught("a slot released before its last reader", edit(good, "mbarrier.init", n, |l| l.replace(&format!("{count};"), "4;")));
    }
    let arrivals = good.lines().filter(|l| l.contains("mbarrier.arrive.shared")).count();
    for n in 0..arrivals {
        caught("a release lost", edit(good, "mbarrier.arrive.shared", n, |_| String::new()));
    }
    // Scores, their tangents, two accumulators, and what is added to one of them: the wait at the end is for all of these three.
    assert_eq!(good.lines().filter(|l| l.contains("wgmma.commit_group")).count(), 5);
    for n in [0, 1, 4] {
        caught("a commit lost", edit(good, "wgmma.commit_group", n, |_| String::new()));
    }
}

/// Where an assembler is installed: products of a group follow each other, and functions of the scores run beside the products of their tangents.
#[test]
fn products_stay_together() {
    let Some(assembler) = codegen::assembler::Assembler::find() else {
        eprintln!("SKIPPED: no ptxas (`./dev ptxas` installs it, CUDA_BIN names its directory): nothing was assembled");
        return;
    };
    for function in ["attention", "causal"] {
        for d in [64, 128] {
            let c = attention(function, &["q", "k", "v"], d);
            let target = GpuTarget::named("sm_90a").unwrap();
            let s = nvptx::default_schedule(&c.programs[0], &target).unwrap();
            assert!(s.warpgroups, "{s:?}");
            let made = assembler.assemble(&compiled(&c, &s).ptx, "sm_90a").unwrap();
            assert!(made.fits(), "{function} {d}: {}", made.said);
            let sass = assembler.disassemble(&made.cubin).unwrap();
            let order: Vec<&str> = sass.lines().filter_map(|l| ["HGMMA", "WARPGROUP.ARRIVE", "WARPGROUP.DEPBAR", "MUFU.EX2"].into_iter().find(|w| l.contains(w))).collect();
            let mut runs: Vec<(&str, usize)> = vec![];
            for o in order {
                match runs.last_mut() {
                    Some(r) if r.0 == o => r.1 += 1,
                    _ => runs.push((o, 1)),
                }
            }
            // Scores, then their tangents, nothing between; then one wait, the exponentials, the second wait.
            let slices = d as usize / 16;
            let chain = [("HGMMA", slices), ("WARPGROUP.ARRIVE", 1), ("HGMMA", 2 * slices), ("WARPGROUP.DEPBAR", 1)];
            let at = runs.windows(4).position(|w| w == chain).unwrap_or_else(|| panic!("{function} {d}: {runs:?}"));
            // One accumulator, the other, and what is added to the first: no wait between, one at the end.
            let chain = ["WARPGROUP.ARRIVE", "HGMMA", "WARPGROUP.ARRIVE", "HGMMA", "WARPGROUP.ARRIVE", "HGMMA", "WARPGROUP.DEPBAR"];
            assert!(runs.windows(7).any(|w| w.iter().map(|r| r.0).eq(chain)), "{function} {d}: {runs:?}");
            let exponentials: usize = runs[at + 3..].iter().take_while(|r| r.0 != "WARPGROUP.ARRIVE").scan(0, |waits, r| {
                *waits += usize::from(r.0 == "WARPGROUP.DEPBAR") * r.1;
                (*waits < 2).then_some(usize::from(r.0 == "MUFU.EX2") * r.1)
            }).sum();
            // A thread has half of the streamed tile's elements in its two rows.
            assert!(exponentials >= s.stream / 2, "{function} {d}: {exponentials} exponentials beside the tangents' products: {runs:?}");
        }
    }
}

#[test]
fn what_has_no_such_form_is_said() {
    let c = attention("attention", &["q", "k", "v"], 64);
    let refused = |c: &Case, target: &str, s: &Schedule| match nvptx::compile(&c.programs[0], &GpuTarget::named(target).unwrap(), s) {
        Err(Error::Gpu(m)) => m,
        other => panic!("not refused: {:?}", other.map(|k| k.signature)),
    };
    let has = |m: String, part: &str| assert!(m.contains(part), "{m:?} has not {part:?}");
    let s = Schedule::warpgroups(2, 32, 64, 2);
    has(refused(&c, "sm_80", &s), "by warpgroups: sm_80 has no such products");
    has(refused(&attention("attention", &[], 12), "sm_90a", &s), "of `q`, 12*H*I, is not known to be a multiple of 8 elements");
    has(refused(&c, "sm_90a", &Schedule::warpgroups(2, 32, 512, 2)), "the most are 256");
    has(refused(&c, "sm_90a", &Schedule::warpgroups(2, 32, 256, 4)), "bytes of shared memory");
    has(refused(&c, "sm_90a", &Schedule { warpgroups: true, ..Schedule::tensor(64, 32, 64, [2, 1], 2) }), "a warpgroup has 64 rows in four warps");
}

/// Two accumulators whose columns have names of their own and are as many: each of a pair of warpgroups has half of both.
#[test]
fn pairs_share_axes_of_one_length() {
    let text = std::fs::read_to_string(format!("{}/../examples/attention_variants.pf", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let target = GpuTarget::named("sm_90a").unwrap();
    let c = Case::gradient(&text, "causal", &["q", "k", "v"], DType::BF16, &[("B", 1), ("H", 1), ("I", 70), ("J", 90), ("D", 256), ("E", 256)]);
    let s = nvptx::default_schedule_at(&c.programs[2], &target, &c.dims).unwrap();
    assert!(s.warpgroups && s.fragment.warps == [4, 2], "{s:?}");
    let mut memory = c.inputs.clone();
    ir::tile::sequence::run(&c.programs, &mut memory, &c.dims, &mut |p, d, x| {
        let k = nvptx::compile(p, &target, &nvptx::default_schedule_at(p, &target, &c.dims).unwrap()).unwrap();
        let (got, report) = Module::parse(&k.ptx).unwrap().run(&k.signature, d, x, &Options { budget: 1 << 24, ..Options::default() }).unwrap_or_else(|f| panic!("{f}"));
        assert!(report.unwritten.values().all(|n| *n == 0), "{:?}", report.unwritten);
        Ok(got)
    }).unwrap();
    for (name, e) in c.errors(&memory) {
        assert!(e < 5e-3, "{name} is off by {e:e}");
    }
}

/// Of gradients: exponentials stand between the wait for the scores and the next one, beside the product of the cotangents that is under way; where two accumulators
/// are summed, the first product starts before the second wait.
#[test]
fn gradients_hide_their_exponentials() {
    let Some(assembler) = codegen::assembler::Assembler::find() else {
        eprintln!("SKIPPED: no ptxas (`./dev ptxas` installs it, CUDA_BIN names its directory): nothing was assembled");
        return;
    };
    let target = GpuTarget::named("sm_90a").unwrap();
    let text = std::fs::read_to_string(format!("{}/../examples/attention.pf", env!("CARGO_MANIFEST_DIR"))).unwrap();
    for d in [64, 128] {
        let c = Case::gradient(&text, "attention", &["q", "k", "v"], DType::BF16, &[("B", 1), ("H", 1), ("I", 160), ("J", 160), ("D", d)]);
        assert_eq!(c.programs.len(), 3);
        for (p, accumulators) in c.programs[1..].iter().zip([1, 2]) {
            let s = nvptx::default_schedule_at(p, &target, &c.dims).unwrap();
            assert!(s.warpgroups, "{s:?}");
            let made = assembler.assemble(&nvptx::compile(p, &target, &s).unwrap().ptx, "sm_90a").unwrap();
            assert!(made.fits(), "{} {d}: {}", p.name, made.said);
            let sass = assembler.disassemble(&made.cubin).unwrap();
            let order: Vec<&str> = sass.lines().filter_map(|l| ["HGMMA", "WARPGROUP.DEPBAR", "MUFU.EX2"].into_iter().find(|w| l.contains(w))).collect();
            let all = order.iter().filter(|o| **o == "MUFU.EX2").count();
            let first = order.iter().position(|o| *o == "WARPGROUP.DEPBAR").unwrap();
            // Scores and cotangents are both under way at the first wait.
            assert!(first >= d as usize / 8 && order[..first].iter().all(|o| *o == "HGMMA"), "{} {d}: {order:?}", p.name);
            // Where products lag, the first tile stands before the loop, and what lags is under way beside the others' exponentials.
            let runs: Vec<&[&str]> = order[first..].chunk_by(|a, b| a == b).collect();
            let (at, beside) = runs.iter().enumerate().filter(|(_, r)| r[0] == "MUFU.EX2").map(|(i, r)| (i, r.len())).max_by_key(|r| r.1).unwrap();
            assert!(beside >= s.stream / 2 && (s.lag || beside == all), "{} {d}: {beside} of {all} exponentials beside a product", p.name);
            assert_eq!(runs[at - 1][0], "WARPGROUP.DEPBAR", "{} {d}: {order:?}", p.name);
            let next = runs[at + 1][0];
            assert_eq!(next, if accumulators == 2 { "HGMMA" } else { "WARPGROUP.DEPBAR" }, "{} {d}: {order:?}", p.name);
        }
    }
}
