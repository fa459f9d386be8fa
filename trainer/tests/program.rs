//! Programs: the same results on every machine, by names.

use ir::dim::Bindings;
use ir::tensor::{Tensor, relative_error};
use ir::types::DType;
use std::collections::BTreeMap;
use trainer::program::{On, Options, Program};
use passes::ad::Transform;

const LAYER: &str = "fn f(x: f32[N,D], w: f32[D,E]) -> (y: f32[N,E]) { y = gelu(contract(\"nd,de->ne\", x, w)) }";

fn draw(shape: &[usize], seed: u64) -> Tensor {
    let n: usize = shape.iter().product();
    let data: Vec<f64> = (0..n as u64).map(|i| ((i + 1) as f64 * (0.37 + seed as f64 * 0.11)).sin()).collect();
    Tensor::from_f64(DType::F64, shape, &data).unwrap()
}

#[test]
fn kept_and_given_parameters_meet_on_every_machine() {
    let f = &ir::text::parse(LAYER).unwrap().functions[0];
    let dims: Bindings = [("N".into(), 5), ("D".into(), 7), ("E".into(), 6)].into();
    let transforms = [Transform::Jvp(vec!["x".into()]), Transform::Vjp(vec!["x".into(), "x.t".into(), "w".into()])];
    let mut all: Vec<BTreeMap<_, _>> = vec![];
    for on in [On::Reference, On::Cpu] {
        let mut p = Program::new(f, &transforms, &dims, &Options { on, dtype: DType::F64, ..Options::default() }).unwrap();
        p.set("w", &draw(&[7, 6], 2)).unwrap();
        let (x, t, c, ct) = (draw(&[5, 7], 1), draw(&[5, 7], 3), draw(&[5, 6], 4), draw(&[5, 6], 5));
        let given: Vec<(&str, &Tensor)> = vec![("x", &x), ("x.t", &t), ("y.ct", &c), ("y.t.ct", &ct)];
        all.push(p.run(&given).unwrap());
        assert!(p.run(&given[1..]).unwrap_err().contains("nothing provides parameter `x`"));
        assert!(p.set("v", &x).unwrap_err().contains("has no parameter `v`"));
        assert!(p.set("x", &c).unwrap_err().contains("[5, 7]"));
    }
    let names: Vec<&str> = all[0].keys().map(|n| &**n).collect();
    assert_eq!(names, ["w.ct", "x.ct", "x.t.ct", "y", "y.t"]);
    for (n, want) in &all[0] {
        assert!(relative_error(&all[1][n], want) < 1e-12, "{n}");
    }
}
