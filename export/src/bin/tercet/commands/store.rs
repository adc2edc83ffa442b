//! `tercet store`: what an app does with a store, for tries and for hosts without an app.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use tercet::{BundleStore, Error, StoreOptions, StoreStatus, StoredBundle};

use super::shared;
use crate::output;

/// A folder of signed bundles, as a device keeps it.
#[derive(clap::Subcommand)]
pub(crate) enum Store {
    /// Check a bundle or a delta and make it the current bundle.
    Install(Install),
    /// Return to the previous bundle.
    Rollback(Args),
    /// What the store holds.
    Status(Args),
}

/// Options of `store install`.
#[derive(clap::Args)]
pub(crate) struct Install {
    #[command(flatten)]
    store: Args,
    /// Bundle or delta to install.
    source: PathBuf,
}

/// Options of every `store` verb.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of the store; made when absent.
    store: PathBuf,
    /// Public key to trust: a .pub file or its line of base64. At most two.
    #[arg(long, required = true)]
    key: Vec<String>,
    /// Line of bundles; that of the current bundle when absent, else that of the bundle offered.
    #[arg(long)]
    bundle_id: Option<String>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Stored {
    version: u64,
    proven: bool,
    expired: bool,
}

#[derive(Serialize)]
struct Report {
    current: Option<Stored>,
    previous: Option<Stored>,
    staged: Option<Stored>,
    newest: Option<u64>,
    /// Folder of the current bundle.
    path: Option<PathBuf>,
}

pub(crate) fn run(store: Store) -> Result<()> {
    match store {
        Store::Install(install) => {
            let store = open(&install.store, Some(&install.source))?;
            store
                .install(&install.source)
                .with_context(|| format!("cannot install {}", install.source.display()))?;
            report(&install.store, &store)
        }
        Store::Rollback(args) => {
            let store = open(&args, None)?;
            store.rollback().context("cannot roll back")?;
            report(&args, &store)
        }
        Store::Status(args) => report(&args, &open(&args, None)?),
    }
}

fn open(args: &Args, offered: Option<&Path>) -> Result<BundleStore> {
    let with = |id: &str| -> Result<BundleStore> {
        let mut options = StoreOptions::new(id);
        for key in &args.key {
            options = options.trust(&shared::public_key(key)?)?;
        }
        BundleStore::open(&args.store, options)
            .with_context(|| format!("cannot open the store {}", args.store.display()))
    };
    if let Some(id) = &args.bundle_id {
        return with(id);
    }
    // The line of the current bundle, which was checked when it was installed.
    match (with("")?.current(), offered) {
        (Ok(bundle), _) => with(&bundle.manifest().bundle_id),
        (Err(_), Some(offered)) => with(&shared::bundle_id(offered)?),
        (Err(_), None) => with(""),
    }
}

fn report(args: &Args, store: &BundleStore) -> Result<()> {
    // Opening proves a new bundle, and falls back if it does not work.
    let path = match store.current() {
        Ok(bundle) => Some(bundle.path().to_path_buf()),
        Err(Error::NoBundle { .. }) => None,
        Err(e) => return Err(e).context("the current bundle cannot be used"),
    };
    let StoreStatus {
        current,
        previous,
        staged,
        newest,
        ..
    } = store.status()?;
    let describe = |bundle: Option<StoredBundle>| {
        bundle.map(|b| Stored {
            version: b.version,
            proven: b.proven,
            expired: b.expired,
        })
    };
    let report = Report {
        current: describe(current),
        previous: describe(previous),
        staged: describe(staged),
        newest,
        path,
    };
    if args.json {
        return output::json(&report);
    }
    for (name, bundle) in [
        ("current", &report.current),
        ("previous", &report.previous),
        ("staged", &report.staged),
    ] {
        match bundle {
            Some(b) if b.expired => println!("{name:<9} version {} (past its date)", b.version),
            Some(b) => println!("{name:<9} version {}", b.version),
            None => println!("{name:<9} none"),
        }
    }
    if let Some(path) = &report.path {
        println!("in {}", path.display());
    }
    Ok(())
}
