//! How well a bundle would have predicted what the user did: measured on the device, sent nowhere.

use crate::error::{Error, Result};
use crate::id::Row;
use crate::session::Session;

/// Outcome of [`Session::evaluate_holdout`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holdout {
    /// Events that were predicted.
    pub events: usize,
    /// Events whose item was among the k recommendations made from the events before it.
    pub hits: usize,
}

impl Holdout {
    /// Hits over events, hit rate at k; `None` without events.
    pub fn hit_rate(&self) -> Option<f64> {
        (self.events > 0).then(|| self.hits as f64 / self.events as f64)
    }
}

impl Session {
    /// Replays the user's `latest` events: for each, the best `k` items that are new to the user
    /// are ranked from the events before it, and the event's item is looked for among them. Counted
    /// are events of items that the table knows, that have an event before them, and that the user
    /// had not met before: others could not have been recommended.
    ///
    /// The user tower is that of the bundle, which may have been trained on these very events if
    /// they were ever collected. Costs a full pass of the tower and a search per event.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for `k` = 0; as [`Session::user_vector`].
    pub fn evaluate_holdout(&mut self, latest: usize, k: usize) -> Result<Holdout> {
        if k == 0 {
            return Err(Error::argument("k is 0, expected at least 1"));
        }
        let table = self.table().clone();
        let events = self.known_events();
        let tower = self.tower()?;
        let mut outcome = Holdout { events: 0, hits: 0 };
        let first = events.len().saturating_sub(latest).max(1);
        for (at, &(row, _)) in events.iter().enumerate().skip(first) {
            let before = &events[..at];
            let seen: Vec<Row> = before.iter().map(|&(row, _)| row).collect();
            if seen.contains(&row) {
                continue;
            }
            let user = tower.encode(&table, &[before.to_vec()])?;
            let best = table.top_k(&user, k, &seen)?;
            outcome.events += 1;
            outcome.hits += usize::from(best.iter().any(|s| s.row == row));
        }
        Ok(outcome)
    }
}
