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
//! The update is one generated program over all weights laid end to end, elementwise but for what is said of the gradient. NaN and infinite elements of a gradient count as 0, as in
//! rCM's trainer, and are counted; nothing is clipped. On a device weights, averages and moments stay in its memory, f32 whatever the network reads, and the network reads what a step
//! wrote: only numbers cross to the host.

use crate::method::{Gradients, Weights};
#[cfg(feature = "jit")]
use crate::program::flat::Flat;
#[cfg(feature = "jit")]
use crate::program::gpu::Device;
use crate::program::{Options, Program};
use ir::builder::Builder;
use ir::diagnostic::Error;
use ir::dim::{Bindings, Dim, Name};
use ir::graph::{Function, Var};
use ir::prim::Elementwise;
use ir::tensor::{Tensor, TensorData};
use ir::types::{Axis, DType, Type};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Elements of a row of weights laid end to end.
#[cfg(feature = "jit")]
use crate::program::flat::ROW;
#[cfg(not(feature = "jit"))]
const ROW: usize = 1024;

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
    fn check(&self) -> Result<(), Error> {
        let AdamW { beta1, beta2, epsilon, decay, schedule } = *self;
        if (0.0..1.0).contains(&beta1) && (0.0..1.0).contains(&beta2) && epsilon > 0.0 && decay >= 0.0 && schedule.rate >= 0.0 {
            return Ok(());
        }
        Err(Error::new(format!("adamw: β₁ = {beta1}, β₂ = {beta2}, ε = {epsilon}, λ = {decay}, rate {}", schedule.rate)).hint("betas are in 0..1, ε is above 0, decay and rate are not negative"))
    }
    /// The update as a function of `R` rows of weights laid end to end, with the weights rounded to `narrow` beside them where that is asked for.
    fn function(&self, average: bool, narrow: Option<DType>) -> Result<Function, Error> {
        let table = Type::new(DType::F32, vec![Axis::sym("R"), Axis::new("C", Dim::fixed(ROW as i64))]);
        let mut b = Builder::new("adamw");
        let (w, g, second) = (b.param("w", table.clone()), b.param("g", table.clone()), b.param("second", table.clone()));
        let first = (self.beta1 != 0.0).then(|| b.param("first", table.clone()));
        let mean = average.then(|| b.param("average", table));
        let scalar = |b: &mut Builder, name: &str| b.param(name, Type::scalar(DType::F32));
        let (keep, step, root) = (scalar(&mut b, "keep"), scalar(&mut b, "step"), scalar(&mut b, "root"));
        let number = |b: &mut Builder, x: f64| b.constant(x, DType::F32);
        // Neither NaN nor an infinity is at most the largest number.
        let (size, most) = (b.elementwise(Elementwise::Abs, &[g])?, number(&mut b, f64::from(f32::MAX)));
        let finite = b.elementwise(Elementwise::Le, &[size, most])?;
        let (zero, one) = (number(&mut b, 0.0), number(&mut b, 1.0));
        let g = b.elementwise(Elementwise::Select, &[finite, g, zero])?;
        let bad = b.elementwise(Elementwise::Select, &[finite, zero, one])?;
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
        if let Some(d) = narrow {
            let n = b.elementwise(Elementwise::Convert(d), &[w])?;
            b.result("narrow.next", n);
        }
        let squares = b.reduce_sum(square, &["C".into()])?;
        b.result("squares", squares);
        let bad = b.reduce_sum(bad, &["C".into()])?;
        b.result("bad", bad);
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

/// An optimizer with its weights, laid end to end by the order of their names: on the host, or in a device's memory, where its network's programs read them.
pub struct Optimizer {
    settings: AdamW,
    dtype: DType,
    layout: Vec<(Name, Vec<usize>)>,
    kept: Kept,
    parts: Vec<&'static str>,
    steps: u64,
    launches: u64,
    spent: Duration,
}

/// What is kept: `w`, `second`, `first` where β₁ is not 0, `average` where one is kept.
enum Kept {
    Host {
        program: Box<Program>,
        state: BTreeMap<&'static str, Tensor>,
    },
    #[cfg(feature = "jit")]
    Device {
        state: BTreeMap<&'static str, Flat>,
        /// What the network reads: rounded weights, or `w` itself.
        read: Flat,
        /// A program for each group of weights.
        programs: BTreeMap<DType, Program>,
    },
}

/// What there is of each weight.
fn parts(settings: &AdamW, average: bool) -> Vec<&'static str> {
    [("average", average), ("first", settings.beta1 != 0.0), ("second", true), ("w", true)].into_iter().filter(|p| p.1).map(|p| p.0).collect()
}

impl Optimizer {
    /// An optimizer of `weights`, which may keep an average of them, on the host.
    ///
    /// # Errors
    /// Settings that are no AdamW, and a program that cannot be made.
    pub fn new(settings: AdamW, weights: &Weights, average: bool, options: &Options) -> Result<Optimizer, Error> {
        settings.check()?;
        let dtype = options.exchanged();
        let layout: Vec<(Name, Vec<usize>)> = weights.iter().map(|(n, t)| (n.clone(), t.shape().to_vec())).collect();
        let rows = rows(&layout);
        let options = Options { dtype, ..options.clone() };
        let program = Program::new(&settings.function(average, None)?, &[], &Bindings::from([("R".into(), rows as i64)]), &options).map_err(|e| Error::new(format!("adamw: {e}")))?;
        let parts = parts(&settings, average);
        let w = join(weights, &layout, dtype)?;
        let state = parts.iter().map(|p| Ok((*p, if matches!(*p, "w" | "average") { w.clone() } else { Tensor::zeros(dtype, &[rows, ROW])? }))).collect::<Result<_, Error>>()?;
        Ok(Optimizer { settings, dtype, layout, kept: Kept::Host { program: Box::new(program), state }, parts, steps: 0, launches: 0, spent: Duration::ZERO })
    }
    /// An optimizer of `weights` in the memory of the device whose programs read them at `read`, which every step writes.
    ///
    /// # Errors
    /// As [`Optimizer::new`]; too little memory.
    #[cfg(feature = "jit")]
    pub fn on_device(settings: AdamW, weights: &Weights, average: bool, options: &Options, device: &Device, read: &Flat) -> Result<Optimizer, Error> {
        settings.check()?;
        let parts = parts(&settings, average);
        let bad = |e: String| Error::new(format!("adamw: {e}"));
        let mut state: BTreeMap<&'static str, Flat> = BTreeMap::new();
        for p in &parts {
            // What the network reads in f32 is the weight itself.
            let flat = if *p == "w" { Flat::over(device, read, DType::F32) } else { Flat::zeros(device, read.layout(), |_| DType::F32) };
            state.insert(*p, flat.map_err(bad)?);
        }
        let mut programs = BTreeMap::new();
        for (group, rows) in read.layout().groups() {
            let narrow = (group != DType::F32).then_some(group);
            let stored = narrow.map(|d| ("narrow.next".into(), d)).into_iter().collect();
            let options = Options { dtype: DType::F32, stored, ..options.clone() };
            let mut p = Program::new(&settings.function(average, narrow)?, &[], &Bindings::from([("R".into(), rows as i64)]), &options).map_err(bad)?;
            for (part, flat) in &state {
                let (place, next) = (flat.group(group).map_err(bad)?, format!("{part}.next"));
                if !p.may_replace(part, &next) {
                    return Err(Error::new(format!("adamw: `{part}` is read after `{next}` is written, and cannot be updated where it is")));
                }
                p.bind_param(part, &place).map_err(bad)?;
                p.bind_result(&next, &place).map_err(bad)?;
            }
            if narrow.is_some() {
                p.bind_result("narrow.next", &read.group(group).map_err(bad)?).map_err(bad)?;
            }
            programs.insert(group, p);
        }
        let layout: Vec<(Name, Vec<usize>)> = weights.iter().map(|(n, t)| (n.clone(), t.shape().to_vec())).collect();
        let o = Optimizer { settings, dtype: DType::F32, layout, kept: Kept::Device { state, read: read.clone(), programs }, parts, steps: 0, launches: 0, spent: Duration::ZERO };
        // What the network reads is there already.
        o.put("w", weights, false)?;
        if let Kept::Device { state, .. } = &o.kept
            && let (Some(w), Some(a)) = (state.get("w"), state.get("average"))
        {
            a.copy(w).map_err(bad)?;
        }
        Ok(o)
    }
    /// Writes a part to the device; with `all`, of the weights also what the network reads.
    #[cfg(feature = "jit")]
    fn put(&self, part: &'static str, values: &Weights, all: bool) -> Result<(), Error> {
        let Kept::Device { state, read, .. } = &self.kept else { return Ok(()) };
        for (name, _) in &self.layout {
            let t = values.get(name).ok_or_else(|| Error::new(format!("adamw: no tensor `{name}`")))?;
            let put = |f: &Flat| f.write(name, t).map_err(|e| Error::new(format!("adamw: {e}")));
            state.get(part).map_or(Ok(()), put)?;
            if part == "w" && all {
                put(read)?;
            }
        }
        Ok(())
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
        match &self.kept {
            Kept::Host { program, .. } => program.in_launches(),
            #[cfg(feature = "jit")]
            Kept::Device { .. } => Duration::ZERO,
        }
    }
    /// Time in its program so far.
    pub fn spent(&self) -> Duration {
        self.spent
    }
    /// Bytes that it keeps in a device's memory beside what its network reads.
    pub fn device_bytes(&self) -> usize {
        match &self.kept {
            Kept::Host { .. } => 0,
            #[cfg(feature = "jit")]
            Kept::Device { state, read, .. } => {
                let shared: usize = read.layout().groups().filter(|(g, _)| *g == DType::F32).map(|(_, rows)| rows * ROW * 4).sum();
                state.values().map(Flat::bytes).sum::<usize>() - shared
            }
        }
    }
    /// The weights as they are now.
    ///
    /// # Errors
    /// The device's.
    pub fn weights(&self) -> Result<Weights, Error> {
        self.split("w")
    }
    /// The average of the weights; the weights themselves where none is kept.
    ///
    /// # Errors
    /// The device's.
    pub fn average(&self) -> Result<Weights, Error> {
        self.split(if self.parts.contains(&"average") { "average" } else { "w" })
    }
    fn split(&self, part: &str) -> Result<Weights, Error> {
        match &self.kept {
            Kept::Host { state, .. } => split(&state[part], &self.layout),
            #[cfg(feature = "jit")]
            Kept::Device { state, .. } => state[part].all().map_err(|e| Error::new(format!("adamw: {e}"))),
        }
    }
    /// One step along `gradient`, of which NaN and infinite elements count as 0. `beta` is the average's.
    ///
    /// # Errors
    /// A gradient that is missing, has another shape or lies on another machine, and a program that fails; on the host the state is then as it was.
    pub fn update(&mut self, gradient: &Gradients, beta: f64) -> Result<Update, Error> {
        let AdamW { beta1, beta2, decay, schedule, .. } = self.settings;
        let (rate, t) = (schedule.at(self.steps), (self.steps + 1) as f64);
        let scalar = |x: f64| Tensor::from_f64(self.dtype, &[], &[x]);
        let mut numbers = vec![("keep", scalar(1.0 - rate * decay)?), ("step", scalar(rate / (1.0 - beta1.powf(t)))?), ("root", scalar((1.0 - beta2.powf(t)).sqrt().recip())?)];
        if self.parts.contains(&"average") {
            numbers.push(("share", scalar(1.0 - beta)?));
        }
        let bad = |e: String| Error::new(format!("adamw: {e}"));
        let (mut squares, mut nonfinite) = (0.0, 0.0);
        let mut said = |out: &BTreeMap<Name, Tensor>| -> Result<(), Error> {
            let sum = |n: &str| out.get(n).map(|t| t.to_f64().iter().sum::<f64>()).ok_or_else(|| Error::new(format!("adamw: the program has no `{n}`")));
            (squares, nonfinite) = (squares + sum("squares")?, nonfinite + sum("bad")?);
            Ok(())
        };
        let start = Instant::now();
        match &mut self.kept {
            Kept::Host { program, state } => {
                let flat = join(&*gradient.host()?, &self.layout, self.dtype)?;
                let mut inputs: Vec<(&str, &Tensor)> = vec![("g", &flat)];
                inputs.extend(numbers.iter().map(|(n, t)| (*n, t)));
                inputs.extend(state.iter().map(|(n, t)| (*n, t)));
                let mut out = program.run(&inputs).map_err(bad)?;
                said(&out)?;
                let mut next = BTreeMap::new();
                for part in &self.parts {
                    next.insert(*part, out.remove(&*format!("{part}.next")).ok_or_else(|| Error::new(format!("adamw: the program has no `{part}.next`")))?);
                }
                *state = next;
                self.launches += program.launches() as u64;
            }
            #[cfg(feature = "jit")]
            Kept::Device { programs, .. } => {
                let flat = gradient.device()?;
                let inputs: Vec<(&str, &Tensor)> = numbers.iter().map(|(n, t)| (*n, t)).collect();
                for (group, p) in programs.iter_mut() {
                    p.bind_param("g", &flat.group(*group).map_err(bad)?).map_err(bad)?;
                    let out = p.run(&inputs);
                    // Gradients go when their owner lets go of them.
                    p.unbind(&["g"]);
                    said(&out.map_err(bad)?)?;
                    self.launches += p.launches() as u64;
                }
            }
        }
        self.spent += start.elapsed();
        self.steps += 1;
        Ok(Update { norm: squares.sqrt(), nonfinite: nonfinite as u64, rate })
    }
    /// Everything that the next step depends on, by `PREFIX.PART.WEIGHT` and `PREFIX.steps`.
    ///
    /// # Errors
    /// The device's.
    pub fn save(&self, prefix: &str, into: &mut BTreeMap<String, Tensor>) -> Result<(), Error> {
        for part in &self.parts {
            for (name, t) in self.split(part)? {
                into.insert(key(prefix, part, &name), t);
            }
        }
        into.insert(format!("{prefix}.steps"), Tensor::from_f64(DType::F64, &[], &[self.steps as f64])?);
        Ok(())
    }
    /// What [`Optimizer::save`] wrote, to be put in place by [`Optimizer::restore`]; the names that were used are added to `used`.
    ///
    /// # Errors
    /// A tensor that is missing or of another shape or type.
    pub fn load(&self, prefix: &str, from: &BTreeMap<String, Tensor>, used: &mut Vec<String>) -> Result<Loaded, Error> {
        let mut state = BTreeMap::new();
        for part in &self.parts {
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
            state.insert(*part, weights);
        }
        let k = format!("{prefix}.steps");
        let steps = from.get(&k).map(Tensor::to_f64).and_then(|v| v.first().copied()).filter(|s| *s >= 0.0 && s.fract() == 0.0).ok_or_else(|| Error::new(format!("state: `{k}` is no number of steps")))?;
        used.push(k);
        Ok(Loaded { state, steps: steps as u64 })
    }
    /// Puts a loaded state in place.
    ///
    /// # Errors
    /// The device's.
    pub fn restore(&mut self, loaded: Loaded) -> Result<(), Error> {
        for (part, weights) in &loaded.state {
            match &mut self.kept {
                Kept::Host { state, .. } => _ = state.insert(part, join(weights, &self.layout, self.dtype)?),
                #[cfg(feature = "jit")]
                Kept::Device { .. } => self.put(part, weights, true)?,
            }
        }
        self.steps = loaded.steps;
        Ok(())
    }
}

/// A state that was read and checked, and is not in place yet.
pub struct Loaded {
    state: BTreeMap<&'static str, Weights>,
    steps: u64,
}

fn key(prefix: &str, part: &str, name: &str) -> String {
    format!("{prefix}.{}.{name}", if part == "w" { "weights" } else { part })
}

/// Rows of [`ROW`] elements that hold all tensors.
fn rows(layout: &[(Name, Vec<usize>)]) -> usize {
    layout.iter().map(|(_, s)| s.iter().product::<usize>()).sum::<usize>().div_ceil(ROW).max(1)
}

/// Tensors laid end to end, `[R, ROW]`, 0 behind the last.
fn join(weights: &Weights, layout: &[(Name, Vec<usize>)], dtype: DType) -> Result<Tensor, Error> {
    let (rows, f32s) = (rows(layout), dtype == DType::F32);
    let mut narrow: Vec<f32> = Vec::with_capacity(if f32s { rows * ROW } else { 0 });
    let mut wide: Vec<f64> = Vec::with_capacity(if f32s { 0 } else { rows * ROW });
    for (name, shape) in layout {
        let t = weights.get(name).ok_or_else(|| Error::new(format!("adamw: no tensor `{name}`")))?;
        if t.shape() != shape {
            return Err(Error::new(format!("adamw: `{name}` has shape {:?}, but the weight {shape:?}", t.shape())));
        }
        match t.data() {
            TensorData::F32(v) if f32s => narrow.extend(v),
            _ if f32s => narrow.extend(t.to_f64().iter().map(|x| *x as f32)),
            _ => wide.extend(t.to_f64()),
        }
    }
    if f32s { narrow.resize(rows * ROW, 0.0) } else { wide.resize(rows * ROW, 0.0) }
    Tensor::new(vec![rows, ROW], if f32s { TensorData::F32(narrow) } else { TensorData::F64(wide) })
}

/// What [`join`] joined.
fn split(flat: &Tensor, layout: &[(Name, Vec<usize>)]) -> Result<Weights, Error> {
    let mut at = 0;
    let mut out = Weights::new();
    for (name, shape) in layout {
        out.insert(name.clone(), flat.part(at, shape)?);
        at += shape.iter().product::<usize>();
    }
    Ok(out)
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
        let u = o.update(&g.into(), 0.0).unwrap();
        assert_eq!((u.nonfinite, u.norm, u.rate), (2, 3.0, 0.1));
        let after = o.weights().unwrap();
        // The first step of Adam has length η; a gradient of 0 moves nothing.
        assert_eq!(after["b"], w["b"]);
        assert!((after["a"].to_f64()[0] - 1.0).abs() < 1e-15 && (after["a"].to_f64()[1] + 2.1).abs() < 1e-8);
        assert_eq!(o.average().unwrap(), after);
        assert!(!o.parts.contains(&"first"));
    }

    #[test]
    fn a_state_comes_back_or_says_what_is_wrong() {
        let (mut o, w) = optimizer(AdamW { beta1: 0.9, ..AdamW::released(Schedule::constant(0.1)) }, true);
        let g: Gradients = w.into();
        o.update(&g, 0.5).unwrap();
        let (mut saved, mut used) = (BTreeMap::new(), vec![]);
        o.save("student", &mut saved).unwrap();
        let (mut other, _) = optimizer(o.settings, true);
        let loaded = other.load("student", &saved, &mut used).unwrap();
        other.restore(loaded).unwrap();
        assert_eq!(used.len(), saved.len());
        o.update(&g, 0.7).unwrap();
        other.update(&g, 0.7).unwrap();
        let state = |o: &Optimizer| o.parts.iter().map(|p| o.split(p).unwrap()).collect::<Vec<_>>();
        assert_eq!((other.steps, state(&other)), (o.steps, state(&o)));
        saved.remove("student.second.a");
        assert!(other.load("student", &saved, &mut used).err().unwrap().message.contains("student.second.a"));
    }
}
