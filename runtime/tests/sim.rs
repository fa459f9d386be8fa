//! The PTX machine: instructions against the ISA's text, checks while it runs, mutants.

#[path = "sim/arithmetic.rs"]
mod arithmetic;
#[path = "sim/checks.rs"]
mod checks;
#[path = "sim/cluster.rs"]
mod cluster;
#[path = "sim/control.rs"]
mod control;
#[path = "sim/matrix.rs"]
mod matrix;
#[path = "sim/mutants.rs"]
mod mutants;
#[path = "sim/support.rs"]
mod support;
#[path = "sim/warpgroup.rs"]
mod warpgroup;
