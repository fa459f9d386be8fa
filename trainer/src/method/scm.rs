//! Continuous-time consistency, sCM (Lu & Song 2024, arXiv 2410.11081), as rCM trains it (Zheng et al. 2025, arXiv 2510.08431, algorithm 1).
//!
//! The student's clean sample f(x, τ) must not change along the teacher's trajectory. With F the TrigFlow velocity of the student, F_T the teacher's, and the
//! tangent taken along (C·S·F_T, C·S), so that t_F = C·S·dF/dτ:
//!
//! ```text
//! x    = C·x₀ + S·ε                                            τ ~ p_G
//! g    = −C·√(1 − r²S²)·(F − F_T) − (r·C·S·x + t_F)           as released;  − r·(C·S·x + t_F)  in the paper;  r = min(1, i/H)
//! ĝ    = g/(‖g‖ + 0.1)                                         per sample
//! loss = scale·‖F_θ − sg(F + ĝ)‖²,   so   ∂loss/∂F_θ = −2·scale·ĝ
//! ```
//!
//! Nothing is differentiated twice: ĝ comes from forward mode, the gradient from an ordinary pullback of a cotangent that is known by then. With a
//! rectified-flow network, b = 1/(C + S), v at (b·x, u), V the teacher's, and J its tangent along (V, 1):
//!
//! ```text
//! F = (C − S)·b·x + b·v         t_F = C·S·(−x + (C − S)·b²·(V − v) + b³·J)         ∂loss/∂v = b·∂loss/∂F
//! ```
//!
//! [`Form::Flow`] is the same condition in the network's own terms, g = −(v − V) − r·u·J, which differs by a factor per sample before the normalisation.
//! [`Form::Original`] is the first paper's, for a network that is F itself, on data of deviation σ_d:
//! g = −C²·(σ_d·F − dx/dτ) − r·(C·S·x + σ_d·t_F), and the loss is a mean over elements.

use super::learner::Teacher;
use super::{Angle, Condition, Gradients, Noisy, angles, flows};
use crate::density::Density;
use crate::network::{Model, Point};
use crate::rows::Rows;
use ir::diagnostic::Error;

/// In which terms the condition is written.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Form {
    /// TrigFlow, over a rectified-flow network.
    Trig,
    /// Rectified flow.
    Flow,
    /// TrigFlow, over a network that takes (x/σ_d, τ) and gives F.
    Original {
        /// σ_d.
        deviation: f64,
    },
}

/// What r weighs during the warm-up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// The sample's term and the root, as rCM's released code has it.
    Released,
    /// The tangent too, as in its algorithm 1.
    Paper,
}

/// How the tangent of the network is found.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Tangent {
    /// By the forward-mode program.
    Forward,
    /// Forward mode along the sample, a difference of this size along time (`fd_type` 1).
    FiniteTime(f64),
    /// A difference of this size along both (`fd_type` 2).
    Finite(f64),
}

/// The settings of the loss.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Consistency {
    /// In which terms.
    pub form: Form,
    /// What r weighs.
    pub placement: Placement,
    /// How tangents are found.
    pub tangent: Tangent,
    /// p_G.
    pub density: Density,
    /// What is added to the norm.
    pub constant: f64,
    /// The factor of the loss.
    pub scale: f64,
}

impl Consistency {
    /// rCM's: TrigFlow, forward mode, 0.1, 100.
    pub fn released(density: Density) -> Consistency {
        Consistency { form: Form::Trig, placement: Placement::Released, tangent: Tangent::Forward, density, constant: 0.1, scale: 100.0 }
    }
    /// In rectified flow's terms, with a loss of scale 1.
    pub fn flow(density: Density) -> Consistency {
        Consistency { form: Form::Flow, scale: 1.0, ..Consistency::released(density) }
    }
}

/// What the loss is made of. F, F_T and t_F are v, V and J in rectified flow's terms.
pub struct Outcome {
    /// F.
    pub velocity: Rows,
    /// F_T.
    pub teacher: Rows,
    /// t_F.
    pub tangent: Rows,
    /// g.
    pub g: Rows,
    /// ĝ; 0 for samples that are left out.
    pub direction: Rows,
    /// `‖g‖`.
    pub norms: Vec<f64>,
    /// The loss of each sample.
    pub loss: Vec<f64>,
    /// Samples that are left out: those with a NaN or an infinity.
    pub skipped: usize,
    /// The gradient of the sum of losses.
    pub gradient: Gradients,
}

/// The parts of g, in one form.
struct Parts {
    velocity: Rows,
    teacher: Rows,
    tangent: Rows,
    g: Rows,
}

impl Consistency {
    /// The loss and its gradient at a noisy sample, with r.
    ///
    /// # Errors
    /// A batch that does not fit the networks; a tangent that the form does not have.
    pub fn at(&self, student: &mut Model, teacher: &mut Teacher, draw: &Noisy, condition: &Condition, empty: &Condition, r: f64) -> Result<Outcome, Error> {
        self.weighted(student, teacher, draw, condition, empty, r, &vec![0.0; draw.times.len()])
    }
    /// The same with a logarithmic weight w of each sample, as the first paper learns one: loss = eʷ·(…) − w.
    ///
    /// # Errors
    /// As [`Consistency::at`].
    #[allow(clippy::too_many_arguments)] // as below
    pub fn weighted(&self, student: &mut Model, teacher: &mut Teacher, draw: &Noisy, condition: &Condition, empty: &Condition, r: f64, log_weight: &[f64]) -> Result<Outcome, Error> {
        if log_weight.len() != draw.times.len() {
            return Err(Error::new(format!("scm: {} samples, but {} weights", draw.times.len(), log_weight.len())));
        }
        let k = angles(&draw.times);
        let (sample, time) = self.input(draw, &k);
        let p = match self.form {
            Form::Trig => self.trig(student, teacher, draw, &k, &sample, condition, empty, r)?,
            Form::Flow => self.rectified(student, teacher, &k, &sample, condition, empty, r)?,
            Form::Original { deviation } => self.original(student, teacher, draw, &k, deviation, condition, empty, r)?,
        };
        let keep: Vec<bool> = p.g.finite().iter().zip(p.velocity.finite()).map(|(a, b)| *a && b).collect();
        let norms = p.g.norms();
        let direction = Rows::of([&p.g], |i, [g]| g / (norms[i] + self.constant)).keep(&keep);
        // A mean over elements in the first paper, a sum in rCM.
        let scale = if matches!(self.form, Form::Original { .. }) { self.scale / direction.width() as f64 } else { self.scale };
        let scale: Vec<f64> = log_weight.iter().map(|w| scale * w.exp()).collect();
        let square = direction.each(|d| d.iter().map(|x| x * x).sum());
        let loss = (0..square.len()).map(|i| if keep[i] { scale[i] * square[i] - log_weight[i] } else { 0.0 }).collect();
        let inner = |i: usize| if self.form == Form::Trig { k[i].b } else { 1.0 };
        let cotangent = Rows::of([&direction], |i, [d]| -2.0 * scale[i] * inner(i) * d);
        // Left out of the network too: its cotangent is 0, but 0·NaN is NaN.
        let sample = sample.keep(&keep);
        let gradient = student.pullback(&Point::new(&sample, &time), condition, &cotangent)?.weights;
        let skipped = keep.iter().filter(|k| !**k).count();
        Ok(Outcome { velocity: p.velocity, teacher: p.teacher, tangent: p.tangent, g: p.g, direction, norms, loss, skipped, gradient })
    }
    /// What the network sees: its sample and its time.
    fn input(&self, draw: &Noisy, k: &[Angle]) -> (Rows, Vec<f64>) {
        match self.form {
            Form::Trig => (Rows::of([&draw.trig()], |i, [x]| k[i].b * x), flows(k)),
            Form::Flow => (draw.flow(), flows(k)),
            Form::Original { deviation } => (Rows::of([&draw.x0, &draw.noise], |i, [x, e]| k[i].c * x / deviation + k[i].s * e), draw.times.iter().map(|t| t.0).collect()),
        }
    }
    #[allow(clippy::too_many_arguments)] // two networks, a sample, two conditions, a weight: one call site
    fn trig(&self, student: &mut Model, teacher: &mut Teacher, draw: &Noisy, k: &[Angle], z: &Rows, condition: &Condition, empty: &Condition, r: f64) -> Result<Parts, Error> {
        let (x, u, one) = (draw.trig(), flows(k), vec![1.0; k.len()]);
        let big_v = teacher.velocity(&Point::new(z, &u), condition, empty)?;
        // F of a network's v at (x, τ).
        let wrap = |x: &Rows, k: &[Angle], v: &Rows| Rows::of([x, v], |i, [x, v]| (k[i].c - k[i].s) * k[i].b * x + k[i].b * v);
        let f_teacher = wrap(&x, k, &big_v);
        let moved = |student: &mut Model, x: &Rows, h: f64| -> Result<Rows, Error> {
            let k = angles(&draw.times.iter().map(|t| crate::Trig(t.0 - h)).collect::<Vec<_>>());
            let z = Rows::of([x], |i, [x]| k[i].b * x);
            Ok(wrap(x, &k, &student.velocity(&Point::new(&z, &flows(&k)), condition)?))
        };
        let (f, t_f) = match self.tangent {
            Tangent::Forward => {
                let (v, j) = student.tangent(&Point::new(z, &u), &Point::new(&big_v, &one), condition)?;
                let t = Rows::of([&x, &v, &big_v, &j], |i, [x, v, big_v, j]| {
                    let Angle { c, s, b, .. } = k[i];
                    c * s * (-x + (c - s) * b * b * (big_v - v) + b * b * b * j)
                });
                (wrap(&x, k, &v), t)
            }
            Tangent::FiniteTime(h) => {
                // Along the sample alone, C·S·F_T in x is b times that in the network's sample.
                let along = Rows::of([&f_teacher], |i, [f]| k[i].b * k[i].c * k[i].s * f);
                let (v, j) = student.tangent(&Point::new(z, &u), &Point::new(&along, &vec![0.0; k.len()]), condition)?;
                let (f, before) = (wrap(&x, k, &v), moved(student, &x, h)?);
                let t = Rows::of([&f, &f_teacher, &j, &before], |i, [f, f_teacher, j, before]| {
                    let Angle { c, s, b, .. } = k[i];
                    (c - s) * b * c * s * f_teacher + b * j + c * s * (h.cos() * f - before) / h.sin()
                });
                (f, t)
            }
            Tangent::Finite(h) => {
                let f = wrap(&x, k, &student.velocity(&Point::new(z, &u), condition)?);
                let back = Rows::of([&x, &f_teacher], |_, [x, f]| h.cos() * x - h.sin() * f);
                let before = moved(student, &back, h)?;
                let t = Rows::of([&f, &before], |i, [f, before]| k[i].c * k[i].s * (h.cos() * f - before) / h.sin());
                (f, t)
            }
        };
        let part = if self.placement == Placement::Paper { r } else { 1.0 };
        let g = Rows::of([&x, &f, &f_teacher, &t_f], |i, [x, f, f_teacher, t]| {
            let Angle { c, s, .. } = k[i];
            -c * (1.0 - r * r * s * s).sqrt() * (f - f_teacher) - (r * c * s * x + part * t)
        });
        Ok(Parts { velocity: f, teacher: f_teacher, tangent: t_f, g })
    }
    #[allow(clippy::too_many_arguments)] // as above
    fn rectified(&self, student: &mut Model, teacher: &mut Teacher, k: &[Angle], x: &Rows, condition: &Condition, empty: &Condition, r: f64) -> Result<Parts, Error> {
        let (u, one) = (flows(k), vec![1.0; k.len()]);
        let big_v = teacher.velocity(&Point::new(x, &u), condition, empty)?;
        let earlier = |h: f64| u.iter().map(|u| u - h).collect::<Vec<_>>();
        let (v, j) = match self.tangent {
            Tangent::Forward => student.tangent(&Point::new(x, &u), &Point::new(&big_v, &one), condition)?,
            Tangent::FiniteTime(h) => {
                let (v, j) = student.tangent(&Point::new(x, &u), &Point::new(&big_v, &vec![0.0; k.len()]), condition)?;
                let before = student.velocity(&Point::new(x, &earlier(h)), condition)?;
                let j = Rows::of([&v, &j, &before], |_, [v, j, before]| j + (v - before) / h);
                (v, j)
            }
            Tangent::Finite(h) => {
                let v = student.velocity(&Point::new(x, &u), condition)?;
                let back = Rows::of([x, &big_v], |_, [x, v]| x - h * v);
                let before = student.velocity(&Point::new(&back, &earlier(h)), condition)?;
                let j = Rows::of([&v, &before], |_, [v, before]| (v - before) / h);
                (v, j)
            }
        };
        let g = Rows::of([&v, &big_v, &j], |i, [v, big_v, j]| -(v - big_v) - r * u[i] * j);
        Ok(Parts { velocity: v, teacher: big_v, tangent: j, g })
    }
    #[allow(clippy::too_many_arguments)] // as above
    fn original(&self, student: &mut Model, teacher: &mut Teacher, draw: &Noisy, k: &[Angle], deviation: f64, condition: &Condition, empty: &Condition, r: f64) -> Result<Parts, Error> {
        if self.tangent != Tangent::Forward {
            return Err(Error::new("scm: finite differences for a network that is F itself are not supported").hint("tangents by forward mode, or another form"));
        }
        let (z, time) = self.input(draw, k);
        let at = Point::new(&z, &time);
        let f_teacher = teacher.velocity(&at, condition, empty)?;
        let along = Rows::of([&f_teacher], |i, [f]| k[i].c * k[i].s * f);
        let speed: Vec<f64> = k.iter().map(|k| k.c * k.s).collect();
        let (f, t_f) = student.tangent(&at, &Point::new(&along, &speed), condition)?;
        let g = Rows::of([&z, &f, &f_teacher, &t_f], |i, [z, f, f_teacher, t]| {
            let Angle { c, s, .. } = k[i];
            deviation * (-c * c * (f - f_teacher) - r * (c * s * z + t))
        });
        Ok(Parts { velocity: f, teacher: f_teacher, tangent: t_f, g })
    }
    /// How far the difference along time and sample is from the forward-mode tangent, `‖t_fd − t‖/‖t‖` over the whole batch: a monitor of a network whose tangent has
    /// become too rough for its precision.
    ///
    /// # Errors
    /// As [`Consistency::at`].
    pub fn gap(&self, student: &mut Model, teacher: &mut Teacher, draw: &Noisy, condition: &Condition, empty: &Condition, step: f64) -> Result<f64, Error> {
        let k = angles(&draw.times);
        let (sample, _) = self.input(draw, &k);
        let mut parts = |tangent| {
            let c = Consistency { tangent, ..*self };
            match self.form {
                Form::Trig => c.trig(student, teacher, draw, &k, &sample, condition, empty, 1.0),
                Form::Flow => c.rectified(student, teacher, &k, &sample, condition, empty, 1.0),
                Form::Original { deviation } => c.original(student, teacher, draw, &k, deviation, condition, empty, 1.0),
            }
        };
        let (a, b) = (parts(Tangent::Forward)?.tangent, parts(Tangent::Finite(step))?.tangent);
        let sum = |r: &Rows| r.data().iter().map(|x| x * x).sum::<f64>();
        Ok((sum(&Rows::of([&a, &b], |_, [a, b]| a - b)) / sum(&a)).sqrt())
    }
}
