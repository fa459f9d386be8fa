//! The rules of the e-graph: one named line each, its algebra above it, directed towards what is cheaper. No bare
//! commutativity (operands are sorted) and no free associativity (it explodes, and gains nothing: the normal form is in the graph).
//!
//! A rule has two kinds of conditions. `when` is what its truth needs: without it, the law test of rules finds a counterexample.
//! `worth` is what keeps the graph small: without it, saturation does not end within the limit.

use super::emit::{Source, function};
use super::language::{Facts, Graph, Node, Op, Types};
use egg::{Applier, ConditionalApplier, EGraph, ENodeOrVar, Id, Language, Pattern, PatternAst, RecExpr, Rewrite, SearchMatches, Searcher, Subst, Symbol, Var};
use ir::diagnostic::Error;
use ir::dim::Name;
use ir::graph::Function;
use ir::types::{Axis, DType, Type};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A condition on what the variables of a rule are bound to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// The value has none of the axes.
    Free(&'static str, &'static str),
    /// The first axes are all in the second value, or in the third outside of the fourth axes: no sum over an axis that is not there.
    Within(&'static str, &'static str, &'static str, &'static str),
    /// The first two have fewer axes than all three.
    Narrower(&'static str, &'static str, &'static str),
    /// The product of the two is in the graph.
    Known(&'static str, &'static str),
}

/// A rule.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Its name, in proofs and reports.
    pub name: &'static str,
    /// What it matches, operands of `+` and `*` in any order.
    pub from: &'static str,
    /// What is equal to that.
    pub to: &'static str,
    /// What its truth needs.
    pub when: &'static [Condition],
    /// What makes it worth while.
    pub worth: &'static [Condition],
}

use Condition::*;

/// All rules.
#[rustfmt::skip]
pub const RULES: &[Rule] = &[
    // 1·a = a,  0 + a = a
    Rule { name: "mul-1", from: "(* 1 ?a)", to: "?a", when: &[], worth: &[] },
    Rule { name: "add-0", from: "(+ 0 ?a)", to: "?a", when: &[], worth: &[] },
    // 1/(a·b) = 1/a · 1/b
    Rule { name: "inv-mul", from: "(inv (* ?a ?b))", to: "(* (inv ?a) (inv ?b))", when: &[], worth: &[] },
    // 1/exp a = exp −a,  exp a · exp b = exp (a + b); never the other way: a factor alone may overflow
    Rule { name: "inv-exp", from: "(inv (exp ?a))", to: "(exp (* -1 ?a))", when: &[], worth: &[] },
    Rule { name: "exp-mul", from: "(* (exp ?a) (exp ?b))", to: "(exp (+ ?a ?b))", when: &[], worth: &[] },
    // a·(b·c) = (a·b)·c: narrow factors meet first
    Rule { name: "mul-group-narrow", from: "(* ?a (* ?b ?c))", to: "(* (* ?a ?b) ?c)", when: &[], worth: &[Narrower("?a", "?b", "?c")] },
    // … or factors whose product is there already
    Rule { name: "mul-group-known", from: "(* ?a (* ?b ?c))", to: "(* (* ?a ?b) ?c)", when: &[], worth: &[Known("?a", "?b")] },
    // a·c + b·c = (a + b)·c
    Rule { name: "factor", from: "(+ (* ?a ?c) (* ?b ?c))", to: "(* (+ ?a ?b) ?c)", when: &[], worth: &[] },
    // c + b·c = (1 + b)·c
    Rule { name: "factor-1", from: "(+ ?c (* ?b ?c))", to: "(* (+ 1 ?b) ?c)", when: &[], worth: &[] },
    // Σ_x c·b = c·Σ_x b
    Rule { name: "sum-hoist", from: "(sum ?x (* ?c ?b))", to: "(* ?c (sum ?x ?b))", when: &[Free("?c", "?x")], worth: &[] },
    // Σ_x (c·a)·b = c·Σ_x a·b: instead of associativity
    Rule { name: "sum-hoist-2", from: "(sum ?x (* (* ?c ?a) ?b))", to: "(* ?c (sum ?x (* ?a ?b)))", when: &[Free("?c", "?x")], worth: &[] },
    // Σ_y c·Σ_x a·b = Σ_x a·Σ_y c·b: another order of a chain of contractions
    Rule { name: "sum-chain", from: "(sum ?y (* ?c (sum ?x (* ?a ?b))))", to: "(sum ?x (* ?a (sum ?y (* ?c ?b))))",
        when: &[Free("?c", "?x"), Free("?a", "?y")], worth: &[] },
    // Σ_y c·(Σ_x a + Σ_z b) = Σ_y c·Σ_x a + Σ_y c·Σ_z b: so that each chain of a product rule finds its own order
    Rule { name: "sum-part", from: "(sum ?y (* ?c (+ (sum ?x ?a) (sum ?z ?b))))", to: "(+ (sum ?y (* ?c (sum ?x ?a))) (sum ?y (* ?c (sum ?z ?b))))",
        when: &[Within("?y", "?c", "?a", "?x"), Within("?y", "?c", "?b", "?z")], worth: &[] },
];

fn var(name: &str) -> Var {
    name.parse().unwrap_or_else(|_| panic!("`{name}` is no pattern variable"))
}

impl Condition {
    /// Whether it holds, given what variables are bound to and whether the product of two is in the graph.
    fn holds(self, of: &dyn Fn(&str) -> Facts, known: &dyn Fn(&str, &str) -> bool) -> bool {
        match self {
            Free(c, x) => !of(c).meets(&of(x).names),
            Within(y, c, a, x) => {
                let (c, a, x) = (of(c), of(a), of(x).names);
                of(y).names.iter().all(|n| c.axes.iter().any(|k| k.name == *n) || (!x.contains(n) && a.axes.iter().any(|k| k.name == *n)))
            }
            Narrower(a, b, c) => {
                let (a, b) = (of(a), of(b));
                of(c).axes.iter().any(|x| !a.axes.contains(x) && !b.axes.contains(x))
            }
            Known(a, b) => known(a, b),
        }
    }
}

/// What a variable of a rule stands for in an instance.
#[derive(Clone, Debug)]
pub enum Bound {
    /// A value, by its axes.
    Value(Vec<Axis>),
    /// Axes of a sum.
    Axes(BTreeSet<Name>),
}

/// Both sides of `rule` as functions of the variables that are values, in f64: `None` if a condition of `when` fails. The law of rules
/// is that both have the same results; the second side may then not fail.
///
/// # Errors
/// Per side: it is not well typed.
#[allow(clippy::type_complexity)]
pub fn instance(rule: &Rule, bound: &BTreeMap<String, Bound>) -> Option<[Result<Function, Error>; 2]> {
    let facts = |v: &str| match &bound[v] {
        Bound::Value(axes) => Facts { dtype: Some(DType::F64), axes: axes.clone(), names: BTreeSet::new(), number: None },
        Bound::Axes(names) => Facts { dtype: None, axes: vec![], names: names.clone(), number: None },
    };
    if !rule.when.iter().all(|c| c.holds(&facts, &|_, _| true)) {
        return None;
    }
    let values: Vec<(&String, &Vec<Axis>)> = bound.iter().filter_map(|(n, b)| if let Bound::Value(a) = b { Some((n, a)) } else { None }).collect();
    let params: Vec<(Name, Type)> = values.iter().map(|(n, a)| (n[1..].into(), Type::new(DType::F64, (*a).clone()))).collect();
    let types = Types { params: params.iter().map(|p| p.1.clone()).collect(), prims: vec![] };
    let side = |text: &str| {
        let ast: PatternAst<Node<false>> = text.parse().unwrap_or_else(|e| panic!("rule pattern {text}: {e}"));
        let node = |id: Id| match &ast[id] {
            ENodeOrVar::ENode(n) => n.clone(),
            ENodeOrVar::Var(v) => match &bound[&v.to_string()] {
                Bound::Axes(names) => Node::new(Op::Axes(names.clone()), vec![]),
                Bound::Value(_) => Node::new(Op::Param(values.iter().position(|(n, _)| **n == v.to_string()).unwrap_or_default() as u32), vec![]),
            },
        };
        let source = Source { node: &node, names: &HashMap::new(), types: &types };
        function(&"side".into(), &params, &source, &[("y".into(), None, Id::from(ast.len() - 1))])
    };
    Some([side(rule.from), side(rule.to)])
}

/// The pattern `text` with the operands of `+` and `*` in every order.
fn orders<const S: bool>(text: &str) -> Vec<Pattern<Node<S>>> {
    let ast: PatternAst<Node<S>> = text.parse().unwrap_or_else(|e| panic!("rule pattern {text}: {e}"));
    fn walk<const S: bool>(ast: &PatternAst<Node<S>>, id: Id) -> Vec<PatternAst<Node<S>>> {
        let node = &ast[id];
        let mut all: Vec<PatternAst<Node<S>>> = vec![];
        let ENodeOrVar::ENode(n) = node else { return vec![RecExpr::from(vec![node.clone()])] };
        let mut choices: Vec<Vec<PatternAst<Node<S>>>> = vec![vec![]];
        for a in n.children() {
            let parts = walk(ast, *a);
            choices = choices.into_iter().flat_map(|c| parts.iter().map(move |p| c.iter().cloned().chain([p.clone()]).collect())).collect();
        }
        for c in choices {
            let swapped: Option<Vec<_>> = matches!(n.op, Op::Add | Op::Mul).then(|| c.iter().rev().cloned().collect());
            for parts in [Some(c), swapped].into_iter().flatten() {
                let mut out: PatternAst<Node<S>> = RecExpr::default();
                let mut roots = vec![];
                for p in &parts {
                    let base = out.len();
                    for m in p {
                        out.add(m.clone().map_children(|i| Id::from(usize::from(i) + base)));
                    }
                    roots.push(Id::from(out.len() - 1));
                }
                out.add(ENodeOrVar::ENode(Node { op: n.op.clone(), args: roots }));
                if !all.contains(&out) {
                    all.push(out);
                }
            }
        }
        all
    }
    walk(&ast, Id::from(ast.len() - 1)).into_iter().map(Pattern::new).collect()
}

/// Any of some patterns over the same variables.
struct AnyOrder<const S: bool>(Vec<Pattern<Node<S>>>);

impl<const S: bool> Searcher<Node<S>, Types> for AnyOrder<S> {
    fn search_eclass_with_limit(&self, g: &EGraph<Node<S>, Types>, class: Id, limit: usize) -> Option<SearchMatches<'_, Node<S>>> {
        self.0.iter().find_map(|p| p.search_eclass_with_limit(g, class, limit))
    }
    fn search_with_limit(&self, g: &EGraph<Node<S>, Types>, limit: usize) -> Vec<SearchMatches<'_, Node<S>>> {
        self.0.iter().flat_map(|p| p.search_with_limit(g, limit)).collect()
    }
    fn vars(&self) -> Vec<Var> {
        Searcher::<Node<S>, Types>::vars(&self.0[0])
    }
}

/// The rules, compiled; in the unsorted language with commutativity, which proofs need.
pub fn compile<const S: bool>(rules: &[Rule]) -> Vec<Rewrite<Node<S>, Types>> {
    let mut out: Vec<Rewrite<Node<S>, Types>> = vec![];
    for r in rules {
        let to: Pattern<Node<S>> = r.to.parse().unwrap_or_else(|e| panic!("rule {}: {e}", r.name));
        let conditions: Vec<Condition> = r.when.iter().chain(r.worth).copied().collect();
        let check = move |g: &mut Graph<S>, _: Id, s: &Subst| {
            let id = |v: &str| g.find(s[var(v)]);
            let known = |a: &str, b: &str| g.lookup(Node::new(Op::Mul, vec![id(a), id(b)])).is_some();
            conditions.iter().all(|c| c.holds(&|v| g[id(v)].data.clone(), &known))
        };
        out.push(named(r.name, AnyOrder(orders(r.from)), ConditionalApplier { condition: check, applier: to }));
    }
    if !S {
        for (name, from, to) in [("mul-swap", "(* ?a ?b)", "(* ?b ?a)"), ("add-swap", "(+ ?a ?b)", "(+ ?b ?a)")] {
            let pattern = |t: &str| t.parse::<Pattern<Node<S>>>().unwrap_or_else(|e| panic!("rule {name}: {e}"));
            out.push(named(name, pattern(from), pattern(to)));
        }
    }
    out
}

fn named<const S: bool>(
    name: &str,
    from: impl Searcher<Node<S>, Types> + Send + Sync + 'static,
    to: impl Applier<Node<S>, Types> + Send + Sync + 'static,
) -> Rewrite<Node<S>, Types> {
    Rewrite::new(Symbol::from(name), from, to).unwrap_or_else(|e| panic!("rule {name}: {e}"))
}
