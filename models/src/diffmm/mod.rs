//! DiffMM: multi-modal diffusion model for recommendation.
//!
//! Jiang, Xia, Wei, Luo, Lin, Huang, ACM MM 2024 (arXiv 2406.11781). Written from the paper's
//! public description and the behaviour of the published program; where the two differ the
//! program is followed, because its numbers are the published ones:
//!
//! | topic | paper | here (as the program) |
//! |---|---|---|
//! | model selection | validation | `parity` selects on test, `honest` on validation |
//! | start of generation | noised row | clean row |
//! | schedule | linear | linear, first β overwritten with 1e-4 |
//! | reconstruction error | squared norm | mean over items, weighted by SNR differences |
//! | injected features | normalised | raw projection, detached |
//! | generated graph | equal weight | weight 0.2, entries dropped per epoch, also at test |
//! | self-loops | none written | in every graph |
//! | regulariser | all parameters | the two id tables |
//!
//! One epoch: a denoiser per modality learns to restore user rows ([`denoiser`]); each denoiser
//! then names new user-item edges; a ranking loss with a cross-modal contrastive term trains the
//! tables over the observed and the generated graphs.
//!
//! Exact rearrangements: the main branch needs two products with the observed graph instead of
//! two per modality (the fusion weights sum to one); repeated anchors are weighted; generation runs in the hidden space.

pub mod config;
pub mod denoiser;
pub mod schedule;

use candle_core::{Device, Tensor};

pub use config::DiffMmConfig;
use config::{Contrast, GeneratedGraph, ProjectionKind};
use denoiser::{Denoiser, LossTarget, NoisyBatch};
use schedule::Schedule;

use crate::data::{Csr, Dataset};
use crate::error::{Error, Result};
use crate::graph::{Propagation, normalized_bipartite};
use crate::ops::{self, index_tensor, pick};
use crate::params::{Adam, Params, TensorMap, restore_training, training_state};
use crate::rng::{self, Purpose};
use crate::train::{EpochLosses, Learner, Monitor, factors};

/// One modality: constant features and their trainable projection.
#[derive(Debug)]
struct Modality {
    /// `[I, d_m]`, zero where missing.
    features: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Modality {
    /// `F^m`, `[I, d]`.
    fn project(&self) -> Result<Tensor> {
        let y = ops::input_linear(&self.features, &self.weight)?;
        match &self.bias {
            Some(b) => Ok(y.broadcast_add(b)?),
            None => Ok((y.relu()? - (y.neg()?.relu()? * 0.2)?)?),
        }
    }
}

/// The model, its optimizers and the graphs of the running epoch.
#[derive(Debug)]
pub struct DiffMm {
    cfg: DiffMmConfig,
    seed: u64,
    dev: Device,
    users: usize,
    items: usize,
    rows: Csr,
    item_degree: Vec<u32>,
    schedule: Schedule,
    observed: Propagation,
    generated: Vec<Propagation>,
    params: Params,
    adam: Adam,
    user_ids: Tensor,
    item_ids: Tensor,
    fusion_logits: Tensor,
    modalities: Vec<Modality>,
    denoisers: Vec<Denoiser>,
}

/// Everything one forward pass over the graphs yields.
struct Views {
    /// Final vectors of all nodes, `[U+I, d]`, users first.
    main: Tensor,
    /// Contrastive view of each modality, `[U+I, d]`.
    modality: Vec<Tensor>,
}

impl DiffMm {
    /// A fresh model for the training rows and features of `data`.
    ///
    /// # Errors
    /// A configuration out of range, or a data set without features.
    pub fn new(data: &Dataset, cfg: DiffMmConfig, seed: u64, dev: &Device) -> Result<Self> {
        cfg.check()?;
        if data.features.is_empty() {
            return Err(Error::config(
                "diffmm needs at least one modality: put a matrix into the data set's `features` folder, or choose lightgcn",
            ));
        }
        let features = data
            .features
            .iter()
            .map(|f| {
                let mut x =
                    Tensor::from_iter(f.values.iter().copied(), dev)?.reshape(f.values.dim())?;
                if cfg.standardize {
                    let s = f.standardize();
                    let has: Vec<f32> = f.present.iter().map(|p| f32::from(u8::from(*p))).collect();
                    x = x
                        .broadcast_sub(&Tensor::from_vec(s.mean, f.dim(), dev)?)?
                        .broadcast_mul(&Tensor::from_vec(s.inv_std, f.dim(), dev)?)?
                        .broadcast_mul(&Tensor::from_vec(has, (f.present.len(), 1), dev)?)?;
                }
                Ok((f.name.clone(), f.kind == "image", x))
            })
            .collect::<Result<Vec<_>>>()?;
        Self::build(
            data.train_rows(),
            data.num_items(),
            features,
            cfg,
            seed,
            dev,
        )
    }

    fn build(
        rows: Csr,
        items: usize,
        features: Vec<(String, bool, Tensor)>,
        cfg: DiffMmConfig,
        seed: u64,
        dev: &Device,
    ) -> Result<Self> {
        let users = rows.rows();
        let schedule = Schedule::new(cfg.steps, cfg.noise_scale, cfg.noise_min, cfg.noise_max)?;
        let edges = || (0..users as u32).flat_map(|u| rows.row(u).iter().map(move |&i| (u, i)));
        let observed = Propagation::new(normalized_bipartite(users, items, edges(), true)?);
        let mut item_degree = vec![0u32; items];
        edges().for_each(|(_, i)| item_degree[i as usize] += 1);

        let mut params = Params::default();
        let stream = |name: &str| rng::stream(seed, Purpose::Init, &[rng::name_hash(name)]);
        let table = |name: &str, n: usize| rng::xavier_uniform(&mut stream(name), n, cfg.dim, dev);
        let user_ids = params.add("user_ids", &table("user_ids", users)?)?;
        let item_ids = params.add("item_ids", &table("item_ids", items)?)?;
        let m = features.len();
        // Any equal values give uniform weights; the program starts at 1/M.
        let fusion_logits = params.add("fusion_logits", &Tensor::full(1.0 / m as f32, m, dev)?)?;
        let mut modalities = Vec::with_capacity(m);
        for (name, is_image, x) in features {
            let width = x.dim(1)?;
            let leaky = match cfg.projection {
                ProjectionKind::Leaky => true,
                ProjectionKind::Affine => false,
                ProjectionKind::Mixed => is_image,
            };
            let key = format!("project.{name}.weight");
            let mut r = stream(&key);
            let weight = if leaky {
                rng::xavier_uniform(&mut r, width, cfg.dim, dev)?
            } else {
                rng::uniform(&mut r, (width, cfg.dim), 1.0 / (width as f64).sqrt(), dev)?
            };
            let weight = params.add(key, &weight)?;
            let bias = if leaky {
                None
            } else {
                let b = rng::uniform(&mut r, cfg.dim, 1.0 / (width as f64).sqrt(), dev)?;
                Some(params.add(format!("project.{name}.bias"), &b)?)
            };
            modalities.push(Modality {
                features: x,
                weight,
                bias,
            });
        }
        let adam = Adam::new(&params, cfg.lr, 0.0)?;
        let denoisers = if cfg.generated == GeneratedGraph::Diffusion {
            (0..m)
                .map(|k| Denoiser::new(items, &cfg, k, seed, dev))
                .collect::<Result<Vec<_>>>()?
        } else {
            Vec::new()
        };
        let loops = normalized_bipartite(users, items, std::iter::empty(), true)?;
        let generated = vec![Propagation::new(loops); m];
        Ok(Self {
            cfg,
            seed,
            dev: dev.clone(),
            users,
            items,
            rows,
            item_degree,
            schedule,
            observed,
            generated,
            params,
            adam,
            user_ids,
            item_ids,
            fusion_logits,
            modalities,
            denoisers,
        })
    }

    fn views(&self, contrastive: bool) -> Result<Views> {
        let projected = self
            .modalities
            .iter()
            .map(|m| ops::normalize_rows(&m.project()?))
            .collect::<Result<Vec<_>>>()?;
        self.views_of(&projected, contrastive)
    }

    /// Propagation over the graphs; `projected` are the row-normalised projections `n(F^m)`.
    fn views_of(&self, projected: &[Tensor], contrastive: bool) -> Result<Views> {
        let kappa = candle_nn::ops::softmax(&self.fusion_logits, 0)?;
        let weighted = |xs: &[Tensor], by: &Tensor| -> Result<Tensor> {
            let mut sum = xs[0].broadcast_mul(&by.narrow(0, 0, 1)?)?;
            for (m, x) in xs.iter().enumerate().skip(1) {
                sum = (sum + x.broadcast_mul(&by.narrow(0, m, 1)?)?)?;
            }
            Ok(sum)
        };
        let nodes = Tensor::cat(&[&self.user_ids, &self.item_ids], 0)?;
        let fused = Tensor::cat(&[&self.user_ids, &weighted(projected, &kappa)?], 0)?;
        let s1 = self.observed.apply(&fused)?;
        let s1_users = s1.narrow(0, 0, self.users)?;
        let s2 = self
            .observed
            .apply(&Tensor::cat(&[&s1_users, &self.item_ids], 0)?)?;
        let mut m0 = (s1 + s2)?;
        if self.cfg.generated_weight != 0.0 {
            let gen_views = self
                .generated
                .iter()
                .map(|g| g.apply(&nodes))
                .collect::<Result<Vec<_>>>()?;
            m0 = (m0 + weighted(&gen_views, &(kappa * self.cfg.generated_weight)?)?)?;
        }
        let residual = (ops::normalize_rows(&m0)? * self.cfg.residual_weight)?;
        let main = (self.observed.layer_sum(&m0, self.cfg.layers)? + residual)?;
        let modality = if contrastive {
            projected
                .iter()
                .zip(&self.generated)
                .map(|(f, g)| {
                    let start = g.apply(&Tensor::cat(&[&self.user_ids, f], 0)?)?;
                    self.observed.layer_sum(&start, self.cfg.layers)
                })
                .collect::<Result<Vec<_>>>()?
        } else {
            Vec::new()
        };
        Ok(Views { main, modality })
    }

    /// Contrastive loss of a batch, users from the anchors and items from the positives.
    fn contrast(&self, views: &Views, users: &[u32], positives: &[u32]) -> Result<Option<Tensor>> {
        let v = &views.modality;
        // Who is compared with whom.
        let groups: Vec<(&Tensor, &[Tensor])> = match self.cfg.contrast {
            Contrast::Off => return Ok(None),
            Contrast::Main => vec![(&views.main, v)],
            Contrast::Modality => (0..v.len()).map(|a| (&v[a], &v[a + 1..])).collect(),
        };
        let sides = [(0, self.users, users), (self.users, self.items, positives)];
        let mut total: Option<Tensor> = None;
        for (start, len, ids) in sides {
            let (ids, counts) = ops::distinct(ids);
            let sum: f32 = counts.iter().sum();
            let weights: Vec<f32> = counts.iter().map(|c| c / sum).collect();
            let nodes: Vec<u32> = ids.iter().map(|i| i + start as u32).collect();
            let nodes = index_tensor(&nodes, &self.dev)?;
            for (anchor, others) in &groups {
                let anchors = ops::normalize_rows(&anchor.index_select(&nodes, 0)?)?;
                for other in *others {
                    let view = ops::normalize_rows(&other.narrow(0, start, len)?)?;
                    let here =
                        ops::info_nce(&anchors, &view, &ids, &weights, self.cfg.temperature)?;
                    total = Some(match total {
                        Some(t) => (t + here)?,
                        None => here,
                    });
                }
            }
        }
        Ok(total)
    }

    /// `L_bpr + reg (‖P‖² + ‖Q‖²) + ssl_reg · L_cl` of a batch of triples, and the three parts.
    fn ranking_loss(&self, users: &[u32], pos: &[u32], neg: &[u32]) -> Result<(Tensor, [f64; 2])> {
        let contrastive = self.cfg.contrast != Contrast::Off && self.cfg.ssl_reg != 0.0;
        let views = self.views(contrastive)?;
        let bpr = bpr_loss(&views.main, self.users, users, pos, neg, self.cfg.batch)?;
        let norm = (self.user_ids.sqr()?.sum_all()? + self.item_ids.sqr()?.sum_all()?)?;
        let mut loss = (&bpr + (norm * self.cfg.reg)?)?;
        let mut cl = 0.0;
        if contrastive && let Some(c) = self.contrast(&views, users, pos)? {
            cl = f64::from(c.to_scalar::<f32>()?);
            loss = (loss + (c * self.cfg.ssl_reg)?)?;
        }
        Ok((loss, [f64::from(bpr.to_scalar::<f32>()?), cl]))
    }

    /// One pass of denoiser training over all users.
    fn train_denoisers(&mut self, epoch: u64, monitor: &mut Monitor<'_>) -> Result<f64> {
        let mut order: Vec<u32> = (0..self.users as u32).collect();
        rng::shuffle(
            &mut rng::stream(self.seed, Purpose::Shuffle, &[epoch, 0]),
            &mut order,
        );
        // Neither the projections nor the item table learn from the diffusion loss.
        let item_ids = self.item_ids.detach();
        let features = if self.cfg.msi {
            self.modalities
                .iter()
                .map(|m| Ok(Some(m.project()?.detach())))
                .collect::<Result<Vec<_>>>()?
        } else {
            vec![None; self.modalities.len()]
        };
        let (mut total, mut count) = (0.0, 0usize);
        for users in order.chunks(self.cfg.batch) {
            for (k, (denoiser, f)) in self.denoisers.iter_mut().zip(&features).enumerate() {
                let batch = NoisyBatch::draw(
                    users,
                    &self.rows,
                    self.items,
                    &self.schedule,
                    self.cfg.dropout,
                    (self.seed, k as u64, epoch),
                    &self.dev,
                )?;
                let target = LossTarget {
                    schedule: &self.schedule,
                    features: f.as_ref(),
                    item_ids: &item_ids,
                    msi_weight: self.cfg.msi_weight,
                };
                total += denoiser.train_step(&batch, &target)?;
                count += 1;
                monitor.step()?;
            }
        }
        Ok(total / count.max(1) as f64)
    }

    /// Replaces the generated graphs of all modalities.
    fn rebuild(&mut self, epoch: u64, monitor: &mut Monitor<'_>) -> Result<()> {
        let k = self.cfg.generated_per_user.min(self.items);
        for m in 0..self.modalities.len() {
            let chosen: Vec<Vec<u32>> = match self.cfg.generated {
                GeneratedGraph::Diffusion => {
                    self.denoisers[m].generate(&self.rows, &self.schedule, k)?
                }
                GeneratedGraph::Off => vec![Vec::new(); self.users],
                GeneratedGraph::Random => {
                    let mut r = rng::stream(self.seed, Purpose::Candidates, &[epoch, m as u64]);
                    (0..self.users)
                        .map(|_| {
                            let mut v: Vec<u32> = (0..k)
                                .map(|_| rng::below(&mut r, self.items) as u32)
                                .collect();
                            v.sort_unstable();
                            v.dedup();
                            v
                        })
                        .collect()
                }
                GeneratedGraph::Popular => (0..self.users as u32)
                    .map(|u| {
                        let mut v = self.rows.row(u).to_vec();
                        v.sort_by_key(|&i| (std::cmp::Reverse(self.item_degree[i as usize]), i));
                        v.truncate(k);
                        v
                    })
                    .collect(),
            };
            let edges = (0..self.users).flat_map(|u| chosen[u].iter().map(move |&i| (u as u32, i)));
            let graph = normalized_bipartite(self.users, self.items, edges, true)?;
            let mut r = rng::stream(self.seed, Purpose::EdgeDropout, &[epoch, m as u64]);
            let dropped = graph.drop_entries(self.cfg.keep_rate as f32, |_| rng::unit(&mut r));
            self.generated[m] = Propagation::new(dropped);
            monitor.step()?;
        }
        Ok(())
    }
}

/// `(1/divisor) Σ −log σ(⟨h_u, h_i+⟩ − ⟨h_u, h_i−⟩)` over a table of nodes, users first.
pub fn bpr_loss(
    nodes: &Tensor,
    users_total: usize,
    users: &[u32],
    pos: &[u32],
    neg: &[u32],
    divisor: usize,
) -> Result<Tensor> {
    let shifted = pos.iter().chain(neg).map(|i| i + users_total as u32);
    let ids: Vec<u32> = users.iter().copied().chain(shifted).collect();
    // One gather for the three: its backward passes over the whole table.
    let rows = pick(nodes, &ids)?;
    let n = users.len();
    let (h_p, h_n) = (rows.narrow(0, n, n)?, rows.narrow(0, 2 * n, n)?);
    let diff = (rows.narrow(0, 0, n)? * (h_p - h_n)?)?.sum(1)?;
    Ok((ops::log_sigmoid(&diff)?.sum_all()? * (-1.0 / divisor as f64))?)
}

impl Learner for DiffMm {
    fn steps_per_epoch(&self) -> u64 {
        let batches = |n: usize| n.div_ceil(self.cfg.batch) as u64;
        batches(self.users) * self.denoisers.len() as u64
            + self.modalities.len() as u64
            + batches(self.rows.nnz())
    }

    fn train_epoch(&mut self, epoch: u64, monitor: &mut Monitor<'_>) -> Result<EpochLosses> {
        let triples = crate::train::sample_triples(&self.rows, self.items, self.seed, epoch);
        let diffusion = if self.denoisers.is_empty() {
            0.0
        } else {
            self.train_denoisers(epoch, monitor)?
        };
        self.rebuild(epoch, monitor)?;
        let (mut bpr, mut cl, mut n) = (0.0, 0.0, 0usize);
        for batch in triples.chunks(self.cfg.batch) {
            let users: Vec<u32> = batch.iter().map(|t| t.0).collect();
            let pos: Vec<u32> = batch.iter().map(|t| t.1).collect();
            let neg: Vec<u32> = batch.iter().map(|t| t.2).collect();
            let (loss, parts) = self.ranking_loss(&users, &pos, &neg)?;
            self.adam.step(&loss.backward()?)?;
            bpr += parts[0];
            cl += parts[1];
            n += 1;
            monitor.step()?;
        }
        let n = n.max(1) as f64;
        Ok(vec![
            ("loss_diffusion", diffusion),
            ("loss_bpr", bpr / n),
            ("loss_contrastive", cl / n),
        ])
    }

    fn inference(&self) -> Result<TensorMap> {
        let main = self.views(false)?.main.detach();
        factors(
            &main.narrow(0, 0, self.users)?,
            &main.narrow(0, self.users, self.items)?,
        )
    }

    fn export_state(&self) -> Result<TensorMap> {
        let mut out = training_state(&self.params, &self.adam)?;
        for (k, d) in self.denoisers.iter().enumerate() {
            d.export(&format!("denoiser.{k}."), &mut out)?;
        }
        Ok(out)
    }

    fn import_state(&mut self, from: &TensorMap) -> Result<()> {
        restore_training(&self.params, &mut self.adam, from)?;
        for (k, d) in self.denoisers.iter_mut().enumerate() {
            d.import(&format!("denoiser.{k}."), from)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
