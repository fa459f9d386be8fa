//! Tokens of PTX text, and its numbers.

use super::{Operand, Result, refuse};

/// A token.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token<'a> {
    Word(&'a str),
    Text,
    Punct(char),
}

/// Tokens with their lines, and a place among them.
pub(super) struct Lexer<'a> {
    pub tokens: Vec<(Token<'a>, u32)>,
    pub at: usize,
    last: u32,
}

fn word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Result<Lexer<'a>> {
        let (b, mut i, mut line, mut tokens) = (text.as_bytes(), 0, 1u32, vec![]);
        while i < b.len() {
            let c = b[i];
            if c == b'\n' {
                line += 1;
                i += 1;
            } else if c.is_ascii_whitespace() || c == 0 {
                i += 1;
            } else if b[i..].starts_with(b"//") {
                while i < b.len() && b[i] != b'\n' {
                    i += 1;
                }
            } else if b[i..].starts_with(b"/*") {
                let start = line;
                while i < b.len() && !b[i..].starts_with(b"*/") {
                    line += (b[i] == b'\n') as u32;
                    i += 1;
                }
                if i == b.len() {
                    return refuse(start, "a comment without an end");
                }
                i += 2;
            } else if c == b'"' {
                let start = i;
                i += 1;
                while i < b.len() && b[i] != b'"' {
                    i += 1;
                }
                if i >= b.len() || b[start..i].contains(&b'\n') {
                    return refuse(line, "a string without an end");
                }
                i += 1;
                tokens.push((Token::Text, line));
            } else if word(c) {
                let start = i;
                while i < b.len() && (word(b[i]) || b[i..].starts_with(b"::") || (b[i] == b':' && i > start && b[i - 1] == b':')) {
                    i += 1;
                }
                tokens.push((Token::Word(&text[start..i]), line));
            } else if c.is_ascii() {
                tokens.push((Token::Punct(c as char), line));
                i += 1;
            } else {
                return refuse(line, "a character that PTX does not have");
            }
        }
        Ok(Lexer { tokens, at: 0, last: line })
    }
    pub(super) fn line(&self) -> u32 {
        self.tokens.get(self.at).map_or(self.last, |t| t.1)
    }
    pub(super) fn peek(&self) -> Option<&Token<'a>> {
        self.tokens.get(self.at).map(|t| &t.0)
    }
    pub(super) fn next(&mut self) -> Option<Token<'a>> {
        self.at += 1;
        self.tokens.get(self.at - 1).map(|t| t.0.clone())
    }
    pub(super) fn eat(&mut self, c: char) -> bool {
        let yes = self.peek() == Some(&Token::Punct(c));
        self.at += yes as usize;
        yes
    }
    pub(super) fn eat_word(&mut self, w: &str) -> bool {
        let yes = self.peek() == Some(&Token::Word(w));
        self.at += yes as usize;
        yes
    }
    pub(super) fn expect(&mut self, c: char) -> Result<()> {
        let line = self.line();
        match self.next() {
            Some(Token::Punct(p)) if p == c => Ok(()),
            other => refuse(line, format!("expected `{c}`, found {}", show(other.as_ref()))),
        }
    }
    pub(super) fn word(&mut self, what: &str) -> Result<&'a str> {
        let line = self.line();
        match self.next() {
            Some(Token::Word(w)) => Ok(w),
            other => refuse(line, format!("expected {what}, found {}", show(other.as_ref()))),
        }
    }
    pub(super) fn number(&mut self) -> Result<i64> {
        let line = self.line();
        let negative = self.eat('-');
        let w = self.word("a number")?;
        match integer(w) {
            Some(n) => Ok(if negative { n.wrapping_neg() } else { n }),
            None => refuse(line, format!("expected a number, found `{w}`")),
        }
    }
    pub(super) fn skip_to(&mut self, c: char) {
        while let Some(t) = self.next() {
            if t == Token::Punct(c) {
                return;
            }
        }
    }
}

pub(super) fn show(t: Option<&Token>) -> String {
    match t {
        None => "the end of the text".into(),
        Some(Token::Word(w)) => format!("`{w}`"),
        Some(Token::Text) => "a string".into(),
        Some(Token::Punct(c)) => format!("`{c}`"),
    }
}

/// An integer: decimal, `0x`, `0b`, octal, with or without `U`.
pub(super) fn integer(w: &str) -> Option<i64> {
    let w = w.strip_suffix('U').unwrap_or(w);
    let parse = |d: &str, radix| u64::from_str_radix(d, radix).ok().map(|n| n as i64);
    if let Some(h) = w.strip_prefix("0x").or(w.strip_prefix("0X")) {
        parse(h, 16)
    } else if let Some(b) = w.strip_prefix("0b").or(w.strip_prefix("0B")) {
        parse(b, 2)
    } else if w.len() > 1 && w.starts_with('0') {
        parse(w, 8)
    } else {
        parse(w, 10)
    }
}

/// A number: an integer, `0f…`, `0d…`, or a decimal fraction.
pub(super) fn number(w: &str) -> Option<Operand> {
    if !w.as_bytes().first()?.is_ascii_digit() {
        return None;
    }
    if let Some(h) = w.strip_prefix("0f").or(w.strip_prefix("0F")) {
        return u32::from_str_radix(h, 16).ok().filter(|_| h.len() == 8).map(Operand::F32);
    }
    if let Some(h) = w.strip_prefix("0d").or(w.strip_prefix("0D")) {
        return u64::from_str_radix(h, 16).ok().filter(|_| h.len() == 16).map(Operand::F64);
    }
    if let Some(n) = integer(w) {
        return Some(Operand::Int(n));
    }
    w.parse::<f64>().ok().map(|x| Operand::F64(x.to_bits()))
}
