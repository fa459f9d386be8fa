//! A discriminator on the features of a network, as the rCM paper's DMD2 baseline has it: one learnable query attends over the feature tokens, a small MLP makes a
//! logit of what it gathers, and the loss does not saturate (Goodfellow et al. 2014, arXiv 1406.2661).
//!
//! ```text
//! p = softmax over tokens of q·f/√C        z = Σ p·f        ℓ = w₂·silu(W₁·z + b₁) + b₂        loss = log(1 + exp(y·ℓ)),   y = −1 for real, 1 for made
//! ```
//!
//! Features of rank 2 are one token. The program is a function of the network's own inputs, so its gradient in the weights teaches the network's features, and its
//! gradient in the sample teaches who made the sample.

use crate::method::{Condition, Weights};
use crate::network::{LOSS, Model, Network, Point};
use crate::program::{Options, Program};
use crate::random::Random;
use crate::rows::Rows;
use ir::builder::Builder;
use ir::diagnostic::Error;
use ir::dim::{Dim, Name};
use ir::graph::Function;
use ir::nn;
use ir::prim::{Elementwise, Movement};
use ir::tensor::Tensor;
use ir::types::{Axis, DType, Type};
use passes::ad::Transform;
use std::collections::BTreeMap;

const SIGN: &str = "judge.sign";
/// Weights of the head, and the deviation of their first values.
const HEAD: [&str; 5] = ["judge.query", "judge.w1", "judge.b1", "judge.w2", "judge.b2"];

/// A discriminator on a network's features, with the programs of its two gradients.
pub struct Discriminator {
    network: Network,
    function: Function,
    options: Options,
    weights: Weights,
    version: u64,
    programs: BTreeMap<(bool, usize), (Program, u64)>,
    launches: u64,
}

/// What a judgement says.
pub struct Verdict {
    /// log(1 + exp(y·ℓ)) of each sample.
    pub loss: Vec<f64>,
    /// Gradients of the sum, with the weights that were given: of weights, or of none.
    pub weights: Weights,
    /// Of the network's samples, where that was asked for.
    pub sample: Option<Rows>,
}

impl Discriminator {
    /// On `network`'s features, with a hidden layer of `width`; the head starts from the seed's numbers.
    ///
    /// # Errors
    /// A network without features, or features without a batch axis or of a free width.
    pub fn new(network: &Network, weights: &Weights, width: i64, random: &Random, options: &Options) -> Result<Discriminator, Error> {
        let features = network.features.clone().ok_or_else(|| {
            Error::new(format!("discriminator: network `{}` has no features", network.function.name)).hint("name one of its results, or train without the adversarial loss")
        })?;
        let (function, channels) = judge(network, &features, width)?;
        let mut all = weights.clone();
        for (name, shape, deviation) in [
            (HEAD[0], vec![channels], 1.0),
            (HEAD[1], vec![width as usize, channels], (channels as f64).sqrt().recip()),
            (HEAD[2], vec![width as usize], 0.0),
            (HEAD[3], vec![width as usize], (width as f64).sqrt().recip()),
            (HEAD[4], vec![1], 0.0),
        ] {
            let n: usize = shape.iter().product();
            let data: Vec<f64> = random.stream(0, name).normals(n).iter().map(|z| z * deviation).collect();
            all.insert(name.into(), Tensor::from_f64(options.dtype, &shape, &data)?);
        }
        Ok(Discriminator { network: network.clone(), function, options: options.clone(), weights: all, version: 1, programs: BTreeMap::new(), launches: 0 })
    }
    /// Weights of the network and of the head.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }
    /// Other values of the same weights.
    pub fn set_weights(&mut self, weights: Weights) {
        self.weights = weights;
        self.version += 1;
    }
    /// Those of a set of weights that are the network's.
    pub fn network_part(weights: &Weights) -> Weights {
        weights.iter().filter(|(n, _)| !HEAD.contains(&&***n)).map(|(n, t)| (n.clone(), t.clone())).collect()
    }
    /// Kernel launches so far.
    pub fn launches(&self) -> u64 {
        self.launches
    }
    /// The loss of samples, `sign` being −1 for real and 1 for made ones, and the gradient of `Σ w_i·loss_i` in the weights, or else in the samples.
    ///
    /// # Errors
    /// Samples or conditions that do not fit the network.
    pub fn judge(&mut self, model: &Model, at: &Point, condition: &Condition, sign: f64, scale: &[f64], of_sample: bool) -> Result<Verdict, Error> {
        let (batch, dtype) = (at.x.batch(), self.options.dtype);
        let mut inputs = model.point(at, condition)?;
        inputs.push((SIGN.into(), Tensor::from_f64(dtype, &[], &[sign])?));
        inputs.push((format!("{LOSS}.ct"), Tensor::from_f64(dtype, &[batch], scale)?));
        let names: Vec<Name> = self.weights.keys().cloned().collect();
        let x = self.network.x.clone();
        if !self.programs.contains_key(&(of_sample, batch)) {
            let mut dims = self.network.dims.clone();
            dims.insert(self.network.batch()?, batch as i64);
            let shapes = |name: &str| self.weights.get(name).map(|t| t.shape().to_vec());
            let dims = self.function.bind(&shapes, &dims).map_err(Error::new)?;
            let wrt = if of_sample { vec![x.clone()] } else { names.clone() };
            let p = Program::new(&self.function, &[Transform::Vjp(wrt)], &dims, &self.options).map_err(|e| Error::new(format!("discriminator: {e}")))?;
            self.programs.insert((of_sample, batch), (p, 0));
        }
        let (p, version) = self.programs.get_mut(&(of_sample, batch)).ok_or_else(|| Error::new("a program that was just made is gone"))?;
        if *version != self.version {
            for (n, t) in &self.weights {
                p.set(n, t).map_err(Error::new)?;
            }
            *version = self.version;
        }
        let list: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let mut out = p.run(&list).map_err(|e| Error::new(format!("discriminator: {e}")))?;
        self.launches += p.launches() as u64;
        let mut take = |name: &str| out.remove(name).ok_or_else(|| Error::new(format!("discriminator: no result `{name}`")));
        let loss = take(LOSS)?.to_f64();
        if of_sample {
            let gradient = Rows::new(at.x.shape(), take(&format!("{x}.ct"))?.to_f64())?;
            return Ok(Verdict { loss, weights: Weights::new(), sample: Some(gradient) });
        }
        let weights = names.into_iter().map(|n| take(&format!("{n}.ct")).map(|t| (n, t))).collect::<Result<Weights, Error>>()?;
        Ok(Verdict { loss, weights, sample: None })
    }
}

/// The loss as a function of the network's parameters and the head's, and the number of channels.
fn judge(network: &Network, features: &str, width: i64) -> Result<(Function, usize), Error> {
    let f = network.only(features)?;
    let v = f.results[0].var;
    let ty = f.ty(v).clone();
    let refuse = |what: &str| Error::new(format!("discriminator: features `{features}` are {ty}, {what}"));
    let (Some(_), Some(last)) = (ty.axes.first().and_then(|a| a.size.as_sym()), ty.axes.last().filter(|_| ty.axes.len() > 1)) else { return Err(refuse("but must be [B, …, C]")) };
    let channels = last.size.bind(&network.dims).as_fixed().ok_or_else(|| refuse("whose last axis must have a size that is known"))?;
    let mut b = Builder::extend(f.clone());
    b.clear_results();
    let (c, h) = (last.clone(), Axis::new("judge.H", Dim::fixed(width)));
    let tokens: Vec<Name> = ty.axes[1..ty.axes.len() - 1].iter().map(|a| a.name.clone()).collect();
    let one = |axes: Vec<Axis>| Type::new(DType::F32, axes);
    let q = b.param(HEAD[0], one(vec![c.clone()]));
    let w1 = b.param(HEAD[1], one(vec![h.clone(), c.clone()]));
    let b1 = b.param(HEAD[2], one(vec![h.clone()]));
    let w2 = b.param(HEAD[3], one(vec![h.clone()]));
    let b2 = b.param(HEAD[4], one(vec![Axis::new("judge.1", Dim::fixed(1))]));
    let sign = b.param(SIGN, Type::scalar(DType::F32));
    let mut z = v;
    if !tokens.is_empty() {
        let mut joined = tokens[0].clone();
        if tokens.len() > 1 {
            let size = ty.axes[1..ty.axes.len() - 1].iter().fold(Dim::fixed(1), |n, a| &n * &a.size);
            joined = "judge.N".into();
            z = b.movement(Movement::Merge { axes: tokens, into: Axis::new(joined.clone(), size) }, &[z])?;
        }
        let s = b.contract(z, q, &[c.name.clone()])?;
        let k = b.constant((channels as f64).sqrt().recip(), DType::F32);
        let s = b.mul(s, k)?;
        let p = nn::softmax(&mut b, s, &joined)?;
        z = b.contract(p, z, &[joined])?;
    } else {
        // One token gets all the weight; the query still has its place among the weights, with a gradient of 0.
        let zero = b.constant(0.0, DType::F32);
        let s = b.contract(z, q, &[c.name.clone()])?;
        let nothing = b.mul(s, zero)?;
        z = b.add(z, nothing)?;
    }
    let y = b.contract(z, w1, &[c.name])?;
    let y = b.add(y, b1)?;
    let y = nn::silu(&mut b, y)?;
    let y = b.contract(y, w2, &[h.name])?;
    let bias = b.reduce_sum(b2, &["judge.1".into()])?;
    let logit = b.add(y, bias)?;
    // log(1 + exp(s)) = max(s, 0) + log(1 + exp(−|s|)).
    let s = b.mul(logit, sign)?;
    let (zero, one) = (b.constant(0.0, DType::F32), b.constant(1.0, DType::F32));
    let high = b.elementwise(Elementwise::Max, &[s, zero])?;
    let size = b.elementwise(Elementwise::Abs, &[s])?;
    let down = b.elementwise(Elementwise::Neg, &[size])?;
    let e = b.elementwise(Elementwise::Exp, &[down])?;
    let e = b.add(e, one)?;
    let low = b.elementwise(Elementwise::Log, &[e])?;
    let loss = b.add(high, low)?;
    b.result(LOSS, loss);
    Ok((b.finish(), channels as usize))
}
