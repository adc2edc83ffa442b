//! `tercet key`

use std::path::PathBuf;

use anyhow::{Context, Result};
use tercet_export::SigningKey;

use super::shared::PASSWORD;
use crate::output;

/// Keys with which bundles are signed.
#[derive(clap::Subcommand)]
pub(crate) enum Key {
    /// Make a pair of keys: NAME.key to sign with, NAME.pub for the app. In minisign's format.
    New(New),
}

/// Options of `key new`.
#[derive(clap::Args)]
pub(crate) struct New {
    /// Path of the two files without their extensions.
    #[arg(long, default_value = "tercet")]
    out: PathBuf,
    /// Encrypt the secret key with the password in the environment variable TERCET_KEY_PASSWORD,
    /// which signing then needs too.
    #[arg(long)]
    encrypt: bool,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(key: Key) -> Result<()> {
    let Key::New(args) = key;
    let password = match args.encrypt {
        true => Some(
            std::env::var(PASSWORD)
                .with_context(|| format!("set {PASSWORD} to the password of the new key"))?,
        ),
        false => None,
    };
    let files = SigningKey::generate(&args.out, password).context("no keys were made")?;
    if args.json {
        return output::json(&files);
    }
    println!(
        "secret key: {} (keep it off devices and out of repositories)",
        files.secret.display()
    );
    println!("public key: {}", files.public.display());
    println!("for StoreOptions::trust: {}", files.public_key);
    Ok(())
}
