//! The post-norm transformer block that item encoder and user encoders share:
//!
//! `y = LN(x + drop(attention(x) W_o))`, `z = LN(y + drop(relu(y W₁ + b₁) W₂ + b₂))`,
//!
//! with queries, keys, values and `W_o` without bias, hidden width 4D and ε = 1e-6.

use candle_core::{D, Device, Tensor};

use crate::attention::{Segments, causal_attention};
use crate::error::Result;
use crate::layer::{LayerNorm, Linear, dropout};
use crate::params::Params;
use crate::rng::{self, Purpose, Stream};

/// How matrices start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// Weights and biases uniform in ±1/√fan_in: the item encoder.
    Uniform,
    /// Normal with variance 2/(fan_in + fan_out), biases zero: the user encoders.
    XavierNormal,
}

/// Shape and noise of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) dim: usize,
    pub(super) heads: usize,
    pub(super) dropout: f64,
}

#[derive(Debug)]
pub(super) struct Block {
    shape: Shape,
    query: Tensor,
    /// Keys and values side by side, `[D, 2D]`.
    key_value: Tensor,
    out: Tensor,
    norm1: LayerNorm,
    up: Linear,
    down: Linear,
    norm2: LayerNorm,
}

/// Xavier-normal matrix `[fan_in, fan_out]` with a stream of its own.
pub(super) fn xavier_normal(
    name: &str,
    fan_in: usize,
    fan_out: usize,
    seed: u64,
    dev: &Device,
) -> Result<Tensor> {
    let mut r = rng::stream(seed, Purpose::Init, &[rng::name_hash(name)]);
    let std = (2.0 / (fan_in + fan_out) as f64).sqrt();
    rng::normal(&mut r, (fan_in, fan_out), std, dev)
}

impl Block {
    pub(super) fn new(
        params: &mut Params,
        name: &str,
        shape: Shape,
        start: Start,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        let d = shape.dim;
        let full = |part: &str| format!("{name}.{part}");
        let square = |part: &str| -> Result<Tensor> {
            let name = full(part);
            match start {
                Start::XavierNormal => xavier_normal(&name, d, d, seed, dev),
                Start::Uniform => {
                    let mut r = rng::stream(seed, Purpose::Init, &[rng::name_hash(&name)]);
                    rng::uniform(&mut r, (d, d), 1.0 / (d as f64).sqrt(), dev)
                }
            }
        };
        let key_value = Tensor::cat(&[square("key")?, square("value")?], 1)?;
        let mut linear = |part: &str, a: usize, b: usize| -> Result<Linear> {
            let name = full(part);
            let made = Linear::uniform(params, &name, a, b, seed, dev)?;
            if start == Start::XavierNormal {
                let w = xavier_normal(&name, a, b, seed, dev)?;
                params.set(&format!("{name}.weight"), &w)?;
                params.set(&format!("{name}.bias"), &made.bias.zeros_like()?)?;
            }
            Ok(made)
        };
        let (up, down) = (linear("up", d, 4 * d)?, linear("down", 4 * d, d)?);
        Ok(Self {
            shape,
            query: params.add(full("query"), &square("query")?)?,
            key_value: params.add(full("key_value"), &key_value)?,
            out: params.add(full("out"), &square("out")?)?,
            norm1: LayerNorm::with_epsilon(params, &full("norm1"), d, 1e-6, dev)?,
            up,
            down,
            norm2: LayerNorm::with_epsilon(params, &full("norm2"), d, 1e-6, dev)?,
        })
    }

    /// Causal attention within each of the packed sequences `[R, D]`.
    pub(super) fn forward_causal(
        &self,
        x: &Tensor,
        segments: &Segments,
        mut noise: Option<&mut Stream>,
    ) -> Result<Tensor> {
        let d = self.shape.dim;
        let kv = x.matmul(&self.key_value)?;
        let (k, v) = (
            kv.narrow(1, 0, d)?.contiguous()?,
            kv.narrow(1, d, d)?.contiguous()?,
        );
        let q = x.matmul(&self.query)?;
        let mixed = causal_attention(
            (&q, &k, &v),
            segments,
            self.shape.heads,
            self.shape.dropout,
            noise.as_deref_mut(),
        )?;
        self.finish(x, &mixed, noise)
    }

    /// Attention among the tokens of each item, with an additive mask.
    ///
    /// With `rows`, only those tokens are computed, from keys and values of all: the same numbers as
    /// the full block gives in these rows.
    ///
    /// # Shapes
    /// `x` `[n, T, D]`, `mask` `[n or 1, T, T]` (query, key); the result is `[n, T or rows, D]`.
    pub(super) fn forward_masked(
        &self,
        x: &Tensor,
        mask: &Tensor,
        rows: Option<&Tensor>,
        mut noise: Option<&mut Stream>,
    ) -> Result<Tensor> {
        let (n, tokens, d) = x.dims3()?;
        let h = self.shape.heads;
        let (asked, mask) = match rows {
            Some(rows) => (x.index_select(rows, 1)?, mask.index_select(rows, 1)?),
            None => (x.clone(), mask.clone()),
        };
        let count = asked.dim(1)?;
        let split = |t: &Tensor, tokens: usize| -> Result<Tensor> {
            Ok(t.reshape((n, tokens, h, d / h))?
                .transpose(1, 2)?
                .contiguous()?)
        };
        let kv = x.reshape((n * tokens, d))?.matmul(&self.key_value)?;
        let k = split(&kv.narrow(1, 0, d)?.contiguous()?, tokens)?;
        let v = split(&kv.narrow(1, d, d)?.contiguous()?, tokens)?;
        let q = split(&asked.reshape((n * count, d))?.matmul(&self.query)?, count)?;
        let scores = (q.matmul(&k.t()?.contiguous()?)? * ((d / h) as f64).powf(-0.5))?;
        let scores = scores.broadcast_add(&mask.unsqueeze(1)?)?;
        let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
        let weights = dropout(&weights, self.shape.dropout, noise.as_deref_mut())?;
        let mixed = weights
            .matmul(&v)?
            .transpose(1, 2)?
            .contiguous()?
            .reshape((n * count, d))?;
        let y = self.finish(&asked.reshape((n * count, d))?, &mixed, noise)?;
        Ok(y.reshape((n, count, d))?)
    }

    /// What follows attention, row by row.
    fn finish(&self, x: &Tensor, mixed: &Tensor, mut noise: Option<&mut Stream>) -> Result<Tensor> {
        let rate = self.shape.dropout;
        let mixed = dropout(&mixed.matmul(&self.out)?, rate, noise.as_deref_mut())?;
        let y = self.norm1.forward(&(x + mixed)?)?;
        let z = self.down.forward(&self.up.forward(&y)?.relu()?)?;
        self.norm2.forward(&(&y + dropout(&z, rate, noise)?)?)
    }
}
