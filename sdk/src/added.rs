//! Items that the bundle does not hold yet, described by their features.

use crate::error::{Error, Result};
use crate::id::{MAX_KEY_BYTES, check_key, is_name};

/// Most items that one session holds beside its bundle.
pub const MAX_ADDED: usize = 1024;

/// Most modalities or attributes of an added item, and most values of an attribute.
const MAX_LIST: usize = 64;

/// Most values of one feature.
const MAX_FEATURE: usize = 1 << 16;

/// An item to be recommended before a bundle knows it; see
/// [`Session::add_item`](crate::Session::add_item).
///
/// ```
/// use tercet::NewItem;
/// let item = NewItem::new("sku-9")
///     .feature("text", vec![0.25; 384])
///     .attribute("category", ["tea"]);
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct NewItem {
    /// The app's own item key.
    pub key: String,
    /// Raw features by modality, as the fusion tower takes them; any subset of the modalities.
    pub features: Vec<(String, Vec<f32>)>,
    /// Values by attribute, for filters and caps.
    pub attributes: Vec<(String, Vec<String>)>,
}

/// What became of an added item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Added {
    /// It is ranked from now on.
    Ranked,
    /// It is ranked in place of an earlier one with the same key.
    Replaced,
    /// The bundle holds it; nothing was changed, because the bundle knows more of it.
    InBundle,
}

impl NewItem {
    /// An item without features.
    pub fn new(key: impl Into<String>) -> Self {
        NewItem {
            key: key.into(),
            features: Vec::new(),
            attributes: Vec::new(),
        }
    }

    /// Sets the feature of a modality, `[D_m]`.
    pub fn feature(mut self, modality: impl Into<String>, values: Vec<f32>) -> Self {
        self.features.push((modality.into(), values));
        self
    }

    /// Sets the values of an attribute.
    pub fn attribute<S: Into<String>>(
        mut self,
        name: impl Into<String>,
        values: impl IntoIterator<Item = S>,
    ) -> Self {
        let values = values.into_iter().map(Into::into).collect();
        self.attributes.push((name.into(), values));
        self
    }

    /// Checks what can be checked without a bundle.
    pub(crate) fn check(&self) -> Result<()> {
        check_key(&self.key)?;
        let many = |what: &str, n: usize| {
            Err(Error::argument(format!(
                "an added item has {n} {what}, at most {MAX_LIST} are accepted"
            )))
        };
        if self.features.is_empty() {
            return Err(Error::argument(
                "an added item has no feature: give at least one modality's",
            ));
        }
        if self.features.len() > MAX_LIST {
            return many("features", self.features.len());
        }
        if self.attributes.len() > MAX_LIST {
            return many("attributes", self.attributes.len());
        }
        let features = self.features.iter().map(|(name, _)| name);
        let attributes = self.attributes.iter().map(|(name, _)| name);
        for names in [features.collect::<Vec<_>>(), attributes.collect::<Vec<_>>()] {
            for (i, name) in names.iter().enumerate() {
                if !is_name(name) {
                    return Err(Error::argument(format!(
                        "{:?} cannot name a modality or an attribute",
                        name.chars().take(64).collect::<String>()
                    )));
                }
                if names[..i].contains(name) {
                    return Err(Error::argument(format!("{name:?} is given twice")));
                }
            }
        }
        for (name, values) in &self.features {
            if values.len() > MAX_FEATURE {
                return Err(Error::argument(format!(
                    "feature {name:?} has {} values, at most {MAX_FEATURE} are accepted",
                    values.len()
                )));
            }
            if values.iter().any(|x| !x.is_finite()) {
                return Err(Error::NonFinite {
                    what: name.clone(),
                    row: 0,
                });
            }
        }
        for (name, values) in &self.attributes {
            if values.len() > MAX_LIST {
                return many(&format!("values of {name:?}"), values.len());
            }
            if values.iter().any(|v| v.len() > MAX_KEY_BYTES) {
                return Err(Error::argument(format!(
                    "a value of {name:?} is longer than {MAX_KEY_BYTES} bytes"
                )));
            }
        }
        Ok(())
    }
}
