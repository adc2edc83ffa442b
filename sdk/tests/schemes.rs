//! Every scheme, with and without partitions and tail, against a model that scores all items
//! by the documented formulas.

mod common;

use common::{Rng, keys};
use proptest::prelude::*;
use tercet::quant::{int4, int8, tail, two_stage};
use tercet::{
    Bundle, BundleWriter, Effort, Error, Filter, ItemTable, ItemTableBuilder, Manifest, Metric,
    Row, Scheme, Search,
};

#[derive(Debug)]
struct Case {
    dim: usize,
    scheme: Scheme,
    tail: bool,
    partitions: Option<usize>,
    vectors: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Case {
    fn items(&self) -> usize {
        self.vectors.len() / self.dim
    }

    fn bundle(&self, probes: Option<usize>) -> Bundle {
        let folder = tempfile::tempdir().unwrap();
        let n = self.items();
        let keys = keys(n);
        let group: Vec<Option<String>> = (0..n).map(|i| Some((i % 7).to_string())).collect();
        let popularity: Vec<f32> = (0..n).map(|i| (i % 13) as f32).collect();
        let mut table = ItemTableBuilder::new(self.dim, self.scheme, &keys, &self.vectors)
            .and_then(|t| t.attribute("group", &group))
            .and_then(|t| t.popularity(&popularity))
            .unwrap();
        if let Some(bias) = &self.bias {
            table = table.bias(bias).unwrap();
        }
        if self.tail {
            table = table.tail().unwrap();
        }
        if let Some(p) = self.partitions {
            table = table.partitions(p).unwrap();
        }
        let mut writer = BundleWriter::create(folder.path().join("b")).unwrap();
        writer.table(&table).unwrap();
        let mut manifest = Manifest::new("schemes", 1, self.dim, 4);
        manifest.table.probes = probes;
        let bundle = writer.finish(manifest).unwrap();
        bundle.verify().unwrap();
        bundle
    }

    fn int8(&self, x: &[f32], codes: &mut [i8]) -> f32 {
        let scale = int8::encode(x, codes);
        if self.tail {
            scale
        } else {
            int8::fit(x, codes, scale)
        }
    }

    /// Decoded vector of an item and, for schemes that scan codes, its score in the scan.
    fn model(&self, item: usize, query: &[f32]) -> (Vec<f32>, Option<f32>) {
        let (x, d) = (
            &self.vectors[item * self.dim..(item + 1) * self.dim],
            self.dim,
        );
        let mut q = vec![0i8; d];
        let q_scale = int8::encode(query, &mut q);
        let (mut out, mut codes) = (vec![0.0f32; d], vec![0i8; d]);
        let (mut high, mut low) = (vec![0u8; d / 2], vec![0u8; d / 2]);
        let scan = match self.scheme {
            Scheme::F32 => {
                out.copy_from_slice(x);
                return (out, None);
            }
            Scheme::F16 => {
                // The format's rounding, by its own decoder.
                let bits: Vec<u16> = x.iter().map(|v| half_bits(*v)).collect();
                tercet::quant::f16::decode(&bits, &mut out);
                return (out, None);
            }
            Scheme::Int4 => {
                let mut factors = vec![0; int4::row_bytes(d).1];
                let scale = int4::encode(x, &mut high, &mut factors);
                int4::decode(&high, &factors, scale, &mut out);
                return (out, Some(int4::score(&q, q_scale, &high, &factors, scale)));
            }
            Scheme::Int8 => {
                let scale = self.int8(x, &mut codes);
                int8::decode(&codes, scale, &mut out);
                (scale, int8::score(&q, q_scale, &codes, scale))
            }
            Scheme::TwoStage => {
                let scale = self.int8(x, &mut codes);
                two_stage::split(&codes, &mut high, &mut low);
                int8::decode(&codes, scale, &mut out);
                (scale, two_stage::score_coarse(&q, q_scale, &high, scale))
            }
            other => panic!("{other} has no model"),
        };
        if self.tail {
            tail::encode(x, &codes, scan.0, &mut low);
            tail::decode(&codes, scan.0, &low, &mut out);
        }
        (out, Some(scan.1))
    }

    /// The best `k` of the items that qualify, as keys and exact scores.
    fn best(
        &self,
        query: &[f32],
        k: usize,
        qualifies: impl Fn(usize) -> bool,
    ) -> Vec<(usize, f64)> {
        let mut all: Vec<(usize, f64, f64)> = (0..self.items())
            .filter(|&i| qualifies(i))
            .map(|i| {
                let (x, scan) = self.model(i, query);
                let bias = f64::from(self.bias.as_ref().map_or(0.0, |b| b[i]));
                let dot = |a: &[f32]| -> f64 {
                    a.iter()
                        .zip(query)
                        .map(|(a, b)| f64::from(*a) * f64::from(*b))
                        .sum()
                };
                let exact = dot(&x) + bias;
                (i, scan.map_or(exact, |s| f64::from(s) + bias), exact)
            })
            .collect();
        let keep = match self.scheme {
            Scheme::F32 | Scheme::F16 => k,
            Scheme::TwoStage => (3 * k).max(k + 128),
            _ => (k + k / 2).max(k + 32),
        };
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        all.truncate(keep);
        all.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.0.cmp(&b.0)));
        all.truncate(k);
        all.into_iter().map(|(i, _, s)| (i, s)).collect()
    }
}

/// Nearest half-precision number of a value in -2..2, by search over all of them.
fn half_bits(x: f32) -> u16 {
    let value = |bits: u16| {
        let mut out = [0.0];
        tercet::quant::f16::decode(&[bits], &mut out);
        out[0]
    };
    let sign = if x < 0.0 { 0x8000 } else { 0 };
    // Positive ones ascend with their bits.
    let above = (0..0x4000u16)
        .collect::<Vec<_>>()
        .partition_point(|&b| value(b) < x.abs()) as u16;
    let candidates = [above.saturating_sub(1), above];
    let best = candidates.into_iter().min_by(|&a, &b| {
        let off = |b: u16| (f64::from(value(b)) - f64::from(x.abs())).abs();
        // Ties go to the even one.
        off(a).total_cmp(&off(b)).then((a & 1).cmp(&(b & 1)))
    });
    best.unwrap() | sign
}

fn item(table: &ItemTable, row: Row) -> usize {
    table.key(row).unwrap()["item-".len()..].parse().unwrap()
}

/// The same items, but for exchanges of scores that differ by the rounding of f32 sums.
fn check(table: &ItemTable, got: &[tercet::Scored], want: &[(usize, f64)], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (g, w) in got.iter().zip(want) {
        let close = (f64::from(g.score) - w.1).abs() <= 1e-4;
        assert!(
            close,
            "{what}: {} with {} for {w:?}",
            item(table, g.row),
            g.score
        );
    }
}

fn case() -> impl Strategy<Value = Case> {
    (
        1usize..500,
        prop::sample::select(vec![16usize, 48, 64, 80, 128]),
        prop::sample::select(Scheme::ALL.to_vec()),
        any::<bool>(),
        prop::option::of(1usize..20),
        any::<bool>(),
        any::<u64>(),
    )
        .prop_map(|(n, dim, scheme, tail, partitions, biased, seed)| {
            let mut rng = Rng(seed);
            // Heaps of items, so that partitions mean something.
            let centers = rng.vectors(8 * dim);
            let vectors = (0..n * dim)
                .map(|i| centers[(i / dim % 8) * dim + i % dim] + 0.3 * rng.float())
                .collect();
            Case {
                dim,
                scheme,
                tail: tail && matches!(scheme, Scheme::Int8 | Scheme::TwoStage),
                partitions: partitions.map(|p| p.min(n)),
                vectors,
                bias: biased.then(|| rng.vectors(n)),
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn searches_equal_the_model(case in case(), k in 1usize..40, modulus in 1usize..5, seed in any::<u64>()) {
        let bundle = case.bundle(None);
        let table = bundle.table();
        prop_assert_eq!(table.partitions(), case.partitions);
        prop_assert_eq!(table.has_tail(), case.tail);
        for row in 0..case.items() as Row {
            let (x, _) = case.model(item(table, row), &vec![1.0; case.dim]);
            prop_assert_eq!(table.vector(row).unwrap(), x);
        }
        let query = Rng(seed).vectors(case.dim);
        let excluded: Vec<Row> = (0..case.items() as Row).filter(|r| r % 5 == 3).collect();
        let out: Vec<usize> = excluded.iter().map(|&r| item(table, r)).collect();
        let groups: Vec<String> = (0..modulus).map(|g| g.to_string()).collect();
        let within = table.select(&Filter::is_in("group", groups)).unwrap();
        let plain = case.best(&query, k, |_| true);
        let narrow = case.best(&query, k, |i| i % 7 < modulus && !out.contains(&i));
        let all = case.partitions.unwrap_or(1);
        for effort in [Effort::Default, Effort::Exact, Effort::Probes(all)] {
            let search = Search::top(k).effort(effort);
            let got = table.search(&query, &search).unwrap();
            check(table, &got, &plain, &format!("{} {effort:?}", case.scheme));
            let search = search.exclude(&excluded).within(&within);
            let got = table.search(&query, &search).unwrap();
            check(table, &got, &narrow, &format!("{} {effort:?} filtered", case.scheme));
            for threads in [2, 5] {
                let more = table.search(&query, &search.clone().threads(threads)).unwrap();
                prop_assert_eq!(&more, &got);
            }
        }
        // Few probes find fewer of the best, but always k, and only items that qualify.
        for probes in [1, 2] {
            let search = Search::top(k).effort(Effort::Probes(probes));
            let search = search.exclude(&excluded).within(&within);
            let got = table.search(&query, &search).unwrap();
            prop_assert_eq!(got.len(), narrow.len());
            for s in got {
                let i = item(table, s.row);
                prop_assert!(i % 7 < modulus && !out.contains(&i));
            }
        }
        // Likeness is by cosine of the decoded vectors, whatever the scheme.
        let like = table.search(&query, &Search::top(3).metric(Metric::Cosine)).unwrap();
        for s in like {
            let (x, _) = case.model(item(table, s.row), &query);
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            let want = dot(&x, &query) / (dot(&x, &x) * dot(&query, &query)).sqrt();
            prop_assert!((f64::from(s.score) - want).abs() < 1e-4);
        }
    }

    #[test]
    fn batches_equal_single_searches(case in case(), count in 0usize..9, k in 1usize..30, threads in 1usize..4) {
        let bundle = case.bundle(None);
        let table = bundle.table();
        let queries = Rng(count as u64 + 1).vectors(count * case.dim);
        let excludes: Vec<Vec<Row>> = (0..count as Row).map(|q| vec![q, q + 3]).collect();
        let search = Search::top(k).threads(threads).effort(Effort::Exact);
        let batch = table.search_batch(&queries, &search, &excludes).unwrap();
        prop_assert_eq!(batch.len(), count);
        for ((got, query), exclude) in batch.iter().zip(queries.chunks(case.dim)).zip(&excludes) {
            let single = table.search(query, &search.clone().exclude(exclude)).unwrap();
            // Same scores: the first pass differs by a bit of the query's codes, and finds half
            // as many again as are needed.
            prop_assert_eq!(got.len(), single.len());
            for (g, s) in got.iter().zip(&single) {
                prop_assert!((g.score - s.score).abs() <= 1e-4, "{g:?} {s:?}");
            }
        }
    }
}

#[test]
fn the_manifest_says_how_much_is_looked_at() {
    let vectors = Rng(9).vectors(400 * 16);
    let case = Case {
        dim: 16,
        scheme: Scheme::Int8,
        tail: false,
        partitions: Some(20),
        vectors,
        bias: None,
    };
    let (one, all) = (case.bundle(Some(1)), case.bundle(None));
    assert_eq!(one.manifest().table.probes, Some(1));
    let query = Rng(10).vectors(16);
    let search = |bundle: &Bundle, effort| {
        let search = Search::top(5).effort(effort);
        bundle.table().search(&query, &search).unwrap()
    };
    assert_eq!(
        search(&one, Effort::Default),
        search(&one, Effort::Probes(1))
    );
    assert_eq!(search(&one, Effort::Exact), search(&all, Effort::Default));
    assert_ne!(search(&one, Effort::Default), search(&one, Effort::Exact));
}

#[test]
fn strange_queries_and_tables() {
    for scheme in Scheme::ALL {
        let mut vectors = Rng(2).vectors(50 * 16);
        vectors[16..48].fill(0.0);
        let case = Case {
            dim: 16,
            scheme,
            tail: false,
            partitions: Some(50),
            vectors,
            bias: None,
        };
        let bundle = case.bundle(None);
        let table = bundle.table();
        // A zero query: everything ties at 0, so the lower rows win.
        let zero = table.search(&[0.0; 16], &Search::top(10)).unwrap();
        let rows: Vec<Row> = zero.iter().map(|s| s.row).collect();
        assert_eq!(rows, (0..10).collect::<Vec<_>>(), "{scheme}");
        let huge = [f32::MAX / 4.0; 16];
        assert_eq!(table.search(&huge, &Search::top(99)).unwrap().len(), 50);
        for bad in [f32::NAN, f32::INFINITY] {
            let query = [bad; 16];
            assert!(matches!(
                table.search(&query, &Search::top(1)),
                Err(Error::NonFinite { .. })
            ));
            assert!(matches!(
                table.search_batch(&query, &Search::top(1), &[vec![]]),
                Err(Error::NonFinite { .. })
            ));
        }
        let query = [1.0; 16];
        for search in [
            Search::top(0),
            Search::top(1).effort(Effort::Probes(0)),
            Search::top(1).threads(0),
            Search::top(1).threads(1000),
        ] {
            let got = table.search(&query, &search);
            assert!(
                matches!(got, Err(Error::InvalidArgument { .. })),
                "{search:?}"
            );
        }
        assert!(matches!(
            table.search(&[1.0; 15], &Search::top(1)),
            Err(Error::Length { .. })
        ));
        assert!(matches!(
            table.search_batch(&[1.0; 17], &Search::top(1), &[vec![]]),
            Err(Error::Length { .. })
        ));
        assert!(matches!(
            table.search_batch(&[1.0; 16], &Search::top(1), &[]),
            Err(Error::Length { .. })
        ));
    }
}

#[test]
fn what_cannot_be_written_is_refused() {
    let keys = keys(3);
    let vectors = vec![0.5f32; 48];
    let table = || ItemTableBuilder::new(16, Scheme::F32, &keys, &vectors).unwrap();
    assert!(matches!(table().tail(), Err(Error::InvalidArgument { .. })));
    for count in [0, 4, usize::MAX] {
        let refused = table().partitions(count);
        assert!(
            matches!(refused, Err(Error::InvalidArgument { .. })),
            "{count}"
        );
    }
    let large = vec![f32::MAX; 48];
    let table = ItemTableBuilder::new(16, Scheme::Int4, &keys, &large).unwrap();
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(
        table.write(folder.path().join("t")),
        Err(Error::NonFinite { .. })
    ));
}
