//! Splits that Tercet makes itself where a data set has none.
//!
//! All of them are functions of the rows, the seed and the user's key order alone: the same folder
//! and seed give the same split on every machine.

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::{Interaction, Split};

/// Fewest distinct rows a user needs before one of them is held out.
pub const MIN_ROWS: usize = 3;

/// Splits rows sorted by user (and time, if `ordered`).
///
/// Ordered: the last event of each user with at least [`MIN_ROWS`] target rows is test and the one
/// before valid. Unordered: each user's target rows are cut 80/10/10 at random, at least one row in
/// test and in valid from [`MIN_ROWS`] rows on. Where `target` is set, only its rows are held out, and
/// every other row of a held-out (user, item) pair moves along, so that the answer is not visible in
/// another behaviour.
pub fn assign(rows: &mut [Interaction], ordered: bool, target: Option<u8>, seed: u64) {
    for_each_user(rows, |user, rows| {
        for row in rows.iter_mut() {
            row.split = Split::Train;
        }
        let mut candidates = candidates(rows, target);
        if candidates.len() < MIN_ROWS {
            return;
        }
        if ordered {
            let last = candidates.len() - 1;
            hold_out(rows, candidates[last], Split::Test, target);
            // The row before may be another event of the same pair; take the last one still in train.
            if let Some(&at) = candidates[..last]
                .iter()
                .rev()
                .find(|&&at| rows[at].split == Split::Train)
            {
                hold_out(rows, at, Split::Valid, target);
            }
        } else {
            candidates.shuffle(&mut user_rng(seed, user));
            let share = share(candidates.len());
            for &at in &candidates[..share] {
                hold_out(rows, at, Split::Test, target);
            }
            for &at in &candidates[share..2 * share] {
                if rows[at].split == Split::Train {
                    hold_out(rows, at, Split::Valid, target);
                }
            }
        }
    });
}

/// Moves part of each user's training rows to valid: the last one if `ordered` and there are two, else
/// a random tenth from users with at least [`MIN_ROWS`] target rows in train. Rows of the same (user, item) pair
/// move along where `target` is set.
pub fn hold_out_valid(rows: &mut [Interaction], ordered: bool, target: Option<u8>, seed: u64) {
    for_each_user(rows, |user, rows| {
        let mut candidates = candidates(rows, target);
        if candidates.len() < if ordered { 2 } else { MIN_ROWS } {
            return;
        }
        if ordered {
            let last = candidates[candidates.len() - 1];
            hold_out(rows, last, Split::Valid, target);
        } else {
            candidates.shuffle(&mut user_rng(seed, user));
            for &at in &candidates[..share(candidates.len())] {
                hold_out(rows, at, Split::Valid, target);
            }
        }
    });
}

/// A tenth, rounded down, but at least one.
fn share(rows: usize) -> usize {
    (rows / 10).max(1)
}

fn candidates(rows: &[Interaction], target: Option<u8>) -> Vec<usize> {
    (0..rows.len())
        .filter(|&at| {
            rows[at].split == Split::Train && target.is_none_or(|t| t == rows[at].behavior)
        })
        .collect()
}

fn hold_out(rows: &mut [Interaction], at: usize, split: Split, target: Option<u8>) {
    rows[at].split = split;
    if target.is_some() {
        let item = rows[at].item;
        for row in rows.iter_mut() {
            if row.item == item && row.split == Split::Train {
                row.split = split;
            }
        }
    }
}

fn for_each_user(rows: &mut [Interaction], mut f: impl FnMut(u32, &mut [Interaction])) {
    for chunk in rows.chunk_by_mut(|a, b| a.user == b.user) {
        f(chunk[0].user, chunk);
    }
}

/// A generator of its own for each user, so that results don't depend on the order of work.
pub(crate) fn user_rng(seed: u64, user: u32) -> Xoshiro256PlusPlus {
    let mut mixer = Xoshiro256PlusPlus::seed_from_u64(seed);
    let salt: u64 = mixer.random();
    Xoshiro256PlusPlus::seed_from_u64(
        salt ^ (u64::from(user) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(counts: &[usize]) -> Vec<Interaction> {
        let mut out = Vec::new();
        for (user, &count) in counts.iter().enumerate() {
            for at in 0..count {
                out.push(Interaction {
                    user: user as u32,
                    item: at as u32,
                    behavior: 1 + (at % 2) as u8,
                    split: Split::Train,
                    time: at as i64,
                    value: 1.0,
                });
            }
        }
        out
    }

    fn count(rows: &[Interaction], user: u32, split: Split) -> usize {
        rows.iter()
            .filter(|r| r.user == user && r.split == split)
            .count()
    }

    #[test]
    fn ordered_split_leaves_the_last_two_out() {
        let mut rows = rows(&[5, 2, 3]);
        assign(&mut rows, true, None, 0);
        assert_eq!(rows[4].split, Split::Test);
        assert_eq!(rows[3].split, Split::Valid);
        assert_eq!(count(&rows, 0, Split::Train), 3);
        assert_eq!(count(&rows, 1, Split::Train), 2);
        assert_eq!(count(&rows, 2, Split::Train), 1);
    }

    #[test]
    fn random_split_has_tenths_and_depends_on_the_seed_only() {
        let mut a = rows(&[40, 3, 1]);
        let mut b = a.clone();
        let mut c = a.clone();
        assign(&mut a, false, None, 7);
        assign(&mut b, false, None, 7);
        assign(&mut c, false, None, 8);
        assert_eq!(a, b);
        assert_ne!(a, c);
        assert_eq!(count(&a, 0, Split::Test), 4);
        assert_eq!(count(&a, 0, Split::Valid), 4);
        assert_eq!(count(&a, 1, Split::Test), 1);
        assert_eq!(count(&a, 1, Split::Valid), 1);
        assert_eq!(count(&a, 2, Split::Train), 1);
    }

    #[test]
    fn a_held_out_pair_is_hidden_in_every_behaviour() {
        let mut rows = rows(&[8]);
        // Items 5 and 6 also occur earlier, in the other behaviour.
        rows[0].item = 5;
        rows[1].item = 6;
        hold_out_valid(&mut rows, true, Some(1), 0);
        // Behaviour 1 is on even positions; the last is position 6, item 6.
        assert_eq!(rows[6].split, Split::Valid);
        assert_eq!(rows[1].split, Split::Valid);
        assert_eq!(count(&rows, 0, Split::Valid), 2);
    }
}
