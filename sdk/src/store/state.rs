//! The file `current` of a store: which folder holds which bundle.
//!
//! A [frame](crate::frame) with the magic `TRCTSTOR`, version 1, at most 64 KiB of payload in
//! bincode 1's wire format: current, previous and staged slot (byte 0, or byte 1 and the slot),
//! then the number of floors (u64) and per floor the public key and the version. A slot is folder
//! name, version, SHA-256 of its manifest, public key, whether it is proven (u8), and how often
//! proving it was begun (u32).

use std::path::Path;

use wincode::{SchemaRead, SchemaWrite};

use crate::bundle::replace_file;
use crate::error::{Error, Result};
use crate::frame::{self, Damage};
use crate::id::is_file_name;

const MAGIC: &[u8; 8] = b"TRCTSTOR";
const VERSION: u32 = 1;
const MAX_PAYLOAD: usize = 1 << 16;

#[derive(Debug, Clone, Default, PartialEq, SchemaWrite, SchemaRead)]
pub(super) struct State {
    pub(super) current: Option<Slot>,
    pub(super) previous: Option<Slot>,
    pub(super) staged: Option<Slot>,
    /// The newest version accepted under each public key.
    pub(super) floors: Vec<(String, u64)>,
}

#[derive(Debug, Clone, PartialEq, SchemaWrite, SchemaRead)]
pub(super) struct Slot {
    pub(super) folder: String,
    pub(super) version: u64,
    pub(super) digest: String,
    pub(super) key: String,
    pub(super) proven: bool,
    pub(super) attempts: u32,
}

impl State {
    /// The state in file `path`; the empty one if there is no such file.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let bytes = match frame::read(path, MAX_PAYLOAD) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            other => other?,
        };
        let fail = |reason: String| Error::StoreState {
            path: path.to_path_buf(),
            reason,
        };
        let unwrapped = frame::unwrap(MAGIC, VERSION, MAX_PAYLOAD, &bytes);
        let (_, payload) = unwrapped.map_err(|damage| match damage {
            Damage::Broken(reason) => fail(reason),
            Damage::Version(got) => fail(format!(
                "it has version {got}, this version reads {VERSION}"
            )),
        })?;
        let state: State = wincode::deserialize_exact(payload)
            .map_err(|e| fail(format!("its payload is malformed: {e}")))?;
        if state.slots().any(|slot| !is_file_name(&slot.folder)) {
            return Err(fail("it names a folder outside the store".into()));
        }
        Ok(state)
    }

    /// Replaces the file: the old state or the new one survives a crash, whole.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let payload = wincode::serialize(self).map_err(|e| Error::StoreState {
            path: path.to_path_buf(),
            reason: format!("it cannot be encoded: {e}"),
        })?;
        replace_file(path, &frame::wrap(MAGIC, VERSION, &payload))
    }

    /// Staged becomes current, current previous.
    pub(super) fn advance(&mut self) -> Option<Slot> {
        let slot = self.staged.take()?;
        self.previous = self.current.replace(slot.clone());
        Some(slot)
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot> {
        let slots = [&self.current, &self.previous, &self.staged];
        slots.into_iter().flatten()
    }

    /// The newest version accepted under any of `keys`. What a key that is trusted no more has
    /// signed does not count: whoever stole it could otherwise block all updates with a huge
    /// version.
    pub(super) fn newest(&self, trusted: impl Fn(&str) -> bool) -> Option<u64> {
        let floors = self.floors.iter().filter(|(key, _)| trusted(key));
        floors.map(|&(_, version)| version).max()
    }

    /// Raises the floor of `key`, and forgets the floors of keys that are trusted no more.
    pub(super) fn raise(&mut self, key: &str, version: u64, trusted: impl Fn(&str) -> bool) {
        self.floors.retain(|(k, _)| trusted(k) && k != key);
        self.floors.push((key.to_string(), version));
    }
}
