//! One student, three programs: candle, tract through the runtime, and ONNX Runtime.

use candle_core::Tensor;
use tempfile::TempDir;
use tercet::{
    Bundle, Error, Event, OnnxRuntime, OnnxRuntimeOptions, Provider, Query, Scheme, Session,
    SessionOptions,
};
use tercet_export::onnx::Weights;
use tercet_export::verify::{Bounds, Distance};
use tercet_export::{BundleScorer, ExportOptions, ExportReport, Provenance, export};
use tercet_models::data::{Dataset, HistoryEvent};
use tercet_models::eval::{EvalQuery, Scorer};
use tercet_models::student::Student;
use tercet_tests::{Outcome, WINDOW, data, histories, onnx_runtime, student};

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
        // The student's scores as they are.
        cold_share: 0.0,
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
    let Some(runtime) = onnx_runtime()? else {
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
        let mut tower = bundle.load_user_tower_on(&runtime)?;
        let mut got = Vec::new();
        for history in &histories {
            got.extend(tower.encode(bundle.table(), &[scorer.events(history)])?);
        }
        let events: Vec<_> = histories.iter().map(|h| scorer.events(h)).collect();
        let together = tower.encode(bundle.table(), &events)?;
        for (what, got) in [("batch of 1", &got), ("batch of 5", &together)] {
            let d = Distance::between(got, &want, dim);
            println!(
                "ort against tract, {table} table, {} towers, {what}: {d:?}",
                towers.name()
            );
            Bounds::of(Weights::F32).check(what, &d)?;
        }
        fusion(&runtime, bundle, &student, &data)?;
        rankings(&runtime, bundle, &data, &histories)?;
    }
    Ok(())
}

fn fusion(runtime: &OnnxRuntime, bundle: &Bundle, student: &Student, data: &Dataset) -> Outcome {
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
    let mut tower = bundle.load_fusion_tower_on(runtime)?;
    for n in [ids.len(), 1] {
        let views = [
            &features[0][..n * 24],
            &features[1][..n * 40],
            &features[2][..n * 32],
        ];
        let got = tower.encode(n, &views, &present[..n * 3])?;
        let d = Distance::between(&got, &want[..n * 32], 32);
        println!("ort against the runtime, fusion tower, batch of {n}: {d:?}");
        Bounds::of(Weights::F32).check("fusion tower", &d)?;
    }
    Ok(())
}

/// A whole session on either engine.
fn rankings(
    runtime: &OnnxRuntime,
    bundle: &Bundle,
    data: &Dataset,
    histories: &[Vec<HistoryEvent>],
) -> Outcome {
    for history in histories {
        let tower = bundle.load_user_tower_on(runtime)?;
        let mut with_ort = Session::with_user_tower(bundle, tower, SessionOptions::default())?;
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

/// A GPU on a machine without one, and libraries that are none.
#[test]
fn what_cannot_be_used_is_told() -> Outcome {
    let data = data(60, 200)?;
    let packed = pack(&student(&data)?, &data, Scheme::Int8, Weights::Int8)?;
    let bundle = &packed.bundle;
    let missing = OnnxRuntimeOptions::new("no/libonnxruntime.so");
    let error = OnnxRuntime::load(missing).unwrap_err();
    assert!(matches!(error, Error::EngineLibrary { .. }), "{error}");
    let Some(runtime) = onnx_runtime()? else {
        return Ok(());
    };
    let report = bundle.load_user_tower_on(&runtime)?.engine();
    assert_eq!((report.engine, &*report.provider), ("onnxruntime", "CPU"));
    assert!(report.refused.is_empty() && report.version.is_some());

    let path = std::env::var_os("TERCET_ORT_LIB").ok_or("no library")?;
    let asked = OnnxRuntimeOptions::new(&path)
        .provider(Provider::TensorRt(0))
        .provider(Provider::Cuda(0))
        .provider(Provider::CoreMl)
        .provider(Provider::Nnapi)
        .provider(Provider::DirectMl(0))
        .provider(Provider::OpenVino);
    let mut tower = bundle.load_user_tower_on(&OnnxRuntime::load(asked.clone())?)?;
    let report = tower.engine();
    println!("{report:?}");
    assert_eq!(report.provider, "CPU");
    let refused: Vec<&str> = report.refused.iter().map(|(name, _)| &**name).collect();
    let all = [
        "TensorRT", "CUDA", "CoreML", "NNAPI", "DirectML", "OpenVINO",
    ];
    assert_eq!(refused, all);
    assert!(report.refused.iter().all(|(_, reason)| !reason.is_empty()));
    let want = bundle
        .load_user_tower_on(&runtime)?
        .encode(bundle.table(), &[[(3, 1)]])?;
    assert_eq!(tower.encode(bundle.table(), &[[(3, 1)]])?, want);

    let strict = OnnxRuntime::load(asked.strict(true))?;
    let error = bundle.load_user_tower_on(&strict).err().ok_or("no error")?;
    assert!(error.to_string().contains("CUDA"), "{error}");

    // One library a process; and one that is none.
    let folder = tempfile::tempdir()?;
    let other = folder.path().join("libonnxruntime.so");
    std::fs::write(&other, b"no library")?;
    let error = OnnxRuntime::load(OnnxRuntimeOptions::new(&other)).unwrap_err();
    assert!(error.to_string().contains("already"), "{error}");
    Ok(())
}

#[test]
fn a_graph_that_is_none_is_told() -> Outcome {
    let Some(runtime) = onnx_runtime()? else {
        return Ok(());
    };
    let data = data(60, 200)?;
    let packed = pack(&student(&data)?, &data, Scheme::Int8, Weights::Int8)?;
    let path = packed.bundle.path().join("user_tower.onnx");
    let length = std::fs::metadata(&path)?.len() as usize;
    std::fs::write(&path, vec![0x11; length])?;
    let error = packed.bundle.load_user_tower_on(&runtime).err();
    let error = error.ok_or("it was loaded")?.to_string();
    assert!(error.contains("user_tower.onnx"), "{error}");
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
