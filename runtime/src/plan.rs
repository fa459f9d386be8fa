//! Plans: a function as an ordered list of launches, with a place in memory for everything, known before anything runs.
//!
//! Parameters and results are the caller's memory. What lies between lives in one arena: a buffer has its bytes from the launch that writes
//! it to the last one that reads it, and two buffers share bytes only where their times do not meet. Offsets are found by placing the largest
//! buffer first, each at the lowest offset that is free for its time (Pisarchyk and Lee 2020, *greedy by size*). A plan is data: it can be
//! printed, written down and checked, and is the same for every device.

use ir::artifact::GpuSignature;
use ir::diagnostic::Error;
use ir::dim::{Bindings, Name};
use ir::tensor::Tensor;
use ir::tile::Access;
use ir::tile::sequence::Sequence;
use ir::types::DType;
use serde::{Deserialize, Serialize};

/// Buffers start at multiples of this many bytes of the arena.
pub const ALIGN: usize = 64;

/// A function's launches and memory.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Names of the kernels.
    pub kernels: Vec<Name>,
    /// Everything in memory.
    pub buffers: Vec<Buffer>,
    /// Per parameter a position in `buffers`.
    pub params: Vec<usize>,
    /// Per result a position in `buffers`.
    pub results: Vec<usize>,
    /// In order.
    pub launches: Vec<Launch>,
    /// Bytes of the arena.
    pub arena: usize,
    /// Bytes of the arena that live at once, at most: no plan of these launches in this order has a smaller arena.
    pub bound: usize,
    /// Numbers of all dimensions.
    pub dims: Bindings,
}

/// A dense tensor in memory.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Buffer {
    /// What people call it.
    pub name: Name,
    /// Element type.
    pub dtype: DType,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Where it is.
    pub home: Home,
}

impl Buffer {
    /// Number of bytes.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bytes()
    }
}

/// Where a buffer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Home {
    /// The parameter's memory.
    Param(usize),
    /// The result's memory.
    Result(usize),
    /// The arena, from this byte on.
    Arena(usize),
    /// Nowhere: no launch has it.
    Nowhere,
}

/// One launch.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Launch {
    /// Which kernel.
    pub kernel: usize,
    /// Per buffer of the kernel: a position in `buffers`, and a byte of it.
    pub buffers: Vec<(usize, usize)>,
}

/// When a buffer has to keep its bytes: launches from the first to the last one, both included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lifetime {
    /// Number of bytes.
    pub bytes: usize,
    /// The launch that writes it.
    pub first: usize,
    /// The last launch that has it.
    pub last: usize,
}

impl Plan {
    /// The plan of a sequence for sizes `dims`.
    ///
    /// # Errors
    /// A size without a number; a buffer that is read before anything wrote it, which is a bug of whoever made the sequence.
    pub fn new(s: &Sequence, dims: &Bindings) -> Result<Plan, Error> {
        let mut buffers = vec![];
        for m in &s.memory {
            let size = |d: &ir::dim::Dim| d.eval(dims).map(|n| n.max(0) as usize).map_err(|e| Error::new(format!("plan: `{}`: {e}", m.name)));
            let shape = m.shape.iter().map(size).collect::<Result<Vec<_>, _>>()?;
            buffers.push(Buffer { name: m.name.clone(), dtype: m.dtype, shape, home: Home::Nowhere });
        }
        s.params.iter().enumerate().for_each(|(i, m)| buffers[*m].home = Home::Param(i));
        s.results.iter().enumerate().for_each(|(i, m)| buffers[*m].home = Home::Result(i));
        let mut lives: Vec<Option<Lifetime>> = vec![None; buffers.len()];
        let mut launches = vec![];
        for (at, l) in s.launches.iter().enumerate() {
            let program = &s.programs[l.program];
            let mut own = vec![];
            for (b, p) in program.buffers.iter().zip(&l.buffers) {
                let offset = p.offset.eval(dims).map_err(|e| Error::new(format!("plan: `{}`: {e}", buffers[p.memory].name)))?.max(0) as usize;
                own.push((p.memory, offset * b.dtype.bytes()));
                let outside = matches!(buffers[p.memory].home, Home::Param(_) | Home::Result(_));
                match &mut lives[p.memory] {
                    Some(life) => life.last = at,
                    None if outside => {}
                    None if b.access == Access::Input => return Err(Error::new(format!("plan: launch {at} of {} reads `{}`, which nothing wrote", program.name, buffers[p.memory].name))),
                    none => *none = Some(Lifetime { bytes: buffers[p.memory].bytes(), first: at, last: at }),
                }
            }
            launches.push(Launch { kernel: l.program, buffers: own });
        }
        let inside: Vec<usize> = (0..buffers.len()).filter(|i| lives[*i].is_some()).collect();
        let times: Vec<Lifetime> = inside.iter().filter_map(|i| lives[*i]).collect();
        let (offsets, arena) = place(&times);
        for (i, o) in inside.iter().zip(offsets) {
            buffers[*i].home = Home::Arena(o);
        }
        Ok(Plan {
            kernels: s.programs.iter().map(|p| p.name.clone()).collect(),
            buffers,
            params: s.params.clone(),
            results: s.results.clone(),
            launches,
            arena,
            bound: bound(&times),
            dims: dims.clone(),
        })
    }
    /// Whether every launch of kernels for a GPU is given what its kernel takes, and the sizes that it runs for.
    ///
    /// # Errors
    /// The kernel and the buffer, and both sides.
    pub fn fits(&self, kernels: &[&GpuSignature]) -> Result<(), Error> {
        for l in &self.launches {
            let Some(s) = kernels.get(l.kernel) else { return Err(Error::new(format!("the plan has kernel {}, but {} given", l.kernel, kernels.len()))) };
            s.allows(&self.dims).map_err(Error::new)?;
            if s.buffers.len() != l.buffers.len() {
                return Err(Error::new(format!("kernel `{}` has {} buffers, but the plan gives {}", s.symbol, s.buffers.len(), l.buffers.len())));
            }
            for (b, (m, offset)) in s.buffers.iter().zip(&l.buffers) {
                let n = b.shape.iter().try_fold(1, |n, d| Ok(n * d.eval(&self.dims)?.max(0) as usize)).map_err(|e: ir::dim::DimError| Error::new(format!("buffer `{}` of kernel `{}`: {e}", b.name, s.symbol)))?;
                let have = &self.buffers[*m];
                if have.dtype != b.dtype || offset + n * b.dtype.bytes() > have.bytes() {
                    return Err(Error::new(format!("buffer `{}` of kernel `{}` is {n} elements of {}, but the plan gives {} {:?} from byte {offset} of `{}`", b.name, s.symbol, b.dtype, have.dtype, have.shape, have.name)));
                }
                // Kernels for GPUs load vectors of 16 bytes.
                if offset % 16 != 0 {
                    return Err(Error::new(format!("buffer `{}` of kernel `{}` begins at byte {offset} of `{}`, which is no multiple of 16", b.name, s.symbol, have.name)));
                }
            }
        }
        Ok(())
    }
    /// Whether these are its parameters.
    ///
    /// # Errors
    /// How many there are, or the first that differs, and both sides.
    pub fn takes(&self, params: &[&Tensor]) -> Result<(), Error> {
        if params.len() != self.params.len() {
            return Err(Error::new(format!("the plan has {} parameters, but {} given", self.params.len(), params.len())));
        }
        for (b, t) in self.params.iter().map(|b| &self.buffers[*b]).zip(params) {
            if t.dtype() != b.dtype || t.shape() != b.shape {
                return Err(Error::new(format!("`{}` is {} {:?}, but the tensor is {} {:?}", b.name, b.dtype, b.shape, t.dtype(), t.shape())));
            }
        }
        Ok(())
    }
    /// Whether result number `r` may lie where parameter number `p` lies, as far as launches go: no launch reads the parameter behind the first one that writes the result, and a launch
    /// that has both takes them whole. That such a kernel reads an element before it writes it is for its function to say: elementwise ones do.
    pub fn may_replace(&self, p: usize, r: usize) -> bool {
        let (Some(&p), Some(&r)) = (self.params.get(p), self.results.get(r)) else { return false };
        let (old, new) = (&self.buffers[p], &self.buffers[r]);
        let touches = |l: &Launch, m: usize| l.buffers.iter().any(|(b, _)| *b == m);
        let Some(written) = self.launches.iter().position(|l| touches(l, r)) else { return false };
        let whole = self.launches[written].buffers.iter().all(|(b, offset)| (*b != p && *b != r) || *offset == 0);
        old.dtype == new.dtype && old.shape == new.shape && whole && !self.launches[written + 1..].iter().any(|l| touches(l, p))
    }
    /// Bytes of parameters, each once.
    pub fn param_bytes(&self) -> usize {
        self.params.iter().map(|b| self.buffers[*b].bytes()).sum()
    }
    /// Bytes of results.
    pub fn result_bytes(&self) -> usize {
        self.results.iter().map(|b| self.buffers[*b].bytes()).sum()
    }
    /// Bytes of parameters, results and arena: everything that a run touches but the kernels' scratch memory.
    pub fn peak_bytes(&self) -> usize {
        self.param_bytes() + self.result_bytes() + self.arena
    }
}

fn aligned(bytes: usize) -> usize {
    bytes.div_ceil(ALIGN) * ALIGN
}

/// An offset for each buffer, and the bytes that hold them all.
pub fn place(lives: &[Lifetime]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..lives.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(lives[*i].bytes), lives[*i].first, *i));
    let mut offsets = vec![0; lives.len()];
    let (mut placed, mut total): (Vec<usize>, usize) = (vec![], 0);
    // By offset, so that gaps are found from below.
    for i in order {
        let l = lives[i];
        let size = aligned(l.bytes);
        let mut at = 0;
        for &j in placed.iter().filter(|j| lives[**j].first <= l.last && l.first <= lives[**j].last) {
            if at + size <= offsets[j] {
                break;
            }
            at = at.max(offsets[j] + aligned(lives[j].bytes));
        }
        offsets[i] = at;
        total = total.max(at + size);
        let before = placed.partition_point(|j| offsets[*j] <= at);
        placed.insert(before, i);
    }
    (offsets, total)
}

/// The most bytes that live at once.
pub fn bound(lives: &[Lifetime]) -> usize {
    let end = lives.iter().map(|l| l.last + 2).max().unwrap_or(0);
    let mut change = vec![0i64; end];
    for l in lives {
        change[l.first] += aligned(l.bytes) as i64;
        change[l.last + 1] -= aligned(l.bytes) as i64;
    }
    let (mut now, mut most) = (0, 0);
    for c in change {
        now += c;
        most = most.max(now);
    }
    most as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_two_live_buffers_overlap(list in proptest::collection::vec((0usize..5000, 0usize..60, 0usize..12), 0..120)) {
            let lives: Vec<Lifetime> = list.iter().map(|(bytes, first, more)| Lifetime { bytes: *bytes, first: *first, last: first + more }).collect();
            let (offsets, total) = place(&lives);
            for (i, a) in lives.iter().enumerate() {
                prop_assert!(offsets[i] % ALIGN == 0 && offsets[i] + a.bytes <= total);
                for (j, b) in lives.iter().enumerate().skip(i + 1) {
                    let meet = a.first <= b.last && b.first <= a.last;
                    let apart = offsets[i] + a.bytes <= offsets[j] || offsets[j] + b.bytes <= offsets[i];
                    prop_assert!(!meet || apart, "{:?} at {} and {:?} at {}", a, offsets[i], b, offsets[j]);
                }
            }
            prop_assert!(total >= bound(&lives));
        }
    }

    /// Layers whose rows live until the next layer, with working memory inside, forward; and backward, residuals that live until their
    /// layer comes again.
    fn network(layers: usize, backward: bool) -> Vec<Lifetime> {
        let (rows, hidden, stats) = (1 << 20, 4 << 20, 1 << 13);
        let (steps, end) = (6, 12 * layers);
        let mut out = vec![];
        for l in 0..layers {
            let at = l * steps;
            let mirrored = end - at;
            let stays = |last: usize| if backward { mirrored - 1 } else { last };
            out.push(Lifetime { bytes: rows, first: at, last: stays(at + steps) });
            out.push(Lifetime { bytes: stats, first: at + 1, last: stays(at + 5) });
            out.push(Lifetime { bytes: 3 * rows, first: at + 1, last: at + 3 });
            out.push(Lifetime { bytes: hidden, first: at + 3, last: stays(at + 4) });
            out.push(Lifetime { bytes: rows, first: at + 2, last: at + 5 });
            if backward {
                out.push(Lifetime { bytes: hidden, first: mirrored - 5, last: mirrored - 3 });
                out.push(Lifetime { bytes: rows, first: mirrored - 6, last: mirrored });
            }
        }
        out
    }

    #[test]
    fn networks_take_little_more_than_they_must() {
        for layers in [1, 2, 12, 40] {
            for backward in [false, true] {
                let lives = network(layers, backward);
                let (_, total) = place(&lives);
                let least = bound(&lives);
                assert!(total as f64 <= 1.1 * least as f64, "{layers} layers: {total} bytes, {least} live at once");
            }
        }
    }
}
