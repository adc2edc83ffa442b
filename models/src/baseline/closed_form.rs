//! The models without gradient steps, as learners: each "epoch" fits one setting, so that the one
//! trainer selects among them on validation and writes the same run folder.

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::ease::{Ease, EaseConfig};
use super::popularity::Popularity;
use crate::data::{Dataset, FitOn};
use crate::error::{Error, Result};
use crate::params::TensorMap;
use crate::train::{EpochLosses, Learner, Monitor};

/// Options of the `ease` model: one penalty per epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EaseGridConfig {
    /// Penalties to try, in order; the best one on validation is kept.
    pub lambda: Vec<f64>,
    /// The rows it is fitted on.
    pub fit_on: FitOn,
    /// Largest catalogue accepted.
    pub max_items: usize,
}

impl Default for EaseGridConfig {
    fn default() -> Self {
        let one = EaseConfig::default();
        Self {
            lambda: vec![100.0, 200.0, 500.0],
            fit_on: one.fit_on,
            max_items: one.max_items,
        }
    }
}

/// Options of the `popularity` model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PopularityConfig {
    /// The rows it counts.
    pub fit_on: FitOn,
}

/// EASE with one penalty per epoch.
#[derive(Debug)]
pub struct EaseLearner<'a> {
    data: &'a Dataset,
    cfg: EaseGridConfig,
    fitted: Option<Ease>,
}

impl<'a> EaseLearner<'a> {
    /// Nothing is fitted yet.
    ///
    /// # Errors
    /// No penalties.
    pub fn new(data: &'a Dataset, cfg: EaseGridConfig) -> Result<Self> {
        if cfg.lambda.is_empty() {
            return Err(Error::config("ease needs at least one lambda"));
        }
        Ok(Self {
            data,
            cfg,
            fitted: None,
        })
    }

    /// Epochs that make sense: one per penalty.
    pub fn epochs(cfg: &EaseGridConfig) -> u64 {
        cfg.lambda.len() as u64
    }
}

impl Learner for EaseLearner<'_> {
    fn steps_per_epoch(&self) -> u64 {
        1
    }

    fn train_epoch(&mut self, epoch: u64, monitor: &mut Monitor<'_>) -> Result<EpochLosses> {
        let lambda = *self.cfg.lambda.get(epoch as usize).ok_or_else(|| {
            Error::config("ease has one epoch per lambda; lower epochs or list more penalties")
        })?;
        let cfg = EaseConfig {
            lambda,
            fit_on: self.cfg.fit_on,
            max_items: self.cfg.max_items,
        };
        self.fitted = Some(Ease::fit(self.data, &cfg)?);
        monitor.step()?;
        Ok(vec![("lambda", lambda)])
    }

    fn inference(&self) -> Result<TensorMap> {
        let ease = self
            .fitted
            .as_ref()
            .ok_or_else(|| Error::config("ease was not fitted"))?;
        let w = ease.weights();
        let t = Tensor::from_iter(w.iter().copied(), &Device::Cpu)?.reshape(w.dim())?;
        Ok(TensorMap::from([("weights".to_string(), t)]))
    }

    fn export_state(&self) -> Result<TensorMap> {
        Ok(TensorMap::new())
    }

    fn import_state(&mut self, _from: &TensorMap) -> Result<()> {
        Ok(())
    }
}

/// Popularity, in a single epoch.
#[derive(Debug)]
pub struct PopularityLearner {
    fitted: Popularity,
}

impl PopularityLearner {
    /// Counts at once.
    pub fn new(data: &Dataset, cfg: &PopularityConfig) -> Self {
        Self {
            fitted: Popularity::fit(data, cfg.fit_on),
        }
    }
}

impl Learner for PopularityLearner {
    fn steps_per_epoch(&self) -> u64 {
        1
    }

    fn train_epoch(&mut self, _epoch: u64, monitor: &mut Monitor<'_>) -> Result<EpochLosses> {
        monitor.step()?;
        Ok(Vec::new())
    }

    fn inference(&self) -> Result<TensorMap> {
        let c = self.fitted.counts();
        let t = Tensor::from_slice(c, c.len(), &Device::Cpu)?;
        Ok(TensorMap::from([("counts".to_string(), t)]))
    }

    fn export_state(&self) -> Result<TensorMap> {
        Ok(TensorMap::new())
    }

    fn import_state(&mut self, _from: &TensorMap) -> Result<()> {
        Ok(())
    }
}
