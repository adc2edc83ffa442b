//! Rows stored partition by partition, and what is known of each partition without reading it.
//!
//! A partition is a ball: all its rows, as the scan decodes them, lie within `radius` of its
//! centroid c. So for a query q no score in it exceeds
//!
//! ```text
//! q · c + ‖q‖ · radius + largest bias
//! ```
//!
//! by the inequality of Cauchy and Schwarz. Radii are rounded up when they are written, by more
//! than the rounding of the sums that a scan computes in f32.

use std::ops::Range;
use std::path::Path;

use crate::bundle::tensors::{Half, Slice, TensorFile};
use crate::error::{Error, Result};
use crate::kernel;

/// What a reader has of a table's partitions.
#[derive(Clone)]
pub(crate) struct Partitions {
    /// `[P, D]`.
    centroids: Slice<Half>,
    /// `[P]`.
    radii: Slice<f32>,
    /// `[P]`, if the table has a bias.
    bias: Option<Slice<f32>>,
    /// `[P + 1]`.
    offsets: Slice<u32>,
    /// What the manifest proposes.
    pub(crate) probes: Option<usize>,
}

impl Partitions {
    pub(crate) fn take(
        file: &mut TensorFile,
        path: &Path,
        items: usize,
        dim: usize,
        count: usize,
        biased: bool,
    ) -> Result<Self> {
        let partitions = Partitions {
            centroids: file.take("partition.centroids", &[Some(count), Some(dim)])?,
            radii: file.take("partition.radii", &[Some(count)])?,
            bias: if biased {
                Some(file.take("partition.bias", &[Some(count)])?)
            } else {
                None
            },
            offsets: file.take("partition.offsets", &[Some(count + 1)])?,
            probes: None,
        };
        // At most 65536 of them: cheap enough to check once instead of at every probe.
        let offsets = partitions.offsets.get();
        let whole = offsets.first() == Some(&0) && offsets.last() == Some(&(items as u32));
        let decrease = offsets.windows(2).position(|w| w[0] > w[1]);
        match decrease.or((!whole).then_some(0)) {
            None => Ok(partitions),
            Some(row) => Err(Error::Offsets {
                path: path.to_path_buf(),
                tensor: "partition.offsets".into(),
                row,
            }),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.radii.len()
    }

    /// Rows of partition `p`; the offsets were checked when the table was opened.
    pub(crate) fn rows(&self, p: usize) -> Range<usize> {
        let offsets = self.offsets.get();
        match (offsets.get(p), offsets.get(p + 1)) {
            (Some(&a), Some(&b)) => a as usize..b as usize,
            _ => 0..0,
        }
    }

    /// For every partition the score of its centroid, and what no row of it exceeds.
    pub(crate) fn bounds(&self, query: &[f32], centers: &mut Vec<f32>, bounds: &mut Vec<f32>) {
        let n = self.len();
        centers.resize(n, 0.0);
        kernel::active().dot_f16(query, bytemuck::cast_slice(self.centroids.get()), centers);
        // Rounded up: the norm of a query has an error of its own.
        let norm = query
            .iter()
            .map(|x| f64::from(*x).powi(2))
            .sum::<f64>()
            .sqrt();
        let norm = (norm * (1.0 + 1e-6)) as f32;
        if let Some(bias) = &self.bias {
            centers
                .iter_mut()
                .zip(bias.get())
                .for_each(|(c, b)| *c += b);
        }
        bounds.clear();
        let pairs = centers.iter().zip(self.radii.get());
        bounds.extend(pairs.map(|(c, r)| {
            let bound = c + norm * r;
            // Room for the rounding of the sum and of a bias.
            let bound = bound + (c.abs() + bound.abs()) * 1e-6;
            // A damaged file may hold NaN: then nothing is known.
            if bound.is_nan() { f32::INFINITY } else { bound }
        }));
    }

    /// Centroid of partition `p`, decoded.
    pub(crate) fn centroid(&self, p: usize, out: &mut [f32]) {
        let d = out.len();
        let bits = &self.centroids.get()[p * d..(p + 1) * d];
        crate::quant::f16::decode(bytemuck::cast_slice(bits), out);
    }

    pub(crate) fn radius(&self, p: usize) -> f32 {
        self.radii.get().get(p).copied().unwrap_or(0.0)
    }

    pub(crate) fn largest_bias(&self, p: usize) -> Option<f32> {
        self.bias
            .as_ref()
            .map(|b| b.get().get(p).copied().unwrap_or(0.0))
    }
}

/// `radius` rounded up by what f32 sums over D values may be off: D + 16 roundings of terms
/// whose magnitudes sum to at most ‖q‖ · (‖c‖ + radius), once for the row and once for the
/// centroid.
pub(crate) fn rounded_up(radius: f64, centroid: f64, dim: usize) -> f32 {
    let slack = 2.0 * (dim as f64 + 16.0) * f64::from(f32::EPSILON) * (centroid + radius);
    ((radius + slack) as f32).next_up()
}
