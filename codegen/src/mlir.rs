//! MLIR: one context per thread, pipelines by name, diagnostics as our errors.

use crate::Error;
use melior::ir::Module;
use melior::pass::PassManager;
use melior::utility::{parse_pass_pipeline, register_all_dialects, register_all_llvm_translations, register_all_passes};
use melior::{Context, dialect::DialectRegistry};
use std::cell::RefCell;
use std::fmt::Write;
use std::rc::Rc;
use std::sync::Once;

/// From the dialects that the CPU emitter writes to the LLVM dialect.
pub const CPU: &str = "builtin.module(convert-scf-to-cf,convert-vector-to-llvm,convert-arith-to-llvm,convert-cf-to-llvm,reconcile-unrealized-casts)";

/// From the dialects that the GPU emitter writes to the LLVM dialect.
pub const GPU: &str = "builtin.module(convert-scf-to-cf,convert-nvvm-to-llvm,convert-arith-to-llvm,convert-cf-to-llvm,reconcile-unrealized-casts)";

thread_local! {
    static CONTEXT: Context = new_context();
}

fn new_context() -> Context {
    static PASSES: Once = Once::new();
    PASSES.call_once(register_all_passes);
    let registry = DialectRegistry::new();
    register_all_dialects(&registry);
    let context = Context::new();
    context.append_dialect_registry(&registry);
    for d in ["llvm", "scf", "cf", "arith", "vector", "func", "nvvm"] {
        context.get_or_load_dialect(d);
    }
    register_all_llvm_translations(&context);
    context.enable_multi_threading(false);
    context
}

/// Parses `text`, runs `pipeline`, hands the module to `f`.
///
/// # Errors
/// What MLIR says, with line and column in `text`, or what `f` says.
pub fn with_module<T>(text: &str, pipeline: &str, f: impl FnOnce(&Module) -> Result<T, Error>) -> Result<T, Error> {
    CONTEXT.with(|context| {
        let said = Rc::new(RefCell::new(String::new()));
        let sink = said.clone();
        let id = context.attach_diagnostic_handler(move |d| {
            let mut s = sink.borrow_mut();
            let _ = writeln!(s, "{}: {d}", d.location());
            for note in (0..d.note_count()).filter_map(|i| d.note(i).ok()) {
                let note: String = note.to_string().chars().take(300).collect();
                let _ = writeln!(s, "  note: {note}");
            }
            true
        });
        let result = run(context, text, pipeline, f);
        context.detach_diagnostic_handler(id);
        result.map_err(|e| match e {
            Error::Mlir(stage) => {
                let said = said.borrow();
                // The line that MLIR complains of, since the text is ours.
                let line = said.split(':').nth(1).and_then(|n| n.parse::<usize>().ok()).and_then(|n| text.lines().nth(n.saturating_sub(1)));
                Error::Mlir(format!("{stage}: {}{}", said.trim_end(), line.map(|l| format!("\n  in: {l}")).unwrap_or_default()))
            }
            e => e,
        })
    })
}

fn run<T>(context: &Context, text: &str, pipeline: &str, f: impl FnOnce(&Module) -> Result<T, Error>) -> Result<T, Error> {
    // The parser verifies, too.
    let mut module = Module::parse(context, text).ok_or_else(|| Error::Mlir("parse".into()))?;
    let passes = PassManager::new(context);
    parse_pass_pipeline(passes.as_operation_pass_manager(), pipeline).map_err(|e| Error::Mlir(format!("pipeline {pipeline}: {e}")))?;
    passes.enable_verifier(false);
    passes.run(&mut module).map_err(|_| Error::Mlir("lowering".into()))?;
    f(&module)
}
