//! One case: tensors drawn from a seed, and how far the derivative and the machines are off on them. A JVP is compared with differences, a VJP
//! with the JVP: ⟨J·t, c⟩ = ⟨t, Jᵀ·c⟩.

use crate::input::Random;
use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::reference::evaluate;
use ir::tensor::{Tensor, relative_error};
use ir::types::DType;
use passes::ad::Transform;
use runtime::cache::Cache;
use runtime::cpu::Pool;

/// What tensors hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Values {
    /// Random numbers.
    Drawn,
    /// The same, inputs to two decimals, tangents to one.
    Rounded,
    /// Inputs run through few distinct numbers (no ties, where max has no derivative), tangents are 1.
    Steps,
}

impl Values {
    /// By its name; `drawn` for any other.
    pub fn parse(s: &str) -> Values {
        [Values::Rounded, Values::Steps].into_iter().find(|v| v.name() == s).unwrap_or(Values::Drawn)
    }
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Values::Drawn => "drawn",
            Values::Rounded => "rounded",
            Values::Steps => "steps",
        }
    }
}

/// Which derivative is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Tangents.
    Jvp,
    /// Cotangents.
    Vjp,
}

impl Mode {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Jvp => "jvp",
            Mode::Vjp => "vjp",
        }
    }
    /// In messages.
    fn title(self) -> &'static str {
        match self {
            Mode::Jvp => "JVP",
            Mode::Vjp => "VJP",
        }
    }
}

/// Everything that makes a case: the same case is the same tensors.
#[derive(Clone, Debug)]
pub struct Case {
    /// Which derivative.
    pub mode: Mode,
    /// Parameters to differentiate along.
    pub wrt: Vec<Name>,
    /// Where the random numbers start.
    pub seed: u64,
    /// Sizes that are fixed; others are drawn.
    pub given: Bindings,
    /// What tensors hold.
    pub values: Values,
    /// Machines: positions in [`MACHINES`].
    pub machines: Vec<usize>,
}

/// What may be wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The JVP is not the limit of difference quotients, or the VJP not its transpose.
    Difference,
    /// The error of the difference quotient does not shrink with the square of the step.
    Order,
    /// The JVP is not linear in the tangent.
    Linearity,
    /// A machine differs from the reference: its position in [`MACHINES`].
    Machine(usize),
}

const DIFFERENCE: f64 = 1e-6;
const LAW: f64 = 1e-10;
const ORDER: f64 = 1.7;
/// Below this error a difference quotient that crosses a kink says nothing about its order.
const SURE: f64 = 1e-8;
const LINEARITY: f64 = 1e-10;
/// Machines, the element type they get, and the bound on their error.
pub const MACHINES: [(&str, DType, f64); 4] = [("interp", DType::F64, 1e-10), ("cpu", DType::F32, 2e-5), ("sim", DType::F32, 2e-5), ("cuda", DType::F32, 2e-5)];
/// A machine may be off by as many times what the arithmetic of its type loses on the very case, where sums cancel.
const LOSS: f64 = 4.0;

/// How far a machine is off.
#[derive(Clone, Copy, Debug)]
pub struct Off {
    /// Relative to the reference.
    pub error: f64,
    /// What it may be: that of [`MACHINES`], or more where the tile interpreter, which rounds after every operation, loses more.
    pub bound: f64,
}

/// The bounds, as a sentence.
pub fn bounds(mode: Mode, machines: &[usize]) -> String {
    let machines: Vec<String> = machines.iter().map(|i| &MACHINES[*i]).map(|(m, d, b)| format!("{m} in {d}{} {b:.0e}", if *d == DType::F64 { "" } else { " against the reference on the rounded inputs" })).collect();
    let derivative = match mode {
        Mode::Jvp => format!("difference {DIFFERENCE:.0e}, order {ORDER}"),
        Mode::Vjp => format!("dot products {LAW:.0e}"),
    };
    format!("bounds: {derivative}, linearity {LINEARITY:.0e}, {}\n(where sums cancel so that f32 arithmetic itself loses more: {LOSS} times that loss)", machines.join(", "))
}

/// One case's figures.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Which derivative.
    pub mode: Mode,
    /// `|jvp − difference| / |difference|` at the better of two steps; of a VJP `|⟨J·t, c⟩ − ⟨t, Jᵀ·c⟩|` relative to the norms of the factors.
    pub difference: f64,
    /// log₂ of the error's ratio between steps h and h/2; 2 for a central difference that is not yet at rounding.
    pub order: Option<f64>,
    /// `|jvp(t + 2u) − jvp(t) − 2·jvp(u)| / |jvp(t + 2u)|`; of a VJP in its cotangents.
    pub linearity: f64,
    /// Per machine the error of the derivative against the reference, or why there is none.
    pub machines: Vec<(usize, Result<Off, String>)>,
    /// The sizes that were taken.
    pub sizes: Bindings,
    /// Inputs and both answers, where they are few numbers.
    pub witness: Vec<String>,
}

impl Figures {
    /// What is out of bounds.
    pub fn faults(&self) -> Vec<Fault> {
        // NaN is in no bound.
        let out = |x: f64, bound: f64| x.is_nan() || x >= bound;
        let mut faults = vec![];
        if out(self.difference, if self.mode == Mode::Jvp { DIFFERENCE } else { LAW }) {
            faults.push(Fault::Difference);
        } else if self.order.is_some_and(|o| o <= ORDER) && self.difference > SURE {
            faults.push(Fault::Order);
        }
        if out(self.linearity, LINEARITY) {
            faults.push(Fault::Linearity);
        }
        for (i, o) in &self.machines {
            if o.as_ref().is_ok_and(|o| out(o.error, o.bound)) {
                faults.push(Fault::Machine(*i));
            }
        }
        faults
    }
    /// A fault in words.
    pub fn sentence(&self, fault: Fault) -> String {
        match fault {
            Fault::Difference if self.mode == Mode::Vjp => format!("the VJP misses the dot-product law by {:.2e} (bound {LAW:.0e})", self.difference),
            Fault::Difference => format!("the JVP differs from the difference quotient by {:.2e} (bound {DIFFERENCE:.0e})", self.difference),
            Fault::Order => format!("the difference quotient converges with order {:.2} (bound {ORDER})", self.order.unwrap_or(0.0)),
            Fault::Linearity => format!("the {} misses linearity by {:.2e} (bound {LINEARITY:.0e})", self.mode.title(), self.linearity),
            Fault::Machine(i) => {
                let (name, dtype, bound) = MACHINES[i];
                let off = self.machines.iter().find(|m| m.0 == i).and_then(|m| m.1.as_ref().ok().copied()).unwrap_or(Off { error: f64::NAN, bound });
                format!("{name} in {dtype} differs from the reference by {:.2e} (bound {:.0e})", off.error, off.bound)
            }
        }
    }
}

fn norm(v: &[f64]) -> f64 {
    v.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// `|a − b|` relative to `|b|`, or to `floor` where that is more.
fn apart(a: &[f64], b: &[f64], floor: f64) -> f64 {
    let d: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let scale = norm(b).max(floor);
    norm(&d) / if scale > 0.0 { scale } else { 1.0 }
}

/// Sizes for `f`: the given ones, others from 1 to 7, such that every axis has a whole size.
fn sizes(f: &Function, given: &Bindings, random: &mut Random) -> Bindings {
    let mut sizes = given.clone();
    for d in crate::input::dim_names(f) {
        let n = 1 + (random.uniform() * 7.0) as i64;
        sizes.entry(d).or_insert(n);
    }
    // A size that must divide another: take one for the divisor.
    for v in &f.vars {
        for a in &v.ty.axes {
            if a.size.eval(&sizes).is_err() {
                for s in a.size.symbols().into_iter().filter(|s| !given.contains_key(s)) {
                    sizes.insert(s, 4);
                }
            }
        }
    }
    sizes
}

/// The tensors of a case: inputs, and two tangents per parameter.
fn draw(f: &Function, case: &Case, sizes: &Bindings, random: &mut Random) -> Result<[Vec<Tensor>; 3], String> {
    let mut values = |tangent: bool| -> Result<Vec<Tensor>, String> {
        let one = |(k, p): (usize, &ir::graph::Port)| -> Result<Tensor, String> {
            let ty = f.ty(p.var);
            let t = if tangent { random.tensor(ty.dtype, &ty.sizes(sizes).map_err(|e| e.to_string())?)? } else { random.draw(f, p.var, sizes)? };
            if case.values == Values::Drawn || !ty.dtype.is_float() {
                return Ok(t);
            }
            let x = t.to_f64();
            let (lo, hi) = if let crate::input::Domain::Interval(lo, hi) = crate::input::domain(f, p.var) { (lo, hi) } else { (-1.0, 1.0) };
            let simple: Vec<f64> = x
                .iter()
                .enumerate()
                .map(|(i, x)| match (case.values, tangent) {
                    (Values::Steps, true) => 1.0,
                    // The fractions of multiples of the golden ratio lie evenly and never twice at one place.
                    (Values::Steps, false) => ((lo + (hi - lo) * ((i + 3 * k + 1) as f64 * 0.618_033_988_75).fract()) * 100.0).round() / 100.0,
                    (_, true) => (x * 10.0).round() / 10.0,
                    (_, false) => (x * 100.0).round() / 100.0,
                })
                .collect();
            Tensor::from_f64(DType::F64, t.shape(), &simple).map_err(|e| e.to_string())
        };
        f.params.iter().enumerate().map(one).collect()
    };
    Ok([values(false)?, values(true)?, values(true)?])
}

/// Measures a case; machines only if `machines`.
///
/// # Errors
/// A program that has no derivative or no value there.
pub fn measure(f: &Function, case: &Case, machines: bool) -> Result<Figures, String> {
    match case.mode {
        Mode::Jvp => measure_jvp(f, case, machines),
        Mode::Vjp => measure_vjp(f, case, machines),
    }
}

fn measure_jvp(f: &Function, case: &Case, machines: bool) -> Result<Figures, String> {
    let g = passes::ad::jvp(f, &case.wrt).map_err(|e| e.to_string())?;
    crate::input::verify(&g, "jvp")?;
    let mut random = Random(case.seed.wrapping_mul(0x1000_0001));
    let sizes = sizes(f, &case.given, &mut random);
    let [x, t, u] = draw(f, case, &sizes, &mut random)?;
    let place = |n: &Name| f.params.iter().position(|p| p.name == *n);
    let along = |t: &[Tensor]| -> Vec<Tensor> {
        let tangents = case.wrt.iter().filter_map(place).map(|i| t[i].clone());
        x.iter().cloned().chain(tangents).collect()
    };
    let tangents = |t: &[Tensor]| -> Result<Vec<f64>, String> {
        let out = evaluate(&g, &along(t), &sizes).map_err(|e| e.to_string())?;
        Ok(out.iter().skip(f.results.len()).flat_map(Tensor::to_f64).collect())
    };
    let active: Vec<usize> = (0..f.results.len()).filter(|i| g.results.iter().any(|r| *r.name == format!("{}.t", f.results[*i].name))).collect();
    let step = |h: f64| -> Result<Vec<f64>, String> {
        let side = |h: f64| -> Result<Vec<f64>, String> {
            let mut y = x.clone();
            for i in case.wrt.iter().filter_map(place) {
                let moved: Vec<f64> = x[i].to_f64().iter().zip(t[i].to_f64()).map(|(x, t)| x + h * t).collect();
                y[i] = Tensor::from_f64(DType::F64, x[i].shape(), &moved).map_err(|e| e.to_string())?;
            }
            let out = evaluate(f, &y, &sizes).map_err(|e| e.to_string())?;
            Ok(active.iter().flat_map(|i| out[*i].to_f64()).collect())
        };
        Ok(side(h)?.iter().zip(side(-h)?).map(|(a, b)| if a == &b { 0.0 } else { (a - b) / (2.0 * h) }).collect())
    };
    let jt = tangents(&t)?;
    let near = step(1e-5)?;
    // A derivative that is nothing but what is left of sums that cancel has no correct digits, on any machine.
    let moved: f64 = case.wrt.iter().filter_map(place).map(|i| norm(&t[i].to_f64())).sum();
    let floor = 1e-4 * moved;
    let (coarse, mid, fine) = (apart(&jt, &step(1e-3)?, floor), apart(&jt, &step(5e-4)?, floor), apart(&jt, &near, floor));
    let order = (mid > 1e-11).then(|| (coarse / mid).log2());
    let sum: Vec<Tensor> = t
        .iter()
        .zip(&u)
        .map(|(t, u)| {
            let v: Vec<f64> = t.to_f64().iter().zip(u.to_f64()).map(|(t, u)| t + 2.0 * u).collect();
            Tensor::from_f64(DType::F64, t.shape(), &v).map_err(|e| e.to_string())
        })
        .collect::<Result<_, _>>()?;
    let parts: Vec<f64> = jt.iter().zip(tangents(&u)?).map(|(a, b)| a + 2.0 * b).collect();
    let linearity = apart(&tangents(&sum)?, &parts, floor);
    let mut errors = vec![];
    if machines {
        for i in &case.machines {
            errors.push((*i, against(&g, *i, &along(&t), &sizes)?));
        }
    }
    let answers = format!("tangents of results: {} by the JVP, {} by differences", list(&jt), list(&near));
    let witness = witness(f, case, &x, &t, jt.len(), answers);
    Ok(Figures { mode: Mode::Jvp, difference: if fine.is_nan() || mid.is_nan() { f64::NAN } else { fine.min(mid) }, order, linearity, machines: errors, sizes, witness })
}

/// The dot-product law on the reference, linearity in the cotangents, and the machines on the program of the VJP.
fn measure_vjp(f: &Function, case: &Case, machines: bool) -> Result<Figures, String> {
    let g = Transform::Vjp(case.wrt.clone()).apply(f)?;
    let forward = Transform::Jvp(case.wrt.clone()).apply(f)?;
    let mut random = Random(case.seed.wrapping_mul(0x1000_0001));
    let sizes = sizes(f, &case.given, &mut random);
    let [x, t, _] = draw(f, case, &sizes, &mut random)?;
    // Behind `f`'s own parameters stand the cotangents of its results.
    let cotangents = &g.params[f.params.len()..];
    let mut drawn = || -> Result<Vec<Tensor>, String> {
        let one = |p: &ir::graph::Port| -> Result<Tensor, String> {
            let shape = g.ty(p.var).sizes(&sizes).map_err(|e| e.to_string())?;
            match case.values {
                Values::Steps => Tensor::from_f64(DType::F64, &shape, &vec![1.0; shape.iter().product()]).map_err(|e| e.to_string()),
                Values::Drawn => random.tensor(DType::F64, &shape),
                Values::Rounded => {
                    let tenths: Vec<f64> = random.tensor(DType::F64, &shape)?.to_f64().iter().map(|x| (x * 10.0).round() / 10.0).collect();
                    Tensor::from_f64(DType::F64, &shape, &tenths).map_err(|e| e.to_string())
                }
            }
        };
        cotangents.iter().map(one).collect()
    };
    let (c, d) = (drawn()?, drawn()?);
    let both = |c: &[Tensor]| -> Vec<Tensor> { x.iter().chain(c).cloned().collect() };
    let gradients = |c: &[Tensor]| -> Result<Vec<f64>, String> {
        let out = evaluate(&g, &both(c), &sizes).map_err(|e| e.to_string())?;
        Ok(out.iter().skip(f.results.len()).flat_map(Tensor::to_f64).collect())
    };
    let along: Vec<Tensor> = case.wrt.iter().filter_map(|n| f.params.iter().position(|p| p.name == *n)).map(|i| t[i].clone()).collect();
    let out = evaluate(&forward, &x.iter().chain(&along).cloned().collect::<Vec<_>>(), &sizes).map_err(|e| e.to_string())?;
    // Both have one for every result that depends on the parameters, in the order of results; names count directions.
    let (pushed, shapes): (Vec<&Tensor>, Vec<&[usize]>) = out.iter().skip(f.results.len()).map(|t| (t, t.shape())).unzip();
    if !shapes.iter().copied().eq(c.iter().map(Tensor::shape)) || g.results.len() != f.results.len() + case.wrt.len() {
        return Err(format!("the JVP has tangents of shapes {shapes:?}, the VJP cotangents {:?} and {} gradients", c.iter().map(Tensor::shape).collect::<Vec<_>>(), g.results.len() - f.results.len()));
    }
    let pushed: Vec<f64> = pushed.into_iter().flat_map(Tensor::to_f64).collect();
    let flat = |v: &[Tensor]| v.iter().flat_map(Tensor::to_f64).collect::<Vec<f64>>();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (c_flat, t_flat, pulled) = (flat(&c), flat(&along), gradients(&c)?);
    let scale = (norm(&pushed) * norm(&c_flat)).max(norm(&t_flat) * norm(&pulled));
    let gap = (dot(&pushed, &c_flat) - dot(&t_flat, &pulled)).abs();
    // Where nothing but what is left of sums that cancel is pushed, there are no digits to compare.
    let difference = gap / if scale > 0.0 { scale.max(1e-4 * norm(&t_flat) * norm(&c_flat)) } else { 1.0 };
    let sum: Vec<Tensor> = c
        .iter()
        .zip(&d)
        .map(|(c, d)| {
            let v: Vec<f64> = c.to_f64().iter().zip(d.to_f64()).map(|(c, d)| c + 2.0 * d).collect();
            Tensor::from_f64(DType::F64, c.shape(), &v).map_err(|e| e.to_string())
        })
        .collect::<Result<_, _>>()?;
    let parts: Vec<f64> = pulled.iter().zip(gradients(&d)?).map(|(a, b)| a + 2.0 * b).collect();
    let linearity = apart(&gradients(&sum)?, &parts, 1e-4 * norm(&c_flat));
    let mut errors = vec![];
    if machines {
        for i in &case.machines {
            errors.push((*i, against(&g, *i, &both(&c), &sizes)?));
        }
    }
    let of: Vec<String> = cotangents.iter().zip(&c).map(|(p, c)| format!("{} = {}", p.name, list(&c.to_f64()))).collect();
    let answers = format!("{}\ntangents of results: {}; gradients: {}: {} and {} should be equal", of.join("  "), list(&pushed), list(&pulled), dot(&pushed, &c_flat), dot(&t_flat, &pulled));
    let mut witness = witness(f, case, &x, &t, pushed.len(), answers);
    witness = witness.iter().flat_map(|w| w.lines().map(String::from)).collect();
    Ok(Figures { mode: Mode::Vjp, difference, order: None, linearity, machines: errors, sizes, witness })
}

/// How far a machine is off on inputs rounded to its type, or why it refuses the program.
///
/// # Errors
/// A bug: the verifier refused a pass's result, or the reference has no value.
fn against(g: &Function, machine: usize, inputs: &[Tensor], sizes: &Bindings) -> Result<Result<Off, String>, String> {
    let (name, dtype, bound) = MACHINES[machine];
    let rounded: Vec<Tensor> = inputs.iter().map(|t| if t.dtype().is_float() { t.convert(dtype).convert(DType::F64) } else { t.clone() }).collect();
    let want = evaluate(g, &rounded, sizes).map_err(|e| e.to_string())?;
    let worst = |got: Vec<Tensor>| got.iter().zip(&want).map(|(g, w)| error(g, w)).fold(0.0, |a: f64, e| if e.is_nan() { e } else { a.max(e) });
    let interp = || crate::machine::interp(g, &rounded, sizes, dtype);
    let got = match name {
        "cpu" => crate::machine::cpu(g, sizes, dtype, &Cache::new(None)).and_then(|c| crate::machine::run_cpu(&c, &Pool::new(1), &rounded, sizes)),
        "sim" => crate::machine::sim(g, &rounded, sizes, dtype, "sm_90a"),
        #[cfg(feature = "cuda")]
        "cuda" => crate::machine::cuda(g, &rounded, sizes, dtype, false, Default::default()).map(|r| r.0),
        _ => interp(),
    };
    match got.map(worst) {
        Ok(error) if name != "interp" && error >= bound => Ok(Ok(Off { error, bound: bound.max(LOSS * interp().map(worst)?) })),
        Ok(error) => Ok(Ok(Off { error, bound })),
        Err(why) if why.starts_with(crate::input::VERIFIER) => Err(why),
        Err(why) => Ok(Err(why)),
    }
}

/// Relative; absolute where the answer is nothing but what is left of sums that cancel.
fn error(got: &Tensor, want: &Tensor) -> f64 {
    let e = relative_error(got, want);
    let w = norm(&want.to_f64().into_iter().filter(|x| x.is_finite()).collect::<Vec<_>>());
    if e.is_finite() && w > 0.0 && w < 1e-9 { e * w } else { e }
}

fn list(v: &[f64]) -> String {
    format!("[{}]", v.iter().map(|x| format!("{}", (x * 1e6).round() / 1e6)).collect::<Vec<_>>().join(", "))
}

/// Inputs, tangents and both answers in short, if there are few.
fn witness(f: &Function, case: &Case, x: &[Tensor], t: &[Tensor], numbers: usize, answers: String) -> Vec<String> {
    const FEW: usize = 6;
    if x.iter().any(|t| t.len() > FEW) || numbers > FEW {
        return vec![];
    }
    let mut lines = vec![];
    for (i, p) in f.params.iter().enumerate() {
        let tangent = if case.wrt.contains(&p.name) { format!("  {}.t = {}", p.name, list(&t[i].to_f64())) } else { String::new() };
        lines.push(format!("{} = {}{tangent}", p.name, list(&x[i].to_f64())));
    }
    lines.push(answers);
    lines
}
