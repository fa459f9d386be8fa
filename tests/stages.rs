//! What each stage makes of a program, one Markdown file a program in `tests/stages`: the text as a person wrote it, its tangent,
//! the simplified form, the block programs with what was decided and refused; for one of them also how the emitted code begins.
//! `BLESS=1 cargo test --release --test stages` rewrites the files; read the diff.

use ir::dim::{Bindings, Name};
use ir::text::print_function;
use passes::fuse::{Options, fuse};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// File, function, directions, sizes that must be known, whether code is shown.
type Case = (&'static str, &'static str, &'static str, &'static str, bool);

const CASES: [Case; 7] = [
    ("examples/attention.pf", "attention", "q,k,v", "D=64", true),
    ("examples/attention_variants.pf", "window", "q,k,v", "D=64,E=64", false),
    ("examples/attention_variants.pf", "grouped", "q", "D=64,E=64", false),
    ("examples/cross_entropy.pf", "", "x,w", "K=64", false),
    ("examples/gelu_linear.pf", "", "x", "", false),
    ("examples/norm_modulate.pf", "", "x,scale", "D=256", false),
    ("passes/tests/programs/refused.pf", "square_of_shift", "s", "", false),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

/// The text of function `name` alone, with the comment in front of it.
fn excerpt(text: &str, name: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().position(|l| l.starts_with(&format!("fn {name}("))).unwrap();
    let first = (0..at).rev().take_while(|i| lines[*i].starts_with("//")).last().unwrap_or(at);
    let last = if lines[at].ends_with('}') { at } else { at + lines[at..].iter().position(|l| *l == "}").unwrap() };
    lines[first..=last].join("\n")
}

/// Operations, by kind, for the line under a heading.
fn count(f: &ir::graph::Function) -> String {
    format!("{} equations, of which {} are sums or maxima over axes", f.eqns.len(), f.eqns.iter().filter(|e| matches!(e.op, ir::prim::Prim::Reduce(..) | ir::prim::Prim::Contract(_))).count())
}

/// How the text that the emitter writes begins, for a fixed CPU, from the command line itself.
fn emitted(file: &str, name: &str, wrt: &str, sizes: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pushforward"));
    command.current_dir(root()).args(["compile", file, "--fn", name, "--jvp", wrt, "--dim", sizes, "--target", "x86-64-v3", "--dump", "all", "-o"]).arg(dir.path());
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "mlir")).collect();
    files.sort();
    let text = std::fs::read_to_string(files.first().unwrap()).unwrap();
    let lines = text.lines().count();
    let head: Vec<&str> = text.lines().take(24).collect();
    format!("The first 24 lines of {lines}, for x86-64-v3.\n\n```mlir\n{}\n```\n", head.join("\n"))
}

fn page((file, name, wrt, sizes, code): &Case) -> (String, String) {
    let text = std::fs::read_to_string(root().join(file)).unwrap();
    let module = ir::text::parse(&text).unwrap();
    let f = module.function((!name.is_empty()).then_some(*name)).unwrap();
    let dims: Bindings = sizes.split(',').filter_map(|d| d.split_once('=')).map(|(n, v)| (n.into(), v.parse().unwrap())).collect();
    let names: Vec<Name> = wrt.split(',').map(Name::from).collect();
    let g = passes::ad::jvp(f, &names).unwrap();
    let n = passes::simplify::simplify(&g).unwrap().function;
    let fused = fuse(&n, &Options { dims, ..Options::default() }).unwrap();
    for x in [&g, &n] {
        ir::verify::verify(x).unwrap();
    }
    let mut out = String::new();
    let w = &mut out;
    writeln!(w, "# {}\n\n`{file}`, along {wrt}{}\n\n## source\n\n```\n{}\n```\n", f.name, if sizes.is_empty() { String::new() } else { format!(", {sizes}") }, excerpt(&text, &f.name)).unwrap();
    writeln!(w, "## jvp\n\n{}. The rule that made an equation stands behind it.\n\n```\n{}```\n", count(&g), print_function(&g)).unwrap();
    writeln!(w, "## simplify\n\n{}.\n\n```\n{}```\n", count(&n), print_function(&n)).unwrap();
    let kernels = fused.programs.len();
    writeln!(w, "## fuse\n\n{kernels} kernel{}.", if kernels == 1 { "" } else { "s" }).unwrap();
    for note in &fused.notes {
        writeln!(w, "* {note}").unwrap();
    }
    for p in &fused.programs {
        writeln!(w, "\n```\n{p}```").unwrap();
    }
    if *code {
        writeln!(w, "\n## code\n\n{}", emitted(file, &f.name, wrt, sizes)).unwrap();
    }
    let tidy = out.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim_end().to_string() + "\n";
    (f.name.to_string(), tidy)
}

#[test]
fn every_stage_is_as_it_was() {
    let mut wrong = vec![];
    for case in &CASES {
        let (name, got) = page(case);
        assert_eq!(page(case).1, got, "the same input gave other bytes");
        let path = root().join("tests/stages").join(format!("{name}.md"));
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, &got).unwrap();
            continue;
        }
        let want = std::fs::read_to_string(&path).unwrap_or_default();
        if want != got {
            let line = want.lines().zip(got.lines()).position(|(a, b)| a != b).unwrap_or_else(|| want.lines().count().min(got.lines().count()));
            let at = |t: &str| t.lines().nth(line).unwrap_or("(end)").to_string();
            wrong.push(format!("{} line {}: was\n  {}\nis\n  {}", path.display(), line + 1, at(&want), at(&got)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(std::fs::read_dir(root().join("tests/stages")).unwrap().count(), CASES.len(), "a page without a case");
}
