//! Weights from safetensors files: one, or shards with an index. Files are mapped, not read, and nothing in them is believed: lengths,
//! offsets, counts and names are checked against the file before a byte of data is looked at.
//!
//! ```text
//! file = length of the header (u64, little-endian) | header (JSON) | data
//! header = { name: { dtype, shape, data_offsets: [begin, end) of data }, …, "__metadata__": { … } }
//! index = { "weight_map": { name: file }, … }
//! ```

use super::config::Shapes;
use super::graph::Weight;
use super::keys::{Layout, nearest};
use ir::dim::Name;
use ir::tensor::Tensor;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, de};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// A header longer than this is refused, as the reference library refuses it.
const LONGEST_HEADER: u64 = 100_000_000;
/// How many tensors of each kind of disagreement a message lists.
const LISTED: usize = 8;
/// diffusers' name for a transformer's weights.
const STEM: &str = "diffusion_pytorch_model";

/// A file in memory, read-only.
struct Map {
    start: *const u8,
    len: usize,
}

// SAFETY: the mapping is private and read-only, and lives until it is dropped; nobody writes through it.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    fn open(path: &Path) -> Result<Map, String> {
        let fail = |e: &dyn fmt::Display| format!("cannot read {}: {e}", path.display());
        let file = File::open(path).map_err(|e| fail(&e))?;
        let meta = file.metadata().map_err(|e| fail(&e))?;
        if !meta.is_file() {
            return Err(fail(&"it is no file"));
        }
        let len = usize::try_from(meta.len()).map_err(|e| fail(&e))?;
        if len == 0 {
            return Ok(Map { start: std::ptr::NonNull::dangling().as_ptr(), len });
        }
        // SAFETY: a new private mapping of an open file; the kernel chooses the address, and the result is checked.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(fail(&std::io::Error::last_os_error()));
        }
        Ok(Map { start: start.cast(), len })
    }
    fn bytes(&self) -> &[u8] {
        // SAFETY: `start` is valid for `len` bytes until `drop`. (A file that another process cuts off meanwhile ends this process by a
        // signal, as it does every program that maps files.)
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the mapping is this value's own, of this length.
            unsafe { libc::munmap(self.start.cast_mut().cast(), self.len) };
        }
    }
}

/// Where a tensor is.
#[derive(Clone, Debug)]
struct Entry {
    file: usize,
    dtype: String,
    shape: Vec<usize>,
    /// Bytes of the file.
    begin: usize,
    end: usize,
}

/// A tensor as a header has it.
#[derive(Deserialize)]
struct Written {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// A JSON object's entries in order, repeated names included.
struct Pairs<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Read<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Read<T> {
            type Value = Pairs<T>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<T>, A::Error> {
                let mut all: Vec<(String, T)> = vec![];
                let mut seen = std::collections::BTreeSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(de::Error::custom(format!("`{name}` is there twice")));
                    }
                    all.push((name, map.next_value()?));
                }
                Ok(Pairs(all))
            }
        }
        d.deserialize_map(Read(std::marker::PhantomData))
    }
}

/// Bytes of an element.
fn width(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F64" | "I64" | "U64" => 8,
        "F32" | "I32" | "U32" => 4,
        "F16" | "BF16" | "I16" | "U16" => 2,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" => 1,
        _ => return None,
    })
}

/// The tensors of one file, checked.
fn entries(bytes: &[u8], file: usize) -> Result<Vec<(String, Entry)>, String> {
    let Some((head, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!("no safetensors file: it has {} bytes, fewer than the 8 of a header's length", bytes.len()));
    };
    let length = u64::from_le_bytes(*head);
    if length > LONGEST_HEADER || length > rest.len() as u64 {
        return Err(format!("its header claims {length} bytes, but {} follow (and {LONGEST_HEADER} are the most)", rest.len()));
    }
    let (header, data) = rest.split_at(length as usize);
    let Pairs(raw) = serde_json::from_slice::<Pairs<serde_json::Value>>(header).map_err(|e| format!("its header is broken: {e}"))?;
    let start = 8 + length as usize;
    let mut all = vec![];
    for (name, value) in raw {
        if name == "__metadata__" {
            continue;
        }
        let w: Written = serde_json::from_value(value).map_err(|e| format!("tensor `{name}`: {e}"))?;
        let size = width(&w.dtype).ok_or_else(|| format!("tensor `{name}`: element type {} is not known", w.dtype))?;
        let [begin, end] = w.data_offsets;
        if begin > end || end > data.len() as u64 {
            return Err(format!("tensor `{name}`: its data are bytes {begin}..{end} of {}", data.len()));
        }
        let want = w.shape.iter().try_fold(size, |n, s| n.checked_mul(*s));
        if want != Some(end - begin) {
            let want = want.map_or_else(|| "more bytes than there are numbers".into(), |n| format!("{n} bytes"));
            return Err(format!("tensor `{name}`: {}{:?} is {want}, but its offsets hold {}", w.dtype, w.shape, end - begin));
        }
        let shape = w.shape.iter().map(|s| *s as usize).collect();
        all.push((name, Entry { file, dtype: w.dtype, shape, begin: start + begin as usize, end: start + end as usize }));
    }
    let mut order: Vec<&(String, Entry)> = all.iter().collect();
    order.sort_by_key(|(_, e)| (e.begin, e.end));
    let mut at = start;
    let mut before = "the header";
    for (name, e) in order {
        if e.begin < at {
            return Err(format!("tensor `{name}` overlaps with `{before}`"));
        }
        if e.begin > at {
            return Err(format!("{} bytes between {before} and tensor `{name}` belong to no tensor", e.begin - at));
        }
        (at, before) = (e.end, name);
    }
    if at < bytes.len() {
        return Err(format!("{} bytes behind the last tensor belong to none", bytes.len() - at));
    }
    Ok(all)
}

/// Weights, by the names that the files have.
pub struct Checkpoint {
    /// What messages call it.
    what: String,
    files: Vec<(PathBuf, Map)>,
    tensors: BTreeMap<String, Entry>,
    layout: Option<Layout>,
}

impl Checkpoint {
    /// The weights of a folder: the shards of its index, or its only safetensors file; diffusers' and the usual names come first.
    ///
    /// # Errors
    /// No weights, or several that could be meant; a file that is damaged or lies, by name.
    pub fn open(dir: &Path) -> Result<Checkpoint, String> {
        if dir.is_file() {
            return Checkpoint::files(dir.display().to_string(), vec![dir.to_path_buf()], None);
        }
        let list = std::fs::read_dir(dir).map_err(|e| format!("cannot read {}: {e}", dir.display()))?;
        let mut names: Vec<String> = list.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        let index: Vec<&String> = names.iter().filter(|n| n.ends_with(".safetensors.index.json")).collect();
        let usual = format!("{STEM}.safetensors.index.json");
        if let Some(i) = index.iter().find(|n| ***n == usual).or(index.first().filter(|_| index.len() == 1)) {
            return Checkpoint::sharded(dir, i);
        }
        if index.len() > 1 {
            return Err(format!("{} has several indices of weights: {}", dir.display(), join(&index)));
        }
        let single: Vec<&String> = names.iter().filter(|n| n.ends_with(".safetensors")).collect();
        let usual = [format!("{STEM}.safetensors"), "model.safetensors".into()];
        let found = usual.iter().find(|u| single.contains(u)).or(single.first().copied().filter(|_| single.len() == 1));
        if let Some(n) = found {
            return Checkpoint::files(dir.join(n).display().to_string(), vec![dir.join(n)], None);
        }
        if single.len() > 1 {
            let hint = if single.iter().any(|n| n.contains("-of-")) { "; shards need their index, `….safetensors.index.json`" } else { "; name one of them" };
            return Err(format!("{} has several files of weights, and none is {}: {}{hint}", dir.display(), usual[0], join(&single)));
        }
        let pickles = names.iter().find(|n| [".pt", ".pth", ".bin", ".ckpt"].iter().any(|e| n.ends_with(e)));
        let inside = dir.join("transformer");
        Err(match pickles {
            Some(p) => format!("{} has no safetensors file; {p} is a Python pickle and has to be converted first", dir.display()),
            None if inside.is_dir() => format!("{} has no safetensors file (hint: the network's are in {})", dir.display(), inside.display()),
            None => format!("{} has no safetensors file", dir.display()),
        })
    }
    /// The shards of an index. They are files of the same folder, whatever the index says.
    fn sharded(dir: &Path, index: &str) -> Result<Checkpoint, String> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: Pairs<String>,
        }
        let path = dir.join(index);
        let text = std::fs::read_to_string(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        let Pairs(map) = serde_json::from_str::<Index>(&text).map_err(|e| format!("{}: {e}", path.display()))?.weight_map;
        let mut files: Vec<String> = map.iter().map(|(_, f)| f.clone()).collect();
        files.sort();
        files.dedup();
        for f in &files {
            let plain = Path::new(f).components().collect::<Vec<_>>();
            if !matches!(plain.as_slice(), [std::path::Component::Normal(n)] if n.to_str() == Some(f)) {
                return Err(format!("{}: shard {f:?} is not a file of this folder", path.display()));
            }
        }
        let paths = files.iter().map(|f| dir.join(f)).collect();
        let at = |f: &String| files.iter().position(|x| x == f).unwrap_or(0);
        let expected = map.iter().map(|(n, f)| (n.clone(), at(f))).collect();
        Checkpoint::files(path.display().to_string(), paths, Some(expected))
    }
    /// Several files as one set of tensors; `expected` is what the index says of each name.
    fn files(what: String, paths: Vec<PathBuf>, expected: Option<BTreeMap<String, usize>>) -> Result<Checkpoint, String> {
        let mut files = vec![];
        let mut tensors: BTreeMap<String, Entry> = BTreeMap::new();
        for (i, path) in paths.into_iter().enumerate() {
            let map = Map::open(&path)?;
            for (name, e) in entries(map.bytes(), i).map_err(|m| format!("{}: {m}", path.display()))? {
                if let Some(index) = &expected {
                    match index.get(&name) {
                        Some(f) if *f == i => {}
                        Some(_) => return Err(format!("{}: tensor `{name}` is in a shard where {what} has not put it", path.display())),
                        None => return Err(format!("{}: tensor `{name}` is not in {what}", path.display())),
                    }
                }
                if tensors.insert(name.clone(), e).is_some() {
                    return Err(format!("{}: tensor `{name}` is in two shards", path.display()));
                }
            }
            files.push((path, map));
        }
        if let Some((n, f)) = expected.iter().flatten().find(|(n, _)| !tensors.contains_key(*n)) {
            return Err(format!("{what}: tensor `{n}` is not in {}, where it should be", files[*f].0.display()));
        }
        let layout = Layout::of(tensors.keys().map(String::as_str));
        Ok(Checkpoint { what, files, tensors, layout })
    }
    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
    /// How the tensors are named, if they are those of a network.
    pub fn layout(&self) -> Option<Layout> {
        self.layout
    }
    /// Tensors that are no weights of a network, and are left alone.
    pub fn ignored(&self) -> Vec<&str> {
        let Some(l) = self.layout else { return vec![] };
        self.names().filter(|n| l.ignores(n)).collect()
    }
    /// The tensor called `name`, its bytes copied.
    ///
    /// # Errors
    /// A name that is not there, or an element type that tensors do not have.
    pub fn tensor(&self, name: &str) -> Result<Tensor, String> {
        let e = self.tensors.get(name).ok_or_else(|| format!("{}: no tensor `{name}`{}", self.what, nearest(name, self.names())))?;
        let bytes = &self.files[e.file].1.bytes()[e.begin..e.end];
        Tensor::from_safetensors(&e.dtype, &e.shape, bytes).map_err(|m| format!("{}: tensor `{name}`: {m}", self.files[e.file].0.display()))
    }
    /// What the files call each of a network's weights: missing, misshapen and unexpected tensors are looked for first.
    ///
    /// # Errors
    /// All disagreements, by name, with both shapes.
    pub fn match_to(&self, weights: &[Weight]) -> Result<Vec<String>, String> {
        let Some(layout) = self.layout else {
            let some: Vec<String> = self.names().take(3).map(String::from).collect();
            return Err(format!("{}: its tensors ({}, …) are those of no network that is known", self.what, some.join(", ")));
        };
        let names: Vec<String> = weights.iter().map(|w| layout.name(&w.name)).collect();
        let known: std::collections::BTreeSet<&str> = names.iter().map(String::as_str).collect();
        let extra: Vec<&str> = self.names().filter(|n| !known.contains(n) && !layout.ignores(n)).collect();
        let (mut missing, mut misshapen) = (vec![], vec![]);
        for (w, n) in weights.iter().zip(&names) {
            match self.tensors.get(n) {
                None => missing.push(format!("{n} {:?}{}", w.shape, nearest(n, extra.iter().copied()))),
                Some(e) if e.shape == w.shape || flat(&e.shape, w) => {
                    if !["F64", "F32", "BF16", "F16"].contains(&e.dtype.as_str()) {
                        misshapen.push(format!("{n} is {}, but weights are F64, F32, BF16 or F16", e.dtype));
                    }
                }
                Some(e) => misshapen.push(format!("{n} is {:?}, but the configuration makes it {:?}", e.shape, w.shape)),
            }
        }
        let extra: Vec<String> = extra.iter().map(|n| format!("{n} {:?}", self.tensors[*n].shape)).collect();
        if missing.is_empty() && misshapen.is_empty() && extra.is_empty() {
            return Ok(names);
        }
        let mut message = format!("{}: the weights are not those of the configuration", self.what);
        for (what, list) in [("missing", missing), ("wrong", misshapen), ("unexpected", extra)] {
            for m in list.iter().take(LISTED) {
                message += &format!("\n  {what}: {m}");
            }
            if list.len() > LISTED {
                message += &format!("\n  {what}: {} more", list.len() - LISTED);
            }
        }
        Err(message)
    }
    /// All weights of a network under its own names, in its order and shapes.
    ///
    /// # Errors
    /// Those of [`Checkpoint::match_to`].
    pub fn load(&self, weights: &[Weight]) -> Result<Vec<(Name, Tensor)>, String> {
        let names = self.match_to(weights)?;
        let one = |(w, n): (&Weight, &String)| Ok((w.name.clone(), self.tensor(n)?.reshape(&w.shape).map_err(|e| format!("{n}: {e}"))?));
        weights.iter().zip(&names).map(one).collect()
    }
    /// The shape that the files have for the tensor called `name`.
    pub fn shape_of(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|e| e.shape.as_slice())
    }
}

impl Shapes for Checkpoint {
    fn shape(&self, key: &str) -> Option<Vec<usize>> {
        self.tensors.get(&self.layout?.name(key)).map(|e| e.shape.clone())
    }
    fn class(&self) -> Option<&'static str> {
        self.layout.map(Layout::class)
    }
}

/// Whether `shape` is a convolution's kernel as a matrix: rCM's patch embedding.
fn flat(shape: &[usize], w: &Weight) -> bool {
    w.shape.len() > 2 && *w.name == *"patch_embedding.weight" && *shape == [w.shape[0], w.shape[1..].iter().product()]
}

fn join(names: &[&String]) -> String {
    let some: Vec<&str> = names.iter().take(LISTED).map(|s| s.as_str()).collect();
    format!("{}{}", some.join(", "), if names.len() > LISTED { ", …" } else { "" })
}
