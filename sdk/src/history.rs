//! What the user did: a bounded list of events.

use std::collections::VecDeque;
use std::path::Path;

use crate::error::{Error, Result};
use crate::id::{MAX_KEY_BYTES, MAX_NAME_BYTES, check_key};
use crate::snapshot::{self, Contents};

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

    /// Checks the lengths of key and name.
    pub(crate) fn check(&self) -> Result<()> {
        if check_key(&self.item).is_err() {
            return Err(Error::argument(format!(
                "an item key is empty or longer than {MAX_KEY_BYTES} bytes"
            )));
        }
        let name = self.behavior.as_ref();
        if name.is_some_and(|b| b.len() > MAX_NAME_BYTES) {
            return Err(Error::argument(format!(
                "a behavior name is longer than {MAX_NAME_BYTES} bytes"
            )));
        }
        Ok(())
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
        event.check()?;
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

    /// Counts of a snapshot.
    pub(crate) fn with_unknown(mut self, unknown: u64) -> Self {
        self.unknown = unknown;
        self
    }

    /// Replaces the snapshot at `path`: written beside it, synced, renamed. It holds the events
    /// only; [`Session::save`](crate::Session::save) keeps added items too.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Snapshot`] if the events exceed 64 MiB.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        snapshot::save(path.as_ref(), &Contents::new(self, &[], []))
    }

    /// Loads the events of a snapshot; of one longer than `limit`, the latest.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Snapshot`], [`Error::UnsupportedSnapshot`],
    /// [`Error::InvalidArgument`] for a bad `limit`.
    pub fn load(path: impl AsRef<Path>, limit: usize) -> Result<Self> {
        Ok(snapshot::load(path.as_ref(), limit)?.history)
    }
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
}
