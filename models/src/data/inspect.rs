//! Counts of a data set folder, as `tercet data inspect` prints them.

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::table::{self, Table};
use super::{Dataset, LoadOptions, Split, features};
use crate::error::Result;

/// What a data set folder holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    /// The folder's name.
    pub name: String,
    /// Users who occur in the log.
    pub users: usize,
    /// Items that occur in the log.
    pub items: usize,
    /// Users with a dense id.
    pub catalogue_users: usize,
    /// Items with a dense id: the catalogue that is ranked.
    pub catalogue_items: usize,
    /// Rows of the log.
    pub rows: usize,
    /// Distinct (user, item) pairs of the log.
    pub pairs: usize,
    /// 100 · (1 − pairs / (users · items)).
    pub sparsity_percent: f64,
    /// Whether rows of a user have an order.
    pub ordered: bool,
    /// Whether the file names splits; if not, the splits below are Tercet's own.
    pub split_in_file: bool,
    /// Named behaviours.
    pub behaviors: Vec<String>,
    /// Counts per split, and per behaviour where there are several.
    pub splits: Vec<SplitCount>,
    /// Counts per modality.
    pub features: Vec<FeatureCount>,
    /// Published queries: (valid, test).
    pub queries: Option<(usize, usize)>,
    /// Whether items have titles.
    pub titles: bool,
    /// Names of item attributes.
    pub attributes: Vec<String>,
    /// Names of user attributes.
    pub user_attributes: Vec<String>,
    /// Columns of the log that are not used.
    pub ignored_columns: Vec<String>,
}

/// Counts of one split, or of one behaviour in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitCount {
    /// The split.
    pub split: Split,
    /// The behaviour, `None` for all.
    pub behavior: Option<String>,
    /// Rows.
    pub rows: usize,
    /// Distinct users.
    pub users: usize,
    /// Distinct items.
    pub items: usize,
}

/// Counts of one modality.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureCount {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// Rows of the file.
    pub rows: usize,
    /// Columns.
    pub dim: usize,
    /// `float16`, `bfloat16` or `float32`.
    pub dtype: String,
    /// Items without it.
    pub missing: usize,
}

/// Reads a data set folder as it is, holding nothing out, and counts.
///
/// # Errors
///
/// As [`Dataset::open`].
pub fn inspect(dir: impl AsRef<Path>) -> Result<Inspection> {
    let dir = dir.as_ref();
    let options = LoadOptions {
        hold_out_valid: false,
        ..LoadOptions::default()
    };
    let data = Dataset::open(dir, &options)?;
    let split_in_file = match table::find(dir, "interactions")? {
        Some(path) => Table::csv(&path)?.column("split").is_some(),
        None => false,
    };
    let files = features::list(dir, None)?;

    let mut splits = Vec::new();
    let named = data.behaviors.len() > 1;
    for split in [Split::Train, Split::Valid, Split::Test] {
        splits.extend(count(&data, split, None));
        if named {
            for behavior in 0..data.behaviors.len() as u8 {
                splits.extend(count(&data, split, Some(behavior)));
            }
        }
    }
    let users = distinct(data.interactions.iter().map(|r| r.user));
    let items = distinct(data.interactions.iter().map(|r| r.item));
    let pairs = distinct(data.interactions.iter().map(|r| (r.user, r.item)));
    Ok(Inspection {
        users,
        items,
        catalogue_users: data.num_users(),
        catalogue_items: data.num_items(),
        rows: data.interactions.len(),
        pairs,
        sparsity_percent: 100.0 * (1.0 - pairs as f64 / (users as f64 * items as f64)),
        ordered: data.ordered,
        split_in_file,
        behaviors: data.behaviors[1..].to_vec(),
        splits,
        features: data
            .features
            .iter()
            .zip(&files)
            .map(|(f, file)| FeatureCount {
                name: f.name.clone(),
                kind: f.kind.clone(),
                rows: file.rows,
                dim: f.dim(),
                dtype: file.dtype.to_owned(),
                missing: f.missing(),
            })
            .collect(),
        queries: data.queries.as_ref().map(|queries| {
            let of = |split| queries.iter().filter(|q| q.split == split).count();
            (of(Split::Valid), of(Split::Test))
        }),
        titles: data.titles.is_some(),
        attributes: data.attributes.iter().map(|a| a.name.clone()).collect(),
        user_attributes: data
            .user_attributes
            .iter()
            .map(|a| a.name.clone())
            .collect(),
        ignored_columns: data.ignored_columns.clone(),
        name: data.name,
    })
}

/// `None` if there are no such rows.
fn count(data: &Dataset, split: Split, behavior: Option<u8>) -> Option<SplitCount> {
    let rows = || {
        data.interactions
            .iter()
            .filter(move |r| r.split == split && behavior.is_none_or(|b| b == r.behavior))
    };
    let total = rows().count();
    (total > 0).then(|| SplitCount {
        split,
        behavior: behavior.map(|b| data.behaviors[b as usize].clone()),
        rows: total,
        users: distinct(rows().map(|r| r.user)),
        items: distinct(rows().map(|r| r.item)),
    })
}

fn distinct<T: Eq + std::hash::Hash>(values: impl Iterator<Item = T>) -> usize {
    values.collect::<HashSet<T>>().len()
}
