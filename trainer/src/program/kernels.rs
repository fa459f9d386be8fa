//! Block programs to loaded kernels for this CPU, through the cache.

use ir::tile::Program;
use runtime::cache::{Cache, Source, key};
use runtime::cpu::Kernel;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A kernel for each of `programs`, and where each came from: the cache, or the compiler, which runs on all cores. What the cache has to say
/// about a bad entry goes to standard error.
///
/// # Errors
/// Those of the compiler and of the loader, of the first program that has one.
pub fn compile(programs: &[Program], target: &codegen::Target, cache: &Cache) -> Result<Vec<(Kernel, Source)>, String> {
    compile_on(std::thread::available_parallelism().map_or(1, usize::from), programs, target, cache)
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
    let done: Vec<Mutex<Option<Result<_, String>>>> = programs.iter().map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((p, out)) = Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| programs.get(i).zip(done.get(i))) {
            *out.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(one(p));
        }
    };
    std::thread::scope(|s| {
        (1..threads.min(programs.len())).for_each(|_| {
            s.spawn(work);
        });
        work();
    });
    done.into_iter().map(|m| m.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).unwrap_or_else(|| Err("a kernel was not compiled".into()))).collect()
}
