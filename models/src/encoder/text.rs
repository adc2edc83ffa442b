//! Text to features: tokenizer, tower, pooling.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use tokenizers::{Tokenizer, TruncationParams};

use super::bert::{Bert, BertConfig};
use super::weights::{Weights, json};
use super::{Hidden, Output, normalize};
use crate::attention::Segments;
use crate::error::{Error, Result};
use crate::llm::config::MODEL_TYPES;
use crate::llm::{Decoder, Llm};

/// Longest text that is read, in bytes; more is beyond any tower's input.
const MAX_TEXT: usize = 32 * 1024;

/// Longest text that a language model reads unless told otherwise, in tokens.
const LLM_TOKENS: usize = 256;

/// How the states of a text's tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pooling {
    /// Their mean.
    #[default]
    Mean,
    /// The last one, which in a language model has seen all others.
    Last,
}

enum Tower {
    Bert(Bert),
    Llm(Decoder),
}

impl Tower {
    fn dim(&self) -> usize {
        match self {
            Self::Bert(t) => t.config().hidden_size,
            Self::Llm(t) => t.config().hidden_size,
        }
    }

    fn max_tokens(&self) -> usize {
        match self {
            Self::Bert(t) => t.config().max_tokens(),
            Self::Llm(t) => t.config().max_position_embeddings,
        }
    }

    fn vocabulary(&self) -> usize {
        match self {
            Self::Bert(t) => t.config().vocab_size,
            Self::Llm(t) => t.config().vocab_size,
        }
    }
}

/// A text tower with its tokenizer.
pub struct TextEncoder {
    tokenizer: Tokenizer,
    tower: Tower,
    max_tokens: usize,
    pooling: Pooling,
    /// Texts cut since the encoder was opened.
    cut: AtomicUsize,
    device: Device,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    model_type: String,
}

#[derive(Deserialize)]
struct SentenceConfig {
    max_seq_length: usize,
}

impl TextEncoder {
    /// Opens a model folder; see the [module](super) for its files.
    ///
    /// # Errors
    ///
    /// [`Error::Encoder`] or [`Error::Io`] for a file that is missing or malformed, an unknown
    /// `model_type`, a tensor that is missing or of another shape than `config.json` says, or a
    /// tokenizer with more words than the weights.
    pub fn open(folder: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join("config.json");
        let kind = json::<Kind>(&path)?.model_type;
        let bert = matches!(kind.as_str(), "bert" | "roberta" | "xlm-roberta");
        if !bert && !MODEL_TYPES.contains(&kind.as_str()) {
            return Err(Error::encoder(
                &path,
                format!(
                    "model_type {kind:?} is no text encoder known here; bert, roberta, xlm-roberta, {} are",
                    MODEL_TYPES.join(", ")
                ),
            ));
        }
        let words = folder.join("tokenizer.json");
        if !words.is_file() {
            return Err(Error::encoder(
                &words,
                "the file is missing; a tokenizer in another form must be converted to it",
            ));
        }
        let tokenizer =
            Tokenizer::from_file(&words).map_err(|e| Error::encoder(&words, e.to_string()))?;
        let (tower, mut max_tokens) = if bert {
            let config: BertConfig = json(&path)?;
            let tower = Bert::open(config, Weights::open(folder, device)?, &path)?;
            let most = tower.config().max_tokens();
            (Tower::Bert(tower), most)
        } else {
            let tower = Tower::Llm(Llm::open(folder, device)?.decoder);
            let most = tower.max_tokens().min(LLM_TOKENS);
            (tower, most)
        };
        let sentence = folder.join("sentence_bert_config.json");
        if sentence.is_file() {
            // Another tool's file: what cannot be read there limits nothing.
            if let Ok(s) = json::<SentenceConfig>(&sentence) {
                max_tokens = max_tokens.min(s.max_seq_length);
            }
        }
        Self::new(tokenizer, tower, max_tokens, device).map_err(|e| Error::encoder(&words, e))
    }

    fn new(
        mut tokenizer: Tokenizer,
        tower: Tower,
        max_tokens: usize,
        device: &Device,
    ) -> std::result::Result<Self, String> {
        // Ids need not be dense: what counts is the largest.
        let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        let rows = tower.vocabulary();
        if largest as usize >= rows {
            return Err(format!(
                "the tokenizer has a word with id {largest}, the weights have {rows} rows; both must be of one model"
            ));
        }
        tokenizer.with_padding(None);
        let mut encoder = Self {
            tokenizer,
            tower,
            max_tokens,
            pooling: Pooling::Mean,
            cut: AtomicUsize::new(0),
            device: device.clone(),
        };
        encoder.truncate(max_tokens)?;
        Ok(encoder)
    }

    fn truncate(&mut self, tokens: usize) -> std::result::Result<(), String> {
        let special = self
            .tokenizer
            .encode("", true)
            .map_err(|e| e.to_string())?
            .len();
        if tokens <= special {
            return Err(format!(
                "an input of {tokens} tokens has no room beside {special} special ones"
            ));
        }
        self.tokenizer
            .with_truncation(Some(TruncationParams {
                max_length: tokens,
                ..TruncationParams::default()
            }))
            .map_err(|e| e.to_string())?;
        self.max_tokens = tokens;
        Ok(())
    }

    /// Cuts inputs to `tokens`, special ones included.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if that is more than the tower takes or leaves no room for a word.
    pub fn set_max_tokens(&mut self, tokens: usize) -> Result<()> {
        let most = self.tower.max_tokens();
        if tokens > most {
            return Err(Error::config(format!(
                "{tokens} tokens, but the encoder takes at most {most}"
            )));
        }
        self.truncate(tokens).map_err(Error::config)
    }

    /// The longest input, in tokens with the special ones.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Texts that were longer and lost their end, since the encoder was opened.
    pub fn texts_cut(&self) -> usize {
        self.cut.load(Ordering::Relaxed)
    }

    /// How single vectors are made; the mean unless set.
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// Sets how single vectors are made.
    pub fn set_pooling(&mut self, pooling: Pooling) {
        self.pooling = pooling;
    }

    /// D.
    pub fn dim(&self) -> usize {
        self.tower.dim()
    }

    /// Features of a batch.
    ///
    /// # Shapes
    ///
    /// `[B, D]`, or `[B, n, D]` with [`Output::Tokens`].
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if the tokenizer refuses a text, [`Error::Candle`] if the device does.
    pub fn encode(&self, texts: &[&str], output: Output) -> Result<Tensor> {
        let hidden = self.hidden(texts)?;
        match output {
            Output::Pooled => normalize(&match self.pooling {
                Pooling::Mean => hidden.mean()?,
                Pooling::Last => hidden.last()?,
            }),
            Output::Tokens(n) => hidden.tokens(n),
        }
    }

    fn hidden(&self, texts: &[&str]) -> Result<Hidden> {
        let ids = texts
            .iter()
            .map(|text| {
                let read = head(text);
                let encoding = self
                    .tokenizer
                    .encode(read, true)
                    .map_err(|e| Error::config(format!("the tokenizer refuses a text: {e}")))?;
                if read.len() < text.len() || !encoding.get_overflowing().is_empty() {
                    self.cut.fetch_add(1, Ordering::Relaxed);
                }
                Ok(encoding.get_ids().to_vec())
            })
            .collect::<Result<Vec<_>>>()?;
        match &self.tower {
            Tower::Bert(tower) => tower.forward(&ids, &self.device),
            Tower::Llm(tower) => causal(tower, &ids, &self.device),
        }
    }
}

/// States of a language model, computed without padding and then laid out with it. A text without
/// a token has none.
fn causal(tower: &Decoder, ids: &[Vec<u32>], dev: &Device) -> Result<Hidden> {
    let longest = ids.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let flat = ids.concat();
    let mut place = vec![0u32; ids.len() * longest];
    let mut mask = vec![0f32; ids.len() * longest];
    let mut next = 0u32;
    for (row, ids) in ids.iter().enumerate() {
        for t in 0..ids.len() {
            place[row * longest + t] = next;
            mask[row * longest + t] = 1.0;
            next += 1;
        }
    }
    let d = tower.config().hidden_size;
    let shape = (ids.len(), longest, 1);
    let mask = Tensor::from_vec(mask, shape, dev)?;
    if flat.is_empty() {
        let states = Tensor::zeros((ids.len(), longest, d), DType::F32, dev)?;
        return Ok(Hidden { states, mask });
    }
    let segments = Segments::new(ids.iter().map(Vec::len));
    let (states, _) = tower.forward(&tower.embed(&flat)?, &segments, None, None)?;
    let place = Tensor::from_vec(place, ids.len() * longest, dev)?;
    let states = states.index_select(&place, 0)?;
    let states = states.reshape((ids.len(), longest, d))?;
    Ok(Hidden { states, mask })
}

/// The beginning of a text, cut between letters.
fn head(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
