//! `scenario.tsv`: whether the committed answers are those of the runtime, and whether the engine
//! of the bindings gives the same. The other languages read the same file.
//!
//! Kernels agree to the last bit, so the answers hold on every CPU.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tercet_ffi::error::{HostError, Kind, Result};
use tercet_ffi::types::{Added, Event, Feedback, NewItem, Options, Query, Recommendation};
use tercet_ffi::{Engine, engine::Listener};
use tercet_fixtures::scenario::{Host, answered, perform, steps};

/// Cargo runs tests in their package; a path of this build would outlive a checkout.
const SCENARIO: &str = "scenario.tsv";

fn committed() -> String {
    std::fs::read_to_string(SCENARIO).unwrap()
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
    fn add(&mut self, item: NewItem) -> Result<Added> {
        self.engine().add_item(item)
    }
    fn feedback(&mut self, item: &str, feedback: Feedback) -> Result<bool> {
        self.engine().feedback(item, feedback, None)
    }
    fn forget_feedback(&mut self) -> Result<()> {
        self.engine().forget_feedback()
    }
    fn remove(&mut self, item: &str) -> Result<bool> {
        self.engine().remove_item(item)
    }
    fn added(&mut self) -> Result<Vec<(String, bool)>> {
        let items = self.engine().added_items()?.into_iter();
        Ok(items.map(|i| (i.item, i.ranked)).collect())
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
    fn keep_in(&mut self, path: &str, key: Option<&[u8]>) -> Result<()> {
        self.engine().keep_in(path, key, true)
    }
    fn export_user_data(&mut self) -> Result<String> {
        self.engine().export_user_data()
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

#[test]
fn the_file_says_what_the_runtime_answers() {
    let (_folder, fixtures, scratch) = fixtures();
    let text = answered(&committed(), &fixtures, &scratch);
    if std::env::var_os("TERCET_BLESS").is_some() {
        std::fs::write(SCENARIO, &text).unwrap();
    }
    for (line, (got, expected)) in text.lines().zip(committed().lines()).enumerate() {
        assert_eq!(got, expected, "line {}", line + 1);
    }
    assert_eq!(text, committed());
}

#[test]
fn the_engine_answers_as_the_file_says() {
    let text = committed();
    let (_folder, fixtures, scratch) = fixtures();
    let mut host = Bound::default();
    for step in steps(&text) {
        let answer = perform(&mut host, &step, &fixtures, &scratch);
        assert_eq!(
            answer, step.expected,
            "line {}: {:?}",
            step.line, step.words
        );
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
