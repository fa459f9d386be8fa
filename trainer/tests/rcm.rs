//! Outside references (`tests/fixtures/rcm`): losses, tangents, targets, gradients, rollouts, samplers and optimizers as NVIDIA's rCM, diffusers and PyTorch have
//! them in float64, here by the trainer's own code over IR programs. The small network of the references is an IR function like any other network.
#![allow(clippy::unwrap_used)] // a test may stop

mod support;

use support::{Fixture, close, close_gradient, exact, model, network};
use trainer::method::dcm::Discrete;
use trainer::method::dmd::{Matching, critic, rollout};
use trainer::method::meanflow::{self, Target};
use trainer::method::scm::{Consistency, Form, Placement, Tangent};
use trainer::method::flow::{self, Flow};
use trainer::method::{Batch, Learner, Method, Noisy, Teacher, Weights};
use trainer::network::{Network, Point};
use trainer::optim::{AdamW, Optimizer, Schedule};
use trainer::rows::Rows;
use trainer::sampler::{Between, Clock, RELEASED, diffusers_grid, euler, few, few_steps, shifted_grid, unipc};
use trainer::density::Density;
use trainer::random::Random;
use trainer::{Sigma, Trig};

/// To what the references agree with the equations; a few float64 operations apart.
const BOUND: f64 = 1e-9;

/// `v = W₃·silu(W₂·tanh(W₁·f + b₁) + b₂) + b₃`, f = [x, cond, τ, sin 2πτ, cos 2πτ], τ = t/1000: the rectified-flow network of the references.
fn toy() -> Network {
    let text = "fn toy(x: f32[B,C=2,T=1,Y=1,X=1], t: f32[B], cond: f32[B,E=2], w1: f32[H=16,K=7], b1: f32[H=16], w2: f32[G=16,H=16], b2: f32[G=16], w3: f32[P=2,G=16], b3: f32[P=2]) -> (v: f32[B,C=2,T=1,Y=1,X=1]) {
        tau = t / 1000
        turn = tau * 6.283185307179586
        p = merge(x, [C,T,Y,X] -> P=2)
        a = contract(\"bp,hp->bh\", p, slice(w1, K -> P=2, 0)) + contract(\"be,he->bh\", cond, slice(w1, K -> E=2, 2))
        c = mul(tau, index(w1, K, 4)) + mul(sin(turn), index(w1, K, 5)) + mul(cos(turn), index(w1, K, 6))
        h = tanh(a + c + b1)
        h2 = silu(contract(\"bh,gh->bg\", h, w2) + b2)
        y = contract(\"bg,pg->bp\", h2, w3) + b3
        v = split(y, P -> [C=2,T=1,Y=1,X=1])
    }";
    network(text, &["t"]).scaled(1000.0)
}

/// The same with other inputs: x and a condition of two numbers, and `times` numbers as they are.
fn plain(times: &[&str]) -> Network {
    let k = 4 + times.len();
    let params: String = times.iter().map(|t| format!(", {t}: f32[B]")).collect();
    let terms: String = times.iter().enumerate().map(|(i, t)| format!(" + mul({t}, index(w1, K, {}))", 4 + i)).collect();
    let text = format!("fn plain(x: f32[B,P=2]{params}, cond: f32[B,E=2], w1: f32[H=16,K={k}], b1: f32[H=16], w2: f32[G=16,H=16], b2: f32[G=16], w3: f32[P=2,G=16], b3: f32[P=2]) -> (v: f32[B,P=2]) {{
        a = contract(\"bp,hp->bh\", x, slice(w1, K -> P=2, 0)) + contract(\"be,he->bh\", cond, slice(w1, K -> E=2, 2)){terms}
        h = tanh(a + b1)
        h2 = silu(contract(\"bh,gh->bg\", h, w2) + b2)
        v = contract(\"bg,pg->bp\", h2, w3) + b3
    }}");
    network(&text, times)
}

fn noisy(f: &Fixture) -> Noisy {
    Noisy { x0: f.rows("x0"), noise: f.rows("eps"), times: f.list("time").into_iter().map(Trig).collect() }
}

fn teacher(f: &Fixture) -> Teacher {
    Teacher { model: model(&toy(), f, "teacher"), guidance: 5.0 }
}

#[test]
fn consistency_has_rcms_tangents_targets_losses_and_gradients() {
    let f = Fixture::load("toy_wan");
    let (mut student, mut teacher, draw) = (model(&toy(), &f, "student"), teacher(&f), noisy(&f));
    let (condition, empty) = (f.condition("cond"), f.condition("uncond"));
    close("xt", draw.trig().data(), &f.list("scm.xt"), BOUND);
    for r in ["0.0", "0.3", "1.0"] {
        let c = Consistency::released(Density::COSMOS);
        let o = c.at(&mut student, &mut teacher, &draw, &condition, &empty, r.parse().unwrap()).unwrap();
        close("F", o.velocity.data(), &f.list("scm.F"), BOUND);
        close("F_teacher", o.teacher.data(), &f.list("scm.F_teacher"), BOUND);
        close("t_F", o.tangent.data(), &f.list("scm.t_F"), BOUND);
        close("g", o.g.data(), &f.list(&format!("scm.r{r}.g")), BOUND);
        close("g_norm", &o.norms, &f.list(&format!("scm.r{r}.g_norm")), BOUND);
        close("g_hat", o.direction.data(), &f.list(&format!("scm.r{r}.g_hat")), BOUND);
        let target = Rows::of([&o.velocity, &o.direction], |_, [v, d]| v + d);
        close("target", target.data(), &f.list(&format!("scm.r{r}.target")), BOUND);
        close("loss", &o.loss, &f.list(&format!("scm.r{r}.kendall_loss")), BOUND);
        close_gradient(&format!("r = {r}"), &o.gradient.host().unwrap(), &f, &format!("scm.r{r}.grad"), BOUND);
        assert_eq!(o.skipped, 0);
        let paper = Consistency { placement: Placement::Paper, ..c }.at(&mut student, &mut teacher, &draw, &condition, &empty, r.parse().unwrap()).unwrap();
        close("g, all scaled by r", paper.g.data(), &f.list(&format!("scm.r{r}.g_all_scaled_by_r")), BOUND);
    }
}

#[test]
fn finite_differences_are_rcms() {
    let f = Fixture::load("toy_wan");
    let (mut student, mut teacher, draw) = (model(&toy(), &f, "student"), teacher(&f), noisy(&f));
    let (condition, empty) = (f.condition("cond"), f.condition("uncond"));
    for (tangent, name) in [(Tangent::FiniteTime(1e-4), "scm.t_F_fd1"), (Tangent::Finite(1e-4), "scm.t_F_fd2")] {
        let c = Consistency { tangent, ..Consistency::released(Density::COSMOS) };
        let o = c.at(&mut student, &mut teacher, &draw, &condition, &empty, 1.0).unwrap();
        // The difference loses what it divides by: 1e-16 of F over a step of 1e-4.
        close(name, o.tangent.data(), &f.list(name), BOUND);
        assert_ne!(o.tangent.data(), f.list("scm.t_F"));
    }
    let c = Consistency::released(Density::COSMOS);
    let mut gap = |h| c.gap(&mut student, &mut teacher, &draw, &condition, &empty, h).unwrap();
    // The monitor sees the difference's first order.
    let (a, b) = (gap(1e-3), gap(1e-4));
    assert!(a < 0.05 && (a / b - 10.0).abs() < 1.0, "{a} and {b}");
}

#[test]
fn both_forms_say_the_same_up_to_a_factor_per_sample() {
    // g = C·b²·(V − v − u·J) in one form, V − v − u·J in the other, at the same point of the process.
    let f = Fixture::load("toy_wan");
    let (mut student, mut teacher, draw) = (model(&toy(), &f, "student"), teacher(&f), noisy(&f));
    let (condition, empty) = (f.condition("cond"), f.condition("uncond"));
    let trig = Consistency::released(Density::COSMOS).at(&mut student, &mut teacher, &draw, &condition, &empty, 1.0).unwrap();
    let flow = Consistency::flow(Density::COSMOS).at(&mut student, &mut teacher, &draw, &condition, &empty, 1.0).unwrap();
    let scaled = Rows::of([&flow.g], |i, [g]| {
        let t = draw.times[i];
        t.0.cos() * t.flow_rate() * g
    });
    close("g", scaled.data(), trig.g.data(), BOUND);
    let step = Consistency { tangent: Tangent::Finite(1e-5), ..Consistency::flow(Density::COSMOS) }.at(&mut student, &mut teacher, &draw, &condition, &empty, 1.0).unwrap();
    close("J by differences", step.tangent.data(), flow.tangent.data(), 1e-3);
    let step = Consistency { tangent: Tangent::FiniteTime(1e-5), ..Consistency::flow(Density::COSMOS) }.at(&mut student, &mut teacher, &draw, &condition, &empty, 1.0).unwrap();
    close("J by a difference in time", step.tangent.data(), flow.tangent.data(), 1e-3);
}

#[test]
fn the_first_papers_form_is_cos_times_the_derivative_of_the_consistency_function() {
    // For r = 1, g = C·df/dτ along the trajectory of the teacher, f = C·x − S·σ_d·F: here by central differences of f.
    let f = Fixture::load("toy_wan");
    let (mut student, mut teacher, draw) = (model(&toy(), &f, "student"), teacher(&f), noisy(&f));
    let (condition, empty, sigma) = (f.condition("cond"), f.condition("uncond"), 0.5);
    let c = Consistency { form: Form::Original { deviation: sigma }, ..Consistency::released(Density::COSMOS) };
    let draw = Noisy { x0: Rows::of([&draw.x0], |_, [x]| sigma * x), ..draw };
    let o = c.at(&mut student, &mut teacher, &draw, &condition, &empty, 1.0).unwrap();
    let mut at = |h: f64| {
        let x = Rows::of([&draw.x0, &draw.noise, &o.teacher], |i, [x, e, v]| {
            let (s, c) = draw.times[i].0.sin_cos();
            c * x + s * sigma * e + h * sigma * v
        });
        let times: Vec<f64> = draw.times.iter().map(|t| t.0 + h).collect();
        let f = student.velocity(&Point::new(&Rows::of([&x], |_, [x]| x / sigma), &times), &condition).unwrap();
        Rows::of([&x, &f], |i, [x, f]| times[i].cos() * x - times[i].sin() * sigma * f)
    };
    let (a, b) = (at(1e-5), at(-1e-5));
    let rate = Rows::of([&a, &b], |i, [a, b]| draw.times[i].0.cos() * (a - b) / 2e-5);
    close("g", o.g.data(), rate.data(), 1e-6);
    // The loss is a mean over elements, and a logarithmic weight w turns L into eʷ·L − w, whose gradient is eʷ times that of L.
    let w = 0.7f64;
    let weighted = c.weighted(&mut student, &mut teacher, &draw, &condition, &empty, 1.0, &[w; 6]).unwrap();
    close("loss", &o.loss, &o.direction.each(|d| 100.0 * d.iter().map(|x| x * x).sum::<f64>() / 2.0), BOUND);
    close("weighted loss", &weighted.loss, &o.loss.iter().map(|l| w.exp() * l - w).collect::<Vec<_>>(), BOUND);
    for (name, g) in &*o.gradient.host().unwrap() {
        close(name, &weighted.gradient.host().unwrap()[name].to_f64(), &g.to_f64().iter().map(|g| w.exp() * g).collect::<Vec<_>>(), BOUND);
    }
}

#[test]
fn distribution_matching_has_rcms_rollouts_losses_and_gradients() {
    let f = Fixture::load("toy_wan");
    let (mut student, mut fake, mut teacher) = (model(&toy(), &f, "student"), model(&toy(), &f, "fake"), teacher(&f));
    let (condition, empty) = (f.condition("cond"), f.condition("uncond"));
    for n in [1, 2, 4] {
        let noise: Vec<Rows> = (0..n).map(|k| f.rows(&format!("sim.noise{k}"))).collect();
        let mut times = vec![vec![Trig::NOISE; 6]];
        for k in 1..n {
            let drawn = f.list(&format!("sim.draw{}", k - 1));
            times.push(drawn.iter().zip(&times[k - 1]).map(|(d, t)| Trig(d.min(t.0))).collect());
        }
        let roll = rollout(&mut student, &noise, &times, &condition).unwrap();
        for k in 0..n {
            // What the reference's loop has after step k: the next noisy sample or, behind the last step, the clean one.
            let after = match (noise.get(k + 1), times.get(k + 1)) {
                (Some(e), Some(t)) => Noisy { x0: roll.path[k].clone(), noise: e.clone(), times: t.clone() }.trig(),
                _ => roll.path[k].clone(),
            };
            close(&format!("n{n}: step {k}"), after.data(), &f.list(&format!("dmd.n{n}.traj{k}")), BOUND);
        }
        close("G", roll.x0.data(), &f.list(&format!("dmd.n{n}.G_x0")), BOUND);
        let draw = Noisy { x0: roll.x0.clone(), noise: f.rows("dmd.eps"), times: f.list("dmd.time").into_iter().map(Trig).collect() };
        close("x_D", draw.trig().data(), &f.list(&format!("dmd.n{n}.D_xt")), BOUND);
        let s = Matching::released(Density::WAN_SCORE).student(&mut student, &mut fake, &mut teacher, &roll, &draw, &condition, &empty).unwrap();
        close("fake", s.fake.data(), &f.list(&format!("dmd.n{n}.x0_fake")), BOUND);
        close("teacher", s.teacher.data(), &f.list(&format!("dmd.n{n}.x0_teacher")), BOUND);
        close("weight", &s.weight, &f.list(&format!("dmd.n{n}.weight")), BOUND);
        close("a", s.direction.data(), &f.list(&format!("dmd.n{n}.grad_x")), BOUND);
        close("loss", &s.loss, &f.list(&format!("dmd.n{n}.loss")), BOUND);
        close_gradient(&format!("n{n}"), &s.gradient.host().unwrap(), &f, &format!("dmd.n{n}.grad"), BOUND);
        let c = critic(&mut fake, &draw, &condition).unwrap();
        close("critic", &c.loss, &f.list(&format!("dmd.n{n}.critic.loss")), BOUND);
        close_gradient(&format!("n{n}: critic"), &c.gradient.host().unwrap(), &f, &format!("dmd.n{n}.critic.grad"), BOUND);
    }
}

#[test]
fn discrete_consistency_has_rcms_targets_losses_and_gradients() {
    let f = Fixture::load("toy_wan");
    let (mut student, mut teacher) = (model(&toy(), &f, "student"), teacher(&f));
    for skip in [1, 2] {
        let d = Discrete { skip, ..Discrete::released() };
        let name = |n: &str| format!("dcm.skip{skip}.{n}");
        let o = d.at(&mut student, &mut teacher, &f.rows("x0"), &f.rows("eps"), &f.list(&name("u")), &f.condition("cond"), &f.condition("uncond")).unwrap();
        close("x", o.x.data(), &f.list(&name("xt")), BOUND);
        close("target", o.target.data(), &f.list(&name("x0_target")), BOUND);
        // The reference's loss is without the factor, its gradient with it.
        close("loss", &o.loss.iter().map(|l| l / 100.0).collect::<Vec<_>>(), &f.list(&name("loss")), BOUND);
        close_gradient(&format!("skip {skip}"), &o.gradient.host().unwrap(), &f, &name("grad"), BOUND);
    }
}

#[test]
fn few_step_samples_are_rcms() {
    let f = Fixture::load("toy_wan");
    let mut student = model(&toy(), &f, "student");
    let condition = f.condition("cond");
    let mut velocity = |x: &Rows, u: f64| student.velocity(&Point::new(x, &vec![u; x.batch()]), &condition);
    for (clock, name) in [(Clock::Trig, "trig"), (Clock::Flow, "rf")] {
        for sigma in [80, 1600] {
            for n in 1..=4 {
                let times = few_steps(n, f64::from(sigma), &RELEASED).unwrap();
                let x = few(&mut velocity, &f.rows("sim.noise0"), &times, clock, Between::Stochastic, &mut |k| f.rows(&format!("sim.noise{k}"))).unwrap();
                close(&format!("{name}, {n} steps"), x.data(), &f.list(&format!("sample.{name}.smax{sigma}.n{n}")), BOUND);
            }
        }
    }
    // Deterministic steps follow one trajectory in both clocks, from the same point of the process.
    let times = few_steps(4, 80.0, &RELEASED).unwrap();
    let noise = f.rows("sim.noise0");
    let mut none = |_: usize| noise.clone();
    let a = few(&mut velocity, &Rows::of([&noise], |_, [e]| times[0].0.sin() * e), &times, Clock::Trig, Between::Deterministic, &mut none).unwrap();
    let b = few(&mut velocity, &noise, &times, Clock::Flow, Between::Deterministic, &mut none).unwrap();
    close("both clocks", a.data(), b.data(), BOUND);
}

#[test]
fn average_velocities_have_the_papers_targets_losses_and_gradients() {
    let f = Fixture::load("meanflow");
    let mut student = model(&plain(&["t", "span"]), &f, "student");
    let zero = trainer::method::Condition::from([("cond".into(), ir::tensor::Tensor::from_f64(ir::types::DType::F64, &[8, 2], &[0.0; 16]).unwrap())]);
    let omega = 2.0;
    for variant in ["train", "distill", "cfg"] {
        let mut target = match variant {
            "train" => Target::Data,
            "distill" => Target::Teacher(Teacher { model: model(&plain(&["t"]), &f, "teacher"), guidance: omega }),
            _ => Target::Guided(omega),
        };
        for (p, c) in [("0.0", "0.001"), ("0.75", "0.001"), ("1.0", "0.001"), ("1.0", "0.01")] {
            let s = meanflow::Settings { density: Density::Shifted(1.0), equal: 0.0, power: p.parse().unwrap(), constant: c.parse().unwrap() };
            let o = s.at(&mut student, &mut target, &f.rows("x"), &f.rows("e"), &f.list("r"), &f.list("t"), &f.condition("cond"), &zero).unwrap();
            let v = match variant {
                "train" => "v",
                "distill" => "v_teacher",
                _ => "v_cfg",
            };
            close(&format!("{variant}: v"), o.v.data(), &f.list(v), BOUND);
            close(&format!("{variant}: u"), o.u.data(), &f.list(&format!("{variant}.u")), BOUND);
            close(&format!("{variant}: du/dt"), o.rate.data(), &f.list(&format!("{variant}.dudt")), BOUND);
            close(&format!("{variant}: u*"), o.target.data(), &f.list(&format!("{variant}.u_tgt")), BOUND);
            close(&format!("{variant}: error"), &o.error, &f.list(&format!("{variant}.sq_err")), BOUND);
            let name = |n: &str| format!("{variant}.p{p}.c{c}.{n}");
            close(&name("weight"), &o.weight, &f.list(&name("weight")), BOUND);
            let loss: f64 = o.error.iter().zip(&o.weight).map(|(e, w)| e * w).sum::<f64>() / 8.0;
            close(&name("loss"), &[loss], &f.list(&name("loss")), BOUND);
            close_gradient(&name(""), &o.gradient.host().unwrap(), &f, &name("grad"), BOUND);
        }
    }
    for n in [1, 2, 4] {
        let x = meanflow::sample(&mut student, &f.rows("e"), n, &f.condition("cond")).unwrap();
        close("sample", x.data(), &f.list(&format!("sample.n{n}")), BOUND);
    }
}

#[test]
fn teachers_are_sampled_as_elsewhere() {
    let f = Fixture::load("samplers");
    let mut net = model(&plain(&["t"]), &f, "teacher");
    let condition = f.condition("cond");
    let mut velocity = |x: &Rows, u: f64| net.velocity(&Point::new(x, &vec![u; x.batch()]), &condition);
    // Where the references keep their grids in float32.
    let single = 1e-6;
    let x = f.rows("x");
    for (n, shift) in [(10, 5.0), (5, 3.0), (50, 5.0), (50, 8.0)] {
        for (top, name) in [(trainer::Flow(1.0), "1"), (Sigma(80.0).into(), "80")] {
            let y = euler(&mut velocity, &x, &shifted_grid(n, shift, top)).unwrap();
            close(&format!("euler {n} {shift} {name}"), y.data(), &f.list(&format!("euler.n{n}.shift{shift:?}.smax{name}.x")), single);
        }
    }
    for (n, shift) in [(20, 5.0), (8, 3.0)] {
        let y = unipc(&mut velocity, &x, &shifted_grid(n, shift, Sigma(80.0).into())).unwrap();
        close(&format!("unipc {n} {shift}"), y.data(), &f.list(&format!("unipc.n{n}.shift{shift:?}.x")), single);
    }
    for (n, shift) in [(20, 5.0), (10, 3.0)] {
        let y = unipc(&mut velocity, &x, &diffusers_grid(n, shift)).unwrap();
        close(&format!("diffusers' unipc {n} {shift}"), y.data(), &f.list(&format!("unipc_diffusers.n{n}.shift{shift:?}.x")), single);
    }
}

#[test]
fn adamw_is_pytorchs() {
    let f = Fixture::load("optim");
    for name in ["std", "rcm", "big"] {
        let h = f.list(&format!("{name}.hyper"));
        let settings = AdamW { schedule: Schedule::constant(h[0]), beta1: h[1], beta2: h[2], epsilon: h[3], decay: h[4] };
        let mut o = Optimizer::new(settings, &Weights::from([("w".into(), f.tensor("w0"))]), false, &exact()).unwrap();
        let (gradients, want) = (f.rows("grads"), f.rows(&format!("{name}.w")));
        for step in 0..gradients.batch() {
            let g = ir::tensor::Tensor::from_f64(ir::types::DType::F64, &[17], gradients.row(step)).unwrap();
            o.update(&Weights::from([("w".into(), g)]).into(), 0.0).unwrap();
            close(&format!("{name}, step {step}"), &o.weights().unwrap()["w"].to_f64(), want.row(step), 1e-12);
        }
    }
}

#[test]
fn a_dropped_condition_is_the_empty_one_and_a_kept_one_is_not() {
    let f = Fixture::load("toy_wan");
    let settings = |drop| flow::Settings { density: Density::COSMOS, uniform: 0.3, drop };
    let learner = || Learner::new(toy(), &f.weights("student"), AdamW::released(Schedule::constant(1e-3)), None, &exact()).unwrap();
    let after = |drop: f64, condition: &str| {
        let mut m = Flow::new(learner(), settings(drop));
        let batch = Batch { x0: f.tensor("x0"), condition: f.condition(condition), empty: f.condition("uncond") };
        let said = m.step(0, &batch, &Random::new(6)).unwrap();
        (m.weights().unwrap(), said)
    };
    assert!(after(1.0, "cond") == after(0.0, "uncond"));
    assert!(after(0.0, "cond") != after(0.0, "uncond"));
    let (mixed, said) = after(0.5, "cond");
    assert!(mixed != after(0.0, "cond").0 && mixed != after(1.0, "cond").0);
    assert!(said.get("loss").unwrap() > 0.0);
    let mut m = Flow::new(learner(), settings(0.5));
    let e = m.step(0, &Batch { x0: f.tensor("x0"), condition: f.condition("cond"), empty: Default::default() }, &Random::new(6)).unwrap_err();
    assert!(e.message.contains("`cond`") && e.hint.is_some());
}
