//! Scores of ranges of rows against one query.

use super::{Codes, ItemTable, Metric};
use crate::bundle::tensors::Slice;
use crate::error::Result;
use crate::id::Row;
use crate::kernel;
use crate::quant;
use crate::search::{BLOCK, Scores};

/// Scores ranges of rows against one query, with the buffers that this takes.
pub(crate) struct Scorer<'a> {
    table: &'a ItemTable,
    metric: Metric,
    query: &'a [f32],
    norm: f32,
    bias: Option<&'a [f32]>,
    coded: Vec<i8>,
    /// Sum of `coded`.
    coded_sum: i32,
    query_scale: f32,
    sums: [i32; BLOCK],
    decoded: Vec<f32>,
    scratch: Vec<i8>,
}

impl<'a> Scorer<'a> {
    /// # Errors
    /// As [`ItemTable::check_query`].
    pub(crate) fn new(table: &'a ItemTable, metric: Metric, query: &'a [f32]) -> Result<Self> {
        table.check_query(query)?;
        let mut coded = vec![0i8; table.dim];
        let query_scale = quant::int8::encode(query, &mut coded);
        Ok(Scorer {
            table,
            metric,
            query,
            norm: dot_norm(query),
            bias: match metric {
                Metric::Score => table.bias.as_ref().map(Slice::get),
                Metric::Cosine => None,
            },
            query_scale,
            coded_sum: coded.iter().map(|&c| i32::from(c)).sum(),
            coded,
            sums: [0; BLOCK],
            decoded: vec![0.0; table.dim],
            scratch: vec![0; table.dim],
        })
    }
}

impl<'a> Scorer<'a> {
    /// Fills `sums` for `rows` rows of integer codes from `first`, and returns their scales and
    /// the factor that together make scores of them.
    fn sums(&mut self, first: usize, rows: usize) -> Option<(&'a [f32], f32)> {
        let kernel = kernel::active();
        let d = self.table.dim;
        let sums = &mut self.sums[..rows];
        let halves = first * (d / 2)..(first + rows) * (d / 2);
        let (scales, factor) = match &self.table.codes {
            Codes::F32(_) | Codes::F16(_) => return None,
            Codes::Int8 { codes, scales } => {
                kernel.dot_i8(
                    &self.coded,
                    &codes.get()[first * d..(first + rows) * d],
                    sums,
                );
                (scales, self.query_scale)
            }
            Codes::Int4 {
                codes,
                scales,
                factors,
            } => {
                let g = kernel::groups(d);
                let factors = &factors.get()[first * g..(first + rows) * g];
                kernel.dot_i4(&self.coded, &codes.get()[halves], factors, sums);
                (scales, self.query_scale)
            }
            Codes::TwoStage { high, scales, .. } => {
                kernel.dot_u4(&self.coded, &high.get()[halves], sums);
                for sum in sums.iter_mut() {
                    *sum = quant::two_stage::coarse(*sum, self.coded_sum);
                }
                (scales, 0.5 * self.query_scale)
            }
        };
        Some((&scales.get()[first..first + rows], factor))
    }
}

impl Scores for Scorer<'_> {
    fn scaled(&mut self, first: usize, rows: usize) -> Option<(&[i32], &[f32], f32)> {
        if self.bias.is_some() || self.metric != Metric::Score {
            return None;
        }
        let (scales, factor) = self.sums(first, rows)?;
        Some((&self.sums[..rows], scales, factor))
    }

    fn finalists(&self, k: usize) -> Option<usize> {
        match self.table.codes {
            Codes::F32(_) | Codes::F16(_) => None,
            Codes::Int8 { .. } | Codes::Int4 { .. } => Some(k.saturating_add((k / 2).max(32))),
            Codes::TwoStage { .. } => Some(k.saturating_mul(3).max(k.saturating_add(128))),
        }
    }

    fn bounds(&mut self, centers: &mut Vec<f32>, bounds: &mut Vec<f32>) -> bool {
        let Some(partitions) = &self.table.partitions else {
            return false;
        };
        if self.metric != Metric::Score {
            return false;
        }
        match self.table.codes {
            Codes::F32(_) | Codes::F16(_) => partitions.bounds(self.query, centers, bounds),
            // The scan multiplies with the query's codes: its scores are bounded, not those of
            // the query itself.
            _ => {
                quant::int8::decode(&self.coded, self.query_scale, &mut self.decoded);
                partitions.bounds(&self.decoded, centers, bounds);
            }
        }
        true
    }

    fn exact(&mut self, row: Row) -> Result<f32> {
        self.table
            .decode_with(row, &mut self.decoded, &mut self.scratch)?;
        let dot = dot(self.query, &self.decoded);
        Ok(match self.metric {
            Metric::Score => dot + self.table.bias(row),
            Metric::Cosine => cosine(dot, self.norm, dot_norm(&self.decoded)),
        })
    }

    fn block(&mut self, first: usize, scores: &mut [f32]) {
        let kernel = kernel::active();
        let (d, n) = (self.table.dim, scores.len());
        let (query, norm, metric) = (self.query, self.norm, self.metric);
        let range = first * d..(first + n) * d;
        match &self.table.codes {
            Codes::F32(codes) => {
                let rows = &codes.get()[range];
                kernel.dot_f32(query, rows, scores);
                if metric == Metric::Cosine {
                    for (s, x) in scores.iter_mut().zip(rows.chunks_exact(d)) {
                        *s = cosine(*s, norm, dot_norm(x));
                    }
                }
            }
            Codes::F16(codes) => {
                let rows: &[u16] = bytemuck::cast_slice(&codes.get()[range]);
                kernel.dot_f16(query, rows, scores);
                if metric == Metric::Cosine {
                    let x = &mut self.decoded;
                    for (s, bits) in scores.iter_mut().zip(rows.chunks_exact(d)) {
                        quant::f16::decode(bits, x);
                        *s = cosine(*s, norm, dot_norm(x));
                    }
                }
            }
            Codes::Int8 { codes, scales } => {
                let rows = &codes.get()[range];
                let sums = &mut self.sums[..n];
                kernel.dot_i8(&self.coded, rows, sums);
                match metric {
                    Metric::Score => {
                        let scales = &scales.get()[first..first + n];
                        for ((s, &sum), &scale) in scores.iter_mut().zip(&*sums).zip(scales) {
                            *s = sum as f32 * (scale * self.query_scale);
                        }
                    }
                    // Scales cancel out.
                    Metric::Cosine => {
                        for ((s, &sum), x) in
                            scores.iter_mut().zip(&*sums).zip(rows.chunks_exact(d))
                        {
                            let mut square = [0];
                            kernel.dot_i8(x, x, &mut square);
                            *s = cosine(
                                sum as f32 * self.query_scale,
                                norm,
                                (square[0] as f32).sqrt(),
                            );
                        }
                    }
                }
            }
            Codes::Int4 { .. } | Codes::TwoStage { .. } if metric == Metric::Cosine => {
                let x = &mut self.decoded;
                for (i, s) in scores.iter_mut().enumerate() {
                    // Rows of the scan exist; only such a row could fail.
                    *s = match self.table.decode((first + i) as Row, x) {
                        Ok(()) => cosine(dot(query, x), norm, dot_norm(x)),
                        Err(_) => f32::NEG_INFINITY,
                    };
                }
            }
            Codes::Int4 { .. } | Codes::TwoStage { .. } => {
                if let Some((scales, factor)) = self.sums(first, n) {
                    for ((s, &sum), &scale) in scores.iter_mut().zip(&self.sums).zip(scales) {
                        *s = sum as f32 * (scale * factor);
                    }
                }
            }
        }
        if let Some(bias) = self.bias {
            for (s, b) in scores.iter_mut().zip(&bias[first..first + n]) {
                *s += b;
            }
        }
    }
}

/// Inner product with the active kernel.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    quant::f32::score(a, b)
}

fn dot_norm(x: &[f32]) -> f32 {
    dot(x, x).sqrt()
}

fn cosine(dot: f32, a: f32, b: f32) -> f32 {
    let norms = a * b;
    if norms > 0.0 { dot / norms } else { 0.0 }
}
