//! `devices`: what there is to run on. The CPU's peaks are measured, not read from a table.

use runtime::cpu::{Pool, copy_bandwidth, fma_peak};
use serde_json::{Value, json};

/// Arguments of `devices`.
#[derive(clap::Args)]
pub struct Args {
    /// Threads to measure with; without it PUSHFORWARD_THREADS, or all cores
    #[arg(long)]
    threads: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(a: &Args) -> Result<(), String> {
    let pool = a.threads.map_or_else(Pool::from_env, Pool::new);
    let target = codegen::Target::host().map_err(|e| e.to_string())?.name();
    let (peak, copy, model) = (fma_peak(&pool), copy_bandwidth(&pool), model());
    if !a.json {
        println!("cpu      {model}");
        println!("         {} threads; code for {target}", pool.threads());
        println!("         {:.1} GFLOP/s f32 multiply-adds, {:.1} GB/s copying (both measured now)", peak / 1e9, copy / 1e9);
    }
    let cuda = cuda(!a.json);
    if a.json {
        println!("{}", json!({"cpu": {"model": model, "threads": pool.threads(), "target": target, "fma_peak": peak, "copy_bandwidth": copy}, "cuda": cuda}));
    }
    Ok(())
}

/// As the system calls the processor.
fn model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|l| l.strip_prefix("model name")).and_then(|l| l.split_once(':'));
    name.map_or(std::env::consts::ARCH.into(), |(_, n)| n.trim().into())
}

#[cfg(feature = "cuda")]
fn cuda(print: bool) -> Value {
    let found = match runtime::cuda::devices() {
        Ok(f) => f,
        Err(why) => {
            if print {
                println!("cuda     {why}");
            }
            return json!({"devices": [], "reason": why});
        }
    };
    let mut list = vec![];
    if print && found.devices.is_empty() {
        println!("cuda     the driver is there (CUDA {}.{}), but no device", found.version.0, found.version.1);
    }
    for d in &found.devices {
        if print {
            println!("cuda:{}   {}, sm_{}{}, CUDA {}.{}", d.ordinal, d.name, d.compute.0, d.compute.1, found.version.0, found.version.1);
            println!("         {} multiprocessors at {:.2} GHz, {:.1} GiB, {} KiB shared a block, {} MiB of second-level cache", d.multiprocessors, d.clock / 1e9, d.memory as f64 / f64::from(1 << 30), d.shared / 1024, d.cache >> 20);
            if d.bandwidth > 0.0 {
                println!("         {:.0} GB/s of memory by its clock and width", d.bandwidth / 1e9);
            }
        }
        list.push(json!({
            "ordinal": d.ordinal, "name": d.name, "compute": [d.compute.0, d.compute.1], "multiprocessors": d.multiprocessors, "memory": d.memory,
            "shared": d.shared, "cache": d.cache, "clock": d.clock, "bandwidth": d.bandwidth,
        }));
    }
    json!({"version": [found.version.0, found.version.1], "devices": list})
}

#[cfg(not(feature = "cuda"))]
fn cuda(print: bool) -> Value {
    let why = "not built in: cargo build --release --features cuda";
    if print {
        println!("cuda     {why}");
    }
    json!({"devices": [], "reason": why})
}
