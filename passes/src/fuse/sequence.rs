//! Functions with calls to launches.
//!
//! `cut` makes pieces and calls. Each distinct piece is simplified and fused once, whatever the names of its values, and a callee is gone
//! through once a call with that call's memory: forty equal blocks are forty times the same launches of the same few programs.

use super::cut::{Cut, Piece, Slot, Step, cut};
use super::partition::{Options, fuse};
use crate::simplify::simplify_for;
use ir::diagnostic::Error;
use ir::dim::{Dim, Name};
use ir::graph::Function;
use ir::prim::Callee;
use ir::tile::sequence::{Launch, Memory, Place, Sequence};
use ir::types::{DType, Type};
use std::collections::HashMap;
use std::rc::Rc;

/// `f` as launches of block programs. Functions that are called are gone into, whatever their depth.
///
/// # Errors
/// Those of simplification and of [`fuse`].
pub fn sequence(f: &Function, options: &Options) -> Result<Sequence, Error> {
    let (mut wide, mut narrow) = (false, false);
    floats(f, &mut wide, &mut narrow, &mut vec![]);
    let wide = wide && narrow && options.compute != DType::F64;
    let mut s = Sequencer { options, wide, out: Sequence::default(), cuts: HashMap::new(), fused: vec![], pieces: HashMap::new() };
    let params = f.params.iter().map(|p| {
        let ty = f.ty(p.var);
        let dtype = if ty.dtype.is_float() { options.stored.get(&p.name).copied().unwrap_or(if wide && ty.dtype == DType::F64 { DType::F64 } else { options.storage }) } else { ty.dtype };
        s.memory(&p.name, ty, dtype)
    });
    let params: Vec<usize> = params.collect();
    let results: Vec<usize> = f.results.iter().map(|r| s.memory(&r.name, f.ty(r.var), s.computed(f.ty(r.var)))).collect();
    let cut = cut(f, &vec![true; f.results.len()], wide)?;
    let start = |m: &usize| Place { memory: *m, offset: Dim::fixed(0) };
    s.function(&cut, &params.iter().map(start).collect::<Vec<_>>(), &results.iter().map(|m| Some(*m)).collect::<Vec<_>>())?;
    (s.out.params, s.out.results) = (params, results);
    let asked = f.results.iter().zip(&s.out.results).filter_map(|(r, m)| Some((*m, *options.stored.get(&r.name)?))).collect();
    if options.fits.is_some() {
        super::both::both(&mut s.out);
    }
    super::narrow::narrow(&mut s.out, asked, options.fits.is_some());
    Ok(s.out)
}

/// A piece that was fused.
struct Known {
    /// The piece, without names.
    form: Function,
    inputs: Vec<DType>,
    /// Its programs, and per buffer where it comes from.
    programs: Vec<(usize, Vec<Buffer>)>,
    /// Memory between its programs.
    between: Vec<Memory>,
}

/// Where a buffer of a piece's program comes from.
#[derive(Clone, Copy)]
enum Buffer {
    Input(usize),
    Output(usize),
    Between(usize),
}

struct Sequencer<'a> {
    options: &'a Options,
    /// Whether f64 values are computed in f64 beside others that are not.
    wide: bool,
    out: Sequence,
    cuts: HashMap<(Callee, Vec<bool>), Rc<Cut>>,
    fused: Vec<Known>,
    /// How many pieces of each function there are.
    pieces: HashMap<Name, usize>,
}

/// Which floats `f` and what it calls have: f64, narrower ones.
fn floats(f: &Function, wide: &mut bool, narrow: &mut bool, seen: &mut Vec<Callee>) {
    for d in f.vars.iter().map(|v| v.ty.dtype).filter(|d| d.is_float()) {
        *(if d == DType::F64 { &mut *wide } else { &mut *narrow }) = true;
    }
    for c in f.callees() {
        if !seen.contains(&c) {
            seen.push(c.clone());
            floats(&c, wide, narrow, seen);
        }
    }
}

/// `f` without names, origins and places in the text.
fn form(f: &Function) -> Function {
    let mut f = f.clone();
    f.name = "f".into();
    f.vars.iter_mut().for_each(|v| v.name = None);
    for (i, p) in f.params.iter_mut().enumerate() {
        p.name = format!("p{i}").into();
    }
    for (i, r) in f.results.iter_mut().enumerate() {
        r.name = format!("r{i}").into();
    }
    for e in &mut f.eqns {
        (e.origin, e.span) = (None, None);
    }
    f
}

impl Sequencer<'_> {
    fn memory(&mut self, name: &Name, ty: &Type, dtype: DType) -> usize {
        self.out.memory.push(Memory { name: name.clone(), dtype, shape: ty.axes.iter().map(|a| a.size.clone()).collect() });
        self.out.memory.len() - 1
    }
    /// What a computed value of type `ty` is stored in.
    fn computed(&self, ty: &Type) -> DType {
        match ty.dtype {
            DType::F64 if self.wide => DType::F64,
            d if d.is_float() => self.options.compute,
            d => d,
        }
    }

    /// The launches of a function whose parameters are at `params` and whose results go to `results`.
    fn function(&mut self, cut: &Cut, params: &[Place], results: &[Option<usize>]) -> Result<(), Error> {
        let mut place: Vec<Option<Place>> = vec![None; cut.slots.len()];
        for (s, p) in cut.params.iter().zip(params) {
            place[*s] = Some(p.clone());
        }
        for (s, m) in cut.results.iter().zip(results.iter().flatten()) {
            place[*s] = Some(Place { memory: *m, offset: Dim::fixed(0) });
        }
        let at = |s: &mut Self, place: &mut Vec<Option<Place>>, slot: Slot| -> Place {
            let (name, ty) = &cut.slots[slot];
            place[slot].get_or_insert_with(|| Place { memory: s.memory(name, ty, s.computed(ty)), offset: Dim::fixed(0) }).clone()
        };
        for step in &cut.steps {
            match step {
                Step::Piece(p) => {
                    let inputs: Vec<Place> = p.inputs.iter().map(|s| at(self, &mut place, *s)).collect();
                    let outputs: Vec<Place> = p.outputs.iter().map(|s| at(self, &mut place, *s)).collect();
                    self.piece(p, &inputs, &outputs)?;
                }
                Step::Call { function, args, results } => {
                    let args: Vec<Place> = args.iter().map(|(s, offset)| {
                        let p = at(self, &mut place, *s);
                        Place { offset: &p.offset + offset, ..p }
                    }).collect();
                    let outputs: Vec<Option<usize>> = results.iter().map(|r| r.map(|s| at(self, &mut place, s).memory)).collect();
                    let wanted: Vec<bool> = results.iter().map(Option::is_some).collect();
                    let key = (function.clone(), wanted);
                    let inner = match self.cuts.get(&key) {
                        Some(c) => c.clone(),
                        None => {
                            let c = Rc::new(super::cut::cut(function, &key.1, self.wide)?);
                            self.cuts.insert(key, c.clone());
                            c
                        }
                    };
                    self.function(&inner, &args, &outputs)?;
                }
            }
        }
        Ok(())
    }

    fn piece(&mut self, p: &Piece, inputs: &[Place], outputs: &[Place]) -> Result<(), Error> {
        let dtypes: Vec<DType> = inputs.iter().map(|p| self.out.memory[p.memory].dtype).collect();
        let form = form(&p.function);
        let known = match self.fused.iter().position(|k| k.inputs == dtypes && k.form == form) {
            Some(k) => k,
            None => {
                let k = self.fuse(&p.function, form, dtypes)?;
                self.fused.push(k);
                self.fused.len() - 1
            }
        };
        let between: Vec<usize> = self.fused[known].between.iter().enumerate().map(|(i, _)| self.out.memory.len() + i).collect();
        self.out.memory.extend(self.fused[known].between.iter().cloned());
        for (program, buffers) in &self.fused[known].programs {
            let of = |b: &Buffer| match b {
                Buffer::Input(i) => inputs[*i].clone(),
                Buffer::Output(i) => outputs[*i].clone(),
                Buffer::Between(i) => Place { memory: between[*i], offset: Dim::fixed(0) },
            };
            self.out.launches.push(Launch { program: *program, buffers: buffers.iter().map(of).collect() });
        }
        Ok(())
    }

    /// Simplifies and fuses a piece.
    fn fuse(&mut self, f: &Function, form: Function, inputs: Vec<DType>) -> Result<Known, Error> {
        let mut f = f.clone();
        // The second piece of a function is called so.
        let pieces = self.pieces.entry(f.name.clone()).or_insert(0);
        *pieces += 1;
        if *pieces > 1 {
            f.name = format!("{}_{pieces}", f.name).into();
        }
        let simple = simplify_for(&f, self.options)?.0;
        crate::verify(&simple, "simplify").map_err(Error::new)?;
        let mut options = Options { stored: Default::default(), ..self.options.clone() };
        for (p, d) in f.params.iter().zip(&inputs).filter(|(p, _)| f.ty(p.var).dtype.is_float()) {
            options.stored.insert(p.name.clone(), *d);
        }
        if self.wide && f.results.iter().any(|r| f.ty(r.var).dtype == DType::F64) {
            (options.compute, options.operands) = (DType::F64, DType::F64);
        }
        let fused = fuse(&simple, &options)?;
        self.out.notes.extend(fused.notes.iter().map(|n| if self.fused.is_empty() { n.clone() } else { format!("{}: {n}", f.name) }));
        let mut known = Known { form, inputs, programs: vec![], between: vec![] };
        let mut names: HashMap<Name, Buffer> = HashMap::new();
        // A name that is a parameter's and a result's is the parameter where it is read.
        for p in fused.programs {
            let mut buffers = vec![];
            for b in &p.buffers {
                let input = f.params.iter().position(|q| q.name == b.name).filter(|_| b.access == ir::tile::Access::Input).map(Buffer::Input);
                let output = f.results.iter().position(|q| q.name == b.name).map(Buffer::Output);
                buffers.push(input.or(output).unwrap_or_else(|| {
                    *names.entry(b.name.clone()).or_insert_with(|| {
                        known.between.push(Memory { name: b.name.clone(), dtype: b.dtype, shape: b.shape.clone() });
                        Buffer::Between(known.between.len() - 1)
                    })
                }));
            }
            self.out.programs.push(p);
            known.programs.push((self.out.programs.len() - 1, buffers));
        }
        Ok(known)
    }
}
