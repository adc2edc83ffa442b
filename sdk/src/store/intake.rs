//! What a bundle has to pass before a store takes it: every check that needs no other file first,
//! then names, lengths and space, and only then is anything read or written at length.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use minisign_verify::{PublicKey, Signature};
use sha2::{Digest, Sha256};

use super::delta::{DELTA_FILE, Delta};
use crate::bundle::{
    Bundle, ITEMS_FILE, MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, hex, parse_rfc3339,
    sync_folder,
};
use crate::error::{Error, Result};
use crate::join::join;

/// File name of the manifest's signature.
pub const SIGNATURE_FILE: &str = "manifest.json.minisig";

/// Four lines: two comments, 74 and 64 bytes as base64.
const MAX_SIGNATURE_BYTES: u64 = 4096;

/// A public key and its text, which names it in the store's state.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) text: String,
    key: PublicKey,
}

impl Key {
    /// From the line of base64, or the whole file that `minisign -G` writes.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let line = lines.find(|line| !line.starts_with("untrusted comment:"));
        let line = line.unwrap_or_default();
        let key = PublicKey::from_base64(line)
            .map_err(|e| Error::argument(format!("a minisign public key cannot be read: {e}")))?;
        Ok(Key {
            text: line.to_string(),
            key,
        })
    }
}

/// The signed manifest of a bundle that is offered.
pub(super) struct Offer {
    pub(super) manifest: Manifest,
    /// SHA-256 of the manifest.
    pub(super) digest: String,
    /// Text of the key that signed it.
    pub(super) key: String,
    bytes: Vec<u8>,
    signature: Vec<u8>,
}

impl Offer {
    /// Reads manifest and signature of the bundle in folder `source`. Nothing in the manifest is
    /// looked at before the signature has been checked.
    pub(super) fn read(source: &Path, keys: &[Key]) -> Result<Self> {
        let path = source.join(SIGNATURE_FILE);
        let bytes = match read_plain(&source.join(MANIFEST_FILE), MAX_MANIFEST_BYTES)? {
            Some(bytes) => bytes,
            None => {
                return Err(Error::NotABundle {
                    path: source.to_path_buf(),
                    reason: format!("it has no {MANIFEST_FILE}"),
                });
            }
        };
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(Error::ManifestTooLarge {
                path: source.join(MANIFEST_FILE),
                bytes: bytes.len() as u64,
                limit: MAX_MANIFEST_BYTES,
            });
        }
        let fail = |reason: String| Error::Signature {
            path: path.clone(),
            reason,
        };
        let signature = read_plain(&path, MAX_SIGNATURE_BYTES)?
            .ok_or_else(|| fail("there is none".to_string()))?;
        if signature.len() as u64 > MAX_SIGNATURE_BYTES {
            return Err(fail(format!(
                "it is longer than {MAX_SIGNATURE_BYTES} bytes"
            )));
        }
        let key = check_signature(&bytes, &signature, keys).map_err(|e| match e {
            minisign_verify::Error::UnexpectedKeyId => Error::UntrustedKey {
                path: source.to_path_buf(),
            },
            other => fail(other.to_string()),
        })?;
        Ok(Offer {
            manifest: Manifest::parse(&bytes, &source.join(MANIFEST_FILE))?,
            digest: hex(&Sha256::digest(&bytes)),
            key: key.to_string(),
            bytes,
            signature,
        })
    }

    /// Refuses a bundle that is past its date.
    pub(super) fn check_date(&self, now: SystemTime) -> Result<()> {
        if !expired(&self.manifest, now) {
            return Ok(());
        }
        Err(Error::Expired {
            expires: self.manifest.expires.clone().unwrap_or_default(),
        })
    }

    /// Total length of all files, and where each comes from, after comparing what lies in `source`
    /// with the manifest: plain files only, none that is not listed, each as long as promised. What
    /// a delta leaves out is in its base.
    pub(super) fn check_files(
        &self,
        source: &Path,
        base: Option<&Base>,
        limit: u64,
    ) -> Result<(u64, Vec<Origin>)> {
        let own = (self.bytes.len() + self.signature.len()) as u64;
        let lengths = self.manifest.files.values().map(|f| f.bytes);
        let total = lengths.fold(own, u64::saturating_add);
        if total > limit {
            return Err(Error::BundleTooLarge {
                bytes: total,
                limit,
            });
        }
        let entries = std::fs::read_dir(source).map_err(|e| Error::io("list", source, e))?;
        for entry in entries {
            let entry = entry.map_err(|e| Error::io("list", source, e))?;
            let name = entry.file_name();
            let name = name.to_str().unwrap_or_default();
            let listed = self.manifest.files.contains_key(name);
            let delta = base.is_some() && name == DELTA_FILE;
            if !listed && !delta && name != MANIFEST_FILE && name != SIGNATURE_FILE {
                return Err(Error::UnlistedFile { path: entry.path() });
            }
        }
        let mut origins = Vec::with_capacity(self.manifest.files.len());
        for (name, info) in &self.manifest.files {
            let path = source.join(name);
            let origin = match (plain_length(&path)?, base) {
                (Some(got), _) if got == info.bytes => Origin::Source,
                (Some(got), _) => {
                    return Err(Error::FileSize {
                        path,
                        expected: info.bytes,
                        got,
                    });
                }
                (None, Some(base)) if base.manifest.files.get(name) == Some(info) => Origin::Base,
                (None, Some(_)) if name == ITEMS_FILE => Origin::Delta,
                (None, _) => {
                    let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
                    return Err(Error::io("open", &path, missing));
                }
            };
            origins.push(origin);
        }
        Ok((total, origins))
    }

    /// Brings the bundle's files to the empty folder `dest`; they are neither checked nor synced yet.
    pub(super) fn copy(
        &self,
        source: &Path,
        base: Option<&Base>,
        origins: &[Origin],
        dest: &Path,
    ) -> Result<Copied> {
        let mut files = Vec::with_capacity(origins.len() + 2);
        for ((name, info), origin) in self.manifest.files.iter().zip(origins) {
            let to = dest.join(name);
            let file = match (origin, base) {
                (Origin::Base, Some(base)) => copy_file(&base.folder.join(name), &to, info.bytes),
                (Origin::Delta, Some(base)) => base.rebuild(&to, self.manifest.items, info.bytes),
                _ => copy_file(&source.join(name), &to, info.bytes),
            }?;
            files.push((to, file));
        }
        for (name, bytes) in [
            (MANIFEST_FILE, &self.bytes),
            (SIGNATURE_FILE, &self.signature),
        ] {
            let path = dest.join(name);
            let mut file = File::create_new(&path).map_err(|e| Error::io("create", &path, e))?;
            let written = file.write_all(bytes);
            written.map_err(|e| Error::io("write", &path, e))?;
            files.push((path, file));
        }
        Ok(Copied {
            folder: dest.to_path_buf(),
            files,
        })
    }
}

/// Files of a bundle that are written and may not have reached the storage yet.
pub(super) struct Copied {
    folder: PathBuf,
    files: Vec<(PathBuf, File)>,
}

impl Copied {
    /// Opens and checks the bundle while its files are synced. The digests are of what is here now,
    /// so it does no harm if `source` changed while it was read.
    pub(super) fn check(self) -> Result<Bundle> {
        let sync = || {
            for (path, file) in &self.files {
                file.sync_all().map_err(|e| Error::io("sync", path, e))?;
            }
            sync_folder(&self.folder)
        };
        let (synced, bundle) = join(sync, || {
            let bundle = Bundle::open(&self.folder)?;
            bundle.verify()?;
            Ok(bundle)
        });
        synced?;
        bundle
    }
}

/// Where a file of a bundle comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The folder offered.
    Source,
    /// The base of a delta, which has the same file.
    Base,
    /// Base and delta together.
    Delta,
}

/// A bundle of the store, and a delta that starts from it.
pub(super) struct Base {
    pub(super) folder: PathBuf,
    pub(super) manifest: Manifest,
    pub(super) delta: Delta,
}

impl Base {
    fn rebuild(&self, to: &Path, items: usize, want: u64) -> Result<File> {
        let table = self.folder.join(ITEMS_FILE);
        let bytes = self.manifest.files.get(ITEMS_FILE).map_or(0, |f| f.bytes);
        let from = (table.as_path(), bytes, self.manifest.items);
        self.delta.apply(from, to, items, want)
    }
}

/// Whether `now` is at or after the manifest's `expires`.
pub(super) fn expired(manifest: &Manifest, now: SystemTime) -> bool {
    let expires = manifest.expires.as_deref().and_then(parse_rfc3339);
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    expires.is_some_and(|at| i64::try_from(now).unwrap_or(i64::MAX) >= at)
}

/// Loads the towers and runs the probe.
pub(super) fn check_health(bundle: &Bundle) -> Result<()> {
    if bundle.has_user_tower() {
        bundle.load_user_tower()?;
    }
    match bundle.load_fusion_tower() {
        // Without one, items cannot be added on the device; all else works.
        Ok(_) | Err(Error::MissingTower { .. } | Error::EngineUnavailable { .. }) => {}
        Err(e) => return Err(e),
    }
    match bundle.run_probe()? {
        Some(report) if !report.passed => Err(Error::ProbeFailed {
            found: report.found,
            expected: report.expected,
        }),
        _ => Ok(()),
    }
}

/// Refuses what does not fit on the storage of folder `store`.
pub(super) fn check_space(store: &Path, needed: u64) -> Result<()> {
    // Elsewhere the copy fails when the storage is full, and is removed.
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(store)
            .map_err(|e| Error::io("measure the free space of", store, e.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < needed {
            return Err(Error::NoSpace {
                path: store.to_path_buf(),
                needed,
                free,
            });
        }
    }
    #[cfg(not(unix))]
    let _ = (store, needed);
    Ok(())
}

/// Text of the key that made `signature` over `bytes`.
fn check_signature<'a>(
    bytes: &[u8],
    signature: &[u8],
    keys: &'a [Key],
) -> Result<&'a str, minisign_verify::Error> {
    let text =
        std::str::from_utf8(signature).map_err(|_| minisign_verify::Error::InvalidEncoding)?;
    let signature = Signature::decode(text)?;
    for key in keys {
        match key.key.verify(bytes, &signature, false) {
            Ok(()) => return Ok(&key.text),
            Err(minisign_verify::Error::UnexpectedKeyId) => {}
            Err(e) => return Err(e),
        }
    }
    Err(minisign_verify::Error::UnexpectedKeyId)
}

/// Length of the plain file `path`, or `None` if there is nothing.
pub(super) fn plain_length(path: &Path) -> Result<Option<u64>> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("look at", path, e)),
        Ok(meta) if meta.is_file() => Ok(Some(meta.len())),
        Ok(_) => Err(Error::NotAFile {
            path: path.to_path_buf(),
        }),
    }
}

/// Content of a plain file, cut after `limit` + 1 bytes, or `None` if there is nothing.
fn read_plain(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    if plain_length(path)?.is_none() {
        return Ok(None);
    }
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io("read", path, e))?;
    Ok(Some(bytes))
}

/// Copies a file of `want` bytes; not synced.
fn copy_file(from: &Path, to: &Path, want: u64) -> Result<File> {
    let source = File::open(from).map_err(|e| Error::io("open", from, e))?;
    let mut dest = File::create_new(to).map_err(|e| Error::io("create", to, e))?;
    // One byte more tells a longer file.
    let got = std::io::copy(&mut source.take(want.saturating_add(1)), &mut dest)
        .map_err(|e| Error::io("copy", from, e))?;
    if got == want {
        return Ok(dest);
    }
    Err(Error::FileSize {
        path: from.to_path_buf(),
        expected: want,
        got,
    })
}
