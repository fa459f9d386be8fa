//! The loop along a row that is longer than a few vectors, and what makes it as fast as memory: whole lines are stored past the caches
//! where the caches would not keep them, and the next row is fetched while one is computed.

use super::super::plan::{Nest, Node, V};
use super::{Chunk, Emit, Known, Level};
use crate::Error;
use crate::text::{Int, Ty};
use ir::tile::View;

impl Emit<'_> {
    /// The loop over vectors: `head` elements, then whole vectors, first several per iteration, then the rest.
    pub(super) fn vectors(&mut self, n: &Nest, rest: &[Level], known: &Known, mut accs: Vec<String>, types: &[Ty], head: &Int) -> Result<Vec<String>, Error> {
        let Some(a) = n.vec else { return Err(Error::Internal("a loop over vectors without an axis".into())) };
        let vl = self.plan.vl as i64;
        let u = self.unroll(n) as i64;
        let valid = self.axes[a.index()].valid.clone();
        let body = self.t.sub(&valid, head);
        let multiple = |e: &mut Self, k: i64| {
            let n = e.t.div(&body, &Int::K(k));
            let n = e.t.mul(&n, &Int::K(k));
            e.t.add(head, &n)
        };
        let (whole, main) = (multiple(self, vl), multiple(self, u * vl));
        let left = self.t.sub(&valid, &whole);
        let width = if types.is_empty() { 1 } else { accs.len() / Self::reductions(n).count() };
        let ranges = [
            (Int::K(0), head.clone(), 1, Some(head.clone())),
            (head.clone(), main.clone(), u, None),
            (main, whole.clone(), 1, None),
            (whole, valid, 1, Some(left)),
        ];
        for (from, to, chunks, count) in ranges {
            if from == to || (u == 1 && chunks == 1 && count.is_none() && from != *head) {
                continue;
            }
            // Where one vector is done at a time, only the first accumulator of each reduction takes part.
            let part: Vec<usize> = (0..accs.len()).filter(|k| chunks > 1 || k % width == 0).collect();
            let carried = part.iter().map(|k| (accs[*k].clone(), types[*k])).collect();
            let out = self.carrying(&from, &to, chunks * vl, carried, |e, i, inside| {
                let mut known = known.clone();
                let mut strip = vec![];
                for j in 0..chunks {
                    let offset = e.t.add(&i, &Int::K(j * vl));
                    strip.push(Chunk { offset, count: count.clone() });
                }
                known.strip = Some(strip);
                e.level(n, rest, known, inside)
            })?;
            for (k, v) in part.into_iter().zip(out) {
                accs[k] = v;
            }
        }
        Ok(accs)
    }

    /// When the stores of a row go past the caches: the program writes more than they hold, and behind the same number of
    /// elements (which is given too, less than a vector) all rows that are stored are aligned to vectors. A line that is stored
    /// whole then needs not be read first.
    pub(super) fn past_caches(&mut self, n: &Nest, known: &Known) -> Result<Option<(String, Int)>, Error> {
        let mut rows = vec![];
        for (k, item) in n.items.iter().enumerate() {
            if let (Node::Store(view, _), Some(p)) = (&item.node, &known.rows[k]) {
                if !n.vec.is_some_and(|a| view.stride(a).is_some_and(|s| s.is_one())) {
                    return Ok(None);
                }
                rows.push((p.clone(), self.plan.p.buffers[view.buffer.index()].dtype.bytes() as i64));
            }
        }
        let vl = self.plan.vl as i64;
        if rows.is_empty() || rows.iter().any(|(_, bytes)| vl * bytes < 16) {
            return Ok(None);
        }
        let mut pays = self.overflows_caches()?;
        let mut head = Int::K(0);
        for (k, (p, bytes)) in rows.iter().enumerate() {
            let at = Int::V(self.t.op(format_args!("llvm.ptrtoint {p} : !llvm.ptr to i64")));
            if k == 0 {
                let up = self.t.sub(&Int::K(0), &at);
                let up = self.t.bits(&up, vl * bytes - 1);
                head = self.t.div(&up, &Int::K(*bytes));
            }
            let up = self.t.mul(&head, &Int::K(*bytes));
            let start = self.t.add(&at, &up);
            let beside = self.t.bits(&start, vl * bytes - 1);
            let aligned = self.t.compare("eq", &beside, &Int::K(0));
            pays = self.t.op(format_args!("arith.andi {pays}, {aligned} : i1"));
        }
        Ok(Some((pays, head)))
    }

    /// Loads what is the same in all vectors of a row.
    pub(super) fn preload_uniform(&mut self, n: &Nest, known: &mut Known) -> Result<(), Error> {
        let own: Vec<V> = n.items.iter().filter_map(|i| i.out).collect();
        for v in n.items.iter().flat_map(|i| self.plan.operands(i)) {
            let value = &self.plan.values[v];
            let here = value.axes.iter().all(|a| known.index.iter().any(|(x, _)| x == a));
            if own.contains(&v) || value.inline.is_some() || !here || known.values.contains_key(&(v, 0)) {
                continue;
            }
            let p = self.slot(v, &known.index, &Int::K(0))?;
            let x = self.get(&p, value.dtype, None);
            let x = self.t.splat(&x, Ty::of(value.dtype, self.nest_lanes(n)));
            for k in 0..self.unroll(n) {
                known.values.insert((v, k), x.clone());
            }
        }
        Ok(())
    }

    /// Fetches this nest's quarters of the next row of a load into the second-level cache; `row` is where this row starts. Of the four
    /// vectors of an iteration as many fetch one as there are quarters.
    pub(super) fn ahead(&mut self, n: &Nest, v: V, view: &View, row: &str, c: usize, chunk: &Chunk) -> Result<(), Error> {
        let Some((&next, &(first, quarters))) = self.plan.serial.last().zip(n.ahead.get(&v)) else { return Ok(()) };
        let (Some(s), None, true) = (view.stride(next), &chunk.count, c < quarters && self.unroll(n) == 4) else { return Ok(()) };
        let valid = n.vec.map_or(Int::K(0), |a| self.axes[a.index()].valid.clone());
        let s = self.dim(s)?;
        let start = self.t.mul(&valid, &Int::from(first));
        let i = self.t.mul(&chunk.offset, &Int::from(quarters));
        let start = self.t.add(&i, &start);
        let start = self.t.div(&start, &Int::K(4));
        let start = self.t.add(&start, &Int::from(c * self.plan.vl - c * self.plan.vl * quarters / 4));
        let start = self.t.add(&start, &s);
        let q = self.anywhere(row, view, &start);
        self.prefetch(&q, 0, 2);
        Ok(())
    }

    /// Fetches what the next panel has of a row that this one reads or writes. Rows of a panel are short and apart, so that nothing but this fetches them
    /// ahead; products lie between, in which they arrive.
    pub(super) fn beside(&mut self, n: &Nest, view: &View, row: &str, chunk: &Chunk, write: bool) {
        let plan = self.plan;
        let (Some(a), Int::K(offset)) = (n.vec.filter(|a| plan.dots && plan.panels && Some(*a) == plan.lanes && n.domain.len() > 1), &chunk.offset) else { return };
        let bytes = plan.p.buffers[view.buffer.index()].dtype.bytes() as i64;
        if !write && self.is_coming(view) || offset * bytes % 64 != 0 || !view.stride(a).is_some_and(|s| s.is_one()) {
            return;
        }
        let q = self.anywhere(row, view, &Int::K(offset + plan.width as i64));
        let (rw, hint) = if write { (1, 3) } else { (0, 2) };
        self.prefetch(&q, rw, hint);
    }
}
