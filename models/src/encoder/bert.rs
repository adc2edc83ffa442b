//! BERT and RoBERTa (arXiv 1810.04805, 1907.11692): post-norm transformer over word pieces.
//!
//! The sentence encoders built on it (MiniLM, E5, BGE, GTE) are the same network with a pooling.

use std::path::Path;

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::Hidden;
use super::block::{Activation, Attention, AttentionNames, Dense, Norm, check_heads, embed, hide};
use super::weights::Weights;
use crate::error::{Error, Result};

/// What of `config.json` matters.
#[derive(Debug, Clone, Deserialize)]
pub struct BertConfig {
    /// Rows of the table of word pieces.
    pub vocab_size: usize,
    /// D.
    pub hidden_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads of a block; they divide D.
    pub num_attention_heads: usize,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// Rows of the table of positions.
    pub max_position_embeddings: usize,
    /// Kinds of segment; only the first is used.
    #[serde(default = "one")]
    pub type_vocab_size: usize,
    #[serde(default = "gelu")]
    hidden_act: Activation,
    /// ε of the layer norms.
    #[serde(default = "epsilon")]
    pub layer_norm_eps: f64,
    /// RoBERTa counts positions from here, plus one.
    #[serde(default)]
    pub pad_token_id: usize,
    /// `bert` or one of its kin.
    pub model_type: String,
}

fn one() -> usize {
    1
}

fn gelu() -> Activation {
    Activation::Gelu
}

fn epsilon() -> f64 {
    1e-12
}

impl BertConfig {
    /// The first position that a word takes.
    fn first_position(&self) -> usize {
        if self.model_type == "bert" {
            0
        } else {
            self.pad_token_id + 1
        }
    }

    /// The longest input, in tokens.
    pub fn max_tokens(&self) -> usize {
        self.max_position_embeddings
            .saturating_sub(self.first_position())
    }
}

struct Layer {
    attention: Attention,
    attention_norm: Norm,
    up: Dense,
    down: Dense,
    norm: Norm,
}

/// The network, without pooler and heads.
pub struct Bert {
    config: BertConfig,
    words: Tensor,
    positions: Tensor,
    segment: Tensor,
    norm: Norm,
    layers: Vec<Layer>,
}

impl Bert {
    pub(super) fn open(config: BertConfig, mut w: Weights, path: &Path) -> Result<Self> {
        check_heads(path, config.hidden_size, config.num_attention_heads)?;
        if config.max_tokens() == 0 || config.vocab_size == 0 {
            return Err(Error::encoder(path, "no positions or no vocabulary"));
        }
        w.choose_prefix(
            &["", "bert.", "roberta."],
            "embeddings.word_embeddings.weight",
        );
        let d = config.hidden_size;
        let eps = config.layer_norm_eps;
        let names = AttentionNames {
            query: "self.query",
            key: "self.key",
            value: "self.value",
            out: "output.dense",
        };
        let layers = (0..config.num_hidden_layers)
            .map(|i| {
                let p = format!("encoder.layer.{i}");
                let ffn = config.intermediate_size;
                Ok(Layer {
                    attention: Attention::open(
                        &w,
                        &format!("{p}.attention"),
                        &names,
                        d,
                        config.num_attention_heads,
                        true,
                    )?,
                    attention_norm: Norm::open(
                        &w,
                        &format!("{p}.attention.output.LayerNorm"),
                        d,
                        eps,
                    )?,
                    up: Dense::open(&w, &format!("{p}.intermediate.dense"), d, ffn)?,
                    down: Dense::open(&w, &format!("{p}.output.dense"), ffn, d)?,
                    norm: Norm::open(&w, &format!("{p}.output.LayerNorm"), d, eps)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            words: w.get("embeddings.word_embeddings.weight", &[config.vocab_size, d])?,
            positions: w.get(
                "embeddings.position_embeddings.weight",
                &[config.max_position_embeddings, d],
            )?,
            segment: w
                .get(
                    "embeddings.token_type_embeddings.weight",
                    &[config.type_vocab_size, d],
                )?
                .narrow(0, 0, 1)?,
            norm: Norm::open(&w, "embeddings.LayerNorm", d, eps)?,
            layers,
            config,
        })
    }

    /// The configuration it was opened with.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// Last hidden states of `ids`, each at most [`BertConfig::max_tokens`] long and none empty.
    pub(super) fn forward(&self, ids: &[Vec<u32>], dev: &Device) -> Result<Hidden> {
        let b = ids.len();
        let t = ids.iter().map(Vec::len).max().unwrap_or(0);
        let mut flat = vec![0u32; b * t];
        let mut mask = vec![0f32; b * t];
        for (row, ids) in ids.iter().enumerate() {
            flat[row * t..][..ids.len()].copy_from_slice(ids);
            mask[row * t..][..ids.len()].fill(1.0);
        }
        let mask = Tensor::from_vec(mask, (b, t, 1), dev)?;
        let words = embed(&self.words, &Tensor::from_vec(flat, (b, t), dev)?)?;
        let positions = self
            .positions
            .narrow(0, self.config.first_position(), t)?
            .broadcast_add(&self.segment)?;
        let mut x = self.norm.forward(&words.broadcast_add(&positions)?)?;
        let hidden = hide(&mask)?;
        for layer in &self.layers {
            let y = layer.attention.forward(&x, Some(&hidden))?;
            x = layer.attention_norm.forward(&(x + y)?)?;
            let y = self.config.hidden_act.forward(&layer.up.forward(&x)?)?;
            x = layer.norm.forward(&(&x + layer.down.forward(&y)?)?)?;
        }
        Ok(Hidden { states: x, mask })
    }
}
