//! Reads a data set folder: tables first as keys, then dense ids, then rows.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::table::{self, Table};
use super::{
    Attribute, Dataset, IdMap, Interaction, LoadOptions, QueryRow, Split, features, split,
};
use crate::error::{Error, Result};

/// Keys in the order of first occurrence, with the place of that occurrence for error texts.
#[derive(Default)]
struct Interner {
    index: HashMap<Box<str>, u32>,
    keys: Vec<Box<str>>,
    first: Vec<(u8, u64)>,
}

impl Interner {
    fn intern(&mut self, key: &str, file: u8, line: u64) -> u32 {
        if let Some(&id) = self.index.get(key) {
            return id;
        }
        let id = self.keys.len() as u32;
        self.keys.push(key.into());
        self.index.insert(key.into(), id);
        self.first.push((file, line));
        id
    }
}

/// `items.csv` or `users.csv`.
struct Side {
    path: PathBuf,
    ids: IdMap,
    titles: Option<Vec<String>>,
    attributes: Vec<Attribute>,
}

struct RawRow {
    user: u32,
    item: u32,
    behavior: u32,
    split: Split,
    time: Option<i64>,
    position: i64,
    value: f32,
}

struct RawQuery {
    split: Split,
    user: u32,
    history: Vec<u32>,
    targets: Vec<u32>,
}

/// Files that mention keys, for [`Interner::first`].
const INTERACTIONS: u8 = 0;
const QUERIES: u8 = 1;
const ITEM_ATTRIBUTES: u8 = 2;

pub(super) fn open(dir: &Path, options: &LoadOptions) -> Result<Dataset> {
    if !dir.is_dir() {
        return Err(Error::io(
            dir,
            std::io::Error::new(
                std::io::ErrorKind::NotFound,
                "no such data set folder; `tercet data synth --out DIR` makes one",
            ),
        ));
    }
    let path = table::find(dir, "interactions")?.ok_or_else(|| {
        Error::data(
            dir,
            0,
            "the folder has neither interactions.csv nor interactions.csv.gz",
        )
    })?;
    let mut users = Interner::default();
    let mut items = Interner::default();
    let mut behaviors = Interner::default();

    let (rows, log) = read_log(&path, &mut users, &mut items, &mut behaviors)?;
    if rows.is_empty() {
        return Err(Error::data(&path, 0, "the table has no rows"));
    }
    let queries_path = table::find(dir, "queries")?;
    let queries = match &queries_path {
        Some(path) => Some(read_queries(path, &mut users, &mut items)?),
        None => None,
    };
    let extra_path = table::find(dir, "item_attributes")?;
    let extra = match &extra_path {
        Some(path) => Some(read_item_attributes(path, &mut items)?),
        None => None,
    };
    let item_side = read_side(dir, "items", "item_id")?;
    let user_side = read_side(dir, "users", "user_id")?;

    let files = features::list(dir, options.modalities.as_deref())?;
    let row_ids = features::read_ids(dir)?;
    let feature_rows = features::common_rows(&files, dir)?;

    let paths = [Some(&path), queries_path.as_ref(), extra_path.as_ref()];
    let (item_ids, item_of) = resolve_items(
        &items,
        item_side.as_ref(),
        row_ids.as_ref(),
        feature_rows,
        &paths,
    )?;
    let (user_ids, user_of) = resolve_users(&users, user_side.as_ref())?;

    // Behaviours: 0 is "any", the others in alphabetical order.
    let mut names: Vec<&str> = behaviors.keys.iter().map(AsRef::as_ref).collect();
    names.retain(|name| *name != "any");
    names.sort_unstable();
    if names.len() > 255 {
        return Err(Error::data(
            &path,
            0,
            format!(
                "{} behaviours; at most 255 are possible, is the column right?",
                names.len()
            ),
        ));
    }
    let mut behavior_names = vec!["any".to_owned()];
    behavior_names.extend(names.iter().map(|&n| n.to_owned()));
    let behavior_of: Vec<u8> = behaviors
        .keys
        .iter()
        .map(|key| {
            behavior_names
                .iter()
                .position(|n| **n == **key)
                .unwrap_or(0) as u8
        })
        .collect();

    let interactions = finish_rows(rows, &user_of, &item_of, &behavior_of, log.ordered);
    let name = dir
        .canonicalize()
        .ok()
        .and_then(|d| d.file_name().map(|n| n.to_string_lossy().into_owned()))
        .unwrap_or_else(|| "data".to_owned());
    let mut data = Dataset::new(
        name,
        user_ids,
        item_ids,
        behavior_names,
        interactions,
        log.ordered,
    )?;
    data.ignored_columns = log.ignored;

    if let Some(target) = &options.target_behavior {
        let index = data.behavior(target).ok_or_else(|| {
            Error::config(format!(
                "target behaviour {target:?} does not occur; the data has {}",
                data.behaviors.join(", ")
            ))
        })?;
        data.target_behavior = (index > 0).then_some(index);
    }
    let target = data.target_behavior;
    if !log.has_split {
        split::assign(&mut data.interactions, data.ordered, target, options.seed);
    } else if queries.is_none()
        && options.hold_out_valid
        && data.interactions.iter().all(|r| r.split != Split::Valid)
    {
        split::hold_out_valid(&mut data.interactions, data.ordered, target, options.seed);
        data.valid_from_train = data.interactions.iter().any(|r| r.split == Split::Valid);
    }
    if data.interactions.iter().all(|r| r.split != Split::Train) {
        return Err(Error::data(&path, 0, "no row has split \"train\""));
    }

    if let Some(queries) = queries {
        data.queries = Some(
            queries
                .into_iter()
                .map(|q| {
                    let mut targets: Vec<u32> =
                        q.targets.iter().map(|&i| item_of[i as usize]).collect();
                    targets.sort_unstable();
                    targets.dedup();
                    QueryRow {
                        split: q.split,
                        user: user_of[q.user as usize],
                        history: q.history.iter().map(|&i| item_of[i as usize]).collect(),
                        targets,
                    }
                })
                .collect(),
        );
    }
    data.features = features::read(&files, &data.items, item_side.is_some(), row_ids.as_ref())?;
    if let Some(side) = item_side {
        data.titles = side.titles;
        data.attributes = side.attributes;
    }
    if let Some((name, pairs)) = extra {
        let mut values = vec![Vec::new(); data.num_items()];
        for (item, value) in pairs {
            values[item_of[item as usize] as usize].push(value);
        }
        data.attributes.push(Attribute { name, values });
    }
    if let Some(side) = user_side {
        data.user_attributes = side.attributes;
        for attribute in &mut data.user_attributes {
            attribute.values.resize(data.users.len(), Vec::new());
        }
    }
    Ok(data)
}

struct Log {
    ordered: bool,
    has_split: bool,
    ignored: Vec<String>,
}

fn read_log(
    path: &Path,
    users: &mut Interner,
    items: &mut Interner,
    behaviors: &mut Interner,
) -> Result<(Vec<RawRow>, Log)> {
    let mut table = Table::csv(path)?;
    let user = table.require("user_id")?;
    let item = table.require("item_id")?;
    let split = table.column("split");
    let behavior = table.column("behavior");
    let timestamp = table.column("timestamp");
    let position = table.column("position");
    let value = table.column("value").or_else(|| table.column("rating"));
    let used = [
        Some(user),
        Some(item),
        split,
        behavior,
        timestamp,
        position,
        value,
    ];
    let ignored = (0..table.header.len())
        .filter(|&c| !used.contains(&Some(c)))
        .map(|c| table.header[c].clone())
        .collect();
    let mut rows = Vec::new();
    while let Some((line, record)) = table.next()? {
        let field = |c: usize| record.get(c).unwrap_or("");
        let split = match split {
            None => Split::Train,
            Some(c) => parse_split(path, line, field(c))?,
        };
        let behavior = match behavior {
            None => u32::MAX,
            Some(c) => behaviors.intern(
                table::key(path, line, "behavior", field(c))?,
                INTERACTIONS,
                line,
            ),
        };
        // An empty or -1 time means "not known": such a row comes after the user's other rows.
        let time = match timestamp {
            Some(c) if field(c).trim().is_empty() || field(c).trim() == "-1" => None,
            Some(c) => Some(table::time(path, line, "timestamp", field(c))?),
            None => None,
        };
        let position = match position {
            Some(c) => table::time(path, line, "position", field(c))?,
            None => 0,
        };
        let value = match value {
            Some(c) => table::number(path, line, "value", field(c))?,
            None => 1.0,
        };
        let user = users.intern(
            table::key(path, line, "user_id", field(user))?,
            INTERACTIONS,
            line,
        );
        let item = items.intern(
            table::key(path, line, "item_id", field(item))?,
            INTERACTIONS,
            line,
        );
        let time = if timestamp.is_some() {
            time
        } else {
            Some(position)
        };
        rows.push(RawRow {
            user,
            item,
            behavior,
            split,
            time,
            position,
            value,
        });
    }
    Ok((
        rows,
        Log {
            ordered: timestamp.is_some() || position.is_some(),
            has_split: split.is_some(),
            ignored,
        },
    ))
}

fn parse_split(path: &Path, line: u64, text: &str) -> Result<Split> {
    Split::from_name(text.trim()).ok_or_else(|| {
        Error::data(
            path,
            line,
            format!("split {text:?} is none of train, valid, test"),
        )
    })
}

/// Gives rows their dense ids and their order within a user: time, then position, then file order.
/// Rows without a time come last, with the user's latest time.
fn finish_rows(
    mut rows: Vec<RawRow>,
    user_of: &[u32],
    item_of: &[u32],
    behavior_of: &[u8],
    ordered: bool,
) -> Vec<Interaction> {
    if ordered {
        rows.sort_by_key(|r| {
            (
                user_of[r.user as usize],
                r.time.unwrap_or(i64::MAX),
                r.position,
            )
        });
    }
    let mut last = (u32::MAX, 0i64);
    rows.iter()
        .map(|r| {
            if last.0 != r.user {
                last = (r.user, 0);
            }
            if let Some(time) = r.time {
                last.1 = time;
            }
            Interaction {
                user: user_of[r.user as usize],
                item: item_of[r.item as usize],
                behavior: behavior_of.get(r.behavior as usize).copied().unwrap_or(0),
                split: r.split,
                time: if ordered { last.1 } else { 0 },
                value: r.value,
            }
        })
        .collect()
}

fn read_queries(path: &Path, users: &mut Interner, items: &mut Interner) -> Result<Vec<RawQuery>> {
    let mut table = Table::csv(path)?;
    let split = table.require("split")?;
    let user = table.require("user_id")?;
    let history = table.require("history")?;
    let target = table.require("target")?;
    let mut rows = Vec::new();
    while let Some((line, record)) = table.next()? {
        let field = |c: usize| record.get(c).unwrap_or("");
        let mut list = |c: usize| -> Vec<u32> {
            field(c)
                .split_whitespace()
                .map(|key| items.intern(key, QUERIES, line))
                .collect()
        };
        let history = list(history);
        let targets = list(target);
        if targets.is_empty() {
            return Err(Error::data(path, line, "target is empty"));
        }
        rows.push(RawQuery {
            split: parse_split(path, line, field(split))?,
            user: users.intern(
                table::key(path, line, "user_id", field(user))?,
                QUERIES,
                line,
            ),
            history,
            targets,
        });
    }
    Ok(rows)
}

fn read_item_attributes(path: &Path, items: &mut Interner) -> Result<(String, Vec<(u32, String)>)> {
    let mut table = Table::csv(path)?;
    let item = table.require("item_id")?;
    if table.header.len() != 2 {
        return Err(Error::data(
            path,
            1,
            format!(
                "{} columns; item_id and one attribute are expected",
                table.header.len()
            ),
        ));
    }
    let value = 1 - item;
    let name = table.header[value].clone();
    let mut pairs = Vec::new();
    while let Some((line, record)) = table.next()? {
        let key = table::key(path, line, "item_id", record.get(item).unwrap_or(""))?;
        let id = items.intern(key, ITEM_ATTRIBUTES, line);
        pairs.push((id, record.get(value).unwrap_or("").to_owned()));
    }
    Ok((name, pairs))
}

fn read_side(dir: &Path, stem: &str, id_column: &str) -> Result<Option<Side>> {
    let Some(path) = table::find(dir, stem)? else {
        return Ok(None);
    };
    let mut table = Table::csv(&path)?;
    let id = table.require(id_column)?;
    let title = (stem == "items").then(|| table.column("title")).flatten();
    let columns: Vec<usize> = (0..table.header.len())
        .filter(|&c| c != id && Some(c) != title)
        .collect();
    let mut attributes: Vec<Attribute> = columns
        .iter()
        .map(|&c| Attribute {
            name: table.header[c].clone(),
            values: Vec::new(),
        })
        .collect();
    let mut titles = Vec::new();
    let mut keys: Vec<Box<str>> = Vec::new();
    let mut seen: HashMap<Box<str>, u64> = HashMap::new();
    while let Some((line, record)) = table.next()? {
        let key = table::key(&path, line, id_column, record.get(id).unwrap_or(""))?;
        if let Some(first) = seen.insert(key.into(), line) {
            return Err(Error::data(
                &path,
                line,
                format!("{id_column} {key:?} already occurred in line {first}; remove one"),
            ));
        }
        keys.push(key.into());
        if let Some(c) = title {
            titles.push(record.get(c).unwrap_or("").to_owned());
        }
        for (attribute, &c) in attributes.iter_mut().zip(&columns) {
            let text = record.get(c).unwrap_or("");
            attribute.values.push(if text.is_empty() {
                Vec::new()
            } else {
                text.split('|').map(str::to_owned).collect()
            });
        }
    }
    if keys.is_empty() {
        return Err(Error::data(&path, 0, "the table has no rows"));
    }
    Ok(Some(Side {
        ids: IdMap::new(&keys)?,
        path,
        titles: title.map(|_| titles),
        attributes,
    }))
}

fn resolve_items(
    seen: &Interner,
    side: Option<&Side>,
    row_ids: Option<&IdMap>,
    feature_rows: Option<usize>,
    paths: &[Option<&PathBuf>; 3],
) -> Result<(IdMap, Vec<u32>)> {
    let place = |id: usize| -> (PathBuf, u64) {
        let (file, line) = seen.first[id];
        let path = paths[file as usize].cloned().unwrap_or_default();
        (path, line)
    };
    if let Some(ids) = side.map(|s| &s.ids).or(row_ids) {
        let source = side.map_or("features/ids.txt".to_owned(), |s| {
            s.path
                .file_name()
                .map(|n| n.to_string_lossy().into_owned())
                .unwrap_or_default()
        });
        let mut map = Vec::with_capacity(seen.keys.len());
        for (at, key) in seen.keys.iter().enumerate() {
            map.push(ids.get(key).ok_or_else(|| {
                let (path, line) = place(at);
                Error::data(
                    path,
                    line,
                    format!("item_id {key:?} has no line in {source}"),
                )
            })?);
        }
        return Ok((ids.clone(), map));
    }
    let numbers = integers(&seen.keys);
    if let Some(rows) = feature_rows {
        let Some(numbers) = numbers else {
            let (path, line) = place(0);
            return Err(Error::data(
                path,
                line,
                "item ids are not integers, so feature rows cannot be matched; \
                 add items.csv or features/ids.txt",
            ));
        };
        let (mut low, mut high) = (0, 0);
        for at in 0..numbers.len() {
            if numbers[at] < numbers[low] {
                low = at;
            }
            if numbers[at] > numbers[high] {
                high = at;
            }
        }
        let largest = numbers[high];
        let base = if largest < rows as u64 {
            0
        } else if largest == rows as u64 && numbers[low] >= 1 {
            1
        } else {
            let (path, line) = place(high);
            return Err(Error::data(
                path,
                line,
                format!(
                    "item_id {largest} does not fit {rows} feature rows (ids from {}); \
                     add items.csv or features/ids.txt",
                    numbers[low]
                ),
            ));
        };
        return dense(&numbers, base, rows);
    }
    resolve_free(seen, numbers)
}

fn resolve_users(seen: &Interner, side: Option<&Side>) -> Result<(IdMap, Vec<u32>)> {
    let Some(side) = side else {
        return resolve_free(seen, integers(&seen.keys));
    };
    // users.csv may be partial: unknown users follow, sorted.
    let mut unknown: Vec<&str> = seen
        .keys
        .iter()
        .map(AsRef::as_ref)
        .filter(|key| side.ids.get(key).is_none())
        .collect();
    unknown.sort_unstable();
    let ids = IdMap::new(side.ids.keys().chain(unknown))?;
    let map = seen
        .keys
        .iter()
        .map(|key| ids.get(key).unwrap_or_default())
        .collect();
    Ok((ids, map))
}

/// Ids without any table: dense integers, else sorted keys.
fn resolve_free(seen: &Interner, numbers: Option<Vec<u64>>) -> Result<(IdMap, Vec<u32>)> {
    if let Some(numbers) = &numbers {
        let low = numbers.iter().copied().min().unwrap_or(0);
        let high = numbers.iter().copied().max().unwrap_or(0);
        let base = u64::from(low > 0);
        let span = high.saturating_sub(base).saturating_add(1);
        if span <= 4 * numbers.len() as u64 + 1024 {
            return dense(numbers, base, span as usize);
        }
    }
    let mut order: Vec<usize> = (0..seen.keys.len()).collect();
    match &numbers {
        Some(numbers) => order.sort_unstable_by_key(|&at| numbers[at]),
        None => order.sort_unstable_by(|&a, &b| seen.keys[a].cmp(&seen.keys[b])),
    }
    let ids = IdMap::new(order.iter().map(|&at| &seen.keys[at]))?;
    let mut map = vec![0u32; order.len()];
    for (id, &at) in order.iter().enumerate() {
        map[at] = id as u32;
    }
    Ok((ids, map))
}

fn dense(numbers: &[u64], base: u64, len: usize) -> Result<(IdMap, Vec<u32>)> {
    let ids = IdMap::new((0..len as u64).map(|n| (n + base).to_string()))?;
    let map = numbers.iter().map(|&n| (n - base) as u32).collect();
    Ok((ids, map))
}

/// All keys as integers, if every one is written the usual way (no sign, no leading zero).
fn integers(keys: &[Box<str>]) -> Option<Vec<u64>> {
    keys.iter()
        .map(|key| {
            let canonical = **key == *"0" || !key.starts_with('0');
            let digits = key.bytes().all(|b| b.is_ascii_digit());
            (canonical && digits).then(|| key.parse().ok()).flatten()
        })
        .collect()
}
