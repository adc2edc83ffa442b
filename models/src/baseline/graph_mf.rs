//! Matrix factorisation by Bayesian personalised ranking, without graph (BPR-MF, Rendle et al.,
//! UAI 2009) or with linear propagation over it (LightGCN, He et al., SIGIR 2020).
//!
//! BPR-MF is LightGCN with zero layers: the only difference is whether the id tables are
//! propagated before the product.

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::data::{Csr, Dataset};
use crate::error::{Error, Result};
use crate::graph::{Propagation, normalized_bipartite};
use crate::ops::{self, pick};
use crate::params::{Adam, Params, TensorMap, restore_training, training_state};
use crate::rng::{self, Purpose};
use crate::train::{EpochLosses, Learner, Monitor, factors, sample_triples};

/// Hyper-parameters of [`GraphMf`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GraphMfConfig {
    /// Width of user and item vectors.
    pub dim: usize,
    /// Propagation layers; 0 is plain matrix factorisation.
    pub layers: usize,
    /// Adam's learning rate.
    pub lr: f64,
    /// Triples per step.
    pub batch: usize,
    /// Weight of the squared norm of the id vectors in a batch (half of it, per triple).
    pub reg: f64,
    /// Standard deviation of the initial id vectors.
    pub init_std: f64,
    /// Update only the vectors that a step reads ([`super::sparse_mf`]): for `bpr` on many users and
    /// items, on the CPU.
    pub sparse: bool,
}

impl Default for GraphMfConfig {
    fn default() -> Self {
        Self {
            dim: 64,
            layers: 3,
            lr: 1e-3,
            batch: 2048,
            reg: 1e-4,
            init_std: 0.1,
            sparse: false,
        }
    }
}

/// The model and its optimizer.
#[derive(Debug)]
pub struct GraphMf {
    cfg: GraphMfConfig,
    seed: u64,
    users: usize,
    items: usize,
    rows: Csr,
    graph: Option<Propagation>,
    params: Params,
    adam: Adam,
    nodes: Tensor,
}

impl GraphMf {
    /// A fresh model over the training rows of `data`.
    ///
    /// # Errors
    /// A configuration out of range.
    pub fn new(data: &Dataset, cfg: GraphMfConfig, seed: u64, dev: &Device) -> Result<Self> {
        if cfg.dim == 0 || cfg.batch == 0 || cfg.lr <= 0.0 {
            return Err(Error::config("dim, batch and lr must be positive"));
        }
        let rows = data.train_rows();
        let (users, items) = (rows.rows(), data.num_items());
        let edges = (0..users as u32).flat_map(|u| rows.row(u).iter().map(move |&i| (u, i)));
        let graph = match cfg.layers {
            0 => None,
            _ => Some(Propagation::new(normalized_bipartite(
                users, items, edges, false,
            )?)),
        };
        let mut params = Params::default();
        let mut r = rng::stream(seed, Purpose::Init, &[]);
        let table = rng::normal(&mut r, (users + items, cfg.dim), cfg.init_std, dev)?;
        let nodes = params.add("nodes", &table)?;
        let adam = Adam::new(&params, cfg.lr, 0.0)?;
        Ok(Self {
            cfg,
            seed,
            users,
            items,
            rows,
            graph,
            params,
            adam,
            nodes,
        })
    }

    /// Mean over the layers of the propagated table.
    fn propagated(&self) -> Result<Tensor> {
        let Some(graph) = &self.graph else {
            return Ok(self.nodes.clone());
        };
        let sum = graph.layer_sum(&self.nodes, self.cfg.layers)?;
        Ok((sum / (self.cfg.layers + 1) as f64)?)
    }

    fn loss(&self, users: &[u32], pos: &[u32], neg: &[u32]) -> Result<Tensor> {
        let shift = |v: &[u32]| v.iter().map(|i| i + self.users as u32).collect::<Vec<_>>();
        let (p, n) = (shift(pos), shift(neg));
        let h = self.propagated()?;
        let (hu, hp, hn) = (pick(&h, users)?, pick(&h, &p)?, pick(&h, &n)?);
        let diff = (hu * (hp - hn)?)?.sum(1)?;
        let bpr = ops::log_sigmoid(&diff)?.mean_all()?.neg()?;
        let mut norm: Option<Tensor> = None;
        for ids in [users, &p, &n] {
            let s = pick(&self.nodes, ids)?.sqr()?.sum_all()?;
            norm = Some(match norm {
                Some(t) => (t + s)?,
                None => s,
            });
        }
        match norm {
            Some(s) => Ok((bpr + (s * (0.5 * self.cfg.reg / users.len() as f64))?)?),
            None => Ok(bpr),
        }
    }
}

impl Learner for GraphMf {
    fn steps_per_epoch(&self) -> u64 {
        self.rows.nnz().div_ceil(self.cfg.batch) as u64
    }

    fn train_epoch(&mut self, epoch: u64, monitor: &mut Monitor<'_>) -> Result<EpochLosses> {
        let triples = sample_triples(&self.rows, self.items, self.seed, epoch);
        let (mut total, mut n) = (0.0, 0usize);
        for batch in triples.chunks(self.cfg.batch) {
            let users: Vec<u32> = batch.iter().map(|t| t.0).collect();
            let pos: Vec<u32> = batch.iter().map(|t| t.1).collect();
            let neg: Vec<u32> = batch.iter().map(|t| t.2).collect();
            let loss = self.loss(&users, &pos, &neg)?;
            self.adam.step(&loss.backward()?)?;
            total += f64::from(loss.to_scalar::<f32>()?);
            n += 1;
            monitor.step()?;
        }
        Ok(vec![("loss", total / n.max(1) as f64)])
    }

    fn inference(&self) -> Result<TensorMap> {
        let h = self.propagated()?.detach();
        factors(
            &h.narrow(0, 0, self.users)?,
            &h.narrow(0, self.users, self.items)?,
        )
    }

    fn export_state(&self) -> Result<TensorMap> {
        training_state(&self.params, &self.adam)
    }

    fn import_state(&mut self, from: &TensorMap) -> Result<()> {
        restore_training(&self.params, &mut self.adam, from)
    }
}
