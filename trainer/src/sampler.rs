//! Samplers, and the times at which they evaluate the network.
//!
//! * Few-step consistency sampling (rCM, section 5): from `atan σ_max` through fixed times in the middle to 0. After each step the sample
//!   is `cos τ'·x̂₀ + sin τ'·ε` with new noise.
//! * The teacher's: a uniform grid in *unshifted* u from σ_max to 0, shifted; Euler and UniPC use it. Diffusers' own grid for UniPC. Karras' grid in σ
//!   (Karras et al. 2022, arXiv 2206.00364): uniform in `σ^(1/ρ)`.
//! * Discrete consistency training: neighbours of the shifted uniform grid of N steps.

mod euler;
mod few;
mod unipc;

pub use euler::euler;
pub use few::{Between, Clock, few};
pub use unipc::unipc;

use crate::rows::Rows;
use crate::time::{Flow, Sigma, Trig};
use ir::diagnostic::Error;

/// A network as samplers see it: the velocity of samples that are all at time u, guided or not.
pub type Velocity<'a> = dyn FnMut(&Rows, f64) -> Result<Rows, Error> + 'a;

/// Times in the middle that rCM's paper uses, for up to four steps.
pub const PAPER: [f64; 3] = [1.3, 1.0, 0.6];
/// Those of its released code since October 2025, which look better.
pub const RELEASED: [f64; 3] = [1.5, 1.4, 1.0];
/// The paper's for eight steps.
pub const EIGHT: [f64; 7] = [1.3, 1.0, 1.0, 0.6, 0.6, 0.3, 0.3];

/// Times of a few-step sampler: `steps` of them, from `atan sigma_max` on, and the final 0.
///
/// # Errors
/// No step, or more than there are times.
pub fn few_steps(steps: usize, sigma_max: f64, middle: &[f64]) -> Result<Vec<Trig>, String> {
    if steps == 0 || steps > middle.len() + 1 {
        return Err(format!("sampler: {steps} steps, but there are times for 1 to {}", middle.len() + 1));
    }
    let mut times = vec![Trig::from(Sigma(sigma_max))];
    times.extend(middle.iter().take(steps - 1).map(|t| Trig(*t)));
    times.push(Trig(0.0));
    Ok(times)
}

/// A uniform grid in unshifted time from the largest u down: `shift(u₀·(1 − i/n))`, `u₀ = unshift(u_max)`, i = 0..n; the last step goes to 0,
/// which is not in the list.
pub fn shifted_grid(steps: usize, shift: f64, largest: Flow) -> Vec<Flow> {
    let from = largest.unshift(shift).0;
    (0..steps).map(|i| Flow(from * (1.0 - i as f64 / steps as f64)).shift(shift)).collect()
}

/// The grid of diffusers' flow UniPC: `shift(1 + i/n·(1/1000 − 1))`, the first a millionth below 1, where log-SNR would be infinite; the last step goes to 0.
pub fn diffusers_grid(steps: usize, shift: f64) -> Vec<Flow> {
    let grid = (0..steps).map(|i| Flow(1.0 + i as f64 / steps as f64 * (1e-3 - 1.0)).shift(shift));
    grid.map(|u| if (u.0 - 1.0).abs() < 1e-6 { Flow(u.0 - 1e-6) } else { u }).collect()
}

/// `(σ_max^(1/ρ) + i/n·(σ_min^(1/ρ) − σ_max^(1/ρ)))^ρ`, i = 0..=n.
pub fn karras(steps: usize, smallest: f64, largest: f64, rho: f64) -> Vec<Sigma> {
    let (a, b) = (largest.powf(1.0 / rho), smallest.powf(1.0 / rho));
    (0..=steps).map(|i| Sigma((a + i as f64 / steps.max(1) as f64 * (b - a)).powf(rho))).collect()
}

/// Two times `skip` steps apart on the shifted uniform grid of `steps`, the first at `1 − w`: discrete consistency training's pair.
pub fn neighbours(w: f64, skip: usize, steps: usize, shift: f64) -> (Trig, Trig) {
    let at = |w: f64| Trig::from(Flow(1.0 - w).shift(shift));
    (at(w), at(w + skip as f64 / steps as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_step_times() {
        let t = few_steps(4, 80.0, &RELEASED).unwrap();
        assert_eq!(t[1..], [Trig(1.5), Trig(1.4), Trig(1.0), Trig(0.0)]);
        assert!((t[0].0 - 1.5583).abs() < 5e-5 && (Flow::from(t[0]).0 - 80.0 / 81.0).abs() < 1e-14);
        assert_eq!(few_steps(1, 1600.0, &PAPER).unwrap().len(), 2);
        assert_eq!(few_steps(8, 80.0, &EIGHT).unwrap().len(), 9);
        assert_eq!(few_steps(5, 80.0, &PAPER).unwrap_err(), "sampler: 5 steps, but there are times for 1 to 4");
        assert!(few_steps(0, 80.0, &PAPER).is_err());
    }
}
