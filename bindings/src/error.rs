//! Errors as an app can act on them.

#![deny(unsafe_code)]

use std::io::ErrorKind;

use tercet::Error;

/// What went wrong, by what an app can do about it. The numbers are those of `tercet_status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
#[non_exhaustive]
pub enum Kind {
    /// The engine was closed. Open it again.
    Closed = 1,
    /// The caller's mistake; the reason says which argument and what is accepted.
    InvalidArgument = 2,
    /// The item is not in the bundle: the app's catalogue is newer or older. Leave it out.
    UnknownItem = 3,
    /// The bundle folder or the snapshot file does not exist. Fetch it, or start without.
    NotFound = 4,
    /// The bundle needs another version of this library. Update the app, or fetch an older one.
    IncompatibleBundle = 5,
    /// The bundle is damaged or incomplete. Delete it and fetch it again.
    CorruptBundle = 6,
    /// The saved history is damaged or of a newer version. Delete it and start without.
    CorruptSnapshot = 7,
    /// This bundle, or this build of the library, lacks what the call needs.
    Unsupported = 8,
    /// The call did its work; the app's own listener failed afterwards.
    Listener = 9,
    /// The system refused a file operation. Free space, check permissions, try again.
    Io = 10,
    /// A fault of this library. Close the engine, open it again, report it.
    Internal = 11,
    /// The file is open in another session or process. Close that one first. (12 is a status of the
    /// C interface alone.)
    Busy = 13,
}

/// A [`Kind`] and a sentence for the developer. The sentence never holds what a user did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostError {
    /// What an app decides by.
    pub kind: Kind,
    /// What a developer reads.
    pub reason: String,
}

impl std::fmt::Display for HostError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for HostError {}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, HostError>;

impl HostError {
    /// An error of a kind.
    pub fn new(kind: Kind, reason: impl Into<String>) -> Self {
        HostError {
            kind,
            reason: reason.into(),
        }
    }

    /// The caller's mistake.
    pub fn argument(reason: impl Into<String>) -> Self {
        Self::new(Kind::InvalidArgument, reason)
    }

    /// What every call after `close` gets.
    pub fn closed() -> Self {
        Self::new(
            Kind::Closed,
            "this engine has been closed; open the bundle again to get a new one",
        )
    }

    /// What a caught panic becomes.
    pub fn panicked(payload: &(dyn std::any::Any + Send)) -> Self {
        let text = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no text");
        Self::new(
            Kind::Internal,
            format!("a fault in the library ({text}); close this engine and open the bundle again"),
        )
    }
}

impl From<Error> for HostError {
    fn from(error: Error) -> Self {
        HostError::new(kind(&error), describe(&error))
    }
}

fn kind(error: &Error) -> Kind {
    match error {
        Error::Io { path, source, .. } if source.kind() == ErrorKind::NotFound => {
            // A file that a readable manifest promises: the download stopped half-way.
            let in_a_bundle = path.file_name().is_some_and(|name| name != "manifest.json")
                && path
                    .parent()
                    .is_some_and(|folder| folder.join("manifest.json").is_file());
            if in_a_bundle {
                Kind::CorruptBundle
            } else {
                Kind::NotFound
            }
        }
        Error::Io { .. } => Kind::Io,
        Error::InvalidArgument { .. }
        | Error::Length { .. }
        | Error::UnknownBehavior { .. }
        | Error::UnknownAttribute { .. }
        | Error::FilterSyntax { .. }
        | Error::Kernel { .. }
        | Error::EmptyTable
        | Error::DuplicateKey { .. }
        | Error::NonFinite { .. } => Kind::InvalidArgument,
        Error::UnknownItem => Kind::UnknownItem,
        // To be opened again, as after closing.
        Error::Replaced { .. } => Kind::Closed,
        Error::UnsupportedFormat { .. } | Error::UnsupportedScheme { .. } => {
            Kind::IncompatibleBundle
        }
        Error::NotABundle { .. }
        | Error::ManifestTooLarge { .. }
        | Error::Manifest { .. }
        | Error::FileSize { .. }
        | Error::Digest { .. }
        | Error::HeaderTooLarge { .. }
        | Error::Container { .. }
        | Error::MissingTensor { .. }
        | Error::UnexpectedTensor { .. }
        | Error::Dtype { .. }
        | Error::Shape { .. }
        | Error::Misaligned { .. }
        | Error::Offsets { .. }
        | Error::CorruptTensor { .. } => Kind::CorruptBundle,
        // A tower that passed `verify` and still does not run is the bundle's fault.
        Error::Engine { .. } => Kind::CorruptBundle,
        Error::MissingTower { .. } | Error::EngineUnavailable { .. } => Kind::Unsupported,
        Error::HistoryBusy { .. } | Error::StoreBusy { .. } => Kind::Busy,
        Error::Snapshot { .. } | Error::UnsupportedSnapshot { .. } => Kind::CorruptSnapshot,
        _ => Kind::Internal,
    }
}

/// The whole chain in one line: hosts have no `source()`.
fn describe(error: &Error) -> String {
    use std::error::Error as _;
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text.push_str(": ");
        text.push_str(&e.to_string());
        cause = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    // Not with `tercet_fixtures`: it brings a second copy of this crate, with the same C names.
    use super::*;

    #[test]
    fn the_cause_is_part_of_the_reason() {
        let error = tercet::Bundle::open("/no/such/folder").unwrap_err();
        let reason = HostError::from(error).reason;
        assert!(
            reason.starts_with("cannot open /no/such/folder"),
            "{reason}"
        );
        assert!(reason.contains("os error 2"), "{reason}");
    }

    #[test]
    fn panics_keep_their_text() {
        let caught = std::panic::catch_unwind(|| panic!("number {}", 7)).unwrap_err();
        let error = HostError::panicked(&*caught);
        assert_eq!(error.kind, Kind::Internal);
        assert!(error.reason.contains("number 7"));
    }
}
