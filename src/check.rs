//! `check`: a program's JVP against finite differences in f64, with the order of convergence seen, and its linearity.

use crate::input::{Random, dims, names, parse};
use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::reference::evaluate;
use ir::tensor::Tensor;
use ir::types::DType;
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `check`.
#[derive(clap::Args)]
pub struct Args {
    /// The program
    file: PathBuf,
    /// The function; without it all of the file's
    #[arg(long = "fn", value_name = "NAME")]
    function: Option<String>,
    /// Parameters to differentiate along; without it all floats
    #[arg(long, value_name = "NAMES")]
    wrt: Option<String>,
    /// Sizes to fix; others are drawn from 1..7
    #[arg(long, value_name = "NAME=N")]
    dim: Vec<String>,
    /// Random cases
    #[arg(long, default_value_t = 10)]
    cases: u64,
    /// Seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One case's figures.
struct Case {
    /// `|jvp − difference| / |difference|` at the better of two steps.
    difference: f64,
    /// log₂ of the error's ratio between steps h and h/2; 2 for a central difference that is not yet at rounding.
    order: Option<f64>,
    /// Error of the fused program on the tile interpreter, in f64, against the reference.
    interp: f64,
    /// `|jvp(t + 2u) − jvp(t) − 2·jvp(u)| / |jvp(t + 2u)|`.
    linearity: f64,
}

/// Panics unless every function of the program in `file` has a right JVP and fused form: for a user's own `#[test]`s.
pub fn assert_program(file: impl Into<PathBuf>, cases: u64) {
    let args = Args { file: file.into(), function: None, wrt: None, dim: vec![], cases, seed: 0, json: false };
    if let Err(e) = run(&args) {
        panic!("{e}");
    }
}

/// Runs it.
///
/// # Errors
/// What is wrong with the program, or the cases that are bad, each with the command that replays it.
pub fn run(a: &Args) -> Result<(), String> {
    let text = std::fs::read_to_string(&a.file).map_err(|e| format!("cannot read {}: {e}", a.file.display()))?;
    let module = ir::text::parse(&text).map_err(|e| ir::diagnostic::render(&e, &a.file.display().to_string(), &text))?;
    let wanted: Vec<String> = match &a.function {
        Some(n) => vec![n.clone()],
        None => module.functions.iter().map(|f| f.name.to_string()).collect(),
    };
    let mut failures = vec![];
    let mut rows = vec![];
    for name in &wanted {
        let f = parse(&a.file, Some(name))?;
        let wrt = match &a.wrt {
            Some(w) => names(w),
            None => f.params.iter().filter(|p| f.ty(p.var).dtype.is_float()).map(|p| p.name.clone()).collect(),
        };
        let g = passes::ad::jvp(&f, &wrt).map_err(|e| e.to_string())?;
        crate::input::verify(&g, "jvp")?;
        for case in 0..a.cases {
            let seed = a.seed.wrapping_add(case);
            let (c, sizes) = one(&f, &g, &wrt, &dims(&a.dim)?, seed)?;
            let good = c.difference < 1e-6 && c.linearity < 1e-10 && c.interp < 1e-10 && c.order.is_none_or(|o| o > 1.7);
            if !good {
                let sizes: Vec<String> = sizes.iter().map(|(k, v)| format!("{k}={v}")).collect();
                let dim = if sizes.is_empty() { String::new() } else { format!(" --dim {}", sizes.join(",")) };
                let wrt: Vec<&str> = wrt.iter().map(|n| &**n).collect();
                failures.push(format!("pushforward check {} --fn {name} --wrt {} --cases 1 --seed {seed}{dim}", a.file.display(), wrt.join(",")));
            }
            rows.push((name.clone(), seed, c, good));
        }
    }
    if a.json {
        let cases: Vec<_> = rows.iter().map(|(n, s, c, good)| json!({"function": n, "seed": s, "difference": c.difference, "order": c.order, "linearity": c.linearity, "interp": c.interp, "good": good})).collect();
        println!("{}", json!({"cases": cases, "failures": failures}));
    } else {
        println!("{:<24} {:>6} {:>14} {:>7} {:>12} {:>12}", "function", "seed", "vs difference", "order", "linearity", "interp");
        for (n, s, c, good) in &rows {
            let order = c.order.map_or("-".into(), |o| format!("{o:.2}"));
            println!("{n:<24} {s:>6} {:>14.2e} {order:>7} {:>12.2e} {:>12.2e}{}", c.difference, c.linearity, c.interp, if *good { "" } else { "  BAD" });
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(format!("{} of {} cases are bad; replay:\n  {}", failures.len(), rows.len(), failures.join("\n  "))) }
}

fn one(f: &Function, g: &Function, wrt: &[Name], given: &Bindings, seed: u64) -> Result<(Case, Bindings), String> {
    let mut random = Random(seed.wrapping_mul(0x1000_0001));
    let mut sizes = given.clone();
    for d in f.dims() {
        let n = 1 + (random.uniform() * 7.0) as i64;
        sizes.entry(d).or_insert(n);
    }
    // A size that must divide another: take one for the divisor.
    for v in &f.vars {
        for a in &v.ty.axes {
            if a.size.eval(&sizes).is_err() {
                for s in a.size.symbols().into_iter().filter(|s| !given.contains_key(s)) {
                    sizes.insert(s, 4);
                }
            }
        }
    }
    let mut draw = |f: &Function| -> Result<Vec<Tensor>, String> {
        f.params.iter().map(|p| random.tensor(f.ty(p.var).dtype, &f.ty(p.var).sizes(&sizes).map_err(|e| e.to_string())?)).collect()
    };
    let (x, t, u) = (draw(f)?, draw(f)?, draw(f)?);
    let along = |t: &[Tensor]| -> Vec<Tensor> {
        let tangents = wrt.iter().filter_map(|n| f.params.iter().position(|p| p.name == *n)).map(|i| t[i].clone());
        x.iter().cloned().chain(tangents).collect()
    };
    let tangents = |t: &[Tensor]| -> Result<Vec<f64>, String> {
        let out = evaluate(g, &along(t), &sizes).map_err(|e| e.to_string())?;
        let pairs = g.results.iter().zip(&out).skip(f.results.len());
        Ok(pairs.flat_map(|(_, t)| t.to_f64()).collect())
    };
    let active: Vec<usize> = (0..f.results.len()).filter(|i| g.results.iter().any(|r| *r.name == format!("{}.t", f.results[*i].name))).collect();
    let step = |h: f64| -> Result<Vec<f64>, String> {
        let side = |h: f64| -> Result<Vec<f64>, String> {
            let mut y = x.clone();
            for n in wrt {
                let Some(i) = f.params.iter().position(|p| p.name == *n) else { continue };
                let moved: Vec<f64> = x[i].to_f64().iter().zip(t[i].to_f64()).map(|(x, t)| x + h * t).collect();
                y[i] = Tensor::from_f64(DType::F64, x[i].shape(), &moved).map_err(|e| e.to_string())?;
            }
            let out = evaluate(f, &y, &sizes).map_err(|e| e.to_string())?;
            Ok(active.iter().flat_map(|i| out[*i].to_f64()).collect())
        };
        Ok(side(h)?.iter().zip(side(-h)?).map(|(a, b)| if a == &b { 0.0 } else { (a - b) / (2.0 * h) }).collect())
    };
    let jt = tangents(&t)?;
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let apart = |a: &[f64], b: &[f64]| {
        let d: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        norm(&d) / if norm(b) > 1e-9 { norm(b) } else { 1.0 }
    };
    let (coarse, mid, fine) = (apart(&jt, &step(1e-3)?), apart(&jt, &step(5e-4)?), apart(&jt, &step(1e-5)?));
    let order = (mid > 1e-11).then(|| (coarse / mid).log2());
    let sum: Vec<Tensor> = t
        .iter()
        .zip(&u)
        .map(|(t, u)| {
            let v: Vec<f64> = t.to_f64().iter().zip(u.to_f64()).map(|(t, u)| t + 2.0 * u).collect();
            Tensor::from_f64(DType::F64, t.shape(), &v).map_err(|e| e.to_string())
        })
        .collect::<Result<_, _>>()?;
    let parts: Vec<f64> = jt.iter().zip(tangents(&u)?).map(|(a, b)| a + 2.0 * b).collect();
    let args = along(&t);
    let want = evaluate(g, &args, &sizes).map_err(|e| e.to_string())?;
    let got = crate::machine::interp(g, &args, &sizes, DType::F64)?;
    let interp = got.iter().zip(&want).map(|(g, w)| ir::tensor::relative_error(g, w)).fold(0.0, f64::max);
    Ok((Case { interp, difference: fine.min(mid), order, linearity: apart(&tangents(&sum)?, &parts) }, sizes))
}
