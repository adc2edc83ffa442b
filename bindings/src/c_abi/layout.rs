//! What crosses as it lies in memory. The documentation here becomes the header's.

use std::ffi::{c_char, c_void};

use crate::error::Kind;

/// Grows with every addition to this interface. A library never loses anything that an earlier
/// number promised; compare with tercet_abi_version().
pub const TERCET_ABI_VERSION: u32 = 3;

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
    /// The file is open in another session or process. Close that one first.
    Busy = 13,
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
            Kind::Busy => TercetStatus::Busy,
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
    /// Not 0: learn from tercet_feedback().
    pub adapt: u8,
}

/// For tercet_feedback(): chosen, bought, watched to the end, rated well.
pub const TERCET_FEEDBACK_POSITIVE: i32 = 0;

/// For tercet_feedback(): shown and passed over.
pub const TERCET_FEEDBACK_SKIPPED: i32 = 1;

/// For tercet_feedback(): rejected; the item does not come again.
pub const TERCET_FEEDBACK_DISLIKED: i32 = 2;

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
    /// How many of the best items diversity and exploration choose from; 0 is the default of 5 k, at least 100.
    pub pool: usize,
    /// How much to avoid items that are alike, 0 to 1.
    pub diversity: f32,
    /// Not 0: items of the history may come again.
    pub include_seen: u8,
    /// Not 0: fill what tercet_results_because() and tercet_results_modalities() read.
    pub explain: u8,
    /// Not 0: diversity by a determinantal point process instead of marginal relevance.
    pub dpp: u8,
    /// What the most popular item gains over the least popular one, in standard deviations of
    /// the user's scores; negative speaks for the unknown. -100 to 100.
    pub popularity: f32,
    /// Temperature of exploration, 0 to 100: 0 always gives the best.
    pub explore: f32,
    /// Seed of exploration: the same gives the same list.
    pub seed: u64,
    /// At most so many items per value of an attribute. NULL if there are none.
    pub caps: *const TercetCap,
    /// Number of entries in `caps`.
    pub cap_count: usize,
    /// What new items gain. NULL if there is none.
    pub freshness: *const TercetFreshness,
    /// Number of entries in `freshness`.
    pub freshness_count: usize,
    /// How many partitions of the table to look at; 0 is what the bundle proposes, -1 all that
    /// can matter. Tables without partitions are always searched as a whole.
    pub probes: i32,
}

impl TercetQuery {
    /// What C gets by setting everything to zero, then `size` and `k`.
    pub fn top(k: usize) -> Self {
        TercetQuery {
            size: size_of::<Self>(),
            k,
            filter: std::ptr::null(),
            exclude: std::ptr::null(),
            exclude_count: 0,
            pool: 0,
            diversity: 0.0,
            include_seen: 0,
            explain: 0,
            dpp: 0,
            popularity: 0.0,
            explore: 0.0,
            seed: 0,
            caps: std::ptr::null(),
            cap_count: 0,
            freshness: std::ptr::null(),
            freshness_count: 0,
            probes: 0,
        }
    }
}

/// A limit of results per value of an attribute. Set everything to zero first. Never grows.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct TercetCap {
    /// Name of the attribute.
    pub attribute: *const c_char,
    /// Items per value, unless `calibrated`.
    pub items: usize,
    /// With `calibrated`: 0 repeats the history's mixture, 1 caps nothing.
    pub slack: f32,
    /// Not 0: a value gets its share of the user's history plus `slack`, times k, rounded up.
    pub calibrated: u8,
}

/// What new items gain: `weight`, in standard deviations of the user's scores, halved per
/// half-life of age. Never grows.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct TercetFreshness {
    /// Name of the attribute that holds an item's time, a number.
    pub attribute: *const c_char,
    /// The present, in the unit of the attribute.
    pub now: f64,
    /// In the same unit.
    pub half_life: f64,
    /// -100 to 100.
    pub weight: f32,
}

/// An item that the bundle does not hold. Set everything to zero, then `size` to
/// sizeof(tercet_new_item).
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct TercetNewItem {
    /// sizeof(tercet_new_item); lets the structure grow.
    pub size: usize,
    /// The app's own key.
    pub item: *const c_char,
    /// Raw features of any subset of the bundle's modalities.
    pub features: *const TercetFeature,
    /// Number of entries in `features`, 1 or more.
    pub feature_count: usize,
    /// Values for filters and caps. NULL if there are none.
    pub attributes: *const TercetAttribute,
    /// Number of entries in `attributes`.
    pub attribute_count: usize,
}

/// The feature of one modality. Never grows.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct TercetFeature {
    /// Name of the modality.
    pub modality: *const c_char,
    /// As many values as the modality has.
    pub values: *const f32,
    /// Number of values.
    pub count: usize,
}

/// An item's values of one attribute. Never grows.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct TercetAttribute {
    /// Name of the attribute.
    pub attribute: *const c_char,
    /// The values.
    pub values: *const *const c_char,
    /// Number of values.
    pub count: usize,
}

/// What became of an added item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum TercetAdded {
    /// It is ranked from now on.
    Ranked = 0,
    /// It is ranked in place of an earlier one with the same key.
    Replaced = 1,
    /// The bundle holds it; nothing was changed, because the bundle knows more of it.
    InBundle = 2,
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
    /// How many entries tercet_results_modalities() has for this item.
    pub modality_count: usize,
    /// Higher is better; comparable within one result only.
    pub score: f32,
    /// Position in this version of the bundle. Never store it.
    pub row: u32,
}

/// An item of the history that carries a part of a recommended one's score.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct TercetBecause {
    /// The item's key, UTF-8, ends with a zero byte. Valid until tercet_results_free().
    pub item: *const c_char,
    /// Length of `item` in bytes, without the zero byte.
    pub item_length: usize,
    /// Share of all positive parts, 0 to 1.
    pub share: f32,
    /// What the recommended item's score loses without this event.
    pub contribution: f32,
}

/// How much an item's vector rests on a modality.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct TercetModalityShare {
    /// Name of the modality, UTF-8, ends with a zero byte. Valid until tercet_results_free().
    pub name: *const c_char,
    /// 0 to 1; the shares of an item add up to 1.
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
    /// Items added to this engine.
    pub added: u32,
}

/// Is told when the history or the added items have changed. Runs on the thread of
/// that call, after the change, and may call the engine. Returns 0, or anything else to make
/// that call return TERCET_STATUS_LISTENER. Must not throw or longjmp across the library.
pub type TercetListener =
    Option<unsafe extern "C" fn(user_data: *mut c_void, revision: i64) -> i32>;
