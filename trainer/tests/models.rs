//! Networks against answers made with PyTorch and diffusers in float64 (`tests/fixtures/models`): outputs, tangents, gradients, for every
//! case, from every checkpoint layout.

#![allow(clippy::unwrap_used)] // tests panic to fail

use ir::dim::{Bindings, Name};
use ir::tensor::{Tensor, relative_error};
use ir::types::DType;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use trainer::net::checkpoint::Checkpoint;
use trainer::net::{Config, Network, Precision, Resize, Time, Variant};
use trainer::program::{On, Options, Program, Transform};

type Fields = BTreeMap<String, Tensor>;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models")
}

/// A case's tensors, and its `fps`.
fn case(path: &Path) -> (Fields, Option<f64>) {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let params: serde_json::Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["params"]).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |v: &safetensors::tensor::TensorView| Tensor::from_safetensors(&format!("{:?}", v.dtype()), v.shape(), v.data()).unwrap();
    (file.tensors().iter().map(|(n, v)| (n.clone(), tensor(v))).collect(), params["fps"].as_f64())
}

/// Configuration and weights of a folder; the configuration from `config` where the folder has none.
fn open(dir: &str, config: &str) -> (Config, Checkpoint) {
    let c = Checkpoint::open(&root().join(dir)).unwrap();
    let path = root().join(config);
    let json = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    (Config::from_json(&json, config, &c).unwrap(), c)
}

/// Which arguments a case has.
fn variant(f: &Fields, fps: Option<f64>, qk_eps: Option<f64>) -> Variant {
    let same = |m: &Tensor| if m.shape()[2..] == f["hidden_states"].shape()[3..] { Resize::Same } else { Resize::Nearest };
    Variant {
        time: if f["timestep"].shape().len() == 5 { Time::PerFrame } else { Time::PerSample },
        fps,
        condition_mask: f.contains_key("condition_mask"),
        padding_mask: f.get("padding_mask").map(same),
        qk_eps,
        ..Variant::default()
    }
}

/// The program of a network, with its weights in it.
fn program(n: &Network, weights: &Checkpoint, transforms: &[Transform], f: &Fields, on: On, dtype: DType) -> Program {
    let shapes: BTreeMap<&str, Vec<usize>> = n.weights.iter().map(|w| (&*w.name, w.shape.clone())).collect();
    let shape = |name: &str| f.get(name).map(|t| t.shape().to_vec()).or_else(|| shapes.get(name).cloned());
    let dims = n.function.bind(&shape, &Bindings::new()).unwrap_or_else(|e| panic!("{e}"));
    let function = if on == On::Cpu { passes::inline(&n.function).unwrap() } else { n.function.clone() };
    let mut p = Program::new(&function, transforms, &dims, &Options { on, dtype, threads: Some(2), ..Options::default() }).unwrap_or_else(|e| panic!("{e}"));
    for (name, t) in weights.load(&n.weights).unwrap() {
        p.set(&name, &t).unwrap();
    }
    p
}

/// A case's tensors under the names that a program has for them: `tangent.X` is `X.t`, `cot.out` is `out.ct`.
fn run(p: &Program, f: &Fields) -> BTreeMap<Name, Tensor> {
    let file = |n: &str| match (n.strip_suffix(".t"), n.strip_suffix(".ct")) {
        (Some(x), _) => format!("tangent.{x}"),
        (_, Some(x)) => format!("cot.{x}"),
        _ => n.to_string(),
    };
    let given: Vec<(String, &Tensor)> = p.params().iter().filter_map(|q| f.get(&file(&q.name)).map(|t| (q.name.to_string(), t))).collect();
    p.run(&given.iter().map(|(n, t)| (n.as_str(), *t)).collect::<Vec<_>>()).unwrap_or_else(|e| panic!("{e}"))
}

/// The bound of a machine, relative Frobenius.
fn bound(on: On) -> f64 {
    if on == On::Cpu { 5e-5 } else { 1e-9 }
}

fn close(got: &Tensor, want: &Tensor, on: On, what: &str) {
    let e = relative_error(&got.convert(DType::F64), want);
    println!("{what} on {on:?}: {e:.1e}");
    assert!(e < bound(on), "{what} on {on:?}: {e:e}");
}

/// Every case of a network: its file.
fn cases(model: &str) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(root().join(model)).unwrap().map(|e| e.unwrap().path()).collect();
    all.retain(|p| p.file_name().unwrap().to_str().unwrap().starts_with("case_") && !p.to_str().unwrap().contains("param_grads"));
    all.sort();
    all
}

/// Outputs, tangents along each group of arguments, and gradients, of every case, on a machine.
fn compare(model: &str, on: On) {
    let dtype = if on == On::Cpu { DType::F32 } else { DType::F64 };
    let precision = Precision::of(dtype).unwrap();
    let (config, weights) = open(model, &format!("{model}/config.json"));
    let names = |list: &[&str]| list.iter().map(|s| (*s).into()).collect::<Vec<Name>>();
    let [x, t, c] = ["hidden_states", "timestep", "encoder_hidden_states"];
    for path in cases(model) {
        let (fields, fps) = case(&path);
        let what = |s: &str| format!("{model} {} {s}", path.file_stem().unwrap().to_str().unwrap());
        let n = Network::build(&config, &variant(&fields, fps, None), precision).unwrap();
        for (wrt, want) in [(&[x, t][..], "jvp_xt"), (&[x], "jvp_x"), (&[t], "jvp_t"), (&[c], "jvp_ctx")] {
            let p = program(&n, &weights, &[Transform::Jvp(names(wrt))], &fields, on, dtype);
            let got = run(&p, &fields);
            close(&got["out"], &fields["out"], on, &what("out"));
            close(&got["out.t"], &fields[want], on, &what(want));
        }
        if fields.contains_key("eps1e-6.out") {
            let n = Network::build(&config, &variant(&fields, fps, Some(1e-6)), precision).unwrap();
            let p = program(&n, &weights, &[Transform::Jvp(names(&[x, t]))], &fields, on, dtype);
            let got = run(&p, &fields);
            close(&got["out"], &fields["eps1e-6.out"], on, &what("eps1e-6.out"));
            close(&got["out.t"], &fields["eps1e-6.jvp_xt"], on, &what("eps1e-6.jvp_xt"));
        }
        let file = PathBuf::from(path.with_extension("").to_str().unwrap().to_string() + ".param_grads.safetensors");
        let params = if file.exists() { case(&file).0 } else { Fields::new() };
        assert!(params.is_empty() || params.len() == n.weights.len());
        let wrt: Vec<Name> = names(&[x, t, c]).into_iter().chain(params.keys().map(|k| k.as_str().into())).collect();
        let p = program(&n, &weights, &[Transform::Vjp(wrt.clone())], &fields, on, dtype);
        let got = run(&p, &fields);
        for w in &wrt {
            let want = params.get(&**w).unwrap_or_else(|| &fields[&format!("grad.{w}")]);
            close(&got[&Name::from(format!("{w}.ct"))], want, on, &what(&format!("{w}.ct")));
        }
    }
}

#[test]
fn wan_on_the_reference() {
    compare("wan_a", On::Reference);
}
#[test]
fn cosmos_image_on_the_reference() {
    compare("cosmos_t2i", On::Reference);
}
#[test]
fn cosmos_video_on_the_reference() {
    compare("cosmos_v2w", On::Reference);
}
#[test]
fn wan_on_the_cpu() {
    compare("wan_a", On::Cpu);
}
#[test]
fn cosmos_image_on_the_cpu() {
    compare("cosmos_t2i", On::Cpu);
}
#[test]
fn cosmos_video_on_the_cpu() {
    compare("cosmos_v2w", On::Cpu);
}

#[test]
fn the_image_network_is_a_function_of_its_arguments() {
    let config = trainer::net::dit::Config::digits();
    let n = Network::build(&Config::Dit(config.clone()), &Variant::default(), Precision::F64).unwrap();
    ir::verify::verify(&n.function).unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!(n.parameters(), 218_244);
    assert_eq!(n.inputs.iter().map(|i| &**i).collect::<Vec<_>>(), ["hidden_states", "timestep", "class_labels"]);
    let again = Config::from_json(&config.to_json(), "config.json", &trainer::net::config::NoShapes).unwrap();
    assert_eq!(again, Config::Dit(config));
    // Any numbers: distinct, small, the same on every run.
    let wave = |n: usize, phase: f64| (0..n).map(|i| (0.7 * i as f64 + phase).sin() * 0.2).collect::<Vec<f64>>();
    let mut args: Fields = n.weights.iter().enumerate().map(|(i, w)| (w.name.to_string(), Tensor::from_vec(&w.shape, wave(w.len(), i as f64)).unwrap())).collect();
    args.insert("hidden_states".into(), Tensor::from_vec(&[2, 1, 8, 8], wave(128, 0.3)).unwrap());
    args.insert("timestep".into(), Tensor::from_vec(&[2], vec![0.1, 0.9]).unwrap());
    let run = |labels: &[f64]| {
        let mut args = args.clone();
        args.insert("class_labels".into(), Tensor::from_f64(DType::I32, &[2], labels).unwrap());
        let dims = [("B".into(), 2)].into();
        let p = Program::new(&n.function, &[], &dims, &Options { on: On::Reference, dtype: DType::F64, ..Options::default() }).unwrap();
        p.run(&args.iter().map(|(n, t)| (n.as_str(), t)).collect::<Vec<_>>()).unwrap()["out"].to_f64()
    };
    let (a, b) = (run(&[3.0, 10.0]), run(&[3.0, 4.0]));
    assert_eq!(a.len(), 128);
    // A label changes its own sample, and no other.
    assert_eq!(a[..64], b[..64]);
    assert!(a[64..].iter().zip(&b[64..]).any(|(x, y)| (x - y).abs() > 1e-6));
}

/// Where the time of preparing each function of a network goes.
#[test]
fn probe() {
    let m = std::env::var("MODEL").unwrap_or_else(|_| "wan_a".into());
    let (config, weights) = open(&m, &format!("{m}/config.json"));
    let (fields, fps) = case(&cases(&m)[2]);
    let n = Network::build(&config, &variant(&fields, fps, None), Precision::F32).unwrap();
    let shapes: BTreeMap<&str, Vec<usize>> = n.weights.iter().map(|w| (&*w.name, w.shape.clone())).collect();
    let dims = n.function.bind(&|name: &str| fields.get(name).map(|t| t.shape().to_vec()).or_else(|| shapes.get(name).cloned()), &Bindings::new()).unwrap();
    drop(weights);
    for c in n.function.callees() {
        let start = std::time::Instant::now();
        let lap = |s: &str| println!("{} {s} {:.2}", c.name, start.elapsed().as_secs_f64());
        let simple = match passes::simplify::simplify(&c) { Ok(s) => s.function, Err(e) => { println!("{} simplify: {e}", c.name); continue } };
        lap("simplified");
        let fused = match passes::fuse::fuse(&simple, &passes::fuse::Options::stored(&dims, DType::F32)) { Ok(s) => s, Err(e) => { println!("{} fuse: {e}", c.name); continue } };
        lap("fused");
        println!("{} programs", fused.programs.len());
        let target = codegen::Target::host().unwrap();
        for p in &fused.programs {
            match codegen::compile(p, &target) { Ok(_) => lap(&format!("compiled {}", p.name)), Err(e) => println!("{}: {e}", p.name) }
        }
        for n in &fused.notes { println!("   {n}"); }
    }
}
