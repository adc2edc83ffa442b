//! What the user did: a bounded list of events, and its snapshot file.
//!
//! # Snapshot
//!
//! | bytes | content |
//! |---|---|
//! | 8 | `TRCTHIST` |
//! | 4 | version, u32 little-endian, 1 |
//! | 8 | payload length P, u64 little-endian, at most 8 MiB |
//! | P | payload: bincode 1 wire format (fixed-size little-endian integers, u64 lengths) |
//! | 4 | CRC-32 (IEEE) of everything before, u32 little-endian |
//!
//! The payload is written by `wincode`, because `bincode` is unmaintained
//! (RUSTSEC-2025-0141) and its last release does not compile; the bytes are those of bincode 1:
//! unknown-item count (u64), number of events (u64), then per event the item key, the behavior
//! name (each u64 length and UTF-8) and the time (byte 0, or byte 1 and i64 seconds).
//!
//! A snapshot holds keys and names, no rows and no ids, so it fits every later bundle.

use std::collections::VecDeque;
use std::io::Read;
use std::path::Path;

use wincode::{SchemaRead, SchemaWrite};

use crate::bundle::replace_file;
use crate::error::{Error, Result};
use crate::id::{MAX_KEY_BYTES, MAX_NAME_BYTES, check_key};

const MAGIC: &[u8; 8] = b"TRCTHIST";
const VERSION: u32 = 1;
const MAX_PAYLOAD: usize = 8 << 20;
const FRAME: usize = 8 + 4 + 8 + 4;

/// Largest number of events a history can be configured to hold.
pub const MAX_HISTORY: usize = 4096;

/// Something the user did with an item.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// The app's own item key.
    pub item: String,
    /// Name from the bundle's vocabulary; `any` (id 0) if not given.
    pub behavior: Option<String>,
    /// Seconds since 1970-01-01 UTC.
    pub timestamp: Option<i64>,
}

impl Event {
    /// An event of behavior `any`, without a time.
    pub fn new(item: impl Into<String>) -> Self {
        Event {
            item: item.into(),
            behavior: None,
            timestamp: None,
        }
    }

    /// Sets the behavior.
    pub fn behavior(mut self, name: impl Into<String>) -> Self {
        self.behavior = Some(name.into());
        self
    }

    /// Sets the time, in seconds since 1970-01-01 UTC.
    pub fn at(mut self, seconds: i64) -> Self {
        self.timestamp = Some(seconds);
        self
    }
}

/// What became of a recorded event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Recorded {
    /// The item is in the table; the event counts from now on.
    Known,
    /// The item is not in the table. The event is kept, in case a later bundle knows it, but
    /// the user tower does not see it.
    UnknownItem,
}

/// Events, oldest first. When full, the oldest makes room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    events: VecDeque<Event>,
    limit: usize,
    unknown: u64,
}

#[derive(SchemaWrite, SchemaRead)]
struct Payload {
    unknown: u64,
    events: Vec<PayloadEvent>,
}

#[derive(SchemaWrite, SchemaRead)]
struct PayloadEvent {
    item: String,
    /// Empty for none.
    behavior: String,
    timestamp: Option<i64>,
}

impl History {
    /// An empty history of at most `limit` events.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless `limit` is 1 to [`MAX_HISTORY`].
    pub fn new(limit: usize) -> Result<Self> {
        if limit == 0 || limit > MAX_HISTORY {
            return Err(Error::argument(format!(
                "a history of {limit} events was asked for, accepted are 1 to {MAX_HISTORY}"
            )));
        }
        Ok(History {
            events: VecDeque::new(),
            limit,
            unknown: 0,
        })
    }

    /// The events, oldest first.
    pub fn events(&self) -> impl DoubleEndedIterator<Item = &Event> + ExactSizeIterator {
        self.events.iter()
    }

    /// Number of events held.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Most events held.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How many events ever recorded named an item that the bundle of the time did not know.
    pub fn unknown_items(&self) -> u64 {
        self.unknown
    }

    /// Appends an event; returns whether the oldest one had to go.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an empty or overlong key or name.
    pub fn push(&mut self, event: Event) -> Result<bool> {
        check_event(&event).map_err(Error::argument)?;
        let full = self.events.len() >= self.limit;
        if full {
            self.events.pop_front();
        }
        self.events.push_back(event);
        Ok(full)
    }

    pub(crate) fn count_unknown(&mut self) {
        self.unknown = self.unknown.saturating_add(1);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.events = VecDeque::new();
        self.unknown = 0;
    }

    /// Replaces the snapshot at `path`: written beside it, synced, renamed.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Snapshot`] if the events exceed 8 MiB.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let payload = Payload {
            unknown: self.unknown,
            events: self
                .events
                .iter()
                .map(|e| PayloadEvent {
                    item: e.item.clone(),
                    behavior: e.behavior.clone().unwrap_or_default(),
                    timestamp: e.timestamp,
                })
                .collect(),
        };
        let payload = wincode::serialize(&payload)
            .map_err(|e| snapshot(path, format!("cannot be encoded: {e}")))?;
        if payload.len() > MAX_PAYLOAD {
            let reason = format!("{} bytes of events, limit is {MAX_PAYLOAD}", payload.len());
            return Err(snapshot(path, reason));
        }
        let mut bytes = Vec::with_capacity(payload.len() + FRAME);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&payload);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        replace_file(path, &bytes)
    }

    /// Loads a snapshot; of one longer than `limit`, the latest events.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Snapshot`], [`Error::UnsupportedSnapshot`],
    /// [`Error::InvalidArgument`] for a bad `limit`.
    pub fn load(path: impl AsRef<Path>, limit: usize) -> Result<Self> {
        let path = path.as_ref();
        let mut history = History::new(limit)?;
        let file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
        let mut bytes = Vec::new();
        file.take((MAX_PAYLOAD + FRAME) as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io("read", path, e))?;
        let payload = decode(&bytes, path)?;
        history.unknown = payload.unknown;
        let skip = payload.events.len().saturating_sub(limit);
        for e in payload.events.into_iter().skip(skip) {
            let event = Event {
                item: e.item,
                behavior: Some(e.behavior).filter(|b| !b.is_empty()),
                timestamp: e.timestamp,
            };
            check_event(&event).map_err(|reason| snapshot(path, reason))?;
            history.events.push_back(event);
        }
        Ok(history)
    }
}

fn decode(bytes: &[u8], path: &Path) -> Result<Payload> {
    let fail = |reason: &str| snapshot(path, reason.to_string());
    let rest = bytes
        .strip_prefix(MAGIC.as_slice())
        .ok_or_else(|| fail("it does not start with TRCTHIST"))?;
    let (version, rest) = rest
        .split_first_chunk::<4>()
        .ok_or_else(|| fail("it is truncated"))?;
    let version = u32::from_le_bytes(*version);
    if version != VERSION {
        return Err(Error::UnsupportedSnapshot {
            path: path.to_path_buf(),
            got: version,
            supported: VERSION,
        });
    }
    let (length, rest) = rest
        .split_first_chunk::<8>()
        .ok_or_else(|| fail("it is truncated"))?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_PAYLOAD as u64 {
        return Err(fail("its length field exceeds the limit"));
    }
    let (payload, crc) = rest
        .split_last_chunk::<4>()
        .filter(|(payload, _)| payload.len() as u64 == length)
        .ok_or_else(|| fail("its length differs from its length field"))?;
    if crc32fast::hash(&bytes[..bytes.len() - 4]) != u32::from_le_bytes(*crc) {
        return Err(fail("its checksum is wrong"));
    }
    // The input itself is at most 8 MiB; wincode bounds preallocation by 4 MiB.
    wincode::deserialize_exact(payload)
        .map_err(|e| snapshot(path, format!("its payload is malformed: {e}")))
}

fn snapshot(path: &Path, reason: String) -> Error {
    Error::Snapshot {
        path: path.to_path_buf(),
        reason,
    }
}

fn check_event(event: &Event) -> Result<(), String> {
    if check_key(&event.item).is_err() {
        return Err(format!(
            "an item key is empty or longer than {MAX_KEY_BYTES} bytes"
        ));
    }
    if event
        .behavior
        .as_ref()
        .is_some_and(|b| b.len() > MAX_NAME_BYTES)
    {
        return Err(format!(
            "a behavior name is longer than {MAX_NAME_BYTES} bytes"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_room() {
        let mut h = History::new(2).unwrap();
        assert!(!h.push(Event::new("a")).unwrap());
        assert!(!h.push(Event::new("b")).unwrap());
        assert!(h.push(Event::new("c")).unwrap());
        let items: Vec<&str> = h.events().map(|e| e.item.as_str()).collect();
        assert_eq!(items, ["b", "c"]);
    }

    #[test]
    fn limits_are_checked() {
        assert!(History::new(0).is_err() && History::new(MAX_HISTORY + 1).is_err());
        let mut h = History::new(1).unwrap();
        assert!(h.push(Event::new("")).is_err());
        assert!(h.push(Event::new("x".repeat(MAX_KEY_BYTES + 1))).is_err());
        assert!(h.push(Event::new("x").behavior("y".repeat(65))).is_err());
        assert!(h.is_empty());
    }

    #[test]
    fn payload_is_bincode_1() {
        // By hand: u64 count 3; u64 length 1; "a"; "view"; Some(-2).
        let bytes = wincode::serialize(&Payload {
            unknown: 3,
            events: vec![PayloadEvent {
                item: "a".into(),
                behavior: "view".into(),
                timestamp: Some(-2),
            }],
        })
        .unwrap();
        let mut want = vec![3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        want.extend_from_slice(b"\x01\0\0\0\0\0\0\0a\x04\0\0\0\0\0\0\0view");
        want.push(1);
        want.extend_from_slice(&(-2i64).to_le_bytes());
        assert_eq!(bytes, want);
    }
}
