//! Precision, recall and coverage by k-th neighbours. With ρ(x) the distance from x to its k-th neighbour among the other points of its own set:
//!
//! ```text
//! precision   share of made points within ρ(r) of some real r           (Kynkäänniemi et al. 2019, arXiv 1904.06991)
//! recall      share of real points within ρ(m) of some made m
//! coverage    share of real points r that have a made point within ρ(r)      (Naeem et al. 2020, arXiv 2002.09797)
//! ```
//!
//! Precision says whether what is made could be real, recall and coverage whether what is real could be made; coverage does not count on outliers among the made.

use super::{Points, squared};

/// The three shares, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares {
    /// Of the made points.
    pub precision: f64,
    /// Of the real points.
    pub recall: f64,
    /// Of the real points.
    pub coverage: f64,
}

/// `made` beside `real`, by k-th neighbours.
///
/// # Errors
/// k points or fewer in a set, two dimensions, or k = 0.
pub fn compare(made: &Points, real: &Points, k: usize) -> Result<Shares, String> {
    if made.dimension() != real.dimension() || k == 0 || made.len() <= k || real.len() <= k {
        return Err(format!("evaluate: {k}-th neighbours need more than {k} points of one dimension in each set, not {} of {} and {} of {}", made.len(), made.dimension(), real.len(), real.dimension()));
    }
    let (of_made, of_real) = (radii(made, k), radii(real, k));
    let (mut precise, mut recalled, mut covered) = (vec![false; made.len()], vec![false; real.len()], vec![false; real.len()]);
    for (i, m) in made.iter().enumerate() {
        for (j, r) in real.iter().enumerate() {
            let d = squared(m, r);
            if d <= of_real[j] {
                (precise[i], covered[j]) = (true, true);
            }
            recalled[j] |= d <= of_made[i];
        }
    }
    let share = |v: &[bool]| v.iter().filter(|x| **x).count() as f64 / v.len() as f64;
    Ok(Shares { precision: share(&precise), recall: share(&recalled), coverage: share(&covered) })
}

/// ρ² of each point.
fn radii(p: &Points, k: usize) -> Vec<f64> {
    let mut distances = Vec::with_capacity(p.len());
    let radius = |i: usize, distances: &mut Vec<f64>| {
        distances.clear();
        distances.extend((0..p.len()).filter(|j| *j != i).map(|j| squared(p.at(i), p.at(j))));
        *distances.select_nth_unstable_by(k - 1, f64::total_cmp).1
    };
    (0..p.len()).map(|i| radius(i, &mut distances)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(x: &[f64]) -> Points {
        Points::new(1, x.to_vec()).unwrap()
    }

    #[test]
    fn on_a_line_by_hand() {
        // k = 1. Radii of real 0, 1, 3, 10: 1, 1, 2, 7. Radii of made 0.5, 2, 20: 1.5, 1.5, 18.
        let (real, made) = (line(&[0.0, 1.0, 3.0, 10.0]), line(&[0.5, 2.0, 20.0]));
        // precision: 0.5 is within 1 of 0; 2 within 1 of 1; 20 is 10 from 10, beyond 7: 2 of 3.
        // recall: 0 and 1 within 1.5 of 0.5; 3 within 1.5 of 2; 10 within 18 of 20: all.
        // coverage: 0 has 0.5; 1 has 0.5; 3 has 2; 10 has nothing within 7 but 2 is 8 away, 20 is 10 away: 3 of 4.
        assert_eq!(compare(&made, &real, 1).unwrap(), Shares { precision: 2.0 / 3.0, recall: 1.0, coverage: 0.75 });
    }

    #[test]
    fn a_collapsed_set_is_precise_and_covers_little() {
        let real = line(&(0..40).map(f64::from).collect::<Vec<_>>());
        let made = line(&(0..10).map(|i| 20.0 + 0.01 * f64::from(i)).collect::<Vec<_>>());
        let s = compare(&made, &real, 5).unwrap();
        assert_eq!(s.precision, 1.0);
        assert!(s.recall < 0.05 && s.coverage < 0.3, "{s:?}");
    }

    #[test]
    fn too_few_points_are_refused() {
        assert!(compare(&line(&[0.0; 5]), &line(&[0.0; 9]), 5).unwrap_err().contains("more than 5 points"));
    }
}
