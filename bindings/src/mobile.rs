//! The surface that uniffi exports. Kotlin and Swift wrap it once more, by hand, in `kotlin/`
//! and `swift/`: what is idiomatic there cannot be generated.

// The attributes expand to exported functions.
#![allow(unsafe_code)]

use std::sync::Arc;

use crate::engine::Engine;
use crate::error::{HostError, Kind, Result as HostResult};
use crate::types::{
    Added, AddedItem, Event, Feedback, Info, NewItem, Options, Probe, Query, Ranking,
    Recommendation,
};

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What an app can act on, one case per action. The field is called `reason` because
        /// Kotlin's exceptions have a `message` already.
        #[derive(Debug, Clone, PartialEq, Eq, uniffi::Error)]
        pub enum TercetError {
            $($(#[$doc])* $name {
                /// For the developer, not for the user.
                reason: String,
            },)*
        }

        impl From<HostError> for TercetError {
            fn from(e: HostError) -> Self {
                let reason = e.reason;
                match e.kind {
                    $(Kind::$name => TercetError::$name { reason },)*
                }
            }
        }

        impl From<TercetError> for HostError {
            fn from(e: TercetError) -> Self {
                match e {
                    $(TercetError::$name { reason } => HostError::new(Kind::$name, reason),)*
                }
            }
        }
    };
}

errors! {
    /// The engine was closed. Open it again.
    Closed,
    /// The caller's mistake; the reason says which argument and what is accepted.
    InvalidArgument,
    /// The item is not in the bundle. Leave it out.
    UnknownItem,
    /// The bundle folder or the snapshot file does not exist. Fetch it, or start without.
    NotFound,
    /// The bundle needs another version of this library. Update the app, or fetch an older one.
    IncompatibleBundle,
    /// The bundle is damaged or incomplete. Delete it and fetch it again.
    CorruptBundle,
    /// The saved history is damaged or of a newer version. Delete it and start without.
    CorruptSnapshot,
    /// This bundle, or this build of the library, lacks what the call needs.
    Unsupported,
    /// The call did its work; the app's own listener failed afterwards.
    Listener,
    /// The system refused a file operation. Free space, check permissions, try again.
    Io,
    /// A fault of this library. Close the engine, open it again, report it.
    Internal,
    /// The file is open in another session or process. Close that one first.
    Busy,
}

impl std::fmt::Display for TercetError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&HostError::from(self.clone()), f)
    }
}

impl std::error::Error for TercetError {}

impl From<uniffi::UnexpectedUniFFICallbackError> for TercetError {
    fn from(e: uniffi::UnexpectedUniFFICallbackError) -> Self {
        TercetError::Listener { reason: e.reason }
    }
}

type Result<T, E = TercetError> = std::result::Result<T, E>;

/// Is told when a user's history has changed.
#[uniffi::export(with_foreign)]
pub trait HistoryListener: Send + Sync {
    /// Runs on the thread of the call that changed something, after the change; may call the
    /// engine. If it throws, that call throws `Listener`, and the change stands.
    fn history_changed(&self, revision: i64) -> Result<()>;
}

/// A bundle and the session of one user. Every method may be called from any thread.
#[derive(uniffi::Object)]
pub struct TercetEngine(Engine);

#[uniffi::export]
impl TercetEngine {
    /// Opens the bundle in a folder.
    #[uniffi::constructor]
    pub fn open(path: String, options: Options) -> Result<Arc<Self>> {
        Ok(Arc::new(TercetEngine(Engine::open(&path, &options)?)))
    }

    /// An engine for another user over the same bundle, which is not opened again.
    pub fn new_session(&self) -> Result<Arc<Self>> {
        Ok(Arc::new(TercetEngine(self.0.new_session()?)))
    }

    /// Gives the memory back; every later call fails with `Closed`. Not named `close`: the
    /// generated Kotlin class has a method of that name, which frees the handle.
    pub fn shut_down(&self) {
        self.0.close();
    }

    /// What the bundle is.
    pub fn info(&self) -> Result<Info> {
        Ok(self.0.info()?)
    }

    /// Hashes every file and checks every row.
    pub fn verify(&self) -> Result<()> {
        Ok(self.0.verify()?)
    }

    /// Runs the bundle's own health check, if it has one.
    pub fn probe(&self) -> Result<Option<Probe>> {
        Ok(self.0.probe()?)
    }

    /// Adds an event; returns whether the bundle knows the item.
    pub fn record(&self, event: Event) -> Result<bool> {
        Ok(self.0.record(event)?)
    }

    /// The events, oldest first.
    pub fn history(&self) -> Result<Vec<Event>> {
        Ok(self.0.history()?)
    }

    /// Learns what the user thinks of an item, in an engine opened with `adapt`: rankings follow.
    /// Returns whether the bundle knows the item. What the user did is recorded besides.
    pub fn feedback(
        &self,
        item: String,
        feedback: Feedback,
        timestamp: Option<i64>,
    ) -> Result<bool> {
        Ok(self.0.feedback(&item, feedback, timestamp)?)
    }

    /// Forgets all feedback: rankings are again those of the bundle and the history.
    pub fn forget_feedback(&self) -> Result<()> {
        Ok(self.0.forget_feedback()?)
    }

    /// Adds an item that the bundle does not hold: the bundle's fusion tower makes its vector, and
    /// it is ranked with the others from then on. It is part of what `save` writes.
    pub fn add_item(&self, item: NewItem) -> Result<Added> {
        Ok(self.0.add_item(item)?)
    }

    /// Takes an added item away; returns whether there was one.
    pub fn remove_item(&self, item: String) -> Result<bool> {
        Ok(self.0.remove_item(&item)?)
    }

    /// The added items, in the order in which they came.
    pub fn added_items(&self) -> Result<Vec<AddedItem>> {
        Ok(self.0.added_items()?)
    }

    /// The best items for this user.
    pub fn recommend(&self, query: Query) -> Result<Vec<Recommendation>> {
        Ok(self.0.recommend(query)?)
    }

    /// Scores given candidates for this user.
    pub fn rank(&self, candidates: Vec<String>) -> Result<Ranking> {
        Ok(self.0.rank(&candidates)?)
    }

    /// The items most like one.
    pub fn similar(&self, item: String, k: i32) -> Result<Vec<Recommendation>> {
        Ok(self.0.similar(&item, k)?)
    }

    /// The user vector as packed little-endian f32: a list of floats costs a call a float.
    pub fn user_vector(&self) -> Result<Vec<u8>> {
        let vector = self.0.user_vector()?;
        Ok(vector.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// Writes history and added items to a file.
    pub fn save(&self, path: String) -> Result<()> {
        Ok(self.0.save(&path)?)
    }

    /// Replaces history and added items by those of a file; on an error they stay as they were.
    pub fn restore(&self, path: String) -> Result<()> {
        Ok(self.0.restore(&path)?)
    }

    /// From now on keeps history and added items in a file, as they come: what is in the file takes
    /// the place of what the engine has. Once a call that changes something has returned, the
    /// change survives the end of the process and, if wished, a loss of power. `key` of 32 bytes
    /// encrypts the file.
    pub fn keep_in(
        &self,
        path: String,
        key: Option<Vec<u8>>,
        survive_power_loss: bool,
    ) -> Result<()> {
        Ok(self.0.keep_in(&path, key.as_deref(), survive_power_loss)?)
    }

    /// Everything that is kept of the user, as a JSON document: what users may ask for.
    pub fn export_user_data(&self) -> Result<String> {
        Ok(self.0.export_user_data()?)
    }

    /// Forgets everything about the user and deletes the file, if given.
    pub fn erase(&self, path: Option<String>) -> Result<()> {
        Ok(self.0.erase(path.as_deref())?)
    }

    /// Sets or removes the listener.
    pub fn set_listener(&self, listener: Option<Arc<dyn HistoryListener>>) {
        self.0.set_listener(listener.map(|l| {
            let call: Arc<crate::engine::Listener> = Arc::new(move |revision| -> HostResult<()> {
                // Whatever the app throws, the caller learns that it was the listener.
                l.history_changed(revision).map_err(|e| {
                    HostError::new(Kind::Listener, format!("the listener failed: {e}"))
                })
            });
            call
        }));
    }
}

/// Version of this library, as `0.1.0`.
#[uniffi::export]
pub fn library_version() -> String {
    env!("CARGO_PKG_VERSION").to_string()
}
