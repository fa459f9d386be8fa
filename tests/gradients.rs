//! Outside references for gradients, and for gradients of tangents: every field of `tests/fixtures`, on `reference`, on the tile
//! interpreter, and compiled.

#[path = "support/cases.rs"]
mod cases;

use cases::{Fields, load, on_interp, root, scores_program};
use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::tensor::{Tensor, relative_error};
use ir::types::DType;
use pushforward::input::Transform;
use serde_json::Value;

/// The bound on the error of a machine that rounds its inputs to a type, against `reference` on the same: relative Frobenius.
const BOUNDS: [(DType, f64); 2] = [(DType::F64, 1e-10), (DType::F32, 5e-5)];

/// `g` on this CPU, at its own tile sizes.
fn on_cpu(g: &Function, inputs: &[Tensor], dims: &Bindings, dtype: DType) -> Vec<Tensor> {
    thread_local! {
        static POOL: runtime::cpu::Pool = runtime::cpu::Pool::new(2);
    }
    let c = pushforward::machine::cpu(g, dims, dtype, &runtime::cache::Cache::new(None)).unwrap_or_else(|e| panic!("{e}"));
    POOL.with(|pool| pushforward::machine::run_cpu(&c, pool, inputs, dims).unwrap_or_else(|e| panic!("{e}")))
}

/// Relative Frobenius error; where the reference is zero but for rounding, the largest element.
fn off(got: &Tensor, want: &Tensor) -> f64 {
    let largest = |t: &Tensor| t.to_f64().into_iter().filter(|x| x.is_finite()).fold(0.0, |a, x| x.abs().max(a));
    if largest(want) < 1e-12 && got.to_f64().iter().all(|x| x.is_finite()) { largest(got) } else { relative_error(got, want) }
}

/// Derives `f` by `transforms`, evaluates it on `inputs`, and compares what `want` knows. Then machines, on rounded inputs.
/// Returns the results on `reference`.
fn compare(f: &Function, transforms: &[Transform], inputs: &Fields, want: &Fields, what: &str) -> Fields {
    let mut g = f.clone();
    for t in transforms {
        g = t.apply(&g).unwrap_or_else(|e| panic!("{what}: {e}"));
    }
    let dims = g.bind(&|n| inputs.get(n).map(|t| t.shape().to_vec()), &Bindings::new()).unwrap();
    let args: Vec<Tensor> = g.params.iter().map(|p| inputs.get(&*p.name).unwrap_or_else(|| panic!("{what}: no input {}", p.name)).clone()).collect();
    let out = ir::reference::evaluate(&g, &args, &dims).unwrap();
    for (name, want) in want {
        let i = g.results.iter().position(|r| *r.name == **name).unwrap_or_else(|| panic!("{what}: no result {name}"));
        let error = off(&out[i], want);
        assert!(error <= 1e-9, "{what} {transforms:?}: {name} is off by {error:e}");
    }
    let results = g.results.iter().map(|r| r.name.to_string()).zip(out).collect();
    if std::env::var_os("REFERENCE_ONLY").is_some() {
        return results;
    }
    for (dtype, bound) in BOUNDS {
        let rounded: Fields = inputs.iter().map(|(n, t)| (n.clone(), if t.dtype().is_float() { t.convert(dtype) } else { t.clone() })).collect();
        let args: Vec<Tensor> = g.params.iter().map(|p| rounded[&*p.name].clone()).collect();
        let want = ir::reference::evaluate(&g, &args, &dims).unwrap();
        let got = on_interp(&g, &rounded, &dims, dtype);
        let cpu = on_cpu(&g, &args, &dims, dtype);
        for ((r, want), cpu) in g.results.iter().zip(&want).zip(&cpu) {
            for (on, got) in [("interp", &got[&r.name]), ("cpu", cpu)] {
                let error = off(got, want);
                println!("  {what} {on} {dtype} {} {error:.1e}", r.name);
                assert!(error <= bound, "{what}: {on} {dtype}: {} is off by {error:e}", r.name);
            }
        }
    }
    results
}

/// The largest sum along the last axis.
fn row_sums(t: &Tensor) -> f64 {
    let n = t.shape().last().copied().unwrap_or(1);
    t.to_f64().chunks(n).map(|row| row.iter().sum::<f64>().abs()).fold(0.0, f64::max)
}

/// `names` with `suffix` behind each.
fn with(names: &[Name], suffix: &str) -> Vec<Name> {
    names.iter().map(|n| format!("{n}{suffix}").into()).collect()
}

#[test]
fn attention() {
    let index: Vec<Value> = serde_json::from_slice(&std::fs::read(root().join("fixtures/attention/index.json")).unwrap()).unwrap();
    let mut run = 0;
    for p in &index {
        let file = format!("attention/attn_{:02}.safetensors", p["case"].as_u64().unwrap());
        let (fields, _) = load(&file);
        let program = |results: &[&str]| {
            let text = scores_program(p, results);
            ir::text::parse(&text).unwrap_or_else(|e| panic!("{}", ir::diagnostic::render(&e, &file, &text))).functions.remove(0)
        };
        // Fields under the names of the command line.
        let pick = |pairs: &[(&str, &str)]| -> Fields { pairs.iter().filter_map(|(from, to)| fields.get(*from).map(|t| (to.to_string(), t.clone()))).collect() };
        let primals = [("q", "q"), ("k", "k"), ("v", "v"), ("bias", "bias"), ("kv_len", "kv_len"), ("alibi_slopes", "alibi_slopes")];
        let f = program(&["o"]);
        let wrt: Vec<Name> = ["q", "k", "v", "bias"].into_iter().filter(|n| f.param(n).is_some()).map(Name::from).collect();
        let inputs = pick(&[&primals[..], &[("do", "o.ct")]].concat());
        let want = pick(&[("o", "o"), ("dq", "q.ct"), ("dk", "k.ct"), ("dv", "v.ct"), ("dbias", "bias.ct")]);
        assert_eq!(want.len(), 1 + wrt.len());
        compare(&f, &[Transform::Vjp(wrt.clone())], &inputs, &want, &file);
        println!("{file} vjp");

        let both = program(&["o", "lse"]);
        let inputs = pick(&[&primals[..], &[("do", "o.ct"), ("dlse", "lse.ct")]].concat());
        let want = pick(&[("lse", "lse"), ("d2q", "q.ct"), ("d2k", "k.ct"), ("d2v", "v.ct"), ("d2bias", "bias.ct")]);
        assert_eq!(want.len(), 1 + wrt.len());
        compare(&both, &[Transform::Vjp(wrt.clone())], &inputs, &want, &file);
        println!("{file} vjp with lse");

        if p["second_order"].as_bool().unwrap() {
            let tangents = [("tq", "q.t"), ("tk", "k.t"), ("tv", "v.t"), ("tbias", "bias.t")];
            let along: Vec<Name> = wrt.iter().filter(|n| fields.contains_key(&format!("t{n}"))).cloned().collect();
            let inputs = pick(&[&primals[..], &tangents[..], &[("do", "o.ct"), ("dto", "o.t.ct")]].concat());
            let want = pick(&[
                ("to", "o.t"),
                ("jv_dq", "q.ct"), ("jv_dk", "k.ct"), ("jv_dv", "v.ct"), ("jv_dbias", "bias.ct"),
                ("jv_dtq", "q.t.ct"), ("jv_dtk", "k.t.ct"), ("jv_dtv", "v.t.ct"), ("jv_dtbias", "bias.t.ct"),
            ]);
            assert!(want.len() >= 7);
            let of: Vec<Name> = wrt.iter().cloned().chain(with(&along, ".t")).filter(|n| want.contains_key(&format!("{n}.ct"))).collect();
            compare(&f, &[Transform::Jvp(along), Transform::Vjp(of)], &inputs, &want, &file);
            println!("{file} vjp of jvp");
        }
        run += 1;
    }
    assert_eq!(run, std::fs::read_dir(root().join("fixtures/attention")).unwrap().count() - 1, "a case was left out");
}

#[test]
fn layers() {
    let text = std::fs::read_to_string(root().join("programs/layers.pf")).unwrap();
    let module = ir::text::parse(&text).unwrap_or_else(|e| panic!("{}", ir::diagnostic::render(&e, "layers.pf", &text)));
    let (mut run, mut second) = (0, 0);
    for entry in std::fs::read_dir(root().join("fixtures/layers")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "safetensors") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap();
        let f = module.function(Some(name)).unwrap();
        let (fields, _) = load(&format!("layers/{name}.safetensors"));
        let (mut inputs, mut want) = (Fields::new(), Fields::new());
        let (mut tangents, mut jv) = (Fields::new(), Fields::new());
        for (k, t) in &fields {
            match k.split_once('.') {
                Some(("in" | "const", n)) => inputs.insert(n.into(), t.clone()),
                Some(("tan", n)) => tangents.insert(format!("{n}.t"), t.clone()),
                Some(("grad", n)) => want.insert(format!("{n}.ct"), t.clone()),
                Some(("jv_grad", n)) => jv.insert(format!("{n}.ct"), t.clone()),
                Some(("jv_grad_tan", n)) => jv.insert(format!("{n}.t.ct"), t.clone()),
                _ => None,
            };
        }
        inputs.insert("out.ct".into(), fields["cot"].clone());
        let wrt: Vec<Name> = f.params.iter().map(|p| p.name.clone()).filter(|n| want.contains_key(&format!("{n}.ct"))).collect();
        compare(f, &[Transform::Vjp(wrt.clone())], &inputs, &want, name);
        run += 1;
        if !jv.is_empty() {
            inputs.extend(tangents);
            inputs.insert("out.t.ct".into(), fields["cot2"].clone());
            let of: Vec<Name> = wrt.iter().cloned().chain(with(&wrt, ".t")).filter(|n| jv.contains_key(&format!("{n}.ct"))).collect();
            jv.insert("out.t".into(), fields["tout"].clone());
            // A row's mean is taken out, so a constant added to x's rows changes nothing and every gradient in x sums to 0. The reference
            // for this one field does not, so it is not the gradient of what it says it is: it is left out, and the law is tested in its place
            // (and differences in `passes/tests/vjp.rs`).
            // (PyTorch in float64, checked again: the field is `func.grad` of `func.jvp` of its own `layer_norm`, bit for bit; of the norm written as a formula it is ours, as 4th-order differences say to 1e-11.)
            let centred = name.starts_with("layernorm") || name.starts_with("modulate");
            if centred {
                assert!(row_sums(&jv["x.ct"]) > 1e-3 && row_sums(&fields["grad.x"]) < 1e-12, "{name}: the reference is right now: compare with it");
                jv.remove("x.ct");
            }
            let out = compare(f, &[Transform::Jvp(wrt), Transform::Vjp(of)], &inputs, &jv, name);
            assert!(!centred || row_sums(&out["x.ct"]) < 1e-11, "{name}: x.ct");
            second += 1;
        }
        println!("{name}");
    }
    assert_eq!((run, second), (29, 29));
}
