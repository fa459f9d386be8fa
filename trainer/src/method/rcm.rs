//! rCM: consistency regularized by a score (Zheng et al. 2025, arXiv 2510.08431). One student, two losses, and a critic that learns in between:
//!
//! ```text
//! student's turn     consistency (continuous or discrete)  +  from iteration H on, distribution matching on a rollout of N = n mod 4 + 1 steps
//! critic's turn      flow matching of the fake score on the student's rollouts
//! ```
//!
//! Turns, r and N are [`Plan`]'s. The paper's ratio λ of matching to consistency is the ratio of the two scales, 1 to 100. Leaving out one loss gives the parts:
//! consistency alone is sCM (or dCM) and needs no critic; matching alone is DMD. A staged training starts from an sCM student's weights, and lets the critic learn
//! `critic_first` iterations before any turn of the student's: the fake score starts as the teacher *without* guidance, while the student samples the guided law.

use super::learner::{Learner, Teacher, all_used, report};
use super::{Batch, Gradients, Method, Metrics, Noisy, Weights, dcm, dmd, scm};
use crate::phase::{Plan, Turn};
use crate::random::Random;
use crate::rows::{Rows, mean};
use ir::diagnostic::Error;
use ir::tensor::Tensor;
use std::collections::BTreeMap;
use std::time::Duration;

/// What holds the student to the teacher's trajectories.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Regression {
    /// At all times.
    Continuous(scm::Consistency),
    /// Between neighbours of a grid.
    Discrete(dcm::Discrete),
}

/// The settings of a training.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// The consistency loss, if there is one.
    pub consistency: Option<Regression>,
    /// The distribution-matching loss, if there is one.
    pub matching: Option<dmd::Matching>,
    /// Turns.
    pub plan: Plan,
    /// Iterations in which the critic learns alone, before the plan begins.
    pub critic_first: u64,
    /// Every how many of its turns the student's tangent is compared to a difference of size 10⁻³; 0 for never.
    pub monitor_every: u64,
}

/// A training of a student from a teacher.
pub struct Rcm {
    student: Learner,
    fake: Option<Learner>,
    teacher: Teacher,
    settings: Settings,
}

impl Rcm {
    /// A student, a teacher and, where there is a matching loss, a fake score.
    ///
    /// # Errors
    /// No loss at all; a matching loss without a fake score, or a fake score without the loss; matching alone with a warm-up, in which nothing would be learned.
    pub fn new(student: Learner, fake: Option<Learner>, teacher: Teacher, settings: Settings) -> Result<Rcm, Error> {
        let s = &settings;
        if s.consistency.is_none() && s.matching.is_none() {
            return Err(Error::new("rcm: neither a consistency nor a matching loss"));
        }
        if s.matching.is_some() != fake.is_some() {
            return Err(Error::new("rcm: a matching loss and a fake score network need each other"));
        }
        if s.consistency.is_none() && s.plan.warm_up > 0 {
            return Err(Error::new(format!("rcm: {} iterations of warm-up without a consistency loss, in which nothing is learned", s.plan.warm_up)).hint("warm_up = 0"));
        }
        Ok(Rcm { student, fake, teacher, settings })
    }
    /// Whose turn an iteration is.
    pub fn turn(&self, iteration: u64) -> Turn {
        match (&self.fake, iteration.checked_sub(self.settings.critic_first)) {
            (None, _) => Turn::Student { score: false },
            (Some(_), None) => Turn::Critic,
            (Some(_), Some(i)) => self.settings.plan.turn(i),
        }
    }
    /// Evaluations of networks so far, with or without a derivative.
    pub fn evaluations(&self) -> u64 {
        self.student.model.evaluations() + self.teacher.model.evaluations() + self.fake.as_ref().map_or(0, |f| f.model.evaluations())
    }
    /// Time in programs so far, by network: what, how many runs, how long.
    pub fn times(&self) -> Vec<(&'static str, Vec<(String, u64, Duration)>)> {
        let mut all = vec![("student", self.student.spent()), ("teacher", self.teacher.model.spent().collect())];
        all.extend(self.fake.as_ref().map(|f| ("fake", f.spent())));
        all
    }
    /// The student, for those who ask where its time goes.
    pub fn student(&self) -> &Learner {
        &self.student
    }
    /// Bytes of a device's memory for weights, averages, moments and gradients of all its networks.
    pub fn device_bytes(&self) -> usize {
        self.student.device_bytes() + self.teacher.model.device_bytes() + self.fake.as_ref().map_or(0, Learner::device_bytes)
    }
    /// Time in programs so far.
    pub fn programs(&self) -> Duration {
        self.times().iter().flat_map(|(_, t)| t).map(|(_, _, d)| *d).sum()
    }
    /// Time in kernel launches so far, of all networks and optimizers.
    pub fn in_launches(&self) -> Duration {
        self.student.in_launches() + self.teacher.model.in_launches() + self.fake.as_ref().map_or(Duration::ZERO, Learner::in_launches)
    }
    /// Turns of the student's before this iteration, by which averages and rollouts count.
    fn count(&self, iteration: u64) -> u64 {
        match &self.fake {
            None => iteration,
            Some(_) => self.settings.plan.student_count(iteration.saturating_sub(self.settings.critic_first)),
        }
    }
    /// Steps of this iteration's rollout.
    fn steps(&self, iteration: u64) -> u64 {
        match iteration.checked_sub(self.settings.critic_first) {
            None => iteration % self.settings.plan.rollout.max(1) + 1,
            Some(i) => self.settings.plan.rollout_steps(i),
        }
    }
    fn learn(&mut self, iteration: u64, score: bool, batch: &Batch, random: &Random) -> Result<Metrics, Error> {
        let x0 = Rows::from_tensor(&batch.x0)?;
        let (condition, empty) = (&batch.condition, &batch.empty);
        let (mut m, mut total, mut gradient, mut skipped) = (Metrics::default(), 0.0, None::<Gradients>, 0usize);
        let student = &mut self.student.model;
        let r = self.settings.plan.tangent_weight(iteration.saturating_sub(self.settings.critic_first));
        match self.settings.consistency {
            Some(Regression::Continuous(c)) => {
                let draw = Noisy::draw(&x0, c.density, random, iteration, "scm");
                let o = c.at(student, &mut self.teacher, &draw, condition, empty, r)?;
                let norms: Vec<f64> = o.norms.iter().copied().filter(|n| n.is_finite()).collect();
                total += mean(&o.loss);
                m = m.with("consistency", mean(&o.loss)).with("tangent_norm", mean(&norms)).with("tangent_norm_max", norms.iter().copied().fold(0.0, f64::max));
                m = m.with("jvp_norm", mean(&o.tangent.norms().into_iter().filter(|n| n.is_finite()).collect::<Vec<_>>()));
                if self.settings.monitor_every > 0 && self.count(iteration).is_multiple_of(self.settings.monitor_every) {
                    m = m.with("tangent_gap", c.gap(&mut self.student.model, &mut self.teacher, &draw, condition, empty, 1e-3)?);
                }
                skipped += o.skipped;
                gradient = Some(o.gradient);
            }
            Some(Regression::Discrete(d)) => {
                let noise = x0.noise(random.stream(iteration, "dcm.noise"));
                let w = d.draw(x0.batch(), random, iteration);
                let o = d.at(student, &mut self.teacher, &x0, &noise, &w, condition, empty)?;
                total += mean(&o.loss);
                m = m.with("consistency", mean(&o.loss));
                skipped += o.skipped;
                gradient = Some(o.gradient);
            }
            None => {}
        }
        let steps = self.steps(iteration);
        if let (true, Some(d), Some(fake)) = (score, &self.settings.matching, &mut self.fake) {
            let student = &mut self.student.model;
            let roll = d.rollout(student, &x0, steps, condition, random, iteration)?;
            let draw = Noisy::draw(&roll.x0, d.density, random, iteration, "dmd");
            let s = d.student(student, &mut fake.model, &mut self.teacher, &roll, &draw, condition, empty)?;
            total += mean(&s.loss);
            m = m.with("matching", mean(&s.loss)).with("matching_weight", mean(&s.weight)).with("steps", steps as f64);
            skipped += s.keep.iter().filter(|k| !**k).count();
            gradient = Some(match gradient {
                None => s.gradient,
                Some(g) => self.student.model.add(g, &s.gradient)?,
            });
        }
        let gradient = gradient.ok_or_else(|| Error::new("rcm: a turn of the student's without a loss"))?;
        let update = self.student.learn(&gradient, self.count(iteration))?;
        Ok(report(m, update).with("loss", total).with("skipped", skipped as f64))
    }
    fn criticize(&mut self, iteration: u64, batch: &Batch, random: &Random) -> Result<Metrics, Error> {
        let steps = self.steps(iteration);
        let (Some(d), Some(fake)) = (&self.settings.matching, &mut self.fake) else { return Err(Error::new("rcm: a turn of the critic's without a matching loss")) };
        let x0 = Rows::from_tensor(&batch.x0)?;
        let roll = d.rollout(&mut self.student.model, &x0, steps, &batch.condition, random, iteration)?;
        let draw = Noisy::draw(&roll.x0, d.density, random, iteration, "dmd");
        let c = dmd::critic(&mut fake.model, &draw, &batch.condition)?;
        let update = fake.learn(&c.gradient, iteration)?;
        Ok(report(Metrics::default(), update).with("loss", mean(&c.loss)).with("critic", mean(&c.loss)).with("steps", steps as f64).with("skipped", c.skipped as f64))
    }
}

impl Method for Rcm {
    fn name(&self) -> &'static str {
        match (&self.settings.consistency, &self.settings.matching) {
            (Some(Regression::Continuous(_)), None) => "scm",
            (Some(Regression::Discrete(_)), None) => "dcm",
            (None, _) => "dmd",
            (Some(_), Some(_)) => "rcm",
        }
    }
    fn step(&mut self, iteration: u64, batch: &Batch, random: &Random) -> Result<Metrics, Error> {
        match self.turn(iteration) {
            Turn::Student { score } => self.learn(iteration, score, batch, random),
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
        if let Some(f) = &self.fake {
            f.save("fake", &mut s)?;
        }
        Ok(s)
    }
    fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), Error> {
        let mut used = vec![];
        let student = self.student.load("student", state, &mut used)?;
        let fake = self.fake.as_ref().map(|f| f.load("fake", state, &mut used)).transpose()?;
        all_used(state, &used)?;
        self.student.restore(student)?;
        match (&mut self.fake, fake) {
            (Some(f), Some(l)) => f.restore(l),
            _ => Ok(()),
        }
    }
    fn launches(&self) -> u64 {
        self.student.launches() + self.teacher.model.launches() + self.fake.as_ref().map_or(0, Learner::launches)
    }
}
