//! The command line's contract, on the binary itself: exit codes, JSON, files, messages.

use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

const ATTENTION: &str = "examples/attention.pf";

/// The binary in the package's folder, with a cache of its own.
fn pushforward(dir: &TempDir, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pushforward")).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).env("PUSHFORWARD_CACHE", dir.path().join("cache")).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Standard output of a run that must be good.
fn good(dir: &TempDir, args: &[&str]) -> String {
    let out = pushforward(dir, args);
    assert_eq!(out.status.code(), Some(0), "{args:?}: {}", text(&out.stderr));
    text(&out.stdout)
}

fn json(dir: &TempDir, args: &[&str]) -> Value {
    serde_json::from_str(&good(dir, args)).unwrap_or_else(|e| panic!("{args:?}: {e}"))
}

/// The message of a run that must end with `code`.
fn bad(dir: &TempDir, code: i32, args: &[&str]) -> String {
    let out = pushforward(dir, args);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {}{}", text(&out.stdout), text(&out.stderr));
    text(&out.stderr)
}

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn path(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).display().to_string()
}

fn write(dir: &TempDir, name: &str, content: &str) -> String {
    std::fs::write(dir.path().join(name), content).unwrap();
    path(dir, name)
}

/// Names, types and shapes of a file of tensors.
fn listing(file: impl AsRef<Path>) -> Vec<(String, String, Vec<usize>)> {
    let bytes = std::fs::read(file).unwrap();
    let mut list: Vec<_> = SafeTensors::deserialize(&bytes).unwrap().tensors().iter().map(|(n, t)| (n.clone(), format!("{:?}", t.dtype()), t.shape().to_vec())).collect();
    list.sort();
    list
}

fn tensor_file(dir: &TempDir, name: &str, tensors: &[(&str, &[usize], Vec<f32>)]) -> String {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(.., v)| v.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|((n, s, _), b)| (n.to_string(), safetensors::tensor::TensorView::new(safetensors::Dtype::F32, s.to_vec(), b).unwrap()));
    std::fs::write(dir.path().join(name), safetensors::serialize(views, &None).unwrap()).unwrap();
    path(dir, name)
}

fn norms(v: &Value) -> Vec<(String, f64)> {
    v["results"].as_array().unwrap().iter().map(|r| (r["name"].as_str().unwrap().into(), r["norm"].as_f64().unwrap())).collect()
}

#[test]
fn every_command_has_help_with_an_example() {
    let d = dir();
    let all = good(&d, &["--help"]);
    assert!(all.contains("Exit codes: 0 good, 1 the input or the check is bad, 2 usage.") && all.contains("Example: pushforward"));
    for c in ["run", "check", "compile", "bench", "explain", "opt", "devices"] {
        assert!(all.contains(&format!("  {c} ")), "{c}");
        assert!(good(&d, &[c, "--help"]).contains(&format!("Example: pushforward {c} ")), "{c}");
    }
}

#[test]
fn usage_errors_end_with_2() {
    let d = dir();
    for args in [&["frobnicate"][..], &["run"], &["run", ATTENTION, "--on", "abacus"], &["run", ATTENTION, "--dtype", "f8"], &["compile", ATTENTION], &["check", ATTENTION, "--cases", "many"], &[]] {
        bad(&d, 2, args);
    }
}

#[test]
fn run_says_what_it_did() {
    let d = dir();
    let args = ["run", ATTENTION, "--jvp", "q,k,v", "--dim", "B=1,H=2,I=5", "--dim", "J=7,D=4", "--json", "--seed", "3"];
    let v = json(&d, &args);
    assert_eq!((v["function"].as_str(), v["on"].as_str(), v["dtype"].as_str()), (Some("attention.jvp"), Some("reference"), Some("f64")));
    assert_eq!(v["dims"], serde_json::json!({"B": 1, "H": 2, "I": 5, "J": 7, "D": 4}));
    assert!(v["seconds"].as_f64().unwrap() >= 0.0);
    let results = v["results"].as_array().unwrap();
    assert_eq!(results.iter().map(|r| r["name"].as_str().unwrap()).collect::<Vec<_>>(), ["o", "o.t"]);
    assert!(results.iter().all(|r| r["shape"] == serde_json::json!([1, 2, 5, 4]) && r["norm"].as_f64().unwrap() > 0.0));
    // The same seed, the same tensors; another seed, others.
    assert_eq!(norms(&json(&d, &args)), norms(&v));
    let other: Vec<&str> = args.iter().map(|a| if *a == "3" { "4" } else { a }).collect();
    assert_ne!(norms(&json(&d, &other)), norms(&v));
}

#[test]
fn every_machine_gives_the_same_numbers() {
    let d = dir();
    for (dtype, bound) in [("f64", 1e-10), ("f32", 2e-5), ("bf16", 5e-3), ("f16", 6e-4)] {
        let run = |on: &str| norms(&json(&d, &["run", ATTENTION, "--jvp", "q,k,v", "--on", on, "--dtype", dtype, "--dim", "B=1,H=2,I=5,J=7,D=4", "--json"]));
        let want = run("reference");
        for on in ["interp", "cpu"] {
            for ((n, a), (_, b)) in run(on).iter().zip(&want) {
                assert!((a - b).abs() <= bound * b, "{on} {dtype} {n}: {a} but {b}");
            }
        }
    }
}

#[test]
fn kernels_come_from_the_cache_the_second_time_and_give_the_same() {
    let d = dir();
    let run = || json(&d, &["run", ATTENTION, "--on", "cpu", "--dtype", "f32", "--dim", "B=1,H=1,I=4,J=4,D=8", "--json"]);
    let (first, second) = (run(), run());
    assert_eq!(first["kernels"][0]["from"], "compiler");
    assert_eq!(second["kernels"][0]["from"], "cache");
    assert_eq!(norms(&first), norms(&second));
    std::fs::remove_dir_all(d.path().join("cache")).unwrap();
    assert_eq!(norms(&run()), norms(&first));
}

#[test]
fn outputs_are_the_next_runs_inputs() {
    let d = dir();
    let f = write(&d, "two.pf", "fn first(x: f32[N,M]) -> (y: f32[N,M], w: f32[M]) {\n  y = tanh(x)\n  w = reduce_sum(x, n)\n}\nfn second(y: f32[N,M], w: f32[M]) -> (z: f32[N,M]) { z = y * w }\n");
    let (one, two) = (path(&d, "one.safetensors"), path(&d, "two.safetensors"));
    let first = json(&d, &["run", &f, "--dim", "N=3,M=5", "--outputs", &one, "--json"]);
    assert_eq!(listing(&one).iter().map(|l| (l.0.as_str(), l.2.clone())).collect::<Vec<_>>(), [("w", vec![5]), ("y", vec![3, 5])]);
    // Sizes come from the tensors, and nothing is lost on the way: y * w is what the file says.
    let second = json(&d, &["run", &f, "--fn", "second", "--inputs", &one, "--outputs", &two, "--json"]);
    assert_eq!(second["dims"], first["dims"]);
    let bytes = std::fs::read(&one).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |n: &str| file.tensor(n).unwrap().data().chunks_exact(8).map(|c| f64::from_le_bytes(c.try_into().unwrap())).collect::<Vec<_>>();
    let (y, w) = (numbers("y"), numbers("w"));
    let want = y.iter().enumerate().map(|(i, y)| (y * w[i % 5]).powi(2)).sum::<f64>().sqrt();
    assert!((norms(&second)[0].1 - want).abs() < 1e-12 * want);
    assert_eq!(listing(&two), [("z".into(), "F64".into(), vec![3, 5])]);
    // Nothing half-written is left behind.
    assert!(std::fs::read_dir(d.path()).unwrap().all(|e| !e.unwrap().path().to_string_lossy().ends_with(".part")));
}

#[test]
fn tangents_of_tangents_have_their_suffixes() {
    let d = dir();
    let names = |second: &str| {
        let v = json(&d, &["run", ATTENTION, "--jvp", "q,k,v", "--jvp", second, "--dim", "B=1,H=1,I=2,J=3,D=4", "--json"]);
        norms(&v).into_iter().map(|n| n.0).collect::<Vec<_>>()
    };
    assert_eq!(names("q.t"), ["o", "o.t", "o.t.t"]);
    assert_eq!(names("q,q.t"), ["o", "o.t", "o.t2", "o.t.t2"]);
    let printed = good(&d, &["opt", ATTENTION, "--jvp", "q,k,v", "--jvp", "q.t"]);
    assert!(printed.contains("q.t.t: f32[B,H,I,D]"), "{printed}");
    // Tangents are read under their names.
    let file = path(&d, "out.safetensors");
    let f = write(&d, "f.pf", "fn f(x: f32[N]) -> (x2: f32[N]) { x2 = x * x }\n");
    let inputs = tensor_file(&d, "in.safetensors", &[("x", &[1], vec![3.0]), ("x.t", &[1], vec![1.0]), ("x.t.t", &[1], vec![5.0])]);
    let v = json(&d, &["run", &f, "--jvp", "x", "--jvp", "x.t", "--inputs", &inputs, "--outputs", &file, "--json"]);
    assert_eq!(norms(&v), [("x2".to_string(), 9.0), ("x2.t".into(), 6.0), ("x2.t.t".into(), 30.0)]);
    assert_eq!(listing(&file).into_iter().map(|l| l.0).collect::<Vec<_>>(), ["x2", "x2.t", "x2.t.t"]);
}

#[test]
fn inputs_are_rounded_to_the_dtype() {
    let d = dir();
    let f = write(&d, "id.pf", "fn id(x: f32[N]) -> (y: f32[N]) { y = x * 1 }\n");
    let inputs = tensor_file(&d, "x.safetensors", &[("x", &[1], vec![1.0 + 1.0 / 512.0])]);
    let norm = |dtype: &str| norms(&json(&d, &["run", &f, "--inputs", &inputs, "--dtype", dtype, "--json"]))[0].1;
    assert_eq!([norm("f64"), norm("f32"), norm("f16"), norm("bf16")], [1.001953125, 1.001953125, 1.001953125, 1.0]);
}

#[test]
fn tensors_are_drawn_from_where_the_operations_are_defined() {
    let d = dir();
    let f = write(&d, "f.pf", "fn f(a: f32[N], b: f32[N], c: f32[N]) -> (y: f32[N]) { y = log(a) + rsqrt(b) + sqrt(c) }\n");
    for seed in ["0", "1", "2"] {
        let v = json(&d, &["run", &f, "--jvp", "a,b,c", "--dim", "N=100", "--seed", seed, "--json"]);
        let (file, s) = (path(&d, "out.safetensors"), seed);
        good(&d, &["run", &f, "--jvp", "a,b,c", "--dim", "N=100", "--seed", s, "--outputs", &file]);
        let bytes = std::fs::read(&file).unwrap();
        let out = SafeTensors::deserialize(&bytes).unwrap();
        for (n, t) in out.tensors() {
            assert!(t.data().chunks_exact(8).all(|c| f64::from_le_bytes(c.try_into().unwrap()).is_finite()), "{n} of {v}");
        }
    }
    good(&d, &["check", &f, "--cases", "3"]);
}

#[test]
fn wrong_input_is_said_exactly() {
    let d = dir();
    let two = |d: &TempDir, name: &str, shape: &[usize]| tensor_file(d, name, &[("a", shape, vec![0.5; shape.iter().product()]), ("b", &[2], vec![1.0; 2])]);
    let f = write(&d, "f.pf", "fn f(a: f32[N], b: f32[N]) -> (y: f32[N]) { y = a * b }\n");
    let rank = two(&d, "rank.safetensors", &[2, 1]);
    let size = two(&d, "size.safetensors", &[3]);
    let lacking = tensor_file(&d, "lacking.safetensors", &[("a", &[2], vec![0.0; 2])]);
    let right = two(&d, "right.safetensors", &[2]);
    let extra = tensor_file(&d, "extra.safetensors", &[("a", &[2], vec![0.0; 2]), ("b", &[2], vec![0.0; 2]), ("bb", &[2], vec![0.0; 2])]);
    let misspelt = tensor_file(&d, "misspelt.safetensors", &[("a", &[2], vec![0.0; 2]), ("bx", &[2], vec![0.0; 2])]);
    let cases = [
        (vec!["run", &f, "--inputs", &rank], "error: input `a` has shape [2, 1], but the parameter is f32[N]\n".to_string()),
        (vec!["run", &f, "--inputs", &size], "error: dimension `N` is 3, but 2 in input `b` of shape [2] (f32[N])\n".into()),
        (vec!["run", &f, "--inputs", &right, "--dim", "N=5"], "error: dimension `N` is 5, but 2 in input `a` of shape [2] (f32[N])\n".into()),
        (vec!["run", &f, "--inputs", &lacking], format!("error: run: {lacking} has no tensor `b` (f32[N])\n")),
        (vec!["run", &f, "--inputs", &extra], format!("error: run: {extra} has a tensor `bb`, but `f` has no such parameter; did you mean `b`?\n")),
        (vec!["run", &f, "--inputs", &misspelt], format!("error: run: {misspelt} has no tensor `b` (f32[N]); is `bx` meant to be it?\n")),
        (vec!["check", &f, "--wrt", "a", "--vjp", "a"], "error: --wrt stands for --jvp; give either\n".into()),
        (vec!["check", &f, "--vjp", "z"], "error: f: vjp: `z` is not a parameter of `f` (hint: its parameters are a, b)\n".into()),
        (vec!["run", &f, "--fn", "g"], format!("error: {f}: no function `g`; there are: f\n")),
        (vec!["check", &f, "--fn", "g"], format!("error: {f}: no function `g`; there are: f\n")),
        (vec!["run", &f, "--dim", "M=3"], "error: --dim: `M` is no dimension of `f`; there are: N\n".into()),
        (vec!["bench", &f, "--dim", "M=3"], "error: --dim: `M` is no dimension of `f`; there are: N\n".into()),
        (vec!["check", &f, "--dim", "M=3"], "error: --dim: `M` is no dimension of `f`; there are: N\n".into()),
        (vec!["run", &f, "--dim", "N"], "error: --dim: expected NAME=NUMBER, found `N`\n".into()),
        (vec!["run", &f, "--dim", "N=x"], "error: --dim: `x` is no number\n".into()),
        (vec!["run", &f, "--dim", "N=-1"], "error: --dim: N is -1, but a size is not negative\n".into()),
        (vec!["run", &f, "--jvp", "z"], "error: jvp: `z` is not a parameter of `f` (hint: its parameters are a, b)\n".into()),
        (vec!["opt", &f, "--pass", "fuse,simplify"], "error: simplify: the program is a block program already\n".into()),
        (vec!["run", "absent.pf"], "error: cannot read absent.pf: No such file or directory (os error 2)\n".into()),
        (vec!["run", &f, "--inputs", &f], format!("error: {f} is no safetensors file: HeaderTooLarge\n")),
    ];
    for (args, want) in cases {
        assert_eq!(bad(&d, 1, &args), want, "{args:?}");
    }
    let unknown = bad(&d, 1, &["opt", &f, "--pass", "polish"]);
    assert!(unknown.starts_with("error: no pass `polish`; there are:\n") && unknown.contains("simplify"), "{unknown}");
    let syntax = write(&d, "syntax.pf", "fn f(a: f32[N]) -> (y: f32[N]) { y = exq(a) }\n");
    let message = bad(&d, 1, &["run", &syntax]);
    assert!(message.starts_with("error: ") && message.contains("syntax.pf:1:") && message.contains("hint: "), "{message}");
}

/// Counts elements of an XML text by reading all of it; attributes of the first as they are.
fn xml(file: &str) -> (Vec<String>, std::collections::BTreeMap<String, String>) {
    use quick_xml::events::Event;
    let text = std::fs::read_to_string(file).unwrap();
    let mut reader = quick_xml::Reader::from_str(&text);
    let (mut names, mut root) = (vec![], std::collections::BTreeMap::new());
    loop {
        match reader.read_event().unwrap() {
            Event::Start(e) | Event::Empty(e) => {
                let name = String::from_utf8(e.name().as_ref().to_vec()).unwrap();
                if name == "testsuites" {
                    root = e.attributes().map(|a| a.unwrap()).map(|a| (String::from_utf8(a.key.as_ref().to_vec()).unwrap(), a.unescape_value().unwrap().into_owned())).collect();
                }
                names.push(name);
            }
            Event::Eof => return (names, root),
            _ => {}
        }
    }
}

/// Its JVP takes `stop_gradient` at its word, and differences do not: half of the slope is missing.
const HIDDEN: &str = "fn twice(x: f32[N]) -> (y: f32[N]) { y = x + x }\nfn hidden(x: f32[N,M], y: f32[N]) -> (z: f32[N,M]) { z = x * stop_gradient(x) + y }\n";

#[test]
fn a_wrong_derivative_is_caught_shrunk_and_replayed() {
    let d = dir();
    let (f, junit) = (write(&d, "hidden.pf", HIDDEN), path(&d, "out.xml"));
    let message = bad(&d, 1, &["check", &f, "--cases", "4", "--junit", &junit]);
    assert!(message.starts_with("error: 4 of 8 cases are bad\nhidden, seed 0: the JVP differs from the difference quotient by "), "{message}");
    // The smallest case: one element, along the parameter that matters.
    assert!(message.contains("shrunk to M=1 N=1 along x: ") && message.contains("by the JVP"), "{message}");
    let (names, root) = xml(&junit);
    let count = |n: &str| names.iter().filter(|x| *x == n).count();
    assert_eq!((count("testsuite"), count("testcase"), count("failure"), count("error")), (2, 8, 4, 0));
    assert_eq!((root["tests"].as_str(), root["failures"].as_str(), root["errors"].as_str()), ("8", "4", "0"));
    // The printed command shows it again.
    let replay = message.lines().find_map(|l| l.strip_prefix("  replay: pushforward ")).unwrap();
    let again = bad(&d, 1, &replay.split(' ').collect::<Vec<_>>());
    assert!(again.starts_with("error: 1 of 1 cases are bad\nhidden, seed 0: "), "{again}");
    let v = pushforward(&d, &["check", &f, "--cases", "2", "--json"]);
    let v: Value = serde_json::from_str(&text(&v.stdout)).unwrap();
    assert_eq!(v["cases"].as_array().unwrap().iter().filter(|c| c["good"] == false).count(), 2);
    assert_eq!(v["failures"].as_array().unwrap().len(), 2);
    // The same as a function.
    let panic = std::panic::catch_unwind(|| pushforward::check::assert_program(PathBuf::from(&f), 2)).unwrap_err();
    assert!(panic.downcast_ref::<String>().unwrap().contains("hidden, seed 0: the JVP differs"));
}

#[test]
fn a_right_derivative_passes_with_every_machine_in_the_table() {
    let d = dir();
    let junit = path(&d, "out.xml");
    let table = good(&d, &["check", ATTENTION, "--cases", "3", "--junit", &junit]);
    let header: Vec<&str> = table.lines().next().unwrap().split("  ").map(str::trim).filter(|s| !s.is_empty()).collect();
    assert_eq!(header, ["function", "seed", "vs difference", "order", "linearity", "interp f64", "cpu f32"]);
    assert!(table.contains("cpu in f32 against the reference on the rounded inputs 2e-5"), "{table}");
    assert_eq!(xml(&junit).0.iter().filter(|n| *n == "testcase").count(), 3);
    pushforward::check::assert_program(Path::new(env!("CARGO_MANIFEST_DIR")).join(ATTENTION), 1);
    // A program that is no program is an error in the report, too.
    let f = write(&d, "no.pf", "fn f(\n");
    bad(&d, 1, &["check", &f, "--junit", &junit]);
    let (names, root) = xml(&junit);
    assert_eq!((names.iter().filter(|n| *n == "error").count(), root["errors"].as_str()), (1, "1"));
}

#[test]
fn every_dump_can_be_fed_back() {
    let d = dir();
    let (out, again) = (path(&d, "out"), path(&d, "again"));
    good(&d, &["compile", ATTENTION, "--jvp", "q,k,v", "--dim", "D=64", "-o", &out, "--dump", "all"]);
    let file = |n: &str| format!("{out}/{n}");
    let names: Vec<String> = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let tile = names.iter().find(|n| n.ends_with(".tile.json")).unwrap().clone();
    let kernel = tile.strip_prefix("04-").unwrap().strip_suffix(".tile.json").unwrap();
    for n in ["01-source.pf", "02-jvp.pf", "03-simplify.pf", &format!("04-{kernel}.tile"), &format!("05-{kernel}.mlir"), &format!("06-{kernel}.ll"), &format!("07-{kernel}.s"), &format!("{kernel}.o"), "manifest.json"] {
        assert!(names.iter().any(|x| x == n), "{n} is not among {names:?}");
    }
    // From each text stage on, the later ones come out the same (values that had no name have one when they were printed).
    let fused = std::fs::read_to_string(file(&format!("04-{kernel}.tile"))).unwrap();
    let nameless = |text: &str| {
        let mut v: Value = serde_json::from_str(text).unwrap();
        let program = if v.is_array() { v[0].take() } else { v };
        let mut program = program;
        program["values"].as_array_mut().unwrap().iter_mut().for_each(|v| v["name"] = Value::Null);
        program
    };
    let want = nameless(&std::fs::read_to_string(file(&tile)).unwrap());
    for (stage, passes) in [("01-source.pf", "jvp=q+k+v,simplify,fuse"), ("02-jvp.pf", "simplify,fuse"), ("03-simplify.pf", "fuse")] {
        assert_eq!(nameless(&good(&d, &["opt", &file(stage), "--pass", passes, "--dim", "D=64", "--json"])), want, "{stage}");
    }
    // And from the block program: the text, the cost, the object.
    let tile = file(&tile);
    assert_eq!(good(&d, &["opt", &tile]), fused);
    let v: Value = serde_json::from_str(&good(&d, &["opt", &tile, "--json"])).unwrap();
    assert_eq!(v[0], serde_json::from_str::<Value>(&std::fs::read_to_string(&tile).unwrap()).unwrap());
    assert!(good(&d, &["explain", &tile, "--dim", "B=1,H=8,I=4096,J=4096"]).contains("one pass, 5 accumulators"));
    good(&d, &["compile", &tile, "-o", &again]);
    assert_eq!(std::fs::read(format!("{again}/{kernel}.o")).unwrap(), std::fs::read(file(&format!("{kernel}.o"))).unwrap());
    // What is no block program is said, not run.
    let half = write(&d, "half.tile.json", &std::fs::read_to_string(&tile).unwrap().replacen("\"den\": 1", "\"den\": 0", 1));
    assert!(bad(&d, 1, &["opt", &half]).contains("a size with denominator 0"));
    let broken = write(&d, "broken.tile.json", "{\"name\": 3}");
    assert!(bad(&d, 1, &["compile", &broken, "-o", &again]).contains("broken.tile.json is no block program: "));
    assert!(bad(&d, 1, &["explain", &tile, "--jvp", "q"]).contains("is a block program; only equations are differentiated"));
    assert!(bad(&d, 1, &["run", &tile]).contains("is a block program"), "run");
}

#[test]
fn opt_times_and_explains_passes() {
    let d = dir();
    let out = pushforward(&d, &["opt", ATTENTION, "--pass", "jvp=q+k+v,simplify,fuse", "--dim", "D=64", "--time", "--explain"]);
    let said = text(&out.stderr);
    let rows: Vec<&str> = said.lines().filter(|l| l.contains("=>")).collect();
    assert!(rows[0].starts_with("pass") && rows[1].starts_with("jvp=q+k+v") && rows[3].starts_with("fuse") && rows[3].ends_with("=> 1 kernel"), "{said}");
    assert!(text(&out.stdout).starts_with("tile ") || text(&out.stdout).contains("grid"), "{}", text(&out.stdout));
}

#[test]
fn explain_and_bench_have_their_shapes() {
    let d = dir();
    let dims = "B=1,H=2,I=64,J=64,D=16";
    let v = json(&d, &["explain", ATTENTION, "--jvp", "q,k,v", "--dim", dims, "--json"]);
    assert_eq!(v["tangents"], serde_json::json!(["q.t", "k.t", "v.t"]));
    assert_eq!(v["kernels"][0]["carried"], serde_json::json!([5]));
    assert!(v["kernels"][0]["flops"].as_f64().unwrap() > 0.0 && v["kernels"][0]["bytes"].as_f64().unwrap() > 0.0);
    let v = json(&d, &["bench", ATTENTION, "--jvp", "q,k,v", "--dim", dims, "--runs", "2", "--threads", "1", "--json"]);
    for k in ["seconds", "best", "flops", "bytes", "fma_peak", "copy_bandwidth", "generation_seconds"] {
        assert!(v[k].as_f64().unwrap() > 0.0, "{k} in {v}");
    }
    bad(&d, 1, &["bench", ATTENTION, "--runs", "0"]);
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let d = dir();
    let file = path(&d, "program");
    good(&d, &["opt", ATTENTION]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_pushforward"))
        .args(["check", ATTENTION, "--cases", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdout(std::process::Stdio::piped())
        .stderr(std::fs::File::create(&file).unwrap())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_ne!(child.wait().unwrap().code(), Some(101));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "");
}

#[test]
fn devices_are_listed_with_or_without_a_gpu() {
    let d = dir();
    let v = json(&d, &["devices", "--threads", "1", "--json"]);
    assert!(v["cpu"]["threads"] == 1 && v["cpu"]["copy_bandwidth"].as_f64().unwrap() > 0.0);
    let cuda = &v["cuda"];
    assert!(cuda["devices"].as_array().is_some_and(|l| !l.is_empty()) || cuda["reason"].as_str().is_some_and(|r| !r.is_empty()) || cuda["version"].is_array(), "{cuda}");
}

#[test]
fn gradients_are_checked_by_the_dot_product_law() {
    let d = dir();
    let junit = path(&d, "out.xml");
    let table = good(&d, &["check", ATTENTION, "--vjp", "all", "--cases", "2", "--junit", &junit]);
    assert!(table.lines().next().unwrap().contains("dot products") && table.contains("bounds: dot products 1e-10"), "{table}");
    assert_eq!(xml(&junit).0.iter().filter(|n| *n == "testcase").count(), 2);
    // Of second order, both ways round, and on the PTX machine.
    for (transforms, mode) in [(["--jvp", "all", "--vjp", "all"], "vjp"), (["--vjp", "q,k", "--jvp", "q,o.ct"], "jvp")] {
        let v = json(&d, &[&["check", ATTENTION, "--cases", "1", "--json"][..], &transforms].concat());
        let case = &v["cases"][0];
        let law = if mode == "vjp" { "dot_products" } else { "difference" };
        assert!(case["mode"] == mode && case["good"] == true && case[law].as_f64().unwrap() < 1e-6 && case["cpu"].as_f64().unwrap() < 2e-5, "{v}");
    }
    let sim = good(&d, &["check", ATTENTION, "--vjp", "all", "--cases", "1", "--on", "sim"]);
    assert!(sim.contains("sim f32") && !sim.contains("cpu f32"), "{sim}");
    pushforward::check::assert_gradients(Path::new(env!("CARGO_MANIFEST_DIR")).join(ATTENTION), 1);
}
