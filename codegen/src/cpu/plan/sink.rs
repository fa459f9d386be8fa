//! What is made again instead of kept: a value that several nests over one row use goes through scratch memory, which costs a
//! store and loads of a whole row each. Loading the row from its buffer again, or a sum or product more, costs less
//! (rematerialization: Briggs, Cooper, Torczon 1992, here between loops instead of registers).

use super::*;
use ir::tile::Access;

/// Operations that are done again in another nest, at most, to save a row of scratch memory.
const AGAIN: usize = 2;

impl Plan<'_> {
    /// Moves or copies items into the nests that use them, the last ones first, so that whole chains move.
    pub(super) fn sink(&self, groups: &mut Vec<Group>, carries: &[(V, V)]) {
        if self.panels {
            return;
        }
        let carried: BTreeSet<V> = carries.iter().flat_map(|(a, b)| [*a, *b]).collect();
        for g in (0..groups.len()).rev() {
            let Work::Nest(nest) = &groups[g].work else { continue };
            if nest.vec.is_none() {
                continue;
            }
            for v in nest.items.iter().rev().filter_map(|i| i.out).collect::<Vec<V>>() {
                if carried.contains(&v) || !self.values[v].vec.is_some_and(|a| nest_of(&groups[g]).is_some_and(|n| n.vec == Some(a))) {
                    continue;
                }
                let users: Vec<usize> = (0..groups.len()).filter(|h| *h != g && self.reads(&groups[*h]).contains(&v)).collect();
                if users.is_empty() || !users.iter().all(|h| self.gains(groups, g, *h, v, users.len())) {
                    continue;
                }
                let Some(item) = nest_of(&groups[g]).and_then(|n| n.items.iter().find(|i| i.out == Some(v))).cloned() else { continue };
                for h in users {
                    if let Work::Nest(n) = &mut groups[h].work {
                        n.items.insert(0, item.clone());
                    }
                }
                if let Work::Nest(n) = &mut groups[g].work
                    && !n.items.iter().any(|i| self.operands(i).contains(&v))
                {
                    n.items.retain(|i| i.out != Some(v));
                }
            }
        }
        groups.retain(|g| nest_of(g).is_none_or(|n| !n.items.is_empty()));
    }

    /// Shares the next row of every load out among the nests that load it, in quarters. Else memory would be read in the first nest
    /// over a row only and written in the last one only, and a core reaches its share of the bandwidth with both at once.
    pub(super) fn fetch_ahead(&self, groups: &mut [Group]) {
        let Some(next) = self.serial.last() else { return };
        let mut nests: BTreeMap<V, Vec<usize>> = BTreeMap::new();
        for (k, g) in groups.iter().enumerate() {
            for item in nest_of(g).map_or(&[][..], |n| &n.items) {
                if let (Node::Load(view), Some(v)) = (&item.node, item.out)
                    && view.stride(*next).is_some()
                {
                    nests.entry(v).or_default().push(k);
                }
            }
        }
        for (v, all) in nests {
            let shares: &[usize] = match all.len() {
                1 => &[4],
                2 => &[2, 2],
                3 => &[1, 1, 2],
                _ => &[1, 1, 1, 1],
            };
            let mut first = 0;
            for (&k, &quarters) in all.iter().zip(shares) {
                if let Work::Nest(n) = &mut groups[k].work {
                    n.ahead.insert(v, (first, quarters));
                }
                first += quarters;
            }
        }
    }

    /// Whether making `v` of nest `g` in nest `h`, one of `users`, beats a row of scratch memory.
    fn gains(&self, groups: &[Group], g: usize, h: usize, v: V, users: usize) -> bool {
        let (Some(from), Some(to)) = (nest_of(&groups[g]), nest_of(&groups[h])) else { return false };
        if h < g || from.domain != to.domain || from.vec != to.vec {
            return false;
        }
        let Some(item) = from.items.iter().find(|i| i.out == Some(v)) else { return false };
        let moves = users == 1 && !from.items.iter().any(|i| self.operands(i).contains(&v));
        let operands: Option<usize> = self.operands(item).into_iter().map(|x| self.again(groups, h, x)).sum();
        match &item.node {
            Node::Load(view) => self.loads_again(view, to),
            // Moved, it is not done twice.
            Node::Map(..) if moves => operands.is_some_and(|n| n <= AGAIN),
            Node::Map(op, _) => cheap(*op) && operands.is_some_and(|n| n < AGAIN),
            _ => false,
        }
    }

    /// Whether a row in memory is as good as one in scratch memory.
    fn loads_again(&self, view: &View, to: &Nest) -> bool {
        self.p.buffers[view.buffer.index()].access == Access::Input && to.vec.is_some_and(|a| view.stride(a).is_some_and(Dim::is_one))
    }

    /// Operations that nest `h` has to do to have `v`; none if it cannot or should not.
    fn again(&self, groups: &[Group], h: usize, v: V) -> Option<usize> {
        let to = nest_of(&groups[h])?;
        let value = &self.values[v];
        if value.inline.is_some() || !value.axes.iter().any(|a| to.vec == Some(*a)) {
            return Some(0);
        }
        if to.items.iter().any(|i| self.operands(i).contains(&v) || i.out == Some(v)) {
            // It is there anyway, from memory or made again.
            return Some(0);
        }
        let made = |g: &Group| nest_of(g).filter(|n| n.domain == to.domain && n.vec == to.vec).and_then(|n| n.items.iter().find(|i| i.out == Some(v)).cloned());
        match groups[..h].iter().find_map(made)?.node {
            Node::Load(view) => self.loads_again(&view, to).then_some(0),
            Node::Map(op, args) if cheap(op) => args.iter().map(|a| self.again(groups, h, *a)).sum::<Option<usize>>().map(|n| n + 1),
            _ => None,
        }
    }
}

fn nest_of(g: &Group) -> Option<&Nest> {
    match &g.work {
        Work::Nest(n) => Some(n),
        _ => None,
    }
}

/// One instruction, or nearly.
fn cheap(op: Elementwise) -> bool {
    matches!(op, Elementwise::Add | Elementwise::Sub | Elementwise::Mul | Elementwise::Neg | Elementwise::Max)
}
