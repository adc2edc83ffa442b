//! The id-aware item encoder: frozen tokens of each modality and one id token in, one vector per
//! branch out.

use candle_core::{DType, Device, Tensor};
use half::f16;

use super::block::{Block, Shape, Start};
use super::config::{IdMask, OdmtConfig};
use crate::data::{ModalityFeatures, Standardization};
use crate::error::Result;
use crate::layer::{Linear, dropout};
use crate::ops::{self, index_tensor, pick};
use crate::params::Params;
use crate::rng::{self, Purpose, Stream};

/// Added to the scores of keys that a token must not see.
const HIDDEN: f32 = -10_000.0;

/// Slope of the heads' activation below zero.
const LEAK: f64 = 0.01;

/// Frozen features of one modality, on the host.
#[derive(Debug, Clone)]
pub(super) struct Frozen {
    pub(super) name: String,
    /// Tokens per item; the first is the class token.
    pub(super) tokens: usize,
    /// `[N, tokens · width]`, zero where missing.
    pub(super) values: Tensor,
    /// Which of the N · tokens tokens exist.
    pub(super) present: Vec<bool>,
}

impl Frozen {
    /// The features of a modality, each column brought to mean 0 and variance 1 over the tokens
    /// that exist if `standardize`. Pooled features are one token.
    pub(super) fn new(f: &ModalityFeatures, standardize: bool) -> Result<Self> {
        let width = f.dim();
        let items = f.present.len();
        if let Some(t) = &f.tokens {
            let s = standardize.then(|| t.standardize());
            // Half precision: token features are by far the largest part of a data set.
            let mut values = t.values.clone();
            standardize_rows(&mut values, &t.present, s, f16::to_f32, f16::from_f32);
            return Ok(Self {
                name: f.name.clone(),
                tokens: t.per_item,
                values: Tensor::from_vec(values, (items, t.per_item * width), &Device::Cpu)?,
                present: t.present.clone(),
            });
        }
        let s = standardize.then(|| f.standardize());
        let mut values: Vec<f32> = f.values.iter().copied().collect();
        standardize_rows(&mut values, &f.present, s, |x| x, |x| x);
        Ok(Self {
            name: f.name.clone(),
            tokens: 1,
            values: Tensor::from_vec(values, (items, width), &Device::Cpu)?,
            present: f.present.clone(),
        })
    }

    /// Columns of a token.
    pub(super) fn width(&self) -> Result<usize> {
        Ok(self.values.dim(1)? / self.tokens)
    }

    /// Whether a token of an item exists.
    fn has(&self, item: u32, token: usize) -> bool {
        self.present[item as usize * self.tokens + token]
    }

    fn lacks_some_class(&self) -> bool {
        self.present.chunks_exact(self.tokens).any(|t| !t[0])
    }
}

/// Applies `(x − mean) · inv_std` to the rows that are present.
fn standardize_rows<T: Copy>(
    values: &mut [T],
    present: &[bool],
    by: Option<Standardization>,
    read: impl Fn(T) -> f32,
    write: impl Fn(f32) -> T,
) {
    let Some(s) = by else {
        return;
    };
    let rows = values.chunks_exact_mut(s.mean.len()).zip(present);
    for (row, _) in rows.filter(|(_, p)| **p) {
        for ((x, m), inv) in row.iter_mut().zip(&s.mean).zip(&s.inv_std) {
            *x = write((read(*x) - m) * inv);
        }
    }
}

#[derive(Debug)]
struct Modality {
    frozen: Frozen,
    project: Linear,
    /// Stands for the class token of items without this modality; absent where all items have it.
    missing: Option<Tensor>,
}

impl Modality {
    /// Projected tokens `[n, tokens, D]`; those that do not exist are zero, but for the class token.
    fn tokens(&self, ids: &[u32], class_only: bool, dev: &Device) -> Result<Tensor> {
        let f = &self.frozen;
        let (n, width) = (ids.len(), f.width()?);
        let taken = if class_only { 1 } else { f.tokens };
        let x = pick(&f.values, ids)?
            .narrow(1, 0, taken * width)?
            .to_dtype(DType::F32)?
            .to_device(dev)?
            .reshape((n * taken, width))?;
        let x = ops::input_linear(&x, &self.project.weight)?;
        let x = x.broadcast_add(&self.project.bias)?;
        let d = self.project.bias.dim(0)?;
        let has: Vec<f32> = ids
            .iter()
            .flat_map(|&i| (0..taken).map(move |t| f32::from(u8::from(f.has(i, t)))))
            .collect();
        if has.iter().all(|h| *h == 1.0) {
            return Ok(x.reshape((n, taken, d))?);
        }
        let stands: Vec<f32> = has
            .iter()
            .enumerate()
            .map(|(at, h)| if at % taken == 0 { 1.0 - h } else { 0.0 })
            .collect();
        let x = x.broadcast_mul(&Tensor::from_vec(has, (n * taken, 1), dev)?)?;
        let x = match &self.missing {
            Some(m) => {
                let stands = Tensor::from_vec(stands, (n * taken, 1), dev)?;
                (x + stands.broadcast_mul(&m.unsqueeze(0)?)?)?
            }
            None => x,
        };
        Ok(x.reshape((n, taken, d))?)
    }
}

/// Id table, projections, blocks and heads.
#[derive(Debug)]
pub(super) struct ItemEncoder {
    ids: Tensor,
    project: Linear,
    modalities: Vec<Modality>,
    blocks: Vec<Block>,
    /// Of the id branch first, then of each modality.
    heads: Vec<(Linear, Linear)>,
    id_mask: IdMask,
    dropout: f64,
    /// False lets the last block compute tokens that nobody reads, which changes no result.
    pub(super) trim: bool,
    dev: Device,
}

impl ItemEncoder {
    /// `ids` is the start of the id table, `[N, id_dim]`.
    pub(super) fn new(
        params: &mut Params,
        cfg: &OdmtConfig,
        ids: &Tensor,
        features: Vec<Frozen>,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        let d = cfg.dim;
        let mut branches = vec!["id".to_string()];
        let modalities = features
            .into_iter()
            .map(|frozen| {
                branches.push(frozen.name.clone());
                let name = format!("project.{}", frozen.name);
                let project = Linear::uniform(params, &name, frozen.width()?, d, seed, dev)?;
                let missing = if frozen.lacks_some_class() {
                    let name = format!("missing.{}", frozen.name);
                    let mut r = rng::stream(seed, Purpose::Init, &[rng::name_hash(&name)]);
                    let start = rng::uniform(&mut r, d, 1.0 / (d as f64).sqrt(), dev)?;
                    Some(params.add(name, &start)?)
                } else {
                    None
                };
                Ok(Modality {
                    frozen,
                    project,
                    missing,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let shape = Shape {
            dim: d,
            heads: cfg.imt_heads,
            dropout: cfg.dropout,
        };
        let layers = if cfg.imt { cfg.imt_layers } else { 0 };
        let blocks = (0..layers)
            .map(|k| {
                Block::new(
                    params,
                    &format!("imt.{k}"),
                    shape,
                    Start::Uniform,
                    seed,
                    dev,
                )
            })
            .collect::<Result<Vec<_>>>()?;
        let heads = branches
            .iter()
            .map(|b| {
                let mut linear = |part: &str| {
                    Linear::uniform(params, &format!("head.{b}.{part}"), d, d, seed, dev)
                };
                Ok((linear("up")?, linear("down")?))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            ids: params.add("ids", ids)?,
            project: Linear::uniform(params, "project.id", cfg.id_dim, d, seed, dev)?,
            modalities,
            blocks,
            heads,
            id_mask: cfg.id_mask,
            dropout: cfg.dropout,
            trim: true,
            dev: dev.clone(),
        })
    }

    /// Items in the table.
    pub(super) fn num_items(&self) -> Result<usize> {
        Ok(self.ids.dim(0)?)
    }

    /// Item vectors of each branch, `[n, D]` each, of distinct items.
    ///
    /// The published program encodes every slot of a batch; encoding an item once gives the same
    /// vectors, but its copies share one dropout mask.
    pub(super) fn encode(
        &self,
        ids: &[u32],
        mut noise: Option<&mut Stream>,
    ) -> Result<Vec<Tensor>> {
        let class_only = self.blocks.is_empty();
        let mut parts = self
            .modalities
            .iter()
            .map(|m| m.tokens(ids, class_only, &self.dev))
            .collect::<Result<Vec<_>>>()?;
        let e = pick(&self.ids, ids)?;
        parts.push(self.project.forward(&e)?.unsqueeze(1)?);
        let x = Tensor::cat(&parts, 1)?;
        let x = dropout(&x, self.dropout, noise.as_deref_mut())?;
        let mixed = match self.blocks.as_slice() {
            [] => x,
            blocks if self.trim => mix(blocks, &x, &self.mask(ids)?, &self.classes()?, noise)?,
            blocks => {
                let all = Tensor::arange(0, x.dim(1)? as u32, &self.dev)?;
                mix(blocks, &x, &self.mask(ids)?, &all, noise)?.index_select(&self.classes()?, 1)?
            }
        };
        // Outputs are in the order of tokens, with the id last.
        let m = self.modalities.len();
        self.heads
            .iter()
            .enumerate()
            .map(|(branch, (up, down))| {
                let at = if branch == 0 { m } else { branch - 1 };
                let x = up.forward(&mixed.narrow(1, at, 1)?.squeeze(1)?)?;
                let x = (x.relu()? - (x.neg()?.relu()? * LEAK)?)?;
                down.forward(&x)
            })
            .collect()
    }

    /// Tokens that are read out: the class token of each modality, then the id.
    fn classes(&self) -> Result<Tensor> {
        let mut at = Vec::with_capacity(self.modalities.len() + 1);
        let mut next = 0;
        for m in &self.modalities {
            at.push(next);
            next += m.frozen.tokens as u32;
        }
        at.push(next);
        index_tensor(&at, &self.dev)
    }

    /// The additive mask `[n or 1, T, T]` of these items.
    fn mask(&self, ids: &[u32]) -> Result<Tensor> {
        let layout: Vec<usize> = self.modalities.iter().map(|m| m.frozen.tokens).collect();
        let complete = |m: &Modality| {
            ids.iter()
                .all(|&i| (0..m.frozen.tokens).all(|t| m.frozen.has(i, t)))
        };
        if self.modalities.iter().all(complete) {
            return attention_mask(&layout, self.id_mask, 1, |_, _, _| true, &self.dev);
        }
        let has = |at: usize, m: usize, t: usize| self.modalities[m].frozen.has(ids[at], t);
        attention_mask(&layout, self.id_mask, ids.len(), has, &self.dev)
    }
}

/// All blocks; the last one only for the tokens that are read out.
pub(super) fn mix(
    blocks: &[Block],
    x: &Tensor,
    mask: &Tensor,
    classes: &Tensor,
    mut noise: Option<&mut Stream>,
) -> Result<Tensor> {
    let all = classes.dim(0)? == x.dim(1)?;
    let mut x = x.clone();
    for (k, block) in blocks.iter().enumerate() {
        let rows = (k + 1 == blocks.len() && !all).then_some(classes);
        x = block.forward_masked(&x, mask, rows, noise.as_deref_mut())?;
    }
    Ok(x)
}

/// Which tokens see which, for `n` items whose modalities have `layout` tokens, followed by the id.
///
/// Nobody sees a token that `has(item, modality, token)` denies, except that a class token sees
/// itself: it stands for the modality in the branch of its name. With [`IdMask::Cut`] only the id sees
/// the id.
pub(super) fn attention_mask(
    layout: &[usize],
    id_mask: IdMask,
    n: usize,
    has: impl Fn(usize, usize, usize) -> bool,
    dev: &Device,
) -> Result<Tensor> {
    let total: usize = layout.iter().sum::<usize>() + 1;
    let mut mask = vec![0f32; n * total * total];
    for (at, item) in mask.chunks_exact_mut(total * total).enumerate() {
        let mut column = 0;
        for (m, &tokens) in layout.iter().enumerate() {
            for t in 0..tokens {
                if !has(at, m, t) {
                    (0..total)
                        .filter(|&query| t > 0 || query != column)
                        .for_each(|query| item[query * total + column] = HIDDEN);
                }
                column += 1;
            }
        }
        if id_mask == IdMask::Cut {
            (0..column).for_each(|query| item[query * total + column] = HIDDEN);
        }
    }
    Ok(Tensor::from_vec(mask, (n, total, total), dev)?)
}
