//! Text to features: tokenizer, tower, pooling.

use std::path::Path;

use candle_core::{Device, Tensor};
use serde::Deserialize;
use tokenizers::{Tokenizer, TruncationParams};

use super::bert::{Bert, BertConfig};
use super::weights::{Weights, json};
use super::{Hidden, Output, normalize};
use crate::error::{Error, Result};

/// Longest text that is read, in bytes; more is beyond any tower's input.
const MAX_TEXT: usize = 32 * 1024;

/// A text tower with its tokenizer.
pub struct TextEncoder {
    tokenizer: Tokenizer,
    tower: Bert,
    max_tokens: usize,
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
        if !matches!(kind.as_str(), "bert" | "roberta" | "xlm-roberta") {
            return Err(Error::encoder(
                &path,
                format!(
                    "model_type {kind:?} is no text encoder known here; bert, roberta and xlm-roberta are"
                ),
            ));
        }
        let config: BertConfig = json(&path)?;
        let words = folder.join("tokenizer.json");
        if !words.is_file() {
            return Err(Error::encoder(
                &words,
                "the file is missing; a tokenizer in another form must be converted to it",
            ));
        }
        let tokenizer =
            Tokenizer::from_file(&words).map_err(|e| Error::encoder(&words, e.to_string()))?;
        let tower = Bert::open(config, Weights::open(folder, device)?, &path)?;
        let sentence = folder.join("sentence_bert_config.json");
        let mut max_tokens = tower.config().max_tokens();
        if sentence.is_file() {
            // Another tool's file: what cannot be read there limits nothing.
            if let Ok(s) = json::<SentenceConfig>(&sentence) {
                max_tokens = max_tokens.min(s.max_seq_length);
            }
        }
        Self::new(tokenizer, tower, max_tokens, device).map_err(|e| Error::encoder(&words, e))
    }

    pub(super) fn new(
        mut tokenizer: Tokenizer,
        tower: Bert,
        max_tokens: usize,
        device: &Device,
    ) -> std::result::Result<Self, String> {
        // Ids need not be dense: what counts is the largest.
        let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        let rows = tower.config().vocab_size;
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
        let most = self.tower.config().max_tokens();
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

    /// D.
    pub fn dim(&self) -> usize {
        self.tower.config().hidden_size
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
            Output::Pooled => normalize(&hidden.mean()?),
            Output::Tokens(n) => hidden.tokens(n),
        }
    }

    fn hidden(&self, texts: &[&str]) -> Result<Hidden> {
        let ids = texts
            .iter()
            .map(|text| {
                let encoding = self
                    .tokenizer
                    .encode(head(text), true)
                    .map_err(|e| Error::config(format!("the tokenizer refuses a text: {e}")))?;
                Ok(encoding.get_ids().to_vec())
            })
            .collect::<Result<Vec<_>>>()?;
        self.tower.forward(&ids, &self.device)
    }
}

/// The beginning of a text, cut between letters.
fn head(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
