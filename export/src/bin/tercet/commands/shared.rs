//! Options that several verbs take.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use tercet_models::Error;
use tercet_models::data::{Dataset, LoadOptions};
use tercet_models::eval::{Candidates, EvalProtocol, HistoryRule, MaskRule};
use tercet_models::run::RunConfig;
use tercet_models::train::TrainReport;

use crate::output;

/// Options that do not fit together, or a value that none has: exit code 2, as from the parser.
#[derive(Debug)]
pub(crate) struct WrongUse(pub(crate) String);

impl std::fmt::Display for WrongUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongUse {}

/// Leaves with [`WrongUse`].
pub(crate) fn wrong_use<T>(message: impl Into<String>) -> Result<T> {
    Err(WrongUse(message.into()).into())
}

/// Configuration of a training run.
#[derive(Args, Clone)]
pub(crate) struct Training {
    /// Configuration file (TOML): top-level keys and the tables `train` and `params`.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Override one value: a hyper-parameter (`reg=1e-4`) or `train.patience=5`. Repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Most epochs.
    #[arg(long)]
    pub(crate) epochs: Option<u64>,
    /// Seed of every random number.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// cpu, or cuda:N in a build with that feature.
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    /// Threads; all cores when absent.
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Continue an interrupted run from its checkpoint.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Print the report as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

impl Training {
    /// Overlays the file and the flags on a model's defaults.
    pub(crate) fn apply(&self, spec: &mut RunConfig) -> Result<()> {
        if let Some(path) = &self.config {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            spec.merge_toml(&text)
                .with_context(|| format!("in {}", path.display()))?;
        }
        if let Some(seed) = self.seed {
            spec.seed = seed;
        }
        for s in &self.set {
            spec.set(s)?;
        }
        if let Some(n) = self.epochs {
            spec.train.epochs = n;
        }
        spec.check()?;
        Ok(())
    }
}

/// Sets the size of the thread pool, once, before any work.
pub(crate) fn threads(n: Option<usize>) -> Result<()> {
    if let Some(n) = n {
        if n == 0 {
            return wrong_use("--threads must be at least 1");
        }
        rayon::ThreadPoolBuilder::new()
            .num_threads(n)
            .build_global()
            .context("the thread pool is already running")?;
    }
    Ok(())
}

/// Which histories, masks and candidates evaluation uses.
#[derive(Args, Clone)]
pub(crate) struct Protocol {
    /// `full`, or `sampled:N` negatives (much easier; not comparable).
    #[arg(long, default_value = "full")]
    pub(crate) protocol: String,
    /// Cut-offs.
    #[arg(long, value_delimiter = ',', default_value = "10,20")]
    pub(crate) k: Vec<usize>,
    /// What test queries look back on: auto, train, train-valid.
    #[arg(long, default_value = "auto")]
    pub(crate) history: String,
    /// What is left out of the ranking: auto, history, target-behavior, none.
    #[arg(long, default_value = "auto")]
    pub(crate) mask: String,
    /// Rank for at most so many users, evenly spaced. Full ranking costs users times items.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) max_users: Option<usize>,
}

impl Protocol {
    pub(crate) fn parse(&self) -> Result<EvalProtocol> {
        let candidates = match self.protocol.strip_prefix("sampled:") {
            Some(n) => Candidates::Sampled {
                n: match n.parse() {
                    Ok(n) => n,
                    Err(_) => return wrong_use("--protocol sampled:N needs a number"),
                },
                seed: 0,
            },
            None if self.protocol == "full" => Candidates::Full,
            None => {
                return wrong_use(format!(
                    "--protocol must be full or sampled:N, got `{}`",
                    self.protocol
                ));
            }
        };
        let history = match self.history.as_str() {
            "auto" => HistoryRule::Auto,
            "train" => HistoryRule::Train,
            "train-valid" => HistoryRule::TrainValid,
            other => {
                return wrong_use(format!(
                    "--history must be auto, train or train-valid, got `{other}`"
                ));
            }
        };
        let mask = match self.mask.as_str() {
            "auto" => MaskRule::Auto,
            "history" => MaskRule::History,
            "target-behavior" => MaskRule::TargetBehavior,
            "none" => MaskRule::None,
            other => {
                return wrong_use(format!(
                    "--mask must be auto, history, target-behavior or none, got `{other}`"
                ));
            }
        };
        Ok(EvalProtocol {
            ks: self.k.clone(),
            candidates,
            history,
            mask,
            max_users: self.max_users,
            ..EvalProtocol::default()
        })
    }
}

/// Opens a data set folder.
pub(crate) fn open_data(dir: &std::path::Path, options: &LoadOptions) -> Result<Dataset> {
    Dataset::open(dir, options)
        .with_context(|| format!("cannot use the data set {}", dir.display()))
}

/// Turns an interruption into advice.
pub(crate) fn explain_stop(error: Error, out: &std::path::Path) -> anyhow::Error {
    match error {
        Error::Interrupted => anyhow::anyhow!(
            "interrupted; what is finished is kept in {}: repeat the command with --resume to go on",
            out.display()
        ),
        other => other.into(),
    }
}

/// Prints a training report.
pub(crate) fn print_report(report: &TrainReport, json: bool) -> Result<()> {
    if json {
        return output::json(report);
    }
    println!(
        "{}: epoch {} of {} selected on {}, {:.1} s",
        report.model,
        report.best_epoch,
        report.epochs,
        report.selected_on.name(),
        report.seconds
    );
    output::metric_table(&[("valid", &report.valid), ("test", &report.test)]);
    println!("run: {}", report.run.display());
    Ok(())
}

/// Opens a bundle.
pub(crate) fn open_bundle(path: &std::path::Path) -> Result<tercet::Bundle> {
    tercet::Bundle::open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// Environment variable with the password of a signing key.
pub(crate) const PASSWORD: &str = "TERCET_KEY_PASSWORD";

/// A public key given as a file or as its line of base64.
pub(crate) fn public_key(text: &str) -> Result<String> {
    // What the line always looks like: 42 bytes in base64, the first two `Ed`. It may hold slashes.
    if text.len() == 56 && text.starts_with("RW") {
        return Ok(text.to_string());
    }
    std::fs::read_to_string(text).with_context(|| format!("cannot read the key {text}"))
}

/// Line of the bundle or delta in `folder`.
pub(crate) fn bundle_id(folder: &std::path::Path) -> Result<String> {
    let path = folder.join(tercet::bundle::MANIFEST_FILE);
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(tercet::Manifest::parse(&bytes, &path)?.bundle_id)
}

/// How to open the data set that a bundle's model card names.
pub(crate) fn bundle_options(bundle: &tercet::Bundle) -> LoadOptions {
    let dataset = &bundle.manifest().card["dataset"];
    let names = dataset["modalities"].as_array();
    LoadOptions {
        modalities: names.map(|list| {
            list.iter()
                .filter_map(|m| m.as_str().map(str::to_string))
                .collect()
        }),
        target_behavior: dataset["target_behavior"].as_str().map(str::to_string),
        ..LoadOptions::default()
    }
}

/// A count of at least 1.
pub(crate) fn positive(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("expected a number of at least 1".into()),
    }
}

/// A share from 0 to 1.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if (0.0..=1.0).contains(&x) => Ok(x),
        _ => Err("expected a number from 0 to 1".into()),
    }
}

/// This command as it was typed; words with blanks are quoted.
pub(crate) fn command_line() -> String {
    let quote = |word: String| {
        if word.is_empty() || word.contains(char::is_whitespace) {
            format!("{word:?}")
        } else {
            word
        }
    };
    let rest = std::env::args_os()
        .skip(1)
        .map(|a| quote(a.to_string_lossy().into_owned()));
    std::iter::once("tercet".to_string())
        .chain(rest)
        .collect::<Vec<_>>()
        .join(" ")
}
