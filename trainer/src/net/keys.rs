//! Checkpoint keys: what diffusers, the original networks and rCM call the same tensor. A network's parameters have diffusers' names; a
//! file's names are recognised by one tensor that every network of the kind has, and mapped by a table of endings.

use super::config::{COSMOS, DIT, WAN};

/// Whose names a file has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// diffusers, `WanTransformer3DModel`.
    Wan,
    /// Wan-Video/Wan2.1; with a prefix and a flat patch embedding, NVlabs/rcm.
    WanOriginal,
    /// diffusers, `CosmosTransformer3DModel`.
    Cosmos,
    /// nvidia-cosmos/cosmos-predict2.
    CosmosOriginal,
    /// The small image network.
    Dit,
}

/// A file's way of naming.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Whose names.
    pub origin: Origin,
    /// What stands before every name.
    pub prefix: &'static str,
}

/// By which tensor names are recognised.
const MARKS: [(Origin, &str); 5] = [
    (Origin::Wan, "condition_embedder.time_embedder.linear_1.weight"),
    (Origin::WanOriginal, "time_embedding.0.weight"),
    (Origin::Cosmos, "time_embed.t_embedder.linear_1.weight"),
    (Origin::CosmosOriginal, "x_embedder.proj.1.weight"),
    (Origin::Dit, "class_embed.weight"),
];

/// What may stand before every name, in order of preference. A file with the weights and their average, `net.` and `net_ema.`, is read for the
/// former; the other's are listed as ignored.
const PREFIXES: [&str; 6] = ["", "net.", "net_ema.", "model.", "model.diffusion_model.", "transformer."];

/// Endings of names that are no weights: buffers of the original Cosmos classes, counters of its training, unused norms of Wan's q.
const IGNORED: [&str; 5] = ["pos_embedder.seq", "pos_embedder.dim_spatial_range", "pos_embedder.dim_temporal_range", "_extra_state", "norm_added_q.weight"];

/// diffusers' names and the original's, of Wan. Within blocks, of what follows the block's number.
const WAN_TOP: [(&str, &str); 13] = [
    ("scale_shift_table", "head.modulation"),
    ("proj_out.", "head.head."),
    ("patch_embedding.", "patch_embedding."),
    ("condition_embedder.time_embedder.linear_1.", "time_embedding.0."),
    ("condition_embedder.time_embedder.linear_2.", "time_embedding.2."),
    ("condition_embedder.time_proj.", "time_projection.1."),
    ("condition_embedder.text_embedder.linear_1.", "text_embedding.0."),
    ("condition_embedder.text_embedder.linear_2.", "text_embedding.2."),
    ("condition_embedder.image_embedder.norm1.", "img_emb.proj.0."),
    ("condition_embedder.image_embedder.ff.net.0.proj.", "img_emb.proj.1."),
    ("condition_embedder.image_embedder.ff.net.2.", "img_emb.proj.3."),
    ("condition_embedder.image_embedder.norm2.", "img_emb.proj.4."),
    ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"),
];
const WAN_BLOCK: [(&str, &str); 15] = [
    ("scale_shift_table", "modulation"),
    ("attn1.to_q.", "self_attn.q."),
    ("attn1.to_k.", "self_attn.k."),
    ("attn1.to_v.", "self_attn.v."),
    ("attn1.to_out.0.", "self_attn.o."),
    ("attn1.norm_", "self_attn.norm_"),
    ("attn2.to_q.", "cross_attn.q."),
    ("attn2.to_k.", "cross_attn.k."),
    ("attn2.to_v.", "cross_attn.v."),
    ("attn2.to_out.0.", "cross_attn.o."),
    ("attn2.add_k_proj.", "cross_attn.k_img."),
    ("attn2.add_v_proj.", "cross_attn.v_img."),
    ("norm2.", "norm3."),
    ("ffn.net.0.proj.", "ffn.0."),
    ("ffn.net.2.", "ffn.2."),
];
/// Exceptions to `WAN_BLOCK`, before it.
const WAN_NORMS: [(&str, &str); 3] = [
    ("attn2.norm_added_k.", "cross_attn.norm_k_img."),
    ("attn2.norm_q.", "cross_attn.norm_q."),
    ("attn2.norm_k.", "cross_attn.norm_k."),
];
const COSMOS_TOP: [(&str, &str); 8] = [
    ("patch_embed.proj.", "x_embedder.proj.1."),
    ("time_embed.t_embedder.linear_", "t_embedder.1.linear_"),
    ("time_embed.norm.", "t_embedding_norm."),
    ("norm_out.linear_1.", "final_layer.adaln_modulation.1."),
    ("norm_out.linear_2.", "final_layer.adaln_modulation.2."),
    ("proj_out.", "final_layer.linear."),
    ("learnable_pos_embed.", "extra_pos_embedder."),
    ("crossattn_proj.", "crossattn_proj."),
];
const COSMOS_BLOCK: [(&str, &str); 13] = [
    ("norm1.linear_", "adaln_modulation_self_attn."),
    ("norm2.linear_", "adaln_modulation_cross_attn."),
    ("norm3.linear_", "adaln_modulation_mlp."),
    ("attn1.norm_q.", "self_attn.q_norm."),
    ("attn1.norm_k.", "self_attn.k_norm."),
    ("attn2.norm_q.", "cross_attn.q_norm."),
    ("attn2.norm_k.", "cross_attn.k_norm."),
    ("attn1.to_q.", "self_attn.q_proj."),
    ("attn1.to_k.", "self_attn.k_proj."),
    ("attn1.to_v.", "self_attn.v_proj."),
    ("attn1.to_out.0.", "self_attn.output_proj."),
    ("ff.net.0.proj.", "mlp.layer1."),
    ("ff.net.2.", "mlp.layer2."),
];

/// `rest` with the first ending of `table` that it begins with replaced.
fn replace(rest: &str, table: &[(&str, &str)]) -> Option<String> {
    table.iter().find_map(|(from, to)| rest.strip_prefix(from).map(|tail| format!("{to}{tail}")))
}

impl Layout {
    /// The layout of a file with these names.
    pub fn of<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Option<Layout> {
        PREFIXES.iter().find_map(|prefix| {
            let has = |mark: &str| names.clone().any(|n| n.strip_prefix(prefix) == Some(mark));
            MARKS.iter().find(|(_, mark)| has(mark)).map(|(origin, _)| Layout { origin: *origin, prefix })
        })
    }
    /// The class of the network whose weights these are.
    pub fn class(self) -> &'static str {
        match self.origin {
            Origin::Wan | Origin::WanOriginal => WAN,
            Origin::Cosmos | Origin::CosmosOriginal => COSMOS,
            Origin::Dit => DIT,
        }
    }
    /// What the file calls the parameter `key`.
    pub fn name(self, key: &str) -> String {
        let own = match self.origin {
            Origin::Wan | Origin::Cosmos | Origin::Dit => key.to_string(),
            Origin::WanOriginal => match block(key, "blocks.") {
                Some((i, rest)) => format!("blocks.{i}.{}", replace(rest, &WAN_NORMS).or_else(|| replace(rest, &WAN_BLOCK)).unwrap_or_else(|| rest.into())),
                None => replace(key, &WAN_TOP).unwrap_or_else(|| key.into()),
            },
            Origin::CosmosOriginal => match block(key, "transformer_blocks.") {
                // `attn2.to_q` is `cross_attn.q_proj`, and `attn2.to_out.0` is `cross_attn.output_proj`.
                Some((i, rest)) => match rest.strip_prefix("attn2.to_").and_then(|t| t.split_once('.')) {
                    Some(("out", tail)) => format!("blocks.{i}.cross_attn.output_proj.{}", tail.trim_start_matches("0.")),
                    Some((q, tail)) => format!("blocks.{i}.cross_attn.{q}_proj.{tail}"),
                    None => format!("blocks.{i}.{}", replace(rest, &COSMOS_BLOCK).unwrap_or_else(|| rest.into())),
                },
                None => replace(key, &COSMOS_TOP).unwrap_or_else(|| key.into()),
            },
        };
        format!("{}{own}", self.prefix)
    }
    /// Whether a tensor of this name is no weight.
    pub fn ignores(self, name: &str) -> bool {
        let Some(own) = name.strip_prefix(self.prefix) else { return PREFIXES.iter().any(|p| !p.is_empty() && name.starts_with(p)) };
        IGNORED.iter().any(|end| own.ends_with(end)) || own.starts_with("accum_") || (self.prefix.is_empty() && own.starts_with("net_ema."))
    }
}

/// The number and the rest of a block's key.
fn block<'a>(key: &'a str, stem: &str) -> Option<(&'a str, &'a str)> {
    key.strip_prefix(stem)?.split_once('.')
}

/// ` (nearest: …)` for the candidate that is closest to `name`, if one is close.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    let best = candidates.map(|c| (distance(name, c), c)).min();
    match best {
        Some((d, c)) if d > 0 && d <= 2 + name.len() / 4 => format!("; did you mean `{c}`?"),
        _ => String::new(),
    }
}

/// Insertions, deletions and replacements between two names.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let best = (corner + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            corner = row[j + 1];
            row[j + 1] = best;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, d) in [("", "", 0), ("abc", "abc", 0), ("kitten", "sitting", 3), ("", "ab", 2), ("ffn_dim", "ffn_dims", 1)] {
            assert_eq!((distance(a, b), distance(b, a)), (d, d));
        }
        assert_eq!(nearest("hiden_states", ["timestep", "hidden_states"].into_iter()), "; did you mean `hidden_states`?");
        assert_eq!(nearest("zzz", ["timestep", "hidden_states"].into_iter()), "");
    }
}
