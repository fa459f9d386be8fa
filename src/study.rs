//! `study`: evaluated runs over several seeds, in one table.

use std::path::PathBuf;
use trainer::{files, study::Study};

/// Arguments of `study`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder of runs, METHOD-SEED
    #[arg(value_name = "DIR")]
    runs: PathBuf,
    /// Folder for study.md, study.json and the frontiers
    #[arg(short, long, value_name = "DIR", default_value = "docs/results")]
    output: PathBuf,
    /// The method that others are compared with
    #[arg(long, default_value = "scm")]
    base: String,
    /// Methods of the frontier, in order
    #[arg(long, value_delimiter = ',', default_value = "scm,rcm-0.3,rcm-1,dmd")]
    frontier: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Makes the table.
pub fn run(a: &Args) -> Result<(), String> {
    let s = Study::read(&a.runs)?;
    files::make_folder(&a.output)?;
    let methods: Vec<&str> = a.frontier.iter().map(String::as_str).collect();
    let mut text = format!("# Methods over seeds\n\n{}\n", s.markdown(&a.base));
    for space in ["pixels", "features"] {
        let file = format!("frontier-{space}.png");
        match s.frontier(space, &methods) {
            Ok(png) => {
                files::write(&a.output.join(&file), &png)?;
                text += &format!("![precision and recall in {space}]({file})\n\n");
            }
            Err(e) => eprintln!("note: {e}"),
        }
    }
    files::write(&a.output.join("study.json"), format!("{:#}\n", s.json()).as_bytes())?;
    files::write(&a.output.join("study.md"), text.as_bytes())?;
    if a.json { println!("{}", s.json()) } else { println!("{text}") }
    Ok(())
}
