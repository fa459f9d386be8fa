//! Elementwise operations as MLIR: the one emission table, shared by every target.
//!
//! Everything is written with `arith`, `vector` and four LLVM intrinsics that are single instructions (`fma`, `sqrt`,
//! `fabs`, `roundeven`), on vectors or on scalars alike. There is no call: transcendental functions are polynomials of our
//! own, fitted by interpolation at Chebyshev nodes; their argument reductions are exact by `fma` (Cody and Waite, 1980).
//! Errors are about 1 to 2 units in the last place; for `pow` that grows with |b·log a|, and `sin`, `cos` reduce arguments
//! up to 1e5 (f32) or 1e9 (f64) without loss.

#![allow(clippy::excessive_precision)] // constants are written as they were computed

use crate::Error;
use crate::text::{Text, Ty};
use ir::prim::Elementwise::{self, *};
use ir::types::DType;
use std::f64::consts::LOG2_E;

/// Coefficients and constants of one float type, highest power first.
struct Table {
    int: &'static str,
    mantissa: i64,
    /// 1.5·2^mantissa: adding it rounds to an integer, whose low bits are then the mantissa's.
    magic: f64,
    ln2: [f64; 2],
    half_pi: [f64; 3],
    /// exp(r) = 1 + r + r²·P(r), |r| ≤ ln 2 / 2
    exp: &'static [f64],
    /// log((1+s)/(1−s)) = 2s + s³·P(s²)
    log: &'static [f64],
    /// sin r = r + r³·P(r²), |r| ≤ π/4
    sin: &'static [f64],
    /// cos r = 1 − r²/2 + r⁴·P(r²)
    cos: &'static [f64],
    /// erf x = x·P(x²), |x| ≤ 1
    erf: &'static [f64],
    /// erf x = 1 − exp(−P(x − 1)), x ≥ 1
    erfc: &'static [f64],
    /// Below, exp is 0; above, ∞.
    exp_range: (f64, f64),
    least_normal: f64,
    /// Beyond, tanh is 1, and erf.
    saturated: (f64, f64),
}

static F32: Table = Table {
    int: "i32",
    mantissa: 23,
    magic: 12582912.0,
    ln2: [0.693147182464599609375, -1.904654212125933554489e-9],
    half_pi: [1.570796370506286621094, -4.371138828673792886548e-8, -1.715124510005881872804e-15],
    exp: &[0.001392625083149761172, 0.008363232883682618204, 0.04166655421298415031, 0.1666657666611992831, 0.5],
    log: &[0.2333046721634231853, 0.2855082081595868267, 0.4000012183980615583, 0.6666666655449709144],
    sin: &[2.72496200800748329e-6, -0.0001984008437642269811, 0.008333331870341348483, -0.1666666666384404946],
    cos: &[-2.730070403394305053e-7, 0.00002480059840830534112, -0.001388888766837052496, 0.0416666666643118223],
    erf: &[
        0.00007875545765347749314, -0.0008016773499808896884, 0.005189078110013839589, -0.02685420764814001964,
        0.112835946238502827, -0.3761262665983077229, 1.128379165847524115,
    ],
    erfc: &[
        -1.658320521566165751e-6, 0.00003319335948163043248, -0.0003212689879898646617, 0.002056650601851681374,
        -0.01008074130424696037, 0.04157769494743095474, 0.8431041175209725524, 2.638967772632331573, 1.849605505543719627,
    ],
    exp_range: (-87.33654, 88.72283),
    least_normal: f32::MIN_POSITIVE as f64,
    saturated: (9.02, 3.95),
};

static F64: Table = Table {
    int: "i64",
    mantissa: 52,
    magic: 6755399441055744.0,
    ln2: [std::f64::consts::LN_2, 2.319046813846299558418e-17],
    half_pi: [std::f64::consts::FRAC_PI_2, 6.123233995736766035869e-17, -1.497384904859169832944e-33],
    exp: &[
        2.09147553258932022e-9, 2.510531272962210179e-8, 2.755727347871858047e-7, 2.755725517000088744e-6,
        0.0000248015873256774619, 0.0001984126987500227879, 0.001388888888888371117, 0.00833333333332608312,
        0.04166666666666666978, 0.1666666666666667103, 0.5,
    ],
    log: &[
        0.1461644968508890505, 0.1533172160055169055, 0.1818288912526188207, 0.2222221113479507703, 0.2857142862597548495,
        0.3999999999989950449, 0.6666666666666669686,
    ],
    sin: &[
        -7.586636882825061912e-13, 1.605853059664595275e-10, -2.505210622599440068e-8, 2.755731921932057977e-6,
        -0.0001984126984126504105, 0.008333333333333331481, -0.1666666666666666667,
    ],
    cos: &[
        4.74583841198767183e-14, -1.14704603191986077e-11, 2.087675578749252178e-9, -2.755731922139249034e-7,
        0.00002480158730158463314, -0.001388888888888888786, 0.04166666666666666667,
    ],
    erf: &[
        -4.230752371393571869e-12, 8.70892413962830466e-11, -1.216452663998436185e-9, 1.479239584450795063e-8,
        -1.636464160371182064e-7, 1.646204540287272163e-6, -0.00001492564756567957148, 0.0001205533290282887619,
        -0.0008548327021933528408, 0.005223977625423280212, -0.02686617064512983931, 0.1128379167095512023,
        -0.3761263890318375238, std::f64::consts::FRAC_2_SQRT_PI,
    ],
    erfc: &[
        -3.328604295090838576e-17, 1.989663752819057636e-15, -5.593750408501495379e-14, 9.831138068036692732e-13,
        -1.210399899194924798e-11, 1.107600468584735613e-10, -7.783132585144437036e-10, 4.259239418412231581e-9,
        -1.800666860223604066e-8, 5.558938670110598315e-8, -9.523490353327482562e-8, -1.619106093644860262e-7,
        2.102476145073123718e-6, -9.668338670307562211e-6, 0.00002721654721916489426, -0.0000263174443887679446,
        -0.0002373031365387538368, 0.001977896027515614557, -0.01003382391737761141, 0.04156109784462867881,
        0.8431072563727458797, 2.638967514234390464, 1.849605509933250123,
    ],
    exp_range: (-708.39, 709.78271289338397),
    least_normal: f64::MIN_POSITIVE,
    saturated: (19.1, 5.95),
};

/// Emits `op` on `args` of element types `from`, in `lanes` lanes; gives the result's name. Floats other than F64 are
/// computed in F32 registers.
///
/// # Errors
/// None for well-typed operands at present.
pub fn emit(t: &mut Text, op: Elementwise, lanes: Option<usize>, from: &[DType], args: &[String]) -> Result<String, Error> {
    let kind = if let Select = op { from[1] } else { from[0] };
    let ty = Ty::of(register(kind), lanes);
    let float = kind.is_float();
    let a = args.first().map_or("", |s| s.as_str());
    let b = args.get(1).map_or("", |s| s.as_str());
    let two = |t: &mut Text, f: &str, i: &str| {
        let f = if float { format!("{f} {a}, {b} fastmath<contract>") } else { format!("{i} {a}, {b}") };
        t.op(format_args!("arith.{f} : {ty}"))
    };
    let compare = |t: &mut Text, f: &str, i: &str, truth: &str| {
        let i = if kind == DType::Bool { truth } else { i };
        t.op(if float { format!("arith.cmpf {f}, {a}, {b} : {ty}") } else { format!("arith.cmpi {i}, {a}, {b} : {ty}") })
    };
    let mut m = Math { t, ty, k: if kind == DType::F64 { &F64 } else { &F32 } };
    Ok(match op {
        Neg if float => m.op1("arith.negf", a),
        Neg => {
            let zero = m.c(0.0);
            m.t.op(format_args!("arith.subi {zero}, {a} : {ty}"))
        }
        Abs if float => m.abs(a),
        Abs => {
            let zero = m.c(0.0);
            let n = m.t.op(format_args!("arith.subi {zero}, {a} : {ty}"));
            m.t.op(format_args!("arith.maxsi {a}, {n} : {ty}"))
        }
        Exp => m.exp(a),
        Log => m.log(a),
        Sqrt => m.sqrt(a),
        Rsqrt => {
            let (one, s) = (m.c(1.0), m.sqrt(a));
            m.div(&one, &s)
        }
        Tanh => m.tanh(a),
        Logistic => {
            let n = m.op1("arith.negf", a);
            let e = m.exp(&n);
            let one = m.c(1.0);
            let d = m.add(&one, &e);
            m.div(&one, &d)
        }
        Sin => m.sine(a, 0),
        Cos => m.sine(a, 1),
        Erf => m.erf(a),
        Pow => m.pow(a, b),
        Add => two(m.t, "addf", "addi"),
        Sub => two(m.t, "subf", "subi"),
        Mul => two(m.t, "mulf", "muli"),
        Div => two(m.t, "divf", "divsi"),
        And => two(m.t, "", "andi"),
        Or => two(m.t, "", "ori"),
        Max if !float => two(m.t, "", "maxsi"),
        Min if !float => two(m.t, "", "minsi"),
        // Written so that it is one instruction.
        Max => m.choose("ogt", a, b),
        Min => m.choose("olt", a, b),
        Lt => compare(m.t, "olt", "slt", "ult"),
        Le => compare(m.t, "ole", "sle", "ule"),
        Gt => compare(m.t, "ogt", "sgt", "ugt"),
        Ge => compare(m.t, "oge", "sge", "uge"),
        Eq => compare(m.t, "oeq", "eq", "eq"),
        Ne => compare(m.t, "une", "ne", "ne"),
        Not => {
            let one = m.c(1.0);
            m.t.op(format_args!("arith.xori {a}, {one} : {ty}"))
        }
        Select => m.select(a, b, &args[2]),
        Convert(to) => return Ok(convert(t, lanes, kind, to, a)),
    })
}

/// The type in which values of `d` stand in registers.
fn register(d: DType) -> DType {
    if matches!(d, DType::BF16 | DType::F16) { DType::F32 } else { d }
}

/// `a`, of type `from`, converted to `to`. Floats narrower than a register are rounded and stay in F32 registers.
pub fn convert(t: &mut Text, lanes: Option<usize>, from: DType, to: DType, a: &str) -> String {
    use DType::*;
    let (src, dst) = (Ty::of(register(from), lanes), Ty::of(register(to), lanes));
    let cast = |t: &mut Text, op: &str, a: &str, src: Ty, dst: Ty| t.op(format_args!("arith.{op} {a} : {src} to {dst}"));
    match (from, to) {
        (F64, F32) => cast(t, "truncf", a, src, dst),
        (F32 | BF16 | F16, F64) => cast(t, "extf", a, src, dst),
        (F64, BF16 | F16) => {
            let x = cast(t, "truncf", a, src, dst);
            convert(t, lanes, F32, to, &x)
        }
        (F32, BF16) => {
            // To nearest even, on the bits; NaN stays.
            let i = dst.with("i32");
            let bits = t.op(format_args!("arith.bitcast {a} : {src} to {i}"));
            let (sixteen, one, half, mask) = (t.number(i, 16.0), t.number(i, 1.0), t.number(i, 32767.0), t.number(i, -65536.0));
            let odd = t.op(format_args!("arith.shrui {bits}, {sixteen} : {i}"));
            let odd = t.op(format_args!("arith.andi {odd}, {one} : {i}"));
            let x = t.op(format_args!("arith.addi {bits}, {half} : {i}"));
            let x = t.op(format_args!("arith.addi {x}, {odd} : {i}"));
            let x = t.op(format_args!("arith.andi {x}, {mask} : {i}"));
            let x = t.op(format_args!("arith.bitcast {x} : {i} to {src}"));
            let nan = t.op(format_args!("arith.cmpf uno, {a}, {a} : {src}"));
            t.op(format_args!("arith.select {nan}, {a}, {x} : {}, {src}", src.with("i1")))
        }
        (F32, F16) => {
            let h = src.with("f16");
            let x = cast(t, "truncf", a, src, h);
            cast(t, "extf", &x, h, src)
        }
        (F32 | F64 | BF16 | F16, I32) => cast(t, "fptosi", a, src, dst),
        (F32 | F64 | BF16 | F16, Bool) => {
            let zero = t.number(src, 0.0);
            t.op(format_args!("arith.cmpf une, {a}, {zero} : {src}"))
        }
        (I32, Bool) => {
            let zero = t.number(src, 0.0);
            t.op(format_args!("arith.cmpi ne, {a}, {zero} : {src}"))
        }
        (I32, BF16 | F16) => {
            let x = cast(t, "sitofp", a, src, dst);
            convert(t, lanes, F32, to, &x)
        }
        (I32, F32 | F64) => cast(t, "sitofp", a, src, dst),
        (Bool, I32) => cast(t, "extui", a, src, dst),
        (Bool, F32 | F64 | BF16 | F16) => {
            let (one, zero) = (t.number(dst, 1.0), t.number(dst, 0.0));
            t.op(format_args!("arith.select {a}, {one}, {zero} : {src}, {dst}"))
        }
        (F16, BF16) | (BF16, F16) => convert(t, lanes, F32, to, a),
        (BF16 | F16, F32) | (F64, F64) | (F32, F32) | (BF16, BF16) | (F16, F16) | (I32, I32) | (Bool, Bool) => a.to_string(),
    }
}

struct Math<'a> {
    t: &'a mut Text,
    ty: Ty,
    k: &'static Table,
}

impl Math<'_> {
    fn c(&mut self, v: f64) -> String {
        self.t.number(self.ty, v)
    }
    fn i(&mut self, v: i64) -> String {
        self.t.integer(self.ty.with(self.k.int), v)
    }
    fn op1(&mut self, op: &str, a: &str) -> String {
        self.t.op(format_args!("{op} {a} : {}", self.ty))
    }
    fn intrinsic(&mut self, op: &str, a: &str) -> String {
        let ty = self.ty;
        self.t.op(format_args!("llvm.intr.{op}({a}) : ({ty}) -> {ty}"))
    }
    fn abs(&mut self, a: &str) -> String {
        self.intrinsic("fabs", a)
    }
    fn sqrt(&mut self, a: &str) -> String {
        self.intrinsic("sqrt", a)
    }
    fn op2(&mut self, op: &str, a: &str, b: &str) -> String {
        self.t.op(format_args!("arith.{op} {a}, {b} : {}", self.ty))
    }
    fn add(&mut self, a: &str, b: &str) -> String {
        self.op2("addf", a, b)
    }
    fn sub(&mut self, a: &str, b: &str) -> String {
        self.op2("subf", a, b)
    }
    fn mul(&mut self, a: &str, b: &str) -> String {
        self.op2("mulf", a, b)
    }
    fn div(&mut self, a: &str, b: &str) -> String {
        self.op2("divf", a, b)
    }
    fn fma(&mut self, a: &str, b: &str, c: &str) -> String {
        fma(self.t, self.ty, a, b, c)
    }
    fn int(&mut self, op: &str, a: &str, b: &str) -> String {
        self.t.op(format_args!("arith.{op} {a}, {b} : {}", self.ty.with(self.k.int)))
    }
    fn bits(&mut self, a: &str) -> String {
        self.t.op(format_args!("arith.bitcast {a} : {} to {}", self.ty, self.ty.with(self.k.int)))
    }
    fn float(&mut self, a: &str) -> String {
        self.t.op(format_args!("arith.bitcast {a} : {} to {}", self.ty.with(self.k.int), self.ty))
    }
    fn cmp(&mut self, p: &str, a: &str, b: &str) -> String {
        self.t.op(format_args!("arith.cmpf {p}, {a}, {b} : {}", self.ty))
    }
    fn select(&mut self, c: &str, a: &str, b: &str) -> String {
        self.t.op(format_args!("arith.select {c}, {a}, {b} : {}, {}", self.ty.with("i1"), self.ty))
    }
    fn choose(&mut self, p: &str, a: &str, b: &str) -> String {
        let c = self.cmp(p, a, b);
        self.select(&c, a, b)
    }
    fn poly(&mut self, c: &[f64], x: &str) -> String {
        let mut y = self.c(c[0]);
        for &k in &c[1..] {
            let k = self.c(k);
            y = self.fma(&y, x, &k);
        }
        y
    }
    /// The same with half the latency: pairs of coefficients, then Horner in x² (Estrin's first step).
    fn poly_by_pairs(&mut self, c: &[f64], x: &str, x2: &str) -> String {
        let odd = c.len() % 2;
        let mut y = (odd == 1).then(|| self.c(c[0]));
        for pair in c[odd..].chunks(2) {
            let (hi, lo) = (self.c(pair[0]), self.c(pair[1]));
            let line = self.fma(&hi, x, &lo);
            y = Some(match y {
                None => line,
                Some(y) => self.fma(&y, x2, &line),
            });
        }
        y.unwrap_or_else(|| self.c(0.0))
    }
    /// `sign(s)` put on `a ≥ 0`.
    fn signed(&mut self, a: &str, s: &str) -> String {
        let (i, bits, a) = (self.ty.with(self.k.int), self.bits(s), self.bits(a));
        let top = self.t.integer(i, if self.k.int == "i32" { i64::from(i32::MIN) } else { i64::MIN });
        let sign = self.int("andi", &bits, &top);
        let x = self.int("ori", &a, &sign);
        self.float(&x)
    }

    /// x = n·ln 2 + r: gives `2^mantissa·1.5 + n` (whose low bits are n), n and r.
    fn reduce_exp(&mut self, x: &str) -> (String, String, String) {
        let (l2e, magic) = (self.c(LOG2_E), self.c(self.k.magic));
        let shifted = self.fma(x, &l2e, &magic);
        let n = self.sub(&shifted, &magic);
        let (hi, lo) = (self.c(-self.k.ln2[0]), self.c(-self.k.ln2[1]));
        let r = self.fma(&n, &hi, x);
        let r = self.fma(&n, &lo, &r);
        (shifted, n, r)
    }
    fn exp(&mut self, x: &str) -> String {
        let (shifted, _, r) = self.reduce_exp(x);
        let one = self.c(1.0);
        let r2 = self.mul(&r, &r);
        let p = self.poly_by_pairs(self.k.exp, &r, &r2);
        let line = self.add(&r, &one);
        let p = self.fma(&p, &r2, &line);
        // 2ⁿ·p by adding n to the exponent.
        let (n, m) = (self.bits(&shifted), self.i(self.k.mantissa));
        let n = self.int("shli", &n, &m);
        let p = self.bits(&p);
        let y = self.int("addi", &p, &n);
        let y = self.float(&y);
        let (least, most) = (self.c(self.k.exp_range.0), self.c(self.k.exp_range.1));
        let (zero, inf) = (self.c(0.0), self.c(f64::INFINITY));
        let low = self.cmp("olt", x, &least);
        let y = self.select(&low, &zero, &y);
        // Too large, or NaN: x·∞ is what it should be.
        let high = self.cmp("ugt", x, &most);
        let over = self.mul(x, &inf);
        self.select(&high, &over, &y)
    }
    /// exp(x) − 1 for 0 ≤ x ≤ 40, exact near 0.
    fn exp_minus_one(&mut self, x: &str) -> String {
        let (shifted, _, r) = self.reduce_exp(x);
        let one = self.c(1.0);
        let p = self.poly(self.k.exp, &r);
        let p = self.mul(&p, &r);
        let q = self.fma(&p, &r, &r);
        let (n, m) = (self.bits(&shifted), self.i(self.k.mantissa));
        let n = self.int("shli", &n, &m);
        let ones = self.bits(&one);
        let power = self.int("addi", &ones, &n);
        let power = self.float(&power);
        let less = self.sub(&power, &one);
        self.fma(&power, &q, &less)
    }
    fn log(&mut self, x: &str) -> String {
        // x = 2^e·m, m in [√½, √2): the exponent of x/√½, on the bits.
        let root = std::f64::consts::FRAC_1_SQRT_2;
        let root_bits = if self.k.int == "i32" { i64::from((root as f32).to_bits()) } else { root.to_bits() as i64 };
        let i = self.ty.with(self.k.int);
        let bits = self.bits(x);
        let rb = self.i(root_bits);
        let d = self.int("subi", &bits, &rb);
        let m = self.i(self.k.mantissa);
        let e = self.int("shrsi", &d, &m);
        let shift = self.int("shli", &e, &m);
        let f = self.int("subi", &bits, &shift);
        let f = self.float(&f);
        let e = if self.k.int == "i32" {
            self.t.op(format_args!("arith.sitofp {e} : {i} to {}", self.ty))
        } else {
            // Small integers to f64 through the magic number: the conversion of 64-bit lanes is no instruction before AVX-512.
            let magic = self.c(self.k.magic);
            let mb = self.bits(&magic);
            let s = self.int("addi", &mb, &e);
            let s = self.float(&s);
            self.sub(&s, &magic)
        };
        let (one, two, half) = (self.c(1.0), self.c(2.0), self.c(0.5));
        let f = self.sub(&f, &one);
        let den = self.add(&f, &two);
        let s = self.div(&f, &den);
        let z = self.mul(&s, &s);
        let r = self.poly(self.k.log, &z);
        let r = self.mul(&r, &z);
        // log(1+f) = f − (f²/2 − s·(f²/2 + R))
        let h = self.mul(&f, &half);
        let h = self.mul(&h, &f);
        let hr = self.add(&h, &r);
        let (hi, lo) = (self.c(self.k.ln2[0]), self.c(self.k.ln2[1]));
        let el = self.mul(&e, &lo);
        let tail = self.fma(&s, &hr, &el);
        let tail = self.sub(&h, &tail);
        let y = self.sub(&f, &tail);
        let y = self.fma(&e, &hi, &y);
        // ∞ and NaN give themselves, 0 gives −∞, negative numbers NaN.
        let (inf, ninf, zero, nan) = (self.c(f64::INFINITY), self.c(f64::NEG_INFINITY), self.c(0.0), self.c(f64::NAN));
        let least = self.c(self.k.least_normal);
        let big = self.cmp("uge", x, &inf);
        let y = self.select(&big, x, &y);
        let small = self.cmp("olt", x, &least);
        let y = self.select(&small, &ninf, &y);
        let negative = self.cmp("olt", x, &zero);
        self.select(&negative, &nan, &y)
    }
    fn tanh(&mut self, x: &str) -> String {
        let a = self.abs(x);
        let most = self.c(self.k.saturated.0);
        // min(|x|, most), written so that NaN stays.
        let beyond = self.cmp("ogt", &a, &most);
        let a = self.select(&beyond, &most, &a);
        let twice = self.add(&a, &a);
        let e = self.exp_minus_one(&twice);
        let two = self.c(2.0);
        let d = self.add(&e, &two);
        let y = self.div(&e, &d);
        let one = self.c(1.0);
        let full = self.cmp("oge", &a, &most);
        let y = self.select(&full, &one, &y);
        let y = self.abs(&y);
        self.signed(&y, x)
    }
    fn erf(&mut self, x: &str) -> String {
        let b = self.abs(x);
        let most = self.c(self.k.saturated.1);
        let one = self.c(1.0);
        let c = self.cmp("ogt", &b, &most);
        let a = self.select(&c, &most, &b);
        let z = self.mul(&a, &a);
        let near = self.poly(self.k.erf, &z);
        let near = self.mul(&near, &a);
        let u = self.sub(&a, &one);
        let l = self.poly(self.k.erfc, &u);
        let l = self.op1("arith.negf", &l);
        let e = self.exp(&l);
        let far = self.sub(&one, &e);
        let inner = self.cmp("ult", &a, &one);
        let y = self.select(&inner, &near, &far);
        let full = self.cmp("oge", &a, &most);
        let y = self.select(&full, &one, &y);
        self.signed(&y, x)
    }
    /// sin(x + quarters·π/2)
    fn sine(&mut self, x: &str, quarters: i64) -> String {
        let (inv, magic) = (self.c(std::f64::consts::FRAC_2_PI), self.c(self.k.magic));
        let shifted = self.fma(x, &inv, &magic);
        let n = self.sub(&shifted, &magic);
        let mut r = x.to_string();
        for c in self.k.half_pi {
            let c = self.c(-c);
            r = self.fma(&n, &c, &r);
        }
        let z = self.mul(&r, &r);
        let s = self.poly(self.k.sin, &z);
        let zr = self.mul(&z, &r);
        let s = self.fma(&s, &zr, &r);
        let c = self.poly(self.k.cos, &z);
        let (one, half) = (self.c(1.0), self.c(-0.5));
        let zz = self.mul(&z, &z);
        let c = self.mul(&c, &zz);
        let c = self.fma(&z, &half, &c);
        let c = self.add(&c, &one);
        let q = self.bits(&shifted);
        let by = self.i(quarters);
        let q = self.int("addi", &q, &by);
        let (i, one, zero) = (self.ty.with(self.k.int), self.i(1), self.i(0));
        let odd = self.int("andi", &q, &one);
        let odd = self.t.op(format_args!("arith.cmpi ne, {odd}, {zero} : {i}"));
        let y = self.select(&odd, &c, &s);
        let two = self.i(2);
        let neg = self.int("andi", &q, &two);
        let shift = self.i(if self.k.int == "i32" { 30 } else { 62 });
        let neg = self.int("shli", &neg, &shift);
        let y = self.bits(&y);
        let y = self.int("xori", &y, &neg);
        self.float(&y)
    }
    /// exp(b·log|a|), with the sign of an odd power; NaN for another power of a negative number.
    fn pow(&mut self, a: &str, b: &str) -> String {
        let m = self.abs(a);
        let l = self.log(&m);
        let e = self.mul(b, &l);
        let y = self.exp(&e);
        let (half, zero, one, nan) = (self.c(0.5), self.c(0.0), self.c(1.0), self.c(f64::NAN));
        let whole = self.intrinsic("roundeven", b);
        let hb = self.mul(b, &half);
        let hw = self.intrinsic("roundeven", &hb);
        let fraction = self.cmp("one", &whole, b);
        let odd = self.cmp("one", &hw, &hb);
        let minus = self.op1("arith.negf", &y);
        let z = self.select(&odd, &minus, &y);
        let z = self.select(&fraction, &nan, &z);
        let below = self.cmp("olt", a, &zero);
        let y = self.select(&below, &z, &y);
        let none = self.cmp("oeq", b, &zero);
        self.select(&none, &one, &y)
    }
}

/// a·b + c, rounded once.
pub fn fma(t: &mut Text, ty: Ty, a: &str, b: &str, c: &str) -> String {
    t.op(format_args!("llvm.intr.fma({a}, {b}, {c}) : ({ty}, {ty}, {ty}) -> {ty}"))
}
