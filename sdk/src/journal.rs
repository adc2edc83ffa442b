//! The file of a durable session: a snapshot, and every change since.
//!
//! | bytes | content |
//! |---|---|
//! | 8 | `TRCTJRNL` |
//! | 4 | version, u32 little-endian, 1 |
//! | 4 | version of the snapshot's payload, u32 little-endian |
//! | 4 | 1 if the file is encrypted, else 0, u32 little-endian |
//! | 16 | random id of the file |
//! | … | units |
//!
//! A unit is its length n (u32 little-endian), the same with all bits flipped, n bytes, and, unless
//! encrypted, the CRC-32 (IEEE) of length and bytes. Unit 0 holds the payload of a snapshot, each
//! further unit one change, in bincode 1's wire format. An encrypted unit is a random nonce of 24
//! bytes and the XChaCha20-Poly1305 ciphertext with its tag of 16 bytes; the header and the unit's
//! number (u64 little-endian) are authenticated with it, so units can be neither exchanged nor left
//! out, except at the end.
//!
//! A change is appended, and synced if that is wished, before it counts. When the changes outweigh
//! the snapshot, a new file is written beside the old one, synced and renamed. What a crash leaves at
//! the end of the file is an incomplete unit, which never counted and is cut off.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use wincode::{SchemaRead, SchemaWrite};

use crate::added::NewItem;
use crate::bundle::{parent, sync_folder};
use crate::error::{Error, Result};
use crate::history::{Event, History};
use crate::lock::{self, lock_file};
use crate::snapshot::{self, Contents, Kept, StoredEvent, StoredFeedback, StoredItem, broken};

const MAGIC: &[u8; 8] = b"TRCTJRNL";
const VERSION: u32 = 1;
const HEADER: usize = 8 + 4 + 4 + 4 + 16;
const NONCE: usize = 24;
/// Longest unit: a snapshot, sealed.
const MAX_UNIT: usize = snapshot::MAX_PAYLOAD + 64;
/// Changes are folded into the snapshot when they have this many bytes, and more than it.
const MIN_CHANGES: u64 = 64 << 10;
/// Longest file that is read.
const MAX_FILE: u64 = 4 * MAX_UNIT as u64;

/// How a durable session keeps its file; see [`Session::open`](crate::Session::open).
#[derive(Clone, Default)]
pub struct Durability {
    key: Option<[u8; 32]>,
    lazy: bool,
}

impl std::fmt::Debug for Durability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Durability")
            .field("encrypted", &self.key.is_some())
            .field("survives_power_loss", &!self.lazy)
            .finish()
    }
}

impl Durability {
    /// Not encrypted; what was recorded survives a power loss.
    pub fn new() -> Self {
        Self::default()
    }

    /// Encrypts the file with XChaCha20-Poly1305. The key is the host's, 32 random bytes from the
    /// keystore of the platform; it is never stored here, and without it the file cannot be read. A
    /// file that is not encrypted yet becomes so when it is opened.
    pub fn key(mut self, key: [u8; 32]) -> Self {
        self.key = Some(key);
        self
    }

    /// Whether every change waits for the storage (default). Otherwise what was recorded survives
    /// the end of the process but maybe not a loss of power, and recording costs microseconds
    /// instead of a write to the storage.
    pub fn survive_power_loss(mut self, yes: bool) -> Self {
        self.lazy = !yes;
        self
    }
}

/// Something that changes what a session keeps.
#[derive(SchemaWrite, SchemaRead)]
pub(crate) enum Change {
    Event { event: StoredEvent, unknown: bool },
    Item(StoredItem),
    RemovedItem(String),
    Feedback(StoredFeedback),
    ForgottenFeedback,
}

impl Kept {
    fn apply(&mut self, change: Change) -> Result<(), String> {
        let text = |e: Error| e.to_string();
        match change {
            Change::Event { event, unknown } => {
                self.history.push(Event::from(event)).map_err(text)?;
                if unknown {
                    self.history.count_unknown();
                }
            }
            Change::Item(item) => {
                let item = NewItem::from(item);
                item.check().map_err(text)?;
                match self.items.iter_mut().find(|i| i.key == item.key) {
                    Some(old) => *old = item,
                    None => self.items.push(item),
                }
            }
            Change::RemovedItem(key) => self.items.retain(|i| i.key != key),
            Change::Feedback(feedback) => self.feedback.push(feedback.read()?),
            Change::ForgottenFeedback => self.feedback.clear(),
        }
        Ok(())
    }
}

/// An open file; nobody else has it open.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    lock: File,
    cipher: Option<XChaCha20Poly1305>,
    sync: bool,
    header: [u8; HEADER],
    /// Number of the next unit.
    next: u64,
    /// Length of the file as far as it counts.
    bytes: u64,
    /// Length from which the changes are folded in.
    fold_at: u64,
    /// A write failed half-way: the file has to be written anew.
    broken: bool,
}

impl Journal {
    /// Opens the file at `path`, or starts one; what it holds, at most `limit` events of it.
    pub(crate) fn open(path: &Path, how: &Durability, limit: usize) -> Result<(Self, Kept)> {
        let name = path
            .file_name()
            .ok_or_else(|| Error::argument("a history needs the path of a file"))?;
        let mut lock_name = name.to_os_string();
        lock_name.push(".lock");
        let held = lock_file(&path.with_file_name(lock_name))?;
        if !lock::try_exclusive(&held).map_err(|e| Error::io("lock", path, e))? {
            return Err(Error::HistoryBusy {
                path: path.to_path_buf(),
            });
        }
        let cipher = how.key.map(|key| XChaCha20Poly1305::new(&key.into()));
        // What was being written when the process ended, and never counted.
        remove(&beside(path))?;
        let mut journal = Journal {
            path: path.to_path_buf(),
            // Replaced below; a file must be somewhere.
            file: held.try_clone().map_err(|e| Error::io("open", path, e))?,
            lock: held,
            cipher,
            sync: !how.lazy,
            header: [0; HEADER],
            next: 0,
            bytes: 0,
            fold_at: 0,
            broken: true,
        };
        let kept = match std::fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Kept {
                history: History::new(limit)?,
                items: Vec::new(),
                feedback: Vec::new(),
            },
            Err(e) => return Err(Error::io("look at", path, e)),
            Ok(_) => journal.read(limit)?,
        };
        if journal.broken {
            journal.fold(&kept.contents())?;
        }
        Ok((journal, kept))
    }

    /// Whether `path` is the file's.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        let whole = |path: &Path| path.canonicalize().ok();
        self.path == path || whole(path).is_some_and(|p| Some(p) == whole(&self.path))
    }

    /// Makes `change` last before it counts.
    pub(crate) fn append(&mut self, change: &Change) -> Result<()> {
        let body = wincode::serialize(change)
            .map_err(|e| broken(&self.path, format!("a change cannot be encoded: {e}")))?;
        let unit = self.seal(&self.header, self.next, &body)?;
        let mut written = self.file.write_all(&unit);
        if written.is_ok() && self.sync {
            written = self.file.sync_data();
        }
        if let Err(e) = written {
            // Half a unit must not stay in front of the next.
            let end = SeekFrom::Start(self.bytes);
            let cut = self.file.set_len(self.bytes);
            self.broken = cut.and_then(|()| self.file.seek(end)).is_err();
            return Err(Error::io("append to", &self.path, e));
        }
        self.next += 1;
        self.bytes += unit.len() as u64;
        Ok(())
    }

    /// Whether the file should be written anew: needed, or not needed now but soon.
    pub(crate) fn wants_folding(&self) -> Option<Need> {
        if self.broken {
            Some(Need::Now)
        } else if self.bytes >= self.fold_at {
            Some(Need::Soon)
        } else {
            None
        }
    }

    /// Writes the file anew, with everything in its snapshot.
    pub(crate) fn fold(&mut self, contents: &Contents) -> Result<()> {
        // If this fails, not again for every event.
        self.fold_at = self.bytes.saturating_mul(2).max(MIN_CHANGES);
        let payload = snapshot::encode(&self.path, contents)?;
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&snapshot::VERSION.to_le_bytes());
        header[16..20].copy_from_slice(&u32::from(self.cipher.is_some()).to_le_bytes());
        random(&self.path, &mut header[20..])?;
        let unit = self.seal(&header, 0, &payload)?;

        let temp = beside(&self.path);
        let write = || -> std::io::Result<File> {
            let mut options = File::options();
            options.write(true).create(true).truncate(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            let mut file = options.open(&temp)?;
            file.write_all(&header)?;
            file.write_all(&unit)?;
            file.sync_all()?;
            Ok(file)
        };
        let file = write().map_err(|e| Error::io("write", &temp, e))?;
        std::fs::rename(&temp, &self.path)
            .map_err(|e| Error::io("rename into place", &self.path, e))?;
        // Not before: if anything above fails, the old file goes on as it began.
        self.file = file;
        self.header = header;
        self.next = 1;
        self.bytes = (HEADER + unit.len()) as u64;
        self.fold_at = fold_at(HEADER + unit.len());
        self.broken = false;
        sync_folder(parent(&self.path))
    }

    /// Removes the file with all that it held. The next change starts a new one.
    pub(crate) fn erase(&mut self) -> Result<()> {
        self.broken = true;
        // What is open keeps its place on the storage.
        self.file = self
            .lock
            .try_clone()
            .map_err(|e| Error::io("close", &self.path, e))?;
        remove(&beside(&self.path))?;
        remove(&self.path)?;
        sync_folder(parent(&self.path))
    }

    /// Reads the whole file, and cuts off what never counted.
    fn read(&mut self, limit: usize) -> Result<Kept> {
        let path = self.path.clone();
        let fail = |reason: &str| broken(&path, reason.to_string());
        let open = File::options().read(true).write(true).open(&path);
        let mut file = open.map_err(|e| Error::io("open", &path, e))?;
        let mut bytes = Vec::new();
        (&mut file)
            .take(MAX_FILE + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io("read", &path, e))?;
        if bytes.starts_with(snapshot::MAGIC) {
            // A snapshot of Session::save becomes a journal.
            return snapshot::load(&path, limit);
        }
        if bytes.len() as u64 > MAX_FILE {
            return Err(fail("it is longer than any history"));
        }
        let (header, mut rest) = bytes
            .split_first_chunk::<HEADER>()
            .ok_or_else(|| fail("it is truncated"))?;
        if !header.starts_with(MAGIC) {
            return Err(fail("it does not start with TRCTJRNL or TRCTHIST"));
        }
        let number = |at: usize| {
            let mut four = [0; 4];
            four.copy_from_slice(&header[at..at + 4]);
            u32::from_le_bytes(four)
        };
        for (got, supported) in [(number(8), VERSION), (number(12), snapshot::VERSION)] {
            if got == 0 || got > supported {
                return Err(Error::UnsupportedSnapshot {
                    path,
                    got,
                    supported,
                });
            }
        }
        let sealed = number(16) != 0;
        if sealed && self.cipher.is_none() {
            return Err(fail("it is encrypted; give its key"));
        }
        // A plain file becomes a sealed one now that there is a key.
        let renew = self.cipher.is_some() && !sealed || number(12) != snapshot::VERSION;
        self.header = *header;

        let mut kept: Option<Kept> = None;
        let (mut next, mut first) = (0, 0);
        while let Some((body, used)) = self.unit(next, rest, sealed)? {
            match &mut kept {
                None => {
                    kept = Some(snapshot::decode(&path, number(12), &body, limit)?);
                    first = HEADER + used;
                }
                Some(kept) => {
                    let change = wincode::deserialize_exact::<Change>(&body)
                        .map_err(|e| broken(&path, format!("change {next} is malformed: {e}")))?;
                    kept.apply(change)
                        .map_err(|e| broken(&path, format!("change {next}: {e}")))?;
                }
            }
            next += 1;
            rest = &rest[used..];
        }
        let kept = kept.ok_or_else(|| fail("it is truncated"))?;
        self.next = next;
        self.bytes = (bytes.len() - rest.len()) as u64;
        self.fold_at = fold_at(first);
        let mut cut = || -> std::io::Result<()> {
            if !rest.is_empty() {
                file.set_len(self.bytes)?;
                file.sync_all()?;
            }
            file.seek(SeekFrom::Start(self.bytes)).map(|_| ())
        };
        cut().map_err(|e| Error::io("repair", &path, e))?;
        self.file = file;
        self.broken = renew;
        Ok(kept)
    }

    /// Content of the unit at the start of `rest`, and its length in the file; nothing if the file
    /// ends before the unit does.
    fn unit(&self, number: u64, rest: &[u8], sealed: bool) -> Result<Option<(Vec<u8>, usize)>> {
        // Storage that lost power may have made room for a unit without filling it.
        if rest.len() < 8 || rest.iter().all(|&b| b == 0) {
            return Ok(None);
        }
        let (head, body) = rest.split_at(8);
        let mut words = head
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&b| u32::from_le_bytes(b));
        let (length, flipped) = (words.next().unwrap_or(0), words.next().unwrap_or(0));
        let damaged = || broken(&self.path, format!("unit {number} is damaged"));
        let trailer = if sealed { 0 } else { 4 };
        let length = match usize::try_from(length) {
            Ok(n) if flipped == !length && n <= MAX_UNIT => n,
            _ => return Err(damaged()),
        };
        let Some(body) = body.get(..length + trailer) else {
            return Ok(None);
        };
        let used = 8 + length + trailer;
        let opened = if sealed {
            self.unseal(number, body)
        } else {
            let (body, crc) = body.split_at(length);
            (crc == checksum(head, body)).then(|| body.to_vec())
        };
        match opened {
            Some(body) => Ok(Some((body, used))),
            // The last one may have reached the storage in part.
            None if number > 0 && used == rest.len() => Ok(None),
            None if number == 0 && sealed => Err(broken(
                &self.path,
                "it cannot be decrypted: the key is another one, or the file is damaged".into(),
            )),
            None => Err(damaged()),
        }
    }

    fn seal(&self, header: &[u8; HEADER], number: u64, body: &[u8]) -> Result<Vec<u8>> {
        let content = match &self.cipher {
            None => body.to_vec(),
            Some(cipher) => {
                let mut nonce = [0; NONCE];
                random(&self.path, &mut nonce)?;
                let aad = authenticated(header, number);
                let payload = Payload {
                    msg: body,
                    aad: &aad,
                };
                let sealed = cipher.encrypt(&XNonce::from(nonce), payload);
                let sealed =
                    sealed.map_err(|_| broken(&self.path, "it cannot be encrypted".into()))?;
                [&nonce, &*sealed].concat()
            }
        };
        let length = u32::try_from(content.len())
            .ok()
            .filter(|&n| n as usize <= MAX_UNIT)
            .ok_or_else(|| broken(&self.path, "a change is too long".into()))?;
        let mut unit = Vec::with_capacity(content.len() + 12);
        unit.extend_from_slice(&length.to_le_bytes());
        unit.extend_from_slice(&(!length).to_le_bytes());
        unit.extend_from_slice(&content);
        if self.cipher.is_none() {
            let crc = checksum(&unit[..8], &content);
            unit.extend_from_slice(&crc);
        }
        Ok(unit)
    }

    fn unseal(&self, number: u64, body: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = body.split_first_chunk::<NONCE>()?;
        let aad = authenticated(&self.header, number);
        let payload = Payload {
            msg: sealed,
            aad: &aad,
        };
        let cipher = self.cipher.as_ref()?;
        cipher.decrypt(&XNonce::from(*nonce), payload).ok()
    }
}

/// What is authenticated with a unit.
fn authenticated(header: &[u8; HEADER], number: u64) -> Vec<u8> {
    [&header[..], &number.to_le_bytes()].concat()
}

/// Length from which a file is written anew whose snapshot ends at `snapshot`.
fn fold_at(snapshot: usize) -> u64 {
    snapshot as u64 + (snapshot as u64).max(MIN_CHANGES)
}

/// How pressing it is to write the file anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing can be appended before.
    Now,
    /// The file is longer than it need be.
    Soon,
}

/// The file that takes the place of `path`. One name, so that what a crash leaves is found again.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    path.with_file_name(name)
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("delete", path, e)),
        _ => Ok(()),
    }
}

fn random(path: &Path, bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes)
        .map_err(|e| broken(path, format!("the system gives no random numbers: {e}")))
}

fn checksum(head: &[u8], body: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(body);
    hasher.finalize().to_le_bytes()
}
