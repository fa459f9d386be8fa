//! Tensors by name as a network's arguments: which optional ones there are, what a file of reference answers calls them, and which names
//! were perhaps meant to be others. A tensor that nobody reads is no error if it is an answer; a misspelt argument is.

use super::config::{COSMOS, Config};
use super::keys::nearest;
use super::{Resize, Time, Variant};
use ir::tensor::Tensor;
use ir::types::DType;
use std::collections::BTreeMap;

/// Tensors by name.
pub type Fields = BTreeMap<String, Tensor>;

/// Every argument that some network has.
const KNOWN: [&str; 8] =
    ["hidden_states", "timestep", "encoder_hidden_states", "encoder_hidden_states_image", "condition_mask", "padding_mask", "fps", "class_labels"];

/// Arguments of diffusers' networks that these have not.
const REFUSED: [(&str, &str); 2] = [
    ("attention_mask", "text is attended to whole, padding included, as the pipelines do it"),
    ("block_controlnet_hidden_states", "control networks are not supported"),
];

/// Beginnings of names that answers have.
const ANSWERS: [&str; 7] = ["out", "grad.", "jvp_", "f32.", "eps", "mid.", "tmid."];

/// Tensors under the names of arguments: `tangent.X` is `X.t` and `cot.X` is `X.ct` where those names are free, and a tensor `fps` is a
/// number.
///
/// # Errors
/// An argument that no network here has; an `fps` that is no number, or is not the one given.
pub fn read(mut fields: Fields, mut fps: Option<f64>) -> Result<(Fields, Option<f64>), String> {
    for (from, to) in [("tangent.", ".t"), ("cot.", ".ct")] {
        let old: Vec<String> = fields.keys().filter(|n| n.starts_with(from)).cloned().collect();
        for n in old {
            let new = format!("{}{to}", &n[from.len()..]);
            if !fields.contains_key(&new) {
                if let Some(t) = fields.remove(&n) {
                    fields.insert(new, t);
                }
            }
        }
    }
    for (name, why) in REFUSED {
        if fields.contains_key(name) {
            return Err(format!("`{name}` is not supported: {why}"));
        }
    }
    if let Some(t) = fields.remove("fps") {
        let [x] = t.to_f64()[..] else { return Err(format!("`fps` has shape {:?}, but must be one number", t.shape())) };
        match fps {
            Some(f) if f != x => return Err(format!("fps is {x} in the file, but {f} on the command line")),
            _ => fps = Some(x),
        }
    }
    Ok((fields, fps))
}

/// Which arguments there are, by the shapes of what is given.
///
/// # Errors
/// A shape that no variant of the network has.
pub fn variant(config: &Config, fields: &Fields, fps: Option<f64>, qk_eps: Option<f64>) -> Result<Variant, String> {
    let shape = |n: &str| fields.get(n).map(Tensor::shape);
    let time = match shape("timestep") {
        None | Some([_]) => Time::PerSample,
        Some([_, 1, _, 1, 1]) => Time::PerFrame,
        Some([_, _]) => Time::PerToken,
        Some(other) => return Err(format!("`timestep` has shape {other:?}, but must be [B], [B,1,T,1,1] per frame, or [B,N] per token")),
    };
    let size = |n: &str, at: usize| shape(n).and_then(|s| s.get(at)).map(|n| *n as i64);
    let image = fields.contains_key("encoder_hidden_states_image");
    let padding_mask = match (shape("padding_mask"), shape("hidden_states")) {
        (None, _) => None,
        (Some([1, 1, h, w]), Some([_, _, _, y, x])) => Some(if (h, w) == (y, x) { Resize::Same } else { Resize::Nearest }),
        (Some([1, 1, _, _]), _) => Some(Resize::Same),
        (Some(other), _) => return Err(format!("`padding_mask` has shape {other:?}, but must be [1,1,H,W], one for all samples and frames")),
    };
    let mut v = Variant { time, fps, condition_mask: fields.contains_key("condition_mask"), padding_mask, image, qk_eps, ..Variant::default() };
    if image {
        (v.text, v.image_tokens) = (size("encoder_hidden_states", 1), size("encoder_hidden_states_image", 1));
    }
    if config.class() == COSMOS && !v.condition_mask {
        if let (Config::Cosmos(c), Some(channels)) = (config, size("hidden_states", 1)) {
            if channels == c.in_channels - 1 {
                return Err(format!("`hidden_states` has {channels} channels of {}, and there is no `condition_mask` to be the last", c.in_channels));
            }
        }
    }
    Ok(v)
}

/// `fields` as `wanted` wants them; what nobody reads, and is no answer, is returned beside them.
///
/// # Errors
/// A wanted tensor that is missing, with the nearest name that nobody reads; and a name that nobody reads and that is close to an
/// argument's.
pub fn select(fields: &Fields, wanted: &[&str], file: &str) -> Result<(Vec<String>, Vec<String>), String> {
    let unread: Vec<&str> = fields.keys().map(String::as_str).filter(|n| !wanted.contains(n)).collect();
    if let Some(w) = wanted.iter().find(|w| !fields.contains_key(**w)) {
        return Err(format!("{file} has no tensor `{w}`{}", nearest(w, unread.iter().copied().filter(|n| !known(n)))));
    }
    let mut left = vec![];
    for n in unread {
        if known(n) || ANSWERS.iter().any(|a| n.starts_with(a)) || n.ends_with(".ct") {
            continue;
        }
        let hint = nearest(n, KNOWN.iter().copied().chain(wanted.iter().copied()));
        if !hint.is_empty() {
            return Err(format!("{file} has a tensor `{n}`, which is no argument{hint}"));
        }
        left.push(n.to_string());
    }
    Ok((wanted.iter().map(|w| w.to_string()).collect(), left))
}

/// Whether `n` is an argument of some network, or a tangent or cotangent of one.
fn known(n: &str) -> bool {
    let stem = n.trim_end_matches(".ct").trim_end_matches(".t");
    KNOWN.contains(&stem)
}

/// A tensor for a parameter of type `dtype`: whole numbers are numbers to a parameter that is a float.
pub fn as_parameter(t: &Tensor, dtype: DType) -> Tensor {
    if dtype.is_float() == t.dtype().is_float() { t.clone() } else { t.convert(if dtype.is_float() { DType::F64 } else { dtype }) }
}
