//! The planted shop: repeatable, written as it is generated, and as hard as it claims.

use tercet_models::Error;
use tercet_models::baseline::ease::{Ease, EaseConfig};
use tercet_models::baseline::popularity::Popularity;
use tercet_models::data::synthetic::{Shop, SyntheticConfig, generate, write};
use tercet_models::data::{Dataset, FitOn, LoadOptions, Split};
use tercet_models::eval::{EvalProtocol, EvalQuery, EvalReport, Scorer, evaluate};

fn small() -> SyntheticConfig {
    SyntheticConfig {
        users: 60,
        items: 120,
        events_per_user: 10,
        seed: 3,
    }
}

#[test]
fn written_and_generated_shops_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("shop");
    write(&small(), &out).unwrap();
    let read = Dataset::open(&out, &LoadOptions::default()).unwrap();
    let mut made = generate(&small()).unwrap();
    made.name = "shop".to_owned();
    assert_eq!(read, made);
    assert!(matches!(write(&small(), &out), Err(Error::Io { .. })));

    let other = generate(&SyntheticConfig { seed: 4, ..small() }).unwrap();
    assert_ne!(other.interactions, made.interactions);
}

#[test]
fn sizes_out_of_range_are_refused() {
    for config in [
        SyntheticConfig {
            items: 99,
            ..small()
        },
        SyntheticConfig {
            users: 0,
            ..small()
        },
        SyntheticConfig {
            events_per_user: 5,
            ..small()
        },
        SyntheticConfig {
            events_per_user: 61,
            ..small()
        },
    ] {
        assert!(matches!(generate(&config), Err(Error::Config { .. })));
    }
}

#[test]
fn cold_items_are_test_answers_only() {
    let config = SyntheticConfig::default();
    let data = generate(&config).unwrap();
    let shop = Shop::new(&config).unwrap();
    let cold = (0..800).filter(|&i| shop.is_cold(i)).count();
    assert!((20..=60).contains(&cold), "{cold}");
    assert!(
        data.interactions
            .iter()
            .all(|r| r.split == Split::Test || !shop.is_cold(r.item))
    );
    let tests: Vec<_> = data
        .interactions
        .iter()
        .filter(|r| r.split == Split::Test)
        .collect();
    assert_eq!(tests.len(), config.users);
    let share = tests.iter().filter(|r| shop.is_cold(r.item)).count() as f64 / tests.len() as f64;
    assert!((0.06..0.2).contains(&share), "{share}");
    // A user meets an item once.
    for user in 0..config.users as u32 {
        let mut items: Vec<u32> = data.user_rows(user).iter().map(|r| r.item).collect();
        items.sort_unstable();
        items.dedup();
        assert_eq!(items.len(), data.user_rows(user).len());
    }
}

/// Knows the chosen hidden traits of items and guesses the user's favourites from the history: the
/// traits that occur most often, weighted as the shop plants them.
struct Reader<'a> {
    shop: &'a Shop,
    items: usize,
    reads: [bool; 3],
}

impl Reader<'_> {
    fn traits(&self, item: u32) -> [usize; 3] {
        let t = self.shop.traits(item);
        [t.style.into(), t.kind.into(), t.circle.into()]
    }
}

impl Scorer for Reader<'_> {
    fn num_items(&self) -> usize {
        self.items
    }

    fn score(&self, queries: &[EvalQuery], out: &mut [f32]) -> Result<(), Error> {
        for (query, row) in queries.iter().zip(out.chunks_mut(self.items)) {
            let mut seen = [[0f32; 12]; 3];
            for event in &query.history {
                for (table, t) in seen.iter_mut().zip(self.traits(event.item)) {
                    table[t] += 1.0;
                }
            }
            for (item, score) in row.iter_mut().enumerate() {
                *score = (0..3)
                    .filter(|&m| self.reads[m])
                    .map(|m| seen[m][self.traits(item as u32)[m]] / query.history.len() as f32)
                    .sum();
            }
        }
        Ok(())
    }
}

#[test]
fn each_trait_carries_its_share() {
    let config = SyntheticConfig::default();
    let data = generate(&config).unwrap();
    let shop = Shop::new(&config).unwrap();
    let protocol = EvalProtocol {
        slices: true,
        ..EvalProtocol::default()
    };
    let run = |scorer: &dyn Scorer| -> EvalReport { evaluate(scorer, &data, &protocol).unwrap() };
    let at = |r: &EvalReport, k: &str| r.metric(k).unwrap();

    let popularity = run(&Popularity::fit(&data, FitOn::Train));
    let ease = run(&Ease::fit(&data, &EaseConfig::default()).unwrap());
    let read = |reads: [bool; 3]| {
        run(&Reader {
            shop: &shop,
            items: config.items,
            reads,
        })
    };
    let all = read([true; 3]);
    println!(
        "popularity {:.3} {:.3}",
        at(&popularity, "recall@20"),
        at(&popularity, "ndcg@20")
    );
    println!(
        "ease {:.3} {:.3}",
        at(&ease, "recall@20"),
        at(&ease, "ndcg@20")
    );
    println!(
        "all three {:.3} {:.3}",
        at(&all, "recall@20"),
        at(&all, "ndcg@20")
    );
    assert!(at(&all, "recall@20") > 8.0 * at(&popularity, "recall@20"));
    assert!(at(&all, "recall@20") > at(&ease, "recall@20"));
    let mut lost = Vec::new();
    for m in 0..3 {
        let mut one = [false; 3];
        one[m] = true;
        let mut two = [true; 3];
        two[m] = false;
        let (one, two) = (read(one), read(two));
        println!(
            "only {m}: {:.3} {:.3}, without {m}: {:.3} {:.3}",
            at(&one, "recall@20"),
            at(&one, "ndcg@20"),
            at(&two, "recall@20"),
            at(&two, "ndcg@20"),
        );
        assert!(at(&two, "ndcg@20") < 0.85 * at(&all, "ndcg@20"));
        assert!(at(&one, "ndcg@20") < at(&two, "ndcg@20"));
        lost.push(at(&all, "ndcg@20") - at(&two, "ndcg@20"));
    }
    let (least, most) = (
        lost.iter().copied().fold(1.0, f64::min),
        lost.iter().copied().fold(0.0, f64::max),
    );
    assert!(most < 2.5 * least, "{lost:?}");
    // Without features cold items cannot be found.
    let cold = |r: &EvalReport| r.slices["items:cold"].metrics["recall@20"];
    println!("cold: ease {:.3}, all three {:.3}", cold(&ease), cold(&all));
    assert!(cold(&ease) < 0.02 && cold(&all) > 0.5);
}
