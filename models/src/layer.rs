//! Blocks shared by the sequence models, in differentiable (unfused) form.

use candle_core::{CpuStorage, CustomOp3, Device, Layout, Shape, Tensor};

use crate::error::Result;
use crate::params::Params;
use crate::rng::{self, Purpose, Stream};
use crate::simd;

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

    /// Weights and bias uniform in ±1/√fan_in, as PyTorch starts a linear layer.
    pub fn uniform(
        params: &mut Params,
        name: &str,
        fan_in: usize,
        fan_out: usize,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        let mut r = rng::stream(seed, Purpose::Init, &[rng::name_hash(name)]);
        let bound = 1.0 / (fan_in as f64).sqrt();
        let w = rng::uniform(&mut r, (fan_in, fan_out), bound, dev)?;
        let b = rng::uniform(&mut r, fan_out, bound, dev)?;
        Ok(Self {
            weight: params.add(format!("{name}.weight"), &w)?,
            bias: params.add(format!("{name}.bias"), &b)?,
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

/// Layer normalisation over the last dimension with gain and bias, biased variance.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    gain: Tensor,
    bias: Tensor,
    epsilon: f64,
}

impl LayerNorm {
    /// Gain one, bias zero, ε = 1e-5.
    pub fn new(params: &mut Params, name: &str, width: usize, dev: &Device) -> Result<Self> {
        Self::with_epsilon(params, name, width, 1e-5, dev)
    }

    /// As [`LayerNorm::new`], with another ε under the root.
    pub fn with_epsilon(
        params: &mut Params,
        name: &str,
        width: usize,
        epsilon: f64,
        dev: &Device,
    ) -> Result<Self> {
        let dt = candle_core::DType::F32;
        Ok(Self {
            gain: params.add(format!("{name}.gain"), &Tensor::ones(width, dt, dev)?)?,
            bias: params.add(format!("{name}.bias"), &Tensor::zeros(width, dt, dev)?)?,
            epsilon,
        })
    }

    /// Normalises the last dimension.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if x.device().is_cpu() {
            let epsilon = self.epsilon as f32;
            let op = LayerNormOp { epsilon };
            return Ok(x.contiguous()?.apply_op3(&self.gain, &self.bias, op)?);
        }
        let d = candle_core::D::Minus1;
        let centred = x.broadcast_sub(&x.mean_keepdim(d)?)?;
        let std = (centred.sqr()?.mean_keepdim(d)? + self.epsilon)?.sqrt()?;
        Ok(centred
            .broadcast_div(&std)?
            .broadcast_mul(&self.gain)?
            .broadcast_add(&self.bias)?)
    }
}

/// Layer normalisation in one pass over the rows, with its backward.
struct LayerNormOp {
    epsilon: f32,
}

impl LayerNormOp {
    /// Mean and inverse deviation of a row.
    #[inline(always)]
    fn moments(&self, x: &[f32]) -> (f32, f32) {
        let n = x.len() as f32;
        let mean = simd::sum(x) / n;
        let mut lanes = [0f32; 8];
        let chunks = x.chunks_exact(8);
        let tail: f32 = chunks.remainder().iter().map(|x| (x - mean).powi(2)).sum();
        for c in chunks {
            for i in 0..8 {
                lanes[i] += (c[i] - mean) * (c[i] - mean);
            }
        }
        let variance = (lanes.iter().sum::<f32>() + tail) / n;
        (mean, 1.0 / (variance + self.epsilon).sqrt())
    }

    /// With h = (x − mean)/std and a = g·gain: dx = (a − mean(a) − h·mean(a·h))/std. Adds to the
    /// gradients of gain and bias.
    #[inline(always)]
    fn backward(
        &self,
        (x, gain, up): (&[f32], &[f32], &[f32]),
        (dx, dgain, dbias): (&mut [f32], &mut [f32], &mut [f32]),
    ) {
        let d = gain.len();
        let mut scaled = vec![0f32; d];
        for ((x, up), dx) in x
            .chunks_exact(d)
            .zip(up.chunks_exact(d))
            .zip(dx.chunks_exact_mut(d))
        {
            let (mean, inv) = self.moments(x);
            for i in 0..d {
                let h = (x[i] - mean) * inv;
                scaled[i] = up[i] * gain[i];
                dgain[i] += up[i] * h;
                dbias[i] += up[i];
                dx[i] = h;
            }
            let along = simd::dot(&scaled, dx) / d as f32;
            let level = simd::sum(&scaled) / d as f32;
            for i in 0..d {
                dx[i] = (scaled[i] - level - dx[i] * along) * inv;
            }
        }
    }
}

impl CustomOp3 for LayerNormOp {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        gain: &CpuStorage,
        gl: &Layout,
        bias: &CpuStorage,
        bl: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = simd::f32_slice(x, xl)?;
        let (gain, bias) = (simd::f32_slice(gain, gl)?, simd::f32_slice(bias, bl)?);
        let d = gain.len();
        if xl.dims().last() != Some(&d) {
            return Err(candle_core::Error::Msg(format!(
                "layer norm of width {d} over {:?}",
                xl.dims()
            )));
        }
        let mut out = vec![0f32; x.len()];
        simd::dispatch(|| {
            for (o, x) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                let (mean, inv) = self.moments(x);
                for i in 0..d {
                    o[i] = (x[i] - mean) * inv * gain[i] + bias[i];
                }
            }
        });
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gain: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let host = |t: &Tensor| t.contiguous()?.flatten_all()?.to_vec1::<f32>();
        let (xs, gains, ups) = (host(x)?, host(gain)?, host(g)?);
        let mut dx = vec![0f32; xs.len()];
        let mut dgain = vec![0f32; gains.len()];
        let mut dbias = vec![0f32; gains.len()];
        simd::dispatch(|| {
            let to = (&mut dx[..], &mut dgain[..], &mut dbias[..]);
            self.backward((&xs, &gains, &ups), to);
        });
        let dev = x.device();
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), dev)?),
            Some(Tensor::from_vec(dgain, gain.shape(), dev)?),
            Some(Tensor::from_vec(dbias, bias.shape(), dev)?),
        ))
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
    fn layer_norm_in_one_pass_equals_the_plain_composition() -> Result<()> {
        let dev = Device::Cpu;
        let mut p = Params::default();
        let ln = LayerNorm::with_epsilon(&mut p, "ln", 11, 1e-6, &dev)?;
        let mut r = rng::stream(4, Purpose::Init, &[]);
        p.set("ln.gain", &rng::normal(&mut r, 11, 1.0, &dev)?)?;
        p.set("ln.bias", &rng::normal(&mut r, 11, 1.0, &dev)?)?;
        let x = candle_core::Var::from_tensor(&rng::normal(&mut r, (2, 3, 11), 2.0, &dev)?)?;
        let w = rng::normal(&mut r, (2, 3, 11), 1.0, &dev)?;
        let d = candle_core::D::Minus1;
        let centred = x.broadcast_sub(&x.mean_keepdim(d)?)?;
        let std = (centred.sqr()?.mean_keepdim(d)? + 1e-6)?.sqrt()?;
        let plain = centred
            .broadcast_div(&std)?
            .broadcast_mul(&ln.gain)?
            .broadcast_add(&ln.bias)?;
        let fast = ln.forward(x.as_tensor())?;
        let worst = |a: &Tensor, b: &Tensor| -> Result<f32> {
            Ok((a - b)?.abs()?.max_all()?.to_scalar::<f32>()?)
        };
        assert!(worst(&fast, &plain)? < 1e-5);
        let (f, s) = ((fast * &w)?.sum_all()?, (plain * &w)?.sum_all()?);
        let (f, s) = (f.backward()?, s.backward()?);
        for t in [x.as_tensor(), &ln.gain, &ln.bias] {
            let (a, b) = (f.get(t).expect("gradient"), s.get(t).expect("gradient"));
            assert!(worst(a, b)? < 1e-5);
        }
        Ok(())
    }

    /// Oracle 9.5 of the ODMT specification; the second row tells ε from 1e-5.
    #[test]
    fn layer_norm_matches_oracle() -> Result<()> {
        let dev = Device::Cpu;
        let mut p = Params::default();
        let ln = LayerNorm::with_epsilon(&mut p, "ln", 4, 1e-6, &dev)?;
        let x = Tensor::new(&[[1f32, 2., 3., 4.], [0., 0., 0., 1e-3]], &dev)?;
        let y = ln.forward(&x)?.flatten_all()?.to_vec1::<f32>()?;
        let want = [
            -1.341_640_25,
            -0.447_213_42,
            0.447_213_42,
            1.341_640_25,
            -0.229_415_73,
            -0.229_415_73,
            -0.229_415_73,
            0.688_247_2,
        ];
        for (a, b) in y.iter().zip(want) {
            assert!((f64::from(*a) - b).abs() < 3e-7, "{y:?}");
        }
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
