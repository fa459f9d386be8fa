//! Programs and tensors from files; random tensors where there is no file.

use ir::diagnostic::render;
use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::tensor::Tensor;
use ir::types::DType;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Which function, of which file, differentiated how.
#[derive(clap::Args)]
pub struct Source {
    /// The program
    pub file: PathBuf,
    /// The function; without it the file's first
    #[arg(long = "fn", value_name = "NAME")]
    pub function: Option<String>,
    /// Derivatives to take, in order
    #[command(flatten)]
    pub transforms: Transforms,
}

/// A derivative of a function, along some of its parameters.
#[derive(Clone, PartialEq, Debug)]
pub enum Transform {
    /// Tangents of results from tangents of these.
    Jvp(Vec<Name>),
    /// Cotangents of these from cotangents of results.
    Vjp(Vec<Name>),
}

impl Transform {
    /// The derivative of `f`.
    ///
    /// # Errors
    /// Those of the pass, and what the verifier refuses.
    pub fn apply(&self, f: &Function) -> Result<Function, String> {
        let (g, pass) = match self {
            Transform::Jvp(wrt) => (passes::ad::jvp(f, wrt), "jvp"),
            Transform::Vjp(wrt) => (passes::ad::vjp(f, wrt), "vjp"),
        };
        let g = g.map_err(|e| e.to_string())?;
        verify(&g, pass)?;
        Ok(g)
    }
}

/// Transforms, in the order in which the command line has them.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Transforms(pub Vec<Transform>);

/// The options as clap declares them; their order comes from their positions.
#[derive(clap::Args)]
struct TransformOptions {
    /// Parameters to differentiate along, `q,k,v`: tangents `q.t` in, `RESULT.t` out; may be given again, for derivatives of derivatives
    #[arg(long, value_name = "NAMES")]
    jvp: Vec<String>,
    /// Parameters whose gradient is wanted, `q,k,v`: cotangents `RESULT.ct` in, `q.ct` out; transforms apply in the order given
    #[arg(long, value_name = "NAMES")]
    vjp: Vec<String>,
}

impl clap::FromArgMatches for Transforms {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let mut all: Vec<(usize, Transform)> = vec![];
        for id in ["jvp", "vjp"] {
            let values = matches.get_many::<String>(id).into_iter().flatten();
            for (at, list) in matches.indices_of(id).into_iter().flatten().zip(values) {
                all.push((at, if id == "jvp" { Transform::Jvp(names(list)) } else { Transform::Vjp(names(list)) }));
            }
        }
        all.sort_by_key(|(at, _)| *at);
        Ok(Transforms(all.into_iter().map(|(_, t)| t).collect()))
    }
    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = <Transforms as clap::FromArgMatches>::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Transforms {
    fn augment_args(command: clap::Command) -> clap::Command {
        TransformOptions::augment_args(command)
    }
    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        TransformOptions::augment_args_for_update(command)
    }
}

impl Source {
    /// The function, differentiated as asked.
    pub fn load(&self) -> Result<Function, String> {
        let mut f = parse(&self.file, self.function.as_deref())?;
        for t in &self.transforms.0 {
            f = t.apply(&f)?;
        }
        Ok(f)
    }
}

/// `a,b` as names.
pub fn names(list: &str) -> Vec<Name> {
    list.split(',').map(str::trim).filter(|s| !s.is_empty()).map(Name::from).collect()
}

/// The function called `name` of `file`.
pub fn parse(file: &Path, name: Option<&str>) -> Result<Function, String> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
    let module = ir::text::parse(&text).map_err(|e| render(&e, &file.display().to_string(), &text))?;
    let f = module.function(name).map_err(|e| format!("{}: {e}", file.display()))?.clone();
    verify(&f, "parse")?;
    Ok(f)
}

/// The verifier after a pass; a failure names the pass and shows the program.
pub fn verify(f: &Function, pass: &str) -> Result<(), String> {
    ir::verify::verify(f).map_err(|e| {
        let list = e.iter().map(|e| format!("  {e}\n")).collect::<String>();
        format!("the verifier refuses what {pass} made:\n{list}{}", ir::text::print_function(f))
    })
}

/// `I=128,J=64`.
pub fn dims(list: &[String]) -> Result<Bindings, String> {
    let mut b = Bindings::new();
    for item in list.iter().flat_map(|s| s.split(',')).filter(|s| !s.is_empty()) {
        let (n, v) = item.split_once('=').ok_or_else(|| format!("--dim: expected NAME=NUMBER, found `{item}`"))?;
        let v: i64 = v.trim().parse().map_err(|_| format!("--dim: `{v}` is no number"))?;
        if v < 0 {
            return Err(format!("--dim: {n} is {v}, but a size is not negative"));
        }
        b.insert(n.trim().into(), v);
    }
    Ok(b)
}

/// All tensors of a safetensors file.
pub fn tensors(path: &Path) -> Result<BTreeMap<String, Tensor>, String> {
    let bytes = std::fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| format!("{} is no safetensors file: {e}", path.display()))?;
    file.tensors()
        .into_iter()
        .map(|(n, v)| {
            let t = Tensor::from_safetensors(&format!("{:?}", v.dtype()), v.shape(), v.data());
            t.map(|t| (n.clone(), t)).map_err(|e| format!("{}: tensor `{n}`: {e}", path.display()))
        })
        .collect()
}

/// A small counter-based generator (SplitMix64): the same seed gives the same tensors everywhere.
pub struct Random(pub u64);

impl Random {
    /// Uniform in 0..1.
    pub fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
    /// Standard normal, by Box and Muller.
    pub fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
    /// Standard normal floats, truth values, or positions below 2.
    pub fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Result<Tensor, String> {
        let n = shape.iter().product();
        let data: Vec<f64> = (0..n).map(|_| if dtype.is_float() { self.normal() } else { f64::from(u8::from(self.uniform() < 0.5)) }).collect();
        let dtype = if dtype.is_float() { DType::F64 } else { dtype };
        Tensor::from_f64(dtype, shape, &data).map_err(|e| e.to_string())
    }
}
