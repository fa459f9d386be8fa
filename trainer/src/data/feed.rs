//! A set as a network's arguments: which samples an iteration sees, and how a network of each kind is told what they are.

use super::{Dataset, Rows, clips};
use crate::method::Batch;
use crate::random::Random;
use ir::dim::Name;
use ir::tensor::{Tensor, TensorData};
use std::collections::BTreeMap;

/// How a network is told what a sample is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    /// By `class_labels`, i32 `[B]`; one behind the last class is "no class".
    Class,
    /// By `encoder_hidden_states`, f32 `[B, tokens, width]`; zeros are the empty text. Sets that have no tokens of their own get one token, the class one-hot.
    Tokens,
}

/// A set in the form that a network reads.
#[derive(Clone, Debug)]
pub struct Feed {
    data: Dataset,
    told: Told,
    shape: Vec<usize>,
    tokens: Option<Rows>,
}

impl Feed {
    /// `axes` is how many axes a sample has for the network, without the batch: images become clips of one frame where it has four.
    ///
    /// # Errors
    /// A set of another shape, or one that says nothing of its samples.
    pub fn new(data: Dataset, told: Told, axes: usize) -> Result<Feed, String> {
        let shape = match (&data.shape[..], axes) {
            (s, n) if s.len() == n => s.to_vec(),
            ([c, h, w], 4) => vec![*c, 1, *h, *w],
            ([c, 1, h, w], 3) => vec![*c, *h, *w],
            (s, n) => return Err(format!("data: samples of {} have shape {s:?}, but the network wants {n} axes", data.name)),
        };
        let tokens = match told {
            Told::Class if data.labels.is_empty() => return Err(format!("data: {} has no labels, but the network wants class_labels", data.name)),
            Told::Class => None,
            Told::Tokens => Some(match data.conditions.get(clips::TOKENS).or_else(|| data.conditions.get("encoder_hidden_states")) {
                Some(rows) if rows.shape.len() == 2 => rows.clone(),
                Some(rows) => return Err(format!("data: tokens of {} have shape {:?}, but must be [tokens, width]", data.name, rows.shape)),
                None if data.labels.is_empty() => return Err(format!("data: {} has neither tokens nor labels, but the network wants encoder_hidden_states", data.name)),
                None => one_hot(&data.labels, data.classes),
            }),
        };
        Ok(Feed { data, told, shape, tokens })
    }
    /// The set.
    pub fn data(&self) -> &Dataset {
        &self.data
    }
    /// A sample's shape for the network.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
    /// `[tokens, width]` of the text, where there is one.
    pub fn text(&self) -> Option<&[usize]> {
        self.tokens.as_ref().map(|t| t.shape.as_slice())
    }
    /// The samples that iteration `i` sees: drawn with replacement, by counter.
    pub fn draw(&self, random: &Random, iteration: u64, count: usize) -> Vec<usize> {
        let s = random.stream(iteration, "batch");
        let n = self.data.len();
        // A uniform number is below 1, but its product with n could round up to n.
        (0..count as u64).map(|k| ((s.uniform(k) * n as f64) as usize).min(n - 1)).collect()
    }
    /// The batch of iteration `i`.
    ///
    /// # Errors
    /// None for a checked set.
    pub fn batch(&self, random: &Random, iteration: u64, count: usize) -> Result<Batch, String> {
        self.samples(&self.draw(random, iteration, count))
    }
    /// The samples `which` as a batch.
    ///
    /// # Errors
    /// None for indices below the set's length.
    pub fn samples(&self, which: &[usize]) -> Result<Batch, String> {
        let mut shape = vec![which.len()];
        shape.extend(&self.shape);
        let x0 = self.data.gather(which)?.reshape(&shape).map_err(|e| e.to_string())?;
        let (condition, empty) = self.conditions(which)?;
        Ok(Batch { x0, condition, empty })
    }
    /// Samples whose labels go round through the classes, for sampling: the first of each class, then the second, ….
    pub fn in_turn(&self, count: usize) -> Vec<usize> {
        let classes = self.data.classes.max(1);
        if self.data.labels.is_empty() {
            return (0..count).map(|i| i % self.data.len()).collect();
        }
        let of: Vec<Vec<usize>> = (0..classes).map(|c| (0..self.data.len()).filter(|i| self.data.labels[*i] as usize == c).collect()).collect();
        let full: Vec<&Vec<usize>> = of.iter().filter(|v| !v.is_empty()).collect();
        (0..count).map(|i| { let v = full[i % full.len()]; v[i / full.len() % v.len()] }).collect()
    }
    /// What a network is told of the samples `which`, and the same saying nothing.
    ///
    /// # Errors
    /// None for indices below the set's length.
    pub fn conditions(&self, which: &[usize]) -> Result<(BTreeMap<Name, Tensor>, BTreeMap<Name, Tensor>), String> {
        let n = which.len();
        let (name, told, nothing): (&str, Tensor, Tensor) = match (&self.tokens, self.told) {
            (Some(rows), _) => {
                let per: usize = rows.shape.iter().product();
                let mut all = Vec::with_capacity(n * per);
                which.iter().for_each(|i| all.extend_from_slice(&rows.numbers[i * per..(i + 1) * per]));
                let shape = || vec![n, rows.shape[0], rows.shape[1]];
                let tensor = |v: Vec<f32>| Tensor::new(shape(), TensorData::F32(v)).map_err(|e| e.to_string());
                ("encoder_hidden_states", tensor(all)?, tensor(vec![0.0; n * per])?)
            }
            (None, _) => {
                let tensor = |v: Vec<i32>| Tensor::new(vec![n], TensorData::I32(v)).map_err(|e| e.to_string());
                ("class_labels", tensor(which.iter().map(|i| self.data.labels[*i] as i32).collect())?, tensor(vec![self.data.classes as i32; n])?)
            }
        };
        Ok(([(name.into(), told)].into(), [(name.into(), nothing)].into()))
    }
}

fn one_hot(labels: &[u32], classes: usize) -> Rows {
    let mut numbers = vec![0.0; labels.len() * classes];
    labels.iter().enumerate().for_each(|(i, l)| numbers[i * classes + *l as usize] = 1.0);
    Rows { shape: vec![1, classes], numbers }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::digits;

    #[test]
    fn batches_depend_on_seed_and_iteration_alone() {
        let f = Feed::new(digits::shipped().unwrap(), Told::Class, 3).unwrap();
        let r = Random::new(1);
        let (a, b) = (f.batch(&r, 7, 50).unwrap(), f.batch(&r, 7, 50).unwrap());
        assert_eq!(a, b);
        assert_ne!(a, f.batch(&r, 8, 50).unwrap());
        assert_ne!(a, f.batch(&Random::new(2), 7, 50).unwrap());
        assert_eq!(a.x0.shape(), [50, 1, 8, 8]);
        assert_eq!(a.empty["class_labels"].to_f64(), vec![10.0; 50]);
        // Labels go with their images.
        let which = f.draw(&r, 7, 50);
        assert_eq!(a.condition["class_labels"].to_f64()[3], f64::from(f.data().labels[which[3]]));
        // A shorter batch is the beginning of a longer one, and draws reach everything.
        assert_eq!(f.draw(&r, 7, 10), which[..10]);
        let seen: std::collections::BTreeSet<usize> = (0..400).flat_map(|i| f.draw(&r, i, 50)).collect();
        assert_eq!(seen.len(), 1797);
    }

    #[test]
    fn classes_go_round() {
        let f = Feed::new(digits::shipped().unwrap(), Told::Class, 3).unwrap();
        let labels: Vec<u32> = f.in_turn(25).iter().map(|i| f.data().labels[*i]).collect();
        assert_eq!(labels, (0..25).map(|i| i % 10).collect::<Vec<_>>());
        assert_eq!(f.in_turn(2000).len(), 2000);
    }

    #[test]
    fn networks_of_text_get_tokens() {
        let f = Feed::new(digits::shipped().unwrap(), Told::Tokens, 4).unwrap();
        let b = f.samples(&[0, 1]).unwrap();
        assert_eq!((b.x0.shape(), b.condition["encoder_hidden_states"].shape()), (&[2, 1, 1, 8, 8][..], &[2, 1, 10][..]));
        let c = clips::make(clips::Size { frames: 3, height: 10, width: 10 }, 20, 0).unwrap();
        let b = Feed::new(c, Told::Tokens, 4).unwrap().samples(&[4]).unwrap();
        assert_eq!(b.condition["encoder_hidden_states"].shape(), [1, 2, 14]);
        assert!(b.empty["encoder_hidden_states"].to_f64().iter().all(|x| *x == 0.0));
        let clips = clips::make(clips::Size { frames: 3, height: 10, width: 10 }, 20, 0).unwrap();
        assert!(Feed::new(clips, Told::Class, 3).unwrap_err().contains("wants 3 axes"));
    }
}
