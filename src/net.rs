//! `net`: a network with its weights, its derivatives, on tensors; or what it would cost.

mod explain;

use pushforward::input::{Transform, Transforms, dims, save, tensors};
use ir::dim::{Bindings, Name};
use ir::tensor::Tensor;
use ir::types::DType;
use runtime::libraries::Libraries;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;
use trainer::net::checkpoint::Checkpoint;
use trainer::net::{Config, Network, Precision, arguments};
use trainer::program::{On, Options, Program};

/// Arguments of `net`.
#[derive(clap::Args)]
pub struct Args {
    /// The network: a folder with config.json and its weights as safetensors (one file, or shards with their index), or such a file
    dir: PathBuf,
    #[command(flatten)]
    transforms: Transforms,
    /// Arguments under diffusers' names, tangents `NAME.t`, the cotangent `out.ct`
    #[arg(long, value_name = "FILE.safetensors")]
    inputs: Option<PathBuf>,
    /// Where to write `out`, `out.t`, `NAME.ct`, and `KEY.ct` for a weight under its checkpoint key
    #[arg(long, value_name = "FILE.safetensors")]
    outputs: Option<PathBuf>,
    /// The machine
    #[arg(long, default_value = "cpu", value_parser = On::NAMES)]
    on: String,
    /// What it computes in (docs/networks.md has the table); without it f32 on the CPU, f64 on the reference
    #[arg(long, value_parser = ["f64", "f32", "bf16"])]
    dtype: Option<String>,
    /// The configuration, where the folder has none or another is meant
    #[arg(long, value_name = "FILE.json")]
    config: Option<PathBuf>,
    /// The epsilon of q's and k's norms (Cosmos: 1e-5 in diffusers, the default; 1e-6 in the original)
    #[arg(long, value_name = "E")]
    qk_eps: Option<f64>,
    /// Frames a second, which stretch Cosmos's positions in time; without it they are frame numbers
    #[arg(long, value_name = "F")]
    fps: Option<f64>,
    /// Say what it costs instead of running it: needs the configuration only
    #[arg(long)]
    explain: bool,
    /// With --explain, compile every kernel for this CPU, past the cache, and say how long it takes
    #[arg(long, requires = "explain")]
    compile: bool,
    /// Sizes for --explain, `B=1,T=21,H=60,W=104,L=512`; without them those that the network is known for
    #[arg(long, value_name = "NAME=N")]
    dim: Vec<String>,
    /// Run so often, and say the median time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Say where the time goes, kernel by kernel, beside what the machine can do (on the CPU; the median of --runs)
    #[arg(long)]
    profile: bool,
    /// Products of matrices by a library on a CUDA device: where cuBLASLt is faster, timed once per device and sizes; never; or wherever it can
    #[arg(long, default_value = "measured", value_parser = Libraries::NAMES)]
    library: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(a: &Args) -> Result<(), String> {
    if let Some(e) = a.qk_eps.filter(|e| e.is_nan() || *e <= 0.0) {
        return Err(format!("--qk-eps is {e}, but must be positive"));
    }
    let weights = Checkpoint::open(&a.dir);
    if a.explain {
        return explain::run(a, weights);
    }
    if !a.dim.is_empty() {
        return Err("--dim: sizes come from the inputs; it belongs to --explain".into());
    }
    let weights = weights?;
    let config = configuration(a, Some(&weights))?;
    let Some(path) = &a.inputs else { return Err("net: --inputs is missing (or --explain, which needs none)".into()) };
    let file = path.display().to_string();
    let (fields, fps) = arguments::read(tensors(path)?, a.fps).map_err(|e| format!("{file}: {e}"))?;

    let variant = arguments::variant(&config, &fields, fps, a.qk_eps).map_err(|e| format!("{file}: {e}"))?;
    let on = On::named(&a.on).ok_or_else(|| format!("--on: no machine `{}`", a.on))?;
    let dtype = match &a.dtype {
        Some(d) => DType::parse(d).ok_or_else(|| format!("--dtype: no type `{d}`"))?,
        None if on != On::Reference => DType::F32,
        None => DType::F64,
    };
    let n = Network::build(&config, &variant, Precision::of(dtype)?).map_err(|e| e.to_string())?;
    let names = weights.match_to(&n.weights)?;
    let own: BTreeMap<&str, &Name> = names.iter().map(String::as_str).zip(n.weights.iter().map(|w| &w.name)).collect();
    let transforms = transforms(&a.transforms, &n, &own)?;
    // A misspelt argument is said before anything is compiled: what the transforms add is known by name.
    let mut wanted: Vec<String> = n.inputs.iter().map(|i| i.to_string()).collect();
    let mut derived = n.function.clone();
    for t in &transforms {
        let before = derived.params.len();
        derived = t.apply(&derived)?;
        wanted.extend(derived.params[before.min(derived.params.len())..].iter().map(|p| p.name.to_string()));
    }
    let (_, left) = arguments::select(&fields, &wanted.iter().map(String::as_str).collect::<Vec<_>>(), &file)?;
    for n in &left {
        eprintln!("note: {file}: tensor `{n}` is no argument, and is not read");
    }
    let weight_shape: BTreeMap<&str, &[usize]> = n.weights.iter().map(|w| (&*w.name, w.shape.as_slice())).collect();
    let shape = |name: &str| fields.get(name).map(Tensor::shape).or_else(|| weight_shape.get(name).copied()).map(<[usize]>::to_vec);
    let bound = derived.bind(&shape, &Bindings::new())?;
    n.check(&bound).map_err(|e| e.to_string())?;

    let start = Instant::now();
    let mut program = Program::new(&n.function, &transforms, &bound, &Options { on, dtype, libraries: Libraries::named(&a.library).unwrap_or_default(), ..Options::default() })?;
    for (w, file) in n.weights.iter().zip(&names) {
        let t = weights.tensor(file)?.reshape(&w.shape).map_err(|e| format!("{file}: {e}"))?;
        program.set(&w.name, &t)?;
    }
    let mut given = vec![];
    for w in &wanted {
        let p = program.params().iter().find(|p| *p.name == **w).ok_or_else(|| format!("net: no parameter `{w}`"))?;
        given.push((w.as_str(), arguments::as_parameter(&fields[w], p.ty.dtype)));
    }
    let given: Vec<(&str, &Tensor)> = given.iter().map(|(n, t)| (*n, t)).collect();
    let prepared = start.elapsed().as_secs_f64();
    let mut times = vec![];
    let mut results = BTreeMap::new();
    for _ in 0..a.runs {
        let start = Instant::now();
        results = program.run(&given)?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let seconds = times[times.len() / 2];
    let profile = if a.profile { Some(program.profile(&given, a.runs)?) } else { None };

    // Cotangents of weights under the names, and in the shapes, that the checkpoint has.
    let keys: BTreeMap<&str, &str> = n.weights.iter().map(|w| &*w.name).zip(names.iter().map(String::as_str)).collect();
    let mut out: Vec<(String, Tensor)> = vec![];
    for r in program.results() {
        let t = results.get(&r.name).ok_or_else(|| format!("net: no result `{}`", r.name))?.clone();
        let t = if dtype == DType::F64 { t } else { t.convert(DType::F32) };
        out.push(match weight_of(&r.name, &keys) {
            Some((key, suffix)) => {
                let shape = weights.shape_of(key).map_or_else(|| t.shape().to_vec(), <[usize]>::to_vec);
                (format!("{key}{suffix}"), t.reshape(&shape).map_err(|e| e.to_string())?)
            }
            None => (r.name.to_string(), t),
        });
    }
    if let Some(path) = &a.outputs {
        save(path, out.iter().map(|(n, t)| (n.as_str(), t)))?;
    }
    let norm = |t: &Tensor| t.to_f64().iter().map(|x| x * x).sum::<f64>().sqrt();
    if a.json {
        let list: Vec<_> = out.iter().map(|(n, t)| json!({"name": n, "dtype": t.dtype().name(), "shape": t.shape(), "norm": norm(t)})).collect();
        let dims: BTreeMap<String, i64> = bound.iter().map(|(k, v)| (k.to_string(), *v)).collect();
        println!(
            "{}",
            json!({
                "network": config.class(), "on": a.on, "dtype": dtype.name(), "dims": dims, "parameters": n.parameters(), "seconds": seconds, "preparation_seconds": prepared,
                "kernels": program.kernels(), "launches": program.launches(), "peak_bytes": program.peak_bytes(), "products": products(&program), "results": list, "not_read": left, "ignored_weights": weights.ignored(),
                "profile": profile.as_ref().map(|p| json!({"fma_peak": p.peak, "copy_bandwidth": p.bandwidth, "kernels": p.rows.iter().map(|r| json!({
                    "kernel": r.kernel, "launches": r.launches, "seconds": r.seconds, "flops": r.cost.flops, "bytes": r.cost.bytes(), "of_roof": p.share(r),
                })).collect::<Vec<_>>()})),
            })
        );
    } else {
        println!("{} on {} in {dtype}, {} parameters: {:.3} ms (after {:.0} ms of preparation)", config.class(), a.on, n.parameters(), seconds * 1e3, prepared * 1e3);
        if !weights.ignored().is_empty() {
            println!("  tensors that are no weights, not read: {}", weights.ignored().join(", "));
        }
        for (n, t) in &out {
            println!("  {n:<10} {:?}  norm {:.9e}", t.shape(), norm(t));
        }
        program.products().iter().for_each(|(kernel, by)| println!("  {kernel}: {by}"));
        if let Some(p) = &profile {
            println!("{p}");
        }
    }
    Ok(())
}

/// Kernels that are plain products, and what runs them.
fn products(p: &Program) -> serde_json::Value {
    p.products().iter().map(|(kernel, by)| json!({"kernel": kernel, "by": by})).collect()
}

/// The configuration: `--config`, else the folder's.
fn configuration(a: &Args, weights: Option<&Checkpoint>) -> Result<Config, String> {
    let folder = if a.dir.is_dir() { a.dir.clone() } else { a.dir.parent().map(Path::to_path_buf).unwrap_or_default() };
    let path = a.config.clone().unwrap_or_else(|| folder.join("config.json"));
    if a.config.is_none() && !path.exists() {
        return Err(format!("{} has no config.json; give one with --config (sizes that it leaves out are taken from the weights)", folder.display()));
    }
    let text = std::fs::read_to_string(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    let json = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    let none = trainer::net::config::NoShapes;
    Config::from_json(&json, &path.display().to_string(), weights.map_or(&none as &dyn trainer::net::config::Shapes, |w| w))
}

/// The transforms asked for, with `all` spelt out and checkpoint keys as the network's own names.
fn transforms(asked: &Transforms, n: &Network, own: &BTreeMap<&str, &Name>) -> Result<Vec<Transform>, String> {
    let mut floats: Vec<Name> = n.function.params.iter().filter(|p| n.function.ty(p.var).dtype.is_float()).map(|p| p.name.clone()).collect();
    let mut all = vec![];
    for t in &asked.0 {
        let (list, reverse) = match t {
            Transform::Jvp(list) => (list, false),
            Transform::Vjp(list) => (list, true),
        };
        let mut wrt: Vec<Name> = vec![];
        for name in list {
            if **name == *"all" {
                wrt.extend(floats.iter().cloned());
                continue;
            }
            let stem = name.trim_end_matches(".t");
            let renamed = own.get(stem).map(|k| Name::from(format!("{k}{}", &name[stem.len()..])));
            wrt.push(renamed.unwrap_or_else(|| name.clone()));
        }
        let mut seen = std::collections::BTreeSet::new();
        wrt.retain(|n| seen.insert(n.clone()));
        if let Some(bad) = wrt.iter().find(|w| !floats.contains(w)) {
            let what = if reverse { "--vjp" } else { "--jvp" };
            let hint = trainer::net::keys::nearest(bad, floats.iter().map(|f| &**f));
            return Err(format!("{what}: `{bad}` is no argument and no weight of this network{hint}"));
        }
        if !reverse {
            floats.extend(wrt.iter().map(|n| Name::from(format!("{n}.t"))));
        }
        all.push(if reverse { Transform::Vjp(wrt) } else { Transform::Jvp(wrt) });
    }
    Ok(all)
}

/// The checkpoint key of the weight that a result is a derivative of, and the rest of the result's name.
fn weight_of<'a>(result: &'a str, keys: &BTreeMap<&str, &'a str>) -> Option<(&'a str, &'a str)> {
    [".ct", ".t", ".t.ct"].iter().find_map(|s| result.strip_suffix(s).and_then(|stem| keys.get(stem)).map(|k| (*k, &result[result.len() - s.len()..])))
}
