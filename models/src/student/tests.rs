use super::*;
use crate::data::{IdMap, Interaction, ModalityFeatures, Split};
use crate::params::Adam;

fn data() -> Result<Dataset> {
    let users = IdMap::new(["a", "b"])?;
    let items = IdMap::new(["p", "q", "r", "s"])?;
    let row = |user, item, time| Interaction {
        user,
        item,
        behavior: 1,
        split: Split::Train,
        time,
        value: 1.0,
    };
    let rows = vec![row(0, 0, 0), row(0, 1, 1), row(1, 2, 0)];
    let mut d = Dataset::new(
        "t",
        users,
        items,
        vec!["any".into(), "view".into()],
        rows,
        true,
    )?;
    let values = ndarray::array![
        [1f32, 2.0, 3.0],
        [0.5, -1.0, 2.0],
        [3.0, 1.0, 0.0],
        [f32::NAN; 3]
    ];
    d.features = vec![ModalityFeatures::new("text", values)?];
    Ok(d)
}

fn student(half_lives: Vec<f64>) -> Result<Student> {
    let data = data()?;
    let modality = |name: &str, dim| ModalitySpec {
        name: name.into(),
        dim,
    };
    let shape = StudentShape {
        dim: 16,
        modalities: vec![modality("text", 3), modality(GRAPH, 16)],
        fusion_hidden: 8,
        behaviors: data.behaviors.clone(),
        window: 10,
        event_hidden: 12,
        half_lives,
        readout_hidden: 10,
        prior: Vec::new(),
    };
    let mut r = crate::rng::stream(1, crate::rng::Purpose::Init, &[]);
    let graph = crate::rng::normal(&mut r, (4, 16), 1.0, &Device::Cpu)?;
    Student::new(
        shape,
        &data,
        &graph,
        &[true, true, true, false],
        2,
        &Device::Cpu,
    )
}

fn event(item: u32, behavior: u8) -> HistoryEvent {
    HistoryEvent { item, behavior }
}

#[test]
fn every_variable_gets_a_gradient() -> Result<()> {
    let s = student(vec![0.0, 2.0])?;
    let data = data()?;
    let features = s.features(&data)?;
    let v = s.item_vectors(&features, features.present())?;
    let h = [event(0, 1), event(1, 0), event(2, 1)];
    let u = s.user.forward(&v, &[&h, &h[..1]], None)?;
    let loss = u.matmul(&v.t()?)?.sqr()?.sum_all()?;
    let g = loss.backward()?;
    for (name, var) in s.params.iter() {
        let g = g
            .get(var.as_tensor())
            .unwrap_or_else(|| panic!("{name} has no gradient"));
        assert!(g.abs()?.max_all()?.to_scalar::<f32>()? > 0.0, "{name}");
    }
    Ok(())
}

#[test]
fn export_and_load_give_the_same_scores() -> Result<()> {
    let s = student(vec![0.0, 2.0])?;
    let data = data()?;
    let query = |history: Vec<HistoryEvent>| EvalQuery {
        user: 0,
        history,
        mask: vec![],
        targets: vec![],
    };
    let queries = [query(vec![event(0, 1), event(3, 0)]), query(vec![])];
    let mut a = vec![0f32; 8];
    s.scorer(&data)?.score(&queries, &mut a)?;
    let loaded = Student::load(&s.export()?, &Device::Cpu)?;
    let mut b = vec![0f32; 8];
    loaded.scorer(&data)?.score(&queries, &mut b)?;
    assert_eq!(a, b);
    assert_eq!(loaded.shape, s.shape);
    // An export is a copy: training on does not change it.
    let exported = s.export()?;
    let before = exported["graph.table"].to_vec2::<f32>()?;
    let mut adam = Adam::new(&s.params, 0.1, 0.0)?;
    adam.step(&s.graph.sqr()?.sum_all()?.backward()?)?;
    assert_eq!(before, exported["graph.table"].to_vec2::<f32>()?);
    assert_ne!(before, s.graph.to_vec2::<f32>()?);
    Ok(())
}

#[test]
fn order_matters_only_through_the_half_lives() -> Result<()> {
    let data = data()?;
    let forth = [event(0, 1), event(1, 1), event(2, 1)];
    let back = [event(2, 1), event(1, 1), event(0, 1)];
    let diff = |s: &Student| -> Result<f32> {
        let f = s.features(&data)?;
        let v = s.item_vectors(&f, f.present())?;
        let u = s.user.forward(&v, &[&forth, &back], None)?;
        Ok((u.narrow(0, 0, 1)? - u.narrow(0, 1, 1)?)?
            .abs()?
            .max_all()?
            .to_scalar()?)
    };
    assert!(diff(&student(vec![0.0])?)? < 1e-6);
    assert!(diff(&student(vec![1.0])?)? > 1e-4);
    Ok(())
}

#[test]
fn a_prior_counts_as_much_as_events_of_its_weight() -> Result<()> {
    let s = student(vec![0.0, 0.0])?;
    let data = data()?;
    let f = s.features(&data)?;
    let v = s.item_vectors(&f, f.present())?;
    let h = [event(0, 1), event(1, 1)];
    let pooled = s.user.pool(&v, &[&h], None)?;
    let of = |c: &[f64]| -> Result<Vec<f32>> {
        let means = s.user.means(&pooled, c)?;
        Ok(means
            .narrow(1, 0, 2 * s.shape.dim)?
            .flatten_all()?
            .to_vec1()?)
    };
    // As much weight again as the events have halves their mean.
    let (whole, half) = (of(&[0.0, 0.0])?, of(&pooled.mean_weights()?)?);
    assert!(whole.iter().any(|x| x.abs() > 0.1));
    for (x, y) in whole.iter().zip(&half) {
        assert!((x / 2.0 - y).abs() < 1e-6, "{x} {y}");
    }
    Ok(())
}

#[test]
fn an_absent_modality_contributes_nothing() -> Result<()> {
    let s = student(vec![0.0])?;
    let data = data()?;
    let f = s.features(&data)?;
    let v = s.item_vectors(&f, f.present())?.to_vec2::<f32>()?;
    // Item 3 has neither text nor co-behaviour: its vector is the bias alone.
    let inputs = [
        Tensor::full(7f32, (1, 3), &Device::Cpu)?,
        Tensor::full(-5f32, (1, 16), &Device::Cpu)?,
    ];
    let none = Tensor::zeros((1, 2), candle_core::DType::F32, &Device::Cpu)?;
    assert_eq!(s.fusion.forward(&inputs, &none)?.to_vec2::<f32>()?[0], v[3]);
    Ok(())
}

#[test]
fn impossible_shapes_are_refused() -> Result<()> {
    let mut shape = student(vec![0.0])?.shape;
    shape.dim = 20;
    assert!(shape.check().is_err());
    shape.dim = 16;
    shape.prior = vec![2.0, 2.0];
    assert!(shape.check().is_err());
    shape.prior = vec![0.0];
    assert!(shape.check().is_err());
    shape.prior = vec![2.0];
    assert!(shape.check().is_ok());
    shape.half_lives = vec![f64::NAN];
    assert!(shape.check().is_err());
    Ok(())
}
