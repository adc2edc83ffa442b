//! Convolutions over maps `[B, H, W, C]`, inference only, with what follows them.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Shape, Tensor};
use rayon::prelude::*;

use crate::error::Result;
use crate::simd;

/// Zeros before and after `length` so that a convolution gives `ceil(length / stride)` places:
/// TensorFlow's `SAME`, which puts the odd one after.
pub(super) fn same_padding(length: usize, kernel: usize, stride: usize) -> (usize, usize) {
    let out = length.div_ceil(stride);
    let all = ((out - 1) * stride + kernel).saturating_sub(length);
    (all / 2, all - all / 2)
}

/// `x + bias`, between 0 and 6 if `relu6`.
///
/// # Shapes
/// `x` `[.., C]`, `bias` `[C]`.
pub(super) fn add_bias(x: &Tensor, bias: &Tensor, relu6: bool) -> Result<Tensor> {
    if x.device().is_cpu() {
        return Ok(x.contiguous()?.apply_op2_no_bwd(bias, &AddBias { relu6 })?);
    }
    let y = x.broadcast_add(bias)?;
    Ok(if relu6 { y.clamp(0f32, 6f32)? } else { y })
}

struct AddBias {
    relu6: bool,
}

impl CustomOp2 for AddBias {
    fn name(&self) -> &'static str {
        "add-bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        bias: &CpuStorage,
        bl: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, bias) = (simd::f32_slice(x, xl)?, simd::f32_slice(bias, bl)?);
        let mut out = Vec::with_capacity(x.len());
        simd::dispatch(|| {
            for row in x.chunks_exact(bias.len()) {
                let sums = row.iter().zip(bias).map(|(x, b)| x + b);
                if self.relu6 {
                    out.extend(sums.map(|y| y.clamp(0.0, 6.0)));
                } else {
                    out.extend(sums);
                }
            }
        });
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }
}

/// A convolution of each channel by itself, padded as [`same_padding`] says, then ReLU6.
pub(super) struct Depthwise {
    /// `[K², C]`.
    pub(super) weight: Tensor,
    /// `[C]`.
    pub(super) bias: Tensor,
    pub(super) kernel: usize,
    pub(super) stride: usize,
}

impl Depthwise {
    /// `[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), C]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if x.device().is_cpu() {
            let op = DepthwiseCpu {
                kernel: self.kernel,
                stride: self.stride,
            };
            return Ok(x
                .contiguous()?
                .apply_op3_no_bwd(&self.weight, &self.bias, &op)?);
        }
        self.grouped(x)
    }

    /// The same by candle's convolution in groups, which is slow on the CPU.
    pub(super) fn grouped(&self, x: &Tensor) -> Result<Tensor> {
        let (_, h, w, c) = x.dims4()?;
        let (k, s) = (self.kernel, self.stride);
        let (top, bottom) = same_padding(h, k, s);
        let (left, right) = same_padding(w, k, s);
        let weight = self.weight.t()?.reshape((c, 1, k, k))?;
        let y = x
            .permute((0, 3, 1, 2))?
            .pad_with_zeros(2, top, bottom)?
            .pad_with_zeros(3, left, right)?
            .contiguous()?
            .conv2d(&weight, 0, s, 1, c)?
            .permute((0, 2, 3, 1))?;
        add_bias(&y, &self.bias, true)
    }
}

struct DepthwiseCpu {
    kernel: usize,
    stride: usize,
}

impl CustomOp3 for DepthwiseCpu {
    fn name(&self) -> &'static str {
        "depthwise"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        weight: &CpuStorage,
        wl: &Layout,
        bias: &CpuStorage,
        bl: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (b, h, w, c) = xl.shape().dims4()?;
        let (k, s) = (self.kernel, self.stride);
        let (x, weight) = (simd::f32_slice(x, xl)?, simd::f32_slice(weight, wl)?);
        let bias = simd::f32_slice(bias, bl)?;
        let (rows, columns) = (h.div_ceil(s), w.div_ceil(s));
        let (top, _) = same_padding(h, k, s);
        let (left, _) = same_padding(w, k, s);
        let mut out = vec![0f32; b * rows * columns * c];
        let row = |(at, out): (usize, &mut [f32])| {
            let (image, y) = (&x[at / rows * h * w * c..][..h * w * c], at % rows);
            simd::dispatch(|| {
                for (column, out) in out.chunks_exact_mut(c).enumerate() {
                    out.copy_from_slice(bias);
                    for i in 0..k {
                        let Some(from) = (y * s + i).checked_sub(top).filter(|y| *y < h) else {
                            continue;
                        };
                        for j in 0..k {
                            let at = (column * s + j).checked_sub(left).filter(|x| *x < w);
                            let Some(at) = at else { continue };
                            let x = &image[(from * w + at) * c..][..c];
                            let weight = &weight[(i * k + j) * c..][..c];
                            for ((o, x), w) in out.iter_mut().zip(x).zip(weight) {
                                *o += x * w;
                            }
                        }
                    }
                    out.iter_mut().for_each(|o| *o = o.clamp(0.0, 6.0));
                }
            });
        };
        out.par_chunks_mut(columns * c).enumerate().for_each(row);
        Ok((CpuStorage::F32(out), Shape::from((b, rows, columns, c))))
    }
}
