//! Blocks shared by the sequence models, in differentiable (unfused) form.

use candle_core::{Device, Tensor};

use crate::error::Result;
use crate::params::Params;
use crate::rng::{self, Purpose, Stream};

/// `x W + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[in, out]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Tensor,
}

impl Linear {
    /// Xavier-uniform weights, zero bias.
    pub fn new(
        params: &mut Params,
        name: &str,
        fan_in: usize,
        fan_out: usize,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        Self::with_gain(params, name, fan_in, fan_out, 1.0, seed, dev)
    }

    /// As [`Linear::new`], the weights times `gain`: a small one keeps a side branch quiet at first.
    pub fn with_gain(
        params: &mut Params,
        name: &str,
        fan_in: usize,
        fan_out: usize,
        gain: f64,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        let mut r = rng::stream(seed, Purpose::Init, &[rng::name_hash(name)]);
        let w = (rng::xavier_uniform(&mut r, fan_in, fan_out, dev)? * gain)?;
        Ok(Self {
            weight: params.add(format!("{name}.weight"), &w)?,
            bias: params.add(
                format!("{name}.bias"),
                &Tensor::zeros(fan_out, candle_core::DType::F32, dev)?,
            )?,
        })
    }

    /// Applies to the last dimension of a tensor of any rank.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut dims = x.dims().to_vec();
        let fan_in = dims.pop().unwrap_or(0);
        let flat = x.reshape(((), fan_in))?;
        let y = flat.matmul(&self.weight)?.broadcast_add(&self.bias)?;
        dims.push(self.bias.dim(0)?);
        Ok(y.reshape(dims)?)
    }
}

/// Layer normalisation over the last dimension with gain and bias, ε = 1e-5, biased variance.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    gain: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    /// Gain one, bias zero.
    pub fn new(params: &mut Params, name: &str, width: usize, dev: &Device) -> Result<Self> {
        let dt = candle_core::DType::F32;
        Ok(Self {
            gain: params.add(format!("{name}.gain"), &Tensor::ones(width, dt, dev)?)?,
            bias: params.add(format!("{name}.bias"), &Tensor::zeros(width, dt, dev)?)?,
        })
    }

    /// Normalises the last dimension.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let d = candle_core::D::Minus1;
        let centred = x.broadcast_sub(&x.mean_keepdim(d)?)?;
        let std = (centred.sqr()?.mean_keepdim(d)? + 1e-5)?.sqrt()?;
        Ok(centred
            .broadcast_div(&std)?
            .broadcast_mul(&self.gain)?
            .broadcast_add(&self.bias)?)
    }
}

/// Inverted dropout; without a stream (evaluation) or with rate 0 the identity.
pub fn dropout(x: &Tensor, rate: f64, rng: Option<&mut Stream>) -> Result<Tensor> {
    let Some(rng) = rng.filter(|_| rate > 0.0) else {
        return Ok(x.clone());
    };
    let scale = (1.0 / (1.0 - rate)) as f32;
    let mask: Vec<f32> = (0..x.elem_count())
        .map(|_| {
            if rng::unit(rng) < rate as f32 {
                0.0
            } else {
                scale
            }
        })
        .collect();
    Ok((x * Tensor::from_vec(mask, x.shape(), x.device())?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_norm_by_hand_and_gradients() -> Result<()> {
        let dev = Device::Cpu;
        let mut p = Params::default();
        let ln = LayerNorm::new(&mut p, "ln", 2, &dev)?;
        let x = candle_core::Var::new(&[[1f32, 3.0]], &dev)?;
        // mean 2, biased variance 1: (−1, 1) / sqrt(1 + 1e-5)
        let y = ln.forward(x.as_tensor())?.to_vec2::<f32>()?;
        assert!((y[0][0] + 0.999_995).abs() < 1e-5 && (y[0][1] - 0.999_995).abs() < 1e-5);
        let g = (ln.forward(x.as_tensor())? * Tensor::new(&[[1f32, 2.0]], &dev)?)?
            .sum_all()?
            .backward()?;
        for (name, v) in p.iter() {
            assert!(g.get(v.as_tensor()).is_some(), "{name}");
        }
        assert!(g.get(x.as_tensor()).is_some());
        Ok(())
    }

    #[test]
    fn dropout_keeps_the_mean() -> Result<()> {
        let x = Tensor::ones(20_000, candle_core::DType::F32, &Device::Cpu)?;
        let mut r = rng::stream(1, Purpose::Dropout, &[]);
        let y = dropout(&x, 0.3, Some(&mut r))?
            .mean_all()?
            .to_scalar::<f32>()?;
        assert!((y - 1.0).abs() < 0.03, "{y}");
        assert_eq!(
            dropout(&x, 0.3, None)?.sum_all()?.to_scalar::<f32>()?,
            20_000.0
        );
        Ok(())
    }
}
