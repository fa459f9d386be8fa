//! Short clips made from still digits: each digit flies over a larger black canvas with a constant velocity and is reflected at its edges.
//!
//! How clip n of the set is made. Its digit is digit `n mod 1797` of the shipped set. Five numbers u₁…u₅ in 0..1 come from a hash of (seed, n). The start is
//! `(u₁·(H − 8), u₂·(W − 8))`; the velocity has an angle of 2π·u₃ and a length between 0.5 and 1.5 pixels a frame (0.5 + u₄); u₅ is not used. Frame t shows the digit at
//! `start + t·velocity`, folded into the canvas, with bilinear weights for the fraction of a pixel. Values stay in 0 to 16 and are normalised over the set, in
//! latent layout `[channels = 1, frames, height, width]`.
//!
//! A clip's condition is what text is to a video network, and made from two facts: the class and the quadrant of the velocity. As *tokens* they are two rows of
//! `classes + 4` numbers, one-hot each; the empty text, for guidance, is two rows of zeros.

use super::{Dataset, Rows, digits};

/// Sizes of clips.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    /// Frames.
    pub frames: usize,
    /// Height of the canvas in pixels, at least 8.
    pub height: usize,
    /// Width of the canvas in pixels, at least 8.
    pub width: usize,
}

/// The name of the condition that [`make`] gives.
pub const TOKENS: &str = "tokens";

/// `count` clips.
///
/// # Errors
/// A canvas smaller than a digit, no frame or no clip.
pub fn make(size: Size, count: usize, seed: u64) -> Result<Dataset, String> {
    let Size { frames, height, width } = size;
    if frames == 0 || count == 0 || height < 8 || width < 8 {
        return Err(format!("data: {count} clips of {frames} frames, {height} x {width}: there must be a clip and a frame, and the canvas must hold a digit of 8 x 8"));
    }
    let still = digits::shipped()?;
    let (mean, deviation) = still.scale;
    let mut samples = Vec::with_capacity(count * frames * height * width);
    let (mut labels, mut tokens) = (vec![], vec![]);
    for n in 0..count {
        let digit: Vec<f64> = still.sample(n % still.len()).iter().map(|x| f64::from(*x) * deviation + mean).collect();
        let u = |k: u64| unit(seed, n as u64, k);
        let (start, angle, speed) = ([u(1) * (height - 8) as f64, u(2) * (width - 8) as f64], std::f64::consts::TAU * u(3), 0.5 + u(4));
        let velocity = [speed * angle.sin(), speed * angle.cos()];
        for t in 0..frames {
            let at = |k: usize, room: usize| fold(start[k] + t as f64 * velocity[k], (room - 8) as f64);
            samples.extend(paint(&digit, [at(0, height), at(1, width)], height, width));
        }
        let label = still.labels[n % still.len()];
        labels.push(label);
        tokens.extend(tokens_of(label as usize, quadrant(angle), still.classes));
    }
    let conditions = [(TOKENS.to_string(), Rows { shape: vec![2, still.classes + 4], numbers: tokens })].into();
    let mut d = Dataset { name: "clips".into(), shape: vec![1, frames, height, width], samples, labels, classes: still.classes, conditions, scale: (0.0, 1.0), range: (0.0, 16.0) };
    d.check()?;
    d.normalise()?;
    Ok(d)
}

/// The two tokens, one-hot rows of `classes + 4` numbers, for a class and a quadrant 0 to 3.
pub fn tokens_of(class: usize, quadrant: usize, classes: usize) -> Vec<f32> {
    let mut t = vec![0.0; 2 * (classes + 4)];
    t[class] = 1.0;
    t[(classes + 4) + classes + quadrant] = 1.0;
    t
}

/// Which quarter of the circle an angle in 0..2π is in, 0 to 3.
fn quadrant(angle: f64) -> usize {
    ((angle / std::f64::consts::FRAC_PI_2) as usize).min(3)
}

/// `x` reflected into 0..=room.
fn fold(x: f64, room: f64) -> f64 {
    if room <= 0.0 {
        return 0.0;
    }
    let y = x.rem_euclid(2.0 * room);
    if y > room { 2.0 * room - y } else { y }
}

/// A digit of 8 × 8 with its corner at `at`, between pixels by bilinear weights.
fn paint(digit: &[f64], at: [f64; 2], height: usize, width: usize) -> Vec<f32> {
    let mut canvas = vec![0.0f64; height * width];
    let (whole, part) = (at.map(f64::floor), [at[0].fract(), at[1].fract()]);
    for (i, x) in digit.iter().enumerate() {
        for (dy, wy) in [(0, 1.0 - part[0]), (1, part[0])] {
            for (dx, wx) in [(0, 1.0 - part[1]), (1, part[1])] {
                let (y, c) = (whole[0] as usize + i / 8 + dy, whole[1] as usize + i % 8 + dx);
                // Beyond the edge the weight is 0.
                if y < height && c < width {
                    canvas[y * width + c] += wy * wx * x;
                }
            }
        }
    }
    canvas.into_iter().map(|x| x as f32).collect()
}

/// A number in 0..1 that depends on the three alone: the finaliser of SplitMix64 (Steele, Lea & Flood 2014), once per word.
fn unit(seed: u64, n: u64, k: u64) -> f64 {
    let mut z = seed;
    for word in [n, k] {
        z = z.wrapping_add(word.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
    }
    (z >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { frames: 5, height: 12, width: 14 };

    #[test]
    fn clips_are_the_same_every_time_and_keep_their_ink() {
        let (a, b) = (make(SIZE, 40, 3).unwrap(), make(SIZE, 40, 3).unwrap());
        assert_eq!(a.samples, b.samples);
        assert_ne!(a.samples, make(SIZE, 40, 4).unwrap().samples);
        assert_eq!((a.len(), &a.shape[..]), (40, &[1, 5, 12, 14][..]));
        // Bilinear weights sum to one, and the digit never leaves the canvas: every frame has the digit's sum.
        let (mean, deviation) = a.scale;
        for n in 0..40 {
            let sums: Vec<f64> = a.sample(n).chunks(12 * 14).map(|f| f.iter().map(|x| f64::from(*x) * deviation + mean).sum()).collect();
            assert!(sums.iter().all(|s| (s / sums[0] - 1.0).abs() < 1e-4), "{sums:?}");
        }
    }

    #[test]
    fn digits_move() {
        let d = make(SIZE, 40, 0).unwrap();
        for n in 0..40 {
            let frames: Vec<&[f32]> = d.sample(n).chunks(12 * 14).collect();
            assert!(frames.windows(2).all(|w| w[0] != w[1]));
        }
    }

    #[test]
    fn the_edge_reflects() {
        assert_eq!([fold(-1.0, 4.0), fold(5.0, 4.0), fold(9.0, 4.0), fold(2.5, 4.0), fold(3.0, 0.0)], [1.0, 3.0, 1.0, 2.5, 0.0]);
    }

    #[test]
    fn tokens_say_class_and_quadrant() {
        let d = make(SIZE, 30, 0).unwrap();
        let rows = &d.conditions[TOKENS];
        assert_eq!(rows.shape, [2, 14]);
        for n in 0..30 {
            let t = &rows.numbers[n * 28..(n + 1) * 28];
            assert_eq!((t[d.labels[n] as usize], t[..14].iter().sum::<f32>(), t[14..24].iter().sum::<f32>(), t[24..].iter().sum::<f32>()), (1.0, 1.0, 0.0, 1.0));
        }
    }

    #[test]
    fn a_canvas_must_hold_a_digit() {
        assert!(make(Size { height: 7, ..SIZE }, 1, 0).unwrap_err().contains("must hold a digit"));
    }
}
