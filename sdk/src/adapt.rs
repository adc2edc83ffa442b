//! Learning from the user on the device: opt-in, bounded, and gone without a trace when erased.
//!
//! A bundle never changes, so what a user thinks of its recommendations moves the *user vector*:
//! relevance feedback in the space of item vectors (Rocchio, "Relevance feedback in information
//! retrieval", 1971), with forgetting.
//!
//! ```text
//! u′ = u + Δ,   Δ = Σⱼ wⱼ · 2^(−aⱼ / h) · vⱼ / s²
//! ```
//!
//! vⱼ is the vector of the item of feedback j, wⱼ the weight of its kind ([`Feedback`]), aⱼ the
//! number of later feedbacks that were not [`Feedback::Skipped`], h the half-life, and s² the mean
//! square norm of the table's vectors (over 1,024 evenly spaced rows). Students are trained with a
//! softmax over their scores, so a score is a log-odds; the division makes w the log-odds that an
//! item of average norm gains from feedback on an item just like it, in every bundle. The same sum
//! is one step of gradient descent on a logistic loss from the student's user vector. The weights are
//! ours, chosen on validation rows of two data sets by replay.
//!
//! Because u′ is a user vector like any other, everything that works on one stays as it is: the
//! integer scan, the bounds of partitions, filters, caps, and explanations, in which Δ falls apart
//! into the parts of its items exactly.
//!
//! Δ is a function of the kept list and the bundle alone, computed from the whole list each time:
//! a list from a snapshot, or under a later bundle, gives the same bits as one that grew event by
//! event. Without feedback nothing is added, not even zero, so a session that forgot ranks bit for
//! bit as one that never adapted.
//!
//! Cost: at most [`MAX_FEEDBACK`] vectors of D values are decoded and added when something changed,
//! and D additions a query. Memory: the keys of the kept items, at most [`MAX_FEEDBACK`] times
//! [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES), about 30 kB with short ones, and D values.

use std::collections::VecDeque;

use crate::blend::sample_rows;
use crate::error::{Error, Result};
use crate::history::Recorded;
use crate::id::{Row, check_key};
#[cfg(feature = "store")]
use crate::journal::Change;
use crate::session::Session;
#[cfg(feature = "store")]
use crate::snapshot::StoredFeedback;
use crate::table::{ItemTable, dot};

/// Most feedbacks that a session keeps. Then the oldest makes room, among skips as long as they are
/// more than half: they come by the dozen, and must not push out what was chosen or rejected.
pub const MAX_FEEDBACK: usize = 512;

/// Feedbacks other than skips after which one counts half.
const HALF_LIFE: f32 = 6.5;

/// What the user thinks of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Feedback {
    /// Chosen, bought, watched to the end, rated well: more like this.
    Positive,
    /// Shown and passed over: a little less like this.
    Skipped,
    /// Rejected: less like this, and not this item again.
    Disliked,
}

impl Feedback {
    /// Log-odds; see the head of this module.
    fn weight(self) -> f32 {
        match self {
            Feedback::Positive => 0.3,
            // Ten are passed over for one that is chosen.
            Feedback::Skipped => -0.01,
            Feedback::Disliked => -0.05,
        }
    }
}

/// A feedback that is kept, and the item's row in the session's table.
struct Given {
    item: String,
    feedback: Feedback,
    at: Option<i64>,
    row: Option<Row>,
}

/// The feedback that a session keeps, and what it has learned from it.
pub(crate) struct Adaptation {
    /// Whether rankings follow. If not, what a file brought is kept for a session that learns.
    active: bool,
    /// Oldest first.
    given: VecDeque<Given>,
    /// 1 / s², once needed.
    unit: Option<f32>,
    /// Δ; nothing until it is asked for, and after each change.
    shift: Option<Vec<f32>>,
}

impl Adaptation {
    /// Nothing learned yet.
    pub(crate) fn new(active: bool) -> Self {
        Adaptation {
            active,
            given: VecDeque::new(),
            unit: None,
            shift: None,
        }
    }

    /// 1 / s².
    fn unit(&mut self, table: &ItemTable) -> Result<f32> {
        if let Some(unit) = self.unit {
            return Ok(unit);
        }
        let mut x = vec![0.0; table.dim()];
        let (mut squares, mut rows) = (0.0f64, 0u32);
        for row in sample_rows(table.len()) {
            table.decode(row, &mut x)?;
            squares += f64::from(dot(&x, &x));
            rows += 1;
        }
        let unit = (f64::from(rows) / squares) as f32;
        // Vectors of zeros, or of a damaged file: nothing can be learned in their space.
        Ok(*self.unit.insert(if unit.is_finite() { unit } else { 0.0 }))
    }

    /// Keeps a feedback, in place of an old one if there are [`MAX_FEEDBACK`]. The time is kept for
    /// the host and for later versions; the order of the calls is what counts.
    ///
    /// # Errors
    /// [`Error::CorruptTensor`].
    pub(crate) fn push(
        &mut self,
        table: &ItemTable,
        item: &str,
        feedback: Feedback,
        at: Option<i64>,
    ) -> Result<Recorded> {
        let row = table.find(item)?;
        if self.given.len() >= MAX_FEEDBACK {
            let skip = |g: &Given| g.feedback == Feedback::Skipped;
            let many = self.given.iter().filter(|g| skip(g)).count() > MAX_FEEDBACK / 2;
            if let Some(oldest) = self.given.iter().position(|g| skip(g) == many) {
                self.given.remove(oldest);
            }
        }
        self.given.push_back(Given {
            item: item.to_string(),
            feedback,
            at,
            row,
        });
        self.shift = None;
        Ok(match row {
            Some(_) => Recorded::Known,
            None => Recorded::UnknownItem,
        })
    }

    /// What is kept, oldest first.
    pub(crate) fn entries(
        &self,
    ) -> impl ExactSizeIterator<Item = (&str, Feedback, Option<i64>)> + '_ {
        self.given.iter().map(|g| (&*g.item, g.feedback, g.at))
    }

    /// Looks the kept items up in a table that changed.
    ///
    /// # Errors
    /// [`Error::CorruptTensor`]. Nothing is changed then.
    pub(crate) fn relink(&mut self, table: &ItemTable) -> Result<()> {
        let rows: Result<Vec<_>> = self.given.iter().map(|g| table.find(&g.item)).collect();
        for (g, row) in self.given.iter_mut().zip(rows?) {
            g.row = row;
        }
        self.shift = None;
        Ok(())
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.given = VecDeque::new();
        self.shift = None;
    }

    /// Rows of the items that the user rejected, if the session learns.
    pub(crate) fn disliked(&self) -> impl Iterator<Item = Row> + '_ {
        let disliked = self
            .given
            .iter()
            .filter(|g| self.active && g.feedback == Feedback::Disliked);
        disliked.filter_map(|g| g.row)
    }

    /// Row and factor of the vector per feedback on an item that the table knows, oldest first.
    fn terms(&mut self, table: &ItemTable) -> Result<Vec<(Row, f32)>> {
        if !self.active || self.given.is_empty() {
            return Ok(Vec::new());
        }
        let unit = self.unit(table)?;
        let mut age = 0.0f32;
        let mut terms = Vec::with_capacity(self.given.len());
        for g in self.given.iter().rev() {
            if let Some(row) = g.row {
                let decay = libm::exp2f(-age / HALF_LIFE);
                terms.push((row, g.feedback.weight() * decay * unit));
            }
            if g.feedback != Feedback::Skipped {
                age += 1.0;
            }
        }
        terms.reverse();
        Ok(terms)
    }

    /// Adds Δ to a user vector.
    ///
    /// # Errors
    /// As [`ItemTable::decode`], for a row that [`Adaptation::relink`] did not look up.
    pub(crate) fn apply(&mut self, table: &ItemTable, user: &mut [f32]) -> Result<()> {
        if !self.active || self.given.is_empty() {
            return Ok(());
        }
        let shift = match self.shift.take() {
            Some(shift) => shift,
            None => {
                let mut shift = vec![0.0; user.len()];
                let mut x = vec![0.0; user.len()];
                for (row, factor) in self.terms(table)? {
                    table.decode(row, &mut x)?;
                    add(&mut shift, factor, &x);
                }
                shift
            }
        };
        add(user, 1.0, self.shift.insert(shift));
        Ok(())
    }

    /// Adds what each item adds to the user vector to the parts that the history's items have.
    ///
    /// # Errors
    /// As [`Adaptation::apply`].
    pub(crate) fn explain(
        &mut self,
        table: &ItemTable,
        parts: &mut Vec<(Row, Vec<f32>)>,
    ) -> Result<()> {
        let mut x = vec![0.0; table.dim()];
        for (row, factor) in self.terms(table)? {
            table.decode(row, &mut x)?;
            match parts.iter_mut().find(|(r, _)| *r == row) {
                Some((_, part)) => add(part, factor, &x),
                None => {
                    x.iter_mut().for_each(|v| *v *= factor);
                    parts.push((row, x.clone()));
                }
            }
        }
        Ok(())
    }
}

/// `to` + `factor` · `x`, one rounding per operation on every machine.
fn add(to: &mut [f32], factor: f32, x: &[f32]) {
    to.iter_mut().zip(x).for_each(|(t, v)| *t += factor * v);
}

impl Session {
    /// Learns what the user thinks of an item; `at` is in seconds since 1970-01-01 UTC, if known.
    /// Calls come in the order in which things happened. From then on [`Session::recommend`] and
    /// [`Session::rank`] follow, and disliked items are left out like seen ones as long as their
    /// feedback is kept.
    ///
    /// Feedback is no event: what the user *did* belongs into [`Session::record`] as well. It is
    /// kept for items that the table lacks, and counts once a later bundle or
    /// [`Session::add_item`] brings them. At most [`MAX_FEEDBACK`] are kept.
    ///
    /// [`recommend_together`](crate::recommend_together), [`recommend_batch`](crate::recommend_batch)
    /// and [`Session::evaluate_holdout`] rank without it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless the session was opened with
    /// [`SessionOptions::adapt`](method@crate::SessionOptions::adapt), and for an empty or overlong key;
    /// [`Error::CorruptTensor`]. Nothing is changed then.
    pub fn feedback(
        &mut self,
        item: &str,
        feedback: Feedback,
        at: Option<i64>,
    ) -> Result<Recorded> {
        if !self.adaptation.active {
            return Err(Error::argument(
                "the session does not learn from feedback: open it with SessionOptions::adapt(true)",
            ));
        }
        check_key(item)?;
        let table = self.table().clone();
        #[cfg(feature = "store")]
        self.keep(|| Change::Feedback(StoredFeedback::new(item, feedback, at)))?;
        self.adaptation.push(&table, item, feedback, at)
    }

    /// The feedback that is kept, oldest first: item key, kind and time.
    pub fn kept_feedback(
        &self,
    ) -> impl ExactSizeIterator<Item = (&str, Feedback, Option<i64>)> + '_ {
        self.adaptation.entries()
    }

    /// Forgets all feedback: rankings are those of the bundle and the history again, bit for bit.
    /// [`Session::erase`] does this too.
    ///
    /// # Errors
    /// In a durable session [`Error::Io`], if that could not be kept; nothing is changed then.
    pub fn forget_feedback(&mut self) -> Result<()> {
        #[cfg(feature = "store")]
        self.keep(|| Change::ForgottenFeedback)?;
        self.adaptation.clear();
        Ok(())
    }

    /// The vector `[D]` that rankings use: [`Session::user_vector`], moved by feedback.
    ///
    /// # Errors
    /// As [`Session::user_vector`].
    pub fn ranking_vector(&mut self) -> Result<Vec<f32>> {
        let mut user = self.user_vector()?.to_vec();
        let table = self.table().clone();
        self.adaptation.apply(&table, &mut user)?;
        Ok(user)
    }
}
