//! Hyper-parameters of DPRec and its ablation switches.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Which encoder's vectors a node gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Perspective {
    /// Both, mixed by a learnt gate.
    Gate,
    /// Ablation: only what was observed (g = 1).
    Memory,
    /// Ablation: only the neighbourhoods (g = 0).
    Expansion,
    /// Ablation: the plain mean of both (g = ½).
    Average,
}

/// How the channels of an item are brought together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Align {
    /// The three hyperedge levels and their losses.
    Hypergraph,
    /// Ablation: contrast between pairs of content channels, no hypergraph.
    Pairwise,
    /// Baseline: content times behaviour, `e_i ⊙ σ(X W + b)`, and one contrast with the id channel.
    Product,
    /// Ablation: neither; channels are added up without attention.
    None,
}

/// What ranks a batch's pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Each pair against one negative, by dot products (BPR).
    Bpr,
    /// Each pair against every item of the batch ([`DprecConfig::ranking_rows`] pairs of it) that its user
    /// does not have, by a softmax over cosines.
    Softmax,
}

/// By what users are neighbours. Their graph is built once from all training pairs, those that are
/// hidden while a batch is scored included, and so may tell what has to be found: there is none
/// unless asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserGraph {
    /// Jaccard index of their item sets.
    Jaccard,
    /// Cosine of the mean features of their items.
    Content,
    /// No user graph.
    Off,
}

/// Hyper-parameters of DPRec. The paper's are not public; the [module](super) says where
/// these come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DprecConfig {
    /// Width d of user and item vectors.
    pub dim: usize,
    /// Adam's learning rate.
    pub lr: f64,
    /// Factor on the learning rate every 50 epochs.
    pub lr_decay: f64,
    /// Triples per step; at most a quarter of the training pairs, see [`Dprec`](super::Dprec). The
    /// softmax holds a score for each user and item of a batch, at most 8 `batch`² bytes.
    pub batch: usize,
    /// What ranks a batch's pairs.
    pub loss: Loss,
    /// Temperature of the softmax over cosines.
    pub score_temperature: f64,
    /// Weight λr of the squared norm of the id vectors in a batch (half of it, per triple).
    pub reg: f64,

    /// Standardise features as [`features`](super::features) says; false only brings rows to unit
    /// length (A10).
    pub whiten: bool,
    /// Columns kept by whitening.
    pub whiten_width: usize,
    /// Leading principal directions removed by whitening.
    pub whiten_remove: usize,
    /// Ablation (A1): keep only the signs of this many random projections of the features, as a poor
    /// encoder would; 0 keeps the features.
    pub feature_bits: usize,
    /// Initial gain of the normalised content inputs. 1 gives them norm √d, which drowns the id vectors
    /// (norm about 0.1 at first); the default starts both alike.
    pub content_gain: f64,

    /// Propagation layers of the memory encoder.
    pub memory_layers: usize,
    /// Share of the user-item edges that the memory encoder propagates over in an epoch; edges
    /// between popular nodes are dropped first. 1 keeps all.
    pub keep_rate: f64,
    /// Rows of the memory bank; 0 leaves it out.
    pub memory_bank: usize,

    /// Neighbours of an item in each content graph.
    pub neighbors: usize,
    /// Neighbours of a user.
    pub user_neighbors: usize,
    /// By what users are neighbours.
    pub user_graph: UserGraph,

    /// How the two perspectives are mixed (A2, A3, A9).
    pub perspective: Perspective,
    /// How channels are aligned (A4, A8, A11).
    pub align: Align,
    /// Level 1: one hyperedge an item; false removes edges and loss (A5).
    pub level_item: bool,
    /// Level 2: learnt concepts; false removes edges and loss (A6).
    pub level_concept: bool,
    /// Level 3: one hyperedge a user; false removes edges and loss (A7).
    pub level_interest: bool,
    /// Concepts K.
    pub concepts: usize,
    /// Temperature of the assignment to concepts.
    pub concept_temperature: f64,
    /// Scale of the Gumbel noise on assignments while training; 0 for none.
    pub gumbel: f64,
    /// Initial scale of the messages of all levels together.
    pub message_scale: f64,

    /// Weight λ1 of the item level's loss; of the one loss of `align = pairwise | product` too.
    pub lambda_item: f64,
    /// Weight λ2 of the concept level's loss.
    pub lambda_concept: f64,
    /// Weight λ3 of the interest level's loss.
    pub lambda_interest: f64,
    /// Weight λp of the agreement between the perspectives.
    pub lambda_perspective: f64,
    /// Epochs over which λ2 and λ3 grow linearly from 0.
    pub ramp: u64,
    /// Temperature of every contrastive loss.
    pub temperature: f64,
    /// Most rows of a batch that enter a contrastive loss, drawn anew each step: its cost grows with
    /// their square.
    pub contrast_rows: usize,
    /// Most pairs of a batch that the softmax ranks among one another's items: its cost grows with their
    /// square, so that larger batches are ranked in parts.
    pub ranking_rows: usize,

    /// Item attribute that the concepts are compared with in `metrics.jsonl`, for data whose true
    /// groups are known; empty for none.
    pub probe_attribute: String,
}

impl Default for DprecConfig {
    fn default() -> Self {
        Self {
            dim: 64,
            lr: 1e-3,
            lr_decay: 0.96,
            batch: 2048,
            loss: Loss::Softmax,
            score_temperature: 0.3,
            reg: 1e-4,
            whiten: true,
            whiten_width: 256,
            whiten_remove: 2,
            feature_bits: 0,
            content_gain: 0.02,
            memory_layers: 2,
            keep_rate: 0.9,
            memory_bank: 0,
            neighbors: 10,
            user_neighbors: 10,
            user_graph: UserGraph::Off,
            perspective: Perspective::Gate,
            align: Align::Hypergraph,
            level_item: true,
            level_concept: true,
            level_interest: true,
            concepts: 32,
            concept_temperature: 0.5,
            gumbel: 0.5,
            message_scale: 0.3,
            lambda_item: 1e-2,
            lambda_concept: 1e-2,
            lambda_interest: 1e-2,
            lambda_perspective: 1e-3,
            ramp: 5,
            temperature: 0.2,
            contrast_rows: 512,
            ranking_rows: 2048,
            probe_attribute: String::new(),
        }
    }
}

impl DprecConfig {
    /// Checks ranges.
    ///
    /// # Errors
    /// Names the first field that is out of its range.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("dim", self.dim),
            ("batch", self.batch),
            ("whiten_width", self.whiten_width),
            ("concepts", self.concepts),
            ("contrast_rows", self.contrast_rows),
            ("ranking_rows", self.ranking_rows),
        ];
        for (name, v) in positive {
            if v == 0 {
                return Err(Error::config(format!("{name} must be at least 1")));
            }
        }
        let ranges = [
            ("keep_rate", self.keep_rate, 0.01, 1.0),
            ("lr", self.lr, 1e-9, 1.0),
            ("lr_decay", self.lr_decay, 1e-3, 1.0),
            ("temperature", self.temperature, 0.02, 100.0),
            ("concept_temperature", self.concept_temperature, 0.02, 100.0),
            ("content_gain", self.content_gain, 1e-6, 1e3),
            ("score_temperature", self.score_temperature, 0.02, 100.0),
            ("reg", self.reg, 0.0, 1e3),
            ("gumbel", self.gumbel, 0.0, 10.0),
            ("message_scale", self.message_scale, 0.0, 100.0),
            ("lambda_item", self.lambda_item, 0.0, 1e3),
            ("lambda_concept", self.lambda_concept, 0.0, 1e3),
            ("lambda_interest", self.lambda_interest, 0.0, 1e3),
            ("lambda_perspective", self.lambda_perspective, 0.0, 1e3),
        ];
        for (name, v, lo, hi) in ranges {
            if !(lo..=hi).contains(&v) {
                return Err(Error::config(format!(
                    "{name} must lie in [{lo}, {hi}], got {v}"
                )));
            }
        }
        Ok(())
    }

    /// The levels of the hypergraph that are switched on, item, concept, interest.
    pub fn levels(&self) -> [bool; 3] {
        match self.align {
            Align::Hypergraph => [self.level_item, self.level_concept, self.level_interest],
            _ => [false; 3],
        }
    }
}
