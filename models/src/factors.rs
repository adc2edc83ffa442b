//! Scoring by the product of a known user's vector and every item's vector.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::eval::{EvalQuery, Scorer};
use crate::ops::pick;
use crate::params::TensorMap;

/// User and item vectors of a model with one vector per known user.
#[derive(Debug, Clone)]
pub struct Factors {
    users: Tensor,
    items_t: Tensor,
}

impl Factors {
    /// From the tensors `user_vectors` `[U, d]` and `item_vectors` `[N, d]`.
    ///
    /// # Errors
    /// A tensor is missing or the widths differ.
    pub fn new(tensors: &TensorMap) -> Result<Self> {
        let get = |n: &str| {
            tensors.get(n).cloned().ok_or_else(|| {
                Error::config(format!(
                    "tensor `{n}` is missing from the run; train it again"
                ))
            })
        };
        let (users, items) = (get("user_vectors")?, get("item_vectors")?);
        if users.dim(1)? != items.dim(1)? {
            return Err(Error::config("user and item vectors have different widths"));
        }
        Ok(Self {
            users,
            items_t: items.t()?.contiguous()?,
        })
    }
}

impl Scorer for Factors {
    fn num_items(&self) -> usize {
        self.items_t.dims()[1]
    }

    fn score(&self, queries: &[EvalQuery], out: &mut [f32]) -> Result<()> {
        let ids: Vec<u32> = queries.iter().map(|q| q.user).collect();
        let u = pick(&self.users, &ids)?;
        copy_scores(&u.matmul(&self.items_t)?, out)
    }
}

/// Copies a `[B, N]` tensor into a row-major buffer.
pub fn copy_scores(scores: &Tensor, out: &mut [f32]) -> Result<()> {
    let v = scores.flatten_all()?.to_vec1::<f32>()?;
    if v.len() != out.len() {
        return Err(Error::config(format!(
            "{} scores for {} places",
            v.len(),
            out.len()
        )));
    }
    out.copy_from_slice(&v);
    Ok(())
}
