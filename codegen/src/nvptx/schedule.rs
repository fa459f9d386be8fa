//! Schedules: what a kernel may choose, and the choice without measurements.

use super::layout::Fragment;
use super::plan::{Dot, Plan, roles};
use crate::Error;
use crate::target::GpuTarget;
use ir::tile::{AxisId, Op, Program, Role, Stmt};
use ir::types::DType;

/// How a program runs on a GPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule {
    /// Rows of a block: tile of the row axis.
    pub rows: usize,
    /// Tile of another parallel axis that lies along columns.
    pub cols: usize,
    /// Tile of streamed axes.
    pub stream: usize,
    /// Tiles of operands in shared memory at once: 1 copies, waits, computes.
    pub stages: usize,
    /// Register tiles.
    pub fragment: Fragment,
    /// Blocks that are to fit on a multiprocessor: limits registers.
    pub blocks: usize,
}

impl Schedule {
    /// Tensor cores: `rows` by warps of 16 · `blocks16` rows.
    pub fn tensor(rows: usize, cols: usize, stream: usize, warps: [usize; 2], stages: usize) -> Schedule {
        let fragment = Fragment { warps, lanes: 4, vector: 2, rows: rows / warps[0] / 8 };
        Schedule { rows, cols, stream, stages, fragment, blocks: 1 }
    }
}

/// The largest tiles that fit, by the number of registers and bytes that they take.
///
/// # Errors
/// No schedule fits, or the program has no form on GPUs.
pub fn default_schedule(p: &Program, target: &GpuTarget) -> Result<Schedule, Error> {
    let candidates = candidates(p)?;
    let mut why = None;
    for s in &candidates {
        match Plan::new(p, target, s) {
            Ok(plan) => {
                if registers(&plan) <= target.registers_per_thread.min(target.registers_per_sm / plan.fragment.threads()) {
                    return Ok(s.clone());
                }
                why.get_or_insert(Error::Gpu(format!("{}: no schedule fits into {} registers a thread of {}", p.name, target.registers_per_thread, target.name)));
            }
            Err(e) => why = Some(e),
        }
    }
    Err(why.unwrap_or_else(|| Error::Internal("no candidates".into())))
}

/// Schedules, the best first.
fn candidates(p: &Program) -> Result<Vec<Schedule>, Error> {
    let (rows, dots) = roles(p)?;
    let matrix = dots.values().any(|d| matches!(d, Dot::Matrix { .. }));
    let tensor = matrix && p.operands != DType::F32;
    let two_blocks = p.axes.iter().enumerate().any(|(i, a)| matches!(a.role, Role::Block(_)) && Some(AxisId(i as u32)) != rows);
    let mut out = vec![];
    if tensor && two_blocks {
        for (r, c, k, w) in [(128, 128, 64, [4, 2]), (128, 64, 64, [4, 2]), (128, 64, 32, [4, 2]), (64, 64, 32, [2, 2]), (64, 32, 32, [4, 1]), (32, 32, 32, [2, 1])] {
            for stages in [3, 2] {
                out.push(Schedule::tensor(r, c, k, w, stages));
            }
        }
        return Ok(out);
    }
    if tensor {
        for rows in [128, 64] {
            for stream in [128, 112, 96, 80, 64, 48, 32, 16] {
                for stages in [2, 1] {
                    out.push(Schedule::tensor(rows, 16, stream, [rows / 16, 1], stages));
                }
            }
        }
        // The streamed tile counts for more than the rows.
        out.sort_by_key(|s| std::cmp::Reverse(s.rows.min(128) * s.stream * 4 + s.stages * s.stream));
        return Ok(out);
    }
    if matrix {
        // Fused multiply-adds: eight lanes to a row.
        let f = |warps: [usize; 2], rows| Fragment { warps, lanes: 8, vector: 1, rows };
        if two_blocks {
            for (warps, rows, cols, stream) in [([4, 2], 4, 128, 32), ([4, 2], 4, 64, 32), ([4, 1], 2, 32, 16), ([2, 1], 1, 16, 16)] {
                let fragment = f(warps, rows);
                out.push(Schedule { rows: fragment.rows_per_block(), cols, stream, stages: 2, fragment, blocks: 1 });
            }
        } else {
            for (rows, stream, stages) in [(4, 32, 2), (4, 32, 1), (4, 16, 1), (2, 32, 2), (2, 32, 1), (2, 16, 1), (1, 32, 1), (1, 16, 1)] {
                let fragment = f([4, 1], rows);
                out.push(Schedule { rows: fragment.rows_per_block(), cols: 8, stream, stages, fragment, blocks: 1 });
            }
        }
        return Ok(out);
    }
    // Rows in warps: 16 bytes a lane where that is not more than the row has.
    let widest = p.buffers.iter().map(|b| b.dtype.bytes()).min().unwrap_or(4).max(2);
    let vector = 16 / widest;
    let longest = p.axes.iter().filter_map(|a| if let Role::Full(n) = a.role { Some(n) } else { None }).max();
    let streamed = p.axes.iter().any(|a| matches!(a.role, Role::Stream(_)));
    let (mut lanes, mut warps) = (32, 1);
    if let (Some(n), false) = (longest, streamed) {
        while lanes > 1 && lanes * vector / 2 >= n {
            lanes /= 2;
        }
        while warps < 16 && n > lanes * vector * warps * 2 {
            warps *= 2;
        }
    }
    let has_block_col = two_blocks;
    let fragment = if rows.is_none() && longest.is_none() {
        Fragment { warps: [1, 4], lanes: 32, vector, rows: 1 }
    } else if has_block_col {
        Fragment { warps: [4, 1], lanes: 32, vector, rows: 1 }
    } else {
        Fragment { warps: [(4 / warps).max(1), warps], lanes, vector, rows: 1 }
    };
    let cols = if rows.is_none() { fragment.warps[1] * 32 * vector } else { 32 * vector };
    let stream = if streamed { 32 * vector } else { 16 };
    out.push(Schedule { rows: fragment.rows_per_block(), cols, stream, stages: 1, fragment, blocks: 1 });
    let fragment = Fragment { vector: 1, ..fragment };
    out.push(Schedule { rows: fragment.rows_per_block(), cols: cols / vector, stream: if streamed { 32 } else { 16 }, stages: 1, fragment, blocks: 1 });
    Ok(out)
}

/// About how many registers a thread needs: what is carried through the loop, what a group of products makes, what of that is
/// packed for the next, and addresses.
pub fn registers(plan: &Plan) -> usize {
    let size = |v| {
        let (r, c) = plan.shape(plan.rank(v));
        r * c
    };
    let mut most = 0;
    let mut resident = 0;
    for s in &plan.p.body {
        match s {
            Stmt::For(l) => {
                let carried: usize = l.carries.iter().map(|c| size(c.init)).sum();
                let mut made = 0;
                let mut packed = 0;
                for s in &l.body {
                    if let Stmt::Let(v, op) = s {
                        if matches!(op, Op::Dot { .. }) && !l.carries.iter().any(|c| c.next == *v) {
                            made += size(*v);
                        }
                        if plan.packed.contains(v) {
                            packed = packed.max(size(*v) / 2);
                        }
                    }
                }
                let overhead = if plan.tensor { 60 } else { 40 };
                most = most.max(carried + made + packed + overhead);
            }
            Stmt::Let(v, _) => resident = resident.max(size(*v)),
            Stmt::Store(..) => {}
        }
    }
    most.max(resident * 2 + 30)
}
