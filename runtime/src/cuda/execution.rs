//! A plan on a device: parameters, results and arena stay there between runs, and all launches are one graph, so that a run costs one call however many
//! kernels it has.

use super::{Gpu, Kernel, Memory};
use crate::plan::{Home, Plan};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use ir::artifact::GpuSignature;
use ir::diagnostic::Error;
use ir::tensor::Tensor;

fn failed(what: &str) -> impl Fn(DriverError) -> Error + '_ {
    move |e| Error::new(format!("cuda: {what}: {e}"))
}

/// A plan that is ready to run.
pub struct Execution {
    plan: Plan,
    /// Alive as long as the graph.
    _kernels: Vec<Kernel>,
    params: Vec<Memory>,
    results: Vec<Memory>,
    _arena: Memory,
    graph: Graph,
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
        // SAFETY: created in `Execution::new`.
        let _ = unsafe { result::stream::destroy(self.0) };
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: instantiated in `Execution::new`; the stream goes afterwards.
        let _ = unsafe { result::graph::exec_destroy(self.exec) };
    }
}

impl Execution {
    /// A plan, and its kernels in its order. Allocates everything that it needs.
    ///
    /// # Errors
    /// Kernels that are not the plan's, too little memory, or the driver's.
    pub fn new(gpu: &Gpu, plan: Plan, kernels: Vec<Kernel>) -> Result<Execution, Error> {
        if kernels.len() != plan.kernels.len() {
            return Err(Error::new(format!("the plan has {} kernels, but {} given", plan.kernels.len(), kernels.len())));
        }
        let signatures: Vec<&GpuSignature> = kernels.iter().map(Kernel::signature).collect();
        plan.fits(&signatures)?;
        let filled = |b: &usize| Memory::filled(gpu, plan.buffers[*b].bytes(), 0xff);
        let params = plan.params.iter().map(filled).collect::<Result<Vec<_>, _>>()?;
        let results = plan.results.iter().map(filled).collect::<Result<Vec<_>, _>>()?;
        let arena = Memory::filled(gpu, plan.arena, 0xff)?;
        let stream = Stream(result::stream::create(result::stream::StreamKind::Default).map_err(failed("stream"))?);
        // SAFETY: the stream is ours and idle; what is launched while it records only becomes a part of the graph.
        unsafe { result::stream::begin_capture(stream.0, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) }.map_err(failed("graph"))?;
        let launched = plan.launches.iter().try_for_each(|l| {
            let parts = l.buffers.iter().map(|(b, offset)| {
                let home = &plan.buffers[*b];
                let (memory, first) = match home.home {
                    Home::Param(i) => (&params[i], *offset),
                    Home::Result(i) => (&results[i], *offset),
                    Home::Arena(o) => (&arena, o + offset),
                    Home::Nowhere => return Err(Error::new(format!("cuda: `{}` is nowhere", home.name))),
                };
                Ok(memory.part(first))
            });
            kernels[l.kernel].launch_on(stream.0, &parts.collect::<Result<Vec<_>, _>>()?, &plan.dims)
        });
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
        Ok(Execution { plan, _kernels: kernels, params, results, _arena: arena, graph: Graph { exec, stream } })
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
        self.params[i].write(&t.to_bytes())
    }
    /// Runs all launches, and waits for them.
    ///
    /// # Errors
    /// What a kernel did wrong.
    pub fn run(&self) -> Result<(), Error> {
        // SAFETY: graph and stream are ours, and everything that the graph names lives as long as `self`.
        unsafe {
            result::graph::launch(self.graph.exec, self.graph.stream.0).map_err(failed("graph"))?;
            result::stream::synchronize(self.graph.stream.0).map_err(failed("a kernel failed"))
        }
    }
    /// Result number `i`, of the last run.
    ///
    /// # Errors
    /// There is no such result; the driver's.
    pub fn result(&self, i: usize) -> Result<Tensor, Error> {
        let Some(b) = self.plan.results.get(i).map(|b| &self.plan.buffers[*b]) else { return Err(Error::new(format!("the plan has {} results, no number {i}", self.plan.results.len()))) };
        Tensor::from_bytes(b.dtype, &b.shape, &self.results[i].read()?[..b.bytes()])
    }
}
