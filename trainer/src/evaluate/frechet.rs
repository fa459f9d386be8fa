//! Fréchet distance between Gaussians fitted to two sets of points (Heusel et al. 2017, arXiv 1706.08500; here in a small classifier's features):
//!
//! ```text
//! |μ₁ − μ₂|² + tr C₁ + tr C₂ − 2·tr (C₁^½·C₂·C₁^½)^½
//! ```
//!
//! C₁^½·C₂·C₁^½ is symmetric and has the eigenvalues of C₁·C₂, so both roots are those of symmetric matrices, by their eigenvalues; negative ones of rounding are 0.

use super::Points;
use nalgebra::{DMatrix, DVector, SymmetricEigen};

/// The distance; covariances divide by n − 1.
///
/// # Errors
/// Fewer than two points in a set, or two dimensions.
pub fn distance(a: &Points, b: &Points) -> Result<f64, String> {
    if a.dimension() != b.dimension() || a.len() < 2 || b.len() < 2 {
        return Err(format!("evaluate: the Fréchet distance needs two points or more of one dimension in each set, not {} of {} and {} of {}", a.len(), a.dimension(), b.len(), b.dimension()));
    }
    let ((ma, ca), (mb, cb)) = (moments(a), moments(b));
    let root = {
        let e = SymmetricEigen::new(ca.clone());
        let roots = DMatrix::from_diagonal(&e.eigenvalues.map(|x| x.max(0.0).sqrt()));
        &e.eigenvectors * roots * e.eigenvectors.transpose()
    };
    let product = &root * &cb * &root;
    let even = (&product + product.transpose()) * 0.5;
    let cross: f64 = even.symmetric_eigenvalues().iter().map(|x| x.max(0.0).sqrt()).sum();
    Ok(((ma - mb).norm_squared() + ca.trace() + cb.trace() - 2.0 * cross).max(0.0))
}

/// Mean and covariance.
fn moments(p: &Points) -> (DVector<f64>, DMatrix<f64>) {
    let (n, d) = (p.len() as f64, p.dimension());
    let mut mean = vec![0.0; d];
    p.iter().for_each(|x| mean.iter_mut().zip(x).for_each(|(m, x)| *m += x / n));
    let mut c = DMatrix::zeros(d, d);
    for x in p.iter() {
        for i in 0..d {
            let xi = (x[i] - mean[i]) / (n - 1.0);
            for j in 0..=i {
                c[(i, j)] += xi * (x[j] - mean[j]);
            }
        }
    }
    for i in 0..d {
        for j in 0..i {
            c[(j, i)] = c[(i, j)];
        }
    }
    (DVector::from_vec(mean), c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(d: usize, x: &[f64]) -> Points {
        Points::new(d, x.to_vec()).unwrap()
    }

    #[test]
    fn in_one_dimension_it_is_a_formula() {
        // Means 1 and 5, deviations √2 and 2·√2: (1 − 5)² + (√2 − 2√2)² = 18.
        let (a, b) = (points(1, &[0.0, 2.0]), points(1, &[3.0, 7.0]));
        assert!((distance(&a, &b).unwrap() - 18.0).abs() < 1e-12);
        assert!(distance(&a, &a).unwrap() < 1e-12);
    }

    #[test]
    fn with_commuting_covariances_it_is_a_sum() {
        // Diagonal covariances (2/3)·(1, 4) and (2/3)·(9, 16), means 0: Σ(σ₁ − σ₂)² = (2/3)·((1 − 3)² + (2 − 4)²).
        let cross = |x: f64, y: f64| points(2, &[x, 0.0, -x, 0.0, 0.0, y, 0.0, -y]);
        let d = distance(&cross(1.0, 2.0), &cross(3.0, 4.0)).unwrap();
        assert!((d - 16.0 / 3.0).abs() < 1e-10, "{d}");
    }

    #[test]
    fn covariances_that_do_not_commute() {
        // For 2 × 2 matrices tr(M^½) = √(tr M + 2·√det M), with M of the eigenvalues of C₁·C₂.
        let a = points(2, &[1.0, 0.0, -1.0, 0.0, 0.0, 2.0, 0.0, -2.0]);
        let b = points(2, &[1.0, 1.0, -1.0, -1.0, 0.5, -0.5, -0.5, 0.5]);
        let (ca, cb) = ([2.0 / 3.0, 0.0, 8.0 / 3.0], [2.5 / 3.0, 1.5 / 3.0, 2.5 / 3.0]);
        let trace = ca[0] * cb[0] + ca[2] * cb[2];
        let det: f64 = ca[0] * ca[2] * (cb[0] * cb[2] - cb[1] * cb[1]);
        let want = ca[0] + ca[2] + cb[0] + cb[2] - 2.0 * (trace + 2.0 * det.sqrt()).sqrt();
        assert!((distance(&a, &b).unwrap() - want).abs() < 1e-10);
    }

    #[test]
    fn what_has_no_covariance_is_refused() {
        assert!(distance(&points(1, &[1.0]), &points(1, &[1.0, 2.0])).is_err());
        assert!(distance(&points(2, &[1.0; 4]), &points(1, &[1.0; 4])).is_err());
    }
}
