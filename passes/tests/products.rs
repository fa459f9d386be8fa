//! Which kernels are plain products of matrices, and what a library would have to multiply for each: compared with the interpreter, element by element.

#[allow(dead_code)]
#[path = "fusion/support.rs"]
mod support;

use ir::tensor::Tensor;
use ir::tile::product::{Matrix, Product, product};
use ir::tile::{Access, Program, interp};
use ir::types::DType;
use passes::ad::vjp;
use passes::fuse::{Options, sequence};
use support::*;

const TEXT: &str = r#"
fn linear(x: f32[B,M,K], w: f32[N,K]) -> (y: f32[B,M,N]) {
  y = contract("bmk,nk->bmn", x, w)
}
fn biased(x: f32[B,M,K], w: f32[N,K], b: f32[N]) -> (y: f32[B,M,N]) {
  y = contract("bmk,nk->bmn", x, w) + b
}
fn batch(x: f32[H,M,K], w: f32[H,K,N]) -> (y: f32[H,M,N]) {
  y = contract("hmk,hkn->hmn", x, w)
}
fn turned(x: f32[K,M], w: f32[K,N]) -> (y: f32[N,M]) {
  y = contract("km,kn->nm", x, w)
}
fn more(x: f32[B,M,K], w: f32[N,K]) -> (y: f32[B,M,N]) {
  y = gelu_tanh(contract("bmk,nk->bmn", x, w))
}
fn before(x: f32[B,M,K], w: f32[N,K]) -> (y: f32[B,M,N]) {
  y = contract("bmk,nk->bmn", exp(x), w)
}
fn rows(x: f32[B,M,K], w: f32[N,K], b: f32[M]) -> (y: f32[B,M,N]) {
  y = contract("bmk,nk->bmn", x, w) + b
}
"#;
const SIZES: &str = "B=2,H=3,M=7,N=10,K=12";

/// Kernels of a function's gradient (of all floats), or of itself, at the sizes above.
fn kernels(name: &str, gradient: bool) -> Vec<Program> {
    let f = parse(TEXT).into_iter().find(|f| &*f.name == name).unwrap();
    let f = if gradient { vjp(&f, &names(&floats(&f))).unwrap() } else { f };
    sequence(&f, &Options::stored(&dims(SIZES), DType::F32)).unwrap().programs
}

/// What `p` makes of the buffers, by its definition.
fn multiply(p: &Product, x: &[Vec<f64>], out: usize) -> Vec<f64> {
    let mut y = vec![f64::NAN; out];
    let [m, n, k, batch] = p.sizes;
    let at = |x: &Matrix, b: u64, i: u64, j: u64| (x.offset + b * x.batch + i * x.steps[0] + j * x.steps[1]) as usize;
    for (b, i, j) in (0..batch).flat_map(|b| (0..m).flat_map(move |i| (0..n).map(move |j| (b, i, j)))) {
        let sum: f64 = (0..k).map(|l| x[p.left.buffer][at(&p.left, b, i, l)] * x[p.right.buffer][at(&p.right, b, j, l)]).sum();
        y[at(&p.out, b, i, j)] = sum + p.bias.map_or(0.0, |(buffer, first)| x[buffer][(first + j) as usize]);
    }
    y
}

/// The product that a kernel is gives what the kernel gives, every element, and has contiguous operands.
fn compared(p: &Program) -> Product {
    let d = dims(SIZES);
    let plain = product(p, &d).unwrap_or_else(|e| panic!("{}: {e}\n{p}", p.name));
    let mut random = Random(5);
    let inputs: Vec<Tensor> = p.buffers.iter().filter(|b| b.access == Access::Input).map(|b| {
        let shape = b.sizes(&d).unwrap();
        let data: Vec<f64> = (0..shape.iter().product()).map(|_| random.normal()).collect();
        Tensor::from_f64(b.dtype, &shape, &data).unwrap()
    }).collect();
    let want = interp::run(p, &d, &inputs).unwrap();
    let mut of_buffers = inputs.iter();
    let x: Vec<Vec<f64>> = p.buffers.iter().map(|b| if b.access == Access::Input { of_buffers.next().unwrap().to_f64() } else { vec![] }).collect();
    let got = multiply(&plain, &x, want[0].to_f64().len());
    for (g, w) in got.iter().zip(want[0].to_f64()) {
        assert!((g - w).abs() <= 1e-5 * (1.0 + w.abs()), "{}: {g} beside {w}\n{plain:?}\n{p}", p.name);
    }
    assert!(plain.out.steps[1] == 1 && plain.left.steps.contains(&1) && plain.right.steps.contains(&1), "{plain:?}");
    plain
}

#[test]
fn a_product_is_one_and_says_what_to_multiply() {
    // Batch and rows of a layer are walked as one.
    assert_eq!(compared(&kernels("linear", false)[0]).sizes, [14, 10, 12, 1]);
    let biased = compared(&kernels("biased", false)[0]);
    assert!(biased.bias.is_some() && biased.sizes == [14, 10, 12, 1], "{biased:?}");
    assert_eq!(compared(&kernels("batch", false)[0]).sizes, [7, 10, 12, 3]);
    // Columns are what lies side by side in the result.
    assert_eq!(compared(&kernels("turned", false)[0]).sizes, [10, 7, 12, 1]);
}

#[test]
fn gradients_of_a_layer_are_products_over_tokens_and_over_features() {
    let all = kernels("linear", true);
    let sizes: Vec<[u64; 4]> = all.iter().filter(|p| product(p, &dims(SIZES)).is_ok()).map(|p| compared(p).sizes).collect();
    assert!(sizes.contains(&[14, 12, 10, 1]) && sizes.contains(&[10, 12, 14, 1]), "{sizes:?}");
}

#[test]
fn what_does_more_is_none_and_says_why() {
    for (name, why) in [("more", "computes"), ("before", "computes"), ("rows", "one number a column")] {
        let p = &kernels(name, false)[0];
        let said = product(p, &dims(SIZES)).expect_err(name);
        assert!(said.contains(why), "{name}: {said}\n{p}");
    }
}
