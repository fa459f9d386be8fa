//! Fused programs without attention in sight, with their JVPs, on the CPU; "elem/s" are floating-point operations a second.

#[path = "support/kernel.rs"]
mod support;

fn main() {
    let pool = runtime::cpu::Pool::from_env();
    let mut c = support::criterion();
    let mut group = c.benchmark_group("layers");
    support::LAYERS.iter().for_each(|p| p.time(&mut group, &pool));
    group.finish();
    c.final_summary();
}
