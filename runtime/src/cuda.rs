//! CUDA devices through the driver. The driver is loaded when it is first asked for, so that a program with this feature builds without a
//! toolkit and starts on machines without a GPU; everything here says `no driver` there.

mod choice;
mod execution;
mod library;
mod stream;

pub use choice::{Choice, Times, choose};
pub use execution::{Execution, Place};
pub use library::Routine;
pub use stream::{Gpu, Kernel, Memory};

use cudarc::driver::{result, sys};
use sys::CUdevice_attribute as Attribute;

/// What there is to know of a CUDA device before anything runs on it.
#[derive(Clone, PartialEq, Debug)]
pub struct Device {
    /// Its number, as the driver counts.
    pub ordinal: i32,
    /// What it is sold as.
    pub name: String,
    /// Major and minor number of its instruction set: 9, 0 is `sm_90`.
    pub compute: (i32, i32),
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
    /// Bytes of memory.
    pub memory: usize,
    /// Bytes of shared memory that one block may ask for.
    pub shared: i32,
    /// Bytes of the second-level cache.
    pub cache: i32,
    /// Hertz, at most.
    pub clock: f64,
    /// Bytes a second between memory and chip, by its clock and width; 0 where the driver does not say.
    pub bandwidth: f64,
}

/// What was found.
#[derive(Clone, PartialEq, Debug)]
pub struct Found {
    /// The newest CUDA version that the driver serves: 13, 0.
    pub version: (i32, i32),
    /// Its devices, by number.
    pub devices: Vec<Device>,
}

/// The driver's devices.
///
/// # Errors
/// Why there is none: no driver, or one that does not start.
pub fn devices() -> Result<Found, String> {
    // SAFETY: loads a library by name and closes it; libcuda has no requirements on when it is loaded.
    if !unsafe { sys::is_culib_present() } {
        return Err("no driver: libcuda is not installed".into());
    }
    let failed = |e: result::DriverError| format!("the driver does not start: {e}");
    result::init().map_err(failed)?;
    let mut version = 0;
    // SAFETY: the library is there (above), and `version` outlives the call.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(failed)?;
    let count = result::device::get_count().map_err(failed)?;
    let devices = (0..count).map(device).collect::<Result<_, _>>().map_err(failed)?;
    Ok(Found { version: (version / 1000, version % 1000 / 10), devices })
}

impl Device {
    /// The architecture to compile for, as `ptxas` names it.
    ///
    /// # Errors
    /// It is too old.
    pub fn architecture(&self) -> Result<&'static str, String> {
        match self.compute {
            (9, 0) => Ok("sm_90a"),
            (10, 0) => Ok("sm_100a"),
            (major, _) if major >= 8 => Ok("sm_80"),
            other => Err(format!("cuda: compute capability {other:?} of {} is below 8.0", self.name)),
        }
    }
    /// Whether it runs what is assembled for that architecture: later ones run its text only.
    pub fn runs_assembled(&self) -> bool {
        matches!(self.compute, (9, 0) | (10, 0) | (8, _))
    }
}

/// The first device.
///
/// # Errors
/// Those of [`devices`]; there is none.
pub fn first() -> Result<Device, String> {
    devices()?.devices.into_iter().next().ok_or_else(|| "cuda: no device".into())
}

fn device(ordinal: i32) -> Result<Device, result::DriverError> {
    let d = result::device::get(ordinal)?;
    // SAFETY: `d` is a device that the driver gave us.
    let attribute = |a: Attribute| unsafe { result::device::get_attribute(d, a) };
    use Attribute::*;
    // Newer drivers no longer tell clocks of some parts.
    let (clock, width) = (attribute(CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE).unwrap_or(0), attribute(CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH).unwrap_or(0));
    Ok(Device {
        ordinal,
        name: result::device::get_name(d)?,
        compute: (attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?, attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?),
        multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        // SAFETY: as above.
        memory: unsafe { result::device::total_mem(d)? },
        shared: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        cache: attribute(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        clock: f64::from(attribute(CU_DEVICE_ATTRIBUTE_CLOCK_RATE).unwrap_or(0)) * 1e3,
        // Two transfers a clock.
        bandwidth: 2.0 * f64::from(clock) * 1e3 * f64::from(width) / 8.0,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn without_a_driver_it_is_said_and_nothing_panics() {
        match super::devices() {
            Ok(found) => assert!(found.version.0 > 0 && found.devices.iter().all(|d| d.memory > 0 && d.compute.0 > 0)),
            Err(why) => assert!(why.contains("driver"), "{why}"),
        }
    }
}
