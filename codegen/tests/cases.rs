//! Programs in the text form, their block programs, inputs and expected results: shared by tests and examples of GPU code.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use codegen::GpuTarget;
use codegen::nvptx::{self, Compiled, Schedule};
use runtime::sim::{Fault, Module, Options, Report};
use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::tensor::Tensor;
use ir::tile::Program;
use ir::types::DType;
use std::collections::BTreeMap;

/// A function on given sizes.
pub struct Case {
    pub name: String,
    pub f: Function,
    pub dims: Bindings,
    pub inputs: BTreeMap<Name, Tensor>,
    pub programs: Vec<Program>,
    /// In f64, of the inputs as stored.
    pub want: Vec<Tensor>,
}

pub const QKV: &[&str] = &["q", "k", "v"];

pub fn bind(dims: &[(&str, i64)]) -> Bindings {
    dims.iter().map(|(n, v)| ((*n).into(), *v)).collect()
}

/// Replaces the `n`-th line that has `what` by `f` of it.
pub fn edit(text: &str, what: &str, n: usize, f: impl Fn(&str) -> String) -> String {
    let at = text.lines().enumerate().filter(|(_, l)| l.contains(what)).nth(n).unwrap_or_else(|| panic!("no {what} {n}")).0;
    text.lines().enumerate().map(|(i, l)| if i == at { f(l) } else { l.to_string() } + "\n").collect()
}

/// Numbers in [−1.7, 1.7), or small whole ones.
fn fill(d: DType, shape: &[usize], seed: &mut u64, below: i64) -> Tensor {
    let n: usize = shape.iter().product();
    let x: Vec<f64> = (0..n)
        .map(|_| {
            *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let u = (*seed >> 11) as f64 / (1u64 << 53) as f64;
            if d.is_float() { (u - 0.5) * 3.4 } else { (u * below as f64).floor() }
        })
        .collect();
    Tensor::from_f64(d, shape, &x).unwrap()
}

impl Case {
    /// `text`'s function `function`, differentiated along `wrt`, stored as `dtype`, at `dims`.
    pub fn new(text: &str, function: &str, wrt: &[&str], dtype: DType, dims: &[(&str, i64)]) -> Case {
        let module = ir::text::parse(text).unwrap_or_else(|e| panic!("{}", ir::diagnostic::render(&e, "case", text)));
        let f = module.function(Some(function)).unwrap();
        let wrt: Vec<Name> = wrt.iter().map(|n| (*n).into()).collect();
        Case::of(if wrt.is_empty() { f.clone() } else { passes::ad::jvp(f, &wrt).unwrap() }, dtype, dims)
    }

    /// `attention`, or a variant of it by name, of so many batch entries with so many heads, at `[I, J, D]`; values are as wide as keys.
    pub fn attention(function: &str, wrt: &[&str], dtype: DType, heads: i64, dims: [i64; 3]) -> Case {
        let file = if function == "attention" { "attention" } else { "attention_variants" };
        let text = std::fs::read_to_string(format!("{}/../examples/{file}.pf", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let [i, j, d] = dims;
        Case::new(&text, function, wrt, dtype, &[("B", heads), ("H", heads), ("I", i), ("J", j), ("D", d), ("E", d)])
    }

    /// The gradient of `text`'s function `function` along `wrt`.
    pub fn gradient(text: &str, function: &str, wrt: &[&str], dtype: DType, dims: &[(&str, i64)]) -> Case {
        let module = ir::text::parse(text).unwrap();
        let wrt: Vec<Name> = wrt.iter().map(|n| (*n).into()).collect();
        Case::of(passes::ad::vjp(module.function(Some(function)).unwrap(), &wrt).unwrap(), dtype, dims)
    }

    /// `f`, stored as `dtype`, at `dims`.
    pub fn of(f: Function, dtype: DType, dims: &[(&str, i64)]) -> Case {
        Case::behind(f, dtype, dims, 0.0)
    }
    /// The same with maxima that may stay `slack` behind.
    pub fn behind(f: Function, dtype: DType, dims: &[(&str, i64)], slack: f64) -> Case {
        let dims = bind(dims);
        // Lengths of sequences stay run-time arguments, so that no tile may hold one whole.
        let mut known = dims.clone();
        if known.contains_key("D") && known.contains_key("I") {
            known.retain(|n, _| !matches!(&**n, "I" | "J"));
        }
        // Nor do rows of it.
        if known.contains_key("U") {
            known.remove("N");
        }
        let options = passes::fuse::Options { dims: known, storage: dtype, operands: dtype, slack, ..Default::default() };
        let n = passes::simplify::simplify_for(&f, &options).unwrap().0;
        let programs = passes::fuse::fuse(&n, &options).unwrap().programs;
        let mut seed = 7;
        let mut inputs = BTreeMap::new();
        let mut args = vec![];
        for p in &f.params {
            let ty = f.ty(p.var);
            let shape: Vec<usize> = ty.axes.iter().map(|a| a.size.eval(&dims).unwrap() as usize).collect();
            let d = if ty.dtype.is_float() { dtype } else { ty.dtype };
            let most = dims.get("J").or(dims.get("V")).copied().unwrap_or(4) + 1;
            let t = fill(d, &shape, &mut seed, most);
            args.push(t.clone());
            inputs.insert(p.name.clone(), t);
        }
        let want = ir::reference::evaluate(&f, &args, &dims).unwrap();
        let name = format!("{}{}_{dtype}_{}", f.name.replace('.', "_"), "", dims.iter().map(|(n, v)| format!("{n}{v}")).collect::<String>());
        Case { name, f, dims, inputs, programs, want }
    }

    /// The largest relative error of the kernel's text on so many multiprocessors of the PTX machine; no number where bytes were not written.
    pub fn run(&self, k: &Compiled, text: &str, multiprocessors: usize) -> Result<(f64, Report), Fault> {
        let module = Module::parse(text).unwrap_or_else(|e| panic!("{e:?}"));
        let inputs: Vec<_> = k.signature.buffers.iter().filter_map(|b| self.inputs.get(&b.name).cloned()).collect();
        let options = Options { budget: 1 << 24, multiprocessors, ..Options::default() };
        let (got, report) = module.run(&k.signature, &self.dims, &inputs, &options)?;
        let names = k.signature.buffers.iter().filter(|b| b.access == ir::tile::Access::Output).map(|b| b.name.clone());
        let worst = self.errors(&names.zip(got).collect()).iter().map(|e| e.1).fold(0.0, |a, b| if b.is_nan() { f64::NAN } else { a.max(b) });
        Ok((if report.unwritten.values().all(|n| *n == 0) { worst } else { f64::NAN }, report))
    }

    /// Relative Frobenius error per result.
    pub fn errors(&self, got: &BTreeMap<Name, Tensor>) -> Vec<(Name, f64)> {
        self.f.results.iter().zip(&self.want).map(|(r, w)| (r.name.clone(), ir::tensor::relative_error(&got[&r.name], w))).collect()
    }
}

/// Compiled as the default schedule for `dims` says; `by_warps`: among products of warps, where the target has others.
pub fn build_as(p: &Program, target: &str, by_warps: bool, dims: &Bindings) -> (Schedule, Compiled) {
    let target = GpuTarget::named(target).unwrap();
    let s = if by_warps { nvptx::default_by_warps(p, &target) } else { nvptx::default_schedule_at(p, &target, dims) };
    let s = s.unwrap_or_else(|e| panic!("{e}\n{p}"));
    let c = nvptx::compile(p, &target, &s).unwrap_or_else(|e| panic!("{e}\n{p}"));
    (s, c)
}

/// Compiled as the default schedule says.
pub fn build(p: &Program, target: &str) -> (Schedule, Compiled) {
    let target = GpuTarget::named(target).unwrap();
    let s = nvptx::default_schedule(p, &target).unwrap_or_else(|e| panic!("{e}\n{p}"));
    let c = nvptx::compile_with(p, &target, &s, true).unwrap_or_else(|e| panic!("{e}\n{p}"));
    (s, c)
}

const BF16: DType = DType::BF16;
const F16: DType = DType::F16;
const F32: DType = DType::F32;

/// Everything that is run: products streamed, with masks and biases, row by row, with an epilogue, element by element, moved.
pub fn all() -> Vec<Case> {
    let read = |f: &str| std::fs::read_to_string(format!("{}/../{f}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let mut out = vec![];
    let plain = read("examples/attention.pf");
    let qkv: &[&str] = &["q", "k", "v"];
    for (wrt, dtype, b, h, i, j, d) in [
        (&[] as &[&str], BF16, 1, 2, 100, 150, 64), (qkv, BF16, 1, 2, 100, 230, 64), (&[], BF16, 1, 1, 130, 70, 128), (qkv, BF16, 1, 2, 70, 115, 128),
        (&[], F16, 1, 1, 33, 65, 64), (qkv, F16, 1, 1, 33, 65, 64), (qkv, BF16, 1, 1, 40, 75, 256), (&[], BF16, 1, 1, 70, 140, 256), (qkv, BF16, 2, 1, 1, 1, 64), (qkv, BF16, 1, 1, 256, 512, 64),
        (qkv, BF16, 1, 1, 37, 45, 12), (qkv, BF16, 1, 1, 37, 45, 28), (qkv, BF16, 1, 1, 50, 77, 72), (qkv, BF16, 1, 1, 50, 77, 80), (&["q"], BF16, 1, 1, 50, 77, 64),
        (qkv, F32, 1, 1, 50, 77, 64), (&[], F32, 1, 2, 37, 45, 28), (qkv, F32, 1, 1, 37, 45, 12),
    ] {
        out.push(Case::new(&plain, "attention", wrt, dtype, &[("B", b), ("H", h), ("I", i), ("J", j), ("D", d)]));
    }
    for (dtype, i, j, d) in [(BF16, 70, 90, 64), (F16, 33, 40, 32), (BF16, 50, 60, 128), (F32, 33, 40, 32)] {
        let mut c = Case::gradient(&plain, "attention", qkv, dtype, &[("B", 1), ("H", 2), ("I", i), ("J", j), ("D", d)]);
        c.name = format!("gradient_{dtype}_{i}_{j}_{d}");
        out.push(c);
    }
    // Sums down columns, as of a bias's gradient: rows lie side by side, what is summed is far apart.
    let down = "fn down(x: f32[B,N,U], y: f32[B,N,U], r: f32[B,N]) -> (s: f32[U], t: f32[U]) {\n s = reduce_sum(x * y, [B,N])\n t = reduce_sum(x * r, [B,N])\n}";
    for (dtype, b, n, u) in [(BF16, 1, 301, 77), (F32, 2, 130, 33), (BF16, 3, 7, 5)] {
        out.push(Case::new(down, "down", &[], dtype, &[("B", b), ("N", n), ("U", u)]));
    }
    let variants = read("examples/attention_variants.pf");
    for f in ["causal", "bias"] {
        let mut c = Case::gradient(&variants, f, qkv, BF16, &[("B", 1), ("H", 2), ("I", 70), ("J", 90), ("D", 32), ("E", 40)]);
        c.name = format!("gradient_{f}");
        out.push(c);
    }
    for f in ["causal", "window", "lengths", "bias", "softcapped", "alibi", "grouped"] {
        for (dtype, i, j) in [(BF16, 70, 70), (BF16, 40, 130), (F16, 100, 60)] {
            let g: &[(&str, i64)] = if f == "grouped" { &[("G", 2)] } else { &[] };
            let dims: Vec<(&str, i64)> = [("B", 2), ("H", 4), ("I", i), ("J", j), ("D", 32), ("E", 40)].iter().chain(g).copied().collect();
            out.push(Case::new(&variants, f, qkv, dtype, &dims));
        }
    }
    let norm = read("examples/norm_modulate.pf");
    for (dtype, n, d) in [(BF16, 37, 128), (F32, 5, 33), (BF16, 3, 1536), (F16, 9, 5120), (BF16, 20, 8)] {
        out.push(Case::new(&norm, "norm_modulate", &["x", "scale"], dtype, &[("B", 2), ("N", n), ("D", d)]));
    }
    let gelu = read("examples/gelu_linear.pf");
    for (dtype, m, k, n) in [(BF16, 100, 72, 136), (BF16, 37, 45, 51), (F16, 64, 64, 64), (F32, 37, 45, 51), (F32, 64, 128, 96)] {
        out.push(Case::new(&gelu, "gelu_linear", &["x", "w"], dtype, &[("M", m), ("K", k), ("N", n)]));
    }
    let ce = read("examples/cross_entropy.pf");
    for dtype in [BF16, F32] {
        out.push(Case::new(&ce, "cross_entropy_linear", &["x"], dtype, &[("M", 37), ("K", 64), ("V", 150)]));
    }
    let layers = read("tests/programs/layers.pf");
    let sizes: &[(&str, i64)] = &[("A", 3), ("B", 2), ("N", 12), ("D", 16), ("H", 3), ("J", 33), ("E", 24), ("F", 40), ("K", 12), ("C", 3), ("T", 2), ("W", 4)];
    for (f, wrt) in [
        ("layernorm_1", "x"), ("rmsnorm_1", "x"), ("gelu_tanh", "x"), ("gelu_erf", "x"), ("silu", "x"), ("tanh", "x"), ("linear_0", "x"), ("softmax_0", "x"),
        ("ffn_gelu_tanh", "x"), ("modulate_0", "x"), ("modulate_pertoken_1", "x"), ("gated_residual_0", "x"), ("rope_interleaved_0", "x"), ("rope_half_1", "x"),
        ("time_sinusoid_1", "t"), ("time_embed_wan", "t"), ("patchify", "x"), ("unpatchify_wan", "y"),
    ] {
        let sizes: Vec<(&str, i64)> = sizes.iter().map(|(n, v)| if f == "patchify" && *n == "H" { (*n, 4) } else if f == "time_sinusoid_1" && *n == "F" { (*n, 32) } else { (*n, *v) }).collect();
        for dtype in [BF16, F32] {
            let mut c = Case::new(&layers, f, &[wrt], dtype, &sizes);
            c.name = format!("{f}_{dtype}");
            out.push(c);
        }
    }
    out
}
