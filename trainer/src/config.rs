//! Configurations of trainings: TOML, every key documented and checked, an unknown one answered with its place and the nearest name. `Config::print` writes the
//! documentation as a commented configuration, from the same tables that read it.

pub mod schema;

use ir::diagnostic::{Error, Span, render};
use schema::{Key, Section, comment, nearest, read, section, span, table};
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

section! {
    /// The run as a whole.
    Run = "run" {
        /// Folder of checkpoints, metrics, pictures and the report, relative to where the command is started.
        folder: String = "runs/digits".into(), "not empty", |x| !x.is_empty();
        /// Seed of every random number of the training.
        seed: u64 = 0, "", |_x| true;
        /// The machine: `cpu`, `cuda` (the first CUDA device), `sim` (the PTX machine in software, very slow), `reference` (the f64 evaluator, slower still).
        on: String = "cpu".into(), "reference, cpu, sim or cuda", |x| crate::program::On::named(x).is_some();
        /// Threads; 0 is all. Results do not depend on it.
        threads: u64 = 0, "at most 1024", |x| *x <= 1024;
        /// Iterations between checkpoints.
        checkpoint_every: u64 = 100, "at least 1", |x| *x > 0;
        /// Checkpoints that are kept.
        keep: u64 = 2, "1 to 1000", |x| (1..=1000).contains(x);
        /// Iterations between pictures of samples; 0 for none.
        picture_every: u64 = 0, "", |_x| true;
    }
}

section! {
    /// What is learned from.
    Data = "data" {
        /// `digits` (the shipped ones), `clips` (moving digits, made from them), `images` (grey images in a CSV file, the label last), `latents` (a safetensors file with `x0`,
        /// `labels` and further conditions).
        kind: String = "digits".into(), "digits, clips, images or latents", |x| ["digits", "clips", "images", "latents"].contains(&x.as_str());
        /// The file of `images` and `latents`, relative to this configuration.
        path: String = String::new(), "", |_x| true;
        /// Height in pixels of `images` and `clips`.
        height: u64 = 12, "1 to 4096", |x| (1..=4096).contains(x);
        /// Width in pixels of `images` and `clips`.
        width: u64 = 12, "1 to 4096", |x| (1..=4096).contains(x);
        /// The value of white in `images`.
        white: f64 = 16.0, "above 0", |x| *x > 0.0;
        /// Frames of `clips`.
        frames: u64 = 5, "1 to 1024", |x| (1..=1024).contains(x);
        /// How many `clips` are made.
        count: u64 = 3594, "2 to 1000000", |x| (2..=1_000_000).contains(x);
        /// Seed of what is made.
        seed: u64 = 0, "", |_x| true;
        /// Whether `latents` are of mean 0 and deviation 1 already and stay as they are.
        normalised: bool = false, "", |_x| true;
    }
}

section! {
    /// The network, and what it begins from.
    Network = "network" {
        /// A `config.json` as diffusers has them (`ImageTransformer2DModel`, `WanTransformer3DModel`, `CosmosTransformer3DModel`), relative to this configuration. Empty: the digits' network
        /// when teaching, the teacher's when distilling.
        config: String = String::new(), "", |_x| true;
        /// Folder of the teacher (config.json and weights), relative to this configuration; distilling begins from its weights.
        teacher: String = String::new(), "", |_x| true;
        /// Folder of weights to begin from instead, relative to this configuration: a run that goes on from another's `final`.
        start: String = String::new(), "", |_x| true;
        /// What the network's times in 0 to 1 are multiplied by; 0 for its class's own (1000 for Wan). Small networks that are taught here want 10 and less: tangents grow with it.
        time_scale: f64 = 0.0, "0 or more", |x| *x >= 0.0;
        /// Seed of weights that begin from nothing.
        seed: u64 = 0, "", |_x| true;
    }
}

section! {
    /// How samples are drawn, for pictures, `sample` and `evaluate`.
    Sampling = "sampling" {
        /// Numbers of steps of the student.
        steps: Vec<u64> = vec![1, 2, 4], "each 1 to 8", |x| !x.is_empty() && x.iter().all(|n| (1..=8).contains(n));
        /// The largest noise over signal, where sampling begins.
        sigma_max: f64 = 80.0, "above 0", |x| *x > 0.0;
        /// TrigFlow times in the middle; the paper's are 1.3, 1.0, 0.6.
        times: Vec<f64> = vec![1.3, 1.0, 0.6], "each between 0 and 1.5708", |x| x.iter().all(|t| *t > 0.0 && *t < std::f64::consts::FRAC_PI_2);
        /// New noise after each step (true), or the deterministic step along the velocity (false).
        stochastic: bool = true, "", |_x| true;
        /// Steps of the teacher.
        teacher_steps: u64 = 50, "1 to 1000", |x| (1..=1000).contains(x);
        /// The teacher's solver.
        teacher_solver: String = "euler".into(), "euler or unipc", |x| ["euler", "unipc"].contains(&x.as_str());
        /// Shift of the teacher's times towards noise; 1 for small images, 5 for large video.
        teacher_shift: f64 = 1.0, "above 0", |x| *x > 0.0;
        /// Guidance of the teacher: v_u + w·(v_c − v_u).
        guidance: f64 = 2.0, "0 or more", |x| *x >= 0.0;
        /// Samples of each picture.
        picture_samples: u64 = 40, "1 to 4096", |x| (1..=4096).contains(x);
    }
}

section! {
    /// How samples are judged.
    Evaluation = "evaluation" {
        /// Samples that are drawn; classes in turn.
        samples: u64 = 2000, "20 to 100000", |x| (20..=100_000).contains(x);
        /// Seed of their noise; the same for every network.
        seed: u64 = 12345, "", |_x| true;
        /// Samples that a network sees at once.
        batch: u64 = 250, "1 to 10000", |x| (1..=10_000).contains(x);
        /// Whether the teacher is judged, too.
        teacher: bool = true, "", |_x| true;
        /// Share of the real samples on which the classifier is not trained, but tested.
        held_out: f64 = 0.2, "between 0 and 0.9", |x| *x > 0.0 && *x < 0.9;
        /// Width of the classifier's hidden layer.
        classifier_width: u64 = 256, "1 to 4096", |x| (1..=4096).contains(x);
        /// Features of the classifier, in which distances are taken.
        features: u64 = 32, "2 to 1024", |x| (2..=1024).contains(x);
        /// Iterations of the classifier's training.
        classifier_iterations: u64 = 1500, "1 to 1000000", |x| (1..=1_000_000).contains(x);
    }
}

section! {
    /// One stage of a training: a method and its numbers. Stages follow each other; each begins with the averaged weights of the one before. A key that the method does not read is
    /// refused.
    Stage = "stage" {
        /// `flow` (teaching), `scm`, `dcm`, `dmd`, `dmd2`, `rcm`, `meanflow` (distilling).
        method: String = "rcm".into(), "flow, scm, dcm, dmd, dmd2, rcm or meanflow", |x| METHODS.contains(&x.as_str());
        /// Iterations of the stage, those of the fake score's turns included.
        iterations: u64 = 200, "1 to 100000000", |x| (1..=100_000_000).contains(x);
        /// Samples in a batch.
        batch: u64 = 128, "1 to 65536", |x| (1..=65_536).contains(x);
        /// Learning rate of the network that is trained, after its warm-up.
        rate: f64 = 1e-3, "above 0 and at most 1", |x| *x > 0.0 && *x <= 1.0;
        /// How the rate goes on: `constant`, `linear` or `cosine` down to `final_rate`.
        schedule: String = "linear".into(), "constant, linear or cosine", |x| ["constant", "linear", "cosine"].contains(&x.as_str());
        /// Iterations over which the rate rises from near 0.
        rate_warm_up: u64 = 0, "", |_x| true;
        /// Where the rate ends, as a part of `rate`.
        final_rate: f64 = 0.02, "0 to 1", |x| (0.0..=1.0).contains(x);
        /// β₁ of AdamW; 0 keeps no first moment.
        beta1: f64 = 0.0, "0 or more and below 1", |x| (0.0..1.0).contains(x);
        /// β₂ of AdamW.
        beta2: f64 = 0.999, "0 or more and below 1", |x| (0.0..1.0).contains(x);
        /// Weight decay of AdamW, decoupled.
        weight_decay: f64 = 0.01, "0 or more", |x| *x >= 0.0;
        /// Relative width of the power-function average of the weights, which is what is sampled from and kept.
        average_width: f64 = 0.1, "above 0 and at most 0.2886", |x| *x > 0.0 && *x <= 0.2886;
        /// μ of the times that are learned at: ln σ is normal, σ being noise over signal.
        time_mean: f64 = 0.0, "-10 to 10", |x| x.abs() <= 10.0;
        /// Deviation of ln σ of the times that are learned at.
        time_deviation: f64 = 1.6, "above 0 and at most 10", |x| *x > 0.0 && *x <= 10.0;
        /// Share of samples whose time is uniform instead.
        uniform: f64 = 0.2, "0 to 1", |x| (0.0..=1.0).contains(x);
        /// Share of samples that are learned without their condition, so that the teacher can be guided.
        drop: f64 = 0.15, "0 to 1", |x| (0.0..=1.0).contains(x);
        /// Terms of the consistency condition: `flow` (rectified flow) or `trig` (TrigFlow, as rCM's code has it).
        form: String = "flow".into(), "flow or trig", |x| ["flow", "trig"].contains(&x.as_str());
        /// How the network's tangent is found: `forward` mode, a `finite` difference, or `finite-time` (forward mode along the sample, a difference along time).
        tangent: String = "forward".into(), "forward, finite or finite-time", |x| ["forward", "finite", "finite-time"].contains(&x.as_str());
        /// Size of the difference of finite tangents.
        difference: f64 = 1e-3, "above 0 and at most 0.1", |x| *x > 0.0 && *x <= 0.1;
        /// H: iterations over which the tangent's weight r rises from 0 to 1, and before which no score is matched.
        tangent_warm_up: u64 = 0, "", |_x| true;
        /// c of the normalised tangent g/(‖g‖ + c).
        tangent_constant: f64 = 0.1, "above 0", |x| *x > 0.0;
        /// Factor of the consistency loss.
        consistency_scale: f64 = 1.0, "above 0", |x| *x > 0.0;
        /// Every how many of the student's turns its tangent is compared with a difference; 0 for never.
        monitor_every: u64 = 0, "", |_x| true;
        /// λ: weight of the score loss beside the consistency loss. Small images want 0.3 to 1, large latents 0.01.
        lambda: f64 = 0.3, "0 or more", |x| *x >= 0.0;
        /// Mean of ln σ of p_D, the times at which scores are compared. Low noise keeps small images from over-saturation.
        score_mean: f64 = -1.0, "-10 to 10", |x| x.abs() <= 10.0;
        /// Deviation of ln σ of p_D.
        score_deviation: f64 = 1.2, "above 0 and at most 10", |x| *x > 0.0 && *x <= 10.0;
        /// Mean of ln σ of the times in the middle of rollouts.
        rollout_mean: f64 = 0.0, "-10 to 10", |x| x.abs() <= 10.0;
        /// Deviation of ln σ of the times in the middle of rollouts.
        rollout_deviation: f64 = 1.6, "above 0 and at most 10", |x| *x > 0.0 && *x <= 10.0;
        /// TrigFlow time at which rollouts begin, with pure noise; π/2 as in rCM. The sampler's own first step is at arctan `sigma_max`.
        rollout_start: f64 = std::f64::consts::FRAC_PI_2, "above 0 and at most 1.5708", |t| *t > 0.0 && *t <= std::f64::consts::FRAC_PI_2;
        /// TrigFlow times in the middle of rollouts, where they are fixed (backward simulation); empty: they are drawn.
        rollout_times: Vec<f64> = vec![], "each between 0 and 1.5708, falling", |x| x.iter().all(|t| *t > 0.0 && *t < std::f64::consts::FRAC_PI_2) && x.windows(2).all(|w| w[0] >= w[1]);
        /// Steps of the longest rollout; rollouts have 1 to this many, in turn.
        rollout: u64 = 4, "1 to 8", |x| (1..=8).contains(x);
        /// Every how many iterations the student learns; the fake score learns in the others.
        student_every: u64 = 4, "2 to 1000", |x| (2..=1000).contains(x);
        /// Iterations in which the fake score learns alone at first.
        critic_first: u64 = 100, "", |_x| true;
        /// Learning rate of the fake score.
        critic_rate: f64 = 5e-4, "above 0 and at most 1", |x| *x > 0.0 && *x <= 1.0;
        /// Steps of the grid of discrete consistency.
        grid_steps: u64 = 48, "2 to 10000", |x| (2..=10_000).contains(x);
        /// How many steps of the grid a pair is apart.
        grid_skip: u64 = 1, "1 to 100", |x| (1..=100).contains(x);
        /// Shift of the grid towards noise.
        grid_shift: f64 = 1.0, "above 0", |x| *x > 0.0;
        /// Weight of the adversarial loss in the student's loss; 0 for none.
        generator_weight: f64 = 0.003, "0 or more", |x| *x >= 0.0;
        /// Weight of the discriminator's loss in the fake score's loss; 0 for none.
        discriminator_weight: f64 = 0.01, "0 or more", |x| *x >= 0.0;
        /// Width of the discriminator's hidden layer.
        discriminator_width: u64 = 64, "1 to 65536", |x| (1..=65_536).contains(x);
        /// Share of samples whose two times are the same.
        equal: f64 = 0.25, "0 to 1", |x| (0.0..=1.0).contains(x);
        /// p of the weight 1/(‖error‖² + c)^p.
        power: f64 = 1.0, "0 to 2", |x| (0.0..=2.0).contains(x);
        /// c of that weight.
        constant: f64 = 1e-3, "above 0", |x| *x > 0.0;
    }
}

/// Methods of stages.
pub const METHODS: [&str; 7] = ["flow", "scm", "dcm", "dmd", "dmd2", "rcm", "meanflow"];

/// Keys of stages that only some methods read.
const READ_BY: [(&str, &[&str]); 31] = {
    const CONTINUOUS: &[&str] = &["scm", "rcm"];
    const CONSISTENT: &[&str] = &["scm", "dcm", "rcm"];
    const MATCHED: &[&str] = &["dmd", "dmd2", "rcm"];
    const TIMED: &[&str] = &["flow", "scm", "rcm", "meanflow"];
    [
        ("time_mean", TIMED),
        ("time_deviation", TIMED),
        ("uniform", &["flow"]),
        ("drop", &["flow"]),
        ("form", CONTINUOUS),
        ("tangent", CONTINUOUS),
        ("difference", CONTINUOUS),
        ("tangent_warm_up", CONTINUOUS),
        ("tangent_constant", CONTINUOUS),
        ("consistency_scale", CONSISTENT),
        ("monitor_every", CONTINUOUS),
        ("lambda", MATCHED),
        ("score_mean", MATCHED),
        ("score_deviation", MATCHED),
        ("rollout_mean", MATCHED),
        ("rollout_deviation", MATCHED),
        ("rollout_start", MATCHED),
        ("rollout_times", MATCHED),
        ("rollout", MATCHED),
        ("student_every", MATCHED),
        ("critic_first", &["dmd", "rcm"]),
        ("critic_rate", MATCHED),
        ("grid_steps", &["dcm"]),
        ("grid_skip", &["dcm"]),
        ("grid_shift", &["dcm"]),
        ("generator_weight", &["dmd2"]),
        ("discriminator_weight", &["dmd2"]),
        ("discriminator_width", &["dmd2"]),
        ("equal", &["meanflow"]),
        ("power", &["meanflow"]),
        ("constant", &["meanflow"]),
    ]
};

/// What a command wants to do with a configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Train from data.
    Teach,
    /// Train from a teacher.
    Distill,
}

/// A whole configuration.
#[derive(Clone, Debug, PartialEq, Default)]
#[allow(missing_docs)] // the sections say it
pub struct Config {
    pub run: Run,
    pub data: Data,
    pub network: Network,
    pub stages: Vec<Stage>,
    pub sampling: Sampling,
    pub evaluation: Evaluation,
    /// The folder of the file, to which its paths are relative.
    pub folder: PathBuf,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// All that is wrong, each with its place and a hint.
    pub fn load(path: &Path) -> Result<Config, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        let mut c = Config::parse(&path.display().to_string(), &text)?;
        c.folder = path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
        Ok(c)
    }
    /// Reads a text; `file` is for messages.
    ///
    /// # Errors
    /// All that is wrong, each with its place and a hint.
    pub fn parse(file: &str, text: &str) -> Result<Config, String> {
        let mut errors = vec![];
        let c = match DeTable::parse(text) {
            Err(e) => {
                let at = e.span().map_or(Span::default(), span);
                errors.push(Error::new(format!("this is no TOML: {}", e.message().lines().collect::<Vec<_>>().join(", "))).at(at));
                Config::default()
            }
            Ok(t) => Config::from_table(t.get_ref(), &mut errors),
        };
        if errors.is_empty() { Ok(c) } else { Err(render(&errors, file, text)) }
    }
    fn from_table(t: &DeTable, errors: &mut Vec<Error>) -> Config {
        let mut c = Config::default();
        for (key, value) in t {
            let name: &str = key.get_ref();
            if name == Stage::NAME {
                c.read_stages(value.get_ref(), span(value.span()), errors);
                continue;
            }
            match table(name, value) {
                _ if !SECTIONS.contains(&name) => {
                    let hint = nearest(name, SECTIONS.into_iter()).map_or_else(|| format!("there are {}", SECTIONS.join(", ")), |n| format!("did you mean `{n}`?"));
                    errors.push(Error::new(format!("no section `{name}`")).at(span(key.span())).hint(hint));
                }
                Err(e) => errors.push(e),
                Ok(t) => drop(match name {
                    Run::NAME => read(&mut c.run, t, errors),
                    Data::NAME => read(&mut c.data, t, errors),
                    Network::NAME => read(&mut c.network, t, errors),
                    Sampling::NAME => read(&mut c.sampling, t, errors),
                    _ => read(&mut c.evaluation, t, errors),
                }),
            }
        }
        let (steps, times) = (c.sampling.steps.iter().max().copied().unwrap_or(1), c.sampling.times.len() as u64 + 1);
        if steps > times && errors.is_empty() {
            errors.push(Error::new(format!("[sampling] has {steps} steps, but `times` has {} in the middle, enough for {times}", times - 1)).hint("name more times, or fewer steps"));
        }
        c
    }
    fn read_stages(&mut self, v: &DeValue, at: Span, errors: &mut Vec<Error>) {
        let Some(list) = v.as_array() else {
            errors.push(Error::new("stages are a list of tables").at(at).hint("write `[[stage]]`, with two brackets"));
            return;
        };
        for v in list {
            let mut stage = Stage::default();
            match table(Stage::NAME, v) {
                Err(e) => errors.push(e),
                Ok(t) => {
                    for (key, place) in read(&mut stage, t, errors) {
                        if let Some((_, by)) = READ_BY.iter().find(|(k, _)| *k == key).filter(|(_, by)| !by.contains(&stage.method.as_str())) {
                            errors.push(Error::new(format!("the method `{}` does not read `{key}`", stage.method)).at(place).hint(format!("it belongs to {}", by.join(", "))));
                        }
                    }
                    if !t.keys().any(|k| k.get_ref() == "method") {
                        errors.push(Error::new("this stage names no `method`").at(span(v.span())).hint(format!("there are {}", METHODS.join(", "))));
                    }
                }
            }
            self.stages.push(stage);
        }
    }
    /// Whether the configuration can do what is asked.
    ///
    /// # Errors
    /// What is missing, and where to write it.
    pub fn check(&self, purpose: Purpose) -> Result<(), String> {
        if self.stages.is_empty() {
            return Err("the configuration has no stage: write `[[stage]]` with a `method`".into());
        }
        for s in &self.stages {
            match (purpose, s.method == "flow") {
                (Purpose::Teach, false) => return Err(format!("`teach` trains from data by the method `flow`, not by `{}`: use `distill`", s.method)),
                (Purpose::Distill, true) => return Err("`distill` trains from a teacher, and the method `flow` has none: use `teach`".into()),
                _ => {}
            }
        }
        if purpose == Purpose::Distill && self.network.teacher.is_empty() {
            return Err("`distill` needs a teacher: write `teacher = \"FOLDER\"` in [network]".into());
        }
        if matches!(self.data.kind.as_str(), "images" | "latents") && self.data.path.is_empty() {
            return Err(format!("data of kind `{}` need a `path` in [data]", self.data.kind));
        }
        Ok(())
    }
    /// A path of the configuration, relative to its file.
    pub fn path(&self, p: &str) -> PathBuf {
        self.folder.join(p)
    }
    /// That part on which a training's numbers depend: data, network, stages and the seed. Checkpoints carry its checksum.
    pub fn numbers(&self) -> String {
        // Machines round differently; the CPU goes without saying.
        let on = if self.run.on == "cpu" { String::new() } else { format!("on {}\n", self.run.on) };
        format!("{on}seed {}\n{:?}\n{:?}\n{:?}", self.run.seed, self.data, self.network, self.stages)
    }
    /// A commented configuration: every key with its meaning, bounds and default. It parses to the defaults, with the stages given.
    pub fn print(about: &str, stages: &[(&str, &[(&str, &str)])]) -> String {
        let mut out = comment(about, 120) + "\n";
        out += &section_text::<Run>(&[]);
        out += &section_text::<Data>(&[]);
        out += &section_text::<Network>(&[]);
        for (i, (method, set)) in stages.iter().enumerate() {
            let mut all: Vec<(&str, String)> = vec![("method", format!("\"{method}\""))];
            all.extend(set.iter().map(|(k, v)| (*k, v.to_string())));
            // Explained once.
            out += &if i == 0 { stage_text(method, &all) } else { format!("[[stage]]\n{}\n", all.iter().map(|(k, v)| format!("{k} = {v}\n")).collect::<String>()) };
        }
        out += &section_text::<Sampling>(&[]);
        out + &section_text::<Evaluation>(&[])
    }
}

/// Sections that stand once.
const SECTIONS: [&str; 5] = [Run::NAME, Data::NAME, Network::NAME, Sampling::NAME, Evaluation::NAME];

fn key_text(k: &Key, value: Option<&str>) -> String {
    let bounds = if k.bounds.is_empty() { String::new() } else { format!(" ({})", k.bounds) };
    format!("{}{} = {}\n", comment(&format!("{}{bounds}", k.meaning.trim()), 120), k.name, value.unwrap_or(&k.default))
}

fn section_text<S: Section>(set: &[(&str, String)]) -> String {
    let keys = S::keys();
    let of = |k: &Key| set.iter().find(|(n, _)| *n == k.name).map(|(_, v)| v.as_str());
    format!("{}[{}]\n{}\n", comment(S::ABOUT, 120), S::NAME, keys.iter().map(|k| key_text(k, of(k))).collect::<String>())
}

fn stage_text(method: &str, set: &[(&str, String)]) -> String {
    let read = |k: &Key| READ_BY.iter().find(|(n, _)| *n == k.name).is_none_or(|(_, by)| by.contains(&method));
    let of = |k: &Key| set.iter().find(|(n, _)| *n == k.name).map(|(_, v)| v.as_str());
    let keys: String = Stage::keys().iter().filter(|k| read(k)).map(|k| key_text(k, of(k))).collect();
    format!("{}[[stage]]\n{keys}\n", comment(Stage::ABOUT, 120))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Config::parse("a.toml", text).unwrap_err()
    }

    #[test]
    fn defaults_are_printed_and_read_back() {
        let text = Config::print("An example.", &[("scm", &[("iterations", "100")]), ("rcm", &[])]);
        let c = Config::parse("printed", &text).unwrap();
        let stage = |method: &str, iterations| Stage { method: method.into(), iterations, ..Stage::default() };
        assert_eq!(c, Config { stages: vec![stage("scm", 100), stage("rcm", 200)], ..Config::default() });
        // Every key has its line of explanation.
        assert!(text.lines().filter(|l| l.contains(" = ")).count() > 40);
        assert!(text.contains("# Seed of every random number of the training.\nseed = 0\n"), "{text}");
    }

    #[test]
    fn mistakes_are_answered_with_place_and_hint() {
        assert_eq!(
            refused("[run]\nseed = 1\ncheckpoint_evry = 5\n"),
            "error: no key `checkpoint_evry` in [run]\n  --> a.toml:3:1\n   | checkpoint_evry = 5\n   | ^^^^^^^^^^^^^^^\n  hint: did you mean `checkpoint_every`?\n"
        );
        assert_eq!(refused("[dat]\n"), "error: no section `dat`\n  --> a.toml:1:2\n   | [dat]\n   |  ^^^\n  hint: did you mean `data`?\n");
        assert!(refused("[run]\nseed = -1\n").starts_with("error: `seed` in [run] must be a whole number\n  --> a.toml:2:8\n"));
        assert!(refused("[run]\nkeep = 0\n").starts_with("error: `keep` in [run] must be 1 to 1000\n  --> a.toml:2:8\n"));
        assert!(refused("[data]\nkind = \"mnist\"\n").contains("must be digits, clips, images or latents"));
        assert!(refused("[run\n").starts_with("error: this is no TOML: "));
        assert!(refused("stage = 3\n").contains("hint: write `[[stage]]`, with two brackets"));
        assert!(refused("[[stage]]\nbatch = 4\n").contains("this stage names no `method`"));
        assert!(refused("[sampling]\nsteps = [1, 8]\n").contains("8 steps, but `times` has 3 in the middle, enough for 4"));
        assert_eq!(
            refused("[[stage]]\nmethod = \"scm\"\nlambda = 0.3\n"),
            "error: the method `scm` does not read `lambda`\n  --> a.toml:3:1\n   | lambda = 0.3\n   | ^^^^^^\n  hint: it belongs to dmd, dmd2, rcm\n"
        );
        // The table of readers names keys that there are.
        let keys = Stage::keys();
        assert!(READ_BY.iter().all(|(k, by)| keys.iter().any(|n| n.name == *k) && by.iter().all(|m| METHODS.contains(m))));
        assert!(refused("[run]\nnothing_like_it = 1\n").contains("hint: the keys of [run] are folder, seed, "));
        // All at once.
        assert_eq!(refused("[run]\nsed = 1\nkep = 2\n").matches("error: ").count(), 2);
    }

    #[test]
    fn purposes_differ() {
        let c = |t: &str| Config::parse("a", t).unwrap();
        assert!(c("").check(Purpose::Teach).unwrap_err().contains("no stage"));
        assert!(c("[[stage]]\nmethod = \"scm\"\n").check(Purpose::Teach).unwrap_err().contains("use `distill`"));
        assert!(c("[[stage]]\nmethod = \"flow\"\n").check(Purpose::Distill).unwrap_err().contains("use `teach`"));
        assert!(c("[[stage]]\nmethod = \"scm\"\n").check(Purpose::Distill).unwrap_err().contains("needs a teacher"));
        assert!(c("[[stage]]\nmethod = \"flow\"\n").check(Purpose::Teach).is_ok());
    }

    #[test]
    fn only_numbers_belong_to_the_checksum() {
        let c = Config::parse("a", "[[stage]]\nmethod = \"scm\"\n").unwrap();
        let mut d = c.clone();
        d.run.checkpoint_every += 1;
        d.run.folder = "elsewhere".into();
        assert_eq!(c.numbers(), d.numbers());
        d.stages[0].rate *= 2.0;
        assert_ne!(c.numbers(), d.numbers());
    }
}
