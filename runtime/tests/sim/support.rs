//! One-instruction kernels: each thread loads its operands, runs the given lines, and stores its results.
#![allow(dead_code)]

use runtime::sim::{Arg, Fault, Module, Options, Report};

/// A kernel around `body`: registers `%a0 …` hold the inputs of a lane, `%d0 …` are its results, all of 32 bits. Free for use: `%t<32>` (b32), `%q<16>`
/// (b64), `%s<16>` (b16), `%p<8>`, and `%tid.x` in `%lane`.
pub fn kernel(target: &str, inputs: usize, outputs: usize, body: &str) -> String {
    let mut s = format!(
        ".version 8.0\n.target {target}\n.address_size 64\n.visible .entry k(.param .u64 in, .param .u64 out) {{\n.reg .b32 %a<{}>; .reg .b32 %d<{}>; .reg .b32 %t<32>; .reg .b64 %q<16>; .reg .b16 %s<16>; .reg .pred %p<8>;\n.reg .b32 %lane; .reg .b64 %at<6>;\nmov.u32 %lane, %tid.x;\nld.param.u64 %at0, [in];\nld.param.u64 %at1, [out];\nmad.wide.u32 %at2, %lane, {}, %at0;\nmad.wide.u32 %at3, %lane, {}, %at1;\n",
        inputs.max(1),
        outputs.max(1),
        4 * inputs,
        4 * outputs
    );
    for i in 0..inputs {
        s += &format!("ld.global.b32 %a{i}, [%at2+{}];\n", 4 * i);
    }
    s += body;
    s += "\n";
    for i in 0..outputs {
        s += &format!("st.global.b32 [%at3+{}], %d{i};\n", 4 * i);
    }
    s + "ret;\n}\n"
}

/// Runs it with as many threads as there are rows, in one block.
pub fn try_run(target: &str, outputs: usize, body: &str, rows: &[Vec<u32>]) -> Result<(Vec<Vec<u32>>, Report), Fault> {
    let inputs = rows[0].len();
    let text = kernel(target, inputs, outputs, body);
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let bytes: Vec<u8> = rows.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
    let mut out = vec![0u8; 4 * outputs * rows.len()];
    let report = module.launch("k", [1, 1, 1], [rows.len() as u32, 1, 1], 0, &mut [Arg::Input(&bytes), Arg::Output(&mut out)], &Options::default())?;
    let words: Vec<u32> = out.chunks(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
    Ok((words.chunks(outputs.max(1)).map(<[u32]>::to_vec).collect(), report))
}

/// The results of one output per thread.
pub fn run(body: &str, rows: &[Vec<u32>]) -> Vec<u32> {
    match try_run("sm_80", 1, body, rows) {
        Ok((r, _)) => r.into_iter().map(|r| r[0]).collect(),
        Err(f) => panic!("{f}\n{body}"),
    }
}

/// One instruction on one lane, against what the ISA says.
#[track_caller]
pub fn check(body: &str, inputs: &[u32], want: u32) {
    let got = run(body, &[inputs.to_vec()])[0];
    assert_eq!(got, want, "{body} on {inputs:x?}: got {got:#x}, want {want:#x}");
}

pub fn f(x: f32) -> u32 {
    x.to_bits()
}
