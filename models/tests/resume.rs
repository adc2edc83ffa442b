//! An interrupted and resumed run gives the same result as one that was not, for every learner
//! that trains by epochs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;
use tercet_models::baseline::popularity::Popularity;
use tercet_models::data::synthetic::{SyntheticConfig, generate};
use tercet_models::data::{Dataset, FitOn};
use tercet_models::distill::Distiller;
use tercet_models::error::{Error, Result};
use tercet_models::eval::EvalProtocol;
use tercet_models::params::TensorMap;
use tercet_models::run::{self, RunConfig};
use tercet_models::train::{EpochLosses, Learner, Monitor, RunOptions, train};

/// Asks to stop once an epoch has been trained, as Ctrl-C does.
struct StopAfter<'a> {
    inner: Box<dyn Learner + 'a>,
    epoch: u64,
    stop: Arc<AtomicBool>,
}

impl Learner for StopAfter<'_> {
    fn steps_per_epoch(&self) -> u64 {
        self.inner.steps_per_epoch()
    }

    fn train_epoch(&mut self, epoch: u64, monitor: &mut Monitor<'_>) -> Result<EpochLosses> {
        let losses = self.inner.train_epoch(epoch, monitor)?;
        if epoch + 1 == self.epoch {
            self.stop.store(true, Ordering::Relaxed);
        }
        Ok(losses)
    }

    fn inference(&self) -> Result<TensorMap> {
        self.inner.inference()
    }

    fn export_state(&self) -> Result<TensorMap> {
        self.inner.export_state()
    }

    fn import_state(&mut self, from: &TensorMap) -> Result<()> {
        self.inner.import_state(from)
    }
}

fn learner<'a>(spec: &RunConfig, data: &'a Dataset) -> Result<Box<dyn Learner + 'a>> {
    let dev = Device::Cpu;
    if spec.model == "student" {
        let teacher = Box::new(Popularity::fit(data, FitOn::Train));
        let distiller = Distiller::new(data, spec.parse()?, vec![teacher], None, spec.seed, &dev)?;
        return Ok(Box::new(distiller));
    }
    run::learner(spec, data, &dev)
}

fn options(out: &std::path::Path, spec: &RunConfig, resume: bool) -> RunOptions {
    RunOptions {
        out: out.to_path_buf(),
        mode: spec.mode,
        resume,
        stop: Arc::new(AtomicBool::new(false)),
        progress: false,
        protocol: EvalProtocol::default(),
    }
}

#[test]
fn resumed_runs_equal_uninterrupted_ones() -> Result<()> {
    let shop = SyntheticConfig {
        users: 120,
        items: 110,
        events_per_user: 8,
        seed: 5,
    };
    let data = generate(&shop)?;
    let dev = Device::Cpu;
    for (model, settings) in [
        ("bpr", &["dim=16", "batch=256"][..]),
        ("bpr", &["dim=16", "batch=256", "sparse=true"]),
        ("lightgcn", &["dim=16", "batch=256"]),
        ("behavior-graph", &["dim=16", "batch=256"]),
        ("sasrec", &["dim=16", "window=10", "behaviors=true"]),
        ("diffmm", &["dim=16", "hidden=24", "batch=256"]),
        ("dprec", &["dim=16", "batch=512", "concepts=8"]),
        (
            "odmt",
            &["dim=16", "id_dim=16", "window=5", "micro_batches=2"],
        ),
        (
            "tmf",
            &[
                "llm_dim=32",
                "llm_layers=1",
                "llm_vocabulary=320",
                "dim=16",
                "graph_epochs=2",
                "graph_dim=8",
                "warmup_steps=2",
                "examples=8",
                "sequences=32",
            ],
        ),
        ("student", &["dim=16", "event_hidden=16", "batch=64"]),
        (
            "student",
            &["dim=16", "event_hidden=16", "batch=64", "examples=100"],
        ),
    ] {
        let mut spec = RunConfig::new(model)?;
        spec.train.epochs = 4;
        settings.iter().try_for_each(|s| spec.set(s))?;
        let dir = tempfile::tempdir().map_err(|e| Error::io("temporary folder", e))?;
        let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));

        let mut a = learner(&spec, &data)?;
        let want = train(
            a.as_mut(),
            &data,
            &spec,
            &options(&whole, &spec, false),
            &dev,
        )?;

        let first = options(&broken, &spec, false);
        let inner = learner(&spec, &data)?;
        let mut b = StopAfter {
            inner,
            epoch: 2,
            stop: first.stop.clone(),
        };
        let stopped = train(&mut b, &data, &spec, &first, &dev);
        assert!(matches!(stopped, Err(Error::Interrupted)), "{model}");
        assert!(!broken.join("report.json").exists(), "{model}");

        // Another configuration must not continue this run.
        let mut other = spec.clone();
        other.seed += 1;
        let mut c = learner(&other, &data)?;
        let refused = train(
            c.as_mut(),
            &data,
            &other,
            &options(&broken, &other, true),
            &dev,
        );
        assert!(matches!(refused, Err(Error::Checkpoint { .. })), "{model}");

        let mut d = learner(&spec, &data)?;
        let got = train(
            d.as_mut(),
            &data,
            &spec,
            &options(&broken, &spec, true),
            &dev,
        )?;
        assert_eq!(got.best_epoch, want.best_epoch, "{model}");
        // Metrics of epochs before the interruption come back from text, which may cost the last bit.
        for (a, b) in [(&got.valid, &want.valid), (&got.test, &want.test)] {
            assert_eq!(a.len(), b.len());
            assert!(
                a.iter().all(|(k, v)| (v - b[k]).abs() < 1e-12),
                "{model}: {a:?} {b:?}"
            );
        }
        let read = |p: &std::path::Path| run::load_tensors(&p.join("best.safetensors"), &dev);
        let (x, y) = (read(&whole)?, read(&broken)?);
        assert_eq!(x.len(), y.len());
        for (name, t) in &x {
            let t = t
                .to_dtype(candle_core::DType::F32)?
                .flatten_all()?
                .to_vec1::<f32>()?;
            let u = y[name]
                .to_dtype(candle_core::DType::F32)?
                .flatten_all()?
                .to_vec1::<f32>()?;
            assert_eq!(t, u, "{model}: {name}");
        }
        assert!(!broken.join("checkpoint.safetensors").exists(), "{model}");

        // A finished run is neither overwritten nor resumed.
        let mut e = learner(&spec, &data)?;
        assert!(
            train(
                e.as_mut(),
                &data,
                &spec,
                &options(&whole, &spec, false),
                &dev
            )
            .is_err()
        );
        assert!(
            train(
                e.as_mut(),
                &data,
                &spec,
                &options(&whole, &spec, true),
                &dev
            )
            .is_err()
        );
    }
    Ok(())
}

#[test]
fn unknown_and_mistyped_settings_are_named() -> Result<()> {
    let mut spec = RunConfig::new("diffmm")?;
    let error = |spec: &mut RunConfig, s: &str| {
        spec.clone()
            .set(s)
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default()
    };
    assert!(error(&mut spec, "regg=1").contains("regg"));
    assert!(
        error(&mut spec, "reg=abc").contains("reg"),
        "{}",
        error(&mut spec, "reg=abc")
    );
    assert!(error(&mut spec, "model.reg=1").contains("model"));
    assert!(error(&mut spec, "reg").contains("key=value"));
    assert!(error(&mut spec, "keep_rate=0").contains("keep_rate"));
    spec.set("contrast=modality")?;
    spec.set("train.patience=3")?;
    spec.set("seed=9")?;
    assert_eq!((spec.train.patience, spec.seed), (3, 9));
    spec.merge_toml("seed = 4\n[params]\nreg = 0.5\n")?;
    assert_eq!(
        spec.parse::<tercet_models::diffmm::DiffMmConfig>()?.reg,
        0.5
    );
    assert!(spec.merge_toml("sead = 4").is_err());
    assert!(
        RunConfig::new("diffmn")
            .err()
            .is_some_and(|e| e.to_string().contains("diffmm"))
    );
    Ok(())
}
