//! Hyper-parameters of DiffMM and its ablation switches.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How modality features become `dim`-wide vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProjectionKind {
    /// LeakyReLU(0.2) of a bias-free product (`trans = 0` in the published program).
    Leaky,
    /// Affine map without activation (`trans = 1`).
    Affine,
    /// Leaky for images, affine for every other kind (`trans = 2`).
    Mixed,
}

/// Which view anchors the contrastive loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contrast {
    /// Unordered pairs of modality views (`cl_method = 0`).
    Modality,
    /// The main view against each modality view (`cl_method = 1`).
    Main,
    /// Ablation: no contrastive loss.
    Off,
}

/// Where the per-modality user-item edges come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GeneratedGraph {
    /// Top items of the denoised user row.
    Diffusion,
    /// Ablation: as many random items.
    Random,
    /// Ablation: the user's most popular observed items.
    Popular,
    /// Ablation: no generated edges (self-loops only).
    Off,
}

/// Hyper-parameters of DiffMM. Defaults are those the published program uses on every data set;
/// where it differs by data set, the TikTok values stand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiffMmConfig {
    /// Width d of user and item vectors.
    pub dim: usize,
    /// Adam's learning rate, for the recommender and every denoiser.
    pub lr: f64,
    /// Users per diffusion step and triples per ranking step; also the divisor of the ranking loss.
    pub batch: usize,
    /// Propagation layers L.
    pub layers: usize,
    /// Weight of the squared norm of both id tables.
    pub reg: f64,
    /// Weight of the contrastive loss.
    pub ssl_reg: f64,
    /// Contrastive temperature τ.
    pub temperature: f64,
    /// Weight ω of the normalised fused features in the final vectors (`ris_lambda`).
    pub residual_weight: f64,
    /// Weight of the generated graph in the main branch (`ris_adj_lambda`).
    pub generated_weight: f64,
    /// Share of generated edges kept each epoch (`keepRate`).
    pub keep_rate: f64,
    /// Feature projection (`trans`).
    pub projection: ProjectionKind,
    /// Contrastive anchor (`cl_method`).
    pub contrast: Contrast,
    /// Weight λ0 of the modality-aware signal injection (`e_loss`).
    pub msi_weight: f64,
    /// Ablation: false removes the modality-aware signal injection.
    pub msi: bool,
    /// Where generated edges come from.
    pub generated: GeneratedGraph,
    /// Generated items per user (`rebuild_k`).
    pub generated_per_user: usize,
    /// Denoiser width H.
    pub hidden: usize,
    /// Width of the step embedding.
    pub time_width: usize,
    /// Diffusion steps T.
    pub steps: usize,
    /// Noise scale s.
    pub noise_scale: f64,
    /// Smallest design variance before scaling.
    pub noise_min: f64,
    /// Largest design variance before scaling.
    pub noise_max: f64,
    /// Dropout of the interaction row during diffusion training.
    pub dropout: f64,
    /// Standardise each feature column to mean 0 and variance 1 first. The published program does
    /// not; data with other feature scales need it, because λ0 depends on that scale.
    pub standardize: bool,
}

impl Default for DiffMmConfig {
    fn default() -> Self {
        Self {
            dim: 64,
            lr: 1e-3,
            batch: 1024,
            layers: 1,
            reg: 1e-4,
            ssl_reg: 1e-2,
            temperature: 0.5,
            residual_weight: 0.5,
            generated_weight: 0.2,
            keep_rate: 0.5,
            projection: ProjectionKind::Affine,
            contrast: Contrast::Main,
            msi_weight: 0.1,
            msi: true,
            generated: GeneratedGraph::Diffusion,
            generated_per_user: 1,
            hidden: 1000,
            time_width: 10,
            steps: 5,
            noise_scale: 0.1,
            noise_min: 1e-4,
            noise_max: 0.02,
            dropout: 0.5,
            standardize: false,
        }
    }
}

impl DiffMmConfig {
    /// Checks ranges.
    ///
    /// # Errors
    /// Names the first field that is out of its range.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("dim", self.dim),
            ("batch", self.batch),
            ("hidden", self.hidden),
            ("time_width", self.time_width),
            ("generated_per_user", self.generated_per_user),
        ];
        for (name, v) in positive {
            if v == 0 {
                return Err(Error::config(format!("{name} must be at least 1")));
            }
        }
        let unit = [
            ("dropout", self.dropout, 0.0, 0.95),
            ("keep_rate", self.keep_rate, 0.01, 1.0),
        ];
        for (name, v, lo, hi) in unit {
            if !(lo..=hi).contains(&v) {
                return Err(Error::config(format!(
                    "{name} must lie in [{lo}, {hi}], got {v}"
                )));
            }
        }
        if !(self.temperature > 0.0 && self.lr > 0.0) {
            return Err(Error::config("temperature and lr must be positive"));
        }
        Ok(())
    }
}
