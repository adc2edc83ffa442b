//! Number formats of the item table: one file per scheme, each with encode, decode, score and
//! its error bound.

use safetensors::Dtype;
use serde::{Deserialize, Serialize};

pub mod f16;
pub mod f32;
pub mod int4;
pub mod int8;
pub mod tail;
pub mod two_stage;

/// How the values of an item vector are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Scheme {
    /// 4 bytes a value, exact.
    F32,
    /// 2 bytes a value, relative error at most 2⁻¹¹.
    F16,
    /// 1 byte a value and one f32 scale a row, error at most half a scale.
    Int8,
    /// 4 bits a value, an 8-bit factor a group of 32 and one f32 scale a row, error at most half
    /// a step.
    Int4,
    /// The bytes of [`Scheme::Int8`] in two planes of 4 bits: the first finds the candidates, both
    /// together score them.
    TwoStage,
}

impl Scheme {
    /// The name used in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::F32 => "f32",
            Scheme::F16 => "f16",
            Scheme::Int8 => "int8",
            Scheme::Int4 => "int4",
            Scheme::TwoStage => "two-stage",
        }
    }

    /// The scheme of a manifest name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name() == name)
    }

    /// Every scheme.
    pub const ALL: [Scheme; 5] = [
        Scheme::F32,
        Scheme::F16,
        Scheme::Int8,
        Scheme::Int4,
        Scheme::TwoStage,
    ];

    /// Bytes that a scan reads per item of `dim` values: codes and what scales them.
    pub fn scan_bytes(self, dim: usize) -> usize {
        match self {
            Scheme::F32 => 4 * dim,
            Scheme::F16 => 2 * dim,
            Scheme::Int8 => dim + 4,
            Scheme::Int4 => dim / 2 + crate::kernel::groups(dim) + 4,
            Scheme::TwoStage => dim / 2 + 4,
        }
    }

    /// Whether two values share a byte, so that D must be even.
    pub(crate) fn is_packed(self) -> bool {
        matches!(self, Scheme::Int4 | Scheme::TwoStage)
    }

    /// Whether a tail can follow: see [`tail`].
    pub(crate) fn takes_tail(self) -> bool {
        matches!(self, Scheme::Int8 | Scheme::TwoStage)
    }

    pub(crate) fn dtype(self) -> Dtype {
        match self {
            Scheme::F32 => Dtype::F32,
            Scheme::F16 => Dtype::F16,
            Scheme::Int8 => Dtype::I8,
            Scheme::Int4 | Scheme::TwoStage => Dtype::U8,
        }
    }
}

impl std::fmt::Display for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
