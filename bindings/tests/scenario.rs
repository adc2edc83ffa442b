//! `scenario.tsv`: what the runtime itself answers, and whether the engine of the bindings
//! answers the same. The other languages read the same file.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tercet::{Bundle, Filter, LoadMode, OpenOptions, Session, SessionOptions};
use tercet_ffi::error::{HostError, Kind, Result};
use tercet_ffi::types::{Event, Options, Query, Recommendation};
use tercet_ffi::{Engine, engine::Listener};

/// One line of the file that is a step, with the lines it must give.
struct Step {
    line: usize,
    words: Vec<String>,
    expected: Vec<String>,
}

fn scenario_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenario.tsv")
}

fn steps() -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for (line, text) in std::fs::read_to_string(scenario_path())
        .unwrap()
        .lines()
        .enumerate()
    {
        if text.starts_with('=') {
            steps.last_mut().unwrap().expected.push(text.to_string());
        } else if !text.is_empty() && !text.starts_with('#') {
            steps.push(Step {
                line: line + 1,
                words: text.split('\t').map(String::from).collect(),
                expected: Vec::new(),
            });
        }
    }
    steps
}

/// What a step can do. Results are lines without the leading `=` and tab.
trait Host {
    fn open(&mut self, path: &str, options: &Options) -> Result<()>;
    fn close(&mut self);
    fn info(&mut self) -> Result<Vec<String>>;
    fn record(&mut self, event: Event) -> Result<bool>;
    fn history(&mut self) -> Result<Vec<String>>;
    fn recommend(&mut self, query: Query) -> Result<Vec<Recommendation>>;
    fn rank(&mut self, items: &[String]) -> Result<(Vec<Recommendation>, Vec<String>)>;
    fn similar(&mut self, item: &str, k: i32) -> Result<Vec<Recommendation>>;
    fn vector(&mut self) -> Result<Vec<f32>>;
    fn probe(&mut self) -> Result<Option<(i32, i32, bool)>>;
    fn verify(&mut self) -> Result<()>;
    fn save(&mut self, path: &str) -> Result<()>;
    fn restore(&mut self, path: &str) -> Result<()>;
    fn erase(&mut self, path: Option<&str>) -> Result<()>;
    fn listener(&mut self, what: &str) -> Result<()>;
    fn heard(&self) -> i64;
}

fn given(word: &str) -> Option<String> {
    (word != "-").then(|| word.to_string())
}

fn bits(x: f32) -> String {
    format!("{:08x}", x.to_bits())
}

fn lines(best: Vec<Recommendation>) -> Vec<String> {
    best.iter()
        .map(|r| {
            let mut line = format!("{}\t{}", r.item, bits(r.score));
            for b in &r.because {
                write!(line, "\t{}\t{}", b.item, bits(b.share)).unwrap();
            }
            line
        })
        .collect()
}

fn run(
    host: &mut dyn Host,
    words: &[String],
    fixtures: &Path,
    scratch: &Path,
) -> Result<Vec<String>> {
    let file = |name: &str| match name.strip_prefix('$') {
        Some(name) => scratch.join(name),
        None => fixtures.join(name),
    };
    let path = |name: &str| file(name).to_str().unwrap().to_string();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Ok(match words[..] {
        ["open", name, ref flags @ ..] => {
            let mut options = Options::default();
            for flag in flags {
                match flag.split_once('=') {
                    None if *flag == "copy" => options.copy = true,
                    None if *flag == "verify" => options.verify = true,
                    Some(("max_history", n)) => options.max_history = n.parse().unwrap(),
                    _ => panic!("{flag}"),
                }
            }
            host.open(&path(name), &options)?;
            Vec::new()
        }
        ["close"] => {
            host.close();
            Vec::new()
        }
        ["info"] => host.info()?,
        ["record", item, behavior, time] => {
            let known = host.record(Event {
                item: item.to_string(),
                behavior: given(behavior),
                timestamp: given(time).map(|t| t.parse().unwrap()),
            })?;
            let known = if known { "known" } else { "unknown" };
            vec![format!("{known}\theard\t{}", host.heard())]
        }
        ["history"] => host.history()?,
        ["recommend", ref settings @ ..] => {
            let mut query = Query::top(0);
            for setting in settings {
                let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
                match name {
                    "k" => query.k = value.parse().unwrap(),
                    "filter" => query.filter = Some(value.to_string()),
                    "diversity" => query.diversity = value.parse().unwrap(),
                    "pool" => query.pool = value.parse().unwrap(),
                    "exclude" => query.exclude = value.split(',').map(String::from).collect(),
                    "include_seen" => query.include_seen = true,
                    "explain" => query.explain = true,
                    _ => panic!("{name}"),
                }
            }
            lines(host.recommend(query)?)
        }
        ["rank", ref items @ ..] => {
            let items: Vec<String> = items.iter().map(|s| s.to_string()).collect();
            let (ranked, unknown) = host.rank(&items)?;
            let mut out = lines(ranked);
            out.extend(unknown.iter().map(|item| format!("unknown\t{item}")));
            out
        }
        ["similar", item, k] => lines(host.similar(item, k.parse().unwrap())?),
        ["vector"] => {
            let vector = host.vector()?;
            vec![
                vector
                    .iter()
                    .map(|x| bits(*x))
                    .collect::<Vec<_>>()
                    .join("\t"),
            ]
        }
        ["probe"] => match host.probe()? {
            None => vec!["none".into()],
            Some((found, expected, passed)) => {
                vec![format!(
                    "{found}\t{expected}\t{}",
                    if passed { "passed" } else { "failed" }
                )]
            }
        },
        ["verify"] => {
            host.verify()?;
            vec!["fine".into()]
        }
        ["save", name] => {
            host.save(&path(name))?;
            Vec::new()
        }
        ["restore", name] => {
            host.restore(&path(name))?;
            Vec::new()
        }
        ["erase", name] => {
            let file = given(name).map(|n| path(&n));
            host.erase(file.as_deref())?;
            let gone = file.is_none_or(|f| !Path::new(&f).exists());
            let gone = if gone { "gone" } else { "there" };
            vec![format!("{gone}\theard\t{}", host.heard())]
        }
        ["listener", what] => {
            host.listener(what)?;
            Vec::new()
        }
        _ => panic!("{words:?}"),
    })
}

fn name(kind: Kind) -> String {
    format!("{kind:?}")
}

fn perform(host: &mut dyn Host, step: &Step, fixtures: &Path, scratch: &Path) -> Vec<String> {
    match run(host, &step.words, fixtures, scratch) {
        Ok(lines) => lines.iter().map(|l| format!("=\t{l}")).collect(),
        Err(e) => {
            assert!(
                !e.reason.is_empty(),
                "line {}: an error without a reason",
                step.line
            );
            vec![format!("=!\t{}", name(e.kind))]
        }
    }
}

/// The runtime itself.
#[derive(Default)]
struct Runtime {
    open: Option<(Session, SessionOptions)>,
    listener: Option<bool>,
    heard: i64,
}

impl Runtime {
    fn session(&mut self) -> Result<&mut Session> {
        Ok(&mut self.open.as_mut().ok_or_else(HostError::closed)?.0)
    }

    fn changed(&mut self) -> Result<()> {
        match self.listener {
            Some(true) => Err(HostError::new(Kind::Listener, "it fails")),
            Some(false) => {
                self.heard += 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

fn query(q: Query) -> Result<tercet::Query> {
    let mut query = tercet::Query::top(q.k as usize)
        .exclude(q.exclude)
        .include_seen(q.include_seen)
        .explain(q.explain)
        .diversity(q.diversity);
    if let Some(filter) = q.filter {
        query = query.filter(Filter::parse(&filter)?);
    }
    if q.pool != 0 {
        query = query.pool(q.pool as usize);
    }
    Ok(query)
}

impl Host for Runtime {
    fn open(&mut self, path: &str, options: &Options) -> Result<()> {
        let mode = if options.copy {
            LoadMode::Read
        } else {
            LoadMode::Map
        };
        let mut session = SessionOptions::default();
        if options.max_history != 0 {
            let events = options.max_history.try_into().unwrap_or(usize::MAX);
            session = session.max_history(events);
        }
        let bundle: Bundle = OpenOptions::new().mode(mode).open(path)?;
        if options.verify {
            bundle.verify()?;
        }
        self.open = Some((Session::new(&bundle, session)?, session));
        Ok(())
    }
    fn close(&mut self) {
        self.open = None;
        self.listener = None;
    }
    fn info(&mut self) -> Result<Vec<String>> {
        let bundle = self.session()?.bundle().clone();
        let m = bundle.manifest();
        let attributes: Vec<&str> = bundle.table().attributes().collect();
        Ok(vec![
            format!(
                "{}\t{}\t{}\t{}\t{}",
                m.bundle_id, m.bundle_version, m.items, m.dim, m.window
            ),
            m.behaviors.join("\t"),
            attributes.join("\t"),
        ])
    }
    fn record(&mut self, e: Event) -> Result<bool> {
        let mut event = tercet::Event::new(e.item);
        event.behavior = e.behavior;
        event.timestamp = e.timestamp;
        let known = self.session()?.record(event)? == tercet::Recorded::Known;
        self.changed()?;
        Ok(known)
    }
    fn history(&mut self) -> Result<Vec<String>> {
        let session = self.session()?;
        Ok(session.history().events().map(|e| e.item.clone()).collect())
    }
    fn recommend(&mut self, q: Query) -> Result<Vec<Recommendation>> {
        let q = query(q)?;
        let best = self.session()?.recommend(&q)?;
        Ok(best.into_iter().map(Recommendation::from).collect())
    }
    fn rank(&mut self, items: &[String]) -> Result<(Vec<Recommendation>, Vec<String>)> {
        let items: Vec<&str> = items.iter().map(String::as_str).collect();
        let ranking = self.session()?.rank(&items)?;
        let ranked = ranking
            .ranked
            .into_iter()
            .map(Recommendation::from)
            .collect();
        Ok((ranked, ranking.unknown))
    }
    fn similar(&mut self, item: &str, k: i32) -> Result<Vec<Recommendation>> {
        let best = self.session()?.similar(item, k as usize)?;
        Ok(best.into_iter().map(Recommendation::from).collect())
    }
    fn vector(&mut self) -> Result<Vec<f32>> {
        Ok(self.session()?.user_vector()?.to_vec())
    }
    fn probe(&mut self) -> Result<Option<(i32, i32, bool)>> {
        let report = self.session()?.bundle().run_probe()?;
        Ok(report.map(|p| (p.found as i32, p.expected as i32, p.passed)))
    }
    fn verify(&mut self) -> Result<()> {
        Ok(self.session()?.bundle().verify()?)
    }
    fn save(&mut self, path: &str) -> Result<()> {
        Ok(self.session()?.save(path)?)
    }
    fn restore(&mut self, path: &str) -> Result<()> {
        let (session, options) = self.open.as_mut().ok_or_else(HostError::closed)?;
        *session = Session::restore(&session.bundle().clone(), path, *options)?;
        self.changed()
    }
    fn erase(&mut self, path: Option<&str>) -> Result<()> {
        let done = self.session()?.erase(path.map(Path::new));
        self.changed()?;
        Ok(done?)
    }
    fn listener(&mut self, what: &str) -> Result<()> {
        self.session()?;
        self.listener = match what {
            "count" => Some(false),
            "fail" => Some(true),
            _ => None,
        };
        self.heard = 0;
        Ok(())
    }
    fn heard(&self) -> i64 {
        self.heard
    }
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

#[test]
fn the_file_says_what_the_runtime_answers() {
    let (_folder, fixtures, scratch) = fixtures();
    let mut host = Runtime::default();
    let steps = steps();
    let mut answers: Vec<Vec<String>> = Vec::new();
    for step in &steps {
        answers.push(perform(&mut host, step, &fixtures, &scratch));
    }
    if std::env::var_os("TERCET_BLESS").is_some() {
        let mut answers = answers.iter();
        let mut text = String::new();
        for line in std::fs::read_to_string(scenario_path()).unwrap().lines() {
            if line.starts_with('=') {
                continue;
            }
            writeln!(text, "{line}").unwrap();
            if !line.is_empty() && !line.starts_with('#') {
                for answer in answers.next().unwrap() {
                    writeln!(text, "{answer}").unwrap();
                }
            }
        }
        std::fs::write(scenario_path(), text).unwrap();
        return;
    }
    for (step, answer) in steps.iter().zip(&answers) {
        assert_eq!(
            answer, &step.expected,
            "line {}: {:?}",
            step.line, step.words
        );
    }
}

#[test]
fn the_engine_of_the_bindings_answers_the_same() {
    let (_folder, fixtures, scratch) = fixtures();
    let mut host = Bound::default();
    for step in steps() {
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
    let text = std::fs::read_to_string(scenario_path()).unwrap();
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
