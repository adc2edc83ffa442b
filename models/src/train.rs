//! The one training loop: epochs, progress, selection on validation, checkpoints, resuming.
//!
//! A run is a folder: `config.toml` (everything needed to repeat it), `metrics.jsonl` (a line per
//! epoch), `checkpoint.safetensors` (to continue), `best.safetensors` (what the selected epoch
//! needs to score) and `report.json`.
//!
//! Every random number of an epoch is drawn from the seed and the epoch's number, so a run that
//! was interrupted and resumed from an epoch's end gives the same result as one that was not.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::{Device, Tensor};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::data::{Csr, Dataset, Split};
use crate::error::{Error, Result};
use crate::eval::{EvalProtocol, EvalReport, evaluate};
use crate::params::TensorMap;
use crate::rng::{self, Purpose};
use crate::{run, usage};

/// Named averages over one epoch.
pub type EpochLosses = Vec<(&'static str, f64)>;

/// A model that learns by epochs.
pub trait Learner {
    /// Calls of [`Monitor::step`] per epoch, for the progress bar.
    fn steps_per_epoch(&self) -> u64;

    /// Learns for one epoch. Random numbers must depend only on the seed and `epoch`.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when the monitor asks to stop.
    fn train_epoch(&mut self, epoch: u64, monitor: &mut Monitor<'_>) -> Result<EpochLosses>;

    /// The tensors that scoring needs; [`run::scorer`] rebuilds the scorer from them.
    fn inference(&self) -> Result<TensorMap>;

    /// Everything needed to continue after the epoch that just ended. The tensors may share
    /// storage with the model.
    fn export_state(&self) -> Result<TensorMap>;

    /// Restores what [`Learner::export_state`] gave.
    fn import_state(&mut self, from: &TensorMap) -> Result<()>;
}

/// Progress and interruption, as a learner sees them.
#[derive(Debug)]
pub struct Monitor<'a> {
    bar: Option<&'a ProgressBar>,
    stop: Option<&'a AtomicBool>,
}

impl Monitor<'_> {
    /// Shows nothing and never stops.
    pub fn silent() -> Self {
        Self {
            bar: None,
            stop: None,
        }
    }

    /// Counts one step.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when the caller asked to stop.
    pub fn step(&mut self) -> Result<()> {
        if let Some(bar) = self.bar {
            bar.inc(1);
        }
        self.check()
    }

    /// Looks for a wish to stop without counting a step.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when the caller asked to stop.
    pub fn check(&self) -> Result<()> {
        match self.stop {
            Some(s) if s.load(Ordering::Relaxed) => Err(Error::Interrupted),
            _ => Ok(()),
        }
    }
}

/// On which rows the best epoch is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// On validation rows; test rows are read once, at the end.
    #[default]
    Honest,
    /// On test rows, as several published programs do: for comparison with their numbers only.
    Parity,
}

/// How long to train and what to select by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Most epochs.
    pub epochs: u64,
    /// Stop after this many evaluations without improvement; 0 never stops early.
    pub patience: u64,
    /// Evaluate after every so many epochs.
    pub eval_every: u64,
    /// Metric to select by, as in reports.
    pub metric: String,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 50,
            patience: 10,
            eval_every: 1,
            metric: "recall@20".into(),
        }
    }
}

/// Where and how a run happens, apart from the model.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The run folder.
    pub out: PathBuf,
    /// Selection rows.
    pub mode: Mode,
    /// Continue from the checkpoint of an interrupted run.
    pub resume: bool,
    /// Set from another thread (a Ctrl-C handler) to stop at the next step.
    pub stop: Arc<AtomicBool>,
    /// Draw a progress bar on stderr.
    pub progress: bool,
    /// Which histories, masks and cut-offs evaluation uses.
    pub protocol: EvalProtocol,
}

/// The result of a run; `report.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrainReport {
    /// Model name.
    pub model: String,
    /// Epochs trained.
    pub epochs: u64,
    /// The selected epoch, counted from 1.
    pub best_epoch: u64,
    /// `valid` or `test`.
    pub selected_on: Split,
    /// Metrics of the selected epoch on validation rows.
    pub valid: BTreeMap<String, f64>,
    /// Metrics of the selected epoch on test rows.
    pub test: BTreeMap<String, f64>,
    /// In parity mode: the same training, but with the epoch chosen on validation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selected_on_valid: Option<Selected>,
    /// Mean CPU seconds of all threads per epoch, training and evaluation.
    pub cpu_seconds_per_epoch: Option<f64>,
    /// Largest resident memory, MB.
    pub peak_rss_mb: Option<f64>,
    /// Wall seconds of this call.
    pub seconds: f64,
    /// Seed of the run.
    pub seed: u64,
    /// The run folder.
    pub run: PathBuf,
}

/// An epoch and its metrics.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Selected {
    /// Epoch, counted from 1.
    pub epoch: u64,
    /// On validation rows.
    pub valid: BTreeMap<String, f64>,
    /// On test rows.
    pub test: BTreeMap<String, f64>,
}

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct EpochLine {
    epoch: u64,
    losses: BTreeMap<String, f64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    valid: BTreeMap<String, f64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    test: BTreeMap<String, f64>,
    cpu_seconds: Option<f64>,
    seconds: f64,
}

/// Trains `learner`, selects an epoch, and leaves the run folder complete.
///
/// # Errors
/// [`Error::Interrupted`] after a stop request, with a checkpoint in the folder; configuration,
/// data and file errors otherwise.
pub fn train(
    learner: &mut dyn Learner,
    data: &Dataset,
    spec: &run::RunConfig,
    options: &RunOptions,
    dev: &Device,
) -> Result<TrainReport> {
    let started = Instant::now();
    let cfg = &spec.train;
    let files = run::RunFiles::new(&options.out);
    let mut lines: Vec<EpochLine> = Vec::new();
    let mut next = 0u64;
    if options.resume && files.checkpoint().exists() {
        run::same_config(&files.config(), spec)?;
        let mut state = run::load_tensors(&files.checkpoint(), dev)?;
        let at = state.remove("trainer.epoch").ok_or_else(|| {
            Error::checkpoint(files.checkpoint(), "tensor `trainer.epoch` is missing")
        })?;
        next = at.to_vec1::<i64>()?.first().copied().unwrap_or(0).max(0) as u64;
        learner.import_state(&state)?;
        lines = read_lines(&files.metrics(), next)?;
    } else {
        files.create(spec, options.resume)?;
    }
    write_lines(&files.metrics(), &lines)?;

    let evaluates = |l: &EpochLine| !l.valid.is_empty() || !l.test.is_empty();
    let on = match options.mode {
        Mode::Honest => Split::Valid,
        Mode::Parity => Split::Test,
    };
    let value = |l: &EpochLine, s: Split| -> f64 {
        let m = if s == Split::Test { &l.test } else { &l.valid };
        m.get(&cfg.metric).copied().unwrap_or(f64::NEG_INFINITY)
    };
    let best_of = |lines: &[EpochLine], s: Split| -> Option<usize> {
        let mut best: Option<usize> = None;
        for (k, l) in lines.iter().enumerate().filter(|(_, l)| evaluates(l)) {
            if best.is_none_or(|b| value(l, s) > value(&lines[b], s)) {
                best = Some(k);
            }
        }
        best
    };
    let waited = |lines: &[EpochLine]| {
        let best = best_of(lines, on).unwrap_or(0);
        lines[best.min(lines.len())..]
            .iter()
            .filter(|l| evaluates(l))
            .count()
            .saturating_sub(1)
    };

    let bar = progress_bar(options.progress, cfg.epochs * learner.steps_per_epoch());
    bar.set_position(next * learner.steps_per_epoch());
    // Saving may cost at most about a twentieth of the time, however large the model.
    let mut save_seconds = 0.0;
    let mut last_save = Instant::now();
    while next < cfg.epochs && (cfg.patience == 0 || (waited(&lines) as u64) < cfg.patience) {
        let (wall, cpu) = (Instant::now(), usage::cpu_seconds());
        bar.set_message(describe(next + 1, cfg, &lines));
        let mut monitor = Monitor {
            bar: Some(&bar),
            stop: Some(&options.stop),
        };
        let losses = learner.train_epoch(next, &mut monitor)?;
        next += 1;
        let mut line = EpochLine {
            epoch: next,
            losses: losses.iter().map(|(k, v)| ((*k).to_string(), *v)).collect(),
            valid: BTreeMap::new(),
            test: BTreeMap::new(),
            cpu_seconds: None,
            seconds: 0.0,
        };
        if let Some((name, v)) = losses.iter().find(|(_, v)| !v.is_finite()) {
            return Err(Error::Numeric {
                reason: format!("{name} became {v} in epoch {next}; lower the learning rate"),
            });
        }
        if next.is_multiple_of(cfg.eval_every.max(1)) || next == cfg.epochs {
            let tensors = learner.inference()?;
            let scorer = run::scorer(spec, &tensors, data, dev)?;
            let measure = |split| -> Result<EvalReport> {
                let protocol = EvalProtocol {
                    split,
                    slices: false,
                    ..options.protocol.clone()
                };
                evaluate(scorer.as_ref(), data, &protocol)
            };
            line.valid = measure(Split::Valid)?.metrics;
            if options.mode == Mode::Parity {
                line.test = measure(Split::Test)?.metrics;
            }
            if !line.valid.contains_key(&cfg.metric) {
                return Err(Error::config(format!(
                    "metric `{}` is not among those measured: {:?}",
                    cfg.metric,
                    line.valid.keys().collect::<Vec<_>>()
                )));
            }
            lines.push(line);
            let newest = lines.len() - 1;
            if best_of(&lines, on) == Some(newest) {
                run::save_tensors(&files.best(), &tensors)?;
            }
            if options.mode == Mode::Parity && best_of(&lines, Split::Valid) == Some(newest) {
                run::save_tensors(&files.best_on_valid(), &tensors)?;
            }
        } else {
            lines.push(line);
        }
        if let Some(line) = lines.last_mut() {
            line.seconds = wall.elapsed().as_secs_f64();
            line.cpu_seconds = cpu.zip(usage::cpu_seconds()).map(|(a, b)| b - a);
            append_line(&files.metrics(), line)?;
        }
        let stop = options.stop.load(Ordering::Relaxed);
        let due = last_save.elapsed().as_secs_f64() >= 20.0 * save_seconds;
        if (due || stop) && next < cfg.epochs {
            let begin = Instant::now();
            let mut state = learner.export_state()?;
            let at = Tensor::from_vec(vec![next as i64], 1, &Device::Cpu)?;
            state.insert("trainer.epoch".into(), at);
            run::save_tensors(&files.checkpoint(), &state)?;
            save_seconds = begin.elapsed().as_secs_f64();
            last_save = Instant::now();
        }
        if stop {
            return Err(Error::Interrupted);
        }
    }
    bar.finish_and_clear();

    let best = best_of(&lines, on)
        .ok_or_else(|| Error::config("no epoch was evaluated; set epochs to at least 1"))?;
    let line = lines[best].clone();
    let test = if line.test.is_empty() {
        let tensors = run::load_tensors(&files.best(), dev)?;
        let scorer = run::scorer(spec, &tensors, data, dev)?;
        let protocol = EvalProtocol {
            split: Split::Test,
            slices: false,
            ..options.protocol.clone()
        };
        evaluate(scorer.as_ref(), data, &protocol)?.metrics
    } else {
        line.test.clone()
    };
    let selected_on_valid = match options.mode {
        Mode::Honest => None,
        Mode::Parity => best_of(&lines, Split::Valid).map(|k| Selected {
            epoch: lines[k].epoch,
            valid: lines[k].valid.clone(),
            test: lines[k].test.clone(),
        }),
    };
    let cpu: Vec<f64> = lines.iter().filter_map(|l| l.cpu_seconds).collect();
    let report = TrainReport {
        model: spec.model.clone(),
        epochs: next,
        best_epoch: line.epoch,
        selected_on: on,
        valid: line.valid,
        test,
        selected_on_valid,
        cpu_seconds_per_epoch: (!cpu.is_empty())
            .then(|| cpu.iter().sum::<f64>() / cpu.len() as f64),
        peak_rss_mb: usage::peak_rss_mb(),
        seconds: started.elapsed().as_secs_f64(),
        seed: spec.seed,
        run: options.out.clone(),
    };
    run::write_json(&files.report(), &report)?;
    // The run is complete: what only a continuation needs can go.
    if files.checkpoint().exists() {
        fs::remove_file(files.checkpoint()).map_err(|e| Error::io(files.checkpoint(), e))?;
    }
    Ok(report)
}

fn describe(epoch: u64, cfg: &TrainConfig, lines: &[EpochLine]) -> String {
    let last = lines.iter().rev().find_map(|l| {
        let m = if l.valid.is_empty() {
            &l.test
        } else {
            &l.valid
        };
        m.get(&cfg.metric)
            .map(|v| format!(", {} {v:.4}", cfg.metric))
    });
    format!("epoch {epoch}/{}{}", cfg.epochs, last.unwrap_or_default())
}

fn progress_bar(show: bool, steps: u64) -> ProgressBar {
    let bar = ProgressBar::new(steps);
    if !show {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) =
        ProgressStyle::with_template("{bar:30} {percent}% {msg} [{elapsed} / eta {eta}]")
    {
        bar.set_style(style);
    }
    bar
}

fn read_lines(path: &Path, upto: u64) -> Result<Vec<EpochLine>> {
    let text = fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let mut out = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let line: EpochLine = serde_json::from_str(line)
            .map_err(|e| Error::data(path, n as u64 + 1, format!("not a metrics line: {e}")))?;
        if line.epoch <= upto {
            out.push(line);
        }
    }
    Ok(out)
}

fn write_lines(path: &Path, lines: &[EpochLine]) -> Result<()> {
    fs::write(path, "").map_err(|e| Error::io(path, e))?;
    lines.iter().try_for_each(|l| append_line(path, l))
}

fn append_line(path: &Path, line: &EpochLine) -> Result<()> {
    let mut file = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|e| Error::io(path, e))?;
    let text = serde_json::to_string(line).map_err(|e| Error::config(e.to_string()))?;
    writeln!(file, "{text}").map_err(|e| Error::io(path, e))
}

/// One `(user, positive, negative)` per training positive, shuffled. A negative is a uniform item
/// outside the user's training row (validation and test positives may be drawn).
pub fn sample_triples(rows: &Csr, items: usize, seed: u64, epoch: u64) -> Vec<(u32, u32, u32)> {
    let all: Vec<u32> = (0..items as u32).collect();
    sample_triples_among(&all, rows, seed, epoch)
}

/// [`sample_triples`] with negatives from `candidates` only, which hold all items of `rows`. Users who
/// have them all are left out.
pub fn sample_triples_among(
    candidates: &[u32],
    rows: &Csr,
    seed: u64,
    epoch: u64,
) -> Vec<(u32, u32, u32)> {
    let mut out = Vec::with_capacity(rows.nnz());
    for u in 0..rows.rows() as u32 {
        let row = rows.row(u);
        if row.len() >= candidates.len() {
            continue;
        }
        let mut r = rng::stream(seed, Purpose::Negatives, &[epoch, u64::from(u)]);
        for &p in row {
            let n = loop {
                let n = candidates[rng::below(&mut r, candidates.len())];
                if row.binary_search(&n).is_err() {
                    break n;
                }
            };
            out.push((u, p, n));
        }
    }
    rng::shuffle(
        &mut rng::stream(seed, Purpose::Shuffle, &[epoch, 1]),
        &mut out,
    );
    out
}

/// The inference tensors of a model whose score is the product of a user and an item vector.
pub fn factors(users: &Tensor, items: &Tensor) -> Result<TensorMap> {
    Ok(TensorMap::from([
        ("user_vectors".to_string(), users.detach().contiguous()?),
        ("item_vectors".to_string(), items.detach().contiguous()?),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negatives_come_from_the_candidates_and_are_not_the_users() {
        let rows = Csr::from_rows([vec![1u32, 3], vec![3, 7], vec![1, 3, 7]]);
        let triples = sample_triples_among(&[1, 3, 7], &rows, 5, 0);
        // The last user has all candidates.
        assert_eq!(triples.len(), 4);
        for (u, p, n) in triples {
            assert!(rows.row(u).contains(&p));
            assert_eq!(n, [7, 1][u as usize]);
        }
    }
}
