//! Candidate distributions: what a teacher says about a few items, and how far a student is from it.

use candle_core::{D, DType, Tensor};

use crate::error::{Error, Result};

/// Items and their probabilities at a temperature.
pub type Distribution = Vec<(u32, f32)>;

/// `softmax(scores/T)` over the given items.
pub fn distribution(items: &[u32], scores: &[f32], temperature: f64) -> Distribution {
    let soft: Vec<f64> = scores.iter().map(|&s| f64::from(s) / temperature).collect();
    let most = soft.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = soft.iter().map(|x| (x - most).exp()).sum();
    items
        .iter()
        .zip(soft)
        .map(|(&i, x)| (i, ((x - most).exp() / sum) as f32))
        .collect()
}

/// `T²·KL(p ‖ softmax(s/T))`, averaged over the rows that have a distribution (Hinton et al.,
/// arXiv 1503.02531), each over its own items.
///
/// # Shapes
/// `scores` `[B, N]` and B distributions, which may be empty; the result is a scalar.
///
/// # Errors
/// Another number of distributions than rows, or an item beyond N.
pub fn divergence(scores: &Tensor, teacher: &[Distribution], temperature: f64) -> Result<Tensor> {
    let (b, n) = scores.dims2()?;
    if teacher.len() != b || teacher.iter().flatten().any(|(i, _)| *i as usize >= n) {
        return Err(Error::config(format!(
            "{} distributions do not fit scores of shape [{b}, {n}]",
            teacher.len()
        )));
    }
    let rows = teacher.iter().filter(|p| !p.is_empty()).count();
    let width = teacher.iter().map(Vec::len).max().unwrap_or(0);
    let dev = scores.device();
    if rows == 0 {
        return Ok(Tensor::zeros((), DType::F32, dev)?);
    }
    let mut items = vec![0u32; b * width];
    let mut hide = vec![-1e9f32; b * width];
    let mut want = vec![0f32; b * width];
    let mut entropy = 0.0;
    for (row, p) in teacher.iter().enumerate() {
        for (at, &(item, weight)) in p.iter().enumerate() {
            items[row * width + at] = item;
            hide[row * width + at] = 0.0;
            want[row * width + at] = weight;
            if weight > 0.0 {
                entropy -= f64::from(weight) * f64::from(weight).ln();
            }
        }
    }
    let shape = (b, width);
    let picked = scores.gather(&Tensor::from_vec(items, shape, dev)?, 1)?;
    let logits = ((picked / temperature)? + Tensor::from_vec(hide, shape, dev)?)?;
    let logs = candle_nn::ops::log_softmax(&logits, D::Minus1)?;
    let cross = (logs * Tensor::from_vec(want, shape, dev)?)?
        .sum_all()?
        .neg()?;
    let scale = temperature * temperature / rows as f64;
    Ok(((cross - entropy)? * scale)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    /// Oracle T10 of the TMF specification.
    #[test]
    fn divergence_matches_oracle_with_its_gradient() -> Result<()> {
        let p = distribution(&[2, 0, 1], &[2.0, 1.0, 0.0], 2.0);
        for ((_, p), want) in p.iter().zip([0.506_480, 0.307_196, 0.186_324]) {
            assert!((f64::from(*p) - want).abs() < 1e-5);
        }
        let student = Var::new(&[[1f32, 0.0, 1.0, 7.0], [0.0, 0.0, 0.0, 0.0]], &Device::Cpu)?;
        let loss = divergence(&student, &[p, Vec::new()], 2.0)?;
        assert!((f64::from(loss.to_scalar::<f32>()?) - 0.123_962).abs() < 1e-5);
        // d/ds = T (softmax(s/T) − p) on the candidates, nothing elsewhere.
        let grads = loss.backward()?;
        let g = grads.get(&student).expect("gradient").to_vec2::<f32>()?;
        let want = [
            2.0 * (0.383_652 - 0.307_196),
            2.0 * (0.232_697 - 0.186_324),
            2.0 * (0.383_652 - 0.506_480),
            0.0,
        ];
        for (g, w) in g[0].iter().zip(want) {
            assert!((f64::from(*g) - w).abs() < 1e-5, "{g} {w}");
        }
        assert_eq!(g[1], [0.0; 4]);
        Ok(())
    }
}
