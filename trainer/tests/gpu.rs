//! Networks and trainings by the kernels for GPUs, in the PTX machine: the numbers of the CPU, without a device.

#![allow(clippy::unwrap_used)] // tests panic to fail

use ir::dim::{Bindings, Name};
use ir::tensor::{Tensor, relative_error};
use ir::types::DType;
use std::collections::BTreeMap;
use trainer::method::{Batch, Condition, Learner, Method, Weights, flow};
use trainer::density::Density;
use trainer::net::{self, Config, Init, Precision, Variant, dit};
use trainer::network::Network;
use trainer::optim::{AdamW, Schedule};
use trainer::program::{On, Options, Program, Transform};
use trainer::random::Random;

/// The digits' network in small.
fn small() -> dit::Config {
    dit::Config { sample_size: [4, 4], num_attention_heads: 2, attention_head_dim: 8, num_layers: 1, ffn_dim: 24, num_classes: 3, time_frequencies: 4, ..dit::Config::digits() }
}

fn built(precision: Precision) -> net::Network {
    net::Network::build(&Config::Dit(small()), &Variant::default(), precision).unwrap()
}

fn weights(n: &net::Network) -> Weights {
    let random = Random::new(3);
    let one = |w: &net::Weight| {
        let deviation = match w.init { Init::Normal(d) => d, Init::Uniform(b) => b, Init::Constant(_) => 0.1 };
        (w.name.clone(), Tensor::from_f64(DType::F32, &w.shape, &random.stream(0, &w.name).normals(w.len()).iter().map(|z| z * deviation).collect::<Vec<_>>()).unwrap())
    };
    n.weights.iter().map(one).collect()
}

fn on(on: On) -> Options {
    Options { on, threads: Some(2), ..Options::default() }
}

#[test]
fn outputs_tangents_and_gradients_are_those_of_the_cpu() {
    let n = built(Precision::F32);
    let w = weights(&n);
    let along: Vec<Name> = vec!["hidden_states".into(), "timestep".into()];
    let all: Vec<Name> = along.iter().cloned().chain(w.keys().cloned()).collect();
    for transforms in [vec![], vec![Transform::Jvp(along)], vec![Transform::Vjp(all)]] {
        let mut results: Vec<BTreeMap<Name, Tensor>> = vec![];
        for machine in [On::Cpu, On::Sim] {
            let mut p = Program::new(&n.function, &transforms, &Bindings::from([("B".into(), 3)]), &on(machine)).unwrap_or_else(|e| panic!("{e}"));
            w.iter().for_each(|(n, t)| p.set(n, t).unwrap());
            let random = Random::new(5);
            let given: Vec<(String, Tensor)> = p.params().iter().filter(|q| !w.contains_key(&q.name)).map(|q| {
                let count: usize = q.shape.iter().product();
                let numbers: Vec<f64> = match &*q.name {
                    "class_labels" => (0..count).map(|i| i as f64).collect(),
                    "timestep" => random.stream(0, "t").uniforms(count),
                    name => random.stream(0, name).normals(count),
                };
                (q.name.to_string(), Tensor::from_f64(q.ty.dtype, &q.shape, &numbers).unwrap())
            }).collect();
            assert!(p.launches() > 0);
            results.push(p.run(&given.iter().map(|(n, t)| (n.as_str(), t)).collect::<Vec<_>>()).unwrap_or_else(|e| panic!("{e}")));
        }
        for (name, want) in &results[0] {
            let e = relative_error(&results[1][name], want);
            assert!(e < 1e-5, "{transforms:?} {name}: {e:e}");
        }
    }
}

#[test]
fn a_training_step_is_that_of_the_cpu() {
    let n = built(Precision::F32);
    let network = Network::new(n.function.clone(), "hidden_states", &["timestep"], &["class_labels"], "out").unwrap();
    let (random, w) = (Random::new(1), weights(&n));
    let labels = |of: [f64; 3]| Condition::from([("class_labels".into(), Tensor::from_f64(DType::I32, &[3], &of).unwrap())]);
    let batch = Batch { x0: Tensor::from_f64(DType::F32, &[3, 1, 4, 4], &random.stream(0, "x").normals(48)).unwrap(), condition: labels([0.0, 1.0, 2.0]), empty: labels([3.0; 3]) };
    let mut after = vec![];
    for machine in [On::Cpu, On::Sim] {
        let learner = Learner::new(network.clone(), &w, AdamW::released(Schedule::constant(1e-2)), Some(0.1), &on(machine)).unwrap();
        let mut m = flow::Flow::new(learner, flow::Settings { density: Density::LogNormal { mean: 0.0, deviation: 1.2 }, uniform: 0.2, drop: 0.1 });
        for i in 0..2 {
            m.step(i, &batch, &random).unwrap_or_else(|e| panic!("{e}"));
        }
        after.push((m.weights(), m.average()));
    }
    for name in after[0].0.keys() {
        // Steps of AdamW have a length of their own, so the change is what is compared.
        let step = |x: &Weights| Tensor::from_f64(DType::F64, w[name].shape(), &x[name].to_f64().iter().zip(w[name].to_f64()).map(|(a, b)| a - b).collect::<Vec<_>>()).unwrap();
        let e = relative_error(&step(&after[1].0), &step(&after[0].0));
        assert!(e < 1e-3, "{name}: {e:e}");
        assert!(relative_error(&after[1].1[name], &after[0].1[name]) < 1e-4);
        assert!(after[0].0[name] != w[name], "{name}: nothing was learned");
    }
}
