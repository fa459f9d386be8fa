//! Passes by name, and every pipeline as a list, on this one page. A pass is verified when it is done, and a failure names it.

use crate::input::{names, verify};
use ir::dim::Name;
use ir::graph::Function;
use ir::tile::Program;
use passes::fuse::{Fused, Options};
use std::time::{Duration, Instant};

/// What every machine gets. `simplify` first: `fuse` wants sums of products with their factors hoisted.
pub const MACHINE: [&str; 2] = ["simplify", "fuse"];

/// Every pass: its name, and `before => after`.
pub const PASSES: [(&str, &str); 5] = [
    ("jvp=q+k", "f(q, k, …) => f and its tangent along q and k"),
    ("vjp=q+k", "f(q, k, …) => f and the cotangents of q and k from those of its results"),
    ("normalize", "equations => the same function as sums of products, factors hoisted out of sums: the first half of simplify"),
    ("simplify", "equations => normal form or, where it costs less when fused, an equal form found by the e-graph"),
    ("fuse", "equations => block programs, the last stage before a machine"),
];

/// A program at some stage.
#[derive(Clone, Debug)]
pub enum Stage {
    /// Equations.
    Function(Function),
    /// Block programs.
    Programs(Fused),
}

/// A pass with its argument.
#[derive(Clone, PartialEq, Debug)]
pub enum Step {
    /// Differentiation along parameters.
    Jvp(Vec<Name>),
    /// Gradients of parameters.
    Vjp(Vec<Name>),
    /// The normal form.
    Normalize,
    /// The normal form, or a better one.
    Simplify,
    /// Block programs.
    Fuse,
}

impl Step {
    /// As it is written.
    pub fn text(&self) -> String {
        match self {
            Step::Jvp(wrt) => format!("jvp={}", wrt.join("+")),
            Step::Vjp(wrt) => format!("vjp={}", wrt.join("+")),
            Step::Normalize => "normalize".into(),
            Step::Simplify => "simplify".into(),
            Step::Fuse => "fuse".into(),
        }
    }
}

/// `jvp=q+k,simplify,fuse`, cut at the commas.
///
/// # Errors
/// A name that is no pass, with all that are.
pub fn parse(list: &[String]) -> Result<Vec<Step>, String> {
    let one = |text: &String| match text.trim().split_once('=') {
        Some(("jvp", wrt)) => Ok(Step::Jvp(names(&wrt.replace('+', ",")))),
        Some(("vjp", wrt)) => Ok(Step::Vjp(names(&wrt.replace('+', ",")))),
        None if text.trim() == "normalize" => Ok(Step::Normalize),
        None if text.trim() == "simplify" => Ok(Step::Simplify),
        None if text.trim() == "fuse" => Ok(Step::Fuse),
        _ => {
            let all: Vec<String> = PASSES.iter().map(|(n, what)| format!("\n  {n:<10} {what}")).collect();
            Err(format!("no pass `{}`; there are:{}", text.trim(), all.concat()))
        }
    };
    list.iter().filter(|t| !t.trim().is_empty()).map(one).collect()
}

/// One pass that was run.
#[derive(Clone, Debug)]
pub struct Timed {
    /// As it was asked for.
    pub step: String,
    /// Without the verifier.
    pub time: Duration,
    /// What it started from and what it made.
    pub size: (String, String),
}

/// What a pipeline made.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The program.
    pub stage: Stage,
    /// Per pass, in order.
    pub table: Vec<Timed>,
    /// Why: what passes have to say about single rewrites, where that was asked for.
    pub reasons: Vec<String>,
}

/// Runs passes in order, verifying after each. With `explain`, passes say why they rewrote what.
///
/// # Errors
/// The pass that failed and its words; or the verifier's, with the guilty pass and its program.
pub fn run(mut stage: Stage, steps: &[Step], options: &Options, explain: bool) -> Result<Outcome, String> {
    let (mut table, mut reasons) = (vec![], vec![]);
    for step in steps {
        let Stage::Function(f) = &stage else { return Err(format!("{}: the program is a block program already", step.text())) };
        let (before, start) = (size(&stage), Instant::now());
        let (next, why) = apply(step, f, options, explain)?;
        let time = start.elapsed();
        match &next {
            Stage::Function(f) => verify(f, &step.text())?,
            Stage::Programs(p) => p.programs.iter().try_for_each(|p| verify_tile(p, &step.text()))?,
        }
        reasons.extend(why.into_iter().map(|w| format!("{}: {w}", step.text())));
        table.push(Timed { step: step.text(), time, size: (before, size(&next)) });
        stage = next;
    }
    Ok(Outcome { stage, table, reasons })
}

/// One pass. A pass that can say why it rewrote what returns it beside the program, one sentence a rewrite, if `explain`.
fn apply(step: &Step, f: &Function, options: &Options, explain: bool) -> Result<(Stage, Vec<String>), String> {
    let (stage, mut why) = match step {
        Step::Jvp(wrt) => (Stage::Function(passes::ad::jvp(f, wrt).map_err(|e| e.to_string())?), vec![]),
        Step::Vjp(wrt) => (Stage::Function(passes::ad::vjp(f, wrt).map_err(|e| e.to_string())?), vec![]),
        Step::Normalize => (Stage::Function(passes::simplify::normalize(f).map_err(|e| e.to_string())?), vec![]),
        Step::Simplify => {
            let (simple, how) = passes::simplify::simplify_for(f, options).map_err(|e| e.to_string())?;
            let why = if explain { how.iter().flat_map(|s| s.explain().lines().map(String::from).collect::<Vec<_>>()).collect() } else { vec![] };
            (Stage::Function(simple), why)
        }
        Step::Fuse => {
            let fused = if f.callees().is_empty() {
                passes::fuse::fuse(f, options).map_err(|e| e.to_string())?
            } else {
                // Each kernel once; what launches them is a plan's.
                let s = crate::machine::sequence(f, options)?;
                Fused { programs: s.programs, notes: s.notes }
            };
            let notes = fused.notes.clone();
            (Stage::Programs(fused), notes)
        }
    };
    if !explain {
        why.clear();
    }
    Ok((stage, why))
}

fn size(s: &Stage) -> String {
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    match s {
        Stage::Function(f) => count(f.eqns.len(), "equation"),
        Stage::Programs(p) => count(p.programs.len(), "kernel"),
    }
}

/// The verifier of block programs; a failure names who made it and shows the program.
///
/// # Errors
/// What the verifier says.
pub fn verify_tile(p: &Program, by: &str) -> Result<(), String> {
    ir::tile::verify::verify(p).map_err(|e| {
        let list = e.iter().map(|e| format!("  {e}\n")).collect::<String>();
        format!("{} {by} made:\n{list}{p}", crate::input::VERIFIER)
    })
}
