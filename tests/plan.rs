//! `ldm plan`, through the binary.

mod support;

use serde_json::Value;
use support::{
    Workspace,
    refusals::{case, check, refused},
    stderr, succeeded,
};

/// The plan as JSON.
fn plan(workspace: &Workspace, arguments: &str) -> Value {
    let text = workspace.run(&format!("plan tiny.toml --json {arguments}"));
    serde_json::from_str(&text).expect("the output is JSON")
}

fn number(value: &Value, path: &str) -> f64 {
    let found = value.pointer(path);
    found
        .and_then(Value::as_f64)
        .unwrap_or_else(|| panic!("{path} is no number in {value:#}"))
}

#[test]
fn both_stages_are_planned() {
    let workspace = Workspace::new();
    let before = workspace.files("");
    let plan = plan(&workspace, "--data data --memory 8GiB");
    let stages = plan["stages"].as_array().unwrap();
    let names: Vec<&str> = stages
        .iter()
        .filter_map(|stage| stage["stage"].as_str())
        .collect();
    assert_eq!(names, ["autoencoder", "diffusion"]);
    for stage in stages {
        assert_eq!(number(stage, "/steps"), 8.0);
        assert_eq!(number(stage, "/batch_size"), 2.0);
        assert_eq!(number(stage, "/accumulation"), 2.0);
        for path in [
            "/parameters",
            "/step_seconds",
            "/images_per_second",
            "/time/setup",
            "/time/encoding",
            "/time/steps",
            "/time/previews",
            "/time/checkpoints",
            "/disk/checkpoint",
            "/disk/sheets",
            "/disk/logs",
            "/disk/model",
        ] {
            assert!(number(stage, path) > 0.0, "{path} in {stage:#}");
        }
        let step = number(stage, "/step_seconds");
        assert!((number(stage, "/time/steps") / (8.0 * step) - 1.0).abs() < 1e-9);
        let parts = ["setup", "encoding", "steps", "previews", "checkpoints"];
        let sum: f64 = parts
            .map(|part| number(stage, &format!("/time/{part}")))
            .iter()
            .sum();
        assert!((number(stage, "/time/total") / sum - 1.0).abs() < 1e-9);
        // Checkpoints after steps 2, 4, 6 and 8, of which two are kept while a third is written.
        let checkpoint = number(stage, "/disk/checkpoint");
        assert_eq!(number(stage, "/disk/checkpoints"), 3.0 * checkpoint);
        assert!(
            checkpoint > 3.0 * 4.0 * number(stage, "/parameters"),
            "{stage:#}"
        );
        assert_eq!(
            stage["probes"].as_array().unwrap().last().unwrap()["complete"],
            true
        );
        if cfg!(target_os = "linux") {
            assert!(number(stage, "/peak_memory") > 1e7);
            assert_eq!(stage["fits"], true);
            assert_eq!(
                number(stage, "/proposal/batch_size"),
                4.0,
                "all of a step's images"
            );
            assert_eq!(number(stage, "/proposal/accumulation"), 1.0);
        }
    }
    // The discriminator begins at step 3 of 8.
    assert_eq!(number(&stages[0], "/adversarial/share"), 5.0 / 8.0);
    assert_eq!(number(&stages[1], "/disk/latents"), {
        let training = plan["assumptions"][0].as_str().unwrap();
        let images: f64 = training.split(' ').next().unwrap().parse().unwrap();
        // With their mirror images, mean and variance of two channels of 8x8.
        images * 2.0 * 4.0 * 64.0 * 4.0
    });
    assert_eq!(workspace.files(""), before, "nothing is left behind");
}

#[test]
fn a_stage_alone_is_planned_for_people() {
    let workspace = Workspace::new();
    let output = workspace.output("plan tiny.toml --stage diffusion --images 50");
    let progress = stderr(&output);
    assert!(
        progress.contains("diffusion: measuring 6 steps"),
        "{progress}"
    );
    let text = succeeded(output);
    for part in [
        "diffusion: 8 steps of 2 x 2 images",
        "step ",
        "peak memory",
        "checkpoints",
        "disk ",
        "40 training",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert!(!text.contains("autoencoder:"), "{text}");
}

#[cfg(target_os = "linux")]
#[test]
fn what_does_not_fit_is_said() {
    let workspace = Workspace::new();
    let plan = plan(&workspace, "--stage vae --images 10 --memory 1MiB");
    let stage = &plan["stages"][0];
    assert_eq!(
        (&stage["fits"], &stage["proposal"]),
        (&Value::Bool(false), &Value::Null)
    );
    let notes = stage["notes"].to_string();
    assert!(
        notes.contains("not even a micro-batch of one image fits"),
        "{notes}"
    );
}

#[test]
fn wrong_requests_are_refused() {
    let workspace = Workspace::new();
    for (arguments, culprit) in [
        ("plan", "<CONFIG>"),
        ("plan tiny.toml --memory lots", "'lots' for '--memory"),
        ("plan tiny.toml --memory -1GiB", "'-1GiB' for '--memory"),
        ("plan tiny.toml --memory 0", "'0' for '--memory"),
        ("plan tiny.toml --stage third", "'third' for '--stage"),
        ("plan tiny.toml --probe-steps 2", "'2' for '--probe-steps"),
        ("plan tiny.toml --images 0", "'0' for '--images"),
        ("plan tiny.toml --device abacus", "'abacus' for '--device"),
    ] {
        refused(&workspace, arguments, 2, culprit);
    }
    check(
        &workspace,
        &[
            case("plan none.toml", "none.toml", "configs/"),
            case("plan tiny.toml --data nowhere", "nowhere", ""),
            case(
                "plan tiny.toml --set stage1.training.batch_size=0",
                "`stage1.training` has `batch_size` = 0",
                "lists all keys",
            ),
            case(
                "plan tiny.toml --set stage1.training.stpes=1",
                "stpes",
                "stage1.training.steps",
            ),
            case(
                "plan tiny.toml --set stage1.loss.perceptual_weight=1",
                "stage1.vgg",
                "perceptual_weight=0",
            ),
        ],
    );
}
