//! Random numbers that are a function of what they are for: Philox 4x32-10 (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011). Ten rounds of multiplication turn a counter of 128 bits under a key of 64 into four random words, so number i of a stream needs none of those
//! before it: any thread, rank or resumed run has the same one. Streams with different keys or high words never share a counter.

/// Four random words from a counter and a key.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLY: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let (a, b) = (MULTIPLY[0] * u64::from(counter[0]), MULTIPLY[1] * u64::from(counter[2]));
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
    }
    counter
}

/// One stream: numbers by position, all different for each pair of a key and a lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stream {
    key: u64,
    lane: u64,
}

impl Stream {
    /// The stream of a key (a seed) and a lane within it (what the numbers are for).
    pub fn new(key: u64, lane: u64) -> Stream {
        Stream { key, lane }
    }
    /// Two words of 64 random bits: block `i`.
    fn block(self, i: u64) -> [u64; 2] {
        let halves = |x: u64| [x as u32, (x >> 32) as u32];
        let ([c0, c1], [c2, c3]) = (halves(i), halves(self.lane));
        let r = philox([c0, c1, c2, c3], halves(self.key));
        [u64::from(r[0]) | u64::from(r[1]) << 32, u64::from(r[2]) | u64::from(r[3]) << 32]
    }
    /// 64 random bits at position `i`.
    pub fn bits(self, i: u64) -> u64 {
        self.block(i / 2)[(i % 2) as usize]
    }
    /// Uniform in 0..1 at position `i`, a multiple of 2⁻⁵³.
    pub fn uniform(self, i: u64) -> f64 {
        unit(self.bits(i))
    }
    /// Standard normal at position `i`, by Box and Muller: positions 2k and 2k + 1 are the cosine and the sine of one pair.
    pub fn normal(self, i: u64) -> f64 {
        let pair = self.pair(i / 2);
        pair[(i % 2) as usize]
    }
    fn pair(self, k: u64) -> [f64; 2] {
        let [u, v] = self.block(k).map(unit);
        let radius = (-2.0 * (1.0 - u).ln()).sqrt();
        let (s, c) = (std::f64::consts::TAU * v).sin_cos();
        [radius * c, radius * s]
    }
    /// The first `n` uniform numbers.
    pub fn uniforms(self, n: usize) -> Vec<f64> {
        (0..n as u64).map(|i| self.uniform(i)).collect()
    }
    /// The first `n` normal numbers.
    pub fn normals(self, n: usize) -> Vec<f64> {
        (0..n.div_ceil(2) as u64).flat_map(|k| self.pair(k)).take(n).collect()
    }
}

/// The upper 53 bits as a number in 0..1.
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// A word of 64 bits from a name: FNV-1a, behind a final mixing.
pub fn lane(name: &str) -> u64 {
    mix(name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)))
}

/// A bijection of 64-bit words whose every output bit depends on every input bit: the finalizer of SplitMix64 (Steele, Lea & Flood 2014).
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_answers_as_published() {
        // The known answers that come with the authors' Random123.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);
        assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn numbers_have_their_moments_and_depend_on_their_position_alone() {
        let s = Stream::new(7, lane("noise"));
        let (u, z) = (s.uniforms(100_001), s.normals(100_001));
        assert_eq!((u[77_777], z[77_777], z[100_000]), (s.uniform(77_777), s.normal(77_777), s.normal(100_000)));
        let moment = |v: &[f64], k: i32| v.iter().map(|x| x.powi(k)).sum::<f64>() / v.len() as f64;
        // Five standard deviations of each mean.
        for (got, want, deviation) in [(moment(&u, 1), 0.5, 0.2887), (moment(&u, 2), 1.0 / 3.0, 0.2981), (moment(&z, 1), 0.0, 1.0), (moment(&z, 2), 1.0, 1.414), (moment(&z, 3), 0.0, 3.873), (moment(&z, 4), 3.0, 9.80)] {
            assert!((got - want).abs() < 5.0 * deviation / (1e5f64).sqrt(), "{got} but {want}");
        }
        // Neighbours and other lanes are unrelated.
        let other = Stream::new(7, lane("time")).normals(100_001);
        let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() / 1e5;
        assert!(product(&z, &z[1..]).abs() < 0.016 && product(&z, &other).abs() < 0.016);
    }
}
