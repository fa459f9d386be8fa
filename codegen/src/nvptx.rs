//! Block programs to PTX.
//!
//! The row axis of a program is spread over warps and the rows of their fragments, all other axes are columns; every value is a
//! tile over rows and one column axis in the registers of the block, operands of matrix products are tiles in shared memory that
//! asynchronous copies fill some iterations ahead. One fragment layout serves tensor cores, rows held by warps and elementwise
//! work; see `docs/lowering.md`. Streamed products with a running maximum and sum, the accumulator in registers: Dao, 2023.

mod axes;
mod copy;
mod dot;
mod each;
mod emit;
mod exponential;
mod factor;
mod fit;
pub mod layout;
mod map;
mod memory;
pub mod plan;
mod schedule;
mod serial;
mod stream;
mod tf32;
pub mod value;
mod warpgroup;

pub use fit::{Fitted, compile_fitting, fitting};
pub use schedule::{Schedule, default_by_warps, default_schedule, default_schedule_at, maxima_behind, schedules, schedules_by_warpgroups};

use crate::target::GpuTarget;
use crate::text::Text;
use crate::{Error, llvm, mlir};
use emit::Emit;
use ir::artifact::{GpuSignature, GridAxis, Signature};
use ir::dim::{Bindings, Dim};
use ir::tile::{Buffer, Program, verify};
use plan::Plan;
use std::collections::BTreeSet;

/// What [`compile`] gives.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// PTX text.
    pub ptx: String,
    /// How to launch it.
    pub signature: GpuSignature,
    /// What the emitter wrote.
    pub mlir: String,
    /// LLVM IR after its passes, if it was asked for.
    pub llvm: Option<String>,
    /// Of fragments; none where each element has a thread.
    pub schedule: Option<Schedule>,
    /// Why it has a thread for each element instead of a form over fragments, where that is so.
    pub each: Option<String>,
}

fn refused(p: &Program, why: &str) -> Error {
    Error::Gpu(format!("{}: {why}", p.name))
}

/// Whether a block program has a form on GPUs, whatever the schedule; else what has none.
///
/// # Errors
/// That, in words.
pub fn fits(p: &Program) -> Result<(), String> {
    plan::roles(p, false).map(drop).map_err(|e| e.to_string())
}

/// Compiles a block program for a GPU.
///
/// # Errors
/// What has no form there; which limit of the target the schedule exceeds; or a bug of ours, with MLIR's or LLVM's words.
pub fn compile(p: &Program, target: &GpuTarget, schedule: &Schedule) -> Result<Compiled, Error> {
    compile_with(p, target, schedule, false)
}

/// The same, with LLVM IR if `texts`.
///
/// # Errors
/// Those of [`compile`].
pub fn compile_with(p: &Program, target: &GpuTarget, schedule: &Schedule, texts: bool) -> Result<Compiled, Error> {
    Ok(Compiled { schedule: Some(schedule.clone()), ..made(p, target, texts, || lower(p, target, schedule))? })
}

/// By the default schedule, with LLVM IR if `texts`.
///
/// # Errors
/// Those of [`compile`]; what has no schedule has a thread for each element.
pub fn compile_default(p: &Program, target: &GpuTarget, texts: bool) -> Result<Compiled, Error> {
    compile_by(p, target, texts, || default_schedule(p, target))
}

/// An estimate of the registers of a thread, by what is alive at once in the plan: the model that [`default_schedule`] chooses by.
///
/// # Errors
/// The schedule does not fit the program or the target.
pub fn registers(p: &Program, target: &GpuTarget, schedule: &Schedule) -> Result<usize, Error> {
    Ok(schedule::registers(&Plan::new(p, target, schedule)?))
}

/// The same, for sizes of which `dims` are known: the kernel may be one that runs only where strides are multiples of what they are here.
///
/// # Errors
/// Those of [`compile_default`].
pub fn compile_at(p: &Program, target: &GpuTarget, dims: &Bindings, texts: bool) -> Result<Compiled, Error> {
    compile_by(p, target, texts, || default_schedule_at(p, target, dims))
}

/// By a schedule over fragments, or, where there is none, by a thread for each element.
fn compile_by(p: &Program, target: &GpuTarget, texts: bool, schedule: impl FnOnce() -> Result<Schedule, Error>) -> Result<Compiled, Error> {
    match no_double(p).and_then(|()| schedule()) {
        Ok(s) => compile_with(p, target, &s, texts),
        Err(why) => {
            let code = made(p, target, texts, || {
                let (body, signature) = each::lower(p, &symbol(p))?;
                Ok((module(&signature, &body, "", &BTreeSet::new()), signature))
            })?;
            Ok(Compiled { each: Some(why.to_string()), ..code })
        }
    }
}

/// The code of a program that the verifier takes, from the MLIR text that `lower` writes.
fn made(p: &Program, target: &GpuTarget, texts: bool, lower: impl FnOnce() -> Result<(String, GpuSignature), Error>) -> Result<Compiled, Error> {
    verify::verify(p).map_err(|e| Error::Gpu(e.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))?;
    let (mlir, signature) = lower()?;
    let code = mlir::with_module(&mlir, mlir::GPU, |m| llvm::ptx(m, target, texts))?;
    Ok(Compiled { ptx: code.ptx, signature, mlir, llvm: code.llvm, schedule: None, each: None })
}

/// Fragments hold f32.
fn no_double(p: &Program) -> Result<(), Error> {
    match p.buffers.iter().find(|b| b.dtype == ir::types::DType::F64) {
        Some(b) => Err(refused(p, &format!("`{}` is f64", b.name))),
        None => Ok(()),
    }
}

/// The entry point's name.
fn symbol(p: &Program) -> String {
    let name: String = p.name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
    format!("pf_{name}")
}

/// What stands for the type of a structure of so many `f32` and then `i64`: a long type takes time wherever it is read.
fn results([floats, integers]: [usize; 2]) -> String {
    format!("!f32x{floats}i64x{integers}")
}

/// The module with a kernel's body, where assembly has such results.
fn module(signature: &GpuSignature, body: &str, attributes: &str, all: &BTreeSet<[usize; 2]>) -> String {
    let buffer = |(i, b): (usize, &Buffer)| {
        let read = if b.access == ir::tile::Access::Input { ", llvm.readonly" } else { "" };
        format!("%b{i}: !llvm.ptr<1> {{llvm.noalias, llvm.align = 16 : i64{read}}}")
    };
    let map = |i: usize| format!("%m{i}: !llvm.ptr {{llvm.byval = !llvm.array<128 x i8>, llvm.align = 64 : i64, nvvm.grid_constant}}");
    let args: Vec<String> = signature.buffers.iter().enumerate().map(buffer).chain((0..signature.dims.len()).map(|i| format!("%d{i}: i64"))).chain((0..signature.maps.len()).map(map)).collect();
    // Tiles that persistent blocks have taken.
    let taken = if signature.exclusive { "llvm.mlir.global internal @taken(0 : i32) {addr_space = 1 : i32, alignment = 4 : i64} : i32\n" } else { "" };
    let structure = |[n, m]: [usize; 2]| [vec!["f32"; n], vec!["i64"; m]].concat().join(", ");
    let aliases: String = all.iter().map(|r| format!("{} = !llvm.struct<({})>\n", results(*r), structure(*r))).collect();
    format!(
        "{aliases}module {{\nllvm.mlir.global external @dyn() {{addr_space = 3 : i32, alignment = 1024 : i64}} : !llvm.array<0 x i8>\n{taken}\
         llvm.func @{}({}) attributes {{nvvm.kernel, nvvm.reqntid = array<i32: {}>{attributes}}} {{\n{body}llvm.return\n}}\n}}\n",
        signature.symbol,
        args.join(", "),
        signature.block,
    )
}

/// MLIR text (dialects `llvm`, `nvvm`, `scf`, `arith`), and how to launch it.
///
/// # Errors
/// Those of [`compile`] but for MLIR and LLVM.
pub fn lower(p: &Program, target: &GpuTarget, schedule: &Schedule) -> Result<(String, GpuSignature), Error> {
    let plan = Plan::new(p, target, schedule)?;
    let signature = GpuSignature {
        symbol: symbol(p),
        buffers: plan.p.buffers.clone(),
        dims: plan.p.dims(),
        grid: grid(&plan),
        block: plan.threads(),
        shared_bytes: plan.shared[2],
        maps: warpgroup::maps(&plan),
        multiples: plan.multiples.iter().cloned().collect(),
        resident: if schedule.persistent { schedule.blocks } else { 0 },
        cluster: if schedule.multicast { 2 } else { 0 },
        exclusive: schedule.persistent && !plan.even(),
    };
    let mut fast = Emit::new(&plan, true);
    fast.kernel()?;
    let (assumed, mut results) = (std::mem::take(&mut fast.assumed), std::mem::take(&mut fast.results));
    let body = if assumed.is_empty() {
        fast.t.finish()
    } else {
        let mut slow = Emit::new(&plan, false);
        slow.kernel()?;
        results.append(&mut slow.results);
        choose(&plan, &assumed, fast.t.finish(), slow.t.finish())?
    };
    let cluster = if schedule.multicast { ", nvvm.cluster_dim = array<i32: 2, 1, 1>" } else { "" };
    let mlir = module(&signature, &body, &format!(", nvvm.minctasm = {} : i32{cluster}", schedule.blocks), &results);
    Ok((mlir, signature))
}

/// The grid's axes. A tile of the last one is a cluster's.
fn grid(plan: &Plan) -> Vec<GridAxis> {
    let mut grid = Signature::grid_of(&plan.p);
    if let (true, Some(last)) = (plan.schedule.multicast, grid.last_mut()) {
        last.tile *= 2;
    }
    grid
}

/// `fast` if every assumed size is a multiple of its number, else `slow`.
fn choose(plan: &Plan, assumed: &BTreeSet<(Dim, i64)>, fast: String, slow: String) -> Result<String, Error> {
    let mut e = Emit::new(plan, false);
    e.t = Text::above(1 << 30);
    let mut all: Option<String> = None;
    for (d, by) in assumed {
        let n = e.dim(d)?;
        let (by, zero) = (e.wide_k(*by as usize), e.wide_k(0));
        let r = e.l("remsi", &n, &by);
        let ok = e.t.op(format_args!("arith.cmpi eq, {r}, {zero} : i64"));
        all = e.and(all, ok);
    }
    let all = all.ok_or_else(|| Error::Internal("nothing assumed".into()))?;
    e.t.line(format_args!("scf.if {all} {{\n{fast}}} else {{\n{slow}}}"));
    Ok(e.t.finish())
}
