//! One statement to one instruction. Every modifier must be known: what is left over is refused by name.

use super::super::float::Round;
use super::super::memory::SHARED_WINDOW;
use super::super::op::*;
use super::super::syntax::{Operand, Result, Statement, Type, refuse};
use super::Decoder;
use super::operand::{Code, NONE, One, wide};

fn compare(p: &str) -> Option<Compare> {
    Some(match p {
        "eq" => Compare::Eq,
        "ne" => Compare::Ne,
        "lt" | "lo" => Compare::Lt,
        "le" | "ls" => Compare::Le,
        "gt" | "hi" => Compare::Gt,
        "ge" | "hs" => Compare::Ge,
        "equ" => Compare::Equ,
        "neu" => Compare::Neu,
        "ltu" => Compare::Ltu,
        "leu" => Compare::Leu,
        "gtu" => Compare::Gtu,
        "geu" => Compare::Geu,
        "num" => Compare::Num,
        "nan" => Compare::Nan,
        _ => return None,
    })
}

fn is_float16(t: Type) -> bool {
    matches!(t, Type::F16 | Type::Bf16 | Type::F16x2 | Type::Bf16x2)
}

/// Decodes `s`.
pub(super) fn decode<'a>(d: &mut Decoder<'a>, id: usize, s: &'a Statement) -> Result<Inst> {
    let mut parts = s.opcode.split('.');
    let mut code = Code { head: parts.next().unwrap_or(""), parts: parts.map(Some).collect() };
    let opcode = d.opcode(&s.opcode);
    let mut one = One { d, id, s };
    let (class, op) = one.op(&mut code)?;
    if let Some(p) = code.parts.iter().flatten().next() {
        return one.no(format!("the modifier `.{p}` is not part of this machine"));
    }
    let (guard, negated) = match s.guard {
        Some((r, n)) => (one.d.instances[id].predicates[r as usize], n),
        None => (NONE, false),
    };
    Ok(Inst { op, guard, negated, class, line: s.line, opcode })
}

impl One<'_, '_> {
    fn op(&mut self, code: &mut Code) -> Result<(Class, Op)> {
        let head = code.head;
        match head {
            "mov" => self.mov(code),
            "ld" | "ldu" => self.load(code),
            "st" => self.store(code),
            "cvta" => self.cvta(code),
            "isspacep" => {
                let memory = self.memory(code);
                let d = self.pred(self.operand(0)?)?;
                let o = self.operand(1)?;
                let a = self.source_place(o, Type::U64)?;
                Ok((Class::Compare, Op::IsSpace { memory, d, a }))
            }
            "add" | "sub" | "mul" | "div" | "rem" | "min" | "max" | "and" | "or" | "xor" => self.binary(code),
            "mad" | "fma" | "sad" => self.ternary(code),
            "addc" | "subc" => {
                let ty = self.need(code.ty())?;
                self.width(ty, &[4, 8])?;
                let writes = code.take("cc");
                self.count(3..=3)?;
                Ok((Class::Integer, Op::Carry { sub: head == "subc", reads: true, writes, wide: wide(ty), d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, ty)? }))
            }
            "neg" | "abs" | "not" | "cnot" | "popc" | "clz" | "brev" | "bfind" | "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => self.unary(code),
            "copysign" => {
                let ty = self.need(code.ty())?;
                self.count(3..=3)?;
                Ok((Class::Float, Op::Float2 { f: Float2::CopySign, ty, m: Mods::default(), d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, ty)? }))
            }
            "shl" | "shr" => {
                let ty = self.need(code.ty())?;
                self.width(ty, &[2, 4, 8])?;
                self.count(3..=3)?;
                let f = if head == "shl" { Shift::Left } else { Shift::Right };
                Ok((Class::Integer, Op::Shift { f, ty, d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, Type::U32)? }))
            }
            "shf" => {
                let left = code.take("l");
                if !left && !code.take("r") {
                    return self.no("needs `.l` or `.r`");
                }
                let wrap = code.take("wrap");
                code.take("clamp");
                let ty = self.need(code.ty())?;
                self.width(ty, &[4])?;
                self.count(4..=4)?;
                Ok((Class::Integer, Op::Funnel { left, wrap, d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, ty)?, c: self.source(3, Type::U32)? }))
            }
            "lop3" => {
                let ty = self.need(code.ty())?;
                self.width(ty, &[4])?;
                self.count(5..=5)?;
                let Operand::Int(table) = self.operand(4)? else { return self.no("the table is a number") };
                Ok((Class::Integer, Op::Lop3 { d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, ty)?, c: self.source(3, ty)?, table: *table as u8 }))
            }
            "prmt" => {
                let ty = self.need(code.ty())?;
                self.width(ty, &[4])?;
                let f = code.find(|p| {
                    Some(match p {
                        "f4e" => Permute::F4e,
                        "b4e" => Permute::B4e,
                        "rc8" => Permute::Rc8,
                        "ecl" => Permute::Ecl,
                        "ecr" => Permute::Ecr,
                        "rc16" => Permute::Rc16,
                        _ => return None,
                    })
                });
                self.count(4..=4)?;
                Ok((Class::Integer, Op::Permute { f: f.unwrap_or(Permute::Index), d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, ty)?, c: self.source(3, ty)? }))
            }
            "bfe" => {
                let ty = self.need(code.ty())?;
                self.width(ty, &[4, 8])?;
                self.count(4..=4)?;
                Ok((Class::Integer, Op::Extract { ty, d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, Type::U32)?, c: self.source(3, Type::U32)? }))
            }
            "bfi" => {
                let ty = self.need(code.ty())?;
                self.width(ty, &[4, 8])?;
                self.count(5..=5)?;
                Ok((
                    Class::Integer,
                    Op::Insert { wide: wide(ty), d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, ty)?, from: self.source(3, Type::U32)?, len: self.source(4, Type::U32)? },
                ))
            }
            "setp" | "set" => self.set(code),
            "selp" => {
                let ty = self.need(code.ty())?;
                self.width(ty, &[2, 4, 8])?;
                self.count(4..=4)?;
                let (p, negated) = self.pred_source(self.operand(3)?)?;
                Ok((Class::Compare, Op::Select { wide: wide(ty), d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, ty)?, p, negated }))
            }
            "slct" => {
                code.take("ftz");
                let ty = self.need(code.ty())?;
                self.width(ty, &[2, 4, 8])?;
                let by = self.need(code.ty())?;
                self.count(4..=4)?;
                Ok((Class::Compare, Op::SelectSign { wide: wide(ty), float: by == Type::F32, d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, ty)?, c: self.source(3, by)? }))
            }
            "cvt" => self.convert(code),
            "atom" | "red" => self.atomic(code),
            "ldmatrix" | "stmatrix" => {
                code.any(&["sync", "aligned", "b16"]);
                if !code.take("m8n8") {
                    return self.no("only m8n8 matrices of 16-bit elements are part of this machine");
                }
                let n = code.find(|p| match p {
                    "x1" => Some(1),
                    "x2" => Some(2),
                    "x4" => Some(4),
                    _ => None,
                });
                let transposed = code.take("trans");
                let memory = match self.memory(code) {
                    Memory::Generic => Memory::Generic,
                    m => m,
                };
                let (r, a) = if head == "ldmatrix" { (0, 1) } else { (1, 0) };
                self.count(2..=2)?;
                let (memory, mut at) = self.address(self.operand(a)?, memory)?;
                if memory == Memory::Generic {
                    at.offset = at.offset.wrapping_sub(SHARED_WINDOW as i64);
                } else if memory != Memory::Shared {
                    return self.no("takes shared memory");
                }
                let parts = self.parts(self.operand(r)?, false, false)?;
                if Some(parts.len) != n {
                    return self.no(format!("has {} registers", parts.len));
                }
                Ok((Class::LoadMatrix, if head == "ldmatrix" { Op::LoadMatrix { parts, transposed, at } } else { Op::StoreMatrix { parts, transposed, at } }))
            }
            "movmatrix" => {
                code.any(&["sync", "aligned", "b16", "m8n8"]);
                if !code.take("trans") {
                    return self.no("needs `.trans`");
                }
                self.count(2..=2)?;
                Ok((Class::LoadMatrix, Op::MoveMatrix { d: self.dest(0, Type::B32)?, a: self.source(1, Type::B32)? }))
            }
            "mma" => self.product(code),
            "wgmma" => self.group(code),
            "setmaxnreg" => {
                code.any(&["inc", "dec", "sync", "aligned", "u32"]);
                self.count(1..=1)?;
                Ok((Class::Other, Op::Nop))
            }
            "cp" => self.copy(code),
            "mbarrier" => self.mbarrier(code),
            "bar" | "barrier" => self.barrier(code),
            "shfl" => {
                code.any(&["sync", "b32"]);
                let f = code.find(|p| {
                    Some(match p {
                        "up" => Shuffle::Up,
                        "down" => Shuffle::Down,
                        "bfly" => Shuffle::Bfly,
                        "idx" => Shuffle::Idx,
                        _ => return None,
                    })
                });
                let Some(f) = f else { return self.no("needs a mode") };
                self.count(5..=5)?;
                let (d, p) = self.pair(self.operand(0)?)?;
                let (a, b, c, mask) = (self.source(1, Type::B32)?, self.source(2, Type::B32)?, self.source(3, Type::B32)?, self.source(4, Type::B32)?);
                Ok((Class::Exchange, Op::Shuffle { f, d, p, a, b, c, mask }))
            }
            "vote" => {
                code.take("sync");
                let ballot = code.take("ballot");
                code.any(&["pred", "b32"]);
                let f = match (ballot, code.take("all"), code.take("any"), code.take("uni")) {
                    (true, ..) => Vote::Ballot,
                    (_, true, ..) => Vote::All,
                    (_, _, true, _) => Vote::Any,
                    (_, _, _, true) => Vote::Uni,
                    _ => return self.no("needs a mode"),
                };
                self.count(3..=3)?;
                let d = if ballot { self.dest(0, Type::B32)? } else { self.pred(self.operand(0)?)? };
                let (p, negated) = self.pred_source(self.operand(1)?)?;
                Ok((Class::Exchange, Op::Vote { f, d, p, negated, mask: self.source(2, Type::B32)? }))
            }
            "match" => {
                code.take("sync");
                let all = code.take("all");
                code.take("any");
                let ty = self.need(code.ty())?;
                self.width(ty, &[4, 8])?;
                self.count(3..=3)?;
                let (d, p) = self.pair(self.operand(0)?)?;
                Ok((Class::Exchange, Op::Match { all, wide: wide(ty), d, p, a: self.source(1, ty)?, mask: self.source(2, Type::B32)? }))
            }
            "redux" => {
                code.take("sync");
                let f = self.reduction(code)?;
                let ty = self.need(code.ty())?;
                self.width(ty, &[4])?;
                if ty.float() {
                    return self.no("is a reduction of integers here");
                }
                self.count(3..=3)?;
                Ok((Class::Exchange, Op::Reduce { f, ty, d: self.dest(0, ty)?, a: self.source(1, ty)?, mask: self.source(2, Type::B32)? }))
            }
            "elect" => {
                code.take("sync");
                let (d, p) = self.pair(self.operand(0)?)?;
                Ok((Class::Exchange, Op::Elect { d, p, mask: self.source(1, Type::B32)? }))
            }
            "activemask" => {
                code.take("b32");
                Ok((Class::Exchange, Op::ActiveMask { d: self.dest(0, Type::B32)? }))
            }
            "mapa" => {
                if !code.take("shared::cluster") || !code.take("u32") {
                    return self.no("only the form `.shared::cluster.u32` is part of this machine");
                }
                self.count(3..=3)?;
                Ok((Class::Other, Op::MapShared { d: self.dest(0, Type::U32)?, a: self.source(1, Type::U32)?, rank: self.source(2, Type::U32)? }))
            }
            "bra" => {
                code.take("uni");
                let Operand::Label(l) = self.operand(0)? else { return self.no("the target stands nowhere") };
                Ok((Class::Branch, Op::Branch { to: self.d.instances[self.id].label_base + l }))
            }
            "brx" => {
                code.any(&["idx", "uni"]);
                let index = self.source(0, Type::U32)?;
                let Operand::Label(l) = self.operand(1)? else { return self.no("the targets stand nowhere") };
                let l = self.d.instances[self.id].label_base + l;
                let Some(t) = self.d.targets.get(&l).cloned() else { return self.no("the targets stand nowhere") };
                let targets = self.d.list(&t);
                Ok((Class::Branch, Op::BranchTable { index, targets }))
            }
            "ret" => {
                code.take("uni");
                Ok((Class::Branch, match self.d.instances[self.id].end {
                    Some(to) => Op::Branch { to },
                    None => Op::Exit,
                }))
            }
            "exit" => Ok((Class::Branch, Op::Exit)),
            "trap" | "brkpt" => Ok((Class::Other, Op::Trap)),
            "nanosleep" => {
                code.take("u32");
                Ok((Class::Other, Op::Nop))
            }
            "membar" | "fence" => {
                let proxy = code.take("proxy") | code.take("async") | code.take("async::generic");
                code.any(&["cta", "gl", "sys", "gpu", "cluster", "sc", "acq_rel", "acquire", "release", "relaxed", "mbarrier_init", "global", "shared::cta", "shared::cluster", "sync_restrict::shared::cta", "alias"]);
                self.memory(code);
                Ok((Class::Other, Op::Fence { proxy }))
            }
            "prefetch" | "prefetchu" | "discard" | "applypriority" => {
                code.any(&["tensormap", "L1", "L2", "L2::evict_last", "L2::evict_normal"]);
                self.memory(code);
                Ok((Class::Other, Op::Nop))
            }
            "griddepcontrol" => {
                code.any(&["wait", "launch_dependents"]);
                Ok((Class::Other, Op::Nop))
            }
            "pmevent" => Ok((Class::Other, Op::Nop)),
            h => refuse(self.s.line, format!("the instruction `{}` (`{h}`) is not part of this machine", self.s.opcode)),
        }
    }

    fn mov(&mut self, code: &mut Code) -> Result<(Class, Op)> {
        let ty = self.need(code.ty())?;
        self.count(2..=2)?;
        let (d, a) = (self.operand(0)?, self.operand(1)?);
        let op = match (d, a) {
            (Operand::List(l), a) => {
                let bits = ty.bytes() * 8 / l.len().max(1) as u32;
                if !matches!((bits, ty.bytes()), (16, 4) | (32, 8) | (16, 8) | (8, 2) | (8, 4)) {
                    return self.no(format!("{} parts of {ty:?}", l.len()));
                }
                let a = self.source_place(a, ty)?;
                Op::Unpack { parts: self.parts(d, false, true)?, a, bits: bits as u8 }
            }
            (d, Operand::List(l)) => {
                let bits = ty.bytes() * 8 / l.len().max(1) as u32;
                if !matches!((bits, ty.bytes()), (16, 4) | (32, 8) | (16, 8) | (8, 2) | (8, 4)) {
                    return self.no(format!("{} parts of {ty:?}", l.len()));
                }
                let part = match bits {
                    8 => Type::B8,
                    16 => Type::B16,
                    _ => Type::B32,
                };
                let d = if wide(ty) { Place::Wide(self.file(d, true)?) } else { Place::Narrow(self.file(d, false)?) };
                Op::Pack { d, parts: self.sources(a, part)?, bits: bits as u8 }
            }
            (d, a) if ty == Type::Pred => {
                let (a, negated) = self.pred_source(a)?;
                let d = self.pred(d)?;
                if negated { Op::PredNot { d, a } } else { Op::MoveP { d, a } }
            }
            _ if wide(ty) => Op::Move64 { d: self.dest(0, ty)?, a: self.source(1, ty)? },
            _ if ty == Type::B128 => return self.no("128-bit moves are not part of this machine"),
            _ => Op::Move32 { d: self.dest(0, ty)?, a: self.source(1, ty)? },
        };
        Ok((Class::Move, op))
    }

    /// Hints that change no meaning.
    pub(super) fn cache(&mut self, code: &mut Code) {
        code.any(&["ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "weak", "unified"]);
        while code.find(|p| (p.starts_with("L1::") || p.starts_with("L2::")).then_some(())).is_some() {}
    }
    pub(super) fn ordering(&mut self, code: &mut Code) -> bool {
        let mut ordered = code.take("volatile") | code.take("mmio");
        ordered |= code.take("relaxed") | code.take("acquire") | code.take("release") | code.take("acq_rel");
        code.any(&["cta", "cluster", "gpu", "sys"]);
        ordered
    }
    pub(super) fn vector(&mut self, code: &mut Code) -> u32 {
        let n = code.find(|p| match p {
            "v2" => Some(2),
            "v4" => Some(4),
            "v8" => Some(8),
            _ => None,
        });
        n.unwrap_or(1)
    }
    pub(super) fn class_of(memory: Memory) -> Class {
        match memory {
            Memory::Generic | Memory::Global => Class::Global,
            Memory::Shared => Class::Shared,
            Memory::Local => Class::Local,
            Memory::Param => Class::Param,
        }
    }

    fn load(&mut self, code: &mut Code) -> Result<(Class, Op)> {
        let memory = self.memory(code);
        let n = self.vector(code);
        let ordered = self.ordering(code);
        self.cache(code);
        let ty = self.need(code.ty())?;
        self.count(2..=3)?;
        let (memory, at) = self.address(self.operand(1)?, memory)?;
        let single;
        let list = match self.operand(0)? {
            Operand::List(l) => l.as_slice(),
            o => {
                single = [o.clone()];
                &single
            }
        };
        if list.len() as u32 != n || ty == Type::Pred || n * ty.bytes() > 32 {
            return self.no(format!("{} registers for {n} elements", list.len()));
        }
        let mut slots = vec![];
        let mut is_wide = wide(ty);
        for (i, o) in list.iter().enumerate() {
            if *o == Operand::Sink {
                slots.push(NONE);
                continue;
            }
            let (s, w) = match self.place(o)? {
                Place::Wide(s) => (s, true),
                Place::Narrow(s) if !wide(ty) => (s, false),
                Place::Narrow(_) => return self.no("the register is narrower than what is loaded"),
            };
            if i > 0 && w != is_wide {
                return self.no("registers of different widths");
            }
            is_wide = w;
            slots.push(s);
        }
        let parts = self.d.list(&slots);
        Ok((Self::class_of(memory), Op::Load { memory, ty, parts, wide: is_wide, at, ordered }))
    }

    fn store(&mut self, code: &mut Code) -> Result<(Class, Op)> {
        if code.parts.contains(&Some("async")) || code.parts.contains(&Some("bulk")) {
            return self.no("asynchronous stores are not part of this machine");
        }
        let memory = self.memory(code);
        let n = self.vector(code);
        let ordered = self.ordering(code);
        self.cache(code);
        let ty = self.need(code.ty())?;
        self.count(2..=3)?;
        let (memory, at) = self.address(self.operand(0)?, memory)?;
        if memory == Memory::Param {
            return self.no("a kernel's parameters are not written");
        }
        let single;
        let list = match self.operand(1)? {
            Operand::List(l) => l.as_slice(),
            o => {
                single = [o.clone()];
                &single
            }
        };
        if list.len() as u32 != n || ty == Type::Pred || n * ty.bytes() > 32 {
            return self.no(format!("{} registers for {n} elements", list.len()));
        }
        let mut slots = vec![];
        let is_wide = list.iter().any(|o| matches!(o, Operand::Reg(r) if matches!(self.place_of(*r), Some(Place::Wide(_))))) || wide(ty);
        for o in list {
            slots.push(self.source_of(o, if is_wide { Type::B64 } else { ty })?);
        }
        let parts = self.d.list(&slots);
        Ok((Self::class_of(memory), Op::Store { memory, ty, parts, wide: is_wide, at, ordered }))
    }

    fn cvta(&mut self, code: &mut Code) -> Result<(Class, Op)> {
        let to = code.take("to");
        let memory = self.memory(code);
        let ty = self.need(code.ty())?;
        self.count(2..=2)?;
        let d = self.place(self.operand(0)?)?;
        let o = self.operand(1)?;
        let a = self.source_place(o, ty)?;
        Ok((Class::Integer, Op::Window { memory, to, d, a }))
    }

    fn mods(&mut self, code: &mut Code) -> Mods {
        Mods { round: code.round().unwrap_or_default(), ftz: code.take("ftz"), sat: code.take("sat"), relu: code.take("relu"), nan: code.take("NaN") }
    }

    fn binary(&mut self, code: &mut Code) -> Result<(Class, Op)> {
        let head = code.head;
        let (lo, hi, is_wide) = (code.take("lo"), code.take("hi"), code.take("wide"));
        let cc = code.take("cc");
        let (approx, full) = (code.take("approx"), code.take("full"));
        if code.take("f32x2") {
            return self.both(code);
        }
        let ty = self.need(code.ty())?;
        if ty.float() {
            let m = self.mods(code);
            if ty == Type::F32 && matches!(head, "min" | "max") && self.s.operands.len() == 4 {
                return Ok((Class::Float, Op::Extremum { max: head == "max", m, d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, ty)?, c: self.source(3, ty)? }));
            }
            self.count(3..=3)?;
            if let Some(from) = self.narrow(ty, code)? {
                let f = match head {
                    "add" => Float2::Add,
                    "sub" => Float2::Sub,
                    _ => return self.no("has no form with a narrow operand"),
                };
                return Ok((Class::Float, Op::Mixed { f: Some(f), from, m, d: self.dest(0, ty)?, a: self.source(1, from)?, b: NONE, c: self.source(2, ty)? }));
            }
            let f = match head {
                "add" => Float2::Add,
                "sub" => Float2::Sub,
                "mul" => Float2::Mul,
                "div" if approx || full => Float2::DivApprox,
                "div" => Float2::Div,
                "min" => Float2::Min,
                "max" => Float2::Max,
                _ => return self.no("has no floating-point form"),
            };
            self.float_type(ty)?;
            if ty == Type::F64 && m.round != Round::Nearest {
                return self.no("f64 is rounded to nearest only");
            }
            if f == Float2::Div && is_float16(ty) {
                return self.no("has no 16-bit form");
            }
            let class = if matches!(f, Float2::DivApprox | Float2::Div) { Class::Special } else { Class::Float };
            return Ok((class, Op::Float2 { f, ty, m, d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, ty)? }));
        }
        if ty == Type::Pred {
            let f = match head {
                "and" => Logic::And,
                "or" => Logic::Or,
                "xor" => Logic::Xor,
                _ => return self.no("has no form for predicates"),
            };
            self.count(3..=3)?;
            let (d, a, b) = (self.pred(self.operand(0)?)?, self.pred_source(self.operand(1)?)?.0, self.pred_source(self.operand(2)?)?.0);
            return Ok((Class::Compare, Op::PredLogic { f, d, a, b }));
        }
        self.count(3..=3)?;
        self.width(ty, if is_wide { &[2, 4] } else { &[2, 4, 8] })?;
        if is_wide {
            let to = if ty.bytes() == 4 { Type::B64 } else { Type::B32 };
            return Ok((Class::Integer, Op::MulWide { ty, d: self.dest(0, to)?, a: self.source(1, ty)?, b: self.source(2, ty)? }));
        }
        let (d, a, b) = (self.dest(0, ty)?, self.source(1, ty)?, self.source(2, ty)?);
        if cc {
            self.width(ty, &[4, 8])?;
            return Ok((Class::Integer, Op::Carry { sub: head == "sub", reads: false, writes: true, wide: wide(ty), d, a, b }));
        }
        let sat = code.take("sat");
        let f = match head {
            "add" if sat => Int2::AddSat,
            "sub" if sat => Int2::SubSat,
            "add" => Int2::Add,
            "sub" => Int2::Sub,
            "mul" if hi => Int2::MulHi,
            "mul" if lo => Int2::MulLo,
            "mul" => return self.no("needs `.lo`, `.hi` or `.wide`"),
            "div" => Int2::Div,
            "rem" => Int2::Rem,
            "min" => Int2::Min,
            "max" => Int2::Max,
            "and" => Int2::And,
            "or" => Int2::Or,
            _ => Int2::Xor,
        };
        Ok((Class::Integer, Op::Int2 { f, ty, d, a, b }))
    }

    /// The narrow type of an f32 operation's first operands, if it has one: `add.f32.bf16`.
    fn narrow(&self, ty: Type, code: &mut Code) -> Result<Option<Type>> {
        match code.ty() {
            None => Ok(None),
            Some(t @ (Type::F16 | Type::Bf16)) if ty == Type::F32 => Ok(Some(t)),
            Some(_) => self.no("has two types that do not go together"),
        }
    }

    /// `add`, `sub`, `mul`, `fma` on two f32 in a 64-bit register.
    fn both(&mut self, code: &mut Code) -> Result<(Class, Op)> {
        let m = self.mods(code);
        let f = match code.head {
            "add" => Some(Float2::Add),
            "sub" => Some(Float2::Sub),
            "mul" => Some(Float2::Mul),
            "fma" => None,
            _ => return self.no("has no form for pairs"),
        };
        if m.sat || m.relu || m.nan {
            return self.no("a pair takes a rounding and `.ftz` only");
        }
        let n = if f.is_some() { 3 } else { 4 };
        self.count(n..=n)?;
        let ty = Type::B64;
        let c = if f.is_some() { NONE } else { self.source(3, ty)? };
        Ok((Class::Float, Op::Pair { f, m, d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, ty)?, c }))
    }

    fn float_type(&self, ty: Type) -> Result<()> {
        if ty == Type::Tf32 { self.no("tf32 is a format of matrix products only") } else { Ok(()) }
    }

    fn ternary(&mut self, code: &mut Code) -> Result<(Class, Op)> {
        let head = code.head;
        let (lo, hi, is_wide) = (code.take("lo"), code.take("hi"), code.take("wide"));
        if code.take("f32x2") {
            return self.both(code);
        }
        let ty = self.need(code.ty())?;
        self.count(4..=4)?;
        if ty.float() {
            self.float_type(ty)?;
            let m = self.mods(code);
            if let Some(from) = self.narrow(ty, code)? {
                return Ok((Class::Float, Op::Mixed { f: None, from, m, d: self.dest(0, ty)?, a: self.source(1, from)?, b: self.source(2, from)?, c: self.source(3, ty)? }));
            }
            if ty == Type::F64 && m.round != Round::Nearest {
                return self.no("f64 is rounded to nearest only");
            }
            return Ok((Class::Float, Op::Fma { ty, m, d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, ty)?, c: self.source(3, ty)? }));
        }
        self.width(ty, if is_wide { &[2, 4] } else { &[2, 4, 8] })?;
        if is_wide {
            let to = if ty.bytes() == 4 { Type::B64 } else { Type::B32 };
            return Ok((Class::Integer, Op::MadWide { ty, d: self.dest(0, to)?, a: self.source(1, ty)?, b: self.source(2, ty)?, c: self.source(3, to)? }));
        }
        let f = match (head, lo, hi) {
            ("mad", true, _) => Int3::MadLo,
            ("mad", _, true) => Int3::MadHi,
            ("sad", ..) => Int3::Sad,
            _ => return self.no("needs `.lo`, `.hi` or `.wide`"),
        };
        Ok((Class::Integer, Op::Int3 { f, ty, d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, ty)?, c: self.source(3, ty)? }))
    }

    fn unary(&mut self, code: &mut Code) -> Result<(Class, Op)> {
        let head = code.head;
        let approx = code.take("approx");
        let shift = code.take("shiftamt");
        let ty = self.need(code.ty())?;
        self.count(2..=2)?;
        if ty.float() {
            self.float_type(ty)?;
            let m = self.mods(code);
            let (class, f) = match head {
                "neg" => (Class::Float, Float1::Neg),
                "abs" => (Class::Float, Float1::Abs),
                "rcp" => (Class::Special, Float1::Rcp),
                "sqrt" => (Class::Special, Float1::Sqrt),
                "rsqrt" => (Class::Special, Float1::Rsqrt),
                "ex2" => (Class::Special, Float1::Ex2),
                "lg2" => (Class::Special, Float1::Lg2),
                "sin" => (Class::Special, Float1::Sin),
                "cos" => (Class::Special, Float1::Cos),
                "tanh" => (Class::Special, Float1::Tanh),
                _ => return self.no("has no floating-point form"),
            };
            if matches!(f, Float1::Rsqrt | Float1::Ex2 | Float1::Lg2 | Float1::Sin | Float1::Cos | Float1::Tanh) && !approx {
                return self.no("needs `.approx`");
            }
            if ty == Type::F64 && (approx || m.round != Round::Nearest || class == Class::Special && !matches!(f, Float1::Rcp | Float1::Sqrt)) {
                return self.no("f64 has only the forms to nearest");
            }
            return Ok((class, Op::Float1 { f, ty, m, d: self.dest(0, ty)?, a: self.source(1, ty)? }));
        }
        if ty == Type::Pred {
            let (a, negated) = self.pred_source(self.operand(1)?)?;
            if head != "not" || negated {
                return self.no("has no form for predicates");
            }
            return Ok((Class::Compare, Op::PredNot { d: self.pred(self.operand(0)?)?, a }));
        }
        self.width(ty, &[2, 4, 8])?;
        let f = match head {
            "neg" => Int1::Neg,
            "abs" => Int1::Abs,
            "not" => Int1::Not,
            "cnot" => Int1::Cnot,
            "popc" => Int1::Popc,
            "clz" => Int1::Clz,
            "brev" => Int1::Brev,
            "bfind" => Int1::Bfind(shift),
            _ => return self.no("has no integer form"),
        };
        let to = if matches!(f, Int1::Popc | Int1::Clz | Int1::Bfind(_)) { Type::U32 } else { ty };
        Ok((Class::Integer, Op::Int1 { f, ty, d: self.dest(0, to)?, a: self.source(1, ty)? }))
    }

    fn set(&mut self, code: &mut Code) -> Result<(Class, Op)> {
        let head = code.head;
        let Some(f) = code.find(compare) else { return self.no("needs a comparison") };
        let ftz = code.take("ftz");
        let logic = code.find(|p| {
            Some(match p {
                "and" => Logic::And,
                "or" => Logic::Or,
                "xor" => Logic::Xor,
                _ => return None,
            })
        });
        if head == "set" {
            let to = self.need(code.ty())?;
            let ty = self.need(code.ty())?;
            if logic.is_some() || to.bytes() != 4 {
                return self.no("only the plain form with a 32-bit result is part of this machine");
            }
            self.count(3..=3)?;
            return Ok((Class::Compare, Op::Set { f, ty, ftz, float: to.float(), d: self.dest(0, to)?, a: self.source(1, ty)?, b: self.source(2, ty)? }));
        }
        let ty = self.need(code.ty())?;
        self.width(ty, &[2, 4, 8])?;
        if matches!(ty, Type::F16x2 | Type::Bf16x2) {
            return self.no("packed comparisons are not part of this machine");
        }
        self.count(3..=4)?;
        let (d, d2) = match self.operand(0)? {
            Operand::Pair(a, b) => (self.pred(a)?, if **b == Operand::Sink { NONE } else { self.pred(b)? }),
            o => (self.pred(o)?, NONE),
        };
        let with = match logic {
            Some(l) => {
                let (p, n) = self.pred_source(self.operand(3)?)?;
                Some((l, p, n))
            }
            None => None,
        };
        if logic.is_none() {
            self.count(3..=3)?;
        }
        Ok((Class::Compare, Op::Compare { f, ty, ftz, d, d2, a: self.source(1, ty)?, b: self.source(2, ty)?, with }))
    }

    fn convert(&mut self, code: &mut Code) -> Result<(Class, Op)> {
        if code.take("pack") {
            return self.no("packing of integers is not part of this machine");
        }
        let integral = code.find(|p| {
            Some(match p {
                "rni" => Round::Nearest,
                "rzi" => Round::Zero,
                "rmi" => Round::Down,
                "rpi" => Round::Up,
                _ => return None,
            })
        });
        let round = code.round();
        let (ftz, sat, relu, finite) = (code.take("ftz"), code.take("sat"), code.take("relu"), code.take("satfinite"));
        let to = self.need(code.ty())?;
        let from = self.need(code.ty())?;
        let packed = matches!(to, Type::F16x2 | Type::Bf16x2);
        self.count(if packed { 3..=3 } else { 2..=2 })?;
        if matches!(from, Type::F16x2 | Type::Bf16x2 | Type::Tf32) || to == Type::Pred || from == Type::Pred {
            return self.no("is not part of this machine");
        }
        if packed && from != Type::F32 {
            return self.no("packs two f32");
        }
        if (to == Type::Tf32 || packed) && round.is_none() {
            return self.no("needs a rounding");
        }
        let f = Convert { to, from, round: integral.or(round).unwrap_or(if to.float() { Round::Nearest } else { Round::Zero }), integral: integral.is_some(), ftz, sat, relu, finite };
        let d = self.place(self.operand(0)?)?;
        if to.bytes() > 8 || from.bytes() > 8 {
            return self.no("is not part of this machine");
        }
        if let (Place::Narrow(_), true) | (Place::Wide(_), false) = (d, wide(to))
            && (wide(to) || to.float())
        {
            return self.no("the destination has another width");
        }
        let a = self.operand(1)?;
        let a = self.source_place(a, from)?;
        if matches!(a, Place::Narrow(_)) && wide(from) {
            return self.no("the source is narrower than its type");
        }
        if matches!(a, Place::Wide(_)) && from.float() && !wide(from) {
            return self.no("the source is wider than its type");
        }
        let b = if packed { self.source(2, from)? } else { NONE };
        Ok((Class::Convert, Op::Convert { f, d, a, b }))
    }

    pub(super) fn reduction(&mut self, code: &mut Code) -> Result<Atomic> {
        let f = code.find(|p| {
            Some(match p {
                "add" => Atomic::Add,
                "min" => Atomic::Min,
                "max" => Atomic::Max,
                "and" => Atomic::And,
                "or" => Atomic::Or,
                "xor" => Atomic::Xor,
                "exch" => Atomic::Exch,
                "cas" => Atomic::Cas,
                "inc" => Atomic::Inc,
                "dec" => Atomic::Dec,
                _ => return None,
            })
        });
        match f {
            Some(f) => Ok(f),
            None => self.no("needs an operation"),
        }
    }
}
