//! Vision transformers: ViT (arXiv 2010.11929) and the image tower of CLIP (arXiv 2103.00020).
//!
//! Both are pre-norm transformers over a class token and patches. CLIP has a norm before the
//! blocks, no bias in the patches, and gives its tokens as the last block leaves them, with the
//! final norm over the class token only; ViT norms all tokens. One vector is the normed class token
//! in both: neither CLIP's projection into the space of texts nor ViT's pooler, which most
//! checkpoints lack, is applied.

use std::path::Path;

use candle_core::Tensor;
use serde::Deserialize;
use serde_json::Value;

use super::block::{Activation, Attention, AttentionNames, Dense, Norm, check_heads};
use super::preprocess::{Filter, Fit, Preprocess};
use super::weights::{Weights, json};
use crate::error::{Error, Result};

/// Largest side of an input, in pixels.
const MAX_SIDE: usize = 2048;

/// What of `config.json` matters.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct VitConfig {
    /// D.
    #[serde(default = "base_width")]
    hidden_size: usize,
    /// Width of the feed-forward part.
    #[serde(default = "base_ffn")]
    intermediate_size: usize,
    /// Blocks.
    #[serde(default = "base_depth")]
    num_hidden_layers: usize,
    /// Heads of a block; they divide D.
    #[serde(default = "base_depth")]
    num_attention_heads: usize,
    /// Side of the input, in pixels.
    #[serde(default = "base_image")]
    image_size: usize,
    /// Side of a patch, in pixels.
    patch_size: Option<usize>,
    /// ε of the layer norms.
    layer_norm_eps: Option<f64>,
    hidden_act: Option<Activation>,
    /// Of queries, keys and values; ViT only.
    #[serde(default = "yes")]
    qkv_bias: bool,
    #[serde(skip)]
    clip: bool,
}

fn base_width() -> usize {
    768
}

fn base_ffn() -> usize {
    3072
}

fn base_depth() -> usize {
    12
}

fn base_image() -> usize {
    224
}

fn yes() -> bool {
    true
}

impl VitConfig {
    /// Reads `config.json` of a ViT, of CLIP's image tower, or of the whole of CLIP, where the
    /// tower's part is `vision_config`.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let mut value: Value = json(path)?;
        let clip = value["model_type"] != "vit";
        if let Some(part) = value.get_mut("vision_config") {
            value = part.take();
        }
        let mut config: Self =
            serde_json::from_value(value).map_err(|e| Error::encoder(path, e.to_string()))?;
        config.clip = clip;
        check_heads(path, config.hidden_size, config.num_attention_heads)?;
        let (image, patch) = (config.image_size, config.patch());
        if patch == 0 || patch > image || image > MAX_SIDE {
            return Err(Error::encoder(
                path,
                format!(
                    "patch_size {patch} and image_size {image} do not fit; images up to {MAX_SIDE} are read"
                ),
            ));
        }
        Ok(config)
    }

    /// Files leave out what is the default of the class that wrote them.
    fn patch(&self) -> usize {
        self.patch_size.unwrap_or(if self.clip { 32 } else { 16 })
    }

    fn epsilon(&self) -> f64 {
        let default = if self.clip { 1e-5 } else { 1e-12 };
        self.layer_norm_eps.unwrap_or(default)
    }

    fn activation(&self) -> Activation {
        self.hidden_act.unwrap_or(if self.clip {
            Activation::QuickGelu
        } else {
            Activation::Gelu
        })
    }

    /// Patches along a side.
    fn grid(&self) -> usize {
        self.image_size / self.patch()
    }

    /// Where no file says otherwise: CLIP keeps the shape and has statistics of its own.
    pub(super) fn preprocess(&self) -> Preprocess {
        let (fit, filter, mean, std) = if self.clip {
            (
                Fit::Shortest,
                Filter::Bicubic,
                [0.481_454_66, 0.457_827_5, 0.408_210_73],
                [0.268_629_54, 0.261_302_58, 0.275_777_11],
            )
        } else {
            (Fit::Stretch, Filter::Bilinear, [0.5; 3], [0.5; 3])
        };
        Preprocess {
            size: self.image_size,
            resized: self.image_size,
            fit,
            filter,
            scale: 1.0 / 255.0,
            mean,
            std,
        }
    }
}

struct Layer {
    norm_before: Norm,
    attention: Attention,
    norm_after: Norm,
    up: Dense,
    down: Dense,
}

/// The network, without pooler, projection and classifier.
pub(super) struct Vit {
    config: VitConfig,
    /// `[3 P², D]`.
    patches: Tensor,
    /// `[D]`, of the patches.
    bias: Option<Tensor>,
    /// `[1, 1, D]`.
    class: Tensor,
    /// `[1, 1 + patches, D]`.
    positions: Tensor,
    norm_first: Option<Norm>,
    layers: Vec<Layer>,
    norm_last: Norm,
}

/// Names of tensors, which differ by exporter.
struct Names {
    patches: &'static str,
    class: &'static str,
    positions: &'static str,
    layers: &'static str,
    attention: &'static str,
    projections: AttentionNames<'static>,
    norm_before: &'static str,
    norm_after: &'static str,
    up: &'static str,
    down: &'static str,
    norm_last: &'static str,
}

const CLIP: Names = Names {
    patches: "embeddings.patch_embedding",
    class: "embeddings.class_embedding",
    positions: "embeddings.position_embedding.weight",
    layers: "encoder.layers",
    attention: "self_attn",
    projections: AttentionNames {
        query: "q_proj",
        key: "k_proj",
        value: "v_proj",
        out: "out_proj",
    },
    norm_before: "layer_norm1",
    norm_after: "layer_norm2",
    up: "mlp.fc1",
    down: "mlp.fc2",
    norm_last: "post_layernorm",
};

const VIT: Names = Names {
    patches: "embeddings.patch_embeddings.projection",
    class: "embeddings.cls_token",
    positions: "embeddings.position_embeddings",
    layers: "encoder.layer",
    attention: "attention",
    projections: AttentionNames {
        query: "attention.query",
        key: "attention.key",
        value: "attention.value",
        out: "output.dense",
    },
    norm_before: "layernorm_before",
    norm_after: "layernorm_after",
    up: "intermediate.dense",
    down: "output.dense",
    norm_last: "layernorm",
};

impl Vit {
    pub(super) fn open(config: VitConfig, mut w: Weights, path: &Path) -> Result<Self> {
        let names = if config.clip { CLIP } else { VIT };
        w.choose_prefix(&["vision_model.", "vit.", ""], names.class);
        let (d, ffn, patch) = (config.hidden_size, config.intermediate_size, config.patch());
        let eps = config.epsilon();
        let tokens = 1 + config.grid() * config.grid();
        let (class_shape, position_shape): (&[usize], &[usize]) = if config.clip {
            (&[d], &[tokens, d])
        } else {
            (&[1, 1, d], &[1, tokens, d])
        };
        let layers = (0..config.num_hidden_layers)
            .map(|i| {
                let p = format!("{}.{i}", names.layers);
                let name = |part: &str| format!("{p}.{part}");
                Ok(Layer {
                    norm_before: Norm::open(&w, &name(names.norm_before), d, eps)?,
                    attention: Attention::open(
                        &w,
                        &name(names.attention),
                        &names.projections,
                        d,
                        config.num_attention_heads,
                        config.qkv_bias,
                    )?,
                    norm_after: Norm::open(&w, &name(names.norm_after), d, eps)?,
                    up: Dense::open(&w, &name(names.up), d, ffn)?,
                    down: Dense::open(&w, &name(names.down), ffn, d)?,
                })
            })
            .collect::<Result<_>>()?;
        let patches = w.get(&format!("{}.weight", names.patches), &[d, 3, patch, patch])?;
        let bias = if config.clip {
            None
        } else {
            Some(w.get(&format!("{}.bias", names.patches), &[d])?)
        };
        let depth = config.num_hidden_layers;
        if w.has(&format!(
            "{}.{depth}.{}.weight",
            names.layers, names.norm_before
        )) {
            return Err(Error::encoder(
                path,
                format!("num_hidden_layers is {depth}, but the weights have more"),
            ));
        }
        Ok(Self {
            patches: patches.reshape((d, ()))?.t()?.contiguous()?,
            bias,
            class: w.get(names.class, class_shape)?.reshape((1, 1, d))?,
            positions: w
                .get(names.positions, position_shape)?
                .reshape((1, tokens, d))?,
            norm_first: if config.clip {
                // Spelled so in every checkpoint.
                Some(Norm::open(&w, "pre_layrnorm", d, eps)?)
            } else {
                None
            },
            layers,
            norm_last: Norm::open(&w, names.norm_last, d, eps)?,
            config,
        })
    }

    /// D.
    pub(super) fn dim(&self) -> usize {
        self.config.hidden_size
    }

    /// `[B, S, S, 3]` to the normed class token, `[B, D]`.
    pub(super) fn pooled(&self, x: &Tensor) -> Result<Tensor> {
        let class = self.hidden(x)?.narrow(1, 0, 1)?;
        Ok(self.norm_last.forward(&class)?.squeeze(1)?)
    }

    /// `[B, S, S, 3]` to `[B, 1 + patches, D]`, the class token first.
    pub(super) fn tokens(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = self.hidden(x)?;
        if self.config.clip {
            Ok(hidden)
        } else {
            self.norm_last.forward(&hidden)
        }
    }

    /// States after the last block.
    fn hidden(&self, x: &Tensor) -> Result<Tensor> {
        let b = x.dim(0)?;
        let (n, p, d) = (self.config.grid(), self.config.patch(), self.dim());
        let x = x
            .narrow(1, 0, n * p)?
            .narrow(2, 0, n * p)?
            .reshape((b, n, p, n, p * 3))?;
        // Rows of a patch come together, then its columns' channels in the order of the weights.
        let x = x
            .transpose(2, 3)?
            .reshape((b * n * n, p * p, 3))?
            .transpose(1, 2)?
            .reshape((b * n * n, 3 * p * p))?;
        let mut x = x.matmul(&self.patches)?;
        if let Some(bias) = &self.bias {
            x = x.broadcast_add(bias)?;
        }
        let x = x.reshape((b, n * n, d))?;
        let class = self.class.expand((b, 1, d))?;
        let mut x = Tensor::cat(&[&class, &x], 1)?.broadcast_add(&self.positions)?;
        if let Some(norm) = &self.norm_first {
            x = norm.forward(&x)?;
        }
        let activation = self.config.activation();
        for layer in &self.layers {
            let y = layer.norm_before.forward(&x)?;
            x = (x + layer.attention.forward(&y, None)?)?;
            let y = layer.norm_after.forward(&x)?;
            let y = activation.forward(&layer.up.forward(&y)?)?;
            x = (x + layer.down.forward(&y)?)?;
        }
        Ok(x)
    }
}
