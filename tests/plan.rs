//! `ldm plan`: what a run will take, told before it starts.

mod support;

use support::Workspace;

#[test]
fn a_plan_has_its_figures_and_leaves_nothing_behind() {
    let workspace = Workspace::new();
    let before = workspace.files("");
    let plan = workspace.run("plan tiny.toml --data data --memory 4GiB --json");
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    let stages = plan["stages"].as_array().unwrap();
    assert_eq!(stages.len(), 2);
    for stage in stages {
        for figure in ["step_seconds", "peak_memory", "images_per_second"] {
            assert!(stage[figure].as_f64().unwrap() > 0.0, "{figure}: {stage}");
        }
        assert!(stage["time"]["total"].as_f64().unwrap() > 0.0, "{stage}");
        // The configuration has 2 micro-batches of 2 images a step.
        let proposal = &stage["proposal"];
        let of = |key: &str| proposal[key].as_u64().unwrap();
        assert_eq!(of("batch_size") * of("accumulation"), 4);
        assert_eq!(stage["fits"], true);
    }
    assert_eq!(workspace.files(""), before);
}

#[test]
fn one_stage_as_a_table() {
    let workspace = Workspace::new();
    let table = workspace.run("plan tiny.toml --stage vae --images 1000");
    for words in [
        "autoencoder: 8 steps of 2 x 2 images",
        "peak memory",
        "checkpoints",
    ] {
        assert!(table.contains(words), "{words}:\n{table}");
    }
    assert!(!table.contains("diffusion:"), "{table}");
}

#[test]
fn wrong_requests_are_refused() {
    let workspace = Workspace::new();
    for (arguments, status, words) in [
        ("plan absent.toml", 1, "absent.toml"),
        ("plan tiny.toml --memory much", 2, "--memory"),
        ("plan tiny.toml --data absent", 1, "absent"),
        (
            "plan tiny.toml --set stage1.training.batch_size=0",
            1,
            "batch_size",
        ),
    ] {
        let output = workspace.output(arguments);
        let stderr = support::stderr(&output);
        assert_eq!(output.status.code(), Some(status), "{arguments}: {stderr}");
        assert!(stderr.contains(words), "{arguments}: {stderr}");
    }
}
