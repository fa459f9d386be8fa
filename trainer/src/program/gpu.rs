//! A program compiled for GPUs: on a CUDA device, where parameters, results and what lies between them stay between runs, or in the PTX machine in software, which runs the
//! same kernels by the same plan without a device.

#[cfg(feature = "cuda")]
use super::code::Maker;
use super::kernels::{cores, each_on};
use super::{On, Options, Transform};
use codegen::GpuTarget;
use codegen::nvptx::{self, Compiled};
use ir::dim::Bindings;
use ir::graph::Function;
use ir::tensor::Tensor;
use ir::types::DType;
use passes::fuse;
#[cfg(feature = "cuda")]
use runtime::cache::Cache;
use runtime::plan::Plan;
use runtime::sim;
#[cfg(feature = "cuda")]
use runtime::cuda;
use std::cell::RefCell;
#[cfg(feature = "cuda")]
use std::collections::BTreeMap;
use std::rc::Rc;
#[cfg(feature = "cuda")]
use std::rc::Weak;

/// The longest axis that stands in registers whole: twice a head. Longer ones are walked, tokens of a text among them.
const WHOLE: i64 = 256;

/// How to fuse for a GPU, for parameters stored as `dtype`.
pub fn fused(dims: &Bindings, dtype: DType) -> fuse::Options {
    fuse::Options { fits: Some(nvptx::fits), behind: Some(nvptx::maxima_behind), full: WHOLE, ..fuse::Options::stored(dims, dtype) }
}
/// The same for a function that may say which of its parameters are wider.
pub fn options(f: &Function, dims: &Bindings, o: &Options) -> fuse::Options {
    super::wide(f, fused(dims, o.dtype), o)
}

/// A GPU, or the machine in software: whoever has one on the same thread has the same one.
#[derive(Clone)]
pub enum Device {
    /// The PTX machine.
    Sim,
    /// The first CUDA device.
    #[cfg(feature = "cuda")]
    Cuda(Rc<OnThread>),
}

/// The device of a thread, and the kernels that were loaded so far: networks that are the same but for their weights share them.
#[cfg(feature = "cuda")]
pub struct OnThread {
    gpu: Rc<cuda::Gpu>,
    maker: Maker,
    kernels: RefCell<BTreeMap<String, Rc<cuda::Kernel>>>,
}

#[cfg(feature = "cuda")]
impl OnThread {
    fn get() -> Result<Rc<OnThread>, String> {
        thread_local!(static KNOWN: RefCell<Weak<OnThread>> = const { RefCell::new(Weak::new()) });
        KNOWN.with(|k| {
            if let Some(d) = k.borrow().upgrade() {
                return Ok(d);
            }
            let gpu = Rc::new(cuda::Gpu::new(0).map_err(|e| format!("cuda: {e}"))?);
            let device = cuda::first()?;
            let target = GpuTarget::named(device.architecture()?).map_err(|e| e.to_string())?;
            let maker = Maker::new(target, device.runs_assembled(), Cache::from_env());
            let d = Rc::new(OnThread { gpu, maker, kernels: RefCell::default() });
            *k.borrow_mut() = Rc::downgrade(&d);
            Ok(d)
        })
    }
    /// The kernels of programs, compiled and loaded where that was not done before.
    fn load(&self, programs: &[ir::tile::Program], dims: &Bindings) -> Result<Vec<Rc<cuda::Kernel>>, String> {
        // A default schedule may depend on sizes.
        let sizes: Vec<String> = dims.iter().map(|(n, v)| format!("{n}={v}")).collect();
        let keys: Vec<String> = programs.iter().map(|p| runtime::cache::key(p, &sizes.join(","))).collect();
        let mut known = self.kernels.borrow_mut();
        let mut missing: BTreeMap<&String, &ir::tile::Program> = BTreeMap::new();
        for (k, p) in keys.iter().zip(programs).filter(|(k, _)| !known.contains_key(*k)) {
            missing.insert(k, p);
        }
        let list: Vec<ir::tile::Program> = missing.values().map(|p| (*p).clone()).collect();
        // The driver's linker would assemble on many threads as well, but makes of warpgroups' products code that runs at a third of the speed.
        for (k, (c, _)) in missing.keys().zip(self.maker.code(&list, dims)?) {
            let kernel = cuda::Kernel::load(&self.gpu, &c.code, &c.signature).map_err(|e| e.to_string())?;
            known.insert((*k).clone(), Rc::new(kernel));
        }
        keys.iter().map(|k| known.get(k).cloned().ok_or_else(|| "cuda: a kernel that was just loaded is gone".into())).collect()
    }
}

impl Device {
    /// That of a machine; none for those that have the host's memory.
    ///
    /// # Errors
    /// No driver, no device; a build without CUDA.
    pub fn of(on: On) -> Result<Option<Device>, String> {
        match on {
            On::Reference | On::Cpu => Ok(None),
            On::Sim => Ok(Some(Device::Sim)),
            #[cfg(feature = "cuda")]
            On::Cuda => OnThread::get().map(|d| Some(Device::Cuda(d))),
            #[cfg(not(feature = "cuda"))]
            On::Cuda => Err("this build knows no CUDA devices (feature `cuda`)".into()),
        }
    }
    /// Memory of so many bytes, all 0.
    ///
    /// # Errors
    /// There is not so much.
    pub fn zeros(&self, bytes: usize) -> Result<Memory, String> {
        match self {
            Device::Sim => Ok(Memory::Sim(Rc::new(RefCell::new(vec![0; bytes])))),
            #[cfg(feature = "cuda")]
            Device::Cuda(d) => cuda::Memory::filled(&d.gpu, bytes, 0).map(|m| Memory::Cuda(Rc::new(m))).map_err(|e| e.to_string()),
        }
    }
    /// The most bytes that a CUDA device had to give to this process at once so far; none in software.
    ///
    /// # Errors
    /// The driver's.
    pub fn most_allocated(&self) -> Result<Option<u64>, String> {
        match self {
            Device::Sim => Ok(None),
            #[cfg(feature = "cuda")]
            Device::Cuda(d) => d.gpu.most_allocated().map(Some).map_err(|e| e.to_string()),
        }
    }
    /// Bytes of a CUDA device's memory that are in use by all processes, contexts and code included; none in software.
    ///
    /// # Errors
    /// The driver's.
    pub fn in_use(&self) -> Result<Option<u64>, String> {
        match self {
            Device::Sim => Ok(None),
            #[cfg(feature = "cuda")]
            Device::Cuda(d) => d.gpu.free_and_total().map(|(free, all)| Some((all - free) as u64)).map_err(|e| e.to_string()),
        }
    }
}

/// Memory of a device.
#[derive(Clone)]
pub enum Memory {
    /// Of the machine in software.
    Sim(Rc<RefCell<Vec<u8>>>),
    /// Of a CUDA device.
    #[cfg(feature = "cuda")]
    Cuda(Rc<cuda::Memory>),
}

impl Memory {
    /// Its number of bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Memory::Sim(m) => m.borrow().len(),
            #[cfg(feature = "cuda")]
            Memory::Cuda(m) => m.len(),
        }
    }
    /// Writes bytes from byte `first` on.
    ///
    /// # Errors
    /// More than there are; the driver's.
    pub fn write(&self, first: usize, bytes: &[u8]) -> Result<(), String> {
        match self {
            Memory::Sim(m) => {
                let mut m = m.borrow_mut();
                let (all, end) = (m.len(), first + bytes.len());
                m.get_mut(first..end).ok_or_else(|| format!("sim: bytes {first}..{end} of {all}"))?.copy_from_slice(bytes);
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Memory::Cuda(m) => m.write_at(first, bytes).map_err(|e| e.to_string()),
        }
    }
    /// So many bytes from byte `first` on.
    ///
    /// # Errors
    /// More than there are; what a kernel did wrong before.
    pub fn read(&self, first: usize, bytes: usize) -> Result<Vec<u8>, String> {
        match self {
            Memory::Sim(m) => m.borrow().get(first..first + bytes).map(<[u8]>::to_vec).ok_or_else(|| format!("sim: {bytes} bytes from byte {first} of {}", m.borrow().len())),
            #[cfg(feature = "cuda")]
            Memory::Cuda(m) => m.read_at(first, bytes).map_err(|e| e.to_string()),
        }
    }
    /// Copies what another memory of the same machine and length holds.
    ///
    /// # Errors
    /// Another machine or length; the driver's.
    pub fn copy(&self, from: &Memory) -> Result<(), String> {
        match (self, from) {
            (Memory::Sim(to), Memory::Sim(from)) if to.borrow().len() == from.borrow().len() => {
                let bytes = from.borrow().clone();
                *to.borrow_mut() = bytes;
                Ok(())
            }
            #[cfg(feature = "cuda")]
            (Memory::Cuda(to), Memory::Cuda(from)) => to.copy(from).map_err(|e| e.to_string()),
            _ => Err(format!("a copy of {} bytes of another machine or length to {}", from.bytes(), self.bytes())),
        }
    }
}

/// A part of a device's memory.
#[derive(Clone)]
pub struct Place {
    /// Of which memory.
    pub memory: Memory,
    /// Its first byte.
    pub first: usize,
    /// How many.
    pub bytes: usize,
}

/// A plan on a device, which goes after what is on it.
pub(super) struct Gpu {
    kind: Kind,
    /// Which parameters and results have a place of somebody's.
    bound: [Vec<Option<Place>>; 2],
}

enum Kind {
    Sim(sim::Execution),
    #[cfg(feature = "cuda")]
    Cuda {
        execution: Box<cuda::Execution>,
        /// The version of each parameter's value that the device has: what was given to a run is no version.
        has: RefCell<Vec<u64>>,
        /// What was decided about kernels that are plain products.
        choices: Vec<cuda::Choice>,
        /// Goes last.
        _device: Rc<OnThread>,
    },
}

impl Gpu {
    pub fn new(f: &Function, dims: &Bindings, options: &Options) -> Result<Gpu, String> {
        let sequence = fuse::sequence(f, &self::options(f, dims, options)).map_err(|e| e.to_string())?;
        let plan = Plan::new(&sequence, dims).map_err(|e| e.to_string())?;
        let bound = [vec![None; plan.params.len()], vec![None; plan.results.len()]];
        let kind = match Device::of(options.on)? {
            #[cfg(feature = "cuda")]
            Some(Device::Cuda(device)) => {
                let has = RefCell::new(vec![0; plan.params.len()]);
                let kernels = device.load(&sequence.programs, dims)?;
                let choices = cuda::choose(&device.gpu, options.libraries, &sequence.programs, &kernels, dims, codegen::BUILD, device.maker.cache()).map_err(|e| e.to_string())?;
                note_missing(&choices);
                let execution = cuda::Execution::new(&device.gpu, plan, kernels).map_err(|e| e.to_string())?.with(&choices);
                Kind::Cuda { execution: Box::new(execution), has, choices, _device: device }
            }
            _ => {
                let target = GpuTarget::named("sm_90a").map_err(|e| e.to_string())?;
                let load = |k: Compiled| sim::Module::parse(&k.ptx).map(|m| (m, k.signature));
                let kernels = compile(&sequence.programs, &target, dims)?.into_iter().map(load).collect::<Result<Vec<_>, _>>().map_err(|e| format!("sim: {e}"))?;
                Kind::Sim(sim::Execution::new(plan, kernels).map_err(|e| e.to_string())?)
            }
        };
        Ok(Gpu { kind, bound })
    }
    pub fn plan(&self) -> &Plan {
        match &self.kind {
            Kind::Sim(e) => e.plan(),
            #[cfg(feature = "cuda")]
            Kind::Cuda { execution, .. } => execution.plan(),
        }
    }
    /// Reads parameter number `i` from there, or writes result number `i` to there.
    pub fn bind(&mut self, result: bool, i: usize, place: &Place) -> Result<(), String> {
        let plan = self.plan();
        let b = if result { plan.results.get(i) } else { plan.params.get(i) }.map(|b| &plan.buffers[*b]).ok_or_else(|| format!("the plan has no number {i}"))?;
        if b.bytes() != place.bytes || place.first + place.bytes > place.memory.bytes() {
            return Err(format!("`{}` is {} {:?}, {} bytes, but is to be at bytes {} and {} more of {}", b.name, b.dtype, b.shape, b.bytes(), place.first, place.bytes, place.memory.bytes()));
        }
        match (&mut self.kind, &place.memory) {
            (Kind::Sim(_), Memory::Sim(_)) => {}
            #[cfg(feature = "cuda")]
            (Kind::Cuda { execution, .. }, Memory::Cuda(m)) => {
                let place = cuda::Place::new(m, place.first, place.bytes).map_err(|e| e.to_string())?;
                if result { execution.bind_result(i, place) } else { execution.bind_param(i, place) }.map_err(|e| e.to_string())?;
            }
            #[cfg(feature = "cuda")]
            _ => return Err("memory of another machine".into()),
        }
        self.bound[usize::from(result)][i] = Some(place.clone());
        Ok(())
    }
    /// Parameter or result number `i` has no place of somebody's any more.
    pub fn free(&mut self, result: bool, i: usize) {
        self.bound[usize::from(result)].get_mut(i).into_iter().for_each(|p| *p = None);
        match &mut self.kind {
            Kind::Sim(_) => {}
            #[cfg(feature = "cuda")]
            Kind::Cuda { execution, has, .. } => {
                if result {
                    execution.free_result(i);
                } else {
                    execution.free_param(i);
                    has.get_mut().get_mut(i).into_iter().for_each(|v| *v = 0);
                }
            }
        }
    }
    /// How each kernel runs: by which of the two kinds of code, and what both took where they were timed.
    pub fn by(&self, kernel: usize) -> String {
        match &self.kind {
            Kind::Sim(_) => String::new(),
            #[cfg(feature = "cuda")]
            Kind::Cuda { choices, .. } => choices.iter().find(|c| c.kernel == kernel).map_or(String::new(), cuda::Choice::words),
        }
    }
    /// Seconds that each launch takes on a device, with what the last run was given.
    ///
    /// # Errors
    /// The driver's; in software nothing is timed.
    pub fn profile(&self) -> Result<Vec<f64>, String> {
        match &self.kind {
            Kind::Sim(_) => Err("the PTX machine in software is not timed".into()),
            #[cfg(feature = "cuda")]
            Kind::Cuda { execution, .. } => execution.profile().map_err(|e| e.to_string()),
        }
    }
    /// Whether parameter number `i` has a place of somebody's.
    pub fn is_bound(&self, i: usize) -> bool {
        self.bound[0].get(i).is_some_and(Option::is_some)
    }
    /// Runs on tensors that are given, each with the version of what is kept, 0 for a tensor of this run alone; none for a parameter that is bound. Results that are not bound.
    pub fn run(&self, inputs: &[Option<(&Tensor, u64)>]) -> Result<Vec<Option<Tensor>>, String> {
        let [params, results] = &self.bound;
        match &self.kind {
            Kind::Sim(e) => {
                let plan = e.plan();
                let read = |(i, place): (usize, &Option<Place>)| {
                    let b = &plan.buffers[plan.params[i]];
                    let Some(p) = place else { return Ok(None) };
                    Tensor::from_bytes(b.dtype, &b.shape, &p.memory.read(p.first, p.bytes)?).map(Some).map_err(|e| e.to_string())
                };
                let own = params.iter().enumerate().map(read).collect::<Result<Vec<_>, String>>()?;
                let nothing = |i: usize| format!("nothing provides parameter number {i}");
                let all = own.iter().zip(inputs).enumerate().map(|(i, (own, given))| own.as_ref().or(given.map(|g| g.0)).ok_or_else(|| nothing(i))).collect::<Result<Vec<_>, _>>()?;
                let out = e.run(&all).map_err(|e| e.to_string())?;
                let one = |(t, place): (Tensor, &Option<Place>)| match place {
                    Some(p) => p.memory.write(p.first, &t.to_bytes()).map(|()| None),
                    None => Ok(Some(t)),
                };
                out.into_iter().zip(results).map(one).collect()
            }
            #[cfg(feature = "cuda")]
            Kind::Cuda { execution, has, .. } => {
                let mut has = has.borrow_mut();
                for (i, given) in inputs.iter().enumerate().filter(|(i, _)| params[*i].is_none()) {
                    let (t, version) = given.ok_or_else(|| format!("nothing provides parameter number {i}"))?;
                    if version == 0 || has[i] != version {
                        execution.set(i, t).map_err(|e| e.to_string())?;
                        has[i] = version;
                    }
                }
                execution.run().map_err(|e| e.to_string())?;
                let one = |(i, place): (usize, &Option<Place>)| if place.is_some() { Ok(None) } else { execution.result(i).map(Some).map_err(|e| e.to_string()) };
                results.iter().enumerate().map(one).collect()
            }
        }
    }
}

/// Says once that products run by our kernels because a library is not there.
#[cfg(feature = "cuda")]
pub fn note_missing(choices: &[cuda::Choice]) {
    static SAID: std::sync::Once = std::sync::Once::new();
    if let Some(why) = choices.iter().find_map(|c| c.missing.as_ref()) {
        SAID.call_once(|| eprintln!("note: {why}; all products of matrices run by generated kernels"));
    }
}

/// What a function is on a GPU, without compiling it: its plan, and its block programs.
///
/// # Errors
/// Those of the transforms and of fusion, and a size without a number.
pub fn outline(f: &Function, transforms: &[Transform], dims: &Bindings, options: &Options) -> Result<(Plan, Vec<ir::tile::Program>), String> {
    let f = transforms.iter().try_fold(f.clone(), |f, t| t.apply_with(&f, options.checkpoint))?;
    let sequence = fuse::sequence(&f, &self::options(&f, dims, options)).map_err(|e| e.to_string())?;
    Ok((Plan::new(&sequence, dims).map_err(|e| e.to_string())?, sequence.programs))
}

/// PTX of every program, by default schedules, on all cores.
///
/// # Errors
/// The first program that has no form, and why.
pub fn compile(programs: &[ir::tile::Program], target: &GpuTarget, dims: &Bindings) -> Result<Vec<Compiled>, String> {
    each_on(cores(), programs, |p| nvptx::compile_at(p, target, dims, false).map_err(|e| e.to_string()))
}
