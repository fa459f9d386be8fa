//! A PTX machine in software: runs the text that LLVM's NVPTX backend emits, on any computer, and checks while it runs.
//!
//! It is exact where the PTX ISA is, states its choice where the ISA leaves one, makes everything asynchronous as late as the program permits, and
//! refuses, by name and line, what it does not have. What it models and what it does not is in `docs/sim.md`.
//!
//! ```
//! use runtime::sim::{Arg, Module, Options};
//! let ptx = "
//! .version 8.0
//! .target sm_80
//! .address_size 64
//! .visible .entry twice(.param .u64 x, .param .u64 y) {
//!     .reg .b32 %r<4>; .reg .b64 %rd<6>;
//!     ld.param.b64 %rd1, [x];
//!     ld.param.b64 %rd2, [y];
//!     mov.u32 %r1, %tid.x;
//!     mul.wide.u32 %rd3, %r1, 4;
//!     add.s64 %rd4, %rd1, %rd3;
//!     add.s64 %rd5, %rd2, %rd3;
//!     ld.global.b32 %r2, [%rd4];
//!     add.rn.f32 %r3, %r2, %r2;
//!     st.global.b32 [%rd5], %r3;
//!     ret;
//! }";
//! let module = Module::parse(ptx).unwrap();
//! let x: Vec<u8> = (0..8).flat_map(|i| (i as f32).to_le_bytes()).collect();
//! let mut y = vec![0; 32];
//! let report = module.launch("twice", [1, 1, 1], [8, 1, 1], 0, &mut [Arg::Input(&x), Arg::Output(&mut y)], &Options::default()).unwrap();
//! assert_eq!(y[12..16], 6f32.to_le_bytes());
//! assert_eq!(report.global.loaded, 32);
//! ```

// A fault ends a launch: there is one, and its size does not matter.
#![allow(clippy::result_large_err)]
// Lanes are numbers: they index values, bits of masks and rows at once.
#![allow(clippy::needless_range_loop)]

mod block;
mod count;
mod decode;
mod execution;
mod fault;
mod float;
mod kernel;
mod lanes;
mod matrix;
mod memory;
pub mod mutate;
mod op;
mod shared;
mod syntax;
mod tensor_map;
mod warp;

pub use count::{Bytes, Report};
pub use execution::Execution;
pub use fault::{Fault, FaultKind};
pub use matrix::Model;
pub use tensor_map::{Swizzle, TensorMap};

use block::{Block, Launch};
use count::Stats;
use decode::Kernel;
use ir::diagnostic::{Error, Span};
use memory::{Allocation, Global, allocation_base};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use syntax::{Init, Space, Variable};
use warp::Position;

/// The largest shared memory of a block on a chip of an architecture, in bytes.
fn shared_limit(sm: u32) -> u32 {
    match sm {
        80 | 87 => 163 << 10,
        86 | 89 | 120 => 99 << 10,
        90.. => 227 << 10,
        _ => 96 << 10,
    }
}

/// A parsed and decoded module.
pub struct Module {
    sm: u32,
    lines: Vec<String>,
    variables: Vec<Variable>,
    kernels: Vec<Kernel>,
}

/// A parameter of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamInfo {
    /// As in the text.
    pub name: String,
    /// Bytes.
    pub bytes: u32,
    /// Alignment in bytes.
    pub align: u32,
    /// Declared as a pointer (`.ptr`).
    pub pointer: bool,
}

/// What a kernel wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelInfo {
    /// The entry's name.
    pub name: String,
    /// In order.
    pub params: Vec<ParamInfo>,
    /// Bytes of static shared memory.
    pub shared: u32,
    /// Whether it declares dynamic shared memory.
    pub dynamic_shared: bool,
    /// The block that it requires (`.reqntid`).
    pub block: Option<[u32; 3]>,
    /// The largest block (`.maxntid`).
    pub max_block: Option<[u32; 3]>,
    /// Decoded instructions.
    pub instructions: usize,
}

/// An argument of a launch. Pointers to buffers are made by the launch.
pub enum Arg<'a> {
    /// A pointer to bytes that are only read.
    Input(&'a [u8]),
    /// A pointer to bytes whose old values must not be read.
    Output(&'a mut [u8]),
    /// A pointer to bytes that are read and written.
    InOut(&'a mut [u8]),
    /// A null pointer.
    Null,
    /// A number.
    U32(u32),
    /// A number.
    I32(i32),
    /// A number.
    U64(u64),
    /// A number.
    I64(i64),
    /// A number.
    F32(f32),
    /// A number.
    F64(f64),
    /// A tensor map over bytes that are only read.
    TensorInput(TensorMap, &'a [u8]),
    /// A tensor map over bytes that are only written.
    TensorOutput(TensorMap, &'a mut [u8]),
}

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tensor cores; none: those of the module's target.
    pub model: Option<Model>,
    /// Warp instructions of a block at most.
    pub budget: u64,
    /// Bytes that one block writes and another touches are an error.
    pub check_blocks: bool,
    /// Blocks side by side. Results are the same; kernels with global atomics run block by block in any case.
    pub parallel: bool,
    /// Multiprocessors, whose number says how many blocks a persistent grid has.
    pub multiprocessors: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { model: None, budget: 1 << 32, check_blocks: true, parallel: true, multiprocessors: 2 }
    }
}

impl Module {
    /// Parses and decodes PTX text.
    ///
    /// # Errors
    /// Text that is no PTX, or that has something which this machine does not: the name, and the line.
    pub fn parse(text: &str) -> Result<Module, Error> {
        let starts: Vec<usize> = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
        let explain = |r: syntax::Refused| {
            let line = r.line.max(1) as usize - 1;
            let start = starts.get(line).copied().unwrap_or(text.len());
            let end = text[start..].find('\n').map_or(text.len(), |i| start + i);
            Error::from(r).at(Span { start, end })
        };
        let tree = syntax::parse(text).map_err(explain)?;
        let digits: String = tree.target.chars().filter(char::is_ascii_digit).collect();
        let Ok(sm) = digits.parse::<u32>() else { return Err(Error::new(format!("the target `{}` is not of the form sm_90a", tree.target))) };
        let entries = tree.functions.iter().filter(|f| f.entry && f.defined);
        let kernels = entries.map(|f| decode::kernel(&tree, f)).collect::<Result<Vec<_>, _>>().map_err(explain)?;
        let variables = tree.variables.iter().filter(|v| matches!(v.space, Space::Global | Space::Const)).cloned().collect();
        Ok(Module { sm, lines: text.lines().map(str::to_string).collect(), variables, kernels })
    }

    /// The number in the target: 80 for `sm_80`.
    pub fn sm(&self) -> u32 {
        self.sm
    }

    /// The module's kernels.
    pub fn kernels(&self) -> Vec<KernelInfo> {
        let info = |k: &Kernel| KernelInfo {
            name: k.name.clone(),
            params: k.params.iter().map(|p| ParamInfo { name: p.name.clone(), bytes: p.bytes, align: p.align, pointer: p.pointer }).collect(),
            shared: k.static_shared,
            dynamic_shared: k.dynamic_name.is_some(),
            block: k.required,
            max_block: k.limit,
            instructions: k.code.len(),
        };
        self.kernels.iter().map(info).collect()
    }

    /// Runs a grid of blocks of threads with `dynamic_shared` bytes. Outputs are written only if nothing is wrong.
    ///
    /// # Errors
    /// A launch that does not fit the kernel, or the first thing that is wrong while it runs, in the order of blocks.
    pub fn launch(&self, kernel: &str, grid: [u32; 3], block: [u32; 3], dynamic_shared: u32, args: &mut [Arg], options: &Options) -> Result<Report, Fault> {
        let refuse = |message: String| Fault { kind: FaultKind::Launch, kernel: kernel.to_string(), line: 0, text: String::new(), block: [0; 3], thread: None, address: None, message };
        let Some(k) = self.kernels.iter().find(|k| k.name == kernel) else {
            let known: Vec<&str> = self.kernels.iter().map(|k| k.name.as_str()).collect();
            return Err(refuse(format!("there is no such kernel; the module has {}", known.join(", "))));
        };
        self.fits(k, grid, block, dynamic_shared, args).map_err(refuse)?;
        let make = || self.memory(k, args, options);
        let (global, params, maps, places) = make().map_err(refuse)?;
        let total = k.dynamic + dynamic_shared;
        let position = |i: u64| Position {
            block: [(i % grid[0] as u64) as u32, (i / grid[0] as u64 % grid[1] as u64) as u32, (i / grid[0] as u64 / grid[1] as u64) as u32],
            grid,
            threads: block,
            dynamic_shared,
            total_shared: total,
            linear: i as u32,
            cluster: k.cluster,
            rank: i as u32 % k.cluster,
        };
        let blocks: u64 = grid.iter().map(|n| *n as u64).product();
        let each = k.cluster as u64;
        let cluster = |i: u64| -> Vec<Position> { (i * each..(i + 1) * each).map(position).collect() };
        let model = options.model.unwrap_or(Model::of(self.sm));
        let run = |global: &Global, parallel: bool| -> Result<Stats, Fault> {
            let launch = Launch { kernel: k, lines: &self.lines, global, params: &params, maps: &maps, model, budget: options.budget };
            let mut total = Stats::new(k.code.len());
            if !parallel {
                for i in 0..blocks / each {
                    total.add(&Block::run(&launch, &cluster(i))?);
                }
                return Ok(total);
            }
            // Blocks behind one that failed need not run.
            let bad = AtomicU32::new(u32::MAX);
            let one = |i: u64| -> Option<Result<Stats, Fault>> {
                if i as u32 > bad.load(Ordering::Relaxed) {
                    return None;
                }
                let r = Block::run(&launch, &cluster(i));
                if r.is_err() {
                    bad.fetch_min(i as u32, Ordering::Relaxed);
                }
                Some(r)
            };
            let results: Vec<_> = (0..(blocks / each) as u32).into_par_iter().with_max_len(1).map(|i| one(i as u64)).collect();
            for r in results.into_iter().flatten() {
                total.add(&r?);
            }
            Ok(total)
        };
        let parallel = options.parallel && !k.global_atomics && blocks > 1;
        let (global, stats) = match run(&global, parallel) {
            Ok(s) => (global, s),
            // Which of two blocks is reported depends on which came first: ask again, in order.
            Err(f) if parallel && f.kind == FaultKind::Race => {
                let (global, ..) = make().map_err(refuse)?;
                let s = run(&global, false)?;
                (global, s)
            }
            Err(f) => return Err(f),
        };
        let mut report = self.report(k, &stats);
        for (a, p) in args.iter_mut().zip(&places) {
            let Some(i) = *p else { continue };
            let allocation = &global.allocations[i];
            match a {
                Arg::Output(b) | Arg::TensorOutput(_, b) => {
                    report.unwritten.insert(allocation.name.clone(), allocation.unwritten());
                    allocation.contents(b);
                }
                Arg::InOut(b) => allocation.contents(b),
                _ => {}
            }
        }
        Ok(report)
    }

    fn fits(&self, k: &Kernel, grid: [u32; 3], block: [u32; 3], dynamic_shared: u32, args: &[Arg]) -> Result<(), String> {
        let threads: u64 = block.iter().map(|n| *n as u64).product();
        let blocks = grid.iter().try_fold(1u64, |a, n| a.checked_mul(*n as u64)).unwrap_or(u64::MAX);
        if threads == 0 || threads > 1024 || block[2] > 64 {
            return Err(format!("a block of {block:?} threads: there are 1 to 1024, at most 64 in z"));
        }
        if blocks == 0 || blocks >= u32::MAX as u64 - 2 || grid[1] > 65535 || grid[2] > 65535 {
            return Err(format!("a grid of {grid:?} blocks: none may be 0, y and z are below 65536, and this machine takes less than 2^32 of them"));
        }
        if !grid[0].is_multiple_of(k.cluster) || (k.cluster > 1 && !threads.is_multiple_of(128)) {
            return Err(format!("a grid of {grid:?} blocks of {threads} threads: clusters of {} blocks along x take a multiple of so many, of whole warpgroups", k.cluster));
        }
        if let Some(r) = k.required
            && r != block
        {
            return Err(format!("the kernel requires blocks of {r:?} threads, but the launch has {block:?}"));
        }
        if let Some(m) = k.limit
            && threads > m.iter().map(|n| *n as u64).product()
        {
            return Err(format!("the kernel is for at most {m:?} threads, but the launch has {block:?}"));
        }
        let (shared, limit) = (k.static_shared as u64 + dynamic_shared as u64, shared_limit(self.sm) as u64);
        if shared > limit {
            return Err(format!("{} bytes of static and {dynamic_shared} of dynamic shared memory; sm_{} has {limit}", k.static_shared, self.sm));
        }
        if args.len() != k.params.len() {
            return Err(format!("the kernel has {} parameters, but the launch has {} arguments", k.params.len(), args.len()));
        }
        for (p, a) in k.params.iter().zip(args) {
            let bytes = match a {
                Arg::U32(_) | Arg::I32(_) | Arg::F32(_) => 4,
                Arg::TensorInput(..) | Arg::TensorOutput(..) => 128,
                _ => 8,
            };
            if bytes != p.bytes {
                return Err(format!("the parameter `{}` has {} bytes, but the argument {bytes}", p.name, p.bytes));
            }
        }
        Ok(())
    }

    /// Memory for a launch: allocations, parameters, tensor maps, and which allocation an argument is.
    #[allow(clippy::type_complexity)]
    fn memory(&self, k: &Kernel, args: &[Arg], options: &Options) -> Result<(Global, Vec<u8>, BTreeMap<u32, (TensorMap, usize)>, Vec<Option<usize>>), String> {
        let mut allocations = vec![];
        for v in &self.variables {
            let mut bytes = vec![];
            for i in &v.init {
                match i {
                    Init::Bytes(b) => bytes.extend(b),
                    Init::Address(name, offset) => {
                        let Some(at) = self.variables.iter().position(|w| w.name == *name) else { return Err(format!("`{}` holds the address of `{name}`, which is not declared", v.name)) };
                        bytes.extend((allocation_base(at) as i64 + offset).to_le_bytes());
                    }
                }
            }
            // What has no value starts as zero.
            bytes.resize(v.bytes as usize, 0);
            allocations.push(Allocation::new(&v.name, v.bytes, Some(&bytes), v.space == Space::Global));
        }
        let mut params = vec![0xcc; k.param_bytes as usize];
        let (mut maps, mut places) = (BTreeMap::new(), vec![]);
        for ((p, offset), a) in k.params.iter().zip(&k.offsets).zip(args) {
            let base = allocation_base(allocations.len()).to_le_bytes();
            let mut place = Some(allocations.len());
            let mut map = |m: &TensorMap, bytes: &[u8]| -> Result<(), String> {
                m.check(bytes.len() as u64).map_err(|e| format!("`{}`: {e}", p.name))?;
                maps.insert(*offset, (m.clone(), allocations.len()));
                Ok(())
            };
            let value: Vec<u8> = match a {
                Arg::Input(b) => {
                    allocations.push(Allocation::new(&p.name, b.len() as u64, Some(b), false));
                    base.to_vec()
                }
                Arg::Output(b) => {
                    allocations.push(Allocation::new(&p.name, b.len() as u64, None, true));
                    base.to_vec()
                }
                Arg::InOut(b) => {
                    allocations.push(Allocation::new(&p.name, b.len() as u64, Some(b), true));
                    base.to_vec()
                }
                Arg::TensorInput(m, b) => {
                    map(m, b)?;
                    allocations.push(Allocation::new(&p.name, b.len() as u64, Some(b), false));
                    vec![0xcc; 128]
                }
                Arg::TensorOutput(m, b) => {
                    map(m, b)?;
                    allocations.push(Allocation::new(&p.name, b.len() as u64, None, true));
                    vec![0xcc; 128]
                }
                other => {
                    place = None;
                    match other {
                        Arg::U32(v) => v.to_le_bytes().to_vec(),
                        Arg::I32(v) => v.to_le_bytes().to_vec(),
                        Arg::U64(v) => v.to_le_bytes().to_vec(),
                        Arg::I64(v) => v.to_le_bytes().to_vec(),
                        Arg::F32(v) => v.to_le_bytes().to_vec(),
                        Arg::F64(v) => v.to_le_bytes().to_vec(),
                        _ => vec![0; 8],
                    }
                }
            };
            let at = *offset as usize;
            params[at..at + value.len()].copy_from_slice(&value);
            places.push(place);
        }
        Ok((Global { allocations, check_blocks: options.check_blocks }, params, maps, places))
    }

    fn report(&self, k: &Kernel, s: &Stats) -> Report {
        let mut r = Report {
            warp_instructions: s.issues.iter().sum(),
            thread_instructions: s.lanes.iter().sum(),
            global: s.bytes[0],
            shared: s.bytes[1],
            local: s.bytes[2],
            shared_wavefronts: s.wavefronts,
            bank_conflicts: s.conflicts,
            global_requests: s.requests,
            global_sectors: s.sectors,
            global_sectors_ideal: s.sectors_ideal,
            matrix_products: s.products,
            ..Report::default()
        };
        for (i, n) in k.code.iter().zip(&s.issues).filter(|(_, n)| **n > 0) {
            *r.by_class.entry(i.class.name()).or_default() += n;
            *r.by_opcode.entry(k.opcodes[i.opcode as usize].clone()).or_default() += n;
            *r.by_line.entry(i.line).or_default() += n;
        }
        r
    }
}
