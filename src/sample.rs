//! `sample`: pictures and tensors from a student, or from the teacher.

use crate::evaluate::purpose;
use crate::training::configuration;
use ir::types::DType;
use serde_json::json;
use std::path::PathBuf;
use trainer::files;
use trainer::method::Teacher;
use trainer::task::Setup;
use trainer::task::networks::has_span;

/// Arguments of `sample`.
#[derive(clap::Args)]
pub struct Args {
    /// The configuration of the run
    #[arg(value_name = "CONFIG.toml")]
    config: PathBuf,
    /// Folder of the weights; without it, `final` in the run's folder
    #[arg(long, value_name = "DIR")]
    weights: Option<PathBuf>,
    /// The run's folder, instead of the configuration's
    #[arg(long, value_name = "DIR")]
    folder: Option<String>,
    /// Steps of the student, each number one picture; without it, those of the configuration
    #[arg(long, value_delimiter = ',', value_name = "N,N")]
    steps: Vec<usize>,
    /// Sample the guided teacher by its solver instead, in this many steps
    #[arg(long, value_name = "N", conflicts_with = "steps")]
    teacher: Option<usize>,
    /// How many samples; classes in turn
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// Seed of the noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder for samples-N.png and samples-N.safetensors
    #[arg(short, long, value_name = "DIR", default_value = "samples")]
    output: PathBuf,
    /// The machine, instead of the configuration's
    #[arg(long, value_parser = trainer::program::On::NAMES)]
    on: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Samples.
pub fn run(a: &Args) -> Result<(), String> {
    let config = configuration(&a.config, &a.folder, None, &a.on)?;
    let purpose = purpose(&config);
    let setup = Setup::new(config, purpose)?;
    let which = setup.feed.in_turn(a.count as usize);
    let sampler = setup.sampler();
    let mut all = vec![];
    if let (Some(n), Some(_)) = (a.teacher, &setup.teacher) {
        all.push((n, sampler.teacher(&mut setup.guided()?, &which, a.seed, n)?));
    } else {
        let from = a.weights.clone().unwrap_or_else(|| PathBuf::from(&setup.config.run.folder).join("final"));
        let weights = setup.described.load(&from, &setup.feed)?;
        let mut model = setup.model(&weights, has_span(&weights))?;
        if purpose == trainer::config::Purpose::Teach || a.teacher.is_some() {
            let n = a.teacher.unwrap_or(setup.config.sampling.teacher_steps as usize);
            let mut teacher = Teacher { model, guidance: setup.config.sampling.guidance };
            all.push((n, sampler.teacher(&mut teacher, &which, a.seed, n)?));
        } else {
            let steps = if a.steps.is_empty() { setup.config.sampling.steps.iter().map(|n| *n as usize).collect() } else { a.steps.clone() };
            for n in steps {
                all.push((n, sampler.student(&mut model, &which, a.seed, n)?));
            }
        }
    }
    files::make_folder(&a.output)?;
    let mut said = vec![];
    for (n, d) in &all {
        let (png, tensors) = (a.output.join(format!("samples-{n}.png")), a.output.join(format!("samples-{n}.safetensors")));
        files::write(&png, &setup.picture(d, which.len())?.png()?)?;
        let mut t = files::Tensors::from([("samples".to_string(), d.samples.tensor(DType::F32).map_err(|e| e.to_string())?)]);
        t.extend(setup.feed.conditions(&which)?.0.into_iter().map(|(k, v)| (k.to_string(), v)));
        files::write(&tensors, &files::to_safetensors(&t)?)?;
        said.push(json!({"steps": n, "evaluations": d.evaluations, "seconds": d.seconds, "picture": png, "tensors": tensors}));
        if !a.json {
            println!("{n} steps: {} samples, {} network evaluations each, {:.3} s; {}", which.len(), d.evaluations, d.seconds, png.display());
        }
    }
    if a.json {
        println!("{}", json!({"samples": which.len(), "runs": said}));
    }
    Ok(())
}
