//! A plan on a device: parameters and results stay there between runs, in memory that several plans may share, and all launches are one graph, so that a run costs one call
//! however many kernels it has.

use super::stream::Part;
use super::{Choice, Gpu, Kernel, Memory, Routine};
use crate::plan::{Home, Plan};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use ir::artifact::GpuSignature;
use ir::diagnostic::Error;
use ir::tensor::Tensor;
use std::cell::RefCell;
use std::rc::Rc;

fn failed(what: &str) -> impl Fn(DriverError) -> Error + '_ {
    move |e| Error::new(format!("cuda: {what}: {e}"))
}

/// A plan that is ready to run.
pub struct Execution {
    plan: Plan,
    kernels: Vec<Rc<Kernel>>,
    /// What runs in a kernel's place.
    routines: Vec<Option<Rc<Routine>>>,
    /// Where parameters and results are: its own memory from the first time on that it is needed, or what they were bound to.
    params: RefCell<Vec<Option<Place>>>,
    results: RefCell<Vec<Option<Place>>>,
    /// The launches as they were recorded, and the generation of the work space that they name.
    graph: RefCell<Option<(u64, Graph)>>,
    gpu: Rc<Gpu>,
}

/// A part of memory, which lives at least as long.
#[derive(Clone, Debug)]
pub struct Place {
    memory: Rc<Memory>,
    first: usize,
    bytes: usize,
}

impl Place {
    /// So many bytes from byte `first` on.
    ///
    /// # Errors
    /// More than there are; a first byte that kernels cannot load vectors from.
    pub fn new(memory: &Rc<Memory>, first: usize, bytes: usize) -> Result<Place, Error> {
        if first % 16 != 0 || first.checked_add(bytes).is_none_or(|end| end > memory.len()) {
            return Err(Error::new(format!("cuda: {bytes} bytes from byte {first} of {} bytes of memory; the first must be a multiple of 16", memory.len())));
        }
        Ok(Place { memory: memory.clone(), first, bytes })
    }
}

/// A graph of launches, and the stream it runs on.
struct Graph {
    exec: sys::CUgraphExec,
    stream: Stream,
}

/// A stream that waits for the default stream, and the default stream for it.
struct Stream(sys::CUstream);

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created in `Execution::record`.
        let _ = unsafe { result::stream::destroy(self.0) };
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: instantiated in `Execution::record`; the stream goes afterwards.
        let _ = unsafe { result::graph::exec_destroy(self.exec) };
    }
}

impl Execution {
    /// A plan, and its kernels in its order. Memory is allocated when it is first needed, and what lies between parameters and results is in the device's work space,
    /// which all plans have in turn.
    ///
    /// # Errors
    /// Kernels that are not the plan's.
    pub fn new(gpu: &Rc<Gpu>, plan: Plan, kernels: Vec<Rc<Kernel>>) -> Result<Execution, Error> {
        if kernels.len() != plan.kernels.len() {
            return Err(Error::new(format!("the plan has {} kernels, but {} given", plan.kernels.len(), kernels.len())));
        }
        let signatures: Vec<&GpuSignature> = kernels.iter().map(|k| k.signature()).collect();
        plan.fits(&signatures)?;
        let (params, results) = (RefCell::new(vec![None; plan.params.len()]), RefCell::new(vec![None; plan.results.len()]));
        let routines = vec![None; kernels.len()];
        Ok(Execution { plan, kernels, routines, params, results, graph: RefCell::new(None), gpu: gpu.clone() })
    }
    /// Runs a library's routines in the place of kernels, where that was chosen.
    pub fn with(mut self, choices: &[Choice]) -> Execution {
        choices.iter().for_each(|c| self.routines[c.kernel] = c.routine.clone());
        *self.graph.get_mut() = None;
        self
    }
    /// Whether a library's routine runs in the place of kernel number `i`.
    pub fn by_library(&self, i: usize) -> bool {
        self.routines.get(i).is_some_and(Option::is_some)
    }
    /// Reads parameter number `i` from a part of memory that others may write between runs.
    ///
    /// # Errors
    /// There is no such parameter; a part that has not its bytes.
    pub fn bind_param(&mut self, i: usize, place: Place) -> Result<(), Error> {
        bind(&self.plan, &self.plan.params, self.params.get_mut(), i, place)?;
        *self.graph.get_mut() = None;
        Ok(())
    }
    /// Writes result number `i` to a part of memory. It may be the one that a parameter is read from, where [`Plan::may_replace`] says so.
    ///
    /// # Errors
    /// As [`Execution::bind_param`].
    pub fn bind_result(&mut self, i: usize, place: Place) -> Result<(), Error> {
        bind(&self.plan, &self.plan.results, self.results.get_mut(), i, place)?;
        *self.graph.get_mut() = None;
        Ok(())
    }
    /// Memory for what has none yet.
    fn allocate(&self) -> Result<(), Error> {
        for (homes, places) in [(&self.plan.params, &self.params), (&self.plan.results, &self.results)] {
            for (b, place) in homes.iter().zip(places.borrow_mut().iter_mut()) {
                if place.is_none() {
                    *place = Some(self.own(*b)?);
                }
            }
        }
        Ok(())
    }
    fn own(&self, b: usize) -> Result<Place, Error> {
        let bytes = self.plan.buffers[b].bytes();
        Ok(Place { memory: Rc::new(Memory::filled(&self.gpu, bytes, 0xff)?), first: 0, bytes })
    }
    /// Parameter number `i` has memory of its own again, the next time that it is needed: whoever owns what it was bound to may let go of it.
    pub fn free_param(&mut self, i: usize) {
        *self.graph.get_mut() = None;
        self.params.get_mut().get_mut(i).into_iter().for_each(|p| *p = None);
    }
    /// The same for a result.
    pub fn free_result(&mut self, i: usize) {
        *self.graph.get_mut() = None;
        self.results.get_mut().get_mut(i).into_iter().for_each(|p| *p = None);
    }
    /// Launch number `i` of the plan, on a stream.
    fn launch(&self, i: usize, arena: Part, stream: sys::CUstream) -> Result<(), Error> {
        let (plan, params, results) = (&self.plan, self.params.borrow(), self.results.borrow());
        let l = &plan.launches[i];
        let parts = l.buffers.iter().map(|(b, offset)| {
            let home = &plan.buffers[*b];
            let nowhere = || Error::new(format!("cuda: `{}` is nowhere", home.name));
            let of = |places: &[Option<Place>], i: usize| places[i].as_ref().map(|p| p.memory.part(p.first + offset)).ok_or_else(nowhere);
            match home.home {
                Home::Param(i) => of(&params, i),
                Home::Result(i) => of(&results, i),
                Home::Arena(o) => Ok(arena.behind(o + offset)),
                Home::Nowhere => Err(nowhere()),
            }
        });
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        match &self.routines[l.kernel] {
            Some(r) => r.launch_on(stream, &parts),
            None => self.kernels[l.kernel].launch_on(stream, &parts, &plan.dims),
        }
    }
    /// Runs one launch after the other, and says how many seconds the device took for each: what a run takes is less than their sum, which has what lies between two launches.
    ///
    /// # Errors
    /// Those of [`Execution::run`].
    pub fn profile(&self) -> Result<Vec<f64>, Error> {
        self.allocate()?;
        let (_, arena) = self.gpu.workspace(self.plan.arena)?;
        (0..self.plan.launches.len()).map(|i| self.gpu.time(|| self.launch(i, arena, std::ptr::null_mut()))).collect()
    }
    /// All launches as one graph.
    fn record(&self, arena: Part) -> Result<Graph, Error> {
        let stream = Stream(result::stream::create(result::stream::StreamKind::Default).map_err(failed("stream"))?);
        // SAFETY: the stream is ours and idle; what is launched while it records only becomes a part of the graph.
        unsafe { result::stream::begin_capture(stream.0, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) }.map_err(failed("graph"))?;
        let launched = (0..self.plan.launches.len()).try_for_each(|i| self.launch(i, arena, stream.0));
        // SAFETY: the stream records since `begin_capture`; it has to end in any case.
        let graph = unsafe { result::stream::end_capture(stream.0) }.map_err(failed("graph"));
        launched?;
        let graph = graph?;
        // SAFETY: the graph was just made; once instantiated it is not needed.
        let exec = unsafe {
            let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)).map_err(failed("graph"));
            let _ = result::graph::destroy(graph);
            exec?
        };
        Ok(Graph { exec, stream })
    }
    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
    /// Gives parameter number `i` its value, for all runs until it gets another one.
    ///
    /// # Errors
    /// A tensor that is not what the plan says: its name, and both sides.
    pub fn set(&self, i: usize, t: &Tensor) -> Result<(), Error> {
        let Some(b) = self.plan.params.get(i).map(|b| &self.plan.buffers[*b]) else { return Err(Error::new(format!("the plan has {} parameters, no number {i}", self.plan.params.len()))) };
        if t.dtype() != b.dtype || t.shape() != b.shape {
            return Err(Error::new(format!("`{}` is {} {:?}, but the tensor is {} {:?}", b.name, b.dtype, b.shape, t.dtype(), t.shape())));
        }
        let mut params = self.params.borrow_mut();
        let place = match &mut params[i] {
            Some(p) => p,
            none => none.insert(self.own(self.plan.params[i])?),
        };
        place.memory.write_at(place.first, &t.to_bytes())
    }
    /// Runs all launches, and waits for them.
    ///
    /// # Errors
    /// Too little memory; what a kernel did wrong.
    pub fn run(&self) -> Result<(), Error> {
        self.allocate()?;
        let (generation, arena) = self.gpu.workspace(self.plan.arena)?;
        let mut graph = self.graph.borrow_mut();
        if graph.as_ref().is_some_and(|(g, _)| *g != generation) {
            *graph = None;
        }
        let (_, graph) = match &mut *graph {
            Some(g) => g,
            none => none.insert((generation, self.record(arena)?)),
        };
        // SAFETY: graph and stream are ours, and everything that the graph names lives as long as `self`; the work space is the one of the graph's generation.
        unsafe {
            result::graph::launch(graph.exec, graph.stream.0).map_err(failed("graph"))?;
            result::stream::synchronize(graph.stream.0).map_err(failed("a kernel failed"))
        }
    }
    /// Result number `i`, of the last run.
    ///
    /// # Errors
    /// There is no such result; the driver's.
    pub fn result(&self, i: usize) -> Result<Tensor, Error> {
        let Some(b) = self.plan.results.get(i).map(|b| &self.plan.buffers[*b]) else { return Err(Error::new(format!("the plan has {} results, no number {i}", self.plan.results.len()))) };
        let results = self.results.borrow();
        let place = results[i].as_ref().ok_or_else(|| Error::new(format!("cuda: `{}` before the first run", b.name)))?;
        Tensor::from_bytes(b.dtype, &b.shape, &place.memory.read_at(place.first, b.bytes())?)
    }
}

fn bind(plan: &Plan, homes: &[usize], places: &mut [Option<Place>], i: usize, place: Place) -> Result<(), Error> {
    let Some(b) = homes.get(i).map(|b| &plan.buffers[*b]) else { return Err(Error::new(format!("the plan has {} of these, no number {i}", homes.len()))) };
    if place.bytes != b.bytes() {
        return Err(Error::new(format!("`{}` is {} {:?}, {} bytes, but is to be at {} bytes of memory", b.name, b.dtype, b.shape, b.bytes(), place.bytes)));
    }
    places[i] = Some(place);
    Ok(())
}
