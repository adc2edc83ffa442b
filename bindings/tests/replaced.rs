//! What is guaranteed when a bundle's folder is incomplete, or changes under an open engine.

use tercet::{BundleWriter, ItemTableBuilder, Manifest, Scheme};
use tercet_ffi::types::{Options, Query};
use tercet_ffi::{Engine, Kind};

fn shop() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.tercet");
    tercet_fixtures::write_shop(&path).unwrap();
    let path = path.to_str().unwrap().to_string();
    (folder, path)
}

/// Another release at the same place, as an updater puts it: by rename.
fn replace(path: &str) {
    let vectors = vec![0.5f32; 16];
    let table = ItemTableBuilder::new(16, Scheme::Int8, &["new"], &vectors).unwrap();
    let table = table.popularity(&[1.0]).unwrap();
    let mut writer = BundleWriter::create(path).unwrap();
    writer.table(&table).unwrap();
    writer.finish(Manifest::new("shop", 4, 16, 8)).unwrap();
}

#[test]
fn an_engine_keeps_the_bundle_it_opened() {
    let (_folder, path) = shop();
    let engine = Engine::open(&path, &Options::default()).unwrap();
    let before = engine.recommend(Query::top(5)).unwrap();
    replace(&path);
    assert_eq!(engine.recommend(Query::top(5)).unwrap(), before);
    assert_eq!(engine.info().unwrap().bundle_version, 3);
    let fresh = Engine::open(&path, &Options::default()).unwrap();
    assert_eq!(fresh.recommend(Query::top(5)).unwrap()[0].item, "new");
}

#[test]
fn a_tower_of_another_release_never_meets_the_old_table() {
    let (_folder, path) = shop();
    // The tower is read when first needed: after the exchange.
    let engine = Engine::open(&path, &Options::default()).unwrap();
    replace(&path);
    let error = engine.recommend(Query::top(5)).unwrap_err();
    assert!(
        matches!(error.kind, Kind::Closed | Kind::NotFound),
        "{error:?}"
    );
    // A release with a tower in a file of the same name and size.
    let other = tempfile::tempdir().unwrap();
    let next = other.path().join("next.tercet");
    tercet_fixtures::write_shop(&next).unwrap();
    let manifest = next.join("manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let newer = text.replace("\"bundle_version\": 3", "\"bundle_version\": 4");
    assert_ne!(text, newer);
    let (_folder, path) = shop();
    let engine = Engine::open(&path, &Options::default()).unwrap();
    std::fs::write(manifest, newer).unwrap();
    std::fs::rename(&path, other.path().join("old.tercet")).unwrap();
    std::fs::rename(&next, &path).unwrap();
    let error = engine.recommend(Query::top(5)).unwrap_err();
    assert_eq!(error.kind, Kind::Closed);
    assert!(error.reason.contains("open it again"), "{error}");
}

#[test]
fn a_copied_table_survives_a_file_cut_short_in_place() {
    let (_folder, path) = shop();
    let options = Options {
        copy: true,
        ..Options::default()
    };
    let engine = Engine::open(&path, &options).unwrap();
    let before = engine.recommend(Query::top(5)).unwrap();
    let items = std::path::Path::new(&path).join("items.safetensors");
    std::fs::OpenOptions::new()
        .write(true)
        .open(items)
        .and_then(|file| file.set_len(100))
        .unwrap();
    assert_eq!(engine.recommend(Query::top(5)).unwrap(), before);
    let error = Engine::open(&path, &options).err().unwrap();
    assert_eq!(error.kind, Kind::CorruptBundle);
}

#[test]
fn a_missing_folder_is_not_a_damaged_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &std::path::Path| {
        let path = path.to_str().unwrap();
        Engine::open(path, &Options::default()).err().unwrap()
    };
    assert_eq!(open(&folder.path().join("none")).kind, Kind::NotFound);
    assert_eq!(open(folder.path()).kind, Kind::CorruptBundle);
    let path = folder.path().join("shop.tercet");
    tercet_fixtures::write_shop(&path).unwrap();
    std::fs::remove_file(path.join("items.safetensors")).unwrap();
    let error = open(&path);
    assert_eq!(error.kind, Kind::CorruptBundle);
    assert!(error.reason.contains("items.safetensors"), "{error}");
}
