//! A batch on the host: samples in f64, one a row. Every reduction is over one row, in the order of its elements, so it does not depend on threads.

use ir::diagnostic::Error;
use ir::random::Stream;
use ir::tensor::Tensor;
use ir::types::DType;

/// Samples of one shape, `[B, …]`.
#[derive(Clone, PartialEq, Debug)]
pub struct Rows {
    shape: Vec<usize>,
    data: Vec<f64>,
}

impl Rows {
    /// Samples from row-major elements.
    ///
    /// # Errors
    /// No batch axis, or a number of elements that is not the shape's.
    pub fn new(shape: &[usize], data: Vec<f64>) -> Result<Rows, Error> {
        if shape.is_empty() || shape.iter().product::<usize>() != data.len() {
            return Err(Error::new(format!("samples of shape {shape:?}, but {} elements given", data.len())));
        }
        Ok(Rows { shape: shape.to_vec(), data })
    }
    /// The samples of a tensor.
    ///
    /// # Errors
    /// A tensor without axes.
    pub fn from_tensor(t: &Tensor) -> Result<Rows, Error> {
        Rows::new(t.shape(), t.to_f64())
    }
    /// Standard normal noise of the same shape.
    pub fn noise(&self, stream: Stream) -> Rows {
        Rows { shape: self.shape.clone(), data: stream.normals(self.data.len()) }
    }
    /// As a tensor, rounded to `dtype`.
    ///
    /// # Errors
    /// None that a shape of a value of this type could have.
    pub fn tensor(&self, dtype: DType) -> Result<Tensor, Error> {
        Tensor::from_f64(dtype, &self.shape, &self.data)
    }
    /// `[B, …]`.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
    /// B.
    pub fn batch(&self) -> usize {
        self.shape[0]
    }
    /// Elements of one sample.
    pub fn width(&self) -> usize {
        self.shape[1..].iter().product()
    }
    /// All elements, row by row.
    pub fn data(&self) -> &[f64] {
        &self.data
    }
    /// Sample `i`.
    pub fn row(&self, i: usize) -> &[f64] {
        let w = self.width();
        &self.data[i * w..(i + 1) * w]
    }
    /// An equation of elements: `of([&x, &v], |i, [x, v]| …)`, where `i` is the row, whose time or weight the closure may look up. The operands have one shape.
    ///
    /// # Panics
    /// Operands of different shapes, which no caller's input can bring about: networks' results are checked where they come in.
    pub fn of<const N: usize>(operands: [&Rows; N], f: impl Fn(usize, [f64; N]) -> f64) -> Rows {
        let first = operands[0];
        assert!(operands.iter().all(|o| o.shape == first.shape), "rows: operands of different shapes");
        let width = first.width().max(1);
        let data = (0..first.data.len()).map(|k| f(k / width, operands.map(|o| o.data[k]))).collect();
        Rows { shape: first.shape.clone(), data }
    }
    /// `f` of each row.
    pub fn each(&self, f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
        (0..self.batch()).map(|i| f(self.row(i))).collect()
    }
    /// Euclidean norm of each row.
    pub fn norms(&self) -> Vec<f64> {
        self.each(|r| r.iter().map(|x| x * x).sum::<f64>().sqrt())
    }
    /// Which rows have neither NaN nor infinity.
    pub fn finite(&self) -> Vec<bool> {
        (0..self.batch()).map(|i| self.row(i).iter().all(|x| x.is_finite())).collect()
    }
    /// The same with 0 in the rows that are not to be kept.
    #[must_use]
    pub fn keep(mut self, keep: &[bool]) -> Rows {
        let w = self.width();
        for (i, _) in keep.iter().enumerate().filter(|(_, k)| !**k) {
            self.data[i * w..(i + 1) * w].fill(0.0);
        }
        self
    }
}

/// The mean, in order; 0 of nothing.
pub fn mean(v: &[f64]) -> f64 {
    if v.is_empty() { 0.0 } else { v.iter().sum::<f64>() / v.len() as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equations_are_by_element_and_reductions_by_row() {
        let x = Rows::new(&[2, 2], vec![3.0, 4.0, f64::NAN, 1.0]).unwrap();
        assert_eq!(x.each(|r| r[1]), [4.0, 1.0]);
        assert_eq!((x.norms()[0], x.finite()), (5.0, vec![true, false]));
        let y = Rows::of([&x, &x], |i, [a, b]| if i == 0 { a + b } else { 7.0 });
        assert_eq!(y.data(), [6.0, 8.0, 7.0, 7.0]);
        assert_eq!(y.keep(&[false, true]).data(), [0.0, 0.0, 7.0, 7.0]);
        assert!(Rows::new(&[], vec![1.0]).is_err() && Rows::new(&[2], vec![1.0]).is_err());
    }
}
