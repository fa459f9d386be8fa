//! Peak memory of this process, for tests and reports (Linux).

/// Forgets the peak so far. Does nothing where the system has no such file.
pub fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Peak resident bytes since the start or the last [`reset_peak`]; `None` where the system does not say.
pub fn peak() -> Option<usize> {
    field("VmHWM:")
}

/// Resident bytes now.
pub fn resident() -> Option<usize> {
    field("VmRSS:")
}

fn field(name: &str) -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<usize>().ok().map(|kb| kb * 1024)
}
