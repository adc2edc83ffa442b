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
