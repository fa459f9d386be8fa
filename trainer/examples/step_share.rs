//! Where the time of a step of rCM goes, on the network of the digits: in launches of generated kernels, and outside of them (drawing, mixing, norms, copying, and what
//! running a program costs beside its launches); then one line for each program. `cargo run --release -p pushforward-trainer --example step_share [BATCH] [THREADS]`.
//! `benches/training.py` reads the two first lines of figures.
#![allow(clippy::unwrap_used)] // an example may stop

use ir::tensor::Tensor;
use ir::types::DType;
use std::time::{Duration, Instant};
use trainer::density::Density;
use trainer::method::dmd::Matching;
use trainer::method::rcm::{Rcm, Regression, Settings};
use trainer::method::scm::Consistency;
use trainer::method::{Batch, Condition, Learner, Method, Teacher, Weights};
use trainer::net::{self, Init, Precision, Variant, dit};
use trainer::network::{Model, Network};
use trainer::optim::{AdamW, Schedule};
use trainer::phase::Plan;
use trainer::program::{On, Options};
use trainer::random::Random;

fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<usize>().unwrap());
    let (batch, threads) = (args.next().unwrap_or(128), args.next().unwrap_or(2));
    let options = Options { on: On::Cpu, dtype: DType::F32, threads: Some(threads), ..Options::default() };
    let built = net::Network::build(&net::Config::Dit(dit::Config::digits()), &Variant::default(), Precision::F32).unwrap();
    let network = Network::new(built.function.clone(), "hidden_states", &["timestep"], &["class_labels"], "out").unwrap();
    let random = Random::new(1);
    let weights: Weights = built.weights.iter().map(|w| {
        let z = random.stream(0, &w.name).normals(w.len());
        let deviation = match w.init { Init::Normal(d) => d, Init::Uniform(b) => b / 3f64.sqrt(), Init::Constant(_) => 0.02 };
        (w.name.clone(), Tensor::from_f64(DType::F32, &w.shape, &z.iter().map(|z| z * deviation).collect::<Vec<_>>()).unwrap())
    }).collect();
    let learner = || Learner::new(network.clone(), &weights, AdamW::released(Schedule::constant(1e-4)), Some(0.1), &options).unwrap();
    let settings = Settings {
        consistency: Some(Regression::Continuous(Consistency::flow(Density::LogNormal { mean: 0.0, deviation: 1.6 }))),
        matching: Some(Matching { scale: 0.3, ..Matching::released(Density::LogNormal { mean: -1.0, deviation: 1.2 }) }),
        plan: Plan { warm_up: 0, student_every: 4, rollout: 4 },
        critic_first: 0,
        monitor_every: 0,
    };
    let teacher = Teacher { model: Model::new(network.clone(), &weights, &options).unwrap(), guidance: 2.0 };
    let mut method = Rcm::new(learner(), Some(learner()), teacher, settings).unwrap();
    let x0 = Tensor::from_f64(DType::F32, &[batch, 1, 8, 8], &random.stream(0, "x").normals(batch * 64)).unwrap();
    let class = |of: &dyn Fn(usize) -> f64| Condition::from([("class_labels".into(), Tensor::from_f64(DType::I32, &[batch], &(0..batch).map(of).collect::<Vec<_>>()).unwrap())]);
    let b = Batch { x0, condition: class(&|i| (i % 10) as f64), empty: class(&|_| 10.0) };
    let start = Instant::now();
    for i in 0..4 {
        method.step(i, &b, &random).unwrap();
    }
    println!("first four iterations, with compilation: {:.1} s", start.elapsed().as_secs_f64());
    let rounds = 8;
    for (what, turns) in [("student", vec![0]), ("critic", vec![1, 2, 3])] {
        let (mut total, mut inside, mut launched, mut n) = (Duration::ZERO, Duration::ZERO, Duration::ZERO, 0);
        for round in 1..=rounds {
            for t in &turns {
                let before = (method.programs(), method.in_launches());
                let start = Instant::now();
                method.step(4 * round + t, &b, &random).unwrap();
                total += start.elapsed();
                inside += method.programs() - before.0;
                launched += method.in_launches() - before.1;
                n += 1;
            }
        }
        let [total, inside, launched] = [total, inside, launched].map(|t| t.as_secs_f64() / f64::from(n) * 1e3);
        println!("{what}: {total:.2} ms an iteration, {inside:.2} ms in programs, {launched:.2} ms in launches, {:.2} % outside of launches", 100.0 * (total - launched) / total);
    }
    for (who, table) in method.times() {
        for (what, runs, time) in table {
            println!("  {who:<8} {what:<24} {runs:4} runs, {:.2} ms each", time.as_secs_f64() * 1e3 / runs.max(1) as f64);
        }
    }
}
