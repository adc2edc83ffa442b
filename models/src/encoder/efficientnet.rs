//! EfficientNet-Lite 0 to 4 (arXiv 1905.11946, in the form published for phones): inverted residual
//! blocks without squeeze-and-excitation, ReLU6, convolutions padded as TensorFlow pads them.
//!
//! A folder is laid out as timm's `tf_efficientnet_lite*`. Maps are `[B, H, W, C]`, so that a 1 x 1
//! convolution is one matrix product and a depthwise one runs along contiguous channels; the batch
//! norms are folded into the weights.

use std::path::Path;

use candle_core::Tensor;
use serde::Deserialize;

use super::conv::{Depthwise, add_bias, same_padding};
use super::preprocess::{Filter, Fit, Preprocess};
use super::weights::{Weights, json};
use crate::error::{Error, Result};

/// ε of the batch norms, TensorFlow's.
const EPSILON: f64 = 1e-3;

/// Channels after the first convolution, which no version scales.
const STEM: usize = 32;

/// Channels before pooling, which no version scales.
const HEAD: usize = 1280;

/// A row of blocks of the same shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stage {
    pub(super) repeats: usize,
    pub(super) kernel: usize,
    /// Of the first block; the others have 1.
    pub(super) stride: usize,
    /// Inner channels for each outer one.
    pub(super) expand: usize,
    pub(super) channels: usize,
}

const STAGES: [Stage; 7] = [
    stage(1, 3, 1, 1, 16),
    stage(2, 3, 2, 6, 24),
    stage(2, 5, 2, 6, 40),
    stage(3, 3, 2, 6, 80),
    stage(3, 5, 1, 6, 112),
    stage(4, 5, 2, 6, 192),
    stage(1, 3, 1, 6, 320),
];

const fn stage(
    repeats: usize,
    kernel: usize,
    stride: usize,
    expand: usize,
    channels: usize,
) -> Stage {
    Stage {
        repeats,
        kernel,
        stride,
        expand,
        channels,
    }
}

/// Side of the input, factor of the channels, factor of the repeats.
const VERSIONS: [(usize, f64, f64); 5] = [
    (224, 1.0, 1.0),
    (240, 1.0, 1.1),
    (260, 1.1, 1.2),
    (280, 1.2, 1.4),
    (300, 1.4, 1.8),
];

/// A version's shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LiteConfig {
    pub(super) size: usize,
    pub(super) stem: usize,
    pub(super) head: usize,
    pub(super) stages: Vec<Stage>,
}

/// `pretrained_cfg` of timm's `config.json`.
#[derive(Deserialize)]
struct Pretrained {
    input_size: Option<[usize; 3]>,
    crop_pct: Option<f64>,
    crop_mode: Option<String>,
    interpolation: Option<String>,
    mean: Option<[f64; 3]>,
    std: Option<[f64; 3]>,
}

#[derive(Deserialize)]
struct Timm {
    pretrained_cfg: Option<Pretrained>,
}

impl LiteConfig {
    /// Of timm's names.
    pub(super) fn named(architecture: &str) -> Option<Self> {
        let version = architecture.strip_prefix("tf_efficientnet_lite")?;
        let version = (0..VERSIONS.len()).find(|v| version == v.to_string())?;
        Some(Self::version(version))
    }

    fn version(version: usize) -> Self {
        let (size, width, depth) = VERSIONS[version];
        let last = STAGES.len() - 1;
        let scale = |(at, stage): (usize, Stage)| Stage {
            repeats: if at == 0 || at == last {
                stage.repeats
            } else {
                (stage.repeats as f64 * depth).ceil() as usize
            },
            channels: scaled(stage.channels, width),
            ..stage
        };
        Self {
            size,
            stem: STEM,
            head: HEAD,
            stages: STAGES.into_iter().enumerate().map(scale).collect(),
        }
    }

    /// The shorter side resized to 32 pixels more than the square that is cut from the middle, bicubic,
    /// (x - 127) / 128: the published preprocessing, where `config.json` does not say otherwise.
    pub(super) fn preprocess(&self, path: &Path) -> Result<Preprocess> {
        let mut it = Preprocess {
            size: self.size,
            resized: self.size + 32,
            fit: Fit::Shortest,
            filter: Filter::Bicubic,
            scale: 1.0 / 255.0,
            mean: [127.0 / 255.0; 3],
            std: [128.0 / 255.0; 3],
        };
        let Some(cfg) = json::<Timm>(path)?.pretrained_cfg else {
            return Ok(it);
        };
        // The network takes any side.
        if let Some([channels, height, width]) = cfg.input_size {
            if channels != 3 || height != width {
                return Err(Error::encoder(
                    path,
                    format!(
                        "input_size [{channels}, {height}, {width}] is no square of 3 channels"
                    ),
                ));
            }
            it.size = height;
            it.resized = height + 32;
        }
        if let Some(share) = cfg.crop_pct {
            if !(share > 0.0 && share <= 1.0) {
                return Err(Error::encoder(
                    path,
                    format!("crop_pct {share} is outside (0, 1]"),
                ));
            }
            it.resized = (it.size as f64 / share).floor() as usize;
        }
        it.fit = match cfg.crop_mode.as_deref() {
            None | Some("center") => Fit::Shortest,
            Some("squash") => Fit::Stretch,
            Some(other) => {
                return Err(Error::encoder(
                    path,
                    format!("crop_mode {other:?} is not known here; center and squash are"),
                ));
            }
        };
        it.filter = match cfg.interpolation.as_deref() {
            None | Some("bicubic") => Filter::Bicubic,
            Some("bilinear") => Filter::Bilinear,
            Some(other) => {
                return Err(Error::encoder(
                    path,
                    format!("interpolation {other:?} is not known here; bilinear and bicubic are"),
                ));
            }
        };
        it.mean = cfg.mean.unwrap_or(it.mean);
        it.std = cfg.std.unwrap_or(it.std);
        it.check(path)
    }
}

/// Channels in multiples of 8, never less than nine tenths of what was asked for.
fn scaled(channels: usize, factor: f64) -> usize {
    let wanted = channels as f64 * factor;
    let near = ((wanted + 4.0) as usize / 8 * 8).max(8);
    if (near as f64) < 0.9 * wanted {
        near + 8
    } else {
        near
    }
}

/// A 1 x 1 convolution with its norm.
struct Pointwise {
    /// `[in, out]`.
    weight: Tensor,
    bias: Tensor,
    relu: bool,
}

impl Pointwise {
    fn open(
        w: &Weights,
        conv: &str,
        norm: &str,
        (from, to): (usize, usize),
        relu: bool,
    ) -> Result<Self> {
        let (gain, bias) = fold(w, norm, to)?;
        let weight = w.get(&format!("{conv}.weight"), &[to, from, 1, 1])?;
        let weight = weight
            .reshape((to, from))?
            .broadcast_mul(&gain.reshape((to, 1))?)?;
        Ok(Self {
            weight: weight.t()?.contiguous()?,
            bias,
            relu,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, h, w, c) = x.dims4()?;
        let y = x.reshape((b * h * w, c))?.matmul(&self.weight)?;
        add_bias(&y, &self.bias, self.relu)?
            .reshape((b, h, w, ()))
            .map_err(Error::from)
    }
}

/// A batch norm as a factor and a bias of the convolution before it.
fn fold(w: &Weights, name: &str, channels: usize) -> Result<(Tensor, Tensor)> {
    let get = |part: &str| w.get(&format!("{name}.{part}"), &[channels]);
    let deviation = (get("running_var")? + EPSILON)?.sqrt()?;
    let gain = (get("weight")? / deviation)?;
    let bias = (get("bias")? - (get("running_mean")? * &gain)?)?;
    Ok((gain, bias))
}

/// Expansion, depthwise convolution, projection.
struct Block {
    expand: Option<Pointwise>,
    depthwise: Depthwise,
    project: Pointwise,
    skip: bool,
}

impl Block {
    fn open(w: &Weights, name: &str, from: usize, stride: usize, stage: &Stage) -> Result<Self> {
        let part = |p: &str| format!("{name}.{p}");
        let inner = from * stage.expand;
        let plain = stage.expand == 1;
        // Without an expansion timm counts norms from the depthwise convolution.
        let (norm, project, norm_last) = if plain {
            ("bn1", "conv_pw", "bn2")
        } else {
            ("bn2", "conv_pwl", "bn3")
        };
        let (gain, bias) = fold(w, &part(norm), inner)?;
        let k = stage.kernel;
        let weight = w
            .get(&part("conv_dw.weight"), &[inner, 1, k, k])?
            .reshape((inner, k * k))?
            .broadcast_mul(&gain.reshape((inner, 1))?)?;
        Ok(Self {
            expand: if plain {
                None
            } else {
                let (conv, norm) = (part("conv_pw"), part("bn1"));
                Some(Pointwise::open(w, &conv, &norm, (from, inner), true)?)
            },
            depthwise: Depthwise {
                weight: weight.t()?.contiguous()?,
                bias,
                kernel: k,
                stride,
            },
            project: Pointwise::open(
                w,
                &part(project),
                &part(norm_last),
                (inner, stage.channels),
                false,
            )?,
            skip: stride == 1 && from == stage.channels,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inner = match &self.expand {
            Some(expand) => expand.forward(x)?,
            None => x.clone(),
        };
        let y = self.project.forward(&self.depthwise.forward(&inner)?)?;
        Ok(if self.skip { (y + x)? } else { y })
    }
}

/// The network, without classifier.
pub(super) struct EfficientNet {
    /// `[stem, 3, 3, 3]`.
    stem: Tensor,
    stem_bias: Tensor,
    blocks: Vec<Block>,
    head: Pointwise,
    dim: usize,
}

impl EfficientNet {
    pub(super) fn open(config: &LiteConfig, w: &Weights) -> Result<Self> {
        let (gain, stem_bias) = fold(w, "bn1", config.stem)?;
        let stem = w
            .get("conv_stem.weight", &[config.stem, 3, 3, 3])?
            .broadcast_mul(&gain.reshape((config.stem, 1, 1, 1))?)?;
        let mut blocks = Vec::new();
        let mut channels = config.stem;
        for (at, stage) in config.stages.iter().enumerate() {
            for i in 0..stage.repeats {
                let stride = if i == 0 { stage.stride } else { 1 };
                let name = format!("blocks.{at}.{i}");
                blocks.push(Block::open(w, &name, channels, stride, stage)?);
                channels = stage.channels;
            }
        }
        Ok(Self {
            stem,
            stem_bias,
            blocks,
            head: Pointwise::open(w, "conv_head", "bn2", (channels, config.head), true)?,
            dim: config.head,
        })
    }

    /// D.
    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    /// `[B, S, S, 3]` to `[B, D]`: the mean of the last map.
    pub(super) fn pooled(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.map(x)?.mean(1)?)
    }

    /// `[B, S, S, 3]` to `[B, 1 + T, D]`: the mean of the last map, then the map by rows.
    pub(super) fn tokens(&self, x: &Tensor) -> Result<Tensor> {
        let map = self.map(x)?;
        Ok(Tensor::cat(&[&map.mean_keepdim(1)?, &map], 1)?)
    }

    /// The last map, `[B, T, D]`.
    fn map(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.permute((0, 3, 1, 2))?.contiguous()?;
        let (before, after) = same_padding(x.dim(2)?, 3, 2);
        let x = x
            .pad_with_zeros(2, before, after)?
            .pad_with_zeros(3, before, after)?
            .conv2d(&self.stem, 0, 2, 1, 1)?
            .permute((0, 2, 3, 1))?
            .contiguous()?;
        let mut x = add_bias(&x, &self.stem_bias, true)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        let x = self.head.forward(&x)?;
        let (b, h, w, d) = x.dims4()?;
        Ok(x.reshape((b, h * w, d))?)
    }
}
