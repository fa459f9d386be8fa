//! Sampling in a few steps with a consistency student (rCM, section 5; Song et al. 2023). At each time the student says the clean sample, which is noised again to the next:
//!
//! ```text
//! TrigFlow          x = ε;      x̂₀ = b·x − S·b·v(b·x, u);   x ← C'·x̂₀ + S'·ε'     or, deterministic,  cos(τ − τ')·x − sin(τ − τ')·F
//! rectified flow    x = u₀·ε;   x̂₀ = x − u·v(x, u);          x ← (1 − u')·x̂₀ + u'·ε'                     x − (u − u')·v
//! ```
//!
//! At the last time x is x̂₀. Both clocks pass through the same points but for the start, where u₀ = S·b and b differ by the factor S.

use super::Velocity;
use crate::method::angles;
use crate::rows::Rows;
use crate::time::Trig;
use ir::diagnostic::Error;

/// In whose terms samples move.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clock {
    /// `x = C·x₀ + S·ε`.
    Trig,
    /// `x = (1 − u)·x₀ + u·ε`.
    Flow,
}

/// What is between two steps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Between {
    /// New noise.
    Stochastic,
    /// A step along the trajectory that the student's velocity points to.
    Deterministic,
}

/// Samples from `noise`, at `times` from the noisiest to 0 ([`super::few_steps`]). `fresh(k)` is the new noise before step k, counted from 1.
///
/// # Errors
/// Those of the network; less than two times.
pub fn few(velocity: &mut Velocity, noise: &Rows, times: &[Trig], clock: Clock, between: Between, fresh: &mut dyn FnMut(usize) -> Rows) -> Result<Rows, Error> {
    let (Some(_), Some(last)) = (times.get(1), times.last()) else { return Err(Error::new(format!("sampler: {} times, but the last step needs two", times.len()))) };
    if last.0 != 0.0 {
        return Err(Error::new(format!("sampler: the last time is {}, but must be 0", last.0)));
    }
    let k = angles(times);
    let mut x = match clock {
        Clock::Trig => noise.clone(),
        Clock::Flow => Rows::of([noise], |_, [e]| k[0].u * e),
    };
    for n in 1..times.len() {
        let (a, z) = (k[n - 1], k[n]);
        let v = match clock {
            Clock::Trig => velocity(&Rows::of([&x], |_, [x]| a.b * x), a.u)?,
            Clock::Flow => velocity(&x, a.u)?,
        };
        let clean = match clock {
            Clock::Trig => Rows::of([&x, &v], |_, [x, v]| a.b * (x - a.s * v)),
            Clock::Flow => Rows::of([&x, &v], |_, [x, v]| x - a.u * v),
        };
        x = match (clock, between) {
            _ if n + 1 == times.len() => clean,
            (Clock::Trig, Between::Stochastic) => Rows::of([&clean, &fresh(n)], |_, [x, e]| z.c * x + z.s * e),
            (Clock::Flow, Between::Stochastic) => Rows::of([&clean, &fresh(n)], |_, [x, e]| (1.0 - z.u) * x + z.u * e),
            (Clock::Trig, Between::Deterministic) => {
                let (sin, cos) = (times[n - 1].0 - times[n].0).sin_cos();
                Rows::of([&x, &v], |_, [x, v]| cos * x - sin * ((a.c - a.s) * a.b * x + a.b * v))
            }
            (Clock::Flow, Between::Deterministic) => Rows::of([&x, &v], |_, [x, v]| x - (a.u - z.u) * v),
        };
    }
    Ok(x)
}
