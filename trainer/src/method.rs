//! What a training method is to the loop around it: something that learns from a batch, and whose whole state is tensors under names.
//!
//! A method owns its networks, their optimizers and averages. It draws its random numbers from ([`Random`], iteration, purpose) and reduces in a fixed order,
//! so a step is a function of (state, iteration, batch, seed): restoring a state and going on at its iteration repeats the run bit for bit.

use crate::random::Random;
use ir::diagnostic::Error;
use ir::dim::Name;
use ir::tensor::Tensor;
use std::collections::BTreeMap;

/// Tensors of a network by the names that its function gives its parameters.
pub type Weights = BTreeMap<Name, Tensor>;

/// What one step learns from.
#[derive(Clone, PartialEq, Debug)]
pub struct Batch {
    /// Data `[B, …]`, of mean 0 and deviation 1 or near to it; any float type.
    pub x0: Tensor,
    /// What is known of each sample, `[B, …]`, by the network's parameter names (a class, a text).
    pub condition: BTreeMap<Name, Tensor>,
    /// The same parameters, of the same shapes, saying nothing (the class that is none, the negative prompt): for guidance and for dropping the condition.
    pub empty: BTreeMap<Name, Tensor>,
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
    fn weights(&self) -> Weights;
    /// Their average, which is what is evaluated and exported; [`Method::weights`] where no average is kept.
    fn average(&self) -> Weights;
    /// Everything that the next step depends on, by name (`student.weights.KEY`, `student.second.KEY`, `fake.steps`, …): what a checkpoint stores.
    fn state(&self) -> BTreeMap<String, Tensor>;
    /// Goes on from a state that [`Method::state`] gave.
    ///
    /// # Errors
    /// A tensor that is missing, unknown, or of another shape or type, by name; nothing is changed then.
    fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), Error>;
    /// Launches of compiled programs so far, over all networks and optimizers of the method.
    fn launches(&self) -> u64;
}
