//! What training runs: a function, its derivatives, and the machine that executes them, driven by names.
//!
//! A [`Program`] is derived, compiled and planned once. Parameters that stay (weights) are kept by [`Program::set`], converted to what the
//! kernels read; what changes from run to run (latents, times, tangents, cotangents) is given to [`Program::run`].

#[cfg(feature = "jit")]
pub mod code;
#[cfg(feature = "jit")]
mod cpu;
#[cfg(feature = "jit")]
pub mod flat;
#[cfg(feature = "jit")]
pub mod gpu;
#[cfg(feature = "jit")]
pub mod kernels;
#[cfg(feature = "jit")]
pub mod profile;

use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::reference::evaluate;
use ir::tensor::Tensor;
use ir::types::{DType, Type};
pub use passes::ad::{Checkpoint, Transform};
use runtime::libraries::Libraries;
use runtime::plan::Plan;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

/// The machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum On {
    /// The f64 evaluator: the meaning of a program.
    Reference,
    /// Compiled for this CPU.
    #[default]
    Cpu,
    /// Compiled for a GPU, and run by the PTX machine in software: slow, and checked at every access.
    Sim,
    /// Compiled for the first CUDA device.
    Cuda,
}

impl On {
    /// Names, as configurations and the command line have them.
    pub const NAMES: [&str; 4] = ["reference", "cpu", "sim", "cuda"];

    /// The machine of a name.
    pub fn named(name: &str) -> Option<On> {
        [On::Reference, On::Cpu, On::Sim, On::Cuda].into_iter().zip(On::NAMES).find(|(_, n)| *n == name).map(|(on, _)| on)
    }
}

/// How a program is compiled and run.
#[derive(Clone, PartialEq, Debug)]
pub struct Options {
    /// The machine.
    pub on: On,
    /// What float parameters are stored in; `F64` is computed in f64, all else in f32.
    pub dtype: DType,
    /// What reverse mode keeps of a call.
    pub checkpoint: Checkpoint,
    /// Parameters and results that are stored in another type than that, by name.
    pub stored: BTreeMap<Name, DType>,
    /// Whether a library's routines may take the place of generated kernels on a CUDA device.
    pub libraries: Libraries,
    /// Threads; `None` for what `PUSHFORWARD_THREADS` says, else all cores.
    pub threads: Option<usize>,
}

impl Options {
    /// What the host computes in beside such programs: f64, or f32.
    pub fn exchanged(&self) -> DType {
        if self.dtype == DType::F64 { DType::F64 } else { DType::F32 }
    }
}

impl Default for Options {
    fn default() -> Options {
        Options { on: On::default(), dtype: DType::F32, checkpoint: Checkpoint::default(), stored: BTreeMap::new(), libraries: Libraries::Never, threads: None }
    }
}

/// A function that says which of its parameters are narrow means that the others are not: times, biases, modulation tables.
#[cfg(feature = "jit")]
fn wide(f: &Function, mut fused: passes::fuse::Options, o: &Options) -> passes::fuse::Options {
    let dtype = o.dtype;
    fused.stored.extend(o.stored.clone());
    let float = |p: &ir::graph::Port| Some(f.ty(p.var).dtype).filter(|d| d.is_float());
    if dtype.bytes() >= 4 || !f.params.iter().any(|p| float(p) == Some(dtype)) {
        return fused;
    }
    for p in f.params.iter().filter(|p| float(p).is_some_and(|d| d.bytes() >= 4)) {
        fused.stored.entry(p.name.clone()).or_insert(DType::F32);
    }
    fused
}

/// A parameter or a result, as callers see it.
#[derive(Clone, PartialEq, Debug)]
pub struct Field {
    /// Its name.
    pub name: Name,
    /// Its type.
    pub ty: Type,
    /// Its sizes.
    pub shape: Vec<usize>,
}

/// A derived function that is ready to run.
pub struct Program {
    f: Function,
    dims: Bindings,
    params: Vec<Field>,
    results: Vec<Field>,
    /// Each with a number that no other value has had: what a device has of it.
    kept: BTreeMap<Name, (Tensor, u64)>,
    versions: u64,
    machine: Machine,
}

enum Machine {
    Reference(DType),
    #[cfg(feature = "jit")]
    Cpu(Box<cpu::Cpu>),
    #[cfg(feature = "jit")]
    Gpu(Box<gpu::Gpu>),
}

impl Program {
    /// `f` under `transforms`, in that order, for sizes `dims`.
    ///
    /// # Errors
    /// Those of the transforms and of the compiler, and a size without a number.
    pub fn new(f: &Function, transforms: &[Transform], dims: &Bindings, options: &Options) -> Result<Program, String> {
        let mut f = f.clone();
        for t in transforms {
            f = t.apply_with(&f, options.checkpoint)?;
        }
        let field = |p: &ir::graph::Port| {
            let ty = f.ty(p.var).clone();
            let shape = ty.sizes(dims).map_err(|e| format!("`{}` of `{}`, {ty}: {e}", p.name, f.name))?;
            Ok(Field { name: p.name.clone(), ty, shape })
        };
        let params = f.params.iter().map(field).collect::<Result<Vec<_>, String>>()?;
        let results = f.results.iter().map(field).collect::<Result<Vec<_>, String>>()?;
        let machine = match options.on {
            On::Reference => Machine::Reference(options.dtype),
            #[cfg(feature = "jit")]
            On::Cpu => Machine::Cpu(Box::new(cpu::Cpu::new(&f, dims, options)?)),
            #[cfg(feature = "jit")]
            On::Sim | On::Cuda => Machine::Gpu(Box::new(gpu::Gpu::new(&f, dims, options)?)),
            #[cfg(not(feature = "jit"))]
            On::Cpu | On::Sim | On::Cuda => return Err("this build has no compiler (feature `jit`)".into()),
        };
        Ok(Program { f, dims: dims.clone(), params, results, kept: BTreeMap::new(), versions: 0, machine })
    }
    /// The function that runs, with all its derivatives.
    pub fn function(&self) -> &Function {
        &self.f
    }
    /// Parameters, those of the transforms included.
    pub fn params(&self) -> &[Field] {
        &self.params
    }
    /// Results.
    pub fn results(&self) -> &[Field] {
        &self.results
    }
    /// Kernel launches in a run; 0 on the reference evaluator.
    pub fn launches(&self) -> usize {
        self.plan().map_or(0, |p| p.launches.len())
    }
    /// Distinct kernels; 0 on the reference evaluator.
    pub fn kernels(&self) -> usize {
        self.plan().map_or(0, |p| p.kernels.len())
    }
    /// Bytes of parameters, results and what lies between them, known before anything runs; 0 on the reference evaluator, which does not say.
    pub fn peak_bytes(&self) -> usize {
        self.plan().map_or(0, Plan::peak_bytes)
    }
    /// Time in kernel launches so far, of all that [`Program::run`] takes; none where launches are not timed: the reference evaluator, GPUs.
    pub fn in_launches(&self) -> Duration {
        match &self.machine {
            Machine::Reference(_) => Duration::ZERO,
            #[cfg(feature = "jit")]
            Machine::Cpu(c) => c.in_launches(),
            #[cfg(feature = "jit")]
            Machine::Gpu(_) => Duration::ZERO,
        }
    }

    /// The plan: launches, and where everything lies; `None` on the reference evaluator.
    pub fn plan(&self) -> Option<&Plan> {
        match &self.machine {
            Machine::Reference(_) => None,
            #[cfg(feature = "jit")]
            Machine::Cpu(c) => Some(c.plan()),
            #[cfg(feature = "jit")]
            Machine::Gpu(g) => Some(g.plan()),
        }
    }

    /// Keeps `value` as the parameter `name`, for all runs until it is set again.
    ///
    /// # Errors
    /// A name that is no parameter; a shape that is not the parameter's: both sides.
    pub fn set(&mut self, name: &str, value: &Tensor) -> Result<(), String> {
        let t = self.fit(name, value)?.into_owned();
        self.keep(name, t);
        Ok(())
    }
    /// [`Program::set`] without a copy, where the tensor has the type that is read already.
    ///
    /// # Errors
    /// Those of [`Program::set`].
    pub fn give(&mut self, name: &str, value: Tensor) -> Result<(), String> {
        let t = match self.fit(name, &value)? {
            Cow::Borrowed(_) => None,
            Cow::Owned(t) => Some(t),
        };
        self.keep(name, t.unwrap_or(value));
        Ok(())
    }
    fn keep(&mut self, name: &str, value: Tensor) {
        self.versions += 1;
        self.kept.insert(name.into(), (value, self.versions));
    }
    /// What is kept as the parameter `name`, as the machine reads it.
    pub fn kept(&self, name: &str) -> Option<&Tensor> {
        self.kept.get(name).map(|k| &k.0)
    }
    /// The type in which a compiled program reads a parameter.
    #[cfg(feature = "jit")]
    fn stored(&self, name: &str) -> Option<DType> {
        let p = self.plan()?;
        p.params.iter().map(|b| &p.buffers[*b]).find(|b| *b.name == *name).map(|b| b.dtype)
    }
    /// `value` as the machine reads parameter `name`.
    fn fit<'a>(&self, name: &str, value: &'a Tensor) -> Result<Cow<'a, Tensor>, String> {
        let p = self.params.iter().find(|p| *p.name == *name).ok_or_else(|| {
            let names: Vec<&str> = self.params.iter().map(|p| &*p.name).take(16).collect();
            format!("`{}` has no parameter `{name}`; it has {}{}", self.f.name, names.join(", "), if self.params.len() > 16 { ", …" } else { "" })
        })?;
        if value.shape() != p.shape {
            return Err(format!("parameter `{name}` of `{}` is {} of shape {:?}, but the tensor has shape {:?}", self.f.name, p.ty, p.shape, value.shape()));
        }
        if value.dtype().is_float() != p.ty.dtype.is_float() {
            return Err(format!("parameter `{name}` of `{}` is {}, but the tensor is {}", self.f.name, p.ty, value.dtype()));
        }
        let as_type = |d: DType| if value.dtype() == d { Cow::Borrowed(value) } else { Cow::Owned(value.convert(d)) };
        Ok(match &self.machine {
            Machine::Reference(d) if p.ty.dtype.is_float() && *d != DType::F64 => Cow::Owned(value.convert(*d).convert(DType::F64)),
            Machine::Reference(_) => as_type(if p.ty.dtype.is_float() { DType::F64 } else { p.ty.dtype }),
            #[cfg(feature = "jit")]
            _ => as_type(self.stored(name).unwrap_or(p.ty.dtype)),
        })
    }

    /// Every result, by name. `given` stands before what is kept.
    ///
    /// # Errors
    /// A parameter that is neither given nor kept; a tensor that does not fit; those of the machine.
    pub fn run(&self, given: &[(&str, &Tensor)]) -> Result<BTreeMap<Name, Tensor>, String> {
        let own = self.own(given)?;
        #[cfg(feature = "jit")]
        if let Machine::Gpu(g) = &self.machine {
            let one = |(i, p)| if g.is_bound(i) { Ok(None) } else { self.input(&own, p).map(Some) };
            let inputs = self.params.iter().enumerate().map(one).collect::<Result<Vec<_>, String>>()?;
            let names = self.results.iter().map(|r| r.name.clone());
            return Ok(names.zip(g.run(&inputs)?).filter_map(|(n, t)| Some((n, t?))).collect());
        }
        let inputs = self.inputs(&own)?;
        let out = match &self.machine {
            Machine::Reference(_) => {
                let inputs: Vec<Tensor> = inputs.into_iter().cloned().collect();
                evaluate(&self.f, &inputs, &self.dims).map_err(|e| e.to_string())?
            }
            #[cfg(feature = "jit")]
            Machine::Cpu(c) => c.run(&inputs)?,
            #[cfg(feature = "jit")]
            Machine::Gpu(_) => vec![],
        };
        Ok(self.results.iter().map(|r| r.name.clone()).zip(out).collect())
    }
    /// Reads parameter `name` from a part of the device's memory from now on, whatever is there when it runs: nothing is given or kept for it.
    ///
    /// # Errors
    /// A name that is no parameter, a part that has not its bytes, a machine with the host's memory.
    #[cfg(feature = "jit")]
    pub fn bind_param(&mut self, name: &str, place: &gpu::Place) -> Result<(), String> {
        self.bind(name, place, false)
    }
    /// Writes result `name` to a part of the device's memory from now on, instead of giving it back.
    ///
    /// # Errors
    /// As [`Program::bind_param`].
    #[cfg(feature = "jit")]
    pub fn bind_result(&mut self, name: &str, place: &gpu::Place) -> Result<(), String> {
        self.bind(name, place, true)
    }
    #[cfg(feature = "jit")]
    fn bind(&mut self, name: &str, place: &gpu::Place, result: bool) -> Result<(), String> {
        let i = if result { &self.results } else { &self.params }.iter().position(|p| *p.name == *name);
        let i = i.ok_or_else(|| format!("`{}` has no {} `{name}`", self.f.name, if result { "result" } else { "parameter" }))?;
        match &mut self.machine {
            Machine::Gpu(g) => g.bind(result, i, place),
            _ => Err(format!("`{name}`: this machine has the host's memory, nothing is bound")),
        }
    }
    /// Lets go of the memory that parameters and results of these names are bound to.
    #[cfg(feature = "jit")]
    pub fn unbind(&mut self, names: &[&str]) {
        let Machine::Gpu(g) = &mut self.machine else { return };
        for (result, list) in [(false, &self.params), (true, &self.results)] {
            list.iter().enumerate().filter(|(_, p)| names.contains(&&*p.name)).for_each(|(i, _)| g.free(result, i));
        }
    }
    /// On a CUDA device, how kernel number `kernel` of the plan runs, where a library has a routine for it; else nothing.
    #[cfg(feature = "jit")]
    fn by(&self, kernel: usize) -> String {
        if let Machine::Gpu(g) = &self.machine { g.by(kernel) } else { String::new() }
    }
    /// Each kernel of the plan that a library has a routine for, and how it runs on the device.
    #[cfg(feature = "jit")]
    pub fn products(&self) -> Vec<(String, String)> {
        let names = self.plan().map_or(&[][..], |p| &p.kernels);
        names.iter().enumerate().map(|(i, n)| (n.to_string(), self.by(i))).filter(|(_, by)| !by.is_empty()).collect()
    }
    /// On a CUDA device, with what the last run was given: each kernel with how it runs, how often it is launched, and the seconds of all its launches; the slowest first.
    ///
    /// # Errors
    /// The driver's; another machine.
    #[cfg(feature = "jit")]
    pub fn device_profile(&self) -> Result<Vec<(String, usize, f64)>, String> {
        let Machine::Gpu(g) = &self.machine else { return Err("a device is timed, and this machine is none".into()) };
        let (plan, seconds) = (g.plan(), g.profile()?);
        let mut rows: Vec<(String, usize, f64)> = plan.kernels.iter().enumerate().map(|(i, n)| (format!("{n}{}", Some(self.by(i)).filter(|b| !b.is_empty()).map_or(String::new(), |b| format!(" ({b})"))), 0, 0.0)).collect();
        for (l, s) in plan.launches.iter().zip(seconds) {
            let row = &mut rows[l.kernel];
            (row.1, row.2) = (row.1 + 1, row.2 + s);
        }
        rows.sort_by(|a, b| b.2.total_cmp(&a.2));
        Ok(rows)
    }
    /// The type in which a parameter, or a result, is in memory; none on the reference evaluator.
    #[cfg(feature = "jit")]
    pub fn in_memory(&self, name: &str) -> Option<DType> {
        let p = self.plan()?;
        p.params.iter().chain(&p.results).map(|b| &p.buffers[*b]).find(|b| *b.name == *name).map(|b| b.dtype)
    }
    /// Whether `result` may lie where `param` lies, as [`Plan::may_replace`] says.
    pub fn may_replace(&self, param: &str, result: &str) -> bool {
        let at = |list: &[Field], n: &str| list.iter().position(|p| *p.name == *n);
        match (self.plan(), at(&self.params, param), at(&self.results, result)) {
            (Some(plan), Some(p), Some(r)) => plan.may_replace(p, r),
            _ => false,
        }
    }
    fn own<'a>(&self, given: &[(&str, &'a Tensor)]) -> Result<BTreeMap<Name, Cow<'a, Tensor>>, String> {
        given.iter().map(|(n, t)| Ok((Name::from(*n), self.fit(n, t)?))).collect()
    }
    /// The tensor of a parameter, with the version of what is kept: 0 for what is given to this run alone.
    fn input<'a>(&'a self, own: &'a BTreeMap<Name, Cow<Tensor>>, p: &Field) -> Result<(&'a Tensor, u64), String> {
        let kept = |n: &Name| self.kept.get(n).map(|(t, version)| (t, *version));
        own.get(&p.name).map(|t| (&**t, 0)).or_else(|| kept(&p.name)).ok_or_else(|| format!("`{}`: nothing provides parameter `{}` ({})", self.f.name, p.name, p.ty))
    }
    fn inputs<'a>(&'a self, own: &'a BTreeMap<Name, Cow<Tensor>>) -> Result<Vec<&'a Tensor>, String> {
        self.params.iter().map(|p| self.input(own, p).map(|i| i.0)).collect()
    }
    /// Runs as [`Program::run`] does, so often, and says where the time goes.
    ///
    /// # Errors
    /// Those of [`Program::run`]; another machine than the CPU.
    #[cfg(feature = "jit")]
    pub fn profile(&self, given: &[(&str, &Tensor)], runs: u32) -> Result<profile::Profile, String> {
        let Machine::Cpu(c) = &self.machine else { return Err("a profile is of launches, which the reference evaluator has not; run it on the CPU".into()) };
        let own = self.own(given)?;
        let inputs = self.inputs(&own)?;
        let times = (0..=runs).map(|_| c.profile(&inputs)).collect::<Result<Vec<_>, _>>()?;
        // The first run touches memory for the first time.
        profile::Profile::new(c.plan(), c.programs(), &times[1..], c.pool())
    }
}
