//! Products of warpgroups: `wgmma` on descriptors of tiles in shared memory, the left operand from there or from registers. They are
//! issued, and awaited where a result is first read.
//!
//! A descriptor is an address and two strides, in units of 16 bytes (PTX ISA, "Matrix Descriptor"). In the layout of
//! [`super::super::layout::Tile`] eight rows are 1024 bytes. Where the summed axis is contiguous, 16 of it are 32 bytes further in a row
//! of a panel, and the second stride is not looked at. Where rows or columns of the result are, 16 of the summed axis are 16 rows
//! further, and 64 columns the next panel.

use super::super::emit::Emit;
use super::super::layout::PANEL;
use super::super::plan::{Dot, Issue, Rank};
use super::super::value::{Body, Tail, Value};
use super::ROWS;
use crate::Error;
use crate::text::Ty;
use ir::tile::{AxisId, ValueId};
use ir::types::DType;
use std::fmt::Write;

/// Which operand: the left one, of the warpgroup's rows, or the right one, of its so many columns.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Side {
    Left,
    Right(usize),
}

/// What has a descriptor: a value in a stage of the ring, as which operand of a product over an axis, and which 16 of that.
pub(super) type Place = (Option<String>, ValueId, Side, AxisId, usize);

/// An operand in shared memory: its descriptor, and whether the summed axis is the rows of its tile.
struct Described {
    descriptor: Descriptor,
    transposed: bool,
}

enum Descriptor {
    There(String),
    /// The sum of where the value begins and of what is known.
    Sum(Place, String, i64),
}

/// A left operand: in shared memory, or four words of a fragment.
enum Left {
    Shared(Described),
    Words(Vec<String>),
}

impl Left {
    fn shared(&self) -> Option<&Described> {
        if let Left::Shared(d) = self { Some(d) } else { None }
    }
}

impl Emit<'_> {
    /// Starts products.
    pub(in super::super) fn issue(&mut self, issue: &Issue) -> Result<(), Error> {
        let plan = self.plan;
        let mut starts = vec![];
        // An accumulator's old content is read by all before one replaces it: those that read more of it first.
        let mut order: Vec<usize> = (0..issue.parts.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(plan.inits[&issue.parts[*i].value].len()));
        for i in order {
            let p = &issue.parts[i];
            let Dot::Matrix { n, .. } = &plan.dots[&p.value] else { return Err(Error::Internal("a product of no matrices".into())) };
            let rank = Rank { rows: true, col: Some(*n) };
            let acc = match (p.starts, plan.inits[&p.value].is_empty()) {
                (true, true) => None,
                (true, false) => Some(self.init(p.value, rank)?),
                // Under way; the machine keeps the order.
                (false, _) => match &self.env[p.value.index()] {
                    Some(Value { body: Body::Regs(r), .. }) => Some(r.to_vec()),
                    _ => return Err(Error::Internal("products that go on before they started".into())),
                },
            };
            starts.push((i, acc));
        }
        starts.sort_by_key(|s| s.0);
        for p in &issue.parts {
            let Dot::Matrix { k, .. } = &plan.dots[&p.value] else { continue };
            for (l, _) in &p.terms {
                if !plan.staged.contains_key(l) {
                    self.packed(*l, *k)?;
                    if plan.schedule.rounded && plan.operand() == DType::BF16 {
                        self.flight.rounded.insert(*l);
                    }
                }
            }
        }
        for (p, (_, acc)) in issue.parts.iter().zip(starts) {
            let Dot::Matrix { n, k, .. } = &plan.dots[&p.value] else { continue };
            for g in &p.waits {
                if self.flight.arrived.insert(*g)
                    && let Some((slot, parity)) = self.flight.turn.clone()
                {
                    let object = self.full(*g, &slot);
                    self.await_object(&object, &parity);
                }
            }
            self.t.line("nvvm.wgmma.fence.aligned");
            let rank = Rank { rows: true, col: Some(*n) };
            let slices = plan.p.axis(*k).extent().div_ceil(16);
            let (rows, cols) = self.shape(rank);
            // Of two warpgroups that share rows, each has its columns, or computes its half.
            let cols = if self.ring()?.exchange.contains_key(&p.value) { cols / 2 } else { cols };
            let mut factors = vec![];
            for (l, r) in &p.terms {
                for slice in 0..slices {
                    let right = self.described(*r, *k, slice, Side::Right(plan.fragment.span(cols)))?;
                    let left = if plan.staged.contains_key(l) {
                        Left::Shared(self.described(*l, *k, slice, Side::Left)?)
                    } else {
                        Left::Words(self.packed(*l, *k)?[4 * slice..4 * slice + 4].to_vec())
                    };
                    factors.push((left, right));
                }
            }
            if factors.is_empty() {
                return Err(Error::Internal("a dot without terms".into()));
            }
            let acc = self.wgmma([rows, cols], acc, &factors);
            self.t.line("nvvm.wgmma.commit.group.sync.aligned");
            self.flight.commits += 1;
            // Where the words of exponentials are its operand, it stays behind them.
            self.flight.made.clear();
            self.flight.values.insert(p.value, self.flight.commits);
            let tail = if plan.inits[&p.value].is_empty() { Tail::Zero } else { Tail::Any };
            self.env[p.value.index()] = Some(Value::regs(rank, DType::F32, tail, acc));
            self.packed.remove(&p.value);
        }
        if issue.frees_outer {
            self.flight.outer = Some(self.flight.commits);
        }
        if let Some((slot, _)) = &self.flight.turn {
            for g in &issue.releases {
                self.flight.releases.insert(*g, (self.flight.commits, slot.clone()));
            }
        }
        Ok(())
    }

    /// The operand `v` at 16 of the summed axis.
    fn described(&mut self, v: ValueId, k: AxisId, slice: usize, side: Side) -> Result<Described, Error> {
        let s = &self.plan.staged[&v];
        let tile = s.tile;
        let transposed = s.axes[1] != k;
        let place = (self.stage.clone(), v, side, k, slice);
        if let Some(d) = self.flight.descriptors.get(&place) {
            return Ok(Described { descriptor: Descriptor::There(d.clone()), transposed });
        }
        let panel = tile.panel_base(1);
        // The first byte, how far one row or column of the result is, and the stride to the next 64 of them.
        let (at, one, further) = if transposed {
            (16 * slice * PANEL, panel / 64, panel)
        } else {
            let per = tile.panel_cols() / 16;
            (slice / per * panel + slice % per * 32, PANEL, 16)
        };
        let known = (s.at + at) as i64 >> 4 | (further as i64 >> 4) << 16 | (1024 >> 4) << 32 | 1 << 62;
        let (_, mut base) = self.region(v);
        let [down, across] = self.plan.fragment.warps;
        let own = match side {
            Side::Left if down > 4 => Some(("shrui", across.trailing_zeros() as usize, ROWS * one)),
            Side::Right(columns) if across > 1 => Some(("andi", 1, columns * one)),
            _ => None,
        };
        if let Some((part, by, bytes)) = own {
            let group = self.group_on_entry();
            let mine = self.ik(part, &group, by);
            let mine = self.ik("muli", &mine, bytes);
            base = self.i("addi", &base, &mine);
        }
        // In a cluster, an address has the block's number above its 18 bits.
        if self.plan.schedule.multicast {
            base = self.ik("andi", &base, (1 << 18) - 1);
        }
        let base = self.ik("shrui", &base, 4);
        let begin = self.t.op(format_args!("arith.extui {base} : i32 to i64"));
        let descriptor = if self.plan.looped.contains(&v) {
            Descriptor::Sum(place, begin, known)
        } else {
            let known = self.t.integer(Ty { elem: "i64", lanes: None }, known);
            Descriptor::There(self.l("addi", &begin, &known))
        };
        Ok(Described { descriptor, transposed })
    }

    /// Products into one result, 64 rows a warpgroup, `rows` × `cols` slots a thread: an instruction for 16 of the summed axis. They are one
    /// piece of assembly, since LLVM takes time for every register that goes into one and out of it.
    ///
    /// The assembler keeps a descriptor in uniform registers where it is added up beside its product; and once, so it is a result as well.
    fn wgmma(&mut self, [rows, cols]: [usize; 2], acc: Option<Vec<String>>, factors: &[(Left, Described)]) -> Vec<String> {
        let n = rows * cols;
        // The instruction's order: per eight columns, two of a row, two of the row eight further.
        let place = |i: usize| (2 * (i / 4) + i % 2) * rows + i / 2 % 2;
        let ty = if self.plan.operand() == DType::BF16 { "bf16" } else { "f16" };
        let mut inputs: Vec<(String, &str, String)> = vec![];
        if let Some(acc) = &acc {
            inputs.extend((0..n).map(|i| (i.to_string(), "f32", acc[place(i)].clone())));
        }
        let mut made: Vec<&Place> = vec![];
        for d in factors.iter().flat_map(|(left, right)| [left.shared(), Some(right)]).flatten() {
            if let Descriptor::Sum(place, ..) = &d.descriptor
                && !made.contains(&place)
            {
                made.push(place);
            }
        }
        let results = n + made.len();
        let mut operand = |constraint: &str, ty, name: &String| {
            let at = inputs.iter().position(|x| x.2 == *name && x.0 == constraint).unwrap_or_else(|| {
                inputs.push((constraint.into(), ty, name.clone()));
                inputs.len() - 1
            });
            format!("${}", results + at)
        };
        let outputs = (0..n).map(|i| format!("${i}")).collect::<Vec<_>>().join(",");
        let mut text = "{\\0A.reg .pred p;\\0A".to_string();
        let mut summed = 0;
        for (i, (left, right)) in factors.iter().enumerate() {
            // Whether there is something to add to: it changes once at most.
            if i == 0 || i == 1 && acc.is_none() {
                let _ = write!(text, "setp.ne.b32 p, {}, 0;\\0A", u8::from(i > 0 || acc.is_some()));
            }
            let mut descriptor = |d: &Described| match &d.descriptor {
                Descriptor::There(d) => operand("l", "i64", d),
                Descriptor::Sum(place, begin, known) => {
                    let at = made.iter().position(|p| *p == place).unwrap_or_default();
                    if at == summed {
                        let _ = write!(text, "add.s64 ${}, {}, {known};\\0A", n + at, operand("l", "i64", begin));
                        summed += 1;
                    }
                    format!("${}", n + at)
                }
            };
            let (a, b) = (left.shared().map(&mut descriptor), descriptor(right));
            let (a, transposed) = match left {
                Left::Shared(d) => (a.unwrap_or_default(), format!("{}, ", u8::from(d.transposed))),
                Left::Words(words) => (format!("{{{}}}", words.iter().map(|w| operand("r", "i32", w)).collect::<Vec<_>>().join(",")), String::new()),
            };
            let _ = write!(text, "wgmma.mma_async.sync.aligned.m64n{}k16.f32.{ty}.{ty} {{{outputs}}}, {a}, {b}, p, 1, 1, {transposed}{};\\0A", 4 * cols, u8::from(right.transposed));
        }
        text.push('}');
        let made: Vec<Place> = made.into_iter().cloned().collect();
        let (out, sums) = self.assembly(&text, n, made.len(), &inputs);
        self.flight.descriptors.extend(made.into_iter().zip(sums));
        let mut regs = vec![String::new(); n];
        for (i, x) in out.into_iter().enumerate() {
            regs[place(i)] = x;
        }
        regs
    }

    /// Inline assembly with `n` floats and then `m` integers of 64 bits as results, which may be written before the inputs are read, and inputs
    /// by constraint and type.
    fn assembly(&mut self, text: &str, n: usize, m: usize, inputs: &[(String, &str, String)]) -> (Vec<String>, Vec<String>) {
        let constraints: Vec<&str> = std::iter::repeat_n("=f", n).chain(std::iter::repeat_n("=&l", m)).chain(inputs.iter().map(|x| x.0.as_str())).collect();
        let (names, types): (Vec<&str>, Vec<&str>) = inputs.iter().map(|x| (x.2.as_str(), x.1)).unzip();
        self.results.insert([n, m]);
        let results = super::super::results([n, m]);
        let s = self.t.op(format_args!(
            "llvm.inline_asm has_side_effects asm_dialect = att \"{text}\", \"{}\" {} : ({}) -> {results}",
            constraints.join(","), names.join(", "), types.join(", ")
        ));
        let mut one = |i| self.t.op(format_args!("llvm.extractvalue {s}[{i}] : {results}"));
        ((0..n).map(&mut one).collect(), (n..n + m).map(&mut one).collect())
    }

    /// Waits for the products of `v`, if they are under way.
    pub(in super::super) fn land(&mut self, v: ValueId) {
        let Some(group) = self.flight.values.get(&v).copied() else { return };
        let behind = self.flight.commits - group;
        // The assembler moves a wait up, before what was to run beside the products. It does not move it across an instruction with an
        // effect, which here waits for the last reduction, or for the exponentials, and does nothing but where these are no numbers.
        let (reduced, made) = (std::mem::take(&mut self.flight.reduced), std::mem::take(&mut self.flight.made));
        let beside = if reduced.is_empty() { &made } else { &reduced };
        if let (Some(a), Some(b)) = (beside.first(), beside.last()) {
            let text = "{\\0A.reg .pred p;\\0Asetp.nan.f32 p, $0, $1;\\0A@p nanosleep.u32 20;\\0A}";
            self.t.line(format_args!("llvm.inline_asm has_side_effects asm_dialect = att \"{text}\", \"f,f\" {a}, {b} : (f32, f32) -> ()"));
        }
        let mut landed: Vec<ValueId> = self.flight.values.iter().filter(|(w, g)| **g <= group && **w != v).map(|(w, _)| *w).collect();
        landed.insert(0, v);
        let mut halves = vec![];
        for (i, w) in landed.into_iter().enumerate() {
            self.flight.values.remove(&w);
            let Some(x) = self.env[w.index()].clone() else { continue };
            let Body::Regs(regs) = &x.body else { continue };
            // Results pass through the wait, so that nothing that reads them moves before it.
            let text = if i == 0 { format!("wgmma.wait_group.sync.aligned {behind};") } else { String::new() };
            let inputs: Vec<(String, &str, String)> = regs.iter().enumerate().map(|(i, r)| (i.to_string(), "f32", r.clone())).collect();
            let (out, _) = self.assembly(&text, regs.len(), 0, &inputs);
            self.env[w.index()] = Some(Value::regs(x.rank, x.dtype, x.tail, out));
            halves.extend(self.plan.ring.as_ref().and_then(|r| r.exchange.get(&w)).map(|at| (w, *at)));
        }
        self.release(group);
        for (w, at) in halves {
            let Some(Value { rank, dtype, tail, body: Body::Regs(own) }) = self.env[w.index()].clone() else { continue };
            // In a loop, the other warpgroup may still read what the tile before had.
            let [first, second] = self.exchange_at(&own, at, true);
            self.env[w.index()] = Some(Value::regs(rank, dtype, tail, [first, second].concat()));
        }
    }

    /// Reads `v` from the words that products read, if that is the schedule's wish and they have.
    pub(in super::super) fn unpack(&mut self, v: ValueId) {
        if !self.flight.rounded.remove(&v) {
            return;
        }
        let (Some(words), Some(x)) = (self.packed.get(&v).cloned(), self.env[v.index()].clone()) else { return };
        let (rows, cols) = self.shape(x.rank);
        let mut regs = vec![String::new(); rows * cols];
        for (n, w) in words.iter().enumerate() {
            let (slice, m, i) = (n / (2 * rows), n / 4 % (rows / 2), n % 4);
            let at = (4 * slice + 2 * (i / 2)) * rows + 2 * m + i % 2;
            // With an effect, so that the unrounded values are not kept in the words' place.
            for (text, at) in [("shl.b32 $0, $1, 16;", at), ("and.b32 $0, $1, -65536;", at + rows)] {
                let x = self.t.op(format_args!("llvm.inline_asm has_side_effects asm_dialect = att \"{text}\", \"=r,r\" {w} : (i32) -> i32"));
                regs[at] = self.t.op(format_args!("llvm.bitcast {x} : i32 to f32"));
            }
        }
        self.env[v.index()] = Some(Value::regs(x.rank, x.dtype, x.tail, regs));
    }

    /// Waits for everything under way.
    pub(super) fn land_all(&mut self) {
        while let Some(v) = self.flight.values.iter().max_by_key(|(_, g)| **g).map(|(v, _)| *v) {
            self.land(v);
        }
    }
}
