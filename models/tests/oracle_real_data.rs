//! Published and independently computed figures on real data sets.
//!
//! The sets may not be redistributed: `TERCET_DATA_DIR` names the folder that holds them, and every
//! test prints "skipped" without it.

use std::path::PathBuf;

use tercet_models::baseline::ease::{Ease, EaseConfig};
use tercet_models::baseline::popularity::Popularity;
use tercet_models::data::inspect::inspect;
use tercet_models::data::{Dataset, FitOn, LoadOptions, Split};
use tercet_models::eval::{EvalProtocol, Scorer, evaluate};
use tercet_models::graph::normalized_bipartite;

/// Figures computed independently in f64 and given with four significant digits.
const EXACT: f64 = 1e-5;
/// Figures printed with four decimals.
const FOUR: f64 = 1e-4;

fn folder(name: &str) -> Option<PathBuf> {
    let Some(root) = std::env::var_os("TERCET_DATA_DIR") else {
        println!("skipped: TERCET_DATA_DIR is not set");
        return None;
    };
    let dir = PathBuf::from(root).join(name);
    if !dir.is_dir() {
        println!("skipped: no {}", dir.display());
        return None;
    }
    Some(dir)
}

fn open(name: &str, target: Option<&str>) -> Option<Dataset> {
    let options = LoadOptions {
        target_behavior: target.map(str::to_owned),
        ..LoadOptions::default()
    };
    folder(name).map(|dir| Dataset::open(dir, &options).unwrap())
}

fn check(
    scorer: &dyn Scorer,
    data: &Dataset,
    split: Split,
    users: usize,
    expected: &[(&str, f64, f64)],
) {
    let protocol = EvalProtocol {
        split,
        ks: vec![3, 5, 10, 20],
        ..EvalProtocol::default()
    };
    let report = evaluate(scorer, data, &protocol).unwrap();
    assert_eq!(report.users, users);
    for &(key, value, tolerance) in expected {
        let got = report.metric(key).unwrap();
        println!(
            "{} {} {key}: {got:.6}, expected {value}",
            data.name,
            split.name()
        );
        assert!(
            (got - value).abs() <= tolerance,
            "{key}: {got}, expected {value}"
        );
    }
}

#[test]
fn tiktok() {
    let Some(data) = open("tiktok-diffmm", None) else {
        return;
    };
    assert_eq!((data.num_users(), data.num_items()), (9308, 6710));
    let popularity = Popularity::fit(&data, FitOn::Train);
    check(
        &popularity,
        &data,
        Split::Test,
        6130,
        &[
            ("recall@20", 0.05971, EXACT),
            ("precision@20", 0.002985, EXACT),
            ("ndcg@20", 0.02549, EXACT),
        ],
    );
    check(
        &popularity,
        &data,
        Split::Valid,
        3051,
        &[
            ("recall@20", 0.06260, EXACT),
            ("precision@20", 0.003130, EXACT),
            ("ndcg@20", 0.02727, EXACT),
        ],
    );
    let ease = Ease::fit(
        &data,
        &EaseConfig {
            lambda: 100.0,
            ..EaseConfig::default()
        },
    )
    .unwrap();
    check(
        &ease,
        &data,
        Split::Test,
        6130,
        &[
            ("recall@20", 0.08434, EXACT),
            ("precision@20", 0.004217, EXACT),
            ("ndcg@20", 0.03755, EXACT),
        ],
    );
}

#[test]
fn baby() {
    let Some(data) = open("baby-diffmm", None) else {
        return;
    };
    assert_eq!((data.num_users(), data.num_items()), (19445, 7050));
    let popularity = Popularity::fit(&data, FitOn::Train);
    check(
        &popularity,
        &data,
        Split::Test,
        19445,
        &[
            ("recall@20", 0.04626, EXACT),
            ("precision@20", 0.002453, EXACT),
            ("ndcg@20", 0.01940, EXACT),
        ],
    );
    check(
        &popularity,
        &data,
        Split::Valid,
        19445,
        &[
            ("recall@20", 0.05046, EXACT),
            ("precision@20", 0.002787, EXACT),
            ("ndcg@20", 0.02101, EXACT),
        ],
    );
    let ease = Ease::fit(
        &data,
        &EaseConfig {
            lambda: 200.0,
            ..EaseConfig::default()
        },
    )
    .unwrap();
    check(
        &ease,
        &data,
        Split::Test,
        19445,
        &[
            ("recall@20", 0.08224, EXACT),
            ("precision@20", 0.004387, EXACT),
            ("ndcg@20", 0.03869, EXACT),
        ],
    );
}

/// The published train part is what is left of it and the validation part held out here.
#[test]
fn movielens_1m() {
    let Some(data) = open("ml1m-mm", None) else {
        return;
    };
    assert!(data.valid_from_train);
    check(
        &Popularity::fit(&data, FitOn::TrainValid),
        &data,
        Split::Test,
        6040,
        &[
            ("recall@10", 0.0664, FOUR),
            ("ndcg@10", 0.2003, FOUR),
            ("recall@20", 0.1142, FOUR),
            ("ndcg@20", 0.1900, FOUR),
        ],
    );
    let ease = Ease::fit(
        &data,
        &EaseConfig {
            lambda: 1000.0,
            fit_on: FitOn::TrainValid,
            ..EaseConfig::default()
        },
    )
    .unwrap();
    check(&ease, &data, Split::Test, 6040, &[("ndcg@20", 0.413, 5e-4)]);
}

#[test]
fn movielens_100k() {
    let Some(data) = open("ml100k-mm", None) else {
        return;
    };
    assert_eq!((data.num_users(), data.num_items()), (943, 1682));
    check(
        &Popularity::fit(&data, FitOn::TrainValid),
        &data,
        Split::Test,
        943,
        &[
            ("hit@10", 0.0859, FOUR),
            ("ndcg@10", 0.0449, FOUR),
            ("hit@20", 0.1262, FOUR),
            ("ndcg@20", 0.0550, FOUR),
        ],
    );
    let ease = Ease::fit(
        &data,
        &EaseConfig {
            lambda: 1000.0,
            fit_on: FitOn::TrainValid,
            ..EaseConfig::default()
        },
    )
    .unwrap();
    check(&ease, &data, Split::Test, 943, &[("ndcg@20", 0.0905, FOUR)]);
}

#[test]
fn movielens_100k_likes_only() {
    let Some(data) = open("ml100k-mm", Some("like")) else {
        return;
    };
    let popularity = Popularity::fit(&data, FitOn::TrainValid);
    check(&popularity, &data, Split::Test, 486, &[]);
}

#[test]
fn beauty() {
    let Some(data) = open("amazon-beauty-seq", None) else {
        return;
    };
    assert_eq!((data.num_users(), data.num_items()), (22363, 12101));
    check(
        &Popularity::fit(&data, FitOn::TrainValid),
        &data,
        Split::Test,
        22363,
        &[
            ("hit@5", 0.0077, FOUR),
            ("hit@10", 0.0135, FOUR),
            ("hit@20", 0.0217, FOUR),
            ("ndcg@20", 0.0081, FOUR),
        ],
    );
}

#[test]
fn yelp() {
    let Some(data) = open("yelp-seq", None) else {
        return;
    };
    check(
        &Popularity::fit(&data, FitOn::TrainValid),
        &data,
        Split::Test,
        30431,
        &[
            ("hit@5", 0.0056, FOUR),
            ("hit@10", 0.0096, FOUR),
            ("hit@20", 0.0158, FOUR),
        ],
    );
}

#[test]
fn industrial() {
    let Some(data) = open("amazon-industrial-text", None) else {
        return;
    };
    check(
        &Popularity::fit(&data, FitOn::TrainValid),
        &data,
        Split::Test,
        4533,
        &[
            ("hit@3", 0.0457, FOUR),
            ("hit@5", 0.0527, FOUR),
            ("hit@10", 0.0620, FOUR),
        ],
    );
}

#[test]
fn steam() {
    let Some(data) = open("steam-mb", Some("play")) else {
        return;
    };
    check(
        &Popularity::fit(&data, FitOn::Train),
        &data,
        Split::Test,
        3466,
        &[
            ("hit@10", 0.2435, FOUR),
            ("ndcg@10", 0.1488, FOUR),
            ("hit@20", 0.3113, FOUR),
            ("ndcg@20", 0.1659, FOUR),
        ],
    );
}

#[test]
fn retailrocket() {
    let Some(data) = open("retailrocket-mb", Some("buy")) else {
        return;
    };
    assert!(data.valid_from_train);
    check(
        &Popularity::fit(&data, FitOn::TrainValid),
        &data,
        Split::Test,
        2174,
        &[
            ("recall@10", 0.0382, FOUR),
            ("ndcg@10", 0.0208, FOUR),
            ("recall@20", 0.0455, FOUR),
            ("ndcg@20", 0.0226, FOUR),
        ],
    );
}

/// (folder, users, items, rows, pairs, sparsity, [(split, behaviour, rows, users, items)])
type Counts = (
    &'static str,
    usize,
    usize,
    usize,
    usize,
    f64,
    &'static [(&'static str, Option<&'static str>, usize, usize, usize)],
);

const COUNTS: &[Counts] = &[
    (
        "tiktok-diffmm",
        9308,
        6710,
        68722,
        68722,
        99.890,
        &[
            ("test", None, 6130, 6130, 1855),
            ("train", None, 59541, 9298, 6245),
            ("valid", None, 3051, 3051, 1272),
        ],
    ),
    (
        "baby-diffmm",
        19445,
        7050,
        160_792,
        160_792,
        99.883,
        &[
            ("test", None, 20559, 19445, 5465),
            ("train", None, 118_551, 19445, 7048),
            ("valid", None, 21682, 19445, 5560),
        ],
    ),
    (
        "ml1m-mm",
        6040,
        3260,
        998_539,
        998_539,
        94.929,
        &[
            ("test", None, 197_321, 6040, 3241),
            ("train", None, 801_218, 6040, 3260),
        ],
    ),
    (
        "ml100k-mm",
        943,
        1682,
        100_000,
        100_000,
        93.695,
        &[
            ("test", Some("like"), 486, 486, 315),
            ("train", Some("dislike"), 17063, 912, 1544),
            ("valid", Some("neutral"), 249, 249, 206),
        ],
    ),
    (
        "amazon-beauty-seq",
        22363,
        12101,
        198_502,
        198_502,
        99.927,
        &[
            ("test", None, 22363, 22363, 7978),
            ("train", None, 153_776, 22363, 12068),
            ("valid", None, 22363, 22363, 8351),
        ],
    ),
    (
        "yelp-seq",
        30431,
        20033,
        316_354,
        304_524,
        99.950,
        &[
            ("test", None, 30431, 30431, 12925),
            ("train", None, 255_492, 30431, 20019),
            ("valid", None, 30431, 30431, 12806),
        ],
    ),
    (
        "amazon-industrial-text",
        3285,
        3541,
        22743,
        21664,
        99.814,
        &[
            ("test", None, 4533, 1987, 1745),
            ("train", None, 13678, 3285, 3245),
            ("valid", None, 4532, 2011, 1848),
        ],
    ),
    (
        "retailrocket-mb",
        2174,
        30113,
        99555,
        79404,
        99.879,
        &[
            ("test", Some("buy"), 2174, 2174, 1907),
            ("train", Some("buy"), 9551, 2174, 6860),
            ("train", Some("cart"), 12456, 2061, 8639),
            ("train", Some("view"), 75374, 2083, 29521),
        ],
    ),
    (
        "steam-mb",
        12393,
        5155,
        199_281,
        128_804,
        99.798,
        &[
            ("test", Some("play"), 3466, 3466, 923),
            ("train", Some("play"), 63545, 11350, 3530),
            ("train", Some("purchase"), 121_872, 12393, 5113),
            ("valid", Some("purchase"), 3466, 3466, 909),
        ],
    ),
];

#[test]
fn counts() {
    for &(name, users, items, rows, pairs, sparsity, splits) in COUNTS {
        let Some(dir) = folder(name) else {
            continue;
        };
        let report = inspect(dir).unwrap();
        assert_eq!(
            (report.users, report.items, report.rows, report.pairs),
            (users, items, rows, pairs),
            "{name}"
        );
        assert!(
            (report.sparsity_percent - sparsity).abs() < 6e-4,
            "{name}: {}",
            report.sparsity_percent
        );
        for &(split, behavior, rows, users, items) in splits {
            let found = report
                .splits
                .iter()
                .find(|s| s.split.name() == split && s.behavior.as_deref() == behavior)
                .unwrap();
            assert_eq!(
                (found.rows, found.users, found.items),
                (rows, users, items),
                "{name} {split} {behavior:?}"
            );
        }
    }
}

/// The observed graph of DiffMM: sum of all entries, smallest and largest user-item entry.
#[test]
fn normalised_graphs_of_the_published_splits() {
    for (name, nnz, sum, smallest, largest) in [
        ("tiktok-diffmm", 135_100, 10_649.393_56, 0.002_288_959, 0.5),
        (
            "baby-diffmm",
            263_597,
            21_220.308_91,
            0.004_349_224,
            0.353_553_390_6,
        ),
    ] {
        let Some(data) = open(name, None) else { return };
        let rows = data.train_rows();
        let users = data.num_users();
        let edges = (0..users as u32).flat_map(|u| rows.row(u).iter().map(move |&i| (u, i)));
        let graph = normalized_bipartite(users, data.num_items(), edges, true).unwrap();
        assert_eq!(graph.nnz(), nnz);
        let total: f64 = graph.values().iter().map(|v| f64::from(*v)).sum();
        assert!((total - sum).abs() < 1e-6 * sum, "{total}");
        let between = || {
            graph
                .entries()
                .filter(|e| e.0 != e.1)
                .map(|e| f64::from(e.2))
        };
        let low = between().fold(f64::INFINITY, f64::min);
        let high = between().fold(0.0, f64::max);
        assert!(
            (low - smallest).abs() < 1e-8 && (high - largest).abs() < 1e-7,
            "{low} {high}"
        );
    }
}
