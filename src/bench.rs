//! `bench`: time, flops and bytes of a program on this CPU, with its share of what the machine can do; or on a CUDA device.

use indicatif::{ProgressBar, ProgressStyle};
use ir::dim::Bindings;
use ir::graph::Function;
use ir::tensor::Tensor;
use ir::tile::cost::cost;
use ir::types::DType;
use pushforward::input::{Random, Source, dim_names, dims_of};
use pushforward::machine;
use runtime::cache::Cache;
use runtime::cpu::{Pool, copy_bandwidth, fma_peak};
use runtime::memory;
use serde_json::json;
use std::time::Instant;

/// Arguments of `bench`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// Sizes
    #[arg(long, value_name = "NAME=N")]
    dim: Vec<String>,
    /// The machine
    #[arg(long, default_value = "cpu", value_parser = ["cpu", "cuda"])]
    on: String,
    /// What float parameters are stored in
    #[arg(long, default_value = "f32", value_parser = ["f64", "f32", "bf16", "f16"])]
    dtype: String,
    /// Runs that are timed
    #[arg(long, default_value_t = 9)]
    runs: usize,
    /// Threads; without it PUSHFORWARD_THREADS, or all cores
    #[arg(long)]
    threads: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// On the first CUDA device: a run is one graph of all launches, with parameters and results in its memory.
#[cfg(feature = "cuda")]
fn on_cuda(a: &Args, f: &Function, bindings: &Bindings, dtype: DType, start: Instant) -> Result<(), String> {
    let device = runtime::cuda::first()?;
    let ready = machine::OnCuda::new(f, bindings, dtype, false, runtime::libraries::Libraries::Measured)?;
    let generation = start.elapsed().as_secs_f64();
    let mut random = Random(1);
    let inputs = f.params.iter().map(|p| random.draw(f, p.var, bindings)).collect::<Result<Vec<_>, _>>()?;
    ready.set(&inputs)?;
    let run = || -> Result<f64, String> {
        let start = Instant::now();
        ready.execution.run().map_err(|e| e.to_string())?;
        Ok(start.elapsed().as_secs_f64())
    };
    // The first records the graph, some more bring the clock up.
    (0..4).try_for_each(|_| run().map(drop))?;
    let mut times = (0..a.runs).map(|_| run()).collect::<Result<Vec<_>, _>>()?;
    times.sort_by(f64::total_cmp);
    let (median, low, high) = (times[times.len() / 2], times[times.len() / 4], times[times.len() * 3 / 4]);
    let costs = ready.sequence.programs.iter().map(|p| cost(p, bindings).map_err(|e| e.to_string())).collect::<Result<Vec<_>, _>>()?;
    let (flops, bytes) = ready.sequence.launches.iter().map(|l| &costs[l.program]).fold((0.0, 0.0), |(f, b), c| (f + c.flops as f64, b + c.bytes() as f64));
    if a.json {
        let by: Vec<_> = ready.by.iter().map(|(kernel, by)| json!({"kernel": kernel, "by": by})).collect();
        println!("{}", json!({"function": &*f.name, "device": device.name, "kernels": by, "seconds": median, "best": times[0], "quartiles": [low, high], "runs": a.runs, "flops": flops, "bytes": bytes, "generation_seconds": generation}));
        return Ok(());
    }
    println!("{} on {}: {} kernels in {} launches, {dtype}", f.name, device.name, ready.by.len(), ready.sequence.launches.len());
    println!("  time        {:.3} ms median of {}, quartiles {:.3} to {:.3}, best {:.3}; launching included", median * 1e3, a.runs, low * 1e3, high * 1e3, times[0] * 1e3);
    println!("  arithmetic  {flops:.4e} flops: {:.1} TFLOP/s", flops / median / 1e12);
    println!("  memory      {bytes:.4e} bytes: {:.2} TB/s", bytes / median / 1e12);
    println!("  generation  {:.1} ms from text to loaded kernels", generation * 1e3);
    ready.by.iter().filter(|(_, by)| by != "generated").for_each(|(kernel, by)| println!("  {kernel}: {by}"));
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn on_cuda(_: &Args, _: &Function, _: &Bindings, _: DType, _: Instant) -> Result<(), String> {
    Err("bench: built without the feature `cuda`".into())
}

/// Runs it.
pub fn run(a: &Args) -> Result<(), String> {
    if a.runs == 0 {
        return Err("bench: --runs must be at least 1".into());
    }
    // From text to a loaded object, nothing from the cache.
    let start = Instant::now();
    let f = a.source.load()?;
    let mut bindings = dims_of(&[&f], &a.dim)?;
    for d in dim_names(&f) {
        bindings.entry(d).or_insert(64);
    }
    let dtype = DType::parse(&a.dtype).unwrap_or(DType::F32);
    if a.on == "cuda" {
        return on_cuda(a, &f, &bindings, dtype, start);
    }
    let compiled = machine::cpu(&f, &bindings, dtype, &Cache::new(None))?;
    let generation = start.elapsed().as_secs_f64();

    let pool = a.threads.map_or_else(Pool::from_env, Pool::new);
    let mut random = Random(1);
    let execution = compiled.execution(&bindings, pool.threads())?;
    let mut params = vec![];
    for p in &f.params {
        let ty = f.ty(p.var);
        let t = random.draw(&f, p.var, &bindings)?;
        params.push(if ty.dtype.is_float() { t.convert(dtype) } else { t });
    }
    let params: Vec<&Tensor> = params.iter().collect();
    let mut results = execution.results().map_err(|e| e.to_string())?;
    let mut results: Vec<&mut Tensor> = results.iter_mut().collect();
    memory::reset_peak();
    let before = memory::resident();
    let bar = ProgressBar::new(a.runs as u64 + 1).with_style(ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {eta}").unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(f.name.to_string());
    let mut times = vec![];
    for i in 0..=a.runs {
        let start = Instant::now();
        execution.run_into(&pool, &params, &mut results).map_err(|e| e.to_string())?;
        // The first touches memory for the first time.
        if i > 0 {
            times.push(start.elapsed().as_secs_f64());
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let extra = memory::peak().zip(before).map(|(p, b)| p.saturating_sub(b));
    times.sort_by(f64::total_cmp);
    let (median, best) = (times[times.len() / 2], times[0]);
    let (low, high) = (times[times.len() / 4], times[times.len() * 3 / 4]);
    let mut total = (0f64, 0f64, 0f64);
    let costs = compiled.sequence.programs.iter().map(|p| cost(p, &bindings).map_err(|e| e.to_string())).collect::<Result<Vec<_>, _>>()?;
    for c in compiled.sequence.launches.iter().map(|l| &costs[l.program]) {
        total = (total.0 + c.flops as f64, total.1 + c.special as f64, total.2 + c.bytes() as f64);
    }
    let (flops, special, bytes) = total;
    let (peak, copy) = (fma_peak(&pool), copy_bandwidth(&pool));
    if a.json {
        println!("{}", json!({
            "function": &*f.name, "threads": pool.threads(), "kernels": compiled.kernels.len(), "seconds": median, "best": best, "quartiles": [low, high], "runs": a.runs,
            "flops": flops, "special": special, "bytes": bytes, "fma_peak": peak, "copy_bandwidth": copy, "generation_seconds": generation, "peak_extra_bytes": extra,
        }));
        return Ok(());
    }
    let launches = match execution.plan().launches.len() {
        n if n == compiled.kernels.len() => String::new(),
        n => format!(" in {n} launches"),
    };
    println!("{}: {} kernel{}{launches}, {} threads", f.name, compiled.kernels.len(), if compiled.kernels.len() == 1 { "" } else { "s" }, pool.threads());
    println!("  time        {:.3} ms median of {}, quartiles {:.3} to {:.3}, best {:.3}", median * 1e3, a.runs, low * 1e3, high * 1e3, best * 1e3);
    println!("  arithmetic  {flops:.4e} flops, {special:.3e} special functions: {:.1} GFLOP/s, {:.0} % of {:.1} (fused multiply-adds, measured)", flops / median / 1e9, 100.0 * flops / median / peak, peak / 1e9);
    println!("  memory      {bytes:.4e} bytes: {:.2} GB/s, {:.0} % of {:.2} (copy, measured)", bytes / median / 1e9, 100.0 * bytes / median / copy, copy / 1e9);
    if let Some(x) = extra {
        println!("  peak        {:.1} MiB beyond inputs and outputs", x as f64 / f64::from(1 << 20));
    }
    println!("  generation  {:.1} ms from text to loaded object, cold", generation * 1e3);
    Ok(())
}
