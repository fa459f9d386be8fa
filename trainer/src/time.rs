//! Three clocks for one process. A sample is signal times x₀ plus noise times ε:
//!
//! ```text
//! TrigFlow         x = cos τ·x₀ + sin τ·ε          τ in [0, π/2]
//! rectified flow   x = (1 − u)·x₀ + u·ε            u in [0, 1]
//! σ                x = x₀ + σ·ε                    σ in [0, ∞]
//! ```
//!
//! They are the same point of the process where noise over signal is the same: `tan τ = σ = u/(1 − u)`, hence `u = S/(C + S)`, and the
//! samples differ by the factor `x_u = b·x_τ`, b = 1/(C + S). (TrigFlow: Lu & Song 2024, arXiv 2410.11081; the map: rCM, section 3.)

/// TrigFlow time τ.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
pub struct Trig(pub f64);

/// Rectified-flow time u.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
pub struct Flow(pub f64);

/// Noise over signal.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
pub struct Sigma(pub f64);

impl From<Flow> for Trig {
    /// `τ = atan(u/(1 − u))`, with no division, so that u = 1 is π/2.
    fn from(u: Flow) -> Trig {
        Trig(u.0.atan2(1.0 - u.0))
    }
}
impl From<Sigma> for Trig {
    /// `τ = atan σ`.
    fn from(s: Sigma) -> Trig {
        Trig(s.0.atan())
    }
}
impl From<Trig> for Flow {
    /// `u = S/(C + S)`.
    fn from(t: Trig) -> Flow {
        let (s, c) = t.0.sin_cos();
        Flow(s / (c + s))
    }
}
impl From<Sigma> for Flow {
    /// `u = σ/(1 + σ)`; 1 for σ = ∞.
    fn from(s: Sigma) -> Flow {
        Flow(if s.0.is_infinite() { 1.0 } else { s.0 / (1.0 + s.0) })
    }
}
impl From<Flow> for Sigma {
    /// `σ = u/(1 − u)`.
    fn from(u: Flow) -> Sigma {
        Sigma(u.0 / (1.0 - u.0))
    }
}
impl From<Trig> for Sigma {
    /// `σ = tan τ`.
    fn from(t: Trig) -> Sigma {
        Sigma(t.0.tan())
    }
}

impl Trig {
    /// Pure noise, π/2.
    pub const NOISE: Trig = Trig(std::f64::consts::FRAC_PI_2);

    /// `du/dτ = b²`: how fast rectified-flow time runs.
    pub fn flow_rate(self) -> f64 {
        let (s, c) = self.0.sin_cos();
        (c + s).powi(-2)
    }
    /// The coefficients of x₀ and ε in the sample: `(cos τ, sin τ)`.
    pub fn mix(self) -> (f64, f64) {
        let (s, c) = self.0.sin_cos();
        (c, s)
    }
}

impl Flow {
    /// Moves times towards noise, as longer sequences need it: `u ↦ s·u/(1 + (s − 1)·u)` multiplies σ by s (Esser et al. 2024, arXiv 2403.03206).
    pub fn shift(self, s: f64) -> Flow {
        Flow(s * self.0 / (1.0 + (s - 1.0) * self.0))
    }
    /// Undoes [`Flow::shift`].
    pub fn unshift(self, s: f64) -> Flow {
        self.shift(1.0 / s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_clocks_agree(tau in 1e-6..1.570) {
            let t = Trig(tau);
            let (u, s) = (Flow::from(t), Sigma::from(t));
            prop_assert!((Trig::from(u).0 - tau).abs() < 1e-14 && (Trig::from(s).0 - tau).abs() < 1e-14);
            prop_assert!((Flow::from(s).0 - u.0).abs() < 1e-14 && (Sigma::from(u).0 / s.0 - 1.0).abs() < 1e-9);
            let h = 1e-6;
            let rate = (Flow::from(Trig(tau + h)).0 - Flow::from(Trig(tau - h)).0) / (2.0 * h);
            prop_assert!((t.flow_rate() - rate).abs() < 1e-8);
        }

        #[test]
        fn a_shift_multiplies_sigma(u in 1e-3..0.999, s in 0.2..10.0) {
            let (a, b) = (Sigma::from(Flow(u)).0, Sigma::from(Flow(u).shift(s)).0);
            prop_assert!((b / (s * a) - 1.0).abs() < 1e-10);
            prop_assert!((Flow(u).shift(s).unshift(s).0 - u).abs() < 1e-13);
        }
    }

    #[test]
    fn the_ends_are_the_ends() {
        assert_eq!((Trig::from(Flow(0.0)).0, Trig::from(Flow(1.0)), Flow::from(Trig(0.0)).0, Flow::from(Sigma(f64::INFINITY)).0), (0.0, Trig::NOISE, 0.0, 1.0));
        assert_eq!(Trig::from(Sigma(f64::INFINITY)), Trig::NOISE);
    }

    #[test]
    fn times_in_use() {
        // τ of rCM's few-step samplers and their u, to the digits in which they are usually given.
        for (tau, u) in [(1.5, 0.93378), (1.4, 0.85290), (1.3, 0.78271), (1.0, 0.60898), (0.6, 0.40622), (0.3, 0.23625)] {
            assert!((Flow::from(Trig(tau)).0 - u).abs() < 5e-6, "{tau}");
        }
    }
}
