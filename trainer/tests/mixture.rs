//! Distillation from a teacher that is known exactly: a student in one step against the end of the teacher's trajectories.
#![allow(clippy::unwrap_used)] // a test may stop

#[path = "support/world.rs"]
mod world;

use trainer::method::{Condition, Method};
use trainer::network::{Model, Point};
use trainer::random::Random;
use trainer::rows::Rows;
use world::{cpu, endpoints, method, perceptron, run};

#[test]
fn a_consistency_student_jumps_to_where_the_flow_ends() {
    let (iterations, random) = (3000, Random::new(3));
    let mut m = method(iterations, iterations / 3, None, 1.0, &cpu(2));
    run(&mut m, 0..iterations, 256, &random);
    let like = Rows::new(&[1000, 2], vec![0.0; 2000]).unwrap();
    let noise = like.noise(Random::new(99).stream(0, "test"));
    let want = endpoints(&noise, 1.0);
    let mut student = Model::new(perceptron().0, &m.average(), &cpu(2)).unwrap();
    let v = student.velocity(&Point::new(&noise, &vec![1.0; 1000]), &Condition::new()).unwrap();
    let square = |r: &Rows| r.data().iter().map(|x| x * x).sum::<f64>();
    let error = (square(&Rows::of([&noise, &v, &want], |_, [e, v, w]| e - v - w)) / square(&want)).sqrt();
    println!("relative RMS of the jump: {error:.4}");
    assert!(error < 0.02, "{error}");
}
