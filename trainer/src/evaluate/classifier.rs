//! The classifier that judges samples. It is trained here, on real samples only, each time anew for other data or settings and kept under the checksum of all that it depends
//! on. Its layers are a program (`classifier.pf`), compiled and derived as every other.
//!
//! Training: AdamW, cosine learning rate, samples with normal noise of half a deviation added, which a perceptron needs to be right on unseen writers. A share of the real
//! samples, drawn by counter, is held out and only tested.

use super::{Opinion, Points};
use crate::data::Dataset;
use crate::files::{self, Tensors, checksum};
use crate::method::Weights;
use crate::optim::{AdamW, Decay, Optimizer, Schedule};
use crate::program::{Options, Program};
use crate::random::Random;
use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::tensor::{Tensor, TensorData};
use ir::types::DType;
use passes::ad::Transform;
use std::path::Path;

/// Its program.
const TEXT: &str = include_str!("classifier.pf");
/// Samples in a batch of its training.
const BATCH: usize = 128;
/// Deviation of the noise that is added to samples of deviation 1.
const NOISE: f64 = 0.5;

/// What it is made of and how it is trained.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Settings {
    /// Width of the first hidden layer.
    pub width: usize,
    /// Width of the second: the number of features.
    pub features: usize,
    /// Iterations.
    pub iterations: u64,
    /// Share of the samples that is held out.
    pub held_out: f64,
}

/// A trained classifier.
pub struct Classifier {
    weights: Weights,
    /// Accuracy on samples that it was not trained on.
    pub accuracy: f64,
    /// How many those are.
    pub held_out: usize,
    program: Program,
    batch: usize,
    size: usize,
}

fn function(name: &str) -> Result<Function, String> {
    let m = ir::text::parse(TEXT).map_err(|e| ir::diagnostic::render(&e, "classifier.pf", TEXT))?;
    m.function(Some(name)).cloned()
}

impl Classifier {
    /// The classifier of a set, from `cache` if it is there and whole, else trained; `batch` samples are judged at once. `note` is told what is worth a line.
    ///
    /// # Errors
    /// A set without labels or with too few samples; those of programs.
    pub fn of(data: &Dataset, s: &Settings, batch: usize, cache: Option<&Path>, options: &Options, note: &mut dyn FnMut(&str)) -> Result<Classifier, String> {
        if data.labels.is_empty() || data.classes < 2 {
            return Err(format!("evaluate: {} has no labels of two classes or more, so no classifier can judge samples", data.name));
        }
        // All that the weights depend on.
        let bytes: Vec<u8> = data.samples.iter().flat_map(|x| x.to_le_bytes()).chain(data.labels.iter().flat_map(|l| l.to_le_bytes())).collect();
        let key = checksum(format!("{TEXT}\n{s:?}\n{BATCH} {NOISE}\n{:?} {}\n{}", data.shape, data.classes, checksum(&bytes)).as_bytes());
        let path = cache.map(|c| c.join(format!("classifier-{}", &key[..16])));
        let found = path.as_ref().filter(|p| p.exists()).map(|p| read(p).map_err(|e| note(&format!("{}: {e}; the classifier is trained anew", p.display()))));
        let weights = match found {
            Some(Ok(w)) => w,
            _ => {
                let w = train(data, s, options)?;
                if let Some(p) = &path {
                    let kept = files::make_folder(p.parent().unwrap_or(Path::new("."))).and_then(|()| write(p, &w));
                    kept.unwrap_or_else(|e| note(&format!("the classifier is not kept: {e}")));
                }
                w
            }
        };
        let mut dims = sizes(data, s);
        dims.insert("B".into(), batch as i64);
        let mut program = Program::new(&function("classifier")?, &[], &dims, options)?;
        for (name, t) in &weights {
            program.set(name, t)?;
        }
        let mut c = Classifier { weights, accuracy: 0.0, held_out: 0, program, batch, size: data.size() };
        let (_, test) = split(data.len(), s.held_out);
        let labels: Vec<u32> = test.iter().map(|i| data.labels[*i]).collect();
        c.held_out = labels.len();
        c.accuracy = c.judge(data.gather(&test)?.data())?.accuracy(&labels)?.0;
        Ok(c)
    }
    /// Its weights, by the names of its program.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }
    /// What it thinks of samples, one behind the other.
    ///
    /// # Errors
    /// Samples of another size, no floats, or what is not finite.
    pub fn judge(&self, samples: &TensorData) -> Result<Opinion, String> {
        let TensorData::F32(x) = samples else { return Err("evaluate: samples must be f32".into()) };
        if x.is_empty() || !x.len().is_multiple_of(self.size) {
            return Err(format!("evaluate: {} numbers are no samples of {} numbers each", x.len(), self.size));
        }
        let (mut probabilities, mut features) = (vec![], vec![]);
        for part in x.chunks(self.batch * self.size) {
            // The last part is filled up with zeros, whose answers are dropped.
            let mut full = part.to_vec();
            full.resize(self.batch * self.size, 0.0);
            let t = Tensor::new(vec![self.batch, self.size], TensorData::F32(full)).map_err(|e| e.to_string())?;
            let out = self.program.run(&[("x", &t)])?;
            for (name, all) in [("probability", &mut probabilities), ("feature", &mut features)] {
                let t = out.get(name).ok_or_else(|| format!("evaluate: the classifier has no `{name}`"))?;
                all.push((t.shape()[1], t.to_f64()[..part.len() / self.size * t.shape()[1]].to_vec()));
            }
        }
        let points = |all: Vec<(usize, Vec<f64>)>| Points::new(all.first().map_or(0, |a| a.0), all.into_iter().flat_map(|a| a.1).collect());
        Ok(Opinion { probabilities: points(probabilities)?, features: points(features)? })
    }
}

fn sizes(data: &Dataset, s: &Settings) -> Bindings {
    let of = [("P", data.size()), ("C", data.classes), ("H", s.width), ("F", s.features)];
    of.into_iter().map(|(n, v)| (n.into(), v as i64)).collect()
}

/// Samples to train on, and those held out: at least one each.
fn split(n: usize, held_out: f64) -> (Vec<usize>, Vec<usize>) {
    let mut order = Random::new(0).permutation(0, "held out", n);
    let test = ((n as f64 * held_out).round() as usize).clamp(1, n.saturating_sub(1));
    let train = order.split_off(test);
    (train, order)
}

fn train(data: &Dataset, s: &Settings, options: &Options) -> Result<Weights, String> {
    let (train, _) = split(data.len(), s.held_out);
    let f = function("learning")?;
    let mut dims = sizes(data, s);
    dims.insert("B".into(), BATCH as i64);
    let names: Vec<Name> = f.params.iter().map(|p| p.name.clone()).filter(|n| n.starts_with(['w', 'b'])).collect();
    let random = Random::new(0);
    // Uniform within 1/√(columns), as linear layers usually begin.
    let mut weights = Weights::new();
    for name in &names {
        let var = f.param(name).ok_or("evaluate: a weight is gone")?;
        let shape = f.ty(var).sizes(&dims).map_err(|e| e.to_string())?;
        let bound = (*shape.get(1).unwrap_or(&s.width) as f64).sqrt().recip();
        let values: Vec<f64> = random.stream(0, name).uniforms(shape.iter().product()).into_iter().map(|u| bound * (2.0 * u - 1.0)).collect();
        weights.insert(name.clone(), Tensor::from_f64(DType::F32, &shape, &values).map_err(|e| e.to_string())?);
    }
    let mut program = Program::new(&f, &[Transform::Vjp(names.clone())], &dims, options)?;
    let schedule = Schedule { rate: 2e-3, warm_up: 0, decay: Decay::Cosine { steps: s.iterations, last: 0.0 } };
    let settings = AdamW { schedule, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, decay: 0.01 };
    let mut optimizer = Optimizer::new(settings, &weights, false, options).map_err(|e| e.to_string())?;
    let each = Tensor::from_f64(DType::F32, &[BATCH], &[1.0 / BATCH as f64; BATCH]).map_err(|e| e.to_string())?;
    for i in 0..s.iterations {
        let (draws, noise) = (random.stream(i, "batch"), random.stream(i, "noise"));
        let which: Vec<usize> = (0..BATCH as u64).map(|k| train[((draws.uniform(k) * train.len() as f64) as usize).min(train.len() - 1)]).collect();
        let x: Vec<f32> = which.iter().flat_map(|w| data.sample(*w)).zip(noise.normals(BATCH * data.size())).map(|(x, n)| x + (NOISE * n) as f32).collect();
        let x = Tensor::new(vec![BATCH, data.size()], TensorData::F32(x)).map_err(|e| e.to_string())?;
        let label = Tensor::new(vec![BATCH], TensorData::I32(which.iter().map(|w| data.labels[*w] as i32).collect())).map_err(|e| e.to_string())?;
        for (name, t) in &optimizer.weights().map_err(|e| e.to_string())? {
            program.set(name, t)?;
        }
        let mut out = program.run(&[("x", &x), ("label", &label), ("loss.ct", &each)])?;
        let gradient: Result<Weights, String> = names.iter().map(|n| Ok((n.clone(), out.remove(&*format!("{n}.ct")).ok_or_else(|| format!("evaluate: no gradient of `{n}`"))?))).collect();
        optimizer.update(&gradient?.into(), 0.0).map_err(|e| e.to_string())?;
    }
    optimizer.weights().map_err(|e| e.to_string())
}

/// The checksum, then the tensors.
fn write(path: &Path, w: &Weights) -> Result<(), String> {
    let tensors: Tensors = w.iter().map(|(n, t)| (n.to_string(), t.clone())).collect();
    let body = files::to_safetensors(&tensors)?;
    files::write(path, &[checksum(&body).as_bytes(), &body].concat())
}

fn read(path: &Path) -> Result<Weights, String> {
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    let (sum, body) = bytes.split_at(bytes.len().min(64));
    if checksum(body).as_bytes() != sum {
        return Err("its checksum is wrong".into());
    }
    Ok(files::from_safetensors(body)?.into_iter().map(|(n, t)| (Name::from(n), t)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::digits;

    #[test]
    fn it_learns_the_digits_and_is_kept() {
        let data = digits::shipped().unwrap();
        let s = Settings { width: 128, features: 32, iterations: 600, held_out: 0.2 };
        let dir = tempfile::tempdir().unwrap();
        let mut notes = vec![];
        let get = |notes: &mut Vec<String>| Classifier::of(&data, &s, 200, Some(dir.path()), &Options::default(), &mut |n| notes.push(n.into())).unwrap();
        let c = get(&mut notes);
        assert_eq!(c.held_out, 359);
        assert!(c.accuracy >= 0.97, "{}", c.accuracy);
        let again = get(&mut notes);
        assert_eq!((again.weights(), again.accuracy, notes.len()), (c.weights(), c.accuracy, 0));
        // Real samples are judged as what they are; noise is not.
        let o = c.judge(data.gather(&(0..300).collect::<Vec<_>>()).unwrap().data()).unwrap();
        assert_eq!((o.probabilities.len(), o.features.dimension()), (300, 32));
        assert!(o.accuracy(&data.labels[..300]).unwrap().0 > 0.98);
        let path = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let third = get(&mut notes);
        assert!(third.weights() == c.weights() && notes.len() == 1 && notes[0].contains("its checksum is wrong; the classifier is trained anew"), "{notes:?}");
        assert!(c.judge(&TensorData::F32(vec![0.0; 63])).is_err());
    }
}
