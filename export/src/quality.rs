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
    let kernel = tercet::kernel::active();
    let mut scores = vec![0f32; n];
    let mut wanted: Vec<Vec<Row>> = Vec::with_capacity(views.len());
    for user in users.chunks_exact(d) {
        kernel.dot_f32(user, vectors, &mut scores);
        for (score, &row) in scores.iter_mut().zip(&rows) {
            *score += table.bias(row);
        }
        let mut order: Vec<usize> = (0..n).collect();
        let better = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
        if k < n {
            order.select_nth_unstable_by(k, better);
        }
        wanted.push(order[..k].iter().map(|&i| rows[i]).collect());
    }
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

/// Mean share of `wanted` in `got`.
fn overlap(got: &[Vec<Row>], wanted: &[Vec<Row>]) -> f64 {
    let shares = got.iter().zip(wanted).map(|(got, wanted)| {
        let hits = wanted.iter().filter(|row| got.contains(row)).count();
        hits as f64 / wanted.len().max(1) as f64
    });
    shares.sum::<f64>() / got.len().max(1) as f64
}
