//! The shape of a decoder, as `config.json` of a model folder gives it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What of `config.json` matters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LlmConfig {
    /// `llama`, `mistral`, `qwen2` or `qwen3`.
    pub model_type: String,
    /// V: rows of the embedding table.
    pub vocab_size: usize,
    /// D: width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the feed-forward part.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads of queries.
    pub num_attention_heads: usize,
    /// Heads of keys and values; as many as queries have when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_key_value_heads: Option<usize>,
    /// Width of a head; D over the heads when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Longest sequence, in tokens.
    #[serde(default = "context")]
    pub max_position_embeddings: usize,
    /// ε of the norms.
    #[serde(default = "epsilon")]
    pub rms_norm_eps: f64,
    /// θ of the rotary embedding.
    #[serde(default = "theta")]
    pub rope_theta: f64,
    /// Slower rotation for longer contexts.
    #[serde(
        default,
        alias = "rope_parameters",
        skip_serializing_if = "Option::is_none"
    )]
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the head is the embedding table.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Whether the projections of attention have a bias.
    #[serde(default)]
    pub attention_bias: bool,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default)]
    use_sliding_window: bool,
    /// Tokens that end an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eos_token_id: Option<TokenIds>,
}

/// One token or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenIds {
    /// One.
    One(u32),
    /// Several, the first of which is written.
    Many(Vec<u32>),
}

impl TokenIds {
    /// All of them.
    pub fn ids(&self) -> &[u32] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(ids) => ids,
        }
    }
}

/// How the rotation is slowed down beyond the context of pre-training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RopeScaling {
    /// `default`, `linear` or `llama3`.
    #[serde(default = "default_rope", alias = "type")]
    pub rope_type: String,
    /// What slow frequencies are divided by.
    #[serde(default = "one")]
    pub factor: f64,
    /// Wavelengths above the original context over this are slow.
    #[serde(default = "one")]
    pub low_freq_factor: f64,
    /// Wavelengths below the original context over this are kept.
    #[serde(default = "four")]
    pub high_freq_factor: f64,
    /// Context of pre-training.
    #[serde(default = "original")]
    pub original_max_position_embeddings: usize,
    /// θ, where newer exporters put it here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
}

fn context() -> usize {
    2048
}

fn epsilon() -> f64 {
    1e-5
}

fn theta() -> f64 {
    10_000.0
}

fn silu() -> String {
    "silu".to_owned()
}

fn default_rope() -> String {
    "default".to_owned()
}

fn one() -> f64 {
    1.0
}

fn four() -> f64 {
    4.0
}

fn original() -> usize {
    8192
}

/// Types of model that this decoder computes.
pub const MODEL_TYPES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

impl LlmConfig {
    /// A small Llama with tied head, to be trained from scratch.
    pub fn small(vocab_size: usize, hidden_size: usize, layers: usize, context: usize) -> Self {
        let heads = (hidden_size / 32).max(2);
        Self {
            model_type: "llama".to_owned(),
            vocab_size,
            hidden_size,
            // 8/3 of the width, as Llama has it, in whole multiples of 16.
            intermediate_size: (hidden_size * 8 / 3).next_multiple_of(16),
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: Some((heads / 2).max(1)),
            head_dim: None,
            max_position_embeddings: context,
            rms_norm_eps: epsilon(),
            rope_theta: theta(),
            rope_scaling: None,
            tie_word_embeddings: true,
            attention_bias: false,
            hidden_act: silu(),
            use_sliding_window: false,
            eos_token_id: Some(TokenIds::One(0)),
        }
    }

    /// Heads of keys and values.
    pub fn key_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Width of a head.
    pub fn head_size(&self) -> usize {
        self.head_dim
            .unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Bias of queries, keys and values; of the output projection.
    pub(super) fn biases(&self) -> (bool, bool) {
        match self.model_type.as_str() {
            "qwen2" => (true, false),
            _ => (self.attention_bias, self.attention_bias),
        }
    }

    /// Whether queries and keys are normalised head by head.
    pub(super) fn head_norms(&self) -> bool {
        self.model_type == "qwen3"
    }

    /// Checks what the decoder relies on.
    ///
    /// # Errors
    /// [`Error::Encoder`] naming the field of `path` that is out of range or not supported.
    pub fn check(&self, path: &Path) -> Result<()> {
        let bad = |reason: String| Err(Error::encoder(path, reason));
        if !MODEL_TYPES.contains(&self.model_type.as_str()) {
            return bad(format!(
                "model_type {:?} is no decoder known here; {} are",
                self.model_type,
                MODEL_TYPES.join(", ")
            ));
        }
        if self.hidden_act != "silu" {
            return bad(format!("hidden_act {:?}; silu is needed", self.hidden_act));
        }
        if self.use_sliding_window {
            return bad("attention in a sliding window is not supported".to_owned());
        }
        let (heads, keys) = (self.num_attention_heads, self.key_heads());
        if heads == 0 || keys == 0 || !heads.is_multiple_of(keys) {
            return bad(format!(
                "{heads} heads of queries do not share {keys} of keys in equal groups"
            ));
        }
        let size = self.head_size();
        if size == 0 || !size.is_multiple_of(2) {
            return bad(format!("heads of width {size}; an even one is needed"));
        }
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        if let Some((name, n)) = sizes.iter().find(|(_, n)| *n == 0 || *n > 1 << 24) {
            return bad(format!("{name} is {n}"));
        }
        match self.rope_scaling.as_ref().map(|s| s.rope_type.as_str()) {
            None | Some("default" | "linear" | "llama3") => Ok(()),
            Some(other) => bad(format!(
                "rope_type {other:?}; default, linear and llama3 are known"
            )),
        }
    }

    /// Radians per position of each pair of columns of a head.
    pub fn frequencies(&self) -> Vec<f64> {
        let size = self.head_size();
        let scaling = self.rope_scaling.as_ref();
        let theta = scaling
            .and_then(|s| s.rope_theta)
            .unwrap_or(self.rope_theta);
        (0..size / 2)
            .map(|i| theta.powf(-2.0 * i as f64 / size as f64))
            .map(|f| match scaling {
                Some(s) if s.rope_type == "linear" => f / s.factor,
                Some(s) if s.rope_type == "llama3" => {
                    let turns =
                        s.original_max_position_embeddings as f64 * f / std::f64::consts::TAU;
                    let kept = ((turns - s.low_freq_factor)
                        / (s.high_freq_factor - s.low_freq_factor))
                        .clamp(0.0, 1.0);
                    f / s.factor * (1.0 - kept) + f * kept
                }
                _ => f,
            })
            .collect()
    }
}
