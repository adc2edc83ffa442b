//! Multimodal recommenders trained with candle, and the one inductive student distilled from them.
//!
//! The path through the crate: a [`data::Dataset`] is read from a folder or generated, a teacher
//! ([`diffmm`], [`dprec`], [`odmt`], [`tmf`] or one of [`baseline`]) is trained by [`train`], [`distill`] turns any trained run
//! into a [`student`], and [`eval`] measures each of them by full ranking.
#![forbid(unsafe_code)]

pub mod attention;
pub mod baseline;
pub mod data;
pub mod diffmm;
pub mod distill;
pub mod divergence;
pub mod dprec;
pub mod encoder;
pub mod error;
pub mod eval;
pub mod factors;
pub mod graph;
pub mod knn;
pub mod layer;
pub mod llm;
pub mod odmt;
pub mod ops;
#[cfg(test)]
mod oracle;
pub mod params;
pub mod rng;
pub mod run;
mod simd;
pub mod spectrum;
pub mod student;
pub mod tmf;
pub mod train;
pub mod usage;

pub use error::{Error, Result};
