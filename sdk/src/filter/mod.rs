//! Which items may be recommended: conditions on attribute columns, and their text form.
//!
//! A [`Filter`] is kept as a list of operations in postfix order, so that copying, dropping and
//! evaluating it needs no recursion however deeply a host nests it. [`ItemTable::select`](crate::ItemTable::select)
//! resolves it against a table once: strings become dictionary codes, then 64 rows at a time
//! become one word of a bitmap.

mod parse;
mod select;

use std::ops::{Bound, RangeBounds};
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::id::Row;

pub use select::Selection;
pub(crate) use select::number;

/// Longest text that [`Filter::parse`] accepts, in bytes.
pub const MAX_FILTER_BYTES: usize = 16 * 1024;

/// Most parentheses and `not` around each other in the text of a filter.
pub const MAX_FILTER_DEPTH: usize = 64;

/// Most conditions in one filter. A list of values is one condition, however long.
pub const MAX_FILTER_TERMS: usize = 256;

/// A condition on items: tests of attribute values joined by *and*, *or* and *not*.
///
/// Values are compared as the text that the bundle holds, byte for byte. An item without a
/// value passes only negated tests; in a column with several values per item one fitting value
/// suffices. A value that no item has matches nothing, while an attribute that the table does
/// not have is an [`Error::UnknownAttribute`] when the filter is used.
///
/// ```
/// use tercet::Filter;
/// let filter = Filter::all([
///     Filter::not_in("category", ["adult"]),
///     Filter::range("price", ..=20.0),
/// ]);
/// assert_eq!(filter, Filter::parse("category not in (adult) and price <= 20")?);
/// # Ok::<(), tercet::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    ops: Vec<Op>,
}

#[derive(Debug, Clone, PartialEq)]
enum Op {
    Constant(bool),
    In {
        attribute: String,
        values: Vec<String>,
    },
    Has(String),
    Range {
        attribute: String,
        min: Bound<f64>,
        max: Bound<f64>,
    },
    Bitmap(Arc<[u64]>),
    Rows(Arc<[Row]>),
    Items(Arc<[String]>),
    And,
    Or,
    Not,
}

impl Filter {
    fn one(op: Op) -> Self {
        Filter { ops: vec![op] }
    }

    /// Items with one of `values` in column `attribute`.
    pub fn is_in<S: Into<String>>(attribute: &str, values: impl IntoIterator<Item = S>) -> Self {
        Self::one(Op::In {
            attribute: attribute.to_string(),
            values: values.into_iter().map(Into::into).collect(),
        })
    }

    /// Items with none of `values` in column `attribute`; also those without any value.
    pub fn not_in<S: Into<String>>(attribute: &str, values: impl IntoIterator<Item = S>) -> Self {
        Self::not(Self::is_in(attribute, values))
    }

    /// Items with any value in column `attribute`.
    pub fn has(attribute: &str) -> Self {
        Self::one(Op::Has(attribute.to_string()))
    }

    /// Items with a value in column `attribute` that reads as a finite decimal number within
    /// `range`; nothing matches in a column of other texts. A bound that is NaN is refused when
    /// the filter is used.
    ///
    /// ```
    /// # use tercet::Filter;
    /// let affordable = Filter::range("price", ..=20.0);
    /// let between = Filter::range("year", 1990.0..=1999.0);
    /// ```
    pub fn range(attribute: &str, range: impl RangeBounds<f64>) -> Self {
        Self::one(Op::Range {
            attribute: attribute.to_string(),
            min: range.start_bound().cloned(),
            max: range.end_bound().cloned(),
        })
    }

    /// Rows whose bit is set: row `r` is bit `r % 64` of word `r / 64`. For what only the host
    /// knows, as stock or age limits. The bitmap must have N / 64 words, rounded up; bits
    /// beyond N count for nothing, and items added to a session pass. Rows belong to one version
    /// of one bundle.
    pub fn available(bitmap: &[u64]) -> Self {
        Self::one(Op::Bitmap(bitmap.into()))
    }

    /// These rows, in any order; repeats and rows beyond the table are harmless.
    pub fn rows(rows: impl IntoIterator<Item = Row>) -> Self {
        let mut rows: Vec<Row> = rows.into_iter().collect();
        rows.sort_unstable();
        rows.dedup();
        Self::one(Op::Rows(rows.into()))
    }

    /// The items with these keys; keys that the table does not know count for nothing.
    pub fn items<S: Into<String>>(keys: impl IntoIterator<Item = S>) -> Self {
        Self::one(Op::Items(keys.into_iter().map(Into::into).collect()))
    }

    /// Items that pass all `filters`; with none given, every item.
    pub fn all(filters: impl IntoIterator<Item = Filter>) -> Self {
        Self::join(filters, Op::And, true)
    }

    /// Items that pass at least one of `filters`; with none given, no item.
    pub fn any(filters: impl IntoIterator<Item = Filter>) -> Self {
        Self::join(filters, Op::Or, false)
    }

    /// Items that do not pass `filter`.
    #[allow(clippy::should_implement_trait)] // a constructor like its siblings
    pub fn not(mut filter: Filter) -> Self {
        filter.ops.push(Op::Not);
        filter
    }

    fn join(filters: impl IntoIterator<Item = Filter>, op: Op, empty: bool) -> Self {
        let mut filters = filters.into_iter();
        let Some(mut joined) = filters.next() else {
            return Self::one(Op::Constant(empty));
        };
        for filter in filters {
            joined.ops.extend(filter.ops);
            joined.ops.push(op.clone());
        }
        joined
    }

    /// Reads the text form:
    ///
    /// ```text
    /// category in (tea, coffee) and not brand = "x y" and (price <= 20 or has sale)
    /// ```
    ///
    /// | text | stands for |
    /// |---|---|
    /// | `a = v`, `a in (v, w)` | [`Filter::is_in`] |
    /// | `a != v`, `a not in (v, w)` | [`Filter::not_in`] |
    /// | `has a` | [`Filter::has`] |
    /// | `a < 1`, `a <= 1`, `a > 1`, `a >= 1` | [`Filter::range`] |
    /// | `x and y`, `x or y`, `not x`, `(x)` | [`Filter::all`], [`Filter::any`], [`Filter::not`] |
    ///
    /// `not` binds tighter than `and`, `and` tighter than `or`. Names and values stand bare, or
    /// in single or double quotes if they hold blanks, one of `()<>=!,"'` or are one of the
    /// words `and or not in has` (in any case); within quotes a backslash keeps the quote or
    /// backslash that follows it. `=` compares text: for the number 20, however written, say
    /// `a >= 20 and a <= 20`.
    ///
    /// # Errors
    /// [`Error::FilterSyntax`] with the position and what was expected there, also for texts
    /// beyond [`MAX_FILTER_BYTES`], [`MAX_FILTER_DEPTH`] or [`MAX_FILTER_TERMS`]. Attributes
    /// are looked up later, when the filter is used.
    pub fn parse(text: &str) -> Result<Self> {
        parse::parse(text)
    }
}

impl FromStr for Filter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}
