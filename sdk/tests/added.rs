//! Items added on the device: beside a bundle, ranked with its rows.
#![cfg(feature = "compact")]

mod common;

use common::{DIM, Rng, keys, manifest, tensor_file};
use tercet::bundle::Modality;
use tercet::{
    Added, Bundle, BundleWriter, Error, Event, Filter, Input, InputData, ItemTableBuilder,
    MAX_ADDED, NewItem, Query, Recorded, Scheme, Session, SessionOptions, Together, Tower,
    recommend_together,
};

const N: usize = 100;
const TEXT: usize = 5;
const IMAGE: usize = 3;
const HIDDEN: usize = 2;

/// The weights of a student's fusion tower, drawn at random.
struct Weights {
    text: Vec<f32>,
    image: Vec<f32>,
    bias: Vec<f32>,
    out: Vec<f32>,
}

impl Weights {
    fn new(seed: u64) -> Self {
        let (mut r, width) = (Rng(seed), HIDDEN + DIM);
        Weights {
            text: r.vectors(TEXT * width),
            image: r.vectors(IMAGE * width),
            bias: r.vectors(width),
            out: r.vectors(HIDDEN * DIM),
        }
    }

    /// The tower's formula: mean 0.5 and inverse deviation 2 for the text, the image as it is.
    fn vector(&self, text: Option<&[f32]>, image: Option<&[f32]>) -> Vec<f32> {
        let width = HIDDEN + DIM;
        let mut s = self.bias.clone();
        let mut add = |x: Vec<f32>, w: &[f32]| {
            for (x, w) in x.iter().zip(w.chunks(width)) {
                s.iter_mut().zip(w).for_each(|(s, w)| *s += x * w);
            }
        };
        if let Some(text) = text {
            add(text.iter().map(|x| (x - 0.5) * 2.0).collect(), &self.text);
        }
        if let Some(image) = image {
            add(image.to_vec(), &self.image);
        }
        let mut v = s[HIDDEN..].to_vec();
        for (h, w) in s[..HIDDEN].iter().zip(self.out.chunks(DIM)) {
            v.iter_mut().zip(w).for_each(|(v, w)| *v += h.max(0.0) * w);
        }
        v
    }

    fn file(&self) -> Vec<u8> {
        let width = HIDDEN + DIM;
        tensor_file(vec![
            ("fusion.text.mean", vec![TEXT], vec![0.5; TEXT]),
            ("fusion.text.inv_std", vec![TEXT], vec![2.0; TEXT]),
            ("fusion.text.weight", vec![TEXT, width], self.text.clone()),
            ("fusion.text.bias", vec![width], vec![0.0; width]),
            (
                "fusion.image.weight",
                vec![IMAGE, width],
                self.image.clone(),
            ),
            ("fusion.image.bias", vec![width], vec![0.0; width]),
            ("fusion.bias", vec![width], self.bias.clone()),
            ("fusion.out.weight", vec![HIDDEN, DIM], self.out.clone()),
        ])
    }
}

/// Sum of the items of the history.
struct Sum;

impl Tower for Sum {
    fn run(&mut self, inputs: &[Input<'_>]) -> tercet::Result<Vec<f32>> {
        let (InputData::F32(items), InputData::F32(mask)) = (inputs[0].data, inputs[2].data) else {
            panic!("types");
        };
        let mut out = vec![0.0; DIM];
        out[0] = 1e-3;
        for (x, m) in items.chunks(DIM).zip(mask) {
            out.iter_mut().zip(x).for_each(|(o, x)| *o += x * m);
        }
        Ok(out)
    }
}

struct Shop {
    folder: tempfile::TempDir,
    weights: Weights,
    vectors: Vec<f32>,
}

impl Shop {
    fn new() -> Self {
        Shop {
            folder: tempfile::tempdir().unwrap(),
            weights: Weights::new(5),
            vectors: Rng(3).vectors(N * DIM),
        }
    }

    /// Items `item-0` to `item-{N−1}`, of which every third is red, every third blue.
    fn bundle(&self, name: &str, scheme: Scheme, partitions: usize, more: &[&str]) -> Bundle {
        let mut keys = keys(N);
        let mut vectors = self.vectors.clone();
        for (i, key) in more.iter().enumerate() {
            keys.push((*key).to_string());
            vectors.extend(Rng(100 + i as u64).vectors(DIM));
        }
        let n = keys.len();
        let color: Vec<_> = (0..n)
            .map(|i| [Some("red"), Some("blue"), None][i % 3])
            .collect();
        let tags: Vec<Vec<&str>> = (0..n).map(|i| ["a", "b"][..i % 3].to_vec()).collect();
        let year: Vec<Option<String>> = (0..n).map(|i| Some((1900 + i).to_string())).collect();
        let popularity: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let mut table = ItemTableBuilder::new(DIM, scheme, &keys, &vectors)
            .and_then(|t| t.popularity(&popularity))
            .and_then(|t| t.attribute("color", &color))
            .and_then(|t| t.attribute("year", &year))
            .and_then(|t| t.list_attribute("tags", &tags))
            .unwrap();
        if partitions > 0 {
            table = table.partitions(partitions).unwrap();
        }
        let mut writer = BundleWriter::create(self.folder.path().join(name)).unwrap();
        writer.table(&table).unwrap();
        writer
            .write_file("fusion_tower.safetensors", &self.weights.file())
            .unwrap();
        let mut m = manifest();
        m.engine.fusion_weights = Some("fusion_tower.safetensors".into());
        m.modalities = [("text", TEXT), ("image", IMAGE)]
            .map(|(name, dim)| Modality {
                name: name.into(),
                dim,
            })
            .to_vec();
        writer.finish(m).unwrap()
    }
}

fn session(bundle: &Bundle) -> Session {
    let options = SessionOptions::default();
    Session::with_tower(bundle, Box::new(Sum), options).unwrap()
}

fn text(seed: u64) -> Vec<f32> {
    Rng(seed).vectors(TEXT)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum()
}

#[test]
fn vectors_are_those_of_the_formula_for_any_subset_of_modalities() {
    let shop = Shop::new();
    let bundle = shop.bundle("b", Scheme::F32, 0, &[]);
    let mut s = session(&bundle);
    let (t, i) = (text(1), Rng(2).vectors(IMAGE));
    let items = [
        ("both", Some(&t), Some(&i)),
        ("text", Some(&t), None),
        ("image", None, Some(&i)),
    ];
    s.record(Event::new("item-3")).unwrap();
    for (key, text, image) in items {
        let mut item = NewItem::new(key);
        if let Some(text) = text {
            item = item.feature("text", text.clone());
        }
        if let Some(image) = image {
            item = item.feature("image", image.clone());
        }
        assert_eq!(s.add_item(item).unwrap(), Added::Ranked);
        let user = s.user_vector().unwrap().to_vec();
        let want = shop
            .weights
            .vector(text.map(Vec::as_slice), image.map(Vec::as_slice));
        let got = s.rank(&[key]).unwrap().ranked[0].score;
        assert!((f64::from(got) - dot(&user, &want)).abs() < 1e-4, "{key}");
    }
    let keys: Vec<_> = s.added_items().collect();
    assert_eq!(keys, [("both", true), ("text", true), ("image", true)]);
}

/// Every scheme, with and without partitions: the list is that of a sort of all items.
#[test]
fn added_items_are_ranked_with_the_rows_of_the_bundle() {
    let shop = Shop::new();
    for (b, (scheme, partitions)) in Scheme::ALL
        .into_iter()
        .map(|s| (s, 0))
        .chain([(Scheme::Int8, 7)])
        .enumerate()
    {
        let bundle = shop.bundle(&format!("b{b}"), scheme, partitions, &[]);
        let mut s = session(&bundle);
        for i in 0..40u64 {
            let item = NewItem::new(format!("new-{i}"))
                .feature("text", text(i))
                .attribute("color", [["red", "green"][i as usize % 2]])
                .attribute("year", [(1900 + i).to_string()]);
            s.add_item(item).unwrap();
        }
        s.record(Event::new("item-4")).unwrap();
        s.record(Event::new("new-6")).unwrap();
        let user = s.user_vector().unwrap().to_vec();
        let mut all: Vec<(f64, String, usize)> = Vec::new();
        for row in 0..N as u32 {
            let score = f64::from(bundle.table().score(&user, row).unwrap());
            let key = bundle.table().key(row).unwrap().to_string();
            all.push((score, key, row as usize));
        }
        for i in 0..40 {
            let vector = shop.weights.vector(Some(&text(i as u64)), None);
            all.push((dot(&user, &vector), format!("new-{i}"), N + i));
        }
        all.retain(|(_, key, _)| key != "item-4" && key != "new-6");
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let check = |got: &[tercet::Recommendation], want: &[(f64, String, usize)]| {
            assert_eq!(got.len(), want.len(), "{scheme}");
            for (g, w) in got.iter().zip(want) {
                assert!(
                    (f64::from(g.score) - w.0).abs() < 1e-4,
                    "{scheme} {g:?} {w:?}"
                );
            }
        };
        check(&s.recommend(&Query::top(30)).unwrap(), &all[..30]);
        check(&s.recommend(&Query::top(1000)).unwrap(), &all);
        // A value that only added items have, one that both have, and a range.
        let passes = |filter: &str, pass: &dyn Fn(&(f64, String, usize)) -> bool| {
            let query = Query::top(25).filter(Filter::parse(filter).unwrap());
            let want: Vec<_> = all.iter().filter(|x| pass(x)).cloned().collect();
            (query, want[..25.min(want.len())].to_vec())
        };
        let row = |x: &(f64, String, usize)| bundle.table().find(&x.1).unwrap();
        let new = |x: &(f64, String, usize)| x.2.checked_sub(N);
        let color = |x: &(f64, String, usize)| match (row(x), new(x)) {
            (_, Some(i)) => ["red", "green"][i % 2],
            (Some(_), _) => {
                let i: usize = x.1[5..].parse().unwrap();
                ["red", "blue", ""][i % 3]
            }
            _ => "",
        };
        let green = passes("color = green", &|x| color(x) == "green");
        let red = passes("color = red", &|x| color(x) == "red");
        let not_red = passes("color != red", &|x| color(x) != "red");
        let year = passes("year < 1920", &|x| {
            let i = new(x).unwrap_or_else(|| x.1[5..].parse().unwrap());
            i < 20
        });
        for (query, want) in [green, red, not_red, year] {
            check(&s.recommend(&query).unwrap(), &want);
        }
        // A bitmap of the bundle's rows lets added items pass.
        let none = vec![0u64; N.div_ceil(64)];
        let query = Query::top(200).filter(Filter::available(&none));
        let want: Vec<_> = all.iter().filter(|x| x.2 >= N).cloned().collect();
        check(&s.recommend(&query).unwrap(), &want);
        // Caps count both; explanations and likeness know both.
        let top = s
            .recommend(&Query::top(20).cap("color", 3).explain(true))
            .unwrap();
        let capped = |name: &str| {
            let has = |r: &&tercet::Recommendation| {
                let x = all.iter().find(|x| x.1 == r.item).unwrap();
                color(x) == name
            };
            top.iter().filter(has).count()
        };
        assert!(["red", "blue", "green"].iter().all(|c| capped(c) <= 3));
        assert!(
            top.iter()
                .flat_map(|r| &r.because)
                .any(|b| b.item == "new-6")
        );
        let like = s.similar("new-6", 5).unwrap();
        assert_eq!(like.len(), 5);
        assert!(like.iter().all(|r| r.item != "new-6"));
        s.recommend(
            &Query::top(9)
                .diversity(0.5)
                .popularity(0.3)
                .freshness("year", 1950.0, 9.0, 0.2),
        )
        .unwrap();
    }
}

#[test]
fn events_count_once_the_item_is_there_and_no_longer_when_it_is_gone() {
    let shop = Shop::new();
    let bundle = shop.bundle("b", Scheme::Int8, 0, &[]);
    let mut s = session(&bundle);
    assert_eq!(s.record(Event::new("new")).unwrap(), Recorded::UnknownItem);
    let before = s.user_vector().unwrap().to_vec();
    s.add_item(NewItem::new("new").feature("text", text(1)))
        .unwrap();
    let with = s.user_vector().unwrap().to_vec();
    assert_ne!(before, with);
    assert!(
        s.recommend(&Query::top(500))
            .unwrap()
            .iter()
            .all(|r| r.item != "new")
    );
    let again = NewItem::new("new").feature("text", text(2));
    assert_eq!(s.add_item(again).unwrap(), Added::Replaced);
    assert_ne!(s.user_vector().unwrap(), with);
    assert!(s.remove_item("new").unwrap());
    assert!(!s.remove_item("new").unwrap());
    assert_eq!(s.user_vector().unwrap(), before);
    assert_eq!(s.recommend(&Query::top(500)).unwrap().len(), N);
}

#[test]
fn snapshots_carry_added_items_to_the_next_bundle() {
    let shop = Shop::new();
    let old = shop.bundle("old", Scheme::Int8, 0, &[]);
    let mut s = session(&old);
    for key in ["new-1", "new-2"] {
        let item = NewItem::new(key)
            .feature("text", text(9))
            .attribute("color", ["green"]);
        s.add_item(item).unwrap();
    }
    s.record(Event::new("new-2")).unwrap();
    let path = shop.folder.path().join("snapshot");
    s.save(&path).unwrap();
    // The next bundle holds one of them by now.
    let next = shop.bundle("next", Scheme::F16, 0, &["new-1"]);
    let s = Session::restore(&next, &path, SessionOptions::default()).unwrap();
    assert_eq!(s.added_items().collect::<Vec<_>>(), [("new-2", true)]);
    let like = s.similar("new-2", 3).unwrap();
    assert_eq!(like.len(), 3);
    // A bundle without fusion tower keeps them for a later one, and saves them again.
    let path = shop.folder.path().join("plain");
    common::write_bundle(&path, 30, Scheme::Int8);
    let plain = Bundle::open(&path).unwrap();
    let snapshot = shop.folder.path().join("snapshot");
    let s = Session::restore(&plain, &snapshot, SessionOptions::default()).unwrap();
    let want = [("new-1", false), ("new-2", false)];
    assert_eq!(s.added_items().collect::<Vec<_>>(), want);
    s.save(&snapshot).unwrap();
    let mut s = Session::restore(&old, &snapshot, SessionOptions::default()).unwrap();
    let want = [("new-1", true), ("new-2", true)];
    assert_eq!(s.added_items().collect::<Vec<_>>(), want);
    s.erase(Some(&snapshot)).unwrap();
    assert_eq!(s.added_items().len(), 0);
    assert!(!snapshot.exists());
    assert!(matches!(s.similar("new-1", 1), Err(Error::UnknownItem)));
}

#[cfg(feature = "store")]
#[test]
fn a_durable_session_keeps_added_items() {
    let shop = Shop::new();
    let bundle = shop.bundle("b", Scheme::Int8, 0, &[]);
    let path = shop.folder.path().join("history");
    let open = || {
        let options = SessionOptions::default();
        Session::open(&bundle, &path, options, &tercet::Durability::new()).unwrap()
    };
    let item = |key: &str, seed| NewItem::new(key).feature("text", text(seed));
    let mut s = open();
    for (key, seed) in [("a", 1), ("b", 2), ("c", 3), ("b", 4)] {
        s.add_item(item(key, seed)).unwrap();
    }
    assert!(s.remove_item("a").unwrap());
    let (of_b, like) = (text(4), s.similar("b", 3).unwrap());
    drop(s);
    let s = open();
    let want = [("b", true), ("c", true)];
    assert_eq!(s.added_items().collect::<Vec<_>>(), want);
    assert_eq!(s.similar("b", 3).unwrap(), like);
    let data: serde_json::Value = serde_json::from_str(&s.export_user_data().unwrap()).unwrap();
    let kept = data["added_items"][0]["features"]["text"]
        .as_array()
        .unwrap();
    let kept: Vec<f32> = kept.iter().map(|x| x.as_f64().unwrap() as f32).collect();
    assert_eq!((&data["added_items"][0]["item"], kept), (&"b".into(), of_b));
}

#[test]
fn households_rank_the_items_of_the_bundle() {
    let shop = Shop::new();
    let bundle = shop.bundle("b", Scheme::Int8, 0, &[]);
    let (mut a, mut b) = (session(&bundle), session(&bundle));
    a.add_item(NewItem::new("new").feature("text", text(1)))
        .unwrap();
    a.record(Event::new("new")).unwrap();
    b.record(Event::new("item-1")).unwrap();
    let query = Query::top(500).explain(true).calibrate("color", 1.0);
    let top = recommend_together(
        &mut [(&mut a, 1.0), (&mut b, 1.0)],
        Together::Average,
        &query,
    )
    .unwrap();
    assert_eq!(top.len(), N - 1);
}

#[test]
fn bad_items_are_typed_errors_and_change_nothing() {
    let shop = Shop::new();
    let bundle = shop.bundle("b", Scheme::Int8, 0, &[]);
    let mut s = session(&bundle);
    let good = || NewItem::new("new").feature("text", text(1));
    let argument = |e: Error| matches!(e, Error::InvalidArgument { .. });
    for item in [
        NewItem::new("new"),
        NewItem::new("").feature("text", text(1)),
        NewItem::new("x".repeat(2000)).feature("text", text(1)),
        NewItem::new("new").feature("sound", vec![1.0]),
        NewItem::new("new").feature("te.xt", vec![1.0]),
        good().feature("text", text(2)),
        good().attribute("color", vec!["x"; 65]),
        good().attribute("color", ["x".repeat(2000)]),
        good().attribute("color", ["a"]).attribute("color", ["b"]),
    ] {
        let text = format!("{item:?}");
        assert!(argument(s.add_item(item).unwrap_err()), "{text}");
    }
    let short = NewItem::new("new").feature("text", vec![1.0; 4]);
    assert!(matches!(s.add_item(short), Err(Error::Length { .. })));
    let nan = NewItem::new("new").feature("text", vec![f32::NAN; TEXT]);
    assert!(matches!(s.add_item(nan), Err(Error::NonFinite { .. })));
    let unknown = good().attribute("size", ["xl"]);
    assert!(matches!(
        s.add_item(unknown),
        Err(Error::UnknownAttribute { .. })
    ));
    let known = NewItem::new("item-5").feature("text", text(1));
    assert_eq!(s.add_item(known).unwrap(), Added::InBundle);
    assert_eq!(s.added_items().len(), 0);
    for i in 0..MAX_ADDED {
        s.add_item(NewItem::new(format!("new-{i}")).feature("text", text(i as u64)))
            .unwrap();
    }
    assert!(argument(s.add_item(good()).unwrap_err()));
    assert_eq!(s.added_items().len(), MAX_ADDED);
    // A bundle without modalities has none to name.
    let (_folder, _, plain) = common::bundle(10, Scheme::F32);
    let mut s = session(&plain);
    assert!(argument(s.add_item(good()).unwrap_err()));
}
