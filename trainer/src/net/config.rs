//! Configurations: diffusers' `config.json`, the original Wan's, the original Cosmos network's arguments, and that of the small image network.
//! What a file leaves out is taken from the shapes of the weights where they are at hand, then from the class's own default; what it has
//! and nobody knows is refused by name, as is what contradicts itself.

use super::keys::nearest;
use super::{cosmos, dit, wan};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// A network's sizes.
#[derive(Clone, PartialEq, Debug)]
pub enum Config {
    /// `WanTransformer3DModel`.
    Wan(wan::Config),
    /// `CosmosTransformer3DModel`.
    Cosmos(cosmos::Config),
    /// The small image network.
    Dit(dit::Config),
}

/// The class names that configurations have.
pub const WAN: &str = "WanTransformer3DModel";
/// See [`WAN`].
pub const COSMOS: &str = "CosmosTransformer3DModel";
/// See [`WAN`].
pub const DIT: &str = "ImageTransformer2DModel";
/// The original Wan class, with names of its own.
const WAN_ORIGINAL: &str = "WanModel";
/// Original Cosmos classes; those with `LVG` add the condition mask's channel themselves.
const COSMOS_ORIGINAL: [&str; 3] = ["MiniTrainDIT", "MinimalV1LVGDiT", "MinimalV4LVGDiT"];

/// Shapes of weights by diffusers' checkpoint keys; `None` where there is no such tensor.
pub trait Shapes {
    /// The shape of the tensor that a network calls `key`.
    fn shape(&self, key: &str) -> Option<Vec<usize>>;
    /// Which network the keys are of, if any: a class name.
    fn class(&self) -> Option<&'static str>;
}

/// No weights at hand.
pub struct NoShapes;

impl Shapes for NoShapes {
    fn shape(&self, _: &str) -> Option<Vec<usize>> {
        None
    }
    fn class(&self) -> Option<&'static str> {
        None
    }
}

impl Config {
    /// From JSON, `file` being what messages call it.
    ///
    /// # Errors
    /// A key that is not known, with the nearest; a value of the wrong kind or range; values that contradict each other; a size that is
    /// missing and cannot be inferred.
    pub fn from_json(json: &Value, file: &str, shapes: &dyn Shapes) -> Result<Config, String> {
        let Some(map) = json.as_object() else { return Err(format!("{file}: a configuration is a JSON object")) };
        let class = match map.get("_class_name") {
            Some(Value::String(s)) => s.clone(),
            Some(other) => return Err(format!("{file}: _class_name is {other}, but must be a name")),
            None if map.contains_key("model_channels") => COSMOS_ORIGINAL[0].into(),
            None if map.contains_key("dim") || map.contains_key("num_heads") => WAN_ORIGINAL.into(),
            None => shapes.class().ok_or_else(|| format!("{file}: no _class_name ({WAN}, {COSMOS} or {DIT}), and no weights to infer it from"))?.into(),
        };
        let f = Fields { map, file, shapes, used: RefCell::default() };
        let config = match class.as_str() {
            WAN => Config::Wan(f.wan(Names::Diffusers)?),
            WAN_ORIGINAL => Config::Wan(f.wan(Names::Original)?),
            COSMOS => Config::Cosmos(f.cosmos()?),
            DIT => Config::Dit(f.dit()?),
            c if COSMOS_ORIGINAL.contains(&c) => Config::Cosmos(f.cosmos_original(c.contains("LVG"))?),
            other => {
                let known = [&[WAN, COSMOS, DIT, WAN_ORIGINAL][..], &COSMOS_ORIGINAL].concat();
                return Err(format!("{file}: _class_name is {other}, but networks are {}", known.join(", ")));
            }
        };
        f.unknown()?;
        if let (Some(have), want) = (shapes.class(), config.class()) {
            if have != want {
                return Err(format!("{file}: _class_name is {class}, but the weights' names are those of {have}"));
            }
        }
        Ok(config)
    }
    /// The diffusers class of the network.
    pub fn class(&self) -> &'static str {
        match self {
            Config::Wan(_) => WAN,
            Config::Cosmos(_) => COSMOS,
            Config::Dit(_) => DIT,
        }
    }
}

/// Whose names a Wan configuration has.
#[derive(Clone, Copy, PartialEq)]
enum Names {
    Diffusers,
    Original,
}

/// A configuration's values, and which were asked for.
struct Fields<'a> {
    map: &'a Map<String, Value>,
    file: &'a str,
    shapes: &'a dyn Shapes,
    used: RefCell<BTreeSet<String>>,
}

impl Fields<'_> {
    /// The value of `key`; `None` where it is absent.
    fn get(&self, key: &str) -> Option<&Value> {
        self.used.borrow_mut().insert(key.into());
        self.map.get(key)
    }
    fn wrong<T>(&self, key: &str, v: &Value, want: &str) -> Result<T, String> {
        Err(format!("{}: {key} is {v}, but must be {want}", self.file))
    }
    /// A positive whole number; `None` where it is absent or null.
    fn size(&self, key: &str) -> Result<Option<i64>, String> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => match v.as_i64() {
                Some(n) if n > 0 && n < 1 << 30 => Ok(Some(n)),
                _ => self.wrong(key, v, "a positive whole number"),
            },
        }
    }
    /// A size that the network cannot be without: configured, else inferred, else the default.
    fn need(&self, key: &str, inferred: Option<i64>, default: Option<i64>) -> Result<i64, String> {
        match self.size(key)?.or(inferred).or(default) {
            Some(n) => Ok(n),
            None => Err(format!("{}: {key} is missing, and no tensor's shape tells it", self.file)),
        }
    }
    /// A size that may be null: configured (null included), else inferred.
    fn optional(&self, key: &str, inferred: Option<i64>) -> Result<Option<i64>, String> {
        let configured = self.size(key)?;
        Ok(if self.map.contains_key(key) { configured } else { inferred })
    }
    fn number(&self, key: &str, default: f64) -> Result<f64, String> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => match v.as_f64() {
                Some(x) if x.is_finite() && x > 0.0 => Ok(x),
                _ => self.wrong(key, v, "a positive number"),
            },
        }
    }
    fn flag(&self, key: &str, default: bool) -> Result<bool, String> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(v) => self.wrong(key, v, "true or false"),
        }
    }
    fn sizes<const N: usize>(&self, key: &str, default: [i64; N]) -> Result<[i64; N], String> {
        let Some(v) = self.get(key) else { return Ok(default) };
        let list: Option<Vec<i64>> = v.as_array().and_then(|a| a.iter().map(|x| x.as_i64().filter(|n| *n > 0 && *n < 1 << 30)).collect());
        list.and_then(|l| l.try_into().ok()).map_or_else(|| self.wrong(key, v, &format!("{N} positive whole numbers")), Ok)
    }
    fn numbers<const N: usize>(&self, key: &str, default: [f64; N]) -> Result<[f64; N], String> {
        let Some(v) = self.get(key) else { return Ok(default) };
        let list: Option<Vec<f64>> = v.as_array().and_then(|a| a.iter().map(|x| x.as_f64().filter(|n| *n > 0.0 && n.is_finite())).collect());
        list.and_then(|l| l.try_into().ok()).map_or_else(|| self.wrong(key, v, &format!("{N} positive numbers")), Ok)
    }
    /// Refuses a value other than those in `allowed`; absent is allowed.
    fn only(&self, key: &str, allowed: &[Value], what: &str) -> Result<(), String> {
        match self.get(key) {
            Some(v) if !allowed.contains(v) => Err(format!("{}: {key} is {v}, which is not supported ({what})", self.file)),
            _ => Ok(()),
        }
    }
    /// Refuses keys that nobody asked for. Those that begin with `_` are notes.
    fn unknown(&self) -> Result<(), String> {
        let used = self.used.borrow();
        match self.map.keys().find(|k| !k.starts_with('_') && !used.contains(*k)) {
            None => Ok(()),
            Some(k) => Err(format!("{}: `{k}` is not known{}", self.file, nearest(k, used.iter().map(String::as_str)))),
        }
    }
    /// A dimension of a tensor.
    fn dim(&self, key: &str, at: usize) -> Option<i64> {
        self.shapes.shape(key).and_then(|s| s.get(at).copied()).map(|n| n as i64)
    }
    /// How many blocks the weights have.
    fn layers(&self, first: impl Fn(i64) -> String) -> Option<i64> {
        let n = (0..).take_while(|i| self.shapes.shape(&first(*i)).is_some()).count() as i64;
        (n > 0).then_some(n)
    }
    /// Heads and their size, of which the width that the weights have gives one when the other is missing.
    fn heads(&self, heads: &str, size: &str, dim: Option<i64>, known_size: Option<i64>, usual_heads: i64, usual: i64) -> Result<(i64, i64), String> {
        let (h, s) = (self.size(heads)?, self.size(size)?.or(known_size));
        let divide = |dim: i64, by: i64, what: &str| {
            if dim % by == 0 { Ok(dim / by) } else { Err(format!("{}: the weights' width {dim} is not a multiple of {what} {by}", self.file)) }
        };
        match (h, s, dim) {
            (Some(h), Some(s), _) => Ok((h, s)),
            (Some(h), None, Some(d)) => Ok((h, divide(d, h, heads)?)),
            (None, Some(s), Some(d)) => Ok((divide(d, s, size)?, s)),
            (None, None, Some(d)) if d % usual == 0 => Ok((d / usual, usual)),
            (None, None, Some(d)) => Err(format!("{}: {heads} and {size} are missing, and the width {d} does not tell them", self.file)),
            (h, s, None) => Ok((h.unwrap_or(usual_heads), s.unwrap_or(usual))),
        }
    }

    fn wan(&self, names: Names) -> Result<wan::Config, String> {
        let name = |diffusers: &'static str, original: &'static str| if names == Names::Diffusers { diffusers } else { original };
        let patch_size = self.sizes("patch_size", [1, 2, 2])?;
        let patch: i64 = patch_size.iter().product();
        let stem = self.shapes.shape("patch_embedding.weight");
        let dim = stem.as_ref().and_then(|s| s.first()).map(|n| *n as i64);
        // A convolution's kernel, or the same as a matrix.
        let inferred_in = stem.as_ref().map(|s| s[1..].iter().product::<usize>() as i64 / patch);
        let (heads, size) = match names {
            Names::Diffusers => self.heads("num_attention_heads", "attention_head_dim", dim, None, 40, 128)?,
            Names::Original => {
                let d = self.need("dim", dim, Some(2048))?;
                let h = self.need("num_heads", None, Some(16))?;
                if d % h != 0 {
                    return Err(format!("{}: dim is {d}, which is not a multiple of num_heads {h}", self.file));
                }
                (h, d / h)
            }
        };
        self.only("qk_norm", &[Value::Null, true.into(), "rms_norm_across_heads".into()], "q and k are normalised across heads")?;
        if self.map.get("qk_norm") == Some(&Value::Null) && names == Names::Diffusers && self.dim("blocks.0.attn1.norm_q.weight", 0).is_none() && self.shapes.class().is_some() {
            return Err(format!("{}: qk_norm is null and the weights have no norm_q: networks without q and k norms are not supported", self.file));
        }
        let in_channels = self.need(name("in_channels", "in_dim"), inferred_in, Some(16))?;
        let usual = names == Names::Diffusers;
        let c = wan::Config {
            patch_size,
            num_attention_heads: heads,
            attention_head_dim: size,
            in_channels,
            out_channels: self.need(name("out_channels", "out_dim"), self.dim("proj_out.weight", 0).map(|n| n / patch), Some(if self.map.get("out_channels") == Some(&Value::Null) { in_channels } else { 16 }))?,
            text_dim: self.need("text_dim", self.dim("condition_embedder.text_embedder.linear_1.weight", 1), Some(4096))?,
            freq_dim: self.need("freq_dim", self.dim("condition_embedder.time_embedder.linear_1.weight", 1), Some(256))?,
            ffn_dim: self.need("ffn_dim", self.dim("blocks.0.ffn.net.0.proj.weight", 0), Some(if usual { 13824 } else { 8192 }))?,
            num_layers: self.need("num_layers", self.layers(|i| format!("blocks.{i}.scale_shift_table")), Some(if usual { 40 } else { 32 }))?,
            cross_attn_norm: self.flag("cross_attn_norm", self.shapes.class().is_none() || self.dim("blocks.0.norm2.weight", 0).is_some())?,
            eps: self.number("eps", 1e-6)?,
            image_dim: self.optional("image_dim", self.dim("condition_embedder.image_embedder.norm1.weight", 0))?,
            added_kv_proj_dim: self.optional("added_kv_proj_dim", self.dim("blocks.0.attn2.add_k_proj.weight", 1))?,
            rope_max_seq_len: self.need("rope_max_seq_len", None, Some(1024))?,
            pos_embed_seq_len: self.optional("pos_embed_seq_len", self.dim("condition_embedder.image_embedder.pos_embed", 1))?,
        };
        let c = match names {
            Names::Original => self.wan_kind(c)?,
            Names::Diffusers => {
                self.only("window_size", &[serde_json::json!([-1, -1])], "attention is global")?;
                self.only("add_img_emb", &[false.into(), true.into()], "a flag of early versions")?;
                c
            }
        };
        if c.attention_head_dim % 2 == 1 || c.freq_dim % 2 == 1 {
            return Err(format!("{}: attention_head_dim {} and freq_dim {} must be even: they hold pairs", self.file, c.attention_head_dim, c.freq_dim));
        }
        match (c.image_dim, c.added_kv_proj_dim) {
            (Some(_), None) => Err(format!("{}: image_dim is given, but added_kv_proj_dim is not: nothing would attend to the image", self.file)),
            (None, Some(_)) => Err(format!("{}: added_kv_proj_dim is given, but image_dim is not: there is no image to attend to", self.file)),
            (Some(_), Some(n)) if n != c.dim() => Err(format!("{}: added_kv_proj_dim is {n}, but must be the width {}", self.file, c.dim())),
            (None, None) if c.pos_embed_seq_len.is_some() => Err(format!("{}: pos_embed_seq_len is given, but image_dim is not", self.file)),
            _ => Ok(c),
        }
    }
    /// What the original's `model_type` says of images.
    fn wan_kind(&self, mut c: wan::Config) -> Result<wan::Config, String> {
        self.only("window_size", &[serde_json::json!([-1, -1])], "attention is global")?;
        self.size("text_len")?;
        let images = c.image_dim.is_some();
        match self.get("model_type").and_then(Value::as_str) {
            None => {}
            Some("t2v") if !images => {}
            Some("t2v") => return Err(format!("{}: model_type is t2v, but the weights have an image embedder (img_emb)", self.file)),
            Some("i2v" | "flf2v") if images => {}
            Some(kind @ ("i2v" | "flf2v")) => {
                if self.shapes.class().is_some() {
                    return Err(format!("{}: model_type is {kind}, but the weights have no image embedder (img_emb)", self.file));
                }
                c.image_dim = Some(1280);
                c.added_kv_proj_dim = Some(c.dim());
                c.pos_embed_seq_len = (kind == "flf2v").then_some(514);
            }
            Some(other) => return Err(format!("{}: model_type is {other}, but only t2v, i2v and flf2v are supported", self.file)),
        }
        Ok(c)
    }

    fn cosmos(&self) -> Result<cosmos::Config, String> {
        let patch_size = self.sizes("patch_size", [1, 2, 2])?;
        let patch: i64 = patch_size.iter().product();
        let dim = self.dim("time_embed.norm.weight", 0);
        let (heads, size) = self.heads("num_attention_heads", "attention_head_dim", dim, self.dim("transformer_blocks.0.attn1.norm_q.weight", 0), 32, 128)?;
        let concat_padding_mask = self.flag("concat_padding_mask", true)?;
        let in_channels = self.dim("patch_embed.proj.weight", 1).map(|n| n / patch - i64::from(concat_padding_mask));
        let width = heads * size;
        let inner = self.dim("transformer_blocks.0.ff.net.0.proj.weight", 0);
        let ffn_dim = match (self.map.get("mlp_ratio"), inner) {
            (None, Some(n)) => n,
            // As Python makes it: the product, cut off.
            _ => (width as f64 * self.number("mlp_ratio", 4.0)?) as i64,
        };
        self.get("mlp_ratio");
        let learned = self.shapes.class().is_none() || self.dim("learnable_pos_embed.pos_emb_t", 0).is_some();
        let learned_positions = match self.get("extra_pos_embed_type") {
            None => learned,
            Some(Value::Null) => false,
            Some(Value::String(s)) if s == "learnable" => true,
            Some(v) => return self.wrong("extra_pos_embed_type", v, "null or \"learnable\""),
        };
        let projected = self.flag("use_crossattn_projection", self.dim("crossattn_proj.0.weight", 0).is_some())?;
        let proj = self.size("crossattn_proj_in_channels")?;
        let channels = self.size("encoder_hidden_states_channels")?;
        let text_embed_dim = self.need("text_embed_dim", self.dim("transformer_blocks.0.attn2.to_k.weight", 1), Some(1024))?;
        if let (true, Some(n)) = (projected, channels.filter(|n| *n != text_embed_dim)) {
            return Err(format!("{}: encoder_hidden_states_channels is {n}, but the projected text must have text_embed_dim {text_embed_dim}", self.file));
        }
        self.only("img_context_dim_in", &[Value::Null], "image context belongs to Transfer networks")?;
        for k in ["img_context_num_tokens", "img_context_dim_out", "controlnet_block_every_n"] {
            self.size(k)?;
        }
        let c = cosmos::Config {
            in_channels: self.need("in_channels", in_channels, Some(16))?,
            out_channels: self.need("out_channels", self.dim("proj_out.weight", 0).map(|n| n / patch), Some(16))?,
            num_attention_heads: heads,
            attention_head_dim: size,
            num_layers: self.need("num_layers", self.layers(|i| format!("transformer_blocks.{i}.attn1.to_q.weight")), Some(28))?,
            ffn_dim,
            text_embed_dim,
            adaln_lora_dim: self.need("adaln_lora_dim", self.dim("norm_out.linear_1.weight", 0), Some(256))?,
            max_size: self.sizes("max_size", [128, 240, 240])?,
            patch_size,
            rope_scale: self.numbers("rope_scale", [2.0, 1.0, 1.0])?,
            concat_padding_mask,
            learned_positions,
            crossattn_proj: projected.then(|| proj.or(self.dim("crossattn_proj.0.weight", 1)).unwrap_or(1024)),
        };
        self.checked(c)
    }
    fn checked(&self, c: cosmos::Config) -> Result<cosmos::Config, String> {
        let sizes = super::grid::rotary_sizes(c.attention_head_dim);
        if c.attention_head_dim % 2 == 1 || sizes.iter().any(|n| *n <= 2) {
            return Err(format!("{}: attention_head_dim is {}, but must be even and at least 12: each of time, height and width turns more than one pair", self.file, c.attention_head_dim));
        }
        Ok(c)
    }
    /// The original network's arguments; `lvg`: a class that adds the condition mask's channel itself.
    fn cosmos_original(&self, lvg: bool) -> Result<cosmos::Config, String> {
        let spatial = self.need("patch_spatial", None, Some(2))?;
        let patch_size = [self.need("patch_temporal", None, Some(1))?, spatial, spatial];
        let patch: i64 = patch_size.iter().product();
        let width = self.need("model_channels", self.dim("time_embed.norm.weight", 0), None)?;
        let size = self.dim("transformer_blocks.0.attn1.norm_q.weight", 0);
        let heads = self.need("num_heads", size.map(|s| width / s), Some(16))?;
        if width % heads != 0 {
            return Err(format!("{}: model_channels is {width}, which is not a multiple of num_heads {heads}", self.file));
        }
        let concat_padding_mask = self.flag("concat_padding_mask", true)?;
        let in_channels = self.dim("patch_embed.proj.weight", 1).map(|n| n / patch - i64::from(concat_padding_mask));
        let configured = self.size("in_channels")?.map(|n| n + i64::from(lvg));
        self.only("use_adaln_lora", &[true.into()], "modulation is of low rank")?;
        self.only("pos_emb_cls", &["rope3d".into()], "positions are rotary")?;
        self.only("extra_per_block_abs_pos_emb", &[false.into()], "give a diffusers config.json for networks with learned positions")?;
        for k in ["pos_emb_learnable", "pos_emb_interpolation", "rope_enable_fps_modulation", "atten_backend", "sac_config", "min_fps", "max_fps"] {
            self.get(k);
        }
        let scale = |k: &str| self.number(k, 1.0);
        let projected = self.flag("use_crossattn_projection", self.dim("crossattn_proj.0.weight", 0).is_some())?;
        let proj = self.size("crossattn_proj_in_channels")?;
        let c = cosmos::Config {
            in_channels: in_channels.or(configured).unwrap_or(16 + i64::from(lvg)),
            out_channels: self.need("out_channels", self.dim("proj_out.weight", 0).map(|n| n / patch), Some(16))?,
            num_attention_heads: heads,
            attention_head_dim: width / heads,
            num_layers: self.need("num_blocks", self.layers(|i| format!("transformer_blocks.{i}.attn1.to_q.weight")), Some(28))?,
            ffn_dim: (width as f64 * self.number("mlp_ratio", 4.0)?) as i64,
            text_embed_dim: self.need("crossattn_emb_channels", self.dim("transformer_blocks.0.attn2.to_k.weight", 1), Some(1024))?,
            adaln_lora_dim: self.need("adaln_lora_dim", self.dim("norm_out.linear_1.weight", 0), Some(256))?,
            max_size: [self.need("max_frames", None, Some(128))?, self.need("max_img_h", None, Some(240))?, self.need("max_img_w", None, Some(240))?],
            patch_size,
            rope_scale: [scale("rope_t_extrapolation_ratio")?, scale("rope_h_extrapolation_ratio")?, scale("rope_w_extrapolation_ratio")?],
            concat_padding_mask,
            learned_positions: false,
            crossattn_proj: projected.then(|| proj.or(self.dim("crossattn_proj.0.weight", 1)).unwrap_or(1024)),
        };
        self.checked(c)
    }

    fn dit(&self) -> Result<dit::Config, String> {
        let usual = dit::Config::digits();
        let patch = self.need("patch_size", None, Some(usual.patch_size))?;
        let (heads, size) = self.heads("num_attention_heads", "attention_head_dim", self.dim("pos_embed", 1), None, 4, 16)?;
        let c = dit::Config {
            sample_size: self.sizes("sample_size", usual.sample_size)?,
            patch_size: patch,
            in_channels: self.need("in_channels", self.dim("patch_embed.proj.weight", 1).map(|n| n / (patch * patch)), Some(1))?,
            out_channels: self.need("out_channels", self.dim("proj_out.weight", 0).map(|n| n / (patch * patch)), Some(1))?,
            num_attention_heads: heads,
            attention_head_dim: size,
            num_layers: self.need("num_layers", self.layers(|i| format!("blocks.{i}.norm1.linear.weight")), Some(3))?,
            ffn_dim: self.need("ffn_dim", self.dim("blocks.0.ff.net.0.proj.weight", 0), Some(3 * heads * size))?,
            num_classes: self.need("num_classes", self.dim("class_embed.weight", 0).map(|n| n - 1), Some(10))?,
            time_frequencies: self.need("time_frequencies", self.dim("time_embed.linear_1.weight", 1).map(|n| n / 2), Some(32))?,
            time_range: self.numbers("time_range", usual.time_range)?,
            eps: self.number("eps", 1e-6)?,
        };
        if c.sample_size.iter().any(|n| n % patch != 0) {
            return Err(format!("{}: sample_size {:?} is not a whole number of patches of {patch}", self.file, c.sample_size));
        }
        if c.time_range[0] > c.time_range[1] {
            return Err(format!("{}: time_range {:?} is not from low to high", self.file, c.time_range));
        }
        Ok(c)
    }
}
