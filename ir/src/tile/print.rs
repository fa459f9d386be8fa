//! Block programs for people: one statement a line, names made unique with primes, small expressions nested.
//!
//! An operand with a streamed axis shows it, `k[j]`: the tile of this iteration. Behind `//` stand the axes of a statement's
//! value, and its element type if that is not the one in which the program computes. A view of a whole buffer is shown by the axes
//! that index it; any other, by its strides.

use super::{AxisId, Buffer, Constraint, LOWEST, Loop, Op, Program, Role, Stmt, ValueId, View};
use crate::dim::Dim;
use crate::prim::Elementwise;
use std::collections::HashSet;
use std::fmt;

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut s = Printer::new(self);
        s.program();
        f.write_str(&s.out)
    }
}

struct Printer<'a> {
    p: &'a Program,
    out: String,
    names: Vec<String>,
    axes: Vec<String>,
    /// The operation of values that are shown where they are used.
    nested: Vec<Option<&'a Op>>,
    indent: usize,
}

/// Most operations in an expression that is shown where it is used.
const NESTED: usize = 4;
/// Binding strengths of expressions.
const COMPARE: u8 = 0;
const SUM: u8 = 1;
const PRODUCT: u8 = 2;
const ATOM: u8 = 3;

/// `base`, with as many primes, or then a number, as make it new.
fn unique(base: &str, taken: &mut HashSet<String>) -> String {
    let tries = ["", "'", "''"].iter().map(|p| format!("{base}{p}")).chain((3..).map(|n| format!("{base}_{n}")));
    for name in tries {
        if taken.insert(name.clone()) {
            return name;
        }
    }
    base.to_string()
}

fn number(x: f64) -> String {
    if x == LOWEST || x == LOWEST as f32 as f64 {
        "lowest".into()
    } else if x.is_infinite() {
        if x > 0.0 { "inf".into() } else { "-inf".into() }
    } else {
        format!("{x:?}").trim_end_matches(".0").to_string()
    }
}

impl<'a> Printer<'a> {
    fn new(p: &'a Program) -> Printer<'a> {
        let mut uses = vec![0usize; p.values.len()];
        let mut ops: Vec<Option<&Op>> = vec![None; p.values.len()];
        let mut order = vec![];
        scan(&p.body, &mut |v, op| {
            if let (Some(slot), Some(op)) = (ops.get_mut(v.index()), op) {
                *slot = Some(op);
            }
            order.push(v);
        }, &mut |v| {
            if let Some(n) = uses.get_mut(v.index()) {
                *n += 1;
            }
        });
        // Operations in the expression of a nested value; 0 for values with a line of their own.
        let mut weight = vec![0usize; p.values.len()];
        let mut nested: Vec<Option<&Op>> = vec![None; p.values.len()];
        for v in &order {
            let (Some(info), Some(Some(op))) = (p.values.get(v.index()), ops.get(v.index())) else { continue };
            let inner = |x: &[ValueId]| 1 + x.iter().filter_map(|a| weight.get(a.index())).sum::<usize>();
            let (fits, w) = match op {
                Op::Const(_) => (true, 0),
                Op::Size(_) | Op::Position(_) => (info.name.is_none(), 0),
                Op::Map(_, x) => (info.name.is_none() && uses[v.index()] == 1 && inner(x) <= NESTED, inner(x)),
                _ => (false, 0),
            };
            if fits {
                weight[v.index()] = w;
                nested[v.index()] = Some(op);
            }
        }
        let mut taken = HashSet::new();
        let axes = p.axes.iter().map(|a| unique(&a.name, &mut taken)).collect();
        let mut taken = HashSet::new();
        let mut names = vec![String::new(); p.values.len()];
        for v in order {
            if let Some(info) = p.values.get(v.index()).filter(|_| nested[v.index()].is_none() && names[v.index()].is_empty()) {
                names[v.index()] = unique(info.name.as_deref().unwrap_or("t"), &mut taken);
            }
        }
        for (i, n) in names.iter_mut().enumerate().filter(|(_, n)| n.is_empty()) {
            *n = format!("%{i}");
        }
        Printer { p, out: String::new(), names, axes, nested, indent: 1 }
    }

    fn axis(&self, a: AxisId) -> &str {
        self.axes.get(a.index()).map_or("?", String::as_str)
    }
    fn axis_list(&self, axes: &[AxisId]) -> String {
        axes.iter().map(|a| self.axis(*a)).collect::<Vec<_>>().join(",")
    }
    fn line(&mut self, text: &str, note: &str) {
        let start = "  ".repeat(self.indent);
        let note = if note.is_empty() { String::new() } else { format!("{:1$}  // {note}", "", 46usize.saturating_sub(start.len() + text.chars().count())) };
        self.out.push_str(&format!("{start}{text}{note}\n"));
    }

    fn program(&mut self) {
        let p = self.p;
        let buffer = |b: &Buffer| {
            let shape: Vec<String> = b.shape.iter().map(Dim::to_string).collect();
            format!("{}: {}{}", b.name, b.dtype, if shape.is_empty() { String::new() } else { format!("[{}]", shape.join(",")) })
        };
        let of = |access| p.buffers.iter().filter(|b| b.access == access).map(buffer).collect::<Vec<_>>().join(", ");
        let (inputs, outputs) = (of(super::Access::Input), of(super::Access::Output));
        let roles = |want: &dyn Fn(Role) -> bool| {
            let shown = |(a, name): (&super::TileAxis, &String)| match a.role {
                Role::Grid | Role::Full(_) => format!("{name}: {}", a.size),
                Role::Block(n) | Role::Stream(n) => format!("{name}: {}/{n}", paren(&a.size)),
            };
            p.axes.iter().zip(&self.axes).filter(|(a, _)| want(a.role)).map(shown).collect::<Vec<_>>().join(", ")
        };
        let mut facts = format!("grid [{}]", roles(&|r| matches!(r, Role::Grid | Role::Block(_))));
        for (word, list) in [("stream", roles(&|r| matches!(r, Role::Stream(_)))), ("full", roles(&|r| matches!(r, Role::Full(_))))] {
            if !list.is_empty() {
                facts.push_str(&format!(" {word} [{list}]"));
            }
        }
        facts.push_str(&format!(" compute {}", p.compute));
        if p.operands != p.compute {
            facts.push_str(&format!(" operands {}", p.operands));
        }
        if let Some(l) = p.lanes {
            facts.push_str(&format!(" lanes {}", self.axis(l)));
        }
        self.out.push_str(&format!("tile {}({inputs}) -> ({outputs})\n  {facts} {{\n", p.name));
        self.body(&p.body);
        self.out.push_str("}\n");
    }

    fn body(&mut self, body: &'a [Stmt]) {
        for s in body {
            match s {
                Stmt::Let(v, op) => {
                    if self.nested.get(v.index()).is_none_or(|n| n.is_none()) {
                        let text = format!("{} = {}", self.name(*v), self.op(op, COMPARE).0);
                        let note = self.note(*v);
                        self.line(&text, &note);
                    }
                }
                Stmt::Store(view, v) => {
                    let text = format!("store {} = {}", self.view(view), self.value(*v, COMPARE));
                    self.line(&text, "");
                }
                Stmt::For(l) => self.repeat(l),
            }
        }
    }

    fn note(&self, v: ValueId) -> String {
        let Some(i) = self.p.values.get(v.index()) else { return String::new() };
        let dtype = if i.dtype == self.p.compute { String::new() } else { i.dtype.to_string() };
        format!("{dtype}[{}]", self.axis_list(&i.axes))
    }

    fn repeat(&mut self, l: &'a Loop) {
        let a = self.p.axes.get(l.axis.index());
        let mut head = format!("for {} in {}/{}", self.axis(l.axis), a.map_or("?".into(), |a| paren(&a.size)), a.map_or(0, super::TileAxis::extent));
        if !l.within.is_empty() {
            head.push_str(&format!(" where {}", self.constraints(&l.within)));
        }
        let carry: Vec<String> = l.carries.iter().map(|c| format!("{} = {}", self.name(c.inside), self.value(c.init, COMPARE))).collect();
        if !carry.is_empty() {
            head.push_str(&format!(" carry ({})", carry.join(", ")));
        }
        self.line(&format!("{head} {{"), "");
        self.indent += 1;
        self.body(&l.body);
        let list = |values: Vec<String>| values.join(", ");
        if !carry.is_empty() {
            let next = list(l.carries.iter().map(|c| self.value(c.next, COMPARE)).collect());
            self.line(&format!("yield {next}"), "");
        }
        self.indent -= 1;
        let after = list(l.carries.iter().map(|c| self.name(c.after).to_string()).collect());
        self.line(&if carry.is_empty() { "}".to_string() } else { format!("}} -> ({after})") }, "");
    }

    fn name(&self, v: ValueId) -> &str {
        self.names.get(v.index()).map_or("?", String::as_str)
    }

    /// An operand, in brackets if it binds less than `strength`.
    fn value(&self, v: ValueId, strength: u8) -> String {
        if let Some(Some(op)) = self.nested.get(v.index()) {
            return self.op(op, strength).0;
        }
        let streamed: Vec<AxisId> = match (self.p.values.get(v.index()), self.loaded(v)) {
            (Some(i), true) => i.axes.iter().copied().filter(|a| matches!(self.p.axes.get(a.index()).map(|a| a.role), Some(Role::Stream(_)))).collect(),
            _ => vec![],
        };
        if streamed.is_empty() { self.name(v).to_string() } else { format!("{}[{}]", self.name(v), self.axis_list(&streamed)) }
    }

    fn loaded(&self, v: ValueId) -> bool {
        fn find(body: &[Stmt], v: ValueId) -> bool {
            body.iter().any(|s| match s {
                Stmt::Let(x, Op::Load(_)) => *x == v,
                Stmt::For(l) => find(&l.body, v),
                _ => false,
            })
        }
        find(&self.p.body, v)
    }

    /// The operation, and its binding strength after brackets.
    fn op(&self, op: &Op, strength: u8) -> (String, u8) {
        let (text, own) = match op {
            Op::Const(x) => (number(*x), if *x < 0.0 && *x != LOWEST { SUM } else { ATOM }),
            Op::Size(d) => (format!("size({d})"), ATOM),
            Op::Position(a) => (format!("position({})", self.axis(*a)), ATOM),
            Op::Load(v) => (format!("load {}", self.view(v)), ATOM),
            Op::Map(e, args) => self.map(*e, args),
            Op::Reduce(k, x, over) => (format!("{} {} over {}", k.name(), self.value(*x, ATOM), self.axis_list(over)), ATOM),
            Op::Dot { init, terms, sum } => {
                let product = |v: &Vec<ValueId>| v.iter().map(|x| self.value(*x, PRODUCT)).collect::<Vec<_>>().join("*");
                let dot = |(a, b): &(ValueId, ValueId)| format!("dot {}, {}", self.value(*a, ATOM), self.value(*b, ATOM));
                let parts: Vec<String> = init.iter().map(product).chain(terms.iter().map(dot)).collect();
                (format!("{} over {}", parts.join(" + "), self.axis_list(sum)), SUM)
            }
            Op::Fill { value, fill, keep } => (format!("{} where {} else {}", self.value(*value, ATOM), self.constraints(keep), number(*fill)), COMPARE),
        };
        if own < strength { (format!("({text})"), ATOM) } else { (text, own) }
    }

    fn map(&self, e: Elementwise, args: &[ValueId]) -> (String, u8) {
        use Elementwise::{Add, Convert, Div, Eq, Ge, Gt, Le, Lt, Mul, Ne, Neg, Sub};
        let infix = match e {
            Add => Some(("+", SUM, SUM)),
            Sub => Some(("-", SUM, PRODUCT)),
            Mul => Some(("*", PRODUCT, PRODUCT)),
            Div => Some(("/", PRODUCT, ATOM)),
            Lt => Some(("<", COMPARE, SUM)),
            Le => Some(("<=", COMPARE, SUM)),
            Gt => Some((">", COMPARE, SUM)),
            Ge => Some((">=", COMPARE, SUM)),
            Eq => Some(("==", COMPARE, SUM)),
            Ne => Some(("!=", COMPARE, SUM)),
            _ => None,
        };
        match (infix, args, e) {
            (Some((sign, own, right)), [a, b], _) => {
                let left = if own == COMPARE { SUM } else { own };
                (format!("{} {sign} {}", self.value(*a, left), self.value(*b, right)), own)
            }
            (_, [a], Neg) => (format!("-{}", self.value(*a, ATOM)), SUM),
            (_, [a], Convert(to)) => (format!("{to}({})", self.value(*a, COMPARE)), ATOM),
            _ => (format!("{}({})", e.name(), args.iter().map(|a| self.value(*a, COMPARE)).collect::<Vec<_>>().join(", ")), ATOM),
        }
    }

    fn constraints(&self, all: &[Constraint]) -> String {
        all.iter().map(|c| self.constraint(c)).collect::<Vec<_>>().join(", ")
    }

    /// `j <= i + J-I`: positive terms on the right, negative ones on the left.
    fn constraint(&self, c: &Constraint) -> String {
        let (mut left, mut right): (Vec<String>, Vec<String>) = (vec![], vec![]);
        let positions = c.axes.iter().map(|(a, k)| (self.axis(*a).to_string(), *k));
        let scalars = c.scalars.iter().map(|(v, k)| (self.value(*v, ATOM), *k));
        for (name, k) in positions.chain(scalars).filter(|(_, k)| *k != 0) {
            let side = if k < 0 { &mut left } else { &mut right };
            side.push(if k.abs() == 1 { name } else { format!("{}*{name}", k.abs()) });
        }
        match c.constant.as_fixed() {
            Some(0) => {}
            Some(n) if n < 0 => left.push((-n).to_string()),
            _ => right.push(paren(&c.constant)),
        }
        let side = |v: Vec<String>| if v.is_empty() { "0".to_string() } else { v.join(" + ") };
        format!("{} <= {}", side(left), side(right))
    }

    /// `q[b,h,i,d]` where the view's axes index the buffer's dimensions; else offset and strides.
    fn view(&self, v: &View) -> String {
        let Some(b) = self.p.buffers.get(v.buffer.index()) else { return "?".into() };
        let mut rest: Vec<&(AxisId, Dim)> = v.strides.iter().collect();
        let mut index = vec![];
        for (i, n) in b.shape.iter().enumerate() {
            let step = b.shape[i + 1..].iter().fold(Dim::fixed(1), |n, s| &n * s);
            let size = |a: AxisId| self.p.axes.get(a.index()).map(|a| &a.size);
            match rest.iter().position(|(a, s)| *s == step && size(*a) == Some(n)) {
                Some(k) => index.push(self.axis(rest.remove(k).0).to_string()),
                None if n.is_one() => index.push("0".into()),
                None => break,
            }
        }
        if rest.is_empty() && index.len() == b.shape.len() && v.offset.is_zero() {
            return if index.is_empty() { b.name.to_string() } else { format!("{}[{}]", b.name, index.join(",")) };
        }
        let offset = (!v.offset.is_zero()).then(|| v.offset.to_string());
        let strided = v.strides.iter().map(|(a, s)| if s.is_one() { self.axis(*a).to_string() } else { format!("{}*{}", self.axis(*a), paren(s)) });
        format!("{}@({})", b.name, offset.into_iter().chain(strided).collect::<Vec<_>>().join(" + "))
    }
}

/// The size, in brackets if it is more than a name or a number.
fn paren(d: &Dim) -> String {
    let s = d.to_string();
    if s.chars().all(|c| c.is_alphanumeric() || c == '_') { s } else { format!("({s})") }
}

/// Calls `define` for every definition and `uses` for every use, in order.
fn scan<'a>(body: &'a [Stmt], define: &mut dyn FnMut(ValueId, Option<&'a Op>), uses: &mut dyn FnMut(ValueId)) {
    for s in body {
        match s {
            Stmt::Store(_, v) => uses(*v),
            Stmt::Let(v, op) => {
                match op {
                    Op::Const(_) | Op::Size(_) | Op::Position(_) | Op::Load(_) => {}
                    Op::Map(_, x) => x.iter().for_each(|v| uses(*v)),
                    Op::Reduce(_, x, _) => uses(*x),
                    Op::Dot { init, terms, .. } => {
                        init.iter().flatten().for_each(|v| uses(*v));
                        terms.iter().for_each(|(a, b)| {
                            uses(*a);
                            uses(*b);
                        });
                    }
                    Op::Fill { value, keep, .. } => {
                        uses(*value);
                        keep.iter().flat_map(|c| &c.scalars).for_each(|(v, _)| uses(*v));
                    }
                }
                define(*v, Some(op));
            }
            Stmt::For(l) => {
                l.carries.iter().for_each(|c| uses(c.init));
                l.within.iter().flat_map(|c| &c.scalars).for_each(|(v, _)| uses(*v));
                l.carries.iter().for_each(|c| define(c.inside, None));
                scan(&l.body, define, uses);
                l.carries.iter().for_each(|c| uses(c.next));
                l.carries.iter().for_each(|c| define(c.after, None));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::interp::example::attention;
    use super::*;

    #[test]
    fn attention_reads_like_the_paper() {
        let want = "\
tile attention(q: bf16[B,H,I,8], k: bf16[B,H,J,8], v: bf16[B,H,J,5]) -> (o: f32[B,H,I,5], lse: f32[B,H,I])
  grid [b: B, h: H, i: I/16] stream [j: J/12] full [d: 8, e: 5] compute f32 operands bf16 lanes i {
  q = load q[b,h,i,d]                           // [i,d]
  for j in J/12 where j <= i + (J-I) carry (m = lowest, l = 0, o = 0) {
    k = load k[b,h,j,d]                         // [j,d]
    s = dot q, k[j] over d                      // [i,j]
    s' = s where j <= i + (J-I) else -inf       // [i,j]
    t = reduce_max s' over j                    // [i]
    m' = max(m, t)                              // [i]
    corr = exp(m - m')                          // [i]
    p = exp(s' - m')                            // [i,j]
    t' = reduce_sum p over j                    // [i]
    l' = l * corr + t'                          // [i]
    v = load v[b,h,j,e]                         // [j,e]
    o' = o*corr + dot p, v[j] over j            // [i,e]
    yield m', l', o'
  } -> (m'', l'', o'')
  t'' = l'' > 0                                 // bool[i]
  t_3 = select(t'', l'', 1)                     // [i]
  store o[b,h,i,e] = o'' / t_3
  lse = select(t'', m'' + log(t_3), -inf)       // [i]
  store lse[b,h,i] = lse
}
";
        assert_eq!(attention().to_string(), want);
    }

    #[test]
    fn other_views_show_their_strides() {
        let mut p = attention();
        if let Stmt::Let(_, Op::Load(v)) = &mut p.body[0] {
            v.offset = Dim::fixed(3);
            v.strides.remove(1);
        }
        assert!(p.to_string().contains("q = load q@(3 + b*(8*H*I) + i*8 + d)"), "{p}");
    }
}
