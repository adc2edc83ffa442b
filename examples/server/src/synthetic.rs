//! A bundle of random vectors with a user tower of the usual size, for the tests and the load test.

use std::path::Path;

use anyhow::Result;
use safetensors::Dtype;
use tercet::{Bundle, BundleWriter, ItemTableBuilder, Manifest, Scheme, TensorSpec, TensorWriter};

/// Uniform in −1..1, the same on every machine.
struct Random(u64);

impl Random {
    fn values(&mut self, n: usize, scale: f32) -> Vec<f32> {
        let mut next = || {
            self.0 = self.0.wrapping_mul(6364136223846793005);
            self.0 = self.0.wrapping_add(1442695040888963407);
            ((self.0 >> 40) as f32 / 8_388_608.0 - 1.0) * scale
        };
        (0..n).map(|_| next()).collect()
    }
}

/// Writes version `version` of a bundle of `items` int8 vectors of `dim` values with the keys
/// `item-0`, `item-1`, … and an attribute `parity`, `even` or `odd`. Another version has other
/// vectors.
///
/// # Errors
/// As [`BundleWriter`].
pub fn write_bundle(path: &Path, items: usize, dim: usize, version: u64) -> Result<Bundle> {
    let mut random = Random(version);
    let keys: Vec<String> = (0..items).map(|i| format!("item-{i}")).collect();
    let parity: Vec<_> = (0..items).map(|i| Some(["even", "odd"][i % 2])).collect();
    let vectors = random.values(items * dim, 1.0);
    let table =
        ItemTableBuilder::new(dim, Scheme::Int8, &keys, &vectors)?.attribute("parity", &parity)?;
    let mut writer = BundleWriter::create(path)?;
    writer.table(&table)?;
    let weights = "user_tower.safetensors";
    writer.write_file(weights, &user_tower(&mut random, dim)?)?;
    let mut manifest = Manifest::new("synthetic", version, dim, 50);
    manifest.behaviors = ["any", "buy"].map(String::from).to_vec();
    manifest.engine.user_weights = Some(weights.into());
    Ok(writer.finish(manifest)?)
}

/// Weights in the student's shape and of its usual size: the mean of the history, with some noise.
fn user_tower(random: &mut Random, d: usize) -> Result<Vec<u8>> {
    let (hidden, heads) = (256, 4);
    let summary = heads * d + 1;
    let mut tensors: Vec<(&str, Vec<usize>, Vec<f32>)> = vec![
        ("user.decays", vec![heads], vec![1.0, 0.98, 0.9, 0.7]),
        (
            "user.direct",
            vec![heads, d],
            vec![1.0 / heads as f32; heads * d],
        ),
    ];
    for (name, shape) in [
        ("user.behaviors", vec![2, d]),
        ("user.hidden.weight", vec![d, hidden]),
        ("user.hidden.bias", vec![hidden]),
        ("user.gate.weight", vec![d, heads]),
        ("user.gate.bias", vec![heads]),
        ("user.value.weight", vec![hidden, heads * d]),
        ("user.skip.weight", vec![summary, d]),
        ("user.mix.weight", vec![summary, hidden]),
        ("user.mix.bias", vec![hidden]),
        ("user.out.weight", vec![hidden, d]),
        ("user.out.bias", vec![d]),
    ] {
        let values = random.values(shape.iter().product(), 0.02);
        tensors.push((name, shape, values));
    }
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, shape, _)| TensorSpec::new(*name, Dtype::F32, shape.clone()))
        .collect();
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("weights");
    let mut out = TensorWriter::create(&path, &specs)?;
    for (name, _, values) in &tensors {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        out.write(name, &bytes)?;
    }
    out.finish()?;
    Ok(std::fs::read(&path)?)
}
