#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]
// Exponentials and logarithms are those of `libm`: the system's differ in the last bit from one
// device to the next, and with them scores would.

#[cfg(target_endian = "big")]
compile_error!(
    "bundles are little-endian and read in place; big-endian machines are not supported"
);

mod adapt;
mod added;
mod batch;
mod blend;
pub mod bundle;
mod caps;
mod diversity;
pub mod engine;
mod error;
mod explain;
mod filter;
mod frame;
mod history;
mod holdout;
mod household;
mod id;
mod join;
#[cfg(feature = "store")]
mod journal;
pub mod kernel;
#[cfg(feature = "store")]
mod lock;
mod partition;
pub mod quant;
mod ranking;
mod recommendation;
mod search;
mod server;
pub mod session;
mod snapshot;
#[cfg(feature = "store")]
pub mod store;
mod table;
mod topk;
mod user_data;
mod vectors;

pub use adapt::{Feedback, MAX_FEEDBACK};
pub use added::{Added, MAX_ADDED, NewItem};
pub use bundle::{
    Bundle, BundleWriter, ItemTableBuilder, LoadMode, Manifest, OpenOptions, TensorSpec,
    TensorWriter,
};
pub use diversity::{DiversityMethod, MAX_POOL};
pub use engine::{
    EngineKind, EngineReport, Follower, FusionTower, Input, InputData, ItemVector, Tower, UserTower,
};
#[cfg(feature = "ort")]
pub use engine::{OnnxRuntime, OnnxRuntimeOptions, Provider};
pub use error::{Error, Result};
pub use filter::{Filter, MAX_FILTER_BYTES, MAX_FILTER_DEPTH, MAX_FILTER_TERMS, Selection};
pub use history::{Event, History, MAX_HISTORY, Recorded};
pub use holdout::Holdout;
pub use household::{Together, recommend_together};
pub use id::{MAX_KEY_BYTES, MAX_NAME_BYTES, Row};
#[cfg(feature = "store")]
pub use journal::Durability;
pub use quant::Scheme;
pub use recommendation::{Because, ModalityShare, Query, Ranking, Recommendation};
pub use search::{Effort, Search};
pub use server::recommend_batch;
pub use session::{ProbeReport, Session, SessionOptions, score_histories};
#[cfg(feature = "store")]
pub use store::{BundleStore, StoreOptions, StoreStatus, StoredBundle};
pub use table::{ItemTable, Metric};
pub use topk::Scored;
pub use vectors::VectorFile;
