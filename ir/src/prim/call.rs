//! Calls: one result of a function of the same module. A callee is part of the operation, so that a function means the same wherever it
//! stands; what is derived of it, compiled of it or printed of it is made once and shared by all its calls.

use super::Mismatch;
use crate::graph::Function;
use crate::types::Type;
use serde::{Deserialize, Serialize};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// A function that is called.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Callee(pub Arc<Function>);

impl std::ops::Deref for Callee {
    type Target = Function;
    fn deref(&self) -> &Function {
        &self.0
    }
}
impl PartialEq for Callee {
    fn eq(&self, o: &Callee) -> bool {
        Arc::ptr_eq(&self.0, &o.0) || self.0 == o.0
    }
}
impl Eq for Callee {}
impl Hash for Callee {
    fn hash<H: Hasher>(&self, h: &mut H) {
        (&self.name, self.params.len(), self.eqns.len()).hash(h);
    }
}

/// One result of a call; the equations of a call's other results have the same callee and operands.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Call {
    /// The function.
    pub function: Callee,
    /// Which result.
    pub result: usize,
}

impl Call {
    /// The type of the result. Operands have exactly the parameters' types, order of axes included: they are buffers.
    pub(super) fn infer(&self, args: &[&Type]) -> Result<Type, Mismatch> {
        let f = &self.function;
        if args.len() != f.params.len() {
            return Err(Mismatch::new(format!("`{}` takes {} operands, but {} given", f.name, f.params.len(), args.len())));
        }
        if let Some((p, t)) = f.params.iter().zip(args).find(|(p, t)| f.ty(p.var) != **t) {
            return Err(Mismatch::new(format!("parameter `{}` of `{}` is {}, but the operand is {t}", p.name, f.name, f.ty(p.var)))
                .hint("operands of a call have the parameters' axes in their order: `rename`, `permute` or `broadcast` them"));
        }
        let r = f.results.get(self.result).ok_or_else(|| Mismatch::new(format!("`{}` has {} results", f.name, f.results.len())))?;
        Ok(f.ty(r.var).clone())
    }
}
