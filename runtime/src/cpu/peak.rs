//! What this machine can do: fused multiply-adds in registers, and copying memory that no cache holds.

use super::Pool;
use std::sync::Mutex;
use std::time::Instant;

/// f32 floating-point operations a second of all threads of `pool`, best of some tries; 0 where neither AVX2 nor AVX-512 is there.
pub fn fma_peak(pool: &Pool) -> f64 {
    let threads = pool.threads() as i64;
    let mut best = 0f64;
    for _ in 0..5 {
        let flops = Mutex::new(0f64);
        let start = Instant::now();
        pool.run(threads, 0, &|_, _| {
            let f = multiply_adds();
            *flops.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += f;
        });
        let total = flops.into_inner().unwrap_or_default();
        best = best.max(total / start.elapsed().as_secs_f64());
    }
    best
}

#[cfg(target_arch = "x86_64")]
fn multiply_adds() -> f64 {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the feature is there.
        return unsafe { wide() };
    }
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the features are there.
        return unsafe { narrow() };
    }
    0.0
}
#[cfg(not(target_arch = "x86_64"))]
fn multiply_adds() -> f64 {
    0.0
}

/// Rounds of twelve independent chains: more than latency times throughput of any current core.
const ROUNDS: usize = 2_000_000;

macro_rules! chains {
    ($name:ident, $feature:literal, $vector:ty, $set:ident, $fma:ident, $add:ident, $lanes:literal, $sum:expr) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $feature)]
        fn $name() -> f64 {
            use std::arch::x86_64::*;
            let (a, b) = ($set(std::hint::black_box(0.999_999)), $set(std::hint::black_box(1e-9)));
            let mut x: [$vector; 12] = [$set(1.0); 12];
            for _ in 0..ROUNDS {
                for v in &mut x {
                    *v = $fma(*v, a, b);
                }
            }
            let mut total = x[0];
            for v in &x[1..] {
                total = $add(total, *v);
            }
            std::hint::black_box(total);
            (ROUNDS * 12 * $lanes * 2) as f64
        }
    };
}
chains!(narrow, "avx2,fma", __m256, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_add_ps, 8, ());
chains!(wide, "avx512f", __m512, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_add_ps, 16, ());

/// Bytes a second, read plus written, of copying 128 MiB with all threads of `pool`; best of some tries.
pub fn copy_bandwidth(pool: &Pool) -> f64 {
    let parts = pool.threads() * 8;
    let part = (128 << 20) / 4 / parts;
    let from: Vec<Vec<f32>> = (0..parts).map(|i| vec![i as f32; part]).collect();
    let to: Vec<Mutex<Vec<f32>>> = (0..parts).map(|_| Mutex::new(vec![0.0; part])).collect();
    let mut best = 0f64;
    for _ in 0..7 {
        let start = Instant::now();
        pool.run(parts as i64, 0, &|i, _| {
            to[i as usize].lock().unwrap_or_else(std::sync::PoisonError::into_inner).copy_from_slice(&from[i as usize]);
        });
        best = best.max((2 * parts * part * 4) as f64 / start.elapsed().as_secs_f64());
    }
    best
}
