//! Many users in one call, for servers and offline jobs: one tower, one pass over the table.

use crate::blend::Explore;
use crate::bundle::Bundle;
use crate::engine::UserTower;
use crate::error::Result;
use crate::explain::describe;
use crate::id::Row;
use crate::ranking::rank;
use crate::recommendation::{Query, Recommendation};
use crate::search::Search;
use crate::table::{Metric, Scorer};

/// The best items for many users: what a [`Session`](crate::Session) with each history would
/// answer, but for reasons, which need a session.
///
/// Histories are lists of (row, behavior id), oldest first, as for [`UserTower::encode`]; `tower`
/// is the bundle's. A query without diversity, caps, further terms and exploration searches for
/// all users at once ([`ItemTable::search_batch`](crate::ItemTable::search_batch)) with `threads`
/// threads; others are answered one by one.
///
/// # Errors
/// As [`UserTower::encode`] and [`Session::recommend`](crate::Session::recommend).
pub fn recommend_batch<H: AsRef<[(Row, i64)]>>(
    bundle: &Bundle,
    tower: &mut UserTower,
    histories: &[H],
    query: &Query,
    threads: usize,
) -> Result<Vec<Vec<Recommendation>>> {
    let table = bundle.table();
    let modalities = &bundle.manifest().modalities;
    let vectors = tower.encode(table, histories)?;
    let mut named = Vec::new();
    for key in &query.exclude {
        named.extend(table.find(key)?);
    }
    let seen = |history: &H| -> Vec<Row> { history.as_ref().iter().map(|(row, _)| *row).collect() };
    let exclude: Vec<Vec<Row>> = histories
        .iter()
        .map(|h| {
            if query.include_seen {
                Vec::new()
            } else {
                seen(h)
            }
        })
        .collect();
    if !is_plain(query) {
        let users = vectors
            .chunks_exact(table.dim())
            .zip(histories)
            .zip(&exclude);
        let lists = users.map(|((vector, history), exclude)| {
            let mut scores = Scorer::new(table, Metric::Score, vector)?;
            let exclude = [&named[..], exclude].concat();
            let best = rank(table, &mut scores, query, &exclude, &seen(history))?;
            describe(table, modalities, &best, None)
        });
        return lists.collect();
    }
    let within = match &query.filter {
        Some(filter) => Some(table.select(filter)?),
        None => None,
    };
    let mut search = Search::top(query.k)
        .effort(query.effort)
        .exclude(&named)
        .threads(threads);
    if let Some(rows) = &within {
        search = search.within(rows);
    }
    let lists = table.search_batch(&vectors, &search, &exclude)?;
    lists
        .iter()
        .map(|best| describe(table, modalities, best, None))
        .collect()
}

/// Whether the best by score are all that is asked for. Settings out of range are not plain:
/// they are refused where they are used.
fn is_plain(query: &Query) -> bool {
    let Explore { temperature, .. } = query.explore;
    query.diversity == 0.0
        && query.pool.is_none()
        && temperature == 0.0
        && query.caps.is_empty()
        && query.popularity == 0.0
        && query.freshness.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Input, InputData, Tower};
    use crate::quant::Scheme;
    use crate::session::{Session, SessionOptions};
    use crate::{BundleWriter, Event, Filter, ItemTableBuilder, Manifest};

    const N: usize = 300;
    const D: usize = 16;

    /// Per history the sum of its items and a fixed direction.
    struct Sum;

    impl Tower for Sum {
        fn run(&mut self, inputs: &[Input<'_>]) -> Result<Vec<f32>> {
            let (InputData::F32(x), InputData::F32(mask)) = (inputs[0].data, inputs[2].data) else {
                return Err(crate::Error::argument("types"));
            };
            let l = inputs[0].shape[1];
            let users = x.chunks(l * D).zip(mask.chunks(l)).map(|(x, mask)| {
                let mut user = [0.1f32; D];
                for (x, m) in x.chunks(D).zip(mask) {
                    user.iter_mut().zip(x).for_each(|(u, x)| *u += x * m);
                }
                user
            });
            Ok(users.flatten().collect())
        }
    }

    #[test]
    fn a_batch_answers_as_sessions_do() {
        let folder = tempfile::tempdir().unwrap();
        let keys: Vec<String> = (0..N).map(|i| format!("k{i}")).collect();
        let value = |i: usize| ((i * 7919 % 1009) as f32 / 504.5) - 1.0;
        let vectors: Vec<f32> = (0..N * D).map(value).collect();
        let popularity: Vec<f32> = (0..N).map(|i| i as f32).collect();
        let group: Vec<_> = (0..N).map(|i| Some((i % 3).to_string())).collect();
        for scheme in Scheme::ALL {
            let table = ItemTableBuilder::new(D, scheme, &keys, &vectors)
                .and_then(|t| t.popularity(&popularity))
                .and_then(|t| t.attribute("group", &group))
                .unwrap();
            let path = folder.path().join(scheme.name());
            let mut writer = BundleWriter::create(path).unwrap();
            writer.table(&table).unwrap();
            let bundle = writer.finish(Manifest::new("b", 1, D, 4)).unwrap();
            let mut tower = UserTower::new(Box::new(Sum), bundle.manifest(), "sum");
            let histories: Vec<Vec<(Row, i64)>> = (0..70u32)
                .map(|u| (0..u % 6).map(|e| (u * 4 + e, 0)).collect())
                .collect();
            for query in [
                Query::top(7),
                Query::top(7).exclude(["k5", "nobody"]).include_seen(true),
                Query::top(7).filter(Filter::is_in("group", ["1"])),
                Query::top(7).diversity(0.4).cap("group", 3).popularity(0.5),
                Query::top(7).explore(1.0, 3),
            ] {
                for threads in [1, 3] {
                    let got =
                        recommend_batch(&bundle, &mut tower, &histories, &query, threads).unwrap();
                    assert_eq!(got.len(), histories.len());
                    for (got, history) in got.iter().zip(&histories) {
                        let options = SessionOptions::default();
                        let mut s = Session::with_tower(&bundle, Box::new(Sum), options).unwrap();
                        for (row, _) in history {
                            s.record(Event::new(&keys[*row as usize])).unwrap();
                        }
                        let want = s.recommend(&query).unwrap();
                        assert_eq!(got.len(), want.len());
                        for (g, w) in got.iter().zip(&want) {
                            assert!((g.score - w.score).abs() < 1e-4, "{scheme} {g:?} {w:?}");
                        }
                    }
                }
            }
            let refused = recommend_batch(&bundle, &mut tower, &histories, &Query::top(0), 1);
            assert!(refused.is_err());
            let none: [Vec<(Row, i64)>; 0] = [];
            let none = recommend_batch(&bundle, &mut tower, &none, &Query::top(3), 1).unwrap();
            assert!(none.is_empty());
        }
    }
}
