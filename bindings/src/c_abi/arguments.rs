//! What every call does with pointers: nothing that crosses is used before it is checked for null,
//! alignment, UTF-8 and size, and no panic passes.

use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::layout::{TercetNewItem, TercetQuery, TercetStatus};
use crate::error::HostError;
use crate::types::{AttributeValues, Feature, NewItem, count};

pub(super) enum Failure {
    Error(HostError),
    TooSmall { what: &'static str, needed: usize },
}

impl From<HostError> for Failure {
    fn from(e: HostError) -> Self {
        Failure::Error(e)
    }
}

thread_local! {
    pub(super) static LAST_ERROR: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}

pub(super) fn remember(reason: &str) {
    // While a thread ends its locals are gone; then there is nobody left to read the text.
    let _ = LAST_ERROR.try_with(|last| {
        if let Ok(mut text) = last.try_borrow_mut() {
            text.clear();
            text.extend(reason.bytes().filter(|b| *b != 0));
            text.push(0);
        }
    });
}

/// The boundary: no panic passes, every failure leaves its text.
pub(super) fn call(f: impl FnOnce() -> Result<(), Failure>) -> TercetStatus {
    let done = catch_unwind(AssertUnwindSafe(f))
        .unwrap_or_else(|payload| Err(HostError::panicked(&*payload).into()));
    match done {
        Ok(()) => TercetStatus::Ok,
        Err(Failure::Error(e)) => {
            remember(&e.reason);
            e.kind.into()
        }
        Err(Failure::TooSmall { what, needed }) => {
            remember(&format!("{what} needs {needed} places"));
            TercetStatus::BufferTooSmall
        }
    }
}

pub(super) fn not_null<T>(name: &str, pointer: *const T) -> Result<(), HostError> {
    if pointer.is_null() {
        return Err(HostError::argument(format!("{name} is NULL")));
    }
    if !pointer.is_aligned() {
        return Err(HostError::argument(format!("{name} is not aligned")));
    }
    Ok(())
}

/// # Safety
/// `text` is null or ends with a zero byte, and does not change during `'a`.
pub(super) unsafe fn optional<'a>(
    name: &str,
    text: *const c_char,
) -> Result<Option<&'a str>, HostError> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: not null, and the caller's promise.
    let bytes = unsafe { CStr::from_ptr(text) };
    bytes.to_str().map(Some).map_err(|e| {
        HostError::argument(format!(
            "{name} is not UTF-8 from byte {} on",
            e.valid_up_to()
        ))
    })
}

/// # Safety
/// As [`optional`].
pub(super) unsafe fn text<'a>(name: &str, text: *const c_char) -> Result<&'a str, HostError> {
    // SAFETY: handed on.
    unsafe { optional(name, text) }?.ok_or_else(|| HostError::argument(format!("{name} is NULL")))
}

/// # Safety
/// `values` is null or points to `count` values, which do not change during `'a`.
pub(super) unsafe fn list<'a, T>(
    name: &str,
    values: *const T,
    count: usize,
) -> Result<&'a [T], HostError> {
    if count == 0 {
        return Ok(&[]);
    }
    not_null(name, values)?;
    // Before `count` sizes anything: no list is longer than that.
    if count > isize::MAX as usize / size_of::<T>() {
        return Err(HostError::argument(format!("{name} has {count} entries")));
    }
    // SAFETY: not null, aligned, and the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(values, count) })
}

/// # Safety
/// `strings` is null or points to `count` strings, each as for [`optional`].
pub(super) unsafe fn texts<'a>(
    name: &str,
    strings: *const *const c_char,
    count: usize,
) -> Result<Vec<&'a str>, HostError> {
    // SAFETY: handed on.
    unsafe { list(name, strings, count) }?
        .iter()
        // SAFETY: the caller's promise.
        .map(|s| unsafe { text(name, *s) })
        .collect()
}

/// Reads a structure that begins with its own size. An older host's is shorter: the rest is
/// zero. A newer host's is longer: what this library does not know must be zero.
///
/// # Safety
/// `options` is null or points to as many bytes as its first field says; `T` is `repr(C)`,
/// begins with a `usize`, and all-zero bytes are a valid `T`.
pub(super) unsafe fn sized<T: Copy>(
    name: &str,
    options: *const T,
    smallest: usize,
) -> Result<Option<T>, HostError> {
    if options.is_null() {
        return Ok(None);
    }
    not_null(name, options)?;
    // SAFETY: not null, aligned; every version of the structure has the size.
    let size = unsafe { options.cast::<usize>().read() };
    let known = size_of::<T>();
    if size < smallest || size > 4096 {
        return Err(HostError::argument(format!(
            "{name}.size is {size}, set it to sizeof *{name} (here {known})"
        )));
    }
    // SAFETY: `size` bytes by the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts(options.cast::<u8>(), size) };
    if bytes
        .get(known..)
        .is_some_and(|rest| rest.iter().any(|b| *b != 0))
    {
        return Err(HostError::argument(format!(
            "{name} uses an option that this version of the library does not have"
        )));
    }
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: both sides hold that many bytes and do not overlap; zero is a valid `T` and so is
    // every prefix of one.
    Ok(Some(unsafe {
        std::ptr::copy_nonoverlapping(
            bytes.as_ptr(),
            value.as_mut_ptr().cast::<u8>(),
            size.min(known),
        );
        value.assume_init()
    }))
}

/// Writes `from` to the caller's buffer, or only the needed number of places.
///
/// # Safety
/// `needed` is null or may be written; `to` is null or has `capacity` places.
pub(super) unsafe fn fill<T: Copy>(
    what: &'static str,
    from: &[T],
    to: *mut T,
    capacity: usize,
    needed: *mut usize,
) -> Result<(), Failure> {
    if !needed.is_null() {
        not_null("needed", needed)?;
        // SAFETY: not null, aligned, the caller's promise.
        unsafe { needed.write(from.len()) };
    }
    if from.len() > capacity {
        return Err(Failure::TooSmall {
            what,
            needed: from.len(),
        });
    }
    if !from.is_empty() {
        not_null(what, to)?;
        // SAFETY: `to` has at least as many places, by the caller's promise and the check above.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
    }
    Ok(())
}

/// As [`fill`], with a zero byte behind.
///
/// # Safety
/// As [`fill`].
pub(super) unsafe fn fill_text(
    text: &str,
    to: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> Result<(), Failure> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    // SAFETY: handed on.
    unsafe { fill("buffer", &bytes, to.cast(), capacity, needed) }
}

/// Writes entries of `size` bytes each, of which this library knows `T`.
///
/// # Safety
/// `to` has `capacity` places of `size` bytes; `written` may be written.
pub(super) unsafe fn fill_entries<T: Copy>(
    entries: impl Iterator<Item = T>,
    to: *mut T,
    size: usize,
    capacity: usize,
    written: *mut usize,
) -> Result<(), HostError> {
    not_null("written", written)?;
    if size < size_of::<T>() || !size.is_multiple_of(align_of::<T>()) {
        return Err(HostError::argument(format!(
            "entry_size is {size}, at least {} is needed",
            size_of::<T>()
        )));
    }
    let mut count = 0;
    if capacity > 0 {
        not_null("entries", to)?;
        for entry in entries.take(capacity) {
            // SAFETY: place `count` lies within `capacity` places of `size` bytes; alignment
            // was checked for the first and holds for multiples of `size`.
            unsafe { to.byte_add(count * size).write(entry) };
            count += 1;
        }
    }
    // SAFETY: not null, aligned, the caller's promise.
    unsafe { written.write(count) };
    Ok(())
}

/// # Safety
/// `query` as for [`sized`], its strings as for [`texts`].
pub(super) unsafe fn read_query(query: *const TercetQuery) -> Result<tercet::Query, HostError> {
    // SAFETY: handed on. Zero bytes are a query of null pointers and zeros.
    let q = unsafe { sized("query", query, std::mem::offset_of!(TercetQuery, filter)) }?
        .ok_or_else(|| HostError::argument("query is NULL"))?;
    let mut query = tercet::Query::top(q.k)
        .diversity(q.diversity)
        .include_seen(q.include_seen != 0)
        .explain(q.explain != 0);
    query = query
        .popularity(q.popularity)
        .explore(q.explore, q.seed)
        .effort(match q.probes {
            0 => tercet::Effort::Default,
            -1 => tercet::Effort::Exact,
            n => tercet::Effort::Probes(count("query.probes", n)?),
        });
    if q.dpp != 0 {
        query = query.diversity_method(tercet::DiversityMethod::Dpp);
    }
    if q.pool != 0 {
        query = query.pool(q.pool);
    }
    // SAFETY: handed on.
    for cap in unsafe { list("query.caps", q.caps, q.cap_count) }? {
        // SAFETY: handed on.
        let attribute = unsafe { text("query.caps.attribute", cap.attribute) }?;
        query = match cap.calibrated {
            0 => query.cap(attribute, cap.items),
            _ => query.calibrate(attribute, cap.slack),
        };
    }
    // SAFETY: handed on.
    for f in unsafe { list("query.freshness", q.freshness, q.freshness_count) }? {
        // SAFETY: handed on.
        let attribute = unsafe { text("query.freshness.attribute", f.attribute) }?;
        query = query.freshness(attribute, f.now, f.half_life, f.weight);
    }
    // SAFETY: handed on.
    if let Some(filter) = unsafe { optional("query.filter", q.filter) }? {
        query = query.filter(tercet::Filter::parse(filter)?);
    }
    if q.exclude_count != 0 {
        // SAFETY: handed on.
        query = query.exclude(unsafe { texts("query.exclude", q.exclude, q.exclude_count) }?);
    }
    Ok(query)
}

/// # Safety
/// `item` as for [`sized`], its strings as for [`texts`], its lists as for [`list`].
pub(super) unsafe fn read_item(item: *const TercetNewItem) -> Result<NewItem, HostError> {
    let smallest = std::mem::offset_of!(TercetNewItem, attributes);
    // SAFETY: handed on. Zero bytes are an item of null pointers and zeros.
    let i = unsafe { sized("item", item, smallest) }?
        .ok_or_else(|| HostError::argument("item is NULL"))?;
    let mut new = NewItem {
        // SAFETY: handed on.
        item: unsafe { text("item.item", i.item) }?.to_string(),
        features: Vec::new(),
        attributes: Vec::new(),
    };
    // SAFETY: handed on.
    for f in unsafe { list("item.features", i.features, i.feature_count) }? {
        // SAFETY: handed on.
        let (modality, values) = unsafe {
            (
                text("item.features.modality", f.modality)?,
                list("item.features.values", f.values, f.count)?,
            )
        };
        new.features.push(Feature {
            modality: modality.to_string(),
            values: values.to_vec(),
        });
    }
    // SAFETY: handed on.
    for a in unsafe { list("item.attributes", i.attributes, i.attribute_count) }? {
        // SAFETY: handed on.
        let (attribute, values) = unsafe {
            (
                text("item.attributes.attribute", a.attribute)?,
                texts("item.attributes.values", a.values, a.count)?,
            )
        };
        new.attributes.push(AttributeValues {
            attribute: attribute.to_string(),
            values: values.into_iter().map(String::from).collect(),
        });
    }
    Ok(new)
}
