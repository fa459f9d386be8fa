//! The text form. A person writes nested expressions with infix operators and layer names; the printer writes one primitive
//! a line, under names that read back: `parse ∘ print = id`. The grammar is in `docs/ir.md`.

mod lexer;
mod parser;
mod printer;

pub use parser::parse;
pub use printer::{print, print_function};
