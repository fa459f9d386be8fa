//! Several kernels for several results.
//!
//! What has to be stored is found one result at a time: each alone is a kernel once certain values are read instead of computed, and these
//! are targets like the results. Then kernels are joined where that saves a pass: a statistic, the sum that it corrects and the
//! epilogue that needs both are one kernel again, and the rows of a gradient that sum over the same axis another. What is in the end
//! read only by the kernel that computes it is not stored. Nothing here depends on what the results mean.

use super::again::STORED;
use super::partition::{Kernel, Partition, Why};
use ir::diagnostic::Error;
use ir::dim::Name;
use ir::graph::Var;
use ir::prim::Prim;
use ir::prim::ReduceKind;
use std::collections::{BTreeMap, BTreeSet};

/// A result, or a value between kernels.
struct Member {
    name: Name,
    var: Var,
    /// Why it is stored; `None` for results.
    why: Option<String>,
}

/// Members that one kernel computes.
#[derive(Clone)]
struct Group {
    /// Positions in the list of members, ascending.
    of: Vec<usize>,
    kernel: Kernel,
    /// Members that it reads.
    reads: BTreeSet<Var>,
}

impl Kernel {
    /// Walks over the data: passes over the streamed axis, or one.
    fn cost(&self) -> usize {
        let passes = self.stats.values().map(|s| s.pass + 1).max().unwrap_or(0);
        let along = |s: &super::view::Strides| !self.resident && self.owned.is_none() && s.of.iter().any(|(n, _)| self.x.as_ref().is_some_and(|x| x.name == *n));
        (passes + usize::from(self.stores.iter().any(|s| along(&s.2)))).max(1)
    }
    fn shared_out(&self) -> BTreeSet<&Name> {
        self.parallel.iter().map(|a| &a.name).collect()
    }
}

impl Partition<'_> {
    /// Kernels for `targets`, which are no single one.
    pub(super) fn plan(&mut self, targets: Vec<(Name, Var)>) -> Result<(), Error> {
        let mut members: Vec<Member> = targets.into_iter().map(|(name, var)| Member { name, var, why: None }).collect();
        let mut known = BTreeMap::new();
        let mut groups = loop {
            let mut groups = self.singles(&mut members, &mut known)?;
            if !self.options.scratch {
                if self.lend(&mut members, &mut known, &groups) {
                    continue;
                }
                self.join(&members, &mut groups);
                self.drop_private(&members, &mut groups);
                break groups;
            }
            groups = self.own(&members, groups);
            // Kernels that are joined make what they share once; only then is what several of them make known.
            let Some((var, why)) = self.made_by_several(&members, &groups) else { break groups };
            store(&mut members, &mut known, var, why);
        };
        for g in &groups {
            if let (Some(x), Some(a)) = (&g.kernel.x, &g.kernel.owned) {
                let part = if g.kernel.parts > 1 { format!("one of {} parts", g.kernel.parts) } else { "all".into() };
                self.fused.notes.push(format!("an instance has {part} of {} beside the loop over {}: sums over both share what they have in common", a.name, x.name));
            }
        }
        for m in members.iter().filter(|m| groups.iter().any(|g| g.kernel.targets.iter().any(|t| t.1 == m.var))) {
            if let Some(why) = &m.why {
                let label = self.label(m.var);
                self.fused.notes.push(format!("stored {label}: {why}"));
            }
        }
        while !groups.is_empty() {
            // The first one that waits for no other.
            let waits = |g: &Group| groups.iter().any(|h| h.of != g.of && h.kernel.targets.iter().any(|t| g.reads.contains(&t.1)));
            let next = groups.iter().position(|g| !waits(g)).ok_or_else(|| Error::new("fuse: kernels wait for each other".to_string()))?;
            let g = groups.remove(next);
            self.emit(&g.kernel)?;
        }
        Ok(())
    }

    /// Runs `f` with all members but those of `group` in memory.
    fn beside<T>(&mut self, members: &[Member], group: &[usize], f: impl FnOnce(&Self) -> T) -> T {
        let before = self.stored.clone();
        for m in members.iter() {
            if !group.iter().any(|g| members[*g].var == m.var) {
                self.stored.entry(m.var).or_insert(m.name.clone());
            }
        }
        let out = f(self);
        self.stored = before;
        out
    }

    /// One kernel per member; values that have to be stored for that become members.
    fn singles(&mut self, members: &mut Vec<Member>, known: &mut Known) -> Result<Vec<Group>, Error> {
        for _ in 0..self.f.vars.len() + 2 {
            let mut groups: Vec<Group> = vec![];
            let mut cuts: Vec<(Var, String)> = vec![];
            for i in 0..members.len() {
                let of: Vec<usize> = (0..members.len()).filter(|j| members[*j].var == members[i].var).collect();
                if of[0] != i {
                    continue;
                }
                if let Some((group, _)) = known.get(&i) {
                    groups.push(group.clone());
                    continue;
                }
                match self.beside(members, &of, |p| p.alone(&targets(members, &of)).map(|k| (p.values(&k.0), k))) {
                    Ok((values, (kernel, reads))) => {
                        let group = Group { of, kernel, reads };
                        known.insert(i, (group.clone(), values));
                        groups.push(group);
                    }
                    Err(Why::Cut(vars, why)) => cuts.extend(vars.into_iter().map(|v| (v, why.clone()))),
                    Err(Why::Split(why)) => return Err(Error::new(format!("fuse: {why}"))),
                    Err(Why::Fatal(e)) => return Err(e),
                }
                // One at a time: what it stores may serve the others.
                if !cuts.is_empty() {
                    break;
                }
            }
            if cuts.is_empty() {
                return Ok(groups);
            }
            for (var, why) in cuts {
                store(members, known, var, why);
            }
        }
        Err(Error::new("fuse: cutting does not end"))
    }

    /// Makes members of the statistics for which one kernel walks over the data once more, where another one has all of them in a walk of its own: the
    /// first then reads them. Whether there are such.
    fn lend(&self, members: &mut Vec<Member>, known: &mut Known, groups: &[Group]) -> bool {
        for g in groups.iter().filter(|g| g.kernel.cost() > 1) {
            let last = g.kernel.stats.values().map(|s| s.pass).max().unwrap_or(0);
            let first: Vec<Var> = g.kernel.stats.iter().filter(|(_, s)| s.pass < last).map(|(v, _)| *v).collect();
            let waits = |h: &Group| g.of.iter().any(|m| h.reads.contains(&members[*m].var));
            let has = |h: &&Group| h.of != g.of && !waits(h) && h.kernel.cost() == 1 && first.iter().all(|v| h.kernel.stats.contains_key(v) && self.narrow(*v));
            if first.is_empty() || first.iter().any(|v| members.iter().any(|m| m.var == *v)) {
                continue;
            }
            if let Some(h) = groups.iter().find(has) {
                let why = format!("the kernel of {} makes it in its pass, and that of {} would in one more", members[h.of[0]].name, members[g.of[0]].name);
                first.iter().for_each(|v| store(members, known, *v, why.clone()));
                return true;
            }
        }
        false
    }

    /// The kernel of one value: over the axis of its last sums, or over one that an earlier sum needs if that cuts nothing out and
    /// no instance repeats another's sums.
    fn alone(&self, targets: &[(Name, Var)]) -> Result<(Kernel, BTreeSet<Var>), Why> {
        // What is wider than anything stored must not stand in a tile whole.
        let stands_whole = |k: &Kernel| k.x.as_ref().is_some_and(|x| self.values(k).iter().any(|v| !self.narrow(*v) && !self.f.ty(*v).has(&x.name)));
        let with_reads = |k: Kernel| {
            let reads = self.reads(&k);
            (k, reads)
        };
        let first = match self.kernel(targets, None, None) {
            Ok(k) if !stands_whole(&k) => return Ok(with_reads(k)),
            first => first,
        };
        if matches!(first, Ok(_) | Err(Why::Cut(..))) {
            for n in self.sums_behind(targets) {
                if let Ok(k) = self.kernel(targets, Some(&n), None) {
                    let repeated = |v: &Var| k.parallel.iter().any(|a| !self.f.ty(*v).has(&a.name));
                    if !k.resident && !k.stats.is_empty() && !k.stats.keys().any(repeated) && k.cost() == 1 && !stands_whole(&k) {
                        return Ok(with_reads(k));
                    }
                }
            }
        }
        first.map(with_reads)
    }
    /// Axes of sums and maxima behind `targets`, the nearest last.
    fn sums_behind(&self, targets: &[(Name, Var)]) -> Vec<Name> {
        let (mut names, mut seen): (Vec<Name>, _) = (vec![], BTreeSet::new());
        let mut open: Vec<Var> = targets.iter().map(|t| t.1).collect();
        while let Some(v) = open.pop() {
            let Some(e) = self.definitions[v.index()].map(|i| &self.f.eqns[i]).filter(|_| seen.insert(v) && !self.stored.contains_key(&v)) else { continue };
            if let Prim::Reduce(ReduceKind::Sum | ReduceKind::Max, over) | Prim::Contract(over) = &e.op {
                let new: Vec<Name> = over.iter().filter(|n| !names.contains(*n)).cloned().collect();
                names.extend(new);
            }
            open.extend(&e.args);
        }
        names
    }
    /// Values of a kernel, those that it reads included.
    fn values(&self, k: &Kernel) -> BTreeSet<Var> {
        let mut seen = BTreeSet::new();
        let mut open: Vec<Var> = k.stores.iter().map(|s| s.1).collect();
        while let Some(v) = open.pop() {
            if let (true, None, Some(i)) = (seen.insert(v), self.read(v), self.definitions[v.index()]) {
                open.extend(&self.f.eqns[i].args);
            }
        }
        seen
    }
    /// Stored values that a kernel reads.
    fn reads(&self, k: &Kernel) -> BTreeSet<Var> {
        self.values(k).into_iter().filter_map(|v| self.read(v)).map(|r| r.0).collect()
    }

    /// Joins kernels; and where kernels share products along two axes, of which one streams over the first and the other over the second,
    /// makes them one if that is less work: its instances have all of the second axis, sum over it within each tile of the first, and carry
    /// the sums over the first. What joins such a kernel is found one by one, the greatest gain first.
    fn own(&mut self, members: &[Member], single: Vec<Group>) -> Vec<Group> {
        let streamed = |g: &Group| g.kernel.x.clone().filter(|_| !g.kernel.resident).map(|x| x.name);
        let shares = |g: &Group, n: &Name| g.kernel.parallel.iter().any(|a| a.name == *n);
        let mut best = single.clone();
        self.join(members, &mut best);
        self.drop_private(members, &mut best);
        let mut least = None;
        let axes: BTreeSet<Name> = single.iter().filter_map(streamed).collect();
        for (x, y) in axes.iter().flat_map(|x| axes.iter().map(move |y| (x, y))) {
            let over = |along: &Name, beside: &Name| (0..single.len()).filter(|g| streamed(&single[*g]).as_ref() == Some(along) && shares(&single[*g], beside)).collect::<Vec<usize>>();
            let (mut taken, mut across) = (over(x, y), over(y, x));
            while !taken.is_empty() {
                let mut gain = None;
                for &g in &across {
                    let with: Vec<usize> = taken.iter().copied().chain([g]).collect();
                    let Some(mut groups) = self.owning(members, &single, &with, x, y) else { continue };
                    self.join(members, &mut groups);
                    self.drop_private(members, &mut groups);
                    let before = *least.get_or_insert_with(|| self.work(members, &best));
                    let now = self.work(members, &groups);
                    if now < before {
                        (least, gain, best) = (Some(now), Some(g), groups);
                    }
                }
                let Some(g) = gain else { break };
                taken.push(g);
                across.retain(|h| *h != g);
            }
        }
        best
    }
    /// `single`, of which those numbered `of` are one kernel that streams over `x` and has all of `y`; if there is such a kernel.
    fn owning(&mut self, members: &[Member], single: &[Group], of: &[usize], x: &Name, y: &Name) -> Option<Vec<Group>> {
        let mut own: Vec<usize> = of.iter().flat_map(|g| &single[*g].of).copied().collect();
        own.sort_unstable();
        let (kernel, reads) = self.beside(members, &own, |p| {
            let k = p.kernel(&targets(members, &own), Some(x), Some(y)).ok()?;
            let reads = p.reads(&k);
            Some((k, reads))
        })?;
        // What it would wait for must not wait for it.
        if self.circular(members, single, of, &reads) {
            return None;
        }
        let mut out: Vec<Group> = single.iter().enumerate().filter(|(i, _)| !of.contains(i)).map(|(_, g)| g.clone()).collect();
        out.push(Group { of: own, kernel, reads });
        Some(out)
    }
    /// Whether something that `reads` come from waits for one of the groups `of`.
    fn circular(&self, members: &[Member], groups: &[Group], of: &[usize], reads: &BTreeSet<Var>) -> bool {
        let makes = |g: usize, v: &BTreeSet<Var>| groups[g].of.iter().any(|m| v.contains(&members[*m].var));
        let mut open: Vec<usize> = (0..groups.len()).filter(|g| !of.contains(g) && makes(*g, reads)).collect();
        let mut seen: BTreeSet<usize> = open.iter().copied().collect();
        while let Some(g) = open.pop() {
            for h in (0..groups.len()).filter(|h| makes(*h, &groups[g].reads)) {
                if of.contains(&h) {
                    return true;
                }
                if seen.insert(h) {
                    open.push(h);
                }
            }
        }
        false
    }
    /// What is computed by several kernels, although one that stores it and the others reading it were less (`again.rs`), and why it is stored.
    fn made_by_several(&mut self, members: &[Member], groups: &[Group]) -> Option<(Var, String)> {
        let mut makers: BTreeMap<Var, Vec<usize>> = BTreeMap::new();
        // What a kernel has dropped is in no memory, so that it makes that as well.
        let absent = |g: &Group| {
            let others: BTreeSet<usize> = groups.iter().filter(|h| h.of != g.of).flat_map(|h| &h.of).copied().collect();
            (0..members.len()).filter(|m| !others.contains(m)).collect::<Vec<usize>>()
        };
        for (n, g) in groups.iter().enumerate() {
            let made = self.beside(members, &absent(g), |p| p.values(&g.kernel).into_iter().filter(|v| p.read(*v).is_none()).collect::<Vec<Var>>());
            made.into_iter().filter(|v| members.iter().all(|m| m.var != *v)).for_each(|v| makers.entry(v).or_default().push(n));
        }
        let mut best: Option<(f64, Var, usize)> = None;
        for (v, of) in makers.iter().filter(|m| m.1.len() > 1) {
            let without: f64 = of.iter().map(|n| self.beside(members, &absent(&groups[*n]), |p| p.without(&groups[*n].kernel, *v))).sum();
            let gain = self.beside(members, &[], |p| p.saved_by_storing(*v, without, of.len()));
            // The first of equal ones.
            if let Some(gain) = gain.filter(|g| best.is_none_or(|b| *g > b.0)) {
                best = Some((gain, *v, of.len()));
            }
        }
        best.map(|(_, v, n)| (v, format!("{n} kernels would make it")))
    }
    /// What kernels cost in arithmetic.
    fn work(&mut self, members: &[Member], groups: &[Group]) -> u64 {
        let mut sum = 0u64;
        for (number, g) in groups.iter().enumerate() {
            let programs = self.beside(members, &g.of, |p| p.programs(&g.kernel, number));
            let work = |p: &ir::tile::Program| super::partition::work(p, self.f, self.options);
            // Behind the first, what adds up parts: each is written and read.
            let all = |all: Vec<ir::tile::Program>| all.iter().enumerate().map(|(i, p)| work(p).saturating_mul(if i > 0 { STORED as u64 } else { 1 })).fold(0, u64::saturating_add);
            sum = sum.saturating_add(programs.map_or(u64::MAX, all));
        }
        sum
    }

    /// Joins kernels of the same parallel axes where the two together walk over the data less often.
    fn join(&mut self, members: &[Member], groups: &mut Vec<Group>) {
        let mut refused: BTreeSet<(Vec<usize>, Vec<usize>)> = BTreeSet::new();
        'again: loop {
            for b in 1..groups.len() {
                for a in 0..b {
                    let key = (groups[a].of.clone(), groups[b].of.clone());
                    if groups[a].kernel.shared_out() != groups[b].kernel.shared_out() || refused.contains(&key) || between(members, groups, a, b) {
                        continue;
                    }
                    let mut of: Vec<usize> = groups[a].of.iter().chain(&groups[b].of).copied().collect();
                    of.sort_unstable();
                    if self.options.scratch && !self.beside(members, &of, |p| p.worth_joining(&groups[a].kernel, &groups[b].kernel, groups[a].reads.intersection(&groups[b].reads))) {
                        refused.insert(key);
                        continue;
                    }
                    let mut axes: Vec<Option<Name>> = [a, b].iter().map(|g| groups[*g].kernel.x.as_ref().map(|x| x.name.clone())).collect();
                    axes.dedup();
                    let cost = groups[a].kernel.cost() + groups[b].kernel.cost();
                    let joined = self.beside(members, &of, |p| {
                        let tried = axes.iter().filter_map(|n| p.kernel(&targets(members, &of), n.as_ref(), None).ok());
                        tried.filter(|k| k.cost() < cost && k.shared_out() == groups[a].kernel.shared_out()).min_by_key(Kernel::cost).map(|k| {
                            let reads = p.reads(&k);
                            (k, reads)
                        })
                    });
                    match joined {
                        Some((kernel, reads)) => {
                            groups.remove(b);
                            groups[a] = Group { of, kernel, reads };
                            continue 'again;
                        }
                        None => {
                            refused.insert(key);
                        }
                    }
                }
            }
            return;
        }
    }

    /// Values between kernels that only their own kernel reads are not stored.
    fn drop_private(&mut self, members: &[Member], groups: &mut [Group]) {
        let mut dropped: Vec<usize> = vec![];
        for g in 0..groups.len() {
            let own = groups[g].of.clone();
            for &m in &own {
                let var = members[m].var;
                let result = members.iter().any(|m| m.var == var && m.why.is_none());
                if result || groups[g].of.len() == 1 || groups.iter().any(|h| h.reads.contains(&var)) {
                    continue;
                }
                let of: Vec<usize> = groups[g].of.iter().copied().filter(|i| *i != m).collect();
                let x = groups[g].kernel.x.as_ref().map(|x| x.name.clone());
                let owned = groups[g].kernel.owned.as_ref().map(|a| a.name.clone());
                // Nobody reads it, so that it need not be there for the others; nor is what was dropped before.
                let absent: Vec<usize> = own.iter().chain(&dropped).copied().collect();
                let smaller = self.beside(members, &absent, |p| p.kernel(&targets(members, &of), x.as_ref(), owned.as_ref()).ok().map(|k| {
                    let reads = p.reads(&k);
                    (k, reads)
                }));
                if let Some((kernel, reads)) = smaller.filter(|(k, _)| k.cost() <= groups[g].kernel.cost() && k.shared_out() == groups[g].kernel.shared_out()) {
                    groups[g] = Group { of, kernel, reads };
                    dropped.push(m);
                }
            }
        }
    }
}

/// Kernels of single members, by the member's number, with their values: a kernel stays as it is while nothing inside of it is stored.
type Known = BTreeMap<usize, (Group, BTreeSet<Var>)>;

/// Makes `var` a member, if it is none.
fn store(members: &mut Vec<Member>, known: &mut Known, var: Var, why: String) {
    if !members.iter().any(|m| m.var == var) {
        known.retain(|_, (_, values)| !values.contains(&var));
        members.push(Member { name: format!("%{}", var.0).into(), var, why: Some(why) });
    }
}

/// What a group of members stores.
fn targets(members: &[Member], of: &[usize]) -> Vec<(Name, Var)> {
    of.iter().map(|i| (members[*i].name.clone(), members[*i].var)).collect()
}

/// Whether one of `a` and `b` waits for a third kernel that waits for the other.
fn between(members: &[Member], groups: &[Group], a: usize, b: usize) -> bool {
    let stores = |g: usize, v: &BTreeSet<Var>| groups[g].of.iter().any(|m| v.contains(&members[*m].var));
    let after = |from: usize, to: usize| {
        // Kernels that need `from`, by way of others than `to`.
        let mut reached: BTreeSet<usize> = BTreeSet::new();
        let mut open = vec![from];
        while let Some(g) = open.pop() {
            for h in (0..groups.len()).filter(|h| *h != from && stores(g, &groups[*h].reads)) {
                if h == to {
                    if g != from {
                        return true;
                    }
                } else if reached.insert(h) {
                    open.push(h);
                }
            }
        }
        false
    };
    after(a, b) || after(b, a)
}
