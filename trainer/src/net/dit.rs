//! A small class-conditional transformer for images: patches of 2 × 2, adaptive layer norms whose gates start at zero (DiT, Peebles & Xie
//! 2023, arXiv 2212.09748), q and k normalised without weights, learned positions. It predicts the velocity of a rectified flow at time
//! u in [0, 1].
//!
//! Time is embedded by cosines and sines of a few frequencies, evenly spaced in the logarithm between bounds that the configuration has:
//! from 0.5 to 10 its derivative along u is as smooth as distillation by tangents needs it; up to 1000 it is not.
//!
//! ```text
//! h = patches·Wᵀ + b + positions      c = silu(time MLP(sinusoid(u)) + class)
//! block:  [shift, scale, gate, shift, scale, gate] = Wm·c      h += gate·Wo·attend(norm(h)·(1 + scale) + shift)      h += gate·MLP(…)
//! ```

use super::graph::{Graph, Init, Result, Weight, axis};
use super::precision::{Part, Precision};
use super::{Network, Time, Variant};
use ir::builder::Builder;
use ir::diagnostic::Error;
use ir::dim::Dim;
use ir::graph::{Function, Var};
use ir::nn;
use ir::prim::{Callee, Elementwise, Movement};
use ir::types::{Axis, DType, Type};

/// A network's sizes, as its `config.json` has them, `_class_name` being `ImageTransformer2DModel`.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)] // the names are diffusers' where it has them
pub struct Config {
    pub sample_size: [i64; 2],
    pub patch_size: i64,
    pub in_channels: i64,
    pub out_channels: i64,
    pub num_attention_heads: i64,
    pub attention_head_dim: i64,
    pub num_layers: i64,
    pub ffn_dim: i64,
    /// Classes; there is one row more, for no class, behind them.
    pub num_classes: i64,
    /// Of the time embedding: how many frequencies, the lowest, the highest.
    pub time_frequencies: i64,
    pub time_range: [f64; 2],
    pub eps: f64,
}

impl Config {
    /// The width D.
    pub fn dim(&self) -> i64 {
        self.num_attention_heads * self.attention_head_dim
    }
    /// The network of the digits: 8 × 8 pixels, ten classes, 218 thousand parameters.
    pub fn digits() -> Config {
        Config {
            sample_size: [8, 8],
            patch_size: 2,
            in_channels: 1,
            out_channels: 1,
            num_attention_heads: 4,
            attention_head_dim: 16,
            num_layers: 3,
            ffn_dim: 192,
            num_classes: 10,
            time_frequencies: 32,
            time_range: [0.5, 10.0],
            eps: 1e-6,
        }
    }
    /// As its `config.json`.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "_class_name": super::config::DIT,
            "sample_size": self.sample_size, "patch_size": self.patch_size, "in_channels": self.in_channels, "out_channels": self.out_channels,
            "num_attention_heads": self.num_attention_heads, "attention_head_dim": self.attention_head_dim, "num_layers": self.num_layers,
            "ffn_dim": self.ffn_dim, "num_classes": self.num_classes, "time_frequencies": self.time_frequencies, "time_range": self.time_range, "eps": self.eps,
        })
    }
}

/// The network: `out [B,O,H,W]` of `hidden_states [B,C,H,W]`, `timestep [B]` and `class_labels` i32`[B]`, `num_classes` being no class. Variants: a second time,
/// `timespan [B]`, for networks that jump; the last block's tokens, `features [B,N,D]`, as a second result.
///
/// # Errors
/// A variant that it has not.
pub fn build(c: &Config, variant: &Variant, precision: Precision) -> Result<Network> {
    let plain = Variant { time: Time::PerSample, text: variant.text, image_tokens: None, span: variant.span, features: variant.features, ..Variant::default() };
    if *variant != plain {
        return Err(Error::new("ImageTransformer2DModel: it has hidden_states, timestep [B] and class_labels only"));
    }
    let mut g = Graph::new("dit", precision);
    let b = Axis::sym("B");
    let p = c.patch_size;
    let (hs, ws) = (axis("H", c.sample_size[0]), axis("W", c.sample_size[1]));
    let (ph, pw) = (axis("ph", p), axis("pw", p));
    let (y, x) = (axis("Y", c.sample_size[0] / p), axis("X", c.sample_size[1] / p));
    let tokens = axis("N", c.sample_size[0] / p * (c.sample_size[1] / p));
    let (d, e) = (axis("D", c.dim()), axis("E", c.dim()));
    let channels = axis("C", c.in_channels);

    let image = g.input("hidden_states", Part::Latent, vec![b.clone(), channels.clone(), hs.clone(), ws.clone()]);
    let t = g.input("timestep", Part::Time, vec![b.clone()]);
    let labels = g.b.param("class_labels", Type::new(DType::I32, vec![b.clone()]));

    let v = g.split(image, "H", vec![y.clone(), ph.clone()])?;
    let v = g.split(v, "W", vec![x.clone(), pw.clone()])?;
    let v = g.permute(v, &["B", "Y", "X", "C", "ph", "pw"])?;
    let v = g.merge(v, &["C", "ph", "pw"], axis("V1", c.in_channels * p * p))?;
    let v = g.merge(v, &["Y", "X"], tokens.clone())?;
    let h = g.linear(v, "patch_embed.proj", &d, true)?;
    let at = g.weight("pos_embed", Part::Vector, vec![tokens.clone(), d.clone()], Init::Normal(0.02));
    let (h, at) = (g.cast(h, Part::Stream)?, g.cast(at, Part::Stream)?);
    let mut h = g.b.add(h, at)?;

    let embed = waves(&g, c)?;
    let of_t = g.b.call(&embed, &[t])?[0];
    let (parts, start) = ([Part::Norm, Part::Vector], Init::Normal(0.02));
    let u = g.linear_from(of_t, "time_embed.linear_1", &axis("R1", c.dim()), true, parts, start)?;
    let u = nn::silu(&mut g.b, u)?;
    let u = g.linear_from(u, "time_embed.linear_2", &d, true, parts, start)?;
    let u = if variant.span {
        let s = span(&mut g, c, &embed)?;
        g.b.add(u, s)?
    } else {
        u
    };
    let table = g.weight("class_embed.weight", Part::Vector, vec![axis("Z", c.num_classes + 1), d.clone()], Init::Normal(0.02));
    let table = g.cast(table, Part::Norm)?;
    let class = row(&mut g, table, labels, "Z")?;
    let condition = g.b.add(u, class)?;
    let condition = nn::silu(&mut g.b, condition)?;

    let f = Dit { c, d: d.clone(), e, tokens: tokens.clone() };
    let (block, weights) = f.block(precision, &g, h, condition)?;
    let block = Callee(block.into());
    for i in 0..c.num_layers {
        h = g.call(&block, &weights, &[h, condition], &format!("blocks.{i}"))?[0];
    }
    let [shift, scale] = f.modulation(&mut g, "norm_out.linear", condition, axis("S2", 2), "R3")?;
    let z = f.modulated(&mut g, h, shift, scale)?;
    let v = g.linear_from(z, "proj_out", &axis("V", c.out_channels * p * p), true, [Part::Operand, Part::Matrix], Init::Constant(0.0))?;
    let v = g.split(v, "V", vec![ph, pw, axis("O", c.out_channels)])?;
    let v = g.split(v, "N", vec![y, x])?;
    let v = g.permute(v, &["B", "O", "Y", "ph", "X", "pw"])?;
    let v = g.merge(v, &["Y", "ph"], hs)?;
    let v = g.merge(v, &["X", "pw"], ws)?;
    let v = g.cast(v, Part::Latent)?;
    g.b.result("out", v);
    if variant.features {
        g.b.result("features", h);
    }
    Ok(Network::new(g, vec![]))
}

/// The embedding of a span of time, `out [B,D]` of `timespan [B]`, alone: at span 0 it is what a network that does not jump has in the bias of its time's embedding.
///
/// # Errors
/// None for a checked configuration.
pub fn span_embedding(c: &Config, precision: Precision) -> Result<Network> {
    let mut g = Graph::new("span", precision);
    let embed = waves(&g, c)?;
    let s = span(&mut g, c, &embed)?;
    g.b.result("out", s);
    Ok(Network::new(g, vec![]))
}

/// Begins as nothing, so that weights without a span are those of a network that has one.
fn span(g: &mut Graph, c: &Config, embed: &Callee) -> Result<Var> {
    let (parts, d) = ([Part::Norm, Part::Vector], axis("D", c.dim()));
    let span = g.input("timespan", Part::Time, vec![Axis::sym("B")]);
    let of_span = g.b.call(embed, &[span])?[0];
    let s = g.linear_from(of_span, "span_embed.linear_1", &axis("R2", c.dim()), true, parts, Init::Normal(0.02))?;
    let s = nn::silu(&mut g.b, s)?;
    g.linear_from(s, "span_embed.linear_2", &d, true, parts, Init::Constant(0.0))
}

/// The function that makes cosines, then sines, of a time at the configured frequencies.
fn waves(g: &Graph, c: &Config) -> Result<Callee> {
    let mut b = Builder::new("waves");
    let d = g.dtype(Part::Time);
    let t = b.param("t", Type::new(d, vec![Axis::sym("B")]));
    let k = b.iota(axis("k", c.time_frequencies))?;
    let k = b.elementwise(Elementwise::Convert(d), &[k])?;
    let [low, high] = c.time_range;
    let steps = (c.time_frequencies - 1).max(1) as f64;
    let (slope, first) = (b.constant((high / low).ln() / steps, d), b.constant(low.ln(), d));
    let exponent = b.mul(k, slope)?;
    let exponent = b.add(exponent, first)?;
    let f = b.elementwise(Elementwise::Exp, &[exponent])?;
    let angle = b.mul(t, f)?;
    let angle = b.permute(angle, &["B".into(), "k".into()])?;
    let (cos, sin) = (b.elementwise(Elementwise::Cos, &[angle])?, b.elementwise(Elementwise::Sin, &[angle])?);
    let joined = Movement::Concat { axes: vec!["k".into(), "k".into()], into: axis("G", 2 * c.time_frequencies) };
    let v = b.movement(joined, &[cos, sin])?;
    b.result("waves", v);
    Ok(Callee(b.finish().into()))
}

/// The rows of `table[Z,D]` at `labels`: a product with zeros and ones.
fn row(g: &mut Graph, table: Var, labels: Var, along: &str) -> Result<Var> {
    let a = g.b.ty(table).axis(along).cloned().ok_or_else(|| Error::new("class_embed: no axis"))?;
    let at = g.b.iota(a.clone())?;
    let hit = g.b.elementwise(Elementwise::Eq, &[labels, at])?;
    let d = g.b.dtype(table);
    let (one, zero) = (g.b.constant(1.0, d), g.b.constant(0.0, d));
    let hit = g.b.elementwise(Elementwise::Select, &[hit, one, zero])?;
    g.b.contract(hit, table, &[a.name])
}

struct Dit<'a> {
    c: &'a Config,
    d: Axis,
    e: Axis,
    tokens: Axis,
}

impl Dit<'_> {
    /// Rows of modulation of a condition; all zero to begin with.
    fn modulation<const R: usize>(&self, g: &mut Graph, key: &str, condition: Var, rows: Axis, wide: &str) -> Result<[Var; R]> {
        let y = g.linear_from(condition, key, &axis(wide, R as i64 * self.c.dim()), true, [Part::Norm, Part::Matrix], Init::Constant(0.0))?;
        let y = g.split(y, wide, vec![rows.clone(), self.d.clone()])?;
        g.rows(y, &rows.name)
    }
    fn modulated(&self, g: &mut Graph, h: Var, shift: Var, scale: Var) -> Result<Var> {
        let z = g.layer_norm(h, &self.d, self.c.eps, None)?;
        nn::modulate(&mut g.b, z, shift, scale)
    }
    fn block(&self, precision: Precision, outer: &Graph, h: Var, condition: Var) -> Result<(Function, Vec<Weight>)> {
        let c = self.c;
        let mut g = Graph::new("dit.block", precision);
        let h = g.b.param("h", outer.b.ty(h).clone());
        let condition = g.b.param("condition", outer.b.ty(condition).clone());
        let [shift1, scale1, gate1, shift2, scale2, gate2] = self.modulation(&mut g, "norm1.linear", condition, axis("S", 6), "R")?;
        let z = self.modulated(&mut g, h, shift1, scale1)?;
        let qkv: [Var; 3] = {
            let y = g.linear(z, "attn1.to_qkv", &axis("R4", 3 * c.dim()), true)?;
            let y = g.split(y, "R4", vec![axis("S3", 3), axis("A", c.num_attention_heads), axis("K", c.attention_head_dim)])?;
            g.rows(y, "S3")?
        };
        let unit = |g: &mut Graph, v: Var| -> Result<Var> {
            let v = g.cast(v, Part::Norm)?;
            nn::rms_norm(&mut g.b, v, &"K".into(), c.eps, None)
        };
        let (q, k) = (unit(&mut g, qkv[0])?, unit(&mut g, qkv[1])?);
        let keys = Axis::new("M", Dim::clone(&self.tokens.size));
        let (k, v) = (g.rename(k, "N", keys.clone())?, g.rename(qkv[2], "N", keys)?);
        let o = g.heads(q, k, v, &self.e)?;
        let y = g.linear(o, "attn1.to_out.0", &self.d, true)?;
        let h = g.residual(h, Some(gate1), y)?;
        let z = self.modulated(&mut g, h, shift2, scale2)?;
        let y = g.linear(z, "ff.net.0.proj", &axis("U", c.ffn_dim), true)?;
        let y = nn::gelu_tanh(&mut g.b, y)?;
        let y = g.linear(y, "ff.net.2", &self.d, true)?;
        let h = g.residual(h, Some(gate2), y)?;
        g.b.result("y", h);
        Ok(g.finish())
    }
}
