//! Facts about targets: vector length, registers, caches, the micro-tile of dots, and names for LLVM.

use crate::Error;
use inkwell::targets::TargetMachine;

/// A CPU with vector units.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// LLVM's triple.
    pub triple: String,
    /// LLVM's name of the processor.
    pub cpu: String,
    /// LLVM's features, `+avx2,+fma,…`; empty for those of `cpu`.
    pub features: String,
    /// Bytes of a vector register.
    pub vector_bytes: usize,
    /// Number of vector registers.
    pub registers: usize,
    /// Bytes of the first-level data cache.
    pub l1: usize,
    /// Bytes of the second-level cache.
    pub l2: usize,
    /// Bytes of the last-level cache. What a kernel writes beyond that goes past the caches.
    pub llc: usize,
    /// The accumulator tile of dots: rows, and vectors side by side.
    pub micro: Micro,
}

/// Rows × vectors of the accumulator tile of a dot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Micro {
    /// Rows.
    pub rows: usize,
    /// Vectors side by side.
    pub vectors: usize,
}

impl Target {
    /// The machine this runs on.
    ///
    /// # Errors
    /// No 256-bit vectors with fused multiply-add.
    pub fn host() -> Result<Target, Error> {
        let text = |s: inkwell::support::LLVMString| s.to_string_lossy().into_owned();
        let (cpu, features) = (text(TargetMachine::get_host_cpu_name()), text(TargetMachine::get_host_cpu_features()));
        let has = |f: &str| features.split(',').any(|x| x == f);
        if !(has("+avx2") && has("+fma") && has("+f16c")) {
            return Err(Error::Target(format!("this machine ({cpu}) lacks AVX2, FMA or F16C; what it has: {features}")));
        }
        let mut t = if has("+avx512f") && has("+avx512bw") && has("+avx512dq") && has("+avx512vl") { Target::avx512(&cpu) } else { Target::avx2(&cpu) };
        t.features = features;
        if let Some(n) = cache_bytes(0) {
            t.l1 = n;
        }
        if let Some(n) = cache_bytes(2) {
            t.l2 = n;
        }
        if let Some(n) = cache_bytes(3) {
            t.llc = n;
        }
        Ok(t)
    }

    /// A target by LLVM's name of the processor.
    ///
    /// # Errors
    /// The name is not known here.
    pub fn named(name: &str) -> Result<Target, Error> {
        match name {
            "host" => Target::host(),
            "x86-64-v3" | "haswell" | "skylake" | "znver1" | "znver2" | "znver3" => Ok(Target::avx2(name)),
            "x86-64-v4" | "skylake-avx512" | "icelake-server" | "sapphirerapids" | "znver4" | "znver5" => Ok(Target::avx512(name)),
            _ => Err(Error::Target(format!(
                "`{name}` is not a known CPU target; known are host, x86-64-v3, haswell, skylake, znver1 to znver5, x86-64-v4, skylake-avx512, icelake-server, sapphirerapids"
            ))),
        }
    }

    fn avx2(cpu: &str) -> Target {
        Target {
            triple: "x86_64-unknown-linux-gnu".into(),
            cpu: cpu.into(),
            features: String::new(),
            vector_bytes: 32,
            registers: 16,
            l1: 32 << 10,
            l2: 512 << 10,
            llc: 16 << 20,
            micro: Micro { rows: 4, vectors: 3 },
        }
    }
    fn avx512(cpu: &str) -> Target {
        Target { vector_bytes: 64, registers: 32, l2: 1 << 20, llc: 32 << 20, micro: Micro { rows: 8, vectors: 3 }, ..Target::avx2(cpu) }
    }

    /// For [`ir::artifact::Artifact::target`]: processor and what decides the code.
    pub fn name(&self) -> String {
        format!("cpu:{}+{}", self.cpu, if self.vector_bytes == 64 { "avx512" } else { "avx2" })
    }
}

/// Bytes of cache `index` of the first processor, as Linux says.
fn cache_bytes(index: usize) -> Option<usize> {
    let s = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size")).ok()?;
    let s = s.trim();
    let (digits, unit) = s.split_at(s.len().checked_sub(1)?);
    match unit {
        "K" => digits.parse::<usize>().ok().map(|n| n << 10),
        "M" => digits.parse::<usize>().ok().map(|n| n << 20),
        _ => s.parse().ok(),
    }
}

/// Facts about a GPU architecture that schedules are checked against.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GpuTarget {
    /// Architecture as `ptxas` names it: `sm_90a`.
    pub name: String,
    /// The PTX version that LLVM writes, as its feature: `+ptx80`.
    pub features: String,
    /// Bytes of shared memory that one block may ask for.
    pub shared_per_block: usize,
    /// Bytes of shared memory of a multiprocessor.
    pub shared_per_sm: usize,
    /// 32-bit registers of a multiprocessor.
    pub registers_per_sm: usize,
    /// The most registers of one thread.
    pub registers_per_thread: usize,
    /// The most threads of a block.
    pub threads_per_block: usize,
    /// Whether products of f32 matrices may round their operands to tf32. Nothing but being asked for it sets this.
    pub tf32: bool,
}

impl GpuTarget {
    /// A target by `ptxas`' name of the architecture; `sm_90a+tf32` may use tf32 ([`GpuTarget::tf32`]).
    ///
    /// # Errors
    /// The name is not known here.
    pub fn named(name: &str) -> Result<GpuTarget, Error> {
        // CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; a block gives 1 KB to the system.
        let (name, tf32) = name.strip_suffix("+tf32").map_or((name, false), |n| (n, true));
        let (features, shared_per_block, shared_per_sm) = match name {
            "sm_80" => ("+ptx80", 163 << 10, 164 << 10),
            "sm_90a" => ("+ptx80", 227 << 10, 228 << 10),
            "sm_100a" => ("+ptx88", 227 << 10, 228 << 10),
            _ => return Err(Error::Target(format!("`{name}` is not a known GPU target; known are sm_80, sm_90a, sm_100a"))),
        };
        Ok(GpuTarget {
            name: name.into(),
            features: features.into(),
            shared_per_block,
            shared_per_sm,
            registers_per_sm: 65536,
            registers_per_thread: 255,
            threads_per_block: 1024,
            tf32,
        })
    }
}
