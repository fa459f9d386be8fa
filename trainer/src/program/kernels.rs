//! Block programs to loaded kernels for this CPU, through the cache.

use ir::tile::Program;
use rayon::prelude::*;
use runtime::cache::{Cache, Source, key};
use runtime::cpu::Kernel;

/// A kernel for each of `programs`, and where each came from: the cache, or the compiler, which runs on all cores. What the cache has to say
/// about a bad entry goes to standard error.
///
/// # Errors
/// Those of the compiler and of the loader, of the first program that has one.
pub fn compile(programs: &[Program], target: &codegen::Target, cache: &Cache) -> Result<Vec<(Kernel, Source)>, String> {
    compile_on(cores(), programs, target, cache)
}

/// The same on so many threads: what comes out does not depend on how many.
///
/// # Errors
/// Those of [`compile`].
pub fn compile_on(threads: usize, programs: &[Program], target: &codegen::Target, cache: &Cache) -> Result<Vec<(Kernel, Source)>, String> {
    let one = |p: &Program| {
        let build = || codegen::compile(p, target).map(|c| c.artifact).map_err(|e| e.to_string());
        let (artifact, source) = cache.get_or_build(&key(p, &format!("{target:?} {}", codegen::BUILD)), build)?;
        if let Source::Rebuilt(why) = &source {
            eprintln!("note: {why}");
        }
        Ok((Kernel::load(&artifact).map_err(|e| e.to_string())?, source))
    };
    each_on(threads, programs, one)
}

/// What `one` makes of each program, in their order, on so many threads.
///
/// # Errors
/// That of the first program that has one.
pub(super) fn each_on<T: Send>(threads: usize, programs: &[Program], one: impl Fn(&Program) -> Result<T, String> + Sync) -> Result<Vec<T>, String> {
    // LLVM has the stack that a main thread has.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.min(programs.len()).max(1)).stack_size(8 << 20).build().map_err(|e| e.to_string())?;
    // First all, then the first error: which one that is does not depend on the threads.
    pool.install(|| programs.par_iter().map(&one).collect::<Vec<_>>()).into_iter().collect()
}

/// Threads that the machine has.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
