//! Functions that call functions: text, meaning, messages.

use ir::dim::Bindings;
use ir::tensor::Tensor;
use ir::types::DType;

/// A function that calls one further down, twice; the callee has two results.
const TWICE: &str = "
fn twice(x: f64[N], w: f64[N]) -> (y: f64[N], n: f64) {
  z = call(step, out, x, w)
  n = call(step, norm, z, w)
  y = call(step, out, z, 2 * w)
}
fn step(x: f64[N], w: f64[N]) -> (out: f64[N], norm: f64) {
  s = square(x)
  out = s * w + x
  norm = reduce_sum(out * out, n)
}
fn square(x: f64[N]) -> (y: f64[N]) { y = x * x }
";

#[test]
fn calls_mean_their_bodies() {
    let m = ir::text::parse(TWICE).unwrap();
    let f = &m.functions[0];
    ir::verify::verify(f).unwrap();
    assert_eq!(f.callees().len(), 1);
    let t = |v: &[f64]| Tensor::from_f64(DType::F64, &[v.len()], v).unwrap();
    let (x, w) = ([0.5, -1.5, 2.0], [1.0, 0.25, -0.5]);
    let out = ir::reference::evaluate(f, &[t(&x), t(&w)], &Bindings::new()).unwrap();
    let step = |x: f64, w: f64| x * x * w + x;
    let z: Vec<f64> = x.iter().zip(w).map(|(x, w)| step(*x, w)).collect();
    assert_eq!(out[0].to_f64(), z.iter().zip(w).map(|(z, w)| step(*z, 2.0 * w)).collect::<Vec<_>>());
    assert_eq!(out[1].to_f64(), [z.iter().zip(w).map(|(z, w)| step(*z, w).powi(2)).sum::<f64>()]);
}

#[test]
fn printed_calls_parse_to_themselves() {
    let m = ir::text::parse(TWICE).unwrap();
    let text = ir::text::print_function(&m.functions[0]);
    let again = ir::text::parse(&text).unwrap_or_else(|e| panic!("{}", ir::diagnostic::render(&e, "printed", &text)));
    assert_eq!(again.functions.len(), 3);
    assert_eq!(ir::text::print_function(&again.functions[0]), text);
}

#[test]
fn wrong_calls_are_refused_by_name() {
    let message = |body: &str| {
        let text = format!("fn f(x: f64[N], k: f64[M]) -> (y: f64[N]) {{ y = {body} }}\nfn g(x: f64[N]) -> (a: f64[N], b: f64) {{ a = x  b = reduce_sum(x, n) }}\nfn h(x: f64[N]) -> (y: f64[N]) {{ y = h(x) }}");
        let e = ir::text::parse(&text).unwrap_err();
        format!("{}{}", e[0].message, e[0].hint.as_ref().map(|h| format!(" ({h})")).unwrap_or_default())
    };
    assert_eq!(message("g(x)"), "`g` has 2 results (take one: call(g, a, …))");
    assert_eq!(message("call(g, c, x)"), "call: `g` has no result `c` (its results are a, b)");
    assert_eq!(message("call(g, a, x, x)"), "call: `g` takes 1 operands, but 2 given");
    assert_eq!(
        message("call(g, a, k)"),
        "call: parameter `x` of `g` is f64[N], but the operand is f64[M] (operands of a call have the parameters' axes in their order: `rename`, `permute` or `broadcast` them)"
    );
    assert_eq!(message("call(g, a, x)"), "this call goes in a circle, or to a function that is broken (functions cannot call themselves)");
}
