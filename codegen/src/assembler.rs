//! NVIDIA's assembler and disassembler, where they are installed: PTX to machine code, and what that is made of. Optional; a driver compiles
//! PTX itself, and nothing here is linked.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// The directory of `ptxas`, and of `nvdisasm` where that is there too.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assembler {
    folder: PathBuf,
}

/// Machine code, and what the assembler says of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assembled {
    /// An ELF image for one architecture.
    pub cubin: Vec<u8>,
    /// Registers of a thread.
    pub registers: usize,
    /// Bytes per thread that are stored to and loaded from local memory because registers ran out.
    pub spills: [usize; 2],
    /// Bytes of local memory of a thread.
    pub stack: usize,
    /// The assembler's own words.
    pub said: String,
}

impl Assembled {
    /// Whether a thread's registers suffice, and no product of warpgroups waits for another (`ptxas` says C75xx).
    pub fn fits(&self) -> bool {
        self.spills == [0, 0] && !self.said.contains("C75")
    }
}

impl Assembler {
    /// `CUDA_BIN`, else what `./dev ptxas` installs beside the sources or below the working directory, else `PATH`, else `/usr/local/cuda/bin`.
    pub fn find() -> Option<Assembler> {
        let here = |folder: PathBuf| folder.join("ptxas").is_file().then_some(Assembler { folder });
        if let Some(folder) = std::env::var_os("CUDA_BIN") {
            return here(folder.into());
        }
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(|p| p.join("target/ptxas/bin"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        sources.into_iter().chain(["target/ptxas/bin".into()]).chain(std::env::split_paths(&path)).chain(["/usr/local/cuda/bin".into()]).find_map(here)
    }
    /// The assembler at `ptxas`.
    ///
    /// # Errors
    /// There is no file.
    pub fn at(ptxas: &Path) -> Result<Assembler, String> {
        if !ptxas.is_file() {
            return Err(format!("no assembler at {}", ptxas.display()));
        }
        Ok(Assembler { folder: ptxas.parent().unwrap_or(Path::new(".")).to_path_buf() })
    }
    fn run(&self, tool: &str, args: &[&OsStr]) -> Result<String, String> {
        let out = Command::new(self.folder.join(tool)).args(args).output().map_err(|e| format!("{tool}: {e}"))?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        if out.status.success() { Ok(said) } else { Err(format!("{tool}: {}", said.trim())) }
    }
    /// The toolkit's release: `13.5`.
    ///
    /// # Errors
    /// The tool does not run.
    pub fn version(&self) -> Result<String, String> {
        let said = self.run("ptxas", &["--version".as_ref()])?;
        Ok(said.split("release ").nth(1).and_then(|s| s.split(',').next()).unwrap_or("unknown").to_string())
    }
    /// Assembles the module `ptx` for an architecture.
    ///
    /// # Errors
    /// What the assembler says.
    pub fn assemble(&self, ptx: &str, target: &str) -> Result<Assembled, String> {
        let folder = Scratch::new()?;
        let (from, to) = (folder.0.join("k.ptx"), folder.0.join("k.cubin"));
        std::fs::write(&from, ptx).map_err(|e| format!("cannot write {}: {e}", from.display()))?;
        let arch = format!("-arch={target}");
        let said = self.run("ptxas", &[arch.as_ref(), "-v".as_ref(), from.as_ref(), "-o".as_ref(), to.as_ref()])?;
        let cubin = std::fs::read(&to).map_err(|e| format!("cannot read {}: {e}", to.display()))?;
        // `1 bytes stack frame, 2 bytes spill stores, 3 bytes spill loads`; `Used 4 registers`.
        let before = |what: &str| -> usize {
            let numbers = said.match_indices(what).filter_map(|(i, _)| said[..i].split(|c: char| c.is_whitespace() || c == ',').rfind(|w| !w.is_empty())?.parse().ok());
            numbers.max().unwrap_or(0)
        };
        let (registers, spills, stack) = (before(" registers"), [before(" bytes spill stores"), before(" bytes spill loads")], before(" bytes stack frame"));
        Ok(Assembled { cubin, registers, spills, stack, said })
    }
    /// The text of machine code, as `nvdisasm` writes it.
    ///
    /// # Errors
    /// The tool is not there, or what it says.
    pub fn disassemble(&self, cubin: &[u8]) -> Result<String, String> {
        let folder = Scratch::new()?;
        let from = folder.0.join("k.cubin");
        std::fs::write(&from, cubin).map_err(|e| format!("cannot write {}: {e}", from.display()))?;
        self.run("nvdisasm", &["-c".as_ref(), from.as_ref()])
    }
}

/// A folder that is gone afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let folder = std::env::temp_dir().join(format!("pushforward-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(&folder).map_err(|e| format!("cannot make {}: {e}", folder.display()))?;
        Ok(Scratch(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
