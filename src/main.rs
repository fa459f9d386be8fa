//! The command line: arguments, files, tables. Everything else is in the crates below.

mod bench;
mod compile;
mod devices;
mod explain;
mod gpu;
mod net;
mod opt;
mod run;

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
    /// Prepare kernels for a machine with a GPU
    Gpu(gpu::Args),
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
        Command::Gpu(a) => gpu::run(&a),
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
