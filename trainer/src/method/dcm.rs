//! Discrete-time consistency (Song et al. 2023, arXiv 2303.01469), which rCM offers as a warm-up: neighbours of a grid must have the same clean sample.
//!
//! ```text
//! u_k = shift(1 − (w + k/N)), w ~ U(0, 1 − K/N)           τ_k = atan(u_k/(1 − u_k)),  k = 0..K
//! x   = C·x₀ + S·ε at τ_0;  K steps of the guided teacher:  x ← x − (τ_k − τ_{k+1})·F_T
//! loss = scale·‖x̂₀(x, τ_0) − sg(x̂₀(x_K, τ_K))‖²  =  scale·(S·b)²·‖v − (b·x − x̂₀(x_K, τ_K))/(S·b)‖²      no average in the target
//! ```

use super::learner::Teacher;
use super::{Condition, Gradients, Noisy, angles, flows};
use crate::network::{Model, Point};
use crate::random::Random;
use crate::rows::Rows;
use crate::sampler::neighbours;
use crate::time::Trig;
use ir::diagnostic::Error;

/// The settings of the loss.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Discrete {
    /// N.
    pub steps: usize,
    /// K.
    pub skip: usize,
    /// The grid's shift.
    pub shift: f64,
    /// The factor of the loss.
    pub scale: f64,
}

/// What the loss is made of.
pub struct Outcome {
    /// The sample at τ_0.
    pub x: Rows,
    /// Where the teacher moved it.
    pub moved: Rows,
    /// The student's x̂₀ there.
    pub target: Rows,
    /// The loss of each sample.
    pub loss: Vec<f64>,
    /// Samples that are left out.
    pub skipped: usize,
    /// Of the sum of losses.
    pub gradient: Gradients,
}

impl Discrete {
    /// rCM's: 48 steps, neighbours, shift 5, scale 100.
    pub fn released() -> Discrete {
        Discrete { steps: 48, skip: 1, shift: 5.0, scale: 100.0 }
    }
    /// The numbers w of `n` samples.
    pub fn draw(&self, n: usize, random: &Random, iteration: u64) -> Vec<f64> {
        let top = 1.0 - self.skip as f64 / self.steps as f64;
        random.stream(iteration, "dcm.time").uniforms(n).iter().map(|w| w * top).collect()
    }
    /// The loss and its gradient, with numbers w and noise.
    ///
    /// # Errors
    /// Those of the networks.
    #[allow(clippy::too_many_arguments)] // two networks, data, noise, positions, two conditions: one call site
    pub fn at(&self, student: &mut Model, teacher: &mut Teacher, x0: &Rows, noise: &Rows, w: &[f64], condition: &Condition, empty: &Condition) -> Result<Outcome, Error> {
        let at = |j: usize| -> Vec<Trig> { w.iter().map(|w| neighbours(*w, j, self.steps, self.shift).1).collect() };
        let first = Noisy { x0: x0.clone(), noise: noise.clone(), times: at(0) };
        let x = first.trig();
        let mut moved = x.clone();
        for j in 0..self.skip {
            let (now, next) = (at(j), at(j + 1));
            let k = angles(&now);
            let z = Rows::of([&moved], |i, [x]| k[i].b * x);
            let v = teacher.velocity(&Point::new(&z, &flows(&k)), condition, empty)?;
            moved = Rows::of([&moved, &v], |i, [x, v]| x - (now[i].0 - next[i].0) * ((k[i].c - k[i].s) * k[i].b * x + k[i].b * v));
        }
        let clean = |student: &mut Model, x: &Rows, times: &[Trig]| -> Result<Rows, Error> {
            let k = angles(times);
            let z = Rows::of([x], |i, [x]| k[i].b * x);
            let v = student.velocity(&Point::new(&z, &flows(&k)), condition)?;
            Ok(Rows::of([x, &v], |i, [x, v]| k[i].b * (x - k[i].s * v)))
        };
        let target = clean(student, &moved, &at(self.skip))?;
        let k = angles(&first.times);
        let keep: Vec<bool> = target.finite().iter().zip(x.finite()).map(|(a, b)| *a && b).collect();
        let z = Rows::of([&x], |i, [x]| k[i].b * x).keep(&keep);
        let goal = Rows::of([&x, &target], |i, [x, t]| (k[i].b * x - t) / (k[i].s * k[i].b)).keep(&keep);
        let weights: Vec<f64> = k.iter().zip(&keep).map(|(k, keep)| if *keep { self.scale * (k.s * k.b).powi(2) } else { 0.0 }).collect();
        let g = student.regression(&Point::new(&z, &flows(&k)), condition, &goal, &weights)?;
        let loss = g.loss.iter().zip(&weights).map(|(l, w)| if *w == 0.0 { 0.0 } else { l * w }).collect();
        Ok(Outcome { x, moved, target, loss, skipped: keep.iter().filter(|k| !**k).count(), gradient: g.weights })
    }
}
