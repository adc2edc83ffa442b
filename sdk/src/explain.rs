//! Why an item was recommended: which events of the history carried its score.
//!
//! The user tower is a black box to this module. It is run once more for every item of the
//! history, on the history without that item; what the user vector loses is a vector too, and
//! its inner product with a recommended item is what that item's score loses. So the work is
//! done once per history, not once per recommendation.

use crate::bundle::Modality;
use crate::error::Result;
use crate::id::Row;
use crate::recommendation::{Because, ModalityShare, Recommendation};
use crate::table::{ItemTable, dot};
use crate::topk::{Scored, best_first};

/// History items named per recommendation.
const MAX_BECAUSE: usize = 3;

/// Different history items whose part is measured, the latest ones.
pub(crate) const MAX_EXAMINED: usize = 64;

/// What each item of one history adds to the user vector.
pub(crate) struct Evidence {
    /// Index of the session in its household.
    pub(crate) member: usize,
    /// What a unit of this member's score counts in the household's.
    pub(crate) factor: f32,
    /// u − u₋ⱼ per history item j.
    pub(crate) parts: Vec<(Row, Vec<f32>)>,
}

/// Ranked rows in the form that hosts get.
pub(crate) fn describe(
    table: &ItemTable,
    names: &[Modality],
    ranked: &[Scored],
    explain: Option<&[Evidence]>,
) -> Result<Vec<Recommendation>> {
    let list = ranked.iter().map(|s| {
        Ok(Recommendation {
            item: table.key(s.row)?.to_string(),
            row: s.row,
            score: s.score,
            because: match explain {
                Some(evidence) => because(table, evidence, s.row)?,
                None => Vec::new(),
            },
            modalities: match explain {
                Some(_) => modalities(table, names, s.row)?,
                None => Vec::new(),
            },
        })
    });
    list.collect()
}

fn because(table: &ItemTable, evidence: &[Evidence], row: Row) -> Result<Vec<Because>> {
    if evidence.iter().all(|e| e.parts.is_empty()) {
        return Ok(Vec::new());
    }
    let x = table.vector(row)?;
    let mut found: Vec<(Scored, usize)> = Vec::new();
    for e in evidence {
        let parts = e.parts.iter().map(|(row, part)| Scored {
            row: *row,
            score: e.factor * dot(part, &x),
        });
        let positive = parts.filter(|s| s.score > 0.0 && s.score.is_finite());
        found.extend(positive.map(|s| (s, e.member)));
    }
    let total: f32 = found.iter().map(|(s, _)| s.score).sum();
    // Smaller parts are the rounding of two runs of the tower.
    found.retain(|(s, _)| s.score > total * 1e-5);
    found.sort_unstable_by(|a, b| best_first(&a.0, &b.0).then(a.1.cmp(&b.1)));
    found.truncate(MAX_BECAUSE);
    let list = found.into_iter().map(|(s, member)| {
        Ok(Because {
            item: table.key(s.row)?.to_string(),
            share: s.score / total,
            contribution: s.score,
            member,
        })
    });
    list.collect()
}

fn modalities(table: &ItemTable, names: &[Modality], row: Row) -> Result<Vec<ModalityShare>> {
    let shares = table.modality_shares(row)?.unwrap_or_default();
    let mut list: Vec<ModalityShare> = names
        .iter()
        .zip(shares)
        .map(|(m, &share)| ModalityShare {
            name: m.name.clone(),
            share: f32::from(share) / 255.0,
        })
        .collect();
    // Stable: equals stay in the manifest's order.
    list.sort_by(|a, b| b.share.total_cmp(&a.share));
    Ok(list)
}
