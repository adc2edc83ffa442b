//! Parts that transformers share, with weights in the layout of PyTorch.

use candle_core::{D, Tensor};
use candle_nn::ops;
use serde::Deserialize;

use super::weights::Weights;
use crate::error::{Error, Result};

/// `x Wᵀ + b`.
pub(super) struct Dense {
    /// `[in, out]`.
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Dense {
    /// Weight `[fan_out, fan_in]` and bias.
    pub(super) fn open(w: &Weights, name: &str, fan_in: usize, fan_out: usize) -> Result<Self> {
        let bias = Some(w.get(&format!("{name}.bias"), &[fan_out])?);
        Ok(Self {
            bias,
            ..Self::open_plain(w, name, fan_in, fan_out)?
        })
    }

    /// Weight alone.
    fn open_plain(w: &Weights, name: &str, fan_in: usize, fan_out: usize) -> Result<Self> {
        let weight = w.get(&format!("{name}.weight"), &[fan_out, fan_in])?;
        Ok(Self {
            weight: weight.t()?.contiguous()?,
            bias: None,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut dims = x.dims().to_vec();
        let fan_in = dims.pop().unwrap_or(0);
        let mut y = x.reshape(((), fan_in))?.matmul(&self.weight)?;
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(bias)?;
        }
        dims.push(self.weight.dim(1)?);
        Ok(y.reshape(dims)?)
    }
}

/// Layer normalisation over the last dimension.
pub(super) struct Norm {
    gain: Tensor,
    bias: Tensor,
    epsilon: f32,
}

impl Norm {
    /// `weight` and `bias`, or `gamma` and `beta` as early exporters called them.
    pub(super) fn open(w: &Weights, name: &str, width: usize, epsilon: f64) -> Result<Self> {
        let early = w.has(&format!("{name}.gamma"));
        let (gain, bias) = if early {
            ("gamma", "beta")
        } else {
            ("weight", "bias")
        };
        Ok(Self {
            gain: w.get(&format!("{name}.{gain}"), &[width])?,
            bias: w.get(&format!("{name}.{bias}"), &[width])?,
            epsilon: epsilon as f32,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::layer_norm(
            &x.contiguous()?,
            &self.gain,
            &self.bias,
            self.epsilon,
        )?)
    }
}

/// The nonlinearity of a feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Activation {
    /// With the error function.
    Gelu,
    /// The tanh approximation.
    #[serde(alias = "gelu_pytorch_tanh")]
    GeluNew,
    /// x·σ(1.702 x).
    QuickGelu,
    /// max(x, 0).
    Relu,
}

impl Activation {
    pub(super) fn forward(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Gelu => x.gelu_erf()?,
            Self::GeluNew => x.gelu()?,
            Self::QuickGelu => (x * ops::sigmoid(&(x * 1.702)?)?)?,
            Self::Relu => x.relu()?,
        })
    }
}

/// Names of the four projections of an attention.
pub(super) struct AttentionNames<'a> {
    pub(super) query: &'a str,
    pub(super) key: &'a str,
    pub(super) value: &'a str,
    pub(super) out: &'a str,
}

/// Multi-head attention of all positions to all.
pub(super) struct Attention {
    query: Dense,
    key: Dense,
    value: Dense,
    out: Dense,
    heads: usize,
}

impl Attention {
    /// `biased` is said of queries, keys and values.
    pub(super) fn open(
        w: &Weights,
        prefix: &str,
        names: &AttentionNames<'_>,
        width: usize,
        heads: usize,
        biased: bool,
    ) -> Result<Self> {
        let open = if biased {
            Dense::open
        } else {
            Dense::open_plain
        };
        let inner = |name: &str| open(w, &format!("{prefix}.{name}"), width, width);
        Ok(Self {
            query: inner(names.query)?,
            key: inner(names.key)?,
            value: inner(names.value)?,
            out: Dense::open(w, &format!("{prefix}.{}", names.out), width, width)?,
            heads,
        })
    }

    /// `x` is `[B, T, D]`; `hidden`, `[B, 1, 1, T]`, is added to the logits.
    pub(super) fn forward(&self, x: &Tensor, hidden: Option<&Tensor>) -> Result<Tensor> {
        let (b, t, d) = x.dims3()?;
        let size = d / self.heads;
        let split = |dense: &Dense| -> Result<Tensor> {
            let y = dense.forward(x)?.reshape((b, t, self.heads, size))?;
            Ok(y.transpose(1, 2)?.contiguous()?)
        };
        let (q, k, v) = (split(&self.query)?, split(&self.key)?, split(&self.value)?);
        let mut logits = (q.matmul(&k.t()?)? * (1.0 / (size as f64).sqrt()))?;
        if let Some(hidden) = hidden {
            logits = logits.broadcast_add(hidden)?;
        }
        let y = ops::softmax_last_dim(&logits)?.matmul(&v)?;
        self.out.forward(&y.transpose(1, 2)?.reshape((b, t, d))?)
    }
}

/// Checks that a width splits into heads.
pub(super) fn check_heads(path: &std::path::Path, width: usize, heads: usize) -> Result<()> {
    if heads == 0 || width == 0 || !width.is_multiple_of(heads) {
        return Err(Error::encoder(
            path,
            format!("hidden_size {width} does not split into {heads} attention heads"),
        ));
    }
    Ok(())
}

/// `[B, 1, 1, T]`: 0 where there is a token, very negative where not.
pub(super) fn hide(mask: &Tensor) -> Result<Tensor> {
    let (b, t, _) = mask.dims3()?;
    Ok(((mask.reshape((b, 1, 1, t))? - 1.0)? * 1e9)?)
}

/// Rows of a table: `ids` of `[B, T]` to `[B, T, D]`.
pub(super) fn embed(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (b, t) = ids.dims2()?;
    let rows = table.index_select(&ids.flatten_all()?, 0)?;
    let d = rows.dim(D::Minus1)?;
    Ok(rows.reshape((b, t, d))?)
}
