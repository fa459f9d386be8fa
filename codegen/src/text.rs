//! MLIR as text: fresh names, shared constants, and integer expressions that fold while they are written.
//!
//! Text parses in a few milliseconds for thousands of lines and takes every custom syntax, so emitters write text and the
//! parser and verifier of MLIR check it.

use ir::dim::{Dim, Name};
use ir::types::DType;
use std::collections::{BTreeMap, HashMap};
use std::fmt::{Display, Write};

/// The type of a value in registers: an element type, and vector lanes if it is a vector.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ty {
    /// Spelling of the element type: `f32`, `i1`, …
    pub elem: &'static str,
    /// Number of lanes; `None` for a scalar.
    pub lanes: Option<usize>,
}

impl Ty {
    /// The register type of values of `d`: truth values are `i1`.
    pub fn of(d: DType, lanes: Option<usize>) -> Ty {
        let elem = match d {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::I32 => "i32",
            DType::Bool => "i1",
        };
        Ty { elem, lanes }
    }
    /// The same lanes, other elements.
    pub fn with(self, elem: &'static str) -> Ty {
        Ty { elem, ..self }
    }
}

impl Display for Ty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.lanes {
            Some(n) => write!(f, "vector<{n}x{}>", self.elem),
            None => f.write_str(self.elem),
        }
    }
}

/// An `i64` expression: a number, or the name of a value.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Int {
    /// Known while writing.
    K(i64),
    /// Known when running.
    V(String),
}

impl From<usize> for Int {
    fn from(n: usize) -> Int {
        Int::K(n as i64)
    }
}

/// Text of one function under construction.
#[derive(Default)]
pub struct Text {
    head: String,
    body: String,
    next: usize,
    constants: HashMap<(Ty, u64), String>,
    folded: HashMap<String, String>,
}

impl Text {
    /// Nothing yet.
    pub fn new() -> Text {
        Text::default()
    }
    /// Nothing yet, with names from `%v` and a number above `n` on: for text around other text.
    pub fn above(n: usize) -> Text {
        Text { next: n, ..Text::default() }
    }
    /// A name not used before.
    pub fn fresh(&mut self) -> String {
        self.next += 1;
        format!("%v{}", self.next)
    }
    /// One line.
    pub fn line(&mut self, s: impl Display) {
        let _ = writeln!(self.body, "{s}");
    }
    /// One operation with one result.
    pub fn op(&mut self, rhs: impl Display) -> String {
        self.next += 1;
        let _ = writeln!(self.body, "%v{} = {rhs}", self.next);
        format!("%v{}", self.next)
    }
    /// An operation of the entry block: `rhs` may use only arguments and other such operations. Shared by spelling.
    pub fn entry(&mut self, rhs: String) -> String {
        if let Some(n) = self.folded.get(&rhs) {
            return n.clone();
        }
        let name = self.fresh();
        let _ = writeln!(self.head, "{name} = {rhs}");
        self.folded.insert(rhs, name.clone());
        name
    }
    /// Constants first, then the body.
    pub fn finish(self) -> String {
        self.head + &self.body
    }

    /// A run-time size, computed on entry: a sum of products of sizes over one divisor. `named` gives the size of a name, there too.
    pub fn size<E>(&mut self, d: &Dim, named: &dyn Fn(&mut Text, &Name) -> Result<Int, E>) -> Result<Int, E> {
        if let Some(k) = d.as_fixed() {
            return Ok(Int::K(k));
        }
        fn gcd(a: i64, b: i64) -> i64 {
            if b == 0 { a } else { gcd(b, a % b) }
        }
        let monomials: Vec<_> = d.monomials().collect();
        let below = monomials.iter().fold(1i64, |l, (_, d, _)| l / gcd(l, *d) * d);
        let mut divisors: BTreeMap<Name, i32> = BTreeMap::new();
        for (n, p) in monomials.iter().flat_map(|m| m.2).filter(|(_, p)| *p < 0) {
            let d = divisors.entry(n.clone()).or_default();
            *d = (*d).max(-p);
        }
        let product = |t: &mut Text, k: i64, powers: &BTreeMap<Name, i32>| -> Result<Int, E> {
            let mut x = Int::K(k);
            for (n, p) in powers {
                let v = named(t, n)?;
                for _ in 0..*p {
                    x = t.on_entry("muli", &x, &v);
                }
            }
            Ok(x)
        };
        let mut sum = Int::K(0);
        for (num, den, powers) in monomials {
            let mut powers: BTreeMap<Name, i32> = powers.iter().cloned().collect();
            divisors.iter().for_each(|(n, p)| *powers.entry(n.clone()).or_default() += p);
            let term = product(self, num * (below / den), &powers)?;
            sum = self.on_entry("addi", &sum, &term);
        }
        let by = product(self, below, &divisors)?;
        Ok(if by == Int::K(1) { sum } else { self.on_entry("divsi", &sum, &by) })
    }
    /// A sum, a product or a quotient of sizes, computed on entry.
    pub fn on_entry(&mut self, op: &str, a: &Int, b: &Int) -> Int {
        match (op, a, b) {
            ("muli", Int::K(1), x) | ("muli", x, Int::K(1)) | ("addi", Int::K(0), x) | ("addi", x, Int::K(0)) => return x.clone(),
            _ => {}
        }
        let (a, b) = (self.name(a), self.name(b));
        Int::V(self.entry(format!("arith.{op} {a}, {b} : i64")))
    }

    /// The number `v` in type `ty`.
    pub fn number(&mut self, ty: Ty, v: f64) -> String {
        match ty.elem {
            "f32" => self.constant(ty, u64::from((v as f32).to_bits()), format!("0x{:08X}", (v as f32).to_bits())),
            "f64" => self.constant(ty, v.to_bits(), format!("0x{:016X}", v.to_bits())),
            "i1" => self.constant(ty, u64::from(v != 0.0), (v != 0.0).to_string()),
            _ => self.integer(ty, v as i64),
        }
    }
    /// The whole number `v` in integer type `ty`.
    pub fn integer(&mut self, ty: Ty, v: i64) -> String {
        self.constant(ty, v as u64, v.to_string())
    }
    fn constant(&mut self, ty: Ty, bits: u64, spelled: String) -> String {
        if let Some(n) = self.constants.get(&(ty, bits)) {
            return n.clone();
        }
        let name = self.fresh();
        let _ = match ty.lanes {
            Some(_) => writeln!(self.head, "{name} = arith.constant dense<{spelled}> : {ty}"),
            // Truth values carry their type.
            None if ty.elem == "i1" => writeln!(self.head, "{name} = arith.constant {spelled}"),
            None => writeln!(self.head, "{name} = arith.constant {spelled} : {ty}"),
        };
        self.constants.insert((ty, bits), name.clone());
        name
    }
    /// The name of an `i64`.
    pub fn name(&mut self, i: &Int) -> String {
        match i {
            Int::K(k) => self.integer(Ty { elem: "i64", lanes: None }, *k),
            Int::V(n) => n.clone(),
        }
    }
    fn binary(&mut self, op: &str, a: &Int, b: &Int, fold: impl Fn(i64, i64) -> i64) -> Int {
        if let (Int::K(a), Int::K(b)) = (a, b) {
            return Int::K(fold(*a, *b));
        }
        let (a, b) = (self.name(a), self.name(b));
        Int::V(self.op(format_args!("arith.{op} {a}, {b} : i64")))
    }
    /// `a + b`
    pub fn add(&mut self, a: &Int, b: &Int) -> Int {
        match (a, b) {
            (Int::K(0), x) | (x, Int::K(0)) => x.clone(),
            _ => self.binary("addi", a, b, |a, b| a + b),
        }
    }
    /// `a − b`
    pub fn sub(&mut self, a: &Int, b: &Int) -> Int {
        match (a, b) {
            (x, Int::K(0)) => x.clone(),
            _ => self.binary("subi", a, b, |a, b| a - b),
        }
    }
    /// `a · b`
    pub fn mul(&mut self, a: &Int, b: &Int) -> Int {
        match (a, b) {
            (Int::K(0), _) | (_, Int::K(0)) => Int::K(0),
            (Int::K(1), x) | (x, Int::K(1)) => x.clone(),
            _ => self.binary("muli", a, b, |a, b| a * b),
        }
    }
    /// `min(a, b)`
    pub fn min(&mut self, a: &Int, b: &Int) -> Int {
        if a == b { a.clone() } else { self.binary("minsi", a, b, i64::min) }
    }
    /// `max(a, b)`
    pub fn max(&mut self, a: &Int, b: &Int) -> Int {
        if a == b { a.clone() } else { self.binary("maxsi", a, b, i64::max) }
    }
    /// `a / b`, both not negative, `b` not zero.
    pub fn div(&mut self, a: &Int, b: &Int) -> Int {
        if *b == Int::K(1) { a.clone() } else { self.binary("divsi", a, b, |a, b| a / b) }
    }
    /// `a mod b`, both not negative, `b` not zero.
    pub fn rem(&mut self, a: &Int, b: &Int) -> Int {
        if *b == Int::K(1) { Int::K(0) } else { self.binary("remsi", a, b, |a, b| a % b) }
    }
    /// The bits of `a` that `mask` has.
    pub fn bits(&mut self, a: &Int, mask: i64) -> Int {
        self.binary("andi", a, &Int::K(mask), |a, b| a & b)
    }
    /// `⌈a / k⌉` for `a` not negative.
    pub fn ceil_div(&mut self, a: &Int, k: &Int) -> Int {
        if *k == Int::K(1) {
            return a.clone();
        }
        let less = self.sub(k, &Int::K(1));
        let a = self.add(a, &less);
        self.div(&a, k)
    }
    /// A comparison as `i1`.
    pub fn compare(&mut self, predicate: &str, a: &Int, b: &Int) -> String {
        let (a, b) = (self.name(a), self.name(b));
        self.op(format_args!("arith.cmpi {predicate}, {a}, {b} : i64"))
    }
    /// An `i64` as `i32`.
    pub fn narrow(&mut self, a: &Int) -> String {
        match a {
            Int::K(k) => self.integer(Ty { elem: "i32", lanes: None }, *k),
            Int::V(n) => self.op(format_args!("arith.trunci {n} : i64 to i32")),
        }
    }
    /// A scalar in every lane; the scalar itself if `ty` has no lanes.
    pub fn splat(&mut self, x: &str, ty: Ty) -> String {
        match ty.lanes {
            None => x.to_string(),
            Some(_) => self.op(format_args!("vector.broadcast {x} : {} to {ty}", ty.elem)),
        }
    }
    /// The lane numbers 0, 1, … as `i32`.
    pub fn iota(&mut self, lanes: usize) -> String {
        let list: Vec<String> = (0..lanes).map(|i| i.to_string()).collect();
        self.entry(format!("arith.constant dense<[{}]> : vector<{lanes}xi32>", list.join(", ")))
    }
    /// The address `index` elements of type `elem` behind `p`.
    pub fn at(&mut self, p: &str, elem: &str, index: &Int) -> String {
        match index {
            Int::K(0) => p.to_string(),
            Int::K(k) => self.op(format_args!("llvm.getelementptr inbounds {p}[{k}] : (!llvm.ptr) -> !llvm.ptr, {elem}")),
            Int::V(i) => self.op(format_args!("llvm.getelementptr inbounds {p}[{i}] : (!llvm.ptr, i64) -> !llvm.ptr, {elem}")),
        }
    }
    /// `for i in from..to step` with values carried from one iteration to the next; gives the last ones.
    pub fn for_loop<E>(&mut self, from: &Int, to: &Int, step: i64, carried: &[(String, Ty)], body: impl FnOnce(&mut Text, Int, Vec<String>) -> Result<Vec<String>, E>) -> Result<Vec<String>, E> {
        if let (Int::K(a), Int::K(b)) = (from, to) {
            if a >= b {
                return Ok(carried.iter().map(|(v, _)| v.clone()).collect());
            }
            if a + step >= *b {
                return body(self, Int::K(*a), carried.iter().map(|(v, _)| v.clone()).collect());
            }
        }
        let (a, b, s) = (self.name(from), self.name(to), self.name(&Int::K(step)));
        let i = self.fresh();
        if carried.is_empty() {
            self.line(format_args!("scf.for {i} = {a} to {b} step {s} : i64 {{"));
            body(self, Int::V(i), vec![])?;
            self.line("}");
            return Ok(vec![]);
        }
        let r = self.fresh();
        let inside: Vec<String> = carried.iter().map(|_| self.fresh()).collect();
        let types: Vec<String> = carried.iter().map(|(_, t)| t.to_string()).collect();
        let types = types.join(", ");
        let starts: Vec<String> = inside.iter().zip(carried).map(|(n, (v, _))| format!("{n} = {v}")).collect();
        self.line(format_args!("{r}:{} = scf.for {i} = {a} to {b} step {s} iter_args({}) -> ({types}) : i64 {{", carried.len(), starts.join(", ")));
        let out = body(self, Int::V(i), inside)?;
        self.line(format_args!("scf.yield {} : {types}", out.join(", ")));
        self.line("}");
        Ok((0..carried.len()).map(|k| format!("{r}#{k}")).collect())
    }
    /// `if c { … }`
    pub fn when<E>(&mut self, c: &str, body: impl FnOnce(&mut Text) -> Result<(), E>) -> Result<(), E> {
        self.line(format_args!("scf.if {c} {{"));
        body(self)?;
        self.line("}");
        Ok(())
    }
}
