//! Cases of outside references: files, and the programs that they belong to.

use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::tensor::Tensor;
use ir::types::DType;
use passes::fuse::{Options, fuse};
use safetensors::SafeTensors;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Tensors by name.
pub type Fields = BTreeMap<String, Tensor>;

/// The folder of tests.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// A fixture file's tensors and its parameters.
pub fn load(path: &str) -> (Fields, Value) {
    let bytes = std::fs::read(root().join("fixtures").join(path)).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let params = serde_json::from_str(&header.metadata().as_ref().unwrap()["params"]).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |v: &safetensors::tensor::TensorView| Tensor::from_safetensors(&format!("{:?}", v.dtype()), v.shape(), v.data()).unwrap();
    (file.tensors().iter().map(|(n, v)| (n.clone(), tensor(v))).collect(), params)
}

/// The program for a case's parameters, as a person would write it, with `o` and `lse` as asked.
pub fn scores_program(p: &Value, results: &[&str]) -> String {
    let number = |k: &str| p[k].as_f64().unwrap();
    let (h, kv_heads) = (number("H"), number("Hkv"));
    let grouped = h != kv_heads;
    let (g, heads, letters) = if grouped { ("G", "split(q, H -> [G, R=H/G])", ["bgrid,bgjd->bgrij", "bgrij,bgje->bgrie"]) } else { ("H", "q", ["bhid,bhjd->bhij", "bhij,bhje->bhie"]) };
    let mut params = format!("q: f32[B,H,I,D], k: f32[B,{g},J,D], v: f32[B,{g},J,E]");
    let mut s = format!("contract(\"{}\", {heads}, k) * {}", letters[0], number("scale"));
    if number("softcap") > 0.0 {
        s = format!("softcap({s}, {})", number("softcap"));
    }
    if p["alibi"].as_bool().unwrap() {
        params += ", alibi_slopes: f32[H]";
        s += " - mul(alibi_slopes, convert(abs(iota(I) + J - I - iota(J)), f32))";
    }
    match p["bias"].as_str() {
        Some("HQK") => { params += ", bias: f32[X=1,H,I,J]"; s += " + index(bias, X, 0)"; }
        Some("1H1K") => { params += ", bias: f32[X=1,H,Y=1,J]"; s += " + index(index(bias, X, 0), Y, 0)"; }
        Some("B1QK") => { params += ", bias: f32[B,X=1,I,J]"; s += " + index(bias, X, 0)"; }
        Some(other) => panic!("bias of kind {other}"),
        None => {}
    }
    let causal = p["causal"].as_str().unwrap();
    let last = if causal == "top_left" { "iota(I)" } else { "iota(I) + J - I" };
    let mut masks = vec![];
    if causal != "none" {
        masks.push(format!("iota(J) <= {last}"));
    }
    let (left, right) = (p["window"][0].as_i64().unwrap(), p["window"][1].as_i64().unwrap());
    if left >= 0 {
        masks.push(format!("iota(J) >= {last} - {left}"));
    }
    if right >= 0 {
        masks.push(format!("iota(J) <= {last} + {right}"));
    }
    if !p["kv_len"].is_null() {
        params += ", kv_len: i32[B]";
        masks.push("iota(J) < kv_len".into());
    }
    if !masks.is_empty() {
        s = format!("select({}, {s}, -inf)", masks.join(" & "));
    }
    let merged = |x: &str| if grouped { format!("merge({x}, [G,R] -> H)") } else { x.into() };
    let all = [
        ("o", "f32[B,H,I,E]", merged(&format!("contract(\"{}\", softmax(s, j), v)", letters[1]))),
        ("lse", "f32[B,H,I]", merged("logsumexp(s, j)")),
    ];
    let (mut ports, mut body) = (vec![], String::new());
    for (name, ty, value) in all.iter().filter(|(n, ..)| results.contains(n)) {
        ports.push(format!("{name}: {ty}"));
        body += &format!("  {name} = {value}\n");
    }
    format!("fn case({params}) -> ({}) {{\n  s = {s}\n{body}}}", ports.join(", "))
}

/// `g`, simplified and fused, on the tile interpreter, with dots as matrix units round them.
#[allow(dead_code)] // Tests of GPU code do without.
pub fn on_interp(g: &Function, inputs: &Fields, dims: &Bindings, dtype: DType) -> BTreeMap<Name, Tensor> {
    let compute = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let options = Options { dims: dims.clone(), compute, storage: dtype, operands: dtype, lanes: 16, rows: 4, stream: 16, matmul: (8, 16), ..Options::default() };
    let n = passes::simplify::normalize(g).unwrap();
    let fused = fuse(&n, &options).unwrap_or_else(|e| panic!("{e}\n{}", ir::text::print_function(&n)));
    let mut tensors: BTreeMap<Name, Tensor> = inputs.iter().map(|(n, t)| (n.as_str().into(), t.clone())).collect();
    let mut launch = |p: &ir::tile::Program, d: &Bindings, x: &[Tensor]| ir::tile::interp::run(p, d, x);
    ir::tile::sequence::run(&fused.programs, &mut tensors, dims, &mut launch).unwrap_or_else(|e| panic!("{e}\n{}", fused.programs.iter().map(|p| p.to_string()).collect::<String>()));
    tensors
}
