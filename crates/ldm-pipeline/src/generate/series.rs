//! Which images a request is made of: some conditions with some noise, or the way from one to another.

use super::{Blend, Condition, Noise, NoiseKey};
use crate::error::Error;

/// The images of a request in their order: what each shows, and the noise that it is made from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// One for each image.
    pub conditions: Vec<Condition>,
    /// One for each image.
    pub noise: Vec<Noise>,
}

impl Series {
    /// Every condition with the noise of every key: first all images of the first condition.
    #[must_use]
    pub fn product(conditions: &[Condition], keys: &[NoiseKey]) -> Self {
        let mut series = Self::default();
        for condition in conditions {
            for &key in keys {
                series.conditions.push(condition.clone());
                series.noise.push(Noise::Of(key));
            }
        }
        series
    }

    /// `frames` images at even distances from one end to the other, both included: between two conditions, between the noise of two keys, or
    /// both together.
    ///
    /// # Errors
    /// If there aren't one or two of each and two of one, or fewer than two frames.
    pub fn between(
        conditions: &[Condition],
        keys: &[NoiseKey],
        frames: usize,
    ) -> Result<Self, Error> {
        let refuse = |problem: &str| Err(Error::Request(problem.into()));
        if frames < 2 {
            return refuse("an interpolation has at least its two ends");
        }
        let (
            &([ref from] | [ref from, _]),
            &([ref to] | [_, ref to]),
            &([first] | [first, _]),
            &([last] | [_, last]),
        ) = (conditions, conditions, keys, keys)
        else {
            return refuse(
                "an interpolation leads from one prompt, class or seed to another: give no more than two of each",
            );
        };
        if conditions.len() == 1 && keys.len() == 1 {
            return refuse(
                "an interpolation leads from one prompt, class or seed to another: give two prompts (--to, --prompts), two --class or two --seeds",
            );
        }
        let mut series = Self::default();
        for frame in 0..frames {
            let share = Self::share(frame, frames);
            series.conditions.push(if conditions.len() == 1 {
                from.clone()
            } else {
                Condition::Between(Box::new(Blend {
                    from: from.clone(),
                    to: to.clone(),
                    share,
                }))
            });
            series.noise.push(if keys.len() == 1 {
                Noise::Of(first)
            } else {
                Noise::Between {
                    from: first,
                    to: last,
                    share,
                }
            });
        }
        Ok(series)
    }

    /// How far frame `frame` of an interpolation of `frames` is on its way, from 0 to 1.
    #[must_use]
    pub fn share(frame: usize, frames: usize) -> f64 {
        frame as f64 / (frames.max(2) - 1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(seeds: &[u64]) -> Vec<NoiseKey> {
        let key = |&seed| NoiseKey { seed, index: 0 };
        seeds.iter().map(key).collect()
    }

    fn prompt(text: &str) -> Condition {
        Condition::Prompt(text.into())
    }

    #[test]
    fn every_condition_meets_every_key() {
        let series = Series::product(&[prompt("a"), prompt("b")], &keys(&[4, 5, 6]));
        let expected = ["a", "a", "a", "b", "b", "b"].map(prompt);
        assert_eq!(series.conditions, expected);
        let seeds = [4, 5, 6, 4, 5, 6];
        let expected = seeds.map(|seed| Noise::Of(NoiseKey { seed, index: 0 }));
        assert_eq!(series.noise, expected);
    }

    #[test]
    fn an_interpolation_goes_evenly_from_end_to_end() {
        let series = Series::between(&[prompt("a")], &keys(&[1, 2]), 5).unwrap();
        assert!(series.conditions.iter().all(|found| *found == prompt("a")));
        let shares: Vec<f64> = (series.noise.iter())
            .map(|noise| match noise {
                Noise::Between { from, to, share } => {
                    assert_eq!([from.seed, to.seed], [1, 2]);
                    *share
                }
                Noise::Of(_) => panic!("not mixed"),
            })
            .collect();
        assert_eq!(shares, [0.0, 0.25, 0.5, 0.75, 1.0]);

        let series = Series::between(&[prompt("a"), prompt("b")], &keys(&[1]), 3).unwrap();
        assert_eq!(series.noise, [Noise::Of(keys(&[1])[0]); 3]);
        let shares: Vec<f64> = series.conditions.iter().map(Condition::share).collect();
        assert_eq!(shares, [0.0, 0.5, 1.0]);
        assert_eq!(series.conditions[1].from(), &prompt("a"));
        assert_eq!(series.conditions[1].to(), &prompt("b"));
    }

    #[test]
    fn one_end_or_three_are_no_interpolation() {
        let one = [prompt("a")];
        let three = [prompt("a"), prompt("b"), prompt("c")];
        assert!(Series::between(&one, &keys(&[1]), 3).is_err());
        assert!(Series::between(&three, &keys(&[1]), 3).is_err());
        assert!(Series::between(&one, &keys(&[1, 2, 3]), 3).is_err());
        assert!(Series::between(&[], &keys(&[1, 2]), 3).is_err());
        assert!(Series::between(&one, &keys(&[1, 2]), 1).is_err());
    }
}
