//! How good samples are, beside the real ones: quality, closeness of distributions, diversity. Each measure is a file with its equation and source; none knows a
//! network. Points are classifier features or pixels; sums are f64 and in a fixed order.

pub mod classifier;
pub mod frechet;
pub mod neighbours;
pub mod spread;
pub mod vendi;

use std::collections::BTreeMap;

/// Points of one dimension.
#[derive(Clone, Debug, PartialEq)]
pub struct Points {
    dimension: usize,
    numbers: Vec<f64>,
}

impl Points {
    /// Points of `dimension` numbers each, one behind the other.
    ///
    /// # Errors
    /// A number of numbers that is no multiple of the dimension, or one that is not finite.
    pub fn new(dimension: usize, numbers: Vec<f64>) -> Result<Points, String> {
        if dimension == 0 || !numbers.len().is_multiple_of(dimension) {
            return Err(format!("evaluate: {} numbers are no points of dimension {dimension}", numbers.len()));
        }
        if let Some(i) = numbers.iter().position(|x| !x.is_finite()) {
            return Err(format!("evaluate: point {} has {} at {}", i / dimension, numbers[i], i % dimension));
        }
        Ok(Points { dimension, numbers })
    }
    /// Number of points.
    pub fn len(&self) -> usize {
        self.numbers.len() / self.dimension
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }
    /// Numbers per point.
    pub fn dimension(&self) -> usize {
        self.dimension
    }
    /// Point `i`.
    pub fn at(&self, i: usize) -> &[f64] {
        &self.numbers[i * self.dimension..(i + 1) * self.dimension]
    }
    /// All points.
    pub fn iter(&self) -> impl Iterator<Item = &[f64]> {
        self.numbers.chunks(self.dimension)
    }
}

/// Squared Euclidean distance.
pub fn squared(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum()
}

/// What a classifier thinks of a set: one row of class probabilities and one of features per sample.
pub struct Opinion {
    /// Probabilities, `[samples, classes]`.
    pub probabilities: Points,
    /// Features, `[samples, features]`.
    pub features: Points,
}

impl Opinion {
    /// Share of samples whose most probable class is their label, and the mean probability of the label.
    ///
    /// # Errors
    /// Another number of labels, or a label that is no class.
    pub fn accuracy(&self, labels: &[u32]) -> Result<(f64, f64), String> {
        let p = &self.probabilities;
        if labels.len() != p.len() || labels.is_empty() {
            return Err(format!("evaluate: {} labels for {} samples", labels.len(), p.len()));
        }
        let (mut right, mut sure) = (0usize, 0.0);
        for (row, label) in p.iter().zip(labels) {
            let of_label = *row.get(*label as usize).ok_or_else(|| format!("evaluate: label {label}, but there are {} classes", p.dimension()))?;
            right += usize::from(row.iter().enumerate().all(|(c, x)| c == *label as usize || *x < of_label));
            sure += of_label;
        }
        Ok((right as f64 / labels.len() as f64, sure / labels.len() as f64))
    }
}

/// Figures of a set of samples, by name.
pub type Scores = BTreeMap<String, f64>;

/// A set with its labels and what the classifier thinks of it.
pub struct Judged<'a> {
    /// Pixels, normalised.
    pub pixels: Points,
    /// The class of each sample; empty where there are no classes.
    pub labels: &'a [u32],
    /// The classifier's opinion.
    pub opinion: Opinion,
}

/// k of precision, recall and coverage.
pub const NEIGHBOURS: usize = 5;

/// All figures of `made` beside `real`.
///
/// # Errors
/// Sets that are too small for k neighbours or for a covariance, or that do not agree with their labels.
pub fn scores(made: &Judged, real: &Judged) -> Result<Scores, String> {
    let mut s = Scores::new();
    if !made.labels.is_empty() {
        let (accuracy, confidence) = made.opinion.accuracy(made.labels)?;
        s.insert("accuracy".into(), accuracy);
        s.insert("confidence".into(), confidence);
        s.insert("diversity".into(), spread::within(&made.pixels, made.labels)? / spread::within(&real.pixels, real.labels)?);
    }
    s.insert("frechet".into(), frechet::distance(&made.opinion.features, &real.opinion.features)?);
    for (space, m, r) in [("features", &made.opinion.features, &real.opinion.features), ("pixels", &made.pixels, &real.pixels)] {
        let n = neighbours::compare(m, r, NEIGHBOURS)?;
        for (what, x) in [("precision", n.precision), ("recall", n.recall), ("coverage", n.coverage)] {
            s.insert(format!("{what} {space}"), x);
        }
    }
    s.insert("vendi".into(), vendi::score(&made.opinion.features)?);
    s.insert("vendi of real".into(), vendi::score(&real.opinion.features)?);
    Ok(s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracy_by_hand() {
        let o = Opinion { probabilities: Points::new(2, vec![0.9, 0.1, 0.4, 0.6, 0.5, 0.5]).unwrap(), features: Points::new(1, vec![0.0; 3]).unwrap() };
        // The third is a tie, and no vote for either.
        let (accuracy, confidence) = o.accuracy(&[0, 0, 1]).unwrap();
        assert!((accuracy - 1.0 / 3.0).abs() < 1e-15 && (confidence - (0.9 + 0.4 + 0.5) / 3.0).abs() < 1e-15);
        assert!(o.accuracy(&[0, 0]).is_err() && o.accuracy(&[0, 0, 2]).unwrap_err().contains("label 2"));
    }

    #[test]
    fn points_are_checked() {
        assert!(Points::new(2, vec![0.0; 3]).is_err());
        assert_eq!(Points::new(2, vec![0.0, 1.0, f64::NAN, 0.0]).unwrap_err(), "evaluate: point 1 has NaN at 0");
    }

    #[test]
    fn a_set_beside_itself_is_perfect() {
        let numbers: Vec<f64> = (0..60).map(|i| f64::from((i * 7919) % 101)).collect();
        let labels: Vec<u32> = (0..20).map(|i| i % 2).collect();
        let judged = || Judged {
            pixels: Points::new(3, numbers.clone()).unwrap(),
            labels: &labels,
            opinion: Opinion { probabilities: Points::new(2, labels.iter().flat_map(|l| [1.0 - f64::from(*l), f64::from(*l)]).collect()).unwrap(), features: Points::new(3, numbers.clone()).unwrap() },
        };
        let s = scores(&judged(), &judged()).unwrap();
        for one in ["accuracy", "confidence", "diversity", "precision features", "recall pixels", "coverage pixels"] {
            assert!((s[one] - 1.0).abs() < 1e-12, "{one}: {}", s[one]);
        }
        assert!(s["frechet"].abs() < 1e-6 && s["vendi"] == s["vendi of real"]);
    }
}
