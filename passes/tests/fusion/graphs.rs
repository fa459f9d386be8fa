//! Random graphs of primitives: any operation on any values that fit, movement included. They are cut into kernels where they
//! have to be, and every cut is right.

use crate::support::*;
use ir::builder::Builder;
use ir::dim::Dim;
use ir::graph::{Function, Var};
use ir::prim::{Elementwise, Movement};
use ir::types::{Axis, DType, Type};
use passes::fuse::Options;

const UNARY: [Elementwise; 8] = [
    Elementwise::Tanh, Elementwise::Sin, Elementwise::Logistic, Elementwise::Neg, Elementwise::Erf, Elementwise::Exp, Elementwise::Cos, Elementwise::Abs,
];
const BINARY: [Elementwise; 6] = [Elementwise::Add, Elementwise::Sub, Elementwise::Mul, Elementwise::Max, Elementwise::Min, Elementwise::Add];
const SIZES: &str = "A=3,B=4,C=5,D=6";

/// A function of `steps` random operations; those that do not fit are left out.
fn draw(random: &mut Random, steps: usize) -> Function {
    let mut b = Builder::new("drawn");
    let axes = |names: &[&str]| names.iter().map(|n| Axis::sym(*n)).collect::<Vec<_>>();
    let mut pool: Vec<Var> = [("x", &["A", "B"][..]), ("y", &["B", "C"]), ("z", &["C"]), ("w", &["C", "A"]), ("u", &["B", "D"])]
        .iter()
        .map(|(n, a)| b.param(*n, Type::new(DType::F64, axes(a))))
        .collect();
    let mask = b.param("mask", Type::new(DType::Bool, axes(&["A", "B"])));
    for _ in 0..steps {
        // Recent values more often, so that graphs get deep.
        let pick = |random: &mut Random| pool[pool.len() - 1 - random.below(pool.len()).min(random.below(pool.len()))];
        let (p, q) = (pick(random), pick(random));
        let some = |random: &mut Random, v: Var, b: &Builder| b.ty(v).axes.get(random.below(b.ty(v).axes.len().max(1))).cloned();
        let made = match random.below(14) {
            0 | 1 => b.elementwise(UNARY[random.below(UNARY.len())], &[p]),
            2..=4 => b.elementwise(BINARY[random.below(BINARY.len())], &[p, q]),
            5 | 6 => match some(random, p, &b) {
                Some(a) => b.reduce_sum(p, &[a.name]),
                None => continue,
            },
            7 => match some(random, p, &b) {
                Some(a) => b.reduce_max(p, &[a.name]).and_then(|m| b.elementwise(Elementwise::Sub, &[p, m])).and_then(|d| b.elementwise(Elementwise::Exp, &[d])),
                None => continue,
            },
            8 | 9 => match b.ty(p).axes.iter().find(|a| b.ty(q).has(&a.name)).cloned() {
                Some(a) => b.contract(p, q, &[a.name]),
                None => continue,
            },
            10 => match some(random, p, &b) {
                Some(a) => {
                    // One name has one size everywhere.
                    let to = Axis::new(format!("{}{}", &a.name[..1], random.below(2)), a.size.clone());
                    b.movement(Movement::Rename { from: a.name, to }, &[p])
                }
                None => continue,
            },
            11 if b.ty(p).has("D") => {
                let to = Axis::new("H", Dim::sym("D").checked_div(&Dim::fixed(2)).unwrap());
                let start = if random.below(2) == 0 { Dim::fixed(0) } else { to.size.clone() };
                b.movement(Movement::Slice { axis: "D".into(), to, start }, &[p])
            }
            12 => b.elementwise(Elementwise::Select, &[mask, p, q]),
            13 => match some(random, p, &b) {
                Some(a) => b.movement(Movement::Index { axis: a.name, at: Dim::fixed(random.below(3) as i64) }, &[p]),
                None => continue,
            },
            _ => continue,
        };
        if let Ok(v) = made.and_then(|v| b.elementwise(Elementwise::Mul, &[v, v]).and(Ok(v))) {
            if b.ty(v).axes.len() <= 3 {
                pool.push(v);
            }
        }
    }
    for (i, v) in pool.iter().rev().take(1 + random.below(3)).enumerate() {
        b.result(format!("r{i}"), *v);
    }
    b.finish()
}

#[test]
fn graphs_of_primitives_are_cut_where_they_have_to_be() {
    let cases: u64 = std::env::var("CASES").map_or(4500, |n| n.parse().unwrap());
    let (mut run, mut kernels) = (0, 0);
    for seed in 0..cases {
        let mut random = Random(seed);
        let steps = 3 + random.below(12);
        let f = draw(&mut random, steps);
        let g = if random.below(2) == 0 { f.clone() } else { passes::ad::jvp(&f, &names("x,y,z,w,u")).unwrap_or(f) };
        ir::verify::verify(&g).unwrap();
        let d = dims(SIZES);
        let inputs = random.inputs(&g, &d);
        let all = ir::reference::evaluate(&g, &inputs, &d).unwrap();
        if all.iter().any(|t| t.to_f64().iter().any(|x| !x.is_finite() || x.abs() > 1e9)) {
            continue;
        }
        let o = Options { resident: if random.below(2) == 0 { 0 } else { 8192 }, scratch: seed % 3 == 1, ..options(&d, 1 + random.below(8), 1 + random.below(4), 1 + random.below(8)) };
        let n = simplified(&g);
        let fused = passes::fuse::fuse(&n, &o).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{}", ir::text::print_function(&n)));
        let e = error_of_terms(&g, &fused, &inputs, &d);
        let show = || format!("{}\n{}", ir::text::print_function(&n), fused.programs.iter().map(ToString::to_string).collect::<String>());
        assert!(e < 1e-9, "seed {seed}: off by {e:e}\n{}\n{}", fused.notes.join("\n"), show());
        run += 1;
        kernels += fused.programs.len();
    }
    println!("{run} graphs, {kernels} kernels");
    assert!(run * 10 > cases * 6 && kernels > run as usize, "{run} graphs, {kernels} kernels");
}
