//! The passes alone, each with those before it: differentiation, normal form, e-graph, fusion, with the number of equations as elements; the JVP of the JVP is the largest.

#[path = "support/kernel.rs"]
mod support;

use criterion::Throughput;
use support::{ATTENTION, LAYERS, Program};

const TWICE: Program = Program { name: "jvp of jvp", file: "attention.pf", function: None, jvp: &["q,k,v", "q,k,v"], dims: "D=64" };

fn main() {
    let mut c = support::criterion();
    for (what, run) in [
        ("parse and differentiate", (|p: &Program| p.load().eqns.len()) as fn(&Program) -> usize),
        ("and normalize", |p| passes::simplify::normalize(&p.load()).map(|f| f.eqns.len()).unwrap_or_else(|e| panic!("{e}"))),
        ("and simplify", |p| passes::simplify::simplify(&p.load()).map(|s| s.function.eqns.len()).unwrap_or_else(|e| panic!("{e}"))),
        ("and fuse", |p| pushforward::machine::compile(&p.load(), &p.bindings(), ir::types::DType::F32).map(|f| f.programs.len()).unwrap_or_else(|e| panic!("{e}"))),
    ] {
        let mut group = c.benchmark_group(what);
        for p in ATTENTION.iter().chain([&TWICE]).chain(&LAYERS) {
            group.throughput(Throughput::Elements(p.load().eqns.len() as u64));
            group.bench_function(p.name, |x| x.iter(|| run(p)));
        }
        group.finish();
    }
    c.final_summary();
}
