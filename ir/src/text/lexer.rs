//! Bytes to tokens.

use crate::diagnostic::{Error, Span};

/// A token.
#[derive(Clone, PartialEq, Debug)]
pub enum Token {
    /// A name; dots are part of it: `q.t`.
    Name(String),
    /// A number.
    Number(f64),
    /// Text between double quotes.
    Text(String),
    /// An operator or bracket.
    Sign(&'static str),
    /// Bytes that start no token. Its error is reported already.
    Bad,
    /// The end.
    End,
}

impl Token {
    /// As an error message calls it.
    pub fn describe(&self) -> String {
        match self {
            Token::Name(n) => format!("`{n}`"),
            Token::Number(n) => format!("number {n}"),
            Token::Text(t) => format!("text {t:?}"),
            Token::Sign(s) => format!("`{s}`"),
            Token::Bad => "bytes that are no token".into(),
            Token::End => "the end of the file".into(),
        }
    }
}

/// Longest first, so that `<=` is not `<` and `=`.
const SIGNS: [&str; 24] =
    ["->", "<=", ">=", "==", "!=", "(", ")", "[", "]", "{", "}", ",", ":", "=", "<", ">", "+", "-", "*", "/", "&", "|", "!", ";"];

/// Tokens with their places, `End` last. Bytes that start no token are errors, and [`Token::Bad`].
pub fn lex(src: &str) -> (Vec<(Token, Span)>, Vec<Error>) {
    let bytes = src.as_bytes();
    let (mut tokens, mut errors, mut at) = (vec![], vec![], 0);
    while at < bytes.len() {
        let start = at;
        let run = |from: usize, ok: fn(u8) -> bool| bytes[from..].iter().take_while(|b| ok(**b)).count();
        let c = bytes[at];
        if c.is_ascii_whitespace() {
            at += 1;
            continue;
        }
        if src[at..].starts_with("//") {
            at += run(at, |b| b != b'\n');
            continue;
        }
        let token = if c.is_ascii_alphabetic() || c == b'_' {
            at += run(at, |b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.' || b == b'\'');
            Token::Name(src[start..at].into())
        } else if c.is_ascii_digit() {
            at += run(at, |b| b.is_ascii_digit());
            if bytes.get(at) == Some(&b'.') {
                at += 1 + run(at + 1, |b| b.is_ascii_digit());
            }
            if matches!(bytes.get(at), Some(b'e' | b'E')) {
                let sign = usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
                let digits = run((at + 1 + sign).min(bytes.len()), |b| b.is_ascii_digit());
                if digits > 0 {
                    at += 1 + sign + digits;
                }
            }
            Token::Number(src[start..at].parse().unwrap_or(f64::NAN))
        } else if c == b'"' {
            let len = run(at + 1, |b| b != b'"' && b != b'\n');
            at += 1 + len;
            if bytes.get(at) == Some(&b'"') {
                at += 1;
                Token::Text(src[start + 1..at - 1].into())
            } else {
                errors.push(Error::new("text has no closing `\"`").at(Span { start, end: at }));
                Token::Bad
            }
        } else if let Some(s) = SIGNS.iter().find(|s| src.is_char_boundary(at) && src[at..].starts_with(**s)) {
            at += s.len();
            Token::Sign(s)
        } else {
            let c = src[at..].chars().next().unwrap_or(' ');
            at += c.len_utf8();
            let e = Error::new(format!("character {c:?} is not part of the language")).at(Span { start, end: at });
            errors.push(match c {
                '^' => e.hint("powers are calls: `pow(x, y)`"),
                '#' => e.hint("comments begin with `//`"),
                _ => e,
            });
            Token::Bad
        };
        tokens.push((token, Span { start, end: at }));
    }
    tokens.push((Token::End, Span { start: src.len(), end: src.len() }));
    (tokens, errors)
}
