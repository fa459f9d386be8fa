//! The compositions of `nn`, evaluated by the reference, against answers made with PyTorch and diffusers in float64.

#![allow(clippy::unwrap_used)] // tests panic to fail

use ir::builder::Builder;
use ir::diagnostic::Error;
use ir::dim::{Bindings, Dim, Name};
use ir::graph::Var;
use ir::nn::{self, Arg};
use ir::reference::evaluate;
use ir::tensor::{Tensor, relative_error};
use ir::types::{Axis, DType, Type};
use std::collections::BTreeMap;

type File = BTreeMap<String, Tensor>;

fn read(name: &str) -> File {
    let path = format!("{}/../tests/fixtures/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(n, v)| (n, Tensor::from_safetensors(&format!("{:?}", v.dtype()), v.shape(), v.data()).unwrap())).collect()
}

/// Axes by name; `P=D/2` gives a size.
fn axes(names: &str) -> Vec<Axis> {
    let axis = |s: &str| match s.split_once('=') {
        Some((n, "D/2")) => Axis::new(n, Dim::sym("D").checked_div(&Dim::fixed(2)).unwrap()),
        Some((n, v)) => Axis::new(n, Dim::fixed(v.parse().unwrap())),
        None => Axis::sym(s),
    };
    names.split(',').filter(|s| !s.is_empty()).map(axis).collect()
}

/// Builds with parameters `(tensor in the file, axes)`, evaluates, and compares with `out`. Axes of size one in the file
/// that the parameter lacks are dropped.
fn check(name: &str, params: &[(&str, &str)], build: impl Fn(&mut Builder, &[Var]) -> Result<Var, Error>) {
    let file = read(&format!("layers/{name}"));
    let mut b = Builder::new(name);
    let mut inputs = vec![];
    let vars: Vec<Var> = params
        .iter()
        .map(|(p, ax)| {
            let ax = axes(ax);
            let x = &file[*p];
            let shape: Vec<usize> = if x.shape().len() == ax.len() { x.shape().to_vec() } else { x.shape().iter().copied().filter(|n| *n != 1).collect() };
            let shape = if shape.len() < ax.len() { [vec![1; ax.len() - shape.len()], shape].concat() } else { shape };
            inputs.push(x.clone().reshape(&shape).unwrap());
            b.param(*p, Type::new(DType::F64, ax))
        })
        .collect();
    let out = build(&mut b, &vars).unwrap_or_else(|e| panic!("{name}: {e}"));
    b.result("out", out);
    let got = evaluate(&b.finish(), &inputs, &Bindings::new()).unwrap_or_else(|e| panic!("{name}: {e}")).remove(0);
    let error = relative_error(&got, &file["out"]);
    assert!(error < 1e-13, "{name}: error {error:e}, shapes {:?} {:?}", got.shape(), file["out"].shape());
}

fn call(b: &mut Builder, name: &str, args: &[Arg]) -> Result<Var, Error> {
    (nn::lookup(name).unwrap().build)(b, args)
}
fn d() -> Arg {
    Arg::Axis(Axis::sym("D"))
}
use Arg::{Number, Value};

#[test]
fn activations() {
    check("gelu_tanh", &[("in.x", "D")], |b, v| call(b, "gelu_tanh", &[Value(v[0])]));
    check("gelu_erf", &[("in.x", "D")], |b, v| call(b, "gelu", &[Value(v[0])]));
    check("silu", &[("in.x", "D")], |b, v| call(b, "silu", &[Value(v[0])]));
    check("softmax_0", &[("in.x", "A,B,D")], |b, v| call(b, "softmax", &[Value(v[0]), d()]));
    check("softmax_1", &[("in.x", "A,D")], |b, v| call(b, "softmax", &[Value(v[0]), d()]));
}

#[test]
fn norms() {
    check("layernorm_0", &[("in.x", "B,N,D")], |b, v| call(b, "layer_norm", &[Value(v[0]), d(), Number(1e-6)]));
    check("layernorm_1", &[("in.x", "B,N,D"), ("in.w", "D"), ("in.b", "D")], |b, v| {
        call(b, "layer_norm", &[Value(v[0]), d(), Number(1e-6), Value(v[1]), Value(v[2])])
    });
    check("rmsnorm_0", &[("in.x", "B,N,D"), ("in.w", "D")], |b, v| call(b, "rms_norm", &[Value(v[0]), d(), Number(1e-6), Value(v[1])]));
    check("rmsnorm_1", &[("in.x", "B,N,H,D"), ("in.w", "D")], |b, v| call(b, "rms_norm", &[Value(v[0]), d(), Number(1e-5), Value(v[1])]));
    for (name, m) in [("modulate_0", "B,D"), ("modulate_1", "B,D"), ("modulate_pertoken_0", "B,N,D"), ("modulate_pertoken_1", "B,N,D")] {
        check(name, &[("in.x", "B,N,D"), ("in.shift", m), ("in.scale", m)], |b, v| {
            call(b, "adaln", &[Value(v[0]), Value(v[1]), Value(v[2]), d(), Number(1e-6)])
        });
    }
}

#[test]
fn linear_layers() {
    check("linear_0", &[("in.x", "B,N,D"), ("in.w", "E,D"), ("in.b", "E")], |b, v| call(b, "linear", &[Value(v[0]), Value(v[1]), Value(v[2])]));
    check("linear_1", &[("in.x", "B,N,D"), ("in.w", "E,D")], |b, v| call(b, "linear", &[Value(v[0]), Value(v[1])]));
    check("ffn_gelu_tanh", &[("in.x", "B,N,D"), ("in.w1", "F,D"), ("in.b1", "F"), ("in.w2", "D2,F"), ("in.b2", "D2")], |b, v| {
        let h = nn::linear(b, v[0], v[1], Some(v[2]))?;
        let h = nn::gelu_tanh(b, h)?;
        nn::linear(b, h, v[3], Some(v[4]))
    });
}

#[test]
fn rotary_embeddings() {
    for name in ["rope_interleaved", "rope_half"] {
        for i in 0..2 {
            check(&format!("{name}_{i}"), &[("in.x", "B,N,H,D"), ("const.angles", "N,P=D/2")], |b, v| call(b, name, &[Value(v[0]), Value(v[1]), d()]));
        }
    }
}

#[test]
fn time_embeddings() {
    let dim = |n: i64| Axis::new("D", Dim::fixed(n));
    check("time_sinusoid_0", &[("in.t", "B")], |b, v| call(b, "time_embedding", &[Value(v[0]), Arg::Axis(dim(256))]));
    check("time_sinusoid_1", &[("in.t", "B")], |b, v| call(b, "time_embedding", &[Value(v[0]), Arg::Axis(dim(32)), Number(1e4)]));
    let weights = [("in.t", "B"), ("in.w1", "E,D=32"), ("in.b1", "E"), ("in.w2", "F,E"), ("in.b2", "F"), ("in.w3", "G,F"), ("in.b3", "G")];
    check("time_embed_wan", &weights, |b, v| {
        let s = nn::time_embedding(b, v[0], &dim(32), 1e4)?;
        let h = nn::linear(b, s, v[1], Some(v[2]))?;
        let h = nn::silu(b, h)?;
        let h = nn::linear(b, h, v[3], Some(v[4]))?;
        let h = nn::silu(b, h)?;
        nn::linear(b, h, v[5], Some(v[6]))
    });
}

/// Scores with the fixtures' masks: softmax attention, its log-sum-exp, and rows without a visible key.
#[test]
fn attention_and_dead_rows() {
    let mut dead = 0;
    let mut seen = 0;
    for entry in std::fs::read_dir(format!("{}/../tests/fixtures/attention", env!("CARGO_MANIFEST_DIR"))).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_string();
        if path.extension().is_none_or(|e| e != "safetensors") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let (_, meta) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let params: serde_json::Value = serde_json::from_str(&meta.metadata().as_ref().unwrap()["params"]).unwrap();
        let file = read(&format!("attention/{stem}"));
        let (q, k, v) = (&file["q"], &file["k"], &file["v"]);
        let (h, hkv) = (q.shape()[1], k.shape()[1]);
        if h != hkv || params["alibi"] == true || file.contains_key("bias") {
            continue;
        }
        let (nb, nq, nk) = (q.shape()[0], q.shape()[2] as i64, k.shape()[2] as i64);
        // Visible keys as a mask, so that this test needs no position arithmetic.
        let causal = params["causal"] != "none";
        let offset = if params["causal"] == "top_left" { 0 } else { nk - nq };
        let (left, right) = (params["window"][0].as_i64().unwrap(), params["window"][1].as_i64().unwrap());
        let visible: Vec<f64> = (0..nb as i64 * nq * nk)
            .map(|x| {
                let (n, i, j) = (x / (nq * nk), x / nk % nq, x % nk);
                let seen = (!causal || j <= i + offset) && (left < 0 || j >= i + offset - left) && (right < 0 || j <= i + offset + right);
                f64::from(seen && params["kv_len"][n as usize].as_i64().is_none_or(|len| j < len))
            })
            .collect();
        let masked = visible.contains(&0.0);
        let cap = params["softcap"].as_f64().filter(|c| *c > 0.0);
        let mut b = Builder::new("attention");
        let p = |b: &mut Builder, n: &str, a: &str, d: DType| b.param(n, Type::new(d, axes(a)));
        let (qv, kv, vv) = (p(&mut b, "q", "B,H,I,D", DType::F64), p(&mut b, "k", "B,H,J,D", DType::F64), p(&mut b, "v", "B,H,J,E", DType::F64));
        let mask = p(&mut b, "mask", "B,I,J", DType::Bool);
        let scale = b.constant(params["scale"].as_f64().unwrap(), DType::F64);
        let never = b.constant(f64::NEG_INFINITY, DType::F64);
        let s = b.contract(qv, kv, &["D".into()]).unwrap();
        let s = b.mul(s, scale).unwrap();
        let s = match cap {
            Some(c) => call(&mut b, "softcap", &[Value(s), Number(c)]).unwrap(),
            None => s,
        };
        let s = b.elementwise(ir::prim::Elementwise::Select, &[mask, s, never]).unwrap();
        let j: Name = "J".into();
        let w = nn::softmax(&mut b, s, &j).unwrap();
        let o = b.contract(w, vv, std::slice::from_ref(&j)).unwrap();
        let o = b.permute(o, &["B".into(), "H".into(), "I".into(), "E".into()]).unwrap();
        let lse = nn::logsumexp(&mut b, s, &j).unwrap();
        let lse = b.permute(lse, &["B".into(), "H".into(), "I".into()]).unwrap();
        let log = nn::log_softmax(&mut b, s, &j).unwrap();
        b.result("o", o);
        b.result("lse", lse);
        b.result("log", log);
        if !masked && cap.is_none() {
            let direct = nn::attention(&mut b, qv, kv, vv, Some(scale)).unwrap();
            b.result("direct", direct);
        }
        let mask = Tensor::from_f64(DType::Bool, &[nb, nq as usize, nk as usize], &visible).unwrap();
        let got = evaluate(&b.finish(), &[q.clone(), k.clone(), v.clone(), mask], &Bindings::new()).unwrap();
        let (eo, el) = (relative_error(&got[0], &file["o"]), relative_error(&got[1], &file["lse"]));
        assert!(eo < 1e-12 && el < 1e-12, "{stem}: o {eo:e}, lse {el:e}");
        assert!(got[2].to_f64().iter().all(|x| !x.is_nan()), "{stem}: NaN in log_softmax");
        if let Some(direct) = got.get(3) {
            assert!(relative_error(direct, &file["o"]) < 1e-12, "{stem}: nn::attention");
        }
        dead += file["lse"].to_f64().iter().filter(|x| x.is_infinite()).count();
        seen += 1;
    }
    assert!(seen >= 14 && dead > 0, "{seen} files, {dead} dead rows");
}

#[test]
fn the_rest_against_hand_values() {
    let mut b = Builder::new("f");
    let x = b.param("x", Type::new(DType::F32, axes("N,D=3")));
    let labels = b.param("labels", Type::new(DType::I32, axes("N")));
    let axis = || Arg::Axis(Axis::new("D", Dim::fixed(3)));
    for (name, args) in [
        ("cross_entropy", vec![Value(x), Value(labels), axis()]),
        ("log_softmax", vec![Value(x), axis()]),
        ("softcap", vec![Value(x), Number(2.0)]),
        ("relu", vec![Value(x)]),
        ("sigmoid", vec![Value(x)]),
        ("mean", vec![Value(x), Arg::Axes(axes("N")), axis()]),
        ("modulate", vec![Value(x), Value(x), Value(x)]),
        ("rms_norm", vec![Value(x), axis(), Number(0.0)]),
    ] {
        let v = call(&mut b, name, &args).unwrap();
        b.result(name, v);
    }
    let data = [-1.0, 0.0, 2.0, 5.0, 5.0, 5.0];
    let inputs = [Tensor::from_f64(DType::F32, &[2, 3], &data).unwrap(), Tensor::from_f64(DType::I32, &[2], &[2.0, 0.0]).unwrap()];
    let got = evaluate(&b.finish(), &inputs, &Bindings::new()).unwrap();
    let lse = ((-1f64).exp() + 1.0 + 2f64.exp()).ln();
    let close = |got: &Tensor, want: &[f64]| assert!(relative_error(got, &Tensor::from_f64(DType::F64, got.shape(), want).unwrap()) < 1e-14, "{got:?} {want:?}");
    let third = 3f64.ln();
    close(&got[0], &[lse - 2.0, third]);
    close(&got[1], &[-1.0 - lse, -lse, 2.0 - lse, -third, -third, -third]);
    close(&got[2], &data.map(|x| 2.0 * (x / 2.0).tanh()));
    close(&got[3], &data.map(|x| x.max(0.0)));
    close(&got[4], &data.map(|x| 1.0 / (1.0 + (-x).exp())));
    close(&got[5], &[16.0 / 6.0]);
    close(&got[6], &data.map(|x| x * (1.0 + x) + x));
    let r = (5.0f64 / 3.0).sqrt();
    close(&got[7], &[-1.0 / r, 0.0, 2.0 / r, 1.0, 1.0, 1.0]);
}

#[test]
fn arguments_are_checked() {
    let mut b = Builder::new("f");
    let x = b.param("x", Type::new(DType::F32, axes("N,D")));
    let w = b.param("w", Type::new(DType::F32, axes("E,K")));
    let mut error = |name: &str, args: &[Arg]| call(&mut b, name, args).unwrap_err().message;
    assert_eq!(error("softmax", &[Value(x)]), "softmax: takes 2 arguments, but 1 given");
    assert_eq!(error("softmax", &[Value(x), Number(1.0)]), "softmax: argument 2 is the number 1, but must be an axis");
    assert_eq!(error("rms_norm", &[Value(x)]), "rms_norm: takes 3 to 4 arguments, but 1 given");
    assert_eq!(error("linear", &[Value(x), Value(w)]), "linear: the last axis of f32[N,D] is `D`, which weight f32[E,K] has not");
    assert!(error("rope_half", &[Value(x), Value(w), d()]).contains("must have one axis"));
    assert!(error("softmax", &[Value(x), Arg::Axis(Axis::sym("Z"))]).contains("has no axis `Z`"));
    assert!(nn::lookup("nothing").is_none());
    assert!(nn::ALL.iter().all(|c| c.usage.starts_with(c.name)));
}
