//! `tune`: which schedule a kernel runs by on a GPU. The space is small and explicit ([`nvptx::schedules`], [`nvptx::schedules_by_warpgroups`]). Every candidate is run on small odd
//! sizes and compared with the reference *before* it is timed: a kernel that skips rows is always the fastest. The result is kept per device and kernel.
//!
//! Without a device the choice is static: of the candidates that the assembler gives registers enough, the one with the largest tile, and never one with less than
//! half the tile of the same kernel without its masks (a mask costs instructions, and must not cost the tile).

use crate::input::{Random, Source, dims_of};
use crate::machine;
use codegen::assembler::Assembler;
use codegen::nvptx::{self, Schedule};
use codegen::{GpuTarget, roofline};
use ir::dim::Bindings;
use ir::graph::Function;
use ir::tensor::{Tensor, relative_error};
use ir::tile::{Op, Program, Stmt, interp};
use ir::types::DType;
use ir::tile::sequence::Sequence;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Arguments of `tune`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// What for; without it the device's architecture, or `sm_90a` where there is no device
    #[arg(long, value_parser = ["sm_80", "sm_90a", "sm_100a"])]
    target: Option<String>,
    /// What float parameters are stored in
    #[arg(long, default_value = "bf16", value_parser = ["f32", "bf16", "f16"])]
    dtype: String,
    /// Sizes: those of axes that stand in tiles whole, and those to time at; others are 64
    #[arg(long, value_name = "NAME=N")]
    dim: Vec<String>,
    /// Candidates per kernel, the most promising by the model first
    #[arg(long, default_value_t = 12)]
    candidates: usize,
    /// Timed launches of each candidate
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A candidate and what came of it.
struct Tried {
    schedule: Schedule,
    /// By the model.
    cost: f64,
    registers: Option<usize>,
    spilled: usize,
    /// Bytes of shared memory of a block.
    shared: usize,
    /// Error against the reference, or what went wrong.
    checked: Result<f64, String>,
    /// Median of a device, seconds.
    seconds: Option<f64>,
}

/// What is compared with the reference at small sizes.
fn bound(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 5e-3,
        DType::F16 => 6e-4,
        _ => 2e-5,
    }
}

/// Runs it.
///
/// # Errors
/// What is wrong with the program, a kernel that no candidate computes right, or a device that fails.
pub fn run(a: &Args) -> Result<(), String> {
    if a.candidates == 0 || a.runs == 0 {
        return Err("tune: --candidates and --runs must be at least 1".into());
    }
    let f = a.source.load()?;
    let dtype = DType::parse(&a.dtype).unwrap_or(DType::BF16);
    let given = dims_of(&[&f], &a.dim)?;
    let sequence = machine::sequence(&f, &machine::gpu(&given, dtype))?;
    let device = Device::find(a.target.as_deref())?;
    let assembler = Assembler::find();
    let sizes = small(&f, &sequence, &given);
    let mut kernels = vec![];
    for (n, p) in sequence.programs.iter().enumerate() {
        let tried = candidates(p, &device.target, assembler.as_ref(), &sizes, a.candidates)?;
        let mut tried = tried.into_iter().map(|t| check(&f, &sequence, n, t, &device, dtype, &sizes)).collect::<Result<Vec<_>, _>>()?;
        if tried.iter().all(|t| t.checked.is_err()) {
            let why: Vec<String> = tried.iter().filter_map(|t| t.checked.as_ref().err().map(|e| format!("  {:?}: {e}", t.schedule))).collect();
            return Err(format!("tune: no candidate of {} is right\n{}", p.name, why.join("\n")));
        }
        device.time(p, &mut tried, &timed(p, &given), a.runs)?;
        let best = choose(p, &device.target, &tried)?;
        let kept = keep(p, &device, &tried[best])?;
        if !a.json {
            print(p, &device, &tried, best, &kept);
        }
        kernels.push(json!({
            "kernel": &*p.name, "chosen": tried[best].schedule, "kept": kept.display().to_string(),
            "candidates": tried.iter().map(row).collect::<Vec<_>>(),
        }));
    }
    if a.json {
        println!("{}", json!({"device": device.name, "target": device.target.name, "function": &*f.name, "kernels": kernels}));
    }
    Ok(())
}

/// Sizes to check at: what the kernels have as numbers stays; batches and heads are 2, other axes odd and longer than most tiles.
fn small(f: &Function, sequence: &Sequence, given: &Bindings) -> Bindings {
    let free: std::collections::BTreeSet<_> = sequence.programs.iter().flat_map(Program::dims).collect();
    let walked = |n: &ir::dim::Name| sequence.programs.iter().any(|p| p.axes.iter().any(|x| !matches!(x.role, ir::tile::Role::Grid) && x.size.symbols().contains(n)));
    let mut odd = [133, 97, 75].into_iter().cycle();
    crate::input::dim_names(f).into_iter().map(|n| {
        let size = match given.get(&n) {
            Some(k) if !free.contains(&n) => *k,
            _ if walked(&n) => odd.next().unwrap_or(97),
            _ => 2,
        };
        (n, size)
    }).collect()
}

/// The sizes to time at.
fn timed(p: &Program, given: &Bindings) -> Bindings {
    p.dims().into_iter().map(|n| (n.clone(), given.get(&n).copied().unwrap_or(64))).collect()
}

/// The most promising schedules, by warpgroups and by warps in turn, with what the assembler makes of them. `dims` are what is checked: a kernel that takes
/// divisors for granted is one only if these have them.
fn candidates(p: &Program, target: &GpuTarget, assembler: Option<&Assembler>, dims: &Bindings, most: usize) -> Result<Vec<Tried>, String> {
    let groups = nvptx::schedules_by_warpgroups(p, target, dims).map_err(|e| e.to_string())?;
    let warps = nvptx::schedules(p, target).map_err(|e| e.to_string())?;
    let half = if groups.is_empty() { 0 } else { most.div_ceil(2) };
    // Of the best by warpgroups, also what the model says nothing of, where there is such a form.
    let varied: Vec<(Schedule, f64)> = groups.first().map_or(vec![], |(s, cost)| {
        let all = [Schedule { multicast: !s.multicast, ..s.clone() }, Schedule { persistent: !s.persistent, ..s.clone() }, Schedule { turns: !s.turns, ..s.clone() }, Schedule { lag: !s.lag, ..s.clone() }, Schedule { polynomial: 2, ..s.clone() }];
        all.into_iter().filter(|s| nvptx::registers(p, target, s).is_ok()).map(|s| (s, *cost)).take(half.saturating_sub(1)).collect()
    });
    let plain = half - varied.len();
    let chosen: Vec<(Schedule, f64)> = groups.into_iter().take(plain).chain(varied).collect();
    let chosen: Vec<(Schedule, f64)> = chosen.iter().cloned().chain(warps.into_iter().take(most - chosen.len())).collect();
    let mut out = vec![];
    for (schedule, cost) in chosen {
        let k = nvptx::compile(p, target, &schedule).map_err(|e| e.to_string())?;
        let made = assembler.map(|a| a.assemble(&k.ptx, &target.name)).transpose()?;
        let spilled = made.as_ref().map_or(0, |m| m.spills[0] + m.spills[1]);
        out.push(Tried { schedule, cost, registers: made.map(|m| m.registers), spilled, shared: k.signature.shared_bytes, checked: Err("not checked".into()), seconds: None });
    }
    Ok(out)
}

/// Runs kernel `n` by the candidate's schedule and all others on the interpreter, and compares the function's results.
fn check(f: &Function, sequence: &Sequence, n: usize, mut t: Tried, device: &Device, dtype: DType, dims: &Bindings) -> Result<Tried, String> {
    let mut random = Random(3);
    let inputs = f.params.iter().map(|p| {
        let x = random.draw(f, p.var, dims)?;
        Ok(if f.ty(p.var).dtype.is_float() { x.convert(dtype) } else { x })
    }).collect::<Result<Vec<Tensor>, String>>()?;
    let want = ir::reference::evaluate(f, &inputs, dims).map_err(|e| e.to_string())?;
    let chosen = &sequence.programs[n];
    let k = nvptx::compile(chosen, &device.target, &t.schedule).map_err(|e| e.to_string())?;
    let got = sequence.run(&inputs, dims, &mut |p, d, x| if std::ptr::eq(p, chosen) { device.run(&k, d, x) } else { interp::run(p, d, x) });
    t.checked = got.map_err(|e| e.to_string()).and_then(|got| {
        let worst = got.iter().zip(&want).map(|(g, w)| relative_error(g, w)).fold(0.0, |a, e| if e <= a { a } else { e });
        if worst <= bound(dtype) { Ok(worst) } else { Err(format!("results are off by {worst:.1e}")) }
    });
    Ok(t)
}

/// The index of the best: the fastest that was timed, else the static choice.
fn choose(p: &Program, target: &GpuTarget, tried: &[Tried]) -> Result<usize, String> {
    let right = || tried.iter().enumerate().filter(|(_, t)| t.checked.is_ok());
    if let Some((i, _)) = right().filter(|(_, t)| t.seconds.is_some()).min_by(|a, b| a.1.seconds.unwrap_or(f64::MAX).total_cmp(&b.1.seconds.unwrap_or(f64::MAX))) {
        return Ok(i);
    }
    let area = |s: &Schedule| s.rows * s.stream.max(s.cols);
    let Some(clean) = right().map(|(_, t)| t.spilled).min() else { return Err(format!("{}: no candidate is right", p.name)) };
    // Warpgroups where there are any that keep their registers: the two models do not compare.
    let groups = right().any(|(_, t)| t.spilled == clean && t.schedule.warpgroups);
    let right = || right().filter(|(_, t)| t.schedule.warpgroups == groups);
    // Of a model, a twentieth is no difference.
    let least = right().filter(|(_, t)| t.spilled == clean).map(|(_, t)| t.cost).fold(f64::MAX, f64::min);
    let floor = nvptx::default_by_warps(&unmasked(p), target).map_or(0, |s| if groups { 0 } else { area(&s) / 2 });
    let fits = |t: &Tried| t.spilled == clean && area(&t.schedule) >= floor;
    let near = |t: &Tried| t.cost <= least * 1.05;
    let best = |pool: &dyn Fn(&Tried) -> bool| right().filter(|(_, t)| pool(t)).max_by(|a, b| area(&a.1.schedule).cmp(&area(&b.1.schedule)).then(b.1.cost.total_cmp(&a.1.cost)).then(b.0.cmp(&a.0))).map(|(i, _)| i);
    best(&|t| fits(t) && near(t)).or_else(|| best(&fits)).or_else(|| best(&|t| t.spilled == clean)).ok_or_else(|| format!("{}: no candidate is right", p.name))
}

/// The program without what is masked: every tile is whole, every tile is visited.
fn unmasked(p: &Program) -> Program {
    fn walk(body: &mut [Stmt]) {
        for s in body {
            match s {
                Stmt::Let(_, Op::Fill { keep, .. }) => keep.clear(),
                Stmt::For(l) => {
                    l.within.clear();
                    walk(&mut l.body);
                }
                _ => {}
            }
        }
    }
    let mut p = p.clone();
    walk(&mut p.body);
    p
}

/// Where candidates run: a CUDA device, or the PTX machine.
struct Device {
    name: String,
    target: GpuTarget,
    #[cfg(feature = "cuda")]
    gpu: Option<runtime::cuda::Gpu>,
}

impl Device {
    fn find(target: Option<&str>) -> Result<Device, String> {
        let named = |n: &str| GpuTarget::named(n).map_err(|e| e.to_string());
        #[cfg(feature = "cuda")]
        if let Ok((name, here)) = machine::cuda_target()
            && target.is_none_or(|t| t == here.name)
        {
            let gpu = runtime::cuda::Gpu::new(0).map_err(|e| e.to_string())?;
            return Ok(Device { name, target: here, gpu: Some(gpu) });
        }
        Ok(Device {
            name: STATIC.into(),
            target: named(target.unwrap_or("sm_90a"))?,
            #[cfg(feature = "cuda")]
            gpu: None,
        })
    }
    fn run(&self, k: &nvptx::Compiled, dims: &Bindings, x: &[Tensor]) -> Result<Vec<Tensor>, ir::diagnostic::Error> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &self.gpu {
            return machine::on_cuda(gpu, k, dims, x);
        }
        machine::in_sim(k, dims, x)
    }
    /// Times what is right, on a device.
    #[cfg(feature = "cuda")]
    fn time(&self, p: &Program, tried: &mut [Tried], dims: &Bindings, runs: usize) -> Result<(), String> {
        use runtime::cuda::{Kernel, Memory};
        let Some(gpu) = &self.gpu else { return Ok(()) };
        let mut random = Random(5);
        let mut memory = vec![];
        for b in &p.buffers {
            let shape = b.sizes(dims).map_err(|e| e.to_string())?;
            let x = random.tensor(b.dtype, &shape)?;
            memory.push(Memory::new(gpu, &x.convert(b.dtype).to_bytes()).map_err(|e| e.to_string())?);
        }
        let buffers: Vec<&Memory> = memory.iter().collect();
        for t in tried.iter_mut().filter(|t| t.checked.is_ok()) {
            let one = || -> Result<f64, ir::diagnostic::Error> {
                let k = nvptx::compile(p, &self.target, &t.schedule).map_err(|e| ir::diagnostic::Error::new(e.to_string()))?;
                let kernel = Kernel::load(gpu, k.ptx.as_bytes(), &k.signature)?;
                for _ in 0..3 {
                    kernel.launch(&buffers, dims)?;
                }
                let mut times = (0..runs).map(|_| gpu.time(|| kernel.launch(&buffers, dims))).collect::<Result<Vec<f64>, _>>()?;
                times.sort_by(f64::total_cmp);
                Ok(times[times.len() / 2])
            };
            t.seconds = Some(one().map_err(|e| e.to_string())?);
        }
        Ok(())
    }
    #[cfg(not(feature = "cuda"))]
    fn time(&self, _: &Program, _: &mut [Tried], _: &Bindings, _: usize) -> Result<(), String> {
        Ok(())
    }
}

/// What stands in a device's place where there is none.
const STATIC: &str = "no device";

/// Where the choice for a kernel on a device is kept; none if there is no cache folder.
fn place(p: &Program, target: &GpuTarget, device: &str) -> Option<PathBuf> {
    let key = runtime::cache::key(p, &format!("{} {device} {}", target.name, codegen::BUILD));
    runtime::cache::Cache::from_env().folder().map(|f| f.join("tune").join(format!("{key}.json")))
}

fn keep(p: &Program, device: &Device, t: &Tried) -> Result<PathBuf, String> {
    let Some(path) = place(p, &device.target, &device.name) else { return Ok("nowhere: there is no cache folder".into()) };
    let failed = |e: std::io::Error| format!("cannot write {}: {e}", path.display());
    let text = json!({"device": device.name, "target": device.target.name, "kernel": &*p.name, "schedule": t.schedule, "seconds": t.seconds});
    std::fs::create_dir_all(path.parent().unwrap_or(&path)).map_err(failed)?;
    let part = path.with_extension(format!("part{}", std::process::id()));
    std::fs::write(&part, text.to_string()).and_then(|()| std::fs::rename(&part, &path)).map_err(failed)?;
    Ok(path)
}

/// `p` by the schedule that was kept for the device, else the one that was chosen without a device, else the default one. What was kept and does not
/// compile any more is not used.
///
/// # Errors
/// Those of compilation by the default schedule.
pub fn kept(p: &Program, target: &GpuTarget, device: &str, dims: &Bindings) -> Result<nvptx::Compiled, ir::diagnostic::Error> {
    // What was tuned is exact, unless that was asked for by the target's name.
    let mut found = [device, STATIC].into_iter().filter(|_| !target.tf32).filter_map(|d| {
        let text = std::fs::read(place(p, target, d)?).ok()?;
        let value: Value = serde_json::from_slice(&text).ok()?;
        nvptx::compile(p, target, &serde_json::from_value(value["schedule"].clone()).ok()?).ok().filter(|k| k.signature.allows(dims).is_ok())
    });
    match found.next() {
        Some(k) => Ok(k),
        None => nvptx::compile_at(p, target, dims, false).map_err(|e| ir::diagnostic::Error::new(e.to_string())),
    }
}

fn row(t: &Tried) -> Value {
    json!({
        "schedule": t.schedule, "model": t.cost, "registers": t.registers, "spill_bytes": t.spilled,
        "error": t.checked.as_ref().ok(), "wrong": t.checked.as_ref().err(), "seconds": t.seconds,
    })
}

fn print(p: &Program, device: &Device, tried: &[Tried], best: usize, kept: &std::path::Path) {
    println!("{} on {} ({}): {} candidates", p.name, device.name, device.target.name, tried.len());
    println!("  {:>12} {:>6} {:>7} {:>9} {:>8} {:>7} {:>9} {:>10} {:>10}", "rows x tile", "warps", "stages", "registers", "spilled", "blocks", "model", "error", "time");
    for (i, t) in tried.iter().enumerate() {
        let s = &t.schedule;
        let blocks = t.registers.map(|r| roofline::occupancy(&device.target, s.fragment.threads(), r, t.shared)).map_or("-".into(), |b| b.to_string());
        println!(
            "{} {:>12} {:>6} {:>7} {:>9} {:>8} {blocks:>7} {:>9.4} {:>10} {:>10}{}",
            if i == best { "*" } else { " " },
            format!("{} x {}", s.rows, s.stream.max(s.cols)),
            if s.warpgroups { format!("{}g", s.fragment.warps[0] / 4) } else { format!("{}x{}", s.fragment.warps[0], s.fragment.warps[1]) },
            s.stages,
            t.registers.map_or("-".into(), |r| r.to_string()),
            t.spilled,
            t.cost,
            t.checked.as_ref().map_or_else(|_| "WRONG".into(), |e| format!("{e:.1e}")),
            t.seconds.map_or("-".into(), |s| format!("{:.3} ms", s * 1e3)),
            s.flags(),
        );
    }
    for t in tried.iter().filter_map(|t| t.checked.as_ref().err()) {
        println!("  wrong: {t}");
    }
    println!("  kept in {}", kept.display());
}
