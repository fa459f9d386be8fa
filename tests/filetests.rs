//! Malformed programs with their exact messages. A file is a program, then the expected output behind `//! `.
//! `BLESS=1 cargo test --release --test filetests` rewrites the expectations; read the diff.

use std::path::Path;

#[test]
fn parser_messages() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filetests/parser");
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let mut wrong = vec![];
    for path in &files {
        let text = std::fs::read_to_string(path).unwrap();
        let (source, expected): (Vec<&str>, Vec<&str>) = text.lines().partition(|l| !l.starts_with("//! "));
        let source = source.join("\n") + "\n";
        let name = path.file_name().unwrap().to_str().unwrap();
        let got = match ir::text::parse(&source) {
            Ok(_) => "no error\n".to_string(),
            Err(e) => ir::diagnostic::render(&e, name, &source),
        };
        let got: Vec<String> = got.lines().map(|l| format!("//! {}", l.trim_end())).collect();
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(path, source + &got.join("\n") + "\n").unwrap();
        } else if got != expected {
            wrong.push(format!("{name}: expected\n{}\ngot\n{}", expected.join("\n"), got.join("\n")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(files.len() >= 30);
}
