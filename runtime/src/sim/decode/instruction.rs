//! One statement to one instruction. Every modifier must be known: what is left over is refused by name.

use super::super::float::{BF16, F16, Round, TF32};
use super::super::memory::SHARED_WINDOW;
use super::super::op::*;
use super::super::syntax::{Operand, Result, Statement, Type, refuse};
use super::Decoder;

const NONE: Slot = u32::MAX;

/// An opcode's parts; each is taken once.
struct Code<'a> {
    head: &'a str,
    parts: Vec<Option<&'a str>>,
}

impl<'a> Code<'a> {
    fn take(&mut self, name: &str) -> bool {
        match self.parts.iter_mut().find(|p| **p == Some(name)) {
            Some(p) => {
                *p = None;
                true
            }
            None => false,
        }
    }
    fn any(&mut self, names: &[&str]) {
        for n in names {
            self.take(n);
        }
    }
    /// The first part that `f` understands.
    fn find<T>(&mut self, f: impl Fn(&'a str) -> Option<T>) -> Option<T> {
        for p in &mut self.parts {
            if let Some(v) = p.and_then(&f) {
                *p = None;
                return Some(v);
            }
        }
        None
    }
    fn ty(&mut self) -> Option<Type> {
        self.find(Type::parse)
    }
    fn round(&mut self) -> Option<Round> {
        self.find(|p| {
            Some(match p {
                "rn" => Round::Nearest,
                "rna" => Round::Away,
                "rz" => Round::Zero,
                "rm" => Round::Down,
                "rp" => Round::Up,
                _ => return None,
            })
        })
    }
}

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

fn wide(t: Type) -> bool {
    t.bytes() == 8
}

fn is_float16(t: Type) -> bool {
    matches!(t, Type::F16 | Type::Bf16 | Type::F16x2 | Type::Bf16x2)
}

/// The statement being decoded.
struct One<'d, 'a> {
    d: &'d mut Decoder<'a>,
    id: usize,
    s: &'a Statement,
}

impl<'a> One<'_, 'a> {
    fn no<T>(&self, why: impl AsRef<str>) -> Result<T> {
        refuse(self.s.line, format!("`{}`: {}", self.s.opcode, why.as_ref()))
    }
    fn operand(&self, i: usize) -> Result<&'a Operand> {
        match self.s.operands.get(i) {
            Some(o) => Ok(o),
            None => self.no(format!("has {} operands, but needs {}", self.s.operands.len(), i + 1)),
        }
    }
    fn count(&self, allowed: std::ops::RangeInclusive<usize>) -> Result<()> {
        let n = self.s.operands.len();
        if allowed.contains(&n) { Ok(()) } else { self.no(format!("has {n} operands, but takes {} to {}", allowed.start(), allowed.end())) }
    }
    fn place_of(&self, r: u32) -> Option<Place> {
        self.d.instances[self.id].places[r as usize]
    }
    fn name_of(&self, r: u32) -> String {
        self.d.instances[self.id].function.registers[r as usize].name.clone()
    }
    /// A destination or source register in whichever file it is.
    fn place(&self, o: &Operand) -> Result<Place> {
        match o {
            Operand::Reg(r) => match self.place_of(*r) {
                Some(p) => Ok(p),
                None => self.no(format!("`{}` is a predicate, not a value", self.name_of(*r))),
            },
            o => self.no(format!("expected a register, found {o:?}")),
        }
    }
    fn file(&self, o: &Operand, wide: bool) -> Result<Slot> {
        match (self.place(o)?, wide) {
            (Place::Narrow(s), false) | (Place::Wide(s), true) => Ok(s),
            _ => {
                let Operand::Reg(r) = o else { return self.no("expected a register") };
                self.no(format!("`{}` has another width than the instruction", self.name_of(*r)))
            }
        }
    }
    /// A destination register of `ty`.
    fn dest(&self, i: usize, ty: Type) -> Result<Slot> {
        self.file(self.operand(i)?, wide(ty))
    }
    fn pred(&self, o: &Operand) -> Result<Slot> {
        match o {
            Operand::Reg(r) if self.place_of(*r).is_none() => Ok(self.d.instances[self.id].predicates[*r as usize]),
            o => self.no(format!("expected a predicate, found {o:?}")),
        }
    }
    /// A predicate as a source: maybe negated, maybe a number.
    fn pred_source(&mut self, o: &Operand) -> Result<(Slot, bool)> {
        match o {
            Operand::Not(o) => Ok((self.pred(o)?, true)),
            Operand::Int(n) => Ok((self.d.truth(*n != 0), false)),
            o => Ok((self.pred(o)?, false)),
        }
    }
    /// A source of `ty`: a register or a number, as a slot.
    fn source_of(&mut self, o: &Operand, ty: Type) -> Result<Slot> {
        match (o, ty) {
            (Operand::Reg(_), _) => self.file(o, wide(ty)),
            (Operand::Int(n), Type::F32) => Ok(self.d.int32((*n as f32).to_bits())),
            (Operand::Int(n), Type::F64) => Ok(self.d.int64((*n as f64).to_bits())),
            (Operand::Int(n), t) if wide(t) => Ok(self.d.int64(*n as u64)),
            (Operand::Int(n), t) if t.bytes() <= 2 => Ok(self.d.int32(*n as u32 & 0xffff)),
            (Operand::Int(n), _) => Ok(self.d.int32(*n as u32)),
            (Operand::F32(b), t) if !wide(t) => Ok(self.d.int32(*b)),
            (Operand::F32(b), Type::F64) => Ok(self.d.int64((f32::from_bits(*b) as f64).to_bits())),
            (Operand::F64(b), Type::F32) => Ok(self.d.int32((f64::from_bits(*b) as f32).to_bits())),
            (Operand::F64(b), t) if wide(t) => Ok(self.d.int64(*b)),
            (Operand::Name(n), t) => {
                if let Some(s) = self.d.special(n, wide(t)) {
                    return Ok(s);
                }
                match self.symbol(n) {
                    Some((_, at)) if wide(t) => Ok(self.d.int64(at as u64)),
                    Some((_, at)) if t.bytes() == 4 => Ok(self.d.int32(at as u32)),
                    _ => self.no(format!("`{n}` is not declared, or no special register of this machine")),
                }
            }
            (Operand::Offset(n, o), t) => match self.symbol(n) {
                Some((_, at)) if wide(t) => Ok(self.d.int64((at + o) as u64)),
                Some((_, at)) if t.bytes() == 4 => Ok(self.d.int32((at + o) as u32)),
                _ => self.no(format!("`{n}` is not declared")),
            },
            (o, t) => self.no(format!("{o:?} is no operand of type {t:?}")),
        }
    }
    fn source(&mut self, i: usize, ty: Type) -> Result<Slot> {
        let o = self.operand(i)?;
        self.source_of(o, ty)
    }
    /// A source register in its own file, or a number in the file of `ty`.
    fn source_place(&mut self, o: &Operand, ty: Type) -> Result<Place> {
        match o {
            Operand::Reg(_) => self.place(o),
            o => {
                let s = self.source_of(o, ty)?;
                Ok(if wide(ty) { Place::Wide(s) } else { Place::Narrow(s) })
            }
        }
    }
    /// The address of a variable within its space.
    fn symbol(&self, name: &str) -> Option<(Memory, i64)> {
        let instance = &self.d.instances[self.id];
        if let Some(at) = instance.frame.get(name) {
            return Some((Memory::Local, *at as i64));
        }
        if let Some(at) = self.d.shared.get(name) {
            return Some((Memory::Shared, *at as i64));
        }
        if instance.function.entry
            && let Some(i) = instance.function.params.iter().position(|p| p.name == name)
        {
            return Some((Memory::Param, self.d.kernel.offsets[i] as i64));
        }
        self.d.global(name).map(|a| (Memory::Global, a as i64))
    }
    /// `[base + offset]` in the space that the instruction names; a variable may say it better (a parameter of an inlined function is local).
    fn address(&mut self, o: &Operand, memory: Memory) -> Result<(Memory, Address)> {
        let Operand::Address(base, offset) = o else { return self.no(format!("expected an address in brackets, found {o:?}")) };
        match &**base {
            Operand::Reg(_) => Ok((memory, Address { base: Some(self.place(base)?), offset: *offset })),
            Operand::Int(n) => Ok((memory, Address { base: None, offset: n + offset })),
            Operand::Name(n) => match self.symbol(n) {
                Some((own, at)) => match (memory, own) {
                    (Memory::Generic, Memory::Shared) => Ok((Memory::Generic, Address { base: None, offset: at + offset + SHARED_WINDOW as i64 })),
                    (m, own) if m == own || m == Memory::Generic || (m == Memory::Param && own == Memory::Local) => Ok((own, Address { base: None, offset: at + offset })),
                    (m, own) => self.no(format!("`{n}` is in {own:?} memory, not in {m:?}")),
                },
                None => self.no(format!("`{n}` is not declared")),
            },
            o => self.no(format!("{o:?} is no base of an address")),
        }
    }
    /// The state space among the parts.
    fn memory(&mut self, code: &mut Code) -> Memory {
        let m = code.find(|p| {
            Some(match p {
                "global" | "const" => Memory::Global,
                "shared" | "shared::cta" | "shared::cluster" => Memory::Shared,
                "local" => Memory::Local,
                "param" | "param::entry" | "param::func" => Memory::Param,
                _ => return None,
            })
        });
        m.unwrap_or(Memory::Generic)
    }
    /// Registers in braces, all of one file; `_` where it may stand.
    fn parts(&mut self, o: &Operand, wide: bool, sinks: bool) -> Result<Slots> {
        let Operand::List(l) = o else { return self.no(format!("expected registers in braces, found {o:?}")) };
        let mut slots = vec![];
        for o in l {
            slots.push(match o {
                Operand::Sink if sinks => NONE,
                o => self.file(o, wide)?,
            });
        }
        Ok(self.d.list(&slots))
    }
    fn sources(&mut self, o: &Operand, ty: Type) -> Result<Slots> {
        let Operand::List(l) = o else { return self.no(format!("expected registers in braces, found {o:?}")) };
        let mut slots = vec![];
        for o in l {
            slots.push(self.source_of(o, ty)?);
        }
        Ok(self.d.list(&slots))
    }
    /// `d` or `d|p`
    fn pair(&self, o: &Operand) -> Result<(Slot, Slot)> {
        match o {
            Operand::Pair(a, p) => {
                let p = if **p == Operand::Sink { NONE } else { self.pred(p)? };
                Ok((if **a == Operand::Sink { NONE } else { self.file(a, false)? }, p))
            }
            o => Ok((self.file(o, false)?, NONE)),
        }
    }
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
    fn need(&self, t: Option<Type>) -> Result<Type> {
        match t {
            Some(t) => Ok(t),
            None => self.no("has no type"),
        }
    }

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
                self.count(4..=4)?;
                Ok((Class::Integer, Op::Funnel { left, wrap, d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, ty)?, c: self.source(3, Type::U32)? }))
            }
            "lop3" => {
                let ty = self.need(code.ty())?;
                self.count(5..=5)?;
                let Operand::Int(table) = self.operand(4)? else { return self.no("the table is a number") };
                Ok((Class::Integer, Op::Lop3 { d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, ty)?, c: self.source(3, ty)?, table: *table as u8 }))
            }
            "prmt" => {
                let ty = self.need(code.ty())?;
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
                self.count(4..=4)?;
                Ok((Class::Integer, Op::Extract { ty, d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, Type::U32)?, c: self.source(3, Type::U32)? }))
            }
            "bfi" => {
                let ty = self.need(code.ty())?;
                self.count(5..=5)?;
                Ok((
                    Class::Integer,
                    Op::Insert { wide: wide(ty), d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, ty)?, from: self.source(3, Type::U32)?, len: self.source(4, Type::U32)? },
                ))
            }
            "setp" | "set" => self.set(code),
            "selp" => {
                let ty = self.need(code.ty())?;
                self.count(4..=4)?;
                let (p, negated) = self.pred_source(self.operand(3)?)?;
                Ok((Class::Compare, Op::Select { wide: wide(ty), d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, ty)?, p, negated }))
            }
            "slct" => {
                code.take("ftz");
                let ty = self.need(code.ty())?;
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
                self.count(3..=3)?;
                let (d, p) = self.pair(self.operand(0)?)?;
                Ok((Class::Exchange, Op::Match { all, wide: wide(ty), d, p, a: self.source(1, ty)?, mask: self.source(2, Type::B32)? }))
            }
            "redux" => {
                code.take("sync");
                let f = self.reduction(code)?;
                let ty = self.need(code.ty())?;
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
    fn cache(&mut self, code: &mut Code) {
        code.any(&["ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "weak", "unified"]);
        while code.find(|p| (p.starts_with("L1::") || p.starts_with("L2::")).then_some(())).is_some() {}
    }
    fn ordering(&mut self, code: &mut Code) -> bool {
        let mut ordered = code.take("volatile") | code.take("mmio");
        ordered |= code.take("relaxed") | code.take("acquire") | code.take("release") | code.take("acq_rel");
        code.any(&["cta", "cluster", "gpu", "sys"]);
        ordered
    }
    fn vector(&mut self, code: &mut Code) -> u32 {
        let n = code.find(|p| match p {
            "v2" => Some(2),
            "v4" => Some(4),
            "v8" => Some(8),
            _ => None,
        });
        n.unwrap_or(1)
    }
    fn class_of(memory: Memory) -> Class {
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
        let ty = self.need(code.ty())?;
        if ty.float() {
            let m = self.mods(code);
            self.count(3..=3)?;
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
        if is_wide {
            let to = if ty.bytes() == 4 { Type::B64 } else { Type::B32 };
            return Ok((Class::Integer, Op::MulWide { ty, d: self.dest(0, to)?, a: self.source(1, ty)?, b: self.source(2, ty)? }));
        }
        let (d, a, b) = (self.dest(0, ty)?, self.source(1, ty)?, self.source(2, ty)?);
        if cc {
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

    fn float_type(&self, ty: Type) -> Result<()> {
        if ty == Type::Tf32 { self.no("tf32 is a format of matrix products only") } else { Ok(()) }
    }

    fn ternary(&mut self, code: &mut Code) -> Result<(Class, Op)> {
        let head = code.head;
        let (lo, hi, is_wide) = (code.take("lo"), code.take("hi"), code.take("wide"));
        let ty = self.need(code.ty())?;
        self.count(4..=4)?;
        if ty.float() {
            self.float_type(ty)?;
            let m = self.mods(code);
            if ty == Type::F64 && m.round != Round::Nearest {
                return self.no("f64 is rounded to nearest only");
            }
            return Ok((Class::Float, Op::Fma { ty, m, d: self.dest(0, ty)?, a: self.source(1, ty)?, b: self.source(2, ty)?, c: self.source(3, ty)? }));
        }
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
            if ty == Type::F64 && m.round != Round::Nearest {
                return self.no("f64 is rounded to nearest only");
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
        let b = if packed { self.source(2, from)? } else { NONE };
        Ok((Class::Convert, Op::Convert { f, d, a, b }))
    }

    fn reduction(&mut self, code: &mut Code) -> Result<Atomic> {
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

    fn atomic(&mut self, code: &mut Code) -> Result<(Class, Op)> {
        let head = code.head;
        let f = self.reduction(code)?;
        self.ordering(code);
        self.cache(code);
        code.any(&["noftz"]);
        let memory = self.memory(code);
        let n = self.vector(code);
        let ty = self.need(code.ty())?;
        if n != 1 {
            return self.no("vectors are not part of this machine");
        }
        let first = if head == "atom" { 1 } else { 0 };
        let (memory, at) = self.address(self.operand(first)?, memory)?;
        let d = if head == "atom" && *self.operand(0)? != Operand::Sink { self.dest(0, ty)? } else { NONE };
        let a = self.source(first + 1, ty)?;
        let b = if f == Atomic::Cas { self.source(first + 2, ty)? } else { NONE };
        if memory != Memory::Shared {
            self.d.kernel.global_atomics = true;
        }
        Ok((Class::Atomic, Op::Atomic { f, ty, memory, d, a, b, at }))
    }

    fn product(&mut self, code: &mut Code) -> Result<(Class, Op)> {
        code.any(&["sync", "aligned"]);
        let k = code.find(|p| match p {
            "m16n8k4" => Some(4),
            "m16n8k8" => Some(8),
            "m16n8k16" => Some(16),
            _ => None,
        });
        let Some(k) = k else { return self.no("shapes are m16n8k4, m16n8k8 and m16n8k16 here") };
        if !code.take("row") || !code.take("col") {
            return self.no("the layouts are row and col");
        }
        let (to, a, b, c) = (self.need(code.ty())?, self.need(code.ty())?, self.need(code.ty())?, self.need(code.ty())?);
        let (format, ok) = match a {
            Type::F16 => (F16, k >= 8),
            Type::Bf16 => (BF16, k >= 8 && to == Type::F32),
            Type::Tf32 => (TF32, k <= 8 && to == Type::F32),
            _ => return self.no(format!("products of {a:?} are not part of this machine")),
        };
        let half = to == Type::F16;
        if a != b || to != c || !ok || !(half || to == Type::F32) {
            return self.no("this combination of shape and types does not exist");
        }
        self.count(4..=4)?;
        let d = self.parts(self.operand(0)?, false, false)?;
        let (x, y, z) = (self.operand(1)?, self.operand(2)?, self.operand(3)?);
        let (x, y, z) = (self.sources(x, Type::B32)?, self.sources(y, Type::B32)?, self.sources(z, Type::B32)?);
        let n = if a == Type::Tf32 { k / 2 } else { k / 4 };
        let m = if half { 2 } else { 4 };
        if (d.len, x.len, y.len, z.len) != (m, n, n / 2, m) {
            return self.no(format!("takes {m}, {n}, {} and {m} registers, but has {}, {}, {} and {}", n / 2, d.len, x.len, y.len, z.len));
        }
        Ok((Class::Matrix, Op::Product { f: Product { k, format, half }, d, a: x, b: y, c: z }))
    }

    fn group(&mut self, code: &mut Code) -> Result<(Class, Op)> {
        code.any(&["sync", "aligned"]);
        if code.take("fence") {
            return Ok((Class::Other, Op::GroupFence));
        }
        if code.take("commit_group") {
            return Ok((Class::Async, Op::GroupCommit));
        }
        if code.take("wait_group") {
            let Operand::Int(n) = self.operand(0)? else { return self.no("takes a number") };
            return Ok((Class::Async, Op::GroupWait { left: *n as u32 }));
        }
        if !code.take("mma_async") {
            return self.no("is not part of this machine");
        }
        let shape = code.find(|p| {
            let (n, k) = p.strip_prefix("m64n")?.split_once('k')?;
            Some((n.parse::<u32>().ok()?, k.parse::<u32>().ok()?))
        });
        let Some((n, k)) = shape else { return self.no("needs a shape") };
        let (to, a, b) = (self.need(code.ty())?, self.need(code.ty())?, self.need(code.ty())?);
        let (format, depth) = match a {
            Type::F16 => (F16, 16),
            Type::Bf16 => (BF16, 16),
            Type::Tf32 => (TF32, 8),
            _ => return self.no(format!("products of {a:?} are not part of this machine")),
        };
        let half = to == Type::F16;
        if a != b || k != depth || n % 8 != 0 || !(8..=256).contains(&n) || !(half && a == Type::F16 || to == Type::F32) {
            return self.no("this combination of shape and types does not exist");
        }
        let d = self.parts(self.operand(0)?, false, false)?;
        if d.len != if half { n / 4 } else { n / 2 } {
            return self.no(format!("has {} accumulators", d.len));
        }
        let (x, y) = (self.operand(1)?, self.operand(2)?);
        let (fragments, descriptor_a) = match x {
            Operand::List(_) => (self.sources(x, Type::B32)?, NONE),
            _ => (Slots { start: 0, len: 0 }, self.source_of(x, Type::B64)?),
        };
        let registers = descriptor_a == NONE;
        if registers && fragments.len != 4 {
            return self.no(format!("the left operand has {} registers", fragments.len));
        }
        let descriptor_b = self.source_of(y, Type::B64)?;
        let (scale, negated) = self.pred_source(self.operand(3)?)?;
        if negated {
            return self.no("a negated scale is not part of this machine");
        }
        let rest: Vec<i64> = self.s.operands[4..].iter().map(|o| if let Operand::Int(n) = o { *n } else { i64::MAX }).collect();
        let sixteen = a != Type::Tf32;
        let want = 2 + if sixteen { if registers { 1 } else { 2 } } else { 0 };
        if rest.len() != want || rest[..2].iter().any(|s| *s != 1 && *s != -1) || rest[2..].iter().any(|t| *t != 0 && *t != 1) {
            return self.no("the signs are 1 or -1, the transpositions 0 or 1, and their number is that of the form");
        }
        let (trans_a, trans_b) = match (sixteen, registers) {
            (false, _) => (false, false),
            (true, true) => (false, rest[2] == 1),
            (true, false) => (rest[2] == 1, rest[3] == 1),
        };
        self.d.kernel.products.push(GroupProduct { n, k, format, half, negate_a: rest[0] == -1, negate_b: rest[1] == -1, trans_a, trans_b });
        let f = self.d.kernel.products.len() as u32 - 1;
        Ok((Class::Matrix, Op::GroupProduct { f, d, a: fragments, descriptor_a, descriptor_b, scale }))
    }

    fn copy(&mut self, code: &mut Code) -> Result<(Class, Op)> {
        if !code.take("async") {
            return self.no("is not part of this machine");
        }
        if code.take("bulk") {
            return self.bulk(code);
        }
        if code.take("commit_group") {
            return Ok((Class::Async, Op::CopyCommit));
        }
        if code.take("wait_group") {
            let Operand::Int(n) = self.operand(0)? else { return self.no("takes a number") };
            return Ok((Class::Async, Op::CopyWait { left: *n as u32, all: false }));
        }
        if code.take("wait_all") {
            return Ok((Class::Async, Op::CopyWait { left: 0, all: true }));
        }
        let cg = code.take("cg");
        self.cache(code);
        code.any(&["shared", "shared::cta", "global"]);
        self.count(3..=4)?;
        let Operand::Int(bytes) = self.operand(2)? else { return self.no("the size is a number") };
        if !matches!((cg, bytes), (_, 16) | (false, 4 | 8)) {
            return self.no(format!("copies of {bytes} bytes do not exist"));
        }
        let size = match self.s.operands.get(3) {
            Some(Operand::Reg(r)) if self.place_of(*r).is_none() => return self.no("the form that ignores its source is not part of this machine"),
            Some(o) => self.source_of(o, Type::U32)?,
            None => NONE,
        };
        let (_, to) = self.address(self.operand(0)?, Memory::Shared)?;
        let (_, from) = self.address(self.operand(1)?, Memory::Global)?;
        Ok((Class::Async, Op::CopyAsync { bytes: *bytes as u8, size, to, from }))
    }

    fn bulk(&mut self, code: &mut Code) -> Result<(Class, Op)> {
        if code.take("commit_group") {
            return Ok((Class::Async, Op::BulkCommit));
        }
        if code.take("wait_group") {
            let reads = code.take("read");
            let Operand::Int(n) = self.operand(0)? else { return self.no("takes a number") };
            return Ok((Class::Async, Op::BulkWait { left: *n as u32, reads }));
        }
        let dims = code.find(|p| p.strip_suffix('d').and_then(|n| n.parse::<u8>().ok()).filter(|n| (1..=5).contains(n)));
        let (Some(dims), true) = (dims, code.take("tensor")) else { return self.no("only the tensor forms of bulk copies are part of this machine") };
        self.cache(code);
        code.take("tile");
        if code.take("mbarrier::complete_tx::bytes") {
            let shared = code.take("shared::cluster") | code.take("shared::cta");
            if !shared || !code.take("global") {
                return self.no("loads go from global to shared memory");
            }
            self.count(3..=4)?;
            let (to_memory, to) = self.address(self.operand(0)?, Memory::Shared)?;
            let Operand::Tensor(map, coordinates) = self.operand(1)? else { return self.no("expected a tensor map and coordinates") };
            let (map_memory, map) = self.address(map, Memory::Generic)?;
            let map = self.map_address(map_memory, map);
            let coordinates = self.sources(&Operand::List(coordinates.clone()), Type::S32)?;
            if coordinates.len != dims as u32 {
                return self.no(format!("has {} coordinates", coordinates.len));
            }
            let (barrier_memory, barrier) = self.address(self.operand(2)?, Memory::Shared)?;
            return Ok((Class::Async, Op::TensorLoad { dims, to, to_memory, map, coordinates, barrier, barrier_memory }));
        }
        if code.take("bulk_group") {
            if !code.take("global") || !(code.take("shared::cta")) {
                return self.no("stores go from shared to global memory");
            }
            self.count(2..=3)?;
            let Operand::Tensor(map, coordinates) = self.operand(0)? else { return self.no("expected a tensor map and coordinates") };
            let (map_memory, map) = self.address(map, Memory::Generic)?;
            let map = self.map_address(map_memory, map);
            let coordinates = self.sources(&Operand::List(coordinates.clone()), Type::S32)?;
            let (from_memory, from) = self.address(self.operand(1)?, Memory::Shared)?;
            return Ok((Class::Async, Op::TensorStore { dims, map, coordinates, from, from_memory }));
        }
        self.no("needs a completion mechanism")
    }

    /// Tensor maps are addressed generically; a parameter by name is in the window of parameters.
    fn map_address(&self, memory: Memory, at: Address) -> Address {
        match memory {
            Memory::Param => Address { base: at.base, offset: at.offset + super::super::memory::PARAM_WINDOW as i64 },
            _ => at,
        }
    }

    fn mbarrier(&mut self, code: &mut Code) -> Result<(Class, Op)> {
        let what = code.find(|p| matches!(p, "init" | "inval" | "arrive" | "arrive_drop" | "test_wait" | "try_wait" | "expect_tx").then_some(p));
        let expect = what == Some("arrive") && code.take("expect_tx");
        if code.take("noComplete") || what == Some("arrive_drop") {
            return self.no("is not part of this machine");
        }
        code.take("b64");
        let parity = code.take("parity");
        self.ordering(code);
        let memory = self.memory(code);
        let op = match what {
            Some("init") => {
                let (memory, at) = self.address(self.operand(0)?, memory)?;
                Op::BarrierInit { at, memory, count: self.source(1, Type::U32)? }
            }
            Some("inval") => {
                let (memory, at) = self.address(self.operand(0)?, memory)?;
                Op::BarrierInvalidate { at, memory }
            }
            Some("expect_tx") => {
                let (memory, at) = self.address(self.operand(0)?, memory)?;
                Op::BarrierArrive { at, memory, d: NONE, count: NONE, bytes: self.source(1, Type::U32)?, arrives: false }
            }
            Some("arrive") => {
                let d = match self.operand(0)? {
                    Operand::Sink => NONE,
                    o => self.file(o, true)?,
                };
                let (memory, at) = self.address(self.operand(1)?, memory)?;
                let extra = if self.s.operands.len() > 2 { self.source(2, Type::U32)? } else { NONE };
                let (count, bytes) = if expect { (NONE, extra) } else { (extra, NONE) };
                Op::BarrierArrive { at, memory, d, count, bytes, arrives: true }
            }
            Some(w @ ("test_wait" | "try_wait")) => {
                self.count(3..=4)?;
                let (memory, at) = self.address(self.operand(1)?, memory)?;
                let d = self.pred(self.operand(0)?)?;
                let phase = if parity { Place::Narrow(self.source(2, Type::U32)?) } else { Place::Wide(self.source(2, Type::B64)?) };
                Op::BarrierTest { at, memory, d, phase, parity, blocks: w == "try_wait" }
            }
            _ => return self.no("is not part of this machine"),
        };
        Ok((Class::Barrier, op))
    }

    fn barrier(&mut self, code: &mut Code) -> Result<(Class, Op)> {
        let old = code.head == "bar";
        if code.take("cluster") {
            let arrive = code.take("arrive");
            code.any(&["wait", "release", "relaxed", "acquire", "aligned"]);
            // A cluster has one block: its barrier is that of the block, and the arrival without waiting has nobody to tell.
            if arrive {
                return Ok((Class::Barrier, Op::Nop));
            }
            let id = self.d.int32(16);
            return Ok((Class::Barrier, Op::Barrier { id, count: NONE, waits: true, aligned: false }));
        }
        code.take("cta");
        if code.take("warp") {
            code.take("sync");
            return Ok((Class::Barrier, Op::WarpBarrier { mask: self.source(0, Type::B32)? }));
        }
        let aligned = code.take("aligned") || old;
        if code.take("red") {
            let vote = match (code.take("popc"), code.take("and"), code.take("or")) {
                (true, ..) => None,
                (_, true, _) => Some(Vote::All),
                (_, _, true) => Some(Vote::Any),
                _ => return self.no("needs an operation"),
            };
            code.any(&["u32", "pred"]);
            self.count(3..=4)?;
            let d = if vote.is_none() { self.dest(0, Type::U32)? } else { self.pred(self.operand(0)?)? };
            let id = self.source(1, Type::U32)?;
            let count = if self.s.operands.len() == 4 { self.source(2, Type::U32)? } else { NONE };
            let (p, negated) = self.pred_source(self.operand(self.s.operands.len() - 1)?)?;
            return Ok((Class::Barrier, Op::BarrierReduce { vote, id, count, d, p, negated, aligned }));
        }
        let arrive = code.take("arrive");
        if !arrive && !code.take("sync") {
            return self.no("is not part of this machine");
        }
        self.count(1..=2)?;
        let id = self.source(0, Type::U32)?;
        let count = if self.s.operands.len() == 2 { self.source(1, Type::U32)? } else { NONE };
        if arrive && count == NONE {
            return self.no("an arrival needs the number of threads");
        }
        Ok((Class::Barrier, Op::Barrier { id, count, waits: !arrive, aligned }))
    }
}

