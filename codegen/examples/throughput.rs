//! Times block programs and prints GFLOP/s: `throughput [rows] [head] [threads]`.
#![allow(clippy::unwrap_used)]

#[path = "../tests/support.rs"]
mod support;

use codegen::Target;
use std::time::Instant;
use support::*;

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse::<usize>().ok());
    let (n, head, threads) = (numbers.next().unwrap_or(4096), numbers.next().unwrap_or(64), numbers.next().unwrap_or(2));
    let target = Target::host().unwrap();
    println!("{} L1 {} KB, L2 {} KB, {:?}", target.name(), target.l1 >> 10, target.l2 >> 10, target.micro);
    for (tangents, causal) in [(true, false), (false, false), (true, true)] {
        let p = Flash { head, stream: 64, causal, tangents, dtype: F32, sequence_first: false }.program();
        let k = Kernel::new(&p, &target);
        let s = &k.compiled.artifact.signature;
        println!(
            "{} causal {causal}: text {} lines, object {} bytes, {:?}, scratch {} + {}·panels, at most {} panels",
            p.name,
            k.compiled.dumps.mlir.lines().count(),
            k.compiled.artifact.code.len(),
            k.compiled.timings,
            s.scratch_fixed,
            s.scratch_panel,
            s.max_panels
        );
        let heads = 8;
        let dims = bind(&[("B", 1), ("H", heads), ("I", n as i64), ("J", n as i64)]);
        let mut r = Random(1);
        let mut memory: Vec<Vec<f32>> = s.buffers.iter().map(|_| (0..heads as usize * n * head).map(|_| r.next() as f32).collect()).collect();
        let pointers: Vec<*mut u8> = memory.iter_mut().map(|m| m.as_mut_ptr().cast()).collect();
        let pairs = if causal { n as f64 * (n as f64 + 1.0) / 2.0 } else { (n * n) as f64 };
        let flops = (if tangents { 12.0 } else { 4.0 }) * pairs * head as f64 * heads as f64;
        for panels in [1, 2, 4, 6, 8] {
            if panels > s.max_panels {
                continue;
            }
            let mut times: Vec<f64> = (0..5)
                .map(|_| {
                    let t = Instant::now();
                    // SAFETY: buffers of the signature's sizes.
                    unsafe { k.launch(&pointers, &dims, panels, threads) };
                    t.elapsed().as_secs_f64()
                })
                .collect();
            times.sort_by(f64::total_cmp);
            println!("  {panels} panels: median {:.1} ms, {:.1} GFLOP/s; best {:.1}", times[2] * 1e3, flops / times[2] / 1e9, flops / times[0] / 1e9);
        }
    }
}
