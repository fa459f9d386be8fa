//! `iteration`: rCM of a video network from its configuration alone, with random weights and data: how long a student's and a critic's turn take, part by part, and what memory they need,
//! said before anything runs and measured afterwards.

use codegen::assembler::Assembler;
use ir::dim::Name;
use ir::tensor::{Tensor, TensorData};
use ir::tile::cost::cost;
use ir::types::DType;
use ir::tile::product::product;
use pushforward::input::dims;
use runtime::libraries::Libraries;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use trainer::density::Density;
use trainer::method::dmd::Matching;
use trainer::method::rcm::{Rcm, Regression, Settings};
use trainer::method::scm::Consistency;
use trainer::method::{Batch, Condition, Learner, Method, Teacher, Weights};
use trainer::net::config::NoShapes;
use trainer::net::{self, Config, Init, Precision, Variant};
use trainer::network::{Model, Network, Outline};
use trainer::optim::{AdamW, Schedule};
use trainer::phase::{Plan, Turn};
use trainer::program::gpu::{Device, compile};
use trainer::program::{Checkpoint, On, Options};
use trainer::random::Random;

/// Arguments of `iteration`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder with the network's config.json, or that file
    config: PathBuf,
    /// Sizes of the latent and of the text
    #[arg(long, value_name = "NAME=N", default_value = "T=6,H=60,W=104,L=512")]
    dim: Vec<String>,
    /// What matrices are read in; masters are f32
    #[arg(long, default_value = "bf16", value_parser = ["f32", "bf16"])]
    dtype: String,
    /// The machine
    #[arg(long, default_value = "cuda", value_parser = On::NAMES)]
    on: String,
    /// How many; a student's turn and a critic's in turn, the first two compile
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    iterations: u64,
    /// Steps of a rollout at most
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=8))]
    rollout: u64,
    /// The teacher's guidance; 1 evaluates it once instead of twice
    #[arg(long, default_value_t = 5.0)]
    guidance: f64,
    /// Say what it needs, and which kernels have a thread for each element, instead of running it: needs no device
    #[arg(long)]
    explain: bool,
    /// With --explain, assemble every kernel and name those that spill registers
    #[arg(long, requires = "explain")]
    assemble: bool,
    /// The architecture for --explain
    #[arg(long, default_value = "sm_90a")]
    target: String,
    /// Seed of weights, data and noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Say at the end where the student's time goes on the device: its slowest kernels, so many of each program
    #[arg(long, default_value_t = 0, value_name = "N")]
    profile: usize,
    /// Products of matrices by a library: where cuBLASLt is faster, timed once per device and sizes; never; or wherever it can
    #[arg(long, default_value = "measured", value_parser = Libraries::NAMES)]
    library: String,
    /// Print JSON, a line an iteration
    #[arg(long)]
    json: bool,
}

/// Memory by what it is for, in bytes, before anything runs.
struct Need {
    rows: Vec<(&'static str, usize)>,
}

impl Need {
    /// Of weights that are stored as `narrow` says, else in f32, each with its number of elements.
    fn new(sizes: &[(bool, usize)], outlines: &[Outline], weights: &BTreeMap<Name, Vec<usize>>) -> Need {
        let all: usize = sizes.iter().map(|s| s.1).sum();
        let read: usize = sizes.iter().map(|(narrow, n)| n * if *narrow { 2 } else { 4 }).sum();
        // What a network reads in f32 is the master.
        let masters: usize = sizes.iter().filter(|s| s.0).map(|s| 4 * s.1).sum();
        let kept = |name: &str| weights.contains_key(name) || name.strip_suffix(".ct").is_some_and(|n| weights.contains_key(n));
        let ports = |o: &Outline| -> usize { o.plan.params.iter().chain(&o.plan.results).map(|b| &o.plan.buffers[*b]).filter(|b| !kept(&b.name)).map(|b| b.bytes()).sum() };
        // Student: all but the regression; teacher: velocity; critic: velocity and regression.
        let of = |what: &str| outlines.iter().find(|o| o.what == what).map_or(0, ports);
        Need {
            rows: vec![
                ("weights of student, teacher and critic, as they are read", 3 * read),
                ("f32 masters of student and critic", 2 * masters),
                ("second moments of both", 2 * 4 * all),
                ("the student's average", 4 * all),
                ("gradients of both, and one that another is added to", 3 * 4 * all),
                ("inputs and outputs of programs", 3 * of("velocity") + of("tangent") + of("pullback") + of("regression")),
                ("work space, the largest of all programs", outlines.iter().map(|o| o.plan.arena).max().unwrap_or(0)),
            ],
        }
    }
    fn total(&self) -> usize {
        self.rows.iter().map(|r| r.1).sum()
    }
}

/// Random weights as the network says that they begin, in the order of its parameters; on all cores.
fn drawn(n: &net::Network, seed: u64) -> Result<Weights, String> {
    let random = Random::new(seed);
    let one = |w: &net::Weight| -> Result<(Name, Tensor), String> {
        let stream = random.stream(0, &w.name);
        let data: Vec<f32> = match w.init {
            Init::Constant(c) => vec![c as f32; w.len()],
            Init::Normal(d) => (0..w.len() as u64).map(|i| (d * stream.normal(i)) as f32).collect(),
            Init::Uniform(b) => (0..w.len() as u64).map(|i| (b * (2.0 * stream.uniform(i) - 1.0)) as f32).collect(),
        };
        Ok((w.name.clone(), Tensor::new(w.shape.clone(), TensorData::F32(data)).map_err(|e| e.to_string())?))
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    // Every so many weights to one thread: large and small ones alternate.
    std::thread::scope(|s| {
        let part = |k: usize| s.spawn(move || n.weights.iter().skip(k).step_by(threads).map(one).collect::<Result<Vec<_>, String>>());
        let parts: Vec<_> = (0..threads).map(part).collect();
        let mut all = Weights::new();
        for p in parts {
            all.extend(p.join().map_err(|_| "a thread that draws weights stopped".to_string())??);
        }
        Ok(all)
    })
}

/// Runs it.
pub fn run(a: &Args) -> Result<(), String> {
    let file = if a.config.is_dir() { a.config.join("config.json") } else { a.config.clone() };
    let text = std::fs::read_to_string(&file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
    let parsed = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", file.display()))?;
    let config = Config::from_json(&parsed, &file.display().to_string(), &NoShapes)?;
    let Config::Wan(wan) = &config else { return Err(format!("{}: {} is not supported here; a Wan network is", file.display(), config.class())) };
    let sizes = dims(&a.dim)?;
    let size = |name: &str| sizes.get(name).copied().filter(|n| *n > 0).ok_or_else(|| format!("--dim: `{name}` is missing; it has T, H, W of the latent and L tokens of text"));
    let (t, h, w, l) = (size("T")?, size("H")?, size("W")?, size("L")?);
    if let Some(k) = sizes.keys().find(|k| !["T", "H", "W", "L"].contains(&&***k)) {
        return Err(format!("--dim: there is no `{k}`; it has T, H, W of the latent and L tokens of text"));
    }
    let dtype = DType::parse(&a.dtype).ok_or_else(|| format!("--dtype: no type `{}`", a.dtype))?;
    let on = On::named(&a.on).ok_or_else(|| format!("--on: no machine `{}`", a.on))?;
    let n = net::Network::build(&config, &Variant::default(), Precision::of(dtype)?).map_err(|e| e.to_string())?;
    let mut network = Network::new(n.function.clone(), "hidden_states", &["timestep"], &["encoder_hidden_states"], "out").map_err(|e| e.to_string())?.scaled(1000.0);
    for (name, size) in &sizes {
        network = network.with(name, *size);
    }
    n.check(&network.dims).map_err(|e| e.to_string())?;
    let options = Options { on, dtype, checkpoint: Checkpoint::Operands, libraries: Libraries::named(&a.library).unwrap_or_default(), ..Options::default() };

    let shapes: BTreeMap<Name, Vec<usize>> = n.weights.iter().map(|w| (w.name.clone(), w.shape.clone())).collect();
    let start = Instant::now();
    let outlines = network.outlines(&shapes, 1, &options).map_err(|e| e.to_string())?;
    let narrow = |name: &str| dtype != DType::F32 && n.function.param(name).is_some_and(|v| n.function.ty(v).dtype == dtype);
    let elements: Vec<(bool, usize)> = n.weights.iter().map(|w| (narrow(&w.name), w.len())).collect();
    let need = Need::new(&elements, &outlines, &shapes);
    let tokens = wan.patch_size.iter().zip([t, h, w]).map(|(p, s)| s / p).product::<i64>();
    let gb = |n: usize| n as f64 / 1e9;
    if !a.json {
        println!("{}: {} parameters, {tokens} tokens, {l} of text, {dtype} with f32 masters; derived, fused and planned in {:.1} s", config.class(), n.parameters(), start.elapsed().as_secs_f64());
        println!("memory, known before anything runs:");
        need.rows.iter().for_each(|(what, n)| println!("  {:>8.2} GB  {what}", gb(*n)));
        println!("  {:>8.2} GB  in all, without the driver's context and code", gb(need.total()));
    }
    if a.explain {
        return explain(a, &outlines, &need);
    }

    let started = Device::of(on)?;
    let context = started.as_ref().map_or(Ok(None), Device::in_use)?;
    let start = Instant::now();
    let weights = drawn(&n, a.seed)?;
    let (density, score) = (Density::LogNormal { mean: -0.8, deviation: 1.6 }, Density::LogNormal { mean: 0.0, deviation: 1.6 });
    let adam = AdamW::released(Schedule::constant(1e-6));
    let settings = Settings {
        consistency: Some(Regression::Continuous(Consistency::released(density))),
        matching: Some(Matching::released(score)),
        plan: Plan { warm_up: 0, student_every: 2, rollout: a.rollout },
        critic_first: 0,
        monitor_every: 0,
    };
    let learner = |width| Learner::new(network.clone(), &weights, adam, width, &options);
    let mut method = (|| {
        let teacher = Teacher { model: Model::new(network.clone(), &weights, &options)?, guidance: a.guidance };
        Rcm::new(learner(Some(0.1))?, Some(learner(None)?), teacher, settings)
    })()
    .map_err(|e: ir::diagnostic::Error| e.to_string())?;
    drop(weights);
    if !a.json {
        println!("weights drawn and put in place in {:.1} s", start.elapsed().as_secs_f64());
    }
    let random = Random::new(a.seed);
    let tensor = |name: &str, shape: [i64; 3]| -> Result<Tensor, String> {
        let shape = shape.map(|n| n as usize);
        let stream = random.stream(0, name);
        let data = if name == "empty" { vec![0.0; shape.iter().product()] } else { (0..shape.iter().product::<usize>() as u64).map(|i| stream.normal(i) as f32).collect() };
        Tensor::new(shape.to_vec(), TensorData::F32(data)).map_err(|e| e.to_string())
    };
    let text = |name: &str| tensor(name, [1, l, wan.text_dim]).map(|t| Condition::from([("encoder_hidden_states".into(), t)]));
    let latent = [1, wan.in_channels, t, h, w].map(|n| n as usize);
    let x0 = tensor("latent", [1, wan.in_channels * t, h * w])?.reshape(&latent).map_err(|e| e.to_string())?;
    let batch = Batch { x0, condition: text("text")?, empty: text("empty")? };
    let mut before: BTreeMap<String, (u64, Duration)> = BTreeMap::new();
    for i in 0..a.iterations {
        let start = Instant::now();
        let m = method.step(i, &batch, &random).map_err(|e| e.to_string())?;
        let seconds = start.elapsed().as_secs_f64();
        let mut parts = vec![];
        for (net, list) in method.times() {
            for (what, runs, time) in list {
                let key = format!("{net}: {what}");
                let old = before.insert(key.clone(), (runs, time)).unwrap_or_default();
                if runs > old.0 {
                    parts.push((key, runs - old.0, (time - old.1).as_secs_f64()));
                }
            }
        }
        let whose = if matches!(method.turn(i), Turn::Student { .. }) { "student" } else { "critic" };
        let inside: f64 = parts.iter().map(|p| p.2).sum();
        if a.json {
            let list: Vec<_> = parts.iter().map(|(what, runs, s)| json!({"what": what, "runs": runs, "seconds": s})).collect();
            println!("{}", json!({"iteration": i, "turn": whose, "seconds": seconds, "parts": list, "outside": seconds - inside, "metrics": m.0}));
        } else {
            let figure = |n: &str| m.get(n).map_or_else(|| "-".into(), |x| format!("{x:.4e}"));
            println!("iteration {i}, {whose}'s turn{}: {seconds:.3} s, loss {}, gradient {}, not finite {}", if i < 2 { ", with compilation" } else { "" }, figure("loss"), figure("gradient_norm"), figure("nonfinite"));
            parts.iter().for_each(|(what, runs, s)| println!("  {s:>8.3} s  {what}, {runs} run{}", if *runs == 1 { "" } else { "s" }));
            println!("  {:>8.3} s  between programs", seconds - inside);
        }
    }
    if a.profile > 0 {
        let rows = method.student().model.device_profile().map_err(|e| e.to_string())?;
        let mut programs: Vec<&String> = rows.iter().map(|r| &r.0).collect();
        programs.dedup();
        for p in programs {
            let all: f64 = rows.iter().filter(|r| r.0 == *p).map(|r| r.3).sum();
            println!("{p}: {:.1} ms, launch by launch", all * 1e3);
            rows.iter().filter(|r| r.0 == *p).take(a.profile).for_each(|(_, kernel, n, s)| println!("  {:>9.3} ms {:>5.1} %  {kernel}, {n} launches", s * 1e3, 100.0 * s / all));
        }
    }
    if let Some(d) = &started
        && let (Some(most), Some(used)) = (d.most_allocated()?, d.in_use()?)
    {
        let off = need.total() as f64 / most as f64 - 1.0;
        if a.json {
            println!("{}", json!({"predicted_bytes": need.total(), "allocated_bytes": most, "in_use_bytes": used, "context_bytes": context, "weights_bytes": method.device_bytes()}));
        } else {
            println!("memory: {:.2} GB predicted, {:.2} GB allocated at most ({:+.1} %), {:.2} GB of the device in use, {:.2} GB before", gb(need.total()), most as f64 / 1e9, 100.0 * off, used as f64 / 1e9, context.unwrap_or(0) as f64 / 1e9);
        }
    }
    Ok(())
}

/// A kernel, and what all its launches in a run of its program do.
struct Row {
    /// What multiplies: `warpgroups`, `warps`, `each` (a thread for each element), `lanes`.
    form: &'static str,
    name: String,
    flops: f64,
    bytes: f64,
    /// Why it has a thread for each element.
    each: Option<String>,
    /// Sizes of the product that it is, else what it has besides.
    product: Result<[u64; 4], String>,
}

/// Programs and their kernels, compiled for the target; those with a thread for each element by what they do in a run.
fn explain(a: &Args, outlines: &[Outline], need: &Need) -> Result<(), String> {
    let target = codegen::GpuTarget::named(&a.target).map_err(|e| e.to_string())?;
    let assembler = match a.assemble {
        true => Some(Assembler::find().ok_or("--assemble: there is no ptxas (./dev ptxas installs it)")?),
        false => None,
    };
    let mut said = vec![];
    for o in outlines {
        let kernels = compile(&o.programs, &target, &o.plan.dims)?;
        for k in kernels.iter().filter(|_| !a.json) {
            let Some(made) = assembler.as_ref().map(|x| x.assemble(&k.ptx, &target.name)).transpose()? else { break };
            let serialised = if made.said.contains("C75") { "; products are serialised" } else { "" };
            if made.spills != [0, 0] || !serialised.is_empty() {
                println!("  {} of {}: {} registers, {} and {} bytes spilled{serialised}", k.signature.symbol, o.what, made.registers, made.spills[0], made.spills[1]);
            }
        }
        let mut rows = vec![];
        let (mut flops, mut bytes) = (0.0, 0.0);
        for (i, (p, k)) in o.programs.iter().zip(&kernels).enumerate() {
            let launches = o.plan.launches.iter().filter(|l| l.kernel == i).count() as f64;
            let c = cost(p, &o.plan.dims).map_err(|e| e.to_string())?;
            let (f, b) = (c.flops as f64 * launches, c.bytes() as f64 * launches);
            (flops, bytes) = (flops + f, bytes + b);
            let form = if k.ptx.contains("wgmma") { "warpgroups" } else if k.ptx.contains("mma.sync") { "warps" } else if k.each.is_some() { "each" } else { "lanes" };
            let plain = product(p, &o.plan.dims);
            rows.push(Row { form, name: p.name.to_string(), flops: f, bytes: b, each: k.each.clone(), product: plain.map(|p| p.sizes) });
        }
        rows.sort_by(|a, b| b.flops.total_cmp(&a.flops).then(b.bytes.total_cmp(&a.bytes)));
        let plain = rows.iter().filter(|r| r.product.is_ok()).map(|r| r.flops).sum::<f64>() / flops;
        let share = |form: &str| rows.iter().filter(|r| r.form == form).map(|r| r.flops).sum::<f64>() / flops;
        if !a.json {
            println!(
                "{}: {} launches of {} kernels, {:.1} TFLOP, {:.1} GB; operations by warpgroups {:.1} %, by warps {:.1} %, without matrix units {:.2} %, a thread for each element {:.2} %; in kernels that are plain products {:.1} %",
                o.what, o.plan.launches.len(), o.programs.len(), flops / 1e12, bytes / 1e9, 100.0 * share("warpgroups"), 100.0 * share("warps"), 100.0 * share("lanes"), 100.0 * share("each"), 100.0 * plain
            );
            for r in rows.iter().filter(|r| r.form == "each") {
                println!("  {}: a thread for each element, {:.3} GFLOP, {:.1} MB; {}", r.name, r.flops / 1e9, r.bytes / 1e6, r.each.as_deref().unwrap_or(""));
            }
            for r in &rows {
                if let Ok([m, n, k, batch]) = r.product {
                    println!("  {}: a plain product of {m} x {n} x {k}{}, by {}, {:.2} TFLOP", r.name, if batch > 1 { format!(", {batch} of them") } else { String::new() }, r.form, r.flops / 1e12);
                }
            }
        }
        let list: Vec<_> = rows.iter().map(|r| json!({"kernel": r.name, "form": r.form, "flops": r.flops, "bytes": r.bytes, "why": r.each, "product": r.product.as_ref().ok(), "no_product": r.product.as_ref().err()})).collect();
        said.push(json!({"program": o.what, "launches": o.plan.launches.len(), "arena": o.plan.arena, "flops": flops, "bytes": bytes, "kernels": list}));
    }
    if a.json {
        let rows: Vec<_> = need.rows.iter().map(|(what, n)| json!({"what": what, "bytes": n})).collect();
        println!("{}", json!({"programs": said, "memory": rows, "bytes": need.total()}));
    }
    Ok(())
}
