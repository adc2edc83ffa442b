//! From a query to an ordered list of rows: filter, search, blend, explore, diversify, cap.
//!
//! 1. Conditions become a bitmap, declared terms become gains per item.
//! 2. One search collects the best candidates by score and gains: k of them, or a pool if there
//!    is something to choose.
//! 3. Exploration, diversity and caps pick from the pool; the rest of the candidates follows by
//!    score as far as the caps allow.
//! 4. If caps left places empty, the next search leaves out every value that is used up and
//!    looks four times as deep. Each round exhausts a value or the table, and a greedy walk down
//!    the whole ranking would have picked the same items.

use crate::blend::Prior;
use crate::caps::Caps;
use crate::diversity;
use crate::error::Result;
use crate::filter::{Filter, Selection};
use crate::id::Row;
use crate::recommendation::Query;
use crate::search::{Scores, Search, find};
use crate::table::ItemTable;
use crate::topk::Scored;

/// Ranks the rows of `table` as `query` asks. `scores` is what the user thinks of them, `exclude`
/// what must not come, `history` a row per event for calibrated caps.
pub(crate) fn rank(
    table: &ItemTable,
    scores: &mut dyn Scores,
    query: &Query,
    exclude: &[Row],
    history: &[Row],
) -> Result<Vec<Scored>> {
    diversity::check_lambda(query.diversity)?;
    let pool = diversity::pool_size(query.pool, query.k)?;
    let explore = query.explore.check()?;
    let mut caps = Caps::new(table, &query.caps, query.k, history)?;
    let mut prior = Prior::new(table, query.popularity, &query.freshness)?;
    if let Some(prior) = &mut prior {
        prior.scale(&scores.sample(table)?);
    }
    let within = match &query.filter {
        Some(filter) => Some(table.select(filter)?),
        None => None,
    };
    let k = query.k;
    let choose = explore.temperature != 0.0 || query.diversity != 0.0;
    let mut keep = if k > 0 && (choose || !caps.is_empty()) {
        k.max(pool)
    } else {
        // 0 is refused by the search.
        k
    };
    let mut search = Search::top(keep).effort(query.effort);
    let look = |search: &Search<'_>,
                scores: &mut dyn Scores,
                exclude: &[Row],
                within: Option<&Selection>| {
        let search = search.clone().exclude(exclude);
        find(
            table,
            scores,
            prior.as_ref(),
            &match within {
                Some(rows) => search.within(rows),
                None => search,
            },
        )
    };
    let mut best = look(&search, scores, exclude, within.as_ref())?;
    let mut more = best.len() == keep;
    let mut values: Vec<f64> = best.iter().map(|s| f64::from(s.score)).collect();
    if choose {
        let pool = pool.min(best.len());
        let noisy = explore.values(table, &best[..pool])?;
        values[..pool].copy_from_slice(&noisy);
        let mut order: Vec<usize> = (0..pool).collect();
        order.sort_by(|&a, &b| {
            values[b]
                .total_cmp(&values[a])
                .then(best[a].row.cmp(&best[b].row))
        });
        if query.diversity != 0.0 {
            let rows: Vec<Row> = order.iter().map(|&i| best[i].row).collect();
            let values: Vec<f64> = order.iter().map(|&i| values[i]).collect();
            let picks = k.min(pool);
            let mut take = |row| caps.take(row);
            let picked = diversity::pick(
                query.method,
                query.diversity,
                table,
                &rows,
                &values,
                picks,
                &mut take,
            )?;
            let mut list: Vec<Scored> = picked.iter().map(|&i| best[order[i]]).collect();
            fill(&mut list, &best[pool..], k, &mut caps)?;
            best = list;
        } else {
            let mut list = Vec::with_capacity(k.min(best.len()));
            let shuffled: Vec<Scored> = order.iter().map(|&i| best[i]).collect();
            fill(&mut list, &shuffled, k, &mut caps)?;
            fill(&mut list, &best[pool..], k, &mut caps)?;
            best = list;
        }
    } else if caps.is_empty() {
        best.truncate(k);
    } else {
        let mut list = Vec::with_capacity(k.min(best.len()));
        fill(&mut list, &best, k, &mut caps)?;
        best = list;
    }
    // Only caps refuse candidates.
    while more && best.len() < k && !caps.is_empty() {
        let open = match &query.filter {
            Some(filter) => Filter::all([filter.clone(), caps.open()?]),
            None => caps.open()?,
        };
        let within = table.select(&open)?;
        let mut exclude = exclude.to_vec();
        exclude.extend(best.iter().map(|s| s.row));
        keep = keep.saturating_mul(4);
        search = Search::top(keep).effort(query.effort);
        let next = look(&search, scores, &exclude, Some(&within))?;
        more = next.len() == keep;
        fill(&mut best, &next, k, &mut caps)?;
    }
    Ok(best)
}

/// Appends what the caps allow, up to `k` in all.
fn fill(list: &mut Vec<Scored>, from: &[Scored], k: usize, caps: &mut Caps<'_>) -> Result<()> {
    for s in from {
        if list.len() >= k {
            break;
        }
        if caps.take(s.row)? {
            list.push(*s);
        }
    }
    Ok(())
}
