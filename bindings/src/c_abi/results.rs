//! Lists that the caller owns.

use std::ffi::c_char;
use std::sync::Arc;

use super::arguments::Failure;
use super::handles::{Object, insert};
use super::layout::{TercetBecause, TercetModalityShare, TercetRecommendation, TercetResults};
use crate::error::HostError;

/// Keys one behind the other, each with a zero byte; entries point into them.
#[derive(Default)]
pub(super) struct Results {
    text: Vec<u8>,
    items: Vec<Item>,
    because: Vec<Reason>,
    modalities: Vec<Share>,
    unknown: Vec<usize>,
}

struct Item {
    at: usize,
    length: usize,
    because: std::ops::Range<usize>,
    modalities: std::ops::Range<usize>,
    score: f32,
    row: u32,
}

struct Reason {
    at: usize,
    length: usize,
    share: f32,
    contribution: f32,
}

struct Share {
    at: usize,
    share: f32,
}

impl Results {
    fn key(&mut self, key: &str) -> usize {
        let at = self.text.len();
        self.text.extend_from_slice(key.as_bytes());
        self.text.push(0);
        at
    }

    pub(super) fn new(best: &[tercet::Recommendation]) -> Self {
        let mut all = Results::default();
        all.items.reserve_exact(best.len());
        all.text
            .reserve(best.iter().map(|r| r.item.len() + 1).sum());
        for r in best {
            let at = all.key(&r.item);
            let (reasons, shares) = (all.because.len(), all.modalities.len());
            for b in &r.because {
                let at = all.key(&b.item);
                all.because.push(Reason {
                    at,
                    length: b.item.len(),
                    share: b.share,
                    contribution: b.contribution,
                });
            }
            for m in &r.modalities {
                let at = all.key(&m.name);
                all.modalities.push(Share { at, share: m.share });
            }
            all.items.push(Item {
                at,
                length: r.item.len(),
                because: reasons..all.because.len(),
                modalities: shares..all.modalities.len(),
                score: r.score,
                row: r.row,
            });
        }
        all
    }

    pub(super) fn with_unknown(mut self, keys: &[String]) -> Self {
        for key in keys {
            let at = self.key(key);
            self.unknown.push(at);
        }
        self
    }

    fn text(&self, at: usize) -> *const c_char {
        self.text[at..].as_ptr().cast()
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn items(&self, first: usize) -> impl Iterator<Item = TercetRecommendation> {
        let items = self.items.get(first..).unwrap_or_default().iter();
        items.map(|r| TercetRecommendation {
            item: self.text(r.at),
            item_length: r.length,
            because_count: r.because.len(),
            modality_count: r.modalities.len(),
            score: r.score,
            row: r.row,
        })
    }

    fn item(&self, index: usize) -> Result<&Item, HostError> {
        self.items.get(index).ok_or_else(|| {
            HostError::argument(format!(
                "index is {index}, there are {} items",
                self.items.len()
            ))
        })
    }

    pub(super) fn because(
        &self,
        index: usize,
    ) -> Result<impl Iterator<Item = TercetBecause>, HostError> {
        let because = self.because[self.item(index)?.because.clone()].iter();
        Ok(because.map(|b| TercetBecause {
            item: self.text(b.at),
            item_length: b.length,
            share: b.share,
            contribution: b.contribution,
        }))
    }

    pub(super) fn modalities(
        &self,
        index: usize,
    ) -> Result<impl Iterator<Item = TercetModalityShare>, HostError> {
        let shares = self.modalities[self.item(index)?.modalities.clone()].iter();
        Ok(shares.map(|m| TercetModalityShare {
            name: self.text(m.at),
            share: m.share,
        }))
    }

    pub(super) fn unknown(&self) -> impl Iterator<Item = *const c_char> {
        self.unknown.iter().map(|at| self.text(*at))
    }

    /// Hands the list to the caller.
    ///
    /// # Safety
    /// `out` points to a handle that may be written.
    pub(super) unsafe fn give(self, out: *mut *mut TercetResults) -> Result<(), Failure> {
        let handle = insert(Object::Results(Arc::new(self)))?;
        // SAFETY: the caller's promise; null was refused on entry.
        unsafe { out.write(std::ptr::without_provenance_mut(handle)) };
        Ok(())
    }
}
