//! Interactions as a model may see them, and the fixed neighbour graphs.
//!
//! While a batch is scored, its own pairs are not in the interactions it is scored with. With them, a
//! user's mean of contents holds the very item that has to be found, and so do interests and
//! propagated vectors: the loss falls by recognising it and nothing general is learnt. At test time
//! all training pairs are there, and the target never is.

use std::collections::HashSet;

use candle_core::{Device, Tensor};

use super::config::{DprecConfig, UserGraph};
use super::encoder::column;
use crate::data::Csr;
use crate::error::Result;
use crate::graph::{Propagation, SparseMatrix, normalized_bipartite};
use crate::knn::{cosine_neighbors, jaccard_neighbors, symmetric_graph};
use crate::rng::{self, Purpose};

/// One content modality after post-processing.
#[derive(Debug, Clone)]
pub(super) struct Content {
    /// Name of the modality.
    pub(super) name: String,
    /// Whether it shows pictures, which start with a small share in the id channel's item graph.
    pub(super) is_image: bool,
    /// `[N, K]`, rows of unit length; zero where missing.
    pub(super) features: Tensor,
    /// Whether an item has a vector.
    pub(super) present: Vec<bool>,
}

/// A set of interactions, as operators and counts.
#[derive(Debug)]
pub(super) struct Observed {
    /// `D^(-1/2) [[0, R], [Rᵀ, 0]] D^(-1/2)`.
    pub(super) adjacency: Propagation,
    /// R, `[m, n]`, ones.
    pub(super) user_sum: Propagation,
    /// Rᵀ, `[n, m]`.
    pub(super) item_sum: Propagation,
    /// Per channel, `[m, 1]`: one over the number of the user's items that have it, or 0.
    pub(super) per_user: Vec<Tensor>,
    /// Per channel, `[m, 1]`: 1 where a user has an item with it.
    pub(super) user_present: Vec<Tensor>,
    /// Per channel, the number of each user's items that have it.
    pub(super) user_counts: Vec<Vec<u32>>,
    /// `[m, 1]`: one over the channel nodes of a user's items, or 0.
    pub(super) per_node: Tensor,
    /// `[n, 1]`: `1/√d_i`, or 0.
    pub(super) inverse_root_degree: Tensor,
    /// `[n, 1]`: 1 for items with users.
    pub(super) trained: Tensor,
}

impl Observed {
    /// From pairs; `propagated` are those the memory encoder runs over. `has[c][i]` says whether item i
    /// has channel c.
    fn new(
        shape: (usize, usize),
        pairs: &[(u32, u32)],
        propagated: &[(u32, u32)],
        has: &[Vec<bool>],
        dev: &Device,
    ) -> Result<Self> {
        let (users, items) = shape;
        let mut degree = vec![0u32; items];
        let mut user_counts = vec![vec![0u32; users]; has.len()];
        for &(u, i) in pairs {
            degree[i as usize] += 1;
            for (counts, has) in user_counts.iter_mut().zip(has) {
                counts[u as usize] += u32::from(has[i as usize]);
            }
        }
        let ones: Vec<(u32, u32, f32)> = pairs.iter().map(|&(u, i)| (u, i, 1.0)).collect();
        let user_sum = Propagation::new(SparseMatrix::from_entries(users, items, &ones)?);
        let edges = propagated.iter().copied();
        let inverse = |n: u32| if n == 0 { 0.0 } else { 1.0 / n as f32 };
        let of = |counts: &[u32], f: &dyn Fn(u32) -> f32| {
            column(counts.iter().map(|&n| f(n)).collect(), dev)
        };
        let any = |n: u32| f32::from(u8::from(n > 0));
        let nodes: Vec<u32> = (0..users)
            .map(|u| user_counts.iter().map(|c| c[u]).sum())
            .collect();
        let per_channel = |f: &dyn Fn(u32) -> f32| {
            let columns = user_counts.iter().map(|c| of(c, f));
            columns.collect::<Result<Vec<_>>>()
        };
        Ok(Self {
            adjacency: Propagation::new(normalized_bipartite(users, items, edges, false)?),
            item_sum: user_sum.transposed(),
            user_sum,
            per_user: per_channel(&inverse)?,
            user_present: per_channel(&any)?,
            per_node: of(&nodes, &inverse)?,
            inverse_root_degree: of(&degree, &|n| inverse(n).sqrt())?,
            trained: of(&degree, &any)?,
            user_counts,
        })
    }
}

/// The training interactions and the neighbours of users and items.
#[derive(Debug)]
pub(super) struct Graphs {
    /// Users m.
    pub(super) users: usize,
    /// Items n.
    pub(super) items: usize,
    /// Training items of each user.
    pub(super) rows: Csr,
    /// Which items have each channel, the id channel first.
    pub(super) has: Vec<Vec<bool>>,
    /// All training interactions.
    pub(super) whole: Observed,
    /// The pairs that memory may run over in this epoch.
    kept: Vec<(u32, u32)>,
    /// Neighbours in each modality.
    pub(super) item_graphs: Vec<Propagation>,
    /// Neighbours among users, by all training interactions.
    pub(super) user_graph: Option<Propagation>,
    dev: Device,
}

impl Graphs {
    pub(super) fn new(
        rows: Csr,
        items: usize,
        content: &[Content],
        cfg: &DprecConfig,
        dev: &Device,
    ) -> Result<Self> {
        let users = rows.rows();
        let has: Vec<Vec<bool>> = std::iter::once(vec![true; items])
            .chain(content.iter().map(|c| c.present.clone()))
            .collect();
        let all: Vec<(u32, u32)> = edges(&rows).collect();
        let whole = Observed::new((users, items), &all, &all, &has, dev)?;
        let item_graphs = content
            .iter()
            .map(|c| {
                let neighbors = cosine_neighbors(&c.features, cfg.neighbors)?;
                Ok(Propagation::new(symmetric_graph(&neighbors)?))
            })
            .collect::<Result<Vec<_>>>()?;
        let neighbors = match cfg.user_graph {
            UserGraph::Off => None,
            UserGraph::Jaccard => Some(jaccard_neighbors(&rows, items, cfg.user_neighbors)),
            UserGraph::Content if content.is_empty() => None,
            UserGraph::Content => {
                // The mean is over all items of a user: its length does not matter to a cosine.
                let features: Vec<&Tensor> = content.iter().map(|c| &c.features).collect();
                let all = Tensor::cat(&features, 1)?;
                let mean = crate::ops::normalize_rows(&whole.user_sum.apply(&all)?)?;
                Some(cosine_neighbors(&mean, cfg.user_neighbors)?)
            }
        };
        let user_graph = match neighbors {
            Some(n) => Some(Propagation::new(symmetric_graph(&n)?)),
            None => None,
        };
        Ok(Self {
            users,
            items,
            rows,
            has,
            whole,
            kept: all,
            item_graphs,
            user_graph,
            dev: dev.clone(),
        })
    }

    /// Draws the edges of an epoch: `keep_rate` of them without replacement, each with a chance
    /// proportional to `1/√(d_u d_i)` (FREEDOM's pruning).
    pub(super) fn thin(&mut self, keep_rate: f64, seed: u64, epoch: u64) {
        let mut degree = vec![0u32; self.items];
        edges(&self.rows).for_each(|(_, i)| degree[i as usize] += 1);
        let mut r = rng::stream(seed, Purpose::EdgeDropout, &[epoch]);
        // Exponential clocks: the first k to ring are a weighted sample without replacement.
        let mut clocks: Vec<(f64, (u32, u32))> = edges(&self.rows)
            .map(|(u, i)| {
                let degrees = self.rows.row(u).len() as f64 * f64::from(degree[i as usize]);
                let wait = -(f64::from(rng::unit(&mut r)) + 1e-9).ln();
                (wait * degrees.sqrt(), (u, i))
            })
            .collect();
        let keep = ((clocks.len() as f64 * keep_rate).round() as usize).min(clocks.len());
        if keep < clocks.len() {
            clocks.select_nth_unstable_by(keep, |a, b| a.0.total_cmp(&b.0));
            clocks.truncate(keep);
        }
        self.kept = clocks.into_iter().map(|c| c.1).collect();
    }

    /// The interactions of this epoch but for the given pairs.
    pub(super) fn without(&self, hidden: impl Iterator<Item = (u32, u32)>) -> Result<Observed> {
        let hidden: HashSet<(u32, u32)> = hidden.collect();
        let open = |pair: &(u32, u32)| !hidden.contains(pair);
        let pairs: Vec<(u32, u32)> = edges(&self.rows).filter(open).collect();
        let kept: Vec<(u32, u32)> = self.kept.iter().copied().filter(open).collect();
        let shape = (self.users, self.items);
        Observed::new(shape, &pairs, &kept, &self.has, &self.dev)
    }
}

/// All (user, item) pairs.
fn edges(rows: &Csr) -> impl Iterator<Item = (u32, u32)> + Clone + '_ {
    (0..rows.rows() as u32).flat_map(move |u| rows.row(u).iter().map(move |&i| (u, i)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: Device = Device::Cpu;

    fn graphs(rows: Csr, items: usize) -> Result<Graphs> {
        Graphs::new(rows, items, &[], &DprecConfig::default(), &DEV)
    }

    #[test]
    fn thinning_spares_rare_nodes_and_repeats_by_epoch() -> Result<()> {
        // Item 0 is everybody's; the others have one user each.
        let rows = Csr::from_rows((0..200u32).map(|u| vec![0, u + 1]));
        let mut g = graphs(rows, 201)?;
        let mut lost = [0usize; 2];
        for epoch in 0..20 {
            g.thin(0.8, 1, epoch);
            assert_eq!(g.kept.len(), 320);
            let popular = g.kept.iter().filter(|e| e.1 == 0).count();
            lost[0] += 200 - popular;
            lost[1] += 200 - (g.kept.len() - popular);
        }
        assert!(lost[0] > 3 * lost[1], "{lost:?}");
        g.thin(0.8, 1, 3);
        let first = g.kept.clone();
        g.thin(0.8, 1, 4);
        assert_ne!(first, g.kept);
        g.thin(0.8, 1, 3);
        assert_eq!(first, g.kept);
        Ok(())
    }

    #[test]
    fn hidden_pairs_are_in_no_operator() -> Result<()> {
        let mut g = graphs(Csr::from_rows([vec![0u32, 1], vec![1]]), 3)?;
        g.thin(1.0, 1, 0);
        let o = g.without([(0, 1), (1, 2)].into_iter())?;
        assert_eq!(o.user_sum.matrix().row(0).0, [0]);
        assert_eq!(o.item_sum.matrix().row(1).0, [1]);
        assert_eq!(o.adjacency.matrix().nnz(), 4);
        assert_eq!(o.user_counts[0], [1, 1]);
        assert_eq!(g.whole.user_counts[0], [2, 1]);
        let none = g.without([(0, 0), (0, 1), (1, 1)].into_iter())?;
        assert_eq!(none.trained.flatten_all()?.to_vec1::<f32>()?, [0.0; 3]);
        Ok(())
    }

    #[test]
    fn no_edges_and_a_single_user_are_graphs_too() -> Result<()> {
        let mut none = graphs(Csr::from_rows([vec![], vec![]] as [Vec<u32>; 2]), 3)?;
        none.thin(0.5, 1, 0);
        assert_eq!(
            none.without(std::iter::empty())?.adjacency.matrix().nnz(),
            0
        );
        let mut one = graphs(Csr::from_rows([vec![1]]), 3)?;
        one.thin(0.9, 1, 0);
        let roots = one.whole.inverse_root_degree.flatten_all()?;
        assert_eq!(roots.to_vec1::<f32>()?, [0.0, 1.0, 0.0]);
        Ok(())
    }
}
