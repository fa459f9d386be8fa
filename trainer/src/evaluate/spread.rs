//! Mean distance between two samples of one class: what a collapse of modes takes away.

use super::{Points, squared};

/// The mean over classes of the mean Euclidean distance between two different points of the class. Classes with fewer than two points are left out.
///
/// # Errors
/// Another number of labels, or no class with two points.
pub fn within(p: &Points, labels: &[u32]) -> Result<f64, String> {
    if labels.len() != p.len() {
        return Err(format!("evaluate: {} labels for {} points", labels.len(), p.len()));
    }
    let classes = labels.iter().max().map_or(0, |m| m + 1);
    let mut means = vec![];
    for c in 0..classes {
        let of: Vec<&[f64]> = p.iter().zip(labels).filter(|(_, l)| **l == c).map(|(x, _)| x).collect();
        let n = of.len();
        if n > 1 {
            let sum: f64 = (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| squared(of[i], of[j]).sqrt()).sum();
            means.push(sum / (n * (n - 1) / 2) as f64);
        }
    }
    if means.is_empty() {
        return Err("evaluate: no class has two samples".into());
    }
    Ok(means.iter().sum::<f64>() / means.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // Class 0: 0, 3, 6 with distances 3, 3, 6, mean 4. Class 1: one point. Class 2: 0 and (3, 4), distance 5.
        let p = Points::new(2, vec![0.0, 0.0, 3.0, 0.0, 6.0, 0.0, 9.0, 9.0, 0.0, 0.0, 3.0, 4.0]).unwrap();
        assert_eq!(within(&p, &[0, 0, 0, 1, 2, 2]).unwrap(), 4.5);
        assert!(within(&p, &[0, 1, 2, 3, 4, 5]).is_err() && within(&p, &[0]).is_err());
    }
}
