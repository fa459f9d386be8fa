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

/// Blocks with an inner function, their weights stacked in a parameter.
const NETWORK: &str = "
fn net(x: f32[N,D=8], c: f32[D=8], w: f32[L=3,F=16,D=8], v: f32[L=3,D=8,F=16]) -> (y: f32[N,D=8], first: f32[N,D=8]) {
  e = tanh(c) + 1
  a = call(block, y, x, e, index(w, L, 0), index(v, L, 0))
  b = call(block, y, a, e, index(w, L, 1), index(v, L, 1))
  y = call(block, y, b, e, index(w, L, 2), index(v, L, 2)) * 2
  first = a
}
fn block(x: f32[N,D=8], c: f32[D=8], w: f32[F=16,D=8], v: f32[D=8,F=16]) -> (y: f32[N,D=8], norm: f32[N]) {
  norm = rsqrt(reduce_sum(x * x, d) + 1)
  z = x * norm * c
  k = rename(z, N -> M=N)
  o = mix(z, k)
  h = gelu(contract(\"nd,fd->nf\", z + o, w))
  y = x + contract(\"nf,df->nd\", h, v)
}
fn mix(z: f32[N,D=8], k: f32[M=N,D=8]) -> (o: f32[N,D=8]) {
  s = contract(\"nd,md->nm\", z, k)
  o = contract(\"nm,md->nd\", softmax(s, m), k)
}
";

fn names(list: &str) -> Vec<ir::dim::Name> {
    list.split(',').map(Into::into).collect()
}

#[test]
fn calls_run_as_planned() {
    use trainer::program::Checkpoint::{Operands, Residuals};
    let f = &ir::text::parse(NETWORK).unwrap_or_else(|e| panic!("{}", e[0])).functions[0];
    let dims: Bindings = [("N".into(), 37)].into();
    let all = "x,c,w,v";
    let both = "x,c,w,v,x.t,c.t,w.t,v.t";
    let (jvp, vjp) = (|l: &str| Transform::Jvp(names(l)), |l: &str| Transform::Vjp(names(l)));
    let chains = [(vec![], 3), (vec![jvp(all)], 3), (vec![jvp("x")], 3), (vec![vjp(all)], 6), (vec![jvp("x,c"), vjp("x,c,w,v,x.t,c.t")], 6), (vec![vjp("x,w"), jvp("x,w,y.ct")], 6), (vec![jvp(all), vjp(both)], 6)];
    for (transforms, calls) in chains {
        for checkpoint in [Residuals, Operands] {
            let make = |on| Program::new(f, &transforms, &dims, &Options { on, dtype: DType::F64, checkpoint, threads: Some(2), ..Options::default() }).unwrap_or_else(|e| panic!("{e}"));
            let (reference, cpu) = (make(On::Reference), make(On::Cpu));
            let inputs: Vec<(String, Tensor)> = reference.params().iter().enumerate().map(|(i, p)| (p.name.to_string(), draw(&p.shape, i as u64))).collect();
            let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
            let want = reference.run(&given).unwrap();
            for _ in 0..2 {
                let got = cpu.run(&given).unwrap();
                for (n, want) in &want {
                    let e = relative_error(&got[n], want);
                    assert!(e < 1e-11, "{transforms:?} {checkpoint:?} {n}: {e:e}");
                }
            }
            // A layer costs no kernel of its own, and stacked weights are read where they are.
            assert!(cpu.launches() > cpu.kernels() && cpu.launches() >= 2 * calls, "{transforms:?}: {} launches of {} kernels", cpu.launches(), cpu.kernels());
            let plan = cpu.plan().unwrap();
            assert!(plan.arena as f64 <= 1.1 * plan.bound as f64, "{transforms:?}: {} bytes, {} live at once", plan.arena, plan.bound);
            let text = |b: &runtime::plan::Buffer| format!("{} {:?}", b.name, b.shape);
            let copies: Vec<String> = plan.buffers.iter().filter(|b| matches!(b.home, runtime::plan::Home::Arena(_)) && b.shape == [16, 8] && !b.name.contains(".ct")).map(text).collect();
            let backward = transforms.iter().any(|t| matches!(t, Transform::Vjp(_)));
            assert!(copies.is_empty() || backward, "{transforms:?}: {copies:?}");
        }
    }
}

#[test]
fn what_is_declared_f64_is_computed_in_f64() {
    let text = "
fn f(t: f64[B], x: f32[B,D=4]) -> (y: f32[B,D=4], n: f32[B]) {
  w = call(wave, s, t)
  y = x * w
  n = reduce_sum(y * y, d)
}
fn wave(t: f64[B]) -> (s: f32[B]) { s = convert(sin(t * 1000.123), f32) }
";
    let f = &ir::text::parse(text).unwrap_or_else(|e| panic!("{}", e[0])).functions[0];
    let dims: Bindings = [("B".into(), 5)].into();
    let t = Tensor::from_f64(DType::F64, &[5], &[999.125, 3.5, 0.25, 731.0, 12.0625]).unwrap();
    let (x, tt) = (draw(&[5, 4], 3).convert(DType::F32), draw(&[5], 7));
    let given: [(&str, &Tensor); 3] = [("t", &t), ("x", &x), ("t.t", &tt)];
    for flat in [false, true] {
        let f = if flat { passes::inline(f).unwrap() } else { f.clone() };
        let make = |on, dtype| Program::new(&f, &[Transform::Jvp(names("t"))], &dims, &Options { on, dtype, threads: Some(1), ..Options::default() }).unwrap_or_else(|e| panic!("{e}"));
        let (want, got) = (make(On::Reference, DType::F64).run(&given).unwrap(), make(On::Cpu, DType::F32).run(&given).unwrap());
        for (n, want) in &want {
            let e = relative_error(&got[n], want);
            assert!(e < 1e-6, "{n}: {e:e}");
        }
    }
}
