//! Instructions of more than one thread: atomics, matrix products, asynchronous copies, barriers.

use super::super::float::{BF16, F16, TF32};
use super::super::op::*;
use super::super::syntax::{Operand, Result, Type};
use super::operand::{Code, NONE, One};

impl One<'_, '_> {
    pub(super) fn atomic(&mut self, code: &mut Code) -> Result<(Class, Op)> {
        let head = code.head;
        let f = self.reduction(code)?;
        self.ordering(code);
        self.cache(code);
        code.any(&["noftz"]);
        let memory = self.memory(code);
        let n = self.vector(code);
        let ty = self.need(code.ty())?;
        let plain = matches!(f, Atomic::Exch | Atomic::Cas | Atomic::And | Atomic::Or | Atomic::Xor);
        if !matches!(ty.bytes(), 2 | 4 | 8) || (ty == Type::F64 && !plain && f != Atomic::Add) || (ty.float() && matches!(f, Atomic::Inc | Atomic::Dec)) {
            return self.no("this combination of operation and type does not exist");
        }
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

    pub(super) fn product(&mut self, code: &mut Code) -> Result<(Class, Op)> {
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

    pub(super) fn group(&mut self, code: &mut Code) -> Result<(Class, Op)> {
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
        let rest: Vec<i64> = self.s.operands.iter().skip(4).map(|o| if let Operand::Int(n) = o { *n } else { i64::MAX }).collect();
        let sixteen = a != Type::Tf32;
        let want = 2 + if sixteen { if registers { 1 } else { 2 } } else { 0 };
        if rest.len() != want || rest.iter().take(2).any(|s| *s != 1 && *s != -1) || rest.iter().skip(2).any(|t| *t != 0 && *t != 1) {
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

    pub(super) fn copy(&mut self, code: &mut Code) -> Result<(Class, Op)> {
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

    pub(super) fn bulk(&mut self, code: &mut Code) -> Result<(Class, Op)> {
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
            let multicast = code.take("multicast::cluster");
            self.count(3 + usize::from(multicast)..=4 + usize::from(multicast))?;
            let (to_memory, to) = self.address(self.operand(0)?, Memory::Shared)?;
            let Operand::Tensor(map, coordinates) = self.operand(1)? else { return self.no("expected a tensor map and coordinates") };
            let (map_memory, map) = self.address(map, Memory::Generic)?;
            let map = self.map_address(map_memory, map);
            let coordinates = self.sources(&Operand::List(coordinates.clone()), Type::S32)?;
            if coordinates.len != dims as u32 {
                return self.no(format!("has {} coordinates", coordinates.len));
            }
            let (barrier_memory, barrier) = self.address(self.operand(2)?, Memory::Shared)?;
            let blocks = if multicast { self.source(3, Type::U16)? } else { NONE };
            return Ok((Class::Async, Op::TensorLoad { dims, to, to_memory, map, coordinates, barrier, barrier_memory, blocks }));
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
    pub(super) fn map_address(&self, memory: Memory, at: Address) -> Address {
        match memory {
            Memory::Param => Address { base: at.base, offset: at.offset + super::super::memory::PARAM_WINDOW as i64 },
            _ => at,
        }
    }

    pub(super) fn mbarrier(&mut self, code: &mut Code) -> Result<(Class, Op)> {
        let what = code.find(|p| matches!(p, "init" | "inval" | "arrive" | "arrive_drop" | "test_wait" | "try_wait" | "expect_tx").then_some(p));
        let expect = what == Some("arrive") && code.take("expect_tx");
        if code.take("noComplete") || what == Some("arrive_drop") {
            return self.no("is not part of this machine");
        }
        code.take("b64");
        let parity = code.take("parity");
        self.ordering(code);
        let remote = code.take("shared::cluster");
        let memory = if remote { Memory::Shared } else { self.memory(code) };
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
                Op::BarrierArrive { at, memory, d: NONE, count: NONE, bytes: self.source(1, Type::U32)?, arrives: false, remote }
            }
            Some("arrive") => {
                let d = match self.operand(0)? {
                    Operand::Sink => NONE,
                    o => self.file(o, true)?,
                };
                let (memory, at) = self.address(self.operand(1)?, memory)?;
                let extra = if self.s.operands.len() > 2 { self.source(2, Type::U32)? } else { NONE };
                let (count, bytes) = if expect { (NONE, extra) } else { (extra, NONE) };
                Op::BarrierArrive { at, memory, d, count, bytes, arrives: true, remote }
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

    pub(super) fn barrier(&mut self, code: &mut Code) -> Result<(Class, Op)> {
        let old = code.head == "bar";
        if code.take("cluster") {
            let (arrives, relaxed) = (code.take("arrive"), code.take("relaxed"));
            code.any(&["wait", "release", "acquire", "aligned"]);
            return Ok((Class::Barrier, if arrives { Op::ClusterArrive { releases: !relaxed } } else { Op::ClusterWait }));
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

