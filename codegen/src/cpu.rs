//! Block programs to CPU code: a tile is a slice of scratch memory, an operation is a loop nest over native vectors.
//!
//! The lane axis of the program is the last axis of every tile that has it, padded to whole vectors. If it is a `Block` axis,
//! an instance has up to `max_panels` panels of it, and whatever has lanes is done panel by panel inside the streamed loop,
//! so that what has none is loaded once for all of them. A dot then has one operand with lanes, read as vectors, and one
//! without, read as broadcast scalars; reductions over other axes are vertical; nothing is transposed inside a loop. If the
//! lane axis is `Full` and a loop is streamed, an instance has all panels of it. If it is `Full` and there is no loop, rows are resident: vectors along them, statistics as scalars. See `docs/lowering.md`.

mod coming;
mod dot;
mod memory;
mod nest;
pub mod plan;

use crate::text::{Int, Text, Ty};
use crate::{Error, target::Target};
use ir::artifact::{GridAxis, Signature};
use ir::dim::Dim;
use ir::tile::{Access, AxisId, Constraint, Program, Role};
use ir::types::DType;
use plan::{Group, Inline, Item, LoopPlan, Node, Place, Plan, Segment, V, Work};
use std::collections::BTreeSet;

/// Lowers `p` to MLIR text (dialects `llvm`, `scf`, `arith`, `vector`) and says how to launch it.
///
/// # Errors
/// What cannot be lowered, by name.
pub fn lower(p: &Program, target: &Target) -> Result<(String, Signature), Error> {
    if !matches!(p.compute, DType::F32 | DType::F64) {
        return Err(Error::Refused(format!("{}: programs compute in f32 or f64, not in {}", p.name, p.compute)));
    }
    let plan = Plan::new(p, target)?;
    let symbol: String = p.name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
    let symbol = format!("pf_{symbol}");
    let mut grid = Signature::grid_of(p);
    let parallel = p.axes.iter().enumerate().filter(|(_, a)| matches!(a.role, Role::Grid | Role::Block(_)));
    for (g, (k, _)) in grid.iter_mut().zip(parallel) {
        if plan.panels && plan.lanes == Some(AxisId(k as u32)) {
            *g = GridAxis { size: g.size.clone(), tile: plan.width, panels: true };
        }
    }
    let signature = Signature {
        symbol: symbol.clone(),
        buffers: p.buffers.clone(),
        dims: p.dims(),
        grid,
        scratch_fixed: plan.fixed_bytes + plan.whole.unwrap_or(0) * plan.panel_bytes,
        scratch_panel: if plan.whole.is_some() { 0 } else { plan.panel_bytes },
        max_panels: plan.max_panels,
    };
    let axes = vec![Span { base: Int::K(0), valid: Int::K(0) }; p.axes.len()];
    let mut e = Emit { plan: &plan, t: Text::new(), helpers: BTreeSet::new(), axes, record: None, dims: signature.dims.clone(), past_caches: false, coming: None };
    e.kernel(&signature.grid)?;
    let Emit { t, helpers, .. } = e;
    let mut text = String::from("module {\n");
    helpers.iter().for_each(|h| text.push_str(&h.text(plan.vl)));
    text.push_str(&format!(
        "llvm.func @{symbol}(%buffers: !llvm.ptr {{llvm.noalias}}, %dims: !llvm.ptr {{llvm.noalias}}, %scratch: !llvm.ptr {{llvm.noalias, llvm.align = 64 : i64}}, %program: i64, %panels: i64) {{\n"
    ));
    text.push_str(&t.finish());
    text.push_str("llvm.return\n}\n}\n");
    Ok((text, signature))
}

/// The part of an axis that the code being emitted works on.
#[derive(Clone)]
struct Span {
    /// Position of the first element.
    base: Int,
    /// Number of elements that exist.
    valid: Int,
}

struct Emit<'p> {
    plan: &'p Plan<'p>,
    t: Text,
    helpers: BTreeSet<memory::Helper>,
    axes: Vec<Span>,
    /// The panel's record.
    record: Option<String>,
    dims: Vec<ir::dim::Name>,
    /// Whether whole vectors are stored past the caches, at aligned addresses; scratch memory may then be read at any.
    past_caches: bool,
    /// What the next tile of the loop around this reads.
    coming: Option<coming::Coming>,
}

impl Emit<'_> {
    /// A run-time size; computed once, on entry.
    fn dim(&mut self, d: &Dim) -> Result<Int, Error> {
        let (dims, program) = (&self.dims, &self.plan.p.name);
        self.t.size(d, &|t, n| {
            let k = dims.iter().position(|d| d == n).ok_or_else(|| Error::Refused(format!("{program}: dimension `{n}` is not among the program's")))?;
            let p = t.entry(format!("llvm.getelementptr inbounds %dims[{k}] : (!llvm.ptr) -> !llvm.ptr, i64"));
            Ok(Int::V(t.entry(format!("llvm.load {p} {{alignment = 8 : i64}} : !llvm.ptr -> i64"))))
        })
    }
    /// Whether what the program writes is more than the last-level cache holds.
    fn overflows_caches(&mut self) -> Result<String, Error> {
        let mut bytes = Int::K(0);
        for b in self.plan.p.buffers.iter().filter(|b| b.access == Access::Output) {
            let elements = b.shape.iter().fold(Dim::fixed(1), |n, d| &n * d);
            let elements = self.dim(&elements)?;
            let more = self.t.on_entry("muli", &elements, &Int::from(b.dtype.bytes()));
            bytes = self.t.on_entry("addi", &bytes, &more);
        }
        let (bytes, most) = (self.t.name(&bytes), self.t.name(&Int::from(self.plan.llc)));
        Ok(self.t.entry(format!("arith.cmpi sgt, {bytes}, {most} : i64")))
    }
    fn buffer(&mut self, b: ir::tile::BufferId) -> String {
        let p = self.t.entry(format!("llvm.getelementptr inbounds %buffers[{}] : (!llvm.ptr) -> !llvm.ptr, !llvm.ptr", b.index()));
        self.t.entry(format!("llvm.load {p} {{alignment = 8 : i64}} : !llvm.ptr -> !llvm.ptr"))
    }

    /// The instance's index along every parallel axis, then its body.
    fn kernel(&mut self, grid: &[GridAxis]) -> Result<(), Error> {
        let plan = self.plan;
        let parallel: Vec<AxisId> =
            (0..plan.p.axes.len()).map(|k| AxisId(k as u32)).filter(|a| matches!(plan.p.axis(*a).role, Role::Grid | Role::Block(_))).collect();
        let mut rest = Int::V("%program".into());
        let mut serial: Vec<(AxisId, Int, Int)> = vec![];
        let mut panel_axis = None;
        for (n, (&a, g)) in parallel.iter().zip(grid).enumerate().rev() {
            let size = self.dim(&g.size)?;
            let mut tile = Int::from(g.tile);
            if g.panels {
                tile = self.t.mul(&tile, &Int::V("%panels".into()));
            }
            let count = self.t.ceil_div(&size, &tile);
            let index = if n == 0 { rest.clone() } else { self.t.rem(&rest, &count) };
            rest = self.t.div(&rest, &count);
            let base = self.t.mul(&index, &tile);
            let left = self.t.sub(&size, &base);
            if g.panels {
                panel_axis = Some((a, base, left));
            } else if plan.serial.contains(&a) {
                let n = self.t.min(&left, &tile);
                serial.push((a, base, n));
            } else {
                let whole = matches!(size, Int::K(s) if s % g.tile as i64 == 0);
                let valid = if whole || g.tile == 1 { tile } else { self.t.min(&left, &tile) };
                self.axes[a.index()] = Span { base, valid };
            }
        }
        for (k, a) in plan.p.axes.iter().enumerate() {
            if let Role::Full(n) = a.role {
                self.axes[k] = Span { base: Int::K(0), valid: Int::from(n) };
            }
        }
        serial.reverse();
        self.serial(&serial, panel_axis)
    }

    /// Loops over parallel axes that are walked index by index, then the body.
    fn serial(&mut self, axes: &[(AxisId, Int, Int)], panel: Option<(AxisId, Int, Int)>) -> Result<(), Error> {
        let Some(((a, base, n), rest)) = axes.split_first() else {
            return self.instance(panel);
        };
        self.looped(&Int::K(0), n, 1, |e, i| {
            let base = e.t.add(base, &i);
            e.axes[a.index()] = Span { base, valid: Int::K(1) };
            e.serial(rest, panel)
        })
    }

    fn instance(&mut self, panel: Option<(AxisId, Int, Int)>) -> Result<(), Error> {
        let plan = self.plan;
        let mut panels = Int::from(plan.whole.unwrap_or(1));
        if let Some((a, base, left)) = panel {
            let w = Int::from(plan.width);
            let n = self.t.ceil_div(&left, &w);
            panels = self.t.min(&n, &Int::V("%panels".into()));
            let most = self.t.mul(&panels, &w);
            let valid = self.t.min(&left, &most);
            self.axes[a.index()] = Span { base, valid };
        }
        self.segments(&plan.body, &panels, &[])
    }

    /// `for i in from..to step`, with the emitter's state restored behind it.
    fn looped(&mut self, from: &Int, to: &Int, step: i64, body: impl FnOnce(&mut Self, Int) -> Result<(), Error>) -> Result<(), Error> {
        self.carrying(from, to, step, vec![], |e, i, _| body(e, i).map(|()| vec![])).map(drop)
    }
    /// The same with values carried in registers.
    fn carrying(
        &mut self,
        from: &Int,
        to: &Int,
        step: i64,
        carried: Vec<(String, Ty)>,
        body: impl FnOnce(&mut Self, Int, Vec<String>) -> Result<Vec<String>, Error>,
    ) -> Result<Vec<String>, Error> {
        let mut t = std::mem::take(&mut self.t);
        let out = t.for_loop(from, to, step, &carried, |t, i, inside| {
            std::mem::swap(&mut self.t, t);
            let axes = self.axes.clone();
            let r = body(self, i, inside);
            self.axes = axes;
            std::mem::swap(&mut self.t, t);
            r
        });
        self.t = t;
        out
    }
    fn when(&mut self, c: &str, body: impl FnOnce(&mut Self) -> Result<(), Error>) -> Result<(), Error> {
        self.t.line(format_args!("scf.if {c} {{"));
        body(self)?;
        self.t.line("}");
        Ok(())
    }

    /// Elements of the panel's vectors that hold something.
    fn lanes_in_use(&mut self, lane: AxisId) -> Int {
        let (vl, width) = (Int::from(self.plan.vl), Int::from(self.plan.width));
        match self.axes[lane.index()].valid.clone() {
            Int::V(n) if self.plan.panels => {
                let vectors = self.t.ceil_div(&Int::V(n), &vl);
                let n = self.t.mul(&vectors, &vl);
                self.t.min(&n, &width)
            }
            _ => width,
        }
    }

    fn segments(&mut self, body: &[Segment], panels: &Int, within: &[Constraint]) -> Result<(), Error> {
        for s in body {
            match s {
                Segment::Straight(groups) => groups.iter().try_for_each(|g| self.group(g))?,
                Segment::For(g) => match &g.work {
                    Work::For(l) => self.stream(l, panels)?,
                    _ => return Err(Error::Internal("a loop's group holds no loop".into())),
                },
                Segment::Panels(groups) => {
                    let plan = self.plan;
                    let lane = plan.lanes.ok_or_else(|| Error::Internal("panels without a lane axis".into()))?;
                    let outer = self.record.clone();
                    self.looped(&Int::K(0), panels, 1, |e, i| {
                        let w = Int::from(plan.width);
                        let from = e.t.mul(&i, &w);
                        let Span { base, valid } = e.axes[lane.index()].clone();
                        let base = e.t.add(&base, &from);
                        let left = e.t.sub(&valid, &from);
                        let valid = e.t.min(&left, &w);
                        e.axes[lane.index()] = Span { base, valid };
                        let bytes = e.t.mul(&i, &Int::from(plan.panel_bytes));
                        let bytes = e.t.add(&bytes, &Int::from(plan.fixed_bytes));
                        e.record = Some(e.t.at("%scratch", "i8", &bytes));
                        if let Some(c) = &mut e.coming {
                            c.panel = Some((i, panels.clone()));
                        }
                        // A panel of which the tile holds nothing is skipped.
                        let mut visible: Option<String> = None;
                        for c in within.iter().filter(|c| c.axes.iter().any(|(a, _)| *a == lane)) {
                            let (_, most) = e.range(c, None)?;
                            let some = e.t.compare("sge", &most, &Int::K(0));
                            visible = Some(match visible {
                                None => some,
                                Some(v) => e.t.op(format_args!("arith.andi {v}, {some} : i1")),
                            });
                        }
                        match visible {
                            Some(c) => e.when(&c, |e| groups.iter().try_for_each(|g| e.group(g))),
                            None => groups.iter().try_for_each(|g| e.group(g)),
                        }
                    })?;
                    self.record = outer;
                }
            }
        }
        Ok(())
    }

    /// A loop over the tiles of a streamed axis that hold something.
    fn stream(&mut self, l: &LoopPlan, panels: &Int) -> Result<(), Error> {
        let axis = self.plan.p.axis(l.axis);
        let tile = axis.extent() as i64;
        let size = self.dim(&axis.size)?;
        let mut from = Int::K(0);
        let mut to = self.t.ceil_div(&size, &Int::K(tile));
        for c in l.within.iter().filter(|_| !l.stores) {
            let coef = c.axes.iter().filter(|(a, _)| *a == l.axis).map(|(_, k)| k).sum::<i64>();
            let (_, most) = self.range(c, Some(l.axis))?;
            if coef > 0 {
                // position ≥ −most / coef
                let least = self.t.sub(&Int::K(0), &most);
                let least = self.t.max(&least, &Int::K(0));
                let least = self.t.ceil_div(&least, &Int::K(coef));
                let first = self.t.div(&least, &Int::K(tile));
                from = self.t.max(&from, &first);
            } else if coef < 0 {
                // position ≤ most / −coef; none if most < 0
                let some = self.t.max(&most, &Int::K(0));
                let last = self.t.div(&some, &Int::K(-coef));
                let end = self.t.div(&last, &Int::K(tile));
                let end = self.t.add(&end, &Int::K(1));
                to = self.t.min(&to, &end);
            }
            if coef <= 0 {
                // No tile at all if it fails at position 0.
                let none = self.t.compare("slt", &most, &Int::K(0));
                let (t, z) = (self.t.name(&to), self.t.name(&Int::K(0)));
                to = Int::V(self.t.op(format_args!("arith.select {none}, {z}, {t} : i64")));
            }
        }
        self.looped(&from, &to, 1, |e, i| {
            let base = e.t.mul(&i, &Int::K(tile));
            let whole = matches!(size, Int::K(s) if s % tile == 0);
            let valid = if whole {
                Int::K(tile)
            } else {
                let left = e.t.sub(&size, &base);
                e.t.min(&left, &Int::K(tile))
            };
            e.axes[l.axis.index()] = Span { base, valid };
            let outer = e.coming.replace(coming::Coming::of(e.plan, l));
            e.segments(&l.body, panels, if l.lanes_stored { &[] } else { &l.within })?;
            e.coming = outer;
            Ok(())
        })
    }

    /// The least and the greatest value of a constraint's left side over the current tile, without `except`'s part.
    fn range(&mut self, c: &Constraint, except: Option<AxisId>) -> Result<(Int, Int), Error> {
        let mut low = self.dim(&c.constant)?;
        for (v, k) in &c.scalars {
            let x = self.scalar_i64(v.index())?;
            let x = self.t.mul(&x, &Int::K(*k));
            low = self.t.add(&low, &x);
        }
        let mut high = low.clone();
        for &(a, k) in c.axes.iter().filter(|(a, _)| Some(*a) != except) {
            let Span { base, valid } = self.axes[a.index()].clone();
            let last = self.t.add(&base, &valid);
            let last = self.t.sub(&last, &Int::K(1));
            let (x, y) = (self.t.mul(&base, &Int::K(k)), self.t.mul(&last, &Int::K(k)));
            let (x, y) = if k >= 0 { (x, y) } else { (y, x) };
            low = self.t.add(&low, &x);
            high = self.t.add(&high, &y);
        }
        Ok((low, high))
    }

    /// An integer value without axes.
    fn scalar_i64(&mut self, v: V) -> Result<Int, Error> {
        let v = self.plan.renamed(v);
        let x = match &self.plan.values[v].inline {
            Some(Inline::Const(k)) => return Ok(Int::K(*k as i64)),
            Some(Inline::Size(d)) => return self.dim(d),
            Some(Inline::Position(a)) => return Ok(self.axes[a.index()].base.clone()),
            None => {
                let p = self.slot(v, &[], &Int::K(0))?;
                self.t.op(format_args!("llvm.load {p} {{alignment = 4 : i64}} : !llvm.ptr -> i32"))
            }
        };
        Ok(Int::V(self.t.op(format_args!("arith.extsi {x} : i32 to i64"))))
    }

    fn group(&mut self, g: &Group) -> Result<(), Error> {
        match &g.work {
            Work::Nest(n) => self.nest(n),
            Work::Edge(item) => self.edge(item),
            Work::Single(Item { node, out }) => match (node, out) {
                (Node::Dot(d), Some(out)) => self.dot(d, *out),
                (Node::Gather(view), Some(out)) => self.gather(view, *out),
                (Node::Scatter(view, v), _) => self.scatter(view, *v),
                (Node::Turn(v, _), Some(out)) => self.turn(*v, *out),
                _ => Err(Error::Internal("a group of one that is neither dot, gather nor scatter".into())),
            },
            Work::For(_) => Err(Error::Internal("a loop among straight groups".into())),
        }
    }

    /// The address of a value's element: indices per axis (missing ones are 0), and elements behind it.
    fn slot(&mut self, v: V, index: &[(AxisId, Int)], lane: &Int) -> Result<String, Error> {
        let value = &self.plan.values[v];
        let place = value.place.ok_or_else(|| Error::Internal(format!("value {v} has no place")))?;
        let bytes = self.plan.bytes(value.dtype) as i64;
        let elem = if bytes == 8 { "f64" } else { "f32" };
        let (strides, _) = self.plan.strides(v);
        let (mut fixed, mut moving) = (0i64, Int::K(0));
        let mut add = |e: &mut Self, i: &Int, s: i64| match i {
            Int::K(k) => fixed += k * s,
            i => {
                let x = e.t.mul(i, &Int::K(s));
                moving = e.t.add(&moving, &x);
            }
        };
        for (k, a) in value.axes.iter().enumerate() {
            if let Some((_, i)) = index.iter().find(|(x, _)| x == a) {
                add(self, i, strides[k] as i64);
            }
        }
        add(self, lane, 1);
        let (base, at) = match place {
            Place::Fixed(at) => ("%scratch".to_string(), at),
            Place::Panel(at) => (self.record.clone().ok_or_else(|| Error::Internal(format!("value {v} is used outside of the panel loop")))?, at),
        };
        // The moving part first, so that what differs between neighbours is a displacement.
        let p = self.t.at(&base, elem, &moving);
        Ok(self.t.at(&p, "i8", &Int::K(at as i64 + fixed * bytes)))
    }
}
