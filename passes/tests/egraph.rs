//! The e-graph: every rule is true, every condition is needed, the result means the same and never costs more.

use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::reference::evaluate;
use ir::tensor::{Tensor, relative_error};
use ir::types::{Axis, DType};
use passes::ad::jvp;
use passes::simplify::normal::{Condition, normalize_without};
use passes::simplify::rules::{Bound, RULES, Rule, instance};
use passes::simplify::{normalize, simplify, simplify_with};
use proptest::test_runner::{RngAlgorithm, TestRng};
use proptest::prelude::Rng;
use std::collections::BTreeMap;

fn rng(seed: u8) -> TestRng {
    TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32])
}

/// In −1..1, away from zero.
fn draw(r: &mut TestRng) -> f64 {
    let u = f64::from(r.next_u32()) / f64::from(u32::MAX);
    (0.2 + 0.8 * u) * if r.next_u32() & 1 == 0 { 1.0 } else { -1.0 }
}

fn inputs(f: &Function, dims: &Bindings, r: &mut TestRng) -> Vec<Tensor> {
    let one = |p: &ir::graph::Port, r: &mut TestRng| {
        let ty = f.ty(p.var);
        let shape = ty.sizes(dims).unwrap();
        let data: Vec<f64> = (0..shape.iter().product()).map(|_| if ty.dtype.is_float() { draw(r) } else { f64::from(r.next_u32() % 2) }).collect();
        Tensor::from_f64(if ty.dtype.is_float() { DType::F64 } else { ty.dtype }, &shape, &data).unwrap()
    };
    f.params.iter().map(|p| one(p, r)).collect()
}

/// The variables of a pattern; those behind `(sum ` are axes.
fn variables(rule: &Rule) -> BTreeMap<String, bool> {
    let words: Vec<&str> = rule.from.split_inclusive([' ', '(', ')']).map(|w| w.trim_matches([' ', '(', ')'])).filter(|w| !w.is_empty()).collect();
    words.iter().enumerate().filter(|(_, w)| w.starts_with('?')).map(|(i, w)| (w.to_string(), i > 0 && words[i - 1] == "sum")).collect()
}

/// Some instances of `rule` on which its law fails, and how many were tried.
fn counterexamples(rule: &Rule) -> (Vec<String>, usize) {
    let mut r = rng(7);
    let dims: Bindings = [("I".into(), 2), ("J".into(), 3), ("K".into(), 4)].into();
    let (mut found, mut tried) = (vec![], 0);
    for _ in 0..4000 {
        let mut bound = BTreeMap::new();
        for (v, is_axes) in variables(rule) {
            let some: Vec<&str> = ["I", "J", "K"].into_iter().filter(|_| r.next_u32() % 2 == 0).collect();
            bound.insert(v, if is_axes { Bound::Axes(some.iter().map(|n| Name::from(*n)).collect()) } else { Bound::Value(some.iter().map(|n| Axis::sym(*n)).collect()) });
        }
        if bound.values().any(|b| matches!(b, Bound::Axes(a) if a.is_empty())) {
            continue;
        }
        let Some([Ok(from), to]) = instance(rule, &bound) else { continue };
        tried += 1;
        let x = inputs(&from, &dims, &mut r);
        let want = evaluate(&from, &x, &dims).unwrap();
        let same = to.is_ok_and(|to| {
            let order: Vec<Name> = from.ty(from.results[0].var).axes.iter().map(|a| a.name.clone()).collect();
            let axes = &to.ty(to.results[0].var).axes;
            if axes.len() != order.len() || !order.iter().all(|n| axes.iter().any(|a| a.name == *n)) {
                return false;
            }
            let mut b = ir::builder::Builder::extend(to);
            let y = b.clear_results()[0].var;
            let y = b.permute(y, &order).unwrap();
            b.result("y", y);
            let got = evaluate(&b.finish(), &x, &dims).unwrap();
            // In units of the largest element: sums may cancel.
            let scale = want[0].to_f64().iter().fold(1e-3f64, |m, x| m.max(x.abs()));
            want[0].to_f64().iter().zip(got[0].to_f64()).all(|(a, b)| (a - b).abs() <= 1e-12 * scale)
        });
        if !same {
            found.push(format!("{}: {bound:?}", rule.name));
        }
    }
    (found, tried)
}

#[test]
fn every_rule_is_true() {
    for rule in RULES {
        let (bad, tried) = counterexamples(rule);
        assert!(bad.is_empty(), "{}", bad[0]);
        assert!(tried >= 20, "{}: only {tried} instances", rule.name);
    }
}

#[test]
fn without_any_one_condition_a_rule_is_false() {
    let mut dropped = 0;
    for rule in RULES {
        for i in 0..rule.when.len() {
            let when: Vec<_> = rule.when.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, c)| *c).collect();
            let mutant = Rule { when: when.leak(), ..*rule };
            assert!(!counterexamples(&mutant).0.is_empty(), "{} is true without {:?}", rule.name, rule.when[i]);
            dropped += 1;
        }
    }
    assert!(dropped >= 6);
}

fn parse(text: &str) -> Function {
    ir::text::parse(text).unwrap_or_else(|e| panic!("{}", ir::diagnostic::render(&e, "text", text))).functions[0].clone()
}

/// The largest difference between `f` and what `change` makes of it, on some random inputs.
fn difference(f: &Function, change: &dyn Fn(&Function) -> Result<Function, ir::diagnostic::Error>, offset: f64) -> f64 {
    let Ok(g) = change(f) else { return f64::INFINITY };
    let dims: Bindings = f.dims().into_iter().zip([3, 4, 5, 2, 6, 7]).collect();
    let mut r = rng(3);
    let x: Vec<Tensor> = inputs(f, &dims, &mut r).iter().map(|t| Tensor::from_f64(DType::F64, t.shape(), &t.to_f64().iter().map(|v| v + offset).collect::<Vec<_>>()).unwrap()).collect();
    let Ok(got) = evaluate(&g, &x, &dims) else { return f64::INFINITY };
    evaluate(f, &x, &dims).unwrap().iter().zip(&got).map(|(a, b)| if a.shape() == b.shape() { relative_error(b, a) } else { f64::INFINITY }).fold(0.0, f64::max)
}

/// Programs that between them need each side condition of the normalizer; the number is added to every input.
const NEEDS: [(Condition, &str, f64); 5] = [
    (Condition::HoistFree, "fn f(a: f64[I], x: f64[I,J]) -> (y: f64[I]) { y = reduce_sum(a * x, j) }", 0.0),
    (Condition::CountAbsent, "fn f(a: f64[I], x: f64[I,J]) -> (y: f64[I]) { y = reduce_sum(broadcast(a, [J]) + x, j) }", 0.0),
    (Condition::OpenAbove, "fn f(x: f64[I,J], z: f64[I,J]) -> (y: f64[I]) { m = reduce_sum(x * x, j)  y = reduce_sum(z / (m * x + z * z), j) }", 0.0),
    (Condition::OpenOnce, "fn f(x: f64[I,J], z: f64[I,J]) -> (y: f64[I]) { m = reduce_sum(x * x, j)  s = m * x + z  y = reduce_sum(s * s * z, j) }", 0.0),
    (Condition::CentreWeighted, "fn f(x: f64[I,J]) -> (y: f64[I]) { m = mean(x, j)  d = x - m  y = reduce_sum(d * exp(m - m) * x, j) }", 1e7),
];

#[test]
fn the_normalizer_needs_each_side_condition() {
    for (condition, text, offset) in NEEDS {
        let f = parse(text);
        let bound = if offset == 0.0 { 1e-12 } else { 1e-6 };
        let kept = difference(&f, &normalize, offset);
        assert!(kept < bound, "{condition:?}: {kept:e}");
        let lost = difference(&f, &|f| normalize_without(f, Some(condition)), offset);
        assert!(lost > bound, "nothing fails without {condition:?}: {lost:e}");
    }
    assert_eq!(Condition::ALL.len(), NEEDS.len());
}

fn programs() -> Vec<Function> {
    let mut all = vec![];
    for p in ["examples/attention", "examples/attention_variants", "examples/chain", "examples/cross_entropy", "examples/gelu_linear", "examples/norm_modulate", "passes/tests/programs/found"] {
        let text = std::fs::read_to_string(format!("{}/../{p}.pf", env!("CARGO_MANIFEST_DIR"))).unwrap();
        for f in ir::text::parse(&text).unwrap().functions {
            let wrt: Vec<Name> = f.params.iter().filter(|p| f.ty(p.var).dtype.is_float()).map(|p| p.name.clone()).collect();
            all.push(jvp(&f, &wrt).unwrap());
            all.push(f);
        }
    }
    all
}

#[test]
fn meaning_is_kept_and_nothing_costs_more() {
    let mut better = 0;
    for f in programs() {
        let s = simplify(&f).unwrap();
        ir::verify::verify(&s.function).unwrap_or_else(|e| panic!("{}: {}\n{}", f.name, e[0], ir::text::print_function(&s.function)));
        assert_eq!(s.report.stop, "saturated", "{}", f.name);
        let (normal, taken) = (s.report.normal.clone().unwrap(), s.report.taken.clone().unwrap());
        assert!(taken.score() <= normal.score(), "{}", f.name);
        // One more pass only for a quarter of the work, or less.
        assert!(taken.passes <= normal.passes || 4.0 * taken.work < normal.work, "{}: {} passes, {} in normal form", f.name, taken.passes, normal.passes);
        better += usize::from(taken != normal);
        let dims: Bindings = f.dims().into_iter().enumerate().map(|(i, d)| (d.clone(), if matches!(&*d, "H" | "D") { 4 } else { 2 + (i as i64 % 3) })).collect();
        let x = inputs(&f, &dims, &mut rng(1));
        let (a, b) = (evaluate(&f, &x, &dims).unwrap(), evaluate(&s.function, &x, &dims).unwrap());
        for ((a, b), r) in a.iter().zip(&b).zip(&f.results) {
            let e = relative_error(b, a);
            assert!(e < 1e-11, "{} {}: {e:e}\n{}", f.name, r.name, ir::text::print_function(&s.function));
        }
        // Same input, same bytes.
        assert_eq!(ir::text::print_function(&s.function), ir::text::print_function(&simplify(&f).unwrap().function));
    }
    assert!(better >= 2);
}

#[test]
fn the_graph_beats_the_normalizer_on_a_chain() {
    for f in programs().iter().filter(|f| f.name.starts_with("chain")) {
        let s = simplify(f).unwrap();
        let (normal, taken) = (s.report.normal.clone().unwrap(), s.report.taken.clone().unwrap());
        assert!(taken.work * 10.0 < normal.work, "{}: {:e} of {:e}", f.name, taken.work, normal.work);
        // No matrix product is left: every contraction has a vector in it.
        for e in s.function.eqns.iter().filter(|e| e.op.name() == "contract") {
            assert!(s.function.ty(e.out).axes.len() < 2, "{}", ir::text::print_function(&s.function));
        }
        let proof = s.explain();
        assert!(proof.contains("sum-chain: "), "{proof}");
        assert!(!proof.contains("no proof"), "{proof}");
    }
}

#[test]
fn saturation_needs_the_conditions_of_worth() {
    let f = programs().into_iter().find(|f| &*f.name == "softcapped.jvp").unwrap();
    let grouping: Vec<Rule> = RULES.iter().filter(|r| !r.worth.is_empty()).copied().collect();
    assert_eq!(grouping.len(), 2);
    for rule in grouping {
        let free: Vec<Rule> = RULES.iter().map(|r| if r.name == rule.name { Rule { worth: &[], ..*r } } else { *r }).collect();
        let (with, without) = (simplify(&f).unwrap().report, simplify_with(&f, &free, &[]).unwrap().report);
        assert!(with.stop == "saturated" && without.stop != "saturated", "{}: {} nodes, {} without its condition", rule.name, with.nodes, without.nodes);
    }
}

/// The backward of a weighted sum whose result and log-sum-exp were saved: what the caller knows makes the row sum `Σ_j p·Σ_e v·g`
/// that result times its cotangent, outside of the loop over j, and the weights one exp each.
#[test]
fn saved_residuals_are_found_where_they_occur() {
    let f = parse(
        "fn backward(q: f64[I,D], k: f64[J,D], v: f64[J,E], o: f64[I,E], lse: f64[I], g: f64[I,E]) -> (dq: f64[I,D], dk: f64[J,D], dv: f64[J,E]) {
           s = contract(q, k, [D])
           m = stop_gradient(reduce_max(s, j))
           w = exp(s - m)
           p = w / reduce_sum(w, j)
           y = contract(p, v, [J])
           e = exp(s - lse)
           dp = contract(g, v, [E])
           ds = p * (dp - reduce_sum(p * dp, j))
           dq = contract(ds, k, [J])
           dk = contract(ds, q, [I])
           dv = contract(p, g, [I])
           keep = add(y, e)
         }",
    );
    let var = |n: &str| ir::graph::Var(f.vars.iter().position(|v| v.name.as_deref() == Some(n)).unwrap() as u32);
    let known = [(var("o"), var("y")), (var("p"), var("e"))];
    let s = simplify_with(&f, RULES, &known).unwrap();
    let text = ir::text::print_function(&s.function);
    // No maximum, no row sum of weights, and D = Σ_e o·g.
    assert!(!text.contains("reduce_max") && text.contains("lse"), "{text}\n{}", s.explain());
    assert!(text.contains("reduce_sum(") && text.contains(", [E])"), "{text}");
    let over_j = s.function.eqns.iter().filter(|e| matches!(&e.op, ir::prim::Prim::Contract(a) | ir::prim::Prim::Reduce(_, a) if a.iter().any(|n| &**n == "J"))).count();
    assert_eq!(over_j, 1, "{text}");
    // The same gradients, given residuals that are what they say.
    let dims: Bindings = [("I", 3), ("J", 4), ("D", 2), ("E", 5)].into_iter().map(|(n, k)| (n.into(), k)).collect();
    let mut x = inputs(&f, &dims, &mut rng(2));
    let forward = parse(
        "fn forward(q: f64[I,D], k: f64[J,D], v: f64[J,E]) -> (o: f64[I,E], lse: f64[I]) {
           s = contract(q, k, [D])
           o = contract(softmax(s, j), v, [J])
           lse = logsumexp(s, j)
         }",
    );
    let saved = evaluate(&forward, &x[..3], &dims).unwrap();
    x.splice(3..5, saved);
    for (a, b) in evaluate(&f, &x, &dims).unwrap().iter().zip(&evaluate(&s.function, &x, &dims).unwrap()) {
        assert!(relative_error(b, a) < 1e-12, "{text}");
    }
}
