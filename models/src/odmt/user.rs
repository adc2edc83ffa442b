//! User encoders: causal transformers over item vectors, one for each branch.

use candle_core::{Device, Tensor};

use super::block::{Block, Shape, Start, xavier_normal};
use super::config::OdmtConfig;
use crate::attention::Segments;
use crate::error::Result;
use crate::layer::{LayerNorm, dropout};
use crate::ops::pick;
use crate::params::Params;
use crate::rng::Stream;

/// `LN(x + position)`, then blocks; no final norm.
#[derive(Debug)]
pub(super) struct UserEncoder {
    positions: Tensor,
    norm: LayerNorm,
    blocks: Vec<Block>,
    dropout: f64,
}

impl UserEncoder {
    pub(super) fn new(
        params: &mut Params,
        name: &str,
        cfg: &OdmtConfig,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        let table = format!("{name}.positions");
        let start = xavier_normal(&table, cfg.window, cfg.dim, seed, dev)?;
        let positions = params.add(table, &start)?;
        let shape = Shape {
            dim: cfg.dim,
            heads: cfg.user_heads,
            dropout: cfg.dropout,
        };
        let blocks = (0..cfg.user_layers)
            .map(|k| {
                let name = format!("{name}.block.{k}");
                Block::new(params, &name, shape, Start::XavierNormal, seed, dev)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            positions,
            norm: LayerNorm::with_epsilon(params, &format!("{name}.norm"), cfg.dim, 1e-6, dev)?,
            blocks,
            dropout: cfg.dropout,
        })
    }

    /// States after each event.
    ///
    /// Sequences are packed. The published program pads on the left and masks: its padded rows
    /// reach no result, and its positions count from the left of the padded window, so that the
    /// newest event always has the last one, as here.
    ///
    /// # Shapes
    /// `items` `[U, D]`; `events` names the row of each of R events; the result is `[R, D]`.
    pub(super) fn forward(
        &self,
        items: &Tensor,
        events: &[u32],
        segments: &Segments,
        mut noise: Option<&mut Stream>,
    ) -> Result<Tensor> {
        let at = segments.positions_from_the_end(self.positions.dim(0)?);
        let e = pick(items, events)?;
        let p = pick(&self.positions, &at)?;
        let x = self.norm.forward(&(e + p)?)?;
        let mut x = dropout(&x, self.dropout, noise.as_deref_mut())?;
        for block in &self.blocks {
            x = block.forward_causal(&x, segments, noise.as_deref_mut())?;
        }
        Ok(x)
    }
}
