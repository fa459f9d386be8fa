//! What a program in C needs beside a compiled kernel: a header with its constants, the grid rule as a function, and the launch as another.

use ir::artifact::{GpuSignature, TensorMap};
use ir::dim::Dim;
use ir::tile::Access;
use ir::types::DType;
use serde_json::{Value, json};

/// Alignment of buffers, bytes: vectors of 16 bytes are loaded from them.
const ALIGN: usize = 16;

/// A name of C: letters, digits and underscores.
fn name(s: &str) -> String {
    let s: String = s.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if s.starts_with(|c: char| c.is_ascii_digit()) { format!("_{s}") } else { s }
}

/// A size as an expression of C: exact, since every division of a size is.
fn expression(d: &Dim) -> String {
    let mut text = String::new();
    let mut word = String::new();
    for c in d.to_string().chars().chain([' ']) {
        if c.is_ascii_alphanumeric() || c == '_' {
            word.push(c);
            continue;
        }
        text += &if word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') { format!("dim_{word}") } else { std::mem::take(&mut word) };
        word.clear();
        if c != ' ' {
            text.push(c);
        }
    }
    text
}

/// Number of blocks: the product of the grid's axes, each in tiles.
fn grid(s: &GpuSignature) -> String {
    let axis = |g: &ir::artifact::GridAxis| match g.tile {
        1 => format!("({})", expression(&g.size)),
        tile => format!("(({} + {}) / {tile})", expression(&g.size), tile - 1),
    };
    let axes = s.grid.iter().map(axis).chain((s.cluster > 1).then(|| s.cluster.to_string()));
    if s.grid.is_empty() { "1".into() } else { axes.collect::<Vec<_>>().join(" * ") }
}

fn c_type(d: DType) -> &'static str {
    match d {
        DType::F64 => "double",
        DType::F32 => "float",
        DType::BF16 => "bf16 (2 bytes)",
        DType::F16 => "f16 (2 bytes)",
        DType::I32 => "int32_t",
        DType::Bool => "bool (1 byte)",
    }
}

/// A kernel's part of `manifest.json`: what it takes, and how it is launched.
pub fn manifest(s: &GpuSignature) -> Value {
    let shape = |d: &[Dim]| d.iter().map(ToString::to_string).collect::<Vec<_>>();
    let buffers = s.buffers.iter().map(|b| {
        json!({"name": &*b.name, "kind": "pointer", "access": if b.access == Access::Input { "read" } else { "write" }, "dtype": b.dtype.name(), "shape": shape(&b.shape), "align": ALIGN})
    });
    let dims = s.dims.iter().map(|d| json!({"name": &**d, "kind": "i64"}));
    let axes: Vec<Value> = s.grid.iter().map(|g| json!({"size": g.size.to_string(), "tile": g.tile})).collect();
    // What the bulk copy engine has to know of a buffer: `cuTensorMapEncodeTiled` makes the parameter of it.
    let maps = s.maps.iter().map(|m| {
        let axes: Vec<Value> = m.axes.iter().map(|a| json!({"size": a.size.to_string(), "stride": a.stride.to_string(), "tile": a.tile})).collect();
        json!({"kind": "tensor map", "bytes": 128, "align": 64, "buffer": &*s.buffers[m.buffer].name, "offset": m.offset.to_string(), "axes": axes, "swizzle": m.swizzle})
    });
    let multiples: Vec<Value> = s.multiples.iter().map(|(d, by)| json!({"size": d.to_string(), "multiple_of": by})).collect();
    let mut rule = "one dimension: the product over the axes of size / tile, rounded up; the last axis is fastest".to_string();
    if s.resident > 0 {
        rule += &format!("; but at most {} for each multiprocessor", s.resident);
    }
    if s.cluster > 1 {
        rule += &format!("; {} blocks, a cluster, share each of these", s.cluster);
    }
    if s.exclusive {
        rule += "; launches of one loaded module must not overlap";
    }
    json!({
        "symbol": s.symbol, "parameters": buffers.chain(dims).chain(maps).collect::<Vec<_>>(), "requires": multiples,
        "grid": {"rule": rule, "axes": axes},
        "block": [s.block, 1, 1], "shared_bytes": s.shared_bytes,
    })
}

/// The lines that make tensor map `i`.
fn encode(s: &GpuSignature, i: usize, m: &TensorMap) -> String {
    let (b, rank) = (&s.buffers[m.buffer], m.axes.len());
    let bytes = b.dtype.bytes();
    let list = |f: &dyn Fn(usize) -> String, from: usize| (from..rank).map(f).collect::<Vec<_>>().join(", ");
    let element = match b.dtype {
        DType::F16 => "FLOAT16",
        DType::BF16 => "BFLOAT16",
        _ => "FLOAT32",
    };
    let sizes = list(&|a| format!("(cuuint64_t)({0} > 0 ? {0} : 1)", format!("({})", expression(&m.axes[a].size))), 0);
    // One stride less than axes; of a single axis none is read.
    let strides = if rank > 1 { list(&|a| format!("(cuuint64_t)(({}) * {bytes})", expression(&m.axes[a].stride)), 1) } else { "0".into() };
    format!(
        "  CUtensorMap map_{i};\n  {{\n    const cuuint64_t sizes[] = {{{sizes}}}, strides[] = {{{strides}}};\n    const cuuint32_t tile[] = {{{}}}, steps[] = {{{}}};\n    \
         CUresult made = cuTensorMapEncodeTiled(&map_{i}, CU_TENSOR_MAP_DATA_TYPE_{element}, {rank}, (void *)({} + ({}) * {bytes}), sizes, strides, tile, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_{}, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);\n    \
         if (made != CUDA_SUCCESS) return made;\n  }}\n",
        list(&|a| m.axes[a].tile.to_string(), 0),
        list(&|_| "1".into(), 0),
        name(&b.name),
        expression(&m.offset),
        if m.swizzle == 0 { "NONE".into() } else { format!("{}B", m.swizzle) },
    )
}

/// The header of kernels: per kernel its constants, `NAME_blocks` and `NAME_launch`. Needs `cuda.h` before it.
pub fn header(guard: &str, kernels: &[GpuSignature]) -> String {
    let guard = format!("PUSHFORWARD_{}_H", name(guard).to_uppercase());
    let mut out = format!("/* Made by pushforward {}. Include cuda.h first. */\n#ifndef {guard}\n#define {guard}\n", env!("CARGO_PKG_VERSION"));
    for s in kernels {
        let (symbol, upper) = (name(&s.symbol), name(&s.symbol).to_uppercase());
        out += "\n";
        for b in &s.buffers {
            let shape: Vec<String> = b.shape.iter().map(ToString::to_string).collect();
            out += &format!("/* {}: {} {} [{}], row-major, at a multiple of {ALIGN} bytes */\n", name(&b.name), if b.access == Access::Input { "const" } else { "written," }, c_type(b.dtype), shape.join(", "));
        }
        let dims: Vec<String> = s.dims.iter().map(|d| format!("long long dim_{}", name(d))).collect();
        let given: Vec<String> = s.dims.iter().map(|d| format!("dim_{}", name(d))).collect();
        let buffers: Vec<String> = s.buffers.iter().map(|b| format!("CUdeviceptr {}", name(&b.name))).collect();
        let maps = (0..s.maps.len()).map(|i| format!("&map_{i}"));
        let addresses: Vec<String> = s.buffers.iter().map(|b| format!("&{}", name(&b.name))).chain(given.iter().map(|d| format!("&{d}"))).chain(maps).collect();
        let takes = |list: &[String]| if list.is_empty() { "void".to_string() } else { list.join(", ") };
        let all = [vec!["CUfunction kernel".to_string(), "CUstream stream".to_string()], buffers, dims.clone()].concat();
        out += &format!("#define {upper}_SYMBOL \"{}\"\n#define {upper}_THREADS {}\n#define {upper}_SHARED_BYTES {}\n", s.symbol, s.block, s.shared_bytes);
        out += &format!("static inline long long {symbol}_blocks({}) {{\n  return {};\n}}\n", takes(&dims), grid(s));
        out += &format!("static inline CUresult {symbol}_launch({}) {{\n", all.join(", "));
        for (d, by) in &s.multiples {
            out += &format!("  if (({}) % {by} != 0) return CUDA_ERROR_INVALID_VALUE;\n", expression(d));
        }
        for (i, m) in s.maps.iter().enumerate() {
            out += &encode(s, i, m);
        }
        out += &format!("  void *parameters[] = {{{}}};\n", addresses.join(", "));
        out += &format!("  long long blocks = {symbol}_blocks({});\n  if (blocks <= 0) return CUDA_SUCCESS;\n", given.join(", "));
        if s.resident > 0 {
            if s.exclusive {
                out += "  /* Blocks count tiles in a variable of the module: launches of one loaded module must not overlap. */\n";
            }
            out += "  CUdevice device;\n  int multiprocessors;\n  CUresult found = cuCtxGetDevice(&device);\n  if (found != CUDA_SUCCESS) return found;\n";
            out += "  found = cuDeviceGetAttribute(&multiprocessors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device);\n  if (found != CUDA_SUCCESS) return found;\n";
            out += &format!("  if (blocks > (multiprocessors * {0}LL + {1}) / {2} * {2}) blocks = (multiprocessors * {0}LL + {1}) / {2} * {2};\n", s.resident, s.cluster.max(1) - 1, s.cluster.max(1));
        }
        // The driver's bound on the first dimension of a grid.
        out += "  if (blocks > 2147483647) return CUDA_ERROR_INVALID_VALUE;\n";
        // More than 48 KB are given only to those who ask.
        if s.shared_bytes > 48 << 10 {
            out += &format!("  CUresult asked = cuFuncSetAttribute(kernel, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, {upper}_SHARED_BYTES);\n  if (asked != CUDA_SUCCESS) return asked;\n");
        }
        out += &format!("  return cuLaunchKernel(kernel, (unsigned)blocks, 1, 1, {upper}_THREADS, 1, 1, {upper}_SHARED_BYTES, stream, parameters, 0);\n}}\n");
    }
    out + "\n#endif\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_names_are_those_of_c() {
        let (b, n) = (Dim::sym("B"), Dim::sym("N"));
        assert_eq!(expression(&(&(&b * &n) + &Dim::fixed(3))), "dim_B*dim_N+3");
        assert_eq!(expression(&Dim::fixed(12)), "12");
        assert_eq!((name("q.t"), name("%10"), name("2x")), ("q_t".into(), "_10".into(), "_2x".into()));
    }
}
