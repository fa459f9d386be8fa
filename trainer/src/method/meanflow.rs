//! MeanFlow (Geng et al. 2025, arXiv 2505.13447): a network of two times that gives the *average* velocity u(z, r, t) of a trajectory between r and t, so that one
//! evaluation jumps from t to r. From (t − r)·u = ∫ v, differentiated along the trajectory:
//!
//! ```text
//! z    = (1 − t)·x₀ + t·ε
//! u*   = v − (t − r)·du/dt            du/dt: tangent of u along (v, 0, 1) in (z, r, t), which is (v, 1, 1) in (z, t, t − r)
//! loss = w·‖u − sg(u*)‖²              w = sg(1/(‖u − u*‖² + c)^p)
//! ```
//!
//! v is the data's, ε − x₀ ([`Target::Data`]); a guided teacher's ([`Target::Teacher`]); or the data's, guided by the network itself at r = t,
//! ω·(ε − x₀) + (1 − ω)·u(z, t, t | empty) ([`Target::Guided`]). The network's times are t and t − r, in this order. Sampling: z_r = z_t − (t − r)·u(z_t, r, t).

use super::learner::{Learner, Teacher, report};
use super::{Batch, Condition, Gradients, Method, Metrics, Weights, times};
use crate::density::Density;
use crate::network::{Model, Point};
use crate::random::Random;
use crate::rows::{Rows, mean};
use crate::time::Flow;
use ir::diagnostic::Error;
use ir::tensor::Tensor;
use std::collections::BTreeMap;

/// Whose trajectories are averaged.
pub enum Target {
    /// The data's.
    Data,
    /// A teacher's.
    Teacher(Teacher),
    /// The data's, guided with this ω by the network itself.
    Guided(f64),
}

/// The settings of the loss.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Settings {
    /// Of both times; the larger is t.
    pub density: Density,
    /// The share of samples with r = t.
    pub equal: f64,
    /// p of the weight.
    pub power: f64,
    /// c of the weight.
    pub constant: f64,
}

/// A training of an average velocity.
pub struct MeanFlow {
    student: Learner,
    target: Target,
    settings: Settings,
}

/// What the loss is made of.
pub struct Outcome {
    /// v.
    pub v: Rows,
    /// u.
    pub u: Rows,
    /// du/dt.
    pub rate: Rows,
    /// u*.
    pub target: Rows,
    /// `‖u − u*‖²`.
    pub error: Vec<f64>,
    /// w; 0 for samples that are left out.
    pub weight: Vec<f64>,
    /// Of the mean of losses.
    pub gradient: Gradients,
    /// Samples that are left out.
    pub skipped: usize,
}

impl Settings {
    /// The loss and its gradient between times r and t.
    ///
    /// # Errors
    /// Those of the networks.
    #[allow(clippy::too_many_arguments)] // a network, whose velocity, data, noise, two times, two conditions: one call site
    pub fn at(&self, student: &mut Model, target: &mut Target, x0: &Rows, noise: &Rows, r: &[f64], t: &[f64], condition: &Condition, empty: &Condition) -> Result<Outcome, Error> {
        if student.network().times.len() != 2 {
            return Err(Error::new(format!("meanflow: network `{}` has {} time, but an average velocity has two, t and t − r", student.network().function.name, student.network().times.len())));
        }
        let (zero, one) = (vec![0.0; t.len()], vec![1.0; t.len()]);
        let span: Vec<f64> = t.iter().zip(r).map(|(t, r)| t - r).collect();
        let z = Rows::of([x0, noise], |i, [x, e]| (1.0 - t[i]) * x + t[i] * e);
        let data = Rows::of([x0, noise], |_, [x, e]| e - x);
        let v = match target {
            Target::Data => data,
            Target::Teacher(teacher) => teacher.velocity(&Point::new(&z, t), condition, empty)?,
            Target::Guided(omega) => {
                let free = student.velocity(&Point { x: &z, times: vec![t, &zero] }, empty)?;
                Rows::of([&data, &free], |_, [v, u]| *omega * v + (1.0 - *omega) * u)
            }
        };
        let at = Point { x: &z, times: vec![t, &span] };
        let (u, rate) = student.tangent(&at, &Point { x: &v, times: vec![&one, &one] }, condition)?;
        let goal = Rows::of([&v, &rate], |i, [v, d]| v - span[i] * d);
        let keep: Vec<bool> = goal.finite().iter().zip(u.finite()).map(|(a, b)| *a && b).collect();
        let error = Rows::of([&u, &goal], |_, [u, g]| u - g).keep(&keep).each(|e| e.iter().map(|x| x * x).sum());
        let weight: Vec<f64> = error.iter().zip(&keep).map(|(e, k)| if *k { (e + self.constant).powf(self.power).recip() } else { 0.0 }).collect();
        let each: Vec<f64> = weight.iter().map(|w| w / weight.len() as f64).collect();
        let kept = z.clone().keep(&keep);
        let gradient = student.regression(&Point { x: &kept, times: vec![t, &span] }, condition, &goal.clone().keep(&keep), &each)?.weights;
        Ok(Outcome { v, u, rate, target: goal, error, weight, gradient, skipped: keep.iter().filter(|k| !**k).count() })
    }
    /// Times (r, t) of `n` samples, r ≤ t.
    fn draw(&self, n: usize, random: &Random, iteration: u64) -> (Vec<f64>, Vec<f64>) {
        let list = |purpose: &str| times(self.density, n, random, iteration, purpose).into_iter().map(|t| Flow::from(t).0).collect::<Vec<_>>();
        let (a, b, kind) = (list("meanflow.a"), list("meanflow.b"), random.stream(iteration, "meanflow.kind"));
        let pair = |i: usize| {
            let t = a[i].max(b[i]);
            (if kind.uniform(i as u64) < self.equal { t } else { a[i].min(b[i]) }, t)
        };
        (0..n).map(pair).unzip()
    }
}

impl MeanFlow {
    /// A network of two times that learns from whose trajectories are given.
    ///
    /// # Errors
    /// A network that has not two times.
    pub fn new(student: Learner, target: Target, settings: Settings) -> Result<MeanFlow, Error> {
        let n = student.model.network();
        if n.times.len() != 2 {
            return Err(Error::new(format!("meanflow: network `{}` has {} time, but an average velocity has two, t and t − r", n.function.name, n.times.len())));
        }
        Ok(MeanFlow { student, target, settings })
    }
}

impl Method for MeanFlow {
    fn name(&self) -> &'static str {
        "meanflow"
    }
    fn step(&mut self, iteration: u64, batch: &Batch, random: &Random) -> Result<Metrics, Error> {
        let x0 = Rows::from_tensor(&batch.x0)?;
        let noise = x0.noise(random.stream(iteration, "meanflow.noise"));
        let (r, t) = self.settings.draw(x0.batch(), random, iteration);
        let o = self.settings.at(&mut self.student.model, &mut self.target, &x0, &noise, &r, &t, &batch.condition, &batch.empty)?;
        let update = self.student.learn(&o.gradient, iteration)?;
        let loss: Vec<f64> = o.error.iter().zip(&o.weight).map(|(e, w)| e * w).collect();
        Ok(report(Metrics::default(), update).with("loss", mean(&loss)).with("error", mean(&o.error)).with("skipped", o.skipped as f64))
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
        let teacher = if let Target::Teacher(t) = &self.target { t.model.launches() } else { 0 };
        self.student.launches() + teacher
    }
}

/// Samples in `steps` jumps of equal length from pure noise at t = 1.
///
/// # Errors
/// Those of the network; no step.
pub fn sample(student: &mut Model, noise: &Rows, steps: usize, condition: &Condition) -> Result<Rows, Error> {
    if steps == 0 {
        return Err(Error::new("meanflow: a sample in 0 steps"));
    }
    let mut z = noise.clone();
    for k in 0..steps {
        let (t, r) = (1.0 - k as f64 / steps as f64, 1.0 - (k + 1) as f64 / steps as f64);
        let (at, span) = (vec![t; z.batch()], vec![t - r; z.batch()]);
        let u = student.velocity(&Point { x: &z, times: vec![&at, &span] }, condition)?;
        z = Rows::of([&z, &u], |_, [z, u]| z - (t - r) * u);
    }
    Ok(z)
}
