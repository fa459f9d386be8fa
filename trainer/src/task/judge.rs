//! A network's samples, judged: teacher and student from the same noise, beside the real samples, in one table.

use super::Setup;
use super::draw::Drawn;
use crate::evaluate::classifier::{Classifier, Settings};
use crate::evaluate::{Judged, Points, Scores, scores};
use crate::method::{Teacher, Weights};
use crate::picture::Picture;
use ir::tensor::TensorData;
use serde_json::{Value, json};
use std::path::Path;

/// One network at one number of steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// `teacher` or `student`.
    pub name: String,
    /// Steps of its sampler.
    pub steps: u64,
    /// Evaluations of the network for each sample.
    pub evaluations: u64,
    /// Seconds for all samples.
    pub seconds: f64,
    /// Its figures.
    pub scores: Scores,
}

/// A table of networks.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Samples of each.
    pub samples: u64,
    /// Accuracy of the classifier on samples that it was not trained on, and how many those were.
    pub classifier: (f64, usize),
    /// In order of evaluation.
    pub rows: Vec<Row>,
}

/// What figures are called in tables, and how many decimals they have.
const COLUMNS: [(&str, &str, usize); 11] = [
    ("accuracy", "accuracy", 3),
    ("confidence", "confidence", 3),
    ("frechet", "Fréchet", 2),
    ("precision features", "precision", 3),
    ("recall features", "recall", 3),
    ("coverage features", "coverage", 3),
    ("precision pixels", "prec. px", 3),
    ("recall pixels", "rec. px", 3),
    ("coverage pixels", "cov. px", 3),
    ("diversity", "diversity", 3),
    ("vendi", "Vendi", 2),
];

impl Table {
    /// As a table of Markdown.
    pub fn markdown(&self) -> String {
        let has = |key: &str| self.rows.iter().any(|r| r.scores.contains_key(key));
        let columns: Vec<_> = COLUMNS.iter().filter(|c| has(c.0)).collect();
        let mut out = format!("| network | steps | evaluations | seconds | speed |{}\n|---|---|---|---|---|{}\n", columns.iter().map(|c| format!(" {} |", c.1)).collect::<String>(), "---|".repeat(columns.len()));
        let slow = self.rows.iter().find(|r| r.name == "teacher").map(|r| r.seconds);
        for r in &self.rows {
            let speed = slow.map_or("-".into(), |s| format!("{:.1}x", s / r.seconds));
            out += &format!("| {} | {} | {} | {:.2} | {speed} |", r.name, r.steps, r.evaluations, r.seconds);
            for (key, _, digits) in &columns {
                out += &r.scores.get(*key).map_or(" - |".into(), |x| format!(" {x:.digits$} |"));
            }
            out += "\n";
        }
        out += &format!("\n{} samples each, from the same noise. Features, accuracy and confidence are those of a classifier that is right on {:.1} % of {} real samples that it was not trained on. ", self.samples, 100.0 * self.classifier.0, self.classifier.1);
        out += "Precision, recall and coverage by 5th neighbours, in features and in pixels; diversity is the mean distance within a class over that of the real samples.";
        if let Some(v) = self.rows.iter().find_map(|r| r.scores.get("vendi of real")) {
            out += &format!(" The Vendi score of the real samples is {v:.2}.");
        }
        out + "\n"
    }
    /// As JSON.
    pub fn json(&self) -> Value {
        let row = |r: &Row| json!({"name": r.name, "steps": r.steps, "evaluations": r.evaluations, "seconds": r.seconds, "scores": r.scores});
        json!({"samples": self.samples, "classifier": {"accuracy": self.classifier.0, "held_out": self.classifier.1}, "rows": self.rows.iter().map(row).collect::<Vec<_>>()})
    }
}

/// Judges the student's weights at the configured numbers of steps, and the teacher; each is told to `note` first. Also gives a picture, a row of samples for each.
///
/// # Errors
/// Data without labels; those of networks.
pub fn judge(setup: &Setup, weights: Option<&Weights>, cache: Option<&Path>, note: &mut dyn FnMut(&str)) -> Result<(Table, Picture), String> {
    let (e, data) = (&setup.config.evaluation, setup.feed.data());
    let settings = Settings { width: e.classifier_width as usize, features: e.features as usize, iterations: e.classifier_iterations, held_out: e.held_out };
    note("the classifier");
    let classifier = Classifier::of(data, &settings, e.batch as usize, cache, &setup.options, note)?;
    let opinion = |x: &[f32]| classifier.judge(&TensorData::F32(x.to_vec()));
    let points = |x: &[f32]| Points::new(data.size(), x.iter().map(|x| f64::from(*x)).collect());
    let real = Judged { pixels: points(&data.samples)?, labels: &data.labels, opinion: opinion(&data.samples)? };
    let which = setup.feed.in_turn(e.samples as usize);
    let labels: Vec<u32> = which.iter().map(|i| data.labels[*i]).collect();
    let shown = data.classes.clamp(4, 20);
    let (mut rows, mut pictures) = (vec![], vec![]);
    let mut add = |name: &str, steps: u64, d: Drawn| -> Result<(), String> {
        let x: Vec<f32> = d.samples.data().iter().map(|x| *x as f32).collect();
        pictures.push(setup.strip(&x, shown)?);
        let made = Judged { pixels: points(&x)?, labels: &labels, opinion: opinion(&x)? };
        rows.push(Row { name: name.into(), steps, evaluations: d.evaluations, seconds: d.seconds, scores: scores(&made, &real)? });
        Ok(())
    };
    let s = &setup.config.sampling;
    let sampler = setup.sampler();
    if setup.teacher.is_some() && e.teacher {
        note(&format!("the teacher in {} steps", s.teacher_steps));
        add("teacher", s.teacher_steps, sampler.teacher(&mut setup.guided()?, &which, e.seed, s.teacher_steps as usize)?)?;
    }
    if let Some(w) = weights {
        let mut model = setup.model(w, super::networks::has_span(w))?;
        if setup.teacher.is_none() {
            note(&format!("the teacher in {} steps", s.teacher_steps));
            let mut teacher = Teacher { model, guidance: s.guidance };
            add("teacher", s.teacher_steps, sampler.teacher(&mut teacher, &which, e.seed, s.teacher_steps as usize)?)?;
        } else {
            for n in &s.steps {
                note(&format!("the student in {n} step{}", if *n == 1 { "" } else { "s" }));
                add("student", *n, sampler.student(&mut model, &which, e.seed, *n as usize)?)?;
            }
        }
    }
    let (w, h) = (pictures.iter().map(|p| p.width).max().unwrap_or(1), pictures.iter().map(|p| p.height).sum::<usize>());
    let mut all = Picture::plain(w, h.max(1), 255);
    let mut y = 0;
    for p in &pictures {
        all.draw(p, 0, y);
        y += p.height;
    }
    Ok((Table { samples: e.samples, classifier: (classifier.accuracy, classifier.held_out), rows }, all.zoomed(4)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_says_how_much_faster() {
        let row = |name: &str, steps, seconds, f: f64| Row { name: name.into(), steps, evaluations: steps, seconds, scores: [("frechet".to_string(), f), ("vendi of real".to_string(), 4.0)].into() };
        let t = Table { samples: 100, classifier: (0.98, 50), rows: vec![row("teacher", 50, 30.0, 45.0), row("student", 2, 1.5, 40.123)] };
        let text = t.markdown();
        assert!(text.contains("| student | 2 | 2 | 1.50 | 20.0x | 40.12 |"), "{text}");
        assert!(!text.contains("accuracy |") && text.contains("right on 98.0 % of 50"));
        assert_eq!(t.json()["rows"][1]["scores"]["frechet"], 40.123);
    }
}
