//! `compile`: block programs to objects, or to PTX and, where an assembler is installed, cubins; a manifest that says how to launch them, and for
//! GPUs a header for C.

use ir::tile::Program;
use ir::types::DType;
use pushforward::input::{Loaded, Source, dims, dims_of};
use codegen::assembler::Assembler;
use pushforward::header;
use pushforward::pipeline::{self, Stage};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::PathBuf;

/// Arguments of `compile`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// What for: `cpu` is this machine; a CPU by name, `skylake-avx512`, `znver3`, `x86-64-v3`; or a GPU, `sm_80`, `sm_90a`, `sm_100a`
    #[arg(long, default_value = "cpu")]
    target: String,
    /// What float parameters are stored in
    #[arg(long, default_value = "f32", value_parser = ["f64", "f32", "bf16", "f16"])]
    dtype: String,
    /// Products of f32 matrices on a GPU: exact, or on tensor cores with operands rounded to tf32
    #[arg(long, default_value = "exact", value_parser = ["exact", "tf32"])]
    math: String,
    /// Sizes; axes that stand in tiles whole need them, all others stay arguments of the kernel
    #[arg(long, value_name = "NAME=N")]
    dim: Vec<String>,
    /// Where to
    #[arg(short, value_name = "DIR")]
    output: PathBuf,
    /// Also write every stage's text: `all`
    #[arg(long, value_parser = ["all"])]
    dump: Option<String>,
}

/// What for.
enum Target {
    Cpu(codegen::Target),
    Gpu(codegen::GpuTarget),
}

/// Runs it.
pub fn run(a: &Args) -> Result<(), String> {
    let loaded = a.source.load_any()?;
    let sizes = dims(&a.dim)?;
    if a.math == "tf32" && !(a.target.starts_with("sm_") && a.dtype == "f32") {
        return Err(format!("compile: --math tf32 is for products of f32 on a GPU, not for --dtype {} and --target {}", a.dtype, a.target));
    }
    let target = match a.target.as_str() {
        gpu if gpu.starts_with("sm_") => codegen::GpuTarget::named(gpu).map(|t| Target::Gpu(codegen::GpuTarget { tf32: a.math == "tf32", ..t })),
        "cpu" => codegen::Target::host().map(Target::Cpu),
        cpu => codegen::Target::named(cpu).map(Target::Cpu),
    }
    .map_err(|e| e.to_string())?;
    std::fs::create_dir_all(&a.output).map_err(|e| format!("cannot make {}: {e}", a.output.display()))?;
    let write = |name: String, bytes: &[u8]| -> Result<(), String> {
        let path = a.output.join(name);
        std::fs::write(&path, bytes).map_err(|e| format!("cannot write {}: {e}", path.display()))
    };
    let (name, programs, notes): (String, Vec<Program>, Vec<String>) = match loaded {
        Loaded::Programs(p) => (p.iter().map(|p| &*p.name).collect::<Vec<_>>().join("+"), p, vec![]),
        Loaded::Function(f) => {
            let (dims, dtype) = (dims_of(&[&f], &a.dim)?, DType::parse(&a.dtype).unwrap_or(DType::F32));
            let options = match &target {
                Target::Cpu(_) => passes::fuse::Options::cpu(&dims, dtype),
                Target::Gpu(_) => pushforward::machine::gpu(&dims, dtype),
            };
            let mut stage = Stage::Function(f.clone());
            if a.dump.is_some() {
                write("01-source.pf".into(), ir::text::print_function(&pushforward::input::parse(&a.source.file, a.source.function.as_deref())?).as_bytes())?;
                write("02-jvp.pf".into(), ir::text::print_function(&f).as_bytes())?;
            }
            for step in pipeline::parse(&pipeline::MACHINE.map(String::from))? {
                stage = pipeline::run(stage, &[step], &options, false)?.stage;
                if let (Some(_), Stage::Function(f)) = (&a.dump, &stage) {
                    write("03-simplify.pf".into(), ir::text::print_function(f).as_bytes())?;
                }
            }
            let Stage::Programs(fused) = stage else { return Err("the pipeline ends before block programs".into()) };
            (f.name.to_string(), fused.programs, fused.notes)
        }
    };
    let assembler = Assembler::find();
    if matches!(target, Target::Gpu(_)) && assembler.is_none() {
        println!("no ptxas (`./dev ptxas` installs it): PTX only, which the driver compiles");
    }
    // Asked beside the work: a process of its own.
    let mut version = assembler.clone().map(|a| std::thread::spawn(move || a.version()));
    let mut release = None;
    let (mut kernels, mut signatures) = (vec![], vec![]);
    for p in &programs {
        if a.dump.is_some() {
            // The first for people, the second for `compile`, `explain` and `opt` to go on from.
            write(format!("04-{}.tile", p.name), p.to_string().as_bytes())?;
            write(format!("04-{}.tile.json", p.name), serde_json::to_string_pretty(p).map_err(|e| e.to_string())?.as_bytes())?;
        }
        let later = |mlir: &str, llvm: Option<String>| -> Result<(), String> {
            if a.dump.is_none() {
                return Ok(());
            }
            write(format!("05-{}.mlir", p.name), mlir.as_bytes())?;
            write(format!("06-{}.ll", p.name), llvm.unwrap_or_default().as_bytes())
        };
        kernels.push(match &target {
            Target::Gpu(t) => {
                let codegen::nvptx::Fitted { kernel: k, assembled } = codegen::nvptx::compile_fitting(p, t, &sizes, assembler.as_ref(), a.dump.is_some()).map_err(|e| e.to_string())?;
                write(format!("{}.ptx", p.name), k.ptx.as_bytes())?;
                later(&k.mlir, k.llvm)?;
                if a.dump.is_some() {
                    write(format!("07-{}.ptx", p.name), k.ptx.as_bytes())?;
                }
                let mut entry = header::manifest(&k.signature);
                let mut set = |key: &str, value: serde_json::Value| entry[key] = value;
                set("ptx", json!(format!("{}.ptx", p.name)));
                set("ptx_sha256", json!(hash(k.ptx.as_bytes())));
                set("target", json!(t.name));
                let mut line = format!("{}.ptx  {} lines; {} threads, {} bytes of shared memory a block", p.name, k.ptx.lines().count(), k.signature.block, k.signature.shared_bytes);
                if let (Some(assembler), Some(made)) = (&assembler, assembled.transpose()?) {
                    write(format!("{}.cubin", p.name), &made.cubin)?;
                    set("cubin", json!(format!("{}.cubin", p.name)));
                    set("cubin_sha256", json!(hash(&made.cubin)));
                    set("registers", json!(made.registers));
                    set("spill_bytes", json!(made.spills));
                    if let Some(v) = version.take() {
                        release = Some(v.join().map_err(|_| "asking ptxas for its version failed".to_string())??);
                    }
                    set("assembler", json!(release));
                    line += &format!("; {} registers, {} bytes spilled", made.registers, made.spills[0] + made.spills[1]);
                    if a.dump.is_some() {
                        match assembler.disassemble(&made.cubin) {
                            Ok(text) => write(format!("08-{}.sass", p.name), text.as_bytes())?,
                            Err(e) => println!("no SASS: {e}"),
                        }
                    }
                }
                println!("{line}");
                signatures.push(k.signature);
                entry
            }
            Target::Cpu(t) => {
                let c = codegen::compile_with(p, t, a.dump.is_some()).map_err(|e| e.to_string())?;
                write(format!("{}.o", p.name), &c.artifact.code)?;
                later(&c.dumps.mlir, c.dumps.llvm)?;
                if a.dump.is_some() {
                    write(format!("07-{}.s", p.name), c.dumps.assembly.unwrap_or_default().as_bytes())?;
                }
                let ms = |d: std::time::Duration| d.as_secs_f64() * 1e3;
                let t = c.timings;
                println!("{}.o  {} bytes in {:.0} ms (planning and text {:.0}, MLIR {:.0}, LLVM {:.0})", p.name, c.artifact.code.len(), ms(t.emit + t.mlir + t.llvm), ms(t.emit), ms(t.mlir), ms(t.llvm));
                json!({"object": format!("{}.o", p.name), "signature": c.artifact.signature, "target": c.artifact.target})
            }
        });
    }
    if !signatures.is_empty() {
        let file = format!("{}.h", name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect::<String>());
        write(file, header::header(&name, &signatures).as_bytes())?;
    }
    let manifest = json!({"toolkit": env!("CARGO_PKG_VERSION"), "function": name, "kernels": kernels, "notes": notes});
    write("manifest.json".into(), serde_json::to_string_pretty(&manifest).map_err(|e| e.to_string())?.as_bytes())
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
