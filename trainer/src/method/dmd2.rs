//! DMD2 (Yin et al. 2024, arXiv 2405.14867), rCM's yardstick: distribution matching without regression, with
//!
//! * two time scales: the critic learns in all iterations but every `student_every`-th, which is the student's;
//! * backward simulation: the student is trained on the inputs that it will see, its own rollouts at the sampler's fixed times;
//! * an adversarial loss on the fake score network's features at noised samples, real against made (`discriminator`):
//!
//! ```text
//! critic     b²·‖v_fake − (ε − x̂₀)‖²  +  w_D·(log(1 + exp(−ℓ(x of data, τ))) + log(1 + exp(ℓ(x of x̂₀, τ))))        both into the fake score's weights
//! student    scale·‖a‖² (`dmd`)  +  w_G·log(1 + exp(−ℓ(x_D, τ_D)))                                                     ∂x_D/∂x̂₀ = C
//! ```

use super::learner::{Teacher, add, all_used, report};
use super::{Batch, Learner, Method, Metrics, Noisy, Weights, angles, dmd, flows};
use crate::discriminator::Discriminator;
use crate::network::{Model, Network, Point};
use crate::optim::{AdamW, Optimizer};
use crate::phase::{Plan, Turn};
use crate::program::Options;
use crate::random::Random;
use crate::rows::{Rows, mean};
use ir::diagnostic::Error;
use ir::tensor::Tensor;
use std::collections::BTreeMap;

/// The settings of a training.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// The matching loss.
    pub matching: dmd::Matching,
    /// The student's turn is every so many iterations; 5 in the paper.
    pub student_every: u64,
    /// The longest rollout; rollouts have 1 to this many steps, in turn.
    pub rollout: u64,
    /// w_G; 0 for no adversarial loss for the student.
    pub generator_weight: f64,
    /// w_D; 0, together with w_G, for no discriminator at all.
    pub discriminator_weight: f64,
    /// The width of the discriminator's hidden layer.
    pub width: i64,
}

/// A training of a student against a teacher and a discriminator.
pub struct Dmd2 {
    student: Learner,
    fake: Model,
    judge: Option<Discriminator>,
    optimizer: Optimizer,
    teacher: Teacher,
    settings: Settings,
}

impl Dmd2 {
    /// A student, and a fake score `network` that starts from `weights`.
    ///
    /// # Errors
    /// An adversarial loss on a network without features; weights that do not fit.
    #[allow(clippy::too_many_arguments)] // a student, a critic's four parts, a teacher, settings: made in one place
    pub fn new(student: Learner, network: Network, weights: &Weights, critic: AdamW, teacher: Teacher, settings: Settings, random: &Random, options: &Options) -> Result<Dmd2, Error> {
        let fake = Model::new(network.clone(), weights, options)?;
        let adversarial = settings.generator_weight != 0.0 || settings.discriminator_weight != 0.0;
        let judge = if adversarial { Some(Discriminator::new(&network, weights, settings.width, random, options)?) } else { None };
        let all = judge.as_ref().map_or(weights, |j| j.weights());
        let optimizer = Optimizer::new(critic, all, false, options)?;
        Ok(Dmd2 { student, fake, judge, optimizer, teacher, settings })
    }
    fn plan(&self) -> Plan {
        Plan { warm_up: 0, student_every: self.settings.student_every, rollout: self.settings.rollout }
    }
    /// Puts the optimizer's weights into the two networks that share them.
    fn share(&mut self) -> Result<(), Error> {
        let all = self.optimizer.weights()?;
        self.fake.set_weights(&Discriminator::network_part(&all))?;
        if let Some(j) = &mut self.judge {
            j.set_weights(all);
        }
        Ok(())
    }
    fn learn(&mut self, iteration: u64, batch: &Batch, random: &Random) -> Result<Metrics, Error> {
        let (s, plan) = (&self.settings, self.plan());
        let (condition, empty) = (&batch.condition, &batch.empty);
        let x0 = Rows::from_tensor(&batch.x0)?;
        let steps = plan.rollout_steps(iteration);
        let roll = s.matching.rollout(&mut self.student.model, &x0, steps, condition, random, iteration)?;
        let draw = Noisy::draw(&roll.x0, s.matching.density, random, iteration, "dmd");
        let score = s.matching.score(&mut self.fake, &mut self.teacher, &draw, condition, empty)?;
        let mut cotangent = Rows::of([&score.direction], |_, [a]| 2.0 * s.matching.scale * a);
        let mut m = Metrics::default().with("matching", mean(&score.loss)).with("steps", steps as f64);
        let mut loss = mean(&score.loss);
        if let Some(judge) = self.judge.as_mut().filter(|_| s.generator_weight != 0.0) {
            let k = angles(&draw.times);
            let z = Rows::of([&draw.trig()], |i, [x]| k[i].b * x).keep(&score.keep);
            let scale = vec![s.generator_weight; z.batch()];
            let verdict = judge.judge(&self.fake, &Point::new(&z, &flows(&k)), condition, -1.0, &scale, true)?;
            if let Some(g) = verdict.sample {
                // z = b·(C·x̂₀ + S·ε).
                cotangent = Rows::of([&cotangent, &g], |i, [c, g]| c + k[i].b * k[i].c * g);
            }
            loss += s.generator_weight * mean(&verdict.loss);
            m = m.with("generator", mean(&verdict.loss));
        }
        let gradient = roll.pullback(&mut self.student.model, condition, &cotangent, &score.keep)?;
        let update = self.student.learn(&gradient, plan.student_count(iteration))?;
        Ok(report(m, update).with("loss", loss).with("skipped", score.keep.iter().filter(|k| !**k).count() as f64))
    }
    fn criticize(&mut self, iteration: u64, batch: &Batch, random: &Random) -> Result<Metrics, Error> {
        let (s, plan, condition) = (&self.settings, self.plan(), &batch.condition);
        let x0 = Rows::from_tensor(&batch.x0)?;
        let steps = plan.rollout_steps(iteration);
        let roll = s.matching.rollout(&mut self.student.model, &x0, steps, condition, random, iteration)?;
        let draw = Noisy::draw(&roll.x0, s.matching.density, random, iteration, "dmd");
        let c = dmd::critic(&mut self.fake, &draw, condition)?;
        let mut skipped = c.skipped;
        let (mut m, mut loss, mut gradient) = (Metrics::default().with("critic", mean(&c.loss)).with("steps", steps as f64), mean(&c.loss), c.gradient.host()?.into_owned());
        if let Some(judge) = &mut self.judge {
            let k = angles(&draw.times);
            let real = Noisy { x0: x0.clone(), noise: draw.noise.clone(), times: draw.times.clone() };
            let mut sum = 0.0;
            let mut of_judge = None;
            for (data, sign) in [(&real, -1.0), (&draw, 1.0)] {
                let keep = data.x0.finite();
                skipped += if sign < 0.0 { keep.iter().filter(|k| !**k).count() } else { 0 };
                let z = Rows::of([&data.trig()], |i, [x]| k[i].b * x).keep(&keep);
                let scale: Vec<f64> = keep.iter().map(|k| if *k { s.discriminator_weight } else { 0.0 }).collect();
                let v = judge.judge(&self.fake, &Point::new(&z, &flows(&k)), condition, sign, &scale, false)?;
                sum += mean(&v.loss);
                of_judge = Some(match of_judge {
                    None => v.weights,
                    Some(g) => add(g, &v.weights)?,
                });
            }
            // The head has no gradient from the score's loss.
            let mut all = of_judge.unwrap_or_default();
            for (name, t) in add(Discriminator::network_part(&all), &gradient)? {
                all.insert(name, t);
            }
            gradient = all;
            loss += s.discriminator_weight * sum;
            m = m.with("discriminator", sum);
        }
        let update = self.optimizer.update(&gradient.into(), 0.0)?;
        self.share()?;
        Ok(report(m, update).with("loss", loss).with("skipped", skipped as f64))
    }
}

impl Method for Dmd2 {
    fn name(&self) -> &'static str {
        "dmd2"
    }
    fn step(&mut self, iteration: u64, batch: &Batch, random: &Random) -> Result<Metrics, Error> {
        match self.plan().turn(iteration) {
            Turn::Student { .. } => self.learn(iteration, batch, random),
            Turn::Critic => self.criticize(iteration, batch, random),
        }
    }
    fn weights(&self) -> Result<Weights, Error> {
        self.student.weights()
    }
    fn average(&self) -> Result<Weights, Error> {
        self.student.average()
    }
    fn state(&self) -> Result<BTreeMap<String, Tensor>, Error> {
        let mut s = BTreeMap::new();
        self.student.save("student", &mut s)?;
        self.optimizer.save("fake", &mut s)?;
        Ok(s)
    }
    fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), Error> {
        let mut used = vec![];
        let student = self.student.load("student", state, &mut used)?;
        let fake = self.optimizer.load("fake", state, &mut used)?;
        all_used(state, &used)?;
        self.student.restore(student)?;
        self.optimizer.restore(fake)?;
        self.share()
    }
    fn launches(&self) -> u64 {
        self.student.launches() + self.teacher.model.launches() + self.fake.launches() + self.optimizer.launches() + self.judge.as_ref().map_or(0, Discriminator::launches)
    }
}
