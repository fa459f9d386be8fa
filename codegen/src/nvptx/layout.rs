//! Where elements stand: in the registers of a block's threads, and in shared memory. Pure functions of the schedule, tested
//! without a GPU.
//!
//! One formula describes every register tile. A warp's 32 lanes form `32/lanes` rows by `lanes` columns; a thread holds `rows` row
//! slots and, per column axis, column slots in vectors of `vector` neighbours. With four lanes and vectors of two this *is* the
//! accumulator of `mma.m16n8k16`, and two adjacent accumulators, packed, are its left operand (PTX ISA, "Matrix Fragments for
//! mma.m16n8k16"); with 32 lanes it is a row per warp; with eight lanes and single elements it is a register tile of fused
//! multiply-adds. A reduction over columns is one over a thread's slots, then over the lanes of a row.

/// How a tile of rows × columns is spread over threads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Fragment {
    /// Warps along rows, and along the one column axis that is split over warps.
    pub warps: [usize; 2],
    /// Lanes of a warp along columns: a power of two.
    pub lanes: usize,
    /// Neighbouring columns in one thread.
    pub vector: usize,
    /// Rows in one thread.
    pub rows: usize,
}

impl Fragment {
    /// Threads of a block.
    pub fn threads(&self) -> usize {
        32 * self.warps[0] * self.warps[1]
    }
    /// Lanes of a warp along rows.
    pub fn row_lanes(&self) -> usize {
        32 / self.lanes
    }
    /// Rows of a warp.
    pub fn rows_per_warp(&self) -> usize {
        self.rows * self.row_lanes()
    }
    /// Rows of a block.
    pub fn rows_per_block(&self) -> usize {
        self.rows_per_warp() * self.warps[0]
    }
    /// Row of slot `slot`, relative to the thread's first.
    pub fn row_offset(&self, slot: usize) -> usize {
        slot * self.row_lanes()
    }
    /// Column slots for `extent` columns of one warp: whole vectors in every lane.
    pub fn slots(&self, extent: usize) -> usize {
        extent.div_ceil(self.lanes * self.vector) * self.vector
    }
    /// Columns that `slots` column slots of a warp span.
    pub fn span(&self, slots: usize) -> usize {
        slots * self.lanes
    }
    /// Column of slot `slot`, relative to the thread's first.
    pub fn col_offset(&self, slot: usize) -> usize {
        slot / self.vector * self.lanes * self.vector + slot % self.vector
    }
    /// Row and column, within the warp, of a slot of lane `lane`.
    pub fn place(&self, lane: usize, row: usize, col: usize) -> (usize, usize) {
        (lane / self.lanes + self.row_offset(row), lane % self.lanes * self.vector + self.col_offset(col))
    }
    /// The lanes that share a row differ in these bits.
    pub fn masks(&self) -> Vec<usize> {
        (0..self.lanes.trailing_zeros()).map(|b| 1 << b).collect()
    }
}

/// Bytes of a panel's row: what one 128-byte swizzle spans.
pub const PANEL: usize = 128;

/// A tile in shared memory: rows of `cols` contiguous elements, cut into panels of 128 bytes a row; the last panel is narrower if
/// that holds the rest. Within a panel, 16-byte chunks are exchanged by row so that eight rows of one column of chunks lie in
/// different banks. Panels of full width are the 128-byte swizzle of the bulk tensor copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tile {
    /// Rows.
    pub rows: usize,
    /// Elements of a row, those beyond the axis included.
    pub cols: usize,
    /// Bytes of an element.
    pub elem: usize,
    /// Rows follow each other, an odd number of chunks apart, instead of panels: for operands that single elements are read of.
    pub linear: bool,
}

impl Tile {
    /// Number of panels.
    pub fn panels(&self) -> usize {
        (self.cols * self.elem).div_ceil(PANEL)
    }
    /// 16-byte chunks of a row of panel `panel`: 8, or a smaller power of two.
    pub fn width(&self, panel: usize) -> usize {
        let rest = self.cols * self.elem - panel * PANEL;
        if rest >= PANEL { 8 } else { rest.div_ceil(16).next_power_of_two().max(2) }
    }
    /// Elements of a row of a full panel.
    pub fn panel_cols(&self) -> usize {
        PANEL / self.elem
    }
    /// Bytes from a row of panel `panel` to the next.
    pub fn pitch(&self, panel: usize) -> usize {
        if self.linear { (((self.panels() - 1) * 8 + self.width(self.panels() - 1)) | 1) * 16 } else { self.width(panel) * 16 }
    }
    /// Byte of a panel's first element.
    pub fn panel_base(&self, panel: usize) -> usize {
        if self.linear { panel * PANEL } else { panel * PANEL * self.rows }
    }
    /// Bytes, a multiple of 1024.
    pub fn bytes(&self) -> usize {
        let last = self.panels() - 1;
        (if self.linear { self.rows * self.pitch(0) } else { self.panel_base(last) + self.rows * self.width(last) * 16 }).next_multiple_of(1024)
    }
    /// What the chunk number of row `row` of panel `panel` is combined with.
    pub fn swizzle(&self, panel: usize, row: usize) -> usize {
        if self.linear { 0 } else { swizzle(self.width(panel), row) }
    }
    /// Byte of element (`row`, `col`).
    pub fn offset(&self, row: usize, col: usize) -> usize {
        let (panel, in_row) = (col * self.elem / PANEL, col * self.elem % PANEL);
        self.panel_base(panel) + row * self.pitch(panel) + ((in_row / 16) ^ self.swizzle(panel, row)) * 16 + in_row % 16
    }
}

/// What the chunk number of row `row` is combined with, in panels of `width` chunks.
pub fn swizzle(width: usize, row: usize) -> usize {
    match width {
        8 => row & 7,
        4 => row >> 1 & 3,
        2 => row >> 2 & 1,
        _ => 0,
    }
}

/// Which lane gives which row's address to a fourfold `ldmatrix`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Lanes {
    /// Lanes 8 to 15 the lower rows, 16 to 31 the next chunk: left operands stored by rows, right operands by the summed axis.
    Near,
    /// The other way round: right operands stored by columns, left operands by the summed axis.
    Far,
}

impl Lanes {
    /// Row and chunk of `lane`, relative to the first of the 16 × 16 block.
    pub fn place(self, lane: usize) -> (usize, usize) {
        let (low, b3, b4) = (lane & 7, lane >> 3 & 1, lane >> 4 & 1);
        match self {
            Lanes::Near => (low + 8 * b3, b4),
            Lanes::Far => (low + 8 * b4, b3),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const MMA: Fragment = Fragment { warps: [4, 1], lanes: 4, vector: 2, rows: 2 };

    #[test]
    fn accumulators_are_as_the_instruction_has_them() {
        // groupID = lane >> 2; row = groupID (+ 8 for c2, c3); column = (lane % 4)·2 + (i & 1).
        for lane in 0..32 {
            for i in 0..4 {
                let want = (lane / 4 + if i >= 2 { 8 } else { 0 }, lane % 4 * 2 + (i & 1));
                assert_eq!(MMA.place(lane, i / 2, i % 2), want);
            }
        }
        // The next eight columns are the next two slots.
        assert_eq!(MMA.place(0, 0, 2), (0, 8));
    }

    #[test]
    fn packed_accumulators_are_left_operands() {
        // a0, a1: (row, k = (lane % 4)·2 + {0, 1}); a2, a3: row + 8; a4…a7: k + 8.
        for lane in 0..32 {
            for i in 0..8 {
                let want = (lane / 4 + if i / 2 % 2 == 1 { 8 } else { 0 }, lane % 4 * 2 + (i & 1) + if i >= 4 { 8 } else { 0 });
                assert_eq!(MMA.place(lane, i / 2 % 2, i % 2 + if i >= 4 { 2 } else { 0 }), want);
            }
        }
    }

    #[test]
    fn fragments_hold_every_element_once() {
        for f in [MMA, Fragment { warps: [2, 1], lanes: 32, vector: 8, rows: 3 }, Fragment { warps: [1, 1], lanes: 8, vector: 1, rows: 4 }] {
            let slots = f.slots(2 * f.lanes * f.vector);
            let mut seen = BTreeSet::new();
            for lane in 0..32 {
                for r in 0..f.rows {
                    for c in 0..slots {
                        assert!(seen.insert(f.place(lane, r, c)));
                    }
                }
            }
            assert_eq!(seen.len(), f.rows_per_warp() * f.span(slots));
            assert_eq!(seen.last(), Some(&(f.rows_per_warp() - 1, f.span(slots) - 1)));
        }
    }

    #[test]
    fn tiles_are_dense_and_free_of_conflicts() {
        for cols in [16, 24, 32, 40, 48, 64, 72, 80, 96, 128, 256] {
            for elem in [2, 4] {
                let t = Tile { rows: 32, cols, elem, linear: false };
                let mut seen = BTreeSet::new();
                for r in 0..t.rows {
                    for c in 0..cols {
                        assert!(seen.insert(t.offset(r, c)) && t.offset(r, c) + elem <= t.bytes());
                    }
                }
                // Eight rows of one chunk, as `ldmatrix` reads them, are 128 different bytes of banks.
                for first in (0..t.rows).step_by(8) {
                    for c in (0..cols).step_by(16 / elem) {
                        let banks: BTreeSet<usize> = (first..first + 8).map(|r| t.offset(r, c) / 16 % 8).collect();
                        assert_eq!(banks.len(), 8, "{t:?} rows from {first}, column {c}");
                    }
                }
            }
        }
        // Rows one after the other: single elements of eight rows lie in different banks.
        for cols in [4, 16, 33, 64, 80] {
            let t = Tile { rows: 16, cols, elem: 4, linear: true };
            let banks: BTreeSet<usize> = (0..8).map(|r| t.offset(r, 1) / 4 % 32).collect();
            assert_eq!(banks.len(), 8, "{cols}");
            assert!(t.offset(15, cols - 1) + 4 <= t.bytes());
        }
        // d = 80: a full panel and one of 16 columns.
        let t = Tile { rows: 48, cols: 80, elem: 2, linear: false };
        assert_eq!((t.panels(), t.width(0), t.width(1)), (2, 8, 2));
        assert_eq!(t.bytes(), 48 * 128 + 2048);
    }

    #[test]
    fn lane_addresses_step_by_constants() {
        // 16 rows further and another pair of chunks differ from the lane's address by a constant and an exclusive or.
        let t = Tile { rows: 64, cols: 80, elem: 2, linear: false };
        for l in [Lanes::Near, Lanes::Far] {
            for lane in 0..32 {
                let (row, chunk) = l.place(lane);
                for panel in 0..t.panels() {
                    let w = t.width(panel);
                    for block in 0..4 {
                        for pair in 0..w / 2 {
                            let base = row * w * 16 + ((2 * pair + chunk) ^ swizzle(w, row)) * 16;
                            let col = panel * 64 + (2 * pair + chunk) * 8;
                            assert_eq!(t.offset(row + 16 * block, col), t.panel_base(panel) + 16 * block * w * 16 + base);
                        }
                    }
                }
            }
        }
    }
}
