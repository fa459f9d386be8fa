//! Vendi score (Friedman & Dieng 2023, arXiv 2210.02410): the effective number of different samples, `exp(−Σ λ·ln λ)` over the eigenvalues λ of K/n, with K the samples'
//! similarities. Here K is the cosine of the angle between points. K/n = X·Xᵀ/n has the non-zero eigenvalues of Xᵀ·X/n, which is as small as the dimension.

use super::Points;
use nalgebra::DMatrix;

/// The score, between 1 (all alike) and the smaller of dimension and number of points.
///
/// # Errors
/// No point, or one that is 0 and has no direction.
pub fn score(p: &Points) -> Result<f64, String> {
    let (n, d) = (p.len(), p.dimension());
    if n == 0 {
        return Err("evaluate: the Vendi score of no point".into());
    }
    let mut gram: DMatrix<f64> = DMatrix::zeros(d, d);
    for (k, x) in p.iter().enumerate() {
        let square: f64 = x.iter().map(|x| x * x).sum();
        if square == 0.0 {
            return Err(format!("evaluate: point {k} is 0 and has no direction"));
        }
        let scale = 1.0 / (square * n as f64);
        for i in 0..d {
            for j in 0..d {
                gram[(i, j)] += x[i] * x[j] * scale;
            }
        }
    }
    let entropy: f64 = gram.symmetric_eigenvalues().iter().filter(|l| **l > 0.0).map(|l| -l * l.ln()).sum();
    Ok(entropy.exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score_of(d: usize, x: &[f64]) -> f64 {
        score(&Points::new(d, x.to_vec()).unwrap()).unwrap()
    }

    #[test]
    fn by_hand() {
        // All in one direction: 1. Three orthogonal ones: 3. Two alike and one orthogonal: λ = 2/3, 1/3.
        assert!((score_of(2, &[1.0, 1.0, 2.0, 2.0, 5.0, 5.0]) - 1.0).abs() < 1e-7);
        assert!((score_of(3, &[2.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -7.0]) - 3.0).abs() < 1e-9);
        let want = (-(2.0f64 / 3.0) * (2.0f64 / 3.0).ln() - (1.0f64 / 3.0) * (1.0f64 / 3.0).ln()).exp();
        assert!((score_of(2, &[1.0, 0.0, 3.0, 0.0, 0.0, 1.0]) - want).abs() < 1e-9);
        // Two at 60°: λ = (1 ± cos 60°)/2.
        let want = (-0.75f64 * 0.75f64.ln() - 0.25f64 * 0.25f64.ln()).exp();
        assert!((score_of(2, &[1.0, 0.0, 0.5, 0.75f64.sqrt()]) - want).abs() < 1e-9);
        assert!(score(&Points::new(1, vec![0.0]).unwrap()).is_err());
    }
}
