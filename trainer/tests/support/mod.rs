//! What the tests of methods share: outside references as tensors, the references' small networks as IR functions, comparison.
#![allow(dead_code, clippy::unwrap_used)] // each test uses its part

use ir::dim::Name;
use ir::tensor::Tensor;
use ir::types::DType;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use trainer::method::{Condition, Weights};
use trainer::network::{Model, Network};
use trainer::program::{On, Options};
use trainer::rows::Rows;

/// A file of `tests/fixtures/rcm`.
pub struct Fixture(BTreeMap<String, Tensor>);

impl Fixture {
    pub fn load(name: &str) -> Fixture {
        let bytes = std::fs::read(format!("{}/../tests/fixtures/rcm/{name}.safetensors", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        Fixture(tensors.tensors().iter().map(|(n, v)| (n.clone(), Tensor::from_safetensors(&format!("{:?}", v.dtype()), v.shape(), v.data()).unwrap())).collect())
    }
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }
    pub fn tensor(&self, name: &str) -> Tensor {
        self.0.get(name).unwrap_or_else(|| panic!("no `{name}`")).convert(DType::F64)
    }
    pub fn rows(&self, name: &str) -> Rows {
        Rows::from_tensor(&self.tensor(name)).unwrap()
    }
    pub fn list(&self, name: &str) -> Vec<f64> {
        self.tensor(name).to_f64()
    }
    /// The tensors under `prefix.`, by the rest of their names.
    pub fn weights(&self, prefix: &str) -> Weights {
        self.0.keys().filter_map(|n| Some((Name::from(n.strip_prefix(prefix)?.strip_prefix('.')?), self.tensor(n)))).collect()
    }
    pub fn condition(&self, name: &str) -> Condition {
        Condition::from([("cond".into(), self.tensor(name))])
    }
}

/// f64 on the evaluator.
pub fn exact() -> Options {
    Options { on: On::Reference, dtype: DType::F64, ..Options::default() }
}

pub fn network(text: &str, times: &[&str]) -> Network {
    let m = ir::text::parse(text).unwrap_or_else(|e| panic!("{e:?}"));
    Network::new(m.functions[0].clone(), "x", times, &["cond"], "v").unwrap()
}

/// A network of a fixture with its weights.
pub fn model(network: &Network, f: &Fixture, prefix: &str) -> Model {
    Model::new(network.clone(), &f.weights(prefix), &exact()).unwrap()
}

/// Largest difference over largest magnitude.
pub fn close(what: &str, got: &[f64], want: &[f64], bound: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let gap = got.iter().zip(want).fold(0.0f64, |m, (g, w)| if (g - w).is_nan() { f64::INFINITY } else { m.max((g - w).abs()) });
    assert!(gap <= bound * size.max(1e-300), "{what}: off by {gap:.3e} of {size:.3e}: {:?} but {:?}", &got[..got.len().min(4)], &want[..want.len().min(4)]);
}

/// A gradient against the fixture's under `prefix`.
pub fn close_gradient(what: &str, got: &Weights, f: &Fixture, prefix: &str, bound: f64) {
    let want = f.weights(prefix);
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{what}");
    assert!(!want.is_empty(), "{what}");
    for (n, w) in &want {
        close(&format!("{what}: {n}"), &got[n].to_f64(), &w.to_f64(), bound);
    }
}
