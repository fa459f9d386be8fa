//! `run`: a program on tensors.

use pushforward::input::{Random, Source, dims_of, nearest, save, tensors};
use pushforward::machine;
use ir::tensor::Tensor;
use ir::types::DType;
use runtime::cache::Cache;
use runtime::cpu::Pool;
use runtime::libraries::Libraries;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

/// Arguments of `run`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// The machine
    #[arg(long, default_value = "reference", value_parser = ["reference", "interp", "cpu", "sim", "cuda"])]
    on: String,
    /// How float inputs are rounded
    #[arg(long, default_value = "f64", value_parser = ["f64", "f32", "bf16", "f16"])]
    dtype: String,
    /// Products of f32 matrices on a GPU (`sim`, `cuda`): exact, or on tensor cores with operands rounded to tf32; then differences to the reference are printed
    #[arg(long, default_value = "exact", value_parser = ["exact", "tf32"])]
    math: String,
    /// Products of matrices by a library (`cuda`): where cuBLASLt is faster, timed once per device and sizes; never; or wherever it can
    #[arg(long, default_value = "measured", value_parser = Libraries::NAMES)]
    library: String,
    /// Sizes, `I=128,J=64`
    #[arg(long, value_name = "NAME=N")]
    dim: Vec<String>,
    /// Input tensors under parameter names; without it random ones
    #[arg(long, value_name = "FILE.safetensors")]
    inputs: Option<PathBuf>,
    /// Where to write results
    #[arg(long, value_name = "FILE.safetensors")]
    outputs: Option<PathBuf>,
    /// Seed of random inputs
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(a: &Args) -> Result<(), String> {
    let f = a.source.load()?;
    let mut given = match &a.inputs {
        Some(p) => tensors(p)?,
        None => Default::default(),
    };
    let mut bindings = f.bind(&|n| given.get(n).map(|t| t.shape().to_vec()), &dims_of(&[&f], &a.dim)?)?;
    let mut random = Random(a.seed);
    let dtype = DType::parse(&a.dtype).unwrap_or(DType::F64);
    let mut inputs = vec![];
    for p in &f.params {
        let ty = f.ty(p.var);
        let t = match given.remove(&*p.name) {
            Some(t) => t,
            None if a.inputs.is_some() => {
                let others = given.keys().map(String::as_str).filter(|n| f.param(n).is_none());
                let near = nearest(&p.name, others).map_or(String::new(), |n| format!("; is `{n}` meant to be it?"));
                return Err(format!("run: {} has no tensor `{}` ({ty}){near}", a.inputs.as_ref().map_or(String::new(), |p| p.display().to_string()), p.name));
            }
            None => {
                for s in ty.axes.iter().flat_map(|x| x.size.symbols()) {
                    bindings.entry(s).or_insert(8);
                }
                random.draw(&f, p.var, &bindings)?
            }
        };
        if ty.dtype.is_float() != t.dtype().is_float() {
            return Err(format!("run: input `{}` is {}, but the parameter is {ty}", p.name, t.dtype()));
        }
        inputs.push(if ty.dtype.is_float() { t.convert(dtype).convert(DType::F64) } else { t.convert(ty.dtype) });
    }
    // A misspelt name would otherwise be a tensor that nobody reads.
    if let Some(extra) = given.keys().next() {
        let near = nearest(extra, f.params.iter().map(|p| &*p.name));
        let of = a.inputs.as_ref().map_or(String::new(), |p| p.display().to_string());
        return Err(format!("run: {of} has a tensor `{extra}`, but `{}` has no such parameter{}", f.name, near.map_or(String::new(), |n| format!("; did you mean `{n}`?"))));
    }
    let tf32 = a.math == "tf32";
    if tf32 && !(matches!(a.on.as_str(), "sim" | "cuda") && dtype == DType::F32) {
        return Err(format!("run: --math tf32 is for products of f32 on a GPU: it goes with --dtype f32 and --on sim or cuda, not with {} and {}", a.dtype, a.on));
    }
    let start = Instant::now();
    let (out, preparation, kernels) = match a.on.as_str() {
        "cpu" => {
            let c = machine::cpu(&f, &bindings, dtype, &Cache::from_env())?;
            let (pool, loaded) = (Pool::from_env(), start.elapsed().as_secs_f64());
            (machine::run_cpu(&c, &pool, &inputs, &bindings)?, loaded, c.origins().into_iter().map(|(n, from)| (n, format!("from the {from}"))).collect())
        }
        "sim" => (machine::sim(&f, &inputs, &bindings, dtype, if tf32 { "sm_90a+tf32" } else { "sm_90a" })?, 0.0, vec![]),
        #[cfg(feature = "cuda")]
        "cuda" => {
            let (out, by) = machine::cuda(&f, &inputs, &bindings, dtype, tf32, Libraries::named(&a.library).unwrap_or_default())?;
            (out, 0.0, by)
        }
        #[cfg(not(feature = "cuda"))]
        "cuda" => return Err("run: built without the feature `cuda`".into()),
        "interp" => (machine::interp(&f, &inputs, &bindings, dtype)?, 0.0, vec![]),
        _ => (ir::reference::evaluate(&f, &inputs, &bindings).map_err(|e| e.to_string())?, 0.0, vec![]),
    };
    let seconds = start.elapsed().as_secs_f64() - preparation;
    let errors: Option<Vec<f64>> = match tf32 {
        true => {
            let want = ir::reference::evaluate(&f, &inputs, &bindings).map_err(|e| e.to_string())?;
            Some(out.iter().zip(&want).map(|(x, w)| ir::tensor::relative_error(x, w)).collect())
        }
        false => None,
    };
    if let Some(path) = &a.outputs {
        save(path, f.results.iter().map(|r| &*r.name).zip(&out))?;
    }
    let norm = |t: &Tensor| t.to_f64().iter().filter(|x| x.is_finite()).map(|x| x * x).sum::<f64>().sqrt();
    if a.json {
        let results: Vec<_> = f.results.iter().zip(&out).map(|(r, t)| json!({"name": &*r.name, "dtype": t.dtype().name(), "shape": t.shape(), "norm": norm(t)})).collect();
        let dims: BTreeMap<String, i64> = bindings.iter().map(|(k, v)| (k.to_string(), *v)).collect();
        let kernels: Vec<_> = kernels.iter().map(|(name, from)| json!({"name": name, "from": from.strip_prefix("from the ").unwrap_or(from)})).collect();
        println!("{}", json!({"function": &*f.name, "on": a.on, "dtype": a.dtype, "dims": dims, "seconds": seconds, "preparation_seconds": preparation, "kernels": kernels, "results": results, "math": a.math, "errors": errors}));
    } else {
        let kernels: Vec<String> = kernels.iter().map(|(name, from)| format!("{name} {from}")).collect();
        let prepared = if kernels.is_empty() || a.on == "cuda" { String::new() } else { format!(" (after {:.1} ms for {})", preparation * 1e3, kernels.join(", ")) };
        println!("{} on {}, {:.3} ms{prepared}", f.name, a.on, seconds * 1e3);
        if a.on == "cuda" {
            kernels.iter().for_each(|k| println!("  {k}"));
        }
        for (i, (r, t)) in f.results.iter().zip(&out).enumerate() {
            let off = errors.as_ref().map_or(String::new(), |e| format!(", off by {:.1e} of the reference", e[i]));
            println!("  {:<10} {:?}  norm {:.9e}{off}", r.name, t.shape(), norm(t));
        }
    }
    Ok(())
}
