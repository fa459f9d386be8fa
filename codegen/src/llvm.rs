//! The one unsafe bridge: a module in the LLVM dialect becomes an LLVM module, then object code or assembly.
//!
//! LLVM's own optimizations gain little here: the emitters write the loops they want. On a CPU only `early-cse` runs; `O3` takes three
//! times as long and unrolls what should stay small. For GPUs what is left of `O3` is what changes a kernel.

use crate::Error;
use crate::target::{GpuTarget, Target};
use inkwell::OptimizationLevel;
use inkwell::context::Context;
use inkwell::module::Module;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{CodeModel, FileType, InitializationConfig, RelocMode, Target as Backend, TargetMachine, TargetTriple};

/// Machine code and what was asked for beside it.
pub struct Code {
    /// An ELF relocatable object.
    pub object: Vec<u8>,
    /// LLVM IR, after passes.
    pub llvm: Option<String>,
    /// Assembly.
    pub assembly: Option<String>,
}

/// Translates and compiles `module`, which holds only the LLVM dialect.
///
/// # Errors
/// What LLVM says.
pub fn compile(module: &melior::ir::Module, target: &Target, texts: bool) -> Result<Code, Error> {
    let context = Context::create();
    let llvm = translate(module, &context)?;
    let machine = machine(target)?;
    llvm.set_triple(&machine.get_triple());
    llvm.set_data_layout(&machine.get_target_data().get_data_layout());
    llvm.run_passes("function(early-cse)", &machine, PassBuilderOptions::create()).map_err(|e| Error::Llvm(e.to_string()))?;
    self_contained(&llvm)?;
    let emit = |module: &Module, kind| machine.write_to_memory_buffer(module, kind).map_err(|e| Error::Llvm(e.to_string()));
    let text = texts.then(|| llvm.print_to_string().to_string());
    // Code generation changes the module, so that a second one gives other code: the assembly is made from a copy.
    let assembly = if texts { Some(String::from_utf8_lossy(emit(&llvm.clone(), FileType::Assembly)?.as_slice()).trim_end_matches('\0').to_string()) } else { None };
    Ok(Code { object: emit(&llvm, FileType::Object)?.as_slice().to_vec(), llvm: text, assembly })
}

/// Passes of GPU kernels: straight-line code whose addresses and constants are folded, and moved out of loops. The machine code is that of `O3` or differs in a few
/// instructions (248 kernels, compared), in a third of its time.
const GPU: &str = "function(early-cse<memssa>,simplifycfg,instcombine<no-verify-fixpoint>,simplifycfg,reassociate,loop-mssa(loop-rotate,licm<allowspeculation>),simplifycfg,\
    instcombine<no-verify-fixpoint>,loop(indvars),gvn,sccp,bdce,instcombine<no-verify-fixpoint>,loop-mssa(licm<allowspeculation>),simplifycfg,instcombine<no-verify-fixpoint>,div-rem-pairs)";

/// PTX text and what was asked for beside it.
pub struct Ptx {
    /// The text.
    pub ptx: String,
    /// LLVM IR, after passes.
    pub llvm: Option<String>,
}

/// Translates `module`, which holds only the LLVM dialect, to PTX.
///
/// # Errors
/// What LLVM says, and any intrinsic that is not known to be an instruction: the backend has no libm, and would abort.
pub fn ptx(module: &melior::ir::Module, target: &GpuTarget, texts: bool) -> Result<Ptx, Error> {
    let context = Context::create();
    let llvm = translate(module, &context)?;
    Backend::initialize_nvptx(&InitializationConfig::default());
    let triple = TargetTriple::create("nvptx64-nvidia-cuda");
    let backend = Backend::from_triple(&triple).map_err(|e| Error::Target(e.to_string()))?;
    let machine = backend
        .create_target_machine(&triple, &target.name, &target.features, OptimizationLevel::Aggressive, RelocMode::Default, CodeModel::Default)
        .ok_or_else(|| Error::Target(format!("LLVM knows no machine {}", target.name)))?;
    llvm.set_triple(&triple);
    llvm.set_data_layout(&machine.get_target_data().get_data_layout());
    llvm.run_passes(GPU, &machine, PassBuilderOptions::create()).map_err(|e| Error::Llvm(e.to_string()))?;
    only(&llvm, &["llvm.nvvm.", "llvm.fma.", "llvm.sqrt.", "llvm.fabs.", "llvm.roundeven.", "llvm.maxnum.", "llvm.minnum.", "llvm.maximum.", "llvm.s", "llvm.u", "llvm.vector.", "llvm.abs.", "llvm.copysign.", "llvm.fsh", "llvm.bitreverse.", "llvm.assume"])?;
    let buffer = machine.write_to_memory_buffer(&llvm, FileType::Assembly).map_err(|e| Error::Llvm(e.to_string()))?;
    let ptx = String::from_utf8_lossy(buffer.as_slice()).trim_end_matches('\0').to_string();
    Ok(Ptx { ptx, llvm: texts.then(|| llvm.print_to_string().to_string()) })
}

fn translate<'c>(module: &melior::ir::Module, context: &'c Context) -> Result<Module<'c>, Error> {
    let operation = module.as_operation();
    // SAFETY: both libraries are built on the same LLVM, so that a context and a module of one are those of the other; the
    // translation borrows the operation only while it runs, and gives a module that lives in `context`, or null.
    unsafe {
        let raw = mlir_sys::mlirTranslateModuleToLLVMIR(operation.to_raw(), context.raw().cast());
        if raw.is_null() {
            return Err(Error::Mlir("translation to LLVM IR".into()));
        }
        Ok(Module::new(raw.cast()))
    }
}

fn machine(target: &Target) -> Result<TargetMachine, Error> {
    Backend::initialize_x86(&InitializationConfig::default());
    let triple = TargetTriple::create(&target.triple);
    let backend = Backend::from_triple(&triple).map_err(|e| Error::Target(e.to_string()))?;
    backend
        .create_target_machine(&triple, &target.cpu, &target.features, OptimizationLevel::Aggressive, RelocMode::PIC, CodeModel::Default)
        .ok_or_else(|| Error::Target(format!("LLVM knows no machine {} {}", target.triple, target.cpu)))
}

/// Nothing but our own functions and intrinsics that are instructions may be called: the object is loaded without a linker.
fn self_contained(module: &Module) -> Result<(), Error> {
    only(module, &["llvm.prefetch.", "llvm.fma.", "llvm.sqrt.", "llvm.fabs.", "llvm.roundeven.", "llvm.masked.", "llvm.s", "llvm.u", "llvm.vector."])
}

/// Declared functions have one of these beginnings.
fn only(module: &Module, known: &[&str]) -> Result<(), Error> {
    for f in module.get_functions().filter(|f| f.count_basic_blocks() == 0) {
        let name = f.get_name().to_string_lossy().into_owned();
        if !known.iter().any(|k| name.starts_with(k)) {
            return Err(Error::Llvm(format!("`{name}` is not known to be an instruction")));
        }
    }
    Ok(())
}
