//! Networks against answers made with PyTorch and diffusers in float64 (`tests/fixtures/models`): outputs, tangents, gradients, for every
//! case, from every checkpoint layout.

#![allow(clippy::unwrap_used)] // tests panic to fail

use ir::dim::{Bindings, Name};
use ir::tensor::{Tensor, relative_error};
use ir::types::DType;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use trainer::net::checkpoint::Checkpoint;
use trainer::net::{Config, Network, Precision, Variant, arguments};
use trainer::scaling::Scaling;
use trainer::Trig;
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

/// Which arguments a case has, for a network of these sizes.
fn variant(config: &Config, f: &Fields, fps: Option<f64>, qk_eps: Option<f64>) -> Variant {
    arguments::variant(config, f, fps, qk_eps).unwrap()
}

/// The program of a network, with its weights in it.
fn program(n: &Network, weights: &Checkpoint, transforms: &[Transform], f: &Fields, on: On, dtype: DType) -> Program {
    let shapes: BTreeMap<&str, Vec<usize>> = n.weights.iter().map(|w| (&*w.name, w.shape.clone())).collect();
    let shape = |name: &str| f.get(name).map(|t| t.shape().to_vec()).or_else(|| shapes.get(name).cloned());
    let dims = n.function.bind(&shape, &Bindings::new()).unwrap_or_else(|e| panic!("{e}"));
    let mut p = Program::new(&n.function, transforms, &dims, &Options { on, dtype, threads: Some(2), ..Options::default() }).unwrap_or_else(|e| panic!("{e}"));
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
    let [x, t, c, image] = ["hidden_states", "timestep", "encoder_hidden_states", "encoder_hidden_states_image"];
    for path in cases(model) {
        let (fields, fps) = case(&path);
        let what = |s: &str| format!("{model} {} {s}", path.file_stem().unwrap().to_str().unwrap());
        let n = Network::build(&config, &variant(&config, &fields, fps, None), precision).unwrap();
        let context = if fields.contains_key(image) { vec![c, image] } else { vec![c] };
        // Compiled, the tangents of latent and time alone are the program of both with the other's tangent zero; the reference derives each.
        let both = on == On::Cpu;
        let groups: &[(&[&str], &[&str])] = if both { &[(&[x, t], &["jvp_xt", "jvp_x", "jvp_t"])] } else { &[(&[x, t], &["jvp_xt"]), (&[x], &["jvp_x"]), (&[t], &["jvp_t"])] };
        for (wrt, wanted) in groups.iter().copied().chain([(&context[..], &["jvp_ctx"][..])]) {
            let p = program(&n, &weights, &[Transform::Jvp(names(wrt))], &fields, on, dtype);
            for want in wanted {
                let mut fields = fields.clone();
                if let (true, Some(still)) = (both, [("jvp_x", t), ("jvp_t", x)].iter().find(|(w, _)| w == want).map(|(_, s)| format!("tangent.{s}"))) {
                    fields.insert(still.clone(), Tensor::zeros(DType::F32, fields[&still].shape()).unwrap());
                }
                let got = run(&p, &fields);
                close(&got["out"], &fields["out"], on, &what("out"));
                close(&got["out.t"], &fields[*want], on, &what(want));
            }
        }
        if fields.contains_key("eps1e-6.out") {
            let n = Network::build(&config, &variant(&config, &fields, fps, Some(1e-6)), precision).unwrap();
            let p = program(&n, &weights, &[Transform::Jvp(names(&[x, t]))], &fields, on, dtype);
            let got = run(&p, &fields);
            close(&got["out"], &fields["eps1e-6.out"], on, &what("eps1e-6.out"));
            close(&got["out.t"], &fields["eps1e-6.jvp_xt"], on, &what("eps1e-6.jvp_xt"));
        }
        let file = PathBuf::from(path.with_extension("").to_str().unwrap().to_string() + ".param_grads.safetensors");
        let params = if file.exists() { case(&file).0 } else { Fields::new() };
        assert!(params.is_empty() || params.len() == n.weights.len());
        let wrt: Vec<Name> = names(&[x, t]).into_iter().chain(names(&context)).chain(params.keys().map(|k| k.as_str().into())).collect();
        let p = program(&n, &weights, &[Transform::Vjp(wrt.clone())], &fields, on, dtype);
        let got = run(&p, &fields);
        for w in &wrt {
            let want = params.get(&**w).unwrap_or_else(|| &fields[&format!("grad.{w}")]);
            close(&got[&Name::from(format!("{w}.ct"))], want, on, &what(&format!("{w}.ct")));
        }
    }
}

/// A test for each network and machine. The first three have answers from diffusers; the others from `benches/torch_networks.py`, which agrees with
/// diffusers on the first three.
macro_rules! networks {
    ($($name:ident: $folder:literal;)*) => {
        mod reference {
            $(#[test] fn $name() { super::compare($folder, super::On::Reference); })*
        }
        mod cpu {
            $(#[test] fn $name() { super::compare($folder, super::On::Cpu); })*
        }
    };
}
networks! {
    wan: "wan_a";
    cosmos_image: "cosmos_t2i";
    cosmos_video: "cosmos_v2w";
    image_to_video: "wan_i2v";
    first_and_last_frame: "wan_flf2v";
    time_per_token: "wan_per_token";
    projected_text: "cosmos_25";
    learned_positions: "cosmos_learned";
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

/// The wrapper that makes a rectified-flow network a TrigFlow one, around each network, with its tangent.
#[test]
fn trigflow() {
    for (model, scale) in [("wan_a", 1000.0), ("cosmos_t2i", 1.0)] {
        let (config, weights) = open(model, &format!("{model}/config.json"));
        let (f, _) = case(&root().join(model).join("trigflow.safetensors"));
        let numbers = |n: &str| f[n].to_f64();
        let (x, dx, tau, dtau) = (numbers("xt"), numbers("t_xt"), numbers("time"), numbers("t_time"));
        let each = x.len() / tau.len();
        let at = |i: usize| (Scaling::at(Trig(tau[i / each]), scale), Scaling::rate(Trig(tau[i / each]), scale), dtau[i / each]);
        let tensor = |like: &str, g: &dyn Fn(usize) -> f64| {
            let n = f[like].len();
            Tensor::from_vec(f[like].shape(), (0..n).map(g).collect()).unwrap()
        };
        let mut args: Fields = ["encoder_hidden_states", "padding_mask"].iter().filter_map(|n| f.get(*n).map(|t| (n.to_string(), t.clone()))).collect();
        args.insert("hidden_states".into(), tensor("xt", &|i| at(i).0.input * x[i]));
        args.insert("timestep".into(), tensor("time", &|i| Scaling::at(Trig(tau[i]), scale).noise));
        args.insert("tangent.hidden_states".into(), tensor("xt", &|i| { let (k, r, d) = at(i); k.input * dx[i] + r.input * d * x[i] }));
        args.insert("tangent.timestep".into(), tensor("time", &|i| Scaling::rate(Trig(tau[i]), scale).noise * dtau[i]));
        let n = Network::build(&config, &variant(&config, &args, None, None), Precision::F64).unwrap();
        let p = program(&n, &weights, &[Transform::Jvp(vec!["hidden_states".into(), "timestep".into()])], &args, On::Reference, DType::F64);
        let got = run(&p, &args);
        let (v, dv) = (got["out"].to_f64(), got["out.t"].to_f64());
        let what = |s: &str| format!("{model} {s}");
        close(&got["out"], &f["net_out"], On::Reference, &what("net_out"));
        close(&got["out.t"], &f["t_net_out"], On::Reference, &what("t_net_out"));
        close(&tensor("xt", &|i| { let k = at(i).0; k.skip * x[i] + k.output * v[i] }), &f["x0"], On::Reference, &what("x0"));
        let dx0 = |i: usize| { let (k, r, d) = at(i); k.skip * dx[i] + k.output * dv[i] + d * (r.skip * x[i] + r.output * v[i]) };
        close(&tensor("xt", &dx0), &f["t_x0"], On::Reference, &what("t_x0"));
        close(&tensor("xt", &|i| { let (a, b) = Scaling::velocity(Trig(tau[i / each])); a * x[i] + b * v[i] }), &f["F"], On::Reference, &what("F"));
        // d/dtau of (C - S)/(C + S) is -2/(C + S)^2, that of 1/(C + S) is the rate of `skip`.
        let df = |i: usize| {
            let ((a, b), (k, r, d)) = (Scaling::velocity(Trig(tau[i / each])), at(i));
            a * dx[i] + b * dv[i] + d * (-2.0 * k.skip * k.skip * x[i] + r.skip * v[i])
        };
        close(&tensor("xt", &df), &f["t_F"], On::Reference, &what("t_F"));
    }
}

/// Every layout of a checkpoint is the same network.
#[test]
fn layouts() {
    for (model, layouts) in [
        ("wan_a", &[("wan_a/sharded", "wan_a/sharded/config.json"), ("wan_a/original", "wan_a/original/config.json"), ("wan_a/original_rcm", "wan_a/config.json"), ("wan_a/original_rcm", "wan_a/original/config.json")][..]),
        ("cosmos_v2w", &[("cosmos_v2w/sharded", "cosmos_v2w/sharded/config.json"), ("cosmos_v2w/original", "cosmos_v2w/config.json")]),
    ] {
        let (config, weights) = open(model, &format!("{model}/config.json"));
        let (fields, fps) = case(&cases(model)[1]);
        let n = Network::build(&config, &variant(&config, &fields, fps, None), Precision::F64).unwrap();
        let all = weights.load(&n.weights).unwrap();
        for (dir, file) in layouts {
            let (c, w) = open(dir, file);
            let n = Network::build(&c, &variant(&c, &fields, fps, None), Precision::F64).unwrap();
            assert_eq!(w.load(&n.weights).unwrap(), all, "{dir}");
            let got = run(&program(&n, &w, &[], &fields, On::Reference, DType::F64), &fields);
            close(&got["out"], &fields["out"], On::Reference, dir);
        }
        // Rounded weights: the same numbers, rounded.
        let (c, w) = open(&format!("{model}/sharded_bf16"), &format!("{model}/sharded_bf16/config.json"));
        assert_eq!(c, config);
        for ((name, got), (_, want)) in w.load(&n.weights).unwrap().iter().zip(&all) {
            assert_eq!(got.dtype(), DType::BF16, "{name}");
            assert_eq!(got.to_f64(), want.convert(DType::BF16).to_f64(), "{name}");
        }
        let got = run(&program(&n, &w, &[], &fields, On::Reference, DType::F64), &fields);
        let e = relative_error(&got["out"], &fields["out"]);
        assert!(e > 1e-5 && e < 2e-2, "{model}: {e:e} by weights in bf16");
    }
}

/// What a configuration leaves out comes from the weights' shapes.
#[test]
fn sizes_from_shapes() {
    let json = |s: &str| serde_json::from_str::<serde_json::Value>(s).unwrap();
    let (wan, cosmos) = (Checkpoint::open(&root().join("wan_a/original_rcm")).unwrap(), Checkpoint::open(&root().join("cosmos_v2w/original")).unwrap());
    let full = |m: &str| open(m, &format!("{m}/config.json")).0;
    let Config::Wan(want) = full("wan_a") else { panic!() };
    let Config::Wan(got) = Config::from_json(&json(r#"{"num_attention_heads": 2}"#), "c", &wan).unwrap_or_else(|_| Config::from_json(&json(r#"{"_class_name": "WanTransformer3DModel", "num_attention_heads": 2}"#), "c", &wan).unwrap()) else { panic!() };
    assert_eq!(trainer::net::wan::Config { rope_max_seq_len: 64, ..got }, want);
    let Config::Cosmos(got) = Config::from_json(&json(r#"{"_class_name": "CosmosTransformer3DModel", "rope_scale": [0.8333333333333334, 2.0, 2.0], "max_size": [8, 64, 64]}"#), "c", &cosmos).unwrap() else { panic!() };
    assert_eq!(Config::Cosmos(got), full("cosmos_v2w"));
    // The original's arguments are the same network.
    let original = r#"{"_class_name": "MinimalV1LVGDiT", "model_channels": 48, "rope_t_extrapolation_ratio": 0.8333333333333334, "rope_h_extrapolation_ratio": 2.0, "rope_w_extrapolation_ratio": 2.0,
        "max_frames": 8, "max_img_h": 64, "max_img_w": 64, "mlp_ratio": 2.0, "in_channels": 4, "out_channels": 4, "use_adaln_lora": true, "pos_emb_cls": "rope3d"}"#;
    assert_eq!(Config::from_json(&json(original), "c", &cosmos).unwrap(), full("cosmos_v2w"));
}

/// Parameter counts of the real networks, from their configurations alone.
#[test]
fn real_sizes() {
    let none = trainer::net::config::NoShapes;
    let wan = |heads: i64, ffn: i64, layers: i64| serde_json::json!({"_class_name": "WanTransformer3DModel", "num_attention_heads": heads, "ffn_dim": ffn, "num_layers": layers});
    let cosmos = |heads: i64, size: i64, layers: i64, channels: i64| {
        serde_json::json!({"_class_name": "CosmosTransformer3DModel", "num_attention_heads": heads, "attention_head_dim": size, "num_layers": layers, "in_channels": channels,
            "rope_scale": [1.0, 4.0, 4.0], "extra_pos_embed_type": null})
    };
    let i2v = serde_json::json!({"_class_name": "WanTransformer3DModel", "in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120});
    let original = serde_json::json!({"_class_name": "WanModel", "model_type": "i2v", "dim": 5120, "num_heads": 40, "ffn_dim": 13824, "num_layers": 40, "in_dim": 36, "out_dim": 16, "freq_dim": 256, "text_len": 512, "eps": 1e-6});
    let mut images = vec![];
    for (json, parameters, tensors) in [
        (wan(12, 8960, 30), 1_418_996_800, 825),
        (wan(40, 13824, 40), 14_288_491_584, 1095),
        (cosmos(20, 64, 20, 16), 597_536_000, 407),
        (cosmos(16, 128, 28, 16), 1_956_405_248, 567),
        (cosmos(16, 128, 28, 17), 1_956_413_440, 567),
        (cosmos(40, 128, 36, 16), 14_265_265_152, 727),
        (cosmos(40, 128, 36, 17), 14_265_265_152 + 20_480, 727),
        (i2v, 0, 0),
        (original, 0, 0),
    ] {
        let c = Config::from_json(&json, "c", &none).unwrap();
        let v = match &c {
            Config::Wan(c) => Variant { image: c.image_dim.is_some(), ..Variant::default() },
            Config::Cosmos(_) => Variant { padding_mask: Some(trainer::net::Resize::Same), ..Variant::default() },
            Config::Dit(_) => Variant::default(),
        };
        let n = Network::build(&c, &v, Precision::BF16).unwrap();
        ir::verify::verify(&n.function).unwrap_or_else(|e| panic!("{e:?}"));
        if parameters == 0 {
            images.push(n.weights);
        } else {
            assert_eq!((n.parameters(), n.weights.len()), (parameters, tensors), "{json}");
        }
    }
    let differs = images[0].iter().zip(&images[1]).find(|(a, b)| a != b);
    assert!(images[0].len() == images[1].len() && differs.is_none(), "{} and {} weights, {differs:?}", images[0].len(), images[1].len());
    assert!(images[0].iter().any(|w| *w.name == *"blocks.39.attn2.add_k_proj.weight"));
}

/// In bf16 the processor computes what the precision table says, element by element: against the reference evaluator running the same program, which
/// rounds where the program converts. With u = 2^-8, bf16's rounding error, an element differs by at most `BF16` u of the larger of itself and of its
/// tensor's root mean square: the two may round a value near a tie to different sides, in every layer, and never more.
#[test]
fn bf16_element_by_element() {
    /// Seen: 1.5 at most.
    const BF16: f64 = 4.0;
    let names = |list: &[&str]| list.iter().map(|n| Name::from(*n)).collect::<Vec<_>>();
    for model in ["wan_a", "cosmos_t2i"] {
        let (config, weights) = open(model, &format!("{model}/config.json"));
        let (fields, fps) = case(&cases(model)[0]);
        let n = Network::build(&config, &variant(&config, &fields, fps, None), Precision::BF16).unwrap();
        let matrix = n.weights.iter().find(|w| w.shape.len() > 1).unwrap().name.clone();
        let gradients = names(&["hidden_states", "encoder_hidden_states", &matrix]);
        for (what, transform) in [("jvp", Transform::Jvp(names(&["hidden_states", "timestep"]))), ("vjp", Transform::Vjp(gradients))] {
            let results = [(On::Reference, DType::F64), (On::Cpu, DType::BF16)].map(|(on, dtype)| {
                let mut p = program(&n, &weights, std::slice::from_ref(&transform), &fields, on, dtype);
                let types: BTreeMap<Name, DType> = p.params().iter().map(|q| (q.name.clone(), q.ty.dtype)).collect();
                for (name, t) in weights.load(&n.weights).unwrap() {
                    p.set(&name, &t.convert(types[&*name])).unwrap();
                }
                // Both sides get the numbers that the parameters' types can hold.
                let file = |n: &str| n.replace("tangent.", "").replace("cot.", "");
                let own = |k: &str| types.iter().find(|(n, _)| ***n == *k || n.strip_suffix(".t") == Some(&file(k)) || n.strip_suffix(".ct") == Some(&file(k))).map(|(_, d)| *d);
                let fields: Fields = fields.iter().filter(|(_, t)| t.dtype().is_float()).map(|(k, t)| (k.clone(), own(k).map_or_else(|| t.clone(), |d| t.convert(d)))).collect();
                run(&p, &fields)
            });
            for (name, want) in &results[0] {
                let (want, got) = (want.to_f64(), results[1][name].to_f64());
                let rms = (want.iter().map(|x| x * x).sum::<f64>() / want.len() as f64).sqrt();
                let worst = want.iter().zip(&got).map(|(w, g)| (w - g).abs() / w.abs().max(rms) * 256.0).fold(0.0, f64::max);
                println!("{model} {what} {name}: {} elements, worst {worst:.3} u", want.len());
                assert!(worst < BF16, "{model} {what} {name}: an element is off by {worst} u");
            }
        }
    }
}

/// Printed networks parse to themselves: checkpoint keys are names of the language.
#[test]
fn networks_are_text() {
    let (config, _) = open("wan_a", "wan_a/config.json");
    let n = Network::build(&config, &Variant::default(), Precision::F32).unwrap();
    let text = ir::text::print_function(&n.function);
    assert!(text.contains("blocks.0.attn1.to_q.weight: f32[E=48,D=48]"));
    let again = ir::text::parse(&text).unwrap_or_else(|e| panic!("{}", ir::diagnostic::render(&e, "printed", &text)));
    assert_eq!(ir::text::print_function(&again.functions[0]), text);
}
