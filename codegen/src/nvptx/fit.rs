//! The default schedule where an assembler is at hand. The model's registers are an estimate; the assembler's are not.

use super::{Compiled, Schedule, compile_at, compile_with, schedules, schedules_by_warpgroups};
use crate::assembler::{Assembled, Assembler};
use crate::target::GpuTarget;
use crate::Error;
use ir::dim::Bindings;
use ir::tile::Program;

/// A kernel, and its machine code where an assembler was there.
pub struct Fitted {
    /// Its code as text.
    pub kernel: Compiled,
    /// What the assembler made of it, or said.
    pub assembled: Option<Result<Assembled, String>>,
}

impl Fitted {
    /// Of a kernel, whether it fits or not.
    pub fn new(kernel: Compiled, target: &GpuTarget, assembler: Option<&Assembler>) -> Fitted {
        Fitted { assembled: assembler.map(|a| a.assemble(&kernel.ptx, &target.name)), kernel }
    }
}

/// Schedules that are tried behind the default.
const MOST: usize = 5;

/// The kernel by the default schedule at sizes `dims`, or by the next that [`fitting`] finds; with LLVM IR if `texts`.
///
/// # Errors
/// Those of [`compile_at`].
pub fn compile_fitting(p: &Program, target: &GpuTarget, dims: &Bindings, assembler: Option<&Assembler>, texts: bool) -> Result<Fitted, Error> {
    fitting(p, target, dims, assembler, texts, compile_at(p, target, dims, texts)?)
}

/// `kernel`, which is `p` by its default schedule at sizes `dims`. Where `assembler` finds that a thread has too few registers, or that products wait for each other, `p` by the
/// model's next schedule of another tile that has neither, if one of the next five has; with LLVM IR if `texts`.
///
/// # Errors
/// Those of [`compile_with`].
pub fn fitting(p: &Program, target: &GpuTarget, dims: &Bindings, assembler: Option<&Assembler>, texts: bool, kernel: Compiled) -> Result<Fitted, Error> {
    let first = Fitted::new(kernel, target, assembler);
    let (Some(default), Some(Ok(made))) = (&first.kernel.schedule, &first.assembled) else { return Ok(first) };
    if made.fits() {
        return Ok(first);
    }
    let others = if default.warpgroups { schedules_by_warpgroups(p, target, dims)? } else { schedules(p, target)? };
    // More stages need no fewer registers.
    let tile = |s: &Schedule| Schedule { stages: 0, ..s.clone() };
    let mut tried = vec![tile(default)];
    for (s, _) in others {
        if tried.contains(&tile(&s)) {
            continue;
        }
        if tried.len() > MOST {
            break;
        }
        tried.push(tile(&s));
        let next = Fitted::new(compile_with(p, target, &s, texts)?, target, assembler);
        if matches!(&next.assembled, Some(Ok(made)) if made.fits()) {
            return Ok(next);
        }
    }
    Ok(first)
}
