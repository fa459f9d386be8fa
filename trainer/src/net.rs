//! Networks as IR functions: Wan2.1, Cosmos-Predict2, and a small transformer for images. A network file has equations only: derivatives come
//! from the passes, kernels from `fuse`, weights from checkpoint files by the names that the function's parameters carry
//! (`docs/networks.md`).

pub mod arguments;
pub mod checkpoint;
pub mod config;
pub mod cosmos;
pub mod cost;
pub mod dit;
mod graph;
mod grid;
pub mod keys;
pub mod precision;
pub mod wan;

pub use config::Config;
pub use graph::{Init, Weight};
pub use precision::Precision;

use graph::Graph;
use ir::diagnostic::Error;
use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::types::Axis;

/// What `timestep` has one number for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Time {
    /// A sample: `[B]`.
    #[default]
    PerSample,
    /// A frame: `[B,1,T,1,1]`.
    PerFrame,
    /// A token: `[B,N]`.
    PerToken,
}

/// How the padding mask gets the latent's size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resize {
    /// It has it.
    Same,
    /// By taking the nearest element below.
    Nearest,
}

/// Which of a network's optional arguments there are. Batch, frames, height, width and text length stay names (`B T H W L`); the rest of a
/// network's shape is its configuration's.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Variant {
    /// The shape of `timestep`.
    pub time: Time,
    /// Cosmos: frames a second; without it positions are frame numbers.
    pub fps: Option<f64>,
    /// Cosmos: the last of `in_channels` comes as `condition_mask`.
    pub condition_mask: bool,
    /// Cosmos: `padding_mask`, and whether it has the latent's size.
    pub padding_mask: Option<Resize>,
    /// Wan: `encoder_hidden_states_image`.
    pub image: bool,
    /// The number of text tokens, where it is known; image to video needs it unless it is 512.
    pub text: Option<i64>,
    /// The number of image tokens, where it is known.
    pub image_tokens: Option<i64>,
    /// The image network: a second time, `timespan`.
    pub span: bool,
    /// The image network: the last block's tokens as a second result, `features`.
    pub features: bool,
    /// The epsilon of q's and k's norms in place of the network's own.
    pub qk_eps: Option<f64>,
}

/// A network: a function of inputs, then of weights, with the result `out`.
#[derive(Clone, Debug)]
pub struct Network {
    /// The function. Its parameters are `inputs` and `weights`.
    pub function: Function,
    /// Arguments, under diffusers' names.
    pub inputs: Vec<Name>,
    /// Parameters, under diffusers' checkpoint keys, in order.
    pub weights: Vec<Weight>,
    /// Axes of the grid of patches, how long they may be, and how many latent elements a patch has.
    limits: Vec<(Axis, i64, i64)>,
}

impl Network {
    fn new(g: Graph, limits: Vec<(Axis, i64, i64)>) -> Network {
        let (mut function, weights) = g.finish();
        let known: std::collections::BTreeSet<&Name> = weights.iter().map(|w| &w.name).collect();
        let inputs: Vec<Name> = function.params.iter().filter(|p| !known.contains(&p.name)).map(|p| p.name.clone()).collect();
        function.params.sort_by_key(|p| known.contains(&p.name));
        Network { function, inputs, weights, limits }
    }
    /// The network of a configuration.
    ///
    /// # Errors
    /// A variant that it has not.
    pub fn build(config: &Config, variant: &Variant, precision: Precision) -> Result<Network, Error> {
        match config {
            Config::Wan(c) => wan::build(c, variant, precision),
            Config::Cosmos(c) => cosmos::build(c, variant, precision),
            Config::Dit(c) => dit::build(c, variant, precision),
        }
    }
    /// Number of elements of all weights.
    pub fn parameters(&self) -> u64 {
        self.weights.iter().map(|w| w.len() as u64).sum()
    }
    /// Whether positions exist for these sizes.
    ///
    /// # Errors
    /// The axis that is too long, or is not a whole number of patches, with both numbers.
    pub fn check(&self, dims: &Bindings) -> Result<(), Error> {
        let names = ["frames", "height", "width"];
        for ((axis, most, patch), what) in self.limits.iter().zip(names) {
            match axis.size.eval(dims) {
                Ok(n) if n > *most => return Err(Error::new(format!("{what}: {n} patches of {patch}, but the network has positions for {most}"))),
                Ok(_) => {}
                Err(e @ ir::dim::DimError::NotWhole(_)) => return Err(Error::new(format!("{what}: {e}; patches are of {patch}"))),
                Err(_) => {}
            }
        }
        Ok(())
    }
}
