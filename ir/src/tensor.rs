//! Tensors on the host: an element type, a shape and dense row-major elements, with the conversions that files and
//! evaluators need and the one measure of error that tests use.

use crate::diagnostic::Error;
use crate::types::{DType, to_odd};
use half::{bf16, f16};

/// Elements, in the type that they have in memory.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs)] // the names are the documentation
pub enum TensorData {
    F64(Vec<f64>),
    F32(Vec<f32>),
    BF16(Vec<bf16>),
    F16(Vec<f16>),
    I32(Vec<i32>),
    /// Each element is 0 or 1.
    Bool(Vec<u8>),
}

/// A tensor on the host.
#[derive(Clone, PartialEq, Debug)]
pub struct Tensor {
    shape: Vec<usize>,
    data: TensorData,
}

/// Runs `$body` with `$v` as the typed elements.
macro_rules! each {
    ($data:expr, $v:ident => $body:expr) => {
        match $data {
            TensorData::F64($v) => $body,
            TensorData::F32($v) => $body,
            TensorData::BF16($v) => $body,
            TensorData::F16($v) => $body,
            TensorData::I32($v) => $body,
            TensorData::Bool($v) => $body,
        }
    };
}

impl TensorData {
    /// Number of elements.
    pub fn len(&self) -> usize {
        each!(self, v => v.len())
    }
    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Tensor {
    /// A tensor of `data`, row-major.
    ///
    /// # Errors
    /// A number of elements that is not the shape's.
    pub fn new(shape: Vec<usize>, data: TensorData) -> Result<Tensor, Error> {
        let want = elements(&shape)?;
        if data.len() != want {
            return Err(Error::new(format!("shape {shape:?} has {want} elements, but {} given", data.len())));
        }
        Ok(Tensor { shape, data })
    }
    /// A tensor of zeros.
    ///
    /// # Errors
    /// A shape whose number of elements does not fit.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Tensor, Error> {
        let n = elements(shape)?;
        let data = match dtype {
            DType::F64 => TensorData::F64(vec![0.0; n]),
            DType::F32 => TensorData::F32(vec![0.0; n]),
            DType::BF16 => TensorData::BF16(vec![bf16::ZERO; n]),
            DType::F16 => TensorData::F16(vec![f16::ZERO; n]),
            DType::I32 => TensorData::I32(vec![0; n]),
            DType::Bool => TensorData::Bool(vec![0; n]),
        };
        Tensor::new(shape.to_vec(), data)
    }
    /// `data` rounded to `dtype`, to nearest even; integers are truncated and saturate, a truth value is "not zero".
    ///
    /// # Errors
    /// A number of elements that is not the shape's.
    pub fn from_f64(dtype: DType, shape: &[usize], data: &[f64]) -> Result<Tensor, Error> {
        let data = match dtype {
            DType::F64 => TensorData::F64(data.to_vec()),
            DType::F32 => TensorData::F32(data.iter().map(|x| *x as f32).collect()),
            DType::BF16 => TensorData::BF16(data.iter().map(|x| bf16::from_f32(to_odd(*x))).collect()),
            DType::F16 => TensorData::F16(data.iter().map(|x| f16::from_f32(to_odd(*x))).collect()),
            DType::I32 => TensorData::I32(data.iter().map(|x| *x as i32).collect()),
            DType::Bool => TensorData::Bool(data.iter().map(|x| u8::from(*x != 0.0)).collect()),
        };
        Tensor::new(shape.to_vec(), data)
    }
    /// An `F64` tensor that takes `data` over.
    ///
    /// # Errors
    /// A number of elements that is not the shape's.
    pub fn from_vec(shape: &[usize], data: Vec<f64>) -> Result<Tensor, Error> {
        Tensor::new(shape.to_vec(), TensorData::F64(data))
    }
    /// Element type.
    pub fn dtype(&self) -> DType {
        match self.data {
            TensorData::F64(_) => DType::F64,
            TensorData::F32(_) => DType::F32,
            TensorData::BF16(_) => DType::BF16,
            TensorData::F16(_) => DType::F16,
            TensorData::I32(_) => DType::I32,
            TensorData::Bool(_) => DType::Bool,
        }
    }
    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
    /// The elements.
    pub fn data(&self) -> &TensorData {
        &self.data
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }
    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }
    /// Bytes of the elements in memory.
    pub fn byte_len(&self) -> usize {
        self.len() * self.dtype().bytes()
    }
    /// Where the elements start in memory.
    pub fn as_ptr(&self) -> *const u8 {
        each!(&self.data, v => v.as_ptr().cast())
    }
    /// Where the elements start in memory, for writing elements of the tensor's type.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        each!(&mut self.data, v => v.as_mut_ptr().cast())
    }
    /// The elements as f64; exact for every type.
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.data {
            TensorData::F64(v) => v.clone(),
            TensorData::F32(v) => v.iter().map(|x| f64::from(*x)).collect(),
            TensorData::BF16(v) => v.iter().map(|x| x.to_f64()).collect(),
            TensorData::F16(v) => v.iter().map(|x| x.to_f64()).collect(),
            TensorData::I32(v) => v.iter().map(|x| f64::from(*x)).collect(),
            TensorData::Bool(v) => v.iter().map(|x| f64::from(*x)).collect(),
        }
    }
    /// The same numbers, rounded to `dtype`.
    pub fn convert(&self, dtype: DType) -> Tensor {
        if dtype == self.dtype() {
            return self.clone();
        }
        // One rounding, as by way of f64, without a table of that: weights are large.
        let narrow = match (&self.data, dtype) {
            (TensorData::F32(v), DType::BF16) => Some(TensorData::BF16(v.iter().map(|x| half::bf16::from_f32(*x)).collect())),
            (TensorData::BF16(v), DType::F32) => Some(TensorData::F32(v.iter().map(|x| x.to_f32()).collect())),
            _ => None,
        };
        if let Some(data) = narrow {
            return Tensor { shape: self.shape.clone(), data };
        }
        // One element in, one out: the count cannot differ.
        Tensor::from_f64(dtype, &self.shape, &self.to_f64()).unwrap_or_else(|_| self.clone())
    }
    /// The same elements under another shape.
    ///
    /// # Errors
    /// A shape with another number of elements.
    pub fn reshape(self, shape: &[usize]) -> Result<Tensor, Error> {
        Tensor::new(shape.to_vec(), self.data)
    }

    /// The elements from number `start` on, as many as `shape` has.
    ///
    /// # Errors
    /// A part that is not inside.
    pub fn part(&self, start: usize, shape: &[usize]) -> Result<Tensor, Error> {
        let n = elements(shape)?;
        let end = start.saturating_add(n);
        if end > self.len() {
            return Err(Error::new(format!("elements {start}..{end} of a tensor of {}", self.len())));
        }
        macro_rules! cut {
            ($($kind:ident)*) => {
                match &self.data {
                    $(TensorData::$kind(v) => TensorData::$kind(v[start..end].to_vec()),)*
                }
            };
        }
        Tensor::new(shape.to_vec(), cut!(F64 F32 BF16 F16 I32 Bool))
    }

    /// The elements as little-endian bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        fn copied<T, const N: usize>(v: &[T], bytes: impl Fn(&T) -> [u8; N]) -> Vec<u8> {
            let mut out = vec![0; v.len() * N];
            out.chunks_exact_mut(N).zip(v).for_each(|(to, x)| to.copy_from_slice(&bytes(x)));
            out
        }
        each!(&self.data, v => copied(v, |x| x.to_le_bytes()))
    }
    /// A tensor from little-endian bytes.
    ///
    /// # Errors
    /// A number of bytes that is not the shape's.
    pub fn from_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Tensor, Error> {
        let want = elements(shape)?.saturating_mul(dtype.bytes());
        if bytes.len() != want {
            return Err(Error::new(format!("{dtype}{shape:?} has {want} bytes, but {} given", bytes.len())));
        }
        macro_rules! read {
            ($t:ty, $n:literal) => {
                bytes
                    .chunks_exact($n)
                    .map(|c| {
                        let mut b = [0; $n];
                        b.copy_from_slice(c);
                        <$t>::from_le_bytes(b)
                    })
                    .collect()
            };
        }
        let data = match dtype {
            DType::F64 => TensorData::F64(read!(f64, 8)),
            DType::F32 => TensorData::F32(read!(f32, 4)),
            DType::BF16 => TensorData::BF16(read!(bf16, 2)),
            DType::F16 => TensorData::F16(read!(f16, 2)),
            DType::I32 => TensorData::I32(read!(i32, 4)),
            DType::Bool => TensorData::Bool(bytes.iter().map(|b| u8::from(*b != 0)).collect()),
        };
        Tensor::new(shape.to_vec(), data)
    }
    /// The name of the element type in safetensors files.
    pub fn safetensors_dtype(&self) -> &'static str {
        match self.dtype() {
            DType::F64 => "F64",
            DType::F32 => "F32",
            DType::BF16 => "BF16",
            DType::F16 => "F16",
            DType::I32 => "I32",
            DType::Bool => "BOOL",
        }
    }
    /// A tensor as a safetensors file holds it: `dtype` is one of F64 F32 BF16 F16 I32 I64 BOOL U8. I64 is read as `i32`, U8 as `bool`.
    ///
    /// # Errors
    /// Another type, a number of bytes that is not the shape's, or an I64 that does not fit.
    pub fn from_safetensors(dtype: &str, shape: &[usize], bytes: &[u8]) -> Result<Tensor, Error> {
        let dtype = match dtype {
            "F64" => DType::F64,
            "F32" => DType::F32,
            "BF16" => DType::BF16,
            "F16" => DType::F16,
            "I32" => DType::I32,
            "BOOL" | "U8" => DType::Bool,
            "I64" => {
                let want = elements(shape)?.saturating_mul(8);
                if bytes.len() != want {
                    return Err(Error::new(format!("I64{shape:?} has {want} bytes, but {} given", bytes.len())));
                }
                let mut v = Vec::with_capacity(bytes.len() / 8);
                for c in bytes.chunks_exact(8) {
                    let mut b = [0; 8];
                    b.copy_from_slice(c);
                    let x = i64::from_le_bytes(b);
                    v.push(i32::try_from(x).map_err(|_| Error::new(format!("I64 element {x} does not fit i32")))?);
                }
                return Tensor::new(shape.to_vec(), TensorData::I32(v));
            }
            other => {
                return Err(Error::new(format!("element type {other} is not supported"))
                    .hint("supported are F64 F32 BF16 F16 I32 I64 BOOL U8"));
            }
        };
        Tensor::from_bytes(dtype, shape, bytes)
    }
}

/// Number of elements of a shape.
fn elements(shape: &[usize]) -> Result<usize, Error> {
    shape.iter().try_fold(1usize, |n, s| n.checked_mul(*s)).ok_or_else(|| Error::new(format!("shape {shape:?} has too many elements")))
}

/// The error of `got` relative to `want`: `|got − want| / |want|` in the Frobenius norm; absolute where `|want|` is 0.
/// Infinities must match exactly and are left out of the norms. A NaN anywhere, or another shape, is an infinite error.
pub fn relative_error(got: &Tensor, want: &Tensor) -> f64 {
    if got.shape != want.shape { f64::INFINITY } else { relative_error_of(&got.to_f64(), &want.to_f64()) }
}

/// [`relative_error`] of plain numbers.
pub fn relative_error_of(got: &[f64], want: &[f64]) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    // Scaled by the largest element, so that squares neither overflow nor vanish.
    let largest = |it: &mut dyn Iterator<Item = f64>| it.filter(|x| x.is_finite()).fold(0.0f64, |m, x| m.max(x.abs()));
    let scale = largest(&mut got.iter().chain(want).copied());
    if scale == 0.0 && got.iter().zip(want).all(|(g, w)| g == w) {
        return 0.0;
    }
    let scale = if scale == 0.0 { 1.0 } else { scale };
    let (mut diff, mut norm) = (0.0f64, 0.0f64);
    for (g, w) in got.iter().zip(want) {
        if g.is_nan() || w.is_nan() {
            return f64::INFINITY;
        }
        if g.is_infinite() || w.is_infinite() {
            if g != w {
                return f64::INFINITY;
            }
            continue;
        }
        let (g, w) = (g / scale, w / scale);
        diff += (g - w) * (g - w);
        norm += w * w;
    }
    if norm > 0.0 { (diff / norm).sqrt() } else { diff.sqrt() * scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip_in_every_type() {
        for d in DType::ALL {
            let t = Tensor::from_f64(d, &[2, 2], &[0.0, 1.0, if d == DType::Bool { 1.0 } else { -3.0 }, 0.0]).unwrap();
            assert_eq!(t.dtype(), d);
            assert_eq!(t.to_bytes().len(), t.byte_len());
            assert_eq!(Tensor::from_safetensors(t.safetensors_dtype(), &[2, 2], &t.to_bytes()).unwrap(), t);
        }
        let i64s: Vec<u8> = [-1i64, 7].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(Tensor::from_safetensors("I64", &[2], &i64s).unwrap().to_f64(), [-1.0, 7.0]);
        assert!(Tensor::from_safetensors("I64", &[3], &i64s).is_err());
        assert!(Tensor::from_safetensors("I64", &[1], &(1i64 << 40).to_le_bytes()).unwrap_err().message.contains("does not fit"));
        assert!(Tensor::from_safetensors("F8_E4M3", &[1], &[0]).is_err());
    }

    #[test]
    fn rounds_to_nearest_even() {
        let t = Tensor::from_f64(DType::BF16, &[2], &[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0]).unwrap();
        assert_eq!(t.to_f64(), [1.0, 1.0 + 4.0 / 256.0]);
        assert_eq!(t.convert(DType::F32).to_f64(), t.to_f64());
    }

    #[test]
    fn error_rules() {
        let inf = f64::INFINITY;
        let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
        assert!(close(relative_error_of(&[3.0, 4.5], &[3.0, 4.0]), 0.1));
        assert!(close(relative_error_of(&[1e-3], &[0.0]), 1e-3));
        assert!(close(relative_error_of(&[1.1e300, -inf], &[1e300, -inf]), 0.1));
        assert_eq!(relative_error_of(&[-inf, 1.0], &[-inf, 1.0]), 0.0);
        assert_eq!(relative_error_of(&[-inf], &[-inf]), 0.0);
        assert_eq!(relative_error_of(&[-1e38], &[-inf]), inf);
        assert_eq!(relative_error_of(&[f64::NAN], &[f64::NAN]), inf);
        assert_eq!(relative_error_of(&[1.0], &[1.0, 2.0]), inf);
        assert_eq!(relative_error_of(&[], &[]), 0.0);
    }
}
