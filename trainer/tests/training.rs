//! What every training keeps: programs of the compiler alone, the same bits on any number of threads and from a restored state, samples with a NaN left out and counted.
#![allow(clippy::unwrap_used)] // a test may stop

#[path = "support/world.rs"]
mod world;

use ir::tensor::Tensor;
use ir::types::DType;
use trainer::density::Density;
use trainer::method::dmd::Matching;
use trainer::method::dmd2::{self, Dmd2};
use trainer::method::flow::{self, Flow};
use trainer::method::{Batch, Method, Metrics};
use trainer::optim::{AdamW, Schedule};
use trainer::program::{On, Options};
use trainer::random::Random;
use world::{batch, cpu, learner, method, perceptron, run, teacher};

fn adversarial(options: &Options) -> Dmd2 {
    let (net, weights) = perceptron();
    let settings = dmd2::Settings {
        matching: Matching::released(Density::LogNormal { mean: 0.0, deviation: 1.6 }),
        student_every: 3,
        rollout: 4,
        generator_weight: 0.3,
        discriminator_weight: 0.1,
        width: 32,
    };
    Dmd2::new(learner(2e-3, 100, options), net, &weights, AdamW::released(Schedule::constant(1e-3)), teacher(1.0, options), settings, &Random::new(4), options).unwrap()
}

fn flow(options: &Options) -> Flow {
    Flow::new(learner(2e-3, 100, options), flow::Settings { density: Density::LogNormal { mean: 0.0, deviation: 1.2 }, uniform: 0.2, drop: 0.0 })
}

#[test]
fn every_evaluation_of_a_step_is_a_program_of_the_compiler() {
    // Warm-up of one iteration; then the student learns from both losses, by rollouts of 1, 2, … steps.
    let mut m = method(100, 1, Some(0.5), 2.0, &cpu(2));
    let random = Random::new(1);
    let mut seen = vec![];
    for i in 0..6 {
        let (evaluations, launches) = (m.evaluations(), m.launches());
        m.step(i, &batch(64, &random, i), &random).unwrap();
        seen.push((m.evaluations() - evaluations, m.launches() - launches));
    }
    // Teacher twice (guidance), tangent, pullback; matching adds a rollout of N, fake score, teacher twice, pullback. Critic: a rollout of N and a regression.
    let consistency = 2 + 1 + 1;
    let rollout = |i: u64| trainer::phase::Plan { warm_up: 1, student_every: 3, rollout: 4 }.rollout_steps(i);
    let want: Vec<u64> = (0..6).map(|i| match i {
        0 => consistency,
        1 | 4 => consistency + rollout(i) + 1 + 2 + 1,
        _ => rollout(i) + 1,
    }).collect();
    assert_eq!(seen.iter().map(|s| s.0).collect::<Vec<_>>(), want);
    // Launches are a part of the time in programs.
    assert!(m.in_launches() <= m.programs() && !m.in_launches().is_zero(), "{:?} of {:?}", m.in_launches(), m.programs());
    // The evaluator launches nothing: each evaluation is at least one kernel, and so is the optimizer's update.
    assert!(seen.iter().all(|(e, l)| l > e), "{seen:?}");
    let mut m = method(100, 1, Some(0.5), 2.0, &Options { on: On::Reference, ..cpu(1) });
    run(&mut m, 0..2, 8, &random);
    assert_eq!(m.launches(), 0);
}

fn bits(m: &dyn Method) -> Vec<(String, Vec<u8>)> {
    m.state().unwrap().into_iter().map(|(n, t)| (n, t.to_bytes())).collect()
}

#[test]
fn the_same_seed_gives_the_same_bits_on_any_number_of_threads_and_from_a_restored_state() {
    let random = Random::new(8);
    let make: [fn(&Options) -> Box<dyn Method>; 3] = [|o| Box::new(method(40, 4, Some(0.5), 2.0, o)), |o| Box::new(adversarial(o)), |o| Box::new(flow(o))];
    for make in make {
        let (mut one, mut two) = (make(&cpu(1)), make(&cpu(2)));
        run(&mut *one, 0..6, 64, &random);
        run(&mut *two, 0..6, 64, &random);
        let half = two.state().unwrap();
        assert!(bits(&*one) == bits(&*two), "{}: threads matter", one.name());
        run(&mut *one, 6..12, 64, &random);
        let mut resumed = make(&cpu(2));
        resumed.restore(&half).unwrap();
        run(&mut *resumed, 6..12, 64, &random);
        assert!(bits(&*one) == bits(&*resumed), "{}: a restored run goes elsewhere", one.name());
        let mut other = make(&cpu(1));
        run(&mut *other, 0..6, 64, &Random::new(9));
        assert!(bits(&*other) != half.into_iter().map(|(n, t)| (n, t.to_bytes())).collect::<Vec<_>>(), "the seed matters");
    }
}

#[test]
fn states_that_do_not_fit_are_refused_and_change_nothing() {
    let mut m = method(40, 4, Some(0.5), 2.0, &cpu(1));
    let good = m.state().unwrap();
    let mut bad = good.clone();
    bad.remove("fake.second.w2");
    assert!(m.restore(&bad).unwrap_err().message.contains("fake.second.w2"));
    let mut bad = good.clone();
    bad.insert("student.weights.w9".into(), Tensor::zeros(DType::F32, &[1]).unwrap());
    assert!(m.restore(&bad).unwrap_err().message.contains("student.weights.w9"));
    let mut bad = good.clone();
    bad.insert("student.weights.w2".into(), Tensor::zeros(DType::F32, &[96]).unwrap());
    assert!(m.restore(&bad).unwrap_err().message.contains("[96]"));
    assert!(m.state().unwrap() == good);
}

fn spoilt(b: &Batch, rows: &[usize], with: f64) -> Batch {
    let mut x = b.x0.to_f64();
    rows.iter().for_each(|r| x[2 * r] = with);
    Batch { x0: Tensor::from_f64(DType::F64, b.x0.shape(), &x).unwrap(), ..b.clone() }
}

#[test]
fn samples_with_a_nan_are_left_out_and_counted() {
    let random = Random::new(2);
    let make: [fn(&Options) -> Box<dyn Method>; 3] = [|o| Box::new(method(40, 40, Some(0.5), 2.0, o)), |o| Box::new(adversarial(o)), |o| Box::new(flow(o))];
    for make in make {
        for value in [f64::NAN, f64::INFINITY] {
            let mut m = make(&cpu(2));
            let name = m.name();
            let mut said: Vec<Metrics> = vec![];
            for i in 0..2 {
                said.push(m.step(i, &spoilt(&batch(64, &random, i), &[3, 40], value), &random).unwrap());
            }
            // The adversarial student has no use for data; its critic, whose turn is second, has.
            assert_eq!(said[usize::from(name == "dmd2")].get("skipped"), Some(2.0), "{name}");
            assert!(said.iter().all(|s| s.get("nonfinite") == Some(0.0) && s.get("loss").unwrap().is_finite()), "{name}: {said:?}");
            assert!(m.weights().unwrap().values().all(|t| t.to_f64().iter().all(|x| x.is_finite())), "{name}");
            assert!(m.state().unwrap() != make(&cpu(2)).state().unwrap(), "{name}: the rest of the batch is learned from");
        }
    }
}
