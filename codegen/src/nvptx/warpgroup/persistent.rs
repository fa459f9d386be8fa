//! Persistent blocks: as many as the device holds at once, each of which takes tiles of the grid until none are left, so that the next tile's operands are copied while the
//! present one's results are made and stored (Shah et al., 2024).
//!
//! A block begins with the tile of its number. One thread takes the others, one ahead: it adds one to a variable of the module, which wraps to zero at the number of all tiles, since so
//! many are asked for in a launch, and writes the tile's number where all other roles of the block read it, between barrier objects. Who comes first takes the next tile in the grid's
//! order, heads one after the other and long loops first, so that blocks end together however long their tiles are. Two more threads copy: one fills the ring, whose stage and parity go on
//! from tile to tile, the other one the tiles that are there once, as soon as the last products that read them are done.

use super::super::emit::{Emit, I32};
use super::super::plan::Step;
use crate::Error;

/// Barrier objects of persistent blocks, and the number of the next tile: empty (tiles that are there once), full and empty (that number), and where it is.
pub(super) const WORDS: usize = 4;

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
        // Who reads the next tile's number: warps that multiply, and the threads that copy.
        let copying = 1 + usize::from(!self.ring()?.outer.is_empty());
        for (i, n) in [warps, 1, warps + copying].into_iter().enumerate() {
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
        let total = self.tiles()?;
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
                    e.each_tile(&total, 2, false, |e, _, at| {
                        e.flight.position = Some([at[0].clone(), at[1].clone()]);
                        e.scalars(before)?;
                        e.fill_loops(before, &ring.groups)?;
                        Ok(e.ring_position())
                    })
                })?;
                if !ring.outer.is_empty() {
                    only(e, 1, &|e| {
                        e.each_tile(&total, 0, false, |e, parity, _| {
                            let one = e.k(1);
                            let empty = e.own_object(0);
                            let filled = e.i("xori", parity, &one);
                            e.await_object(&empty, &filled);
                            e.fill_outer(&ring.outer)?;
                            Ok(vec![])
                        })
                    })?;
                }
                only(e, 2, &|e| {
                    e.take_tiles(&total);
                    Ok(())
                })
            },
            |e| {
                if plan.schedule.turns {
                    e.first_turn()?;
                }
                e.each_tile(&total, 2, true, |e, parity, at| {
                    e.flight.position = Some([at[0].clone(), at[1].clone()]);
                    // Of the tile before, another warp may still read what was exchanged.
                    e.exchanged = true;
                    let done = e.scalars(before)?;
                    e.multiply(before, after, &done, parity)?;
                    Ok(e.ring_position())
                })?;
                if plan.schedule.turns {
                    e.last_turn()?;
                }
                Ok(())
            },
        )
    }

    /// `body` for every tile of the block, with the parity of the tile's number in the block and `carried` words that are zero at first; the words for the next tile. `warps`: for
    /// all threads of a warp, else for one.
    fn each_tile(&mut self, total: &str, carried: usize, warps: bool, body: impl FnOnce(&mut Self, &str, &[String]) -> Result<Vec<String>, Error>) -> Result<(), Error> {
        let first = self.t.entry("nvvm.read.ptx.sreg.ctaid.x : i32".into());
        let zero = self.k(0);
        let start = [vec![first], vec![zero; 1 + carried]].concat();
        let outer = (self.start.clone(), self.env.clone(), self.packed.clone());
        let inside = self.tile_loop(total, &start);
        self.begin_tile(inside[0].clone())?;
        let next = body(self, &inside[1], &inside[2..])?;
        (self.start, self.env, self.packed) = outer;
        self.flight.position = None;
        let (full, empty, word) = (self.own_object(1), self.own_object(2), self.own_object(3));
        self.await_object(&full, &inside[1]);
        let mut tile = self.t.op(format_args!("llvm.inline_asm has_side_effects asm_dialect = att \"ld.shared.u32 $0, [$1];\", \"=r,l,~{{memory}}\" {word} : (!llvm.ptr<3>) -> i32"));
        if warps {
            // The same in all lanes as the compiler sees it, and all have read it.
            let (all, zero, last) = (self.k(-1), self.k(0), self.k(31));
            tile = self.t.op(format_args!("nvvm.shfl.sync idx {all}, {tile}, {zero}, {last} : i32 -> i32"));
            self.arrive(&[empty], None);
        } else {
            self.t.op(format_args!("nvvm.mbarrier.arrive {empty} : !llvm.ptr<3> -> i64"));
        }
        let one = self.k(1);
        let parity = self.i("xori", &inside[1], &one);
        self.next_tile(&[vec![tile, parity], next].concat());
        Ok(())
    }

    /// Takes tiles for the block, one ahead.
    fn take_tiles(&mut self, total: &str) {
        let (first, blocks) = (self.t.entry("nvvm.read.ptx.sreg.ctaid.x : i32".into()), self.t.entry("nvvm.read.ptx.sreg.nctaid.x : i32".into()));
        let last = self.entry("subi", total, 1);
        let taken = self.t.entry("llvm.mlir.addressof @taken : !llvm.ptr<1>".into());
        let (zero, one) = (self.k(0), self.k(1));
        let inside = self.tile_loop(total, &[first, zero]);
        let (full, empty, word) = (self.own_object(1), self.own_object(2), self.own_object(3));
        // Before the first, it is empty.
        let parity = self.i("xori", &inside[1], &one);
        self.await_object(&empty, &parity);
        let n = self.t.op(format_args!("llvm.inline_asm has_side_effects asm_dialect = att \"atom.relaxed.gpu.global.inc.u32 $0, [$1], $2;\", \"=r,l,r,~{{memory}}\" {taken}, {last} : (!llvm.ptr<1>, i32) -> i32"));
        let tile = self.i("addi", &n, &blocks);
        self.t.line(format_args!("llvm.inline_asm has_side_effects asm_dialect = att \"st.shared.u32 [$0], $1;\", \"l,r,~{{memory}}\" {word}, {tile} : (!llvm.ptr<3>, i32) -> ()"));
        self.t.op(format_args!("nvvm.mbarrier.arrive {full} : !llvm.ptr<3> -> i64"));
        self.next_tile(&[tile, parity]);
    }

    /// Begins a loop that ends when its first word is no tile any more; its words.
    fn tile_loop(&mut self, total: &str, start: &[String]) -> Vec<String> {
        let types = vec![I32.to_string(); start.len()].join(", ");
        let list = |names: &[String]| names.join(", ");
        let (result, seen, inside) = (self.t.fresh(), start.iter().map(|_| self.t.fresh()).collect::<Vec<_>>(), start.iter().map(|_| self.t.fresh()).collect::<Vec<_>>());
        let args: Vec<String> = seen.iter().zip(start).map(|(a, b)| format!("{a} = {b}")).collect();
        self.t.line(format_args!("{result}:{} = scf.while ({}) : ({types}) -> ({types}) {{", start.len(), list(&args)));
        let more = self.cmp("slt", &seen[0], total);
        let typed: Vec<String> = inside.iter().map(|a| format!("{a}: {I32}")).collect();
        self.t.line(format_args!("scf.condition({more}) {} : {types}\n}} do {{\n^bb0({}):", list(&seen), list(&typed)));
        inside
    }
    /// Ends it.
    fn next_tile(&mut self, words: &[String]) {
        let types = vec![I32.to_string(); words.len()].join(", ");
        self.t.line(format_args!("scf.yield {} : {types}\n}}", words.join(", ")));
    }

    /// Says that nobody of the warp reads the tiles that are there once any more.
    pub(super) fn free_outer(&mut self) {
        if self.plan.schedule.persistent && self.plan.ring.as_ref().is_some_and(|r| !r.outer.is_empty()) {
            let object = self.own_object(0);
            self.arrive(&[object], None);
        }
    }
    /// The same behind a loop without tiles, whose products would have said it.
    pub(in super::super) fn free_outer_unread(&mut self, from: &str, to: &str) -> Result<(), Error> {
        if !self.plan.schedule.persistent || !self.ring()?.freed_in_loop {
            return Ok(());
        }
        let none = self.cmp("sge", from, to);
        let object = self.own_object(0);
        self.arrive(&[object], Some(none));
        Ok(())
    }
    /// Says it in the loop's last tile, if the group of products that reads them last is done.
    pub(super) fn release_outer(&mut self, landed: usize) {
        if self.flight.outer.is_some_and(|at| at <= landed)
            && let Some(last) = self.flight.last.clone()
        {
            self.flight.outer = None;
            let object = self.own_object(0);
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
