//! Sizes of axes: exact algebra over dimension names.
//!
//! A [`Dim`] is a Laurent polynomial with rational coefficients over dimension names, kept canonical, so that equality is
//! equality of sizes: `G*(H/G)` *is* `H`. Names get their numbers when a program is specialised or launched; a size that
//! is then not a whole number (`H/G` with H = 5, G = 2) is an error that names the expression.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// An interned-enough name: of an axis, a dimension, a value or a function.
pub type Name = Arc<str>;

/// Numbers for dimension names.
pub type Bindings = BTreeMap<Name, i64>;

/// The size of an axis, or a stride: an exact expression over dimension names.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Dim(Vec<Term>);

/// One monomial: `num/den · Π name^power`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "Written")]
struct Term {
    powers: Vec<(Name, i32)>,
    num: i64,
    den: i64,
}

/// A term as a file has it, before it is believed.
#[derive(Deserialize)]
struct Written {
    powers: Vec<(Name, i32)>,
    num: i64,
    den: i64,
}

impl TryFrom<Written> for Term {
    type Error = String;
    fn try_from(w: Written) -> Result<Term, String> {
        if w.den < 1 { Err(format!("a size with denominator {}", w.den)) } else { Ok(Term { powers: w.powers, num: w.num, den: w.den }) }
    }
}

/// Why a [`Dim`] has no number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DimError {
    /// A name has no binding.
    Unbound(Name),
    /// The value is not a whole number.
    NotWhole(String),
    /// The value does not fit, or a divisor is zero.
    OutOfRange(String),
}

impl fmt::Display for DimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DimError::Unbound(n) => write!(f, "dimension `{n}` has no number"),
            DimError::NotWhole(d) => write!(f, "`{d}` is not a whole number"),
            DimError::OutOfRange(d) => write!(f, "`{d}` is out of range"),
        }
    }
}
impl std::error::Error for DimError {}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a.abs().max(1) } else { gcd(b, a % b) }
}

impl Dim {
    /// The constant `n`.
    pub fn fixed(n: i64) -> Dim {
        Dim(if n == 0 { vec![] } else { vec![Term { powers: vec![], num: n, den: 1 }] })
    }
    /// The size called `name`.
    pub fn sym(name: impl Into<Name>) -> Dim {
        Dim(vec![Term { powers: vec![(name.into(), 1)], num: 1, den: 1 }])
    }
    /// The number, if the expression holds no name.
    pub fn as_fixed(&self) -> Option<i64> {
        match self.0.as_slice() {
            [] => Some(0),
            [t] if t.powers.is_empty() && t.den == 1 => Some(t.num),
            _ => None,
        }
    }
    /// The name, if the expression is one bare name.
    pub fn as_sym(&self) -> Option<&Name> {
        match self.0.as_slice() {
            [t] if t.num == 1 && t.den == 1 && t.powers.len() == 1 && t.powers[0].1 == 1 => Some(&t.powers[0].0),
            _ => None,
        }
    }
    /// Whether this is the constant one.
    pub fn is_one(&self) -> bool {
        self.as_fixed() == Some(1)
    }
    /// Whether this is the constant zero.
    pub fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    fn from_terms(terms: impl IntoIterator<Item = Term>) -> Dim {
        let mut sum: BTreeMap<Vec<(Name, i32)>, (i64, i64)> = BTreeMap::new();
        for t in terms {
            let e = sum.entry(t.powers).or_insert((0, 1));
            let num = e.0.saturating_mul(t.den).saturating_add(t.num.saturating_mul(e.1));
            let den = e.1.saturating_mul(t.den);
            let g = gcd(num, den);
            *e = (num / g, den / g);
        }
        Dim(sum.into_iter().filter(|(_, c)| c.0 != 0).map(|(powers, (num, den))| Term { powers, num, den }).collect())
    }
    fn product(a: &Term, b: &Term) -> Term {
        let mut powers: BTreeMap<Name, i32> = a.powers.iter().cloned().collect();
        for (n, p) in &b.powers {
            *powers.entry(n.clone()).or_insert(0) += p;
        }
        let (num, den) = (a.num.saturating_mul(b.num), a.den.saturating_mul(b.den));
        let g = gcd(num, den) * den.signum();
        Term { powers: powers.into_iter().filter(|(_, p)| *p != 0).collect(), num: num / g, den: den / g }
    }
    /// `self / rhs`, exact; `None` unless `rhs` is one nonzero monomial.
    pub fn checked_div(&self, rhs: &Dim) -> Option<Dim> {
        let [t] = rhs.0.as_slice() else { return None };
        let inv = Term { powers: t.powers.iter().map(|(n, p)| (n.clone(), -p)).collect(), num: t.den * t.num.signum(), den: t.num.abs() };
        Some(Dim::from_terms(self.0.iter().map(|s| Dim::product(s, &inv))))
    }
    /// The monomials, in canonical order: numerator and denominator of the coefficient, names with their powers.
    pub fn monomials(&self) -> impl Iterator<Item = (i64, i64, &[(Name, i32)])> {
        self.0.iter().map(|t| (t.num, t.den, t.powers.as_slice()))
    }
    /// All names that occur, sorted, each once.
    pub fn symbols(&self) -> Vec<Name> {
        let mut v: Vec<Name> = self.0.iter().flat_map(|t| t.powers.iter().map(|(n, _)| n.clone())).collect();
        v.sort();
        v.dedup();
        v
    }
    /// Replaces each name that `f` knows.
    pub fn substitute(&self, f: &dyn Fn(&Name) -> Option<Dim>) -> Dim {
        let mut sum = Dim::fixed(0);
        for t in &self.0 {
            let mut m = Dim(vec![Term { powers: vec![], num: t.num, den: t.den }]);
            for (n, p) in &t.powers {
                let base = f(n).unwrap_or_else(|| Dim::sym(n.clone()));
                for _ in 0..p.unsigned_abs() {
                    // A negative power of a sum cannot be represented: keep the name, `eval` then reports it.
                    m = if *p > 0 { &m * &base } else { m.checked_div(&base).or_else(|| m.checked_div(&Dim::sym(n.clone()))).unwrap_or(m) };
                }
            }
            sum = &sum + &m;
        }
        sum
    }
    /// Replaces bound names by their numbers.
    pub fn bind(&self, b: &Bindings) -> Dim {
        self.substitute(&|n| b.get(n).map(|v| Dim::fixed(*v)))
    }
    /// The number under `b`.
    ///
    /// # Errors
    /// An unbound name, a value that is not whole, or one that does not fit.
    pub fn eval(&self, b: &Bindings) -> Result<i64, DimError> {
        let (mut num, mut den) = (0i128, 1i128);
        let range = || DimError::OutOfRange(self.to_string());
        for t in &self.0 {
            let (mut n, mut d) = (i128::from(t.num), i128::from(t.den));
            for (name, p) in &t.powers {
                let v = i128::from(*b.get(name).ok_or_else(|| DimError::Unbound(name.clone()))?);
                for _ in 0..p.unsigned_abs() {
                    if *p > 0 { n = n.checked_mul(v).ok_or_else(range)? } else { d = d.checked_mul(v).ok_or_else(range)? }
                }
            }
            if d == 0 {
                return Err(range());
            }
            num = num.checked_mul(d).and_then(|x| n.checked_mul(den).and_then(|y| x.checked_add(y))).ok_or_else(range)?;
            den = den.checked_mul(d).ok_or_else(range)?;
        }
        if num % den != 0 {
            return Err(DimError::NotWhole(self.to_string()));
        }
        i64::try_from(num / den).map_err(|_| range())
    }
}

impl std::ops::Add for &Dim {
    type Output = Dim;
    fn add(self, o: &Dim) -> Dim {
        Dim::from_terms(self.0.iter().chain(&o.0).cloned())
    }
}
impl std::ops::Sub for &Dim {
    type Output = Dim;
    fn sub(self, o: &Dim) -> Dim {
        self + &(&Dim::fixed(-1) * o)
    }
}
impl std::ops::Mul for &Dim {
    type Output = Dim;
    fn mul(self, o: &Dim) -> Dim {
        Dim::from_terms(self.0.iter().flat_map(|a| o.0.iter().map(|b| Dim::product(a, b))))
    }
}

impl fmt::Display for Dim {
    /// `H/G`, `2*I + 1`: a form that the text front end reads back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(f, "0");
        }
        for (i, t) in self.0.iter().rev().enumerate() {
            let n = if i > 0 {
                write!(f, "{}", if t.num < 0 { "-" } else { "+" })?;
                t.num.abs()
            } else {
                t.num
            };
            let mut first = true;
            if n != 1 || !t.powers.iter().any(|(_, p)| *p > 0) {
                write!(f, "{n}")?;
                first = false;
            }
            for (name, p) in &t.powers {
                for _ in 0..(*p).max(0) {
                    write!(f, "{}{name}", if first { "" } else { "*" })?;
                    first = false;
                }
            }
            for (name, p) in &t.powers {
                for _ in 0..(-*p).max(0) {
                    write!(f, "/{name}")?;
                }
            }
            if t.den != 1 {
                write!(f, "/{}", t.den)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_and_merge_cancel() {
        let (h, g) = (Dim::sym("H"), Dim::sym("G"));
        let r = h.checked_div(&g).unwrap();
        assert_eq!(&g * &r, h);
        assert_eq!(r.to_string(), "H/G");
        let b: Bindings = [("H".into(), 5), ("G".into(), 2)].into();
        assert_eq!(r.eval(&b), Err(DimError::NotWhole("H/G".into())));
        assert_eq!(r.bind(&[("H".into(), 6), ("G".into(), 2)].into()).as_fixed(), Some(3));
    }

    #[test]
    fn sums_print_and_evaluate() {
        let d = &(&Dim::sym("J") - &Dim::sym("I")) + &Dim::fixed(3);
        assert_eq!(d.eval(&[("I".into(), 4), ("J".into(), 10)].into()), Ok(9));
        assert_eq!(d.to_string(), "J-I+3");
    }
}
