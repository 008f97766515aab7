//! Which codes of a codebook are in use, and new places for those that aren't.

use burn::tensor::{Int, Tensor};
use ldm_autoencoder::{Autoencoder, CodebookUsage};
use serde::{Deserialize, Serialize};

use super::{run_loop::Values, state::Trained};
use crate::{
    checkpoint::TrainState,
    rng::{Stream, permutation},
};

/// Its name in the state of a checkpoint.
const NAME: &str = "codebook";
/// Steps over which the use of codes is counted where none are revived.
const WINDOW: u64 = 100;

/// Remembers when each code was last used.
pub(super) struct CodebookWatch {
    /// Steps without use after which a code is dead; `None` leaves the dead alone.
    revive_after: Option<u64>,
    history: History,
}

/// What a resumed run has to know. Steps are counted from 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct History {
    /// Steps done when the watch began.
    since: u64,
    /// The step that last used each code, or gave it its place; 0: none so far.
    last_used: Vec<u64>,
}

impl CodebookWatch {
    /// A watch over so many `codes`; goes on from the `state` of a checkpoint, if there is one.
    pub(super) fn new(codes: usize, revive_after: Option<u64>, state: Option<&TrainState>) -> Self {
        let saved = state
            .and_then(|state| state.extra.get(NAME))
            .and_then(|saved| serde_json::from_value::<History>(saved.clone()).ok())
            .filter(|history| history.last_used.len() == codes);
        Self {
            revive_after,
            history: saved.unwrap_or_else(|| History {
                since: state.map_or(0, |state| state.step),
                last_used: vec![0; codes],
            }),
        }
    }

    /// Adds the history to the state of a checkpoint.
    pub(super) fn save(&self, state: &mut TrainState) {
        let history = serde_json::to_value(&self.history).expect("numbers are JSON");
        state.extra.insert(NAME.into(), history);
    }

    /// Notes which codes step number `step`, counted from 0, used in its micro-batches; afterwards gives the dead ones new places, if
    /// configured. Returns what to log.
    pub(super) fn after_step<M: Autoencoder>(
        &mut self,
        trained: &mut Trained<M>,
        batches: &[CodebookUsage],
        seed: u64,
        step: u64,
    ) -> Values {
        let done = step + 1;
        for batch in batches {
            let hits = batch.hits.clone().into_data();
            for (last_used, hits) in self.history.last_used.iter_mut().zip(hits.iter::<f32>()) {
                if hits > 0.0 {
                    *last_used = done;
                }
            }
        }
        let window = self.revive_after.unwrap_or(WINDOW);
        let codes = self.history.last_used.len() as f64;
        let used = (self.history.last_used.iter())
            .filter(|&&last| last > done.saturating_sub(window))
            .count();
        let mut values = vec![("codes_used_window", used as f64 / codes)];
        if self.revive_after.is_some() {
            let revived = self.revive(trained, batches, seed, step);
            values.push(("codes_revived", revived as f64));
        }
        values
    }

    /// Codes without use for too long, in order.
    fn dead(&self, done: u64) -> Vec<usize> {
        let Some(revive_after) = self.revive_after else {
            return Vec::new();
        };
        let History { since, last_used } = &self.history;
        (last_used.iter().enumerate())
            .filter(|(_, last)| done - (**last).max(*since) >= revive_after)
            .map(|(code, _)| code)
            .collect()
    }

    /// Gives each dead code the place of another pixel of the step's latents; returns how many. Where there are more codes than
    /// pixels, the rest wait.
    fn revive<M: Autoencoder>(
        &mut self,
        trained: &mut Trained<M>,
        batches: &[CodebookUsage],
        seed: u64,
        step: u64,
    ) -> usize {
        let mut dead = self.dead(step + 1);
        let Some(codebook) = trained.module().codebook().filter(|_| !dead.is_empty()) else {
            return 0;
        };
        let id = codebook.id;
        let pixels = (batches.iter())
            .map(|batch| {
                let [n, c, h, w] = batch.latents.dims();
                let latents = batch.latents.clone().permute([0, 2, 3, 1]);
                latents.reshape([n * h * w, c])
            })
            .collect();
        let pixels: Tensor<2> = Tensor::cat(pixels, 0);
        let order = permutation(seed, Stream::CodeRevival, step, pixels.dims()[0]);
        dead.truncate(order.len());
        let chosen: Vec<i64> = (order.into_iter().take(dead.len()))
            .map(|pixel| pixel as i64)
            .collect();
        let chosen = Tensor::<1, Int>::from_ints(chosen.as_slice(), &pixels.device());
        trained.replace_rows(id, &dead, pixels.select(0, chosen));
        for &code in &dead {
            self.history.last_used[code] = step + 1;
        }
        dead.len()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use ldm_autoencoder::{Stage1LossConfig, Stage1Objective, VqModel, VqModelConfig};

    use super::*;
    use crate::{config::TrainingConfig, generate::noise_batch, optim::Accumulator};

    const CODES: usize = 32;
    const STEPS: u64 = 40;

    fn training() -> TrainingConfig {
        let text = "steps = 40\nbatch_size = 2\nlr = { rate = 2e-3 }\nema_decay = 0.9\noptimizer = { weight_decay = 0.0 }";
        toml::from_str(text).unwrap()
    }

    /// Half of the codes are so far away that no latent ever finds them.
    fn trained() -> Trained<VqModel> {
        let config: VqModelConfig = toml::from_str(&format!(
            "block_out_channels = [8, 8]\n\
             down_block_types = [\"DownEncoderBlock2D\", \"DownEncoderBlock2D\"]\n\
             up_block_types = [\"UpDecoderBlock2D\", \"UpDecoderBlock2D\"]\n\
             norm_num_groups = 4\nlatent_channels = 3\nnum_vq_embeddings = {CODES}"
        ))
        .unwrap();
        let device = Device::flex().autodiff();
        let model = super::super::state::initialise(3, 1, &Device::flex(), || config.init(&device));
        let mut trained = Trained::new(model, &training(), training().ema());
        let id = trained.module().codebook().unwrap().id;
        let far: Vec<usize> = (CODES / 2..CODES).collect();
        let places = Tensor::full([far.len(), 3], 1e3, &Device::flex());
        trained.replace_rows(id, &far, places);
        trained
    }

    fn codes(trained: &Trained<VqModel>) -> Vec<f32> {
        let codes = trained.module().codebook().unwrap().val();
        codes.into_data().iter().collect()
    }

    /// Trains from `start` to `end`; returns the logged figures of each step.
    fn run(
        trained: &mut Trained<VqModel>,
        watch: &mut CodebookWatch,
        start: u64,
        end: u64,
    ) -> Vec<Values> {
        let loss = Stage1LossConfig {
            perceptual_weight: 0.0,
            disc_weight: 0.0,
            ..Stage1LossConfig::default()
        };
        let objective = Stage1Objective::new(loss, None).unwrap();
        let mut figures = Vec::new();
        for step in start..end {
            let draw = |stream, shape| noise_batch(1, stream, step, 0, shape, &Device::flex());
            let images = draw(Stream::Preview, [2, 3, 16, 16]).tanh();
            let noise = draw(Stream::PosteriorNoise, [2, 3, 8, 8]);
            let output = objective.generator(trained.module(), None, images, noise, step);
            let mut gradients = Accumulator::default();
            gradients.add(trained.module(), output.grads);
            let _ = trained.update(gradients.take(), 2e-3);
            let usage = [output.codebook.unwrap()];
            let mut values = watch.after_step(trained, &usage, 1, step);
            values.push(("codes_used", output.terms.codes_used.into()));
            values.push(("total", output.terms.total.into()));
            figures.push(values);
        }
        figures
    }

    fn figure(values: &Values, name: &str) -> f64 {
        let found = values.iter().find(|(found, _)| *found == name);
        found.expect("it is logged").1
    }

    #[test]
    fn dead_codes_come_to_use() {
        let (mut plain, mut revived) = (trained(), trained());
        let mut watch = CodebookWatch::new(CODES, None, None);
        let without = run(&mut plain, &mut watch, 0, STEPS);
        let mut watch = CodebookWatch::new(CODES, Some(5), None);
        let with = run(&mut revived, &mut watch, 0, STEPS);

        // The same until the first code is given up, after which the far ones have places among the latents.
        for (a, b) in without.iter().zip(&with).take(5) {
            assert_eq!(figure(a, "total"), figure(b, "total"));
        }
        assert_eq!(figure(&with[3], "codes_revived"), 0.0);
        assert!(figure(&with[4], "codes_revived") >= (CODES / 2) as f64);
        assert!(
            without
                .iter()
                .all(|values| values.iter().all(|(name, _)| *name != "codes_revived"))
        );
        let far = |trained: &Trained<VqModel>| {
            codes(trained)
                .iter()
                .filter(|value| **value > 900.0)
                .count()
        };
        assert_eq!((far(&plain), far(&revived)), (3 * CODES / 2, 0));
        let averaged = revived.result().quantize.embedding.weight.val();
        let averaged: Vec<f32> = averaged.into_data().iter().collect();
        assert!(averaged.iter().all(|value| value.abs() < 100.0));

        let (last_without, last_with) = (without.last().unwrap(), with.last().unwrap());
        assert!(figure(last_without, "codes_used_window") <= 0.5);
        assert!(
            figure(last_with, "codes_used_window") > 0.8,
            "{last_with:?}"
        );
        let used = |figures: &[Values]| {
            let last = figures[figures.len() - 10..].iter();
            last.map(|values| figure(values, "codes_used")).sum::<f64>() / 10.0
        };
        assert!(
            used(&with) > 2.0 * used(&without),
            "{} {}",
            used(&with),
            used(&without)
        );
    }

    #[test]
    fn a_resumed_watch_goes_on_bit_for_bit() {
        let mut whole = trained();
        let mut watch = CodebookWatch::new(CODES, Some(4), None);
        let expected = run(&mut whole, &mut watch, 0, 12);

        let mut parts = trained();
        let mut first = CodebookWatch::new(CODES, Some(4), None);
        let mut found = run(&mut parts, &mut first, 0, 6);
        let mut state = TrainState {
            step: 6,
            seed: 1,
            samples_seen: 12,
            config_hash: String::new(),
            score: None,
            rate_scale: 1.0,
            extra: Default::default(),
        };
        first.save(&mut state);
        let json = serde_json::to_string(&state).unwrap();
        let state: TrainState = serde_json::from_str(&json).unwrap();
        let mut second = CodebookWatch::new(CODES, Some(4), Some(&state));
        assert_eq!(second.history, first.history);
        found.extend(run(&mut parts, &mut second, 6, 12));
        assert_eq!(found, expected);
        assert_eq!(codes(&parts), codes(&whole));
    }

    /// Switched on in the middle of a run, it waits its number of steps before it gives a code up.
    #[test]
    fn a_watch_that_begins_late_is_patient() {
        let state = TrainState {
            step: 1000,
            seed: 1,
            samples_seen: 0,
            config_hash: String::new(),
            score: None,
            rate_scale: 1.0,
            extra: Default::default(),
        };
        let watch = CodebookWatch::new(CODES, Some(10), Some(&state));
        assert!(watch.dead(1009).is_empty());
        assert_eq!(watch.dead(1010).len(), CODES);
        let off = CodebookWatch::new(CODES, None, Some(&state));
        assert!(off.dead(5000).is_empty());
    }
}
