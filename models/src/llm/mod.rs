//! Language models of the Llama family: read from a model folder, adapted by low-rank updates or
//! trained from scratch, asked with rows of embeddings instead of tokens where a recommender has
//! more to say than words.
//!
//! | `model_type` | what differs |
//! |---|---|
//! | `llama`, `mistral` (without window) | – |
//! | `qwen2` | bias in queries, keys and values |
//! | `qwen3` | norm of each head's queries and keys |
//!
//! RMSNorm (arXiv 1910.07467), rotary positions in halves (arXiv 2104.09864, with the scaling of
//! Llama 3), grouped heads (arXiv 2305.13245) and SwiGLU (arXiv 2002.05202). Weights are
//! `model.safetensors`, its shards, or one GGUF file. Everything is computed in f32, but for products with
//! frozen matrices on a GPU, which are bf16.
//!
//! Sequences are packed without padding ([`crate::attention`]). Norm, rotation and attention are
//! operations of one pass with a backward of their own, so that training and inference share one
//! path; frozen projections get no gradient of their weights ([`crate::ops::frozen_linear`]).

pub mod config;
mod decoder;
mod gguf;
mod linear;
mod ops;
mod words;

#[cfg(test)]
pub(crate) mod tests;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

pub use config::LlmConfig;
pub use decoder::{Decoder, Kv, Past, Source};
pub use linear::LoraConfig;
pub use words::Words;

use crate::attention::Segments;
use crate::encoder::weights::{Weights, json};
use crate::error::{Error, Result};

/// A decoder with its tokenizer.
#[derive(Debug, Clone)]
pub struct Llm {
    /// The network.
    pub decoder: Decoder,
    /// The tokenizer.
    pub words: Words,
    /// Tokens that end an answer; the first is written.
    pub ends: Vec<u32>,
}

impl Llm {
    /// Opens a model folder: `config.json`, weights, `tokenizer.json`. A single `.gguf` file stands
    /// for the weights and, where there is none, for `config.json`. Weights are frozen; on a GPU that
    /// multiplies bf16 their matrices are held in it.
    ///
    /// # Errors
    /// [`Error::Encoder`] or [`Error::Io`] for a file that is missing or malformed, an unknown
    /// `model_type`, or a tensor of another shape than the configuration says.
    pub fn open(folder: impl AsRef<Path>, dev: &Device) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join("config.json");
        let held = Some(matrix_type(dev));
        let (decoder, ends) = match gguf_file(folder)? {
            Some(file) => {
                let mut gguf = gguf::Gguf::open(&file, dev)?;
                let config: LlmConfig = if path.is_file() {
                    json(&path)?
                } else {
                    gguf.config()?
                };
                let shape = config.clone();
                let mut source = |name: &str, dims: &[usize]| gguf.tensor(name, dims, &shape);
                let ends = config.eos_token_id.clone();
                (Decoder::new(config, &file, &mut source, held)?, ends)
            }
            None => {
                let config: LlmConfig = json(&path)?;
                config.check(&path)?;
                let mut weights = Weights::open(folder, dev)?;
                // Some exporters leave the outermost module out.
                weights.choose_prefix(&["", "language_model."], "model.embed_tokens.weight");
                let ends = config.eos_token_id.clone();
                let mut source = |name: &str, dims: &[usize]| weights.get(name, dims);
                (Decoder::new(config, &path, &mut source, held)?, ends)
            }
        };
        let words = Words::open(folder, decoder.config().vocab_size)?;
        let ends = ends.map_or_else(Vec::new, |e| e.ids().to_vec());
        let rows = decoder.config().vocab_size as u32;
        if ends.is_empty() || ends.iter().any(|&e| e >= rows) {
            return Err(Error::encoder(
                &path,
                "eos_token_id is missing or beyond the vocabulary; answers need an end",
            ));
        }
        Ok(Self {
            decoder,
            words,
            ends,
        })
    }

    /// Continues a prompt with the likeliest token each time, until an end or `most` tokens.
    ///
    /// # Errors
    /// A prompt beyond the context.
    pub fn greedy(&self, prompt: &[u32], most: usize) -> Result<Vec<u32>> {
        let embeds = self.decoder.embed(prompt)?;
        let (hidden, kv) =
            self.decoder
                .forward(&embeds, &Segments::new([prompt.len()]), None, None)?;
        let last = hidden.narrow(0, prompt.len().saturating_sub(1), 1)?;
        self.greedy_after(kv, &last, most, |_, logits| best(logits))
    }

    /// Continues the rows of `kv`, whose last state is `last`. `choose` picks a token from the
    /// scores of all, given what was written so far.
    pub(crate) fn greedy_after(
        &self,
        mut kv: Kv,
        last: &Tensor,
        most: usize,
        mut choose: impl FnMut(&[u32], &[f32]) -> Option<u32>,
    ) -> Result<Vec<u32>> {
        let mut out = Vec::new();
        let mut rows = kv.rows()?;
        let mut last = last.detach();
        while out.len() < most {
            let logits = self.decoder.logits(&last)?.flatten_all()?;
            let Some(next) = choose(&out, &logits.to_vec1::<f32>()?) else {
                break;
            };
            if self.ends.contains(&next) {
                break;
            }
            out.push(next);
            let all = 0..rows;
            let past = Past {
                kv: &kv,
                ranges: std::slice::from_ref(&all),
            };
            let embeds = self.decoder.embed(&[next])?;
            let (hidden, new) =
                self.decoder
                    .forward(&embeds, &Segments::new([1]), Some(past), None)?;
            kv = kv.then(&new)?;
            rows += 1;
            last = hidden.detach();
        }
        Ok(out)
    }
}

/// In what a device holds frozen matrices: bf16, half the memory, where it is a GPU that can; f32 on a
/// CPU, which widens half types before it multiplies.
fn matrix_type(dev: &Device) -> DType {
    let multiplies = || -> candle_core::Result<Tensor> {
        let x = Tensor::ones((2, 2), DType::F32, dev)?.to_dtype(DType::BF16)?;
        x.matmul(&x)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)
    };
    match dev.is_cuda() && multiplies().is_ok() {
        true => DType::BF16,
        false => DType::F32,
    }
}

/// The place of the largest score; the first of equals.
pub(crate) fn best(scores: &[f32]) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (at, &x) in scores.iter().enumerate() {
        if best.is_none_or(|(_, b)| x > b) {
            best = Some((at as u32, x));
        }
    }
    best.map(|(at, _)| at)
}

/// The one GGUF file of a folder, if it has no safetensors.
fn gguf_file(folder: &Path) -> Result<Option<PathBuf>> {
    if folder.join("model.safetensors").is_file()
        || folder.join("model.safetensors.index.json").is_file()
    {
        return Ok(None);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if path.extension().is_some_and(|e| e == "gguf") {
            found.push(path);
        }
    }
    if found.len() > 1 {
        return Err(Error::encoder(
            folder,
            "several GGUF files; keep the one to be used",
        ));
    }
    Ok(found.pop())
}
