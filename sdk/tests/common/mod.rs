//! Fixtures shared by the tests of this crate: small tables, bundles, and ONNX graphs encoded
//! by hand (a few protobuf fields), so that no ONNX library is needed.
#![allow(dead_code, unreachable_pub)]

pub mod fuzz;

use std::path::{Path, PathBuf};

use tercet::{Bundle, BundleWriter, ItemTableBuilder, Manifest, Scheme, TensorSpec, TensorWriter};

/// A reproducible generator.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }

    /// Uniform in -1..1.
    pub fn float(&mut self) -> f32 {
        self.next() as f32 / 2f32.powi(30) - 1.0
    }

    pub fn vectors(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

pub const DIM: usize = 16;
pub const WINDOW: usize = 4;

/// Keys `item-0`, `item-1`, …: their byte order differs from the row order from 10 on.
pub fn keys(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("item-{i}")).collect()
}

/// A manifest for bundles of these tests.
pub fn manifest() -> Manifest {
    let mut m = Manifest::new("test", 7, DIM, WINDOW);
    m.behaviors = ["any", "view", "buy"].map(String::from).to_vec();
    m.card = serde_json::json!({"teacher": "none", "any": {"depth": [1, 2.5, null]}});
    m
}

/// Writes a bundle of `n` random items with all optional columns; returns vectors.
pub fn write_bundle(path: &Path, n: usize, scheme: Scheme) -> Vec<f32> {
    let vectors = Rng(n as u64).vectors(n * DIM);
    let keys = keys(n);
    let popularity: Vec<f32> = (0..n).map(|i| ((i * 7) % n) as f32 / n as f32).collect();
    let bias: Vec<f32> = (0..n).map(|i| (i % 3) as f32 * 0.01).collect();
    let color: Vec<Option<&str>> = (0..n)
        .map(|i| [Some("red"), None, Some("blau ä")][i % 3])
        .collect();
    let tags: Vec<Vec<&str>> = (0..n).map(|i| ["a", "b", "c"][..i % 4].to_vec()).collect();
    let table = ItemTableBuilder::new(DIM, scheme, &keys, &vectors)
        .unwrap()
        .bias(&bias)
        .unwrap()
        .popularity(&popularity)
        .unwrap()
        .attribute("color", &color)
        .unwrap()
        .list_attribute("tags", &tags)
        .unwrap();
    let mut writer = BundleWriter::create(path).unwrap();
    writer.table(&table).unwrap();
    writer.finish(manifest()).unwrap();
    vectors
}

/// A bundle of `n` random items in `partitions` partitions, with bias and, where the scheme
/// takes one, a tail.
pub fn write_partitioned(path: &Path, n: usize, scheme: Scheme, partitions: usize) {
    let vectors = Rng(n as u64 + 1).vectors(n * DIM);
    let keys = keys(n);
    let bias: Vec<f32> = (0..n).map(|i| (i % 3) as f32 * 0.01).collect();
    let shares = vec![1; n];
    let mut table = ItemTableBuilder::new(DIM, scheme, &keys, &vectors)
        .and_then(|t| t.bias(&bias))
        .and_then(|t| t.modalities(&shares))
        .and_then(|t| t.partitions(partitions))
        .unwrap();
    if matches!(scheme, Scheme::Int8 | Scheme::TwoStage) {
        table = table.tail().unwrap();
    }
    let mut writer = BundleWriter::create(path).unwrap();
    writer.table(&table).unwrap();
    let mut m = manifest();
    m.modalities = vec![tercet::bundle::Modality {
        name: "text".into(),
        dim: 4,
    }];
    writer.finish(m).unwrap();
}

/// As [`write_bundle`], in a fresh folder.
pub fn bundle(n: usize, scheme: Scheme) -> (tempfile::TempDir, PathBuf, Bundle) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.tercet");
    write_bundle(&path, n, scheme);
    let bundle = Bundle::open(&path).unwrap();
    (folder, path, bundle)
}

/// A small plain bundle with a user tower (a sum of the items) and a fusion tower.
pub fn tower_bundle(folder: &Path, user: &[u8], fusion: &[u8]) -> tercet::Result<Bundle> {
    let path = folder.join("towers.tercet");
    let keys = keys(20);
    let mut vectors = vec![0.0f32; 20 * DIM];
    for i in 0..20 {
        vectors[i * DIM + i % DIM] = 1.0;
        vectors[i * DIM + (i + 1) % DIM] = 0.5;
    }
    let table = ItemTableBuilder::new(DIM, Scheme::F32, &keys, &vectors)?;
    let mut writer = BundleWriter::create(&path)?;
    writer.table(&table)?;
    writer.write_file("user_tower.onnx", user)?;
    writer.write_file("fusion_tower.onnx", fusion)?;
    let mut m = manifest();
    m.engine.opset = 17;
    m.engine.user_tower = Some("user_tower.onnx".into());
    m.engine.fusion_tower = Some("fusion_tower.onnx".into());
    m.modalities = vec![tercet::bundle::Modality {
        name: "text".into(),
        dim: DIM,
    }];
    writer.finish(m)
}

/// Values of a tensor.
pub enum Values {
    F32(Vec<f32>),
    I8(Vec<i8>),
}

impl From<Vec<f32>> for Values {
    fn from(values: Vec<f32>) -> Self {
        Values::F32(values)
    }
}

/// The bytes of a tensor file.
pub fn tensor_file<V: Into<Values>>(tensors: Vec<(&str, Vec<usize>, V)>) -> Vec<u8> {
    use safetensors::Dtype;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tensors");
    let tensors: Vec<(&str, Vec<usize>, Dtype, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, shape, values)| match values.into() {
            Values::F32(values) => {
                let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                (name, shape, Dtype::F32, bytes)
            }
            Values::I8(codes) => {
                let bytes = codes.iter().flat_map(|v| v.to_le_bytes()).collect();
                (name, shape, Dtype::I8, bytes)
            }
        })
        .collect();
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, shape, dtype, _)| TensorSpec::new(*name, *dtype, shape.clone()))
        .collect();
    let mut writer = TensorWriter::create(&path, &specs).unwrap();
    for (name, _, _, bytes) in &tensors {
        writer.write(name, bytes).unwrap();
    }
    writer.finish().unwrap();
    std::fs::read(&path).unwrap()
}

/// How a tower's largest layer is stored.
#[derive(Clone, Copy)]
pub enum Hidden {
    Codes,
    /// What the codes stand for.
    Floats,
}

/// A bundle of random items with a random student's user tower; one head forgets nothing, one fast.
pub fn student_bundle(folder: &Path, items: usize, window: usize, stored: Hidden) -> Bundle {
    let (mut r, d, f, h, m) = (Rng(1), DIM, 32, 2, 12);
    let summary = h * d + 1;
    let codes: Vec<i8> = (0..d * f).map(|_| (r.float() * 127.0) as i8).collect();
    let mut random = |n: usize| r.vectors(n);
    let scales: Vec<f32> = random(f).iter().map(|x| (x.abs() + 0.1) / 127.0).collect();
    let mut tensors: Vec<(&str, Vec<usize>, Values)> = match stored {
        Hidden::Codes => vec![
            ("user.hidden.weight", vec![d, f], Values::I8(codes)),
            ("user.hidden.weight.scale", vec![f], scales.into()),
        ],
        Hidden::Floats => {
            let scales = scales.iter().cycle();
            let values: Vec<f32> = codes
                .iter()
                .zip(scales)
                .map(|(c, s)| f32::from(*c) * s)
                .collect();
            vec![("user.hidden.weight", vec![d, f], values.into())]
        }
    };
    let floats = [
        ("user.behaviors", vec![3, d], random(3 * d)),
        ("user.hidden.bias", vec![f], random(f)),
        ("user.gate.weight", vec![d, h], random(d * h)),
        ("user.gate.bias", vec![h], random(h)),
        ("user.decays", vec![h], vec![1.0, 0.8]),
        ("user.value.weight", vec![f, h * d], random(f * h * d)),
        ("user.direct", vec![h, d], random(h * d)),
        ("user.skip.weight", vec![summary, d], random(summary * d)),
        ("user.mix.weight", vec![summary, m], random(summary * m)),
        ("user.mix.bias", vec![m], random(m)),
        ("user.out.weight", vec![m, d], random(m * d)),
        ("user.out.bias", vec![d], random(d)),
    ];
    tensors.extend(floats.map(|(name, shape, values)| (name, shape, values.into())));
    let weights = tensor_file(tensors);
    let (keys, vectors) = (keys(items), Rng(2).vectors(items * DIM));
    let table = ItemTableBuilder::new(DIM, Scheme::Int8, &keys, &vectors).unwrap();
    let mut writer = BundleWriter::create(folder.join("b.tercet")).unwrap();
    writer.table(&table).unwrap();
    writer
        .write_file("user_tower.safetensors", &weights)
        .unwrap();
    let mut m = manifest();
    m.window = window;
    m.engine.user_weights = Some("user_tower.safetensors".into());
    writer.finish(m).unwrap()
}

/// Minimal ONNX: only the fields these graphs need. Field numbers are those of `onnx.proto`.
pub mod onnx {
    pub enum Dim {
        Fixed(usize),
        Symbol(&'static str),
    }

    pub const F32: u64 = 1;
    pub const I64: u64 = 7;

    fn varint(mut x: u64) -> Vec<u8> {
        let mut out = Vec::new();
        while x >= 0x80 {
            out.push(x as u8 | 0x80);
            x >>= 7;
        }
        out.push(x as u8);
        out
    }

    fn int(field: u64, x: u64) -> Vec<u8> {
        [varint(field << 3), varint(x)].concat()
    }

    fn bytes(field: u64, x: &[u8]) -> Vec<u8> {
        [varint(field << 3 | 2), varint(x.len() as u64), x.to_vec()].concat()
    }

    fn text(field: u64, x: &str) -> Vec<u8> {
        bytes(field, x.as_bytes())
    }

    /// ValueInfoProto: name 1, type 2 { tensor_type 1 { elem_type 1, shape 2 { dim 1 } } }.
    pub fn value(name: &str, dtype: u64, dims: &[Dim]) -> Vec<u8> {
        let dims: Vec<u8> = dims
            .iter()
            .flat_map(|d| match d {
                Dim::Fixed(n) => bytes(1, &int(1, *n as u64)),
                Dim::Symbol(s) => bytes(1, &text(2, s)),
            })
            .collect();
        let tensor = [int(1, dtype), bytes(2, &dims)].concat();
        [text(1, name), bytes(2, &bytes(1, &tensor))].concat()
    }

    /// TensorProto of i64: dims 1, data_type 2, name 8, raw_data 9.
    pub fn constant(name: &str, values: &[i64]) -> Vec<u8> {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        [
            int(1, values.len() as u64),
            int(2, I64),
            text(8, name),
            bytes(9, &raw),
        ]
        .concat()
    }

    /// AttributeProto of an int: name 1, i 3, type 20 = INT (2).
    pub fn attribute(name: &str, x: i64) -> Vec<u8> {
        [text(1, name), int(3, x as u64), int(20, 2)].concat()
    }

    /// NodeProto: input 1, output 2, name 3, op_type 4, attribute 5.
    pub fn node(op: &str, inputs: &[&str], output: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut out: Vec<u8> = inputs.iter().flat_map(|i| text(1, i)).collect();
        out.extend(text(2, output));
        out.extend(text(3, output));
        out.extend(text(4, op));
        out.extend(attributes.iter().flat_map(|a| bytes(5, a)));
        out
    }

    /// ModelProto (ir_version 1, graph 7, opset_import 8) of a GraphProto (node 1, name 2,
    /// initializer 5, input 11, output 12).
    pub fn model(
        nodes: &[Vec<u8>],
        constants: &[Vec<u8>],
        inputs: &[Vec<u8>],
        outputs: &[Vec<u8>],
    ) -> Vec<u8> {
        let mut graph = Vec::new();
        nodes.iter().for_each(|n| graph.extend(bytes(1, n)));
        graph.extend(text(2, "g"));
        constants.iter().for_each(|c| graph.extend(bytes(5, c)));
        inputs.iter().for_each(|i| graph.extend(bytes(11, i)));
        outputs.iter().for_each(|o| graph.extend(bytes(12, o)));
        [
            int(1, 8),
            bytes(7, &graph),
            bytes(8, &[text(1, ""), int(2, 17)].concat()),
        ]
        .concat()
    }

    /// user_vector = Σ over events of item · mask · behavior id.
    pub fn user_tower(output: &str, window: usize, dim: usize) -> Vec<u8> {
        use Dim::{Fixed, Symbol};
        model(
            &[
                node("Cast", &["behaviors"], "weights", &[attribute("to", 1)]),
                node("Mul", &["weights", "mask"], "masked", &[]),
                node("Unsqueeze", &["masked", "last"], "column", &[]),
                node("Mul", &["items", "column"], "weighted", &[]),
                node(
                    "ReduceSum",
                    &["weighted", "events"],
                    output,
                    &[attribute("keepdims", 0)],
                ),
            ],
            &[constant("last", &[2]), constant("events", &[1])],
            &[
                value("items", F32, &[Symbol("batch"), Fixed(window), Fixed(dim)]),
                value("behaviors", I64, &[Symbol("batch"), Fixed(window)]),
                value("mask", F32, &[Symbol("batch"), Fixed(window)]),
            ],
            &[value(output, F32, &[Symbol("batch"), Fixed(dim)])],
        )
    }

    /// item_vector = text · present.
    pub fn fusion_tower(dim: usize) -> Vec<u8> {
        use Dim::{Fixed, Symbol};
        model(
            &[node("Mul", &["text", "present"], "item_vector", &[])],
            &[],
            &[
                value("text", F32, &[Symbol("batch"), Fixed(dim)]),
                value("present", F32, &[Symbol("batch"), Fixed(1)]),
            ],
            &[value("item_vector", F32, &[Symbol("batch"), Fixed(dim)])],
        )
    }
}
