//! The student: the one inductive model that any teacher is distilled into, and the only one that
//! reaches a device.
//!
//! A [`FusionTower`] maps an item's features (any subset of modalities) to its vector, a
//! [`UserTower`] maps a history of item vectors to the user's vector, and the score is their inner
//! product. Neither holds anything per user; the only thing held per item is the row of its
//! co-behaviour features (modality `graph`), which cold items lack.

mod fusion;
mod user;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

pub use fusion::{FusionTower, ItemFeatures};
pub use user::UserTower;

use crate::data::{Dataset, HistoryEvent};
use crate::error::{Error, Result};
use crate::eval::{EvalQuery, Scorer};
use crate::factors::copy_scores;
use crate::params::{Params, TensorMap};

/// One input of the fusion tower.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModalitySpec {
    /// Name of the modality and of the tower's input.
    pub name: String,
    /// Width.
    pub dim: usize,
}

/// The shape of a student.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudentShape {
    /// Width D of item and user vectors, a multiple of 16 up to 256.
    pub dim: usize,
    /// Inputs of the fusion tower in order; the one named `graph` is learnt.
    pub modalities: Vec<ModalitySpec>,
    /// Hidden width of the fusion tower.
    pub fusion_hidden: usize,
    /// Behaviour names; index 0 is "any".
    pub behaviors: Vec<String>,
    /// Events the user tower looks back on.
    pub window: usize,
    /// Hidden width of an event.
    pub event_hidden: usize,
    /// Half-life of each head in events; 0 stands for no decay. Data without order has no decay.
    pub half_lives: Vec<f64>,
    /// Hidden width of the readout.
    pub readout_hidden: usize,
    /// c per head: the weight added to that of a head's events before their mean is taken. Absent:
    /// as good as none.
    #[serde(default)]
    pub prior: Vec<f64>,
}

/// Least c: keeps the mean of an empty head at zero, and is far below any gate's value otherwise.
pub(crate) const LEAST_PRIOR: f64 = 1e-6;

impl StudentShape {
    /// Checks ranges.
    ///
    /// # Errors
    /// Names the field that is out of range.
    pub fn check(&self) -> Result<()> {
        if self.dim == 0 || self.dim > 256 || !self.dim.is_multiple_of(16) {
            return Err(Error::config(format!(
                "dim must be a multiple of 16 up to 256, got {}",
                self.dim
            )));
        }
        let sizes = [
            ("modalities", self.modalities.len()),
            ("fusion_hidden", self.fusion_hidden),
            ("behaviors", self.behaviors.len()),
            ("window", self.window),
            ("event_hidden", self.event_hidden),
            ("half_lives", self.half_lives.len()),
            ("readout_hidden", self.readout_hidden),
        ];
        for (name, n) in sizes {
            if n == 0 {
                return Err(Error::config(format!("{name} must not be empty or zero")));
            }
        }
        if self
            .half_lives
            .iter()
            .any(|h| !(h.is_finite() && *h >= 0.0))
        {
            return Err(Error::config("half_lives must be finite and not negative"));
        }
        let (heads, prior) = (self.half_lives.len(), &self.prior);
        if !(prior.is_empty() || prior.len() == heads)
            || prior.iter().any(|c| !(c.is_finite() && *c >= LEAST_PRIOR))
        {
            return Err(Error::config(format!(
                "prior must be {heads} numbers of at least {LEAST_PRIOR}, or absent"
            )));
        }
        Ok(())
    }

    /// What one event's summary is multiplied with when one more event arrives, per head.
    pub fn decays(&self) -> Vec<f32> {
        self.half_lives
            .iter()
            .map(|&h| {
                if h == 0.0 {
                    1.0
                } else {
                    0.5f64.powf(1.0 / h) as f32
                }
            })
            .collect()
    }

    /// [`prior`](Self::prior) of every head.
    pub fn prior(&self) -> Vec<f64> {
        if self.prior.is_empty() {
            vec![LEAST_PRIOR; self.half_lives.len()]
        } else {
            self.prior.clone()
        }
    }

    /// Index of the learnt modality.
    pub fn graph_index(&self) -> Option<usize> {
        self.modalities.iter().position(|m| m.name == GRAPH)
    }
}

/// Name of the modality that holds what was learnt from co-behaviour.
pub const GRAPH: &str = "graph";

/// Both towers and the learnt item features.
#[derive(Debug)]
pub struct Student {
    /// Its shape.
    pub shape: StudentShape,
    /// Item features → item vector.
    pub fusion: FusionTower,
    /// History → user vector.
    pub user: UserTower,
    /// Learnt co-behaviour features `[N, d_g]`.
    pub graph: Tensor,
    /// 1 for items with co-behaviour, else 0; `[N]`.
    pub graph_present: Tensor,
    /// Trainable variables.
    pub params: Params,
    /// Column means and inverse deviations per content modality, folded in at export.
    pub standardization: Vec<Option<(Tensor, Tensor)>>,
    dev: Device,
}

impl Student {
    /// A fresh student. `graph` `[N, d_g]` starts the learnt features; `warm` marks the items that
    /// have any.
    ///
    /// # Errors
    /// A shape out of range, or features that do not fit the data.
    pub fn new(
        shape: StudentShape,
        data: &Dataset,
        graph: &Tensor,
        warm: &[bool],
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        let standardization = shape
            .modalities
            .iter()
            .map(|m| {
                if m.name == GRAPH {
                    return Ok(None);
                }
                let f = data.modality(&m.name).ok_or_else(|| {
                    Error::config(format!("the data set has no features `{}`", m.name))
                })?;
                let s = f.standardize();
                Ok(Some((
                    Tensor::from_slice(&s.mean, m.dim, dev)?,
                    Tensor::from_slice(&s.inv_std, m.dim, dev)?,
                )))
            })
            .collect::<Result<Vec<_>>>()?;
        let present: Vec<f32> = warm.iter().map(|w| f32::from(u8::from(*w))).collect();
        let present = Tensor::from_vec(present, warm.len(), dev)?;
        Self::build(shape, graph, &present, standardization, seed, dev)
    }

    fn build(
        shape: StudentShape,
        graph: &Tensor,
        graph_present: &Tensor,
        standardization: Vec<Option<(Tensor, Tensor)>>,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        shape.check()?;
        let mut params = Params::default();
        let fusion = FusionTower::new(&shape, &mut params, seed, dev)?;
        let user = UserTower::new(&shape, &mut params, seed, dev)?;
        let graph = params.add("graph.table", graph)?;
        Ok(Self {
            shape,
            fusion,
            user,
            graph,
            graph_present: graph_present.clone(),
            params,
            standardization,
            dev: dev.clone(),
        })
    }

    /// Item features of a data set, standardised, ready for [`Student::item_vectors`].
    pub fn features(&self, data: &Dataset) -> Result<ItemFeatures> {
        ItemFeatures::new(self, data)
    }

    /// Vectors of all items, `[N, D]`. `present` says per modality (`[N, 1]`, 0 or 1) what the tower
    /// sees of each item; [`ItemFeatures::present`] is all there is.
    pub fn item_vectors(&self, features: &ItemFeatures, present: &[Tensor]) -> Result<Tensor> {
        self.fusion.forward_all(features, &self.graph, present)
    }

    /// Everything needed to rebuild the student.
    pub fn export(&self) -> Result<TensorMap> {
        let mut out = TensorMap::new();
        self.params.export("", &mut out)?;
        out.insert("graph.present".into(), self.graph_present.clone());
        for (m, s) in self.shape.modalities.iter().zip(&self.standardization) {
            if let Some((mean, inv_std)) = s {
                out.insert(format!("standardize.{}.mean", m.name), mean.clone());
                out.insert(format!("standardize.{}.inv_std", m.name), inv_std.clone());
            }
        }
        let json = serde_json::to_vec(&self.shape).map_err(|e| Error::config(e.to_string()))?;
        let n = json.len();
        out.insert(
            "shape.json".into(),
            Tensor::from_vec(json, n, &Device::Cpu)?,
        );
        out.into_iter().map(|(k, v)| Ok((k, v.copy()?))).collect()
    }

    /// Rebuilds a student from what [`Student::export`] gave.
    ///
    /// # Errors
    /// Tensors that are missing or do not fit the shape.
    pub fn load(tensors: &TensorMap, dev: &Device) -> Result<Self> {
        let get = |n: &str| {
            tensors
                .get(n)
                .ok_or_else(|| Error::config(format!("tensor `{n}` is missing from the student")))
        };
        let json = get("shape.json")?.to_vec1::<u8>()?;
        let shape: StudentShape = serde_json::from_slice(&json)
            .map_err(|e| Error::config(format!("the student's shape cannot be read: {e}")))?;
        let standardization = shape
            .modalities
            .iter()
            .map(|m| {
                if m.name == GRAPH {
                    return Ok(None);
                }
                let mean = get(&format!("standardize.{}.mean", m.name))?;
                let inv = get(&format!("standardize.{}.inv_std", m.name))?;
                Ok(Some((mean.to_device(dev)?, inv.to_device(dev)?)))
            })
            .collect::<Result<Vec<_>>>()?;
        let graph = get("graph.table")?.to_device(dev)?;
        let present = get("graph.present")?.to_device(dev)?;
        let student = Self::build(shape, &graph, &present, standardization, 0, dev)?;
        student.params.import("", tensors)?;
        Ok(student)
    }

    /// A scorer over the items of `data`, in full precision.
    pub fn scorer(&self, data: &Dataset) -> Result<StudentScorer> {
        self.scorer_seeing(data, |_| true)
    }

    /// A scorer whose fusion tower sees only the modalities that `keep` names: what the others
    /// contribute shows in the difference.
    pub fn scorer_seeing(
        &self,
        data: &Dataset,
        keep: impl Fn(&str) -> bool,
    ) -> Result<StudentScorer> {
        let features = self.features(data)?;
        let present = features
            .present()
            .iter()
            .zip(&self.shape.modalities)
            .map(|(p, m)| {
                if keep(&m.name) {
                    Ok(p.clone())
                } else {
                    Ok(p.zeros_like()?)
                }
            })
            .collect::<Result<Vec<_>>>()?;
        let items = self.item_vectors(&features, &present)?.detach();
        Ok(StudentScorer {
            items_t: items.t()?.contiguous()?,
            items,
            user: self.user.detached()?,
            window: self.shape.window,
        })
    }

    /// The device its tensors live on.
    pub fn device(&self) -> &Device {
        &self.dev
    }
}

/// Scores histories with the student's towers in full precision.
#[derive(Debug)]
pub struct StudentScorer {
    /// Item vectors `[N, D]`.
    pub items: Tensor,
    items_t: Tensor,
    user: UserTower,
    window: usize,
}

impl StudentScorer {
    /// User vectors of histories, `[B, D]`.
    pub fn user_vectors(&self, histories: &[&[HistoryEvent]]) -> Result<Tensor> {
        let windows: Vec<&[HistoryEvent]> = histories
            .iter()
            .map(|h| &h[h.len().saturating_sub(self.window)..])
            .collect();
        self.user.forward(&self.items, &windows, None)
    }
}

impl Scorer for StudentScorer {
    fn num_items(&self) -> usize {
        self.items_t.dims()[1]
    }

    fn score(&self, queries: &[EvalQuery], out: &mut [f32]) -> Result<()> {
        let histories: Vec<&[HistoryEvent]> =
            queries.iter().map(|q| q.history.as_slice()).collect();
        let u = self.user_vectors(&histories)?;
        copy_scores(&u.matmul(&self.items_t)?, out)
    }
}

#[cfg(test)]
mod tests;
