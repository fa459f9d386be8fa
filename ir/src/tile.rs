//! The block program: what one program instance does to tiles.
//!
//! This is the level that Triton calls `tt`: loads, dots, reductions and elementwise maps over tiles, one loop over a
//! streamed axis with carried values, stores. It knows no thread, no warp, no layout and no memory space; those belong to
//! the machines that execute it (`interp` here, `cpu` and `nvptx` in `codegen`).
//!
//! # Meaning
//! Every axis of the iteration space has a [`Role`]. A value is a tile over a set of axes, `Grid` axes excepted (they have
//! one index per program instance). The *valid* extent of a tile along an axis is what remains of the axis; reductions and
//! dots range over valid elements only, stores write valid elements only, and nothing outside is ever read. So no mask for
//! tails stands in the program: how a tail is kept out is the machine's business.
//!
//! `reduce max` of nothing is [`LOWEST`], never −∞, and so is the running maximum before the first tile. A masked score is −∞
//! or lower than `LOWEST`, so that `exp(score − max)` is exactly zero and a row without a visible element needs no branch.

use crate::dim::{Bindings, Dim, DimError, Name};
use crate::prim::Elementwise;
use crate::types::DType;
use serde::{Deserialize, Serialize};

pub mod cost;
pub mod interp;
pub mod print;
pub mod product;
pub mod sequence;
pub mod verify;

/// The identity of `reduce_max` on every machine: finite, and far below any score.
pub const LOWEST: f64 = -1e38;

macro_rules! index {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
        pub struct $name(pub u32);
        impl $name {
            /// As a position in a table.
            pub fn index(self) -> usize { self.0 as usize }
        }
    };
}
index!(/** An axis of the iteration space: a position in [`Program::axes`]. */ AxisId);
index!(/** A value: a position in [`Program::values`]. */ ValueId);
index!(/** A buffer: a position in [`Program::buffers`]. */ BufferId);

/// How a program instance walks an axis.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Role {
    /// Parallel; an instance has one index.
    Grid,
    /// Parallel; an instance has a tile of up to this many elements.
    Block(usize),
    /// Serial; one iteration of a [`Loop`] has a tile of up to this many elements.
    Stream(usize),
    /// The whole axis is in every tile; its size is a number.
    Full(usize),
}

/// An axis of the iteration space.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TileAxis {
    /// Name, for people.
    pub name: Name,
    /// Size; an expression over run-time dimensions unless the role is `Full`.
    pub size: Dim,
    /// How an instance walks it.
    pub role: Role,
}

impl TileAxis {
    /// The largest extent of a tile along this axis.
    pub fn extent(&self) -> usize {
        match self.role {
            Role::Grid => 1,
            Role::Block(n) | Role::Stream(n) | Role::Full(n) => n,
        }
    }
}

/// Whether a buffer is read or written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Access {
    /// Read only.
    Input,
    /// Written; each element by exactly one instance.
    Output,
}

/// A tensor in memory: dense, row-major.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Buffer {
    /// The parameter's, result's or intermediate's name.
    pub name: Name,
    /// Element type in memory.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub shape: Vec<Dim>,
    /// Read or written.
    pub access: Access,
}

impl Buffer {
    /// Its sizes as numbers; less than nothing is nothing.
    ///
    /// # Errors
    /// An unbound name, a value that is not whole, or one that does not fit.
    pub fn sizes(&self, dims: &Bindings) -> Result<Vec<usize>, DimError> {
        self.shape.iter().map(|d| d.eval(dims).map(|n| n.max(0) as usize)).collect()
    }
}

/// Which element of a buffer belongs to a point of the iteration space:
/// element number `offset + Σ stride·position(axis)`, positions being global (not within the tile).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct View {
    /// The buffer.
    pub buffer: BufferId,
    /// First element.
    pub offset: Dim,
    /// Elements to step per axis. An axis that is absent is broadcast (load) or not part of the value (store).
    pub strides: Vec<(AxisId, Dim)>,
}

impl View {
    /// The stride along `axis`, if the view depends on it.
    pub fn stride(&self, axis: AxisId) -> Option<&Dim> {
        self.strides.iter().find(|(a, _)| *a == axis).map(|(_, s)| s)
    }
}

/// An affine inequality over positions: `Σ coef·position(axis) + constant + Σ coef·scalar ≥ 0`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Constraint {
    /// Coefficients of positions; `Grid` axes may occur.
    pub axes: Vec<(AxisId, i64)>,
    /// The constant part, over run-time dimensions.
    pub constant: Dim,
    /// Loaded `i32` values without axes (a length per batch entry, say).
    pub scalars: Vec<(ValueId, i64)>,
}

/// Kinds of reductions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum ReduceKind {
    /// Sum; of nothing 0.
    Sum,
    /// Maximum; of nothing [`LOWEST`].
    Max,
}

/// What makes a value.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Op {
    /// A number, along whatever axes the value has.
    Const(f64),
    /// A size, as a number; likewise.
    Size(Dim),
    /// Global positions along an axis, `i32`. Without axes if the axis is `Grid`.
    Position(AxisId),
    /// Elements of a buffer, converted to the value's type.
    Load(View),
    /// An elementwise operation; operands are broadcast to the union of their axes.
    Map(Elementwise, Vec<ValueId>),
    /// A reduction over `axes`.
    Reduce(ReduceKind, ValueId, Vec<AxisId>),
    /// `init + Σ_terms Σ_sum a·b`, in one accumulator. `init` is a sum of products, `[[o.t, corr], [o, shift]]`,
    /// empty for zero; each product has at most the result's axes.
    Dot {
        /// What the accumulator starts from.
        init: Vec<Vec<ValueId>>,
        /// Pairs of operands.
        terms: Vec<(ValueId, ValueId)>,
        /// Summed axes.
        sum: Vec<AxisId>,
    },
    /// The operand where every constraint holds, `fill` elsewhere. Where a whole tile satisfies them, a machine may skip it.
    Fill {
        /// The operand; the value has its axes and those of the constraints.
        value: ValueId,
        /// The number elsewhere; may be −∞.
        fill: f64,
        /// All of them must hold.
        keep: Vec<Constraint>,
    },
}

/// A statement.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Stmt {
    /// Defines a value.
    Let(ValueId, Op),
    /// A serial loop over a streamed axis.
    For(Loop),
    /// Writes a value's valid elements.
    Store(View, ValueId),
}

/// A serial loop over the tiles of a `Stream` axis. Several loops over one axis are several passes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Loop {
    /// The streamed axis.
    pub axis: AxisId,
    /// Where one of these fails everywhere, in a tile or in a part of one, nothing is added to what is carried or summed. Such tiles are not
    /// visited, unless the loop stores; then all are, and machines may leave such parts out.
    pub within: Vec<Constraint>,
    /// Values from one iteration to the next.
    pub carries: Vec<Carry>,
    /// What is done for each tile.
    pub body: Vec<Stmt>,
}

/// A value carried through a loop; all four have one type.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Carry {
    /// Before the first tile; defined outside.
    pub init: ValueId,
    /// Inside the body, before the tile.
    pub inside: ValueId,
    /// Inside the body, after the tile.
    pub next: ValueId,
    /// After the last tile.
    pub after: ValueId,
}

/// Type and name of a value.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ValueInfo {
    /// `F32` or `F64` (the program's), `I32`, `Bool`.
    pub dtype: DType,
    /// Axes of the tile, in no meaningful order, never `Grid`.
    pub axes: Vec<AxisId>,
    /// For people.
    pub name: Option<Name>,
}

/// A block program.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Program {
    /// Symbol name.
    pub name: Name,
    /// The iteration space. The grid has one dimension per `Grid` and `Block` axis, in this order, the last one fastest.
    pub axes: Vec<TileAxis>,
    /// Memory, inputs first.
    pub buffers: Vec<Buffer>,
    /// Values by [`ValueId`].
    pub values: Vec<ValueInfo>,
    /// What an instance does.
    pub body: Vec<Stmt>,
    /// Floats are computed in this type: `F32`, or `F64`.
    pub compute: DType,
    /// Operands of dots are rounded to this type by machines with matrix units (`interp` does as they do; `cpu` keeps
    /// the compute type, which is more exact).
    pub operands: DType,
    /// The axis whose elements lie side by side in vector lanes on machines that have them: a `Block` axis, or a `Full` one.
    pub lanes: Option<AxisId>,
}

impl Loop {
    /// Whether the body writes to memory, so that every tile has to be visited.
    pub fn stores(&self) -> bool {
        fn any(body: &[Stmt]) -> bool {
            body.iter().any(|s| match s {
                Stmt::Store(..) => true,
                Stmt::For(l) => any(&l.body),
                Stmt::Let(..) => false,
            })
        }
        any(&self.body)
    }
}

impl Program {
    /// The axis table entry.
    pub fn axis(&self, a: AxisId) -> &TileAxis {
        &self.axes[a.index()]
    }
    /// The value table entry.
    pub fn value(&self, v: ValueId) -> &ValueInfo {
        &self.values[v.index()]
    }
    /// Names of run-time dimensions, sorted: every name in a shape, an axis size, a view or a constraint.
    pub fn dims(&self) -> Vec<Name> {
        let mut names: Vec<Name> = vec![];
        let mut add = |d: &Dim| names.extend(d.symbols());
        self.buffers.iter().flat_map(|b| &b.shape).for_each(&mut add);
        self.axes.iter().for_each(|a| add(&a.size));
        fn walk(body: &[Stmt], add: &mut dyn FnMut(&Dim)) {
            let view = |v: &View, add: &mut dyn FnMut(&Dim)| {
                add(&v.offset);
                v.strides.iter().for_each(|(_, s)| add(s));
            };
            for s in body {
                match s {
                    Stmt::Let(_, Op::Load(v)) | Stmt::Store(v, _) => view(v, add),
                    Stmt::Let(_, Op::Size(d)) => add(d),
                    Stmt::Let(_, Op::Fill { keep, .. }) => keep.iter().for_each(|c| add(&c.constant)),
                    Stmt::Let(..) => {}
                    Stmt::For(l) => {
                        l.within.iter().for_each(|c| add(&c.constant));
                        walk(&l.body, add);
                    }
                }
            }
        }
        walk(&self.body, &mut add);
        names.sort();
        names.dedup();
        names
    }
    /// The same program with every size a number.
    ///
    /// # Errors
    /// The first size that has none, named by what it belongs to.
    pub fn bind(&self, b: &crate::dim::Bindings) -> Result<Program, crate::diagnostic::Error> {
        let mut p = self.clone();
        let name = &self.name;
        let fix = |d: &mut Dim, of: &dyn Fn() -> String| match d.eval(b) {
            Ok(n) => {
                *d = Dim::fixed(n);
                Ok(())
            }
            Err(e) => Err(crate::diagnostic::Error::new(format!("{name}: {}: {e}", of()))),
        };
        for x in &mut p.buffers {
            let name = x.name.clone();
            x.shape.iter_mut().try_for_each(|d| fix(d, &|| format!("buffer `{name}`")))?;
        }
        for x in &mut p.axes {
            let name = x.name.clone();
            fix(&mut x.size, &|| format!("axis `{name}`"))?;
        }
        type Fix<'a> = &'a dyn Fn(&mut Dim, &dyn Fn() -> String) -> Result<(), crate::diagnostic::Error>;
        fn walk(body: &mut [Stmt], fix: Fix) -> Result<(), crate::diagnostic::Error> {
            let view = |v: &mut View| {
                let of = || "a view".to_string();
                fix(&mut v.offset, &of)?;
                v.strides.iter_mut().try_for_each(|(_, s)| fix(s, &of))
            };
            let all = |c: &mut [Constraint]| c.iter_mut().try_for_each(|c| fix(&mut c.constant, &|| "a constraint".to_string()));
            for s in body {
                match s {
                    Stmt::Let(_, Op::Load(v)) | Stmt::Store(v, _) => view(v)?,
                    Stmt::Let(_, Op::Size(d)) => fix(d, &|| "size".to_string())?,
                    Stmt::Let(_, Op::Fill { keep, .. }) => all(keep)?,
                    Stmt::Let(..) => {}
                    Stmt::For(l) => {
                        all(&mut l.within)?;
                        walk(&mut l.body, fix)?;
                    }
                }
            }
            Ok(())
        }
        walk(&mut p.body, &fix)?;
        Ok(p)
    }
}
