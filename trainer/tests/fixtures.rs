//! Outside references (`tests/fixtures/rcm`): times, wrapper coefficients, samplers' grids and averages as NVIDIA's rCM and diffusers have them.

use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use trainer::density::Density;
use trainer::ema::PowerEma;
use trainer::sampler::{diffusers_grid, karras, neighbours, shifted_grid};
use trainer::scaling::Scaling;
use trainer::{Flow, Sigma, Trig};

fn load(name: &str) -> BTreeMap<String, Vec<f64>> {
    let bytes = std::fs::read(format!("{}/../tests/fixtures/rcm/{name}.safetensors", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let numbers = |t: &safetensors::tensor::TensorView| -> Vec<f64> {
        match t.dtype() {
            Dtype::F64 => t.data().chunks_exact(8).map(|c| f64::from_le_bytes(c.try_into().unwrap())).collect(),
            Dtype::F32 => t.data().chunks_exact(4).map(|c| f64::from(f32::from_le_bytes(c.try_into().unwrap()))).collect(),
            Dtype::I64 => t.data().chunks_exact(8).map(|c| i64::from_le_bytes(c.try_into().unwrap()) as f64).collect(),
            d => panic!("{d:?}"),
        }
    };
    SafeTensors::deserialize(&bytes).unwrap().tensors().iter().map(|(n, t)| (n.clone(), numbers(t))).collect()
}

fn close(what: &str, got: impl IntoIterator<Item = f64>, want: &[f64], bound: f64) {
    let got: Vec<f64> = got.into_iter().collect();
    assert_eq!(got.len(), want.len(), "{what}");
    assert!(!want.is_empty(), "{what}");
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() <= bound * w.abs().max(1e-3), "{what}: {g} but {w}");
    }
}

#[test]
fn times_are_drawn_as_rcm_draws_them() {
    let t = load("time");
    let mut seen = 0;
    for (name, want) in &t {
        let Some((kind, clock)) = name.rsplit_once('.') else { continue };
        let (density, random) = if let Some(p) = kind.strip_prefix("lognormal_") {
            let (mean, deviation) = p.split_once('_').unwrap();
            (Density::LogNormal { mean: mean.parse().unwrap(), deviation: deviation.parse().unwrap() }, &t["z"])
        } else if let Some(s) = kind.strip_prefix("shift_") {
            // rCM writes 0 for no shift.
            let s: f64 = s.parse().unwrap();
            (Density::Shifted(if s == 0.0 { 1.0 } else { s }), &t["u"])
        } else {
            continue;
        };
        let times = random.iter().map(|x| density.draw(*x));
        match clock {
            "rf" => close(name, times.map(|u| u.0), want, 1e-13),
            _ => close(name, times.map(|u| Trig::from(u).0), want, 1e-13),
        }
        seen += 1;
    }
    assert_eq!(seen, 16);
}

#[test]
fn the_wrapper_has_rcms_coefficients_and_their_derivatives() {
    let t = load("time");
    let at = |pick: fn(Scaling) -> f64, rate: bool| t["trig"].iter().map(move |x| pick(if rate { Scaling::rate(Trig(*x), 1000.0) } else { Scaling::at(Trig(*x), 1000.0) })).collect::<Vec<_>>();
    for (name, pick, rate) in [
        ("c_skip", (|s| s.skip) as fn(Scaling) -> f64, false),
        ("c_in", |s| s.input, false),
        ("c_out", |s| s.output, false),
        ("c_noise_1000", |s| s.noise, false),
        ("dc_in", |s| s.input, true),
        ("dc_out", |s| s.output, true),
        ("dc_noise_1000", |s| s.noise, true),
    ] {
        close(name, at(pick, rate), &t[&format!("trig.{name}")], 1e-13);
    }
}

#[test]
fn samplers_walk_the_same_grids() {
    let t = load("samplers");
    let mut seen = 0;
    for (name, want) in &t {
        let parts: BTreeMap<&str, f64> = ["n", "shift", "smax"].into_iter().filter_map(|k| {
            let tail = name.split(&format!(".{k}")).nth(1)?;
            // `5.0.smax80`: up to the first letter, without the dot before it.
            let end = tail.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(tail.len());
            Some((k, tail[..end].trim_end_matches('.').parse().ok()?))
        }).collect();
        let (n, shift) = (parts.get("n").copied().unwrap_or(0.0) as usize, parts.get("shift").copied().unwrap_or(1.0));
        let flow = |list: Vec<Flow>| list.into_iter().map(|u| u.0);
        match (name.split('.').next().unwrap(), name.rsplit('.').next().unwrap()) {
            ("euler", "sigmas") => close(name, flow(shifted_grid(n, shift, if parts["smax"] == 1.0 { Flow(1.0) } else { Sigma(parts["smax"]).into() })), want, 1e-12),
            ("unipc", "sigmas") => close(name, flow(shifted_grid(n, shift, Sigma(80.0).into())).chain([0.0]), want, 1e-12),
            ("unipc_diffusers", "sigmas_f32") => close(name, flow(diffusers_grid(n, shift)).chain([0.0]), want, 2e-7),
            ("unipc_diffusers", "timesteps") => close(name, flow(diffusers_grid(n, shift)).map(|u| (1000.0 * u).floor()), want, 0.0),
            ("cosmos_karras", "sigmas") => close(name, karras(n, 0.002, 80.0, 7.0).into_iter().map(|s| s.0), want, 1e-12),
            ("cosmos_karras", "rf_t") => close(name, karras(n, 0.002, 80.0, 7.0).into_iter().map(|s| Flow::from(s).0), want, 1e-12),
            _ => continue,
        }
        seen += 1;
    }
    assert_eq!(seen, 8 + 2 + 2 + 2 + 2 + 2);
}

#[test]
fn discrete_training_takes_neighbours() {
    let t = load("toy_wan");
    for skip in [1, 2] {
        let pairs: Vec<_> = t[&format!("dcm.skip{skip}.u")].iter().map(|w| neighbours(*w, skip, 48, 5.0)).collect();
        close("t0", pairs.iter().map(|p| p.0.0), &t[&format!("dcm.skip{skip}.t0")], 1e-12);
        close("tN", pairs.iter().map(|p| p.1.0), &t[&format!("dcm.skip{skip}.tN")], 1e-12);
    }
}

#[test]
fn averages_have_the_same_weights() {
    let t = load("optim");
    for s in ["0.05", "0.1", "0.2"] {
        let e = PowerEma::of_width(s.parse().unwrap()).unwrap();
        close("exponent", [e.exponent()], &t[&format!("ema.s{s}.exp")], 1e-12);
        close("beta", t["ema.iterations"].iter().map(|i| e.beta(*i as u64)), &t[&format!("ema.s{s}.beta")], 1e-11);
    }
}
