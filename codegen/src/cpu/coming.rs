//! What the next tile of a streamed loop reads is fetched while products of this one run.
//!
//! A tile is copied to scratch memory all at once, which is as fast as memory is; products between two copies need no memory. So the accumulator
//! tiles of the first product that reads a loaded value share out what the next tile has of it, a few lines each: rows among the accumulator tiles of a panel,
//! a row's lines among the panels.

use super::plan::{Dot, LoopPlan, Node, Plan, Segment, V, Work};
use super::{Emit, Int};
use crate::Error;
use ir::tile::{AxisId, View};
use std::collections::BTreeMap;

/// Bytes of a line of cache.
const LINE: usize = 64;

/// What the next tile of a loop reads.
pub(super) struct Coming {
    axis: AxisId,
    tile: usize,
    /// By the value that is made of it, as long as no product fetches it.
    views: BTreeMap<V, Vec<View>>,
    /// The number of the panel that is being done, and how many there are.
    pub(super) panel: Option<(Int, Int)>,
}

/// One view's part in an accumulator tile.
pub(super) struct Fetch {
    view: View,
    /// Where the next tile starts.
    start: String,
    /// Elements from one of its rows to the next.
    stride: Int,
    /// Rows that an accumulator tile fetches, and the rows of the accumulator tile.
    share: usize,
    rows: usize,
    /// The lines of a row that this panel fetches: from, to, and elements of a line.
    lines: (Int, Int, usize),
}

impl Coming {
    /// Of a loop: loads of tiles without lanes that move along its axis.
    pub(super) fn of(plan: &Plan, l: &LoopPlan) -> Coming {
        let mut views: BTreeMap<V, Vec<View>> = BTreeMap::new();
        let straight = l.body.iter().filter_map(|s| match s {
            Segment::Straight(groups) => Some(groups),
            _ => None,
        });
        for g in straight.flatten() {
            let Work::Nest(n) = &g.work else { continue };
            let moving = n.items.iter().filter_map(|i| match &i.node {
                Node::Load(v) if v.stride(l.axis).is_some() => Some(v),
                _ => None,
            });
            let moving: Vec<&View> = moving.collect();
            for out in n.items.iter().filter_map(|i| i.out).filter(|v| plan.values[*v].place.is_some()) {
                let same = moving.iter().filter(|v| plan.tile_axes(v.strides.iter().map(|(a, _)| *a)).iter().eq(sorted(&plan.values[out].axes).iter()));
                views.insert(out, same.map(|v| (*v).clone()).collect());
            }
        }
        Coming { axis: l.axis, tile: plan.p.axis(l.axis).extent(), views, panel: None }
    }
}

fn sorted(axes: &[AxisId]) -> Vec<AxisId> {
    let mut all = axes.to_vec();
    all.sort_unstable();
    all
}

impl Emit<'_> {
    /// What the accumulator tiles of `d`, of so many rows, fetch; nothing else fetches it then.
    pub(super) fn coming_of(&mut self, d: &Dot, rows: usize) -> Result<Vec<Fetch>, Error> {
        let plan = self.plan;
        let (Some(mut coming), Some(along)) = (self.coming.take(), d.rows) else { return Ok(vec![]) };
        let (axis, tile, panel) = (coming.axis, coming.tile, coming.panel.clone());
        let mut views: Vec<View> = vec![];
        if panel.is_some() {
            for (x, _) in &d.terms {
                views.extend(coming.views.remove(x).into_iter().flatten());
            }
            coming.views.values_mut().for_each(|left| left.retain(|v| !views.contains(v)));
        }
        self.coming = Some(coming);
        let Some((number, panels)) = panel else { return Ok(vec![]) };
        let mut out = vec![];
        for view in views {
            let axes: Vec<AxisId> = plan.tile_axes(view.strides.iter().map(|(a, _)| *a)).into_iter().filter(|a| plan.extent(*a) > 1).collect();
            let Some(&across) = axes.iter().find(|a| view.stride(**a).is_some_and(|s| s.is_one())) else { continue };
            let [far] = axes.iter().copied().filter(|a| *a != across).collect::<Vec<_>>()[..] else { continue };
            let bytes = plan.p.buffers[view.buffer.index()].dtype.bytes();
            let many = (plan.extent(across) * bytes).div_ceil(LINE);
            let each = self.t.ceil_div(&Int::from(many), &panels);
            let from = self.t.mul(&number, &each);
            let to = self.t.add(&from, &each);
            let to = self.t.min(&to, &Int::from(many));
            let here = self.axes[axis.index()].base.clone();
            self.axes[axis.index()].base = self.t.add(&here, &Int::from(tile));
            let start = self.beyond(&view)?;
            self.axes[axis.index()].base = here;
            let stride = match view.stride(far) {
                Some(s) => self.dim(s)?,
                None => continue,
            };
            let share = plan.extent(far).div_ceil(plan.extent(along).div_ceil(rows));
            out.push(Fetch { view, start, stride, share, rows, lines: (from, to, LINE / bytes) });
        }
        Ok(out)
    }

    /// Fetches the part of the accumulator tile whose first row is `row`.
    pub(super) fn fetch(&mut self, f: &Fetch, row: &Int) -> Result<(), Error> {
        let first = self.t.div(row, &Int::from(f.rows));
        let first = self.t.mul(&first, &Int::from(f.share));
        let first = self.t.mul(&first, &f.stride);
        let p = self.anywhere(&f.start, &f.view, &first);
        let (from, to, line) = &f.lines;
        self.looped(from, to, 1, |e, k| {
            let at = e.t.mul(&k, &Int::from(*line));
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
