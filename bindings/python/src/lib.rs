//! The native half of the Python package `tercet`.
//!
//! Arrays go in and out as numpy; every call that works lets other Python threads run.

use std::sync::{Arc, Mutex, PoisonError};

use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use tercet::{Row, Selection};
use tercet_ffi::engine::Listener;
use tercet_ffi::types::{
    self, Added, AttributeValues, Calibration, Cap, DiversityMethod, Event, Feature, Feedback,
    Freshness, NewItem, Options, Query,
};
use tercet_ffi::{Engine, HostError, Kind};

create_exception!(
    tercet,
    TercetError,
    PyException,
    "Base of all errors of Tercet."
);

macro_rules! errors {
    ($($kind:ident $name:ident $doc:literal,)*) => {
        $(create_exception!(tercet, $name, TercetError, $doc);)*

        fn raise(py: Python<'_>, e: HostError) -> PyErr {
            let text = e.reason.clone();
            let error = match e.kind {
                $(Kind::$kind => PyErr::new::<$name, _>(text),)*
                // A kind of the future.
                _ => PyErr::new::<InternalError, _>(text),
            };
            // An attribute as in the other languages; `str(e)` is the same.
            let _ = error.value(py).setattr("reason", e.reason);
            error
        }

        fn add_errors(m: &Bound<'_, PyModule>) -> PyResult<()> {
            m.add("TercetError", m.py().get_type::<TercetError>())?;
            $(m.add(stringify!($name), m.py().get_type::<$name>())?;)*
            Ok(())
        }
    };
}

errors! {
    Closed ClosedError "It was closed. Open it again.",
    InvalidArgument InvalidArgumentError "The caller's mistake.",
    UnknownItem UnknownItemError "The item is not in the bundle.",
    NotFound NotFoundError "The bundle folder or the snapshot file does not exist.",
    IncompatibleBundle IncompatibleBundleError "The bundle needs another version of Tercet.",
    CorruptBundle CorruptBundleError "The bundle is damaged or incomplete.",
    CorruptSnapshot CorruptSnapshotError "The saved history is damaged or of a newer version.",
    Unsupported UnsupportedError "The bundle or this build lacks what the call needs.",
    Busy BusyError "The file is open in another session or process.",
    Listener ListenerError "The listener failed; the change stands.",
    Io IoError "The system refused a file operation.",
    Internal InternalError "A fault of the library.",
}

type Result<T> = tercet_ffi::error::Result<T>;

/// Runs `f` while other Python threads may run, too.
fn away<T: Send>(py: Python<'_>, f: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    py.detach(f).map_err(|e| raise(py, e))
}

/// An item of the history that carries a part of a recommended one's score.
#[pyclass(frozen, eq, get_all, module = "tercet")]
#[derive(Clone, PartialEq)]
struct Because {
    item: String,
    share: f32,
    contribution: f32,
}

#[pymethods]
impl Because {
    fn __repr__(&self) -> String {
        format!("Because(item={:?}, share={:.3})", self.item, self.share)
    }
}

/// One recommended item.
#[pyclass(frozen, eq, get_all, module = "tercet")]
#[derive(Clone, PartialEq)]
struct Recommendation {
    item: String,
    score: f32,
    because: Vec<Because>,
    /// (name, share), most first.
    modalities: Vec<(String, f32)>,
}

#[pymethods]
impl Recommendation {
    fn __repr__(&self) -> String {
        let because: Vec<String> = self.because.iter().map(Because::__repr__).collect();
        format!(
            "Recommendation(item={:?}, score={:.4}, because=[{}])",
            self.item,
            self.score,
            because.join(", ")
        )
    }
}

fn converted(best: Vec<types::Recommendation>) -> Vec<Recommendation> {
    best.into_iter()
        .map(|r| Recommendation {
            item: r.item,
            score: r.score,
            modalities: r
                .modalities
                .into_iter()
                .map(|m| (m.name, m.share))
                .collect(),
            because: r
                .because
                .into_iter()
                .map(|b| Because {
                    item: b.item,
                    share: b.share,
                    contribution: b.contribution,
                })
                .collect(),
        })
        .collect()
}

/// An open bundle.
#[pyclass(frozen, module = "tercet")]
struct Bundle {
    engine: Engine,
}

#[pymethods]
impl Bundle {
    #[new]
    #[pyo3(signature = (path, *, copy = false, verify = false))]
    fn new(py: Python<'_>, path: std::path::PathBuf, copy: bool, verify: bool) -> PyResult<Self> {
        let engine = away(py, || {
            let path = path
                .to_str()
                .ok_or_else(|| HostError::argument("path is not valid Unicode"))?;
            let options = Options {
                copy,
                verify,
                max_history: 0,
                adapt: false,
            };
            Engine::open(path, &options)
        })?;
        Ok(Bundle { engine })
    }

    /// What the bundle is, as JSON.
    fn describe(&self, py: Python<'_>) -> PyResult<String> {
        away(py, || self.engine.describe())
    }

    /// Hashes every file and checks every row.
    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        away(py, || self.engine.verify())
    }

    /// Runs the bundle's own health check: (found, expected, passed), or None.
    fn probe(&self, py: Python<'_>) -> PyResult<Option<(i32, i32, bool)>> {
        let report = away(py, || self.engine.probe())?;
        Ok(report.map(|p| (p.found, p.expected, p.passed)))
    }

    /// A user's session.
    #[pyo3(signature = (*, max_history = 512, adapt = false))]
    fn session(&self, py: Python<'_>, max_history: i32, adapt: bool) -> PyResult<Session> {
        let engine = away(py, || {
            Engine::on(&self.engine.bundle()?, max_history, adapt)
        })?;
        Ok(Session {
            engine,
            thrown: Arc::default(),
        })
    }

    /// Keys of all items, in the order of rows.
    fn keys(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        away(py, || {
            let bundle = self.engine.bundle()?;
            let table = bundle.table();
            let keys = (0..table.len()).map(|row| Ok(table.key(row as Row)?.to_string()));
            keys.collect()
        })
    }

    /// Rows of item keys; -1 for those that the bundle does not have.
    fn rows<'py>(&self, py: Python<'py>, keys: Vec<String>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let rows: Vec<i64> = away(py, || {
            let bundle = self.engine.bundle()?;
            keys.iter()
                .map(|key| Ok(bundle.table().find(key)?.map_or(-1, i64::from)))
                .collect()
        })?;
        Ok(PyArray1::from_vec(py, rows))
    }

    /// Item vectors `[n, D]` of rows, or of all.
    #[pyo3(signature = (rows = None))]
    fn vectors<'py>(
        &self,
        py: Python<'py>,
        rows: Option<PyReadonlyArray1<'py, i64>>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let rows: Option<Vec<i64>> = rows.map(|r| r.as_array().iter().copied().collect());
        let (vectors, n, d) = away(py, || {
            let bundle = self.engine.bundle()?;
            let table = bundle.table();
            let rows = match rows {
                Some(rows) => rows.iter().map(|r| row(*r)).collect::<Result<Vec<Row>>>()?,
                None => (0..table.len() as Row).collect(),
            };
            let d = table.dim();
            let mut vectors = vec![0.0f32; rows.len() * d];
            for (row, x) in rows.iter().zip(vectors.chunks_exact_mut(d)) {
                table.decode(*row, x)?;
            }
            Ok((vectors, rows.len(), d))
        })?;
        PyArray1::from_vec(py, vectors).reshape([n, d])
    }

    /// Popularity of all items, or None.
    fn popularity<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyArray1<f32>>>> {
        let values = away(py, || {
            Ok(self
                .engine
                .bundle()?
                .table()
                .popularity()
                .map(<[f32]>::to_vec))
        })?;
        Ok(values.map(|v| PyArray1::from_vec(py, v)))
    }

    /// Values of an attribute column, a list per item.
    fn attribute(&self, py: Python<'_>, name: &str) -> PyResult<Vec<Vec<String>>> {
        away(py, || {
            let bundle = self.engine.bundle()?;
            let table = bundle.table();
            (0..table.len() as Row)
                .map(|row| {
                    let values = table.attribute(name, row)?;
                    Ok(values.into_iter().map(String::from).collect())
                })
                .collect()
        })
    }

    /// User vectors `[B, D]` of histories (item keys, oldest first).
    #[pyo3(signature = (histories, behaviors = None))]
    fn encode<'py>(
        &self,
        py: Python<'py>,
        histories: Vec<Vec<String>>,
        behaviors: Option<Vec<Vec<String>>>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let n = histories.len();
        let (vectors, d) = away(py, || {
            let bundle = self.engine.bundle()?;
            if behaviors.as_ref().is_some_and(|b| b.len() != n) {
                return Err(HostError::argument(
                    "behaviors has another length than histories",
                ));
            }
            let mut events = Vec::with_capacity(n);
            for (i, history) in histories.iter().enumerate() {
                let names = behaviors.as_ref().map(|b| &b[i]);
                if names.is_some_and(|names| names.len() != history.len()) {
                    return Err(HostError::argument(format!(
                        "behaviors[{i}] has another length than histories[{i}]"
                    )));
                }
                let mut known = Vec::with_capacity(history.len());
                for (j, key) in history.iter().enumerate() {
                    let behavior = match names {
                        None => 0,
                        Some(names) => {
                            bundle.manifest().behavior_id(&names[j]).ok_or_else(|| {
                                HostError::argument(format!(
                                    "behavior {:?} is not in this bundle's vocabulary {:?}",
                                    names[j],
                                    bundle.manifest().behaviors
                                ))
                            })?
                        }
                    };
                    known.extend(bundle.table().find(key)?.map(|row| (row, behavior)));
                }
                events.push(known);
            }
            let vectors = tercet::score_histories(&bundle, &events)?;
            Ok((vectors, bundle.table().dim()))
        })?;
        PyArray1::from_vec(py, vectors).reshape([n, d])
    }

    /// The best k items of each of `users` `[B, D]`: rows `[B, k]` and scores `[B, k]`, filled up
    /// with -1 and -inf.
    #[pyo3(signature = (users, k, *, exclude = None, filter = None))]
    #[allow(clippy::type_complexity)]
    fn search<'py>(
        &self,
        py: Python<'py>,
        users: PyReadonlyArray2<'py, f32>,
        k: usize,
        exclude: Option<Vec<Vec<String>>>,
        filter: Option<&str>,
    ) -> PyResult<(Bound<'py, PyArray2<i64>>, Bound<'py, PyArray2<f32>>)> {
        let array = users.as_array();
        let (n, d) = (array.nrows(), array.ncols());
        let values: Vec<f32> = array.iter().copied().collect();
        let (rows, scores, k) = away(py, || {
            let bundle = self.engine.bundle()?;
            let table = bundle.table();
            if d != table.dim() {
                return Err(HostError::argument(format!(
                    "users has {d} columns, the bundle's vectors have {}",
                    table.dim()
                )));
            }
            if exclude.as_ref().is_some_and(|e| e.len() != n) {
                return Err(HostError::argument("exclude has another length than users"));
            }
            let within: Option<Selection> = match filter {
                Some(text) => Some(table.select(&tercet::Filter::parse(text)?)?),
                None => None,
            };
            let k = k.min(table.len());
            let mut rows = vec![-1i64; n * k];
            let mut scores = vec![f32::NEG_INFINITY; n * k];
            for (i, user) in values.chunks_exact(d).enumerate() {
                let mut left_out = Vec::new();
                for key in exclude.iter().flat_map(|e| &e[i]) {
                    left_out.extend(table.find(key)?);
                }
                let best = match &within {
                    Some(within) => {
                        table.top_k_within(tercet::Metric::Score, user, k, &left_out, within)?
                    }
                    None => table.top_k(user, k, &left_out)?,
                };
                for (j, hit) in best.iter().enumerate() {
                    rows[i * k + j] = i64::from(hit.row);
                    scores[i * k + j] = hit.score;
                }
            }
            Ok((rows, scores, k))
        })?;
        Ok((
            PyArray1::from_vec(py, rows).reshape([n, k])?,
            PyArray1::from_vec(py, scores).reshape([n, k])?,
        ))
    }

    /// Gives the memory back. Closing twice is fine.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.engine.close());
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        away(py, || Ok(self.engine.bundle()?.table().len()))
    }

    fn __repr__(&self) -> String {
        match self.engine.info() {
            Ok(i) => format!(
                "<tercet.Bundle {} version {}: {} items of {} values>",
                i.bundle_id, i.bundle_version, i.items, i.dim
            ),
            Err(_) => "<tercet.Bundle, closed>".into(),
        }
    }
}

fn row(value: i64) -> Result<Row> {
    Row::try_from(value)
        .map_err(|_| HostError::argument(format!("row {value} is not in the table")))
}

/// One user: what was done, and what to recommend.
#[pyclass(frozen, module = "tercet")]
struct Session {
    engine: Engine,
    /// What the listener raised last, to be the cause of the error.
    thrown: Arc<Mutex<Option<PyErr>>>,
}

/// (item, behavior, timestamp)
type EventTuple = (String, Option<String>, Option<i64>);

impl Session {
    fn change<T: Send>(
        &self,
        py: Python<'_>,
        f: impl FnOnce(&Engine) -> Result<T> + Send,
    ) -> PyResult<T> {
        away(py, || f(&self.engine)).inspect_err(|error| {
            if error.is_instance_of::<ListenerError>(py) {
                let mut thrown = self.thrown.lock().unwrap_or_else(PoisonError::into_inner);
                error.set_cause(py, thrown.take());
            }
        })
    }
}

#[pymethods]
impl Session {
    /// Adds an event; returns whether the bundle knows the item.
    #[pyo3(signature = (item, behavior = None, timestamp = None))]
    fn record(
        &self,
        py: Python<'_>,
        item: String,
        behavior: Option<String>,
        timestamp: Option<i64>,
    ) -> PyResult<bool> {
        let event = Event {
            item,
            behavior,
            timestamp,
        };
        self.change(py, |engine| engine.record(event))
    }

    /// Adds an item that the bundle does not hold: features by modality, values by attribute.
    /// Returns "ranked", "replaced" or "in the bundle".
    #[pyo3(signature = (item, features, attributes = None))]
    fn add_item(
        &self,
        py: Python<'_>,
        item: String,
        features: &Bound<'_, PyDict>,
        attributes: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<&'static str> {
        let mut new = NewItem {
            item,
            features: Vec::new(),
            attributes: Vec::new(),
        };
        for (modality, values) in features.iter() {
            new.features.push(Feature {
                modality: modality.extract()?,
                values: values.extract()?,
            });
        }
        for (attribute, values) in attributes.into_iter().flat_map(|a| a.iter()) {
            new.attributes.push(AttributeValues {
                attribute: attribute.extract()?,
                values: values.extract()?,
            });
        }
        Ok(match self.change(py, |engine| engine.add_item(new))? {
            Added::Ranked => "ranked",
            Added::Replaced => "replaced",
            Added::InBundle => "in the bundle",
        })
    }

    /// Takes an added item away; returns whether there was one.
    fn remove_item(&self, py: Python<'_>, item: &str) -> PyResult<bool> {
        self.change(py, |engine| engine.remove_item(item))
    }

    /// The added items: (item, whether it is ranked).
    fn added_items(&self, py: Python<'_>) -> PyResult<Vec<(String, bool)>> {
        let items = away(py, || self.engine.added_items())?.into_iter();
        Ok(items.map(|i| (i.item, i.ranked)).collect())
    }

    /// The best items for this user.
    #[pyo3(signature = (k, *, filter = None, diversity = 0.0, method = "mmr", pool = 0, caps = None,
        calibrate = None, popularity = 0.0, freshness = Vec::new(), explore = 0.0, seed = 0,
        probes = 0, exclude = Vec::new(), include_seen = false, explain = false))]
    #[allow(clippy::too_many_arguments)]
    fn recommend(
        &self,
        py: Python<'_>,
        k: i32,
        filter: Option<String>,
        diversity: f32,
        method: &str,
        pool: i32,
        caps: Option<&Bound<'_, PyDict>>,
        calibrate: Option<&Bound<'_, PyDict>>,
        popularity: f32,
        freshness: Vec<(String, f64, f64, f32)>,
        explore: f32,
        seed: i64,
        probes: i32,
        exclude: Vec<String>,
        include_seen: bool,
        explain: bool,
    ) -> PyResult<Vec<Recommendation>> {
        let method = match method {
            "mmr" => DiversityMethod::Mmr,
            "dpp" => DiversityMethod::Dpp,
            other => {
                let reason = format!("method is {other:?}, accepted are \"mmr\" and \"dpp\"");
                return Err(raise(py, HostError::argument(reason)));
            }
        };
        let mut limits = Vec::new();
        for (attribute, items) in caps.into_iter().flat_map(|c| c.iter()) {
            limits.push(Cap {
                attribute: attribute.extract()?,
                items: items.extract()?,
            });
        }
        let mut calibrations = Vec::new();
        for (attribute, slack) in calibrate.into_iter().flat_map(|c| c.iter()) {
            calibrations.push(Calibration {
                attribute: attribute.extract()?,
                slack: slack.extract()?,
            });
        }
        let freshness = freshness.into_iter();
        let freshness = freshness.map(|(attribute, now, half_life, weight)| Freshness {
            attribute,
            now,
            half_life,
            weight,
        });
        let query = Query {
            method: Some(method),
            caps: limits,
            calibrations,
            popularity,
            freshness: freshness.collect(),
            explore,
            seed,
            probes,
            filter,
            diversity,
            pool,
            exclude,
            include_seen,
            explain,
            ..Query::top(k)
        };
        Ok(converted(away(py, || self.engine.recommend(query))?))
    }

    /// Given candidates, best first, and those that the bundle does not know.
    fn rank(
        &self,
        py: Python<'_>,
        candidates: Vec<String>,
    ) -> PyResult<(Vec<Recommendation>, Vec<String>)> {
        let ranking = away(py, || self.engine.rank(&candidates))?;
        Ok((converted(ranking.ranked), ranking.unknown))
    }

    /// The k items most like one.
    fn similar(&self, py: Python<'_>, item: &str, k: i32) -> PyResult<Vec<Recommendation>> {
        Ok(converted(away(py, || self.engine.similar(item, k))?))
    }

    /// The user vector `[D]`.
    fn user_vector<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let vector = away(py, || self.engine.user_vector())?;
        Ok(PyArray1::from_vec(py, vector))
    }

    /// The events, oldest first: (item, behavior, timestamp).
    fn history(&self, py: Python<'_>) -> PyResult<Vec<EventTuple>> {
        let events = away(py, || self.engine.history())?;
        let events = events.into_iter();
        Ok(events.map(|e| (e.item, e.behavior, e.timestamp)).collect())
    }

    /// Writes history and added items to a file.
    fn save(&self, py: Python<'_>, path: std::path::PathBuf) -> PyResult<()> {
        let path = unicode(py, &path)?;
        away(py, || self.engine.save(path))
    }

    /// Replaces history and added items by those of a file.
    fn restore(&self, py: Python<'_>, path: std::path::PathBuf) -> PyResult<()> {
        let path = unicode(py, &path)?;
        self.change(py, |engine| engine.restore(path))
    }

    /// Learns what the user thinks of an item: "positive", "skipped" or "disliked".
    #[pyo3(signature = (item, feedback, timestamp = None))]
    fn feedback(
        &self,
        py: Python<'_>,
        item: &str,
        feedback: &str,
        timestamp: Option<i64>,
    ) -> PyResult<bool> {
        let feedback = match feedback {
            "positive" => Feedback::Positive,
            "skipped" => Feedback::Skipped,
            "disliked" => Feedback::Disliked,
            other => {
                let reason = format!("feedback is {other:?}: positive, skipped or disliked");
                return Err(raise(py, HostError::argument(reason)));
            }
        };
        self.change(py, |engine| engine.feedback(item, feedback, timestamp))
    }

    /// Forgets all feedback.
    fn forget_feedback(&self, py: Python<'_>) -> PyResult<()> {
        self.change(py, |engine| engine.forget_feedback())
    }

    /// From now on keeps history and added items in a file, as they come.
    #[pyo3(signature = (path, key = None, *, survive_power_loss = true))]
    fn keep_in(
        &self,
        py: Python<'_>,
        path: std::path::PathBuf,
        key: Option<Vec<u8>>,
        survive_power_loss: bool,
    ) -> PyResult<()> {
        let path = unicode(py, &path)?;
        self.change(py, |engine| {
            engine.keep_in(path, key.as_deref(), survive_power_loss)
        })
    }

    /// Everything that is kept of the user, as a JSON document.
    fn export_user_data(&self, py: Python<'_>) -> PyResult<String> {
        away(py, || self.engine.export_user_data())
    }

    /// Forgets everything about the user and deletes the file, if given.
    #[pyo3(signature = (path = None))]
    fn erase(&self, py: Python<'_>, path: Option<std::path::PathBuf>) -> PyResult<()> {
        let path = match &path {
            Some(path) => Some(unicode(py, path)?),
            None => None,
        };
        self.change(py, |engine| engine.erase(path))
    }

    /// Calls `listener(revision)` after every change; None removes it.
    #[pyo3(signature = (listener))]
    fn set_listener(&self, py: Python<'_>, listener: Option<Py<PyAny>>) -> PyResult<()> {
        if self.engine.is_closed() {
            return Err(raise(py, HostError::closed()));
        }
        let thrown = self.thrown.clone();
        self.engine.set_listener(listener.map(|function| {
            let call: Arc<Listener> = Arc::new(move |revision| {
                Python::attach(|py| {
                    function.call1(py, (revision,)).map(drop).map_err(|e| {
                        let reason = format!("the listener failed: {e}; the change stands");
                        *thrown.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
                        HostError::new(Kind::Listener, reason)
                    })
                })
            });
            call
        }));
        Ok(())
    }

    /// Gives the memory back. Closing twice is fine.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.engine.close());
    }

    fn __enter__(this: Py<Self>) -> Py<Self> {
        this
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, pyo3::types::PyTuple>) {
        self.close(py);
    }
}

fn unicode<'a>(py: Python<'_>, path: &'a std::path::Path) -> PyResult<&'a str> {
    path.to_str()
        .ok_or_else(|| raise(py, HostError::argument("path is not valid Unicode")))
}

#[pymodule]
fn _native(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add_class::<Bundle>()?;
    m.add_class::<Session>()?;
    m.add_class::<Recommendation>()?;
    m.add_class::<Because>()?;
    add_errors(m)
}
