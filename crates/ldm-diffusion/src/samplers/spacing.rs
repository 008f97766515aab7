use crate::{Error, SchedulerConfig, TimestepSpacing, schedule::linspace};

use super::invalid;

/// The training timesteps that `steps` steps visit, from the noisiest down. `train_steps` is `T`.
///
/// # Errors
/// Unless `1 <= steps <= T` and every timestep lies below `T`.
pub(super) fn timesteps(
    config: &SchedulerConfig,
    train_steps: usize,
    steps: usize,
) -> Result<Vec<usize>, Error> {
    if steps == 0 || steps > train_steps {
        return Err(invalid(
            "steps",
            format!(
                "is {steps}: it must lie between 1 and the model's {train_steps} training steps"
            ),
        ));
    }
    // Ties round to even, as numpy's do in the reference.
    let round = |t: f64| t.round_ties_even() as usize;
    let timesteps: Vec<usize> = match config.timestep_spacing {
        TimestepSpacing::Leading => {
            let ratio = train_steps / steps;
            (0..steps)
                .rev()
                .map(|i| i * ratio + config.steps_offset)
                .collect()
        }
        // Counted, where the reference walks a float range that has one step too many for some counts.
        TimestepSpacing::Trailing => {
            let ratio = train_steps as f64 / steps as f64;
            (0..steps)
                .map(|i| round(train_steps as f64 - i as f64 * ratio) - 1)
                .collect()
        }
        TimestepSpacing::Linspace => {
            let mut ascending: Vec<usize> = linspace(0.0, (train_steps - 1) as f64, steps)
                .map(round)
                .collect();
            ascending.reverse();
            ascending
        }
    };
    if timesteps[0] >= train_steps {
        return Err(invalid(
            "steps",
            format!(
                "is {steps}: with `steps_offset` {} the first timestep would be {}, but the model knows {train_steps}; use fewer",
                config.steps_offset, timesteps[0]
            ),
        ));
    }
    Ok(timesteps)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(spacing: TimestepSpacing, offset: usize, steps: usize) -> Result<Vec<usize>, Error> {
        let config = SchedulerConfig {
            timestep_spacing: spacing,
            steps_offset: offset,
            ..SchedulerConfig::default()
        };
        timesteps(&config, 1000, steps)
    }

    #[test]
    fn spacings_have_their_end_points() {
        use TimestepSpacing::*;
        assert_eq!(of(Leading, 1, 4).unwrap(), [751, 501, 251, 1]);
        assert_eq!(of(Trailing, 0, 4).unwrap(), [999, 749, 499, 249]);
        assert_eq!(of(Linspace, 0, 4).unwrap(), [999, 666, 333, 0]);
        for steps in [1, 61, 103, 121, 122, 1000] {
            assert_eq!(of(Trailing, 0, steps).unwrap().len(), steps);
        }
    }

    #[test]
    fn impossible_counts_are_errors() {
        use TimestepSpacing::*;
        for (offset, steps) in [(0, 0), (0, 1001), (1, 1000)] {
            let error = of(Leading, offset, steps).unwrap_err().to_string();
            assert!(error.contains("`steps`"), "{error}");
        }
    }
}
