//! Programs that nobody wrote: random scores, weights written in many ways, random sums over them; and laws that hold for each.
//!
//! ```text
//! verify(pass(p)), parse(print(p)) = p, interp(lower(p)) ≈ p at any tile size
//! one pass, or a note that names the equation in the way
//! ```

use crate::support::*;
use ir::graph::Function;
use passes::fuse::Options;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestCaseError, TestRng, TestRunner};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// What a program is made of; every field picks from a list.
#[derive(Clone, Debug)]
struct Recipe {
    dot: usize,
    steps: Vec<usize>,
    mask: usize,
    weights: usize,
    sums: Vec<usize>,
    wrt: usize,
    order: usize,
    tiles: (usize, usize, usize),
    sizes: (usize, usize, usize, usize),
    center: bool,
    resident: bool,
    seed: u64,
}

const DOTS: [&str; 4] = [
    "contract(\"nd,jd->nj\", q, k)",
    "contract(\"jd,nd->nj\", k, q)",
    "reduce_sum(mul(q, k), d)",
    "(contract(\"nd,jd->nj\", q, k) + contract(\"jd,nd->nj\", k, tanh(q))) * 0.5",
];

/// Steps from score to score.
const STEPS: [&str; 18] = [
    "s * rsqrt(D)", "s * 0.5", "s + bias", "s - col", "s + row", "tanh(s)", "2 * tanh(s / 2)", "sin(s) + s", "s * logistic(s)", "s * col", "s * row",
    "s - 0.1 * convert(abs(iota(N) - iota(J)), f32)", "max(s, col)", "s * s * 0.2", "select(iota(J) < 5, s, row)", "erf(s) - bias", "s / (1 + row * row)", "s - s * col * 0.3",
];

const MASKS: [&str; 5] = ["", "iota(J) <= iota(N)", "mask", "iota(J) < len", "(iota(J) >= iota(N) - 3) & (iota(J) < len)"];

/// Weights along J of scores `s`, as statements that define `w`; `L` is a sum that is not 0.
const WEIGHTS: [&str; 14] = [
    "p = exp(s - stop_gradient(reduce_max(s, j)))\n w = p / L",
    "p = exp(s - stop_gradient(reduce_max(s, j)))\n w = p * (1 / L)",
    "p = exp(s - reduce_max(s, j))\n w = p / L",
    "p = exp(stop_gradient(-reduce_max(s, j)) + s)\n w = p / L",
    "p = exp(s - stop_gradient(reduce_max(s, j)))\n w = exp(s - (stop_gradient(reduce_max(s, j)) + log(L)))",
    "p = exp(s - stop_gradient(reduce_max(s, j)))\n w = exp(s - stop_gradient(reduce_max(s, j)) - log(L))",
    "p = exp(s)\n w = p / L",
    "p = exp(tanh(s))\n w = p",
    "p = exp(2 * (s - stop_gradient(reduce_max(s, j))))\n w = p / L",
    "p = exp(s - stop_gradient(reduce_max(s, j))) * exp(0.1 * s)\n w = p / L",
    "p = 1 / exp(stop_gradient(reduce_max(s, j)) - s)\n w = p / L",
    "p = exp(s - stop_gradient(reduce_max(s, j))) + 0.01\n w = p / L",
    "p = logistic(s)\n w = p / L",
    "p = exp(s - stop_gradient(max(reduce_max(s, j), 0)))\n w = p / L",
];

/// Those that stream in one pass, whatever the scores and the sums are, and so do their tangents of any order.
const STREAMS: [usize; 9] = [0, 1, 3, 6, 7, 8, 9, 10, 12];

/// Results from weights: statement, and type.
const SUMS: [(&str, &str); 8] = [
    ("contract(\"nj,je->ne\", w, v)", "[N,E]"),
    ("contract(\"je,nj->ne\", v, w)", "[N,E]"),
    ("reduce_sum(mul(w, v), j)", "[N,E]"),
    ("reduce_sum(w * bias, j)", "[N]"),
    ("contract(\"nj,je->ne\", p, tanh(v)) / L", "[N,E]"),
    ("reduce_sum(w * w, j)", "[N]"),
    ("log(L)", "[N]"),
    ("contract(\"nj,je->ne\", w, v) + contract(\"nj,je->ne\", w * col, v)", "[N,E]"),
];

const WRT: [&str; 8] = ["q,k,v", "q", "k", "v", "q,bias", "q,k,v,bias,row,col", "row", "k,col"];

impl Recipe {
    fn text(&self) -> String {
        let mut body = format!("s0 = {}\n", DOTS[self.dot]);
        for (i, step) in self.steps.iter().enumerate() {
            let old = format!("s{i}");
            let words = STEPS[*step].split_inclusive(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let step: String = words.map(|w| match w.strip_prefix('s') {
                Some(rest) if !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') => format!("{old}{rest}"),
                _ => w.to_string(),
            }).collect();
            body += &format!("  s{} = permute({step}, [N,J])\n", i + 1);
        }
        let last = format!("s{}", self.steps.len());
        let (s, l) = match MASKS[self.mask] {
            "" => (last, "reduce_sum(p, j)".to_string()),
            m => (format!("select({m}, {last}, -inf)"), "select(reduce_sum(p, j) > 0, reduce_sum(p, j), 1)".into()),
        };
        // Letters count axes by position, and a mask may bring its own order.
        body += &format!("  s = permute({s}, [N,J])\n  {}\n", WEIGHTS[self.weights].replace('L', &l).replace("\n ", "\n  "));
        let mut results = vec![];
        for (i, sum) in self.sums.iter().enumerate() {
            body += &format!("  o{i} = {}\n", SUMS[*sum].0.replace('L', &l));
            results.push(format!("o{i}: f32{}", SUMS[*sum].1));
        }
        format!(
            "fn drawn(q: f32[N,D], k: f32[J,D], v: f32[J,E], bias: f32[N,J], row: f32[N], col: f32[J], mask: bool[N,J], len: i32) -> ({}) {{\n  {body}}}\n",
            results.join(", ")
        )
    }
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let program = (0..DOTS.len(), prop::collection::vec(0..STEPS.len(), 0..4), 0..MASKS.len(), 0..WEIGHTS.len(), prop::collection::vec(0..SUMS.len(), 1..4));
    let machine = ((1usize..20, 1usize..6, 1usize..20), (1usize..8, 1usize..24, 1usize..6, 1usize..6), any::<(bool, bool)>(), any::<u64>());
    (program, 0..WRT.len(), 0usize..3, machine).prop_map(|((dot, steps, mask, weights, sums), wrt, order, (tiles, sizes, (center, resident), seed))| Recipe {
        dot, steps, mask, weights, sums, wrt, order, tiles, sizes, center, resident, seed,
    })
}

fn fail(why: String) -> TestCaseError {
    TestCaseError::fail(why)
}

/// `parse(print(f))` is `f` but for the names of unnamed values.
fn prints_and_parses(f: &Function) -> Result<(), TestCaseError> {
    let text = ir::text::print_function(f);
    let again = ir::text::parse(&text).map_err(|e| fail(format!("{}\n{text}", ir::diagnostic::render(&e, "printed", &text))))?.functions.remove(0);
    let ops = |f: &Function| f.eqns.iter().map(|e| (e.op.clone(), f.ty(e.out).clone())).collect::<Vec<_>>();
    prop_assert_eq!(ops(f), ops(&again), "{}", text);
    let ports = |f: &Function| f.params.iter().chain(&f.results).map(|p| (p.name.clone(), f.ty(p.var).clone())).collect::<Vec<_>>();
    prop_assert_eq!(ports(f), ports(&again), "{}", text);
    Ok(())
}

/// Tangents of `f` to the recipe's order; `None` where nothing moves.
fn tangents(r: &Recipe, f: &Function) -> Option<Function> {
    let mut g = f.clone();
    for _ in 0..r.order {
        g = passes::ad::jvp(&g, &names(WRT[r.wrt])).ok()?;
    }
    Some(g)
}

#[test]
fn drawn_programs_stream_or_say_why_and_are_right() {
    let config = ProptestConfig { cases: std::env::var("CASES").map_or(400, |n| n.parse().unwrap()), failure_persistence: None, max_shrink_iters: 400, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let tally: RefCell<BTreeMap<String, usize>> = RefCell::default();
    let result = runner.run(&recipe(), |r| {
        let text = r.text();
        let f = ir::text::parse(&text).map_err(|e| fail(ir::diagnostic::render(&e, "drawn", &text)))?.functions.remove(0);
        let Some(g) = tangents(&r, &f) else { return Ok(()) };
        ir::verify::verify(&g).map_err(|e| fail(format!("{}\n{text}", e[0])))?;
        prints_and_parses(&g)?;
        let n = passes::simplify::normalize(&g).map_err(|e| fail(format!("{e}\n{text}")))?;
        ir::verify::verify(&n).map_err(|e| fail(format!("{}\n{}", e[0], ir::text::print_function(&n))))?;
        prints_and_parses(&n)?;

        let (rows, long, d, e) = r.sizes;
        let sizes = dims(&format!("N={rows},J={long},D={d},E={e}"));
        let (lanes, rows, stream) = r.tiles;
        let o = Options { center: r.center, resident: if r.resident { 8192 } else { 0 }, scratch: r.seed % 3 == 1, ..options(&sizes, lanes, rows, stream) };
        let fused = passes::fuse::fuse(&n, &o).map_err(|e| fail(format!("{e}\n{}", ir::text::print_function(&n))))?;
        let show = || format!("{text}{}\n{}", fused.notes.join("\n"), fused.programs.iter().map(ToString::to_string).collect::<String>());
        for p in &fused.programs {
            ir::tile::verify::verify(p).map_err(|e| fail(format!("{e:?}\n{}", show())))?;
        }
        let inputs = Random(r.seed).inputs(&g, &sizes);
        // 1/exp(∞) and its like have no derivative to compare.
        if ir::reference::evaluate(&g, &inputs, &sizes).map_err(|e| fail(e.to_string()))?.iter().any(|t| t.to_f64().iter().any(|x| x.is_nan())) {
            *tally.borrow_mut().entry("not defined".into()).or_default() += 1;
            return Ok(());
        }
        let error = error_of_terms(&g, &fused, &inputs, &sizes);
        prop_assert!(error < 1e-9, "off by {error:e}\n{}", show());

        let passes: usize = fused.programs.iter().map(|p| carried(p).len()).sum();
        let one = fused.programs.len() == 1 && passes <= 1;
        prop_assert!(one || !fused.notes.is_empty(), "{} kernels, {passes} passes, and not a word\n{}", fused.programs.len(), show());
        let way = if one { "one pass".to_string() } else { format!("{} kernels, {passes} passes", fused.programs.len()) };
        prop_assert!(one || !STREAMS.contains(&r.weights), "{} kernels, {passes} passes\n{}", fused.programs.len(), show());
        *tally.borrow_mut().entry(way).or_default() += 1;
        *tally.borrow_mut().entry(format!("weights {}: {}", r.weights, if one { "one pass" } else { "refused" })).or_default() += 1;
        Ok(())
    });
    for (way, n) in tally.borrow().iter() {
        println!("{n:>4}  {way}");
    }
    if let Err(e) = result {
        panic!("{e}");
    }
    // Most of what is drawn streams; else this test would show little.
    let all: usize = tally.borrow().iter().filter(|(k, _)| !k.starts_with("weights") && *k != "not defined").map(|(_, n)| n).sum();
    assert!(tally.borrow()["one pass"] * 10 > all * 5);
}
