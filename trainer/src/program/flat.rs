//! Tensors of a network laid end to end in a device's memory: weights that all programs of the network read, gradients that they write, what an optimizer keeps. By what weights are stored
//! in there are groups, each a table of rows of [`ROW`] elements, so that one elementwise program goes over a group whatever tensors it has.

use super::gpu::{Device, Memory, Place};
use crate::method::Weights;
use ir::dim::Name;
use ir::tensor::Tensor;
use ir::types::DType;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Elements of a row.
pub const ROW: usize = 1024;
/// Tensors begin at multiples of so many elements: 16 bytes of the narrowest type, and lines of caches.
const ALIGN: usize = 128;

/// Where tensors are.
#[derive(Clone, PartialEq, Debug)]
pub struct Layout {
    at: BTreeMap<Name, At>,
    rows: BTreeMap<DType, usize>,
}

/// Where one is: its group, the number of its first element there, its shape.
#[derive(Clone, PartialEq, Debug)]
struct At {
    group: DType,
    first: usize,
    shape: Vec<usize>,
}

impl Layout {
    /// Of tensors by name, shape and what their group is stored in, in this order.
    pub fn new(list: impl IntoIterator<Item = (Name, Vec<usize>, DType)>) -> Layout {
        let mut ends: BTreeMap<DType, usize> = BTreeMap::new();
        let mut at = BTreeMap::new();
        for (name, shape, group) in list {
            let end = ends.entry(group).or_insert(0);
            let first = *end;
            *end += shape.iter().product::<usize>().next_multiple_of(ALIGN);
            at.insert(name, At { group, first, shape });
        }
        let rows = ends.into_iter().map(|(group, end)| (group, end.div_ceil(ROW).max(1))).collect();
        Layout { at, rows }
    }
    /// The groups, and how many rows each has.
    pub fn groups(&self) -> impl Iterator<Item = (DType, usize)> {
        self.rows.iter().map(|(group, rows)| (*group, *rows))
    }
    /// Names and shapes, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&Name, &[usize])> {
        self.at.iter().map(|(n, a)| (n, a.shape.as_slice()))
    }
    fn get(&self, name: &str) -> Result<&At, String> {
        self.at.get(name).ok_or_else(|| format!("no tensor `{name}`"))
    }
}

/// Tensors of a layout.
#[derive(Clone)]
pub struct Flat {
    layout: Rc<Layout>,
    /// Per group, and what its elements are.
    memory: BTreeMap<DType, (Memory, DType)>,
}

impl Flat {
    /// All 0, a group's elements being what `stored` says.
    ///
    /// # Errors
    /// There is not so much memory.
    pub fn zeros(device: &Device, layout: &Rc<Layout>, stored: impl Fn(DType) -> DType) -> Result<Flat, String> {
        let one = |(group, rows): (DType, usize)| Ok((group, (device.zeros(rows * ROW * stored(group).bytes())?, stored(group))));
        Ok(Flat { layout: layout.clone(), memory: layout.groups().map(one).collect::<Result<_, String>>()? })
    }
    /// The same, but in groups of elements of type `dtype` that `other` has, its memory.
    ///
    /// # Errors
    /// There is not so much memory.
    pub fn over(device: &Device, other: &Flat, dtype: DType) -> Result<Flat, String> {
        let one = |(group, rows): (DType, usize)| {
            let shared = other.memory.get(&group).filter(|m| m.1 == dtype).cloned();
            Ok((group, shared.map_or_else(|| device.zeros(rows * ROW * dtype.bytes()).map(|m| (m, dtype)), Ok)?))
        };
        Ok(Flat { layout: other.layout.clone(), memory: other.layout.groups().map(one).collect::<Result<_, String>>()? })
    }
    /// Other memory with the same in it.
    ///
    /// # Errors
    /// There is not so much memory.
    pub fn copied(&self, device: &Device) -> Result<Flat, String> {
        let one = |(n, (m, d)): (&DType, &(Memory, DType))| {
            let new = device.zeros(m.bytes())?;
            new.copy(m)?;
            Ok((*n, (new, *d)))
        };
        Ok(Flat { layout: self.layout.clone(), memory: self.memory.iter().map(one).collect::<Result<_, String>>()? })
    }
    /// Copies what another one of the same layout and types holds.
    ///
    /// # Errors
    /// Groups that differ; the driver's.
    pub fn copy(&self, from: &Flat) -> Result<(), String> {
        for (group, (m, d)) in &self.memory {
            let (n, e) = from.memory.get(group).ok_or_else(|| format!("no group of {group}"))?;
            if d != e {
                return Err(format!("a copy of {e} to {d}"));
            }
            m.copy(n)?;
        }
        Ok(())
    }
    /// Where tensors are.
    pub fn layout(&self) -> &Rc<Layout> {
        &self.layout
    }
    /// Number of bytes.
    pub fn bytes(&self) -> usize {
        self.memory.values().map(|m| m.0.bytes()).sum()
    }
    /// A whole group, `[rows, ROW]`.
    ///
    /// # Errors
    /// There is no such group.
    pub fn group(&self, group: DType) -> Result<Place, String> {
        let (m, _) = self.memory.get(&group).ok_or_else(|| format!("no group of {group}"))?;
        Ok(Place { memory: m.clone(), first: 0, bytes: m.bytes() })
    }
    /// A tensor's place, and what its elements are.
    ///
    /// # Errors
    /// There is no such tensor.
    pub fn place(&self, name: &str) -> Result<(Place, DType), String> {
        let at = self.layout.get(name)?;
        let (m, d) = self.memory.get(&at.group).ok_or_else(|| format!("no group of {}", at.group))?;
        let n: usize = at.shape.iter().product();
        Ok((Place { memory: m.clone(), first: at.first * d.bytes(), bytes: n * d.bytes() }, *d))
    }
    /// Puts a tensor there, in the type of its group.
    ///
    /// # Errors
    /// There is no such tensor, or it has another shape; the driver's.
    pub fn write(&self, name: &str, t: &Tensor) -> Result<(), String> {
        let shape = &self.layout.get(name)?.shape;
        if t.shape() != shape {
            return Err(format!("`{name}` has shape {:?}, but must have {shape:?}", t.shape()));
        }
        let (place, dtype) = self.place(name)?;
        let bytes = if t.dtype() == dtype { t.to_bytes() } else { t.convert(dtype).to_bytes() };
        place.memory.write(place.first, &bytes)
    }
    /// A tensor, as it is stored.
    ///
    /// # Errors
    /// There is no such tensor; the driver's.
    pub fn read(&self, name: &str) -> Result<Tensor, String> {
        let (place, dtype) = self.place(name)?;
        Tensor::from_bytes(dtype, &self.layout.get(name)?.shape, &place.memory.read(place.first, place.bytes)?).map_err(|e| e.to_string())
    }
    /// All of them in f32.
    ///
    /// # Errors
    /// The driver's.
    pub fn all(&self) -> Result<Weights, String> {
        self.layout.tensors().map(|(n, _)| Ok((n.clone(), self.read(n)?.convert(DType::F32)))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_come_back_in_their_groups_types() {
        let list = [("a", vec![3, 2], DType::BF16), ("b", vec![5], DType::F32), ("c", vec![1500], DType::BF16)];
        let layout = Rc::new(Layout::new(list.map(|(n, s, d)| (Name::from(n), s, d))));
        assert_eq!(layout.groups().collect::<BTreeMap<_, _>>(), BTreeMap::from([(DType::BF16, 2), (DType::F32, 1)]));
        let f = Flat::zeros(&Device::Sim, &layout, |d| d).unwrap();
        let t = |shape: &[usize]| Tensor::from_f64(DType::F32, shape, &(0..shape.iter().product::<usize>()).map(|i| i as f64 / 7.0).collect::<Vec<_>>()).unwrap();
        for (n, shape, _) in &[("a", vec![3, 2], ()), ("b", vec![5], ()), ("c", vec![1500], ())] {
            f.write(n, &t(shape)).unwrap();
        }
        assert_eq!((f.read("a").unwrap(), f.read("b").unwrap()), (t(&[3, 2]).convert(DType::BF16), t(&[5])));
        let other = f.copied(&Device::Sim).unwrap();
        f.write("c", &Tensor::zeros(DType::F32, &[1500]).unwrap()).unwrap();
        assert_eq!(other.read("c").unwrap(), t(&[1500]).convert(DType::BF16));
        // Only the group that is f32 already is shared.
        let over = Flat::over(&Device::Sim, &f, DType::F32).unwrap();
        f.write("b", &Tensor::zeros(DType::F32, &[5]).unwrap()).unwrap();
        over.write("a", &t(&[3, 2])).unwrap();
        assert_eq!((over.read("b").unwrap().to_f64(), over.read("a").unwrap()), (vec![0.0; 5], t(&[3, 2])));
        assert_eq!(f.read("a").unwrap(), t(&[3, 2]).convert(DType::BF16));
        assert!(f.write("a", &t(&[6])).unwrap_err().contains("shape") && f.read("d").is_err());
    }
}
