//! A network as training methods see it: a function of a noisy sample, its time and its condition, and the programs that the compiler makes of it.
//!
//! ```text
//! velocity     v(x, t)                                           for samplers, teachers, rollouts
//! tangent      v and (∂ₓv)·x.t + (∂ₜv)·t.t                       forward mode along the sample and its time
//! pullback     Σ ct·∂v/∂θ for a cotangent that is known          where the target is already there (consistency, distribution matching)
//! regression   Σ_i w_i·‖v_i − target_i‖² and its gradient        forward and backward in one program (flow matching, critics)
//! ```
//!
//! The function predicts the velocity `ε − x₀` of a rectified flow; what other parametrisations need of it is in `scaling`. Times are u in 0..1 here, and the
//! network sees `time_scale·u`.

use crate::method::{Condition, Gradients, Weights};
#[cfg(feature = "jit")]
use crate::program::flat::{Flat, Layout, ROW};
#[cfg(feature = "jit")]
use crate::program::gpu::Device;
use crate::program::{On, Options, Program};
use crate::rows::Rows;
use ir::builder::Builder;
use ir::diagnostic::Error;
#[cfg(feature = "jit")]
use ir::dim::Dim;
use ir::dim::{Bindings, Name};
use ir::graph::{Function, Port};
use ir::tensor::Tensor;
use ir::types::DType;
#[cfg(feature = "jit")]
use ir::types::{Axis, Type};
use passes::ad::Transform;
#[cfg(feature = "jit")]
use std::cell::RefCell;
use std::collections::BTreeMap;
#[cfg(feature = "jit")]
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A function and what its parameters are for.
#[derive(Clone, PartialEq, Debug)]
pub struct Network {
    /// The function, in f32; a program of another type reads it in that type.
    pub function: Function,
    /// The parameter that is the noisy sample, `[B, …]`.
    pub x: Name,
    /// The parameters that are times, `[B]` or `[B, …]` with one value a sample; one, or two where the network jumps between times.
    pub times: Vec<Name>,
    /// The parameters that are conditions, `[B, …]`.
    pub condition: Vec<Name>,
    /// The result that is the velocity, of the sample's shape.
    pub result: Name,
    /// The result `[B, …, C]` whose last axis are features for a discriminator, if there is one.
    pub features: Option<Name>,
    /// What the network's times are multiplied by: 1000 for Wan, 1 for Cosmos.
    pub time_scale: f64,
    /// Sizes of everything but the batch.
    pub dims: Bindings,
}

impl Network {
    /// A function `f(x, times…, condition…, weights…) -> (velocity, …)`: all parameters that are not named are weights.
    ///
    /// # Errors
    /// A name that is no parameter or result, a sample without a batch axis of a free size, or weights that are no floats.
    pub fn new(function: Function, x: &str, times: &[&str], condition: &[&str], result: &str) -> Result<Network, Error> {
        let names = |l: &[&str]| l.iter().map(|n| Name::from(*n)).collect::<Vec<_>>();
        let n = Network { x: x.into(), times: names(times), condition: names(condition), result: result.into(), features: None, time_scale: 1.0, dims: Bindings::new(), function };
        let port = |ports: &[Port], name: &str, what: &str| -> Result<(), Error> {
            let all = || ports.iter().map(|p| &*p.name).collect::<Vec<_>>().join(", ");
            if ports.iter().any(|p| *p.name == *name) { Ok(()) } else { Err(Error::new(format!("network `{}` has no {what} `{name}`", n.function.name)).hint(format!("there are {}", all()))) }
        };
        for p in [&n.x].into_iter().chain(&n.times).chain(&n.condition) {
            port(&n.function.params, p, "parameter")?;
        }
        port(&n.function.results, &n.result, "result")?;
        n.batch()?;
        let weights = n.weights();
        if let Some(p) = n.function.params.iter().find(|p| weights.contains(&p.name) && !n.function.ty(p.var).dtype.is_float()) {
            return Err(Error::new(format!("network `{}`: weight `{}` is {}, and only floats are trained", n.function.name, p.name, n.function.ty(p.var))).hint("name it among the conditions, or make it a constant"));
        }
        Ok(n)
    }
    /// With times multiplied by `scale`.
    #[must_use]
    pub fn scaled(self, scale: f64) -> Network {
        Network { time_scale: scale, ..self }
    }
    /// With a number for a dimension.
    #[must_use]
    pub fn with(mut self, dim: &str, size: i64) -> Network {
        self.dims.insert(dim.into(), size);
        self
    }
    /// Names of the weights, in the order of the parameters.
    pub fn weights(&self) -> Vec<Name> {
        let other = |n: &Name| *n == self.x || self.times.contains(n) || self.condition.contains(n);
        self.function.params.iter().map(|p| p.name.clone()).filter(|n| !other(n)).collect()
    }
    /// The dimension that is the batch: the size of the sample's first axis.
    pub(crate) fn batch(&self) -> Result<Name, Error> {
        let ty = self.function.param(&self.x).map(|v| self.function.ty(v));
        let size = ty.and_then(|t| t.axes.first()).and_then(|a| a.size.as_sym()).cloned();
        size.ok_or_else(|| Error::new(format!("network `{}`: the first axis of `{}` must have a free size, the batch", self.function.name, self.x)))
    }
    /// The function with `result` alone, and the equations that it needs.
    pub(crate) fn only(&self, result: &str) -> Result<Function, Error> {
        let port = self.function.results.iter().find(|r| *r.name == *result).cloned();
        let port = port.ok_or_else(|| Error::new(format!("network `{}` has no result `{result}`", self.function.name)))?;
        let mut needed = vec![false; self.function.vars.len()];
        needed[port.var.index()] = true;
        let mut eqns = vec![];
        for e in self.function.eqns.iter().rev() {
            if needed[e.out.index()] {
                e.args.iter().for_each(|a| needed[a.index()] = true);
                eqns.push(e.clone());
            }
        }
        eqns.reverse();
        Ok(Function { results: vec![port], eqns, ..self.function.clone() })
    }
    /// The function of a program, and what is done to it.
    fn derived(&self, kind: Kind) -> Result<(Function, Vec<Transform>), Error> {
        let along = || [&self.x].into_iter().chain(&self.times).cloned().collect();
        Ok(match kind {
            Kind::Velocity => (self.only(&self.result)?, vec![]),
            Kind::Tangent => (self.only(&self.result)?, vec![Transform::Jvp(along())]),
            Kind::Pullback => (self.only(&self.result)?, vec![Transform::Vjp(self.weights())]),
            Kind::Regression => (self.regression()?, vec![Transform::Vjp(self.weights())]),
        })
    }
    /// Its programs on a GPU, without compiling them: velocity, tangent, pullback, regression, each with its plan and its block programs.
    ///
    /// # Errors
    /// Those of derivation and fusion.
    #[cfg(feature = "jit")]
    pub fn outlines(&self, shapes: &BTreeMap<Name, Vec<usize>>, batch: usize, options: &Options) -> Result<Vec<Outline>, Error> {
        let mut dims = self.dims.clone();
        dims.insert(self.batch()?, batch as i64);
        let one = |(what, kind)| {
            let (f, transforms) = self.derived(kind)?;
            let dims = f.bind(&|name: &str| shapes.get(name).cloned(), &dims).map_err(Error::new)?;
            let (plan, programs) = crate::program::gpu::outline(&f, &transforms, &dims, options).map_err(|e| Error::new(format!("{what}: {e}")))?;
            Ok(Outline { what, plan, programs })
        };
        [("velocity", Kind::Velocity), ("tangent", Kind::Tangent), ("pullback", Kind::Pullback), ("regression", Kind::Regression)].into_iter().map(one).collect()
    }
    /// `loss[B] = Σ (velocity − target)²`, with the parameter `target`.
    fn regression(&self) -> Result<Function, Error> {
        let f = self.only(&self.result)?;
        let v = f.results[0].var;
        let ty = f.ty(v).clone();
        let mut b = Builder::extend(f);
        b.clear_results();
        let target = b.param(TARGET, ty.clone());
        let gap = b.sub(v, target)?;
        let square = b.mul(gap, gap)?;
        let rest: Vec<Name> = ty.axes.iter().skip(1).map(|a| a.name.clone()).collect();
        let loss = b.reduce_sum(square, &rest)?;
        b.result(LOSS, loss);
        Ok(b.finish())
    }
}

/// The parameter of a regression that is its target.
const TARGET: &str = "regression.target";
/// The result that is a loss, one number a sample.
pub(crate) const LOSS: &str = "regression.loss";

/// What a program of a network is, before it is compiled.
#[cfg(feature = "jit")]
pub struct Outline {
    /// Which of its programs.
    pub what: &'static str,
    /// Its launches and its memory.
    pub plan: runtime::plan::Plan,
    /// Its kernels as block programs.
    pub programs: Vec<ir::tile::Program>,
}

/// Which program.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Velocity,
    Tangent,
    Pullback,
    Regression,
}

/// A network with weights, and its programs, each made when it is first needed and for a batch size.
pub struct Model {
    network: Network,
    options: Options,
    /// On machines with the host's memory.
    weights: Arc<Weights>,
    /// Shapes of the weights.
    shapes: BTreeMap<Name, Vec<usize>>,
    /// On a device.
    #[cfg(feature = "jit")]
    resident: Option<Resident>,
    /// Goes up with the weights: what programs have of them.
    version: u64,
    programs: BTreeMap<(Kind, usize), (Program, u64)>,
    evaluations: u64,
    launches: u64,
    /// Runs and their time, by program.
    spent: BTreeMap<(Kind, usize), (u64, Duration)>,
}

/// A network in a device's memory: every program reads the same weights, and those that have gradients write them to the same place.
#[cfg(feature = "jit")]
struct Resident {
    device: Device,
    weights: Flat,
    gradient: Option<Flat>,
    /// The last gradients that were given out. If they are still held when others are to be written, they are copied before.
    lent: Weak<RefCell<Flat>>,
    /// Sums of two gradients, by group.
    sums: BTreeMap<DType, Program>,
}

/// What a gradient program says.
pub struct Gradient {
    /// Of each weight.
    pub weights: Gradients,
    /// Of each sample, without weights; empty where only the cotangent was given.
    pub loss: Vec<f64>,
}

impl Model {
    /// A network with its weights.
    ///
    /// # Errors
    /// A weight that is missing, unknown, or of another shape.
    pub fn new(network: Network, weights: &Weights, options: &Options) -> Result<Model, Error> {
        let shapes = weights.iter().map(|(n, t)| (n.clone(), t.shape().to_vec())).collect();
        #[cfg(feature = "jit")]
        let resident = Resident::new(&network, weights, options)?;
        let mut f = Model {
            network, options: options.clone(), weights: Arc::default(), shapes, version: 0, programs: BTreeMap::new(), evaluations: 0, launches: 0, spent: BTreeMap::new(),
            #[cfg(feature = "jit")]
            resident,
        };
        f.set_weights(weights)?;
        Ok(f)
    }
    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }
    /// How its programs run.
    pub fn options(&self) -> &Options {
        &self.options
    }
    /// The weights, as they are read.
    ///
    /// # Errors
    /// Those of the device that has them.
    pub fn weights(&self) -> Result<Weights, Error> {
        #[cfg(feature = "jit")]
        if let Some(r) = &self.resident {
            return r.weights.all().map_err(Error::new);
        }
        Ok(Weights::clone(&self.weights))
    }
    /// Whether its weights are in a device's memory.
    pub fn is_resident(&self) -> bool {
        #[cfg(feature = "jit")]
        return self.resident.is_some();
        #[cfg(not(feature = "jit"))]
        false
    }
    /// The device that has its weights, and where they are.
    #[cfg(feature = "jit")]
    pub(crate) fn resident(&self) -> Option<(&Device, &Flat)> {
        self.resident.as_ref().map(|r| (&r.device, &r.weights))
    }
    /// Bytes of a device's memory that it has for weights and gradients.
    pub fn device_bytes(&self) -> usize {
        #[cfg(feature = "jit")]
        if let Some(r) = &self.resident {
            return r.weights.bytes() + r.gradient.as_ref().map_or(0, Flat::bytes);
        }
        0
    }
    /// The largest work space of its programs so far, and all that they have for parameters and results of their own, in bytes by their plans.
    pub fn program_bytes(&self) -> (usize, usize) {
        let plans = || self.programs.values().filter_map(|(p, _)| p.plan());
        let shared = |name: &str| self.shapes.contains_key(name) || name.strip_suffix(".ct").is_some_and(|n| self.shapes.contains_key(n));
        let own = plans().flat_map(|p| p.params.iter().chain(&p.results).map(|b| &p.buffers[*b])).filter(|b| !shared(&b.name)).map(|b| b.bytes()).sum();
        (plans().map(|p| p.arena).max().unwrap_or(0), own)
    }
    /// `a + b`, weight by weight.
    ///
    /// # Errors
    /// Gradients of other networks, or on different machines.
    pub fn add(&mut self, a: Gradients, b: &Gradients) -> Result<Gradients, Error> {
        #[cfg(feature = "jit")]
        if let (Gradients::Device(x), Gradients::Device(y), Some(r)) = (&a, b, &mut self.resident) {
            self.launches += r.add(&x.borrow(), &y.borrow(), &self.options).map_err(Error::new)?;
            return Ok(a);
        }
        crate::method::add(a.host()?.into_owned(), &*b.host()?).map(Gradients::Host)
    }
    /// Other weights of the same shapes.
    ///
    /// # Errors
    /// A weight that is missing, unknown, or of another shape.
    pub fn set_weights(&mut self, weights: &Weights) -> Result<(), Error> {
        self.check(weights)?;
        #[cfg(feature = "jit")]
        if let Some(r) = &self.resident {
            let name = &self.network.function.name;
            return weights.iter().try_for_each(|(n, t)| r.weights.write(n, t)).map_err(|e| Error::new(format!("network `{name}`: {e}")));
        }
        self.take(weights.clone());
        Ok(())
    }
    /// The same without a copy of those that have the type of [`Options::exchanged`].
    ///
    /// # Errors
    /// Those of [`Model::set_weights`].
    pub fn give_weights(&mut self, weights: Weights) -> Result<(), Error> {
        if self.is_resident() {
            return self.set_weights(&weights);
        }
        self.check(&weights)?;
        self.take(weights);
        Ok(())
    }
    /// Whether programs read the weights where they are: this CPU, in their own type.
    fn lends(&self) -> bool {
        self.options.on == On::Cpu && self.options.dtype == self.options.exchanged()
    }
    fn take(&mut self, mut weights: Weights) {
        let dtype = self.options.exchanged();
        weights.values_mut().filter(|t| t.dtype() != dtype).for_each(|t| *t = t.convert(dtype));
        self.weights = Arc::new(weights);
        self.version += 1;
    }
    /// Whether they are this network's.
    fn check(&self, weights: &Weights) -> Result<(), Error> {
        let (f, name) = (&self.network.function, &self.network.function.name);
        let wanted = self.network.weights();
        if let Some(n) = weights.keys().find(|n| !wanted.contains(n)) {
            return Err(Error::new(format!("network `{name}` has no weight `{n}`")));
        }
        for p in f.params.iter().filter(|p| wanted.contains(&p.name)) {
            let (ty, t) = (f.ty(p.var), weights.get(&p.name).ok_or_else(|| Error::new(format!("network `{name}`: no weight `{}` ({})", p.name, f.ty(p.var))))?);
            let fits = ty.axes.len() == t.shape().len() && ty.axes.iter().zip(t.shape()).all(|(a, n)| a.size.eval(&self.network.dims).map_or(true, |s| s == *n as i64));
            if !fits {
                return Err(Error::new(format!("network `{name}`: weight `{}` is {ty}, but the tensor has shape {:?}", p.name, t.shape())));
            }
        }
        Ok(())
    }
    /// Where the time of its programs goes on a CUDA device: program, kernel, launches, seconds.
    ///
    /// # Errors
    /// Those of [`Program::device_profile`].
    #[cfg(feature = "jit")]
    pub fn device_profile(&self) -> Result<Vec<(String, String, usize, f64)>, Error> {
        let mut all = vec![];
        for ((kind, _), (p, _)) in &self.programs {
            all.extend(p.device_profile().map_err(Error::new)?.into_iter().map(|(k, n, s)| (format!("{kind:?}").to_lowercase(), k, n, s)));
        }
        Ok(all)
    }
    /// Kernel launches of its programs so far; none on the reference evaluator.
    pub fn launches(&self) -> u64 {
        self.launches
    }
    /// Runs of its programs so far: evaluations of the network, with or without a derivative.
    pub fn evaluations(&self) -> u64 {
        self.evaluations
    }
    /// Time in its programs so far: what, for which batch, how many runs, how long.
    pub fn spent(&self) -> impl Iterator<Item = (String, u64, Duration)> {
        self.spent.iter().map(|((kind, batch), (n, t))| (format!("{} of {batch}", format!("{kind:?}").to_lowercase()), *n, *t))
    }
    /// Time in kernel launches of its programs so far.
    pub fn in_launches(&self) -> Duration {
        self.programs.values().map(|(p, _)| p.in_launches()).sum()
    }
    /// The program of a kind for a batch size, with the weights as they are now.
    fn program(&mut self, kind: Kind, batch: usize) -> Result<&mut Program, Error> {
        let (n, lends) = (&self.network, self.lends());
        if !self.programs.contains_key(&(kind, batch)) {
            let mut dims = n.dims.clone();
            dims.insert(n.batch()?, batch as i64);
            let (f, transforms) = n.derived(kind)?;
            let shapes = |name: &str| self.shapes.get(name).cloned();
            let dims = f.bind(&shapes, &dims).map_err(Error::new)?;
            #[allow(unused_mut)] // bound where a device has the weights
            let mut p = Program::new(&f, &transforms, &dims, &self.options).map_err(|e| Error::new(format!("network `{}`: {e}", n.function.name)))?;
            #[cfg(feature = "jit")]
            if let Some(r) = &mut self.resident {
                r.bind(&mut p, matches!(kind, Kind::Pullback | Kind::Regression)).map_err(|e| Error::new(format!("network `{}`: {e}", n.function.name)))?;
            }
            self.programs.insert((kind, batch), (p, 0));
        }
        let (p, version) = self.programs.get_mut(&(kind, batch)).ok_or_else(|| Error::new("a program that was just made is gone"))?;
        if !lends && *version != self.version {
            for (name, t) in self.weights.iter() {
                p.set(name, t).map_err(Error::new)?;
            }
            *version = self.version;
        }
        Ok(p)
    }
    /// The tensors of a point: sample, times, condition, by parameter.
    fn inputs(&self, at: &Point, suffix: &str) -> Result<Vec<(String, Tensor)>, Error> {
        let (n, dtype, batch) = (&self.network, self.options.exchanged(), at.x.batch());
        if at.times.len() != n.times.len() {
            return Err(Error::new(format!("network `{}` has {} times, but {} given", n.function.name, n.times.len(), at.times.len())));
        }
        let mut list = vec![(format!("{}{suffix}", n.x), at.x.tensor(dtype)?)];
        for (name, values) in n.times.iter().zip(&at.times) {
            if values.len() != batch {
                return Err(Error::new(format!("{batch} samples, but {} values of time `{name}`", values.len())));
            }
            // One value a sample, whatever else the parameter's axes are.
            let mut dims = n.dims.clone();
            dims.insert(n.batch()?, batch as i64);
            let ty = n.function.param(name).map(|v| n.function.ty(v)).ok_or_else(|| Error::new(format!("no time `{name}`")))?;
            let shape = ty.sizes(&dims).map_err(|e| Error::new(format!("time `{name}`: {e}")))?;
            let each = shape.iter().skip(1).product::<usize>();
            let data: Vec<f64> = values.iter().flat_map(|u| std::iter::repeat_n(n.time_scale * u, each)).collect();
            list.push((format!("{name}{suffix}"), Tensor::from_f64(dtype, &shape, &data)?));
        }
        Ok(list)
    }
    fn condition(&self, condition: &Condition) -> Result<Vec<(String, Tensor)>, Error> {
        let n = &self.network;
        let mut list = vec![];
        for name in &n.condition {
            let t = condition.get(name).ok_or_else(|| {
                Error::new(format!("network `{}` wants the condition `{name}`", n.function.name)).hint(format!("given are {}", condition.keys().map(|k| &**k).collect::<Vec<_>>().join(", ")))
            })?;
            let float = n.function.param(name).is_some_and(|v| n.function.ty(v).dtype.is_float());
            list.push((name.to_string(), if float { t.convert(self.options.exchanged()) } else { t.convert(DType::I32) }));
        }
        Ok(list)
    }
    /// Sample, times and condition by parameter, as a program of this network's dtype takes them.
    pub(crate) fn point(&self, at: &Point, condition: &Condition) -> Result<Vec<(String, Tensor)>, Error> {
        let mut inputs = self.inputs(at, "")?;
        inputs.extend(self.condition(condition)?);
        Ok(inputs)
    }
    fn run(&mut self, kind: Kind, batch: usize, inputs: &[(String, Tensor)]) -> Result<BTreeMap<Name, Tensor>, Error> {
        let weights = self.weights.clone();
        let mut list: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        if self.lends() {
            list.extend(weights.iter().map(|(n, t)| (&**n, t)));
        }
        let name = self.network.function.name.clone();
        #[cfg(feature = "jit")]
        if let (Some(r), Kind::Pullback | Kind::Regression) = (&mut self.resident, kind) {
            r.keep_lent().map_err(Error::new)?;
        }
        let p = self.program(kind, batch)?;
        let start = Instant::now();
        let out = p.run(&list).map_err(|e| Error::new(format!("network `{name}`: {e}")))?;
        let (launches, time) = (p.launches() as u64, start.elapsed());
        (self.launches, self.evaluations) = (self.launches + launches, self.evaluations + 1);
        let spent = self.spent.entry((kind, batch)).or_default();
        *spent = (spent.0 + 1, spent.1 + time);
        Ok(out)
    }
    /// A result as samples of the point's shape.
    fn samples(&self, results: &BTreeMap<Name, Tensor>, name: &str, like: &Rows) -> Result<Rows, Error> {
        let t = results.get(name).ok_or_else(|| Error::new(format!("network `{}`: no result `{name}`; is it a function of the sample?", self.network.function.name)))?;
        let r = Rows::from_tensor(t)?;
        if r.batch() != like.batch() || r.width() != like.width() {
            return Err(Error::new(format!("network `{}`: `{name}` has shape {:?}, but the sample {:?}", self.network.function.name, r.shape(), like.shape())));
        }
        Rows::new(like.shape(), r.data().to_vec())
    }
    /// The velocity at a point.
    ///
    /// # Errors
    /// A point or a condition that does not fit the network, or a program that cannot be made.
    pub fn velocity(&mut self, at: &Point, condition: &Condition) -> Result<Rows, Error> {
        let inputs = self.point(at, condition)?;
        let out = self.run(Kind::Velocity, at.x.batch(), &inputs)?;
        self.samples(&out, &self.network.result, at.x)
    }
    /// The velocity at a point and its tangent along a direction, whose times are per unit of u.
    ///
    /// # Errors
    /// As [`Model::velocity`].
    pub fn tangent(&mut self, at: &Point, along: &Point, condition: &Condition) -> Result<(Rows, Rows), Error> {
        let mut inputs = self.inputs(at, "")?;
        inputs.extend(self.inputs(along, ".t")?);
        inputs.extend(self.condition(condition)?);
        let out = self.run(Kind::Tangent, at.x.batch(), &inputs)?;
        let result = &self.network.result;
        Ok((self.samples(&out, result, at.x)?, self.samples(&out, &format!("{result}.t"), at.x)?))
    }
    /// The gradient of the weights for a cotangent of the velocity.
    ///
    /// # Errors
    /// As [`Model::velocity`].
    pub fn pullback(&mut self, at: &Point, condition: &Condition, cotangent: &Rows) -> Result<Gradient, Error> {
        let mut inputs = self.point(at, condition)?;
        inputs.push((format!("{}.ct", self.network.result), cotangent.tensor(self.options.exchanged())?));
        let out = self.run(Kind::Pullback, at.x.batch(), &inputs)?;
        Ok(Gradient { weights: self.gradients(out)?, loss: vec![] })
    }
    /// `‖v − target‖²` of each sample, and the gradient of their sum with `weights`.
    ///
    /// # Errors
    /// As [`Model::velocity`].
    pub fn regression(&mut self, at: &Point, condition: &Condition, target: &Rows, weights: &[f64]) -> Result<Gradient, Error> {
        let mut inputs = self.point(at, condition)?;
        inputs.push((TARGET.into(), target.tensor(self.options.exchanged())?));
        inputs.push((format!("{LOSS}.ct"), Tensor::from_f64(self.options.exchanged(), &[weights.len()], weights)?));
        let out = self.run(Kind::Regression, at.x.batch(), &inputs)?;
        let loss = out.get(LOSS).map(Tensor::to_f64).ok_or_else(|| Error::new("a regression without its loss"))?;
        Ok(Gradient { weights: self.gradients(out)?, loss })
    }
    fn gradients(&mut self, mut out: BTreeMap<Name, Tensor>) -> Result<Gradients, Error> {
        #[cfg(feature = "jit")]
        if let Some(r) = &mut self.resident {
            return r.lend().map(Gradients::Device).map_err(Error::new);
        }
        let one = |n: Name| {
            let g = out.remove(&*format!("{n}.ct")).ok_or_else(|| Error::new(format!("no gradient of weight `{n}`")))?;
            Ok((n, g))
        };
        self.network.weights().into_iter().map(one).collect::<Result<Weights, Error>>().map(Gradients::Host)
    }
}

#[cfg(feature = "jit")]
impl Resident {
    /// Memory for the weights of a network on a machine that has its own.
    fn new(n: &Network, weights: &Weights, options: &Options) -> Result<Option<Resident>, Error> {
        let Some(device) = Device::of(options.on).map_err(Error::new)? else { return Ok(None) };
        let narrow = options.dtype.bytes() < 4;
        // A function that says which of its parameters are narrow means that the others are not.
        let said = narrow && n.function.params.iter().any(|p| n.function.ty(p.var).dtype == options.dtype);
        let stored = |d: DType| if narrow && (!said || d == options.dtype) { options.dtype } else { DType::F32 };
        let names = n.weights();
        let list = n.function.params.iter().filter(|p| names.contains(&p.name)).filter_map(|p| Some((p.name.clone(), weights.get(&p.name)?.shape().to_vec(), stored(n.function.ty(p.var).dtype))));
        let layout = Rc::new(Layout::new(list));
        let weights = Flat::zeros(&device, &layout, |d| d).map_err(Error::new)?;
        Ok(Some(Resident { device, weights, gradient: None, lent: Weak::new(), sums: BTreeMap::new() }))
    }
    /// Gives a program the weights, and a place for their gradients.
    fn bind(&mut self, p: &mut Program, gradient: bool) -> Result<(), String> {
        let names: Vec<Name> = self.weights.layout().tensors().map(|(n, _)| n.clone()).collect();
        for n in &names {
            let (place, dtype) = self.weights.place(n)?;
            match p.in_memory(n) {
                Some(d) if d == dtype => p.bind_param(n, &place)?,
                other => return Err(format!("weight `{n}` is {dtype} in memory, but the program reads {}", other.map_or("nothing", DType::name))),
            }
        }
        if !gradient {
            return Ok(());
        }
        let flat = match &self.gradient {
            Some(f) => f,
            None => self.gradient.insert(Flat::zeros(&self.device, self.weights.layout(), |_| DType::F32)?),
        };
        names.iter().try_for_each(|n| p.bind_result(&format!("{n}.ct"), &flat.place(n)?.0))
    }
    /// Gradients that somebody still holds get memory of their own.
    fn keep_lent(&mut self) -> Result<(), String> {
        if let Some(held) = self.lent.upgrade() {
            let own = held.borrow().copied(&self.device)?;
            *held.borrow_mut() = own;
            self.lent = Weak::new();
        }
        Ok(())
    }
    /// The gradients that were just written.
    fn lend(&mut self) -> Result<Rc<RefCell<Flat>>, String> {
        let flat = self.gradient.clone().ok_or("no program wrote gradients")?;
        let handle = Rc::new(RefCell::new(flat));
        self.lent = Rc::downgrade(&handle);
        Ok(handle)
    }
    /// `a ← a + b`; the number of launches.
    fn add(&mut self, a: &Flat, b: &Flat, options: &Options) -> Result<u64, String> {
        if a.layout() != b.layout() {
            return Err("gradients of two networks".into());
        }
        let mut launches = 0;
        for (group, rows) in a.layout().groups() {
            if !self.sums.contains_key(&group) {
                let table = Type::new(DType::F32, vec![Axis::sym("R"), Axis::new("C", Dim::fixed(ROW as i64))]);
                let mut f = Builder::new("sum");
                let (x, y) = (f.param("a", table.clone()), f.param("b", table));
                let sum = f.add(x, y).map_err(|e| e.to_string())?;
                f.result("sum", sum);
                let p = Program::new(&f.finish(), &[], &Bindings::from([("R".into(), rows as i64)]), &Options { dtype: DType::F32, ..options.clone() })?;
                self.sums.insert(group, p);
            }
            let p = self.sums.get_mut(&group).ok_or("a program that was just made is gone")?;
            if !p.may_replace("a", "sum") {
                return Err("a sum cannot be where its operand is".into());
            }
            p.bind_param("a", &a.group(group)?)?;
            p.bind_param("b", &b.group(group)?)?;
            p.bind_result("sum", &a.group(group)?)?;
            let done = p.run(&[]);
            // What it was bound to goes when its owner lets go of it.
            p.unbind(&["a", "b", "sum"]);
            done?;
            launches += p.launches() as u64;
        }
        Ok(launches)
    }
}

/// Where a network is evaluated, or a direction in which: samples and one value of each time for each of them.
pub struct Point<'a> {
    /// `[B, …]`.
    pub x: &'a Rows,
    /// Of each of the network's times, B values of u.
    pub times: Vec<&'a [f64]>,
}

impl<'a> Point<'a> {
    /// With one time.
    pub fn new(x: &'a Rows, u: &'a [f64]) -> Point<'a> {
        Point { x, times: vec![u] }
    }
}
