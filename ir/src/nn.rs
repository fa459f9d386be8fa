//! Compositions: what people call layers, as functions of primitives. No pass knows any of these names; a composition has no
//! rules, only a body.
//!
//! # Note: rows without a visible element
//! A masked score is −∞. A row of nothing but −∞ has maximum `LOWEST`, so every `exp(x − m)` is 0 and so is their sum `l`.
//! Dividing by `select(l > 0, l, 1)` makes such a row 0 with tangent 0, and its log-sum-exp is −∞ by a `select`, whose tangent
//! is that of the branch taken. No NaN arises, in values or in tangents of any order.

use crate::builder::Builder;
use crate::diagnostic::Error;
use crate::dim::{Dim, Name};
use crate::graph::Var;
use crate::prim::{Elementwise, Movement};
use crate::types::{Axis, DType};

type Result<T> = std::result::Result<T, Error>;

/// An argument of a composition, as written in the text form.
#[derive(Clone, PartialEq, Debug)]
pub enum Arg {
    /// A value.
    Value(Var),
    /// One axis.
    Axis(Axis),
    /// Several axes.
    Axes(Vec<Axis>),
    /// A number.
    Number(f64),
}

/// A function of the text form that is not a primitive.
#[derive(Clone, Copy, Debug)]
pub struct Composition {
    /// Its name.
    pub name: &'static str,
    /// How it is called, and what it is.
    pub usage: &'static str,
    /// Builds it.
    pub build: fn(&mut Builder, &[Arg]) -> Result<Var>,
}

/// The composition called `name`.
pub fn lookup(name: &str) -> Option<&'static Composition> {
    ALL.iter().find(|c| c.name == name)
}

macro_rules! compositions {
    ($($name:ident: $usage:literal => |$b:ident, $a:ident| $body:expr;)*) => {
        /// Every composition.
        pub const ALL: &[Composition] = &[$(Composition {
            name: stringify!($name),
            usage: $usage,
            build: |b, args| {
                let ($b, $a) = (b, Args { name: stringify!($name), usage: $usage, args });
                $body
            },
        }),*];
    };
}

compositions! {
    softmax: "softmax(x, axis): exp(x) / sum of exp(x) along axis" =>
        |b, a| { a.count(2..=2)?; softmax(b, a.value(0)?, &a.axis(1)?.name) };
    log_softmax: "log_softmax(x, axis): x - logsumexp(x, axis)" =>
        |b, a| { a.count(2..=2)?; log_softmax(b, a.value(0)?, &a.axis(1)?.name) };
    logsumexp: "logsumexp(x, axis): log of the sum of exp(x) along axis" =>
        |b, a| { a.count(2..=2)?; logsumexp(b, a.value(0)?, &a.axis(1)?.name) };
    mean: "mean(x, axes): the mean over one axis or several" =>
        |b, a| { a.count(2..=usize::MAX)?; mean(b, a.value(0)?, &a.axes(1)?) };
    rms_norm: "rms_norm(x, axis, eps[, w]): x * rsqrt(mean(x*x) + eps) [* w]" =>
        |b, a| { a.count(3..=4)?; rms_norm(b, a.value(0)?, &a.axis(1)?.name, a.number(2)?, a.optional(3)?) };
    layer_norm: "layer_norm(x, axis, eps[, w[, b]]): (x - mean) * rsqrt(variance + eps) [* w [+ b]]" =>
        |b, a| { a.count(3..=5)?; layer_norm(b, a.value(0)?, &a.axis(1)?.name, a.number(2)?, a.optional(3)?, a.optional(4)?) };
    gelu: "gelu(x): x * (1 + erf(x / sqrt 2)) / 2" => |b, a| { a.count(1..=1)?; gelu(b, a.value(0)?) };
    gelu_tanh: "gelu_tanh(x): gelu with tanh(sqrt(2/pi) * (x + 0.044715 x^3)) for erf" => |b, a| { a.count(1..=1)?; gelu_tanh(b, a.value(0)?) };
    silu: "silu(x): x * logistic(x)" => |b, a| { a.count(1..=1)?; silu(b, a.value(0)?) };
    relu: "relu(x): max(0, x), of slope 0 at 0" => |b, a| { a.count(1..=1)?; relu(b, a.value(0)?) };
    sigmoid: "sigmoid(x): another name of logistic" => |b, a| { a.count(1..=1)?; sigmoid(b, a.value(0)?) };
    softcap: "softcap(x, cap): cap * tanh(x / cap)" =>
        |b, a| { a.count(2..=2)?; let x = a.value(0)?; let cap = a.scalar(b, 1, x)?; softcap(b, x, cap) };
    linear: "linear(x, w[, b]): contracts x's last axis with the axis of that name in w[E,D]" =>
        |b, a| { a.count(2..=3)?; linear(b, a.value(0)?, a.value(1)?, a.optional(2)?) };
    rope_interleaved: "rope_interleaved(x, angles, axis): rotates the pairs (2p, 2p+1) of x's axis by angles[..,P], P = half of axis" =>
        |b, a| { a.count(3..=3)?; rope_interleaved(b, a.value(0)?, a.value(1)?, &a.axis(2)?.name) };
    rope_half: "rope_half(x, angles, axis): rotates the pairs (p, p + P) of x's axis by angles[..,P], P = half of axis" =>
        |b, a| { a.count(3..=3)?; rope_half(b, a.value(0)?, a.value(1)?, &a.axis(2)?.name) };
    modulate: "modulate(x, shift, scale): x * (1 + scale) + shift" =>
        |b, a| { a.count(3..=3)?; modulate(b, a.value(0)?, a.value(1)?, a.value(2)?) };
    adaln: "adaln(x, shift, scale, axis, eps): modulate(layer_norm(x, axis, eps), shift, scale)" =>
        |b, a| { a.count(5..=5)?; adaln(b, a.value(0)?, a.value(1)?, a.value(2)?, &a.axis(3)?.name, a.number(4)?) };
    time_embedding: "time_embedding(t, axis[, max_period]): cos(t f_k) then sin(t f_k) along a new axis, f_k = max_period^(-k / half), 10000 if not given" =>
        |b, a| { a.count(2..=3)?; time_embedding(b, a.value(0)?, &a.axis(1)?, if a.args.len() > 2 { a.number(2)? } else { 10_000.0 }) };
    cross_entropy: "cross_entropy(logits, labels, axis): logsumexp(logits) - logits at the label, labels being i32 positions on axis" =>
        |b, a| { a.count(3..=3)?; cross_entropy(b, a.value(0)?, a.value(1)?, &a.axis(2)?.name) };
    attention: "attention(q, k, v[, scale]): softmax(scale q.k) v; q's last axis is contracted, the keys' axis is the one that k has and q has not; scale 1/sqrt of the contracted size if not given" =>
        |b, a| {
            a.count(3..=4)?;
            let q = a.value(0)?;
            let scale = if a.args.len() > 3 { Some(a.scalar(b, 3, q)?) } else { None };
            attention(b, q, a.value(1)?, a.value(2)?, scale)
        };
}

/// Arguments with the errors that a caller wants to read.
struct Args<'a> {
    name: &'static str,
    usage: &'static str,
    args: &'a [Arg],
}

impl Args<'_> {
    fn count(&self, want: std::ops::RangeInclusive<usize>) -> Result<()> {
        let n = self.args.len();
        if want.contains(&n) {
            return Ok(());
        }
        let takes = match (*want.start(), *want.end()) {
            (a, b) if a == b => format!("{a} argument{}", if a == 1 { "" } else { "s" }),
            (a, usize::MAX) => format!("at least {a} arguments"),
            (a, b) => format!("{a} to {b} arguments"),
        };
        Err(Error::new(format!("{}: takes {takes}, but {n} given", self.name)).hint(self.usage))
    }
    fn wrong<T>(&self, i: usize, want: &str) -> Result<T> {
        let have = match self.args.get(i) {
            None => "absent".to_string(),
            Some(Arg::Value(_)) => "a value".to_string(),
            Some(Arg::Axis(x)) => format!("the axis `{}`", x.name),
            Some(Arg::Axes(_)) => "a list of axes".to_string(),
            Some(Arg::Number(x)) => format!("the number {x}"),
        };
        Err(Error::new(format!("{}: argument {} is {have}, but must be {want}", self.name, i + 1)).hint(self.usage))
    }
    fn value(&self, i: usize) -> Result<Var> {
        if let Some(Arg::Value(v)) = self.args.get(i) { Ok(*v) } else { self.wrong(i, "a value") }
    }
    fn optional(&self, i: usize) -> Result<Option<Var>> {
        if self.args.len() > i { self.value(i).map(Some) } else { Ok(None) }
    }
    fn axis(&self, i: usize) -> Result<Axis> {
        match self.args.get(i) {
            Some(Arg::Axis(x)) => Ok(x.clone()),
            Some(Arg::Axes(x)) if x.len() == 1 => Ok(x[0].clone()),
            _ => self.wrong(i, "an axis"),
        }
    }
    /// All axes from argument `i` on.
    fn axes(&self, i: usize) -> Result<Vec<Name>> {
        let mut names = vec![];
        for j in i..self.args.len().max(i + 1) {
            match self.args.get(j) {
                Some(Arg::Axis(x)) => names.push(x.name.clone()),
                Some(Arg::Axes(x)) => names.extend(x.iter().map(|a| a.name.clone())),
                _ => return self.wrong(j, "an axis or a list of axes"),
            }
        }
        Ok(names)
    }
    fn number(&self, i: usize) -> Result<f64> {
        if let Some(Arg::Number(x)) = self.args.get(i) { Ok(*x) } else { self.wrong(i, "a number") }
    }
    /// A value, or a number of the element type of `like`.
    fn scalar(&self, b: &mut Builder, i: usize, like: Var) -> Result<Var> {
        match self.args.get(i) {
            Some(Arg::Value(v)) => Ok(*v),
            Some(Arg::Number(x)) => { let d = b.dtype(like); Ok(b.constant(*x, d)) }
            _ => self.wrong(i, "a number or a value"),
        }
    }
}

/// A number of the element type of `x`.
fn number(b: &mut Builder, x: Var, value: f64) -> Var {
    let d = b.dtype(x);
    b.constant(value, d)
}

fn map(b: &mut Builder, e: Elementwise, x: Var) -> Result<Var> {
    b.elementwise(e, &[x])
}

/// `axis` of `x`, which must be there.
fn axis_of(b: &Builder, op: &str, x: Var, axis: &str) -> Result<Axis> {
    let t = b.ty(x);
    t.axis(axis).cloned().ok_or_else(|| Error::new(format!("{op}: operand {t} has no axis `{axis}`")))
}

/// `base`, or `base` with the least number behind it that makes it differ from every name in `taken`.
fn fresh(base: &str, taken: &[Axis]) -> Name {
    let free = |n: &str| taken.iter().all(|a| *a.name != *n);
    if free(base) {
        return base.into();
    }
    (1..).map(|i| format!("{base}{i}")).find(|n| free(n)).unwrap_or_default().into()
}

/// The parts of a stabilized exponential sum: `m`, `p = exp(x − m)`, `l = Σp`, whether `l > 0`, and `l` or 1.
struct ExpSum {
    m: Var,
    shifted: Var,
    p: Var,
    live: Var,
    safe: Var,
}

fn exp_sum(b: &mut Builder, x: Var, axis: &Name) -> Result<ExpSum> {
    let top = b.reduce_max(x, std::slice::from_ref(axis))?;
    // Softmax does not depend on its stabilizer, so this is exact, for tangents of every order.
    let m = b.stop_gradient(top)?;
    b.name(m, "m");
    let shifted = b.sub(x, m)?;
    let p = map(b, Elementwise::Exp, shifted)?;
    b.name(p, "p");
    let l = b.reduce_sum(p, std::slice::from_ref(axis))?;
    b.name(l, "l");
    let (zero, one) = (number(b, x, 0.0), number(b, x, 1.0));
    let live = b.elementwise(Elementwise::Gt, &[l, zero])?;
    let safe = b.elementwise(Elementwise::Select, &[live, l, one])?;
    Ok(ExpSum { m, shifted, p, live, safe })
}

/// `exp(x) / Σ exp(x)` along `axis`; 0 where every `x` is −∞.
pub fn softmax(b: &mut Builder, x: Var, axis: &Name) -> Result<Var> {
    let s = exp_sum(b, x, axis)?;
    b.div(s.p, s.safe)
}

/// `x − logsumexp(x)`; −∞ where every `x` is −∞.
pub fn log_softmax(b: &mut Builder, x: Var, axis: &Name) -> Result<Var> {
    let s = exp_sum(b, x, axis)?;
    let log = map(b, Elementwise::Log, s.safe)?;
    b.sub(s.shifted, log)
}

/// `log Σ exp(x)` along `axis`; −∞ where every `x` is −∞.
pub fn logsumexp(b: &mut Builder, x: Var, axis: &Name) -> Result<Var> {
    let s = exp_sum(b, x, axis)?;
    let log = map(b, Elementwise::Log, s.safe)?;
    let (lse, never) = (b.add(s.m, log)?, number(b, x, f64::NEG_INFINITY));
    b.elementwise(Elementwise::Select, &[s.live, lse, never])
}

/// The mean over `axes`.
pub fn mean(b: &mut Builder, x: Var, axes: &[Name]) -> Result<Var> {
    let sum = b.reduce_sum(x, axes)?;
    let t = b.ty(x);
    let (count, d) = (axes.iter().filter_map(|a| t.axis(a)).fold(Dim::fixed(1), |n, a| &n * &a.size), t.dtype);
    let count = b.size(count, d)?;
    b.div(sum, count)
}

/// `1/√(mean(x²) + eps)`.
fn inverse_rms(b: &mut Builder, x: Var, axis: &Name, eps: f64) -> Result<Var> {
    let square = b.mul(x, x)?;
    let (mean, eps) = (mean(b, square, std::slice::from_ref(axis))?, number(b, x, eps));
    let sum = b.add(mean, eps)?;
    map(b, Elementwise::Rsqrt, sum)
}

/// `x / √(mean(x²) + eps)`, times `w` if given.
pub fn rms_norm(b: &mut Builder, x: Var, axis: &Name, eps: f64, w: Option<Var>) -> Result<Var> {
    let r = inverse_rms(b, x, axis, eps)?;
    let y = b.mul(x, r)?;
    w.map_or(Ok(y), |w| b.mul(y, w))
}

/// `(x − mean) / √(variance + eps)`, times `w` and plus `bias` if given. The variance is that of the centred values, so
/// no digits are lost to a large mean.
pub fn layer_norm(b: &mut Builder, x: Var, axis: &Name, eps: f64, w: Option<Var>, bias: Option<Var>) -> Result<Var> {
    let mu = mean(b, x, std::slice::from_ref(axis))?;
    let centred = b.sub(x, mu)?;
    let y = rms_norm(b, centred, axis, eps, w)?;
    bias.map_or(Ok(y), |c| b.add(y, c))
}

/// `x/2 · (1 + y)`.
fn half_gate(b: &mut Builder, x: Var, y: Var) -> Result<Var> {
    let (half, one) = (number(b, x, 0.5), number(b, x, 1.0));
    let (gate, x) = (b.add(y, one)?, b.mul(x, half)?);
    b.mul(x, gate)
}

/// `x · Φ(x)`, with the normal distribution exactly.
pub fn gelu(b: &mut Builder, x: Var) -> Result<Var> {
    let c = number(b, x, std::f64::consts::FRAC_1_SQRT_2);
    let z = b.mul(x, c)?;
    let e = map(b, Elementwise::Erf, z)?;
    half_gate(b, x, e)
}

/// `x · Φ(x)`, with the usual approximation of Φ by tanh.
pub fn gelu_tanh(b: &mut Builder, x: Var) -> Result<Var> {
    let (cubic, outer) = (number(b, x, 0.044_715), number(b, x, (2.0 / std::f64::consts::PI).sqrt()));
    let x2 = b.mul(x, x)?;
    let x3 = b.mul(x2, x)?;
    let c = b.mul(x3, cubic)?;
    let inner = b.add(x, c)?;
    let z = b.mul(inner, outer)?;
    let t = map(b, Elementwise::Tanh, z)?;
    half_gate(b, x, t)
}

/// `x · logistic(x)`.
pub fn silu(b: &mut Builder, x: Var) -> Result<Var> {
    let s = map(b, Elementwise::Logistic, x)?;
    b.mul(x, s)
}

/// `max(0, x)`. The zero stands first, so that a tie goes to it and the slope at 0 is 0.
pub fn relu(b: &mut Builder, x: Var) -> Result<Var> {
    let zero = number(b, x, 0.0);
    b.elementwise(Elementwise::Max, &[zero, x])
}

/// `1 / (1 + exp(−x))`.
pub fn sigmoid(b: &mut Builder, x: Var) -> Result<Var> {
    map(b, Elementwise::Logistic, x)
}

/// `cap · tanh(x / cap)`.
pub fn softcap(b: &mut Builder, x: Var, cap: Var) -> Result<Var> {
    let z = b.div(x, cap)?;
    let t = map(b, Elementwise::Tanh, z)?;
    b.mul(t, cap)
}

/// `x·wᵀ + bias`: the last axis of `x` is contracted with the axis of that name in `w`; the other axes of `w` come behind.
pub fn linear(b: &mut Builder, x: Var, w: Var, bias: Option<Var>) -> Result<Var> {
    let (tx, tw) = (b.ty(x), b.ty(w));
    let Some(last) = tx.axes.last().map(|a| a.name.clone()) else {
        return Err(Error::new(format!("linear: operand {tx} has no axis")));
    };
    if !tw.has(&last) {
        return Err(Error::new(format!("linear: the last axis of {tx} is `{last}`, which weight {tw} has not"))
            .hint("axes are matched by name: declare the weight with that axis, or `rename` it"));
    }
    let y = b.contract(x, w, &[last])?;
    bias.map_or(Ok(y), |c| b.add(y, c))
}

/// Rotates the pairs `(2p, 2p+1)` of `axis` by `angles`.
pub fn rope_interleaved(b: &mut Builder, x: Var, angles: Var, axis: &Name) -> Result<Var> {
    rope(b, "rope_interleaved", x, angles, axis, false)
}

/// Rotates the pairs `(p, p + P)` of `axis` by `angles`.
pub fn rope_half(b: &mut Builder, x: Var, angles: Var, axis: &Name) -> Result<Var> {
    rope(b, "rope_half", x, angles, axis, true)
}

/// Rotation of pairs: `(a cos − b sin, b cos + a sin)`, from RoFormer (arXiv 2104.09864).
fn rope(b: &mut Builder, op: &str, x: Var, angles: Var, axis: &Name, halves: bool) -> Result<Var> {
    let d = axis_of(b, op, x, axis)?;
    let (tx, ta) = (b.ty(x).clone(), b.ty(angles).clone());
    let own: Vec<&Axis> = ta.axes.iter().filter(|a| a.name == *axis || !tx.has(&a.name)).collect();
    let p = match own.as_slice() {
        [p] if p.name != *axis => (*p).clone(),
        _ => {
            return Err(Error::new(format!("{op}: angles {ta} must have one axis that {tx} has not, for the pairs of `{axis}`"))
                .hint(format!("declare it as `P={axis}/2`")));
        }
    };
    let two = Dim::fixed(2);
    if &p.size * &two != d.size {
        return Err(Error::new(format!("{op}: axis `{}` of angles is {}, but must be half of axis `{axis}`, which is {}", p.name, p.size, d.size))
            .hint(format!("declare it as `{}={}/2`", p.name, d.size)));
    }
    let (mut cos, mut sin) = (map(b, Elementwise::Cos, angles)?, map(b, Elementwise::Sin, angles)?);
    if ta.dtype != tx.dtype {
        (cos, sin) = (map(b, Elementwise::Convert(tx.dtype), cos)?, map(b, Elementwise::Convert(tx.dtype), sin)?);
    }
    rotate(b, x, cos, sin, &d, &p, halves)
}

/// The rotation of the pairs of axis `d` of `x` by angles whose cosines and sines are given along the pairs' axis `p`: pairs `(p, p + P)`
/// if `halves`, else `(2p, 2p+1)`. Where many layers rotate by the same angles, their tables are made once.
///
/// # Errors
/// Those of the builder.
pub fn rotate(b: &mut Builder, x: Var, cos: Var, sin: Var, d: &Axis, p: &Axis, halves: bool) -> Result<Var> {
    let tx = b.ty(x).clone();
    let taken: Vec<Axis> = tx.axes.iter().chain(&b.ty(cos).axes).cloned().collect();
    let pair = Axis::new(fresh("pair", &taken), Dim::fixed(2));
    let parts = if halves { vec![pair.clone(), p.clone()] } else { vec![p.clone(), pair.clone()] };
    let split = b.movement(Movement::Split { axis: d.name.clone(), into: parts.clone() }, &[x])?;
    let side = |b: &mut Builder, at: i64| b.movement(Movement::Index { axis: pair.name.clone(), at: Dim::fixed(at) }, &[split]);
    let (even, odd) = (side(b, 0)?, side(b, 1)?);
    let (ec, os, oc, es) = (b.mul(even, cos)?, b.mul(odd, sin)?, b.mul(odd, cos)?, b.mul(even, sin)?);
    let (re, im) = (b.sub(ec, os)?, b.add(oc, es)?);
    let stacked = b.movement(Movement::Stack(pair), &[re, im])?;
    let axes = parts.into_iter().map(|a| a.name).collect();
    let merged = b.movement(Movement::Merge { axes, into: d.clone() }, &[stacked])?;
    let extra = b.ty(merged).axes.iter().map(|a| a.name.clone()).filter(|n| !tx.has(n));
    let order: Vec<Name> = extra.chain(tx.axes.iter().map(|a| a.name.clone())).collect();
    b.permute(merged, &order)
}

/// `x · (1 + scale) + shift`.
pub fn modulate(b: &mut Builder, x: Var, shift: Var, scale: Var) -> Result<Var> {
    let one = number(b, x, 1.0);
    let factor = b.add(scale, one)?;
    let y = b.mul(x, factor)?;
    b.add(y, shift)
}

/// A layer norm without weights, modulated: adaptive layer norm, from DiT (arXiv 2212.09748).
pub fn adaln(b: &mut Builder, x: Var, shift: Var, scale: Var, axis: &Name, eps: f64) -> Result<Var> {
    let y = layer_norm(b, x, axis, eps, None, None)?;
    modulate(b, y, shift, scale)
}

/// `cos(t·f_k)`, then `sin(t·f_k)`, along the new axis `axis`; `f_k = max_period^(−k/half)` for k in 0..half.
pub fn time_embedding(b: &mut Builder, t: Var, axis: &Axis, max_period: f64) -> Result<Var> {
    let tt = b.ty(t).clone();
    let half = axis.size.checked_div(&Dim::fixed(2)).unwrap_or_else(|| axis.size.clone());
    let taken: Vec<Axis> = tt.axes.iter().chain([axis]).cloned().collect();
    let k_axis = Axis::new(fresh("k", &taken), half.clone());
    let k = b.iota(k_axis.clone())?;
    let k = map(b, Elementwise::Convert(tt.dtype), k)?;
    let (rate, half) = (number(b, t, -max_period.ln()), b.size(half, tt.dtype)?);
    let slope = b.div(rate, half)?;
    let exponent = b.mul(k, slope)?;
    let f = map(b, Elementwise::Exp, exponent)?;
    let angle = b.mul(t, f)?;
    let order: Vec<Name> = tt.axes.iter().chain([&k_axis]).map(|a| a.name.clone()).collect();
    let angle = b.permute(angle, &order)?;
    let (cos, sin) = (map(b, Elementwise::Cos, angle)?, map(b, Elementwise::Sin, angle)?);
    b.movement(Movement::Concat { axes: vec![k_axis.name.clone(), k_axis.name], into: axis.clone() }, &[cos, sin])
}

/// `logsumexp(logits) − logits[label]` along `axis`; `labels` are `i32` positions on it.
pub fn cross_entropy(b: &mut Builder, logits: Var, labels: Var, axis: &Name) -> Result<Var> {
    let a = axis_of(b, "cross_entropy", logits, axis)?;
    let tl = b.ty(labels);
    if tl.dtype != DType::I32 || tl.has(axis) {
        return Err(Error::new(format!("cross_entropy: labels are {tl}, but must be i32 positions on axis `{axis}`, without that axis")));
    }
    let lse = logsumexp(b, logits, axis)?;
    let at = b.iota(a)?;
    let hit = b.elementwise(Elementwise::Eq, &[labels, at])?;
    let zero = number(b, logits, 0.0);
    let picked = b.elementwise(Elementwise::Select, &[hit, logits, zero])?;
    let picked = b.reduce_sum(picked, std::slice::from_ref(axis))?;
    b.sub(lse, picked)
}

/// `softmax(scale·q·k)·v`. The last axis of `q` is contracted; the keys' axis is the one that `k` has and `q` has not.
/// Without a `scale`, it is `1/√size` of the contracted axis.
pub fn attention(b: &mut Builder, q: Var, k: Var, v: Var, scale: Option<Var>) -> Result<Var> {
    let (tq, tk) = (b.ty(q).clone(), b.ty(k).clone());
    let keys: Vec<&Axis> = tk.axes.iter().filter(|a| !tq.has(&a.name)).collect();
    let (Some(d), [j]) = (tq.axes.last(), keys.as_slice()) else {
        return Err(Error::new(format!("attention: k is {tk} and q is {tq}; k must have one axis that q has not, the keys'")));
    };
    let scale = match scale {
        Some(s) => s,
        None => {
            let n = b.size(d.size.clone(), tq.dtype)?;
            map(b, Elementwise::Rsqrt, n)?
        }
    };
    let s = b.contract(q, k, std::slice::from_ref(&d.name))?;
    let s = b.mul(s, scale)?;
    b.name(s, "s");
    let p = softmax(b, s, &j.name)?;
    b.contract(p, v, std::slice::from_ref(&j.name))
}
