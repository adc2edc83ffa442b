//! Grouping rows into partitions when a table is written: k-means over the item vectors.
//!
//! Distances are computed from integer codes by the kernel for many queries, the centroids
//! being the queries: any assignment is a valid one, and only an uneven quality of the
//! partitions, no wrong result, could come of the rounding.

use crate::kernel;
use crate::quant::int8;

/// Rounds over the sample.
const ROUNDS: usize = 10;

/// Rows per centroid in the sample that centroids are learnt from.
const SAMPLE: usize = 96;

/// Rows and centroids compared at a time; their products stay in the second-level cache.
const ROWS: usize = 256;
const CENTROIDS: usize = 96;

/// Codes of vectors for the kernel.
struct Coded {
    codes: Vec<i8>,
    scales: Vec<f32>,
}

impl Coded {
    fn new() -> Self {
        Coded {
            codes: Vec::new(),
            scales: Vec::new(),
        }
    }

    /// Codes within ±`limit`.
    fn push(&mut self, x: &[f32], limit: f32) {
        let start = self.codes.len();
        self.codes.resize(start + x.len(), 0);
        let codes = &mut self.codes[start..];
        if limit >= f32::from(int8::MAX_CODE) {
            self.scales.push(int8::encode(x, codes));
            return;
        }
        let max = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let scale = (max / limit).max(f32::MIN_POSITIVE);
        for (c, v) in codes.iter_mut().zip(x) {
            *c = (v / scale).round().clamp(-limit, limit) as i8;
        }
        self.scales.push(scale);
    }
}

/// The nearest centroid of each row of `vectors` `[N, D]`.
fn assign(vectors: &[f32], dim: usize, rows: &[u32], centroids: &[f32]) -> Vec<u32> {
    let kernel = kernel::active();
    let mut queries = Coded::new();
    // Nearest is largest x · c − ‖c‖² / 2.
    let mut half_norms = Vec::new();
    for c in centroids.chunks_exact(dim) {
        queries.push(c, 63.0);
        half_norms.push(c.iter().map(|v| v * v).sum::<f32>() / 2.0);
    }
    let mut out = Vec::with_capacity(rows.len());
    let mut sums = vec![0i32; ROWS * CENTROIDS];
    for block in rows.chunks(ROWS) {
        let mut coded = Coded::new();
        for &row in block {
            coded.push(
                &vectors[row as usize * dim..(row as usize + 1) * dim],
                127.0,
            );
        }
        let n = block.len();
        let mut best = vec![(f32::NEG_INFINITY, 0u32); n];
        for (g, group) in queries.codes.chunks(CENTROIDS * dim).enumerate() {
            let count = group.len() / dim;
            let sums = &mut sums[..count * n];
            kernel.many_i8(group, dim, &coded.codes, sums);
            for (i, sums) in sums.chunks_exact(n).enumerate() {
                let c = g * CENTROIDS + i;
                let (scale, half) = (queries.scales[c], half_norms[c]);
                for ((sum, row_scale), best) in sums.iter().zip(&coded.scales).zip(&mut best) {
                    let value = *sum as f32 * scale * row_scale - half;
                    if value > best.0 {
                        *best = (value, c as u32);
                    }
                }
            }
        }
        out.extend(best.into_iter().map(|(_, c)| c));
    }
    out
}

/// A small generator with a fixed seed: the same vectors give the same partitions.
fn next(state: &mut u64) -> usize {
    *state = state
        .wrapping_mul(6364136223846793005)
        .wrapping_add(1442695040888963407);
    (*state >> 33) as usize
}

/// Groups `vectors` `[N, D]` into `count` partitions (1 to N): centroids `[P, D]`, and the
/// partition of each row. Partitions may be empty.
pub(super) fn cluster(vectors: &[f32], dim: usize, count: usize) -> (Vec<f32>, Vec<u32>) {
    let n = vectors.len() / dim;
    let mut seed = 0x7e_4ce7;
    // A partial shuffle picks the sample and, at its front, the first centroids.
    let mut rows: Vec<u32> = (0..n as u32).collect();
    let sample = n.min(count.saturating_mul(SAMPLE));
    for i in 0..sample {
        let j = i + next(&mut seed) % (n - i);
        rows.swap(i, j);
    }
    rows.truncate(sample);
    let vector = |row: u32| &vectors[row as usize * dim..(row as usize + 1) * dim];
    let mut centroids: Vec<f32> = rows[..count]
        .iter()
        .flat_map(|&r| vector(r))
        .copied()
        .collect();
    for _ in 0..ROUNDS {
        let of = assign(vectors, dim, &rows, &centroids);
        let mut sums = vec![0.0f32; count * dim];
        let mut sizes = vec![0u32; count];
        for (&row, &c) in rows.iter().zip(&of) {
            let c = c as usize;
            sizes[c] += 1;
            let sum = &mut sums[c * dim..(c + 1) * dim];
            sum.iter_mut().zip(vector(row)).for_each(|(s, x)| *s += x);
        }
        for c in 0..count {
            let to = &mut centroids[c * dim..(c + 1) * dim];
            if sizes[c] == 0 {
                // Nobody's centroid starts again from some row.
                to.copy_from_slice(vector(rows[next(&mut seed) % rows.len()]));
                continue;
            }
            let scale = (sizes[c] as f32).recip();
            let mean = sums[c * dim..(c + 1) * dim].iter().map(|s| s * scale);
            to.iter_mut().zip(mean).for_each(|(t, m)| *t = m);
        }
    }
    let all: Vec<u32> = (0..n as u32).collect();
    let of = assign(vectors, dim, &all, &centroids);
    (centroids, of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separate_heaps_are_found() {
        // Eight corners of a cube in 16 dimensions, 20 rows around each.
        let dim = 16;
        let mut seed = 1;
        let mut vectors = Vec::new();
        for i in 0..160usize {
            for d in 0..dim {
                let corner = if d < 3 {
                    (i >> d & 1) as f32 * 2.0 - 1.0
                } else {
                    0.0
                };
                vectors.push(corner + (next(&mut seed) % 100) as f32 / 2000.0);
            }
        }
        // More centroids than heaps: whichever rows they start from, no heap shares one.
        let (centroids, of) = cluster(&vectors, dim, 40);
        assert_eq!((centroids.len(), of.len()), (40 * dim, 160));
        let mut heaps = vec![std::collections::HashSet::new(); 40];
        of.iter().enumerate().for_each(|(i, &c)| {
            heaps[c as usize].insert(i % 8);
        });
        assert!(
            heaps.iter().filter(|h| h.len() > 1).count() <= 1,
            "{heaps:?}"
        );
        assert_eq!(cluster(&vectors, dim, 40).1, of);
        let (_, one) = cluster(&vectors, dim, 1);
        assert!(one.iter().all(|&c| c == 0));
        assert_eq!(cluster(&vectors, dim, 160).1.len(), 160);
    }
}
