//! Shop → teacher → student → bundle → device, and what becomes of a damaged bundle.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;
use tercet::{Bundle, Event, NewItem, Query, Session, SessionOptions};
use tercet_export::{BundleScorer, ExportOptions, Provenance, export};
use tercet_models::baseline::popularity::Popularity;
use tercet_models::data::synthetic::{SyntheticConfig, generate};
use tercet_models::data::{Dataset, Split};
use tercet_models::distill::{DistillConfig, Distiller};
use tercet_models::eval::{EvalProtocol, evaluate};
use tercet_models::run::{RunConfig, learner, scorer};
use tercet_models::student::Student;
use tercet_models::train::{Learner, Monitor};
use tercet_tests::Outcome;

fn shop() -> Outcome<Dataset> {
    Ok(generate(&SyntheticConfig {
        users: 500,
        items: 240,
        ..SyntheticConfig::default()
    })?)
}

/// A student after a few epochs of EASE's lists.
fn train(data: &Dataset) -> Outcome<Student> {
    let dev = Device::Cpu;
    let mut spec = RunConfig::new("ease")?;
    spec.set("lambda=[100.0]")?;
    let mut teacher = learner(&spec, data, &dev)?;
    teacher.train_epoch(0, &mut Monitor::silent())?;
    let teacher = scorer(&spec, &teacher.inference()?, data, &dev)?;
    let config = DistillConfig {
        dim: 32,
        fusion_hidden: 48,
        event_hidden: 64,
        readout_hidden: 64,
        window: Some(20),
        lr: 3e-3,
        batch: 128,
        ..DistillConfig::default()
    };
    let mut distiller = Distiller::new(data, config, vec![teacher], None, 1, &dev)?;
    for epoch in 0..6 {
        distiller.train_epoch(epoch, &mut Monitor::silent())?;
    }
    Ok(Student::load(&distiller.inference()?, &dev)?)
}

#[test]
fn from_a_shop_to_a_device() -> Outcome {
    let data = shop()?;
    let student = train(&data)?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("shop.tercet");
    let report = export(
        &student,
        &data,
        &Provenance::default(),
        // Lifting cold items would hide what rounding costs.
        &ExportOptions {
            cold_share: 0.0,
            ..ExportOptions::default()
        },
        &path,
    )?;
    println!("{report:#?}");
    assert!(
        report.attributes.iter().any(|a| a == "category"),
        "{:?}",
        report.attributes
    );

    // The bundle keeps the student's quality, and both beat popularity by far.
    let bundle = Bundle::open(&path)?;
    let test = EvalProtocol::default();
    let counts = data.popularity().iter().map(|&c| c as f32).collect();
    let ndcg = |r: BTreeMap<String, f64>| r.get("ndcg@20").copied().unwrap_or_default();
    let popular = ndcg(evaluate(&Popularity::new(counts), &data, &test)?.metrics);
    let full = ndcg(evaluate(&student.scorer(&data)?, &data, &test)?.metrics);
    let packed = ndcg(evaluate(&BundleScorer::new(&bundle, &data)?, &data, &test)?.metrics);
    println!("ndcg@20: popularity {popular:.4}, student {full:.4}, bundle {packed:.4}");
    assert!(full > 1.2 * popular);
    assert!(
        (packed - full).abs() < 0.02 * full,
        "int8 changes more than 2 %"
    );

    // A user nobody has seen.
    let mut session = Session::new(&bundle, SessionOptions::default())?;
    let prior = session.recommend(&Query::top(5))?;
    assert_eq!(prior.len(), 5);
    for item in [3u32, 50, 51] {
        session.record(Event::new(data.items.key(item)).behavior("view"))?;
    }
    let top = session.recommend(&Query::top(10).explain(true))?;
    assert_eq!(top.len(), 10);
    assert!(top.windows(2).all(|w| w[0].score >= w[1].score));
    assert!(top.iter().any(|r| !r.because.is_empty()));

    // Whatever engine is asked for.
    let mut vectors = Vec::new();
    for (kind, name) in [
        (tercet::EngineKind::Compact, "compact"),
        (tercet::EngineKind::Tract, "tract"),
    ] {
        let mut other = Session::new(&bundle, SessionOptions::default().engine(kind))?;
        for item in [3u32, 50, 51] {
            other.record(Event::new(data.items.key(item)).behavior("view"))?;
        }
        assert_eq!(other.engine()?.engine, name);
        vectors.push(other.user_vector()?.to_vec());
    }
    assert!(
        vectors[0]
            .iter()
            .zip(&vectors[1])
            .all(|(a, b)| (a - b).abs() < 1e-4),
        "{vectors:?}"
    );
    hostile(&path)
}

/// Every truncation of every file is refused with an error, by `open` or by `verify`.
fn hostile(path: &Path) -> Outcome {
    let mut files: Vec<_> = std::fs::read_dir(path)?.collect::<Result<_, _>>()?;
    files.sort_by_key(std::fs::DirEntry::file_name);
    for file in files {
        let whole = std::fs::read(file.path())?;
        // The last byte of the manifest is a line break.
        for keep in [0, 1, 7, 8, 9, 63, whole.len() / 2, whole.len() - 2] {
            std::fs::write(file.path(), &whole[..keep])?;
            let outcome = Bundle::open(path).and_then(|b| b.verify());
            assert!(
                outcome.is_err(),
                "{:?} cut to {keep} bytes",
                file.file_name()
            );
        }
        // Same length, one bit: only the digest can tell.
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        std::fs::write(file.path(), &flipped)?;
        if file.file_name() != "manifest.json" {
            let bundle = Bundle::open(path);
            assert!(
                bundle.and_then(|b| b.verify()).is_err(),
                "{:?}",
                file.file_name()
            );
        }
        std::fs::write(file.path(), &whole)?;
    }
    assert!(Bundle::open(path)?.verify().is_ok());
    Ok(())
}

/// Items without a training event get the share of the first places that they are meant to have, by
/// a bias that those added on the device get too.
#[test]
fn cold_items_get_their_share() -> Outcome {
    let data = tercet_tests::data(80, 200)?;
    let student = tercet_tests::student(&data)?;
    let counts = data.popularity();
    let unmet: Vec<&str> = (0..counts.len() as u32)
        .filter(|&i| counts[i as usize] == 0)
        .map(|i| data.items.key(i))
        .collect();
    let folder = tempfile::tempdir()?;
    let (mut shares, mut added, mut biases) = (Vec::new(), Vec::new(), Vec::new());
    for (name, cold_share) in [
        ("as-they-are", 0.0),
        ("lifted", 0.08),
        ("no more than their share", 0.9),
    ] {
        let path = folder.path().join(name);
        let options = ExportOptions {
            cold_share,
            ..ExportOptions::default()
        };
        let report = export(&student, &data, &Provenance::default(), &options, &path)?;
        assert_eq!(report.cold.items, unmet.len());
        biases.push(report.cold.bias);
        let bundle = Bundle::open(&path)?;
        assert_eq!(
            bundle.manifest().table.cold_bias.is_some(),
            cold_share > 0.0
        );
        let (mut cold, mut places) = (0, 0);
        for user in 0..data.num_users() as u32 {
            let mut session = Session::new(&bundle, SessionOptions::default())?;
            for event in data.history(user, Split::Valid) {
                let behavior = &data.behaviors[usize::from(event.behavior)];
                session.record(Event::new(data.items.key(event.item)).behavior(behavior))?;
            }
            let top = session.recommend(&Query::top(20))?;
            cold += top
                .iter()
                .filter(|r| unmet.contains(&r.item.as_str()))
                .count();
            places += top.len();
        }
        shares.push(cold as f64 / places as f64);
        let mut session = Session::new(&bundle, SessionOptions::default())?;
        session.record(Event::new("item-3"))?;
        session.add_item(NewItem::new("new").feature("text", vec![0.5; 40]))?;
        let all = session.recommend(&Query::top(201))?;
        let new = all
            .iter()
            .find(|r| r.item == "new")
            .ok_or("the added item is ranked")?;
        added.push(new.score);
    }
    // 11 % of the items are cold.
    assert_eq!(unmet.len(), 22);
    assert_eq!(biases[0], 0.0);
    assert!(0.0 < biases[1] && biases[1] < biases[2], "{biases:?}");
    assert!(
        shares[0] < 0.02 && (0.06..0.11).contains(&shares[1]) && (0.09..0.15).contains(&shares[2]),
        "{shares:?}"
    );
    let gap = added[1] - added[0] - biases[1];
    assert!(gap.abs() < 1e-5 * biases[1].max(1.0), "{added:?}");
    Ok(())
}

/// A damaged graph with a manifest that vouches for it is an error of the engine, not a panic.
#[test]
fn a_damaged_graph_is_an_error() -> Outcome {
    let data = tercet_tests::data(20, 60)?;
    let student = tercet_tests::student(&data)?;
    let tower = tercet_export::onnx::user_tower(&student, Default::default(), &[])?;
    let keys: Vec<String> = data.items.keys().map(str::to_string).collect();
    let vectors = vec![0.5f32; keys.len() * 32];
    let folder = tempfile::tempdir()?;
    for cut in [
        0,
        10,
        tower.onnx.len() / 3,
        tower.onnx.len() / 2,
        tower.onnx.len() - 40,
    ] {
        let path = folder.path().join(format!("{cut}.tercet"));
        let mut writer = tercet::BundleWriter::create(&path)?;
        writer.table(&tercet::ItemTableBuilder::new(
            32,
            tercet::Scheme::Int8,
            &keys,
            &vectors,
        )?)?;
        writer.write_file("user_tower.onnx", &tower.onnx[..cut])?;
        let mut manifest = tercet::Manifest::new("cut", 1, 32, tercet_tests::WINDOW);
        manifest.engine.user_tower = Some("user_tower.onnx".into());
        let bundle = writer.finish(manifest)?;
        let mut session = Session::new(&bundle, SessionOptions::default())?;
        session.record(Event::new("item-1"))?;
        assert!(session.recommend(&Query::top(3)).is_err(), "cut at {cut}");
    }
    Ok(())
}

/// Damaged weights with a manifest that vouches for them are errors too, and never a panic.
#[test]
fn damaged_weights_are_errors() -> Outcome {
    let data = tercet_tests::data(20, 60)?;
    let student = tercet_tests::student(&data)?;
    let folder = tempfile::tempdir()?;
    let whole = folder.path().join("whole.tercet");
    let options = tercet_export::ExportOptions::default();
    let provenance = tercet_export::Provenance::default();
    tercet_export::export(&student, &data, &provenance, &options, &whole)?;
    let good = std::fs::read(whole.join("user_tower.safetensors"))?;
    let keys: Vec<String> = data.items.keys().map(str::to_string).collect();
    let vectors = vec![0.5f32; keys.len() * 32];
    let load = |name: &str, bytes: &[u8]| -> Outcome<bool> {
        let path = folder.path().join(format!("{name}.tercet"));
        let mut writer = tercet::BundleWriter::create(&path)?;
        let scheme = tercet::Scheme::Int8;
        writer.table(&tercet::ItemTableBuilder::new(32, scheme, &keys, &vectors)?)?;
        writer.write_file("user_tower.safetensors", bytes)?;
        let mut manifest = tercet::Manifest::new("cut", 1, 32, tercet_tests::WINDOW);
        manifest.engine.user_weights = Some("user_tower.safetensors".into());
        let bundle = writer.finish(manifest)?;
        Ok(bundle
            .load_user_tower_with(tercet::EngineKind::Compact)
            .is_ok())
    };
    assert!(load("good", &good)?, "the undamaged weights load");
    for cut in [0, 7, 200, good.len() / 2, good.len() - 1] {
        assert!(!load(&format!("cut-{cut}"), &good[..cut])?, "cut at {cut}");
    }
    // The header is JSON at a known place; edits of equal length keep every offset valid.
    let header = String::from_utf8_lossy(&good[8..]).into_owned();
    for (name, from, to) in [
        ("renamed", "user.decays", "user.decoys"),
        ("retyped", "\"F32\"", "\"I32\""),
        ("widened", "[3", "[9"),
        ("shifted", "data_offsets\":[0", "data_offsets\":[8"),
    ] {
        assert!(header.contains(from), "{name}: the header has no {from}");
        let at = 8 + header.find(from).unwrap_or(0);
        let mut bytes = good.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        assert!(!load(name, &bytes)?, "{name}");
    }
    Ok(())
}
