//! The file in which a session outlives the app: events, and items added on the device.
//!
//! | bytes | content |
//! |---|---|
//! | 8 | `TRCTHIST` |
//! | 4 | version, u32 little-endian, 3 |
//! | 8 | payload length P, u64 little-endian, at most 64 MiB |
//! | P | payload: bincode 1 wire format (fixed-size little-endian integers, u64 lengths) |
//! | 4 | CRC-32 (IEEE) of everything before, u32 little-endian |
//!
//! The payload is written by `wincode`, because `bincode` is unmaintained
//! (RUSTSEC-2025-0141) and its last release does not compile; the bytes are those of bincode 1:
//! unknown-item count (u64), number of events (u64), then per event the item key, the behavior
//! name (each u64 length and UTF-8) and the time (byte 0, or byte 1 and i64 seconds); number of
//! added items (u64), then per item its key, its features (u64 number; name, u64 length, f32
//! values) and its attributes (u64 number; name, u64 number, values); number of feedbacks (u64), then
//! per feedback the item key, its kind (u8: 0 positive, 1 skipped, 2 disliked) and the time as above.
//! Older versions are still read: 2 ends with the added items, 1 with the events.
//!
//! A snapshot holds keys, names and features, no rows, ids and vectors, so it fits every later
//! bundle.

use std::path::Path;

use wincode::{SchemaRead, SchemaWrite};

use crate::adapt::Feedback;
use crate::added::NewItem;
use crate::bundle::replace_file;
use crate::error::{Error, Result};
use crate::frame::{self, Damage};
use crate::history::{Event, History};
use crate::id::check_key;

pub(crate) const MAGIC: &[u8; 8] = b"TRCTHIST";
pub(crate) const VERSION: u32 = 3;
pub(crate) const MAX_PAYLOAD: usize = 64 << 20;

#[derive(SchemaWrite, SchemaRead)]
struct Events {
    unknown: u64,
    events: Vec<StoredEvent>,
}

/// What a session keeps, as it is stored.
#[derive(SchemaWrite, SchemaRead)]
pub(crate) struct Contents {
    events: Events,
    items: Vec<StoredItem>,
    feedback: Vec<StoredFeedback>,
}

/// The same, as version 2 stored it.
#[derive(SchemaWrite, SchemaRead)]
struct Contents2 {
    events: Events,
    items: Vec<StoredItem>,
}

/// What a session keeps, as it is used.
pub(crate) struct Kept {
    pub(crate) history: History,
    pub(crate) items: Vec<NewItem>,
    pub(crate) feedback: Vec<(String, Feedback, Option<i64>)>,
}

#[derive(SchemaWrite, SchemaRead)]
pub(crate) struct StoredEvent {
    item: String,
    /// Empty for none.
    behavior: String,
    timestamp: Option<i64>,
}

#[derive(SchemaWrite, SchemaRead)]
pub(crate) struct StoredItem {
    key: String,
    features: Vec<(String, Vec<f32>)>,
    attributes: Vec<(String, Vec<String>)>,
}

#[derive(SchemaWrite, SchemaRead)]
pub(crate) struct StoredFeedback {
    item: String,
    kind: u8,
    timestamp: Option<i64>,
}

impl StoredFeedback {
    pub(crate) fn new(item: &str, feedback: Feedback, timestamp: Option<i64>) -> Self {
        let kind = match feedback {
            Feedback::Positive => 0,
            Feedback::Skipped => 1,
            Feedback::Disliked => 2,
        };
        StoredFeedback {
            item: item.to_string(),
            kind,
            timestamp,
        }
    }

    /// What was stored, or what is wrong with it.
    pub(crate) fn read(self) -> Result<(String, Feedback, Option<i64>), String> {
        let feedback = match self.kind {
            0 => Feedback::Positive,
            1 => Feedback::Skipped,
            2 => Feedback::Disliked,
            other => return Err(format!("feedback of an unknown kind {other}")),
        };
        check_key(&self.item).map_err(|e| e.to_string())?;
        Ok((self.item, feedback, self.timestamp))
    }
}

impl Contents {
    pub(crate) fn new<'a>(
        history: &History,
        items: impl IntoIterator<Item = &'a NewItem>,
        feedback: impl IntoIterator<Item = StoredFeedback>,
    ) -> Self {
        Contents {
            events: Events {
                unknown: history.unknown_items(),
                events: history.events().map(StoredEvent::from).collect(),
            },
            items: items.into_iter().map(StoredItem::from).collect(),
            feedback: feedback.into_iter().collect(),
        }
    }
}

impl From<&Event> for StoredEvent {
    fn from(e: &Event) -> Self {
        StoredEvent {
            item: e.item.clone(),
            behavior: e.behavior.clone().unwrap_or_default(),
            timestamp: e.timestamp,
        }
    }
}

impl From<StoredEvent> for Event {
    fn from(e: StoredEvent) -> Self {
        let mut event = Event::new(e.item);
        event.behavior = Some(e.behavior).filter(|b| !b.is_empty());
        event.timestamp = e.timestamp;
        event
    }
}

impl From<&NewItem> for StoredItem {
    fn from(i: &NewItem) -> Self {
        StoredItem {
            key: i.key.clone(),
            features: i.features.clone(),
            attributes: i.attributes.clone(),
        }
    }
}

impl From<StoredItem> for NewItem {
    fn from(i: StoredItem) -> Self {
        NewItem {
            key: i.key,
            features: i.features,
            attributes: i.attributes,
        }
    }
}

#[cfg(feature = "store")]
impl Kept {
    pub(crate) fn contents(&self) -> Contents {
        let feedback = self.feedback.iter();
        let feedback = feedback.map(|(item, f, at)| StoredFeedback::new(item, *f, *at));
        Contents::new(&self.history, &self.items, feedback)
    }
}

/// Replaces the snapshot at `path`: written beside it, synced, renamed.
///
/// # Errors
/// [`Error::Io`]; [`Error::Snapshot`] if the content exceeds 64 MiB.
pub(crate) fn save(path: &Path, contents: &Contents) -> Result<()> {
    replace_file(path, &frame::wrap(MAGIC, VERSION, &encode(path, contents)?))
}

/// The payload of the present version, for a file at `path`.
pub(crate) fn encode(path: &Path, contents: &Contents) -> Result<Vec<u8>> {
    let payload = wincode::serialize(contents)
        .map_err(|e| broken(path, format!("cannot be encoded: {e}")))?;
    if payload.len() > MAX_PAYLOAD {
        let reason = format!("{} bytes of content, limit is {MAX_PAYLOAD}", payload.len());
        return Err(broken(path, reason));
    }
    Ok(payload)
}

/// Loads a snapshot; of one with more than `limit` events, the latest.
///
/// # Errors
/// [`Error::Io`], [`Error::Snapshot`], [`Error::UnsupportedSnapshot`],
/// [`Error::InvalidArgument`] for a bad `limit`.
pub(crate) fn load(path: &Path, limit: usize) -> Result<Kept> {
    let bytes = frame::read(path, MAX_PAYLOAD)?;
    let unwrapped = frame::unwrap(MAGIC, VERSION, MAX_PAYLOAD, &bytes);
    let (version, payload) = unwrapped.map_err(|damage| match damage {
        Damage::Version(got) => Error::UnsupportedSnapshot {
            path: path.to_path_buf(),
            got,
            supported: VERSION,
        },
        Damage::Broken(reason) => broken(path, reason),
    })?;
    decode(path, version, payload, limit)
}

/// Reads a payload of a `version` up to the present one.
pub(crate) fn decode(path: &Path, version: u32, payload: &[u8], limit: usize) -> Result<Kept> {
    let mut history = History::new(limit)?;
    // The input itself is at most 64 MiB; wincode bounds preallocation by 4 MiB.
    let payload = match version {
        1 => wincode::deserialize_exact(payload).map(|events| Contents {
            events,
            items: Vec::new(),
            feedback: Vec::new(),
        }),
        2 => wincode::deserialize_exact(payload).map(|old: Contents2| Contents {
            events: old.events,
            items: old.items,
            feedback: Vec::new(),
        }),
        _ => wincode::deserialize_exact(payload),
    };
    let payload: Contents =
        payload.map_err(|e| broken(path, format!("its payload is malformed: {e}")))?;
    let skip = payload.events.events.len().saturating_sub(limit);
    for e in payload.events.events.into_iter().skip(skip) {
        history
            .push(e.into())
            .map_err(|e| broken(path, e.to_string()))?;
    }
    let mut items = Vec::new();
    for i in payload.items {
        let item = NewItem::from(i);
        item.check().map_err(|e| broken(path, e.to_string()))?;
        items.push(item);
    }
    let feedback = payload.feedback.into_iter().map(StoredFeedback::read);
    let feedback = feedback.collect::<Result<_, _>>();
    Ok(Kept {
        history: history.with_unknown(payload.events.unknown),
        items,
        feedback: feedback.map_err(|reason| broken(path, reason))?,
    })
}

pub(crate) fn broken(path: &Path, reason: String) -> Error {
    Error::Snapshot {
        path: path.to_path_buf(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Count 3; one event: "a", "view", −2.
    fn events() -> Vec<u8> {
        let mut bytes = vec![3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend_from_slice(b"\x01\0\0\0\0\0\0\0a\x04\0\0\0\0\0\0\0view");
        bytes.push(1);
        bytes.extend_from_slice(&(-2i64).to_le_bytes());
        bytes
    }

    #[test]
    fn payload_is_bincode_1() {
        let payload = Contents {
            events: Events {
                unknown: 3,
                events: vec![StoredEvent {
                    item: "a".into(),
                    behavior: "view".into(),
                    timestamp: Some(-2),
                }],
            },
            items: vec![StoredItem {
                key: "b".into(),
                features: vec![("text".into(), vec![1.0])],
                attributes: vec![("c".into(), vec!["d".into()])],
            }],
            feedback: vec![StoredFeedback::new("e", Feedback::Disliked, None)],
        };
        let mut want = events();
        let count = 1u64.to_le_bytes();
        want.extend_from_slice(&count);
        want.extend_from_slice(b"\x01\0\0\0\0\0\0\0b");
        want.extend_from_slice(&count);
        want.extend_from_slice(b"\x04\0\0\0\0\0\0\0text");
        want.extend_from_slice(&count);
        want.extend_from_slice(&1f32.to_le_bytes());
        want.extend_from_slice(&count);
        want.extend_from_slice(b"\x01\0\0\0\0\0\0\0c");
        want.extend_from_slice(&count);
        want.extend_from_slice(b"\x01\0\0\0\0\0\0\0d");
        want.extend_from_slice(&count);
        want.extend_from_slice(b"\x01\0\0\0\0\0\0\0e\x02\0");
        assert_eq!(wincode::serialize(&payload).unwrap(), want);
    }

    #[test]
    fn version_1_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("old");
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&1u32.to_le_bytes());
        bytes.extend_from_slice(&(events().len() as u64).to_le_bytes());
        bytes.extend_from_slice(&events());
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        let Kept { history, items, .. } = load(&path, 10).unwrap();
        assert_eq!(history.unknown_items(), 3);
        let want = Event::new("a").behavior("view").at(-2);
        assert_eq!(history.events().collect::<Vec<_>>(), [&want]);
        assert!(items.is_empty());
    }
}
