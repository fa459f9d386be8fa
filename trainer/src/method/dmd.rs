//! Distribution matching (Yin et al. 2023, arXiv 2311.18828) as rCM has it: a student that makes samples in a few steps is pushed towards where the teacher finds them more
//! likely than a critic, the *fake score*, that learns the student's own distribution.
//!
//! ```text
//! rollout    x = ε at τ₁ = π/2 or less;  N times: x̂₀ = b·x − S·b·v(b·x, u);  between them τ ← min(τ̂, τ), τ̂ ~ p_D, and x = C·x̂₀ + S·ε      gradient through the last step
//! noise      x_D = C·x̂₀ + S·ε at τ_D ~ p_D
//! student    a = (x̂₀ of the fake score − x̂₀ of the guided teacher)/max(mean|x̂₀ − x̂₀ of the teacher|, 10⁻⁵);   loss = scale·‖a‖²,  ∂loss/∂x̂₀ = 2·scale·a
//! critic     ‖x̂₀ − x̂₀ of the fake score‖²/S²  =  b²·‖v_fake − (ε − x̂₀)‖²:   flow matching on the student's samples
//! ```

use super::learner::Teacher;
use super::{Angle, Condition, Gradients, Noisy, angles, flows, times};
use crate::density::Density;
use crate::network::{Model, Point};
use crate::random::Random;
use crate::rows::Rows;
use crate::time::Trig;
use ir::diagnostic::Error;

/// The settings of the loss.
#[derive(Clone, PartialEq, Debug)]
pub struct Matching {
    /// p_D, of the times at which scores are compared.
    pub density: Density,
    /// The density of the rollout's times; p_D in rCM.
    pub rollout: Density,
    /// Where rollouts begin, with pure noise: π/2 in rCM. A sampler that begins at σ_max meets its student at arctan σ_max.
    pub start: Trig,
    /// Times of the rollout behind the first, where they are fixed: then none is drawn.
    pub fixed: Option<Vec<Trig>>,
    /// The factor of the loss.
    pub scale: f64,
}

impl Matching {
    /// rCM's: rollouts at times of the same density, scale 1.
    pub fn released(density: Density) -> Matching {
        Matching { density, rollout: density, start: Trig::NOISE, fixed: None, scale: 1.0 }
    }
    /// The times of a rollout of `steps` steps for `n` samples: from the start on, never rising.
    ///
    /// # Errors
    /// More steps than there are fixed times.
    pub fn times(&self, n: usize, steps: u64, random: &Random, iteration: u64) -> Result<Vec<Vec<Trig>>, Error> {
        let mut all = vec![vec![self.start; n]];
        for k in 1..steps {
            let next = match &self.fixed {
                Some(f) => vec![*f.get(k as usize - 1).ok_or_else(|| Error::new(format!("dmd: a rollout of {steps} steps, but {} fixed times behind the first", f.len())))?; n],
                None => times(self.rollout, n, random, iteration, &format!("rollout.{k}")),
            };
            let last = &all[k as usize - 1];
            all.push(next.iter().zip(last).map(|(a, b)| Trig(a.0.min(b.0))).collect());
        }
        Ok(all)
    }
    /// The rollout at an iteration, with drawn times and noise.
    ///
    /// # Errors
    /// Those of the networks.
    pub fn rollout(&self, student: &mut Model, like: &Rows, steps: u64, condition: &Condition, random: &Random, iteration: u64) -> Result<Rollout, Error> {
        let times = self.times(like.batch(), steps, random, iteration)?;
        let noise: Vec<Rows> = (0..steps).map(|k| like.noise(random.stream(iteration, &format!("rollout.{k}.noise")))).collect();
        rollout(student, &noise, &times, condition)
    }
    /// The student's loss and the gradient of its weights for a rollout that was noised.
    ///
    /// # Errors
    /// Those of the networks.
    #[allow(clippy::too_many_arguments)] // three networks, a rollout, a noisy sample, two conditions: one call site
    pub fn student(&self, student: &mut Model, fake: &mut Model, teacher: &mut Teacher, rollout: &Rollout, draw: &Noisy, condition: &Condition, empty: &Condition) -> Result<Score, Error> {
        let s = self.score(fake, teacher, draw, condition, empty)?;
        let cotangent = Rows::of([&s.direction], |_, [a]| 2.0 * self.scale * a);
        let gradient = rollout.pullback(student, condition, &cotangent, &s.keep)?;
        Ok(Score { gradient, ..s })
    }
    /// The direction a, without a gradient of weights.
    pub(crate) fn score(&self, fake: &mut Model, teacher: &mut Teacher, draw: &Noisy, condition: &Condition, empty: &Condition) -> Result<Score, Error> {
        let k = angles(&draw.times);
        let x = draw.trig();
        let (z, u) = (Rows::of([&x], |i, [x]| k[i].b * x), flows(&k));
        let at = Point::new(&z, &u);
        let (v, big_v) = (fake.velocity(&at, condition)?, teacher.velocity(&at, condition, empty)?);
        let (fake, teacher) = (clean(&x, &v, &k), clean(&x, &big_v, &k));
        let weight: Vec<f64> = Rows::of([&draw.x0, &teacher], |_, [x, t]| (x - t).abs()).each(|r| r.iter().sum::<f64>() / r.len() as f64).iter().map(|w| w.max(1e-5)).collect();
        let direction = Rows::of([&fake, &teacher], |i, [f, t]| (f - t) / weight[i]);
        let keep = direction.finite();
        let direction = direction.keep(&keep);
        let loss = direction.each(|a| self.scale * a.iter().map(|x| x * x).sum::<f64>());
        Ok(Score { fake, teacher, weight, direction, loss, keep, gradient: Gradients::default() })
    }
}

/// x̂₀ from the network's velocity.
fn clean(x: &Rows, v: &Rows, k: &[Angle]) -> Rows {
    Rows::of([x, v], |i, [x, v]| k[i].b * (x - k[i].s * v))
}

/// What the student made.
pub struct Rollout {
    /// x̂₀ of each step.
    pub path: Vec<Rows>,
    /// The noisy sample before the last step.
    pub last: Rows,
    /// The times of the last step.
    pub times: Vec<Trig>,
    /// x̂₀ of the last step.
    pub x0: Rows,
}

/// As many steps as there are noises and times.
///
/// # Errors
/// Those of the network.
pub fn rollout(student: &mut Model, noise: &[Rows], times: &[Vec<Trig>], condition: &Condition) -> Result<Rollout, Error> {
    let (Some(first), Some(last)) = (noise.first(), times.last()) else { return Err(Error::new("rollout: no step")) };
    let mut r = Rollout { path: vec![], last: first.clone(), times: last.clone(), x0: first.clone() };
    let mut x = first.clone();
    for (n, t) in times.iter().enumerate() {
        let k = angles(t);
        if n > 0 {
            let noise = noise.get(n).ok_or_else(|| Error::new(format!("rollout: {} steps, but noise for {}", times.len(), noise.len())))?;
            x = Rows::of([&r.x0, noise], |i, [x, e]| k[i].c * x + k[i].s * e);
        }
        let z = Rows::of([&x], |i, [x]| k[i].b * x);
        r.x0 = clean(&x, &student.velocity(&Point::new(&z, &flows(&k)), condition)?, &k);
        r.path.push(r.x0.clone());
    }
    r.last = x;
    Ok(r)
}

impl Rollout {
    /// The gradient of the student's weights through the last step, for a cotangent of x̂₀.
    ///
    /// # Errors
    /// Those of the network.
    pub fn pullback(&self, student: &mut Model, condition: &Condition, cotangent: &Rows, keep: &[bool]) -> Result<Gradients, Error> {
        let k = angles(&self.times);
        let z = Rows::of([&self.last], |i, [x]| k[i].b * x).keep(keep);
        let of_v = Rows::of([cotangent], |i, [c]| -k[i].s * k[i].b * c).keep(keep);
        Ok(student.pullback(&Point::new(&z, &flows(&k)), condition, &of_v)?.weights)
    }
}

/// What the student's loss is made of.
pub struct Score {
    /// x̂₀ of the fake score.
    pub fake: Rows,
    /// x̂₀ of the guided teacher.
    pub teacher: Rows,
    /// What the difference is divided by.
    pub weight: Vec<f64>,
    /// a; 0 for samples that are left out.
    pub direction: Rows,
    /// The loss of each sample.
    pub loss: Vec<f64>,
    /// Samples without a NaN or an infinity.
    pub keep: Vec<bool>,
    /// Of the student's weights.
    pub gradient: Gradients,
}

/// What the critic learned from.
pub struct Critic {
    /// The loss of each sample.
    pub loss: Vec<f64>,
    /// Samples that are left out.
    pub skipped: usize,
    /// Of the fake score's weights, of the sum of losses.
    pub gradient: Gradients,
}

/// The critic's loss and gradient on a noised rollout.
///
/// # Errors
/// Those of the network.
pub fn critic(fake: &mut Model, draw: &Noisy, condition: &Condition) -> Result<Critic, Error> {
    let k = angles(&draw.times);
    let keep = draw.x0.finite();
    let z = Rows::of([&draw.trig()], |i, [x]| k[i].b * x).keep(&keep);
    let target = Rows::of([&draw.noise, &draw.x0], |_, [e, x]| e - x).keep(&keep);
    let weights: Vec<f64> = k.iter().zip(&keep).map(|(k, keep)| if *keep { k.b * k.b } else { 0.0 }).collect();
    let g = fake.regression(&Point::new(&z, &flows(&k)), condition, &target, &weights)?;
    let loss = g.loss.iter().zip(&weights).map(|(l, w)| if *w == 0.0 { 0.0 } else { l * w }).collect();
    Ok(Critic { loss, skipped: keep.iter().filter(|k| !**k).count(), gradient: g.weights })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rollouts_begin_where_they_are_told_and_never_rise() {
        let density = Density::LogNormal { mean: 2.0, deviation: 2.0 };
        let random = Random::new(1);
        for start in [Trig::NOISE, Trig(80f64.atan()), Trig(0.7)] {
            let times = Matching { start, ..Matching::released(density) }.times(50, 4, &random, 3).unwrap();
            assert_eq!((times.len(), &times[0]), (4, &vec![start; 50]));
            assert!(times.windows(2).all(|w| w[0].iter().zip(&w[1]).all(|(a, b)| a.0 >= b.0)));
        }
        // Fixed times are held below the start, too.
        let fixed = Matching { start: Trig(0.7), fixed: Some(vec![Trig(1.3), Trig(0.6)]), ..Matching::released(density) }.times(1, 3, &random, 0).unwrap();
        assert_eq!(fixed, [[Trig(0.7)], [Trig(0.7)], [Trig(0.6)]]);
    }
}
