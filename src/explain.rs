//! `explain`: which tangents are active, what was fused, what was refused and why, and what each kernel costs; for a GPU, which unit of a multiprocessor
//! bounds it.

use codegen::assembler::Assembler;
use codegen::{GpuTarget, nvptx, roofline};
use ir::tile::Program;
use ir::tile::cost::{Cost, cost};
use ir::types::DType;
use passes::fuse::Fused;
use runtime::plan::Plan;
use pushforward::input::{Loaded, Source, dims, dims_of};
use serde_json::json;

/// Arguments of `explain`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// What float parameters are stored in
    #[arg(long, default_value = "f32", value_parser = ["f64", "f32", "bf16", "f16"])]
    dtype: String,
    /// Sizes; without them a kernel's cost is not known
    #[arg(long, value_name = "NAME=N")]
    dim: Vec<String>,
    /// Also the roofline on a GPU: `sm_80`, `sm_90a`, `sm_100a`, with `+tf32` for products of f32 in tf32; needs an assembler (`./dev ptxas`) for more than the schedule
    #[arg(long, value_name = "ARCH")]
    target: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(a: &Args) -> Result<(), String> {
    let (name, active, dims, fused, plan) = match a.source.load_any()? {
        Loaded::Programs(programs) => (programs.iter().map(|p| &*p.name).collect::<Vec<_>>().join("+"), vec![], dims(&a.dim)?, Fused { programs, notes: vec![] }, None),
        Loaded::Function(f) => {
            let dims = dims_of(&[&f], &a.dim)?;
            let dtype = DType::parse(&a.dtype).unwrap_or(DType::F32);
            let options = if a.target.is_some() { pushforward::machine::gpu(&dims, dtype) } else { passes::fuse::Options::cpu(&dims, dtype) };
            let s = pushforward::machine::sequence(&f, &options)?;
            // Without all sizes there is no plan.
            let plan = Plan::new(&s, &dims).ok();
            let fused = Fused { programs: s.programs, notes: s.notes };
            let active: Vec<String> = f.params.iter().filter(|p| p.name.contains(".t")).map(|p| p.name.to_string()).collect();
            (f.name.to_string(), active, dims, fused, plan)
        }
    };
    let mut kernels = vec![];
    for p in &fused.programs {
        let carried: Vec<usize> = p.body.iter().filter_map(|s| if let ir::tile::Stmt::For(l) = s { Some(l.carries.len()) } else { None }).collect();
        kernels.push((p, carried, cost(p, &dims).ok()));
    }
    let target = a.target.as_deref().map(GpuTarget::named).transpose().map_err(|e| e.to_string())?;
    let mut roofs = vec![];
    for (p, _, c) in &kernels {
        roofs.push(target.as_ref().map(|t| roof(p, t, c.as_ref())).transpose()?);
    }
    if a.json {
        let list: Vec<_> = kernels.iter().zip(&roofs).map(|((p, carried, c), roof)| {
            json!({"gpu": roof.as_ref().map(|r| &r.0), "name": &*p.name, "carried": carried, "flops": c.as_ref().map(|c| c.flops), "special": c.as_ref().map(|c| c.special), "bytes": c.as_ref().map(|c| c.bytes())})
        }).collect();
        let plan = plan.map(|p| json!({"launches": p.launches.len(), "arena_bytes": p.arena, "live_bytes": p.bound, "param_bytes": p.param_bytes(), "result_bytes": p.result_bytes(), "peak_bytes": p.peak_bytes()}));
        println!("{}", json!({"function": name, "tangents": active, "kernels": list, "notes": fused.notes, "plan": plan}));
        return Ok(());
    }
    println!("{}: {} kernel{}", name, fused.programs.len(), if fused.programs.len() == 1 { "" } else { "s" });
    if let Some(p) = &plan {
        let mib = |n: usize| n as f64 / f64::from(1 << 20);
        println!("  {} launches; {:.2} MiB of parameters, {:.2} MiB of results, {:.2} MiB between them ({:.2} MiB live at once): {:.2} MiB in all", p.launches.len(), mib(p.param_bytes()), mib(p.result_bytes()), mib(p.arena), mib(p.bound), mib(p.peak_bytes()));
    }
    println!("  tangents: {}", if active.is_empty() { "none".into() } else { active.join(", ") });
    for ((p, carried, c), roof) in kernels.iter().zip(&roofs) {
        println!("  {}: {}", p.name, match carried.as_slice() {
            [] => "no loop; rows stand in the tile".into(),
            [n] => format!("one pass, {n} accumulators"),
            many => format!("{} passes, accumulators {}", many.len(), many.iter().map(usize::to_string).collect::<Vec<_>>().join(" + ")),
        });
        if let Some(c) = c {
            println!("    {:.4e} flops, {:.3e} special functions, {:.4e} bytes, {:.1} flops a byte", c.flops as f64, c.special as f64, c.bytes() as f64, c.flops as f64 / c.bytes().max(1) as f64);
        }
        for line in roof.iter().flat_map(|r| &r.1) {
            println!("    {line}");
        }
    }
    for n in &fused.notes {
        println!("  {n}");
    }
    Ok(())
}

/// A kernel on a GPU, from its machine code: for programs, and for people.
fn roof(p: &Program, t: &GpuTarget, cost: Option<&Cost>) -> Result<(serde_json::Value, Vec<String>), String> {
    let schedule = match nvptx::default_schedule(p, t) {
        Ok(s) => s,
        Err(e) => return Ok((json!({"refused": e.to_string()}), vec![format!("{}: {e}", t.name)])),
    };
    let k = nvptx::compile(p, t, &schedule).map_err(|e| e.to_string())?;
    let (threads, shared) = (k.signature.block, k.signature.shared_bytes);
    let tiles = format!("{} rows, {} columns, {} streamed, {} stages{}", schedule.rows, schedule.cols, schedule.stream, schedule.stages, schedule.flags());
    let Some(assembler) = Assembler::find() else {
        let line = format!("{}: {tiles}; {threads} threads, {shared} bytes of shared memory; no ptxas, so nothing is known of its code (`./dev ptxas`)", t.name);
        return Ok((json!({"target": t.name, "threads": threads, "shared_bytes": shared}), vec![line]));
    };
    let made = assembler.assemble(&k.ptx, &t.name)?;
    let blocks = roofline::occupancy(t, threads, made.registers, shared);
    let warps = threads / 32;
    // A warpgroup that only copies has no part in the loop that counts.
    let working = if schedule.warpgroups { warps - 4 } else { warps };
    let mut lines = vec![format!(
        "{}: {tiles}; {threads} threads, {} registers, {} bytes spilled, {shared} bytes of shared memory: {blocks} block{} and {} warps on a multiprocessor",
        t.name, made.registers, made.spills[0] + made.spills[1], if blocks == 1 { "" } else { "s" }, blocks * warps
    )];
    let mut out = json!({
        "target": t.name, "threads": threads, "registers": made.registers, "spill_bytes": made.spills, "shared_bytes": shared, "blocks": blocks,
        "schedule": {"rows": schedule.rows, "cols": schedule.cols, "stream": schedule.stream, "stages": schedule.stages},
    });
    let (whole, main) = match assembler.disassemble(&made.cubin) {
        Ok(sass) => roofline::counts(&sass),
        Err(e) => {
            lines.push(format!("no instructions are counted: {e}"));
            return Ok((out, lines));
        }
    };
    let c = main.unwrap_or(whole);
    lines.push(format!(
        "{}, per warp: {} instructions: {} HMMA, {} HGMMA, {} LDSM, {} LDGSTS, {} MUFU, {} FP32 ({} FFMA), {} LDG and STG, {} LDL and STL",
        if main.is_some() { "main loop" } else { "no loop; all" }, c.all, c.hmma + c.hmma8, c.hgmma, c.ldsm, c.ldgsts, c.mufu, c.fp32, c.ffma, c.global, c.local
    ));
    let clocks = roofline::clocks(t, &c, working);
    let r = roofline::rates(t);
    // Of what the loop's busiest unit takes, and of what memory takes, the longer.
    let most = clocks[0].1.max(1e-9);
    let speed = roofline::flops(&c, working) / most * r.multiprocessors * r.clock;
    let busy: Vec<String> = clocks.iter().map(|(u, n)| format!("{u} {:.0} %", 100.0 * n / most)).collect();
    out["counts"] = json!({"all": c.all, "hmma": c.hmma + c.hmma8, "hgmma": c.hgmma, "ldsm": c.ldsm, "ldgsts": c.ldgsts, "mufu": c.mufu, "fp32": c.fp32, "ffma": c.ffma, "global": c.global, "local": c.local});
    out["clocks"] = json!(clocks.iter().map(|(u, n)| (u.to_string(), *n)).collect::<std::collections::BTreeMap<_, _>>());
    let mut binds = clocks[0].0;
    match cost {
        Some(x) => {
            let memory = x.bytes() as f64 / r.memory;
            let compute = if speed > 0.0 && main.is_some() { x.flops as f64 / speed } else { 0.0 };
            if memory >= compute {
                binds = "memory";
            }
            lines.push(format!("{binds} binds: at least {:.3} ms by the loop's busiest unit, {:.3} ms by memory; in the loop: {}", compute * 1e3, memory * 1e3, busy.join(", ")));
            out["seconds"] = json!({"compute": compute, "memory": memory});
        }
        None => {
            if main.is_none() {
                binds = "memory";
            }
            lines.push(format!("{binds} binds in the loop, of what it asks of a multiprocessor: {}; at most {:.0} TFLOP/s; with sizes (--dim) memory is compared too", busy.join(", "), speed / 1e12));
            out["tflops"] = json!(speed / 1e12);
        }
    }
    out["binds"] = json!(binds);
    Ok((out, lines))
}
