//! `opt`: text in, text out.

use crate::input::Source;

/// Arguments of `opt`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
}

/// Runs it.
pub fn run(a: &Args) -> Result<(), String> {
    print!("{}", ir::text::print_function(&a.source.load()?));
    Ok(())
}
