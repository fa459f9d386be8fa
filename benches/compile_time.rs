//! From text to a loaded object, nothing from a cache: what a user waits for when a program is new.

#[path = "support/kernel.rs"]
mod support;

use ir::types::DType;
use pushforward::machine;
use runtime::cache::Cache;

fn main() {
    let mut c = support::criterion();
    let mut group = c.benchmark_group("text to loaded object");
    for p in support::ATTENTION.iter().chain(&support::LAYERS) {
        group.bench_function(p.name, |x| x.iter(|| machine::cpu(&p.load(), &p.bindings(), DType::F32, &Cache::new(None)).map(|c| c.kernels.len()).unwrap_or_else(|e| panic!("{e}"))));
    }
    group.finish();
    c.final_summary();
}
