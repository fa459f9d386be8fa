//! What is stored because making it again would cost more, and what is not.

use crate::support::*;
use ir::dim::Bindings;
use ir::tile::Role;
use passes::fuse::{Fused, Options};

/// `name` of `again.pf`, fused knowing the sizes `known`, right at the sizes `sizes`.
fn right(name: &str, known: &str, sizes: &str) -> Fused {
    let f = program("again.pf", name);
    let d = dims(sizes);
    let inputs = Random(3).inputs(&f, &d);
    let o = Options { dims: if known.is_empty() { Bindings::new() } else { dims(known) }, ..options(&d, 16, 4, 16) };
    let made = fused(&f, &o);
    let e = error(&f, &made, &inputs, &d);
    assert!(e < 1e-11, "{name} at {sizes} is off by {e:e}");
    made
}

/// Kernels, and pairs of operands in all their dots.
fn counts(f: &Fused) -> (usize, usize) {
    (f.programs.len(), f.programs.iter().map(dot_terms).sum())
}

#[test]
fn a_long_product_inside_a_loop_over_weights_is_stored() {
    assert_eq!(counts(&right("two_short_layers", "N=19", "N=19")), (1, 2));
    // What grows with two lengths is never stored for being cheaper.
    assert_eq!(counts(&right("two_lengths", "N=19,U=70", "N=19,U=70")), (1, 2));
    let long = right("two_layers", "N=19", "N=19");
    assert_eq!(counts(&long), (2, 2));
    assert!(long.notes.iter().any(|n| n.contains("each instance would read all of U")), "{:?}", long.notes);
}

#[test]
fn products_that_two_passes_need_are_made_once() {
    let sizes = |d: usize| format!("N=19,D={d},E=33");
    // As many as a write and a read are worth.
    assert_eq!(counts(&right("row_of_products", &sizes(8), &sizes(8))), (1, 2));
    let long = right("row_of_products", &sizes(40), &sizes(40));
    assert_eq!(counts(&long).1, 1, "{:?}", long.notes);
}

#[test]
fn what_every_tile_of_rows_would_make_is_stored() {
    // One tile of rows makes it once anyway.
    assert_eq!(right("computed_columns", "I=16,J=2000", "I=16,J=2000").programs.len(), 1);
    assert_eq!(right("computed_columns", "I=64,J=2000", "I=64,J=2000").programs.len(), 2);
    // A kernel more is not worth little work.
    assert_eq!(right("computed_columns", "I=64,J=50", "I=64,J=50").programs.len(), 1);
    // Lengths that are not known are taken to be long.
    assert_eq!(right("computed_columns", "", "I=21,J=50").programs.len(), 2);
}

#[test]
fn rows_of_products_are_not_of_the_operand_with_lanes() {
    let f = right("columns", "B=2,N=21", "B=2,N=21");
    let p = &f.programs[0];
    let role = |n: &str| p.axes.iter().find(|a| *a.name == *n).map(|a| a.role);
    assert!(matches!((role("E"), role("B"), role("N")), (Some(Role::Block(_)), Some(Role::Grid), Some(Role::Block(_)))), "{p}");
}
