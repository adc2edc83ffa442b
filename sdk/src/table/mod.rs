//! The item table: keys, item vectors, bias, popularity and attributes, all read in place.

mod column;
mod overlay;
mod scorer;

use std::path::Path;
use std::sync::Arc;

use crate::bundle::tensors::{Half, PAD_PREFIX, Slice, Strings, TensorFile};
use crate::bundle::{Content, MAX_DIM, Manifest};
use crate::engine::ItemVector;
use crate::error::{Error, Result, check_len};
use crate::filter::Selection;
use crate::id::{MAX_NAME_BYTES, Row, is_name};
use crate::kernel;
use crate::partition::Partitions;
use crate::quant::{self, Scheme};
use crate::search::{Search, find, find_in_parallel};
use crate::topk::Scored;

pub(crate) use column::{Attribute, NO_VALUE};
use overlay::Overlay;
pub(crate) use overlay::OverlayItem;
pub(crate) use scorer::{Scorer, dot};

/// What a scan ranks by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Metric {
    /// query · vector + bias: the score of an item for a user.
    #[default]
    Score,
    /// Cosine of query and vector, without bias: likeness of two items, whatever their norms.
    Cosine,
}

#[derive(Clone)]
enum Codes {
    F32(Slice<f32>),
    F16(Slice<Half>),
    Int8 {
        codes: Slice<i8>,
        scales: Slice<f32>,
    },
    Int4 {
        codes: Slice<u8>,
        scales: Slice<f32>,
        factors: Slice<u8>,
    },
    TwoStage {
        high: Slice<u8>,
        low: Slice<u8>,
        scales: Slice<f32>,
    },
}

/// A read-only table of N items. Cheap to clone.
///
/// Shapes and types were checked when the bundle was opened. Offsets, keys and codes are
/// checked where they are used, so a damaged file gives errors or wrong scores, never a panic;
/// [`Bundle::verify`](crate::Bundle::verify) checks all of them.
#[derive(Clone)]
pub struct ItemTable {
    items: usize,
    dim: usize,
    codes: Codes,
    /// Further bits of int8 and two-stage codes, for finalists.
    tail: Option<Slice<u8>>,
    partitions: Option<Partitions>,
    bias: Option<Slice<f32>>,
    /// Bias of the items of `overlay`.
    cold_bias: f32,
    popularity: Option<Slice<f32>>,
    /// `[N, M]`, 255ths.
    modalities: Option<Slice<u8>>,
    keys: Strings,
    order: Slice<u32>,
    attributes: Arc<[Attribute]>,
    /// Items added on the device, behind the rows of the bundle.
    overlay: Option<Arc<Overlay>>,
}

impl std::fmt::Debug for ItemTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ItemTable")
            .field("items", &self.items)
            .field("dim", &self.dim)
            .field("scheme", &self.scheme())
            .finish()
    }
}

impl ItemTable {
    pub(crate) fn open(path: &Path, content: Arc<Content>, manifest: &Manifest) -> Result<Self> {
        let (n, d) = (manifest.items, manifest.dim);
        let mut file = TensorFile::parse(path, content)?;
        let shape = [Some(n), Some(d)];
        // D is even for the schemes that pack two values into a byte: the manifest was checked.
        let halves = [Some(n), Some(d / 2)];
        let codes = match manifest.table.scheme {
            Scheme::F32 => Codes::F32(file.take("codes", &shape)?),
            Scheme::F16 => Codes::F16(file.take("codes", &shape)?),
            Scheme::Int8 => Codes::Int8 {
                codes: file.take("codes", &shape)?,
                scales: file.take("scales", &[Some(n)])?,
            },
            Scheme::Int4 => Codes::Int4 {
                codes: file.take("codes", &halves)?,
                scales: file.take("scales", &[Some(n)])?,
                factors: file.take("factors", &[Some(n), Some(kernel::groups(d))])?,
            },
            Scheme::TwoStage => Codes::TwoStage {
                high: file.take("codes", &halves)?,
                low: file.take("codes.low", &halves)?,
                scales: file.take("scales", &[Some(n)])?,
            },
        };
        let tail = if manifest.table.scheme.takes_tail() && file.contains("tail") {
            Some(file.take("tail", &halves)?)
        } else {
            None
        };
        let mut optional = |name: &str| -> Result<Option<Slice<f32>>> {
            if file.contains(name) {
                file.take(name, &[Some(n)]).map(Some)
            } else {
                Ok(None)
            }
        };
        let bias = optional("bias")?;
        let popularity = optional("popularity")?;
        let modalities = if file.contains("modalities") {
            Some(file.take("modalities", &[Some(n), Some(manifest.modalities.len())])?)
        } else {
            None
        };
        let partitions = match manifest.table.partitions {
            Some(count) => {
                let biased = bias.is_some();
                let mut p = Partitions::take(&mut file, path, n, d, count, biased)?;
                p.probes = manifest.table.probes;
                Some(p)
            }
            None => None,
        };
        let keys = Strings::take(&mut file, "ids", Some(n))?;
        let order = file.take("ids.order", &[Some(n)])?;
        let mut attributes = Vec::new();
        for tensor in file.names() {
            debug_assert!(!tensor.starts_with(PAD_PREFIX));
            let Some(name) = tensor.strip_prefix("attr.").filter(|n| is_name(n)) else {
                continue;
            };
            attributes.push(Attribute::take(&mut file, name, n)?);
        }
        file.finish()?;
        Ok(ItemTable {
            items: n,
            dim: d,
            codes,
            tail,
            partitions,
            bias,
            cold_bias: manifest.table.cold_bias.unwrap_or(0.0),
            popularity,
            modalities,
            keys,
            order,
            attributes: attributes.into(),
            overlay: None,
        })
    }

    /// The same table with items behind its last row.
    ///
    /// # Errors
    /// [`Error::UnknownAttribute`], [`Error::CorruptTensor`].
    pub(crate) fn with_overlay(&self, items: Vec<OverlayItem<'_>>) -> Result<Self> {
        let mut table = self.clone();
        let attributes: Result<Vec<Attribute>> = self
            .attributes
            .iter()
            .map(|column| column.extended(self.items, &items))
            .collect();
        table.attributes = attributes?.into();
        table.overlay = Some(Arc::new(Overlay::new(items)));
        Ok(table)
    }

    /// N: number of items of the bundle.
    #[allow(clippy::len_without_is_empty)] // a table without items cannot be opened
    pub fn len(&self) -> usize {
        self.items
    }

    /// Rows of the bundle and those added on the device.
    pub(crate) fn rows(&self) -> usize {
        self.items + self.overlay.as_ref().map_or(0, |o| o.len())
    }

    /// D: values per item vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Number format of the vectors.
    pub fn scheme(&self) -> Scheme {
        match self.codes {
            Codes::F32(_) => Scheme::F32,
            Codes::F16(_) => Scheme::F16,
            Codes::Int8 { .. } => Scheme::Int8,
            Codes::Int4 { .. } => Scheme::Int4,
            Codes::TwoStage { .. } => Scheme::TwoStage,
        }
    }

    /// Whether finalists are scored with a tail of further bits: see
    /// [`quant::tail`].
    pub fn has_tail(&self) -> bool {
        self.tail.is_some()
    }

    /// Number of partitions that rows are stored by, if they are.
    pub fn partitions(&self) -> Option<usize> {
        self.partitions.as_ref().map(Partitions::len)
    }

    /// Codes `[N, D]` and scales `[N]` of an int8 table.
    pub(crate) fn int8_codes(&self) -> Option<(&[i8], &[f32])> {
        match &self.codes {
            Codes::Int8 { codes, scales } => Some((codes.get(), scales.get())),
            _ => None,
        }
    }

    /// Bias `[N]`, if the table has one.
    pub(crate) fn biases(&self) -> Option<&[f32]> {
        self.bias.as_ref().map(Slice::get)
    }

    pub(crate) fn parts(&self) -> Option<&Partitions> {
        self.partitions.as_ref()
    }

    /// Key of the item at `row`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such row, [`Error::CorruptTensor`].
    pub fn key(&self, row: Row) -> Result<&str> {
        self.check_row(row)?;
        match self.added(row) {
            Some((overlay, at)) => Ok(overlay.key(at)),
            None => self.keys.get(row as usize),
        }
    }

    /// The overlay and a row's place in it, if it was added on the device.
    fn added(&self, row: Row) -> Option<(&Overlay, usize)> {
        let overlay = self.overlay.as_deref()?;
        Some((overlay, (row as usize).checked_sub(self.items)?))
    }

    /// Row of the item with `key`, by binary search.
    ///
    /// # Errors
    /// [`Error::CorruptTensor`].
    pub fn find(&self, key: &str) -> Result<Option<Row>> {
        let order = self.order.get();
        let (mut low, mut high) = (0, order.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let row = self.ordered(order, middle)?;
            match self.keys.raw(row as usize)?.cmp(key.as_bytes()) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(Some(row)),
            }
        }
        let added = self.overlay.as_ref().and_then(|o| o.find(key));
        Ok(added.map(|at| (self.items + at) as Row))
    }

    fn ordered(&self, order: &[u32], index: usize) -> Result<Row> {
        match order.get(index) {
            Some(&row) if (row as usize) < self.items => Ok(row),
            _ => Err(Error::corrupt("ids.order", index, "a row is out of range")),
        }
    }

    /// Decoded item vector.
    ///
    /// # Shapes
    /// The result is `[D]`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such row.
    pub fn vector(&self, row: Row) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.dim];
        self.decode(row, &mut out)?;
        Ok(out)
    }

    /// Decodes an item vector into `out` `[D]`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such row, [`Error::Length`].
    pub fn decode(&self, row: Row, out: &mut [f32]) -> Result<()> {
        let mut scratch = [0i8; MAX_DIM];
        self.decode_with(row, out, &mut scratch)
    }

    /// An item vector as it is stored, where that is int8 codes; else decoded into `room` `[D]`.
    ///
    /// # Errors
    /// As [`ItemTable::decode`].
    pub(crate) fn item<'a>(&'a self, row: Row, room: &'a mut [f32]) -> Result<ItemVector<'a>> {
        if let (Codes::Int8 { codes, scales }, None, None) =
            (&self.codes, &self.tail, self.added(row))
        {
            self.check_row(row)?;
            let (row, d) = (row as usize, self.dim);
            let (codes, scale) = (&codes.get()[row * d..(row + 1) * d], scales.get()[row]);
            return Ok(ItemVector::Int8 { codes, scale });
        }
        self.decode(row, room)?;
        Ok(ItemVector::F32(room))
    }

    /// As [`ItemTable::decode`], with room for the D codes of a row.
    fn decode_with(&self, row: Row, out: &mut [f32], scratch: &mut [i8]) -> Result<()> {
        self.check_row(row)?;
        check_len("out", self.dim, out.len())?;
        if let Some((overlay, at)) = self.added(row) {
            out.copy_from_slice(overlay.vector(at));
            return Ok(());
        }
        let (row, d) = (row as usize, self.dim);
        let range = row * d..(row + 1) * d;
        let halves = row * (d / 2)..(row + 1) * (d / 2);
        let (codes, scale) = match &self.codes {
            Codes::F32(codes) => {
                out.copy_from_slice(&codes.get()[range]);
                return Ok(());
            }
            Codes::F16(codes) => {
                quant::f16::decode(bytemuck::cast_slice(&codes.get()[range]), out);
                return Ok(());
            }
            Codes::Int4 {
                codes,
                scales,
                factors,
            } => {
                let g = kernel::groups(d);
                let factors = &factors.get()[row * g..(row + 1) * g];
                quant::int4::decode(&codes.get()[halves], factors, scales.get()[row], out);
                return Ok(());
            }
            Codes::Int8 { codes, scales } => (&codes.get()[range], scales.get()[row]),
            Codes::TwoStage { high, low, scales } => {
                let codes = &mut scratch[..d];
                quant::two_stage::join(
                    &high.get()[halves.clone()],
                    &low.get()[halves.clone()],
                    codes,
                );
                (&*codes, scales.get()[row])
            }
        };
        match &self.tail {
            Some(tail) => quant::tail::decode(codes, scale, &tail.get()[halves], out),
            None => quant::int8::decode(codes, scale, out),
        }
        Ok(())
    }

    /// Bias of an item, 0 if the table has none or `row` is out of range.
    pub fn bias(&self, row: Row) -> f32 {
        if self.added(row).is_some() {
            return self.cold_bias;
        }
        let bias = self.bias.as_ref();
        let bias = bias.and_then(|b| b.get().get(row as usize));
        bias.copied().unwrap_or(0.0)
    }

    /// Share of the training interactions per item `[N]`, if the table has it.
    pub fn popularity(&self) -> Option<&[f32]> {
        self.popularity.as_ref().map(Slice::get)
    }

    /// How much the vector of an item rests on each modality of the manifest, in 255ths; see
    /// [`ModalityShare`](crate::ModalityShare). Nothing if the table does not tell.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such row.
    pub fn modality_shares(&self, row: Row) -> Result<Option<&[u8]>> {
        self.check_row(row)?;
        let Some(shares) = &self.modalities else {
            return Ok(None);
        };
        let m = shares.len() / self.items;
        Ok(shares.get().get(row as usize * m..(row as usize + 1) * m))
    }

    /// Names of the attribute columns, sorted.
    pub fn attributes(&self) -> impl Iterator<Item = &str> {
        self.attributes.iter().map(Attribute::name)
    }

    pub(crate) fn column(&self, name: &str) -> Result<&Attribute> {
        let column = self.attributes.iter().find(|a| a.name() == name);
        column.ok_or_else(|| Error::UnknownAttribute {
            got: name.chars().take(MAX_NAME_BYTES).collect(),
            known: self.attributes().map(str::to_string).collect(),
        })
    }

    /// Values of attribute `name` of the item at `row`; empty if it has none.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such row, [`Error::UnknownAttribute`],
    /// [`Error::CorruptTensor`].
    pub fn attribute(&self, name: &str, row: Row) -> Result<Vec<&str>> {
        self.check_row(row)?;
        let column = self.column(name)?;
        let codes = column.codes(row as usize)?;
        codes
            .iter()
            .filter(|&&code| code != NO_VALUE)
            .map(|&code| column.value(code, row as usize))
            .collect()
    }

    /// Score of one item: query · x̂ + bias, in f32.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], [`Error::Length`].
    pub fn score(&self, query: &[f32], row: Row) -> Result<f32> {
        self.check_query(query)?;
        let mut x = vec![0.0; self.dim];
        self.decode(row, &mut x)?;
        Ok(dot(query, &x) + self.bias(row))
    }

    /// The best `k` items by [`Metric::Score`], best first, ties to the lower row. Rows in
    /// `exclude` are skipped during the scan, so `k` items are returned whenever so many
    /// remain; with `k` > N all of them are.
    ///
    /// Tables of integers are scanned with an int8 query for max(1.5k, k + 32) finalists, a
    /// two-stage one for max(3k, k + 128), which are then scored again with the f32 query and
    /// every bit that the table has. A table with partitions is searched as its bundle proposes:
    /// see [`Effort::Default`](crate::Effort).
    ///
    /// # Shapes
    /// `query` `[D]`; `exclude` in any order, repeats and rows beyond N are harmless.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::NonFinite`] for the query, [`Error::InvalidArgument`] if
    /// `k` is 0.
    pub fn top_k(&self, query: &[f32], k: usize, exclude: &[Row]) -> Result<Vec<Scored>> {
        self.top_k_by(Metric::Score, query, k, exclude)
    }

    /// As [`ItemTable::top_k`], by any metric.
    ///
    /// # Errors
    /// As [`ItemTable::top_k`].
    pub fn top_k_by(
        &self,
        metric: Metric,
        query: &[f32],
        k: usize,
        exclude: &[Row],
    ) -> Result<Vec<Scored>> {
        self.search(query, &Search::top(k).metric(metric).exclude(exclude))
    }

    /// As [`ItemTable::top_k_by`], of the rows in `within` only: `k` items are returned
    /// whenever so many qualify. If few rows do (fewer than N / 64), only those are scored.
    ///
    /// # Errors
    /// As [`ItemTable::top_k`]; [`Error::Length`] if `within` was made by a table of another
    /// size.
    pub fn top_k_within(
        &self,
        metric: Metric,
        query: &[f32],
        k: usize,
        exclude: &[Row],
        within: &Selection,
    ) -> Result<Vec<Scored>> {
        let search = Search::top(k).metric(metric).exclude(exclude);
        self.search(query, &search.within(within))
    }

    /// The best rows for `query`, best first, ties to the lower row; everything else that the
    /// methods above do is a `search`.
    ///
    /// # Shapes
    /// `query` `[D]`.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::NonFinite`] for the query; [`Error::InvalidArgument`] for
    /// numbers out of range; [`Error::Length`] if the selection was made by a table of another
    /// size.
    pub fn search(&self, query: &[f32], search: &Search<'_>) -> Result<Vec<Scored>> {
        let mut scorer = Scorer::new(self, search.metric, query)?;
        if search.threads == 1 {
            return find(self, &mut scorer, None, search);
        }
        find_in_parallel(self, query, &mut scorer, search)
    }

    pub(crate) fn check_query(&self, query: &[f32]) -> Result<()> {
        check_len("query vector", self.dim, query.len())?;
        if query.iter().any(|x| !x.is_finite()) {
            return Err(Error::NonFinite {
                what: "query vector".into(),
                row: 0,
            });
        }
        Ok(())
    }

    fn check_row(&self, row: Row) -> Result<()> {
        if (row as usize) < self.rows() {
            return Ok(());
        }
        Err(Error::argument(format!(
            "row {row} is beyond the table's {} items",
            self.rows()
        )))
    }

    /// Checks every row of every tensor.
    pub(crate) fn verify(&self) -> Result<()> {
        match &self.codes {
            Codes::F32(codes) => check_finite("codes", codes.get(), self.dim)?,
            Codes::F16(codes) => {
                let bad = |h: &Half| h.0 & 0x7c00 == 0x7c00;
                if let Some(i) = codes.get().iter().position(bad) {
                    return Err(Error::NonFinite {
                        what: "codes".into(),
                        row: i / self.dim,
                    });
                }
            }
            Codes::Int8 { codes, scales } => {
                for (row, codes) in codes.get().chunks_exact(self.dim).enumerate() {
                    // Without a branch for every code.
                    if codes.iter().fold(false, |found, &c| found | (c == i8::MIN)) {
                        return Err(Error::corrupt("codes", row, "a code is -128"));
                    }
                }
                check_scales(scales.get())?;
            }
            Codes::Int4 {
                scales, factors, ..
            } => {
                if let Some(i) = factors.get().iter().position(|&f| f == 0) {
                    let row = i / kernel::groups(self.dim);
                    return Err(Error::corrupt("factors", row, "a factor is 0"));
                }
                check_scales(scales.get())?;
            }
            Codes::TwoStage { high, low, scales } => {
                let mut codes = vec![0i8; self.dim];
                let bytes = self.dim / 2;
                let rows = high
                    .get()
                    .chunks_exact(bytes)
                    .zip(low.get().chunks_exact(bytes));
                for (row, (high, low)) in rows.enumerate() {
                    quant::two_stage::join(high, low, &mut codes);
                    if codes.contains(&i8::MIN) {
                        return Err(Error::corrupt("codes", row, "a code is -128"));
                    }
                }
                check_scales(scales.get())?;
            }
        }
        self.verify_partitions()?;
        for (name, column) in [("bias", &self.bias), ("popularity", &self.popularity)] {
            if let Some(column) = column {
                check_finite(name, column.get(), 1)?;
            }
        }
        self.keys.check()?;
        let order = self.order.get();
        let mut before: &[u8] = &[];
        for index in 0..order.len() {
            let row = self.ordered(order, index)?;
            let key = self.keys.raw(row as usize)?;
            if key.is_empty() {
                return Err(Error::corrupt(
                    "ids.bytes",
                    row as usize,
                    "an item key is empty",
                ));
            }
            // Strictly ascending keys also make `order` a permutation: N rows, none twice.
            if before >= key {
                let reason = "keys are not in strictly ascending order";
                return Err(Error::corrupt("ids.order", index, reason));
            }
            before = key;
        }
        for column in self.attributes.iter() {
            column.verify()?;
        }
        Ok(())
    }
}

impl ItemTable {
    /// The vector of a row as the scan sees it.
    fn decode_scanned(&self, row: usize, out: &mut [f32]) -> Result<()> {
        let d = self.dim;
        match &self.codes {
            Codes::Int8 { codes, scales } => {
                let codes = &codes.get()[row * d..(row + 1) * d];
                quant::int8::decode(codes, scales.get()[row], out);
            }
            Codes::TwoStage { high, scales, .. } => {
                let high = &high.get()[row * (d / 2)..(row + 1) * (d / 2)];
                quant::two_stage::decode_coarse(high, scales.get()[row], out);
            }
            _ => self.decode(row as Row, out)?,
        }
        Ok(())
    }

    /// Checks that every row lies in its partition's ball.
    fn verify_partitions(&self) -> Result<()> {
        let Some(partitions) = &self.partitions else {
            return Ok(());
        };
        let (mut c, mut x) = (vec![0.0; self.dim], vec![0.0; self.dim]);
        for p in 0..partitions.len() {
            partitions.centroid(p, &mut c);
            let radius = partitions.radius(p);
            if !c.iter().all(|v| v.is_finite()) || !radius.is_finite() {
                let reason = "a centroid or radius is not finite";
                return Err(Error::corrupt("partition.radii", p, reason));
            }
            for row in partitions.rows(p) {
                self.decode_scanned(row, &mut x)?;
                if distance(&x, &c) > f64::from(radius) {
                    let reason = "a row lies beyond the radius";
                    return Err(Error::corrupt("partition.radii", p, reason));
                }
                let bias = self.bias(row as Row);
                if partitions.largest_bias(p).is_some_and(|most| bias > most) {
                    let reason = "a row has a larger bias";
                    return Err(Error::corrupt("partition.bias", p, reason));
                }
            }
        }
        Ok(())
    }
}

/// Euclidean distance.
pub(crate) fn distance(x: &[f32], y: &[f32]) -> f64 {
    let square = x
        .iter()
        .zip(y)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    square.sum::<f64>().sqrt()
}

fn check_scales(scales: &[f32]) -> Result<()> {
    match scales.iter().position(|s| !s.is_finite() || *s <= 0.0) {
        Some(row) => {
            let reason = "a scale is not finite and positive";
            Err(Error::corrupt("scales", row, reason))
        }
        None => Ok(()),
    }
}

fn check_finite(name: &str, values: &[f32], per_row: usize) -> Result<()> {
    match values.iter().position(|x| !x.is_finite()) {
        Some(i) => Err(Error::NonFinite {
            what: name.to_string(),
            row: i / per_row,
        }),
        None => Ok(()),
    }
}
