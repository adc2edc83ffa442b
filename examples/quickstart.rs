//! A bundle in the life of an app: open, record, recommend, explain, save, erase.
//!
//! `cargo run --example quickstart`. The bundle is written by hand here, with item vectors one
//! can check in one's head; a real one comes out of `tercet export` and brings its own user tower.

use std::path::Path;

use anyhow::Result;
use tercet::{
    Bundle, BundleWriter, Event, Input, InputData, ItemTableBuilder, Manifest, Query, Scheme,
    Session, SessionOptions, Tower,
};

/// Values per item vector.
const DIM: usize = 16;
/// Events that the tower looks at.
const WINDOW: usize = 8;

/// Key, kind, share of all purchases. Items of one kind point in one direction.
const SHOP: [(&str, &str, f32); 6] = [
    ("espresso", "coffee", 0.30),
    ("filter", "coffee", 0.20),
    ("moka-pot", "coffee", 0.05),
    ("sencha", "tea", 0.25),
    ("assam", "tea", 0.15),
    ("soap", "bath", 0.05),
];

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("shop.tercet");
    write_bundle(&path)?;

    // Opening maps the table and checks its header. `verify` reads everything, which an app
    // does once, after the download.
    let bundle = Bundle::open(&path)?;
    bundle.verify()?;

    // A user of whom nothing is known gets what is popular.
    let mut session = Session::new(&bundle, SessionOptions::default())?;
    let top = session.recommend(&Query::top(2))?;
    assert_eq!(items(&top), ["espresso", "sencha"]);
    println!("new user:           {:?}", items(&top));

    // One view of a tea, and the other tea comes first. The session would load a user tower of
    // the bundle by itself; this bundle has none, so the app brings one.
    let mut session = Session::with_tower(&bundle, Box::new(Mean), SessionOptions::default())?;
    session.record(Event::new("sencha").behavior("view"))?;
    let top = session.recommend(&Query::top(2).explain(true))?;
    assert_eq!(top[0].item, "assam");
    assert_eq!(top[0].because[0].item, "sencha");
    println!("after one tea:      {:?}", items(&top));
    for r in &top {
        println!("  {:10} {:.3} because of {:?}", r.item, r.score, r.because);
    }

    // What must not be shown is left out during the search, so the list stays full.
    let top = session.recommend(&Query::top(2).exclude(["assam"]))?;
    assert_eq!(top.len(), 2);
    assert!(top.iter().all(|r| r.item != "assam"));
    println!("without assam:      {:?}", items(&top));

    // Candidates of the app's own, and items like a given one.
    let ranking = session.rank(&["soap", "assam", "no-such-item"])?;
    assert_eq!(items(&ranking.ranked), ["assam", "soap"]);
    assert_eq!(ranking.unknown, ["no-such-item"]);
    let similar = session.similar("espresso", 2)?;
    assert_eq!(items(&similar), ["filter", "moka-pot"]);
    println!("like espresso:      {:?}", items(&similar));

    // The history survives a restart, as one small file.
    let snapshot = folder.path().join("history");
    session.save(&snapshot)?;
    let restored = Session::restore(&bundle, &snapshot, SessionOptions::default())?;
    assert_eq!(restored.history().len(), 1);

    // And it can be forgotten, on disk too.
    session.erase(Some(&snapshot))?;
    assert!(session.history().is_empty());
    assert!(!snapshot.exists());
    println!("history erased");
    Ok(())
}

fn items(top: &[tercet::Recommendation]) -> Vec<&str> {
    top.iter().map(|r| r.item.as_str()).collect()
}

fn write_bundle(path: &Path) -> Result<()> {
    let mut vectors = vec![0.0f32; SHOP.len() * DIM];
    for (i, (_, kind, _)) in SHOP.iter().enumerate() {
        let direction = ["coffee", "tea", "bath"].iter().position(|k| k == kind);
        vectors[i * DIM + direction.unwrap_or(DIM - 1)] = 1.0;
        // A little of a direction of its own tells items of one kind apart.
        vectors[i * DIM + 4 + i] = 0.1 * (i + 1) as f32;
    }
    let keys = SHOP.map(|(key, ..)| key);
    let kinds = SHOP.map(|(_, kind, _)| Some(kind));
    let popularity = SHOP.map(|(.., share)| share);
    let table = ItemTableBuilder::new(DIM, Scheme::Int8, &keys, &vectors)?
        .popularity(&popularity)?
        .attribute("kind", &kinds)?;
    let mut manifest = Manifest::new("shop", 1, DIM, WINDOW);
    manifest.behaviors = ["any", "view", "buy"].map(String::from).to_vec();
    let mut writer = BundleWriter::create(path)?;
    writer.table(&table)?;
    writer.finish(manifest)?;
    Ok(())
}

/// A user tower in Rust: the mean of the items in the history.
struct Mean;

impl Tower for Mean {
    fn run(&mut self, inputs: &[Input<'_>]) -> tercet::Result<Vec<f32>> {
        let input = |name: &str| {
            let found = inputs.iter().find(|input| input.name == name);
            match found.map(|input| input.data) {
                Some(InputData::F32(values)) => values,
                _ => &[],
            }
        };
        // `items` is [B, L, D], `mask` [B, L] with 1 for real events; the result is [B, D].
        let mut out = Vec::new();
        let batch = input("items").chunks(WINDOW * DIM);
        for (items, mask) in batch.zip(input("mask").chunks(WINDOW)) {
            let events: f32 = mask.iter().sum();
            let mut user = [0.0f32; DIM];
            for (item, real) in items.chunks(DIM).zip(mask) {
                for (u, x) in user.iter_mut().zip(item) {
                    *u += x * real / events.max(1.0);
                }
            }
            out.extend(user);
        }
        Ok(out)
    }
}
