//! A thread pool over program instances. They are handed out in runs, the last ones first, so that the long rows of a causal mask
//! start early; a run is a fixed part of what is left (guided self-scheduling: Polychronopoulos and Kuck 1987), and goes upwards, so
//! that short rows are read and written as long streams of memory. What an instance computes depends on its number alone, never on the thread.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// What a launch does per instance: its number, and scratch memory.
type Task<'a> = &'a (dyn Fn(i64, *mut u8) + Sync);

/// Threads that wait for launches.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One launch at a time; the caller's scratch.
    caller: Mutex<Scratch>,
}

struct Shared {
    state: Mutex<State>,
    start: Condvar,
    done: Condvar,
    /// Instances not handed out yet.
    left: AtomicI64,
    threads: i64,
    /// Launches so far, for workers that spin before they sleep.
    launches: AtomicUsize,
    /// Workers that have joined the launch and are not done with it.
    busy: AtomicUsize,
}

/// How often is looked before a thread sleeps, some 0.1 ms: launches of a network come one after the other, instances take less than that, and waking a thread takes as long.
const LOOKS: usize = 6000;

/// Waits a while for `ready`.
fn spin(ready: impl Fn() -> bool) {
    for _ in 0..LOOKS {
        if ready() {
            return;
        }
        std::hint::spin_loop();
    }
}

struct State {
    launch: Option<Launch>,
    generation: usize,
    stop: bool,
}

#[derive(Clone, Copy)]
struct Launch {
    task: *const (dyn Fn(i64, *mut u8) + Sync),
    scratch: usize,
}

// SAFETY: the task outlives the launch, which `Pool::run` waits for, and is Sync.
unsafe impl Send for Launch {}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Pool {
    /// A pool of `threads` threads, the calling one included.
    pub fn new(threads: usize) -> Pool {
        let state = State { launch: None, generation: 0, stop: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), start: Condvar::new(), done: Condvar::new(), left: AtomicI64::new(0), threads: threads.max(1) as i64, launches: AtomicUsize::new(0), busy: AtomicUsize::new(0) });
        let workers = (1..threads.max(1))
            .map(|_| {
                let shared = shared.clone();
                std::thread::spawn(move || work(&shared))
            })
            .collect();
        Pool { shared, workers, caller: Mutex::new(Scratch::default()) }
    }
    /// As many threads as `PUSHFORWARD_THREADS` says, else as the machine has cores.
    pub fn from_env() -> Pool {
        let asked = std::env::var("PUSHFORWARD_THREADS").ok().and_then(|s| s.parse().ok());
        Pool::new(asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)))
    }
    /// Threads, the calling one included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }
    /// Calls `task` for each instance `0..instances`, with at least `scratch` bytes of 64-byte aligned memory.
    pub fn run(&self, instances: i64, scratch: usize, task: Task) {
        if instances <= 0 {
            return;
        }
        let mut mine = lock(&self.caller);
        // SAFETY: only the lifetime changes, and this function does not return before every worker is done with it.
        let task_ptr: *const (dyn Fn(i64, *mut u8) + Sync) = unsafe { std::mem::transmute::<Task, &'static (dyn Fn(i64, *mut u8) + Sync)>(task) };
        self.shared.left.store(instances, Ordering::Relaxed);
        if instances > 1 && !self.workers.is_empty() {
            let mut s = lock(&self.shared.state);
            s.launch = Some(Launch { task: task_ptr, scratch });
            s.generation += 1;
            self.shared.launches.fetch_add(1, Ordering::Release);
            drop(s);
            self.shared.start.notify_all();
        }
        drain(&self.shared, task, mine.get(scratch));
        // Nothing is left: a worker that comes now is not waited for.
        lock(&self.shared.state).launch = None;
        let busy = || self.shared.busy.load(Ordering::Acquire) > 0;
        spin(|| !busy());
        let mut s = lock(&self.shared.state);
        while busy() {
            s = self.shared.done.wait(s).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.launches.fetch_add(1, Ordering::Release);
        self.shared.start.notify_all();
        for w in self.workers.drain(..) {
            let _ = w.join();
        }
    }
}

fn work(shared: &Shared) {
    let mut scratch = Scratch::default();
    let (mut seen, mut launches) = (0, 0);
    loop {
        spin(|| shared.launches.load(Ordering::Acquire) != launches);
        let mut s = lock(&shared.state);
        while s.generation == seen && !s.stop {
            s = shared.start.wait(s).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        if s.stop {
            return;
        }
        seen = s.generation;
        launches = shared.launches.load(Ordering::Acquire);
        let Some(l) = s.launch else { continue };
        shared.busy.fetch_add(1, Ordering::Relaxed);
        drop(s);
        // SAFETY: `Pool::run` keeps the task alive until no worker is busy, and none joins when it waits for that.
        drain(shared, unsafe { &*l.task }, scratch.get(l.scratch));
        if shared.busy.fetch_sub(1, Ordering::Release) == 1 {
            // A caller that saw this thread busy waits by now, or has not got the lock yet.
            drop(lock(&shared.state));
            shared.done.notify_one();
        }
    }
}

/// Takes runs of instances until none is left.
fn drain(shared: &Shared, task: Task, scratch: *mut u8) {
    let _fast = FlushToZero::new();
    loop {
        let run = |left: i64| (left / (shared.threads * 8)).max(1);
        let Ok(end) = shared.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| (left > 0).then(|| left - run(left))) else { break };
        (end - run(end)..end).for_each(|i| task(i, scratch));
    }
    // Kernels may store past the caches; such stores are ordered before whatever this thread does next by a fence alone.
    #[cfg(target_arch = "x86_64")]
    // SAFETY: an instruction of every x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    };
}

/// 64-byte aligned memory that only grows.
struct Scratch {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: owned memory, used by one thread at a time.
unsafe impl Send for Scratch {}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch { start: std::ptr::null_mut(), bytes: 0 }
    }
}

impl Scratch {
    fn layout(bytes: usize) -> std::alloc::Layout {
        // Sizes come from signatures of kernels that were compiled; one that overflows is a bug worth stopping for.
        std::alloc::Layout::from_size_align(bytes.max(64), 64).unwrap_or_else(|_| panic!("{bytes} bytes of scratch"))
    }
    fn get(&mut self, bytes: usize) -> *mut u8 {
        if bytes > self.bytes || self.start.is_null() {
            *self = Scratch::default();
            // SAFETY: the layout is not empty.
            self.start = unsafe { std::alloc::alloc(Scratch::layout(bytes)) };
            if self.start.is_null() {
                std::alloc::handle_alloc_error(Scratch::layout(bytes));
            }
            self.bytes = bytes;
        }
        self.start
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.start.is_null() {
            // SAFETY: allocated in `get` with this layout.
            unsafe { std::alloc::dealloc(self.start, Scratch::layout(self.bytes)) };
        }
    }
}

/// Denormals are zero while this lives: an exp far below its row's maximum must not cost a hundred cycles.
struct FlushToZero {
    #[cfg(target_arch = "x86_64")]
    before: u32,
}

impl FlushToZero {
    #[cfg(target_arch = "x86_64")]
    fn new() -> FlushToZero {
        let mut before = 0u32;
        // SAFETY: reads and writes this thread's MXCSR: FTZ (bit 15) and DAZ (bit 6) on, all else as it was.
        unsafe {
            std::arch::asm!("stmxcsr [{}]", in(reg) &mut before, options(nostack));
            let on = before | 0x8040;
            std::arch::asm!("ldmxcsr [{}]", in(reg) &on, options(nostack));
        }
        FlushToZero { before }
    }
    #[cfg(not(target_arch = "x86_64"))]
    fn new() -> FlushToZero {
        FlushToZero {}
    }
}

impl Drop for FlushToZero {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: restores what `new` found.
        unsafe {
            std::arch::asm!("ldmxcsr [{}]", in(reg) &self.before, options(nostack));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instance_runs_once_whatever_the_threads() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for instances in [0i64, 1, 2, 7, 1000] {
                let hits: Vec<AtomicUsize> = (0..instances).map(|_| AtomicUsize::new(0)).collect();
                pool.run(instances, 100, &|i, scratch| {
                    assert_eq!(scratch as usize % 64, 0);
                    // SAFETY: the pool gives at least 100 bytes.
                    unsafe { scratch.add(99).write(i as u8) };
                    hits[i as usize].fetch_add(1, Ordering::Relaxed);
                });
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1), "{threads} threads, {instances} instances");
            }
        }
    }

    #[test]
    fn a_launch_is_over_when_it_returns_whoever_comes_late() {
        // Tasks of nothing: workers are often still on their way when none is left, and what a task refers to is gone then.
        let pool = Pool::new(4);
        for n in 0..20_000i64 {
            let instances = 2 + n % 5;
            let sum = AtomicI64::new(0);
            pool.run(instances, 0, &|i, _| {
                sum.fetch_add(i + 1, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), instances * (instances + 1) / 2, "launch {n}");
        }
    }
}
