//! Projections of a decoder: frozen or trained weights, optionally with a low-rank update.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::layer::dropout;
use crate::ops;
use crate::params::Params;
use crate::rng::{self, Purpose, Stream};

/// Low-rank adaptation (LoRA, arXiv 2106.09685).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// r.
    pub rank: usize,
    /// α: the update is multiplied with α/r.
    pub alpha: f64,
    /// Dropout of the branch's input.
    pub dropout: f64,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 32.0,
            dropout: 0.1,
        }
    }
}

/// `(α/r) B A`, A `[r, in]`, B `[out, r]`.
#[derive(Debug, Clone)]
struct Lora {
    a: Tensor,
    b: Tensor,
    scale: f64,
    dropout: f64,
}

/// `x Wᵀ + b`, and the low-rank update where there is one.
#[derive(Debug, Clone)]
pub(super) struct Projection {
    /// `[out, in]`.
    weight: Tensor,
    bias: Option<Tensor>,
    frozen: bool,
    lora: Option<Lora>,
}

impl Projection {
    pub(super) fn new(weight: Tensor, bias: Option<Tensor>, frozen: bool) -> Self {
        Self {
            weight,
            bias,
            frozen,
            lora: None,
        }
    }

    /// Adds an update that starts at zero: A is normal with deviation 0.02, B zero.
    pub(super) fn add_lora(
        &mut self,
        params: &mut Params,
        name: &str,
        cfg: &LoraConfig,
        seed: u64,
    ) -> Result<()> {
        if cfg.rank == 0 || !(0.0..1.0).contains(&cfg.dropout) {
            return Err(Error::config(
                "lora needs a rank of at least 1 and a dropout of 0 to below 1",
            ));
        }
        let (out, fan_in) = self.weight.dims2()?;
        let dev = self.weight.device();
        let mut r = rng::stream(seed, Purpose::Init, &[rng::name_hash(name)]);
        let a = rng::normal(&mut r, (cfg.rank, fan_in), 0.02, dev)?;
        let b = Tensor::zeros((out, cfg.rank), DType::F32, dev)?;
        self.lora = Some(Lora {
            a: params.add(format!("{name}.a"), &a)?,
            b: params.add(format!("{name}.b"), &b)?,
            scale: cfg.alpha / cfg.rank as f64,
            dropout: cfg.dropout,
        });
        Ok(())
    }

    /// `x` is `[R, in]`.
    pub(super) fn forward(&self, x: &Tensor, noise: Option<&mut Stream>) -> Result<Tensor> {
        let mut y = product(x, &self.weight, self.frozen)?;
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(bias)?;
        }
        if let Some(lora) = &self.lora {
            let low = dropout(x, lora.dropout, noise)?.matmul(&lora.a.t()?)?;
            y = (y + (low.matmul(&lora.b.t()?)? * lora.scale)?)?;
        }
        Ok(y)
    }

    /// `W + (α/r) B A`, in f32.
    pub(super) fn merged(&self) -> Result<Tensor> {
        let weight = self.weight.to_dtype(DType::F32)?;
        Ok(match &self.lora {
            Some(lora) => (weight + (lora.b.matmul(&lora.a)? * lora.scale)?)?.detach(),
            None => weight.detach(),
        })
    }

    pub(super) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

/// `x wᵀ` in x's type; a frozen weight gets no gradient, and its own type is that of the product's operands.
pub(super) fn product(x: &Tensor, weight: &Tensor, frozen: bool) -> Result<Tensor> {
    if frozen {
        let y = ops::frozen_linear(&x.to_dtype(weight.dtype())?, weight)?;
        Ok(y.to_dtype(x.dtype())?)
    } else {
        Ok(x.matmul(&weight.t()?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Oracle T8: W = I₂, A = [[1, 2]], B = [[3], [4]], α/r = 4, x = [1, 1].
    #[test]
    fn low_rank_update_matches_oracle() -> Result<()> {
        let dev = Device::Cpu;
        let weight = Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], &dev)?;
        let mut params = Params::default();
        let mut p = Projection::new(weight, None, true);
        let cfg = LoraConfig {
            rank: 1,
            alpha: 4.0,
            dropout: 0.0,
        };
        p.add_lora(&mut params, "p", &cfg, 1)?;
        let x = Tensor::new(&[[1f32, 1.0]], &dev)?;
        assert_eq!(p.forward(&x, None)?.to_vec2::<f32>()?, [[1.0, 1.0]]);
        params.set("p.a", &Tensor::new(&[[1f32, 2.0]], &dev)?)?;
        params.set("p.b", &Tensor::new(&[[3f32], [4.0]], &dev)?)?;
        let y = p.forward(&x, None)?;
        assert_eq!(y.to_vec2::<f32>()?, [[37.0, 49.0]]);
        let merged = product(&x, &p.merged()?, true)?;
        assert_eq!(merged.to_vec2::<f32>()?, [[37.0, 49.0]]);
        Ok(())
    }
}
