//! PTX of a program, and what its code costs: `ptx FILE [--fn NAME] [--jvp q,k,v] [--vjp q,k,v] [--dtype bf16] [--dim D=64]… [--target sm_90a]…
//! [--schedule rows=128,stream=96,cols=64,warps=8x1,stages=2,warpgroups=2] [--slack 5.5] [--out DIR]`. With the directory of `ptxas` and `nvdisasm` in
//! `CUDA_BIN`, prints registers, spills, shared memory, and the instructions of the innermost loops.
#![allow(missing_docs)]

use codegen::GpuTarget;
use codegen::nvptx::{self, Schedule};
use ir::dim::{Bindings, Name};
use ir::types::DType;
use std::collections::BTreeMap;
use std::process::Command;

type Result<T> = std::result::Result<T, String>;

/// Dimensions, target names, and everything given as `key=value`.
fn schedule(text: &str, base: Schedule) -> Result<Schedule> {
    let mut s = base;
    let mut warps = s.fragment.warps;
    let tensor = s.fragment.lanes == 4;
    for part in text.split(',') {
        let (k, v) = part.split_once('=').ok_or_else(|| format!("`{part}` is no key=value"))?;
        let n = |v: &str| v.parse::<usize>().map_err(|e| format!("{part}: {e}"));
        match k {
            "rows" => s.rows = n(v)?,
            "cols" => s.cols = n(v)?,
            "stream" => s.stream = n(v)?,
            "stages" => s.stages = n(v)?,
            "blocks" => s.blocks = n(v)?,
            "aligned" => s.aligned = n(v)? != 0,
            "rounded" => s.rounded = n(v)? != 0,
            "turns" => s.turns = n(v)? != 0,
            "lag" => s.lag = n(v)? != 0,
            "polynomial" => s.polynomial = n(v)?,
            "warpgroups" => {
                s = if n(v)? == 0 { Schedule::tensor(128, s.cols, s.stream, [8, 1], s.stages) } else { Schedule::warpgroups(n(v)?, s.cols, s.stream, s.stages) };
                warps = s.fragment.warps;
            }
            "across" => {
                s = Schedule::warpgroups_across([s.fragment.warps[0] / 4, n(v)?], s.cols, s.stream, s.stages);
                warps = s.fragment.warps;
            }
            "warps" => {
                let (a, b) = v.split_once('x').unwrap_or((v, "1"));
                warps = [n(a)?, n(b)?];
            }
            _ => return Err(format!("`{k}` is no part of a schedule")),
        }
    }
    s.fragment.warps = warps;
    s.fragment.rows = if tensor { s.rows / warps[0] / 8 } else { s.rows / warps[0] / s.fragment.row_lanes() };
    Ok(s)
}

fn tool(name: &str, args: &[&str]) -> Result<String> {
    let Ok(dir) = std::env::var("CUDA_BIN") else { return Err("CUDA_BIN is not set".into()) };
    let out = Command::new(format!("{dir}/{name}")).args(args).output().map_err(|e| format!("{name}: {e}"))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    if out.status.success() { Ok(text) } else { Err(format!("{name}: {text}")) }
}

/// Counts of instruction kinds between a label and the last branch back to it, for every loop, the longest first.
fn loops(sass: &str) -> Vec<(usize, BTreeMap<String, usize>)> {
    let lines: Vec<&str> = sass.lines().collect();
    let mut labels: BTreeMap<String, usize> = BTreeMap::new();
    for (i, l) in lines.iter().enumerate() {
        if let Some(name) = l.trim().strip_suffix(':') {
            labels.insert(name.to_string(), i);
        }
    }
    let mut out = vec![];
    for (i, l) in lines.iter().enumerate().filter(|(_, l)| l.contains("BRA")) {
        let Some(target) = l.split('(').nth(1).and_then(|t| t.split(')').next()).map(|t| t.trim_matches('`')) else { continue };
        let Some(from) = labels.get(target).filter(|at| **at < i) else { continue };
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        let mut total = 0;
        for l in &lines[*from..=i] {
            let Some(code) = l.split("*/").nth(1) else { continue };
            let mut words = code.split_whitespace();
            let mut op = words.next().unwrap_or("");
            if op.starts_with('@') {
                op = words.next().unwrap_or("");
            }
            let op = op.trim_end_matches(';').split('.').next().unwrap_or("");
            if op.is_empty() {
                continue;
            }
            total += 1;
            let kind = match op {
                "FFMA" | "FMUL" | "FADD" => "FP32",
                "FMNMX" | "FMNMX3" => "FMNMX",
                o => o,
            };
            *counts.entry(kind.to_string()).or_default() += 1;
        }
        out.push((total, counts));
    }
    out.sort_by_key(|l| std::cmp::Reverse(l.0));
    out
}

fn main() {
    if let Err(e) = run() {
        eprintln!("{e}");
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut file = None;
    let mut vjp: Vec<Name> = vec![];
    let (mut function, mut jvp, mut dtype, mut dims, mut targets, mut sched, mut out) = (None, vec![], DType::BF16, Bindings::new(), vec![], None, None);
    let mut slack = 0.0;
    let mut it = args.iter();
    while let Some(a) = it.next() {
        let mut next = || it.next().cloned().ok_or_else(|| format!("{a} needs a value"));
        match a.as_str() {
            "--fn" => function = Some(next()?),
            "--vjp" => vjp = next()?.split(',').map(Name::from).collect(),
            "--jvp" => jvp = next()?.split(',').map(Name::from).collect(),
            "--dtype" => dtype = DType::parse(&next()?).ok_or("no such dtype")?,
            "--dim" => {
                let v = next()?;
                let (n, x) = v.split_once('=').ok_or("--dim NAME=N")?;
                dims.insert(n.into(), x.parse().map_err(|e| format!("{v}: {e}"))?);
            }
            "--target" => targets.push(next()?),
            "--schedule" => sched = Some(next()?),
            "--out" => out = Some(next()?),
            "--slack" => slack = next()?.parse().map_err(|e| format!("--slack: {e}"))?,
            _ => file = Some(a.clone()),
        }
    }
    let file = file.ok_or("usage: ptx FILE [--fn NAME] [--jvp NAMES] [--vjp NAMES] [--dtype T] [--dim NAME=N] [--target SM] [--schedule …] [--out DIR]")?;
    let text = std::fs::read_to_string(&file).map_err(|e| format!("{file}: {e}"))?;
    let module = ir::text::parse(&text).map_err(|e| ir::diagnostic::render(&e, &file, &text))?;
    let f = module.function(function.as_deref()).map_err(|e| e.to_string())?;
    let f = if jvp.is_empty() { f.clone() } else { passes::ad::jvp(f, &jvp).map_err(|e| e.to_string())? };
    let f = if vjp.is_empty() { f } else { passes::ad::vjp(&f, &vjp).map_err(|e| e.to_string())? };
    let sizes = dims.clone();
    let options = passes::fuse::Options { dims, storage: dtype, operands: dtype, slack, behind: Some(nvptx::maxima_behind), ..Default::default() };
    let n = passes::simplify::simplify_for(&f, &options).map_err(|e| e.to_string())?.0;
    let fused = passes::fuse::fuse(&n, &options).map_err(|e| e.to_string())?;
    fused.notes.iter().for_each(|n| println!("{n}"));
    if targets.is_empty() {
        targets.push("sm_90a".into());
    }
    for name in &targets {
        let target = GpuTarget::named(name).map_err(|e| e.to_string())?;
        for p in &fused.programs {
            let mut s = nvptx::default_schedule_at(p, &target, &sizes).or_else(|e| if sched.is_some() { Ok(Schedule::tensor(64, 64, 64, [4, 1], 2)) } else { Err(e) }).map_err(|e| e.to_string())?;
            if let Some(t) = &sched {
                s = schedule(t, s)?;
            }
            let start = std::time::Instant::now();
            let c = nvptx::compile_with(p, &target, &s, true).map_err(|e| e.to_string())?;
            let took = start.elapsed();
            println!("{} {name} {s:?}\n  {} threads, {} bytes shared, {} lines of PTX, {:.0} ms", p.name, c.signature.block, c.signature.shared_bytes, c.ptx.lines().count(), took.as_secs_f64() * 1e3);
            let dir = out.clone().unwrap_or_else(|| std::env::temp_dir().to_string_lossy().into_owned());
            std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
            let path = format!("{dir}/{}.{name}", p.name);
            std::fs::write(format!("{path}.tile"), p.to_string()).map_err(|e| e.to_string())?;
            std::fs::write(format!("{path}.mlir"), &c.mlir).map_err(|e| e.to_string())?;
            std::fs::write(format!("{path}.ll"), c.llvm.unwrap_or_default()).map_err(|e| e.to_string())?;
            std::fs::write(format!("{path}.ptx"), &c.ptx).map_err(|e| e.to_string())?;
            if std::env::var("CUDA_BIN").is_err() {
                continue;
            }
            let info = tool("ptxas", &[&format!("-arch={name}"), "-v", &format!("{path}.ptx"), "-o", &format!("{path}.cubin")])?;
            for l in info.lines().filter(|l| l.contains("spill") || l.contains("Used") || l.contains("C75")) {
                println!("  {}", l.trim());
            }
            let sass = tool("nvdisasm", &["-c", &format!("{path}.cubin")])?;
            std::fs::write(format!("{path}.sass"), &sass).map_err(|e| e.to_string())?;
            for (total, counts) in loops(&sass).into_iter().take(2) {
                let shown: Vec<String> = ["HMMA", "LDSM", "LDGSTS", "MUFU", "FP32", "FMNMX", "F2FP", "SHFL", "FSEL", "LDS", "STS", "LDL", "STL", "MOV", "IMAD", "IADD3", "BAR"]
                    .iter()
                    .filter_map(|k| counts.get(*k).map(|n| format!("{k} {n}")))
                    .collect();
                println!("  loop of {total}: {}", shown.join(", "));
            }
        }
    }
    Ok(())
}
