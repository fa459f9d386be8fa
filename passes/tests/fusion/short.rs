//! Short axes on a machine whose instances have memory of their own: what is stored, what lies in lanes, how long tiles are.

use crate::support::*;
use ir::tile::{Program, Role};
use passes::fuse::{Fused, Options};

/// `name` of `short.pf`, fused knowing all of `sizes`, and right there.
fn right(name: &str, sizes: &str) -> Fused {
    let f = program("short.pf", name);
    let d = dims(sizes);
    let inputs = Random(3).inputs(&f, &d);
    let made = fused(&f, &Options { dims: d.clone(), scratch: true, matmul: (128, 256), resident: 8192, ..options(&d, 48, 16, 64) });
    let e = error(&f, &made, &inputs, &d);
    assert!(e < 1e-11, "{name} at {sizes} is off by {e:e}");
    made
}
fn lanes(p: &Program) -> Option<&str> {
    p.lanes.map(|a| &*p.axis(a).name)
}

#[test]
fn what_several_kernels_would_make_is_stored_once() {
    let f = right("shared", "B=64");
    assert_eq!(f.programs.iter().map(dot_terms).sum::<usize>(), 3, "{:?}", f.notes);
    assert!(f.notes.iter().any(|n| n.contains("2 kernels would make it")), "{:?}", f.notes);
    // In an order whose last axis fills vectors, not in that of the product.
    let stored = f.programs.iter().flat_map(|p| &p.buffers).find(|b| b.name.starts_with('%')).expect("something is stored");
    assert_eq!(stored.shape.last().and_then(|d| d.as_fixed()), Some(64), "{stored:?}");
    // Little of it is made twice rather than by a kernel more.
    assert!(!right("shared", "B=1").notes.iter().any(|n| n.contains("kernels would make it")));
}

#[test]
fn lanes_lie_along_an_axis_that_fills_them() {
    assert_eq!(lanes(&right("shared", "B=64").programs[0]), Some("U"));
    let f = right("heads", "B=64");
    assert!(f.programs.iter().all(|p| lanes(p) != Some("H")), "{}", f.programs[0]);
}

#[test]
fn tiles_are_no_longer_than_short_axes_and_shared_by_those_beside() {
    let f = right("shared", "B=64");
    let p = &f.programs[0];
    let role = |n: &str| p.axes.iter().find(|a| *a.name == *n).map(|a| a.role);
    assert_eq!((role("N"), role("D")), (Some(Role::Block(16)), Some(Role::Stream(40))), "{p}");
    assert!(matches!(role("B"), Some(Role::Block(n)) if n > 1), "{p}");
}

#[test]
fn statistics_of_rows_are_not_made_by_every_tile_of_columns() {
    let f = right("centred", "N=512");
    assert!(f.notes.iter().any(|n| n.contains("for their rows")), "{:?}", f.notes);
    assert_eq!(f.programs.len(), 2, "{:?}", f.notes);
    // A kernel more is not worth a few rows.
    assert_eq!(right("centred", "N=2").programs.len(), 1);
}

#[test]
fn products_without_lanes_are_stored() {
    let f = right("term", "B=128");
    assert!(f.notes.iter().any(|n| n.contains("along which lanes lie")), "{:?}", f.notes);
}
