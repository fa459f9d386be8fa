//! Outside references: every case of `tests/fixtures`, primal and tangent, on `reference`. The programs are written in the
//! text form only, and their tangents are derived.

#[path = "support/cases.rs"]
mod cases;

use cases::{Fields, load, on_interp, root, scores_program};
use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::tensor::{Tensor, relative_error};
use ir::types::DType;
use serde_json::Value;

/// The bound on the error of a machine that rounds its inputs to a type: relative Frobenius, against `reference` on the same.
const BOUNDS: [(DType, f64); 4] = [(DType::F64, 1e-10), (DType::F32, 2e-5), (DType::BF16, 5e-3), (DType::F16, 6e-4)];

/// `g` on this CPU, at its own tile sizes: with its own instructions, and in f32 also as an AVX2 machine if it is more than one.
fn on_cpu(g: &Function, inputs: &[Tensor], dims: &Bindings, dtype: DType) -> Vec<(String, Vec<Tensor>)> {
    thread_local! {
        static POOL: runtime::cpu::Pool = runtime::cpu::Pool::new(2);
    }
    let host = codegen::Target::host().unwrap();
    let narrow = codegen::Target::named("x86-64-v3").unwrap();
    let mut targets = vec![("cpu".to_string(), host.clone())];
    if dtype == DType::F32 && host.vector_bytes > narrow.vector_bytes {
        targets.push(("cpu as x86-64-v3".into(), narrow));
    }
    let run = |target: &codegen::Target| {
        let c = pushforward::machine::cpu_as(g, dims, dtype, target, &runtime::cache::Cache::new(None)).unwrap_or_else(|e| panic!("{e}"));
        POOL.with(|pool| pushforward::machine::run_cpu(&c, pool, inputs, dims).unwrap_or_else(|e| panic!("{e}")))
    };
    targets.into_iter().map(|(name, t)| (name, run(&t))).collect()
}

/// Evaluates the JVP of `f` along every parameter that has a tangent, and compares the results that `want` knows.
/// Returns the largest error.
fn compare(f: &Function, inputs: &Fields, want: &Fields, what: &str) -> f64 {
    let wrt: Vec<Name> = f.params.iter().filter(|p| inputs.contains_key(&format!("{}.t", p.name))).map(|p| p.name.clone()).collect();
    let g = passes::ad::jvp(f, &wrt).unwrap();
    ir::verify::verify(&g).unwrap();
    let dims = g.bind(&|n| inputs.get(n).map(|t| t.shape().to_vec()), &Bindings::new()).unwrap();
    let args: Vec<Tensor> = g.params.iter().map(|p| inputs.get(&*p.name).unwrap_or_else(|| panic!("{what}: no input {}", p.name)).clone()).collect();
    let out = ir::reference::evaluate(&g, &args, &dims).unwrap();
    let mut worst = 0f64;
    for (name, want) in want {
        let i = g.results.iter().position(|r| *r.name == **name).unwrap_or_else(|| panic!("{what}: no result {name}"));
        let error = relative_error(&out[i], want);
        assert!(error <= 1e-10, "{what}: {name} is off by {error:e}");
        worst = worst.max(error);
    }
    // Machines, on rounded inputs.
    for (dtype, bound) in BOUNDS {
        let rounded: Fields = inputs.iter().map(|(n, t)| (n.clone(), if t.dtype().is_float() { t.convert(dtype) } else { t.clone() })).collect();
        let args: Vec<Tensor> = g.params.iter().map(|p| rounded[&*p.name].clone()).collect();
        let want = ir::reference::evaluate(&g, &args, &dims).unwrap();
        let got = on_interp(&g, &rounded, &dims, dtype);
        let cpu = on_cpu(&g, &args, &dims, dtype);
        for (i, (r, want)) in g.results.iter().zip(&want).enumerate() {
            let norm = want.to_f64().iter().filter(|x| x.is_finite()).map(|x| x * x).sum::<f64>();
            let bound = if norm == 0.0 { 1e-6 } else { bound };
            for (machine, got) in std::iter::once(("interp", &got[&r.name])).chain(cpu.iter().map(|(n, out)| (n.as_str(), &out[i]))) {
                let error = relative_error(got, want);
                println!("  {what} {machine} {dtype} {} {error:.1e}", r.name);
                assert!(error <= bound, "{what}: {machine} {dtype}: {} is off by {error:e}", r.name);
            }
        }
    }
    worst
}

#[test]
fn attention() {
    let index: Vec<Value> = serde_json::from_slice(&std::fs::read(root().join("fixtures/attention/index.json")).unwrap()).unwrap();
    let mut run = 0;
    for p in &index {
        let file = format!("attention/attn_{:02}.safetensors", p["case"].as_u64().unwrap());
        let (fields, _) = load(&file);
        let text = scores_program(p, &["o", "lse"]);
        let module = ir::text::parse(&text).unwrap_or_else(|e| panic!("{}", ir::diagnostic::render(&e, &file, &text)));
        let mut inputs = Fields::new();
        for n in ["q", "k", "v", "bias", "kv_len", "alibi_slopes"] {
            for (from, to) in [(n.to_string(), n.to_string()), (format!("t{n}"), format!("{n}.t"))] {
                if let Some(t) = fields.get(&from) {
                    inputs.insert(to, t.clone());
                }
            }
        }
        let want = [("o", "o"), ("lse", "lse"), ("to", "o.t"), ("tlse", "lse.t")].map(|(n, r)| (r.to_string(), fields[n].clone())).into();
        let worst = compare(&module.functions[0], &inputs, &want, &file);
        println!("{file} {worst:.1e}");
        run += 1;
    }
    assert_eq!(run, std::fs::read_dir(root().join("fixtures/attention")).unwrap().count() - 1, "a case was left out");
}

#[test]
fn layers() {
    let text = std::fs::read_to_string(root().join("programs/layers.pf")).unwrap();
    let module = ir::text::parse(&text).unwrap_or_else(|e| panic!("{}", ir::diagnostic::render(&e, "layers.pf", &text)));
    let mut run = 0;
    for entry in std::fs::read_dir(root().join("fixtures/layers")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "safetensors") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap();
        let f = module.function(Some(name)).unwrap();
        let (fields, _) = load(&format!("layers/{name}.safetensors"));
        let mut inputs = Fields::new();
        for (k, t) in &fields {
            match k.split_once('.') {
                Some(("in" | "const", n)) => inputs.insert(n.into(), t.clone()),
                Some(("tan", n)) => inputs.insert(format!("{n}.t"), t.clone()),
                _ => None,
            };
        }
        let want = [("out".to_string(), fields["out"].clone()), ("out.t".to_string(), fields["tout"].clone())].into();
        println!("{name} {:.1e}", compare(f, &inputs, &want, name));
        run += 1;
    }
    assert_eq!(run, 29);
}

#[test]
fn printed_programs_parse_to_themselves() {
    let text = std::fs::read_to_string(root().join("programs/layers.pf")).unwrap();
    for f in ir::text::parse(&text).unwrap().functions {
        let wrt: Vec<Name> = f.params.iter().map(|p| p.name.clone()).collect();
        for g in [f.clone(), passes::ad::jvp(&f, &wrt).unwrap()] {
            let once = ir::text::print_function(&g);
            let again = ir::text::parse(&once).unwrap_or_else(|e| panic!("{once}\n{}", ir::diagnostic::render(&e, &f.name, &once)));
            // Names of unnamed values count from the printed program, so the second print is the fixed point.
            let strip = |s: &str| s.lines().map(|l| l.split("  //").next().unwrap_or("").to_string()).collect::<Vec<_>>();
            let twice = ir::text::print_function(&again.functions[0]);
            assert_eq!(strip(&once).len(), strip(&twice).len(), "{}", f.name);
            assert_eq!(again.functions[0].eqns.iter().map(|e| &e.op).collect::<Vec<_>>(), g.eqns.iter().map(|e| &e.op).collect::<Vec<_>>(), "{}", f.name);
            assert_eq!(again.functions[0].vars.iter().map(|v| &v.ty).collect::<Vec<_>>().len(), g.vars.len(), "{}", f.name);
            assert_eq!(strip(&twice), strip(&ir::text::print_function(&ir::text::parse(&twice).unwrap().functions[0])), "{}", f.name);
        }
    }
}
