//! A run's main figures as one picture.

use std::path::Path;

use crate::{
    error::Error,
    metrics::read_metrics,
    plot::{Curve, Panel, plot_curves},
    run::RunDir,
    train::Stage,
};

/// Draws the main figures that the stages of the run in the directory `run` have logged by now, as a PNG: the losses and what they are made of.
///
/// # Errors
/// If a log can't be read, there is none, or `out` can't be written.
pub fn draw_curves(run: &Path, out: &Path) -> Result<(), Error> {
    let run = RunDir::at(run);
    let panels = [
        (
            Stage::Vae,
            "autoencoder: reconstruction",
            "mean absolute error",
            &["rec"][..],
        ),
        (
            Stage::Vae,
            "autoencoder: KL divergence",
            "nats per image",
            &["kl"],
        ),
        (
            Stage::Vae,
            "autoencoder: discriminator",
            "mean logit",
            &["logits_real", "logits_fake"],
        ),
        (
            Stage::Vae,
            "autoencoder: perceptual distance",
            "LPIPS over VGG16",
            &["perceptual"],
        ),
        (
            Stage::Diffusion,
            "diffusion: L_simple",
            "mean squared error",
            &["loss"],
        ),
        (
            Stage::Diffusion,
            "diffusion: gradient norm",
            "L2 norm",
            &["grad_norm"],
        ),
    ];
    let mut drawn = Vec::new();
    for (stage, title, y_label, names) in panels {
        let log = run.metrics(stage);
        if !log.exists() {
            continue;
        }
        let records = read_metrics(&log)?;
        let curves: Vec<Curve> = (names.iter())
            .map(|&name| Curve {
                name: name.into(),
                points: (records.iter())
                    .filter_map(|record| Some((record.step as f64, *record.values.get(name)?)))
                    .collect(),
            })
            .filter(|curve| curve.points.iter().any(|(_, value)| *value != 0.0))
            .collect();
        if !curves.is_empty() {
            drawn.push(Panel {
                title: title.into(),
                y_label: y_label.into(),
                curves,
            });
        }
    }
    if drawn.is_empty() {
        return Err(Error::Request(format!(
            "there is nothing to draw: {} has no metrics.jsonl in stage1 or stage2",
            run.path().display()
        )));
    }
    plot_curves(out, "loss curves", &drawn)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_alone_is_drawn_and_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("curves.png");
        let error = draw_curves(dir.path(), &out).unwrap_err().to_string();
        assert!(
            error.contains("nothing to draw") && !out.exists(),
            "{error}"
        );
        std::fs::create_dir(dir.path().join("stage2")).unwrap();
        let lines = "{\"loss\": 0.5, \"seconds\": 1, \"step\": 1}\n{\"loss\": 0.25, \"seconds\": 2, \"step\": 2}\n";
        std::fs::write(dir.path().join("stage2/metrics.jsonl"), lines).unwrap();
        draw_curves(dir.path(), &out).unwrap();
        assert_eq!(image::open(&out).unwrap().width(), 680);
    }
}
