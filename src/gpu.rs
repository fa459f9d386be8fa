//! `gpu pack`: what a GPU machine needs to check and time our kernels, made on a machine without one. The other half is the binary
//! `pushforward-measure` (`runtime/src/bin`), which links no compiler.

use clap::Subcommand;
use codegen::assembler::Assembler;
use codegen::GpuTarget;
use codegen::nvptx::{self, Fitted, Schedule};
use indicatif::{ProgressBar, ProgressStyle};
use ir::dim::Bindings;
use ir::graph::Function;
use ir::tile::cost::cost;
use ir::types::DType;
use pushforward::input::{Domain, Transform, dims, domain, names};
use pushforward::machine;
use passes::fuse::{Options, SLACK};
use runtime::pack::{Case, Drawn, Expected, From, Generation, Input, Kernel, Pack};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Arguments of `gpu`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: What,
}

#[derive(Subcommand)]
enum What {
    /// Write kernels, inputs and expected results into a folder; `pushforward-measure` runs it
    #[command(after_help = "Example: pushforward gpu pack -o target/gpu && target/release/pushforward-measure target/gpu")]
    Pack {
        /// Where to
        #[arg(short, value_name = "DIR")]
        output: PathBuf,
        /// What for
        #[arg(long, default_value = "sm_90a", value_parser = ["sm_80", "sm_90a", "sm_100a"])]
        target: String,
        /// Only cases with this in their name; `A|B`: those with A, then those with B
        #[arg(long, default_value = "", value_name = "TEXT")]
        only: String,
        /// Schedules by warpgroups beside the default: warpgroups, streamed tile, stages; then `r` for operands read again as rounded, `t` for turns, `l` for products that lag, `s`
        /// for maxima that stay behind, `g` for a persistent grid, `m` for clusters that share copies, `p2` for polynomials in 2 of 16 columns: `2x96x2,3x64x2rg,2x128x2tlp2`. `1:2x96x2`: of the kernel of that
        /// index alone, gradients' too
        #[arg(long, default_value = "", value_name = "LIST")]
        schedules: String,
        /// The assembler; without it `ptxas` where one is installed. Without any, the driver compiles the text
        #[arg(long, value_name = "PATH")]
        ptxas: Option<PathBuf>,
    },
}

/// Runs it.
pub fn run(a: &Args) -> Result<(), String> {
    let What::Pack { output, target, only, ptxas, schedules } = &a.command;
    let mut list = vec![];
    for one in schedules.split(',').filter(|s| !s.is_empty()) {
        let (at, one) = match one.split_once(':') {
            Some((k, rest)) => (Some(k.parse::<usize>().map_err(|e| format!("--schedules: {one}: {e}"))?), rest),
            None => (None, one),
        };
        let (tiles, flags) = one.split_at(one.find(|c: char| c.is_ascii_lowercase() && c != 'x').unwrap_or(one.len()));
        let numbers = tiles.split('x').map(|n| n.parse().map_err(|e| format!("--schedules: {one}: {e}"))).collect::<Result<Vec<usize>, String>>()?;
        let [groups, stream, stages] = numbers[..] else { return Err(format!("--schedules: {one} is not of the form 2x96x2")) };
        let polynomial = flags.split_once('p').map_or(Ok(0), |(_, n)| n.parse()).map_err(|e| format!("--schedules: {one}: {e}"))?;
        let has = |c| flags.contains(c);
        let schedule = Schedule { rounded: has('r'), turns: has('t'), lag: has('l'), persistent: has('g'), multicast: has('m'), polynomial, ..Schedule::warpgroups(groups, 128, stream, stages) };
        list.push(Tried { at, schedule, slack: if has('s') { SLACK } else { 0.0 } });
    }
    pack(output, target, only, ptxas.as_deref(), &list)
}

/// Programs, by the name that cases call them by.
const PROGRAMS: [(&str, &str); 7] = [
    ("plain", include_str!("../examples/attention.pf")),
    ("variants", include_str!("../examples/attention_variants.pf")),
    ("norm", include_str!("../examples/norm_modulate.pf")),
    ("gelu", include_str!("../examples/gelu_linear.pf")),
    ("xent", include_str!("../examples/cross_entropy.pf")),
    ("layers", include_str!("../tests/programs/layers.pf")),
    ("exact", include_str!("../tests/programs/exact.pf")),
];

/// One case to make: a function of a program, how it is derived, in which type, at which sizes, and the flops to divide by the time.
#[derive(Clone)]
struct Plan {
    program: &'static str,
    function: &'static str,
    jvp: &'static str,
    vjp: &'static str,
    dtype: DType,
    dims: String,
    flops: Option<f64>,
    form: Form,
}

/// Which of a program's forms.
#[derive(Clone, PartialEq)]
enum Form {
    /// The default.
    Default,
    /// Matrix products of warps, where the default has those of warpgroups.
    Warps,
    /// Products of f32 matrices in tf32.
    Tf32,
    /// This one.
    Exact(Tried),
}

/// A schedule beside the default.
#[derive(Clone, PartialEq)]
struct Tried {
    /// Of this kernel alone; without it of all that have a form by warpgroups.
    at: Option<usize>,
    schedule: Schedule,
    /// How far maxima may stay behind.
    slack: f64,
}

impl Tried {
    /// Whether it stands for the default `s` of kernel `i`.
    fn replaces(&self, i: usize, s: &Schedule) -> bool {
        s.warpgroups && self.at.is_none_or(|k| k == i)
    }
}

/// Everything that is checked (small, odd sizes) and timed (large ones).
fn plans() -> Vec<Plan> {
    use DType::{BF16, F16, F32};
    let mut all = vec![];
    let mut check = |program, function, jvp, vjp, dtype, dims: &str| all.push(Plan { program, function, jvp, vjp, dtype, dims: dims.into(), flops: None, form: Form::Default });
    let qkv = "q,k,v";
    for dtype in [BF16, F16] {
        // The second type at smaller sizes: the pack is to be carried.
        let n = |n: usize| if dtype == F16 { 2 * n / 3 } else { n };
        for (d, i, j) in [(64, 100, 230), (128, 70, 115), (256, 40, 75), (12, 37, 45), (28, 37, 45), (72, 50, 77), (80, 130, 70), (96, 33, 65)] {
            let (i, j) = (n(i), n(j));
            for jvp in ["", qkv, "q"] {
                check("plain", "attention", jvp, "", dtype, &format!("B=1,H=2,I={i},J={j},D={d}"));
            }
        }
        for d in [64, 128, 256, 72] {
            check("plain", "attention", "", qkv, dtype, &format!("B=1,H=2,I={},J={},D={d}", n(70), n(115)));
        }
        for f in ["causal", "bias", "softcapped"] {
            check("variants", f, "", qkv, dtype, &format!("B=1,H=2,I={},J={},D=64,E=64", n(70), n(130)));
        }
        for f in ["causal", "window", "lengths", "bias", "softcapped", "alibi"] {
            check("variants", f, qkv, "", dtype, &format!("B=2,H=1,I={},J={},D=64,E=64", n(70), n(130)));
            check("variants", f, qkv, "", dtype, "B=2,H=2,I=130,J=70,D=32,E=40");
        }
        check("variants", "grouped", qkv, "", dtype, "B=1,H=4,G=2,I=70,J=130,D=64,E=64");
    }
    // Loops that go through their stages several times.
    for d in [64, 128] {
        for f in ["", qkv, "q"] {
            check("plain", "attention", f, "", BF16, &format!("B=1,H=2,I=200,J=1100,D={d}"));
        }
        check("variants", "causal", "", "", BF16, &format!("B=1,H=1,I=900,J=900,D={d},E={d}"));
        check("variants", "causal", qkv, "", BF16, &format!("B=1,H=1,I=600,J=600,D={d},E={d}"));
    }
    check("plain", "attention", qkv, "", F32, "B=1,H=2,I=50,J=77,D=64");
    for dtype in [BF16, F16, F32] {
        check("norm", "norm_modulate", "x,scale", "", dtype, "B=2,N=9,D=1536");
        check("gelu", "gelu_linear", "x,w", "", dtype, "M=100,K=72,N=136");
        check("xent", "cross_entropy_linear", "x", "", dtype, "M=37,K=64,V=150");
        for f in ["layernorm_1", "rmsnorm_1", "gelu_erf", "silu", "softmax_0", "rope_interleaved_0", "rope_half_1", "ffn_gelu_tanh"] {
            check("layers", f, "x", "", dtype, "A=3,B=2,N=12,D=16,H=3,J=33,E=24,F=40");
        }
    }
    for dtype in [BF16, F16, F32] {
        check("exact", "product", "", "", dtype, "M=70,K=88,N=104");
        check("exact", "product", "x,w", "", dtype, "M=130,K=320,N=72");
        check("exact", "scores", "", "", dtype, "B=1,H=2,I=100,J=150,D=64");
        check("exact", "scores", "q,k,v", "", dtype, "B=1,H=2,I=70,J=115,D=128");
        check("exact", "scores", "", "q,k,v", dtype, "B=1,H=1,I=70,J=90,D=64");
    }
    let mut time = |program, function, jvp, vjp, dims: String, flops: f64| all.push(Plan { program, function, jvp, vjp, dtype: BF16, dims, flops: Some(flops), form: Form::Default });
    // The ones that say most first: a measurement may end before the last.
    for n in [8192usize, 16384, 4096, 2048, 1024, 32768] {
        for d in [128usize, 64, 256] {
            let (b, h) = ((16384 / n).max(1), 2048 / d);
            let sizes = format!("B={b},H={h},I={n},J={n},D={d}");
            let pairs = (b * h * d) as f64 * (n * n) as f64;
            time("plain", "attention", qkv, "", sizes.clone(), 12.0 * pairs);
            time("plain", "attention", "", "", sizes.clone(), 4.0 * pairs);
            time("variants", "causal", qkv, "", format!("{sizes},E={d}"), half(b, h, n, d));
            time("variants", "causal", "", "", format!("{sizes},E={d}"), half(b, h, n, d) / 3.0);
            if n >= 8192 {
                time("plain", "attention", "", qkv, sizes.clone(), 14.0 * pairs);
                time("variants", "causal", "", qkv, format!("{sizes},E={d}"), 14.0 / 12.0 * half(b, h, n, d));
            }
            if n == 8192 {
                time("plain", "attention", "q", "", sizes.clone(), 8.0 * pairs);
                // Without k's and v's, which have a kernel of their own: what each kernel takes is a difference.
                time("plain", "attention", "", "q", sizes.clone(), 10.0 * pairs);
            }
        }
    }
    // What a library multiplies: its share is told beside it.
    time("exact", "product", "", "", "M=8192,K=8192,N=8192".into(), 2.0 * 8192f64.powi(3));
    time("gelu", "gelu_linear", "x,w", "", "M=8192,K=1536,N=8960".into(), 6.0 * 8192.0 * 1536.0 * 8960.0);
    time("norm", "norm_modulate", "x", "", "B=4,N=8192,D=1536".into(), 1.0);
    all
}

/// Flops of the JVP of causal attention: 12 d for each pair that is seen.
fn half(b: usize, h: usize, n: usize, d: usize) -> f64 {
    12.0 * (b * h * d) as f64 * (n * (n + 1) / 2) as f64
}

fn pack(output: &Path, target: &str, only: &str, ptxas: Option<&Path>, schedules: &[Tried]) -> Result<(), String> {
    let target = GpuTarget::named(target).map_err(|e| e.to_string())?;
    let assembler = match ptxas {
        Some(p) => Some(Assembler::at(p)?),
        None => Assembler::find(),
    };
    std::fs::create_dir_all(output).map_err(|e| format!("cannot make {}: {e}", output.display()))?;
    let write = |name: &str, bytes: &[u8]| std::fs::write(output.join(name), bytes).map_err(|e| format!("cannot write {}: {e}", output.join(name).display()));
    let (mut forms, mut last) = (vec![], vec![]);
    // Gradients are of several kernels: each has its own.
    let tried = |p: &Plan| schedules.iter().filter(|t| p.vjp.is_empty() || t.at.is_some()).map(|t| Plan { form: Form::Exact(t.clone()), ..p.clone() }).collect::<Vec<_>>();
    for p in plans() {
        forms.push(p.clone());
        if p.dtype == DType::F32 && p.flops.is_none() && ["plain", "gelu", "exact"].contains(&p.program) {
            forms.push(Plan { form: Form::Tf32, ..p.clone() });
        }
        // Beside warpgroups, products of warps, in the same run.
        if target.name == "sm_90a" && (p.flops.is_some() && p.dims.contains("I=8192") || p.program == "exact") {
            if p.flops.is_some() { &mut last } else { &mut forms }.push(Plan { form: Form::Warps, ..p.clone() });
        }
        if target.name == "sm_90a" {
            // Two lengths tell which is best; kernels do not depend on it.
            if p.flops.is_some() && (p.dims.contains("I=8192") || p.dims.contains("I=2048")) {
                forms.extend(tried(&p));
            }
        }
        // What is timed is checked.
        if target.name == "sm_90a" && p.flops.is_none() && p.dtype == DType::BF16 && ["plain", "variants"].contains(&p.program) {
            forms.extend(tried(&p));
        }
    }
    let named: Vec<(String, Plan)> = forms.into_iter().chain(last).map(|p| (title(&p), p)).collect();
    let mut plans: Vec<(String, Plan)> = vec![];
    for part in only.split('|') {
        for (n, p) in named.iter().filter(|(n, _)| n.contains(part)) {
            if plans.iter().all(|(m, _)| m != n) {
                plans.push((n.clone(), p.clone()));
            }
        }
    }
    let bar = ProgressBar::new(plans.len() as u64).with_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {eta} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut made = Pack { toolkit: env!("CARGO_PKG_VERSION").into(), target: target.name.clone(), ..Pack::default() };
    let mut known = Known::default();
    for (name, plan) in &plans {
        bar.set_message(name.clone());
        match case(name, plan, &target, assembler.as_ref(), &mut known, &write) {
            Ok(Some(c)) => made.cases.push(c),
            Ok(None) => {}
            Err(e) => {
                bar.suspend(|| eprintln!("refused: {name}: {e}"));
                made.refused.push(format!("{name}: {e}"));
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if only.is_empty() {
        made.generation = generation(&target, assembler.as_ref())?;
    }
    write("manifest.json", &serde_json::to_vec(&made).map_err(|e| e.to_string())?)?;
    println!("{}: {} cases, {} kernels ({} assembled), {} refused", output.display(), made.cases.len(), known.files.len(), known.files.values().flatten().count(), made.refused.len());
    Ok(())
}

/// How long the JVP of attention takes from its text to code: medians of nine, nothing cached.
fn generation(target: &GpuTarget, assembler: Option<&Assembler>) -> Result<Vec<Generation>, String> {
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let mut out = vec![];
    for d in [64i64, 128, 256] {
        let plan = Plan { program: "plain", function: "attention", jvp: "q,k,v", vjp: "", dtype: DType::BF16, dims: format!("D={d}"), flops: None, form: Form::Default };
        let (mut ptx, mut cubin) = (vec![], vec![]);
        for _ in 0..9 {
            let start = Instant::now();
            let f = derived(&plan)?;
            let fused = machine::compile_by(&f, &machine::gpu(&dims(&[plan.dims.clone()])?, plan.dtype))?;
            let texts = fused.programs.iter().map(|p| nvptx::compile_default(p, target, false).map(|k| k.ptx)).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
            ptx.push(start.elapsed().as_secs_f64());
            if let Some(a) = assembler {
                for t in &texts {
                    a.assemble(t, &target.name)?;
                }
                cubin.push(start.elapsed().as_secs_f64());
            }
        }
        let made = Generation { name: format!("JVP of attention, d {d}, bf16, {}", target.name), ptx: median(ptx), cubin: if cubin.is_empty() { None } else { Some(median(cubin)) } };
        println!("{}: text to PTX {:.0} ms{}", made.name, made.ptx * 1e3, made.cubin.map_or(String::new(), |c| format!(", text to cubin {:.0} ms", c * 1e3)));
        out.push(made);
    }
    Ok(out)
}

/// What was compiled before.
#[derive(Default)]
struct Known {
    /// By program and schedule, both as text: one kernel serves every length.
    kernels: BTreeMap<(String, String), (String, nvptx::Compiled)>,
    /// Assembled files by the stem of their text's.
    files: BTreeMap<String, Option<String>>,
    /// Stems of kernels that spill, or whose products the assembler serialises.
    bad: BTreeSet<String>,
}

fn title(p: &Plan) -> String {
    let along = |what: &str, names: &str| if names.is_empty() { String::new() } else { format!(" {what} {names}") };
    let form = match &p.form {
        Form::Default => String::new(),
        Form::Warps => " by warps".into(),
        Form::Tf32 => " in tf32".into(),
        Form::Exact(Tried { at, schedule: s, slack }) => {
            let at = at.map_or(String::new(), |k| format!("{k}: "));
            format!(" by {at}{} x {} x {}{}{}", s.rows / 64, s.stream, s.stages, s.flags(), if *slack > 0.0 { " slack" } else { "" })
        }
    };
    format!("{}{}{}{} {} {}{form}", if p.flops.is_some() { "time " } else { "" }, p.function, along("jvp", p.jvp), along("vjp", p.vjp), p.dtype, p.dims)
}

type Write<'a> = &'a dyn Fn(&str, &[u8]) -> Result<(), String>;

fn case(name: &str, plan: &Plan, target: &GpuTarget, assembler: Option<&Assembler>, known: &mut Known, write: Write) -> Result<Option<Case>, String> {
    let asked = GpuTarget { tf32: plan.form == Form::Tf32, ..target.clone() };
    let target = &asked;
    let f = derived(plan)?;
    let dims: Bindings = dims(&[plan.dims.clone()])?.into_iter().filter(|(n, _)| f.dims().contains(n)).collect();
    // Kernels of attention are compiled without knowing its lengths: one serves all of them.
    let known_sizes: Bindings = dims.iter().filter(|(n, _)| !(dims.contains_key("I") && ["I", "J"].contains(&&***n))).map(|(n, k)| (n.clone(), *k)).collect();
    let slack = if let Form::Exact(t) = &plan.form { t.slack } else { 0.0 };
    let fused = machine::compile_by(&f, &Options { slack, ..machine::gpu(&known_sizes, plan.dtype) })?;
    let (mut kernels, mut compiled, mut bytes, mut exact) = (vec![], vec![], 0.0, true);
    let error = |e: codegen::Error| e.to_string();
    // Sizes of attention's sequences are no strides; others are known.
    let schedules = fused.programs.iter().map(|p| nvptx::default_schedule_at(p, target, &dims)).collect::<Result<Vec<_>, _>>().map_err(error)?;
    let other = |(i, s): (usize, &Schedule)| match &plan.form {
        Form::Default | Form::Tf32 => true,
        Form::Warps => s.warpgroups,
        Form::Exact(t) => t.replaces(i, s),
    };
    if !schedules.iter().enumerate().any(other) {
        return Ok(None);
    }
    for (i, (p, s)) in fused.programs.iter().zip(schedules).enumerate() {
        let s = match &plan.form {
            Form::Default | Form::Tf32 => s,
            Form::Warps => nvptx::default_by_warps(p, target).map_err(error)?,
            Form::Exact(t) if t.replaces(i, &s) => Schedule { aligned: s.aligned, ..t.schedule.clone() },
            Form::Exact(_) => s,
        };
        // A default may give way to another schedule; one that is asked for does not.
        let default = matches!(plan.form, Form::Default | Form::Tf32);
        let key = (p.to_string(), format!("{s:?}{}", if default { ", or the next" } else { "" }));
        if !known.kernels.contains_key(&key) {
            let made = nvptx::compile(p, target, &s).and_then(|k| if default { nvptx::fitting(p, target, &dims, assembler, false, k) } else { Ok(Fitted::new(k, target, assembler)) });
            let Fitted { kernel: k, assembled } = match made {
                Ok(made) => made,
                // One that does not fit is none to try.
                Err(codegen::Error::Gpu(_)) if matches!(plan.form, Form::Exact(..)) => return Ok(None),
                Err(e) => return Err(e.to_string()),
            };
            let stem: String = Sha256::digest(&k.ptx).iter().take(8).map(|b| format!("{b:02x}")).collect();
            if !known.files.contains_key(&stem) {
                write(&format!("{stem}.ptx"), k.ptx.as_bytes())?;
                let cubin = match assembled.transpose()? {
                    Some(made) => {
                        write(&format!("{stem}.cubin"), &made.cubin)?;
                        if !made.fits() {
                            eprintln!("note: {name}: {}", made.said.lines().filter(|l| l.contains("spill") || l.contains("C75")).collect::<Vec<_>>().join("; ").trim());
                            known.bad.insert(stem.clone());
                        }
                        Some(format!("{stem}.cubin"))
                    }
                    None => None,
                };
                known.files.insert(stem.clone(), cubin);
            }
            known.kernels.insert(key.clone(), (stem, k));
        }
        let (stem, k) = known.kernels[&key].clone();
        exact &= !k.ptx.contains(".approx");
        bytes += cost(p, &dims).map_err(|e| e.to_string())?.bytes() as f64;
        if matches!(plan.form, Form::Exact(..)) && known.bad.contains(&stem) {
            return Ok(None);
        }
        kernels.push(Kernel { ptx: format!("{stem}.ptx"), cubin: known.files[&stem].clone(), signature: k.signature.clone() });
        compiled.push((p.name.clone(), k));
    }
    let (mut inputs, mut expected, mut tensors) = (vec![], vec![], vec![]);
    let stem: String = Sha256::digest(name).iter().take(8).map(|b| format!("{b:02x}")).collect();
    for (i, p) in f.params.iter().enumerate() {
        let ty = f.ty(p.var);
        let shape = ty.sizes(&dims).map_err(|e| e.to_string())?;
        let dtype = if ty.dtype.is_float() { plan.dtype } else { ty.dtype };
        let from = match domain(&f, p.var) {
            Domain::Anything if ty.dtype.is_float() => From::Normal,
            Domain::Anything => From::Below(2),
            Domain::Interval(low, high) => From::Interval(low, high),
            Domain::Below(n) => From::Below(n.eval(&dims).map_err(|e| e.to_string())?.max(0) as u64),
        };
        let drawn = Drawn { seed: (i as u64 + 1) << 32, from };
        if plan.flops.is_none() {
            tensors.push(drawn.tensor(dtype, &shape).map_err(|e| e.to_string())?);
        }
        inputs.push(Input { name: p.name.clone(), dtype, shape, drawn });
    }
    if plan.flops.is_none() {
        let bound = match plan.dtype {
            DType::BF16 => 5e-3,
            DType::F16 => 6e-4,
            _ if target.tf32 => 2e-3,
            _ => 2e-5,
        };
        // Where nothing is approximate, a device gives the bits of the PTX machine, which runs the same kernels.
        let mut launch = |p: &ir::tile::Program, d: &Bindings, x: &[ir::tensor::Tensor]| match compiled.iter().find(|(name, _)| *name == p.name) {
            Some((_, k)) => machine::in_sim(k, d, x),
            None => Err(ir::diagnostic::Error::new(format!("{} is not in the pack", p.name))),
        };
        let same = if exact { Some(machine::sequence(&f, &Options { slack, ..machine::gpu(&known_sizes, plan.dtype) })?.run(&tensors, &dims, &mut launch).map_err(|e| e.to_string())?) } else { None };
        for (i, (r, t)) in f.results.iter().zip(ir::reference::evaluate(&f, &tensors, &dims).map_err(|e| e.to_string())?).enumerate() {
            let file = format!("{stem}.{}.want", r.name);
            write(&file, &t.convert(DType::F32).to_bytes())?;
            let exact = match &same {
                Some(out) => {
                    let file = format!("{stem}.{}.sim", r.name);
                    write(&file, &out[i].to_bytes())?;
                    Some(file)
                }
                None => None,
            };
            expected.push(Expected { name: r.name.clone(), shape: t.shape().to_vec(), file, bound, exact });
        }
    }
    Ok(Some(Case { name: name.into(), dims, kernels, inputs, expected, flops: plan.flops, bytes }))
}

fn derived(p: &Plan) -> Result<Function, String> {
    let text = PROGRAMS.iter().find(|(n, _)| *n == p.program).map_or("", |(_, t)| t);
    let module = ir::text::parse(text).map_err(|e| format!("{e:?}"))?;
    let mut f = module.function(Some(p.function))?.clone();
    for (wrt, transform) in [(p.jvp, Transform::Jvp as fn(_) -> _), (p.vjp, Transform::Vjp)] {
        if !wrt.is_empty() {
            f = transform(names(wrt)).apply(&f)?;
        }
    }
    Ok(f)
}
