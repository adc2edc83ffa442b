//! Text to tokens and back: the tokenizer of a model folder, or one trained on a data set's titles.

use std::path::Path;

use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, ModelWrapper, Tokenizer};

use crate::error::{Error, Result};

/// The token that ends an answer of a tokenizer trained here; its id is 0.
const END: &str = "<|end|>";

/// A tokenizer, and how a model wants to be asked.
#[derive(Debug, Clone)]
pub struct Words {
    tokenizer: Tokenizer,
    chat: bool,
}

impl Words {
    /// The tokenizer of a model folder.
    ///
    /// # Errors
    /// A file that is missing or malformed, or ids beyond `rows`, the rows of the weights.
    pub fn open(folder: &Path, rows: usize) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        if !path.is_file() {
            return Err(Error::encoder(
                &path,
                "the file is missing; a tokenizer in another form must be converted to it",
            ));
        }
        let tokenizer =
            Tokenizer::from_file(&path).map_err(|e| Error::encoder(&path, e.to_string()))?;
        Self::new(tokenizer, rows).map_err(|e| Error::encoder(&path, e))
    }

    /// A tokenizer from the text that [`Words::to_json`] gave.
    ///
    /// # Errors
    /// A malformed text, or ids beyond `rows`.
    pub fn from_json(json: &[u8], rows: usize) -> Result<Self> {
        let tokenizer = Tokenizer::from_bytes(json)
            .map_err(|e| Error::config(format!("the run's tokenizer cannot be read: {e}")))?;
        Self::new(tokenizer, rows).map_err(Error::config)
    }

    fn new(mut tokenizer: Tokenizer, rows: usize) -> std::result::Result<Self, String> {
        let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        if largest as usize >= rows {
            return Err(format!(
                "the tokenizer has a word with id {largest}, the weights have {rows} rows; both must be of one model"
            ));
        }
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
        let chat = ["<|im_start|>", "<|im_end|>"]
            .iter()
            .all(|t| tokenizer.token_to_id(t).is_some());
        Ok(Self { tokenizer, chat })
    }

    /// A byte-level BPE of at most `size` tokens, trained on `texts`; any text can be encoded.
    ///
    /// # Errors
    /// A size without room for all bytes.
    pub fn train<'a>(texts: impl Iterator<Item = &'a str> + Send, size: usize) -> Result<Self> {
        if size < 257 {
            return Err(Error::config(
                "a tokenizer of bytes needs at least 257 tokens",
            ));
        }
        let failed = |e: tokenizers::Error| Error::config(format!("training a tokenizer: {e}"));
        let bytes = ByteLevel::default().add_prefix_space(false);
        let mut tokenizer = Tokenizer::new(BPE::default());
        tokenizer.with_pre_tokenizer(Some(bytes));
        tokenizer.with_decoder(Some(ByteLevelDecoder::default()));
        let mut trainer = tokenizers::models::TrainerWrapper::from(
            BpeTrainerBuilder::new()
                .show_progress(false)
                .vocab_size(size)
                .min_frequency(2)
                .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
                .special_tokens(vec![AddedToken::from(END, true)])
                .build(),
        );
        let texts: Vec<&str> = texts.collect();
        tokenizer
            .train(&mut trainer, texts.into_iter())
            .map_err(failed)?;
        debug_assert!(matches!(tokenizer.get_model(), ModelWrapper::BPE(_)));
        Self::new(tokenizer, size).map_err(Error::config)
    }

    /// Its text, for a checkpoint.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let text = self.tokenizer.to_string(false);
        Ok(text
            .map_err(|e| Error::config(format!("writing a tokenizer: {e}")))?
            .into_bytes())
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of a text, without any put before or after it.
    ///
    /// # Errors
    /// A text that the tokenizer refuses.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .tokenizer
            .encode(text, false)
            .map_err(|e| Error::config(format!("the tokenizer refuses a text: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of tokens, without special ones.
    ///
    /// # Errors
    /// An id that the tokenizer does not have.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer
            .decode(ids, true)
            .map_err(|e| Error::config(format!("tokens cannot be turned into text: {e}")))
    }

    /// What a question begins and ends with: ChatML where the tokenizer has its marks.
    pub fn frame(&self) -> (&'static str, &'static str) {
        if self.chat {
            ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
        } else {
            ("", "")
        }
    }
}
