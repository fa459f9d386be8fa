//! How memory between kernels of a program for matrix units is stored.

#[allow(dead_code)]
#[path = "fusion/support.rs"]
mod support;

use ir::reference::evaluate;
use ir::tensor::relative_error;
use ir::tile::{Access, interp};
use ir::types::DType;
use passes::fuse::{Options, sequence};
use support::*;

const SIZES: &str = "M=150,K=900,N=200,P=140";

/// As for a machine with matrix units for bf16 that has a form for everything.
fn options() -> Options {
    Options { fits: Some(|_| Ok(())), ..Options::stored(&dims(SIZES), DType::BF16) }
}

#[test]
fn what_one_kernel_multiplies_and_another_sums_as_it_is_lies_in_memory_both_ways() {
    let f = &parse(
        r#"
fn f(x: f32[M,K], w: f32[N,K], u: f32[P,N], z: f32[M,N]) -> (y: f32[M,P], s: f32[N]) {
  h = contract("mk,nk->mn", x, w) + z
  y = contract("mn,pn->mp", h, u)
  s = reduce_sum(h * abs(h), M)
}
"#,
    )[0];
    let (d, o) = (dims(SIZES), options());
    let s = sequence(f, &o).unwrap();
    let types = |part: &str| -> Vec<DType> { s.memory.iter().filter(|m| m.name.contains(part)).map(|m| m.dtype).collect() };
    // Between parameters and results there is the one value, twice.
    let between: Vec<usize> = (0..s.memory.len()).filter(|m| !s.params.contains(m) && !s.results.contains(m)).collect();
    let stored: Vec<DType> = between.iter().map(|m| s.memory[*m].dtype).collect();
    assert!(stored.contains(&DType::F32) && stored.contains(&DType::BF16), "{:?}\n{}", s.memory, s.programs.iter().map(ToString::to_string).collect::<String>());
    assert_eq!(types(".bf16"), [DType::BF16]);
    // One kernel writes both; the product reads the narrow one, the sum the wide one.
    let twin = between.iter().copied().find(|m| s.memory[*m].dtype == DType::BF16).unwrap();
    let touches = |m: usize, access: Access| -> Vec<usize> {
        s.launches.iter().filter(|l| l.buffers.iter().zip(&s.programs[l.program].buffers).any(|(p, b)| p.memory == m && b.access == access)).map(|l| l.program).collect()
    };
    let wide = between.iter().copied().find(|m| s.memory[*m].dtype == DType::F32 && touches(*m, Access::Output) == touches(twin, Access::Output)).expect("written by the same kernel");
    assert!(touches(twin, Access::Input).len() == 1 && touches(wide, Access::Input).len() == 1 && touches(twin, Access::Input) != touches(wide, Access::Input));
    s.programs.iter().for_each(|p| ir::tile::verify::verify(p).unwrap_or_else(|e| panic!("{e:?}\n{p}")));

    let inputs: Vec<_> = Random(3).inputs(f, &d).iter().map(|t| t.convert(DType::BF16).convert(DType::F64)).collect();
    let got = s.run(&inputs, &d, &mut interp::run).unwrap();
    let want = evaluate(f, &inputs, &d).unwrap();
    // The product is of rounded numbers, the sum is not.
    assert!(relative_error(&got[0], &want[0]) < 5e-3 && relative_error(&got[1], &want[1]) < 1e-6, "{} {}", relative_error(&got[0], &want[0]), relative_error(&got[1], &want[1]));
}
