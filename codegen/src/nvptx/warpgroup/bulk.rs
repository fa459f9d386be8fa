//! Copies in bulk: a tile of a tensor map at a time, panel by panel, by one thread. The map knows sizes and strides, so that what lies
//! beyond an axis becomes zero, and the swizzle, which is that of [`super::super::layout::Tile`].

use super::super::emit::{Emit, I32};
use super::super::layout::PANEL;
use super::super::plan::{Plan, Rank, Staged, Step, Stream};
use super::super::value::{Tail, Value};
use crate::Error;
use ir::artifact::{MapAxis, TensorMap};
use ir::dim::Dim;
use ir::tile::{AxisId, ValueId};
use ir::types::DType;

/// The axes of a staged load's map, the contiguous one first.
fn axes(s: &Staged) -> Vec<AxisId> {
    let rest = s.view.strides.iter().map(|(a, _)| *a).filter(|a| !s.axes.contains(a));
    [s.axes[1], s.axes[0]].into_iter().chain(rest).collect()
}

/// Loads in the order of their maps.
fn mapped(plan: &Plan) -> Vec<ValueId> {
    plan.ring.iter().flat_map(|r| r.outer.iter().chain(r.groups.iter().flatten()).copied()).collect()
}

/// The streamed axis of the loop over tiles.
fn streamed(plan: &Plan) -> AxisId {
    plan.body.iter().find_map(|s| if let Step::For(l) = s { (!l.staged.is_empty()).then_some(l.axis) } else { None }).unwrap_or(AxisId(0))
}

/// The maps of a kernel by warpgroups.
pub fn maps(plan: &Plan) -> Vec<TensorMap> {
    let map = |v: ValueId| {
        if let Some(x) = plan.vectors.get(&v) {
            // Its buffer as a single axis: no stride has to be a multiple of anything, and what a tile has beyond the streamed axis are other elements.
            let size = plan.p.buffers[x.view.buffer.index()].shape.iter().fold(Dim::fixed(1), |n, d| &n * d);
            let tile = plan.p.axis(streamed(plan)).extent();
            return TensorMap { buffer: x.view.buffer.index(), offset: Dim::fixed(0), axes: vec![MapAxis { size, stride: Dim::fixed(1), tile }], swizzle: 0 };
        }
        let s = &plan.staged[&v];
        let axis = |a: AxisId| MapAxis {
            size: plan.p.axis(a).size.clone(),
            stride: s.view.stride(a).cloned().unwrap_or(ir::dim::Dim::fixed(0)),
            tile: if a == s.axes[1] { PANEL / s.tile.elem } else if a == s.axes[0] { s.tile.rows } else { 1 },
        };
        TensorMap { buffer: s.view.buffer.index(), offset: s.view.offset.clone(), axes: axes(s).into_iter().map(axis).collect(), swizzle: PANEL }
    };
    mapped(plan).into_iter().map(map).collect()
}

impl Emit<'_> {
    /// What the copying thread does: tiles that are there once, then the loop's, as stages become empty.
    pub(super) fn fill_ring(&mut self, steps: &[Step]) -> Result<(), Error> {
        let ring = self.ring()?.clone();
        if !ring.outer.is_empty() {
            self.fill_outer(&ring.outer)?;
        }
        self.fill_loops(steps, &ring.groups)
    }

    /// Copies the tiles that are there once.
    pub(super) fn fill_outer(&mut self, outer: &[ValueId]) -> Result<(), Error> {
        let object = self.object(0, None);
        let base = self.shared_base();
        self.fill_group(outer, &object, &base, 0).map(drop)
    }

    /// Copies the tiles of loops, from the ring's present position on.
    pub(super) fn fill_loops(&mut self, steps: &[Step], groups: &[Vec<ValueId>]) -> Result<(), Error> {
        for s in steps {
            if let Step::For(l) = s
                && !l.staged.is_empty()
            {
                self.fill_loop(l, groups)?;
            }
        }
        Ok(())
    }

    fn fill_loop(&mut self, l: &Stream, groups: &[Vec<ValueId>]) -> Result<(), Error> {
        let (from, to) = self.bounds(l)?;
        let [region, bytes, _] = self.plan.shared;
        let base = self.shared_base();
        let base = self.entry("addi", &base, region);
        let (i, r, at) = (self.t.fresh(), self.t.fresh(), self.ring_position());
        let position: Vec<String> = at.iter().map(|_| self.t.fresh()).collect();
        let args: Vec<String> = position.iter().zip(&at).map(|(p, a)| format!("{p} = {a}")).collect();
        let types = vec![I32.to_string(); at.len()].join(", ");
        let one = self.k(1);
        self.t.line(format_args!("{r}:{} = scf.for {i} = {from} to {to} step {one} iter_args({}) -> ({types}) : i32 {{", at.len(), args.join(", ")));
        let (slot, parity) = self.slot_and_parity(&position);
        let start = self.ik("muli", &i, self.plan.p.axis(l.axis).extent());
        let outer = std::mem::replace(&mut self.start[l.axis.index()], start);
        let here = self.ik("muli", &slot, bytes);
        let here = self.i("addi", &base, &here);
        // Before the first time around, every stage is empty: the phase before an object's first is over.
        let before = self.t.op(format_args!("arith.xori {parity}, {one} : i32"));
        let mut shared = 0;
        for (g, vs) in groups.iter().enumerate() {
            let (empty, full) = (self.empty(g, &slot), self.full(g, &slot));
            self.await_object(&empty, &before);
            shared = self.fill_group(vs, &full, &here, shared)?;
        }
        let next = self.turn(&position);
        self.t.line(format_args!("scf.yield {} : {types}\n}}", next.join(", ")));
        self.start[l.axis.index()] = outer;
        self.flight.position = Some((0..at.len()).map(|n| format!("{r}#{n}")).collect());
        Ok(())
    }

    /// Copies the tiles of `vs` into the region at `base`; `object` is full when they are there. Of what both blocks of a cluster read, each copies every other piece, to both: `shared`
    /// pieces were copied before, and so many then.
    fn fill_group(&mut self, vs: &[ValueId], object: &str, base: &str, mut shared: usize) -> Result<usize, Error> {
        let plan = self.plan;
        let order = mapped(plan);
        let tile = |v: &ValueId| match plan.vectors.get(v) {
            Some(x) => x.elem * plan.p.axis(streamed(plan)).extent(),
            None => plan.staged[v].tile.bytes(),
        };
        let bytes: usize = vs.iter().map(tile).sum();
        let n = self.k(bytes as i64);
        self.t.line(format_args!("nvvm.mbarrier.arrive.expect_tx {object}, {n} : !llvm.ptr<3>, i32"));
        for v in vs {
            if let Some(x) = plan.vectors.get(v) {
                let map = order.iter().position(|w| w == v).ok_or_else(|| Error::Internal("a column without a map".into()))?;
                let to = self.ik("addi", base, x.at);
                let to = self.shared(&to);
                let to = self.t.op(format_args!("llvm.addrspacecast {to} : !llvm.ptr<3> to !llvm.ptr<7>"));
                let mut from = self.dim32(&x.view.offset)?;
                for (a, stride) in &x.view.strides {
                    let (start, stride) = (self.start[a.index()].clone(), self.dim32(stride)?);
                    let step = self.i("muli", &start, &stride);
                    from = self.i("addi", &from, &step);
                }
                self.copy_piece(&to, map, object, &from, plan.for_both(*v).then_some(shared));
                shared += usize::from(plan.for_both(*v));
                continue;
            }
            let s = &plan.staged[v];
            let map = order.iter().position(|w| w == v).ok_or_else(|| Error::Internal("a tile without a map".into()))?;
            for panel in 0..s.tile.panels() {
                let to = self.ik("addi", base, s.at + s.tile.panel_base(panel));
                let to = self.shared(&to);
                let to = self.t.op(format_args!("llvm.addrspacecast {to} : !llvm.ptr<3> to !llvm.ptr<7>"));
                let mut at: Vec<String> = axes(s).into_iter().map(|a| self.start[a.index()].clone()).collect();
                at[0] = self.ik("addi", &at[0].clone(), panel * s.tile.panel_cols());
                self.copy_piece(&to, map, object, &at.join(", "), plan.for_both(*v).then_some(shared));
                shared += usize::from(plan.for_both(*v));
            }
        }
        Ok(shared)
    }

    /// One bulk copy; or, of piece number `shared` of what both blocks of a cluster read, one by the block whose turn it is, to both.
    fn copy_piece(&mut self, to: &str, map: usize, object: &str, at: &str, shared: Option<usize>) {
        let copy = format!("nvvm.cp.async.bulk.tensor.shared.cluster.global {to}, %m{map}, {object}, box[{at}]");
        let Some(n) = shared else {
            self.t.line(format_args!("{copy} : !llvm.ptr<7>, !llvm.ptr"));
            return;
        };
        let (rank, turn) = (self.rank_on_entry(), self.k((n % 2) as i64));
        let mine = self.cmp("eq", &rank, &turn);
        let both = self.t.op("arith.constant 3 : i16");
        self.t.line(format_args!("scf.if {mine} {{\n{copy} multicast_mask = {both} : !llvm.ptr<7>, !llvm.ptr\n}}"));
    }
    /// Which block of its cluster this one is.
    pub(super) fn rank_on_entry(&mut self) -> String {
        self.t.entry("nvvm.read.ptx.sreg.cluster.ctarank : i32".into())
    }

    /// The registers of a load of single columns that the ring holds; after the last of them their group is free.
    pub(in super::super) fn column(&mut self, v: ValueId) -> Result<Value, Error> {
        let plan = self.plan;
        let x = plan.vectors.get(&v).ok_or_else(|| Error::Internal("a column that is not in the ring".into()))?;
        let group = self.ring()?.groups.iter().position(|g| g.contains(&v)).ok_or_else(|| Error::Internal("a column without a group".into()))?;
        let Some((slot, parity)) = self.flight.turn.clone() else { return Err(Error::Internal("a column outside of the loop".into())) };
        if self.flight.arrived.insert(group) {
            let object = self.full(group, &slot);
            self.await_object(&object, &parity);
        }
        let axis = streamed(plan);
        let rank = Rank { rows: false, col: Some(axis) };
        let place = self.place();
        let first = self.first_col(&place, axis).clone();
        let stage = self.stage.clone().ok_or_else(|| Error::Internal("a column without a stage".into()))?;
        let by = self.ik("muli", &first, x.elem);
        let at = self.i("addi", &stage, &by);
        let at = self.shared(&at);
        let width = plan.fragment.vector;
        let (_, cols) = self.shape(rank);
        let dtype = plan.p.buffers[x.view.buffer.index()].dtype;
        let mut regs = vec![];
        for c in (0..cols).step_by(width) {
            let p = self.step(&at, 3, x.at + x.elem * self.col_offset(c));
            regs.extend(self.read_from(&p, 3, dtype, width));
        }
        self.flight.columns += 1;
        if self.flight.columns == plan.vectors.len() {
            let all = self.k(-1);
            self.t.line(format_args!("nvvm.bar.warp.sync {all} : i32"));
            self.free(&[group], &slot);
        }
        Ok(Value::regs(rank, DType::F32, Tail::Any, regs))
    }
}
