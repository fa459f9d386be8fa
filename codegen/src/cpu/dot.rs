//! Dots: `rows × vectors` accumulators stay in registers while the summed axes run.
//!
//! Every term has one operand with lanes, read as vectors, and one without, read as scalars with any strides, so that no
//! operand is ever packed or transposed, except for a sum over the lane axis itself: its vectors lie along another axis. Several terms share the accumulators and the loop; the initial products are what
//! the accumulators start from. The last group of rows may reach into the padding of the result.

use super::nest::Known;
use super::plan::{Dot, Nest, V};
use super::Emit;
use crate::Error;
use crate::scalar;
use crate::text::{Int, Ty};
use ir::prim::Elementwise;
use ir::tile::AxisId;
use ir::types::DType;
use std::collections::{BTreeMap, BTreeSet};

/// Steps of a sum in an iteration of its loop.
const STEPS: usize = 4;

/// Rows and vectors of an accumulator tile, and where it stands.
struct Tile<'a> {
    dot: &'a Dot,
    out: V,
    rows: usize,
    vectors: usize,
    /// Offset along the lanes.
    lane: Int,
    ty: Ty,
}

impl Emit<'_> {
    pub(super) fn dot(&mut self, d: &Dot, out: V) -> Result<(), Error> {
        let outer: Vec<AxisId> = self.plan.values[out].axes.iter().copied().filter(|a| *a != d.vec && Some(*a) != d.rows).collect();
        self.dot_outer(d, out, &outer, &mut vec![])
    }

    fn dot_outer(&mut self, d: &Dot, out: V, outer: &[AxisId], index: &mut Vec<(AxisId, Int)>) -> Result<(), Error> {
        if let Some((&a, rest)) = outer.split_first() {
            let n = self.axes[a.index()].valid.clone();
            return self.looped(&Int::K(0), &n, 1, |e, i| {
                index.push((a, i));
                let r = e.dot_outer(d, out, rest, index);
                index.pop();
                r
            });
        }
        let plan = self.plan;
        let vl = plan.vl;
        let ty = Ty::of(plan.values[out].dtype, Some(vl));
        let laned = plan.lanes == Some(d.vec);
        let chunks = plan.extent(d.vec).div_ceil(vl);
        let (rows, count) = match d.rows {
            Some(a) => (plan.rows(a), self.axes[a.index()].valid.clone()),
            None => (1, Int::K(1)),
        };
        // Panels are as wide as the tile of registers; of another axis, tiles of which none is left over where that is possible.
        let most = plan.micro.vectors.min(chunks);
        let v = if laned { most } else { (2..=most).rev().find(|v| chunks.is_multiple_of(*v)).unwrap_or(most) };
        let main = chunks / v * v;
        let at = index.clone();
        let fetch = if laned && index.is_empty() { self.coming_of(d, rows)? } else { vec![] };
        let range = |e: &mut Self, from: &Int, to: &Int, vectors: usize| {
            e.looped(from, to, (vectors * vl) as i64, |e, lane| {
                let tile = Tile { dot: d, out, rows, vectors, lane, ty };
                e.looped(&Int::K(0), &count, rows as i64, |e, i| {
                    if vectors > 1 {
                        fetch.iter().try_for_each(|f| e.fetch(f, &i))?;
                    }
                    e.dot_tile(&tile, &at, &i)
                })
            })
        };
        let whole = |e: &mut Self| {
            range(e, &Int::K(0), &Int::from(main * vl), v)?;
            range(e, &Int::from(main * vl), &Int::from(chunks * vl), 1)
        };
        // A panel of which less exists is done vector by vector: a narrow tile costs little, vectors that nobody looks at cost all.
        if v == 1 || !laned {
            return whole(self);
        }
        let exist = self.lanes_in_use(d.vec);
        if matches!(exist, Int::K(_)) {
            return whole(self);
        }
        let full = self.t.compare("sgt", &exist, &Int::from((chunks - 1) * vl));
        self.t.line(format_args!("scf.if {full} {{"));
        whole(self)?;
        self.t.line("} else {");
        range(self, &Int::K(0), &exist, 1)?;
        self.t.line("}");
        Ok(())
    }

    fn dot_tile(&mut self, tile: &Tile, outer: &[(AxisId, Int)], first: &Int) -> Result<(), Error> {
        let plan = self.plan;
        let d = tile.dot;
        let mut at = outer.to_vec();
        at.extend(d.rows.map(|a| (a, first.clone())));
        let accs = self.dot_start(tile, outer, first)?;
        // Where the operands of each term stand for the first of these rows.
        let mut starts = vec![];
        for (a, b) in &d.terms {
            starts.push((self.slot(*a, &at, &Int::K(0))?, self.slot(*b, &at, &tile.lane)?));
        }
        let carried = accs.into_iter().map(|a| (a, tile.ty)).collect();
        let sum: Vec<AxisId> = d.sum.iter().copied().filter(|a| self.axes[a.index()].valid != Int::K(1)).collect();
        let accs = self.dot_sum(tile, &sum, starts, carried)?;
        let pitch = d.rows.and_then(|a| plan.stride(tile.out, a)).unwrap_or(0);
        let p = self.slot(tile.out, &at, &tile.lane)?;
        for i in 0..tile.rows {
            for j in 0..tile.vectors {
                let q = self.t.at(&p, tile.ty.elem, &Int::from(i * pitch + j * plan.vl));
                self.put(&accs[i * tile.vectors + j], &q, plan.values[tile.out].dtype, Some(plan.vl));
            }
        }
        Ok(())
    }

    /// What the accumulators start from.
    fn dot_start(&mut self, tile: &Tile, outer: &[(AxisId, Int)], first: &Int) -> Result<Vec<String>, Error> {
        let plan = self.plan;
        let dtype = plan.values[tile.out].dtype;
        let nest = Nest { items: vec![], domain: BTreeSet::new(), reduced: None, vec: Some(tile.dot.vec), ahead: BTreeMap::new() };
        let mut shared = Known::at(outer.to_vec(), (0..tile.vectors).map(|j| self.t.add(&tile.lane, &Int::from(j * plan.vl))).collect());
        let mut accs = vec![];
        for i in 0..tile.rows {
            let mut index = outer.to_vec();
            if let Some(a) = tile.dot.rows {
                let row = self.t.add(first, &Int::from(i));
                index.push((a, row));
            }
            let mut mine = shared.moved(index);
            for j in 0..tile.vectors {
                let mut acc: Option<String> = None;
                for product in &tile.dot.init {
                    let mut x: Option<String> = None;
                    let last = product.len().saturating_sub(1);
                    for (k, v) in product.iter().enumerate() {
                        let along = tile.dot.rows.is_some_and(|a| plan.has(*v, a));
                        let f = self.operand(&nest, if along { &mut mine } else { &mut shared }, *v, j)?;
                        let f = scalar::convert(&mut self.t, Some(plan.vl), plan.values[*v].dtype, dtype, &f);
                        x = Some(match (x, &acc) {
                            (None, _) => f,
                            (Some(x), Some(a)) if k == last => {
                                acc = Some(scalar::fma(&mut self.t, tile.ty, &x, &f, &a.clone()));
                                String::new()
                            }
                            (Some(x), _) => scalar::emit(&mut self.t, Elementwise::Mul, Some(plan.vl), &[dtype, dtype], &[x, f])?,
                        });
                    }
                    let x = match x {
                        Some(x) if x.is_empty() => continue,
                        Some(x) => x,
                        None => self.t.number(tile.ty, 1.0),
                    };
                    acc = Some(match acc {
                        None => x,
                        Some(a) => scalar::emit(&mut self.t, Elementwise::Add, Some(plan.vl), &[dtype, dtype], &[a, x])?,
                    });
                }
                accs.push(match acc {
                    Some(a) => a,
                    None => self.t.number(tile.ty, 0.0),
                });
            }
        }
        Ok(accs)
    }

    fn dot_sum(&mut self, tile: &Tile, sum: &[AxisId], starts: Vec<(String, String)>, accs: Vec<(String, Ty)>) -> Result<Vec<String>, Error> {
        let Some((&a, rest)) = sum.split_first() else {
            let accs = accs.into_iter().map(|(v, _)| v).collect();
            return self.dot_step(tile, &starts, accs);
        };
        let n = self.axes[a.index()].valid.clone();
        // Where operands stand `steps` behind them along the axis.
        let along = |e: &mut Self, starts: &[(String, String)], steps: &Int| -> Vec<(String, String)> {
            let mut here = vec![];
            for ((x, y), (p, q)) in tile.dot.terms.iter().zip(starts) {
                let mut step = |v: V, p: &str| {
                    let s = e.plan.stride(v, a).unwrap_or(0);
                    let o = e.t.mul(steps, &Int::from(s));
                    e.t.at(p, tile.ty.elem, &o)
                };
                here.push((step(*x, p), step(*y, q)));
            }
            here
        };
        // The innermost loop does several steps at a time: its end is then foreseen, and less of it is counting. The order of the sum stays.
        let several = if rest.is_empty() && tile.vectors > 1 && self.plan.extent(a) >= 4 * STEPS { STEPS as i64 } else { 1 };
        let main = self.t.div(&n, &Int::K(several));
        let main = self.t.mul(&main, &Int::K(several));
        let mut accs = accs;
        for (from, to, steps) in [(Int::K(0), main.clone(), several), (main, n, 1)] {
            if from == to {
                continue;
            }
            let out = self.carrying(&from, &to, steps, accs, |e, k, mut inside| {
                let here = along(e, &starts, &k);
                for s in 0..steps {
                    let here = along(e, &here, &Int::K(s));
                    inside = e.dot_sum(tile, rest, here, inside.into_iter().map(|v| (v, tile.ty)).collect())?;
                }
                Ok(inside)
            })?;
            accs = out.into_iter().map(|v| (v, tile.ty)).collect();
        }
        Ok(accs.into_iter().map(|(v, _)| v).collect())
    }

    /// One step of the sum of every term.
    fn dot_step(&mut self, tile: &Tile, starts: &[(String, String)], mut accs: Vec<String>) -> Result<Vec<String>, Error> {
        let plan = self.plan;
        let elem = tile.ty.elem;
        let dtype: DType = plan.values[tile.out].dtype;
        for ((x, y), (p, q)) in tile.dot.terms.iter().zip(starts) {
            let pitch = |v: V| tile.dot.rows.and_then(|a| plan.stride(v, a));
            let mut panel: Vec<String> = vec![];
            let mut factor = String::new();
            for i in 0..tile.rows {
                if i == 0 || pitch(*y).is_some() {
                    panel.clear();
                    for j in 0..tile.vectors {
                        let at = self.t.at(q, elem, &Int::from(i * pitch(*y).unwrap_or(0) + j * plan.vl));
                        panel.push(self.get(&at, dtype, Some(plan.vl)));
                    }
                }
                if i == 0 || pitch(*x).is_some() {
                    let at = self.t.at(p, elem, &Int::from(i * pitch(*x).unwrap_or(0)));
                    let s = self.get(&at, dtype, None);
                    factor = self.t.splat(&s, tile.ty);
                }
                for (j, b) in panel.iter().enumerate() {
                    let acc = &mut accs[i * tile.vectors + j];
                    *acc = scalar::fma(&mut self.t, tile.ty, &factor, b, acc);
                }
            }
        }
        Ok(accs)
    }
}
