//! The loop around a method: batches, checkpoints, metrics, pictures, stages one after the other.
//!
//! ```text
//! state after iteration i = step(state after i − 1, batch(seed, i), random(seed, i))
//! ```
//!
//! Nothing else enters, so a checkpoint is the state and its i. A training that is killed anywhere goes on from its last whole checkpoint and repeats, bit for bit, what
//! was lost. Metrics are forced to the disk before the checkpoint that knows of them; lines behind the checkpoint are dropped when the training goes on.

use crate::checkpoint::{Checkpoint, Store};
use crate::files;
use crate::method::{Batch, Method, Metrics};
use crate::metrics::{Figures, Recorder};
use crate::picture::Picture;
use crate::random::Random;
use std::path::PathBuf;
use std::time::Instant;

/// What a stage is, before it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Its method's name, for messages and curves.
    pub name: String,
    /// How many iterations.
    pub iterations: u64,
    /// Samples in a batch.
    pub batch: usize,
}

/// What is trained.
pub trait Task {
    /// The stages, in order.
    fn stages(&self) -> Vec<Stage>;
    /// The method of a stage; `before` is that of the stage before, as it ended. Without one, in a stage that is not the first, the method's state is restored
    /// from a checkpoint right afterwards, so it may begin from anything of the right shapes.
    ///
    /// # Errors
    /// What the method says.
    fn method(&self, stage: usize, before: Option<&dyn Method>) -> Result<Box<dyn Method>, String>;
    /// The batch of an iteration of a stage, which depends on nothing but its arguments.
    ///
    /// # Errors
    /// What the data say.
    fn batch(&self, stage: usize, iteration: u64, random: &Random) -> Result<Batch, String>;
    /// Pictures of the state of training, by name; may be none.
    ///
    /// # Errors
    /// What the sampler says.
    fn pictures(&self, stage: usize, method: &dyn Method) -> Result<Vec<(String, Picture)>, String>;
    /// What is kept of a stage that is done, such as weights in a folder.
    ///
    /// # Errors
    /// What cannot be written.
    fn keep(&self, stage: usize, method: &dyn Method) -> Result<(), String>;
}

/// How often, and where.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The run's folder.
    pub folder: PathBuf,
    /// Seed of every random number.
    pub seed: u64,
    /// A checkpoint every so many iterations; one more where a stage ends or the run stops.
    pub checkpoint_every: u64,
    /// How many checkpoints are kept.
    pub keep: usize,
    /// Pictures every so many iterations; 0 for none.
    pub picture_every: u64,
    /// Go on from the last checkpoint.
    pub resume: bool,
    /// Checksum of that part of the configuration on which numbers depend.
    pub configuration: String,
}

/// What an iteration says to whoever watches.
pub struct Progress<'a> {
    /// Which stage, and how many there are.
    pub stage: (usize, usize),
    /// The stage's name.
    pub name: &'a str,
    /// Iterations done over all stages, and how many there are.
    pub iteration: (u64, u64),
    /// What the method says.
    pub metrics: &'a Metrics,
    /// Sums over the run so far of what counts up: `skipped` and `nonfinite`.
    pub bad: f64,
    /// Samples per second, over the last iterations.
    pub rate: f64,
    /// Seconds to the end at the present speed.
    pub left: f64,
}

/// Who watches a training.
pub trait Watch {
    /// After each iteration.
    fn step(&mut self, p: &Progress);
    /// Something worth a line.
    fn note(&mut self, text: &str);
    /// Whether the training should save and stop.
    fn stop(&self) -> bool;
}

/// How a training ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Iterations done over all stages.
    pub iteration: u64,
    /// Whether that is all of them.
    pub finished: bool,
    /// Seconds in steps of this process.
    pub seconds: f64,
    /// Launches of compiled programs in this process.
    pub launches: u64,
}

/// Trains, from the beginning or from a checkpoint. Returns the last stage's method, too.
///
/// # Errors
/// Whatever a part says. What was saved before stays.
pub fn train(task: &dyn Task, s: &Settings, watch: &mut dyn Watch) -> Result<(Outcome, Box<dyn Method>), String> {
    let stages = task.stages();
    let total: u64 = stages.iter().map(|s| s.iterations).sum();
    files::make_folder(&s.folder)?;
    let store = Store::open(&s.folder.join("checkpoints"), s.keep)?;
    let found = store.latest()?;
    found.damaged.iter().for_each(|d| watch.note(d));
    let from = match (found.checkpoint, s.resume) {
        (Some(c), false) => {
            return Err(format!("{} holds a training at iteration {}: --resume goes on with it; remove the folder or name another to begin anew", s.folder.display(), c.iteration));
        }
        (None, true) if !found.damaged.is_empty() => return Err(format!("no checkpoint in {} is whole", s.folder.display())),
        (None, _) => None,
        (Some(c), true) => {
            if c.configuration != s.configuration {
                return Err(format!("the checkpoint in {} is of another configuration, which its config.toml shows; numbers would mix. Restore that configuration, or name another folder", s.folder.display()));
            }
            watch.note(&format!("goes on from iteration {}", c.iteration));
            Some(c)
        }
    };
    let mut done = from.as_ref().map_or(0, |c| c.iteration);
    // The stage that the state belongs to: at a boundary that which ended, unless nothing was done.
    let mut stage = stages.iter().scan(0, |end, s| { *end += s.iterations; Some(*end) }).position(|end| done <= end).unwrap_or(stages.len().saturating_sub(1));
    if stages.is_empty() || done > total {
        return Err(format!("the training has {} stages and {total} iterations, but {done} are done", stages.len()));
    }
    let mut recorder = Recorder::open(&s.folder, done)?;
    let mut method = task.method(stage, None)?;
    let mut bad = 0.0;
    if let Some(c) = &from {
        method.restore(&c.tensors).map_err(|e| format!("the checkpoint of iteration {done}: {e}"))?;
        bad = c.notes["bad"].as_f64().unwrap_or(0.0);
    }
    let save = |method: &dyn Method, done: u64, bad: f64, recorder: &mut Recorder| -> Result<(), String> {
        recorder.sync()?;
        let notes = serde_json::json!({ "bad": bad, "method": method.name() });
        store.save(&Checkpoint { iteration: done, configuration: s.configuration.clone(), tensors: method.state().map_err(|e| e.to_string())?, notes }).map(drop)
    };
    let (start, mut launches, mut saved) = (Instant::now(), 0, from.map(|c| c.iteration));
    let mut pace = Pace::default();
    loop {
        let before: u64 = stages[..stage].iter().map(|s| s.iterations).sum();
        let end = before + stages[stage].iterations;
        let random = random_of(s.seed, stage);
        while done < end {
            if watch.stop() {
                if saved != Some(done) {
                    save(method.as_ref(), done, bad, &mut recorder)?;
                }
                watch.note(&format!("stopped at iteration {done} of {total}, saved: --resume goes on"));
                return Ok((Outcome { iteration: done, finished: false, seconds: start.elapsed().as_secs_f64(), launches: launches + method.launches() }, method));
            }
            let local = done - before;
            let at = |what: &dyn std::fmt::Display| format!("{}, iteration {local}: {what}", stages[stage].name);
            let batch = task.batch(stage, local, &random).map_err(|e| at(&e))?;
            let metrics = method.step(local, &batch, &random).map_err(|e| at(&e))?;
            done += 1;
            bad += metrics.get("skipped").unwrap_or(0.0) + metrics.get("nonfinite").unwrap_or(0.0);
            let rate = pace.tick(start.elapsed().as_secs_f64());
            let mut figures: Figures = metrics.0.iter().map(|(k, v)| (k.to_string(), *v)).collect();
            figures.insert("stage".into(), stage as f64);
            figures.insert("samples_per_second".into(), rate * stages[stage].batch as f64);
            recorder.write(done, &figures)?;
            watch.step(&Progress {
                stage: (stage, stages.len()),
                name: &stages[stage].name,
                iteration: (done, total),
                metrics: &metrics,
                bad,
                rate: rate * stages[stage].batch as f64,
                left: if rate > 0.0 { (total - done) as f64 / rate } else { f64::INFINITY },
            });
            if s.picture_every > 0 && done.is_multiple_of(s.picture_every) {
                for (name, p) in task.pictures(stage, method.as_ref())? {
                    let png = p.png()?;
                    files::make_folder(&s.folder.join("pictures"))?;
                    files::write(&s.folder.join(format!("pictures/{done:010}-{name}.png")), &png)?;
                    recorder.picture(done, &name, &png, (p.width, p.height))?;
                }
            }
            if done == end || (s.checkpoint_every > 0 && done.is_multiple_of(s.checkpoint_every)) {
                save(method.as_ref(), done, bad, &mut recorder)?;
                saved = Some(done);
            }
        }
        task.keep(stage, method.as_ref())?;
        if stage + 1 == stages.len() {
            break;
        }
        launches += method.launches();
        stage += 1;
        method = task.method(stage, Some(method.as_ref()))?;
    }
    Ok((Outcome { iteration: done, finished: true, seconds: start.elapsed().as_secs_f64(), launches: launches + method.launches() }, method))
}

/// The random numbers of a stage. Stages count their iterations from 0, so each has numbers of its own.
pub fn random_of(seed: u64, stage: usize) -> Random {
    Random::new(seed.wrapping_add((stage as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// Iterations per second over the last twenty.
#[derive(Default)]
struct Pace(std::collections::VecDeque<f64>);

impl Pace {
    fn tick(&mut self, now: f64) -> f64 {
        self.0.push_back(now);
        if self.0.len() > 21 {
            self.0.pop_front();
        }
        let first = self.0.front().copied().unwrap_or(now);
        // The first tick has only the start before it.
        if self.0.len() > 1 && now > first { (self.0.len() - 1) as f64 / (now - first) } else if now > 0.0 { 1.0 / now } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::Weights;
    use ir::diagnostic::Error;
    use ir::tensor::Tensor;
    use std::cell::Cell;
    use std::collections::BTreeMap;
    use std::path::Path;

    /// Learns something that depends on everything that a step may depend on.
    struct Toy {
        w: Vec<f64>,
    }
    impl Toy {
        fn tensor(&self) -> Tensor {
            Tensor::from_vec(&[self.w.len()], self.w.clone()).unwrap()
        }
    }
    impl Method for Toy {
        fn name(&self) -> &'static str {
            "toy"
        }
        fn step(&mut self, iteration: u64, batch: &Batch, random: &Random) -> Result<Metrics, Error> {
            let (x, s) = (batch.x0.to_f64(), random.stream(iteration, "noise"));
            self.w.iter_mut().enumerate().for_each(|(i, w)| *w = (*w * 1.7 + x[i % x.len()] + s.normal(i as u64)).sin());
            if self.w[0].is_nan() {
                return Err(Error::new("a NaN in the weights"));
            }
            Ok(Metrics::default().with("loss", self.w[0]).with("skipped", f64::from(u8::from(iteration == 3))))
        }
        fn weights(&self) -> Result<Weights, Error> {
            Ok([("w".into(), self.tensor())].into())
        }
        fn average(&self) -> Result<Weights, Error> {
            self.weights()
        }
        fn state(&self) -> Result<BTreeMap<String, Tensor>, Error> {
            Ok([("w".to_string(), self.tensor())].into())
        }
        fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), Error> {
            self.w = state["w"].to_f64();
            Ok(())
        }
        fn launches(&self) -> u64 {
            1
        }
    }

    struct Two;
    impl Task for Two {
        fn stages(&self) -> Vec<Stage> {
            let stage = |name: &str, iterations| Stage { name: name.into(), iterations, batch: 2 };
            vec![stage("first", 7), stage("second", 6)]
        }
        fn method(&self, stage: usize, before: Option<&dyn Method>) -> Result<Box<dyn Method>, String> {
            let w = before.map_or_else(|| vec![stage as f64; 3], |m| m.average().unwrap()["w"].to_f64().iter().map(|x| x + 0.5).collect());
            Ok(Box::new(Toy { w }))
        }
        fn batch(&self, _: usize, iteration: u64, random: &Random) -> Result<Batch, String> {
            Ok(Batch { x0: Tensor::from_vec(&[2], random.stream(iteration, "batch").normals(2)).unwrap(), condition: BTreeMap::new(), empty: BTreeMap::new() })
        }
        fn pictures(&self, _: usize, _: &dyn Method) -> Result<Vec<(String, Picture)>, String> {
            Ok(vec![("samples".into(), Picture::plain(3, 3, 7))])
        }
        fn keep(&self, _: usize, _: &dyn Method) -> Result<(), String> {
            Ok(())
        }
    }

    /// Stops when so many steps were seen, and remembers notes.
    struct After(Cell<u64>, Vec<String>);
    impl Watch for After {
        fn step(&mut self, p: &Progress) {
            assert!(p.rate >= 0.0 && p.left >= 0.0 && p.iteration.1 == 13);
            self.0.set(self.0.get().saturating_sub(1));
        }
        fn note(&mut self, text: &str) {
            self.1.push(text.into());
        }
        fn stop(&self) -> bool {
            self.0.get() == 0
        }
    }

    fn settings(folder: &Path, resume: bool) -> Settings {
        Settings { folder: folder.into(), seed: 5, checkpoint_every: 4, keep: 2, picture_every: 5, resume, configuration: "c".into() }
    }
    /// The lines of metrics, without what the clock says.
    fn lines(folder: &Path) -> Vec<(u64, Figures)> {
        let mut all = crate::metrics::read(&folder.join("metrics.jsonl")).unwrap();
        all.iter_mut().for_each(|l| l.1.retain(|k, _| !k.ends_with("per_second")));
        all
    }

    #[test]
    fn a_training_that_was_stopped_anywhere_ends_the_same() {
        let whole = tempfile::tempdir().unwrap();
        let (outcome, method) = train(&Two, &settings(whole.path(), false), &mut After(Cell::new(99), vec![])).unwrap();
        assert_eq!((outcome.iteration, outcome.finished, outcome.launches), (13, true, 2));
        assert!(whole.path().join("pictures/0000000010-samples.png").exists());
        for stop in 0..13 {
            let dir = tempfile::tempdir().unwrap();
            let mut watch = After(Cell::new(stop), vec![]);
            let (o, _) = train(&Two, &settings(dir.path(), false), &mut watch).unwrap();
            assert_eq!((o.iteration, o.finished), (stop, false));
            assert!(watch.1[0].contains(&format!("stopped at iteration {stop} of 13")));
            let (o, m) = train(&Two, &settings(dir.path(), true), &mut After(Cell::new(99), vec![])).unwrap();
            assert!(o.finished);
            assert_eq!(m.state().unwrap(), method.state().unwrap(), "stopped at {stop}");
            assert_eq!(lines(dir.path()), lines(whole.path()));
        }
    }

    #[test]
    fn a_training_goes_on_from_the_checkpoint_before_a_damaged_one() {
        let (whole, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (_, method) = train(&Two, &settings(whole.path(), false), &mut After(Cell::new(99), vec![])).unwrap();
        train(&Two, &settings(dir.path(), false), &mut After(Cell::new(11), vec![])).unwrap();
        std::fs::write(dir.path().join("checkpoints/0000000011/state.safetensors"), "x").unwrap();
        let mut watch = After(Cell::new(99), vec![]);
        let (_, m) = train(&Two, &settings(dir.path(), true), &mut watch).unwrap();
        assert!(watch.1[0].contains("0000000011 is damaged (state.safetensors: its checksum is wrong)") && watch.1[1] == "goes on from iteration 8", "{:?}", watch.1);
        assert_eq!((m.state().unwrap(), lines(dir.path())), (method.state().unwrap(), lines(whole.path())));
        std::fs::read_dir(dir.path().join("checkpoints")).unwrap().for_each(|e| std::fs::remove_file(e.unwrap().path().join("state.json")).unwrap());
        assert!(train(&Two, &settings(dir.path(), true), &mut watch).err().unwrap().ends_with("is whole"));
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_mixed() {
        let dir = tempfile::tempdir().unwrap();
        train(&Two, &settings(dir.path(), false), &mut After(Cell::new(5), vec![])).unwrap();
        let again = train(&Two, &settings(dir.path(), false), &mut After(Cell::new(5), vec![])).err().unwrap();
        assert!(again.contains("holds a training at iteration 5: --resume goes on with it"), "{again}");
        let other = train(&Two, &Settings { configuration: "d".into(), ..settings(dir.path(), true) }, &mut After(Cell::new(5), vec![])).err().unwrap();
        assert!(other.contains("is of another configuration"), "{other}");
    }
}
