//! `check`: a program's JVP against finite differences in f64 with the order of convergence seen, its linearity in the tangent, and
//! every machine against the reference. A failing case is shrunk, and printed with the command that replays it.

mod case;
mod junit;
mod shrink;

use crate::input::{dims_of, names, parse};
use case::{Case, Fault, Figures, Values, bounds, measure};
use ir::graph::Function;
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
    /// What tensors hold: `drawn` at random; these `rounded` to two digits; or `steps`, few distinct numbers (for replaying a shrunk case)
    #[arg(long, default_value = "drawn", value_parser = ["drawn", "rounded", "steps"])]
    values: String,
    /// A further machine: `sim` runs the GPU kernels in bf16, in the PTX machine
    #[arg(long, value_parser = ["sim"])]
    on: Option<String>,
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
    let args = Args { file: file.into(), function: None, wrt: None, dim: vec![], cases, seed: 0, values: "drawn".into(), on: None, junit: None, json: false };
    if let Err(e) = run(&args) {
        panic!("{e}");
    }
}

/// Runs it.
///
/// # Errors
/// What is wrong with the program, or the cases that are bad, each with the command that replays it.
pub fn run(a: &Args) -> Result<(), String> {
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
    let mut report = Report { rows: vec![], errors: vec![] };
    for f in functions {
        let f = parse(&a.file, Some(&f.name))?;
        let wrt = match &a.wrt {
            Some(w) => names(w),
            None => f.params.iter().filter(|p| f.ty(p.var).dtype.is_float()).map(|p| p.name.clone()).collect(),
        };
        if let Err(e) = one(a, &f, Case { wrt, seed: a.seed, given: given.clone(), values: Values::parse(&a.values), sim: a.on.is_some() }, &mut report.rows) {
            report.errors.push((f.name.to_string(), e));
        }
    }
    Ok(report)
}

/// All cases of one function.
fn one(a: &Args, f: &Function, first: Case, rows: &mut Vec<Row>) -> Result<(), String> {
    let mut shrunk = false;
    for n in 0..a.cases {
        let case = Case { seed: first.seed.wrapping_add(n), ..first.clone() };
        let figures = measure(f, &case, true)?;
        let faults = figures.faults();
        let failure = (!faults.is_empty()).then(|| {
            // One small case is worth more than ten: others of the function are only named.
            let (case, small) = if shrunk { (Case { given: figures.sizes.clone(), ..case.clone() }, None) } else { shrink::shrink(f, &case, &figures, &faults) };
            shrunk = true;
            describe(a, f, &case, small.as_ref().unwrap_or(&figures), &figures, small.is_some())
        });
        rows.push(Row { function: f.name.to_string(), seed: case.seed, figures, faults, failure });
    }
    Ok(())
}

/// A bad case for people, and how to see it again.
fn describe(a: &Args, f: &Function, case: &Case, figures: &Figures, original: &Figures, shrunk: bool) -> String {
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
    let on = if case.sim { " --on sim" } else { "" };
    out + &format!("  replay: pushforward check {} --fn {} --wrt {} --cases 1 --seed {}{dim}{values}{on}", a.file.display(), f.name, wrt.join(","), case.seed)
}

fn print_table(report: &Report) {
    let sim = if report.rows.iter().any(|r| r.figures.machines.iter().any(|m| m.0 == "sim")) { format!(" {:>12}", "sim bf16") } else { String::new() };
    println!("{:<24} {:>6} {:>14} {:>7} {:>12} {:>12} {:>12}{sim}", "function", "seed", "vs difference", "order", "linearity", "interp f64", "cpu f32");
    for r in &report.rows {
        let order = r.figures.order.map_or("-".into(), |o| format!("{o:.2}"));
        let machines: String = r.figures.machines.iter().map(|(_, o)| format!(" {:>12}", o.as_ref().map_or("refused".into(), |o| format!("{:.2e}", o.error)))).collect();
        println!("{:<24} {:>6} {:>14.2e} {order:>7} {:>12.2e}{machines}{}", r.function, r.seed, r.figures.difference, r.figures.linearity, if r.faults.is_empty() { "" } else { "  BAD" });
    }
    println!("relative errors in the Frobenius norm; {}", bounds());
    let mut refusals: Vec<String> = vec![];
    for r in &report.rows {
        for (m, o) in &r.figures.machines {
            if let Err(why) = o {
                refusals.push(format!("{m} refuses {}: {why}", r.function));
            }
        }
    }
    refusals.dedup();
    refusals.iter().for_each(|r| println!("{r}"));
}

fn print_json(report: &Report) {
    let cases: Vec<_> = report
        .rows
        .iter()
        .map(|r| {
            let error = |name: &str| r.figures.machines.iter().find(|m| m.0 == name).and_then(|m| m.1.as_ref().ok().map(|o| o.error));
            let refused: Vec<String> = r.figures.machines.iter().filter_map(|(m, o)| o.as_ref().err().map(|e| format!("{m}: {e}"))).collect();
            let dims: std::collections::BTreeMap<String, i64> = r.figures.sizes.iter().map(|(k, v)| (k.to_string(), *v)).collect();
            json!({
                "function": r.function, "seed": r.seed, "dims": dims, "difference": r.figures.difference, "order": r.figures.order, "linearity": r.figures.linearity,
                "interp": error("interp"), "cpu": error("cpu"), "sim": error("sim"), "refused": refused, "good": r.faults.is_empty(),
            })
        })
        .collect();
    let failures: Vec<&str> = report.rows.iter().filter_map(|r| r.failure.as_deref()).collect();
    let errors: Vec<String> = report.errors.iter().map(|(f, e)| format!("{f}: {e}")).collect();
    println!("{}", json!({"cases": cases, "failures": failures, "errors": errors}));
}
