//! Shrinking: from a bad case to a smaller one that is bad in the same way. Greedy, as property tests do it: try sizes, then fewer
//! directions, then simpler numbers; take the first that still fails; start over, until nothing smaller fails.

use super::case::{Case, Fault, Figures, Values, measure};
use ir::dim::Name;
use ir::graph::Function;

/// Evaluations after which the smallest case so far has to do.
const PATIENCE: usize = 150;

/// The smallest bad case found and its figures; the case itself without figures if there is none smaller.
pub fn shrink(f: &Function, case: &Case, figures: &Figures, faults: &[Fault]) -> (Case, Option<Figures>) {
    let machines = faults.iter().any(|x| matches!(x, Fault::Machine(_)));
    let mut best = (Case { given: figures.sizes.clone(), ..case.clone() }, None);
    let mut left = PATIENCE;
    'again: loop {
        for candidate in smaller(&best.0) {
            if left == 0 {
                return best;
            }
            left -= 1;
            // A candidate without a value (a size that does not divide) is no case.
            let Ok(m) = measure(f, &candidate, machines) else { continue };
            if m.faults().iter().any(|x| faults.contains(x)) {
                best = (candidate, Some(m));
                continue 'again;
            }
        }
        return best;
    }
}

/// Cases one step smaller, the largest steps first.
fn smaller(c: &Case) -> Vec<Case> {
    let mut list = vec![];
    let sized = |change: &dyn Fn(&Name, i64) -> i64| {
        let given = c.given.iter().map(|(k, v)| (k.clone(), change(k, *v))).collect();
        Case { given, ..c.clone() }
    };
    if c.given.values().any(|n| *n > 1) {
        list.push(sized(&|_, n| n.min(1)));
        for (name, n) in c.given.iter().filter(|(_, n)| **n > 1) {
            let mut steps = vec![1, n / 2, n - 1];
            steps.dedup();
            list.extend(steps.into_iter().filter(|s| s < n).map(|s| sized(&|k, v| if k == name { s } else { v })));
        }
    }
    if c.wrt.len() > 1 {
        list.extend((0..c.wrt.len()).map(|i| Case { wrt: c.wrt.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, n)| n.clone()).collect(), ..c.clone() }));
    }
    match c.values {
        Values::Drawn => list.extend([Values::Steps, Values::Rounded].map(|values| Case { values, ..c.clone() })),
        Values::Rounded => list.push(Case { values: Values::Steps, ..c.clone() }),
        Values::Steps => {}
    }
    list
}
