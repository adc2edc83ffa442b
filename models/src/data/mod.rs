//! Data sets: interactions, item features, splits, and the tools that make and describe them.
//!
//! A data set is a folder:
//!
//! | file | content |
//! |---|---|
//! | `interactions.csv[.gz]` | `user_id,item_id` and optionally `split`, `behavior`, `timestamp`, `position`, `value` or `rating` |
//! | `items.csv[.gz]` | `item_id,title,…`; further columns become [`Attribute`]s, `a|b|c` is a list |
//! | `users.csv[.gz]` | `user_id,…` likewise |
//! | `item_attributes.csv[.gz]` | `item_id,<name>`, one value a row |
//! | `queries.csv[.gz]` | `split,user_id,history,target`: the exact histories to evaluate on |
//! | `features/*.npy`, `features/*.safetensors` | one modality each, see [`features`] |
//! | `features/ids.txt` | the item key of each feature row, where it is not the line of `items.csv` |
//!
//! [`Dataset::open`] reads it, [`synthetic`] and [`perspectives`] make ones with planted structure, [`import`] converts
//! RecBole and MMRec folders, [`inspect`] prints the counts, [`embed`] adds features by a pretrained encoder.
//!
//! # Dense ids
//!
//! Items: the r-th line of `items.csv` (or of `features/ids.txt`) is item r. Without either, integer
//! keys are 0-based when the largest one is below the number of feature rows and 1-based when it
//! equals it, so that items which occur nowhere but have features exist too. Without features,
//! integer keys are 0-based when the smallest is 0 and 1-based otherwise, unless they are so sparse
//! that gaps would outnumber items four to one; then, as for other strings, the sorted keys count.
//! Users follow the same rules with `users.csv`.

pub mod embed;
pub mod features;
pub mod import;
pub mod inspect;
mod interactions;
pub mod perspectives;
pub mod sequence;
pub mod split;
pub mod synthetic;
mod table;
mod tokens;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
pub use features::{ModalityFeatures, Standardization};
pub use tokens::TokenFeatures;

/// Which part of the data a row belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Rows to learn from.
    Train,
    /// Rows to choose models and epochs by.
    Valid,
    /// Rows to report.
    Test,
}

impl Split {
    /// The name used in files: `train`, `valid` or `test`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Valid => "valid",
            Self::Test => "test",
        }
    }

    /// The split of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "train" => Some(Self::Train),
            "valid" => Some(Self::Valid),
            "test" => Some(Self::Test),
            _ => None,
        }
    }
}

/// Which rows a model without epochs is fitted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FitOn {
    /// Training rows only.
    #[default]
    Train,
    /// Training and validation rows: right for a final model whose options are already chosen,
    /// above all where validation was held out of train by Tercet itself.
    TrainValid,
}

impl FitOn {
    /// The splits it stands for.
    pub fn splits(self) -> &'static [Split] {
        match self {
            Self::Train => &[Split::Train],
            Self::TrainValid => &[Split::Train, Split::Valid],
        }
    }
}

/// One row of the log.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interaction {
    /// Dense user id.
    pub user: u32,
    /// Dense item id.
    pub item: u32,
    /// Index into [`Dataset::behaviors`]; 0 is "any".
    pub behavior: u8,
    /// The part it belongs to.
    pub split: Split,
    /// Unix time, or the position in the user's list, or 0 where the data has no order.
    pub time: i64,
    /// Rating, count or duration; 1 where the file has none.
    pub value: f32,
}

/// What a model sees of a past event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HistoryEvent {
    /// Dense item id.
    pub item: u32,
    /// Index into [`Dataset::behaviors`]; 0 is "any".
    pub behavior: u8,
}

/// One published evaluation query: an exact history and what came next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryRow {
    /// The part it belongs to.
    pub split: Split,
    /// Dense user id.
    pub user: u32,
    /// Item ids, oldest first.
    pub history: Vec<u32>,
    /// The items to be found, ascending and distinct.
    pub targets: Vec<u32>,
}

/// A further column of `items.csv` or `users.csv`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// The column's name.
    pub name: String,
    /// The values of each item or user; an empty field has none.
    pub values: Vec<Vec<String>>,
}

/// External string keys and their dense ids, in both directions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdMap {
    text: String,
    ends: Vec<usize>,
    order: Vec<u32>,
}

impl IdMap {
    /// The map in which the n-th key has id n.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if a key occurs twice or there are more than `u32::MAX` keys.
    pub fn new<S: AsRef<str>>(keys: impl IntoIterator<Item = S>) -> Result<Self> {
        let mut map = Self::default();
        for key in keys {
            map.text.push_str(key.as_ref());
            map.ends.push(map.text.len());
        }
        let len = u32::try_from(map.ends.len())
            .map_err(|_| Error::config("more than 4 294 967 295 keys"))?;
        let mut order: Vec<u32> = (0..len).collect();
        order.sort_unstable_by(|&a, &b| map.key(a).cmp(map.key(b)));
        for pair in order.windows(2) {
            if map.key(pair[0]) == map.key(pair[1]) {
                return Err(Error::config(format!(
                    "key {:?} occurs twice",
                    map.key(pair[0])
                )));
            }
        }
        map.order = order;
        Ok(map)
    }

    /// The key of an id.
    ///
    /// # Panics
    ///
    /// If `id` is not below [`len`](Self::len).
    pub fn key(&self, id: u32) -> &str {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.text[start..self.ends[id]]
    }

    /// The id of a key, in logarithmic time.
    pub fn get(&self, key: &str) -> Option<u32> {
        self.order
            .binary_search_by(|&id| self.key(id).cmp(key))
            .ok()
            .map(|at| self.order[at])
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// All keys in the order of their ids.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        (0..self.len() as u32).map(|id| self.key(id))
    }
}

/// A binary sparse matrix by rows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Csr {
    /// Row r spans `indices[offsets[r]..offsets[r + 1]]`; one more entry than rows.
    pub offsets: Vec<usize>,
    /// Column ids, ascending and distinct within a row.
    pub indices: Vec<u32>,
}

impl Csr {
    /// Builds the matrix from rows of ascending, distinct column ids.
    pub fn from_rows<R: AsRef<[u32]>>(rows: impl IntoIterator<Item = R>) -> Self {
        let mut csr = Self {
            offsets: vec![0],
            indices: Vec::new(),
        };
        for row in rows {
            csr.indices.extend_from_slice(row.as_ref());
            csr.offsets.push(csr.indices.len());
        }
        csr
    }

    /// The columns of row `r`.
    ///
    /// # Panics
    ///
    /// If `r` is not below [`rows`](Self::rows).
    pub fn row(&self, r: u32) -> &[u32] {
        let r = r as usize;
        &self.indices[self.offsets[r]..self.offsets[r + 1]]
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Number of entries.
    pub fn nnz(&self) -> usize {
        self.indices.len()
    }

    /// Whether `(r, c)` is set.
    pub fn contains(&self, r: u32, c: u32) -> bool {
        self.row(r).binary_search(&c).is_ok()
    }

    /// The transpose, with `columns` rows.
    ///
    /// # Panics
    ///
    /// If an index is not below `columns`.
    pub fn transpose(&self, columns: usize) -> Self {
        let mut offsets = vec![0usize; columns + 1];
        for &c in &self.indices {
            offsets[c as usize + 1] += 1;
        }
        for c in 0..columns {
            offsets[c + 1] += offsets[c];
        }
        let mut next = offsets.clone();
        let mut indices = vec![0u32; self.indices.len()];
        for r in 0..self.rows() as u32 {
            for &c in self.row(r) {
                indices[next[c as usize]] = r;
                next[c as usize] += 1;
            }
        }
        Self { offsets, indices }
    }
}

/// How [`Dataset::open`] reads a folder.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadOptions {
    /// The modalities to read, by name and in this order; `None` reads all, by name. An empty list
    /// reads none.
    pub modalities: Option<Vec<String>>,
    /// Seed of the splits Tercet makes itself.
    pub seed: u64,
    /// The behaviour to predict: training rows, popularity and targets then count only it, while
    /// histories keep every behaviour. `None` treats all behaviours alike.
    pub target_behavior: Option<String>,
    /// Whether to hold a validation part out of train where the file has none.
    pub hold_out_valid: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            modalities: None,
            seed: 0,
            target_behavior: None,
            hold_out_valid: true,
        }
    }
}

/// Interactions with everything known about users and items.
///
/// The public fields beside `interactions` may be changed freely as long as the lengths agree;
/// [`new`](Self::new) sets up the rest.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// The folder's name.
    pub name: String,
    /// User keys.
    pub users: IdMap,
    /// Item keys: the whole catalogue, whether or not an item occurs in the log.
    pub items: IdMap,
    /// Names of behaviours; index 0 is "any", the others are in alphabetical order.
    pub behaviors: Vec<String>,
    /// Rows sorted by user, then by time where ordered, else in file order.
    pub interactions: Vec<Interaction>,
    /// Whether rows of a user have a meaningful order.
    pub ordered: bool,
    /// Whether validation rows were held out of train by Tercet itself.
    pub valid_from_train: bool,
    /// Item features, one matrix a modality, a row an item.
    pub features: Vec<ModalityFeatures>,
    /// Item titles, an empty string where there is none.
    pub titles: Option<Vec<String>>,
    /// Further columns of items.
    pub attributes: Vec<Attribute>,
    /// Further columns of users.
    pub user_attributes: Vec<Attribute>,
    /// Published evaluation queries.
    pub queries: Option<Vec<QueryRow>>,
    /// The behaviour to predict, or `None` for all.
    pub target_behavior: Option<u8>,
    /// Columns of `interactions.csv` that were not understood and left out.
    pub ignored_columns: Vec<String>,
    user_offsets: Vec<usize>,
}

impl Dataset {
    /// A data set without features, titles or attributes. Rows are sorted (stably) by user, then by
    /// time if `ordered`.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if `behaviors` does not begin with "any", or a row names a user, item or
    /// behaviour that does not exist, or holds a value that is not finite.
    pub fn new(
        name: impl Into<String>,
        users: IdMap,
        items: IdMap,
        behaviors: Vec<String>,
        mut interactions: Vec<Interaction>,
        ordered: bool,
    ) -> Result<Self> {
        if behaviors.first().map(String::as_str) != Some("any") {
            return Err(Error::config("the first behaviour must be \"any\""));
        }
        if behaviors.len() > 256 {
            return Err(Error::config("at most 255 named behaviours are possible"));
        }
        for row in &interactions {
            if row.user as usize >= users.len()
                || row.item as usize >= items.len()
                || row.behavior as usize >= behaviors.len()
                || !row.value.is_finite()
            {
                return Err(Error::config(format!("invalid row {row:?}")));
            }
        }
        if ordered {
            interactions.sort_by_key(|row| (row.user, row.time));
        } else {
            interactions.sort_by_key(|row| row.user);
        }
        let mut user_offsets = vec![0usize; users.len() + 1];
        for row in &interactions {
            user_offsets[row.user as usize + 1] += 1;
        }
        for u in 0..users.len() {
            user_offsets[u + 1] += user_offsets[u];
        }
        Ok(Self {
            name: name.into(),
            users,
            items,
            behaviors,
            interactions,
            ordered,
            valid_from_train: false,
            features: Vec::new(),
            titles: None,
            attributes: Vec::new(),
            user_attributes: Vec::new(),
            queries: None,
            target_behavior: None,
            ignored_columns: Vec::new(),
            user_offsets,
        })
    }

    /// Reads a data set folder; see the [module](self) for its files.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Data`] or [`Error::Feature`] for anything missing or malformed,
    /// [`Error::Config`] for options that do not fit the data.
    pub fn open(dir: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        interactions::open(dir.as_ref(), options)
    }

    /// Number of users.
    pub fn num_users(&self) -> usize {
        self.users.len()
    }

    /// Number of items in the catalogue.
    pub fn num_items(&self) -> usize {
        self.items.len()
    }

    /// The features of a modality.
    pub fn modality(&self, name: &str) -> Option<&ModalityFeatures> {
        self.features.iter().find(|f| f.name == name)
    }

    /// The index of a behaviour's name.
    pub fn behavior(&self, name: &str) -> Option<u8> {
        self.behaviors
            .iter()
            .position(|b| b == name)
            .and_then(|at| u8::try_from(at).ok())
    }

    /// All rows of a user, in order.
    ///
    /// # Panics
    ///
    /// If `user` is not below [`num_users`](Self::num_users).
    pub fn user_rows(&self, user: u32) -> &[Interaction] {
        let user = user as usize;
        &self.interactions[self.user_offsets[user]..self.user_offsets[user + 1]]
    }

    /// Whether a behaviour is one to predict.
    pub fn is_target(&self, behavior: u8) -> bool {
        self.target_behavior.is_none_or(|target| target == behavior)
    }

    /// User → distinct items of the given splits, of one behaviour or of all.
    pub fn rows(&self, splits: &[Split], behavior: Option<u8>) -> Csr {
        let mut row = Vec::new();
        let mut csr = Csr::from_rows(std::iter::empty::<&[u32]>());
        for user in 0..self.num_users() as u32 {
            row.clear();
            row.extend(
                self.user_rows(user)
                    .iter()
                    .filter(|r| {
                        splits.contains(&r.split) && behavior.is_none_or(|b| b == r.behavior)
                    })
                    .map(|r| r.item),
            );
            row.sort_unstable();
            row.dedup();
            csr.indices.extend_from_slice(&row);
            csr.offsets.push(csr.indices.len());
        }
        csr
    }

    /// User → distinct training items, of the target behaviour if one is set.
    pub fn train_rows(&self) -> Csr {
        self.rows(&[Split::Train], self.target_behavior)
    }

    /// User → distinct items of what a model is fitted on, of the target behaviour if one is set.
    pub fn fit_rows(&self, fit_on: FitOn) -> Csr {
        self.rows(fit_on.splits(), self.target_behavior)
    }

    /// Training rows per item, of the target behaviour if one is set. Repeated events count.
    pub fn popularity(&self) -> Vec<u32> {
        self.counts(FitOn::Train)
    }

    /// Rows per item of what a model is fitted on, of the target behaviour if one is set. Repeated
    /// events count.
    pub fn counts(&self, fit_on: FitOn) -> Vec<u32> {
        let mut counts = vec![0u32; self.num_items()];
        for row in &self.interactions {
            if fit_on.splits().contains(&row.split) && self.is_target(row.behavior) {
                counts[row.item as usize] += 1;
            }
        }
        counts
    }

    /// What a user did in the splits *before* `upto`, every behaviour, oldest first: nothing for
    /// `Train`, training rows for `Valid`, training and validation rows for `Test`.
    ///
    /// # Panics
    ///
    /// If `user` is not below [`num_users`](Self::num_users).
    pub fn history(&self, user: u32, upto: Split) -> Vec<HistoryEvent> {
        self.user_rows(user)
            .iter()
            .filter(|row| row.split < upto)
            .map(|row| HistoryEvent {
                item: row.item,
                behavior: row.behavior,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_map_finds_every_key() {
        let map = IdMap::new(["b", "", "aa", "a"]).unwrap();
        assert_eq!(map.len(), 4);
        for (id, key) in ["b", "", "aa", "a"].iter().enumerate() {
            assert_eq!(map.key(id as u32), *key);
            assert_eq!(map.get(key), Some(id as u32));
        }
        assert_eq!(map.get("ab"), None);
        assert!(IdMap::new(["x", "y", "x"]).is_err());
    }

    #[test]
    fn transpose_twice_is_the_identity() {
        let csr = Csr::from_rows([vec![0, 2], vec![], vec![1, 2]]);
        let t = csr.transpose(3);
        assert_eq!(t, Csr::from_rows([vec![0], vec![2], vec![0, 2]]));
        assert_eq!(t.transpose(3), csr);
        assert!(csr.contains(2, 1) && !csr.contains(1, 1));
    }
}
