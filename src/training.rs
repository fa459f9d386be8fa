//! `teach` and `distill`: a training as its configuration says.

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use trainer::config::{Config, Purpose};
use trainer::task::Setup;
use trainer::train::{Progress, Settings, Watch, train};

/// Arguments of both.
#[derive(clap::Args)]
pub struct Args {
    /// The configuration
    #[arg(value_name = "CONFIG.toml", required_unless_present = "print_config")]
    config: Option<PathBuf>,
    /// Go on from the last checkpoint in the run's folder
    #[arg(long)]
    resume: bool,
    /// The run's folder, instead of the configuration's
    #[arg(long, value_name = "DIR")]
    folder: Option<String>,
    /// The seed, instead of the configuration's
    #[arg(long)]
    seed: Option<u64>,
    /// Folder of weights to begin from, instead of the configuration's
    #[arg(long, value_name = "DIR")]
    start: Option<String>,
    /// Print a commented configuration, and do nothing else
    #[arg(long)]
    print_config: bool,
    /// The machine, instead of the configuration's
    #[arg(long, value_parser = trainer::program::On::NAMES)]
    on: Option<String>,
    /// Print JSON, when done
    #[arg(long)]
    json: bool,
}

/// `teach`.
pub fn teach(a: &Args) -> Result<(), String> {
    if a.print_config {
        let stage = [("flow", &[("iterations", "1300"), ("batch", "256"), ("rate", "2e-3"), ("rate_warm_up", "100"), ("schedule", "\"cosine\""), ("beta1", "0.9"), ("time_deviation", "1.2"), ("average_width", "0.066")][..])];
        print!("{}", Config::print("A configuration of `pushforward teach`: a network that learns the digits, to be distilled afterwards.", &stage));
        return Ok(());
    }
    run(a, Purpose::Teach)
}

/// `distill`.
pub fn distill(a: &Args) -> Result<(), String> {
    if a.print_config {
        let stages = [("scm", &[("iterations", "200")][..]), ("rcm", &[("iterations", "340"), ("rate", "3e-4"), ("critic_first", "100")][..])];
        let about = "A configuration of `pushforward distill`: consistency first (sCM), then consistency and score together (rCM). Write the teacher's folder under [network].";
        print!("{}", Config::print(about, &stages));
        return Ok(());
    }
    run(a, Purpose::Distill)
}

/// The configuration of a command, with what its arguments say instead.
///
/// # Errors
/// What is wrong with it.
pub fn configuration(path: &Path, folder: &Option<String>, seed: Option<u64>, on: &Option<String>) -> Result<Config, String> {
    let mut c = Config::load(path)?;
    if let Some(f) = folder {
        c.run.folder.clone_from(f);
    }
    if let Some(on) = on {
        c.run.on.clone_from(on);
    }
    c.run.seed = seed.unwrap_or(c.run.seed);
    Ok(c)
}

fn run(a: &Args, purpose: Purpose) -> Result<(), String> {
    let path = a.config.as_ref().ok_or("no configuration")?;
    let mut config = configuration(path, &a.folder, a.seed, &a.on)?;
    if let Some(s) = &a.start {
        // The configuration's paths are relative to its file, the command line's to where it is started.
        config.network.start = std::path::absolute(s).map_err(|e| format!("{s}: {e}"))?.display().to_string();
    }
    let folder = PathBuf::from(&config.run.folder);
    let setup = Setup::new(config, purpose)?;
    let c = &setup.config;
    let settings = Settings {
        folder: folder.clone(),
        seed: c.run.seed,
        checkpoint_every: c.run.checkpoint_every,
        keep: c.run.keep as usize,
        picture_every: c.run.picture_every,
        resume: a.resume,
        configuration: trainer::files::checksum(c.numbers().as_bytes()),
    };
    watch_for_interrupts();
    let mut screen = Screen::new(a.json);
    let (outcome, _) = train(&setup, &settings, &mut screen)?;
    screen.finish();
    if outcome.finished {
        trainer::report::write(&folder, c, outcome.seconds, outcome.launches)?;
    }
    if a.json {
        println!("{}", json!({"folder": c.run.folder, "iterations": outcome.iteration, "finished": outcome.finished, "seconds": outcome.seconds, "launches": outcome.launches}));
    } else if outcome.finished {
        println!("{} iterations in {:.1} s; weights in {}, report in {}", outcome.iteration, outcome.seconds, folder.join("final").display(), folder.join("report.md").display());
    }
    Ok(())
}

/// Whether the user wants to stop.
static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn on_interrupt(signal: libc::c_int) {
    STOP.store(true, Ordering::Relaxed);
    // The second one ends the process at once.
    // SAFETY: `signal` may be called in a handler, and the default action is a valid handler.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
    }
}

/// The first interrupt, or request to end, saves and stops.
fn watch_for_interrupts() {
    let handler = on_interrupt as extern "C" fn(libc::c_int);
    for s in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler stores to an atomic and resets the signal, both of which a handler may do.
        unsafe {
            libc::signal(s, handler as libc::sighandler_t);
        }
    }
}

/// A progress bar on a terminal; a line every few seconds elsewhere; nothing beside JSON.
struct Screen {
    bar: Option<ProgressBar>,
    quiet: bool,
    last: Option<Instant>,
}

impl Screen {
    fn new(quiet: bool) -> Screen {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let b = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {msg}");
            b.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
            b
        });
        Screen { bar, quiet, last: None }
    }
    fn finish(&self) {
        if let Some(b) = &self.bar {
            b.finish_and_clear();
        }
    }
}

fn line(p: &Progress) -> String {
    let mut text = String::new();
    for (name, short) in [("loss", "loss"), ("consistency", "cm"), ("matching", "dm"), ("critic", "critic"), ("tangent_norm", "|g|")] {
        if let Some(x) = p.metrics.get(name) {
            text += &format!("{short} {x:.4}  ");
        }
    }
    text + &format!("NaN {}  {:.0} images/s  {} left", p.bad, p.rate, time(p.left))
}

fn time(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "?".into();
    }
    let s = seconds.round() as u64;
    if s >= 3600 { format!("{}h{:02}", s / 3600, s / 60 % 60) } else { format!("{}:{:02}", s / 60, s % 60) }
}

impl Watch for Screen {
    fn step(&mut self, p: &Progress) {
        let name = format!("{} ({} of {})", p.name, p.stage.0 + 1, p.stage.1);
        if let Some(b) = &self.bar {
            b.set_length(p.iteration.1);
            b.set_prefix(name);
            b.set_position(p.iteration.0);
            b.set_message(line(p));
        } else if !self.quiet && self.last.is_none_or(|l| l.elapsed() > Duration::from_secs(5)) {
            self.last = Some(Instant::now());
            eprintln!("{name} {}/{}  {}", p.iteration.0, p.iteration.1, line(p));
        }
    }
    fn note(&mut self, text: &str) {
        match &self.bar {
            Some(b) => b.println(format!("note: {text}")),
            None => eprintln!("note: {text}"),
        }
    }
    fn stop(&self) -> bool {
        STOP.load(Ordering::Relaxed)
    }
}
