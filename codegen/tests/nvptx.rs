//! PTX of every class of kernel: what it is made of, that it is the same each time, what is refused, and what the assembler says.
#![allow(missing_docs, clippy::unwrap_used)]

mod cases;

use cases::{Case, all, build};
use codegen::nvptx::{self, Schedule};
use codegen::{Error, GpuTarget};
use ir::dim::Bindings;
use ir::tensor::Tensor;
use ir::tile::Program;
use ir::types::DType;
use runtime::sim::{Module, Options};

fn attention(wrt: &[&str], d: i64) -> Case {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/attention.pf")).unwrap();
    Case::new(&text, "attention", wrt, DType::BF16, &[("B", 1), ("H", 1), ("I", 8), ("J", 8), ("D", d)])
}

fn count(text: &str, what: &str) -> usize {
    text.lines().filter(|l| l.trim_start().starts_with(what) || l.contains(&format!("\t{what}"))).count()
}

#[test]
fn every_class_has_code_for_every_target() {
    for c in all() {
        for p in &c.programs {
            for target in ["sm_80", "sm_90a", "sm_100a"] {
                let (s, k) = build(p, target);
                assert!(k.ptx.contains(&format!(".entry {}(", k.signature.symbol)), "{}", p.name);
                assert!(k.signature.shared_bytes <= GpuTarget::named(target).unwrap().shared_per_block, "{}: {s:?}", p.name);
            }
        }
    }
}

/// One program in the PTX machine.
fn launch(p: &Program, by_warps: bool, dims: &Bindings, inputs: &[Tensor]) -> Vec<Tensor> {
    let (s, k) = cases::build_as(p, "sm_90a", by_warps, dims);
    let module = Module::parse(&k.ptx).unwrap_or_else(|e| panic!("{}: {e:?}", p.name));
    module.run(&k.signature, dims, inputs, &Options::default()).unwrap_or_else(|e| panic!("{}, {s:?}: {e}", p.name)).0
}

/// Statistics of queries come by bulk copy where every head's begin at a multiple of 16 bytes; a copy from elsewhere stops the chip (seen on an H100),
/// and the machine refuses it.
#[test]
fn columns_are_copied_where_they_are_aligned() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/attention.pf")).unwrap();
    for (queries, aligned) in [(70, false), (72, true), (131, false)] {
        let c = Case::gradient(&text, "attention", &["q", "k", "v"], DType::BF16, &[("B", 1), ("H", 2), ("I", queries), ("J", 115), ("D", 64)]);
        let copied = |p: &Program| cases::build_as(p, "sm_90a", false, &c.dims).1.ptx.contains("cp.async.bulk.tensor.1d");
        assert_eq!(c.programs.iter().any(copied), aligned, "{queries} queries");
        let mut tensors = c.inputs.clone();
        ir::tile::sequence::run(&c.programs, &mut tensors, &c.dims, &mut |p, d, x| Ok(launch(p, false, d, x))).unwrap();
        for (n, e) in c.errors(&tensors) {
            assert!(e < 5e-3, "{queries} queries: {n} is off by {e:e}");
        }
    }
}

#[test]
fn every_class_is_right_in_the_machine() {
    right_in_the_machine(false);
}

/// The same by products of warps, for programs that have a form by warpgroups.
#[test]
fn products_of_warps_are_right_in_the_machine() {
    right_in_the_machine(true);
}

fn right_in_the_machine(by_warps: bool) {
    let mut bad = vec![];
    let only = std::env::var("CASE").unwrap_or_default();
    let warpgroups = |c: &Case| c.programs.iter().any(|p| nvptx::default_schedule_at(p, &GpuTarget::named("sm_90a").unwrap(), &c.dims).unwrap().warpgroups);
    for c in all().into_iter().filter(|c| c.name.contains(&only) && (!by_warps || warpgroups(c))) {
        let mut tensors = c.inputs.clone();
        let r = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            ir::tile::sequence::run(&c.programs, &mut tensors, &c.dims, &mut |p, d, x| Ok(launch(p, by_warps, d, x))).unwrap();
        }));
        if r.is_err() {
            bad.push(format!("{}: see above", c.name));
            continue;
        }
        let bound = match c.programs[0].operands {
            DType::BF16 => 5e-3,
            DType::F16 => 6e-4,
            _ => 2e-5,
        };
        for (n, e) in c.errors(&tensors) {
            println!("{} {n} {e:.1e} {}", c.name, if !by_warps && warpgroups(&c) { "by warpgroups" } else { "" });
            if e.is_nan() || e > bound {
                bad.push(format!("{}: {n} is off by {e:e}", c.name));
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// Maxima that stay behind (`fuse::Options::slack`): right by warpgroups and by warps, whether they move at once, now and then, or never again; accumulators are then left alone under a
/// branch. Where a result is the maximum itself, or a sum that was shifted by it, nothing stays behind.
#[test]
fn maxima_may_stay_behind() {
    let text = "fn causal(q: f32[B,H,I,D], k: f32[B,H,J,D], v: f32[B,H,J,D]) -> (o: f32[B,H,I,D]) {
  s = contract(\"bhid,bhjd->bhij\", q, k) * rsqrt(D)
  o = contract(\"bhij,bhjd->bhid\", softmax(select(iota(J) <= iota(I), s, -inf), j), v)
}
fn plain(q: f32[B,H,I,D], k: f32[B,H,J,D], v: f32[B,H,J,D]) -> (o: f32[B,H,I,D]) {
  s = contract(\"bhid,bhjd->bhij\", q, k) * rsqrt(D)
  o = contract(\"bhij,bhjd->bhid\", softmax(s, j), v)
}
fn top(q: f32[B,H,I,D], k: f32[B,H,J,D]) -> (m: f32[B,H,I], l: f32[B,H,I]) {
  s = contract(\"bhid,bhjd->bhij\", q, k) * rsqrt(D)
  m = reduce_max(s, j)
  l = reduce_sum(exp(s - m), j)
}";
    let module = ir::text::parse(text).unwrap_or_else(|e| panic!("{}", ir::diagnostic::render(&e, "case", text)));
    let dims = [("B", 1), ("H", 1), ("I", 150), ("J", 340), ("D", 64)];
    let wrt = |names: &[&str]| names.iter().map(|n| (*n).into()).collect::<Vec<ir::dim::Name>>();
    let lazy = |p: &Program, slack: f64| p.to_string().contains(&format!(" + {slack}"));
    for function in ["plain", "causal"] {
        for names in [&["q"] as &[&str], &["q", "k", "v"], &[]] {
            let f = module.function(Some(function)).unwrap();
            let f = if names.is_empty() { f.clone() } else { passes::ad::jvp(f, &wrt(names)).unwrap() };
            for slack in [1e-3, 0.3, 5.5] {
                let c = Case::behind(f.clone(), DType::BF16, &dims, slack);
                assert!(lazy(&c.programs[0], slack), "{function} {names:?}: {}", c.programs[0]);
                for by_warps in [false, true] {
                    let mut tensors = c.inputs.clone();
                    ir::tile::sequence::run(&c.programs, &mut tensors, &c.dims, &mut |p, d, x| Ok(launch(p, by_warps, d, x))).unwrap();
                    for (n, e) in c.errors(&tensors) {
                        println!("{function} {names:?} slack {slack} by warps {by_warps}: {n} {e:.1e}");
                        assert!(e < 5e-3, "{function} {names:?} slack {slack} by warps {by_warps}: {n} is off by {e:e}");
                    }
                }
            }
        }
    }
    let c = Case::behind(module.function(Some("top")).unwrap().clone(), DType::BF16, &dims, 5.5);
    assert!(!c.programs.iter().any(|p| lazy(p, 5.5)), "{}", c.programs[0]);
}

/// Where rows lie side by side and what is summed does not, a warp reads 32 rows at once, and all warps of a block share out what is summed.
#[test]
fn sums_down_columns_read_rows_side_by_side() {
    let c = all().into_iter().find(|c| c.name.starts_with("down")).unwrap();
    let p = c.programs.iter().find(|p| p.axes.iter().any(|a| matches!(a.role, ir::tile::Role::Stream(_)))).unwrap();
    let (s, k) = build(p, "sm_90a");
    assert_eq!((s.rows, s.fragment.lanes, s.fragment.warps), (32, 1, [1, 8]), "{p}");
    assert!(count(&k.ptx, "shfl.sync") == 0, "lanes have rows of their own");
}

#[test]
fn the_text_is_the_same_each_time() {
    for c in [attention(&["q", "k", "v"], 64), all().into_iter().find(|c| c.name.starts_with("gelu_linear")).unwrap()] {
        let (a, b) = (build(&c.programs[0], "sm_90a").1, build(&c.programs[0], "sm_90a").1);
        assert_eq!(a.mlir, b.mlir);
        assert_eq!(a.ptx, b.ptx);
    }
}

/// Six products of N²·d·2 per tile with all tangents, two without; what several products read is loaded once.
#[test]
fn products_share_their_operands() {
    let target = GpuTarget::named("sm_90a").unwrap();
    for (wrt, products, left, right) in [(&["q", "k", "v"] as &[&str], 6, 2, 2), (&[], 2, 1, 1)] {
        let p = &attention(wrt, 64).programs[0];
        let s = Schedule::tensor(64, 32, 64, [4, 1], 2);
        let k = nvptx::compile(p, &target, &s).unwrap();
        // 64 × 64 keys and features a warp: 4 steps of 16, 8 blocks of 8 columns.
        assert_eq!(count(&k.ptx, "mma.sync"), products * 4 * 8);
        assert_eq!(count(&k.ptx, "ldmatrix"), 4 * left + 2 * (4 * 4 * right));
        assert_eq!(count(&k.ptx, "bar.sync") + count(&k.ptx, "barrier.sync"), 2, "one before the loop, one per tile");
    }
}

#[test]
fn limits_are_named() {
    let target = GpuTarget::named("sm_80").unwrap();
    let p = &attention(&["q", "k", "v"], 256).programs[0];
    let refused = |s: &Schedule| match nvptx::compile(p, &target, s) {
        Err(Error::Gpu(m)) => m,
        other => panic!("not refused: {other:?}"),
    };
    let has = |m: String, part: &str| assert!(m.contains(part), "{m:?} has not {part:?}");
    has(refused(&Schedule::tensor(128, 32, 64, [8, 1], 2)), "bytes of shared memory, but a block of sm_80 has 166912");
    has(refused(&Schedule::tensor(64, 32, 24, [4, 1], 2)), "must be multiples of 16");
    has(refused(&Schedule::tensor(96, 32, 32, [3, 1], 2)), "a power of two of threads, not 96");
    has(refused(&Schedule { rows: 32, ..Schedule::tensor(64, 32, 32, [4, 1], 1) }), "the schedule has 32 rows, but its fragment 64");
    let mut f64s = p.clone();
    f64s.compute = DType::F64;
    f64s.values.iter_mut().filter(|v| v.dtype == DType::F32).for_each(|v| v.dtype = DType::F64);
    assert!(matches!(nvptx::compile(&f64s, &target, &Schedule::tensor(64, 32, 32, [4, 1], 1)), Err(Error::Gpu(m)) if m.contains("f32")));
    assert!(matches!(GpuTarget::named("sm_75"), Err(Error::Target(m)) if m.contains("sm_80, sm_90a, sm_100a")));
}

/// Where an assembler is installed it takes every kernel for every target, and none spills at its default schedule.
#[test]
fn the_assembler_agrees() {
    let Some(assembler) = codegen::assembler::Assembler::find() else {
        eprintln!("SKIPPED: no ptxas (`./dev ptxas` installs it, CUDA_BIN names its directory): nothing was assembled");
        return;
    };
    let mut kernels: Vec<(String, Program, Bindings)> = vec![];
    for d in [64, 128, 256] {
        for wrt in [&["q", "k", "v"] as &[&str], &["q"], &[]] {
            kernels.push((format!("attention {wrt:?} d = {d}"), attention(wrt, d).programs.remove(0), Bindings::new()));
        }
    }
    // Gradients as they are timed: lengths are multiples of 16 bytes.
    for d in [64, 128, 256] {
        for (text, function) in [(include_str!("../../examples/attention.pf"), "attention"), (include_str!("../../examples/attention_variants.pf"), "causal")] {
            let c = Case::gradient(text, function, &["q", "k", "v"], DType::BF16, &[("B", 1), ("H", 1), ("I", 8), ("J", 8), ("D", d), ("E", d)]);
            kernels.extend(c.programs.into_iter().map(|p| (format!("{function} d = {d}/{}", p.name), p, c.dims.clone())));
        }
    }
    kernels.extend(all().into_iter().flat_map(|c| c.programs.into_iter().map(move |p| (format!("{}/{}", c.name, p.name), p, Bindings::new()))));
    let jobs: Vec<(&str, &(String, Program, Bindings))> = ["sm_90a", "sm_80", "sm_100a"].into_iter().flat_map(|t| kernels.iter().map(move |k| (t, k))).collect();
    let bad = std::sync::Mutex::new(vec![]);
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                while let Some((target, (name, p, dims))) = jobs.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    let (schedule, k) = cases::build_as(p, target, false, dims);
                    match assembler.assemble(&k.ptx, target) {
                        Err(e) => bad.lock().unwrap().push(format!("{name} for {target}: {e}")),
                        Ok(a) if a.spills != [0, 0] => {
                            bad.lock().unwrap().push(format!("{name} for {target} spills {:?} bytes; {} estimated: {schedule:?}", a.spills, nvptx::registers(p, &GpuTarget::named(target).unwrap(), &schedule).unwrap()));
                        }
                        Ok(a) if a.said.contains("C75") => bad.lock().unwrap().push(format!("{name} for {target}: {}", a.said)),
                        Ok(a) => println!("{name} for {target}: {} registers, {} estimated", a.registers, nvptx::registers(p, &GpuTarget::named(target).unwrap(), &schedule).unwrap()),
                    }
                }
            });
        }
    });
    let bad = bad.into_inner().unwrap();
    println!("{} kernels assembled", jobs.len());
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}
