//! Hyper-parameters of ODMT and its ablation switches.

use serde::{Deserialize, Serialize};

use crate::data::sequence::Windows;
use crate::error::{Error, Result};
use crate::train::Mode;

/// What a row of the id table starts from (the published program's modes 0 to 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdInit {
    /// Xavier-normal noise (mode 0).
    Random,
    /// The mean of the item's class tokens over the modalities it has (mode 1).
    #[default]
    Mean,
    /// The class token of the image features (mode 2).
    Image,
    /// The class token of the text features (mode 3).
    Text,
}

/// Whether the modalities of an item see its id inside the item encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdMask {
    /// Only the id token sees the id (`v1` of the published program).
    #[default]
    Cut,
    /// Every token sees the id.
    Open,
}

/// Hyper-parameters of [`Odmt`](super::Odmt). The defaults suit pooled features and catalogues of
/// thousands of items on a CPU; the published settings are in the [module's](super) head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OdmtConfig {
    /// Width D of tokens, item vectors and user states.
    pub dim: usize,
    /// Width of the id table.
    pub id_dim: usize,
    /// What the id table starts from.
    pub id_init: IdInit,
    /// Most input events of a sequence, S.
    pub window: usize,
    /// Which parts of longer sequences are trained on; `parity` takes the last.
    pub windows: Windows,
    /// Draw a new order of each user's events every epoch. Absent: where the data has no order, and a fixed
    /// one would be learnt by heart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shuffle_events: Option<bool>,
    /// Fewest events of a user to train on, counted over all splits.
    pub min_events: usize,
    /// Ablation: false sends each class token past the item encoder, straight to its head.
    pub imt: bool,
    /// Blocks of the item encoder.
    pub imt_layers: usize,
    /// Heads of the item encoder.
    pub imt_heads: usize,
    /// Who sees the id token.
    pub id_mask: IdMask,
    /// Blocks of each user encoder.
    pub user_layers: usize,
    /// Heads of each user encoder.
    pub user_heads: usize,
    /// Dropout of tokens, embeddings, attention weights and block outputs.
    pub dropout: f64,
    /// AdamW's learning rate.
    pub lr: f64,
    /// Decoupled decay of every variable, norms and biases included.
    pub weight_decay: f64,
    /// Largest norm of a step's gradient.
    pub clip: f64,
    /// Sequences per micro-batch; its items are the candidates of its rows.
    pub batch: usize,
    /// Micro-batches per step, each with candidates of its own.
    pub micro_batches: usize,
    /// Temperature τ of distillation.
    pub tau: f64,
    /// Epochs until distillation has its full weight; below 1 the constant weight itself, so that 0
    /// switches distillation off.
    pub alpha: f64,
    /// True keeps teachers constant; the published program lets gradients reach both sides.
    pub kd_detach: bool,
    /// True also teaches in the opposite direction of each pair.
    pub kd_symmetric: bool,
    /// Bring each feature column to mean 0 and variance 1 first; the published program does not.
    pub standardize: bool,
    /// Keep the other items of a user's own sequence out of the candidates, as the published
    /// program does. Absent: unless the data set publishes evaluation queries, which do not exclude
    /// the history, so that the model must learn not to recommend it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_own: Option<bool>,
    /// Ablation: the branch to score by, `id` or a modality; all branches when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_by: Option<String>,
}

impl Default for OdmtConfig {
    fn default() -> Self {
        Self {
            dim: 64,
            id_dim: 64,
            id_init: IdInit::Mean,
            window: 12,
            windows: Windows::All,
            shuffle_events: None,
            min_events: 2,
            imt: true,
            imt_layers: 2,
            imt_heads: 2,
            id_mask: IdMask::Cut,
            user_layers: 2,
            user_heads: 2,
            dropout: 0.1,
            lr: 1e-3,
            weight_decay: 0.1,
            clip: 5.0,
            batch: 128,
            micro_batches: 1,
            tau: 0.3,
            alpha: 20.0,
            kd_detach: false,
            kd_symmetric: false,
            standardize: true,
            mask_own: None,
            score_by: None,
        }
    }
}

impl OdmtConfig {
    /// Checks ranges.
    ///
    /// # Errors
    /// Names the first field that is out of its range.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("id_dim", self.id_dim),
            ("window", self.window),
            ("batch", self.batch),
            ("micro_batches", self.micro_batches),
            ("imt_layers", self.imt_layers),
            ("user_layers", self.user_layers),
        ];
        for (name, v) in positive {
            if v == 0 {
                return Err(Error::config(format!("{name} must be at least 1")));
            }
        }
        for (name, heads) in [
            ("imt_heads", self.imt_heads),
            ("user_heads", self.user_heads),
        ] {
            if heads == 0 || self.dim == 0 || !self.dim.is_multiple_of(heads) {
                return Err(Error::config(format!(
                    "dim ({}) must be a positive multiple of {name} ({heads})",
                    self.dim
                )));
            }
        }
        if !(0.0..=0.95).contains(&self.dropout) {
            return Err(Error::config(format!(
                "dropout must lie in [0, 0.95], got {}",
                self.dropout
            )));
        }
        for (name, v) in [("lr", self.lr), ("clip", self.clip), ("tau", self.tau)] {
            if !(v > 0.0 && v.is_finite()) {
                return Err(Error::config(format!("{name} must be positive, got {v}")));
            }
        }
        for (name, v) in [("alpha", self.alpha), ("weight_decay", self.weight_decay)] {
            if !(v >= 0.0 && v.is_finite()) {
                return Err(Error::config(format!(
                    "{name} must not be negative, got {v}"
                )));
            }
        }
        Ok(())
    }

    /// The configuration a run of this mode trains with: `parity` takes the published preparation
    /// of data and features, whatever is set.
    pub fn for_mode(mut self, mode: Mode) -> Self {
        if mode == Mode::Parity {
            self.windows = Windows::Last;
            self.shuffle_events = Some(false);
            self.min_events = 5;
            self.standardize = false;
            self.mask_own = Some(true);
        }
        self
    }

    /// Weight of distillation in an epoch counted from 1: the published program's ramp over the
    /// first α epochs, `exp(−5 (1 − min(e, α)/α)²)`, or α itself below 1.
    pub fn distillation_weight(&self, epoch: u64) -> f64 {
        if self.alpha < 1.0 {
            return self.alpha;
        }
        let rest = 1.0 - (epoch as f64).min(self.alpha) / self.alpha;
        (-5.0 * rest * rest).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Oracle 9.1 of the ODMT specification.
    #[test]
    fn ramp_matches_oracle() {
        let cases: [(f64, &[(u64, f64)]); 6] = [
            (
                20.0,
                &[
                    (1, 0.010_971_0),
                    (5, 0.060_054_67),
                    (10, 0.286_504_8),
                    (15, 0.731_615_63),
                    (20, 1.0),
                    (31, 1.0),
                ],
            ),
            (
                40.0,
                &[
                    (1, 0.008_624_7),
                    (10, 0.060_054_67),
                    (20, 0.286_504_8),
                    (30, 0.731_615_63),
                    (40, 1.0),
                ],
            ),
            (
                50.0,
                &[
                    (1, 0.008_213_3),
                    (10, 0.040_762_2),
                    (20, 0.165_298_89),
                    (30, 0.449_328_96),
                    (40, 0.818_730_75),
                ],
            ),
            (
                60.0,
                &[
                    (1, 0.007_948_9),
                    (10, 0.031_047_96),
                    (20, 0.108_368_02),
                    (30, 0.286_504_8),
                ],
            ),
            (0.0, &[(1, 0.0), (50, 0.0)]),
            (0.02, &[(1, 0.02), (50, 0.02)]),
        ];
        for (alpha, rows) in cases {
            let cfg = OdmtConfig {
                alpha,
                ..OdmtConfig::default()
            };
            for &(epoch, want) in rows {
                let got = cfg.distillation_weight(epoch);
                assert!((got - want).abs() < 1e-7, "{alpha} {epoch}: {got} {want}");
            }
        }
    }

    #[test]
    fn ranges_are_checked() {
        let bad = |f: fn(&mut OdmtConfig)| {
            let mut cfg = OdmtConfig::default();
            f(&mut cfg);
            cfg.check().err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert!(bad(|c| c.imt_heads = 3).contains("imt_heads"));
        assert!(bad(|c| c.tau = 0.0).contains("tau"));
        assert!(bad(|c| c.alpha = -1.0).contains("alpha"));
        assert!(bad(|c| c.window = 0).contains("window"));
        assert!(bad(|c| c.dropout = 1.0).contains("dropout"));
        assert!(OdmtConfig::default().check().is_ok());
        let parity = OdmtConfig::default().for_mode(Mode::Parity);
        assert_eq!(
            (parity.windows, parity.mask_own),
            (Windows::Last, Some(true))
        );
    }
}
