//! Random edits of PTX text, each with its description: what a test of the tests is made of. A good test notices nearly every edit that changes the meaning.

/// One edit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutant {
    /// The edited text.
    pub text: String,
    /// The edited line, from 1.
    pub line: u32,
    /// What was done.
    pub what: String,
}

/// Kinds of edits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Edit {
    /// A barrier is gone.
    DropBarrier,
    /// A wait leaves one group more in flight.
    LaxWait,
    /// A commit is gone.
    DropCommit,
    /// An address is 16 bytes, or the smallest step of its width, further on.
    ShiftOffset,
    /// Two source registers change places, or one becomes another one of its type.
    SwapRegister,
    /// A transposition is gone or added.
    Transpose,
    /// A guard holds where it did not.
    NegateGuard,
    /// A comparison is another one.
    ChangeComparison,
    /// A number is another one.
    ChangeConstant,
    /// An instruction is gone.
    DropInstruction,
}

/// All kinds.
pub const EDITS: [Edit; 10] = [
    Edit::DropBarrier,
    Edit::LaxWait,
    Edit::DropCommit,
    Edit::ShiftOffset,
    Edit::SwapRegister,
    Edit::Transpose,
    Edit::NegateGuard,
    Edit::ChangeComparison,
    Edit::ChangeConstant,
    Edit::DropInstruction,
];

/// A small generator, so that a seed names an edit.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % n.max(1)
    }
}

/// An instruction's line: guard, opcode, operands.
fn split(line: &str) -> Option<(&str, &str, &str)> {
    let body = line.trim();
    let body = body.strip_suffix(';')?;
    let (guard, rest) = match body.strip_prefix('@') {
        Some(r) => {
            let at = r.find(char::is_whitespace)?;
            (&body[..at + 1], r[at..].trim_start())
        }
        None => ("", body),
    };
    let at = rest.find(char::is_whitespace).unwrap_or(rest.len());
    let (op, operands) = rest.split_at(at);
    (!op.starts_with('.') && !op.contains(':') && !op.starts_with("//") && !op.is_empty()).then_some((guard, op, operands.trim()))
}

fn join(guard: &str, op: &str, operands: &str) -> String {
    format!("\t{guard}{}{op}{}{operands};", if guard.is_empty() { "" } else { " " }, if operands.is_empty() { "" } else { " \t" })
}

/// The registers of an operand list, as ranges.
fn registers(operands: &str) -> Vec<(usize, usize)> {
    let b = operands.as_bytes();
    let (mut out, mut i) = (vec![], 0);
    while i < b.len() {
        if b[i] == b'%' {
            let start = i;
            i += 1;
            while i < b.len() && (b[i].is_ascii_alphanumeric() || b[i] == b'_' || b[i] == b'.') {
                i += 1;
            }
            if operands[start + 1..i].starts_with(|c: char| matches!(c, 'r' | 'p')) && operands[start..i].ends_with(|c: char| c.is_ascii_digit()) {
                out.push((start, i));
            }
        } else {
            i += 1;
        }
    }
    out
}

fn kind(register: &str) -> &str {
    register.trim_end_matches(|c: char| c.is_ascii_digit())
}

/// The edit of `line`, if this kind of edit applies to it.
fn edit(line: &str, e: Edit, random: &mut Random) -> Option<(String, String)> {
    let (guard, op, operands) = split(line)?;
    let without = |what: &str| Some((String::new(), format!("{what}: {}", line.trim())));
    match e {
        Edit::DropBarrier => if op.starts_with("bar.") || op.starts_with("barrier.") { without("barrier dropped") } else { None },
        Edit::DropCommit => if op.ends_with("commit_group") || op.contains("commit_group.") { without("commit dropped") } else { None },
        Edit::LaxWait => {
            if !op.contains("wait_group") {
                return None;
            }
            let n: u32 = operands.parse().ok()?;
            Some((join(guard, op, &(n + 1).to_string()), format!("wait for {n} is one for {}", n + 1)))
        }
        Edit::Transpose => {
            if !op.contains("matrix") {
                return None;
            }
            let new = if op.contains(".trans") { op.replace(".trans", "") } else { op.replace(".shared", ".trans.shared") };
            Some((join(guard, &new, operands), format!("{op} is {new}")))
        }
        Edit::ShiftOffset => {
            let close = operands.rfind(']')?;
            let open = operands[..close].rfind('[')?;
            if op.contains("param") || op.starts_with("mbarrier") || operands[open..close].contains(',') {
                return None;
            }
            let step = if op.contains("matrix") || op.starts_with("cp.async") || op.contains(".v4") { 16 } else if op.contains("64") || op.contains(".v2") { 8 } else { 4 };
            let step = if random.below(2) == 0 { step } else { -step };
            let inside = &operands[open + 1..close];
            let new = match inside.rsplit_once('+') {
                Some((b, o)) => format!("{b}+{}", o.trim().parse::<i64>().ok()? + step),
                None => format!("{inside}+{step}"),
            };
            Some((join(guard, op, &format!("{}[{new}{}", &operands[..open], &operands[close..])), format!("[{inside}] is [{new}]")))
        }
        Edit::SwapRegister => {
            if op.starts_with("bra") || op.starts_with("ret") || op.starts_with("call") || op.starts_with("mov.b32") && !operands.contains('%') {
                return None;
            }
            let all = registers(operands);
            let sources = all.get(1..)?;
            let mut pairs = vec![];
            for (i, a) in sources.iter().enumerate() {
                for b in &sources[i + 1..] {
                    let (x, y) = (&operands[a.0..a.1], &operands[b.0..b.1]);
                    if x != y && kind(x) == kind(y) {
                        pairs.push((*a, *b));
                    }
                }
            }
            // Of operations that commute a swap says nothing.
            let commutes = ["add.", "mul.", "max.", "min.", "or.", "and.", "xor.", "fma.", "mad."].iter().any(|c| op.starts_with(c));
            if pairs.is_empty() || commutes {
                return None;
            }
            let (a, b) = pairs[random.below(pairs.len())];
            let new = format!("{}{}{}{}{}", &operands[..a.0], &operands[b.0..b.1], &operands[a.1..b.0], &operands[a.0..a.1], &operands[b.1..]);
            Some((join(guard, op, &new), format!("{} and {} change places", &operands[a.0..a.1], &operands[b.0..b.1])))
        }
        Edit::NegateGuard => {
            let p = guard.strip_prefix('@')?;
            let new = match p.strip_prefix('!') {
                Some(q) => format!("@{q}"),
                None => format!("@!{p}"),
            };
            Some((join(&new, op, operands), format!("guard {guard} is {new}")))
        }
        Edit::ChangeComparison => {
            let rest = op.strip_prefix("setp.")?;
            let (c, tail) = rest.split_once('.')?;
            let new = match c {
                "lt" => ["le", "ge"][random.below(2)],
                "le" => ["lt", "gt"][random.below(2)],
                "gt" => ["ge", "le"][random.below(2)],
                "ge" => ["gt", "lt"][random.below(2)],
                "eq" => "ne",
                "ne" => "eq",
                _ => return None,
            };
            Some((join(guard, &format!("setp.{new}.{tail}"), operands), format!("{c} is {new}")))
        }
        Edit::ChangeConstant => {
            let last = operands.rsplit(',').next()?.trim();
            let n: i64 = last.parse().ok()?;
            if !operands.contains(',') || op.contains("wait") || op.starts_with("shfl") && last == "-1" || op.starts_with("vote") || op.starts_with("cp.async") {
                return None;
            }
            let new = match random.below(3) {
                0 => n + 1,
                1 => n * 2 + 1,
                _ => n ^ 4,
            };
            let at = operands.rfind(last)?;
            Some((join(guard, op, &format!("{}{new}", &operands[..at])), format!("{n} is {new}")))
        }
        Edit::DropInstruction => {
            if op.starts_with("bra") || op.starts_with("ret") || op.starts_with("bar") || op.contains("group") || op.starts_with("ld.param") {
                return None;
            }
            without("instruction dropped")
        }
    }
}

/// The mutant of `seed` and kind; none if the text has no place for it.
pub fn mutant(text: &str, e: Edit, seed: u64) -> Option<Mutant> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ e as u64);
    random.below(2);
    let lines: Vec<&str> = text.lines().collect();
    // Instructions that stand on one line.
    let places: Vec<usize> = (0..lines.len()).filter(|i| edit(lines[*i], e, &mut Random(seed)).is_some()).collect();
    if places.is_empty() {
        return None;
    }
    let at = places[random.below(places.len())];
    let (new, what) = edit(lines[at], e, &mut random)?;
    if new == lines[at] {
        return None;
    }
    let mut out: Vec<&str> = lines.clone();
    out[at] = &new;
    Some(Mutant { text: out.join("\n") + "\n", line: at as u32 + 1, what: format!("line {}: {what}", at + 1) })
}

/// `n` mutants of all kinds in turn, without repetitions.
pub fn mutants(text: &str, n: usize, seed: u64) -> Vec<Mutant> {
    let mut out: Vec<Mutant> = vec![];
    for i in 0..20 * n as u64 {
        if out.len() == n {
            break;
        }
        if let Some(m) = mutant(text, EDITS[(i % EDITS.len() as u64) as usize], seed.wrapping_add(i))
            && !out.iter().any(|o| o.text == m.text)
        {
            out.push(m);
        }
    }
    out
}
