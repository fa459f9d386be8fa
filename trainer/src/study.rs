//! Several methods over several seeds: means and deviations, which differences are beyond two deviations, and the frontier of precision and recall.

use crate::plot::{Curve, Frame, plot};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Figures of a method at one number of steps, over seeds: by name, one number a seed.
type Series = BTreeMap<String, Vec<f64>>;

/// Runs by method and steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Study {
    all: BTreeMap<(String, u64), Series>,
}

/// What the tables show, and their decimals.
const COLUMNS: [(&str, &str, usize); 10] = [
    ("frechet", "Fréchet", 1),
    ("precision features", "precision", 3),
    ("recall features", "recall", 3),
    ("coverage features", "coverage", 3),
    ("precision pixels", "prec. px", 3),
    ("recall pixels", "rec. px", 3),
    ("coverage pixels", "cov. px", 3),
    ("diversity", "diversity", 3),
    ("vendi", "Vendi", 2),
    ("accuracy", "accuracy", 3),
];

/// Mean and sample deviation (n − 1); the deviation of one number is not known.
pub fn moments(x: &[f64]) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let deviation = if x.len() > 1 { (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt() } else { f64::NAN };
    (mean, deviation)
}

impl Study {
    /// The runs in the folders `METHOD-SEED` of a folder that have an `evaluation.json`.
    ///
    /// # Errors
    /// A folder that cannot be listed, no run, or an evaluation that is none.
    pub fn read(folder: &Path) -> Result<Study, String> {
        let mut names: Vec<String> = std::fs::read_dir(folder).map_err(|e| format!("cannot list {}: {e}", folder.display()))?.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort();
        let mut s = Study::default();
        for name in names {
            let path = folder.join(&name).join("evaluation.json");
            let Some((method, seed)) = name.rsplit_once('-') else { continue };
            if seed.parse::<u64>().is_err() || !path.exists() {
                continue;
            }
            let text = std::fs::read_to_string(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
            let v: Value = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
            let rows = v["rows"].as_array().ok_or_else(|| format!("{}: no rows", path.display()))?;
            for r in rows {
                let is_teacher = r["name"] == "teacher";
                let key = (if is_teacher { "teacher".to_string() } else { method.to_string() }, r["steps"].as_u64().ok_or_else(|| format!("{}: a row without steps", path.display()))?);
                let series = s.all.entry(key).or_default();
                series.entry("seconds".into()).or_default().push(r["seconds"].as_f64().unwrap_or(f64::NAN));
                series.entry("evaluations".into()).or_default().push(r["evaluations"].as_f64().unwrap_or(f64::NAN));
                for (k, x) in r["scores"].as_object().into_iter().flatten() {
                    series.entry(k.clone()).or_default().push(x.as_f64().unwrap_or(f64::NAN));
                }
            }
        }
        if s.all.is_empty() {
            return Err(format!("{} has no folder METHOD-SEED with an evaluation.json", folder.display()));
        }
        Ok(s)
    }
    /// As Markdown: a table of means ± deviations, and the differences from `base` that are beyond two deviations of the difference.
    pub fn markdown(&self, base: &str) -> String {
        let mut out = format!("| method | steps | seeds |{}\n|---|---|---|{}\n", COLUMNS.iter().map(|c| format!(" {} |", c.1)).collect::<String>(), "---|".repeat(COLUMNS.len()));
        for ((method, steps), s) in &self.all {
            out += &format!("| {method} | {steps} | {} |", s.values().map(Vec::len).max().unwrap_or(0));
            for (key, _, digits) in COLUMNS {
                out += &match s.get(key).map(|x| moments(x)) {
                    None => " - |".into(),
                    Some((m, d)) if d.is_nan() => format!(" {m:.digits$} |"),
                    Some((m, d)) => format!(" {m:.digits$} ± {d:.digits$} |"),
                };
            }
            out += "\n";
        }
        let differences = self.differences(base);
        out += &format!("\nDifferences from `{base}` at the same number of steps that are beyond two standard deviations of the difference:\n\n");
        if differences.is_empty() {
            out += "none.\n";
        }
        for (method, steps, column, by, deviation) in differences {
            out += &format!("- {method}, {steps} step{}: {column} {by:+.3} ({:.1} deviations)\n", if steps == 1 { "" } else { "s" }, by.abs() / deviation);
        }
        out
    }
    /// (method, steps, column, difference, its deviation), two seeds or more on both sides.
    fn differences(&self, base: &str) -> Vec<(String, u64, &'static str, f64, f64)> {
        let mut all = vec![];
        for ((method, steps), s) in &self.all {
            let Some(b) = self.all.get(&(base.to_string(), *steps)).filter(|_| method != base) else { continue };
            // Accuracy is near 1 for all of them, and counts in steps of a sample: its deviation over seeds says nothing.
            for (key, name, _) in COLUMNS.into_iter().filter(|c| c.0 != "accuracy") {
                if let (Some(x), Some(y)) = (s.get(key), b.get(key)) {
                    let ((m, d), (n, e)) = (moments(x), moments(y));
                    let deviation = d.hypot(e);
                    if deviation > 1e-9 * m.abs() && (m - n).abs() > 2.0 * deviation {
                        all.push((method.clone(), *steps, name, m - n, deviation));
                    }
                }
            }
        }
        all
    }
    /// The means and deviations as JSON.
    pub fn json(&self) -> Value {
        let one = |((method, steps), s): (&(String, u64), &Series)| {
            let figures: BTreeMap<&String, Value> = s.iter().map(|(k, x)| (k, json!({"mean": moments(x).0, "deviation": moments(x).1, "values": x}))).collect();
            json!({"method": method, "steps": steps, "figures": figures})
        };
        Value::Array(self.all.iter().map(one).collect())
    }
    /// Precision over recall in a space, `pixels` or `features`, with deviations as bars: a curve for each number of steps, through the methods in the order given.
    ///
    /// # Errors
    /// None of the methods was run.
    pub fn frontier(&self, space: &str, methods: &[&str]) -> Result<Vec<u8>, String> {
        let (p, r) = (format!("precision {space}"), format!("recall {space}"));
        let mut steps: Vec<u64> = self.all.keys().filter(|k| k.0 != "teacher").map(|k| k.1).collect();
        steps.sort_unstable();
        steps.dedup();
        let mut curves = vec![];
        for n in steps {
            let mut c = Curve { name: format!("{n} step{}", if n == 1 { "" } else { "s" }), ..Curve::default() };
            for m in methods {
                let Some(s) = self.all.get(&(m.to_string(), n)) else { continue };
                let (Some(x), Some(y)) = (s.get(&r), s.get(&p)) else { continue };
                let ((x, dx), (y, dy)) = (moments(x), moments(y));
                c.points.push((x, y));
                c.bars.push((if dx.is_nan() { 0.0 } else { dx }, if dy.is_nan() { 0.0 } else { dy }));
                c.marks.push(m.to_string());
            }
            if !c.points.is_empty() {
                curves.push(c);
            }
        }
        for ((_, n), s) in self.all.iter().filter(|a| a.0.0 == "teacher") {
            if let (Some(x), Some(y)) = (s.get(&r), s.get(&p)) {
                curves.push(Curve { name: format!("teacher, {n} steps"), points: vec![(moments(x).0, moments(y).0)], ..Curve::default() });
            }
        }
        plot(&Frame { title: format!("precision and recall in {space}"), x: "recall".into(), y: "precision".into() }, &curves, (800, 560))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(folder: &Path, name: &str, fd: f64, p: f64) {
        std::fs::create_dir(folder.join(name)).unwrap();
        let v = json!({"rows": [{"name": "student", "steps": 2, "evaluations": 2, "seconds": 0.5, "scores": {"frechet": fd, "precision pixels": p, "recall pixels": 0.5}}]});
        std::fs::write(folder.join(name).join("evaluation.json"), v.to_string()).unwrap();
    }

    #[test]
    fn only_differences_beyond_two_deviations_are_said() {
        let dir = tempfile::tempdir().unwrap();
        for (seed, (a, b)) in [(40.0, 41.0), (42.0, 43.0), (44.0, 45.0)].into_iter().enumerate() {
            run(dir.path(), &format!("scm-{seed}"), a, 0.70 + 0.01 * seed as f64);
            run(dir.path(), &format!("rcm-1-{seed}"), b, 0.80 + 0.01 * seed as f64);
        }
        std::fs::create_dir(dir.path().join("other")).unwrap();
        let s = Study::read(dir.path()).unwrap();
        // Fréchet: 42 ± 2 and 43 ± 2, no difference. Precision: 0.71 ± 0.01 and 0.81 ± 0.01, 0.1 over 0.01·√2 is 7.1.
        let text = s.markdown("scm");
        assert!(text.contains("| rcm-1 | 2 | 3 | 43.0 ± 2.0 | - | - | - | 0.810 ± 0.010 |"), "{text}");
        assert!(text.contains("- rcm-1, 2 steps: prec. px +0.100 (7.1 deviations)\n") && !text.contains("Fréchet +"), "{text}");
        assert!(s.frontier("pixels", &["scm", "rcm-1"]).is_ok());
        assert!(Study::read(&dir.path().join("other")).is_err());
    }

    #[test]
    fn deviations_are_of_samples() {
        assert_eq!(moments(&[1.0, 2.0, 3.0]), (2.0, 1.0));
        assert!(moments(&[1.0]).1.is_nan());
    }
}
