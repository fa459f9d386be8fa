//! Programs, tensors, and one way from a function to its error on the tile interpreter.

use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::reference::evaluate;
use ir::tensor::{Tensor, relative_error};
use ir::tile::{Op, Program, Stmt, interp, sequence};
use ir::types::DType;
use passes::ad::jvp;
use passes::fuse::{Fused, Options, fuse};
use passes::simplify::normalize;
use std::collections::BTreeMap;

/// The text of a file of `passes/tests/programs`.
pub fn source(file: &str) -> String {
    std::fs::read_to_string(format!("{}/tests/programs/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The functions of a text.
pub fn parse(text: &str) -> Vec<Function> {
    ir::text::parse(text).unwrap_or_else(|e| panic!("{}", ir::diagnostic::render(&e, "text", text))).functions
}

/// Function `name` of a file of programs.
pub fn program(file: &str, name: &str) -> Function {
    parse(&source(file)).into_iter().find(|f| &*f.name == name).unwrap_or_else(|| panic!("{file} has no {name}"))
}

/// Names from `q,k,v`.
pub fn names(list: &str) -> Vec<Name> {
    list.split(',').map(Name::from).collect()
}

/// The JVP along the parameters in `list`, verified.
pub fn derive(f: &Function, list: &str) -> Function {
    let g = jvp(f, &names(list)).unwrap();
    ir::verify::verify(&g).unwrap();
    g
}

/// Every float parameter.
pub fn floats(f: &Function) -> String {
    f.params.iter().filter(|p| f.ty(p.var).dtype.is_float()).map(|p| &*p.name).collect::<Vec<_>>().join(",")
}

/// `B=2,I=7` as numbers.
pub fn dims(list: &str) -> Bindings {
    list.split(',').map(|d| d.split_once('=').unwrap()).map(|(n, v)| (n.into(), v.parse().unwrap())).collect()
}

/// SplitMix64: the same numbers everywhere.
pub struct Random(pub u64);

impl Random {
    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Uniform in 0..1.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
    /// Standard normal, by Box and Muller.
    pub fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }
    /// Normal floats, integers in 0..8, truth values of which two of three are true.
    pub fn inputs(&mut self, f: &Function, dims: &Bindings) -> Vec<Tensor> {
        let one = |random: &mut Random, d: DType| match d {
            DType::Bool => f64::from(u8::from(random.uniform() < 0.67)),
            DType::I32 => random.below(8) as f64,
            _ => random.normal(),
        };
        let tensor = |random: &mut Random, p: &ir::graph::Port| {
            let ty = f.ty(p.var);
            let shape = ty.sizes(dims).unwrap();
            let data: Vec<f64> = (0..shape.iter().product()).map(|_| one(random, ty.dtype)).collect();
            Tensor::from_f64(if ty.dtype.is_float() { DType::F64 } else { ty.dtype }, &shape, &data).unwrap()
        };
        f.params.iter().map(|p| tensor(self, p)).collect()
    }
}

/// Fusion in f64: long axes stream even where they would fit a tile.
pub fn options(dims: &Bindings, lanes: usize, rows: usize, stream: usize) -> Options {
    let d = DType::F64;
    Options { dims: dims.clone(), compute: d, storage: d, operands: d, lanes, rows, stream, matmul: (lanes, stream), resident: 0, ..Options::default() }
}

fn verified(f: &Function) -> Function {
    ir::verify::verify(f).unwrap_or_else(|e| panic!("{}\n{}", e[0], ir::text::print_function(f)));
    f.clone()
}

/// The normal form, verified.
pub fn simplified(f: &Function) -> Function {
    verified(&normalize(f).unwrap_or_else(|e| panic!("{e}\n{}", ir::text::print_function(f))))
}

/// What the e-graph takes, verified.
pub fn cheapest(f: &Function) -> Function {
    verified(&passes::simplify::simplify(f).unwrap_or_else(|e| panic!("{e}\n{}", ir::text::print_function(f))).function)
}

/// The block programs of `n`.
pub fn fused_as_it_is(n: &Function, o: &Options) -> Fused {
    fuse(n, o).unwrap_or_else(|e| panic!("{e}\n{}", ir::text::print_function(n)))
}

/// The block programs of `f`.
pub fn fused(f: &Function, o: &Options) -> Fused {
    fused_as_it_is(&simplified(f), o)
}

/// Results of block programs, by name.
pub fn execute(f: &Function, fused: &Fused, inputs: &[Tensor], dims: &Bindings) -> BTreeMap<Name, Tensor> {
    let mut tensors: BTreeMap<Name, Tensor> = f.params.iter().map(|p| p.name.clone()).zip(inputs.iter().cloned()).collect();
    let show = || fused.programs.iter().map(Program::to_string).collect::<String>();
    sequence::run(&fused.programs, &mut tensors, dims, &mut |p, d, x| interp::run(p, d, x)).unwrap_or_else(|e| panic!("{e}\n{}", show()));
    tensors
}

/// The largest relative error of the block programs against `reference`.
pub fn error(f: &Function, fused: &Fused, inputs: &[Tensor], dims: &Bindings) -> f64 {
    let want = evaluate(f, inputs, dims).unwrap();
    let got = execute(f, fused, inputs, dims);
    f.results.iter().zip(&want).map(|(r, w)| relative_error(&got[&r.name], w)).fold(0.0, f64::max)
}

/// The largest error of the block programs against `reference`, in units of what rounding explains: the result's largest element
/// plus a thousandth of the largest intermediate value, since a sum that cancels is only as exact as its terms. Infinities
/// must be equal.
pub fn error_of_terms(f: &Function, fused: &Fused, inputs: &[Tensor], dims: &Bindings) -> f64 {
    let largest = |t: &Tensor| t.to_f64().into_iter().filter(|x| x.is_finite()).fold(0.0, |a, x| x.abs().max(a));
    let all = ir::reference::evaluate_all(f, inputs, dims).unwrap();
    let terms = all.iter().flatten().map(largest).fold(0.0, f64::max);
    let got = execute(f, fused, inputs, dims);
    let mut worst = 0f64;
    for r in &f.results {
        let want = all[r.var.index()].as_ref().unwrap();
        for (g, w) in got[&r.name].to_f64().into_iter().zip(want.to_f64()) {
            let e = if g == w { 0.0 } else if g.is_finite() && w.is_finite() { (g - w).abs() / (largest(want) + terms * 1e-3) } else { f64::INFINITY };
            worst = worst.max(e);
        }
    }
    worst
}

/// Axis names of every value that each loop of `p` carries, sorted: `["I", "I", "I E"]`.
pub fn carried(p: &Program) -> Vec<Vec<String>> {
    let axes = |v: ir::tile::ValueId| p.value(v).axes.iter().map(|a| &*p.axis(*a).name).collect::<Vec<_>>().join(" ");
    let of = |l: &ir::tile::Loop| {
        let mut c: Vec<String> = l.carries.iter().map(|c| axes(c.inside)).collect();
        c.sort();
        c
    };
    p.body.iter().filter_map(|s| if let Stmt::For(l) = s { Some(of(l)) } else { None }).collect()
}

/// Pairs of operands in all dots.
pub fn dot_terms(p: &Program) -> usize {
    fn walk(body: &[Stmt]) -> usize {
        body.iter()
            .map(|s| match s {
                Stmt::Let(_, Op::Dot { terms, .. }) => terms.len(),
                Stmt::For(l) => walk(&l.body),
                _ => 0,
            })
            .sum()
    }
    walk(&p.body)
}
