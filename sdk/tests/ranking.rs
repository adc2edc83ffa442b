//! What a query can ask for beyond the best by score, compared with plain evaluations over all
//! items: blending, exploration, DPP, caps, calibration, households.

mod common;

use std::collections::HashMap;
use std::sync::OnceLock;

use common::{DIM, Rng, keys, manifest};
use proptest::prelude::*;
use tercet::{
    Bundle, BundleWriter, DiversityMethod, Error, Event, Filter, Input, InputData, ItemTable,
    ItemTableBuilder, Query, Recommendation, Row, Scheme, Session, SessionOptions, Together, Tower,
    recommend_together,
};

const N: usize = 700;

fn brand(i: usize) -> Option<String> {
    (!i.is_multiple_of(9)).then(|| format!("b{}", i * i % 13))
}

fn tags(i: usize) -> Vec<String> {
    (0..i % 4)
        .map(|t| format!("t{}", (i * 7 + t) % 6))
        .collect()
}

fn released(i: usize) -> Option<String> {
    match i % 5 {
        0 => None,
        1 => Some("unknown".into()),
        _ => Some(format!("{}", 2000 + i * 31 % 27)),
    }
}

fn popularity(i: usize) -> f32 {
    ((i * 37 % 101) as f32).powi(2)
}

fn bundle() -> &'static Bundle {
    static BUNDLE: OnceLock<Bundle> = OnceLock::new();
    BUNDLE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.tercet");
        let keys = keys(N);
        let vectors = Rng(11).vectors(N * DIM);
        let pop: Vec<f32> = (0..N).map(popularity).collect();
        let shares: Vec<u8> = (0..N * 2).map(|i| (i % 256) as u8).collect();
        let table = ItemTableBuilder::new(DIM, Scheme::F32, &keys, &vectors)
            .and_then(|t| t.popularity(&pop))
            .and_then(|t| t.modalities(&shares))
            .and_then(|t| t.attribute("brand", &(0..N).map(brand).collect::<Vec<_>>()))
            .and_then(|t| t.attribute("released", &(0..N).map(released).collect::<Vec<_>>()))
            .and_then(|t| t.list_attribute("tags", &(0..N).map(tags).collect::<Vec<_>>()))
            .unwrap();
        let mut writer = BundleWriter::create(&path).unwrap();
        writer.table(&table).unwrap();
        let mut m = manifest();
        m.modalities = ["image", "text"]
            .map(|name| tercet::bundle::Modality {
                name: name.into(),
                dim: 3,
            })
            .to_vec();
        let bundle = writer.finish(m).unwrap();
        // The mapping outlives the folder.
        drop(folder);
        bundle
    })
}

fn table() -> &'static ItemTable {
    bundle().table()
}

/// Sum of the events' items plus a fixed direction.
struct Sum(u64);

impl Tower for Sum {
    fn run(&mut self, inputs: &[Input<'_>]) -> tercet::Result<Vec<f32>> {
        let (InputData::F32(items), InputData::F32(mask)) = (inputs[0].data, inputs[2].data) else {
            panic!("types");
        };
        let mut out = Rng(self.0).vectors(DIM);
        for (x, m) in items.chunks(DIM).zip(mask) {
            out.iter_mut().zip(x).for_each(|(o, x)| *o += x * m);
        }
        Ok(out)
    }
}

fn session(seed: u64, history: &[usize]) -> Session {
    let options = SessionOptions::default();
    let mut s = Session::with_tower(bundle(), Box::new(Sum(seed)), options).unwrap();
    for i in history {
        s.record(Event::new(format!("item-{i}"))).unwrap();
    }
    s
}

fn rows(top: &[Recommendation]) -> Vec<Row> {
    top.iter().map(|r| r.row).collect()
}

/// Every item by score, best first.
fn all(s: &mut Session) -> Vec<(f64, Row)> {
    let top = s.recommend(&Query::top(N).include_seen(true)).unwrap();
    assert_eq!(top.len(), N);
    top.iter().map(|r| (f64::from(r.score), r.row)).collect()
}

fn sort(list: &mut [(f64, Row)]) {
    list.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
}

fn sigma(scores: &[(f64, Row)]) -> f64 {
    let n = scores.len() as f64;
    let mean = scores.iter().map(|s| s.0).sum::<f64>() / n;
    (scores.iter().map(|s| (s.0 - mean).powi(2)).sum::<f64>() / n).sqrt()
}

/// Same rows up to exchanges of near-equals, whose scores round differently in f32.
fn check_close(got: &[Recommendation], want: &[(f64, Row)]) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert!(
            (f64::from(g.score) - w.0).abs() < 1e-3,
            "{} has {}, expected {} with {}",
            g.row,
            g.score,
            w.1,
            w.0
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn blending_adds_what_is_declared(
        seed in 0u64..50,
        popular in -3.0f32..3.0,
        fresh in -3.0f32..3.0,
        half_life in 0.5f64..10.0,
        k in 1usize..60,
    ) {
        let mut s = session(seed, &[]);
        let plain = all(&mut s);
        // N < 1024: the sample is the whole table.
        let sigma = sigma(&plain);
        let top = (0..N).map(popularity).fold(0.0f32, f32::max);
        let mut want: Vec<(f64, Row)> = plain
            .iter()
            .map(|&(score, row)| {
                let p = f64::from(popularity(row as usize) / top).sqrt();
                let year = released(row as usize).and_then(|y| y.parse::<f64>().ok());
                let f = year.map_or(0.0, |y| (-(2020.0 - y).max(0.0) / half_life).exp2());
                (score + sigma * (f64::from(popular) * p + f64::from(fresh) * f), row)
            })
            .collect();
        sort(&mut want);
        let query = Query::top(k)
            .include_seen(true)
            .popularity(popular)
            .freshness("released", 2020.0, half_life, fresh);
        check_close(&s.recommend(&query).unwrap(), &want[..k]);
        // With a filter the terms are the same: σ is taken over the table.
        let filter = Filter::has("brand");
        want.retain(|w| brand(w.1 as usize).is_some());
        check_close(&s.recommend(&query.filter(filter)).unwrap(), &want[..k]);
    }

    /// A greedy walk down the whole ranking, taking what every cap allows.
    #[test]
    fn caps_equal_a_greedy_walk(
        seed in 0u64..50,
        per_brand in 0usize..4,
        per_tag in prop::option::of(0usize..6),
        k in 1usize..80,
        filtered in any::<bool>(),
    ) {
        let mut s = session(seed, &[3, 4]);
        let mut query = Query::top(k).cap("brand", per_brand).pool(7);
        if let Some(n) = per_tag {
            query = query.cap("tags", n);
        }
        if filtered {
            query = query.filter(Filter::range("released", 2005.0..));
        }
        let mut used: HashMap<String, usize> = HashMap::new();
        let mut want = Vec::new();
        for (_, row) in all(&mut s) {
            let i = row as usize;
            let fits = !filtered || released(i).and_then(|y| y.parse().ok()).is_some_and(|y: f64| y >= 2005.0);
            if !fits || [3, 4].contains(&i) || want.len() == k {
                continue;
            }
            let mut values = tags(i);
            values.sort();
            values.dedup();
            let room = brand(i).is_none_or(|b| used.get(&b).copied().unwrap_or(0) < per_brand)
                && per_tag.is_none_or(|n| values.iter().all(|t| used.get(t).copied().unwrap_or(0) < n));
            if room {
                for value in values.into_iter().chain(brand(i)) {
                    *used.entry(value).or_insert(0) += 1;
                }
                want.push(row);
            }
        }
        prop_assert_eq!(rows(&s.recommend(&query).unwrap()), want);
    }

    #[test]
    fn calibrated_lists_follow_the_history(
        history in prop::collection::vec(0usize..N, 1..30),
        slack in 0.0f32..0.5,
        k in 5usize..40,
    ) {
        let mut s = session(1, &history);
        let top = s.recommend(&Query::top(k).include_seen(true).calibrate("brand", slack)).unwrap();
        let mut share: HashMap<String, f64> = HashMap::new();
        let branded: Vec<String> = history.iter().filter_map(|&i| brand(i)).collect();
        for b in &branded {
            *share.entry(b.clone()).or_insert(0.0) += 1.0 / branded.len() as f64;
        }
        let mut count: HashMap<String, usize> = HashMap::new();
        for b in top.iter().filter_map(|r| brand(r.row as usize)) {
            *count.entry(b).or_insert(0) += 1;
        }
        for (b, n) in count {
            let limit = k as f64 * (share.get(&b).copied().unwrap_or(0.0) + f64::from(slack));
            prop_assert!(branded.is_empty() || n as f64 <= limit.ceil() + 1e-6, "{b}: {n} of {limit}");
        }
        // Items without a brand (78 of them) are not limited, so the list is always full.
        prop_assert_eq!(top.len(), k);
    }

    /// The determinants, computed anew for every candidate.
    #[test]
    fn dpp_is_greedy_on_the_determinant(seed in 0u64..30, lambda in 0.05f32..0.95, k in 2usize..12) {
        let mut s = session(seed, &[]);
        let ranked = all(&mut s)[..40].to_vec();
        let (low, high) = (ranked[39].0, ranked[0].0);
        let vectors: Vec<Vec<f64>> = ranked.iter().map(|r| unit(r.1)).collect();
        let query = Query::top(k).include_seen(true).diversity(lambda)
            .diversity_method(DiversityMethod::Dpp).pool(40);
        let got = rows(&s.recommend(&query).unwrap());
        prop_assert_eq!(got.len(), k);
        let mut picked: Vec<usize> = vec![0];
        prop_assert_eq!(got[0], ranked[0].1);
        for &row in &got[1..] {
            let value = |i: usize| {
                let mut with = picked.clone();
                with.push(i);
                let gain = (det(&vectors, &with) / det(&vectors, &picked)).max(1e-12).ln();
                (1.0 - f64::from(lambda)) * (ranked[i].0 - low) / (high - low) + f64::from(lambda) * gain
            };
            let best = (0..40).filter(|i| !picked.contains(i)).map(value).fold(f64::MIN, f64::max);
            let i = ranked.iter().position(|r| r.1 == row).unwrap();
            // Near-equals may change places: the vectors are normalized in f32.
            prop_assert!(value(i) >= best - 1e-4, "{} against {best}", value(i));
            picked.push(i);
        }
    }

    #[test]
    fn households_equal_the_formula(
        a in prop::collection::vec(0usize..N, 0..4),
        b in prop::collection::vec(0usize..N, 0..4),
        weight in 0.0f32..5.0,
        k in 1usize..40,
    ) {
        let (mut one, mut two) = (session(1, &a), session(2, &b));
        let z = |s: &mut Session| -> HashMap<Row, f64> {
            let scores = all(s);
            let sigma = sigma(&scores);
            let mean = scores.iter().map(|s| s.0).sum::<f64>() / N as f64;
            scores.iter().map(|&(s, row)| (row, (s - mean) / sigma)).collect()
        };
        let (za, zb) = (z(&mut one), z(&mut two));
        let w = f64::from(weight / (weight + 1.0));
        for rule in [Together::Average, Together::LeastMisery] {
            let mut want: Vec<(f64, Row)> = (0..N as Row)
                .filter(|&row| !a.contains(&(row as usize)) && !b.contains(&(row as usize)))
                .map(|row| match rule {
                    Together::Average => (w * za[&row] + (1.0 - w) * zb[&row], row),
                    _ if weight == 0.0 => (zb[&row], row),
                    _ => (za[&row].min(zb[&row]), row),
                })
                .collect();
            sort(&mut want);
            let mut members = [(&mut one, weight), (&mut two, 1.0)];
            let top = recommend_together(&mut members, rule, &Query::top(k).explain(true)).unwrap();
            check_close(&top, &want[..k]);
            for because in top.iter().flat_map(|r| &r.because) {
                let history = [&a, &b][because.member];
                let named = history.iter().any(|i| because.item == format!("item-{i}"));
                prop_assert!(named);
            }
        }
    }
}

fn unit(row: Row) -> Vec<f64> {
    let x = table().vector(row).unwrap();
    let norm = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    x.iter().map(|v| f64::from(*v) / norm).collect()
}

/// Determinant of (1 + cosine) / 2 over some vectors, by elimination.
fn det(vectors: &[Vec<f64>], of: &[usize]) -> f64 {
    let n = of.len();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let mut m: Vec<Vec<f64>> = of
        .iter()
        .map(|&i| {
            of.iter()
                .map(|&j| (1.0 + dot(&vectors[i], &vectors[j])) / 2.0)
                .collect()
        })
        .collect();
    let mut result = 1.0;
    for c in 0..n {
        result *= m[c][c];
        for r in c + 1..n {
            let f = m[r][c] / m[c][c];
            let pivot = m[c].clone();
            m[r].iter_mut().zip(&pivot).for_each(|(x, p)| *x -= f * p);
        }
    }
    result
}

#[test]
fn exploration_repeats_with_its_seed_and_prefers_the_better() {
    let mut s = session(4, &[]);
    let query = |temperature, seed| Query::top(10).pool(50).explore(temperature, seed);
    let plain = rows(&s.recommend(&Query::top(50)).unwrap());
    assert_eq!(rows(&s.recommend(&query(0.0, 1)).unwrap()), plain[..10]);
    let first = s.recommend(&query(1.0, 1)).unwrap();
    assert_eq!(s.recommend(&query(1.0, 1)).unwrap(), first);
    let mut hits = vec![0usize; 50];
    for seed in 0..400 {
        let top = rows(&s.recommend(&query(1.0, seed)).unwrap());
        assert_eq!(top.len(), 10);
        for row in top {
            hits[plain.iter().position(|&r| r == row).unwrap()] += 1;
        }
    }
    // Drawn with probabilities that fall with the rank: the best fifth comes far more often
    // than the last, which still comes.
    let sum = |r: std::ops::Range<usize>| hits[r].iter().sum::<usize>();
    assert!(sum(0..10) > 3 * sum(40..50) && sum(40..50) > 0, "{hits:?}");
    // Scores stay those of the plain ranking, and diversity and caps still hold.
    let query = query(1.0, 3).cap("brand", 1).diversity(0.3);
    let top = s.recommend(&query).unwrap();
    let mut brands: Vec<String> = top.iter().filter_map(|r| brand(r.row as usize)).collect();
    let n = brands.len();
    brands.sort();
    brands.dedup();
    assert_eq!((top.len(), brands.len()), (10, n));
    let scores: HashMap<Row, f64> = all(&mut s).into_iter().map(|(s, r)| (r, s)).collect();
    assert!(top.iter().all(|r| scores[&r.row] == f64::from(r.score)));
}

#[test]
fn dpp_parts_an_item_between_two_picks() {
    // a and b at right angles, m between them, c at right angles to all but less relevant.
    let folder = tempfile::tempdir().unwrap();
    let mut v = vec![0.0f32; 4 * DIM];
    v[0] = 1.0;
    v[DIM + 1] = 0.99;
    (v[2 * DIM], v[2 * DIM + 1]) = (0.7, 0.7);
    v[3 * DIM + 2] = 0.9;
    let keys = ["a", "b", "m", "c"];
    let built = ItemTableBuilder::new(DIM, Scheme::F32, &keys, &v)
        .and_then(|t| t.popularity(&[0.9, 0.89, 0.88, 0.2]))
        .unwrap();
    let mut writer = BundleWriter::create(folder.path().join("b")).unwrap();
    writer.table(&built).unwrap();
    let bundle = writer.finish(manifest()).unwrap();
    let mut s = Session::new(&bundle, SessionOptions::default()).unwrap();
    let list = |s: &mut Session, method| {
        let query = Query::top(4).diversity(1.0).diversity_method(method);
        rows(&s.recommend(&query).unwrap())
    };
    for method in [DiversityMethod::Mmr, DiversityMethod::Dpp] {
        assert_eq!(list(&mut s, method), [0, 1, 3, 2], "{method:?}");
    }
}

#[test]
fn calibration_without_a_history_limits_nothing() {
    let mut s = session(5, &[]);
    let plain = s.recommend(&Query::top(30)).unwrap();
    let calibrated = s
        .recommend(&Query::top(30).calibrate("brand", 0.0))
        .unwrap();
    assert_eq!(plain, calibrated);
    // A history of one brand and no slack: nothing but that brand and items without one.
    let mut s = session(5, &[1]);
    let own = brand(1).unwrap();
    let top = s
        .recommend(&Query::top(30).calibrate("brand", 0.0))
        .unwrap();
    assert_eq!(top.len(), 30);
    assert!(
        top.iter()
            .all(|r| brand(r.row as usize).is_none_or(|b| b == own))
    );
}

#[test]
fn modality_shares_come_with_explanations() {
    let mut s = session(6, &[]);
    assert!(
        s.recommend(&Query::top(1)).unwrap()[0]
            .modalities
            .is_empty()
    );
    for r in s.recommend(&Query::top(20).explain(true)).unwrap() {
        let (image, text) = (r.row * 2 % 256, (r.row * 2 + 1) % 256);
        let mut want = [("image", image), ("text", text)];
        want.sort_by_key(|w| std::cmp::Reverse(w.1));
        let got: Vec<(&str, u32)> = r
            .modalities
            .iter()
            .map(|m| (m.name.as_str(), (m.share * 255.0).round() as u32))
            .collect();
        assert_eq!(got, want);
    }
}

#[test]
fn numbers_out_of_range_are_refused() {
    let mut s = session(7, &[]);
    let top = || Query::top(3);
    for query in [
        top().popularity(f32::NAN),
        top().popularity(100.5),
        top().freshness("released", 1.0, 0.0, 1.0),
        top().freshness("released", f64::NAN, 1.0, 1.0),
        top().freshness("released", 1.0, f64::INFINITY, 1.0),
        top().freshness("released", 1.0, 1.0, f32::NEG_INFINITY),
        top().explore(-0.1, 1),
        top().explore(f32::NAN, 1),
        top().calibrate("brand", 1.1),
        top().calibrate("brand", f32::NAN),
        (0..17).fold(top(), |q, _| q.cap("brand", 1)),
        top().effort(tercet::Effort::Probes(0)),
    ] {
        let result = s.recommend(&query);
        assert!(
            matches!(result, Err(Error::InvalidArgument { .. })),
            "{query:?}"
        );
    }
    for query in [top().cap("size", 1), top().freshness("size", 1.0, 1.0, 1.0)] {
        let result = s.recommend(&query);
        assert!(
            matches!(result, Err(Error::UnknownAttribute { .. })),
            "{query:?}"
        );
    }
    let (mut a, mut b) = (session(1, &[]), session(2, &[]));
    let mut together = |weights: &[f32]| {
        let mut members: Vec<(&mut Session, f32)> = [&mut a, &mut b]
            .into_iter()
            .zip(weights)
            .map(|(s, w)| (s, *w))
            .collect();
        recommend_together(&mut members, Together::Average, &top())
    };
    for weights in [&[][..], &[0.0, 0.0], &[1.0, -1.0], &[f32::NAN], &[101.0]] {
        assert!(matches!(
            together(weights),
            Err(Error::InvalidArgument { .. })
        ));
    }
    assert_eq!(together(&[1.0, 0.0]).unwrap().len(), 3);
    // Sessions of another bundle, even of the same files, share no rows.
    let (_folder, _, other) = common::bundle(5, Scheme::F32);
    let mut c = Session::new(&other, SessionOptions::default()).unwrap();
    let mut members = [(&mut a, 1.0), (&mut c, 1.0)];
    assert!(recommend_together(&mut members, Together::Average, &top()).is_err());
    // A table without popularity cannot weigh it.
    let plain = common::tower_bundle(tempfile::tempdir().unwrap().path(), b"", b"").unwrap();
    let mut s = Session::with_tower(&plain, Box::new(Sum(1)), SessionOptions::default()).unwrap();
    assert!(matches!(
        s.recommend(&top().popularity(1.0)),
        Err(Error::InvalidArgument { .. })
    ));
}

#[test]
fn everything_filtered_or_capped_gives_an_empty_list() {
    let mut s = session(8, &[]);
    let none = Filter::any([]);
    let full = Query::top(5)
        .popularity(1.0)
        .freshness("released", 2020.0, 3.0, 1.0)
        .explore(1.0, 1)
        .diversity(0.5)
        .cap("brand", 2)
        .explain(true);
    assert!(s.recommend(&full.clone().filter(none)).unwrap().is_empty());
    let contradiction = Filter::all([Filter::has("brand"), Filter::not(Filter::has("brand"))]);
    assert!(
        s.recommend(&full.clone().filter(contradiction))
            .unwrap()
            .is_empty()
    );
    let branded = full.clone().cap("brand", 0).filter(Filter::has("brand"));
    assert!(s.recommend(&branded).unwrap().is_empty());
    assert_eq!(s.recommend(&full).unwrap().len(), 5);
    let many = Query::top(usize::MAX)
        .cap("brand", usize::MAX)
        .explore(1.0, 1);
    assert_eq!(s.recommend(&many).unwrap().len(), N);
}
