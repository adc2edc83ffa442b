//! From interactions to an offline recommendation, through the libraries instead of the command:
//! a synthetic shop, an EASE teacher, a student distilled from it, an int8 bundle, and a session
//! for a user the training never saw.
//!
//! ```text
//! cargo run --example train_to_device
//! ```

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use candle_core::Device;
use tercet::{Bundle, Event, Query, Session, SessionOptions};
use tercet_export::{ExportOptions, Provenance};
use tercet_models::baseline::ease::{Ease, EaseConfig};
use tercet_models::data::synthetic::{SyntheticConfig, generate};
use tercet_models::distill::Distiller;
use tercet_models::eval::EvalProtocol;
use tercet_models::run::{RunConfig, TrainedRun};
use tercet_models::student::Student;
use tercet_models::train::{RunOptions, train};

fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let shop = SyntheticConfig {
        users: 400,
        items: 200,
        ..SyntheticConfig::default()
    };
    let data = generate(&shop)?;

    // Any scorer can teach; EASE needs no epochs.
    let teacher = Ease::fit(
        &data,
        &EaseConfig {
            lambda: 50.0,
            ..EaseConfig::default()
        },
    )?;

    let mut spec = RunConfig::new("student")?;
    for setting in [
        "seed=1",
        "train.epochs=6",
        "train.metric=ndcg@20",
        "lr=3e-3",
        "batch=128",
    ] {
        spec.set(setting)?;
    }
    let run = folder.path().join("student");
    let options = RunOptions {
        out: run.clone(),
        mode: spec.mode,
        resume: false,
        stop: Arc::new(AtomicBool::new(false)),
        progress: true,
        protocol: EvalProtocol::default(),
    };
    let mut learner = Distiller::new(
        &data,
        spec.parse()?,
        vec![Box::new(teacher)],
        None,
        spec.seed,
        &Device::Cpu,
    )?;
    let report = train(&mut learner, &data, &spec, &options, &Device::Cpu)?;
    println!(
        "student: ndcg@20 {:.4} on test rows",
        report.test["ndcg@20"]
    );

    let trained = TrainedRun::open(&run, &Device::Cpu)?;
    let student = Student::load(&trained.tensors, &Device::Cpu)?;
    let path = folder.path().join("shop.tercet");
    let packed = tercet_export::export(
        &student,
        &data,
        &Provenance::of_run(&run)?,
        &ExportOptions::default(),
        &path,
    )?;
    println!("bundle: {} items in {} bytes", packed.items, packed.bytes);

    // From here on only the runtime is needed: this is what runs on the phone.
    let bundle = Bundle::open(&path)?;
    let mut session = Session::new(&bundle, SessionOptions::default())?;
    let seen = data.items.key(0).to_string();
    session.record(Event::new(seen.as_str()).behavior("view"))?;
    let top = session.recommend(&Query::top(5).explain(true))?;
    assert_eq!(top.len(), 5);
    assert!(
        top.iter().all(|r| r.item != seen),
        "what was seen is not recommended"
    );
    for r in &top {
        println!("{} {:.3}", r.item, r.score);
    }
    Ok(())
}
