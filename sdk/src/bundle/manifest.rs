//! `manifest.json`: what a bundle is, and the checks that need no other file.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::id::{MAX_KEY_BYTES, is_file_name, is_name};
use crate::quant::Scheme;

/// The bundle format this crate reads and writes.
pub const FORMAT_VERSION: u64 = 1;

/// File name of the manifest.
pub const MANIFEST_FILE: &str = "manifest.json";

/// File name of the item table.
pub const ITEMS_FILE: &str = "items.safetensors";

/// Longest accepted `manifest.json`, in bytes.
pub const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// Largest accepted number of values in an item vector.
pub const MAX_DIM: usize = 1024;

/// Largest accepted window of the user tower, in events.
pub const MAX_WINDOW: usize = 4096;

/// Largest accepted number of partitions of an item table.
pub const MAX_PARTITIONS: usize = 1 << 16;

const MAX_LIST: usize = 256;

/// Content of `manifest.json`. Field by field in `FORMAT.md`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Manifest {
    /// Always [`FORMAT_VERSION`].
    pub format_version: u64,
    /// Stable name of this line of bundles, e.g. `shop-eu`.
    pub bundle_id: String,
    /// Grows with every release of `bundle_id`.
    pub bundle_version: u64,
    /// Time of writing, RFC 3339.
    pub created: String,
    /// Time after which the bundle should not be used, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// D: values per item vector.
    pub dim: usize,
    /// N: items in the table.
    pub items: usize,
    /// Inputs of the fusion tower, in the order of its `present` columns.
    pub modalities: Vec<Modality>,
    /// Behavior vocabulary; the index is the id, id 0 is `any`.
    pub behaviors: Vec<String>,
    /// How item vectors are stored.
    pub table: TableInfo,
    /// L: events the user tower looks at; fixed in its graph.
    pub window: usize,
    /// The towers.
    pub engine: EngineInfo,
    /// Length and digest of every file but the manifest itself.
    pub files: BTreeMap<String, FileInfo>,
    /// Health check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    /// Model card: teacher, dataset, protocol, metrics, seeds, command. Free form.
    #[serde(default)]
    pub card: serde_json::Value,
}

/// One input of the fusion tower.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Modality {
    /// Name of the tower's input: `image`, `text`, `graph`, …
    pub name: String,
    /// Values per item.
    pub dim: usize,
}

/// How item vectors are stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableInfo {
    /// Number format of `codes`.
    pub scheme: Scheme,
    /// Number of partitions the rows are stored by; none if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<usize>,
    /// Partitions that a search looks at unless the query says otherwise; absent: all that its
    /// bound does not rule out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<usize>,
    /// Added to the scores of items that a device adds itself, as the table's bias is to those of
    /// its rows: what the table adds for items that nobody has met yet. Absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cold_bias: Option<f32>,
}

impl TableInfo {
    /// A table without partitions.
    pub fn new(scheme: Scheme) -> Self {
        TableInfo {
            scheme,
            partitions: None,
            probes: None,
            cold_bias: None,
        }
    }
}

/// What an engine must be able to run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineInfo {
    /// ONNX operator set of the towers; 0 if there are none.
    pub opset: u32,
    /// File name of the user tower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_tower: Option<String>,
    /// File name of the fusion tower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fusion_tower: Option<String>,
    /// File name of the user tower's weights, if it has the student's own shape: the compact
    /// engine then needs no graph.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_weights: Option<String>,
    /// File name of the fusion tower's weights, as for the user tower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fusion_weights: Option<String>,
}

/// Length and digest of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileInfo {
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256, 64 lower-case hex digits.
    pub sha256: String,
}

/// A history and the items it should lead to: tells a device that all parts work together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Events, oldest first.
    pub history: Vec<ProbeEvent>,
    /// Item keys expected as the best `expected.len()` recommendations, seen items excluded.
    pub expected: Vec<String>,
    /// Share of `expected`, 0 to 1, that may be absent; 0 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<f32>,
}

/// One event of a [`Probe`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeEvent {
    /// Item key.
    pub item: String,
    /// Behavior name.
    pub behavior: String,
}

/// The few fields that decide whether the rest can be understood.
#[derive(Deserialize)]
struct Envelope {
    format_version: u64,
    table: Option<EnvelopeTable>,
}

#[derive(Deserialize)]
struct EnvelopeTable {
    scheme: Option<String>,
}

impl Manifest {
    /// A manifest with today's date and nothing optional. [`BundleWriter::finish`] fills in
    /// `items`, `table` and `files`.
    ///
    /// [`BundleWriter::finish`]: crate::bundle::BundleWriter::finish
    pub fn new(
        bundle_id: impl Into<String>,
        bundle_version: u64,
        dim: usize,
        window: usize,
    ) -> Self {
        Manifest {
            format_version: FORMAT_VERSION,
            bundle_id: bundle_id.into(),
            bundle_version,
            created: rfc3339(SystemTime::now()),
            expires: None,
            dim,
            items: 0,
            modalities: Vec::new(),
            behaviors: vec!["any".to_string()],
            table: TableInfo::new(Scheme::Int8),
            window,
            engine: EngineInfo::default(),
            files: BTreeMap::new(),
            probe: None,
            card: serde_json::Value::Null,
        }
    }

    /// Parses and checks the bytes of a manifest; `path` is for error texts only.
    ///
    /// # Errors
    /// [`Error::ManifestTooLarge`], [`Error::UnsupportedFormat`], [`Error::UnsupportedScheme`],
    /// [`Error::Manifest`].
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(Error::ManifestTooLarge {
                path: path.to_path_buf(),
                bytes: bytes.len() as u64,
                limit: MAX_MANIFEST_BYTES,
            });
        }
        let json = |e: serde_json::Error| Error::manifest(path, e.to_string());
        let envelope: Envelope = serde_json::from_slice(bytes).map_err(json)?;
        if envelope.format_version != FORMAT_VERSION {
            return Err(Error::UnsupportedFormat {
                got: envelope.format_version,
                supported: FORMAT_VERSION,
            });
        }
        if let Some(scheme) = envelope.table.and_then(|t| t.scheme)
            && Scheme::from_name(&scheme).is_none()
        {
            return Err(Error::UnsupportedScheme { got: scheme });
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(json)?;
        manifest.check(path)?;
        Ok(manifest)
    }

    /// Pretty JSON, as written to `manifest.json`.
    pub(crate) fn to_json(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::argument(format!("the manifest cannot be written as JSON: {e}")))?;
        bytes.push(b'\n');
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(Error::argument(format!(
                "the manifest has {} bytes, limit is {MAX_MANIFEST_BYTES}; shorten the model card",
                bytes.len()
            )));
        }
        Ok(bytes)
    }

    /// Id of a behavior name.
    pub fn behavior_id(&self, name: &str) -> Option<i64> {
        self.behaviors
            .iter()
            .position(|b| b == name)
            .map(|i| i as i64)
    }

    pub(crate) fn check(&self, path: &Path) -> Result<()> {
        let fail = |reason: String| Err(Error::manifest(path, reason));
        if self.bundle_id.is_empty() || self.bundle_id.len() > 128 {
            return fail("bundle_id must have 1 to 128 bytes".into());
        }
        if parse_rfc3339(&self.created).is_none() {
            return fail("created is not an RFC 3339 time".into());
        }
        if self
            .expires
            .as_deref()
            .is_some_and(|t| parse_rfc3339(t).is_none())
        {
            return fail("expires is not an RFC 3339 time".into());
        }
        if self.dim == 0 || self.dim > MAX_DIM {
            return fail(format!("dim is {}, expected 1 to {MAX_DIM}", self.dim));
        }
        if self.items == 0 || u32::try_from(self.items).is_err() {
            return fail(format!(
                "items is {}, expected 1 to {}",
                self.items,
                u32::MAX
            ));
        }
        let table = &self.table;
        if table.scheme.is_packed() && !self.dim.is_multiple_of(2) {
            return fail(format!(
                "dim is {}, {} needs an even number",
                self.dim, table.scheme
            ));
        }
        if table
            .partitions
            .is_some_and(|p| p == 0 || p > MAX_PARTITIONS || p > self.items)
        {
            return fail(format!(
                "table.partitions must be 1 to {MAX_PARTITIONS} and at most items"
            ));
        }
        if table
            .probes
            .is_some_and(|p| p == 0 || table.partitions.is_none_or(|n| p > n))
        {
            return fail("table.probes must be 1 to table.partitions".into());
        }
        if table.cold_bias.is_some_and(|b| !b.is_finite()) {
            return fail("table.cold_bias must be finite".into());
        }
        if self.window == 0 || self.window > MAX_WINDOW {
            return fail(format!(
                "window is {}, expected 1 to {MAX_WINDOW}",
                self.window
            ));
        }
        if self.behaviors.is_empty() || self.behaviors.len() > MAX_LIST {
            return fail(format!("behaviors must have 1 to {MAX_LIST} names"));
        }
        if self.modalities.len() > MAX_LIST {
            return fail(format!("modalities must have at most {MAX_LIST} entries"));
        }
        let mut names: Vec<&str> = self.behaviors.iter().map(String::as_str).collect();
        if let Err(reason) = distinct_names(&mut names) {
            return fail(format!("behaviors: {reason}"));
        }
        let mut names: Vec<&str> = self.modalities.iter().map(|m| m.name.as_str()).collect();
        if let Err(reason) = distinct_names(&mut names) {
            return fail(format!("modalities: {reason}"));
        }
        if let Some(m) = self
            .modalities
            .iter()
            .find(|m| m.dim == 0 || m.dim > 1 << 16)
        {
            return fail(format!(
                "modality {:?} has dim {}, expected 1 to 65536",
                m.name, m.dim
            ));
        }
        if self.files.len() > MAX_LIST {
            return fail(format!("files must have at most {MAX_LIST} entries"));
        }
        for (name, info) in &self.files {
            if !is_file_name(name) || name == MANIFEST_FILE {
                return fail(format!("files: {name:?} is not a plain file name"));
            }
            let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            if info.sha256.len() != 64 || !info.sha256.bytes().all(hex) {
                return fail(format!(
                    "files: sha256 of {name} is not 64 lower-case hex digits"
                ));
            }
        }
        if !self.files.contains_key(ITEMS_FILE) {
            return fail(format!("files: {ITEMS_FILE} is missing"));
        }
        let engine = &self.engine;
        for tower in [
            &engine.user_tower,
            &engine.fusion_tower,
            &engine.user_weights,
            &engine.fusion_weights,
        ]
        .into_iter()
        .flatten()
        {
            if !self.files.contains_key(tower) {
                return fail(format!("engine: {tower:?} is not listed in files"));
            }
        }
        if let Some(probe) = &self.probe {
            if probe.expected.is_empty() || probe.expected.len() > 1000 {
                return fail("probe: expected must have 1 to 1000 items".into());
            }
            let keys = probe.history.iter().map(|e| &e.item).chain(&probe.expected);
            if keys
                .into_iter()
                .any(|k| k.is_empty() || k.len() > MAX_KEY_BYTES)
            {
                return fail("probe: an item key is empty or too long".into());
            }
            if let Some(e) = probe
                .history
                .iter()
                .find(|e| self.behavior_id(&e.behavior).is_none())
            {
                return fail(format!(
                    "probe: behavior {:?} is not in behaviors",
                    e.behavior
                ));
            }
            if probe.tolerance.is_some_and(|t| !(0.0..=1.0).contains(&t)) {
                return fail("probe: tolerance must be 0 to 1".into());
            }
        }
        Ok(())
    }
}

fn distinct_names(names: &mut [&str]) -> Result<(), String> {
    if let Some(bad) = names.iter().find(|n| !is_name(n)) {
        return Err(format!(
            "{bad:?} is empty, too long or holds a dot or control character"
        ));
    }
    names.sort_unstable();
    match names.windows(2).find(|w| w[0] == w[1]) {
        Some(pair) => Err(format!("{:?} is listed twice", pair[0])),
        None => Ok(()),
    }
}

/// Seconds since 1970-01-01 UTC of `2026-01-31T12:00:00[.frac](Z|±hh:mm)`, fractions dropped.
pub(crate) fn parse_rfc3339(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let form = b"dddd-dd-ddTdd:dd:dd";
    if bytes.len() < form.len() + 1 || bytes.len() > 40 {
        return None;
    }
    let (head, mut rest) = bytes.split_at(form.len());
    let fits = |text: &[u8], form: &[u8]| {
        text.len() == form.len()
            && text.iter().zip(form).all(|(&b, &f)| match f {
                b'd' => b.is_ascii_digit(),
                b'T' => matches!(b, b'T' | b't' | b' '),
                _ => b == f,
            })
    };
    if !fits(head, form) {
        return None;
    }
    if let Some(fraction) = rest.strip_prefix(b".") {
        let digits = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
        if digits == 0 {
            return None;
        }
        rest = &fraction[digits..];
    }
    let number = |digits: &[u8]| {
        let digit = |b: &u8| i64::from(b - b'0');
        digits.iter().fold(0, |n, b| 10 * n + digit(b))
    };
    let offset = match rest.split_first() {
        Some((b'Z' | b'z', [])) => 0,
        Some((sign @ (b'+' | b'-'), zone)) if fits(zone, b"dd:dd") => {
            let (hours, minutes) = (number(&zone[..2]), number(&zone[3..]));
            if hours > 23 || minutes > 59 {
                return None;
            }
            let seconds = 3600 * hours + 60 * minutes;
            if *sign == b'+' { seconds } else { -seconds }
        }
        _ => return None,
    };
    let [year, month, day] = [&head[..4], &head[5..7], &head[8..10]].map(number);
    let [hour, minute, second] = [&head[11..13], &head[14..16], &head[17..]].map(number);
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let days = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // The inverse of `rfc3339`: years begin in March, so that the leap day is their last.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let (era, yoe) = (y.div_euclid(400), y.rem_euclid(400));
    let doe = 365 * yoe + yoe / 4 - yoe / 100 + (153 * m + 2) / 5 + day - 1;
    let days = era * 146_097 + doe - 719_468;
    Some(86_400 * days + 3600 * hour + 60 * minute + second - offset)
}

/// `time` in UTC as `2026-01-31T12:00:00Z`.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01 in 400-year eras (Gregorian calendar, exact).
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_by_hand() {
        // `date -u -d @N` gave the right-hand sides.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            let got = rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
            assert_eq!(got, text);
            assert_eq!(parse_rfc3339(&got), Some(seconds as i64));
        }
    }

    #[test]
    fn times_of_other_forms() {
        // 2026-01-31T12:00:00Z is 1769860800, by `date`.
        for (good, seconds) in [
            ("2026-01-31T12:00:00.123Z", 1_769_860_800),
            ("2026-01-31t12:00:00z", 1_769_860_800),
            ("2026-01-31T12:00:00+01:00", 1_769_857_200),
            ("2026-01-31 12:00:00-00:30", 1_769_862_600),
            ("1969-12-31T23:59:59Z", -1),
        ] {
            assert_eq!(parse_rfc3339(good), Some(seconds), "{good}");
        }
        for bad in [
            "",
            "2026-01-31",
            "2026-01-31T12:00:00",
            "2026-01-31T12:00:00.Z",
            "yesterday",
            "2026-01-31T12:00:00+1",
            "2026-13-01T12:00:00Z",
            "2026-02-29T12:00:00Z",
            "2026-01-31T24:00:00Z",
            "2026-01-31T12:00:00+24:00",
            "2026-01-31T12:00:00ZZ",
        ] {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
    }
}
