//! Every random number of a training is a function of the seed, the iteration, what it is for, and its position: nothing is drawn in an order, so the same
//! seed gives the same run on any number of threads, and a resumed run goes on as the uninterrupted one would have.

use ir::random::{Stream, lane, mix};

/// The random numbers of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Random {
    seed: u64,
}

impl Random {
    /// Those of a seed.
    pub fn new(seed: u64) -> Random {
        Random { seed }
    }
    /// The seed.
    pub fn seed(self) -> u64 {
        self.seed
    }
    /// The numbers that `purpose` has at `iteration`. Two draws of one iteration are independent if their purposes differ.
    pub fn stream(self, iteration: u64, purpose: &str) -> Stream {
        Stream::new(mix(self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15)), mix(iteration.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ lane(purpose)))
    }
    /// A permutation of `0..n`: positions sorted by their random words, ties by position.
    pub fn permutation(self, iteration: u64, purpose: &str, n: usize) -> Vec<usize> {
        let s = self.stream(iteration, purpose);
        let mut order: Vec<(u64, usize)> = (0..n).map(|i| (s.bits(i as u64), i)).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, i)| i).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_differ_by_seed_iteration_and_purpose() {
        let first = |seed, i, p: &str| Random::new(seed).stream(i, p).bits(0);
        let all = [first(0, 0, "a"), first(1, 0, "a"), first(0, 1, "a"), first(0, 0, "b"), first(1, 1, "b")];
        assert!((0..5).all(|i| (0..i).all(|j| all[i] != all[j])));
        assert_eq!(first(3, 9, "x"), first(3, 9, "x"));
    }

    #[test]
    fn permutations_permute() {
        let mut p = Random::new(5).permutation(2, "order", 1000);
        assert!(p.iter().enumerate().filter(|(i, x)| i == *x).count() < 10);
        p.sort_unstable();
        assert!(p.iter().enumerate().all(|(i, x)| i == *x));
    }
}
