//! The discriminator's gradients against central differences, in float64: in weights of network and head, and in the sample.
#![allow(clippy::unwrap_used)] // a test may stop

mod support;

use ir::tensor::Tensor;
use ir::types::DType;
use support::{close, exact, network};
use trainer::discriminator::Discriminator;
use trainer::method::{Condition, Weights};
use trainer::network::{Model, Network, Point};
use trainer::random::Random;
use trainer::rows::Rows;

/// Features of six tokens on two axes.
fn tokens() -> (Network, Weights) {
    let text = "fn tokens(x: f32[B,Y=2,X=3], t: f32[B], cond: f32[B], w: f32[C=4], e: f32[C=4], o: f32[C=4]) -> (v: f32[B,Y=2,X=3], features: f32[B,Y=2,X=3,C=4]) {
        features = permute(tanh(mul(x, w) + mul(t * cond, e)), [B,Y,X,C])
        v = reduce_sum(features * o, C)
    }";
    let n = Network { features: Some("features".into()), ..network(text, &["t"]) };
    let w = ["w", "e", "o"].map(|k| (k.into(), Tensor::from_f64(DType::F64, &[4], &Random::new(2).stream(0, k).normals(4)).unwrap()));
    (n, Weights::from(w))
}

#[test]
fn a_discriminators_gradients_are_those_of_its_loss() {
    let (n, w) = tokens();
    let model = Model::new(n.clone(), &w, &exact()).unwrap();
    let mut d = Discriminator::new(&n, &w, 5, &Random::new(3), &exact()).unwrap();
    let x = Rows::new(&[3, 2, 3], Random::new(4).stream(0, "x").normals(18)).unwrap();
    let (t, scale) = ([0.2, 0.5, 0.9], [1.0, 0.5, 2.0]);
    let condition = Condition::from([("cond".into(), Tensor::from_f64(DType::F64, &[3], &[1.0, -1.0, 0.5]).unwrap())]);
    for sign in [-1.0, 1.0] {
        let total = |d: &mut Discriminator, x: &Rows| {
            let v = d.judge(&model, &Point::new(x, &t), &condition, sign, &scale, true).unwrap();
            v.loss.iter().zip(&scale).map(|(l, s)| l * s).sum::<f64>()
        };
        let h = 1e-6;
        let of_sample = d.judge(&model, &Point::new(&x, &t), &condition, sign, &scale, true).unwrap().sample.unwrap();
        let of_weights = d.judge(&model, &Point::new(&x, &t), &condition, sign, &scale, false).unwrap().weights;
        let differences: Vec<f64> = (0..18).map(|i| {
            let mut at = |h: f64| {
                let mut moved = x.data().to_vec();
                moved[i] += h;
                total(&mut d, &Rows::new(x.shape(), moved).unwrap())
            };
            (at(h) - at(-h)) / (2.0 * h)
        }).collect();
        close("sample", of_sample.data(), &differences, 1e-7);
        let start = d.weights().clone();
        assert_eq!(of_weights.keys().collect::<Vec<_>>(), start.keys().collect::<Vec<_>>());
        for (name, value) in &start {
            let differences: Vec<f64> = (0..value.len()).map(|i| {
                let mut at = |h: f64| {
                    let mut moved = value.to_f64();
                    moved[i] += h;
                    let mut all = start.clone();
                    all.insert(name.clone(), Tensor::from_f64(DType::F64, value.shape(), &moved).unwrap());
                    d.set_weights(all);
                    total(&mut d, &x)
                };
                (at(h) - at(-h)) / (2.0 * h)
            }).collect();
            d.set_weights(start.clone());
            if &**name == "o" {
                // Behind the features: no part in the verdict.
                assert!(of_weights[name].to_f64().iter().all(|g| *g == 0.0));
            } else {
                close(name, &of_weights[name].to_f64(), &differences, 1e-6);
            }
        }
    }
}

#[test]
fn a_network_without_features_has_no_discriminator() {
    let (n, w) = tokens();
    let e = Discriminator::new(&Network { features: None, ..n }, &w, 5, &Random::new(3), &exact()).err().unwrap();
    assert!(e.to_string().contains("no features") && e.hint.is_some());
}
