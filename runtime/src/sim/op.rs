//! Instructions as they run: operations on slots of a warp's register files, decided once by `decode`.
//!
//! There are three register files: 32-bit slots (16-bit values in the low half), 64-bit slots, and predicates (one bit per lane). Immediates and special
//! registers are slots too, filled before the first instruction, so that an operand is always an index.

use super::float::{Format, Round};
use super::syntax::Type;

/// A slot of the file that the operation's type says.
pub(super) type Slot = u32;

/// A run of slots in the kernel's list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slots {
    pub start: u32,
    pub len: u32,
}

/// A slot with its file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    Narrow(Slot),
    Wide(Slot),
}

/// Where an access goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Memory {
    Generic,
    Global,
    Shared,
    Local,
    /// The kernel's parameters.
    Param,
}

/// `base + offset`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Address {
    pub base: Option<Place>,
    pub offset: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Int1 {
    Neg,
    Abs,
    Not,
    Cnot,
    Popc,
    Clz,
    Brev,
    /// Position of the highest bit that differs from the sign; `true`: as a shift amount.
    Bfind(bool),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Int2 {
    Add,
    Sub,
    MulLo,
    MulHi,
    Div,
    Rem,
    Min,
    Max,
    And,
    Or,
    Xor,
    AddSat,
    SubSat,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Int3 {
    MadLo,
    MadHi,
    Sad,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Float1 {
    Neg,
    Abs,
    Rcp,
    Sqrt,
    Rsqrt,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Float2 {
    Add,
    Sub,
    Mul,
    Div,
    /// The quotient of `.approx` and `.full`: zero where the divisor is so large that its reciprocal vanishes.
    DivApprox,
    Min,
    Max,
    CopySign,
}

/// Modifiers of a floating-point operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Mods {
    pub round: Round,
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
    /// `.NaN` of min and max.
    pub nan: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// The unordered forms hold for NaN too.
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Logic {
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shift {
    Left,
    Right,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shuffle {
    Up,
    Down,
    Bfly,
    Idx,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Permute {
    Index,
    F4e,
    B4e,
    Rc8,
    Ecl,
    Ecr,
    Rc16,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Atomic {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Vote {
    All,
    Any,
    Uni,
    Ballot,
}

/// A conversion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Convert {
    pub to: Type,
    pub from: Type,
    pub round: Round,
    /// To an integral value, between floats.
    pub integral: bool,
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
    pub finite: bool,
}

/// A matrix product of one warp, m16n8.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Product {
    pub k: u32,
    pub format: Format,
    /// f16 accumulators instead of f32.
    pub half: bool,
}

/// A product of a warpgroup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct GroupProduct {
    pub n: u32,
    pub k: u32,
    pub format: Format,
    pub half: bool,
    pub negate_a: bool,
    pub negate_b: bool,
    pub trans_a: bool,
    pub trans_b: bool,
}

/// What an instruction does.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Op {
    Nop,
    Move32 { d: Slot, a: Slot },
    Move64 { d: Slot, a: Slot },
    MoveP { d: Slot, a: Slot },
    /// Parts of `bits` bits each, low first, into one register.
    Pack { d: Place, parts: Slots, bits: u8 },
    /// The other way. `u32::MAX` is a part that nobody wants.
    Unpack { parts: Slots, a: Place, bits: u8 },
    Int1 { f: Int1, ty: Type, d: Slot, a: Slot },
    Int2 { f: Int2, ty: Type, d: Slot, a: Slot, b: Slot },
    Int3 { f: Int3, ty: Type, d: Slot, a: Slot, b: Slot, c: Slot },
    /// With carry in and out: `sub`, reads the carry, writes the carry.
    Carry { sub: bool, reads: bool, writes: bool, wide: bool, d: Slot, a: Slot, b: Slot },
    MulWide { ty: Type, d: Slot, a: Slot, b: Slot },
    MadWide { ty: Type, d: Slot, a: Slot, b: Slot, c: Slot },
    Shift { f: Shift, ty: Type, d: Slot, a: Slot, b: Slot },
    Funnel { left: bool, wrap: bool, d: Slot, a: Slot, b: Slot, c: Slot },
    Lop3 { d: Slot, a: Slot, b: Slot, c: Slot, table: u8 },
    Permute { f: Permute, d: Slot, a: Slot, b: Slot, c: Slot },
    Extract { ty: Type, d: Slot, a: Slot, b: Slot, c: Slot },
    Insert { wide: bool, d: Slot, a: Slot, b: Slot, from: Slot, len: Slot },
    PredNot { d: Slot, a: Slot },
    PredLogic { f: Logic, d: Slot, a: Slot, b: Slot },
    Float1 { f: Float1, ty: Type, m: Mods, d: Slot, a: Slot },
    Float2 { f: Float2, ty: Type, m: Mods, d: Slot, a: Slot, b: Slot },
    Fma { ty: Type, m: Mods, d: Slot, a: Slot, b: Slot, c: Slot },
    /// The largest or smallest of three f32.
    Extremum { max: bool, m: Mods, d: Slot, a: Slot, b: Slot, c: Slot },
    /// Both f32 of 64-bit registers: `f` of `a` and `b`; without it, `a · b + c`.
    Pair { f: Option<Float2>, m: Mods, d: Slot, a: Slot, b: Slot, c: Slot },
    /// f32 arithmetic with narrow operands `from`: `f` of `a` and an f32 `c`; without it, `a · b + c`.
    Mixed { f: Option<Float2>, from: Type, m: Mods, d: Slot, a: Slot, b: Slot, c: Slot },
    /// `d = (a ? b) with e`, `d2 = !(a ? b) with e`; `u32::MAX` where there is none.
    Compare { f: Compare, ty: Type, ftz: bool, d: Slot, d2: Slot, a: Slot, b: Slot, with: Option<(Logic, Slot, bool)> },
    /// `set`: all ones or 1.0
    Set { f: Compare, ty: Type, ftz: bool, float: bool, d: Slot, a: Slot, b: Slot },
    Select { wide: bool, d: Slot, a: Slot, b: Slot, p: Slot, negated: bool },
    SelectSign { wide: bool, float: bool, d: Slot, a: Slot, b: Slot, c: Slot },
    /// `b` is the low half of the packed forms, else `u32::MAX`.
    Convert { f: Convert, d: Place, a: Place, b: Slot },
    Load { memory: Memory, ty: Type, parts: Slots, wide: bool, at: Address, ordered: bool },
    Store { memory: Memory, ty: Type, parts: Slots, wide: bool, at: Address, ordered: bool },
    Atomic { f: Atomic, ty: Type, memory: Memory, d: Slot, a: Slot, b: Slot, at: Address },
    /// Address spaces: the window of `memory` is added (`to` false) or taken away.
    Window { memory: Memory, to: bool, d: Place, a: Place },
    IsSpace { memory: Memory, d: Slot, a: Place },
    /// Asynchronous copy of `bytes`; `size` is the register with what is really read, else zeros.
    CopyAsync { bytes: u8, size: Slot, to: Address, from: Address },
    CopyCommit,
    /// At most `left` groups stay in flight; `all`: nothing stays, committed or not.
    CopyWait { left: u32, all: bool },
    LoadMatrix { parts: Slots, transposed: bool, at: Address },
    StoreMatrix { parts: Slots, transposed: bool, at: Address },
    MoveMatrix { d: Slot, a: Slot },
    Product { f: Product, d: Slots, a: Slots, b: Slots, c: Slots },
    /// `count` is `u32::MAX` where none is given.
    Barrier { id: Slot, count: Slot, waits: bool, aligned: bool },
    /// `barrier.red`: over a predicate, to a count or a predicate.
    BarrierReduce { vote: Option<Vote>, id: Slot, count: Slot, d: Slot, p: Slot, negated: bool, aligned: bool },
    WarpBarrier { mask: Slot },
    Shuffle { f: Shuffle, d: Slot, p: Slot, a: Slot, b: Slot, c: Slot, mask: Slot },
    Vote { f: Vote, d: Slot, p: Slot, negated: bool, mask: Slot },
    Match { all: bool, wide: bool, d: Slot, p: Slot, a: Slot, mask: Slot },
    Reduce { f: Atomic, ty: Type, d: Slot, a: Slot, mask: Slot },
    Elect { d: Slot, p: Slot, mask: Slot },
    ActiveMask { d: Slot },
    Branch { to: u32 },
    /// To `targets[index]`.
    BranchTable { index: Slot, targets: Slots },
    Exit,
    Trap,
    Fence { proxy: bool },
    BarrierInit { at: Address, memory: Memory, count: Slot },
    BarrierInvalidate { at: Address, memory: Memory },
    /// Arrival with `count` (or one); `bytes` are expected first.
    /// `remote`: at another block's, if need be.
    BarrierArrive { at: Address, memory: Memory, d: Slot, count: Slot, bytes: Slot, arrives: bool, remote: bool },
    /// `parity` or the state of an arrival; `blocks`: `try_wait`.
    BarrierTest { at: Address, memory: Memory, d: Slot, phase: Place, parity: bool, blocks: bool },
    /// The address of the same place in the shared memory of another block of the cluster.
    MapShared { d: Slot, a: Slot, rank: Slot },
    ClusterArrive { releases: bool },
    ClusterWait,
    /// A tile of a tensor map into shared memory; `blocks`: that of the cluster's blocks whose bits it has.
    TensorLoad { dims: u8, to: Address, to_memory: Memory, map: Address, coordinates: Slots, barrier: Address, barrier_memory: Memory, blocks: Slot },
    /// A tile of shared memory into a tensor.
    TensorStore { dims: u8, map: Address, coordinates: Slots, from: Address, from_memory: Memory },
    BulkCommit,
    BulkWait { left: u32, reads: bool },
    GroupFence,
    GroupProduct { f: u32, d: Slots, a: Slots, descriptor_a: Slot, descriptor_b: Slot, scale: Slot },
    GroupCommit,
    GroupWait { left: u32 },
}

/// Classes of instructions, for the counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    Move,
    Integer,
    Float,
    Special,
    Convert,
    Compare,
    Matrix,
    LoadMatrix,
    Global,
    Shared,
    Local,
    Param,
    Async,
    Atomic,
    Exchange,
    Barrier,
    Branch,
    Other,
}

impl Class {
    pub(super) fn name(self) -> &'static str {
        match self {
            Class::Move => "move",
            Class::Integer => "integer",
            Class::Float => "float",
            Class::Special => "special function",
            Class::Convert => "convert",
            Class::Compare => "compare and select",
            Class::Matrix => "matrix product",
            Class::LoadMatrix => "matrix load and store",
            Class::Global => "global load and store",
            Class::Shared => "shared load and store",
            Class::Local => "local load and store",
            Class::Param => "parameter load",
            Class::Async => "asynchronous copy",
            Class::Atomic => "atomic",
            Class::Exchange => "exchange between lanes",
            Class::Barrier => "barrier",
            Class::Branch => "branch",
            Class::Other => "other",
        }
    }
}

/// An instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inst {
    pub op: Op,
    /// Predicate and negation; `u32::MAX` without a guard.
    pub guard: u32,
    pub negated: bool,
    pub class: Class,
    /// Of the text, from 1.
    pub line: u32,
    /// Index into the kernel's opcodes.
    pub opcode: u32,
}
