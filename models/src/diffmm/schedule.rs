//! The noise schedule of the user-row diffusion (DiffMM program; all arithmetic in f64).

use crate::error::{Error, Result};

/// Variances, posterior coefficients and loss weights for `T` diffusion steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// β_t, the variance added at step t. The first entry is overwritten with 1e-4, as the
    /// published program does after building the linear design.
    pub beta: Vec<f64>,
    /// ᾱ_t = Π_{j≤t} (1 − β_j).
    pub alpha_bar: Vec<f64>,
    /// Weight of the network output in the posterior mean.
    pub posterior_x0: Vec<f64>,
    /// Weight of the current state in the posterior mean.
    pub posterior_xt: Vec<f64>,
    /// Posterior variance; the program clips its logarithm at entry 0 to entry 1.
    pub posterior_variance: Vec<f64>,
    /// Weight of the reconstruction error when step t was drawn: 1 at t = 0, else
    /// SNR_{t−1} − SNR_t.
    pub loss_weight: Vec<f64>,
}

impl Schedule {
    /// The linear-variance schedule with `steps` steps.
    ///
    /// # Errors
    /// `steps` below 2, a scale that is not positive (the loss weights need the schedule, so the
    /// noise-free variant does not exist), or variances outside (0, 1).
    pub fn new(steps: usize, scale: f64, min: f64, max: f64) -> Result<Self> {
        let (v0, v1) = (scale * min, scale * max);
        if steps < 2 || !(v0 > 0.0 && v0 <= v1 && v1 < 1.0) {
            return Err(Error::config(format!(
                "diffusion needs at least 2 steps and 0 < noise_scale·noise_min ≤ noise_scale·noise_max < 1, got {steps} steps and [{v0}, {v1}]"
            )));
        }
        let design: Vec<f64> = (0..steps)
            .map(|t| 1.0 - (v0 + (v1 - v0) * t as f64 / (steps - 1) as f64))
            .collect();
        let mut beta: Vec<f64> = (0..steps)
            .map(|t| match t {
                0 => 1e-4,
                _ => (1.0 - design[t] / design[t - 1]).min(0.999),
            })
            .collect();
        beta[0] = 1e-4;
        let alpha_bar: Vec<f64> = beta
            .iter()
            .scan(1.0, |acc, b| {
                *acc *= 1.0 - b;
                Some(*acc)
            })
            .collect();
        let before = |t: usize| if t == 0 { 1.0 } else { alpha_bar[t - 1] };
        let snr = |t: usize| alpha_bar[t] / (1.0 - alpha_bar[t]);
        let per_step = |f: &dyn Fn(usize) -> f64| (0..steps).map(f).collect::<Vec<_>>();
        Ok(Self {
            posterior_x0: per_step(&|t| beta[t] * before(t).sqrt() / (1.0 - alpha_bar[t])),
            posterior_xt: per_step(&|t| {
                (1.0 - before(t)) * (1.0 - beta[t]).sqrt() / (1.0 - alpha_bar[t])
            }),
            posterior_variance: per_step(&|t| beta[t] * (1.0 - before(t)) / (1.0 - alpha_bar[t])),
            loss_weight: per_step(&|t| if t == 0 { 1.0 } else { snr(t - 1) - snr(t) }),
            alpha_bar,
            beta,
        })
    }

    /// Number of diffusion steps T.
    pub fn steps(&self) -> usize {
        self.beta.len()
    }

    /// Factors of signal and noise, `(√ᾱ_t, √(1−ᾱ_t))`.
    pub fn mix(&self, t: usize) -> (f32, f32) {
        let a = self.alpha_bar[t];
        (a.sqrt() as f32, (1.0 - a).sqrt() as f32)
    }
}

/// Sinusoidal embedding of a diffusion step: cosines first, frequencies `10000^(−j/⌊width/2⌋)`,
/// one zero appended when the width is odd.
pub fn time_embedding(t: usize, width: usize) -> Vec<f32> {
    let half = width / 2;
    let angle = |j: usize| t as f64 * (-(10_000f64.ln()) * j as f64 / half as f64).exp();
    let mut out: Vec<f32> = (0..half).map(|j| angle(j).cos() as f32).collect();
    out.extend((0..half).map(|j| angle(j).sin() as f32));
    out.resize(width, 0.0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: &[f64], want: &[f64], rel: f64) {
        for (g, w) in got.iter().zip(want) {
            assert!(
                (g - w).abs() <= rel * w.abs().max(1e-12),
                "{got:?} {want:?}"
            );
        }
    }

    /// Oracle 10.1: s = 0.1, 1e-4, 0.02, T = 5.
    #[test]
    fn schedule_matches_oracle() {
        let s = Schedule::new(5, 0.1, 1e-4, 0.02).unwrap();
        let t = 2e-9;
        close(
            &s.beta,
            &[
                1e-4,
                4.97504975e-4,
                4.977526094e-4,
                4.980004905e-4,
                4.982486185e-4,
            ],
            t,
        );
        close(
            &s.alpha_bar,
            &[
                0.9999,
                0.9994025448,
                0.9989050896,
                0.9984076343,
                0.9979101791,
            ],
            1e-10,
        );
        close(
            &s.posterior_x0,
            &[1.0, 0.8326650747, 0.4544699479, 0.3125712838, 0.2382270002],
            1e-9,
        );
        close(
            &s.posterior_xt,
            &[0.0, 0.1673349191, 0.5455300149, 0.687428648, 0.7617729005],
            1e-9,
        );
        close(
            &s.posterior_variance,
            &[
                0.0,
                8.327067111e-5,
                2.716065933e-4,
                3.424250784e-4,
                3.796468864e-4,
            ],
            1e-9,
        );
        close(
            &s.loss_weight,
            &[1.0, 8326.234404, 760.4488943, 285.3202455, 149.4865509],
            1e-9,
        );
        let (a, b) = s.mix(4);
        assert!((f64::from(a) - 0.9989545431).abs() < 1e-7);
        assert!((f64::from(b) - 0.04571455893).abs() < 1e-8);
    }

    /// Oracle 10.6: forward samples and posterior means by the tabulated coefficients.
    #[test]
    fn forward_and_posterior_match_oracle() {
        let s = Schedule::new(5, 0.1, 1e-4, 0.02).unwrap();
        let (x0, eps) = ([1.0, 0.0, 0.0, 1.0], [0.5, -1.0, 2.0, 0.0]);
        let sample = |t: usize| -> Vec<f64> {
            let a = s.alpha_bar[t];
            let mix = |(x, e): (&f64, &f64)| a.sqrt() * x + (1.0 - a).sqrt() * e;
            x0.iter().zip(&eps).map(mix).collect()
        };
        close(&sample(0)[..1], &[1.0049499987], 1e-9);
        close(
            &sample(2),
            &[1.0159971104, -0.0330894311, 0.0661788622, 0.9994523948],
            1e-8,
        );
        let x4 = sample(4);
        close(
            &x4,
            &[1.0218118225, -0.0457145589, 0.0914291179, 0.9989545431],
            1e-8,
        );
        let y = [0.9, 0.1, 0.2, 0.7];
        let mean = |t: usize| -> Vec<f64> {
            let at = |(y, x): (&f64, &f64)| s.posterior_x0[t] * y + s.posterior_xt[t] * x;
            y.iter().zip(&x4).map(at).collect()
        };
        close(
            &mean(4),
            &[0.992792856, -0.0110014121, 0.1172936243, 0.9277353999],
            1e-8,
        );
        close(
            &mean(1),
            &[0.9203833659, 0.0756168654, 0.181832299, 0.7500255299],
            1e-8,
        );
        close(&mean(0), &y, 1e-12);
    }

    /// Oracle 10.2.
    #[test]
    fn time_embedding_matches_oracle() {
        let e = time_embedding(4, 10);
        let want = [
            -0.6536436209,
            0.8056897785,
            0.9949565863,
            0.9998732112,
            0.9999968151,
            -0.7568024953,
            0.5923377252,
            0.1003064873,
            0.0159236138,
            0.0025238267,
        ];
        for (g, w) in e.iter().zip(want) {
            assert!((f64::from(*g) - w).abs() < 1e-7);
        }
        assert_eq!(time_embedding(0, 10)[..5], [1.0; 5]);
        assert_eq!(time_embedding(3, 11).len(), 11);
        assert_eq!(time_embedding(3, 11)[10], 0.0);
    }

    #[test]
    fn impossible_schedules_are_refused() {
        assert!(Schedule::new(1, 0.1, 1e-4, 0.02).is_err());
        assert!(Schedule::new(5, 0.0, 1e-4, 0.02).is_err());
    }
}
