//! Training sequences of models that predict the next item.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{Dataset, HistoryEvent, Split};
use crate::error::{Error, Result};
use crate::rng::{self, Purpose};

/// Which parts of a long sequence are trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Windows {
    /// The newest window of each user, as the published programs do.
    Last,
    /// Consecutive windows back to the first event; each event is predicted once.
    #[default]
    All,
}

/// The training events of each user, oldest first (file order where the data has none), of users
/// with at least `least` events in train, valid and test together and two in train.
pub fn training_sequences(data: &Dataset, least: usize) -> Vec<Vec<HistoryEvent>> {
    (0..data.num_users() as u32)
        .filter(|&u| data.user_rows(u).len() >= least)
        .map(|u| data.history(u, Split::Valid))
        .filter(|s| s.len() >= 2)
        .collect()
}

/// Windows of at most `inputs + 1` events, newest first: all but the last event of a window are
/// inputs, all but the first are to be predicted. Neighbours share one event.
pub fn windows<E>(sequence: &[E], inputs: usize, which: Windows) -> Vec<&[E]> {
    let mut out = Vec::new();
    let mut end = sequence.len();
    while end >= 2 && inputs > 0 {
        out.push(&sequence[end.saturating_sub(inputs + 1)..end]);
        if which == Windows::Last {
            break;
        }
        end = end.saturating_sub(inputs);
    }
    out
}

/// The newest `inputs` events of a history: what a model with that window sees of it.
pub fn newest<E>(history: &[E], inputs: usize) -> &[E] {
    &history[history.len().saturating_sub(inputs)..]
}

/// Training sequences, of events or of items alone, and how they are cut into windows.
#[derive(Debug, Clone)]
pub struct TrainingWindows<E = u32> {
    /// Training events of each user, oldest first.
    pub sequences: Vec<Vec<E>>,
    /// Most input events of a window.
    pub inputs: usize,
    /// Which parts of long sequences are trained on.
    pub which: Windows,
    /// Whether every epoch draws an order of its own of each user's events: for data whose events have none,
    /// where a fixed order would be learnt by heart.
    pub shuffled: bool,
}

impl TrainingWindows<HistoryEvent> {
    /// The [`training_sequences`] of `data`, cut into windows; shuffled as `shuffle` says or, with `None`, where
    /// the data has no order.
    ///
    /// # Errors
    /// No user has two training events.
    pub fn new(
        data: &Dataset,
        least: usize,
        inputs: usize,
        which: Windows,
        shuffle: Option<bool>,
    ) -> Result<Self> {
        let sequences = training_sequences(data, least);
        if sequences.is_empty() {
            return Err(Error::config(
                "models of the next item need users with at least two training events",
            ));
        }
        Ok(Self {
            sequences,
            inputs,
            which,
            shuffled: shuffle.unwrap_or(!data.ordered),
        })
    }

    /// The same, of items alone.
    pub fn of_items(self) -> TrainingWindows {
        let items = |s: Vec<HistoryEvent>| s.into_iter().map(|e| e.item).collect();
        TrainingWindows {
            sequences: self.sequences.into_iter().map(items).collect(),
            inputs: self.inputs,
            which: self.which,
            shuffled: self.shuffled,
        }
    }
}

impl<E: Clone> TrainingWindows<E> {
    /// The sequences as an epoch sees them.
    pub fn of_epoch(&self, seed: u64, epoch: u64) -> Cow<'_, [Vec<E>]> {
        if !self.shuffled {
            return Cow::Borrowed(&self.sequences);
        }
        let mut r = rng::stream(seed, Purpose::History, &[epoch]);
        let mut out = self.sequences.clone();
        out.iter_mut().for_each(|s| rng::shuffle(&mut r, s));
        Cow::Owned(out)
    }

    /// The windows of all sequences.
    pub fn cut<'a>(&self, sequences: &'a [Vec<E>]) -> Vec<&'a [E]> {
        let windows = |s: &'a Vec<E>| windows(s, self.inputs, self.which);
        sequences.iter().flat_map(windows).collect()
    }

    /// Windows in an epoch.
    pub fn number(&self) -> usize {
        self.cut(&self.sequences).len()
    }
}

impl TrainingWindows {
    /// How often each of `items` items occurs in the windows of an epoch, an event that two of them share
    /// once: the expected number where epochs draw an order.
    pub fn counts(&self, items: usize) -> Vec<f64> {
        let mut counts = vec![0.0; items];
        for s in &self.sequences {
            let newest = match self.which {
                Windows::Last => newest(s, self.inputs + 1),
                Windows::All => s,
            };
            let (covered, share) = if self.shuffled {
                (s.as_slice(), newest.len() as f64 / s.len().max(1) as f64)
            } else {
                (newest, 1.0)
            };
            covered.iter().for_each(|&i| counts[i as usize] += share);
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{IdMap, Interaction, split};
    use crate::eval::{EvalProtocol, queries};

    fn one_user(n: u32) -> Result<Dataset> {
        let mut rows: Vec<Interaction> = (1..=n)
            .map(|item| Interaction {
                user: 0,
                item,
                behavior: 0,
                split: Split::Train,
                time: i64::from(item),
                value: 1.0,
            })
            .collect();
        split::assign(&mut rows, true, None, 0);
        let items = IdMap::new((0..=n).map(|i| i.to_string()))?;
        Dataset::new(
            "one",
            IdMap::new(["u"])?,
            items,
            vec!["any".into()],
            rows,
            true,
        )
    }

    /// Inputs and target of a published split with 12 inputs, by way of the evaluator.
    fn query(data: &Dataset, split: Split) -> Result<Vec<u32>> {
        let protocol = EvalProtocol {
            split,
            ..EvalProtocol::default()
        };
        let q = queries(data, &protocol)?.remove(0);
        let history: Vec<u32> = q.history.iter().map(|e| e.item).collect();
        Ok([newest(&history, 12), &q.targets].concat())
    }

    /// Oracle 9.4 of the ODMT specification: keeping the last 15 events and cutting them is the
    /// same as cutting windows out of the whole sequence.
    #[test]
    fn published_splits_come_out() -> Result<()> {
        let long = one_user(20)?;
        let items = |s: &[HistoryEvent]| s.iter().map(|e| e.item).collect::<Vec<u32>>();
        let train = items(&training_sequences(&long, 5)[0]);
        let last = windows(&train, 12, Windows::Last);
        assert_eq!(last, [(6..=18).collect::<Vec<u32>>()]);
        assert_eq!(query(&long, Split::Valid)?, (7..=19).collect::<Vec<u32>>());
        assert_eq!(query(&long, Split::Test)?, (8..=20).collect::<Vec<u32>>());

        let short = one_user(5)?;
        assert_eq!(items(&training_sequences(&short, 5)[0]), [1, 2, 3]);
        assert_eq!(query(&short, Split::Valid)?, [1, 2, 3, 4]);
        assert_eq!(query(&short, Split::Test)?, [1, 2, 3, 4, 5]);
        assert!(training_sequences(&short, 6).is_empty());
        Ok(())
    }

    #[test]
    fn windows_predict_each_event_once() {
        let s: Vec<u32> = (0..10).collect();
        let all = windows(&s, 3, Windows::All);
        assert_eq!(all, [&[6, 7, 8, 9][..], &[3, 4, 5, 6], &[0, 1, 2, 3]]);
        let mut predicted: Vec<u32> = all.iter().flat_map(|w| w[1..].to_vec()).collect();
        predicted.sort_unstable();
        assert_eq!(predicted, s[1..]);
        assert_eq!(windows(&s[..2], 3, Windows::All), [&[0, 1]]);
        assert!(windows(&s[..1], 3, Windows::All).is_empty());
        let of = |which, shuffled| TrainingWindows {
            sequences: vec![s.clone(), vec![9, 9]],
            inputs: 3,
            which,
            shuffled,
        };
        assert_eq!(of(Windows::All, false).number(), 4);
        assert_eq!(of(Windows::Last, true).number(), 2);
        let mut counts = [1.0; 10];
        counts[9] = 3.0;
        assert_eq!(of(Windows::All, false).counts(10), counts);
        assert_eq!(of(Windows::All, true).counts(10), counts);
        let counts = [0., 0., 0., 0., 0., 0., 1., 1., 1., 3.];
        assert_eq!(of(Windows::Last, false).counts(10), counts);
        let mut counts = [0.4; 10];
        counts[9] = 2.4;
        assert_eq!(of(Windows::Last, true).counts(10), counts);
    }

    #[test]
    fn shuffling_keeps_events_and_differs_by_epoch() {
        let mut w = TrainingWindows {
            sequences: vec![(0..20).collect(), vec![7, 7, 3]],
            inputs: 5,
            which: Windows::All,
            shuffled: true,
        };
        let [a, b] = [0, 1].map(|epoch| w.of_epoch(1, epoch).into_owned());
        assert_eq!(a, w.of_epoch(1, 0).into_owned());
        assert_ne!(a, b);
        for mut drawn in [a, b] {
            drawn.iter_mut().for_each(|s| s.sort_unstable());
            assert_eq!(drawn, [w.sequences[0].clone(), vec![3, 7, 7]]);
        }
        w.shuffled = false;
        assert_eq!(*w.of_epoch(1, 1), w.sequences);
    }

    #[test]
    fn only_data_without_an_order_is_shuffled_unless_told_so() -> Result<()> {
        let mut data = one_user(5)?;
        for (ordered, told, shuffled) in [
            (false, None, true),
            (true, None, false),
            (true, Some(true), true),
            (false, Some(false), false),
        ] {
            data.ordered = ordered;
            let w = TrainingWindows::new(&data, 2, 3, Windows::All, told)?;
            assert_eq!(w.shuffled, shuffled);
        }
        let nobody = one_user(3)?;
        assert!(TrainingWindows::new(&nobody, 2, 3, Windows::All, None).is_err());
        Ok(())
    }
}
