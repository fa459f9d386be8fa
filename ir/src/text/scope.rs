//! Expressions to equations: what names, axes and sizes mean inside one function.

use super::parser::{Expr, Functions, Kind, LATER, RESERVED, SILENT, Status};
use crate::builder::Builder;
use crate::diagnostic::{Error, Span};
use crate::dim::{Dim, Name};
use crate::graph::{Port, Var};
use crate::nn;
use crate::prim::{Call, Callee, Elementwise, Literal, Movement, Prim, ReduceKind};
use crate::types::{Axis, DType, Type};
use std::collections::{BTreeMap, BTreeSet};

type Result<T> = std::result::Result<T, Error>;

/// Whole numbers in sizes are below this, and a size has at most so many terms of at most such a degree: sizes stay exact
/// and quick to compute with.
const LARGEST: i64 = 1 << 30;
const TERMS: usize = 64;
const DEGREE: i64 = 64;

/// What an operand is before its element type is known.
enum Operand {
    Value(Var),
    Number(f64),
    Size(Dim),
}

fn names(ports: &[Port]) -> String {
    ports.iter().map(|p| &*p.name).collect::<Vec<_>>().join(", ")
}

pub(super) struct Scope {
    pub b: Builder,
    /// `None`: its definition failed.
    pub values: BTreeMap<String, Option<Var>>,
    /// Values defined anywhere in the function.
    pub later: BTreeSet<String>,
    /// What a number is that stands beside no value.
    pub float: DType,
    /// Functions of the module.
    functions: Functions,
    /// Sizes of the axes seen so far.
    sizes: BTreeMap<Name, Dim>,
    /// Names in sizes so far, axes of that name or not.
    dims: BTreeSet<Name>,
}

impl Scope {
    pub fn new(function: &str, functions: Functions) -> Scope {
        let (values, later, sizes, dims) = Default::default();
        Scope { b: Builder::new(function), values, later, float: DType::F32, functions, sizes, dims }
    }

    /// `n = e`.
    pub fn define(&mut self, n: &str, span: Span, e: &Expr) -> Result<()> {
        if self.values.contains_key(n) {
            return Err(Error::new(format!("`{n}` is defined twice")).hint("every value has one definition; choose another name").at(span));
        }
        let before = self.b.function().vars.len();
        let v = self.value(e)?;
        if v.index() >= before {
            self.b.name(v, n);
        }
        self.values.insert(n.into(), Some(v));
        Ok(())
    }
    /// Declares the value called `n` a result of type `ty`, in another order of axes if need be.
    pub fn result(&mut self, n: &str, ty: &Type) -> Result<()> {
        let v = match self.values.get(n) {
            Some(Some(v)) => *v,
            Some(None) => return Err(Error::new(SILENT)),
            None => return Err(Error::new(format!("result `{n}` is never assigned")).hint(format!("write `{n} = …`"))),
        };
        let have = self.b.ty(v).clone();
        let only = |x: &Type, y: &Type| x.axes.iter().filter(|a| !y.axes.contains(a)).map(Axis::to_string).collect::<Vec<_>>().join(",");
        let (lacks, extra) = (only(ty, &have), only(&have, ty));
        if have.dtype != ty.dtype || !lacks.is_empty() || !extra.is_empty() {
            let e = Error::new(format!("result `{n}` is declared {ty}, but its value is {have}"));
            return Err(match (lacks.as_str(), extra.as_str()) {
                ("", "") => e.hint(format!("`convert(…, {})`, or declare it {}", ty.dtype, have.dtype)),
                (_, "") => e.hint(format!("the value is constant along {lacks}: write `broadcast(…, [{lacks}])` if that is meant")),
                ("", _) => e.hint(format!("sum over {extra} with `reduce_sum`, or declare it")),
                _ => e.hint(format!("`rename` {extra} if {lacks} is the same axis")),
            });
        }
        let order: Vec<Name> = ty.axes.iter().map(|a| a.name.clone()).collect();
        let v = self.b.permute(v, &order)?;
        self.b.result(n, v);
        Ok(())
    }

    /// `d`, if it is of moderate size.
    fn moderate(d: Dim, span: Span) -> Result<Dim> {
        let fits = |(num, den, powers): (i64, i64, &[(Name, i32)])| {
            num.unsigned_abs() <= LARGEST as u64 && den <= LARGEST && powers.iter().map(|p| i64::from(p.1).abs()).sum::<i64>() <= DEGREE
        };
        if d.monomials().count() <= TERMS && d.monomials().all(fits) {
            return Ok(d);
        }
        Err(Error::new("this size is too large").hint(format!("numbers in sizes go to {LARGEST}, terms to {TERMS}, degrees to {DEGREE}")).at(span))
    }
    /// The product of sizes, if it is of moderate size.
    fn product<'a>(sizes: impl IntoIterator<Item = &'a Dim>, span: Span) -> Result<Dim> {
        sizes.into_iter().try_fold(Dim::fixed(1), |n, d| Self::moderate(&n * d, span))
    }
    /// The size that an expression of numbers and names means.
    fn dim(&mut self, e: &Expr) -> Result<Dim> {
        let refuse = |m: &str| Err(Error::new(m).at(e.span));
        match &e.kind {
            Kind::Number(n) if n.fract() == 0.0 && n.abs() <= LARGEST as f64 => Ok(Dim::fixed(*n as i64)),
            Kind::Number(n) if n.fract() == 0.0 => refuse(&format!("size {n} is too large; numbers in sizes go to {LARGEST}")),
            Kind::Name(n) if RESERVED.contains(&n.as_str()) => refuse(&format!("`{n}` is a word of the language and cannot be a size")),
            Kind::Name(n) => Ok(self.sizes.get(n.as_str()).cloned().unwrap_or_else(|| {
                self.dims.insert(n.as_str().into());
                Dim::sym(n.as_str())
            })),
            Kind::Prefix("-", x) => Ok(&Dim::fixed(-1) * &self.dim(x)?),
            Kind::Infix(op @ ("+" | "-" | "*" | "/"), a, b) => {
                let (a, b) = (self.dim(a)?, self.dim(b)?);
                let d = match *op {
                    "+" => &a + &b,
                    "-" => &a - &b,
                    "*" => &a * &b,
                    _ => match a.checked_div(&b) {
                        Some(d) => d,
                        None if b.is_zero() => return refuse("a size is divided by zero"),
                        None => return refuse("a size can only be divided by a product of names and numbers, not by a sum"),
                    },
                };
                Self::moderate(d, e.span)
            }
            _ => refuse("a size is made of whole numbers, names and + - * /"),
        }
    }
    /// A new or known axis: `D`, `64`, `E=D`.
    pub fn declare(&mut self, e: &Expr) -> Result<Axis> {
        let axis = match &e.kind {
            Kind::Name(n) => Axis::new(n.as_str(), self.dim(e)?),
            Kind::Number(n) if *n >= 0.0 && n.fract() == 0.0 => Axis::new(n.abs().to_string(), self.dim(e)?),
            Kind::Decl(n, size) => Axis::new(n.as_str(), self.dim(size)?),
            _ => return Err(Error::new("expected an axis: `D`, `64`, or `E=D` for axis E of size D").at(e.span)),
        };
        self.enter(&axis).map_err(|x| x.at(e.span))?;
        Ok(axis)
    }
    /// Makes an axis known; one name has one size.
    fn enter(&mut self, axis: &Axis) -> Result<()> {
        if RESERVED.contains(&&*axis.name) {
            return Err(Error::new(format!("`{}` is a word of the language and cannot be an axis", axis.name)));
        }
        if let Some(have) = self.sizes.get(&axis.name) {
            if *have == axis.size {
                return Ok(());
            }
            return Err(Error::new(format!("axis `{}` has size {} here, but size {have} before", axis.name, axis.size))
                .hint("one name has one size in a function; give this axis another name"));
        }
        if self.dims.contains(&axis.name) && axis.size.as_sym() != Some(&axis.name) {
            return Err(Error::new(format!("axis `{}` has size {} here, but `{}` is a size of its own before", axis.name, axis.size, axis.name))
                .hint("one name has one size in a function; give this axis another name"));
        }
        self.dims.extend(axis.size.symbols());
        self.sizes.insert(axis.name.clone(), axis.size.clone());
        Ok(())
    }
    /// An axis that comes into being with size `size`: a bare new name takes that size.
    fn target(&mut self, e: &Expr, size: Dim) -> Result<Axis> {
        match &e.kind {
            Kind::Name(n) if !self.sizes.contains_key(n.as_str()) && !self.dims.contains(n.as_str()) => {
                let axis = Axis::new(n.as_str(), size);
                self.enter(&axis).map_err(|x| x.at(e.span))?;
                Ok(axis)
            }
            _ => self.declare(e),
        }
    }
    /// A name for a new axis that stands for the letter `c`: the letter in upper case, primed until free.
    fn free_axis(&self, base: &str, size: &Dim, taken: &dyn Fn(&str) -> bool) -> Name {
        let mut n = base.to_string();
        while taken(&n) || self.sizes.get(n.as_str()).map_or(self.dims.contains(n.as_str()), |d| d != size) {
            n.push('\'');
        }
        n.as_str().into()
    }
    /// An axis of `ty`: by name, by name in another case, or by position.
    fn find(ty: &Type, e: &Expr) -> Option<Axis> {
        match &e.kind {
            Kind::Name(n) => ty.axis(n).or_else(|| {
                let mut same = ty.axes.iter().filter(|a| a.name.eq_ignore_ascii_case(n));
                same.next().filter(|_| same.next().is_none())
            }),
            Kind::Number(n) => ty.axis(&n.to_string()).or_else(|| {
                let i = if *n < 0.0 { ty.axes.len() as f64 + n } else { *n };
                (n.fract() == 0.0 && i >= 0.0).then(|| ty.axes.get(i as usize)).flatten()
            }),
            _ => None,
        }
        .cloned()
    }
    fn axis_of(op: &str, ty: &Type, e: &Expr) -> Result<Axis> {
        let what = match &e.kind {
            Kind::Name(n) => format!("`{n}`"),
            Kind::Number(n) => n.to_string(),
            _ => return Err(Error::new(format!("{op}: expected the name of an axis")).at(e.span)),
        };
        Self::find(ty, e).ok_or_else(|| {
            let x = Error::new(format!("{op}: operand {ty} has no axis {what}")).at(e.span);
            match (&e.kind, ty.axes.len()) {
                (Kind::Number(_), n @ 1..) => x.hint(format!("positions are 0 to {}, or -1 for the last", n - 1)),
                _ => x,
            }
        })
    }
    fn axes_of(op: &str, ty: &Type, e: &Expr) -> Result<Vec<Name>> {
        match &e.kind {
            Kind::List(list) => list.iter().map(|e| Self::axis_of(op, ty, e).map(|a| a.name)).collect(),
            _ => Ok(vec![Self::axis_of(op, ty, e)?.name]),
        }
    }

    fn value(&mut self, e: &Expr) -> Result<Var> {
        let o = self.operand(e)?;
        self.materialize(o, self.float, e.span)
    }
    fn materialize(&mut self, o: Operand, dtype: DType, span: Span) -> Result<Var> {
        self.b.span = Some(span);
        let refuse = |what: String, hint: &str| Err(Error::new(format!("{what} stands beside a value of type {dtype}")).hint(hint).at(span));
        match (o, dtype) {
            (Operand::Value(v), _) => Ok(v),
            (Operand::Number(n), DType::I32) if n.fract() != 0.0 || n.abs() > f64::from(i32::MAX) => {
                refuse(format!("number {n}"), "`convert(…, f32)` makes the value a float")
            }
            (Operand::Number(n), DType::Bool) => refuse(format!("number {n}"), "truth values are combined with & | !"),
            (Operand::Size(d), DType::Bool) => refuse(format!("size {d}"), "truth values are combined with & | !"),
            (Operand::Number(n), _) => Ok(self.b.constant(n, dtype)),
            (Operand::Size(d), _) => self.b.size(d, dtype),
        }
    }
    fn operand(&mut self, e: &Expr) -> Result<Operand> {
        Ok(match &e.kind {
            Kind::Number(n) => Operand::Number(*n),
            Kind::Name(n) => match self.values.get(n) {
                Some(Some(v)) => Operand::Value(*v),
                Some(None) => return Err(Error::new(SILENT).at(e.span)),
                None if self.is_size(n) => Operand::Size(self.dim(e)?),
                None => return Err(self.unknown("value", n).at(e.span)),
            },
            Kind::Infix(op, l, r) => return self.infix(op, l, r, e.span),
            Kind::Prefix(op, x) => match (self.operand(x)?, *op) {
                (Operand::Number(n), "-") => Operand::Number(-n),
                (Operand::Size(d), "-") => Operand::Size(&Dim::fixed(-1) * &d),
                (o, op) => {
                    let v = self.materialize(o, self.float, x.span)?;
                    self.b.span = Some(e.span);
                    let prim = if op == "-" { Elementwise::Neg } else { Elementwise::Not };
                    Operand::Value(self.b.elementwise(prim, &[v]).map_err(|x| sign(x, prim, op))?)
                }
            },
            Kind::Call(name, args) => Operand::Value(self.call(name, args, e.span)?),
            Kind::Text(_) => return Err(Error::new("expected a value, found text").hint("only `contract` takes text, as its first argument").at(e.span)),
            Kind::List(_) => return Err(Error::new("expected a value, found a list of axes").at(e.span)),
            Kind::Arrow(..) => return Err(Error::new("expected a value, found `->`").at(e.span)),
            Kind::Decl(n, _) => return Err(Error::new(format!("expected a value, found the axis `{n}`")).at(e.span)),
        })
    }
    fn is_size(&self, n: &str) -> bool {
        self.sizes.contains_key(n) || self.dims.contains(n)
    }
    fn unknown(&self, what: &str, n: &str) -> Error {
        if self.later.contains(n) {
            return Error::new(format!("`{n}` is used before it is defined")).hint("a function is read from top to bottom");
        }
        let names = self.values.keys().map(String::as_str).chain(self.sizes.keys().chain(&self.dims).map(|s| &**s));
        suggest(Error::new(format!("no {what} `{n}`")), n, names)
    }
    /// Values of one element type: a number takes the type of what it stands beside.
    fn together(&mut self, exprs: &[&Expr]) -> Result<Vec<Var>> {
        let operands = exprs.iter().map(|e| self.operand(e)).collect::<Result<Vec<_>>>()?;
        self.align(operands, exprs)
    }
    fn align(&mut self, operands: Vec<Operand>, exprs: &[&Expr]) -> Result<Vec<Var>> {
        let dtype = operands.iter().find_map(|o| match o {
            Operand::Value(v) => Some(self.b.dtype(*v)),
            _ => None,
        });
        operands.into_iter().zip(exprs).map(|(o, e)| self.materialize(o, dtype.unwrap_or(self.float), e.span)).collect()
    }
    /// Numbers and sizes among themselves stay such, so that `J - I` is a size beside positions and beside floats.
    fn infix(&mut self, op: &'static str, l: &Expr, r: &Expr, span: Span) -> Result<Operand> {
        use Elementwise::*;
        let operands = (self.operand(l)?, self.operand(r)?);
        if let (Operand::Number(x), Operand::Number(y)) = operands {
            match op {
                "+" => return Ok(Operand::Number(x + y)),
                "-" => return Ok(Operand::Number(x - y)),
                "*" => return Ok(Operand::Number(x * y)),
                "/" => return Ok(Operand::Number(x / y)),
                _ => {}
            }
        }
        let size = |o: &Operand| match o {
            Operand::Size(d) => Some(d.clone()),
            Operand::Number(n) if n.fract() == 0.0 && n.abs() <= LARGEST as f64 => Some(Dim::fixed(*n as i64)),
            _ => None,
        };
        if let ("+" | "-" | "*", Some(a), Some(b)) = (op, size(&operands.0), size(&operands.1)) {
            let d = match op {
                "+" => &a + &b,
                "-" => &a - &b,
                _ => &a * &b,
            };
            return Self::moderate(d, span).map(Operand::Size);
        }
        let args = self.align(vec![operands.0, operands.1], &[l, r])?;
        let prim = match op {
            "+" => Add, "-" => Sub, "*" => Mul, "/" => Div, "<" => Lt, "<=" => Le, ">" => Gt, ">=" => Ge, "==" => Eq, "!=" => Ne,
            "&" => And, _ => Or,
        };
        let (a, b) = (self.b.ty(args[0]), self.b.ty(args[1]));
        if a.dtype != b.dtype {
            return Err(Error::new(format!("`{op}`: {} is {a}, but {} is {b}", noun(l, "left"), noun(r, "right")))
                .hint(format!("operands have one element type; `convert` one of them, as in `convert({}, {})`", excerpt(r), a.dtype))
                .at(span));
        }
        if a.dtype.is_float() && !a.covers(b) && !b.covers(a) {
            let only = |x: &Type, y: &Type| x.axes.iter().filter(|n| !y.has(&n.name)).map(|n| n.name.to_string()).collect::<Vec<_>>().join(",");
            let (x, y) = (excerpt(l), excerpt(r));
            return Err(Error::new(format!("`{op}`: axes {} only on the left ({a}), {} only on the right ({b})", only(a, b), only(b, a)))
                .hint(format!("`rename` one of them if they are the same axis, or write `{}({x}, {y})` if an outer product is meant", prim.name()))
                .at(span));
        }
        self.b.span = Some(span);
        self.b.elementwise(prim, &args).map(Operand::Value).map_err(|e| sign(e, prim, op))
    }

    fn call(&mut self, name: &str, args: &[Expr], span: Span) -> Result<Var> {
        self.call_unplaced(name, args, span).map_err(|e| e.at(span))
    }
    fn call_unplaced(&mut self, name: &str, args: &[Expr], span: Span) -> Result<Var> {
        if let Some(op) = Elementwise::ALL.iter().find(|e| e.name() == name) {
            return self.elementwise(*op, args, span);
        }
        match name {
            "contract" => self.contract(args, span),
            "rename" | "split" | "merge" | "permute" | "broadcast" | "slice" | "index" => self.movement(name, args, span),
            "concat" | "stack" => self.join(name, args, span),
            "reduce_sum" | "reduce_max" => {
                count(name, args, 2, &format!("{name}(x, axis) or {name}(x, [I,J])"))?;
                let x = self.value(&args[0])?;
                let axes = Self::axes_of(name, self.b.ty(x), &args[1])?;
                self.b.span = Some(span);
                self.b.push(Prim::Reduce(if name == "reduce_sum" { ReduceKind::Sum } else { ReduceKind::Max }, axes), &[x])
            }
            "stop_gradient" => {
                count(name, args, 1, "stop_gradient(x)")?;
                let x = self.value(&args[0])?;
                self.b.span = Some(span);
                self.b.stop_gradient(x)
            }
            "const" => {
                count(name, args, 2, "const(0.5, f32)")?;
                let Kind::Number(value) = args[0].kind else { return Err(Error::new("const: expected a number").at(args[0].span)) };
                let dtype = dtype(name, &args[1])?;
                self.b.span = Some(span);
                self.b.push(Prim::Constant(Literal { value, dtype }), &[])
            }
            "size" => {
                count(name, args, 2, "size(D, f32)")?;
                let (d, dtype) = (self.dim(&args[0])?, dtype(name, &args[1])?);
                self.b.span = Some(span);
                self.b.size(d, dtype)
            }
            "iota" => {
                count(name, args, 1, "iota(J)")?;
                let mut same = self.sizes.iter().filter(|(k, _)| matches!(&args[0].kind, Kind::Name(n) if k.eq_ignore_ascii_case(n)));
                let axis = match (&args[0].kind, same.next(), same.next()) {
                    (Kind::Name(n), Some((k, d)), None) if !self.is_size(n) => Axis::new(k.clone(), d.clone()),
                    _ => self.declare(&args[0])?,
                };
                self.b.span = Some(span);
                self.b.iota(axis)
            }
            "call" => {
                let usage = "call(function, result, operands…)";
                let [f, r, rest @ ..] = args else { return Err(Error::new("call: takes a function, one of its results, and operands").hint(usage)) };
                let (Kind::Name(f), Kind::Name(r)) = (&f.kind, &r.kind) else { return Err(Error::new("call: the function and its result are names").hint(usage)) };
                let callee = self.callee(f)?.ok_or_else(|| Error::new(format!("call: no function `{f}`")))?;
                let result = callee.results.iter().position(|p| *p.name == **r);
                let result = result.ok_or_else(|| Error::new(format!("call: `{f}` has no result `{r}`")).hint(format!("its results are {}", names(&callee.results))))?;
                self.apply(&callee, result, rest, span)
            }
            _ if nn::lookup(name).is_some() => self.composition(name, args, span),
            _ => match self.callee(name)? {
                Some(f) if f.results.len() == 1 => self.apply(&f, 0, args, span),
                Some(f) => Err(Error::new(format!("`{name}` has {} results", f.results.len())).hint(format!("take one: call({name}, {}, …)", names(&f.results).split(", ").next().unwrap_or("")))),
                None => self.composition(name, args, span),
            },
        }
    }
    /// The function called `name`, if the module has one.
    fn callee(&self, name: &str) -> Result<Option<Callee>> {
        match self.functions.borrow().get(name) {
            Some(Status::Parsed(f)) => Ok(Some(f.clone())),
            // It is below: this function's turn comes again.
            Some(Status::Waiting) => Err(Error::new(LATER)),
            Some(Status::Failed) => Err(Error::new(SILENT)),
            None => Ok(None),
        }
    }
    fn apply(&mut self, f: &Callee, result: usize, args: &[Expr], span: Span) -> Result<Var> {
        let mut vars = vec![];
        for (i, a) in args.iter().enumerate() {
            let o = self.operand(a)?;
            let dtype = f.params.get(i).map_or(self.float, |p| f.ty(p.var).dtype);
            vars.push(self.materialize(o, dtype, a.span)?);
        }
        self.b.span = Some(span);
        self.b.push(Prim::Call(Call { function: f.clone(), result }), &vars)
    }
    fn elementwise(&mut self, op: Elementwise, args: &[Expr], span: Span) -> Result<Var> {
        let name = op.name();
        if let Elementwise::Convert(_) = op {
            count(name, args, 2, "convert(x, f32)")?;
            let (x, to) = (self.value(&args[0])?, dtype(name, &args[1])?);
            self.b.span = Some(span);
            return self.b.elementwise(Elementwise::Convert(to), &[x]);
        }
        count(name, args, op.arity(), &format!("{name}({})", ["x", "a, b", "condition, a, b"][op.arity() - 1]))?;
        let vars = match (op, args) {
            (Elementwise::Select, [c, rest @ ..]) => {
                let c = self.value(c)?;
                [vec![c], self.together(&rest.iter().collect::<Vec<_>>())?].concat()
            }
            _ => self.together(&args.iter().collect::<Vec<_>>())?,
        };
        self.b.span = Some(span);
        self.b.elementwise(op, &vars)
    }
    fn movement(&mut self, name: &str, args: &[Expr], span: Span) -> Result<Var> {
        let usage = match name {
            "rename" => "rename(x, E -> D)",
            "split" => "split(x, H -> [G, R=H/G])",
            "merge" => "merge(x, [G,R] -> H)",
            "permute" => "permute(x, [B,I,H])",
            "broadcast" => "broadcast(x, [I,J])",
            "slice" => "slice(x, D -> P=D/2, start)",
            _ => "index(x, R, 0)",
        };
        count(name, args, if matches!(name, "slice" | "index") { 3 } else { 2 }, usage)?;
        let x = self.value(&args[0])?;
        let ty = self.b.ty(x).clone();
        let m = match name {
            "permute" => Movement::Permute(Self::axes_of(name, &ty, &args[1])?),
            "broadcast" => Movement::Broadcast(list(name, usage, &args[1])?.iter().map(|e| self.declare(e)).collect::<Result<_>>()?),
            "index" => Movement::Index { axis: Self::axis_of(name, &ty, &args[1])?.name, at: self.dim(&args[2])? },
            _ => {
                let (from, to) = arrow(name, usage, &args[1])?;
                match name {
                    "rename" => {
                        let from = Self::axis_of(name, &ty, from)?;
                        Movement::Rename { from: from.name, to: self.target(to, from.size)? }
                    }
                    "split" => {
                        let axis = Self::axis_of(name, &ty, from)?.name;
                        let into = list(name, usage, to)?.iter().map(|e| self.declare(e)).collect::<Result<Vec<_>>>()?;
                        Self::product(into.iter().map(|a| &a.size), to.span)?;
                        Movement::Split { axis, into }
                    }
                    "merge" => {
                        let axes = Self::axes_of(name, &ty, from)?;
                        let product = Self::product(axes.iter().filter_map(|n| ty.axis(n)).map(|a| &a.size), from.span)?;
                        Movement::Merge { axes, into: self.target(to, product)? }
                    }
                    _ => Movement::Slice { axis: Self::axis_of(name, &ty, from)?.name, to: self.declare(to)?, start: self.dim(&args[2])? },
                }
            }
        };
        self.b.span = Some(span);
        self.b.movement(m, &[x])
    }
    fn join(&mut self, name: &str, args: &[Expr], span: Span) -> Result<Var> {
        let usage = if name == "stack" { "stack(a, b, R)" } else { "concat(a, b, [P,Q] -> D)" };
        let Some((last, values)) = args.split_last().filter(|(_, v)| !v.is_empty()) else {
            return Err(Error::new(format!("{name}: takes at least 2 arguments, but {} given", args.len())).hint(usage));
        };
        let vars = self.together(&values.iter().collect::<Vec<_>>())?;
        let m = if name == "stack" {
            Movement::Stack(self.target(last, Dim::fixed(vars.len() as i64))?)
        } else {
            let (from, to) = arrow(name, usage, last)?;
            let each = list(name, usage, from)?;
            if each.len() != vars.len() {
                return Err(Error::new(format!("concat: {} axes named for {} operands", each.len(), vars.len())).hint(usage).at(from.span));
            }
            let axes: Vec<Axis> = each.iter().zip(&vars).map(|(e, v)| Self::axis_of(name, self.b.ty(*v), e)).collect::<Result<_>>()?;
            let total = axes.iter().try_fold(Dim::fixed(0), |n, a| Self::moderate(&n + &a.size, from.span))?;
            Movement::Concat { axes: axes.into_iter().map(|a| a.name).collect(), into: self.target(to, total)? }
        };
        self.b.span = Some(span);
        self.b.movement(m, &vars)
    }

    fn composition(&mut self, name: &str, args: &[Expr], span: Span) -> Result<Var> {
        let Some(c) = nn::lookup(name) else {
            if self.values.contains_key(name) {
                return Err(Error::new(format!("`{name}` is a value and cannot be called")).hint(format!("products are written with `*`: `{name} * (…)`")));
            }
            let known = Elementwise::ALL.iter().map(|e| e.name()).chain(nn::ALL.iter().map(|c| c.name)).chain(OTHERS);
            return Err(suggest(Error::new(format!("no function `{name}`")), name, known));
        };
        let mut out: Vec<nn::Arg> = vec![];
        for e in args {
            let a = self.composition_arg(e, &out)?;
            out.push(a);
        }
        let sizes = out.iter().flat_map(|a| match a {
            nn::Arg::Axis(a) => std::slice::from_ref(a),
            nn::Arg::Axes(a) => a,
            _ => &[],
        });
        Self::product(sizes.map(|a| &a.size), span)?;
        let before = self.b.function().vars.len();
        self.b.span = Some(span);
        let out = (c.build)(&mut self.b, &out)?;
        // Axes that the composition made are axes like others.
        let made: BTreeSet<Axis> = self.b.function().vars[before..].iter().flat_map(|v| v.ty.axes.iter().cloned()).collect();
        for a in made {
            self.enter(&a).map_err(|e| Error::new(format!("{name} makes an axis of its own: {}", e.message)).hint("give your axis of that name another name"))?;
        }
        Ok(out)
    }
    /// A number, an axis (of an earlier operand, or new), a list of axes, or a value.
    fn composition_arg(&mut self, e: &Expr, before: &[nn::Arg]) -> Result<nn::Arg> {
        let lookup = |s: &Scope, e: &Expr| {
            before.iter().find_map(|a| match a {
                nn::Arg::Value(v) => Self::find(s.b.ty(*v), e),
                _ => None,
            })
        };
        Ok(match &e.kind {
            Kind::Name(n) if !self.values.contains_key(n) => match lookup(self, e) {
                Some(a) => nn::Arg::Axis(a),
                None if self.is_size(n) => nn::Arg::Axis(self.declare(e)?),
                None => return Err(self.unknown("value or axis", n).at(e.span)),
            },
            Kind::Decl(..) => nn::Arg::Axis(self.declare(e)?),
            Kind::List(list) => {
                let each = list.iter().map(|e| lookup(self, e).map_or_else(|| self.declare(e), Ok));
                nn::Arg::Axes(each.collect::<Result<_>>()?)
            }
            _ => match self.operand(e)? {
                Operand::Number(n) => nn::Arg::Number(n),
                o => nn::Arg::Value(self.materialize(o, self.float, e.span)?),
            },
        })
    }

    /// `contract("bhid,bhjd->bhij", a, b)`, or as printed, `contract(a, b, [D])`.
    fn contract(&mut self, args: &[Expr], span: Span) -> Result<Var> {
        let [x, y, z] = args else {
            return Err(Error::new(format!("contract: takes 3 arguments, but {} given", args.len()))
                .hint("contract(\"id,jd->ij\", a, b) or contract(a, b, [D])"));
        };
        let Kind::Text(spec) = &x.kind else {
            let v = self.together(&[x, y])?;
            let (ta, tb) = (self.b.ty(v[0]), self.b.ty(v[1]));
            let mut both = ta.clone();
            both.axes.extend(tb.axes.iter().filter(|a| !ta.has(&a.name)).cloned());
            let sum = Self::axes_of("contract", &both, z)?;
            self.b.span = Some(span);
            return self.b.contract(v[0], v[1], &sum);
        };
        let v = self.together(&[y, z])?;
        let wrong = |m: String| Error::new(format!("contract: {m}")).at(x.span);
        let example = "one letter for each axis, as in \"id,jd->ij\"; a letter that is not in the result is summed";
        let Some((inputs, output)) = spec.split_once("->") else { return Err(wrong(format!("{spec:?} has no `->`")).hint(example)) };
        let operands: Vec<&str> = inputs.split(',').collect();
        let [la, lb] = operands.as_slice() else {
            return Err(wrong(format!("{inputs:?} has letters for {} operand{}, but there are 2", operands.len(), plural(operands.len()))).hint(example));
        };
        let letters = |s: &str| s.chars().filter(|c| !c.is_whitespace()).collect::<Vec<char>>();
        let (la, lb, lo) = (letters(la), letters(lb), letters(output));
        if let Some(c) = la.iter().chain(&lb).chain(&lo).find(|c| !c.is_ascii_alphabetic()) {
            return Err(wrong(format!("{c:?} in {spec:?} is not a letter")).hint(example));
        }
        let (a, mut b) = (v[0], v[1]);
        let (ta, tb) = (self.b.ty(a).clone(), self.b.ty(b).clone());
        let (left, right) = (noun(y, "left"), noun(z, "right"));
        for (letters, ty, who) in [(&la, &ta, &left), (&lb, &tb, &right)] {
            let text: String = letters.iter().collect();
            if letters.len() != ty.axes.len() {
                let n = letters.len();
                return Err(wrong(format!("{text:?} has {n} letter{}, but {who} is {ty}, with {} axes", plural(n), ty.axes.len())).hint(example));
            }
            if let Some((_, c)) = letters.iter().enumerate().find(|(i, c)| letters[..*i].contains(c)) {
                return Err(wrong(format!("letter `{c}` stands twice in {text:?}")).hint("the axes of one operand are different, so their letters are"));
            }
        }
        // The right operand's axes under the left's names where letters agree, under new ones where names clash.
        let mut target: Vec<Name> = vec![];
        for (i, (c, axis)) in lb.iter().zip(&tb.axes).enumerate() {
            let name = match la.iter().position(|x| x == c) {
                Some(k) if ta.axes[k].size == axis.size => ta.axes[k].name.clone(),
                Some(k) => {
                    let free = (*c..='z').chain('a'..='z').find(|f| ![&la, &lb, &lo].iter().any(|l| l.contains(f))).unwrap_or('?');
                    let text = |l: &[char]| l.iter().collect::<String>();
                    let other: String = lb.iter().enumerate().map(|(j, l)| if j == i { free } else { *l }).collect();
                    return Err(Error::new(format!("contract: dimension `{c}` is {} in {left} but {} in {right}", ta.axes[k].size, axis.size))
                        .hint(format!(
                            "the letters of one axis must have one size; {left} is {ta} and {right} is {tb}; did you mean \"{},{other}->{}\"?",
                            text(&la), text(&lo)
                        ))
                        .at(span));
                }
                None if !ta.has(&axis.name) && !target.contains(&axis.name) => axis.name.clone(),
                None => {
                    let used = |n: &str| ta.has(n) || tb.has(n) || target.iter().any(|t| **t == *n);
                    self.free_axis(&c.to_ascii_uppercase().to_string(), &axis.size, &used)
                }
            };
            target.push(name);
        }
        // Through names that are free, so that two axes may trade names.
        let moved: Vec<usize> = (0..target.len()).filter(|i| target[*i] != tb.axes[*i].name).collect();
        let clash = moved.iter().any(|i| tb.has(&target[*i]));
        self.b.span = Some(span);
        for through in if clash { &[true, false][..] } else { &[false] } {
            for &i in &moved {
                let now = self.b.ty(b).clone();
                let size = &tb.axes[i].size;
                let to = if *through {
                    self.free_axis(&format!("{}'", target[i]), size, &|n| ta.has(n) || now.has(n) || target.iter().any(|t| **t == *n))
                } else {
                    target[i].clone()
                };
                let to = Axis::new(to, size.clone());
                self.enter(&to)?;
                b = self.b.movement(Movement::Rename { from: now.axes[i].name.clone(), to }, &[b])?;
            }
        }
        let axis = |c: char| la.iter().position(|x| *x == c).map(|i| ta.axes[i].name.clone()).or_else(|| lb.iter().position(|x| *x == c).map(|i| target[i].clone()));
        let mut order = vec![];
        for (i, c) in lo.iter().enumerate() {
            if lo[..i].contains(c) {
                return Err(wrong(format!("letter `{c}` stands twice in the result")));
            }
            order.push(axis(*c).ok_or_else(|| wrong(format!("letter `{c}` of the result is in neither operand")))?);
        }
        let mut sum: Vec<Name> = vec![];
        for n in la.iter().chain(&lb).filter(|c| !lo.contains(c)).filter_map(|c| axis(*c)) {
            if !sum.contains(&n) {
                sum.push(n);
            }
        }
        let out = self.b.contract(a, b, &sum)?;
        self.b.permute(out, &order)
    }
}

/// Functions that are neither elementwise nor compositions.
const OTHERS: [&str; 16] = [
    "reduce_sum", "reduce_max", "contract", "stop_gradient", "const", "size", "iota", "rename", "split", "merge", "permute", "broadcast",
    "slice", "index", "concat", "stack",
];

fn plural(n: usize) -> &'static str {
    if n == 1 { "" } else { "s" }
}
fn count(name: &str, args: &[Expr], n: usize, usage: &str) -> Result<()> {
    if args.len() == n {
        return Ok(());
    }
    Err(Error::new(format!("{name}: takes {n} argument{}, but {} given", plural(n), args.len())).hint(usage))
}
fn dtype(name: &str, e: &Expr) -> Result<DType> {
    let known = "they are f64, f32, bf16, f16, i32 and bool";
    match &e.kind {
        Kind::Name(n) => DType::parse(n).ok_or_else(|| Error::new(format!("{name}: no element type `{n}`")).hint(known).at(e.span)),
        _ => Err(Error::new(format!("{name}: expected an element type")).hint(known).at(e.span)),
    }
}
fn arrow<'a>(name: &str, usage: &str, e: &'a Expr) -> Result<(&'a Expr, &'a Expr)> {
    match &e.kind {
        Kind::Arrow(a, b) => Ok((a, b)),
        _ => Err(Error::new(format!("{name}: expected `from -> to`")).hint(usage).at(e.span)),
    }
}
fn list<'a>(name: &str, usage: &str, e: &'a Expr) -> Result<&'a [Expr]> {
    match &e.kind {
        Kind::List(list) => Ok(list),
        _ => Err(Error::new(format!("{name}: expected a list of axes")).hint(usage).at(e.span)),
    }
}
/// An operand as an error message calls it.
fn noun(e: &Expr, side: &str) -> String {
    match &e.kind {
        Kind::Name(n) => n.clone(),
        _ => format!("the {side} operand"),
    }
}
/// An operand as a hint writes it.
fn excerpt(e: &Expr) -> String {
    match &e.kind {
        Kind::Name(n) => n.clone(),
        _ => "…".into(),
    }
}
/// An error of an operation that the person has written as a sign.
fn sign(mut e: Error, op: Elementwise, sign: &str) -> Error {
    if let Some(rest) = e.message.strip_prefix(&format!("{}: ", op.name())) {
        e.message = format!("`{sign}`: {rest}");
    }
    e
}

/// With the nearest known name as a hint, if one is near.
fn suggest<'a>(e: Error, name: &str, known: impl Iterator<Item = &'a str>) -> Error {
    let best = known.map(|k| (if k.eq_ignore_ascii_case(name) { 0 } else { distance(name, k) }, k.len().abs_diff(name.len()), k)).min();
    match best {
        Some((d, _, k)) if d == 0 || (d <= name.len().div_ceil(3) && d < name.len()) => e.hint(format!("did you mean `{k}`?")),
        _ => e,
    }
}

/// Edits between two names.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
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
