//! From a trained student to a bundle that a device can open.
//!
//! [`export`] packs the two towers as ONNX ([`onnx`]) and the item vectors as a quantized table,
//! reopens the result through the runtime, compares it with the student ([`verify()`]) and writes
//! what it measured into the bundle's model card. [`BundleScorer`] lets
//! [`evaluate`](tercet_models::eval::evaluate) measure any bundle as a device would run it, and
//! [`replay()`] tells what learning from the user on the device adds to it.
#![forbid(unsafe_code)]

mod attribution;
mod bundle;
mod cold;
mod error;
mod inspect;
pub mod onnx;
mod quality;
pub mod replay;
mod scorer;
pub mod shards;
mod sign;
pub mod verify;

pub use bundle::{ExportOptions, ExportReport, Provenance, SkippedAttribute, export};
pub use cold::ColdItems;
pub use error::{Error, Result, ShardFault};
pub use inspect::{FileReport, InspectReport, TensorReport, inspect};
pub use quality::TableQuality;
pub use replay::{ReplayOptions, ReplayReport, replay};
pub use scorer::BundleScorer;
pub use sign::{KeyFiles, SigningKey};
pub use tercet::Scheme;
pub use verify::{Parity, VerifyReport, verify};
