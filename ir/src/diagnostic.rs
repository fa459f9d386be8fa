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
