//! One list for several users of a device: a household, a group in front of one screen.

use crate::blend::{check_weight, deviation};
use crate::error::{Error, Result};
use crate::explain::{Evidence, describe};
use crate::id::Row;
use crate::ranking::rank;
use crate::recommendation::{Query, Recommendation};
use crate::search::{Popular, Scores};
use crate::session::Session;
use crate::table::{Metric, Scorer};

/// Most sessions in one household.
const MAX_MEMBERS: usize = 64;

/// How the members' opinions of an item become one.
///
/// Users score on different scales, so each member's scores are standardized first:
/// z = (score − mean) / σ, over 1024 evenly spaced rows of the table. The score of the list is
/// in these units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Together {
    /// The weighted mean of the members' z: what pleases most in sum.
    #[default]
    Average,
    /// The smallest z of any member with a weight above 0: what nobody dislikes.
    LeastMisery,
}

/// The best items for several sessions of one bundle, each with a weight.
///
/// Items that any member has met are left out, unless the query includes seen ones; calibrated
/// caps count the events of all. Members of whom nothing is known take part with the tower's
/// prior; in a bundle without user tower, popularity ranks if nothing is known of anybody.
/// [`Because::member`](crate::Because::member) tells whose history it was. Items that a session
/// has [added](Session::add_item) are its own: they shape its user vector and are not shown to all.
///
/// # Errors
/// As [`Session::recommend`]; [`Error::InvalidArgument`] for none or more than 64 members, for
/// sessions of different bundles, and for weights that are negative, above 100 or all 0.
pub fn recommend_together(
    members: &mut [(&mut Session, f32)],
    rule: Together,
    query: &Query,
) -> Result<Vec<Recommendation>> {
    if members.is_empty() || members.len() > MAX_MEMBERS {
        return Err(Error::argument(format!(
            "a household of {}, accepted are 1 to {MAX_MEMBERS} members",
            members.len()
        )));
    }
    let bundle = members[0].0.bundle().clone();
    let mut total = 0.0;
    for (session, weight) in members.iter() {
        if !session.bundle().same(&bundle) {
            return Err(Error::argument(
                "the sessions of a household use different bundles",
            ));
        }
        check_weight("a member", *weight)?;
        if *weight < 0.0 {
            return Err(Error::argument("the weight of a member is negative"));
        }
        total += weight;
    }
    if total <= 0.0 {
        return Err(Error::argument("no member has a weight above 0"));
    }
    let table = bundle.table();
    let modalities = &bundle.manifest().modalities;
    let in_bundle = |row: &Row| (*row as usize) < table.len();
    let mut exclude = Vec::new();
    let mut history = Vec::new();
    for (session, _) in members.iter() {
        exclude.extend(session.excluded(query)?);
        history.extend(session.rows().filter(in_bundle));
    }
    if members
        .iter()
        .all(|(session, _)| session.ranks_by_popularity())
    {
        let mut scores = Popular(table.popularity().unwrap_or_default());
        let best = rank(table, &mut scores, query, &exclude, &history)?;
        let nobody: &[Evidence] = &[];
        return describe(table, modalities, &best, query.explain.then_some(nobody));
    }
    let mut vectors = Vec::new();
    for (session, weight) in members.iter_mut() {
        vectors.push((session.user_vector()?.to_vec(), *weight / total));
    }
    let mut group = Group {
        rule,
        members: Vec::new(),
        buffer: Vec::new(),
    };
    for (vector, weight) in &vectors {
        let mut scorer = Scorer::new(table, Metric::Score, vector)?;
        let sample = scorer.sample(table)?;
        group.members.push(Member {
            scorer,
            mean: mean(&sample),
            scale: deviation(&sample).recip(),
            weight: *weight,
        });
    }
    let best = rank(table, &mut group, query, &exclude, &history)?;
    let mut evidence = Vec::new();
    if query.explain {
        for (i, (session, _)) in members.iter_mut().enumerate() {
            let member = &group.members[i];
            let weight = match rule {
                Together::Average => member.weight,
                Together::LeastMisery => f32::from(u8::from(member.weight > 0.0)),
            };
            let mut parts = session.evidence()?;
            parts.retain(|(row, _)| in_bundle(row));
            evidence.push(Evidence {
                member: i,
                factor: weight * member.scale,
                parts,
            });
        }
    }
    describe(table, modalities, &best, query.explain.then_some(&evidence))
}

fn mean(sample: &[f32]) -> f32 {
    let finite = || {
        sample
            .iter()
            .filter(|s| s.is_finite())
            .map(|&s| f64::from(s))
    };
    (finite().sum::<f64>() / finite().count().max(1) as f64) as f32
}

struct Member<'a> {
    scorer: Scorer<'a>,
    mean: f32,
    /// 1 / σ.
    scale: f32,
    /// Of a sum of 1.
    weight: f32,
}

struct Group<'a> {
    rule: Together,
    members: Vec<Member<'a>>,
    buffer: Vec<f32>,
}

impl Group<'_> {
    fn start(&self) -> f32 {
        match self.rule {
            Together::Average => 0.0,
            Together::LeastMisery => f32::INFINITY,
        }
    }
}

fn join(rule: Together, all: &mut f32, z: f32, weight: f32) {
    match rule {
        Together::Average => *all += weight * z,
        Together::LeastMisery if weight > 0.0 => *all = all.min(z),
        Together::LeastMisery => {}
    }
}

impl Scores for Group<'_> {
    fn block(&mut self, first: usize, scores: &mut [f32]) {
        scores.fill(self.start());
        self.buffer.resize(scores.len(), 0.0);
        for m in &mut self.members {
            m.scorer.block(first, &mut self.buffer);
            for (all, s) in scores.iter_mut().zip(&self.buffer) {
                join(self.rule, all, (s - m.mean) * m.scale, m.weight);
            }
        }
    }

    fn finalists(&self, k: usize) -> Option<usize> {
        self.members
            .iter()
            .filter_map(|m| m.scorer.finalists(k))
            .max()
    }

    fn exact(&mut self, row: Row) -> Result<f32> {
        let mut all = self.start();
        for m in &mut self.members {
            let z = (m.scorer.exact(row)? - m.mean) * m.scale;
            join(self.rule, &mut all, z, m.weight);
        }
        Ok(all)
    }
}
