//! `evaluate`: how good a run's samples are, beside the teacher's and the real ones.

use crate::training::configuration;
use serde_json::json;
use std::path::PathBuf;
use trainer::config::Purpose;
use trainer::task::{Setup, judge};
use trainer::files;

/// Arguments of `evaluate`.
#[derive(clap::Args)]
pub struct Args {
    /// The configuration of the run
    #[arg(value_name = "CONFIG.toml")]
    config: PathBuf,
    /// Folder of the weights; without it, `final` in the run's folder
    #[arg(long, value_name = "DIR")]
    weights: Option<PathBuf>,
    /// The run's folder, instead of the configuration's; the results go there
    #[arg(long, value_name = "DIR")]
    folder: Option<String>,
    /// Judge the student alone
    #[arg(long)]
    no_teacher: bool,
    /// The machine, instead of the configuration's
    #[arg(long, value_parser = trainer::program::On::NAMES)]
    on: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Evaluates.
pub fn run(a: &Args) -> Result<(), String> {
    let mut config = configuration(&a.config, &a.folder, None, &a.on)?;
    config.evaluation.teacher &= !a.no_teacher;
    let purpose = purpose(&config);
    let setup = Setup::new(config, purpose)?;
    let folder = PathBuf::from(&setup.config.run.folder);
    let from = a.weights.clone().unwrap_or_else(|| folder.join("final"));
    let weights = setup.described.load(&from, &setup.feed)?;
    let cache = runtime::cache::Cache::from_env();
    let (table, picture) = judge::judge(&setup, Some(&weights), cache.folder(), &mut |n| eprintln!("note: {n}"))?;
    files::make_folder(&folder)?;
    files::write(&folder.join("evaluation.json"), format!("{:#}\n", table.json()).as_bytes())?;
    files::write(&folder.join("evaluation.png"), &picture.png()?)?;
    let rows = table.rows.iter().map(|r| format!("{} in {}", r.name, r.steps)).collect::<Vec<_>>().join(", ");
    files::write(&folder.join("evaluation.md"), format!("# Evaluation\n\n{}\nFrom above, in steps: {rows}.\n\n![samples](evaluation.png)\n", table.markdown()).as_bytes())?;
    if a.json {
        println!("{}", json!({"folder": setup.config.run.folder, "evaluation": table.json()}));
    } else {
        println!("{}\nwritten to {}", table.markdown(), folder.join("evaluation.md").display());
    }
    Ok(())
}

/// What a configuration is for: its first method says it.
pub fn purpose(c: &trainer::config::Config) -> Purpose {
    if c.stages.first().is_some_and(|s| s.method == "flow") { Purpose::Teach } else { Purpose::Distill }
}
