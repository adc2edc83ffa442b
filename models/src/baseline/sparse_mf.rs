//! BPR-MF whose steps cost what they read: gradients by hand, and an optimizer that touches only the
//! rows of a step.
//!
//! [`GraphMf`](super::graph_mf::GraphMf) without layers computes a gradient for every user and item
//! in every step, although a batch reads few of them. With a fixed batch an epoch has steps in
//! proportion to the interactions, so its cost grows with interactions times users and items. Here it
//! grows with the interactions. The loss, the start and the triples are the same; the optimizer is
//! what TensorFlow calls LazyAdam and PyTorch SparseAdam: moments of rows that a step does not read
//! stay as they are instead of fading, so results differ from the dense ones after the first step.

use candle_core::{Device, Tensor};

use super::graph_mf::GraphMfConfig;
use crate::data::{Csr, Dataset};
use crate::error::{Error, Result};
use crate::params::TensorMap;
use crate::rng::{self, Purpose};
use crate::train::{EpochLosses, Learner, Monitor, factors, sample_triples};

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPSILON: f32 = 1e-8;
/// No gradient in this step.
const NONE: u32 = u32::MAX;

/// The model and its optimizer, on the CPU.
#[derive(Debug)]
pub struct SparseMf {
    cfg: GraphMfConfig,
    seed: u64,
    users: usize,
    items: usize,
    rows: Csr,
    /// Users, then items, `[U + N, D]`.
    nodes: Vec<f32>,
    /// First and second moments of `nodes`.
    first: Vec<f32>,
    second: Vec<f32>,
    step: u64,
    /// Per row, its place in `gradient`, or [`NONE`].
    place: Vec<u32>,
    /// Rows of this step and their gradients.
    touched: Vec<u32>,
    gradient: Vec<f32>,
}

impl SparseMf {
    /// A fresh model over the training rows of `data`, which starts where
    /// [`GraphMf`](super::graph_mf::GraphMf) does.
    ///
    /// # Errors
    /// A configuration out of range, or with propagation layers, which read every row.
    pub fn new(data: &Dataset, cfg: GraphMfConfig, seed: u64) -> Result<Self> {
        if cfg.dim == 0 || cfg.batch == 0 || cfg.lr <= 0.0 {
            return Err(Error::config("dim, batch and lr must be positive"));
        }
        if cfg.layers > 0 {
            return Err(Error::config(
                "sparse updates are for layers=0: propagation reads every row in every step",
            ));
        }
        let rows = data.train_rows();
        let (users, items) = (rows.rows(), data.num_items());
        let mut r = rng::stream(seed, Purpose::Init, &[]);
        let start = rng::normal(&mut r, (users + items, cfg.dim), cfg.init_std, &Device::Cpu)?;
        let nodes = start.flatten_all()?.to_vec1::<f32>()?;
        Ok(Self {
            first: vec![0.0; nodes.len()],
            second: vec![0.0; nodes.len()],
            place: vec![NONE; users + items],
            nodes,
            cfg,
            seed,
            users,
            items,
            rows,
            step: 0,
            touched: Vec::new(),
            gradient: Vec::new(),
        })
    }

    fn row(&self, row: u32) -> &[f32] {
        &self.nodes[row as usize * self.cfg.dim..][..self.cfg.dim]
    }

    /// Where in `gradient` the sum of `row` is.
    fn slot(&mut self, row: u32) -> usize {
        let d = self.cfg.dim;
        if self.place[row as usize] == NONE {
            self.place[row as usize] = self.touched.len() as u32;
            self.touched.push(row);
            self.gradient.resize(self.touched.len() * d, 0.0);
        }
        self.place[row as usize] as usize * d
    }

    /// Sums the gradients of a batch of `(user, positive, negative)`; the batch's mean loss.
    fn backward(&mut self, batch: &[(u32, u32, u32)]) -> f64 {
        let (d, share) = (self.cfg.dim, 1.0 / batch.len() as f32);
        let reg = self.cfg.reg as f32;
        let (mut total, mut norms) = (0f64, 0f64);
        for &(user, positive, negative) in batch {
            let ids = [
                user,
                positive + self.users as u32,
                negative + self.users as u32,
            ];
            let [u, p, n] = ids.map(|id| self.row(id));
            let mut diff = 0f32;
            let mut norm = 0f32;
            for ((u, p), n) in u.iter().zip(p).zip(n) {
                diff += u * (p - n);
                norm += u * u + p * p + n * n;
            }
            // ln(1 + e^-x) without overflow for either sign, and its slope.
            total += f64::from((-diff.abs()).exp().ln_1p() - diff.min(0.0));
            norms += f64::from(norm);
            let slope = -share / (1.0 + diff.exp());
            let [at_u, at_p, at_n] = ids.map(|id| self.slot(id));
            let shrink = share * reg;
            let base = ids.map(|id| id as usize * d);
            for k in 0..d {
                let [u, p, n] = base.map(|b| self.nodes[b + k]);
                self.gradient[at_u + k] += slope * (p - n) + shrink * u;
                self.gradient[at_p + k] += slope * u + shrink * p;
                self.gradient[at_n + k] += shrink * n - slope * u;
            }
        }
        (total + 0.5 * self.cfg.reg * norms) / batch.len() as f64
    }

    /// One Adam update of the rows that have a gradient, which is then forgotten.
    fn update(&mut self) {
        self.step += 1;
        let d = self.cfg.dim;
        let scale = (self.cfg.lr / (1.0 - f64::from(BETA1).powf(self.step as f64))) as f32;
        let inverse = (1.0 / (1.0 - f64::from(BETA2).powf(self.step as f64))) as f32;
        for (&row, gradient) in self.touched.iter().zip(self.gradient.chunks_exact(d)) {
            let at = row as usize * d..(row as usize + 1) * d;
            let moments = self.first[at.clone()]
                .iter_mut()
                .zip(&mut self.second[at.clone()]);
            for ((x, (m, v)), g) in self.nodes[at].iter_mut().zip(moments).zip(gradient) {
                *m = BETA1 * *m + (1.0 - BETA1) * g;
                *v = BETA2 * *v + (1.0 - BETA2) * g * g;
                *x -= scale * *m / ((*v * inverse).sqrt() + EPSILON);
            }
            self.place[row as usize] = NONE;
        }
        self.touched.clear();
        self.gradient.clear();
    }

    fn tensor(&self, values: &[f32]) -> Result<Tensor> {
        let shape = (values.len() / self.cfg.dim, self.cfg.dim);
        Ok(Tensor::from_slice(values, shape, &Device::Cpu)?)
    }
}

impl Learner for SparseMf {
    fn steps_per_epoch(&self) -> u64 {
        self.rows.nnz().div_ceil(self.cfg.batch) as u64
    }

    fn train_epoch(&mut self, epoch: u64, monitor: &mut Monitor<'_>) -> Result<EpochLosses> {
        let triples = sample_triples(&self.rows, self.items, self.seed, epoch);
        let (mut total, mut n) = (0.0, 0usize);
        for batch in triples.chunks(self.cfg.batch) {
            total += self.backward(batch);
            self.update();
            n += 1;
            monitor.step()?;
        }
        Ok(vec![("loss", total / n.max(1) as f64)])
    }

    fn inference(&self) -> Result<TensorMap> {
        let (users, items) = self.nodes.split_at(self.users * self.cfg.dim);
        factors(&self.tensor(users)?, &self.tensor(items)?)
    }

    fn export_state(&self) -> Result<TensorMap> {
        Ok(TensorMap::from([
            ("model.nodes".into(), self.tensor(&self.nodes)?),
            ("adam.nodes.m".into(), self.tensor(&self.first)?),
            ("adam.nodes.v".into(), self.tensor(&self.second)?),
            (
                "adam.step".into(),
                Tensor::new(&[self.step as i64], &Device::Cpu)?,
            ),
        ]))
    }

    fn import_state(&mut self, from: &TensorMap) -> Result<()> {
        let find = |name: &str| {
            let missing =
                || Error::config(format!("tensor `{name}` is missing from the checkpoint"));
            from.get(name).ok_or_else(missing)
        };
        let shape = (self.users + self.items, self.cfg.dim);
        for (name, values) in [
            ("model.nodes", &mut self.nodes),
            ("adam.nodes.m", &mut self.first),
            ("adam.nodes.v", &mut self.second),
        ] {
            let tensor = find(name)?;
            if tensor.dims() != [shape.0, shape.1] {
                return Err(Error::config(format!(
                    "checkpoint tensor `{name}` has shape {:?}, expected {shape:?}",
                    tensor.dims()
                )));
            }
            *values = tensor.flatten_all()?.to_vec1()?;
        }
        let step = find("adam.step")?.to_vec1::<i64>()?;
        self.step = step.first().copied().unwrap_or(0).max(0) as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::baseline::graph_mf::GraphMf;
    use crate::data::synthetic::{SyntheticConfig, generate};
    use crate::eval::{EvalProtocol, evaluate};
    use crate::factors::Factors;

    fn shop() -> Result<Dataset> {
        generate(&SyntheticConfig {
            users: 200,
            items: 120,
            events_per_user: 12,
            seed: 3,
        })
    }

    fn config(batch: usize) -> GraphMfConfig {
        GraphMfConfig {
            dim: 16,
            layers: 0,
            lr: 1e-2,
            batch,
            ..GraphMfConfig::default()
        }
    }

    fn values(tensors: &TensorMap, name: &str) -> Result<Vec<f32>> {
        Ok(tensors[name].flatten_all()?.to_vec1()?)
    }

    /// Where every row is read in every step, sparse and dense Adam are the same optimizer, and
    /// automatic differentiation is the oracle of the gradients by hand. In the first step rows that
    /// are not read have no moments to follow either.
    #[test]
    fn a_first_step_equals_the_dense_one() -> Result<()> {
        let data = shop()?;
        let dev = Device::Cpu;
        // One batch: one step an epoch.
        let mut dense = GraphMf::new(&data, config(1 << 20), 7, &dev)?;
        let mut sparse = SparseMf::new(&data, config(1 << 20), 7)?;
        let start = values(&sparse.inference()?, "item_vectors")?;
        let mut quiet = Monitor::silent();
        let want = dense.train_epoch(0, &mut quiet)?[0].1;
        let got = sparse.train_epoch(0, &mut quiet)?[0].1;
        // Sums of some thousand terms in f32.
        assert!((want - got).abs() < 1e-5 * want, "{want} {got}");
        let (a, b) = (dense.inference()?, sparse.inference()?);
        for name in ["user_vectors", "item_vectors"] {
            let (a, b) = (values(&a, name)?, values(&b, name)?);
            // A first step of Adam has the length of the learning rate, 1e-2, whatever the gradient:
            // only where that vanishes may rounding show.
            let off = a.iter().zip(&b).filter(|(a, b)| (*a - *b).abs() > 1e-4);
            assert!(off.count() <= a.len() / 1000, "{name}");
        }
        let moved = values(&b, "item_vectors")?;
        assert!(start.iter().zip(&moved).any(|(a, b)| a != b));
        Ok(())
    }

    #[test]
    fn rows_without_a_gradient_stay() -> Result<()> {
        let data = shop()?;
        let mut model = SparseMf::new(&data, config(64), 1)?;
        model.backward(&[(0, 1, 2)]);
        model.update();
        let before = model.nodes.clone();
        model.backward(&[(3, 4, 5)]);
        model.update();
        let (d, users) = (model.cfg.dim, model.users as u32);
        for row in 0..(model.users + model.items) as u32 {
            let at = row as usize * d..(row as usize + 1) * d;
            let moved = model.nodes[at.clone()] != before[at];
            assert_eq!(moved, [3, users + 4, users + 5].contains(&row), "row {row}");
        }
        Ok(())
    }

    #[test]
    fn it_learns_as_well_as_the_dense_form() -> Result<()> {
        let data = shop()?;
        let recall = |learner: &mut dyn Learner| -> Result<f64> {
            for epoch in 0..15 {
                learner.train_epoch(epoch, &mut Monitor::silent())?;
            }
            let scorer = Factors::new(&learner.inference()?)?;
            let report = evaluate(&scorer, &data, &EvalProtocol::valid())?;
            Ok(report.metric("recall@20").unwrap_or(0.0))
        };
        let dense = recall(&mut GraphMf::new(&data, config(128), 1, &Device::Cpu)?)?;
        let sparse = recall(&mut SparseMf::new(&data, config(128), 1)?)?;
        println!("recall@20: dense {dense:.3}, sparse {sparse:.3}");
        assert!(sparse > 0.9 * dense && dense > 0.25, "{sparse} {dense}");
        Ok(())
    }

    #[test]
    fn layers_are_refused() -> Result<()> {
        let cfg = GraphMfConfig {
            layers: 1,
            ..config(64)
        };
        let error = SparseMf::new(&shop()?, cfg, 1).err().map(|e| e.to_string());
        assert!(error.is_some_and(|e| e.contains("layers=0")));
        Ok(())
    }
}
