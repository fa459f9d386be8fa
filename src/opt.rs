//! `opt`: text in, text out, from any stage to any later one.

use ir::types::DType;
use pushforward::input::{Loaded, Source, dims_of};
use pushforward::pipeline::{self, Stage};

/// Arguments of `opt`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// Passes in order, after those of --jvp: `jvp=q+k+v`, `simplify`, `fuse`
    #[arg(long, value_name = "a,b,c", value_delimiter = ',')]
    pass: Vec<String>,
    /// Sizes, for `fuse`: axes that stand in tiles whole need them
    #[arg(long, value_name = "NAME=N")]
    dim: Vec<String>,
    /// What float parameters are stored in, for `fuse`
    #[arg(long, default_value = "f32", value_parser = ["f64", "f32", "bf16", "f16"])]
    dtype: String,
    /// Print the time of every pass
    #[arg(long)]
    time: bool,
    /// Print why passes rewrote what
    #[arg(long)]
    explain: bool,
    /// Print block programs as JSON, which can be read back as FILE.tile.json
    #[arg(long)]
    json: bool,
}

/// Runs it. The program goes to standard output, tables and reasons to standard error.
pub fn run(a: &Args) -> Result<(), String> {
    let steps = pipeline::parse(&a.pass)?;
    let stage = match a.source.load_any()? {
        Loaded::Function(f) => Stage::Function(f),
        Loaded::Programs(programs) => Stage::Programs(passes::fuse::Fused { programs, notes: vec![] }),
    };
    let dims = match &stage {
        Stage::Function(f) => dims_of(&[f], &a.dim)?,
        Stage::Programs(_) => pushforward::input::dims(&a.dim)?,
    };
    let options = passes::fuse::Options::stored(&dims, DType::parse(&a.dtype).unwrap_or(DType::F32));
    let out = pipeline::run(stage, &steps, &options, a.explain)?;
    if a.time {
        eprintln!("{:<16} {:>10}  {:>16} => after", "pass", "ms", "before");
        out.table.iter().for_each(|t| eprintln!("{:<16} {:>10.3}  {:>16} => {}", t.step, t.time.as_secs_f64() * 1e3, t.size.0, t.size.1));
    }
    match &out.stage {
        Stage::Function(f) => {
            out.reasons.iter().for_each(|r| eprintln!("{r}"));
            print!("{}", ir::text::print_function(f));
        }
        Stage::Programs(p) => {
            // What was not fused is said in any case.
            let notes = if a.explain { &out.reasons } else { &p.notes };
            notes.iter().for_each(|n| eprintln!("{n}"));
            if a.json {
                println!("{}", serde_json::to_string_pretty(&p.programs).map_err(|e| e.to_string())?);
            } else {
                p.programs.iter().for_each(|p| print!("{p}"));
            }
        }
    }
    Ok(())
}
