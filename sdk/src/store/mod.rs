//! Updates: a folder that takes signed bundles and says which one to use.
//!
//! ```no_run
//! use tercet::{BundleStore, Session, SessionOptions, StoreOptions};
//! # fn f(key: &str, next_key: &str) -> tercet::Result<()> {
//! let options = StoreOptions::new("shop").trust(key)?.trust(next_key)?;
//! let store = BundleStore::open("bundles", options)?;
//! store.install("downloads/shop.tercet")?; // checks everything, copies, switches
//! let session = Session::new(&store.current()?, SessionOptions::default())?;
//! # Ok(())
//! # }
//! ```
//!
//! What is offered is a bundle, or a delta: the manifest of a new bundle and what the store's present
//! one lacks. From it the same files are made, byte for byte, and checked as if they had come whole.
//!
//! The crate fetches nothing: the app, or the system's downloader, puts a bundle's folder
//! somewhere, and [`BundleStore::install`] decides whether to trust it.
//!
//! | attack or accident | what stops it |
//! |---|---|
//! | changed or foreign content | `manifest.json.minisig` signs the manifest, which names every file with its SHA-256; what is hashed is the copy |
//! | mix and match of two releases | the same digests; one table, its towers and their probe belong to one manifest |
//! | an old, vulnerable release | versions only grow, whatever was rolled back |
//! | updates held back (freeze) | `expires`: refused when installed, and told by [`BundleStore::status`] afterwards |
//! | a bundle of another app | `bundle_id` |
//! | a lost key | two trusted keys: sign with the next one, ship an app that trusts that one and its successor. Bundles and version numbers of a key that is trusted no more do not count |
//! | links, paths, devices, unlisted files | plain files with listed names only |
//! | sizes that fill the storage | lengths, the limit and the free space come before the first byte |
//! | a bundle that does not work here | towers are loaded and the probe runs before the switch, and again when the new bundle is first opened: if it fails there, or the process dies three times, the previous bundle returns |
//! | power loss | files are synced before one small file, `current`, is replaced by a rename |
//!
//! # Processes and threads
//!
//! A store may be used from several at a time. [`BundleStore::install`] and its kin exclude one
//! another ([`Error::StoreBusy`]); opening waits only for the moment of the switch. Sessions keep
//! the bundle that they have: its folder is removed once the last session that uses it is gone, in
//! whatever process. The locks are advisory and end with the process that holds them; network file
//! systems may not have them.
//!
//! # Folder
//!
//! `current` (the state), `lock`, `install.lock`, and `bundles/` with a folder per bundle. Only
//! the store writes there.

mod delta;
mod intake;
mod state;

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use crate::bundle::{Bundle, MANIFEST_FILE, hex, sync_folder};
use crate::error::{Error, Result};
use crate::lock::{self, lock_file};
use delta::Delta;
pub use delta::{DELTA_FILE, DeltaReport, write_delta};
pub use intake::SIGNATURE_FILE;
use intake::{Base, Key, Offer, check_health, check_space, expired, plain_length};
use state::{Slot, State};

/// Most public keys that a store trusts: the present one and the next.
pub const MAX_KEYS: usize = 2;

/// A new bundle that was opened so often without ever being found healthy has ended the process:
/// the previous one returns.
const MAX_ATTEMPTS: u32 = 3;

/// Settings of a [`BundleStore`].
pub struct StoreOptions {
    bundle_id: String,
    keys: Vec<Key>,
    max_bytes: u64,
    clock: Box<dyn Fn() -> SystemTime + Send + Sync>,
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreOptions")
            .field("bundle_id", &self.bundle_id)
            .field("keys", &self.keys.len())
            .field("max_bytes", &self.max_bytes)
            .finish_non_exhaustive()
    }
}

impl StoreOptions {
    /// A store of bundles `bundle_id` of at most 1 GiB, with the system's clock. It needs a key.
    pub fn new(bundle_id: impl Into<String>) -> Self {
        StoreOptions {
            bundle_id: bundle_id.into(),
            keys: Vec::new(),
            max_bytes: 1 << 30,
            clock: Box::new(SystemTime::now),
        }
    }

    /// Trusts a minisign public key: the line of base64, or the text of the whole `.pub` file.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for anything else, and for more than [`MAX_KEYS`] keys.
    pub fn trust(mut self, key: &str) -> Result<Self> {
        if self.keys.len() == MAX_KEYS {
            return Err(Error::argument(format!(
                "a store trusts at most {MAX_KEYS} keys"
            )));
        }
        self.keys.push(Key::parse(key)?);
        Ok(self)
    }

    /// Sets the largest accepted total length of a bundle's files, in bytes.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets what tells the time: a host may know it better than the system, whose user can change
    /// it.
    pub fn clock(mut self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.clock = Box::new(now);
        self
    }
}

/// Checks that the manifest of the bundle in folder `bundle` was signed with `key`, a minisign public
/// key as in [`StoreOptions::trust`]. The files that the manifest names are checked by
/// [`Bundle::verify`].
///
/// # Errors
/// [`Error::InvalidArgument`] for a bad key, [`Error::Signature`], [`Error::UntrustedKey`],
/// [`Error::Io`], errors of the manifest.
pub fn check_signature(bundle: impl AsRef<Path>, key: &str) -> Result<()> {
    Offer::read(bundle.as_ref(), &[Key::parse(key)?]).map(|_| ())
}

/// A bundle in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredBundle {
    /// `bundle_version` of its manifest.
    pub version: u64,
    /// Whether it was opened on this device, with its probe passed, since it became current.
    pub proven: bool,
    /// Whether it is past the date in its manifest. It is used nevertheless: old recommendations
    /// are better than none, unless the app thinks otherwise.
    pub expired: bool,
}

/// What a store holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStatus {
    /// The bundle in use.
    pub current: Option<StoredBundle>,
    /// The one before, to which a rollback returns.
    pub previous: Option<StoredBundle>,
    /// One that was checked and waits for [`BundleStore::activate`].
    pub staged: Option<StoredBundle>,
    /// The newest version accepted so far; only newer ones can be installed. If it is above the
    /// versions of `current` and `staged`, that bundle was rolled back.
    pub newest: Option<u64>,
}

/// A folder of signed bundles; see the [module](self).
#[derive(Debug)]
pub struct BundleStore {
    folder: PathBuf,
    options: StoreOptions,
}

impl BundleStore {
    /// Opens the store in `folder`, which is made if it does not exist.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] without a trusted key, [`Error::Io`], [`Error::StoreState`].
    pub fn open(folder: impl AsRef<Path>, options: StoreOptions) -> Result<Self> {
        if options.keys.is_empty() {
            return Err(Error::argument("a store needs a public key to trust"));
        }
        let folder = folder.as_ref().to_path_buf();
        let bundles = folder.join("bundles");
        std::fs::create_dir_all(&bundles).map_err(|e| Error::io("create", &bundles, e))?;
        let store = BundleStore { folder, options };
        let _lock = store.lock(false)?;
        store.state()?;
        Ok(store)
    }

    /// Checks the bundle, or the delta, in folder `source`, copies it, and makes it the current one;
    /// `source` is left alone. Sessions that are open stay with the bundle that they have. To install the
    /// current bundle again changes nothing.
    ///
    /// # Errors
    /// As [`BundleStore::stage`]; nothing is changed then.
    pub fn install(&self, source: impl AsRef<Path>) -> Result<StoredBundle> {
        let installing = self.installing()?;
        let slot = self.take_in(source.as_ref(), true)?;
        self.sweep(&installing)?;
        Ok(self.describe(&slot))
    }

    /// Checks and copies as [`BundleStore::install`], but leaves the switch to
    /// [`BundleStore::activate`]. Takes the place of a bundle staged before.
    ///
    /// # Errors
    /// [`Error::StoreBusy`]; [`Error::Signature`], [`Error::UntrustedKey`]; [`Error::OtherBundle`],
    /// [`Error::OldBundle`], [`Error::Expired`]; [`Error::NotAFile`], [`Error::UnlistedFile`],
    /// [`Error::FileSize`], [`Error::BundleTooLarge`], [`Error::NoSpace`]; for a delta
    /// [`Error::OtherBase`] and [`Error::Delta`]; [`Error::Digest`] and all errors of
    /// [`Bundle::open`], [`Bundle::verify`] and of loading its towers; [`Error::ProbeFailed`]; [`Error::Io`]. Nothing is changed then.
    pub fn stage(&self, source: impl AsRef<Path>) -> Result<StoredBundle> {
        let installing = self.installing()?;
        let staged = self.take_in(source.as_ref(), false)?;
        self.sweep(&installing)?;
        Ok(self.describe(&staged))
    }

    /// Makes the staged bundle the current one.
    ///
    /// # Errors
    /// [`Error::NoBundle`] if none is staged, [`Error::StoreBusy`], [`Error::Io`],
    /// [`Error::StoreState`].
    pub fn activate(&self) -> Result<StoredBundle> {
        let installing = self.installing()?;
        let lock = self.lock(true)?;
        let mut state = self.state()?;
        let slot = state.advance().ok_or_else(|| self.none("staged"))?;
        state.write(&self.pointer())?;
        drop(lock);
        self.sweep(&installing)?;
        Ok(self.describe(&slot))
    }

    /// Opens the current bundle. If it is new, its probe runs first; one that fails, or whose
    /// files are damaged, is given up for the previous bundle, and [`BundleStore::status`] tells.
    ///
    /// # Errors
    /// [`Error::NoBundle`] if nothing is installed; if there is no previous bundle that works, what
    /// is wrong with the current one: [`Error::UntrustedKey`], [`Error::ProbeFailed`],
    /// [`Error::Digest`] or an error of [`Bundle::open`].
    pub fn current(&self) -> Result<Bundle> {
        {
            let _lock = self.lock(false)?;
            let state = self.state()?;
            let slot = state.current.ok_or_else(|| self.none("current"))?;
            if slot.proven
                && let Ok(bundle) = self.open_slot(&slot)
            {
                return Ok(bundle);
            }
        }
        let _lock = self.lock(true)?;
        // Another process may have been faster.
        let mut state = self.state()?;
        let slot = state.current.clone().ok_or_else(|| self.none("current"))?;
        let gone = !slot.proven && slot.attempts >= MAX_ATTEMPTS;
        let error = if gone && state.previous.is_some() {
            Error::NoBundle {
                path: self.folder.clone(),
                what: "working",
            }
        } else {
            match self.prove(&mut state, slot) {
                Ok(bundle) => return Ok(bundle),
                Err(e) if is_passing(&e) => return Err(e),
                Err(e) => e,
            }
        };
        self.fall_back(state).map_err(|_| error)
    }

    /// Returns to the previous bundle and opens it. The one given up cannot be installed again: the
    /// next must have a higher version.
    ///
    /// # Errors
    /// [`Error::NoBundle`] if there is no previous bundle; as [`BundleStore::current`]. Nothing is
    /// changed then.
    pub fn rollback(&self) -> Result<Bundle> {
        let _lock = self.lock(true)?;
        self.fall_back(self.state()?)
    }

    /// What the store holds.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::StoreState`], errors of reading a manifest.
    pub fn status(&self) -> Result<StoreStatus> {
        let _lock = self.lock(false)?;
        let state = self.state()?;
        let describe = |slot: &Option<Slot>| slot.as_ref().map(|s| self.describe(s));
        Ok(StoreStatus {
            current: describe(&state.current),
            previous: describe(&state.previous),
            staged: describe(&state.staged),
            newest: state.newest(|key| self.trusts(key)),
        })
    }

    /// Removes the folders of bundles that are neither current, previous nor staged and that no
    /// session uses; their number. Every installation does so too: call it when sessions have
    /// ended.
    ///
    /// # Errors
    /// [`Error::StoreBusy`], [`Error::Io`], [`Error::StoreState`].
    pub fn collect(&self) -> Result<usize> {
        self.sweep(&self.installing()?)
    }

    /// Checks and copies what is in `source`; it is staged then, or current if `at_once`.
    fn take_in(&self, source: &Path, at_once: bool) -> Result<Slot> {
        let offer = Offer::read(source, &self.options.keys)?;
        let (id, version) = (&offer.manifest.bundle_id, offer.manifest.bundle_version);
        if *id != self.options.bundle_id {
            return Err(Error::OtherBundle {
                expected: self.options.bundle_id.clone(),
                got: id.clone(),
            });
        }
        // Nobody else installs now, so what is read here still holds below: only the current and
        // the previous bundle can change.
        let state = {
            let _lock = self.lock(false)?;
            self.state()?
        };
        let known = [&state.current, &state.staged].into_iter().flatten();
        if let Some(slot) = known.into_iter().find(|s| s.digest == offer.digest) {
            if at_once && state.staged.as_ref() == Some(slot) {
                let _lock = self.lock(true)?;
                let mut state = self.state()?;
                state.advance();
                state.write(&self.pointer())?;
            }
            return Ok(slot.clone());
        }
        if let Some(newest) = state.newest(|key| self.trusts(key))
            && version <= newest
        {
            return Err(Error::OldBundle {
                newest,
                got: version,
            });
        }
        offer.check_date((self.options.clock)())?;
        let base = self.base(source, &offer, &state)?;
        let limit = self.options.max_bytes;
        let (bytes, origins) = offer.check_files(source, base.as_ref(), limit)?;
        check_space(&self.folder, bytes)?;

        // Removed when dropped; after a crash, by the next sweep.
        let copy = tempfile::Builder::new()
            .prefix(&format!("v{version}-"))
            .tempdir_in(self.bundles())
            .map_err(|e| Error::io("create a folder in", self.bundles(), e))?;
        let copied = offer.copy(source, base.as_ref(), &origins, copy.path())?;
        let bundle = copied.check()?;
        sync_folder(&self.bundles())?;
        check_health(&bundle)?;
        drop(bundle);

        let folder = copy.path().file_name().and_then(|name| name.to_str());
        let slot = Slot {
            folder: folder.unwrap_or_default().to_string(),
            version,
            digest: offer.digest,
            key: offer.key,
            proven: false,
            attempts: 0,
        };
        let _lock = self.lock(true)?;
        let mut state = self.state()?;
        state.staged = Some(slot.clone());
        state.raise(&slot.key, version, |key| self.trusts(key));
        if at_once {
            state.advance();
        }
        state.write(&self.pointer())?;
        let _ = copy.keep();
        Ok(slot)
    }

    /// What a delta in `source` starts from, if there is one. Only who installs removes folders, so
    /// it stays as long as the caller holds that lock.
    fn base(&self, source: &Path, offer: &Offer, state: &State) -> Result<Option<Base>> {
        let path = source.join(DELTA_FILE);
        if offer.manifest.files.contains_key(DELTA_FILE) || plain_length(&path)?.is_none() {
            return Ok(None);
        }
        let delta = Delta::open(&path, self.options.max_bytes)?;
        let digest = hex(&delta.base()?);
        let slot = state.slots().find(|slot| slot.digest == digest);
        let slot = slot.ok_or_else(|| Error::OtherBase {
            path: source.to_path_buf(),
        })?;
        let folder = self.bundles().join(&slot.folder);
        Ok(Some(Base {
            manifest: crate::bundle::read_manifest(&folder)?,
            folder,
            delta,
        }))
    }

    /// Opens the current bundle `slot` and notes whether it works.
    fn prove(&self, state: &mut State, mut slot: Slot) -> Result<Bundle> {
        if slot.proven {
            return self.open_slot(&slot);
        }
        // Written first: a bundle that ends the process has had its attempt.
        slot.attempts = slot.attempts.saturating_add(1);
        state.current = Some(slot.clone());
        state.write(&self.pointer())?;
        let bundle = self.open_slot(&slot)?;
        check_health(&bundle)?;
        slot.proven = true;
        state.current = Some(slot);
        state.write(&self.pointer())?;
        Ok(bundle)
    }

    /// Previous becomes current if it works. The caller holds the lock.
    fn fall_back(&self, mut state: State) -> Result<Bundle> {
        let mut slot = state.previous.take().ok_or_else(|| self.none("previous"))?;
        let bundle = self.open_slot(&slot)?;
        check_health(&bundle)?;
        slot.proven = true;
        state.current = Some(slot);
        state.write(&self.pointer())?;
        Ok(bundle)
    }

    /// Opens a bundle that was checked when it was installed. Whoever changes its table since can
    /// change this program too; the manifest is compared, so that another bundle's folder is
    /// noticed. The caller holds the lock of the state, or the folder could go meanwhile.
    fn open_slot(&self, slot: &Slot) -> Result<Bundle> {
        let path = self.bundles().join(&slot.folder);
        if !self.trusts(&slot.key) {
            return Err(Error::UntrustedKey { path });
        }
        let manifest = path.join(MANIFEST_FILE);
        let lease = File::open(&manifest).map_err(|e| Error::io("open", &manifest, e))?;
        lock::wait(&lease, false).map_err(|e| Error::io("lock", &manifest, e))?;
        let bytes = std::fs::read(&manifest).map_err(|e| Error::io("read", &manifest, e))?;
        let got = hex(&Sha256::digest(&bytes));
        if got != slot.digest {
            return Err(Error::Digest {
                path: manifest,
                expected: slot.digest.clone(),
                got,
            });
        }
        let bundle = Bundle::open(&path)?;
        bundle.hold(lease);
        Ok(bundle)
    }

    /// Removes what nobody needs; the caller installs, so that no copy is under way.
    fn sweep(&self, _installing: &File) -> Result<usize> {
        let _lock = self.lock(true)?;
        let state = self.state()?;
        let bundles = self.bundles();
        let list = |e| Error::io("list", &bundles, e);
        let mut removed = 0;
        for entry in std::fs::read_dir(&bundles).map_err(list)? {
            let entry = entry.map_err(list)?;
            let needed = state.slots().any(|s| entry.file_name() == *s.folder);
            if needed || !entry.file_type().map_err(list)?.is_dir() {
                continue;
            }
            let path = entry.path();
            // Leases are taken under the lock that is held here: none can come in between.
            let in_use = match File::open(path.join(MANIFEST_FILE)) {
                Ok(file) => !lock::try_exclusive(&file).map_err(|e| Error::io("lock", &path, e))?,
                Err(_) => false,
            };
            if !in_use {
                std::fs::remove_dir_all(&path).map_err(|e| Error::io("remove", &path, e))?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn describe(&self, slot: &Slot) -> StoredBundle {
        let manifest = crate::bundle::read_manifest(&self.bundles().join(&slot.folder));
        let now = (self.options.clock)();
        StoredBundle {
            version: slot.version,
            proven: slot.proven,
            expired: manifest.is_ok_and(|m| expired(&m, now)),
        }
    }

    fn none(&self, what: &'static str) -> Error {
        Error::NoBundle {
            path: self.folder.clone(),
            what,
        }
    }

    fn trusts(&self, key: &str) -> bool {
        self.options.keys.iter().any(|k| k.text == key)
    }

    fn state(&self) -> Result<State> {
        State::read(&self.pointer())
    }

    fn pointer(&self) -> PathBuf {
        self.folder.join("current")
    }

    fn bundles(&self) -> PathBuf {
        self.folder.join("bundles")
    }

    /// Guards the state. Held while something small is read or written, and while a new bundle is
    /// proven.
    fn lock(&self, exclusive: bool) -> Result<File> {
        let path = self.folder.join("lock");
        let file = lock_file(&path)?;
        lock::wait(&file, exclusive).map_err(|e| Error::io("lock", &path, e))?;
        Ok(file)
    }

    /// Guards the folder of bundles against two who write to it.
    fn installing(&self) -> Result<File> {
        let path = self.folder.join("install.lock");
        let file = lock_file(&path)?;
        match lock::try_exclusive(&file) {
            Ok(true) => Ok(file),
            Ok(false) => Err(Error::StoreBusy {
                path: self.folder.clone(),
            }),
            Err(e) => Err(Error::io("lock", &path, e)),
        }
    }
}

/// Errors that say more about the moment than about the bundle.
fn is_passing(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() != std::io::ErrorKind::NotFound)
}
