//! Signs that stage 1 has gone astray although all of its numbers are finite: a collapsed posterior, latents of an unusable scale, a
//! discriminator that has won or given up.
//!
//! Only warnings depend on what is remembered here, so a resumed run starts without memory.

use std::collections::VecDeque;

use super::posterior::{Channel, Posterior};

/// Steps that a mean is over.
const STEPS: usize = 100;
/// Steps that a discriminator may guess for.
const GUESSING_STEPS: usize = 500;
/// Divergence per element, in nats, below which a channel carries nothing.
const DEAD_KL: f64 = 0.01;
/// Usable deviations of latents: stage 2 divides by them.
const STD_RANGE: [f64; 2] = [1e-2, 1e2];
/// Largest usable magnitude of a latent, in deviations.
const MAX_DEVIATIONS: f64 = 50.0;
/// Share of patches judged rightly from which on a discriminator has nothing left to learn.
const WINNING_ACCURACY: f64 = 0.99;
/// Magnitude of the logits that makes winning harmful: with a hinge, gradients end at 1.
const LARGE_LOGIT: f64 = 5.0;
/// Relative growth of the generator's loss that makes winning harmful.
const GROWTH: f64 = 0.1;
/// Share of patches judged rightly below which a discriminator guesses.
const GUESSING_ACCURACY: f64 = 0.52;
/// Bound of the adaptive weight before `disc_weight` (Esser et al. 2021).
const D_WEIGHT_MAX: f64 = 1e4;

/// Watches the steps of stage 1.
#[derive(Debug)]
pub(super) struct Health {
    /// `disc_weight` of the configuration.
    disc_weight: f64,
    channels: Vec<[Window; 3]>,
    accuracy: Window,
    guessing: Window,
    logits: Window,
    g_loss: Window,
    d_weight: Window,
    /// Warnings given and not yet taken back.
    given: Vec<Sign>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    Collapse,
    DeadChannels,
    Scale,
    Outliers,
    Winning,
    Guessing,
    WeightAtBound,
    WeightAtZero,
}

impl Health {
    pub(super) fn new(disc_weight: f64) -> Self {
        let window = || Window::new(STEPS);
        Self {
            disc_weight,
            channels: Vec::new(),
            accuracy: window(),
            guessing: Window::new(GUESSING_STEPS),
            logits: window(),
            g_loss: window(),
            d_weight: window(),
            given: Vec::new(),
        }
    }

    /// Takes a step in, with the figures of its log and the number of pixels of a latent; returns what there is to warn of, once until it
    /// recovers.
    pub(super) fn observe(
        &mut self,
        figures: &[(&'static str, f64)],
        posterior: Option<&Posterior>,
        pixels: usize,
    ) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(posterior) = posterior {
            self.posterior(&posterior.channels, pixels, &mut warnings);
        }
        let figure =
            |name| (figures.iter()).find_map(|(key, value)| (*key == name).then_some(*value));
        // Steps in which the discriminator learns.
        if figure("disc_grad_norm").is_some() {
            let figure = |name| figure(name).unwrap_or_default();
            self.accuracy.push(figure("disc_accuracy"));
            self.guessing.push(figure("disc_accuracy"));
            self.logits
                .push((figure("logits_real").abs() + figure("logits_fake").abs()) / 2.0);
            self.g_loss.push(figure("g_loss"));
            self.d_weight.push(figure("d_weight"));
            self.discriminator(&mut warnings);
        }
        warnings
    }

    fn posterior(&mut self, channels: &[Channel], pixels: usize, warnings: &mut Vec<String>) {
        (self.channels).resize_with(channels.len(), || [(); 3].map(|()| Window::new(STEPS)));
        let mut means = Vec::with_capacity(channels.len());
        for (channel, [kl, std, largest]) in channels.iter().zip(&mut self.channels) {
            kl.push(channel.kl / pixels as f64);
            std.push(channel.std);
            largest.push(channel.largest);
            match (kl.mean(), std.mean(), largest.mean()) {
                (Some(kl), Some(std), Some(largest)) => means.push((kl, std, largest)),
                _ => return,
            }
        }
        let select = |holds: &dyn Fn(f64, f64, f64) -> bool| -> Vec<String> {
            let numbered = means.iter().enumerate();
            numbered
                .filter(|(_, (kl, std, largest))| holds(*kl, *std, *largest))
                .map(|(index, _)| index.to_string())
                .collect()
        };

        let dead = select(&|kl, _, _| kl < DEAD_KL);
        let collapsed = dead.len() == means.len();
        self.sign(Sign::Collapse, collapsed, warnings, || {
            format!(
                "posterior collapse: over {STEPS} steps no latent channel carried more than {DEAD_KL} nats per element; lower stage1.loss.kl_weight"
            )
        });
        let some = !dead.is_empty() && !collapsed;
        self.sign(Sign::DeadChannels, some, warnings, || {
            format!(
                "latent channels {} carry less than {DEAD_KL} nats per element: fewer channels or a lower stage1.loss.kl_weight would do",
                dead.join(", ")
            )
        });
        // A dead channel's deviation is small by right.
        let [low, high] = STD_RANGE;
        let off = select(&|kl, std, _| kl >= DEAD_KL && !(low..=high).contains(&std));
        self.sign(Sign::Scale, !off.is_empty(), warnings, || {
            format!(
                "the latents of channels {} have a standard deviation outside [{low}, {high}]: stage 2 will hardly learn on them; raise stage1.loss.kl_weight",
                off.join(", ")
            )
        });
        let outlying = select(&|kl, std, largest| kl >= DEAD_KL && largest > MAX_DEVIATIONS * std);
        self.sign(Sign::Outliers, !outlying.is_empty(), warnings, || {
            format!(
                "latents of channels {} lie more than {MAX_DEVIATIONS} standard deviations out: their scaling factor will be set by outliers; raise stage1.loss.kl_weight",
                outlying.join(", ")
            )
        });
    }

    fn discriminator(&mut self, warnings: &mut Vec<String>) {
        let reaches =
            |window: &Window, holds: &dyn Fn(f64) -> bool| window.mean().is_some_and(holds);
        let sure = reaches(&self.accuracy, &|accuracy| accuracy > WINNING_ACCURACY);
        let harmful =
            reaches(&self.logits, &|logits| logits > LARGE_LOGIT) || self.g_loss.is_rising();
        self.sign(Sign::Winning, sure && harmful, warnings, || {
            format!(
                "the discriminator wins: over {STEPS} steps it judged more than {WINNING_ACCURACY} of all patches rightly; lower stage1.loss.disc_weight or start it later (disc_start)"
            )
        });
        let guessing = reaches(&self.guessing, &|accuracy| accuracy < GUESSING_ACCURACY);
        self.sign(Sign::Guessing, guessing, warnings, || {
            format!(
                "the discriminator guesses: over {GUESSING_STEPS} steps it judged less than {GUESSING_ACCURACY} of all patches rightly; it is too small (disc_channels, disc_layers) or its rate is too low"
            )
        });
        let bound = D_WEIGHT_MAX * self.disc_weight;
        let at_bound = reaches(&self.d_weight, &|weight| weight >= 0.999 * bound);
        self.sign(Sign::WeightAtBound, at_bound, warnings, || {
            format!(
                "d_weight has been at its bound of {bound} for {STEPS} steps: the discriminator's gradient at the last layer has vanished"
            )
        });
        let at_zero = reaches(&self.d_weight, &|weight| weight == 0.0);
        self.sign(Sign::WeightAtZero, at_zero, warnings, || {
            format!(
                "d_weight has been 0 for {STEPS} steps: the likelihood's gradient at the last layer has vanished, or the adversarial one has exploded"
            )
        });
    }

    /// Warns where `holds` begins to hold.
    fn sign(
        &mut self,
        sign: Sign,
        holds: bool,
        warnings: &mut Vec<String>,
        text: impl FnOnce() -> String,
    ) {
        if !holds {
            self.given.retain(|given| *given != sign);
        } else if !self.given.contains(&sign) {
            self.given.push(sign);
            warnings.push(text());
        }
    }
}

/// The last values of a figure.
#[derive(Debug)]
struct Window {
    values: VecDeque<f64>,
    size: usize,
}

impl Window {
    fn new(size: usize) -> Self {
        Self {
            values: VecDeque::with_capacity(size),
            size,
        }
    }

    fn push(&mut self, value: f64) {
        if self.values.len() == self.size {
            self.values.pop_front();
        }
        self.values.push_back(value);
    }

    /// `None` before there are enough values.
    fn mean(&self) -> Option<f64> {
        let full = self.values.len() == self.size;
        full.then(|| self.values.iter().sum::<f64>() / self.size as f64)
    }

    /// Whether the second half is clearly above the first.
    fn is_rising(&self) -> bool {
        if self.mean().is_none() {
            return false;
        }
        let half = self.size / 2;
        let first = self.values.iter().take(half).sum::<f64>() / half as f64;
        let second = self.values.iter().skip(half).sum::<f64>() / (self.size - half) as f64;
        second - first > GROWTH * first.abs().max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIXELS: usize = 16;

    /// What `steps` steps warn of.
    fn run(health: &mut Health, steps: usize, step: impl Fn(usize) -> Step) -> Vec<String> {
        (0..steps)
            .flat_map(|index| {
                let Step { figures, channels } = step(index);
                let posterior = Posterior {
                    channels,
                    batches: 1,
                };
                health.observe(&figures, Some(&posterior), PIXELS)
            })
            .collect()
    }

    struct Step {
        figures: Vec<(&'static str, f64)>,
        channels: Vec<Channel>,
    }

    fn healthy_channel() -> Channel {
        Channel {
            mean: 0.1,
            std: 3.0,
            largest: 12.0,
            kl: 5.0 * PIXELS as f64,
        }
    }

    fn with_channels(channels: [Channel; 2]) -> Step {
        Step {
            figures: Vec::new(),
            channels: channels.to_vec(),
        }
    }

    fn with_discriminator(accuracy: f64, logit: f64, d_weight: f64) -> Step {
        Step {
            figures: vec![
                ("disc_grad_norm", 1.0),
                ("disc_accuracy", accuracy),
                ("logits_real", logit),
                ("logits_fake", -logit),
                ("g_loss", logit),
                ("d_weight", d_weight),
            ],
            channels: vec![healthy_channel()],
        }
    }

    #[test]
    fn a_posterior_is_warned_of_once_until_it_recovers() {
        let dead = Channel {
            kl: 0.005 * PIXELS as f64,
            std: 0.05,
            largest: 0.2,
            ..healthy_channel()
        };
        let wide = Channel {
            std: 300.0,
            largest: 900.0,
            ..healthy_channel()
        };
        let outlying = Channel {
            largest: 151.0,
            ..healthy_channel()
        };
        for (channels, expected) in [
            ([dead, dead], "posterior collapse"),
            ([healthy_channel(), dead], "latent channels 1 carry less"),
            (
                [wide, healthy_channel()],
                "channels 0 have a standard deviation outside",
            ),
            ([healthy_channel(), outlying], "channels 1 lie more than 50"),
        ] {
            let mut health = Health::new(0.5);
            assert!(run(&mut health, STEPS - 1, |_| with_channels(channels)).is_empty());
            let warnings = run(&mut health, 3 * STEPS, |_| with_channels(channels));
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            assert!(warnings[0].contains(expected), "{warnings:?}");
            let healthy = run(&mut health, 2 * STEPS, |_| {
                with_channels([healthy_channel(); 2])
            });
            // On the way from collapse to health nothing else may be complained of.
            assert!(healthy.is_empty(), "{healthy:?}");
            let again = run(&mut health, 3 * STEPS, |_| with_channels(channels));
            assert!(
                again.iter().any(|text| text.contains(expected)),
                "{again:?}"
            );
        }
        let healthy = [healthy_channel(); 2];
        assert!(run(&mut Health::new(0.5), 500, |_| with_channels(healthy)).is_empty());
    }

    #[test]
    fn a_discriminator_that_wins_or_guesses_is_warned_of() {
        for (accuracy, logit, d_weight, expected) in [
            (0.999, 8.0, 1.0, "the discriminator wins"),
            (0.51, 0.1, 1.0, "the discriminator guesses"),
            (0.8, 0.5, 5e3, "at its bound of 5000"),
            (0.8, 0.5, 0.0, "d_weight has been 0"),
        ] {
            let mut health = Health::new(0.5);
            let warnings = run(&mut health, 3 * GUESSING_STEPS, |_| {
                with_discriminator(accuracy, logit, d_weight)
            });
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            assert!(warnings[0].contains(expected), "{warnings:?}");
        }
        // Sure, but the generator holds out.
        for (accuracy, logit) in [(0.999, 2.0), (0.8, 8.0), (0.55, 0.1)] {
            let warnings = run(&mut Health::new(0.5), 3 * GUESSING_STEPS, |_| {
                with_discriminator(accuracy, logit, 1.0)
            });
            assert!(warnings.is_empty(), "{warnings:?}");
        }
        let rising = run(&mut Health::new(0.5), STEPS, |step| {
            with_discriminator(0.995, 1.0 + step as f64 * 0.02, 1.0)
        });
        assert!(
            rising.len() == 1 && rising[0].contains("wins"),
            "{rising:?}"
        );
    }

    #[test]
    fn steps_without_a_discriminator_say_nothing_of_it() {
        let mut health = Health::new(0.5);
        let figures = [("g_loss", 0.0), ("d_weight", 0.0)];
        for _ in 0..2 * STEPS {
            assert!(health.observe(&figures, None, PIXELS).is_empty());
        }
    }
}
