use super::*;
use crate::data::synthetic::{SyntheticConfig, generate};
use crate::data::{Split, TokenFeatures};
use crate::eval::{Candidates, EvalProtocol, EvalQuery, Scorer, evaluate, queries};
use crate::train::Monitor;
use config::{Cross, Scope, Scoring, SoftTokens};

const DEV: Device = Device::Cpu;

fn shop() -> Result<Dataset> {
    generate(&SyntheticConfig {
        users: 60,
        items: 100,
        events_per_user: 8,
        seed: 4,
    })
}

fn small() -> TmfConfig {
    TmfConfig {
        llm_dim: 32,
        llm_layers: 1,
        llm_vocabulary: 320,
        dim: 16,
        heads: 2,
        graph_dim: 8,
        graph_epochs: 1,
        window: 4,
        sequence_window: 5,
        candidates: 4,
        title_tokens: 5,
        warmup_steps: 2,
        examples: 8,
        batch: 4,
        sequences: 8,
        sequence_batch: 8,
        negatives: 20,
        ..TmfConfig::default()
    }
}

/// Oracle T7: a loss over positions 1 and 2 alone, and scores of positions 0 and 1.
#[test]
fn answers_loss_matches_oracle() -> Result<()> {
    let logits = Tensor::new(&[[1f32, 0., 0.], [0., 2., 0.], [0., 0., 1.]], &DEV)?;
    let picked = logits.narrow(0, 1, 2)?;
    let targets = vec![vec![(1, 0.5)], vec![(2, 0.5)]];
    let loss = ops::softmax_cross_entropy(&picked, targets, vec![Vec::new(); 2])?;
    assert!((scalar(&loss)? * 2.0 - 0.395_495).abs() < 1e-5);
    let logs = candle_nn::ops::log_softmax(&logits, 1)?.to_vec2::<f32>()?;
    let sum = f64::from(logs[0][0]) + f64::from(logs[1][1]);
    assert!((sum + 0.790_989).abs() < 1e-5 && (sum / 2.0 + 0.395_495).abs() < 1e-5);
    Ok(())
}

/// A model that has seen its stages, small as they are.
fn trained(data: &Dataset, cfg: TmfConfig) -> Result<Tmf<'_>> {
    let mut model = Tmf::new(data, cfg, 3, 1, &DEV)?;
    for epoch in 0..2 {
        let losses = model.train_epoch(epoch, &mut Monitor::silent())?;
        assert!(losses.iter().all(|(_, x)| x.is_finite()), "{losses:?}");
    }
    Ok(model)
}

fn scorer(model: &Tmf<'_>, change: impl FnOnce(&mut TmfConfig)) -> Result<TmfScorer> {
    let mut cfg = model.net.cfg.clone();
    change(&mut cfg);
    Tmf::scorer(&model.inference()?, model.data, cfg, &DEV)
}

fn some_queries(data: &Dataset) -> Result<Vec<EvalQuery>> {
    let protocol = EvalProtocol {
        max_users: Some(6),
        ..EvalProtocol::default()
    };
    queries(data, &protocol)
}

/// Every variable of the net learns, and every soft token of a prompt is heard.
#[test]
fn every_variable_gets_a_gradient() -> Result<()> {
    let data = shop()?;
    for soft_tokens in [SoftTokens::Pooled, SoftTokens::Each] {
        let cfg = TmfConfig {
            soft_tokens,
            ..small()
        };
        let model = trained(&data, cfg)?;
        let negatives: Vec<u32> = (0..20).collect();
        let mut noise = rng::stream(1, Purpose::Dropout, &[]);
        let mut means = Means::default();
        let mut grads = TensorMap::new();
        for level in [Level::Words, Level::Both, Level::Tokens] {
            for group in model.questions(1, 0..3, None, level)? {
                let part = model.ask(&group, level, 1.0, &negatives, &mut noise, &mut means)?;
                add_gradients(&mut grads, part)?;
            }
        }
        let params = model.net.params.iter().chain(model.net.llm_params.iter());
        for (name, _) in params {
            assert!(grads.contains_key(name), "{name} has no gradient");
        }

        let question = model
            .questions(1, 0..1, None, Level::Tokens)?
            .remove(0)
            .remove(0);
        let history = question.example.history.clone();
        let mut batch = model
            .net
            .batch(&[&history], &question.example.shelf, None)?;
        let soft = candle_core::Var::from_tensor(&batch.soft.tokens.detach())?;
        let rows = soft.dim(0)?;
        batch.soft.tokens = soft.as_tensor().clone();
        let (loss, _, _) = model.answer_loss(&[question], Some(&batch), false, &mut noise)?;
        let grads = loss.backward()?;
        let g = grads.get(&soft).expect("gradient").abs()?.sum(1)?;
        let heard = g.to_vec1::<f32>()?;
        assert_eq!(heard.len(), rows);
        assert!(heard.iter().all(|x| *x > 0.0), "{heard:?}");
    }
    Ok(())
}

/// Oracle T13: candidates continued from one prefix score as when each is computed anew, whatever
/// shares their pass.
#[test]
fn shared_prefixes_score_as_whole_prompts() -> Result<()> {
    let data = shop()?;
    let model = trained(&data, small())?;
    let s = scorer(&model, |c| c.scoring = Scoring::Likelihood)?;
    let queries = some_queries(&data)?;
    let histories: Vec<&[HistoryEvent]> = queries
        .iter()
        .map(|q| &q.history[q.history.len().saturating_sub(4)..])
        .collect();
    let shelves: Vec<Vec<u32>> = (0..queries.len() as u32)
        .map(|q| vec![q, q + 20, q + 40])
        .collect();
    let vectors = s.queries(&histories)?;
    let together = s.by_titles(&histories, Some(&vectors), &shelves)?;
    let fits = Net::fits(&vectors, &s.vectors, &shelves, |i| i)?;
    for q in 0..queries.len() {
        let mut prompt = s.net.phrases.log(histories[q], Level::Tokens);
        let phrases = &s.net.phrases;
        phrases.ask(&mut prompt, &shelves[q], &fits[q], Level::Tokens, false);
        let soft = s.net.soft_of_all(&s.tokens, &[histories[q]])?;
        let (answers, _) = phrases.answers(&s.net.llm, &shelves[q])?;
        for (answer, got) in answers.iter().zip(&together[q]) {
            let input = &answer[..answer.len() - 1];
            let prompts = std::slice::from_ref(&prompt);
            let (embeds, segments) = s.net.embed(prompts, &[input], Some(&soft))?;
            let decoder = &s.net.llm.decoder;
            let (hidden, _) = decoder.forward(&embeds, &segments, None, None)?;
            let first = prompt.symbols.len() - 1;
            let rows = hidden.narrow(0, first, answer.len())?;
            let logs = candle_nn::ops::log_softmax(&decoder.logits(&rows)?, 1)?;
            let logs = logs.to_vec2::<f32>()?;
            let sum: f64 = answer
                .iter()
                .zip(logs)
                .map(|(&t, row)| f64::from(row[t as usize]))
                .sum();
            assert!((sum / answer.len() as f64 - got).abs() < 1e-3);
        }
    }
    Ok(())
}

/// Every way of scoring gives answers, trie answers always name a candidate, and the metrics of
/// answers fit together.
#[test]
fn every_way_of_scoring_is_evaluated() -> Result<()> {
    let data = shop()?;
    let model = trained(&data, small())?;
    let protocol = EvalProtocol {
        split: Split::Valid,
        ks: vec![1, 3],
        candidates: Candidates::Sampled { n: 3, seed: 0 },
        max_users: Some(8),
        ..EvalProtocol::default()
    };
    for scoring in [
        Scoring::Vector,
        Scoring::Likelihood,
        Scoring::Label,
        Scoring::Free,
        Scoring::Trie,
    ] {
        let s = scorer(&model, |c| c.scoring = scoring)?;
        let m = evaluate(&s, &data, &protocol)?.metrics;
        match scoring {
            Scoring::Vector => assert!(!m.contains_key("valid@1")),
            Scoring::Free => {
                let all = m["hit_valid@1"] * m["valid@1"];
                assert!((m["hit@1"] - all).abs() < 1e-9, "{m:?}");
            }
            _ => assert_eq!(m["valid@1"], 1.0, "{scoring:?}"),
        }
        if scoring != Scoring::Vector {
            let full = EvalProtocol {
                candidates: Candidates::Full,
                ..protocol.clone()
            };
            let refused = evaluate(&s, &data, &full).map(drop).unwrap_err();
            assert!(refused.to_string().contains("sampled"), "{refused}");
        }
    }
    Ok(())
}

/// Vectors of a query do not depend on what else is asked, and a saved model scores as before.
#[test]
fn readings_of_the_paper_train_and_score() -> Result<()> {
    let mut data = shop()?;
    if let Some(f) = data.features.first_mut() {
        let dim = f.dim();
        let values = f.values.iter().flat_map(|&x| [x, -x]);
        let values: Vec<f32> = values.collect();
        f.tokens = Some(TokenFeatures {
            per_item: 2,
            dim,
            values: values.into_iter().map(half::f16::from_f32).collect(),
            present: vec![true; f.present.len() * 2],
        });
    }
    let queries = some_queries(&data)?;
    for (cross, scope, soft_tokens, curriculum) in [
        (
            Cross::Others,
            Scope::Sequence,
            SoftTokens::Each,
            Curriculum::Levels,
        ),
        (
            Cross::Tokens,
            Scope::Item,
            SoftTokens::Pooled,
            Curriculum::Tokens,
        ),
        (
            Cross::Off,
            Scope::Off,
            SoftTokens::Pooled,
            Curriculum::Words,
        ),
    ] {
        let model = trained(
            &data,
            TmfConfig {
                cross,
                scope,
                soft_tokens,
                curriculum,
                ..small()
            },
        )?;
        let s = scorer(&model, |_| {})?;
        let n = data.num_items();
        let mut all = vec![0f32; queries.len() * n];
        s.score(&queries, &mut all)?;
        for (q, row) in queries.iter().zip(all.chunks(n)) {
            let mut own = vec![0f32; n];
            s.score(std::slice::from_ref(q), &mut own)?;
            assert!(own.iter().zip(row).all(|(a, b)| (a - b).abs() < 1e-3));
        }
        let likelihood = scorer(&model, |c| c.scoring = Scoring::Likelihood)?;
        let shelves = vec![vec![1, 2, 3]; queries.len()];
        let ranked = likelihood.rank_candidates(&queries, &shelves)?;
        assert!(ranked.is_some_and(|r| r.iter().all(|l| l.len() == 3)));
    }
    Ok(())
}

/// A pretrained model stays as it was: what is saved are low-rank updates, fusion and co-behaviour.
#[test]
fn a_pretrained_model_is_adapted_and_not_saved() -> Result<()> {
    let data = shop()?;
    let dir = tempfile::tempdir().expect("temporary folder");
    crate::llm::tests::write_llama(dir.path(), 512)?;
    let cfg = TmfConfig {
        llm: Some(dir.path().to_path_buf()),
        ..small()
    };
    let model = trained(&data, cfg)?;
    let tensors = model.inference()?;
    assert!(tensors.keys().all(|k| !k.starts_with("llm.")));
    let b = &tensors["lora.layers.0.self_attn.q_proj.b"];
    assert!(b.abs()?.max_all()?.to_scalar::<f32>()? > 0.0);
    let s = scorer(&model, |_| {})?;
    let mut out = vec![0f32; data.num_items()];
    s.score(&some_queries(&data)?[..1], &mut out)?;
    assert!(out.iter().all(|x| x.is_finite()));
    Ok(())
}

#[test]
fn settings_out_of_range_are_refused() {
    for (change, name) in [
        (
            Box::new(|c: &mut TmfConfig| c.candidates = 40) as Box<dyn Fn(&mut TmfConfig)>,
            "26",
        ),
        (Box::new(|c| c.temperature = 0.0), "temperature"),
        (Box::new(|c| c.dim = 30), "heads"),
        (Box::new(|c| c.dropout = 1.0), "dropout"),
    ] {
        let mut cfg = small();
        cfg.heads = 4;
        cfg.dim = 16;
        change(&mut cfg);
        let error = cfg.check().map(drop).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}

/// Fits are computed in groups of as many tokens as prompts are, and do not depend on who shares a group.
#[test]
fn fits_do_not_depend_on_groups() -> Result<()> {
    let data = shop()?;
    let mut m = trained(&data, small())?;
    let draw = |n| m.examples.draw(&m.net.cfg, 1, 2, n, None);
    let examples: Vec<Example> = (0..5).map(draw).collect();
    let together = m.fits(&examples)?;
    m.net.cfg.tokens_at_once = 1;
    for (a, b) in together.iter().zip(m.fits(&examples)?) {
        assert_eq!((a.len(), b.len()), (4, 4));
        assert!(
            a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-3),
            "{a:?} {b:?}"
        );
        assert!(a.iter().any(|x| *x < 1.0), "{a:?}");
    }
    Ok(())
}

/// One over the place; equals share the best.
#[test]
fn fits_compare_the_items_of_a_shelf() -> Result<()> {
    let queries = Tensor::new(&[[2f32, 0.0], [0.0, 1.0]], &DEV)?;
    let vectors = Tensor::new(&[[1f32, 5.0], [3.0, 5.0], [5.0, 5.0]], &DEV)?;
    let fits = Net::fits(&queries, &vectors, &[vec![2, 0], vec![0, 1, 2]], |i| i)?;
    assert_eq!(fits, [vec![1.0, 0.5], vec![1.0; 3]]);
    Ok(())
}

/// What nobody has met is never wrong in training, since it cannot be right.
#[test]
fn negatives_and_shelves_have_training_rows() -> Result<()> {
    let data = shop()?;
    let examples = Examples::new(&data, &small())?;
    let rows = data.rows(&[Split::Train], None);
    let met: std::collections::HashSet<u32> = rows.indices.iter().copied().collect();
    assert!(met.len() < data.num_items(), "some items are new");
    assert_eq!(examples.met(), met.len());
    assert_eq!(examples.negatives(1000, 1, 1, 0).len(), met.len());
    let few = examples.negatives(10, 1, 1, 0);
    assert!(few.len() == 10 && few.iter().all(|i| met.contains(i)));
    for n in 0..20 {
        let e = examples.draw(&small(), 1, 1, n, None);
        assert!(e.shelf.len() == 4 && e.shelf.iter().all(|i| met.contains(i)));
    }
    Ok(())
}

/// Whoever a step learns from is of the fold that its graph has not met; afterwards the whole graph is back.
#[test]
fn steps_see_users_through_a_graph_that_has_not_met_them() -> Result<()> {
    let data = shop()?;
    let cfg = TmfConfig {
        graph_folds: 3,
        ..small()
    };
    let mut model = trained(&data, cfg)?;
    let whole = model.net.graph().expect("a graph");
    assert_eq!(model.folds.len(), 3);
    let mut order = rng::stream(5, Purpose::Shuffle, &[]);
    let mut seen = [false; 3];
    for n in 0..12 {
        let fold = model.hide(n % 2 == 0, &mut order).expect("folds");
        seen[fold.number] = true;
        let now = model.net.graph().expect("a graph");
        assert_eq!(now.present, model.folds[fold.number].present);
        let cfg = &model.net.cfg;
        let s = model.examples.sequence(cfg, 1, 1, n, Some(fold), false);
        let is_of = |u: u32| {
            let past = data.history(u, Split::Valid);
            past.windows(s.events.len()).any(|w| w == s.events)
        };
        assert!((0..60).filter(|&u| fold.holds(u)).any(is_of));
    }
    assert_eq!(seen, [true; 3]);
    let mut again = Tmf::new(&data, model.net.cfg.clone(), 3, 1, &DEV)?;
    again.import_state(&model.export_state()?)?;
    assert_eq!(again.folds.len(), 3);
    for (a, b) in again.folds.iter().zip(&model.folds) {
        assert_eq!(a.present, b.present);
        assert_eq!(a.vectors.to_vec2::<f32>()?, b.vectors.to_vec2::<f32>()?);
    }
    model.net.set_graph(&whole);
    model.train_epoch(2, &mut Monitor::silent())?;
    assert_eq!(model.net.graph().expect("a graph").present, whole.present);
    Ok(())
}
