//! Equality saturation: the function as written and its normal form in one e-graph, as equals, the rules, and a search for the best
//! of the equal forms. (Design and figures: the trial that this follows put the scaling law into the extractor and seeded the graph
//! with the normal form, so that what is left at the limit never depends on luck.)

use super::extract::{GAIN, Key, Search, key, tries};
use super::language::{Graph, Node, Terms};
use super::normal::normalize;
use super::rules::{RULES, Rule, compile};
use egg::{EGraph, FlatTerm, Id, Language, RecExpr, Rewrite, RewriteScheduler, Runner, SearchMatches, StopReason};
use ir::diagnostic::Error;
use ir::dim::Name;
use ir::graph::{Function, Var};
use ir::types::Type;
use std::collections::{BTreeMap, HashMap};

/// Nodes at which saturation ends; never a clock.
const NODES: usize = 2000;
/// Rounds.
const ROUNDS: usize = 40;
/// Matches of one rule in one round.
const MATCHES: usize = 2000;
/// Nodes of graphs that prove: swaps are nodes there.
const PROOF_NODES: usize = 20_000;

/// A simplified function, and how it came about.
#[derive(Clone, Debug)]
pub struct Simplified {
    /// The function: same parameters, results and meaning to rounding.
    pub function: Function,
    /// What the e-graph did.
    pub report: Report,
    /// Per result that is not in normal form: the term it was and the term it is.
    changed: Vec<(Name, RecExpr<Node<true>>, RecExpr<Node<true>>)>,
    types: super::language::Types,
    params: Vec<Name>,
}

/// What the e-graph did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Why saturation ended.
    pub stop: String,
    /// Rounds.
    pub rounds: usize,
    /// Nodes.
    pub nodes: usize,
    /// Classes.
    pub classes: usize,
    /// How often each rule joined two classes.
    pub applied: BTreeMap<String, usize>,
    /// The normal form's key; none if it does not fuse at nominal sizes, and then the e-graph is left out.
    pub normal: Option<Key>,
    /// The key of the form that was taken.
    pub taken: Option<Key>,
    /// Forms that were fused to compare them.
    pub tries: usize,
}

/// At most so many matches a rule: the limit of nodes is looked at between rules only.
struct Capped;
impl<L: Language, N: egg::Analysis<L>> RewriteScheduler<L, N> for Capped {
    fn search_rewrite<'a>(&mut self, _round: usize, g: &EGraph<L, N>, rule: &'a Rewrite<L, N>) -> Vec<SearchMatches<'a, L>> {
        rule.search_with_limit(g, MATCHES)
    }
}

/// Adds every term of `terms`; classes by position.
fn add<const S: bool>(g: &mut Graph<S>, terms: &RecExpr<Node<S>>) -> Vec<Id> {
    let mut classes: Vec<Id> = vec![];
    for n in terms {
        let n = n.clone().map_children(|a| classes[usize::from(a)]);
        classes.push(g.add(n));
    }
    classes
}

fn runner<const S: bool>(g: Graph<S>, rules: &[Rule], nodes: usize) -> Runner<Node<S>, super::language::Types> {
    let r = Runner::new(g.analysis.clone()).with_egraph(g).with_iter_limit(ROUNDS).with_node_limit(nodes).with_scheduler(Capped);
    // A clock that stands still: no limit of time ends a run, and egg's own clock would take 100 ms to calibrate at every start.
    quanta::with_clock(&quanta::Clock::mock().0, || r.run(&compile::<S>(rules)))
}

/// Normal form, e-graph, the better of the two.
///
/// # Errors
/// Those of [`normalize`].
pub fn simplify(f: &Function) -> Result<Simplified, Error> {
    simplify_with(f, RULES, &[])
}

/// The same with pairs of values of `f` that the caller knows to be equal (a saved residual and what it was computed from), and with
/// a rule set of one's own.
///
/// # Errors
/// Those of [`normalize`].
pub fn simplify_with(f: &Function, rules: &[Rule], equal: &[(Var, Var)]) -> Result<Simplified, Error> {
    let normal = normalize(f)?;
    let params: Vec<Type> = f.params.iter().map(|p| f.ty(p.var).clone()).collect();
    let mut terms = Terms::<true>::new(params);
    let (written, seed) = (terms.function(f), terms.function(&normal));
    let mut simplified = Simplified {
        function: normal,
        report: Report::default(),
        changed: vec![],
        types: terms.types.clone(),
        params: f.params.iter().map(|p| p.name.clone()).collect(),
    };
    // Two candidates, the normal form and the cheapest trees, are the least.
    if tries(f.eqns.len().max(simplified.function.eqns.len())) < 2 {
        simplified.report.stop = format!("left out, {} equations are too many to compare forms of", f.eqns.len());
        return Ok(simplified);
    }
    let Some(before) = key(&simplified.function) else {
        simplified.report.stop = "the normal form does not fuse at nominal sizes".into();
        return Ok(simplified);
    };
    simplified.report.normal = Some(before.clone());
    simplified.report.taken = Some(before.clone());
    let mut g: Graph<true> = EGraph::new(terms.types.clone());
    let classes = add(&mut g, &terms.expr);
    let class = |t: Id| classes[usize::from(t)];
    let normal = &simplified.function;
    for (w, n) in f.results.iter().zip(&normal.results) {
        g.union(class(written[w.var.index()]), class(seed[n.var.index()]));
    }
    for (a, b) in equal {
        g.union(class(written[a.index()]), class(written[b.index()]));
    }
    g.rebuild();
    let run = runner(g, rules, NODES);
    let g = &run.egraph;
    let report = &mut simplified.report;
    report.stop = match &run.stop_reason {
        Some(StopReason::Saturated) => "saturated".into(),
        Some(StopReason::NodeLimit(_)) => format!("limit of {NODES} nodes"),
        other => format!("{other:?}"),
    };
    (report.rounds, report.nodes, report.classes) = (run.iterations.len(), g.total_number_of_nodes(), g.number_of_classes());
    for (rule, n) in run.iterations.iter().flat_map(|i| &i.applied) {
        *report.applied.entry(rule.to_string()).or_insert(0) += n;
    }
    let mut names: HashMap<Id, Name> = HashMap::new();
    for (v, t) in normal.vars.iter().zip(&seed) {
        if let Some(n) = &v.name {
            names.entry(g.find(class(*t))).or_insert_with(|| n.clone());
        }
    }
    // The nodes of the normal form, each with its class.
    let mut start = vec![];
    let mut open: Vec<Id> = normal.results.iter().map(|r| seed[r.var.index()]).collect();
    let mut seen = std::collections::BTreeSet::new();
    while let Some(t) = open.pop() {
        if seen.insert(t) {
            let n = &terms.expr[t];
            start.push((class(t), n.clone().map_children(class)));
            open.extend(n.children());
        }
    }
    start.sort();
    let roots: Vec<Id> = normal.results.iter().map(|r| class(seed[r.var.index()])).collect();
    let Some(found) = Search::new(g, f, &roots, &names).run(&start) else { return Ok(simplified) };
    report.tries = found.tries;
    if found.key.score() < GAIN * before.score() {
        report.taken = Some(found.key);
        for ((r, t), is) in normal.results.iter().zip(normal.results.iter().map(|r| seed[r.var.index()])).zip(found.terms) {
            let was = terms.expr[t].build_recexpr(|i| terms.expr[i].clone());
            if was != is {
                simplified.changed.push((r.name.clone(), was, is));
            }
        }
        simplified.function = found.function;
    }
    Ok(simplified)
}

impl Simplified {
    /// For people: what the graph did, and for each result that changed a proof, one rule a line with what it changed.
    pub fn explain(&self) -> String {
        let r = &self.report;
        let mut out = vec![format!("e-graph: {}, {} rounds, {} nodes in {} classes, {} forms fused", r.stop, r.rounds, r.nodes, r.classes, r.tries)];
        if !r.applied.is_empty() {
            out.push(format!("rules: {}", r.applied.iter().map(|(k, n)| format!("{k} {n}")).collect::<Vec<_>>().join(", ")));
        }
        let line = |what: &str, k: &Key| format!("{what}: {} kernels, {} passes, {} accumulators, {:.3e} operations at nominal sizes", k.kernels, k.passes, k.accumulators, k.work);
        out.extend(r.normal.as_ref().map(|k| line("normal form", k)));
        match (&r.taken, self.changed.is_empty()) {
            (Some(k), false) => out.push(line("taken", k)),
            _ => out.push("taken: the normal form".into()),
        }
        for (name, was, is) in &self.changed {
            out.push(format!("{name}:"));
            out.extend(self.proof(was, is).into_iter().map(|l| format!("  {l}")));
        }
        out.join("\n") + "\n"
    }
    /// The steps from one term to the other, found anew in the language whose proofs can be checked.
    fn proof(&self, was: &RecExpr<Node<true>>, is: &RecExpr<Node<true>>) -> Vec<String> {
        let unsorted = |e: &RecExpr<Node<true>>| RecExpr::from(e.iter().map(|n| Node::<false> { op: n.op.clone(), args: n.args.clone() }).collect::<Vec<_>>());
        let (was, is) = (unsorted(was), unsorted(is));
        let mut g: Graph<false> = EGraph::new(self.types.clone()).with_explanations_enabled();
        let (a, b) = (g.add_expr(&was), g.add_expr(&is));
        g.rebuild();
        let mut run = runner(g, RULES, PROOF_NODES);
        if run.egraph.find(a) != run.egraph.find(b) {
            return vec![format!("no proof within {PROOF_NODES} nodes")];
        }
        let mut proof = run.explain_equivalence(&was, &is);
        let steps = proof.make_flat_explanation();
        let mut lines = vec![];
        for (before, after) in steps.iter().zip(&steps[1..]) {
            if let Some((rule, from, to)) = self.step(before, after) {
                if !rule.ends_with("-swap") {
                    lines.push(format!("{rule}: {from}  =>  {to}"));
                }
            }
        }
        lines
    }
    /// The rule of a step, and the subterm before and after it.
    fn step(&self, before: &FlatTerm<Node<false>>, after: &FlatTerm<Node<false>>) -> Option<(String, String, String)> {
        if let Some(rule) = after.forward_rule.or(after.backward_rule) {
            return Some((rule.to_string(), self.show(before), self.show(after)));
        }
        before.children.iter().zip(&after.children).find_map(|(b, a)| self.step(b, a))
    }
    fn show(&self, t: &FlatTerm<Node<false>>) -> String {
        use super::language::Op;
        let args: Vec<String> = t.children.iter().map(|c| self.show(c)).collect();
        match (&t.node.op, args.as_slice()) {
            (Op::Param(i), _) => self.params[*i as usize].to_string(),
            (Op::Add, [a, b]) => format!("({a} + {b})"),
            (Op::Mul, [a, b]) => format!("{a}·{b}"),
            (Op::Inv, [a]) => format!("1/({a})"),
            (Op::Exp, [a]) => format!("exp({a})"),
            (Op::Sum, [x, a]) => format!("Σ{x}[{a}]"),
            (Op::Opaque(k), args) => format!("{}({})", self.types.prims[*k as usize].name(), args.join(", ")),
            (_, _) => t.node.to_string(),
        }
    }
}
