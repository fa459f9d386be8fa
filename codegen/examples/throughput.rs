//! Times block programs and prints GFLOP/s: `throughput [rows] [head] [threads]`, or `throughput tune [rows] [head]`: one
//! thread, its own time only, several micro-tiles in turn, best round.
#![allow(clippy::unwrap_used)]

#[path = "../tests/support.rs"]
mod support;

use codegen::Target;
use std::time::Instant;
use support::*;

fn tune(n: usize, head: usize) {
    let host = Target::host().unwrap();
    let mut kernels = vec![];
    for tangents in [true, false] {
        for (rows, vectors) in [(4, 3), (6, 2), (5, 2), (3, 3), (2, 4), (12, 1)] {
            for stream in [32, 64, 128] {
                let mut t = host.clone();
                t.micro = codegen::target::Micro { rows, vectors };
                let p = Flash { head, stream, causal: false, tangents, dtype: F32, sequence_first: false }.program();
                kernels.push((tangents, rows, vectors, stream, Kernel::new(&p, &t), [f64::MAX; 9]));
            }
        }
    }
    let dims = bind(&[("B", 1), ("H", 1), ("I", n as i64), ("J", n as i64)]);
    let mut r = Random(1);
    let mut memory: Vec<Vec<f32>> = (0..8).map(|_| (0..n * head).map(|_| r.next() as f32).collect()).collect();
    for _ in 0..6 {
        for (_, _, _, _, k, best) in &mut kernels {
            let s = &k.compiled.artifact.signature;
            let pointers: Vec<*mut u8> = memory.iter_mut().take(s.buffers.len()).map(|m| m.as_mut_ptr().cast()).collect();
            for panels in [1, 2, 4, 8].into_iter().filter(|p| *p <= s.max_panels) {
                // SAFETY: buffers of the signature's sizes.
                let t = unsafe { k.launch(&pointers, &dims, panels, 1) };
                best[panels] = best[panels].min(t);
            }
        }
    }
    for (tangents, rows, vectors, stream, k, best) in &kernels {
        let flops = (if *tangents { 12.0 } else { 4.0 }) * (n * n * head) as f64;
        let line: Vec<String> =
            best.iter().enumerate().filter(|(_, t)| **t < f64::MAX).map(|(p, t)| format!("{p}: {:.1}", flops / t / 1e9)).collect();
        println!("tangents {tangents} {rows}x{vectors} stream {stream}: {} ({} bytes)", line.join("  "), k.compiled.artifact.code.len());
    }
}

/// Best of some runs: seconds of one thread.
fn best(k: &Kernel, sizes: &[(&str, i64)], panels: usize) -> f64 {
    let dims = bind(sizes);
    let s = &k.compiled.artifact.signature;
    let mut r = Random(1);
    let elements = |b: &ir::tile::Buffer| b.shape.iter().map(|d| d.eval(&dims).unwrap() as usize).product::<usize>();
    let mut memory: Vec<Vec<f32>> = s.buffers.iter().map(|b| (0..elements(b)).map(|_| r.next() as f32).collect()).collect();
    let pointers: Vec<*mut u8> = memory.iter_mut().map(|m| m.as_mut_ptr().cast()).collect();
    // SAFETY: buffers of the signature's sizes.
    (0..9).map(|_| unsafe { k.launch(&pointers, &dims, panels.min(s.max_panels), 1) }).fold(f64::MAX, f64::min)
}

/// Products of matrices, normalised rows and maps.
fn others() {
    let t = Target::host().unwrap();
    let (m, n, k) = (1024, 1024, 1024);
    for (lanes_m, k_major) in [(true, false), (false, true), (true, true), (false, false)] {
        for (block, stream, full) in [(64, 64, None), (64, 256, None), (128, 128, None), (128, 256, None), (256, 256, None), (128, 0, Some(k)), (256, 512, None)] {
            let l = Linear { lanes_m, k_major, block, stream, full };
            let kernel = Kernel::new(&l.program(), &t);
            let line: Vec<String> = [1, 2, 4, 8]
                .iter()
                .map(|p| format!("{p}: {:.1}", 2.0 * (m * n * k) as f64 / best(&kernel, &[("M", m as i64), ("N", n as i64), ("K", k as i64)], *p) / 1e9))
                .collect();
            println!("{l:?}: GFLOP/s {}", line.join("  "));
        }
    }
    for features in [256, 1536] {
        let kernel = Kernel::new(&row_norm(features, F32, ir::tile::Role::Block(8), F32), &t);
        let rows = 4096;
        println!("row_norm {features}: {:.1} GB/s", (rows * features * 8) as f64 / best(&kernel, &[("R", rows as i64)], 1) / 1e9);
    }
    for (name, op) in [("add", ir::prim::Elementwise::Add), ("tanh", ir::prim::Elementwise::Tanh), ("exp", ir::prim::Elementwise::Exp), ("erf", ir::prim::Elementwise::Erf), ("sin", ir::prim::Elementwise::Sin)] {
        for lanes in [1, 2] {
            let kernel = Kernel::new(&elementwise(op, lanes, F32), &t);
            let (r, c) = (16, 256);
            println!("{name} lanes {lanes}: {:.2} G elements/s", (r * c) as f64 / best(&kernel, &[("R", r), ("C", c)], 64) / 1e9);
        }
    }
}

/// Prints the assembly of one program.
fn assembly(which: &str) {
    let p = match which {
        "norm" => row_norm(1536, F32, ir::tile::Role::Block(8), F32),
        "linear" => Linear { lanes_m: true, k_major: false, block: 128, stream: 256, full: None }.program(),
        "jvp" => Flash { head: 64, stream: 64, causal: false, tangents: true, dtype: F32, sequence_first: false }.program(),
        name => elementwise(*ir::prim::Elementwise::ALL.iter().find(|e| e.name() == name).unwrap(), 1, F32),
    };
    let c = codegen::compile_with(&p, &Target::host().unwrap(), true).unwrap();
    println!("{}", c.dumps.assembly.unwrap());
}

fn main() {
    if std::env::args().nth(1).as_deref() == Some("loop") {
        let of = |n: usize| std::env::args().nth(n).unwrap();
        let op = *ir::prim::Elementwise::ALL.iter().find(|e| e.name() == of(2)).unwrap();
        let k = Kernel::new(&elementwise(op, of(3).parse().unwrap(), F32), &Target::host().unwrap());
        let (x, y, mut o) = (vec![0.5f32; 16 * 256], [0.5f32; 256], vec![0f32; 16 * 256]);
        let buffers = [x.as_ptr().cast_mut().cast(), y.as_ptr().cast_mut().cast(), o.as_mut_ptr().cast::<u8>()];
        for _ in 0..3 {
            // SAFETY: buffers of the signature's sizes.
            let t = unsafe { k.repeat(&buffers, &bind(&[("R", 16), ("C", 256)]), 8, 10000) };
            let n = k.instances(&bind(&[("R", 16), ("C", 256)]), 8);
            println!("{:.2} G elements/s, {:.2} ns per vector", 4096.0 / n as f64 / t / 1e9, t * 1e9 / (512.0 / n as f64));
        }
        return;
    }
    if std::env::args().nth(1).as_deref() == Some("assembly") {
        return assembly(&std::env::args().nth(2).unwrap_or("jvp".into()));
    }
    if std::env::args().nth(1).as_deref() == Some("others") {
        return others();
    }
    if std::env::args().nth(1).as_deref() == Some("tune") {
        let mut numbers = std::env::args().skip(2).filter_map(|a| a.parse::<usize>().ok());
        return tune(numbers.next().unwrap_or(1344), numbers.next().unwrap_or(64));
    }
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
        let mut memory: Vec<Vec<f32>> =
            s.buffers.iter().map(|_| (0..heads as usize * n * head).map(|_| r.next() as f32).collect()).collect();
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
                    let _ = unsafe { k.launch(&pointers, &dims, panels, threads) };
                    t.elapsed().as_secs_f64()
                })
                .collect();
            times.sort_by(f64::total_cmp);
            println!(
                "  {panels} panels: median {:.1} ms, {:.1} GFLOP/s; best {:.1}",
                times[2] * 1e3,
                flops / times[2] / 1e9,
                flops / times[0] / 1e9
            );
        }
    }
}
