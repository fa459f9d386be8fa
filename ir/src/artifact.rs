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
    /// The grid has one dimension, with the product of ⌈size / tile⌉ tiles; of these axes the last one is fastest. A block has one, or see `resident`.
    pub grid: Vec<GridAxis>,
    /// Threads of a block.
    pub block: usize,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: usize,
    /// Tensor maps, parameters of 128 bytes behind the numbers.
    #[serde(default)]
    pub maps: Vec<TensorMap>,
    /// Sizes that must be multiples of a number.
    #[serde(default)]
    pub multiples: Vec<(Dim, i64)>,
    /// 0: a block for each tile of the grid. Else blocks stay until no tile is left, and there are at most so many for each multiprocessor.
    #[serde(default)]
    pub resident: usize,
    /// Blocks count tiles in a variable of the module, which a launch leaves as it found it: two launches of one loaded module must not overlap.
    #[serde(default)]
    pub exclusive: bool,
    /// Blocks of a cluster, which share a tile of the grid's last axis; 0 and 1: none. There are so many times as many blocks as tiles of the grid's axes.
    #[serde(default)]
    pub cluster: usize,
}

/// What the bulk copy engine has to know of a buffer; the launcher makes the driver's form of it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TensorMap {
    /// Position of the buffer among the signature's.
    pub buffer: usize,
    /// Elements before the first.
    pub offset: Dim,
    /// At most five axes, the contiguous one first.
    pub axes: Vec<MapAxis>,
    /// Bytes within which 16-byte chunks are exchanged by row: 128.
    pub swizzle: usize,
}

/// One axis of a tensor map.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MapAxis {
    /// Elements. What a tile has beyond them becomes zero.
    pub size: Dim,
    /// Elements from one index to the next.
    pub stride: Dim,
    /// Elements of a tile.
    pub tile: usize,
}

/// A tensor map at known sizes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct MapAt {
    /// Byte of the first element in its buffer.
    pub offset: u64,
    /// Elements per axis, the contiguous one first; at least one each.
    pub sizes: Vec<u64>,
    /// Bytes from one index to the next, for all axes but the first.
    pub strides: Vec<u64>,
    /// Elements of a tile per axis.
    pub tile: Vec<u32>,
}

impl TensorMap {
    /// The map of elements of `elem` bytes where dimensions have these numbers.
    ///
    /// # Errors
    /// A size without a number.
    pub fn at(&self, elem: usize, dims: &Bindings) -> Result<MapAt, DimError> {
        let n = |d: &Dim| Ok(d.eval(dims)?.max(0) as u64);
        Ok(MapAt {
            offset: n(&self.offset)? * elem as u64,
            sizes: self.axes.iter().map(|a| Ok(n(&a.size)?.max(1))).collect::<Result<_, DimError>>()?,
            strides: self.axes[1..].iter().map(|a| Ok(n(&a.stride)? * elem as u64)).collect::<Result<_, DimError>>()?,
            tile: self.axes.iter().map(|a| a.tile as u32).collect(),
        })
    }
}

/// A kernel for a GPU.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct GpuArtifact {
    /// An assembled module for one architecture, or PTX text, which the driver compiles.
    pub code: Vec<u8>,
    /// How to launch it.
    pub signature: GpuSignature,
}

impl GpuSignature {
    /// Whether the kernel may run where dimensions have these numbers.
    ///
    /// # Errors
    /// The size that is no multiple of what it must be one of, or that has no number.
    pub fn allows(&self, dims: &Bindings) -> Result<(), String> {
        for (d, by) in &self.multiples {
            let n = d.eval(dims).map_err(|e| e.to_string())?;
            if n % by != 0 {
                return Err(format!("{}: {d} is {n}, but this kernel was compiled for multiples of {by}; compile it for these sizes", self.symbol));
            }
        }
        for m in &self.maps {
            for a in &m.axes {
                let n = a.size.eval(dims).map_err(|e| e.to_string())?;
                if n > i64::from(i32::MAX) {
                    return Err(format!("{}: bulk copies of `{}` count {n} elements along an axis, and at most 2^31 - 1 are addressed so; compile it by warps", self.symbol, self.buffers[m.buffer].name));
                }
            }
        }
        Ok(())
    }
    /// Blocks to launch on a device of so many multiprocessors.
    ///
    /// # Errors
    /// A size without a number.
    pub fn blocks(&self, dims: &Bindings, multiprocessors: usize) -> Result<i64, DimError> {
        let tiles = self.tiles(dims)?;
        Ok(if self.resident == 0 { tiles } else { tiles.min((self.resident * multiprocessors.max(1)).next_multiple_of(self.cluster.max(1)) as i64) })
    }
    /// Tiles of the grid, one for each block that does not stay.
    ///
    /// # Errors
    /// A size without a number.
    pub fn tiles(&self, dims: &Bindings) -> Result<i64, DimError> {
        self.grid.iter().try_fold(self.cluster.max(1) as i64, |n, g| Ok(n * ((g.size.eval(dims)?.max(0) + g.tile as i64 - 1) / g.tile as i64)))
    }
}
