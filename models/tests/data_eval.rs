//! Evaluation protocols and the closed-form baselines on data small enough to check by hand.

use tercet_models::Error;
use tercet_models::baseline::ease::{Ease, EaseConfig};
use tercet_models::baseline::popularity::Popularity;
use tercet_models::data::{Dataset, FitOn, HistoryEvent, IdMap, Interaction, Split};
use tercet_models::eval::{
    Candidates, EvalProtocol, EvalQuery, HistoryRule, MaskRule, Scorer, evaluate, queries,
};

fn data(rows: &[(u32, u32, Split)], users: usize, items: usize) -> Dataset {
    let rows = rows
        .iter()
        .map(|&(user, item, split)| Interaction {
            user,
            item,
            behavior: 0,
            split,
            time: 0,
            value: 1.0,
        })
        .collect();
    let keys = |n: usize| IdMap::new((0..n).map(|i| i.to_string())).unwrap();
    Dataset::new(
        "tiny",
        keys(users),
        keys(items),
        vec!["any".to_owned()],
        rows,
        false,
    )
    .unwrap()
}

fn tiny() -> Dataset {
    use Split::{Test, Train, Valid};
    data(
        &[
            (0, 0, Train),
            (0, 1, Train),
            (0, 2, Valid),
            (0, 3, Test),
            (1, 0, Train),
            (1, 2, Test),
            (1, 4, Test),
            (2, 1, Train),
            (2, 0, Train),
        ],
        3,
        5,
    )
}

#[test]
fn graph_splits_do_not_use_validation_rows() {
    let data = tiny();
    let test = queries(&data, &EvalProtocol::default()).unwrap();
    assert_eq!(test.len(), 2);
    assert_eq!(
        (&test[0].mask[..], &test[0].targets[..]),
        (&[0, 1][..], &[3][..])
    );
    let with = EvalProtocol {
        history: HistoryRule::TrainValid,
        mask: MaskRule::None,
        ..EvalProtocol::default()
    };
    let test = queries(&data, &with).unwrap();
    assert_eq!(test[0].history.len(), 3);
    assert!(test[0].mask.is_empty());
}

#[test]
fn popularity_by_hand() {
    // Counts 2 (item 0: users 0, 1, 2 → 3), item 1: 2, others 0.
    let data = tiny();
    assert_eq!(data.popularity(), [3, 2, 0, 0, 0]);
    let protocol = EvalProtocol {
        ks: vec![2],
        slices: true,
        ..EvalProtocol::default()
    };
    let report = evaluate(&Popularity::fit(&data, FitOn::Train), &data, &protocol).unwrap();
    // User 0: masked 0, 1; list 2, 3; target 3 at rank 2: recall 1, ndcg 1/log2(3), mrr 1/2.
    // User 1: masked 0; list 1, 2; targets 2, 4: recall 1/2, ndcg (1/log2 3)/(1 + 1/log2 3), mrr 1/2.
    let d = 1.0 / 3f64.log2();
    let close = |key: &str, value: f64| {
        let got = report.metric(key).unwrap();
        assert!((got - value).abs() < 1e-12, "{key} {got} {value}");
    };
    close("recall@2", 0.75);
    close("precision@2", 0.5);
    close("hit@2", 1.0);
    close("mrr@2", 0.5);
    close("ndcg@2", (d + d / (1.0 + d)) / 2.0);
    // Items 1, 2, 3 of 5 are shown.
    close("coverage@2", 0.6);
    // All targets have no training row.
    assert_eq!(report.slices["items:cold"].users, 2);
    assert!(!report.slices.contains_key("items:warm"));
    assert_eq!(report.slices["items:0-2"], report.slices["items:cold"]);
    assert!(!report.slices.contains_key("items:>5"));
    assert_eq!(report.slices["history:1-2"].users, 2);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["split"], "test");
    assert_eq!(json["protocol"], "full");
    assert_eq!(json["metrics"]["hit@2"], 1.0);
}

struct Fixed(Vec<f32>);

impl Scorer for Fixed {
    fn num_items(&self) -> usize {
        self.0.len()
    }

    fn score(&self, _: &[EvalQuery], out: &mut [f32]) -> Result<(), Error> {
        for row in out.chunks_mut(self.0.len()) {
            row.copy_from_slice(&self.0);
        }
        Ok(())
    }
}

#[test]
fn bad_scores_and_protocols_are_refused() {
    let data = tiny();
    let full = EvalProtocol::default();
    assert!(matches!(
        evaluate(&Fixed(vec![0.0, 0.0, f32::NAN, 0.0, 0.0]), &data, &full),
        Err(Error::Scores { .. })
    ));
    assert!(matches!(
        evaluate(&Fixed(vec![0.0; 4]), &data, &full),
        Err(Error::Config { .. })
    ));
    for ks in [vec![], vec![0]] {
        let protocol = EvalProtocol {
            ks,
            ..EvalProtocol::default()
        };
        assert!(matches!(
            evaluate(&Fixed(vec![0.0; 5]), &data, &protocol),
            Err(Error::Config { .. })
        ));
    }
}

#[test]
fn sampled_protocol_is_seeded_and_exact() {
    let mut rows = Vec::new();
    for u in 0..40 {
        for i in 0..10 {
            rows.push((u, (u + i * 7) % 100, Split::Train));
        }
        rows.push((u, (u + 3) % 100, Split::Test));
    }
    let data = data(&rows, 40, 100);
    let scorer = Fixed((0..100).map(|i| ((i * 37) % 101) as f32).collect());
    let run = |candidates, batch| {
        let protocol = EvalProtocol {
            candidates,
            batch,
            ..EvalProtocol::default()
        };
        evaluate(&scorer, &data, &protocol).unwrap()
    };
    let a = run(Candidates::Sampled { n: 20, seed: 1 }, 256);
    assert_eq!(a, run(Candidates::Sampled { n: 20, seed: 1 }, 3));
    assert_ne!(a, run(Candidates::Sampled { n: 20, seed: 2 }, 256));
    assert_eq!(a.protocol, "sampled:20");
    // More negatives than there are: the same as full ranking.
    let all = run(Candidates::Sampled { n: 1000, seed: 1 }, 256);
    assert_eq!(all.metrics, run(Candidates::Full, 256).metrics);
    // No negatives: every reachable target is first.
    assert_eq!(
        run(Candidates::Sampled { n: 0, seed: 1 }, 256).metric("mrr@10"),
        Some(1.0)
    );
    let few = EvalProtocol {
        max_users: Some(7),
        ..EvalProtocol::default()
    };
    assert_eq!(evaluate(&scorer, &data, &few).unwrap().users, 7);
}

#[test]
fn ease_by_hand() {
    // Two items, users {0, 1}, {0}: XᵀX + I = [[3, 1], [1, 2]], inverse [[2, −1], [−1, 3]] / 5.
    // B_01 = −P_01 / P_11 = 1/3, B_10 = −P_10 / P_00 = 1/2.
    let data = data(
        &[
            (0, 0, Split::Train),
            (0, 1, Split::Train),
            (1, 0, Split::Train),
            (1, 1, Split::Test),
        ],
        2,
        2,
    );
    let config = EaseConfig {
        lambda: 1.0,
        ..EaseConfig::default()
    };
    let ease = Ease::fit(&data, &config).unwrap();
    let close = |a: f32, b: f32| assert!((a - b).abs() < 1e-6, "{a} {b}");
    close(ease.weights()[[0, 1]], 1.0 / 3.0);
    close(ease.weights()[[1, 0]], 0.5);
    assert_eq!(ease.weights()[[0, 0]], 0.0);
    let query = |items: &[u32]| EvalQuery {
        user: 0,
        history: items
            .iter()
            .map(|&item| HistoryEvent { item, behavior: 0 })
            .collect(),
        mask: vec![],
        targets: vec![],
    };
    let mut out = [9.0; 4];
    // Repeats count once; an empty history gives zeros.
    ease.score(&[query(&[1, 1]), query(&[])], &mut out).unwrap();
    close(out[0], 0.5);
    assert_eq!(out[1..], [0.0; 3]);

    for config in [
        EaseConfig {
            lambda: 0.0,
            ..EaseConfig::default()
        },
        EaseConfig {
            lambda: f64::NAN,
            ..EaseConfig::default()
        },
        EaseConfig {
            max_items: 1,
            ..EaseConfig::default()
        },
    ] {
        assert!(matches!(
            Ease::fit(&data, &config),
            Err(Error::Config { .. })
        ));
    }
}
