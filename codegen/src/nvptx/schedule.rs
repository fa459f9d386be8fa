//! Schedules: what a kernel may choose, and the choice without measurements.

use super::layout::Fragment;
use super::plan::{Dot, Issue, Plan, Roles, Step, Stream, roles, walk};
use crate::Error;
use crate::target::GpuTarget;
use ir::dim::{Bindings, Dim};
use ir::tile::{AxisId, Op, Program, Role, Stmt, ValueId};
use ir::types::DType;
use std::collections::{BTreeMap, BTreeSet};

/// How a program runs on a GPU.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Schedule {
    /// Rows of a block: tile of the row axis.
    pub rows: usize,
    /// Tile of another parallel axis that lies along columns.
    pub cols: usize,
    /// Tile of streamed axes.
    pub stream: usize,
    /// Tiles of operands in shared memory at once: 1 copies, waits, computes.
    pub stages: usize,
    /// Register tiles.
    pub fragment: Fragment,
    /// Blocks that are to fit on a multiprocessor: limits registers.
    pub blocks: usize,
    /// Matrix products are those of warpgroups, on tiles that a warpgroup more copies in bulk; else those of warps.
    pub warpgroups: bool,
    /// Strides whose factors are not known are multiples of 16 bytes; the kernel's signature then demands it.
    pub aligned: bool,
    /// Left operands of products are read again as the products read them, rounded, instead of being kept beside: fewer registers, and
    /// an error like that of the products themselves. By warpgroups, of bf16.
    pub rounded: bool,
    /// Products of f32 matrices on tensor cores, operands rounded to tf32. By warps.
    #[serde(default)]
    pub tf32: bool,
    /// Warpgroups multiply in turn: while one issues its products, those before it are at what needs no matrix units. By warpgroups.
    #[serde(default)]
    pub turns: bool,
    /// A tile's last products, which only accumulators wait for, are issued behind the next tile's first: one warpgroup alone then has products beside its elementwise work. By warpgroups.
    #[serde(default)]
    pub lag: bool,
    /// Of 16 columns so many have their exponentials by polynomials, where these are of what lies below a maximum: for where special functions bind. By warpgroups.
    #[serde(default)]
    pub polynomial: usize,
    /// As many blocks as multiprocessors, which take one tile after the other: the next one's operands come while the present one's results are made and stored. By warpgroups.
    #[serde(default)]
    pub persistent: bool,
    /// Two blocks that are neighbours along rows are a cluster: of the tiles that both read each copies half, to both. By warpgroups, where all loops have the same length.
    #[serde(default)]
    pub multicast: bool,
}

impl Schedule {
    /// Tensor cores: `rows` by warps of 16 · `blocks16` rows.
    pub fn tensor(rows: usize, cols: usize, stream: usize, warps: [usize; 2], stages: usize) -> Schedule {
        let fragment = Fragment { warps, lanes: 4, vector: 2, rows: rows / warps[0] / 8 };
        Schedule { rows, ..Schedule::of(fragment, cols, stream, stages) }
    }
    /// As many rows as the fragment has, and nothing that has to be asked for.
    fn of(fragment: Fragment, cols: usize, stream: usize, stages: usize) -> Schedule {
        Schedule { rows: fragment.rows_per_block(), cols, stream, stages, fragment, blocks: 1, warpgroups: false, aligned: false, rounded: false, tf32: false, turns: false, lag: false, polynomial: 0, persistent: false, multicast: false }
    }
    /// `groups` warpgroups of 64 rows each (sm_90a).
    pub fn warpgroups(groups: usize, cols: usize, stream: usize, stages: usize) -> Schedule {
        Schedule::warpgroups_across([groups, 1], cols, stream, stages)
    }
    /// What is out of the ordinary, in words, each behind a space.
    pub fn flags(&self) -> String {
        let flags = [(self.rounded, " rounded"), (self.turns, " turns"), (self.lag, " lag"), (self.persistent, " persistent"), (self.multicast, " multicast")].into_iter().filter(|f| f.0).map(|f| f.1).collect::<String>();
        if self.polynomial > 0 { format!("{flags} polynomial {}", self.polynomial) } else { flags }
    }
    /// Warpgroups along rows, 64 rows each, by one or two along columns.
    pub fn warpgroups_across([down, across]: [usize; 2], cols: usize, stream: usize, stages: usize) -> Schedule {
        Schedule { warpgroups: true, ..Schedule::tensor(64 * down, cols, stream, [4 * down, across], stages) }
    }
}

/// Every schedule by warps that the program has a plan for on the target, with the model's cost, the cheapest first; those whose registers the model finds too many come
/// last, the one that needs least first.
///
/// # Errors
/// No schedule fits, or the program has no form on GPUs.
pub fn schedules(p: &Program, target: &GpuTarget) -> Result<Vec<(Schedule, f64)>, Error> {
    let mut why = None;
    // (too many registers by, cost)
    let mut found: Vec<(usize, f64, Schedule)> = vec![];
    let roles = roles(p, target.tf32)?;
    for s in candidates(&roles, target.tf32) {
        match Plan::of(&roles, target, &s) {
            Ok(plan) => {
                let need = registers(&plan);
                let most = target.registers_per_thread.min(target.registers_per_sm / plan.fragment.threads());
                found.push((need.saturating_sub(most), cost(&plan, target, need), s));
            }
            Err(e) => why = Some(e),
        }
    }
    if found.is_empty() {
        return Err(why.unwrap_or_else(|| Error::Internal("no candidates".into())));
    }
    // Stable: among equals the earlier candidate.
    found.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    Ok(found.into_iter().map(|(_, cost, s)| (s, cost)).collect())
}

/// The cheapest schedule, by the model: by warpgroups where there is such a form that fits, else by warps.
///
/// # Errors
/// Those of [`schedules`].
pub fn default_schedule(p: &Program, target: &GpuTarget) -> Result<Schedule, Error> {
    default_schedule_at(p, target, &Bindings::new())
}

/// The same where `dims` are known: their divisors may be taken for granted.
///
/// # Errors
/// Those of [`default_schedule`].
pub fn default_schedule_at(p: &Program, target: &GpuTarget, dims: &Bindings) -> Result<Schedule, Error> {
    if let Some(s) = by_warpgroups(p, target, dims)? {
        return Ok(s);
    }
    default_by_warps(p, target)
}

/// The same among kernels whose matrix products are those of warps, which every target has.
///
/// # Errors
/// Those of [`schedules`].
pub fn default_by_warps(p: &Program, target: &GpuTarget) -> Result<Schedule, Error> {
    schedules(p, target).map(|mut s| s.swap_remove(0).0)
}

/// The cheapest by warpgroups, if the program has a form by them that fits.
fn by_warpgroups(p: &Program, target: &GpuTarget, dims: &Bindings) -> Result<Option<Schedule>, Error> {
    Ok(schedules_by_warpgroups(p, target, dims)?.into_iter().next().map(|s| s.0))
}

/// The plan that takes strides for multiples of 16 bytes if they are at these sizes, else the one that does not, if there is one.
fn at_sizes(roles: &Roles, target: &GpuTarget, s: &mut Schedule, dims: &Bindings) -> Option<Plan> {
    if !dims.is_empty() {
        s.aligned = true;
        if let Ok(plan) = Plan::of(roles, target, s)
            && !plan.multiples.is_empty()
            && plan.multiples.iter().all(|(d, by)| d.eval(dims).is_ok_and(|n| n % by == 0))
        {
            return Some(plan);
        }
        s.aligned = false;
    }
    Plan::of(roles, target, s).ok()
}

/// Every schedule by warpgroups that fits where `dims` are known, with the model's cost, the cheapest first; none on other targets than sm_90a.
///
/// # Errors
/// The program has no form on GPUs.
pub fn schedules_by_warpgroups(p: &Program, target: &GpuTarget, dims: &Bindings) -> Result<Vec<(Schedule, f64)>, Error> {
    let roles = roles(p, false)?;
    let (_, rows, dots) = &roles;
    if target.name != "sm_90a" || p.operands == DType::F32 || !dots.values().any(|d| matches!(d, Dot::Matrix { .. })) {
        return Ok(vec![]);
    }
    let two_blocks = p.axes.iter().enumerate().any(|(i, a)| matches!(a.role, Role::Block(_)) && Some(AxisId(i as u32)) != *rows);
    let mut found: Vec<(Schedule, f64)> = vec![];
    // Two warpgroups side by side share rows, where the accumulators of one would be too many.
    for (groups, across) in [(2, 1), (3, 1), (1, 1), (2, 2)] {
        for stream in (1..=16).rev().map(|n| 16 * n) {
            for cols in if two_blocks { vec![256, 192, 128, 64, 32] } else { vec![32] } {
                if two_blocks && (stream % 64 != 0 || across > 1) {
                    continue;
                }
                // More stages need more memory, and no fewer registers.
                let mut fits = true;
                for stages in [2, 3, 4, 1] {
                    if !fits && stages > 2 {
                        continue;
                    }
                    let mut s = Schedule::warpgroups_across([groups / across, across], cols, stream, stages);
                    let Some(plan) = at_sizes(&roles, target, &mut s, dims) else {
                        fits = false;
                        continue;
                    };
                    // The assembler counts one instruction's registers by what a thread has before warpgroups exchange them.
                    if widest(&plan) / 2 + BESIDE > REGISTER_FILE / (128 * (groups + 1)) {
                        break;
                    }
                    let before = found.len();
                    let most = super::warpgroup::registers(groups).map_or(target.registers_per_thread, |r| r.1);
                    // A warpgroup's own products may run beside its elementwise work, if there are such that lag.
                    if accumulators(&plan) == 1 {
                        let mut s = Schedule { lag: true, ..s.clone() };
                        if let Ok(plan) = Plan::of(&roles, target, &s)
                            && registers(&plan) <= most
                        {
                            s.turns = groups > 1 && reduces(&plan) && plan.body.iter().any(|x| matches!(x, Step::For(l) if short(tile(&plan, l).0)));
                            // What a block begins and ends with is beside another tile's products: 2 to 3 % (forward at d 64, 128 and 256, measured). Where loops differ in length, blocks
                            // that stay count tiles in the module, and launches must not overlap: nobody gets that without asking.
                            let stays = Schedule { persistent: reduces(&plan) && plan.even(), ..s.clone() };
                            let s = if Plan::of(&roles, target, &stays).is_ok() { stays } else { s };
                            found.push((s, cost_by_warpgroups(&plan)));
                        }
                    }
                    let plan = if registers(&plan) <= most {
                        plan
                    } else {
                        // Two accumulators, whose scores are read again for the second: elsewhere the estimate is too low (seen).
                        s.rounded = p.operands == DType::BF16 && across == 1;
                        match Plan::of(&roles, target, &s) {
                            Ok(plan) if s.rounded && accumulators(&plan) == 2 && loads_in_loop(&plan) == 0 && registers(&plan) <= most => plan,
                            _ if found.len() == before => break,
                            _ => continue,
                        }
                    };
                    // Exchanges cost more than the model says: 341 against 542 TFLOP/s, forward at 256, measured.
                    let cost = cost_by_warpgroups(&plan) * if across > 1 { 1.5 } else { 1.0 };
                    found.push((s, cost));
                }
            }
        }
    }
    // Stable: among equals the earlier candidate.
    found.sort_by(|a, b| a.1.total_cmp(&b.1));
    Ok(found)
}

/// Why a kernel is better where its maxima stay behind (`behind`) than where they do not (`still`), if it is: at the model's best schedule, what corrects accumulators in
/// every tile, less what it costs to ask whether it must, is 6 % of a tile's clocks. Products of f16 could overflow, and stay as they are.
pub fn maxima_behind(still: &Program, behind: &Program) -> Option<String> {
    let target = GpuTarget::named("sm_90a").ok().filter(|_| still.operands == DType::BF16)?;
    let best = |p: &Program| schedules_by_warpgroups(p, &target, &Bindings::new()).ok()?.into_iter().next();
    let (s, cost) = best(still)?;
    let plan = Plan::new(still, &target, &s).ok()?;
    let corrections = |l: &Stream| -> usize {
        let parts = l.body.iter().flat_map(|s| if let Step::Issue(x) = s { x.parts.as_slice() } else { &[] });
        parts.filter(|p| p.starts).filter_map(|p| if let Dot::Matrix { n, .. } = &plan.dots[&p.value] { Some(plan.inits[&p.value].len() * plan.fragment.rows * plan.slots[n.index()]) } else { None }).sum()
    };
    let most = plan.body.iter().map(|s| if let Step::For(l) = s { corrections(l) } else { 0 }).max()?;
    // Along q alone: 8 % at d 128, where 192 instructions of a warp correct two accumulators, −2 % at d 64 with 96; one accumulator: 4 % with 64 (measured).
    let saved = most.saturating_sub(60 * accumulators(&plan).saturating_sub(1)) * plan.fragment.threads() / 128;
    let share = saved as f64 / (cost * (s.rows * s.stream) as f64);
    (share >= 0.06 && best(behind).is_some()).then(|| format!("{most} instructions of a warp and tile correct accumulators, {:.0} % of its clocks, and mostly by 1; the relative error in bf16 grows by a tenth (1.5e-3 to 1.7e-3, seen)", 100.0 * share))
}

/// Registers of a multiprocessor.
const REGISTER_FILE: usize = 65536;
/// What `ptxas` wants beside the accumulators of one product (154 for 128, seen).
const BESIDE: usize = 26;

/// The most columns of one product: half as many registers of each thread.
fn widest(plan: &Plan) -> usize {
    plan.dots.values().filter_map(|d| if let Dot::Matrix { n, .. } = d { Some(plan.fragment.span(plan.slots[n.index()])) } else { None }).max().unwrap_or(0)
}

/// Clocks of matrix units, shared memory and instructions for a tile of the loop, of all warpgroups; and its columns along a second tiled axis.
fn tile(plan: &Plan, l: &Stream) -> ([f64; 3], usize) {
    let groups = (plan.fragment.threads() / 128) as f64;
    let (mut tensor, mut shared, mut issue, mut columns) = (0.0, 0.0, 0.0, 1);
    for s in &l.body {
        match s {
            Step::Issue(x) => {
                for p in &x.parts {
                    let Dot::Matrix { n, k, .. } = &plan.dots[&p.value] else { continue };
                    let slices = plan.p.axis(*k).extent().div_ceil(16) as f64;
                    let n_cols = plan.fragment.span(plan.slots[n.index()]) / if plan.ring.as_ref().is_some_and(|r| r.exchange.contains_key(&p.value)) { 2 } else { 1 };
                    if matches!(plan.p.axis(*n).role, Role::Block(_)) {
                        columns = n_cols;
                    }
                    for (left, _) in &p.terms {
                        tensor += slices * n_cols as f64 / 2.0;
                        shared += slices * (n_cols as f64 / 4.0 + if plan.staged.contains_key(left) { 16.0 } else { 0.0 });
                    }
                    // Of maxima that stay behind, accumulators are mostly left alone.
                    if p.starts && !plan.lazy {
                        issue += (plan.inits[&p.value].iter().flatten().count() * plan.fragment.rows * plan.slots[n.index()]) as f64;
                    }
                }
            }
            Step::Let(v, Op::Map(e, _)) => {
                let (r, c) = plan.shape(plan.rank(*v));
                issue += (r * c) as f64 * if *e == ir::prim::Elementwise::Exp { 8.0 } else { 1.0 };
            }
            Step::Let(v, Op::Reduce(_, x, _)) => {
                let (r, c) = plan.shape(plan.rank(*x));
                let _ = v;
                issue += (r * c + 20) as f64;
            }
            _ => {}
        }
    }
    let exchanged: usize = plan.ring.iter().flat_map(|r| r.exchange.keys()).map(|v| plan.shape(plan.rank(*v))).map(|(r, c)| r * c).sum();
    // What is exchanged is written once and read twice.
    shared += (exchanged * 4 * 128) as f64 * 1.5 / 128.0;
    ([groups * tensor, groups * shared + plan.shared[1] as f64 / 128.0, groups * issue], columns)
}

/// Clocks of a multiprocessor per element of the iteration space of the loop: tensor cores (2048 fused multiply-adds a clock), 128 bytes
/// of shared memory a clock, one instruction a clock and warp scheduler, and what a tile costs by itself. A model, not a measurement.
fn cost_by_warpgroups(plan: &Plan) -> f64 {
    let groups = (plan.fragment.threads() / 128) as f64;
    let mut total = 0.0;
    for step in &plan.body {
        let Step::For(l) = step else { continue };
        let ([tensor, shared, issue], columns) = tile(plan, l);
        // A single stage copies while nothing multiplies; more warpgroups hide each other's elementwise work.
        let alone = if groups < 2.0 { 1.0 } else { 0.25 };
        // What a tile costs by itself, more where rows are reduced; and a little per element that is read again as rounded. Both from
        // tiles of 48 to 128 keys, measured (docs/perf-log.md).
        let reduces = reduces(plan);
        // Where accumulators' products start apart, each runs by itself, and what operands in shared memory cost shows; reading again costs less then (tiles of 64
        // to 128 at d 64 and 128, measured).
        let apart = starts(l, plan) > 1;
        let again = if plan.schedule.rounded { (if apart { 0.75 } else { 1.5 }) * plan.p.axis(l.axis).extent() as f64 } else { 0.0 };
        let beside = if apart { shared / 2.0 } else { 0.0 };
        let mut clocks = tensor.max(shared).max(issue) + beside + match (plan.schedule.lag, reduces) {
            // A warpgroup's own products run beside reductions. Where they are short, three warpgroups in turn do better than two (d 64: 455 to 433 TFLOP/s, 445 where nothing
            // lags; d 128: 631 for 542, measured).
            (true, true) => 0.1 * issue + 250.0 + if short([tensor, shared, issue]) { issue * if groups > 2.0 { 0.09 } else { 0.23 } } else { 0.0 },
            // A gradient's: 2.43 for 2.60 ms at d 128, nothing at d 64 (measured).
            (true, false) => 0.1 * issue + 100.0 + if tensor < 1.5 * issue { 0.23 * issue } else { 0.0 },
            (false, true) => alone * issue + again + 500.0,
            (false, false) => alone * issue + again + 150.0,
        };
        // With two stages, what late products share with the first ones of their tile leaves its stage only when the next tile is half done (10.2 for 9.3 ms, measured).
        if plan.schedule.stages == 1 || plan.schedule.stages == 2 && super::warpgroup::late(l).is_some_and(|x| shared_early(plan, l, x)) {
            clocks *= 1.2;
        }
        total += clocks / (plan.schedule.rows * columns * plan.p.axis(l.axis).extent()) as f64;
    }
    total
}

/// Clocks of a multiprocessor per element of the iteration space, in loops of matrix products; 0 for everything else, where the first
/// candidate is the best. A model, not a measurement: tensor cores at the rate of `mma.sync`, 128 bytes of shared memory and four
/// instructions a clock; too few warps, and copies that nothing hides, cost more.
fn cost(plan: &Plan, target: &GpuTarget, registers: usize) -> f64 {
    let mut total = 0.0;
    let warps = plan.fragment.threads() / 32;
    let by_registers = target.registers_per_sm / (plan.fragment.threads() * registers.next_multiple_of(8));
    let blocks = (target.shared_per_sm / (plan.shared[2] + 1024)).min(by_registers).max(1);
    let resident = (blocks * warps) as f64;
    for step in &plan.body {
        let Step::For(l) = step else { continue };
        let (mut tensor, mut shared, mut issue) = (0.0, 0.0, 0.0);
        let mut tile = 0.0f64;
        for s in &l.body {
            match s {
                Step::Products(vs) => {
                    let (mut left, mut right, mut terms) = (vec![], vec![], 0);
                    let mut axes = None;
                    for v in vs {
                        let Dot::Matrix { n, k, terms: t } = &plan.dots[v] else { continue };
                        axes = Some((*n, *k));
                        left.extend(t.iter().map(|t| t.0).filter(|v| plan.staged.contains_key(v)));
                        right.extend(t.iter().map(|t| t.1));
                        terms += t.len();
                        issue += plan.inits[v].len() as f64 * (plan.fragment.rows * plan.slots[n.index()]) as f64;
                    }
                    left.sort();
                    left.dedup();
                    right.sort();
                    right.dedup();
                    let Some((n, k)) = axes else { continue };
                    let (rows, cols) = (plan.fragment.rows, plan.slots[n.index()]);
                    let extent = plan.p.axis(k).extent();
                    if plan.tensor {
                        let slices = extent.div_ceil(16);
                        let loads = slices * (left.len() * rows / 2 + cols.div_ceil(4) * right.len());
                        let half = if plan.shared_columns(vs.iter().copied(), n) { 2 } else { 1 };
                        let cols = cols / half;
                        let loads = loads.min(slices * (left.len() * rows / 2 + cols.div_ceil(4) * right.len()));
                        shared += if half == 2 { (vs.len() * rows * cols * 3) as f64 } else { 0.0 };
                        // Of tf32, instructions are half as deep, and single elements are loaded.
                        let (loads, slices) = if plan.schedule.tf32 { (4 * loads, 2 * slices) } else { (loads, slices) };
                        let products = slices * (cols / 2) * (rows / 2) * terms;
                        tensor += 1.6 * products as f64;
                        shared += 4.0 * loads as f64;
                        issue += (loads + products) as f64;
                    } else {
                        issue += (extent * (rows * cols * terms + left.len() * rows + right.len() * cols)) as f64;
                        shared += (extent * (left.len() * rows + right.len() * cols)) as f64;
                    }
                    // Rows of the iteration space per warp.
                    let blocks = plan.split.iter().any(|a| matches!(plan.p.axis(*a).role, Role::Block(_)));
                    let rows = plan.fragment.rows_per_warp() * if blocks { plan.fragment.span(cols) } else { 1 };
                    tile = tile.max(rows as f64 / if blocks { 1.0 } else { plan.fragment.warps[1] as f64 });
                }
                Step::Let(v, Op::Map(..) | Op::Reduce(..)) => {
                    let (r, c) = plan.shape(plan.rank(*v));
                    issue += (r * c) as f64;
                }
                _ => {}
            }
        }
        shared += plan.shared[1] as f64 / warps as f64 / 128.0;
        let most = tensor.max(shared).max(issue / 4.0);
        let mut clocks = most + 0.3 * (issue / 4.0) + 60.0 / resident.max(1.0);
        if resident < 8.0 {
            clocks *= (8.0 / resident).sqrt();
        }
        if plan.schedule.stages == 1 {
            clocks *= 1.2;
        }
        if tile > 0.0 {
            total += clocks / (tile * plan.p.axis(l.axis).extent() as f64);
        }
    }
    total
}

/// Schedules, the best first.
fn candidates((p, rows, dots): &Roles, tf32: bool) -> Vec<Schedule> {
    let rows = *rows;
    let matrix = dots.values().any(|d| matches!(d, Dot::Matrix { .. }));
    let tf32 = tf32 && matrix && p.operands == DType::F32;
    let tensor = matrix && (p.operands != DType::F32 || tf32);
    let two_blocks = p.axes.iter().enumerate().any(|(i, a)| matches!(a.role, Role::Block(_)) && Some(AxisId(i as u32)) != rows);
    let mut out = vec![];
    if tensor && two_blocks {
        for (r, c, k, w) in [
            (128, 256, 64, [2, 4]), (128, 128, 64, [2, 4]), (128, 128, 32, [2, 4]), (128, 128, 64, [4, 2]), (128, 128, 32, [4, 2]), (128, 64, 64, [4, 2]),
            (128, 64, 32, [4, 2]), (64, 64, 32, [2, 2]), (64, 32, 32, [4, 1]), (32, 32, 32, [2, 1]),
        ] {
            for stages in [3, 2] {
                out.push(Schedule { tf32, ..Schedule::tensor(r, c, k, w, stages) });
            }
        }
        return out;
    }
    if tensor {
        // Pairs of warps share rows where the accumulators of one would be too many.
        for (rows, warps) in [(128, [8, 1]), (64, [4, 1]), (128, [4, 1]), (256, [8, 1]), (32, [2, 1]), (64, [4, 2]), (32, [2, 2])] {
            for stream in (1..=8).rev().map(|n| 16 * n) {
                for stages in [2, 3, 1] {
                    out.push(Schedule { tf32, ..Schedule::tensor(rows, 32, stream, warps, stages) });
                }
            }
        }
        return out;
    }
    if matrix {
        // Fused multiply-adds: eight lanes to a row.
        let f = |warps: [usize; 2], rows| Fragment { warps, lanes: 8, vector: 1, rows };
        if two_blocks {
            for (warps, rows, cols, stream) in [([4, 2], 4, 128, 32), ([4, 2], 4, 64, 32), ([4, 1], 2, 32, 16), ([2, 1], 1, 16, 16)] {
                let fragment = f(warps, rows);
                out.push(Schedule::of(fragment, cols, stream, 2));
            }
        } else {
            for (rows, stream, stages) in [(4, 32, 2), (4, 32, 1), (4, 16, 1), (2, 32, 2), (2, 32, 1), (2, 16, 1), (1, 32, 1), (1, 16, 1)] {
                let fragment = f([4, 1], rows);
                out.push(Schedule::of(fragment, 8, stream, stages));
            }
        }
        return out;
    }
    // Rows in warps: 16 bytes a lane where that is not more than the row has.
    let widest = p.buffers.iter().map(|b| b.dtype.bytes()).min().unwrap_or(4).max(2);
    let vector = 16 / widest;
    let longest = p.axes.iter().filter_map(|a| if let Role::Full(n) = a.role { Some(n) } else { None }).max();
    let streamed = p.axes.iter().any(|a| matches!(a.role, Role::Stream(_)));
    // Sums down columns: what is streamed is far apart in memory, rows lie side by side. A lane has a row, warps share out what is streamed: there are few rows, and much is in flight.
    if let Some(r) = rows
        && streamed
        && longest.is_none_or(|n| n == 1)
        && down_columns(p, r)
    {
        for slots in [16, 8, 4] {
            out.push(Schedule::of(Fragment { warps: [1, 8], lanes: 1, vector: 1, rows: 1 }, 8, 8 * slots, 1));
        }
    }
    let (mut lanes, mut warps) = (32, 1);
    if let (Some(n), false) = (longest, streamed) {
        while lanes > 1 && lanes * vector / 2 >= n {
            lanes /= 2;
        }
        while warps < 16 && n > lanes * vector * warps * 2 {
            warps *= 2;
        }
    }
    let has_block_col = two_blocks;
    let fragment = if rows.is_none() && longest.is_none() {
        Fragment { warps: [1, 4], lanes: 32, vector, rows: 1 }
    } else if has_block_col {
        Fragment { warps: [4, 1], lanes: 32, vector, rows: 1 }
    } else {
        Fragment { warps: [(4 / warps).max(1), warps], lanes, vector, rows: 1 }
    };
    let cols = if rows.is_none() { fragment.warps[1] * 32 * vector } else { 32 * vector };
    let stream = if streamed { 32 * vector } else { 16 };
    out.push(Schedule::of(fragment, cols, stream, 1));
    let fragment = Fragment { vector: 1, ..fragment };
    out.push(Schedule::of(fragment, cols / vector, if streamed { 32 } else { 16 }, 1));
    out
}

/// Whether products take much less than the elementwise work between them.
fn short([tensor, _, issue]: [f64; 3]) -> bool {
    tensor < 0.75 * issue
}

/// Whether a tile's early products read an operand that its late ones read, too.
fn shared_early(plan: &Plan, l: &Stream, late: &Issue) -> bool {
    let rights = |x: &Issue| x.parts.iter().flat_map(|p| p.terms.iter().flat_map(|t| [t.0, t.1])).filter(|v| plan.staged.contains_key(v)).collect::<BTreeSet<_>>();
    let those = rights(late);
    l.body.iter().any(|s| matches!(s, Step::Issue(x) if !x.late && !rights(x).is_disjoint(&those)))
}

/// Whether a loop reduces rows.
fn reduces(plan: &Plan) -> bool {
    plan.body.iter().any(|s| matches!(s, Step::For(l) if l.body.iter().any(|s| matches!(s, Step::Let(_, Op::Reduce(..))))))
}

/// Whether what is loaded along a streamed axis lies side by side along the rows `r`.
fn down_columns(p: &Program, r: AxisId) -> bool {
    let mut yes = false;
    walk(&p.body, &mut |s| {
        if let Stmt::Let(_, Op::Load(v)) = s {
            yes |= v.stride(r).is_some_and(Dim::is_one) && v.strides.iter().any(|(a, _)| matches!(p.axis(*a).role, Role::Stream(_)));
        }
    });
    yes
}

/// Values with columns that a loop carries.
fn accumulators(plan: &Plan) -> usize {
    let of = |s: &Step| if let Step::For(l) = s { l.carries.iter().filter(|c| plan.rank(c.inside).col.is_some()).count() } else { 0 };
    plan.body.iter().map(of).max().unwrap_or(0)
}

/// What the assembler needs more where a loop has one accumulator and multiplies two products element by element: the words of the third are made
/// while both are still there (128 × 160 at d 128 and 128 × 192 at d 64 spill, 144 and 176 do not, seen).
fn crossed(plan: &Plan) -> usize {
    let products = |l: &Stream| -> usize { l.body.iter().map(|s| if let Step::Issue(x) = s { x.parts.iter().filter(|p| p.starts && plan.inits[&p.value].is_empty()).count() } else { 0 }).sum() };
    let two = plan.body.iter().any(|s| matches!(s, Step::For(l) if products(l) > 1));
    if two && accumulators(plan) == 1 { 20 } else { 0 }
}

/// What the assembler needs more where one accumulator's product starts before the other's operand is made (128 × 128 at d 64 spills, 112 does not, seen), and more than that
/// where what it is made of is loaded (a gradient with a dense bias spills 8 bytes, seen).
fn early(plan: &Plan) -> usize {
    let several = plan.body.iter().any(|s| matches!(s, Step::For(l) if starts(l, plan) > 1));
    let exchanged = plan.ring.as_ref().is_some_and(|r| !r.exchange.is_empty());
    if several && !exchanged && !plan.schedule.rounded { 12 + 10 * loads_in_loop(plan).min(1) } else { 0 }
}

/// How often products of carried accumulators start in a tile.
fn starts(l: &Stream, plan: &Plan) -> usize {
    l.body.iter().filter(|s| matches!(s, Step::Issue(x) if x.parts.iter().any(|p| p.starts && !plan.inits[&p.value].is_empty()))).count()
}

/// What a mask along rows and columns needs by warps. Beside two blocks of rows a warp its tests are kept per row (a causal gradient at d 64 spills 32 bytes, seen); where
/// warps share columns, halves of products wait in registers until the mask is there (the same at d 256 spills 160 bytes, seen).
fn masked(plan: &Plan) -> usize {
    let mask = |s: &Step| matches!(s, Step::Let(v, Op::Fill { keep, .. }) if plan.rank(*v).rows && plan.rank(*v).col.is_some() && keep.iter().any(|c| c.axes.len() > 1));
    let any = plan.tensor && plan.body.iter().any(|s| matches!(s, Step::For(l) if l.body.iter().any(mask)));
    match (any, plan.fragment.rows > 2, plan.fragment.warps[1] > 1 && loads_in_loop(plan) > 0) {
        (false, ..) | (true, false, false) => 0,
        (true, true, _) => 8,
        (true, false, true) => 24,
    }
}

/// What two products that are multiplied element by element need by warps beside two blocks of rows and one accumulator (q's gradient at d 64 spills 12 bytes on sm_80, seen).
fn both(plan: &Plan) -> usize {
    let fresh = |s: &Step| if let Step::Products(vs) = s { vs.iter().filter(|v| plan.inits[*v].is_empty()).count() } else { 0 };
    let two = plan.body.iter().any(|s| matches!(s, Step::For(l) if l.body.iter().map(fresh).sum::<usize>() > 1));
    if plan.tensor && plan.fragment.rows > 2 && two && accumulators(plan) == 1 { 20 } else { 0 }
}

/// What columns in shared memory need besides: more where a thread has many (128 × 160 at d 32 spills, 144 does not; 112 `rounded` at d 96, seen).
fn beside(plan: &Plan) -> usize {
    let slots = plan.vectors.keys().map(|v| plan.shape(plan.rank(*v)).1).max();
    slots.map_or(0, |n| 2 + n.saturating_sub(if plan.schedule.rounded { 20 } else { 32 }))
}

/// Words of left operands that are there a tile longer than they are made in. Where rows are reduced, the scores that new words are made of are alive until then, and old ones are
/// gone: a few are enough (128 × 224 and 192 × 128 at d 64, 128 × 192 and 192 × 80 at d 128 do not spill, 192 × 144 and 192 × 96 do, seen).
fn lagging(plan: &Plan) -> usize {
    if reduces(plan) {
        return if plan.schedule.lag { 10 } else { 0 };
    }
    let size = |v: &ValueId| {
        let (r, c) = plan.shape(plan.rank(*v));
        r * c / 2
    };
    let of = |l: &Stream| super::warpgroup::late(l).map_or(0, |x| x.parts.iter().flat_map(|p| &p.terms).map(|t| size(&t.0)).sum());
    plan.body.iter().map(|s| if let Step::For(l) = s { of(l) } else { 0 }).max().unwrap_or(0)
}

/// Kinds of loads to registers in loops, by the axes of what is loaded: each has addresses of its own.
fn loads_in_loop(plan: &Plan) -> usize {
    let load = |s: &Step| if let Step::Let(v, Op::Load(_)) = s { (!plan.staged.contains_key(v) && !plan.vectors.contains_key(v)).then(|| plan.rank(*v)) } else { None };
    let of = |s: &Step| if let Step::For(l) = s { l.body.iter().filter_map(load).map(|r| (r.rows, r.col)).collect() } else { BTreeSet::new() };
    plan.body.iter().flat_map(of).collect::<BTreeSet<_>>().len()
}

/// About how many registers a thread needs: the most that is alive at once in a loop (left operands of products packed where they are
/// defined), operands of a step of products, and addresses.
pub fn registers(plan: &Plan) -> usize {
    let size = |v: ValueId| {
        let rank = plan.rank(v);
        // Columns that shared memory holds, and what is made of them, are read and made where they are needed: a quarter at a time (seen in what spills).
        if !rank.rows && rank.col.is_some() && !plan.vectors.is_empty() {
            return plan.shape(rank).1.div_ceil(4);
        }
        let (r, c) = plan.shape(rank);
        r * c
    };
    // Operands of a step of products.
    let fragments = |group: &[ValueId]| -> usize {
        let mut operands: Vec<(ValueId, bool)> = vec![];
        let mut cols = 0;
        for v in group {
            if let Dot::Matrix { n, terms, .. } = &plan.dots[v] {
                cols = plan.slots[n.index()];
                operands.extend(terms.iter().flat_map(|(l, r)| [(*l, true), (*r, false)]));
            }
        }
        operands.sort();
        operands.dedup();
        let each = |(v, left): &(ValueId, bool)| match (plan.tensor, left) {
            // Of tf32, as loaded and as rounded; loads run ahead.
            (true, true) if plan.schedule.tf32 => 4 * plan.fragment.rows + 16,
            (true, false) if plan.schedule.tf32 => 24,
            (true, true) => 2 * plan.fragment.rows,
            (true, false) => 4,
            // Unrolled: the loads of several steps are in flight.
            (false, true) if !plan.staged.contains_key(v) => 24,
            (false, true) => 4 * plan.fragment.rows,
            (false, false) => 4 * cols,
        };
        operands.iter().filter(|(v, _)| !plan.tensor || plan.staged.contains_key(v)).map(each).sum()
    };
    // Every operand of products without tensor cores, along the whole summed axis.
    let whole = |group: &[ValueId]| -> usize {
        let (mut operands, mut each) = (vec![], [0, 0]);
        let mut extent = 0;
        for v in group {
            if let Dot::Matrix { n, k, terms } = &plan.dots[v] {
                each = [plan.fragment.rows, plan.slots[n.index()]];
                extent = plan.p.axis(*k).extent();
                operands.extend(terms.iter().flat_map(|(l, r)| [(*l, 0), (*r, 1)]).filter(|(v, _)| plan.staged.contains_key(v)));
            }
        }
        operands.sort();
        operands.dedup();
        operands.iter().map(|(_, side)| each[*side] * extent).sum()
    };
    // Two left operands in shared memory that share their only right one: the assembler runs loads ahead of the products. Its figure is `ptxas`' 13.5.
    let ahead = |group: &[ValueId]| -> usize {
        let mut sides = [vec![], vec![]];
        for v in group {
            if let Dot::Matrix { terms, .. } = &plan.dots[v] {
                sides[0].extend(terms.iter().map(|t| t.0).filter(|v| plan.staged.contains_key(v)));
                sides[1].extend(terms.iter().map(|t| t.1));
            }
        }
        sides.iter_mut().for_each(|s| {
            s.sort();
            s.dedup();
        });
        match (plan.tensor && plan.ring.is_none() && sides[0].len() > 1, plan.schedule.tf32) {
            (true, true) => 100,
            (true, false) if sides[1].len() == 1 => 46,
            _ => 0,
        }
    };
    // Addresses, positions, and what the assembler needs besides. Descriptors stand in registers of their own; loads and exchanges in
    // the loop need addresses, and so does every accumulator beyond two (seen in what the assembler spills).
    let others = match &plan.ring {
        None => 44 + masked(plan) + both(plan),
        Some(ring) => {
            12 + 6 * usize::from(plan.schedule.rounded) + 12 * loads_in_loop(plan) + 12 * usize::from(!ring.exchange.is_empty()) + 12 * accumulators(plan).saturating_sub(2) + crossed(plan) + early(plan) + beside(plan) + lagging(plan)
        }
    };
    let mut most = 0;
    for s in &plan.body {
        match s {
            Step::For(l) => {
                // Per value: where it is made, where it is read last, and where a product reads it last.
                let end = l.body.len();
                let mut lives: BTreeMap<ValueId, [usize; 3]> = BTreeMap::new();
                let ahead = l.body.iter().map(|s| if let Step::Products(vs) = s { ahead(vs) } else { 0 }).max().unwrap_or(0);
                // Left operands that are made before the loop, without tensor cores: what lanes exchange of them does not change, and is exchanged before the loop.
                let mut before: BTreeMap<ValueId, usize> = BTreeMap::new();
                for v in l.body.iter().flat_map(|s| if let Step::Products(vs) = s { vs.as_slice() } else { &[] }) {
                    if let (Dot::Matrix { k, terms, .. }, false) = (&plan.dots[v], plan.tensor) {
                        let inside = |x: ValueId| l.carries.iter().any(|c| c.inside == x) || l.body.iter().any(|s| matches!(s, Step::Let(y, _) if *y == x) || matches!(s, Step::Products(ys) if ys.contains(&x)));
                        let made = terms.iter().map(|t| t.0).filter(|x| !plan.staged.contains_key(x) && !inside(*x));
                        before.extend(made.map(|x| (x, plan.fragment.rows * plan.p.axis(*k).extent())));
                    }
                }
                let ahead = ahead + before.values().sum::<usize>();
                l.carries.iter().for_each(|c| _ = lives.insert(c.inside, [0, 0, 0]));
                for (i, s) in l.body.iter().enumerate() {
                    let mut read = |v: &ValueId, product: bool| {
                        // What only a reduction reads is reduced while it is made.
                        if let (Some(x), false) = (lives.get_mut(v), matches!(s, Step::Let(_, Op::Reduce(..))) && !plan.packed.contains(v)) {
                            x[if product { 2 } else { 1 }] = i;
                        }
                    };
                    match s {
                        Step::Let(_, op) => match op {
                            Op::Map(_, args) => args.iter().for_each(|v| read(v, false)),
                            Op::Reduce(_, x, _) | Op::Fill { value: x, .. } => read(x, false),
                            Op::Dot { init, terms, .. } => init.iter().flatten().chain(terms.iter().flat_map(|(a, b)| [a, b])).for_each(|v| read(v, false)),
                            _ => {}
                        },
                        Step::Products(vs) => {
                            for v in vs {
                                plan.inits[v].iter().flatten().for_each(|v| read(v, false));
                                if let Dot::Matrix { terms, .. } = &plan.dots[v] {
                                    terms.iter().for_each(|(l, _)| read(l, true));
                                }
                            }
                        }
                        Step::Issue(x) => {
                            for p in &x.parts {
                                if p.starts {
                                    plan.inits[&p.value].iter().flatten().for_each(|v| read(v, false));
                                }
                                p.terms.iter().for_each(|(l, _)| read(l, true));
                            }
                        }
                        Step::Store(_, v) => read(v, false),
                        Step::For(_) => {}
                    }
                    match s {
                        Step::Let(v, _) if plan.staged.contains_key(v) && !plan.in_registers.contains(v) || plan.direct.contains(v) => {}
                        Step::Let(v, _) => _ = lives.insert(*v, [i, i, i]),
                        Step::Products(vs) => vs.iter().for_each(|v| _ = lives.insert(*v, [i, i, i])),
                        Step::Issue(x) => x.parts.iter().filter(|p| p.starts).for_each(|p| _ = lives.insert(p.value, [i, i, i])),
                        _ => {}
                    }
                }
                l.carries.iter().for_each(|c| _ = lives.entry(c.next).and_modify(|x| x[1] = end));
                for (i, s) in l.body.iter().enumerate() {
                    // What is read here or later, and was made before.
                    let alive = |at: usize| -> usize {
                        lives.iter().map(|(v, [made, read, product])| {
                            let packed = plan.packed.contains(v);
                            // Read again as rounded: whole until a product reads it, its words from then on.
                            let again = packed && plan.schedule.rounded && *product > *made;
                            let whole = *made < at && if again { *product >= at } else { *read >= at };
                            // Products of warpgroups read words until they are awaited, what is read again meanwhile beside them.
                            let last = if plan.ring.is_some() { *product.max(read) } else { *product };
                            let half = packed && *made < at && if again { *product < at && *read >= at } else { last >= at };
                            usize::from(whole) * size(*v) + usize::from(half) * (size(*v) / if plan.schedule.tf32 { 1 } else { 2 })
                        }).sum()
                    };
                    let own = match s {
                        Step::Products(vs) => fragments(vs) + vs.iter().filter(|v| plan.inits[*v].is_empty()).map(|v| size(*v)).sum::<usize>(),
                        Step::Issue(x) => x.parts.iter().filter(|p| p.starts && plan.inits[&p.value].is_empty()).map(|p| size(p.value)).sum(),
                        // Two addresses per element.
                        Step::Let(v, Op::Dot { .. }) if plan.dots[v] == Dot::Direct => 5 * size(*v),
                        _ => 0,
                    };
                    most = most.max(alive(i) + own + others + ahead);
                }
            }
            Step::Products(vs) => {
                most = most.max(fragments(vs) + vs.iter().map(|v| size(*v)).sum::<usize>() + 44);
                // Written out over the whole summed axis, and nothing is between the loads: all of them may be in flight.
                if !plan.tensor {
                    most = most.max(whole(vs));
                }
            }
            Step::Let(v, Op::Dot { .. }) if plan.dots[v] == Dot::Direct => most = most.max(6 * size(*v) + 44),
            // By warpgroups, what follows the loop is done a few columns at a time.
            Step::Let(v, _) if !plan.staged.contains_key(v) => most = most.max(size(*v) * if plan.ring.is_some() { 1 } else { 2 } + 30),
            _ => {}
        }
    }
    most
}
