//! Filters and diversity as a host sees them, compared with plain evaluations row by row.

mod common;

use std::path::Path;
use std::sync::OnceLock;

use common::{DIM, Rng, keys, manifest};
use proptest::prelude::*;
use tercet::{
    Bundle, BundleWriter, Error, Event, Filter, Input, ItemTable, ItemTableBuilder,
    MAX_FILTER_BYTES, MAX_FILTER_DEPTH, MAX_FILTER_TERMS, MAX_POOL, Metric, Query, Recommendation,
    Row, Scheme, Scored, Session, SessionOptions, Tower,
};

/// Not a multiple of 64, and enough that fewer than N / 64 rows can be a dozen.
const N: usize = 1500;
const PRICES: [&str; 8] = ["5", "19.99", "20", "20.00", "-3", "1e2", "free", "nan"];
const TAGS: [&str; 5] = ["new", "sale", "x y", "it's", "say \"hi\\\""];

fn color(i: usize) -> Option<String> {
    let known = [Some("red"), None, Some("blau ä"), Some("and")][i * 7 % 4];
    known.map(String::from)
}

fn price(i: usize) -> Option<String> {
    (!i.is_multiple_of(5)).then(|| PRICES[i * 11 % PRICES.len()].to_string())
}

fn tags(i: usize) -> Vec<String> {
    let n = i * 13 % 4;
    (0..n)
        .map(|t| TAGS[(i + t) % TAGS.len()].to_string())
        .collect()
}

/// One value for every item: a dictionary of N entries.
fn code(i: usize) -> Option<String> {
    Some(i.to_string())
}

fn write(path: &Path, scheme: Scheme) -> Bundle {
    let keys = keys(N);
    let vectors = Rng(3).vectors(N * DIM);
    let popularity: Vec<f32> = (0..N).map(|i| (i * 7 % 97) as f32 / 97.0).collect();
    let bias: Vec<f32> = (0..N).map(|i| (i % 3) as f32 * 0.01).collect();
    let single = |f: fn(usize) -> Option<String>| (0..N).map(f).collect::<Vec<_>>();
    let table = ItemTableBuilder::new(DIM, scheme, &keys, &vectors)
        .and_then(|t| t.bias(&bias))
        .and_then(|t| t.popularity(&popularity))
        .and_then(|t| t.attribute("color", &single(color)))
        .and_then(|t| t.attribute("price", &single(price)))
        .and_then(|t| t.attribute("code", &single(code)))
        .and_then(|t| t.list_attribute("tags", &(0..N).map(tags).collect::<Vec<_>>()))
        .unwrap();
    let mut writer = BundleWriter::create(path).unwrap();
    writer.table(&table).unwrap();
    writer.finish(manifest()).unwrap()
}

/// One bundle a scheme, shared by the tests.
fn bundles() -> &'static [Bundle; 3] {
    static BUNDLES: OnceLock<[Bundle; 3]> = OnceLock::new();
    BUNDLES.get_or_init(|| {
        // The mapping outlives the folder.
        let folder = tempfile::tempdir().unwrap();
        [Scheme::F32, Scheme::F16, Scheme::Int8]
            .map(|s| write(&folder.path().join(format!("{s:?}.tercet")), s))
    })
}

fn table() -> &'static ItemTable {
    bundles()[0].table()
}

/// A filter in a form that the tests evaluate themselves.
#[derive(Debug, Clone)]
enum Tree {
    In(&'static str, Vec<String>),
    NotIn(&'static str, Vec<String>),
    Has(&'static str),
    Compare(&'static str, &'static str, f64),
    Rows(Vec<Row>),
    Not(Box<Tree>),
    All(Vec<Tree>),
    Any(Vec<Tree>),
}

fn values(attribute: &str, i: usize) -> Vec<String> {
    match attribute {
        "color" => color(i).into_iter().collect(),
        "price" => price(i).into_iter().collect(),
        "code" => code(i).into_iter().collect(),
        _ => tags(i),
    }
}

impl Tree {
    fn passes(&self, i: usize) -> bool {
        match self {
            Tree::In(a, wanted) => values(a, i).iter().any(|v| wanted.contains(v)),
            Tree::NotIn(a, wanted) => !values(a, i).iter().any(|v| wanted.contains(v)),
            Tree::Has(a) => !values(a, i).is_empty(),
            Tree::Compare(a, op, x) => values(a, i).iter().any(|v| {
                let v: f64 = v.parse().unwrap_or(f64::NAN);
                match *op {
                    "<" => v < *x,
                    "<=" => v <= *x,
                    ">" => v > *x,
                    _ => v >= *x,
                }
            }),
            Tree::Rows(rows) => rows.contains(&(i as Row)),
            Tree::Not(t) => !t.passes(i),
            Tree::All(ts) => ts.iter().all(|t| t.passes(i)),
            Tree::Any(ts) => ts.iter().any(|t| t.passes(i)),
        }
    }

    fn filter(&self) -> Filter {
        match self {
            Tree::In(a, v) => Filter::is_in(a, v.clone()),
            Tree::NotIn(a, v) => Filter::not_in(a, v.clone()),
            Tree::Has(a) => Filter::has(a),
            Tree::Compare(a, "<", x) => Filter::range(a, ..*x),
            Tree::Compare(a, "<=", x) => Filter::range(a, ..=*x),
            Tree::Compare(a, ">", x) => {
                use std::ops::Bound::{Excluded, Unbounded};
                Filter::range(a, (Excluded(*x), Unbounded))
            }
            Tree::Compare(a, _, x) => Filter::range(a, *x..),
            Tree::Rows(rows) => Filter::rows(rows.clone()),
            Tree::Not(t) => Filter::not(t.filter()),
            Tree::All(ts) => Filter::all(ts.iter().map(Tree::filter)),
            Tree::Any(ts) => Filter::any(ts.iter().map(Tree::filter)),
        }
    }

    /// Nothing for what the text form lacks.
    fn text(&self) -> Option<String> {
        let quote = |v: &String| format!("\"{}\"", v.replace('\\', "\\\\").replace('"', "\\\""));
        let list = |v: &[String]| v.iter().map(quote).collect::<Vec<_>>().join(", ");
        let join = |ts: &[Tree], op: &str| -> Option<String> {
            let parts: Option<Vec<String>> = ts.iter().map(Tree::text).collect();
            parts
                .filter(|p| !p.is_empty())
                .map(|p| format!("({})", p.join(op)))
        };
        match self {
            Tree::In(_, v) | Tree::NotIn(_, v) if v.is_empty() => None,
            Tree::In(a, v) if v.len() == 1 => Some(format!("{a} = {}", quote(&v[0]))),
            Tree::In(a, v) => Some(format!("{a} in ({})", list(v))),
            Tree::NotIn(a, v) => Some(format!("'{a}' NOT IN({})", list(v))),
            Tree::Has(a) => Some(format!("has {a}")),
            Tree::Compare(a, op, x) => Some(format!("{a}{op}{x}")),
            Tree::Rows(_) => None,
            Tree::Not(t) => t.text().map(|t| format!("not {t}")),
            Tree::All(ts) => join(ts, " and "),
            Tree::Any(ts) => join(ts, " or "),
        }
    }
}

fn trees() -> impl Strategy<Value = Tree> {
    let value = prop_oneof![
        prop::sample::select(TAGS.to_vec()).prop_map(String::from),
        prop::sample::select(PRICES.to_vec()).prop_map(String::from),
        prop::sample::select(vec!["red", "blau ä", "and", "nowhere", ""]).prop_map(String::from),
        (0..N).prop_map(|i| i.to_string()),
    ];
    let attribute = || prop::sample::select(vec!["color", "price", "tags", "code"]);
    let wanted = prop::collection::vec(value, 0..4);
    let operator = prop::sample::select(vec!["<", "<=", ">", ">="]);
    let bound = prop::sample::select(vec![-3.0, 0.0, 19.99, 20.0, 100.0, 1490.0]);
    let leaf = prop_oneof![
        (attribute(), wanted.clone()).prop_map(|(a, v)| Tree::In(a, v)),
        (attribute(), wanted).prop_map(|(a, v)| Tree::NotIn(a, v)),
        attribute().prop_map(Tree::Has),
        (attribute(), operator, bound).prop_map(|(a, o, x)| Tree::Compare(a, o, x)),
        prop::collection::vec(0..2 * N as Row, 0..40).prop_map(Tree::Rows),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|t| Tree::Not(Box::new(t))),
            prop::collection::vec(inner.clone(), 0..4).prop_map(Tree::All),
            prop::collection::vec(inner, 0..4).prop_map(Tree::Any),
        ]
    })
}

/// The best `k` of the rows that pass, by sorting all scores.
fn sorted(table: &ItemTable, query: &[f32], k: usize, pass: impl Fn(Row) -> bool) -> Vec<Scored> {
    let mut all = match table.scheme() {
        // One product of f16 and f32 differs in rounding from decoding first.
        Scheme::F16 => table.top_k(query, N, &[]).unwrap(),
        _ => (0..N as Row)
            .map(|row| Scored {
                row,
                score: table.score(query, row).unwrap(),
            })
            .collect(),
    };
    all.retain(|s| pass(s.row));
    all.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.row.cmp(&b.row)));
    all.truncate(k);
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_selection_equals_evaluation_row_by_row(tree in trees()) {
        let rows: Vec<Row> = (0..N as Row).filter(|&r| tree.passes(r as usize)).collect();
        for bundle in bundles() {
            let selection = bundle.table().select(&tree.filter()).unwrap();
            prop_assert_eq!(selection.rows().collect::<Vec<_>>(), rows.clone());
            prop_assert_eq!(selection.len(), rows.len());
            prop_assert_eq!(selection.is_empty(), rows.is_empty());
            let again = Filter::available(selection.bitmap());
            prop_assert_eq!(&bundle.table().select(&again).unwrap(), &selection);
        }
        if let Some(text) = tree.text() {
            let parsed = Filter::parse(&text).unwrap();
            let selection = table().select(&parsed).unwrap();
            prop_assert_eq!(selection.rows().collect::<Vec<_>>(), rows, "{}", text);
        }
    }

    #[test]
    fn filtered_top_k_equals_a_sort_of_the_rows_that_pass(
        tree in trees(),
        seed in 0u64..1000,
        k in 1usize..60,
        excluded in prop::collection::vec(0..N as Row, 0..30),
    ) {
        let query = Rng(seed).vectors(DIM);
        for bundle in bundles() {
            let table = bundle.table();
            let within = table.select(&tree.filter()).unwrap();
            let top = table
                .top_k_within(Metric::Score, &query, k, &excluded, &within)
                .unwrap();
            let pass = |row: Row| tree.passes(row as usize) && !excluded.contains(&row);
            prop_assert_eq!(top, sorted(table, &query, k, pass));
        }
    }

    #[test]
    fn parsing_never_panics(text in ".*") {
        let _ = Filter::parse(&text);
    }

    #[test]
    fn parsing_word_soup_never_panics(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "a", "in", "IN", "not", "and", "or", "has", "(", ")", ",", "=", "==", "!=", "<>",
                "<", "<=", ">", ">=", "!", "\"", "'", "\\", "\"x y\"", "20", "-1e3", "ä", " ",
                "\u{0}", "\u{2028}",
            ]),
            0..40,
        ),
        gap in prop::sample::select(vec!["", " "]),
    ) {
        let text = words.join(gap);
        match Filter::parse(&text) {
            Ok(_) => {}
            Err(Error::FilterSyntax { position, .. }) => {
                prop_assert!((1..=text.chars().count() + 1).contains(&position));
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}

/// Both sides of the border below which rows are scored one by one, for all schemes.
#[test]
fn few_rows_give_the_same_answer_as_many() {
    let query = Rng(9).vectors(DIM);
    for bundle in bundles() {
        let table = bundle.table();
        for count in [0, 1, N / 64 - 1, N / 64, N / 64 + 1] {
            let rows: Vec<Row> = (0..count).map(|i| (i * 61 + 5) as Row).collect();
            let within = table.select(&Filter::rows(rows.clone())).unwrap();
            for metric in [Metric::Score, Metric::Cosine] {
                let top = table.top_k_within(metric, &query, 7, &[], &within).unwrap();
                let mut all = table.top_k_by(metric, &query, N, &[]).unwrap();
                all.retain(|s| rows.contains(&s.row));
                all.truncate(7);
                assert_eq!(top, all, "{:?} {metric:?} {count}", table.scheme());
            }
        }
    }
}

#[test]
fn the_text_form_means_what_it_says() {
    let p = |text| Filter::parse(text).unwrap();
    let a = || Filter::is_in("a", ["1"]);
    let b = || Filter::is_in("b", ["x y"]);
    let c = || Filter::has("c");
    assert_eq!(p("a = 1"), a());
    assert_eq!(p("  'a'==\"1\"\t"), a());
    assert_eq!(
        p("a = 1 and not b = 'x y' or c >= 2.5"),
        Filter::any([
            Filter::all([a(), Filter::not(b())]),
            Filter::range("c", 2.5..)
        ])
    );
    assert_eq!(
        p("a=1 and (b=\"x y\" OR has(c))"),
        Filter::all([a(), Filter::any([b(), c()])])
    );
    assert_eq!(p("a not in (1, 'x y')"), Filter::not_in("a", ["1", "x y"]));
    assert_eq!(p("a<>1"), Filter::not_in("a", ["1"]));
    assert_eq!(p(r"'o\'c' = '\\'"), Filter::is_in("o'c", ["\\"]));
    assert_eq!("'in' = 'not'".parse::<Filter>().unwrap(), {
        Filter::is_in("in", ["not"])
    });
    assert_eq!(
        p("preis.netto<-1e2"),
        Filter::range("preis.netto", ..-100.0)
    );
}

#[test]
fn syntax_errors_name_the_place_and_what_was_expected() {
    let cases = [
        ("", 1, "an attribute", "the end"),
        ("ä = ", 5, "a value", "the end"),
        ("a 5", 3, "`in`", "`5`"),
        ("a = 1 b", 7, "`and`, `or` or the end", "`b`"),
        ("(a = 1", 7, "`)`", "the end"),
        ("a in b", 6, "`(`", "`b`"),
        ("a in ()", 7, "a value", "`)`"),
        ("a in (1 2)", 9, "`,` or `)`", "`2`"),
        ("a < red", 5, "a number", "`red`"),
        ("a < inf", 5, "a number", "`inf`"),
        ("a = 'x", 7, "a closing `'`", "the end"),
        ("a = 'x\\n'", 7, "backslash", "something"),
        ("a not b", 7, "`in`", "`b`"),
        ("a ! b", 3, "an operator", "`!`"),
        ("a = in", 5, "quote it", "`in`"),
        ("has", 4, "the name", "the end"),
    ];
    for (text, at, wanted, got) in cases {
        match Filter::parse(text) {
            Err(Error::FilterSyntax {
                position,
                expected,
                found,
            }) => {
                assert_eq!(position, at, "{text}");
                assert!(expected.contains(wanted), "{text}: {expected}");
                assert!(found.contains(got), "{text}: {found}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn hostile_texts_are_refused_early() {
    let syntax = |text: &str| match Filter::parse(text) {
        Err(Error::FilterSyntax { expected, .. }) => expected,
        other => panic!("{other:?}"),
    };
    let deep = MAX_FILTER_BYTES / 4;
    assert!(syntax(&"(".repeat(deep)).contains("levels"));
    assert!(syntax(&"not ".repeat(deep)).contains("levels"));
    assert!(syntax(&" ".repeat(MAX_FILTER_BYTES + 1)).contains("bytes"));
    assert!(syntax(&vec!["a=1"; MAX_FILTER_TERMS + 1].join(" or ")).contains("conditions"));
    let fits = vec!["a=1"; MAX_FILTER_TERMS].join(" or ");
    assert!(Filter::parse(&fits).is_ok());
    let brackets = |n| format!("{}a=1{}", "(".repeat(n), ")".repeat(n));
    assert!(Filter::parse(&brackets(MAX_FILTER_DEPTH)).is_ok());
    assert!(Filter::parse(&brackets(MAX_FILTER_DEPTH + 1)).is_err());
}

#[test]
fn wrong_filters_give_typed_errors() {
    let select = |f: Filter| table().select(&f).unwrap_err();
    match select(Filter::not_in("colour", ["red"])) {
        Error::UnknownAttribute { got, known } => {
            assert_eq!(got, "colour");
            assert_eq!(known, ["code", "color", "price", "tags"]);
        }
        other => panic!("{other}"),
    }
    // Also where the outcome does not depend on it.
    let both = Filter::all([Filter::any([]), Filter::has("colour")]);
    assert!(matches!(select(both), Error::UnknownAttribute { .. }));
    for bitmap in [&[0u64; N / 64][..], &[0; N / 64 + 2]] {
        assert!(matches!(
            select(Filter::available(bitmap)),
            Error::Length { expected, .. } if expected == N.div_ceil(64)
        ));
    }
    let nan = Filter::range("price", f64::NAN..);
    assert!(matches!(select(nan), Error::InvalidArgument { .. }));
    let many = Filter::any(vec![Filter::has("tags"); MAX_FILTER_TERMS + 1]);
    assert!(matches!(select(many), Error::InvalidArgument { .. }));
    let folder = tempfile::tempdir().unwrap();
    let small = common::write_bundle(&folder.path().join("s.tercet"), 5, Scheme::F32);
    assert_eq!(small.len(), 5 * DIM);
    let other = Bundle::open(folder.path().join("s.tercet")).unwrap();
    let foreign = other.table().select(&Filter::all([])).unwrap();
    assert!(matches!(
        table().top_k_within(Metric::Score, &[0.0; DIM], 1, &[], &foreign),
        Err(Error::Length { .. })
    ));
}

#[test]
fn nesting_by_the_host_needs_no_stack() {
    let mut filter = Filter::has("color");
    for _ in 0..1_000_000 {
        filter = Filter::not(filter);
    }
    assert_eq!(filter.clone(), filter);
    let few = Filter::items(["item-3", "item-3", "nope"]);
    assert_eq!(
        table().select(&few).unwrap().rows().collect::<Vec<_>>(),
        [3]
    );
}

/// A damaged code must not slip through a filter that withholds items.
#[test]
fn stray_codes_are_errors() {
    for name in ["attr.color", "attr.tags"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.tercet");
        drop(write(&path, Scheme::F32));
        let file = path.join("items.safetensors");
        let mut bytes = std::fs::read(&file).unwrap();
        let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let offset = 8 + header + metadata.info(name).unwrap().data_offsets.0;
        bytes[offset..offset + 4].copy_from_slice(&77u32.to_le_bytes());
        std::fs::write(&file, &bytes).unwrap();
        let bundle = Bundle::open(&path).unwrap();
        let attribute = &name["attr.".len()..];
        for filter in [
            Filter::not_in(attribute, ["red", "new"]),
            Filter::has(attribute),
        ] {
            assert!(matches!(
                bundle.table().select(&filter),
                Err(Error::CorruptTensor { tensor, .. }) if tensor == name
            ));
        }
    }
}

/// Always the same user vector.
struct Fixed;

impl Tower for Fixed {
    fn run(&mut self, _: &[Input<'_>]) -> tercet::Result<Vec<f32>> {
        Ok(Rng(5).vectors(DIM))
    }
}

fn session(bundle: &Bundle) -> Session {
    Session::with_tower(bundle, Box::new(Fixed), SessionOptions::default()).unwrap()
}

#[test]
fn a_query_is_filled_with_items_that_pass() {
    for bundle in bundles() {
        let mut with_tower = session(bundle);
        let mut popular = Session::new(bundle, SessionOptions::default()).unwrap();
        with_tower.record(Event::new("item-2")).unwrap();
        for s in [&mut with_tower, &mut popular] {
            let blue = Filter::is_in("color", ["blau ä"]);
            let count = bundle.table().select(&blue).unwrap().len();
            let query = Query::top(count).include_seen(true).filter(blue);
            let top = s.recommend(&query).unwrap();
            assert_eq!(top.len(), count);
            let blue = |r: &Recommendation| color(r.row as usize).as_deref() == Some("blau ä");
            assert!(top.iter().all(blue));
            // A second filter narrows the first; a value without items matches nothing.
            let query = query.filter(Filter::has("price"));
            let top = s.recommend(&query).unwrap();
            assert!(top.len() < count && top.iter().all(blue));
            let none = query.filter(Filter::is_in("tags", ["nowhere"]));
            assert!(s.recommend(&none).unwrap().is_empty());
            let wrong = Query::top(3).filter(Filter::has("size"));
            assert!(matches!(
                s.recommend(&wrong),
                Err(Error::UnknownAttribute { .. })
            ));
        }
    }
}

/// Maximal marginal relevance as in the paper, in f64 and without any cleverness.
fn reference(
    table: &ItemTable,
    ranked: &[Recommendation],
    lambda: f64,
    k: usize,
    pool: usize,
) -> Vec<Row> {
    let pool = &ranked[..pool.min(ranked.len())];
    let scores = || pool.iter().map(|r| f64::from(r.score));
    let (low, high) = (
        scores().fold(f64::MAX, f64::min),
        scores().fold(f64::MIN, f64::max),
    );
    let cosine = |a: Row, b: Row| {
        let (x, y) = (table.vector(a).unwrap(), table.vector(b).unwrap());
        let dot = |x: &[f32], y: &[f32]| -> f64 {
            x.iter()
                .zip(y)
                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                .sum()
        };
        dot(&x, &y) / (dot(&x, &x) * dot(&y, &y)).sqrt()
    };
    let mut picked = vec![pool[0].row];
    while picked.len() < k.min(pool.len()) {
        let mut rest: Vec<(f64, Row)> = pool
            .iter()
            .filter(|r| !picked.contains(&r.row))
            .map(|r| {
                let relevance = (f64::from(r.score) - low) / (high - low);
                let near = picked.iter().map(|&p| cosine(r.row, p));
                let near = near.fold(f64::MIN, f64::max);
                ((1.0 - lambda) * relevance - lambda * near, r.row)
            })
            .collect();
        rest.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        picked.push(rest[0].1);
    }
    picked
}

#[test]
fn diversity_is_maximal_marginal_relevance() {
    for bundle in bundles() {
        let mut s = session(bundle);
        let ranked = s.recommend(&Query::top(200)).unwrap();
        let rows = |top: &[Recommendation]| top.iter().map(|r| r.row).collect::<Vec<_>>();
        for lambda in [0.1, 0.3, 0.5, 0.9, 1.0] {
            let default = s.recommend(&Query::top(12).diversity(lambda)).unwrap();
            let expected = reference(bundle.table(), &ranked, f64::from(lambda), 12, 100);
            assert_eq!(rows(&default), expected, "{lambda}");
            let query = Query::top(30).diversity(lambda).pool(40);
            let top = s.recommend(&query).unwrap();
            let expected = reference(bundle.table(), &ranked, f64::from(lambda), 30, 40);
            assert_eq!(rows(&top), expected, "{lambda}");
            // Scores are those of the plain ranking.
            for r in &top {
                assert!(ranked.iter().any(|x| x.row == r.row && x.score == r.score));
            }
            // Beyond the pool the order is the score's.
            let top = s.recommend(&query.pool(10)).unwrap();
            assert_eq!(rows(&top)[10..], rows(&ranked)[10..30]);
        }
        let plain = s.recommend(&Query::top(12)).unwrap();
        for off in [0.0, -0.0] {
            let query = Query::top(12).diversity(off).pool(MAX_POOL);
            assert_eq!(s.recommend(&query).unwrap(), plain);
        }
    }
}

#[test]
fn diversity_works_with_filters_and_more_items_than_there_are() {
    let mut s = session(&bundles()[2]);
    let filter = Filter::rows([3, 9, 12, 70]);
    let query = Query::top(50).filter(filter).diversity(0.5);
    let top = s.recommend(&query).unwrap();
    let mut rows: Vec<Row> = top.iter().map(|r| r.row).collect();
    rows.sort_unstable();
    assert_eq!(rows, [3, 9, 12, 70]);
    let none = query.filter(Filter::any([]));
    assert!(s.recommend(&none).unwrap().is_empty());
}

/// Four items: 0 and 1 are the same, 2 and 3 are mirror images beside them.
#[test]
fn ties_go_to_the_lower_row_and_twins_are_parted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.tercet");
    let mut vectors = vec![0.0f32; 5 * DIM];
    for (row, at) in [(0, 0), (1, 0), (2, 1), (3, 2)] {
        vectors[row * DIM + at] = 1.0;
    }
    let keys = ["a", "b", "c", "d", "zero"];
    let table = ItemTableBuilder::new(DIM, Scheme::F32, &keys, &vectors)
        .and_then(|t| t.popularity(&[0.5, 0.5, 0.1, 0.1, 0.05]))
        .unwrap();
    let mut writer = BundleWriter::create(&path).unwrap();
    writer.table(&table).unwrap();
    let bundle = writer.finish(manifest()).unwrap();
    let mut s = Session::new(&bundle, SessionOptions::default()).unwrap();
    let mut rows = |lambda: f32| -> Vec<Row> {
        let top = s.recommend(&Query::top(5).diversity(lambda)).unwrap();
        top.iter().map(|r| r.row).collect()
    };
    assert_eq!(rows(0.0), [0, 1, 2, 3, 4]);
    // 2, 3 and 4 (a zero vector, like nothing) tie at 0; the twin of 0 comes last.
    assert_eq!(rows(1.0), [0, 2, 3, 4, 1]);
    // Relevance of 0..4: 1, 1, 1/9, 1/9, 0. Second pick at λ = 0.7: b has 0.3 − 0.7 = −0.4,
    // c and d have 0.3 / 9, zero has 0.
    assert_eq!(rows(0.7), [0, 2, 3, 4, 1]);
    // At λ = 0.2: b has 0.8 − 0.2 = 0.6, c and d have 0.8 / 9.
    assert_eq!(rows(0.2), [0, 1, 2, 3, 4]);
}

#[test]
fn settings_out_of_range_are_refused() {
    let mut s = session(&bundles()[0]);
    for lambda in [-0.1, 1.001, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(matches!(
            s.recommend(&Query::top(3).diversity(lambda)),
            Err(Error::InvalidArgument { .. })
        ));
    }
    for pool in [0, MAX_POOL + 1, usize::MAX] {
        assert!(matches!(
            s.recommend(&Query::top(3).diversity(0.5).pool(pool)),
            Err(Error::InvalidArgument { .. })
        ));
    }
    for k in [0, usize::MAX] {
        let all = s.recommend(&Query::top(k).diversity(0.5));
        assert_eq!(all.map(|a| a.len()).ok(), (k > 0).then_some(N));
    }
}
