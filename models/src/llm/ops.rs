//! Norm and rotation in one pass, each with its backward: one path for training and inference.
//!
//! candle's own fused forms have no backward and cut the graph without an error.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, Layout, Shape, Tensor};

use crate::error::Result;
use crate::simd;

/// `x / √(mean x² + ε) · gain` over the last dimension (arXiv 1910.07467).
///
/// # Shapes
/// `x` `[R, H·W]` for a `gain` `[W]`: each run of W columns is normalised on its own.
pub(super) fn rms_norm(x: &Tensor, gain: &Tensor, epsilon: f64) -> Result<Tensor> {
    if x.device().is_cpu() {
        let op = RmsNorm {
            epsilon: epsilon as f32,
        };
        return Ok(x.contiguous()?.apply_op2(gain, op)?);
    }
    plain_rms_norm(x, gain, epsilon)
}

/// The same composed of ordinary operations.
fn plain_rms_norm(x: &Tensor, gain: &Tensor, epsilon: f64) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let parts = x.reshape((rows, width / gain.dim(0)?, gain.dim(0)?))?;
    let root = (parts.sqr()?.mean_keepdim(D::Minus1)? + epsilon)?.sqrt()?;
    let y = parts.broadcast_div(&root)?.broadcast_mul(gain)?;
    Ok(y.reshape((rows, width))?)
}

struct RmsNorm {
    epsilon: f32,
}

impl RmsNorm {
    #[inline(always)]
    fn scale(&self, x: &[f32]) -> f32 {
        1.0 / (simd::dot(x, x) / x.len() as f32 + self.epsilon).sqrt()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm-with-backward"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        gain: &CpuStorage,
        gl: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, gain) = (simd::f32_slice(x, xl)?, simd::f32_slice(gain, gl)?);
        if gain.is_empty() || !x.len().is_multiple_of(gain.len()) {
            return Err(candle_core::Error::Msg(format!(
                "norm of width {} over {:?}",
                gain.len(),
                xl.dims()
            )));
        }
        let mut out = vec![0f32; x.len()];
        let d = gain.len();
        simd::dispatch(|| {
            for (o, x) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                let inv = self.scale(x);
                for i in 0..d {
                    o[i] = x[i] * inv * gain[i];
                }
            }
        });
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }

    /// With h = x/r and a = g·gain: dx = (a − h·mean(a·h))/r.
    fn bwd(
        &self,
        x: &Tensor,
        gain: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let host = |t: &Tensor| t.contiguous()?.flatten_all()?.to_vec1::<f32>();
        let (xs, gains, ups) = (host(x)?, host(gain)?, host(g)?);
        let d = gains.len();
        let mut dx = vec![0f32; xs.len()];
        let mut dgain = vec![0f32; d];
        simd::dispatch(|| {
            let mut scaled = vec![0f32; d];
            for ((x, up), dx) in xs
                .chunks_exact(d)
                .zip(ups.chunks_exact(d))
                .zip(dx.chunks_exact_mut(d))
            {
                let inv = self.scale(x);
                for i in 0..d {
                    dx[i] = x[i] * inv;
                    dgain[i] += up[i] * dx[i];
                    scaled[i] = up[i] * gains[i];
                }
                let along = simd::dot(&scaled, dx) / d as f32;
                for i in 0..d {
                    dx[i] = (scaled[i] - dx[i] * along) * inv;
                }
            }
        });
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), x.device())?),
            Some(Tensor::from_vec(dgain, gain.shape(), x.device())?),
        ))
    }
}

/// Cosines and sines of a batch's positions, for all layers.
#[derive(Clone)]
pub(super) struct Rotation {
    cos: Arc<Vec<f32>>,
    sin: Arc<Vec<f32>>,
    /// Pairs of columns of a head.
    pairs: usize,
}

impl Rotation {
    pub(super) fn new(frequencies: &[f64], positions: &[usize]) -> Self {
        let angle = |&p: &usize| frequencies.iter().map(move |f| p as f64 * f);
        let angles: Vec<f64> = positions.iter().flat_map(angle).collect();
        Self {
            cos: Arc::new(angles.iter().map(|a| a.cos() as f32).collect()),
            sin: Arc::new(angles.iter().map(|a| a.sin() as f32).collect()),
            pairs: frequencies.len(),
        }
    }

    /// Rotates columns i and i + W/2 of every head (arXiv 2104.09864, split in halves).
    ///
    /// # Shapes
    /// `[R, heads·W]`, R positions; the result has the same shape.
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        if x.device().is_cpu() {
            return Ok(x.contiguous()?.apply_op1(Rotate {
                by: self.clone(),
                back: false,
            })?);
        }
        self.plain(x)
    }

    /// The same composed of ordinary operations.
    fn plain(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let shape = (rows, 1, self.pairs);
        let table = |t: &[f32]| -> Result<Tensor> { Ok(Tensor::from_slice(t, shape, x.device())?) };
        let (cos, sin) = (table(&self.cos)?, table(&self.sin)?);
        let x = x.reshape((rows, width / (2 * self.pairs), 2 * self.pairs))?;
        let (a, b) = (
            x.narrow(2, 0, self.pairs)?,
            x.narrow(2, self.pairs, self.pairs)?,
        );
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?;
        Ok(Tensor::cat(&[first, second], 2)?.reshape((rows, width))?)
    }
}

struct Rotate {
    by: Rotation,
    back: bool,
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rotary-embedding"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = simd::f32_slice(x, l)?;
        let (pairs, width) = (self.by.pairs, l.dims()[1]);
        if pairs == 0 || width % (2 * pairs) != 0 || x.len() / width * pairs != self.by.cos.len() {
            return Err(candle_core::Error::Msg(format!(
                "rotation of {} angles over {:?}",
                self.by.cos.len(),
                l.dims()
            )));
        }
        let turn = if self.back { -1.0 } else { 1.0 };
        let mut out = vec![0f32; x.len()];
        simd::dispatch(|| {
            let rows = out.chunks_exact_mut(width).zip(x.chunks_exact(width));
            let angles = self.by.cos.chunks_exact(pairs);
            for ((out, x), (cos, sin)) in rows.zip(angles.zip(self.by.sin.chunks_exact(pairs))) {
                let heads = out
                    .chunks_exact_mut(2 * pairs)
                    .zip(x.chunks_exact(2 * pairs));
                for (out, x) in heads {
                    for i in 0..pairs {
                        let (a, b) = (x[i], x[i + pairs]);
                        out[i] = a * cos[i] - turn * b * sin[i];
                        out[i + pairs] = turn * a * sin[i] + b * cos[i];
                    }
                }
            }
        });
        Ok((CpuStorage::F32(out), l.shape().clone()))
    }

    /// Rotations are orthogonal: the backward turns the other way.
    fn bwd(&self, _x: &Tensor, _y: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(g.contiguous()?.apply_op1_no_bwd(&Rotate {
            by: self.by.clone(),
            back: !self.back,
        })?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::close;
    use crate::rng::{self, Purpose};
    use candle_core::{Device, Var};

    fn worst(a: &Tensor, b: &Tensor) -> Result<f32> {
        Ok((a - b)?.abs()?.max_all()?.to_scalar::<f32>()?)
    }

    /// Oracle T3: RMSNorm of [1, 2, 3, 4].
    #[test]
    fn rms_norm_matches_oracle() -> Result<()> {
        let dev = Device::Cpu;
        let x = Tensor::new(&[[1f32, 2.0, 3.0, 4.0]], &dev)?;
        let gain = Tensor::ones(4, candle_core::DType::F32, &dev)?;
        let want = [0.365_148, 0.730_296, 1.095_444, 1.460_593];
        close(&rms_norm(&x, &gain, 1e-5)?, &want)?;
        close(&plain_rms_norm(&x, &gain, 1e-5)?, &want)
    }

    /// Oracle T9: position 1, θ = 10 000.
    #[test]
    fn rotation_matches_oracle() -> Result<()> {
        let x = Tensor::new(&[[1f32, 2.0, 3.0, 4.0]], &Device::Cpu)?;
        let r = Rotation::new(&[1.0, 0.01], &[1]);
        let want = [-1.984_111, 1.959_901, 2.462_378, 4.019_800];
        close(&r.apply(&x)?, &want)?;
        close(&r.plain(&x)?, &want)
    }

    #[test]
    fn one_pass_equals_the_plain_composition_with_gradients() -> Result<()> {
        let dev = Device::Cpu;
        let mut r = rng::stream(6, Purpose::Init, &[]);
        let x = Var::from_tensor(&rng::normal(&mut r, (5, 12), 1.0, &dev)?)?;
        let w = rng::normal(&mut r, (5, 12), 1.0, &dev)?;
        let gain = Var::from_tensor(&rng::normal(&mut r, 6, 1.0, &dev)?)?;
        let turn = Rotation::new(&[1.0, 0.1, 0.01], &[0, 1, 2, 0, 7]);
        let fast = turn.apply(&rms_norm(&x, &gain, 1e-6)?)?;
        let slow = turn.plain(&plain_rms_norm(&x, &gain, 1e-6)?)?;
        assert!(worst(&fast, &slow)? < 1e-5);
        let gf = (fast * &w)?.sum_all()?.backward()?;
        let gs = (slow * &w)?.sum_all()?.backward()?;
        for v in [&x, &gain] {
            let (a, b) = (gf.get(v).expect("gradient"), gs.get(v).expect("gradient"));
            assert!(worst(a, b)? < 1e-5);
        }
        Ok(())
    }
}
