//! Sessions as a host sees them, with a host's own tower (no ONNX engine needed).

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{DIM, WINDOW, bundle, manifest};
use tercet::{
    Bundle, BundleWriter, Error, Event, History, Input, InputData, ItemTableBuilder, Query,
    Recorded, Scheme, Session, SessionOptions, Tower,
};

/// Sum of the masked items, plus e₀ so that an empty history has a prior.
struct Sum(Arc<AtomicUsize>);

impl Tower for Sum {
    fn run(&mut self, inputs: &[Input<'_>]) -> tercet::Result<Vec<f32>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        let names: Vec<&str> = inputs.iter().map(|i| i.name).collect();
        assert_eq!(names, ["items", "behaviors", "mask"]);
        assert_eq!(inputs[0].shape, [1, WINDOW, DIM]);
        let (InputData::F32(items), InputData::F32(mask)) = (inputs[0].data, inputs[2].data) else {
            panic!("types");
        };
        // Left padding: no event after a gap.
        assert!(mask.windows(2).all(|w| w[0] <= w[1]), "{mask:?}");
        let mut out = vec![0.0; DIM];
        out[0] = 1e-3;
        for (x, m) in items.chunks(DIM).zip(mask) {
            out.iter_mut().zip(x).for_each(|(o, x)| *o += x * m);
        }
        Ok(out)
    }
}

fn session(bundle: &Bundle) -> (Session, Arc<AtomicUsize>) {
    let runs = Arc::new(AtomicUsize::new(0));
    let tower = Box::new(Sum(runs.clone()));
    let session = Session::with_tower(bundle, tower, SessionOptions::default()).unwrap();
    (session, runs)
}

#[test]
fn seen_and_excluded_items_stay_out_and_k_is_filled() {
    let (_folder, _, bundle) = bundle(30, Scheme::Int8);
    let (mut s, _) = session(&bundle);
    for key in ["item-1", "item-2", "item-1"] {
        assert_eq!(
            s.record(Event::new(key).behavior("view")).unwrap(),
            Recorded::Known
        );
    }
    let top = s
        .recommend(&Query::top(27).exclude(["item-3", "nope"]))
        .unwrap();
    assert_eq!(top.len(), 27);
    for absent in ["item-1", "item-2", "item-3"] {
        assert!(top.iter().all(|r| r.item != absent));
    }
    assert!(top.windows(2).all(|w| w[0].score >= w[1].score));
    let all = s.recommend(&Query::top(100).include_seen(true)).unwrap();
    assert_eq!(all.len(), 30);
    assert!(matches!(
        s.recommend(&Query::top(0)),
        Err(Error::InvalidArgument { .. })
    ));
}

#[test]
fn the_user_vector_is_cached_until_the_next_event() {
    let (_folder, _, bundle) = bundle(30, Scheme::F32);
    let (mut s, runs) = session(&bundle);
    assert_eq!(s.user_vector().unwrap()[0], 1e-3);
    s.recommend(&Query::top(3)).unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 1);
    s.record(Event::new("item-4")).unwrap();
    s.recommend(&Query::top(3)).unwrap();
    s.rank(&["item-5"]).unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 2);
}

#[test]
fn only_the_latest_window_reaches_the_tower() {
    let (_folder, _, bundle) = bundle(30, Scheme::F32);
    let (mut a, _) = session(&bundle);
    let (mut b, _) = session(&bundle);
    for i in 0..10 {
        a.record(Event::new(format!("item-{i}"))).unwrap();
    }
    for i in 6..10 {
        b.record(Event::new(format!("item-{i}"))).unwrap();
    }
    assert_eq!(a.user_vector().unwrap(), b.user_vector().unwrap());
}

#[test]
fn unknown_items_are_counted_and_kept_from_the_tower() {
    let (_folder, _, bundle) = bundle(30, Scheme::F32);
    let (mut s, _) = session(&bundle);
    let before = s.user_vector().unwrap().to_vec();
    assert_eq!(
        s.record(Event::new("from-tomorrow")).unwrap(),
        Recorded::UnknownItem
    );
    assert_eq!(s.user_vector().unwrap(), before);
    assert_eq!((s.history().len(), s.history().unknown_items()), (1, 1));
    let e = s
        .record(Event::new("item-1").behavior("stare"))
        .unwrap_err();
    assert!(matches!(e, Error::UnknownBehavior { .. }));
    assert!(s.record(Event::new("")).is_err());
    assert_eq!(s.history().len(), 1);
}

#[test]
fn a_full_history_forgets_the_oldest_and_sees_it_again() {
    let (_folder, _, bundle) = bundle(5, Scheme::F32);
    let tower = Box::new(Sum(Arc::default()));
    let options = SessionOptions::default().max_history(2);
    let mut s = Session::with_tower(&bundle, tower, options).unwrap();
    for key in ["item-0", "unknown", "item-1"] {
        s.record(Event::new(key)).unwrap();
    }
    let top = s.recommend(&Query::top(5)).unwrap();
    assert!(top.iter().any(|r| r.item == "item-0") && top.iter().all(|r| r.item != "item-1"));
    assert!(Session::new(&bundle, SessionOptions::default().max_history(0)).is_err());
}

#[test]
fn rank_agrees_with_recommend() {
    for scheme in [Scheme::F32, Scheme::F16, Scheme::Int8] {
        let (_folder, _, bundle) = bundle(40, scheme);
        let (mut s, _) = session(&bundle);
        s.record(Event::new("item-7")).unwrap();
        let top = s.recommend(&Query::top(5)).unwrap();
        let mut keys: Vec<&str> = top.iter().map(|r| r.item.as_str()).collect();
        keys.reverse();
        keys.extend(["nope", keys[0], "nada"]);
        let ranking = s.rank(&keys).unwrap();
        assert_eq!(ranking.unknown, ["nope", "nada"]);
        let ranked: Vec<&str> = ranking.ranked.iter().map(|r| r.item.as_str()).collect();
        let want: Vec<&str> = top.iter().map(|r| r.item.as_str()).collect();
        assert_eq!(ranked, want);
        for (a, b) in ranking.ranked.iter().zip(&top) {
            assert!((a.score - b.score).abs() < 1e-5);
        }
    }
}

fn axes() -> (tempfile::TempDir, Bundle) {
    let folder = tempfile::tempdir().unwrap();
    let keys = ["x", "y", "x2", "y2", "xy"];
    let mut v = vec![0.0f32; 5 * DIM];
    for (row, (a, b)) in [(1.0, 0.0), (0.0, 1.0), (2.0, 0.0), (0.0, 0.5), (3.0, 1.0)]
        .iter()
        .enumerate()
    {
        (v[row * DIM], v[row * DIM + 1]) = (*a, *b);
    }
    let table = ItemTableBuilder::new(DIM, Scheme::F32, &keys, &v).unwrap();
    let mut writer = BundleWriter::create(folder.path().join("b")).unwrap();
    writer.table(&table).unwrap();
    let bundle = writer.finish(manifest()).unwrap();
    (folder, bundle)
}

#[test]
fn because_tells_what_each_history_item_adds_to_the_score() {
    let (_folder, bundle) = axes();
    let (mut s, _) = session(&bundle);
    s.record(Event::new("x")).unwrap();
    s.record(Event::new("y")).unwrap();
    let top = s.recommend(&Query::top(3).explain(true)).unwrap();
    // user = (1.001, 1): xy = 4.003, x2 = 2.002, y2 = 0.5
    let keys: Vec<&str> = top.iter().map(|r| r.item.as_str()).collect();
    assert_eq!(keys, ["xy", "x2", "y2"]);
    // The tower sums: without x the user loses x, and xy · x = 3, xy · y = 1.
    let because = |r: &tercet::Recommendation| -> Vec<(String, f32, f32)> {
        let list = r.because.iter();
        list.map(|b| (b.item.clone(), b.contribution, b.share))
            .collect()
    };
    let close = |got: &[(String, f32, f32)], want: &[(&str, f32, f32)]| {
        assert_eq!(got.len(), want.len(), "{got:?}");
        for (g, w) in got.iter().zip(want) {
            assert_eq!(g.0, w.0);
            assert!(
                (g.1 - w.1).abs() < 1e-5 && (g.2 - w.2).abs() < 1e-5,
                "{g:?} {w:?}"
            );
        }
    };
    close(&because(&top[0]), &[("x", 3.0, 0.75), ("y", 1.0, 0.25)]);
    close(&because(&top[2]), &[("y", 0.5, 1.0)]);
    assert!(top.iter().flat_map(|r| &r.because).all(|b| b.member == 0));
    // Twice seen counts twice; what the tower no longer sees (window 4) does not count.
    for key in ["x", "y", "y", "y"] {
        s.record(Event::new(key)).unwrap();
    }
    let top = s.recommend(&Query::top(1).explain(true)).unwrap();
    // The tower sees x y y y. Without x an older y moves up, four of them: 3 · 1 − 1 lost.
    // Without y only the two x are left: 3 gained for 3 lost, nothing positive.
    close(&because(&top[0]), &[("x", 2.0, 1.0)]);
    let plain = s.recommend(&Query::top(3)).unwrap();
    assert!(plain.iter().all(|r| r.because.is_empty()));
}

#[test]
fn similar_is_by_cosine() {
    let (_folder, bundle) = axes();
    let s = Session::new(&bundle, SessionOptions::default()).unwrap();
    let like: Vec<String> = s
        .similar("x", 2)
        .unwrap()
        .into_iter()
        .map(|r| r.item)
        .collect();
    assert_eq!(like, ["x2", "xy"]);
    assert!(matches!(s.similar("nope", 2), Err(Error::UnknownItem)));
}

#[test]
fn without_a_tower_an_empty_history_gets_the_popular_items() {
    let (_folder, _, bundle) = bundle(10, Scheme::Int8);
    let mut s = Session::new(&bundle, SessionOptions::default()).unwrap();
    // popularity of row i is (7 i mod 10) / 10: 9/10 at row 7, 8/10 at 4, 7/10 at 1.
    let top = s.recommend(&Query::top(2).exclude(["item-4"])).unwrap();
    let keys: Vec<&str> = top.iter().map(|r| r.item.as_str()).collect();
    assert_eq!(keys, ["item-7", "item-1"]);
    assert_eq!(
        s.rank(&["item-1", "item-7"]).unwrap().ranked[0].item,
        "item-7"
    );
    s.record(Event::new("unknown")).unwrap();
    assert!(s.recommend(&Query::top(2)).is_ok());
    s.record(Event::new("item-1")).unwrap();
    assert!(matches!(
        s.recommend(&Query::top(2)),
        Err(Error::MissingTower { tower: "user" })
    ));
}

#[test]
fn saved_and_restored() {
    let (folder, _, bundle) = bundle(30, Scheme::Int8);
    let (mut s, _) = session(&bundle);
    s.record(Event::new("item-3").behavior("buy").at(1_700_000_000))
        .unwrap();
    s.record(Event::new("gone")).unwrap();
    s.record(Event::new("item-5")).unwrap();
    let file = folder.path().join("history.bin");
    s.save(&file).unwrap();
    s.save(&file).unwrap();
    let back = Session::restore(&bundle, &file, SessionOptions::default()).unwrap();
    assert_eq!(back.history(), s.history());
    // Only the latest events fit a smaller history.
    let small = SessionOptions::default().max_history(1);
    let back = Session::restore(&bundle, &file, small).unwrap();
    assert_eq!(back.history().events().next().unwrap().item, "item-5");
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        2,
        "no temporary file left"
    );
}

#[test]
fn a_snapshot_fits_a_later_bundle() {
    let (folder, path, old) = bundle(5, Scheme::Int8);
    let mut s = Session::new(&old, SessionOptions::default()).unwrap();
    assert_eq!(
        s.record(Event::new("item-8").behavior("buy")).unwrap(),
        Recorded::UnknownItem
    );
    let file = folder.path().join("h");
    s.save(&file).unwrap();
    common::write_bundle(&path, 9, Scheme::Int8);
    let new = Bundle::open(&path).unwrap();
    let mut s = Session::restore(&new, &file, SessionOptions::default()).unwrap();
    // Known now, so popularity no longer applies and the missing tower is noticed.
    assert!(matches!(
        s.recommend(&Query::top(1)),
        Err(Error::MissingTower { .. })
    ));
}

#[test]
fn erase_forgets_memory_and_file() {
    let (folder, _, bundle) = bundle(30, Scheme::F32);
    let (mut s, _) = session(&bundle);
    let fresh = s.user_vector().unwrap().to_vec();
    s.record(Event::new("item-3")).unwrap();
    let file = folder.path().join("h");
    s.save(&file).unwrap();
    s.erase(Some(&file)).unwrap();
    assert!(!file.exists());
    assert!(s.history().is_empty());
    assert_eq!(s.user_vector().unwrap(), fresh);
    assert_eq!(s.recommend(&Query::top(30)).unwrap().len(), 30);
    s.erase(Some(&file)).unwrap();
    s.erase(None).unwrap();
}

#[test]
fn debug_output_tells_nothing_about_the_user() {
    let (_folder, _, bundle) = bundle(30, Scheme::F32);
    let (mut s, _) = session(&bundle);
    s.record(Event::new("item-13")).unwrap();
    assert!(!format!("{s:?}").contains("item-13"));
}

#[test]
fn damaged_snapshots() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("h");
    let mut h = History::new(10).unwrap();
    h.push(Event::new("a").behavior("view").at(5)).unwrap();
    h.save(&file).unwrap();
    let good = std::fs::read(&file).unwrap();
    assert_eq!(History::load(&file, 10).unwrap(), h);
    let load = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        History::load(&file, 10)
    };
    for cut in 0..good.len() {
        assert!(
            matches!(load(&good[..cut]), Err(Error::Snapshot { .. })),
            "cut at {cut}"
        );
    }
    for i in 0..good.len() {
        let mut bad = good.clone();
        bad[i] ^= 0x40;
        let e = load(&bad).unwrap_err();
        assert!(
            matches!(
                e,
                Error::Snapshot { .. } | Error::UnsupportedSnapshot { .. }
            ),
            "byte {i}"
        );
    }
    let mut newer = good.clone();
    newer[8] = 4;
    assert!(matches!(
        load(&newer),
        Err(Error::UnsupportedSnapshot {
            got: 4,
            supported: 3,
            ..
        })
    ));
    let mut long = good.clone();
    long.push(0);
    assert!(matches!(load(&long), Err(Error::Snapshot { .. })));
    // A right checksum around a payload that promises 2⁶⁰ events.
    let mut lie = good[..12].to_vec();
    lie.extend_from_slice(&16u64.to_le_bytes());
    lie.extend_from_slice(&0u64.to_le_bytes());
    lie.extend_from_slice(&(1u64 << 60).to_le_bytes());
    lie.extend_from_slice(&crc32fast::hash(&lie).to_le_bytes());
    assert!(matches!(load(&lie), Err(Error::Snapshot { .. })));
    assert!(matches!(
        History::load(folder.path().join("none"), 1),
        Err(Error::Io { .. })
    ));
}

#[test]
fn bundles_are_shared_and_sessions_move_between_threads() {
    fn shared<T: Send + Sync>() {}
    fn moved<T: Send>() {}
    shared::<Bundle>();
    shared::<tercet::ItemTable>();
    shared::<Error>();
    moved::<Session>();
    moved::<tercet::UserTower>();
}
