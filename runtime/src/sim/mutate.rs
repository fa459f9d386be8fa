//! Random edits of PTX text.
