//! At most so many recommended items per value of an attribute: a fixed number, or shares
//! calibrated to the user's history (after H. Steck: Calibrated recommendations, RecSys 2018).

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::id::Row;
use crate::table::{Attribute, ItemTable, NO_VALUE};

/// Largest number of caps in one query.
pub(crate) const MAX_CAPS: usize = 16;

/// A cap as declared in a query.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Cap {
    pub(crate) attribute: String,
    pub(crate) limit: Limit,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Limit {
    /// Items per value.
    Count(usize),
    /// The value's share of the history plus this slack, times k, rounded up.
    History(f32),
}

/// The caps of a query, resolved against a table, and what has been used up.
pub(crate) struct Caps<'a> {
    caps: Vec<Resolved<'a>>,
}

struct Resolved<'a> {
    column: &'a Attribute,
    name: &'a str,
    /// Limit of values that `limits` does not name.
    default: usize,
    limits: HashMap<u32, usize>,
    used: HashMap<u32, usize>,
}

impl<'a> Caps<'a> {
    /// `history` holds a row per event; items met more than once count more than once.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], [`Error::UnknownAttribute`], [`Error::CorruptTensor`].
    pub(crate) fn new(
        table: &'a ItemTable,
        caps: &'a [Cap],
        k: usize,
        history: &[Row],
    ) -> Result<Self> {
        if caps.len() > MAX_CAPS {
            return Err(Error::argument(format!(
                "a query of {} caps, at most {MAX_CAPS} are accepted",
                caps.len()
            )));
        }
        let caps = caps.iter().map(|cap| {
            let column = table.column(&cap.attribute)?;
            let (default, limits) = match cap.limit {
                Limit::Count(n) => (n, HashMap::new()),
                Limit::History(slack) => calibrated(column, k, slack, history)?,
            };
            Ok(Resolved {
                column,
                name: &cap.attribute,
                default,
                limits,
                used: HashMap::new(),
            })
        });
        Ok(Caps {
            caps: caps.collect::<Result<_>>()?,
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.caps.is_empty()
    }

    /// Counts `row` against the caps if all of them leave room for it.
    pub(crate) fn take(&mut self, row: Row) -> Result<bool> {
        for cap in &self.caps {
            for &code in cap.column.codes(row as usize)? {
                if code != NO_VALUE && cap.left(code) == 0 {
                    return Ok(false);
                }
            }
        }
        for cap in &mut self.caps {
            let mut codes = cap.column.codes(row as usize)?.to_vec();
            codes.sort_unstable();
            // A value listed twice is one value.
            codes.dedup();
            for code in codes.into_iter().filter(|&c| c != NO_VALUE) {
                *cap.used.entry(code).or_insert(0) += 1;
            }
        }
        Ok(true)
    }

    /// Items that no used-up value keeps out.
    pub(crate) fn open(&self) -> Result<Filter> {
        let mut parts = Vec::new();
        for cap in &self.caps {
            let mut full = Vec::new();
            for code in 0..cap.column.num_values() as u32 {
                if cap.left(code) == 0 {
                    full.push(cap.column.value(code, 0)?);
                }
            }
            if !full.is_empty() {
                parts.push(Filter::not_in(cap.name, full));
            }
        }
        Ok(Filter::all(parts))
    }
}

impl Resolved<'_> {
    fn left(&self, code: u32) -> usize {
        let limit = self.limits.get(&code).copied().unwrap_or(self.default);
        limit.saturating_sub(self.used.get(&code).copied().unwrap_or(0))
    }
}

/// Limit of the values that the history lacks, and of those it has. An event whose item has
/// several values counts for each in equal parts; events without a value do not count.
fn calibrated(
    column: &Attribute,
    k: usize,
    slack: f32,
    history: &[Row],
) -> Result<(usize, HashMap<u32, usize>)> {
    if !(0.0..=1.0).contains(&slack) {
        return Err(Error::argument(format!(
            "the slack of a calibrated cap is {slack}, accepted are numbers from 0 to 1"
        )));
    }
    let mut weights: HashMap<u32, f64> = HashMap::new();
    let mut total = 0.0;
    for &row in history {
        let codes = column.codes(row as usize)?;
        let values = || codes.iter().filter(|&&c| c != NO_VALUE);
        let n = values().count();
        for &code in values() {
            *weights.entry(code).or_insert(0.0) += 1.0 / n as f64;
        }
        total += f64::from(u8::from(n > 0));
    }
    if total == 0.0 {
        // Nothing to calibrate to.
        return Ok((usize::MAX, HashMap::new()));
    }
    // Less a rounding error: 10 · (0.3 + 0.1) is four places, not five.
    let limit = |share: f64| {
        (k as f64 * (share + f64::from(slack)) - 1e-6)
            .ceil()
            .max(0.0) as usize
    };
    let limits = weights.iter().map(|(&code, w)| (code, limit(w / total)));
    Ok((limit(0.0), limits.collect()))
}
