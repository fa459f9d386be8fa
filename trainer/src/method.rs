//! What a training method is to the loop around it: something that learns from a batch, and whose whole state is tensors under names.
//!
//! A method owns its networks, their optimizers and averages. It draws its random numbers from ([`Random`], iteration, purpose) and reduces in a fixed order,
//! so a step is a function of (state, iteration, batch, seed): restoring a state and going on at its iteration repeats the run bit for bit.

pub mod dcm;
pub mod dmd;
pub mod dmd2;
pub mod flow;
mod learner;
pub mod meanflow;
pub mod rcm;
pub mod scm;

pub(crate) use learner::add;
pub use learner::{Learner, Teacher};

use crate::density::Density;
#[cfg(feature = "jit")]
use crate::program::flat::Flat;
use crate::random::Random;
use crate::rows::Rows;
use crate::time::Trig;
use ir::diagnostic::Error;
use ir::dim::Name;
use ir::tensor::Tensor;
use std::borrow::Cow;
#[cfg(feature = "jit")]
use std::cell::RefCell;
use std::collections::BTreeMap;
#[cfg(feature = "jit")]
use std::rc::Rc;

/// Tensors of a network by the names that its function gives its parameters.
pub type Weights = BTreeMap<Name, Tensor>;

/// Gradients of a network's weights, where its programs left them.
pub enum Gradients {
    /// In the host's memory.
    Host(Weights),
    /// In a device's.
    #[cfg(feature = "jit")]
    Device(Rc<RefCell<Flat>>),
}

impl From<Weights> for Gradients {
    fn from(w: Weights) -> Gradients {
        Gradients::Host(w)
    }
}

impl Default for Gradients {
    fn default() -> Gradients {
        Gradients::Host(Weights::new())
    }
}

impl Gradients {
    /// By weight, copied from a device where they are there.
    ///
    /// # Errors
    /// The device's.
    pub fn host(&self) -> Result<Cow<'_, Weights>, Error> {
        match self {
            Gradients::Host(w) => Ok(Cow::Borrowed(w)),
            #[cfg(feature = "jit")]
            Gradients::Device(f) => f.borrow().all().map(Cow::Owned).map_err(|e| Error::new(format!("gradients: {e}"))),
        }
    }
    /// Where they are on a device.
    #[cfg(feature = "jit")]
    pub(crate) fn device(&self) -> Result<Flat, Error> {
        match self {
            Gradients::Host(_) => Err(Error::new("gradients on the host, but weights on a device")),
            Gradients::Device(f) => Ok(f.borrow().clone()),
        }
    }
}

/// What is known of the samples of a batch, `[B, …]`, by the network's parameter names.
pub type Condition = BTreeMap<Name, Tensor>;

/// What one step learns from.
#[derive(Clone, PartialEq, Debug)]
pub struct Batch {
    /// Data `[B, …]`, of mean 0 and deviation 1 or near to it; any float type.
    pub x0: Tensor,
    /// What is known of each sample (a class, a text).
    pub condition: Condition,
    /// The same parameters, of the same shapes, saying nothing (the class that is none, the negative prompt): for guidance and for dropping the condition.
    pub empty: Condition,
}

/// What a step says of itself: name and number, for curves and progress. Every method has `loss` and `learning_rate`; `skipped` counts samples that were left
/// out for a NaN or an infinity, `nonfinite` counts elements of gradients that were set to 0 for one.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Metrics(pub BTreeMap<&'static str, f64>);

impl Metrics {
    /// With one more number, of this name.
    pub fn with(mut self, name: &'static str, value: f64) -> Metrics {
        self.0.insert(name, value);
        self
    }
    /// The number of this name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }
}

/// A training method.
pub trait Method {
    /// Its name in configurations: `flow`, `scm`, `rcm`, ….
    fn name(&self) -> &'static str;
    /// One iteration, counted from 0: draws, evaluates, and updates whichever network's turn it is.
    ///
    /// # Errors
    /// A batch that does not fit the network, or a program that cannot run; the state is then as before the step, or named as spoilt by the message.
    fn step(&mut self, iteration: u64, batch: &Batch, random: &Random) -> Result<Metrics, Error>;
    /// The weights of the network that is trained (the student), as they are now.
    ///
    /// # Errors
    /// Those of the device that has them.
    fn weights(&self) -> Result<Weights, Error>;
    /// Their average, which is what is evaluated and exported; [`Method::weights`] where no average is kept.
    ///
    /// # Errors
    /// As [`Method::weights`].
    fn average(&self) -> Result<Weights, Error>;
    /// Everything that the next step depends on, by name (`student.weights.KEY`, `student.second.KEY`, `fake.steps`, …): what a checkpoint stores.
    ///
    /// # Errors
    /// As [`Method::weights`].
    fn state(&self) -> Result<BTreeMap<String, Tensor>, Error>;
    /// Goes on from a state that [`Method::state`] gave.
    ///
    /// # Errors
    /// A tensor that is missing, unknown, or of another shape or type, by name; nothing is changed then.
    fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), Error>;
    /// Launches of compiled programs so far, over all networks and optimizers of the method.
    fn launches(&self) -> u64;
}

/// A noisy sample: data, noise, and the times at which they are mixed.
pub struct Noisy {
    /// Data.
    pub x0: Rows,
    /// Noise of the same shape.
    pub noise: Rows,
    /// One time a sample.
    pub times: Vec<Trig>,
}

impl Noisy {
    /// Draws noise and times for `x0`: the numbers of `PURPOSE.noise` and `PURPOSE.time` at this iteration.
    pub fn draw(x0: &Rows, density: Density, random: &Random, iteration: u64, purpose: &str) -> Noisy {
        let noise = x0.noise(random.stream(iteration, &format!("{purpose}.noise")));
        Noisy { noise, times: times(density, x0.batch(), random, iteration, purpose), x0: x0.clone() }
    }
    /// `C·x₀ + S·ε`.
    pub fn trig(&self) -> Rows {
        let k = angles(&self.times);
        Rows::of([&self.x0, &self.noise], |i, [x, e]| k[i].c * x + k[i].s * e)
    }
    /// `(1 − u)·x₀ + u·ε`: what a rectified-flow network sees.
    pub fn flow(&self) -> Rows {
        let k = angles(&self.times);
        Rows::of([&self.x0, &self.noise], |i, [x, e]| (1.0 - k[i].u) * x + k[i].u * e)
    }
}

/// Times of `n` samples from a density: the numbers of `PURPOSE.time`.
pub(crate) fn times(density: Density, n: usize, random: &Random, iteration: u64, purpose: &str) -> Vec<Trig> {
    let s = random.stream(iteration, &format!("{purpose}.time"));
    let number = |i: u64| match density {
        Density::LogNormal { .. } => s.normal(i),
        Density::Shifted(_) => s.uniform(i),
    };
    (0..n as u64).map(|i| density.draw(number(i)).into()).collect()
}

/// What equations need of one time: cos τ, sin τ, b = 1/(C + S) and u = S·b.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Angle {
    pub c: f64,
    pub s: f64,
    pub b: f64,
    pub u: f64,
}

pub(crate) fn angles(times: &[Trig]) -> Vec<Angle> {
    let one = |t: &Trig| {
        let (s, c) = t.0.sin_cos();
        let b = 1.0 / (c + s);
        Angle { c, s, b, u: s * b }
    };
    times.iter().map(one).collect()
}

/// The network's times u.
pub(crate) fn flows(k: &[Angle]) -> Vec<f64> {
    k.iter().map(|k| k.u).collect()
}
