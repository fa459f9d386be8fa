//! Programs and tensors from files; random tensors where there is no file.

use ir::diagnostic::render;
use ir::dim::{Bindings, Name};
use ir::graph::Function;
use ir::tensor::Tensor;
use ir::types::DType;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Which function, of which file, along which inputs.
#[derive(clap::Args)]
pub struct Source {
    /// The program
    pub file: PathBuf,
    /// The function; without it the file's first
    #[arg(long = "fn", value_name = "NAME")]
    pub function: Option<String>,
    /// Parameters to differentiate along, `q,k,v`; may be given twice: the JVP of the JVP
    #[arg(long, value_name = "NAMES")]
    pub jvp: Vec<String>,
}

impl Source {
    /// The function, differentiated as asked.
    pub fn load(&self) -> Result<Function, String> {
        let mut f = parse(&self.file, self.function.as_deref())?;
        for wrt in &self.jvp {
            f = passes::ad::jvp(&f, &names(wrt)).map_err(|e| e.to_string())?;
            verify(&f, "jvp")?;
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
