//! The crate's one error type.

use std::path::PathBuf;

/// A result whose error is [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong while packing or checking a bundle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The tensor library refused an operation.
    #[error("tensor operation failed")]
    Candle(#[from] candle_core::Error),
    /// The data set, the student or the evaluation is at fault.
    #[error(transparent)]
    Models(#[from] tercet_models::Error),
    /// The bundle could not be written, opened or run.
    #[error(transparent)]
    Runtime(#[from] tercet::Error),
    /// The operating system refused to read or write a file.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of a run is not the JSON it should be.
    #[error("{} is not readable JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A weight of the student cannot be stored.
    #[error("weight `{tensor}`: {reason}")]
    Weight {
        /// Its name.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// A signing key cannot be read, made or used.
    #[error("signing key {}: {reason}", path.display())]
    Key {
        /// The key's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The student or the options ask for something a bundle cannot hold.
    #[error("cannot be exported: {reason}")]
    Unsupported {
        /// What, and what to do instead.
        reason: String,
    },
    /// A shard of item vectors cannot be used.
    #[error("shard {}: {fault}", path.display())]
    Shard {
        /// The shard's file, or the folder if it is not one file's fault.
        path: PathBuf,
        /// What is wrong.
        fault: ShardFault,
    },
    /// Data and bundle, or data and student, do not belong together.
    #[error("data and bundle do not fit: {reason}")]
    Mismatch {
        /// What differs.
        reason: String,
    },
    /// The bundle does not compute what the student computes; nothing was left at the destination.
    #[error("the bundle differs from its student: {reason}")]
    Parity {
        /// Which bound was broken, and by how much.
        reason: String,
    },
}

/// What can be wrong with a shard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShardFault {
    /// There is no such file.
    #[error("it is missing; run the job again, which writes only what is missing")]
    Missing,
    /// It is no shard, or a damaged one.
    #[error("it is not a whole shard: {0}")]
    Malformed(String),
    /// It comes from another job, or is no part of any.
    #[error("it does not belong here: {0}")]
    Foreign(String),
    /// Vectors of another width than the student's.
    #[error("its vectors have {got} values, those of the student {expected}")]
    Dim {
        /// Width of the student.
        expected: usize,
        /// Width found.
        got: usize,
    },
    /// Rows that another shard holds too.
    #[error("it begins with row {got}, which {} holds", other.display())]
    Overlap {
        /// First row.
        got: u64,
        /// The other shard.
        other: PathBuf,
    },
    /// Rows that no shard holds.
    #[error("it begins with row {got}, but no shard holds row {expected}")]
    Gap {
        /// First row that is missing.
        expected: u64,
        /// First row.
        got: u64,
    },
    /// Two items with one key.
    #[error("item {key:?} is also in {}", other.display())]
    DuplicateKey {
        /// The key.
        key: String,
        /// The shard of the other one; it may be the same.
        other: PathBuf,
    },
}

impl Error {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
        source: std::io::Error,
    ) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source,
        }
    }
}
