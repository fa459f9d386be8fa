//! A rectified-flow network as a TrigFlow one (rCM, section 3; Lu & Song 2024). With v the network, b = 1/(C + S):
//!
//! ```text
//! x̂₀ = c_skip·x + c_out·v(c_in·x, c_noise)        c_skip = c_in = b     c_out = −S·b     c_noise = scale·S·b
//! F   = (C·x − x̂₀)/S = (C − S)·b·x + b·v          without a division by S
//! d/dτ:  b' = −b²·(C − S)    c_out' = −b²    c_noise' = scale·b²
//! ```

use crate::time::Trig;

/// The wrapper's coefficients at one time.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Scaling {
    /// Of x in x̂₀.
    pub skip: f64,
    /// Of x in the network's input.
    pub input: f64,
    /// Of the network in x̂₀.
    pub output: f64,
    /// The network's time.
    pub noise: f64,
}

impl Scaling {
    /// At τ. `scale` is what the network multiplies its time by: 1000 for Wan, 1 for Cosmos.
    pub fn at(t: Trig, scale: f64) -> Scaling {
        let (s, c) = t.0.sin_cos();
        let b = 1.0 / (c + s);
        Scaling { skip: b, input: b, output: -s * b, noise: scale * s * b }
    }
    /// Their derivatives in τ.
    pub fn rate(t: Trig, scale: f64) -> Scaling {
        let (s, c) = t.0.sin_cos();
        let b2 = (c + s).powi(-2);
        let skip = -b2 * (c - s);
        Scaling { skip, input: skip, output: -b2, noise: scale * b2 }
    }
    /// `(C − S)·b` and `b`, the coefficients of x and of the network in the TrigFlow velocity F.
    pub fn velocity(t: Trig) -> (f64, f64) {
        let (s, c) = t.0.sin_cos();
        let b = 1.0 / (c + s);
        ((c - s) * b, b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rates_are_derivatives(tau in 0.01..1.56) {
            let h = 1e-6;
            let (a, b, r) = (Scaling::at(Trig(tau - h), 1000.0), Scaling::at(Trig(tau + h), 1000.0), Scaling::rate(Trig(tau), 1000.0));
            for (a, b, r) in [(a.skip, b.skip, r.skip), (a.input, b.input, r.input), (a.output, b.output, r.output), (a.noise, b.noise, r.noise)] {
                prop_assert!(((b - a) / (2.0 * h) - r).abs() < 1e-6 * r.abs().max(1.0));
            }
        }

        #[test]
        fn both_forms_of_the_velocity_agree(tau in 0.01..1.56, x in -3.0..3.0, v in -3.0..3.0) {
            let k = Scaling::at(Trig(tau), 1.0);
            let (of_x, of_v) = Scaling::velocity(Trig(tau));
            let (s, c) = tau.sin_cos();
            let (long, short): (f64, f64) = ((c * x - (k.skip * x + k.output * v)) / s, of_x * x + of_v * v);
            prop_assert!((long - short).abs() < 1e-11);
        }
    }
}
