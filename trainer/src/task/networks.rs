//! Networks by their `config.json`, as training methods see them; weights from folders, or drawn.

use crate::data::feed::Feed;
use crate::method::Weights;
use crate::net::checkpoint::Checkpoint;
use crate::net::config::{Config, NoShapes};
use crate::net::{self, Init, Precision, Variant, dit};
use crate::network::Network;
use crate::program::{Options, Program};
use crate::random::Random;
use ir::tensor::Tensor;
use ir::types::DType;
use serde_json::Value;
use std::path::Path;

/// A network by its description.
#[derive(Clone, Debug)]
pub struct Described {
    /// Its `config.json`, which is exported with weights.
    pub json: Value,
    /// What its times are multiplied by, where that is not its class's own.
    pub time_scale: Option<f64>,
    config: Config,
}

impl Described {
    /// The network of the digits.
    pub fn digits() -> Described {
        let c = dit::Config::digits();
        Described { json: c.to_json(), time_scale: None, config: Config::Dit(c) }
    }
    /// Of a file.
    ///
    /// # Errors
    /// A file that is not there, is no JSON, or describes no network that we have.
    pub fn read(path: &Path) -> Result<Described, String> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {file}: {e}"))?;
        let json: Value = serde_json::from_str(&text).map_err(|e| format!("{file}: {e}"))?;
        let config = Config::from_json(&json, &file, &NoShapes)?;
        Ok(Described { json, time_scale: None, config })
    }
    /// Whether it is told classes, not tokens.
    pub fn classes(&self) -> bool {
        matches!(self.config, Config::Dit(_))
    }
    /// Axes of a sample, without the batch.
    pub fn axes(&self) -> usize {
        if self.classes() { 3 } else { 4 }
    }
    fn built(&self, span: bool, features: bool) -> Result<net::Network, String> {
        if (span || features) && !self.classes() {
            return Err(format!("{} has no {}", self.config.class(), if span { "second time, which `meanflow` needs" } else { "features, which the adversarial loss of `dmd2` needs; set its weights to 0" }));
        }
        net::Network::build(&self.config, &Variant { span, features, ..Variant::default() }, Precision::F32).map_err(|e| e.to_string())
    }
    /// As methods see it, for the samples of `feed`: with a second time, and with features, where they are asked for.
    ///
    /// # Errors
    /// A variant that the network has not; samples that it cannot read.
    pub fn network(&self, feed: &Feed, span: bool, features: bool) -> Result<Network, String> {
        let built = self.built(span, features)?;
        let (sample, data) = (feed.shape(), feed.data());
        let condition = if self.classes() { "class_labels" } else { "encoder_hidden_states" };
        let times: &[&str] = if span { &["timestep", "timespan"] } else { &["timestep"] };
        let known = ["hidden_states", condition];
        if let Some(other) = built.inputs.iter().find(|i| !known.contains(&&***i) && !times.contains(&&***i)) {
            return Err(format!("{} wants `{other}`, which {} has not", self.config.class(), data.name));
        }
        let function = built.function.clone();
        let mut n = Network::new(function, "hidden_states", times, &[condition], "out").map_err(|e| e.to_string())?;
        if features {
            n.features = Some("features".into());
        }
        let channels = match &self.config {
            Config::Dit(c) => {
                if data.classes as i64 != c.num_classes || sample[1..] != c.sample_size.map(|s| s as usize) {
                    return Err(format!("the network is for {} classes and images of {:?}, but {} has {} and {:?}", c.num_classes, c.sample_size, data.name, data.classes, &sample[1..]));
                }
                c.in_channels
            }
            Config::Wan(c) => c.in_channels,
            Config::Cosmos(c) => c.in_channels,
        };
        if sample[0] as i64 != channels {
            return Err(format!("the network has {channels} channels, but samples of {} have {}", data.name, sample[0]));
        }
        if let (Some(text), Some(wide)) = (feed.text(), self.text_width()) {
            if text[1] as i64 != wide {
                return Err(format!("the network's text is {wide} wide, but that of {} is {}", data.name, text[1]));
            }
            n = n.with("L", text[0] as i64);
            for (dim, size) in ["T", "H", "W"].into_iter().zip(&sample[1..]) {
                n = n.with(dim, *size as i64);
            }
            built.check(&n.dims).map_err(|e| e.to_string())?;
        }
        Ok(n.scaled(self.time_scale.unwrap_or(if matches!(self.config, Config::Wan(_)) { 1000.0 } else { 1.0 })))
    }
    fn text_width(&self) -> Option<i64> {
        match &self.config {
            Config::Dit(_) => None,
            Config::Wan(c) => Some(c.text_dim),
            Config::Cosmos(c) => Some(c.text_embed_dim),
        }
    }
    /// Weights to begin with, those of the second time included: a function of the seed and their names.
    ///
    /// # Errors
    /// A variant that the network has not.
    pub fn start(&self, feed: &Feed, seed: u64) -> Result<Weights, String> {
        self.network(feed, false, false)?;
        self.drawn(false, seed)
    }
    fn drawn(&self, span: bool, seed: u64) -> Result<Weights, String> {
        let random = Random::new(seed);
        let one = |w: &net::Weight| {
            let (s, n) = (random.stream(0, &w.name), w.len());
            let numbers: Vec<f64> = match w.init {
                Init::Constant(c) => vec![c; n],
                Init::Normal(d) => s.normals(n).iter().map(|x| d * x).collect(),
                Init::Uniform(b) => s.uniforms(n).iter().map(|x| b * (2.0 * x - 1.0)).collect(),
            };
            Ok((w.name.clone(), Tensor::from_f64(DType::F32, &w.shape, &numbers).map_err(|e| e.to_string())?))
        };
        self.built(span, false)?.weights.iter().map(one).collect()
    }
    /// Weights without a second time as those of the network with it, whose embedding begins as nothing.
    ///
    /// # Errors
    /// A network that has no second time.
    pub fn with_span(&self, weights: &Weights, seed: u64) -> Result<Weights, String> {
        let mut all = self.drawn(true, seed)?;
        for (n, t) in weights {
            if let Some(have) = all.get_mut(n) {
                *have = t.clone();
            }
        }
        Ok(all)
    }
    /// Weights of the network with a second time as those of the one without it, which says what the first says of a span of 0: the velocity at a point. The span's
    /// embedding is then a constant, and goes into a bias.
    ///
    /// # Errors
    /// Weights that are not such a network's; those of the program that evaluates the embedding.
    pub fn without_span(&self, weights: &Weights, options: &Options) -> Result<Weights, String> {
        const BIAS: &str = "time_embed.linear_2.bias";
        let Config::Dit(c) = &self.config else { return Err(format!("{} has no second time", self.config.class())) };
        let embedding = dit::span_embedding(c, Precision::F32).map_err(|e| e.to_string())?;
        let mut p = Program::new(&embedding.function, &[], &[("B".into(), 1)].into(), options)?;
        let (inside, mut rest): (Weights, Weights) = weights.clone().into_iter().partition(|(n, _)| n.starts_with("span_embed."));
        for (n, t) in &inside {
            p.set(n, t)?;
        }
        let zero = Tensor::zeros(DType::F32, &[1]).map_err(|e| e.to_string())?;
        let still = p.run(&[("timespan", &zero)])?.remove("out").ok_or("the span's embedding has no result")?;
        let bias = rest.get_mut(BIAS).ok_or_else(|| format!("no weight `{BIAS}`"))?;
        let sum: Vec<f64> = bias.to_f64().iter().zip(still.to_f64()).map(|(a, b)| a + b).collect();
        *bias = Tensor::from_f64(bias.dtype(), bias.shape(), &sum).map_err(|e| e.to_string())?;
        Ok(rest)
    }
    /// Weights from a folder, in f32.
    ///
    /// # Errors
    /// A folder without weights, or whose weights are not this network's: by name.
    pub fn load(&self, folder: &Path, feed: &Feed) -> Result<Weights, String> {
        self.network(feed, false, false)?;
        let checkpoint = Checkpoint::open(folder)?;
        // Those of a network that jumps have one embedding more.
        let span = self.classes() && checkpoint.names().any(|n| n.starts_with("span_embed."));
        let all = checkpoint.load(&self.built(span, false)?.weights)?;
        Ok(all.into_iter().map(|(n, t)| (n, t.convert(DType::F32))).collect())
    }
}

/// Whether weights are those of a network with a second time.
pub fn has_span(weights: &Weights) -> bool {
    weights.keys().any(|n| n.starts_with("span_embed."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::digits;
    use crate::data::feed::Told;
    use crate::method::Condition;
    use crate::network::{Model, Point};
    use crate::program::On;
    use crate::rows::Rows;

    #[test]
    fn a_span_of_0_is_a_network_without_spans() {
        let (d, feed) = (Described::digits(), Feed::new(digits::shipped().unwrap(), Told::Class, 3).unwrap());
        let options = Options { on: On::Reference, ..Options::default() };
        // No weight is 0, as they are after a training.
        let random = Random::new(3);
        let full: Weights = d.drawn(true, 1).unwrap().into_iter().map(|(n, t)| {
            let z = random.stream(1, &n).normals(t.len());
            let sum: Vec<f64> = t.to_f64().iter().zip(z).map(|(x, z)| x + 0.05 * z).collect();
            (n, Tensor::from_f64(DType::F32, t.shape(), &sum).unwrap())
        }).collect();
        let plain = d.without_span(&full, &options).unwrap();
        assert!(has_span(&full) && !has_span(&plain));
        let x = Rows::new(&[2, 1, 8, 8], random.stream(0, "x").normals(128)).unwrap();
        let labels: Condition = feed.conditions(&[0, 5]).unwrap().0;
        let (u, zero) = ([0.3, 0.9], [0.0, 0.0]);
        let model = |w: &Weights, span: bool| Model::new(d.network(&feed, span, false).unwrap(), w, &options).unwrap();
        let a = model(&full, true).velocity(&Point { x: &x, times: vec![&u, &zero] }, &labels).unwrap();
        let b = model(&plain, false).velocity(&Point::new(&x, &u), &labels).unwrap();
        let gap = a.data().iter().zip(b.data()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let size = a.data().iter().map(|a| a.abs()).fold(0.0, f64::max);
        assert!(gap < 1e-6 * size && size > 0.1, "{gap} of {size}");
        // The embedding matters: without it the velocity is another.
        let mut cut = full.clone();
        cut.retain(|n, _| !n.starts_with("span_embed."));
        let c = model(&cut, false).velocity(&Point::new(&x, &u), &labels).unwrap();
        assert!(a.data().iter().zip(c.data()).any(|(a, c)| (a - c).abs() > 1e-3 * size));
        assert!(d.without_span(&plain, &options).is_err(), "there is no span to fold");
    }
}
