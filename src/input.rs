//! Programs and tensors from files; random tensors where there is no file, each from where the operations that read it are defined.

use ir::diagnostic::render;
use ir::dim::{Bindings, Dim, Name};
use ir::graph::{Function, Var};
use ir::prim::{Elementwise, Prim};
use ir::tensor::Tensor;
use ir::tile::Program;
use ir::types::DType;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Which function, of which file, differentiated how.
#[derive(clap::Args)]
pub struct Source {
    /// The program: text, or a block program as `compile --dump all` writes it, where a command can go on from there
    pub file: PathBuf,
    /// The function; without it the file's first
    #[arg(long = "fn", value_name = "NAME")]
    pub function: Option<String>,
    /// Derivatives to take, in order
    #[command(flatten)]
    pub transforms: Transforms,
}

pub use passes::ad::Transform;
pub use passes::{VERIFIER, verify};

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

/// A program from a file, at whatever stage it was written down.
pub enum Loaded {
    /// Equations, from text.
    Function(Function),
    /// Block programs, from a `.tile.json`.
    Programs(Vec<Program>),
}

impl Source {
    /// The file's program at its stage: block programs where its name ends in `.tile.json`, text otherwise.
    pub fn load_any(&self) -> Result<Loaded, String> {
        if !self.file.to_string_lossy().ends_with(".tile.json") {
            return self.load().map(Loaded::Function);
        }
        let file = self.file.display();
        if let Some(n) = &self.function {
            return Err(format!("--fn {n}: {file} is a block program, not a file of functions"));
        }
        if !self.transforms.0.is_empty() {
            return Err(format!("--jvp, --vjp: {file} is a block program; only equations are differentiated"));
        }
        let text = std::fs::read_to_string(&self.file).map_err(|e| format!("cannot read {file}: {e}"))?;
        let bad = |e: serde_json::Error| format!("{file} is no block program: {e}");
        let programs: Vec<Program> = if text.trim_start().starts_with('[') { serde_json::from_str(&text).map_err(bad)? } else { vec![serde_json::from_str(&text).map_err(bad)?] };
        for p in &programs {
            ir::tile::verify::verify(p).map_err(|e| format!("{file}: {}", e.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))?;
        }
        Ok(Loaded::Programs(programs))
    }
    /// The function, differentiated as asked.
    pub fn load(&self) -> Result<Function, String> {
        if self.file.to_string_lossy().ends_with(".tile.json") {
            return Err(format!("{} is a block program, and this command wants equations", self.file.display()));
        }
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

/// The one of `names` that is a slip of the pen away from `name`: at most a third of its letters differ (Levenshtein 1966).
pub fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let letters: Vec<char> = name.chars().collect();
    let distance = |other: &str| {
        let mut row: Vec<usize> = (0..=letters.len()).collect();
        for (i, c) in other.chars().enumerate() {
            let mut left_above = row[0];
            row[0] = i + 1;
            for j in 1..row.len() {
                let best = (left_above + usize::from(letters[j - 1] != c)).min(row[j] + 1).min(row[j - 1] + 1);
                left_above = std::mem::replace(&mut row[j], best);
            }
        }
        row[letters.len()]
    };
    let close = names.map(|n| (distance(n), n)).filter(|(d, n)| *d <= 1.max(name.chars().count().max(n.chars().count()) / 3));
    close.min_by_key(|(d, _)| *d).map(|(_, n)| n)
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

/// Every dimension name of `f`: in its types and in its operations, sorted.
pub fn dim_names(f: &Function) -> BTreeSet<Name> {
    let found = RefCell::new(f.dims().into_iter().collect::<BTreeSet<Name>>());
    for e in &f.eqns {
        e.op.clone().map_dims(&|d: &Dim| {
            found.borrow_mut().extend(d.symbols());
            d.clone()
        });
    }
    found.into_inner()
}

/// [`dims`], each of which one of `functions` must have.
pub fn dims_of(functions: &[&Function], list: &[String]) -> Result<Bindings, String> {
    let b = dims(list)?;
    let known: BTreeSet<Name> = functions.iter().flat_map(|f| dim_names(f)).collect();
    match b.keys().find(|n| !known.contains(*n)) {
        None => Ok(b),
        Some(n) => {
            let names: Vec<&str> = functions.iter().map(|f| &*f.name).collect();
            let known: Vec<&str> = known.iter().map(|n| &**n).collect();
            Err(format!("--dim: `{n}` is no dimension of `{}`; there are: {}", names.join("`, `"), if known.is_empty() { "none".into() } else { known.join(", ") }))
        }
    }
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

/// Writes tensors as a safetensors file: beside the target first, so that an interrupted write leaves no half file behind under its name.
pub fn save<'a>(path: &Path, tensors: impl Iterator<Item = (&'a str, &'a Tensor)>) -> Result<(), String> {
    let bytes: Vec<(&str, &Tensor, Vec<u8>)> = tensors.map(|(n, t)| (n, t, t.to_bytes())).collect();
    let mut views = vec![];
    for (n, t, b) in &bytes {
        let dtype = match t.dtype() {
            DType::F64 => safetensors::Dtype::F64,
            DType::F32 => safetensors::Dtype::F32,
            DType::BF16 => safetensors::Dtype::BF16,
            DType::F16 => safetensors::Dtype::F16,
            DType::I32 => safetensors::Dtype::I32,
            DType::Bool => safetensors::Dtype::BOOL,
        };
        views.push((n.to_string(), TensorView::new(dtype, t.shape().to_vec(), b).map_err(|e| e.to_string())?));
    }
    let bytes = safetensors::serialize(views, &None).map_err(|e| e.to_string())?;
    let part = path.with_extension("safetensors.part");
    std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path)).map_err(|e| format!("cannot write {}: {e}", path.display()))
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
    /// A tensor for parameter `v` of `f`, whose sizes are `sizes`: from where the operations that read it directly are defined
    /// ([`domain`]), floats elsewhere standard normal, positions below the axis that they are compared with.
    pub fn draw(&mut self, f: &Function, v: Var, sizes: &Bindings) -> Result<Tensor, String> {
        let ty = f.ty(v);
        let shape = ty.sizes(sizes).map_err(|e| e.to_string())?;
        let n: usize = shape.iter().product();
        let data: Vec<f64> = match domain(f, v) {
            Domain::Anything => return self.tensor(ty.dtype, &shape),
            Domain::Interval(lo, hi) => (0..n).map(|_| lo + (hi - lo) * self.uniform()).collect(),
            Domain::Below(size) => {
                let below = size.eval(sizes).map_err(|e| e.to_string())? as f64;
                (0..n).map(|_| (below * self.uniform()).floor()).collect()
            }
        };
        Tensor::from_f64(if ty.dtype.is_float() { DType::F64 } else { ty.dtype }, &shape, &data).map_err(|e| e.to_string())
    }
    /// Standard normal floats, truth values, or positions below 2.
    pub fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Result<Tensor, String> {
        let n = shape.iter().product();
        let data: Vec<f64> = (0..n).map(|_| if dtype.is_float() { self.normal() } else { f64::from(u8::from(self.uniform() < 0.5)) }).collect();
        let dtype = if dtype.is_float() { DType::F64 } else { dtype };
        Tensor::from_f64(dtype, shape, &data).map_err(|e| e.to_string())
    }
}

/// Where a parameter's elements may be drawn from.
#[derive(Clone, PartialEq, Debug)]
pub enum Domain {
    /// No operation minds.
    Anything,
    /// An interval that leaves zero out.
    Interval(f64, f64),
    /// Whole numbers from 0 on, below a size or, where they are lengths, equal to it at most.
    Below(Dim),
}

impl Domain {
    /// Where both hold; of two axes the first.
    fn and(self, o: Domain) -> Domain {
        match (self, o) {
            (Domain::Anything, d) | (d, Domain::Anything) => d,
            (Domain::Interval(a, b), Domain::Interval(lo, hi)) => Domain::Interval(a.max(lo), b.min(hi)),
            (d, _) => d,
        }
    }
}

/// Where parameter `v` may be drawn from, by the operations that read its elements as they are: behind movement and conversion, but
/// not behind arithmetic. `log`, `sqrt`, a divisor want positive numbers ([`Elementwise::domain`]); an `i32` that is compared with
/// positions is a position itself, or a length.
pub fn domain(f: &Function, v: Var) -> Domain {
    let (mut same, mut positions) = (BTreeSet::from([v]), BTreeMap::<Var, Dim>::new());
    let mut found = Domain::Anything;
    for e in &f.eqns {
        match &e.op {
            Prim::Iota(a) => {
                positions.insert(e.out, a.size.clone());
            }
            Prim::Movement(_) | Prim::StopGradient | Prim::Elementwise(Elementwise::Convert(_)) => {
                if e.args.iter().any(|a| same.contains(a)) {
                    same.insert(e.out);
                } else if let Some(n) = e.args.first().and_then(|a| positions.get(a)).cloned() {
                    positions.insert(e.out, n);
                }
            }
            // What a callee does with it.
            Prim::Call(c) => {
                for (i, _) in e.args.iter().enumerate().filter(|(_, a)| same.contains(a)) {
                    found = found.and(domain(&c.function, c.function.params[i].var));
                }
            }
            Prim::Elementwise(op) => {
                for (i, _) in e.args.iter().enumerate().filter(|(_, a)| same.contains(a)) {
                    let (lo, hi) = op.domain(i);
                    // An interval around zero is a test's choice of size, not a restriction.
                    if lo >= 0.0 && f.ty(v).dtype.is_float() {
                        found = found.and(Domain::Interval(lo, hi));
                    }
                    use Elementwise::{Eq, Ge, Gt, Le, Lt, Ne};
                    let other = e.args.iter().find_map(|a| positions.get(a));
                    if let (DType::I32, Lt | Le | Gt | Ge | Eq | Ne, Some(n)) = (f.ty(v).dtype, op, other) {
                        // `j < length` may also be true everywhere.
                        let one = Dim::fixed(i64::from(!matches!(op, Eq | Ne)));
                        found = found.and(Domain::Below(n + &one));
                    }
                }
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domains(text: &str) -> Vec<Domain> {
        let f = &ir::text::parse(text).unwrap_or_else(|e| panic!("{e:?}")).functions[0];
        f.params.iter().map(|p| domain(f, p.var)).collect()
    }

    #[test]
    fn operations_say_where_their_operands_come_from() {
        let positive = Domain::Interval(0.5, 2.0);
        let text = "fn f(a: f32[N], b: f32[N], c: f32[N], d: f32[P=2*M]) -> (y: f32[N]) { y = log(a) * rsqrt(b + 1) / c }";
        assert_eq!(domains(text), [positive.clone(), Domain::Anything, positive.clone(), Domain::Anything]);
        let text = "fn f(a: f32[N=2*M]) -> (y: f32[P=2,M]) { y = sqrt(split(a, N -> [P=2, M])) }";
        assert_eq!(domains(text), [positive]);
    }

    #[test]
    fn positions_stay_within_their_axis() {
        let text = "fn f(x: f32[B,J], n: i32[B], l: i32[B], free: i32[B]) -> (y: f32[B,J]) { y = select(iota(J) < n, x, 0) * select(iota(J) == l, 1, 2) }";
        let (j, one) = (Dim::sym("J"), Dim::fixed(1));
        assert_eq!(domains(text), [Domain::Anything, Domain::Below(&j + &one), Domain::Below(j), Domain::Anything]);
    }
}
