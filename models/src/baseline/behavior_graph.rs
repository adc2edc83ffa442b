//! Factors of users and items from a graph in which every behaviour is a relation of its own.
//!
//! Propagation per behaviour without weights (LightGCN, arXiv 2002.02126, as MB-GCN has it), attention
//! over the behaviours a node takes part in (as HAN, arXiv 1903.07293), and a pairwise ranking loss with a
//! weight for each behaviour. The relation of items that follow one another is ours. [`crate::tmf`] has its
//! item vectors for a modality.
//!
//! Every propagation starts from one table E: `Z_r = (1/(K+1)) Σ_k Â_r^k E`, and a node's vector is
//! `z = Σ_r α_r Z_r`, `α = softmax_r(q·tanh(W Z_r + b))` over its relations; `z = E` without any.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::data::{Csr, Dataset, Split};
use crate::error::{Error, Result};
use crate::graph::{Propagation, SparseMatrix, normalized_bipartite};
use crate::layer::Linear;
use crate::ops::{self, pick};
use crate::params::{Adam, Params, TensorMap, restore_training, training_state};
use crate::rng::{self, Purpose};
use crate::train::{EpochLosses, Learner, Monitor, factors, sample_triples};

/// Events between two items that still count as following one another.
const REACH: usize = 5;

/// Followers kept of each item.
const FOLLOWERS: usize = 20;

/// Hyper-parameters of [`BehaviorGraph`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BehaviorGraphConfig {
    /// Width of user and item vectors.
    pub dim: usize,
    /// Propagation layers of each behaviour.
    pub layers: usize,
    /// Adam's learning rate.
    pub lr: f64,
    /// Triples per step, of the behaviour with most of them.
    pub batch: usize,
    /// Weight λ of the squared norm of the vectors before propagation.
    pub reg: f64,
    /// Weight of each behaviour in the loss, by name; others have 0.3, those to predict 1.
    pub behavior_weights: BTreeMap<String, f64>,
    /// Whether items that follow one another are a relation too.
    pub transitions: bool,
}

impl Default for BehaviorGraphConfig {
    fn default() -> Self {
        Self {
            dim: 64,
            layers: 2,
            lr: 5e-3,
            batch: 2048,
            reg: 1e-4,
            behavior_weights: [("view", 0.2), ("cart", 0.3), ("buy", 1.0)]
                .map(|(k, v)| (k.to_owned(), v))
                .into(),
            transitions: true,
        }
    }
}

/// The weight of a behaviour: what is configured, else 1 if it is to be predicted and 0.3 if not.
pub(crate) fn behavior_weight(weights: &BTreeMap<String, f64>, name: &str, is_target: bool) -> f64 {
    let usual = if is_target { 1.0 } else { 0.3 };
    weights.get(name).copied().unwrap_or(usual)
}

/// One relation of the graph.
#[derive(Debug)]
struct Relation {
    graph: Propagation,
    layers: usize,
    /// 1 for nodes that take part, `[nodes, 1]`.
    present: Vec<f32>,
}

impl Relation {
    fn new(matrix: SparseMatrix, layers: usize) -> Self {
        let (nodes, _) = matrix.shape();
        let present = (0..nodes)
            .map(|x| f32::from(u8::from(!matrix.row(x).0.is_empty())))
            .collect();
        Self {
            graph: Propagation::new(matrix),
            layers,
            present,
        }
    }

    /// Mean over the layers, from none to all.
    fn propagate(&self, table: &Tensor) -> Result<Tensor> {
        let sum = self.graph.layer_sum(table, self.layers)?;
        Ok((sum / (self.layers + 1) as f64)?)
    }
}

/// Mixes the relations of each node.
///
/// # Shapes
/// `views` of R relations, each `[nodes, d]`, `scores` and `present` `[nodes, R]`.
fn mix(views: &[Tensor], scores: &Tensor, present: &Tensor) -> Result<Tensor> {
    let hide = ((present - 1.0)? * 1e9)?;
    let share = candle_nn::ops::softmax(&(scores + hide)?, 1)?;
    let mut out: Option<Tensor> = None;
    for (r, view) in views.iter().enumerate() {
        let part = view.broadcast_mul(&share.narrow(1, r, 1)?)?;
        out = Some(match out {
            Some(sum) => (sum + part)?,
            None => part,
        });
    }
    out.ok_or_else(|| Error::config("a graph without relations"))
}

/// `Σ w·(−log σ(s⁺ − s⁻))`.
fn bpr(positive: &Tensor, negative: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let each = ops::log_sigmoid(&(positive - negative)?)?;
    Ok((each * weights)?.sum_all()?.neg()?)
}

/// What training takes from a behaviour.
#[derive(Debug)]
struct Behavior {
    rows: Csr,
    weight: f64,
}

/// The learnt part.
#[derive(Debug)]
struct Encoder {
    relations: Vec<Relation>,
    /// `[nodes, R]`.
    present: Tensor,
    /// `[nodes, 1]`: 1 for nodes without any relation.
    alone: Tensor,
    table: Tensor,
    attention: Linear,
    query: Tensor,
    params: Params,
}

impl Encoder {
    fn new(relations: Vec<Relation>, d: usize, seed: u64, dev: &Device) -> Result<Self> {
        let nodes = relations.first().map_or(0, |r| r.present.len());
        let n = relations.len();
        let mut present = vec![0f32; nodes * n];
        for (k, relation) in relations.iter().enumerate() {
            for (x, &has) in relation.present.iter().enumerate() {
                present[x * n + k] = has;
            }
        }
        let alone = present
            .chunks(n.max(1))
            .map(|p| 1.0 - p.iter().copied().fold(0f32, f32::max))
            .collect();
        let mut params = Params::default();
        let stream = |name: &str| rng::stream(seed, Purpose::Init, &[rng::name_hash(name)]);
        let table = rng::normal(&mut stream("graph.nodes"), (nodes, d), 0.1, dev)?;
        let std = (d as f64).powf(-0.5);
        let query = rng::normal(&mut stream("graph.query"), (d, 1), std, dev)?;
        Ok(Self {
            present: Tensor::from_vec(present, (nodes, n), dev)?,
            alone: Tensor::from_vec(alone, (nodes, 1), dev)?,
            table: params.add("nodes", &table)?,
            attention: Linear::new(&mut params, "attention", d, d, seed, dev)?,
            query: params.add("query", &query)?,
            relations,
            params,
        })
    }

    /// Vectors of some nodes, or of all; users come first. What is dear, the attention, is done for them alone.
    fn nodes(&self, rows: Option<&[u32]>) -> Result<Tensor> {
        let of = |t: &Tensor| rows.map_or_else(|| Ok(t.clone()), |rows| pick(t, rows));
        let views = self
            .relations
            .iter()
            .map(|r| of(&r.propagate(&self.table)?))
            .collect::<Result<Vec<_>>>()?;
        let scores = views
            .iter()
            .map(|z| Ok(self.attention.forward(z)?.tanh()?.matmul(&self.query)?))
            .collect::<Result<Vec<_>>>()?;
        let mixed = mix(&views, &Tensor::cat(&scores, 1)?, &of(&self.present)?)?;
        let alone = of(&self.alone)?;
        let own = of(&self.table)?.broadcast_mul(&alone)?;
        let told = mixed.broadcast_mul(&(1.0 - alone)?)?;
        Ok((told + own)?)
    }
}

/// How often an item followed another within [`REACH`] events of a user, whatever the behaviours:
/// the [`FOLLOWERS`] most frequent of each row, both directions joined, and each weight divided by
/// the root of both nodes' sums.
fn transitions(data: &Dataset, knows: impl Fn(u32) -> bool) -> Result<SparseMatrix> {
    let (users, items) = (data.num_users(), data.num_items());
    let mut counts: Vec<HashMap<u32, f32>> = vec![HashMap::new(); items];
    for user in (0..users as u32).filter(|&u| knows(u)) {
        let events: Vec<u32> = data
            .history(user, Split::Valid)
            .iter()
            .map(|e| e.item)
            .collect();
        for (at, &a) in events.iter().enumerate() {
            for &b in events.iter().skip(at + 1).take(REACH) {
                if a != b {
                    *counts[a as usize].entry(b).or_insert(0.0) += 1.0;
                }
            }
        }
    }
    let mut joined: HashMap<(u32, u32), f32> = HashMap::new();
    for (a, row) in counts.into_iter().enumerate() {
        let mut row: Vec<(u32, f32)> = row.into_iter().collect();
        row.sort_by(|x, y| y.1.total_cmp(&x.1).then(x.0.cmp(&y.0)));
        for (b, n) in row.into_iter().take(FOLLOWERS) {
            let a = a as u32;
            *joined.entry((a.min(b), a.max(b))).or_insert(0.0) += n;
        }
    }
    let mut edges: Vec<((u32, u32), f32)> = joined.into_iter().collect();
    edges.sort_by_key(|(pair, _)| *pair);
    let mut degree = vec![0f64; items];
    for ((a, b), n) in &edges {
        degree[*a as usize] += f64::from(*n);
        degree[*b as usize] += f64::from(*n);
    }
    let entries: Vec<(u32, u32, f32)> = edges
        .into_iter()
        .flat_map(|((a, b), n)| {
            let w = f64::from(n) / (degree[a as usize] * degree[b as usize]).sqrt();
            let (x, y) = (users as u32 + a, users as u32 + b);
            [(x, y, w as f32), (y, x, w as f32)]
        })
        .collect();
    SparseMatrix::from_entries(users + items, users + items, &entries)
}

fn edges(rows: &Csr) -> impl Iterator<Item = (u32, u32)> + Clone + '_ {
    (0..rows.rows() as u32).flat_map(|u| rows.row(u).iter().map(move |&i| (u, i)))
}

/// The model and its optimizer.
#[derive(Debug)]
pub struct BehaviorGraph {
    cfg: BehaviorGraphConfig,
    seed: u64,
    users: usize,
    items: usize,
    behaviors: Vec<Behavior>,
    encoder: Encoder,
    adam: Adam,
}

impl BehaviorGraph {
    /// A fresh model over the training rows of `data`, of all behaviours.
    ///
    /// # Errors
    /// A configuration out of range, or no training rows.
    pub fn new(data: &Dataset, cfg: BehaviorGraphConfig, seed: u64, dev: &Device) -> Result<Self> {
        Self::of_users(data, cfg, |_| true, seed, dev)
    }

    /// [`Self::new`] over the rows of some users; all others are nodes without events.
    pub(crate) fn of_users(
        data: &Dataset,
        cfg: BehaviorGraphConfig,
        knows: impl Fn(u32) -> bool,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        if cfg.dim == 0 || cfg.batch == 0 || !(cfg.lr.is_finite() && cfg.lr > 0.0) {
            return Err(Error::config("dim, batch and lr must be positive"));
        }
        let (users, items) = (data.num_users(), data.num_items());
        let mut relations = Vec::new();
        let mut behaviors = Vec::new();
        for (b, name) in (0u8..).zip(&data.behaviors) {
            let all = data.rows(&[Split::Train], Some(b));
            let of = |u: u32| if knows(u) { all.row(u) } else { &[] };
            let rows = Csr::from_rows((0..users as u32).map(of));
            if rows.nnz() == 0 {
                continue;
            }
            let matrix = normalized_bipartite(users, items, edges(&rows), false)?;
            relations.push(Relation::new(matrix, cfg.layers));
            let weight = behavior_weight(&cfg.behavior_weights, name, data.is_target(b));
            behaviors.push(Behavior { rows, weight });
        }
        if behaviors.is_empty() {
            return Err(Error::config("a graph of behaviours needs training rows"));
        }
        if cfg.transitions && data.ordered {
            relations.push(Relation::new(transitions(data, knows)?, 1));
        }
        let encoder = Encoder::new(relations, cfg.dim, seed, dev)?;
        let adam = Adam::new(&encoder.params, cfg.lr, 0.0)?;
        Ok(Self {
            cfg,
            seed,
            users,
            items,
            behaviors,
            encoder,
            adam,
        })
    }

    fn steps(&self) -> usize {
        let largest = self.behaviors.iter().map(|b| b.rows.nnz()).max();
        largest.unwrap_or(0).div_ceil(self.cfg.batch).max(1)
    }

    /// Weighted mean over the behaviours of how badly their triples are ranked.
    fn loss(&self, batches: &[&[(u32, u32, u32)]]) -> Result<Option<Tensor>> {
        let total: f64 = self.behaviors.iter().map(|b| b.weight).sum();
        let items = self.users as u32;
        let (mut users, mut positives, mut negatives) = (Vec::new(), Vec::new(), Vec::new());
        let mut weights = Vec::new();
        for (behavior, batch) in self.behaviors.iter().zip(batches) {
            if batch.is_empty() || behavior.weight == 0.0 {
                continue;
            }
            users.extend(batch.iter().map(|t| t.0));
            positives.extend(batch.iter().map(|t| t.1 + items));
            negatives.extend(batch.iter().map(|t| t.2 + items));
            let each = behavior.weight / total / batch.len() as f64;
            weights.resize(users.len(), each as f32);
        }
        let n = users.len();
        if n == 0 {
            return Ok(None);
        }
        let weights = Tensor::from_vec(weights, n, self.encoder.table.device())?;
        let ids = [users, positives, negatives].concat();
        let mut nodes = ids.clone();
        nodes.sort_unstable();
        nodes.dedup();
        let place = |id: &u32| nodes.partition_point(|n| n < id) as u32;
        let at: Vec<u32> = ids.iter().map(place).collect();
        let z = pick(&self.encoder.nodes(Some(&nodes))?, &at)?.reshape((3, n, self.cfg.dim))?;
        let scores = |k: usize| -> Result<Tensor> { Ok((z.get(0)? * z.get(k)?)?.sum(1)?) };
        let rank = bpr(&scores(1)?, &scores(2)?, &weights)?;
        let norms = pick(&self.encoder.table, &ids)?.sqr()?.sum(1)?;
        let norms = norms.reshape((3, n))?.broadcast_mul(&weights)?.sum_all()?;
        Ok(Some((rank + (norms * (0.5 * self.cfg.reg))?)?))
    }

    /// One epoch over all triples; `after_step` may stop it.
    pub(crate) fn learn(
        &mut self,
        epoch: u64,
        mut after_step: impl FnMut() -> Result<()>,
    ) -> Result<f64> {
        let triples: Vec<Vec<(u32, u32, u32)>> = (0u64..)
            .zip(&self.behaviors)
            .map(|(k, b)| sample_triples(&b.rows, self.items, self.seed ^ (k << 32), epoch))
            .collect();
        let steps = self.steps();
        let mut total = 0.0;
        for step in 0..steps {
            // Each behaviour is spread over all steps of the epoch.
            let part = |t: &Vec<(u32, u32, u32)>, s: usize| t.len() * s / steps;
            let batches: Vec<&[(u32, u32, u32)]> = triples
                .iter()
                .map(|t| &t[part(t, step)..part(t, step + 1)])
                .collect();
            if let Some(loss) = self.loss(&batches)? {
                self.adam.step(&loss.backward()?)?;
                total += f64::from(loss.to_scalar::<f32>()?);
            }
            after_step()?;
        }
        Ok(total / steps as f64)
    }

    /// Vectors of users `[m, d]` and items `[n, d]`.
    pub(crate) fn vectors(&self) -> Result<(Tensor, Tensor)> {
        let nodes = self.encoder.nodes(None)?.detach();
        let users = nodes.narrow(0, 0, self.users)?.contiguous()?;
        Ok((
            users,
            nodes.narrow(0, self.users, self.items)?.contiguous()?,
        ))
    }
}

impl Learner for BehaviorGraph {
    fn steps_per_epoch(&self) -> u64 {
        self.steps() as u64
    }

    fn train_epoch(&mut self, epoch: u64, monitor: &mut Monitor<'_>) -> Result<EpochLosses> {
        let loss = self.learn(epoch, || monitor.step())?;
        Ok(vec![("loss", loss)])
    }

    fn inference(&self) -> Result<TensorMap> {
        let (users, items) = self.vectors()?;
        factors(&users, &items)
    }

    fn export_state(&self) -> Result<TensorMap> {
        training_state(&self.encoder.params, &self.adam)
    }

    fn import_state(&mut self, from: &TensorMap) -> Result<()> {
        restore_training(&self.encoder.params, &mut self.adam, from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::close;
    use candle_core::DType;

    const DEV: Device = Device::Cpu;

    /// Oracle T4: two users, three items, views and buys.
    #[test]
    fn behaviour_graph_matches_oracle() -> Result<()> {
        let table = Tensor::new(&[[1f32, 0.], [0., 1.], [1., 1.], [2., 0.], [0., 2.]], &DEV)?;
        let relation = |rows: [&[u32]; 2]| -> Result<Relation> {
            let rows = Csr::from_rows(rows);
            Ok(Relation::new(
                normalized_bipartite(2, 3, edges(&rows), false)?,
                1,
            ))
        };
        let view = relation([&[0, 1], &[1, 2]])?;
        let buy = relation([&[1], &[2]])?;
        let s = std::f64::consts::FRAC_1_SQRT_2;
        close(
            &view.graph.apply(&table)?,
            &[
                1.707_107,
                s,
                1.0,
                std::f64::consts::SQRT_2,
                s,
                0.0,
                0.5,
                0.5,
                0.0,
                s,
            ],
        )?;
        close(
            &buy.graph.apply(&table)?,
            &[2.0, 0.0, 0.0, 2.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0],
        )?;
        assert_eq!(buy.present, [1.0, 1.0, 0.0, 1.0, 1.0]);
        let mean = view.propagate(&table)?;
        let want = [
            1.353_553, 0.353_553, 0.5, 1.207_107, 0.853_553, 0.5, 1.25, 0.25, 0.0, 1.353_553,
        ];
        close(&mean, &want)?;
        // Weights softmax(0, ln 3) = (1/4, 3/4) of the two propagated tables.
        let scores = Tensor::new(&[[0f32, 3f32.ln()]; 5], &DEV)?;
        let views = [view.graph.apply(&table)?, buy.graph.apply(&table)?];
        let mixed = mix(&views, &scores, &Tensor::ones((5, 2), DType::F32, &DEV)?)?;
        let want = [
            1.926_777, 0.176_777, 0.25, 1.853_553, 0.176_777, 0.0, 0.875, 0.125, 0.0, 0.926_777,
        ];
        close(&mixed, &want)?;
        // A node that a relation does not know takes the other one alone.
        let present = Tensor::new(&[[1f32, 1.], [1., 1.], [1., 0.], [1., 1.], [1., 1.]], &DEV)?;
        close(&mix(&views, &scores, &present)?.narrow(0, 2, 1)?, &[s, 0.0])
    }

    /// Oracle T6.
    #[test]
    fn ranking_loss_matches_oracle() -> Result<()> {
        let (p, n) = (
            Tensor::new(&[2f32, 0.5], &DEV)?,
            Tensor::new(&[1f32, 1.0], &DEV)?,
        );
        let halves = Tensor::new(&[0.5f32, 0.5], &DEV)?;
        close(&bpr(&p, &n, &halves)?, &[0.643_669])
    }

    #[test]
    fn every_variable_gets_a_gradient_and_isolated_nodes_keep_their_row() -> Result<()> {
        let rows = Csr::from_rows([vec![0u32, 1], vec![]]);
        let matrix = normalized_bipartite(2, 3, edges(&rows), false)?;
        let relations = vec![Relation::new(matrix.clone(), 2), Relation::new(matrix, 1)];
        let e = Encoder::new(relations, 4, 3, &DEV)?;
        let nodes = e.nodes(None)?;
        let row = |t: &Tensor, at: usize| t.narrow(0, at, 1)?.flatten_all()?.to_vec1::<f32>();
        for at in [1, 4] {
            assert_eq!(row(&nodes, at)?, row(&e.table, at)?);
        }
        let grads = nodes.sqr()?.sum_all()?.backward()?;
        for (name, var) in e.params.iter() {
            assert!(grads.get(var.as_tensor()).is_some(), "{name}");
        }
        Ok(())
    }

    #[test]
    fn followers_of_any_behaviour_are_counted_once_a_pair() -> Result<()> {
        let shop = crate::data::synthetic::generate(&crate::data::synthetic::SyntheticConfig {
            users: 30,
            items: 100,
            events_per_user: 8,
            seed: 2,
        })?;
        let m = transitions(&shop, |_| true)?;
        assert!(m.nnz() > 0);
        for (a, b, w) in m.entries() {
            assert!(a as usize >= shop.num_users() && a != b && w > 0.0 && w <= 1.0);
            let (idx, val) = m.row(b as usize);
            let back = idx.iter().position(|&x| x == a).map(|k| val[k]);
            assert_eq!(back, Some(w), "symmetric");
        }
        Ok(())
    }
}
