//! Tests of the tests: random edits of the PTX that we emit, each run in the PTX machine as the other tests run kernels, odd sizes and the bounds of
//! `reference`. An edit that changes the meaning should be noticed: by a fault, or by a wrong result.
//!
//! An edit says nothing where no thread comes, and where it gives the same bytes at all sizes it is the same program; both are counted apart. What is
//! left and not noticed is listed. `MUTANTS=400` draws that many; without it, a quick part.
#![allow(missing_docs, clippy::unwrap_used)]

mod cases;

use cases::{Case, build};
use ir::dim::Name;
use ir::tensor::Tensor;
use ir::tile::Access;
use ir::types::DType;
use runtime::sim::mutate::{EDITS, Mutant, mutant};
use runtime::sim::{Module, Options};
use std::collections::{BTreeMap, BTreeSet};

/// One kernel at several sizes.
struct Kernel {
    name: &'static str,
    ptx: String,
    signature: ir::artifact::GpuSignature,
    cases: Vec<Case>,
}

/// What a run gave.
enum Outcome {
    /// The machine stopped it, or results are off: how.
    Wrong(String),
    /// All results are within their bounds: their bytes, and the lines that ran.
    Right(Vec<Vec<u8>>, BTreeSet<u32>),
}

impl Kernel {
    fn new(name: &'static str, target: &str, cases: Vec<Case>) -> Kernel {
        let (_, k) = build(&cases[0].programs[0], target);
        assert!(cases.iter().all(|c| c.programs.len() == 1 && c.programs[0] == cases[0].programs[0]), "{name}: one kernel for all sizes");
        Kernel { name, ptx: k.ptx, signature: k.signature, cases }
    }
    fn run(&self, text: &str) -> Outcome {
        let module = match Module::parse(text) {
            Ok(m) => m,
            Err(e) => return Outcome::Wrong(format!("refused: {e}")),
        };
        let (mut bytes, mut lines) = (vec![], BTreeSet::new());
        for c in &self.cases {
            match self.one(&module, c) {
                Err(e) => return Outcome::Wrong(e),
                Ok((out, ran)) => {
                    bytes.extend(out);
                    lines.extend(ran);
                }
            }
        }
        Outcome::Right(bytes, lines)
    }
    fn one(&self, module: &Module, c: &Case) -> Result<(Vec<Vec<u8>>, Vec<u32>), String> {
        let s = &self.signature;
        let inputs: Vec<Tensor> = s.buffers.iter().filter(|b| b.access == Access::Input).map(|b| c.inputs[&b.name].clone()).collect();
        let options = Options { budget: 3_000_000, ..Options::default() };
        let (out, report) = module.run(s, &c.dims, &inputs, &options).map_err(|f| f.to_string())?;
        if let Some((name, n)) = report.unwritten.iter().find(|u| *u.1 > 0) {
            return Err(format!("{n} bytes of {name} are not written"));
        }
        let names = s.buffers.iter().filter(|b| b.access == Access::Output).map(|b| b.name.clone());
        let got: BTreeMap<Name, Tensor> = names.zip(out.iter().cloned()).collect();
        let bound = if c.programs[0].operands == DType::F32 { 2e-5 } else { 5e-3 };
        match c.errors(&got).into_iter().find(|(_, e)| e.is_nan() || *e > bound) {
            Some((n, e)) => Err(format!("{n} is off by {e:.1e}")),
            None => Ok((out.iter().map(Tensor::to_bytes).collect(), report.by_line.into_iter().filter(|l| l.1 > 0).map(|l| l.0).collect())),
        }
    }
}

fn kernels() -> Vec<Kernel> {
    let read = |f: &str| std::fs::read_to_string(format!("{}/../{f}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let (plain, norm, gelu, variants) = (read("examples/attention.pf"), read("examples/norm_modulate.pf"), read("examples/gelu_linear.pf"), read("examples/attention_variants.pf"));
    let heads = |d, sizes: &[(i64, i64)]| sizes.iter().map(|(i, j)| Case::new(&plain, "attention", &["q", "k", "v"], DType::BF16, &[("B", 1), ("H", 1), ("I", *i), ("J", *j), ("D", d)])).collect();
    vec![
        Kernel::new("streamed, d 64", "sm_80", heads(64, &[(37, 230), (130, 65)])),
        Kernel::new("warpgroups, d 64", "sm_90a", heads(64, &[(37, 150), (130, 65)])),
        Kernel::new("streamed, d 12", "sm_80", heads(12, &[(37, 150), (70, 33)])),
        Kernel::new("masked", "sm_80", [(70, 50), (33, 90)].iter().map(|(i, j)| Case::new(&variants, "causal", &["q"], DType::BF16, &[("B", 1), ("H", 1), ("I", *i), ("J", *j), ("D", 32), ("E", 40)])).collect()),
        Kernel::new("rows", "sm_90a", [(5, 1), (3, 2)].iter().map(|(n, b)| Case::new(&norm, "norm_modulate", &["x"], DType::F32, &[("B", *b), ("N", *n), ("D", 72)])).collect()),
        Kernel::new("product with epilogue", "sm_80", [(37, 72, 72), (130, 45, 51)].iter().map(|(m, k, n)| Case::new(&gelu, "gelu_linear", &["x"], DType::BF16, &[("M", *m), ("K", *k), ("N", *n)])).collect()),
    ]
}

#[test]
fn nearly_every_edit_is_noticed() {
    let wanted: usize = std::env::var("MUTANTS").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    let all = kernels();
    let each = wanted.div_ceil(all.len());
    let (mut caught, mut faults, mut same, mut unreached, mut survivors) = (0, 0, vec![], 0, vec![]);
    for k in &all {
        let Outcome::Right(original, ran) = k.run(&k.ptx) else { panic!("{} is wrong as it is", k.name) };
        let mut seen: BTreeSet<(u32, String)> = BTreeSet::new();
        let mut seed = 0;
        let mut tried = 0;
        while tried < each && seed < 40 * each as u64 {
            let edit = EDITS[seed as usize % EDITS.len()];
            seed += 1;
            let Some(Mutant { text, line, what }) = mutant(&k.ptx, edit, seed) else { continue };
            if !seen.insert((line, what.clone())) {
                continue;
            }
            if !ran.contains(&line) {
                unreached += 1;
                continue;
            }
            tried += 1;
            match k.run(&text) {
                Outcome::Wrong(how) => {
                    caught += 1;
                    faults += usize::from(!how.contains(" is off by "));
                }
                Outcome::Right(bytes, _) if bytes == original => same.push(format!("{}: {edit:?} {what}", k.name)),
                Outcome::Right(..) => survivors.push(format!("{}: {edit:?} {what}", k.name)),
            }
        }
    }
    println!("{caught} caught, {faults} of them by a fault and not by the result; {} give the same bytes at every size; {unreached} where no thread comes; survivors: {}", same.len(), survivors.len());
    println!("the same bytes:\n  {}\nother bytes within the bounds:\n  {}", same.join("\n  "), survivors.join("\n  "));
    let share = caught as f64 / (caught + survivors.len()) as f64;
    assert!(caught >= wanted / 2, "only {caught} of {wanted} were caught");
    assert!(share >= 0.95, "{share}: {survivors:#?}");
}
