//! Flow matching (Lipman et al. 2022, arXiv 2210.02747; Liu et al. 2022, arXiv 2209.03003), which trains a teacher:
//!
//! ```text
//! x = (1 − u)·x₀ + u·ε          loss = mean ‖v(x, u | c) − (ε − x₀)‖²          c is dropped for a share of the samples, so that the teacher can be guided
//! ```
//!
//! u is log-normal in σ, which is a logistic of a normal number in u, or uniform for a share of the samples.

use super::learner::{Learner, report};
use super::{Batch, Condition, Method, Metrics, Noisy, Weights, angles, flows};
use crate::density::Density;
use crate::network::Point;
use crate::random::Random;
use crate::rows::{Rows, mean};
use crate::time::{Flow as Time, Trig};
use ir::diagnostic::Error;
use ir::tensor::Tensor;
use ir::types::DType;
use std::collections::BTreeMap;

/// The settings of the loss.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Settings {
    /// Of the times.
    pub density: Density,
    /// The share of samples whose time is uniform instead.
    pub uniform: f64,
    /// The share of samples without their condition.
    pub drop: f64,
}

/// Training of a teacher.
pub struct Flow {
    student: Learner,
    settings: Settings,
}

impl Flow {
    /// A network that learns the data's velocity.
    pub fn new(student: Learner, settings: Settings) -> Flow {
        Flow { student, settings }
    }
}

/// A tensor whose rows are those of `a` or, where `b_instead`, of `b`.
fn choose(a: &Tensor, b: &Tensor, b_instead: &[bool]) -> Result<Tensor, Error> {
    if a.shape() != b.shape() || a.shape().first() != Some(&b_instead.len()) {
        return Err(Error::new(format!("conditions of shapes {:?} and {:?} for {} samples", a.shape(), b.shape(), b_instead.len())));
    }
    let (x, y, width) = (a.to_f64(), b.to_f64(), a.len() / b_instead.len().max(1));
    let data: Vec<f64> = (0..x.len()).map(|k| if b_instead[k / width] { y[k] } else { x[k] }).collect();
    Tensor::from_f64(if a.dtype().is_float() { DType::F64 } else { a.dtype() }, a.shape(), &data)
}

impl Method for Flow {
    fn name(&self) -> &'static str {
        "flow"
    }
    fn step(&mut self, iteration: u64, batch: &Batch, random: &Random) -> Result<Metrics, Error> {
        let x0 = Rows::from_tensor(&batch.x0)?;
        let n = x0.batch();
        let (kind, value, drop) = (random.stream(iteration, "flow.kind"), random.stream(iteration, "flow.uniform"), random.stream(iteration, "flow.drop"));
        let mut draw = Noisy::draw(&x0, self.settings.density, random, iteration, "flow");
        for (i, t) in draw.times.iter_mut().enumerate() {
            if kind.uniform(i as u64) < self.settings.uniform {
                *t = Trig::from(Time(value.uniform(i as u64)));
            }
        }
        let dropped: Vec<bool> = (0..n as u64).map(|i| drop.uniform(i) < self.settings.drop).collect();
        let mut condition = Condition::new();
        for (name, c) in &batch.condition {
            let chosen = match batch.empty.get(name) {
                Some(e) => choose(c, e, &dropped)?,
                None if self.settings.drop == 0.0 => c.clone(),
                None => return Err(Error::new(format!("flow: nothing says what no `{name}` is")).hint("give the batch's empty condition, or drop = 0")),
            };
            condition.insert(name.clone(), chosen);
        }
        let keep = x0.finite();
        let k = angles(&draw.times);
        let x = draw.flow().keep(&keep);
        let target = Rows::of([&draw.noise, &draw.x0], |_, [e, x]| e - x).keep(&keep);
        let each = 1.0 / (n * x0.width()) as f64;
        let weights: Vec<f64> = keep.iter().map(|k| if *k { each } else { 0.0 }).collect();
        let g = self.student.model.regression(&Point::new(&x, &flows(&k)), &condition, &target, &weights)?;
        let loss: Vec<f64> = g.loss.iter().zip(&keep).filter(|(_, k)| **k).map(|(l, _)| l / x0.width() as f64).collect();
        let update = self.student.learn(&g.weights, iteration)?;
        Ok(report(Metrics::default(), update).with("loss", mean(&loss)).with("skipped", keep.iter().filter(|k| !**k).count() as f64))
    }
    fn weights(&self) -> Result<Weights, Error> {
        self.student.weights()
    }
    fn average(&self) -> Result<Weights, Error> {
        self.student.average()
    }
    fn state(&self) -> Result<BTreeMap<String, Tensor>, Error> {
        self.student.state()
    }
    fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), Error> {
        self.student.restore_alone(state)
    }
    fn launches(&self) -> u64 {
        self.student.launches()
    }
}
