//! Compiled code with everything needed to launch it: the one meeting point of `codegen` and `runtime`.

use crate::dim::{Bindings, Dim, DimError, Name};
use crate::tile::{Buffer, Program, Role};
use serde::{Deserialize, Serialize};

/// How to launch a kernel. Arguments that differ from it are an error, not a launch.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Signature {
    /// Symbol in the code.
    pub symbol: String,
    /// Buffer arguments, in order.
    pub buffers: Vec<Buffer>,
    /// Run-time dimensions, in the order in which their numbers are passed.
    pub dims: Vec<Name>,
    /// The grid: size and tile per parallel axis, the last one fastest. `tile` 1 for an axis walked index by index.
    pub grid: Vec<GridAxis>,
    /// Bytes of scratch memory per running instance, 64-byte aligned: `scratch_fixed + panels·scratch_panel`.
    pub scratch_fixed: usize,
    /// Scratch bytes per panel of the lane axis.
    pub scratch_panel: usize,
    /// Most panels per instance; the launcher chooses 1..=this. 1 where the notion does not apply.
    pub max_panels: usize,
}

/// One dimension of the grid.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct GridAxis {
    /// Elements.
    pub size: Dim,
    /// Elements per instance, times the number of panels if `panels`.
    pub tile: usize,
    /// Whether the launcher's panel count multiplies the tile.
    pub panels: bool,
}

/// A compiled kernel.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Artifact {
    /// Target name and features, `cpu:znver3+avx2`, `sm_90a`.
    pub target: String,
    /// Object code (ELF relocatable) or PTX text.
    pub code: Vec<u8>,
    /// How to launch it.
    pub signature: Signature,
}

impl Signature {
    /// The grid that `p` asks for, without panels.
    pub fn grid_of(p: &Program) -> Vec<GridAxis> {
        let parallel = |a: &crate::tile::TileAxis| match a.role {
            Role::Grid => Some(1),
            Role::Block(n) => Some(n),
            Role::Stream(_) | Role::Full(_) => None,
        };
        p.axes.iter().filter_map(|a| parallel(a).map(|tile| GridAxis { size: a.size.clone(), tile, panels: false })).collect()
    }
}

/// How to launch a kernel on a GPU: its parameters are one 64-bit address per buffer, then one 64-bit number per dimension, in order.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct GpuSignature {
    /// Entry point.
    pub symbol: String,
    /// Buffer parameters; addresses are multiples of 16 bytes.
    pub buffers: Vec<Buffer>,
    /// Run-time dimensions.
    pub dims: Vec<Name>,
    /// The grid has one dimension, with the product of ⌈size / tile⌉ blocks; of these axes the last one is fastest.
    pub grid: Vec<GridAxis>,
    /// Threads of a block.
    pub block: usize,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: usize,
}

impl GpuSignature {
    /// Blocks of the grid.
    ///
    /// # Errors
    /// A size without a number.
    pub fn blocks(&self, dims: &Bindings) -> Result<i64, DimError> {
        self.grid.iter().try_fold(1, |n, g| Ok(n * ((g.size.eval(dims)?.max(0) + g.tile as i64 - 1) / g.tile as i64)))
    }
}
