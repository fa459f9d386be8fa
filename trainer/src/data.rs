//! What is learned: a set of samples, all of one shape, with what each is conditioned on.
//!
//! A set is checked before the first iteration: a number that is no number, a sample of another shape, a label outside of the classes are errors
//! that name their place. Batches are drawn by counter: which samples iteration i sees depends on the seed and on i alone, so a training that was
//! stopped goes on with the batches that it would have seen.

pub mod clips;
pub mod digits;
pub mod feed;
pub mod file;

use ir::tensor::{Tensor, TensorData};

/// Samples in memory, normalised, with labels and further conditions.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// What it is, for messages and reports.
    pub name: String,
    /// Shape of one sample, such as `[1, 8, 8]` (channels, height, width) or `[1, 5, 12, 12]` (channels, frames, height, width).
    pub shape: Vec<usize>,
    /// All samples, one behind the other: `len · ∏shape` numbers.
    pub samples: Vec<f32>,
    /// The class of each sample, below `classes`; empty where there are no classes.
    pub labels: Vec<u32>,
    /// Number of classes; 0 where there are none.
    pub classes: usize,
    /// Conditions from a file, by name: each has one row per sample.
    pub conditions: std::collections::BTreeMap<String, Rows>,
    /// `(mean, deviation)` that [`Dataset::samples`] were normalised by: original = sample · deviation + mean.
    pub scale: (f64, f64),
    /// What black and white are in original units, for pictures.
    pub range: (f64, f64),
}

/// One row of numbers per sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// Shape of one row.
    pub shape: Vec<usize>,
    /// `len · ∏shape` numbers.
    pub numbers: Vec<f32>,
}

impl Dataset {
    /// Number of samples.
    pub fn len(&self) -> usize {
        self.samples.len() / self.size().max(1)
    }
    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }
    /// Numbers in one sample.
    pub fn size(&self) -> usize {
        self.shape.iter().product()
    }
    /// Sample `i`.
    pub fn sample(&self, i: usize) -> &[f32] {
        let n = self.size();
        &self.samples[i * n..(i + 1) * n]
    }
    /// The samples `which`, one behind the other, as f32 `[which, shape…]`.
    ///
    /// # Errors
    /// None for indices below [`Dataset::len`]; the tensor's own otherwise.
    pub fn gather(&self, which: &[usize]) -> Result<Tensor, String> {
        let mut all = Vec::with_capacity(which.len() * self.size());
        for i in which {
            all.extend_from_slice(self.sample(*i));
        }
        let mut shape = vec![which.len()];
        shape.extend(&self.shape);
        Tensor::new(shape, TensorData::F32(all)).map_err(|e| e.to_string())
    }
    /// Checks that the set is one: sizes agree, every number is finite, labels are classes, and there is more than one sample.
    ///
    /// # Errors
    /// The first violation, with the sample and the position in it.
    pub fn check(&self) -> Result<(), String> {
        let (name, n) = (&self.name, self.size());
        if n == 0 || self.samples.is_empty() || !self.samples.len().is_multiple_of(n) {
            return Err(format!("data: {name}: {} numbers are no whole number of samples of shape {:?} ({n} numbers each)", self.samples.len(), self.shape));
        }
        if let Some(bad) = self.samples.iter().position(|x| !x.is_finite()) {
            return Err(format!("data: {name}: sample {} has {} at {}; every number must be finite", bad / n, self.samples[bad], place(bad % n, &self.shape)));
        }
        if !self.labels.is_empty() && self.labels.len() != self.len() {
            return Err(format!("data: {name}: {} labels for {} samples", self.labels.len(), self.len()));
        }
        if let Some(i) = self.labels.iter().position(|l| *l as usize >= self.classes) {
            return Err(format!("data: {name}: sample {i} has label {}, but there are classes 0 to {}", self.labels[i], self.classes.saturating_sub(1)));
        }
        for (key, rows) in &self.conditions {
            let per: usize = rows.shape.iter().product();
            if per == 0 || rows.numbers.len() != per * self.len() {
                return Err(format!("data: {name}: condition `{key}` has {} numbers, but {} samples with rows of {:?} need {}", rows.numbers.len(), self.len(), rows.shape, per * self.len()));
            }
            if let Some(bad) = rows.numbers.iter().position(|x| !x.is_finite()) {
                return Err(format!("data: {name}: condition `{key}` of sample {} has {} at {}", bad / per, rows.numbers[bad], place(bad % per, &rows.shape)));
            }
        }
        Ok(())
    }
    /// Brings the samples to mean 0 and deviation 1 over all numbers, and remembers by what.
    ///
    /// # Errors
    /// Samples that are all the same number.
    pub fn normalise(&mut self) -> Result<(), String> {
        // Sums in f64 and in order: the same numbers everywhere.
        let n = self.samples.len() as f64;
        let mean = self.samples.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let variance = self.samples.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
        if variance.is_nan() || variance <= 0.0 {
            return Err(format!("data: {}: all numbers are {mean}, so there is nothing to learn", self.name));
        }
        let deviation = variance.sqrt();
        self.samples.iter_mut().for_each(|x| *x = ((f64::from(*x) - mean) / deviation) as f32);
        self.scale = (self.scale.0 + self.scale.1 * mean, self.scale.1 * deviation);
        Ok(())
    }
    /// A sample's numbers as grey values: 0 is black, 255 is white.
    pub fn grey(&self, x: &[f32]) -> Vec<u8> {
        let ((mean, deviation), (low, high)) = (self.scale, self.range);
        x.iter().map(|x| ((f64::from(*x) * deviation + mean - low) / (high - low) * 255.0).round().clamp(0.0, 255.0) as u8).collect()
    }
}

/// Position `i` of a row-major array, for people: `row 3, column 2`, or `[0, 3, 2]` where there are more axes.
pub fn place(i: usize, shape: &[usize]) -> String {
    let (mut rest, mut at) = (i, vec![0; shape.len()]);
    for (a, n) in at.iter_mut().zip(shape).rev() {
        (*a, rest) = (rest % n.max(&1), rest / n.max(&1));
    }
    match (at.as_slice(), shape) {
        ([0, row, column], [1, ..]) | ([row, column], _) => format!("row {row}, column {column}"),
        _ => format!("{at:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Dataset {
        let samples = (0..24).map(|i| i as f32).collect();
        Dataset { name: "tiny".into(), shape: vec![1, 2, 3], samples, labels: vec![0, 1, 0, 1], classes: 2, conditions: Default::default(), scale: (0.0, 1.0), range: (0.0, 23.0) }
    }

    #[test]
    fn bad_sets_are_refused_with_their_place() {
        assert!(tiny().check().is_ok());
        let mut d = tiny();
        d.samples[11] = f32::NAN;
        assert_eq!(d.check().unwrap_err(), "data: tiny: sample 1 has NaN at row 1, column 2; every number must be finite");
        let mut d = tiny();
        d.samples.pop();
        assert!(d.check().unwrap_err().contains("23 numbers are no whole number of samples of shape [1, 2, 3]"));
        let mut d = tiny();
        d.labels[3] = 2;
        assert_eq!(d.check().unwrap_err(), "data: tiny: sample 3 has label 2, but there are classes 0 to 1");
        let mut d = tiny();
        d.labels.pop();
        assert!(d.check().unwrap_err().contains("3 labels for 4 samples"));
        let mut d = tiny();
        d.conditions.insert("text".into(), Rows { shape: vec![2, 2], numbers: vec![0.0; 15] });
        assert!(d.check().unwrap_err().contains("condition `text` has 15 numbers, but 4 samples with rows of [2, 2] need 16"));
    }

    #[test]
    fn normalising_keeps_the_way_back() {
        let mut d = tiny();
        d.normalise().unwrap();
        let mean: f32 = d.samples.iter().sum::<f32>() / 24.0;
        let square: f32 = d.samples.iter().map(|x| x * x).sum::<f32>() / 24.0;
        assert!(mean.abs() < 1e-6 && (square - 1.0).abs() < 1e-6);
        assert_eq!(d.grey(d.sample(3))[5], 255);
        assert_eq!(d.grey(d.sample(0))[0], 0);
        let mut flat = tiny();
        flat.samples.iter_mut().for_each(|x| *x = 4.0);
        assert!(flat.normalise().unwrap_err().contains("all numbers are 4"));
    }

    #[test]
    fn samples_are_gathered_in_order() {
        let t = tiny().gather(&[2, 0]).unwrap();
        assert_eq!(t.shape(), [2, 1, 2, 3]);
        assert_eq!(t.to_f64()[..2], [12.0, 13.0]);
        assert_eq!(t.to_f64()[6..8], [0.0, 1.0]);
    }
}
