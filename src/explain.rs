//! `explain`: which tangents are active, what was fused, what was refused and why, and what each kernel costs.

use ir::tile::cost::cost;
use ir::types::DType;
use passes::fuse::Fused;
use pushforward::input::{Loaded, Source, dims, dims_of};
use serde_json::json;

/// Arguments of `explain`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// What float parameters are stored in
    #[arg(long, default_value = "f32", value_parser = ["f64", "f32", "bf16", "f16"])]
    dtype: String,
    /// Sizes; without them a kernel's cost is not known
    #[arg(long, value_name = "NAME=N")]
    dim: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(a: &Args) -> Result<(), String> {
    let (name, active, dims, fused) = match a.source.load_any()? {
        Loaded::Programs(programs) => (programs.iter().map(|p| &*p.name).collect::<Vec<_>>().join("+"), vec![], dims(&a.dim)?, Fused { programs, notes: vec![] }),
        Loaded::Function(f) => {
            let dims = dims_of(&[&f], &a.dim)?;
            let fused = pushforward::machine::compile_by(&f, &passes::fuse::Options::cpu(&dims, DType::parse(&a.dtype).unwrap_or(DType::F32)))?;
            let active: Vec<String> = f.params.iter().filter(|p| p.name.contains(".t")).map(|p| p.name.to_string()).collect();
            (f.name.to_string(), active, dims, fused)
        }
    };
    let mut kernels = vec![];
    for p in &fused.programs {
        let carried: Vec<usize> = p.body.iter().filter_map(|s| if let ir::tile::Stmt::For(l) = s { Some(l.carries.len()) } else { None }).collect();
        kernels.push((p, carried, cost(p, &dims).ok()));
    }
    if a.json {
        let list: Vec<_> = kernels.iter().map(|(p, carried, c)| {
            json!({"name": &*p.name, "carried": carried, "flops": c.as_ref().map(|c| c.flops), "special": c.as_ref().map(|c| c.special), "bytes": c.as_ref().map(|c| c.bytes())})
        }).collect();
        println!("{}", json!({"function": name, "tangents": active, "kernels": list, "notes": fused.notes}));
        return Ok(());
    }
    println!("{}: {} kernel{}", name, fused.programs.len(), if fused.programs.len() == 1 { "" } else { "s" });
    println!("  tangents: {}", if active.is_empty() { "none".into() } else { active.join(", ") });
    for (p, carried, c) in &kernels {
        println!("  {}: {}", p.name, match carried.as_slice() {
            [] => "no loop; rows stand in the tile".into(),
            [n] => format!("one pass, {n} accumulators"),
            many => format!("{} passes, accumulators {}", many.len(), many.iter().map(usize::to_string).collect::<Vec<_>>().join(" + ")),
        });
        if let Some(c) = c {
            println!("    {:.4e} flops, {:.3e} special functions, {:.4e} bytes, {:.1} flops a byte", c.flops as f64, c.special as f64, c.bytes() as f64, c.flops as f64 / c.bytes().max(1) as f64);
        }
    }
    for n in &fused.notes {
        println!("  {n}");
    }
    Ok(())
}
