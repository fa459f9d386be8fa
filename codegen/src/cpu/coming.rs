//! What a streamed loop reads next is fetched while products run.
//!
//! A tile, or a panel of one, is copied to scratch memory all at once, which is as fast as memory is; products between two copies need no memory. So the
//! accumulator tiles of the first product that reads a loaded value share out what comes next of it, a few lines each: of what has no lanes the next tile,
//! its rows among the accumulator tiles of a panel and a row's lines among the panels; of what has lanes the next panel, or behind the last one the
//! first of the next tile.

use super::plan::{Dot, Item, LoopPlan, Node, Plan, Segment, V, Work};
use super::{Emit, Int};
use crate::Error;
use ir::tile::{AxisId, View};
use std::collections::BTreeMap;

/// Bytes of a line of cache.
const LINE: usize = 64;

/// What the loop around reads.
pub(super) struct Coming {
    axis: AxisId,
    tile: usize,
    /// By the value that is made of it, as long as no product fetches it.
    views: BTreeMap<V, Vec<View>>,
    /// Of those, what has lanes and is an operand of a product.
    panels: Vec<View>,
    /// The number of the panel that is being done, and how many there are.
    pub(super) panel: Option<(Int, Int)>,
}

/// One view's part in an accumulator tile.
pub(super) struct Fetch {
    view: View,
    /// Where what comes starts.
    start: String,
    /// Elements from one of its rows to the next.
    stride: Int,
    /// Rows that an accumulator tile fetches.
    share: usize,
    /// Rows of an accumulator tile; accumulator tiles that share out a line's rows, if lines and not rows are dealt out.
    rows: usize,
    parts: Option<usize>,
    /// The lines of a row that are fetched, of the first accumulator tile if lines are dealt out: from, to, and elements of a line.
    lines: (Int, Int, usize),
}

impl Coming {
    /// Of a loop: loads that move along its axis.
    pub(super) fn of(plan: &Plan, l: &LoopPlan) -> Coming {
        let mut c = Coming { axis: l.axis, tile: plan.p.axis(l.axis).extent(), views: BTreeMap::new(), panels: vec![], panel: None };
        let groups: Vec<_> = l.body.iter().flat_map(|s| match s {
            Segment::Straight(groups) | Segment::Panels(groups) => groups.as_slice(),
            Segment::For(_) => &[],
        }).collect();
        let factor = |v: V| groups.iter().any(|g| matches!(&g.work, Work::Single(Item { node: Node::Dot(d), .. }) if d.rows.is_some() && d.terms.iter().any(|t| t.1 == v)));
        for g in &groups {
            let items = match &g.work {
                Work::Nest(n) => n.items.as_slice(),
                Work::Single(i) => std::slice::from_ref(i),
                _ => continue,
            };
            let moving: Vec<&View> = items.iter().filter_map(|i| match &i.node {
                Node::Load(v) | Node::Gather(v) if v.stride(l.axis).is_some() => Some(v),
                _ => None,
            }).collect();
            for out in items.iter().filter_map(|i| i.out).filter(|v| plan.values[*v].place.is_some()) {
                let mut axes = plan.values[out].axes.clone();
                axes.sort_unstable();
                let same: Vec<View> = moving.iter().filter(|v| plan.tile_axes(v.strides.iter().map(|(a, _)| *a)) == axes).map(|v| (*v).clone()).collect();
                let laned = plan.lanes.is_some_and(|a| axes.contains(&a));
                if laned && factor(out) {
                    c.panels.extend(same.iter().cloned());
                }
                if !laned || factor(out) {
                    c.views.insert(out, same);
                }
            }
        }
        c
    }
}

impl Emit<'_> {
    /// Whether products fetch the next panel of what `view` reads.
    pub(super) fn is_coming(&self, view: &View) -> bool {
        self.coming.as_ref().is_some_and(|c| c.panels.contains(view))
    }

    /// What the accumulator tiles of `d`, of so many rows, fetch; nothing else fetches it then.
    pub(super) fn coming_of(&mut self, d: &Dot, rows: usize) -> Result<Vec<Fetch>, Error> {
        let (Some(coming), Some(along)) = (&mut self.coming, d.rows) else { return Ok(vec![]) };
        let Some((number, panels)) = coming.panel.clone() else { return Ok(vec![]) };
        let (axis, tile) = (coming.axis, coming.tile);
        let mut views: Vec<View> = vec![];
        for v in d.terms.iter().flat_map(|(x, y)| [x, y]) {
            views.extend(coming.views.remove(v).into_iter().flatten());
        }
        coming.views.values_mut().for_each(|left| left.retain(|v| !views.contains(v)));
        let tiles = self.plan.extent(along).div_ceil(rows);
        let mut out = vec![];
        for view in views {
            let plan = self.plan;
            let axes: Vec<AxisId> = plan.tile_axes(view.strides.iter().map(|(a, _)| *a)).into_iter().filter(|a| plan.extent(*a) > 1).collect();
            let Some(&across) = axes.iter().find(|a| view.stride(**a).is_some_and(|s| s.is_one())) else { continue };
            let [far] = axes.iter().copied().filter(|a| *a != across).collect::<Vec<_>>()[..] else { continue };
            let (Some(stride), Some(step)) = (view.stride(far), view.stride(axis)) else { continue };
            let (stride, step) = (self.dim(stride)?, self.dim(step)?);
            let bytes = plan.p.buffers[view.buffer.index()].dtype.bytes();
            let line = LINE / bytes;
            let many = plan.extent(across).div_ceil(line);
            let next = self.t.mul(&step, &Int::from(tile));
            let lane = plan.lanes.filter(|a| axes.contains(a));
            let (ahead, lines) = match lane {
                None => {
                    let each = self.t.ceil_div(&Int::from(many), &panels);
                    let from = self.t.mul(&number, &each);
                    let to = self.t.add(&from, &each);
                    (next, (from, self.t.min(&to, &Int::from(many)), line))
                }
                Some(a) => {
                    let width = if a == far { self.t.mul(&stride, &Int::from(plan.width)) } else { Int::from(plan.width) };
                    let back = self.t.mul(&number, &width);
                    let first = self.t.sub(&next, &back);
                    let last = self.t.sub(&panels, &Int::K(1));
                    let last = self.t.compare("sge", &number, &last);
                    let (x, y) = (self.t.name(&first), self.t.name(&width));
                    let ahead = Int::V(self.t.op(format_args!("arith.select {last}, {x}, {y} : i64")));
                    (ahead, (Int::K(0), Int::from(many), line))
                }
            };
            let here = self.origin(&view)?;
            let start = self.anywhere(&here, &view, &ahead);
            let (n, parts) = (plan.extent(far), tiles / many);
            out.push(match lane {
                // Few rows of many lines: lines are dealt out.
                Some(_) if n < tiles && parts > 0 => Fetch { view, start, stride, share: n.div_ceil(parts), rows, parts: Some(parts), lines: (Int::K(0), Int::K(1), line) },
                _ => Fetch { view, start, stride, share: n.div_ceil(tiles), rows, parts: None, lines },
            });
        }
        Ok(out)
    }

    /// Fetches the part of the accumulator tile whose first row is `row`.
    pub(super) fn fetch(&mut self, f: &Fetch, row: &Int) -> Result<(), Error> {
        let tile = self.t.div(row, &Int::from(f.rows));
        let (from, to, line) = f.lines.clone();
        let (mut first, mut ahead) = (tile.clone(), Int::K(0));
        if let Some(parts) = f.parts {
            first = self.t.rem(&tile, &Int::from(parts));
            ahead = self.t.div(&tile, &Int::from(parts));
            ahead = self.t.mul(&ahead, &Int::from(line));
        }
        let first = self.t.mul(&first, &Int::from(f.share));
        let first = self.t.mul(&first, &f.stride);
        let first = self.t.add(&first, &ahead);
        let p = self.anywhere(&f.start, &f.view, &first);
        self.looped(&from, &to, 1, |e, k| {
            let at = e.t.mul(&k, &Int::from(line));
            let mut p = e.anywhere(&p, &f.view, &at);
            for s in 0..f.share {
                if s > 0 {
                    p = e.anywhere(&p, &f.view, &f.stride);
                }
                e.prefetch(&p, 0, 2);
            }
            Ok(())
        })
    }
}
