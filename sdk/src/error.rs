//! The one error type of this crate.

use std::path::{Path, PathBuf};

/// Shorthand for `std::result::Result<T, tercet::Error>`.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in this crate.
///
/// Texts name the file or tensor, what was expected and what was found. They never contain
/// what a user did: no history, no item the user touched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb: `open`, `map`, `rename`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// An argument of the calling program is outside its documented range.
    #[error("invalid argument: {reason}")]
    InvalidArgument {
        /// Which argument, and what would be accepted.
        reason: String,
    },
    /// A vector or a list has the wrong length.
    #[error("{what} has {got} values, expected {expected}")]
    Length {
        /// Name of the argument or tensor.
        what: String,
        /// Required number of values.
        expected: usize,
        /// Number of values found.
        got: usize,
    },
    /// A value is NaN or infinite, or does not fit the scheme's number format.
    #[error("{what} holds a value that is not finite at row {row}; remove or replace it")]
    NonFinite {
        /// Name of the argument or tensor.
        what: String,
        /// Row of the first such value.
        row: usize,
    },
    /// An item key is not in the item table.
    #[error("the item is not in this bundle's table")]
    UnknownItem,
    /// A behavior is not in the manifest's vocabulary.
    #[error("behavior {got:?} is not in this bundle's vocabulary {known:?}")]
    UnknownBehavior {
        /// The name given.
        got: String,
        /// The names the bundle knows.
        known: Vec<String>,
    },
    /// A filter names an attribute column that the item table does not have.
    #[error("the table has no attribute {got:?}; it has {known:?}")]
    UnknownAttribute {
        /// The name given.
        got: String,
        /// The columns there are.
        known: Vec<String>,
    },
    /// The text of a filter cannot be read.
    #[error("filter, character {position}: expected {expected}, found {found}")]
    FilterSyntax {
        /// Where, in characters from 1.
        position: usize,
        /// What could have stood there.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// The folder is not a bundle, or is something that must not be replaced by one.
    #[error("{} is not a bundle: {reason}", path.display())]
    NotABundle {
        /// The folder.
        path: PathBuf,
        /// What is missing or in the way.
        reason: String,
    },
    /// The folder holds another bundle than when it was opened, and the call needed a file of it.
    #[error("{} was replaced since it was opened; open it again", path.display())]
    Replaced {
        /// The folder.
        path: PathBuf,
    },
    /// `manifest.json` is longer than any real manifest.
    #[error("{} has {bytes} bytes, limit is {limit}", path.display())]
    ManifestTooLarge {
        /// The manifest.
        path: PathBuf,
        /// Its length in bytes.
        bytes: u64,
        /// Largest accepted length in bytes.
        limit: u64,
    },
    /// `manifest.json` is not JSON of the documented form, or contradicts itself.
    #[error("manifest {}: {reason}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// The field and what is wrong with it.
        reason: String,
    },
    /// The bundle was written in a format this version does not read.
    #[error(
        "bundle format {got} is not supported, this version reads {supported}; update the app or fetch an older bundle"
    )]
    UnsupportedFormat {
        /// Version in the manifest.
        got: u64,
        /// Version this crate reads.
        supported: u64,
    },
    /// The item table uses a scheme this version does not know.
    #[error(
        "item table scheme {got:?} is not supported; known are f32, f16, int8, int4 and two-stage"
    )]
    UnsupportedScheme {
        /// Name in the manifest.
        got: String,
    },
    /// A file's length differs from the manifest: a partial download, or another file.
    #[error("{} has {got} bytes, the manifest says {expected}; fetch the bundle again", path.display())]
    FileSize {
        /// The file.
        path: PathBuf,
        /// Bytes promised by the manifest.
        expected: u64,
        /// Bytes found.
        got: u64,
    },
    /// A file's SHA-256 differs from the manifest.
    #[error("{} has sha256 {got}, the manifest says {expected}; fetch the bundle again", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// Lower-case hex digest in the manifest.
        expected: String,
        /// Lower-case hex digest of the file.
        got: String,
    },
    /// The JSON header of a tensor file claims to be longer than any real one.
    #[error("{}: tensor header of {bytes} bytes, limit is {limit}", path.display())]
    HeaderTooLarge {
        /// The tensor file.
        path: PathBuf,
        /// Claimed header length in bytes.
        bytes: u64,
        /// Largest accepted length in bytes.
        limit: u64,
    },
    /// The tensor file is not well-formed safetensors (header, offsets, lengths).
    #[error("{} is not a well-formed tensor file", path.display())]
    Container {
        /// The tensor file.
        path: PathBuf,
        /// What the container format complains about.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// A tensor that the format requires is absent.
    #[error("{}: tensor {tensor:?} is missing", path.display())]
    MissingTensor {
        /// The tensor file.
        path: PathBuf,
        /// Its name.
        tensor: String,
    },
    /// A tensor that this version does not know is present.
    #[error("{}: tensor {tensor:?} is not part of this format version", path.display())]
    UnexpectedTensor {
        /// The tensor file.
        path: PathBuf,
        /// Its name.
        tensor: String,
    },
    /// A tensor has another element type than the format requires.
    #[error("{}: tensor {tensor:?} is {got}, expected {expected}", path.display())]
    Dtype {
        /// The tensor file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Required element type.
        expected: &'static str,
        /// Type found.
        got: String,
    },
    /// A tensor has another shape than the format requires.
    #[error("{}: tensor {tensor:?} has shape {got:?}, expected {expected}", path.display())]
    Shape {
        /// The tensor file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Required shape.
        expected: String,
        /// Shape found.
        got: Vec<usize>,
    },
    /// A tensor does not start at a multiple of 64 bytes.
    #[error("{}: tensor {tensor:?} starts at byte {offset}, which is not a multiple of 64", path.display())]
    Misaligned {
        /// The tensor file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Byte offset in the file.
        offset: usize,
    },
    /// The content of a tensor breaks an invariant of the format.
    #[error("tensor {tensor:?} is corrupt at row {row}: {reason}")]
    CorruptTensor {
        /// The tensor's name.
        tensor: String,
        /// Row (or entry) where it was noticed.
        row: usize,
        /// The broken invariant.
        reason: &'static str,
    },
    /// The offsets of a table's partitions overlap, leave rows out or point beyond them.
    #[error("{}: offsets of {tensor:?} do not cover the rows in order, at entry {row}", path.display())]
    Offsets {
        /// The tensor file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// First entry that is wrong; 0 if the ends are.
        row: usize,
    },
    /// An item table without items cannot be written.
    #[error("the item table is empty")]
    EmptyTable,
    /// The same item key was given twice.
    #[error("item key {key:?} is given twice, at rows {first} and {second}")]
    DuplicateKey {
        /// The key.
        key: String,
        /// Lower row.
        first: usize,
        /// Higher row.
        second: usize,
    },
    /// The bundle does not carry the tower that the call needs.
    #[error("this bundle has no {tower} tower")]
    MissingTower {
        /// `user` or `fusion`.
        tower: &'static str,
    },
    /// This build has no engine that could run a tower.
    #[error("no engine in this build can run {file}; enable the feature `tract`")]
    EngineUnavailable {
        /// File name of the tower.
        file: String,
    },
    /// The library of an engine cannot be loaded.
    #[error("engine library {}: {reason}", path.display())]
    EngineLibrary {
        /// The library.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An engine failed to load or run a tower.
    #[error("tower {file}: {reason}")]
    Engine {
        /// File name of the tower.
        file: String,
        /// What the engine said.
        reason: String,
    },
    /// A history snapshot is damaged, truncated or something else.
    #[error("history snapshot {}: {reason}", path.display())]
    Snapshot {
        /// The snapshot.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A history snapshot was written by a newer version.
    #[error("history snapshot {} has version {got}, this version reads {supported}", path.display())]
    UnsupportedSnapshot {
        /// The snapshot.
        path: PathBuf,
        /// Version found.
        got: u32,
        /// Version this crate reads.
        supported: u32,
    },
    /// The file of a history is open elsewhere, in this process or another.
    #[error("history {} is open in another session or process", path.display())]
    HistoryBusy {
        /// The file.
        path: PathBuf,
    },
    /// A bundle has no signature, or one that does not fit its manifest: it was changed after it
    /// was signed.
    #[error("signature {}: {reason}", path.display())]
    Signature {
        /// The signature file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A bundle was signed with a key that the store does not trust (any more).
    #[error("{} is signed with a key that is not trusted here", path.display())]
    UntrustedKey {
        /// The bundle's folder.
        path: PathBuf,
    },
    /// A bundle is of another line than the store's.
    #[error("the bundle is {got:?}, this store keeps {expected:?}")]
    OtherBundle {
        /// `bundle_id` of the store.
        expected: String,
        /// `bundle_id` found.
        got: String,
    },
    /// A bundle is not newer than the newest one that was ever accepted.
    #[error("bundle version {got} is not newer than version {newest}, which was accepted before")]
    OldBundle {
        /// The newest version accepted so far.
        newest: u64,
        /// Version offered.
        got: u64,
    },
    /// A delta starts from a bundle that this store does not have.
    #[error("the delta {} starts from a bundle that is not in this store; install the whole bundle", path.display())]
    OtherBase {
        /// The delta's folder.
        path: PathBuf,
    },
    /// A delta is damaged, or not one of this format.
    #[error("delta, tensor {tensor:?}: {reason}; install the whole bundle")]
    Delta {
        /// Where it was noticed.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// A bundle is past its date.
    #[error("the bundle expired at {expires}; fetch a newer one")]
    Expired {
        /// The date, RFC 3339.
        expires: String,
    },
    /// Where a plain file was expected there is a symbolic link, a folder or a device.
    #[error("{} is not a plain file", path.display())]
    NotAFile {
        /// What was found.
        path: PathBuf,
    },
    /// A bundle to be installed holds a file that its manifest does not list.
    #[error("{} is not listed in the manifest", path.display())]
    UnlistedFile {
        /// The file.
        path: PathBuf,
    },
    /// A bundle to be installed is larger than the store accepts.
    #[error("the bundle has {bytes} bytes, limit is {limit}")]
    BundleTooLarge {
        /// Bytes of all files by the manifest, 2⁶⁴ − 1 if there are more.
        bytes: u64,
        /// Largest accepted number.
        limit: u64,
    },
    /// The storage cannot hold the bundle.
    #[error("{} has {free} bytes left, the bundle needs {needed}", path.display())]
    NoSpace {
        /// The store's folder.
        path: PathBuf,
        /// Bytes of the bundle.
        needed: u64,
        /// Bytes free for this user.
        free: u64,
    },
    /// A bundle does not recommend on this device what its manifest promises.
    #[error("the bundle's probe found {found} of {expected} expected items")]
    ProbeFailed {
        /// Expected items among the recommendations.
        found: usize,
        /// Items expected.
        expected: usize,
    },
    /// Another process (or thread) is installing into the same store.
    #[error("{} is being installed to by someone else; try again later", path.display())]
    StoreBusy {
        /// The store's folder.
        path: PathBuf,
    },
    /// The store holds no bundle of the kind asked for.
    #[error("{} has no {what} bundle", path.display())]
    NoBundle {
        /// The store's folder.
        path: PathBuf,
        /// `current`, `previous` or `staged`.
        what: &'static str,
    },
    /// The file with a store's state is damaged or was written by a newer version.
    #[error("store state {}: {reason}; delete the store's folder and install again", path.display())]
    StoreState {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// `TERCET_KERNEL` names a kernel that this machine cannot run.
    #[error("kernel {requested:?} is not available here; available are {available:?}")]
    Kernel {
        /// The name requested.
        requested: String,
        /// Names that would work.
        available: Vec<&'static str>,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io {
            action,
            path: path.as_ref().to_path_buf(),
            source,
        }
    }

    pub(crate) fn argument(reason: impl Into<String>) -> Self {
        Error::InvalidArgument {
            reason: reason.into(),
        }
    }

    pub(crate) fn corrupt(tensor: impl Into<String>, row: usize, reason: &'static str) -> Self {
        Error::CorruptTensor {
            tensor: tensor.into(),
            row,
            reason,
        }
    }

    pub(crate) fn manifest(path: &Path, reason: impl Into<String>) -> Self {
        Error::Manifest {
            path: path.to_path_buf(),
            reason: reason.into(),
        }
    }
}

/// [`Error::Length`] unless `what` has the expected length.
pub(crate) fn check_len(what: &str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::Length {
        what: what.to_string(),
        expected,
        got,
    })
}
