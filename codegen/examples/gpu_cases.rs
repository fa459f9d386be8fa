//! `pack DIR [NAME]`: PTX, inputs and launch lists of the test cases; `check DIR RESULTS`: compares what a GPU made of them.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/cases.rs"]
mod cases;

use cases::{blocks, build};
use ir::tensor::Tensor;
use ir::types::DType;
use std::collections::BTreeMap;
use std::fmt::Write;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let filter = args.get(2).filter(|_| args[0] == "pack").cloned().unwrap_or_default();
    for c in cases::all().into_iter().filter(|c| c.name.contains(&filter)) {
        let dir = format!("{}/{}", args[1], c.name);
        if args[0] == "pack" {
            std::fs::create_dir_all(&dir).unwrap();
            let mut list = String::new();
            let mut known = vec![];
            for (n, t) in &c.inputs {
                std::fs::write(format!("{dir}/{n}.in"), t.to_bytes()).unwrap();
                writeln!(list, "buf {n} {} {n}.in", t.byte_len()).unwrap();
                known.push(n.to_string());
            }
            for p in &c.programs {
                let built = std::panic::catch_unwind(|| build(p, "sm_90a"));
                let Ok((_, k)) = built else { println!("{} REFUSED", c.name); continue };
                std::fs::write(format!("{dir}/{}.ptx", p.name), &k.ptx).unwrap();
                std::fs::write(format!("{dir}/{}.ll", p.name), k.llvm.as_deref().unwrap_or_default()).unwrap();
                for b in &k.signature.buffers {
                    if !known.contains(&b.name.to_string()) {
                        let n: i64 = b.shape.iter().map(|d| d.eval(&c.dims).unwrap()).product();
                        writeln!(list, "buf {} {}", b.name, n as usize * b.dtype.bytes()).unwrap();
                        known.push(b.name.to_string());
                    }
                }
                let s = &k.signature;
                let buffers: Vec<&str> = s.buffers.iter().map(|b| &*b.name).collect();
                let dims: Vec<String> = s.dims.iter().map(|d| c.dims[d].to_string()).collect();
                writeln!(list, "launch {}.ptx {} {} {} {} 0 0 {} {} {} {}", p.name, s.symbol, s.block, s.shared_bytes, blocks(&k, &c.dims), buffers.len(), buffers.join(" "), dims.len(), dims.join(" ")).unwrap();
            }
            for r in &c.f.results {
                writeln!(list, "out {} {}.{}", r.name, c.name, r.name).unwrap();
            }
            std::fs::write(format!("{dir}/case.txt"), list).unwrap();
        } else {
            let mut got = BTreeMap::new();
            for (r, w) in c.f.results.iter().zip(&c.want) {
                let p = c.programs.iter().flat_map(|p| &p.buffers).find(|b| b.name == r.name && b.access == ir::tile::Access::Output);
                let d = p.map_or(DType::F32, |b| b.dtype);
                if let Ok(bytes) = std::fs::read(format!("{}/{}.{}", args[2], c.name, r.name)) {
                    got.insert(r.name.clone(), Tensor::from_bytes(d, w.shape(), &bytes).unwrap());
                }
            }
            if got.len() < c.f.results.len() {
                println!("{} MISSING", c.name);
                continue;
            }
            let e = c.errors(&got);
            let dtype = c.programs[0].operands;
            let bound = if dtype == DType::BF16 { 5e-3 } else if dtype == DType::F16 { 6e-4 } else { 2e-5 };
            let bad = e.iter().any(|(_, e)| !(*e <= bound));
            println!("{}{} {}", if bad { "BAD " } else { "ok  " }, c.name, e.iter().map(|(n, e)| format!("{n} {e:.1e}")).collect::<Vec<_>>().join(", "));
        }
    }
}
