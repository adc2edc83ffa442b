//! A student and its data → a bundle.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tercet::bundle::{EngineInfo, Modality, Probe, ProbeEvent};
use tercet::{
    Bundle, BundleWriter, Event, ItemTableBuilder, Manifest, Query, Scheme, Session,
    SessionOptions, TensorSpec, TensorWriter,
};
use tercet_models::data::{Dataset, Split};
use tercet_models::eval::{self, EvalProtocol, evaluate};
use tercet_models::run::RunFiles;
use tercet_models::student::Student;

use crate::attribution::modality_shares;
use crate::cold::{ColdItems, Lifted, cold_items};
use crate::error::{Error, Result};
use crate::onnx::{self, OPSET, TensorData, TowerTensor, Weights};
use crate::quality::{TableQuality, table_quality};
use crate::scorer::BundleScorer;
use crate::shards::{Merged, Shards};
use crate::verify::{self, Parity};

/// File names of the towers.
const USER_TOWER: &str = "user_tower";
const FUSION_TOWER: &str = "fusion_tower";

/// Events and expected items of the probe.
const PROBE: (usize, usize) = (5, 10);

/// Share of the probe's items that may be absent on another machine, where sums are rounded in
/// another order and the last places of the list may change hands.
const PROBE_TOLERANCE: f32 = 0.2;

/// How to pack a student.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// Number format of the item table.
    pub table: Scheme,
    /// Whether the table has a tail of 4 more bits a value for finalists: int8 and two-stage only.
    pub tail: bool,
    /// Number of partitions to store rows by.
    pub partitions: Option<usize>,
    /// Partitions that a search looks at by default; as many as find 98 % if absent.
    pub probes: Option<usize>,
    /// Number format of the towers' weights.
    pub towers: Weights,
    /// Stable name of the line of bundles; the destination's file name without extension if absent.
    pub bundle_id: Option<String>,
    /// Version, growing with every release; if absent, one more than that of the bundle being
    /// replaced, else 1.
    pub bundle_version: Option<u64>,
    /// Time of writing, RFC 3339; now if absent.
    pub created: Option<String>,
    /// Time after which the bundle should not be used, RFC 3339.
    pub expires: Option<String>,
    /// Share of the first places that items without a training event get at least, if they have
    /// content, up to their share of the catalogue; see [`ColdItems`].
    pub cold_share: f64,
    /// How the metrics of the model card are measured.
    pub protocol: EvalProtocol,
    /// Folder of item vectors that take the place of the student's own; see
    /// [`shards`](crate::shards).
    pub shards: Option<PathBuf>,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            table: Scheme::Int8,
            tail: false,
            partitions: None,
            probes: None,
            towers: Weights::Int8,
            bundle_id: None,
            bundle_version: None,
            created: None,
            expires: None,
            cold_share: 0.05,
            protocol: EvalProtocol::valid(),
            shards: None,
        }
    }
}

/// Where a student comes from, for the model card.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// `teachers.json` of the student's run.
    pub teachers: Value,
    /// `report.json` of the student's run.
    pub training: Value,
    /// Seed of the student's run.
    pub seed: Option<u64>,
    /// The command line that made the bundle.
    pub command: Option<String>,
}

impl Provenance {
    /// What the folder of a run tells about it. Files that are not there are left out.
    ///
    /// # Errors
    /// A file that is there and cannot be read, or is not JSON.
    pub fn of_run(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let teachers = read_json(&folder.join("teachers.json"))?;
        let mut training = read_json(&RunFiles::new(folder).report())?;
        // The folder of another machine tells a reader nothing.
        if let Some(map) = training.as_object_mut() {
            map.remove("run");
        }
        let seed = training.get("seed").and_then(Value::as_u64);
        Ok(Self {
            teachers,
            training,
            seed,
            command: None,
        })
    }
}

fn read_json(path: &Path) -> Result<Value> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| Error::Json {
            path: path.to_path_buf(),
            source,
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(e) => Err(Error::io("read", path, e)),
    }
}

/// An attribute column that did not go into the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SkippedAttribute {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// What [`export`] wrote.
#[derive(Debug, Clone, Serialize)]
pub struct ExportReport {
    /// The bundle.
    pub path: PathBuf,
    /// Its name.
    pub bundle_id: String,
    /// Its version.
    pub bundle_version: u64,
    /// N.
    pub items: usize,
    /// D.
    pub dim: usize,
    /// Number format of the table.
    pub table: Scheme,
    /// Number format of the towers.
    pub towers: Weights,
    /// Bytes of all files but the manifest.
    pub bytes: u64,
    /// Bytes per file.
    pub files: BTreeMap<String, u64>,
    /// Attribute columns of the table.
    pub attributes: Vec<String>,
    /// Attribute columns left out.
    pub skipped_attributes: Vec<SkippedAttribute>,
    /// Users the metrics are measured on; 0 where the data has no such rows.
    pub users: usize,
    /// The student in full precision.
    pub student: BTreeMap<String, f64>,
    /// This bundle, through the runtime.
    pub metrics: BTreeMap<String, f64>,
    /// The bundle's vectors and rankings against the student's.
    pub parity: Parity,
    /// What searches of the table find of the student's best items.
    pub quality: TableQuality,
    /// What was done for items that nobody has met yet.
    pub cold: ColdItems,
    /// Wall seconds.
    pub seconds: f64,
}

/// Packs `student`, trained on `data`, as the bundle `dest`.
///
/// The item table holds the vectors of the student in full precision, rounded to the scheme. The
/// bundle is first written to a temporary folder beside `dest`, reopened through the runtime,
/// compared with the student (see [`verify::Bounds`]) and measured; only then a bundle with those
/// metrics in its model card takes the final name. If anything fails, `dest` is as it was.
///
/// With [`ExportOptions::shards`] the table holds the items and vectors of the shards, in their
/// order: at least the items of `data`, and as many more as there are. The bundle is compared with
/// the student before, with the student's own vectors, and measured after, with those of the
/// shards. Items that `data` does not know have popularity 0 and no attributes.
///
/// # Errors
/// [`Error::Mismatch`] for other data than the student's, [`Error::Shard`], [`Error::Parity`] if the bundle differs
/// from the student by more than its number formats explain, [`Error::Runtime`] if `dest` exists
/// and is no bundle.
pub fn export(
    student: &Student,
    data: &Dataset,
    provenance: &Provenance,
    options: &ExportOptions,
    dest: impl AsRef<Path>,
) -> Result<ExportReport> {
    let started = Instant::now();
    let dest = dest.as_ref();
    check_fit(student, data)?;
    if options.probes.is_some() && options.partitions.is_none() {
        return Err(Error::Mismatch {
            reason: "probes are partitions to look at; give a number of partitions too".into(),
        });
    }
    // Refuses a destination that must not be replaced, and shards that are not complete, before any
    // work is done.
    drop(BundleWriter::create(dest)?);
    let shards = options.shards.as_ref();
    let shards = shards
        .map(|folder| Shards::open(folder, student.shape.dim))
        .transpose()?;
    let parent = match dest.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let staging = tempfile::Builder::new()
        .prefix(".tercet-export.")
        .tempdir_in(parent)
        .map_err(|e| Error::io("create a temporary folder beside", dest, e))?;

    let reference = student.scorer(data)?;
    let parts = Parts::new(student, data, options, &reference.items, staging.path())?;
    let mut manifest = manifest(student, options, dest);
    let draft = parts.write(&staging.path().join("draft.tercet"), manifest.clone())?;
    draft.verify()?;

    let scorer = BundleScorer::new(&draft, data)?;
    let parity = verify::parity(&draft, &scorer, student, data)?;
    verify::check(&parity, options.table, options.towers)?;
    let unmet = parts.cold();
    let cold = cold_items(
        &scorer,
        data,
        student.shape.window,
        &unmet,
        options.cold_share,
    )?;
    manifest.table.cold_bias = Some(cold.bias).filter(|b| *b > 0.0);
    let reference = Lifted::new(reference, &unmet, cold.bias);
    let merged = match &shards {
        Some(shards) => Some(shards.merge(&staging.path().join("vectors.f32"))?),
        None => None,
    };
    let (parts, draft, scorer) = match (&shards, &merged) {
        (Some(shards), Some(merged)) => {
            let parts = parts.of_shards(merged, data, options.partitions)?;
            let draft = parts
                .write(&staging.path().join("merged.tercet"), manifest.clone())
                .map_err(|e| shards.blame(e))?;
            draft.verify()?;
            let scorer = BundleScorer::new(&draft, data)?;
            (parts, draft, scorer)
        }
        _ if cold.bias > 0.0 => {
            let draft = parts.write(&staging.path().join("lifted.tercet"), manifest.clone())?;
            draft.verify()?;
            let scorer = BundleScorer::new(&draft, data)?;
            (parts, draft, scorer)
        }
        _ => (parts, draft, scorer),
    };
    let protocol = &options.protocol;
    // Data without such rows is exported too, but its card has no metrics.
    let (full, packed) = match eval::queries(data, protocol) {
        Ok(_) => (
            Some(evaluate(&reference, data, protocol)?),
            Some(evaluate(&scorer, data, protocol)?),
        ),
        Err(tercet_models::Error::Config { .. }) => (None, None),
        Err(e) => return Err(e.into()),
    };
    let metrics =
        |r: &Option<eval::EvalReport>| r.as_ref().map(|r| r.metrics.clone()).unwrap_or_default();
    let (full_metrics, packed_metrics) = (metrics(&full), metrics(&packed));
    let items = (&parts.keys[..], &parts.vectors[..]);
    let quality = table_quality(&draft, &scorer, data, items, options.probes)?;
    manifest.table.probes = quality.probes;
    let loss: BTreeMap<&String, f64> = full_metrics
        .iter()
        .filter_map(|(name, full)| Some((name, full - packed_metrics.get(name)?)))
        .collect();
    // Of the bundle as it will be: by default a search of the draft looks at all partitions.
    let draft = match quality.probes {
        Some(_) => parts.write(&staging.path().join("probed.tercet"), manifest.clone())?,
        None => draft,
    };
    manifest.probe = probe(&draft, data)?;
    manifest.card = json!({
        "model": "student",
        "teacher": provenance.teachers,
        "student": {
            "shape": student.shape,
            "parameters": student.params.count(),
            "training": provenance.training,
        },
        "dataset": dataset_card(data),
        "protocol": protocol,
        "metrics": {
            "split": protocol.split,
            "users": packed.as_ref().map_or(0, |r| r.users),
            "student": full_metrics,
            "bundle": packed_metrics,
        },
        "parity": parity,
        "formats": { "table": options.table, "towers": options.towers },
        "table": {
            "scheme": options.table,
            "tail": options.tail,
            "partitions": options.partitions,
            "sharded": shards.is_some(),
            "search": quality,
            "metric_loss": loss,
            "cold": cold,
        },
        "seeds": { "student": provenance.seed },
        "command": provenance.command,
    });
    let bundle = parts.write(dest, manifest)?;
    let manifest = bundle.manifest();
    let files: BTreeMap<String, u64> = manifest
        .files
        .iter()
        .map(|(name, f)| (name.clone(), f.bytes))
        .collect();
    Ok(ExportReport {
        path: dest.to_path_buf(),
        bundle_id: manifest.bundle_id.clone(),
        bundle_version: manifest.bundle_version,
        items: manifest.items,
        dim: manifest.dim,
        table: options.table,
        towers: options.towers,
        bytes: files.values().sum(),
        files,
        attributes: bundle.table().attributes().map(str::to_string).collect(),
        skipped_attributes: parts.columns.skipped,
        users: packed.as_ref().map_or(0, |r| r.users),
        student: full_metrics,
        metrics: packed_metrics,
        parity,
        quality,
        cold,
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn check_fit(student: &Student, data: &Dataset) -> Result<()> {
    let fail = |reason: String| Err(Error::Mismatch { reason });
    let items = student.graph.dims().first().copied().unwrap_or(0);
    if items != data.num_items() {
        return fail(format!(
            "the student knows {items} items, the data has {}; give the data it was trained on",
            data.num_items()
        ));
    }
    if student.shape.behaviors != data.behaviors {
        return fail(format!(
            "the student knows the behaviours {:?}, the data {:?}",
            student.shape.behaviors, data.behaviors
        ));
    }
    Ok(())
}

fn manifest(student: &Student, options: &ExportOptions, dest: &Path) -> Manifest {
    let shape = &student.shape;
    let stem = dest.file_stem().map(|s| s.to_string_lossy().into_owned());
    let id = options
        .bundle_id
        .clone()
        .or(stem)
        .unwrap_or_else(|| "bundle".into());
    let version = options.bundle_version.unwrap_or_else(|| {
        Bundle::open(dest)
            .ok()
            .filter(|old| old.manifest().bundle_id == id)
            .map_or(1, |old| old.manifest().bundle_version.saturating_add(1))
    });
    let mut m = Manifest::new(id, version, shape.dim, shape.window);
    if let Some(created) = &options.created {
        m.created.clone_from(created);
    }
    m.expires.clone_from(&options.expires);
    m.modalities = shape
        .modalities
        .iter()
        .map(|m| Modality {
            name: m.name.clone(),
            dim: m.dim,
        })
        .collect();
    m.behaviors.clone_from(&shape.behaviors);
    m.engine = EngineInfo {
        opset: OPSET,
        user_tower: Some(format!("{USER_TOWER}.onnx")),
        fusion_tower: Some(format!("{FUSION_TOWER}.onnx")),
        user_weights: Some(format!("{USER_TOWER}.safetensors")),
        fusion_weights: Some(format!("{FUSION_TOWER}.safetensors")),
    };
    m
}

fn dataset_card(data: &Dataset) -> Value {
    let rows = |split| {
        data.interactions
            .iter()
            .filter(|r| r.split == split)
            .count()
    };
    json!({
        "name": data.name,
        "users": data.num_users(),
        "items": data.num_items(),
        "rows": {
            "train": rows(Split::Train),
            "valid": rows(Split::Valid),
            "test": rows(Split::Test),
        },
        "ordered": data.ordered,
        "behaviors": data.behaviors,
        "target_behavior": data.target_behavior.map(|b| &data.behaviors[usize::from(b)]),
        "modalities": data.features.iter().map(|f| &f.name).collect::<Vec<_>>(),
    })
}

/// Everything that is written twice: to the draft and to the final place.
struct Parts<'a> {
    dim: usize,
    scheme: Scheme,
    tail: bool,
    partitions: Option<usize>,
    keys: Vec<&'a str>,
    vectors: Cow<'a, [f32]>,
    popularity: Vec<f32>,
    /// Items that have neither a training event nor content: nothing is known of them.
    blank: Vec<bool>,
    /// `[N, M]`.
    modalities: Vec<u8>,
    columns: Columns<'a>,
    files: Vec<(String, Vec<u8>)>,
}

impl<'a> Parts<'a> {
    fn new(
        student: &Student,
        data: &'a Dataset,
        options: &ExportOptions,
        items: &candle_core::Tensor,
        scratch: &Path,
    ) -> Result<Self> {
        let metadata = |tower: &str| {
            vec![
                ("tercet.tower", tower.to_string()),
                ("tercet.dataset", data.name.clone()),
                ("tercet.weights", options.towers.name().to_string()),
            ]
        };
        let mut files = Vec::new();
        for (name, tower) in [
            (
                USER_TOWER,
                onnx::user_tower(student, options.towers, &metadata(USER_TOWER))?,
            ),
            (
                FUSION_TOWER,
                onnx::fusion_tower(student, options.towers, &metadata(FUSION_TOWER))?,
            ),
        ] {
            files.push((format!("{name}.onnx"), tower.onnx));
            let file = format!("{name}.safetensors");
            let bytes = safetensors_bytes(&tower.tensors, &scratch.join(&file))?;
            files.push((file, bytes));
        }
        let counts = data.popularity();
        let total = counts.iter().map(|&c| f64::from(c)).sum::<f64>().max(1.0);
        Ok(Self {
            dim: student.shape.dim,
            scheme: options.table,
            tail: options.tail,
            // As many as the table of the shards wants may be more than the data has items.
            partitions: options.partitions.filter(|_| options.shards.is_none()),
            keys: data.items.keys().collect(),
            vectors: verify::to_vec(items)?.into(),
            popularity: counts
                .iter()
                .map(|&c| (f64::from(c) / total) as f32)
                .collect(),
            blank: (0..data.num_items())
                .map(|i| counts[i] == 0 && data.features.iter().all(|f| !f.present[i]))
                .collect(),
            modalities: modality_shares(student, data, items)?,
            columns: Columns::new(data),
            files,
        })
    }

    /// The same for the items of shards, which hold those of `data`.
    fn of_shards(
        self,
        merged: &'a Merged,
        data: &Dataset,
        partitions: Option<usize>,
    ) -> Result<Self> {
        let known = data.items.keys().enumerate();
        let known: HashMap<&str, usize> = known.map(|(i, key)| (key, i)).collect();
        let from: Vec<Option<usize>> = merged
            .keys
            .iter()
            .map(|key| known.get(key.as_str()).copied())
            .collect();
        let mut missing: HashSet<usize> = (0..data.num_items()).collect();
        from.iter().flatten().for_each(|i| {
            missing.remove(i);
        });
        if let Some(&i) = missing.iter().min() {
            return Err(Error::Mismatch {
                reason: format!(
                    "the shards lack {} items of the data, {:?} for one",
                    missing.len(),
                    data.items.key(i as u32)
                ),
            });
        }
        let width = self.modalities.len() / data.num_items().max(1);
        let shares = |i: &Option<usize>| match i {
            Some(i) => self.modalities[i * width..(i + 1) * width].to_vec(),
            None => vec![0; width],
        };
        Ok(Parts {
            partitions,
            keys: merged.keys.iter().map(String::as_str).collect(),
            vectors: merged.vectors.values().into(),
            popularity: from
                .iter()
                .map(|i| i.map_or(0.0, |i| self.popularity[i]))
                .collect(),
            // What the data does not know, a tower has embedded by its content.
            blank: from
                .iter()
                .map(|i| i.is_some_and(|i| self.blank[i]))
                .collect(),
            modalities: from.iter().flat_map(shares).collect(),
            columns: self.columns.pick(&from),
            ..self
        })
    }

    /// Rows of items that are known by their content alone.
    fn cold(&self) -> Vec<u32> {
        let unmet = |&i: &usize| self.popularity[i] == 0.0 && !self.blank[i];
        (0..self.keys.len())
            .filter(unmet)
            .map(|i| i as u32)
            .collect()
    }

    fn write(&self, dest: &Path, manifest: Manifest) -> Result<Bundle> {
        let mut bias = Vec::new();
        if let Some(lift) = manifest.table.cold_bias {
            bias.resize(self.keys.len(), 0.0);
            self.cold().iter().for_each(|&i| bias[i as usize] = lift);
        }
        let mut table = ItemTableBuilder::new(self.dim, self.scheme, &self.keys, &self.vectors)?
            .popularity(&self.popularity)?;
        if !bias.is_empty() {
            table = table.bias(&bias)?;
        }
        if self.tail {
            table = table.tail()?;
        }
        if let Some(count) = self.partitions {
            table = table.partitions(count)?;
        }
        if !self.modalities.is_empty() {
            table = table.modalities(&self.modalities)?;
        }
        for (name, values) in &self.columns.single {
            table = table.attribute(name, values)?;
        }
        for (name, values) in &self.columns.lists {
            table = table.list_attribute(name, values)?;
        }
        let mut writer = BundleWriter::create(dest)?;
        writer.table(&table)?;
        for (name, bytes) in &self.files {
            writer.write_file(name, bytes)?;
        }
        Ok(writer.finish(manifest)?)
    }
}

/// Writes tensors in the layout that every tensor file of a bundle has, and reads them back.
fn safetensors_bytes(tensors: &[TowerTensor], scratch: &Path) -> Result<Vec<u8>> {
    let mut specs = Vec::new();
    for t in tensors {
        let dtype = match &t.data {
            TensorData::F32(_) => Dtype::F32,
            TensorData::F16(_) => Dtype::F16,
            TensorData::Int8 { scales, .. } => {
                specs.push(TensorSpec::new(&t.name, Dtype::I8, t.shape.clone()));
                specs.push(TensorSpec::new(
                    format!("{}.scale", t.name),
                    Dtype::F32,
                    [scales.len()],
                ));
                continue;
            }
        };
        specs.push(TensorSpec::new(&t.name, dtype, t.shape.clone()));
    }
    let floats = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let mut out = TensorWriter::create(scratch, &specs)?;
    for t in tensors {
        match &t.data {
            TensorData::F32(v) => out.write(&t.name, &floats(v))?,
            TensorData::F16(v) => {
                let bytes: Vec<u8> = v.iter().flat_map(|h| h.to_le_bytes()).collect();
                out.write(&t.name, &bytes)?;
            }
            TensorData::Int8 { codes, scales } => {
                let bytes: Vec<u8> = codes.iter().map(|c| *c as u8).collect();
                out.write(&t.name, &bytes)?;
                out.write(&format!("{}.scale", t.name), &floats(scales))?;
            }
        }
    }
    out.finish()?;
    std::fs::read(scratch).map_err(|e| Error::io("read", scratch, e))
}

/// Attribute columns for filters and for display.
#[derive(Default)]
struct Columns<'a> {
    single: Vec<(&'a str, Vec<Option<&'a str>>)>,
    lists: Vec<(&'a str, Vec<Vec<&'a str>>)>,
    skipped: Vec<SkippedAttribute>,
}

impl<'a> Columns<'a> {
    /// The title, and every attribute that can serve as a filter: one whose values repeat.
    fn new(data: &'a Dataset) -> Self {
        let mut out = Self::default();
        if let Some(titles) = &data.titles {
            let some = |t: &'a String| Some(t.as_str()).filter(|t| !t.is_empty());
            out.single
                .push(("title", titles.iter().map(some).collect()));
        }
        for a in &data.attributes {
            let reason = Self::refusal(&a.name, &a.values, data.titles.is_some());
            if let Some(reason) = reason {
                out.skipped.push(SkippedAttribute {
                    name: a.name.clone(),
                    reason,
                });
            } else if a.values.iter().any(|v| v.len() > 1) {
                let all = |v: &'a Vec<String>| v.iter().map(String::as_str).collect();
                out.lists
                    .push((&a.name, a.values.iter().map(all).collect()));
            } else {
                let first = |v: &'a Vec<String>| v.first().map(String::as_str);
                out.single
                    .push((&a.name, a.values.iter().map(first).collect()));
            }
        }
        out
    }

    /// The columns of other rows: each is one of these, or has no value.
    fn pick(self, from: &[Option<usize>]) -> Self {
        let single = self.single.into_iter().map(|(name, values)| {
            let value = |i: &Option<usize>| i.and_then(|i| values[i]);
            (name, from.iter().map(value).collect())
        });
        let lists = self.lists.into_iter().map(|(name, values)| {
            let value = |i: &Option<usize>| i.map_or_else(Vec::new, |i| values[i].clone());
            (name, from.iter().map(value).collect())
        });
        Self {
            single: single.collect(),
            lists: lists.collect(),
            skipped: self.skipped,
        }
    }

    fn refusal(name: &str, values: &[Vec<String>], has_titles: bool) -> Option<String> {
        let usable = !name.is_empty()
            && name.len() <= tercet::MAX_NAME_BYTES
            && !name.contains('.')
            && !name.chars().any(char::is_control);
        if !usable {
            return Some("its name is too long, or holds a dot or a control character".into());
        }
        if name == "title" {
            return has_titles.then(|| "there is another column of titles".into());
        }
        let distinct: HashSet<&str> = values.iter().flatten().map(String::as_str).collect();
        let filled = values.iter().filter(|v| !v.is_empty()).count();
        // Numbers serve ranges and freshness, however many there are.
        let is_number = |v: &&str| v.trim().parse::<f64>().is_ok_and(f64::is_finite);
        if distinct.iter().filter(|v| is_number(v)).count() * 10 >= distinct.len() * 9 {
            return None;
        }
        (distinct.len() > filled / 2 && distinct.len() > 1).then(|| {
            format!(
                "{} distinct values in {filled} items: free text, not a filter",
                distinct.len()
            )
        })
    }
}

/// A history of the most popular items, nobody's own, and what the bundle recommends for it.
fn probe(bundle: &Bundle, data: &Dataset) -> Result<Option<Probe>> {
    let mut common = vec![0usize; data.behaviors.len()];
    for row in &data.interactions {
        common[usize::from(row.behavior)] += usize::from(data.is_target(row.behavior));
    }
    let behavior = (0..common.len()).max_by_key(|&b| (common[b], std::cmp::Reverse(b)));
    let behavior = behavior.map_or("any", |b| data.behaviors[b].as_str());
    let counts = data.popularity();
    let mut ids: Vec<u32> = (0..counts.len() as u32).collect();
    ids.sort_by_key(|&i| (std::cmp::Reverse(counts[i as usize]), i));
    let events = PROBE.0.min(ids.len() / 2);
    if events == 0 {
        return Ok(None);
    }
    let history: Vec<ProbeEvent> = ids[..events]
        .iter()
        .map(|&i| ProbeEvent {
            item: data.items.key(i).into(),
            behavior: behavior.into(),
        })
        .collect();
    let mut session = Session::new(bundle, SessionOptions::default())?;
    for e in &history {
        session.record(Event::new(&e.item).behavior(&e.behavior))?;
    }
    let top = session.recommend(&Query::top(PROBE.1.min(ids.len() - events)))?;
    Ok(Some(Probe {
        history,
        expected: top.into_iter().map(|r| r.item).collect(),
        tolerance: Some(PROBE_TOLERANCE),
    }))
}
