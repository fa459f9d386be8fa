//! Text to functions. Never panics; reports every statement's error, each with its place. A statement that failed leaves its
//! name behind as unknown, and uses of it are silent, so that one mistake is one message.

use super::lexer::{Token, lex};
use crate::builder::Builder;
use crate::diagnostic::{Error, Span};
use crate::dim::{Dim, Name};
use crate::graph::{Module, Var};
use crate::nn;
use crate::prim::{Elementwise, Literal, Movement, Prim, ReduceKind};
use crate::types::{Axis, DType, Type};
use std::collections::BTreeMap;

/// Parses a module.
///
/// # Errors
/// All errors, in order of place.
pub fn parse(src: &str) -> std::result::Result<Module, Vec<Error>> {
    let (tokens, mut errors) = lex(src);
    let mut p = Parser { tokens, at: 0, depth: 0 };
    let mut module = Module::default();
    while *p.peek() != Token::End {
        match p.function(&mut errors) {
            Ok(f) => {
                if module.functions.iter().any(|g| g.name == f.name) {
                    errors.push(Error::new(format!("function `{}` is defined twice", f.name)));
                }
                module.functions.push(f);
            }
            Err(e) => {
                errors.push(e);
                // On to the next function.
                while !matches!(p.peek(), Token::End) && !matches!(p.peek(), Token::Name(n) if n == "fn") {
                    p.at += 1;
                }
            }
        }
    }
    if errors.is_empty() {
        return Ok(module);
    }
    errors.retain(|e| e.message != SILENT);
    errors.sort_by_key(|e| e.span.map(|s| s.start));
    Err(errors)
}

/// Nesting beyond this is refused, so that no input exhausts the stack.
const DEPTH: usize = 100;
/// The message of an error that another error already explains.
const SILENT: &str = "\u{0}";

#[derive(Clone, Debug)]
struct Expr {
    span: Span,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
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

type Result<T> = std::result::Result<T, Error>;

struct Parser {
    tokens: Vec<(Token, Span)>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at.min(self.tokens.len() - 1)].0
    }
    fn span(&self) -> Span {
        self.tokens[self.at.min(self.tokens.len() - 1)].1
    }
    fn is(&self, sign: &str) -> bool {
        matches!(self.peek(), Token::Sign(s) if *s == sign)
    }
    fn eat(&mut self, sign: &str) -> bool {
        let yes = self.is(sign);
        self.at += usize::from(yes);
        yes
    }
    fn expect(&mut self, sign: &str) -> Result<()> {
        if self.eat(sign) {
            return Ok(());
        }
        Err(Error::new(format!("expected `{sign}`, found {}", self.peek().describe())).at(self.span()))
    }
    fn name(&mut self, what: &str) -> Result<String> {
        match self.peek().clone() {
            Token::Name(n) => {
                self.at += 1;
                Ok(n)
            }
            t => Err(Error::new(format!("expected {what}, found {}", t.describe())).at(self.span())),
        }
    }

    fn function(&mut self, errors: &mut Vec<Error>) -> Result<crate::graph::Function> {
        let word = self.name("`fn`")?;
        if word != "fn" {
            self.at -= 1;
            return Err(Error::new(format!("expected `fn`, found `{word}`")).at(self.span()));
        }
        let name = self.name("a function's name")?;
        let mut scope = Scope { b: Builder::new(name), values: BTreeMap::new(), sizes: BTreeMap::new(), float: DType::F32 };
        let params = self.ports(&mut scope, "parameter")?;
        if let Some((.., t)) = params.iter().find(|(.., t)| t.dtype.is_float()) {
            scope.float = t.dtype;
        }
        for (n, span, ty) in params {
            if scope.values.contains_key(&n) {
                errors.push(Error::new(format!("parameter `{n}` is named twice")).at(span));
                continue;
            }
            let v = scope.b.param(n.as_str(), ty);
            scope.values.insert(n, Some(v));
        }
        self.expect("->")?;
        let results = self.ports(&mut scope, "result")?;
        self.expect("{")?;
        while !self.is("}") {
            if *self.peek() == Token::End {
                return Err(Error::new("function has no closing `}`").at(self.span()));
            }
            let before = self.at;
            if let Err(e) = self.statement(&mut scope) {
                errors.push(e);
                // On to the next statement: a name followed by `=` that begins one, outside of brackets.
                let mut open = 0i32;
                self.at = self.at.max(before + 1);
                while *self.peek() != Token::End {
                    let starts = matches!(self.peek(), Token::Name(n) if n == "fn")
                        || (matches!(self.peek(), Token::Name(_)) && matches!(self.tokens.get(self.at + 1), Some((Token::Sign("="), _))));
                    if (open <= 0 && (starts || self.is("}"))) || self.is("}") {
                        break;
                    }
                    open += i32::from(self.is("(") || self.is("[")) - i32::from(self.is(")") || self.is("]"));
                    self.at += 1;
                }
            }
        }
        self.expect("}")?;
        for (n, span, ty) in results {
            if let Err(e) = scope.result(&n, &ty) {
                errors.push(e.at(span));
            }
        }
        Ok(scope.b.finish())
    }

    /// `(name: type, …)`.
    fn ports(&mut self, scope: &mut Scope, what: &str) -> Result<Vec<(String, Span, Type)>> {
        self.expect("(")?;
        let mut ports = vec![];
        while !self.eat(")") {
            let span = self.span();
            let n = self.name(&format!("a {what}'s name"))?;
            self.expect(":")?;
            let at = self.span();
            let d = self.name("an element type")?;
            let dtype = DType::parse(&d).ok_or_else(|| {
                Error::new(format!("no element type `{d}`")).hint("they are f64, f32, bf16, f16, i32 and bool").at(at)
            })?;
            let mut axes: Vec<Axis> = vec![];
            if self.is("[") {
                let Expr { kind: Kind::List(list), .. } = self.primary()? else { return Err(Error::new("expected axes").at(at)) };
                for e in &list {
                    let a = scope.declare(e)?;
                    if axes.iter().any(|x| x.name == a.name) {
                        return Err(Error::new(format!("{what} `{n}`: axis `{a}` stands twice in one type"))
                            .hint(format!("axes of one value need different names: write `{0}, M={0}`", a.name))
                            .at(e.span));
                    }
                    axes.push(a);
                }
            }
            ports.push((n, span, Type::new(dtype, axes)));
            if !self.eat(",") && !self.is(")") {
                self.expect(")")?;
            }
        }
        Ok(ports)
    }

    fn statement(&mut self, scope: &mut Scope) -> Result<()> {
        let span = self.span();
        let n = self.name("`name = expression`")?;
        self.expect("=")?;
        let fresh = !scope.values.contains_key(&n);
        let value = self.expression().and_then(|e| {
            if !fresh {
                return Err(Error::new(format!("`{n}` is defined twice")).hint("every value has one definition; choose another name").at(span));
            }
            let before = scope.b.function().vars.len();
            let v = scope.value(&e)?;
            if v.index() >= before {
                scope.b.name(v, n.as_str());
            }
            Ok(v)
        });
        self.eat(";");
        if fresh {
            scope.values.insert(n, value.as_ref().ok().copied());
        }
        value.map(|_| ())
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
            left = Expr { span, kind: Kind::Infix(s, Box::new(left), Box::new(right)) };
        }
        Ok(left)
    }
    fn prefix(&mut self) -> Result<Expr> {
        let start = self.span().start;
        for s in ["-", "!"] {
            if self.eat(s) {
                let x = self.nested(Self::prefix)?;
                let span = Span { start, end: x.span.end };
                if let (Kind::Number(n), "-") = (&x.kind, s) {
                    return Ok(Expr { span, kind: Kind::Number(-n) });
                }
                return Ok(Expr { span, kind: Kind::Prefix(s, Box::new(x)) });
            }
        }
        self.primary()
    }
    fn nested<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= DEPTH {
            return Err(Error::new(format!("expression is nested more than {DEPTH} deep")).at(self.span()));
        }
        self.depth += 1;
        let r = f(self);
        self.depth -= 1;
        r
    }
    fn primary(&mut self) -> Result<Expr> {
        self.nested(Self::primary_unbounded)
    }
    fn primary_unbounded(&mut self) -> Result<Expr> {
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
                return Ok(e);
            }
            Token::Sign("[") => Kind::List(self.arguments("]")?),
            t => {
                self.at -= 1;
                return Err(Error::new(format!("expected an expression, found {}", t.describe())).at(span));
            }
        };
        let end = self.tokens[self.at.saturating_sub(1)].1.end;
        Ok(Expr { span: Span { start: span.start, end }, kind })
    }
    fn arguments(&mut self, close: &str) -> Result<Vec<Expr>> {
        let mut args = vec![];
        while !self.eat(close) {
            args.push(self.argument()?);
            if !self.eat(",") && !self.is(close) {
                return Err(Error::new(format!("expected `,` or `{close}`, found {}", self.peek().describe())).at(self.span()));
            }
        }
        Ok(args)
    }
    /// `expr`, `name = expr`, or `expr -> expr`.
    fn argument(&mut self) -> Result<Expr> {
        let mut left = self.declaration()?;
        if self.eat("->") {
            let right = self.declaration()?;
            let span = Span { start: left.span.start, end: right.span.end };
            left = Expr { span, kind: Kind::Arrow(Box::new(left), Box::new(right)) };
        }
        Ok(left)
    }
    fn declaration(&mut self) -> Result<Expr> {
        let e = self.expression()?;
        match e.kind {
            Kind::Name(ref n) if self.is("=") => {
                let (n, start) = (n.clone(), e.span.start);
                self.at += 1;
                let size = self.expression()?;
                Ok(Expr { span: Span { start, end: size.span.end }, kind: Kind::Decl(n, Box::new(size)) })
            }
            _ => Ok(e),
        }
    }
}

/// What an operand is before its element type is known.
enum Operand {
    Value(Var),
    Number(f64),
    Size(Dim),
}

struct Scope {
    b: Builder,
    /// `None`: its definition failed.
    values: BTreeMap<String, Option<Var>>,
    /// Sizes of the axes seen so far.
    sizes: BTreeMap<Name, Dim>,
    /// What a bare number is.
    float: DType,
}

impl Scope {
    fn result(&mut self, n: &str, ty: &Type) -> Result<()> {
        let v = match self.values.get(n) {
            Some(Some(v)) => *v,
            Some(None) => return Err(Error::new(SILENT)),
            None => return Err(Error::new(format!("result `{n}` is never assigned")).hint(format!("write `{n} = …`"))),
        };
        let have = self.b.ty(v).clone();
        let same = have.dtype == ty.dtype && have.axes.len() == ty.axes.len() && ty.axes.iter().all(|a| have.axes.contains(a));
        if !same {
            let lacks = ty.axes.iter().any(|a| !have.has(&a.name));
            let e = Error::new(format!("result `{n}` is declared {ty}, but its value is {have}"));
            return Err(if lacks { e.hint("`broadcast` adds an axis, `rename` renames one") } else { e });
        }
        let order: Vec<Name> = ty.axes.iter().map(|a| a.name.clone()).collect();
        let v = self.b.permute(v, &order)?;
        self.b.result(n, v);
        Ok(())
    }

    /// The size that an expression of numbers and names means.
    fn dim(&self, e: &Expr) -> Result<Dim> {
        let refuse = |m: &str| Err(Error::new(m).at(e.span));
        match &e.kind {
            Kind::Number(n) if n.fract() == 0.0 && n.abs() < 1e15 => Ok(Dim::fixed(*n as i64)),
            Kind::Name(n) => Ok(self.sizes.get(n.as_str()).cloned().unwrap_or_else(|| Dim::sym(n.as_str()))),
            Kind::Prefix("-", x) => Ok(&Dim::fixed(-1) * &self.dim(x)?),
            Kind::Infix(op, a, b) => {
                let (a, b) = (self.dim(a)?, self.dim(b)?);
                match *op {
                    "+" => Ok(&a + &b),
                    "-" => Ok(&a - &b),
                    "*" => Ok(&a * &b),
                    "/" => a.checked_div(&b).map_or_else(|| refuse("a size can only be divided by a product of names and nonzero numbers"), Ok),
                    _ => refuse("a size is made of whole numbers, names and + - * /"),
                }
            }
            _ => refuse("a size is made of whole numbers, names and + - * /"),
        }
    }
    /// A new or known axis: `D`, `64`, `E=D`.
    fn declare(&mut self, e: &Expr) -> Result<Axis> {
        let axis = match &e.kind {
            Kind::Name(n) => {
                let known = self.sizes.get(n.as_str()).cloned();
                Axis::new(n.as_str(), known.unwrap_or_else(|| Dim::sym(n.as_str())))
            }
            Kind::Number(n) if *n >= 0.0 && n.fract() == 0.0 && *n < 1e15 => Axis::new(n.to_string(), Dim::fixed(*n as i64)),
            Kind::Decl(n, size) => Axis::new(n.as_str(), self.dim(size)?),
            _ => return Err(Error::new("expected an axis: `D`, `64`, or `E=D` for axis E of size D").at(e.span)),
        };
        match self.sizes.get(&axis.name) {
            Some(have) if *have != axis.size => {
                Err(Error::new(format!("axis `{}` is {have} here and {} there", axis.name, axis.size)).hint("one name has one size in a function").at(e.span))
            }
            _ => {
                self.sizes.insert(axis.name.clone(), axis.size.clone());
                Ok(axis)
            }
        }
    }
    /// An axis of `ty`: by name, by name in another case, or by position.
    fn axis_of(&self, ty: &Type, e: &Expr) -> Result<Axis> {
        let found = match &e.kind {
            Kind::Name(n) => ty.axis(n).or_else(|| {
                let mut same = ty.axes.iter().filter(|a| a.name.eq_ignore_ascii_case(n));
                same.next().filter(|_| same.next().is_none())
            }),
            Kind::Number(n) => ty.axis(&n.to_string()).or_else(|| {
                let i = if *n < 0.0 { ty.axes.len() as f64 + n } else { *n };
                (n.fract() == 0.0 && i >= 0.0).then(|| ty.axes.get(i as usize)).flatten()
            }),
            _ => None,
        };
        let what = match &e.kind {
            Kind::Name(n) => format!("`{n}`"),
            Kind::Number(n) => n.to_string(),
            _ => return Err(Error::new("expected the name of an axis").at(e.span)),
        };
        found.cloned().ok_or_else(|| Error::new(format!("{ty} has no axis {what}")).at(e.span))
    }
    fn axes_of(&self, ty: &Type, e: &Expr) -> Result<Vec<Name>> {
        match &e.kind {
            Kind::List(list) => list.iter().map(|e| self.axis_of(ty, e).map(|a| a.name)).collect(),
            _ => Ok(vec![self.axis_of(ty, e)?.name]),
        }
    }

    fn value(&mut self, e: &Expr) -> Result<Var> {
        let o = self.operand(e)?;
        self.materialize(o, self.float, e.span)
    }
    fn materialize(&mut self, o: Operand, dtype: DType, span: Span) -> Result<Var> {
        self.b.span = Some(span);
        match o {
            Operand::Value(v) => Ok(v),
            Operand::Number(n) => Ok(self.b.constant(n, dtype)),
            Operand::Size(d) => self.b.size(d, dtype),
        }
    }
    fn operand(&mut self, e: &Expr) -> Result<Operand> {
        Ok(Operand::Value(match &e.kind {
            Kind::Number(n) => return Ok(Operand::Number(*n)),
            Kind::Name(n) => match self.values.get(n) {
                Some(Some(v)) => *v,
                Some(None) => return Err(Error::new(SILENT).at(e.span)),
                None if self.sizes.contains_key(n.as_str()) => return Ok(Operand::Size(self.dim(e)?)),
                None => {
                    let names = self.values.keys().map(String::as_str).chain(self.sizes.keys().map(|s| &**s));
                    return Err(suggest(Error::new(format!("no value `{n}`")), n, names).at(e.span));
                }
            },
            Kind::Infix(op, l, r) => self.infix(op, l, r, e.span)?,
            Kind::Prefix(op, x) => {
                let v = self.value(x)?;
                self.b.span = Some(e.span);
                self.b.elementwise(if *op == "-" { Elementwise::Neg } else { Elementwise::Not }, &[v])?
            }
            Kind::Call(name, args) => self.call(name, args, e.span)?,
            Kind::Text(_) | Kind::List(_) | Kind::Arrow(..) | Kind::Decl(..) => {
                return Err(Error::new("expected a value here").at(e.span));
            }
        }))
    }
    /// Values of one element type: a number takes the type of what it stands beside.
    fn together(&mut self, exprs: &[&Expr]) -> Result<Vec<Var>> {
        let operands = exprs.iter().map(|e| self.operand(e)).collect::<Result<Vec<_>>>()?;
        let dtype = operands.iter().find_map(|o| match o {
            Operand::Value(v) => Some(self.b.dtype(*v)),
            _ => None,
        });
        operands.into_iter().zip(exprs).map(|(o, e)| self.materialize(o, dtype.unwrap_or(self.float), e.span)).collect()
    }
    fn infix(&mut self, op: &'static str, l: &Expr, r: &Expr, span: Span) -> Result<Var> {
        use Elementwise::*;
        let args = self.together(&[l, r])?;
        let prim = match op {
            "+" => Add, "-" => Sub, "*" => Mul, "/" => Div, "<" => Lt, "<=" => Le, ">" => Gt, ">=" => Ge, "==" => Eq, "!=" => Ne,
            "&" => And, _ => Or,
        };
        let (a, b) = (self.b.ty(args[0]), self.b.ty(args[1]));
        if a.dtype.is_float() && !a.covers(b) && !b.covers(a) {
            let only = |x: &Type, y: &Type| x.axes.iter().filter(|n| !y.has(&n.name)).map(|n| n.name.to_string()).collect::<Vec<_>>().join(",");
            return Err(Error::new(format!("`{op}`: axes {} only on the left ({a}), {} only on the right ({b})", only(a, b), only(b, a)))
                .hint(format!("`rename` one of them if they are the same axis, or write `{}(a, b)` if an outer product is meant", prim.name()))
                .at(span));
        }
        self.b.span = Some(span);
        self.b.elementwise(prim, &args)
    }

    fn call(&mut self, name: &str, args: &[Expr], span: Span) -> Result<Var> {
        let result = self.call_unplaced(name, args, span);
        result.map_err(|e| e.at(span))
    }
    fn call_unplaced(&mut self, name: &str, args: &[Expr], span: Span) -> Result<Var> {
        let count = |n: usize, usage: &str| {
            if args.len() == n { Ok(()) } else { Err(Error::new(format!("{name}: takes {n} arguments, but {} given", args.len())).hint(usage)) }
        };
        let dtype = |e: &Expr| match &e.kind {
            Kind::Name(n) => DType::parse(n).ok_or_else(|| Error::new(format!("{name}: no element type `{n}`")).at(e.span)),
            _ => Err(Error::new(format!("{name}: expected an element type")).at(e.span)),
        };
        let arrow = |e: &Expr| match &e.kind {
            Kind::Arrow(a, b) => Ok(((**a).clone(), (**b).clone())),
            _ => Err(Error::new(format!("{name}: expected `from -> to`")).at(e.span)),
        };
        if let Some(op) = Elementwise::ALL.iter().find(|e| e.name() == name) {
            if let Elementwise::Convert(_) = op {
                count(2, "convert(x, f32)")?;
                let (x, to) = (self.value(&args[0])?, dtype(&args[1])?);
                self.b.span = Some(span);
                return self.b.elementwise(Elementwise::Convert(to), &[x]);
            }
            let n = op.arity();
            count(n, &format!("{name}({})", ["x", "a, b", "condition, a, b"][n - 1]))?;
            let vars = if *op == Elementwise::Select {
                let c = self.value(&args[0])?;
                let mut v = vec![c];
                v.extend(self.together(&[&args[1], &args[2]])?);
                v
            } else {
                self.together(&args.iter().collect::<Vec<_>>())?
            };
            self.b.span = Some(span);
            return self.b.elementwise(*op, &vars);
        }
        match name {
            "reduce_sum" | "reduce_max" => {
                count(2, &format!("{name}(x, axis) or {name}(x, [I,J])"))?;
                let x = self.value(&args[0])?;
                let axes = self.axes_of(&self.b.ty(x).clone(), &args[1])?;
                self.b.span = Some(span);
                self.b.push(Prim::Reduce(if name == "reduce_sum" { ReduceKind::Sum } else { ReduceKind::Max }, axes), &[x])
            }
            "contract" => self.contract(args, span),
            "stop_gradient" => {
                count(1, "stop_gradient(x)")?;
                let x = self.value(&args[0])?;
                self.b.stop_gradient(x)
            }
            "const" => {
                count(2, "const(0.5, f32)")?;
                match args[0].kind {
                    Kind::Number(value) => self.b.push(Prim::Constant(Literal { value, dtype: dtype(&args[1])? }), &[]),
                    _ => Err(Error::new("const: expected a number").at(args[0].span)),
                }
            }
            "size" => {
                count(2, "size(D, f32)")?;
                let d = self.dim(&args[0])?;
                self.b.size(d, dtype(&args[1])?)
            }
            "iota" => {
                count(1, "iota(J)")?;
                let axis = match &args[0].kind {
                    Kind::Name(n) if !self.sizes.contains_key(n.as_str()) => {
                        let mut same = self.sizes.iter().filter(|(k, _)| k.eq_ignore_ascii_case(n));
                        match (same.next(), same.next()) {
                            (Some((k, d)), None) => Axis::new(k.clone(), d.clone()),
                            _ => self.declare(&args[0])?,
                        }
                    }
                    _ => self.declare(&args[0])?,
                };
                self.b.iota(axis)
            }
            "rename" | "split" | "merge" | "permute" | "broadcast" | "slice" | "index" => {
                let want = if matches!(name, "slice") { 3 } else { 2 };
                let want = if name == "index" { 3 } else { want };
                count(want, match name {
                    "rename" => "rename(x, E -> D)",
                    "split" => "split(x, H -> [G, R=H/G])",
                    "merge" => "merge(x, [G,R] -> H)",
                    "permute" => "permute(x, [B,I,H])",
                    "broadcast" => "broadcast(x, [I,J])",
                    "slice" => "slice(x, D -> P=D/2, start)",
                    _ => "index(x, R, 0)",
                })?;
                let x = self.value(&args[0])?;
                let ty = self.b.ty(x).clone();
                let m = match name {
                    "permute" => Movement::Permute(self.axes_of(&ty, &args[1])?),
                    "broadcast" => {
                        let Kind::List(list) = &args[1].kind else { return Err(Error::new("broadcast: expected `[axes]`").at(args[1].span)) };
                        Movement::Broadcast(list.iter().map(|e| self.declare(e)).collect::<Result<_>>()?)
                    }
                    "index" => Movement::Index { axis: self.axis_of(&ty, &args[1])?.name, at: self.dim(&args[2])? },
                    _ => {
                        let (from, to) = arrow(&args[1])?;
                        match name {
                            "rename" => {
                                let from = self.axis_of(&ty, &from)?;
                                // A bare new name takes the size of the axis it renames.
                                let to = match &to.kind {
                                    Kind::Name(n) if !self.sizes.contains_key(n.as_str()) => {
                                        self.sizes.insert(n.as_str().into(), from.size.clone());
                                        Axis::new(n.as_str(), from.size.clone())
                                    }
                                    _ => self.declare(&to)?,
                                };
                                Movement::Rename { from: from.name, to }
                            }
                            "split" => {
                                let Kind::List(list) = &to.kind else { return Err(Error::new("split: expected `axis -> [axes]`").at(to.span)) };
                                let axis = self.axis_of(&ty, &from)?.name;
                                Movement::Split { axis, into: list.iter().map(|e| self.declare(e)).collect::<Result<_>>()? }
                            }
                            "merge" => {
                                let axes = self.axes_of(&ty, &from)?;
                                let product = axes.iter().filter_map(|n| ty.axis(n)).fold(Dim::fixed(1), |d, a| &d * &a.size);
                                let into = match &to.kind {
                                    Kind::Name(n) if !self.sizes.contains_key(n.as_str()) => {
                                        self.sizes.insert(n.as_str().into(), product.clone());
                                        Axis::new(n.as_str(), product)
                                    }
                                    _ => self.declare(&to)?,
                                };
                                Movement::Merge { axes, into }
                            }
                            _ => Movement::Slice { axis: self.axis_of(&ty, &from)?.name, to: self.declare(&to)?, start: self.dim(&args[2])? },
                        }
                    }
                };
                self.b.span = Some(span);
                self.b.movement(m, &[x])
            }
            "concat" | "stack" => {
                let Some((last, values)) = args.split_last().filter(|(_, v)| !v.is_empty()) else {
                    return Err(Error::new(format!("{name}: takes at least 2 arguments")).hint("concat(a, b, [P,Q] -> D), stack(a, b, R)"));
                };
                let vars = self.together(&values.iter().collect::<Vec<_>>())?;
                let m = if name == "stack" {
                    let n = vars.len() as i64;
                    match &last.kind {
                        Kind::Name(s) if !self.sizes.contains_key(s.as_str()) => {
                            self.sizes.insert(s.as_str().into(), Dim::fixed(n));
                            Movement::Stack(Axis::new(s.as_str(), Dim::fixed(n)))
                        }
                        _ => Movement::Stack(self.declare(last)?),
                    }
                } else {
                    let (from, to) = arrow(last)?;
                    let Kind::List(list) = &from.kind else { return Err(Error::new("concat: expected `[axes] -> axis`").at(from.span)) };
                    if list.len() != vars.len() {
                        return Err(Error::new(format!("concat: {} axes named for {} operands", list.len(), vars.len())).at(from.span));
                    }
                    let mut axes = vec![];
                    for (e, v) in list.iter().zip(&vars) {
                        axes.push(self.axis_of(&self.b.ty(*v).clone(), e)?.name);
                    }
                    Movement::Concat { axes, into: self.declare(&to)? }
                };
                self.b.span = Some(span);
                self.b.movement(m, &vars)
            }
            _ => {
                let Some(c) = nn::lookup(name) else {
                    let known = Elementwise::ALL.iter().map(|e| e.name()).chain(nn::ALL.iter().map(|c| c.name)).chain(OTHERS);
                    return Err(suggest(Error::new(format!("no function `{name}`")), name, known));
                };
                let mut out: Vec<nn::Arg> = vec![];
                for e in args {
                    let a = self.composition_arg(e, &out)?;
                    out.push(a);
                }
                self.b.span = Some(span);
                (c.build)(&mut self.b, &out)
            }
        }
    }
    /// A number, an axis (of an earlier operand, or new), a list of axes, or a value.
    fn composition_arg(&mut self, e: &Expr, before: &[nn::Arg]) -> Result<nn::Arg> {
        let lookup = |s: &Scope, e: &Expr| {
            before.iter().find_map(|a| match a {
                nn::Arg::Value(v) => s.axis_of(&s.b.ty(*v).clone(), e).ok(),
                _ => None,
            })
        };
        Ok(match &e.kind {
            Kind::Name(n) if !self.values.contains_key(n) => match lookup(self, e) {
                Some(a) => nn::Arg::Axis(a),
                None if self.sizes.contains_key(n.as_str()) => nn::Arg::Axis(self.declare(e)?),
                None => {
                    let names = self.values.keys().map(String::as_str).chain(self.sizes.keys().map(|s| &**s));
                    return Err(suggest(Error::new(format!("no value or axis `{n}`")), n, names).at(e.span));
                }
            },
            Kind::Decl(..) => nn::Arg::Axis(self.declare(e)?),
            Kind::List(list) => {
                let mut axes = vec![];
                for e in list {
                    axes.push(match lookup(self, e) {
                        Some(a) => a,
                        None => self.declare(e)?,
                    });
                }
                nn::Arg::Axes(axes)
            }
            Kind::Number(n) => nn::Arg::Number(*n),
            _ => nn::Arg::Value(self.value(e)?),
        })
    }

    /// `contract("bhid,bhjd->bhij", a, b)`, or as printed, `contract(a, b, [D])`.
    fn contract(&mut self, args: &[Expr], span: Span) -> Result<Var> {
        let usage = || Error::new("contract: expected `contract(\"id,jd->ij\", a, b)` or `contract(a, b, [D])`").at(span);
        let [x, y, z] = args else { return Err(usage()) };
        let Kind::Text(spec) = &x.kind else {
            let v = self.together(&[x, y])?;
            let mut both = self.b.ty(v[0]).clone();
            both.axes.extend(self.b.ty(v[1]).axes.iter().filter(|a| !self.b.ty(v[0]).has(&a.name)).cloned());
            let sum = self.axes_of(&both, z)?;
            self.b.span = Some(span);
            return self.b.contract(v[0], v[1], &sum);
        };
        let v = self.together(&[y, z])?;
        let spec_error = |m: String| Error::new(format!("contract: {m}")).at(x.span);
        let parts: Vec<&str> = spec.split("->").collect();
        let [inputs, output] = parts.as_slice() else { return Err(spec_error(format!("{spec:?} has no `->`"))) };
        let operands: Vec<&str> = inputs.split(',').collect();
        let [la, lb] = operands.as_slice() else { return Err(spec_error(format!("{inputs:?} names {} operands, but there are 2", operands.len()))) };
        let (la, lb, lo): (Vec<char>, Vec<char>, Vec<char>) = (la.trim().chars().collect(), lb.trim().chars().collect(), output.trim().chars().collect());
        let (a, mut b) = (v[0], v[1]);
        let (ta, tb) = (self.b.ty(a).clone(), self.b.ty(b).clone());
        for (letters, ty) in [(&la, &ta), (&lb, &tb)] {
            let text: String = letters.iter().collect();
            if letters.len() != ty.axes.len() {
                return Err(spec_error(format!("{text:?} names {} axes, but the operand is {ty}", letters.len())));
            }
            if let Some(c) = letters.iter().enumerate().find(|(i, c)| letters[..*i].contains(c)) {
                return Err(spec_error(format!("letter `{}` stands twice in {text:?}", c.1)));
            }
        }
        // The right operand's axes under the left's names where letters agree, under new ones where names clash.
        let mut target: Vec<Name> = vec![];
        for (c, axis) in lb.iter().zip(&tb.axes) {
            target.push(match la.iter().position(|x| x == c) {
                Some(i) => {
                    let left = &ta.axes[i];
                    if left.size != axis.size {
                        return Err(Error::new(format!("contract: dimension `{c}` is {} in the left operand but {} in the right", left.size, axis.size))
                            .hint(format!("the letters of one axis must have one size; the operands are {ta} and {tb}"))
                            .at(span));
                    }
                    left.name.clone()
                }
                None if !ta.has(&axis.name) => axis.name.clone(),
                None => {
                    let mut n = c.to_ascii_uppercase().to_string();
                    while ta.has(&n) || tb.has(&n) || self.sizes.get(n.as_str()).is_some_and(|d| *d != axis.size) {
                        n.push('\'');
                    }
                    n.as_str().into()
                }
            });
        }
        // Through names that are free, so that two axes may trade names.
        let moved: Vec<usize> = (0..target.len()).filter(|i| target[*i] != tb.axes[*i].name).collect();
        let clash = moved.iter().any(|i| tb.has(&target[*i]));
        for through in if clash { &[true, false][..] } else { &[false] } {
            for &i in &moved {
                let from = self.b.ty(b).axes[i].name.clone();
                let to: Name = if *through { format!("{}'", target[i]).into() } else { target[i].clone() };
                self.sizes.insert(to.clone(), tb.axes[i].size.clone());
                b = self.b.movement(Movement::Rename { from, to: Axis::new(to, tb.axes[i].size.clone()) }, &[b])?;
            }
        }
        let axis = |c: char| la.iter().position(|x| *x == c).map(|i| ta.axes[i].name.clone()).or_else(|| lb.iter().position(|x| *x == c).map(|i| target[i].clone()));
        let mut order = vec![];
        for (i, c) in lo.iter().enumerate() {
            if lo[..i].contains(c) {
                return Err(spec_error(format!("letter `{c}` stands twice in the result")));
            }
            order.push(axis(*c).ok_or_else(|| spec_error(format!("letter `{c}` of the result is in no operand")))?);
        }
        let mut sum: Vec<Name> = vec![];
        for c in la.iter().chain(&lb).filter(|c| !lo.contains(c)) {
            if let Some(n) = axis(*c).filter(|n| !sum.contains(n)) {
                sum.push(n);
            }
        }
        self.b.span = Some(span);
        let out = self.b.contract(a, b, &sum)?;
        self.b.permute(out, &order)
    }
}

/// Functions that are neither elementwise nor compositions.
const OTHERS: [&str; 15] = [
    "reduce_sum", "reduce_max", "contract", "stop_gradient", "const", "size", "iota", "rename", "split", "merge", "permute", "broadcast",
    "slice", "index", "concat",
];

/// With the nearest known name as a hint, if one is near.
fn suggest<'a>(e: Error, name: &str, known: impl Iterator<Item = &'a str>) -> Error {
    let best = known.map(|k| (distance(name, k), k)).min();
    match best {
        Some((d, k)) if d <= name.len().div_ceil(3) && d < name.len() => e.hint(format!("did you mean `{k}`?")),
        _ => e,
    }
}

/// Edits between two names.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut left = i + 1;
        let mut corner = row[0];
        row[0] = left;
        for (j, y) in b.iter().enumerate() {
            let next = (left + 1).min(row[j + 1] + 1).min(corner + usize::from(x != *y));
            corner = row[j + 1];
            row[j + 1] = next;
            left = next;
        }
    }
    row[b.len()]
}
