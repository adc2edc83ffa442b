//! `scenario.tsv`: whether the committed answers are those of the runtime, and whether the engine
//! of the bindings gives the same. The other languages read the same file.
//!
//! The last bits of a float depend on the order in which a kernel adds, so the file holds the
//! answers of the scalar kernel, which are the same on every CPU. With the kernel of this machine
//! the engine is compared with the runtime's answers of today.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tercet_ffi::error::{HostError, Kind, Result};
use tercet_ffi::types::{Event, Options, Query, Recommendation};
use tercet_ffi::{Engine, engine::Listener};
use tercet_fixtures::scenario::{Host, answered, perform, steps};

fn scenario_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenario.tsv")
}

fn committed() -> String {
    std::fs::read_to_string(scenario_path()).unwrap()
}

/// The core of the bindings.
#[derive(Default)]
struct Bound {
    engine: Option<Engine>,
    heard: Arc<AtomicI64>,
}

impl Bound {
    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }
}

impl Host for Bound {
    fn open(&mut self, path: &str, options: &Options) -> Result<()> {
        self.engine = Some(Engine::open(path, options)?);
        Ok(())
    }
    fn close(&mut self) {
        self.engine().close();
        assert!(self.engine().is_closed());
    }
    fn info(&mut self) -> Result<Vec<String>> {
        let i = self.engine().info()?;
        Ok(vec![
            format!(
                "{}\t{}\t{}\t{}\t{}",
                i.bundle_id, i.bundle_version, i.items, i.dim, i.window
            ),
            i.behaviors.join("\t"),
            i.attributes.join("\t"),
        ])
    }
    fn record(&mut self, event: Event) -> Result<bool> {
        self.engine().record(event)
    }
    fn history(&mut self) -> Result<Vec<String>> {
        Ok(self
            .engine()
            .history()?
            .into_iter()
            .map(|e| e.item)
            .collect())
    }
    fn recommend(&mut self, query: Query) -> Result<Vec<Recommendation>> {
        self.engine().recommend(query)
    }
    fn rank(&mut self, items: &[String]) -> Result<(Vec<Recommendation>, Vec<String>)> {
        let ranking = self.engine().rank(items)?;
        Ok((ranking.ranked, ranking.unknown))
    }
    fn similar(&mut self, item: &str, k: i32) -> Result<Vec<Recommendation>> {
        self.engine().similar(item, k)
    }
    fn vector(&mut self) -> Result<Vec<f32>> {
        self.engine().user_vector()
    }
    fn probe(&mut self) -> Result<Option<(i32, i32, bool)>> {
        Ok(self
            .engine()
            .probe()?
            .map(|p| (p.found, p.expected, p.passed)))
    }
    fn verify(&mut self) -> Result<()> {
        self.engine().verify()
    }
    fn save(&mut self, path: &str) -> Result<()> {
        self.engine().save(path)
    }
    fn restore(&mut self, path: &str) -> Result<()> {
        self.engine().restore(path)
    }
    fn erase(&mut self, path: Option<&str>) -> Result<()> {
        self.engine().erase(path)
    }
    fn listener(&mut self, what: &str) -> Result<()> {
        self.heard.store(0, Ordering::Relaxed);
        let heard = self.heard.clone();
        let listener: Option<Arc<Listener>> = match what {
            "count" => Some(Arc::new(move |_| {
                heard.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })),
            "fail" => Some(Arc::new(|_| {
                Err(HostError::new(Kind::Listener, "it fails"))
            })),
            _ => None,
        };
        self.engine().set_listener(listener);
        Ok(())
    }
    fn heard(&self) -> i64 {
        self.heard.load(Ordering::Relaxed)
    }
}

fn fixtures() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (fixtures, scratch) = (
        folder.path().join("fixtures"),
        folder.path().join("scratch"),
    );
    tercet_fixtures::write_all(&fixtures).unwrap();
    std::fs::create_dir(&scratch).unwrap();
    (folder, fixtures, scratch)
}

fn compare_bound(text: &str) {
    let (_folder, fixtures, scratch) = fixtures();
    let mut host = Bound::default();
    for step in steps(text) {
        let answer = perform(&mut host, &step, &fixtures, &scratch);
        assert_eq!(
            answer, step.expected,
            "line {}: {:?}",
            step.line, step.words
        );
    }
}

#[test]
fn the_engine_answers_as_the_runtime_with_the_kernel_of_this_machine() {
    let (_folder, fixtures, scratch) = fixtures();
    compare_bound(&answered(&committed(), &fixtures, &scratch));
}

/// Runs `name`, one of the tests below, with the scalar kernel: a kernel is chosen once per
/// process.
fn with_the_scalar_kernel(name: &str) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env("TERCET_KERNEL", "scalar")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
}

#[test]
fn the_file_says_what_the_runtime_answers() {
    with_the_scalar_kernel("scalar::file");
}

#[test]
fn the_engine_answers_as_the_file_says() {
    with_the_scalar_kernel("scalar::engine");
}

/// Run by the two tests above.
mod scalar {
    use super::*;

    #[test]
    #[ignore = "needs TERCET_KERNEL=scalar from the start of the process"]
    fn file() {
        assert_eq!(tercet::kernel::active().name(), "scalar");
        let (_folder, fixtures, scratch) = fixtures();
        let text = answered(&committed(), &fixtures, &scratch);
        if std::env::var_os("TERCET_BLESS").is_some() {
            std::fs::write(scenario_path(), &text).unwrap();
        }
        for (line, (got, expected)) in text.lines().zip(committed().lines()).enumerate() {
            assert_eq!(got, expected, "line {}", line + 1);
        }
        assert_eq!(text, committed());
    }

    #[test]
    #[ignore = "needs TERCET_KERNEL=scalar from the start of the process"]
    fn engine() {
        assert_eq!(tercet::kernel::active().name(), "scalar");
        compare_bound(&committed());
    }
}

#[test]
fn the_scenario_meets_every_error_that_a_host_can_cause() {
    let text = committed();
    for kind in [
        Kind::Closed,
        Kind::InvalidArgument,
        Kind::UnknownItem,
        Kind::NotFound,
        Kind::IncompatibleBundle,
        Kind::CorruptBundle,
        Kind::CorruptSnapshot,
        Kind::Unsupported,
        Kind::Listener,
        Kind::Io,
    ] {
        assert!(text.contains(&format!("=!\t{kind:?}\n")), "{kind:?}");
    }
}
