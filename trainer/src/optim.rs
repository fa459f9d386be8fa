//! AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) as PyTorch computes it, and learning rates over its steps. With g the gradient at step t, counted from 1:
//!
//! ```text
//! w ← w·(1 − η·λ)
//! m ← β₁·m + (1 − β₁)·g                  for β₁ = 0 this is g: no first moment is kept
//! v ← β₂·v + (1 − β₂)·g²
//! w ← w − η/(1 − β₁ᵗ) · m / (√v/√(1 − β₂ᵗ) + ε)
//! a ← a + (1 − β)·(w − a)                  the average of weights, where one is kept
//! ```
//!
//! The update is one generated elementwise program over all weights laid end to end. NaN and infinite elements of a gradient are set to 0 on their way in, as
//! rCM's trainer does, and counted; nothing is clipped.

use crate::method::Weights;
use crate::program::{Options, Program};
use ir::builder::Builder;
use ir::diagnostic::Error;
use ir::dim::{Bindings, Name};
use ir::graph::{Function, Var};
use ir::prim::Elementwise;
use ir::tensor::{Tensor, TensorData};
use ir::types::{Axis, DType, Type};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A learning rate over an optimizer's own steps.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Schedule {
    /// The rate behind the warm-up.
    pub rate: f64,
    /// Steps over which the rate rises in a line from `rate·10⁻⁶` to `rate`; 0 for none.
    pub warm_up: u64,
    /// How it falls afterwards.
    pub decay: Decay,
}

/// How a learning rate falls.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Decay {
    /// It does not.
    Constant,
    /// In a line to `last` of the rate at step `steps`.
    Linear {
        /// The step at which `last` is reached.
        steps: u64,
        /// A share of the rate.
        last: f64,
    },
    /// Along half a cosine to `last` of the rate at step `steps`.
    Cosine {
        /// The step at which `last` is reached.
        steps: u64,
        /// A share of the rate.
        last: f64,
    },
}

impl Schedule {
    /// rCM's: a warm-up of 100 steps, then constant.
    pub fn released(rate: f64) -> Schedule {
        Schedule { rate, warm_up: 100, decay: Decay::Constant }
    }
    /// Always the same.
    pub fn constant(rate: f64) -> Schedule {
        Schedule { rate, warm_up: 0, decay: Decay::Constant }
    }
    /// The rate at a step, counted from 0.
    pub fn at(self, step: u64) -> f64 {
        const FIRST: f64 = 1e-6;
        let rise = if self.warm_up == 0 { 1.0 } else { (FIRST + (1.0 - FIRST) * step as f64 / self.warm_up as f64).min(1.0) };
        let part = |steps: u64| {
            let length = steps.saturating_sub(self.warm_up).max(1) as f64;
            (step.saturating_sub(self.warm_up) as f64 / length).min(1.0)
        };
        let fall = match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear { steps, last } => 1.0 + (last - 1.0) * part(steps),
            Decay::Cosine { steps, last } => last + (1.0 - last) * 0.5 * (1.0 + (std::f64::consts::PI * part(steps)).cos()),
        };
        self.rate * rise * fall
    }
}

/// What an optimizer is told.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct AdamW {
    /// η over steps.
    pub schedule: Schedule,
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// ε.
    pub epsilon: f64,
    /// λ, decoupled from the gradient.
    pub decay: f64,
}

impl AdamW {
    /// rCM's numbers: β = (0, 0.999), ε = 1e-8, λ = 0.01.
    pub fn released(schedule: Schedule) -> AdamW {
        AdamW { schedule, beta1: 0.0, beta2: 0.999, epsilon: 1e-8, decay: 0.01 }
    }
    /// The update as a function of `N` weights laid end to end.
    fn function(&self, average: bool) -> Result<Function, Error> {
        let vector = Type::new(DType::F32, vec![Axis::sym("N")]);
        let mut b = Builder::new("adamw");
        let (w, g, second) = (b.param("w", vector.clone()), b.param("g", vector.clone()), b.param("second", vector.clone()));
        let first = (self.beta1 != 0.0).then(|| b.param("first", vector.clone()));
        let mean = average.then(|| b.param("average", vector));
        let scalar = |b: &mut Builder, name: &str| b.param(name, Type::scalar(DType::F32));
        let (keep, step, root) = (scalar(&mut b, "keep"), scalar(&mut b, "step"), scalar(&mut b, "root"));
        let number = |b: &mut Builder, x: f64| b.constant(x, DType::F32);
        // β·old + (1 − β)·new.
        let blend = |b: &mut Builder, beta: f64, old: Var, new: Var| -> Result<Var, Error> {
            let (k, l) = (number(b, beta), number(b, 1.0 - beta));
            let (old, new) = (b.mul(old, k)?, b.mul(new, l)?);
            b.add(old, new)
        };
        let square = b.mul(g, g)?;
        let second = blend(&mut b, self.beta2, second, square)?;
        let first = match first {
            Some(m) => Some(blend(&mut b, self.beta1, m, g)?),
            None => None,
        };
        let deviation = b.elementwise(Elementwise::Sqrt, &[second])?;
        let deviation = b.mul(deviation, root)?;
        let epsilon = number(&mut b, self.epsilon);
        let deviation = b.add(deviation, epsilon)?;
        let direction = b.div(first.unwrap_or(g), deviation)?;
        let (w, direction) = (b.mul(w, keep)?, b.mul(direction, step)?);
        let w = b.sub(w, direction)?;
        b.result("w.next", w);
        b.result("second.next", second);
        if let Some(m) = first {
            b.result("first.next", m);
        }
        if let Some(a) = mean {
            let share = scalar(&mut b, "share");
            let gap = b.sub(w, a)?;
            let gap = b.mul(gap, share)?;
            let a = b.add(a, gap)?;
            b.result("average.next", a);
        }
        Ok(b.finish())
    }
}

/// What an update did.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Update {
    /// Norm of the gradient, without what was set to 0.
    pub norm: f64,
    /// Elements that were NaN or infinite.
    pub nonfinite: u64,
    /// The learning rate.
    pub rate: f64,
}

/// An optimizer with its weights: laid end to end, by the order of their names.
pub struct Optimizer {
    settings: AdamW,
    program: Program,
    dtype: DType,
    layout: Vec<(Name, Vec<usize>)>,
    /// `w`, `second`, `first` where β₁ is not 0, `average` where one is kept.
    state: BTreeMap<&'static str, Tensor>,
    steps: u64,
    launches: u64,
    spent: Duration,
}

impl Optimizer {
    /// An optimizer of `weights`, which may keep an average of them.
    ///
    /// # Errors
    /// Settings that are no AdamW, and a program that cannot be made.
    pub fn new(settings: AdamW, weights: &Weights, average: bool, options: &Options) -> Result<Optimizer, Error> {
        let AdamW { beta1, beta2, epsilon, decay, schedule } = settings;
        if !((0.0..1.0).contains(&beta1) && (0.0..1.0).contains(&beta2) && epsilon > 0.0 && decay >= 0.0 && schedule.rate >= 0.0) {
            return Err(Error::new(format!("adamw: β₁ = {beta1}, β₂ = {beta2}, ε = {epsilon}, λ = {decay}, rate {}", schedule.rate)).hint("betas are in 0..1, ε is above 0, decay and rate are not negative"));
        }
        let layout: Vec<(Name, Vec<usize>)> = weights.iter().map(|(n, t)| (n.clone(), t.shape().to_vec())).collect();
        let total: usize = weights.values().map(Tensor::len).sum();
        let program = Program::new(&settings.function(average)?, &[], &Bindings::from([("N".into(), total as i64)]), options).map_err(|e| Error::new(format!("adamw: {e}")))?;
        let dtype = options.dtype;
        let mut state = BTreeMap::from([("w", join(weights, &layout, dtype)?), ("second", Tensor::zeros(dtype, &[total])?)]);
        if beta1 != 0.0 {
            state.insert("first", Tensor::zeros(dtype, &[total])?);
        }
        if average {
            state.insert("average", state["w"].clone());
        }
        Ok(Optimizer { settings, program, dtype, layout, state, steps: 0, launches: 0, spent: Duration::ZERO })
    }
    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }
    /// Kernel launches of its program so far; none on the reference evaluator.
    pub fn launches(&self) -> u64 {
        self.launches
    }
    /// Time in kernel launches of its program so far.
    pub fn in_launches(&self) -> Duration {
        self.program.in_launches()
    }
    /// Time in its program so far.
    pub fn spent(&self) -> Duration {
        self.spent
    }
    /// The weights as they are now.
    pub fn weights(&self) -> Weights {
        self.split("w")
    }
    /// The average of the weights; the weights themselves where none is kept.
    pub fn average(&self) -> Weights {
        self.split(if self.state.contains_key("average") { "average" } else { "w" })
    }
    fn split(&self, part: &str) -> Weights {
        let mut at = 0;
        let mut out = Weights::new();
        for (name, shape) in &self.layout {
            let n: usize = shape.iter().product();
            let data = match self.state[part].data() {
                TensorData::F32(v) => TensorData::F32(v[at..at + n].to_vec()),
                TensorData::F64(v) => TensorData::F64(v[at..at + n].to_vec()),
                _ => unreachable!("adamw: only f32 and f64 are laid out"),
            };
            // The slice has the shape's number of elements.
            out.extend(Tensor::new(shape.clone(), data).ok().map(|t| (name.clone(), t)));
            at += n;
        }
        out
    }
    /// One step along `gradient`, of which NaN and infinite elements count as 0. `beta` is the average's.
    ///
    /// # Errors
    /// A gradient that is missing or has another shape, and a program that fails; the state is then as it was.
    pub fn update(&mut self, gradient: &Weights, beta: f64) -> Result<Update, Error> {
        let mut flat = join(gradient, &self.layout, self.dtype)?;
        let (norm, nonfinite) = clean(&mut flat)?;
        let AdamW { beta1, beta2, decay, schedule, .. } = self.settings;
        let (rate, t) = (schedule.at(self.steps), (self.steps + 1) as f64);
        let scalar = |x: f64| Tensor::from_f64(self.dtype, &[], &[x]);
        let (keep, step, root, share) = (scalar(1.0 - rate * decay)?, scalar(rate / (1.0 - beta1.powf(t)))?, scalar((1.0 - beta2.powf(t)).sqrt().recip())?, scalar(1.0 - beta)?);
        let mut inputs: Vec<(&str, &Tensor)> = vec![("g", &flat), ("keep", &keep), ("step", &step), ("root", &root)];
        inputs.extend(self.state.iter().map(|(n, t)| (*n, t)));
        if self.state.contains_key("average") {
            inputs.push(("share", &share));
        }
        let start = Instant::now();
        let mut out = self.program.run(&inputs).map_err(|e| Error::new(format!("adamw: {e}")))?;
        self.spent += start.elapsed();
        let mut next = BTreeMap::new();
        for part in self.state.keys() {
            next.insert(*part, out.remove(&*format!("{part}.next")).ok_or_else(|| Error::new(format!("adamw: the program has no `{part}.next`")))?);
        }
        self.state = next;
        self.steps += 1;
        self.launches += self.program.launches() as u64;
        Ok(Update { norm, nonfinite, rate })
    }
    /// Everything that the next step depends on, by `PREFIX.PART.WEIGHT` and `PREFIX.steps`.
    pub fn save(&self, prefix: &str, into: &mut BTreeMap<String, Tensor>) {
        for part in self.state.keys() {
            for (name, t) in self.split(part) {
                into.insert(key(prefix, part, &name), t);
            }
        }
        into.extend(Tensor::from_f64(DType::F64, &[], &[self.steps as f64]).ok().map(|t| (format!("{prefix}.steps"), t)));
    }
    /// What [`Optimizer::save`] wrote, to be put in place by [`Optimizer::restore`]; the names that were used are added to `used`.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape or type.
    pub fn load(&self, prefix: &str, from: &BTreeMap<String, Tensor>, used: &mut Vec<String>) -> Result<Loaded, Error> {
        let mut state = BTreeMap::new();
        for part in self.state.keys() {
            let mut weights = Weights::new();
            for (name, shape) in &self.layout {
                let k = key(prefix, part, name);
                let t = from.get(&k).ok_or_else(|| Error::new(format!("state: no tensor `{k}`")))?;
                if t.shape() != shape || t.dtype() != self.dtype {
                    return Err(Error::new(format!("state: `{k}` is {}{:?}, but must be {}{shape:?}", t.dtype(), t.shape(), self.dtype)));
                }
                weights.insert(name.clone(), t.clone());
                used.push(k);
            }
            state.insert(*part, join(&weights, &self.layout, self.dtype)?);
        }
        let k = format!("{prefix}.steps");
        let steps = from.get(&k).map(Tensor::to_f64).and_then(|v| v.first().copied()).filter(|s| *s >= 0.0 && s.fract() == 0.0).ok_or_else(|| Error::new(format!("state: `{k}` is no number of steps")))?;
        used.push(k);
        Ok(Loaded { state, steps: steps as u64 })
    }
    /// Puts a loaded state in place.
    pub fn restore(&mut self, loaded: Loaded) {
        self.state = loaded.state;
        self.steps = loaded.steps;
    }
}

/// A state that was read and checked, and is not in place yet.
pub struct Loaded {
    state: BTreeMap<&'static str, Tensor>,
    steps: u64,
}

fn key(prefix: &str, part: &str, name: &str) -> String {
    format!("{prefix}.{}.{name}", if part == "w" { "weights" } else { part })
}

/// Tensors laid end to end.
fn join(weights: &Weights, layout: &[(Name, Vec<usize>)], dtype: DType) -> Result<Tensor, Error> {
    let total: usize = layout.iter().map(|(_, s)| s.iter().product::<usize>()).sum();
    let mut narrow: Vec<f32> = Vec::with_capacity(if dtype == DType::F32 { total } else { 0 });
    let mut wide: Vec<f64> = Vec::with_capacity(if dtype == DType::F64 { total } else { 0 });
    for (name, shape) in layout {
        let t = weights.get(name).ok_or_else(|| Error::new(format!("adamw: no tensor `{name}`")))?;
        if t.shape() != shape {
            return Err(Error::new(format!("adamw: `{name}` has shape {:?}, but the weight {shape:?}", t.shape())));
        }
        match (dtype, t.data()) {
            (DType::F32, TensorData::F32(v)) => narrow.extend(v),
            (DType::F32, _) => narrow.extend(t.to_f64().iter().map(|x| *x as f32)),
            (DType::F64, _) => wide.extend(t.to_f64()),
            _ => return Err(Error::new(format!("adamw: weights of {dtype}, but optimizers keep f32 or f64"))),
        }
    }
    Tensor::new(vec![total], if dtype == DType::F32 { TensorData::F32(narrow) } else { TensorData::F64(wide) })
}

/// Sets what is not finite to 0; the norm of the rest, summed in order, and how many elements there were.
fn clean(flat: &mut Tensor) -> Result<(f64, u64), Error> {
    let (mut sum, mut count) = (0.0, 0);
    let shape = flat.shape().to_vec();
    macro_rules! pass {
        ($v:expr, $variant:ident) => {{
            let mut v = $v.clone();
            for x in &mut v {
                if x.is_finite() {
                    sum += f64::from(*x) * f64::from(*x);
                } else {
                    *x = 0.0;
                    count += 1;
                }
            }
            TensorData::$variant(v)
        }};
    }
    let data = match flat.data() {
        TensorData::F32(v) => pass!(v, F32),
        TensorData::F64(v) => pass!(v, F64),
        _ => return Err(Error::new("adamw: a gradient that is neither f32 nor f64")),
    };
    if count > 0 {
        *flat = Tensor::new(shape, data)?;
    }
    Ok((sum.sqrt(), count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::On;

    fn optimizer(settings: AdamW, average: bool) -> (Optimizer, Weights) {
        let t = |shape: &[usize], v: &[f64]| Tensor::from_f64(DType::F64, shape, v).unwrap();
        let w = Weights::from([("a".into(), t(&[2, 1], &[1.0, -2.0])), ("b".into(), t(&[1], &[0.5]))]);
        (Optimizer::new(settings, &w, average, &options()).unwrap(), w)
    }
    fn options() -> Options {
        Options { on: On::Reference, dtype: DType::F64, ..Options::default() }
    }

    #[test]
    fn rates_rise_and_fall() {
        let s = Schedule { rate: 2.0, warm_up: 100, decay: Decay::Cosine { steps: 300, last: 0.0 } };
        assert_eq!((s.at(0), s.at(100), s.at(300), s.at(900)), (2e-6, 2.0, 0.0, 0.0));
        assert!((s.at(200) - 1.0).abs() < 1e-12 && (s.at(50) - 1.0).abs() < 1e-5);
        let s = Schedule { rate: 1.0, warm_up: 0, decay: Decay::Linear { steps: 200, last: 0.02 } };
        assert!((s.at(0) - 1.0).abs() < 1e-15 && (s.at(100) - 0.51).abs() < 1e-12 && (s.at(500) - 0.02).abs() < 1e-15);
        assert_eq!(Schedule::released(3.0).at(7000), 3.0);
    }

    #[test]
    fn what_is_not_finite_counts_as_zero_and_is_counted() {
        let (mut o, w) = optimizer(AdamW { decay: 0.0, ..AdamW::released(Schedule::constant(0.1)) }, true);
        let g = Weights::from([("a".into(), Tensor::from_f64(DType::F64, &[2, 1], &[f64::NAN, 3.0]).unwrap()), ("b".into(), Tensor::from_f64(DType::F64, &[1], &[f64::INFINITY]).unwrap())]);
        let u = o.update(&g, 0.0).unwrap();
        assert_eq!((u.nonfinite, u.norm, u.rate), (2, 3.0, 0.1));
        let after = o.weights();
        // The first step of Adam has length η; a gradient of 0 moves nothing.
        assert_eq!(after["b"], w["b"]);
        assert!((after["a"].to_f64()[0] - 1.0).abs() < 1e-15 && (after["a"].to_f64()[1] + 2.1).abs() < 1e-8);
        assert_eq!(o.average(), after);
        assert!(!o.state.contains_key("first"));
    }

    #[test]
    fn a_state_comes_back_or_says_what_is_wrong() {
        let (mut o, g) = optimizer(AdamW { beta1: 0.9, ..AdamW::released(Schedule::constant(0.1)) }, true);
        o.update(&g, 0.5).unwrap();
        let (mut saved, mut used) = (BTreeMap::new(), vec![]);
        o.save("student", &mut saved);
        let (mut other, _) = optimizer(o.settings, true);
        let loaded = other.load("student", &saved, &mut used).unwrap();
        other.restore(loaded);
        assert_eq!(used.len(), saved.len());
        o.update(&g, 0.7).unwrap();
        other.update(&g, 0.7).unwrap();
        assert_eq!((other.steps, &other.state), (o.steps, &o.state));
        saved.remove("student.second.a");
        assert!(other.load("student", &saved, &mut used).err().unwrap().message.contains("student.second.a"));
    }
}
