//! A kernel of the syntax tree to instructions that run: calls are inlined, variables get addresses, basic blocks are put in an order in which the warp's
//! lowest program counter is always the right one to run.
//!
//! That order is a weak topological order (Bourdoncle, "Efficient chaotic iteration strategies with widenings", 1993): loops are contiguous, and within
//! and between them blocks come before their successors. Lanes that ran ahead then wait at the first block that all paths share, the immediate
//! post-dominator, without a stack.

mod collective;
mod instruction;
mod operand;

use super::memory::allocation_base;
use super::op::{GroupProduct, Inst, Op, Place, Slot, Slots};
use super::syntax::{Function, Item, Operand, Parameter, Refused, Result, Space, Statement, Tree, Type, refuse};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What fills a slot before a warp starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    LaneId,
    WarpId,
    WarpCount,
    /// eq, le, lt, ge, gt
    LaneMask(u8),
    DynamicShared,
    TotalShared,
    /// The cluster's place in the grid, and how many there are.
    Cluster(usize),
    Clusters(usize),
    /// The block's place in its cluster.
    Rank,
    /// The address of a shared variable, in a cluster.
    Shared(u32),
    Value(u32),
}

/// A shared variable.
#[derive(Clone, Debug)]
pub(super) struct Region {
    pub name: String,
    pub start: u32,
    pub end: u32,
}

/// A kernel as it runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Kernel {
    pub name: String,
    pub params: Vec<Parameter>,
    /// Offsets of the parameters, and the bytes of all.
    pub offsets: Vec<u32>,
    pub param_bytes: u32,
    pub required: Option<[u32; 3]>,
    pub limit: Option<[u32; 3]>,
    /// Blocks of a cluster.
    pub cluster: u32,
    pub code: Vec<Inst>,
    pub lists: Vec<Slot>,
    pub products: Vec<GroupProduct>,
    pub names32: Vec<String>,
    pub names64: Vec<String>,
    pub names_pred: Vec<String>,
    pub const32: Vec<(Slot, u32)>,
    pub const64: Vec<(Slot, u64)>,
    pub const_pred: Vec<(Slot, bool)>,
    pub specials: Vec<(Place, Special)>,
    pub opcodes: Vec<String>,
    /// Static shared variables.
    pub shared: Vec<Region>,
    /// Where dynamic shared memory starts, and its name.
    pub dynamic: u32,
    pub dynamic_name: Option<String>,
    pub static_shared: u32,
    pub local_bytes: u32,
    /// Whether blocks talk to each other through atomics, whose order must then be one and the same.
    pub global_atomics: bool,
}

impl Kernel {
    pub(super) fn slots(&self, s: Slots) -> &[Slot] {
        &self.lists[s.start as usize..(s.start + s.len) as usize]
    }
}

/// One step of the flattened text.
enum Flat<'a> {
    Label(u32),
    Statement(usize, &'a Statement),
}

/// A function's body at one place: its registers, labels and variables.
struct Instance<'a> {
    function: &'a Function,
    places: Vec<Option<Place>>,
    predicates: Vec<Slot>,
    label_base: u32,
    /// Parameters and variables, as offsets into the thread's frame.
    frame: HashMap<String, u32>,
    /// Where `ret` goes, if it does not end the kernel.
    end: Option<u32>,
}

/// The decoder of one kernel.
struct Decoder<'a> {
    tree: &'a Tree,
    kernel: Kernel,
    instances: Vec<Instance<'a>>,
    flat: Vec<Flat<'a>>,
    targets: HashMap<u32, Vec<u32>>,
    labels: u32,
    frame: u32,
    ints32: BTreeMap<u32, Slot>,
    ints64: BTreeMap<u64, Slot>,
    truths: BTreeMap<bool, Slot>,
    special_slots: Vec<(String, bool, Slot)>,
    opcode_index: HashMap<String, u32>,
    /// Shared variables: name to address; global and constant ones: name to allocation.
    shared: HashMap<String, u32>,
}

/// Decodes an entry.
pub(super) fn kernel(tree: &Tree, entry: &Function) -> Result<Kernel> {
    let mut d = Decoder {
        tree,
        kernel: Kernel { name: entry.name.clone(), params: entry.params.clone(), required: entry.required, limit: entry.limit, cluster: entry.cluster.unwrap_or(1), ..Kernel::default() },
        instances: vec![],
        flat: vec![],
        targets: HashMap::new(),
        labels: 0,
        frame: 0,
        ints32: BTreeMap::new(),
        ints64: BTreeMap::new(),
        truths: BTreeMap::new(),
        special_slots: vec![],
        opcode_index: HashMap::new(),
        shared: HashMap::new(),
    };
    let mut at = 0u32;
    for p in &entry.params {
        at = at.next_multiple_of(p.align);
        d.kernel.offsets.push(at);
        at += p.bytes;
    }
    d.kernel.param_bytes = at;
    let end = d.label();
    d.instance(entry, HashMap::new(), end, 0)?;
    d.flat.push(Flat::Label(end));
    d.layout()?;
    d.emit()?;
    d.kernel.local_bytes = d.frame.next_multiple_of(16);
    Ok(d.kernel)
}

impl<'a> Decoder<'a> {
    fn label(&mut self) -> u32 {
        self.labels += 1;
        self.labels - 1
    }

    /// Appends the body of `f`; its `ret` goes to `end`.
    fn instance(&mut self, f: &'a Function, mut frame: HashMap<String, u32>, end: u32, depth: usize) -> Result<()> {
        if depth > 16 {
            return refuse(f.line, format!("calls of `{}` are nested more than 16 deep; recursion is not part of this machine", f.name));
        }
        let (mut places, mut predicates) = (vec![], vec![]);
        for r in &f.registers {
            let (place, pred) = match r.ty {
                Type::Pred => {
                    self.kernel.names_pred.push(r.name.clone());
                    (None, self.kernel.names_pred.len() as u32 - 1)
                }
                t if t.bytes() == 8 => {
                    self.kernel.names64.push(r.name.clone());
                    (Some(Place::Wide(self.kernel.names64.len() as u32 - 1)), u32::MAX)
                }
                _ => {
                    self.kernel.names32.push(r.name.clone());
                    (Some(Place::Narrow(self.kernel.names32.len() as u32 - 1)), u32::MAX)
                }
            };
            places.push(place);
            predicates.push(pred);
        }
        for v in f.variables.iter().filter(|v| matches!(v.space, Space::Local | Space::Param)) {
            self.frame = self.frame.next_multiple_of(v.align.max(1));
            frame.insert(v.name.clone(), self.frame);
            self.frame += v.bytes as u32;
            if self.frame > 1 << 20 {
                return refuse(f.line, format!("the local variables of `{}` take more than a MiB per thread", f.name));
            }
        }
        let label_base = self.labels;
        self.labels += f.labels.len() as u32;
        let id = self.instances.len();
        self.instances.push(Instance { function: f, places, predicates, label_base, frame, end: (depth > 0).then_some(end) });
        for item in &f.items {
            match item {
                Item::Label(l) => self.flat.push(Flat::Label(label_base + l)),
                Item::Targets(l, t) => {
                    self.targets.insert(label_base + l, t.iter().map(|t| label_base + t).collect());
                }
                Item::Statement(s) if s.opcode.split('.').next() == Some("call") => self.call(id, s, depth)?,
                Item::Statement(s) => self.flat.push(Flat::Statement(id, s)),
            }
        }
        Ok(())
    }

    /// `call (results), name, (arguments)`: the body in its place, its parameters being the caller's variables.
    fn call(&mut self, id: usize, s: &'a Statement, depth: usize) -> Result<()> {
        if s.guard.is_some() {
            return refuse(s.line, "a guarded call is not part of this machine");
        }
        let group = |o: &Operand| -> Result<Vec<String>> {
            let Operand::Group(g) = o else { return refuse(s.line, "a call's arguments stand in parentheses") };
            g.iter().map(|o| if let Operand::Name(n) = o { Ok(n.clone()) } else { refuse(s.line, "a call's arguments are `.param` variables here") }).collect()
        };
        let (results, name, arguments) = match s.operands.as_slice() {
            [r @ Operand::Group(_), Operand::Name(n), a] => (group(r)?, n, group(a)?),
            [r @ Operand::Group(_), Operand::Name(n)] => (group(r)?, n, vec![]),
            [Operand::Name(n), a] => (vec![], n, group(a)?),
            [Operand::Name(n)] => (vec![], n, vec![]),
            _ => return refuse(s.line, "calls through registers are not part of this machine"),
        };
        let Some(f) = self.tree.functions.iter().find(|f| f.name == *name) else { return refuse(s.line, format!("the function `{name}` is not declared")) };
        if !f.defined {
            return refuse(s.line, format!("the function `{name}` is declared, but its body is not in this text"));
        }
        if f.params.len() != arguments.len() || f.returns.len() != results.len() {
            return refuse(s.line, format!("`{name}` takes {} arguments and has {} results, but the call has {} and {}", f.params.len(), f.returns.len(), arguments.len(), results.len()));
        }
        let mut frame = HashMap::new();
        for (p, a) in f.params.iter().zip(&arguments).chain(f.returns.iter().zip(&results)) {
            let Some(at) = self.instances[id].frame.get(a) else { return refuse(s.line, format!("`{a}` is no `.param` variable of `{}`", self.instances[id].function.name)) };
            frame.insert(p.name.clone(), *at);
        }
        let end = self.label();
        self.instance(f, frame, end, depth + 1)?;
        self.flat.push(Flat::Label(end));
        Ok(())
    }

    /// Addresses of the shared variables that are used. Sixteen bytes between two of them belong to none.
    fn layout(&mut self) -> Result<()> {
        fn names(o: &Operand, out: &mut BTreeSet<String>) {
            match o {
                Operand::Name(n) | Operand::Offset(n, _) => {
                    out.insert(n.clone());
                }
                Operand::Not(o) | Operand::Address(o, _) => names(o, out),
                Operand::Pair(a, b) => {
                    names(a, out);
                    names(b, out);
                }
                Operand::Tensor(b, l) => {
                    names(b, out);
                    l.iter().for_each(|o| names(o, out));
                }
                Operand::List(l) | Operand::Group(l) => l.iter().for_each(|o| names(o, out)),
                _ => {}
            }
        }
        let mut used = BTreeSet::new();
        for f in &self.flat {
            if let Flat::Statement(_, s) = f {
                s.operands.iter().for_each(|o| names(o, &mut used));
            }
        }
        let functions: Vec<&Function> = self.instances.iter().map(|i| i.function).collect();
        let all = self.tree.variables.iter().chain(functions.iter().flat_map(|f| &f.variables)).filter(|v| v.space == Space::Shared && used.contains(&v.name));
        let (mut at, mut dynamic, mut size) = (0u64, vec![], 0u64);
        let mut dynamic_align = 16u32;
        for v in all {
            if self.shared.contains_key(&v.name) || dynamic.contains(&v.name) {
                continue;
            }
            if v.external {
                dynamic_align = dynamic_align.max(v.align);
                dynamic.push(v.name.clone());
                continue;
            }
            let gap = if at > 0 { 16 } else { 0 };
            let start = (at + gap).next_multiple_of(v.align as u64);
            at = start + v.bytes;
            size = size.next_multiple_of(v.align as u64) + v.bytes;
            if at > 1 << 20 {
                return refuse(functions[0].line, format!("static shared memory of `{}` takes more than a MiB", self.kernel.name));
            }
            self.kernel.shared.push(Region { name: v.name.clone(), start: start as u32, end: at as u32 });
            self.shared.insert(v.name.clone(), start as u32);
        }
        let gap = if at > 0 { 16 } else { 0 };
        self.kernel.dynamic = ((at + gap) as u32).next_multiple_of(dynamic_align);
        self.kernel.static_shared = size as u32;
        for name in dynamic {
            self.kernel.dynamic_name.get_or_insert(name.clone());
            self.shared.insert(name, self.kernel.dynamic);
        }
        Ok(())
    }

    /// The address of a global or constant variable.
    fn global(&self, name: &str) -> Option<u64> {
        let globals = self.tree.variables.iter().filter(|v| matches!(v.space, Space::Global | Space::Const));
        globals.enumerate().find(|(_, v)| v.name == name).map(|(i, _)| allocation_base(i))
    }

    fn emit(&mut self) -> Result<()> {
        // Instructions with their labels as targets; blocks end at jumps and begin at labels.
        struct Block {
            code: Vec<Inst>,
            /// Where control goes behind the last instruction, if it gets there.
            next: Option<usize>,
            jumps: Vec<usize>,
        }
        let mut blocks: Vec<Block> = vec![];
        let mut starts: HashMap<u32, usize> = HashMap::new();
        let mut open: Option<Vec<Inst>> = Some(vec![]);
        let mut waiting: Vec<(usize, Vec<u32>)> = vec![];
        let flat = std::mem::take(&mut self.flat);
        let close = |blocks: &mut Vec<Block>, code: Vec<Inst>, falls: bool| {
            let next = if falls { Some(blocks.len() + 1) } else { None };
            blocks.push(Block { code, next, jumps: vec![] });
        };
        for f in &flat {
            match f {
                Flat::Label(l) => {
                    if let Some(code) = open.replace(vec![]) {
                        close(&mut blocks, code, true);
                    }
                    starts.insert(*l, blocks.len());
                }
                Flat::Statement(id, s) => {
                    let inst = instruction::decode(self, *id, s)?;
                    let mut code = open.take().unwrap_or_default();
                    code.push(inst);
                    match inst.op {
                        Op::Branch { to } => waiting.push((blocks.len(), vec![to])),
                        Op::BranchTable { targets, .. } => waiting.push((blocks.len(), self.kernel.slots(targets).to_vec())),
                        Op::Exit => {}
                        _ => {
                            open = Some(code);
                            continue;
                        }
                    }
                    close(&mut blocks, code, inst.guard != u32::MAX);
                }
            }
        }
        let mut code = open.take().unwrap_or_default();
        let last = code.last().map_or(0, |i| i.line);
        code.push(Inst { op: Op::Exit, guard: u32::MAX, negated: false, class: super::op::Class::Branch, line: last, opcode: self.opcode("ret") });
        close(&mut blocks, code, false);
        for (b, labels) in waiting {
            for l in labels {
                match starts.get(&l) {
                    Some(t) => blocks[b].jumps.push(*t),
                    None => return refuse(blocks[b].code.last().map_or(0, |i| i.line), "a label that stands nowhere"),
                }
            }
        }
        let successors: Vec<Vec<usize>> = blocks.iter().map(|b| b.jumps.iter().copied().chain(b.next).collect()).collect();
        let order = weak_topological_order(&successors, 0);
        // Place the blocks; where one no longer falls into the next, a jump does it.
        let mut position = vec![u32::MAX; blocks.len()];
        let mut code: Vec<Inst> = vec![];
        let jump = self.opcode("bra");
        for (i, &b) in order.iter().enumerate() {
            position[b] = code.len() as u32;
            code.extend(&blocks[b].code);
            if let Some(n) = blocks[b].next
                && order.get(i + 1) != Some(&n)
            {
                let line = code.last().map_or(0, |c| c.line);
                // Marked: targets of blocks, not of labels.
                code.push(Inst { op: Op::Branch { to: (n as u32) | 1 << 31 }, guard: u32::MAX, negated: false, class: super::op::Class::Branch, line, opcode: jump });
            }
        }
        let place = |label: u32| if label >> 31 != 0 { position[(label & !(1 << 31)) as usize] } else { starts.get(&label).map_or(0, |b| position[*b]) };
        for inst in &mut code {
            match &mut inst.op {
                Op::Branch { to } => *to = place(*to),
                Op::BranchTable { targets, .. } => {
                    let range = targets.start as usize..(targets.start + targets.len) as usize;
                    for l in &mut self.kernel.lists[range] {
                        *l = place(*l);
                    }
                }
                _ => {}
            }
        }
        self.kernel.code = code;
        Ok(())
    }

    fn opcode(&mut self, name: &str) -> u32 {
        if let Some(i) = self.opcode_index.get(name) {
            return *i;
        }
        let i = self.kernel.opcodes.len() as u32;
        self.kernel.opcodes.push(name.to_string());
        self.opcode_index.insert(name.to_string(), i);
        i
    }
    fn int32(&mut self, v: u32) -> Slot {
        if let Some(s) = self.ints32.get(&v) {
            return *s;
        }
        let s = self.kernel.names32.len() as u32;
        self.kernel.names32.push(format!("{}", v as i32));
        self.kernel.const32.push((s, v));
        self.ints32.insert(v, s);
        s
    }
    fn int64(&mut self, v: u64) -> Slot {
        if let Some(s) = self.ints64.get(&v) {
            return *s;
        }
        let s = self.kernel.names64.len() as u32;
        self.kernel.names64.push(format!("{}", v as i64));
        self.kernel.const64.push((s, v));
        self.ints64.insert(v, s);
        s
    }
    fn truth(&mut self, v: bool) -> Slot {
        if let Some(s) = self.truths.get(&v) {
            return *s;
        }
        let s = self.kernel.names_pred.len() as u32;
        self.kernel.names_pred.push(format!("{v}"));
        self.kernel.const_pred.push((s, v));
        self.truths.insert(v, s);
        s
    }
    /// A special register, in the file asked for.
    fn special(&mut self, name: &str, wide: bool) -> Option<Slot> {
        let axis = |s: &str| match s {
            "x" => Some(0),
            "y" => Some(1),
            "z" => Some(2),
            _ => None,
        };
        let value = match name.split_once('.').unwrap_or((name, "")) {
            ("%tid", a) => Special::Tid(axis(a)?),
            ("%ntid", a) => Special::Ntid(axis(a)?),
            ("%ctaid", a) => Special::Ctaid(axis(a)?),
            ("%nctaid", a) => Special::Nctaid(axis(a)?),
            ("%clusterid", a) => Special::Cluster(axis(a)?),
            ("%nclusterid", a) => Special::Clusters(axis(a)?),
            ("%cluster_ctaid", "x") | ("%cluster_ctarank", "") => Special::Rank,
            ("%cluster_nctaid", "x") | ("%cluster_nctarank", "") => Special::Value(self.kernel.cluster),
            ("%cluster_ctaid", _) => Special::Value(0),
            ("%cluster_nctaid", _) => Special::Value(1),
            ("%laneid", "") => Special::LaneId,
            ("%warpid", "") => Special::WarpId,
            ("%nwarpid", "") => Special::WarpCount,
            ("%lanemask_eq", "") => Special::LaneMask(0),
            ("%lanemask_le", "") => Special::LaneMask(1),
            ("%lanemask_lt", "") => Special::LaneMask(2),
            ("%lanemask_ge", "") => Special::LaneMask(3),
            ("%lanemask_gt", "") => Special::LaneMask(4),
            ("%dynamic_smem_size", "") => Special::DynamicShared,
            ("%total_smem_size" | "%aggr_smem_size", "") => Special::TotalShared,
            ("%smid" | "%gridid", "") => Special::Value(0),
            ("%nsmid", "") => Special::Value(1),
            ("WARP_SZ", "") => Special::Value(32),
            _ => return None,
        };
        Some(self.on_entry(name, wide, value))
    }
    /// An address in shared memory: a number, or in a cluster one that each block has its own of.
    fn shared_address(&mut self, at: i64, wide: bool) -> Slot {
        match (self.kernel.cluster > 1, wide) {
            (true, _) => self.on_entry(&format!("shared {at:#x}"), wide, Special::Shared(at as u32)),
            (false, true) => self.int64(at as u64),
            (false, false) => self.int32(at as u32),
        }
    }
    /// A register that has its value from the beginning.
    fn on_entry(&mut self, name: &str, wide: bool, value: Special) -> Slot {
        if let Some((_, _, s)) = self.special_slots.iter().find(|(n, w, _)| n == name && *w == wide) {
            return *s;
        }
        let place = if wide {
            self.kernel.names64.push(name.to_string());
            Place::Wide(self.kernel.names64.len() as u32 - 1)
        } else {
            self.kernel.names32.push(name.to_string());
            Place::Narrow(self.kernel.names32.len() as u32 - 1)
        };
        self.kernel.specials.push((place, value));
        let (Place::Narrow(s) | Place::Wide(s)) = place;
        self.special_slots.push((name.to_string(), wide, s));
        s
    }
    fn list(&mut self, slots: &[Slot]) -> Slots {
        let start = self.kernel.lists.len() as u32;
        self.kernel.lists.extend(slots);
        Slots { start, len: slots.len() as u32 }
    }
}

/// The blocks that can be reached, loops together and in topological order but for the edges back to a loop's head.
fn weak_topological_order(successors: &[Vec<usize>], entry: usize) -> Vec<usize> {
    let n = successors.len();
    let mut inside = vec![true; n];
    let mut out = vec![];
    component(successors, &mut inside, &[entry], &mut out);
    out
}

/// Orders what can be reached from `roots` through blocks that are `inside`: components in topological order, each with its head first.
fn component(successors: &[Vec<usize>], inside: &mut [bool], roots: &[usize], out: &mut Vec<usize>) {
    // Tarjan's algorithm, with its own stack.
    let n = successors.len();
    let (mut index, mut low, mut on, mut stack, mut count) = (vec![usize::MAX; n], vec![0; n], vec![false; n], vec![], 0);
    let mut components: Vec<Vec<usize>> = vec![];
    for &root in roots {
        if !inside[root] || index[root] != usize::MAX {
            continue;
        }
        let mut work = vec![(root, 0usize)];
        while let Some((v, i)) = work.pop() {
            if i == 0 {
                index[v] = count;
                low[v] = count;
                count += 1;
                stack.push(v);
                on[v] = true;
            }
            // The successor that falls through is listed and visited last, so that it ends up right behind its block if it can.
            if let Some(&w) = successors[v].get(i) {
                work.push((v, i + 1));
                if inside[w] {
                    if index[w] == usize::MAX {
                        work.push((w, 0));
                    } else if on[w] {
                        low[v] = low[v].min(index[w]);
                    }
                }
                continue;
            }
            for &w in &successors[v] {
                if inside[w] && on[w] {
                    low[v] = low[v].min(low[w]);
                }
            }
            if low[v] == index[v] {
                let mut c = vec![];
                while let Some(w) = stack.pop() {
                    on[w] = false;
                    c.push(w);
                    if w == v {
                        break;
                    }
                }
                // The first that was reached is the head.
                c.sort_by_key(|w| index[*w]);
                components.push(c);
            }
        }
    }
    for c in components.iter().rev() {
        let head = c[0];
        out.push(head);
        if c.len() > 1 {
            let mut body = vec![false; inside.len()];
            for w in &c[1..] {
                body[*w] = true;
            }
            let roots: Vec<usize> = successors[head].iter().copied().filter(|w| body[*w]).chain(c[1..].iter().copied()).collect();
            component(successors, &mut body, &roots, out);
        }
    }
}

impl From<Refused> for ir::diagnostic::Error {
    fn from(r: Refused) -> Self {
        ir::diagnostic::Error::new(format!("PTX line {}: {}", r.line, r.message))
    }
}

#[cfg(test)]
mod tests {
    use super::weak_topological_order;

    #[test]
    fn a_block_placed_late_comes_before_its_join() {
        // 0 → 1 | 3; 3 (cold, at the end of the text) → 1; 1 → 2
        assert_eq!(weak_topological_order(&[vec![3, 1], vec![2], vec![], vec![1]], 0), [0, 3, 1, 2]);
    }
    #[test]
    fn a_loop_is_whole_before_its_exit() {
        // 0 → 1; 1 → 4 | 2; 2 → 3; 3 → 1; 4
        assert_eq!(weak_topological_order(&[vec![1], vec![4, 2], vec![3], vec![1], vec![]], 0), [0, 1, 2, 3, 4]);
    }
}
