//! What fusion makes of gradients: few kernels, nothing of rows × columns in memory, and right at several tile sizes.

#[allow(dead_code)]
#[path = "fusion/support.rs"]
mod support;

use ir::dim::Name;
use ir::graph::Function;
use passes::ad::{jvp, vjp};
use passes::fuse::{Fused, fuse};
use passes::simplify::{normalize, simplify};
use support::*;

const SIZES: &str = "B=2,H=4,G=2,I=7,J=13,D=4,E=6";
const TILES: [(usize, usize, usize); 3] = [(16, 4, 16), (3, 2, 5), (64, 8, 128)];

fn show(f: &Fused) -> String {
    format!("{}\n{}", f.notes.join("\n"), f.programs.iter().map(ToString::to_string).collect::<String>())
}

/// Fuses both forms of `g` at several tile sizes, and compares each with `reference`.
fn right(g: &Function, sizes: &str) -> Vec<Fused> {
    let d = dims(sizes);
    let inputs = Random(7).inputs(g, &d);
    let mut all = vec![];
    for n in [normalize(g).unwrap(), simplify(g).unwrap().function] {
        for (lanes, rows, stream) in TILES {
            let fused = fuse(&n, &options(&d, lanes, rows, stream)).unwrap_or_else(|e| panic!("{e}\n{}", ir::text::print_function(&n)));
            let e = error_of_terms(g, &fused, &inputs, &d);
            assert!(e < 1e-10, "{} is off by {e:e} at tiles {lanes} {rows} {stream}\n{}", g.name, show(&fused));
            all.push(fused);
        }
    }
    all
}

/// At most `passes` kernels and passes over the data; and no buffer but `except` has an axis of both I and J.
fn streams(g: &Function, passes: usize, except: &[&str]) {
    let mut all = right(g, SIZES);
    // The form does not depend on whether rows would fit a tile.
    let long = dims("B=2,H=4,G=2,I=4096,J=5120,D=64,E=48");
    for n in [normalize(g).unwrap(), simplify(g).unwrap().function] {
        all.push(fuse(&n, &options(&long, 48, 16, 64)).unwrap_or_else(|e| panic!("{e}")));
    }
    for f in all {
        let walks: usize = f.programs.iter().map(|p| carried(p).len().max(1)).sum();
        assert!(walks <= passes, "{}: {} kernels, {walks} passes\n{}", g.name, f.programs.len(), show(&f));
        for p in &f.programs {
            for b in &p.buffers {
                let has = |n: &str| b.shape.iter().any(|s| s.symbols().iter().any(|x| &**x == n));
                assert!(!(has("I") && has("J")) || except.contains(&&*b.name), "{}: {} of rows and columns\n{}", g.name, b.name, show(&f));
            }
        }
    }
}

fn scores() -> Vec<Function> {
    parse(&source("scores.pf"))
}

fn gradient(f: &Function, list: &str) -> Function {
    let g = vjp(f, &names(list)).unwrap();
    ir::verify::verify(&g).unwrap();
    g
}

#[test]
fn gradients_of_weighted_sums_are_three_kernels() {
    for f in scores() {
        // Of q over the columns, of k and v over the rows; before or with the first, the sums that both need.
        streams(&gradient(&f, "q,k,v"), 3, &["bias", "mask"]);
    }
}

#[test]
fn what_is_not_asked_for_costs_nothing() {
    for f in scores() {
        streams(&gradient(&f, "q"), 2, &["bias", "mask"]);
        streams(&gradient(&f, "v"), 2, &["bias", "mask"]);
    }
    // A gradient of rows and columns is one of the results, if it is asked for.
    streams(&gradient(&program("scores.pf", "bias"), "q,k,v,bias"), 4, &["bias", "bias.ct"]);
}

#[test]
fn gradients_of_tangents_are_few_kernels_too() {
    for f in scores().into_iter().step_by(2) {
        let j = jvp(&f, &names("q,k,v")).unwrap();
        streams(&gradient(&j, "q,k,v,q.t,k.t,v.t"), 4, &["bias", "mask"]);
        let g = jvp(&gradient(&f, "q,k,v"), &names("q,k,v,o.ct")).unwrap();
        streams(&g, 4, &["bias", "mask"]);
    }
}

#[test]
fn gradients_of_rows_and_losses() {
    for (file, sizes) in [("rows.pf", "B=2,N=7,D=6,K=5,F=6,H=2"), ("long_axis.pf", "N=5,V=23,K=4")] {
        for f in parse(&source(file)) {
            let wrt: Vec<Name> = names(&floats(&f));
            right(&vjp(&f, &wrt).unwrap(), sizes);
            let j = jvp(&f, &wrt).unwrap();
            let both: Vec<Name> = wrt.iter().cloned().chain(wrt.iter().map(|n| format!("{n}.t").into())).collect();
            right(&vjp(&j, &both).unwrap(), sizes);
        }
    }
    // The logits' gradient is as long as they are, and is stored nowhere.
    let g = vjp(&program("long_axis.pf", "loss"), &names("x,w")).unwrap();
    let d = dims("N=4096,V=32000,K=64");
    let f = fuse(&simplify(&g).unwrap().function, &options(&d, 48, 16, 64)).unwrap();
    for b in f.programs.iter().flat_map(|p| &p.buffers) {
        let has = |n: &str| b.shape.iter().any(|s| s.symbols().iter().any(|x| &**x == n));
        assert!(!(has("N") && has("V")), "{}", show(&f));
    }
}

#[test]
fn gradients_where_there_is_movement() {
    let text = std::fs::read_to_string(format!("{}/tests/programs_vjp/movement.pf", env!("CARGO_MANIFEST_DIR"))).unwrap();
    for f in parse(&text) {
        let wrt = names(&floats(&f));
        right(&vjp(&f, &wrt).unwrap(), "N=5,D=7,K=3,R=4,P=3,A=2,B=4,C=3,M=5");
    }
}
