//! Features by token: word pieces of a text, patches of an image.

use half::f16;
use ndarray::Array2;

use super::features::{ModalityFeatures, Standardization, statistics};

/// The tokens of all items in one modality, the class token first.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenFeatures {
    /// Tokens of an item.
    pub per_item: usize,
    /// Columns.
    pub dim: usize,
    /// Token t of item i is row `i · per_item + t`; missing tokens are zero.
    pub values: Vec<f16>,
    /// Whether the token exists, in the order of rows.
    pub present: Vec<bool>,
}

impl TokenFeatures {
    /// Column statistics over the tokens that exist.
    pub fn standardize(&self) -> Standardization {
        statistics(self.dim, |visit| {
            let mut row = vec![0f32; self.dim];
            let rows = self.values.chunks_exact(self.dim).zip(&self.present);
            for (token, _) in rows.filter(|(_, p)| **p) {
                row.iter_mut().zip(token).for_each(|(x, t)| *x = t.to_f32());
                visit(&row);
            }
        })
    }

    /// The tokens of the items `order[r]` = item of the r-th row, among `items`.
    pub(super) fn reordered(&self, order: &[u32], items: usize) -> Self {
        let size = self.per_item * self.dim;
        let mut values = vec![f16::ZERO; items * size];
        let mut present = vec![false; items * self.per_item];
        for (row, &item) in order.iter().enumerate() {
            let item = item as usize;
            values[item * size..][..size].copy_from_slice(&self.values[row * size..][..size]);
            present[item * self.per_item..][..self.per_item]
                .copy_from_slice(&self.present[row * self.per_item..][..self.per_item]);
        }
        Self {
            values,
            present,
            ..*self
        }
    }
}

/// Turns features of single tokens, a row each, into those of items: the mean of an item's tokens,
/// beside the tokens themselves.
pub(super) fn pool(rows: ModalityFeatures, per_item: usize) -> ModalityFeatures {
    let dim = rows.dim();
    let items = rows.present.len() / per_item;
    let mut mean = Array2::zeros((items, dim));
    let mut present = vec![false; items];
    for ((at, row), has) in rows.values.outer_iter().enumerate().zip(&rows.present) {
        if *has {
            present[at / per_item] = true;
            let mut to = mean.row_mut(at / per_item);
            to += &row;
        }
    }
    for (item, mut row) in mean.outer_iter_mut().enumerate() {
        let tokens = &rows.present[item * per_item..][..per_item];
        let count = tokens.iter().filter(|p| **p).count().max(1);
        row /= count as f32;
    }
    ModalityFeatures {
        name: rows.name,
        kind: rows.kind,
        values: mean,
        present,
        tokens: Some(TokenFeatures {
            per_item,
            dim,
            values: rows.values.iter().map(|&x| f16::from_f32(x)).collect(),
            present: rows.present,
        }),
    }
}
