//! The two roles of a network in a training: a teacher that is evaluated and never changes, and a learner with its optimizer and average.

use super::{Condition, Gradients, Metrics, Weights};
use crate::ema::PowerEma;
use crate::network::{Model, Network, Point};
use crate::optim::{AdamW, Loaded, Optimizer, Update};
use crate::program::Options;
use crate::rows::Rows;
use ir::diagnostic::Error;
use ir::tensor::{Tensor, TensorData};
use std::collections::BTreeMap;
use std::time::Duration;

/// A network that does not change, with classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598):
///
/// ```text
/// V = v(x, u | empty) + w·(v(x, u | condition) − v(x, u | empty))        for w > 1; v(x, u | condition) otherwise
/// ```
pub struct Teacher {
    /// The network.
    pub model: Model,
    /// w.
    pub guidance: f64,
}

impl Teacher {
    /// The guided velocity.
    ///
    /// # Errors
    /// A point or a condition that does not fit the network.
    pub fn velocity(&mut self, at: &Point, condition: &Condition, empty: &Condition) -> Result<Rows, Error> {
        let with = self.model.velocity(at, condition)?;
        if self.guidance <= 1.0 {
            return Ok(with);
        }
        let without = self.model.velocity(at, empty)?;
        let w = self.guidance;
        Ok(Rows::of([&without, &with], |_, [n, c]| n + w * (c - n)))
    }
}

/// A network that learns.
pub struct Learner {
    /// The network with its weights.
    pub model: Model,
    optimizer: Optimizer,
    average: Option<PowerEma>,
}

impl Learner {
    /// A network that starts from `weights`. Where an average's relative width is given, it is kept.
    ///
    /// # Errors
    /// Weights that do not fit, a width that no average has, settings that are no optimizer's.
    pub fn new(network: Network, weights: &Weights, settings: AdamW, width: Option<f64>, options: &Options) -> Result<Learner, Error> {
        let model = Model::new(network, weights, options)?;
        let average = width.map(PowerEma::of_width).transpose().map_err(Error::new)?;
        #[cfg(feature = "jit")]
        let optimizer = match model.resident() {
            Some((device, read)) => Optimizer::on_device(settings, weights, average.is_some(), options, device, read)?,
            None => Optimizer::new(settings, weights, average.is_some(), options)?,
        };
        #[cfg(not(feature = "jit"))]
        let optimizer = Optimizer::new(settings, weights, average.is_some(), options)?;
        Ok(Learner { model, optimizer, average })
    }
    /// One step of the optimizer along `gradient`, and of the average as that of a network that has learned `count` times before.
    ///
    /// # Errors
    /// A gradient that does not fit.
    pub fn learn(&mut self, gradient: &Gradients, count: u64) -> Result<Update, Error> {
        let update = self.optimizer.update(gradient, self.average.map_or(0.0, |a| a.beta(count)))?;
        self.learned()?;
        Ok(update)
    }
    /// Gives the network the optimizer's weights; on a device it has them.
    fn learned(&mut self) -> Result<(), Error> {
        if self.model.is_resident() { Ok(()) } else { self.model.give_weights(self.optimizer.weights()?) }
    }
    /// Its weights.
    ///
    /// # Errors
    /// The device's.
    pub fn weights(&self) -> Result<Weights, Error> {
        self.optimizer.weights()
    }
    /// The average of its weights, or the weights.
    ///
    /// # Errors
    /// The device's.
    pub fn average(&self) -> Result<Weights, Error> {
        self.optimizer.average()
    }
    /// Bytes of a device's memory that it has for weights, averages, moments and gradients: all but its programs' own.
    pub fn device_bytes(&self) -> usize {
        self.model.device_bytes() + self.optimizer.device_bytes()
    }
    /// Launches of its network's and its optimizer's programs.
    pub fn launches(&self) -> u64 {
        self.model.launches() + self.optimizer.launches()
    }
    /// Time in kernel launches of its network's and its optimizer's programs so far.
    pub fn in_launches(&self) -> Duration {
        self.model.in_launches() + self.optimizer.in_launches()
    }
    /// Time in its programs so far, the optimizer's last: what, how many runs, how long.
    pub fn spent(&self) -> Vec<(String, u64, Duration)> {
        let mut all: Vec<_> = self.model.spent().collect();
        all.push(("adamw".into(), self.optimizer.steps(), self.optimizer.spent()));
        all
    }
    /// The state of a method that has this learner alone.
    ///
    /// # Errors
    /// The device's.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>, Error> {
        let mut s = BTreeMap::new();
        self.save("student", &mut s)?;
        Ok(s)
    }
    /// Goes on from what [`Learner::state`] gave.
    ///
    /// # Errors
    /// A tensor that is missing, does not fit or belongs to nothing; nothing is changed then.
    pub fn restore_alone(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), Error> {
        let mut used = vec![];
        let loaded = self.load("student", state, &mut used)?;
        all_used(state, &used)?;
        self.restore(loaded)
    }
    /// Its state under `prefix`.
    ///
    /// # Errors
    /// The device's.
    pub fn save(&self, prefix: &str, into: &mut BTreeMap<String, Tensor>) -> Result<(), Error> {
        self.optimizer.save(prefix, into)
    }
    /// Reads and checks a state.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn load(&self, prefix: &str, from: &BTreeMap<String, Tensor>, used: &mut Vec<String>) -> Result<Loaded, Error> {
        self.optimizer.load(prefix, from, used)
    }
    /// Puts a state in place that was read.
    ///
    /// # Errors
    /// None for a state of this learner but for the device's.
    pub fn restore(&mut self, loaded: Loaded) -> Result<(), Error> {
        self.optimizer.restore(loaded)?;
        self.learned()
    }
}

/// Refuses a state with names that no one read.
pub(crate) fn all_used(from: &BTreeMap<String, Tensor>, used: &[String]) -> Result<(), Error> {
    match from.keys().find(|k| !used.contains(k)) {
        None => Ok(()),
        Some(k) => Err(Error::new(format!("state: `{k}` belongs to no network of this method"))),
    }
}

/// `a + b`, name by name and element by element.
pub(crate) fn add(a: Weights, b: &Weights) -> Result<Weights, Error> {
    a.into_iter()
        .map(|(n, t)| {
            let o = b.get(&n).ok_or_else(|| Error::new(format!("gradients: no `{n}`")))?;
            let sum = match (t.data(), o.data()) {
                (TensorData::F32(x), TensorData::F32(y)) if x.len() == y.len() => TensorData::F32(x.iter().zip(y).map(|(x, y)| x + y).collect()),
                (TensorData::F64(x), TensorData::F64(y)) if x.len() == y.len() => TensorData::F64(x.iter().zip(y).map(|(x, y)| x + y).collect()),
                _ => return Err(Error::new(format!("gradients: `{n}` is {}{:?} and {}{:?}", t.dtype(), t.shape(), o.dtype(), o.shape()))),
            };
            Ok((n, Tensor::new(t.shape().to_vec(), sum)?))
        })
        .collect()
}

/// What an update says of itself, among a step's metrics.
pub(crate) fn report(m: Metrics, u: Update) -> Metrics {
    m.with("learning_rate", u.rate).with("gradient_norm", u.norm).with("nonfinite", u.nonfinite as f64)
}
