//! Writing then opening gives the same table; bundles appear whole or not at all.

mod common;

use common::{DIM, Rng, bundle, keys, manifest, write_bundle};
use tercet::{
    Bundle, BundleWriter, Error, ItemTableBuilder, LoadMode, Metric, OpenOptions, Scheme,
    TensorSpec, TensorWriter,
};

#[test]
fn every_scheme_and_column_comes_back() {
    for scheme in Scheme::ALL {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.tercet");
        let vectors = write_bundle(&path, 37, scheme);
        for mode in [LoadMode::Map, LoadMode::Read] {
            let bundle = OpenOptions::new().mode(mode).open(&path).unwrap();
            bundle.verify().unwrap();
            let table = bundle.table();
            assert_eq!(
                (table.len(), table.dim(), table.scheme()),
                (37, DIM, scheme)
            );
            for (row, key) in keys(37).iter().enumerate() {
                let row = row as u32;
                assert_eq!(table.key(row).unwrap(), key);
                assert_eq!(table.find(key).unwrap(), Some(row));
                let got = table.vector(row).unwrap();
                for (a, b) in got.iter().zip(&vectors[row as usize * DIM..]) {
                    let bound = match scheme {
                        Scheme::F32 => 0.0,
                        Scheme::F16 => 0.5f32.powi(11),
                        // step ≤ 1/7.5 + 1/1912.5, half of it, and a little rounding
                        Scheme::Int4 => 0.5 / 7.5 * 1.005,
                        // scale ≤ 1/127, three quarters of it, and a little rounding
                        _ => 0.75 / 127.0 * 1.0001,
                    };
                    assert!((a - b).abs() <= bound, "{scheme}: {a} {b}");
                }
                assert_eq!(table.bias(row), (row % 3) as f32 * 0.01);
                let color: &[&str] = [&["red"][..], &[], &["blau ä"]][row as usize % 3];
                assert_eq!(table.attribute("color", row).unwrap(), color);
                let tags = &["a", "b", "c"][..row as usize % 4];
                assert_eq!(table.attribute("tags", row).unwrap(), tags);
            }
            assert_eq!(table.find("item-37").unwrap(), None);
            assert_eq!(table.find("").unwrap(), None);
            assert_eq!(table.attributes().collect::<Vec<_>>(), ["color", "tags"]);
            assert_eq!(table.popularity().unwrap().len(), 37);
            assert!(matches!(table.key(37), Err(Error::InvalidArgument { .. })));
            assert!(matches!(
                table.attribute("size", 0),
                Err(Error::UnknownAttribute { .. })
            ));
        }
    }
}

#[test]
fn the_manifest_comes_back_and_names_every_file() {
    let (_folder, path, bundle) = bundle(5, Scheme::Int8);
    let m = bundle.manifest();
    assert_eq!(
        (m.bundle_id.as_str(), m.bundle_version, m.items),
        ("test", 7, 5)
    );
    assert_eq!(m.card["any"]["depth"][1], 2.5);
    assert_eq!(m.files.keys().collect::<Vec<_>>(), ["items.safetensors"]);
    let bytes = std::fs::metadata(path.join("items.safetensors"))
        .unwrap()
        .len();
    assert_eq!(m.files["items.safetensors"].bytes, bytes);
}

#[test]
fn the_ordinary_safetensors_crate_reads_the_table() {
    let (_folder, path, _) = bundle(13, Scheme::Int8);
    let bytes = std::fs::read(path.join("items.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("codes").unwrap().shape(), [13, DIM]);
    for (name, tensor) in file.tensors() {
        let offset = tensor.data().as_ptr() as usize - bytes.as_ptr() as usize;
        if !name.starts_with("pad.") && !tensor.data().is_empty() {
            assert_eq!(offset % 64, 0, "{name}");
        }
    }
}

#[test]
fn top_k_equals_a_full_sort() {
    for scheme in [Scheme::F32, Scheme::F16, Scheme::Int8] {
        for n in [1, 5, 1023, 1024, 1025, 3000] {
            let (_folder, _, bundle) = bundle(n, scheme);
            let table = bundle.table();
            let query = Rng(99).vectors(DIM);
            let exclude: Vec<u32> = (0..n as u32).filter(|r| r % 3 == 1).rev().collect();
            let mut all: Vec<(f32, u32)> = (0..n as u32)
                .filter(|r| r % 3 != 1)
                .map(|r| (table.score(&query, r).unwrap(), r))
                .collect();
            all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            for k in [1, 7, 100, n, n + 10, usize::MAX] {
                let top = table.top_k(&query, k, &exclude).unwrap();
                assert_eq!(top.len(), k.min(all.len()), "{scheme} n {n} k {k}");
                for (got, want) in top.iter().zip(&all) {
                    // f16: the scan widens in another order than the single score.
                    assert!((got.score - want.0).abs() < 1e-5, "{scheme} n {n} k {k}");
                    if scheme != Scheme::F16 {
                        assert_eq!(got.row, want.1, "{scheme} n {n} k {k}");
                    }
                }
            }
        }
    }
}

#[test]
fn cosine_ignores_norm_and_bias() {
    let folder = tempfile::tempdir().unwrap();
    let keys = ["long", "near", "zero"];
    let mut vectors = vec![0.0f32; 3 * DIM];
    (vectors[0], vectors[1]) = (100.0, 100.0);
    vectors[DIM] = 0.1;
    for scheme in [Scheme::F32, Scheme::F16, Scheme::Int8] {
        let path = folder.path().join(scheme.name());
        let mut writer = BundleWriter::create(&path).unwrap();
        let table = ItemTableBuilder::new(DIM, scheme, &keys, &vectors).unwrap();
        writer
            .table(&table.bias(&[9.0, 0.0, 9.0]).unwrap())
            .unwrap();
        let bundle = writer.finish(manifest()).unwrap();
        let mut query = vec![0.0; DIM];
        query[0] = 3.0;
        let top = bundle
            .table()
            .top_k_by(Metric::Cosine, &query, 3, &[])
            .unwrap();
        let rows: Vec<u32> = top.iter().map(|s| s.row).collect();
        assert_eq!(rows, [1, 0, 2], "{scheme}");
        // cos = 1, 1/√2 and 0.
        for (got, want) in top.iter().zip([1.0, 0.5f32.sqrt(), 0.0]) {
            assert!((got.score - want).abs() < 1e-5, "{scheme} {}", got.score);
        }
    }
}

#[test]
fn bad_arguments_are_typed_errors() {
    let (_folder, _, bundle) = bundle(5, Scheme::Int8);
    let table = bundle.table();
    let query = vec![1.0; DIM];
    assert!(matches!(
        table.top_k(&query, 0, &[]),
        Err(Error::InvalidArgument { .. })
    ));
    assert!(matches!(
        table.top_k(&query[1..], 1, &[]),
        Err(Error::Length {
            expected: 16,
            got: 15,
            ..
        })
    ));
    for bad in [f32::NAN, f32::INFINITY] {
        assert!(matches!(
            table.top_k(&[bad; DIM], 1, &[]),
            Err(Error::NonFinite { .. })
        ));
    }
    assert_eq!(table.top_k(&query, 1, &[u32::MAX, 0, 0]).unwrap().len(), 1);
}

#[test]
fn the_table_builder_refuses_bad_input() {
    let two = ["a", "b"];
    let vectors = vec![0.5f32; 2 * DIM];
    let new = |dim, keys: &[&str], vectors: &[f32]| {
        ItemTableBuilder::new(dim, Scheme::F16, keys, vectors).map(|_| ())
    };
    assert!(matches!(new(DIM, &[], &[]), Err(Error::EmptyTable)));
    assert!(matches!(
        new(15, &two, &vectors),
        Err(Error::InvalidArgument { .. })
    ));
    assert!(matches!(
        new(DIM, &two, &vectors[1..]),
        Err(Error::Length { .. })
    ));
    let mut bad = vectors.clone();
    bad[DIM + 3] = f32::NAN;
    assert!(matches!(
        new(DIM, &two, &bad),
        Err(Error::NonFinite { row: 1, .. })
    ));

    let folder = tempfile::tempdir().unwrap();
    let write = |keys: &[&str], vectors: &[f32], name: &str| {
        let path = folder.path().join(name);
        let mut writer = BundleWriter::create(&path).unwrap();
        let table = ItemTableBuilder::new(DIM, Scheme::F16, keys, vectors).unwrap();
        let error = writer.table(&table).unwrap_err();
        drop(writer);
        assert!(!path.exists());
        error
    };
    assert!(matches!(
        write(&["a", "a"], &vectors, "dup"),
        Error::DuplicateKey {
            first: 0,
            second: 1,
            ..
        }
    ));
    assert!(matches!(
        write(&["a", ""], &vectors, "empty"),
        Error::InvalidArgument { .. }
    ));
    bad[DIM + 3] = 1e6;
    assert!(matches!(
        write(&two, &bad, "f16"),
        Error::NonFinite { row: 1, .. }
    ));
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        0,
        "nothing left behind"
    );
}

#[test]
fn an_unfinished_bundle_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = BundleWriter::create(folder.path().join("b")).unwrap();
    writer.write_file("user_tower.onnx", b"x").unwrap();
    for bad in [
        "../x",
        "manifest.json",
        "items.safetensors",
        "user_tower.onnx",
        "",
    ] {
        assert!(
            matches!(
                writer.write_file(bad, b""),
                Err(Error::InvalidArgument { .. })
            ),
            "{bad}"
        );
    }
    assert!(matches!(writer.finish(manifest()), Err(Error::EmptyTable)));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_contradicting_manifest_is_not_published() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b");
    let vectors = vec![0.5f32; DIM];
    let table = ItemTableBuilder::new(DIM, Scheme::F32, &["a"], &vectors).unwrap();
    let mut m = manifest();
    m.engine.user_tower = Some("absent.onnx".into());
    let mut writer = BundleWriter::create(&path).unwrap();
    writer.table(&table).unwrap();
    assert!(matches!(writer.finish(m), Err(Error::Manifest { .. })));
    let mut m = manifest();
    m.dim = 32;
    let mut writer = BundleWriter::create(&path).unwrap();
    writer.table(&table).unwrap();
    assert!(matches!(writer.finish(m), Err(Error::Length { .. })));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_bundle_is_replaced_and_the_open_one_lives_on() {
    let (folder, path, old) = bundle(10, Scheme::Int8);
    write_bundle(&path, 20, Scheme::F16);
    assert_eq!(Bundle::open(&path).unwrap().table().len(), 20);
    assert_eq!(old.table().key(9).unwrap(), "item-9");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn something_else_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("photos");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("a.jpg"), b"x").unwrap();
    assert!(matches!(
        BundleWriter::create(&path),
        Err(Error::NotABundle { .. })
    ));
    let file = path.join("a.jpg");
    assert!(matches!(
        BundleWriter::create(&file),
        Err(Error::NotABundle { .. } | Error::Io { .. })
    ));
    assert!(file.exists());
}

#[test]
fn tensor_writer_checks_order_and_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let specs = [
        TensorSpec::new("a", safetensors::Dtype::U8, [3]),
        TensorSpec::new("b", safetensors::Dtype::F32, [2]),
    ];
    let mut w = TensorWriter::create(path("1"), &specs).unwrap();
    assert!(w.write("b", &[0; 8]).is_err());
    w.write("a", &[1, 2]).unwrap();
    assert!(w.write("b", &[0; 8]).is_err());
    w.write("a", &[3]).unwrap();
    assert!(w.write("b", &[0; 9]).is_err());
    w.write("b", &[0; 8]).unwrap();
    assert_eq!(w.finish().unwrap().bytes % 4, 0);
    assert!(
        TensorWriter::create(path("1"), &specs).is_err(),
        "does not overwrite"
    );
    let w = TensorWriter::create(path("2"), &specs).unwrap();
    assert!(w.finish().is_err());
    let twice = [specs[0].clone(), specs[0].clone()];
    assert!(TensorWriter::create(path("3"), &twice).is_err());
    let pad = [TensorSpec::new("pad.0", safetensors::Dtype::U8, [1])];
    assert!(TensorWriter::create(path("4"), &pad).is_err());
}
