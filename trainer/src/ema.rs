//! Power-function averaging of weights (Karras et al. 2024, arXiv 2312.02696, section 3.1): the average at iteration n weighs the weights of
//! iteration i with `(i/n)^γ`, which a running average has with
//!
//! ```text
//! β_i = (1 − 1/(i + 1))^(γ + 1),   β_0 = 0
//! ```
//!
//! Its width relative to the training, s, gives γ: the largest real root of `γ³ + 7γ² + (16 − s⁻²)γ + (12 − s⁻²) = 0`.

/// An averaging of a given width.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct PowerEma {
    exponent: f64,
}

impl PowerEma {
    /// Of relative width `s`, between 0 and 0.288 (γ = 0, all weights alike). rCM's code has 0.1, its paper 0.05.
    ///
    /// # Errors
    /// A width that no γ ≥ 0 has.
    pub fn of_width(s: f64) -> Result<PowerEma, String> {
        // γ ≥ 0 needs the cubic to be ≤ 0 at 0.
        if !(s > 0.0 && s * s * 12.0 <= 1.0) {
            return Err(format!("ema: width {s}, but it must be above 0 and at most 1/√12"));
        }
        let q = 1.0 / (s * s);
        let cubic = |g: f64| ((g + 7.0) * g + 16.0 - q) * g + 12.0 - q;
        let slope = |g: f64| (3.0 * g + 14.0) * g + 16.0 - q;
        // From the right of the largest root, where the cubic is convex, Newton's method falls onto it from above.
        let mut g = q.sqrt() + 1.0;
        for _ in 0..100 {
            let next = g - cubic(g) / slope(g);
            if next >= g {
                break;
            }
            g = next;
        }
        Ok(PowerEma { exponent: g.max(0.0) })
    }
    /// γ.
    pub fn exponent(self) -> f64 {
        self.exponent
    }
    /// β at the student's iteration `i`: `average = β·average + (1 − β)·weights`.
    pub fn beta(self, i: u64) -> f64 {
        if i == 0 { 0.0 } else { (1.0 - 1.0 / (i as f64 + 1.0)).powf(self.exponent + 1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_weighs_as_a_power() {
        // The weight of iteration i in the average at n is (1 − β_i)·β_{i+1}⋯β_n ≈ (γ + 1)/(n + 1)·(i/n)^γ.
        let e = PowerEma::of_width(0.1).unwrap();
        let (n, i) = (4000u64, 3000u64);
        let weight: f64 = (1.0 - e.beta(i)) * (i + 1..=n).map(|k| e.beta(k)).product::<f64>();
        let want = (e.exponent() + 1.0) / n as f64 * (i as f64 / n as f64).powf(e.exponent());
        assert!((weight / want - 1.0).abs() < 5e-3, "{weight} but {want}");
    }

    #[test]
    fn widths_have_limits() {
        assert!(PowerEma::of_width(0.3).is_err() && PowerEma::of_width(0.0).is_err() && PowerEma::of_width(f64::NAN).is_err());
        assert!(PowerEma::of_width((1.0f64 / 12.0).sqrt() - 1e-12).unwrap().exponent() < 1e-9);
        // The width of the density (γ + 1)·x^γ on 0..1 is its standard deviation.
        for s in [0.01, 0.05, 0.1, 0.2, 0.28] {
            let g = PowerEma::of_width(s).unwrap().exponent();
            let (mean, square) = ((g + 1.0) / (g + 2.0), (g + 1.0) / (g + 3.0));
            assert!(((square - mean * mean).sqrt() / s - 1.0).abs() < 1e-7, "{s}: {g}");
        }
    }
}
