//! Trainings as people run them, on the binary: killed at any moment, without room, without permission, with mistakes in what they read. `KILLS=20` kills more often.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A training of a tiny network, in a folder of its own.
struct Run {
    dir: tempfile::TempDir,
}

impl Run {
    fn new(more: &str) -> Run {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/distill/tiny.json"), dir.path().join("tiny.json")).unwrap();
        let run = Run { dir };
        run.write("config.toml", &format!("[network]\nconfig = \"tiny.json\"\n[[stage]]\nmethod = \"flow\"\niterations = 40\nbatch = 8\nbeta1 = 0.9\n[run]\ncheckpoint_every = 3\nkeep = 3\n{more}"));
        run
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }
    fn command(&self, folder: &str, args: &[&str]) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_pushforward")), folder, args)
    }
    fn command_of(&self, binary: &Path, folder: &str, args: &[&str]) -> Command {
        let mut c = Command::new(binary);
        c.args(["teach", "config.toml", "--folder", folder]).args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        // Kernels are compiled once for all tests here.
        c.env("PUSHFORWARD_CACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("training-kernels")).env("PUSHFORWARD_THREADS", "1");
        c
    }
    fn teach(&self, folder: &str, args: &[&str]) -> Output {
        self.command(folder, args).output().unwrap()
    }
    fn weights(&self, folder: &str) -> Vec<u8> {
        std::fs::read(self.path(folder).join("final/diffusion_pytorch_model.safetensors")).unwrap()
    }
}

fn text(o: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr))
}
fn good(o: &Output) {
    assert!(o.status.success(), "{}", text(o));
}
#[track_caller]
fn refused(o: &Output, said: &[&str]) {
    assert_eq!(o.status.code(), Some(1), "{}", text(o));
    for s in said {
        assert!(text(o).contains(s), "{s:?} is not in\n{}", text(o));
    }
}

#[test]
fn a_training_that_is_killed_again_and_again_ends_bit_for_bit_the_same() {
    let kills: u64 = std::env::var("KILLS").ok().and_then(|k| k.parse().ok()).unwrap_or(3);
    let run = Run::new("");
    good(&run.teach("whole", &[]));
    let start = Instant::now();
    good(&run.teach("again", &[]));
    let length = start.elapsed();
    assert_eq!(run.weights("whole"), run.weights("again"));
    // Moments by a linear congruential generator (Knuth's MMIX), from nothing to the whole length of a training.
    let mut state = 1u64;
    for _ in 0..kills {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let moment = length.mul_f64((state >> 40) as f64 / (1u64 << 24) as f64);
        let mut child = run.command("killed", &["--resume"]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(moment.max(Duration::from_millis(1)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    good(&run.teach("killed", &["--resume"]));
    assert_eq!(run.weights("killed"), run.weights("whole"));
    // Every iteration is told of once.
    let lines = std::fs::read_to_string(run.path("killed/metrics.jsonl")).unwrap();
    let iterations: Vec<u64> = lines.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["iteration"].as_u64().unwrap()).collect();
    assert_eq!(iterations, (1..=40).collect::<Vec<_>>());
}

#[test]
#[cfg(unix)]
fn an_interrupt_saves_and_stops() {
    let run = Run::new("");
    good(&run.teach("whole", &[]));
    let child = run.command("stopped", &[]).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    while std::fs::read_to_string(run.path("stopped/metrics.jsonl")).map_or(0, |t| t.lines().count()) < 2 {
        std::thread::sleep(Duration::from_millis(2));
    }
    // SAFETY: the child is ours and was not waited for, so its number is not another's.
    unsafe {
        libc::kill(child.id() as i32, libc::SIGINT);
    }
    let o = child.wait_with_output().unwrap();
    good(&o);
    assert!(text(&o).contains("saved: --resume goes on") || run.path("stopped/final").exists(), "{}", text(&o));
    good(&run.teach("stopped", &["--resume"]));
    assert_eq!(run.weights("stopped"), run.weights("whole"));
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_is_used() {
    let run = Run::new("");
    good(&run.teach("whole", &[]));
    let newest = run.path("whole/checkpoints/0000000040/state.safetensors");
    let mut bytes = std::fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&newest, bytes).unwrap();
    let before = run.weights("whole");
    let o = run.teach("whole", &["--resume"]);
    good(&o);
    assert!(text(&o).contains("0000000040 is damaged (state.safetensors: its checksum is wrong)") && text(&o).contains("goes on from iteration 39"), "{}", text(&o));
    assert_eq!(run.weights("whole"), before);
}

#[test]
#[cfg(unix)]
fn without_room_nothing_is_lost() {
    let run = Run::new("");
    good(&run.teach("whole", &[]));
    good(&run.teach("full", &[]));
    // As a full disk would: no file may grow beyond a few blocks from now on. The newest checkpoint is taken away, so that there is something to do.
    std::fs::remove_dir_all(run.path("full/checkpoints/0000000040")).unwrap();
    let c = run.command("full", &["--resume"]);
    let args: Vec<&str> = c.get_args().map(|a| a.to_str().unwrap()).collect();
    let mut limited = Command::new("sh");
    limited.arg("-c").arg(format!("trap '' XFSZ; ulimit -f 40; exec '{}' {}", env!("CARGO_BIN_EXE_pushforward"), args.join(" "))).current_dir(run.dir.path());
    limited.env("PUSHFORWARD_CACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("training-kernels")).env("PUSHFORWARD_THREADS", "1");
    let o = limited.output().unwrap();
    refused(&o, &["checkpoint: cannot write ", "0000000040", "File too large", "the checkpoint of iteration 39 is intact, --resume goes on from it"]);
    assert!(!run.path("full/checkpoints/.part-0000000040").exists());
    good(&run.teach("full", &["--resume"]));
    assert_eq!(run.weights("full"), run.weights("whole"));
}

#[test]
#[cfg(unix)]
fn a_folder_that_may_not_be_written_is_an_error() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let run = Run::new("");
    std::fs::create_dir(run.path("mine")).unwrap();
    std::fs::set_permissions(run.path("mine"), std::fs::Permissions::from_mode(0o555)).unwrap();
    std::fs::set_permissions(run.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // Root may write anywhere, so a test that runs as root tries as nobody, who may not be allowed into the folder of the build.
    let binary = run.path("pushforward");
    std::fs::copy(env!("CARGO_BIN_EXE_pushforward"), &binary).unwrap();
    let mut c = run.command_of(&binary, "mine", &[]);
    // SAFETY: `geteuid` has no preconditions.
    if unsafe { libc::geteuid() } == 0 {
        c.uid(65534).gid(65534);
    }
    refused(&c.output().unwrap(), &["cannot make the folder mine/checkpoints", "Permission denied"]);
}

#[test]
fn mistakes_are_answered_with_their_place() {
    let run = Run::new("chekpoint_every = 5\n");
    refused(&run.teach("x", &[]), &["no key `chekpoint_every` in [run]", "--> config.toml:", "did you mean `checkpoint_every`?"]);
    let run = Run::new("[data]\nkind = \"images\"\npath = \"set.csv\"\nheight = 8\nwidth = 8\n");
    let row = |label: &str| format!("{}{label}\n", "1,".repeat(64));
    run.write("set.csv", &format!("{}{}", row("3"), row("1").replacen("1,1,1,", "1,NaN,1,", 1)));
    refused(&run.teach("x", &[]), &["set.csv: line 2, column 2: NaN is not finite"]);
    run.write("set.csv", &format!("{}1,2,3\n", row("3")));
    refused(&run.teach("x", &[]), &["set.csv: line 2 has 3 columns, but an image of 8 x 8 with its label has 65"]);
    // The network has ten classes.
    run.write("set.csv", &format!("{}{}", row("1"), row("0").replacen('1', "2", 1)));
    refused(&run.teach("x", &[]), &["the network is for 10 classes and images of [8, 8], but "]);
    assert!(!run.path("x").exists());
}

#[test]
fn what_is_there_is_not_overwritten() {
    let run = Run::new("");
    good(&run.teach("a", &[]));
    refused(&run.teach("a", &[]), &["a holds a training at iteration 40: --resume goes on with it"]);
    run.write("config.toml", &std::fs::read_to_string(run.path("config.toml")).unwrap().replace("batch = 8", "batch = 9"));
    refused(&run.teach("a", &["--resume"]), &["is of another configuration"]);
}

#[test]
fn printed_configurations_are_configurations() {
    for command in ["teach", "distill"] {
        let o = Command::new(env!("CARGO_BIN_EXE_pushforward")).args([command, "--print-config"]).output().unwrap();
        good(&o);
        trainer::config::Config::parse(command, &String::from_utf8(o.stdout).unwrap()).unwrap();
    }
}
