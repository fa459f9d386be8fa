//! `check`: a program's JVP against finite differences in f64 with the order of convergence seen, or its VJP against the JVP by the dot-product
//! law; linearity, and every machine against the reference. A failing case is shrunk, and printed with the command that replays it.

mod case;
mod junit;
mod shrink;

use crate::input::{Transforms, dims_of, names, parse};
use case::{Case, Fault, Figures, MACHINES, Mode, Values, bounds, measure};
use ir::dim::Name;
use ir::graph::Function;
use passes::ad::Transform;
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
    /// Parameters to differentiate along; without it all floats. Short for --jvp
    #[arg(long, value_name = "NAMES")]
    wrt: Option<String>,
    /// Derivatives in order; the last one is checked, of what the others make. `all` is every float parameter. Without any: --jvp all
    #[command(flatten)]
    transforms: Transforms,
    /// Sizes to fix; others are drawn from 1..7
    #[arg(long, value_name = "NAME=N")]
    dim: Vec<String>,
    /// Machines that are compared with the reference: the tile interpreter, this CPU, the PTX machine, the first CUDA device
    #[arg(long, default_value = "interp,cpu", value_delimiter = ',', value_parser = ["interp", "cpu", "sim", "cuda"])]
    on: Vec<String>,
    /// Random cases
    #[arg(long, default_value_t = 10)]
    cases: u64,
    /// Seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What tensors hold: `drawn` at random; these `rounded` to two digits; or `steps`, few distinct numbers (for replaying a shrunk case)
    #[arg(long, default_value = "drawn", value_parser = ["drawn", "rounded", "steps"])]
    values: String,
    /// Also write the results in JUnit's format
    #[arg(long, value_name = "OUT.xml")]
    junit: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One case and what came of it.
struct Row {
    function: String,
    seed: u64,
    figures: Figures,
    faults: Vec<Fault>,
    /// If bad: what is wrong and the command that replays it.
    failure: Option<String>,
}

/// All cases.
struct Report {
    mode: Mode,
    machines: Vec<usize>,
    rows: Vec<Row>,
    /// Functions that could not be checked at all, and why.
    errors: Vec<(String, String)>,
}

/// Panics unless every function of the program in `file` has a right JVP and every machine agrees with the reference, on `cases` random
/// cases each; the message is that of `pushforward check`, with the shrunk case. For a user's own `#[test]`s (`docs/testing.md`).
///
/// # Panics
/// Where `pushforward check FILE --cases CASES` ends with exit code 1.
pub fn assert_program(file: impl Into<PathBuf>, cases: u64) {
    assert(file.into(), Transforms::default(), cases);
}

/// The same for reverse mode: gradients with respect to all float parameters, by the dot-product law and on every machine.
///
/// # Panics
/// Where `pushforward check FILE --vjp all --cases CASES` ends with exit code 1.
pub fn assert_gradients(file: impl Into<PathBuf>, cases: u64) {
    assert(file.into(), Transforms(vec![Transform::Vjp(vec![ALL.into()])]), cases);
}

/// Stands for every float parameter.
const ALL: &str = "all";

fn assert(file: PathBuf, transforms: Transforms, cases: u64) {
    let args = Args { file, function: None, wrt: None, transforms, dim: vec![], on: ["interp", "cpu"].map(String::from).into(), cases, seed: 0, values: "drawn".into(), junit: None, json: false };
    if let Err(e) = run(&args) {
        panic!("{e}");
    }
}

/// Runs it.
///
/// # Errors
/// What is wrong with the program, or the cases that are bad, each with the command that replays it.
pub fn run(a: &Args) -> Result<(), String> {
    if a.on.iter().any(|n| n == "cuda") {
        device()?;
    }
    let report = check(a);
    if let Some(path) = &a.junit {
        let xml = junit::xml(&a.file.display().to_string(), &report).map_err(|e| format!("junit: {e}"))?;
        std::fs::write(path, xml).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    }
    let report = report?;
    if a.json { print_json(&report) } else { print_table(&report) }
    let mut messages: Vec<String> = report.errors.iter().map(|(f, e)| format!("{f}: {e}")).collect();
    let failures: Vec<&str> = report.rows.iter().filter_map(|r| r.failure.as_deref()).collect();
    if !failures.is_empty() {
        messages.push(format!("{} of {} cases are bad\n{}", failures.len(), report.rows.len(), failures.join("\n")));
    }
    if messages.is_empty() { Ok(()) } else { Err(messages.join("\n")) }
}

fn check(a: &Args) -> Result<Report, String> {
    let text = std::fs::read_to_string(&a.file).map_err(|e| format!("cannot read {}: {e}", a.file.display()))?;
    let module = ir::text::parse(&text).map_err(|e| ir::diagnostic::render(&e, &a.file.display().to_string(), &text))?;
    let functions: Vec<&Function> = match &a.function {
        Some(n) => vec![module.function(Some(n)).map_err(|e| format!("{}: {e}", a.file.display()))?],
        None => module.functions.iter().collect(),
    };
    let given = dims_of(&functions, &a.dim)?;
    let (last, before) = match (&a.wrt, a.transforms.0.split_last()) {
        (Some(_), Some(_)) => return Err("--wrt stands for --jvp; give either".into()),
        (Some(w), None) => (Transform::Jvp(names(w)), vec![]),
        (None, Some((last, before))) => (last.clone(), before.to_vec()),
        (None, None) => (Transform::Jvp(vec![ALL.into()]), vec![]),
    };
    let mode = if matches!(last, Transform::Jvp(_)) { Mode::Jvp } else { Mode::Vjp };
    let mut report = Report { mode, machines: (0..MACHINES.len()).filter(|i| a.on.iter().any(|n| n == MACHINES[*i].0)).collect(), rows: vec![], errors: vec![] };
    for f in functions {
        let mut f = parse(&a.file, Some(&f.name))?;
        let source = f.name.clone();
        let mut applied = vec![];
        let made = before.iter().try_for_each(|t| {
            let t = resolved(t, &f);
            f = t.apply(&f)?;
            applied.push(t);
            Ok::<(), String>(())
        });
        let (Transform::Jvp(wrt) | Transform::Vjp(wrt)) = resolved(&last, &f);
        let checked = made.and_then(|()| {
            let case = Case { mode, wrt, seed: a.seed, given: given.clone(), values: Values::parse(&a.values), machines: report.machines.clone() };
            one(a, (&source, &applied), &f, case, &mut report.rows)
        });
        if let Err(e) = checked {
            report.errors.push((f.name.to_string(), e));
        }
    }
    Ok(report)
}

/// A transform of `f`, with the names for which `all` stands.
fn resolved(t: &Transform, f: &Function) -> Transform {
    let floats = || f.params.iter().filter(|p| f.ty(p.var).dtype.is_float()).map(|p| p.name.clone()).collect::<Vec<Name>>();
    let of = |wrt: &Vec<Name>| if wrt.len() == 1 && *wrt[0] == *ALL && f.param(ALL).is_none() { floats() } else { wrt.clone() };
    match t {
        Transform::Jvp(wrt) => Transform::Jvp(of(wrt)),
        Transform::Vjp(wrt) => Transform::Vjp(of(wrt)),
    }
}

/// A transform as the command line has it.
fn option(t: &Transform) -> String {
    let list = |wrt: &[Name]| wrt.iter().map(|n| &**n).collect::<Vec<_>>().join(",");
    match t {
        Transform::Jvp(wrt) => format!(" --jvp {}", list(wrt)),
        Transform::Vjp(wrt) => format!(" --vjp {}", list(wrt)),
    }
}

/// All cases of one function, made of the one called `source` by transforms.
fn one(a: &Args, source: (&Name, &[Transform]), f: &Function, first: Case, rows: &mut Vec<Row>) -> Result<(), String> {
    let mut shrunk = false;
    for n in 0..a.cases {
        let case = Case { seed: first.seed.wrapping_add(n), ..first.clone() };
        let figures = measure(f, &case, true)?;
        let faults = figures.faults();
        let failure = (!faults.is_empty()).then(|| {
            // One small case is worth more than ten: others of the function are only named.
            let (case, small) = if shrunk { (Case { given: figures.sizes.clone(), ..case.clone() }, None) } else { shrink::shrink(f, &case, &figures, &faults) };
            shrunk = true;
            describe(a, source, f, &case, small.as_ref().unwrap_or(&figures), &figures, small.is_some())
        });
        rows.push(Row { function: f.name.to_string(), seed: case.seed, figures, faults, failure });
    }
    Ok(())
}

/// A bad case for people, and how to see it again.
fn describe(a: &Args, (source, before): (&Name, &[Transform]), f: &Function, case: &Case, figures: &Figures, original: &Figures, shrunk: bool) -> String {
    let mut out = format!("{}, seed {}: {}\n", f.name, case.seed, original.faults().iter().map(|x| original.sentence(*x)).collect::<Vec<_>>().join("; "));
    let sizes: Vec<String> = figures.sizes.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let wrt: Vec<&str> = case.wrt.iter().map(|n| &**n).collect();
    if shrunk {
        out += &format!("  shrunk to {}along {}: {}\n", if sizes.is_empty() { String::new() } else { format!("{} ", sizes.join(" ")) }, wrt.join(","), figures.faults().iter().map(|x| figures.sentence(*x)).collect::<Vec<_>>().join("; "));
        for line in &figures.witness {
            out += &format!("    {line}\n");
        }
    }
    let dim = if sizes.is_empty() { String::new() } else { format!(" --dim {}", sizes.join(",")) };
    let values = if case.values == Values::Drawn { String::new() } else { format!(" --values {}", case.values.name()) };
    let along = match (case.mode, before) {
        (Mode::Jvp, []) => format!(" --wrt {}", wrt.join(",")),
        (mode, before) => format!("{} --{} {}", before.iter().map(option).collect::<String>(), mode.name(), wrt.join(",")),
    };
    let on = if a.on == ["interp", "cpu"] { String::new() } else { format!(" --on {}", a.on.join(",")) };
    out + &format!("  replay: pushforward check {} --fn {source}{along}{on} --cases 1 --seed {}{dim}{values}", a.file.display(), case.seed)
}

fn print_table(report: &Report) {
    let derivative = if report.mode == Mode::Jvp { "vs difference" } else { "dot products" };
    let machines: String = report.machines.iter().map(|i| format!(" {:>12}", format!("{} {}", MACHINES[*i].0, MACHINES[*i].1))).collect();
    println!("{:<24} {:>6} {derivative:>14} {:>7} {:>12}{machines}", "function", "seed", "order", "linearity");
    for r in &report.rows {
        let order = r.figures.order.map_or("-".into(), |o| format!("{o:.2}"));
        let machines: String = r.figures.machines.iter().map(|(_, o)| format!(" {:>12}", o.as_ref().map_or("refused".into(), |o| format!("{:.2e}", o.error)))).collect();
        println!("{:<24} {:>6} {:>14.2e} {order:>7} {:>12.2e}{machines}{}", r.function, r.seed, r.figures.difference, r.figures.linearity, if r.faults.is_empty() { "" } else { "  BAD" });
    }
    println!("relative errors in the Frobenius norm; {}", bounds(report.mode, &report.machines));
    let mut refusals: Vec<String> = vec![];
    for r in &report.rows {
        for (m, o) in &r.figures.machines {
            if let Err(why) = o {
                refusals.push(format!("{} refuses {}: {why}", MACHINES[*m].0, r.function));
            }
        }
    }
    refusals.dedup();
    refusals.iter().for_each(|r| println!("{r}"));
}

/// A device that is not there refuses no program: it is said before.
fn device() -> Result<(), String> {
    #[cfg(feature = "cuda")]
    return runtime::cuda::first().map(drop).map_err(|e| format!("check: --on cuda: {e}"));
    #[cfg(not(feature = "cuda"))]
    Err("check: --on cuda: built without the feature `cuda`".into())
}

fn print_json(report: &Report) {
    let cases: Vec<_> = report
        .rows
        .iter()
        .map(|r| {
            let error = |name: &str| r.figures.machines.iter().find(|m| MACHINES[m.0].0 == name).and_then(|m| m.1.as_ref().ok().map(|o| o.error));
            let refused: Vec<String> = r.figures.machines.iter().filter_map(|(m, o)| o.as_ref().err().map(|e| format!("{}: {e}", MACHINES[*m].0))).collect();
            let dims: std::collections::BTreeMap<String, i64> = r.figures.sizes.iter().map(|(k, v)| (k.to_string(), *v)).collect();
            json!({
                "function": r.function, "mode": r.figures.mode.name(), "seed": r.seed, "dims": dims, "order": r.figures.order,
                "difference": (r.figures.mode == Mode::Jvp).then_some(r.figures.difference), "dot_products": (r.figures.mode == Mode::Vjp).then_some(r.figures.difference), "linearity": r.figures.linearity,
                "interp": error("interp"), "cpu": error("cpu"), "sim": error("sim"), "cuda": error("cuda"), "refused": refused, "good": r.faults.is_empty(),
            })
        })
        .collect();
    let failures: Vec<&str> = report.rows.iter().filter_map(|r| r.failure.as_deref()).collect();
    let errors: Vec<String> = report.errors.iter().map(|(f, e)| format!("{f}: {e}")).collect();
    println!("{}", json!({"cases": cases, "failures": failures, "errors": errors}));
}
