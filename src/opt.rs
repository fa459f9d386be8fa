//! `opt`: text in, text out.

use crate::input::Source;

/// Arguments of `opt`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// Passes to run after that, in order: `simplify`
    #[arg(long, value_delimiter = ',', value_parser = ["simplify"])]
    pass: Vec<String>,
}

/// Runs it.
pub fn run(a: &Args) -> Result<(), String> {
    let mut f = a.source.load()?;
    for pass in &a.pass {
        f = passes::simplify::normalize(&f).map_err(|e| e.to_string())?;
        crate::input::verify(&f, pass)?;
    }
    print!("{}", ir::text::print_function(&f));
    Ok(())
}
