//! A bundle that is ready to serve, and where the next one comes from.

use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use tercet::{Bundle, BundleStore, UserTower};

/// Where bundles come from.
#[derive(Debug)]
pub enum Source {
    /// A bundle's folder. To replace it, rename another one into its place.
    Folder(PathBuf),
    /// A folder of signed bundles, which `tercet store install` or the like keeps up to date.
    Store(Box<BundleStore>),
}

/// A loaded bundle with user towers. Requests that run hold on to theirs.
pub struct Release {
    bundle: Bundle,
    towers: Mutex<Vec<UserTower>>,
}

impl Release {
    /// Opens the present bundle of `source` and tries it out: its hashes (a store has checked
    /// them when it took it in), its probe, and a user tower for each of `threads` threads. After
    /// that nothing is read from its folder but the mapped table, whatever becomes of the folder.
    ///
    /// # Errors
    /// What is wrong with the bundle.
    pub fn load(source: &Source, threads: usize) -> Result<Self> {
        let bundle = match source {
            Source::Folder(path) => {
                let bundle = Bundle::open(path)?;
                bundle.verify()?;
                bundle
            }
            Source::Store(store) => store.current()?,
        };
        if let Some(probe) = bundle.run_probe()? {
            ensure!(
                probe.passed,
                "the bundle's health check found {} of {} expected items",
                probe.found,
                probe.expected
            );
        }
        let towers = (0..threads)
            .map(|_| bundle.load_user_tower())
            .collect::<Result<_, _>>()
            .context("the bundle has no user tower that runs here")?;
        Ok(Release {
            bundle,
            towers: Mutex::new(towers),
        })
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Its version.
    pub fn version(&self) -> u64 {
        self.bundle.manifest().bundle_version
    }

    /// Runs `f` with a tower that no other thread uses. If `f` panics, that tower is lost and the
    /// next call loads one.
    pub(crate) fn with_tower<T>(
        &self,
        f: impl FnOnce(&mut UserTower) -> tercet::Result<T>,
    ) -> tercet::Result<T> {
        let towers = || self.towers.lock().unwrap_or_else(|e| e.into_inner());
        let kept = towers().pop();
        let mut tower = match kept {
            Some(tower) => tower,
            None => self.bundle.load_user_tower()?,
        };
        let result = f(&mut tower);
        towers().push(tower);
        result
    }
}
