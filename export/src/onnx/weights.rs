//! Number formats of a tower's weights.

use half::f16;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A matrix with fewer values stays f32: two more nodes would cost more than the bytes saved.
const MIN_VALUES: usize = 1024;

/// A matrix with more values stays f32. tract widens a constant once, when it loads the graph, only
/// if the result is at most 4 MiB, and otherwise at every run.
const MAX_VALUES: usize = 1 << 20;

/// How the weight matrices of a tower are stored. Biases and short vectors are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// Exact.
    F32,
    /// Half precision.
    F16,
    /// Codes within ±127 and one scale per output column.
    #[default]
    Int8,
}

impl Weights {
    /// `f32`, `f16` or `int8`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }
}

/// Values of a [`TowerTensor`].
#[derive(Debug, Clone, PartialEq)]
pub enum TensorData {
    /// Exact values.
    F32(Vec<f32>),
    /// Half precision.
    F16(Vec<f16>),
    /// `code · scale`, a scale per column.
    Int8 {
        /// Row-major codes within ±127.
        codes: Vec<i8>,
        /// Positive and finite, one per column.
        scales: Vec<f32>,
    },
}

/// A weight as it is stored: in the graph and, under the same name, in the tower's safetensors
/// file, where the scales of an int8 tensor are called `<name>.scale`.
#[derive(Debug, Clone, PartialEq)]
pub struct TowerTensor {
    /// Name in the student.
    pub name: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// The values.
    pub data: TensorData,
}

impl TowerTensor {
    /// A tensor that is never quantized.
    pub(super) fn exact(name: &str, shape: &[usize], values: Vec<f32>) -> Self {
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            data: TensorData::F32(values),
        }
    }

    /// A matrix `[rows, columns]` in the wanted form, or in f32 if its size makes that better.
    ///
    /// # Errors
    /// A value that half precision cannot hold.
    pub(super) fn matrix(
        name: &str,
        rows: usize,
        columns: usize,
        values: Vec<f32>,
        form: Weights,
    ) -> Result<Self> {
        let fits = (MIN_VALUES..=MAX_VALUES).contains(&values.len());
        let data = match form {
            Weights::F16 if fits => {
                let halves: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
                if !halves.iter().all(|h| h.is_finite()) {
                    return Err(Error::Weight {
                        tensor: name.into(),
                        reason: "a value does not fit in half precision".into(),
                    });
                }
                TensorData::F16(halves)
            }
            Weights::Int8 if fits => int8(columns, &values),
            _ => TensorData::F32(values),
        };
        Ok(Self {
            name: name.into(),
            shape: vec![rows, columns],
            data,
        })
    }

    /// The values a graph computes with.
    pub fn decode(&self) -> Vec<f32> {
        match &self.data {
            TensorData::F32(v) => v.clone(),
            TensorData::F16(v) => v.iter().map(|h| h.to_f32()).collect(),
            TensorData::Int8 { codes, scales } => codes
                .chunks(scales.len().max(1))
                .flat_map(|row| row.iter().zip(scales).map(|(c, s)| f32::from(*c) * s))
                .collect(),
        }
    }
}

/// scale = max|column| / 127, codes rounded to nearest: the error is at most half a scale.
fn int8(columns: usize, values: &[f32]) -> TensorData {
    let mut scales = vec![0f32; columns];
    for row in values.chunks(columns) {
        for (s, v) in scales.iter_mut().zip(row) {
            *s = s.max(v.abs());
        }
    }
    for s in &mut scales {
        *s = if *s > 0.0 {
            (*s / 127.0).max(f32::MIN_POSITIVE)
        } else {
            1.0
        };
    }
    let codes = values
        .chunks(columns)
        .flat_map(|row| {
            row.iter()
                .zip(&scales)
                .map(|(v, s)| (v / s).round().clamp(-127.0, 127.0) as i8)
        })
        .collect();
    TensorData::Int8 { codes, scales }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize) -> Vec<f32> {
        (0..n)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) * 10f32.powi((i % 4) as i32 - 2))
            .collect()
    }

    #[test]
    fn int8_is_within_half_a_scale() -> Result<()> {
        let v = values(64 * 32);
        let t = TowerTensor::matrix("w", 64, 32, v.clone(), Weights::Int8)?;
        let TensorData::Int8 { scales, codes } = &t.data else {
            panic!("a matrix of 2048 values is coded")
        };
        assert!(codes.iter().all(|c| *c >= -127));
        for (i, (a, b)) in v.iter().zip(t.decode()).enumerate() {
            // The rounding of quotient and product adds 127 · 2⁻²³ scales.
            assert!(
                (a - b).abs() <= scales[i % 32] * (0.5 + 1.0 / 65536.0),
                "{i}: {a} {b}"
            );
        }
        Ok(())
    }

    #[test]
    fn zero_columns_and_small_or_huge_matrices() -> Result<()> {
        let t = TowerTensor::matrix("w", 64, 32, vec![0.0; 2048], Weights::Int8)?;
        assert_eq!(t.decode(), vec![0.0; 2048]);
        for n in [MIN_VALUES - 1, MAX_VALUES + 1] {
            let t = TowerTensor::matrix("w", n, 1, vec![0.1; n], Weights::Int8)?;
            assert!(matches!(t.data, TensorData::F32(_)));
        }
        Ok(())
    }

    #[test]
    fn half_precision_refuses_what_it_cannot_hold() {
        let mut v = vec![1.0; 2048];
        v[7] = 1e6;
        assert!(TowerTensor::matrix("w", 64, 32, v, Weights::F16).is_err());
    }
}
