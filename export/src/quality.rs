//! What a table's form costs: the best items that a search of the bundle finds, against those of
//! the student's vectors in full precision.

use serde::Serialize;
use tercet::{Bundle, Effort, Row, Search};
use tercet_models::data::{Dataset, Split};

use crate::error::{Error, Result};
use crate::scorer::BundleScorer;
use crate::verify::sample_histories;

/// Items compared per user.
const K: usize = 100;

/// Items whose scores are computed at a time.
const ITEMS: usize = 4096;

/// Share of the best items of an exhaustive search that a proposed number of probes must find.
const ENOUGH: f64 = 0.98;

/// How well the table's searches rank, for the model card.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TableQuality {
    /// Users asked: a sample of the data's.
    pub users: usize,
    /// Items compared per user: 100, or all of a smaller catalog.
    pub k: usize,
    /// Mean share of the best k by the vectors in full precision that a search finds which looks
    /// at the whole table.
    pub recall: f64,
    /// The same of a search as the bundle proposes it, where rows are partitioned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recall_probing: Option<f64>,
    /// Partitions that a search looks at by default, where rows are partitioned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probes: Option<usize>,
}

/// Measures the table of `bundle` against the items it was made from: N keys and vectors `[N, D]`. For a
/// partitioned table `probes` is used as given, or the smallest number is chosen, in steps of a
/// quarter, that finds 98 % of what an exhaustive search finds.
///
/// # Errors
/// Whatever the runtime reports, and items that the bundle lacks.
pub(crate) fn table_quality(
    bundle: &Bundle,
    scorer: &BundleScorer,
    data: &Dataset,
    (keys, vectors): (&[&str], &[f32]),
    probes: Option<usize>,
) -> Result<TableQuality> {
    let table = bundle.table();
    let (n, d) = (keys.len(), table.dim());
    let k = K.min(n);
    let mut rows = Vec::with_capacity(n);
    for key in keys {
        let row = table.find(key)?;
        rows.push(row.ok_or_else(|| Error::Mismatch {
            reason: format!("the bundle lacks item {key:?}"),
        })?);
    }
    let histories = sample_histories(data, bundle.manifest().window, Split::Test);
    let views: Vec<_> = histories.iter().map(Vec::as_slice).collect();
    let users = scorer.user_vectors(&views)?;
    let wanted = best_rows(&users, vectors, (d, k), |i| table.bias(rows[i]));
    let wanted: Vec<Vec<Row>> = wanted
        .into_iter()
        .map(|list| list.into_iter().map(|i| rows[i]).collect())
        .collect();
    let found = |effort: Effort| -> Result<Vec<Vec<Row>>> {
        let search = Search::top(k).effort(effort);
        let lists = users.chunks_exact(d).map(|user| {
            let best = table.search(user, &search)?;
            Ok(best.into_iter().map(|s| s.row).collect())
        });
        lists.collect()
    };
    let exact = found(Effort::Exact)?;
    let mut quality = TableQuality {
        users: views.len(),
        k,
        recall: overlap(&exact, &wanted),
        recall_probing: None,
        probes: None,
    };
    let Some(partitions) = table.partitions() else {
        return Ok(quality);
    };
    let mut probe = probes.unwrap_or(1).min(partitions);
    loop {
        let lists = found(Effort::Probes(probe))?;
        if probes.is_some() || probe == partitions || overlap(&lists, &exact) >= ENOUGH {
            quality.recall_probing = Some(overlap(&lists, &wanted));
            quality.probes = Some(probe);
            return Ok(quality);
        }
        probe = (probe + probe.div_ceil(4)).min(partitions);
    }
}

/// The best `k` of the items for each user, in no order, ties to the earlier item. Items are read once
/// for all users: their vectors may be in a file that is larger than the memory.
///
/// # Shapes
/// `users` `[U, D]`, `vectors` `[N, D]`.
fn best_rows(
    users: &[f32],
    vectors: &[f32],
    (d, k): (usize, usize),
    bias: impl Fn(usize) -> f32,
) -> Vec<Vec<usize>> {
    let kernel = tercet::kernel::active();
    let mut best: Vec<Vec<(f32, usize)>> = vec![Vec::new(); users.len() / d];
    let mut scores = [0.0; ITEMS];
    for (block, vectors) in vectors.chunks(ITEMS * d).enumerate() {
        let first = block * ITEMS;
        let scores = &mut scores[..vectors.len() / d];
        for (user, best) in users.chunks_exact(d).zip(&mut best) {
            kernel.dot_f32(user, vectors, scores);
            let scored = (first..).zip(scores.iter());
            best.extend(scored.map(|(i, score)| (score + bias(i), i)));
            if k < best.len() {
                best.select_nth_unstable_by(k, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                best.truncate(k);
            }
        }
    }
    let items = |list: Vec<(f32, usize)>| list.into_iter().map(|(_, i)| i).collect();
    best.into_iter().map(items).collect()
}

/// Mean share of `wanted` in `got`.
fn overlap(got: &[Vec<Row>], wanted: &[Vec<Row>]) -> f64 {
    let shares = got.iter().zip(wanted).map(|(got, wanted)| {
        let hits = wanted.iter().filter(|row| got.contains(row)).count();
        hits as f64 / wanted.len().max(1) as f64
    });
    shares.sum::<f64>() / got.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_many_blocks_are_those_of_a_sort() {
        // Scores of small whole numbers: many ties, which go to the earlier item.
        let n = 2 * ITEMS + 100;
        let vectors: Vec<f32> = (0..2 * n).map(|i| (i * 7919 % 31) as f32).collect();
        let users = [1.0, 0.5, -1.0, 2.0];
        let bias = |i: usize| (i % 3) as f32;
        let got = best_rows(&users, &vectors, (2, 50), bias);
        for (user, mut got) in users.chunks(2).zip(got) {
            let score =
                |i: usize| user[0] * vectors[2 * i] + user[1] * vectors[2 * i + 1] + bias(i);
            let mut want: Vec<usize> = (0..n).collect();
            want.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
            want.truncate(50);
            want.sort_unstable();
            got.sort_unstable();
            assert_eq!(got, want);
        }
        assert_eq!(best_rows(&users, &vectors[..6], (2, 3), bias)[1].len(), 3);
    }
}
