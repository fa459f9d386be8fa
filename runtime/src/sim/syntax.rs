//! PTX text to a syntax tree: directives, declarations, statements with operands. Names of registers and labels are resolved here, by scope; what an
//! instruction means is decided in `decode`.

use std::collections::HashMap;

/// A refusal: the line (from 1) and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub line: u32,
    pub message: String,
}

pub(super) type Result<T> = std::result::Result<T, Refused>;

pub(super) fn refuse<T>(line: u32, message: impl Into<String>) -> Result<T> {
    Err(Refused { line, message: message.into() })
}

/// Types of registers, variables and instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(super) enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
}

impl Type {
    pub(super) fn parse(s: &str) -> Option<Type> {
        use Type::*;
        Some(match s {
            "pred" => Pred,
            "b8" => B8,
            "b16" => B16,
            "b32" => B32,
            "b64" => B64,
            "b128" => B128,
            "u8" => U8,
            "u16" => U16,
            "u32" => U32,
            "u64" => U64,
            "s8" => S8,
            "s16" => S16,
            "s32" => S32,
            "s64" => S64,
            "f16" => F16,
            "f16x2" => F16x2,
            "bf16" => Bf16,
            "bf16x2" => Bf16x2,
            "tf32" => Tf32,
            "f32" => F32,
            "f64" => F64,
            _ => return None,
        })
    }
    /// Bytes; a predicate has none.
    pub(super) fn bytes(self) -> u32 {
        use Type::*;
        match self {
            Pred => 0,
            B8 | U8 | S8 => 1,
            B16 | U16 | S16 | F16 | Bf16 => 2,
            B32 | U32 | S32 | F32 | F16x2 | Bf16x2 | Tf32 => 4,
            B64 | U64 | S64 | F64 => 8,
            B128 => 16,
        }
    }
    pub(super) fn signed(self) -> bool {
        matches!(self, Type::S8 | Type::S16 | Type::S32 | Type::S64)
    }
    pub(super) fn float(self) -> bool {
        use Type::*;
        matches!(self, F16 | F16x2 | Bf16 | Bf16x2 | F32 | F64 | Tf32)
    }
}

/// State spaces that can be declared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Space {
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// What a variable starts with.
#[derive(Clone, Debug)]
pub(super) enum Init {
    Bytes(Vec<u8>),
    /// The address of a variable, plus an offset.
    Address(String, i64),
}

/// A declared variable.
#[derive(Clone, Debug)]
pub(super) struct Variable {
    pub name: String,
    pub space: Space,
    pub align: u32,
    pub bytes: u64,
    pub init: Vec<Init>,
    /// `.extern`: dynamic shared memory if it has no size.
    pub external: bool,
}

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operand {
    /// A register of the function, by index.
    Reg(u32),
    /// A predicate, negated.
    Not(Box<Operand>),
    /// A special register, a variable, a function.
    Name(String),
    Label(u32),
    Int(i64),
    /// `0f…`
    F32(u32),
    /// `0d…`, or a decimal fraction
    F64(u64),
    List(Vec<Operand>),
    /// `[base + offset]`
    Address(Box<Operand>, i64),
    /// `[base, {coordinates}]`
    Tensor(Box<Operand>, Vec<Operand>),
    /// `a|b`
    Pair(Box<Operand>, Box<Operand>),
    /// `name + offset`
    Offset(String, i64),
    /// `(a, b)`
    Group(Vec<Operand>),
    /// `_`
    Sink,
}

/// An instruction as written.
#[derive(Clone, Debug)]
pub(super) struct Statement {
    pub line: u32,
    /// The guard: register and whether it is negated.
    pub guard: Option<(u32, bool)>,
    pub opcode: String,
    pub operands: Vec<Operand>,
}

#[derive(Clone, Debug)]
pub(super) enum Item {
    Label(u32),
    Statement(Statement),
    /// `label: .branchtargets a, b, …;`
    Targets(u32, Vec<u32>),
}

/// A register of a function.
#[derive(Clone, Debug)]
pub(super) struct Register {
    pub ty: Type,
    pub name: String,
}

/// A parameter.
#[derive(Clone, Debug)]
pub(super) struct Parameter {
    pub name: String,
    pub bytes: u32,
    pub align: u32,
    pub pointer: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Function {
    pub name: String,
    pub line: u32,
    pub entry: bool,
    pub defined: bool,
    pub params: Vec<Parameter>,
    pub returns: Vec<Parameter>,
    pub registers: Vec<Register>,
    pub labels: Vec<String>,
    pub variables: Vec<Variable>,
    pub items: Vec<Item>,
    /// `.reqntid`
    pub required: Option<[u32; 3]>,
    /// `.maxntid`
    pub limit: Option<[u32; 3]>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    pub version: String,
    pub target: String,
    pub variables: Vec<Variable>,
    pub functions: Vec<Function>,
}

#[derive(Clone, Debug, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    Text,
    Punct(char),
}

struct Lexer<'a> {
    tokens: Vec<(Token<'a>, u32)>,
    at: usize,
    last: u32,
}

fn word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

impl<'a> Lexer<'a> {
    fn new(text: &'a str) -> Result<Lexer<'a>> {
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
    fn line(&self) -> u32 {
        self.tokens.get(self.at).map_or(self.last, |t| t.1)
    }
    fn peek(&self) -> Option<&Token<'a>> {
        self.tokens.get(self.at).map(|t| &t.0)
    }
    fn next(&mut self) -> Option<Token<'a>> {
        self.at += 1;
        self.tokens.get(self.at - 1).map(|t| t.0.clone())
    }
    fn eat(&mut self, c: char) -> bool {
        let yes = self.peek() == Some(&Token::Punct(c));
        self.at += yes as usize;
        yes
    }
    fn eat_word(&mut self, w: &str) -> bool {
        let yes = self.peek() == Some(&Token::Word(w));
        self.at += yes as usize;
        yes
    }
    fn expect(&mut self, c: char) -> Result<()> {
        let line = self.line();
        match self.next() {
            Some(Token::Punct(p)) if p == c => Ok(()),
            other => refuse(line, format!("expected `{c}`, found {}", show(other.as_ref()))),
        }
    }
    fn word(&mut self, what: &str) -> Result<&'a str> {
        let line = self.line();
        match self.next() {
            Some(Token::Word(w)) => Ok(w),
            other => refuse(line, format!("expected {what}, found {}", show(other.as_ref()))),
        }
    }
    fn number(&mut self) -> Result<i64> {
        let line = self.line();
        let negative = self.eat('-');
        let w = self.word("a number")?;
        match integer(w) {
            Some(n) => Ok(if negative { n.wrapping_neg() } else { n }),
            None => refuse(line, format!("expected a number, found `{w}`")),
        }
    }
    fn skip_to(&mut self, c: char) {
        while let Some(t) = self.next() {
            if t == Token::Punct(c) {
                return;
            }
        }
    }
}

fn show(t: Option<&Token>) -> String {
    match t {
        None => "the end of the text".into(),
        Some(Token::Word(w)) => format!("`{w}`"),
        Some(Token::Text) => "a string".into(),
        Some(Token::Punct(c)) => format!("`{c}`"),
    }
}

/// An integer: decimal, `0x`, `0b`, octal, with or without `U`.
fn integer(w: &str) -> Option<i64> {
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

/// Names in nested scopes of a function.
#[derive(Default)]
struct Scope {
    registers: Vec<HashMap<String, u32>>,
    labels: Vec<HashMap<String, u32>>,
    /// Variables of inner blocks, under the names that they have in [`Function::variables`].
    variables: Vec<HashMap<String, String>>,
}

struct Parser<'a> {
    lex: Lexer<'a>,
    tree: Tree,
}

/// Parses a module.
pub(super) fn parse(text: &str) -> Result<Tree> {
    let mut p = Parser { lex: Lexer::new(text)?, tree: Tree::default() };
    p.module()?;
    Ok(p.tree)
}

impl Parser<'_> {
    fn module(&mut self) -> Result<()> {
        while self.lex.peek().is_some() {
            let line = self.lex.line();
            let mut external = false;
            let mut w = self.lex.word("a directive")?;
            while matches!(w, ".visible" | ".extern" | ".weak" | ".common") {
                external |= w == ".extern";
                w = self.lex.word("a declaration")?;
            }
            match w {
                ".version" => self.tree.version = self.lex.word("a version")?.to_string(),
                ".target" => {
                    self.tree.target = self.lex.word("a target")?.to_string();
                    while self.lex.eat(',') {
                        self.lex.word("a target")?;
                    }
                }
                ".address_size" => {
                    let n = self.lex.number()?;
                    if n != 64 {
                        return refuse(line, format!("addresses of {n} bits; this machine has 64"));
                    }
                }
                ".file" => {
                    while self.lex.line() == line && self.lex.peek().is_some() {
                        self.lex.next();
                    }
                }
                ".section" => {
                    self.lex.skip_to('}');
                }
                ".entry" | ".func" => self.function(w == ".entry", line)?,
                ".global" | ".const" | ".shared" => {
                    let space = match w {
                        ".global" => Space::Global,
                        ".const" => Space::Const,
                        _ => Space::Shared,
                    };
                    let vs = self.variables(space, external)?;
                    self.tree.variables.extend(vs);
                }
                ";" => {}
                _ => return refuse(line, format!("the directive `{w}` is not known here")),
            }
            self.lex.eat(';');
        }
        Ok(())
    }

    /// `[.align n] [.vN] .type name[n][m] [= init], …`, up to the semicolon.
    fn variables(&mut self, space: Space, external: bool) -> Result<Vec<Variable>> {
        let (mut align, mut vector, mut element) = (None, 1u64, None);
        while element.is_none() {
            let line = self.lex.line();
            let w = self.lex.word("a type")?;
            match w {
                ".align" => align = Some(self.lex.number()? as u32),
                ".v2" => vector = 2,
                ".v4" => vector = 4,
                ".attribute" => self.lex.skip_to(')'),
                _ => match w.strip_prefix('.').and_then(Type::parse) {
                    Some(t) => element = Some(t),
                    None => return refuse(line, format!("`{w}` is no type")),
                },
            }
        }
        let element = element.unwrap_or(Type::B8);
        let mut out = vec![];
        loop {
            let line = self.lex.line();
            let name = self.lex.word("a name")?.to_string();
            let (mut count, mut open) = (vector, false);
            while self.lex.eat('[') {
                if self.lex.eat(']') {
                    open = true;
                } else {
                    let n = self.lex.number()?;
                    self.lex.expect(']')?;
                    count = match count.checked_mul(n.max(0) as u64) {
                        Some(c) if c < 1 << 40 => c,
                        _ => return refuse(line, format!("`{name}` is too large")),
                    };
                }
            }
            let mut init = vec![];
            if self.lex.eat('=') {
                self.initializer(element, &mut init)?;
            }
            let bytes = if open { init.iter().map(|i| if let Init::Bytes(b) = i { b.len() as u64 } else { 8 }).sum() } else { count * element.bytes() as u64 };
            out.push(Variable { name, space, align: align.unwrap_or(element.bytes() * vector as u32).max(1), bytes, init, external });
            if !self.lex.eat(',') {
                break;
            }
        }
        Ok(out)
    }

    fn initializer(&mut self, element: Type, out: &mut Vec<Init>) -> Result<()> {
        if self.lex.eat('{') {
            while !self.lex.eat('}') {
                self.initializer(element, out)?;
                self.lex.eat(',');
            }
            return Ok(());
        }
        let line = self.lex.line();
        let width = element.bytes() as usize;
        let negative = self.lex.eat('-');
        let w = self.lex.word("a value")?;
        let bits = match number(w) {
            Some(Operand::Int(n)) if element == Type::F32 => (n as f32).to_bits() as i64,
            Some(Operand::Int(n)) if element == Type::F64 => (n as f64).to_bits() as i64,
            Some(Operand::Int(n)) => if negative { n.wrapping_neg() } else { n },
            Some(Operand::F32(b)) => b as i64,
            Some(Operand::F64(b)) if element == Type::F32 => (f64::from_bits(b) as f32).to_bits() as i64,
            Some(Operand::F64(b)) => b as i64,
            _ => {
                let name = if w == "generic" {
                    self.lex.expect('(')?;
                    let n = self.lex.word("a variable")?;
                    self.lex.expect(')')?;
                    n
                } else {
                    w
                };
                if width != 8 {
                    return refuse(line, format!("an address needs 8 bytes, but the element has {width}"));
                }
                let offset = if self.lex.eat('+') { self.lex.number()? } else { 0 };
                out.push(Init::Address(name.to_string(), offset));
                return Ok(());
            }
        };
        out.push(Init::Bytes(bits.to_le_bytes()[..width.min(8)].to_vec()));
        Ok(())
    }

    fn parameters(&mut self) -> Result<Vec<Parameter>> {
        let mut out = vec![];
        self.lex.expect('(')?;
        while !self.lex.eat(')') {
            let line = self.lex.line();
            let (mut align, mut ty, mut pointer) = (None, None, false);
            let name = loop {
                let w = self.lex.word("a parameter")?;
                match w {
                    ".param" | ".reg" => {}
                    ".ptr" => pointer = true,
                    ".global" | ".const" | ".shared" | ".local" => {}
                    // Of a pointer, `.align` is that of what it points to.
                    ".align" => {
                        let n = self.lex.number()? as u32;
                        if !pointer {
                            align = Some(n);
                        }
                    }
                    _ if w.starts_with('.') => match Type::parse(&w[1..]) {
                        Some(t) => ty = Some(t),
                        None => return refuse(line, format!("`{w}` is no type of a parameter")),
                    },
                    _ => break w.to_string(),
                }
            };
            let Some(ty) = ty else { return refuse(line, format!("the parameter `{name}` has no type")) };
            let mut bytes = ty.bytes();
            if self.lex.eat('[') {
                if !self.lex.eat(']') {
                    bytes *= self.lex.number()?.clamp(0, 1 << 20) as u32;
                    self.lex.expect(']')?;
                }
            }
            out.push(Parameter { name, bytes, align: align.unwrap_or(ty.bytes()).max(1), pointer });
            self.lex.eat(',');
        }
        Ok(out)
    }

    fn function(&mut self, entry: bool, line: u32) -> Result<()> {
        let mut f = Function { entry, line, ..Function::default() };
        if self.lex.peek() == Some(&Token::Punct('(')) {
            f.returns = self.parameters()?;
        }
        f.name = self.lex.word("a function's name")?.to_string();
        if self.lex.peek() == Some(&Token::Punct('(')) {
            f.params = self.parameters()?;
        }
        while let Some(Token::Word(w)) = self.lex.peek().cloned() {
            let line = self.lex.line();
            self.lex.next();
            match w {
                ".reqntid" | ".maxntid" | ".reqnctapercluster" => {
                    let mut n = [1u32; 3];
                    for (i, n) in n.iter_mut().enumerate() {
                        if i == 0 || self.lex.eat(',') {
                            *n = self.lex.number()?.clamp(0, 1 << 20) as u32;
                        }
                    }
                    match w {
                        ".reqntid" => f.required = Some(n),
                        ".maxntid" => f.limit = Some(n),
                        _ if n.iter().product::<u32>() > 1 => return refuse(line, format!("`{w}` {n:?}: this machine has no clusters of more than one block")),
                        _ => {}
                    }
                }
                ".minnctapersm" | ".maxnreg" | ".maxclusterrank" => {
                    self.lex.number()?;
                }
                ".noreturn" | ".explicitcluster" | ".blocksareclusters" => {}
                ".pragma" => self.lex.skip_to(';'),
                _ => return refuse(line, format!("the directive `{w}` is not known at a function")),
            }
        }
        if self.lex.eat('{') {
            f.defined = true;
            let mut scope = Scope::default();
            self.body(&mut f, &mut scope)?;
        } else {
            self.lex.eat(';');
        }
        // A declaration gives way to the definition.
        match self.tree.functions.iter_mut().find(|g| g.name == f.name) {
            Some(g) if !g.defined => *g = f,
            Some(_) if !f.defined => {}
            Some(_) => return refuse(line, format!("`{}` is defined twice", f.name)),
            None => self.tree.functions.push(f),
        }
        Ok(())
    }

    /// The inside of `{ … }`, without the opening brace.
    fn body(&mut self, f: &mut Function, scope: &mut Scope) -> Result<()> {
        // Labels can be used before they stand: find those of this scope first.
        let mut labels = HashMap::new();
        let (mut depth, mut i) = (0, self.lex.at);
        while let Some((t, line)) = self.lex.tokens.get(i) {
            match t {
                Token::Punct('{') => depth += 1,
                Token::Punct('}') if depth == 0 => break,
                Token::Punct('}') => depth -= 1,
                Token::Punct(':') if depth == 0 => {
                    if let Some((Token::Word(w), _)) = self.lex.tokens.get(i.wrapping_sub(1)) {
                        if labels.insert(w.to_string(), f.labels.len() as u32).is_some() {
                            return refuse(*line, format!("the label `{w}` stands twice"));
                        }
                        f.labels.push(w.to_string());
                    }
                }
                _ => {}
            }
            i += 1;
        }
        scope.registers.push(HashMap::new());
        scope.labels.push(labels);
        scope.variables.push(HashMap::new());
        loop {
            let line = self.lex.line();
            match self.lex.peek().cloned() {
                None => return refuse(line, format!("`{}` has no closing brace", f.name)),
                Some(Token::Punct('}')) => {
                    self.lex.next();
                    break;
                }
                Some(Token::Punct('{')) => {
                    self.lex.next();
                    self.body(f, scope)?;
                }
                Some(Token::Punct(';')) => {
                    self.lex.next();
                }
                Some(Token::Punct('@')) => self.statement(f, scope)?,
                Some(Token::Word(w)) => {
                    if self.lex.tokens.get(self.lex.at + 1).is_some_and(|t| t.0 == Token::Punct(':')) {
                        self.lex.next();
                        self.lex.next();
                        let label = scope.labels.last().and_then(|l| l.get(w)).copied().unwrap_or(0);
                        if self.lex.eat_word(".branchtargets") {
                            let mut targets = vec![];
                            loop {
                                let line = self.lex.line();
                                let t = self.lex.word("a label")?;
                                match find(&scope.labels, t) {
                                    Some(l) => targets.push(l),
                                    None => return refuse(line, format!("the label `{t}` stands nowhere")),
                                }
                                if !self.lex.eat(',') {
                                    break;
                                }
                            }
                            f.items.push(Item::Targets(label, targets));
                        } else {
                            f.items.push(Item::Label(label));
                        }
                        continue;
                    }
                    match w {
                        ".reg" => {
                            self.lex.next();
                            self.registers(f, scope)?;
                        }
                        ".shared" | ".local" | ".param" | ".global" | ".const" => {
                            self.lex.next();
                            let space = match w {
                                ".shared" => Space::Shared,
                                ".local" => Space::Local,
                                ".param" => Space::Param,
                                ".const" => Space::Const,
                                _ => Space::Global,
                            };
                            let mut vs = self.variables(space, false)?;
                            // Calls declare `param0` again and again, each in its own block.
                            for v in &mut vs {
                                let name = format!("{}#{}", v.name, f.variables.len());
                                if f.variables.iter().any(|w| w.name == v.name) {
                                    if let Some(s) = scope.variables.last_mut() {
                                        s.insert(v.name.clone(), name.clone());
                                    }
                                    v.name = name;
                                }
                            }
                            f.variables.extend(vs);
                        }
                        ".loc" => {
                            while self.lex.line() == line && self.lex.peek().is_some() {
                                self.lex.next();
                            }
                        }
                        ".pragma" => self.lex.skip_to(';'),
                        _ if w.starts_with('.') => return refuse(line, format!("the directive `{w}` is not known in a function")),
                        _ => self.statement(f, scope)?,
                    }
                }
                Some(t) => return refuse(line, format!("{} begins no statement", show(Some(&t)))),
            }
        }
        scope.registers.pop();
        scope.labels.pop();
        scope.variables.pop();
        Ok(())
    }

    fn registers(&mut self, f: &mut Function, scope: &mut Scope) -> Result<()> {
        let line = self.lex.line();
        let w = self.lex.word("a type")?;
        let Some(ty) = w.strip_prefix('.').and_then(Type::parse) else { return refuse(line, format!("`{w}` is no type of a register")) };
        if ty == Type::B128 {
            return refuse(line, "registers of 128 bits are not part of this machine");
        }
        loop {
            let name = self.lex.word("a register")?;
            let mut names = vec![name.to_string()];
            if self.lex.eat('<') {
                let n = self.lex.number()?.clamp(0, 1 << 20);
                self.lex.expect('>')?;
                names = (0..n).map(|i| format!("{name}{i}")).collect();
            }
            for n in names {
                if let Some(s) = scope.registers.last_mut() {
                    s.insert(n.clone(), f.registers.len() as u32);
                }
                f.registers.push(Register { ty, name: n });
            }
            if !self.lex.eat(',') {
                break;
            }
        }
        self.lex.expect(';')
    }

    fn statement(&mut self, f: &mut Function, scope: &Scope) -> Result<()> {
        let mut guard = None;
        let mut line = self.lex.line();
        if self.lex.eat('@') {
            let negated = self.lex.eat('!');
            let w = self.lex.word("a predicate")?;
            match find(&scope.registers, w) {
                Some(r) if f.registers[r as usize].ty == Type::Pred => guard = Some((r, negated)),
                _ => return refuse(line, format!("the guard `{w}` is no predicate that is declared")),
            }
            line = self.lex.line();
        }
        let opcode = self.lex.word("an instruction")?.to_string();
        let mut operands = vec![];
        while !self.lex.eat(';') {
            let o = self.operand(scope)?;
            operands.push(o);
            if !self.lex.eat(',') {
                self.lex.expect(';')?;
                break;
            }
        }
        f.items.push(Item::Statement(Statement { line, guard, opcode, operands }));
        Ok(())
    }

    fn operand(&mut self, scope: &Scope) -> Result<Operand> {
        let line = self.lex.line();
        let first = match self.lex.next() {
            Some(Token::Punct('{')) => Operand::List(self.list(scope, '}')?),
            Some(Token::Punct('(')) => Operand::Group(self.list(scope, ')')?),
            Some(Token::Punct('!')) => Operand::Not(Box::new(self.operand(scope)?)),
            Some(Token::Punct('[')) => {
                let base = match self.operand(scope)? {
                    Operand::Offset(n, o) => Operand::Address(Box::new(Operand::Name(n)), o),
                    b => Operand::Address(Box::new(b), 0),
                };
                let base = match base {
                    Operand::Address(b, o) if self.lex.eat('+') => Operand::Address(b, o + self.lex.number()?),
                    Operand::Address(b, o) if self.lex.eat('-') => Operand::Address(b, o - self.lex.number()?),
                    b => b,
                };
                if self.lex.eat(',') {
                    let coordinates = match self.operand(scope)? {
                        Operand::List(l) => l,
                        _ => return refuse(line, "expected coordinates in braces"),
                    };
                    self.lex.expect(']')?;
                    return Ok(Operand::Tensor(Box::new(base), coordinates));
                }
                self.lex.expect(']')?;
                base
            }
            Some(Token::Punct('-')) => match self.lex.word("a number").map(|w| (w, number(w)))? {
                (_, Some(Operand::Int(n))) => Operand::Int(n.wrapping_neg()),
                (_, Some(Operand::F32(b))) => Operand::F32(b ^ 1 << 31),
                (_, Some(Operand::F64(b))) => Operand::F64(b ^ 1 << 63),
                (w, _) => return refuse(line, format!("expected a number after `-`, found `{w}`")),
            },
            Some(Token::Word("_")) => Operand::Sink,
            Some(Token::Word(w)) => {
                if let Some(r) = find(&scope.registers, w) {
                    Operand::Reg(r)
                } else if let Some(l) = find(&scope.labels, w) {
                    Operand::Label(l)
                } else if let Some(n) = number(w) {
                    n
                } else {
                    let name = scope.variables.iter().rev().find_map(|s| s.get(w)).cloned().unwrap_or_else(|| w.to_string());
                    if self.lex.eat('+') { Operand::Offset(name, self.lex.number()?) } else { Operand::Name(name) }
                }
            }
            other => return refuse(line, format!("expected an operand, found {}", show(other.as_ref()))),
        };
        if self.lex.eat('|') {
            return Ok(Operand::Pair(Box::new(first), Box::new(self.operand(scope)?)));
        }
        Ok(first)
    }

    fn list(&mut self, scope: &Scope, close: char) -> Result<Vec<Operand>> {
        let mut out = vec![];
        while !self.lex.eat(close) {
            out.push(self.operand(scope)?);
            if !self.lex.eat(',') {
                self.lex.expect(close)?;
                break;
            }
        }
        Ok(out)
    }
}

fn find(scopes: &[HashMap<String, u32>], name: &str) -> Option<u32> {
    scopes.iter().rev().find_map(|s| s.get(name)).copied()
}

fn number(w: &str) -> Option<Operand> {
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
