//! Real ONNX files through the tract engine, from load to recommendation.
#![cfg(feature = "tract")]

mod common;

use common::{DIM, Rng, WINDOW, onnx, tower_bundle};
use tercet::{Error, Event, Query, Session, SessionOptions, score_histories};

fn towers() -> (Vec<u8>, Vec<u8>) {
    (
        onnx::user_tower("user_vector", WINDOW, DIM),
        onnx::fusion_tower(DIM),
    )
}

#[test]
fn a_session_runs_the_user_tower() {
    let folder = tempfile::tempdir().unwrap();
    let (user, fusion) = towers();
    let bundle = tower_bundle(folder.path(), &user, &fusion).unwrap();
    let mut s = Session::new(&bundle, SessionOptions::default()).unwrap();
    assert_eq!(
        s.user_vector().unwrap(),
        [0.0; DIM],
        "an all-zero mask runs"
    );
    s.record(Event::new("item-3").behavior("view")).unwrap();
    s.record(Event::new("item-4").behavior("buy")).unwrap();
    // item-3 = e3 + e4/2 with weight 1, item-4 = e4 + e5/2 with weight 2.
    let mut want = [0.0; DIM];
    (want[3], want[4], want[5]) = (1.0, 2.5, 1.0);
    assert_eq!(s.user_vector().unwrap(), want);
    // item-5 = e5 + e6/2 scores 1; item-19 = item-3 (19 mod 16) scores 1 + 2.5/2 = 2.25.
    let top = s.recommend(&Query::top(2)).unwrap();
    assert_eq!((top[0].item.as_str(), top[0].score), ("item-19", 2.25));
    assert_eq!((top[1].item.as_str(), top[1].score), ("item-5", 1.0));
}

#[test]
fn batches_equal_single_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (user, fusion) = towers();
    let bundle = tower_bundle(folder.path(), &user, &fusion).unwrap();
    let mut rng = Rng(5);
    let histories: Vec<Vec<(u32, i64)>> = (0..70)
        .map(|i| {
            (0..i % 9)
                .map(|_| (rng.next() % 20, i64::from(rng.next() % 3)))
                .collect()
        })
        .collect();
    let all = score_histories(&bundle, &histories).unwrap();
    assert_eq!(all.len(), 70 * DIM);
    let mut tower = bundle.load_user_tower().unwrap();
    for (i, history) in histories.iter().enumerate() {
        let one = tower
            .encode(bundle.table(), std::slice::from_ref(history))
            .unwrap();
        for (a, b) in one.iter().zip(&all[i * DIM..]) {
            assert!((a - b).abs() < 1e-6);
        }
    }
    let bad = |event| tower_error(tower_encode(&bundle, event));
    assert!(bad((20, 0)) && bad((0, 3)) && bad((0, -1)));
}

fn tower_encode(bundle: &tercet::Bundle, event: (u32, i64)) -> tercet::Result<Vec<f32>> {
    score_histories(bundle, &[vec![event]])
}

fn tower_error(result: tercet::Result<Vec<f32>>) -> bool {
    matches!(result, Err(Error::InvalidArgument { .. }))
}

#[test]
fn the_fusion_tower_takes_batches() {
    let folder = tempfile::tempdir().unwrap();
    let (user, fusion) = towers();
    let bundle = tower_bundle(folder.path(), &user, &fusion).unwrap();
    let mut tower = bundle.load_fusion_tower().unwrap();
    let features = Rng(3).vectors(40 * DIM);
    let present: Vec<f32> = (0..40).map(|i| (i % 2) as f32).collect();
    let got = tower.encode(40, &[&features], &present).unwrap();
    for (i, (a, b)) in got.iter().zip(&features).enumerate() {
        assert_eq!(*a, b * present[i / DIM]);
    }
    assert!(tower.encode(0, &[&[]], &[]).unwrap().is_empty());
    assert!(matches!(
        tower.encode(1, &[&features], &[1.0]),
        Err(Error::Length { .. })
    ));
    assert!(matches!(
        tower.encode(1, &[], &[]),
        Err(Error::Length { .. })
    ));
    assert!(matches!(
        tower.encode(1, &[&[f32::NAN; DIM]], &[1.0]),
        Err(Error::NonFinite { .. })
    ));
    assert!(matches!(
        tower.encode(1, &[&[0.0; DIM]], &[0.5]),
        Err(Error::InvalidArgument { .. })
    ));
}

#[test]
fn the_probe_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (user, fusion) = towers();
    let mut expected = vec!["item-19".to_string(), "item-5".to_string()];
    for (i, passed) in [(0, true), (1, false)] {
        if i == 1 {
            expected[1] = "item-9".into();
        }
        let bundle = tower_bundle(folder.path(), &user, &fusion).unwrap();
        let mut m = bundle.manifest().clone();
        m.probe = Some(tercet::bundle::Probe {
            history: [("item-3", "view"), ("item-4", "buy")]
                .map(|(item, behavior)| tercet::bundle::ProbeEvent {
                    item: item.into(),
                    behavior: behavior.into(),
                })
                .to_vec(),
            expected: expected.clone(),
            tolerance: Some(0.1),
        });
        std::fs::write(
            bundle.path().join("manifest.json"),
            serde_json::to_vec(&m).unwrap(),
        )
        .unwrap();
        let report = tercet::Bundle::open(bundle.path())
            .unwrap()
            .run_probe()
            .unwrap()
            .unwrap();
        assert_eq!((report.expected, report.passed), (2, passed));
    }
}

#[test]
fn bad_graphs_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let (user, fusion) = towers();
    let engine_error = |user: &[u8]| {
        let bundle = tower_bundle(folder.path(), user, &fusion).unwrap();
        let mut s = Session::new(&bundle, SessionOptions::default()).unwrap();
        match s.recommend(&Query::top(1)) {
            Err(Error::Engine { file, reason }) => {
                assert_eq!(file, "user_tower.onnx");
                reason
            }
            other => panic!("{other:?}"),
        }
    };
    engine_error(b"not a protobuf at all");
    engine_error(b"");
    engine_error(&user[..user.len() / 2]);
    let (known, unknown) = (b"ReduceSum", b"Frobnicat");
    let mut strange = user.clone();
    let at = strange.windows(known.len()).position(|w| w == known);
    strange[at.unwrap()..][..known.len()].copy_from_slice(unknown);
    assert!(engine_error(&strange).contains("Frobnicat"));
    assert!(engine_error(&onnx::user_tower("vector", WINDOW, DIM)).contains("user_vector"));
    assert!(engine_error(&onnx::user_tower("user_vector", WINDOW + 1, DIM)).contains("shape"));
    assert!(engine_error(&onnx::user_tower("user_vector", WINDOW, DIM * 2)).contains("shape"));
    assert!(engine_error(&onnx::fusion_tower(DIM)).contains("item_vector"));
}

#[test]
fn damaged_graphs_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let (user, fusion) = towers();
    let bundle = tower_bundle(folder.path(), &user, &fusion).unwrap();
    let file = bundle.path().join("user_tower.onnx");
    let mut rng = Rng(11);
    for _ in 0..60 {
        let mut bad = user.clone();
        for _ in 0..3 {
            let at = rng.next() as usize % bad.len();
            bad[at] = rng.next() as u8;
        }
        std::fs::write(&file, &bad).unwrap();
        // Any error, or any vector of the right length; never an unwinding panic.
        if let Ok(v) = score_histories(&bundle, &[vec![(1, 1)]]) {
            assert_eq!(v.len(), DIM);
        }
    }
}
