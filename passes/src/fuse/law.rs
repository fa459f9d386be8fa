//! Scaling laws: what becomes of a value when a running maximum moves.
//!
//! | law | when the maximum m moves by Δ ≥ 0 | from |
//! |---|---|---|
//! | `Invariant` | unchanged | inputs, constants, complete statistics |
//! | `Shift(k)` | moves by k·Δ | the maximum itself; sums, differences and whole multiples of shifts |
//! | `Scale(k)` | is multiplied by exp(k·Δ) | exp of a shift; products and quotients of scales; sums of equal scales |
//! | `Opaque` | unknown | everything else |
//!
//! A sum over the streamed axis may run in the same pass as its maximum if its body scales with only negative k: then
//! `acc ← acc·exp(−|k|Δ) + Σ_tile body(m_new)` is exact and its factor never exceeds 1, so nothing overflows. The online softmax
//! (Milakov and Gimelshein 2018; Dao et al. 2022) is the case k = −1.

use ir::dim::Name;
use ir::graph::{Function, Var};
use ir::prim::{Elementwise, Prim};
use std::collections::{BTreeMap, HashMap};

/// Powers per running maximum; without zeros.
pub type Powers = BTreeMap<Var, i32>;

/// How a value follows the running maxima of its pass.
#[derive(Clone, PartialEq, Debug)]
pub enum Law {
    /// It does not.
    Invariant,
    /// By addition.
    Shift(Powers),
    /// By multiplication.
    Scale(Powers),
    /// Zero, whatever the maxima are.
    Zero,
    /// Unknown, because of this value's equation.
    Opaque(Var),
}

/// Laws of values with respect to the statistics `running`: maxima and sums that one pass carries.
pub struct Laws<'a> {
    f: &'a Function,
    definitions: Vec<Option<usize>>,
    /// The running statistics, `true` for maxima.
    pub running: HashMap<Var, bool>,
    /// The statistics are complete: what is asked is whether a value depends on which maximum they were shifted by. Then a sum without any term is
    /// as it is with any of them, and signs, quotients and logarithms of scales are known.
    pub complete: bool,
    /// Values that are read, not computed.
    stop: &'a dyn Fn(Var) -> bool,
    known: HashMap<Var, Law>,
}

fn combine(a: &Powers, b: &Powers, sign: i32) -> Powers {
    let mut p = a.clone();
    for (v, k) in b {
        *p.entry(*v).or_insert(0) += sign * k;
    }
    p.retain(|_, k| *k != 0);
    p
}

/// Whether one of the maxima has one of the axes `over`.
pub fn spread(f: &Function, powers: &Powers, over: &[Name]) -> bool {
    powers.keys().any(|m| over.iter().any(|n| f.ty(*m).has(n)))
}

/// `by` times a shift.
fn times(p: &Powers, by: Option<i32>) -> Law {
    let by = by.unwrap_or(1);
    Law::Shift(p.iter().map(|(v, k)| (*v, k * by)).filter(|(_, k)| *k != 0).collect())
}

impl<'a> Laws<'a> {
    /// No statistic yet.
    pub fn new(f: &'a Function, stop: &'a dyn Fn(Var) -> bool) -> Laws<'a> {
        Laws { f, definitions: f.definitions(), running: HashMap::new(), complete: false, stop, known: HashMap::new() }
    }
    /// Adds a running statistic.
    pub fn run(&mut self, v: Var, is_max: bool) {
        self.running.insert(v, is_max);
        self.known.clear();
    }
    /// The law of `v`.
    pub fn of(&mut self, v: Var) -> Law {
        if let Some(l) = self.known.get(&v) {
            return l.clone();
        }
        let l = match self.derive(v) {
            Law::Scale(p) | Law::Shift(p) if self.complete && p.is_empty() => Law::Invariant,
            l => l,
        };
        self.known.insert(v, l.clone());
        l
    }
    /// `v` as a whole number.
    fn whole(&self, v: Var) -> Option<i32> {
        match self.definitions[v.index()].map(|i| &self.f.eqns[i].op) {
            Some(Prim::Constant(c)) if c.value.fract() == 0.0 && c.value.abs() <= 64.0 => Some(c.value as i32),
            _ => None,
        }
    }
    /// `x`, if `v` is `x > 0`.
    fn positive(&self, v: Var) -> Option<Var> {
        let e = self.definitions[v.index()].map(|i| &self.f.eqns[i]).filter(|e| e.op == Prim::Elementwise(Elementwise::Gt))?;
        let zero = self.definitions[e.args[1].index()].is_some_and(|i| matches!(&self.f.eqns[i].op, Prim::Constant(c) if c.value == 0.0));
        zero.then_some(e.args[0])
    }
    fn derive(&mut self, v: Var) -> Law {
        match self.running.get(&v) {
            Some(true) => return Law::Shift([(v, 1)].into()),
            Some(false) => return Law::Opaque(v),
            None => {}
        }
        let Some(i) = self.definitions[v.index()] else { return Law::Invariant };
        if (self.stop)(v) {
            return Law::Invariant;
        }
        let e = &self.f.eqns[i];
        let (op, args) = (e.op.clone(), e.args.clone());
        let laws: Vec<Law> = args.iter().map(|a| self.of(*a)).collect();
        if let Some(o) = laws.iter().find(|l| matches!(l, Law::Opaque(_))) {
            return o.clone();
        }
        use Elementwise::*;
        use Law::*;
        let opaque = Opaque(v);
        // A maximum that has a summed axis moves each term by another factor.
        if let Prim::Reduce(_, over) | Prim::Contract(over) = &op {
            if laws.iter().any(|l| matches!(l, Scale(p) if spread(self.f, p, over))) {
                return opaque;
            }
        }
        if self.complete {
            match (&op, laws.as_slice()) {
                (Prim::Elementwise(Gt | Ge | Lt | Le | Eq | Ne), [Scale(_), Zero]) => return Invariant,
                // `select(l > 0, l, 1)`: where l has no term, no maximum was seen either.
                (Prim::Elementwise(Select), [Invariant, l @ Scale(_), Invariant]) if self.positive(args[0]) == Some(args[1]) => return l.clone(),
                (Prim::Elementwise(Log), [Scale(p)]) => return Shift(p.clone()),
                _ => {}
            }
        }
        match (&op, laws.as_slice()) {
            (Prim::Constant(c), _) if c.value == 0.0 => Zero,
            (Prim::StopGradient | Prim::Elementwise(Convert(_)), [l]) => l.clone(),
            (Prim::Movement(_), [l]) => l.clone(),
            (Prim::Elementwise(Neg), [Shift(p)]) => Shift(combine(&Powers::new(), p, -1)),
            (Prim::Elementwise(Neg), [l]) => l.clone(),
            (Prim::Elementwise(Exp), [Shift(p)]) => Scale(p.clone()),
            (Prim::Elementwise(Add | Sub), [a, Zero]) => a.clone(),
            (Prim::Elementwise(Add), [Zero, a]) => a.clone(),
            (Prim::Elementwise(Add), [Shift(a), Shift(b)]) => Shift(combine(a, b, 1)),
            (Prim::Elementwise(Sub), [Shift(a), Shift(b)]) => Shift(combine(a, b, -1)),
            (Prim::Elementwise(Add | Sub), [Shift(a), Invariant]) | (Prim::Elementwise(Add), [Invariant, Shift(a)]) => Shift(a.clone()),
            (Prim::Elementwise(Sub), [Invariant, Shift(a)]) => Shift(combine(&Powers::new(), a, -1)),
            (Prim::Elementwise(Add | Sub), [Scale(a), Scale(b)]) if a == b => Scale(a.clone()),
            (Prim::Elementwise(Mul) | Prim::Contract(_), [Zero, _] | [_, Zero]) => Zero,
            (Prim::Elementwise(Mul), [Shift(p), Invariant]) if self.whole(args[1]).is_some() => times(p, self.whole(args[1])),
            (Prim::Elementwise(Mul), [Invariant, Shift(p)]) if self.whole(args[0]).is_some() => times(p, self.whole(args[0])),
            (Prim::Elementwise(Div), [Zero, _]) => Zero,
            (Prim::Elementwise(Mul) | Prim::Contract(_), [Scale(a), Scale(b)]) => Scale(combine(a, b, 1)),
            (Prim::Elementwise(Mul) | Prim::Contract(_), [Scale(a), Invariant] | [Invariant, Scale(a)]) => Scale(a.clone()),
            (Prim::Elementwise(Div), [Scale(a), Scale(b)]) => Scale(combine(a, b, -1)),
            (Prim::Elementwise(Div), [Scale(a), Invariant]) => Scale(a.clone()),
            (Prim::Elementwise(Div), [Invariant, Scale(a)]) => Scale(combine(&Powers::new(), a, -1)),
            (Prim::Elementwise(Select), [Invariant | Zero, a, b]) => match (a, b) {
                (Zero, l) | (l, Zero) => l.clone(),
                (a, b) if a == b => a.clone(),
                _ => opaque,
            },
            (Prim::Reduce(ir::prim::ReduceKind::Sum, _), [l @ (Scale(_) | Zero)]) => l.clone(),
            (_, l) if l.iter().all(|l| matches!(l, Invariant | Zero)) => Invariant,
            _ => opaque,
        }
    }
}
