//! Where a plan's time goes: its launches by kernel, beside what the machine can do.
//!
//! A kernel's roof is the time in which the measured peaks allow its operations and its compulsory traffic (the roofline of Williams,
//! Waterman, Patterson 2009); traffic that a cache serves is faster, so that a small kernel may stand above it.

use ir::tile::Program;
use ir::tile::cost::{Cost, cost};
use runtime::cpu::{Pool, copy_bandwidth, fma_peak};
use runtime::plan::Plan;

/// One kernel's launches.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    /// The kernel.
    pub kernel: String,
    /// How often it is launched in a run.
    pub launches: usize,
    /// All its launches in a run: seconds, the median over runs.
    pub seconds: f64,
    /// What one launch must do.
    pub cost: Cost,
}

/// Where a run's time goes.
#[derive(Clone, PartialEq, Debug)]
pub struct Profile {
    /// By kernel, the slowest first.
    pub rows: Vec<Row>,
    /// f32 operations a second that the threads can do, measured.
    pub peak: f64,
    /// Bytes a second that they can copy, measured.
    pub bandwidth: f64,
}

impl Row {
    /// Operations a second.
    pub fn speed(&self) -> f64 {
        self.cost.flops as f64 * self.launches as f64 / self.seconds
    }
}

impl Profile {
    /// From the seconds of each launch of a plan, run by run; measures what the machine can do.
    ///
    /// # Errors
    /// A size without a number.
    pub fn new(plan: &Plan, programs: &[Program], times: &[Vec<f64>], pool: &Pool) -> Result<Profile, String> {
        let mut rows = vec![];
        for (k, p) in programs.iter().enumerate() {
            let of: Vec<usize> = plan.launches.iter().enumerate().filter(|(_, l)| l.kernel == k).map(|(i, _)| i).collect();
            let mut all: Vec<f64> = times.iter().map(|t| of.iter().map(|i| t[*i]).sum()).collect();
            all.sort_by(f64::total_cmp);
            let seconds = all.get(all.len() / 2).copied().unwrap_or(0.0);
            rows.push(Row { kernel: p.name.to_string(), launches: of.len(), seconds, cost: cost(p, &plan.dims).map_err(|e| e.to_string())? });
        }
        rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        Ok(Profile { rows, peak: fma_peak(pool), bandwidth: copy_bandwidth(pool) })
    }
    /// The share of its roof that a kernel reaches.
    pub fn share(&self, r: &Row) -> f64 {
        let least = (r.cost.flops as f64 / self.peak).max(r.cost.bytes() as f64 / self.bandwidth);
        least * r.launches as f64 / r.seconds
    }
}

impl std::fmt::Display for Profile {
    fn fmt(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        let total: f64 = self.rows.iter().map(|r| r.seconds).sum();
        let wide = self.rows.iter().map(|r| r.kernel.len()).max().unwrap_or(0).max(6);
        writeln!(out, "{:<wide$} {:>8} {:>10} {:>6} {:>10} {:>10} {:>9} {:>8} {:>7}", "kernel", "launches", "ms", "%", "GFLOP", "MB", "GFLOP/s", "GB/s", "of roof")?;
        for r in &self.rows {
            let n = r.launches as f64;
            let (flops, bytes) = (r.cost.flops as f64 * n, r.cost.bytes() as f64 * n);
            writeln!(
                out,
                "{:<wide$} {:>8} {:>10.3} {:>6.1} {:>10.3} {:>10.2} {:>9.1} {:>8.2} {:>5.0} %",
                r.kernel,
                r.launches,
                r.seconds * 1e3,
                100.0 * r.seconds / total,
                flops / 1e9,
                bytes / 1e6,
                r.speed() / 1e9,
                bytes / r.seconds / 1e9,
                100.0 * self.share(r)
            )?;
        }
        let flops: f64 = self.rows.iter().map(|r| r.cost.flops as f64 * r.launches as f64).sum();
        write!(out, "all {:.3} ms, {:.1} GFLOP/s; measured peaks: {:.1} GFLOP/s of multiply-adds, {:.1} GB/s copying", total * 1e3, flops / total / 1e9, self.peak / 1e9, self.bandwidth / 1e9)
    }
}
