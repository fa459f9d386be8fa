//! Networks against answers made with PyTorch and diffusers in float64 (`tests/fixtures/models`): outputs, tangents, gradients, for every
//! case, from every checkpoint layout.

#![allow(clippy::unwrap_used)] // tests panic to fail

use ir::dim::Bindings;
use ir::tensor::{Tensor, relative_error};
use ir::types::DType;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use trainer::net::checkpoint::Checkpoint;
use trainer::net::{Config, Network, Precision, Resize, Time, Variant};

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

/// Arguments and weights by parameter name, in f64.
fn arguments(n: &Network, weights: &Checkpoint, f: &Fields) -> Fields {
    let mut all: Fields = weights.load(&n.weights).unwrap().into_iter().map(|(n, t)| (n.to_string(), t.convert(DType::F64))).collect();
    all.extend(n.inputs.iter().map(|i| (i.to_string(), f[&**i].convert(DType::F64))));
    all
}

fn evaluate(f: &ir::graph::Function, args: &Fields) -> Fields {
    let dims = f.bind(&|n| args.get(n).map(|t| t.shape().to_vec()), &Bindings::new()).unwrap();
    let inputs: Vec<Tensor> = f.params.iter().map(|p| args.get(&*p.name).unwrap_or_else(|| panic!("no {}", p.name)).clone()).collect();
    let out = ir::reference::evaluate(f, &inputs, &dims).unwrap_or_else(|e| panic!("{e}"));
    f.results.iter().map(|r| r.name.to_string()).zip(out).collect()
}

/// `got` against `want`, to 1e-9 in the Frobenius norm.
fn close(got: &Tensor, want: &Tensor, what: &str) {
    let e = relative_error(&got.convert(DType::F64), want);
    println!("{what}: {e:.1e}");
    assert!(e < 1e-9, "{what}: {e:e}");
}

/// Every case of a network: its file.
fn cases(model: &str) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(root().join(model)).unwrap().map(|e| e.unwrap().path()).collect();
    all.retain(|p| p.file_name().unwrap().to_str().unwrap().starts_with("case_") && !p.to_str().unwrap().contains("param_grads"));
    all.sort();
    all
}

/// The same function without calls.
fn inline(f: &ir::graph::Function) -> ir::graph::Function {
    use ir::builder::Builder;
    use ir::graph::{Function, Var};
    use ir::prim::Prim;
    fn body(b: &mut Builder, f: &Function, mut map: BTreeMap<Var, Var>) -> Vec<Var> {
        for e in &f.eqns {
            let args: Vec<Var> = e.args.iter().map(|a| map[a]).collect();
            let out = match &e.op {
                Prim::Call(c) => {
                    let inner = c.function.params.iter().map(|p| p.var).zip(args).collect();
                    body(b, &c.function, inner)[c.result]
                }
                op => b.push(op.clone(), &args).unwrap(),
            };
            map.insert(e.out, out);
        }
        f.results.iter().map(|r| map[&r.var]).collect()
    }
    let mut b = Builder::new(f.name.clone());
    let map = f.params.iter().map(|p| (p.var, b.param(p.name.clone(), f.ty(p.var).clone()))).collect();
    let out = body(&mut b, f, map);
    for (r, v) in f.results.iter().zip(out) {
        b.result(r.name.clone(), v);
    }
    b.finish()
}

#[test]
fn tangents_and_gradients() {
    for model in ["wan_a", "cosmos_t2i", "cosmos_v2w"] {
        let (config, weights) = open(model, &format!("{model}/config.json"));
        for path in cases(model) {
            let (fields, fps) = case(&path);
            let what = |s: &str| format!("{} {s}", path.display());
            let n = Network::build(&config, &variant(&fields, fps, None), Precision::F64).unwrap();
            let f = inline(&n.function);
            let mut args = arguments(&n, &weights, &fields);
            let names = |list: &[&str]| list.iter().map(|s| (*s).into()).collect::<Vec<ir::dim::Name>>();
            let [x, t, c] = ["hidden_states", "timestep", "encoder_hidden_states"];
            for (wrt, want) in [(&[x, t][..], "jvp_xt"), (&[x], "jvp_x"), (&[t], "jvp_t"), (&[c], "jvp_ctx")] {
                let g = passes::ad::jvp(&f, &names(wrt)).unwrap();
                args.extend(wrt.iter().map(|w| (format!("{w}.t"), fields[&format!("tangent.{w}")].convert(DType::F64))));
                close(&evaluate(&g, &args)["out.t"], &fields[want], &what(want));
            }
            args.insert("out.ct".into(), fields["cot.out"].convert(DType::F64));
            let grads = path.with_extension("").to_str().unwrap().to_string() + ".param_grads.safetensors";
            let params = if Path::new(&grads).exists() { case(Path::new(&grads)).0 } else { Fields::new() };
            let mut wrt = vec![x.to_string(), t.into(), c.into()];
            wrt.extend(params.keys().cloned());
            let g = passes::ad::vjp(&f, &names(&wrt.iter().map(|s| s.as_str()).collect::<Vec<_>>())).unwrap();
            let got = evaluate(&g, &args);
            for w in &wrt {
                let want = params.get(w).unwrap_or_else(|| &fields[&format!("grad.{w}")]);
                close(&got[&format!("{w}.ct")], want, &what(w));
            }
        }
    }
}

#[test]
fn outputs() {
    for model in ["wan_a", "cosmos_t2i", "cosmos_v2w"] {
        let (config, weights) = open(model, &format!("{model}/config.json"));
        for path in cases(model) {
            let (fields, fps) = case(&path);
            for (eps, name) in [(None, "out"), (Some(1e-6), "eps1e-6.out")] {
                let Some(want) = fields.get(name) else { continue };
                let n = Network::build(&config, &variant(&fields, fps, eps), Precision::F64).unwrap_or_else(|e| panic!("{e}"));
                ir::verify::verify(&n.function).unwrap_or_else(|e| panic!("{e:?}"));
                let got = evaluate(&n.function, &arguments(&n, &weights, &fields));
                close(&got["out"], want, &format!("{} {name}", path.display()));
            }
        }
    }
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
        evaluate(&n.function, &args)["out"].to_f64()
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
    let args = arguments(&n, &weights, &fields);
    let dims = n.function.bind(&|n| args.get(n).map(|t| t.shape().to_vec()), &Bindings::new()).unwrap();
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
