//! Items that a device has added to its own table.

use std::collections::HashMap;

/// An item to be shown behind the rows of a bundle.
pub(crate) struct OverlayItem<'a> {
    pub(crate) key: &'a str,
    /// Values by attribute.
    pub(crate) attributes: &'a [(String, Vec<String>)],
    /// `[D]`
    pub(crate) vector: Vec<f32>,
}

impl OverlayItem<'_> {
    /// Values of attribute `name`.
    pub(super) fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        let of = self.attributes.iter().filter(move |(n, _)| n == name);
        of.flat_map(|(_, values)| values.iter().map(String::as_str))
    }
}

/// Keys and vectors of such items, by their place behind the last row of the bundle.
pub(super) struct Overlay {
    keys: Vec<String>,
    places: HashMap<String, usize>,
    vectors: Vec<Vec<f32>>,
}

impl Overlay {
    pub(super) fn new(items: Vec<OverlayItem<'_>>) -> Self {
        let keys: Vec<String> = items.iter().map(|i| i.key.to_string()).collect();
        Overlay {
            places: keys.iter().cloned().zip(0..).collect(),
            keys,
            vectors: items.into_iter().map(|i| i.vector).collect(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn key(&self, at: usize) -> &str {
        &self.keys[at]
    }

    pub(super) fn find(&self, key: &str) -> Option<usize> {
        self.places.get(key).copied()
    }

    pub(super) fn vector(&self, at: usize) -> &[f32] {
        &self.vectors[at]
    }
}
