//! Fixtures of the suite: small students over small data, and ONNX Runtime where there is one.
#![forbid(unsafe_code)]

use std::error::Error;

use candle_core::{Device, Tensor};
use tercet::{OnnxRuntime, OnnxRuntimeOptions};
use tercet_models::data::{Dataset, HistoryEvent, IdMap, Interaction, ModalityFeatures, Split};
use tercet_models::rng::{self, Purpose};
use tercet_models::student::{GRAPH, ModalitySpec, Student, StudentShape};

/// Result of a test.
pub type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Events a user of [`data`] looks back on.
pub const WINDOW: usize = 12;

/// `users` users with up to 20 events each over `items` items. `image` has columns of very unequal
/// mean and deviation and lacks every seventh item; `text` is complete; the last tenth of the items
/// is cold.
///
/// # Errors
/// Never, for sizes that make sense.
pub fn data(users: usize, items: usize) -> Outcome<Dataset> {
    let mut r = rng::stream(5, Purpose::Init, &[1]);
    let warm = items - items / 10;
    let mut rows = Vec::new();
    for user in 0..users {
        let n = 3 + user % 18;
        for k in 0..n {
            rows.push(Interaction {
                user: user as u32,
                item: rng::below(&mut r, warm) as u32,
                behavior: 1 + (k % 2) as u8,
                split: if k + 1 == n {
                    Split::Valid
                } else {
                    Split::Train
                },
                time: k as i64,
                value: 1.0,
            });
        }
    }
    let mut data = Dataset::new(
        "random",
        IdMap::new((0..users).map(|u| format!("user-{u}")))?,
        IdMap::new((0..items).map(|i| format!("item-{i}")))?,
        ["any", "buy", "view"].map(String::from).to_vec(),
        rows,
        true,
    )?;
    let mut matrix = |name: &str, dim: usize, gap: usize| -> Outcome<ModalityFeatures> {
        let values: Vec<f32> = (0..items * dim)
            .map(|at| {
                let (item, column) = (at / dim, at % dim);
                let spread = 10f32.powi(column as i32 % 5 - 2);
                if gap > 0 && item % gap == 0 {
                    f32::NAN
                } else {
                    spread * (rng::unit(&mut r) + column as f32 % 3.0)
                }
            })
            .collect();
        Ok(ModalityFeatures::new(
            name,
            ndarray_of(items, dim, values)?,
        )?)
    };
    data.features = vec![matrix("image", 24, 7)?, matrix("text", 40, 0)?];
    data.titles = Some((0..items).map(|i| format!("Thing {i}")).collect());
    Ok(data)
}

fn ndarray_of(rows: usize, columns: usize, values: Vec<f32>) -> Outcome<ndarray::Array2<f32>> {
    Ok(ndarray::Array2::from_shape_vec((rows, columns), values)?)
}

/// A student of `data` with random weights and biases, large enough for its matrices to be
/// quantized.
///
/// # Errors
/// Never, for the data of [`data`].
pub fn student(data: &Dataset) -> Outcome<Student> {
    let modality = |name: &str, dim| ModalitySpec {
        name: name.into(),
        dim,
    };
    let shape = StudentShape {
        dim: 32,
        modalities: vec![
            modality("image", 24),
            modality("text", 40),
            modality(GRAPH, 32),
        ],
        fusion_hidden: 48,
        behaviors: data.behaviors.clone(),
        window: WINDOW,
        event_hidden: 64,
        half_lives: vec![0.0, 4.0, 0.5],
        readout_hidden: 40,
        prior: vec![0.6, 0.2, 1e-6],
    };
    let dev = Device::Cpu;
    let n = data.num_items();
    let mut r = rng::stream(3, Purpose::Init, &[2]);
    let graph = rng::normal(&mut r, (n, 32), 0.3, &dev)?;
    let mut warm = vec![false; n];
    data.interactions
        .iter()
        .for_each(|row| warm[row.item as usize] = true);
    let fresh = Student::new(shape, data, &graph, &warm, 2, &dev)?;
    // Fresh biases are zero, and a zero hides an addition that is missing.
    let mut tensors = fresh.export()?;
    let mut names: Vec<String> = tensors
        .keys()
        .filter(|k| k.ends_with("bias") || k.ends_with("behaviors"))
        .cloned()
        .collect();
    names.sort();
    for name in names {
        let shape = tensors[&name].shape().clone();
        let noise: Tensor = rng::normal(&mut r, shape, 0.3, &dev)?;
        tensors.insert(name, noise);
    }
    Ok(Student::load(&tensors, &dev)?)
}

/// Histories of 0, 1, 3 and [`WINDOW`] events, and one that exceeds the window.
pub fn histories(data: &Dataset) -> Vec<Vec<HistoryEvent>> {
    let mut r = rng::stream(9, Purpose::Init, &[3]);
    [0, 1, 3, WINDOW, WINDOW + 5]
        .into_iter()
        .map(|n| {
            (0..n)
                .map(|k| HistoryEvent {
                    item: rng::below(&mut r, data.num_items()) as u32,
                    behavior: (k % data.behaviors.len()) as u8,
                })
                .collect()
        })
        .collect()
}

/// ONNX Runtime, if the variable `TERCET_ORT_LIB` names its shared library.
///
/// # Errors
/// A library that cannot be loaded: a variable that is set is meant.
pub fn onnx_runtime() -> Outcome<Option<OnnxRuntime>> {
    let Some(path) = std::env::var_os("TERCET_ORT_LIB") else {
        eprintln!("skipped: set TERCET_ORT_LIB to ONNX Runtime's shared library");
        return Ok(None);
    };
    Ok(Some(OnnxRuntime::load(OnnxRuntimeOptions::new(path))?))
}
