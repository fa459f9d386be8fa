//! A decided kernel to a block program.

use super::center::Center;
use super::law::{Law, Laws, Powers};
use super::mask::{Inequality, inequalities};
use super::partition::{Kernel, Partition};
use super::view::Strides;
use ir::diagnostic::Error;
use ir::dim::{Bindings, Name};
use ir::graph::{Eqn, Var};
use ir::prim::{Elementwise, Prim, ReduceKind};
use ir::tile::{Access, AxisId, Buffer, BufferId, Carry, Constraint, LOWEST, Loop, Op, Program, Role, Stmt, TileAxis, ValueId, ValueInfo, View};
use ir::types::{Axis, DType, Type};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// One product under a sum: `sign·scale·a·b`.
struct Term {
    negative: bool,
    scale: Option<Var>,
    a: Var,
    b: Var,
}

/// A contraction or a sum that is added up: `sign·scale·leaf`.
#[derive(Clone, Copy)]
struct Summand {
    negative: bool,
    scale: Option<Var>,
    leaf: Var,
}

struct Lower<'a> {
    p: &'a Partition<'a>,
    k: &'a Kernel,
    program: Program,
    ids: BTreeMap<Name, AxisId>,
    /// Statements outside of loops, and of the loop being written.
    outside: Vec<Stmt>,
    inside: Option<Vec<Stmt>>,
    /// Values outside of loops, and in the loop being written.
    known: HashMap<Var, ValueId>,
    known_inside: HashMap<Var, ValueId>,
    constants: HashMap<u64, ValueId>,
    /// The pass being written; statistics of earlier ones are in `known`.
    pass: usize,
    /// Carried values before the tile, in the loop being written.
    before: HashMap<Var, ValueId>,
    corrections: HashMap<Powers, ValueId>,
    /// How far maxima may stay behind (`Options::slack`), and where those of the loop being written moved.
    slack: f64,
    moved: BTreeMap<Var, ValueId>,
    /// Sums of products that share an accumulator, by the value that adds them up; and what they absorb.
    merged: BTreeSet<Var>,
    absorbed: BTreeSet<Var>,
    /// Accumulators of the pass being written that are centred, and their centres where these are carried: before the tile, then behind it.
    centers: BTreeMap<Var, Center>,
    kept: BTreeMap<Var, ValueId>,
}

/// Carried sums of products for which an instance has all its rows: accumulators of 128 rows leave four of them two panels of half a megabyte.
const SUMS: usize = 3;

/// Writes the block program of kernel number `number`.
pub(super) fn lower(p: &Partition, k: &Kernel, number: usize) -> Result<Program, Error> {
    lower_behind(p, k, number, p.options.slack)
}

/// The same where maxima may stay `slack` behind.
pub(super) fn lower_behind(p: &Partition, k: &Kernel, number: usize, slack: f64) -> Result<Program, Error> {
    let o = p.options;
    let mut axes: Vec<TileAxis> = vec![];
    let tiled = k.parallel.len();
    let lane_x = (k.resident && !k.down && k.x.is_some()) || k.owned.is_some();
    let (dots_inside, apart) = inner_dots(p, k);
    // Products that the streamed axis keeps apart have their rows from another one.
    let apart = apart && o.scratch && k.owned.is_none() && tiled > 1;
    let matmul = !dots_inside && k.stats.keys().any(|v| p.definitions[v.index()].is_some_and(|i| matches!(p.f.eqns[i].op, Prim::Contract(_))));
    let (rows, stream) = if matmul { o.matmul } else { (o.rows, o.stream) };
    let row = row_axis(p, k);
    // Many sums at once leave an instance few panels, so that rows and weights are copied for few of them: half the rows then.
    let rows = if matmul && o.scratch && !lane_x && carried_products(p, k) > SUMS { (rows / 2).max(1) } else { rows };
    // A row axis that does not fill its tile shares it with the next one, so that what has lanes is read once for all of these rows.
    let beside = row.as_ref().filter(|_| matmul && o.scratch && !lane_x).and_then(|r| {
        let n = k.parallel.iter().find(|a| a.name == *r)?.size.eval(&o.dims).ok()?.max(1) as usize;
        let next = apart_axes(p, k).into_iter().find(|a| a != r)?;
        Some((next, rows / n)).filter(|(_, tile)| *tile > 1)
    });
    let beside = beside.or_else(|| copied_for_few(p, k).filter(|_| dots_inside && o.scratch && !lane_x));
    // And a streamed axis shares its tile with what is summed beside it.
    let stream = if matmul && o.scratch { (stream / summed_beside(p, k)).max(1) } else { stream };
    // Tiles of short axes are no longer than these: an instance's rows then stand side by side in its memory.
    let fit = |a: &Axis, tile: usize| if o.scratch { a.size.as_fixed().map_or(tile, |n| tile.min(n.max(1) as usize)) } else { tile };
    for (i, a) in k.parallel.iter().enumerate() {
        // The lane axis, the one that has rows, the others.
        let from_last = match tiled - 1 - i {
            0 => 0,
            _ if row.as_ref().map_or(i + 2 == tiled, |r| *r == a.name) => 1,
            n => n.max(2),
        };
        // The last axis lies in lanes; the one before has a tile of rows unless the loop's dots need the registers.
        let role = match (lane_x, from_last) {
            (false, 0) => Role::Block(o.lanes),
            (true, 0) if k.owned.is_none() => Role::Block(fit(a, rows)),
            // Rows of products lie along an axis in whole where no axis keeps the operands apart: a batch, of which there may be one.
            (false, 1) if matmul && o.scratch && row.is_none() => Role::Grid,
            (false, 1) if !dots_inside => Role::Block(fit(a, rows)),
            (false, 1) if apart => Role::Block(fit(a, o.stream)),
            _ if beside.as_ref().is_some_and(|(n, _)| *n == a.name) => Role::Block(fit(a, beside.as_ref().map_or(1, |b| b.1))),
            // An instance that has all of an axis has one index of the others.
            _ => Role::Grid,
        };
        // A tile of rows is no longer than its axis: memory for those that are not there crowds the cache.
        let role = match (role, a.size.eval(&o.dims)) {
            (Role::Block(tile), Ok(n)) if o.scratch && from_last == 1 && (n.max(1) as usize) < tile => Role::Block(n.max(1) as usize),
            // Equal tiles of a few: an instance of two thirds of the rows, beside one of a third, leaves a thread without work.
            (Role::Block(tile), Ok(n)) if o.scratch && from_last == 1 && matmul && (n as usize) < 4 * tile => Role::Block((n as usize).div_ceil((n as usize).div_ceil(tile))),
            (role, _) => role,
        };
        axes.push(TileAxis { name: a.name.clone(), size: a.size.clone(), role });
    }
    let mut lanes = if lane_x || tiled == 0 { None } else { Some(AxisId(tiled as u32 - 1)) };
    let mut baked = Bindings::new();
    let mut bake = |a: &Axis, n: i64| {
        for s in a.size.symbols() {
            if let Some(v) = o.dims.get(&s) {
                baked.insert(s, *v);
            }
        }
        n as usize
    };
    if let Some(x) = &k.x {
        let role = if k.resident {
            let n = x.size.eval(&o.dims).map_err(|e| Error::new(e.to_string()))?;
            if !k.down {
                lanes = Some(AxisId(axes.len() as u32));
            }
            Role::Full(bake(x, n))
        } else {
            Role::Stream(if apart { 1 } else { fit(x, stream) })
        };
        axes.push(TileAxis { name: x.name.clone(), size: x.size.clone(), role });
    }
    for (a, n) in &k.whole {
        if k.owned.as_ref() == Some(a) {
            lanes = Some(AxisId(axes.len() as u32));
        }
        axes.push(TileAxis { name: a.name.clone(), size: a.size.clone(), role: Role::Full(bake(a, *n)) });
    }
    let ids = axes.iter().enumerate().map(|(i, a)| (a.name.clone(), AxisId(i as u32))).collect();
    let program = Program {
        name: format!("{}_{number}", p.f.name.replace('.', "_")).into(),
        axes,
        buffers: vec![],
        values: vec![],
        body: vec![],
        compute: o.compute,
        operands: o.operands,
        lanes,
    };
    let mut l = Lower {
        p, k, program, ids,
        outside: vec![], inside: None,
        known: HashMap::new(), known_inside: HashMap::new(), constants: HashMap::new(),
        pass: 0, before: HashMap::new(), corrections: HashMap::new(),
        slack: 0.0, moved: BTreeMap::new(),
        merged: BTreeSet::new(), absorbed: BTreeSet::new(), centers: BTreeMap::new(), kept: BTreeMap::new(),
    };
    l.merge();
    l.slack = if slack > 0.0 && l.indifferent() { slack } else { 0.0 };
    l.run()?;
    let mut program = l.program;
    program.body = l.outside;
    // Outputs behind inputs: verify wants inputs first.
    let order: Vec<usize> = (0..program.buffers.len())
        .filter(|i| program.buffers[*i].access == Access::Input)
        .chain((0..program.buffers.len()).filter(|i| program.buffers[*i].access == Access::Output))
        .collect();
    let mut place = vec![BufferId(0); order.len()];
    order.iter().enumerate().for_each(|(new, old)| place[*old] = BufferId(new as u32));
    program.buffers = order.iter().map(|i| program.buffers[*i].clone()).collect();
    renumber(&mut program.body, &place);
    let program = bind_sizes(program, &baked);
    Ok(program)
}

/// Of the parallel axes but the last one: the one that has a tile of rows where the loop carries sums of products, so that both operands
/// are used more than once: the nearest one that one operand has, and the operand with lanes has not. Lengths of a batch before
/// the lanes are of the same operand as these.
fn row_axis(p: &Partition, k: &Kernel) -> Option<Name> {
    apart_axes(p, k).into_iter().next()
}
/// Sums of products with rows and lanes that a kernel carries, over all its passes.
fn carried_products(p: &Partition, k: &Kernel) -> usize {
    let Some(lane) = k.parallel.last() else { return 0 };
    let product = |v: &&Var| p.definitions[v.index()].is_some_and(|i| matches!(p.f.eqns[i].op, Prim::Contract(_)));
    let wide = |v: &&Var| p.f.ty(**v).has(&lane.name) && k.parallel.iter().filter(|a| p.f.ty(**v).has(&a.name)).count() > 1;
    k.stats.keys().filter(product).filter(wide).count()
}
/// All such axes, the nearest first.
fn apart_axes(p: &Partition, k: &Kernel) -> Vec<Name> {
    let Some((lane, rest)) = k.parallel.split_last() else { return vec![] };
    rest.iter().rev().filter(|a| p.apart(k.stats.keys(), &lane.name, &a.name)).map(|a| a.name.clone()).collect()
}
/// Where lanes are of a short axis, and what is read along x has neither them nor another axis that instances share out (weights): that axis, and a tile
/// of it that makes up for the lanes, so that an instance does not copy all of it for a few rows.
fn copied_for_few(p: &Partition, k: &Kernel) -> Option<(Name, usize)> {
    let (lane, rest) = k.parallel.split_last()?;
    let n = lane.size.as_fixed().map(|n| n.max(1) as usize).filter(|n| 2 * n <= p.options.lanes)?;
    let x = k.x.as_ref()?;
    let (mut open, mut seen, mut read): (Vec<Var>, _, _) = (k.stores.iter().map(|s| s.1).collect(), BTreeSet::new(), vec![]);
    while let Some(v) = open.pop() {
        if !seen.insert(v) {
            continue;
        }
        match p.definitions[v.index()].filter(|_| p.read(v).is_none()) {
            Some(i) => open.extend(&p.f.eqns[i].args),
            None => read.push(v),
        }
    }
    let weights = |a: &Axis| read.iter().map(|v| p.f.ty(*v)).any(|t| t.has(&x.name) && t.axes.len() > 1 && !t.has(&a.name) && !t.has(&lane.name));
    let a = rest.iter().rev().find(|a| weights(a))?;
    Some((a.name.clone(), p.options.lanes.div_ceil(n).next_power_of_two()))
}
/// Elements of the axes in whole over which carried products are summed beside the streamed one.
fn summed_beside(p: &Partition, k: &Kernel) -> usize {
    let sums = k.stats.keys().filter_map(|v| p.definitions[v.index()]).filter_map(|i| match &p.f.eqns[i].op {
        Prim::Contract(over) => Some(over),
        _ => None,
    });
    sums.map(|over| k.whole.iter().filter(|w| over.contains(&w.0.name)).map(|w| w.1.max(1) as usize).product()).max().unwrap_or(1)
}

/// Whether a dot stands inside the loop; and whether all that do are products per element of x, which both operands have.
fn inner_dots(p: &Partition, k: &Kernel) -> (bool, bool) {
    let Some(x) = &k.x else { return (false, false) };
    let mut open: Vec<Var> = k.stats.keys().copied().collect();
    let mut seen = BTreeSet::new();
    let (mut any, mut apart) = (false, true);
    while let Some(v) = open.pop() {
        if !seen.insert(v) || p.read(v).is_some() {
            continue;
        }
        let Some(e) = p.definitions[v.index()].map(|i| &p.f.eqns[i]) else { continue };
        if matches!(e.op, Prim::Contract(_)) && p.f.ty(v).has(&x.name) {
            any = true;
            apart &= e.args.iter().all(|a| p.f.ty(*a).has(&x.name));
        }
        open.extend(&e.args);
    }
    (any, any && apart)
}

fn renumber(body: &mut [Stmt], place: &[BufferId]) {
    for s in body {
        match s {
            Stmt::Let(_, Op::Load(v)) | Stmt::Store(v, _) => v.buffer = place[v.buffer.index()],
            Stmt::Let(..) => {}
            Stmt::For(l) => renumber(&mut l.body, place),
        }
    }
}

/// Replaces baked dimensions by their numbers, everywhere.
fn bind_sizes(mut p: Program, b: &Bindings) -> Program {
    fn walk(body: &mut [Stmt], b: &Bindings) {
        for s in body {
            match s {
                Stmt::Let(_, Op::Load(v)) | Stmt::Store(v, _) => {
                    v.offset = v.offset.bind(b);
                    v.strides.iter_mut().for_each(|(_, s)| *s = s.bind(b));
                }
                Stmt::Let(_, Op::Size(d)) => *d = d.bind(b),
                Stmt::Let(_, Op::Fill { keep, .. }) => keep.iter_mut().for_each(|c| c.constant = c.constant.bind(b)),
                Stmt::Let(..) => {}
                Stmt::For(l) => {
                    l.within.iter_mut().for_each(|c| c.constant = c.constant.bind(b));
                    walk(&mut l.body, b);
                }
            }
        }
    }
    p.axes.iter_mut().for_each(|a| a.size = a.size.bind(b));
    p.buffers.iter_mut().flat_map(|x| &mut x.shape).for_each(|d| *d = d.bind(b));
    walk(&mut p.body, b);
    p
}

impl<'a> Lower<'a> {
    fn eqn(&self, v: Var) -> Option<&'a Eqn> {
        let p: &'a Partition<'a> = self.p;
        p.definitions[v.index()].map(|i| &p.f.eqns[i])
    }
    fn ty(&self, v: Var) -> &'a Type {
        let p: &'a Partition<'a> = self.p;
        p.f.ty(v)
    }
    fn bug(&self, what: &str) -> Error {
        Error::new(format!("lower {}: {what}", self.program.name))
    }
    fn is_x(&self, n: &Name) -> bool {
        self.k.x.as_ref().is_some_and(|x| x.name == *n)
    }
    fn role(&self, a: AxisId) -> Role {
        self.program.axis(a).role
    }
    /// Tile axes of names: grid axes have none.
    fn tile_axes<'n>(&self, names: impl Iterator<Item = &'n Name>) -> Vec<AxisId> {
        let mut v: Vec<AxisId> = names.filter_map(|n| self.ids.get(n)).copied().filter(|a| self.role(*a) != Role::Grid).collect();
        v.sort();
        v.dedup();
        v
    }
    fn axes_of(&self, v: ValueId) -> Vec<AxisId> {
        self.program.value(v).axes.clone()
    }
    fn dtype(&self, d: DType) -> DType {
        if d.is_float() { self.program.compute } else { d }
    }
    /// A new value from `op`, in the loop if `inside`.
    fn push(&mut self, op: Op, dtype: DType, axes: Vec<AxisId>, name: Option<Name>, inside: bool) -> ValueId {
        self.program.values.push(ValueInfo { dtype, axes, name });
        let id = ValueId(self.program.values.len() as u32 - 1);
        match (&mut self.inside, inside) {
            (Some(body), true) => body.push(Stmt::Let(id, op)),
            _ => self.outside.push(Stmt::Let(id, op)),
        }
        id
    }
    fn fresh(&mut self, dtype: DType, axes: Vec<AxisId>, name: Option<Name>) -> ValueId {
        self.program.values.push(ValueInfo { dtype, axes, name });
        ValueId(self.program.values.len() as u32 - 1)
    }
    fn map(&mut self, e: Elementwise, args: &[ValueId], inside: bool) -> ValueId {
        let mut axes: Vec<AxisId> = args.iter().flat_map(|a| self.axes_of(*a)).collect();
        axes.sort();
        axes.dedup();
        let types: Vec<DType> = args.iter().map(|a| self.program.value(*a).dtype).collect();
        let dtype = self.dtype(e.infer(&types).unwrap_or(self.program.compute));
        self.push(Op::Map(e, args.to_vec()), dtype, axes, None, inside)
    }
    fn number(&mut self, x: f64) -> ValueId {
        if let Some(v) = self.constants.get(&x.to_bits()) {
            return *v;
        }
        let c = self.program.compute;
        let v = self.push(Op::Const(x), c, vec![], None, false);
        self.constants.insert(x.to_bits(), v);
        v
    }
    fn buffer(&mut self, name: &Name, ty: &Type, dtype: DType, access: Access) -> BufferId {
        if let Some(i) = self.program.buffers.iter().position(|b| b.name == *name && b.access == access) {
            return BufferId(i as u32);
        }
        self.program.buffers.push(Buffer { name: name.clone(), dtype, shape: ty.axes.iter().map(|a| a.size.clone()).collect(), access });
        BufferId(self.program.buffers.len() as u32 - 1)
    }
    fn view(&self, buffer: BufferId, s: &Strides) -> Result<View, Error> {
        let strides = s.of.iter().map(|(n, d)| self.ids.get(n).map(|i| (*i, d.clone())).ok_or_else(|| self.bug(&format!("axis {n} is not in the iteration space")))).collect::<Result<_, _>>()?;
        Ok(View { buffer, offset: s.offset.clone(), strides })
    }

    /// Whether `v` changes from tile to tile of the pass being written.
    fn varies(&self, v: Var) -> bool {
        if self.inside.is_none() {
            return false;
        }
        if let Some(s) = self.stat_pass(v) {
            return s == self.pass;
        }
        if self.p.read(v).is_some() {
            return self.ty(v).axes.iter().any(|a| self.is_x(&a.name));
        }
        let Some(e) = self.eqn(v) else { return false };
        matches!(&e.op, Prim::Iota(a) if self.is_x(&a.name)) || e.args.iter().any(|a| self.varies(*a))
    }
    /// The pass of a carried value, one accumulator of several sums included.
    fn stat_pass(&self, v: Var) -> Option<usize> {
        if let Some(s) = self.k.stats.get(&v) {
            return Some(s.pass);
        }
        self.merged.contains(&v).then(|| self.leaves(v).and_then(|t| t.first().map(|l| self.k.stats[l].pass))).flatten()
    }

    /// The contractions and sums that `v` adds up.
    fn leaves(&self, v: Var) -> Option<Vec<Var>> {
        if self.eqn(v).is_some_and(|e| matches!(e.op, Prim::Contract(_) | Prim::Reduce(ReduceKind::Sum, _))) && self.p.read(v).is_none() {
            return Some(vec![v]);
        }
        let e = self.eqn(v)?;
        let Prim::Elementwise(op) = &e.op else { return None };
        let single = |a: Var| self.p.users[a.index()] == 1 && !self.k.stores.iter().any(|s| s.1 == a);
        let follow = |a: Var| if single(a) { self.leaves(a) } else { None };
        match op {
            Elementwise::Neg => follow(e.args[0]),
            Elementwise::Add | Elementwise::Sub => {
                let mut l = follow(e.args[0])?;
                l.extend(follow(e.args[1])?);
                Some(l)
            }
            Elementwise::Mul if self.ty(e.args[0]).axes.is_empty() && !self.reduces(e.args[0]) => follow(e.args[1]),
            Elementwise::Mul if self.ty(e.args[1]).axes.is_empty() && !self.reduces(e.args[1]) => follow(e.args[0]),
            _ => None,
        }
    }
    /// Whether a carried value is behind `v`.
    fn reduces(&self, v: Var) -> bool {
        if self.k.stats.contains_key(&v) {
            return true;
        }
        self.p.read(v).is_none() && self.eqn(v).is_some_and(|e| e.args.iter().any(|a| self.reduces(*a)))
    }
    /// What `v` adds up, each with its sign and number.
    fn summands(&self, v: Var) -> Option<Vec<Summand>> {
        fn walk(l: &Lower, v: Var, negative: bool, scale: Option<Var>, out: &mut Vec<Summand>) -> Option<()> {
            let e = l.eqn(v)?;
            match &e.op {
                Prim::Contract(_) | Prim::Reduce(ReduceKind::Sum, _) => {
                    out.push(Summand { negative, scale, leaf: v });
                    Some(())
                }
                Prim::Elementwise(Elementwise::Neg) => walk(l, e.args[0], !negative, scale, out),
                Prim::Elementwise(op @ (Elementwise::Add | Elementwise::Sub)) => {
                    walk(l, e.args[0], negative, scale, out)?;
                    walk(l, e.args[1], negative != (*op == Elementwise::Sub), scale, out)
                }
                Prim::Elementwise(Elementwise::Mul) => {
                    let scalar = usize::from(!l.ty(e.args[0]).axes.is_empty());
                    // One scale a term: a product of scales would have to be computed, which no normal form has.
                    if scale.is_some() { None } else { walk(l, e.args[1 - scalar], negative, Some(e.args[scalar]), out) }
                }
                _ => None,
            }
        }
        let leaves = self.leaves(v)?;
        let axes: BTreeSet<&Name> = self.ty(v).axes.iter().map(|a| &a.name).collect();
        if !leaves.iter().all(|l| self.ty(*l).axes.iter().map(|a| &a.name).collect::<BTreeSet<_>>() == axes) {
            return None;
        }
        let mut out = vec![];
        walk(self, v, false, None, &mut out)?;
        Some(out)
    }
    /// The products that `v`, a contraction or a sum of them, adds up; `None` unless they can share an accumulator.
    fn terms(&self, v: Var) -> Option<(Vec<Name>, Vec<Term>)> {
        let (mut out, mut sum) = (vec![], None);
        for s in self.summands(v)? {
            let e = self.eqn(s.leaf)?;
            let Prim::Contract(axes) = &e.op else { return None };
            let mut axes = axes.clone();
            axes.sort();
            if sum.get_or_insert_with(|| axes.clone()) != &axes || !axes.iter().all(|n| e.args.iter().all(|a| self.ty(*a).has(n))) {
                return None;
            }
            out.push(Term { negative: s.negative, scale: s.scale, a: e.args[0], b: e.args[1] });
        }
        Some((sum?, out))
    }
    /// The bodies that `v`, a sum over axes or several of them, adds up, with their signs and numbers; likewise.
    fn bodies(&self, v: Var) -> Option<(Vec<Name>, Vec<(Summand, Var)>)> {
        let (mut out, mut sum) = (vec![], None);
        for s in self.summands(v)? {
            let e = self.eqn(s.leaf)?;
            let Prim::Reduce(ReduceKind::Sum, axes) = &e.op else { return None };
            let mut axes = axes.clone();
            axes.sort();
            if sum.get_or_insert_with(|| axes.clone()) != &axes {
                return None;
            }
            out.push((s, e.args[0]));
        }
        // Added up before they are summed: each must have every axis that counts.
        let axes = |v: Var| self.ty(v).axes.iter().map(|a| a.name.clone()).collect::<BTreeSet<_>>();
        out.windows(2).all(|w| axes(w[0].1) == axes(w[1].1)).then_some((sum?, out))
    }
    /// Finds sums over x, of products or of values, that are only used added up: they share an accumulator.
    fn merge(&mut self) {
        // Of this kernel only: what another one adds up is stored by this one.
        let reach = self.reachable();
        for e in self.p.f.eqns.iter().rev().filter(|e| reach.contains(&e.out)) {
            if self.absorbed.contains(&e.out) || matches!(e.op, Prim::Contract(_)) || !matches!(e.op, Prim::Elementwise(_)) || self.p.read(e.out).is_some() {
                continue;
            }
            let Some(leaves) = self.leaves(e.out) else { continue };
            let stats: Vec<_> = leaves.iter().filter_map(|l| self.k.stats.get(l)).collect();
            let alike = stats.len() == leaves.len() && leaves.len() > 1 && stats.windows(2).all(|w| w[0].pass == w[1].pass && w[0].powers == w[1].powers);
            if !alike || (self.terms(e.out).is_none() && self.bodies(e.out).is_none()) {
                continue;
            }
            self.merged.insert(e.out);
            let mut open = e.args.clone();
            while let Some(v) = open.pop() {
                if leaves.contains(&v) || self.leaves(v).is_some() {
                    self.absorbed.insert(v);
                    if let (false, Some(e)) = (leaves.contains(&v), self.eqn(v)) {
                        open.extend(&e.args);
                    }
                }
            }
        }
    }

    /// All passes, then the stores.
    fn run(&mut self) -> Result<(), Error> {
        let (k, p) = (self.k, self.p);
        let reach = self.reachable();
        let mut carried: Vec<(Var, usize)> = k.stats.keys().copied().filter(|v| !self.absorbed.contains(v)).chain(self.merged.iter().copied()).filter(|v| reach.contains(v)).map(|v| (v, self.stat_pass(v).unwrap_or(0))).collect();
        carried.sort();
        let last = carried.iter().map(|(_, p)| p + 1).max().unwrap_or(0);
        // Stores along a streamed x are a pass of their own, unless the only one makes them.
        let along = |s: &Strides| !k.resident && s.of.iter().any(|(n, _)| self.is_x(n));
        let (mut inside, outside): (Vec<_>, Vec<_>) = k.stores.iter().partition(|s| along(&s.2));
        for pass in 0..last {
            let of: Vec<Var> = carried.iter().filter(|(_, q)| *q == pass).map(|(v, _)| *v).collect();
            let along = if k.owned.is_some() { std::mem::take(&mut inside) } else { vec![] };
            self.pass(pass, &of, &along)?;
        }
        self.pass = last;
        for (t, v, s) in outside {
            self.store(*t, *v, s, false)?;
        }
        if !inside.is_empty() {
            self.inside = Some(vec![]);
            for (t, v, s) in inside {
                self.store(*t, *v, s, true)?;
            }
            let body = self.inside.take().unwrap_or_default();
            self.known_inside.clear();
            let x = k.x.as_ref().and_then(|x| self.ids.get(&x.name)).copied().ok_or_else(|| self.bug("a store along no axis"))?;
            self.outside.push(Stmt::For(Loop { axis: x, within: vec![], carries: vec![], body }));
        }
        let _ = p;
        Ok(())
    }
    /// Values that the stores need, absorbed ones excepted.
    fn reachable(&self) -> BTreeSet<Var> {
        let mut seen = BTreeSet::new();
        let mut open: Vec<Var> = self.k.stores.iter().map(|s| s.1).collect();
        while let Some(v) = open.pop() {
            if !seen.insert(v) || self.p.read(v).is_some() {
                continue;
            }
            if self.merged.contains(&v) {
                if let Some((_, terms)) = self.terms(v) {
                    open.extend(terms.iter().flat_map(|t| [Some(t.a), Some(t.b), t.scale]).flatten());
                } else if let Some((_, bodies)) = self.bodies(v) {
                    open.extend(bodies.iter().flat_map(|(s, body)| [Some(*body), s.scale]).flatten());
                }
            } else if let Some(e) = self.eqn(v) {
                open.extend(&e.args);
            }
        }
        seen
    }
    fn store(&mut self, target: usize, v: Var, s: &Strides, inside: bool) -> Result<(), Error> {
        let (name, var) = self.k.targets[target].clone();
        let value = self.value(v)?;
        let ty = self.ty(var);
        let dtype = self.dtype(ty.dtype);
        let buffer = self.buffer(&name, ty, dtype, Access::Output);
        let view = self.view(buffer, s)?;
        let stmt = Stmt::Store(view, value);
        match (&mut self.inside, inside) {
            (Some(body), true) => body.push(stmt),
            _ => self.outside.push(stmt),
        }
        Ok(())
    }

    /// Whether no result depends on which number the running maxima stand for.
    fn indifferent(&self) -> bool {
        let read = |v: Var| self.p.read(v).is_some();
        let mut laws = Laws::new(self.p.f, &read);
        laws.complete = true;
        for (v, _) in self.k.stats.iter().filter(|(_, s)| s.kind == ReduceKind::Max) {
            laws.run(*v, true);
        }
        !laws.running.is_empty() && self.k.stores.iter().all(|s| matches!(laws.of(s.1), Law::Invariant | Law::Zero))
    }

    /// One loop over x that carries `of`, and stores `along` it.
    fn pass(&mut self, pass: usize, of: &[Var], along: &[&(usize, Var, Strides)]) -> Result<(), Error> {
        let k = self.k;
        let x = k.x.as_ref().and_then(|x| self.ids.get(&x.name)).copied().ok_or_else(|| self.bug("a pass over no axis"))?;
        self.pass = pass;
        let mut carries = vec![];
        let c = self.program.compute;
        for v in of {
            let axes = self.tile_axes(self.ty(*v).axes.iter().map(|a| &a.name));
            let name = self.p.f.vars[v.index()].name.clone();
            let start = if k.stats.get(v).is_some_and(|s| s.kind == ReduceKind::Max) { LOWEST } else { 0.0 };
            let init = self.push(Op::Const(start), c, axes.clone(), None, false);
            let inside = self.fresh(c, axes.clone(), name.clone());
            let after = self.fresh(c, axes, name);
            self.before.insert(*v, inside);
            carries.push(Carry { init, inside, next: inside, after });
        }
        self.inside = Some(vec![]);
        self.centers = if self.p.options.center { self.find_centers(of) } else { BTreeMap::new() };
        // Centres that move only where a maximum does are carried.
        let mut kept = BTreeMap::new();
        if self.slack > 0.0 {
            for (v, center) in &self.centers.clone() {
                // One that no maximum of this loop moves has nothing to wait for.
                let powers = self.leaves(*v).and_then(|l| self.k.stats.get(&l[0])).or_else(|| self.k.stats.get(v)).map(|s| s.powers.clone()).unwrap_or_default();
                if powers.is_empty() || !powers.keys().all(|m| of.contains(m)) {
                    continue;
                }
                let axes = self.tile_axes(self.ty(center.row).axes.iter().map(|a| &a.name));
                let init = self.push(Op::Const(0.0), c, axes.clone(), None, false);
                let (inside, after) = (self.fresh(c, axes.clone(), Some("c".into())), self.fresh(c, axes, Some("c".into())));
                kept.insert(*v, carries.len());
                carries.push(Carry { init, inside, next: inside, after });
                self.kept.insert(*v, inside);
            }
        }
        let within = self.within(of)?;
        for (v, c) in of.iter().zip(&mut carries) {
            c.next = self.value(*v)?;
        }
        for (v, i) in &kept {
            carries[*i].next = self.kept.remove(v).ok_or_else(|| self.bug("a centre that no tile has"))?;
        }
        self.moved.clear();
        for (t, v, s) in along {
            self.store(*t, *v, s, true)?;
        }
        let body = self.inside.take().unwrap_or_default();
        self.known_inside.clear();
        self.corrections.clear();
        self.before.clear();
        for (v, c) in of.iter().zip(&carries) {
            self.known.insert(*v, c.after);
        }
        let ends: BTreeMap<Var, ValueId> = kept.iter().map(|(v, i)| (*v, carries[*i].after)).collect();
        self.outside.push(Stmt::For(Loop { axis: x, within, carries, body }));
        // Centred accumulators are what they say again: T + c·s·S.
        for (v, c) in std::mem::take(&mut self.centers) {
            let terms = self.terms(v).map(|t| t.1).unwrap_or_default();
            let center = match ends.get(&v) {
                Some(c) => *c,
                None => self.quotient(self.known[&c.row], self.known[&c.sum], false),
            };
            let mut total = self.known[&v];
            for (i, slope) in &c.slopes {
                let shift = self.scaled(center, terms[*i].negative, terms[*i].scale, false)?;
                let slope = self.known[slope];
                let part = self.map(Elementwise::Mul, &[shift, slope], false);
                total = self.map(Elementwise::Add, &[total, part], false);
            }
            self.known.insert(v, total);
        }
        Ok(())
    }
    /// `a/b`, 0 where b is 0.
    fn quotient(&mut self, a: ValueId, b: ValueId, inside: bool) -> ValueId {
        let (zero, one) = (self.number(0.0), self.number(1.0));
        let some = self.map(Elementwise::Gt, &[b, zero], inside);
        let safe = self.map(Elementwise::Select, &[some, b, one], inside);
        let q = self.map(Elementwise::Div, &[a, safe], inside);
        self.map(Elementwise::Select, &[some, q, zero], inside)
    }
    /// `x` with a term's sign and scale.
    fn scaled(&mut self, mut x: ValueId, negative: bool, scale: Option<Var>, inside: bool) -> Result<ValueId, Error> {
        if let Some(s) = scale {
            let s = self.value(s)?;
            x = self.map(Elementwise::Mul, &[s, x], inside);
        }
        Ok(if negative { self.map(Elementwise::Neg, &[x], inside) } else { x })
    }
    /// The accumulators among `of` that can be centred, by the identity of [`super::center`].
    fn find_centers(&self, of: &[Var]) -> BTreeMap<Var, Center> {
        let powers = |v: Var| self.leaves(v).and_then(|l| self.k.stats.get(&l[0])).or_else(|| self.k.stats.get(&v)).map(|s| s.powers.clone());
        // Row sums over x alone, with their bodies.
        let rows: Vec<(Var, Var)> = of
            .iter()
            .filter_map(|v| self.eqn(*v).filter(|e| matches!(&e.op, Prim::Reduce(ReduceKind::Sum, a) if a.len() == 1)).map(|e| (*v, e.args[0])))
            .collect();
        let mut found = BTreeMap::new();
        for (row, product) in &rows {
            // A product that is read is no product here: what made it belongs to another kernel.
            let Some(e) = self.eqn(*product).filter(|e| e.op == Prim::Elementwise(Elementwise::Mul) && self.p.read(*product).is_none()) else { continue };
            for (weight, tangent) in [(e.args[0], e.args[1]), (e.args[1], e.args[0])] {
                let Some((sum, _)) = rows.iter().find(|(v, body)| *body == weight && powers(*v) == powers(*row)) else { continue };
                if !self.eqn(weight).is_some_and(|e| e.op == Prim::Elementwise(Elementwise::Exp)) {
                    continue;
                }
                for v in of.iter().filter(|v| powers(**v) == powers(*row)) {
                    let Some((over, terms)) = self.terms(*v) else { continue };
                    let mut slopes = vec![];
                    for (i, t) in terms.iter().enumerate() {
                        let other = if t.a == *product { t.b } else if t.b == *product { t.a } else { continue };
                        let slope = of.iter().find(|s| {
                            self.terms(**s).is_some_and(|(o, st)| {
                                o == over && matches!(&st[..], [one] if !one.negative && one.scale.is_none() && [(one.a, one.b), (one.b, one.a)].contains(&(weight, other)))
                            })
                        });
                        if let Some(s) = slope {
                            slopes.push((i, *s));
                        }
                    }
                    if !slopes.is_empty() {
                        found.entry(*v).or_insert(Center { product: *product, weight, tangent, row: *row, sum: *sum, slopes });
                    }
                }
            }
        }
        found
    }

    /// The value of `v` here, written where it belongs.
    fn value(&mut self, v: Var) -> Result<ValueId, Error> {
        if let Some(id) = self.known.get(&v).or_else(|| self.known_inside.get(&v)) {
            return Ok(*id);
        }
        let inside = self.varies(v);
        let id = self.compute(v, inside)?;
        let slot = &mut self.program.values[id.index()].name;
        if slot.is_none() {
            *slot = self.p.f.vars[v.index()].name.clone();
        }
        if inside { self.known_inside.insert(v, id) } else { self.known.insert(v, id) };
        Ok(id)
    }
    fn compute(&mut self, v: Var, inside: bool) -> Result<ValueId, Error> {
        let ty = self.ty(v);
        let dtype = self.dtype(ty.dtype);
        let axes = self.tile_axes(ty.axes.iter().map(|a| &a.name));
        if let Some((base, s)) = self.p.read(v) {
            let base_ty = self.ty(base);
            let name = self.p.stored[&base].clone();
            let param = self.p.f.params.iter().any(|p| p.var == base);
            let stored = if base_ty.dtype.is_float() { if param { self.p.options.stored.get(&name).copied().unwrap_or(self.p.options.storage) } else { self.program.compute } } else { base_ty.dtype };
            let buffer = self.buffer(&name, base_ty, stored, Access::Input);
            let view = self.view(buffer, &s)?;
            // Only the axes that the view has: broadcasting is free.
            let axes = self.tile_axes(s.of.iter().map(|(n, _)| n));
            return Ok(self.push(Op::Load(view), dtype, axes, None, inside));
        }
        let e = self.eqn(v).ok_or_else(|| self.bug("an undefined value"))?;
        if let (true, Some(_)) = (inside, self.before.get(&v)) {
            return self.next(v, e);
        }
        match &e.op {
            Prim::Constant(c) if c.dtype.is_float() => Ok(self.number(c.value)),
            Prim::Constant(c) => Ok(self.push(Op::Const(c.value), c.dtype, vec![], None, false)),
            Prim::Size(d, t) => {
                let t = self.dtype(*t);
                Ok(self.push(Op::Size(d.clone()), t, vec![], None, false))
            }
            Prim::Iota(a) => {
                let id = *self.ids.get(&a.name).ok_or_else(|| self.bug("positions along no axis"))?;
                Ok(self.push(Op::Position(id), DType::I32, axes, None, inside))
            }
            Prim::StopGradient => self.value(e.args[0]),
            Prim::Elementwise(Elementwise::Convert(d)) if d.is_float() && self.ty(e.args[0]).dtype.is_float() && d.bytes() >= 4 => self.value(e.args[0]),
            Prim::Elementwise(Elementwise::Select) => self.select(e, inside),
            Prim::Elementwise(op) => {
                // Carried sums are values already; what else adds up products is one dot.
                let carried = |l: &Lower| l.leaves(v).is_some_and(|leaves| leaves.iter().any(|x| l.k.stats.contains_key(x)));
                if let Some((sum, mut terms)) = self.terms(v).filter(|_| !carried(self)) {
                    // Matrix units round operands: a number that all terms share multiplies the sum there, not an operand.
                    let shared = terms[0].scale.filter(|s| self.rounds() && terms.iter().all(|t| t.scale == Some(*s)));
                    if shared.is_some() {
                        terms.iter_mut().for_each(|t| t.scale = None);
                    }
                    let dot = self.dot(vec![], &sum, &terms, axes, None, inside)?;
                    return match shared {
                        Some(s) => {
                            let s = self.value(s)?;
                            Ok(self.map(Elementwise::Mul, &[s, dot], inside))
                        }
                        None => Ok(dot),
                    };
                }
                let mut args = vec![];
                for a in &e.args {
                    args.push(self.value(*a)?);
                }
                let op = match op {
                    Elementwise::Convert(d) => Elementwise::Convert(self.convert_to(*d)),
                    op => *op,
                };
                Ok(self.map(op, &args, inside))
            }
            Prim::Contract(over) => match self.terms(v) {
                Some((sum, terms)) => self.dot(vec![], &sum, &terms, axes, None, inside),
                None => {
                    let (a, b) = (self.value(e.args[0])?, self.value(e.args[1])?);
                    let product = self.map(Elementwise::Mul, &[a, b], inside);
                    Ok(self.reduce(ReduceKind::Sum, product, over, inside))
                }
            },
            Prim::Reduce(kind, over) => {
                let a = self.value(e.args[0])?;
                Ok(self.reduce(*kind, a, over, inside))
            }
            Prim::Movement(_) => Err(self.bug("movement inside a kernel")),
            Prim::Call(_) => Err(self.bug("a call inside a kernel")),
        }
    }
    /// Narrow floats stay (a rounding); wide ones are the compute type.
    fn convert_to(&self, d: DType) -> DType {
        if d.is_float() && d.bytes() >= 4 { self.program.compute } else { d }
    }
    /// A reduction over axes, of which the value may lack some: then it counts as often as they are long.
    fn reduce(&mut self, kind: ReduceKind, mut a: ValueId, over: &[Name], inside: bool) -> ValueId {
        let have = self.axes_of(a);
        let over_ids: Vec<AxisId> = over.iter().filter_map(|n| self.ids.get(n)).copied().collect();
        let (present, absent): (Vec<AxisId>, Vec<AxisId>) = over_ids.into_iter().partition(|i| have.contains(i));
        if !present.is_empty() {
            let axes = have.into_iter().filter(|i| !present.contains(i)).collect();
            let c = self.program.compute;
            a = self.push(Op::Reduce(kind, a, present), c, axes, None, inside);
        }
        if kind == ReduceKind::Sum {
            for i in absent {
                let d = self.program.axis(i).size.clone();
                let c = self.program.compute;
                let n = self.push(Op::Size(d), c, vec![], None, false);
                a = self.map(Elementwise::Mul, &[a, n], inside);
            }
        }
        a
    }
    /// A dot of `terms`; in those that `centred` names by number, its value stands for its operand.
    fn dot(&mut self, init: Vec<Vec<ValueId>>, sum: &[Name], terms: &[Term], axes: Vec<AxisId>, centred: Option<(Var, ValueId, BTreeSet<usize>)>, inside: bool) -> Result<ValueId, Error> {
        let sum_ids = self.tile_axes(sum.iter());
        let mut pairs = vec![];
        for (i, t) in terms.iter().enumerate() {
            let operand = |l: &mut Self, v: Var| match &centred {
                Some((of, by, at)) if *of == v && at.contains(&i) => Ok(*by),
                _ => l.value(v),
            };
            let (mut a, mut b) = (operand(self, t.a)?, operand(self, t.b)?);
            // The sign and the number go to an operand that is computed anyway; or else to one that stays through the loop.
            let computed = |l: &Lower, v: Var| l.p.read(v).is_none();
            let first = match (computed(self, t.a), computed(self, t.b)) {
                (true, false) => true,
                (false, true) => false,
                _ => !self.varies(t.a) || self.varies(t.b),
            };
            let at_inside = self.varies(if first { t.a } else { t.b });
            let operand = if first { &mut a } else { &mut b };
            *operand = self.scaled(*operand, t.negative, t.scale, at_inside)?;
            // A broadcast operand has fewer axes than its type: give both the summed ones.
            for v in [&mut a, &mut b] {
                let missing: Vec<AxisId> = sum_ids.iter().copied().filter(|i| !self.program.value(*v).axes.contains(i)).collect();
                if !missing.is_empty() {
                    let c = self.program.compute;
                    let one = self.push(Op::Const(1.0), c, missing, None, inside);
                    *v = self.map(Elementwise::Mul, &[*v, one], inside);
                }
            }
            // Nor may the result lose an axis along which both are constant.
            let lost: Vec<AxisId> = axes.iter().copied().filter(|i| ![a, b].iter().any(|v| self.program.value(*v).axes.contains(i))).collect();
            if !lost.is_empty() {
                let c = self.program.compute;
                let one = self.push(Op::Const(1.0), c, lost, None, inside);
                b = self.map(Elementwise::Mul, &[b, one], inside);
            }
            pairs.push((a, b));
        }
        let c = self.program.compute;
        Ok(self.push(Op::Dot { init, terms: pairs, sum: sum_ids }, c, axes, None, inside))
    }
    /// `select(c, a, number)` with c inequalities of positions is a fill.
    fn select(&mut self, e: &'a Eqn, inside: bool) -> Result<ValueId, Error> {
        let fill = self.eqn(e.args[2]).and_then(|e| if let Prim::Constant(c) = &e.op { Some(c.value) } else { None });
        if let (Some(fill), true) = (fill.filter(|x| !x.is_nan()), self.ty(e.out).dtype.is_float()) {
            if let Some(q) = self.constraints(e.args[0])? {
                let value = self.value(e.args[1])?;
                let mut axes = self.axes_of(value);
                axes.extend(q.iter().flat_map(|c| c.axes.iter().map(|(a, _)| *a)).filter(|a| self.role(*a) != Role::Grid));
                axes.sort();
                axes.dedup();
                let c = self.program.compute;
                return Ok(self.push(Op::Fill { value, fill, keep: q }, c, axes, None, inside));
            }
        }
        let mut args = vec![];
        for a in &e.args {
            args.push(self.value(*a)?);
        }
        Ok(self.map(Elementwise::Select, &args, inside))
    }
    fn constraints(&mut self, cond: Var) -> Result<Option<Vec<Constraint>>, Error> {
        let p = self.p;
        let grid_only = |s: &Strides| s.of.iter().all(|(n, _)| self.ids.get(n).is_some_and(|a| self.role(*a) == Role::Grid));
        let scalar = |v: Var| p.f.ty(v).dtype == DType::I32 && p.read(v).is_some_and(|(_, s)| grid_only(&s));
        let Some(q) = inequalities(p.f, &p.definitions, &scalar, cond) else { return Ok(None) };
        let mut out = vec![];
        for Inequality { axes, constant, scalars } in q {
            let mut c = Constraint { axes: vec![], constant, scalars: vec![] };
            for (n, k) in axes {
                c.axes.push((*self.ids.get(&n).ok_or_else(|| self.bug("a mask over no axis"))?, k));
            }
            for (v, k) in scalars {
                c.scalars.push((self.value(v)?, k));
            }
            out.push(c);
        }
        Ok(Some(out))
    }

    /// Whether operands of dots are rounded.
    fn rounds(&self) -> bool {
        self.program.operands != self.program.compute
    }

    /// The carried value `v` after the tile.
    fn next(&mut self, v: Var, e: &'a Eqn) -> Result<ValueId, Error> {
        let old = self.before[&v];
        let stat = self.leaves(v).and_then(|l| self.k.stats.get(&l[0])).or_else(|| self.k.stats.get(&v)).cloned().ok_or_else(|| self.bug("a carried value that is no statistic"))?;
        let correction = self.correction(&stat.powers)?;
        if let Some((sum, terms)) = self.terms(v) {
            let axes = self.tile_axes(self.ty(v).axes.iter().map(|a| &a.name));
            let mut init: Vec<Vec<ValueId>> = vec![std::iter::once(old).chain(correction).collect()];
            let Some(c) = self.centers.get(&v).cloned() else { return self.dot(init, &sum, &terms, axes, None, true) };
            // The centre before and after the tile, and the shift between them.
            let kept = self.kept.get(&v).copied();
            let before = match kept {
                Some(k) => k,
                None => self.quotient(self.before[&c.row], self.before[&c.sum], true),
            };
            let (row, total) = (self.value(c.row)?, self.value(c.sum)?);
            let mut after = self.quotient(row, total, true);
            if let Some(k) = kept {
                let moved: Vec<ValueId> = stat.powers.keys().filter_map(|m| self.moved.get(m)).copied().collect();
                let any = moved[1..].iter().fold(moved[0], |a, b| self.map(Elementwise::Or, &[a, *b], true));
                after = self.map(Elementwise::Select, &[any, after, k], true);
                self.kept.insert(v, after);
            }
            self.program.values[after.index()].name = Some("c".into());
            let mut shift = self.map(Elementwise::Sub, &[before, after], true);
            if let Some(k) = correction {
                shift = self.map(Elementwise::Mul, &[shift, k], true);
            }
            for (i, slope) in &c.slopes {
                let shift = self.scaled(shift, terms[*i].negative, terms[*i].scale, true)?;
                init.push(vec![self.before[slope], shift]);
            }
            let (w, tangent) = (self.value(c.weight)?, self.value(c.tangent)?);
            let centred = self.map(Elementwise::Sub, &[tangent, after], true);
            let centred = self.map(Elementwise::Mul, &[w, centred], true);
            // Only where the shift is made up for: another term of this dot may have the product, and no slope.
            let at = c.slopes.iter().map(|(i, _)| *i).collect();
            return self.dot(init, &sum, &terms, axes, Some((c.product, centred, at)), true);
        }
        let (body, over) = match &e.op {
            Prim::Reduce(_, over) => (self.value(e.args[0])?, over.clone()),
            Prim::Elementwise(_) => {
                let (over, bodies) = self.bodies(v).ok_or_else(|| self.bug("a carried value that adds up no sums"))?;
                let mut total: Option<ValueId> = None;
                for (s, body) in bodies {
                    let x = self.value(body)?;
                    total = Some(match total {
                        // A sign is a subtraction.
                        Some(t) => {
                            let x = self.scaled(x, false, s.scale, true)?;
                            self.map(if s.negative { Elementwise::Sub } else { Elementwise::Add }, &[t, x], true)
                        }
                        None => self.scaled(x, s.negative, s.scale, true)?,
                    });
                }
                (total.ok_or_else(|| self.bug("a carried sum of nothing"))?, over)
            }
            Prim::Contract(over) => {
                let (a, b) = (self.value(e.args[0])?, self.value(e.args[1])?);
                (self.map(Elementwise::Mul, &[a, b], true), over.clone())
            }
            _ => return Err(self.bug("a carried value that is no reduction")),
        };
        // A value without x counts once for each valid element: give it the axis.
        let x: Vec<AxisId> = over.iter().filter(|n| self.is_x(n)).filter_map(|n| self.ids.get(n)).copied().filter(|i| !self.program.value(body).axes.contains(i)).collect();
        let body = if x.is_empty() {
            body
        } else {
            let c = self.program.compute;
            let one = self.push(Op::Const(1.0), c, x, None, true);
            self.map(Elementwise::Mul, &[body, one], true)
        };
        let tile = self.reduce(stat.kind, body, &over, true);
        if stat.kind == ReduceKind::Max {
            if self.slack == 0.0 {
                return Ok(self.map(Elementwise::Max, &[old, tile], true));
            }
            let slack = self.number(self.slack);
            let least = self.map(Elementwise::Add, &[old, slack], true);
            let moved = self.map(Elementwise::Gt, &[tile, least], true);
            self.moved.insert(v, moved);
            return Ok(self.map(Elementwise::Select, &[moved, tile, old], true));
        }
        let scaled = match correction {
            Some(c) => self.map(Elementwise::Mul, &[old, c], true),
            None => old,
        };
        Ok(self.map(Elementwise::Add, &[scaled, tile], true))
    }
    /// `exp(Σ k·(m_new − m_old))`, at most 1 for k < 0.
    fn correction(&mut self, powers: &Powers) -> Result<Option<ValueId>, Error> {
        if powers.is_empty() {
            return Ok(None);
        }
        if let Some(v) = self.corrections.get(powers) {
            return Ok(Some(*v));
        }
        let mut exponent: Option<ValueId> = None;
        for (m, k) in powers {
            let (old, new) = (self.before[m], self.value(*m)?);
            let mut d = self.map(Elementwise::Sub, &[old, new], true);
            if *k != -1 {
                let n = self.number(f64::from(-*k));
                d = self.map(Elementwise::Mul, &[d, n], true);
            }
            exponent = Some(match exponent {
                Some(e) => self.map(Elementwise::Add, &[e, d], true),
                None => d,
            });
        }
        let Some(exponent) = exponent else { return Ok(None) };
        let v = self.map(Elementwise::Exp, &[exponent], true);
        self.program.values[v.index()].name = Some("corr".into());
        self.corrections.insert(powers.clone(), v);
        Ok(Some(v))
    }

    /// Constraints outside of which every carried value stays what it is: they bound the loop.
    fn within(&mut self, of: &[Var]) -> Result<Vec<Constraint>, Error> {
        let mut conditions: BTreeSet<Var> = BTreeSet::new();
        let mut open = of.to_vec();
        let mut seen = BTreeSet::new();
        while let Some(v) = open.pop() {
            if !seen.insert(v) || self.p.read(v).is_some() {
                continue;
            }
            let Some(e) = self.eqn(v) else { continue };
            if let Prim::Elementwise(Elementwise::Select) = e.op {
                conditions.insert(e.args[0]);
            }
            open.extend(&e.args);
        }
        for c in conditions {
            if !self.varies(c) || !of.iter().chain(&self.k.across).all(|v| self.idle(*v, c)) {
                continue;
            }
            if let Some(q) = self.constraints(c)? {
                return Ok(q);
            }
        }
        Ok(vec![])
    }
    /// Whether carried `v` does not change where `cond` is false.
    fn idle(&self, v: Var, cond: Var) -> bool {
        let Some(e) = self.eqn(v) else { return false };
        match &e.op {
            Prim::Reduce(ReduceKind::Max, _) => self.masked(e.args[0], cond) == Masked::Lowest,
            Prim::Reduce(ReduceKind::Sum, _) => self.masked(e.args[0], cond) == Masked::Zero,
            Prim::Contract(_) => e.args.iter().any(|a| self.masked(*a, cond) == Masked::Zero),
            _ => self.summands(v).is_some_and(|s| s.iter().all(|s| self.idle(s.leaf, cond))),
        }
    }
    /// What `v` is where `cond` is false. Finite values are assumed elsewhere: 0·v is 0.
    fn masked(&self, v: Var, cond: Var) -> Masked {
        if self.k.stats.contains_key(&v) || self.p.read(v).is_some() {
            return Masked::Other;
        }
        let Some(e) = self.eqn(v) else { return Masked::Other };
        let arg = |i: usize| self.masked(e.args[i], cond);
        use Elementwise::*;
        use Masked::*;
        match &e.op {
            Prim::Constant(c) if c.value == 0.0 => Zero,
            Prim::Constant(c) if c.value <= LOWEST * 2.0 => Lowest,
            Prim::Elementwise(Select) if e.args[0] == cond => arg(2),
            Prim::Elementwise(Exp) if arg(0) == Lowest => Zero,
            Prim::Elementwise(Add) => match (arg(0), arg(1)) {
                (Lowest, _) | (_, Lowest) => Lowest,
                (Zero, Zero) => Zero,
                _ => Other,
            },
            Prim::Elementwise(Sub) => match (arg(0), arg(1)) {
                (Lowest, _) => Lowest,
                (Zero, Zero) => Zero,
                _ => Other,
            },
            Prim::Elementwise(Mul) if arg(0) == Zero || arg(1) == Zero => Zero,
            Prim::Elementwise(Div) if arg(0) == Zero => Zero,
            Prim::Elementwise(Neg) if arg(0) == Zero => Zero,
            Prim::StopGradient => arg(0),
            _ => Other,
        }
    }
}

/// A value where a mask is false.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Masked {
    Zero,
    Lowest,
    Other,
}
