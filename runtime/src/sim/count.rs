//! What a launch did, in numbers.

use super::op::Memory;
use std::collections::BTreeMap;

/// Bytes by space and direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// Loaded, by all threads together.
    pub loaded: u64,
    /// Stored.
    pub stored: u64,
}

/// The counts of a launch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Instructions issued, one per warp (or part of a warp) each time.
    pub warp_instructions: u64,
    /// The same times the lanes that were active.
    pub thread_instructions: u64,
    /// Issues by class.
    pub by_class: BTreeMap<&'static str, u64>,
    /// Issues by opcode as written.
    pub by_opcode: BTreeMap<String, u64>,
    /// Issues by line of the text.
    pub by_line: BTreeMap<u32, u64>,
    /// Global memory, asynchronous copies included.
    pub global: Bytes,
    /// Shared memory, likewise.
    pub shared: Bytes,
    /// Local memory.
    pub local: Bytes,
    /// Passes over the banks of shared memory that loads, stores and matrix loads took.
    pub shared_wavefronts: u64,
    /// Passes beyond those that the width of the access needs: bank conflicts.
    pub bank_conflicts: u64,
    /// Requests of warps to global memory.
    pub global_requests: u64,
    /// 32-byte sectors that they touched.
    pub global_sectors: u64,
    /// Sectors that the same bytes would fill if they were dense.
    pub global_sectors_ideal: u64,
    /// Multiplications in matrix products.
    pub matrix_products: u64,
    /// Bytes of each output that nobody wrote, by parameter name.
    pub unwritten: BTreeMap<String, u64>,
}

/// The counts of a block.
#[derive(Clone, Debug, Default)]
pub(super) struct Stats {
    /// Issues and lanes by instruction.
    pub issues: Vec<u64>,
    pub lanes: Vec<u64>,
    pub bytes: [Bytes; 3],
    pub wavefronts: u64,
    pub conflicts: u64,
    pub requests: u64,
    pub sectors: u64,
    pub sectors_ideal: u64,
    pub products: u64,
}

impl Stats {
    pub(super) fn new(code: usize) -> Stats {
        Stats { issues: vec![0; code], lanes: vec![0; code], ..Stats::default() }
    }
    pub(super) fn bytes(&mut self, m: Memory) -> &mut Bytes {
        match m {
            Memory::Shared => &mut self.bytes[1],
            Memory::Local => &mut self.bytes[2],
            _ => &mut self.bytes[0],
        }
    }
    pub(super) fn add(&mut self, o: &Stats) {
        for (a, b) in self.issues.iter_mut().zip(&o.issues) {
            *a += b;
        }
        for (a, b) in self.lanes.iter_mut().zip(&o.lanes) {
            *a += b;
        }
        for (a, b) in self.bytes.iter_mut().zip(&o.bytes) {
            a.loaded += b.loaded;
            a.stored += b.stored;
        }
        self.wavefronts += o.wavefronts;
        self.conflicts += o.conflicts;
        self.requests += o.requests;
        self.sectors += o.sectors;
        self.sectors_ideal += o.sectors_ideal;
        self.products += o.products;
    }

    /// One access of a warp to shared memory: the lanes' addresses, `width` bytes each. The banks are 32 of 4 bytes; 8-byte accesses take two passes, of
    /// half a warp each, 16-byte ones four.
    pub(super) fn banks(&mut self, addresses: &[u64; 32], mask: u32, width: u32) {
        let per = if width <= 4 { 32 } else { (128 / width).max(1) as usize };
        for phase in (0..32).step_by(per) {
            let (mut first, mut seen, mut conflict, mut words, mut n) = ([0u32; 32], 0u32, false, [0u32; 256], 0);
            for l in (phase..phase + per).filter(|l| mask >> l & 1 != 0) {
                for w in 0..width.div_ceil(4) {
                    let word = (addresses[l] / 4) as u32 + w;
                    let bank = (word % 32) as usize;
                    words[n] = word;
                    n += 1;
                    if seen >> bank & 1 == 0 {
                        seen |= 1 << bank;
                        first[bank] = word;
                    } else {
                        conflict |= first[bank] != word;
                    }
                }
            }
            if n > 0 {
                let mut passes = 1;
                if conflict {
                    words[..n].sort_unstable();
                    let mut per_bank = [0u64; 32];
                    for i in 0..n {
                        if i == 0 || words[i] != words[i - 1] {
                            per_bank[(words[i] % 32) as usize] += 1;
                        }
                    }
                    passes = per_bank.iter().copied().max().unwrap_or(1);
                }
                self.wavefronts += passes;
                self.conflicts += passes - 1;
            }
        }
    }

    /// One access of a warp to global memory.
    pub(super) fn coalescing(&mut self, addresses: &[u64; 32], mask: u32, width: u32) {
        if mask == 0 {
            return;
        }
        let mut sectors = [0u64; 64];
        let mut n = 0;
        let mut starts = [0u64; 32];
        let mut m = 0;
        for l in 0..32 {
            if mask >> l & 1 == 0 {
                continue;
            }
            let (a, b) = (addresses[l] / 32, (addresses[l] + width as u64 - 1) / 32);
            for s in a..=b {
                if n == 0 || (sectors[n - 1] != s && !sectors[..n].contains(&s)) {
                    sectors[n] = s;
                    n += 1;
                }
            }
            if m == 0 || (starts[m - 1] != addresses[l] && !starts[..m].contains(&addresses[l])) {
                starts[m] = addresses[l];
                m += 1;
            }
        }
        self.requests += 1;
        self.sectors += n as u64;
        self.sectors_ideal += (m as u64 * width as u64).div_ceil(32);
    }
}
