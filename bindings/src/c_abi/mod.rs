//! The functions of `include/tercet.h`. The documentation here becomes the header's.
//!
//! Handles are not pointers: what C holds is a slot number and a generation, looked up in a
//! table. A handle that was closed, closed twice, or never existed is found out and answered
//! with a status; nothing is ever dereferenced because a host says so. Each lookup costs one
//! uncontended lock.
//!
//! Everything else that crosses is checked for null, UTF-8 and size. What C cannot promise and
//! we cannot check is stated under `# Safety`: that a non-null pointer points to as many bytes as
//! the header says.

#![allow(clippy::missing_safety_doc)] // One statement for all, above; the header is the manual.

use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, RwLock};

use crate::engine::{Engine, Listener};
use crate::error::{HostError, Kind};
use crate::types::{Event, Options};

/// Grows with every addition to this interface. A library never loses anything that an earlier
/// number promised; compare with tercet_abi_version().
pub const TERCET_ABI_VERSION: u32 = 1;

/// Time of an event of which no time is known.
pub const TERCET_NO_TIME: i64 = i64::MIN;

/// What became of a call: TERCET_STATUS_OK or what can be done about it.
///
/// Numbers never change their meaning. Treat one that this header does not know like
/// TERCET_STATUS_INTERNAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum TercetStatus {
    /// Done.
    Ok = 0,
    /// The handle was closed or freed, or never was one. Open again.
    Closed = 1,
    /// The caller's mistake: tercet_last_error() says which argument and what is accepted.
    InvalidArgument = 2,
    /// The item is not in the bundle. Leave it out.
    UnknownItem = 3,
    /// The bundle folder or the snapshot file does not exist. Fetch it, or start without.
    NotFound = 4,
    /// The bundle needs another version of this library. Update, or fetch an older bundle.
    IncompatibleBundle = 5,
    /// The bundle is damaged or incomplete. Delete it and fetch it again.
    CorruptBundle = 6,
    /// The saved history is damaged or of a newer version. Delete it and start without.
    CorruptSnapshot = 7,
    /// This bundle, or this build of the library, lacks what the call needs.
    Unsupported = 8,
    /// The call did its work; the listener failed afterwards.
    Listener = 9,
    /// The system refused a file operation. Free space, check permissions, try again.
    Io = 10,
    /// A fault of the library. Close the engine, open it again, report it.
    Internal = 11,
    /// The buffer is too small; the needed size has been stored. Call again with a larger one.
    BufferTooSmall = 12,
}

impl From<Kind> for TercetStatus {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Closed => TercetStatus::Closed,
            Kind::InvalidArgument => TercetStatus::InvalidArgument,
            Kind::UnknownItem => TercetStatus::UnknownItem,
            Kind::NotFound => TercetStatus::NotFound,
            Kind::IncompatibleBundle => TercetStatus::IncompatibleBundle,
            Kind::CorruptBundle => TercetStatus::CorruptBundle,
            Kind::CorruptSnapshot => TercetStatus::CorruptSnapshot,
            Kind::Unsupported => TercetStatus::Unsupported,
            Kind::Listener => TercetStatus::Listener,
            Kind::Io => TercetStatus::Io,
            Kind::Internal => TercetStatus::Internal,
        }
    }
}

/// A bundle and the session of one user. Opaque; compare with NULL only.
#[derive(Debug)]
pub struct TercetEngine {
    _private: (),
}

/// A list of items that the caller owns. Opaque; compare with NULL only.
#[derive(Debug)]
pub struct TercetResults {
    _private: (),
}

/// How to open a bundle. Set everything to zero, then `size` to sizeof(tercet_options), then
/// what should differ from the default.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct TercetOptions {
    /// sizeof(tercet_options); lets the structure grow.
    pub size: usize,
    /// Most events kept, 1 to 4096; 0 is the default of 512.
    pub max_history: i32,
    /// Not 0: copy the item table to memory instead of mapping it. A mapped file that is cut
    /// short in place ends the process; a copied one cannot. Costs the table's size in memory.
    pub copy: u8,
    /// Not 0: hash every file and check every row first. For once after a download.
    pub verify: u8,
}

/// A request for recommendations. Set everything to zero, then `size` to sizeof(tercet_query),
/// then `k`, then what should differ from the default.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct TercetQuery {
    /// sizeof(tercet_query); lets the structure grow.
    pub size: usize,
    /// How many items, 1 or more. More than there are is not an error.
    pub k: usize,
    /// Which items qualify, as "category not in (adult) and price <= 20"; NULL for all.
    pub filter: *const c_char,
    /// Items to leave out; unknown ones are ignored. NULL if there are none.
    pub exclude: *const *const c_char,
    /// Number of strings in `exclude`.
    pub exclude_count: usize,
    /// How many of the best items diversity chooses from; 0 is the default of 5 k, at least 100.
    pub pool: usize,
    /// How much to avoid items that are alike, 0 to 1.
    pub diversity: f32,
    /// Not 0: items of the history may come again.
    pub include_seen: u8,
    /// Not 0: fill what tercet_results_because() reads.
    pub explain: u8,
}

/// A result in eight bytes, for hosts that keep no strings.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct TercetHit {
    /// Position in this version of the bundle; see tercet_item_key(). Never store it.
    pub row: u32,
    /// Higher is better; comparable within one result only.
    pub score: f32,
}

/// One item of a tercet_results.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct TercetRecommendation {
    /// The item's key, UTF-8, ends with a zero byte. Valid until tercet_results_free().
    pub item: *const c_char,
    /// Length of `item` in bytes, without the zero byte.
    pub item_length: usize,
    /// How many entries tercet_results_because() has for this item.
    pub because_count: usize,
    /// Higher is better; comparable within one result only.
    pub score: f32,
    /// Position in this version of the bundle. Never store it.
    pub row: u32,
}

/// An item of the history that is similar to a recommended one.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct TercetBecause {
    /// The item's key, UTF-8, ends with a zero byte. Valid until tercet_results_free().
    pub item: *const c_char,
    /// Length of `item` in bytes, without the zero byte.
    pub item_length: usize,
    /// Share of all positive similarity, 0 to 1.
    pub share: f32,
}

/// Numbers of a bundle. Set `size` to sizeof(tercet_info) before the call.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct TercetInfo {
    /// sizeof(tercet_info); lets the structure grow.
    pub size: usize,
    /// Grows with every release of a bundle.
    pub bundle_version: u64,
    /// Number of items.
    pub items: u64,
    /// Values per vector.
    pub dim: u32,
    /// Events that the user tower looks at.
    pub window: u32,
    /// 1 if recommendations follow the history, 0 if they follow popularity.
    pub personal: u32,
    /// Events in the history of this engine.
    pub events: u32,
}

/// Is told when the history has changed: by a record, restore or erase. Runs on the thread of
/// that call, after the change, and may call the engine. Returns 0, or anything else to make
/// that call return TERCET_STATUS_LISTENER. Must not throw or longjmp across the library.
pub type TercetListener =
    Option<unsafe extern "C" fn(user_data: *mut c_void, revision: i64) -> i32>;

// -- handles ----------------------------------------------------------------------------------

enum Object {
    Engine(Arc<Engine>),
    Results(Arc<Results>),
}

struct Slot {
    generation: usize,
    object: Option<Object>,
}

struct Slots {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

static SLOTS: RwLock<Slots> = RwLock::new(Slots {
    slots: Vec::new(),
    free: Vec::new(),
});

/// A handle is `generation << HALF | slot + 1`, so it is never 0.
const HALF: u32 = usize::BITS / 2;
const MASK: usize = (1 << HALF) - 1;

fn insert(object: Object) -> Result<usize, HostError> {
    let mut table = SLOTS.write().unwrap_or_else(PoisonError::into_inner);
    let index = match table.free.pop() {
        Some(index) => index,
        None => {
            let index = table.slots.len();
            if index + 1 >= MASK {
                return Err(HostError::argument(
                    "too many handles are open; free results and close engines",
                ));
            }
            table.slots.push(Slot {
                generation: 0,
                object: None,
            });
            index
        }
    };
    let slot = &mut table.slots[index];
    slot.object = Some(object);
    Ok(slot.generation << HALF | (index + 1))
}

fn lookup<T>(handle: usize, f: impl FnOnce(&Object) -> Option<T>) -> Result<T, HostError> {
    if handle == 0 {
        return Err(HostError::argument("the handle is NULL"));
    }
    let table = SLOTS.read().unwrap_or_else(PoisonError::into_inner);
    (handle & MASK)
        .checked_sub(1)
        .and_then(|index| table.slots.get(index))
        .filter(|slot| slot.generation == handle >> HALF)
        .and_then(|slot| f(slot.object.as_ref()?))
        .ok_or_else(|| {
            HostError::new(
                Kind::Closed,
                "the handle was closed or freed before, or never was one",
            )
        })
}

fn remove(handle: usize, is_kind: impl FnOnce(&Object) -> bool) -> Result<Object, HostError> {
    lookup(handle, |object| is_kind(object).then_some(()))?;
    let mut table = SLOTS.write().unwrap_or_else(PoisonError::into_inner);
    let index = (handle & MASK) - 1;
    let slot = &mut table.slots[index];
    // Another thread may have been faster between the two locks.
    let current = slot.generation == handle >> HALF;
    match slot.object.take() {
        Some(object) if current => {
            slot.generation = slot.generation.wrapping_add(1) & MASK;
            table.free.push(index);
            Ok(object)
        }
        other => {
            slot.object = other;
            Err(HostError::new(
                Kind::Closed,
                "the handle was closed meanwhile",
            ))
        }
    }
}

fn find_engine(handle: *const TercetEngine) -> Result<Arc<Engine>, HostError> {
    lookup(handle.addr(), |object| match object {
        Object::Engine(engine) => Some(engine.clone()),
        Object::Results(_) => None,
    })
}

fn find_results(handle: *const TercetResults) -> Result<Arc<Results>, HostError> {
    lookup(handle.addr(), |object| match object {
        Object::Results(results) => Some(results.clone()),
        Object::Engine(_) => None,
    })
}

// -- results ----------------------------------------------------------------------------------

/// Keys one behind the other, each with a zero byte; entries point into them.
#[derive(Default)]
struct Results {
    text: Vec<u8>,
    items: Vec<ResultItem>,
    because: Vec<ResultBecause>,
    unknown: Vec<usize>,
}

struct ResultItem {
    at: usize,
    length: usize,
    because: std::ops::Range<usize>,
    score: f32,
    row: u32,
}

struct ResultBecause {
    at: usize,
    length: usize,
    share: f32,
}

impl Results {
    fn key(&mut self, key: &str) -> usize {
        let at = self.text.len();
        self.text.extend_from_slice(key.as_bytes());
        self.text.push(0);
        at
    }

    fn new(best: &[tercet::Recommendation]) -> Self {
        let mut all = Results::default();
        all.items.reserve_exact(best.len());
        all.text
            .reserve(best.iter().map(|r| r.item.len() + 1).sum());
        for r in best {
            let at = all.key(&r.item);
            let first = all.because.len();
            for b in &r.because {
                let at = all.key(&b.item);
                all.because.push(ResultBecause {
                    at,
                    length: b.item.len(),
                    share: b.share,
                });
            }
            all.items.push(ResultItem {
                at,
                length: r.item.len(),
                because: first..all.because.len(),
                score: r.score,
                row: r.row,
            });
        }
        all
    }

    fn text(&self, at: usize) -> *const c_char {
        self.text[at..].as_ptr().cast()
    }

    /// Hands the list to the caller.
    ///
    /// # Safety
    /// `out` points to a handle that may be written.
    unsafe fn give(self, out: *mut *mut TercetResults) -> Result<(), Failure> {
        let handle = insert(Object::Results(Arc::new(self)))?;
        // SAFETY: the caller's promise; null was refused on entry.
        unsafe { out.write(std::ptr::without_provenance_mut(handle)) };
        Ok(())
    }
}

// -- calls ------------------------------------------------------------------------------------

enum Failure {
    Error(HostError),
    TooSmall { what: &'static str, needed: usize },
}

impl From<HostError> for Failure {
    fn from(e: HostError) -> Self {
        Failure::Error(e)
    }
}

thread_local! {
    static LAST_ERROR: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}

fn remember(reason: &str) {
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
fn call(f: impl FnOnce() -> Result<(), Failure>) -> TercetStatus {
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

fn not_null<T>(name: &str, pointer: *const T) -> Result<(), HostError> {
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
unsafe fn optional<'a>(name: &str, text: *const c_char) -> Result<Option<&'a str>, HostError> {
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
unsafe fn text<'a>(name: &str, text: *const c_char) -> Result<&'a str, HostError> {
    // SAFETY: handed on.
    unsafe { optional(name, text) }?.ok_or_else(|| HostError::argument(format!("{name} is NULL")))
}

/// # Safety
/// `strings` is null or points to `count` strings, each as for [`optional`].
unsafe fn texts<'a>(
    name: &str,
    strings: *const *const c_char,
    count: usize,
) -> Result<Vec<&'a str>, HostError> {
    if count == 0 {
        return Ok(Vec::new());
    }
    not_null(name, strings)?;
    // Before `count` sizes anything: no list of pointers is longer than that.
    if count > isize::MAX as usize / size_of::<*const c_char>() {
        return Err(HostError::argument(format!("{name} has {count} entries")));
    }
    // SAFETY: not null, aligned, and the caller's promise.
    let strings = unsafe { std::slice::from_raw_parts(strings, count) };
    strings
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
unsafe fn sized<T: Copy>(
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
unsafe fn fill<T: Copy>(
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
unsafe fn fill_text(
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
unsafe fn fill_entries<T: Copy>(
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
unsafe fn read_query(query: *const TercetQuery) -> Result<tercet::Query, HostError> {
    // SAFETY: handed on. Zero bytes are a query of null pointers and zeros.
    let q = unsafe { sized("query", query, std::mem::offset_of!(TercetQuery, filter)) }?
        .ok_or_else(|| HostError::argument("query is NULL"))?;
    let mut query = tercet::Query::top(q.k)
        .diversity(q.diversity)
        .include_seen(q.include_seen != 0)
        .explain(q.explain != 0);
    if q.pool != 0 {
        query = query.pool(q.pool);
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
        let events = engine.with(|s| Ok(s.history().len()))?;
        let number = |n: i32| u32::try_from(n).unwrap_or(0);
        let value = TercetInfo {
            size,
            bundle_version: u64::try_from(i.bundle_version).unwrap_or(0),
            items: u64::try_from(i.items).unwrap_or(0),
            dim: number(i.dim),
            window: number(i.window),
            personal: u32::from(i.personal),
            events: u32::try_from(events).unwrap_or(u32::MAX),
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
/// bundle_version, created, expires, items, dim, window, behaviors, attributes, card.
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
/// `capacity` is less. Threads: any.
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
        let bundle = find_engine(engine)?.bundle()?;
        let key = bundle.table().key(row).map_err(HostError::from)?;
        // SAFETY: the caller's promise.
        unsafe { fill_text(key, buffer, capacity, needed) }
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
        let mut results = Results::new(&ranking.ranked);
        for key in &ranking.unknown {
            let at = results.key(key);
            results.unknown.push(at);
        }
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
        unsafe { count.write(results.items.len()) };
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
        let items = results.items.get(first..).unwrap_or_default().iter();
        let items = items.map(|r| TercetRecommendation {
            item: results.text(r.at),
            item_length: r.length,
            because_count: r.because.len(),
            score: r.score,
            row: r.row,
        });
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
        let item = results.items.get(index).ok_or_else(|| {
            HostError::argument(format!(
                "index is {index}, there are {} items",
                results.items.len()
            ))
        })?;
        let because = results.because[item.because.clone()].iter();
        let because = because.map(|b| TercetBecause {
            item: results.text(b.at),
            item_length: b.length,
            share: b.share,
        });
        // SAFETY: the caller's promise.
        Ok(unsafe { fill_entries(because, entries, entry_size, capacity, written) }?)
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
        let unknown = results.unknown.iter().map(|at| results.text(*at));
        let size = size_of::<*const c_char>();
        // SAFETY: the caller's promise.
        Ok(unsafe { fill_entries(unknown, keys, size, capacity, written) }?)
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

/// Writes the history to a file, which is replaced at once or not at all.
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

/// Replaces the history by that of a file; on failure it stays as it was.
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
        for number in 0..=12 {
            // SAFETY: static text.
            let name = unsafe { CStr::from_ptr(tercet_status_name(number)) };
            assert_ne!(name, c"UNKNOWN", "{number}");
        }
        for number in [-1, 13, i32::MAX] {
            // SAFETY: static text.
            let name = unsafe { CStr::from_ptr(tercet_status_name(number)) };
            assert_eq!(name, c"UNKNOWN");
        }
        let numbers = [TercetStatus::Closed as i32, Kind::Closed as i32];
        assert_eq!(numbers, [1, 1]);
        assert_eq!(TercetStatus::Internal as i32, Kind::Internal as i32);
    }

    #[test]
    fn a_slot_that_is_used_again_does_not_answer_to_the_old_handle() {
        let first = insert(Object::Results(Arc::new(Results::default()))).unwrap();
        let is_results = |o: &Object| matches!(o, Object::Results(_));
        remove(first, is_results).unwrap();
        let mut handles = Vec::new();
        // Other tests share the table: take slots until that one comes back.
        for _ in 0..64 {
            let next = insert(Object::Results(Arc::new(Results::default()))).unwrap();
            handles.push(next);
            assert_ne!(next, first);
        }
        assert_eq!(remove(first, is_results).err().unwrap().kind, Kind::Closed);
        for handle in handles {
            remove(handle, is_results).unwrap();
        }
    }
}
