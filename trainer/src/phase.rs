//! Which network learns at iteration i, and how strongly (rCM, algorithm 1, as its released code counts). With H warm-up iterations
//! and every `freq`-th iteration behind them the student's:
//!
//! ```text
//! student's turn     i < H, or (i − H) mod freq = 0
//! student's count    n = i if i < H, else H + ⌊(i − H)/freq⌋         drives rollout lengths and averaging
//! tangent's weight   r = 1 if H = 0, else min(1, i/H)
//! rollout steps      student: n mod 4 + 1        critic: (i − n − 1) mod 4 + 1
//! ```

/// The plan of a training.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// H, iterations with the consistency loss alone.
    pub warm_up: u64,
    /// Every how many iterations behind that the student learns.
    pub student_every: u64,
    /// The longest rollout.
    pub rollout: u64,
}

/// Whose turn it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// The student's; the score loss too, behind the warm-up.
    Student {
        /// Whether the distribution-matching loss is on.
        score: bool,
    },
    /// The fake score network's.
    Critic,
}

impl Plan {
    /// Whose turn iteration `i` is.
    pub fn turn(self, i: u64) -> Turn {
        if i < self.warm_up || (i - self.warm_up).is_multiple_of(self.student_every.max(1)) { Turn::Student { score: i >= self.warm_up } } else { Turn::Critic }
    }
    /// How many times the student has learned before iteration `i`, as averaging and rollouts count.
    pub fn student_count(self, i: u64) -> u64 {
        if i < self.warm_up { i } else { self.warm_up + (i - self.warm_up) / self.student_every.max(1) }
    }
    /// r, the weight of the tangent in the consistency target.
    pub fn tangent_weight(self, i: u64) -> f64 {
        if self.warm_up == 0 { 1.0 } else { (i as f64 / self.warm_up as f64).min(1.0) }
    }
    /// Steps of the rollout at iteration `i`, 1 to `rollout`, in turn.
    pub fn rollout_steps(self, i: u64) -> u64 {
        let n = self.student_count(i);
        let k = match self.turn(i) {
            Turn::Student { .. } => n,
            // A critic's turn is never the first, so i > n.
            Turn::Critic => i.saturating_sub(n + 1),
        };
        k % self.rollout.max(1) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_training_in_numbers() {
        // rCM on Wan 1.3B: of 10 000 iterations 2 800 are the student's.
        let plan = Plan { warm_up: 1000, student_every: 5, rollout: 4 };
        let students = (0..10_000).filter(|i| matches!(plan.turn(*i), Turn::Student { .. })).count();
        assert_eq!((students, plan.student_count(10_000)), (2800, 2800));
        assert_eq!([plan.turn(999), plan.turn(1000), plan.turn(1001), plan.turn(1005)], [Turn::Student { score: false }, Turn::Student { score: true }, Turn::Critic, Turn::Student { score: true }]);
        assert_eq!([plan.tangent_weight(0), plan.tangent_weight(500), plan.tangent_weight(5000)], [0.0, 0.5, 1.0]);
        assert_eq!(Plan { warm_up: 0, ..plan }.tangent_weight(0), 1.0);
    }

    #[test]
    fn rollouts_go_round() {
        let plan = Plan { warm_up: 0, student_every: 5, rollout: 4 };
        let student: Vec<u64> = (0..30).filter(|i| plan.turn(*i) != Turn::Critic).map(|i| plan.rollout_steps(i)).collect();
        let critic: Vec<u64> = (0..8).filter(|i| plan.turn(*i) == Turn::Critic).map(|i| plan.rollout_steps(i)).collect();
        assert_eq!((student, critic), (vec![1, 2, 3, 4, 1, 2], vec![1, 2, 3, 4, 1, 2]));
    }
}
