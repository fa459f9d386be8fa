//! Samples from students and teachers, batch by batch, with their evaluations of the network and their seconds.
//!
//! The noise of sample i is a function of the seed and of i, and that of step k of (seed, k, i): the same samples come out whatever the batch, and two networks that are compared
//! start from the same noise.

use crate::config::Sampling;
use crate::data::feed::Feed;
use crate::method::Teacher;
use crate::method::meanflow;
use crate::network::{Model, Point};
use crate::random::Random;
use crate::rows::Rows;
use crate::sampler::{Between, Clock, euler, few, few_steps, shifted_grid, unipc};
use crate::time::{Flow, Sigma};
use ir::diagnostic::Error;
use std::time::Instant;

/// What samples are drawn by.
#[derive(Clone, Copy)]
pub struct Sampler<'a> {
    /// What networks are told.
    pub feed: &'a Feed,
    /// How.
    pub sampling: &'a Sampling,
    /// Samples at once.
    pub batch: usize,
}

/// Samples.
pub struct Drawn {
    /// `[samples, shape…]`.
    pub samples: Rows,
    /// Evaluations of the network for each sample.
    pub evaluations: u64,
    /// Seconds for all of them, compiling not included.
    pub seconds: f64,
}

impl Sampler<'_> {
    /// From a student, in `steps` steps: one sample for each of `which`, with its condition.
    ///
    /// # Errors
    /// More steps than there are times; those of the network.
    pub fn student(&self, model: &mut Model, which: &[usize], seed: u64, steps: usize) -> Result<Drawn, String> {
        let s = self.sampling;
        let times = few_steps(steps, s.sigma_max, &s.times)?;
        let between = if s.stochastic { Between::Stochastic } else { Between::Deterministic };
        let jumps = model.network().times.len() == 2;
        let mut evaluations = 0;
        self.batches(which, seed, &mut evaluations, &mut |noise, which, fresh, count| {
            let (condition, _) = self.feed.conditions(which).map_err(Error::new)?;
            if jumps {
                *count += steps as u64;
                return meanflow::sample(model, noise, steps, &condition);
            }
            let mut velocity = |x: &Rows, u: f64| {
                *count += 1;
                model.velocity(&Point::new(x, &vec![u; x.batch()]), &condition)
            };
            few(&mut velocity, noise, &times, Clock::Trig, between, fresh)
        })
    }
    /// From a guided teacher, in `steps` steps of its solver.
    ///
    /// # Errors
    /// Those of the network.
    pub fn teacher(&self, teacher: &mut Teacher, which: &[usize], seed: u64, steps: usize) -> Result<Drawn, String> {
        let s = self.sampling;
        let grid = shifted_grid(steps, s.teacher_shift, Flow::from(Sigma(s.sigma_max)));
        let each = if teacher.guidance > 1.0 { 2 } else { 1 };
        let mut evaluations = 0;
        self.batches(which, seed, &mut evaluations, &mut |noise, which, _, count| {
            let (condition, empty) = self.feed.conditions(which).map_err(Error::new)?;
            let mut velocity = |x: &Rows, u: f64| {
                *count += each;
                teacher.velocity(&Point::new(x, &vec![u; x.batch()]), &condition, &empty)
            };
            if s.teacher_solver == "unipc" { unipc(&mut velocity, noise, &grid) } else { euler(&mut velocity, noise, &grid) }
        })
    }
    /// Runs `draw` for each batch: its noise, its samples, new noise by step, and a count of evaluations.
    #[allow(clippy::type_complexity)] // one closure, described above
    fn batches(
        &self,
        which: &[usize],
        seed: u64,
        evaluations: &mut u64,
        draw: &mut dyn FnMut(&Rows, &[usize], &mut dyn FnMut(usize) -> Rows, &mut u64) -> Result<Rows, Error>,
    ) -> Result<Drawn, String> {
        let (n, width) = (which.len(), self.feed.data().size());
        if n == 0 {
            return Err("no sample is asked for".into());
        }
        let size = self.batch.clamp(1, n);
        let random = Random::new(seed);
        let mut shape = vec![size];
        shape.extend(self.feed.shape());
        let noise = |step: usize, from: usize| -> Rows {
            let s = random.stream(step as u64, "sample");
            let numbers = (from * width..(from + size) * width).map(|k| s.normal(k as u64)).collect();
            // As many numbers as the shape has.
            Rows::new(&shape, numbers).unwrap_or_else(|e| unreachable!("{e}"))
        };
        let mut all = Vec::with_capacity(n * width);
        let mut seconds = 0.0;
        for (b, part) in which.chunks(size).enumerate() {
            // The last batch is filled up, so that every batch is of one size; what was filled up is dropped.
            let mut told = part.to_vec();
            told.resize(size, part[0]);
            let from = b * size;
            if b == 0 {
                // Programs are made when they are first needed: not counted.
                draw(&noise(0, from), &told, &mut |k| noise(k, from), &mut 0).map_err(|e| e.to_string())?;
            }
            let start = Instant::now();
            let mut count = 0;
            let x = draw(&noise(0, from), &told, &mut |k| noise(k, from), &mut count).map_err(|e| e.to_string())?;
            seconds += start.elapsed().as_secs_f64();
            *evaluations = count;
            all.extend_from_slice(&x.data()[..part.len() * width]);
        }
        shape[0] = n;
        Ok(Drawn { samples: Rows::new(&shape, all).map_err(|e| e.to_string())?, evaluations: *evaluations, seconds })
    }
}
