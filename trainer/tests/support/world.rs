//! A world in which the teacher is known exactly: a mixture of Gaussians in the plane, whose velocity is a formula, here an IR function like any network. Students are small
//! perceptrons.
#![allow(dead_code, clippy::unwrap_used)] // each test uses its part

use ir::tensor::Tensor;
use ir::types::DType;
use trainer::density::Density;
use trainer::method::rcm::{Rcm, Regression, Settings};
use trainer::method::scm::Consistency;
use trainer::method::dmd::Matching;
use trainer::method::{Batch, Condition, Learner, Method, Metrics, Teacher, Weights};
use trainer::network::{Model, Network, Point};
use trainer::optim::{AdamW, Decay, Schedule};
use trainer::phase::Plan;
use trainer::program::{On, Options};
use trainer::random::Random;
use trainer::rows::Rows;

pub const MEANS: [[f64; 2]; 3] = [[1.0, 0.3], [-0.8, 0.9], [-0.1, -1.1]];
/// Deviation of each component.
pub const SPREAD: f64 = 0.5;

pub fn cpu(threads: usize) -> Options {
    Options { on: On::Cpu, dtype: DType::F32, threads: Some(threads), ..Options::default() }
}

fn parse(text: &str) -> Network {
    let m = ir::text::parse(text).unwrap_or_else(|e| panic!("{e:?}"));
    Network::new(m.functions[0].clone(), "x", &["t"], &[], "v").unwrap()
}

/// v(x, u) = E(ε − x₀ | x): with a = 1 − u and s² the variance of a component, that of x is q = a²s² + u²; of component k, v_k = (u − a·s²)/q·(x − a·μ_k) − μ_k, weighed by how
/// likely it made x.
pub fn exact_velocity() -> (Network, Weights) {
    let text = format!("fn mixture(x: f32[B,P=2], t: f32[B], mean: f32[K=3,P=2]) -> (v: f32[B,P=2]) {{
        a = 1 - t
        q = a * a * {0} + t * t
        gap = x - mul(a, mean)
        p = softmax(reduce_sum(gap * gap, P) * -0.5 / q, K)
        each = gap * ((t - a * {0}) / q) - mean
        v = permute(reduce_sum(each * p, K), [B,P])
    }}", SPREAD * SPREAD);
    let means = Tensor::from_f64(DType::F64, &[3, 2], &MEANS.concat()).unwrap();
    (parse(&text), Weights::from([("mean".into(), means)]))
}

/// Three hidden layers of 96.
pub fn perceptron() -> (Network, Weights) {
    let text = "fn perceptron(x: f32[B,P=2], t: f32[B], wx: f32[H=96,P=2], wt: f32[H=96], ws: f32[H=96], wc: f32[H=96], b1: f32[H=96], w2: f32[G=96,H=96], b2: f32[G=96], w3: f32[H=96,G=96], b3: f32[H=96], w4: f32[P=2,H=96], b4: f32[P=2]) -> (v: f32[B,P=2], features: f32[B,H=96]) {
        angle = t * 3.141592653589793
        h = contract(\"bp,hp->bh\", x, wx) + mul(t, wt) + mul(sin(angle), ws) + mul(cos(angle), wc) + b1
        h2 = silu(contract(\"bh,gh->bg\", silu(h), w2) + b2)
        h3 = silu(contract(\"bg,hg->bh\", h2, w3) + b3)
        features = h3
        v = contract(\"bh,ph->bp\", h3, w4) + b4
    }";
    let n = Network { features: Some("features".into()), ..parse(text) };
    let random = Random::new(11);
    let mut w = Weights::new();
    for name in n.weights() {
        let ty = n.function.ty(n.function.param(&name).unwrap());
        let shape = ty.sizes(&Default::default()).unwrap();
        let fan = if shape.len() > 1 { shape[1] } else if name.starts_with('w') { 1 } else { 0 };
        let scale = if fan == 0 { 0.0 } else { (1.0 / fan as f64).sqrt() };
        let count = shape.iter().product();
        let data: Vec<f64> = random.stream(0, &name).normals(count).iter().map(|z| z * scale).collect();
        w.insert(name, Tensor::from_f64(DType::F64, &shape, &data).unwrap());
    }
    (n, w)
}

pub fn data(n: usize, random: &Random, iteration: u64) -> Tensor {
    let (k, z) = (random.stream(iteration, "data.component").uniforms(n), random.stream(iteration, "data.noise").normals(2 * n));
    let x: Vec<f64> = (0..2 * n).map(|i| MEANS[(k[i / 2] * 3.0) as usize][i % 2] + SPREAD * z[i]).collect();
    Tensor::from_f64(DType::F64, &[n, 2], &x).unwrap()
}

/// A learner that starts from the perceptron's first weights.
pub fn learner(rate: f64, iterations: u64, options: &Options) -> Learner {
    let (net, weights) = perceptron();
    let adam = AdamW { decay: 0.0, ..AdamW::released(Schedule { rate, warm_up: 100.min(iterations / 2), decay: Decay::Cosine { steps: iterations, last: 0.005 } }) };
    Learner::new(net, &weights, adam, Some(0.1), options).unwrap()
}

pub fn teacher(guidance: f64, options: &Options) -> Teacher {
    let (exact, means) = exact_velocity();
    Teacher { model: Model::new(exact, &means, options).unwrap(), guidance }
}

/// sCM in rectified flow's terms; with a matching loss, rCM.
pub fn method(iterations: u64, warm_up: u64, matching: Option<f64>, guidance: f64, options: &Options) -> Rcm {
    let settings = Settings {
        consistency: Some(Regression::Continuous(Consistency::flow(Density::LogNormal { mean: 0.3, deviation: 1.6 }))),
        matching: matching.map(|scale| Matching { scale, ..Matching::released(Density::LogNormal { mean: 0.0, deviation: 1.6 }) }),
        plan: Plan { warm_up, student_every: if matching.is_some() { 3 } else { 1 }, rollout: 4 },
        critic_first: 0,
        monitor_every: 0,
    };
    let fake = matching.map(|_| learner(1e-3, iterations, options));
    Rcm::new(learner(2e-3, iterations, options), fake, teacher(guidance, options), settings).unwrap()
}

pub fn batch(n: usize, random: &Random, iteration: u64) -> Batch {
    Batch { x0: data(n, random, iteration), condition: Condition::new(), empty: Condition::new() }
}

/// Runs iterations; what the last one said.
pub fn run(method: &mut dyn Method, iterations: std::ops::Range<u64>, n: usize, random: &Random) -> Metrics {
    let mut last = Metrics::default();
    for i in iterations {
        last = method.step(i, &batch(n, random, i), random).unwrap();
    }
    last
}

/// Where the exact flow takes noise from u = u₀: 200 steps of the classical Runge-Kutta method.
pub fn endpoints(noise: &Rows, top: f64) -> Rows {
    let (exact, means) = exact_velocity();
    let mut m = Model::new(exact, &means, &Options { on: On::Reference, dtype: DType::F64, ..Options::default() }).unwrap();
    let mut x = noise.clone();
    let n = 200;
    let h = top / n as f64;
    for i in 0..n {
        let u = top - i as f64 * h;
        let mut at = |x: &Rows, u: f64| m.velocity(&Point::new(x, &vec![u; x.batch()]), &Condition::new()).unwrap();
        let k1 = at(&x, u);
        let k2 = at(&Rows::of([&x, &k1], |_, [x, k]| x - 0.5 * h * k), u - 0.5 * h);
        let k3 = at(&Rows::of([&x, &k2], |_, [x, k]| x - 0.5 * h * k), u - 0.5 * h);
        let k4 = at(&Rows::of([&x, &k3], |_, [x, k]| x - h * k), (u - h).max(0.0));
        x = Rows::of([&x, &k1, &k2, &k3, &k4], |_, [x, a, b, c, d]| x - h / 6.0 * (a + 2.0 * b + 2.0 * c + d));
    }
    x
}

