//! A bundle with one user's session, as hosts hold it: shared between threads, closed by hand.

#![deny(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tercet::{Bundle, Durability, LoadMode, OpenOptions, Recorded, Session, SessionOptions};

use crate::error::{HostError, Result};
use crate::types::{
    Added, AddedItem, Event, Feedback, Info, NewItem, Options, Probe, Query, Ranking,
    Recommendation, count,
};

/// Is told when a user's history has changed; gets the number of the change.
pub type Listener = dyn Fn(i64) -> Result<()> + Send + Sync;

/// A bundle and the session of one user.
///
/// Calls may come from any thread. Those that touch the session run one after another; engines
/// of the same bundle made by [`Engine::new_session`] run side by side. After [`Engine::close`]
/// every call returns [`Kind::Closed`](crate::Kind::Closed); a call that runs meanwhile ends
/// normally, and the memory goes when the last one has ended.
///
/// A panic in the runtime becomes [`Kind::Internal`](crate::Kind::Internal). The session may be
/// half-changed then, so every later call that needs it is refused in the same way.
pub struct Engine {
    /// Apart from the session, so that `verify` does not make `recommend` wait.
    bundle: RwLock<Option<Bundle>>,
    session: Mutex<Option<Session>>,
    options: SessionOptions,
    listener: Mutex<Option<Arc<Listener>>>,
    revision: AtomicI64,
}

fn session_options(max_history: i32, adapt: bool) -> Result<SessionOptions> {
    let options = SessionOptions::default().adapt(adapt);
    Ok(match max_history {
        0 => options,
        n => options.max_history(count("max_history", n)?),
    })
}

fn caught<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    // What a panic can leave half-done sits behind the session's mutex, which is poisoned then.
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|payload| Err(HostError::panicked(&*payload)))
}

impl Engine {
    /// Opens the bundle in a folder.
    pub fn open(path: &str, options: &Options) -> Result<Self> {
        caught(|| {
            let session = session_options(options.max_history, options.adapt)?;
            let mode = match options.copy {
                true => LoadMode::Read,
                false => LoadMode::Map,
            };
            tercet::kernel::check()?;
            let bundle = OpenOptions::new().mode(mode).open(path)?;
            if options.verify {
                bundle.verify()?;
            }
            Self::over(bundle, session)
        })
    }

    /// An engine over an open bundle; `max_history` and `adapt` as in [`Options`].
    pub fn on(bundle: &Bundle, max_history: i32, adapt: bool) -> Result<Self> {
        caught(|| Self::over(bundle.clone(), session_options(max_history, adapt)?))
    }

    fn over(bundle: Bundle, options: SessionOptions) -> Result<Self> {
        let session = Session::new(&bundle, options)?;
        Ok(Engine {
            bundle: RwLock::new(Some(bundle)),
            session: Mutex::new(Some(session)),
            options,
            listener: Mutex::new(None),
            revision: AtomicI64::new(0),
        })
    }

    /// An engine for another user over the same bundle, which is not opened again.
    pub fn new_session(&self) -> Result<Self> {
        caught(|| Self::over(self.bundle()?, self.options))
    }

    /// Gives the memory back. Closing twice is fine.
    pub fn close(&self) {
        let bundle = self
            .bundle
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let session = self.lock().take();
        self.set_listener(None);
        // A drop that panics must not cross the border either.
        let _ = caught(|| {
            drop((bundle, session));
            Ok(())
        });
    }

    /// Whether [`Engine::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.bundle().is_err()
    }

    /// The bundle. Cheap; keeps it open while held.
    pub fn bundle(&self) -> Result<Bundle> {
        self.bundle
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .ok_or_else(HostError::closed)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `f` on the session.
    pub fn with<T>(&self, f: impl FnOnce(&mut Session) -> tercet::Result<T>) -> Result<T> {
        caught(|| {
            if self.session.is_poisoned() {
                return Err(HostError::panicked(&"in an earlier call"));
            }
            let mut session = self.lock();
            Ok(f(session.as_mut().ok_or_else(HostError::closed)?)?)
        })
    }

    /// Runs `f` on the session and tells the listener.
    fn change<T>(&self, f: impl FnOnce(&mut Session) -> tercet::Result<T>) -> Result<T> {
        let done = self.with(f)?;
        self.changed()?;
        Ok(done)
    }

    fn changed(&self) -> Result<()> {
        let revision = self.revision.fetch_add(1, Ordering::Relaxed) + 1;
        let listener = self
            .listener
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        // No lock is held here: the listener may call this engine.
        match listener {
            Some(listener) => caught(|| listener(revision)),
            None => Ok(()),
        }
    }

    /// Sets or removes the listener. It runs on the thread of the call that changed something.
    pub fn set_listener(&self, listener: Option<Arc<Listener>>) {
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = listener;
    }

    /// What the bundle is.
    pub fn info(&self) -> Result<Info> {
        caught(|| {
            let bundle = self.bundle()?;
            let m = bundle.manifest();
            Ok(Info {
                bundle_id: m.bundle_id.clone(),
                bundle_version: i64::try_from(m.bundle_version).unwrap_or(i64::MAX),
                created: m.created.clone(),
                expires: m.expires.clone(),
                items: i64::try_from(m.items).unwrap_or(i64::MAX),
                dim: i32::try_from(m.dim).unwrap_or(i32::MAX),
                window: i32::try_from(m.window).unwrap_or(i32::MAX),
                behaviors: m.behaviors.clone(),
                attributes: bundle.table().attributes().map(String::from).collect(),
                modalities: m.modalities.iter().map(|m| m.name.clone()).collect(),
                personal: bundle.has_user_tower(),
                card: m.card.to_string(),
            })
        })
    }

    /// What the bundle is, as one JSON object.
    pub fn describe(&self) -> Result<String> {
        let bundle = self.bundle()?;
        let m = bundle.manifest();
        let attributes: Vec<&str> = bundle.table().attributes().collect();
        Ok(serde_json::json!({
            "bundle_id": m.bundle_id,
            "bundle_version": m.bundle_version,
            "created": m.created,
            "expires": m.expires,
            "items": m.items,
            "dim": m.dim,
            "window": m.window,
            "behaviors": m.behaviors,
            "attributes": attributes,
            "modalities": m.modalities,
            "card": m.card,
        })
        .to_string())
    }

    /// Hashes every file and checks every row.
    pub fn verify(&self) -> Result<()> {
        caught(|| Ok(self.bundle()?.verify()?))
    }

    /// Runs the bundle's own health check, if it has one.
    pub fn probe(&self) -> Result<Option<Probe>> {
        caught(|| {
            let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
            Ok(self.bundle()?.run_probe()?.map(|p| Probe {
                found: number(p.found),
                expected: number(p.expected),
                passed: p.passed,
            }))
        })
    }

    /// Adds an event; returns whether the bundle knows the item.
    pub fn record(&self, event: Event) -> Result<bool> {
        let mut e = tercet::Event::new(event.item);
        e.behavior = event.behavior;
        e.timestamp = event.timestamp;
        Ok(self.change(|s| s.record(e))? == Recorded::Known)
    }

    /// The events, oldest first.
    pub fn history(&self) -> Result<Vec<Event>> {
        self.with(|s| {
            let events = s.history().events().map(|e| Event {
                item: e.item.clone(),
                behavior: e.behavior.clone(),
                timestamp: e.timestamp,
            });
            Ok(events.collect())
        })
    }

    /// Learns what the user thinks of an item; returns whether the bundle knows it.
    pub fn feedback(&self, item: &str, feedback: Feedback, timestamp: Option<i64>) -> Result<bool> {
        let feedback = match feedback {
            Feedback::Positive => tercet::Feedback::Positive,
            Feedback::Skipped => tercet::Feedback::Skipped,
            Feedback::Disliked => tercet::Feedback::Disliked,
        };
        Ok(self.change(|s| s.feedback(item, feedback, timestamp))? == Recorded::Known)
    }

    /// Forgets all feedback.
    pub fn forget_feedback(&self) -> Result<()> {
        self.change(|s| s.forget_feedback())
    }

    /// Adds an item that the bundle does not hold.
    pub fn add_item(&self, item: NewItem) -> Result<Added> {
        let item = tercet::NewItem::from(item);
        Ok(match self.change(|s| s.add_item(item))? {
            tercet::Added::Replaced => Added::Replaced,
            tercet::Added::InBundle => Added::InBundle,
            _ => Added::Ranked,
        })
    }

    /// Takes an added item away; returns whether there was one.
    pub fn remove_item(&self, item: &str) -> Result<bool> {
        self.change(|s| s.remove_item(item))
    }

    /// The added items, in the order in which they came.
    pub fn added_items(&self) -> Result<Vec<AddedItem>> {
        self.with(|s| {
            let items = s.added_items().map(|(item, ranked)| AddedItem {
                item: item.to_string(),
                ranked,
            });
            Ok(items.collect())
        })
    }

    /// The best items for this user.
    pub fn recommend(&self, query: Query) -> Result<Vec<Recommendation>> {
        let query = caught(|| query.build())?;
        let best = self.with(|s| s.recommend(&query))?;
        Ok(best.into_iter().map(Recommendation::from).collect())
    }

    /// Scores given candidates for this user.
    pub fn rank(&self, candidates: &[String]) -> Result<Ranking> {
        let keys: Vec<&str> = candidates.iter().map(String::as_str).collect();
        let ranking = self.with(|s| s.rank(&keys))?;
        Ok(Ranking {
            ranked: ranking
                .ranked
                .into_iter()
                .map(Recommendation::from)
                .collect(),
            unknown: ranking.unknown,
        })
    }

    /// The items most like one.
    pub fn similar(&self, item: &str, k: i32) -> Result<Vec<Recommendation>> {
        let k = count("k", k)?;
        let best = self.with(|s| s.similar(item, k))?;
        Ok(best.into_iter().map(Recommendation::from).collect())
    }

    /// The user vector of the present history.
    pub fn user_vector(&self) -> Result<Vec<f32>> {
        self.with(|s| Ok(s.user_vector()?.to_vec()))
    }

    /// Writes the history to a file.
    pub fn save(&self, path: &str) -> Result<()> {
        self.with(|s| s.save(path))
    }

    /// From now on keeps history and added items in a file, as they come; what the file holds takes
    /// the place of what the engine has. `key` has 32 bytes.
    pub fn keep_in(&self, path: &str, key: Option<&[u8]>, survive_power_loss: bool) -> Result<()> {
        let mut how = Durability::new().survive_power_loss(survive_power_loss);
        if let Some(key) = key {
            how = how.key(key.try_into().map_err(|_| {
                HostError::argument(format!("the key has {} bytes, expected 32", key.len()))
            })?);
        }
        let options = self.options;
        self.change(|s| {
            *s = Session::open(&s.bundle().clone(), path, options, &how)?;
            Ok(())
        })
    }

    /// Everything that is kept of the user, as a JSON document.
    pub fn export_user_data(&self) -> Result<String> {
        self.with(|s| s.export_user_data())
    }

    /// Replaces the history by that of a file; on an error it stays as it was.
    pub fn restore(&self, path: &str) -> Result<()> {
        let options = self.options;
        if self.with(|s| Ok(s.is_durable()))? {
            return Err(HostError::argument(
                "the history is kept in a file of its own, which a snapshot cannot replace",
            ));
        }
        self.change(|s| {
            *s = Session::restore(&s.bundle().clone(), path, options)?;
            Ok(())
        })
    }

    /// Forgets everything about the user and deletes the file, if given.
    pub fn erase(&self, path: Option<&str>) -> Result<()> {
        let done = self.with(|s| s.erase(path.map(Path::new)));
        // The memory is cleared even if the file could not be deleted.
        self.changed().and(done)
    }
}
