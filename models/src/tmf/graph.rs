//! The item-behaviour graph encoder, trained before everything else and then frozen.
//!
//! That embeddings of such a graph are an input is published; the encoder is inferred from what the
//! paper builds on: propagation per behaviour without weights (LightGCN, arXiv 2002.02126, as MB-GCN
//! has it), attention over the behaviours a node takes part in (as HAN, arXiv 1903.07293), and a
//! pairwise ranking loss with a weight for each behaviour. The relation of items that follow one
//! another is ours.
//!
//! Every propagation starts from one table E: `Z_r = (1/(K+1)) Σ_k Â_r^k E`, and a node's vector is
//! `z = Σ_r α_r Z_r`, `α = softmax_r(q·tanh(W Z_r + b))` over its relations; `z = E` without any.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};

use super::config::TmfConfig;
use crate::data::{Csr, Dataset, Split};
use crate::error::Result;
use crate::eval::{EvalProtocol, evaluate};
use crate::factors::Factors;
use crate::graph::{Propagation, SparseMatrix, index_tensor, normalized_bipartite};
use crate::layer::Linear;
use crate::ops;
use crate::params::{Adam, Params, TensorMap};
use crate::rng::{self, Purpose};
use crate::train::{Monitor, factors, sample_triples};

/// Events between two items that still count as following one another.
const REACH: usize = 5;

/// Followers kept of each item.
const FOLLOWERS: usize = 20;

/// Epochs between two looks at validation rows, and looks without improvement before the end.
const LOOK_EVERY: usize = 5;
const PATIENCE: usize = 2;

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
        let mut layer = table.clone();
        let mut sum = layer.clone();
        for _ in 0..self.layers {
            layer = self.graph.apply(&layer)?;
            sum = (sum + &layer)?;
        }
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
    out.ok_or_else(|| crate::Error::config("a graph without relations"))
}

/// `−log σ(s⁺ − s⁻)`, averaged.
fn bpr(positive: &Tensor, negative: &Tensor) -> Result<Tensor> {
    Ok(ops::log_sigmoid(&(positive - negative)?)?
        .mean_all()?
        .neg()?)
}

/// What training takes from a behaviour.
struct Behavior {
    rows: Csr,
    weight: f64,
}

/// The encoder under training.
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
    fn new(relations: Vec<Relation>, cfg: &TmfConfig, seed: u64, dev: &Device) -> Result<Self> {
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
        let d = cfg.graph_dim;
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

    /// Vectors of all nodes, users first.
    fn nodes(&self) -> Result<Tensor> {
        let views = self
            .relations
            .iter()
            .map(|r| r.propagate(&self.table))
            .collect::<Result<Vec<_>>>()?;
        let scores = views
            .iter()
            .map(|z| Ok(self.attention.forward(z)?.tanh()?.matmul(&self.query)?))
            .collect::<Result<Vec<_>>>()?;
        let mixed = mix(&views, &Tensor::cat(&scores, 1)?, &self.present)?;
        let own = self.table.broadcast_mul(&self.alone)?;
        let told = mixed.broadcast_mul(&(1.0 - &self.alone)?)?;
        Ok((told + own)?)
    }
}

/// How often an item followed another within [`REACH`] events of a user, whatever the behaviours:
/// the [`FOLLOWERS`] most frequent of each row, both directions joined, and each weight divided by
/// the root of both nodes' sums.
fn transitions(data: &Dataset) -> Result<SparseMatrix> {
    let (users, items) = (data.num_users(), data.num_items());
    let mut counts: Vec<HashMap<u32, f32>> = vec![HashMap::new(); items];
    for user in 0..users as u32 {
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

/// What co-behaviour says about items.
pub(super) struct CoBehavior {
    /// `[N, d]`, standardised, zero for items without any.
    pub(super) vectors: Tensor,
    /// Items that have any.
    pub(super) present: Vec<bool>,
    /// recall@20 of the encoder's own scores on validation rows.
    pub(super) recall: Option<f64>,
}

/// Learns co-behaviour from training rows alone; the epoch is chosen on validation rows.
///
/// # Errors
/// [`crate::Error::Interrupted`] when the monitor asks to stop.
pub(super) fn encode(
    data: &Dataset,
    cfg: &TmfConfig,
    seed: u64,
    dev: &Device,
    monitor: &mut Monitor<'_>,
) -> Result<CoBehavior> {
    let (users, items) = (data.num_users(), data.num_items());
    let mut relations = Vec::new();
    let mut behaviors = Vec::new();
    for (b, name) in data.behaviors.iter().enumerate() {
        let rows = data.rows(&[Split::Train], Some(b as u8));
        if rows.nnz() == 0 {
            continue;
        }
        let matrix = normalized_bipartite(users, items, edges(&rows), false)?;
        relations.push(Relation::new(matrix, cfg.graph_layers));
        let weight = cfg.behavior_weight(name, data.is_target(b as u8));
        behaviors.push(Behavior { rows, weight });
    }
    let warm: Vec<bool> = {
        let mut warm = vec![false; items];
        for b in &behaviors {
            b.rows.indices.iter().for_each(|&i| warm[i as usize] = true);
        }
        warm
    };
    if behaviors.is_empty() {
        let none = Tensor::zeros((items, cfg.graph_dim), DType::F32, dev)?;
        return Ok(CoBehavior {
            vectors: none,
            present: warm,
            recall: None,
        });
    }
    if cfg.transitions && data.ordered {
        relations.push(Relation::new(transitions(data)?, 1));
    }
    let encoder = Encoder::new(relations, cfg, seed, dev)?;
    let mut adam = Adam::new(&encoder.params, cfg.graph_lr, 0.0)?;
    let total: f64 = behaviors.iter().map(|b| b.weight).sum();
    let halves = |nodes: &Tensor| -> Result<TensorMap> {
        let nodes = nodes.detach();
        factors(&nodes.narrow(0, 0, users)?, &nodes.narrow(0, users, items)?)
    };
    let mut best: Option<(f64, Tensor)> = None;
    let mut waited = 0;
    for epoch in 0..cfg.graph_epochs {
        let triples: Vec<Vec<(u32, u32, u32)>> = behaviors
            .iter()
            .enumerate()
            .map(|(k, b)| sample_triples(&b.rows, items, seed ^ ((k as u64) << 32), epoch as u64))
            .collect();
        let largest = triples.iter().map(Vec::len).max().unwrap_or(0);
        let steps = largest.div_ceil(cfg.graph_batch).max(1);
        for step in 0..steps {
            let nodes = encoder.nodes()?;
            let mut loss: Option<Tensor> = None;
            for (behavior, triples) in behaviors.iter().zip(&triples) {
                // Each behaviour is spread over all steps of the epoch.
                let part = |s: usize| triples.len() * s / steps;
                let batch = &triples[part(step)..part(step + 1)];
                if batch.is_empty() || behavior.weight == 0.0 {
                    continue;
                }
                let ids = |of: fn(&(u32, u32, u32)) -> u32, shift: usize| -> Vec<u32> {
                    batch.iter().map(|t| of(t) + shift as u32).collect()
                };
                let (u, p) = (ids(|t| t.0, 0), ids(|t| t.1, users));
                let n = ids(|t| t.2, users);
                let pick = |t: &Tensor, ids: &[u32]| -> Result<Tensor> {
                    Ok(t.index_select(&index_tensor(ids, dev)?, 0)?)
                };
                let (zu, zp, zn) = (pick(&nodes, &u)?, pick(&nodes, &p)?, pick(&nodes, &n)?);
                let rank = bpr(&(&zu * zp)?.sum(1)?, &(&zu * zn)?.sum(1)?)?;
                let mut norm = pick(&encoder.table, &u)?.sqr()?.sum_all()?;
                for ids in [&p, &n] {
                    norm = (norm + pick(&encoder.table, ids)?.sqr()?.sum_all()?)?;
                }
                let here = (rank + (norm * (0.5 * cfg.graph_reg / batch.len() as f64))?)?;
                let here = (here * (behavior.weight / total))?;
                loss = Some(match loss {
                    Some(l) => (l + here)?,
                    None => here,
                });
            }
            if let Some(loss) = loss {
                adam.step(&loss.backward()?)?;
            }
            monitor.check()?;
        }
        if (epoch + 1) % LOOK_EVERY == 0 || epoch + 1 == cfg.graph_epochs {
            let nodes = encoder.nodes()?.detach();
            let report = evaluate(
                &Factors::new(&halves(&nodes)?)?,
                data,
                &EvalProtocol::valid(),
            )?;
            let value = report.metric("recall@20").unwrap_or(0.0);
            if best.as_ref().is_none_or(|(b, _)| value > *b) {
                best = Some((value, nodes));
                waited = 0;
            } else {
                waited += 1;
            }
            if waited >= PATIENCE {
                break;
            }
        }
    }
    let (recall, nodes) = match best {
        Some((value, nodes)) => (Some(value), nodes),
        None => (None, encoder.nodes()?.detach()),
    };
    let vectors = nodes.narrow(0, users, items)?.contiguous()?;
    Ok(CoBehavior {
        vectors: standardised(&vectors, &warm)?,
        present: warm,
        recall,
    })
}

/// Columns of mean zero and unit deviation over the items that have any; zero rows for the others.
fn standardised(vectors: &Tensor, warm: &[bool]) -> Result<Tensor> {
    let dev = vectors.device();
    let ids: Vec<u32> = (0..warm.len() as u32)
        .filter(|&i| warm[i as usize])
        .collect();
    let known = vectors.index_select(&index_tensor(&ids, dev)?, 0)?;
    let mean = known.mean_keepdim(0)?;
    let std = known.broadcast_sub(&mean)?.sqr()?.mean_keepdim(0)?.sqrt()?;
    let has: Vec<f32> = warm.iter().map(|w| f32::from(u8::from(*w))).collect();
    let has = Tensor::from_vec(has, (warm.len(), 1), dev)?;
    let y = vectors
        .broadcast_sub(&mean)?
        .broadcast_div(&(std + 1e-6)?)?;
    Ok(y.broadcast_mul(&has)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: Device = Device::Cpu;

    fn close(got: &Tensor, want: &[f64]) -> Result<()> {
        let got = got.flatten_all()?.to_vec1::<f32>()?;
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((f64::from(*g) - w).abs() < 1e-5, "{got:?} {want:?}");
        }
        Ok(())
    }

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
        close(&bpr(&p, &n)?, &[0.643_669])
    }

    #[test]
    fn every_variable_gets_a_gradient_and_isolated_nodes_keep_their_row() -> Result<()> {
        let rows = Csr::from_rows([vec![0u32, 1], vec![]]);
        let matrix = normalized_bipartite(2, 3, edges(&rows), false)?;
        let cfg = TmfConfig {
            graph_dim: 4,
            ..TmfConfig::default()
        };
        let relations = vec![Relation::new(matrix.clone(), 2), Relation::new(matrix, 1)];
        let e = Encoder::new(relations, &cfg, 3, &DEV)?;
        let nodes = e.nodes()?;
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
        let m = transitions(&shop)?;
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
