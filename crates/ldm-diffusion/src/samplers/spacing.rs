//! Which training timesteps are visited. diffusers has three rules for each spacing.

use super::invalid;
use crate::{Error, SchedulerConfig, TimestepSpacing, schedule::linspace};

/// The timesteps of DDPM, DDIM and PLMS: `steps` of them from the noisiest down, all whole. `train_steps` is `T`.
///
/// # Errors
/// Unless `1 <= steps <= T` and every timestep lies below `T`.
pub(super) fn whole(
    config: &SchedulerConfig,
    train_steps: usize,
    steps: usize,
) -> Result<Vec<usize>, Error> {
    check_steps(train_steps, steps)?;
    let timesteps: Vec<usize> = match config.timestep_spacing.unwrap_or(TimestepSpacing::Leading) {
        TimestepSpacing::Leading => leading(config, train_steps, steps),
        TimestepSpacing::Trailing => trailing(train_steps, train_steps, steps),
        TimestepSpacing::Linspace => descending(linspace(0.0, (train_steps - 1) as f64, steps))
            .map(round)
            .collect(),
    };
    check_first(config, train_steps, steps, timesteps[0])?;
    Ok(timesteps)
}

/// The timesteps of Euler, Heun, LMS and DPM2: as [`whole`], but `linspace` is the default and isn't rounded.
///
/// # Errors
/// Those of [`whole`].
pub(super) fn fractional(
    config: &SchedulerConfig,
    train_steps: usize,
    steps: usize,
) -> Result<Vec<f64>, Error> {
    if config
        .timestep_spacing
        .is_none_or(|s| s == TimestepSpacing::Linspace)
    {
        check_steps(train_steps, steps)?;
        return Ok(descending(linspace(0.0, (train_steps - 1) as f64, steps)).collect());
    }
    let timesteps = whole(config, train_steps, steps)?;
    Ok(timesteps.into_iter().map(|t| t as f64).collect())
}

/// The timesteps of DPM-Solver and UniPC: `leading` and `linspace` (default) are spaced for one step more and leave out the last.
/// `end <= T` is the first timestep that is too noisy; a lower one makes `trailing` shorter.
///
/// # Errors
/// Those of [`whole`].
pub(super) fn without_last(
    config: &SchedulerConfig,
    train_steps: usize,
    end: usize,
    steps: usize,
) -> Result<Vec<usize>, Error> {
    check_steps(train_steps, steps)?;
    let timesteps: Vec<usize> = match config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace) {
        TimestepSpacing::Leading => {
            let ratio = end / (steps + 1);
            if ratio == 0 {
                return Err(invalid(
                    "steps",
                    format!(
                        "is {steps}: this sampler's `leading` spacing has room for {} at most; use fewer",
                        end - 1
                    ),
                ));
            }
            (1..=steps)
                .rev()
                .map(|i| i * ratio + config.steps_offset)
                .collect()
        }
        TimestepSpacing::Trailing => trailing(end, train_steps, steps),
        TimestepSpacing::Linspace => descending(linspace(0.0, (end - 1) as f64, steps + 1))
            .take(steps)
            .map(round)
            .collect(),
    };
    check_first(config, train_steps, steps, timesteps[0])?;
    Ok(timesteps)
}

/// Multiples of `T / steps` from the offset on.
fn leading(config: &SchedulerConfig, train_steps: usize, steps: usize) -> Vec<usize> {
    let ratio = train_steps / steps;
    let count = if config.compvis_steps {
        // Where the last of them would lie beyond the end, the original fails.
        let fitting = train_steps
            .saturating_sub(config.steps_offset)
            .div_ceil(ratio);
        fitting.max(1)
    } else {
        steps
    };
    (0..count)
        .rev()
        .map(|i| i * ratio + config.steps_offset)
        .collect()
}

/// Multiples of `T / steps` down from `end`, exclusive. Counted, where the reference walks a float range that has one step too
/// many for some counts.
fn trailing(end: usize, train_steps: usize, steps: usize) -> Vec<usize> {
    let ratio = train_steps as f64 / steps as f64;
    (0..(end * steps).div_ceil(train_steps))
        .map(|i| round(end as f64 - i as f64 * ratio).saturating_sub(1))
        .collect()
}

fn descending(ascending: impl Iterator<Item = f64>) -> impl Iterator<Item = f64> {
    let mut values: Vec<f64> = ascending.collect();
    values.reverse();
    values.into_iter()
}

/// Ties go to even, as numpy's do in the reference.
fn round(t: f64) -> usize {
    t.round_ties_even() as usize
}

fn check_steps(train_steps: usize, steps: usize) -> Result<(), Error> {
    if steps == 0 || steps > train_steps {
        return Err(invalid(
            "steps",
            format!(
                "is {steps}: it must lie between 1 and the model's {train_steps} training steps"
            ),
        ));
    }
    Ok(())
}

fn check_first(
    config: &SchedulerConfig,
    train_steps: usize,
    steps: usize,
    first: usize,
) -> Result<(), Error> {
    if first >= train_steps {
        return Err(invalid(
            "steps",
            format!(
                "is {steps}: with `steps_offset` {} the first timestep would be {first}, but the model knows {train_steps}; use fewer",
                config.steps_offset
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use TimestepSpacing::*;

    fn config(spacing: TimestepSpacing, offset: usize) -> SchedulerConfig {
        SchedulerConfig {
            timestep_spacing: Some(spacing),
            steps_offset: offset,
            ..SchedulerConfig::default()
        }
    }

    #[test]
    fn spacings_have_their_end_points() {
        let of = |spacing, offset, steps| whole(&config(spacing, offset), 1000, steps).unwrap();
        assert_eq!(of(Leading, 1, 4), [751, 501, 251, 1]);
        assert_eq!(of(Trailing, 0, 4), [999, 749, 499, 249]);
        assert_eq!(of(Linspace, 0, 4), [999, 666, 333, 0]);
        for steps in [1, 61, 103, 121, 122, 1000] {
            assert_eq!(of(Trailing, 0, steps).len(), steps);
        }
        let unrounded = fractional(&config(Linspace, 0), 1000, 5).unwrap();
        assert_eq!(unrounded, [999.0, 749.25, 499.5, 249.75, 0.0]);
    }

    #[test]
    fn solvers_leave_out_the_last_timestep_and_may_begin_below_the_end() {
        let of =
            |spacing, offset, end| without_last(&config(spacing, offset), 1000, end, 4).unwrap();
        assert_eq!(of(Leading, 1, 1000), [801, 601, 401, 201]);
        assert_eq!(of(Linspace, 0, 1000), [999, 749, 500, 250]);
        assert_eq!(of(Trailing, 0, 1000), [999, 749, 499, 249]);
        assert_eq!(of(Leading, 0, 900), [720, 540, 360, 180]);
        assert_eq!(of(Trailing, 0, 750), [749, 499, 249]);
    }

    #[test]
    fn compvis_fills_the_range() {
        let config = SchedulerConfig {
            compvis_steps: true,
            ..config(Leading, 1)
        };
        let thirty = whole(&config, 1000, 30).unwrap();
        assert_eq!((thirty.len(), thirty[0], thirty[30]), (31, 991, 1));
        assert_eq!(whole(&config, 1000, 50).unwrap().len(), 50);
        let odd = whole(&config, 1000, 27).unwrap();
        assert_eq!(
            (odd.len(), odd[0]),
            (27, 963),
            "1000 would be beyond the end"
        );
    }

    #[test]
    fn impossible_counts_are_errors() {
        for (offset, steps) in [(0, 0), (0, 1001), (1, 1000)] {
            let error = whole(&config(Leading, offset), 1000, steps).unwrap_err();
            assert!(error.to_string().contains("`steps`"), "{error}");
        }
        let error = without_last(&config(Leading, 0), 1000, 1000, 1000).unwrap_err();
        assert!(error.to_string().contains("999 at most"), "{error}");
    }
}
