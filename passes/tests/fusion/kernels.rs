//! How many kernels, passes, accumulators and contractions come out, and that they are right at several tile sizes.

use crate::support::*;
use ir::graph::Function;
use passes::fuse::{Fused, Options};

const TILES: [(usize, usize, usize); 3] = [(16, 4, 16), (3, 2, 5), (64, 8, 128)];

/// Fuses the normal form of `g`, and the form that the e-graph takes, at several tile sizes, and compares each with `reference`.
/// The normal form's programs and those of the e-graph's form are returned.
fn both(g: &Function, sizes: &str, change: impl Fn(&mut Options)) -> [Fused; 2] {
    let d = dims(sizes);
    let inputs = Random(7).inputs(g, &d);
    [("normal form", simplified(g)), ("e-graph", cheapest(g))].map(|(form, n)| {
        let mut first: Option<Fused> = None;
        for (lanes, rows, stream) in TILES {
            let mut o = options(&d, lanes, rows, stream);
            change(&mut o);
            let f = fused_as_it_is(&n, &o);
            let e = error(g, &f, &inputs, &d);
            let show = || f.programs.iter().map(ToString::to_string).collect::<String>();
            assert!(e < 1e-11, "{} ({form}) is off by {e:e} at tiles {lanes} {rows} {stream}\n{}", g.name, show());
            first.get_or_insert(f);
        }
        first.unwrap()
    })
}

/// The normal form's.
fn right(g: &Function, sizes: &str, change: impl Fn(&mut Options)) -> Fused {
    let [normal, _] = both(g, sizes, change);
    normal
}

/// One kernel with one loop that carries `narrow` values a row and `wide` ones, and has `dots` contractions.
fn one_pass(g: &Function, sizes: &str, (narrow, wide, dots): (usize, usize, usize)) {
    for f in both(g, sizes, |_| {}) {
        let show = || format!("{}\n{}", f.notes.join("\n"), f.programs.iter().map(ToString::to_string).collect::<String>());
        assert_eq!(f.programs.len(), 1, "{}: kernels\n{}", g.name, show());
        let loops = carried(&f.programs[0]);
        assert_eq!(loops.len(), 1, "{}: passes\n{}", g.name, show());
        let n = loops[0].iter().filter(|c| c.contains(' ')).count();
        assert_eq!((loops[0].len() - n, n, dot_terms(&f.programs[0])), (narrow, wide, dots), "{}: accumulators and contractions\n{}", g.name, show());
        assert!(f.notes.is_empty(), "{}: {}", g.name, show());
    }
}

const SIZES: &str = "B=2,H=4,G=2,I=7,J=13,D=4,E=6";

/// Every program of `scores.pf`.
fn scores() -> Vec<Function> {
    parse(&source("scores.pf"))
}

#[test]
fn weighted_sums_stream_with_three_accumulators() {
    for f in scores() {
        one_pass(&f, SIZES, (2, 1, 2));
    }
}

#[test]
fn their_tangents_stream_with_five() {
    // Scores, their tangent (2), the sum, its tangent (2).
    for f in scores() {
        let wrt = "q,k,v";
        one_pass(&derive(&f, wrt), SIZES, (3, 2, 6));
    }
}

#[test]
fn a_bias_may_carry_a_tangent() {
    one_pass(&derive(&program("scores.pf", "bias"), "q,k,v,bias"), SIZES, (3, 2, 6));
    one_pass(&derive(&program("scores.pf", "bias"), "bias"), SIZES, (3, 2, 3));
    one_pass(&derive(&program("scores.pf", "slopes"), "q,k,v,slope"), SIZES, (3, 2, 6));
}

#[test]
fn inactive_operands_cost_no_contraction() {
    for f in scores() {
        one_pass(&derive(&f, "q"), SIZES, (3, 2, 4));
        one_pass(&derive(&f, "k"), SIZES, (3, 2, 4));
        one_pass(&derive(&f, "v"), SIZES, (2, 2, 3));
    }
}

#[test]
fn tangents_of_tangents_stream_with_seven() {
    for f in scores() {
        let g = derive(&f, "q,k,v");
        one_pass(&derive(&g, "q.t,k.t,v.t"), SIZES, (4, 3, 10));
    }
}

/// `f` with parameter `gone` replaced by `by`.
fn substitute(f: &Function, gone: &str, by: &str) -> Function {
    let (old, new) = (f.param(gone).unwrap(), f.param(by).unwrap());
    let mut g = f.clone();
    g.params.retain(|p| p.var != old);
    g.eqns.iter_mut().flat_map(|e| &mut e.args).filter(|a| **a == old).for_each(|a| *a = new);
    ir::text::parse(&ir::text::print_function(&g)).unwrap().functions.remove(0)
}

#[test]
fn second_order_streams_in_one_pass() {
    let f = program("scores.pf", "cross");
    // Two directions: m, and a sum and a weighted sum for the value, each direction, and both.
    let mixed = derive(&derive(&f, "q,k,v"), "q,k,v");
    one_pass(&mixed, SIZES, (5, 4, 15));
    // One direction twice: seven.
    let mut twice = ["q", "k", "v"].iter().fold(mixed, |g, n| substitute(&g, &format!("{n}.t2"), &format!("{n}.t")));
    twice.results.retain(|r| &*r.name != "o.t2");
    one_pass(&twice, SIZES, (4, 3, 9));
}

#[test]
fn centring_carries_nothing_wide() {
    let g = derive(&program("scores.pf", "cross"), "q,k,v");
    let with = right(&g, SIZES, |o| o.center = true);
    let without = right(&g, SIZES, |o| o.center = false);
    let wide = |f: &Fused| carried(&f.programs[0])[0].iter().filter(|c| c.contains(' ')).count();
    assert_eq!(wide(&with), wide(&without));
    assert!(carried(&with.programs[0])[0].len() <= carried(&without.programs[0])[0].len() + 1);
    assert_ne!(with.programs[0].to_string(), without.programs[0].to_string());
}

#[test]
fn any_head_size() {
    let g = derive(&program("scores.pf", "plain"), "q,k,v");
    for d in [12, 28, 72, 80, 96, 256] {
        one_pass(&g, &format!("B=1,H=1,I=5,J=9,D={d}"), (3, 2, 6));
    }
}

#[test]
fn lengths_that_tiles_do_not_divide() {
    let g = derive(&program("scores.pf", "causal"), "q,k,v");
    for (i, j) in [(1, 1), (1, 40), (17, 1), (16, 16), (33, 31)] {
        one_pass(&g, &format!("B=1,H=2,I={i},J={j},D=4,E=3"), (3, 2, 6));
    }
}

#[test]
fn a_long_axis_streams_without_scores() {
    let of = |name: &str, wrt: &str| {
        let f = program("long_axis.pf", name);
        let g = if wrt.is_empty() { f } else { derive(&f, wrt) };
        let f = right(&g, "N=6,V=23,K=5", |_| {});
        assert_eq!(f.programs.len(), 1, "{name}: {}", f.notes.join("\n"));
        carried(&f.programs[0]).iter().map(Vec::len).collect::<Vec<_>>()
    };
    // A pass that carries, and one that stores what has the long axis.
    assert_eq!(of("log_weights", ""), [2, 0]);
    assert_eq!(of("log_weights", "x"), [3, 0]);
    assert_eq!(of("weights", ""), [2, 0]);
    assert_eq!(of("weights", "x"), [3, 0]);
    // The maximum, the sum, the label's score; and the tangents of the last two.
    assert_eq!(of("loss", ""), [3]);
    assert_eq!(of("loss", "x"), [5]);
    assert_eq!(of("loss", "x,w"), [5]);
}

#[test]
fn rows_stay_in_the_tile() {
    for (name, wrt) in [("centred", "x,shift,scale"), ("centred", "x"), ("scaled", "x,w,shift,scale"), ("scaled", "x")] {
        let f = program("rows.pf", name);
        for g in [f.clone(), derive(&f, wrt), derive(&derive(&f, wrt), &format!("{wrt},x.t"))] {
            let fused = right(&g, "B=2,N=5,D=12", |o| o.resident = 8192);
            assert_eq!(fused.programs.len(), 1, "{}: {}", g.name, fused.notes.join("\n"));
            assert!(carried(&fused.programs[0]).is_empty(), "{}: {}", g.name, fused.programs[0]);
        }
    }
}

#[test]
fn an_epilogue_stays_with_its_matrix_product() {
    for name in ["gated_linear", "gated_linear_tanh"] {
        let f = program("rows.pf", name);
        let count = |g: &Function| {
            let fused = right(g, "N=9,K=21,F=10", |_| {});
            assert_eq!(fused.programs.len(), 1, "{}: {}", g.name, fused.notes.join("\n"));
            (carried(&fused.programs[0]), dot_terms(&fused.programs[0]))
        };
        let wide = |n: usize| vec![vec!["N F".to_string(); n]];
        assert_eq!(count(&f), (wide(1), 1));
        assert_eq!(count(&derive(&f, "x,w,b")), (wide(2), 3));
        assert_eq!(count(&derive(&f, "x")), (wide(2), 2));
    }
}

#[test]
fn movement_is_an_address() {
    for name in ["turned_pairs", "turned_halves"] {
        let f = program("rows.pf", name);
        for g in [f.clone(), derive(&f, "x"), derive(&f, "x,angle")] {
            let fused = right(&g, "B=2,N=5,H=3,D=8", |_| {});
            assert_eq!(fused.programs.len(), 1, "{}: {}", g.name, fused.notes.join("\n"));
        }
    }
}

#[test]
fn what_has_no_law_is_refused_by_name_and_right() {
    let culprit = [("plus_one", "(add)"), ("square_of_shift", "(mul)"), ("variance", "(reduce_sum)"), ("growing", "(exp)"), ("tanh_of_shift", "(tanh)")];
    let programs = parse(&source("refused.pf"));
    assert_eq!(programs.iter().map(|f| &*f.name).collect::<Vec<_>>(), culprit.map(|c| c.0));
    for (f, (_, equation)) in programs.iter().zip(culprit) {
        for g in [f.clone(), derive(f, &floats(f))] {
            let fused = right(&g, "N=6,V=23,E=4", |_| {});
            let named = |n: &String| n.contains(&format!("{equation} has no scaling law")) && n.contains("waits for pass 2 over V");
            assert!(fused.notes.iter().any(named), "{}: {:?}", g.name, fused.notes);
            let passes: usize = fused.programs.iter().map(|p| carried(p).len()).sum();
            assert!(passes > 1, "{}: {passes} passes", g.name);
        }
    }
}

#[test]
fn what_was_found_stays_right() {
    for f in parse(&source("found.pf")) {
        let all = floats(&f);
        for g in [derive(&f, &all), derive(&derive(&f, &all), &all)] {
            for center in [true, false] {
                let fused = right(&g, "N=3,J=7,D=2,E=3", |o| o.center = center);
                assert_eq!((fused.programs.len(), carried(&fused.programs[0]).len()), (1, 1), "{}: {:?}", g.name, fused.notes);
            }
        }
    }
}
