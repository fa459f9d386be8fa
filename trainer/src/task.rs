//! A training as its configuration says: data, networks, teacher, stages. What the loop ([`crate::train`]) asks for, made of the parts that know their own subjects.

pub mod draw;
pub mod judge;
pub mod networks;
pub mod stages;

use crate::checkpoint::export;
use crate::config::{Config, Purpose, Stage as StageConfig};
use crate::data::feed::{Feed, Told};
use crate::data::{Dataset, clips, digits, file};
use crate::files::Tensors;
use crate::method::Teacher;
use crate::method::{Batch, Method, Weights};
use crate::network::{Model, Network};
use crate::picture::Picture;
use crate::program::{On, Options};
use crate::random::Random;
use crate::train::{Stage, Task};
use draw::{Drawn, Sampler};
use networks::Described;

/// Everything that a training, its samples and their evaluation are made of.
pub struct Setup {
    /// The configuration.
    pub config: Config,
    /// The data, as the network reads them.
    pub feed: Feed,
    /// The network that is trained.
    pub described: Described,
    /// Its weights at the beginning: the teacher's, or drawn.
    pub start: Weights,
    /// The teacher's weights, when distilling.
    pub teacher: Option<Weights>,
    /// How programs run.
    pub options: Options,
}

/// The set that a configuration names.
///
/// # Errors
/// Those of its reader.
pub fn dataset(c: &Config) -> Result<Dataset, String> {
    let d = &c.data;
    match d.kind.as_str() {
        "clips" => clips::make(clips::Size { frames: d.frames as usize, height: d.height as usize, width: d.width as usize }, d.count as usize, d.seed),
        "images" => digits::from_file(&c.path(&d.path), d.height as usize, d.width as usize, d.white),
        "latents" => file::read(&c.path(&d.path), d.normalised),
        _ => digits::shipped(),
    }
}

impl Setup {
    /// What the configuration names, for a purpose.
    ///
    /// # Errors
    /// A file that is not there or not what it should be, data that the network cannot read.
    pub fn new(config: Config, purpose: Purpose) -> Result<Setup, String> {
        config.check(purpose)?;
        let data = dataset(&config)?;
        let on = On::named(&config.run.on).ok_or_else(|| format!("no machine `{}`", config.run.on))?;
        let options = Options { on, threads: (config.run.threads > 0).then_some(config.run.threads as usize), ..Options::default() };
        let n = &config.network;
        let teacher = config.path(&n.teacher);
        let mut described = match (n.config.is_empty(), purpose) {
            (false, _) => Described::read(&config.path(&n.config))?,
            (true, Purpose::Distill) => Described::read(&teacher.join("config.json"))?,
            (true, Purpose::Teach) => Described::digits(),
        };
        described.time_scale = (n.time_scale > 0.0).then_some(n.time_scale);
        let feed = Feed::new(data, if described.classes() { Told::Class } else { Told::Tokens }, described.axes())?;
        let start = described.start(&feed, n.seed)?;
        let teacher = match purpose {
            Purpose::Teach => None,
            Purpose::Distill => Some(described.load(&teacher, &feed)?),
        };
        let begun = if n.start.is_empty() { None } else { Some(described.load(&config.path(&n.start), &feed)?) };
        Ok(Setup { start: begun.or_else(|| teacher.clone()).unwrap_or(start), config, feed, described, teacher, options })
    }
    /// The network as methods see it; with a second time where it jumps, with features where they are judged.
    ///
    /// # Errors
    /// A variant that the network has not.
    pub fn network(&self, stage: Option<&StageConfig>) -> Result<Network, String> {
        let method = stage.map_or("", |s| s.method.as_str());
        let judged = stage.is_some_and(|s| method == "dmd2" && (s.generator_weight > 0.0 || s.discriminator_weight > 0.0));
        self.described.network(&self.feed, method == "meanflow", judged)
    }
    /// The teacher, guided.
    ///
    /// # Errors
    /// No teacher, or those of programs.
    pub fn guided(&self) -> Result<Teacher, String> {
        let weights = self.teacher.as_ref().ok_or("there is no teacher")?;
        let model = Model::new(self.network(None)?, weights, &self.options).map_err(|e| e.to_string())?;
        Ok(Teacher { model, guidance: self.config.sampling.guidance })
    }
    /// Whether the last stage's network jumps between two times.
    pub fn jumps(&self) -> bool {
        self.config.stages.last().is_some_and(|s| s.method == "meanflow")
    }
    /// The sampler of the configuration.
    pub fn sampler(&self) -> Sampler<'_> {
        Sampler { feed: &self.feed, sampling: &self.config.sampling, batch: self.config.evaluation.batch as usize }
    }
    /// A model of the trained network with these weights, for sampling.
    ///
    /// # Errors
    /// Weights that do not fit.
    pub fn model(&self, weights: &Weights, jumps: bool) -> Result<Model, String> {
        let network = self.described.network(&self.feed, jumps, false)?;
        Model::new(network, weights, &self.options).map_err(|e| e.to_string())
    }
    /// Samples as one picture, ten or so in a row.
    ///
    /// # Errors
    /// Samples that are no pictures.
    pub fn picture(&self, drawn: &Drawn, count: usize) -> Result<Picture, String> {
        let data = self.feed.data();
        let numbers: Vec<f32> = drawn.samples.data().iter().map(|x| *x as f32).collect();
        let columns = if data.classes > 1 && data.shape.len() == 3 { data.classes } else { 4 };
        Ok(Picture::grid(&self.one_by_one(&numbers, count)?, columns).zoomed(4))
    }
    /// The first samples of a set in one row, two where they are clips.
    ///
    /// # Errors
    /// Samples that are no pictures.
    pub fn strip(&self, numbers: &[f32], count: usize) -> Result<Picture, String> {
        let columns = if self.feed.data().shape.len() == 3 { count } else { count.div_ceil(2).min(4) };
        Ok(Picture::grid(&self.one_by_one(numbers, count)?, columns))
    }
    fn one_by_one(&self, numbers: &[f32], count: usize) -> Result<Vec<Picture>, String> {
        let data = self.feed.data();
        numbers.chunks(data.size()).take(count).map(|x| crate::picture::frames(&data.grey(x), &data.shape)).collect()
    }
}

impl Task for Setup {
    fn stages(&self) -> Vec<Stage> {
        self.config.stages.iter().map(|s| Stage { name: s.method.clone(), iterations: s.iterations, batch: s.batch as usize }).collect()
    }
    fn method(&self, stage: usize, before: Option<&dyn Method>) -> Result<Box<dyn Method>, String> {
        let s = self.config.stages.get(stage).ok_or_else(|| format!("there is no stage {stage}"))?;
        stages::method(self, s, before)
    }
    fn batch(&self, stage: usize, iteration: u64, random: &Random) -> Result<Batch, String> {
        self.feed.batch(random, iteration, self.config.stages[stage].batch as usize)
    }
    fn pictures(&self, stage: usize, method: &dyn Method) -> Result<Vec<(String, Picture)>, String> {
        let count = self.config.sampling.picture_samples as usize;
        let jumps = self.config.stages[stage].method == "meanflow";
        let which = self.feed.in_turn(count);
        let mut model = self.model(&method.average().map_err(|e| e.to_string())?, jumps)?;
        let sampler = self.sampler();
        if method.name() == "flow" {
            // A teacher: many steps, but no more than a picture is worth.
            let mut teacher = Teacher { model, guidance: self.config.sampling.guidance };
            let d = sampler.teacher(&mut teacher, &which, 0, self.config.sampling.teacher_steps.min(20) as usize)?;
            return Ok(vec![("samples".into(), self.picture(&d, count)?)]);
        }
        let steps = &self.config.sampling.steps;
        steps.iter().map(|n| Ok((format!("{n}-step"), self.picture(&sampler.student(&mut model, &which, 0, *n as usize)?, count)?))).collect()
    }
    fn keep(&self, stage: usize, method: &dyn Method) -> Result<(), String> {
        let weights: Tensors = method.average().map_err(|e| e.to_string())?.into_iter().map(|(n, t)| (n.to_string(), t)).collect();
        let name = if stage + 1 == self.config.stages.len() { "final".into() } else { format!("stage-{stage}-{}", method.name()) };
        export(&std::path::Path::new(&self.config.run.folder).join(name), &self.described.json, &weights)
    }
}
