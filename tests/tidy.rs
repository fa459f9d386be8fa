//! House rules that a program can check.

use std::path::{Path, PathBuf};

/// All Rust files under `dir`.
fn sources(dir: &str) -> Vec<PathBuf> {
    let (mut found, mut open) = (vec![], vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)]);
    while let Some(d) = open.pop() {
        for e in std::fs::read_dir(&d).into_iter().flatten().flatten() {
            let p = e.path();
            if p.is_dir() {
                open.push(p);
            } else if p.extension().is_some_and(|x| x == "rs") {
                found.push(p);
            }
        }
    }
    found.sort();
    found
}

/// The code of a file: comments and everything from `#[cfg(test)]` on left out.
fn code(text: &str) -> String {
    let body = text.split("#[cfg(test)]").next().unwrap_or("");
    body.lines().map(|l| if l.trim_start().starts_with("//") { "" } else { l.split(" // ").next().unwrap_or("") }).collect::<Vec<_>>().join("\n")
}

#[test]
fn no_pass_and_no_emitter_names_a_layer() {
    const LAYERS: [&str; 7] = ["attention", "softmax", "flash", "rms_norm", "layer_norm", "rope", "adaln"];
    let files: Vec<_> = ["passes/src", "codegen/src"].iter().flat_map(|d| sources(d)).collect();
    assert!(files.iter().any(|f| f.ends_with("jvp.rs")));
    for f in files {
        let code = code(&std::fs::read_to_string(&f).unwrap()).to_lowercase();
        // Whole words between underscores: `_rope_` is a layer, `properties` is not.
        let words = format!("_{}_", code.replace(|c: char| !c.is_ascii_alphanumeric(), "_"));
        for l in LAYERS {
            assert!(!words.contains(&format!("_{l}_")), "{} names `{l}`", f.display());
        }
    }
}

#[test]
fn dependencies_point_to_ir() {
    for (member, allowed) in [("ir", &[][..]), ("passes", &["ir"]), ("codegen", &["ir"])] {
        let manifest = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(member).join("Cargo.toml")).unwrap();
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
        for other in ["ir", "passes", "codegen", "runtime", "trainer"].iter().filter(|o| !allowed.contains(o)) {
            let depends = dependencies.lines().any(|l| l.split(['=', '.', ' ']).next() == Some(other));
            assert!(!depends, "{member} depends on {other}");
        }
    }
}

#[test]
fn every_file_opens_with_what_it_is() {
    for f in ["ir/src", "passes/src", "codegen/src", "src", "tests"].iter().flat_map(|d| sources(d)) {
        assert!(std::fs::read_to_string(&f).unwrap().starts_with("//!"), "{} has no `//!` line", f.display());
    }
}
