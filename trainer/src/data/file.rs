//! A set in a safetensors file: latents, labels, text embeddings, whatever another program made. `x0` is `[samples, shape…]`; `labels` is `[samples]`; every other
//! tensor is a condition, `[samples, …]`.

use super::{Dataset, Rows};
use ir::tensor::Tensor;
use safetensors::SafeTensors;
use std::path::Path;

/// Reads a set; `normalised` says that the numbers are latents of deviation 1 already and stay as they are.
///
/// # Errors
/// A file that cannot be read or is no safetensors file; a tensor that has another number of samples than `x0`, no `x0`; what [`Dataset::check`] says.
pub fn read(path: &Path, normalised: bool) -> Result<Dataset, String> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|e| format!("data: cannot read {name}: {e}"))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| format!("data: {name} is no safetensors file: {e}"))?;
    let tensor = |key: &str| -> Result<Tensor, String> {
        let v = file.tensor(key).map_err(|_| format!("data: {name} has no tensor `{key}`; there are: {}", file.names().into_iter().cloned().collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")))?;
        Tensor::from_safetensors(&format!("{:?}", v.dtype()), v.shape(), v.data()).map_err(|e| format!("data: {name}: `{key}`: {e}"))
    };
    let x0 = tensor("x0")?;
    let [count, shape @ ..] = x0.shape() else { return Err(format!("data: {name}: `x0` is a scalar, but must be [samples, …]")) };
    let floats = |t: &Tensor| t.to_f64().into_iter().map(|x| x as f32).collect::<Vec<f32>>();
    let (mut labels, mut classes, mut conditions) = (vec![], 0, std::collections::BTreeMap::new());
    for key in file.names().into_iter().filter(|k| *k != "x0") {
        let t = tensor(key)?;
        if t.shape().first() != Some(count) {
            return Err(format!("data: {name}: `{key}` has shape {:?}, but `x0` has {count} samples", t.shape()));
        }
        if key == "labels" {
            if t.shape().len() != 1 {
                return Err(format!("data: {name}: `labels` has shape {:?}, but must be [{count}]", t.shape()));
            }
            for (i, x) in t.to_f64().into_iter().enumerate() {
                if !(x >= 0.0 && x.fract() == 0.0 && x < 1e6) {
                    return Err(format!("data: {name}: label {x} of sample {i} is no class"));
                }
                labels.push(x as u32);
                classes = classes.max(x as usize + 1);
            }
        } else {
            conditions.insert(key.clone(), Rows { shape: t.shape()[1..].to_vec(), numbers: floats(&t) });
        }
    }
    let samples = floats(&x0);
    let low = samples.iter().copied().fold(f32::INFINITY, f32::min);
    let high = samples.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut d = Dataset { name, shape: shape.to_vec(), samples, labels, classes, conditions, scale: (0.0, 1.0), range: (f64::from(low), f64::from(high)) };
    d.check()?;
    if !normalised {
        d.normalise()?;
    }
    Ok(d)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::{Dtype, tensor::TensorView};

    fn write(path: &Path, tensors: &[(&str, &[usize], &[f32])]) {
        let bytes: Vec<Vec<u8>> = tensors.iter().map(|t| t.2.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
        let views: Vec<_> = tensors.iter().zip(&bytes).map(|(t, b)| (t.0, TensorView::new(Dtype::F32, t.1.to_vec(), b).unwrap())).collect();
        std::fs::write(path, safetensors::serialize(views, &None).unwrap()).unwrap();
    }

    #[test]
    fn files_are_read_and_refused() {
        let dir = tempfile::tempdir().unwrap();
        let p = dir.path().join("set.safetensors");
        write(&p, &[("x0", &[2, 1, 2], &[1.0, 2.0, 3.0, 6.0]), ("labels", &[2], &[1.0, 0.0]), ("text", &[2, 3], &[0.0; 6])]);
        let d = read(&p, false).unwrap();
        assert_eq!((d.len(), d.classes, &d.shape[..], &d.labels[..], &d.conditions["text"].shape[..]), (2, 2, &[1, 2][..], &[1, 0][..], &[3][..]));
        assert_eq!(d.scale.0, 3.0);
        assert_eq!(read(&p, true).unwrap().samples, [1.0, 2.0, 3.0, 6.0]);
        write(&p, &[("x0", &[2, 1, 2], &[1.0, 2.0, f32::INFINITY, 6.0])]);
        assert!(read(&p, true).unwrap_err().ends_with("sample 1 has inf at row 0, column 0; every number must be finite"));
        write(&p, &[("x0", &[2, 2], &[1.0, 2.0, 3.0, 6.0]), ("text", &[3, 1], &[0.0; 3])]);
        assert!(read(&p, true).unwrap_err().ends_with("`text` has shape [3, 1], but `x0` has 2 samples"));
        write(&p, &[("y", &[2, 2], &[1.0; 4])]);
        assert!(read(&p, true).unwrap_err().ends_with("has no tensor `x0`; there are: y"));
        std::fs::write(&p, b"nonsense").unwrap();
        assert!(read(&p, true).unwrap_err().contains("is no safetensors file"));
    }
}
