//! Products of matrices by NVIDIA's cuBLASLt, where that is installed. It is loaded when it is first asked for; without it nothing here fails but the asking.

use super::stream::Part;
use super::{Gpu, Memory};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use ir::diagnostic::Error;
use ir::tile::product::{Matrix, Product};
use ir::types::DType;
use std::ffi::c_void;
use std::rc::Rc;

/// What routines may use beside their operands: what NVIDIA advises for sm_90.
const WORKSPACE: usize = 32 << 20;
/// What addresses are multiples of, in bytes: as kernels have it.
const ALIGN: u64 = 16;

fn failed(what: &str) -> impl Fn(CublasError) -> Error + '_ {
    move |e| Error::new(format!("cublasLt: {what}: {e}"))
}

/// The library, ready on one device.
#[derive(Debug)]
pub struct Library {
    handle: sys::cublasLtHandle_t,
    workspace: Memory,
}

impl Library {
    /// Opens it for the device that is current.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub(super) fn open(gpu: &Gpu) -> Result<Library, Error> {
        // SAFETY: loads a library by name and closes it; libcublasLt has no requirements on when it is loaded.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::new("libcublasLt is not installed, or not where libraries are looked for (LD_LIBRARY_PATH)"));
        }
        let workspace = Memory::filled(gpu, WORKSPACE, 0)?;
        Ok(Library { handle: result::create_handle().map_err(failed("it does not start"))?, workspace })
    }
    /// Its version: 130100 is 13.1.0.
    pub fn version(&self) -> usize {
        // SAFETY: the library is there, and the function takes nothing.
        unsafe { sys::cublasLtGetVersion() }
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: made in `open`; routines keep the library alive.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// A product by a routine of the library: what its heuristic advises first.
#[derive(Debug)]
pub struct Routine {
    product: Product,
    /// Types in memory of operands and result.
    dtypes: [DType; 2],
    desc: Descriptor,
    /// Of the library's A, B and D: its matrices have contiguous columns, so that A is our right operand and B the left one.
    layouts: [Layout; 3],
    algo: sys::cublasLtMatmulAlgo_t,
    workspace: usize,
    library: Rc<Library>,
}

#[derive(Debug)]
struct Descriptor(sys::cublasLtMatmulDesc_t);

impl Descriptor {
    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<(), Error> {
        // SAFETY: the descriptor is ours, and the library checks the attribute's size.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>()) }.map_err(failed("a descriptor"))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made in `Routine::new`.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

#[derive(Debug)]
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    /// A matrix with contiguous columns of `rows` elements, `ld` apart, in a batch.
    fn new(dtype: DType, rows: u64, cols: u64, ld: u64, batch: (u64, u64)) -> Result<Layout, Error> {
        let f = failed("a matrix");
        let layout = Layout(result::create_matrix_layout(element(dtype)?, rows, cols, ld as i64).map_err(&f)?);
        let (count, stride) = (batch.0 as i32, batch.1 as i64);
        use sys::cublasLtMatrixLayoutAttribute_t::{CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT as COUNT, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET as STRIDE};
        // SAFETY: the layout was just made; the attributes have 32 and 64 bits.
        unsafe {
            result::set_matrix_layout_attribute(layout.0, COUNT, std::ptr::from_ref(&count).cast(), 4).map_err(&f)?;
            result::set_matrix_layout_attribute(layout.0, STRIDE, std::ptr::from_ref(&stride).cast(), 8).map_err(&f)?;
        }
        Ok(layout)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made in `new`.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What the heuristic may choose from.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn set<T>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: &T) -> Result<(), Error> {
        // SAFETY: the preference is ours, and the library checks the attribute's size.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>()) }.map_err(failed("a preference"))
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made in `Routine::new`.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

fn element(dtype: DType) -> Result<sys::cudaDataType, Error> {
    match dtype {
        DType::BF16 => Ok(sys::cudaDataType::CUDA_R_16BF),
        DType::F16 => Ok(sys::cudaDataType::CUDA_R_16F),
        DType::F32 => Ok(sys::cudaDataType::CUDA_R_32F),
        other => Err(Error::new(format!("cublasLt: no products of {other}"))),
    }
}

/// Elements from the buffer's first to the last one that a matrix of so many indices has, both included.
fn extent(m: &Matrix, sizes: [u64; 2], batch: u64) -> u64 {
    m.offset + (batch - 1) * m.batch + (sizes[0] - 1) * m.steps[0] + (sizes[1] - 1) * m.steps[1] + 1
}

impl Routine {
    /// For buffers of these types, in the product's numbering.
    ///
    /// # Errors
    /// What of the product the library has no routine for: operands that are not both bf16 or both f16 (f32 would be rounded, or slow), addresses that are no multiples of 16 bytes, and what its
    /// heuristic refuses.
    pub fn new(library: &Rc<Library>, product: &Product, dtypes: &[DType]) -> Result<Routine, Error> {
        let of = |b: usize| dtypes.get(b).copied().ok_or_else(|| Error::new(format!("cublasLt: a product of buffer {b} of {}", dtypes.len())));
        let ([left, right], out) = ([of(product.left.buffer)?, of(product.right.buffer)?], of(product.out.buffer)?);
        if left != right || !matches!(left, DType::BF16 | DType::F16) || !(out == left || out == DType::F32) {
            return Err(Error::new(format!("cublasLt: a product of {left} and {right} to {out} is not taken; of bf16 or f16, to the same or f32, it is")));
        }
        let [m, n, k, batch] = product.sizes;
        for (x, d) in [(&product.left, left), (&product.right, right), (&product.out, out)] {
            let bytes = d.bytes() as u64;
            let wide = x.steps.iter().copied().max().unwrap_or(1);
            if x.offset * bytes % ALIGN != 0 || wide * bytes % ALIGN != 0 || batch > 1 && x.batch * bytes % ALIGN != 0 {
                return Err(Error::new(format!("cublasLt: elements {} and {} of a matrix of {d} are not at multiples of 16 bytes", x.offset, x.offset + wide)));
            }
        }
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let desc = Descriptor(result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F).map_err(failed("a descriptor"))?);
        // The library's A is columns × sum, B is sum × rows, D is columns × rows.
        let (wide_a, wide_b) = (product.right.steps[0] == 1, product.left.steps[1] == 1);
        // As it stands, or transposed: the library's numbers.
        let operation = |plain: bool| i32::from(!plain);
        desc.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &operation(wide_a))?;
        desc.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &operation(wide_b))?;
        if let Some((b, first)) = product.bias {
            let bias = of(b)?;
            if bias != out || first * bias.bytes() as u64 % ALIGN != 0 {
                return Err(Error::new(format!("cublasLt: a bias of {bias} from element {first} on a result of {out}; both have one type, and 16 bytes as a multiple")));
            }
            desc.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
        }
        // An axis of one element may have any step.
        let ld = |x: &Matrix, i: usize, least: u64| x.steps[i].max(least);
        let (a, b) = (&product.right, &product.left);
        let layouts = [
            if wide_a { Layout::new(right, n, k, ld(a, 1, n), (batch, a.batch))? } else { Layout::new(right, k, n, ld(a, 0, k), (batch, a.batch))? },
            if wide_b { Layout::new(left, k, m, ld(b, 0, k), (batch, b.batch))? } else { Layout::new(left, m, k, ld(b, 1, m), (batch, b.batch))? },
            Layout::new(out, n, m, ld(&product.out, 0, n), (batch, product.out.batch))?,
        ];
        let preference = Preference(result::create_matmul_pref().map_err(failed("a preference"))?);
        use sys::cublasLtMatmulPreferenceAttributes_t as Wish;
        preference.set(Wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE)?;
        for wish in [Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES] {
            preference.set(wish, &(ALIGN as u32))?;
        }
        let [la, lb, lc] = [0, 1, 2].map(|i| layouts[i].0);
        // SAFETY: all of them were made above.
        let found = unsafe { result::get_matmul_algo_heuristic(library.handle, desc.0, la, lb, lc, lc, preference.0) }.map_err(failed("no routine for this product"))?;
        Ok(Routine { product: product.clone(), dtypes: [left, out], desc, layouts, algo: found.algo, workspace: found.workspaceSize.min(WORKSPACE), library: library.clone() })
    }
    /// The product.
    pub fn product(&self) -> &Product {
        &self.product
    }
    /// Launches it on a stream.
    ///
    /// # Errors
    /// Buffers that are too small: which, and both sides; the library's.
    pub(super) fn launch_on(&self, stream: cudarc::driver::sys::CUstream, buffers: &[Part]) -> Result<(), Error> {
        let p = &self.product;
        let [m, n, k, batch] = p.sizes;
        let at = |x: &Matrix, sizes: [u64; 2], d: DType| -> Result<*mut c_void, Error> {
            let part = buffers.get(x.buffer).ok_or_else(|| Error::new(format!("cublasLt: buffer {} of {}", x.buffer, buffers.len())))?;
            let bytes = extent(x, sizes, batch) as usize * d.bytes();
            if bytes > part.bytes {
                return Err(Error::new(format!("cublasLt: buffer {} needs {bytes} bytes, but has {}", x.buffer, part.bytes)));
            }
            Ok((part.address + x.offset * d.bytes() as u64) as *mut c_void)
        };
        let [operand, result] = self.dtypes;
        let (b, a, d) = (at(&p.left, [m, k], operand)?, at(&p.right, [n, k], operand)?, at(&p.out, [m, n], result)?);
        if let Some((buffer, first)) = p.bias {
            let bias = Matrix { buffer, offset: first, steps: [1, 1], batch: 0 };
            self.desc.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &at(&bias, [n, 1], result)?)?;
        }
        let (one, zero) = (1.0f32, 0.0f32);
        let [la, lb, ld] = [0, 1, 2].map(|i| self.layouts[i].0);
        let work = self.library.workspace.part(0).address as *mut c_void;
        // SAFETY: descriptors and layouts are ours, buffers are large enough (above) and outlive the launch by `Memory`'s contract, scalars are read during the call.
        let done = unsafe {
            cudarc::cublaslt::result::matmul(
                self.library.handle, self.desc.0, std::ptr::from_ref(&one).cast(), std::ptr::from_ref(&zero).cast(), a, la, b, lb, d, ld, d, ld, &self.algo, work, self.workspace, stream.cast(),
            )
        };
        done.map_err(failed("a product"))
    }
}
