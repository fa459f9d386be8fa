//! Which equations form a kernel, and how its axes are walked.
//!
//! A kernel is what its results need, back to stored values. The axis that its last reductions reduce is the streamed one, x.
//! Reductions over x are carried; reductions of values along x (scores) are inside the loop, over axes of known size. Where this
//! does not fit, a value is cut out: stored by a kernel of its own, and read. What was cut, and why, is said.

use super::gather::Gathered;
use super::law::{Law, Laws, Powers, spread};
use super::lower;
use super::parts;
use super::view;
use ir::diagnostic::Error;
use ir::dim::{Bindings, Name};
use ir::graph::{Eqn, Function, Var};
use ir::prim::{Prim, ReduceKind};
use ir::tile::Program;
use ir::types::{Axis, DType, Type};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// How to fuse.
#[derive(Clone, Debug)]
pub struct Options {
    /// Numbers of dimensions; those of axes that must stand in a tile whole are baked in, the others stay run-time arguments.
    pub dims: Bindings,
    /// What floats are computed in: `F32` or `F64`.
    pub compute: DType,
    /// What float parameters are stored in.
    pub storage: DType,
    /// Those that are stored otherwise, and narrow types in which results are stored; what computes them has f32 before.
    pub stored: BTreeMap<Name, DType>,
    /// What operands of dots are rounded to on machines with matrix units.
    pub operands: DType,
    /// Tile of the lane axis, of a second tiled parallel axis, and of the streamed axis.
    pub lanes: usize,
    /// Rows.
    pub rows: usize,
    /// Streamed elements.
    pub stream: usize,
    /// The same two where the loop carries sums of products and makes nothing else: a matmul.
    pub matmul: (usize, usize),
    /// The longest axis that may stand in a tile whole.
    pub full: i64,
    /// The longest axis whose reductions keep their row in the tile instead of streaming.
    pub resident: i64,
    /// Whether instances keep tiles in memory of their own, as on a CPU, rather than in registers: then an instance may have a long axis whole
    /// beside a streamed one, sums may run down columns, and rows of products that a streamed axis keeps apart are tiled
    /// (`docs/streaming.md`).
    pub scratch: bool,
    /// Elements of an axis beside the streamed one of which an instance has as many as its caches hold, where what it sums over them may be added up later.
    pub columns: i64,
    /// Whether tangents are centred (`docs/streaming.md`).
    pub center: bool,
    /// By how much a running maximum may stay below the maximum before it moves, where no result depends on which one it is; 0: it never does.
    /// Sums then hold terms of up to exp(slack), and accumulators are corrected only where it moves (`docs/streaming.md`).
    pub slack: f64,
    /// Where `slack` is 0: why a kernel is better with maxima that stay [`SLACK`] behind, of one where they do not and the same where they do; none if it is not.
    pub behind: Option<fn(&Program, &Program) -> Option<String>>,
    /// What a machine has a form for, or what it says instead. A kernel that has none is cut at the sums inside of it that its instances would repeat.
    pub fits: Option<fn(&Program) -> Result<(), String>>,
}

/// How far maxima stay behind where a machine wants it: terms of up to 2⁸ in place of 1.
pub const SLACK: f64 = 5.5;

impl Default for Options {
    fn default() -> Options {
        let f = DType::F32;
        Options { dims: Bindings::new(), compute: f, storage: f, stored: BTreeMap::new(), operands: f, lanes: 48, rows: 16, stream: 64, matmul: (128, 256), full: 1024, resident: 8192, scratch: false, columns: 512, center: true, slack: 0.0, behind: None, fits: None }
    }
}

impl Options {
    /// For float parameters stored as `dtype`: f64 is computed in f64, all else in f32.
    pub fn stored(dims: &Bindings, dtype: DType) -> Options {
        let compute = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        Options { dims: dims.clone(), compute, storage: dtype, operands: dtype, ..Options::default() }
    }
    /// The same for a CPU, whose instances have memory of their own.
    pub fn cpu(dims: &Bindings, dtype: DType) -> Options {
        Options { scratch: true, ..Options::stored(dims, dtype) }
    }
}

/// What fusion made.
#[derive(Clone, Debug, Default)]
pub struct Fused {
    /// Kernels in order. A buffer is the parameter, the result or the earlier kernel's output of its name.
    pub programs: Vec<Program>,
    /// What was decided and what was refused, one sentence each.
    pub notes: Vec<String>,
}

/// Fuses `f`.
///
/// # Errors
/// An axis without a number that must stand in a tile, naming it; a call, which [`super::sequence`] takes; otherwise a bug.
pub fn fuse(f: &Function, options: &Options) -> Result<Fused, Error> {
    if let Some(c) = f.callees().first() {
        return Err(Error::new(format!("fuse: `{}` calls `{}`, and a kernel cannot", f.name, c.name)).hint("functions with calls become a sequence of launches: `run`, `bench`, `explain`"));
    }
    let mut fused = fuse_as(f, options)?;
    if options.scratch && fused.programs.len() > 1 {
        for which in [Gathered::Known, Gathered::Ready, Gathered::All] {
            if let Some(gathered) = super::gather::gather(f, which)? {
                let other = fuse_as(&gathered, options)?;
                if other.work(f, options) < fused.work(f, options) {
                    fused = other;
                }
            }
        }
    }
    Ok(fused)
}

impl Fused {
    /// What the kernels cost in arithmetic, at the sizes that are known and 720 for the others.
    fn work(&self, f: &Function, options: &Options) -> u64 {
        self.programs.iter().map(|p| work(p, f, options)).fold(0, u64::saturating_add)
    }
}
/// What one block program of `f` costs; likewise.
pub(super) fn work(p: &Program, f: &Function, options: &Options) -> u64 {
    let mut dims = options.dims.clone();
    f.dims().into_iter().for_each(|d| {
        dims.entry(d).or_insert(720);
    });
    // A special function is about a dozen instructions.
    ir::tile::cost::cost(p, &dims).map_or(u64::MAX, |c| c.flops.saturating_add(c.special.saturating_mul(12)))
}

/// Fuses `f` as it is.
fn fuse_as(f: &Function, options: &Options) -> Result<Fused, Error> {
    let ordered = if options.scratch { super::order::reorder(f, options) } else { None };
    let f = ordered.as_ref().unwrap_or(f);
    let mut p = Partition { f, options, definitions: f.definitions(), users: f.uses(), stored: BTreeMap::new(), ports: view::port_types(f), fused: Fused::default() };
    for port in &f.params {
        p.stored.insert(port.var, port.name.clone());
    }
    p.realize(f.results.iter().map(|r| (r.name.clone(), r.var)).collect())?;
    Ok(p.fused)
}

/// The longest axis that an instance may have whole beside a streamed one.
const OWNED: i64 = 1 << 16;
/// Instances that a kernel must have, at least, if each of them has the whole of an axis that it could share out.
const INSTANCES: i64 = 4;

/// Why a set of targets is no kernel.
pub(super) enum Why {
    /// These values have to be stored first.
    Cut(Vec<Var>, String),
    /// The targets do not go together.
    Split(String),
    /// Nothing helps.
    Fatal(Error),
}

pub(super) struct Partition<'a> {
    pub f: &'a Function,
    pub options: &'a Options,
    pub definitions: Vec<Option<usize>>,
    /// How often each value is used.
    pub users: Vec<usize>,
    /// Values in memory, and under which name.
    pub stored: BTreeMap<Var, Name>,
    /// Types under which parameters and results appear.
    ports: Vec<Type>,
    pub(super) fused: Fused,
}

/// A carried reduction.
#[derive(Clone, Debug)]
pub(super) struct Stat {
    /// Which pass over x.
    pub pass: usize,
    /// How it scales.
    pub powers: Powers,
    /// Maximum or sum.
    pub kind: ReduceKind,
    /// The equation without a law that put it into a pass of its own.
    pub refused: Option<Var>,
}

/// A kernel, decided.
#[derive(Clone)]
pub(super) struct Kernel {
    /// Buffer name and the function's value that it will hold.
    pub targets: Vec<(Name, Var)>,
    /// Per target: values to store and where.
    pub stores: Vec<(usize, Var, view::Strides)>,
    /// The streamed or resident axis.
    pub x: Option<Axis>,
    /// x stands in the tile whole.
    pub resident: bool,
    /// It does, but lanes lie along the last parallel axis, which is contiguous in memory where x is not.
    pub down: bool,
    /// Axes that instances share out, in order.
    pub parallel: Vec<Axis>,
    /// Axes that stand in tiles whole, with their sizes.
    pub whole: Vec<(Axis, i64)>,
    /// An axis in whole that lies in lanes beside the streamed one.
    pub owned: Option<Axis>,
    /// Parts of it that instances share out; 1 if each has all of it.
    pub parts: i64,
    /// Sums over it, made and used up in every tile.
    pub across: Vec<Var>,
    /// Carried reductions, in order of definition.
    pub stats: BTreeMap<Var, Stat>,
}

/// Whether `targets` are different values: one value may have two names.
fn several(targets: &[(Name, Var)]) -> bool {
    targets.iter().any(|t| t.1 != targets[0].1)
}

impl Partition<'_> {
    fn eqn(&self, v: Var) -> Option<&Eqn> {
        self.definitions[v.index()].map(|i| &self.f.eqns[i])
    }
    /// How `v` reads from memory, if it does.
    pub fn read(&self, v: Var) -> Option<(Var, view::Strides)> {
        view::read(self.f, &self.definitions, &|v| self.stored.contains_key(&v), v)
    }
    /// The number of `a`'s size, if it may stand in a tile.
    fn whole(&self, a: &Axis, limit: i64) -> Option<i64> {
        a.size.eval(&self.options.dims).ok().filter(|n| *n <= limit)
    }
    pub(super) fn label(&self, v: Var) -> String {
        let op = self.eqn(v).map_or("parameter", |e| e.op.name());
        match &self.f.vars[v.index()].name {
            Some(n) => format!("{n} ({op})"),
            None => format!("x{} ({op})", v.0),
        }
    }

    /// One kernel for all of `targets` if they go together, else several.
    fn realize(&mut self, targets: Vec<(Name, Var)>) -> Result<(), Error> {
        match self.kernel(&targets, None, None) {
            Ok(k) => self.emit(&k),
            Err(Why::Fatal(e)) if targets.len() == 1 => Err(e),
            Err(Why::Split(why)) => {
                self.fused.notes.push(format!("separate kernels: {why}"));
                self.plan(targets)
            }
            Err(_) => self.plan(targets),
        }
    }
    /// Writes the block program of a kernel; what it stores can be read from now on.
    pub(super) fn emit(&mut self, k: &Kernel) -> Result<(), Error> {
        let number = self.fused.programs.len();
        let mut programs = self.programs(k, number)?;
        if let (Some(behind), [program]) = (self.options.behind.filter(|_| self.options.slack == 0.0), &mut programs[..]) {
            let other = lower::lower_behind(self, k, number, SLACK)?;
            if other.to_string() != program.to_string()
                && let Some(why) = behind(program, &other)
            {
                self.fused.notes.push(format!("maxima of {} stay up to {SLACK} behind: {why}", program.name));
                *program = other;
            }
        }
        for program in &programs {
            if let Err(e) = ir::tile::verify::verify(program) {
                return Err(Error::new(format!("fuse made a program that the verifier refuses: {}\n{program}", e[0])));
            }
        }
        let refusals = self.refusals(k);
        self.fused.notes.extend(refusals);
        self.fused.programs.extend(programs);
        for (n, v) in &k.targets {
            self.stored.entry(*v).or_insert(n.clone());
        }
        Ok(())
    }

    /// The block program of kernel number `number`, and those that add up what its parts store.
    pub(super) fn programs(&self, k: &Kernel, number: usize) -> Result<Vec<Program>, Error> {
        let program = lower::lower(self, k, number)?;
        match program.lanes.filter(|_| k.parts > 1).and_then(|y| parts::cut(&program, y, k.parts)) {
            Some(all) => Ok(all),
            None if k.parts > 1 && self.instances(&k.parallel) < INSTANCES => Err(Error::new(format!("fuse: {} stores what is no sum over its columns", program.name))),
            None => Ok(vec![program]),
        }
    }
    /// Indices along `axes`; a length without a number is long.
    fn instances(&self, axes: &[Axis]) -> i64 {
        axes.iter().map(|a| a.size.eval(&self.options.dims).unwrap_or(INSTANCES)).fold(1, i64::saturating_mul)
    }

    /// Decides how `targets` become one kernel, which streams over `at` if given, and whose instances have all of `owned` if given.
    pub(super) fn kernel(&self, targets: &[(Name, Var)], at: Option<&Name>, owned: Option<&Name>) -> Result<Kernel, Why> {
        let f = self.f;
        let stored = |v: Var| self.stored.contains_key(&v);
        let mut stores = vec![];
        for (i, (_, v)) in targets.iter().enumerate() {
            stores.extend(view::write(f, &self.definitions, &stored, *v).into_iter().map(|(v, s)| (i, v, s)));
        }
        let closure = self.closure(&stores.iter().map(|s| s.1).collect::<Vec<_>>())?;
        let reduced = |e: &Eqn| match &e.op {
            Prim::Reduce(_, a) | Prim::Contract(a) => Some(a.clone()),
            _ => None,
        };
        // Reductions that each value depends on.
        let mut below: HashMap<Var, BTreeSet<usize>> = HashMap::new();
        for &i in &closure {
            let e = &f.eqns[i];
            let mut set: BTreeSet<usize> = e.args.iter().filter_map(|a| below.get(a)).flatten().copied().collect();
            if reduced(e).is_some() {
                set.insert(i);
            }
            below.insert(e.out, set);
        }
        let reductions: Vec<usize> = closure.iter().copied().filter(|i| reduced(&f.eqns[*i]).is_some()).collect();
        let uses = |e: &Eqn, r: usize| e.args.iter().any(|a| below.get(a).is_some_and(|s| s.contains(&r)));
        let last: Vec<usize> = reductions.iter().copied().filter(|r| !reductions.iter().any(|q| q != r && uses(&f.eqns[*q], *r))).collect();

        let x = match at {
            Some(n) => reductions.iter().flat_map(|r| f.eqns[*r].args.iter()).find_map(|a| f.ty(*a).axis(n)).cloned(),
            None => self.streamed(targets, &last, reductions.len(), &reduced)?,
        };
        let is_x = |n: &Name| x.as_ref().is_some_and(|x| x.name == *n);
        let is_owned = |n: &Name| owned == Some(n);
        let axis = |n: &Name| f.vars.iter().find_map(|v| v.ty.axis(n)).cloned();
        let (mut outer, mut inner) = (vec![], vec![]);
        for &r in &reductions {
            if reduced(&f.eqns[r]).unwrap_or_default().iter().any(is_x) { outer.push(r) } else { inner.push(r) }
        }
        // Inside the loop, not beside it: reductions of values along x.
        let dots_inside = inner.iter().any(|r| f.ty(f.eqns[*r].out).axes.iter().any(|a| is_x(&a.name)));

        // Parallel axes: those of every output and, where recomputing would repeat the dots inside, of every carried value.
        let names = |axes: &[Axis]| -> BTreeSet<Name> { axes.iter().map(|a| a.name.clone()).filter(|n| !is_x(n)).collect() };
        let mut parallel: Option<BTreeSet<Name>> = None;
        let mut narrow = |s: BTreeSet<Name>| parallel = Some(parallel.take().map_or(s.clone(), |p| p.intersection(&s).cloned().collect()));
        for (_, _, s) in &stores {
            narrow(s.of.iter().map(|(n, _)| n.clone()).filter(|n| !is_x(n)).collect());
        }
        if dots_inside {
            outer.iter().for_each(|r| narrow(names(&f.ty(f.eqns[*r].out).axes)));
        }
        let mut parallel = parallel.unwrap_or_default();
        parallel.retain(|n| !is_owned(n));
        if dots_inside {
            // What carried sums add up, where a sum in the loop makes it (scores): instances share out its axes, so that none repeats it.
            // Beside something wide, what could be stored does not count.
            let along: BTreeSet<usize> = inner.iter().copied().filter(|r| f.ty(f.eqns[*r].out).axes.iter().any(|a| is_x(&a.name))).collect();
            let made = |a: &Var| below.get(a).is_some_and(|s| !s.is_disjoint(&along));
            let bodies: Vec<Var> = outer.iter().flat_map(|r| &f.eqns[*r].args).copied().filter(made).collect();
            let wide = bodies.iter().any(|v| !self.narrow(*v));
            parallel.retain(|n| bodies.iter().all(|v| f.ty(*v).has(n) || (wide && self.narrow(*v))));
        }
        // A sum that every instance along some axis would make again is stored, where it is no larger than what is stored anyway; the
        // last such sum first, since it may be all that is needed of those before it.
        for &r in inner.iter().rev().filter(|_| dots_inside) {
            let again: Vec<&str> = parallel.iter().filter(|n| !f.ty(f.eqns[r].out).has(n)).map(|n| &**n).collect();
            if !again.is_empty() && self.narrow(f.eqns[r].out) {
                return Err(self.cut(&closure, &below, r, format!("every instance along {} would need it", again.join(", "))));
            }
        }
        for &r in &reductions {
            for a in reduced(&f.eqns[r]).unwrap_or_default().iter().filter(|a| !is_x(a) && !is_owned(a)).filter_map(axis) {
                // Where carried sums have the axis, an instance would carry all of it, and none would share it out.
                let carried = || self.options.scratch && dots_inside && parallel.contains(&a.name) && outer.iter().any(|r| f.ty(f.eqns[*r].out).has(&a.name));
                if carried() && self.whole(&a, self.options.stream as i64).is_none() && self.narrow(f.eqns[r].out) {
                    return Err(self.cut(&closure, &below, r, format!("it is reduced over {a}, which the instances of a kernel share")));
                }
                if self.whole(&a, self.options.full).is_none() {
                    return Err(self.cut(&closure, &below, r, format!("it is reduced over {a}, which is too long or has no number, inside a loop over {}", x.as_ref().map_or("nothing".into(), |x| x.to_string()))));
                }
            }
        }
        // What is reduced has to be there whole, in every instance: for scores along what stays parallel that is no loss; anything
        // else would be repeated, and is stored.
        let taken: BTreeSet<Name> = reductions.iter().filter_map(|r| reduced(&f.eqns[*r])).flatten().filter(|n| parallel.contains(n)).collect();
        parallel.retain(|n| !taken.contains(n));
        let over_taken = inner.iter().copied().filter(|r| reduced(&f.eqns[*r]).is_some_and(|a| a.iter().any(|n| taken.contains(n))));
        let repeated: Vec<Var> = over_taken.map(|r| f.eqns[r].out).filter(|v| parallel.is_empty() || !parallel.iter().all(|n| f.ty(*v).has(n))).collect();
        if !repeated.is_empty() {
            let axes: Vec<&str> = taken.iter().map(|n| &**n).collect();
            return Err(Why::Cut(repeated, format!("it is reduced over {}, which the instances of a kernel share", axes.join(", "))));
        }
        // Everything else stands in tiles whole.
        let mut whole: Vec<(Axis, i64)> = vec![];
        let values = closure.iter().flat_map(|i| f.eqns[*i].args.iter().chain([&f.eqns[*i].out])).copied().chain(stores.iter().map(|s| s.1));
        let mut needed: Vec<Axis> = values.flat_map(|v| f.ty(v).axes.clone()).collect();
        needed.extend(stores.iter().flat_map(|s| &s.2.of).filter_map(|(n, _)| axis(n)));
        for a in needed {
            if parallel.contains(&a.name) || is_x(&a.name) || whole.iter().any(|(w, _)| w.name == a.name) {
                continue;
            }
            match self.whole(&a, if is_owned(&a.name) { OWNED } else { self.options.full }) {
                Some(n) => whole.push((a, n)),
                None if dots_inside && !several(targets) => {
                    let r = inner.iter().copied().find(|r| f.ty(f.eqns[*r].out).axes.iter().any(|a| is_x(&a.name))).unwrap_or(inner[0]);
                    return Err(self.cut(&closure, &below, r, format!("{a} is too long or has no number, so that it cannot stand in a tile")));
                }
                None if several(targets) => return Err(Why::Split(format!("{a} is too long for a tile, and not all results have it"))),
                None => {
                    return Err(Why::Fatal(
                        Error::new(format!("fuse: axis {a} has to stand in a tile whole, but has no number or is longer than {}", self.options.full))
                            .hint(format!("give its size with --dim {}=…", a.size)),
                    ));
                }
            }
        }
        let resident = x.as_ref().is_some_and(|x| {
            self.whole(x, self.options.resident).is_some() && !dots_inside && outer.iter().all(|r| matches!(f.eqns[*r].op, Prim::Reduce(..)))
        });
        let once = |s: &BTreeMap<Var, Stat>| s.values().all(|s| s.pass == 0) && stores.iter().all(|s| !s.2.of.iter().any(|(n, _)| is_x(n)));
        let carried = if resident && !(self.options.scratch && self.contiguous(&closure, &is_x, &parallel).is_some()) { None } else { Some(self.passes(&outer, &below)) };
        let (resident, stats) = match carried.filter(|s| !resident || once(s)) {
            Some(stats) => (false, stats),
            None => (true, BTreeMap::new()),
        };
        let owned = whole.iter().map(|w| &w.0).find(|a| is_owned(&a.name)).cloned();
        let across: Vec<Var> = inner.iter().filter(|r| reduced(&f.eqns[**r]).unwrap_or_default().iter().any(is_owned)).map(|r| f.eqns[*r].out).collect();
        let mut parts = 1;
        if owned.is_some() {
            // All in one pass over the lanes of each tile: what is summed over them are products, and neither waits for what is carried, nor
            // does anything else with lanes wait for it, which would have to be kept for all of them.
            let sums: BTreeSet<usize> = across.iter().filter_map(|v| self.definitions[v.index()]).collect();
            let waited = outer.iter().chain(&sums).any(|r| f.eqns[*r].args.iter().any(|a| below.get(a).is_some_and(|b| !b.is_disjoint(&sums))));
            let along = |v: &Var| f.ty(*v).axes.iter().any(|a| is_x(&a.name));
            let waits = stores.iter().filter(|s| along(&s.1)).any(|s| below.get(&s.1).is_some_and(|b| outer.iter().any(|r| b.contains(r))));
            // Without a product that both kinds of sums read, there is nothing to share.
            let both = |v: Var| f.ty(v).axes.iter().any(|a| is_x(&a.name)) && f.ty(v).axes.iter().any(|a| is_owned(&a.name));
            let apart = !inner.iter().any(|r| both(f.eqns[*r].out)) || !outer.iter().all(|r| matches!(f.eqns[*r].op, Prim::Contract(_)));
            let products = across.iter().all(|v| self.product_over(*v, owned.as_ref().map(|a| &a.name)) && along(v));
            if resident || apart || waits || waited || !products || stats.values().any(|s| s.pass > 0) || across.is_empty() {
                return Err(Why::Split("no kernel has both axes".into()));
            }
            // Fewer instances would leave cores idle.
            let instances = self.instances(&parallel.iter().filter_map(axis).collect::<Vec<_>>());
            let columns = whole.iter().find(|w| is_owned(&w.0.name)).map_or(1, |w| w.1);
            parts = parts::count(columns, self.options.columns, instances, INSTANCES).ok_or_else(|| Why::Split("a kernel with both axes has few instances".into()))?;
        }
        // Order of the value with the most axes, the first of those: what is stored beside it (statistics of its rows) has fewer, in an order that
        // need not be its own. Broadcast axes first.
        let first = stores.iter().map(|s| f.ty(s.1)).rev().max_by_key(|t| t.axes.len()).ok_or_else(|| Why::Fatal(Error::new(format!("fuse: `{}` has no results", f.name))))?;
        let mut order: Vec<Axis> = vec![];
        // In order of appearance, which no name changes.
        for (n, _) in stores.iter().flat_map(|s| &s.2.of) {
            if parallel.contains(n) && !first.has(n) && !order.iter().any(|a: &Axis| a.name == *n) {
                order.extend(axis(n));
            }
        }
        order.extend(first.axes.iter().filter(|a| parallel.contains(&a.name)).cloned());
        let mut down = false;
        if self.options.scratch && owned.is_none() {
            let short = |a: &Axis| a.size.eval(&self.options.dims).is_ok_and(|n| n < (self.options.lanes / 3) as i64);
            let lanes = if resident {
                let x_short = x.as_ref().is_some_and(|x| self.whole(x, self.options.full).is_some());
                self.contiguous(&closure, &is_x, &parallel).filter(|_| x_short).and_then(|n| order.iter().position(|a| a.name == n)).filter(|p| !short(&order[*p]))
            } else {
                let last = order.last().map(|a| a.name.clone());
                let full = |a: &Axis| a.size.eval(&self.options.dims).is_ok_and(|n| n >= self.options.lanes as i64);
                // Where nothing but sums of products is made, both operands of which are short of an axis, either's axis may lie in lanes.
                let other = |a: &Axis| full(a) && last.as_ref().is_some_and(|l| self.apart(stats.keys(), l, &a.name));
                let narrow = order.last().filter(|a| !stats.is_empty() && !full(a) && a.size.eval(&self.options.dims).is_ok());
                match narrow {
                    Some(_) if !dots_inside && order.iter().any(other) => order.iter().rposition(other),
                    Some(a) if short(a) => order.iter().rposition(|a| !short(a)),
                    _ => None,
                }
            };
            if let Some(at) = lanes {
                let axis = order.remove(at);
                order.push(axis);
                down = resident;
            }
        }
        let kernel = Kernel { targets: targets.to_vec(), stores, x, resident, down, parallel: order, whole, owned, parts, across, stats };
        if let Some(why) = self.made_again(&closure, &kernel) {
            return Err(why);
        }
        if let Some(Err(why)) = self.options.fits.and_then(|fits| lower::lower(self, &kernel, 0).ok().map(|p| fits(&p))) {
            if several(targets) {
                return Err(Why::Split(format!("the machine has no form for them together: {why}")));
            }
            // A sum that every instance would make again is one to store. The last first: it may be all that is needed of those before it.
            let again = |r: &usize| kernel.parallel.is_empty() || kernel.parallel.iter().any(|a| !f.ty(f.eqns[*r].out).has(&a.name));
            if let Some(r) = inner.iter().copied().rev().find(again) {
                return Err(self.cut(&closure, &below, r, format!("the machine has no form for the whole: {why}")));
            }
        }
        Ok(kernel)
    }
    /// Types under which parameters and results appear.
    pub(super) fn in_memory(&self) -> impl Iterator<Item = &Type> {
        self.ports.iter()
    }
    /// The axis that instances share out along which all that is read with most axes is contiguous, where it steps over memory along x.
    fn contiguous(&self, closure: &[usize], is_x: &dyn Fn(&Name) -> bool, parallel: &BTreeSet<Name>) -> Option<Name> {
        let reads: Vec<view::Strides> = closure.iter().flat_map(|i| &self.f.eqns[*i].args).filter_map(|v| self.read(*v)).map(|r| r.1).filter(|s| s.of.iter().any(|(n, _)| is_x(n))).collect();
        let most = reads.iter().map(|s| s.of.len()).max().unwrap_or(0);
        let beside = |s: &view::Strides| s.of.iter().find(|(n, d)| d.is_one() && parallel.contains(n)).map(|(n, _)| n.clone()).filter(|_| !s.of.iter().any(|(n, d)| d.is_one() && is_x(n)));
        let mut axes = reads.iter().filter(|s| s.of.len() == most && most > 0).map(beside);
        let first = axes.next()??;
        axes.all(|a| a.as_ref() == Some(&first)).then_some(first)
    }
    /// Whether one of the `sums` is of products whose one operand has `lane` and not `n`, and whose other has `n` and not `lane`.
    pub(super) fn apart<'v>(&self, sums: impl Iterator<Item = &'v Var>, lane: &Name, n: &Name) -> bool {
        let products = sums.filter_map(|v| self.eqn(*v)).filter(|e| matches!(e.op, Prim::Contract(_)));
        let pairs: Vec<(Var, Var)> = products.filter_map(|e| Some((*e.args.first()?, *e.args.get(1)?))).collect();
        let has = |v: Var, n: &Name| self.f.ty(v).has(n);
        pairs.iter().any(|(a, b)| [(*a, *b), (*b, *a)].iter().any(|(with, other)| has(*with, lane) && !has(*with, n) && has(*other, n) && !has(*other, lane)))
    }
    /// Whether `v` sums products over axis `n` alone, both operands having it, and the result an axis of one of them only.
    fn product_over(&self, v: Var, n: Option<&Name>) -> bool {
        let (Some(e), Some(n)) = (self.eqn(v), n) else { return false };
        let Prim::Contract(over) = &e.op else { return false };
        let has = |i: usize, a: &Name| self.f.ty(e.args[i]).has(a);
        over.iter().eq([n]) && has(0, n) && has(1, n) && self.f.ty(v).axes.iter().any(|a| has(0, &a.name) != has(1, &a.name))
    }

    /// Equations that `roots` need, in order of definition; movement that is no address is cut out.
    fn closure(&self, roots: &[Var]) -> Result<Vec<usize>, Why> {
        let mut seen: BTreeSet<usize> = BTreeSet::new();
        let mut open = roots.to_vec();
        while let Some(v) = open.pop() {
            if self.read(v).is_some() {
                continue;
            }
            let Some(i) = self.definitions[v.index()] else { continue };
            if !seen.insert(i) {
                continue;
            }
            let e = &self.f.eqns[i];
            if let Prim::Movement(_) = &e.op {
                // Joins are stored whole; other movement reads what it moves.
                let base = e.args[0];
                let join = e.args.len() > 1 || self.read(base).is_some();
                return Err(Why::Cut(vec![if join && !roots.contains(&v) { v } else { base }], "movement of computed values inside a kernel".into()));
            }
            open.extend(&e.args);
        }
        Ok(seen.into_iter().collect())
    }

    /// Whether `v` has only axes that one parameter or result has.
    pub(super) fn narrow(&self, v: Var) -> bool {
        self.ports.iter().any(|t| t.covers(self.f.ty(v)))
    }

    /// The axis that the last reductions share.
    fn streamed(&self, targets: &[(Name, Var)], last: &[usize], all: usize, reduced: &dyn Fn(&Eqn) -> Option<Vec<Name>>) -> Result<Option<Axis>, Why> {
        let Some(first) = last.first() else { return Ok(None) };
        let f = self.f;
        let mut shared: Vec<Name> = reduced(&f.eqns[*first]).unwrap_or_default();
        for r in last {
            let axes = reduced(&f.eqns[*r]).unwrap_or_default();
            if !shared.iter().any(|n| axes.contains(n)) {
                if several(targets) {
                    return Err(Why::Split("the results are reduced over different axes".into()));
                }
                // Sums of what is read, over short axes: nothing has to be streamed.
                let short = |n: &Name| f.vars.iter().find_map(|v| v.ty.axis(n)).is_some_and(|a| self.whole(a, self.options.full).is_some());
                let kept = |n: &Name| f.ty(targets[0].1).has(n);
                if last.iter().all(|r| reduced(&f.eqns[*r]).unwrap_or_default().iter().all(|n| short(n) && !kept(n))) && last.len() == all {
                    return Ok(None);
                }
                return Err(Why::Cut(vec![f.eqns[*r].out], "it is reduced over another axis than its neighbours".into()));
            }
            shared.retain(|n| axes.contains(n));
        }
        // The longest one; an axis without a number counts as endless.
        let axes: Vec<Axis> = shared.iter().filter_map(|n| f.eqns[*first].args.iter().find_map(|a| f.ty(*a).axis(n)).cloned()).collect();
        Ok(axes.into_iter().max_by_key(|a| a.size.as_fixed().map_or(a.size.eval(&self.options.dims).unwrap_or(i64::MAX / 2).max(1 << 20), |n| n)))
    }

    /// Cuts reduction `r` out, behind its elementwise epilogue where that is no larger.
    fn cut(&self, closure: &[usize], below: &HashMap<Var, BTreeSet<usize>>, r: usize, why: String) -> Why {
        let f = self.f;
        let size = f.ty(f.eqns[r].out).axes.len();
        let mut cuts = self.read_through(closure, below, r);
        if !cuts.is_empty() {
            return Why::Cut(cuts, why);
        }
        for &q in closure.iter().filter(|q| **q != r) {
            let e = &f.eqns[q];
            if !matches!(e.op, Prim::Contract(_) | Prim::Reduce(..)) {
                continue;
            }
            for a in e.args.iter().filter(|a| below.get(a).is_some_and(|s| s.contains(&r))) {
                let same = f.ty(*a).axes.len() == size && f.ty(f.eqns[r].out).covers(f.ty(*a));
                cuts.push(if same { *a } else { f.eqns[r].out });
            }
        }
        if cuts.is_empty() {
            cuts.push(f.eqns[r].out);
        }
        cuts.dedup();
        Why::Cut(cuts, why)
    }

    /// The values of the axes of reduction `r`, made of it and of what it is made of, through which alone all else reads it, if they are no more than the
    /// reductions to these axes that they replace: one number is stored and read where several would be, and no reader makes it again. On a CPU a row's
    /// numbers are made once in any case.
    fn read_through(&self, closure: &[usize], below: &HashMap<Var, BTreeSet<usize>>, r: usize) -> Vec<Var> {
        let f = self.f;
        let from = f.eqns[r].out;
        let same = |v: Var| f.ty(v).axes.len() == f.ty(from).axes.len() && f.ty(from).covers(f.ty(v));
        let mut into = below.get(&from).cloned().unwrap_or_default();
        into.insert(r);
        let mut behind: BTreeSet<Var> = [from].into();
        let mut read: BTreeSet<Var> = BTreeSet::new();
        for e in closure.iter().map(|i| &f.eqns[*i]) {
            let of: Vec<Var> = e.args.iter().copied().filter(|a| behind.contains(a)).collect();
            if of.is_empty() {
                continue;
            }
            // What another kernel stores is not waited for.
            let waits = e.args.iter().any(|a| self.definitions[a.index()].is_some() && self.read(*a).is_some());
            if !waits && same(e.out) && matches!(e.op, Prim::Elementwise(_) | Prim::StopGradient) && below.get(&e.out).is_some_and(|b| b.is_subset(&into)) {
                behind.insert(e.out);
            } else {
                read.extend(of);
            }
        }
        let replaced = into.iter().filter(|q| same(f.eqns[**q].out)).count();
        let fit = !self.options.scratch && !read.contains(&from) && read.len() <= replaced && read.iter().all(|v| f.ty(*v).dtype.is_float());
        if fit { read.into_iter().collect() } else { vec![] }
    }

    /// The pass of each carried reduction: the earliest in which its body has a law.
    fn passes(&self, outer: &[usize], below: &HashMap<Var, BTreeSet<usize>>) -> BTreeMap<Var, Stat> {
        let f = self.f;
        let mut stats: BTreeMap<Var, Stat> = BTreeMap::new();
        for &r in outer {
            let e = &f.eqns[r];
            let (kind, over) = match &e.op {
                Prim::Reduce(k, over) => (*k, over.as_slice()),
                Prim::Contract(over) => (ReduceKind::Sum, over.as_slice()),
                _ => continue,
            };
            let earlier: Vec<Var> = outer.iter().filter(|q| **q != r && below[&e.out].contains(q)).map(|q| f.eqns[*q].out).collect();
            let mut pass = earlier.iter().map(|v| stats[v].pass).max().unwrap_or(0);
            let complete = |v: Var| self.stored.contains_key(&v) || (stats.get(&v).is_some_and(|s| s.pass < pass));
            let mut laws = Laws::new(f, &complete);
            for v in earlier.iter().filter(|v| stats[v].pass == pass) {
                laws.run(*v, stats[v].kind == ReduceKind::Max);
            }
            let law = match &e.args[..] {
                [a] => laws.of(*a),
                _ => {
                    // The body of a contraction is a product.
                    let (a, b) = (laws.of(e.args[0]), laws.of(e.args[1]));
                    match (a, b) {
                        (Law::Opaque(v), _) | (_, Law::Opaque(v)) => Law::Opaque(v),
                        (Law::Scale(p), Law::Scale(q)) => {
                            let mut p = p;
                            q.into_iter().for_each(|(v, k)| *p.entry(v).or_insert(0) += k);
                            Law::Scale(p)
                        }
                        (Law::Scale(p), Law::Invariant) | (Law::Invariant, Law::Scale(p)) => Law::Scale(p),
                        (Law::Zero, _) | (_, Law::Zero) | (Law::Invariant, Law::Invariant) => Law::Invariant,
                        _ => Law::Opaque(e.out),
                    }
                }
            };
            let (powers, refused) = match (kind, law) {
                (_, Law::Invariant | Law::Zero) => (Powers::new(), None),
                (ReduceKind::Sum, Law::Scale(p)) if p.values().all(|k| *k <= 0) && !spread(f, &p, over) => (p, None),
                (_, Law::Opaque(v)) => (Powers::new(), Some(v)),
                // A power above zero, or a maximum of what scales: the operand that moves is in the way.
                _ => (Powers::new(), e.args.iter().copied().find(|a| laws.of(*a) != Law::Invariant).or(Some(e.args[0]))),
            };
            pass += usize::from(refused.is_some());
            stats.insert(e.out, Stat { pass, powers, kind, refused });
        }
        stats
    }

    /// What a kernel refuses to do in one pass, and why.
    fn refusals(&self, k: &Kernel) -> Vec<String> {
        let Some(x) = &k.x else { return vec![] };
        let of = |(v, s): (&Var, &Stat)| {
            s.refused.map(|why| format!("stream: {} waits for pass {} over {x}; {} has no scaling law in the statistics before it", self.label(*v), s.pass + 1, self.label(why)))
        };
        k.stats.iter().filter_map(of).collect()
    }
}
