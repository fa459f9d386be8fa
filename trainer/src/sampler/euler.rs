//! Euler's method along a rectified flow: `x ← x − (u_i − u_{i+1})·v(x, u_i)`.

use super::Velocity;
use crate::rows::Rows;
use crate::time::Flow;
use ir::diagnostic::Error;

/// Follows the flow from `x` at the first of `grid` through all of them to 0.
///
/// # Errors
/// Those of the network.
pub fn euler(velocity: &mut Velocity, x: &Rows, grid: &[Flow]) -> Result<Rows, Error> {
    let mut x = x.clone();
    for (i, u) in grid.iter().enumerate() {
        let step = u.0 - grid.get(i + 1).map_or(0.0, |n| n.0);
        let v = velocity(&x, u.0)?;
        x = Rows::of([&x, &v], |_, [x, v]| x - step * v);
    }
    Ok(x)
}
