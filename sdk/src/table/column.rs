//! Attribute columns: dictionary codes per row.

use std::collections::HashMap;

use super::overlay::OverlayItem;
use crate::bundle::tensors::{Offsets, Slice, Strings, TensorFile};
use crate::error::{Error, Result};

/// Code of an item without a value in an attribute column.
pub(crate) const NO_VALUE: u32 = u32::MAX;

/// One column of a table: a dictionary of values, and codes into it.
#[derive(Clone)]
pub(crate) struct Attribute {
    name: String,
    codes: Slice<u32>,
    /// Present for columns with several values per item.
    lists: Option<Offsets>,
    values: Strings,
    added: Option<Added>,
}

/// What items added on the device have in this column.
#[derive(Clone)]
struct Added {
    /// The first row that is not in the bundle.
    first: usize,
    codes: Vec<Vec<u32>>,
    /// Values that the dictionary of the bundle lacks; their codes go on behind its own.
    values: Vec<String>,
}

impl Attribute {
    /// Reads column `name` of `items` rows.
    ///
    /// # Errors
    /// The tensor errors of `Bundle::open`.
    pub(super) fn take(file: &mut TensorFile, name: &str, items: usize) -> Result<Self> {
        let tensor = format!("attr.{name}");
        let lists = format!("{tensor}.offsets");
        let lists = if file.contains(&lists) {
            Some(Offsets::take(file, &lists, Some(items))?)
        } else {
            None
        };
        Ok(Attribute {
            name: name.to_string(),
            codes: file.take(&tensor, &[lists.is_none().then_some(items)])?,
            lists,
            values: Strings::take(file, &format!("{tensor}.values"), None)?,
            added: None,
        })
    }

    /// The same column with items behind its last row, `first`.
    ///
    /// # Errors
    /// [`Error::CorruptTensor`].
    pub(super) fn extended(&self, first: usize, items: &[OverlayItem<'_>]) -> Result<Self> {
        // Dictionaries are not sorted: one pass finds the codes of all values that matter.
        let mut found: HashMap<&str, Option<u32>> = HashMap::new();
        for item in items {
            found.extend(item.values(&self.name).map(|v| (v, None)));
        }
        let known = self.values.len();
        if !found.is_empty() {
            for code in 0..known {
                let value = std::str::from_utf8(self.values.raw(code)?);
                if let Some(slot) = value.ok().and_then(|v| found.get_mut(v)) {
                    slot.get_or_insert(code as u32);
                }
            }
        }
        let mut values: Vec<String> = Vec::new();
        let codes = items.iter().map(|item| {
            let codes = item.values(&self.name).map(|value| {
                let slot = found.entry(value).or_default();
                *slot.get_or_insert_with(|| {
                    values.push(value.to_string());
                    (known + values.len() - 1) as u32
                })
            });
            let mut codes: Vec<u32> = codes.collect();
            if codes.is_empty() {
                codes.push(NO_VALUE);
            }
            codes
        });
        let added = Added {
            first,
            codes: codes.collect(),
            values,
        };
        Ok(Attribute {
            added: Some(added),
            ..self.clone()
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether a row of the bundle can have several values.
    pub(crate) fn is_list(&self) -> bool {
        self.lists.is_some()
    }

    /// One code per row of the bundle, if each has one.
    pub(crate) fn plain_codes(&self) -> Option<&[u32]> {
        self.lists.is_none().then(|| self.codes.get())
    }

    /// Codes of a row; [`NO_VALUE`] stands for none.
    pub(crate) fn codes(&self, row: usize) -> Result<&[u32]> {
        if let Some(added) = &self.added
            && let Some(at) = row.checked_sub(added.first)
        {
            return Ok(added.codes.get(at).map_or(&[], Vec::as_slice));
        }
        let codes = self.codes.get();
        let range = match &self.lists {
            None => Some(row..row + 1),
            Some(lists) => lists.range(row, codes.len()),
        };
        range.and_then(|r| codes.get(r)).ok_or_else(|| {
            let reason = "offsets decrease or point beyond the data";
            Error::corrupt(format!("attr.{}.offsets", self.name), row, reason)
        })
    }

    /// Number of values in the dictionary.
    pub(crate) fn num_values(&self) -> usize {
        self.values.len() + self.added.as_ref().map_or(0, |a| a.values.len())
    }

    fn added_value(&self, code: usize) -> Option<&str> {
        let at = code.checked_sub(self.values.len())?;
        let value = self.added.as_ref()?.values.get(at)?;
        Some(value)
    }

    /// The bytes of a value of the dictionary.
    pub(crate) fn raw(&self, code: usize) -> Result<&[u8]> {
        match self.added_value(code) {
            Some(value) => Ok(value.as_bytes()),
            None => self.values.raw(code),
        }
    }

    /// The value of a code met at `row`.
    pub(crate) fn value(&self, code: u32, row: usize) -> Result<&str> {
        if code as usize >= self.num_values() {
            let reason = "a code is beyond the dictionary";
            return Err(Error::corrupt(format!("attr.{}", self.name), row, reason));
        }
        match self.added_value(code as usize) {
            Some(value) => Ok(value),
            None => self.values.get(code as usize),
        }
    }

    /// Checks every offset, code and value.
    pub(super) fn verify(&self) -> Result<()> {
        self.values.check()?;
        if let Some(lists) = &self.lists {
            lists.check(&format!("attr.{}.offsets", self.name), self.codes.len())?;
        }
        // The values themselves have been checked.
        let values = self.num_values();
        for (i, &code) in self.codes.get().iter().enumerate() {
            if code as usize >= values && (code != NO_VALUE || self.lists.is_some()) {
                self.value(code, i)?;
            }
        }
        Ok(())
    }
}
