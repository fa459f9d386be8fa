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

/// Bytes a second, read plus written, of copying 128 MiB with all threads of `pool`; best of some tries, with the library's copy and
/// with stores past the caches. The latter do not read what they overwrite, and are what a kernel has to be measured by.
pub fn copy_bandwidth(pool: &Pool) -> f64 {
    let parts = pool.threads() * 8;
    let part = (128 << 20) / 4 / parts;
    let from: Vec<Vec<f32>> = (0..parts).map(|i| vec![i as f32; part]).collect();
    let to: Vec<Mutex<Vec<f32>>> = (0..parts).map(|_| Mutex::new(vec![0.0; part])).collect();
    let mut best = 0f64;
    for copy in [<[f32]>::copy_from_slice, copy_past_caches] {
        for _ in 0..7 {
            let start = Instant::now();
            pool.run(parts as i64, 0, &|i, _| {
                copy(&mut to[i as usize].lock().unwrap_or_else(std::sync::PoisonError::into_inner), &from[i as usize]);
            });
            best = best.max((2 * parts * part * 4) as f64 / start.elapsed().as_secs_f64());
        }
    }
    best
}

/// Copies slices of one length, whole cache lines past the caches.
fn copy_past_caches(to: &mut [f32], from: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx") {
        // SAFETY: the feature is there.
        return unsafe { stream(to, from) };
    }
    to.copy_from_slice(from);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
fn stream(to: &mut [f32], from: &[f32]) {
    use std::arch::x86_64::*;
    // SAFETY: any 64 bytes are a line of floats.
    let (head, lines, tail) = unsafe { to.align_to_mut::<Line>() };
    let (first, rest) = from.split_at(head.len());
    let (middle, last) = rest.split_at(lines.len() * 16);
    head.copy_from_slice(first);
    tail.copy_from_slice(last);
    for (to, from) in lines.iter_mut().zip(middle.chunks_exact(16)) {
        // SAFETY: 64 bytes each, the destination aligned; the fence makes them visible before anything else is done.
        unsafe {
            let (a, b) = (_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8)));
            _mm256_stream_ps(to.0.as_mut_ptr(), a);
            _mm256_stream_ps(to.0.as_mut_ptr().add(8), b);
        }
    }
    _mm_sfence();
}

/// A cache line.
#[cfg(target_arch = "x86_64")]
#[repr(align(64))]
struct Line([f32; 16]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_past_the_caches_is_a_copy() {
        let from: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        for (at, n) in [(0, 1000), (1, 900), (3, 17), (5, 1), (7, 0)] {
            let mut to = vec![-1.0; 1000];
            copy_past_caches(&mut to[at..at + n], &from[at..at + n]);
            let right = |(i, x): (usize, &f32)| *x == if (at..at + n).contains(&i) { i as f32 } else { -1.0 };
            assert!(to.iter().enumerate().all(right), "{n} elements from {at}");
        }
    }
}
