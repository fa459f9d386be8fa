//! Persistent blocks: as many as the device holds at once, each of which takes tiles of the grid until none are left, so that the next tile's operands are copied while the
//! present one's results are made and stored (Shah et al., 2024).
//!
//! A block begins with the tile of its number. The thread that fills the ring takes the next one when all copies of the present one are under way, and tells the block's other roles,
//! between barrier objects, where it is. Where all tiles have loops of the same length, the next one is as many further as there are blocks. Elsewhere who comes first takes the next tile
//! in the grid's order, heads one after the other and long loops first, so that blocks end together however long their tiles are: the thread adds one to a variable of the module, which
//! wraps to zero at the number of all tiles, since so many are asked for in a launch. The ring's stage and parity go on from tile to tile. Another thread copies the tiles that are there
//! once, as soon as the last products that read them are done.

use super::super::emit::{Emit, I32};
use super::super::plan::Step;
use crate::Error;

/// Barrier objects of persistent blocks, 8 bytes each: one that says that what is there once is empty; then, for the block's even and odd tiles, one that says that a tile is
/// known, and one that it is done. Behind them, for even and odd tiles, what is told of a tile: whether there is one, and its first position along each axis of the grid.
const OUTER: usize = 0;
const FULL: usize = 1;
const EMPTY: usize = 3;
const TOLD: usize = 5;
/// A role's place is one word: the ring's stage; from this bit on, its parity; from that one on, how many tiles of the grid the block had. One register through the loop.
const PARITY: usize = 8;
const COUNT: usize = 9;
/// Bytes of what is told.
const RECORD: usize = 64;
/// All of it, in words of 8 bytes.
pub(super) const WORDS: usize = TOLD + 2 * RECORD / 8;

impl Emit<'_> {
    /// Barrier object number `i` of persistent blocks.
    fn own_object(&mut self, i: usize) -> String {
        let objects = self.plan.ring.as_ref().map_or(0, |r| r.objects);
        self.object(objects + i, None)
    }
    /// Makes their barrier objects, if the block is persistent.
    pub(super) fn persistent_objects(&mut self) -> Result<(), Error> {
        if !self.plan.schedule.persistent {
            return Ok(());
        }
        let warps = self.plan.fragment.threads() / 32;
        // Who reads numbers: warps that multiply, and the threads that copy.
        let readers = warps + 1 + usize::from(!self.ring()?.outer.is_empty());
        for (i, n) in [(OUTER, warps), (FULL, 1), (FULL + 1, 1), (EMPTY, readers), (EMPTY + 1, readers)] {
            let object = self.own_object(i);
            let n = self.k(n as i64);
            self.t.line(format_args!("nvvm.mbarrier.init {object}, {n} : !llvm.ptr<3>, i32"));
        }
        Ok(())
    }

    /// The whole body of a persistent block.
    pub(in super::super) fn persistent(&mut self, before: &[Step], after: &[Step]) -> Result<(), Error> {
        let plan = self.plan;
        let ring = self.ring()?.clone();
        if 4 * (1 + self.parallel().len()) > RECORD {
            return Err(crate::nvptx::refused(&plan.p, "persistent: a grid of so many axes"));
        }
        self.objects()?;
        let threads = plan.fragment.threads();
        let only = |e: &mut Self, warp: usize, body: &dyn Fn(&mut Self) -> Result<(), Error>| {
            let tid = e.tid_on_entry();
            let first = e.k((threads + 32 * warp) as i64);
            let one = e.cmp("eq", &tid, &first);
            e.when(Some(&one), |e| body(e))
        };
        self.by_roles(
            |e| {
                only(e, 0, &|e| {
                    let (first, zero) = (e.t.entry("nvvm.read.ptx.sreg.ctaid.x : i32".into()), e.k(0));
                    e.tell(&first, &zero)?;
                    e.each_tile(false, |e| {
                        e.scalars(before)?;
                        e.fill_loops(before, &ring.groups)?;
                        e.take_tile()
                    })
                })?;
                if !ring.outer.is_empty() {
                    only(e, 1, &|e| {
                        e.each_tile(false, |e| {
                            let (empty, odd) = (e.own_object(OUTER), e.odd());
                            let filled = e.ik("xori", &odd, 1);
                            e.await_object(&empty, &filled);
                            e.fill_outer(&ring.outer)
                        })
                    })?;
                }
                Ok(())
            },
            |e| {
                if plan.schedule.turns {
                    e.first_turn()?;
                }
                e.each_tile(true, |e| {
                    // Of the tile before, another warp may still read what was exchanged.
                    e.exchanged = true;
                    let (done, odd) = (e.scalars(before)?, e.odd());
                    e.multiply(before, after, &done, &odd)
                })?;
                if plan.schedule.turns {
                    e.last_turn()?;
                }
                Ok(())
            },
        )
    }

    /// `body` for every tile of the block. `warps`: for all threads of a warp, else for one.
    fn each_tile(&mut self, warps: bool, body: impl FnOnce(&mut Self) -> Result<(), Error>) -> Result<(), Error> {
        let zero = self.k(0);
        let [result, seen, word] = [(); 3].map(|()| self.t.fresh());
        self.t.line(format_args!("{result} = scf.while ({seen} = {zero}) : ({I32}) -> {I32} {{"));
        let (full, parity) = (self.place_of(FULL, &seen), self.times(&seen));
        self.await_object(&full, &parity);
        let some = self.told(&seen, 0, warps);
        let more = self.cmp("ne", &some, &zero);
        self.t.line(format_args!("scf.condition({more}) {seen} : {I32}\n}} do {{\n^bb0({word}: {I32}):"));
        let outer = (self.start.clone(), self.env.clone(), self.packed.clone());
        self.flight.position = Some(vec![word]);
        self.flight.asks = warps;
        self.begin_tile_again()?;
        body(self)?;
        (self.start, self.env, self.packed) = outer;
        let word = self.ring_position()[0].clone();
        self.flight.position = None;
        let empty = self.place_of(EMPTY, &word);
        if warps {
            let all = self.k(-1);
            self.t.line(format_args!("nvvm.bar.warp.sync {all} : i32"));
            self.arrive(&[empty], None);
        } else {
            self.t.op(format_args!("nvvm.mbarrier.arrive {empty} : !llvm.ptr<3> -> i64"));
        }
        let next = self.ik("addi", &word, 1 << COUNT);
        self.t.line(format_args!("scf.yield {next} : {I32}\n}}"));
        Ok(())
    }

    /// Stage and parity of a word of a block's place.
    pub(super) fn unpacked(&mut self, word: &str) -> (String, String) {
        let parity = self.ik("shrui", word, PARITY);
        (self.ik("andi", word, (1 << PARITY) - 1), self.ik("andi", &parity, 1))
    }
    /// The word where the ring is one stage further.
    pub(super) fn packed_turn(&mut self, word: &str) -> String {
        let stages = self.plan.schedule.stages;
        let (slot, _) = self.unpacked(word);
        let last = self.k(stages as i64 - 1);
        let around = self.cmp("eq", &slot, &last);
        let (next, first) = (self.ik("addi", word, 1), self.ik("subi", word, stages - 1));
        let first = self.ik("xori", &first, 1 << PARITY);
        self.t.op(format_args!("arith.select {around}, {first}, {next} : i32"))
    }
    /// Positions of the block's present tile: read again behind its loop, so that none is kept through it.
    pub(super) fn begin_tile_again(&mut self) -> Result<(), Error> {
        if !self.plan.schedule.persistent {
            return Ok(());
        }
        let (zero, word, warps) = (self.k(0), self.ring_position()[0].clone(), self.flight.asks);
        self.start = vec![zero; self.plan.p.axes.len()];
        for (i, (axis, _)) in self.parallel().into_iter().enumerate() {
            self.start[axis.index()] = self.told(&word, 1 + i, warps);
        }
        Ok(())
    }
    /// Part `i` of what is told of the block's tile at `word`: whether there is one, then its positions; for a warp the same in all lanes as the compiler sees it.
    fn told(&mut self, word: &str, i: usize, warps: bool) -> String {
        let record = self.place_of(TOLD, word);
        let word = self.step(&record, 3, 4 * i);
        let x = self.t.op(format_args!("llvm.inline_asm has_side_effects asm_dialect = att \"ld.shared.u32 $0, [$1];\", \"=r,l,~{{memory}}\" {word} : (!llvm.ptr<3>) -> i32"));
        if !warps {
            return x;
        }
        let (all, zero, last) = (self.k(-1), self.k(0), self.k(31));
        self.t.op(format_args!("nvvm.shfl.sync idx {all}, {x}, {zero}, {last} : i32 -> i32"))
    }
    /// Of two objects or records that tiles have in turn, that of the present one.
    fn place_of(&mut self, first: usize, word: &str) -> String {
        let object = self.own_object(first);
        let count = self.ik("shrui", word, COUNT);
        let odd = self.ik("andi", &count, 1);
        let by = self.ik("muli", &odd, if first == TOLD { RECORD } else { 8 });
        self.t.op(format_args!("llvm.getelementptr {object}[{by}] : (!llvm.ptr<3>, i32) -> !llvm.ptr<3>, i8"))
    }
    /// Whether each of both was had an odd number of times.
    fn times(&mut self, word: &str) -> String {
        let twice = self.ik("shrui", word, COUNT + 1);
        self.ik("andi", &twice, 1)
    }
    /// The parity of the tile's number in the block.
    fn odd(&mut self) -> String {
        let word = self.ring_position()[0].clone();
        let count = self.ik("shrui", &word, COUNT);
        self.ik("andi", &count, 1)
    }

    /// Takes the block's next tile, and tells where it is. Only when all copies of the present one are under way, so that a block that is late takes none that another one could begin with.
    fn take_tile(&mut self) -> Result<(), Error> {
        let blocks = self.t.entry("nvvm.read.ptx.sreg.nctaid.x : i32".into());
        let word = self.ring_position()[0].clone();
        let next = self.ik("addi", &word, 1 << COUNT);
        let tile = if self.plan.even() {
            let (had, first) = (self.ik("shrui", &next, COUNT), self.t.entry("nvvm.read.ptx.sreg.ctaid.x : i32".into()));
            let further = self.i("muli", &had, &blocks);
            self.i("addi", &first, &further)
        } else {
            let total = self.tiles()?;
            let taken = self.t.entry("llvm.mlir.addressof @taken : !llvm.ptr<1>".into());
            let last = self.entry("subi", &total, 1);
            let n = self.t.op(format_args!("llvm.inline_asm has_side_effects asm_dialect = att \"atom.relaxed.gpu.global.inc.u32 $0, [$1], $2;\", \"=r,l,r,~{{memory}}\" {taken}, {last} : (!llvm.ptr<1>, i32) -> i32"));
            self.i("addi", &n, &blocks)
        };
        // What was told before the present tile is not read any more; the first time, nothing was.
        let (empty, times) = (self.place_of(EMPTY, &next), self.times(&next));
        let parity = self.ik("xori", &times, 1);
        self.await_object(&empty, &parity);
        self.tell(&tile, &next)
    }
    /// Tells where tile number `tile` of the grid is, or that there is none, to roles whose place will be `word`.
    fn tell(&mut self, tile: &str, word: &str) -> Result<(), Error> {
        let total = self.tiles()?;
        let more = self.cmp("slt", tile, &total);
        let some = self.t.op(format_args!("arith.extui {more} : i1 to i32"));
        self.begin_tile(tile.into())?;
        let starts: Vec<String> = self.parallel().iter().map(|(a, _)| self.start[a.index()].clone()).collect();
        let record = self.place_of(TOLD, word);
        for (i, x) in [vec![some], starts].concat().into_iter().enumerate() {
            let to = self.step(&record, 3, 4 * i);
            self.t.line(format_args!("llvm.inline_asm has_side_effects asm_dialect = att \"st.shared.u32 [$0], $1;\", \"l,r,~{{memory}}\" {to}, {x} : (!llvm.ptr<3>, i32) -> ()"));
        }
        let full = self.place_of(FULL, word);
        self.t.op(format_args!("nvvm.mbarrier.arrive {full} : !llvm.ptr<3> -> i64"));
        Ok(())
    }

    /// Says that nobody of the warp reads the tiles that are there once any more.
    pub(super) fn free_outer(&mut self) {
        if self.plan.schedule.persistent && self.plan.ring.as_ref().is_some_and(|r| !r.outer.is_empty()) {
            let object = self.own_object(OUTER);
            self.arrive(&[object], None);
        }
    }
    /// The same behind a loop without tiles, whose products would have said it.
    pub(in super::super) fn free_outer_unread(&mut self, from: &str, to: &str) -> Result<(), Error> {
        if !self.plan.schedule.persistent || !self.ring()?.freed_in_loop {
            return Ok(());
        }
        let none = self.cmp("sge", from, to);
        let object = self.own_object(OUTER);
        self.arrive(&[object], Some(none));
        Ok(())
    }
    /// Says it in the loop's last tile, if the group of products that reads them last is done.
    pub(super) fn release_outer(&mut self, landed: usize) {
        if self.flight.outer.is_some_and(|at| at <= landed)
            && let Some(last) = self.flight.last.clone()
        {
            self.flight.outer = None;
            let object = self.own_object(OUTER);
            self.arrive(&[object], Some(last));
        }
    }
    /// Remembers whether tile `i` is the last one before `end`.
    pub(in super::super) fn is_last(&mut self, i: &str, end: &str) {
        if self.plan.ring.as_ref().is_some_and(|r| r.freed_in_loop) {
            let next = self.ik("addi", i, 1);
            self.flight.last = Some(self.cmp("sge", &next, end));
        }
    }
}
