//! Tensor maps: what the bulk copy engine knows about a tensor in global memory. The driver's 128 bytes are opaque; here a map is this record, and the
//! kernel's parameter is only its place.

/// How 16-byte chunks are permuted in shared memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Swizzle {
    /// Not at all.
    #[default]
    None,
    /// Within 32 bytes, repeating after 256.
    B32,
    /// Within 64 bytes, repeating after 512.
    B64,
    /// Within 128 bytes, repeating after 1024.
    B128,
}

impl Swizzle {
    /// Where the byte that would lie at `address` lies: address bits 4 and up, as many as the span has chunks, are combined with bits 7 and up.
    pub fn apply(self, address: u32) -> u32 {
        let bits = match self {
            Swizzle::None => return address,
            Swizzle::B32 => 1,
            Swizzle::B64 => 3,
            Swizzle::B128 => 7,
        };
        address ^ ((address >> 7 & bits) << 4)
    }
    /// Bytes of the span, or 0.
    pub fn span(self) -> u32 {
        match self {
            Swizzle::None => 0,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }
}

/// A tiled tensor map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Bytes per element.
    pub element: u32,
    /// Elements per axis, the innermost first.
    pub sizes: Vec<u64>,
    /// Bytes from one index to the next, for all axes but the innermost.
    pub strides: Vec<u64>,
    /// Elements of a tile per axis.
    pub tile: Vec<u32>,
    /// In shared memory.
    pub swizzle: Swizzle,
}

impl TensorMap {
    /// Bytes of a tile.
    pub fn tile_bytes(&self) -> u64 {
        self.tile.iter().map(|n| *n as u64).product::<u64>() * self.element as u64
    }
    /// What the driver would refuse.
    pub(super) fn check(&self, bytes: u64) -> Result<(), String> {
        let n = self.sizes.len();
        if n == 0 || n > 5 || self.tile.len() != n || self.strides.len() != n - 1 {
            return Err(format!("a tensor map has 1 to 5 axes, one tile size for each and one stride less; here {n}, {} and {}", self.tile.len(), self.strides.len()));
        }
        if !matches!(self.element, 1 | 2 | 4 | 8) {
            return Err(format!("elements of {} bytes", self.element));
        }
        if let Some(s) = self.strides.iter().find(|s| **s % 16 != 0) {
            return Err(format!("the stride {s} is no multiple of 16 bytes"));
        }
        if self.tile.iter().any(|t| *t == 0 || *t > 256) || self.sizes.contains(&0) {
            return Err(format!("tile {:?} of tensor {:?}: tiles have 1 to 256 elements per axis, tensors at least one", self.tile, self.sizes));
        }
        let inner = self.tile[0] * self.element;
        if inner % 16 != 0 || (self.swizzle != Swizzle::None && inner > self.swizzle.span()) {
            return Err(format!("a tile's innermost axis has {inner} bytes: a multiple of 16, and at most the {} of its swizzle", self.swizzle.span()));
        }
        let last: u64 = self.sizes[1..].iter().zip(&self.strides).map(|(n, s)| (n - 1) * s).sum::<u64>() + self.sizes[0] * self.element as u64;
        if last > bytes {
            return Err(format!("the tensor ends at byte {last}, but the buffer has {bytes}"));
        }
        Ok(())
    }
}
