//! Networks and trainings by the kernels for GPUs, in the PTX machine: the numbers of the CPU, without a device.

#![allow(clippy::unwrap_used)] // tests panic to fail

use ir::dim::{Bindings, Name};
use ir::tensor::{Tensor, relative_error};
use ir::types::DType;
use std::collections::BTreeMap;
use trainer::method::dmd::Matching;
use trainer::method::rcm::{Rcm, Regression, Settings};
use trainer::method::scm::Consistency;
use trainer::method::{Batch, Condition, Learner, Method, Metrics, Teacher, Weights, flow};
use trainer::density::Density;
use trainer::net::{self, Config, Init, Precision, Variant, dit};
use trainer::network::{Model, Network};
use trainer::optim::{AdamW, Schedule};
use trainer::phase::Plan;
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
        after.push((m.weights().unwrap(), m.average().unwrap()));
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

/// rCM over the digits' network in small, with a critic.
fn rcm(options: &Options) -> Rcm {
    let n = built(Precision::of(options.dtype).unwrap());
    let network = Network::new(n.function.clone(), "hidden_states", &["timestep"], &["class_labels"], "out").unwrap();
    let w = weights(&n);
    let learner = || Learner::new(network.clone(), &w, AdamW::released(Schedule::constant(1e-2)), Some(0.1), options).unwrap();
    let density = Density::LogNormal { mean: 0.0, deviation: 1.2 };
    let settings = Settings {
        consistency: Some(Regression::Continuous(Consistency::released(density))),
        matching: Some(Matching::released(density)),
        plan: Plan { warm_up: 0, student_every: 2, rollout: 2 },
        critic_first: 0,
        monitor_every: 0,
    };
    Rcm::new(learner(), Some(learner()), Teacher { model: Model::new(network.clone(), &w, options).unwrap(), guidance: 2.0 }, settings).unwrap()
}

fn pictures() -> Batch {
    let labels = |of: [f64; 3]| Condition::from([("class_labels".into(), Tensor::from_f64(DType::I32, &[3], &of).unwrap())]);
    Batch { x0: Tensor::from_f64(DType::F32, &[3, 1, 4, 4], &Random::new(1).stream(0, "x").normals(48)).unwrap(), condition: labels([0.0, 1.0, 2.0]), empty: labels([3.0; 3]) }
}

/// Weights, averages, moments and gradients of the second machine stay in a device's memory: two gradients of one iteration are added there.
#[test]
fn iterations_of_rcm_on_a_device_are_those_of_the_host() {
    let random = Random::new(1);
    for (dtype, bound) in [(DType::F32, 1e-3), (DType::BF16, 5e-2)] {
        let mut said: Vec<Vec<Metrics>> = vec![];
        let mut after = vec![];
        for machine in [On::Cpu, On::Sim] {
            let mut m = rcm(&Options { dtype, ..on(machine) });
            said.push((0..3).map(|i| m.step(i, &pictures(), &random).unwrap_or_else(|e| panic!("{e}"))).collect());
            after.push(m.weights().unwrap());
            assert_eq!(after[after.len() - 1].values().next().unwrap().dtype(), DType::F32, "masters");
        }
        for (i, (a, b)) in said[0].iter().zip(&said[1]).enumerate() {
            for (name, x) in &a.0 {
                let y = b.get(name).unwrap();
                assert!((x - y).abs() <= bound * x.abs().max(1e-3), "{dtype}, iteration {i}: {name} is {x} on the host, {y} on a device");
            }
        }
        // A step of AdamW without a first moment is as long for small gradients as for large ones: where those round to another sign, so does the step.
        let start = weights(&built(Precision::of(dtype).unwrap()));
        let change = |w: &Weights| w.iter().flat_map(|(n, t)| t.to_f64().iter().zip(start[n].to_f64()).map(|(a, b)| a - b).collect::<Vec<_>>()).collect::<Vec<f64>>();
        let (a, b) = (change(&after[0]), change(&after[1]));
        let far = a.iter().zip(&b).filter(|(a, b)| (*a - *b).abs() > 0.2 * a.abs().max(1e-3)).count();
        assert!(far as f64 <= if dtype == DType::F32 { 0.01 } else { 0.1 } * a.len() as f64, "{dtype}: {far} of {} weights went elsewhere", a.len());
        assert!(a.iter().filter(|x| x.abs() > 1e-3).count() * 10 > a.len() * 9, "{dtype}: little was learned");
    }
}

#[test]
fn a_state_on_a_device_comes_back() {
    let (random, options) = (Random::new(1), on(On::Sim));
    let mut whole = rcm(&options);
    (0..2).for_each(|i| _ = whole.step(i, &pictures(), &random).unwrap());
    let half = whole.state().unwrap();
    whole.step(2, &pictures(), &random).unwrap();
    let mut other = rcm(&options);
    other.restore(&half).unwrap();
    other.step(2, &pictures(), &random).unwrap();
    assert!(other.state().unwrap() == whole.state().unwrap());
}
