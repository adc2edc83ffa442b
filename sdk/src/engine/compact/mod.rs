//! The student's towers computed straight from their weights: no graph, no parser, nothing to
//! optimise.
//!
//! It knows one shape, that of the student (see `FORMAT.md`, "Tower weights"), and is what a phone
//! wants: loading is a matter of reading a few hundred kilobytes.
//!
//! Weights are kept as f32, one row per output, so that every layer is a call of the f32 kernel.

mod fusion;
mod user;

use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;

use crate::bundle::tensors::{Half, TensorFile};
use crate::bundle::{Content, LoadMode};
use crate::error::{Error, Result};
use crate::kernel;

pub(super) use fusion::CompactFusionTower;
pub(super) use user::CompactUserTower;

/// Inputs that share the loads of a weight; outputs whose rows are filled together.
const EACH: usize = 16;

/// Opens the weights in `path`, whose length in the manifest is `bytes`.
fn open(path: &Path, bytes: u64) -> Result<TensorFile> {
    let content = Arc::new(Content::open(path, bytes, LoadMode::Read)?);
    TensorFile::parse(path, content)
}

fn refuse(file: &str, reason: impl Into<String>) -> Error {
    Error::Engine {
        file: file.to_string(),
        reason: reason.into(),
    }
}

/// `[inputs, outputs]` as f32 `[outputs, inputs]`.
fn turned<T: Copy>(
    values: &[T],
    inputs: usize,
    outputs: usize,
    widen: impl Fn(T) -> f32,
) -> Vec<f32> {
    let mut rows = vec![0.0f32; values.len()];
    // A few outputs at a time: their rows stay in the cache while they are filled.
    for first in (0..outputs).step_by(EACH) {
        let block = first..outputs.min(first + EACH);
        for i in 0..inputs {
            let from = &values[i * outputs..][block.clone()];
            for (o, &v) in block.clone().zip(from) {
                rows[o * inputs + i] = widen(v);
            }
        }
    }
    rows
}

/// `x W + b` with W stored output by output.
struct Dense {
    inputs: usize,
    outputs: usize,
    /// `[outputs, inputs]`
    rows: Vec<f32>,
    /// `[outputs]`; empty for none.
    bias: Vec<f32>,
}

impl Dense {
    /// Reads `<name>.weight` `[inputs, outputs]` (F32, F16, or I8 with one scale per output) and,
    /// if wanted, `<name>.bias`.
    fn take(
        file: &mut TensorFile,
        name: &str,
        inputs: Option<usize>,
        outputs: Option<usize>,
        with_bias: bool,
    ) -> Result<Self> {
        let weight = format!("{name}.weight");
        let shape = [inputs, outputs];
        let dims = file.shape(&weight).unwrap_or_default().to_vec();
        // `take` checks that there are two dimensions, which hold the values.
        let (inputs, outputs) = match dims[..] {
            [i, o] => (i, o),
            _ => (0, 0),
        };
        let rows = match file.dtype(&weight) {
            Some(Dtype::I8) => {
                let codes = file.take::<i8>(&weight, &shape)?;
                let scales = file.take::<f32>(&format!("{weight}.scale"), &[Some(outputs)])?;
                let mut rows = turned(codes.get(), inputs, outputs, f32::from);
                for (row, scale) in rows.chunks_exact_mut(inputs.max(1)).zip(scales.get()) {
                    row.iter_mut().for_each(|v| *v *= scale);
                }
                rows
            }
            Some(Dtype::F16) => {
                let bits = file.take::<Half>(&weight, &shape)?;
                let value = |h: Half| half::f16::from_bits(h.0).to_f32();
                turned(bits.get(), inputs, outputs, value)
            }
            _ => {
                let values = file.take::<f32>(&weight, &shape)?;
                turned(values.get(), inputs, outputs, |v| v)
            }
        };
        let bias = if with_bias {
            let bias = file.take::<f32>(&format!("{name}.bias"), &[Some(outputs)])?;
            bias.get().to_vec()
        } else {
            Vec::new()
        };
        Ok(Dense {
            inputs,
            outputs,
            rows,
            bias,
        })
    }

    fn apply(&self, x: &[f32], out: &mut [f32]) {
        kernel::active().dot_f32(x, &self.rows, out);
        out.iter_mut().zip(&self.bias).for_each(|(o, b)| *o += b);
    }

    /// The same for several inputs `[n, inputs]`, to the bit. Outputs `[n, outputs]`.
    fn apply_each(&self, xs: &[f32], out: &mut [f32]) {
        if xs.len() <= self.inputs || self.outputs == 0 {
            if !xs.is_empty() {
                self.apply(xs, out);
            }
            return;
        }
        // A product does not depend on the order of its factors: an output's weights are the query,
        // the inputs the rows, so that each weight is loaded once for all of them.
        let kernel = kernel::active();
        let mut values = [0.0f32; EACH];
        for (xs, out) in xs
            .chunks(EACH * self.inputs)
            .zip(out.chunks_mut(EACH * self.outputs))
        {
            let values = &mut values[..xs.len() / self.inputs];
            for (o, weights) in self.rows.chunks_exact(self.inputs).enumerate() {
                kernel.dot_f32(weights, xs, values);
                if let Some(bias) = self.bias.get(o) {
                    values.iter_mut().for_each(|v| *v += bias);
                }
                for (out, value) in out.chunks_exact_mut(self.outputs).zip(&*values) {
                    out[o] = *value;
                }
            }
        }
    }

    /// Outputs `range` only.
    fn apply_part(&self, x: &[f32], range: std::ops::Range<usize>, out: &mut [f32]) {
        let rows = &self.rows[range.start * self.inputs..range.end * self.inputs];
        kernel::active().dot_f32(x, rows, out);
    }
}
