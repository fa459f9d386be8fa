//! The command line: arguments, files, tables. Everything else is in the crates below.

mod bench;
mod compile;
mod devices;
mod evaluate;
mod explain;
mod gpu;
mod iteration;
mod net;
mod opt;
mod run;
mod sample;
mod study;
mod training;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[global_allocator]
static BLOCKS: runtime::memory::Lines = runtime::memory::Lines;

#[derive(Parser)]
#[command(
    name = "pushforward",
    version,
    about = "Derives, checks and runs Jacobian-vector products of tensor programs",
    after_help = "Exit codes: 0 good, 1 the input or the check is bad, 2 usage.\n\
                  Example: pushforward check examples/attention.pf"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Evaluate a program on tensors
    #[command(after_help = "Example: pushforward run examples/attention.pf --jvp q,k,v --dim B=1,H=2,I=5,J=7,D=4 --json")]
    Run(run::Args),
    /// Check a program's JVP against finite differences, and every machine against the reference
    #[command(after_help = "Example: pushforward check examples/attention.pf --wrt q,k --cases 5 --junit results.xml")]
    Check(pushforward::check::Args),
    /// Compile a program's kernels to objects
    #[command(after_help = "Example: pushforward compile examples/attention.pf --jvp q,k,v --dim D=64 -o out --dump all")]
    Compile(compile::Args),
    /// Time a program on this CPU, beside the machine's peak
    #[command(after_help = "Example: pushforward bench examples/attention.pf --jvp q,k,v --dim B=1,H=8,I=4096,J=4096,D=64 --json")]
    Bench(bench::Args),
    /// Say what is fused, what is refused and why, and what it costs
    #[command(after_help = "Example: pushforward explain examples/attention.pf --jvp q,k,v --dim B=1,H=8,I=4096,J=4096,D=64")]
    Explain(explain::Args),
    /// Print a program after some passes
    #[command(after_help = "Example: pushforward opt examples/attention.pf --pass jvp=q+k+v,simplify,fuse --dim D=64 --time")]
    Opt(opt::Args),
    /// Run a network from its checkpoint, its tangent or its gradients; or say what it costs
    #[command(after_help = "Example: pushforward net DIR --jvp hidden_states,timestep --inputs in.safetensors --outputs out.safetensors")]
    Net(net::Args),
    /// What there is to run on, with this CPU's measured peaks
    #[command(after_help = "Example: pushforward devices --json")]
    Devices(devices::Args),
    /// Choose the schedules of a program's GPU kernels: checked, then timed on a device, else by their registers
    #[command(after_help = "Example: pushforward tune examples/attention.pf --jvp q,k,v --dim B=1,H=16,I=8192,J=8192,D=128")]
    Tune(pushforward::tune::Args),
    /// Prepare kernels for a machine with a GPU
    Gpu(gpu::Args),
    /// Train a teacher from data
    #[command(after_help = "Example: pushforward teach examples/distill/digits-teacher.toml\n         pushforward teach --print-config > mine.toml")]
    Teach(training::Args),
    /// Distill a teacher into a student of a few steps
    #[command(after_help = "Example: pushforward distill examples/distill/digits-rcm.toml\n         pushforward distill --print-config > mine.toml")]
    Distill(training::Args),
    /// Time iterations of rCM of a network with random weights, part by part, with the memory that they take
    #[command(after_help = "Example: pushforward iteration examples/wan-1.3b --on cuda --dim T=6,H=60,W=104,L=512\n         pushforward iteration examples/wan-1.3b --explain")]
    Iteration(iteration::Args),
    /// Draw samples from a trained network
    #[command(after_help = "Example: pushforward sample examples/distill/digits-rcm.toml --steps 1,2,4 -o samples")]
    Sample(sample::Args),
    /// Judge samples: quality, diversity and speed, beside the teacher and the real ones
    #[command(after_help = "Example: pushforward evaluate examples/distill/digits-rcm.toml")]
    Evaluate(evaluate::Args),
    /// Put evaluated runs over several seeds into one table, with the frontier of precision and recall
    #[command(after_help = "Example: pushforward study runs/study -o docs/results   (runs in folders METHOD-SEED, each evaluated)")]
    Study(study::Args),
}

fn main() -> ExitCode {
    // `pushforward … | head` ends as other programs do; Rust starts with this signal ignored, and printing would panic.
    // SAFETY: nothing runs yet beside this thread, and the default action is a valid handler.
    #[cfg(unix)]
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    let result = match Cli::parse().command {
        Command::Run(a) => run::run(&a),
        Command::Check(a) => pushforward::check::run(&a),
        Command::Bench(a) => bench::run(&a),
        Command::Compile(a) => compile::run(&a),
        Command::Explain(a) => explain::run(&a),
        Command::Net(a) => net::run(&a),
        Command::Opt(a) => opt::run(&a),
        Command::Devices(a) => devices::run(&a),
        Command::Tune(a) => pushforward::tune::run(&a),
        Command::Gpu(a) => gpu::run(&a),
        Command::Teach(a) => training::teach(&a),
        Command::Distill(a) => training::distill(&a),
        Command::Iteration(a) => iteration::run(&a),
        Command::Sample(a) => sample::run(&a),
        Command::Evaluate(a) => evaluate::run(&a),
        Command::Study(a) => study::run(&a),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            let message = message.trim_end();
            eprintln!("{}{message}", if message.starts_with("error") { "" } else { "error: " });
            ExitCode::from(1)
        }
    }
}
