//! The report of a training: one page of Markdown with its configuration in short, its curves as PNG, its last figures and its last pictures. It is made from
//! the files of the run, so that it can be made again.

use crate::config::Config;
use crate::files;
use crate::metrics::{self, Figures};
use crate::plot::{Curve, Frame, plot};
use std::collections::BTreeMap;
use std::path::Path;

/// Writes `report.md` and its curves into the run's folder.
///
/// # Errors
/// Metrics that cannot be read, or files that cannot be written.
pub fn write(folder: &Path, config: &Config, seconds: f64, launches: u64) -> Result<(), String> {
    let lines = metrics::read(&folder.join("metrics.jsonl"))?;
    let mut text = format!("# {}\n\n", config.stages.iter().map(|s| s.method.as_str()).collect::<Vec<_>>().join(", then "));
    text += &format!("Data: {}. Seed {}. {} iterations", config.data.kind, config.run.seed, lines.last().map_or(0, |l| l.0));
    text += &format!("; the last process took {seconds:.1} s in steps, with {launches} launches of compiled kernels.\n\n");
    text += "| stage | method | iterations | batch | rate | loss at the end |\n|---|---|---|---|---|---|\n";
    for (i, s) in config.stages.iter().enumerate() {
        let of: Vec<f64> = lines.iter().filter(|l| l.1.get("stage") == Some(&(i as f64))).filter_map(|l| l.1.get("loss").copied()).collect();
        let last = &of[of.len().saturating_sub(20)..];
        let mean = last.iter().sum::<f64>() / last.len().max(1) as f64;
        text += &format!("| {i} | {} | {} | {} | {} | {} |\n", s.method, s.iterations, s.batch, s.rate, if last.is_empty() { "-".into() } else { format!("{mean:.4}") });
    }
    let bad: f64 = lines.iter().flat_map(|l| ["skipped", "nonfinite"].map(|k| l.1.get(k).copied().unwrap_or(0.0))).sum();
    text += &format!("\nSamples left out for a NaN or an infinity, and elements of gradients set to 0 for one: {bad}.\n\n## Curves\n\nMeans over a hundredth of the run.\n\n");
    for (name, curve) in curves(&lines) {
        let file = format!("curve-{name}.png");
        let frame = Frame { title: name.clone(), x: "iteration".into(), y: String::new() };
        files::write(&folder.join(&file), &plot(&frame, &[curve], (720, 360))?)?;
        text += &format!("![{name}]({file})\n");
    }
    let pictures = last_pictures(folder);
    if !pictures.is_empty() {
        text += "\n## Samples\n\n";
        for p in pictures {
            text += &format!("{p}\n\n![{p}](pictures/{p})\n\n");
        }
    }
    files::write(&folder.join("report.md"), text.as_bytes())
}

/// A curve for each figure but those of the clock and of the stages, if it ever changes.
fn curves(lines: &[(u64, Figures)]) -> BTreeMap<String, Curve> {
    let mut all: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (i, f) in lines {
        for (k, x) in f {
            if k != "stage" && x.is_finite() {
                all.entry(k.clone()).or_default().push((*i as f64, *x));
            }
        }
    }
    all.retain(|_, p| p.iter().any(|x| x.1 != p[0].1));
    let window = (lines.len() / 100).max(1);
    all.into_iter().map(|(k, p)| (k, Curve { points: p.chunks(window).map(mean).collect(), ..Curve::default() })).collect()
}

fn mean(p: &[(f64, f64)]) -> (f64, f64) {
    let n = p.len() as f64;
    (p.iter().map(|p| p.0).sum::<f64>() / n, p.iter().map(|p| p.1).sum::<f64>() / n)
}

/// The newest picture of each name, `ITERATION-NAME.png`.
fn last_pictures(folder: &Path) -> Vec<String> {
    let mut newest: BTreeMap<String, String> = BTreeMap::new();
    let mut names: Vec<String> = std::fs::read_dir(folder.join("pictures")).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    for n in names {
        if let Some((_, name)) = n.split_once('-') {
            newest.insert(name.into(), n);
        }
    }
    newest.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_curves_and_the_last_pictures() {
        let dir = tempfile::tempdir().unwrap();
        let mut r = metrics::Recorder::open(dir.path(), 0).unwrap();
        for i in 1..=300u64 {
            r.write(i, &[("loss".to_string(), 1.0 / i as f64), ("stage".to_string(), 0.0), ("skipped".to_string(), 0.0)].into()).unwrap();
        }
        std::fs::create_dir(dir.path().join("pictures")).unwrap();
        for n in ["0000000100-1-step.png", "0000000200-1-step.png", "0000000200-2-step.png"] {
            std::fs::write(dir.path().join("pictures").join(n), "").unwrap();
        }
        let config = Config::parse("a", "[[stage]]\nmethod = \"scm\"\n").unwrap();
        write(dir.path(), &config, 1.5, 99).unwrap();
        let text = std::fs::read_to_string(dir.path().join("report.md")).unwrap();
        assert!(text.contains("![loss](curve-loss.png)") && !text.contains("curve-skipped"), "{text}");
        assert!(text.contains("0000000200-1-step.png") && text.contains("0000000200-2-step.png") && !text.contains("0000000100"));
        assert!(text.contains("| 0 | scm | 200 | 128 | 0.001 | 0.0034 |"), "{text}");
        assert!(dir.path().join("curve-loss.png").exists());
    }
}
