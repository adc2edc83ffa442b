//! One student, three programs: candle, tract through the runtime, and ONNX Runtime.

use candle_core::Tensor;
use tempfile::TempDir;
use tercet::{Bundle, Event, Input, InputData, Query, Scheme, Session, SessionOptions, Tower};
use tercet_export::onnx::Weights;
use tercet_export::verify::{Bounds, Distance};
use tercet_export::{BundleScorer, ExportOptions, ExportReport, Provenance, export};
use tercet_models::data::{Dataset, HistoryEvent};
use tercet_models::eval::{EvalQuery, Scorer};
use tercet_models::student::Student;
use tercet_tests::{OrtTower, Outcome, WINDOW, data, histories, ort_environment, student};

struct Packed {
    _folder: TempDir,
    bundle: Bundle,
    report: ExportReport,
}

fn pack(student: &Student, data: &Dataset, table: Scheme, towers: Weights) -> Outcome<Packed> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("shop.tercet");
    let options = ExportOptions {
        table,
        towers,
        ..ExportOptions::default()
    };
    let report = export(student, data, &Provenance::default(), &options, &path)?;
    Ok(Packed {
        bundle: Bundle::open(&path)?,
        _folder: folder,
        report,
    })
}

const FORMS: [(Scheme, Weights); 4] = [
    (Scheme::F32, Weights::F32),
    (Scheme::F16, Weights::F16),
    (Scheme::Int8, Weights::Int8),
    (Scheme::Int8, Weights::F32),
];

fn bounds(table: Scheme, towers: Weights) -> Bounds {
    Bounds::of(if table == Scheme::Int8 {
        Weights::Int8
    } else {
        towers
    })
}

fn views(histories: &[Vec<HistoryEvent>]) -> Vec<&[HistoryEvent]> {
    histories.iter().map(Vec::as_slice).collect()
}

fn flat(t: &Tensor) -> Outcome<Vec<f32>> {
    Ok(t.flatten_all()?.to_vec1()?)
}

/// User vectors of single histories and of all of them at once.
#[test]
fn tract_equals_candle() -> Outcome {
    let data = data(60, 200)?;
    let student = student(&data)?;
    let histories = histories(&data);
    let views = views(&histories);
    let dim = student.shape.dim;
    let want = flat(&student.scorer(&data)?.user_vectors(&views)?)?;
    for (table, towers) in FORMS {
        let packed = pack(&student, &data, table, towers)?;
        let scorer = BundleScorer::new(&packed.bundle, &data)?;
        let together = scorer.user_vectors(&views)?;
        let mut single = Vec::new();
        for v in &views {
            single.extend(scorer.user_vectors(&[v])?);
        }
        for (what, got) in [("batch of 5", &together), ("batch of 1", &single)] {
            let d = Distance::between(got, &want, dim);
            println!("{table} table, {} towers, {what}: {d:?}", towers.name());
            bounds(table, towers).check(what, &d)?;
        }
        // Two plans of the same graph.
        let d = Distance::between(&together, &single, dim);
        Bounds::of(Weights::F32).check("batches", &d)?;
        println!("{:?}", packed.report.parity);
    }
    Ok(())
}

#[test]
fn full_precision_keeps_every_ranking() -> Outcome {
    let data = data(60, 200)?;
    let student = student(&data)?;
    let packed = pack(&student, &data, Scheme::F32, Weights::F32)?;
    let reference = student.scorer(&data)?;
    let mut scores = vec![0f32; data.num_items()];
    for history in histories(&data) {
        let mut session = Session::new(&packed.bundle, SessionOptions::default())?;
        for e in &history {
            let behavior = &data.behaviors[usize::from(e.behavior)];
            session.record(Event::new(data.items.key(e.item)).behavior(behavior))?;
        }
        let top = session.recommend(&Query::top(20))?;
        let query = EvalQuery {
            user: 0,
            history: history.clone(),
            mask: vec![],
            targets: vec![],
        };
        reference.score(&[query], &mut scores)?;
        history
            .iter()
            .for_each(|e| scores[e.item as usize] = f32::NEG_INFINITY);
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        for (place, (got, &want)) in top.iter().zip(&order).enumerate() {
            // Items whose scores differ by rounding alone may change places.
            let id = data
                .items
                .get(&got.item)
                .ok_or("a key that the data lacks")?;
            let gap = scores[want] - scores[id as usize];
            assert!(
                gap.abs() < 1e-4,
                "place {place}: {} is {gap} worse",
                got.item
            );
            assert!((got.score - scores[id as usize]).abs() < 1e-4);
        }
    }
    Ok(())
}

#[test]
fn onnx_runtime_equals_tract() -> Outcome {
    let Some(environment) = ort_environment()? else {
        return Ok(());
    };
    let data = data(60, 200)?;
    let student = student(&data)?;
    let histories = histories(&data);
    for (table, towers) in FORMS {
        let packed = pack(&student, &data, table, towers)?;
        let bundle = &packed.bundle;
        let dim = student.shape.dim;
        let scorer = BundleScorer::new(bundle, &data)?;
        let want = scorer.user_vectors(&views(&histories))?;
        let mut tower = OrtTower::load(environment, &bundle.path().join("user_tower.onnx"))?;
        let mut got = Vec::new();
        for history in &histories {
            got.extend(run_user(&mut tower, bundle, &[scorer.events(history)])?);
        }
        let events: Vec<_> = histories.iter().map(|h| scorer.events(h)).collect();
        let together = run_user(&mut tower, bundle, &events)?;
        for (what, got) in [("batch of 1", &got), ("batch of 5", &together)] {
            let d = Distance::between(got, &want, dim);
            println!(
                "ort against tract, {table} table, {} towers, {what}: {d:?}",
                towers.name()
            );
            Bounds::of(Weights::F32).check(what, &d)?;
        }
        fusion(environment, bundle, &student, &data)?;
        rankings(environment, bundle, &data, &histories)?;
    }
    Ok(())
}

/// The documented inputs of the user tower, by hand.
fn run_user(
    tower: &mut dyn Tower,
    bundle: &Bundle,
    histories: &[Vec<(u32, i64)>],
) -> Outcome<Vec<f32>> {
    let (b, d) = (histories.len(), bundle.manifest().dim);
    let mut items = vec![0f32; b * WINDOW * d];
    let mut behaviors = vec![0i64; b * WINDOW];
    let mut mask = vec![0f32; b * WINDOW];
    for (i, history) in histories.iter().enumerate() {
        let recent = &history[history.len().saturating_sub(WINDOW)..];
        for (k, &(row, behavior)) in recent.iter().enumerate() {
            let at = i * WINDOW + WINDOW - recent.len() + k;
            items[at * d..(at + 1) * d].copy_from_slice(&bundle.table().vector(row)?);
            behaviors[at] = behavior;
            mask[at] = 1.0;
        }
    }
    Ok(tower.run(&[
        Input {
            name: "items",
            shape: &[b, WINDOW, d],
            data: InputData::F32(&items),
        },
        Input {
            name: "behaviors",
            shape: &[b, WINDOW],
            data: InputData::I64(&behaviors),
        },
        Input {
            name: "mask",
            shape: &[b, WINDOW],
            data: InputData::F32(&mask),
        },
    ])?)
}

fn fusion(
    environment: &ort::environment::Environment,
    bundle: &Bundle,
    student: &Student,
    data: &Dataset,
) -> Outcome {
    let ids = [0usize, 1, 7, 8, 199];
    let rows = |name: &str| -> Outcome<Vec<f32>> {
        let f = data.modality(name).ok_or("no such modality")?;
        Ok(ids.iter().flat_map(|&i| f.values.row(i).to_vec()).collect())
    };
    let graph = student.graph.to_vec2::<f32>()?;
    let graph: Vec<f32> = ids.iter().flat_map(|&i| graph[i].clone()).collect();
    let features = [rows("image")?, rows("text")?, graph];
    let image = &data.modality("image").ok_or("no images")?.present;
    let present: Vec<f32> = ids
        .iter()
        .enumerate()
        .flat_map(|(n, &i)| [f32::from(u8::from(image[i])), 1.0, (n % 2) as f32])
        .collect();
    let views: Vec<&[f32]> = features.iter().map(Vec::as_slice).collect();
    let want = bundle
        .load_fusion_tower()?
        .encode(ids.len(), &views, &present)?;
    let mut tower = OrtTower::load(environment, &bundle.path().join("fusion_tower.onnx"))?;
    for n in [ids.len(), 1] {
        let got = tower.run(&[
            Input {
                name: "image",
                shape: &[n, 24],
                data: InputData::F32(&features[0][..n * 24]),
            },
            Input {
                name: "text",
                shape: &[n, 40],
                data: InputData::F32(&features[1][..n * 40]),
            },
            Input {
                name: "graph",
                shape: &[n, 32],
                data: InputData::F32(&features[2][..n * 32]),
            },
            Input {
                name: "present",
                shape: &[n, 3],
                data: InputData::F32(&present[..n * 3]),
            },
        ])?;
        let d = Distance::between(&got, &want[..n * 32], 32);
        println!("ort against the runtime, fusion tower, batch of {n}: {d:?}");
        Bounds::of(Weights::F32).check("fusion tower", &d)?;
    }
    Ok(())
}

/// A whole session on either engine.
fn rankings(
    environment: &ort::environment::Environment,
    bundle: &Bundle,
    data: &Dataset,
    histories: &[Vec<HistoryEvent>],
) -> Outcome {
    let path = bundle.path().join("user_tower.onnx");
    for history in histories {
        let tower = OrtTower::load(environment, &path)?;
        let mut with_ort = Session::with_tower(bundle, Box::new(tower), SessionOptions::default())?;
        let mut with_tract = Session::new(bundle, SessionOptions::default())?;
        let mut lists = Vec::new();
        for session in [&mut with_ort, &mut with_tract] {
            for e in history {
                let behavior = &data.behaviors[usize::from(e.behavior)];
                session.record(Event::new(data.items.key(e.item)).behavior(behavior))?;
            }
            lists.push(session.recommend(&Query::top(20))?);
        }
        for (a, b) in lists[0].iter().zip(&lists[1]) {
            assert!(
                (a.score - b.score).abs() < 1e-4,
                "{} {} {}",
                a.item,
                a.score,
                b.score
            );
        }
    }
    Ok(())
}

#[test]
fn a_bundle_names_what_it_holds() -> Outcome {
    let data = data(60, 200)?;
    let student = student(&data)?;
    let packed = pack(&student, &data, Scheme::Int8, Weights::Int8)?;
    let m = packed.bundle.manifest();
    assert_eq!(
        (m.bundle_id.as_str(), m.bundle_version, m.window),
        ("shop", 1, WINDOW)
    );
    assert_eq!(m.engine.opset, 17);
    let names: Vec<&str> = m.modalities.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["image", "text", "graph"]);
    assert_eq!(m.card["dataset"]["items"], 200);
    assert_eq!(m.card["metrics"]["users"], 60);
    assert!(m.card["metrics"]["bundle"]["ndcg@20"].is_number());
    let contents = tercet_export::inspect(&packed.bundle)?.contents;
    let tensors = |file: &str| -> Vec<String> {
        contents[file]
            .tensors
            .iter()
            .map(|t| t.name.clone())
            .collect()
    };
    assert!(tensors("items.safetensors").contains(&"codes".to_string()));
    assert!(tensors("user_tower.safetensors").contains(&"user.value.weight.scale".to_string()));
    assert!(tensors("user_tower.onnx").contains(&"user.value.weight".to_string()));
    let table = packed.bundle.table();
    let row = table.find("item-7")?.ok_or("item-7 is missing")?;
    assert_eq!(table.attribute("title", row)?, ["Thing 7"]);
    Ok(())
}

#[test]
fn a_replaced_bundle_gets_the_next_version() -> Outcome {
    let data = data(20, 60)?;
    let student = student(&data)?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("shop.tercet");
    let options = ExportOptions::default();
    for version in 1..=3 {
        let report = export(&student, &data, &Provenance::default(), &options, &path)?;
        assert_eq!(report.bundle_version, version);
    }
    // Nothing else is left beside it.
    let names: Vec<_> = std::fs::read_dir(folder.path())?.collect::<Result<_, _>>()?;
    assert_eq!(names.len(), 1);
    Ok(())
}

#[test]
fn failures_leave_the_destination_alone() -> Outcome {
    let data = data(20, 60)?;
    let student = student(&data)?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("precious");
    std::fs::create_dir(&path)?;
    std::fs::write(path.join("letter.txt"), "keep me")?;
    let options = ExportOptions::default();
    let other = tercet_tests::data(20, 61)?;
    for (data, dest) in [(&data, &path), (&other, &folder.path().join("new.tercet"))] {
        assert!(export(&student, data, &Provenance::default(), &options, dest).is_err());
    }
    assert_eq!(std::fs::read_to_string(path.join("letter.txt"))?, "keep me");
    let names: Vec<_> = std::fs::read_dir(folder.path())?.collect::<Result<_, _>>()?;
    assert_eq!(names.len(), 1, "{names:?}");
    Ok(())
}

#[test]
fn weights_that_are_not_finite_are_refused() -> Outcome {
    let data = data(20, 60)?;
    let good = student(&data)?;
    let mut tensors = good.export()?;
    let w = tensors["user.skip.weight"].clone();
    tensors.insert("user.skip.weight".into(), (w * f64::NAN)?);
    let bad = Student::load(&tensors, good.device())?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("shop.tercet");
    let error = export(
        &bad,
        &data,
        &Provenance::default(),
        &ExportOptions::default(),
        &path,
    )
    .err();
    assert!(
        error
            .ok_or("exported")?
            .to_string()
            .contains("user.skip.weight")
    );
    assert!(!path.exists());
    Ok(())
}
