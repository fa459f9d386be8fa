//! The e-graph's language: the IR's own operations, with as little beside them as algebra needs.
//!
//! Differences, negations, quotients and contractions are written with `+`, `*`, −1 and `inv`, so that one rule serves them
//! all; everything else stands as it is, opaque to rules. Axes of a sum are a leaf, `(sum ?x ?b)`, so that ordinary patterns bind
//! them. Operands of `+` and `*` are kept sorted, which is commutativity without a rule; only proofs, which need each
//! swap as a step, are made in the unsorted language (egg, Willsey et al. 2021, arXiv 2004.03082).

use egg::{Analysis, DidMerge, EGraph, FromOp, Id, Language, RecExpr};
use ir::dim::Name;
use ir::graph::{Function, Var};
use ir::prim::{Elementwise, Movement, Prim, ReduceKind};
use ir::types::{Axis, DType, Type};
use std::collections::BTreeSet;
use std::fmt;

/// An operator.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Op {
    /// The axes of a sum.
    Axes(BTreeSet<Name>),
    /// A number, by its bits; of whatever element type stands beside it.
    Number(u64),
    /// A parameter.
    Param(u32),
    /// `a + b`.
    Add,
    /// `a · b`.
    Mul,
    /// `1 / a`.
    Inv,
    /// `exp a`.
    Exp,
    /// `Σ_axes a`.
    Sum,
    /// An operation of [`Types::prims`], about which no rule knows anything.
    Opaque(u32),
}

/// An operator and its operands.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Node<const SORTED: bool> {
    /// The operator.
    pub op: Op,
    /// The operands.
    pub args: Vec<Id>,
}

impl<const S: bool> Node<S> {
    /// A node.
    pub fn new(op: Op, args: Vec<Id>) -> Node<S> {
        let mut n = Node { op, args };
        n.sort();
        n
    }
    /// A number.
    pub fn number(x: f64) -> Node<S> {
        Node { op: Op::Number(x.to_bits()), args: vec![] }
    }
    fn sort(&mut self) {
        if S && matches!(self.op, Op::Add | Op::Mul) {
            self.args.sort();
        }
    }
}

impl<const S: bool> Language for Node<S> {
    type Discriminant = Op;
    fn discriminant(&self) -> Op {
        self.op.clone()
    }
    fn matches(&self, o: &Self) -> bool {
        self.op == o.op && self.args.len() == o.args.len()
    }
    fn children(&self) -> &[Id] {
        &self.args
    }
    fn children_mut(&mut self) -> &mut [Id] {
        &mut self.args
    }
    fn update_children<F: FnMut(Id) -> Id>(&mut self, mut f: F) {
        self.args.iter_mut().for_each(|a| *a = f(*a));
        self.sort();
    }
}

impl<const S: bool> fmt::Display for Node<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.op {
            Op::Axes(a) => write!(f, "{{{}}}", a.iter().map(|n| &**n).collect::<Vec<_>>().join(",")),
            Op::Number(b) => write!(f, "{}", f64::from_bits(*b)),
            Op::Param(i) => write!(f, "@{i}"),
            Op::Add => f.write_str("+"),
            Op::Mul => f.write_str("*"),
            Op::Inv => f.write_str("inv"),
            Op::Exp => f.write_str("exp"),
            Op::Sum => f.write_str("sum"),
            Op::Opaque(i) => write!(f, "#{i}"),
        }
    }
}

/// No operator of the rules has this name.
#[derive(Debug)]
pub struct Unknown(String);
impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is no operator of rules", self.0)
    }
}
impl std::error::Error for Unknown {}

impl<const S: bool> FromOp for Node<S> {
    type Error = Unknown;
    fn from_op(op: &str, args: Vec<Id>) -> Result<Node<S>, Unknown> {
        let op = match (op, args.len()) {
            ("+", 2) => Op::Add,
            ("*", 2) => Op::Mul,
            ("inv", 1) => Op::Inv,
            ("exp", 1) => Op::Exp,
            ("sum", 2) => Op::Sum,
            (x, 0) if x.starts_with('@') => Op::Param(x[1..].parse().map_err(|_| Unknown(op.into()))?),
            (x, 0) => Op::Number(x.parse::<f64>().map_err(|_| Unknown(op.into()))?.to_bits()),
            _ => return Err(Unknown(op.into())),
        };
        // Not sorted: patterns are written in every order that sorting can give.
        Ok(Node { op, args })
    }
}

/// What is known of a class: its type, its axes sorted by name, and its number if it is one.
#[derive(Clone, PartialEq, Debug)]
pub struct Facts {
    /// Element type; unknown of numbers.
    pub dtype: Option<DType>,
    /// Axes, sorted by name. Of an `Axes` leaf: none.
    pub axes: Vec<Axis>,
    /// The names that an `Axes` leaf has.
    pub names: BTreeSet<Name>,
    /// The number.
    pub number: Option<f64>,
}

impl Facts {
    /// Whether the value has one of `names`.
    pub fn meets(&self, names: &BTreeSet<Name>) -> bool {
        self.axes.iter().any(|a| names.contains(&a.name))
    }
}

/// The analysis: types, from those of parameters and opaque operations.
#[derive(Clone, Debug, Default)]
pub struct Types {
    /// Parameters.
    pub params: Vec<Type>,
    /// Opaque operations.
    pub prims: Vec<Prim>,
}

/// An e-graph over the language.
pub type Graph<const S: bool> = EGraph<Node<S>, Types>;

/// The axes of all of `sets`, sorted by name.
fn union<'a>(sets: impl Iterator<Item = &'a Facts>) -> Vec<Axis> {
    let mut axes: Vec<Axis> = vec![];
    for a in sets.flat_map(|f| &f.axes) {
        if !axes.iter().any(|b| b.name == a.name) {
            axes.push(a.clone());
        }
    }
    axes.sort();
    axes
}

/// The order in which operand `i` of `op` must have its axes, for the few operations that compare their operands' order.
pub fn operand_order(op: &Prim, i: usize, axes: &[Axis]) -> Vec<Axis> {
    let mut order = axes.to_vec();
    match op {
        Prim::Call(c) => order = c.function.ty(c.function.params[i].var).axes.clone(),
        Prim::Movement(Movement::Concat { axes, into }) => order.sort_by_key(|a| if a.name == axes[i] { into.name.clone() } else { a.name.clone() }),
        _ => order.sort(),
    }
    order
}

impl<const S: bool> Analysis<Node<S>> for Types {
    type Data = Facts;
    fn make(g: &mut Graph<S>, n: &Node<S>, _id: Id) -> Facts {
        let of = |i: usize| &g[n.args[i]].data;
        let dtype = |g: &Graph<S>| n.args.iter().find_map(|a| g[*a].data.dtype);
        let none = BTreeSet::new;
        let number = |i: usize| of(i).number;
        match &n.op {
            Op::Axes(names) => Facts { dtype: None, axes: vec![], names: names.clone(), number: None },
            Op::Number(b) => Facts { dtype: None, axes: vec![], names: none(), number: Some(f64::from_bits(*b)) },
            Op::Param(i) => {
                let t = &g.analysis.params[*i as usize];
                let mut axes = t.axes.clone();
                axes.sort();
                Facts { dtype: Some(t.dtype), axes, names: none(), number: None }
            }
            Op::Add | Op::Mul => {
                let number = number(0).zip(number(1)).map(|(a, b)| if n.op == Op::Add { a + b } else { a * b });
                Facts { dtype: dtype(g), axes: union([of(0), of(1)].into_iter()), names: none(), number }
            }
            Op::Inv | Op::Exp => Facts { dtype: dtype(g), axes: of(0).axes.clone(), names: none(), number: number(0).map(|a| if n.op == Op::Inv { 1.0 / a } else { a.exp() }) },
            Op::Sum => {
                let axes = of(1).axes.iter().filter(|a| !of(0).names.contains(&a.name)).cloned().collect();
                Facts { dtype: dtype(g), axes, names: none(), number: None }
            }
            Op::Opaque(k) => {
                let op = &g.analysis.prims[*k as usize];
                let types: Vec<Type> = (0..n.args.len()).map(|i| Type::new(of(i).dtype.unwrap_or(DType::F32), operand_order(op, i, &of(i).axes))).collect();
                // Operands were well typed in the function they came from, and equal classes have equal types.
                let (dtype, mut axes) = op.infer(&types.iter().collect::<Vec<_>>()).map_or((None, vec![]), |t| (Some(t.dtype), t.axes));
                axes.sort();
                Facts { dtype, axes, names: none(), number: None }
            }
        }
    }
    fn merge(&mut self, a: &mut Facts, b: Facts) -> DidMerge {
        debug_assert_eq!(a.axes, b.axes, "equal values with different axes");
        let before = a.clone();
        a.dtype = a.dtype.or(b.dtype);
        a.number = a.number.or(b.number);
        DidMerge(*a != before, *a != b)
    }
    /// A class that is a number has it as a node. (Not folded where it would be infinite or lose its meaning.)
    fn modify(g: &mut Graph<S>, id: Id) {
        if let Some(x) = g[id].data.number.filter(|x| x.is_finite()) {
            let n = g.add(Node::number(x));
            if g.are_explanations_enabled() {
                g.union_trusted(id, n, "fold");
            } else {
                g.union(id, n);
            }
        }
    }
}

/// Terms of functions: all of one list, shared.
pub struct Terms<const S: bool> {
    /// The list.
    pub expr: RecExpr<Node<S>>,
    /// The tables that it refers to.
    pub types: Types,
    known: std::collections::HashMap<Node<S>, Id>,
}

impl<const S: bool> Terms<S> {
    /// No term yet.
    pub fn new(params: Vec<Type>) -> Terms<S> {
        Terms { expr: RecExpr::default(), types: Types { params, prims: vec![] }, known: Default::default() }
    }
    fn push(&mut self, op: Op, args: Vec<Id>) -> Id {
        let n = Node::new(op, args);
        if let Some(id) = self.known.get(&n) {
            return *id;
        }
        let id = self.expr.add(n.clone());
        self.known.insert(n, id);
        id
    }
    fn number(&mut self, x: f64) -> Id {
        self.push(Op::Number(x.to_bits()), vec![])
    }
    fn opaque(&mut self, op: Prim, args: Vec<Id>) -> Id {
        let k = self.types.prims.iter().position(|p| *p == op).unwrap_or_else(|| {
            self.types.prims.push(op);
            self.types.prims.len() - 1
        });
        self.push(Op::Opaque(k as u32), args)
    }
    /// The terms of every value of `f`, whose parameters are `params` in order.
    pub fn function(&mut self, f: &Function) -> Vec<Id> {
        let definitions = f.definitions();
        let constant = |v: Var| match definitions[v.index()].map(|i| &f.eqns[i].op) {
            Some(op @ Prim::Constant(_)) => Some(op.clone()),
            _ => None,
        };
        let mut terms: Vec<Id> = vec![Id::from(0); f.vars.len()];
        for (i, p) in f.params.iter().enumerate() {
            terms[p.var.index()] = self.push(Op::Param(i as u32), vec![]);
        }
        for e in &f.eqns {
            let float = f.ty(e.out).dtype.is_float();
            let arg = |i: usize| terms[e.args[i].index()];
            use Elementwise::*;
            let t = match &e.op {
                Prim::Constant(c) if float && c.value.is_finite() => self.number(c.value),
                Prim::Elementwise(Add) if float => self.push(Op::Add, vec![arg(0), arg(1)]),
                Prim::Elementwise(Sub) if float => {
                    let (a, b) = (arg(0), arg(1));
                    let minus = self.number(-1.0);
                    let b = self.push(Op::Mul, vec![minus, b]);
                    self.push(Op::Add, vec![a, b])
                }
                Prim::Elementwise(Neg) if float => {
                    let a = arg(0);
                    let minus = self.number(-1.0);
                    self.push(Op::Mul, vec![minus, a])
                }
                Prim::Elementwise(Mul) if float => self.push(Op::Mul, vec![arg(0), arg(1)]),
                Prim::Elementwise(Div) => {
                    let (a, b) = (arg(0), arg(1));
                    let b = self.push(Op::Inv, vec![b]);
                    self.push(Op::Mul, vec![a, b])
                }
                Prim::Elementwise(Exp) => self.push(Op::Exp, vec![arg(0)]),
                Prim::Contract(over) => {
                    let body = self.push(Op::Mul, vec![arg(0), arg(1)]);
                    let x = self.push(Op::Axes(over.iter().cloned().collect()), vec![]);
                    self.push(Op::Sum, vec![x, body])
                }
                Prim::Reduce(ReduceKind::Sum, over) => {
                    let body = arg(0);
                    let x = self.push(Op::Axes(over.iter().cloned().collect()), vec![]);
                    self.push(Op::Sum, vec![x, body])
                }
                // Names, not positions: order means nothing before a value is stored.
                Prim::Movement(Movement::Permute(_)) => arg(0),
                op => {
                    let args = e.args.iter().map(|a| constant(*a).map_or(terms[a.index()], |c| self.opaque(c, vec![]))).collect();
                    self.opaque(op.clone(), args)
                }
            };
            terms[e.out.index()] = t;
        }
        terms
    }
}
