//! Loops whose last products lag a tile behind: they are issued behind the next tile's first products and awaited at its end, so that a warpgroup's own products run
//! beside its elementwise work (Shah et al., 2024, where it is done by hand for one kernel).
//!
//! What lags only adds to accumulators: a product that nothing in the tile reads, that starts from what the loop carries, and whose left operand stands in registers.
//! Its left operand's words and the factors of rows that the accumulators are corrected by are carried to the next tile beside them. The first tile stands before the
//! loop, the last products behind it, so that no product is in flight across a branch.

use super::super::emit::{Emit, I32};
use super::super::plan::{Issue, Plan, Rank, Step, Stream};
use super::super::value::{Tail, Value};
use crate::Error;
use ir::tile::ValueId;
use ir::types::DType;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Marks the products of the loop's body that lag.
///
/// # Errors
/// Why none do.
pub(super) fn mark(plan: &Plan, l: &mut Stream) -> Result<(), String> {
    let issues: Vec<usize> = l.body.iter().enumerate().filter_map(|(i, s)| matches!(s, Step::Issue(_)).then_some(i)).collect();
    let (Some(first), Some(last)) = (issues.first().copied(), issues.last().copied()) else { return Err("no products".into()) };
    if first == last {
        return Err("there are no products before them in the tile".into());
    }
    let Step::Issue(x) = &l.body[last] else { return Err("no products".into()) };
    let values: BTreeSet<ValueId> = x.parts.iter().map(|p| p.value).collect();
    let accumulators: BTreeSet<ValueId> = l.carries.iter().filter(|c| values.contains(&c.next)).map(|c| c.inside).collect();
    let from: BTreeSet<ValueId> = l.body[first + 1..last].iter().filter_map(|s| if let Step::Let(v, _) = s { Some(*v) } else { None }).collect();
    let inits = || x.parts.iter().flat_map(|p| plan.inits[&p.value].iter().flatten());
    let others = || l.body.iter().enumerate().filter(|(i, _)| *i != last).map(|(_, s)| s);
    if x.parts.iter().any(|p| !p.starts) || accumulators.len() != values.len() {
        return Err("its last products are not all that accumulators wait for".into());
    }
    if !x.parts.iter().flat_map(|p| &p.terms).all(|(l, _)| from.contains(l)) {
        return Err("left operands that are not computed between the first products and the last".into());
    }
    if inits().any(|v| !accumulators.contains(v) && (plan.rank(*v).col.is_some() || (!from.contains(v) && others().any(|s| matches!(s, Step::Let(w, _) if w == v))))) {
        return Err("accumulators that are corrected by more than rows".into());
    }
    if values.iter().chain(&accumulators).any(|v| others().any(|s| super::arrange::reads(plan, s, *v))) {
        return Err("the tile reads what they add to".into());
    }
    if let Step::Issue(x) = &mut l.body[last] {
        x.late = true;
    }
    Ok(())
}

/// The products of `l` that lag.
pub(in super::super) fn late(l: &Stream) -> Option<&Issue> {
    l.body.iter().find_map(|s| if let Step::Issue(x) = s { x.late.then_some(x) } else { None })
}

/// Whether `v` is one of the sums.
fn adds(late: &Issue, v: ValueId) -> bool {
    late.parts.iter().any(|p| p.value == v)
}

/// What a tile leaves to the next one.
#[derive(Clone)]
struct Left {
    /// What the loop carries.
    carries: Vec<(Rank, DType, Vec<String>)>,
    /// Factors of rows that accumulators are corrected by.
    rows: Vec<(ValueId, DType, Vec<String>)>,
    /// Words of left operands.
    words: Vec<(ValueId, Vec<String>)>,
    /// Where the ring then stands.
    turn: Vec<String>,
}

impl Left {
    fn names(&mut self) -> impl Iterator<Item = (&mut String, String)> {
        let carries = self.carries.iter_mut().flat_map(|(_, d, r)| r.iter_mut().map(|x| (x, crate::text::Ty::of(*d, None).to_string())));
        let rows = self.rows.iter_mut().flat_map(|(_, d, r)| r.iter_mut().map(|x| (x, crate::text::Ty::of(*d, None).to_string())));
        let words = self.words.iter_mut().flat_map(|(_, r)| r.iter_mut().map(|x| (x, I32.to_string())));
        carries.chain(rows).chain(words).chain(self.turn.iter_mut().map(|x| (x, I32.to_string())))
    }
    fn lists(&self) -> (Vec<String>, Vec<String>) {
        self.clone().names().map(|(x, t)| (x.clone(), t)).unzip()
    }
    /// The same under other names.
    fn renamed(&self, mut name: impl FnMut(usize) -> String) -> Left {
        let mut out = self.clone();
        out.names().enumerate().for_each(|(i, (x, _))| *x = name(i));
        out
    }
}

impl Emit<'_> {
    /// The loop `l`, of which `late` lags.
    pub(in super::super) fn lagging(&mut self, l: &Stream, late: &Issue) -> Result<(), Error> {
        let plan = self.plan;
        let (from, to) = self.bounds(l)?;
        let base = self.shared_base();
        let base = self.entry("addi", &base, plan.shared[0]);
        let mut carries = vec![];
        for c in &l.carries {
            let rank = plan.rank(c.init);
            let x = self.get(c.init)?;
            carries.push((rank, x.dtype, self.spread(&x, rank)));
        }
        let one = self.k(1);
        let start = Left { carries, rows: vec![], words: vec![], turn: self.ring_position() };
        let (before, types) = start.lists();
        let outer = (self.start[l.axis.index()].clone(), self.stage.clone(), self.env.clone(), self.packed.clone());
        let some = self.cmp("slt", &from, &to);
        let r = self.t.fresh();
        self.t.line(format_args!("{r}:{} = scf.if {some} -> ({}) {{", before.len(), types.join(", ")));
        let first = self.lagging_tile(l, late, &base, [&from, &to], start.clone(), true)?;
        let (names, kinds) = first.lists();
        let (i, s) = (self.t.fresh(), self.t.fresh());
        let inside: Vec<String> = names.iter().map(|_| self.t.fresh()).collect();
        let args: Vec<String> = inside.iter().zip(&names).map(|(a, b)| format!("{a} = {b}")).collect();
        let second = self.i("addi", &from, &one);
        self.t.line(format_args!("{s}:{} = scf.for {i} = {second} to {to} step {one} iter_args({}) -> ({}) : i32 {{", names.len(), args.join(", "), kinds.join(", ")));
        let next = self.lagging_tile(l, late, &base, [&i, &to], first.renamed(|n| inside[n].clone()), false)?;
        self.t.line(format_args!("scf.yield {} : {}\n}}", next.lists().0.join(", "), kinds.join(", ")));
        self.flight.reduced.clear();
        let last = first.renamed(|n| format!("{s}#{n}"));
        self.carried(l, &last);
        if plan.schedule.turns {
            self.begin_turn();
        }
        // Behind the loop nothing of the last tile's late operands is known to be there.
        self.flight.arrived.clear();
        self.catch_up(late, &base, &last)?;
        if plan.schedule.turns {
            self.end_turns()?;
        }
        self.leave();
        let mut done = Left { rows: vec![], words: vec![], ..last };
        for (c, x) in l.carries.iter().zip(&mut done.carries).filter(|(c, _)| adds(late, c.next)) {
            let v = self.get(c.next)?;
            x.2 = self.spread(&v, x.0);
        }
        self.t.line(format_args!("scf.yield {} : {}", done.lists().0.join(", "), types.join(", ")));
        self.t.line("} else {");
        if self.ring()?.freed_in_loop {
            self.free_outer();
        }
        self.t.line(format_args!("scf.yield {} : {}\n}}", before.join(", "), types.join(", ")));
        (self.start[l.axis.index()], self.stage, self.env, self.packed) = outer;
        let mut n = 0;
        for (c, (rank, dtype, regs)) in l.carries.iter().zip(&start.carries) {
            let after = (n..n + regs.len()).map(|i| format!("{r}#{i}")).collect();
            self.define(c.after, Value::regs(*rank, *dtype, Tail::Any, after))?;
            n += regs.len();
        }
        self.flight.position = Some((n..before.len()).map(|i| format!("{r}#{i}")).collect());
        Ok(())
    }

    /// Carried values, as a tile finds them.
    fn carried(&mut self, l: &Stream, left: &Left) {
        for (c, (rank, dtype, regs)) in l.carries.iter().zip(&left.carries) {
            self.env[c.inside.index()] = Some(Value::regs(*rank, *dtype, Tail::Any, regs.clone()));
        }
    }

    /// Tile `i` before `end`, and behind its first products the late ones of the tile before, if there was one; what it leaves.
    fn lagging_tile(&mut self, l: &Stream, late: &Issue, base: &str, [i, end]: [&str; 2], before: Left, first: bool) -> Result<Left, Error> {
        let turn = self.enter(base, &before.turn);
        self.is_last(i, end);
        self.start[l.axis.index()] = self.ik("muli", i, self.plan.p.axis(l.axis).extent());
        self.carried(l, &before);
        // The first products, and those right behind them that need nothing of this tile.
        let leading = |s: &Step| matches!(s, Step::Issue(x) if !x.late);
        let begin = l.body.iter().position(leading).unwrap_or(0);
        let issued = begin + l.body[begin..].iter().take_while(|s| leading(s)).count();
        for (at, s) in l.body.iter().enumerate() {
            match s {
                Step::Issue(x) if x.late => {}
                s => {
                    if at == begin && !first && self.plan.schedule.turns {
                        self.begin_turn();
                    }
                    self.steps(std::slice::from_ref(s))?;
                    if at + 1 == issued && !first {
                        self.catch_up(late, base, &before)?;
                        if self.plan.schedule.turns {
                            self.end_turn();
                        }
                    }
                }
            }
        }
        self.leave();
        self.leavings(l, late, Left { turn, ..before }, first)
    }

    /// Issues the late products of the tile that left `left`.
    fn catch_up(&mut self, late: &Issue, base: &str, left: &Left) -> Result<(), Error> {
        let plan = self.plan;
        let (slot, parity) = self.slot_and_parity(&left.turn);
        let present = (self.stage.clone(), self.flight.turn.clone());
        let before = self.wrap(&slot, plan.schedule.stages - 1, plan.schedule.stages);
        let zero = self.k(0);
        let around = self.cmp("eq", &slot, &zero);
        let around = self.t.op(format_args!("arith.extui {around} : i1 to i32"));
        let parity = self.i("xori", &parity, &around);
        let at = self.ik("muli", &before, plan.shared[1]);
        self.stage = Some(self.i("addi", base, &at));
        self.flight.turn = Some((before, parity));
        for (v, dtype, regs) in &left.rows {
            self.env[v.index()] = Some(Value::regs(plan.rank(*v), *dtype, Tail::Any, regs.clone()));
        }
        for (v, words) in &left.words {
            self.packed.insert(*v, Rc::new(words.clone()));
        }
        self.issue(late)?;
        (self.stage, self.flight.turn) = present;
        Ok(())
    }

    /// What a tile leaves, `first` if no late products were before it.
    fn leavings(&mut self, l: &Stream, late: &Issue, mut left: Left, first: bool) -> Result<Left, Error> {
        let plan = self.plan;
        for (c, x) in l.carries.iter().zip(&mut left.carries) {
            if !(first && adds(late, c.next)) {
                let v = self.get(c.next)?;
                x.2 = self.spread(&v, x.0);
            }
        }
        let made: BTreeSet<ValueId> = l.body.iter().filter_map(|s| if let Step::Let(v, _) = s { Some(*v) } else { None }).collect();
        let factors: BTreeSet<ValueId> = late.parts.iter().flat_map(|p| plan.inits[&p.value].iter().flatten()).copied().filter(|v| made.contains(v)).collect();
        left.rows.clear();
        for v in factors {
            let x = self.get(v)?;
            let regs = self.spread(&x, plan.rank(v));
            left.rows.push((v, x.dtype, regs));
        }
        let lefts: BTreeSet<ValueId> = late.parts.iter().flat_map(|p| p.terms.iter().map(|t| t.0)).collect();
        if plan.schedule.persistent {
            // Behind the wait for the products that still read the tile's before: else the assembler lets products run one by one. Elsewhere the compiler moves them here by itself.
            self.flight.packs_here = true;
            for v in &lefts {
                if let Some(k) = plan.rank(*v).col.filter(|_| self.packed.remove(v).is_some()) {
                    self.packed(*v, k)?;
                }
            }
            self.flight.packs_here = false;
        }
        left.words = lefts.into_iter().filter_map(|v| Some((v, self.packed.get(&v)?.to_vec()))).collect();
        Ok(left)
    }
}
