//! Programs to programs. Each pass is a pure function; no pass knows a layer.

pub mod ad;
pub mod fuse;
pub mod simplify;
