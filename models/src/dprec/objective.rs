//! The training objective of a batch: ranking, alignment of each level, agreement of perspectives.

use std::collections::HashMap;

use candle_core::Tensor;

use super::alignment::Hyperedges;
use super::config::{Align, Loss};
use super::encoder::{Views, channels};
use super::graphs::Observed;
use super::losses;
use super::{Dprec, hypergraph, scalar};
use crate::data::Csr;
use crate::error::Result;
use crate::ops::{self, pick};

/// Per row, the columns that are right and their weights.
type Targets = Vec<Vec<(u32, f32)>>;

/// A batch of triples and the distinct nodes in it.
pub(super) struct Batch<'a> {
    triples: &'a [(u32, u32, u32)],
    /// Distinct users, where each stands, and the place of each triple's user.
    users: Vec<u32>,
    user_places: HashMap<u32, u32>,
    user_at: Vec<u32>,
    /// Distinct items, positives and negatives alternating, where each stands, and the places of both.
    items: Vec<u32>,
    item_places: HashMap<u32, u32>,
    positive_at: Vec<u32>,
    negative_at: Vec<u32>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(triples: &'a [(u32, u32, u32)]) -> Self {
        let places = |ids: &[u32]| -> HashMap<u32, u32> {
            ids.iter().zip(0..).map(|(&id, k)| (id, k)).collect()
        };
        let all: Vec<u32> = triples.iter().map(|t| t.0).collect();
        let (users, _) = ops::distinct(&all);
        let both: Vec<u32> = triples.iter().flat_map(|t| [t.1, t.2]).collect();
        let (items, _) = ops::distinct(&both);
        let (user_places, item_places) = (places(&users), places(&items));
        Self {
            user_at: triples.iter().map(|t| user_places[&t.0]).collect(),
            positive_at: triples.iter().map(|t| item_places[&t.1]).collect(),
            negative_at: triples.iter().map(|t| item_places[&t.2]).collect(),
            triples,
            users,
            user_places,
            items,
            item_places,
        }
    }

    /// Per distinct user, as places among the distinct items: the positives, whose weights make a sum a mean
    /// over `all` triples; and the user's other training items.
    fn targets(&self, rows: &Csr, all: usize) -> (Targets, Vec<Vec<u32>>) {
        let weight = 1.0 / all as f32;
        let mut targets = vec![Vec::new(); self.users.len()];
        for (&u, &i) in self.user_at.iter().zip(&self.positive_at) {
            targets[u as usize].push((i, weight));
        }
        let others = |(&u, own): (&u32, &Vec<(u32, f32)>)| {
            let row = rows
                .row(u)
                .iter()
                .filter_map(|i| self.item_places.get(i).copied());
            row.filter(|k| own.iter().all(|t| t.0 != *k)).collect()
        };
        let masked = self.users.iter().zip(&targets).map(others).collect();
        (targets, masked)
    }
}

/// Losses of a step by name, for the progress file.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Parts {
    pub(super) ranking: f64,
    pub(super) item: f64,
    pub(super) concept: f64,
    pub(super) interest: f64,
    pub(super) perspective: f64,
}

impl Dprec {
    /// Final vectors of the distinct users and items of a batch.
    fn vectors(
        &self,
        seen: &Observed,
        views: &Views,
        z: &[Tensor],
        edges: &Hyperedges,
        batch: &Batch<'_>,
    ) -> Result<(Tensor, Tensor)> {
        let at = |columns: &[Tensor], rows: &[u32]| {
            let columns = columns.iter().map(|p| pick(p, rows));
            columns.collect::<Result<Vec<_>>>()
        };
        let mut users = self.user_vectors(views, Some(&batch.users))?;
        if let Some(q) = &edges.interests
            && let Some(message) = self.alignment.user_message(&pick(q, &batch.users)?)?
        {
            for z in &mut users {
                *z = (&*z + &message)?;
            }
        }
        let present = at(&seen.user_present, &batch.users)?;
        let users = self.alignment.fuse(&users, &present)?;
        let items = &batch.items;
        let o = self.alignment.items(z, &self.present, edges, Some(items))?;
        let items = self.alignment.fuse(&o, &at(&self.present, items)?)?;
        Ok((users, items))
    }

    /// How badly the batch's pairs are ranked, from the final vectors of its users and items.
    pub(super) fn ranking(
        &self,
        users: &Tensor,
        items: &Tensor,
        batch: &Batch<'_>,
    ) -> Result<Tensor> {
        match self.cfg.loss {
            Loss::Bpr => {
                let users = pick(users, &batch.user_at)?;
                let score = |places: &[u32]| -> Result<Tensor> {
                    Ok((&users * pick(items, places)?)?.sum(1)?)
                };
                losses::bpr(&score(&batch.positive_at)?, &score(&batch.negative_at)?)
            }
            Loss::Softmax => {
                let (users, items) = (ops::normalize_rows(users)?, ops::normalize_rows(items)?);
                let rows = self.cfg.ranking_rows;
                let terms = batch.triples.chunks(rows).map(|triples| {
                    let part = Batch::new(triples);
                    let places = |ids: &[u32], of: &HashMap<u32, u32>| -> Vec<u32> {
                        ids.iter().map(|id| of[id]).collect()
                    };
                    let users = pick(&users, &places(&part.users, &batch.user_places))?;
                    let items = pick(&items, &places(&part.items, &batch.item_places))?;
                    let (targets, masked) = part.targets(&self.graphs.rows, batch.triples.len());
                    let t = self.cfg.score_temperature;
                    ops::cosine_softmax(&users, &items, targets, masked, t)
                });
                let terms = terms.collect::<Result<Vec<_>>>()?;
                Ok(Tensor::stack(&terms, 0)?.sum_all()?)
            }
        }
    }

    /// The whole objective of a batch and its parts.
    pub(super) fn objective(
        &self,
        batch: &Batch<'_>,
        noise: Option<&[Tensor]>,
        ramp: f64,
    ) -> Result<(Tensor, Parts)> {
        let cfg = &self.cfg;
        let hidden = batch.triples.iter().map(|t| (t.0, t.1));
        let seen = &self.graphs.without(hidden)?;
        let views = self.encoder.views(&self.graphs, seen)?;
        let z = self.item_vectors(&views, seen)?;
        let edges = self.alignment.hyperedges(seen, &z, &self.present, noise)?;
        let (users, items) = self.vectors(seen, &views, &z, &edges, batch)?;
        let ranking = self.ranking(&users, &items, batch)?;
        let mut parts = Parts {
            ranking: scalar(&ranking)?,
            ..Parts::default()
        };
        let mut loss = (ranking + self.penalty(batch)?)?;
        let mut add = |term: Option<Tensor>, weight: f64, part: &mut f64| -> Result<()> {
            if let Some(t) = term {
                *part = scalar(&t)?;
                loss = (&loss + (t * weight)?)?;
            }
            Ok(())
        };
        let rows = &batch.items[..batch.items.len().min(cfg.contrast_rows)];
        let near = |t: &[Tensor]| t.iter().map(|t| pick(t, rows)).collect::<Result<Vec<_>>>();
        let has: Vec<Vec<bool>> = self
            .graphs
            .has
            .iter()
            .map(|h| rows.iter().map(|&i| h[i as usize]).collect())
            .collect();
        let levels = cfg.levels();
        if cfg.lambda_item > 0.0 {
            let term = match cfg.align {
                Align::Hypergraph if levels[0] => {
                    losses::item_loss(&near(&z)?, &near(&self.present)?, &has, cfg.temperature)?
                }
                Align::Pairwise => self.pairwise(&z, rows, &has)?,
                Align::Product => self.behaviour_contrast(&z, rows, &has)?,
                _ => None,
            };
            add(term, cfg.lambda_item, &mut parts.item)?;
        }
        if levels[1] && cfg.lambda_concept > 0.0 {
            let h = near(&edges.assignments)?;
            let p = near(&self.present)?;
            let t = cfg.temperature;
            let same = losses::concept_loss(&edges.assignments, &z, &self.present, t)?;
            let swap = losses::swap_losses(&h, &has)?;
            // Spread over concepts, or one of them takes all.
            let (_, entropy) = losses::assignment_entropy(&h, &p)?;
            let mut term = (entropy * -0.1)?;
            if let Some(same) = same {
                term = (term + same)?;
            }
            if let Some(swap) = swap {
                term = (term + (swap * 0.5)?)?;
            }
            add(Some(term), cfg.lambda_concept * ramp, &mut parts.concept)?;
        }
        if levels[2] && cfg.lambda_interest > 0.0 {
            let term = self.interest_contrast(seen, &views, &z, batch)?;
            add(term, cfg.lambda_interest * ramp, &mut parts.interest)?;
        }
        if cfg.lambda_perspective > 0.0 {
            let term = self.agreement(&views, batch, rows)?;
            add(term, cfg.lambda_perspective, &mut parts.perspective)?;
        }
        Ok((loss, parts))
    }

    /// `λr/(2B) (‖E_u[u]‖² + ‖E_i[i]‖² + ‖E_i[j]‖²)` over the triples.
    fn penalty(&self, batch: &Batch<'_>) -> Result<Tensor> {
        let square =
            |t: &Tensor, ids: Vec<u32>| -> Result<Tensor> { Ok(pick(t, &ids)?.sqr()?.sum_all()?) };
        let items = batch.triples.iter().flat_map(|t| [t.1, t.2]).collect();
        let users = batch.triples.iter().map(|t| t.0).collect();
        let sum =
            (square(&self.encoder.user_ids, users)? + square(&self.encoder.item_ids, items)?)?;
        Ok((sum * (0.5 * self.cfg.reg / batch.triples.len() as f64))?)
    }

    /// Ablation A8: content channels against each other, pair by pair.
    fn pairwise(&self, z: &[Tensor], rows: &[u32], has: &[Vec<bool>]) -> Result<Option<Tensor>> {
        let mut terms = Vec::new();
        for a in 1..z.len() {
            for b in a + 1..z.len() {
                let both: Vec<u32> = (rows.iter().enumerate())
                    .filter(|&(r, _)| has[a][r] && has[b][r])
                    .map(|(_, &i)| i)
                    .collect();
                if both.len() > 1 {
                    let (a, b) = (pick(&z[a], &both)?, pick(&z[b], &both)?);
                    terms.push(losses::symmetric_nce(&a, &b, self.cfg.temperature)?);
                }
            }
        }
        losses::mean(terms)
    }

    /// Baseline A4: the sum of an item's content against its id vector.
    fn behaviour_contrast(
        &self,
        z: &[Tensor],
        rows: &[u32],
        has: &[Vec<bool>],
    ) -> Result<Option<Tensor>> {
        let some: Vec<u32> = (rows.iter().enumerate())
            .filter(|&(r, _)| has[1..].iter().any(|h| h[r]))
            .map(|(_, &i)| i)
            .collect();
        if some.len() < 2 {
            return Ok(None);
        }
        let near = |t: &[Tensor]| t.iter().map(|t| pick(t, &some)).collect::<Result<Vec<_>>>();
        let content = hypergraph::present_sum(&near(&z[1..])?, &near(&self.present[1..])?)?;
        let id = pick(&z[0], &some)?;
        Ok(Some(losses::nce(&content, &id, self.cfg.temperature)?))
    }

    /// Interests per channel of the batch's users against each other and the users' id vectors.
    fn interest_contrast(
        &self,
        seen: &Observed,
        views: &Views,
        z: &[Tensor],
        batch: &Batch<'_>,
    ) -> Result<Option<Tensor>> {
        let content = 1..z.len();
        let complete = |u: &u32| {
            content
                .clone()
                .all(|c| seen.user_counts[c][*u as usize] > 0)
        };
        let users = batch.users.iter().copied().filter(complete);
        let users: Vec<u32> = users.take(self.cfg.contrast_rows).collect();
        if users.len() < 2 || content.is_empty() {
            return Ok(None);
        }
        let there = content
            .clone()
            .map(|c| Ok(z[c].broadcast_mul(&self.present[c])?))
            .collect::<Result<Vec<_>>>()?;
        let sums = seen.user_sum.apply(&Tensor::cat(&there, 1)?)?;
        let interests = channels(&pick(&sums, &users)?, self.cfg.dim)?
            .iter()
            .zip(&seen.per_user[1..])
            .map(|(sum, share)| Ok(sum.broadcast_mul(&pick(share, &users)?)?))
            .collect::<Result<Vec<_>>>()?;
        let ids = &self.user_vectors(views, Some(&users))?[0];
        losses::interest_loss(&interests, ids, self.cfg.temperature)
    }

    /// Light agreement of both perspectives on the id channel, over the batch's users and items.
    fn agreement(&self, views: &Views, batch: &Batch<'_>, items: &[u32]) -> Result<Option<Tensor>> {
        let (Some(memory), Some(users), Some(expanded)) =
            (&views.memory, &views.users, &views.items)
        else {
            return Ok(None);
        };
        let people = &batch.users[..batch.users.len().min(self.cfg.contrast_rows)];
        let id = |t: &Tensor, rows: &[u32]| -> Result<Tensor> {
            Ok(pick(t, rows)?.narrow(1, 0, self.cfg.dim)?.contiguous()?)
        };
        let shifted: Vec<u32> = items.iter().map(|i| i + self.graphs.users as u32).collect();
        let t = self.cfg.temperature;
        losses::mean(vec![
            losses::nce(&id(memory, people)?, &id(users, people)?, t)?,
            losses::nce(&id(memory, &shifted)?, &id(expanded, items)?, t)?,
        ])
    }
}
