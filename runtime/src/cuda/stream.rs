//! Modules, memory, launches and events on one device's default stream: what a measurement needs, on the driver's own calls.

use super::library::Library;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use ir::artifact::{GpuSignature, MapAt, TensorMap};
use ir::diagnostic::Error;
use ir::dim::Bindings;
use ir::tensor::Tensor;
use ir::types::DType;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::rc::Rc;

fn failed(what: &str) -> impl Fn(DriverError) -> Error + '_ {
    move |e| Error::new(format!("cuda: {what}: {e}"))
}

/// A device, current for this thread.
#[derive(Debug)]
pub struct Gpu {
    device: sys::CUdevice,
    workspace: RefCell<Workspace>,
    /// cuBLASLt, or why there is none, once that was asked.
    library: RefCell<Option<Result<Rc<Library>, String>>>,
}

/// Memory that plans have in turn for what lies between their parameters and results: as large as the largest of them needs.
#[derive(Debug, Default)]
struct Workspace {
    memory: Option<Memory>,
    /// How often it was another one.
    generation: u64,
}

impl Gpu {
    /// Device number `ordinal`.
    ///
    /// # Errors
    /// No driver, or no such device.
    pub fn new(ordinal: i32) -> Result<Gpu, Error> {
        super::devices().map_err(Error::new)?;
        let device = result::device::get(ordinal).map_err(failed("no such device"))?;
        // SAFETY: the device is the driver's; its primary context is released when this is dropped.
        unsafe {
            let context = result::primary_ctx::retain(device).map_err(failed("context"))?;
            result::ctx::set_current(context).map_err(failed("context"))?;
        }
        // What is freed stays in the driver's pool for whoever asks next, instead of going back to the system at every synchronisation.
        let mut keep = u64::MAX;
        // SAFETY: the pool is the device's own, and the attribute is 64 bits.
        unsafe {
            let pool = result::device::get_default_mem_pool(device).map_err(failed("memory pool"))?;
            sys::cuMemPoolSetAttribute(pool, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, std::ptr::from_mut(&mut keep).cast()).result().map_err(failed("memory pool"))?;
        }
        Ok(Gpu { device, workspace: RefCell::default(), library: RefCell::default() })
    }
    /// What it is sold as.
    pub fn name(&self) -> String {
        result::device::get_name(self.device).unwrap_or_default()
    }
    /// The library for products of matrices, loaded the first time.
    ///
    /// # Errors
    /// Why there is none, the same each time.
    pub fn library(&self) -> Result<Rc<Library>, String> {
        self.library.borrow_mut().get_or_insert_with(|| Library::open(self).map(Rc::new).map_err(|e| e.to_string())).clone()
    }
    /// Work space of at least so many bytes, shared by all that ask: its generation, which changes when it moves, and where it is. What the one before held is lost.
    ///
    /// # Errors
    /// There is not so much memory.
    pub(super) fn workspace(&self, bytes: usize) -> Result<(u64, Part), Error> {
        let mut w = self.workspace.borrow_mut();
        if w.memory.as_ref().is_none_or(|m| m.bytes < bytes) {
            // First the old one goes back to the system, so that both are never there at once.
            self.wait()?;
            w.memory = None;
            self.trim()?;
            w.generation += 1;
            w.memory = Some(Memory::filled(self, bytes, 0xff)?);
        }
        let part = w.memory.as_ref().map(|m| m.part(0)).ok_or_else(|| Error::new("cuda: no work space"))?;
        Ok((w.generation, part))
    }
    /// Gives what is freed and kept for whoever asks next back to the system.
    ///
    /// # Errors
    /// The driver's.
    pub fn trim(&self) -> Result<(), Error> {
        self.wait()?;
        // SAFETY: the pool is the device's own.
        unsafe {
            let pool = result::device::get_default_mem_pool(self.device).map_err(failed("memory pool"))?;
            sys::cuMemPoolTrimTo(pool, 0).result().map_err(failed("memory pool"))
        }
    }
    /// Bytes of the device's memory that are free, and all it has, as the driver counts them for all processes.
    ///
    /// # Errors
    /// The driver's.
    pub fn free_and_total(&self) -> Result<(usize, usize), Error> {
        result::mem_get_info().map_err(failed("memory"))
    }
    /// The most bytes that were allocated at once so far.
    ///
    /// # Errors
    /// The driver's.
    pub fn most_allocated(&self) -> Result<u64, Error> {
        let mut bytes = 0u64;
        // SAFETY: the pool is the device's own, and the attribute is 64 bits.
        unsafe {
            let pool = result::device::get_default_mem_pool(self.device).map_err(failed("memory pool"))?;
            sys::cuMemPoolGetAttribute(pool, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, std::ptr::from_mut(&mut bytes).cast()).result().map_err(failed("memory pool"))?;
        }
        Ok(bytes)
    }
    /// Waits for everything launched so far.
    ///
    /// # Errors
    /// What a kernel did wrong since the last time: an address it may not touch, say.
    pub fn wait(&self) -> Result<(), Error> {
        result::ctx::synchronize().map_err(failed("a kernel failed"))
    }
    /// Seconds that the device takes for what `work` launches.
    ///
    /// # Errors
    /// Those of `work` and of the driver.
    pub fn time(&self, work: impl FnOnce() -> Result<(), Error>) -> Result<f64, Error> {
        let f = failed("event");
        let (start, end) = (result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(&f)?, result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(&f)?);
        // SAFETY: both events are ours, and are destroyed below; the null stream is the one that launches use.
        let ms = unsafe {
            result::event::record(start, std::ptr::null_mut()).map_err(&f)?;
            let done = work();
            result::event::record(end, std::ptr::null_mut()).map_err(&f)?;
            done?;
            result::event::synchronize(end).map_err(failed("a kernel failed"))?;
            let ms = result::event::elapsed(start, end).map_err(&f)?;
            result::event::destroy(start).map_err(&f)?;
            result::event::destroy(end).map_err(&f)?;
            ms
        };
        Ok(f64::from(ms) * 1e-3)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // Memory goes while there is a context.
        self.workspace.get_mut().memory = None;
        *self.library.get_mut() = None;
        // SAFETY: retained in `new`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Memory on the device.
#[derive(Debug)]
pub struct Memory {
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl Memory {
    /// Memory that holds `bytes`.
    ///
    /// # Errors
    /// There is not so much.
    pub fn new(gpu: &Gpu, bytes: &[u8]) -> Result<Memory, Error> {
        let m = Memory::filled(gpu, bytes.len(), 0)?;
        // SAFETY: both are `bytes.len()` long.
        unsafe { result::memcpy_htod_sync(m.address, bytes) }.map_err(failed("copy to the device"))?;
        Ok(m)
    }
    /// `bytes` of memory, every one `with`.
    ///
    /// # Errors
    /// There is not so much.
    pub fn filled(_gpu: &Gpu, bytes: usize, with: u8) -> Result<Memory, Error> {
        // SAFETY: freed when this is dropped.
        let address = unsafe { result::malloc_async(std::ptr::null_mut(), bytes.max(16)) }.map_err(|e| Error::new(format!("cuda: {bytes} bytes of memory: {e}")))?;
        let m = Memory { address, bytes };
        m.fill(with)?;
        Ok(m)
    }
    /// Sets every byte.
    ///
    /// # Errors
    /// The driver's.
    pub fn fill(&self, with: u8) -> Result<(), Error> {
        // SAFETY: within the allocation.
        unsafe { result::memset_d8_sync(self.address, with, self.bytes) }.map_err(failed("fill"))
    }
    /// Writes its first bytes.
    ///
    /// # Errors
    /// More than it has; the driver's.
    pub fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        self.write_at(0, bytes)
    }
    /// Its number of bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }
    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
    /// Writes bytes from byte `first` on.
    ///
    /// # Errors
    /// More than it has; the driver's.
    pub fn write_at(&self, first: usize, bytes: &[u8]) -> Result<(), Error> {
        self.within(first, bytes.len())?;
        // SAFETY: within the allocation.
        unsafe { result::memcpy_htod_sync(self.address + first as u64, bytes) }.map_err(failed("copy to the device"))
    }
    /// So many bytes from byte `first` on.
    ///
    /// # Errors
    /// More than it has; what a kernel did wrong before.
    pub fn read_at(&self, first: usize, bytes: usize) -> Result<Vec<u8>, Error> {
        self.within(first, bytes)?;
        let mut out = vec![0u8; bytes];
        // SAFETY: within the allocation, and `out` is `bytes` long.
        unsafe { result::memcpy_dtoh_sync(&mut out, self.address + first as u64) }.map_err(failed("copy from the device"))?;
        Ok(out)
    }
    /// Copies what another memory of the same length holds.
    ///
    /// # Errors
    /// Lengths that differ; the driver's.
    pub fn copy(&self, from: &Memory) -> Result<(), Error> {
        if self.bytes != from.bytes {
            return Err(Error::new(format!("cuda: a copy of {} bytes to {}", from.bytes, self.bytes)));
        }
        // SAFETY: both are `bytes` long.
        unsafe { result::memcpy_dtod_sync(self.address, from.address, self.bytes) }.map_err(failed("copy on the device"))
    }
    fn within(&self, first: usize, bytes: usize) -> Result<(), Error> {
        match first.checked_add(bytes).filter(|end| *end <= self.bytes) {
            Some(_) => Ok(()),
            None => Err(Error::new(format!("cuda: {bytes} bytes from byte {first} of {} bytes of memory", self.bytes))),
        }
    }
    /// The memory from byte `first` on, for a launch.
    pub(super) fn part(&self, first: usize) -> Part {
        Part { address: self.address + first as u64, bytes: self.bytes.saturating_sub(first) }
    }
    /// What it holds.
    ///
    /// # Errors
    /// What a kernel did wrong before.
    pub fn read(&self) -> Result<Vec<u8>, Error> {
        self.read_at(0, self.bytes)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `filled` on the default stream, behind whose launches it is freed; a graph's stream waits for that one.
        let _ = unsafe { result::free_async(self.address, std::ptr::null_mut()) };
    }
}

/// A part of memory that somebody keeps alive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) address: sys::CUdeviceptr,
    pub(super) bytes: usize,
}

impl Part {
    /// What lies behind its first bytes.
    pub(super) fn behind(self, first: usize) -> Part {
        Part { address: self.address + first as u64, bytes: self.bytes.saturating_sub(first) }
    }
    /// Fills bytes from `first` on with random numbers between -1 and 1 of a type of floats, one pattern over and over.
    pub(super) fn fill_randomly(self, first: usize, bytes: usize, dtype: DType) -> Result<(), Error> {
        const PATTERN: usize = 1 << 18;
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let numbers: Vec<f64> = (0..PATTERN).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1 << 23) - 1.0
        }).collect();
        let pattern = Tensor::from_f64(dtype, &[PATTERN], &numbers)?.to_bytes();
        let end = (first + bytes).min(self.bytes);
        for at in (first..end).step_by(pattern.len()) {
            let n = pattern.len().min(end - at);
            // SAFETY: within the part, which somebody keeps alive.
            unsafe { result::memcpy_htod_sync(self.address + at as u64, &pattern[..n]) }.map_err(failed("copy to the device"))?;
        }
        Ok(())
    }
}

/// A kernel, loaded.
#[derive(Debug)]
pub struct Kernel {
    module: sys::CUmodule,
    function: sys::CUfunction,
    signature: GpuSignature,
    /// Of the device.
    multiprocessors: usize,
    /// Tensor maps in the driver's form, by their number, address and sizes.
    maps: RefCell<BTreeMap<(usize, u64, MapAt), sys::CUtensorMap>>,
}

/// The driver's form of a tensor map of elements of `dtype` at `address`.
fn encoded(m: &TensorMap, at: &MapAt, dtype: DType, address: u64) -> Result<sys::CUtensorMap, Error> {
    use sys::CUtensorMapDataType::*;
    let element = match dtype {
        DType::BF16 => CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        DType::F16 => CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        DType::F32 => CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        other => return Err(Error::new(format!("cuda: no tensor map has elements of {other}"))),
    };
    let swizzle = match m.swizzle {
        128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
        _ => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
    };
    let mut out = sys::CUtensorMap { opaque: [0; 16] };
    let rank = at.sizes.len();
    let steps = vec![1u32; rank];
    // SAFETY: the driver is loaded (a device was opened); the arrays have `rank` entries, strides one less, and the driver checks what they hold.
    let code = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut out, element, rank as u32, (address + at.offset) as *mut c_void, at.sizes.as_ptr(), at.strides.as_ptr(), at.tile.as_ptr(), steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    code.result().map_err(|e| Error::new(format!("cuda: a tensor map of {at:?}: {e}")))?;
    Ok(out)
}

impl Kernel {
    /// Loads PTX text (the driver compiles it) or an assembled module.
    ///
    /// # Errors
    /// The code does not load on this device, has no such symbol, or asks for more shared memory than there is.
    pub fn load(gpu: &Gpu, code: &[u8], signature: &GpuSignature) -> Result<Kernel, Error> {
        let name = &signature.symbol;
        let mut image = code.to_vec();
        // PTX is text that ends with a zero.
        image.push(0);
        let f = |what: &'static str| move |e: DriverError| Error::new(format!("cuda: {name}: {what}: {e}"));
        // SAFETY: the image outlives the call, which copies it.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(f("the code does not load on this device"))?;
        let symbol = CString::new(name.as_str()).map_err(|_| Error::new(format!("cuda: {name:?} is no symbol")))?;
        // SAFETY: the module is loaded; the function lives as long as it.
        let function = unsafe { result::module::get_function(module, symbol) }.map_err(f("no such symbol"))?;
        if signature.shared_bytes > 48 << 10 {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is valid.
            unsafe { result::function::set_function_attribute(function, attribute, signature.shared_bytes as i32) }.map_err(f("shared memory"))?;
        }
        let count = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        // SAFETY: the device is the driver's.
        let multiprocessors = unsafe { result::device::get_attribute(gpu.device, count) }.map_err(f("multiprocessors"))? as usize;
        Ok(Kernel { module, function, signature: signature.clone(), multiprocessors, maps: RefCell::default() })
    }
    /// Launches it on `buffers`, in the signature's order.
    ///
    /// # Errors
    /// Buffers that differ from the signature: the buffer, and both sides; or the driver's.
    pub fn launch(&self, buffers: &[&Memory], dims: &Bindings) -> Result<(), Error> {
        self.launch_on(std::ptr::null_mut(), &buffers.iter().map(|m| m.part(0)).collect::<Vec<_>>(), dims)
    }
    /// How it is launched.
    pub fn signature(&self) -> &GpuSignature {
        &self.signature
    }
    /// Launches it on a stream.
    ///
    /// # Errors
    /// Those of [`Kernel::launch`].
    pub(super) fn launch_on(&self, stream: sys::CUstream, buffers: &[Part], dims: &Bindings) -> Result<(), Error> {
        let s = &self.signature;
        if buffers.len() != s.buffers.len() {
            return Err(Error::new(format!("cuda: {} takes {} buffers, but {} given", s.symbol, s.buffers.len(), buffers.len())));
        }
        s.allows(dims).map_err(|e| Error::new(format!("cuda: {e}")))?;
        let mut args: Vec<u64> = vec![];
        for (m, b) in buffers.iter().zip(&s.buffers) {
            let n = b.shape.iter().try_fold(1, |n, d| Ok(n * d.eval(dims)?.max(0))).map_err(|e: ir::dim::DimError| Error::new(format!("cuda: buffer `{}`: {e}", b.name)))?;
            let bytes = n as usize * b.dtype.bytes();
            if bytes > m.bytes {
                return Err(Error::new(format!("cuda: buffer `{}` of {} needs {bytes} bytes, but has {}", b.name, s.symbol, m.bytes)));
            }
            args.push(m.address);
        }
        for d in &s.dims {
            let n = dims.get(d).ok_or_else(|| Error::new(format!("cuda: {}: dimension `{d}` has no number", s.symbol)))?;
            args.push(*n as u64);
        }
        let blocks = s.blocks(dims, self.multiprocessors).map_err(|e| Error::new(format!("cuda: {}: {e}", s.symbol)))?;
        if blocks == 0 {
            return Ok(());
        }
        let blocks = u32::try_from(blocks).ok().filter(|b| *b < 1 << 31).ok_or_else(|| Error::new(format!("cuda: {}: {blocks} blocks are too many", s.symbol)))?;
        let mut maps = vec![];
        for (i, m) in s.maps.iter().enumerate() {
            let (Some(memory), Some(b)) = (buffers.get(m.buffer), s.buffers.get(m.buffer)) else { return Err(Error::new(format!("cuda: {}: a tensor map of buffer {}", s.symbol, m.buffer))) };
            let at = m.at(b.dtype.bytes(), dims).map_err(|e| Error::new(format!("cuda: buffer `{}`: {e}", b.name)))?;
            let mut known = self.maps.borrow_mut();
            // As many as a few models of different lengths need.
            if known.len() > 4096 {
                known.clear();
            }
            let key = (i, memory.address, at);
            let map = match known.get(&key) {
                Some(m) => *m,
                None => {
                    let map = encoded(m, &key.2, b.dtype, memory.address)?;
                    known.insert(key, map);
                    map
                }
            };
            maps.push(map);
        }
        let mut pointers: Vec<*mut c_void> = args.iter_mut().map(|a| std::ptr::from_mut(a).cast()).chain(maps.iter_mut().map(|m| std::ptr::from_mut(m).cast())).collect();
        // SAFETY: parameters are the signature's, 64 bits each, then 128 bytes for each tensor map; buffers are large enough (above) and outlive the launch by `Memory`'s contract.
        unsafe { result::launch_kernel(self.function, (blocks, 1, 1), (s.block as u32, 1, 1), s.shared_bytes as u32, stream, &mut pointers) }.map_err(|e| Error::new(format!("cuda: launch of {}: {e}", s.symbol)))
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // SAFETY: loaded in `load`.
        let _ = unsafe { result::module::unload(self.module) };
    }
}
