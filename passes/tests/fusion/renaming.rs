//! Names mean nothing: other names for functions, values and axes give the same block programs up to names, and no program of
//! these tests calls a composition.

use crate::support::*;
use ir::dim::{Bindings, Dim, Name};
use ir::tile::{Op, Program, Stmt, View};
use std::collections::BTreeMap;

/// Identifiers of `text`, each replaced by `to(identifier)`; comments and texts in quotes stay.
fn replace(text: &str, to: &dyn Fn(&str) -> String) -> String {
    let (mut out, mut word, mut quoted) = (String::new(), String::new(), false);
    for line in text.lines() {
        for c in line.split("//").next().unwrap().chars().chain(['\n']) {
            if !quoted && (c.is_ascii_alphanumeric() || c == '_' || (c == '.' && !word.is_empty())) {
                word.push(c);
                continue;
            }
            if !word.is_empty() {
                out += &if word.starts_with(|c: char| c.is_ascii_digit()) { word.clone() } else { to(&word) };
                word.clear();
            }
            quoted ^= c == '"';
            out.push(c);
        }
    }
    out
}

/// Every name of a person's choice becomes another one, in the opposite alphabetical order.
fn renamed(text: &str, keywords: &[&str]) -> String {
    replace(text, &|w| {
        if keywords.contains(&w) {
            return w.to_string();
        }
        let turned: String = w.chars().map(|c| match c {
            'a'..='z' => (b'a' + b'z' - c as u8) as char,
            'A'..='Z' => (b'A' + b'Z' - c as u8) as char,
            c => c,
        }).collect();
        // An axis is one letter, found in any case; values get longer names.
        if w.len() == 1 { turned } else { format!("{turned}_") }
    })
}

/// Words of the language.
const KEYWORDS: [&str; 45] = [
    "fn", "f32", "i32", "bool", "exp", "log", "sqrt", "rsqrt", "tanh", "logistic", "sin", "cos", "erf", "abs", "neg", "not", "add", "sub", "mul", "div",
    "max", "min", "pow", "select", "convert", "reduce_sum", "reduce_max", "contract", "rename", "split", "merge", "permute", "broadcast", "slice", "index",
    "concat", "stack", "iota", "size", "const", "stop_gradient", "inf", "true", "false", "f64",
];

/// The program with every name replaced by its position.
fn nameless(mut p: Program) -> String {
    let mut numbers: BTreeMap<Name, Dim> = BTreeMap::new();
    fn walk(body: &mut [Stmt], dim: &mut dyn FnMut(&mut Dim)) {
        let view = |v: &mut View, dim: &mut dyn FnMut(&mut Dim)| {
            dim(&mut v.offset);
            v.strides.iter_mut().for_each(|(_, s)| dim(s));
        };
        for s in body {
            match s {
                Stmt::Let(_, Op::Load(v)) | Stmt::Store(v, _) => view(v, dim),
                Stmt::Let(_, Op::Size(d)) => dim(d),
                Stmt::Let(_, Op::Fill { keep, .. }) => keep.iter_mut().for_each(|c| dim(&mut c.constant)),
                Stmt::Let(..) => {}
                Stmt::For(l) => {
                    l.within.iter_mut().for_each(|c| dim(&mut c.constant));
                    walk(&mut l.body, dim);
                }
            }
        }
    }
    // Sizes become primes, in order of first appearance: equal polynomials stay equal.
    let mut dim = |d: &mut Dim| {
        const PRIMES: [i64; 8] = [1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049];
        for s in d.symbols() {
            let next = PRIMES[numbers.len() % PRIMES.len()];
            numbers.entry(s).or_insert(Dim::fixed(next));
        }
        let b: Bindings = d.symbols().into_iter().map(|s| (s.clone(), numbers[&s].as_fixed().unwrap())).collect();
        *d = d.bind(&b);
    };
    p.name = "program".into();
    for (i, a) in p.axes.iter_mut().enumerate() {
        a.name = format!("A{i}").into();
        dim(&mut a.size);
    }
    for (i, b) in p.buffers.iter_mut().enumerate() {
        b.name = format!("b{i}").into();
        b.shape.iter_mut().for_each(&mut dim);
    }
    p.values.iter_mut().for_each(|v| v.name = None);
    walk(&mut p.body, &mut dim);
    p.to_string()
}

#[test]
fn other_names_give_the_same_programs() {
    for (file, sizes) in [("scores.pf", "B=2,H=4,G=2,I=7,J=13,D=4,E=6"), ("long_axis.pf", "N=6,V=23,K=5"), ("rows.pf", "B=2,N=5,D=12,H=3,K=21,F=10"), ("refused.pf", "N=6,V=23,E=4")] {
        let (ours, theirs) = (parse(&source(file)), parse(&renamed(&source(file), &KEYWORDS)));
        let other: Bindings = dims(sizes).into_iter().map(|(n, v)| (renamed(&n, &KEYWORDS).trim().into(), v)).collect();
        for (f, g) in ours.iter().zip(&theirs) {
            assert_ne!(f.name, g.name);
            let programs = |f: &ir::graph::Function, d: &Bindings| {
                let o = options(d, 16, 4, 16);
                let tangents = derive(f, &floats(f));
                [f.clone(), tangents].iter().flat_map(|f| fused(f, &o).programs).map(nameless).collect::<String>()
            };
            assert_eq!(programs(f, &dims(sizes)), programs(g, &other), "{}", f.name);
        }
    }
}

#[test]
fn programs_call_primitives_only() {
    let dir = format!("{}/tests/programs", env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        seen += 1;
        for c in ir::nn::ALL {
            let calls = text.split(|x: char| !(x.is_ascii_alphanumeric() || x == '_' || x == '(')).any(|w| w.contains(&format!("{}(", c.name)) && w.starts_with(c.name));
            assert!(!calls, "{} calls {}", path.display(), c.name);
        }
    }
    assert!(seen >= 4);
}
