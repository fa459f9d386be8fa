//! The text form. A person writes nested expressions with infix operators and layer names; the printer writes one primitive
//! a line, under names that read back: `parse ∘ print = id`. The grammar is in `docs/ir.md`.

mod lexer;
mod parser;
mod printer;
mod scope;

pub use parser::parse;
pub use printer::{Options, is_word, print, print_function, print_with};
