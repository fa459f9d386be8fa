//! Stages of a configuration as training methods.

use super::Setup;
use crate::config::Stage;
use crate::density::Density;
use crate::method::dcm::Discrete;
use crate::method::dmd::Matching;
use crate::method::Learner;
use crate::method::rcm::{Rcm, Regression, Settings};
use crate::method::scm::{Consistency, Form, Placement, Tangent};
use crate::method::{Method, Weights, dmd2, flow, meanflow};
use crate::optim::{AdamW, Decay, Schedule};
use crate::phase::Plan;
use crate::random::Random;
use crate::time::Trig;
use ir::diagnostic::Error;
use ir::dim::Name;

/// The method of a stage. It begins with the averaged weights of the method before, where there is one, and with its fake score.
///
/// # Errors
/// No teacher where one is needed; a network that the method cannot train; those of programs.
pub fn method(setup: &Setup, s: &Stage, before: Option<&dyn Method>) -> Result<Box<dyn Method>, String> {
    let said = |e: Error| e.to_string();
    let network = setup.network(Some(s))?;
    let start = before.map_or_else(|| Ok(setup.start.clone()), |b| b.average()).map_err(|e| e.to_string())?;
    let start = match (s.method == "meanflow", super::networks::has_span(&start)) {
        (true, false) => setup.described.with_span(&start, setup.config.network.seed)?,
        (false, true) => setup.described.without_span(&start, &setup.options)?,
        _ => start,
    };
    // The student's turns, over which its learning rate goes.
    let plan = Plan { warm_up: if matches!(s.method.as_str(), "scm" | "rcm") { s.tangent_warm_up } else { 0 }, student_every: s.student_every, rollout: s.rollout };
    let turns = match s.method.as_str() {
        "dmd" | "rcm" => plan.student_count(s.iterations.saturating_sub(s.critic_first)),
        "dmd2" => plan.student_count(s.iterations),
        _ => s.iterations,
    };
    // The features of a discriminator are a result of the fake score's network, not of the student's.
    let own = setup.described.network(&setup.feed, s.method == "meanflow", false)?;
    let student = Learner::new(own.clone(), &start, adamw(s, s.rate, turns), Some(s.average_width), &setup.options).map_err(said)?;
    let density = Density::LogNormal { mean: s.time_mean, deviation: s.time_deviation };
    let matching = Matching {
        density: Density::LogNormal { mean: s.score_mean, deviation: s.score_deviation },
        rollout: Density::LogNormal { mean: s.rollout_mean, deviation: s.rollout_deviation },
        start: Trig(s.rollout_start),
        fixed: (!s.rollout_times.is_empty()).then(|| s.rollout_times.iter().map(|t| Trig(*t)).collect()),
        scale: s.lambda * if s.method == "rcm" { s.consistency_scale } else { 1.0 },
    };
    let consistency = Consistency {
        form: if s.form == "trig" { Form::Trig } else { Form::Flow },
        placement: Placement::Released,
        tangent: match s.tangent.as_str() {
            "finite" => Tangent::Finite(s.difference),
            "finite-time" => Tangent::FiniteTime(s.difference),
            _ => Tangent::Forward,
        },
        density,
        constant: s.tangent_constant,
        scale: s.consistency_scale,
    };
    let critic = adamw(&Stage { schedule: "constant".into(), ..s.clone() }, s.critic_rate, s.iterations);
    let fake_start = || -> Result<Weights, String> {
        let of_before = before.map(|b| b.state().map(|s| fake_weights(&s))).transpose().map_err(|e| e.to_string())?.unwrap_or_default();
        if of_before.is_empty() { setup.teacher.clone().ok_or_else(|| format!("`{}` needs a teacher", s.method)) } else { Ok(of_before) }
    };
    let rcm = |student: Learner, consistency: Option<Regression>, matched: bool| -> Result<Box<dyn Method>, String> {
        let fake = if matched { Some(Learner::new(own.clone(), &fake_start()?, critic, None, &setup.options).map_err(said)?) } else { None };
        let settings = Settings { consistency, matching: matched.then(|| matching.clone()), plan, critic_first: if matched { s.critic_first } else { 0 }, monitor_every: s.monitor_every };
        Ok(Box::new(Rcm::new(student, fake, setup.guided()?, settings).map_err(said)?))
    };
    match s.method.as_str() {
        "flow" => Ok(Box::new(flow::Flow::new(student, flow::Settings { density, uniform: s.uniform, drop: s.drop }))),
        "scm" => rcm(student, Some(Regression::Continuous(consistency)), false),
        "dcm" => {
            let d = Discrete { steps: s.grid_steps as usize, skip: s.grid_skip as usize, shift: s.grid_shift, scale: s.consistency_scale };
            rcm(student, Some(Regression::Discrete(d)), false)
        }
        "rcm" => rcm(student, Some(Regression::Continuous(consistency)), true),
        "dmd" => rcm(student, None, true),
        "dmd2" => {
            let settings = dmd2::Settings {
                matching,
                student_every: s.student_every,
                rollout: s.rollout,
                generator_weight: s.generator_weight,
                discriminator_weight: s.discriminator_weight,
                width: s.discriminator_width as i64,
            };
            let random = Random::new(setup.config.network.seed);
            Ok(Box::new(dmd2::Dmd2::new(student, network, &fake_start()?, critic, setup.guided()?, settings, &random, &setup.options).map_err(said)?))
        }
        "meanflow" => {
            let settings = meanflow::Settings { density, equal: s.equal, power: s.power, constant: s.constant };
            Ok(Box::new(meanflow::MeanFlow::new(student, meanflow::Target::Teacher(setup.guided()?), settings).map_err(said)?))
        }
        other => Err(format!("no method `{other}`")),
    }
}

/// The weights of a fake score in a method's state, by the names of the network.
fn fake_weights(state: &std::collections::BTreeMap<String, ir::tensor::Tensor>) -> Weights {
    state.iter().filter_map(|(k, t)| Some((Name::from(k.strip_prefix("fake.weights.")?), t.clone()))).collect()
}

fn adamw(s: &Stage, rate: f64, turns: u64) -> AdamW {
    let (steps, last) = (turns.max(1), s.final_rate);
    let decay = match s.schedule.as_str() {
        "linear" => Decay::Linear { steps, last },
        "cosine" => Decay::Cosine { steps, last },
        _ => Decay::Constant,
    };
    AdamW { schedule: Schedule { rate, warm_up: s.rate_warm_up, decay }, beta1: s.beta1, beta2: s.beta2, epsilon: 1e-8, decay: s.weight_decay }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Purpose};
    use crate::program::On;
    use crate::train::Task;

    #[test]
    fn a_stage_of_one_time_goes_on_from_one_of_two() {
        let stage = |method: &str| Stage { method: method.into(), iterations: 1, batch: 2, ..Stage::default() };
        let mut config = Config { stages: vec![stage("meanflow"), stage("scm"), stage("meanflow")], ..Config::default() };
        config.network.teacher = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/distill/teacher").into();
        let mut setup = Setup::new(config, Purpose::Distill).unwrap();
        setup.options.on = On::Reference;
        let mut before: Option<Box<dyn Method>> = None;
        for k in 0..3 {
            let mut m = setup.method(k, before.as_deref()).unwrap();
            let random = crate::train::random_of(0, k);
            let said = m.step(0, &setup.batch(k, 0, &random).unwrap(), &random).unwrap();
            assert!(said.get("loss").unwrap().is_finite());
            before = Some(m);
        }
    }
}
