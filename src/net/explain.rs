//! What a network costs, from its configuration alone: nothing is read but the weights' headers, nothing allocated.

use super::{Args, configuration, dims};
use ir::dim::Bindings;
use ir::graph::Function;
use ir::types::DType;
use passes::fuse::Options;
use pushforward::input::Transform;
use pushforward::machine;
use runtime::cache::Cache;
use runtime::plan::Plan;
use serde_json::json;
use trainer::net::checkpoint::Checkpoint;
use std::time::Instant;
use trainer::net::cost::{Cost, cost};
use trainer::net::{Config, Network, Precision, Resize, Variant};

/// Sizes that networks are known for: what they are called, and T, H, W of the latent.
const WAN: [(&str, [i64; 3]); 2] = [("832x480, 81 frames", [21, 60, 104]), ("1280x720, 81 frames", [21, 90, 160])];
const COSMOS: [(&str, [i64; 3]); 4] =
    [("1024x1024 image", [1, 128, 128]), ("1360x768 image", [1, 96, 170]), ("768x432, 93 frames", [24, 54, 96]), ("1280x704, 93 frames", [24, 88, 160])];
/// Tokens of a text.
const TEXT: i64 = 512;

/// Runs it.
pub fn run(a: &Args, weights: Result<Checkpoint, String>) -> Result<(), String> {
    let config = configuration(a, weights.as_ref().ok())?;
    let variant = match &config {
        Config::Wan(c) => Variant { image: c.image_dim.is_some(), image_tokens: c.image_dim.map(|_| c.pos_embed_seq_len.map_or(257, |n| n / 2)), text: c.image_dim.map(|_| TEXT), ..Variant::default() },
        Config::Cosmos(c) => Variant { condition_mask: c.in_channels > c.out_channels, padding_mask: c.concat_padding_mask.then_some(Resize::Same), fps: a.fps, ..Variant::default() },
        Config::Dit(_) => Variant::default(),
    };
    let n = Network::build(&config, &Variant { qk_eps: a.qk_eps, ..variant }, Precision::F32).map_err(|e| e.to_string())?;
    let names = weights.as_ref().map_or(Ok(vec![]), |w| w.match_to(&n.weights))?;
    let own = names.iter().map(String::as_str).zip(n.weights.iter().map(|w| &w.name)).collect();
    let default = [Transform::Jvp(["hidden_states", "timestep"].map(Into::into).to_vec())];
    let jvp = derive(&n, &default)?;
    let (said, asked) = if a.transforms.0.is_empty() { (&default[..], default.to_vec()) } else { (&a.transforms.0[..], super::transforms(&a.transforms, &n, &own)?) };
    let one = |t: &Transform| match t {
        Transform::Jvp(list) => format!("jvp {}", list.join(",")),
        Transform::Vjp(list) => format!("vjp {}", list.join(",")),
    };
    let label = said.iter().map(one).collect::<Vec<_>>().join(", ");
    let derived = if a.transforms.0.is_empty() { jvp.clone() } else { derive(&n, &asked)? };

    let mut rows: Vec<(String, Bindings)> = vec![];
    let sizes = |[t, h, w]: [i64; 3]| -> Bindings { [("B", 1), ("T", t), ("H", h), ("W", w), ("L", TEXT)].into_iter().map(|(k, v)| (k.into(), v)).collect() };
    let given = dims(&a.dim)?;
    if !given.is_empty() {
        let mut all = sizes([1, 1, 1]);
        if let Some(k) = given.keys().find(|k| !all.contains_key(*k)) {
            return Err(format!("--dim: `{k}` is no size of this network; they are B, T, H, W of the latent and L text tokens"));
        }
        if let (Config::Wan(_) | Config::Cosmos(_), Some(k)) = (&config, ["T", "H", "W"].iter().find(|k| !given.contains_key(**k))) {
            return Err(format!("--dim: {k} is missing; a latent has T, H and W"));
        }
        all.extend(given);
        n.check(&all).map_err(|e| e.to_string())?;
        rows.push(("as given".into(), all));
    } else {
        let known: &[(&str, [i64; 3])] = match config {
            Config::Wan(_) => &WAN,
            Config::Cosmos(_) => &COSMOS,
            Config::Dit(_) => &[("one image", [1, 1, 1])],
        };
        rows.extend(known.iter().map(|(what, s)| (what.to_string(), sizes(*s))).filter(|(_, b)| n.check(b).is_ok()));
        if rows.is_empty() {
            // A network of other sizes: the largest latent that it has positions for.
            rows.push(("largest".into(), sizes(n.largest())));
        }
    }
    let mut table: Vec<(String, Bindings, Cost, Cost)> = vec![];
    for (what, b) in rows {
        let (f, j) = (cost(&n.function, &b).map_err(|e| e.to_string())?, cost(&jvp, &b).map_err(|e| e.to_string())?);
        table.push((what, b, f, j));
    }
    let bytes = |p: Precision| n.weights.iter().map(|w| w.len() as u64 * part_bytes(w.shape.len(), p)).sum::<u64>();
    let (f32s, bf16s) = (bytes(Precision::F32), bytes(Precision::BF16));
    let blocks = blocks(&n, &jvp, table.last().map(|r| &r.1))?;
    let mut memory: Vec<[Peak; 2]> = vec![];
    for (_, b, ..) in &table {
        memory.push([peak("forward", &n.function, b)?, peak(&label, &derived, b)?]);
    }
    let built = match (a.compile, table.last()) {
        (true, Some((_, b, ..))) => Some(built(&label, &n, &asked, b)?),
        _ => None,
    };

    if a.json {
        let rows: Vec<_> = table
            .iter()
            .zip(&memory)
            .map(|((what, b, f, j), m)| {
                let sizes: serde_json::Map<String, serde_json::Value> = b.iter().map(|(k, v)| (k.to_string(), (*v).into())).collect();
                let cost = |c: &Cost| json!({"flops": c.flops(), "attention": c.attention, "linear": c.linear, "other": c.other});
                json!({"what": what, "dims": sizes, "tokens": tokens(&config, b), "forward": cost(f), "jvp": cost(j), "flop_ratio": j.products() / f.products(),
                    "peak": m.iter().map(Peak::json).collect::<Vec<_>>()})
            })
            .collect();
        let blocks: Vec<_> = blocks.iter().map(|b| json!({"function": b.name, "calls": b.calls, "kernels": b.kernels})).collect();
        println!("{}", json!({"network": config.class(), "parameters": n.parameters(), "tensors": n.weights.len(), "bytes_f32": f32s, "bytes_bf16": bf16s, "sizes": rows, "functions": blocks, "matmul": "own kernels",
            "compilation": built.as_ref().map(|b| json!({"what": b.what, "kernels": b.kernels, "launches": b.launches, "derive_seconds": b.derived, "compile_seconds": b.compiled, "threads": b.threads, "code_bytes": b.code}))}));
        return Ok(());
    }
    println!("{}: {} parameters in {} tensors; {:.2} GB of weights in f32, {:.2} GB in bf16", config.class(), grouped(n.parameters()), n.weights.len(), f32s as f64 / 1e9, bf16s as f64 / 1e9);
    println!("{}", describe(&config));
    println!("  {:<22}{:>10}{:>14}{:>12}{:>12}{:>14}{:>8}", "", "tokens", "forward", "attention", "linear", "jvp", "ratio");
    for (what, b, f, j) in &table {
        println!("  {what:<22}{:>10}{:>14}{:>12}{:>12}{:>14}{:>8.3}", tokens(&config, b), tera(f.products()), tera(f.attention), tera(f.linear), tera(j.products()), j.products() / f.products());
    }
    println!("  (operations of contractions, a batch of one, {TEXT} text tokens unless --dim says otherwise; the JVP is along hidden_states and timestep)");
    println!("  memory in f32, known before anything runs (parameters and their cotangents included; kernels' scratch of a few MB a core is not):");
    for ((what, ..), m) in table.iter().zip(&memory) {
        for p in m {
            let gb = |n: usize| n as f64 / 1e9;
            println!("    {what:<20} {:<28} peak {:>8.2} GB: parameters {:.2}, results {:.2}, between {:.2} ({} launches of {} kernels)", p.what, gb(p.total()), gb(p.params), gb(p.results), gb(p.arena), p.launches, p.kernels);
        }
    }
    println!("  matrix products are this toolkit's own kernels; no library is called (docs/perf-log.md has both)");
    if let Some(b) = &built {
        println!("  {}: derived, fused and planned in {:.2} s, its {} kernels compiled in {:.2} s on {} threads ({:.1} MB of code, {} launches)", b.what, b.derived, b.kernels, b.compiled, b.threads, b.code as f64 / 1e6, b.launches);
    }
    for b in &blocks {
        println!("  {}: {} call{}, {} kernel{} each", b.name, b.calls, if b.calls == 1 { "" } else { "s" }, b.kernels, if b.kernels == 1 { "" } else { "s" });
    }
    Ok(())
}

/// What a program needs of memory.
struct Peak {
    what: String,
    params: usize,
    results: usize,
    arena: usize,
    launches: usize,
    kernels: usize,
}

impl Peak {
    fn total(&self) -> usize {
        self.params + self.results + self.arena
    }
    fn json(&self) -> serde_json::Value {
        json!({"what": self.what, "peak_bytes": self.total(), "parameters": self.params, "results": self.results, "arena": self.arena, "launches": self.launches, "kernels": self.kernels})
    }
}

/// By the plan of `f`; nothing of it is allocated.
fn peak(what: &str, f: &Function, dims: &Bindings) -> Result<Peak, String> {
    let s = machine::sequence(f, &Options::cpu(dims, DType::F32))?;
    let p = Plan::new(&s, dims).map_err(|e| e.to_string())?;
    Ok(Peak { what: what.into(), params: p.param_bytes(), results: p.result_bytes(), arena: p.arena, launches: p.launches.len(), kernels: s.programs.len() })
}

/// The network's function under transforms, in that order.
fn derive(n: &Network, transforms: &[Transform]) -> Result<Function, String> {
    transforms.iter().try_fold(n.function.clone(), |f, t| t.apply(&f))
}

/// How long it takes to make a program.
struct Built {
    what: String,
    kernels: usize,
    launches: usize,
    derived: f64,
    compiled: f64,
    threads: usize,
    code: usize,
}

/// Derives, fuses, plans and compiles, past the cache, to loaded kernels; no weight and no value is allocated.
fn built(what: &str, n: &Network, transforms: &[Transform], dims: &Bindings) -> Result<Built, String> {
    let start = Instant::now();
    let f = derive(n, transforms)?;
    let s = machine::sequence(&f, &Options::cpu(dims, DType::F32))?;
    let plan = Plan::new(&s, dims).map_err(|e| e.to_string())?;
    let derived = start.elapsed().as_secs_f64();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let start = Instant::now();
    let kernels = trainer::program::kernels::compile_on(threads, &s.programs, &codegen::Target::host().map_err(|e| e.to_string())?, &Cache::new(None))?;
    let compiled = start.elapsed().as_secs_f64();
    Ok(Built { what: what.into(), kernels: kernels.len(), launches: plan.launches.len(), derived, compiled, threads, code: kernels.iter().map(|(k, _)| k.code_bytes()).sum() })
}

/// Bytes of a weight's element: vectors stay wide.
fn part_bytes(rank: usize, p: Precision) -> u64 {
    use trainer::net::precision::Part;
    p.dtype(if rank > 1 { Part::Matrix } else { Part::Vector }).bytes() as u64
}

/// A function of a program and how many kernels a call of it is.
struct Block {
    name: String,
    calls: usize,
    kernels: usize,
}

/// The functions that the forward program and the JVP call, fused for the last sizes of the table.
fn blocks(n: &Network, jvp: &ir::graph::Function, dims: Option<&Bindings>) -> Result<Vec<Block>, String> {
    let Some(dims) = dims else { return Ok(vec![]) };
    let mut all = vec![];
    for f in [&n.function, jvp] {
        for c in f.callees() {
            let calls = f.eqns.iter().filter(|e| matches!(&e.op, ir::prim::Prim::Call(k) if k.function == c && k.result == 0)).count();
            if all.iter().any(|b: &Block| *b.name == *c.name) {
                continue;
            }
            let fused = pushforward::machine::compile(&c, dims, DType::F32)?;
            all.push(Block { name: c.name.to_string(), calls, kernels: fused.programs.len() });
        }
    }
    Ok(all)
}

/// The number of tokens.
fn tokens(config: &Config, b: &Bindings) -> i64 {
    let patch = match config {
        Config::Wan(c) => c.patch_size,
        Config::Cosmos(c) => c.patch_size,
        Config::Dit(c) => return c.sample_size.iter().map(|n| n / c.patch_size).product(),
    };
    ["T", "H", "W"].iter().zip(patch).map(|(n, p)| b.get(*n).copied().unwrap_or(1) / p).product()
}

/// Sizes in a line.
fn describe(config: &Config) -> String {
    match config {
        Config::Wan(c) => format!(
            "  {} layers, width {} ({} heads of {}), feed-forward {}, text {}, channels {} to {}, patches {:?}{}",
            c.num_layers, c.dim(), c.num_attention_heads, c.attention_head_dim, c.ffn_dim, c.text_dim, c.in_channels, c.out_channels, c.patch_size,
            c.image_dim.map_or(String::new(), |n| format!(", image {n}"))
        ),
        Config::Cosmos(c) => format!(
            "  {} layers, width {} ({} heads of {}), feed-forward {}, modulation rank {}, text {}, channels {} to {}{}, patches {:?}, rope scale {:?}",
            c.num_layers, c.dim(), c.num_attention_heads, c.attention_head_dim, c.ffn_dim, c.adaln_lora_dim, c.text_embed_dim, c.in_channels, c.out_channels,
            if c.concat_padding_mask { " and a padding mask" } else { "" }, c.patch_size, c.rope_scale
        ),
        Config::Dit(c) => format!("  {} layers, width {} ({} heads of {}), {:?} pixels, {} classes", c.num_layers, c.dim(), c.num_attention_heads, c.attention_head_dim, c.sample_size, c.num_classes),
    }
}

/// `1,418,996,800`.
fn grouped(n: u64) -> String {
    let s = n.to_string();
    let mut out = String::new();
    for (i, c) in s.chars().enumerate() {
        if i > 0 && (s.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Operations in a unit that fits.
fn tera(x: f64) -> String {
    match x {
        x if x >= 1e11 => format!("{:.2} T", x / 1e12),
        x if x >= 1e8 => format!("{:.2} G", x / 1e9),
        x => format!("{:.2} M", x / 1e6),
    }
}
