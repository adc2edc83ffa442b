//! One user on one device: history in, recommendations out.

use std::path::Path;

use crate::adapt::Adaptation;
use crate::added::{Added, MAX_ADDED, NewItem};
use crate::bundle::{Bundle, remove_leftovers};
use crate::engine::{EngineKind, EngineReport, FusionTower, Tower, UserTower};
use crate::error::{Error, Result, check_len};
use crate::explain::{Evidence, MAX_EXAMINED, describe};
use crate::history::{Event, History, Recorded};
use crate::id::Row;
#[cfg(feature = "store")]
use crate::journal::{Change, Durability, Journal, Need};
use crate::ranking::rank;
use crate::recommendation::{Query, Ranking, Recommendation};
use crate::search::Popular;
use crate::snapshot::{self, Contents, Kept, StoredFeedback};
use crate::table::{ItemTable, Metric, OverlayItem, Scorer, dot};
use crate::topk::{Scored, best_first};

/// Settings of a [`Session`].
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct SessionOptions {
    /// Most events kept, 1 to 4096; default 512. Items of kept events count as seen; the
    /// tower looks at the latest `window` events of known items.
    pub max_history: usize,
    /// Whether the session learns from [`Session::feedback`]; default no.
    pub adapt: bool,
    /// What runs the towers; default the fastest of this build that can run them. ONNX Runtime, a
    /// library that the app loads, comes in by [`Session::with_user_tower`].
    pub engine: Option<EngineKind>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions {
            max_history: 512,
            adapt: false,
            engine: None,
        }
    }
}

impl SessionOptions {
    /// Sets the number of events kept.
    pub fn max_history(mut self, events: usize) -> Self {
        self.max_history = events;
        self
    }

    /// Sets whether the session learns from [`Session::feedback`].
    pub fn adapt(mut self, yes: bool) -> Self {
        self.adapt = yes;
        self
    }

    /// Sets what runs the towers.
    pub fn engine(mut self, kind: EngineKind) -> Self {
        self.engine = Some(kind);
        self
    }
}

/// A user's history together with a bundle.
///
/// The user tower is loaded when first needed, the user vector is kept until the next event.
/// A session is `Send`; share the [`Bundle`] between threads, give each its own session.
pub struct Session {
    bundle: Bundle,
    history: History,
    /// Row and behavior id per event of `history`, or `None` if the table lacks the item.
    known: Vec<Option<(Row, i64)>>,
    tower: Option<UserTower>,
    /// What to load towers with, if not the fastest.
    engine: Option<EngineKind>,
    vector: Option<Vec<f32>>,
    /// That of the bundle, with the added items behind its last row.
    table: ItemTable,
    added: Vec<Placed>,
    fusion: Option<FusionTower>,
    /// Where changes are kept, in a durable session.
    #[cfg(feature = "store")]
    journal: Option<Journal>,
    pub(crate) adaptation: Adaptation,
}

/// An added item, and its vector if the bundle's fusion tower can make one.
struct Placed {
    item: NewItem,
    vector: Option<Vec<f32>>,
}

impl std::fmt::Debug for Session {
    // Not the history: debug output ends up in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("bundle", &self.bundle)
            .field("events", &self.history.len())
            .finish()
    }
}

impl Session {
    /// A session without history.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for bad options.
    pub fn new(bundle: &Bundle, options: SessionOptions) -> Result<Self> {
        Ok(Session {
            bundle: bundle.clone(),
            history: History::new(options.max_history)?,
            known: Vec::new(),
            tower: None,
            engine: options.engine,
            vector: None,
            table: bundle.table().clone(),
            added: Vec::new(),
            fusion: None,
            #[cfg(feature = "store")]
            journal: None,
            adaptation: Adaptation::new(options.adapt),
        })
    }

    /// A session that uses `tower` instead of loading the bundle's: for hosts with an engine
    /// of their own, and for tests. Its inputs and output are those of the user tower.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn with_tower(
        bundle: &Bundle,
        tower: Box<dyn Tower>,
        options: SessionOptions,
    ) -> Result<Self> {
        let mut session = Self::new(bundle, options)?;
        session.tower = Some(UserTower::new(tower, bundle.manifest(), "(host)"));
        Ok(session)
    }

    /// A session that uses a tower loaded before: with an engine of choice, say ONNX Runtime.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn with_user_tower(
        bundle: &Bundle,
        tower: UserTower,
        options: SessionOptions,
    ) -> Result<Self> {
        let mut session = Self::new(bundle, options)?;
        session.tower = Some(tower);
        Ok(session)
    }

    /// What runs the user tower, which is loaded if it was not yet.
    ///
    /// # Errors
    /// As [`Bundle::load_user_tower`].
    pub fn engine(&mut self) -> Result<EngineReport> {
        Ok(self.tower()?.engine())
    }

    /// A session with the history, the feedback and the added items of a snapshot. The snapshot may come from
    /// another version of the bundle: keys are looked up anew, a behavior that is gone becomes
    /// `any`, and added items get the vectors that this bundle's fusion tower makes of their
    /// features. Those that it cannot place (another set of modalities, no engine for the tower)
    /// are kept for a later bundle, those that the bundle holds by now are dropped.
    ///
    /// # Errors
    /// As [`History::load`] and, if there are added items, [`Bundle::load_fusion_tower`].
    pub fn restore(
        bundle: &Bundle,
        path: impl AsRef<Path>,
        options: SessionOptions,
    ) -> Result<Self> {
        let mut session = Self::new(bundle, options)?;
        session.take_over(snapshot::load(path.as_ref(), options.max_history)?)?;
        Ok(session)
    }

    /// A durable session: its history, feedback and added items live in the file at `path`, which is made if
    /// there is none. Once a call that changes them has returned, the change is kept, whatever
    /// happens to the process; after a crash the file has the state before or after a change, never
    /// anything between. The file stays bounded: it is rewritten now and then, which is the only
    /// time when recording costs more than one append. A snapshot of [`Session::save`] becomes such
    /// a file when it is opened.
    ///
    /// One session at a time may have the file open; `<path>.lock` sees to that, and stays. As with
    /// [`Session::restore`], the bundle may be another one than before.
    ///
    /// # Errors
    /// [`Error::HistoryBusy`]; [`Error::Snapshot`] if the file is damaged, or the key is missing or
    /// another one: the file is left as it is; [`Error::UnsupportedSnapshot`], [`Error::Io`]; as
    /// [`Session::restore`].
    #[cfg(feature = "store")]
    pub fn open(
        bundle: &Bundle,
        path: impl AsRef<Path>,
        options: SessionOptions,
        durability: &Durability,
    ) -> Result<Self> {
        let mut session = Self::new(bundle, options)?;
        let (journal, kept) = Journal::open(path.as_ref(), durability, options.max_history)?;
        session.take_over(kept)?;
        session.journal = Some(journal);
        Ok(session)
    }

    /// Whether changes are kept in a file as they come: the session was made by [`Session::open`].
    #[cfg(feature = "store")]
    pub fn is_durable(&self) -> bool {
        self.journal.is_some()
    }

    /// Begins with what a file held.
    fn take_over(&mut self, kept: Kept) -> Result<()> {
        self.history = kept.history;
        for (item, feedback, at) in kept.feedback {
            self.adaptation.push(&self.table, &item, feedback, at)?;
        }
        for item in kept.items {
            if self.bundle.table().find(&item.key)?.is_some() {
                continue;
            }
            let vector = match self.place(&item) {
                Ok(vector) => vector,
                Err(Error::MissingTower { .. } | Error::EngineUnavailable { .. }) => None,
                Err(e) => return Err(e),
            };
            self.added.push(Placed { item, vector });
        }
        self.relink()
    }

    /// Makes a change last, in a durable session, before it is made.
    #[cfg(feature = "store")]
    pub(crate) fn keep(&mut self, change: impl FnOnce() -> Change) -> Result<()> {
        let Some(mut journal) = self.journal.take() else {
            return Ok(());
        };
        let folded = match journal.wants_folding() {
            Some(Need::Now) => journal.fold(&self.contents()),
            Some(Need::Soon) => {
                // Appending does as well, if only there is room for it.
                let _ = journal.fold(&self.contents());
                Ok(())
            }
            None => Ok(()),
        };
        let done = folded.and_then(|()| journal.append(&change()));
        self.journal = Some(journal);
        done
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Key of an item of the bundle or an added one, by the row of a result.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such row, [`Error::CorruptTensor`].
    pub fn item_key(&self, row: Row) -> Result<&str> {
        self.table.key(row)
    }

    /// The events so far.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Adds an event.
    ///
    /// # Errors
    /// [`Error::UnknownBehavior`], [`Error::InvalidArgument`] for an empty or overlong key,
    /// [`Error::CorruptTensor`]; in a durable session [`Error::Io`], if the event could not be kept.
    /// The history is unchanged then.
    pub fn record(&mut self, event: Event) -> Result<Recorded> {
        let manifest = self.bundle.manifest();
        let behavior = match &event.behavior {
            None => 0,
            Some(name) => manifest
                .behavior_id(name)
                .ok_or_else(|| Error::UnknownBehavior {
                    got: name.chars().take(64).collect(),
                    known: manifest.behaviors.clone(),
                })?,
        };
        let row = self.table.find(&event.item)?;
        event.check()?;
        #[cfg(feature = "store")]
        self.keep(|| Change::Event {
            event: (&event).into(),
            unknown: row.is_none(),
        })?;
        if self.history.push(event)? && !self.known.is_empty() {
            self.known.remove(0);
        }
        self.known.push(row.map(|row| (row, behavior)));
        // An unknown item can push a known one out, so the vector goes in either case.
        self.vector = None;
        Ok(match row {
            Some(_) => Recorded::Known,
            None => {
                self.history.count_unknown();
                Recorded::UnknownItem
            }
        })
    }

    /// The user vector `[D]` of the present history; for an empty one, the tower's prior.
    ///
    /// # Errors
    /// [`Error::MissingTower`], [`Error::EngineUnavailable`], [`Error::Engine`].
    pub fn user_vector(&mut self) -> Result<&[f32]> {
        if self.vector.is_none() {
            let table = self.table.clone();
            let window = self.tower()?.window();
            let latest = self.known.iter().rev().copied().flatten();
            let mut events: Vec<(Row, i64)> = latest.take(window).collect();
            events.reverse();
            self.vector = Some(self.tower()?.follow(&table, &events)?);
        }
        Ok(self.vector.as_deref().unwrap_or_default())
    }

    /// The user tower, loaded when first needed.
    pub(crate) fn tower(&mut self) -> Result<&mut UserTower> {
        let tower = match self.tower.take() {
            Some(tower) => tower,
            None => match self.engine {
                Some(engine) => self.bundle.load_user_tower_with(engine)?,
                None => self.bundle.load_user_tower()?,
            },
        };
        Ok(self.tower.insert(tower))
    }

    /// Items of the bundle and added ones.
    pub(crate) fn table(&self) -> &ItemTable {
        &self.table
    }

    /// Row and behavior id of the events of known items, oldest first.
    pub(crate) fn known_events(&self) -> Vec<(Row, i64)> {
        self.known.iter().copied().flatten().collect()
    }

    /// The best items for this user.
    ///
    /// If the bundle has no user tower and no event of a known item was recorded, items are
    /// ranked by popularity, provided that the table has it.
    ///
    /// # Errors
    /// As [`Session::user_vector`]; [`Error::InvalidArgument`] for `k` = 0 and for numbers of
    /// the query outside their ranges; [`Error::UnknownAttribute`] for its caps and freshness;
    /// for the filter as [`ItemTable::select`](crate::ItemTable::select).
    pub fn recommend(&mut self, query: &Query) -> Result<Vec<Recommendation>> {
        let table = self.table.clone();
        let mut exclude = self.excluded(query)?;
        if !query.include_seen {
            exclude.extend(self.adaptation.disliked());
        }
        let history: Vec<Row> = self.rows().collect();
        let best = if self.ranks_by_popularity() {
            let mut scores = Popular(table.popularity().unwrap_or_default());
            rank(&table, &mut scores, query, &exclude, &history)?
        } else {
            let user = self.ranking_vector()?;
            let mut scores = Scorer::new(&table, Metric::Score, &user)?;
            rank(&table, &mut scores, query, &exclude, &history)?
        };
        if !query.explain {
            return self.describe(&best, None);
        }
        let mut parts = self.evidence()?;
        if !self.ranks_by_popularity() {
            self.adaptation.explain(&table, &mut parts)?;
        }
        let evidence = [Evidence {
            member: 0,
            factor: 1.0,
            parts,
        }];
        self.describe(&best, Some(&evidence))
    }

    fn describe(
        &self,
        ranked: &[Scored],
        explain: Option<&[Evidence]>,
    ) -> Result<Vec<Recommendation>> {
        let modalities = &self.bundle.manifest().modalities;
        describe(&self.table, modalities, ranked, explain)
    }

    /// Rows that `query` leaves out for this user.
    pub(crate) fn excluded(&self, query: &Query) -> Result<Vec<Row>> {
        let mut exclude = Vec::new();
        for key in &query.exclude {
            exclude.extend(self.table.find(key)?);
        }
        if !query.include_seen {
            exclude.extend(self.rows());
        }
        Ok(exclude)
    }

    /// A row per event of a known item, oldest first.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        self.known.iter().flatten().map(|(row, _)| *row)
    }

    /// What each item of the history adds to the user vector; nothing without a user tower.
    pub(crate) fn evidence(&mut self) -> Result<Vec<(Row, Vec<f32>)>> {
        if self.ranks_by_popularity() {
            return Ok(Vec::new());
        }
        let whole = self.user_vector()?.to_vec();
        let events = self.known_events();
        let Some(tower) = &mut self.tower else {
            return Ok(Vec::new());
        };
        let mut items: Vec<Row> = Vec::new();
        for &(row, _) in events.iter().rev().take(tower.window()) {
            if items.len() < MAX_EXAMINED && !items.contains(&row) {
                items.push(row);
            }
        }
        let mut parts = Vec::with_capacity(items.len());
        for item in items {
            let rest: Vec<(Row, i64)> = events
                .iter()
                .filter(|(row, _)| *row != item)
                .copied()
                .collect();
            // One by one: an engine has its plan for one history ready.
            let rest = tower.encode(&self.table, &[rest])?;
            let part = whole.iter().zip(&rest).map(|(u, v)| u - v).collect();
            parts.push((item, part));
        }
        Ok(parts)
    }

    /// What each modality of an item contributes to its score for this user, by name in the
    /// manifest's order: u · (v − v₋ₘ), with the item vector v of all the features given and
    /// v₋ₘ of the same without modality m. Absent modalities contribute 0; the parts need not
    /// add up to the score, because modalities interact within the tower.
    ///
    /// # Shapes
    /// `features` has one slice `[D_m]` per modality, `present` `[M]`, as for one item of
    /// [`FusionTower::encode`].
    ///
    /// # Errors
    /// As [`Session::user_vector`] and [`FusionTower::encode`].
    pub fn modality_contributions(
        &mut self,
        fusion: &mut FusionTower,
        features: &[&[f32]],
        present: &[f32],
    ) -> Result<Vec<(String, f32)>> {
        let names: Vec<String> = fusion.modalities().iter().map(|(n, _)| n.clone()).collect();
        let (m, items) = (names.len(), names.len() + 1);
        check_len("features (one slice per modality)", m, features.len())?;
        check_len("present", m, present.len())?;
        // Item 0 has everything, item 1 + j lacks modality j.
        let mut repeated = Vec::with_capacity(m);
        let mut flags: Vec<f32> = present.repeat(items);
        for (j, values) in features.iter().enumerate() {
            let mut all = values.repeat(items);
            all[(1 + j) * values.len()..(2 + j) * values.len()].fill(0.0);
            flags[(1 + j) * m + j] = 0.0;
            repeated.push(all);
        }
        let slices: Vec<&[f32]> = repeated.iter().map(Vec::as_slice).collect();
        let vectors = fusion.encode(items, &slices, &flags)?;
        let user = self.ranking_vector()?;
        let d = user.len();
        let all = dot(&user, &vectors[..d]);
        let parts = vectors[d..].chunks_exact(d).map(|v| all - dot(&user, v));
        Ok(names.into_iter().zip(parts).collect())
    }

    /// Scores given candidates for this user, best first; each counts once. Seen items are
    /// not left out.
    ///
    /// # Errors
    /// As [`Session::user_vector`].
    pub fn rank(&mut self, candidates: &[&str]) -> Result<Ranking> {
        let table = self.table.clone();
        let mut ranking = Ranking::default();
        let mut rows = Vec::new();
        for key in candidates {
            match table.find(key)? {
                Some(row) => rows.push(row),
                None => ranking.unknown.push((*key).to_string()),
            }
        }
        rows.sort_unstable();
        rows.dedup();
        let popularity = table.popularity().filter(|_| self.ranks_by_popularity());
        let user = match popularity {
            None if !rows.is_empty() => self.ranking_vector()?,
            _ => Vec::new(),
        };
        let mut scored = Vec::with_capacity(rows.len());
        for row in rows {
            let score = match popularity {
                Some(p) => p.get(row as usize).copied().unwrap_or(0.0),
                None => table.score(&user, row)?,
            };
            scored.push(Scored { row, score });
        }
        scored.sort_unstable_by(best_first);
        ranking.ranked = self.describe(&scored, None)?;
        Ok(ranking)
    }

    /// The `k` items most like `key` by cosine of the item vectors, without `key` itself. Does
    /// not depend on the user.
    ///
    /// # Errors
    /// [`Error::UnknownItem`], [`Error::InvalidArgument`] for `k` = 0.
    pub fn similar(&self, key: &str, k: usize) -> Result<Vec<Recommendation>> {
        let table = &self.table;
        let row = table.find(key)?.ok_or(Error::UnknownItem)?;
        let best = table.top_k_by(Metric::Cosine, &table.vector(row)?, k, &[row])?;
        self.describe(&best, None)
    }

    /// Adds an item that the bundle does not hold: its vector comes from the bundle's fusion tower,
    /// of any subset of the modalities, and from then on it is ranked, filtered, explained and
    /// recorded like the items of the bundle. It belongs to this session and its snapshots. Events
    /// of it that were recorded before count from now on.
    ///
    /// Popularity and calibration know nothing of it; a bitmap of available rows does not concern
    /// it. An item with few modalities often scores below known ones: let a query's
    /// [`freshness`](Query::freshness) speak for new items where that is wanted.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an item without features, modalities that the bundle does
    /// not have, or more than [`MAX_ADDED`] items; [`Error::Length`] and [`Error::NonFinite`] for
    /// features; [`Error::UnknownAttribute`]; as [`Bundle::load_fusion_tower`]. Nothing is
    /// changed then.
    pub fn add_item(&mut self, item: NewItem) -> Result<Added> {
        item.check()?;
        for (name, _) in &item.attributes {
            self.table.column(name)?;
        }
        let modalities = &self.bundle.manifest().modalities;
        for (name, values) in &item.features {
            let Some(modality) = modalities.iter().find(|m| m.name == *name) else {
                let known: Vec<&str> = modalities.iter().map(|m| m.name.as_str()).collect();
                return Err(Error::argument(format!(
                    "the bundle has no modality {name:?}, it has {}",
                    known.join(", ")
                )));
            };
            check_len(name, modality.dim, values.len())?;
        }
        if self.bundle.table().find(&item.key)?.is_some() {
            return Ok(Added::InBundle);
        }
        let at = self.added.iter().position(|p| p.item.key == item.key);
        if at.is_none() && self.added.len() >= MAX_ADDED {
            return Err(Error::argument(format!(
                "the session holds {MAX_ADDED} added items already: remove some"
            )));
        }
        let vector = self.place(&item)?;
        #[cfg(feature = "store")]
        self.keep(|| Change::Item((&item).into()))?;
        let placed = Placed { item, vector };
        let outcome = match at {
            Some(at) => {
                self.added[at] = placed;
                Added::Replaced
            }
            None => {
                self.added.push(placed);
                Added::Ranked
            }
        };
        self.relink()?;
        Ok(outcome)
    }

    /// Takes an added item away; whether there was one. Its events stay, as of an unknown item.
    ///
    /// # Errors
    /// [`Error::CorruptTensor`].
    pub fn remove_item(&mut self, key: &str) -> Result<bool> {
        let Some(at) = self.added.iter().position(|p| p.item.key == key) else {
            return Ok(false);
        };
        #[cfg(feature = "store")]
        self.keep(|| Change::RemovedItem(key.to_string()))?;
        self.added.remove(at);
        self.relink()?;
        Ok(true)
    }

    /// Keys of the added items in the order in which they came, and whether each is ranked: not so
    /// one from a snapshot that this bundle's fusion tower could not place.
    pub fn added_items(&self) -> impl ExactSizeIterator<Item = (&str, bool)> {
        self.added
            .iter()
            .map(|p| (p.item.key.as_str(), p.vector.is_some()))
    }

    /// What a file of this session holds.
    fn contents(&self) -> Contents {
        let feedback = self.kept_feedback();
        Contents::new(
            &self.history,
            self.added(),
            feedback.map(|(item, feedback, at)| StoredFeedback::new(item, feedback, at)),
        )
    }

    /// The added items.
    pub(crate) fn added(&self) -> impl Iterator<Item = &NewItem> {
        self.added.iter().map(|p| &p.item)
    }

    /// The item vector by the bundle's fusion tower, if it knows one of the item's modalities.
    fn place(&mut self, item: &NewItem) -> Result<Option<Vec<f32>>> {
        let modalities = &self.bundle.manifest().modalities;
        let given: Vec<Option<&[f32]>> = modalities
            .iter()
            .map(|m| {
                let found = item.features.iter().find(|(name, _)| *name == m.name);
                let values = found.map(|(_, values)| values.as_slice());
                values.filter(|v| v.len() == m.dim)
            })
            .collect();
        if given.iter().all(Option::is_none) {
            return Ok(None);
        }
        let zeros: Vec<Vec<f32>> = modalities.iter().map(|m| vec![0.0; m.dim]).collect();
        let features: Vec<&[f32]> = given
            .iter()
            .zip(&zeros)
            .map(|(values, zeros)| values.unwrap_or(zeros))
            .collect();
        let present: Vec<f32> = given
            .iter()
            .map(|v| f32::from(u8::from(v.is_some())))
            .collect();
        let fusion = match &mut self.fusion {
            Some(fusion) => fusion,
            None => self.fusion.insert(match self.engine {
                Some(engine) => self.bundle.load_fusion_tower_with(engine)?,
                None => self.bundle.load_fusion_tower()?,
            }),
        };
        Ok(Some(fusion.encode(1, &features, &present)?))
    }

    /// Brings table, known events and user vector in line with the added items.
    fn relink(&mut self) -> Result<()> {
        let items = self.added.iter().filter_map(|p| {
            Some(OverlayItem {
                key: &p.item.key,
                attributes: &p.item.attributes,
                vector: p.vector.clone()?,
            })
        });
        let items: Vec<OverlayItem<'_>> = items.collect();
        let table = if items.is_empty() {
            self.bundle.table().clone()
        } else {
            self.bundle.table().with_overlay(items)?
        };
        let manifest = self.bundle.manifest();
        let known: Result<Vec<_>> = self
            .history
            .events()
            .map(|event| {
                let behavior = event.behavior.as_deref();
                let behavior = behavior.and_then(|b| manifest.behavior_id(b)).unwrap_or(0);
                Ok(table.find(&event.item)?.map(|row| (row, behavior)))
            })
            .collect();
        let known = known?;
        self.adaptation.relink(&table)?;
        self.known = known;
        self.table = table;
        self.vector = None;
        if let Some(tower) = &mut self.tower {
            tower.forget();
        }
        Ok(())
    }

    /// Saves history, feedback and added items; see [`Session::restore`]. The file is written beside the old
    /// one, synced and renamed.
    ///
    /// # Errors
    /// As [`History::save`]; [`Error::InvalidArgument`] for the file of a durable session itself.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        #[cfg(feature = "store")]
        if self
            .journal
            .as_ref()
            .is_some_and(|j| j.is_at(path.as_ref()))
        {
            // A snapshot in its place would part the session from its file.
            return Err(Error::argument(
                "the session keeps itself in that file already; save a copy elsewhere",
            ));
        }
        snapshot::save(path.as_ref(), &self.contents())
    }

    /// Forgets history, feedback, added items and the user vector, deletes the file of a durable session,
    /// and `snapshot` if given. A snapshot that does not exist is not an error. A durable session starts
    /// a new file with the next change.
    ///
    /// Deleted is not overwritten: whoever can read the raw storage may find traces of a file until
    /// the system reuses its place. Of an encrypted one, only what the key can read.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be deleted; the memory is cleared nevertheless.
    pub fn erase(&mut self, snapshot: Option<&Path>) -> Result<()> {
        self.history.clear();
        self.adaptation.clear();
        self.known = Vec::new();
        self.vector = None;
        self.added = Vec::new();
        self.table = self.bundle.table().clone();
        if let Some(tower) = &mut self.tower {
            tower.forget();
        }
        #[cfg(feature = "store")]
        if let Some(journal) = &mut self.journal {
            journal.erase()?;
        }
        let Some(path) = snapshot else {
            return Ok(());
        };
        remove_leftovers(path)?;
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("delete", path, e)),
            _ => Ok(()),
        }
    }

    pub(crate) fn ranks_by_popularity(&self) -> bool {
        self.tower.is_none()
            && !self.bundle.has_user_tower()
            && self.known.iter().all(Option::is_none)
            && self.table.popularity().is_some()
    }
}

/// User vectors `[histories.len(), D]` of many histories with the bundle's user tower: what an
/// evaluation needs. Loads the tower; keep a [`UserTower`] to call it repeatedly.
///
/// # Errors
/// As [`Bundle::load_user_tower`] and [`UserTower::encode`].
pub fn score_histories(bundle: &Bundle, histories: &[Vec<(Row, i64)>]) -> Result<Vec<f32>> {
    bundle.load_user_tower()?.encode(bundle.table(), histories)
}

/// Outcome of a bundle's health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProbeReport {
    /// Expected items among the recommendations.
    pub found: usize,
    /// Items expected.
    pub expected: usize,
    /// Whether the share of missing items is within the probe's tolerance.
    pub passed: bool,
}

impl Bundle {
    /// Runs the manifest's probe, if it has one: tower, table, kernels and keys together.
    ///
    /// # Errors
    /// As [`Session::recommend`].
    pub fn run_probe(&self) -> Result<Option<ProbeReport>> {
        let Some(probe) = &self.manifest().probe else {
            return Ok(None);
        };
        let events = probe.history.len().clamp(1, crate::history::MAX_HISTORY);
        let mut session = Session::new(self, SessionOptions::default().max_history(events))?;
        for event in &probe.history {
            session.record(Event::new(&event.item).behavior(&event.behavior))?;
        }
        let top = session.recommend(&Query::top(probe.expected.len()))?;
        let found = probe
            .expected
            .iter()
            .filter(|key| top.iter().any(|r| r.item == **key))
            .count();
        let expected = probe.expected.len();
        let missing = (expected - found) as f32 / expected as f32;
        Ok(Some(ProbeReport {
            found,
            expected,
            passed: missing <= probe.tolerance.unwrap_or(0.0),
        }))
    }
}
