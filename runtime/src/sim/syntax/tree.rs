//! The syntax tree of a module.

/// Types of registers, variables and instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(in super::super) enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
}

impl Type {
    pub(in super::super) fn parse(s: &str) -> Option<Type> {
        use Type::*;
        Some(match s {
            "pred" => Pred,
            "b8" => B8,
            "b16" => B16,
            "b32" => B32,
            "b64" => B64,
            "b128" => B128,
            "u8" => U8,
            "u16" => U16,
            "u32" => U32,
            "u64" => U64,
            "s8" => S8,
            "s16" => S16,
            "s32" => S32,
            "s64" => S64,
            "f16" => F16,
            "f16x2" => F16x2,
            "bf16" => Bf16,
            "bf16x2" => Bf16x2,
            "tf32" => Tf32,
            "f32" => F32,
            "f64" => F64,
            _ => return None,
        })
    }
    /// Bytes; a predicate has none.
    pub(in super::super) fn bytes(self) -> u32 {
        use Type::*;
        match self {
            Pred => 0,
            B8 | U8 | S8 => 1,
            B16 | U16 | S16 | F16 | Bf16 => 2,
            B32 | U32 | S32 | F32 | F16x2 | Bf16x2 | Tf32 => 4,
            B64 | U64 | S64 | F64 => 8,
            B128 => 16,
        }
    }
    pub(in super::super) fn signed(self) -> bool {
        matches!(self, Type::S8 | Type::S16 | Type::S32 | Type::S64)
    }
    pub(in super::super) fn float(self) -> bool {
        use Type::*;
        matches!(self, F16 | F16x2 | Bf16 | Bf16x2 | F32 | F64 | Tf32)
    }
}

/// State spaces that can be declared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in super::super) enum Space {
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// What a variable starts with.
#[derive(Clone, Debug)]
pub(in super::super) enum Init {
    Bytes(Vec<u8>),
    /// The address of a variable, plus an offset.
    Address(String, i64),
}

/// A declared variable.
#[derive(Clone, Debug)]
pub(in super::super) struct Variable {
    pub name: String,
    pub space: Space,
    pub align: u32,
    pub bytes: u64,
    pub init: Vec<Init>,
    /// `.extern`: dynamic shared memory if it has no size.
    pub external: bool,
}

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) enum Operand {
    /// A register of the function, by index.
    Reg(u32),
    /// A predicate, negated.
    Not(Box<Operand>),
    /// A special register, a variable, a function.
    Name(String),
    Label(u32),
    Int(i64),
    /// `0f…`
    F32(u32),
    /// `0d…`, or a decimal fraction
    F64(u64),
    List(Vec<Operand>),
    /// `[base + offset]`
    Address(Box<Operand>, i64),
    /// `[base, {coordinates}]`
    Tensor(Box<Operand>, Vec<Operand>),
    /// `a|b`
    Pair(Box<Operand>, Box<Operand>),
    /// `name + offset`
    Offset(String, i64),
    /// `(a, b)`
    Group(Vec<Operand>),
    /// `_`
    Sink,
}

/// An instruction as written.
#[derive(Clone, Debug)]
pub(in super::super) struct Statement {
    pub line: u32,
    /// The guard: register and whether it is negated.
    pub guard: Option<(u32, bool)>,
    pub opcode: String,
    pub operands: Vec<Operand>,
}

#[derive(Clone, Debug)]
pub(in super::super) enum Item {
    Label(u32),
    Statement(Statement),
    /// `label: .branchtargets a, b, …;`
    Targets(u32, Vec<u32>),
}

/// A register of a function.
#[derive(Clone, Debug)]
pub(in super::super) struct Register {
    pub ty: Type,
    pub name: String,
}

/// A parameter.
#[derive(Clone, Debug)]
pub(in super::super) struct Parameter {
    pub name: String,
    pub bytes: u32,
    pub align: u32,
    pub pointer: bool,
}

#[derive(Clone, Debug, Default)]
pub(in super::super) struct Function {
    pub name: String,
    pub line: u32,
    pub entry: bool,
    pub defined: bool,
    pub params: Vec<Parameter>,
    pub returns: Vec<Parameter>,
    pub registers: Vec<Register>,
    pub labels: Vec<String>,
    pub variables: Vec<Variable>,
    pub items: Vec<Item>,
    /// `.reqntid`
    pub required: Option<[u32; 3]>,
    /// `.maxntid`
    pub limit: Option<[u32; 3]>,
    /// Blocks of a cluster, where the text says it.
    pub cluster: Option<u32>,
}

#[derive(Clone, Debug, Default)]
pub(in super::super) struct Tree {
    pub version: String,
    pub target: String,
    pub variables: Vec<Variable>,
    pub functions: Vec<Function>,
}
