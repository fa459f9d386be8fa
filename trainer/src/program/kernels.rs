//! Block programs to loaded kernels for this CPU, through the cache.

use ir::tile::Program;
use runtime::cache::{Cache, Source, key};
use runtime::cpu::Kernel;

/// A kernel for each of `programs`, and where each came from: the cache, or the compiler. What the cache has to say about a bad entry
/// goes to standard error.
///
/// # Errors
/// Those of the compiler and of the loader.
pub fn compile(programs: &[Program], target: &codegen::Target, cache: &Cache) -> Result<Vec<(Kernel, Source)>, String> {
    let mut out = vec![];
    for p in programs {
        let build = || codegen::compile(p, target).map(|c| c.artifact).map_err(|e| e.to_string());
        let (artifact, source) = cache.get_or_build(&key(p, &format!("{target:?} {}", codegen::BUILD)), build)?;
        if let Source::Rebuilt(why) = &source {
            eprintln!("note: {why}");
        }
        out.push((Kernel::load(&artifact).map_err(|e| e.to_string())?, source));
    }
    Ok(out)
}
