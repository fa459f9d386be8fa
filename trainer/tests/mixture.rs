//! Distillation from a teacher that is known exactly, the velocity of a mixture of Gaussians: every method against what it should give.
#![allow(clippy::unwrap_used)] // a test may stop

#[path = "support/world.rs"]
mod world;

use trainer::density::Density;
use trainer::method::dcm::Discrete;
use trainer::method::dmd::Matching;
use trainer::method::flow::{self, Flow};
use trainer::method::meanflow::{self, MeanFlow, Target};
use trainer::method::rcm::{Rcm, Regression, Settings};
use trainer::method::scm::{Consistency, Tangent};
use trainer::method::{Condition, Method, Weights};
use trainer::network::{Model, Point};
use trainer::phase::Plan;
use trainer::random::Random;
use trainer::rows::Rows;
use world::{average_perceptron, cpu, data, endpoints, exact_velocity, learner, learner_of, method, perceptron, run, teacher};

fn noise(n: usize) -> Rows {
    Rows::new(&[n, 2], vec![0.0; 2 * n]).unwrap().noise(Random::new(99).stream(0, "test"))
}

fn size(r: &Rows) -> f64 {
    r.data().iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Samples of a student in one step.
fn jump(weights: &Weights, noise: &Rows) -> Rows {
    let mut student = Model::new(perceptron().0, weights, &cpu(2)).unwrap();
    let v = student.velocity(&Point::new(noise, &vec![1.0; noise.batch()]), &Condition::new()).unwrap();
    Rows::of([noise, &v], |_, [e, v]| e - v)
}

/// How far samples in one step are from the ends of the exact trajectories, relative to these.
fn miss(weights: &Weights) -> f64 {
    let noise = noise(1000);
    let want = endpoints(&noise, 1.0);
    size(&Rows::of([&jump(weights, &noise), &want], |_, [g, w]| g - w)) / size(&want)
}

/// The energy distance of two sets of points (Székely & Rizzo), 0 for one law: 2·E‖x − y‖ − E‖x − x'‖ − E‖y − y'‖.
fn energy(x: &Rows, y: &Rows) -> f64 {
    let mean = |a: &Rows, b: &Rows| {
        let pairs = (0..a.batch()).flat_map(|i| (0..b.batch()).map(move |j| (i, j)));
        pairs.map(|(i, j)| a.row(i).iter().zip(b.row(j)).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()).sum::<f64>() / (a.batch() * b.batch()) as f64
    };
    2.0 * mean(x, y) - mean(x, x) - mean(y, y)
}

#[test]
fn a_consistency_student_jumps_to_where_the_flow_ends() {
    let (iterations, random) = (3000, Random::new(3));
    let mut m = method(iterations, iterations / 3, None, 1.0, &cpu(2));
    run(&mut m, 0..iterations, 256, &random);
    let error = miss(&m.average().unwrap());
    println!("sCM: relative RMS of the jump {error:.4}");
    assert!(error < 0.02, "{error}");
}

#[test]
fn differences_in_place_of_tangents_train_a_student_too() {
    let (iterations, random) = (1200, Random::new(3));
    let c = Consistency { tangent: Tangent::Finite(1e-2), ..Consistency::flow(Density::LogNormal { mean: 0.3, deviation: 1.6 }) };
    let settings = Settings { consistency: Some(Regression::Continuous(c)), matching: None, plan: Plan { warm_up: 400, student_every: 1, rollout: 1 }, critic_first: 0, monitor_every: 0 };
    let mut m = Rcm::new(learner(2e-3, iterations, &cpu(2)), None, teacher(1.0, &cpu(2)), settings).unwrap();
    run(&mut m, 0..iterations, 256, &random);
    let error = miss(&m.average().unwrap());
    println!("sCM by differences: relative RMS of the jump {error:.4}");
    assert!(error < 0.06, "{error}");
}

#[test]
fn a_discrete_student_learns_the_same_map_more_roughly() {
    let (iterations, random) = (1500, Random::new(3));
    let d = Discrete { shift: 1.0, scale: 1.0, ..Discrete::released() };
    let settings = Settings { consistency: Some(Regression::Discrete(d)), matching: None, plan: Plan { warm_up: 0, student_every: 1, rollout: 1 }, critic_first: 0, monitor_every: 0 };
    let mut m = Rcm::new(learner(2e-3, iterations, &cpu(2)), None, teacher(1.0, &cpu(2)), settings).unwrap();
    run(&mut m, 0..iterations, 256, &random);
    let error = miss(&m.average().unwrap());
    println!("dCM: relative RMS of the jump {error:.4}");
    assert!(error < 0.2, "{error}");
}

#[test]
fn flow_matching_learns_the_exact_velocity() {
    let (iterations, random) = (3000, Random::new(3));
    let mut m = Flow::new(learner(2e-3, iterations, &cpu(2)), flow::Settings { density: Density::LogNormal { mean: 0.0, deviation: 1.2 }, uniform: 0.2, drop: 0.0 });
    run(&mut m, 0..iterations, 512, &random);
    let (exact, means) = exact_velocity();
    let (mut student, mut exact) = (Model::new(perceptron().0, &m.average().unwrap(), &cpu(2)).unwrap(), Model::new(exact, &means, &cpu(2)).unwrap());
    let x0 = Rows::from_tensor(&data(1000, &Random::new(5), 0)).unwrap();
    let u: Vec<f64> = Random::new(6).stream(0, "u").uniforms(1000);
    let x = Rows::of([&x0, &noise(1000)], |i, [x, e]| (1.0 - u[i]) * x + u[i] * e);
    let at = Point::new(&x, &u);
    let (got, want) = (student.velocity(&at, &Condition::new()).unwrap(), exact.velocity(&at, &Condition::new()).unwrap());
    let error = size(&Rows::of([&got, &want], |_, [g, w]| g - w)) / size(&want);
    println!("flow matching: relative RMS of the velocity {error:.4}");
    assert!(error < 0.06, "{error}");
}

#[test]
fn an_average_velocity_jumps_too() {
    let (iterations, random) = (2000, Random::new(3));
    let settings = meanflow::Settings { density: Density::LogNormal { mean: 0.0, deviation: 1.6 }, equal: 0.25, power: 0.75, constant: 1e-3 };
    let student = learner_of(average_perceptron(), 2e-3, iterations, &cpu(2));
    let mut m = MeanFlow::new(student, Target::Teacher(teacher(1.0, &cpu(2))), settings).unwrap();
    run(&mut m, 0..iterations, 256, &random);
    let noise = noise(1000);
    let want = endpoints(&noise, 1.0);
    let mut student = Model::new(average_perceptron().0, &m.average().unwrap(), &cpu(2)).unwrap();
    for (steps, bound) in [(1, 0.06), (2, 0.05)] {
        let got = meanflow::sample(&mut student, &noise, steps, &Condition::new()).unwrap();
        let error = size(&Rows::of([&got, &want], |_, [g, w]| g - w)) / size(&want);
        println!("MeanFlow, {steps} steps: relative RMS {error:.4}");
        assert!(error < bound, "{error}");
    }
}

#[test]
fn distribution_matching_finds_the_law_and_consistency_keeps_the_map() {
    let random = Random::new(3);
    let truth = Rows::from_tensor(&data(1000, &Random::new(5), 0)).unwrap();
    let density = Density::LogNormal { mean: 0.0, deviation: 1.6 };
    // The critic sees rollouts of all lengths together, so matching alone makes only their mixture right; here they have one step.
    let make = |consistency: bool, turns: u64| {
        let settings = Settings {
            consistency: consistency.then(|| Regression::Continuous(Consistency::flow(Density::LogNormal { mean: 0.3, deviation: 1.6 }))),
            matching: Some(Matching { scale: if consistency { 0.3 } else { 1.0 }, ..Matching::released(density) }),
            plan: Plan { warm_up: 0, student_every: 4, rollout: if consistency { 4 } else { 1 } },
            critic_first: 300,
            monitor_every: 0,
        };
        let rate = if consistency { 1e-3 } else { 5e-4 };
        Rcm::new(learner(rate, turns, &cpu(2)), Some(learner(2e-3, 8 * turns, &cpu(2))), teacher(1.0, &cpu(2)), settings).unwrap()
    };
    let start = energy(&jump(&perceptron().1, &noise(1000)), &truth);
    let mut said = vec![];
    for consistency in [false, true] {
        let mut m = make(consistency, 700);
        run(&mut m, 0..2800, 128, &random);
        let (law, map) = (energy(&jump(&m.average().unwrap(), &noise(1000)), &truth), miss(&m.average().unwrap()));
        println!("{}: energy distance {law:.4} (from {start:.4}), relative RMS of the jump {map:.4}", m.name());
        said.push((law, map));
    }
    let floor = energy(&endpoints(&noise(1000), 1.0), &truth);
    println!("exact samples: energy distance {floor:.4}");
    assert!(start > 5.0 * floor && said.iter().all(|(law, _)| *law < 2.0 * floor), "{said:?}");
    assert!(said[1].1 < 0.08 && said[1].1 < said[0].1, "{said:?}");
}
