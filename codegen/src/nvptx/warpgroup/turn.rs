//! Turns: warpgroups issue products one after the other, so that one's products run beside the other's elementwise work and not beside its products (Shah et al., 2024).
//!
//! A turn lasts from a tile's last products, whose left operands are in registers, to the next tile's first, whose operands are all in shared memory. Each warpgroup
//! has a named barrier of its own and the one before it: who has issued arrives at the next one's and goes on, who begins waits at its own. The last one arrives at the
//! first one's before anything else. All make the same number of turns, since bounds of loops are the block's.

use super::super::emit::Emit;
use super::super::plan::{Part, Plan, Step};
use crate::Error;

/// Named barriers from here on; those below are for warpgroups that share rows, the last one for all who hold rows.
const FIRST: usize = 9;

/// Whether all left operands of a part are in shared memory.
fn shared(plan: &Plan, p: &Part) -> bool {
    p.terms.iter().all(|(l, _)| plan.staged.contains_key(l))
}

/// Where turns begin and end in the body of a loop.
///
/// # Errors
/// There are none to take.
pub(super) fn mark(plan: &Plan, body: &mut [Step]) -> Result<(), String> {
    let issues: Vec<(usize, bool)> = body.iter().enumerate().filter_map(|(i, s)| if let Step::Issue(x) = s { Some((i, x.parts.iter().all(|p| shared(plan, p)))) } else { None }).collect();
    let first = issues.iter().position(|i| !i.1).filter(|i| *i > 0);
    let Some(begin) = first else { return Err("warpgroups take turns where products follow elementwise work on other products".into()) };
    for (at, is_begin) in [(issues[begin].0, true), (issues[begin - 1].0, false)] {
        if let Step::Issue(x) = &mut body[at] {
            if is_begin { x.begins = true } else { x.ends = true }
        }
    }
    Ok(())
}

impl Emit<'_> {
    /// Number of warpgroups that hold rows.
    fn groups(&self) -> usize {
        self.plan.fragment.threads() / 128
    }
    fn barrier_of(&mut self, group: &str, waits: bool) {
        let id = self.ik("addi", group, FIRST);
        let n = self.k(256);
        self.t.line(format_args!("nvvm.barrier{} id = {id} number_of_threads = {n}", if waits { "" } else { ".arrive" }));
    }
    /// The first warpgroup's turn, on entry.
    pub(super) fn first_turn(&mut self) -> Result<(), Error> {
        let group = self.group_on_entry();
        let last = self.k(self.groups() as i64 - 1);
        let is_last = self.cmp("eq", &group, &last);
        self.when(Some(&is_last), |e| {
            let zero = e.k(0);
            e.barrier_of(&zero, false);
            Ok(())
        })
    }
    /// Waits for the warpgroup's turn.
    pub(in super::super) fn begin_turn(&mut self) {
        let group = self.group_on_entry();
        self.barrier_of(&group, true);
    }
    /// What the last one gave that nobody takes any more, behind the last tile of the grid.
    pub(super) fn last_turn(&mut self) -> Result<(), Error> {
        let group = self.group_on_entry();
        let zero = self.k(0);
        let first = self.cmp("eq", &group, &zero);
        self.when(Some(&first), |e| {
            e.barrier_of(&zero, true);
            Ok(())
        })
    }
    /// The next one's turn.
    pub(in super::super) fn end_turn(&mut self) {
        let group = self.group_on_entry();
        let next = self.wrap(&group, 1, self.groups());
        self.barrier_of(&next, false);
    }
    /// The same behind the loop, where nobody comes after the last one, unless there is another tile of the grid.
    pub(in super::super) fn end_turns(&mut self) -> Result<(), Error> {
        if self.plan.schedule.persistent {
            self.end_turn();
            return Ok(());
        }
        let group = self.group_on_entry();
        let last = self.k(self.groups() as i64 - 1);
        let others = self.cmp("ne", &group, &last);
        self.when(Some(&others), |e| {
            e.end_turn();
            Ok(())
        })
    }
}
