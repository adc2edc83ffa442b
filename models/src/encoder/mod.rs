//! Pretrained encoders, inference only: text and images to features.
//!
//! An encoder is an ordinary folder as the model hubs lay it out: `config.json`,
//! `model.safetensors` (or shards with `model.safetensors.index.json`), for text `tokenizer.json`,
//! for images optionally `preprocessor_config.json`. Nothing is fetched from anywhere.
//!
//! | `config.json` | tower | tokens | pooled |
//! |---|---|---|---|
//! | `model_type` `bert`, `roberta`, `xlm-roberta` | [`bert`] | last hidden states | their mean, L2-normalised |
//! | `model_type` `llama`, `mistral`, `qwen2`, `qwen3` | [`crate::llm`] | last hidden states after the final norm | their mean or the last of them, L2-normalised |
//! | `model_type` `clip`, `clip_vision_model` | CLIP's for images | class token and patches after the last block | class token after the final norm |
//! | `model_type` `vit` | ViT | class token and patches after the final norm | the class token of them |
//! | `architecture` `tf_efficientnet_lite0` … `4` (timm's) | EfficientNet-Lite | pooled one, then the last map by rows | mean of the last map |
//!
//! Vectors of pictures are as the tower gives them, not normalised.
//!
//! Nothing here is trained, so the fused operations without a backward are used throughout.

pub mod bert;
mod block;
mod conv;
mod efficientnet;
mod image;
pub mod picture;
pub mod preprocess;
pub mod text;
mod vit;
pub(crate) mod weights;

#[cfg(test)]
pub(crate) mod tests;

use candle_core::Tensor;

use crate::error::Result;

pub use image::{ImageEncoder, Pixels};
pub use text::{Pooling, TextEncoder};

/// An encoder of one modality.
pub enum Encoder {
    /// Of text.
    Text(Box<TextEncoder>),
    /// Of pictures.
    Image(Box<ImageEncoder>),
}

impl Encoder {
    /// D.
    pub fn dim(&self) -> usize {
        match self {
            Self::Text(e) => e.dim(),
            Self::Image(e) => e.dim(),
        }
    }

    /// How single vectors are made; images have one way only.
    pub fn pooling(&self) -> Option<Pooling> {
        match self {
            Self::Text(e) => Some(e.pooling()),
            Self::Image(_) => None,
        }
    }

    /// The longest text, in tokens; images have none.
    pub fn max_tokens(&self) -> Option<usize> {
        match self {
            Self::Text(e) => Some(e.max_tokens()),
            Self::Image(_) => None,
        }
    }
}

/// What an encoder gives for an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// One vector.
    Pooled,
    /// Exactly this many vectors; what is beyond the input is zero.
    Tokens(usize),
}

/// States of the tokens of a batch.
#[derive(Debug, Clone)]
struct Hidden {
    /// `[B, T, D]`.
    states: Tensor,
    /// `[B, T, 1]`, 1 where there is a token.
    mask: Tensor,
}

impl Hidden {
    /// `[B, D]`: mean over the tokens that exist.
    fn mean(&self) -> Result<Tensor> {
        let sum = self.states.broadcast_mul(&self.mask)?.sum(1)?;
        Ok(sum.broadcast_div(&self.mask.sum(1)?.maximum(1f32)?)?)
    }

    /// `[B, D]`: the state of the last token.
    fn last(&self) -> Result<Tensor> {
        let (b, t, d) = self.states.dims3()?;
        let counts = self.mask.sum(1)?.flatten_all()?.to_vec1::<f32>()?;
        let at: Vec<u32> = counts
            .iter()
            .enumerate()
            .map(|(row, &n)| (row * t + (n as usize).saturating_sub(1)) as u32)
            .collect();
        let flat = self.states.broadcast_mul(&self.mask)?.reshape((b * t, d))?;
        Ok(flat.index_select(&Tensor::from_vec(at, b, flat.device())?, 0)?)
    }

    /// `[B, n, D]`: cut or filled with zeros to `n` tokens.
    fn tokens(&self, n: usize) -> Result<Tensor> {
        let kept = self.states.broadcast_mul(&self.mask)?;
        let have = kept.dim(1)?;
        Ok(if have >= n {
            kept.narrow(1, 0, n)?
        } else {
            kept.pad_with_zeros(1, 0, n - have)?
        })
    }
}

/// Rows of unit length; a zero row stays zero.
fn normalize(x: &Tensor) -> Result<Tensor> {
    let length = (x.sqr()?.sum_keepdim(1)?.sqrt()? + 1e-12)?;
    Ok(x.broadcast_div(&length)?)
}
