//! Hyper-parameters of TMF.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::answers::MatchRule;
use crate::baseline::behavior_graph::{BehaviorGraphConfig, behavior_weight};
use crate::error::{Error, Result};
use crate::llm::LoraConfig;

/// Hyper-parameters of [`super::Tmf`]. Defaults fit a laptop; what a larger machine would take
/// instead is said at the field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TmfConfig {
    /// Folder of a pretrained language model, which stays frozen but for low-rank updates. Absent: a
    /// small one is trained from scratch on the data set's titles and the prompts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub llm: Option<PathBuf>,
    /// Low-rank updates of a pretrained model.
    pub lora: LoraConfig,
    /// Width of a model from scratch, a multiple of 32.
    pub llm_dim: usize,
    /// Blocks of a model from scratch.
    pub llm_layers: usize,
    /// Tokens of a model from scratch.
    pub llm_vocabulary: usize,
    /// Longest prompt of a model from scratch, in tokens.
    pub llm_context: usize,

    /// Width of the fusion module and of item vectors (256 beside a pretrained model).
    pub dim: usize,
    /// Heads of its attentions.
    pub heads: usize,
    /// Its dropout.
    pub dropout: f64,
    /// Share of items' modalities that training hides.
    pub modality_dropout: f64,
    /// What a modality's cross-attention reads.
    pub cross: Cross,
    /// Among what the self-attention over all modalities works.
    pub scope: Scope,
    /// Soft tokens of an item.
    pub soft_tokens: SoftTokens,

    /// Whether co-behaviour is a modality.
    pub graph: bool,
    /// Groups of users, for each of which tuning has item vectors of a graph that has not met them (items of
    /// many events keep those of the whole graph); below 2 there is one graph, which knows the events that
    /// tuning predicts. Each group costs about as much as the graph itself.
    pub graph_folds: usize,
    /// Width of the graph encoder.
    pub graph_dim: usize,
    /// Its propagation layers.
    pub graph_layers: usize,
    /// Most epochs of its training.
    pub graph_epochs: usize,
    /// Its learning rate.
    pub graph_lr: f64,
    /// Its triples per step.
    pub graph_batch: usize,
    /// Weight λ of the squared norm of its vectors.
    pub graph_reg: f64,
    /// Weight of each behaviour as something to predict, in the losses of the graph encoder and of
    /// histories, by name; others have 0.3, those to predict 1.
    pub behavior_weights: BTreeMap<String, f64>,
    /// Whether items that follow one another are a relation too.
    pub transitions: bool,

    /// Events of a history that a prompt shows (20 on a larger machine).
    pub window: usize,
    /// Events of a history without shelf, which costs little.
    pub sequence_window: usize,
    /// Items on the shelf of a prompt, the answer among them (20 on a larger machine).
    pub candidates: usize,
    /// Tokens of a title in a prompt (16 on a larger machine).
    pub title_tokens: usize,
    /// Whether the history of an example keeps earlier events on the item to be found (view, cart,
    /// then buy). Without, such events are dropped: the example is about discovery.
    pub keep_target: bool,
    /// Whether histories tell behaviours apart: prompts by a token of each, the mean of past items by a weight.
    pub behavior_tokens: bool,
    /// Whether the entries of a shelf tell how well their item fits the history: their place by the product of
    /// the vectors. Without, a language model has to find that out by itself.
    pub shelf_fits: bool,
    /// Share of shelves that are lettered, and answered by a letter.
    pub label_share: f64,

    /// Steps of the warm-up on words alone.
    pub warmup_steps: usize,
    /// Prompts with a shelf per epoch of tuning.
    pub examples: usize,
    /// Prompts of a step (128, by accumulation, on a larger machine).
    pub batch: usize,
    /// Histories without shelf per epoch of tuning, for the vectors.
    pub sequences: usize,
    /// Histories of a step.
    pub sequence_batch: usize,
    /// Most tokens computed at once; larger steps accumulate.
    pub tokens_at_once: usize,
    /// Peak learning rate (2e-4 with low-rank updates).
    pub lr: f64,
    /// Decoupled weight decay of everything but the language model.
    pub weight_decay: f64,
    /// Largest norm of a step's gradient.
    pub clip: f64,
    /// Which prompts tuning shows.
    pub curriculum: Curriculum,
    /// Share of tuning in which the language model rests.
    pub fusion_first: f64,
    /// Share of tuning in which all users are seen through the whole graph, before `graph_folds` begin.
    pub whole_graph_first: f64,
    /// Weight of the vectors' loss beside the answers'.
    pub vector_weight: f64,
    /// Whether a history's vector begins with the mean of its items' vectors, to which the language
    /// model adds.
    pub past_vectors: bool,
    /// Temperature τ_s of the vectors' scores.
    pub temperature: f64,
    /// Uniform negatives of the vectors' loss; all items where there are fewer.
    pub negatives: usize,
    /// Weight of the alignment of soft tokens with their titles.
    pub align_weight: f64,

    /// How items are scored. Settings from here on may differ between training and evaluation.
    pub scoring: Scoring,
    /// β: a candidate's log-likelihood is divided by its tokens to this power.
    pub length_power: f64,
    /// Orders of the shelf that letters are averaged over.
    pub label_shuffles: usize,
    /// Which free answers count.
    pub match_rule: MatchRule,
}

/// What the cross-attention of a modality reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cross {
    /// The vectors of all other modalities (variant A).
    Others,
    /// The tokens of the others, where features by token exist; co-behaviour reads all of them, and
    /// is read by none (variant B). Where no other modality has tokens, vectors are read.
    Tokens,
    /// There is none.
    Off,
}

/// Among what the self-attention over all modalities works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The modalities of one item: its vector is the same everywhere and can be cached.
    Item,
    /// All modalities of all events of a history, with their behaviours and positions. Candidates
    /// are encoded as with `item`.
    Sequence,
    /// There is none.
    Off,
}

/// Which prompts tuning shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Curriculum {
    /// Three levels: words, words with soft tokens, soft tokens.
    Levels,
    /// Soft tokens from the start.
    Tokens,
    /// Words only: a language model without the fusion module, for comparison.
    Words,
}

/// Soft tokens of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SoftTokens {
    /// One, of the pooled vector.
    Pooled,
    /// One for each modality.
    Each,
}

/// How candidates are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scoring {
    /// By the product of the history's vector with item vectors: any set of items, the catalogue too.
    Vector,
    /// By the log-likelihood of their titles.
    Likelihood,
    /// By the likelihood of their letters at one position.
    Label,
    /// The title that is written freely; an answer may name no candidate.
    Free,
    /// The title that is written when only titles on the shelf can be.
    Trie,
}

impl Default for TmfConfig {
    fn default() -> Self {
        Self {
            llm: None,
            lora: LoraConfig::default(),
            llm_dim: 128,
            llm_layers: 4,
            llm_vocabulary: 1024,
            llm_context: 1024,
            dim: 64,
            heads: 4,
            dropout: 0.1,
            modality_dropout: 0.1,
            cross: Cross::Others,
            scope: Scope::Item,
            soft_tokens: SoftTokens::Pooled,
            graph: true,
            graph_folds: 4,
            graph_dim: 64,
            graph_layers: 2,
            graph_epochs: 40,
            graph_lr: 5e-3,
            graph_batch: 2048,
            graph_reg: 1e-4,
            behavior_weights: BehaviorGraphConfig::default().behavior_weights,
            transitions: true,
            window: 8,
            sequence_window: 20,
            candidates: 10,
            title_tokens: 8,
            keep_target: true,
            behavior_tokens: true,
            shelf_fits: true,
            label_share: 0.25,
            warmup_steps: 150,
            examples: 400,
            batch: 8,
            sequences: 2000,
            sequence_batch: 32,
            tokens_at_once: 4096,
            lr: 1e-3,
            weight_decay: 1e-5,
            clip: 1.0,
            curriculum: Curriculum::Levels,
            fusion_first: 0.05,
            whole_graph_first: 0.25,
            vector_weight: 0.5,
            past_vectors: true,
            temperature: 0.07,
            negatives: 512,
            align_weight: 0.1,
            scoring: Scoring::Vector,
            length_power: 1.0,
            label_shuffles: 2,
            match_rule: MatchRule::Strict,
        }
    }
}

impl TmfConfig {
    /// Weight of a behaviour as something to predict.
    pub(super) fn behavior_weight(&self, name: &str, is_target: bool) -> f64 {
        behavior_weight(&self.behavior_weights, name, is_target)
    }

    /// Checks ranges.
    ///
    /// # Errors
    /// Names the field that is out of range.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("llm_dim", self.llm_dim),
            ("llm_layers", self.llm_layers),
            ("llm_context", self.llm_context),
            ("dim", self.dim),
            ("heads", self.heads),
            ("graph_dim", self.graph_dim),
            ("graph_batch", self.graph_batch),
            ("window", self.window),
            ("sequence_window", self.sequence_window),
            ("title_tokens", self.title_tokens),
            ("batch", self.batch),
            ("sequence_batch", self.sequence_batch),
            ("tokens_at_once", self.tokens_at_once),
            ("negatives", self.negatives),
            ("label_shuffles", self.label_shuffles),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, n)| *n == 0) {
            return Err(Error::config(format!("{name} must be at least 1")));
        }
        if self.examples + self.sequences == 0 {
            return Err(Error::config("examples or sequences must be at least 1"));
        }
        if !self.llm_dim.is_multiple_of(32) || !self.dim.is_multiple_of(self.heads) {
            return Err(Error::config(
                "llm_dim must be a multiple of 32, and dim one of heads",
            ));
        }
        if !(2..=26).contains(&self.candidates) {
            return Err(Error::config(
                "candidates must be 2 to 26, as many as there are letters",
            ));
        }
        let shares = [
            ("dropout", self.dropout),
            ("modality_dropout", self.modality_dropout),
            ("label_share", self.label_share),
            ("fusion_first", self.fusion_first),
            ("whole_graph_first", self.whole_graph_first),
        ];
        if let Some((name, _)) = shares.iter().find(|(_, x)| !(0.0..1.0).contains(x)) {
            return Err(Error::config(format!("{name} must be 0 to below 1")));
        }
        let positive = [
            ("lr", self.lr),
            ("graph_lr", self.graph_lr),
            ("clip", self.clip),
            ("temperature", self.temperature),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, x)| !(x.is_finite() && *x > 0.0)) {
            return Err(Error::config(format!("{name} must be positive")));
        }
        Ok(())
    }
}
