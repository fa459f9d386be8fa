//! Latents as tokens and back, positions, and time: what stands before and behind the blocks of every network here.
//!
//! Axes: `B` batch, `C` channels in and `O` out, `T H W` the latent, `F Y X` the grid of patches, `pt ph pw` within a patch, `N = F·Y·X`
//! tokens in row-major order, `D` width.

use super::graph::{Graph, Result, axis};
use super::precision::Part;
use ir::builder::Builder;
use ir::diagnostic::Error;
use ir::dim::Dim;
use ir::graph::Var;
use ir::nn;
use ir::prim::{Callee, Elementwise, Movement};
use ir::types::{Axis, Type};

/// Sizes of a latent and of its grid of patches.
#[derive(Clone)]
pub(super) struct Grid {
    /// `T H W`.
    pub latent: [Axis; 3],
    /// `F Y X`.
    pub grid: [Axis; 3],
    /// `pt ph pw`.
    pub patch: [Axis; 3],
    /// `N`.
    pub tokens: Axis,
}

impl Grid {
    pub fn new(patch: [i64; 3]) -> Grid {
        let latent = ["T", "H", "W"].map(Axis::sym);
        let inside = [axis("pt", patch[0]), axis("ph", patch[1]), axis("pw", patch[2])];
        let part = |i: usize, n: &str| Axis::new(n, latent[i].size.checked_div(&inside[i].size).unwrap_or_else(|| latent[i].size.clone()));
        let grid = [part(0, "F"), part(1, "Y"), part(2, "X")];
        let tokens = Axis::new("N", grid.iter().fold(Dim::fixed(1), |n, a| &n * &a.size));
        Grid { latent, grid, patch: inside, tokens }
    }
    /// The tokens once more, as keys.
    pub fn keys(&self) -> Axis {
        Axis::new("M", self.tokens.size.clone())
    }
    /// The patches of `x[…,T,H,W]`: `[…,F,pt,Y,ph,X,pw]`.
    pub fn patches(&self, g: &mut Graph, mut x: Var) -> Result<Var> {
        for i in 0..3 {
            x = g.split(x, &self.latent[i].name, vec![self.grid[i].clone(), self.patch[i].clone()])?;
        }
        Ok(x)
    }
    /// `[…,F,Y,X,…]` as `[…,N,…]`.
    pub fn flatten(&self, g: &mut Graph, x: Var) -> Result<Var> {
        g.merge(x, &["F", "Y", "X"], self.tokens.clone())
    }
    /// `[…,N,…]` as `[…,F,Y,X,…]`.
    pub fn unflatten(&self, g: &mut Graph, x: Var) -> Result<Var> {
        g.split(x, "N", self.grid.to_vec())
    }
    /// Tokens `y[B,N,V]` as a latent `[B,O,T,H,W]`; `order` is how V counts its parts, outermost first.
    pub fn unpatchify(&self, g: &mut Graph, y: Var, order: [&str; 4], channels: &Axis) -> Result<Var> {
        let part = |n: &str| self.patch.iter().find(|a| *a.name == *n).unwrap_or(channels).clone();
        let y = g.split(y, "V", order.map(part).to_vec())?;
        let y = self.unflatten(g, y)?;
        let mut y = g.permute(y, &["B", "O", "F", "pt", "Y", "ph", "X", "pw"])?;
        for ((grid, patch), latent) in self.grid.iter().zip(&self.patch).zip(&self.latent) {
            y = g.merge(y, &[&grid.name, &patch.name], latent.clone())?;
        }
        Ok(y)
    }
}

/// How rotary angles go along one axis of the grid.
pub(super) struct Rotary {
    /// Channels of a head that it turns.
    pub size: i64,
    /// The base of its frequencies `base^(−2j/size)`.
    pub base: f64,
    /// What a position is multiplied with.
    pub step: f64,
}

/// The channels of a head of size `d` for time, height and width: 2⌊d/6⌋ for the latter two, the rest for time.
pub(super) fn rotary_sizes(d: i64) -> [i64; 3] {
    let side = 2 * (d / 6);
    [d - 2 * side, side, side]
}

/// The function that makes cosines and sines of the rotary angles, `[N,P]` each, P half a head: the angles of time, height and width in turn.
pub(super) fn rotary(g: &Graph, grid: &Grid, along: &[Rotary; 3]) -> Result<Callee> {
    let mut b = Builder::new("rotary");
    let d = g.dtype(Part::Angle);
    let mut parts = vec![];
    let mut pairs = 0;
    for (i, r) in along.iter().enumerate() {
        let half = axis(["P1", "P2", "P3"][i], r.size / 2);
        pairs += r.size / 2;
        let j = b.iota(half)?;
        let j = b.elementwise(Elementwise::Convert(d), &[j])?;
        let slope = b.constant(-r.base.ln() * 2.0 / r.size as f64, d);
        let exponent = b.mul(j, slope)?;
        let frequency = b.elementwise(Elementwise::Exp, &[exponent])?;
        let at = b.iota(grid.grid[i].clone())?;
        let mut at = b.elementwise(Elementwise::Convert(d), &[at])?;
        if r.step != 1.0 {
            let step = b.constant(r.step, d);
            at = b.mul(at, step)?;
        }
        let angle = b.mul(at, frequency)?;
        let others = grid.grid.iter().enumerate().filter(|(k, _)| *k != i).map(|(_, a)| a.clone()).collect();
        let wide = b.movement(Movement::Broadcast(others), &[angle])?;
        parts.push(b.permute(wide, &["F".into(), "Y".into(), "X".into(), ["P1", "P2", "P3"][i].into()])?);
    }
    let joined = Movement::Concat { axes: ["P1", "P2", "P3"].map(Into::into).to_vec(), into: axis("P", pairs) };
    let angles = b.movement(joined, &parts)?;
    let angles = b.movement(Movement::Merge { axes: ["F", "Y", "X"].map(Into::into).to_vec(), into: grid.tokens.clone() }, &[angles])?;
    for (name, e) in [("cos", Elementwise::Cos), ("sin", Elementwise::Sin)] {
        let v = b.elementwise(e, &[angles])?;
        b.result(name, v);
    }
    Ok(Callee(b.finish().into()))
}

/// The function that makes the sinusoid `[…,S]` of times `t[…]` along the axis `S`: cosines, then sines, of frequencies `10000^(−k/half)`.
pub(super) fn sinusoid(g: &Graph, times: &[Axis], size: &Axis) -> Result<Callee> {
    let mut b = Builder::new("sinusoid");
    let t = b.param("t", Type::new(g.dtype(Part::Time), times.to_vec()));
    let e = nn::time_embedding(&mut b, t, size, 10_000.0)?;
    b.result("waves", e);
    Ok(Callee(b.finish().into()))
}

/// `x` resized to `to` along `from` by taking the nearest position below, element `⌊i·from/to⌋`: a product with zeros and ones, so that
/// it has a transpose.
pub(super) fn nearest(g: &mut Graph, x: Var, from: &str, to: &Axis) -> Result<Var> {
    let from = g.b.ty(x).axis(from).cloned().ok_or_else(|| Error::new(format!("nearest: no axis `{from}`")))?;
    let integer = ir::types::DType::I32;
    let (i, j) = (g.b.iota(to.clone())?, g.b.iota(from.clone())?);
    let (have, want) = (g.b.size(from.size.clone(), integer)?, g.b.size(to.size.clone(), integer)?);
    // j·to <= i·from < (j + 1)·to
    let (at, low) = (g.b.mul(i, have)?, g.b.mul(j, want)?);
    let high = g.b.add(low, want)?;
    let (above, below) = (g.b.elementwise(Elementwise::Le, &[low, at])?, g.b.elementwise(Elementwise::Lt, &[at, high])?);
    let hit = g.b.elementwise(Elementwise::And, &[above, below])?;
    let d = g.b.dtype(x);
    let (one, zero) = (g.b.constant(1.0, d), g.b.constant(0.0, d));
    let weight = g.b.elementwise(Elementwise::Select, &[hit, one, zero])?;
    g.b.contract(x, weight, &[from.name])
}
