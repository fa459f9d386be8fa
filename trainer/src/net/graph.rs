//! What all networks are written with: the IR's builder, with parameters under their checkpoint keys and conversions from the precision
//! table. Layers are `ir::nn`'s; a block is a function of its own, called once a layer with that layer's weights.

use super::precision::{Part, Precision};
use ir::builder::Builder;
use ir::diagnostic::Error;
use ir::dim::{Dim, Name};
use ir::graph::{Function, Var};
use ir::nn;
use ir::prim::{Callee, Elementwise, Movement};
use ir::types::{Axis, DType, Type};

pub(super) type Result<T> = std::result::Result<T, Error>;

/// How a parameter starts.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Init {
    /// Every element.
    Constant(f64),
    /// Normal with this standard deviation.
    Normal(f64),
    /// Uniform between minus and plus this.
    Uniform(f64),
}

/// A parameter of a network: what a checkpoint holds.
#[derive(Clone, PartialEq, Debug)]
pub struct Weight {
    /// The checkpoint key.
    pub name: Name,
    /// Sizes.
    pub shape: Vec<usize>,
    /// How it starts.
    pub init: Init,
}

impl Weight {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An axis of a fixed size.
pub(super) fn axis(name: &str, size: i64) -> Axis {
    Axis::new(name, Dim::fixed(size))
}

/// A function under construction: a network, or a block of one.
pub(super) struct Graph {
    pub b: Builder,
    pub precision: Precision,
    weights: Vec<Weight>,
}

impl Graph {
    pub fn new(name: &str, precision: Precision) -> Graph {
        Graph { b: Builder::new(name), precision, weights: vec![] }
    }
    /// The function, and its weights in order of parameters.
    pub fn finish(self) -> (Function, Vec<Weight>) {
        (self.b.finish(), self.weights)
    }
    pub fn dtype(&self, part: Part) -> DType {
        self.precision.dtype(part)
    }
    /// `x` as `part` has it.
    pub fn cast(&mut self, x: Var, part: Part) -> Result<Var> {
        let to = self.dtype(part);
        if self.b.dtype(x) == to { Ok(x) } else { self.b.elementwise(Elementwise::Convert(to), &[x]) }
    }
    /// An argument.
    pub fn input(&mut self, name: &str, part: Part, axes: Vec<Axis>) -> Var {
        let ty = Type::new(self.dtype(part), axes);
        self.b.param(name, ty)
    }
    /// A parameter under its key.
    pub fn weight(&mut self, name: &str, part: Part, axes: Vec<Axis>, init: Init) -> Var {
        let shape = axes.iter().map(|a| a.size.as_fixed().unwrap_or(0) as usize).collect();
        self.weights.push(Weight { name: name.into(), shape, init });
        self.input(name, part, axes)
    }
    /// `x·wᵀ [+ bias]` under the keys `KEY.weight [E,D]` and `KEY.bias [E]`, D being the last axis of x. The result is an operand of what
    /// follows. Starts as PyTorch's linear layers do, uniform within 1/√D.
    pub fn linear(&mut self, x: Var, key: &str, out: &Axis, bias: bool) -> Result<Var> {
        let bound = self.last_size(x).map_or(0.0, |d| (d as f64).powf(-0.5));
        self.linear_from(x, key, out, bias, [Part::Operand, Part::Matrix], Init::Uniform(bound))
    }
    /// [`Graph::linear`] with the parts of its operands, and its start; a bias starts at 0 where the weight starts as a constant.
    pub fn linear_from(&mut self, x: Var, key: &str, out: &Axis, bias: bool, [operand, matrix]: [Part; 2], init: Init) -> Result<Var> {
        let x = self.cast(x, operand)?;
        let Some(last) = self.b.ty(x).axes.last().cloned() else { return Err(Error::new(format!("{key}: the operand has no axis"))) };
        let w = self.weight(&format!("{key}.weight"), matrix, vec![out.clone(), last.clone()], init);
        let w = self.cast(w, operand)?;
        let y = self.b.contract(x, w, &[last.name])?;
        if !bias {
            return Ok(y);
        }
        let start = if matches!(init, Init::Uniform(_)) { init } else { Init::Constant(0.0) };
        let c = self.weight(&format!("{key}.bias"), Part::Vector, vec![out.clone()], start);
        // The sum is rounded once: bias and product are added in the wider type.
        let (y, c) = (self.cast(y, Part::Vector)?, self.cast(c, Part::Vector)?);
        self.b.add(y, c)
    }
    fn last_size(&self, x: Var) -> Option<i64> {
        self.b.ty(x).axes.last().and_then(|a| a.size.as_fixed())
    }
    /// A norm's weight, ones to begin with.
    pub fn scale(&mut self, key: &str, a: &Axis) -> Var {
        self.weight(key, Part::Vector, vec![a.clone()], Init::Constant(1.0))
    }
    /// Root mean square norm over `a` with the weight `key`.
    pub fn rms_norm(&mut self, x: Var, a: &Axis, eps: f64, key: &str) -> Result<Var> {
        let x = self.cast(x, Part::Norm)?;
        let w = self.scale(key, a);
        let w = self.cast(w, Part::Norm)?;
        nn::rms_norm(&mut self.b, x, &a.name, eps, Some(w))
    }
    /// Layer norm over `a`, with `KEY.weight` and `KEY.bias` if there is a key.
    pub fn layer_norm(&mut self, x: Var, a: &Axis, eps: f64, key: Option<&str>) -> Result<Var> {
        let x = self.cast(x, Part::Norm)?;
        let (mut w, mut c) = (None, None);
        if let Some(key) = key {
            let v = self.scale(&format!("{key}.weight"), a);
            w = Some(self.cast(v, Part::Norm)?);
            let v = self.weight(&format!("{key}.bias"), Part::Vector, vec![a.clone()], Init::Constant(0.0));
            c = Some(self.cast(v, Part::Norm)?);
        }
        nn::layer_norm(&mut self.b, x, &a.name, eps, w, c)
    }
    /// `x + gate·y`, on the residual stream.
    pub fn residual(&mut self, x: Var, gate: Option<Var>, y: Var) -> Result<Var> {
        let mut y = self.cast(y, Part::Norm)?;
        if let Some(g) = gate {
            y = self.b.mul(y, g)?;
        }
        let (x, y) = (self.cast(x, Part::Stream)?, self.cast(y, Part::Stream)?);
        self.b.add(x, y)
    }
    /// `Wo·softmax(q·k)·v` over heads: q `[B,N,A,K]`, k and v `[B,M,A,K]`; the result is `[B,N,E]`, E the heads side by side.
    pub fn heads(&mut self, q: Var, k: Var, v: Var, merged: &Axis) -> Result<Var> {
        let (q, k, v) = (self.cast(q, Part::Operand)?, self.cast(k, Part::Operand)?, self.cast(v, Part::Operand)?);
        let o = nn::attention(&mut self.b, q, k, v, None)?;
        // Scores have the queries' axes, then the keys'; the sum over keys leaves [B,N,A,K].
        self.b.movement(Movement::Merge { axes: vec!["A".into(), "K".into()], into: merged.clone() }, &[o])
    }
    /// The last axis `E` as heads.
    pub fn split_heads(&mut self, x: Var, heads: i64, size: i64) -> Result<Var> {
        self.split(x, "E", vec![axis("A", heads), axis("K", size)])
    }
    pub fn split(&mut self, x: Var, from: &str, into: Vec<Axis>) -> Result<Var> {
        self.b.movement(Movement::Split { axis: from.into(), into }, &[x])
    }
    pub fn merge(&mut self, x: Var, from: &[&str], into: Axis) -> Result<Var> {
        self.b.movement(Movement::Merge { axes: from.iter().map(|n| (*n).into()).collect(), into }, &[x])
    }
    pub fn rename(&mut self, x: Var, from: &str, to: Axis) -> Result<Var> {
        self.b.movement(Movement::Rename { from: from.into(), to }, &[x])
    }
    pub fn index(&mut self, x: Var, axis: &str, at: i64) -> Result<Var> {
        self.b.movement(Movement::Index { axis: axis.into(), at: Dim::fixed(at) }, &[x])
    }
    pub fn permute(&mut self, x: Var, order: &[&str]) -> Result<Var> {
        self.b.permute(x, &order.iter().map(|n| (*n).into()).collect::<Vec<Name>>())
    }
    /// The rows 0, 1, … of `x` along `axis`.
    pub fn rows<const N: usize>(&mut self, x: Var, axis: &str) -> Result<[Var; N]> {
        let mut rows = [x; N];
        for (i, r) in rows.iter_mut().enumerate() {
            *r = self.index(x, axis, i as i64)?;
        }
        Ok(rows)
    }
    /// Calls `block` with `args` for its first parameters and, for its weights, new parameters of this function: `PREFIX.KEY`.
    pub fn call(&mut self, block: &Callee, weights: &[Weight], args: &[Var], prefix: &str) -> Result<Vec<Var>> {
        let mut all = args.to_vec();
        for (p, w) in block.params[args.len()..].iter().zip(weights) {
            let name: Name = format!("{prefix}.{}", w.name).into();
            self.weights.push(Weight { name: name.clone(), ..w.clone() });
            all.push(self.b.param(name, block.ty(p.var).clone()));
        }
        self.b.call(block, &all)
    }
}
