//! `opt`: text in, text out.

use pushforward::input::Source;

/// Arguments of `opt`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// Passes to run after that, in order; `fuse` prints block programs
    #[arg(long, value_delimiter = ',', value_parser = ["simplify", "fuse"])]
    pass: Vec<String>,
    /// Sizes, for `fuse`: axes that stand in tiles whole need them
    #[arg(long, value_name = "NAME=N")]
    dim: Vec<String>,
}

/// Runs it.
pub fn run(a: &Args) -> Result<(), String> {
    let mut f = a.source.load()?;
    for pass in &a.pass {
        if pass == "fuse" {
            let options = passes::fuse::Options { dims: pushforward::input::dims(&a.dim)?, ..Default::default() };
            let fused = passes::fuse::fuse(&f, &options).map_err(|e| e.to_string())?;
            fused.notes.iter().for_each(|n| eprintln!("{n}"));
            fused.programs.iter().for_each(|p| print!("{p}"));
            return Ok(());
        }
        f = passes::simplify::normalize(&f).map_err(|e| e.to_string())?;
        pushforward::input::verify(&f, pass)?;
    }
    print!("{}", ir::text::print_function(&f));
    Ok(())
}
