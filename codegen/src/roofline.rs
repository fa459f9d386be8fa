//! What a kernel's machine code asks of each unit of a multiprocessor: instructions of its main loop, and the clocks that they take there. Static:
//! what it says is a bound on speed, not a measurement.
//!
//! The idea is the roofline's (Williams, Waterman, Patterson, 2009), with one roof per unit: a loop is no faster than its busiest unit.

use crate::target::GpuTarget;

/// Instructions of one loop, per warp and iteration, by the unit that they keep busy.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// All.
    pub all: usize,
    /// `mma.m16n8k16` of 16-bit elements.
    pub hmma: usize,
    /// `mma.m16n8k8` of tf32 elements, and others of that size.
    pub hmma8: usize,
    /// Products of a warpgroup.
    pub hgmma: usize,
    /// Columns of those, once per 16 of the summed axis: `64xNx16` has N.
    pub hgmma_columns: usize,
    /// f32 additions, multiplications and both at once, extrema and selections.
    pub fp32: usize,
    /// Those of them that are fused multiply-adds.
    pub ffma: usize,
    /// Special functions.
    pub mufu: usize,
    /// Matrix loads from shared memory.
    pub ldsm: usize,
    /// Asynchronous copies to shared memory.
    pub ldgsts: usize,
    /// Other accesses of shared memory.
    pub shared: usize,
    /// Accesses of global memory.
    pub global: usize,
    /// Accesses of local memory: spilled registers.
    pub local: usize,
    /// Barriers of the block.
    pub barriers: usize,
}

impl Counts {
    fn add(&mut self, op: &str) {
        let (head, rest) = op.split_once('.').unwrap_or((op, ""));
        self.all += 1;
        match head {
            "HMMA" if rest.starts_with("1688") => self.hmma8 += 1,
            "HMMA" => self.hmma += 1,
            "HGMMA" => {
                let mut shape = rest.split('.').next().unwrap_or("").split('x').filter_map(|n| n.parse::<usize>().ok()).skip(1);
                self.hgmma += 1;
                self.hgmma_columns += shape.next().unwrap_or(0) * shape.next().unwrap_or(16) / 16;
            }
            "FFMA" | "FFMA2" => {
                self.ffma += 1;
                self.fp32 += 1;
            }
            "FADD" | "FMUL" | "FADD2" | "FMUL2" | "FMNMX" | "FMNMX3" | "FSEL" | "FSETP" => self.fp32 += 1,
            "MUFU" => self.mufu += 1,
            "LDSM" => self.ldsm += 1,
            "LDGSTS" => self.ldgsts += 1,
            "LDS" | "STS" | "STSM" => self.shared += 1,
            "LDG" | "STG" | "LD" | "ST" => self.global += 1,
            "LDL" | "STL" => self.local += 1,
            "BAR" => self.barriers += 1,
            _ => {}
        }
    }
    fn products(&self) -> usize {
        self.hmma + self.hmma8 + self.hgmma
    }
}

/// The instructions of a kernel as `nvdisasm -c` prints them: the whole, and its main loop: of all loops the one with the most matrix products, else
/// multiply-adds, else instructions; of several such, the innermost. None if there is no loop.
pub fn counts(sass: &str) -> (Counts, Option<Counts>) {
    let mut ops: Vec<&str> = vec![];
    let mut labels: Vec<(&str, usize)> = vec![];
    let mut loops: Vec<(usize, usize)> = vec![];
    for line in sass.lines() {
        let line = line.trim();
        if let Some(label) = line.strip_suffix(':')
            && label.starts_with(".L")
        {
            labels.push((label, ops.len()));
        }
        let Some(code) = line.strip_prefix("/*").and_then(|l| l.split_once("*/")).map(|l| l.1.trim_start()).filter(|c| c.ends_with(';')) else { continue };
        let code = if code.starts_with('@') { code.split_once(' ').map_or("", |c| c.1.trim_start()) } else { code };
        let op = code.split([' ', ';']).next().unwrap_or("");
        if op.is_empty() {
            continue;
        }
        // A jump to an earlier place; a jump to itself ends the code.
        if op.starts_with("BRA")
            && let Some(to) = code.split_once("`(").and_then(|c| c.1.split_once(')')).map(|c| c.0)
            && let Some((_, start)) = labels.iter().find(|l| l.0 == to)
            && *start < ops.len()
        {
            loops.push((*start, ops.len()));
        }
        ops.push(op);
    }
    let of = |from: usize, to: usize| {
        let mut c = Counts::default();
        ops[from..to].iter().for_each(|o| c.add(o));
        c
    };
    let main = loops.into_iter().map(|(from, to)| of(from, to + 1)).max_by_key(|c| (c.products(), if c.products() > 0 { 0 } else { c.ffma }, std::cmp::Reverse(if c.products() + c.ffma > 0 { c.all } else { 0 }), c.all));
    (of(0, ops.len()), main)
}

/// Blocks of a kernel on a multiprocessor at once.
pub fn occupancy(target: &GpuTarget, threads: usize, registers: usize, shared: usize) -> usize {
    // Registers are given in eights to a warp's lanes; a block's shared memory has 1 KB for the system; a multiprocessor runs 2048 threads and 32 blocks.
    let by_registers = target.registers_per_sm / (registers.max(1).next_multiple_of(8) * threads.next_multiple_of(32)).max(1);
    by_registers.min(target.shared_per_sm / (shared + 1024)).min(2048 / threads.max(1)).min(32)
}

/// What a multiprocessor does in a clock, and the chip that it is part of.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rates {
    /// Clocks of an `mma.m16n8k16`.
    pub hmma: f64,
    /// Clocks per column of a warpgroup's product of 64 rows and 16 of the summed axis; 0 where there is none.
    pub hgmma_column: f64,
    /// f32 operations of single lanes.
    pub fp32: f64,
    /// Special functions of single lanes.
    pub special: f64,
    /// Multiprocessors.
    pub multiprocessors: f64,
    /// Clocks a second.
    pub clock: f64,
    /// Bytes a second between memory and chip.
    pub memory: f64,
}

/// Rates of the chip that an architecture is sold as: A100 80 GB, H100 SXM, B200. From NVIDIA's white papers: dense 16-bit rate, f32 lanes, four special-function
/// units a quarter. `mma.sync` reaches five eighths of the warpgroup rate on Hopper, which is measured; on Blackwell Ampere's rate is an assumption.
pub fn rates(target: &GpuTarget) -> Rates {
    match target.name.as_str() {
        "sm_80" => Rates { hmma: 2.0, hgmma_column: 0.0, fp32: 64.0, special: 16.0, multiprocessors: 108.0, clock: 1.41e9, memory: 2.04e12 },
        "sm_100a" => Rates { hmma: 2.0, hgmma_column: 0.0, fp32: 128.0, special: 16.0, multiprocessors: 148.0, clock: 1.85e9, memory: 8.0e12 },
        _ => Rates { hmma: 1.6, hgmma_column: 0.5, fp32: 128.0, special: 16.0, multiprocessors: 132.0, clock: 1.755e9, memory: 3.35e12 },
    }
}

/// A unit, and the clocks that it is busy.
pub type Busy = (&'static str, f64);

/// Clocks of a multiprocessor per iteration of a loop that `warps` warps of a block run, by unit, the busiest first.
pub fn clocks(target: &GpuTarget, c: &Counts, warps: usize) -> Vec<Busy> {
    let (r, w) = (rates(target), warps as f64);
    let mut all = vec![
        // Four warps share a product of a warpgroup.
        ("tensor cores", w * ((c.hmma as f64 + c.hmma8 as f64) * r.hmma + c.hgmma_columns as f64 * r.hgmma_column / 4.0)),
        ("fp32", w * c.fp32 as f64 * 32.0 / r.fp32),
        ("special functions", w * c.mufu as f64 * 32.0 / r.special),
        // 512 bytes an instruction of a warp with 16 bytes a lane, 128 bytes a clock.
        ("shared memory", w * (4 * (c.ldsm + c.ldgsts) + 2 * c.shared) as f64),
        ("issue", w * c.all as f64 / 4.0),
    ];
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all
}

/// Floating-point operations of an iteration of the loop of a block with `warps` warps: its products, or else its multiply-adds.
pub fn flops(c: &Counts, warps: usize) -> f64 {
    let products = (c.hmma * 4096 + c.hmma8 * 2048) as f64 + c.hgmma_columns as f64 * (64 * 16 * 2) as f64 / 4.0;
    warps as f64 * if products > 0.0 { products } else { (c.ffma * 64) as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
.text.k:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   MUFU.EX2 R3, R3 ;
.L_x_2:
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0030*/              @!P0 HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0040*/                   LDSM.16.MT88.4 R8, [R2] ;
        /*0050*/               @P0 BRA `(.L_x_2) ;
        /*0060*/                   FFMA R1, R2, R3, R4 ;
        /*0070*/                   BRA `(.L_x_1) ;
.L_x_3:
        /*0080*/                   BRA `(.L_x_3) ;
";

    #[test]
    fn the_main_loop_is_the_innermost_with_the_products() {
        let (whole, main) = counts(TEXT);
        assert_eq!((whole.all, whole.mufu, whole.ffma), (9, 1, 1));
        assert_eq!(main, Some(Counts { all: 4, hmma: 2, ldsm: 1, ..Counts::default() }));
        assert_eq!(counts("        /*0000*/                   EXIT ;").1, None);
        let (group, _) = counts("        /*0000*/                   HGMMA.64x96x16.F32.BF16 R4, gdesc[UR4], R4, gsb0 ;");
        assert_eq!((group.hgmma, group.hgmma_columns, flops(&group, 4)), (1, 96, (64 * 96 * 16 * 2) as f64));
    }

    #[test]
    fn the_scarcest_resource_decides_how_many_blocks_fit() {
        let t = GpuTarget::named("sm_90a").unwrap();
        assert_eq!(occupancy(&t, 256, 255, 0), 1);
        assert_eq!(occupancy(&t, 128, 168, 100 << 10), 2);
        assert_eq!(occupancy(&t, 1024, 32, 0), 2);
        assert_eq!(occupancy(&t, 32, 16, 0), 32);
    }

    #[test]
    fn the_busiest_unit_binds() {
        let t = GpuTarget::named("sm_90a").unwrap();
        let c = Counts { all: 1000, hmma: 300, fp32: 400, mufu: 50, ldsm: 100, ..Counts::default() };
        let all = clocks(&t, &c, 8);
        assert_eq!(all[0].0, "tensor cores");
        assert!(all.windows(2).all(|w| w[0].1 >= w[1].1));
        assert_eq!(clocks(&t, &Counts { all: 1000, ..Counts::default() }, 8)[0], ("issue", 2000.0));
    }
}
