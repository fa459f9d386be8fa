//! Fuzzes the front end: parse, verify, print and parse again must not panic, and what parses must print to a fixed point.
//! `cargo run --release --example fuzz -- --seconds 60 --seed 1`

use clap::Parser;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Args {
    /// How long
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Seed; the same seed draws the same inputs
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize) % n.max(1)
    }
}

/// What mutations insert.
const PIECES: [&str; 48] = [
    "(", ")", "[", "]", "{", "}", ",", "->", "=", "+", "-", "*", "/", "<", "&", "!", "\"", "\"ab,bc->ac\"", "fn ", "q", "x", "y", "D", "J", "j", "-1",
    "0", "2", "1e-6", "-inf", "nan", "99999999999999999999", "f32", "i32", "bool", "E=D", "R=H/G", "D/0", "exp(", "contract(", "split(", "merge(",
    "reduce_sum(", "softmax(", "select(", "iota(", "\u{e9}", "// ",
];

fn mutate(seeds: &[String], r: &mut Random) -> String {
    let mut text = seeds[r.below(seeds.len())].clone();
    for _ in 0..1 + r.below(6) {
        let mut cut = |t: &str| (0..=r.below(t.len() + 1)).rev().find(|i| t.is_char_boundary(*i)).unwrap_or(0);
        let (a, b) = (cut(&text), cut(&text));
        let (a, b) = (a.min(b), a.max(b));
        match r.below(5) {
            0 => text.replace_range(a..b.min(a + 8).max(a), if text.is_char_boundary(b.min(a + 8).max(a)) { "" } else { continue }),
            1 | 2 => text.insert_str(a, PIECES[r.below(PIECES.len())]),
            3 if b - a < 60 => {
                let piece = text[a..b].to_string();
                text.insert_str(b, &piece);
            }
            _ => {
                let other = &seeds[r.below(seeds.len())];
                let from = (0..=r.below(other.len() + 1)).rev().find(|i| other.is_char_boundary(*i)).unwrap_or(0);
                let to = (from..=(from + 24).min(other.len())).rev().find(|i| other.is_char_boundary(*i)).unwrap_or(from);
                text.insert_str(a, &other[from..to]);
            }
        }
    }
    text
}

/// Whether the input parsed; an error where a law fails.
fn one(text: &str) -> Result<bool, String> {
    let module = match ir::text::parse(text) {
        Ok(m) => m,
        Err(e) => {
            let _ = ir::diagnostic::render(&e, "fuzz", text);
            return if e.is_empty() { Err("refused without an error".into()) } else { Ok(false) };
        }
    };
    for f in &module.functions {
        ir::verify::verify(f).map_err(|e| format!("parsed, but the verifier says {}", e[0]))?;
        let once = ir::text::print_function(f);
        let again = ir::text::parse(&once).map_err(|e| format!("printed as\n{once}\nwhich does not parse: {}", e[0]))?;
        let twice = ir::text::print_function(&again.functions[0]);
        let thrice = ir::text::parse(&twice).map_err(|e| format!("{twice}\n{}", e[0]))?;
        if twice != ir::text::print_function(&thrice.functions[0]) {
            return Err(format!("print is no fixed point:\n{twice}"));
        }
    }
    Ok(true)
}

fn main() -> ExitCode {
    let args = Args::parse();
    let root = env!("CARGO_MANIFEST_DIR");
    let mut files: Vec<_> = ["examples", "tests/programs", "tests/filetests/parser"]
        .iter()
        .filter_map(|d| std::fs::read_dir(format!("{root}/{d}")).ok())
        .flat_map(|d| d.flatten().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "pf"))
        .collect();
    files.sort();
    // Functions one by one: a mutation then meets few others.
    let seeds: Vec<String> = files
        .iter()
        .filter_map(|p| std::fs::read_to_string(p).ok())
        .flat_map(|t| t.split("\nfn ").enumerate().map(|(i, s)| if i == 0 { s.to_string() } else { format!("fn {s}") }).collect::<Vec<_>>())
        .collect();
    let mut r = Random(args.seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15));
    std::panic::set_hook(Box::new(|_| {}));
    let (start, mut runs, mut good) = (Instant::now(), 0u64, 0u64);
    while start.elapsed() < Duration::from_secs(args.seconds) {
        let text = mutate(&seeds, &mut r);
        let failure = match catch_unwind(AssertUnwindSafe(|| one(&text))) {
            Ok(Ok(parsed)) => {
                good += u64::from(parsed);
                None
            }
            Ok(Err(e)) => Some(e),
            Err(_) => Some("panic".into()),
        };
        runs += 1;
        if let Some(e) = failure {
            println!("input {runs} of seed {}: {e}\n--- the input\n{text}", args.seed);
            return ExitCode::from(1);
        }
    }
    println!("{runs} inputs in {} s, {good} of them parsed; nothing found", args.seconds);
    ExitCode::SUCCESS
}
