//! Programs to programs. Each pass is a pure function; no pass knows a layer.

pub mod ad;
pub mod fuse;
mod inline;
pub mod simplify;

pub use inline::inline;

use ir::graph::Function;

/// How a message starts that says that a pass has a bug.
pub const VERIFIER: &str = "the verifier refuses what";

/// The verifier after a pass; a failure names the pass and shows the program.
///
/// # Errors
/// What the verifier says.
pub fn verify(f: &Function, pass: &str) -> Result<(), String> {
    ir::verify::verify(f).map_err(|e| {
        let list = e.iter().map(|e| format!("  {e}\n")).collect::<String>();
        format!("{VERIFIER} {pass} made:\n{list}{}", ir::text::print_function(f))
    })
}
