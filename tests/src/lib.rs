//! Fixtures of the suite: small students over small data, and ONNX Runtime behind the trait of the
//! runtime's engines.
#![forbid(unsafe_code)]

use std::error::Error;
use std::path::Path;
use std::sync::OnceLock;

use candle_core::{Device, Tensor};
use ort::environment::Environment;
use ort::session::Session;
use tercet::{Input, InputData, Tower};
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

/// ONNX Runtime, if the variable `TERCET_ORT_LIB` names its shared library; there can be only one
/// environment in a process.
///
/// # Errors
/// A library that cannot be loaded: a variable that is set is meant.
pub fn ort_environment() -> Outcome<Option<&'static Environment>> {
    static ENVIRONMENT: OnceLock<Result<Environment, String>> = OnceLock::new();
    let Some(path) = std::env::var_os("TERCET_ORT_LIB") else {
        eprintln!("skipped: set TERCET_ORT_LIB to ONNX Runtime's shared library");
        return Ok(None);
    };
    let made = ENVIRONMENT.get_or_init(|| {
        let builder = ort::init_from(&path).map_err(|e| e.to_string())?;
        builder
            .with_name("tercet-tests")
            .build()
            .map_err(|e| e.to_string())
    });
    match made {
        Ok(environment) => Ok(Some(environment)),
        Err(e) => Err(format!("{}: {e}", Path::new(&path).display()).into()),
    }
}

/// A tower run by ONNX Runtime.
pub struct OrtTower {
    session: Session,
}

impl OrtTower {
    /// Loads a graph.
    ///
    /// # Errors
    /// Whatever ONNX Runtime says about the file.
    pub fn load(environment: &Environment, path: &Path) -> Outcome<Self> {
        let session = Session::builder(environment)?.commit_from_file(path)?;
        Ok(Self { session })
    }
}

impl Tower for OrtTower {
    fn run(&mut self, inputs: &[Input<'_>]) -> tercet::Result<Vec<f32>> {
        let mut run = || -> Result<Vec<f32>, ort::Error> {
            let mut values: Vec<(String, ort::session::SessionInputValue<'_>)> = Vec::new();
            for input in inputs {
                let shape = input.shape.to_vec();
                let value = match input.data {
                    InputData::F32(x) => {
                        ort::value::Tensor::from_array((shape, x.to_vec()))?.into()
                    }
                    InputData::I64(x) => {
                        ort::value::Tensor::from_array((shape, x.to_vec()))?.into()
                    }
                    _ => continue,
                };
                values.push((input.name.to_string(), value));
            }
            let outputs = self.session.run(values)?;
            Ok(outputs[0].try_extract_tensor::<f32>()?.1.to_vec())
        };
        run().map_err(|e| tercet::Error::Engine {
            file: "(ort)".into(),
            reason: e.to_string(),
        })
    }
}
