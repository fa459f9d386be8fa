//! UniPC (Zhao et al. 2023, arXiv 2302.04867) of order 2 with B(h) = eʰ − 1 (`bh2`), predicting clean samples. With λ = ln((1 − u)/u), h the step in λ, φ = e⁻ʰ − 1, and m
//! the clean sample that the network says at a point:
//!
//! ```text
//! predictor    x' = (u'/u)·x − (1 − u')·φ·(m + D/2)            D = (m₋₁ − m)/ρ, ρ = (λ₋₁ − λ)/h: the slope of m over the last step; absent at the first and at the last step
//! corrector    x' = (u'/u)·x − (1 − u')·φ·(m + ρ₁·D + ρ₂·(m' − m))     with m' said at the predicted point; order 1: ρ₂ = 1/2 alone
//! ```
//!
//! The coefficients ρ₁ and ρ₂ make both exact for clean samples that are polynomials of λ of their order. The network is evaluated once a step: m' at the predicted
//! point is the next step's m.

use super::Velocity;
use crate::rows::Rows;
use crate::time::Flow;
use ir::diagnostic::Error;

/// ln of signal over noise; infinite without noise.
fn log_snr(u: f64) -> f64 {
    ((1.0 - u) / u).ln()
}

/// Follows the flow from `x` at the first of `grid` through all of them to 0.
///
/// # Errors
/// Those of the network.
pub fn unipc(velocity: &mut Velocity, x: &Rows, grid: &[Flow]) -> Result<Rows, Error> {
    let mut x = x.clone();
    // Clean samples with the times where they were said, the newest last; and the point from which the last step went, with its order.
    let mut said: Vec<(f64, Rows)> = vec![];
    let mut from: Option<(Rows, usize)> = None;
    for (i, u) in grid.iter().map(|u| u.0).enumerate() {
        let v = velocity(&x, u)?;
        let m = Rows::of([&x, &v], |_, [x, v]| x - u * v);
        if let Some((start, order)) = &from {
            x = correct(start, &said, u, &m, *order);
        }
        said.push((u, m));
        let order = 2.min(said.len()).min(grid.len() - i);
        let next = grid.get(i + 1).map_or(0.0, |n| n.0);
        let predicted = predict(&x, &said, next, order);
        from = Some((std::mem::replace(&mut x, predicted), order));
    }
    Ok(x)
}

/// The slope of the clean sample over the last step, times the length of the next one: D.
fn slope(said: &[(f64, Rows)], h: f64) -> Option<(f64, Rows)> {
    let [.., (before, old), (now, new)] = said else { return None };
    let ratio = (log_snr(*before) - log_snr(*now)) / h;
    Some((ratio, Rows::of([old, new], |_, [o, n]| (o - n) / ratio)))
}

fn predict(x: &Rows, said: &[(f64, Rows)], to: f64, order: usize) -> Rows {
    let Some((at, m)) = said.last() else { return x.clone() };
    let h = log_snr(to) - log_snr(*at);
    let (keep, gain) = (to / at, (1.0 - to) * (-h).exp_m1());
    match slope(said, h).filter(|_| order > 1) {
        Some((_, d)) => Rows::of([x, m, &d], |_, [x, m, d]| keep * x - gain * (m + 0.5 * d)),
        None => Rows::of([x, m], |_, [x, m]| keep * x - gain * m),
    }
}

fn correct(x: &Rows, said: &[(f64, Rows)], to: f64, new: &Rows, order: usize) -> Rows {
    let Some((at, m)) = said.last() else { return x.clone() };
    let h = log_snr(to) - log_snr(*at);
    let (keep, gain) = (to / at, (1.0 - to) * (-h).exp_m1());
    match slope(said, h).filter(|_| order > 1) {
        Some((ratio, d)) => {
            // Two conditions: exact for a constant slope and for a square. φ₂ and φ₃ are the integrals of (1 − s) and (1 − s)²/2 under the exponential, over B(h).
            let b = (-h).exp_m1();
            let phi2 = b / -h - 1.0;
            let phi3 = phi2 / -h - 0.5;
            let (first, second) = (phi2 / b, 2.0 * phi3 / b);
            // ρ₁ + ρ₂ = first, ratio·ρ₁ + ρ₂ = second.
            let old = (second - first) / (ratio - 1.0);
            let last = first - old;
            Rows::of([x, m, &d, new], |_, [x, m, d, n]| keep * x - gain * (m + old * d + last * (n - m)))
        }
        None => Rows::of([x, m, new], |_, [x, m, n]| keep * x - gain * (m + 0.5 * (n - m))),
    }
}
