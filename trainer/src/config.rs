//! Configurations of trainings: TOML, every key documented and checked, an unknown one answered with its place and the nearest name. `Config::print` writes the
//! documentation as a commented configuration, from the same tables that read it.

pub mod schema;

use ir::diagnostic::{Error, Span, render};
use schema::{Key, Section, comment, nearest, read, section, span, table};
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

section! {
    /// The run as a whole.
    Run = "run" {
        /// Folder of checkpoints, metrics, pictures and the report, relative to where the command is started.
        folder: String = "runs/digits".into(), "not empty", |x| !x.is_empty();
        /// Seed of every random number of the training.
        seed: u64 = 0, "", |_x| true;
        /// Threads; 0 is all. Results do not depend on it.
        threads: u64 = 0, "at most 1024", |x| *x <= 1024;
        /// Iterations between checkpoints.
        checkpoint_every: u64 = 100, "at least 1", |x| *x > 0;
        /// Checkpoints that are kept.
        keep: u64 = 2, "1 to 1000", |x| (1..=1000).contains(x);
        /// Iterations between pictures of samples; 0 for none.
        picture_every: u64 = 0, "", |_x| true;
    }
}

section! {
    /// What is learned from.
    Data = "data" {
        /// `digits` (the shipped ones), `clips` (moving digits, made from them), `images` (grey images in a CSV file, the label last), `latents` (a safetensors file with `x0`,
        /// `labels` and further conditions).
        kind: String = "digits".into(), "digits, clips, images or latents", |x| ["digits", "clips", "images", "latents"].contains(&x.as_str());
        /// The file of `images` and `latents`, relative to this configuration.
        path: String = String::new(), "", |_x| true;
        /// Height in pixels of `images` and `clips`.
        height: u64 = 12, "1 to 4096", |x| (1..=4096).contains(x);
        /// Width in pixels of `images` and `clips`.
        width: u64 = 12, "1 to 4096", |x| (1..=4096).contains(x);
        /// The value of white in `images`.
        white: f64 = 16.0, "above 0", |x| *x > 0.0;
        /// Frames of `clips`.
        frames: u64 = 5, "1 to 1024", |x| (1..=1024).contains(x);
        /// How many `clips` are made.
        count: u64 = 3594, "2 to 1000000", |x| (2..=1_000_000).contains(x);
        /// Seed of what is made.
        seed: u64 = 0, "", |_x| true;
        /// Whether `latents` are of mean 0 and deviation 1 already and stay as they are.
        normalised: bool = false, "", |_x| true;
    }
}

section! {
    /// The network, and what it begins from.
    Network = "network" {
        /// A `config.json` as diffusers has them (`ImageTransformer2DModel`, `WanTransformer3DModel`, `CosmosTransformer3DModel`), relative to this configuration. Empty: the digits' network
        /// when teaching, the teacher's when distilling.
        config: String = String::new(), "", |_x| true;
        /// Folder of the teacher (config.json and weights), relative to this configuration; distilling begins from its weights.
        teacher: String = String::new(), "", |_x| true;
        /// Seed of weights that begin from nothing.
        seed: u64 = 0, "", |_x| true;
    }
}

section! {
    /// How samples are drawn, for pictures, `sample` and `evaluate`.
    Sampling = "sampling" {
        /// Numbers of steps of the student.
        steps: Vec<u64> = vec![1, 2, 4], "each 1 to 8", |x| !x.is_empty() && x.iter().all(|n| (1..=8).contains(n));
        /// The largest noise over signal, where sampling begins.
        sigma_max: f64 = 80.0, "above 0", |x| *x > 0.0;
        /// TrigFlow times in the middle; the paper's are 1.3, 1.0, 0.6.
        times: Vec<f64> = vec![1.3, 1.0, 0.6], "each between 0 and 1.5708", |x| x.iter().all(|t| *t > 0.0 && *t < std::f64::consts::FRAC_PI_2);
        /// New noise after each step (true), or the deterministic step along the velocity (false).
        stochastic: bool = true, "", |_x| true;
        /// Steps of the teacher.
        teacher_steps: u64 = 50, "1 to 1000", |x| (1..=1000).contains(x);
        /// The teacher's solver.
        teacher_solver: String = "euler".into(), "euler or unipc", |x| ["euler", "unipc"].contains(&x.as_str());
        /// Shift of the teacher's times towards noise; 1 for small images, 5 for large video.
        teacher_shift: f64 = 1.0, "above 0", |x| *x > 0.0;
        /// Guidance of the teacher: v_u + w·(v_c − v_u).
        guidance: f64 = 2.0, "0 or more", |x| *x >= 0.0;
        /// Samples of each picture.
        picture_samples: u64 = 40, "1 to 4096", |x| (1..=4096).contains(x);
    }
}

section! {
    /// How samples are judged.
    Evaluation = "evaluation" {
        /// Samples that are drawn; classes in turn.
        samples: u64 = 2000, "20 to 100000", |x| (20..=100_000).contains(x);
        /// Seed of their noise; the same for every network.
        seed: u64 = 12345, "", |_x| true;
        /// Samples that a network sees at once.
        batch: u64 = 250, "1 to 10000", |x| (1..=10_000).contains(x);
        /// Whether the teacher is judged, too.
        teacher: bool = true, "", |_x| true;
        /// Share of the real samples on which the classifier is not trained, but tested.
        held_out: f64 = 0.2, "between 0 and 0.9", |x| *x > 0.0 && *x < 0.9;
        /// Width of the classifier's hidden layer.
        classifier_width: u64 = 256, "1 to 4096", |x| (1..=4096).contains(x);
        /// Features of the classifier, in which distances are taken.
        features: u64 = 32, "2 to 1024", |x| (2..=1024).contains(x);
        /// Iterations of the classifier's training.
        classifier_iterations: u64 = 1500, "1 to 1000000", |x| (1..=1_000_000).contains(x);
    }
}
