//! `pushforward-measure PACK [--out RESULTS.json] [--only TEXT] [--runs N]`: checks and times a pack (`pushforward gpu pack`) on this machine's GPU. Needs
//! the driver, and neither a compiler nor the toolkit.
//!
//! Every output is poisoned with NaN before a launch. A timed kernel is launched until it has warmed up, then `N` times; median and quartiles are
//! those of single launches between two events. Results are in their file after each case, `finished` saying whether all are there: a run that is cut off loses the case that it is at.

use runtime::cuda::{Gpu, Kernel, Memory, devices};
use runtime::pack::{Case, Pack};
use ir::diagnostic::Error;
use ir::dim::Name;
use ir::tensor::{Tensor, relative_error};
use ir::types::DType;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "usage: pushforward-measure PACK [--out RESULTS.json] [--only TEXT] [--runs N]";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let option = |n: &str| args.iter().position(|a| a == n).and_then(|i| args.get(i + 1)).cloned();
    let Some(folder) = args.first().filter(|a| !a.starts_with("--")) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let runs = option("--runs").and_then(|n| n.parse().ok()).unwrap_or(30);
    match measure(Path::new(folder), option("--out").as_deref(), &option("--only").unwrap_or_default(), runs) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(1)
        }
    }
}

fn measure(folder: &Path, out: Option<&str>, only: &str, runs: usize) -> Result<bool, Error> {
    let read = |name: &str| std::fs::read(folder.join(name)).map_err(|e| Error::new(format!("cannot read {}: {e}", folder.join(name).display())));
    let pack: Pack = serde_json::from_slice(&read("manifest.json")?).map_err(|e| Error::new(format!("manifest.json: {e}")))?;
    let found = devices().map_err(Error::new)?;
    let device = found.devices.first().ok_or_else(|| Error::new("no CUDA device"))?;
    println!("{} (sm_{}{}), driver for CUDA {}.{}; code for {}", device.name, device.compute.0, device.compute.1, found.version.0, found.version.1, pack.target);
    let gpu = Gpu::new(0)?;
    let (mut good, mut rows): (bool, Vec<Value>) = (true, vec![]);
    let write = |rows: &[Value], finished: bool| -> Result<(), Error> {
        let Some(path) = out else { return Ok(()) };
        let all = json!({"device": device.name, "target": pack.target, "toolkit": pack.toolkit, "generation": pack.generation, "finished": finished, "rows": rows});
        // Beside its place first: what is there is whole whenever the run ends.
        let beside = format!("{path}.part");
        let written = std::fs::write(&beside, serde_json::to_vec_pretty(&all).unwrap_or_default()).and_then(|()| std::fs::rename(&beside, path));
        written.map_err(|e| Error::new(format!("cannot write {path}: {e}")))
    };
    // A place that cannot be written is said before the first case, not behind the last.
    write(&rows, false)?;
    for case in pack.cases.iter().filter(|c| c.name.contains(only)) {
        let row = match one(&gpu, case, &read, runs) {
            Ok(row) => row,
            Err(e) => json!({"case": case.name, "good": false, "error": e.to_string()}),
        };
        good &= row["good"] == true;
        println!("{}", line(&row));
        rows.push(row);
        write(&rows, false)?;
    }
    write(&rows, true)?;
    let (exact, unlike) = rows.iter().filter_map(|r| r["elements_unlike_sim"].as_object()).fold((0, 0), |(n, bad), o| (n + 1, bad + usize::from(o.values().any(|k| *k != 0))));
    println!("{exact} cases without approximate instructions: {} have sim's bits, {unlike} others", exact - unlike);
    let bad = rows.iter().filter(|r| r["good"] != true).count();
    println!("{} good, {bad} bad, {} refused by the compiler", rows.len() - bad, pack.refused.len());
    Ok(good)
}

fn line(row: &Value) -> String {
    let name = row["case"].as_str().unwrap_or("?");
    if let Some(e) = row["error"].as_str() {
        return format!("BAD  {name}: {e}");
    }
    let mark = if row["good"] == true { "ok  " } else { "BAD " };
    let errors: Vec<String> = row["errors"].as_object().into_iter().flatten().map(|(n, e)| format!("{n} {:.1e}", e.as_f64().unwrap_or(f64::NAN))).collect();
    match row["seconds"].as_f64() {
        None => {
            let unlike: Vec<String> = row["elements_unlike_sim"].as_object().into_iter().flatten().map(|(n, k)| if *k == 0 { format!("{n} as sim, bit for bit") } else { format!("{n} UNLIKE sim in {k} elements") }).collect();
            format!("{mark} {name}: {}", [errors, unlike].concat().join(", "))
        }
        Some(s) => format!(
            "{mark} {name}: {:.3} ms ({:.3} to {:.3}), {:.1} TFLOP/s, {:.2} TB/s",
            s * 1e3, row["quartiles"][0].as_f64().unwrap_or(0.0) * 1e3, row["quartiles"][1].as_f64().unwrap_or(0.0) * 1e3, row["tflops"].as_f64().unwrap_or(0.0), row["bytes"].as_f64().unwrap_or(0.0) / s / 1e12
        ),
    }
}

fn one(gpu: &Gpu, case: &Case, read: &dyn Fn(&str) -> Result<Vec<u8>, Error>, runs: usize) -> Result<Value, Error> {
    let mut memory: BTreeMap<Name, (Memory, DType)> = BTreeMap::new();
    for x in &case.inputs {
        memory.insert(x.name.clone(), (Memory::new(gpu, &x.drawn.tensor(x.dtype, &x.shape)?.to_bytes())?, x.dtype));
    }
    let mut kernels = vec![];
    for k in &case.kernels {
        for b in &k.signature.buffers {
            if !memory.contains_key(&b.name) {
                let n = b.shape.iter().try_fold(1, |n, d| Ok(n * d.eval(&case.dims)?.max(0))).map_err(|e: ir::dim::DimError| Error::new(e.to_string()))?;
                memory.insert(b.name.clone(), (Memory::filled(gpu, n as usize * b.dtype.bytes(), 0xff)?, b.dtype));
            }
        }
        // The assembled form where it fits this device; else the driver compiles the text.
        let assembled = k.cubin.as_ref().and_then(|c| Kernel::load(gpu, &read(c).ok()?, &k.signature).ok());
        kernels.push(match assembled {
            Some(k) => k,
            None => Kernel::load(gpu, &read(&k.ptx)?, &k.signature)?,
        });
    }
    let launch = || -> Result<(), Error> {
        for (k, c) in kernels.iter().zip(&case.kernels) {
            let buffers: Vec<&Memory> = c.signature.buffers.iter().map(|b| &memory[&b.name].0).collect();
            k.launch(&buffers, &case.dims)?;
        }
        Ok(())
    };
    launch()?;
    gpu.wait()?;
    let tensor = |name: &Name, shape: &[usize]| -> Result<Tensor, Error> {
        let (m, d) = &memory[name];
        Tensor::from_bytes(*d, shape, &m.read()?)
    };
    let mut good = true;
    let (mut errors, mut bits) = (serde_json::Map::new(), serde_json::Map::new());
    for x in &case.expected {
        let want = Tensor::from_bytes(DType::F32, &x.shape, &read(&x.file)?)?;
        let e = relative_error(&tensor(&x.name, &x.shape)?, &want);
        good &= e <= x.bound;
        errors.insert(x.name.to_string(), json!(e));
        if let Some(f) = &x.exact {
            let (m, d) = &memory[&x.name];
            let other = m.read()?.chunks(d.bytes()).zip(read(f)?.chunks(d.bytes())).filter(|(a, b)| a != b).count();
            bits.insert(x.name.to_string(), json!(other));
        }
    }
    let mut row = json!({"case": case.name, "good": good, "errors": errors});
    if !bits.is_empty() {
        row["elements_unlike_sim"] = json!(bits);
    }
    if let Some(flops) = case.flops {
        // Every output must have been written: no poison is left, and random inputs give finite results.
        for b in case.kernels.iter().flat_map(|k| &k.signature.buffers).filter(|b| b.access == ir::tile::Access::Output) {
            let n = memory[&b.name].0.read()?.len() / b.dtype.bytes();
            good &= tensor(&b.name, &[n])?.to_f64().iter().all(|x| x.is_finite());
        }
        let once = gpu.time(launch)?;
        for _ in 0..((0.2 / once.max(1e-6)) as usize).clamp(3, 200) {
            launch()?;
        }
        let mut times = (0..runs).map(|_| gpu.time(launch)).collect::<Result<Vec<f64>, _>>()?;
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        row["good"] = json!(good);
        row["seconds"] = json!(median);
        row["quartiles"] = json!([times[times.len() / 4], times[times.len() * 3 / 4]]);
        row["tflops"] = json!(flops / median / 1e12);
        row["bytes"] = json!(case.bytes);
    }
    Ok(row)
}
