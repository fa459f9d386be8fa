//! Tokens to expressions and functions. Never panics; reports every statement's error, each with its place. A statement that
//! failed leaves its name behind as unknown, and uses of it are silent, so that one mistake is one message.

use super::lexer::{Token, lex};
use super::scope::Scope;
use crate::diagnostic::{Error, Span};
use crate::graph::{Function, Module};
use crate::prim::Callee;
use crate::types::{Axis, DType, Type};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Parses a module.
///
/// # Errors
/// All errors, in order of place.
pub fn parse(src: &str) -> std::result::Result<Module, Vec<Error>> {
    let (tokens, mut errors) = lex(src);
    let functions = tokens.windows(2).filter_map(|w| match (&w[0].0, &w[1].0) {
        (Token::Name(f), Token::Name(n)) if f == "fn" => Some(n.clone()),
        _ => None,
    });
    let functions: Functions = Rc::new(RefCell::new(functions.map(|n| (n, Status::Waiting)).collect()));
    let mut p = Parser { src, tokens, at: 0, depth: 0, functions: functions.clone() };
    // By place in the text. Functions that call ones further down are parsed again when those are known.
    let mut parsed: BTreeMap<usize, Function> = BTreeMap::new();
    let mut waiting: Vec<(usize, Vec<Error>)> = vec![];
    let mut names = BTreeSet::new();
    while *p.peek() != Token::End {
        let (start, place) = (p.at, p.tokens.get(p.at + 1).map_or(p.span(), |t| t.1));
        let mut found = vec![];
        match p.function(&mut found) {
            Ok(f) if !names.insert(f.name.clone()) => found.push(Error::new(format!("function `{}` is defined twice", f.name)).at(place)),
            Ok(f) if found.iter().any(|e| e.message == LATER) => {
                names.insert(f.name);
                waiting.push((start, std::mem::take(&mut found)));
            }
            Ok(f) => {
                let status = if found.is_empty() { Status::Parsed(Callee(f.clone().into())) } else { Status::Failed };
                functions.borrow_mut().insert(f.name.to_string(), status);
                parsed.insert(start, f);
            }
            Err(e) => {
                found.push(e);
                if let Some((Token::Name(n), _)) = p.tokens.get(start + 1) {
                    functions.borrow_mut().insert(n.clone(), Status::Failed);
                }
                while *p.peek() != Token::End && !p.begins_function() {
                    p.at += 1;
                }
            }
        }
        errors.append(&mut found);
    }
    while !waiting.is_empty() {
        let before = waiting.len();
        for (start, _) in std::mem::take(&mut waiting) {
            (p.at, p.depth) = (start, 0);
            let mut found = vec![];
            match p.function(&mut found) {
                Ok(_) if found.iter().any(|e| e.message == LATER) => waiting.push((start, found)),
                Ok(f) => {
                    let status = if found.is_empty() { Status::Parsed(Callee(f.clone().into())) } else { Status::Failed };
                    functions.borrow_mut().insert(f.name.to_string(), status);
                    parsed.insert(start, f);
                    errors.append(&mut found);
                }
                Err(e) => errors.push(e),
            }
        }
        if waiting.len() == before {
            let circle = |e: Error| if e.message == LATER { Error { message: "this call goes in a circle, or to a function that is broken".into(), hint: Some("functions cannot call themselves".into()), ..e } } else { e };
            errors.extend(waiting.drain(..).flat_map(|w| w.1).map(circle));
        }
    }
    if errors.is_empty() {
        return Ok(Module { functions: parsed.into_values().collect() });
    }
    errors.retain(|e| e.message != SILENT);
    errors.sort_by_key(|e| e.span.map(|s| s.start));
    Err(errors)
}

/// Calls and brackets nested deeper than this are refused, and expressions with a longer path from the whole to a part,
/// so that no input exhausts the stack.
const NESTING: usize = 100;
const DEPTH: usize = 250;
/// The message of an error that another error already explains.
pub(super) const SILENT: &str = "\u{0}";
/// The message of a call of a function that is not parsed yet.
pub(super) const LATER: &str = "\u{1}";

/// What is known of a function of the module.
pub(super) enum Status {
    /// Not parsed yet.
    Waiting,
    /// Its body has errors of its own.
    Failed,
    Parsed(Callee),
}
/// The module's functions.
pub(super) type Functions = Rc<RefCell<BTreeMap<String, Status>>>;

/// Names that mean something else.
pub(super) const RESERVED: [&str; 3] = ["fn", "inf", "nan"];

/// An expression as written.
#[derive(Clone, Debug)]
pub(super) struct Expr {
    pub span: Span,
    pub kind: Kind,
    depth: usize,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Number(f64),
    Text(String),
    Name(String),
    Call(String, Vec<Expr>),
    Infix(&'static str, Box<Expr>, Box<Expr>),
    Prefix(&'static str, Box<Expr>),
    List(Vec<Expr>),
    Arrow(Box<Expr>, Box<Expr>),
    Decl(String, Box<Expr>),
}

impl Expr {
    fn new(span: Span, kind: Kind) -> Result<Expr> {
        let below = match &kind {
            Kind::Number(_) | Kind::Text(_) | Kind::Name(_) => 0,
            Kind::Call(_, list) | Kind::List(list) => list.iter().map(|e| e.depth).max().unwrap_or(0),
            Kind::Infix(_, a, b) | Kind::Arrow(a, b) => a.depth.max(b.depth),
            Kind::Prefix(_, x) | Kind::Decl(_, x) => x.depth,
        };
        if below >= DEPTH {
            return Err(Error::new(format!("expression is more than {DEPTH} operators deep")).hint("give a part of it a name").at(span));
        }
        Ok(Expr { span, kind, depth: below + 1 })
    }
}

type Result<T> = std::result::Result<T, Error>;

/// A parameter or result as declared; without a type where that failed.
type Declared = (String, Span, Option<Type>);

struct Parser<'a> {
    src: &'a str,
    tokens: Vec<(Token, Span)>,
    at: usize,
    depth: usize,
    functions: Functions,
}

impl Parser<'_> {
    fn token(&self, i: usize) -> &(Token, Span) {
        &self.tokens[i.min(self.tokens.len() - 1)]
    }
    fn peek(&self) -> &Token {
        &self.token(self.at).0
    }
    fn span(&self) -> Span {
        self.token(self.at).1
    }
    fn is(&self, sign: &str) -> bool {
        matches!(self.peek(), Token::Sign(s) if *s == sign)
    }
    fn eat(&mut self, sign: &str) -> bool {
        let yes = self.is(sign);
        self.at += usize::from(yes);
        yes
    }
    /// `expected WHAT, found the next token`; silent if the lexer has refused that token.
    fn expected(&self, what: &str) -> Error {
        let message = match self.peek() {
            Token::Bad => SILENT.into(),
            t => format!("expected {what}, found {}", t.describe()),
        };
        Error::new(message).at(self.span())
    }
    fn expect(&mut self, sign: &str) -> Result<()> {
        if self.eat(sign) { Ok(()) } else { Err(self.expected(&format!("`{sign}`"))) }
    }
    fn name(&mut self, what: &str) -> Result<String> {
        let Token::Name(n) = self.peek() else { return Err(self.expected(what)) };
        let n = n.clone();
        self.at += 1;
        Ok(n)
    }
    /// A name that something gets.
    fn new_name(&mut self, what: &str) -> Result<String> {
        let span = self.span();
        let n = self.name(what)?;
        if RESERVED.contains(&n.as_str()) {
            return Err(Error::new(format!("`{n}` is a word of the language and cannot be {what}")).at(span));
        }
        Ok(n)
    }
    /// `fn NAME (`.
    fn begins_function(&self) -> bool {
        matches!(self.peek(), Token::Name(n) if n == "fn")
            && matches!(self.token(self.at + 1).0, Token::Name(_))
            && matches!(self.token(self.at + 2).0, Token::Sign("("))
    }
    /// `NAME =`.
    fn begins_statement(&self) -> bool {
        matches!(self.peek(), Token::Name(_)) && matches!(self.token(self.at + 1).0, Token::Sign("="))
    }
    /// Whether the next token is the first of its line.
    fn begins_line(&self) -> bool {
        self.at == 0 || self.src.get(self.token(self.at - 1).1.end..self.span().start).is_some_and(|s| s.contains('\n'))
    }
    /// How many brackets the next token opens, less those that it closes.
    fn opens(&self) -> i32 {
        i32::from(self.is("(") || self.is("[")) - i32::from(self.is(")") || self.is("]"))
    }

    fn function(&mut self, errors: &mut Vec<Error>) -> Result<Function> {
        let from = self.at;
        if !matches!(self.peek(), Token::Name(n) if n == "fn") {
            return Err(self.expected("`fn`"));
        }
        self.at += 1;
        let place = self.span();
        let name = self.new_name("a function's name")?;
        let mut scope = Scope::new(&name, self.functions.clone());
        let params = self.ports(&mut scope, "parameter", errors)?;
        if let Some(t) = params.iter().find_map(|(.., t)| t.as_ref().filter(|t| t.dtype.is_float())) {
            scope.float = t.dtype;
        }
        for (n, span, ty) in params {
            if scope.values.contains_key(&n) {
                errors.push(Error::new(format!("parameter `{n}` is named twice")).at(span));
                continue;
            }
            let v = ty.map(|ty| scope.b.param(n.as_str(), ty));
            scope.values.insert(n, v);
        }
        self.expect("->")?;
        let results = self.ports(&mut scope, "result", errors)?;
        self.expect("{")?;
        scope.later = self.definitions_ahead();
        while !self.eat("}") {
            if *self.peek() == Token::End || self.begins_function() {
                // A text without an end, for one, hides the bracket: then that is the mistake.
                if !self.tokens[from..self.at].iter().any(|t| t.0 == Token::Bad) {
                    errors.push(Error::new(format!("function `{name}` has no closing `}}`")).at(place));
                }
                break;
            }
            let before = self.at;
            if let Err(e) = self.statement(&mut scope) {
                if e.span.is_none_or(|s| s.start < self.src.len()) {
                    errors.push(e);
                }
                self.at = self.at.max(before + 1);
                let stopped = self.at;
                self.at = before;
                let mut open = 0;
                while *self.peek() != Token::End {
                    let next = self.begins_function() || self.is("}") || (self.begins_statement() && (open <= 0 || self.begins_line()));
                    if self.at >= stopped && next {
                        break;
                    }
                    open += self.opens();
                    self.at += 1;
                }
            }
        }
        let mut seen = BTreeSet::new();
        for (n, span, ty) in results {
            if !seen.insert(n.clone()) {
                errors.push(Error::new(format!("result `{n}` is named twice")).at(span));
            } else if let Some(Err(e)) = ty.map(|ty| scope.result(&n, &ty)) {
                errors.push(e.at(span));
            }
        }
        Ok(scope.b.finish())
    }
    /// Names that statements of this function define.
    fn definitions_ahead(&mut self) -> BTreeSet<String> {
        let (start, mut open, mut names) = (self.at, 0, BTreeSet::new());
        while !self.is("}") && *self.peek() != Token::End {
            if let (Token::Name(n), true) = (self.peek(), self.begins_statement() && (open <= 0 || self.begins_line())) {
                names.insert(n.clone());
            }
            open += self.opens();
            self.at += 1;
        }
        self.at = start;
        names
    }

    /// `(name: type, …)`. A port that failed is reported, and there without a type.
    fn ports(&mut self, scope: &mut Scope, what: &str, errors: &mut Vec<Error>) -> Result<Vec<Declared>> {
        self.expect("(")?;
        let mut ports = vec![];
        while !self.eat(")") {
            let (span, before) = (self.span(), self.at);
            let name = self.new_name(&format!("a {what}'s name"));
            let ty = name.as_ref().map_err(Clone::clone).and_then(|n| self.port_type(scope, what, n));
            let failed = ty.is_err();
            if let Ok(n) = name {
                ports.push((n, span, ty.as_ref().ok().cloned()));
            }
            if let Err(e) = ty {
                errors.push(e);
                // On to the next port.
                let stopped = self.at;
                self.at = before;
                let mut open = 0;
                while !matches!(self.peek(), Token::End | Token::Sign("->" | "{" | "}")) {
                    if self.at >= stopped && open <= 0 && (self.is(",") || self.is(")")) {
                        break;
                    }
                    open += self.opens();
                    self.at += 1;
                }
            }
            if !self.eat(",") && !self.is(")") {
                return Err(if failed { Error::new(SILENT) } else { self.expected("`,` or `)`") });
            }
        }
        Ok(ports)
    }
    fn port_type(&mut self, scope: &mut Scope, what: &str, n: &str) -> Result<Type> {
        if !self.eat(":") {
            return Err(self.expected("`:`").hint(format!("every {what} has a type: `{n}: f32[N,D]`")));
        }
        let at = self.span();
        let d = self.name("an element type")?;
        let dtype = DType::parse(&d)
            .ok_or_else(|| Error::new(format!("no element type `{d}`")).hint("they are f64, f32, bf16, f16, i32 and bool").at(at))?;
        let mut axes: Vec<Axis> = vec![];
        if self.eat("[") {
            for e in self.arguments("]")? {
                let a = scope.declare(&e)?;
                if axes.iter().any(|x| x.name == a.name) {
                    let fresh = ["M", "N", "E", "K"].into_iter().find(|f| **f != *a.name).unwrap_or("M");
                    return Err(Error::new(format!("{what} `{n}`: axis `{}` stands twice in one type", a.name))
                        .hint(format!("axes of one value need different names: write `{dtype}[{a}, {fresh}={}]`", a.size))
                        .at(e.span));
                }
                axes.push(a);
            }
        }
        Ok(Type::new(dtype, axes))
    }

    fn statement(&mut self, scope: &mut Scope) -> Result<()> {
        let span = self.span();
        if !matches!(self.peek(), Token::Name(_)) {
            return Err(self.expected("`name = expression`"));
        }
        let n = self.new_name("a value's name")?;
        if !self.eat("=") {
            return Err(self.expected("`=`").hint("a statement is `name = expression`"));
        }
        let value = self.expression().and_then(|e| scope.define(&n, span, &e));
        self.eat(";");
        if value.is_err() {
            scope.values.entry(n).or_insert(None);
        }
        value
    }

    fn expression(&mut self) -> Result<Expr> {
        self.binary(0)
    }
    fn binary(&mut self, level: usize) -> Result<Expr> {
        const LEVELS: [&[&str]; 5] = [&["|"], &["&"], &["<", "<=", ">", ">=", "==", "!="], &["+", "-"], &["*", "/"]];
        let Some(signs) = LEVELS.get(level) else { return self.prefix() };
        let mut left = self.binary(level + 1)?;
        while let Token::Sign(s) = *self.peek() {
            if !signs.contains(&s) {
                break;
            }
            self.at += 1;
            let right = self.binary(level + 1)?;
            let span = Span { start: left.span.start, end: right.span.end };
            left = Expr::new(span, Kind::Infix(s, Box::new(left), Box::new(right)))?;
        }
        Ok(left)
    }
    fn prefix(&mut self) -> Result<Expr> {
        let start = self.span().start;
        for s in ["-", "!"] {
            if self.eat(s) {
                let x = self.nested(Self::prefix)?;
                let span = Span { start, end: x.span.end };
                return match (x.kind, s) {
                    (Kind::Number(n), "-") => Expr::new(span, Kind::Number(-n)),
                    (kind, s) => Expr::new(span, Kind::Prefix(s, Box::new(Expr { kind, ..x }))),
                };
            }
        }
        self.nested(Self::primary)
    }
    fn nested<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= NESTING {
            return Err(Error::new(format!("expression is nested more than {NESTING} deep")).hint("give a part of it a name").at(self.span()));
        }
        self.depth += 1;
        let r = f(self);
        self.depth -= 1;
        r
    }
    fn primary(&mut self) -> Result<Expr> {
        let span = self.span();
        let token = self.peek().clone();
        self.at += 1;
        let kind = match token {
            Token::Number(n) => Kind::Number(n),
            Token::Text(t) => Kind::Text(t),
            Token::Name(n) if n == "inf" => Kind::Number(f64::INFINITY),
            Token::Name(n) if n == "nan" => Kind::Number(f64::NAN),
            Token::Name(n) => {
                if self.eat("(") {
                    Kind::Call(n, self.arguments(")")?)
                } else {
                    Kind::Name(n)
                }
            }
            Token::Sign("(") => {
                let e = self.expression()?;
                self.expect(")")?;
                return Ok(Expr { span: Span { start: span.start, end: self.token(self.at - 1).1.end }, ..e });
            }
            Token::Sign("[") => Kind::List(self.arguments("]")?),
            _ => {
                self.at -= 1;
                return Err(self.expected("an expression"));
            }
        };
        Expr::new(Span { start: span.start, end: self.token(self.at - 1).1.end }, kind)
    }
    fn arguments(&mut self, close: &str) -> Result<Vec<Expr>> {
        let mut args = vec![];
        while !self.eat(close) {
            args.push(self.argument()?);
            if !self.eat(",") && !self.is(close) {
                return Err(self.expected(&format!("`,` or `{close}`")));
            }
        }
        Ok(args)
    }
    /// `expr`, `name = expr`, or `expr -> expr`.
    fn argument(&mut self) -> Result<Expr> {
        let left = self.declaration()?;
        if !self.eat("->") {
            return Ok(left);
        }
        let right = self.declaration()?;
        let span = Span { start: left.span.start, end: right.span.end };
        Expr::new(span, Kind::Arrow(Box::new(left), Box::new(right)))
    }
    fn declaration(&mut self) -> Result<Expr> {
        let e = self.expression()?;
        match e.kind {
            Kind::Name(n) if self.eat("=") => {
                let size = self.expression()?;
                Expr::new(Span { start: e.span.start, end: size.span.end }, Kind::Decl(n, Box::new(size)))
            }
            _ => Ok(e),
        }
    }
}
