//! Compares the whole stage-1 objective, perceptual network included, with what the original code computed.
//!
//! The network's weights are too big to be part of the tests, so this is a program of its own:
//! `scripts/check-lpips.sh VGG16.safetensors HEADS.safetensors`. It prints each value's error and fails if one is too large.

use std::{collections::BTreeMap, env, process::ExitCode};

use burn::prelude::*;
use ldm_autoencoder::{
    AutoencoderKl, AutoencoderKlConfig, Lpips, LpipsConfig, PatchDiscriminator,
    PatchDiscriminatorConfig, Stage1LossConfig, Stage1Objective, weights,
};
use reference::{Expected, fixture, gradient_norms, load, load_compvis, scalar, values};

#[expect(dead_code, reason = "the tests use the rest")]
#[path = "../src/tests/reference.rs"]
mod reference;

/// Relative error of scalars and distances.
const SCALARS: f32 = 2e-4;
/// Relative error, in L2, of gradients: a sign or a ReLU on the other side of zero moves single elements.
const GRADIENTS: f32 = 1e-2;

/// A run of the generator's half of a step in the reference.
struct Run {
    name: &'static str,
    step: u64,
    logvar: f64,
    kl_weight: f64,
}

const RUNS: [Run; 4] = [
    Run {
        name: "gen.before",
        step: 2,
        logvar: 0.0,
        kl_weight: 1e-6,
    },
    Run {
        name: "gen.after",
        step: 3,
        logvar: 0.0,
        kl_weight: 1e-6,
    },
    Run {
        name: "gen.after_logvar",
        step: 10,
        logvar: 0.25,
        kl_weight: 1e-6,
    },
    Run {
        name: "gen.kl_weight_1",
        step: 0,
        logvar: 0.0,
        kl_weight: 1.0,
    },
];

/// Prints errors and counts those beyond their tolerance.
#[derive(Default)]
struct Report {
    failures: usize,
}

impl Report {
    fn error(&mut self, name: &str, error: f32, tolerance: f32) {
        // Not `error > tolerance`: an error that is no number fails too.
        let fits = error <= tolerance;
        self.failures += usize::from(!fits);
        let verdict = if fits { "" } else { "  too large" };
        println!("{name:<45} {error:.1e} of {tolerance:.0e}{verdict}");
    }

    fn scalar(&mut self, name: &str, found: f32, expected: f32) {
        let error = match expected {
            0.0 => found.abs(),
            _ => ((found - expected) / expected).abs(),
        };
        self.error(name, error, SCALARS);
    }

    fn gradient<const D: usize>(&mut self, name: &str, found: Tensor<D>, expected: Tensor<D>) {
        let norm = |x: Tensor<D>| scalar(x.square().sum().sqrt());
        let error = norm(found.inner() - expected.clone()) / norm(expected);
        self.error(name, error, GRADIENTS);
    }
}

fn autoencoder(device: &Device) -> AutoencoderKl {
    let config = AutoencoderKlConfig::new(vec![32, 64, 32], 3, 0);
    let mut model = config.init(device);
    let path = "compvis/autoencoder-kl-f4/first_stage.safetensors";
    load_compvis(&mut model, path, &config.compvis_keys());
    model
}

fn discriminator(device: &Device) -> PatchDiscriminator {
    let config = PatchDiscriminatorConfig {
        channels: 12,
        ..PatchDiscriminatorConfig::default()
    };
    let mut model = config.init(device);
    load(
        &mut model,
        "compvis/losses/discriminator.safetensors",
        weights::DISCRIMINATOR_KEY_MAP,
        "num_batches_tracked",
    );
    model
}

/// The perceptual network of two files, of which each has its part.
fn perceptual_network(vgg: &str, heads: &str, device: &Device) -> Lpips {
    let mut lpips = LpipsConfig {
        heads: false,
        ..LpipsConfig::default()
    }
    .init(device);
    load(&mut lpips, vgg, weights::VGG16_KEY_MAP, "");
    let mut with_heads = LpipsConfig::default().init(device);
    with_heads.convs = Vec::new();
    load(&mut with_heads, heads, weights::VGG16_KEY_MAP, "");
    lpips.heads = with_heads.heads;
    lpips
}

fn check_distance(lpips: &Lpips, expected: &Expected, report: &mut Report) {
    let image = expected.tensor::<4>("lpips.image");
    let reconstruction = expected.tensor::<4>("lpips.reconstruction");
    let stages = lpips.stage_distances(image.clone(), reconstruction.clone());
    let per_stage = values(expected.tensor::<2>("lpips.per_layer"));
    for (stage, distances) in stages.into_iter().enumerate() {
        for (pair, found) in values(distances).into_iter().enumerate() {
            let name = format!("lpips.per_layer {stage} of pair {pair}");
            report.scalar(&name, found, per_stage[2 * stage + pair]);
        }
    }
    let leaf = reconstruction.autodiff().require_grad();
    let distance = lpips.forward(image, leaf.clone());
    let totals = values(expected.tensor::<1>("lpips.value"));
    for (pair, found) in values(distance.clone()).into_iter().enumerate() {
        report.scalar(&format!("lpips.value of pair {pair}"), found, totals[pair]);
    }
    let gradient = leaf
        .grad(&distance.sum().backward())
        .expect("the distance depends on the reconstruction");
    report.gradient(
        "lpips.grad_reconstruction",
        gradient,
        expected.tensor("lpips.grad_reconstruction"),
    );
}

fn check_generator(run: &Run, lpips: &Lpips, expected: &Expected, report: &mut Report) {
    let device = Device::flex().autodiff();
    let model = autoencoder(&device);
    let config = Stage1LossConfig {
        disc_start: 3,
        watch_before_start: true,
        logvar: run.logvar,
        kl_weight: run.kl_weight,
        ..Stage1LossConfig::default()
    };
    let objective = Stage1Objective::new(config, Some(lpips.clone()));
    let objective = objective.expect("the configuration is valid");
    let step = objective.generator(
        &model,
        Some(&discriminator(&device)),
        expected.tensor("image"),
        expected.tensor("noise"),
        run.step,
    );
    let terms = step.terms;
    let distances = values(expected.tensor::<1>(&format!("{}.p_loss", run.name)));
    report.scalar(
        &format!("{}.p_loss, mean", run.name),
        terms.perceptual,
        distances.iter().sum::<f32>() / distances.len() as f32,
    );
    for (name, found) in [
        ("total_loss", terms.total),
        ("nll_loss", terms.nll),
        ("rec_loss", terms.rec + terms.perceptual),
        ("kl_loss", terms.kl),
        ("g_loss", terms.g_loss),
        ("d_weight", terms.d_weight),
        ("disc_factor", terms.disc_factor),
    ] {
        let name = format!("{}.{name}", run.name);
        report.scalar(&name, found, expected.scalar(&name));
    }
    if ["gen.before", "gen.after"].contains(&run.name) {
        for (part, weight) in [
            ("decoder.conv_out", &model.decoder.conv_out.weight),
            ("encoder.conv_in", &model.encoder.conv_in.weight),
        ] {
            let name = format!("{}.grad.{part}.weight", run.name);
            let found = step.grads.get::<4>(weight.id);
            let found = found.expect("every weight has a gradient");
            report.gradient(&name, found, expected.tensor(&name));
        }
    }
    let mut norms = gradient_norms(&model, &step.grads);
    let learnt = objective.generator_with_logvar(
        &model,
        Some(&discriminator(&device)),
        expected.tensor("image"),
        expected.tensor("noise"),
        run.step,
        Some(Tensor::from_floats([run.logvar as f32], &Device::flex())),
    );
    let gradient = learnt.logvar_grad.expect("the log-variance is a variable");
    norms.insert("loss.logvar".to_owned(), scalar(gradient).abs());
    check_norms(run.name, &norms, report);
}

/// The worst of all parameters' gradient norms, as a part of `5e-3 |b| + 1e-4 largest`.
fn check_norms(run: &str, found: &BTreeMap<String, f32>, report: &mut Report) {
    let json = std::fs::read(fixture("compvis/losses/grad_norms.json")).expect("readable");
    let mut runs: BTreeMap<String, BTreeMap<String, f32>> =
        serde_json::from_slice(&json).expect("norms by run and parameter");
    let expected = runs.remove(run).expect("the run is there");
    assert!(found.keys().eq(expected.keys()), "other parameters");
    let largest = expected.values().copied().fold(0.0, f32::max);
    let worst = expected
        .iter()
        .map(|(name, b)| (found[name] - b).abs() / (5e-3 * b + 1e-4 * largest))
        .fold(0.0, f32::max);
    let name = format!("{run}, worst of {} norms", expected.len());
    report.error(&name, worst, 1.0);
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [vgg, heads] = &arguments[..] else {
        eprintln!("usage: lpips_parity VGG16.safetensors HEADS.safetensors");
        return ExitCode::from(2);
    };
    let lpips = perceptual_network(vgg, heads, &Device::flex());
    let expected = Expected::load("compvis/losses/expected.safetensors");
    let mut report = Report::default();
    check_distance(&lpips, &expected, &mut report);
    for run in &RUNS {
        check_generator(run, &lpips, &expected, &mut report);
    }
    match report.failures {
        0 => ExitCode::SUCCESS,
        failures => {
            eprintln!("error: {failures} values differ too much");
            ExitCode::FAILURE
        }
    }
}
