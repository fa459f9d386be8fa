//! What a block program must do at least: operations on valid elements, and every element of memory once.
//!
//! Loops with `within` are counted exactly: the blocks and tiles of the axes that constraints couple are enumerated, the other
//! axes are factors. A constraint with a loaded scalar is taken to hold, since its number is not known. A lane axis that stands whole
//! in a streamed tile is counted in parts, since machines cut it so.

use super::{AxisId, Constraint, Loop, Op, Program, Role, Stmt, View};
use crate::diagnostic::Error;
use crate::dim::{Bindings, Dim};
use crate::prim::Elementwise;
use std::collections::BTreeMap;

/// The cost of one launch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cost {
    /// Arithmetic: 2 per multiply-add of a dot, 1 per element of a map or of a reduction's operand.
    pub flops: u64,
    /// Elements of maps with `exp` and the like.
    pub special: u64,
    /// Bytes of all inputs that are read: compulsory traffic.
    pub bytes_read: u64,
    /// Bytes of all outputs that are written.
    pub bytes_written: u64,
}

impl Cost {
    /// Bytes read and written.
    pub fn bytes(&self) -> u64 {
        self.bytes_read.saturating_add(self.bytes_written)
    }
}

impl std::ops::Add for Cost {
    type Output = Cost;
    fn add(self, o: Cost) -> Cost {
        Cost {
            flops: self.flops.saturating_add(o.flops),
            special: self.special.saturating_add(o.special),
            bytes_read: self.bytes_read.saturating_add(o.bytes_read),
            bytes_written: self.bytes_written.saturating_add(o.bytes_written),
        }
    }
}

/// Counts `p` at the sizes `dims`.
///
/// # Errors
/// A size without a number.
pub fn cost(p: &Program, dims: &Bindings) -> Result<Cost, Error> {
    let p = p.bind(dims)?;
    let mut c = Count { p: &p, cost: Cost::default(), touched: vec![false; p.buffers.len()] };
    c.body(&p.body, &[]);
    let (mut cost, touched) = (c.cost, c.touched);
    for (b, _) in p.buffers.iter().zip(touched).filter(|(_, t)| *t) {
        let bytes = b.shape.iter().fold(b.dtype.bytes() as u64, |n, d| n.saturating_mul(number(d)));
        let slot = if b.access == super::Access::Input { &mut cost.bytes_read } else { &mut cost.bytes_written };
        *slot = slot.saturating_add(bytes);
    }
    Ok(cost)
}

/// A size of a bound program.
fn number(d: &Dim) -> u64 {
    d.as_fixed().unwrap_or(0).max(0) as u64
}

/// Whether an operation is more than a few instructions.
fn is_special(e: Elementwise) -> bool {
    use Elementwise::{Cos, Erf, Exp, Log, Logistic, Pow, Rsqrt, Sin, Sqrt, Tanh};
    matches!(e, Exp | Log | Sqrt | Rsqrt | Tanh | Logistic | Sin | Cos | Erf | Pow)
}

struct Count<'a> {
    p: &'a Program,
    cost: Cost,
    touched: Vec<bool>,
}

impl Count<'_> {
    fn body(&mut self, body: &[Stmt], loops: &[&Loop]) {
        // How many elements a value with some axes has in all visits of this body.
        let mut known: BTreeMap<Vec<AxisId>, u64> = BTreeMap::new();
        for s in body {
            let mut elements = |axes: &[AxisId]| {
                let mut key = axes.to_vec();
                key.sort();
                key.dedup();
                *known.entry(key).or_insert_with_key(|k| elements(self.p, loops, k))
            };
            match s {
                Stmt::For(l) => self.body(&l.body, &[loops, &[l]].concat()),
                Stmt::Store(v, _) => self.touch(v),
                Stmt::Let(v, op) => {
                    let axes = &self.p.value(*v).axes;
                    match op {
                        Op::Const(_) | Op::Size(_) | Op::Position(_) | Op::Fill { .. } => {}
                        Op::Load(view) => self.touch(view),
                        Op::Map(e, _) => {
                            let slot = if is_special(*e) { &mut self.cost.special } else { &mut self.cost.flops };
                            *slot = slot.saturating_add(elements(axes));
                        }
                        Op::Reduce(_, x, _) => self.cost.flops = self.cost.flops.saturating_add(elements(&self.p.value(*x).axes)),
                        Op::Dot { init, terms, sum } => {
                            let all: Vec<AxisId> = axes.iter().chain(sum).copied().collect();
                            let factors = init.iter().map(Vec::len).sum::<usize>() as u64;
                            let dots = elements(&all).saturating_mul(2 * terms.len() as u64);
                            let start = elements(axes).saturating_mul(factors);
                            self.cost.flops = self.cost.flops.saturating_add(dots).saturating_add(start);
                        }
                    }
                }
            }
        }
    }

    fn touch(&mut self, v: &View) {
        if let Some(t) = self.touched.get_mut(v.buffer.index()) {
            *t = true;
        }
    }
}

/// Elements of a tile with `axes`, summed over all instances and all visits inside `loops`.
fn elements(p: &Program, loops: &[&Loop], axes: &[AxisId]) -> u64 {
    // Parts of a lane axis that is there whole: about what a machine has in registers at once.
    const PART: u64 = 48;
    let within: Vec<&Constraint> = loops.iter().flat_map(|l| &l.within).filter(|c| c.scalars.is_empty()).collect();
    let coupled = |a: AxisId| within.iter().any(|c| c.axes.iter().any(|(x, _)| *x == a));
    let mut product = 1u64;
    let mut walk = vec![];
    for (i, a) in p.axes.iter().enumerate() {
        let id = AxisId(i as u32);
        let (size, has, tile) = (number(&a.size), axes.contains(&id), a.extent().max(1) as u64);
        if matches!(a.role, Role::Full(_)) && p.lanes == Some(id) && coupled(id) && has {
            walk.push((id, size, PART, true));
            continue;
        }
        let active = match a.role {
            Role::Grid | Role::Block(_) => true,
            Role::Stream(_) => loops.iter().any(|l| l.axis == id),
            Role::Full(_) => false,
        };
        if active && coupled(id) {
            walk.push((id, size, tile, has));
        } else if has {
            product = product.saturating_mul(size);
        } else if active {
            product = product.saturating_mul(size.div_ceil(tile));
        }
    }
    if product == 0 {
        return 0;
    }
    // The range of each constraint over the axes walked so far; a full axis is walked over at once.
    let ranges: Vec<i64> = within
        .iter()
        .map(|c| {
            let full = c.axes.iter().filter(|(a, _)| matches!(p.axis(*a).role, Role::Full(_)) && !walk.iter().any(|w| w.0 == *a));
            c.constant.as_fixed().unwrap_or(0) + full.map(|(a, k)| (k * (p.axis(*a).extent() as i64 - 1)).max(0)).sum::<i64>()
        })
        .collect();
    product.saturating_mul(visit(&walk, &within, &ranges))
}

/// Summed products of extents over the combinations of blocks in which every constraint may hold.
fn visit(walk: &[(AxisId, u64, u64, bool)], within: &[&Constraint], most: &[i64]) -> u64 {
    let Some(((axis, size, tile, has), rest)) = walk.split_first() else {
        return u64::from(most.iter().all(|m| *m >= 0));
    };
    let mut sum = 0u64;
    let mut at = 0;
    while at < *size {
        let extent = (*tile).min(size - at);
        let next: Vec<i64> = within
            .iter()
            .zip(most)
            .map(|(c, m)| {
                let ends = c.axes.iter().filter(|(a, _)| a == axis).map(|(_, k)| k * at as i64 + (k * (extent as i64 - 1)).max(0));
                m + ends.sum::<i64>()
            })
            .collect();
        sum = sum.saturating_add(visit(rest, within, &next).saturating_mul(if *has { extent } else { 1 }));
        at += tile;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::super::interp::example::attention;
    use super::*;

    #[test]
    fn visited_tiles_are_counted() {
        let dims: Bindings = [("B", 2), ("H", 3), ("I", 40), ("J", 24)].map(|(n, v)| (n.into(), v)).into();
        let whole = |p: &mut Program| {
            for s in &mut p.body {
                if let Stmt::For(l) = s {
                    l.within.clear();
                }
            }
        };
        let (causal, mut all) = (attention(), attention());
        whole(&mut all);
        // i has blocks of 16, 16, 8; j tiles of 12, 12. Visible: j <= i − 16.
        // Blocks 0..16: last i − 16 = −1: none. 16..32: up to 15: both tiles. 32..40: both.
        let scores = |visited: u64| 2 * 3 * visited;
        let (c, a) = (cost(&causal, &dims).unwrap(), cost(&all, &dims).unwrap());
        let (some, every) = (scores(24 * 24), scores(40 * 24));
        // Per score: 2·(8 + 5) in dots, reduce_max, s − m, reduce_sum; per row and tile: max, sub, mul, add and o·corr of 5 + 5.
        let per_tile = |rows: u64| scores(rows * 2) * (4 + 10);
        let after = scores(40) * (1 + 1 + 5 + 1 + 1);
        assert_eq!(c.flops, some * 29 + per_tile(24) + after);
        assert_eq!(a.flops, every * 29 + per_tile(40) + after);
        assert_eq!(c.special, some + scores(24 * 2) + scores(40));
        assert_eq!((c.bytes_read, c.bytes_written), (6 * 2 * (40 * 8 + 24 * 13), 6 * 4 * 40 * 6));
        assert_eq!(c.bytes(), a.bytes());
        assert!(cost(&causal, &Bindings::new()).is_err());
    }
}
