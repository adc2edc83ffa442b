//! A synthetic shop with planted structure, for demos and quality tests.
//!
//! Every item has three hidden traits, and each is visible in one place only:
//!
//! | trait | values | visible in |
//! |---|---|---|
//! | style | 8 | the `image` features: texture statistics, a random projection of the style plus noise |
//! | kind | 10 | title words and the `text` features: the sum of the title's word vectors plus noise |
//! | circle | 12 | what users do together; no feature knows it |
//!
//! A user favours one value of each. Views match at least one favourite, carts at least two, and buys
//! all three as far as the shop has such items left; each event is misplaced with a small
//! probability. A user meets an item at most once. The last event is test and the one before valid,
//! both buys, so a model that reads only one trait can do about a third of the work. About one item
//! in twenty is *cold*: it exists only as a test answer, so that only features can find it.
//!
//! Everything is a function of the configuration: users have generators of their own, so that
//! [`write()`] streams them and needs memory for the items only.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use ndarray::Array2;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, StandardNormal};
use rand_xoshiro::Xoshiro256PlusPlus;
use serde::{Deserialize, Serialize};

use super::features::{ModalityFeatures, write_npy};
use super::split::user_rng;
use super::{Attribute, Dataset, IdMap, Interaction, Split, import};
use crate::error::{Error, Result};

/// Number of styles, visible in images only.
pub const STYLES: usize = 8;
/// Number of kinds, visible in titles only.
pub const KINDS: usize = 10;
/// Number of circles, visible in co-behaviour only.
pub const CIRCLES: usize = 12;
/// Width of the `image` features.
pub const IMAGE_DIM: usize = 48;
/// Width of the `text` features.
pub const TEXT_DIM: usize = 64;

const KIND_WORDS: [[&str; 3]; KINDS] = [
    ["lamp", "lantern", "light"],
    ["mug", "cup", "tumbler"],
    ["chair", "stool", "bench"],
    ["scarf", "shawl", "wrap"],
    ["notebook", "journal", "planner"],
    ["backpack", "satchel", "tote"],
    ["poster", "print", "canvas"],
    ["cushion", "pillow", "bolster"],
    ["vase", "planter", "pot"],
    ["clock", "timer", "watch"],
];
const NOISE_WORDS: [&str; 24] = [
    "classic", "modern", "small", "large", "handmade", "everyday", "travel", "gift", "premium",
    "bright", "soft", "solid", "simple", "round", "tall", "folding", "vintage", "nordic", "urban",
    "garden", "studio", "family", "festive", "compact",
];
/// Behaviours, strongest last.
const BEHAVIORS: [&str; 3] = ["view", "cart", "buy"];
/// First timestamp: 2024-01-01T00:00:00Z.
const START: i64 = 1_704_067_200;

/// Size and seed of a shop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SyntheticConfig {
    /// Number of users.
    pub users: usize,
    /// Number of items, at least 100.
    pub items: usize,
    /// Mean events of a user, at least 6; the least is half of it.
    pub events_per_user: usize,
    /// Seed of everything.
    pub seed: u64,
}

impl Default for SyntheticConfig {
    fn default() -> Self {
        Self {
            users: 2_000,
            items: 800,
            events_per_user: 20,
            seed: 17,
        }
    }
}

/// The hidden traits of an item, or the favourites of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    /// Visible in images, below [`STYLES`].
    pub style: u8,
    /// Visible in titles, below [`KINDS`].
    pub kind: u8,
    /// Visible in co-behaviour, below [`CIRCLES`].
    pub circle: u8,
}

impl Traits {
    /// How many traits agree, 0 to 3.
    pub fn matches(self, other: Self) -> usize {
        usize::from(self.style == other.style)
            + usize::from(self.kind == other.kind)
            + usize::from(self.circle == other.circle)
    }
}

/// What is written about an item.
struct Item {
    title: String,
    price: &'static str,
    category: &'static str,
}

/// The shop's items, indexed by every combination of traits.
pub struct Shop {
    config: SyntheticConfig,
    items: Vec<(Traits, bool)>,
    /// Warm items by pattern; see [`Shop::bucket`]. Most attractive first.
    warm: Buckets,
    cold: Buckets,
    styles: Vec<[f32; IMAGE_DIM]>,
    words: HashMap<&'static str, [f32; TEXT_DIM]>,
}

/// Items of each (style or any, kind or any, circle or any).
struct Buckets {
    offsets: Vec<usize>,
    items: Vec<u32>,
}

const ANY_STYLE: usize = STYLES;
const ANY_KIND: usize = KINDS;
const ANY_CIRCLE: usize = CIRCLES;

fn pattern(style: usize, kind: usize, circle: usize) -> usize {
    (style * (KINDS + 1) + kind) * (CIRCLES + 1) + circle
}

const PATTERNS: usize = (STYLES + 1) * (KINDS + 1) * (CIRCLES + 1);

fn patterns(t: Traits) -> [usize; 8] {
    let (s, k, c) = (t.style.into(), t.kind.into(), t.circle.into());
    [
        pattern(s, k, c),
        pattern(s, k, ANY_CIRCLE),
        pattern(s, ANY_KIND, c),
        pattern(ANY_STYLE, k, c),
        pattern(s, ANY_KIND, ANY_CIRCLE),
        pattern(ANY_STYLE, k, ANY_CIRCLE),
        pattern(ANY_STYLE, ANY_KIND, c),
        pattern(ANY_STYLE, ANY_KIND, ANY_CIRCLE),
    ]
}

impl Buckets {
    /// `order` lists the items, most attractive first.
    fn new(order: &[u32], traits: impl Fn(u32) -> Traits) -> Self {
        let mut offsets = vec![0usize; PATTERNS + 1];
        for &item in order {
            for p in patterns(traits(item)) {
                offsets[p + 1] += 1;
            }
        }
        for p in 0..PATTERNS {
            offsets[p + 1] += offsets[p];
        }
        let mut next = offsets.clone();
        let mut items = vec![0u32; offsets[PATTERNS]];
        for &item in order {
            for p in patterns(traits(item)) {
                items[next[p]] = item;
                next[p] += 1;
            }
        }
        Self { offsets, items }
    }

    fn get(&self, pattern: usize) -> &[u32] {
        &self.items[self.offsets[pattern]..self.offsets[pattern + 1]]
    }
}

/// One event of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Event {
    item: u32,
    /// Index into [`BEHAVIORS`].
    behavior: usize,
    time: i64,
    split: Split,
}

/// A generator for one thing of one shop, so that items need not be made in order.
fn stream_rng(seed: u64, stream: u64, index: u64) -> Xoshiro256PlusPlus {
    let mixed = seed
        ^ stream.wrapping_mul(0xd6e8_feb8_6659_fd93)
        ^ index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Xoshiro256PlusPlus::seed_from_u64(mixed)
}

const STYLE_STREAM: u64 = 1;
const ITEM_STREAM: u64 = 2;
const IMAGE_STREAM: u64 = 3;
const TEXT_STREAM: u64 = 4;
const WORD_STREAM: u64 = 5;
const USER_STREAM: u64 = 6;
const ORDER_STREAM: u64 = 7;
const TEXT_NOISE_STREAM: u64 = 8;

fn normal(rng: &mut Xoshiro256PlusPlus) -> f32 {
    StandardNormal.sample(rng)
}

impl Shop {
    /// Draws the items' traits.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if a size is out of range.
    pub fn new(config: &SyntheticConfig) -> Result<Self> {
        if config.items < 100 || config.items > 50_000_000 {
            return Err(Error::config("items must be 100 to 50 000 000"));
        }
        if config.users == 0 || config.users > 500_000_000 {
            return Err(Error::config("users must be 1 to 500 000 000"));
        }
        if config.events_per_user < 6 || config.events_per_user * 2 > config.items {
            return Err(Error::config(
                "events per user must be at least 6 and at most half of the items",
            ));
        }
        let items: Vec<(Traits, bool)> = (0..config.items as u64)
            .map(|i| draw_traits(config.seed, i))
            .collect();
        let by_state = |cold: bool| {
            let mut order: Vec<u32> = (0..items.len() as u32)
                .filter(|&i| items[i as usize].1 == cold)
                .collect();
            // Ids say nothing about attraction: the order is a hash of the id.
            order.sort_by_cached_key(|&i| {
                stream_rng(config.seed, ORDER_STREAM, u64::from(i)).random::<u64>()
            });
            Buckets::new(&order, |i| items[i as usize].0)
        };
        let styles = (0..STYLES as u64)
            .map(|s| {
                let mut rng = stream_rng(config.seed, STYLE_STREAM, s);
                std::array::from_fn(|_| normal(&mut rng))
            })
            .collect();
        let words = KIND_WORDS
            .iter()
            .flatten()
            .chain(&NOISE_WORDS)
            .enumerate()
            .map(|(at, &word)| {
                let mut rng = stream_rng(config.seed, WORD_STREAM, at as u64);
                (word, std::array::from_fn(|_| normal(&mut rng)))
            })
            .collect();
        Ok(Self {
            words,
            warm: by_state(false),
            cold: by_state(true),
            config: config.clone(),
            items,
            styles,
        })
    }

    /// The hidden traits of an item.
    ///
    /// # Panics
    ///
    /// If there is no such item.
    pub fn traits(&self, item: u32) -> Traits {
        self.items[item as usize].0
    }

    /// Whether an item exists only as a test answer.
    ///
    /// # Panics
    ///
    /// If there is no such item.
    pub fn is_cold(&self, item: u32) -> bool {
        self.items[item as usize].1
    }

    fn item(&self, item: u32) -> Item {
        let (traits, _) = self.items[item as usize];
        let mut rng = stream_rng(self.config.seed, TEXT_STREAM, u64::from(item));
        let words = &KIND_WORDS[traits.kind as usize];
        let mut parts = vec![
            *words.choose(&mut rng).unwrap_or(&words[0]),
            NOISE_WORDS[rng.random_range(0..NOISE_WORDS.len())],
            NOISE_WORDS[rng.random_range(0..NOISE_WORDS.len())],
        ];
        parts.swap(0, 2);
        if parts[0] == parts[1] {
            parts.remove(0);
        }
        // Price and category are for filters; the category is not the kind, or it would give it away.
        let price = ["budget", "standard", "premium"][rng.random_range(0..3)];
        let category = ["home", "outdoor", "office", "gifts"][rng.random_range(0..4)];
        Item {
            title: parts.join(" "),
            price,
            category,
        }
    }

    fn image(&self, item: u32, out: &mut Vec<f32>) {
        let mut rng = stream_rng(self.config.seed, IMAGE_STREAM, u64::from(item));
        let style = &self.styles[self.items[item as usize].0.style as usize];
        out.extend(style.iter().map(|s| s + 0.6 * normal(&mut rng)));
    }

    fn text(&self, item: u32, out: &mut Vec<f32>) {
        let title = self.item(item).title;
        let mut rng = stream_rng(self.config.seed, TEXT_NOISE_STREAM, u64::from(item));
        let start = out.len();
        out.resize(start + TEXT_DIM, 0.0);
        let out = &mut out[start..];
        for word in title.split(' ') {
            if let Some(vector) = self.words.get(word) {
                for (x, w) in out.iter_mut().zip(vector) {
                    *x += w;
                }
            }
        }
        for x in out.iter_mut() {
            *x += 0.3 * normal(&mut rng);
        }
    }

    /// A user's favourites and events, oldest first, into `events`.
    fn user(&self, user: u32, events: &mut Vec<Event>) -> Traits {
        events.clear();
        let mut rng = user_rng(self.config.seed ^ USER_STREAM, user);
        // Favourites are those of some item, so that a full match exists.
        let anchor = rng.random_range(0..self.items.len());
        let favourite = self.items[anchor].0;
        let mean = self.config.events_per_user;
        let length = rng.random_range(mean / 2..=mean + mean / 2).max(6);
        let mut time = START + rng.random_range(0..30 * 86_400);
        for at in 0..length {
            let last = at + 1 == length;
            let held_out = at + 2 >= length;
            let wish: f64 = rng.random();
            let behavior = if held_out || wish > 0.88 {
                2
            } else if wish > 0.62 {
                1
            } else {
                0
            };
            let misplaced = !held_out && rng.random_bool(0.08);
            let cold = last && rng.random_bool(0.12);
            let needed = if misplaced { 0 } else { behavior + 1 };
            let source = if cold { &self.cold } else { &self.warm };
            let Some(item) = self
                .pick(source, favourite, needed, events, &mut rng)
                .or_else(|| self.pick(&self.warm, favourite, needed, events, &mut rng))
            else {
                continue;
            };
            time += rng.random_range(60..2 * 86_400);
            events.push(Event {
                item,
                behavior,
                time,
                split: Split::Train,
            });
        }
        let end = events.len();
        if end >= 3 {
            events[end - 1].split = Split::Test;
            events[end - 2].split = Split::Valid;
        }
        favourite
    }

    /// A new item that agrees with the favourites in at least `needed` traits, or in as many as the
    /// shop still offers.
    fn pick(
        &self,
        source: &Buckets,
        favourite: Traits,
        needed: usize,
        seen: &[Event],
        rng: &mut Xoshiro256PlusPlus,
    ) -> Option<u32> {
        // Patterns by number of fixed traits: 3, then 2, 1 and 0.
        const LEVELS: [std::ops::Range<usize>; 4] = [7..8, 4..7, 1..4, 0..1];
        let all = patterns(favourite);
        for level in (0..=needed).rev() {
            let choices = &all[LEVELS[level].clone()];
            let first = rng.random_range(0..choices.len());
            for turn in 0..choices.len() {
                let bucket = source.get(choices[(first + turn) % choices.len()]);
                if bucket.is_empty() {
                    continue;
                }
                // Attractive items come first and are drawn more often.
                for _ in 0..8 {
                    let u: f64 = rng.random();
                    let at = ((u.powf(1.4) * bucket.len() as f64) as usize).min(bucket.len() - 1);
                    if seen.iter().all(|e| e.item != bucket[at]) {
                        return Some(bucket[at]);
                    }
                }
                if bucket.len() <= 64
                    && let Some(&item) = bucket
                        .iter()
                        .find(|&&item| seen.iter().all(|e| e.item != item))
                {
                    return Some(item);
                }
            }
        }
        None
    }
}

fn draw_traits(seed: u64, item: u64) -> (Traits, bool) {
    let mut rng = stream_rng(seed, ITEM_STREAM, item);
    let traits = Traits {
        style: rng.random_range(0..STYLES as u8),
        kind: rng.random_range(0..KINDS as u8),
        circle: rng.random_range(0..CIRCLES as u8),
    };
    (traits, rng.random_bool(0.05))
}

/// Digits that hold the numbers below `count`, so that keys sort like numbers.
fn digits(count: usize) -> usize {
    count.saturating_sub(1).max(1).to_string().len()
}

fn item_key(item: u32, width: usize) -> String {
    format!("sku-{item:0width$}")
}

fn user_key(user: u32, width: usize) -> String {
    format!("user-{user:0width$}")
}

/// Makes the shop in memory.
///
/// # Errors
///
/// [`Error::Config`] if a size is out of range.
pub fn generate(config: &SyntheticConfig) -> Result<Dataset> {
    let shop = Shop::new(config)?;
    let (items, users) = (config.items, config.users);
    let (wide_item, wide_user) = (digits(items), digits(users));
    // Alphabetical, as a reader would find them.
    let mut behaviors: Vec<String> = BEHAVIORS.iter().map(|&b| b.to_owned()).collect();
    behaviors.sort();
    behaviors.insert(0, "any".to_owned());
    let index: Vec<u8> = BEHAVIORS
        .iter()
        .map(|b| behaviors.iter().position(|n| n == b).unwrap_or(0) as u8)
        .collect();

    let mut interactions = Vec::with_capacity(users * config.events_per_user);
    let mut events = Vec::new();
    for user in 0..users as u32 {
        shop.user(user, &mut events);
        interactions.extend(events.iter().map(|e| Interaction {
            user,
            item: e.item,
            behavior: index[e.behavior],
            split: e.split,
            time: e.time,
            value: 1.0,
        }));
    }
    let mut data = Dataset::new(
        "synthetic",
        IdMap::new((0..users as u32).map(|u| user_key(u, wide_user)))?,
        IdMap::new((0..items as u32).map(|i| item_key(i, wide_item)))?,
        behaviors,
        interactions,
        true,
    )?;
    let described: Vec<Item> = (0..items as u32).map(|i| shop.item(i)).collect();
    data.titles = Some(described.iter().map(|i| i.title.clone()).collect());
    data.attributes = vec![
        Attribute {
            name: "category".to_owned(),
            values: described
                .iter()
                .map(|i| vec![i.category.to_owned()])
                .collect(),
        },
        Attribute {
            name: "price".to_owned(),
            values: described.iter().map(|i| vec![i.price.to_owned()]).collect(),
        },
    ];
    let matrix = |dim: usize, fill: &dyn Fn(u32, &mut Vec<f32>)| {
        let mut values = Vec::with_capacity(items * dim);
        for item in 0..items as u32 {
            fill(item, &mut values);
        }
        Array2::from_shape_vec((items, dim), values).map_err(|e| Error::config(e.to_string()))
    };
    data.features = vec![
        ModalityFeatures::new("image", matrix(IMAGE_DIM, &|i, out| shop.image(i, out))?)?,
        ModalityFeatures::new("text", matrix(TEXT_DIM, &|i, out| shop.text(i, out))?)?,
    ];
    Ok(data)
}

/// Writes the shop as a data set folder, streaming; [`Dataset::open`] then gives what [`generate`]
/// gives, but for the name.
///
/// # Errors
///
/// [`Error::Config`] if a size is out of range, [`Error::Io`] if the folder exists or cannot be
/// written.
pub fn write(config: &SyntheticConfig, dir: impl AsRef<Path>) -> Result<()> {
    let shop = Shop::new(config)?;
    import::write_folder(dir.as_ref(), |dir| write_files(&shop, dir))
}

fn write_files(shop: &Shop, dir: &Path) -> Result<()> {
    let (items, users) = (shop.config.items, shop.config.users);
    let (wide_item, wide_user) = (digits(items), digits(users));

    let path = dir.join("items.csv");
    let mut out = create(&path)?;
    let mut text = || -> std::io::Result<()> {
        writeln!(out, "item_id,title,category,price")?;
        for i in 0..items as u32 {
            let item = shop.item(i);
            writeln!(
                out,
                "{},{},{},{}",
                item_key(i, wide_item),
                item.title,
                item.category,
                item.price
            )?;
        }
        out.flush()
    };
    text().map_err(|e| Error::io(&path, e))?;

    let path = dir.join("interactions.csv.gz");
    let mut out = GzEncoder::new(create(&path)?, Compression::fast());
    let mut log = || -> std::io::Result<()> {
        writeln!(out, "user_id,item_id,behavior,timestamp,split")?;
        let mut events = Vec::new();
        for user in 0..users as u32 {
            shop.user(user, &mut events);
            for e in &events {
                writeln!(
                    out,
                    "{},{},{},{},{}",
                    user_key(user, wide_user),
                    item_key(e.item, wide_item),
                    BEHAVIORS[e.behavior],
                    e.time,
                    e.split.name()
                )?;
            }
        }
        out.try_finish()?;
        out.get_mut().flush()
    };
    log().map_err(|e| Error::io(&path, e))?;

    let features = dir.join("features");
    std::fs::create_dir(&features).map_err(|e| Error::io(&features, e))?;
    let path = features.join("image.npy");
    write_npy(&path, create(&path)?, items, IMAGE_DIM, |i, out| {
        shop.image(i as u32, out);
    })?;
    let path = features.join("text.npy");
    write_npy(&path, create(&path)?, items, TEXT_DIM, |i, out| {
        shop.text(i as u32, out);
    })
}

fn create(path: &Path) -> Result<BufWriter<File>> {
    File::create(path)
        .map(BufWriter::new)
        .map_err(|e| Error::io(path, e))
}
