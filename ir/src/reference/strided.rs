//! Loops over strided arrays: an odometer over collapsed axes, and the contraction built on it. No allocation per element.

/// A loop nest over axes with one stride per operand, size-1 axes dropped and adjoining axes joined where all operands allow it.
pub(crate) struct Nest<const N: usize> {
    axes: Vec<(usize, [isize; N])>,
    empty: bool,
}

impl<const N: usize> Nest<N> {
    /// The nest over axes `(size, strides)`, outermost first.
    pub(crate) fn new(axes: impl IntoIterator<Item = (usize, [isize; N])>) -> Nest<N> {
        let mut joined: Vec<(usize, [isize; N])> = vec![];
        let mut empty = false;
        for (size, strides) in axes {
            empty |= size == 0;
            if size <= 1 {
                continue;
            }
            match joined.last_mut() {
                Some((n, outer)) if (0..N).all(|i| outer[i] == strides[i] * size as isize) => {
                    *n *= size;
                    *outer = strides;
                }
                _ => joined.push((size, strides)),
            }
        }
        Nest { axes: joined, empty }
    }

    /// Calls `run(offsets, length, steps)` for every innermost run, in row-major order, starting from `base`.
    pub(crate) fn each(&self, base: [isize; N], mut run: impl FnMut([isize; N], usize, [isize; N])) {
        if self.empty {
            return;
        }
        let Some(((length, steps), outer)) = self.axes.split_last() else { return run(base, 1, [0; N]) };
        let mut index = vec![0usize; outer.len()];
        let mut at = base;
        loop {
            run(at, *length, *steps);
            let mut axis = outer.len();
            loop {
                if axis == 0 {
                    return;
                }
                axis -= 1;
                let (size, strides) = &outer[axis];
                index[axis] += 1;
                if index[axis] < *size {
                    (0..N).for_each(|i| at[i] += strides[i]);
                    break;
                }
                index[axis] = 0;
                (0..N).for_each(|i| at[i] -= strides[i] * (*size as isize - 1));
            }
        }
    }

    /// Least and greatest offset of each operand from its base; `None` if there is no point.
    pub(crate) fn range(&self) -> Option<[(isize, isize); N]> {
        let mut r = [(0, 0); N];
        for (size, strides) in &self.axes {
            for i in 0..N {
                let far = strides[i] * (*size as isize - 1);
                r[i] = (r[i].0 + far.min(0), r[i].1 + far.max(0));
            }
        }
        (!self.empty).then_some(r)
    }
}

/// Row-major strides of a dense array.
pub(crate) fn dense(sizes: &[usize]) -> Vec<isize> {
    let mut strides = vec![1isize; sizes.len()];
    for i in (1..sizes.len()).rev() {
        strides[i - 1] = strides[i] * sizes[i].max(1) as isize;
    }
    strides
}

/// Copies the strided elements of `x`, in row-major order of the axes.
pub(crate) fn gather(x: &[f64], base: isize, axes: impl IntoIterator<Item = (usize, isize)>, out: &mut Vec<f64>) {
    gather_nest(x, base, &Nest::new(axes.into_iter().map(|(n, s)| (n, [s]))), out);
}

fn gather_nest(x: &[f64], base: isize, nest: &Nest<1>, out: &mut Vec<f64>) {
    nest.each([base], |[at], n, [step]| match step {
        0 => out.extend(std::iter::repeat_n(x[at as usize], n)),
        1 => out.extend_from_slice(&x[at as usize..at as usize + n]),
        _ => out.extend((0..n as isize).map(|i| x[(at + i * step) as usize])),
    });
}

/// One axis of a contraction `c += Σ a·b`: its size, and its stride in each array that has it. Summed if `c` has it not.
#[derive(Clone, Copy)]
pub(crate) struct ContractAxis {
    pub(crate) size: usize,
    pub(crate) a: Option<isize>,
    pub(crate) b: Option<isize>,
    pub(crate) c: Option<isize>,
}

/// `c += Σ a·b`, in the order of the summed axes, each sum `round`ed. Operands are packed once per batch entry.
pub(crate) fn contract(axes: &[ContractAxis], a: &[f64], b: &[f64], c: &mut [f64], round: impl Fn(f64) -> f64 + Copy) {
    let of = |want: &dyn Fn(&ContractAxis) -> bool| -> Vec<ContractAxis> { axes.iter().filter(|x| want(x)).copied().collect() };
    let batch = of(&|x| x.c.is_some() && x.a.is_some() == x.b.is_some());
    let rows = of(&|x| x.c.is_some() && x.a.is_some() && x.b.is_none());
    let cols = of(&|x| x.c.is_some() && x.a.is_none() && x.b.is_some());
    let sum = of(&|x| x.c.is_none());
    let count = |v: &[ContractAxis]| v.iter().map(|x| x.size).product::<usize>();
    let (m, n, k) = (count(&rows), count(&cols), count(&sum));
    let st = |s: Option<isize>| s.unwrap_or(0);
    if m.min(n) < 4 && m.max(n) < 16 || k < 2 {
        // Too little reuse to pack for: one loop nest, sums innermost.
        let all = batch.iter().chain(&rows).chain(&cols).chain(&sum);
        let nest = Nest::new(all.map(|x| (x.size, [st(x.c), st(x.a), st(x.b)])));
        nest.each([0; 3], |[ci, ai, bi], len, [cs, as_, bs]| {
            let len = len as isize;
            if cs == 0 {
                let mut acc = c[ci as usize];
                for i in 0..len {
                    acc = round(acc + a[(ai + i * as_) as usize] * b[(bi + i * bs) as usize]);
                }
                c[ci as usize] = acc;
            } else {
                for i in 0..len {
                    let slot = &mut c[(ci + i * cs) as usize];
                    *slot = round(*slot + a[(ai + i * as_) as usize] * b[(bi + i * bs) as usize]);
                }
            }
        });
        return;
    }
    if n < m {
        // The longer side innermost.
        let swapped: Vec<ContractAxis> = axes.iter().map(|x| ContractAxis { a: x.b, b: x.a, ..*x }).collect();
        return contract_packed(&swapped, &batch.iter().map(|x| ContractAxis { a: x.b, b: x.a, ..*x }).collect::<Vec<_>>(), b, a, c, round);
    }
    contract_packed(axes, &batch, a, b, c, round);
}

fn contract_packed(axes: &[ContractAxis], batch: &[ContractAxis], a: &[f64], b: &[f64], c: &mut [f64], round: impl Fn(f64) -> f64 + Copy) {
    let of = |want: &dyn Fn(&ContractAxis) -> bool| -> Vec<ContractAxis> { axes.iter().filter(|x| want(x)).copied().collect() };
    let rows = of(&|x| x.c.is_some() && x.a.is_some() && x.b.is_none());
    let cols = of(&|x| x.c.is_some() && x.a.is_none() && x.b.is_some());
    let sum = of(&|x| x.c.is_none());
    let count = |v: &[ContractAxis]| v.iter().map(|x| x.size).product::<usize>();
    let (m, n, k) = (count(&rows), count(&cols), count(&sum));
    let st = |s: Option<isize>| s.unwrap_or(0);
    let pack_a = Nest::new(rows.iter().chain(&sum).map(|x| (x.size, [st(x.a)])));
    let pack_b = Nest::new(sum.iter().chain(&cols).map(|x| (x.size, [st(x.b)])));
    let pack_c = Nest::new(rows.iter().chain(&cols).map(|x| (x.size, [st(x.c)])));
    let (mut pa, mut pb, mut pc) = (Vec::with_capacity(m * k), Vec::with_capacity(k * n), Vec::with_capacity(m * n));
    let over = Nest::new(batch.iter().map(|x| (x.size, [st(x.a), st(x.b), st(x.c)])));
    let mut packed = [isize::MIN; 2];
    over.each([0; 3], |[a0, b0, c0], len, [as_, bs, cs]| {
        for i in 0..len as isize {
            let at = [a0 + i * as_, b0 + i * bs];
            if packed[0] != at[0] {
                pa.clear();
                gather_nest(a, at[0], &pack_a, &mut pa);
            }
            if packed[1] != at[1] {
                pb.clear();
                gather_nest(b, at[1], &pack_b, &mut pb);
            }
            packed = at;
            pc.clear();
            gather_nest(c, c0 + i * cs, &pack_c, &mut pc);
            matmul([m, n, k], &pa, &pb, &mut pc, round);
            let mut from = 0;
            pack_c.each([c0 + i * cs], |[at], len, [step]| {
                for j in 0..len {
                    c[(at + j as isize * step) as usize] = pc[from + j];
                }
                from += len;
            });
        }
    });
}

/// `c += a·b`, dense, for `a[m,k]`, `b[k,n]`, `c[m,n]`; sums in the order of `k`.
fn matmul([m, n, k]: [usize; 3], a: &[f64], b: &[f64], c: &mut [f64], round: impl Fn(f64) -> f64 + Copy) {
    const BLOCK: usize = 256;
    for k0 in (0..k).step_by(BLOCK) {
        let k1 = (k0 + BLOCK).min(k);
        for j0 in (0..n).step_by(BLOCK) {
            let w = BLOCK.min(n - j0);
            for i in 0..m {
                let (ar, cr) = (&a[i * k..(i + 1) * k], &mut c[i * n + j0..i * n + j0 + w]);
                let mut p = k0;
                while p + 4 <= k1 {
                    let row = |q: usize| &b[q * n + j0..q * n + j0 + w];
                    let (b0, b1, b2, b3) = (row(p), row(p + 1), row(p + 2), row(p + 3));
                    let (a0, a1, a2, a3) = (ar[p], ar[p + 1], ar[p + 2], ar[p + 3]);
                    for j in 0..w {
                        cr[j] = round(round(round(round(cr[j] + a0 * b0[j]) + a1 * b1[j]) + a2 * b2[j]) + a3 * b3[j]);
                    }
                    p += 4;
                }
                for p in p..k1 {
                    let (ap, row) = (ar[p], &b[p * n + j0..p * n + j0 + w]);
                    for j in 0..w {
                        cr[j] = round(cr[j] + ap * row[j]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nests_collapse_and_visit_in_order() {
        let nest = Nest::new([(2, [12]), (3, [4]), (1, [99]), (4, [1])]);
        let mut seen = vec![];
        nest.each([5], |at, n, step| seen.push((at, n, step)));
        assert_eq!(seen, [([5], 24, [1])]);
        assert_eq!(nest.range(), Some([(0, 23)]));
        let mut out = vec![];
        let x: Vec<f64> = (0..6).map(f64::from).collect();
        gather(&x, 0, [(3, 1), (2, 3)], &mut out);
        assert_eq!(out, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        Nest::new([(2, [1]), (0, [1])]).each([0], |_, _, _| panic!("no point"));
    }

    #[test]
    fn contractions_agree_with_the_definition() {
        // c[b,i,j] += Σ_{d,e} a[b,i,d,e]·b[b,d,j,e], every side long and short.
        for (nb, ni, nj, nd, ne) in [(1, 1, 1, 5, 1), (2, 3, 7, 5, 2), (3, 9, 4, 3, 1), (1, 20, 300, 270, 1), (2, 33, 2, 1, 2), (2, 2, 3, 4, 0)] {
            let val = |i: usize| ((i * 37 + 11) % 23) as f64 - 11.0;
            let (sa, sb, sc) = (dense(&[nb, ni, nd, ne]), dense(&[nb, nd, nj, ne]), dense(&[nb, ni, nj]));
            let a: Vec<f64> = (0..nb * ni * nd * ne).map(val).collect();
            let b: Vec<f64> = (0..nb * nd * nj * ne).map(|i| val(i + 5)).collect();
            let mut c: Vec<f64> = (0..nb * ni * nj).map(|i| i as f64).collect();
            let mut want = c.clone();
            for (x, w) in want.iter_mut().enumerate() {
                let (bi, i, j) = (x / (ni * nj), x / nj % ni, x % nj);
                for d in 0..nd {
                    for e in 0..ne {
                        *w += a[((bi * ni + i) * nd + d) * ne + e] * b[((bi * nd + d) * nj + j) * ne + e];
                    }
                }
            }
            let axes = [
                ContractAxis { size: nb, a: Some(sa[0]), b: Some(sb[0]), c: Some(sc[0]) },
                ContractAxis { size: ni, a: Some(sa[1]), b: None, c: Some(sc[1]) },
                ContractAxis { size: nj, a: None, b: Some(sb[2]), c: Some(sc[2]) },
                ContractAxis { size: nd, a: Some(sa[2]), b: Some(sb[1]), c: None },
                ContractAxis { size: ne, a: Some(sa[3]), b: Some(sb[3]), c: None },
            ];
            contract(&axes, &a, &b, &mut c, |x| x);
            assert_eq!(c, want);
        }
    }
}
