//! What goes into an item table, and how it is laid out and written.

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;

use super::cluster::cluster;
use super::manifest::{FileInfo, MAX_DIM, MAX_PARTITIONS};
use super::tensor_writer::{TensorSpec, TensorWriter};
use crate::error::{Error, Result, check_len};
use crate::id::{check_key, is_name};
use crate::kernel;
use crate::partition::rounded_up;
use crate::quant::{self, Scheme};
use crate::table::{NO_VALUE, distance};

enum Column {
    /// One code per item.
    Single(Vec<u32>),
    /// Codes of item `i` are at `offsets[i]..offsets[i + 1]`.
    List { offsets: Vec<u64>, codes: Vec<u32> },
}

struct Attribute {
    name: String,
    values: Vec<String>,
    column: Column,
}

/// Everything that goes into `items.safetensors`. Borrows the vectors; they are encoded while
/// they are written.
pub struct ItemTableBuilder<'a> {
    pub(super) dim: usize,
    pub(super) scheme: Scheme,
    keys: Vec<&'a str>,
    vectors: &'a [f32],
    bias: Option<&'a [f32]>,
    popularity: Option<&'a [f32]>,
    /// `[N, M]`.
    modalities: Option<&'a [u8]>,
    attributes: Vec<Attribute>,
    tail: bool,
    pub(super) partitions: Option<usize>,
}

impl<'a> ItemTableBuilder<'a> {
    /// A table of `keys.len()` items.
    ///
    /// # Shapes
    /// `vectors` is row-major `[N, dim]`; `dim` is a multiple of 16 up to 1024.
    ///
    /// # Errors
    /// [`Error::EmptyTable`], [`Error::InvalidArgument`], [`Error::Length`],
    /// [`Error::NonFinite`].
    pub fn new<S: AsRef<str>>(
        dim: usize,
        scheme: Scheme,
        keys: &'a [S],
        vectors: &'a [f32],
    ) -> Result<Self> {
        if dim == 0 || dim > MAX_DIM || !dim.is_multiple_of(16) {
            return Err(Error::argument(format!(
                "dim is {dim}, expected a multiple of 16 up to {MAX_DIM}"
            )));
        }
        if keys.is_empty() {
            return Err(Error::EmptyTable);
        }
        if u32::try_from(keys.len()).is_err() {
            return Err(Error::argument(
                "an item table holds at most 2^32 - 1 items",
            ));
        }
        check_len("vectors", keys.len().saturating_mul(dim), vectors.len())?;
        if let Some(i) = vectors.iter().position(|x| !x.is_finite()) {
            return Err(Error::NonFinite {
                what: "vectors".into(),
                row: i / dim,
            });
        }
        Ok(ItemTableBuilder {
            dim,
            scheme,
            keys: keys.iter().map(AsRef::as_ref).collect(),
            vectors,
            bias: None,
            popularity: None,
            modalities: None,
            attributes: Vec::new(),
            tail: false,
            partitions: None,
        })
    }

    /// Adds `bias` `[N]`, a number added to each item's score.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::NonFinite`].
    pub fn bias(mut self, bias: &'a [f32]) -> Result<Self> {
        self.check_column("bias", bias)?;
        self.bias = Some(bias);
        Ok(self)
    }

    /// Adds `popularity` `[N]`, each item's share of the training interactions.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::NonFinite`].
    pub fn popularity(mut self, popularity: &'a [f32]) -> Result<Self> {
        self.check_column("popularity", popularity)?;
        self.popularity = Some(popularity);
        Ok(self)
    }

    /// Adds `shares` `[N, M]`, how much each item's vector rests on each of the manifest's M
    /// modalities, in 255ths; see [`ModalityShare`](crate::ModalityShare).
    ///
    /// # Errors
    /// [`Error::Length`] unless there is the same number, at least one, for every item.
    pub fn modalities(mut self, shares: &'a [u8]) -> Result<Self> {
        let n = self.keys.len();
        let m = shares.len().div_ceil(n).max(1);
        check_len("modality shares", n.saturating_mul(m), shares.len())?;
        self.modalities = Some(shares);
        Ok(self)
    }

    /// Adds an attribute with at most one value per item.
    ///
    /// # Errors
    /// [`Error::Length`]; [`Error::InvalidArgument`] for a bad name or one given twice.
    pub fn attribute<S: AsRef<str>>(mut self, name: &str, values: &[Option<S>]) -> Result<Self> {
        check_len(name, self.keys.len(), values.len())?;
        let mut dictionary = Dictionary::default();
        let mut codes = Vec::with_capacity(values.len());
        for value in values {
            codes.push(match value {
                Some(value) => dictionary.code(value.as_ref())?,
                None => NO_VALUE,
            });
        }
        self.push_attribute(name, dictionary, Column::Single(codes))?;
        Ok(self)
    }

    /// Adds an attribute with any number of values per item.
    ///
    /// # Errors
    /// As [`ItemTableBuilder::attribute`].
    pub fn list_attribute<S: AsRef<str>>(mut self, name: &str, values: &[Vec<S>]) -> Result<Self> {
        check_len(name, self.keys.len(), values.len())?;
        let mut dictionary = Dictionary::default();
        let mut codes = Vec::new();
        let mut offsets = vec![0u64];
        for list in values {
            for value in list {
                codes.push(dictionary.code(value.as_ref())?);
            }
            offsets.push(codes.len() as u64);
        }
        self.push_attribute(name, dictionary, Column::List { offsets, codes })?;
        Ok(self)
    }

    /// Adds 4 more bits a value, which only finalists are scored with: see
    /// [`quant::tail`](crate::quant::tail).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless the scheme is int8 or two-stage.
    pub fn tail(mut self) -> Result<Self> {
        if !self.scheme.takes_tail() {
            return Err(Error::argument(format!(
                "a tail follows int8 and two-stage codes, not {}",
                self.scheme
            )));
        }
        self.tail = true;
        Ok(self)
    }

    /// Stores the rows in `count` partitions of items that are close to each other, so that a
    /// search can pass over most of them. Rows then have another order than the items given.
    /// Costs about N · `count` · D products when the table is written.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless `count` is 1 to 65536 and at most N.
    pub fn partitions(mut self, count: usize) -> Result<Self> {
        if count == 0 || count > MAX_PARTITIONS || count > self.keys.len() {
            return Err(Error::argument(format!(
                "{count} partitions for {} items, accepted are 1 to {MAX_PARTITIONS} and at most \
                 as many as items",
                self.keys.len()
            )));
        }
        self.partitions = Some(count);
        Ok(self)
    }

    /// Number of items.
    pub fn items(&self) -> usize {
        self.keys.len()
    }

    /// Encodes and writes the table to `path`, which must not exist.
    ///
    /// # Errors
    /// [`Error::DuplicateKey`]; [`Error::InvalidArgument`] for an empty or overlong key;
    /// [`Error::NonFinite`] for a value that the scheme cannot hold; [`Error::Io`].
    pub fn write(&self, path: impl AsRef<Path>) -> Result<FileInfo> {
        let n = self.keys.len();
        let layout = Layout::new(self)?;
        let rows = &layout.rows;
        let order = self.sorted_rows(rows)?;
        let key_bytes: usize = self.keys.iter().map(|k| k.len()).sum();

        let halves = [n, self.dim / 2];
        let width = if self.scheme.is_packed() {
            self.dim / 2
        } else {
            self.dim
        };
        let mut specs = vec![TensorSpec::new("codes", self.scheme.dtype(), [n, width])];
        let mut declare =
            |name: &str, dtype, shape: &[usize]| specs.push(TensorSpec::new(name, dtype, shape));
        if !matches!(self.scheme, Scheme::F32 | Scheme::F16) {
            declare("scales", Dtype::F32, &[n]);
        }
        match self.scheme {
            Scheme::Int4 => declare("factors", Dtype::U8, &[n, kernel::groups(self.dim)]),
            Scheme::TwoStage => declare("codes.low", Dtype::U8, &halves),
            _ => {}
        }
        if self.tail {
            declare("tail", Dtype::U8, &halves);
        }
        if let Some(count) = self.partitions {
            declare("partition.centroids", Dtype::F16, &[count, self.dim]);
            declare("partition.radii", Dtype::F32, &[count]);
            if self.bias.is_some() {
                declare("partition.bias", Dtype::F32, &[count]);
            }
            declare("partition.offsets", Dtype::U32, &[count + 1]);
        }
        if self.bias.is_some() {
            declare("bias", Dtype::F32, &[n]);
        }
        if self.popularity.is_some() {
            declare("popularity", Dtype::F32, &[n]);
        }
        if let Some(shares) = self.modalities {
            declare("modalities", Dtype::U8, &[n, shares.len() / n]);
        }
        declare("ids.offsets", Dtype::U64, &[n + 1]);
        declare("ids.order", Dtype::U32, &[n]);
        declare("ids.bytes", Dtype::U8, &[key_bytes]);
        for a in &self.attributes {
            let name = format!("attr.{}", a.name);
            match &a.column {
                Column::Single(codes) => declare(&name, Dtype::U32, &[codes.len()]),
                Column::List { offsets, codes } => {
                    declare(&format!("{name}.offsets"), Dtype::U64, &[offsets.len()]);
                    declare(&name, Dtype::U32, &[codes.len()]);
                }
            }
            let values = [a.values.len() + 1];
            declare(&format!("{name}.values.offsets"), Dtype::U64, &values);
            let bytes = a.values.iter().map(String::len).sum();
            declare(&format!("{name}.values.bytes"), Dtype::U8, &[bytes]);
        }

        let mut out = TensorWriter::create(path, &specs)?;
        self.write_codes(&mut out, &layout)?;
        if self.partitions.is_some() {
            layout.write(&mut out)?;
        }
        let column =
            |values: &[f32]| -> Vec<f32> { rows.iter().map(|&row| values[row as usize]).collect() };
        if let Some(bias) = self.bias {
            out.write("bias", bytemuck::cast_slice(&column(bias)))?;
        }
        if let Some(popularity) = self.popularity {
            out.write("popularity", bytemuck::cast_slice(&column(popularity)))?;
        }
        if let Some(shares) = self.modalities {
            let m = shares.len() / n;
            for &row in rows {
                out.write(
                    "modalities",
                    &shares[row as usize * m..(row as usize + 1) * m],
                )?;
            }
        }
        let key = |row: u32| self.keys[row as usize];
        write_offsets(
            &mut out,
            "ids.offsets",
            rows.iter().map(|&row| key(row).len()),
        )?;
        out.write("ids.order", bytemuck::cast_slice(&order))?;
        for &row in rows {
            out.write("ids.bytes", key(row).as_bytes())?;
        }
        for a in &self.attributes {
            let name = format!("attr.{}", a.name);
            match &a.column {
                Column::Single(codes) => {
                    for &row in rows {
                        out.write(&name, &codes[row as usize].to_le_bytes())?;
                    }
                }
                Column::List { offsets, codes } => {
                    let range = |row: u32| {
                        let row = row as usize;
                        offsets[row] as usize..offsets[row + 1] as usize
                    };
                    let lengths = rows.iter().map(|&row| range(row).len());
                    write_offsets(&mut out, &format!("{name}.offsets"), lengths)?;
                    for &row in rows {
                        out.write(&name, bytemuck::cast_slice(&codes[range(row)]))?;
                    }
                }
            }
            let lengths = a.values.iter().map(String::len);
            write_offsets(&mut out, &format!("{name}.values.offsets"), lengths)?;
            for value in &a.values {
                out.write(&format!("{name}.values.bytes"), value.as_bytes())?;
            }
        }
        out.finish()
    }

    fn vector(&self, row: u32) -> &[f32] {
        &self.vectors[row as usize * self.dim..(row as usize + 1) * self.dim]
    }

    /// Encodes row by row, once for every plane of the scheme.
    fn write_codes(&self, out: &mut TensorWriter, layout: &Layout) -> Result<()> {
        let d = self.dim;
        let refuse = |what: &str, row: u32| Error::NonFinite {
            what: format!("vectors (as {what})"),
            row: row as usize,
        };
        let mut scales = Vec::new();
        let mut codes = vec![0i8; d];
        let (mut high, mut low) = (vec![0u8; d / 2], vec![0u8; d / 2]);
        let mut factors = vec![0u8; kernel::groups(d)];
        let mut all_factors = Vec::new();
        let mut halves = vec![half::f16::ZERO; d];
        for &row in &layout.rows {
            let x = self.vector(row);
            match self.scheme {
                Scheme::F32 => out.write("codes", bytemuck::cast_slice(x))?,
                Scheme::F16 => {
                    quant::f16::encode(x, &mut halves).map_err(|_| refuse("f16", row))?;
                    for h in &halves {
                        out.write("codes", &h.to_bits().to_le_bytes())?;
                    }
                }
                Scheme::Int8 => {
                    scales.push(self.int8(x, &mut codes));
                    out.write("codes", bytemuck::cast_slice(&codes))?;
                }
                Scheme::Int4 => {
                    if x.iter().any(|v| v.abs() > f32::MAX / 2.0) {
                        return Err(refuse("int4", row));
                    }
                    scales.push(quant::int4::encode(x, &mut high, &mut factors));
                    all_factors.extend_from_slice(&factors);
                    out.write("codes", &high)?;
                }
                Scheme::TwoStage => {
                    scales.push(self.int8(x, &mut codes));
                    quant::two_stage::split(&codes, &mut high, &mut low);
                    out.write("codes", &high)?;
                }
            }
        }
        out.write("scales", bytemuck::cast_slice(&scales))?;
        out.write("factors", &all_factors)?;
        if self.scheme == Scheme::TwoStage {
            for &row in &layout.rows {
                quant::int8::encode(self.vector(row), &mut codes);
                quant::two_stage::split(&codes, &mut high, &mut low);
                out.write("codes.low", &low)?;
            }
        }
        if self.tail {
            for &row in &layout.rows {
                let x = self.vector(row);
                let scale = quant::int8::encode(x, &mut codes);
                quant::tail::encode(x, &codes, scale, &mut low);
                out.write("tail", &low)?;
            }
        }
        Ok(())
    }

    /// Rows of the table, which holds the items `rows`, in the byte order of their keys.
    fn sorted_rows(&self, rows: &[u32]) -> Result<Vec<u32>> {
        for key in &self.keys {
            check_key(key)?;
        }
        let mut order: Vec<u32> = (0..self.keys.len() as u32).collect();
        let key = |row: u32| self.keys[rows[row as usize] as usize];
        order.sort_unstable_by(|&a, &b| key(a).as_bytes().cmp(key(b).as_bytes()).then(a.cmp(&b)));
        if let Some(pair) = order.windows(2).find(|w| key(w[0]) == key(w[1])) {
            return Err(Error::DuplicateKey {
                key: key(pair[0]).to_string(),
                first: rows[pair[0] as usize].min(rows[pair[1] as usize]) as usize,
                second: rows[pair[0] as usize].max(rows[pair[1] as usize]) as usize,
            });
        }
        Ok(order)
    }

    fn check_column(&self, what: &str, values: &[f32]) -> Result<()> {
        check_len(what, self.keys.len(), values.len())?;
        match values.iter().position(|x| !x.is_finite()) {
            Some(row) => Err(Error::NonFinite {
                what: what.into(),
                row,
            }),
            None => Ok(()),
        }
    }

    fn push_attribute(&mut self, name: &str, dictionary: Dictionary, column: Column) -> Result<()> {
        if !is_name(name) {
            return Err(Error::argument(format!(
                "attribute name {name:?} is empty, too long or holds a dot or control character"
            )));
        }
        if self.attributes.iter().any(|a| a.name == name) {
            return Err(Error::argument(format!(
                "attribute {name:?} is given twice"
            )));
        }
        self.attributes.push(Attribute {
            name: name.to_string(),
            values: dictionary.values,
            column,
        });
        Ok(())
    }
}

/// In which order items are stored, and the partitions that come of it.
struct Layout {
    /// Item at each row.
    rows: Vec<u32>,
    centroids: Vec<half::f16>,
    radii: Vec<f32>,
    bias: Vec<f32>,
    offsets: Vec<u32>,
}

impl Layout {
    fn new(table: &ItemTableBuilder<'_>) -> Result<Self> {
        let n = table.keys.len();
        let mut layout = Layout {
            rows: (0..n as u32).collect(),
            centroids: Vec::new(),
            radii: Vec::new(),
            bias: Vec::new(),
            offsets: Vec::new(),
        };
        let Some(count) = table.partitions else {
            return Ok(layout);
        };
        let d = table.dim;
        let (centroids, of) = cluster(table.vectors, d, count);
        // Items of a partition stay in the order given.
        layout.rows.sort_by_key(|&row| of[row as usize]);
        layout.offsets = vec![0; count + 1];
        for &p in &of {
            layout.offsets[p as usize + 1] += 1;
        }
        for p in 0..count {
            layout.offsets[p + 1] += layout.offsets[p];
        }
        let (mut stored, mut decoded) = (vec![half::f16::ZERO; d], vec![0.0; d]);
        for p in 0..count {
            let centroid = &centroids[p * d..(p + 1) * d];
            quant::f16::encode(centroid, &mut stored).map_err(|_| Error::NonFinite {
                what: "centroids of partitions (as f16)".into(),
                row: p,
            })?;
            let centroid: Vec<f32> = stored.iter().map(|h| h.to_f32()).collect();
            let rows = layout.offsets[p] as usize..layout.offsets[p + 1] as usize;
            let (mut radius, mut bias) = (0.0f64, f32::NEG_INFINITY);
            for &row in &layout.rows[rows] {
                table.scanned(row, &mut decoded);
                radius = radius.max(distance(&decoded, &centroid));
                bias = bias.max(table.bias.map_or(0.0, |b| b[row as usize]));
            }
            let norm = distance(&centroid, &vec![0.0; d]);
            layout.radii.push(rounded_up(radius, norm, d));
            // An empty partition has no bias; a float that is not finite has no place here.
            layout.bias.push(if bias.is_finite() { bias } else { 0.0 });
            layout.centroids.extend_from_slice(&stored);
        }
        Ok(layout)
    }

    fn write(&self, out: &mut TensorWriter) -> Result<()> {
        for h in &self.centroids {
            out.write("partition.centroids", &h.to_bits().to_le_bytes())?;
        }
        out.write("partition.radii", bytemuck::cast_slice(&self.radii))?;
        if out.expects("partition.bias") {
            out.write("partition.bias", bytemuck::cast_slice(&self.bias))?;
        }
        out.write("partition.offsets", bytemuck::cast_slice(&self.offsets))
    }
}

impl ItemTableBuilder<'_> {
    /// Codes of a row in 8 bits, and their scale: fitted, unless a tail will tell where in its
    /// step each value lies.
    fn int8(&self, x: &[f32], codes: &mut [i8]) -> f32 {
        let scale = quant::int8::encode(x, codes);
        if self.tail {
            scale
        } else {
            quant::int8::fit(x, codes, scale)
        }
    }

    /// A row as the scan will decode it.
    fn scanned(&self, row: u32, out: &mut [f32]) {
        let (x, d) = (self.vector(row), self.dim);
        let mut codes = vec![0i8; d];
        match self.scheme {
            Scheme::F32 => out.copy_from_slice(x),
            Scheme::F16 => {
                let rounded = x.iter().map(|&v| half::f16::from_f32(v).to_f32());
                out.iter_mut().zip(rounded).for_each(|(o, v)| *o = v);
            }
            Scheme::Int8 => {
                let scale = self.int8(x, &mut codes);
                quant::int8::decode(&codes, scale, out);
            }
            Scheme::Int4 => {
                let (mut packed, mut factors) = (vec![0; d / 2], vec![0; kernel::groups(d)]);
                let scale = quant::int4::encode(x, &mut packed, &mut factors);
                quant::int4::decode(&packed, &factors, scale, out);
            }
            Scheme::TwoStage => {
                let (mut high, mut low) = (vec![0; d / 2], vec![0; d / 2]);
                let scale = self.int8(x, &mut codes);
                quant::two_stage::split(&codes, &mut high, &mut low);
                quant::two_stage::decode_coarse(&high, scale, out);
            }
        }
    }
}

fn write_offsets(
    out: &mut TensorWriter,
    name: &str,
    lengths: impl Iterator<Item = usize>,
) -> Result<()> {
    let mut offset = 0u64;
    out.write(name, &offset.to_le_bytes())?;
    for length in lengths {
        offset += length as u64;
        out.write(name, &offset.to_le_bytes())?;
    }
    Ok(())
}

/// Attribute values in order of first use.
#[derive(Default)]
struct Dictionary {
    codes: HashMap<String, u32>,
    values: Vec<String>,
}

impl Dictionary {
    fn code(&mut self, value: &str) -> Result<u32> {
        if let Some(&code) = self.codes.get(value) {
            return Ok(code);
        }
        let code = self.values.len() as u32;
        if code == NO_VALUE {
            return Err(Error::argument("an attribute has too many distinct values"));
        }
        self.codes.insert(value.to_string(), code);
        self.values.push(value.to_string());
        Ok(code)
    }
}
