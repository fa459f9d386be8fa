//! Operands and modifiers of a statement: registers to slots, numbers and names to slots that hold them, addresses to spaces.

use super::super::float::Round;
use super::super::memory::SHARED_WINDOW;
use super::super::op::{Address, Memory, Place, Slot, Slots};
use super::super::syntax::{Operand, Result, Statement, Type, refuse};
use super::Decoder;

pub(super) const NONE: Slot = u32::MAX;

/// An opcode's parts; each is taken once.
pub(super) struct Code<'a> {
    pub head: &'a str,
    pub parts: Vec<Option<&'a str>>,
}

impl<'a> Code<'a> {
    pub(super) fn take(&mut self, name: &str) -> bool {
        match self.parts.iter_mut().find(|p| **p == Some(name)) {
            Some(p) => {
                *p = None;
                true
            }
            None => false,
        }
    }
    pub(super) fn any(&mut self, names: &[&str]) {
        for n in names {
            self.take(n);
        }
    }
    /// The first part that `f` understands.
    pub(super) fn find<T>(&mut self, f: impl Fn(&'a str) -> Option<T>) -> Option<T> {
        for p in &mut self.parts {
            if let Some(v) = p.and_then(&f) {
                *p = None;
                return Some(v);
            }
        }
        None
    }
    pub(super) fn ty(&mut self) -> Option<Type> {
        self.find(Type::parse)
    }
    pub(super) fn round(&mut self) -> Option<Round> {
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

pub(super) fn wide(t: Type) -> bool {
    t.bytes() == 8
}

/// The statement being decoded.
pub(super) struct One<'d, 'a> {
    pub d: &'d mut Decoder<'a>,
    pub id: usize,
    pub s: &'a Statement,
}

impl<'a> One<'_, 'a> {
    pub(super) fn no<T>(&self, why: impl AsRef<str>) -> Result<T> {
        refuse(self.s.line, format!("`{}`: {}", self.s.opcode, why.as_ref()))
    }
    pub(super) fn operand(&self, i: usize) -> Result<&'a Operand> {
        match self.s.operands.get(i) {
            Some(o) => Ok(o),
            None => self.no(format!("has {} operands, but needs {}", self.s.operands.len(), i + 1)),
        }
    }
    pub(super) fn count(&self, allowed: std::ops::RangeInclusive<usize>) -> Result<()> {
        let n = self.s.operands.len();
        if allowed.contains(&n) { Ok(()) } else { self.no(format!("has {n} operands, but takes {} to {}", allowed.start(), allowed.end())) }
    }
    pub(super) fn place_of(&self, r: u32) -> Option<Place> {
        self.d.instances[self.id].places[r as usize]
    }
    pub(super) fn name_of(&self, r: u32) -> String {
        self.d.instances[self.id].function.registers[r as usize].name.clone()
    }
    /// A destination or source register in whichever file it is.
    pub(super) fn place(&self, o: &Operand) -> Result<Place> {
        match o {
            Operand::Reg(r) => match self.place_of(*r) {
                Some(p) => Ok(p),
                None => self.no(format!("`{}` is a predicate, not a value", self.name_of(*r))),
            },
            o => self.no(format!("expected a register, found {o:?}")),
        }
    }
    pub(super) fn file(&self, o: &Operand, wide: bool) -> Result<Slot> {
        match (self.place(o)?, wide) {
            (Place::Narrow(s), false) | (Place::Wide(s), true) => Ok(s),
            _ => {
                let Operand::Reg(r) = o else { return self.no("expected a register") };
                self.no(format!("`{}` has another width than the instruction", self.name_of(*r)))
            }
        }
    }
    /// A destination register of `ty`.
    pub(super) fn dest(&self, i: usize, ty: Type) -> Result<Slot> {
        self.file(self.operand(i)?, wide(ty))
    }
    pub(super) fn pred(&self, o: &Operand) -> Result<Slot> {
        match o {
            Operand::Reg(r) if self.place_of(*r).is_none() => Ok(self.d.instances[self.id].predicates[*r as usize]),
            o => self.no(format!("expected a predicate, found {o:?}")),
        }
    }
    /// A predicate as a source: maybe negated, maybe a number.
    pub(super) fn pred_source(&mut self, o: &Operand) -> Result<(Slot, bool)> {
        match o {
            Operand::Not(o) => Ok((self.pred(o)?, true)),
            Operand::Int(n) => Ok((self.d.truth(*n != 0), false)),
            o => Ok((self.pred(o)?, false)),
        }
    }
    /// A source of `ty`: a register or a number, as a slot.
    pub(super) fn source_of(&mut self, o: &Operand, ty: Type) -> Result<Slot> {
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
                    Some((Memory::Shared, at)) if wide(t) || t.bytes() == 4 => Ok(self.d.shared_address(at, wide(t))),
                    Some((_, at)) if wide(t) => Ok(self.d.int64(at as u64)),
                    Some((_, at)) if t.bytes() == 4 => Ok(self.d.int32(at as u32)),
                    _ => self.no(format!("`{n}` is not declared, or no special register of this machine")),
                }
            }
            (Operand::Offset(n, o), t) => match self.symbol(n) {
                Some((Memory::Shared, at)) if wide(t) || t.bytes() == 4 => Ok(self.d.shared_address(at + o, wide(t))),
                Some((_, at)) if wide(t) => Ok(self.d.int64((at + o) as u64)),
                Some((_, at)) if t.bytes() == 4 => Ok(self.d.int32((at + o) as u32)),
                _ => self.no(format!("`{n}` is not declared")),
            },
            (o, t) => self.no(format!("{o:?} is no operand of type {t:?}")),
        }
    }
    pub(super) fn source(&mut self, i: usize, ty: Type) -> Result<Slot> {
        let o = self.operand(i)?;
        self.source_of(o, ty)
    }
    /// A source register in its own file, or a number in the file of `ty`.
    pub(super) fn source_place(&mut self, o: &Operand, ty: Type) -> Result<Place> {
        match o {
            Operand::Reg(_) => self.place(o),
            o => {
                let s = self.source_of(o, ty)?;
                Ok(if wide(ty) { Place::Wide(s) } else { Place::Narrow(s) })
            }
        }
    }
    /// The address of a variable within its space.
    pub(super) fn symbol(&self, name: &str) -> Option<(Memory, i64)> {
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
    pub(super) fn address(&mut self, o: &Operand, memory: Memory) -> Result<(Memory, Address)> {
        let Operand::Address(base, offset) = o else { return self.no(format!("expected an address in brackets, found {o:?}")) };
        match &**base {
            Operand::Reg(_) => Ok((memory, Address { base: Some(self.place(base)?), offset: *offset })),
            Operand::Int(_) if memory == Memory::Shared && self.d.kernel.cluster > 1 => self.no("an address in shared memory as a number: each block of a cluster has its own"),
            Operand::Int(n) => Ok((memory, Address { base: None, offset: n + offset })),
            Operand::Name(n) => match self.symbol(n) {
                Some((Memory::Shared, at)) if self.d.kernel.cluster > 1 && matches!(memory, Memory::Generic | Memory::Shared) => {
                    let window = if memory == Memory::Generic { SHARED_WINDOW as i64 } else { 0 };
                    Ok((memory, Address { base: Some(Place::Wide(self.d.shared_address(at, true))), offset: offset + window }))
                }
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
    pub(super) fn memory(&mut self, code: &mut Code) -> Memory {
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
    pub(super) fn parts(&mut self, o: &Operand, wide: bool, sinks: bool) -> Result<Slots> {
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
    pub(super) fn sources(&mut self, o: &Operand, ty: Type) -> Result<Slots> {
        let Operand::List(l) = o else { return self.no(format!("expected registers in braces, found {o:?}")) };
        let mut slots = vec![];
        for o in l {
            slots.push(self.source_of(o, ty)?);
        }
        Ok(self.d.list(&slots))
    }
    /// `d` or `d|p`
    pub(super) fn pair(&self, o: &Operand) -> Result<(Slot, Slot)> {
        match o {
            Operand::Pair(a, p) => {
                let p = if **p == Operand::Sink { NONE } else { self.pred(p)? };
                Ok((if **a == Operand::Sink { NONE } else { self.file(a, false)? }, p))
            }
            o => Ok((self.file(o, false)?, NONE)),
        }
    }
    /// Refuses types of other widths, in bytes, than these.
    pub(super) fn width(&self, ty: Type, allowed: &[u32]) -> Result<()> {
        if allowed.contains(&ty.bytes()) { Ok(()) } else { self.no(format!("has no form for {ty:?}")) }
    }
    pub(super) fn need(&self, t: Option<Type>) -> Result<Type> {
        match t {
            Some(t) => Ok(t),
            None => self.no("has no type"),
        }
    }
}
