//! The Cosmos-Predict2 transformer (NVIDIA 2025) as diffusers' `CosmosTransformer3DModel` has it: text to image, and video to world with a
//! condition mask and a time per frame; Predict2.5's projection of the text; the older learned positions.
//!
//! ```text
//! h = W·patches of [latent, condition mask, padding mask]      s = sinusoid(t)      temb = L₂·silu(L₁·s)      e = rms(s)
//! each third of a block:  [shift, scale, gate] = B₂·B₁·silu(e) + temb      h += gate·f(norm(h)·(1 + scale) + shift)
//!     f: attention to itself (rope), attention to the text, W₂·gelu(W₁·z)
//! out = P·(norm(h)·(1 + scale) + shift)      [shift, scale] = B₂·B₁·silu(e) + temb[: 2D]
//! ```
//!
//! q and k are normalised a head at a time. No layer has a bias.

use super::graph::{Graph, Init, Result, Weight, axis};
use super::grid::{Grid, Rotary, nearest, rotary, rotary_sizes, sinusoid};
use super::precision::{Part, Precision};
use super::{Network, Resize, Time, Variant};
use ir::diagnostic::Error;
use ir::dim::Dim;
use ir::graph::{Function, Var};
use ir::nn;
use ir::prim::{Callee, Elementwise, Movement};
use ir::types::Axis;

/// Of layer norms and of the time embedding's norm; they are not configured.
const EPS: f64 = 1e-6;
/// Of q's and k's norms in diffusers; the original has 1e-6.
const QK_EPS: f64 = 1e-5;
/// Frames a second for which a frame's position is its number.
const BASE_FPS: f64 = 24.0;

/// A network's sizes, under the names of diffusers' configuration.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)] // the names are diffusers'
pub struct Config {
    pub in_channels: i64,
    pub out_channels: i64,
    pub num_attention_heads: i64,
    pub attention_head_dim: i64,
    pub num_layers: i64,
    /// The feed-forward width, `mlp_ratio` times D.
    pub ffn_dim: i64,
    pub text_embed_dim: i64,
    pub adaln_lora_dim: i64,
    pub max_size: [i64; 3],
    pub patch_size: [i64; 3],
    pub rope_scale: [f64; 3],
    pub concat_padding_mask: bool,
    /// `extra_pos_embed_type: "learnable"`.
    pub learned_positions: bool,
    /// `crossattn_proj_in_channels`, with `use_crossattn_projection`.
    pub crossattn_proj: Option<i64>,
}

impl Config {
    /// The width D.
    pub fn dim(&self) -> i64 {
        self.num_attention_heads * self.attention_head_dim
    }
}

struct Cosmos<'a> {
    c: &'a Config,
    grid: Grid,
    d: Axis,
    e: Axis,
    per_frame: bool,
    qk_eps: f64,
}

/// What blocks are modulated by.
#[derive(Clone, Copy)]
struct Embedded {
    /// `silu(rms(s)) […,D]`.
    e: Var,
    /// `[…,S,D]`: three rows.
    temb: Var,
}

/// The network.
///
/// # Errors
/// A variant that it has not.
pub fn build(c: &Config, variant: &Variant, precision: Precision) -> Result<Network> {
    let refuse = |what: &str| Err(Error::new(format!("CosmosTransformer3DModel: {what}")));
    if variant.image {
        return refuse("it has no encoder_hidden_states_image");
    }
    match (c.concat_padding_mask, variant.padding_mask) {
        (true, None) => return refuse("concat_padding_mask is true, so padding_mask [1,1,H,W] is needed, zeros where nothing is padding"),
        (false, Some(_)) => return refuse("padding_mask is given, but concat_padding_mask is false"),
        _ => {}
    }
    let per_frame = match variant.time {
        Time::PerSample => false,
        Time::PerFrame if c.patch_size[0] != 1 => return refuse("timestep per frame needs patches of one frame"),
        Time::PerFrame => true,
        Time::PerToken => return refuse("timestep is [B], or [B,1,T,1,1] per frame"),
    };
    if let Some(f) = variant.fps.filter(|f| f.is_nan() || *f <= 0.0) {
        return refuse(&format!("fps is {f}, but must be positive"));
    }
    let grid = Grid::new(c.patch_size);
    let mut g = Graph::new("cosmos", precision);
    let w = Cosmos { c, d: axis("D", c.dim()), e: axis("E", c.dim()), per_frame, qk_eps: variant.qk_eps.unwrap_or(QK_EPS), grid };
    let b = Axis::sym("B");
    let [ts, hs, ws] = w.grid.latent.clone();
    let latent = c.in_channels - i64::from(variant.condition_mask);
    let x = g.input("hidden_states", Part::Latent, vec![b.clone(), axis("C", latent), ts.clone(), hs.clone(), ws.clone()]);
    let one = |n: &str| axis(n, 1);
    let times = if per_frame { vec![b.clone(), one("one1"), ts.clone(), one("one2"), one("one3")] } else { vec![b.clone()] };
    let t = g.input("timestep", Part::Time, times);
    let (text, wide) = (variant.text.map_or_else(|| Axis::sym("L"), |n| axis("L", n)), c.crossattn_proj.unwrap_or(c.text_embed_dim));
    let ctx = g.input("encoder_hidden_states", Part::Latent, vec![b.clone(), text, axis("Q", wide)]);
    let mut channels = vec![(x, "C")];
    if variant.condition_mask {
        channels.push((g.input("condition_mask", Part::Latent, vec![b.clone(), one("C1"), ts.clone(), hs.clone(), ws.clone()]), "C1"));
    }
    if let Some(resize) = variant.padding_mask {
        channels.push((w.padding(&mut g, resize)?, "C2"));
    }

    let all = axis("CC", c.in_channels + i64::from(c.concat_padding_mask));
    let x = if let [(x, _)] = channels.as_slice() {
        g.rename(*x, "C", all.clone())?
    } else {
        let joined = Movement::Concat { axes: channels.iter().map(|(_, n)| (*n).into()).collect(), into: all.clone() };
        g.b.movement(joined, &channels.iter().map(|(v, _)| *v).collect::<Vec<_>>())?
    };
    let x = w.grid.patches(&mut g, x)?;
    let x = g.permute(x, &["B", "F", "Y", "X", "CC", "pt", "ph", "pw"])?;
    let size = axis("V1", all.size.as_fixed().unwrap_or(0) * c.patch_size.iter().product::<i64>());
    let x = g.merge(x, &["CC", "pt", "ph", "pw"], size)?;
    let x = w.grid.flatten(&mut g, x)?;
    let h = g.linear(x, "patch_embed.proj", &w.d, false)?;
    let mut h = g.cast(h, Part::Stream)?;

    let sizes = rotary_sizes(c.attention_head_dim);
    let along = |i: usize| {
        let n = sizes[i] as f64;
        let step = if i == 0 { variant.fps.map_or(1.0, |f| BASE_FPS / f) } else { 1.0 };
        Rotary { size: sizes[i], base: 10_000.0 * c.rope_scale[i].powf(n / (n - 2.0)), step }
    };
    let tables = g.b.call(&rotary(&g, &w.grid, &[along(0), along(1), along(2)])?, &[])?;
    let (cos, sin) = (g.cast(tables[0], Part::Norm)?, g.cast(tables[1], Part::Norm)?);

    let embedded = w.time(&mut g, t)?;
    let ctx = w.text(&mut g, ctx)?;
    let mut args = vec![h, embedded.e, embedded.temb, cos, sin, ctx];
    if c.learned_positions {
        args.push(w.positions(&mut g)?);
    }
    let (block, weights) = w.block(precision, &g, &args)?;
    let block = Callee(block.into());
    for i in 0..c.num_layers {
        args[0] = h;
        h = g.call(&block, &weights, &args, &format!("transformer_blocks.{i}"))?[0];
    }

    let [shift, scale] = w.modulation(&mut g, "norm_out", embedded, axis("S2", 2))?;
    let z = w.modulated(&mut g, h, shift, scale)?;
    let out = axis("O", c.out_channels);
    let y = g.linear(z, "proj_out", &axis("V", c.out_channels * c.patch_size.iter().product::<i64>()), false)?;
    let y = w.grid.unpatchify(&mut g, y, ["ph", "pw", "pt", "O"], &out)?;
    let y = g.cast(y, Part::Latent)?;
    g.b.result("out", y);
    let longest = (0..3).map(|i| c.max_size[i] / c.patch_size[i]).max().unwrap_or(0);
    let bound = |i: usize| if c.learned_positions { c.max_size[i] / c.patch_size[i] } else { longest };
    let limits = w.grid.grid.iter().enumerate().map(|(i, a)| (a.clone(), bound(i), c.patch_size[i])).collect();
    Ok(Network::new(g, limits))
}

impl Cosmos<'_> {
    /// `padding_mask [1,1,H',W']` at every sample and frame, of the latent's size: `[B,C2,T,H,W]`.
    fn padding(&self, g: &mut Graph, resize: Resize) -> Result<Var> {
        let [ts, hs, ws] = self.grid.latent.clone();
        let ones = [axis("one4", 1), axis("C2", 1)];
        let x = match resize {
            Resize::Same => g.input("padding_mask", Part::Latent, ones.iter().cloned().chain([hs, ws]).collect()),
            Resize::Nearest => {
                let x = g.input("padding_mask", Part::Latent, ones.iter().cloned().chain([Axis::sym("HH"), Axis::sym("WW")]).collect());
                let x = nearest(g, x, "HH", &hs)?;
                nearest(g, x, "WW", &ws)?
            }
        };
        let x = g.index(x, "one4", 0)?;
        let x = g.b.movement(Movement::Broadcast(vec![Axis::sym("B"), ts]), &[x])?;
        g.permute(x, &["B", "C2", "T", "H", "W"])
    }
    /// From the times: the sinusoid's norm, and three rows of the time MLP.
    fn time(&self, g: &mut Graph, mut t: Var) -> Result<Embedded> {
        let mut axes = vec![Axis::sym("B")];
        if self.per_frame {
            for one in ["one1", "one2", "one3"] {
                t = g.index(t, one, 0)?;
            }
            t = g.rename(t, "T", self.grid.grid[0].clone())?;
            axes.push(self.grid.grid[0].clone());
        }
        let waves = g.b.call(&sinusoid(g, &axes, &self.d)?, &[t])?[0];
        let (parts, start) = ([Part::Norm, Part::Vector], Init::Normal(0.02));
        let y = g.linear_from(waves, "time_embed.t_embedder.linear_1", &axis("R1", self.c.dim()), false, parts, start)?;
        let y = nn::silu(&mut g.b, y)?;
        let y = g.linear_from(y, "time_embed.t_embedder.linear_2", &axis("R", 3 * self.c.dim()), false, parts, start)?;
        let temb = g.split(y, "R", vec![axis("S", 3), self.d.clone()])?;
        let e = g.rms_norm(waves, &self.d, EPS, "time_embed.norm.weight")?;
        let e = nn::silu(&mut g.b, e)?;
        Ok(Embedded { e, temb })
    }
    /// The text as blocks read it, `[B,L,Q1]`.
    fn text(&self, g: &mut Graph, x: Var) -> Result<Var> {
        if self.c.crossattn_proj.is_none() {
            return g.cast(x, Part::Operand);
        }
        let y = g.linear(x, "crossattn_proj.0", &axis("Q1", self.c.text_embed_dim), true)?;
        let y = nn::gelu(&mut g.b, y)?;
        g.cast(y, Part::Operand)
    }
    /// Learned positions `[N,D]`: the sum of one row a frame, a line and a column, over its norm, `p / (1e-6 + |p|/√D)`.
    fn positions(&self, g: &mut Graph) -> Result<Var> {
        let mut sum: Option<Var> = None;
        for (i, n) in ["t", "h", "w"].iter().enumerate() {
            let whole = axis(["F1", "Y1", "X1"][i], self.c.max_size[i] / self.c.patch_size[i]);
            let w = g.weight(&format!("learnable_pos_embed.pos_emb_{n}"), Part::Vector, vec![whole.clone(), self.d.clone()], Init::Constant(0.0));
            let to = self.grid.grid[i].clone();
            let p = g.b.movement(Movement::Slice { axis: whole.name, to, start: Dim::fixed(0) }, &[w])?;
            let p = g.cast(p, Part::Norm)?;
            sum = Some(match sum {
                Some(s) => g.b.add(s, p)?,
                None => p,
            });
        }
        let p = sum.ok_or_else(|| Error::new("positions along no axis"))?;
        let p = g.permute(p, &["F", "Y", "X", "D"])?;
        let square = g.b.mul(p, p)?;
        let mean = nn::mean(&mut g.b, square, &["D".into()])?;
        let root = g.b.elementwise(Elementwise::Sqrt, &[mean])?;
        let d = g.b.dtype(p);
        let eps = g.b.constant(EPS, d);
        let below = g.b.add(root, eps)?;
        let p = g.b.div(p, below)?;
        let p = self.grid.flatten(g, p)?;
        g.cast(p, Part::Stream)
    }
    /// Rows of modulation, `[…,D]` each: `B₂·B₁·silu(e) + temb`, of temb as many rows as are asked for.
    fn modulation<const R: usize>(&self, g: &mut Graph, key: &str, m: Embedded, rows: Axis) -> Result<[Var; R]> {
        let parts = [Part::Norm, Part::Matrix];
        let y = g.linear_from(m.e, &format!("{key}.linear_1"), &axis("R2", self.c.adaln_lora_dim), false, parts, Init::Uniform((self.c.dim() as f64).powf(-0.5)))?;
        let y = g.linear_from(y, &format!("{key}.linear_2"), &axis(if R == 3 { "R" } else { "R3" }, R as i64 * self.c.dim()), false, parts, Init::Constant(0.0))?;
        let y = g.split(y, if R == 3 { "R" } else { "R3" }, vec![rows.clone(), self.d.clone()])?;
        let ys = g.rows::<R>(y, &rows.name)?;
        let ts = g.rows::<R>(m.temb, "S")?;
        let mut out = ys;
        for (o, t) in out.iter_mut().zip(ts) {
            *o = g.b.add(*o, t)?;
        }
        Ok(out)
    }
    /// `norm(h)·(1 + scale) + shift`.
    fn modulated(&self, g: &mut Graph, h: Var, shift: Var, scale: Var) -> Result<Var> {
        let z = g.layer_norm(h, &self.d, EPS, None)?;
        // A time per frame modulates a frame's tokens alike.
        let z = if self.per_frame { self.grid.unflatten(g, z)? } else { z };
        let z = nn::modulate(&mut g.b, z, shift, scale)?;
        if !self.per_frame {
            return Ok(z);
        }
        let z = g.permute(z, &["B", "F", "Y", "X", "D"])?;
        self.grid.flatten(g, z)
    }
    /// `h + gate·y`.
    fn gated(&self, g: &mut Graph, h: Var, gate: Var, y: Var) -> Result<Var> {
        if !self.per_frame {
            return g.residual(h, Some(gate), y);
        }
        let (h, y) = (self.grid.unflatten(g, h)?, self.grid.unflatten(g, y)?);
        let h = g.residual(h, Some(gate), y)?;
        let h = g.permute(h, &["B", "F", "Y", "X", "D"])?;
        self.grid.flatten(g, h)
    }

    /// One block, as a function of what `args` of `g` are and of its weights.
    fn block(&self, precision: Precision, outer: &Graph, args: &[Var]) -> Result<(Function, Vec<Weight>)> {
        let mut g = Graph::new("cosmos.block", precision);
        let names = ["h", "e", "temb", "cos", "sin", "context", "positions"];
        let v: Vec<Var> = args.iter().zip(names).map(|(a, n)| g.b.param(n, outer.b.ty(*a).clone())).collect();
        let [mut h, e, temb, cos, sin, ctx] = [v[0], v[1], v[2], v[3], v[4], v[5]];
        if let Some(p) = v.get(6) {
            h = g.b.add(h, *p)?;
        }
        let m = Embedded { e, temb };
        let [shift, scale, gate] = self.modulation(&mut g, "norm1", m, axis("S3", 3))?;
        let z = self.modulated(&mut g, h, shift, scale)?;
        let y = self.attend(&mut g, "attn1", z, z, Some((cos, sin)))?;
        h = self.gated(&mut g, h, gate, y)?;

        let [shift, scale, gate] = self.modulation(&mut g, "norm2", m, axis("S3", 3))?;
        let z = self.modulated(&mut g, h, shift, scale)?;
        let y = self.attend(&mut g, "attn2", z, ctx, None)?;
        h = self.gated(&mut g, h, gate, y)?;

        let [shift, scale, gate] = self.modulation(&mut g, "norm3", m, axis("S3", 3))?;
        let z = self.modulated(&mut g, h, shift, scale)?;
        let y = g.linear(z, "ff.net.0.proj", &axis("U", self.c.ffn_dim), false)?;
        let y = g.cast(y, Part::Norm)?;
        let y = nn::gelu(&mut g.b, y)?;
        let y = g.linear(y, "ff.net.2", &self.d, false)?;
        h = self.gated(&mut g, h, gate, y)?;
        g.b.result("y", h);
        Ok(g.finish())
    }

    /// `Wo·attend(q of x, k and v of source)`, turned by `tables` if given.
    fn attend(&self, g: &mut Graph, key: &str, x: Var, source: Var, tables: Option<(Var, Var)>) -> Result<Var> {
        let (heads, size) = (self.c.num_attention_heads, self.c.attention_head_dim);
        let own = tables.is_some();
        let head = axis("K", size);
        let turned = |g: &mut Graph, x: Var, n: &str| -> Result<Var> {
            let y = g.linear(x, &format!("{key}.to_{n}"), &self.e, false)?;
            let y = g.split_heads(y, heads, size)?;
            let y = g.rms_norm(y, &head, self.qk_eps, &format!("{key}.norm_{n}.weight"))?;
            match tables {
                Some((cos, sin)) => nn::rotate(&mut g.b, y, cos, sin, &head, &axis("P", size / 2), true),
                None => Ok(y),
            }
        };
        let q = turned(g, x, "q")?;
        let mut k = turned(g, source, "k")?;
        let v = g.linear(source, &format!("{key}.to_v"), &self.e, false)?;
        let mut v = g.split_heads(v, heads, size)?;
        if own {
            let keys = self.grid.keys();
            (k, v) = (g.rename(k, "N", keys.clone())?, g.rename(v, "N", keys)?);
        }
        let o = g.heads(q, k, v, &self.e)?;
        g.linear(o, &format!("{key}.to_out.0"), &self.d, false)
    }
}
