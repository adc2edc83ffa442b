//! Learning from feedback: direction, bounds, forgetting, items that come later, bad input.

mod common;

use common::{DIM, bundle, manifest};
use tercet::{
    Bundle, BundleWriter, Error, Event, Feedback, Input, ItemTableBuilder, MAX_FEEDBACK, Query,
    Ranking, Recommendation, Recorded, Scheme, Session, SessionOptions, Tower,
};

/// A user of whom nothing is known but one vector.
struct Fixed(Vec<f32>);

impl Tower for Fixed {
    fn run(&mut self, _: &[Input<'_>]) -> tercet::Result<Vec<f32>> {
        Ok(self.0.clone())
    }
}

fn session(bundle: &Bundle, adapt: bool) -> Session {
    let user: Vec<f32> = (0..DIM).map(|i| 0.1 + 0.01 * i as f32).collect();
    let options = SessionOptions::default().adapt(adapt);
    Session::with_tower(bundle, Box::new(Fixed(user)), options).unwrap()
}

/// Items along the axes: `x-0`, `x-1` on the first, `y-0`, `y-1` on the second, all of norm 2.
fn axes(folder: &std::path::Path, keys: &[&str]) -> Bundle {
    let mut vectors = vec![0.0f32; keys.len() * DIM];
    for (key, vector) in keys.iter().zip(vectors.chunks_mut(DIM)) {
        vector[usize::from(key.starts_with('y'))] = 2.0;
    }
    let table = ItemTableBuilder::new(DIM, Scheme::F32, keys, &vectors).unwrap();
    let mut writer = BundleWriter::create(folder.join("axes.tercet")).unwrap();
    writer.table(&table).unwrap();
    writer.finish(manifest()).unwrap()
}

fn bits(list: &[Recommendation]) -> Vec<(u32, u32)> {
    list.iter().map(|r| (r.row, r.score.to_bits())).collect()
}

fn score(ranking: &Ranking, item: &str) -> f32 {
    let found = ranking.ranked.iter().find(|r| r.item == item);
    found.unwrap().score
}

#[test]
fn feedback_moves_items_like_it_by_its_weight_and_fades() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = axes(folder.path(), &["x-0", "x-1", "y-0", "y-1"]);
    let all = ["x-0", "x-1", "y-0", "y-1"];
    let before = session(&bundle, false).rank(&all).unwrap();
    // Mean square norm 4; one unit of weight is 2 · 2 / 4 = 1 in the score of an item alike.
    for (feedback, weight) in [
        (Feedback::Positive, 0.3f32),
        (Feedback::Skipped, -0.01),
        (Feedback::Disliked, -0.05),
    ] {
        let mut s = session(&bundle, true);
        assert_eq!(
            s.feedback("x-0", feedback, Some(9)).unwrap(),
            Recorded::Known
        );
        let after = s.rank(&all).unwrap();
        for like in ["x-0", "x-1"] {
            let moved = score(&after, like) - score(&before, like);
            assert!((moved - weight).abs() < 1e-6, "{feedback:?} {like} {moved}");
        }
        assert_eq!(score(&after, "y-0"), score(&before, "y-0"));
        // Skips do not age what was said before, others do: 13 are two half-lives.
        for _ in 0..3 {
            s.feedback("nothing-1", Feedback::Skipped, None).unwrap();
        }
        assert_eq!(s.rank(&all).unwrap(), after);
        for _ in 0..13 {
            s.feedback("y-1", Feedback::Positive, None).unwrap();
        }
        let faded = score(&s.rank(&all).unwrap(), "x-1") - score(&before, "x-1");
        assert!((faded - weight / 4.0).abs() < 1e-6, "{feedback:?} {faded}");
    }
}

#[test]
fn what_is_disliked_does_not_come_again() {
    let (_folder, _, bundle) = bundle(30, Scheme::Int8);
    let mut s = session(&bundle, true);
    let first = s.recommend(&Query::top(1)).unwrap().remove(0);
    s.feedback(&first.item, Feedback::Disliked, None).unwrap();
    let all = s.recommend(&Query::top(30)).unwrap();
    assert_eq!(all.len(), 29);
    assert!(all.iter().all(|r| r.item != first.item));
    let all = s.recommend(&Query::top(30).include_seen(true)).unwrap();
    assert_eq!(all.len(), 30);
}

#[test]
fn forgetting_restores_the_static_ranking_to_the_bit() {
    for scheme in [Scheme::F32, Scheme::Int8, Scheme::TwoStage] {
        let (_folder, _, bundle) = bundle(200, scheme);
        let query = Query::top(50).explain(true);
        let mut fixed = session(&bundle, false);
        let want = fixed.recommend(&query).unwrap();
        let vector = fixed.user_vector().unwrap().to_vec();
        let mut s = session(&bundle, true);
        assert_eq!(s.recommend(&query).unwrap(), want);
        for i in 0..40 {
            let kind = [Feedback::Positive, Feedback::Skipped, Feedback::Disliked][i % 3];
            s.feedback(&format!("item-{i}"), kind, None).unwrap();
        }
        let learnt = s.recommend(&query).unwrap();
        assert_ne!(bits(&learnt), bits(&want));
        assert_eq!(s.user_vector().unwrap(), vector);
        assert_ne!(s.ranking_vector().unwrap(), vector);
        // Scores are those of the moved vector.
        let user = s.ranking_vector().unwrap();
        for r in &learnt {
            assert_eq!(r.score, bundle.table().score(&user, r.row).unwrap());
        }
        s.forget_feedback().unwrap();
        assert_eq!(s.kept_feedback().count(), 0);
        assert_eq!(bits(&s.recommend(&query).unwrap()), bits(&want));
        assert_eq!(s.ranking_vector().unwrap(), vector);
        s.feedback("item-1", Feedback::Positive, None).unwrap();
        s.erase(None).unwrap();
        assert_eq!(bits(&s.recommend(&query).unwrap()), bits(&want));
    }
}

#[test]
fn the_list_alone_decides() {
    let (_folder, _, bundle) = bundle(60, Scheme::Int8);
    let given: Vec<(String, Feedback)> = (0..MAX_FEEDBACK + 100)
        .map(|i| {
            let kind = [Feedback::Positive, Feedback::Skipped, Feedback::Disliked][i * 7 % 3];
            (format!("item-{}", i * 13 % 60), kind)
        })
        .collect();
    // One session is asked all the time, the other is given the kept part at once.
    let mut grown = session(&bundle, true);
    for (item, kind) in &given {
        grown.feedback(item, *kind, None).unwrap();
        grown.ranking_vector().unwrap();
    }
    let kept: Vec<(String, Feedback)> = grown
        .kept_feedback()
        .map(|(item, kind, _)| (item.to_string(), kind))
        .collect();
    assert_eq!(kept.len(), MAX_FEEDBACK);
    // A third are skips; the others make room.
    let skips = |list: &[(String, Feedback)]| {
        let skips = list.iter().filter(|(_, kind)| *kind == Feedback::Skipped);
        skips.count()
    };
    assert_eq!(skips(&kept), skips(&given));
    assert_eq!(kept.last(), given.last());
    let mut rebuilt = session(&bundle, true);
    for (item, kind) in &kept {
        rebuilt.feedback(item, *kind, None).unwrap();
    }
    assert_eq!(
        grown.ranking_vector().unwrap(),
        rebuilt.ranking_vector().unwrap()
    );
}

#[test]
fn the_list_is_bounded_and_skips_do_not_take_all_of_it() {
    let (_folder, _, bundle) = bundle(30, Scheme::Int8);
    let mut s = session(&bundle, true);
    let count = |s: &Session, kind| s.kept_feedback().filter(|(_, k, _)| *k == kind).count();
    s.feedback("item-0", Feedback::Disliked, None).unwrap();
    for i in 0..4 * MAX_FEEDBACK {
        let item = format!("item-{}", i % 30);
        s.feedback(&item, Feedback::Skipped, None).unwrap();
    }
    assert_eq!(s.kept_feedback().count(), MAX_FEEDBACK);
    assert_eq!(count(&s, Feedback::Disliked), 1);
    for i in 0..2 * MAX_FEEDBACK {
        let item = format!("item-{}", i % 30);
        s.feedback(&item, Feedback::Positive, None).unwrap();
    }
    assert_eq!(count(&s, Feedback::Disliked), 0);
    assert_eq!(count(&s, Feedback::Skipped), MAX_FEEDBACK / 2);
    assert_eq!(count(&s, Feedback::Positive), MAX_FEEDBACK / 2);
}

#[test]
fn unknown_items_count_once_a_bundle_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let old = axes(folder.path(), &["x-0", "y-0"]);
    let mut s = session(&old, true);
    let before = s.ranking_vector().unwrap();
    assert_eq!(
        s.feedback("x-new", Feedback::Positive, Some(-5)).unwrap(),
        Recorded::UnknownItem
    );
    assert_eq!(s.ranking_vector().unwrap(), before);
    // What a snapshot would keep, given to a session of a bundle that knows the item.
    let kept: Vec<_> = s.kept_feedback().collect();
    assert_eq!(kept, [("x-new", Feedback::Positive, Some(-5))]);
    let next = tempfile::tempdir().unwrap();
    let new = axes(next.path(), &["x-0", "x-new", "y-0"]);
    let mut later = session(&new, true);
    for (item, kind, at) in kept {
        assert_eq!(later.feedback(item, kind, at).unwrap(), Recorded::Known);
    }
    assert!(later.ranking_vector().unwrap()[0] > before[0]);
}

#[test]
fn reasons_add_up_to_what_feedback_adds() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = axes(folder.path(), &["x-0", "x-1", "y-0", "y-1"]);
    let mut s = session(&bundle, true);
    s.record(Event::new("y-0")).unwrap();
    s.feedback("x-0", Feedback::Positive, None).unwrap();
    s.feedback("x-0", Feedback::Positive, None).unwrap();
    let top = s.recommend(&Query::top(4).explain(true)).unwrap();
    let like = top.iter().find(|r| r.item == "x-1").unwrap();
    // The tower ignores the history, so feedback is the only reason.
    assert_eq!(like.because.len(), 1);
    assert_eq!(like.because[0].item, "x-0");
    let moved = s.rank(&["x-1"]).unwrap().ranked[0].score
        - session(&bundle, false).rank(&["x-1"]).unwrap().ranked[0].score;
    assert!((like.because[0].contribution - moved).abs() < 1e-6);
    let other = top.iter().find(|r| r.item == "y-1").unwrap();
    assert!(other.because.is_empty());
}

#[test]
fn bad_input_changes_nothing() {
    let (_folder, _, bundle) = bundle(30, Scheme::Int8);
    let mut closed = session(&bundle, false);
    let refused = closed.feedback("item-1", Feedback::Positive, None);
    let Err(Error::InvalidArgument { reason }) = refused else {
        panic!("{refused:?}");
    };
    assert!(reason.contains("SessionOptions::adapt"), "{reason}");
    closed.forget_feedback().unwrap();
    assert_eq!(closed.kept_feedback().count(), 0);
    let mut s = session(&bundle, true);
    let want = s.ranking_vector().unwrap();
    for key in [String::new(), "x".repeat(tercet::MAX_KEY_BYTES + 1)] {
        let refused = s.feedback(&key, Feedback::Positive, None);
        assert!(matches!(refused, Err(Error::InvalidArgument { .. })));
    }
    assert_eq!(s.kept_feedback().count(), 0);
    assert_eq!(s.ranking_vector().unwrap(), want);
}

#[test]
fn a_table_of_zeros_teaches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let table = ItemTableBuilder::new(DIM, Scheme::F32, &["a", "b"], &[0.0; 2 * DIM]).unwrap();
    let mut writer = BundleWriter::create(folder.path().join("zero.tercet")).unwrap();
    writer.table(&table).unwrap();
    let bundle = writer.finish(manifest()).unwrap();
    let mut s = session(&bundle, true);
    let before = s.ranking_vector().unwrap();
    s.feedback("a", Feedback::Positive, None).unwrap();
    assert_eq!(s.ranking_vector().unwrap(), before);
    assert_eq!(s.rank(&["a", "b"]).unwrap().ranked.len(), 2);
}

/// Files keep the feedback, also for sessions that do not learn.
#[test]
fn feedback_is_part_of_what_is_kept() {
    let (folder, _, bundle) = bundle(60, Scheme::Int8);
    let path = folder.path().join("snapshot");
    let learning = SessionOptions::default().adapt(true);
    let mut s = session(&bundle, true);
    for i in 0..5 {
        let kind = [Feedback::Positive, Feedback::Skipped, Feedback::Disliked][i % 3];
        s.feedback(&format!("item-{i}"), kind, Some(i as i64))
            .unwrap();
    }
    let kept: Vec<(String, Feedback, Option<i64>)> = s
        .kept_feedback()
        .map(|(item, kind, at)| (item.to_string(), kind, at))
        .collect();
    s.save(&path).unwrap();
    let of = |s: &Session| -> Vec<(String, Feedback, Option<i64>)> {
        s.kept_feedback()
            .map(|(item, kind, at)| (item.to_string(), kind, at))
            .collect()
    };
    let fixed = Session::restore(&bundle, &path, SessionOptions::default()).unwrap();
    assert_eq!(of(&fixed), kept);
    fixed.save(&path).unwrap();
    assert_eq!(
        of(&Session::restore(&bundle, &path, learning).unwrap()),
        kept
    );
    let text = s.export_user_data().unwrap();
    assert!(text.contains("\"feedback\": \"disliked\""), "{text}");
}

#[cfg(feature = "store")]
#[test]
fn a_durable_session_keeps_feedback_until_it_is_forgotten() {
    let (folder, _, bundle) = bundle(60, Scheme::Int8);
    let path = folder.path().join("history");
    let open = |yes| {
        let options = SessionOptions::default().adapt(yes);
        Session::open(&bundle, &path, options, &tercet::Durability::new()).unwrap()
    };
    let mut s = open(true);
    s.feedback("item-1", Feedback::Positive, None).unwrap();
    s.feedback("item-2", Feedback::Disliked, Some(7)).unwrap();
    drop(s);
    // One that does not learn keeps it as well.
    let mut s = open(false);
    s.record(Event::new("item-3")).unwrap();
    drop(s);
    let mut s = open(true);
    let kept: Vec<_> = s.kept_feedback().collect();
    assert_eq!(
        kept,
        [
            ("item-1", Feedback::Positive, None),
            ("item-2", Feedback::Disliked, Some(7))
        ]
    );
    s.forget_feedback().unwrap();
    drop(s);
    let s = open(true);
    assert_eq!((s.kept_feedback().len(), s.history().len()), (0, 1));
}
