//! Run folders and the registry of models: from a name and a configuration to a learner, and from
//! a finished run to a scorer.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::baseline::behavior_graph::{BehaviorGraph, BehaviorGraphConfig};
use crate::baseline::closed_form::{
    EaseGridConfig, EaseLearner, PopularityConfig, PopularityLearner,
};
use crate::baseline::ease::Ease;
use crate::baseline::graph_mf::{GraphMf, GraphMfConfig};
use crate::baseline::popularity::Popularity;
use crate::baseline::sasrec::{Sasrec, SasrecConfig};
use crate::baseline::sparse_mf::SparseMf;
use crate::data::{Dataset, LoadOptions};
use crate::diffmm::{DiffMm, DiffMmConfig};
use crate::dprec::{Dprec, DprecConfig};
use crate::error::{Error, Result};
use crate::eval::Scorer;
use crate::factors::Factors;
use crate::odmt::{Odmt, OdmtConfig};
use crate::params::TensorMap;
use crate::student::Student;
use crate::tmf::{Tmf, TmfConfig};
use crate::train::{Learner, Mode, TrainConfig};

/// Models that `train` knows.
pub const MODELS: [&str; 10] = [
    "popularity",
    "ease",
    "bpr",
    "lightgcn",
    "behavior-graph",
    "sasrec",
    "diffmm",
    "dprec",
    "odmt",
    "tmf",
];

/// Everything needed to repeat a run; `config.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Model name: one of [`MODELS`], or `student`.
    pub model: String,
    /// Seed of every random number.
    #[serde(default)]
    pub seed: u64,
    /// Selection rows.
    #[serde(default)]
    pub mode: Mode,
    /// Modalities to load; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modalities: Option<Vec<String>>,
    /// The behaviour to predict; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_behavior: Option<String>,
    /// Epochs and selection.
    #[serde(default)]
    pub train: TrainConfig,
    /// The model's own hyper-parameters; absent ones have their defaults.
    #[serde(default)]
    pub params: toml::Table,
}

impl RunConfig {
    /// Defaults of a model.
    ///
    /// # Errors
    /// A name that is not in [`MODELS`].
    pub fn new(model: &str) -> Result<Self> {
        let (epochs, patience) = match model {
            "popularity" => (1, 0),
            "ease" => (EaseLearner::epochs(&EaseGridConfig::default()), 0),
            "bpr" => (200, 20),
            "lightgcn" | "behavior-graph" => (200, 20),
            "sasrec" => (100, 10),
            "diffmm" => (50, 15),
            "dprec" => (200, 20),
            "odmt" => (60, 10),
            // The curriculum spans all epochs: none may be left out.
            "tmf" => (12, 0),
            "student" => (60, 10),
            _ => {
                return Err(Error::config(format!(
                    "there is no model `{model}`; choose one of {}",
                    MODELS.join(", ")
                )));
            }
        };
        Ok(Self {
            model: model.to_string(),
            seed: 0,
            mode: Mode::Honest,
            modalities: None,
            target_behavior: None,
            train: TrainConfig {
                epochs,
                patience,
                ..TrainConfig::default()
            },
            params: toml::Table::new(),
        })
    }

    /// Overlays a TOML text: top-level keys, `[train]` and `[params]`.
    ///
    /// # Errors
    /// Text that is not TOML, or an unknown key.
    pub fn merge_toml(&mut self, text: &str) -> Result<()> {
        let overlay: toml::Table = text
            .parse()
            .map_err(|e| Error::config(format!("not a configuration file: {e}")))?;
        let mut whole = self.table()?;
        for (key, value) in overlay {
            match (whole.get_mut(&key), value) {
                (Some(toml::Value::Table(old)), toml::Value::Table(new)) => old.extend(new),
                (_, value) => {
                    whole.insert(key, value);
                }
            }
        }
        self.replace(whole)
    }

    /// Applies one `key=value`: `train.epochs=10`, `seed=3`, or a hyper-parameter of the model.
    ///
    /// # Errors
    /// No `=`, or an unknown key.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let (key, value) = assignment
            .split_once('=')
            .ok_or_else(|| Error::config(format!("`{assignment}` is not key=value")))?;
        let (key, value) = (key.trim(), value.trim());
        // A bare word is a string, so that quotes are not needed on a command line.
        let value = format!("v = {value}")
            .parse::<toml::Table>()
            .ok()
            .and_then(|mut t| t.remove("v"))
            .unwrap_or_else(|| toml::Value::String(value.to_string()));
        let mut whole = self.table()?;
        let (section, name) = match key.split_once('.') {
            Some((s, n)) => (Some(s), n),
            None if ["seed", "mode", "modalities", "target_behavior"].contains(&key) => (None, key),
            None => (Some("params"), key),
        };
        match section {
            None => {
                whole.insert(name.to_string(), value);
            }
            Some(s @ ("train" | "params")) => {
                let table = whole
                    .entry(s)
                    .or_insert_with(|| toml::Value::Table(toml::Table::new()));
                if let toml::Value::Table(t) = table {
                    t.insert(name.to_string(), value);
                }
            }
            Some(s) => {
                return Err(Error::config(format!(
                    "there is no section `{s}`; use `train.` or `params.`"
                )));
            }
        }
        self.replace(whole)?;
        self.check()
    }

    /// Checks the hyper-parameters against the model.
    ///
    /// # Errors
    /// Names the unknown or mistyped key.
    pub fn check(&self) -> Result<()> {
        match self.model.as_str() {
            "popularity" => self.parse::<PopularityConfig>().map(drop),
            "ease" => self.parse::<EaseGridConfig>().map(drop),
            "bpr" | "lightgcn" => self.parse::<GraphMfConfig>().map(drop),
            "behavior-graph" => self.parse::<BehaviorGraphConfig>().map(drop),
            "sasrec" => self.parse::<SasrecConfig>().map(drop),
            "diffmm" => self.parse::<DiffMmConfig>()?.check(),
            "dprec" => self.parse::<DprecConfig>()?.check(),
            "odmt" => self.parse::<OdmtConfig>()?.check(),
            "tmf" => self.parse::<TmfConfig>()?.check(),
            "student" => self.parse::<crate::distill::DistillConfig>().map(drop),
            _ => Self::new(&self.model).map(drop),
        }
    }

    /// The hyper-parameters as the model's own type.
    pub fn parse<T: for<'de> Deserialize<'de>>(&self) -> Result<T> {
        self.params
            .clone()
            .try_into()
            .map_err(|e: toml::de::Error| {
                Error::config(format!("parameters of `{}`: {}", self.model, one_line(&e)))
            })
    }

    /// How to open the data set for this run.
    pub fn load_options(&self) -> LoadOptions {
        LoadOptions {
            modalities: self.modalities.clone(),
            target_behavior: self.target_behavior.clone(),
            ..LoadOptions::default()
        }
    }

    fn table(&self) -> Result<toml::Table> {
        toml::Table::try_from(self).map_err(|e| Error::config(e.to_string()))
    }

    fn replace(&mut self, table: toml::Table) -> Result<()> {
        *self = table
            .try_into()
            .map_err(|e: toml::de::Error| Error::config(one_line(&e)))?;
        Ok(())
    }
}

/// The learner of a configuration.
///
/// # Errors
/// An unknown model, or hyper-parameters that do not fit it or the data.
pub fn learner<'a>(
    spec: &RunConfig,
    data: &'a Dataset,
    dev: &Device,
) -> Result<Box<dyn Learner + 'a>> {
    let seed = spec.seed;
    Ok(match spec.model.as_str() {
        "popularity" => Box::new(PopularityLearner::new(data, &spec.parse()?)),
        "ease" => Box::new(EaseLearner::new(data, spec.parse()?)?),
        "bpr" => {
            let cfg = GraphMfConfig {
                layers: 0,
                ..spec.parse()?
            };
            if cfg.sparse {
                Box::new(SparseMf::new(data, cfg, seed)?)
            } else {
                Box::new(GraphMf::new(data, cfg, seed, dev)?)
            }
        }
        "lightgcn" => {
            let cfg = spec.parse::<GraphMfConfig>()?;
            if cfg.sparse {
                return Err(Error::config(
                    "sparse updates are for bpr: propagation reads every row in every step",
                ));
            }
            Box::new(GraphMf::new(data, cfg, seed, dev)?)
        }
        "behavior-graph" => Box::new(BehaviorGraph::new(data, spec.parse()?, seed, dev)?),
        "sasrec" => Box::new(Sasrec::new(data, spec.parse()?, seed, dev)?),
        "diffmm" => Box::new(DiffMm::new(data, spec.parse::<DiffMmConfig>()?, seed, dev)?),
        "dprec" => Box::new(Dprec::new(data, spec.parse()?, seed, dev)?),
        "odmt" => Box::new(Odmt::new(data, spec.parse()?, spec.mode, seed, dev)?),
        "tmf" => {
            let epochs = spec.train.epochs;
            Box::new(Tmf::new(data, spec.parse()?, epochs, seed, dev)?)
        }
        other => {
            return Err(RunConfig::new(other).err().unwrap_or_else(|| {
                Error::config(format!("`{other}` is not trained by itself; use distill"))
            }));
        }
    })
}

/// The scorer behind the inference tensors of a run.
///
/// # Errors
/// Tensors that do not belong to the model.
pub fn scorer(
    spec: &RunConfig,
    tensors: &TensorMap,
    data: &Dataset,
    dev: &Device,
) -> Result<Box<dyn Scorer>> {
    let host = |name: &str| -> Result<Tensor> {
        tensors
            .get(name)
            .ok_or_else(|| Error::config(format!("tensor `{name}` is missing from the run")))?
            .to_device(&Device::Cpu)
            .map_err(Error::from)
    };
    Ok(match spec.model.as_str() {
        "popularity" => Box::new(Popularity::new(host("counts")?.to_vec1()?)),
        "ease" => {
            let w = host("weights")?;
            let weights = ndarray::Array2::from_shape_vec(w.dims2()?, w.flatten_all()?.to_vec1()?)
                .map_err(|e| Error::config(e.to_string()))?;
            Box::new(Ease::new(weights, data.target_behavior))
        }
        "sasrec" => Box::new(Sasrec::scorer(tensors, data, spec.parse()?, dev)?),
        "odmt" => Box::new(Odmt::scorer(tensors, &spec.parse()?, dev)?),
        "tmf" => Box::new(Tmf::scorer(tensors, data, spec.parse()?, dev)?),
        "student" => Box::new(Student::load(tensors, dev)?.scorer(data)?),
        _ => Box::new(Factors::new(tensors)?),
    })
}

/// A finished run, opened to score or to teach.
pub struct TrainedRun {
    /// Its configuration.
    pub config: RunConfig,
    /// Its inference tensors.
    pub tensors: TensorMap,
    /// Its folder.
    pub path: PathBuf,
}

impl TrainedRun {
    /// Opens the selected epoch of a run folder.
    ///
    /// # Errors
    /// A folder without `config.toml` or `best.safetensors`.
    pub fn open(path: impl AsRef<Path>, dev: &Device) -> Result<Self> {
        let files = RunFiles::new(path.as_ref());
        let config = read_config(&files.config())?;
        let tensors = load_tensors(&files.best(), dev)?;
        Ok(Self {
            config,
            tensors,
            path: path.as_ref().to_path_buf(),
        })
    }

    /// Opens a run as a teacher: the epoch selected on validation rows, whatever the run's mode, so
    /// that nothing learnt from it has seen test rows.
    ///
    /// # Errors
    /// As [`TrainedRun::open`].
    pub fn open_teacher(path: impl AsRef<Path>, dev: &Device) -> Result<Self> {
        let files = RunFiles::new(path.as_ref());
        let config = read_config(&files.config())?;
        let file = match config.mode {
            Mode::Honest => files.best(),
            Mode::Parity => files.best_on_valid(),
        };
        let tensors = load_tensors(&file, dev)?;
        Ok(Self {
            config,
            tensors,
            path: path.as_ref().to_path_buf(),
        })
    }

    /// A scorer for the items of `data`.
    ///
    /// # Errors
    /// A run trained on another catalogue.
    pub fn scorer(&self, data: &Dataset, dev: &Device) -> Result<Box<dyn Scorer>> {
        let s = scorer(&self.config, &self.tensors, data, dev)?;
        if s.num_items() != data.num_items() {
            return Err(Error::checkpoint(
                &self.path,
                format!(
                    "the run knows {} items, the data set has {}; give the data it was trained on",
                    s.num_items(),
                    data.num_items()
                ),
            ));
        }
        Ok(s)
    }

    /// The item vectors of a factor model `[N, d]`, if it has them.
    pub fn item_vectors(&self) -> Option<&Tensor> {
        self.tensors.get("item_vectors")
    }
}

/// The files of a run folder.
#[derive(Debug, Clone)]
pub struct RunFiles {
    dir: PathBuf,
}

impl RunFiles {
    /// The files of `dir`, which need not exist yet.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
        }
    }

    /// `config.toml`.
    pub fn config(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    /// `metrics.jsonl`.
    pub fn metrics(&self) -> PathBuf {
        self.dir.join("metrics.jsonl")
    }

    /// `checkpoint.safetensors`.
    pub fn checkpoint(&self) -> PathBuf {
        self.dir.join("checkpoint.safetensors")
    }

    /// `best.safetensors`.
    pub fn best(&self) -> PathBuf {
        self.dir.join("best.safetensors")
    }

    /// `best-on-valid.safetensors`, kept by parity runs for teachers.
    pub fn best_on_valid(&self) -> PathBuf {
        self.dir.join("best-on-valid.safetensors")
    }

    /// `report.json`.
    pub fn report(&self) -> PathBuf {
        self.dir.join("report.json")
    }

    /// Prepares the folder for a new run and writes its configuration.
    ///
    /// # Errors
    /// A folder that already holds a run, unless it is to be resumed (and has no checkpoint yet).
    pub fn create(&self, config: &RunConfig, resume: bool) -> Result<()> {
        if self.config().exists() && !resume {
            return Err(Error::config(format!(
                "{} already holds a run; choose another folder, or continue it with --resume",
                self.dir.display()
            )));
        }
        if self.report().exists() && resume {
            return Err(Error::config(format!(
                "{} holds a finished run; there is nothing to resume",
                self.dir.display()
            )));
        }
        fs::create_dir_all(&self.dir).map_err(|e| Error::io(&self.dir, e))?;
        let text = toml::to_string_pretty(config).map_err(|e| Error::config(e.to_string()))?;
        write_atomic(&self.config(), text.as_bytes())
    }
}

/// What is wrong and at which key, on one line.
fn one_line(e: &toml::de::Error) -> String {
    e.to_string()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// Reads a run's configuration.
pub fn read_config(path: &Path) -> Result<RunConfig> {
    let text = fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    toml::from_str(&text).map_err(|e| Error::checkpoint(path, one_line(&e)))
}

/// Refuses to resume a run under another configuration.
pub fn same_config(path: &Path, spec: &RunConfig) -> Result<()> {
    if read_config(path)? == *spec {
        return Ok(());
    }
    Err(Error::checkpoint(
        path,
        "the run was started with another configuration; resume it with the same options",
    ))
}

/// Writes tensors by way of a sibling temporary file.
pub fn save_tensors(path: &Path, tensors: &TensorMap) -> Result<()> {
    let temporary = path.with_extension("safetensors.tmp");
    candle_core::safetensors::save(tensors, &temporary)?;
    fs::rename(&temporary, path).map_err(|e| Error::io(path, e))
}

/// Reads tensors written by [`save_tensors`].
pub fn load_tensors(path: &Path, dev: &Device) -> Result<TensorMap> {
    if !path.exists() {
        return Err(Error::checkpoint(
            path,
            "file is missing; is the run finished?",
        ));
    }
    candle_core::safetensors::load(path, dev)
        .map_err(|e| Error::checkpoint(path, format!("not a readable checkpoint: {e}")))
}

/// Writes bytes by way of a sibling temporary file.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let temporary = PathBuf::from(name);
    fs::write(&temporary, bytes).map_err(|e| Error::io(&temporary, e))?;
    fs::rename(&temporary, path).map_err(|e| Error::io(path, e))
}

/// Writes a value as indented JSON.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::config(e.to_string()))?;
    write_atomic(path, text.as_bytes())
}

/// The device named `cpu` or `cuda:N`.
///
/// # Errors
/// A name of another form, or a GPU that is not there.
pub fn device(name: &str) -> Result<Device> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    let index = name
        .strip_prefix("cuda:")
        .or(if name == "cuda" { Some("0") } else { None })
        .and_then(|n| n.parse::<usize>().ok())
        .ok_or_else(|| Error::config(format!("`{name}` is not a device; use cpu or cuda:N")))?;
    if !candle_core::utils::cuda_is_available() {
        return Err(Error::config(format!(
            "{name} was asked for, but this build has no CUDA support; build with \
             `--features cuda`, or use --device cpu"
        )));
    }
    Device::new_cuda(index)
        .map_err(|e| Error::config(format!("{name} cannot be used: {e}; use --device cpu")))
}

#[cfg(test)]
mod tests {
    use super::device;

    #[test]
    fn a_device_that_is_not_there_is_told_so() {
        assert!(device("cpu").is_ok_and(|d| d.is_cpu()));
        for name in ["gpu", "cuda:", "cuda:x", "cuda:-1", ""] {
            let error = device(name).err().map(|e| e.to_string());
            assert!(
                error.is_some_and(|e| e.contains("not a device")),
                "{name:?}"
            );
        }
        if !cfg!(feature = "cuda") {
            let error = device("cuda:0").err().map(|e| e.to_string());
            let error = error.unwrap_or_default();
            assert!(error.contains("cuda:0") && error.contains("--features cuda"));
            assert!(error.contains("--device cpu"), "{error}");
        }
    }
}
