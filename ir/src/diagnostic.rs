//! Errors for people: what is wrong, with the values and both sides; where; and what to try.

use std::fmt;

/// A range of bytes in the source text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

/// One error.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    /// A sentence without a capital or final period: the operation, the values, both sides.
    pub message: String,
    /// Where, if it comes from text.
    pub span: Option<Span>,
    /// What to try.
    pub hint: Option<String>,
}

impl Error {
    /// An error without a place or a hint.
    pub fn new(message: impl Into<String>) -> Error {
        Error { message: message.into(), span: None, hint: None }
    }
    /// At `span`, unless it has a place already.
    pub fn at(mut self, span: Span) -> Error {
        self.span = self.span.or(Some(span));
        self
    }
    /// With a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(h) => write!(f, " (hint: {h})"),
            None => Ok(()),
        }
    }
}
impl std::error::Error for Error {}

/// Errors as people read them: message, place with the source line, hint.
pub fn render(errors: &[Error], file: &str, source: &str) -> String {
    let mut out = String::new();
    for e in errors {
        out += &format!("error: {}\n", e.message);
        if let Some(span) = e.span {
            let start = (0..=span.start.min(source.len())).rev().find(|i| source.is_char_boundary(*i)).unwrap_or(0);
            let line_start = source[..start].rfind('\n').map_or(0, |i| i + 1);
            let line = source[line_start..].lines().next().unwrap_or("");
            let (row, column) = (source[..start].matches('\n').count() + 1, source[line_start..start].chars().count());
            let width = span.end.saturating_sub(span.start).clamp(1, line.len().saturating_sub(column).max(1));
            out += &format!("  --> {file}:{row}:{}\n   | {line}\n   | {}{}\n", column + 1, " ".repeat(column), "^".repeat(width));
        }
        if let Some(h) = &e.hint {
            out += &format!("  hint: {h}\n");
        }
    }
    out
}
