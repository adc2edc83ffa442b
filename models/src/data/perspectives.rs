//! A synthetic data set in which memory and content each know something that the other cannot.
//!
//! * Items belong to one of [`GROUPS`] content groups. Both modalities show the group's code, each
//!   through a rotation of its own, plus noise; 30 % of the items have one modality replaced by
//!   noise, so that the other has to speak for it.
//! * Features lie around one common offset and along two strong nuisance directions, as hidden
//!   states of causal language models do: their raw cosines say little.
//! * Items also belong to one of [`CLIQUES`] co-purchase cliques that no feature knows.
//! * A user likes two groups and one clique; half of the events come from each side.
//! * One item in five is *new*: bought for its content, by at most two users in training.
//!
//! The attributes `group` and `clique` name the truth, for probes.

use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use ndarray::Array2;
use rand_distr::{Distribution, StandardNormal};

use super::features::{ModalityFeatures, write_npy};
use super::{Attribute, Dataset, IdMap, Interaction, Split, import};
use crate::error::{Error, Result};
use crate::rng::{self, Purpose, Stream};

/// Content groups.
pub const GROUPS: usize = 12;
/// Co-purchase cliques.
pub const CLIQUES: usize = 20;
/// Width of each modality.
pub const WIDTH: usize = 32;

/// Events of a user on items that are not new: train, valid, test.
const EVENTS: [(Split, usize); 3] = [(Split::Train, 12), (Split::Valid, 1), (Split::Test, 2)];
/// Valid and test events of a new item.
const NEW_EVENTS: [(Split, usize); 2] = [(Split::Valid, 4), (Split::Test, 8)];
/// Most training events of a new item.
const NEW_TRAIN: usize = 2;

/// Size and seed.
#[derive(Debug, Clone, PartialEq)]
pub struct PerspectivesConfig {
    /// Number of users, at least 50.
    pub users: usize,
    /// Number of items, at least 200.
    pub items: usize,
    /// Seed of everything.
    pub seed: u64,
}

impl Default for PerspectivesConfig {
    fn default() -> Self {
        Self {
            users: 800,
            items: 500,
            seed: 17,
        }
    }
}

struct Item {
    group: usize,
    clique: usize,
    is_new: bool,
    /// The modality that is only noise, if one is.
    blind: Option<usize>,
}

fn normal(r: &mut Stream) -> f32 {
    StandardNormal.sample(r)
}

fn chance(r: &mut Stream, p: f32) -> bool {
    rng::unit(r) < p
}

/// Makes the data set in memory.
///
/// # Errors
/// [`Error::Config`] if a size is out of range.
pub fn generate(config: &PerspectivesConfig) -> Result<Dataset> {
    if config.users < 50 || config.items < 200 {
        return Err(Error::config(
            "this data set needs at least 50 users and 200 items",
        ));
    }
    if config.users > 1_000_000 || config.items > 1_000_000 {
        return Err(Error::config(
            "this data set is held in memory: at most a million users and items",
        ));
    }
    let stream =
        |name: &str| rng::stream(config.seed, Purpose::Candidates, &[rng::name_hash(name)]);
    let mut r = stream("items");
    let items: Vec<Item> = (0..config.items)
        .map(|_| Item {
            group: rng::below(&mut r, GROUPS),
            clique: rng::below(&mut r, CLIQUES),
            is_new: chance(&mut r, 0.2),
            blind: chance(&mut r, 0.3).then(|| rng::below(&mut r, 2)),
        })
        .collect();
    let mut data = Dataset::new(
        "perspectives",
        IdMap::new((0..config.users).map(|u| u.to_string()))?,
        IdMap::new((0..config.items).map(|i| i.to_string()))?,
        vec!["any".to_owned()],
        events(config, &items, &mut stream("events")),
        false,
    )?;
    data.features = features(&items, &mut stream("features"))?;
    let attribute = |name: &str, of: &dyn Fn(&Item) -> usize| Attribute {
        name: name.to_owned(),
        values: items.iter().map(|i| vec![of(i).to_string()]).collect(),
    };
    data.attributes = vec![
        attribute("group", &|i| i.group),
        attribute("clique", &|i| i.clique),
    ];
    Ok(data)
}

fn events(config: &PerspectivesConfig, items: &[Item], r: &mut Stream) -> Vec<Interaction> {
    let known = |wanted: &dyn Fn(&Item) -> bool| -> Vec<u32> {
        (0..items.len() as u32)
            .filter(|&i| !items[i as usize].is_new && wanted(&items[i as usize]))
            .collect()
    };
    let by_group: Vec<Vec<u32>> = (0..GROUPS).map(|g| known(&|i| i.group == g)).collect();
    let by_clique: Vec<Vec<u32>> = (0..CLIQUES).map(|c| known(&|i| i.clique == c)).collect();
    let mut rows: Vec<Interaction> = Vec::new();
    let mut likes = Vec::with_capacity(config.users);
    for user in 0..config.users as u32 {
        let groups = [rng::below(r, GROUPS), rng::below(r, GROUPS)];
        let clique = rng::below(r, CLIQUES);
        likes.push(groups);
        let wanted: usize = EVENTS.iter().map(|e| e.1).sum();
        let mut own: Vec<u32> = Vec::with_capacity(wanted);
        // Small catalogues may run out of what a user likes: a bounded number of tries.
        for _ in 0..wanted * 20 {
            let pool = match chance(r, 0.5) {
                true => &by_clique[clique],
                false => &by_group[groups[rng::below(r, 2)]],
            };
            if own.len() == wanted || pool.is_empty() {
                continue;
            }
            // The first of a pool are bought more often.
            let u = rng::unit(r).powf(1.4);
            let item = pool[((u * pool.len() as f32) as usize).min(pool.len() - 1)];
            if !own.contains(&item) {
                own.push(item);
            }
        }
        // Held-out events are as random as the others: the draws had no order in time.
        rng::shuffle(r, &mut own);
        let mut own = own.into_iter();
        for (split, n) in [EVENTS[2], EVENTS[1], EVENTS[0]] {
            rows.extend(own.by_ref().take(n).map(|item| event(user, item, split)));
        }
    }
    for (item, own) in (0u32..).zip(items) {
        if !own.is_new {
            continue;
        }
        let mut fans: Vec<u32> = (0u32..)
            .zip(&likes)
            .filter(|(_, groups)| groups.contains(&own.group))
            .map(|(u, _)| u)
            .collect();
        rng::shuffle(r, &mut fans);
        let mut fans = fans.into_iter();
        for (split, n) in NEW_EVENTS {
            rows.extend(fans.by_ref().take(n).map(|u| event(u, item, split)));
        }
        let n = rng::below(r, NEW_TRAIN + 1);
        rows.extend(fans.take(n).map(|u| event(u, item, Split::Train)));
    }
    rows
}

fn event(user: u32, item: u32, split: Split) -> Interaction {
    Interaction {
        user,
        item,
        behavior: 0,
        split,
        time: 0,
        value: 1.0,
    }
}

fn features(items: &[Item], r: &mut Stream) -> Result<Vec<ModalityFeatures>> {
    let vector = |r: &mut Stream| -> [f32; WIDTH] { std::array::from_fn(|_| normal(r)) };
    let codes: Vec<[f32; WIDTH]> = (0..GROUPS).map(|_| vector(r)).collect();
    ["image", "text"]
        .into_iter()
        .enumerate()
        .map(|(m, name)| {
            // Independent columns of this width are nearly orthogonal: close to a rotation.
            let scale = 1.0 / (WIDTH as f32).sqrt();
            let rotation: Vec<[f32; WIDTH]> =
                (0..WIDTH).map(|_| vector(r).map(|x| x * scale)).collect();
            let offset = vector(r).map(|x| 4.0 * x);
            let nuisance = [vector(r), vector(r)];
            let mut values = Array2::zeros((items.len(), WIDTH));
            for (mut row, item) in values.outer_iter_mut().zip(items) {
                let seen = item.blind != Some(m);
                let code = if seen { codes[item.group] } else { vector(r) };
                let strength = [normal(r) * 3.0, normal(r) * 2.0];
                for (c, x) in row.iter_mut().enumerate() {
                    let turned: f32 = code.iter().zip(&rotation).map(|(v, row)| v * row[c]).sum();
                    *x = offset[c]
                        + turned
                        + nuisance[0][c] * strength[0]
                        + nuisance[1][c] * strength[1]
                        + 0.7 * normal(r);
                }
            }
            ModalityFeatures::new(name, values)
        })
        .collect()
}

/// Writes the data set as a folder; [`Dataset::open`] gives what [`generate`] gives, but for the
/// name.
///
/// # Errors
/// [`Error::Config`] if a size is out of range, [`Error::Io`] if the folder exists or cannot be
/// written.
pub fn write(config: &PerspectivesConfig, dir: impl AsRef<Path>) -> Result<()> {
    let data = generate(config)?;
    import::write_folder(dir.as_ref(), |dir| write_files(&data, dir))
}

fn write_files(data: &Dataset, dir: &Path) -> Result<()> {
    let path = dir.join("items.csv");
    let mut text = String::from("item_id,group,clique\n");
    for item in 0..data.num_items() {
        let of = |a: &Attribute| a.values[item].join("|");
        let fields: Vec<String> = data.attributes.iter().map(of).collect();
        text += &format!("{},{}\n", data.items.key(item as u32), fields.join(","));
    }
    std::fs::write(&path, text).map_err(|e| Error::io(&path, e))?;

    let path = dir.join("users.csv");
    let users: String = data.users.keys().map(|k| format!("{k}\n")).collect();
    std::fs::write(&path, format!("user_id\n{users}")).map_err(|e| Error::io(&path, e))?;

    let path = dir.join("interactions.csv.gz");
    let file = std::fs::File::create(&path).map_err(|e| Error::io(&path, e))?;
    let mut out = GzEncoder::new(file, Compression::fast());
    let mut log = || -> std::io::Result<()> {
        writeln!(out, "user_id,item_id,split")?;
        for row in &data.interactions {
            let (user, item) = (data.users.key(row.user), data.items.key(row.item));
            writeln!(out, "{user},{item},{}", row.split.name())?;
        }
        out.try_finish()
    };
    log().map_err(|e| Error::io(&path, e))?;

    let folder = dir.join("features");
    std::fs::create_dir(&folder).map_err(|e| Error::io(&folder, e))?;
    for f in &data.features {
        let path = folder.join(format!("{}.npy", f.name));
        let file = std::fs::File::create(&path).map_err(|e| Error::io(&path, e))?;
        write_npy(&path, file, f.values.nrows(), f.dim(), |i, out| {
            out.extend(f.values.row(i));
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::LoadOptions;

    #[test]
    fn written_and_generated_sets_are_the_same() {
        let config = PerspectivesConfig {
            users: 60,
            items: 200,
            seed: 3,
        };
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("set");
        write(&config, &out).unwrap();
        let read = Dataset::open(&out, &LoadOptions::default()).unwrap();
        let mut made = generate(&config).unwrap();
        made.name = "set".to_owned();
        assert_eq!(read, made);
        assert!(matches!(write(&config, &out), Err(Error::Io { .. })));
        let small = PerspectivesConfig {
            users: 10,
            ..config
        };
        assert!(matches!(generate(&small), Err(Error::Config { .. })));
    }

    #[test]
    fn new_items_are_rare_in_training_and_sought_in_test() {
        let data = generate(&PerspectivesConfig::default()).unwrap();
        let counts = data.popularity();
        let few = counts.iter().filter(|&&c| c <= 2).count();
        assert!((60..150).contains(&few), "{few}");
        let tests: Vec<u32> = data
            .interactions
            .iter()
            .filter(|r| r.split == Split::Test)
            .map(|r| r.item)
            .collect();
        let cold = tests.iter().filter(|&&i| counts[i as usize] <= 2).count();
        let share = cold as f64 / tests.len() as f64;
        assert!((0.2..0.5).contains(&share), "{share}");
        // Nobody meets an item twice.
        for user in 0..data.num_users() as u32 {
            let mut items: Vec<u32> = data.user_rows(user).iter().map(|r| r.item).collect();
            items.sort_unstable();
            items.dedup();
            assert_eq!(items.len(), data.user_rows(user).len());
        }
    }

    #[test]
    fn whitened_content_shows_the_groups_and_raw_cosines_do_not() {
        use crate::dprec::features::{Recipe, Transform};
        use crate::knn::cosine_neighbors;
        let data = generate(&PerspectivesConfig::default()).unwrap();
        let group = &data.attributes[0].values;
        let f = &data.features[1];
        let dev = candle_core::Device::Cpu;
        let agree = |t: &Transform| {
            let x = t.apply(&f.values, &f.present, &dev).unwrap();
            let neighbors = cosine_neighbors(&x, 5).unwrap();
            let hits = (neighbors.iter().enumerate())
                .flat_map(|(i, list)| list.iter().map(move |&j| group[i] == group[j as usize]));
            hits.clone().filter(|h| *h).count() as f64 / hits.count() as f64
        };
        let recipe = Recipe {
            remove: 2,
            keep: 256,
            seed: 1,
        };
        let whitened = Transform::fit(&f.values, &vec![true; 500], recipe).unwrap();
        let (raw, white) = (agree(&Transform::unit_rows(WIDTH)), agree(&whitened));
        assert!(white > 0.3 && white > 1.3 * raw, "{raw} {white}");
    }
}
