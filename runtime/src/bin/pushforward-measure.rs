//! `pushforward-measure PACK [--out RESULTS.json] [--only TEXT] [--runs N] [--seconds N] [--resume]`: checks and times a pack (`pushforward gpu pack`) on this machine's GPU. Needs
//! the driver, and neither a compiler nor the toolkit.
//!
//! Every output is poisoned with NaN before a launch. A timed kernel is launched until it has warmed up, then `N` times; median and quartiles are
//! those of single launches between two events. Results are in their file after each case, `finished` saying whether all are there: a run that is cut off loses the case that it is at.
//! Cases stand in the pack by their weight, the ones that say most first; `--seconds` begins no case behind that time, and `--resume` goes on behind the cases that RESULTS.json has.

use runtime::cuda::{Gpu, Kernel, Memory, devices};
use runtime::pack::{Case, Pack};
use ir::diagnostic::Error;
use ir::dim::Name;
use ir::tensor::{Tensor, relative_error};
use ir::types::DType;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

const USAGE: &str = "usage: pushforward-measure PACK [--out RESULTS.json] [--only TEXT] [--runs N] [--seconds N] [--resume]";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let option = |n: &str| args.iter().position(|a| a == n).and_then(|i| args.get(i + 1)).cloned();
    let Some(folder) = args.first().filter(|a| !a.starts_with("--")) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let number = |name: &str, default: f64| match option(name) {
        None => Ok(default),
        Some(text) => text.parse::<f64>().ok().filter(|n| *n > 0.0).ok_or_else(|| Error::new(format!("{name}: `{text}` is no number above 0\n{USAGE}"))),
    };
    let asked = || -> Result<Asked, Error> {
        Ok(Asked { out: option("--out"), only: option("--only").unwrap_or_default(), runs: number("--runs", 30.0)? as usize, seconds: number("--seconds", f64::MAX)?, resume: args.iter().any(|a| a == "--resume") })
    };
    match asked().and_then(|a| measure(Path::new(folder), &a)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(1)
        }
    }
}

/// What was asked for.
struct Asked {
    out: Option<String>,
    only: String,
    runs: usize,
    seconds: f64,
    resume: bool,
}

/// Rows of an earlier run of the same pack on the same device that were good; none without one.
fn earlier(a: &Asked, device: &str, pack: &Pack) -> Result<Vec<Value>, Error> {
    let Some(path) = a.out.as_ref().filter(|p| a.resume && Path::new(p).exists()) else { return Ok(vec![]) };
    let bad = |why: &str| Error::new(format!("--resume: {path} {why}; give another --out, or leave out --resume"));
    let text = std::fs::read(path).map_err(|e| bad(&format!("cannot be read: {e}")))?;
    let all: Value = serde_json::from_slice(&text).map_err(|e| bad(&format!("does not parse: {e}")))?;
    if all["device"] != device || all["toolkit"] != *pack.toolkit || all["target"] != *pack.target {
        return Err(bad(&format!("is of {}, {}, and this is {device}, {}", all["device"], all["target"], pack.target)));
    }
    Ok(all["rows"].as_array().into_iter().flatten().filter(|r| r["good"] == true && pack.cases.iter().any(|c| r["case"] == *c.name)).cloned().collect())
}

fn measure(folder: &Path, a: &Asked) -> Result<bool, Error> {
    let begun = Instant::now();
    let read = |name: &str| std::fs::read(folder.join(name)).map_err(|e| Error::new(format!("cannot read {}: {e}", folder.join(name).display())));
    let pack: Pack = serde_json::from_slice(&read("manifest.json")?).map_err(|e| Error::new(format!("manifest.json: {e}")))?;
    let found = devices().map_err(Error::new)?;
    let device = found.devices.first().ok_or_else(|| Error::new("no CUDA device"))?;
    println!("{} (sm_{}{}), driver for CUDA {}.{}; code for {}", device.name, device.compute.0, device.compute.1, found.version.0, found.version.1, pack.target);
    let gpu = Gpu::new(0)?;
    let (mut good, mut rows): (bool, Vec<Value>) = (true, earlier(a, &device.name, &pack)?);
    let done: BTreeSet<String> = rows.iter().filter_map(|r| r["case"].as_str().map(String::from)).collect();
    if !done.is_empty() {
        println!("{} cases are known from before", done.len());
    }
    let write = |rows: &[Value], finished: bool| -> Result<(), Error> {
        let Some(path) = &a.out else { return Ok(()) };
        let all = json!({"device": device.name, "target": pack.target, "toolkit": pack.toolkit, "generation": pack.generation, "finished": finished, "rows": rows});
        // Beside its place first: what is there is whole whenever the run ends.
        let beside = format!("{path}.part");
        let written = std::fs::write(&beside, serde_json::to_vec_pretty(&all).unwrap_or_default()).and_then(|()| std::fs::rename(&beside, path));
        written.map_err(|e| Error::new(format!("cannot write {path}: {e}")))
    };
    // A place that cannot be written is said before the first case, not behind the last.
    write(&rows, false)?;
    let mut left = 0;
    for case in pack.cases.iter().filter(|c| c.name.contains(&a.only) && !done.contains(&c.name)) {
        if begun.elapsed().as_secs_f64() > a.seconds {
            left += 1;
            continue;
        }
        let row = match one(&gpu, case, &read, a.runs) {
            Ok(row) => row,
            Err(e) => json!({"case": case.name, "good": false, "error": e.to_string()}),
        };
        good &= row["good"] == true;
        println!("{}", line(&row));
        rows.push(row);
        write(&rows, false)?;
    }
    write(&rows, left == 0)?;
    if left > 0 {
        println!("{left} cases are left: the time of --seconds {} is over; --resume goes on", a.seconds);
    }
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
            "{mark} {name}: {:.3} ms ({:.3} to {:.3}{}), {:.1} TFLOP/s, {:.2} TB/s",
            s * 1e3, row["quartiles"][0].as_f64().unwrap_or(0.0) * 1e3, row["quartiles"][1].as_f64().unwrap_or(0.0) * 1e3, each(row), row["tflops"].as_f64().unwrap_or(0.0), row["bytes"].as_f64().unwrap_or(0.0) / s / 1e12
        ),
    }
}

/// What each of a case's kernels takes, where there are several.
fn each(row: &Value) -> String {
    let times: Vec<String> = row["kernels"].as_array().into_iter().flatten().map(|s| format!("{:.3}", s.as_f64().unwrap_or(0.0) * 1e3)).collect();
    if times.is_empty() { String::new() } else { format!("; kernels {}", times.join(" + ")) }
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
    let launch_one = |i: usize| -> Result<(), Error> {
        let buffers: Vec<&Memory> = case.kernels[i].signature.buffers.iter().map(|b| &memory[&b.name].0).collect();
        kernels[i].launch(&buffers, &case.dims)
    };
    let launch = || (0..kernels.len()).try_for_each(launch_one);
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
            good &= finite(&memory[&b.name].0.read()?, b.dtype);
        }
        let once = gpu.time(launch)?;
        for _ in 0..((0.2 / once.max(1e-6)) as usize).clamp(3, 200) {
            launch()?;
        }
        let sorted = |launch: &dyn Fn() -> Result<(), Error>| -> Result<Vec<f64>, Error> {
            let mut times = (0..runs).map(|_| gpu.time(launch)).collect::<Result<Vec<f64>, _>>()?;
            times.sort_by(f64::total_cmp);
            Ok(times)
        };
        let times = sorted(&launch)?;
        let median = times[times.len() / 2];
        // Each kernel by itself: of a gradient, the first is the forward that keeps what the others read.
        if kernels.len() > 1 {
            let each = (0..kernels.len()).map(|i| Ok(sorted(&|| launch_one(i))?[runs / 2])).collect::<Result<Vec<f64>, Error>>()?;
            row["kernels"] = json!(each);
        }
        row["good"] = json!(good);
        row["seconds"] = json!(median);
        row["quartiles"] = json!([times[times.len() / 4], times[times.len() * 3 / 4]]);
        row["tflops"] = json!(flops / median / 1e12);
        row["bytes"] = json!(case.bytes);
    }
    Ok(row)
}

/// Whether no element is infinite or no number: of floats, an exponent that is all ones. Tens of millions of elements, so no conversion.
fn finite(bytes: &[u8], dtype: DType) -> bool {
    let half = |ones: u16| bytes.chunks_exact(2).all(|c| u16::from_le_bytes([c[0], c[1]]) & ones != ones);
    match dtype {
        DType::BF16 => half(0x7f80),
        DType::F16 => half(0x7c00),
        DType::F32 => bytes.chunks_exact(4).all(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]).is_finite()),
        DType::F64 => bytes.chunks_exact(8).all(|c| c.try_into().is_ok_and(|b| f64::from_le_bytes(b).is_finite())),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::tensor::Tensor;

    #[test]
    fn what_is_not_finite_is_seen_in_every_type() {
        for dtype in [DType::BF16, DType::F16, DType::F32, DType::F64] {
            let is = |x: f64| finite(&Tensor::from_f64(dtype, &[3], &[0.0, x, -1.5]).expect("a tensor").to_bytes(), dtype);
            assert!(is(60000.0) && is(-1e-5) && !is(f64::NAN) && !is(f64::INFINITY) && !is(f64::NEG_INFINITY), "{dtype}");
        }
        assert!(!finite(&[0xff; 8], DType::BF16), "poison is no number");
    }
}
