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

/// Errors as people read them: message, place with the source line, hint. The same bytes for the same errors: no colours.
pub fn render(errors: &[Error], file: &str, source: &str) -> String {
    let starts: Vec<usize> = std::iter::once(0).chain(source.match_indices('\n').map(|(i, _)| i + 1)).collect();
    let mut out = String::new();
    for e in errors {
        out += &format!("error: {}\n", visible(&e.message));
        if let Some(span) = e.span {
            let boundary = |i: usize| (0..=i.min(source.len())).rev().find(|i| source.is_char_boundary(*i)).unwrap_or(0);
            let (start, end) = (boundary(span.start), boundary(span.end));
            let row = starts.partition_point(|s| *s <= start);
            let line_start = starts[row - 1];
            let line = source[line_start..].lines().next().unwrap_or("");
            let line_end = (line_start + line.len()).max(start);
            let before = &source[line_start..start];
            let width = source[start..end.clamp(start, line_end)].chars().count().max(1);
            // Tabs stay tabs, so that the marks stand below what they mark.
            let pad: String = before.chars().map(|c| if c == '\t' { c } else { ' ' }).collect();
            out += &format!("  --> {file}:{row}:{}\n   | {}\n   | {pad}{}\n", before.chars().count() + 1, visible(line), "^".repeat(width));
        }
        if let Some(h) = &e.hint {
            out += &format!("  hint: {}\n", visible(h));
        }
    }
    out
}

/// Without characters that would move a terminal's cursor.
fn visible(s: &str) -> String {
    s.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_stand_below_what_they_mark() {
        let source = "first\n\té = exq(x) // end\nlast";
        let start = source.find("exq").expect("is there");
        let e = Error::new("no function `exq`").at(Span { start, end: start + 6 }).hint("did you mean `exp`?");
        let want = "error: no function `exq`\n  --> a.pf:2:6\n   | \té = exq(x) // end\n   | \t    ^^^^^^\n  hint: did you mean `exp`?\n";
        assert_eq!(render(&[e], "a.pf", source), want);
    }

    #[test]
    fn places_outside_of_the_source_are_no_panic() {
        for (start, end) in [(0, 0), (1, 0), (2, 3), (3, 2), (9, 99), (usize::MAX, usize::MAX), (0, usize::MAX)] {
            for source in ["", "\n", "é\u{1b}[2J\r\né"] {
                let text = render(&[Error::new("m").at(Span { start, end })], "f", source);
                assert!(text.starts_with("error: m\n  --> f:") && !text.contains('\u{1b}'), "{text:?}");
            }
        }
    }
}
