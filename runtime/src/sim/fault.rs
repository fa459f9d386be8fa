//! What can be wrong with a program while it runs.

use std::fmt;

/// Kinds of faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum FaultKind {
    /// An access beyond an allocation.
    OutOfBounds,
    /// An address that is no multiple of the access's width.
    Misaligned,
    /// A read of memory that nobody has written.
    Uninitialised,
    /// A read of a register that nobody has written.
    UndefinedRegister,
    /// A store to an input.
    ReadOnly,
    /// Two accesses, one of them a write, that nothing orders.
    Race,
    /// An instruction that a whole warp must execute together, executed by a part of it.
    Divergent,
    /// A barrier with a number of threads that is wrong or that differs from the others'.
    BarrierCount,
    /// Data of an asynchronous operation, touched before a wait for it.
    InFlight,
    /// An asynchronous copy that is in no group, so that no wait covers it.
    MissingCommit,
    /// Everything waits.
    Deadlock,
    /// More instructions than the options allow.
    Runaway,
    /// The program stopped itself.
    Trap,
    /// Something that the ISA leaves undefined or forbids.
    Undefined,
    /// A launch that does not fit the kernel.
    Launch,
}

impl FaultKind {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::OutOfBounds => "out of bounds",
            FaultKind::Misaligned => "misaligned access",
            FaultKind::Uninitialised => "read of uninitialised memory",
            FaultKind::UndefinedRegister => "read of an undefined register",
            FaultKind::ReadOnly => "write to an input",
            FaultKind::Race => "race",
            FaultKind::Divergent => "divergence",
            FaultKind::BarrierCount => "barrier count",
            FaultKind::InFlight => "asynchronous data before its wait",
            FaultKind::MissingCommit => "missing commit",
            FaultKind::Deadlock => "deadlock",
            FaultKind::Runaway => "too many instructions",
            FaultKind::Trap => "trap",
            FaultKind::Undefined => "undefined behaviour",
            FaultKind::Launch => "launch",
        }
    }
}

/// An error of a running program: what, and where exactly.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// What kind.
    pub kind: FaultKind,
    /// The kernel.
    pub kernel: String,
    /// Line of the PTX text, from 1; 0 where no instruction is to blame.
    pub line: u32,
    /// That line.
    pub text: String,
    /// The block, `%ctaid`.
    pub block: [u32; 3],
    /// The thread, `%tid`, where it is one.
    pub thread: Option<[u32; 3]>,
    /// The address, as space and offset or as buffer and offset, where there is one.
    pub address: Option<String>,
    /// What is wrong, with the values.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in kernel `{}`: {}", self.kind.name(), self.kernel, self.message)?;
        if let Some(a) = &self.address {
            write!(f, "; address {a}")?;
        }
        if self.kind != FaultKind::Launch {
            write!(f, "; block {:?}", self.block)?;
        }
        if let Some(t) = self.thread {
            write!(f, ", thread {t:?}")?;
        }
        if self.line > 0 {
            write!(f, "; line {}: {}", self.line, self.text.trim())?;
        }
        Ok(())
    }
}
impl std::error::Error for Fault {}

/// A fault before it is known where: lane and address are added by whoever knows them.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub kind: FaultKind,
    pub message: String,
    pub lane: Option<u32>,
    pub address: Option<String>,
    /// The instruction, if it is not the one that runs.
    pub line: Option<u32>,
}

/// Boxed, so that results without trouble stay small.
pub(super) type Problem = Box<Trouble>;

pub(super) fn problem<T>(kind: FaultKind, message: impl Into<String>) -> Result<T, Problem> {
    Err(Box::new(Trouble { kind, message: message.into(), lane: None, address: None, line: None }))
}

/// Adds the lane, and the address if there is none.
pub(super) fn at<T>(r: Result<T, Problem>, lane: u32, address: impl FnOnce() -> String) -> Result<T, Problem> {
    r.map_err(|mut p| {
        p.lane = p.lane.or(Some(lane));
        if p.address.is_none() {
            p.address = Some(address());
        }
        p
    })
}
