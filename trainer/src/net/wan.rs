//! The Wan2.1 transformer (Wan Team 2025, arXiv 2503.20314) as diffusers' `WanTransformer3DModel` and the original have it: text to video, and
//! image to video with the image's tokens in cross-attention.
//!
//! ```text
//! h = patches·Wᵀ + b            e = time MLP(sinusoid(t))        m = table + Wp·silu(e), six rows: shift, scale, gate, twice
//! block:  h += gate₁·Wo·attend(rope(rms(Wq·z)), rope(rms(Wk·z)), Wv·z)      z = norm(h)·(1 + scale₁) + shift₁
//!         h += Wo·(attend(rms(Wq·z), rms(Wk·c), Wv·c) [+ the same over image tokens])      z = norm(h), with weights
//!         h += gate₂·W₂·gelu(W₁·z)      z = norm(h)·(1 + scale₂) + shift₂
//! out = P·(norm(h)·(1 + scale) + shift)      [shift, scale] = table + e
//! ```
//!
//! q and k are normalised over all channels before they are heads; nothing masks the text's padding.

use super::graph::{Graph, Init, Result, Weight, axis};
use super::grid::{Grid, Rotary, rotary, rotary_sizes, sinusoid};
use super::precision::{Part, Precision};
use super::{Network, Time, Variant};
use ir::diagnostic::Error;
use ir::dim::Dim;
use ir::graph::{Function, Var};
use ir::nn;
use ir::prim::Movement;
use ir::types::Axis;

/// Tokens of a text, for which the image's are those before the last so many.
pub const TEXT_TOKENS: i64 = 512;
/// Of the image embedder's norms, which have PyTorch's default.
const IMAGE_EPS: f64 = 1e-5;

/// A network's sizes, under the names of diffusers' configuration.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)] // the names are diffusers'
pub struct Config {
    pub patch_size: [i64; 3],
    pub num_attention_heads: i64,
    pub attention_head_dim: i64,
    pub in_channels: i64,
    pub out_channels: i64,
    pub text_dim: i64,
    pub freq_dim: i64,
    pub ffn_dim: i64,
    pub num_layers: i64,
    pub cross_attn_norm: bool,
    pub eps: f64,
    pub image_dim: Option<i64>,
    pub added_kv_proj_dim: Option<i64>,
    pub rope_max_seq_len: i64,
    pub pos_embed_seq_len: Option<i64>,
}

impl Config {
    /// The width D.
    pub fn dim(&self) -> i64 {
        self.num_attention_heads * self.attention_head_dim
    }
}

struct Wan<'a> {
    c: &'a Config,
    grid: Grid,
    d: Axis,
    /// The heads side by side: of D's size, by another name.
    e: Axis,
    /// What a block's modulation depends on: `B`, or `B,N` where each token has its time.
    times: Vec<Axis>,
    text: Axis,
    image: Option<Axis>,
    qk_eps: f64,
}

/// The network.
///
/// # Errors
/// A variant that it has not.
pub fn build(c: &Config, variant: &Variant, precision: Precision) -> Result<Network> {
    let refuse = |what: &str| Err(Error::new(format!("WanTransformer3DModel: {what}")));
    if variant.condition_mask || variant.padding_mask.is_some() {
        return refuse("it has no condition_mask and no padding_mask");
    }
    if variant.fps.is_some() {
        return refuse("it has no fps: its positions are frames");
    }
    if variant.image && c.image_dim.is_none() {
        return refuse("encoder_hidden_states_image is given, but image_dim is null: this is a text-to-video network");
    }
    if !variant.image && c.image_dim.is_some() {
        return refuse(&format!("image_dim is {}, so encoder_hidden_states_image is needed", c.image_dim.unwrap_or(0)));
    }
    let grid = Grid::new(c.patch_size);
    let b = Axis::sym("B");
    let times = match variant.time {
        Time::PerSample => vec![b.clone()],
        Time::PerToken => vec![b.clone(), grid.tokens.clone()],
        Time::PerFrame => return refuse("timestep is [B] or [B,N], a time per token; per frame is Cosmos's"),
    };
    let text = variant.text.map_or_else(|| Axis::sym("L"), |n| axis("L", n));
    let mut g = Graph::new("wan", precision);
    let d = axis("D", c.dim());
    let mut w = Wan { c, e: axis("E", c.dim()), d, times, text, image: None, qk_eps: variant.qk_eps.unwrap_or(c.eps), grid };

    let [ts, hs, ws] = w.grid.latent.clone();
    let channels = axis("C", c.in_channels);
    let x = g.input("hidden_states", Part::Latent, vec![b.clone(), channels.clone(), ts, hs, ws]);
    let t = g.input("timestep", Part::Time, w.times.clone());
    let ctx = g.input("encoder_hidden_states", Part::Latent, vec![b.clone(), w.text.clone(), axis("Q", c.text_dim)]);
    let clip = match c.image_dim {
        Some(size) => Some(image_input(&mut g, c, variant, size)?),
        None => None,
    };

    // A convolution whose stride is its kernel is a product with each patch.
    let x = w.grid.patches(&mut g, x)?;
    let x = g.cast(x, Part::Operand)?;
    let [pt, ph, pw] = w.grid.patch.clone();
    let fan = (c.in_channels * c.patch_size.iter().product::<i64>()) as f64;
    let patch = Init::Uniform(fan.powf(-0.5));
    let k = g.weight("patch_embedding.weight", Part::Matrix, vec![w.d.clone(), channels.clone(), pt.clone(), ph.clone(), pw.clone()], patch);
    let k = g.cast(k, Part::Operand)?;
    let h = g.b.contract(x, k, &[channels.name, pt.name, ph.name, pw.name])?;
    let c0 = g.weight("patch_embedding.bias", Part::Vector, vec![w.d.clone()], patch);
    let (h, c0) = (g.cast(h, Part::Vector)?, g.cast(c0, Part::Vector)?);
    let h = g.b.add(h, c0)?;
    let h = g.permute(h, &["B", "F", "Y", "X", "D"])?;
    let h = w.grid.flatten(&mut g, h)?;
    let mut h = g.cast(h, Part::Stream)?;

    let along = rotary_sizes(c.attention_head_dim).map(|size| Rotary { size, base: 10_000.0, step: 1.0 });
    let tables = g.b.call(&rotary(&g, &w.grid, &along)?, &[])?;
    let (cos, sin) = (g.cast(tables[0], Part::Norm)?, g.cast(tables[1], Part::Norm)?);

    let (temb, rows) = w.time(&mut g, t)?;
    let ctx = w.text(&mut g, ctx)?;
    let mut args = vec![h, rows, cos, sin, ctx];
    if let Some(clip) = clip {
        let tokens = w.image(&mut g, clip)?;
        let (image, text) = w.context(&mut g, tokens, ctx, variant)?;
        args[4] = text;
        args.extend(image);
    }
    let (block, weights) = w.block(precision, &g, &args)?;
    let block = ir::prim::Callee(block.into());
    for i in 0..c.num_layers {
        args[0] = h;
        h = g.call(&block, &weights, &args, &format!("blocks.{i}"))?[0];
    }

    let table = g.weight("scale_shift_table", Part::Vector, vec![axis("one", 1), axis("S2", 2), w.d.clone()], Init::Normal((c.dim() as f64).powf(-0.5)));
    let table = g.index(table, "one", 0)?;
    let table = g.cast(table, Part::Norm)?;
    let [shift, scale] = g.rows(table, "S2")?;
    let (shift, scale) = (g.b.add(temb, shift)?, g.b.add(temb, scale)?);
    let z = w.modulated(&mut g, h, shift, scale)?;
    let out = axis("O", c.out_channels);
    let y = g.linear(z, "proj_out", &axis("V", c.out_channels * c.patch_size.iter().product::<i64>()), true)?;
    let y = w.grid.unpatchify(&mut g, y, ["pt", "ph", "pw", "O"], &out)?;
    let y = g.cast(y, Part::Latent)?;
    g.b.result("out", y);
    let limits = w.grid.grid.iter().zip(c.patch_size).map(|(a, p)| (a.clone(), c.rope_max_seq_len, p)).collect();
    Ok(Network::new(g, limits))
}

/// `encoder_hidden_states_image [B,I,J]`. With `pos_embed_seq_len` (first and last frame) there are two images a sample, one below the other
/// in the batch.
fn image_input(g: &mut Graph, c: &Config, variant: &Variant, size: i64) -> Result<Var> {
    let j = axis("J", size);
    let Some(n) = c.pos_embed_seq_len else {
        let i = variant.image_tokens.map_or_else(|| Axis::sym("I"), |n| axis("I", n));
        return Ok(g.input("encoder_hidden_states_image", Part::Latent, vec![Axis::sym("B"), i, j]));
    };
    if n % 2 == 1 || variant.image_tokens.is_some_and(|i| 2 * i != n) {
        return Err(Error::new(format!(
            "WanTransformer3DModel: pos_embed_seq_len is {n}, so encoder_hidden_states_image is [2*B,{},{size}], two images a sample; it has {} tokens an image",
            n / 2,
            variant.image_tokens.unwrap_or(n / 2)
        )));
    }
    let twice = Axis::new("BB", &Dim::fixed(2) * &Dim::sym("B"));
    let x = g.input("encoder_hidden_states_image", Part::Latent, vec![twice, axis("I1", n / 2), j]);
    let x = g.split(x, "BB", vec![Axis::sym("B"), axis("two", 2)])?;
    g.merge(x, &["two", "I1"], axis("I", n))
}

impl Wan<'_> {
    /// `norm(h)·(1 + scale) + shift`.
    fn modulated(&self, g: &mut Graph, h: Var, shift: Var, scale: Var) -> Result<Var> {
        let z = g.layer_norm(h, &self.d, self.c.eps, None)?;
        nn::modulate(&mut g.b, z, shift, scale)
    }
    /// The time embedding `[…,D]` and the blocks' six rows `[…,S,D]`.
    fn time(&self, g: &mut Graph, t: Var) -> Result<(Var, Var)> {
        let waves = g.b.call(&sinusoid(g, &self.times, &axis("G", self.c.freq_dim))?, &[t])?[0];
        let (inner, parts) = (axis("R1", self.c.dim()), [Part::Norm, Part::Vector]);
        let start = Init::Normal(0.02);
        let e = g.linear_from(waves, "condition_embedder.time_embedder.linear_1", &inner, true, parts, start)?;
        let e = nn::silu(&mut g.b, e)?;
        let temb = g.linear_from(e, "condition_embedder.time_embedder.linear_2", &self.d, true, parts, start)?;
        let e = nn::silu(&mut g.b, temb)?;
        let rows = g.linear_from(e, "condition_embedder.time_proj", &axis("R", 6 * self.c.dim()), true, parts, start)?;
        let rows = g.split(rows, "R", vec![axis("S", 6), self.d.clone()])?;
        Ok((temb, rows))
    }
    /// The text `[B,L,D]`.
    fn text(&self, g: &mut Graph, x: Var) -> Result<Var> {
        let y = g.linear(x, "condition_embedder.text_embedder.linear_1", &axis("R1", self.c.dim()), true)?;
        let y = nn::gelu_tanh(&mut g.b, y)?;
        let y = g.linear(y, "condition_embedder.text_embedder.linear_2", &self.d, true)?;
        g.cast(y, Part::Operand)
    }
    /// The image's tokens `[B,I,D]`.
    fn image(&mut self, g: &mut Graph, mut x: Var) -> Result<Var> {
        let key = |s: &str| format!("condition_embedder.image_embedder.{s}");
        let ty = g.b.ty(x).clone();
        let (i, j) = (ty.axes[1].clone(), ty.axes[2].clone());
        if self.c.pos_embed_seq_len.is_some() {
            let at = g.weight(&key("pos_embed"), Part::Vector, vec![axis("one", 1), i.clone(), j.clone()], Init::Constant(0.0));
            let at = g.index(at, "one", 0)?;
            let at = g.cast(at, Part::Latent)?;
            x = g.b.add(x, at)?;
        }
        let y = g.layer_norm(x, &j, IMAGE_EPS, Some(&key("norm1")))?;
        let y = g.linear(y, &key("ff.net.0.proj"), &axis("J1", j.size.as_fixed().unwrap_or(0)), true)?;
        let y = nn::gelu(&mut g.b, y)?;
        let y = g.linear(y, &key("ff.net.2"), &self.d, true)?;
        let y = g.layer_norm(y, &self.d, IMAGE_EPS, Some(&key("norm2")))?;
        self.image = Some(i);
        g.cast(y, Part::Operand)
    }
    /// What the blocks take for image and text: of both, one behind the other, the tokens before the last 512, and the last 512. Where there
    /// are fewer than 512 in all, the cut is where Python's negative positions put it, as in diffusers and the original.
    fn context(&mut self, g: &mut Graph, image: Var, text: Var, variant: &Variant) -> Result<(Option<Var>, Var)> {
        let tokens = self.image.as_ref().and_then(|a| a.size.as_fixed()).or(variant.image_tokens);
        let (Some(i), Some(l)) = (tokens, variant.text) else { return Ok((Some(image), text)) };
        let all = i + l;
        let cut = if all >= TEXT_TOKENS { all - TEXT_TOKENS } else { (2 * all - TEXT_TOKENS).max(0) };
        if cut == i {
            return Ok((Some(image), text));
        }
        let joined = Movement::Concat { axes: vec!["I".into(), "L".into()], into: axis("IL", all) };
        let joined = g.b.movement(joined, &[image, text])?;
        let part = |g: &mut Graph, to: Axis, start: i64| g.b.movement(Movement::Slice { axis: "IL".into(), to, start: Dim::fixed(start) }, &[joined]);
        let (before, behind) = (axis("I2", cut), axis("L2", all - cut));
        let first = if cut > 0 { Some(part(g, before.clone(), 0)?) } else { None };
        (self.image, self.text) = (first.map(|_| before), behind.clone());
        Ok((first, part(g, behind, cut)?))
    }

    /// One block, as a function of what `args` of `g` are and of its weights.
    fn block(&self, precision: Precision, outer: &Graph, args: &[Var]) -> Result<(Function, Vec<Weight>)> {
        let mut g = Graph::new("wan.block", precision);
        let names = ["h", "modulation", "cos", "sin", "context", "image"];
        let v: Vec<Var> = args.iter().zip(names).map(|(a, n)| g.b.param(n, outer.b.ty(*a).clone())).collect();
        let [h, rows, cos, sin, ctx] = [v[0], v[1], v[2], v[3], v[4]];
        let table = g.weight("scale_shift_table", Part::Vector, vec![axis("one", 1), axis("S", 6), self.d.clone()], Init::Normal((self.c.dim() as f64).powf(-0.5)));
        let table = g.index(table, "one", 0)?;
        let table = g.cast(table, Part::Norm)?;
        let m = g.b.add(rows, table)?;
        let [shift1, scale1, gate1, shift2, scale2, gate2] = g.rows(m, "S")?;

        let z = self.modulated(&mut g, h, shift1, scale1)?;
        let y = self.attend(&mut g, "attn1", z, z, Some((cos, sin)), None)?;
        let h = g.residual(h, Some(gate1), y)?;

        let z = if self.c.cross_attn_norm { g.layer_norm(h, &self.d, self.c.eps, Some("norm2"))? } else { h };
        let y = self.attend(&mut g, "attn2", z, ctx, None, v.get(5).copied())?;
        let h = g.residual(h, None, y)?;

        let z = self.modulated(&mut g, h, shift2, scale2)?;
        let y = g.linear(z, "ffn.net.0.proj", &axis("U", self.c.ffn_dim), true)?;
        let y = nn::gelu_tanh(&mut g.b, y)?;
        let y = g.linear(y, "ffn.net.2", &self.d, true)?;
        let h = g.residual(h, Some(gate2), y)?;
        g.b.result("h", h);
        let (mut f, weights) = g.finish();
        // The result is a new value under the argument's name.
        f.results[0].name = "y".into();
        Ok((f, weights))
    }

    /// `Wo·attend(q of x, k and v of source)`, turned by `tables` if given; with an image, attention over its tokens is added before Wo.
    fn attend(&self, g: &mut Graph, key: &str, x: Var, source: Var, tables: Option<(Var, Var)>, image: Option<Var>) -> Result<Var> {
        let c = self.c;
        let own = tables.is_some();
        let q = g.linear(x, &format!("{key}.to_q"), &self.e, true)?;
        let q = g.rms_norm(q, &self.e, self.qk_eps, &format!("{key}.norm_q.weight"))?;
        let k = g.linear(source, &format!("{key}.to_k"), &self.e, true)?;
        let k = g.rms_norm(k, &self.e, self.qk_eps, &format!("{key}.norm_k.weight"))?;
        let v = g.linear(source, &format!("{key}.to_v"), &self.e, true)?;
        let mut q = g.split_heads(q, c.num_attention_heads, c.attention_head_dim)?;
        let mut k = g.split_heads(k, c.num_attention_heads, c.attention_head_dim)?;
        let mut v = g.split_heads(v, c.num_attention_heads, c.attention_head_dim)?;
        if let Some((cos, sin)) = tables {
            let (size, pairs) = (axis("K", c.attention_head_dim), axis("P", c.attention_head_dim / 2));
            q = nn::rotate(&mut g.b, q, cos, sin, &size, &pairs, false)?;
            k = nn::rotate(&mut g.b, k, cos, sin, &size, &pairs, false)?;
        }
        if own {
            let keys = self.grid.keys();
            (k, v) = (g.rename(k, "N", keys.clone())?, g.rename(v, "N", keys)?);
        }
        let mut o = g.heads(q, k, v, &self.e)?;
        if c.added_kv_proj_dim.is_some() && !own {
            // Where the cut leaves no token to the image, its weights stand beside a text that they do not touch.
            let k = g.linear(image.unwrap_or(source), &format!("{key}.add_k_proj"), &self.e, true)?;
            let k = g.rms_norm(k, &self.e, self.qk_eps, &format!("{key}.norm_added_k.weight"))?;
            let v = g.linear(image.unwrap_or(source), &format!("{key}.add_v_proj"), &self.e, true)?;
            if image.is_some() {
                let k = g.split_heads(k, c.num_attention_heads, c.attention_head_dim)?;
                let v = g.split_heads(v, c.num_attention_heads, c.attention_head_dim)?;
                let also = g.heads(q, k, v, &self.e)?;
                let (a, b) = (g.cast(o, Part::Norm)?, g.cast(also, Part::Norm)?);
                o = g.b.add(a, b)?;
            }
        }
        g.linear(o, &format!("{key}.to_out.0"), &self.d, true)
    }
}
