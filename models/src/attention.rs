//! Causal self-attention over sequences of different lengths, packed without padding.
//!
//! Rows of `q`, `k` and `v` are the events of all sequences, one sequence after the other, oldest
//! first. Real histories are short beside the longest of a batch, so that a padded batch would
//! spend most of its work on nothing.

use std::ops::Range;
use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Shape, Tensor};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::ops::pick;
use crate::rng::{self, Stream};
use crate::simd;

/// Where each sequence begins and ends in the packed rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments {
    lengths: Vec<usize>,
    rows: usize,
}

impl Segments {
    /// Sequences of these lengths, in this order; an empty one takes no rows.
    pub fn new(lengths: impl IntoIterator<Item = usize>) -> Self {
        let lengths: Vec<usize> = lengths.into_iter().collect();
        let rows = lengths.iter().sum();
        Self { lengths, rows }
    }

    /// Rows of each sequence.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Rows of all sequences together.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The row of the last event of each sequence, `None` for an empty one.
    pub fn last_rows(&self) -> Vec<Option<u32>> {
        let mut end = 0;
        self.lengths
            .iter()
            .map(|&n| {
                end += n;
                (n > 0).then(|| end as u32 - 1)
            })
            .collect()
    }

    /// Positions of a table of `window` rows, in which the last event of each sequence has the last
    /// one; earlier than the table reaches is its first.
    pub fn positions_from_the_end(&self, window: usize) -> Vec<u32> {
        self.lengths
            .iter()
            .flat_map(|&n| (0..n).map(move |t| (window + t).saturating_sub(n) as u32))
            .collect()
    }

    /// Cuts a buffer into the parts that belong to the sequences, `size(length)` values each.
    fn split<'a, T>(
        &self,
        mut buffer: &'a mut [T],
        size: impl Fn(usize) -> usize,
    ) -> Vec<&'a mut [T]> {
        self.lengths
            .iter()
            .map(|&n| {
                let (part, rest) = std::mem::take(&mut buffer).split_at_mut(size(n));
                buffer = rest;
                part
            })
            .collect()
    }
}

/// Weights of one head of one sequence: query i has i + 1 of them.
fn triangle(n: usize) -> usize {
    n * (n + 1) / 2
}

/// `softmax(q kᵀ / √(D/h)) v` within each sequence and head, where an event sees itself and what
/// came before it. Dropout of the weights, where a stream is given.
///
/// # Shapes
/// `q`, `k`, `v` `[R, D]` with R rows of `segments`; the result is `[R, D]`.
///
/// # Errors
/// Another number of rows than `segments` has, or D not a multiple of `heads`.
pub fn causal_attention(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    segments: &Segments,
    heads: usize,
    dropout: f64,
    noise: Option<&mut Stream>,
) -> Result<Tensor> {
    grouped_attention((q, k, v), segments, Heads::same(heads), dropout, noise)
}

/// Heads of queries, and those of keys and values that they share in equal groups
/// (arXiv 2305.13245).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Heads of queries.
    pub query: usize,
    /// Heads of keys and values; a divisor of `query`.
    pub key: usize,
}

impl Heads {
    /// Keys and values of its own for each head.
    pub fn same(heads: usize) -> Self {
        Self {
            query: heads,
            key: heads,
        }
    }

    fn check(self, (q, k, v): (&Tensor, &Tensor, &Tensor), segments: &Segments) -> Result<()> {
        let (rows, d) = q.dims2()?;
        let fits = self.key > 0
            && self.query.is_multiple_of(self.key)
            && d.is_multiple_of(self.query.max(1))
            && rows == segments.rows()
            && k.dims() == [rows, d / self.query * self.key]
            && v.dims() == k.dims();
        if fits {
            return Ok(());
        }
        Err(Error::config(format!(
            "attention of {} heads ({} of keys) over {} rows does not fit queries {:?}, keys {:?} and values {:?}",
            self.query,
            self.key,
            segments.rows(),
            q.dims(),
            k.dims(),
            v.dims()
        )))
    }

    /// The columns of a query head, and of the keys and values it reads.
    fn columns(self, at: usize, dim: usize) -> (Head, Head) {
        let width = dim / self.query;
        let head = |at: usize, dim: usize| Head {
            start: at * width,
            width,
            dim,
            scale: (width as f32).powf(-0.5),
        };
        let key = at * self.key / self.query;
        (head(at, dim), head(key, width * self.key))
    }
}

/// As [`causal_attention`], where several heads of queries may share one of keys and values.
///
/// # Shapes
/// `q` `[R, D]`, `k` and `v` `[R, D·heads.key/heads.query]`; the result is `[R, D]`.
///
/// # Errors
/// Another number of rows than `segments` has, or widths that do not split into the heads.
pub fn grouped_attention(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    segments: &Segments,
    heads: Heads,
    dropout: f64,
    noise: Option<&mut Stream>,
) -> Result<Tensor> {
    heads.check((q, k, v), segments)?;
    let keep = noise.filter(|_| dropout > 0.0).map(|r| {
        let scale = (1.0 / (1.0 - dropout)) as f32;
        let size: usize = segments
            .lengths
            .iter()
            .map(|&n| heads.query * triangle(n))
            .sum();
        (0..size)
            .map(|_| {
                if rng::unit(r) < dropout as f32 {
                    0.0
                } else {
                    scale
                }
            })
            .collect()
    });
    let op = Causal {
        segments: segments.clone(),
        heads,
        keep,
        weights: Mutex::new(None),
    };
    // The loops run on the host, whatever the device.
    let host = |t: &Tensor| t.to_device(&Device::Cpu)?.contiguous();
    let y = host(q)?.apply_op3(&host(k)?, &host(v)?, op)?;
    Ok(y.to_device(q.device())?)
}

/// Attention of sequences that continue earlier ones: each sees a range of the past rows, all of
/// them, and its own rows as in [`grouped_attention`]. Several may continue the same range, which is
/// then read where it lies and not copied. Forward only.
///
/// # Shapes
/// `q`, `k`, `v` as for [`grouped_attention`]; `past` keys and values `[P, D·heads.key/heads.query]`
/// and a range of `0..P` for each sequence of `segments`.
///
/// # Errors
/// As [`grouped_attention`], or ranges that do not fit.
pub fn continued_attention(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    past: (&Tensor, &Tensor, &[Range<usize>]),
    segments: &Segments,
    heads: Heads,
) -> Result<Tensor> {
    heads.check((q, k, v), segments)?;
    let (past_k, past_v, ranges) = past;
    let rows = past_k.dim(0)?;
    let fits = ranges.len() == segments.lengths.len()
        && ranges.iter().all(|r| r.start <= r.end && r.end <= rows)
        && past_k.dims() == past_v.dims()
        && past_k.dim(1)? == k.dim(1)?;
    if !fits {
        return Err(Error::config(format!(
            "past keys {:?} and their {} ranges do not fit {} sequences",
            past_k.dims(),
            ranges.len(),
            segments.lengths.len()
        )));
    }
    let host = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
    let (qs, ks, vs, pk, pv) = (host(q)?, host(k)?, host(v)?, host(past_k)?, host(past_v)?);
    let (dim, narrow) = (q.dim(1)?, k.dim(1)?);
    let mut out = vec![0f32; qs.len()];
    let mut row = 0;
    let mut starts = Vec::with_capacity(ranges.len());
    for n in &segments.lengths {
        starts.push(row);
        row += n;
    }
    segments
        .split(&mut out, |n| n * dim)
        .into_par_iter()
        .zip(&segments.lengths)
        .zip(&starts)
        .zip(ranges)
        .for_each(|(((out, &n), &start), range)| {
            let old = range.start * narrow..range.end * narrow;
            let (q, own) = (
                &qs[start * dim..][..n * dim],
                start * narrow..(start + n) * narrow,
            );
            let past = (&pk[old.clone()], &pv[old]);
            let rows = (q, &ks[own.clone()], &vs[own]);
            let mut weights = Vec::new();
            for at in 0..heads.query {
                let columns = heads.columns(at, dim);
                simd::dispatch(|| forward_after(columns, past, rows, &mut weights, out));
            }
        });
    Ok(Tensor::from_vec(out, q.shape(), q.device())?)
}

/// One head of one sequence after `past` keys and values.
#[inline(always)]
fn forward_after(
    (h, g): (Head, Head),
    (pk, pv): (&[f32], &[f32]),
    (q, k, v): Rows<'_>,
    weights: &mut Vec<f32>,
    out: &mut [f32],
) {
    let (n, old) = (q.len() / h.dim, pk.len() / g.dim);
    for i in 0..n {
        let query = h.row(q, i);
        weights.clear();
        weights.extend((0..old).map(|j| simd::dot(query, g.row(pk, j)) * h.scale));
        weights.extend((0..=i).map(|j| simd::dot(query, g.row(k, j)) * h.scale));
        let max = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        weights.iter_mut().for_each(|w| *w = simd::exp(*w - max));
        let inv = 1.0 / simd::sum(weights);
        let to = h.row_mut(out, i);
        for (j, w) in weights.iter().enumerate() {
            let value = if j < old {
                g.row(pv, j)
            } else {
                g.row(v, j - old)
            };
            axpy(to, w * inv, value);
        }
    }
}

/// The state after the last event of each sequence; zero for an empty one.
///
/// # Shapes
/// `states` `[R, D]` with R rows of `segments`; the result is `[sequences, D]`.
pub fn last_states(states: &Tensor, segments: &Segments) -> Result<Tensor> {
    let last = segments.last_rows();
    let (rows, d) = states.dims2()?;
    let dev = states.device();
    if rows == 0 {
        return Ok(Tensor::zeros((last.len(), d), DType::F32, dev)?);
    }
    let at: Vec<u32> = last.iter().map(|r| r.unwrap_or(0)).collect();
    let has: Vec<f32> = last
        .iter()
        .map(|r| f32::from(u8::from(r.is_some())))
        .collect();
    let picked = pick(states, &at)?;
    Ok(picked.broadcast_mul(&Tensor::from_vec(has, (at.len(), 1), dev)?)?)
}

struct Causal {
    segments: Segments,
    heads: Heads,
    /// Factors of dropout, in the order of the weights.
    keep: Option<Vec<f32>>,
    /// Softmax weights (before dropout) of the forward, for the backward: per sequence, head and
    /// query, the weights of the keys up to the query.
    weights: Mutex<Option<Vec<f32>>>,
}

/// Columns of one head, and the factor of its scores.
#[derive(Clone, Copy)]
struct Head {
    start: usize,
    width: usize,
    dim: usize,
    scale: f32,
}

impl Head {
    #[inline(always)]
    fn row<'a>(&self, x: &'a [f32], at: usize) -> &'a [f32] {
        &x[at * self.dim + self.start..][..self.width]
    }

    #[inline(always)]
    fn row_mut<'a>(&self, x: &'a mut [f32], at: usize) -> &'a mut [f32] {
        &mut x[at * self.dim + self.start..][..self.width]
    }
}

#[inline(always)]
fn axpy(to: &mut [f32], factor: f32, x: &[f32]) {
    to.iter_mut().zip(x).for_each(|(t, x)| *t += factor * x);
}

/// One head of one sequence: fills `weights` and adds the mixed values to `out`.
#[inline(always)]
fn forward(
    (h, g): (Head, Head),
    (q, k, v): Rows<'_>,
    keep: &[f32],
    weights: &mut [f32],
    out: &mut [f32],
) {
    let n = q.len() / h.dim;
    for i in 0..n {
        let w = &mut weights[triangle(i)..][..=i];
        let query = h.row(q, i);
        let mut max = f32::NEG_INFINITY;
        for (j, w) in w.iter_mut().enumerate() {
            *w = simd::dot(query, g.row(k, j)) * h.scale;
            max = max.max(*w);
        }
        w.iter_mut().for_each(|w| *w = simd::exp(*w - max));
        let inv = 1.0 / simd::sum(w);
        w.iter_mut().for_each(|w| *w *= inv);
        let to = h.row_mut(out, i);
        for (j, w) in w.iter().enumerate() {
            let kept = keep.get(triangle(i) + j).copied().unwrap_or(1.0);
            axpy(to, w * kept, g.row(v, j));
        }
    }
}

type Rows<'a> = (&'a [f32], &'a [f32], &'a [f32]);

/// One head of one sequence: adds to the gradients of queries, keys and values.
#[inline(always)]
fn backward(
    (h, g): (Head, Head),
    (q, k, v): Rows<'_>,
    keep: &[f32],
    weights: &[f32],
    up: &[f32],
    (dq, dk, dv): (&mut [f32], &mut [f32], &mut [f32]),
    scratch: &mut Vec<f32>,
) {
    let n = q.len() / h.dim;
    for i in 0..n {
        let w = &weights[triangle(i)..][..=i];
        let up = h.row(up, i);
        scratch.clear();
        let mut mean = 0.0;
        for (j, w) in w.iter().enumerate() {
            let kept = keep.get(triangle(i) + j).copied().unwrap_or(1.0);
            axpy(g.row_mut(dv, j), w * kept, up);
            let d = simd::dot(up, g.row(v, j)) * kept;
            mean += w * d;
            scratch.push(d);
        }
        for (j, (w, d)) in w.iter().zip(scratch.iter()).enumerate() {
            let s = w * (d - mean) * h.scale;
            axpy(h.row_mut(dq, i), s, g.row(k, j));
            axpy(g.row_mut(dk, j), s, h.row(q, i));
        }
    }
}

impl Causal {
    /// First row and first weight of each sequence.
    fn starts(&self) -> Vec<(usize, usize)> {
        let (mut row, mut weight) = (0, 0);
        self.segments
            .lengths
            .iter()
            .map(|&n| {
                let here = (row, weight);
                row += n;
                weight += self.heads.query * triangle(n);
                here
            })
            .collect()
    }

    /// Dropout factors of one head, nothing without dropout.
    fn kept(&self, start: usize, len: usize) -> &[f32] {
        self.keep.as_deref().map_or(&[], |k| &k[start..start + len])
    }
}

impl CustomOp3 for Causal {
    fn name(&self) -> &'static str {
        "causal-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        k: &CpuStorage,
        kl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (q, k) = (simd::f32_slice(q, ql)?, simd::f32_slice(k, kl)?);
        let v = simd::f32_slice(v, vl)?;
        let (dim, narrow) = (ql.dims()[1], kl.dims()[1]);
        let starts = self.starts();
        let total = self
            .segments
            .lengths
            .iter()
            .map(|&n| self.heads.query * triangle(n))
            .sum();
        let mut weights = vec![0f32; total];
        let mut out = vec![0f32; q.len()];
        let parts = self
            .segments
            .split(&mut weights, |n| self.heads.query * triangle(n));
        let outs = self.segments.split(&mut out, |n| n * dim);
        parts
            .into_par_iter()
            .zip(outs)
            .zip(&starts)
            .zip(&self.segments.lengths)
            .for_each(|(((w, out), &(row, first)), &n)| {
                let own = row * narrow..(row + n) * narrow;
                let q = &q[row * dim..(row + n) * dim];
                let (k, v) = (&k[own.clone()], &v[own]);
                let size = triangle(n);
                for at in 0..self.heads.query {
                    let keep = self.kept(first + at * size, size);
                    let w = &mut w[at * size..][..size];
                    let head = self.heads.columns(at, dim);
                    simd::dispatch(|| forward(head, (q, k, v), keep, w, out));
                }
            });
        if let Ok(mut kept) = self.weights.lock() {
            *kept = Some(weights);
        }
        Ok((CpuStorage::F32(out), ql.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let missing =
            || candle_core::Error::Msg("causal-attention: backward without its forward".into());
        let kept = self.weights.lock().map_err(|_| missing())?;
        let weights = kept.as_deref().ok_or_else(missing)?;
        let host = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
        let (qs, ks, vs, gs) = (host(q)?, host(k)?, host(v)?, host(&g.contiguous()?)?);
        let (dim, narrow) = (q.dim(1)?, k.dim(1)?);
        let (mut dq, mut dk) = (vec![0f32; qs.len()], vec![0f32; ks.len()]);
        let mut dv = vec![0f32; vs.len()];
        let grads = self
            .segments
            .split(&mut dq, |n| n * dim)
            .into_iter()
            .zip(self.segments.split(&mut dk, |n| n * narrow))
            .zip(self.segments.split(&mut dv, |n| n * narrow))
            .collect::<Vec<_>>();
        grads
            .into_par_iter()
            .zip(self.starts())
            .zip(&self.segments.lengths)
            .for_each(|((((dq, dk), dv), (row, first)), &n)| {
                let (rows, own) = (row * dim..(row + n) * dim, row * narrow..(row + n) * narrow);
                let size = triangle(n);
                let mut scratch = Vec::with_capacity(n);
                for at in 0..self.heads.query {
                    let head = self.heads.columns(at, dim);
                    let w = &weights[first + at * size..][..size];
                    let keep = self.kept(first + at * size, size);
                    let inputs = (&qs[rows.clone()], &ks[own.clone()], &vs[own.clone()]);
                    let up = &gs[rows.clone()];
                    simd::dispatch(|| {
                        let to = (&mut *dq, &mut *dk, &mut *dv);
                        backward(head, inputs, keep, w, up, to, &mut scratch);
                    });
                }
            });
        let wrap = |x: Vec<f32>, like: &Tensor| Tensor::from_vec(x, like.shape(), q.device());
        Ok((Some(wrap(dq, q)?), Some(wrap(dk, k)?), Some(wrap(dv, v)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Purpose;
    use candle_core::{D, Var};

    /// The same by padded matrix products.
    fn plain(
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        lengths: &[usize],
        heads: usize,
    ) -> Result<Tensor> {
        let d = q.dim(1)?;
        let mut start = 0;
        let mut out = Vec::new();
        for &n in lengths.iter().filter(|n| **n > 0) {
            let part = |x: &Tensor| -> Result<Tensor> {
                Ok(x.narrow(0, start, n)?
                    .reshape((n, heads, d / heads))?
                    .transpose(0, 1)?
                    .contiguous()?)
            };
            let (q, k, v) = (part(q)?, part(k)?, part(v)?);
            let hide: Vec<f32> = (0..n * n)
                .map(|at| if at % n <= at / n { 0.0 } else { -1e9 })
                .collect();
            let hide = Tensor::from_vec(hide, (1, n, n), &Device::Cpu)?;
            let s = (q.matmul(&k.t()?.contiguous()?)? * ((d / heads) as f64).powf(-0.5))?;
            let p = candle_nn::ops::softmax(&s.broadcast_add(&hide)?, D::Minus1)?;
            out.push(
                p.matmul(&v)?
                    .transpose(0, 1)?
                    .contiguous()?
                    .reshape((n, d))?,
            );
            start += n;
        }
        Ok(Tensor::cat(&out, 0)?)
    }

    #[test]
    fn value_and_gradients_equal_padded_products() -> Result<()> {
        let lengths = [3usize, 0, 1, 7];
        let dev = Device::Cpu;
        let mut r = rng::stream(1, Purpose::Init, &[]);
        let mut var =
            || -> Result<Var> { Ok(Var::from_tensor(&rng::normal(&mut r, (11, 6), 1.0, &dev)?)?) };
        let (q, k, v, w) = (var()?, var()?, var()?, var()?);
        let segments = Segments::new(lengths);
        let fast = causal_attention((&q, &k, &v), &segments, 2, 0.0, None)?;
        let slow = plain(&q, &k, &v, &lengths, 2)?;
        let worst = |a: &Tensor, b: &Tensor| -> Result<f32> {
            Ok((a - b)?.abs()?.max_all()?.to_scalar::<f32>()?)
        };
        assert!(worst(&fast, &slow)? < 1e-6);
        let gf = (fast * w.as_tensor())?.sum_all()?.backward()?;
        let gs = (slow * w.as_tensor())?.sum_all()?.backward()?;
        for x in [&q, &k, &v] {
            let (a, b) = (gf.get(x).expect("gradient"), gs.get(x).expect("gradient"));
            assert!(worst(a, b)? < 1e-5);
        }
        Ok(())
    }

    #[test]
    fn dropout_keeps_the_mean_and_its_gradient_follows_it() -> Result<()> {
        let dev = Device::Cpu;
        let segments = Segments::new([40; 50]);
        let q = Tensor::zeros((2000, 4), candle_core::DType::F32, &dev)?;
        let v = Var::from_tensor(&Tensor::ones((2000, 4), candle_core::DType::F32, &dev)?)?;
        let mut r = rng::stream(2, Purpose::Dropout, &[]);
        let y = causal_attention((&q, &q, &v), &segments, 2, 0.2, Some(&mut r))?;
        let mean = y.mean_all()?.to_scalar::<f32>()?;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        // Values enter linearly: Σ dv·v is the sum of the outputs.
        let g = y.sum_all()?.backward()?;
        let dv = g.get(&v).expect("gradient").sum_all()?.to_scalar::<f32>()?;
        assert!((dv / y.sum_all()?.to_scalar::<f32>()? - 1.0).abs() < 1e-4);
        Ok(())
    }

    /// Keys of two heads, each read by three heads of queries, against the same keys written out.
    #[test]
    fn grouped_heads_equal_repeated_keys_and_the_past_equals_one_sequence() -> Result<()> {
        let dev = Device::Cpu;
        let mut r = rng::stream(3, Purpose::Init, &[]);
        let mut var = |width: usize| -> Result<Var> {
            Ok(Var::from_tensor(&rng::normal(
                &mut r,
                (9, width),
                1.0,
                &dev,
            )?)?)
        };
        let (q, k, v, w) = (var(12)?, var(4)?, var(4)?, var(12)?);
        let heads = Heads { query: 6, key: 2 };
        let lengths = [5usize, 4];
        let fast = grouped_attention((&q, &k, &v), &Segments::new(lengths), heads, 0.0, None)?;
        let repeated = |x: &Tensor| -> Result<Tensor> {
            let wide = x.reshape((9, 2, 1, 2))?.broadcast_as((9, 2, 3, 2))?;
            Ok(wide.contiguous()?.reshape((9, 12))?)
        };
        let slow = plain(&q, &repeated(&k)?, &repeated(&v)?, &lengths, 6)?;
        let worst = |a: &Tensor, b: &Tensor| -> Result<f32> {
            Ok((a - b)?.abs()?.max_all()?.to_scalar::<f32>()?)
        };
        assert!(worst(&fast, &slow)? < 1e-6);
        let gf = (&fast * w.as_tensor())?.sum_all()?.backward()?;
        let gs = (slow * w.as_tensor())?.sum_all()?.backward()?;
        for x in [&q, &k, &v] {
            let (a, b) = (gf.get(x).expect("gradient"), gs.get(x).expect("gradient"));
            assert!(worst(a, b)? < 1e-5);
        }

        // The last two rows of the first sequence, twice, after its first three.
        let part = |x: &Tensor, at: usize, n: usize| -> Result<Tensor> {
            Ok(x.narrow(0, at, n)?.contiguous()?.detach())
        };
        let twice = |x: &Tensor| -> Result<Tensor> {
            let rows = part(x, 3, 2)?;
            Ok(Tensor::cat(&[&rows, &rows], 0)?)
        };
        let (pk, pv) = (part(&k, 0, 3)?, part(&v, 0, 3)?);
        let (tq, tk, tv) = (twice(&q)?, twice(&k)?, twice(&v)?);
        let y = continued_attention(
            (&tq, &tk, &tv),
            (&pk, &pv, &[0..3, 0..3]),
            &Segments::new([2, 2]),
            heads,
        )?;
        for at in [0, 2] {
            assert!(worst(&part(&y, at, 2)?, &part(&fast, 3, 2)?)? < 1e-6);
        }
        Ok(())
    }

    #[test]
    fn rows_and_positions() {
        let s = Segments::new([2, 0, 3]);
        assert_eq!(s.last_rows(), [Some(1), None, Some(4)]);
        assert_eq!(s.positions_from_the_end(4), [2, 3, 1, 2, 3]);
        assert_eq!(s.positions_from_the_end(2), [0, 1, 0, 0, 1]);
        let x = Tensor::zeros((4, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(causal_attention((&x, &x, &x), &s, 1, 0.0, None).is_err());
    }
}
