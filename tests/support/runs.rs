//! What a run leaves, without what differs from one time to the next.

use std::{collections::BTreeMap, process::Child, process::Stdio};

use super::Workspace;

/// Starts both stages of the tiny configuration, going on where there is something to go on from.
pub(crate) fn train(workspace: &Workspace, run: &str, options: &str) -> Child {
    train_with(workspace, run, options, &[])
}

/// [`train`] with environment variables.
pub(crate) fn train_with(
    workspace: &Workspace,
    run: &str,
    options: &str,
    environment: &[(&str, String)],
) -> Child {
    let mut command = workspace.command(&format!(
        "train all tiny.toml --data data --out {run} --resume {options}"
    ));
    for (name, value) in environment {
        command.env(name, value);
    }
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What the run's outcome consists of. Times differ from run to run, and who was interrupted keeps other checkpoints.
pub(crate) fn result(workspace: &Workspace, run: &str) -> BTreeMap<String, Vec<u8>> {
    let mut files = workspace.files(run);
    let is_checkpoint = |name: &str| name.contains("/checkpoints/");
    let last: Vec<String> = ["stage1", "stage2"]
        .iter()
        .filter_map(|stage| {
            let names = files.keys().filter(|name| {
                name.starts_with(stage) && is_checkpoint(name) && !name.contains(".damaged")
            });
            names.max().map(|name| {
                name.rsplit_once('/')
                    .expect("a file in a checkpoint")
                    .0
                    .to_owned()
            })
        })
        .collect();
    files.retain(|name, _| {
        let weights = name.ends_with(".safetensors");
        let in_last = last
            .iter()
            .any(|checkpoint| name.starts_with(&format!("{checkpoint}/")));
        match is_checkpoint(name) {
            true => weights && in_last,
            false => {
                weights
                    || name.ends_with(".png")
                    || name.ends_with("metrics.jsonl")
                    || name.contains("model/")
            }
        }
    });
    for (name, content) in &mut files {
        if name.ends_with(".jsonl") {
            *content = without_measurements(content);
        }
    }
    assert!(files.len() >= 5, "{:?}", files.keys());
    files
}

/// A `metrics.jsonl` without the figures that a clock or the system has made.
fn without_measurements(metrics: &[u8]) -> Vec<u8> {
    let lines = metrics
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty());
    let records = lines.map(|line| {
        let mut record: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(line).unwrap();
        record.retain(|name, _| !name.contains("second") && name != "memory_mib");
        serde_json::Value::from(record).to_string() + "\n"
    });
    records.collect::<String>().into_bytes()
}

pub(crate) fn assert_same(found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>) {
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected));
    let different: Vec<&String> = found
        .keys()
        .filter(|name| found[*name] != expected[*name])
        .collect();
    assert!(different.is_empty(), "these differ: {different:?}");
}

pub(crate) fn assert_no_leftovers(workspace: &Workspace, run: &str) {
    let mut names = workspace.files(run).into_keys();
    let leftover = names.find(|name| name.contains(".partial") || name.contains(".replaced"));
    assert_eq!(leftover, None);
}
