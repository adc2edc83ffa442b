//! Number formats of the item table: one file per scheme, each with encode, decode, score and
//! its error bound.

use safetensors::Dtype;
use serde::{Deserialize, Serialize};

pub mod f16;
pub mod f32;
pub mod int8;

/// How the values of an item vector are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Scheme {
    /// 4 bytes a value, exact.
    F32,
    /// 2 bytes a value, relative error at most 2⁻¹¹.
    F16,
    /// 1 byte a value and one f32 scale a row, error at most half a scale.
    Int8,
}

impl Scheme {
    /// The name used in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::F32 => "f32",
            Scheme::F16 => "f16",
            Scheme::Int8 => "int8",
        }
    }

    /// The scheme of a manifest name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Scheme::F32, Scheme::F16, Scheme::Int8]
            .into_iter()
            .find(|s| s.name() == name)
    }

    pub(crate) fn dtype(self) -> Dtype {
        match self {
            Scheme::F32 => Dtype::F32,
            Scheme::F16 => Dtype::F16,
            Scheme::Int8 => Dtype::I8,
        }
    }
}

impl std::fmt::Display for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
