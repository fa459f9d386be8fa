//! Which of a plan's kernels a library's routine takes the place of: those that are plain products, where the routine is faster on this device at these sizes. Both are timed once, and the times are
//! kept in the cache folder.

use super::library::Routine;
use super::{Gpu, Kernel};
use crate::cache::{Cache, key};
use crate::libraries::Libraries;
use ir::diagnostic::Error;
use ir::dim::Bindings;
use ir::tile::Program;
use ir::tile::product::{Product, product};
use ir::types::DType;
use serde::{Deserialize, Serialize};
use std::rc::Rc;

/// A routine must take less than this share of the kernel's time: timing may be off by the rest.
const WINS: f64 = 0.97;

/// Seconds of a launch.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Times {
    /// Of the generated kernel.
    pub kernel: f64,
    /// Of the library's routine.
    pub routine: f64,
}

/// What was decided about a kernel that is a plain product.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Its position in the plan.
    pub kernel: usize,
    /// What both took, where that was measured.
    pub times: Option<Times>,
    /// The routine, where it takes the kernel's place.
    pub routine: Option<Rc<Routine>>,
    /// Why there is no routine for it, where there is none.
    pub refused: Option<String>,
    /// Why there is no library, where there is none.
    pub missing: Option<String>,
}

impl Choice {
    /// What runs, and both times: `cuBLASLt, 1.20 ms beside 1.40`.
    pub fn words(&self) -> String {
        let times = self.times.map(|t| if self.routine.is_some() { (t.routine, t.kernel) } else { (t.kernel, t.routine) });
        let beside = times.map_or(String::new(), |(own, other)| format!(", {:.3} ms beside {:.3}", own * 1e3, other * 1e3));
        match (&self.routine, &self.refused) {
            (Some(_), _) => format!("cuBLASLt{beside}"),
            (None, Some(why)) => format!("generated; {why}"),
            (None, None) if self.missing.is_some() => String::new(),
            (None, None) => format!("generated{beside}"),
        }
    }
}

/// Decides for the kernels of `programs`, which were compiled by `compiler` and loaded.
///
/// # Errors
/// The driver's. That there is no library is none: why stands in [`Choice::missing`].
pub fn choose(gpu: &Gpu, how: Libraries, programs: &[Program], kernels: &[Rc<Kernel>], dims: &Bindings, compiler: &str, cache: &Cache) -> Result<Vec<Choice>, Error> {
    let mut out = vec![];
    if how == Libraries::Never {
        return Ok(out);
    }
    for (i, (p, kernel)) in programs.iter().zip(kernels).enumerate() {
        let Ok(plain) = product(p, dims) else { continue };
        let dtypes: Vec<DType> = p.buffers.iter().map(|b| b.dtype).collect();
        let nothing = Choice { kernel: i, times: None, routine: None, refused: None, missing: None };
        let library = match gpu.library() {
            Ok(l) => l,
            Err(why) => {
                out.push(Choice { missing: Some(why), ..nothing });
                continue;
            }
        };
        out.push(match Routine::new(&library, &plain, &dtypes).map(Rc::new) {
            Err(why) => Choice { refused: Some(why.to_string()), ..nothing },
            Ok(r) if how == Libraries::Always => Choice { routine: Some(r), ..nothing },
            Ok(r) => {
                let sizes: Vec<String> = dims.iter().map(|(n, v)| format!("{n}={v}")).collect();
                let key = key(p, &format!("{} {} {compiler} {}", gpu.name(), library.version(), sizes.join(",")));
                let times = kept(cache, &key, || measured(gpu, kernel, &r, &plain, p, dims))?;
                Choice { times: Some(times), routine: (times.routine < WINS * times.kernel).then_some(r), ..nothing }
            }
        });
    }
    Ok(out)
}

/// What the cache folder has, else what is measured, which it then has. A file that does not parse is measured again.
fn kept(cache: &Cache, key: &str, measure: impl FnOnce() -> Result<Times, Error>) -> Result<Times, Error> {
    let path = cache.folder().map(|f| f.join("library").join(format!("{key}.json")));
    let known = path.as_ref().and_then(|p| std::fs::read(p).ok()).and_then(|text| serde_json::from_slice(&text).ok());
    if let Some(times) = known {
        return Ok(times);
    }
    let times = measure()?;
    if let (Some(path), Ok(text)) = (path, serde_json::to_vec(&times)) {
        let part = path.with_extension(format!("part{}", std::process::id()));
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
            std::fs::write(&part, text)?;
            std::fs::rename(&part, &path)
        };
        // What cannot be kept is measured again the next time.
        if let Err(e) = write() {
            eprintln!("note: cannot write {}: {e}", path.display());
        }
    }
    Ok(times)
}

/// Both on random numbers in the work space: zeros, and what is no number, take less power and so less time.
fn measured(gpu: &Gpu, kernel: &Kernel, routine: &Routine, plain: &Product, p: &Program, dims: &Bindings) -> Result<Times, Error> {
    let mut ends = vec![];
    for b in &p.buffers {
        let n = b.sizes(dims).map_err(|e| Error::new(format!("buffer `{}`: {e}", b.name)))?.iter().product::<usize>() * b.dtype.bytes();
        ends.push(ends.last().copied().unwrap_or(0usize) + n.next_multiple_of(256));
    }
    let starts: Vec<usize> = std::iter::once(0).chain(ends.iter().copied()).collect();
    let (_, space) = gpu.workspace(ends.last().copied().unwrap_or(0))?;
    for (b, [from, to]) in p.buffers.iter().zip(starts.windows(2).map(|w| [w[0], w[1]])) {
        space.fill_randomly(from, to - from, b.dtype)?;
    }
    let parts: Vec<_> = starts[..p.buffers.len()].iter().map(|at| space.behind(*at)).collect();
    let stream = std::ptr::null_mut();
    let median = |launch: &dyn Fn() -> Result<(), Error>| -> Result<f64, Error> {
        let once = gpu.time(launch)?;
        for _ in 0..((0.01 / once.max(1e-6)) as usize).clamp(2, 50) {
            launch()?;
        }
        let mut times = (0..9).map(|_| gpu.time(launch)).collect::<Result<Vec<f64>, _>>()?;
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    };
    debug_assert_eq!(plain, routine.product());
    Ok(Times { kernel: median(&|| kernel.launch_on(stream, &parts, dims))?, routine: median(&|| routine.launch_on(stream, &parts))? })
}
