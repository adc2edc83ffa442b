//! Filters, evaluated: the rows of a table that pass.

use std::ops::{Bound, RangeBounds};

use super::{Filter, MAX_FILTER_TERMS, Op};
use crate::error::{Error, Result};
use crate::id::Row;
use crate::kernel;
use crate::table::{Attribute, ItemTable, NO_VALUE};

/// Rows per word of a bitmap.
const WORD: usize = 64;

/// Words that every test is tried on, to find the order in which the tests are done.
const SAMPLE: usize = 16;

/// The rows of one table that pass a filter, one bit per row; made by [`ItemTable::select`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    words: Vec<u64>,
    items: usize,
    len: usize,
}

impl Selection {
    /// Number of rows that pass.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no row passes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `row` passes; rows beyond the table do not.
    #[inline]
    pub fn contains(&self, row: Row) -> bool {
        let row = row as usize;
        self.words
            .get(row / WORD)
            .is_some_and(|word| word >> (row % WORD) & 1 != 0)
    }

    /// The rows that pass, ascending.
    pub fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        self.words.iter().enumerate().flat_map(|(w, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = rest.trailing_zeros() as usize;
                // Clears the lowest bit.
                rest &= rest.checked_sub(1)?;
                Some((w * WORD + bit) as Row)
            })
        })
    }

    /// The bitmap, in the form that [`Filter::available`] takes.
    pub fn bitmap(&self) -> &[u64] {
        &self.words
    }

    /// Rows of the table.
    pub(crate) fn items(&self) -> usize {
        self.items
    }

    /// Whether any of the rows `first..first + n` may pass; exact if `first` is a multiple
    /// of 64 and `n` too, or the last rows are meant.
    pub(crate) fn touches(&self, first: usize, n: usize) -> bool {
        let words = first / WORD..(first + n).div_ceil(WORD).min(self.words.len());
        let words = self.words.get(words);
        words.is_some_and(|words| words.iter().any(|&word| word != 0))
    }

    /// One bit per row of `first..first + 64`.
    pub(crate) fn word(&self, first: usize) -> u64 {
        let word = |w: usize| self.words.get(w).copied().unwrap_or(0);
        let (w, shift) = (first / WORD, first % WORD);
        match shift {
            0 => word(w),
            _ => word(w) >> shift | word(w + 1) << (WORD - shift),
        }
    }
}

impl ItemTable {
    /// Evaluates `filter` for every row. The work grows with N and with the number of distinct
    /// values of the columns named; the result takes N / 8 bytes.
    ///
    /// # Errors
    /// [`Error::UnknownAttribute`]; [`Error::Length`] if a bitmap has the wrong number of
    /// words; [`Error::InvalidArgument`] for a bound that is NaN and for more than
    /// [`MAX_FILTER_TERMS`] conditions; [`Error::CorruptTensor`].
    pub fn select(&self, filter: &Filter) -> Result<Selection> {
        let items = self.rows();
        let rows = |w: usize| w * WORD..items.min((w + 1) * WORD);
        let mut tree = plan(resolve(self, filter)?);
        // What a test costs is known, how much it lets pass is tried out on some words.
        let n = items.div_ceil(WORD);
        let sample: Vec<usize> = (0..n.min(SAMPLE)).map(|i| i * n / n.min(SAMPLE)).collect();
        tree.arrange(&|test: &Test<'_>| {
            let mut passed = 0;
            for &w in &sample {
                passed += (test.word(rows(w))? & live(&rows(w))).count_ones();
            }
            Ok(f64::from(passed) / (sample.len() * WORD).max(1) as f64)
        })?;
        let mut words = vec![0u64; n];
        for (w, out) in words.iter_mut().enumerate() {
            let rows = rows(w);
            *out = tree.word(&rows, live(&rows))? & live(&rows);
        }
        Ok(Selection {
            len: words.iter().map(|w| w.count_ones() as usize).sum(),
            words,
            items,
        })
    }
}

/// One bit per row of a word.
fn live(rows: &std::ops::Range<usize>) -> u64 {
    u64::MAX >> (WORD - rows.len())
}

/// A resolved filter as a tree, at most as deep as it has tests: *and* and *or* take any number
/// of parts, and a *not* is a mark on what it negates.
struct Node<'a> {
    negated: bool,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Test(Test<'a>),
    All(Vec<Node<'a>>),
    Any(Vec<Node<'a>>),
}

/// Postfix to tree. Postfix by construction: an operator finds its operands on the stack.
fn plan(steps: Vec<Step<'_>>) -> Node<'_> {
    let mut stack: Vec<Node<'_>> = Vec::new();
    let nothing = || Node {
        negated: false,
        kind: Kind::Any(Vec::new()),
    };
    for step in steps {
        let node = match step {
            Step::Test(test) => Node {
                negated: false,
                kind: Kind::Test(test),
            },
            Step::Not => {
                let mut node = stack.pop().unwrap_or_else(nothing);
                node.negated = !node.negated;
                node
            }
            Step::And | Step::Or => {
                let right = stack.pop().unwrap_or_else(nothing);
                let left = stack.pop().unwrap_or_else(nothing);
                let all = matches!(step, Step::And);
                let mut parts = Vec::new();
                for node in [left, right] {
                    // (x and y) and z is one conjunction of three.
                    match node.kind {
                        Kind::All(inner) if all && !node.negated => parts.extend(inner),
                        Kind::Any(inner) if !all && !node.negated => parts.extend(inner),
                        kind => parts.push(Node { kind, ..node }),
                    }
                }
                let kind = if all {
                    Kind::All(parts)
                } else {
                    Kind::Any(parts)
                };
                Node {
                    negated: false,
                    kind,
                }
            }
        };
        stack.push(node);
    }
    stack.pop().unwrap_or_else(nothing)
}

impl Node<'_> {
    /// Sorts the parts of every *and* and *or* so that little work decides much: by cost over
    /// the share of words' bits that a part settles. Returns cost and share of rows that pass.
    fn arrange(&mut self, passes: &impl Fn(&Test<'_>) -> Result<f64>) -> Result<(f64, f64)> {
        let (cost, pass) = match &mut self.kind {
            Kind::Test(test) => (test.cost(), passes(test)?),
            Kind::All(parts) => {
                let parts = sort_parts(parts, passes, |pass| 1.0 - pass)?;
                let pass = parts.iter().map(|p| p.1).product();
                (parts.iter().map(|p| p.0).sum(), pass)
            }
            Kind::Any(parts) => {
                let parts = sort_parts(parts, passes, |pass| pass)?;
                let fail: f64 = parts.iter().map(|p| 1.0 - p.1).product();
                (parts.iter().map(|p| p.0).sum(), 1.0 - fail)
            }
        };
        Ok((cost, if self.negated { 1.0 - pass } else { pass }))
    }

    /// One bit per row; only those in `wanted` need be right, and parts that cannot change them
    /// are not evaluated.
    fn word(&self, rows: &std::ops::Range<usize>, wanted: u64) -> Result<u64> {
        let word = match &self.kind {
            Kind::Test(test) => test.word(rows.clone())?,
            Kind::All(parts) => {
                let mut open = wanted;
                for part in parts {
                    if open == 0 {
                        break;
                    }
                    open &= part.word(rows, open)?;
                }
                open
            }
            Kind::Any(parts) => {
                let mut closed = wanted;
                for part in parts {
                    if closed == 0 {
                        break;
                    }
                    closed &= !part.word(rows, closed)?;
                }
                !closed
            }
        };
        Ok(if self.negated { !word } else { word })
    }
}

/// Arranges each part, then all of them by cost over what `settles` makes of their pass rates.
fn sort_parts(
    parts: &mut Vec<Node<'_>>,
    passes: &impl Fn(&Test<'_>) -> Result<f64>,
    settles: impl Fn(f64) -> f64,
) -> Result<Vec<(f64, f64)>> {
    let mut rated = Vec::with_capacity(parts.len());
    for mut part in parts.drain(..) {
        let (cost, pass) = part.arrange(passes)?;
        rated.push((cost / settles(pass).max(1e-3), (cost, pass), part));
    }
    // Stable: equals stay as the host wrote them.
    rated.sort_by(|a, b| a.0.total_cmp(&b.0));
    let figures = rated.iter().map(|r| r.1).collect();
    parts.extend(rated.into_iter().map(|r| r.2));
    Ok(figures)
}

/// An operation resolved against a table.
enum Step<'a> {
    Test(Test<'a>),
    And,
    Or,
    Not,
}

enum Test<'a> {
    Constant(bool),
    /// Of the first `items` rows; later ones, added on the device, pass.
    Bitmap {
        words: &'a [u64],
        items: usize,
    },
    Rows(Vec<Row>),
    Column(&'a Attribute, Codes),
}

/// The codes of a dictionary that pass a test.
enum Codes {
    Any,
    One(u32),
    /// One bit per code.
    Many(Vec<u64>),
}

fn resolve<'a>(table: &'a ItemTable, filter: &'a Filter) -> Result<Vec<Step<'a>>> {
    let tests = filter.ops.iter();
    let tests = tests.filter(|op| !matches!(op, Op::And | Op::Or | Op::Not));
    let tests = tests.count();
    if tests > MAX_FILTER_TERMS {
        return Err(Error::argument(format!(
            "a filter of {tests} conditions, at most {MAX_FILTER_TERMS} are accepted"
        )));
    }
    filter.ops.iter().map(|op| step(table, op)).collect()
}

fn step<'a>(table: &'a ItemTable, op: &'a Op) -> Result<Step<'a>> {
    Ok(Step::Test(match op {
        Op::And => return Ok(Step::And),
        Op::Or => return Ok(Step::Or),
        Op::Not => return Ok(Step::Not),
        Op::Constant(yes) => Test::Constant(*yes),
        Op::Has(attribute) => Test::Column(table.column(attribute)?, Codes::Any),
        Op::In { attribute, values } => {
            let column = table.column(attribute)?;
            let mut wanted: Vec<&[u8]> = values.iter().map(|v| v.as_bytes()).collect();
            wanted.sort_unstable();
            codes(column, |value| wanted.binary_search(&value).is_ok())?
        }
        Op::Range {
            attribute,
            min,
            max,
        } => {
            let is_nan =
                |b: &Bound<f64>| matches!(b, Bound::Included(x) | Bound::Excluded(x) if x.is_nan());
            if is_nan(min) || is_nan(max) {
                return Err(Error::argument(format!(
                    "a bound of the range of {attribute:?} is NaN"
                )));
            }
            let column = table.column(attribute)?;
            codes(column, |value| {
                number(value).is_some_and(|x| (*min, *max).contains(&x))
            })?
        }
        Op::Bitmap(words) => {
            let expected = table.len().div_ceil(WORD);
            if words.len() != expected {
                return Err(Error::Length {
                    what: "bitmap of available rows (64 rows a value)".into(),
                    expected,
                    got: words.len(),
                });
            }
            Test::Bitmap {
                words,
                items: table.len(),
            }
        }
        Op::Rows(rows) => Test::Rows(rows.to_vec()),
        Op::Items(keys) => {
            let mut rows = Vec::with_capacity(keys.len());
            for key in keys.iter() {
                rows.extend(table.find(key)?);
            }
            rows.sort_unstable();
            Test::Rows(rows)
        }
    }))
}

/// Resolves a test of values to a test of codes; the only time that strings are compared.
fn codes(column: &Attribute, passes: impl Fn(&[u8]) -> bool) -> Result<Test<'_>> {
    let mut found = Vec::new();
    let mut bits = Vec::new();
    for code in 0..column.num_values() {
        if passes(column.raw(code)?) {
            found.push(code as u32);
        }
        // Past a handful of codes a bitmap is the smaller form and the faster test.
        if found.len() >= WORD {
            set(&mut bits, column.num_values(), &found);
            found.clear();
        }
    }
    Ok(match (found.as_slice(), bits.is_empty()) {
        ([], true) => Test::Constant(false),
        ([code], true) => Test::Column(column, Codes::One(*code)),
        _ => {
            set(&mut bits, column.num_values(), &found);
            Test::Column(column, Codes::Many(bits))
        }
    })
}

fn set(bits: &mut Vec<u64>, len: usize, codes: &[u32]) {
    bits.resize(len.div_ceil(WORD), 0);
    for &code in codes {
        bits[code as usize / WORD] |= 1 << (code as usize % WORD);
    }
}

pub(crate) fn number(value: &[u8]) -> Option<f64> {
    let x: f64 = std::str::from_utf8(value).ok()?.parse().ok()?;
    x.is_finite().then_some(x)
}

impl Test<'_> {
    /// Rough cost of a word, in reads of one.
    fn cost(&self) -> f64 {
        match self {
            Test::Constant(_) | Test::Bitmap { .. } => 1.0,
            Test::Rows(_) => 4.0,
            Test::Column(column, codes) => match (codes, column.is_list()) {
                (_, true) => 200.0,
                (Codes::One(_) | Codes::Any, false) => 20.0,
                (Codes::Many(_), false) => 80.0,
            },
        }
    }

    /// One bit per row of `rows`, of which there are at most 64; higher bits are arbitrary.
    fn word(&self, rows: std::ops::Range<usize>) -> Result<u64> {
        match self {
            Test::Constant(yes) => Ok(if *yes { u64::MAX } else { 0 }),
            Test::Bitmap { words, items } => {
                let word = words.get(rows.start / WORD).copied().unwrap_or(0);
                let told = items.saturating_sub(rows.start);
                Ok(word | u64::MAX.checked_shl(told as u32).unwrap_or(0))
            }
            Test::Rows(selected) => {
                let start = selected.partition_point(|&row| (row as usize) < rows.start);
                let here = selected[start..].iter();
                let here = here.take_while(|&&row| (row as usize) < rows.end);
                Ok(here.fold(0, |word, &row| word | 1 << (row as usize % WORD)))
            }
            Test::Column(column, codes) => match codes {
                Codes::Any => match compared(column, &rows, NO_VALUE) {
                    Some(absent) => Ok(!absent),
                    None => column_word(column, rows, |code| code != NO_VALUE),
                },
                Codes::One(wanted) => match compared(column, &rows, *wanted) {
                    Some(word) => Ok(word),
                    None => column_word(column, rows, |code| code == *wanted),
                },
                // A code beyond the dictionary, such as `NO_VALUE`, is in no word of it.
                Codes::Many(bits) => column_word(column, rows, |code| {
                    let word = bits.get(code as usize / WORD).copied().unwrap_or(0);
                    word >> (code as usize % WORD) & 1 != 0
                }),
            },
        }
    }
}

/// Which rows of a column with one value each have the code `wanted`, unless a code is stray.
fn compared(column: &Attribute, rows: &std::ops::Range<usize>, wanted: u32) -> Option<u64> {
    let codes = column.plain_codes()?.get(rows.clone())?;
    let limit = column.num_values() as u32;
    let (word, stray) = kernel::active().equal(codes, wanted, limit);
    (!stray).then_some(word)
}

fn column_word(
    column: &Attribute,
    rows: std::ops::Range<usize>,
    passes: impl Fn(u32) -> bool,
) -> Result<u64> {
    let limit = column.num_values() as u32;
    let mut word = 0u64;
    if let Some(codes) = column.plain_codes().and_then(|c| c.get(rows.clone())) {
        // No early exit: the loop compiles to vector compares.
        let mut stray = false;
        for (bit, &code) in codes.iter().enumerate() {
            stray |= code >= limit && code != NO_VALUE;
            word |= u64::from(passes(code)) << bit;
        }
        if !stray {
            return Ok(word);
        }
    }
    word = 0;
    for (bit, row) in rows.enumerate() {
        for &code in column.codes(row)? {
            // A filter that withholds items must not let them through on a damaged file.
            if code >= limit && code != NO_VALUE {
                column.value(code, row)?;
            }
            word |= u64::from(passes(code)) << bit;
        }
    }
    Ok(word)
}
