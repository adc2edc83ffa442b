//! The student's towers computed straight from their weights: no graph, no parser, nothing to
//! optimise.
//!
//! It knows one shape, that of the student (see `FORMAT.md`, "Tower weights"), and is what a phone
//! wants: loading is a matter of reading a few hundred kilobytes.
//!
//! Weights stay what they are in the file, quantized or not, and where they are.

mod fusion;
mod user;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;

use crate::bundle::tensors::{Half, Slice, TensorFile};
use crate::bundle::{Content, LoadMode};
use crate::error::{Error, Result};
use crate::kernel::{self, Layer, Panels};

pub(super) use fusion::CompactFusionTower;
pub(super) use user::CompactUserTower;

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

/// Layers of fewer outputs have their weights turned: a vector of outputs would be mostly empty.
const NARROW: usize = 16;

/// `x W + b`.
struct Dense {
    inputs: usize,
    outputs: usize,
    weights: Weights,
    /// `[outputs]`; empty for none.
    bias: Slice<f32>,
}

/// `[inputs, outputs]`, as in the file wherever that can be computed with.
enum Weights {
    /// One scale per output.
    I8(Slice<i8>, Slice<f32>),
    F32(Slice<f32>),
    Widened(Vec<f32>),
    /// `[outputs, inputs]`.
    Turned(Vec<f32>),
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
        let weights = match file.dtype(&weight) {
            Some(Dtype::I8) => {
                let codes = file.take::<i8>(&weight, &shape)?;
                let scales = file.take::<f32>(&format!("{weight}.scale"), &[Some(outputs)])?;
                Weights::I8(codes, scales)
            }
            Some(Dtype::F16) => {
                let bits = file.take::<Half>(&weight, &shape)?;
                let value = |h: &Half| half::f16::from_bits(h.0).to_f32();
                Weights::Widened(bits.get().iter().map(value).collect())
            }
            _ => Weights::F32(file.take::<f32>(&weight, &shape)?),
        };
        let bias = if with_bias {
            file.take::<f32>(&format!("{name}.bias"), &[Some(outputs)])?
        } else {
            Slice::empty(file)
        };
        Ok(Dense {
            inputs,
            outputs,
            weights: weights.turned_if_narrow(inputs, outputs),
            bias,
        })
    }

    /// Outputs `[n, outputs]` for inputs `[n, inputs]`; those of one input do not depend on the
    /// others.
    fn apply(&self, xs: &[f32], out: &mut [f32]) {
        self.run(xs, 0..self.outputs, false, out);
    }

    /// The same, with nothing below zero.
    fn apply_relu(&self, xs: &[f32], out: &mut [f32]) {
        self.run(xs, 0..self.outputs, true, out);
    }

    /// The layer for inputs that are codes, if its own weights are and have the right shape.
    fn coded(&self) -> Option<Coded> {
        let Weights::I8(codes, scales) = &self.weights else {
            return None;
        };
        let panels = kernel::active().panels(codes.get(), (self.inputs, self.outputs))?;
        Some(Coded {
            panels,
            scales: scales.clone(),
        })
    }

    /// Outputs `range` only.
    fn apply_part(&self, xs: &[f32], range: Range<usize>, out: &mut [f32]) {
        self.run(xs, range, false, out);
    }

    fn run(&self, xs: &[f32], range: Range<usize>, relu: bool, out: &mut [f32]) {
        let (kernel, shape) = (kernel::active(), (self.inputs, self.outputs));
        let bias = self.bias.get();
        let floats = |values, out: &mut [f32]| {
            let layer = Layer::new(values, shape, range.clone(), (&[], bias), relu);
            kernel.linear_f32(xs, layer, out);
        };
        match &self.weights {
            Weights::I8(codes, scales) => {
                let more = (scales.get(), bias);
                let layer = Layer::new(codes.get(), shape, range, more, relu);
                kernel.linear_i8(xs, layer, out);
            }
            Weights::F32(values) => floats(values.get(), out),
            Weights::Widened(values) => floats(values, out),
            Weights::Turned(columns) => {
                let (inputs, outputs) = (self.inputs.max(1), range.len());
                // Each column against many inputs at once.
                let mut products = [0.0f32; 32];
                let blocks = xs.chunks(products.len() * inputs);
                for (xs, out) in blocks.zip(out.chunks_mut(products.len() * outputs.max(1))) {
                    let products = &mut products[..xs.len() / inputs];
                    for (k, o) in range.clone().enumerate() {
                        let column = &columns[o * self.inputs..(o + 1) * self.inputs];
                        kernel.dot_f32(column, xs, products);
                        let bias = bias.get(o).unwrap_or(&0.0);
                        for (y, p) in out.iter_mut().skip(k).step_by(outputs).zip(&*products) {
                            *y = if relu { (p + bias).max(0.0) } else { p + bias };
                        }
                    }
                }
            }
        }
    }
}

/// A layer whose weights and inputs are codes.
struct Coded {
    panels: Panels,
    /// `[outputs]`
    scales: Slice<f32>,
}

impl Coded {
    /// Adds the products with inputs `[n, inputs]`, each row times its step, to what `out`
    /// `[n, outputs]` holds, and leaves nothing below zero. No bias is added.
    fn add_relu(&self, xs: &[i8], steps: &[f32], out: &mut [f32]) {
        kernel::active().linear_coded(xs, steps, &self.panels, self.scales.get(), out);
    }
}

impl Weights {
    fn turned_if_narrow(self, inputs: usize, outputs: usize) -> Self {
        if outputs >= NARROW {
            return self;
        }
        let mut rows = vec![0.0f32; inputs * outputs];
        for (o, row) in rows.chunks_exact_mut(inputs.max(1)).enumerate() {
            let at = |i: usize| i * outputs + o;
            for (i, to) in row.iter_mut().enumerate() {
                *to = match &self {
                    Weights::I8(codes, scales) => f32::from(codes.get()[at(i)]) * scales.get()[o],
                    Weights::F32(values) => values.get()[at(i)],
                    Weights::Widened(values) => values[at(i)],
                    Weights::Turned(values) => values[o * inputs + i],
                };
            }
        }
        Weights::Turned(rows)
    }
}
