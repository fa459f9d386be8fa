//! Centred tangents.
//!
//! Let a pass carry `L = Σ w`, `R = Σ w·τ` and `T = Σ s·(w·τ)·u + …`, with w an exp, and also `S = Σ w·u`. For any c that is constant along x,
//! `Σ s·(w·(τ − c))·u = (that part of T) − c·s·S`: T shifts by a multiple of a sum that is carried anyway. With c = R/L, the weighted mean of τ, the product
//! `w·(τ − c)` is small where τ has a common offset or w is peaked, and it is this product that matrix units round. So T is carried
//! centred, moved along when c moves, and uncentred once behind the loop:
//!
//! ```text
//! T' = (T + (c − c')·s·S)·corr + Σ s·(w·(τ − c'))·u + …        c = R/L,  c' = R'/L'
//! ```
//!
//! Since c moves with every tile, R itself gives it, and nothing more is carried. No published kernel does this; the identity is linear algebra.

use ir::graph::Var;

/// How one accumulator is centred.
#[derive(Clone, Debug)]
pub struct Center {
    /// `w·τ`, the operand that is replaced by `w·(τ − c)`.
    pub product: Var,
    /// w.
    pub weight: Var,
    /// τ.
    pub tangent: Var,
    /// R.
    pub row: Var,
    /// L.
    pub sum: Var,
    /// Per term of the accumulator that has `product`: its number, and S.
    pub slopes: Vec<(usize, Var)>,
}
