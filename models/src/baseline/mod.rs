//! Models to compare with: they need no features.

pub mod ease;
pub mod popularity;
