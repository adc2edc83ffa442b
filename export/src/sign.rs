//! Keys and signatures of bundles, in the format of minisign.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use minisign::{KeyPair, PublicKey, SecretKey, SecretKeyBox};
use tercet::bundle::MANIFEST_FILE;
use tercet::store::SIGNATURE_FILE;

use crate::error::{Error, Result};

/// A secret key with which bundles are signed.
pub struct SigningKey {
    secret: SecretKey,
    path: PathBuf,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey")
            .field("path", &self.path)
            .finish()
    }
}

/// Files of a new pair of keys.
#[derive(Debug, Clone, serde::Serialize)]
pub struct KeyFiles {
    /// The secret one: whoever has it can make bundles that devices trust.
    pub secret: PathBuf,
    /// The public one, for the app.
    pub public: PathBuf,
    /// Its line of base64.
    pub public_key: String,
}

impl SigningKey {
    /// Makes a pair of keys and writes `<stem>.key`, encrypted with `password` if one is given, and
    /// `<stem>.pub`. The secret file is readable by its owner only. `minisign` reads both.
    ///
    /// # Errors
    /// [`Error::Key`] if a key cannot be made, [`Error::Io`]: also if a file exists, which is never
    /// overwritten.
    pub fn generate(stem: &Path, password: Option<String>) -> Result<KeyFiles> {
        let with = |extension: &str| {
            let mut name = stem.as_os_str().to_owned();
            name.push(extension);
            PathBuf::from(name)
        };
        let (secret, public) = (with(".key"), with(".pub"));
        let fail = |e: minisign::PError| key_error(&secret, e.to_string());
        let keys = match password {
            Some(password) => KeyPair::generate_encrypted_keypair(Some(password)),
            None => KeyPair::generate_unencrypted_keypair(),
        };
        let keys = keys.map_err(fail)?;
        let secret_text = keys.sk.to_box(None).map_err(fail)?.into_string();
        let public_text = keys.pk.to_box().map_err(fail)?.into_string();
        write_new(&secret, &secret_text, true)?;
        if let Err(e) = write_new(&public, &public_text, false) {
            let _ = std::fs::remove_file(&secret);
            return Err(e);
        }
        Ok(KeyFiles {
            secret,
            public,
            public_key: keys.pk.to_base64(),
        })
    }

    /// Reads a secret key. `password` is asked for only if the key is encrypted.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Key`] if it is no key, or not with this password.
    pub fn load(path: &Path, password: impl FnOnce() -> Option<String>) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read the key", path, e))?;
        let parse = || SecretKeyBox::from_string(&text);
        let fail = |e: minisign::PError| key_error(path, e.to_string());
        let secret = match parse().map_err(fail)?.into_unencrypted_secret_key() {
            Ok(secret) => secret,
            Err(plain) => match password() {
                Some(password) => parse()
                    .map_err(fail)?
                    .into_secret_key(Some(password))
                    .map_err(fail)?,
                None => return Err(fail(plain)),
            },
        };
        Ok(SigningKey {
            secret,
            path: path.to_path_buf(),
        })
    }

    /// Signs the manifest of the bundle in folder `bundle`, which names all its other files.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Key`].
    pub fn sign(&self, bundle: &Path) -> Result<()> {
        let path = bundle.join(MANIFEST_FILE);
        let manifest = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let fail = |e: minisign::PError| key_error(&self.path, e.to_string());
        let public = PublicKey::from_secret_key(&self.secret).map_err(fail)?;
        let signature = minisign::sign(
            Some(&public),
            &self.secret,
            manifest.as_slice(),
            Some("manifest.json of a Tercet bundle"),
            None,
        );
        let signature = signature.map_err(fail)?.into_string();
        let path = bundle.join(SIGNATURE_FILE);
        let mut file = tempfile::NamedTempFile::new_in(bundle)
            .map_err(|e| Error::io("create a temporary file beside", &path, e))?;
        file.write_all(signature.as_bytes())
            .and_then(|()| file.as_file().sync_all())
            .map_err(|e| Error::io("write", &path, e))?;
        file.persist(&path)
            .map_err(|e| Error::io("rename into place", &path, e.error))?;
        Ok(())
    }
}

fn key_error(path: &Path, reason: String) -> Error {
    Error::Key {
        path: path.to_path_buf(),
        reason,
    }
}

fn write_new(path: &Path, text: &str, secret: bool) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if secret {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    #[cfg(not(unix))]
    let _ = secret;
    let write = |mut file: File| {
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
    };
    options
        .open(path)
        .and_then(write)
        .map_err(|e| Error::io("write the key", path, e))
}
