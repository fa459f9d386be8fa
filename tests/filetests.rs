//! Programs with the exact output of a pass: the folder under `tests/filetests` names the pass. A file is a program, then what is
//! expected behind `//! `; a line `//? wrt=x,w dims=D=4,E=6` says what to differentiate along first, and which sizes are known. What
//! the verifier is for cannot be written in the text form, so its files say how to damage the program: `//? break=swap:0,1`.
//! `BLESS=1 cargo test --release --test filetests` rewrites the expectations; read the diff.

use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::text::print_function;
use passes::fuse::{Options, fuse};
use std::path::Path;

/// Values of a file's `//? ` line.
struct Directive {
    wrt: Vec<Vec<Name>>,
    dims: Bindings,
    damage: Option<(String, Vec<String>)>,
}

fn directive(source: &str) -> Directive {
    let line = source.lines().find_map(|l| l.strip_prefix("//? ")).unwrap_or("");
    let mut d = Directive { wrt: vec![], dims: Bindings::new(), damage: None };
    for word in line.split_whitespace() {
        match word.split_once('=').unwrap() {
            ("wrt", names) => d.wrt.push(names.split(',').map(Name::from).collect()),
            ("dims", list) => d.dims.extend(list.split(',').map(|d| d.split_once('=').unwrap()).map(|(n, v)| (n.into(), v.parse::<i64>().unwrap()))),
            ("break", how) => d.damage = how.split_once(':').map(|(kind, on)| (kind.into(), on.split(',').map(String::from).collect())),
            (other, _) => panic!("no directive `{other}`"),
        }
    }
    d
}

/// Runs `pass` on a text; messages and programs are both output.
fn output(pass: &str, name: &str, source: &str) -> String {
    let functions = match ir::text::parse(source) {
        Ok(m) => m.functions,
        Err(e) => return ir::diagnostic::render(&e, name, source),
    };
    if pass == "parser" {
        return "no error\n".into();
    }
    let d = directive(source);
    functions.iter().map(|f| one(pass, f, &d).unwrap_or_else(|e| e + "\n")).collect()
}

/// Breaks an invariant: `swap:EQN,EQN`, `drop:EQN`, `twice:EQN`, `operand:EQN`, `dtype:VALUE,TYPE`, `size:VALUE,SIZE`, `call:RESULT,RESULT`.
fn damage(f: &mut Function, kind: &str, on: &[String]) {
    let eqn = |i: usize| on[i].parse::<usize>().unwrap();
    let value = |f: &Function| f.vars.iter().position(|v| v.name.as_deref() == Some(&*on[0])).unwrap();
    match kind {
        "swap" => f.eqns.swap(eqn(0), eqn(1)),
        "drop" => drop(f.eqns.remove(eqn(0))),
        "twice" => f.eqns.push(f.eqns[eqn(0)].clone()),
        "operand" => {
            let again = f.eqns[eqn(0)].args[0];
            f.eqns[eqn(0)].args.push(again);
        }
        "dtype" => {
            let v = value(f);
            f.vars[v].ty.dtype = ir::types::DType::parse(&on[1]).unwrap();
        }
        "size" => {
            let v = value(f);
            f.vars[v].ty.axes[0].size = ir::dim::Dim::fixed(on[1].parse().unwrap());
        }
        "call" => f.results.iter_mut().filter(|r| *r.name == *on[0]).for_each(|r| r.name = on[1].as_str().into()),
        other => panic!("no damage `{other}`"),
    }
}

fn one(pass: &str, f: &Function, d: &Directive) -> Result<String, String> {
    let say = |e: ir::diagnostic::Error| format!("error: {e}");
    let mut f = f.clone();
    if pass == "verify" {
        if let Some((kind, on)) = &d.damage {
            damage(&mut f, kind, on);
        }
        return Ok(match ir::verify::verify(&f) {
            Ok(()) => "sound\n".into(),
            Err(list) => list.iter().map(|e| format!("{e}\n")).collect(),
        });
    }
    for wrt in &d.wrt {
        f = passes::ad::jvp(&f, wrt).map_err(say)?;
    }
    if pass != "jvp" {
        f = passes::simplify::simplify(&f).map_err(say)?.function;
    }
    ir::verify::verify(&f).unwrap_or_else(|e| panic!("{}", e[0]));
    if pass != "fuse" {
        return Ok(print_function(&f));
    }
    // Rows of more than four elements stream, so that small sizes show what long ones do.
    let fused = fuse(&f, &Options { dims: d.dims.clone(), resident: 4, full: 64, ..Options::default() }).map_err(say)?;
    Ok(fused.notes.iter().map(|n| format!("{n}\n")).chain(fused.programs.iter().map(|p| p.to_string())).collect())
}

fn folder(pass: &str, least: usize) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filetests").join(pass);
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let mut wrong = vec![];
    for path in &files {
        let text = std::fs::read_to_string(path).unwrap();
        let (source, expected): (Vec<&str>, Vec<&str>) = text.lines().partition(|l| !l.starts_with("//!"));
        let source = source.join("\n") + "\n";
        let name = path.file_name().unwrap().to_str().unwrap();
        let got: Vec<String> = output(pass, name, &source).lines().map(|l| format!("//! {l}").trim_end().to_string()).collect();
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(path, source + &got.join("\n") + "\n").unwrap();
        } else if got != expected {
            wrong.push(format!("{pass}/{name}: expected\n{}\ngot\n{}", expected.join("\n"), got.join("\n")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(files.len() >= least, "{} files in {pass}", files.len());
}

#[test]
fn parser_messages() {
    folder("parser", 30);
}

#[test]
fn derivatives() {
    folder("jvp", 8);
}

#[test]
fn simplified_forms() {
    folder("simplify", 6);
}

#[test]
fn block_programs_and_refusals() {
    folder("fuse", 8);
}

#[test]
fn what_the_verifier_says() {
    folder("verify", 8);
}
