//! The crate's one error type.

use std::path::{Path, PathBuf};

/// A result whose error is [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong while reading data, training or evaluating.
///
/// Texts name the file, the line and what to do. They never quote a user's history.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The tensor library refused an operation.
    #[error("tensor operation failed")]
    Candle(#[from] candle_core::Error),
    /// The operating system refused to read or write a file.
    #[error("cannot access {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A table (CSV, RecBole or MMRec) holds something that cannot be used.
    #[error("{}, line {line}: {reason}", path.display())]
    Data {
        /// The table.
        path: PathBuf,
        /// One-based line of the record, 0 when the whole file is meant.
        line: u64,
        /// What is wrong and what to do about it.
        reason: String,
    },
    /// A feature matrix cannot be used.
    #[error("{}: {reason}", path.display())]
    Feature {
        /// The `.npy` or `.safetensors` file.
        path: PathBuf,
        /// What is wrong and what to do about it.
        reason: String,
    },
    /// A pretrained encoder's folder cannot be used.
    #[error("{}: {reason}", path.display())]
    Encoder {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what to do about it.
        reason: String,
    },
    /// An option is out of its range, or does not fit the data.
    #[error("invalid configuration: {reason}")]
    Config {
        /// Which option, and which values are allowed.
        reason: String,
    },
    /// A checkpoint cannot be read or does not belong to this model.
    #[error("{}: {reason}", path.display())]
    Checkpoint {
        /// The checkpoint file.
        path: PathBuf,
        /// What is wrong and what to do about it.
        reason: String,
    },
    /// A model produced scores that cannot be ranked.
    #[error("scores cannot be ranked: {reason}")]
    Scores {
        /// Which query and item.
        reason: String,
    },
    /// A numerical method did not succeed.
    #[error("numerical failure: {reason}")]
    Numeric {
        /// Which method, and which option to change.
        reason: String,
    },
    /// The caller asked to stop; a checkpoint was written if one was configured.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// An [`Error::Io`] for `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io {
            path: path.as_ref().to_path_buf(),
            source,
        }
    }

    /// An [`Error::Data`] for `path` and a one-based `line`.
    pub fn data(path: impl AsRef<Path>, line: u64, reason: impl Into<String>) -> Self {
        Self::Data {
            path: path.as_ref().to_path_buf(),
            line,
            reason: reason.into(),
        }
    }

    /// An [`Error::Feature`] for `path`.
    pub fn feature(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Feature {
            path: path.as_ref().to_path_buf(),
            reason: reason.into(),
        }
    }

    /// An [`Error::Encoder`] for `path`.
    pub fn encoder(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Encoder {
            path: path.as_ref().to_path_buf(),
            reason: reason.into(),
        }
    }

    /// An [`Error::Config`].
    pub fn config(reason: impl Into<String>) -> Self {
        Self::Config {
            reason: reason.into(),
        }
    }

    /// An [`Error::Checkpoint`] for `path`.
    pub fn checkpoint(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Checkpoint {
            path: path.as_ref().to_path_buf(),
            reason: reason.into(),
        }
    }
}
