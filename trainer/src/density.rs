//! Where training times come from (rCM, table 4): p_G for the student's consistency loss, p_D for the score and the critic.
//!
//! ```text
//! log-normal   ln σ = μ + s·z, z ~ N(0, 1)         density in τ:  φ((ln tan τ − μ)/s) / (s·sin τ·cos τ)
//! shifted      u = s·w/(1 + (s − 1)·w), w ~ U(0,1)    density in u:  s / (s − (s − 1)·u)²
//! ```
//!
//! A draw is a function of the random number that it uses, so that every rank, and every test, can have the same one.

use crate::time::{Flow, Sigma, Trig};

/// A distribution of times.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Density {
    /// `ln σ ~ N(mean, deviation²)`; takes a standard normal number.
    LogNormal {
        /// μ of ln σ.
        mean: f64,
        /// s of ln σ.
        deviation: f64,
    },
    /// Uniform u, shifted; takes a uniform number in 0..1.
    Shifted(f64),
}

impl Density {
    /// p_G of Cosmos in rCM: ln σ ~ N(−0.8, 1.6²).
    pub const COSMOS: Density = Density::LogNormal { mean: -0.8, deviation: 1.6 };
    /// p_D of Wan in rCM: uniform, shifted by 5.
    pub const WAN_SCORE: Density = Density::Shifted(5.0);

    /// p_G of Wan in rCM: that of Cosmos with σ multiplied by √frames, so μ = −0.8 + ½·ln frames.
    pub fn wan(frames: usize) -> Density {
        Density::LogNormal { mean: -0.8 + 0.5 * (frames.max(1) as f64).ln(), deviation: 1.6 }
    }
    /// The time that belongs to the random number `x`.
    pub fn draw(self, x: f64) -> Flow {
        match self {
            Density::LogNormal { mean, deviation } => Sigma((mean + deviation * x).exp()).into(),
            Density::Shifted(s) => Flow(x.clamp(0.0, 1.0)).shift(s),
        }
    }
    /// The density of τ.
    pub fn at(self, t: Trig) -> f64 {
        match self {
            Density::LogNormal { mean, deviation } => {
                let (s, c) = t.0.sin_cos();
                if s <= 0.0 || c <= 0.0 {
                    return 0.0;
                }
                let z = ((s / c).ln() - mean) / deviation;
                (-0.5 * z * z).exp() / ((2.0 * std::f64::consts::PI).sqrt() * deviation * s * c)
            }
            // That of u, times du/dτ.
            Density::Shifted(s) => s / (s - (s - 1.0) * Flow::from(t).0).powi(2) * t.flow_rate(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn densities_integrate_to_what_draws_fall_below() {
        // ∫₀^τ density = the share of random numbers whose time is below τ.
        for (d, x, share) in [
            (Density::COSMOS, 0.0, 0.5),
            (Density::COSMOS, 1.0, 0.841_344_746_068_542_9),
            (Density::wan(21), -1.0, 0.158_655_253_931_457_1),
            (Density::WAN_SCORE, 0.25, 0.25),
            (Density::Shifted(1.0), 0.7, 0.7),
        ] {
            let top = Trig::from(d.draw(x)).0;
            let n = 200_000;
            let sum: f64 = (0..n).map(|i| d.at(Trig(top * (i as f64 + 0.5) / n as f64))).sum::<f64>() * top / n as f64;
            assert!((sum - share).abs() < 1e-5, "{d:?}: {sum} but {share}");
        }
    }

    #[test]
    fn the_mean_of_video_moves_with_its_frames() {
        let Density::LogNormal { mean, .. } = Density::wan(20) else { unreachable!() };
        assert!((mean - 0.70).abs() < 0.005);
    }
}
