//! The functions of `include/tercet.h`. The documentation here becomes the header's.
//!
//! What C cannot promise and we cannot check is stated under `# Safety` in the parts: that a
//! non-null pointer points to as many bytes as the header says.

#![allow(clippy::missing_safety_doc)] // One statement for all, above; the header is the manual.

mod arguments;
mod handles;
mod layout;
mod results;

use std::ffi::{CStr, c_char, c_void};
use std::sync::Arc;

use crate::engine::{Engine, Listener};
use crate::error::{HostError, Kind};
use crate::types::{Added, Event, Feedback, Options};
use arguments::{
    LAST_ERROR, call, fill, fill_entries, fill_text, not_null, optional, read_item, read_query,
    sized, text, texts,
};
use handles::{Object, find_engine, find_results, insert, remove};
pub use layout::*;
use results::Results;

/// TERCET_ABI_VERSION of the library, which may be higher than that of the header.
///
/// Threads: any. Never fails.
#[unsafe(no_mangle)]
pub extern "C" fn tercet_abi_version() -> u32 {
    TERCET_ABI_VERSION
}

/// Version of the library, as "0.1.0". Static; never freed.
///
/// Threads: any. Never fails.
#[unsafe(no_mangle)]
pub extern "C" fn tercet_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Name of a status, as "CORRUPT_BUNDLE"; "UNKNOWN" for other numbers. Static; never freed.
///
/// Threads: any. Never fails.
#[unsafe(no_mangle)]
pub extern "C" fn tercet_status_name(status: i32) -> *const c_char {
    let name: &CStr = match status {
        0 => c"OK",
        1 => c"CLOSED",
        2 => c"INVALID_ARGUMENT",
        3 => c"UNKNOWN_ITEM",
        4 => c"NOT_FOUND",
        5 => c"INCOMPATIBLE_BUNDLE",
        6 => c"CORRUPT_BUNDLE",
        7 => c"CORRUPT_SNAPSHOT",
        8 => c"UNSUPPORTED",
        9 => c"LISTENER",
        10 => c"IO",
        11 => c"INTERNAL",
        12 => c"BUFFER_TOO_SMALL",
        13 => c"BUSY",
        _ => c"UNKNOWN",
    };
    name.as_ptr()
}

/// What a developer should know about the last call on this thread that did not return
/// TERCET_STATUS_OK. Never NULL, never holds what a user did.
///
/// Owned by the library: valid until the next call on this thread. Threads: any; each has its
/// own text.
#[unsafe(no_mangle)]
pub extern "C" fn tercet_last_error() -> *const c_char {
    LAST_ERROR
        .try_with(|last| match last.try_borrow() {
            Ok(text) if !text.is_empty() => text.as_ptr().cast(),
            _ => c"".as_ptr(),
        })
        .unwrap_or(c"".as_ptr())
}

/// Opens the bundle in the folder `path` and stores an engine in `*out`.
///
/// `options` may be NULL. The strings and options are read during the call only. The caller
/// owns the engine and gives it back with tercet_close(). On failure `*out` is NULL.
/// Threads: any.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_open(
    path: *const c_char,
    options: *const TercetOptions,
    out: *mut *mut TercetEngine,
) -> TercetStatus {
    call(|| {
        not_null("out", out)?;
        // SAFETY: not null, aligned; `out` may be written by the caller's promise.
        unsafe { out.write(std::ptr::null_mut()) };
        // SAFETY: the caller's promise.
        let path = unsafe { text("path", path) }?;
        // SAFETY: the caller's promise; zero bytes are valid options.
        let given = unsafe { sized("options", options, size_of::<usize>()) }?;
        let options = given.map_or_else(Options::default, |o: TercetOptions| Options {
            copy: o.copy != 0,
            verify: o.verify != 0,
            max_history: o.max_history,
            adapt: o.adapt != 0,
        });
        let handle = insert(Object::Engine(Arc::new(Engine::open(path, &options)?)))?;
        // SAFETY: as above.
        unsafe { out.write(std::ptr::without_provenance_mut(handle)) };
        Ok(())
    })
}

/// Stores in `*out` an engine for another user over the same bundle, which is not opened again.
///
/// The caller owns it and gives it back with tercet_close(), before or after the first one.
/// Threads: any.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_new_session(
    engine: *mut TercetEngine,
    out: *mut *mut TercetEngine,
) -> TercetStatus {
    call(|| {
        not_null("out", out)?;
        // SAFETY: not null, aligned; may be written by the caller's promise.
        unsafe { out.write(std::ptr::null_mut()) };
        let other = find_engine(engine)?.new_session()?;
        let handle = insert(Object::Engine(Arc::new(other)))?;
        // SAFETY: as above.
        unsafe { out.write(std::ptr::without_provenance_mut(handle)) };
        Ok(())
    })
}

/// Gives an engine back and sets `*handle` to NULL. A handle to NULL is fine and does nothing;
/// a copy of a handle that was closed before gets TERCET_STATUS_CLOSED.
///
/// Threads: any, also while calls on the engine run: they end normally, and the memory goes
/// with the last of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tercet_close(handle: *mut *mut TercetEngine) -> TercetStatus {
    call(|| {
        not_null("handle", handle)?;
        // SAFETY: not null, aligned; may be read and written by the caller's promise.
        let value = unsafe { handle.replace(std::ptr::null_mut()) };
        if value.is_null() {
            return Ok(());
        }
        let object = remove(value.addr(), |o| matches!(o, Object::Engine(_)))?;
        if let Object::Engine(engine) = object {
            engine.close();
        }
        Ok(())
    })
}

/// Fills `info`, whose `size` the caller has set.
///
/// Threads: any.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_get_info(
    engine: *mut TercetEngine,
    info: *mut TercetInfo,
) -> TercetStatus {
    call(|| {
        let engine = find_engine(engine)?;
        not_null("info", info)?;
        // SAFETY: not null, aligned; every version of the structure has the size.
        let size = unsafe { info.cast::<usize>().read() };
        let smallest = std::mem::offset_of!(TercetInfo, items);
        if size < smallest || size > 4096 {
            return Err(HostError::argument(format!(
                "info.size is {size}, set it to sizeof *info (here {})",
                size_of::<TercetInfo>()
            ))
            .into());
        }
        let i = engine.info()?;
        let (events, added) = engine.with(|s| Ok((s.history().len(), s.added_items().len())))?;
        let number = |n: i32| u32::try_from(n).unwrap_or(0);
        let value = TercetInfo {
            size,
            bundle_version: u64::try_from(i.bundle_version).unwrap_or(0),
            items: u64::try_from(i.items).unwrap_or(0),
            dim: number(i.dim),
            window: number(i.window),
            personal: u32::from(i.personal),
            events: u32::try_from(events).unwrap_or(u32::MAX),
            added: u32::try_from(added).unwrap_or(u32::MAX),
        };
        // SAFETY: `size` bytes may be written by the caller's promise, and no more than the
        // structure has are.
        unsafe {
            std::ptr::copy_nonoverlapping(
                (&raw const value).cast::<u8>(),
                info.cast::<u8>(),
                size.min(size_of::<TercetInfo>()),
            );
        }
        Ok(())
    })
}

/// Writes what the bundle is, as one JSON object with a zero byte behind: bundle_id,
/// bundle_version, created, expires, items, dim, window, behaviors, attributes, modalities, card.
///
/// `*needed` (may be NULL) gets the size with the zero byte; TERCET_STATUS_BUFFER_TOO_SMALL if
/// `capacity` is less. Threads: any.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_describe(
    engine: *mut TercetEngine,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> TercetStatus {
    call(|| {
        let text = find_engine(engine)?.describe()?;
        // SAFETY: the caller's promise.
        unsafe { fill_text(&text, buffer, capacity, needed) }
    })
}

/// Hashes every file and checks every row: a full read of the bundle, for once after a
/// download.
///
/// Threads: any; other calls on the engine do not wait.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_verify(engine: *mut TercetEngine) -> TercetStatus {
    call(|| Ok(find_engine(engine)?.verify()?))
}

/// Runs the health check that the bundle brings: `*found` of `*expected` items came up, and
/// `*passed` is 1 if that is enough. TERCET_STATUS_UNSUPPORTED if it brings none.
///
/// Each of the three may be NULL. Threads: any.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_probe(
    engine: *mut TercetEngine,
    found: *mut i32,
    expected: *mut i32,
    passed: *mut i32,
) -> TercetStatus {
    call(|| {
        let report = find_engine(engine)?
            .probe()?
            .ok_or_else(|| HostError::new(Kind::Unsupported, "this bundle has no health check"))?;
        let values = [report.found, report.expected, i32::from(report.passed)];
        for (to, value) in [found, expected, passed].into_iter().zip(values) {
            if !to.is_null() {
                not_null("found, expected or passed", to)?;
                // SAFETY: not null, aligned; may be written by the caller's promise.
                unsafe { to.write(value) };
            }
        }
        Ok(())
    })
}

/// Adds an event to the history.
///
/// `behavior` is a name from the bundle's vocabulary, or NULL for any. `timestamp` is in seconds
/// since 1970-01-01 UTC, or TERCET_NO_TIME. `*known` (may be NULL) becomes 1 if the bundle has
/// the item, else 0; the event is kept in both cases. Threads: any; calls on one engine's
/// session run one after another.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_record(
    engine: *mut TercetEngine,
    item: *const c_char,
    behavior: *const c_char,
    timestamp: i64,
    known: *mut i32,
) -> TercetStatus {
    call(|| {
        let engine = find_engine(engine)?;
        if !known.is_null() {
            not_null("known", known)?;
        }
        // SAFETY: the caller's promise.
        let (item, behavior) = unsafe { (text("item", item)?, optional("behavior", behavior)?) };
        let is_known = engine.record(Event {
            item: item.to_string(),
            behavior: behavior.map(String::from),
            timestamp: (timestamp != TERCET_NO_TIME).then_some(timestamp),
        })?;
        if !known.is_null() {
            // SAFETY: not null, aligned; may be written by the caller's promise.
            unsafe { known.write(i32::from(is_known)) };
        }
        Ok(())
    })
}

/// Learns what the user thinks of an item: one of TERCET_FEEDBACK_…, in an engine opened with
/// `adapt`. Rankings follow. `timestamp` is in seconds since 1970-01-01 UTC, or TERCET_NO_TIME.
/// `*known` (may be NULL) gets 1 if the bundle has the item; the feedback is kept in both cases. What
/// the user did is recorded besides.
///
/// Threads: any; calls on one engine's session run one after another.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_feedback(
    engine: *mut TercetEngine,
    item: *const c_char,
    feedback: i32,
    timestamp: i64,
    known: *mut i32,
) -> TercetStatus {
    call(|| {
        let engine = find_engine(engine)?;
        // SAFETY: the caller's promise.
        let item = unsafe { text("item", item) }?;
        let feedback = match feedback {
            TERCET_FEEDBACK_POSITIVE => Feedback::Positive,
            TERCET_FEEDBACK_SKIPPED => Feedback::Skipped,
            TERCET_FEEDBACK_DISLIKED => Feedback::Disliked,
            other => {
                let reason = format!("feedback is {other}, see TERCET_FEEDBACK_POSITIVE");
                return Err(HostError::argument(reason).into());
            }
        };
        let time = (timestamp != TERCET_NO_TIME).then_some(timestamp);
        let found = engine.feedback(item, feedback, time)?;
        if !known.is_null() {
            // SAFETY: not null; may be written by the caller's promise.
            unsafe { known.write(i32::from(found)) };
        }
        Ok(())
    })
}

/// Forgets all feedback: rankings are again those of the bundle and the history.
///
/// Threads: any; calls on one engine's session run one after another.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_forget_feedback(engine: *mut TercetEngine) -> TercetStatus {
    call(|| Ok(find_engine(engine)?.forget_feedback()?))
}

/// Writes the item of event number `index` of the history, oldest first, with a zero byte
/// behind. Their number is in tercet_info.
///
/// `*needed` (may be NULL) gets the size with the zero byte; TERCET_STATUS_BUFFER_TOO_SMALL if
/// `capacity` is less. Threads: any.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_history_item(
    engine: *mut TercetEngine,
    index: usize,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> TercetStatus {
    call(|| {
        let found = find_engine(engine)?.with(|s| {
            let event = s.history().events().nth(index);
            Ok(event.map(|e| e.item.clone()).ok_or(s.history().len()))
        })?;
        let item = found.map_err(|events| {
            HostError::argument(format!("index is {index}, the history has {events} events"))
        })?;
        // SAFETY: the caller's promise.
        unsafe { fill_text(&item, buffer, capacity, needed) }
    })
}

/// Adds an item that the bundle does not hold: the bundle's fusion tower makes its vector, and
/// from then on it is ranked, filtered, explained and recorded like the others. It belongs to
/// this engine's session and to what tercet_save() writes.
///
/// `item` with its strings and values is read during the call only. `*outcome` (may be NULL) gets
/// a tercet_added. Threads: any; calls on one engine's session run one after another.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_add_item(
    engine: *mut TercetEngine,
    item: *const TercetNewItem,
    outcome: *mut TercetAdded,
) -> TercetStatus {
    call(|| {
        let engine = find_engine(engine)?;
        if !outcome.is_null() {
            not_null("outcome", outcome)?;
        }
        // SAFETY: the caller's promise.
        let added = engine.add_item(unsafe { read_item(item) }?)?;
        if !outcome.is_null() {
            let added = match added {
                Added::Ranked => TercetAdded::Ranked,
                Added::Replaced => TercetAdded::Replaced,
                Added::InBundle => TercetAdded::InBundle,
            };
            // SAFETY: not null, aligned; may be written by the caller's promise.
            unsafe { outcome.write(added) };
        }
        Ok(())
    })
}

/// Takes an added item away. `*removed` (may be NULL) becomes 1 if there was one, else 0.
///
/// Threads: any; calls on one engine's session run one after another.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_remove_item(
    engine: *mut TercetEngine,
    item: *const c_char,
    removed: *mut i32,
) -> TercetStatus {
    call(|| {
        let engine = find_engine(engine)?;
        if !removed.is_null() {
            not_null("removed", removed)?;
        }
        // SAFETY: the caller's promise.
        let was_there = engine.remove_item(unsafe { text("item", item) }?)?;
        if !removed.is_null() {
            // SAFETY: not null, aligned; may be written by the caller's promise.
            unsafe { removed.write(i32::from(was_there)) };
        }
        Ok(())
    })
}

/// Writes the key of added item number `index`, in the order in which they came, with a zero byte
/// behind. Their number is in tercet_info. `*ranked` (may be NULL) becomes 1, or 0 for an item of
/// a file that this bundle cannot place.
///
/// `*needed` (may be NULL) gets the size with the zero byte; TERCET_STATUS_BUFFER_TOO_SMALL if
/// `capacity` is less. Threads: any; calls on one engine's session run one after another.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_added_item(
    engine: *mut TercetEngine,
    index: usize,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
    ranked: *mut i32,
) -> TercetStatus {
    call(|| {
        let items = find_engine(engine)?.added_items()?;
        let item = items.get(index).ok_or_else(|| {
            HostError::argument(format!("index is {index}, there are {} items", items.len()))
        })?;
        if !ranked.is_null() {
            not_null("ranked", ranked)?;
            // SAFETY: not null, aligned; may be written by the caller's promise.
            unsafe { ranked.write(i32::from(item.ranked)) };
        }
        // SAFETY: the caller's promise.
        unsafe { fill_text(&item.item, buffer, capacity, needed) }
    })
}

/// Stores the best items for this user in `*out`.
///
/// The query and its strings are read during the call only. The caller owns the results and
/// gives them back with tercet_results_free(); they stay valid after the engine is closed. On
/// failure `*out` is NULL. Threads: any; calls on one engine's session run one after another.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_recommend(
    engine: *mut TercetEngine,
    query: *const TercetQuery,
    out: *mut *mut TercetResults,
) -> TercetStatus {
    call(|| {
        not_null("out", out)?;
        // SAFETY: not null, aligned; may be written by the caller's promise.
        unsafe { out.write(std::ptr::null_mut()) };
        let engine = find_engine(engine)?;
        // SAFETY: the caller's promise.
        let query = unsafe { read_query(query) }?;
        let best = engine.with(|s| s.recommend(&query))?;
        // SAFETY: as above.
        unsafe { Results::new(&best).give(out) }
    })
}

/// Writes the best items for this user to the caller's `hits` and their number to `*count`:
/// nothing to free, no strings.
///
/// TERCET_STATUS_BUFFER_TOO_SMALL if `capacity` is less than the number of results, which is
/// at most query->k. Threads: any; calls on one engine's session run one after another.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_recommend_into(
    engine: *mut TercetEngine,
    query: *const TercetQuery,
    hits: *mut TercetHit,
    capacity: usize,
    count: *mut usize,
) -> TercetStatus {
    call(|| {
        not_null("count", count)?;
        let engine = find_engine(engine)?;
        // SAFETY: the caller's promise.
        let query = unsafe { read_query(query) }?;
        let best = engine.with(|s| s.recommend(&query))?;
        let best: Vec<TercetHit> = best
            .iter()
            .map(|r| TercetHit {
                row: r.row,
                score: r.score,
            })
            .collect();
        // SAFETY: the caller's promise.
        unsafe { fill("hits", &best, hits, capacity, count) }
    })
}

/// Writes the key of the item at `row`, with a zero byte behind.
///
/// `*needed` (may be NULL) gets the size with the zero byte; TERCET_STATUS_BUFFER_TOO_SMALL if
/// `capacity` is less. Threads: any; calls on one engine's session run one after another.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_item_key(
    engine: *mut TercetEngine,
    row: u32,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> TercetStatus {
    call(|| {
        let key = find_engine(engine)?.with(|s| s.item_key(row).map(String::from))?;
        // SAFETY: the caller's promise.
        unsafe { fill_text(&key, buffer, capacity, needed) }
    })
}

/// Stores the `count` given candidates in `*out`, best first for this user, each once; those
/// that the bundle does not know can be read with tercet_results_unknown().
///
/// Ownership as tercet_recommend(). Threads: any; calls on one engine's session run one after
/// another.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_rank(
    engine: *mut TercetEngine,
    candidates: *const *const c_char,
    count: usize,
    out: *mut *mut TercetResults,
) -> TercetStatus {
    call(|| {
        not_null("out", out)?;
        // SAFETY: not null, aligned; may be written by the caller's promise.
        unsafe { out.write(std::ptr::null_mut()) };
        let engine = find_engine(engine)?;
        // SAFETY: the caller's promise.
        let keys = unsafe { texts("candidates", candidates, count) }?;
        let ranking = engine.with(|s| s.rank(&keys))?;
        let results = Results::new(&ranking.ranked).with_unknown(&ranking.unknown);
        // SAFETY: as above.
        unsafe { results.give(out) }
    })
}

/// Stores the `k` items most like `item` in `*out`. Does not depend on the user.
///
/// Ownership as tercet_recommend(). Threads: any; calls on one engine's session run one after
/// another.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_similar(
    engine: *mut TercetEngine,
    item: *const c_char,
    k: usize,
    out: *mut *mut TercetResults,
) -> TercetStatus {
    call(|| {
        not_null("out", out)?;
        // SAFETY: not null, aligned; may be written by the caller's promise.
        unsafe { out.write(std::ptr::null_mut()) };
        let engine = find_engine(engine)?;
        // SAFETY: the caller's promise.
        let item = unsafe { text("item", item) }?;
        let best = engine.with(|s| s.similar(item, k))?;
        // SAFETY: as above.
        unsafe { Results::new(&best).give(out) }
    })
}

/// Writes the number of items to `*count`.
///
/// Threads: any.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_results_count(
    results: *const TercetResults,
    count: *mut usize,
) -> TercetStatus {
    call(|| {
        let results = find_results(results)?;
        not_null("count", count)?;
        // SAFETY: not null, aligned; may be written by the caller's promise.
        unsafe { count.write(results.len()) };
        Ok(())
    })
}

/// Writes items from number `first` on to the caller's `entries`, at most `capacity`, and how
/// many there were to `*written`; 0 at the end.
///
/// `entry_size` is sizeof(tercet_recommendation), which lets the structure grow. The strings
/// belong to the results and are valid until tercet_results_free(). Threads: any.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_results_get(
    results: *const TercetResults,
    first: usize,
    entries: *mut TercetRecommendation,
    entry_size: usize,
    capacity: usize,
    written: *mut usize,
) -> TercetStatus {
    call(|| {
        let results = find_results(results)?;
        let items = results.items(first);
        // SAFETY: the caller's promise.
        Ok(unsafe { fill_entries(items, entries, entry_size, capacity, written) }?)
    })
}

/// Writes the reasons of item number `index` to the caller's `entries`, in the same way as
/// tercet_results_get(). There are none unless the query asked for them.
///
/// The strings are valid until tercet_results_free(). Threads: any.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_results_because(
    results: *const TercetResults,
    index: usize,
    entries: *mut TercetBecause,
    entry_size: usize,
    capacity: usize,
    written: *mut usize,
) -> TercetStatus {
    call(|| {
        let results = find_results(results)?;
        let because = results.because(index)?;
        // SAFETY: the caller's promise.
        Ok(unsafe { fill_entries(because, entries, entry_size, capacity, written) }?)
    })
}

/// Writes how much the vector of item number `index` rests on each modality, most first, to the
/// caller's `entries`, in the same way as tercet_results_get(). There are none unless the query
/// asked for reasons and the bundle tells.
///
/// The strings are valid until tercet_results_free(). Threads: any.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_results_modalities(
    results: *const TercetResults,
    index: usize,
    entries: *mut TercetModalityShare,
    entry_size: usize,
    capacity: usize,
    written: *mut usize,
) -> TercetStatus {
    call(|| {
        let results = find_results(results)?;
        let shares = results.modalities(index)?;
        // SAFETY: the caller's promise.
        Ok(unsafe { fill_entries(shares, entries, entry_size, capacity, written) }?)
    })
}

/// Writes the candidates that the bundle does not know, in the order given, to the caller's
/// `keys`, at most `capacity`, and how many there were to `*written`.
///
/// The strings belong to the results and are valid until tercet_results_free(). Threads: any.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_results_unknown(
    results: *const TercetResults,
    keys: *mut *const c_char,
    capacity: usize,
    written: *mut usize,
) -> TercetStatus {
    call(|| {
        let results = find_results(results)?;
        let size = size_of::<*const c_char>();
        // SAFETY: the caller's promise.
        Ok(unsafe { fill_entries(results.unknown(), keys, size, capacity, written) }?)
    })
}

/// Gives results back, with every string read from them, and sets `*handle` to NULL. A handle
/// to NULL is fine and does nothing; a copy of a handle that was freed before gets
/// TERCET_STATUS_CLOSED.
///
/// Threads: any, but not while another thread still reads strings of these results.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tercet_results_free(handle: *mut *mut TercetResults) -> TercetStatus {
    call(|| {
        not_null("handle", handle)?;
        // SAFETY: not null, aligned; may be read and written by the caller's promise.
        let value = unsafe { handle.replace(std::ptr::null_mut()) };
        if value.is_null() {
            return Ok(());
        }
        remove(value.addr(), |o| matches!(o, Object::Results(_)))?;
        Ok(())
    })
}

/// Writes the user vector of the present history to the caller's `values`.
///
/// `*needed` (may be NULL) gets the number of values; TERCET_STATUS_BUFFER_TOO_SMALL if
/// `capacity` is less. Threads: any; calls on one engine's session run one after another.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_user_vector(
    engine: *mut TercetEngine,
    values: *mut f32,
    capacity: usize,
    needed: *mut usize,
) -> TercetStatus {
    call(|| {
        let vector = find_engine(engine)?.user_vector()?;
        // SAFETY: the caller's promise.
        unsafe { fill("values", &vector, values, capacity, needed) }
    })
}

/// Writes history and added items to a file, which is replaced at once or not at all.
///
/// Threads: any; calls on one engine's session run one after another.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_save(
    engine: *mut TercetEngine,
    path: *const c_char,
) -> TercetStatus {
    call(|| {
        let engine = find_engine(engine)?;
        // SAFETY: the caller's promise.
        Ok(engine.save(unsafe { text("path", path) }?)?)
    })
}

/// Replaces history and added items by those of a file; on failure they stay as they were.
///
/// Threads: any; calls on one engine's session run one after another.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_restore(
    engine: *mut TercetEngine,
    path: *const c_char,
) -> TercetStatus {
    call(|| {
        let engine = find_engine(engine)?;
        // SAFETY: the caller's promise.
        Ok(engine.restore(unsafe { text("path", path) }?)?)
    })
}

/// From now on keeps history and added items in the file `path`, as they come; what the file holds
/// takes the place of what the engine has. A file that does not exist is made.
///
/// Once a call that changes something has returned, the change survives the end of the process and,
/// unless `lazy` is not 0, a loss of power. `key` is NULL, or 32 bytes that encrypt the file: random
/// ones from the keystore of the platform; they are copied and never stored. One engine at a time
/// may use a file; others get TERCET_STATUS_BUSY. tercet_erase() deletes it.
/// Threads: any; calls on one engine's session run one after another.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_keep_in(
    engine: *mut TercetEngine,
    path: *const c_char,
    key: *const u8,
    key_size: usize,
    lazy: i32,
) -> TercetStatus {
    call(|| {
        let engine = find_engine(engine)?;
        // SAFETY: the caller's promise.
        let path = unsafe { text("path", path) }?;
        let key = if key.is_null() {
            None
        } else if key_size == KEY_BYTES {
            // SAFETY: not null; 32 bytes may be read by the caller's promise.
            Some(unsafe { std::slice::from_raw_parts(key, KEY_BYTES) })
        } else {
            let reason = format!("the key has {key_size} bytes, expected {KEY_BYTES}");
            return Err(HostError::argument(reason).into());
        };
        Ok(engine.keep_in(path, key, lazy == 0)?)
    })
}

/// Bytes of a key that encrypts a history.
const KEY_BYTES: usize = 32;

/// Writes everything that is kept of the user as one JSON object with a zero byte behind: events,
/// added items, and the bundle's name.
///
/// `*needed` (may be NULL) gets the size with the zero byte; TERCET_STATUS_BUFFER_TOO_SMALL if
/// `capacity` is less. Threads: any; calls on one engine's session run one after another.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_export_user_data(
    engine: *mut TercetEngine,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> TercetStatus {
    call(|| {
        let text = find_engine(engine)?.export_user_data()?;
        // SAFETY: the caller's promise.
        unsafe { fill_text(&text, buffer, capacity, needed) }
    })
}

/// Forgets everything about the user, and deletes the file `path` unless that is NULL. A file
/// that does not exist is fine. The memory is cleared even if the file cannot be deleted.
///
/// Threads: any; calls on one engine's session run one after another.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_erase(
    engine: *mut TercetEngine,
    path: *const c_char,
) -> TercetStatus {
    call(|| {
        let engine = find_engine(engine)?;
        // SAFETY: the caller's promise.
        Ok(engine.erase(unsafe { optional("path", path) }?)?)
    })
}

/// Sets the listener of an engine, or removes it if `listener` is NULL.
///
/// `user_data` is handed to the listener as it is and belongs to the caller. It must be usable
/// from every thread that changes the history, and must outlive the listener: until another is
/// set or the engine is closed, and until calls that run at that moment have ended.
/// Threads: any.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn tercet_set_listener(
    engine: *mut TercetEngine,
    listener: TercetListener,
    user_data: *mut c_void,
) -> TercetStatus {
    call(|| {
        let engine = find_engine(engine)?;
        let data = UserData(user_data);
        engine.set_listener(listener.map(|function| {
            let call: Arc<Listener> = Arc::new(move |revision| {
                // SAFETY: the caller's promise about function and data.
                match unsafe { function(data.get(), revision) } {
                    0 => Ok(()),
                    code => Err(HostError::new(
                        Kind::Listener,
                        format!("the listener returned {code}; the change stands"),
                    )),
                }
            });
            call
        }));
        Ok(())
    })
}

struct UserData(*mut c_void);

impl UserData {
    /// A method, so that closures take the whole and not the pointer alone.
    fn get(&self) -> *mut c_void {
        self.0
    }
}

// SAFETY: never dereferenced here; the caller promised that it can be used from any thread.
unsafe impl Send for UserData {}
// SAFETY: as above.
unsafe impl Sync for UserData {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_status_with_its_text() {
        let status = call(|| panic!("on purpose"));
        assert_eq!(status, TercetStatus::Internal);
        // SAFETY: the text is valid until the next call.
        let text = unsafe { CStr::from_ptr(tercet_last_error()) };
        assert!(text.to_str().unwrap().contains("on purpose"));
        // The next call works.
        assert_eq!(call(|| Ok(())), TercetStatus::Ok);
    }

    #[test]
    fn every_status_has_its_name() {
        for number in 0..=13 {
            // SAFETY: static text.
            let name = unsafe { CStr::from_ptr(tercet_status_name(number)) };
            assert_ne!(name, c"UNKNOWN", "{number}");
        }
        for number in [-1, 14, i32::MAX] {
            // SAFETY: static text.
            let name = unsafe { CStr::from_ptr(tercet_status_name(number)) };
            assert_eq!(name, c"UNKNOWN");
        }
        let numbers = [TercetStatus::Closed as i32, Kind::Closed as i32];
        assert_eq!(numbers, [1, 1]);
        assert_eq!(TercetStatus::Internal as i32, Kind::Internal as i32);
    }
}
