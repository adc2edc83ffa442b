//! Cross-entropy and mutual distillation of all branches, with their gradient, in one pass.
//!
//! Items that occur several times among the candidates of a micro-batch share a column with their
//! number of copies as weight. That is exact: copies have the same vector and the same correction,
//! so a softmax over slots is one over items in which item j counts `c_j` times.

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::simd;

/// Who teaches whom; indices of logit sets, in which the ensemble follows the branches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) student: usize,
    pub(super) teacher: usize,
}

/// How branches teach each other.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Distillation {
    pub(super) weight: f64,
    pub(super) tau: f64,
    /// Teachers are constants.
    pub(super) detach: bool,
    pub(super) pairs: Vec<Pair>,
}

impl Distillation {
    /// The published pairs: the id branch teaches each modality, the ensemble teaches the id branch.
    /// `symmetric` adds the opposite directions. Branch 0 is the id branch.
    pub(super) fn new(
        branches: usize,
        weight: f64,
        tau: f64,
        detach: bool,
        symmetric: bool,
    ) -> Self {
        let mut pairs: Vec<Pair> = (1..branches)
            .map(|student| Pair {
                student,
                teacher: 0,
            })
            .collect();
        pairs.push(Pair {
            student: 0,
            teacher: branches,
        });
        if symmetric {
            let opposite = |p: &Pair| Pair {
                student: p.teacher,
                teacher: p.student,
            };
            pairs.extend(pairs.clone().iter().map(opposite));
        }
        Self {
            weight,
            tau,
            detach,
            pairs,
        }
    }
}

/// The candidates of a micro-batch and which of them each row is scored against.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Candidates {
    /// Per column, what is added to a raw score: `−ln pop`.
    pub(super) correction: Vec<f32>,
    /// Per column, the number of copies.
    pub(super) copies: Vec<f32>,
    /// Per row, the column to find. It counts once, however many copies there are.
    pub(super) targets: Vec<u32>,
    /// Per row, the list in `closed` that holds.
    pub(super) group: Vec<u32>,
    /// Columns that are no candidates, per group; the row's own target is one all the same.
    pub(super) closed: Vec<Vec<u32>>,
}

impl Candidates {
    /// How often each column counts in the softmax of a row; 0 for those that are no candidates.
    #[inline(always)]
    fn weights(&self, row: usize, out: &mut Vec<f32>) {
        out.clear();
        out.extend_from_slice(&self.copies);
        for &j in &self.closed[self.group[row] as usize] {
            out[j as usize] = 0.0;
        }
        out[self.targets[row] as usize] = 1.0;
    }
}

/// Mean over rows of each part of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Parts {
    pub(super) cross_entropy: f64,
    /// Before its weight.
    pub(super) distillation: f64,
}

/// Value and gradient of one row.
struct Row<'a> {
    at: usize,
    columns: usize,
    branches: usize,
    candidates: &'a Candidates,
    distillation: &'a Distillation,
    /// One over the number of rows.
    share: f32,
}

/// Buffers of a row: corrected logits of all sets, soft weights of all sets.
#[derive(Default)]
struct Scratch {
    weights: Vec<f32>,
    logits: Vec<f32>,
    soft: Vec<f32>,
    grads: Vec<f32>,
}

#[inline(always)]
fn max_open(x: &[f32], weights: &[f32]) -> f32 {
    let mut max = f32::NEG_INFINITY;
    for (x, w) in x.iter().zip(weights) {
        let here = if *w > 0.0 { *x } else { f32::NEG_INFINITY };
        max = if here > max { here } else { max };
    }
    max
}

/// `w_j e^{(x_j − max) k} / Σ` into `out`; the logarithm of `Σ w_j e^{x_j k}`.
#[inline(always)]
fn softmax(x: &[f32], weights: &[f32], k: f32, out: &mut [f32]) -> f32 {
    let max = max_open(x, weights);
    for ((o, x), w) in out.iter_mut().zip(x).zip(weights) {
        *o = w * simd::exp(((x - max) * k).min(0.0));
    }
    let sum = simd::sum(out);
    let inv = 1.0 / sum;
    out.iter_mut().for_each(|o| *o *= inv);
    sum.ln() + max * k
}

impl Row<'_> {
    #[inline(always)]
    fn evaluate(&self, raw: &[f32], grad: &mut [f32], s: &mut Scratch) -> Parts {
        let (n, b) = (self.columns, self.branches);
        let c = self.candidates;
        let target = c.targets[self.at] as usize;
        c.weights(self.at, &mut s.weights);
        s.logits.clear();
        for branch in raw.chunks_exact(n) {
            s.logits
                .extend(branch.iter().zip(&c.correction).map(|(x, y)| x + y));
        }
        let mut parts = Parts::default();
        for (logits, grad) in s.logits.chunks_exact(n).zip(grad.chunks_exact_mut(n)) {
            let log_sum = softmax(logits, &s.weights, 1.0, grad);
            parts.cross_entropy += f64::from(log_sum - logits[target]);
            grad[target] -= 1.0;
            grad.iter_mut().for_each(|g| *g *= self.share);
        }
        if self.distillation.weight > 0.0 {
            // The ensemble is the last set.
            for j in 0..n {
                let sum: f32 = (0..b).map(|k| s.logits[k * n + j]).sum();
                s.logits.push(sum / b as f32);
            }
            parts.distillation = self.distil(s);
            let (own, ensemble) = s.grads.split_at(b * n);
            for (grad, own) in grad.chunks_exact_mut(n).zip(own.chunks_exact(n)) {
                for ((g, own), e) in grad.iter_mut().zip(own).zip(ensemble) {
                    *g += own + e / b as f32;
                }
            }
        }
        parts
    }

    /// Distillation among the sets of `s.logits`; its weighted gradient is left in `s.grads`.
    #[inline(always)]
    fn distil(&self, s: &mut Scratch) -> f64 {
        let (n, sets) = (self.columns, self.branches + 1);
        let d = self.distillation;
        let (tau, k) = (d.tau as f32, (1.0 / d.tau) as f32);
        s.soft.clear();
        s.soft.resize(sets * n, 0.0);
        s.grads.clear();
        s.grads.resize(sets * n, 0.0);
        let mut log_sums = [0f32; MOST_SETS];
        for (at, log_sum) in log_sums.iter_mut().enumerate().take(sets) {
            let soft = &mut s.soft[at * n..][..n];
            *log_sum = softmax(&s.logits[at * n..][..n], &s.weights, k, soft);
        }
        let mut total = 0.0;
        let scale = self.share * tau * d.weight as f32;
        for pair in &d.pairs {
            let (from, to) = (pair.teacher * n, pair.student * n);
            let logits = &s.logits[to..][..n];
            // Where the teacher's weight is zero the student's logarithm does not count.
            let log_sum = log_sums[pair.student];
            let mut cross = 0f32;
            for (p, x) in s.soft[from..][..n].iter().zip(logits) {
                cross -= p * (x * k - log_sum);
            }
            total += f64::from(cross) * d.tau * d.tau;
            for j in 0..n {
                s.grads[to + j] += scale * (s.soft[to + j] - s.soft[from + j]);
            }
            if !d.detach {
                for (j, x) in logits.iter().enumerate() {
                    let lsm = x * k - log_sum;
                    s.grads[from + j] -= scale * s.soft[from + j] * (lsm + cross);
                }
            }
        }
        total
    }
}

/// Branches and the ensemble; far more than the modalities of any data set.
pub(super) const MOST_SETS: usize = 16;

/// `Σ_s CE(L_s) + w Σ KD(student, teacher)`, means over rows, for the logits of all branches:
///
/// `CE(L) = ln Σ_j c_j e^{L_j} − L_target` and
/// `KD(S, T) = −τ² Σ_j softmax(T/τ)_j ln softmax(S/τ)_j`.
///
/// # Shapes
/// `raw` `[R, branches, U]`: scores before the correction. The result is a scalar.
///
/// # Errors
/// Shapes or columns that do not fit the candidates.
pub(super) fn online_distillation(
    raw: &Tensor,
    candidates: &Candidates,
    distillation: &Distillation,
) -> Result<(Tensor, Parts)> {
    let (rows, branches, columns) = raw.dims3()?;
    let fits = |c: &u32| (*c as usize) < columns;
    let ok = rows > 0
        && candidates.targets.len() == rows
        && candidates.group.len() == rows
        && candidates.copies.len() == columns
        && candidates.correction.len() == columns
        && candidates.targets.iter().all(fits)
        && candidates.closed.iter().flatten().all(fits)
        && candidates
            .group
            .iter()
            .all(|g| (*g as usize) < candidates.closed.len())
        && branches < MOST_SETS;
    if !ok {
        return Err(Error::config(format!(
            "candidates do not fit logits of shape [{rows}, {branches}, {columns}]"
        )));
    }
    // The loops run on the host, whatever the device.
    let raw = raw.to_device(&Device::Cpu)?.contiguous()?;
    let values = raw.flatten_all()?.to_vec1::<f32>()?;
    let mut grad = vec![0f32; values.len()];
    let size = branches * columns;
    let parts: Vec<Parts> = values
        .par_chunks(size)
        .zip(grad.par_chunks_mut(size))
        .enumerate()
        .map_init(Scratch::default, |scratch, (at, (raw, grad))| {
            let row = Row {
                at,
                columns,
                branches,
                candidates,
                distillation,
                share: 1.0 / rows as f32,
            };
            simd::dispatch(|| row.evaluate(raw, grad, scratch))
        })
        .collect();
    let mean = |f: fn(&Parts) -> f64| parts.iter().map(f).sum::<f64>() / rows as f64;
    let parts = Parts {
        cross_entropy: mean(|p| p.cross_entropy),
        distillation: mean(|p| p.distillation),
    };
    let value = parts.cross_entropy + distillation.weight * parts.distillation;
    let gradient = Tensor::from_vec(grad, raw.shape(), &Device::Cpu)?;
    let known = Known {
        value: value as f32,
        gradient,
    };
    Ok((raw.apply_op1(known)?, parts))
}

/// A scalar whose gradient was computed with it.
struct Known {
    value: f32,
    gradient: Tensor,
}

impl CustomOp1 for Known {
    fn name(&self) -> &'static str {
        "known-gradient"
    }

    fn cpu_fwd(&self, _x: &CpuStorage, _l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![self.value]), Shape::from(())))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some((&self.gradient * f64::from(g.to_scalar::<f32>()?))?))
    }
}

#[cfg(test)]
mod tests;
