//! PTX text to a syntax tree: directives, declarations, statements with operands. Names of registers and labels are resolved here, by scope; what an
//! instruction means is decided in `decode`.

mod lexer;
mod tree;

use lexer::{Lexer, Token, number, show};
use std::collections::HashMap;
pub(super) use tree::{Function, Init, Item, Operand, Parameter, Register, Space, Statement, Tree, Type, Variable};

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
                        _ if n[1] != 1 || n[2] != 1 || !(1..=8).contains(&n[0]) => return refuse(line, format!("`{w}` {n:?}: this machine has clusters of 1 to 8 blocks along x")),
                        _ => f.cluster = Some(n[0]),
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
